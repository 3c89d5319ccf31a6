"""VBench's totals from its dimensions: normalisation, quality, semantic, total; and Table 1's plain mean.

All values are fractions in [0, 1], by the names of the registry. Constants and formulas: VBench's
scripts/constant.py and scripts/cal_final_score.py at commit 45e79ec. VBench's script takes a dimension without a
result for a raw 0, which normalises to below 0; here a total that lacks a dimension has no value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from benchmarks.metrics import GROUPS, VBENCH_QUALITY, VBENCH_SEMANTIC
from benchmarks.metrics.vbench import LARGEST

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

QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4, 1


@dataclass(frozen=True)
class Score:
    """A total in [0, 1]; None where dimensions are missing, which are named."""

    value: float | None
    missing: tuple[str, ...] = ()


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


def quality(values: Mapping[str, float]) -> Score:
    """Weighted mean of the 7 normalised quality dimensions."""
    return _mean(values, VBENCH_QUALITY)


def semantic(values: Mapping[str, float]) -> Score:
    """Mean of the 9 normalised semantic dimensions."""
    return _mean(values, VBENCH_SEMANTIC)


def total(values: Mapping[str, float]) -> Score:
    """(4 quality + semantic) / 5."""
    parts = quality(values), semantic(values)
    first, second = (part.value for part in parts)
    if first is None or second is None:
        return Score(None, parts[0].missing + parts[1].missing)
    return Score((QUALITY_WEIGHT * first + SEMANTIC_WEIGHT * second) / (QUALITY_WEIGHT + SEMANTIC_WEIGHT))


def average(values: Mapping[str, float]) -> Score:
    """Table 1's "Avg.": plain mean of six dimensions, neither normalised nor weighted."""
    names = GROUPS["table_1"]
    missing = _missing(values, names)
    return Score(None, missing) if missing else Score(sum(values[name] for name in names) / len(names))


TOTALS: Mapping[str, Callable[[Mapping[str, float]], Score]] = {
    "vbench_average": average,
    "vbench_quality": quality,
    "vbench_semantic": semantic,
    "vbench_total": total,
}
"""By the names that columns of the paper's tables give them."""


def _mean(values: Mapping[str, float], names: tuple[str, ...]) -> Score:
    if missing := _missing(values, names):
        return Score(None, missing)
    weighted = sum(WEIGHTS[name] * normalise(name, values[name]) for name in names)
    return Score(weighted / sum(WEIGHTS[name] for name in names))


def _missing(values: Mapping[str, float], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in values)
