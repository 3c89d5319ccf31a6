"""Check that cells agree with each other and that statements in the text agree with the tables.

For a statement, `printed` is its wording. Tables 1 and 8.1 are not compared with each other: one is VBench on 100
prompts, the other VBench-Long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from benchmarks.paper import COLUMNS, PaperRow, PaperTable
from benchmarks.paper.recompute import Check, Interval, Tables, interval_text, join_words, rounding, size


def checks(tables: Tables) -> Iterator[Check]:
    consistency = (repeated_numbers, size_order, latency_per_step, stage_within_total, memory_or_latency)
    for check in (*consistency, speed_up_claims, duration_claims, best_claims, order_claims, count_claims):
        yield from check(tables)


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


class _Cell(NamedTuple):
    """One occurrence of a number; cells with the same key should be equal."""

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


def repeated_numbers(tables: Tables) -> Iterator[Check]:
    """Compare the same number of the same system in several places with the most frequent text."""
    groups: dict[tuple[str, str], list[_Cell]] = {}
    for cell in _cells(tables):
        groups.setdefault(cell.key, []).append(cell)
    for cells in groups.values():
        majority, count = Counter(cell.text for cell in cells).most_common(1)[0]
        first = next(cell for cell in cells if cell.text == majority)
        cells.remove(first)
        for cell in cells:
            equal_cells = [other for other in (first, *cells) if other.text == majority and other is not cell]
            agrees = cell.text == majority
            yield Check(
                kind="consistency",
                tables=tuple(dict.fromkeys(c.table for c in (cell, *equal_cells) if c.table)),
                place=cell.place,
                row=cell.row,
                column=cell.column,
                printed=cell.text,
                recomputed=majority,
                how=f"the same system and {cell.column} in {'; '.join(other.place for other in equal_cells)}",
                adds_up=agrees,
                inference="" if agrees or count == 1 else f"{majority} would agree{_other_row(tables, cell, majority)}",
            )


def _other_row(tables: Tables, cell: _Cell, text: str) -> str:
    """Name another row of the same table that holds the expected number."""
    rows = [r for r in tables[cell.table].rows if r.printed.get(cell.column) == text] if cell.table else []
    return f"; it stands in the row of {_label(tables[cell.table], rows[0])} ({rows[0].source})" if rows else ""


def _label(table: PaperTable, row: PaperRow) -> str:
    """The printed label; labels of Table 5 are numbers of steps."""
    return f"{row.label} steps" if table.name == "table_5" else row.label


def size_order(tables: Tables) -> Iterator[Check]:
    """Check the order of width and height in the column heads: with height first, videos would be portraits."""
    for table in tables.values():
        for column in table.columns:
            if not column.name.startswith("Resolution"):
                continue
            order = column.name[column.name.index("(") + 1 : -1]
            sizes = [size(row.printed[column.name]) for row in table.rows]
            tall = [s for s in sizes if s[-2] > s[-1]]
            yield Check(
                kind="consistency",
                tables=(table.name,),
                place=f"{table.title}, head",
                row="all",
                column=column.name,
                printed=order,
                recomputed=order.replace("H×W", "W×H") if tall else order,
                how=f"{len(tall)} of {len(table.rows)} entries, such as {table.rows[0].printed[column.name]}, would be "
                "portrait videos with the height first",
                adds_up=not tall,
                inference="the entries are width before height" if tall else "",
            )


def latency_per_step(tables: Tables) -> Iterator[Check]:
    """Check Table 5: all steps cost the same, so latency is linear in the number of steps.

    Each row is compared with the line through the other rows of the largest set of rows that lie on one line.
    """
    table = tables["table_5"]
    points = {row.arm: (int(row.label), rounding(row.printed["Latency"])) for row in table.rows}
    line_arms = _longest_line(points)
    for row in table.rows:
        steps, printed = points[row.arm]
        others = [points[arm] for arm in line_arms if arm != row.arm]
        expected, how, recomputed, inference = None, "no line goes through three of the rows", "-", ""
        if lines := _lines(others):
            expected = _hull([slope * steps + intercept for slope, intercept in lines])
            per_step, fixed = (_hull(values).middle for values in zip(*lines, strict=True))
            how = f"{fixed:.3g} s + {per_step:.3g} s × steps, through {join_words([str(n) for n, _ in others])} steps"
            recomputed = interval_text(expected, row.printed["Latency"])
            if not expected.overlaps(printed) and per_step:
                equivalent = (printed.middle - fixed) / per_step
                inference = f"{expected.middle:.0f}; {row.printed['Latency']} is what {equivalent:.3g} steps would take"
        yield Check(
            kind="consistency",
            tables=("table_5",),
            place=row.source,
            row=_label(table, row),
            column="Latency",
            printed=row.printed["Latency"],
            recomputed=recomputed,
            how=f"{how}; here {printed.middle / steps:.4g} s a step",
            adds_up=expected is not None and expected.overlaps(printed),
            possible=expected,
            inference=inference,
        )


Point = tuple[int, Interval]
"""Number of steps, and interval of their printed latency."""


def _longest_line(points: Mapping[str, Point]) -> tuple[str, ...]:
    """The largest set of at least three points on one line."""
    sets = (arms for count in range(len(points), 2, -1) for arms in combinations(points, count))
    return next((arms for arms in sets if _lines([points[arm] for arm in arms])), ())


def _lines(points: Sequence[Point]) -> list[tuple[float, float]]:
    """(slope, intercept) of the extreme lines through the intervals of all points; each touches two interval ends."""
    lines = []
    for (x, y), (u, v) in combinations([(x, y) for x, interval in points for y in (interval.low, interval.high)], 2):
        if x == u:
            continue
        slope = (v - y) / (u - x)
        values = [y + slope * (n - x) for n, _ in points]
        if all(Interval(value, value).overlaps(end) for value, (_, end) in zip(values, points, strict=True)):
            lines.append((slope, y - slope * x))
    return lines


def _hull(values: Sequence[float]) -> Interval:
    return Interval(min(values), max(values))


def stage_within_total(tables: Tables) -> Iterator[Check]:
    """Table 5 measures stage II alone at 4 steps, Table 1 the whole inference, which cannot be faster."""
    whole = tables["table_1"].row("pixelwizard_2k")
    part = tables["table_5"].row("4")
    minimum = Interval(rounding(part.printed["Latency"]).low, float("inf"))
    smaller = [row.label for row in tables["table_5"].rows if row.values["Latency"] <= whole.values["Latency"]]
    adds_up = rounding(whole.printed["Latency"]).overlaps(minimum)
    yield Check(
        kind="consistency",
        tables=("table_1", "table_5"),
        place=whole.source,
        row=whole.label,
        column="Latency",
        printed=whole.printed["Latency"],
        recomputed=f"≥ {minimum.low:g}",
        how=f"stage II alone takes {part.printed['Latency']} at the paper's 4 steps ({part.source}), and stage I comes "
        "on top",
        adds_up=adds_up,
        possible=minimum,
        inference="" if adds_up else f"timed apart, or with fewer steps: {smaller[-1]} steps fit" if smaller else "",
    )


def memory_or_latency(tables: Tables) -> Iterator[Check]:
    """A system that is out of memory in Table 8.2 cannot have a latency on the single GPU of Table 1."""
    latency_rows = {row.arm: row for row in tables["table_1"].rows}
    for row in tables["table_8_2"].rows:
        if row.arm not in latency_rows:
            continue
        fits = "Peak Mem." in row.values
        latency_row = latency_rows[row.arm]
        yield Check(
            kind="consistency",
            tables=("table_8_2", "table_1"),
            place=row.source,
            row=row.label,
            column="Peak Mem.",
            printed=row.printed["Peak Mem."],
            recomputed=row.printed["Peak Mem."] if fits else "it ran",
            how=f"{latency_row.source} has its latency on a single GPU, {latency_row.printed['Latency']} s",
            adds_up=fits,
            inference="" if fits else "another GPU, offloading or another size of video: neither table says which",
        )


def speed_up_claims(tables: Tables) -> Iterator[Check]:
    """ "accelerating the generative sampling of native 2K/4K videos by over 10×": against the base model, Table 1."""
    table = tables["table_1"]
    for base, ours, name in (("wan2_2_5b_2k", "pixelwizard_2k", "2K"), ("wan2_2_5b_4k", "pixelwizard_4k", "4K")):
        slow, fast = table.row(base), table.row(ours)
        a, b = rounding(slow.printed["Latency"]), rounding(fast.printed["Latency"])
        interval = Interval(a.low / b.high, a.high / b.low)
        yield Check(
            kind="claim",
            tables=("table_1",),
            place="abstract; sec. 1, last paragraph",
            row=f"{fast.label} to {slow.label}",
            column=f"speed-up at {name}",
            printed="over 10×",
            recomputed=f"{interval.low:.2f} to {interval.high:.2f}",
            how=f"{slow.printed['Latency']} s / {fast.printed['Latency']} s, the base model at the same size",
            adds_up=interval.low > 10,
            possible=interval,
        )


def duration_claims(tables: Tables) -> Iterator[Check]:
    """ "comparable at approximately 5 seconds" (sec. 8.2): frames over frames per second, to the nearest second."""
    five = rounding("5")
    for row in tables["table_1"].rows:
        frames, fps = size(row.printed["Resolution (T×H×W)"])[0], row.values["Playback FPS"]
        seconds = Interval(frames / fps, frames / fps)
        yield Check(
            kind="claim",
            tables=("table_1",),
            place="sec. 8.2, paragraph 2",
            row=f"{row.label} ({row.source})",
            column="playback duration",
            printed="approximately 5 seconds",
            recomputed=f"{seconds.low:.2f}",
            how=f"{frames} frames at {fps:g} per second; 4.5 to 5.5 s would be 5 to the nearest second",
            adds_up=five.overlaps(seconds),
            possible=seconds,
        )


def best_claims(tables: Tables) -> Iterator[Check]:
    """PixelWizard claims the two best averages of Table 1, and the best value in every column of Table 2."""
    average = "achieving the highest average scores at both 2K and 4K resolutions"
    metric = "consistently achieves the best performance across all metrics"
    claims = (("table_1", "Avg.", 2, average), *(("table_2", name, 1, metric) for name in tables["table_2"].quality()))
    for name, column, count, claim in claims:
        rows = tables[name].rows
        sign = 1 if COLUMNS[column].direction == "higher" else -1
        best = sorted(rows, key=lambda row: -sign * row.values[column])[:count]
        yield Check(
            kind="claim",
            tables=(name,),
            place="sec. 4.2, after Table 3",
            row="PixelWizard",
            column=column,
            printed=claim,
            recomputed=join_words([f"{row.label} {row.printed[column]}" for row in best]),
            how=f"the best of {len(rows)} rows" if count == 1 else f"the best {count} of {len(rows)} rows",
            adds_up=all(row.arm in ("pixelwizard_2k", "pixelwizard_4k") for row in best),
        )


_ORDERS = (
    ("table_4", "add", "alpha_zero", "element-wise addition (w/o AGI) is suboptimal"),
    ("table_4", "alpha_zero", "gated", "Enabling the full AGHS with adaptive gating further improves performance"),
    ("table_9_3", "baseline", "original", "yields consistent improvements across all metrics"),
    ("table_9_3", "original", "exponential", "yields further gains across all metrics"),
    ("table_9_3", "exponential", "full", "achieves the best overall results"),
)


def order_claims(tables: Tables) -> Iterator[Check]:
    """Claims that one row is better than another in every metric."""
    for name, before, after, claim in _ORDERS:
        table = tables[name]
        a, b = table.row(before), table.row(after)
        worse = [
            column
            for column, direction in table.quality().items()
            if (b.values[column] - a.values[column]) * (1 if direction == "higher" else -1) <= 0
        ]
        steps = [f"{c} {a.printed[c]} → {b.printed[c]}" for c in (worse or table.quality())]
        yield Check(
            kind="claim",
            tables=(name,),
            place="sec. 4.3" if name == "table_4" else "sec. 9.5",
            row=f"{a.label} → {b.label}",
            column=join_words(worse or list(table.quality())),
            printed=claim,
            recomputed=", ".join(steps),
            how="every metric strictly better" if not worse else f"not better: {', '.join(worse)}",
            adds_up=not worse,
        )


def count_claims(tables: Tables) -> Iterator[Check]:
    """Derived numbers in the text: the anchor's tokens (sec. 9.5), two stages of 5B parameters (Table 8.2)."""
    width, height = 448, 256
    latent, grid = (width // 16, height // 16), (width // 32, height // 32)
    recomputed = f"{latent[0]}×{latent[1]}, {grid[0]}×{grid[1]}, {grid[0] * grid[1]}"
    printed = "28×16, 14×8, 112"
    yield Check(
        kind="claim",
        tables=(),
        place="sec. 9.5, first paragraph",
        row="anchor of 448×256",
        column="latent, token grid, tokens",
        printed=printed,
        recomputed=recomputed,
        how="the VAE compresses 16×, a patch 2×",
        adds_up=printed == recomputed,
    )
    row = tables["table_8_2"].row("pixelwizard_4k")
    stages = Interval(2 * rounding("5").low, 2 * rounding("5").high)
    yield Check(
        kind="claim",
        tables=("table_8_2",),
        place=row.source,
        row=row.label,
        column="Params.",
        printed=row.printed["Params."],
        recomputed=interval_text(stages, "10"),
        how="two stages (sec. 9.3), each a Wan2.2-TI2V-5B (sec. 4.1)",
        adds_up=stages.overlaps(rounding(row.printed["Params."], "B")),
        possible=stages,
    )
