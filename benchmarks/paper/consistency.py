"""Cells of several tables, or of one, that have to fit each other.

Tables 1 and 8.1 are not held against each other: one is VBench on 100 prompts, the other VBench-Long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from benchmarks.paper import PaperRow, PaperTable
from benchmarks.paper.check import Check, Interval, Tables, ends, listed, rounding, size


def checks(tables: Tables) -> Iterator[Check]:
    """All of this module."""
    for find in (repeated, sizes_as_headed, latency_per_step, parts_within_wholes, memory_against_timing):
        yield from find(tables)


# Table 4's full arm, Table 5's 4 steps (sec. 4.3) and Table 9.3's last row ("The full PixelWizard-2k", sec. 9.5).
_SAME_SYSTEM = {
    ("table_4", "gated"): "pixelwizard_2k",
    ("table_5", "4"): "pixelwizard_2k",
    ("table_9_3", "full"): "pixelwizard_2k",
}
_SAME_VIDEOS = ("table_2", "table_3", "table_4", "table_5", "table_9_3")
_SIZES_IN_TEXT = (
    ("", "sec. 4.1", "pixelwizard_2k", "2560*1440"),
    ("", "sec. 4.1", "pixelwizard_4k", "3840*2144"),
    ("table_4", "Table 4, caption", "pixelwizard_2k", "2560*1440"),
    ("table_5", "Table 5, caption", "pixelwizard_2k", "2560*1440"),
)


@dataclass(frozen=True)
class _Cell:
    """One printing of a number; cells of the same key should be equal."""

    key: tuple[str, str]
    table: str
    place: str
    row: str
    column: str
    text: str


def _cells(tables: Tables) -> Iterator[_Cell]:
    for table in tables.values():
        for row in table.rows:
            system = _SAME_SYSTEM.get((table.name, row.arm), row.arm)
            for column in table.columns:
                text = row.printed[column.name]
                if column.name.startswith("Resolution"):
                    text = "*".join(map(str, size(text)[-2:]))
                    yield _Cell((system, "resolution"), table.name, row.source, row.label, column.name, text)
                elif table.name in _SAME_VIDEOS and column.kind == "quality":
                    key = (system, column.metric or "")
                    yield _Cell(key, table.name, row.source, _label(table, row), column.name, text)
    for name, place, system, text in _SIZES_IN_TEXT:
        yield _Cell((system, "resolution"), name, place, system, "resolution", text)


def repeated(tables: Tables) -> Iterator[Check]:
    """The same number of the same system in several places: each against the first that prints what most print."""
    groups: dict[tuple[str, str], list[_Cell]] = {}
    for cell in _cells(tables):
        groups.setdefault(cell.key, []).append(cell)
    for cells in groups.values():
        usual, times = Counter(cell.text for cell in cells).most_common(1)[0]
        first = next(cell for cell in cells if cell.text == usual)
        for cell in cells:
            if cell is first:
                continue
            alike = [other for other in cells if other.text == usual and other is not cell]
            agrees = cell.text == usual
            beyond = f"{usual} would agree" if not agrees and times > 1 else ""
            yield Check(
                kind="consistency",
                tables=tuple(dict.fromkeys(c.table for c in (cell, *alike) if c.table)),
                place=cell.place,
                row=cell.row,
                column=cell.column,
                printed=cell.text,
                recomputed=usual,
                how=f"the same system and {cell.column} in {'; '.join(other.place for other in alike)}",
                adds_up=agrees,
                inference=beyond + (_also(tables, cell, usual) if beyond else ""),
            )


def _also(tables: Tables, cell: _Cell, usual: str) -> str:
    """Another row of the same table in which the expected number stands."""
    rows = [r for r in tables[cell.table].rows if r.printed.get(cell.column) == usual] if cell.table else []
    return f"; it stands in the row of {_label(tables[cell.table], rows[0])} ({rows[0].source})" if rows else ""


def _label(table: PaperTable, row: PaperRow) -> str:
    """As printed; Table 5's are numbers of steps."""
    return f"{row.label} steps" if table.name == "table_5" else row.label


def sizes_as_headed(tables: Tables) -> Iterator[Check]:
    """Whether sizes are in the order that the head says: height first would make every video a portrait."""
    for table in tables.values():
        for column in table.columns:
            if not column.name.startswith("Resolution"):
                continue
            order = column.name[column.name.index("(") + 1 : -1]
            wide = [
                row for row in table.rows if size(row.printed[column.name])[-2] > size(row.printed[column.name])[-1]
            ]
            yield Check(
                kind="consistency",
                tables=(table.name,),
                place=f"{table.title}, head",
                row="all",
                column=column.name,
                printed=order,
                recomputed=order.replace("H×W", "W×H") if wide else order,
                how=f"{len(wide)} of {len(table.rows)} entries, such as {table.rows[0].printed[column.name]}, would be "
                "portrait videos with the height first",
                adds_up=not wide,
                inference="the entries are width before height" if wide else "",
            )


def latency_per_step(tables: Tables) -> Iterator[Check]:
    """Table 5: a step costs the same each time, so latency is a fixed part plus a multiple of the steps.

    Each row against the line through the others of the largest set of rows that lie on one.
    """
    table = tables["table_5"]
    points = {row.arm: (int(row.label), rounding(row.printed["Latency"])) for row in table.rows}
    lined = _longest_line(points)
    for row in table.rows:
        steps, printed = points[row.arm]
        others = [points[arm] for arm in lined if arm != row.arm]
        line = _at(others, steps)
        inference = ""
        if line is None:
            how, recomputed = "no line goes through three of the rows", "-"
        else:
            each, fixed = _slope(others)
            how = f"{fixed:.3g} s + {each:.3g} s × steps, through {listed([str(n) for n, _ in others])} steps"
            recomputed = ends(line, row.printed["Latency"])
            if not line.meets(printed) and each:
                worth = (printed.middle - fixed) / each
                inference = f"{line.middle:.0f}; {row.printed['Latency']} is what {worth:.3g} steps would take"
        yield Check(
            kind="consistency",
            tables=("table_5",),
            place=row.source,
            row=_label(table, row),
            column="Latency",
            printed=row.printed["Latency"],
            recomputed=recomputed,
            how=f"{how}; here {printed.middle / steps:.4g} s a step",
            adds_up=line is not None and line.meets(printed),
            possible=line,
            inference=inference,
        )


Point = tuple[int, Interval]
"""Steps, and what their printed latency can be."""


def _longest_line(points: Mapping[str, Point]) -> tuple[str, ...]:
    """The largest set of points that one line goes through."""
    for count in range(len(points), 2, -1):
        for chosen in combinations(points, count):
            if _lines([points[arm] for arm in chosen]):
                return chosen
    return ()


def _lines(points: Sequence[Point]) -> list[tuple[float, float]]:
    """(slope, intercept) of the extreme lines through all intervals: each touches two of their ends."""
    ends = [(x, y) for x, interval in points for y in (interval.low, interval.high)]
    found = []
    for (x, y), (u, v) in combinations(ends, 2):
        if x == u:
            continue
        slope = (v - y) / (u - x)
        values = [y + slope * (n - x) for n, _ in points]
        if all(Interval(value, value).meets(end) for value, (_, end) in zip(values, points, strict=True)):
            found.append((slope, y - slope * x))
    return found


def _at(points: Sequence[Point], x: int) -> Interval | None:
    """What lines through all of at least two points can be at x."""
    values = [slope * x + intercept for slope, intercept in _lines(points)] if len(points) > 1 else []
    return Interval(min(values), max(values)) if values else None


def _slope(points: Sequence[Point]) -> tuple[float, float]:
    """(slope, intercept) in the middle of all lines through the points."""
    lines = _lines(points)
    middles = [Interval(min(values), max(values)).middle for values in zip(*lines, strict=True)]
    return middles[0], middles[1]


def parts_within_wholes(tables: Tables) -> Iterator[Check]:
    """Table 5 times stage II alone at 4 steps, Table 1 the whole diffusion inference: that cannot be less."""
    whole = tables["table_1"].row("pixelwizard_2k")
    part = tables["table_5"].row("4")
    least = Interval(rounding(part.printed["Latency"]).low, float("inf"))
    between = [row.label for row in tables["table_5"].rows if row.values["Latency"] <= whole.values["Latency"]]
    adds_up = rounding(whole.printed["Latency"]).meets(least)
    yield Check(
        kind="consistency",
        tables=("table_1", "table_5"),
        place=whole.source,
        row=whole.label,
        column="Latency",
        printed=whole.printed["Latency"],
        recomputed=f"≥ {least.low:g}",
        how=f"stage II alone takes {part.printed['Latency']} at the paper's 4 steps ({part.source}), and stage I comes "
        "on top",
        adds_up=adds_up,
        possible=least,
        inference="" if adds_up else f"timed apart, or with fewer steps: {between[-1]} steps fit" if between else "",
    )


def memory_against_timing(tables: Tables) -> Iterator[Check]:
    """What is out of memory in Table 8.2 has no latency in Table 1, which is of a single GPU."""
    timed = {row.arm: row for row in tables["table_1"].rows}
    for row in tables["table_8_2"].rows:
        if row.arm not in timed:
            continue
        runs = "Peak Mem." in row.values
        other = timed[row.arm]
        yield Check(
            kind="consistency",
            tables=("table_8_2", "table_1"),
            place=row.source,
            row=row.label,
            column="Peak Mem.",
            printed=row.printed["Peak Mem."],
            recomputed=row.printed["Peak Mem."] if runs else "it ran",
            how=f"{other.source} has its latency on a single GPU, {other.printed['Latency']} s",
            adds_up=runs,
            inference="" if runs else "another GPU, offloading or another size of video: neither table says which",
        )
