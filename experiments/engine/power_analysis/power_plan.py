"""What a design of prompts and seeds shows: per metric of an ablation, and beside the paper's own differences."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from statistics import fmean

from benchmarks import paper
from benchmarks.metrics import METRICS, Metric, chosen, lookup
from experiments.engine.job import ASSUMED_FLOPS, SECONDS, Job, train_jobs
from experiments.engine.outcome.written import NUMBER, SAMPLING, TRAINING, read_sampling, read_training
from experiments.engine.plan import Plan, make_plan, parse
from experiments.engine.power_analysis.assumed_spread import assumed_sd, paper_metric
from experiments.engine.power_analysis.measured_spread import measured
from experiments.engine.power_analysis.power_options import PowerOptions
from experiments.engine.power_analysis.spread import (
    Level,
    Spread,
    number_text,
    prompts_for,
    seeds_for,
    smallest,
)
from pw.io.arguments import ConfigError, UnknownKeyError
from pw.sample.evaluate import sample_folder
from pw.train.record import training_folder

POINTS = 0.5
SHARE = 0.1
"""What is asked for by default: half a point of a metric that is printed in points, else a tenth of its mean."""


@dataclass(frozen=True)
class Known:
    """A metric with a known spread: how it is printed, its mean, the difference to be shown, and the test's level."""

    name: str
    header: str
    mean: float | None
    spread: Spread
    target: float
    level: Level


def target_of(metric: Metric | None, name: str, mean: float | None, options: PowerOptions) -> float:
    """The difference that is asked for, in printed units."""
    asked = dict(options.of)
    word = asked.get(name, asked.get(""))
    is_ratio = metric is not None and metric.direction == "one"
    in_points = metric is None or metric.scale == "0-100" or metric.printed == 100
    if word is None:
        word = str(POINTS) if in_points else f"{100 * SHARE:g}%"
    if not word.endswith("%"):
        return float(word)
    share = float(word[:-1]) / 100
    return math.log1p(share) if is_ratio else share * abs(mean or 1.0)


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
        """Seconds of a whole design."""
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
class PowerPlan:
    """The answer: what the ablation's own metrics show, and what the paper's do under assumed spreads."""

    title: str
    options: PowerOptions
    primary: str | None
    known: tuple[Known, ...]
    notes: tuple[str, ...]
    cost: Cost | None
    paper_name: str | None
    paper_known: tuple[Known, ...]
    steps: tuple[Step, ...]
    paper_notes: tuple[str, ...]


def _plan_of(options: PowerOptions) -> Plan:
    """The ablation's plan. Raises ConfigError."""
    try:
        return make_plan(replace(parse([f"name={options.ablation}", *options.overrides]), outputs=options.outputs))
    except UnknownKeyError:
        raise
    except ConfigError as error:
        raise ConfigError(re.sub("^name=", "ablation=", str(error))) from error


def plan_power(options: PowerOptions) -> PowerPlan:
    """The answer to `pw power`. Raises ValueError (ConfigError) for what cannot be planned."""
    plan = None
    if options.ablation is not None:
        plan = _plan_of(options)
    names = _metrics_of(options, plan)
    known, notes = [], []
    primary = plan.ablation.primary if plan is not None else None
    behind = len([name for name in names if name != primary])
    if plan is not None:
        spreads, notes = measured(plan, names)
        for name in names:
            if name in spreads:
                spread, mean = spreads[name]
                target = target_of(lookup(name), name, mean, options)
                level = Level(options.alpha, options.power, 1 if name == primary else behind)
                known.append(Known(name, _header(lookup(name)), mean, spread, target, level))
    table = options.paper or (plan.ablation.paper if plan is not None else None)
    first = plan is not None and plan.ablation.versus == "first"
    paper_known, steps, paper_notes = _paper(options, table, first)
    if plan is None and not paper_known:
        raise ConfigError(f"paper={table}: {'; '.join(paper_notes) or 'no quality column'}")
    return PowerPlan(
        title=f"{plan.name}: {plan.statement.title}" if plan is not None else f"the paper's {table}",
        options=options,
        primary=primary,
        known=tuple(known),
        notes=tuple(notes),
        cost=None if plan is None else cost_of(plan),
        paper_name=table,
        paper_known=paper_known,
        steps=steps,
        paper_notes=paper_notes,
    )


def _metrics_of(options: PowerOptions, plan: Plan | None) -> list[str]:
    if plan is None:
        return []
    ours = list(plan.ablation.metrics)
    if not options.metrics:
        return ours
    return [name for name in chosen(options.metrics) if name in ours or plan.ablation.paper is None]


def _header(metric: Metric) -> str:
    return f"|ln {metric.header}|" if metric.direction == "one" else metric.header


def _paper(
    options: PowerOptions, name: str | None, first: bool
) -> tuple[tuple[Known, ...], tuple[Step, ...], tuple[str, ...]]:
    """The paper's columns under assumed spreads, and its own differences beside what can be shown."""
    if name is None:
        return (), (), ()
    table = paper.load(name)
    quality = table.quality()
    level = Level(options.alpha, options.power, max(1, len(quality)))
    known: dict[str, Known] = {}
    notes = []
    asked = chosen(options.metrics) if options.metrics else None
    for column in quality:
        metric = paper_metric(column)
        if asked is not None and metric not in asked:
            continue
        means = [row.values[column] for row in table.rows if column in row.values]
        assumed = assumed_sd(metric, fmean(means), {name: float(sd) for name, sd in options.sd}) if means else None
        if assumed is None:
            notes.append(f"{column}: nothing is known of its spread over videos; give it with sd={metric}:…")
            continue
        # Var(a - b) = 2 (1 - correlation) sd^2
        video = assumed[0] * math.sqrt(2 * (1 - options.correlation))
        spread = Spread(options.seed_ratio * video, video, "assumed", f"sd {number_text(assumed[0])}: {assumed[1]}")
        target = target_of(METRICS.get(metric), metric, fmean(means), options)
        known[column] = Known(metric, column, fmean(means), spread, target, level)
    steps = []
    for row, other in zip(table.rows[1:], [table.rows[0]] * len(table.rows) if first else table.rows, strict=False):
        for column, entry in known.items():
            if column in row.values and column in other.values:
                diff = row.values[column] - other.values[column]
                steps.append(_step(options, f"{other.arm} → {row.arm}", entry, diff, quality[column]))
    return tuple(known.values()), tuple(steps), tuple(notes)


def _step(options: PowerOptions, step: str, entry: Known, diff: float, side: str) -> Step:
    spread, level, size = entry.spread, entry.level, abs(diff)
    return Step(
        step,
        entry.name,
        entry.header,
        diff,
        (diff > 0) == (side == "higher"),
        smallest(spread, options.prompts, 1, level),
        prompts_for(spread, 1, size, level) if size else None,
        smallest(spread, options.prompts, options.seeds, level) if options.seeds > 1 else None,
        seeds_for(spread, options.prompts, size, level) if size else None,
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
