"""Which claims are decided while seeds arrive one by one, and which arms stop. Begin with `climb`.

After every seed from the second on, each open clause is answered by the rules of `experiments.engine.outcome.verdict`,
with sequential p-values (`benchmarks.stats.sequential`): the first look at which it holds or is refuted decides it, and
each clause errs in 5 % of ablations at most, over all looks. A clause that the remaining seeds would decide with less
than `FUTILE` probability stops as *not resolved*, which makes no error of the first kind. An arm gets its next seed
while any clause about it is open.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.metrics import lookup
from benchmarks.stats.comparison import LEVEL, Scores, by_seed, distance, improves
from benchmarks.stats.sequential import FIRST, chance, sequential_p
from experiments.engine.ablation import ArmPair, Clause
from experiments.engine.outcome.verdict import resolve

FUTILE = 0.1
OPEN = "open"


@dataclass(frozen=True)
class PairDifference:
    """Mean difference of two arms over the seeds of both; diff is None without a value, gains whether it is better."""

    pair: str
    metric: str
    diff: float | None
    gains: bool | None


@dataclass(frozen=True)
class ClaimAnswer:
    """The answer to a clause at a look.

    answer  holds, refuted, not resolved, not run (no scores), or open: the next seeds may decide it
    seeds   that had run
    p       the smaller sequential p of the tests that it holds and that it is refuted
    reason  of not resolved
    """

    clause: str
    answer: str
    seeds: int
    p: float
    reason: str
    differences: tuple[PairDifference, ...]

    @property
    def is_resolved(self) -> bool:
        return self.answer in ("holds", "refuted")

    @property
    def sign(self) -> bool | None:
        """Whether all of its differences are improvements; None if they are of both signs, or missing."""
        signs = {row.gains for row in self.differences}
        return signs.pop() if len(signs) == 1 else None


def climb(
    clauses: Sequence[Clause],
    arms: Sequence[str],
    primary: str,
    seeds: Sequence[int],
    run: Callable[[Mapping[str, int]], Scores],
    show: Callable[[Sequence[ClaimAnswer], Mapping[str, int]], Any] = lambda answers, counts: None,
) -> tuple[list[ClaimAnswer], dict[str, int]]:
    """Run seed by seed until no clause is open. Returns the answers, and the number of seeds of each arm.

    seeds  at least two, in the order in which they run
    run    called with the number of seeds of each arm; returns arm -> seed -> metric -> value
    show   called after every look with the answers and the numbers of seeds
    """
    counts = dict.fromkeys(arms, FIRST)
    answers: dict[int, ClaimAnswer] = {}
    waiting: Collection[int] = range(len(clauses))
    for n in range(FIRST, len(seeds) + 1):
        scores = run(counts)
        answers |= {i: answer_at(clauses[i], scores, primary, seeds[:n], len(seeds)) for i in waiting}
        waiting = [i for i in waiting if answers[i].answer == OPEN]
        show([answers[i] for i in range(len(clauses))], counts)
        if not waiting:
            break
        needed = {arm for i in waiting for pair in clauses[i].pairs() for arm in (pair.arm, pair.other)}
        counts = {arm: n + 1 if arm in needed else count for arm, count in counts.items()}
    return [answers[i] for i in range(len(clauses))], counts


def answer_at(clause: Clause, scores: Scores, primary: str, seeds: Sequence[int], most: int) -> ClaimAnswer:
    """The answer to a clause after these seeds, of at most `most`. scores: also of other seeds, which do not count"""
    scores = {arm: {seed: row for seed, row in rows.items() if seed in seeds} for arm, rows in scores.items()}
    resolution = resolve(clause, scores, primary, lambda p, n: sequential_p(p, n, most))
    pairs, reason, answer = [*clause.pairs()], "", resolution.answer
    if answer == "not resolved":
        # what already counts alone, whatever Holm takes, needs no more seeds
        alone = (1 - LEVEL) / len(pairs)
        undecided = [
            pair for pair, own in zip(pairs, resolution.pairs, strict=True) if min(own.holds, own.refuted) >= alone
        ]
        best = max((_chance(pair, scores, primary, most) for pair in undecided), default=0.0)
        if len(seeds) == most:
            reason = f"all {most} seeds ran"
        elif best < FUTILE:
            reason = f"futile: more seeds would decide it with {100 * best:.0f} %"
        else:
            answer = OPEN
    p = min(resolution.holds, resolution.refuted)
    return ClaimAnswer(
        clause.text, answer, len(seeds), p, reason, tuple(_difference(pair, scores, primary) for pair in pairs)
    )


def _chance(pair: ArmPair, scores: Scores, primary: str, most: int) -> float:
    """The chance that the remaining seeds decide a pair: 1 with a margin, within which it may hold at any time.

    Another metric than the primary one waits for it, so its chance is at most that of the primary metric.
    """
    import numpy as np

    if pair.margin is not None:
        return 1.0
    values = [np.array(_differences(pair, scores, metric)) for metric in {pair.metric or primary, primary}]
    return min(chance(d, most) if len(d) >= FIRST and np.isfinite(d).all() else 0.0 for d in values)


def _differences(pair: ArmPair, scores: Scores, metric: str) -> list[float]:
    direction = lookup(metric).direction
    arm, other = (by_seed(scores.get(name, {}), metric) for name in (pair.arm, pair.other))
    return [distance(arm[seed], direction) - distance(other[seed], direction) for seed in arm if seed in other]


def _difference(pair: ArmPair, scores: Scores, primary: str) -> PairDifference:
    metric = lookup(pair.metric or primary)
    differences = _differences(pair, scores, metric.name)
    diff = fmean(differences) if differences else None
    gains = None if not diff else improves(diff, metric.direction)
    return PairDifference(str(pair), metric.name, diff, gains)
