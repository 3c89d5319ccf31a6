"""`pw power ablation=ansc`: the smallest difference that n prompts and m seeds show, before any training. Begin with
`plan_power`.

**The test** is that of the table (`benchmarks.stats.comparison`): the two-sided paired t over the differences of the
seeds; the primary metric alone at alpha, the others by Holm behind it. The others are planned with Holm's first step,
alpha over their number: a metric that passes it passes whatever the others do, if the primary metric is shown too. The
paper names no primary metric: Holm over all of its columns.

**The model.** A difference of two arms on prompt v in seed s is delta + S_s + e_sv, so its mean over n prompts and m
seeds has the variance

    seed^2 / m + video^2 / (n m)

No number of prompts reduces its square root below seed / sqrt(m). For the primary metric the answer tells whether twice
the prompts or two more seeds gain more, and whether a control variate could pay. A metric of the whole set has no value
per prompt: for the primary metric the share of the prompts comes from the jackknife over small clips
(`benchmarks.stats.resampling`), for other metrics it is unknown. With one seed there is no spread between trainings:
such a row is about two fixed checkpoints over prompts (df = n - 1), like the tables of the paper, not about the method.

**The spreads** are measured if scores of this ablation are in `outputs/scores`. Otherwise they are assumed, and the
answer says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from benchmarks import paper
from benchmarks.measure.measurement import existing_folder
from benchmarks.metrics import METRICS, lookup, metric_names
from experiments.engine.ablation import names
from experiments.engine.job import JOB_SECONDS, Job, train_jobs
from experiments.engine.outcome.result_files import mark_of
from experiments.engine.plan import Plan, make_plan, parse
from experiments.engine.power_analysis.spread import (
    MAX_COUNT,
    Level,
    Spread,
    measured_spreads,
    prompts_for,
    seeds_for,
    smallest_difference,
)
from pw.cost.rates import rate_text
from pw.io.arguments import LARGEST, Command, ConfigError, UnknownKeyError, missing_option, number, option
from pw.io.console import console
from pw.io.files import writable_file, write_json
from pw.io.paths import OUTPUTS
from pw.sample.clip_folders import sample_folder
from pw.train.record import training_folder

SEED_RATIO = 0.5
"""Assumed spread between seeds divided by that between videos: the median of 131 differences (pairs of arms and
metrics) at the tiny scale; the quartiles are 0.26 and 0.82."""

# The script of DOVER scales each branch with the LIVE-VQC statistics of the other branch:
# column -> (spread of the output of the branch, deviation by which the script divides it).
_DOVER = {"dover_technical": (0.03773, 0.07355), "dover_aesthetic": (0.07355, 0.03774)}
_ROUND_SD = {"musiq": 10.0, "niqe": 0.8}

PerMetric: TypeAlias = tuple[tuple[str, str], ...]
"""(metric, number) pairs; "" stands for every metric without its own number."""


def _per_metric(example: str, *, percent: bool) -> Callable[[str], PerMetric]:
    """A reader of `5%,psd:0.2`; `percent` allows a percent sign and a number without a metric."""

    def read(text: str) -> PerMetric:
        pairs = {}
        for word in filter(None, text.split(",")):
            name, colon, value = word.rpartition(":")
            try:
                is_positive = 0 < float(value.removesuffix("%") if percent else value) <= LARGEST
            except ValueError:
                is_positive = False
            if not is_positive or not (colon or percent):
                raise ValueError(f"expected positive numbers, e.g. {example}")
            if colon:
                lookup(name)
            pairs[name] = value
        return tuple(pairs.items())

    return read


@dataclass(frozen=True)
class PowerOptions:
    """The options of `pw power`: a design of prompts and seeds, and the difference to show."""

    ablation: str | None = option(None, "the ablation that is planned")
    paper: str | None = option(None, "a table of the paper, alone or in addition: table_9_3")
    prompts: int = option(100, "evaluation prompts of a seed", read=number(2, MAX_COUNT))
    seeds: int = option(3, "trainings of an arm", read=number(1, MAX_COUNT))
    metrics: tuple[str, ...] = option(
        (), "only these metrics", read=lambda text: tuple(metric_names(filter(None, text.split(","))))
    )
    of: PerMetric = option(
        (),
        "the difference to be shown: 0.5, 5% of the mean, psd:0.2,swd:5%",
        read=_per_metric("of=0.5, of=5% or of=psd:0.2,swd:5%", percent=True),
    )
    sd: PerMetric = option(
        (),
        "standard deviation over videos, for the paper's metrics: musiq:9,niqe:0.5",
        read=_per_metric("sd=musiq:9,niqe:0.5", percent=False),
    )
    correlation: float = option(0.5, "assumed between arms, over videos", read=number(-1, 1, float, excluded=(1,)))
    seed_ratio: float = option(
        SEED_RATIO, "assumed spread between seeds over that between videos", read=number(0, 100, float)
    )
    power: float = option(0.8, "the chance to show a true difference", read=number(0, 1, float, excluded=(0, 1)))
    alpha: float = option(0.05, "the two-sided error of the test", read=number(0, 1, float, excluded=(0, 1)))
    outputs: Path = option(OUTPUTS, "where scores are read from", read=existing_folder)
    out: Path | None = option(None, "a JSON file for the answer", read=writable_file("out"))
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.ablation and self.paper is None:
            message = (
                f"ablation=… is missing: one of {', '.join(names())}; or a table of the paper: "
                f"paper={', '.join(paper.names())}"
            )
            raise missing_option(PowerOptions, "ablation", message, self.overrides)
        if self.ablation is None and self.overrides:
            raise ConfigError(f"{self.overrides[0]}: without ablation=… there is nothing to override")


@dataclass(frozen=True)
class MetricSpread:
    """The spread of a metric, its printed header and mean, the difference to show (`target`) and the test level."""

    name: str
    header: str
    mean: float
    spread: Spread
    target: float
    level: Level


@dataclass(frozen=True)
class Cost:
    """CPU- or GPU-seconds of all arms, per seed, and per prompt and seed.

    is_real_scale: whether this is one of Wan's scales, which the metrics of the paper need
    """

    per_seed: float
    per_video: float
    basis: str
    is_real_scale: bool

    def seconds(self, prompts: int, seeds: int) -> float:
        """Seconds of a design."""
        return seeds * (self.per_seed + prompts * self.per_video)


@dataclass(frozen=True)
class PowerPlan:
    """The answer of `pw power`: metrics of the ablation with measured spreads, of the paper with assumed spreads.

    steps: the printed differences of the paper, between compared rows, as in the JSON answer
    """

    title: str
    options: PowerOptions
    primary: str | None
    cost: Cost | None
    spreads: list[MetricSpread]
    notes: list[str]
    paper_name: str | None
    paper_spreads: list[MetricSpread]
    paper_notes: list[str]
    steps: list[dict[str, Any]]


def plan_power(options: PowerOptions) -> PowerPlan:
    """The answer of `pw power`. Raises ValueError (ConfigError) if nothing can be planned."""
    if options.ablation is None:
        paper_spreads, notes, steps = _paper_part(options, options.paper or "")
        if not paper_spreads:
            raise ConfigError(f"paper={options.paper}: {'; '.join(notes) or 'no quality column'}")
        title = f"the paper's {options.paper}"
        return PowerPlan(title, options, None, None, [], [], options.paper, paper_spreads, notes, steps)
    try:
        words = [f"name={options.ablation}", *options.overrides]
        plan = make_plan(replace(parse(words), outputs=options.outputs))
    except UnknownKeyError:
        raise
    except ConfigError as error:
        raise ConfigError(re.sub("^name=", "ablation=", str(error))) from error
    table = options.paper or plan.ablation.paper
    paper_answer = _paper_part(options, table, versus_first=plan.ablation.versus == "first") if table else ([], [], [])
    title = f"{plan.name}: {plan.statement.title}"
    primary, cost = plan.ablation.primary, cost_of(plan)
    return PowerPlan(title, options, primary, cost, *_suite_part(options, plan), table, *paper_answer)


def _suite_part(options: PowerOptions, plan: Plan) -> tuple[list[MetricSpread], list[str]]:
    """(measured spreads of the metrics of the ablation, notes on metrics without one)."""
    metrics, primary = list(plan.ablation.metrics), plan.ablation.primary
    if options.metrics:
        metrics = [name for name in metric_names(options.metrics) if name in metrics or plan.ablation.paper is None]
    secondary = sum(name != primary for name in metrics)
    by_metric, notes = measured_spreads(plan, metrics)
    spreads = []
    for name, (spread, mean) in by_metric.items():
        metric = lookup(name)
        header = f"|ln {metric.header}|" if metric.direction == "one" else metric.header
        level = Level(options.alpha, options.power, 1 if name == primary else secondary)
        spreads.append(MetricSpread(name, header, mean, spread, target_of(name, mean, options), level))
    return spreads, notes


def _paper_part(
    options: PowerOptions, name: str, *, versus_first: bool = False
) -> tuple[list[MetricSpread], list[str], list[dict[str, Any]]]:
    """(assumed spreads of the columns of a paper table, notes on other columns, the printed differences)."""
    table = paper.load(name)
    quality = table.quality()
    level = Level(options.alpha, options.power, max(1, len(quality)))
    selected = metric_names(options.metrics) if options.metrics else None
    user_sds = {name: float(sd) for name, sd in options.sd}
    spreads, notes, steps = [], [], []
    for column in quality:
        metric = next((metric.name for metric in METRICS.values() if metric.header == column), column)
        if selected is not None and metric not in selected:
            continue
        values = [row.values[column] for row in table.rows if column in row.values]
        sd = assumed_sd(metric, fmean(values), user_sds) if values else None
        if sd is None:
            notes.append(f"{column}: its spread over videos is unknown; set sd={metric}:…")
            continue
        # Var(a - b) = 2 (1 - correlation) sd^2
        video = sd[0] * math.sqrt(2 * (1 - options.correlation))
        spread = Spread(options.seed_ratio * video, video, "assumed", f"sd {number_text(sd[0])}: {sd[1]}")
        mean = fmean(values)
        spreads.append(MetricSpread(metric, column, mean, spread, target_of(metric, mean, options), level))
    for index, row in enumerate(table.rows[1:]):
        reference = table.rows[0 if versus_first else index]
        for entry in spreads:
            if entry.header in row.values and entry.header in reference.values:
                diff = row.values[entry.header] - reference.values[entry.header]
                improves = (diff > 0) == (quality[entry.header] == "higher")
                labels = {"step": f"{reference.arm} → {row.arm}", "metric": entry.name, "header": entry.header}
                steps.append({**labels, "diff": diff, "improves": improves, **_needs(options, entry, abs(diff))})
    return spreads, notes, steps


def _needs(options: PowerOptions, entry: MetricSpread, size: float) -> dict[str, float | None]:
    """The smallest differences that the design shows, and the prompts and seeds that `size` needs."""
    spread, level, n, m = entry.spread, entry.level, options.prompts, options.seeds
    return {
        "shown_by_checkpoints": smallest_difference(spread, n, 1, level),
        "prompts_by_checkpoints": prompts_for(spread, 1, size, level) if size else None,
        "shown": smallest_difference(spread, n, m, level) if m > 1 else None,
        "seeds_needed": seeds_for(spread, n, size, level) if size else None,
    }


def assumed_sd(name: str, mean: float, user_sds: Mapping[str, float]) -> tuple[float, str] | None:
    """(assumed spread of a metric over the videos of one system in printed units, its source); None if unknown. The
    paper prints no spreads."""
    if name in user_sds:
        return user_sds[name], "given"
    if name in _DOVER:
        spread, divisor = _DOVER[name]
        p = mean / 100
        return 100 * p * (1 - p) * spread / divisor, f"LIVE-VQC's spread of the raw branch at {mean:g} (delta method)"
    if name in _ROUND_SD:
        return _ROUND_SD[name], f"a round number without a source; set yours with sd={name}:…"
    metric = METRICS.get(name)
    if metric is None or metric.family != "vbench" or not 0 <= mean <= 100:
        return None
    bound = math.sqrt(mean * (100 - mean))
    if name == "dynamic_degree":
        return bound, f"yes or no per video, at {mean:g} %"
    return bound, f"the largest for values in [0, 100] with mean {mean:g}; set yours with sd={name}:…"


def target_of(name: str, mean: float, options: PowerOptions) -> float:
    """The difference to show, in printed units: by default half a point of a metric in points, else a tenth of its
    mean."""
    targets, metric = dict(options.of), METRICS.get(name)
    in_points = metric is None or metric.scale == "0-100" or metric.printed == 100
    target = targets.get(name) or targets.get("") or ("0.5" if in_points else "10%")
    if not target.endswith("%"):
        return float(target)
    share = float(target[:-1]) / 100
    is_ratio = metric is not None and metric.direction == "one"
    return math.log1p(share) if is_ratio else share * abs(mean or 1.0)


def cost_of(plan: Plan) -> Cost:
    """The cost of all arms: measured for arms that have run, else the estimate of `make ablation`."""
    outputs = plan.options.outputs
    per_seed = per_video = 0.0
    measured_arms = 0
    for arm in plan.arms:
        training_folders = [training_folder(run, outputs) for run in arm.runs.values()]
        trainings = [mark for folder in training_folders if (mark := mark_of(folder))]
        sample_folders = [sample_folder(run, outputs, seed) for seed, run in arm.runs.items()]
        samplings = [mark for folder in sample_folders if (mark := mark_of(folder))]
        measured_arms += bool(trainings and samplings)
        per_seed += fmean(m["cpu_seconds"] for m in trainings) if trainings else train_jobs(arm.first, "")[-1].seconds()
        if samplings:
            per_video += fmean(mark["cpu_seconds"] / mark["clips"] for mark in samplings)
        else:
            per_video += Job("", "", "sample", arm.first, limit=1).seconds() - JOB_SECONDS
    n = len(plan.arms)
    basis = f"{measured_arms} of {n} arms measured" if measured_arms else "estimated"
    is_real = plan.arms[0].first.text is not None
    rate = f"{rate_text(plan.arms[0].first)}, where estimated" if is_real else "on one CPU core"
    return Cost(per_seed, per_video, f"{basis}; all {n} arms, training and sampling without scoring, {rate}", is_real)


def number_text(value: float | None) -> str:
    """A spread or difference as text; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def run(options: PowerOptions) -> int:
    """Print the answer; exit status 0. Raises ConfigError if nothing can be planned."""
    from experiments.engine.power_analysis.power_report import as_json, renderables

    answer = plan_power(options)
    terminal = console()
    for part in renderables(answer, terminal.width):
        terminal.print(part)
    if options.out is not None:
        write_json(options.out, as_json(answer))
        terminal.print(f"\n{options.out}")
    return 0


main = Command(PowerOptions, run)
