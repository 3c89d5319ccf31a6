"""`pw power ablation=ansc`: the smallest difference that n prompts and m seeds show, before anything is trained.

**The test that is planned for** is the table's (`benchmarks.stats.comparison`): the paired t over the seeds'
differences, two-sided; the primary metric alone at alpha, the others by Holm behind it. The others are planned with
Holm's first step, alpha over their number: what passes it passes whatever the others do, where the primary is shown
too. The paper names no primary metric: of its columns, Holm over all.

**The model.** A difference of two arms on prompt v in seed s is delta + S_s + e_sv, so its mean over n prompts and m
seeds has the variance

    seed^2 / m + video^2 / (n m)

and seeds buy what prompts cannot: below seed / sqrt(m) no number of prompts goes. For the primary metric the answer
says what buys most, twice the prompts or two more seeds, and whether a control variate could pay. A metric of the whole
set has no values per prompt: for the primary metric the share of the prompts comes from the jackknife over its small
clips (`benchmarks.stats.resampling`), for others it is not known. With one seed there is no spread between trainings:
that row is about two given checkpoints over prompts (df = n - 1), as the paper's own tables are, not about the method.

**The spreads** are measured where scores of this ablation are in `outputs/scores`; otherwise they are assumed, and the
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
from benchmarks.metrics import METRICS, chosen, lookup
from experiments.engine.ablation import names
from experiments.engine.job import ASSUMED_FLOPS, SECONDS, Job, train_jobs
from experiments.engine.outcome.written import NUMBER, SAMPLING, TRAINING, mark_of
from experiments.engine.plan import Plan, make_plan, parse
from experiments.engine.power_analysis.spread import (
    MOST,
    Level,
    Spread,
    measured,
    prompts_for,
    seeds_for,
    smallest,
)
from experiments.engine.terminal import console
from pw.io.arguments import Command, ConfigError, UnknownKeyError, number, option
from pw.io.files import writable_file, write_json
from pw.io.paths import OUTPUTS
from pw.sample.evaluate import sample_folder
from pw.train.record import training_folder

SEED_RATIO = 0.5
"""Spread between seeds over that between videos, assumed where none was measured: the median of 131 differences (pairs
of arms and metrics) at the tiny scale, whose quartiles are 0.26 and 0.82."""

# DOVER's own script puts the technical branch through the aesthetic branch's statistics of LIVE-VQC, and the other way
# round: column -> (spread of the branch's own output there, the deviation it is divided by).
_DOVER = {"dover_technical": (0.03773, 0.07355), "dover_aesthetic": (0.07355, 0.03774)}
_ROUND = {"musiq": 10.0, "niqe": 0.8}

PerMetric: TypeAlias = tuple[tuple[str, str], ...]
"""(metric, number) pairs; "" is every metric that has no number of its own."""


def _per_metric(example: str, *, percent: bool) -> Callable[[str], PerMetric]:
    """Reads `5%,psd:0.2`; with percent a number may have a percent sign, and need not name its metric."""

    def read(text: str) -> PerMetric:
        pairs = {}
        for word in filter(None, text.split(",")):
            name, colon, value = word.rpartition(":")
            try:
                is_positive = float(value.removesuffix("%") if percent else value) > 0
            except ValueError:
                is_positive = False
            if not is_positive or not (colon or percent):
                raise ValueError(f"wants positive numbers, e.g. {example}")
            if colon:
                lookup(name)
            pairs[name] = value
        return tuple(pairs.items())

    return read


@dataclass(frozen=True)
class PowerOptions:
    """A design of prompts and seeds, and the difference that it is to show."""

    ablation: str | None = option(None, "the ablation that is planned")
    paper: str | None = option(None, "a table of the paper instead, or beside it: table_9_3")
    prompts: int = option(100, "evaluation prompts of a seed", read=number(2, MOST))
    seeds: int = option(3, "trainings of an arm", read=number(1, MOST))
    metrics: tuple[str, ...] = option((), "only these metrics")
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
    outputs: Path = option(OUTPUTS, "where scores are looked for")
    out: Path | None = option(None, "a JSON file for the answer", read=writable_file("out"))
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.ablation and self.paper is None:
            raise ConfigError(
                f"ablation=… is missing: one of {', '.join(names())}; or a table of the paper: "
                f"paper={', '.join(paper.names())}"
            )
        if self.ablation is None and self.overrides:
            raise ConfigError(f"{self.overrides[0]}: without ablation=… there is nothing to override")


@dataclass(frozen=True)
class Known:
    """A metric with a known spread: how it is printed, its mean, the difference to be shown, and the test's level."""

    name: str
    header: str
    mean: float
    spread: Spread
    target: float
    level: Level


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
class PowerPlan:
    """The answer: what the ablation's own metrics show, and what the paper's do under assumed spreads.

    steps: the paper's printed differences, each row against the one it is compared with, as they are written.
    """

    title: str
    options: PowerOptions
    primary: str | None
    cost: Cost | None
    known: list[Known]
    notes: list[str]
    paper_name: str | None
    paper_known: list[Known]
    paper_notes: list[str]
    steps: list[dict[str, Any]]


def plan_power(options: PowerOptions) -> PowerPlan:
    """The answer to `pw power`. Raises ValueError (ConfigError) for what cannot be planned."""
    if options.ablation is None:
        paper_known, notes, steps = _paper(options, options.paper or "")
        if not paper_known:
            raise ConfigError(f"paper={options.paper}: {'; '.join(notes) or 'no quality column'}")
        title = f"the paper's {options.paper}"
        return PowerPlan(title, options, None, None, [], [], options.paper, paper_known, notes, steps)
    try:
        words = [f"name={options.ablation}", *options.overrides]
        plan = make_plan(replace(parse(words), outputs=options.outputs))
    except UnknownKeyError:
        raise
    except ConfigError as error:
        raise ConfigError(re.sub("^name=", "ablation=", str(error))) from error
    table = options.paper or plan.ablation.paper
    of_paper = _paper(options, table, versus_first=plan.ablation.versus == "first") if table else ([], [], [])
    title = f"{plan.name}: {plan.statement.title}"
    return PowerPlan(title, options, plan.ablation.primary, cost_of(plan), *_ours(options, plan), table, *of_paper)


def _ours(options: PowerOptions, plan: Plan) -> tuple[list[Known], list[str]]:
    """The ablation's own metrics, as far as their spread is measured, and notes on the others."""
    asked, primary = list(plan.ablation.metrics), plan.ablation.primary
    if options.metrics:
        asked = [name for name in chosen(options.metrics) if name in asked or plan.ablation.paper is None]
    behind = sum(name != primary for name in asked)
    spreads, notes = measured(plan, asked)
    known = []
    for name, (spread, mean) in spreads.items():
        metric = lookup(name)
        header = f"|ln {metric.header}|" if metric.direction == "one" else metric.header
        level = Level(options.alpha, options.power, 1 if name == primary else behind)
        known.append(Known(name, header, mean, spread, target_of(name, mean, options), level))
    return known, notes


def _paper(
    options: PowerOptions, name: str, *, versus_first: bool = False
) -> tuple[list[Known], list[str], list[dict[str, Any]]]:
    """The columns of a table under assumed spreads, notes on others, and its own differences beside what is shown."""
    table = paper.load(name)
    quality = table.quality()
    level = Level(options.alpha, options.power, max(1, len(quality)))
    asked = chosen(options.metrics) if options.metrics else None
    given = {name: float(sd) for name, sd in options.sd}
    known, notes, steps = [], [], []
    for column in quality:
        metric = next((metric.name for metric in METRICS.values() if metric.header == column), column)
        if asked is not None and metric not in asked:
            continue
        printed = [row.values[column] for row in table.rows if column in row.values]
        assumed = assumed_sd(metric, fmean(printed), given) if printed else None
        if assumed is None:
            notes.append(f"{column}: nothing is known of its spread over videos; give it with sd={metric}:…")
            continue
        # Var(a - b) = 2 (1 - correlation) sd^2
        video = assumed[0] * math.sqrt(2 * (1 - options.correlation))
        spread = Spread(options.seed_ratio * video, video, "assumed", f"sd {number_text(assumed[0])}: {assumed[1]}")
        mean = fmean(printed)
        known.append(Known(metric, column, mean, spread, target_of(metric, mean, options), level))
    for place, row in enumerate(table.rows[1:]):
        other = table.rows[0 if versus_first else place]
        for entry in known:
            if entry.header in row.values and entry.header in other.values:
                diff = row.values[entry.header] - other.values[entry.header]
                improves = (diff > 0) == (quality[entry.header] == "higher")
                about = {"step": f"{other.arm} → {row.arm}", "metric": entry.name, "header": entry.header}
                steps.append({**about, "diff": diff, "improves": improves, **_shown(options, entry, abs(diff))})
    return known, notes, steps


def _shown(options: PowerOptions, entry: Known, size: float) -> dict[str, float | None]:
    """What the design shows beside a difference of this size, and what it would take to show it."""
    spread, level, n, m = entry.spread, entry.level, options.prompts, options.seeds
    return {
        "shown_by_checkpoints": smallest(spread, n, 1, level),
        "prompts_by_checkpoints": prompts_for(spread, 1, size, level) if size else None,
        "shown": smallest(spread, n, m, level) if m > 1 else None,
        "seeds_needed": seeds_for(spread, n, size, level) if size else None,
    }


def assumed_sd(name: str, mean: float, given: Mapping[str, float]) -> tuple[float, str] | None:
    """Spread of a metric over videos of one system in printed units, and what it rests on; None if nothing is known.

    The paper prints none.
    """
    if name in given:
        return given[name], "given"
    if name in _DOVER:
        spread, divisor = _DOVER[name]
        p = mean / 100
        return 100 * p * (1 - p) * spread / divisor, f"LIVE-VQC's spread of the raw branch at {mean:g} (delta method)"
    if name in _ROUND:
        return _ROUND[name], f"a round number without a source, yours is sd={name}:…"
    metric = METRICS.get(name)
    if metric is None or metric.family != "vbench" or not 0 <= mean <= 100:
        return None
    bound = math.sqrt(mean * (100 - mean))
    if name == "dynamic_degree":
        return bound, f"yes or no per video, at {mean:g} %"
    return bound, f"the most that values in [0, 100] with mean {mean:g} can have; yours is sd={name}:…"


def target_of(name: str, mean: float, options: PowerOptions) -> float:
    """The difference that is to be shown, in printed units.

    By default half a point of a metric that is printed in points, else a tenth of its mean.
    """
    asked, metric = dict(options.of), METRICS.get(name)
    in_points = metric is None or metric.scale == "0-100" or metric.printed == 100
    word = asked.get(name) or asked.get("") or ("0.5" if in_points else "10%")
    if not word.endswith("%"):
        return float(word)
    share = float(word[:-1]) / 100
    is_ratio = metric is not None and metric.direction == "one"
    return math.log1p(share) if is_ratio else share * abs(mean or 1.0)


def cost_of(plan: Plan) -> Cost:
    """Seconds of all arms: as measured where they ran, else as `make ablation` estimates before it runs."""
    outputs = plan.options.outputs
    per_seed = per_video = 0.0
    by_measure, spent = 0, {"cpu_seconds": NUMBER}
    for arm in plan.arms:
        trained = [training_folder(run, outputs) for run in arm.runs.values()]
        trainings = [mark for folder in trained if (mark := mark_of(folder, TRAINING | spent))]
        sampled = [sample_folder(run, outputs, seed) for seed, run in arm.runs.items()]
        samplings = [mark for folder in sampled if (mark := mark_of(folder, SAMPLING | spent))]
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


def number_text(value: float | None) -> str:
    """A spread or difference as it is printed; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def run(options: PowerOptions) -> int:
    """Print the answer; exit status 0. Raises ConfigError for what cannot be planned."""
    from experiments.engine.power_analysis.power_report import as_json, rendered

    answer = plan_power(options)
    terminal = console()
    for part in rendered(answer):
        terminal.print(part)
    if options.out is not None:
        write_json(options.out, as_json(answer))
        terminal.print(f"\n{options.out}")
    return 0


main = Command(PowerOptions, run)
