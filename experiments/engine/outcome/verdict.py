"""Answers the claim of an ablation: each clause holds, is refuted, or is not resolved. Begin with `verdict`.

Two arms are compared like two rows of the table (`benchmarks.stats.comparison`): paired t over the common seeds, the
primary metric alone at 5 %, another metric behind its gate. `better` holds if the difference is significant in the
claimed direction, and is refuted if it is significant in the other. `same`, and `not_worse` with a margin, hold by a
test of equivalence (the 90 % interval is within the margin). It needs no gate: more metrics make it no easier.

A clause of several pairs keeps the error rate of one pair. An `all` clause holds if every pair holds; an `any` clause
holds if the smallest p passes Holm's first step over the pairs. For the refutation the two rules are exchanged.

`pw record name=ansc` writes `experiments/results/<name>.json`, small enough to commit: the scores, differences and
answers of `outputs/<name>/table.json`, to four digits; above `MAX_BYTES` bytes only of the metrics in the claim. The
Verdict paragraph of the ablation file begins with the `summary` of this record; a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.metrics import Metric, lookup
from benchmarks.report.grid import Digits
from benchmarks.report.render import p_text
from benchmarks.stats.comparison import LEVEL, Difference, Scores, by_seed, compare, equivalence, improves
from experiments.engine.ablation import Ablation, ArmPair, Clause, better, load, names
from experiments.engine.outcome.result_files import read_result
from pw.io.arguments import Command, ConfigError, did_you_mean, option
from pw.io.files import parse_json, write_atomically
from pw.io.paths import OUTPUTS
from pw.train.loop import results_folder

Values = Mapping[int, float]
"""Seed -> value of a metric."""

Adjust = Callable[[float, int], float]
"""(p, number of seeds) -> p, of every test of two arms."""

ANSWERS = ("holds", "refuted", "not resolved", "not run")
MAX_PAIRS = 3  # a clause of more pairs prints the numbers of one

RESULTS = Path(__file__).parents[2] / "results"
MAX_BYTES = 8192
METRICS = ("mean", "low", "high", "n")
DIFFERENCES = ("diff", "low", "high", "p", "p_adjusted", "verdict", "versus")
TABLE_TYPES = {"ablation": str, "scale": str, **dict.fromkeys(("seeds", "settings", "arms", "verdict"), list)}
"""Key -> type, in a table.json and in its record."""


@dataclass(frozen=True)
class Resolution:
    """The test result of a pair or a clause.

    holds, refuted      p of the test that it holds, and of the test that it is refuted
    missing             arms without scores
    statement, numbers  of a pair: its statement and the numbers of its test, as text
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
    """The clauses of a claim; by default each arm is better than the arm it is compared with.

    versus: arm -> the arm it is compared with, in the table's order.
    """
    return tuple(ablation.claims) or tuple(better(arm, other) for arm, other in versus.items() if other is not None)


def verdict(clauses: Iterable[Clause], scores: Scores, primary: str) -> list[dict[str, str]]:
    """The answer to every clause with its evidence, as in table.json.

    scores: arm -> seed -> metric -> value.
    """
    resolutions = [(clause, resolve(clause, scores, primary)) for clause in clauses]
    return [
        {"clause": clause.text, "answer": resolution.answer, "evidence": _evidence(clause, resolution)}
        for clause, resolution in resolutions
    ]


def summary(scale: str, seeds: Sequence[int], rows: Sequence[Mapping[str, str]]) -> str:
    """The first sentence of a Verdict paragraph: (tiny, 5 seeds) holds 2, refuted 1, not resolved 1."""
    answers = _answer_counts([row["answer"] for row in rows])
    return f"({scale}, {len(seeds)} seed{'s' if len(seeds) != 1 else ''}) {answers}."


def _answer_counts(answers: Sequence[str]) -> str:
    return ", ".join(f"{answer} {answers.count(answer)}" for answer in ANSWERS if answer in answers)


def check_claims(ablation: Ablation, arms: Sequence[str]) -> None:
    """Check that the primary metric is measured, and that clauses name existing arms and metrics. Raises ConfigError.

    arms: all arms of the ablation, also those that a run leaves out.
    """
    metrics, primary = ", ".join(ablation.metrics), ablation.primary
    if primary not in ablation.metrics:
        raise ConfigError(f"primary={primary}: is not among the metrics ({metrics}); add it, or name one of them")
    for clause in ablation.claims:
        for pair in clause.pairs():
            for name in (pair.arm, pair.other):
                if name not in arms:
                    hint = did_you_mean(name, arms)
                    raise ConfigError(f"claims: {pair}: no arm {name}; {hint}arms: {', '.join(arms)}")
            if pair.metric is not None and pair.metric not in ablation.metrics:
                raise ConfigError(f"claims: {pair}: {pair.metric} is not among the metrics ({metrics})")
            if pair.margin is not None and not 0 < pair.margin < 1:
                raise ConfigError(f"claims: {pair}: margin={pair.margin:g} is a share, between 0 and 1")


def resolve(part: Clause | ArmPair, scores: Scores, primary: str, adjust: Adjust = lambda p, seeds: p) -> Resolution:
    """The test result of a clause or a pair. adjust: of the p of each pair, before they are combined"""
    if isinstance(part, ArmPair):
        return _resolve_pair(part, scores, primary, adjust)
    parts = [resolve(child, scores, primary, adjust) for child in part.parts]
    all_p, any_p = max, lambda p_values: min(1.0, len(parts) * min(p_values))
    holds, refuted = (all_p, any_p) if part.needs == "all" else (any_p, all_p)
    return Resolution(
        holds([resolution.holds for resolution in parts]),
        refuted([resolution.refuted for resolution in parts]),
        tuple(dict.fromkeys(arm for resolution in parts for arm in resolution.missing)),
        tuple(pair for resolution in parts for pair in (resolution.pairs or (resolution,))),
    )


def _resolve_pair(pair: ArmPair, scores: Scores, primary: str, adjust: Adjust) -> Resolution:
    missing = tuple(arm for arm in (pair.arm, pair.other) if not any(scores.get(arm, {}).values()))
    metric = lookup(pair.metric or primary)
    if missing:
        return Resolution(1.0, 1.0, missing, statement=str(pair))
    pair_scores = {arm: scores[arm] for arm in (pair.other, pair.arm)}
    row = compare(pair_scores, primary=primary, versus={pair.arm: pair.other}).differences[pair.arm].get(metric.name)
    if row is None or row.diff is None:
        return Resolution(1.0, 1.0, statement=str(pair), numbers=f"no {metric.name} of a common seed")
    values = {arm: by_seed(rows, metric.name) for arm, rows in pair_scores.items()}
    is_same, p_margin = pair.relation == "same", None
    if pair.margin is not None:
        p_margin = equivalence(values[pair.arm], values[pair.other], metric.direction, pair.margin, both=is_same)
    p_difference = 1.0 if row.p_adjusted is None else adjust(row.p_adjusted, row.n)
    is_claimed_direction = not is_same and improves(row.diff, metric.direction)
    holds, refuted = (p_difference, 1.0) if is_claimed_direction else (1.0, p_difference)
    if p_margin is not None:
        holds = min(holds, adjust(p_margin, row.n))
    if holds < 1 - LEVEL:  # a difference within the margin counts as none
        refuted = 1.0
    numbers = _numbers(metric, values[pair.arm], values[pair.other], row, pair, p_margin)
    return Resolution(holds, refuted, statement=str(pair), numbers=numbers)


def _numbers(metric: Metric, arm: Values, other: Values, row: Difference, pair: ArmPair, p_margin: float | None) -> str:
    """psd 4.41 → 1.48 dB, −2.93 ± 0.32, p=0.004: means and difference are over the common seeds."""
    seeds = arm.keys() & other.keys()
    other_mean, arm_mean = (fmean(values[seed] for seed in seeds) for values in (other, arm))
    half_width = None if row.low is None or row.high is None else (row.high - row.low) / 2
    is_log = row.diff_of == "abs_log"
    digits = Digits.of([other_mean, arm_mean], [half_width] if half_width and not is_log else [])
    diff_digits = Digits.of([row.diff or 0.0], [half_width] if half_width else [], 0) if is_log else digits
    unit = " ".join(part for part in (digits.unit, metric.unit) if part)
    parts = [f"{metric.name} {digits.text(other_mean)} → {digits.text(arm_mean)}{f' {unit}' if unit else ''}"]
    parts.append(f"{'|ln| ' if is_log else ''}{diff_digits.interval(row.diff or 0.0, half_width)}")
    parts.append(p_text(row.p_adjusted) or "one seed")
    if p_margin is not None and pair.margin is not None:
        parts.append(f"within {100 * pair.margin:g} %: {p_text(p_margin)}")
    return ", ".join(parts)


def _evidence(clause: Clause, resolution: Resolution) -> str:
    """The numbers of all pairs of a clause; of more than MAX_PAIRS pairs, only those of the deciding pair."""
    if resolution.missing:
        message = f"no scores of {', '.join(resolution.missing)}"
        if resolution.answer == "not run" or not any(pair.numbers for pair in resolution.pairs):
            return message
    pairs = [pair for pair in resolution.pairs if pair.numbers]
    if len(resolution.pairs) == 1:
        return pairs[0].numbers
    counts = f"of {len(resolution.pairs)} {_answer_counts([pair.answer for pair in resolution.pairs])}"
    if len(pairs) > MAX_PAIRS:
        is_refuted = resolution.answer == "refuted"
        needs_every = (clause.needs == "any") if is_refuted else (clause.needs == "all")
        pick = max if needs_every else min
        pairs = [pick(pairs, key=lambda pair: pair.refuted if is_refuted else pair.holds)]
    return "; ".join([counts, *(f"{pair.statement}: {pair.numbers}" for pair in pairs)])


def digest_of(table: Mapping[str, Any], metrics: Sequence[str] | None = None) -> dict[str, Any]:
    """The part of a table.json that the record keeps: values in lists, with their names in "columns".

    metrics: names of the metrics to keep; None: all
    """

    def rows(by_metric: Mapping[str, Any], columns: Sequence[str]) -> dict[str, list[Any]]:
        selected = {name: row for name, row in by_metric.items() if metrics is None or name in metrics}
        return {name: [_rounded(row[key]) for key in columns] for name, row in selected.items()}

    columns = {"metrics": METRICS, "vs_previous": DIFFERENCES}
    return {
        **{key: table.get(key) for key in ("ablation", "scale", "seeds", "settings", "primary", "verdict")},
        "git_commit": table["contract"].get("git_commit"),
        "columns": columns,
        "arms": [
            {"name": arm["name"], **{key: rows(arm[key], names) for key, names in columns.items()}}
            for arm in table["arms"]
        ],
        **{key: rows(table.get(key) or {}, METRICS) for key in ("ceiling", "floor")},
    }


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def digest_text(digest: Mapping[str, Any]) -> str:
    """JSON with one line per arm and per clause, for readable diffs."""
    lines = []
    for key, value in digest.items():
        text = json.dumps(value, ensure_ascii=False)
        if key in ("arms", "verdict"):
            rows = [f"  {json.dumps(row, ensure_ascii=False)}" for row in value]
            text = "[\n" + ",\n".join(rows) + "\n ]"
        lines.append(f' "{key}": {text}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def record(name: str, outputs: Path, results: Path = RESULTS) -> Path:
    """Write the digest of an ablation's table; return its path. Raises ConfigError for a missing or partial table."""
    ablation, _ = load(name)
    path = outputs / name / "table.json"
    if not path.exists():
        raise ConfigError(f"name={name}: has no table in {outputs}; `make ablation name={name}` makes it")
    remedy = f"remove it, and `make ablation name={name}` writes it again"
    table = read_result(path, TABLE_TYPES | {"contract": dict}, remedy)
    if table["ablation"] != name:
        raise ConfigError(f"{path}: is the table of {table['ablation']}")
    if overrides := [word for word in table["settings"] if word.partition("=")[0] not in ("seeds", "vary_start")]:
        raise ConfigError(
            f"{path}: was made with {' '.join(overrides)}; only a table without overrides can be recorded"
        )
    if table.get("failed") or any(arm.get("status", "ok") != "ok" for arm in table["arms"]):
        raise ConfigError(f"{path}: some of its runs failed; `make ablation name={name}` runs them again")
    text = digest_text(digest_of(table))
    if len(text.encode()) > MAX_BYTES:
        claim_metrics = [pair.metric for clause in ablation.claims for pair in clause.pairs()]
        text = digest_text(digest_of(table, [ablation.primary, *(metric for metric in claim_metrics if metric)]))
    out = results / f"{name}.json"
    write_atomically(out, text)
    return out


@dataclass(frozen=True)
class RecordOptions:
    """The options of `pw record`."""

    name: str = option(help="the ablation", values=names)
    outputs: Path = option(OUTPUTS, "where its table is", read=results_folder)


def run(options: RecordOptions) -> int:
    """Write the record and print the beginning of the Verdict paragraph; exit status 0. Raises ConfigError."""
    out = record(options.name, options.outputs)
    digest = parse_json(out.read_text())
    print(f"{out}\nThe Verdict of experiments/{options.name}.py begins with:")
    print(summary(digest["scale"], digest["seeds"], digest["verdict"]))
    return 0


main = Command(RecordOptions, run)
