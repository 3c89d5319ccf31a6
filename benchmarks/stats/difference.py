"""A difference between two rows of scores: what is compared, whether it improves, and which p-values count.

**The primary metric is the gate** (`gatekeep`). It is named beforehand and tested alone at 5 %; only where it shows a
difference are the comparison's other metrics tested, by Holm among themselves. The family-wise error of a comparison
stays at 5 % (Maurer, Hothorn and Lehmacher 1995), and the primary metric pays nothing for the others: with three seeds
and seven metrics Holm over all asks t > 11.8 of the largest, the primary alone t > 4.3
(`python -m benchmarks.stats.interval_coverage` prints error and power of both). Behind a closed gate a plain 95 %
interval may exclude zero where the verdict says "no difference shown".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from benchmarks.metrics import Direction

LEVEL = 0.95
Verdict = Literal["better", "worse", "no difference shown", "not resolved"]
DiffOf = Literal["value", "abs_log"]


@dataclass(frozen=True)
class Difference:
    """A difference with its 95 % interval.

    p, p_adjusted: two-sided, of this metric by itself and after `gatekeep`.
    diff_of: "value", or "abs_log": the difference of |ln value|, for metrics whose right value is 1.
    """

    diff: float | None
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    verdict: Verdict
    diff_of: DiffOf


D = TypeVar("D", bound=Difference)


def compared_as(side: Direction) -> DiffOf:
    """What `distance` gives for a metric of this direction."""
    return "abs_log" if side == "one" else "value"


def distance(value: float, side: Direction) -> float:
    """The number that is compared: the value, or |ln value| where 1 is right; a ratio of 0 is infinitely far."""
    if side != "one":
        return value
    return abs(math.log(value)) if value > 0 else math.inf


def improves(diff: float, side: Direction) -> bool:
    """Whether a difference of `distance` is for the better."""
    return diff > 0 if side == "higher" else diff < 0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given; reject where <= alpha."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def gatekeep(p_values: Mapping[str, float], primary: str | None) -> dict[str, float]:
    """Adjusted p of one comparison's metrics: the primary's as it is, the others' by Holm behind it.

    p_values: metric -> p of its own. No metric's adjusted p is below the primary's.
    With `primary` None, or without a test of it, Holm over all.
    """
    others = [metric for metric in p_values if metric != primary]
    adjusted = dict(zip(others, holm([p_values[metric] for metric in others]), strict=True))
    if primary is None or primary not in p_values:
        return adjusted
    gate = p_values[primary]
    return {metric: gate if metric == primary else max(gate, adjusted[metric]) for metric in p_values}


def judge(differences: Mapping[str, D], sides: Mapping[str, Direction], primary: str | None) -> dict[str, D]:
    """One comparison's differences with p adjusted over all metrics that were tested, and the verdicts."""
    judged = dict(differences)
    p_values = {metric: row.p for metric, row in differences.items() if row.p is not None}
    for metric, p in gatekeep(p_values, primary).items():
        row = differences[metric]
        verdict = row.verdict
        if p < 1 - LEVEL and row.diff is not None:
            verdict = "better" if improves(row.diff, sides[metric]) else "worse"
        judged[metric] = replace(row, p_adjusted=p, verdict=verdict)
    return judged
