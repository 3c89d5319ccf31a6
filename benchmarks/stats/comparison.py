"""Compare arms over seeds: intervals, paired differences, gatekeeping over metrics, verdicts. Pure statistics.

The unit is the seed's value. Seeds differ in training noise and in evaluation clips and noise, and within a seed all
arms share both; so arms are paired by seed, and seeds are the only independent repetitions there are.

**The interval is the paired t over the seeds' differences.** It is wide: 4.30 standard errors at three seeds. Narrower
ones save where a comparison is noisier than its neighbours, and there the false claims are made: with two degrees of
freedom no guard tells such a comparison from a quiet one (simulated by `tests/simulated_tables.py`).
Skewed errors in one arm cost paired t up to 6 points of coverage, too. What buys narrower intervals is seeds: five are
1.9 times narrower than three. There is no control variate fitted on the seeds (the floor of a seed's clips, say): its
coefficient takes one of their degrees of freedom.

**The primary metric is the gate** (`gatekeep`). It is named beforehand and tested alone at 5 %; only where it shows a
difference are the comparison's other metrics tested, by Holm among themselves. The family-wise error of a comparison
stays at 5 % (Maurer, Hothorn and Lehmacher 1995), and the primary metric pays nothing for the others. Behind a closed
gate a plain 95 % interval may exclude zero where the verdict says "no difference shown".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from benchmarks.metrics import Direction, lookup

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.95
Scores = Mapping[str, Mapping[int, Mapping[str, float | None]]]
Verdict = Literal["better", "worse", "no difference shown", "not resolved"]
DiffOf = Literal["value", "abs_log"]


@dataclass(frozen=True)
class Estimate:
    """Mean over n seeds with its 95 % interval; no interval (None) with a single seed."""

    mean: float
    low: float | None
    high: float | None
    n: int


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


@dataclass(frozen=True)
class SeedDifference(Difference):
    """An arm minus the arm it is compared with, over their n common seeds."""

    n: int
    versus: str


@dataclass(frozen=True)
class Comparison:
    """All arms of a table.

    arms: arm -> metric -> estimate; a metric without any score is absent.
    differences: arm -> metric -> difference to the arm that it is compared with; empty where there is none.
    best: metric -> the arm significantly better than every other arm, or None.
    primary: the metric that was tested alone, before the others; None if all were tested by Holm.
    """

    arms: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, SeedDifference]]
    best: dict[str, str | None]
    primary: str | None = None

    def row(self, arm: str) -> dict[str, dict[str, dict[str, Any]]]:
        """An arm's part of table.json: {"metrics", "vs_previous"} as plain dictionaries."""
        return {
            "metrics": {metric: asdict(estimate) for metric, estimate in self.arms[arm].items()},
            "vs_previous": {metric: asdict(diff) for metric, diff in self.differences[arm].items()},
        }


def difference_kind(direction: Direction) -> DiffOf:
    """What `distance` returns for a metric of this direction."""
    return "abs_log" if direction == "one" else "value"


def distance(value: float, direction: Direction) -> float:
    """The number to compare: the value, or |ln value| for direction "one"; infinite for a ratio of 0."""
    if direction != "one":
        return value
    return abs(math.log(value)) if value > 0 else math.inf


def improves(diff: float, direction: Direction) -> bool:
    """Whether a difference of `distance` is an improvement."""
    return diff > 0 if direction == "higher" else diff < 0


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


def judge(differences: Mapping[str, D], directions: Mapping[str, Direction], primary: str | None) -> dict[str, D]:
    """The differences of one comparison with p adjusted over all tested metrics, and with verdicts."""
    result = dict(differences)
    p_values = {metric: row.p for metric, row in differences.items() if row.p is not None}
    for metric, p in gatekeep(p_values, primary).items():
        row = differences[metric]
        verdict = row.verdict
        if p < 1 - LEVEL and row.diff is not None:
            verdict = "better" if improves(row.diff, directions[metric]) else "worse"
        result[metric] = replace(row, p_adjusted=p, verdict=verdict)
    return result


def paired_t(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Student's paired t: mean, half-width of the 95 % interval, two-sided p.

    differences: [..., n] with n >= 2 seeds last; the three results are [...].
    """
    import numpy as np
    from scipy.special import stdtr, stdtrit

    n = differences.shape[-1]
    mean = differences.mean(-1)
    error = differences.std(-1, ddof=1) / math.sqrt(n)
    # The spread of differences that are equal up to rounding is rounding error, so it counts as 0.
    error = np.where(error <= 1e-14 * np.abs(differences).max(-1), 0.0, error)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(mean == 0, 0.0, np.abs(mean) / error)
    return mean, stdtrit(n - 1, (1 + LEVEL) / 2) * error, 2 * stdtr(n - 1, -t)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and Student interval over seeds.

    Raises: ValueError if there is no value.
    """
    import numpy as np

    if not values:
        raise ValueError("no values to estimate from; leave the metric out instead")
    if len(values) == 1:
        return Estimate(float(values[0]), None, None, 1)
    mean, half, _ = (float(x) for x in paired_t(np.asarray(values, float)))
    return Estimate(mean, mean - half, mean + half, len(values))


def compare(
    scores: Scores, *, primary: str | None = None, versus: Mapping[str, str | None] | None = None
) -> Comparison:
    """Estimates of every arm, and its difference to the arm before it, or to `versus[arm]`.

    scores: arm -> seed -> metric -> value, arms in the table's order. None, NaN or a missing key is no score;
        a pair of arms is compared over the seeds that both have.
    primary: the metric that is tested first and alone (`gatekeep`); None, or one that no arm has a score of: Holm over
        all.
    Raises: ValueError for a metric that is not in the registry.
    """
    metrics = list(dict.fromkeys(m for seeds in scores.values() for row in seeds.values() for m in row))
    directions = {m: lookup(m).direction for m in metrics}
    values = {arm: {m: by_seed(scores[arm], m) for m in metrics} for arm in scores}
    arms = {
        arm: {m: estimate(list(seed_values.values())) for m, seed_values in row.items() if seed_values}
        for arm, row in values.items()
    }
    references = {arm: previous for previous, arm in pairwise(scores)} if versus is None else versus
    gate = primary if any(primary in row for row in arms.values()) else None
    differences: dict[str, dict[str, SeedDifference]] = {}
    for arm, a in values.items():
        rows, other = {}, references.get(arm)
        if other is not None and other != arm:
            b = values[other]
            rows = {m: _difference(a[m], b[m], d, other) for m, d in directions.items() if a[m] or b[m]}
        differences[arm] = judge(rows, directions, gate)
    return Comparison(arms, differences, _best(values, directions, gate), gate)


def equivalence(
    arm: Mapping[int, float], other: Mapping[int, float], direction: Direction, margin: float, *, both: bool = True
) -> float | None:
    """p of the test that an arm is within `margin` of the other over their common seeds; None with fewer than two.

    Two one-sided paired t (Schuirmann 1987): at 5 % it rejects where the 90 % interval is inside the margin.

    arm, other: seed -> value. margin: share of the other's value (of 1 where the distance from 1 is compared).
    both: False tests only that the arm is not worse by more than the margin.
    """
    import numpy as np

    a, b = pairs = _pairs(arm, other, direction)
    if len(a) < 2 or not np.isfinite(pairs).all():
        return None
    margins = np.full_like(b, math.log1p(margin)) if direction == "one" else margin * np.abs(b)
    worse = b - a if direction == "higher" else a - b
    p_values = []
    for slack in (margins - worse, margins + worse) if both else (margins - worse,):
        mean, _, p = (float(x) for x in paired_t(slack))
        p_values.append(p / 2 if mean > 0 else 1 - p / 2)
    return max(p_values)


def order_as_in_paper(
    comparison: Comparison,
    paper: Mapping[str, Mapping[str, float]],
    directions: Mapping[str, Direction],
    *,
    primary: str,
    metrics: Sequence[str] | None = None,
) -> Literal["yes", "no", "not resolved"]:
    """Whether our order of adjacent arms agrees with the paper's.

    "no" if any significant difference contradicts the paper, "yes" if every pair of neighbours that the paper
    orders differs significantly in the paper's direction on the primary metric, else "not resolved". The
    paper orders a pair where its quality columns agree; Table 5 does not order 4 and 5 steps.

    paper: arm -> column -> printed value; arms the paper lacks are left out.
    directions: the paper's quality columns (no cost) -> direction.
    metrics: ours that may contradict; None takes all.
    """
    agreements = []
    for arm, by_metric in comparison.differences.items():
        versus = next((d.versus for d in by_metric.values()), None)
        if versus is None or versus not in paper or arm not in paper:
            continue
        step = _paper_step(paper[versus], paper[arm], directions)
        if step is None:
            continue
        verdicts = {m: d.verdict for m, d in by_metric.items() if metrics is None or m in metrics or m == primary}
        if ("worse" if step == "better" else "better") in verdicts.values():
            return "no"
        agreements.append(verdicts.get(primary) == step)
    return "yes" if agreements and all(agreements) else "not resolved"


def by_seed(seeds: Mapping[int, Mapping[str, float | None]], metric: str) -> dict[int, float]:
    """Seed -> value of one metric, for the seeds with a value."""
    values = ((seed, row.get(metric)) for seed, row in seeds.items())
    return {seed: float(value) for seed, value in values if value is not None and math.isfinite(value)}


def _difference(a: Mapping[int, float], b: Mapping[int, float], direction: Direction, versus: str) -> SeedDifference:
    """a - b over their common seeds, p not yet adjusted for the other metrics."""
    import numpy as np

    pairs = _pairs(a, b, direction)
    n = pairs.shape[1]
    unresolved = SeedDifference(None, None, None, None, None, "not resolved", difference_kind(direction), n, versus)
    if n == 0 or not np.isfinite(pairs).all():
        return unresolved
    deltas = pairs[0] - pairs[1]
    if n == 1:
        return replace(unresolved, diff=float(deltas[0]))
    mean, half, p = (float(x) for x in paired_t(deltas))
    return replace(unresolved, diff=mean, low=mean - half, high=mean + half, p=p, verdict="no difference shown")


def _pairs(a: Mapping[int, float], b: Mapping[int, float], direction: Direction) -> np.ndarray:
    """[2, n]: `distance` of both over their n common seeds."""
    import numpy as np

    return np.array([[distance(values[seed], direction) for seed in sorted(a.keys() & b.keys())] for values in (a, b)])


def _best(
    values: Mapping[str, Mapping[str, Mapping[int, float]]], directions: Mapping[str, Direction], primary: str | None
) -> dict[str, str | None]:
    """Per metric the arm that is significantly better than every other one.

    Intersection-union: its p is the largest of its paired tests against the others, adjusted by `gatekeep`.
    """
    winners = {m: _winner({arm: v[m] for arm, v in values.items() if v[m]}, d) for m, d in directions.items()}
    adjusted = gatekeep({m: p for m, (_, p) in winners.items()}, primary)
    return {m: arm if adjusted[m] < 1 - LEVEL else None for m, (arm, _) in winners.items()}


def _winner(arms: Mapping[str, Mapping[int, float]], direction: Direction) -> tuple[str | None, float]:
    """The arm ahead of all others and the largest p of its tests; (None, 1) if there is none."""
    for arm, values in arms.items():
        tests = [_difference(values, other, direction, name) for name, other in arms.items() if name != arm]
        p_values = [d.p for d in tests if d.p is not None and d.diff is not None and improves(d.diff, direction)]
        if tests and len(p_values) == len(tests):
            return arm, max(p_values)
    return None, 1.0


def _paper_step(
    before: Mapping[str, float], after: Mapping[str, float], directions: Mapping[str, Direction]
) -> Literal["better", "worse"] | None:
    """The direction of a step between rows in the paper's quality columns; None if they disagree or tie."""
    steps = {
        improves(after[c] - before[c], direction)
        for c, direction in directions.items()
        if c in before and c in after and after[c] != before[c]
    }
    if len(steps) != 1:
        return None
    return "better" if steps.pop() else "worse"
