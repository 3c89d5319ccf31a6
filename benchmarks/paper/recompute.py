"""What the paper's printed numbers give when they are recomputed: rounding, VBench's totals, the derived cells.

A printed number stands for the interval that rounds to it: 146 s is 145.5 to 146.5. What is derived from such
numbers has an interval too, and a printed result adds up if its own interval meets that one; so a finding is never
rounding.

VBench's dimensions are fractions in [0, 1], by the names of the registry. Constants and formulas of its totals:
scripts/constant.py and scripts/cal_final_score.py of VBench at commit 45e79ec. That script takes a dimension without a
result for a raw 0, which normalises to below 0; here a total that lacks a dimension has no value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.metrics import GROUPS, VBENCH_QUALITY, VBENCH_SEMANTIC
from benchmarks.metrics.vbench import LARGEST
from benchmarks.paper import COLUMNS, PaperRow, PaperTable, number

Kind = Literal["derived", "consistency", "claim"]
Tables = Mapping[str, PaperTable]

RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys((*VBENCH_QUALITY, *VBENCH_SEMANTIC), (0.0, 1.0)),
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "motion_smoothness": (0.7060, 0.9975),
    "scene": (0.0, 0.8222),
    "appearance_style": (0.0009, 0.2855),
    "temporal_style": (0.0, 0.3640),
    "overall_consistency": (0.0, 0.3640),
}
"""dimension -> what is normalised to 0 and to 1."""

WEIGHTS: Mapping[str, float] = {**dict.fromkeys(RANGES, 1.0), "dynamic_degree": 0.5}
"""dimension -> its weight in its mean: quality sums to 6.5, semantic to 9."""

DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "vbench_average": GROUPS["table_1"],
    "vbench_quality": VBENCH_QUALITY,
    "vbench_semantic": VBENCH_SEMANTIC,
    "vbench_total": (*VBENCH_QUALITY, *VBENCH_SEMANTIC),
}
"""total -> its dimensions."""


@dataclass(frozen=True)
class Interval:
    """All values that a printed number, or a result of printed numbers, can stand for."""

    low: float
    high: float

    @property
    def middle(self) -> float:
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


def rounding(text: str, unit: str = "") -> Interval:
    """The values that are printed so: half a unit of the last printed digit to both sides.

    Raises: ValueError for a text that is no number.
    """
    value = number(text, unit)
    if value is None:
        raise ValueError(f"{text!r} is not a number")
    half = 0.5 * 10.0 ** int(value.as_tuple().exponent)
    return Interval(float(value) - half, float(value) + half)


def size(text: str) -> tuple[int, ...]:
    """The numbers of "121*2560*1440" or "2240x1280"."""
    return tuple(int(part) for part in re.split(r"[*x×]", text))


def ends(interval: Interval, like: str) -> str:
    """Both ends in the notation of a printed number, with one digit more."""
    mantissa, e, power = like.partition("e")
    scale, decimals = 10.0 ** int(power or 0), len(mantissa.partition(".")[2]) + 1
    texts = [f"{end / scale:,.{decimals}f}{e}{power}" for end in (interval.low, interval.high)]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


def listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def normalise(dimension: str, value: float) -> float:
    """(value - min) / (max - min), not clipped: below min it is negative, above max more than 1.

    Raises: ValueError for an unknown dimension, or a value on another scale; a cosine may be a little below 0.
    """
    if dimension not in RANGES:
        raise ValueError(f"unknown dimension {dimension!r} of VBench; known: {', '.join(RANGES)}")
    if not abs(value) <= LARGEST:
        raise ValueError(f"{dimension}={value}: VBench's values are fractions in [0, 1]; divide a percentage by 100")
    low, high = RANGES[dimension]
    return (value - low) / (high - low)


def vbench_total(name: str, values: Mapping[str, float]) -> float:
    """One of VBench's totals, in [0, 1], or Table 1's "Avg."; values: dimension -> fraction.

    Quality and semantic score are weighted means of their normalised dimensions, the total is (4 quality + semantic) /
    5; "Avg." is a plain mean of six dimensions, neither normalised nor weighted.
    Raises: ValueError naming the dimensions that it lacks.
    """
    dimensions = DIMENSIONS[name]
    if missing := [dimension for dimension in dimensions if dimension not in values]:
        raise ValueError(f"{name} lacks {', '.join(missing)}")
    if name == "vbench_average":
        return sum(values[dimension] for dimension in dimensions) / len(dimensions)
    if name == "vbench_total":
        return (4 * vbench_total("vbench_quality", values) + vbench_total("vbench_semantic", values)) / 5
    weighted = sum(WEIGHTS[dimension] * normalise(dimension, values[dimension]) for dimension in dimensions)
    return weighted / sum(WEIGHTS[dimension] for dimension in dimensions)


def possible(column: str, printed: Mapping[str, str]) -> Interval:
    """What a derived column can be, from the other printed cells of its row.

    All formulas rise with each of their inputs, so the ends follow from the ends.
    """
    metric = COLUMNS[column].metric or ""
    if metric in DIMENSIONS:
        of = {COLUMNS[name].metric or "": text for name, text in printed.items()}
        inputs = {name: rounding(text) for name, text in of.items() if name in RANGES}
        low = vbench_total(metric, {name: max(0.0, end.low / 100) for name, end in inputs.items()})
        high = vbench_total(metric, {name: min(1.0, end.high / 100) for name, end in inputs.items()})
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
    """The cells that the authors computed from others of the row: averages, totals, latency per pixel and per frame.

    A correction is an inference: the one digit, or swap of two neighbours, in one cell that makes the whole row add up.
    """
    for table in tables.values():
        columns = [column.name for column in table.columns if column.derived]
        for row in table.rows if columns else ():
            intervals = {name: possible(name, row.printed) for name in columns}
            wrong = [name for name, interval in intervals.items() if not interval.meets(rounding(row.printed[name]))]
            inference = _correction(row, columns) if wrong else ""
            for name, interval in intervals.items():
                yield Check(
                    kind="derived",
                    tables=(table.name,),
                    place=row.source,
                    row=row.label,
                    column=name,
                    printed=row.printed[name],
                    recomputed=ends(interval, row.printed[name]),
                    how=_HOW[COLUMNS[name].metric or ""],
                    adds_up=name not in wrong,
                    possible=interval,
                    inference=inference if name in wrong else "",
                )


# (arm, column) -> (what others print of the same result, who): it decides between corrections.
_ELSEWHERE = {("hunyuanvideo", "Aesthetic Quality"): ("60.36", "the Lumina-Video and VideoAR papers print 60.36")}


def _correction(row: PaperRow, columns: Sequence[str]) -> str:
    """The one-digit edit of one cell with which all `columns` of a row recompute."""
    found: list[tuple[float, str, str]] = []
    for name in row.printed:
        for text in _edits(row.printed[name]):
            edited = {**row.printed, name: text}
            cells = [(possible(column, edited), rounding(edited[column])) for column in columns]
            if all(can.meets(shown) for can, shown in cells):  # off: in halves of the last printed digit
                off = sum(abs(can.middle - shown.middle) / (shown.high - shown.middle) for can, shown in cells)
                found.append((off, name, text))
    if not found:
        return ""
    known = next((item for item in found if _ELSEWHERE.get((row.arm, item[1]), ("",))[0] == item[2]), None)
    _, name, text = known or min(found)
    reason = f"; {_ELSEWHERE[row.arm, name][1]}" if known else ""
    others = [f"{other} {new}" for _, other, new in sorted(found) if (other, new) != (name, text)]
    also = f" (so would {', '.join(others)})" if others else ""
    return f"{name} {text} instead of {row.printed[name]} makes the whole row add up{reason}{also}"


def _edits(text: str) -> Iterator[str]:
    """The text with one digit of its numbers changed, or two neighbouring digits swapped; no leading zeros."""
    mantissa, e, power = text.partition("e")
    found: dict[str, None] = {}
    for i, digit in enumerate(mantissa):
        if not digit.isdigit():
            continue
        found.update(dict.fromkeys(f"{mantissa[:i]}{new}{mantissa[i + 1 :]}" for new in "0123456789" if new != digit))
        if mantissa[i + 1 : i + 2].isdigit() and mantissa[i + 1] != digit:
            found[f"{mantissa[:i]}{mantissa[i + 1]}{digit}{mantissa[i + 2 :]}"] = None
    for edit in found:
        if not re.search(r"(?<![\d.,])0\d", edit) and not re.search(r"(?<![\d.,])0(?![\d.])", edit):
            yield edit + e + power
