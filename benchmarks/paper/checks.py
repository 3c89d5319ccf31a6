"""What the paper's tables and text derive, recomputed from what they print: `lint()` gives every check.

A printed number stands for the interval that rounds to it: 146 s is 145.5 to 146.5. What is derived from such
numbers has an interval too, and a printed result adds up if its own interval meets that one; so a finding is never
rounding. Corrections are inferences: the single digit, or swap of neighbouring digits, in one cell of the row that
makes all derived cells of that row add up.

Tables 1 and 8.1 are not held against each other: one is VBench on 100 prompts, the other VBench-Long.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from benchmarks import paper
from benchmarks.paper import COLUMNS, Row, Table
from benchmarks.vbench_totals import RANGES, TOTALS

Kind = Literal["derived", "consistency", "claim"]
Tables = Mapping[str, Table]


@dataclass(frozen=True)
class Interval:
    """All values that a printed number, or a result of printed numbers, can stand for."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """Of both ends."""
        return (self.low + self.high) / 2

    def meets(self, other: Interval) -> bool:
        """Whether they have a value in common, up to the round-off of the arithmetic here."""
        slack = 1e-9 * max(abs(self.low), abs(other.low))
        return self.low <= other.high + slack and other.low <= self.high + slack


@dataclass(frozen=True)
class Check:
    """One thing that was recomputed.

    tables: the tables it concerns. place: table and row, or section, where it is printed.
    possible: what the inputs allow, given how they are rounded; None where it is not about a number.
    inference: the smallest correction that would make it add up, if there is one.
    """

    kind: Kind
    tables: tuple[str, ...]
    place: str
    row: str
    column: str
    printed: str
    recomputed: str
    how: str
    adds_up: bool
    possible: Interval | None = None
    inference: str = ""


def lint(folder: Path = paper.HERE) -> list[Check]:
    """Every check of the paper's tables, in the order of the tables; folder: where their CSVs are."""
    tables = {name: paper.load(name, folder) for name in paper.names()}
    checks: tuple[Callable[[Tables], Iterator[Check]], ...] = (
        *(derived, repeated, sizes_as_headed, latency_per_step, parts_within_wholes, memory_against_timing),
        *(speed_ups, durations, bests, orders, counts),
    )
    return [check for find in checks for check in find(tables)]


# What rounds to a printed number, and what follows from printed numbers.


def rounding(text: str, unit: str = "") -> Interval:
    """The values that are printed so: half a unit of the last printed digit to both sides.

    Raises: ValueError for a text that is no number.
    """
    value = paper.number(text, unit)
    if value is None:
        raise ValueError(f"{text!r} is not a number")
    exponent = value.as_tuple().exponent
    half = 0.5 * 10.0 ** (exponent if isinstance(exponent, int) else 0)
    return Interval(float(value) - half, float(value) + half)


def size(text: str) -> tuple[int, ...]:
    """The numbers of "121*2560*1440" or "2240x1280"."""
    return tuple(int(part) for part in re.split(r"[*x×]", text))


def possible(column: str, printed: Mapping[str, str]) -> Interval:
    """What a derived column can be, from the other printed cells of its row.

    All formulas rise with each of their inputs, so the ends follow from the ends.
    """
    metric = COLUMNS[column].metric or ""
    if metric in TOTALS:
        inputs = {
            COLUMNS[name].metric or "": rounding(text)
            for name, text in printed.items()
            if COLUMNS[name].metric in RANGES
        }
        low = TOTALS[metric]({name: max(0.0, end.low / 100) for name, end in inputs.items()}).value
        high = TOTALS[metric]({name: min(1.0, end.high / 100) for name, end in inputs.items()}).value
        if low is None or high is None:
            raise ValueError(f"{column}: the row lacks dimensions of VBench")
        return Interval(100 * low, 100 * high)
    frames, *sides = size(printed["Resolution (T×H×W)"])
    pixels = sides[0] * sides[1] if metric == "latency_per_pixel" else 1
    latency = rounding(printed["Latency"])
    return Interval(latency.low / (frames * pixels), latency.high / (frames * pixels))


_HOW = {
    "vbench_average": "mean of the six dimensions",
    "vbench_quality": "VBench's weighted mean of 7 normalised dimensions",
    "vbench_semantic": "VBench's mean of 9 normalised dimensions",
    "vbench_total": "(4 quality + semantic) / 5, from the 16 dimensions",
    "latency_per_pixel": "latency / (frames × width × height)",
    "latency_per_frame": "latency / frames",
}


def derived(tables: Tables) -> Iterator[Check]:
    """Averages, totals, latency per pixel and per frame."""
    for table in tables.values():
        columns = [column.name for column in table.columns if column.derived]
        for row in table.rows if columns else ():
            wrong = [name for name in columns if not _recomputes(name, row.printed)]
            inference = _correction(row, columns) if wrong else ""
            for name in columns:
                interval = possible(name, row.printed)
                yield Check(
                    kind="derived",
                    tables=(table.name,),
                    place=row.source,
                    row=row.label,
                    column=name,
                    printed=row.printed[name],
                    recomputed=_range(interval, row.printed[name]),
                    how=_HOW[COLUMNS[name].metric or ""],
                    adds_up=name not in wrong,
                    possible=interval,
                    inference=inference if name in wrong else "",
                )


def _recomputes(column: str, printed: Mapping[str, str]) -> bool:
    return possible(column, printed).meets(rounding(printed[column]))


# One printed number elsewhere: (arm, column) -> (text, who prints it), to choose among corrections.
_ELSEWHERE = {
    ("hunyuanvideo", "Aesthetic Quality"): ("60.36", "the tables of the Lumina-Video and VideoAR papers print it too"),
}


def _correction(row: Row, columns: Sequence[str]) -> str:
    """The one-digit edit of one cell with which all `columns` of a row recompute."""
    found: list[tuple[float, str, str]] = []
    for name in row.printed:
        for text in _edits(row.printed[name]):
            edited = {**row.printed, name: text}
            if all(_recomputes(column, edited) for column in columns):
                off = sum(_distance(column, edited) for column in columns)
                found.append((off, name, text))
    if not found:
        return ""
    known = next((item for item in found if _ELSEWHERE.get((row.arm, item[1]), ("",))[0] == item[2]), None)
    _, name, text = known or min(found)
    reason = f"; {_ELSEWHERE[row.arm, name][1]}" if known else ""
    others = [f"{other} {new}" for _, other, new in sorted(found) if (other, new) != (name, text)]
    also = f" (so would {', '.join(others)})" if others else ""
    return f"{name} {text} instead of {row.printed[name]} makes the whole row add up{reason}{also}"


def _distance(column: str, printed: Mapping[str, str]) -> float:
    """From the middle of what is possible, in halves of the last printed digit."""
    shown = rounding(printed[column])
    return abs(possible(column, printed).middle - shown.middle) / (shown.high - shown.middle)


def _edits(text: str) -> Iterator[str]:
    """The text with one digit of its numbers changed, or two neighbouring digits swapped; no leading zeros."""
    mantissa, *exponent = re.split(r"(?=e)", text, maxsplit=1)
    found: dict[str, None] = {}
    for i, digit in enumerate(mantissa):
        if not digit.isdigit():
            continue
        found.update(dict.fromkeys(f"{mantissa[:i]}{new}{mantissa[i + 1 :]}" for new in "0123456789" if new != digit))
        if mantissa[i + 1 : i + 2].isdigit() and mantissa[i + 1] != digit:
            found[f"{mantissa[:i]}{mantissa[i + 1]}{digit}{mantissa[i + 2 :]}"] = None
    for edit in found:
        if not re.search(r"(?<![\d.,])0\d", edit) and not re.search(r"(?<![\d.,])0(?![\d.])", edit):
            yield edit + "".join(exponent)


# Numbers that are printed more than once.

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


def _label(table: Table, row: Row) -> str:
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
    """Table 5: a step costs the same each time, so latency is a fixed part plus a multiple of the steps."""
    table = tables["table_5"]
    points = {row.arm: (int(row.label), rounding(row.printed["Latency"])) for row in table.rows}
    lined = _longest_line(points)
    for row in table.rows:
        steps, printed = points[row.arm]
        others = [points[arm] for arm in lined if arm != row.arm]
        line = _at(others, steps)
        if line is None:
            continue
        each, fixed = _slope(others)
        worth = (printed.middle - fixed) / each if each else 0.0
        recomputed = _range(line, row.printed["Latency"])
        yield Check(
            kind="consistency",
            tables=("table_5",),
            place=row.source,
            row=_label(table, row),
            column="Latency",
            printed=row.printed["Latency"],
            recomputed=recomputed,
            how=f"{fixed:.3g} s + {each:.3g} s × steps, through {_listed([str(n) for n, _ in others])} steps; here "
            f"{printed.middle / steps:.4g} s a step",
            adds_up=line.meets(printed),
            possible=line,
            inference=""
            if line.meets(printed)
            else f"{line.middle:.0f}; {row.printed['Latency']} is what {worth:.3g} steps would take",
        )


Point = tuple[int, Interval]


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


# What the text says of the tables.


def speed_ups(tables: Tables) -> Iterator[Check]:
    """ "accelerating the generative sampling of native 2K/4K videos by over 10×": against the base model, Table 1."""
    table = tables["table_1"]
    for of, to, name in (("wan2_2_5b_2k", "pixelwizard_2k", "2K"), ("wan2_2_5b_4k", "pixelwizard_4k", "4K")):
        slow, fast = table.row(of), table.row(to)
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


def durations(tables: Tables) -> Iterator[Check]:
    """ "comparable at approximately 5 seconds" (sec. 8.2): frames over frames per second, to the nearest second."""
    about = rounding("5")
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
            adds_up=about.meets(seconds),
            possible=seconds,
        )


_BESTS = (
    (
        "table_1",
        ("Avg.",),
        2,
        "sec. 4.2, after Table 3",
        "achieving the highest average scores at both 2K and 4K resolutions",
    ),
    (
        "table_2",
        ("mHD-MSE", "mHD-LPIPS", "Tech.", "Aesth."),
        1,
        "sec. 4.2, after Table 3",
        "consistently achieves the best performance across all metrics",
    ),
)
# PixelWizard's rows; two of them lead where the text says "both".
_OURS = ("pixelwizard_2k", "pixelwizard_4k")


def bests(tables: Tables) -> Iterator[Check]:
    """Claims of being best: of Table 1's averages both, of Table 2's columns one of PixelWizard's two rows."""
    for name, columns, need, place, claim in _BESTS:
        rows = tables[name].rows
        for column in columns:
            sign = 1 if COLUMNS[column].direction == "higher" else -1
            ranked = sorted(rows, key=lambda row: -sign * row.values[column])
            leading = ranked[:need]
            yield Check(
                kind="claim",
                tables=(name,),
                place=place,
                row="PixelWizard",
                column=column,
                printed=claim,
                recomputed=_listed([f"{row.label} {row.printed[column]}" for row in leading]),
                how=f"the best of {len(rows)} rows" if need == 1 else f"the best {need} of {len(rows)} rows",
                adds_up=all(row.arm in _OURS for row in leading),
            )


_ORDERS = (
    ("table_4", "add", "alpha_zero", "sec. 4.3", "element-wise addition (w/o AGI) is suboptimal"),
    (
        "table_4",
        "alpha_zero",
        "gated",
        "sec. 4.3",
        "Enabling the full AGHS with adaptive gating further improves performance",
    ),
    ("table_9_3", "baseline", "uniform", "sec. 9.5", "yields consistent improvements across all metrics"),
    ("table_9_3", "uniform", "exponential", "sec. 9.5", "yields further gains across all metrics"),
    ("table_9_3", "exponential", "full", "sec. 9.5", "achieves the best overall results"),
)


def orders(tables: Tables) -> Iterator[Check]:
    """Claims that a row is better than the one before it, in every metric."""
    for name, before, after, place, claim in _ORDERS:
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
            place=place,
            row=f"{a.label} → {b.label}",
            column=_listed(worse or list(table.quality())),
            printed=claim,
            recomputed=", ".join(steps),
            how="every metric strictly better" if not worse else f"not better: {', '.join(worse)}",
            adds_up=not worse,
        )


def counts(tables: Tables) -> Iterator[Check]:
    """Numbers that the text derives: the anchor's tokens (sec. 9.5), two stages of 5B parameters (Table 8.2)."""
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
        recomputed=_range(stages, "10"),
        how="two stages (sec. 9.3), each a Wan2.2-TI2V-5B (sec. 4.1)",
        adds_up=stages.meets(rounding(row.printed["Params."], "B")),
        possible=stages,
    )


def _range(interval: Interval, like: str) -> str:
    """Both ends with one digit more than `like`."""
    exponent = paper.number(like)
    last = exponent.as_tuple().exponent if exponent is not None else 0
    decimals = max(0, 1 - (last if isinstance(last, int) else 0))
    if "e" in like:
        power = int(like.split("e")[1])
        ends = [f"{end / 10.0**power:.{decimals + power}f}" for end in (interval.low, interval.high)]
        return f"{ends[0]} to {ends[1]} e{power}"
    ends = [f"{end:,.{decimals}f}" for end in (interval.low, interval.high)]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
