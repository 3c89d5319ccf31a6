"""Recompute what the paper derives from its printed numbers: VBench's totals and the derived cells.

A printed number stands for all values that round to it: 146 s is the interval 145.5 to 146.5. A result derived from
printed numbers is an interval, too. A printed result adds up if both intervals overlap, so rounding is never reported.

VBench's dimensions are fractions in [0, 1], named as in the registry. Constants and formulas of its totals come from
scripts/constant.py and scripts/cal_final_score.py of VBench at commit 45e79ec. That script replaces a missing dimension
by a raw 0, which is normalised to a negative value; here, a total with a missing dimension is an error.
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
"""dimension -> values that are normalised to 0 and to 1."""

WEIGHTS: Mapping[str, float] = {**dict.fromkeys(RANGES, 1.0), "dynamic_degree": 0.5}
"""dimension -> weight in its mean; the weights sum to 6.5 for quality, to 9 for semantic."""

DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "vbench_average": GROUPS["table_1"],
    "vbench_quality": VBENCH_QUALITY,
    "vbench_semantic": VBENCH_SEMANTIC,
    "vbench_total": (*VBENCH_QUALITY, *VBENCH_SEMANTIC),
}
"""total -> its dimensions."""


@dataclass(frozen=True)
class Interval:
    """All possible values of a printed number, or of a result computed from printed numbers."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2

    def overlaps(self, other: Interval) -> bool:
        """Whether the intervals have a common value, up to floating-point error."""
        slack = 1e-9 * max(abs(self.low), abs(other.low))
        return self.low <= other.high + slack and other.low <= self.high + slack


@dataclass(frozen=True)
class Check:
    """The check of one printed statement.

    tables: the tables involved. place: table and row, or section, of the statement.
    possible: interval that the rounded inputs allow; None if the statement is not a number.
    inference: the smallest correction with which it adds up, or "".
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
    """The interval of a printed number: half a unit of its last digit to both sides. Raises ValueError for text."""
    value = number(text, unit)
    if value is None:
        raise ValueError(f"{text!r} is not a number")
    half = 0.5 * 10.0 ** int(value.as_tuple().exponent)
    return Interval(float(value) - half, float(value) + half)


def size(text: str) -> tuple[int, ...]:
    """The integers in "121*2560*1440" or "2240x1280"."""
    return tuple(int(part) for part in re.split(r"[*x×]", text))


def interval_text(interval: Interval, like: str) -> str:
    """Both ends of an interval in the notation of the number `like`, with one more digit."""
    mantissa, e, power = like.partition("e")
    scale, decimals = 10.0 ** int(power or 0), len(mantissa.partition(".")[2]) + 1
    texts = [f"{end / scale:,.{decimals}f}{e}{power}" for end in (interval.low, interval.high)]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


def join_words(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def normalise(dimension: str, value: float) -> float:
    """(value - min) / (max - min), not clipped to [0, 1].

    Raises: ValueError for an unknown dimension or a percentage. A cosine may be a little below 0.
    """
    if dimension not in RANGES:
        raise ValueError(f"unknown dimension {dimension!r} of VBench; known: {', '.join(RANGES)}")
    if not abs(value) <= LARGEST:
        raise ValueError(f"{dimension}={value}: VBench's values are fractions in [0, 1]; divide a percentage by 100")
    low, high = RANGES[dimension]
    return (value - low) / (high - low)


def vbench_total(name: str, values: Mapping[str, float]) -> float:
    """A total of VBench in [0, 1], or "Avg." of Table 1; values: dimension -> fraction.

    Quality and semantic score are weighted means of normalised dimensions; the total is (4 quality + semantic) / 5.
    "Avg." is the mean of six dimensions without normalisation or weights.
    Raises: ValueError naming the missing dimensions.
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


def possible_interval(column: str, printed: Mapping[str, str]) -> Interval:
    """Interval of a derived column, from the other printed cells of its row.

    All formulas increase with each input, so the ends of the interval follow from the ends of the inputs.
    """
    metric = COLUMNS[column].metric or ""
    if metric in DIMENSIONS:
        texts = {COLUMNS[name].metric or "": text for name, text in printed.items()}
        inputs = {name: rounding(text) for name, text in texts.items() if name in RANGES}
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


def derived_cells(tables: Tables) -> Iterator[Check]:
    """Check the cells that the authors computed from their row: averages, totals, latency per pixel and per frame.

    The inference changes one digit, or swaps two neighbouring digits, of one cell so that the whole row adds up.
    """
    for table in tables.values():
        columns = [column.name for column in table.columns if column.derived]
        for row in table.rows if columns else ():
            intervals = {name: possible_interval(name, row.printed) for name in columns}
            wrong = [name for name, interval in intervals.items() if not interval.overlaps(rounding(row.printed[name]))]
            inference = _correction(row, columns) if wrong else ""
            for name, interval in intervals.items():
                yield Check(
                    kind="derived",
                    tables=(table.name,),
                    place=row.source,
                    row=row.label,
                    column=name,
                    printed=row.printed[name],
                    recomputed=interval_text(interval, row.printed[name]),
                    how=_HOW[COLUMNS[name].metric or ""],
                    adds_up=name not in wrong,
                    possible=interval,
                    inference=inference if name in wrong else "",
                )


# (arm, column) -> (number in other papers, their names): selects one of several possible corrections
_OTHER_SOURCES = {("hunyuanvideo", "Aesthetic Quality"): ("60.36", "the Lumina-Video and VideoAR papers print 60.36")}


def _correction(row: PaperRow, columns: Sequence[str]) -> str:
    """The one-digit edit of one cell with which all `columns` of a row add up, as text; "" if there is none."""
    edits: list[tuple[float, str, str]] = []
    for name in row.printed:
        for text in _edits(row.printed[name]):
            edited = {**row.printed, name: text}
            cells = [(possible_interval(column, edited), rounding(edited[column])) for column in columns]
            if all(interval.overlaps(cell) for interval, cell in cells):  # error: in halves of the last printed digit
                error = sum(abs(interval.middle - cell.middle) / (cell.high - cell.middle) for interval, cell in cells)
                edits.append((error, name, text))
    if not edits:
        return ""
    confirmed = next((item for item in edits if _OTHER_SOURCES.get((row.arm, item[1]), ("",))[0] == item[2]), None)
    _, name, text = confirmed or min(edits)
    reason = f"; {_OTHER_SOURCES[row.arm, name][1]}" if confirmed else ""
    others = [f"{other} {new}" for _, other, new in sorted(edits) if (other, new) != (name, text)]
    alternatives = f" (so would {', '.join(others)})" if others else ""
    return f"{name} {text} instead of {row.printed[name]} makes the whole row add up{reason}{alternatives}"


def _edits(text: str) -> Iterator[str]:
    """The text with one digit changed, or two neighbouring digits swapped; without leading zeros."""
    mantissa, e, power = text.partition("e")
    edits: dict[str, None] = {}
    for i, digit in enumerate(mantissa):
        if not digit.isdigit():
            continue
        edits.update(dict.fromkeys(f"{mantissa[:i]}{new}{mantissa[i + 1 :]}" for new in "0123456789" if new != digit))
        if mantissa[i + 1 : i + 2].isdigit() and mantissa[i + 1] != digit:
            edits[f"{mantissa[:i]}{mantissa[i + 1]}{digit}{mantissa[i + 2 :]}"] = None
    for edit in edits:
        if not re.search(r"(?<![\d.,])0\d", edit) and not re.search(r"(?<![\d.,])0(?![\d.])", edit):
            yield edit + e + power
