"""`make power ablation=ansc`: the smallest difference that n prompts and m seeds can show, before anything is trained.

pw power ablation=ansc [prompts=100 seeds=3 metrics=psd,mhd of=0.5|5%|psd:0.2,swd:5%]
                      [paper=table_9_3 sd=musiq:9 correlation=0.5 seed_ratio=0.5 power=0.8 alpha=0.05]
                      [arms=… outputs=DIR out=power.json] [any override of conf/]

**The test that is planned for** is the table's (`benchmarks.stats.comparison`): the paired t over the seeds'
differences, two-sided; the primary metric alone at alpha, the others by Holm behind it. For those, Holm's first step
is what is planned with, alpha over their number: what passes it, passes whatever the others do, where the primary is
shown too. The paper names no primary metric: of its columns, Holm over all.

**The model.** A difference of two arms on prompt v in seed s is delta + S_s + e_sv, so their mean over n prompts and m
seeds has the variance

    seed^2 / m + video^2 / (n m)

and seeds buy what prompts cannot: below seed / sqrt(m) no number of prompts goes. Of the primary metric it says what
buys most, twice the prompts or two more seeds, and whether a control variate could pay. A metric of the whole set has
no values per prompt: the primary's small clips are measured again, groups of them left out
(`benchmarks.stats.jackknife`), of the others the prompts' part is not known. A row of one seed has no spread between
trainings to hold a difference against. It says what can be shown of these two checkpoints over prompts (df = n - 1),
which is what the paper's own tables can show, and nothing of the method.

**The spreads** are measured where scores of this ablation are in `outputs/scores`, else assumed, and are said to be.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import paper
from benchmarks.metrics import METRICS, Metric, chosen, lookup
from experiments.engine.job import ASSUMED_FLOPS, SECONDS, Job, train_jobs
from experiments.engine.outcome.written import NUMBER, SAMPLING, TRAINING, read_sampling, read_training
from experiments.engine.plan import Plan, make_plan, parse
from experiments.engine.power.assumed_spread import assumed_sd, paper_metric
from experiments.engine.power.measured_spread import measured
from experiments.engine.power.power_report import _number, as_json, rendered
from experiments.engine.power.spread import (
    MOST,
    Level,
    Spread,
    prompts_for,
    seeds_for,
    smallest,
)
from pw.io.files import write_atomically
from pw.io.paths import OUTPUTS
from pw.run.compose import ConfigError
from pw.sample.evaluate import sample_folder
from pw.train.record import training_folder

PROMPTS = (25, 50, 100, 200, 400)
SEEDS = (1, 2, 3, 5, 10)
POINTS, SHARE = 0.5, 0.1
"""What is asked for by default: half a point of a metric that is printed in points, else a tenth of its mean."""

SEED_RATIO = 0.5
"""Spread between seeds over that between videos, assumed where none was measured: the median of 131 differences (pairs
of arms and metrics) at the tiny scale, whose quartiles are 0.26 and 0.82."""


# ---- what is known of the spreads


@dataclass(frozen=True)
class Known:
    """One metric of the plan: how it is printed, its mean, its spread, what is asked of it, and what its test keeps."""

    name: str
    header: str
    mean: float | None
    spread: Spread
    target: float
    level: Level


@dataclass(frozen=True)
class Request:
    """What the command line asks."""

    ablation: str | None = None
    paper: str | None = None
    prompts: int = 100
    seeds: int = 3
    metrics: tuple[str, ...] = ()
    of: tuple[str, ...] = ()
    sd: tuple[str, ...] = ()
    correlation: float = 0.5
    seed_ratio: float = SEED_RATIO
    power: float = 0.8
    alpha: float = 0.05
    outputs: Path = OUTPUTS
    out: Path | None = None
    rest: tuple[str, ...] = ()


def request_of(words: Sequence[str]) -> Request:
    """key=value words -> request; what is not ours is an override or an option of the ablation. Raises ConfigError."""
    given: dict[str, Any] = {}
    rest = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r}: write key=value, e.g. ablation=ansc prompts=100 seeds=3")
        if key in Request.__dataclass_fields__ and key != "rest":
            given[key] = _read(key, value)
        else:
            rest.append(word)
    request = Request(**given, rest=tuple(rest))
    if not request.ablation and request.paper is None:
        from experiments.engine.ablation import names

        raise ConfigError(
            f"ablation=… is missing: one of {', '.join(names())}; or a table of the paper: "
            f"paper={', '.join(paper.names())}"
        )
    if request.ablation is None and rest:
        raise ConfigError(f"{rest[0]}: without ablation=… there is nothing to override")
    _pairs_of(request.of, "of")
    _sds(request)
    return request


def _read(key: str, value: str) -> Any:
    if key in ("prompts", "seeds"):
        if not value.isdecimal() or int(value) < (2 if key == "prompts" else 1) or int(value) > MOST:
            raise ConfigError(f"{key}={value}: a whole number from {2 if key == 'prompts' else 1} to {MOST}")
        return int(value)
    if key in ("metrics", "of", "sd"):
        return tuple(part for part in value.split(",") if part)
    if key in ("outputs", "out"):
        return Path(value).expanduser()
    if key in ("ablation", "paper"):
        return value
    low, high = {"correlation": (-1, 1), "seed_ratio": (0, 100)}.get(key, (0, 1))
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not low <= number <= high or (key in ("power", "alpha", "correlation") and number in (0, 1) and number == high):
        raise ConfigError(f"{key}={value}: a number from {low} to {high}")
    if key in ("power", "alpha") and not 0 < number < 1:
        raise ConfigError(f"{key}={value}: a number between 0 and 1")
    return number


def _pairs_of(words: Sequence[str], key: str) -> dict[str, str]:
    """`0.5`, `5%`, `psd:0.2` -> {"": "0.5", "psd": "0.2"}; checked."""
    found = {}
    for word in words:
        name, colon, value = word.rpartition(":")
        number = value.removesuffix("%") if key == "of" else value
        try:
            is_good = float(number) > 0
        except ValueError:
            is_good = False
        if not is_good or (key == "sd" and not colon):
            example = "of=0.5, of=5% or of=psd:0.2,swd:5%" if key == "of" else "sd=musiq:9,niqe:0.5"
            raise ConfigError(f"{key}={word}: wants positive numbers, e.g. {example}")
        if colon and name not in METRICS:
            lookup(name)
        found[name] = value
    return found


def _sds(request: Request) -> dict[str, float]:
    return {name: float(value) for name, value in _pairs_of(request.sd, "sd").items()}


def target_of(metric: Metric | None, name: str, mean: float | None, request: Request) -> float:
    """The difference that is asked for, in printed units."""
    asked = _pairs_of(request.of, "of")
    word = asked.get(name, asked.get(""))
    is_ratio = metric is not None and metric.direction == "one"
    in_points = metric is None or metric.scale == "0-100" or metric.printed == 100
    if word is None:
        word = str(POINTS) if in_points else f"{100 * SHARE:g}%"
    if not word.endswith("%"):
        return float(word)
    share = float(word[:-1]) / 100
    return math.log1p(share) if is_ratio else share * abs(mean or 1.0)


# ---- the plan


@dataclass(frozen=True)
class Cost:
    """CPU- or GPU-seconds of all arms: once per seed, and per prompt and seed.

    is_real_scale: of Wan's scales, whose videos the paper's metrics are of.
    """

    per_seed: float
    per_video: float
    basis: str
    is_real_scale: bool

    def seconds(self, prompts: int, seeds: int) -> float:
        """Of a whole design."""
        return seeds * (self.per_seed + prompts * self.per_video)


@dataclass(frozen=True)
class Step:
    """A printed difference of the paper: a row against the one it is compared with."""

    step: str
    metric: str
    header: str
    diff: float
    improves: bool
    shown_by_checkpoints: float | None
    prompts_by_checkpoints: int | None
    shown: float | None
    seeds_needed: int | None


@dataclass(frozen=True)
class Answer:
    """All that is printed."""

    title: str
    request: Request
    primary: str | None
    known: tuple[Known, ...]
    notes: tuple[str, ...]
    cost: Cost | None
    paper_name: str | None
    paper_known: tuple[Known, ...]
    steps: tuple[Step, ...]
    paper_notes: tuple[str, ...]


def _plan_of(request: Request) -> Plan:
    """The ablation's plan. Raises ConfigError in the words of this command: a key that is no override may be meant."""
    try:
        return make_plan(replace(parse([f"name={request.ablation}", *request.rest]), outputs=request.outputs))
    except ValueError as error:
        said = str(error)
        if said.startswith("name="):
            said = f"ablation={said.removeprefix('name=')}"
        elif request.rest:
            said += f"; keys of power itself: {', '.join(key for key in Request.__dataclass_fields__ if key != 'rest')}"
        raise ConfigError(said) from error


def answer(request: Request) -> Answer:
    """Everything the request asks for. Raises ValueError (ConfigError) for what cannot be planned."""
    plan = None
    if request.ablation is not None:
        plan = _plan_of(request)
    names = _metrics_of(request, plan)
    known, notes = [], []
    primary = plan.ablation.primary if plan is not None else None
    behind = len([name for name in names if name != primary])
    if plan is not None:
        spreads, notes = measured(plan, names)
        for name in names:
            if name in spreads:
                spread, mean = spreads[name]
                target = target_of(lookup(name), name, mean, request)
                level = Level(request.alpha, request.power, 1 if name == primary else behind)
                known.append(Known(name, _header(lookup(name)), mean, spread, target, level))
    table = request.paper or (plan.ablation.paper if plan is not None else None)
    first = plan is not None and plan.ablation.versus == "first"
    paper_known, steps, paper_notes = _paper(request, table, first)
    if plan is None and not paper_known:
        raise ConfigError(f"paper={table}: {'; '.join(paper_notes) or 'no quality column'}")
    return Answer(
        title=f"{plan.name}: {plan.statement.title}" if plan is not None else f"the paper's {table}",
        request=request,
        primary=primary,
        known=tuple(known),
        notes=tuple(notes),
        cost=None if plan is None else cost_of(plan),
        paper_name=table,
        paper_known=paper_known,
        steps=steps,
        paper_notes=paper_notes,
    )


def _metrics_of(request: Request, plan: Plan | None) -> list[str]:
    if plan is None:
        return []
    ours = list(plan.ablation.metrics)
    if not request.metrics:
        return ours
    return [name for name in chosen(request.metrics) if name in ours or plan.ablation.paper is None]


def _header(metric: Metric) -> str:
    return f"|ln {metric.header}|" if metric.direction == "one" else metric.header


def _paper(
    request: Request, name: str | None, first: bool
) -> tuple[tuple[Known, ...], tuple[Step, ...], tuple[str, ...]]:
    """The paper's columns under assumed spreads, and its own differences beside what can be shown."""
    if name is None:
        return (), (), ()
    table = paper.load(name)
    quality = table.quality()
    level = Level(request.alpha, request.power, max(1, len(quality)))
    known: dict[str, Known] = {}
    notes = []
    asked = chosen(request.metrics) if request.metrics else None
    for column in quality:
        metric = paper_metric(column)
        if asked is not None and metric not in asked:
            continue
        means = [row.values[column] for row in table.rows if column in row.values]
        found = assumed_sd(metric, fmean(means), _sds(request)) if means else None
        if found is None:
            notes.append(f"{column}: nothing is known of its spread over videos; give it with sd={metric}:…")
            continue
        # Var(a - b) = 2 (1 - correlation) sd^2
        video = found[0] * math.sqrt(2 * (1 - request.correlation))
        spread = Spread(request.seed_ratio * video, video, "assumed", f"sd {_number(found[0])}: {found[1]}")
        target = target_of(METRICS.get(metric), metric, fmean(means), request)
        known[column] = Known(metric, column, fmean(means), spread, target, level)
    steps = []
    for row, other in zip(table.rows[1:], [table.rows[0]] * len(table.rows) if first else table.rows, strict=False):
        for column, entry in known.items():
            if column in row.values and column in other.values:
                diff = row.values[column] - other.values[column]
                steps.append(_step(request, f"{other.arm} → {row.arm}", entry, diff, quality[column]))
    return tuple(known.values()), tuple(steps), tuple(notes)


def _step(request: Request, step: str, entry: Known, diff: float, side: str) -> Step:
    spread, level, size = entry.spread, entry.level, abs(diff)
    return Step(
        step,
        entry.name,
        entry.header,
        diff,
        (diff > 0) == (side == "higher"),
        smallest(spread, request.prompts, 1, level),
        prompts_for(spread, 1, size, level) if size else None,
        smallest(spread, request.prompts, request.seeds, level) if request.seeds > 1 else None,
        seeds_for(spread, request.prompts, size, level) if size else None,
    )


def cost_of(plan: Plan) -> Cost:
    """Seconds of all arms: as measured where they ran, else as `make ablation` estimates before it runs."""
    outputs = plan.options.outputs
    per_seed = per_video = 0.0
    by_measure, spent = 0, {"cpu_seconds": NUMBER}
    for arm in plan.arms:
        trained = [training_folder(run, outputs) for run in arm.runs.values()]
        trainings = [read_training(folder, TRAINING | spent) for folder in trained if (folder / "done.json").exists()]
        sampled = [sample_folder(run, outputs, seed) for seed, run in arm.runs.items()]
        samplings = [read_sampling(folder, SAMPLING | spent) for folder in sampled if (folder / "done.json").exists()]
        by_measure += bool(trainings and samplings)
        per_seed += fmean(d["cpu_seconds"] for d in trainings) if trainings else train_jobs(arm.first, "")[-1].seconds()
        if samplings:
            per_video += fmean(d["cpu_seconds"] / d["clips"] for d in samplings)
        else:
            per_video += Job("", "", "sample", arm.first, limit=1).seconds() - SECONDS["job"]
    n = len(plan.arms)
    measure = f"{by_measure} of {n} arms measured" if by_measure else "estimated"
    is_real = plan.arms[0].first.text is not None
    at = f"at {ASSUMED_FLOPS / 1e12:.0f} TFLOP/s where estimated" if is_real else "on one CPU core"
    return Cost(per_seed, per_video, f"{measure}; all {n} arms, training and sampling without scoring, {at}", is_real)


# ---- what is printed


def main(words: Sequence[str]) -> int:
    """Exit status: 0 printed, 2 a mistake in the call."""
    from rich.console import Console

    try:
        found = answer(request_of(words))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    for part in rendered(found):
        console.print(part)
    if found.request.out is not None:
        write_atomically(found.request.out, json.dumps(as_json(found), indent=1, default=str) + "\n")
        console.print(f"\n{found.request.out}")
    return 0
