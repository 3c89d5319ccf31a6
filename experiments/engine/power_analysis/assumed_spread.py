"""Spreads of the paper's metrics over videos, assumed: the paper prints none."""

from __future__ import annotations

import math
from collections.abc import Mapping

from benchmarks.metrics import METRICS

# DOVER's own script puts the technical branch through the aesthetic branch's statistics of LIVE-VQC, and the other way
# round: column -> (spread of the branch's own output there, the deviation it is divided by).
_DOVER = {"dover_technical": (0.03773, 0.07355), "dover_aesthetic": (0.07355, 0.03774)}
_ROUND = {"musiq": 10.0, "niqe": 0.8}


def assumed_sd(name: str, mean: float, given: Mapping[str, float]) -> tuple[float, str] | None:
    """Spread of a metric over videos of one system in printed units, and what it rests on; None if nothing is known."""
    if name in given:
        return given[name], "given"
    if name in _DOVER:
        spread, divisor = _DOVER[name]
        p = mean / 100
        return 100 * p * (1 - p) * spread / divisor, f"LIVE-VQC's spread of the raw branch at {mean:g} (delta method)"
    if name in _ROUND:
        return _ROUND[name], f"a round number without a source, yours is sd={name}:…"
    metric = METRICS.get(name)
    if metric is None or metric.family != "vbench" or not 0 <= mean <= 100:
        return None
    bound = math.sqrt(mean * (100 - mean))
    if name == "dynamic_degree":
        return bound, f"yes or no per video, at {mean:g} %"
    return bound, f"the most that values in [0, 100] with mean {mean:g} can have; yours is sd={name}:…"


def paper_metric(column: str) -> str:
    """The registry's name of a paper's column, by its header; the column itself if there is none."""
    return next((metric.name for metric in METRICS.values() if metric.header == column), column)
