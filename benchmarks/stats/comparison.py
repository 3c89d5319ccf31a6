"""Compare arms over seeds: intervals, paired differences, gatekeeping over metrics, verdicts. Pure statistics.

The unit is the seed's value. Seeds differ in training noise and in evaluation clips and noise, and within a
seed all arms share both; so arms are paired by seed, and seeds are the only independent repetitions there
are.

**The interval is the paired t over the seeds' differences.** It is wide (4.30 standard errors at three
seeds), and narrower ones were tried (`python -m benchmarks.stats.interval_coverage` prints all of it; normal errors,
variances of the comparisons within a factor 16, coverage of the worst covered comparison):

    paired t                                     94.5-95.0 %, false positives after Holm  5 %, width 1
    moderated, noisy comparisons left alone      93.4-96.0 %,                         up to 14 %, 0.90-1.02
    moderated (empirical Bayes, limma)           77.8-94.8 %,                         up to 31 %, 0.60-0.86
    pooled over the comparisons of a metric      62.9-94.4 %,                         up to 50 %, 0.56-0.98
    percentile bootstrap over seeds              64.9-82.5 %,                         up to 82 %, 0.30-0.61

What is saved is saved where a comparison is noisier than its neighbours, and there the false claims are made;
with two degrees of freedom no guard tells such a comparison from a quiet one. Skewed errors in one arm cost
paired t up to 6 points too. What buys narrower intervals is seeds: five are 1.9 times narrower than three. A control
variate whose coefficient is fitted on the seeds (the floor of a seed's clips, say) takes one of their degrees of
freedom: it widens the interval unless it explains 94 % of the variance at three seeds, 43 % at five, so there is none.

Within a comparison the primary metric is tested first (`benchmarks.stats.difference`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.metrics import Direction, lookup
from benchmarks.stats.difference import LEVEL, Difference, Verdict, compared_as, distance, gatekeep, improves, judge

if TYPE_CHECKING:
    import numpy as np

Scores = Mapping[str, Mapping[int, Mapping[str, float | None]]]


@dataclass(frozen=True)
class Estimate:
    """Mean over n seeds with its 95 % interval; no interval (None) with a single seed."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class SeedDifference(Difference):
    """An arm minus the arm it is compared with, over their n common seeds."""

    n: int
    versus: str


@dataclass(frozen=True)
class Comparison:
    """All arms of a table.

    arms: arm -> metric -> estimate; a metric without any score is absent.
    differences: arm -> metric -> difference to the previous arm (or to the reference); empty where there is
        none.
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


def paired_t(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Student's paired t: mean, half-width of the 95 % interval, two-sided p.

    differences: [..., n] with n >= 2 seeds last; the three results are [...].
    """
    import numpy as np
    from scipy.special import stdtr, stdtrit

    n = differences.shape[-1]
    mean = differences.mean(-1)
    error = differences.std(-1, ddof=1) / math.sqrt(n)
    # Equal differences up to rounding: their spread is rounding, not evidence.
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
    scores: Scores,
    directions: Mapping[str, Direction] | None = None,
    *,
    primary: str | None = None,
    reference: str | None = None,
    versus: Mapping[str, str | None] | None = None,
) -> Comparison:
    """Estimates of every arm, and its difference to the arm before it (or to `reference`, or to `versus[arm]`).

    scores: arm -> seed -> metric -> value, arms in the table's order. None, NaN or a missing key is no score;
        a pair of arms is compared over the seeds that both have.
    directions: metric -> direction; None takes the registry's.
    primary: the metric that is tested first and alone (`gatekeep`); None, or one that no arm has a score of: Holm over
        all.
    Raises: ValueError for a reference that is not an arm, or a metric without a direction.
    """
    if reference is not None and reference not in scores:
        raise ValueError(f"reference={reference!r} is not an arm; arms: {', '.join(scores)}")
    metrics = list(dict.fromkeys(m for seeds in scores.values() for row in seeds.values() for m in row))
    sides = {m: _direction(m, directions) for m in metrics}
    values = {arm: {m: by_seed(scores[arm], m) for m in metrics} for arm in scores}
    arms = {
        arm: {m: estimate(list(found.values())) for m, found in row.items() if found} for arm, row in values.items()
    }
    names = list(scores)
    others = {arm: reference or previous for previous, arm in zip([None, *names], names, strict=False)}
    if versus is not None:
        others = {arm: versus.get(arm) for arm in names}
    gate = primary if any(primary in row for row in arms.values()) else None
    differences = {
        arm: {} if other in (None, arm) else _against(values[arm], values[other], sides, other, gate)
        for arm, other in others.items()
    }
    return Comparison(arms, differences, _best(values, sides, gate), gate)


def equivalence(
    arm: Mapping[int, float], other: Mapping[int, float], side: Direction, margin: float, *, both: bool = True
) -> float | None:
    """p of the test that an arm is within `margin` of the other over their common seeds; None with fewer than two.

    Two one-sided paired t (Schuirmann 1987): at 5 % it rejects where the 90 % interval is inside the margin.

    arm, other: seed -> value. margin: share of the other's value (of 1 where the distance from 1 is compared).
    both: False asks only that the arm is not worse by as much.
    """
    import numpy as np

    seeds = sorted(arm.keys() & other.keys())
    pairs = [(distance(arm[seed], side), distance(other[seed], side)) for seed in seeds]
    if len(pairs) < 2 or not all(math.isfinite(x) and math.isfinite(y) for x, y in pairs):
        return None
    a, b = np.array(pairs).T
    room = np.full_like(b, math.log1p(margin)) if side == "one" else margin * np.abs(b)
    worse = b - a if side == "higher" else a - b
    p_values = []
    for short_of in (room - worse, room + worse) if both else (room - worse,):
        mean, _, p = (float(x) for x in paired_t(short_of))
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
    """Does our order of adjacent arms agree with the paper's?

    "no" if any significant difference contradicts the paper, "yes" if every pair of neighbours that the paper
    orders differs significantly in the paper's direction on the primary metric, else "not resolved". The
    paper orders a pair where its quality columns agree; Table 5 does not order 4 and 5 steps.

    paper: arm -> column -> printed value; arms the paper lacks are left out.
    directions: the paper's quality columns (no cost) -> direction.
    metrics: ours that may contradict; None takes all.
    """
    verdicts: list[Verdict] = []
    for arm, by_metric in comparison.differences.items():
        versus = next((d.versus for d in by_metric.values()), None)
        if versus is None or versus not in paper or arm not in paper:
            continue
        step = _paper_step(paper[versus], paper[arm], directions)
        if step is None:
            continue
        against = "worse" if step == "better" else "better"
        seen = {m: d.verdict for m, d in by_metric.items() if metrics is None or m in metrics or m == primary}
        if against in seen.values():
            return "no"
        verdicts.append("better" if seen.get(primary) == step else "not resolved")
    return "yes" if verdicts and all(v == "better" for v in verdicts) else "not resolved"


def _direction(metric: str, directions: Mapping[str, Direction] | None) -> Direction:
    if directions is None:
        return lookup(metric).direction
    if metric not in directions:
        raise ValueError(f"no direction given for metric {metric!r}; given: {', '.join(directions)}")
    return directions[metric]


def by_seed(seeds: Mapping[int, Mapping[str, float | None]], metric: str) -> dict[int, float]:
    """seed -> value of one metric, of the seeds that have one."""
    found = ((seed, row.get(metric)) for seed, row in seeds.items())
    return {seed: float(value) for seed, value in found if value is not None and math.isfinite(value)}


def _difference(a: Mapping[int, float], b: Mapping[int, float], side: Direction, versus: str) -> SeedDifference:
    """a - b over their common seeds, p not yet adjusted for the other metrics."""
    import numpy as np

    kind = compared_as(side)
    seeds = sorted(a.keys() & b.keys())
    pairs = [(distance(a[seed], side), distance(b[seed], side)) for seed in seeds]
    if not pairs or not all(math.isfinite(x) and math.isfinite(y) for x, y in pairs):
        return SeedDifference(None, None, None, None, None, "not resolved", kind, len(seeds), versus)
    deltas = np.array([x - y for x, y in pairs])
    if len(seeds) == 1:
        return SeedDifference(float(deltas[0]), None, None, None, None, "not resolved", kind, 1, versus)
    mean, half, p = (float(x) for x in paired_t(deltas))
    return SeedDifference(mean, mean - half, mean + half, p, None, "no difference shown", kind, len(seeds), versus)


def _against(
    arm: Mapping[str, Mapping[int, float]],
    other: Mapping[str, Mapping[int, float]],
    sides: Mapping[str, Direction],
    versus: str,
    primary: str | None,
) -> dict[str, SeedDifference]:
    """One comparison, all its metrics: differences with adjusted p and the verdicts."""
    differences = {m: _difference(arm[m], other[m], side, versus) for m, side in sides.items() if arm[m] or other[m]}
    return judge(differences, sides, primary)


def _best(
    values: Mapping[str, Mapping[str, Mapping[int, float]]], sides: Mapping[str, Direction], primary: str | None
) -> dict[str, str | None]:
    """Per metric the arm that is significantly better than every other one.

    Intersection-union: its p is the largest of its paired tests against the others; over the metrics as `gatekeep` has
    it.
    """
    winners = {m: _winner({arm: v[m] for arm, v in values.items() if v[m]}, side) for m, side in sides.items()}
    adjusted = gatekeep({m: p for m, (_, p) in winners.items()}, primary)
    return {m: arm if adjusted[m] < 1 - LEVEL else None for m, (arm, _) in winners.items()}


def _winner(arms: Mapping[str, Mapping[int, float]], side: Direction) -> tuple[str | None, float]:
    """The arm ahead of all others and the largest p of its tests; (None, 1) if there is none."""
    for arm, values in arms.items():
        tests = [_difference(values, other, side, name) for name, other in arms.items() if name != arm]
        ahead = [d.p for d in tests if d.p is not None and d.diff is not None and improves(d.diff, side)]
        if tests and len(ahead) == len(tests):
            return arm, max(ahead)
    return None, 1.0


def _paper_step(
    before: Mapping[str, float], after: Mapping[str, float], directions: Mapping[str, Direction]
) -> Literal["better", "worse"] | None:
    """What the paper's quality columns say of a step between rows; None where they disagree or tie."""
    steps = {
        improves(after[c] - before[c], side)
        for c, side in directions.items()
        if c in before and c in after and after[c] != before[c]
    }
    if len(steps) != 1:
        return None
    return "better" if steps.pop() else "worse"
