"""What came out of a claim: each clause holds, is refuted, or is not resolved, by the rule of the table.

A pair of arms is compared as two rows of the table are (`benchmarks.stats.comparison`): paired t over the common
seeds, the primary metric alone at 5 %, another metric behind its gate. `better` holds where the difference is
significant in the claimed direction, and is refuted where it is in the other one. `same`, and `not_worse` with a
margin, hold by a test of equivalence (the 90 % interval is within the margin), which needs no gate: more metrics make
it no easier.

A clause of several pairs errs as rarely as one of a single pair. It holds where all must and all do, or where any may
and the smallest p stands Holm's first step over them; it is refuted by the same rule, the other way round.

`pw record name=ansc` keeps the outcome, small enough to commit, as `experiments/results/<name>.json`: the scores,
differences and answers of `outputs/<name>/table.json`, to four digits; where that is more than `MOST` bytes, only those
of the metrics that the claim is about. The Verdict paragraph of the ablation's file begins with `summary` of it; a test
compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.metrics import Metric, lookup
from benchmarks.report.grid import Digits
from benchmarks.report.render import p_text
from benchmarks.stats.comparison import LEVEL, Difference, Scores, by_seed, compare, equivalence, improves
from experiments.engine.ablation import Ablation, ArmPair, Clause, better, load, names
from experiments.engine.outcome.written import read_written
from pw.io.arguments import Command, ConfigError, did_you_mean, option
from pw.io.files import write_atomically
from pw.io.paths import OUTPUTS
from pw.train.loop import outputs_folder

Values = Mapping[int, float]
"""Of a metric, by seed."""

ANSWERS = ("holds", "refuted", "not resolved", "not run")
SHOWN = 3  # pairs of a clause whose numbers are given

RESULTS = Path(__file__).parents[2] / "results"
MOST = 8192
METRICS = ("mean", "low", "high", "n")
DIFFERENCES = ("diff", "low", "high", "p", "p_adjusted", "verdict", "versus")
WRITTEN = {"ablation": str, "scale": str, **dict.fromkeys(("seeds", "settings", "arms", "verdict"), list)}
"""What both a table.json and the record of it hold."""


@dataclass(frozen=True)
class Resolution:
    """What the scores say of a pair or a clause.

    holds, refuted  p of the test that it holds, and that it is refuted
    missing         arms without scores
    statement, numbers   of a pair: what is said, and what its test rests on, in words
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
    answered = [(clause, _answer(clause, scores, primary)) for clause in clauses]
    return [
        {"clause": clause.text, "answer": found.answer, "evidence": _evidence(clause, found)}
        for clause, found in answered
    ]


def summary(scale: str, seeds: Sequence[int], rows: Sequence[Mapping[str, str]]) -> str:
    """The first sentence of a Verdict paragraph: (tiny, 5 seeds) holds 2, refuted 1, not resolved 1."""
    answers = _counted([row["answer"] for row in rows])
    return f"({scale}, {len(seeds)} seed{'s' if len(seeds) != 1 else ''}) {answers}."


def _counted(answers: Sequence[str]) -> str:
    return ", ".join(f"{answer} {answers.count(answer)}" for answer in ANSWERS if answer in answers)


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
    is_same, p_margin = pair.relation == "same", None
    if pair.margin is not None:
        p_margin = equivalence(of[pair.arm], of[pair.other], metric.direction, pair.margin, both=is_same)
    shown = 1.0 if row.p_adjusted is None else row.p_adjusted
    is_as_claimed = not is_same and improves(row.diff, metric.direction)
    holds, refuted = (shown, 1.0) if is_as_claimed else (1.0, shown)
    if p_margin is not None:
        holds = min(holds, p_margin)
    if holds < 1 - LEVEL:  # a difference within the margin is none
        refuted = 1.0
    numbers = _numbers(metric, of[pair.arm], of[pair.other], row, pair, p_margin)
    return Resolution(holds, refuted, statement=str(pair), numbers=numbers)


def _numbers(metric: Metric, arm: Values, other: Values, row: Difference, pair: ArmPair, p_margin: float | None) -> str:
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
    counted = f"of {len(resolution.pairs)} {_counted([pair.answer for pair in resolution.pairs])}"
    if len(pairs) > SHOWN:
        by_refuted = resolution.answer == "refuted"
        every = (clause.needs == "any") if by_refuted else (clause.needs == "all")
        pick = max if every else min
        pairs = [pick(pairs, key=lambda pair: pair.refuted if by_refuted else pair.holds)]
    return "; ".join([counted, *(f"{pair.statement}: {pair.numbers}" for pair in pairs)])


def digest_of(table: Mapping[str, Any], metrics: Sequence[str] | None = None) -> dict[str, Any]:
    """The part of a table.json that is kept: values in lists, named once by "columns".

    metrics: only these; None keeps all.
    """

    def rows(by_metric: Mapping[str, Any], columns: Sequence[str]) -> dict[str, list[Any]]:
        kept = {name: row for name, row in by_metric.items() if metrics is None or name in metrics}
        return {name: [_rounded(row[key]) for key in columns] for name, row in kept.items()}

    columns = {"metrics": METRICS, "vs_previous": DIFFERENCES}
    return {
        **{key: table.get(key) for key in ("ablation", "scale", "seeds", "settings", "primary", "verdict")},
        "git_commit": table["contract"].get("git_commit"),
        "columns": columns,
        "arms": [
            {"name": arm["name"], **{key: rows(arm[key], of_key) for key, of_key in columns.items()}}
            for arm in table["arms"]
        ],
        **{key: rows(table.get(key) or {}, METRICS) for key in ("ceiling", "floor")},
    }


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def digest_text(digest: Mapping[str, Any]) -> str:
    """As JSON, an arm and a clause a line, so that a change of one shows as one."""
    lines = []
    for key, value in digest.items():
        text = json.dumps(value, ensure_ascii=False)
        if key in ("arms", "verdict"):
            rows = [f"  {json.dumps(row, ensure_ascii=False)}" for row in value]
            text = "[\n" + ",\n".join(rows) + "\n ]"
        lines.append(f' "{key}": {text}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def record(name: str, outputs: Path, results: Path = RESULTS) -> Path:
    """Write the digest of an ablation's table. Raises ConfigError where it has none, or a part of one."""
    ablation, _ = load(name)
    path = outputs / name / "table.json"
    if not path.exists():
        raise ConfigError(f"name={name}: has no table in {outputs}; `make ablation name={name}` makes it")
    remedy = f"remove it, and `make ablation name={name}` writes it again"
    table = read_written(path, WRITTEN | {"contract": dict}, remedy)
    if table["ablation"] != name:
        raise ConfigError(f"{path}: is of {table['ablation']}")
    if asked := [word for word in table["settings"] if word.partition("=")[0] not in ("seeds", "vary_start")]:
        raise ConfigError(f"{path}: was asked for with {' '.join(asked)}; what is recorded is of the ablation as it is")
    if table.get("failed") or any(arm.get("status", "ok") != "ok" for arm in table["arms"]):
        raise ConfigError(f"{path}: some of its runs failed; `make ablation name={name}` does them again")
    text = digest_text(digest_of(table))
    if len(text.encode()) > MOST:
        of_claim = [pair.metric for clause in ablation.claims for pair in clause.pairs()]
        text = digest_text(digest_of(table, [ablation.primary, *(metric for metric in of_claim if metric)]))
    out = results / f"{name}.json"
    write_atomically(out, text)
    return out


@dataclass(frozen=True)
class RecordOptions:
    """Which ablation's table is kept."""

    name: str = option(help="the ablation", values=names)
    outputs: Path = option(OUTPUTS, "where its table is", read=outputs_folder)


def run(options: RecordOptions) -> int:
    """Write the record and print how the Verdict paragraph begins; exit status 0. Raises ConfigError."""
    out = record(options.name, options.outputs)
    written = json.loads(out.read_text())
    print(f"{out}\nThe Verdict of experiments/{options.name}.py begins with:")
    print(summary(written["scale"], written["seeds"], written["verdict"]))
    return 0


main = Command(RecordOptions, run)
