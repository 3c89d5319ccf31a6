"""What came out of a claim: each clause holds, is refuted, or is not resolved, by the rule of the table.

A pair of arms is compared as two rows of the table are (`benchmarks.stats.comparison`): paired t over the common
seeds, the primary metric alone at 5 %, another metric behind its gate. `better` holds where the difference is
significant in the claimed direction, and is refuted where it is in the other one. `same`, and `not_worse` with a
margin, hold by a test of equivalence (the 90 % interval is within the margin), which needs no gate: more metrics make
it no easier.

A clause of several pairs errs as rarely as one of a single pair. It holds where all must and all do, or where any may
and the smallest p stands Holm's first step over them; it is refuted by the same rule, the other way round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.metrics import Metric, lookup
from benchmarks.report.grid import Digits
from benchmarks.report.render import p_text
from benchmarks.stats.comparison import LEVEL, Difference, Scores, by_seed, compare, equivalence
from experiments.engine.ablation import Ablation
from experiments.engine.clauses import ArmPair, Clause, better
from pw.io.arguments import ConfigError, did_you_mean

ANSWERS = ("holds", "refuted", "not resolved", "not run")
SHOWN = 3  # pairs of a clause whose numbers are given


@dataclass(frozen=True)
class Resolution:
    """What the scores say of a pair or a clause.

    holds, refuted  p of the test that it holds, and that it is refuted
    missing         arms without scores
    pairs           of a clause
    numbers         what a pair's test rests on, in words
    """

    holds: float
    refuted: float
    missing: tuple[str, ...] = ()
    pairs: tuple[Resolution, ...] = ()
    statement: str = ""
    numbers: str = ""

    @property
    def answer(self) -> str:
        """One of ANSWERS."""
        if self.holds < 1 - LEVEL:
            return "holds"
        if self.refuted < 1 - LEVEL:
            return "refuted"
        return "not run" if self.missing else "not resolved"


def clauses_of(ablation: Ablation, versus: Mapping[str, str | None]) -> tuple[Clause, ...]:
    """The clauses of a claim; without any, that each arm is better than the one it is compared with.

    versus: arm -> the arm it is compared with, in the table's order.
    """
    return tuple(ablation.claims) or tuple(better(arm, other) for arm, other in versus.items() if other is not None)


def verdict(clauses: Iterable[Clause], scores: Scores, primary: str) -> list[dict[str, str]]:
    """The answer to every clause and what it rests on, as in table.json.

    scores: arm -> seed -> metric -> value.
    """
    rows = []
    for clause in clauses:
        resolution = _answer(clause, scores, primary)
        rows.append({"clause": clause.text, "answer": resolution.answer, "evidence": _evidence(clause, resolution)})
    return rows


def summary(scale: str, seeds: Sequence[int], rows: Sequence[Mapping[str, str]]) -> str:
    """The first sentence of a Verdict paragraph: (tiny, 5 seeds) holds 2, refuted 1, not resolved 1."""
    counts = Counter(row["answer"] for row in rows)
    answers = ", ".join(f"{answer} {counts[answer]}" for answer in ANSWERS if counts[answer])
    return f"({scale}, {len(seeds)} seed{'s' if len(seeds) != 1 else ''}) {answers}."


def check_claims(ablation: Ablation, arms: Sequence[str]) -> None:
    """Check that the primary metric is measured, and that clauses name existing arms and metrics. Raises ConfigError.

    arms: all that the ablation has, also those that are left out of a run.
    """
    measured, primary = ", ".join(ablation.metrics), ablation.primary
    if primary not in ablation.metrics:
        raise ConfigError(f"primary={primary}: is not among the metrics ({measured}); add it, or name one of them")
    for clause in ablation.claims:
        for pair in clause.pairs():
            for name in (pair.arm, pair.other):
                if name not in arms:
                    hint = did_you_mean(name, arms)
                    raise ConfigError(f"claims: {pair}: no arm {name}; {hint}arms: {', '.join(arms)}")
            if pair.metric is not None and pair.metric not in ablation.metrics:
                raise ConfigError(f"claims: {pair}: {pair.metric} is not among the metrics ({measured})")
            if pair.margin is not None and not 0 < pair.margin < 1:
                raise ConfigError(f"claims: {pair}: margin={pair.margin:g} is a share, between 0 and 1")


def _answer(part: Clause | ArmPair, scores: Scores, primary: str) -> Resolution:
    if isinstance(part, ArmPair):
        return _answer_pair(part, scores, primary)
    parts = [_answer(one, scores, primary) for one in part.parts]
    every, some = max, lambda p_values: min(1.0, len(parts) * min(p_values))
    holds, refuted = (every, some) if part.needs == "all" else (some, every)
    return Resolution(
        holds([one.holds for one in parts]),
        refuted([one.refuted for one in parts]),
        tuple(dict.fromkeys(arm for one in parts for arm in one.missing)),
        tuple(pair for one in parts for pair in (one.pairs or (one,))),
    )


def _answer_pair(pair: ArmPair, scores: Scores, primary: str) -> Resolution:
    missing = tuple(arm for arm in (pair.arm, pair.other) if not any(scores.get(arm, {}).values()))
    metric = lookup(pair.metric or primary)
    if missing:
        return Resolution(1.0, 1.0, missing, statement=str(pair))
    two = {arm: scores[arm] for arm in (pair.other, pair.arm)}
    row = compare(two, primary=primary, versus={pair.arm: pair.other}).differences[pair.arm].get(metric.name)
    if row is None or row.diff is None:
        return Resolution(1.0, 1.0, statement=str(pair), numbers=f"no {metric.name} of a common seed")
    of = {arm: by_seed(rows, metric.name) for arm, rows in two.items()}
    margin, p_margin = pair.margin, None
    if margin is not None:
        p_margin = equivalence(of[pair.arm], of[pair.other], metric.direction, margin, both=pair.relation == "same")
    shown = 1.0 if row.p_adjusted is None else row.p_adjusted
    improves = row.diff > 0 if metric.direction == "higher" else row.diff < 0
    holds = shown if improves and pair.relation != "same" else 1.0
    refuted = 1.0 if improves and pair.relation != "same" else shown
    if p_margin is not None:
        holds = min(holds, p_margin)
    if holds < 1 - LEVEL:  # a difference within the margin is none
        refuted = 1.0
    numbers = _numbers(metric, of[pair.arm], of[pair.other], row, pair, p_margin)
    return Resolution(holds, refuted, statement=str(pair), numbers=numbers)


def _numbers(
    metric: Metric,
    arm: Mapping[int, float],
    other: Mapping[int, float],
    row: Difference,
    pair: ArmPair,
    p_margin: float | None,
) -> str:
    """psd 4.41 → 1.48 dB, −2.93 ± 0.32, p=0.004: the means are over the common seeds, as the difference is."""
    seeds = arm.keys() & other.keys()
    before, after = (fmean(values[seed] for seed in seeds) for values in (other, arm))
    half = None if row.low is None or row.high is None else (row.high - row.low) / 2
    is_log = row.diff_of == "abs_log"
    digits = Digits.of([before, after], [half] if half and not is_log else [])
    of_diff = Digits.of([row.diff or 0.0], [half] if half else [], 0) if is_log else digits
    unit = " ".join(part for part in (digits.unit, metric.unit) if part)
    parts = [f"{metric.name} {digits.text(before)} → {digits.text(after)}{f' {unit}' if unit else ''}"]
    parts.append(f"{'|ln| ' if is_log else ''}{of_diff.interval(row.diff or 0.0, half)}")
    parts.append(p_text(row.p_adjusted) or "one seed")
    if p_margin is not None and pair.margin is not None:
        parts.append(f"within {100 * pair.margin:g} %: {p_text(p_margin)}")
    return ", ".join(parts)


def _evidence(clause: Clause, resolution: Resolution) -> str:
    """The numbers of a clause's pairs; of many pairs, those of the one that decides."""
    if resolution.missing:
        lacking = f"no scores of {', '.join(resolution.missing)}"
        if resolution.answer == "not run" or not any(pair.numbers for pair in resolution.pairs):
            return lacking
    pairs = [pair for pair in resolution.pairs if pair.numbers]
    if len(resolution.pairs) == 1:
        return pairs[0].numbers
    counts = Counter(pair.answer for pair in resolution.pairs)
    counted = (
        f"of {len(resolution.pairs)} {', '.join(f'{answer} {counts[answer]}' for answer in ANSWERS if counts[answer])}"
    )
    if len(pairs) > SHOWN:
        by_refuted = resolution.answer == "refuted"
        every = (clause.needs == "any") if by_refuted else (clause.needs == "all")
        pick = max if every else min
        pairs = [pick(pairs, key=lambda pair: pair.refuted if by_refuted else pair.holds)]
    return "; ".join([counted, *(f"{pair.statement}: {pair.numbers}" for pair in pairs)])
