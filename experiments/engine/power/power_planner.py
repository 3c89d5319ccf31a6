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

import csv
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import paper
from benchmarks.metrics import METRICS, Metric, chosen, lookup, protocols
from benchmarks.stats.jackknife import GROUPS, jackknife_variance, leave_out
from experiments.engine.job import ASSUMED_FLOPS, SECONDS, Job, score_request, train_jobs
from experiments.engine.outcome.written import NUMBER, SAMPLING, TRAINING, read_sampling, read_scores, read_training
from experiments.engine.plan import Arm, Plan, make_plan, parse
from experiments.engine.power.spread import (
    MOST,
    Level,
    Purchase,
    Spread,
    components,
    control_variate_pays_from,
    pooled,
    prompts_for,
    purchases,
    seeds_for,
    smallest,
    with_jackknife,
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


def measured(plan: Plan, names: Sequence[str]) -> tuple[dict[str, tuple[Spread, float]], list[str]]:
    """metric -> (spread, mean of all arms) from the scores on disk, and what could not be used."""
    scores, jackknife = _Scores(plan.options.outputs), _Jackknife(plan)
    found, notes = {}, []
    for name in names:
        metric = lookup(name)
        pairs, means, seeds, videos = [], [], set(), 0
        for arm, other in _pairs(plan):
            rows, variances = [], []
            for seed in sorted(arm.runs.keys() & other.runs.keys()):
                ids = (arm.runs[seed].sample_signature(seed), other.runs[seed].sample_signature(seed))
                both = scores.pair(*ids, metric)
                if both is not None:
                    rows.append(_differences(*both, metric))
                    means += [m for values in both if (m := _mean(values)) is not None]
                    seeds.add(seed)
                    videos = max(videos, scores.count(ids[0], name))
                    if name == plan.ablation.primary and metric.level == "set":
                        variances.append(jackknife.variance(arm, other, seed, metric))
            if len(rows) > 1 and all(rows):
                pair = components(rows)
                known = [variance for variance in variances if variance is not None]
                pairs.append(with_jackknife(pair, known, GROUPS, videos) if known else pair)
        of = f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''} of arms, {len(seeds)} seeds, {videos} videos"
        factor = 1.0 if metric.direction == "one" else metric.printed
        spread = pooled(pairs, factor, videos, of, of_set=metric.level == "set") if pairs else None
        if spread is None:
            notes.append(f"{name}: {scores.why_not(plan, metric)}")
        else:
            found[name] = (spread, fmean(means) * metric.printed)
    return found, notes


def _pairs(plan: Plan) -> Iterator[tuple[Arm, Arm]]:
    by_name = {arm.name: arm for arm in plan.arms}
    for arm in plan.arms:
        if arm.above is not None:
            yield arm, by_name[arm.above]


def _differences(a: Mapping[str, float], b: Mapping[str, float], metric: Metric) -> list[float]:
    values = [(a[name], b[name]) for name in a if name in b]
    if metric.direction != "one":
        return [x - y for x, y in values]
    return [abs(math.log(x)) - abs(math.log(y)) for x, y in values if x > 0 and y > 0]


def _mean(values: Mapping[str, float]) -> float | None:
    return fmean(values.values()) if values else None


class _Jackknife:
    """What the clips on disk bring to the variance of a difference in a metric of the whole set."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.left_out: dict[tuple[str, int], list[float] | None] = {}

    def variance(self, arm: Arm, other: Arm, seed: int, metric: Metric) -> float | None:
        """Of arm - other in this seed; None where clips are not there, are too few, or not small."""
        both = [self._left_out(one, seed, metric) for one in (arm, other)]
        if both[0] is None or both[1] is None:
            return None
        left, right = ({str(group): value for group, value in enumerate(values)} for values in (both[0], both[1]))
        return jackknife_variance(_differences(left, right, metric))

    def _left_out(self, arm: Arm, seed: int, metric: Metric) -> list[float] | None:
        key = (arm.name, seed)
        if key not in self.left_out:
            self.left_out[key] = self._measure(arm, seed, metric)
        return self.left_out[key]

    def _measure(self, arm: Arm, seed: int, metric: Metric) -> list[float] | None:
        run, outputs = arm.runs[seed], self.plan.options.outputs
        if run.text is not None:  # a video of Wan's scales is measured in minutes
            return None
        solution = sample_folder(run.solution, outputs, seed) if "solution" in metric.needs else None
        asked = score_request(self.plan, arm.name, run, sample_folder(run, outputs, seed), solution, seed)
        folders = {"video": asked["videos"], **{need: asked[need] for need in metric.needs}}
        try:
            return leave_out(metric.name, {what: Path(path) for what, path in folders.items() if path is not None})
        except ValueError:  # no clips there: they were removed, or sampled elsewhere
            return None


class _Scores:
    """The scores under `outputs/scores`, by the signature of the clips they are of."""

    def __init__(self, outputs: Path) -> None:
        self.by_signature: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
        for path in sorted((outputs / "scores").glob("*/scores.json")):
            result = read_scores(path)
            contract = result["contract"]
            if contract.get("arm") not in ("floor", "ceiling"):  # of real clips, of many steps: not of the arm
                self.by_signature.setdefault(str(contract.get("signature")), []).append((path.parent, result))

    def pair(self, a: str, b: str, metric: Metric) -> tuple[dict[str, float], dict[str, float]] | None:
        """Both values per video (one named "" for a set), of the metric's protocol and against the same real clips."""
        for folder, left in self._of(a, metric):
            for other, right in self._of(b, metric):
                if left["contract"].get("clips") == right["contract"].get("clips"):
                    return _values(folder, left, metric), _values(other, right, metric)
        return None

    def count(self, signature: str, name: str) -> int:
        """How many videos a score was made of."""
        return max(result["n_videos"].get(name, 0) for _, result in self.by_signature[signature])

    def why_not(self, plan: Plan, metric: Metric) -> str:
        """Why a metric's spread is not measured."""
        ids = [run.sample_signature(seed) for _, seed, run in plan.runs()]
        if any(metric.name in r["metrics"] and r["contract"].get("arm") for i in ids for _, r in self._all(i)):
            is_current = any(self._of(i, metric) for i in ids)
            return "fewer than two seeds of a pair of arms" if is_current else "scored by another protocol or settings"
        return f"not scored yet (`make ablation name={plan.name}` does)"

    def _all(self, signature: str) -> list[tuple[Path, dict[str, Any]]]:
        return self.by_signature.get(signature, [])

    def _of(self, signature: str, metric: Metric) -> list[tuple[Path, dict[str, Any]]]:
        wanted = protocols([metric.name])[metric.name]
        return [
            (folder, result)
            for folder, result in self._all(signature)
            if metric.name in result["metrics"] and result["contract"].get("metrics", {}).get(metric.name) == wanted
        ]


def _values(folder: Path, result: Mapping[str, Any], metric: Metric) -> dict[str, float]:
    if metric.level == "set":
        return {"": result["metrics"][metric.name]}
    path = folder / "scores.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["video"]: float(row[metric.name]) for row in csv.DictReader(file) if row.get(metric.name)}
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{path}: is damaged ({error!r}); remove {folder}, and `make ablation` scores again"
        ) from error


# DOVER's own script puts the technical branch through the aesthetic branch's statistics of LIVE-VQC, and the other way
# round (evaluation.md 2.1): column -> (spread of the branch's own output there, the deviation it is divided by).
_DOVER = {"dover_technical": (0.03773, 0.07355), "dover_aesthetic": (0.07355, 0.03774)}
_ROUND = {"musiq": 10.0, "niqe": 0.8}


def assumed_sd(name: str, mean: float, given: Mapping[str, float]) -> tuple[float, str] | None:
    """Spread of a metric over videos of one system in printed units, and what it rests on; None if nothing is known."""
    if name in given:
        return given[name], "given"
    if name in _DOVER:
        own, divisor = _DOVER[name]
        p = mean / 100
        return 100 * p * (1 - p) * own / divisor, f"LIVE-VQC's spread of the raw branch at {mean:g} (delta method)"
    if name in _ROUND:
        return _ROUND[name], f"a round number without a source, yours is sd={name}:…"
    metric = METRICS.get(name)
    if metric is None or metric.family != "vbench" or not 0 <= mean <= 100:
        return None
    bound = math.sqrt(mean * (100 - mean))
    if name == "dynamic_degree":
        return bound, f"yes or no per video, at {mean:g} %"
    return bound, f"the most that values in [0, 100] with mean {mean:g} can have; yours is sd={name}:…"


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


def paper_metric(column: str) -> str:
    """The registry's name of a paper's column, by its header; the column itself if there is none."""
    return next((metric.name for metric in METRICS.values() if metric.header == column), column)


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


def rendered(found: Answer) -> Iterator[Any]:
    """The answer for a terminal: a summary, the grid, the paper's differences, and what all of it rests on."""
    from rich.text import Text

    request = found.request
    yield Text(f"{found.title}", style="bold")
    if found.known:
        yield Text(f"\n{_promise(request, found.primary, found.known)}")
        yield _summary(request, found.known)
        yield _grid(request, found.known, found.cost, "smallest difference that is shown, measured spread")
        yield Text(_certainty(found.known), style="dim")
        if (entry := _primary(found)) is not None and request.seeds > 1:
            yield Text(f"\n{_advice(request, entry, found.cost)}")
    for note in found.notes:
        yield Text(f"not planned: {note}", style="yellow")
    if found.paper_known:
        yield Text(f"\nThe paper's {found.paper_name}. {_promise(request, None, found.paper_known)}")
        yield Text(
            f"ASSUMED spreads, since the paper prints none: a correlation of {request.correlation:g} between arms over "
            f"videos, and between seeds {request.seed_ratio:g} of the spread between videos "
            "(correlation=…, seed_ratio=…, sd=…)",
            style="yellow",
        )
        yield _summary(request, found.paper_known)
        cost = found.cost if found.cost is None or found.cost.is_real_scale else None
        yield _grid(request, found.paper_known, cost, "smallest difference, ASSUMED spread")
        if found.steps:
            yield _paper_table(request, found.steps)
    for note in found.paper_notes:
        yield Text(f"not planned: {note}", style="yellow")
    if found.known or found.paper_known:
        yield Text(
            "† one seed: what is shown of two given checkpoints over prompts, nothing of the methods they stand for",
            style="dim",
        )
    if found.cost is not None:
        yield Text(f"cost: {found.cost.basis}", style="dim")


def _promise(request: Request, primary: str | None, known: Sequence[Known]) -> str:
    behind = max((entry.level.metrics for entry in known if entry.name != primary), default=0)
    over = f"Holm over {behind} metric{'s' if behind > 1 else ''}"
    if primary is not None:
        others = f", the others behind it, where it is shown too, by {over}" if behind else ""
        over = f"{lookup(primary).header}, the primary metric, alone{others}"
    return (
        f"Shown with {100 * request.power:g} % power at a two-sided {100 * request.alpha:g} %: {over}; paired t over "
        "seeds."
    )


def _primary(found: Answer) -> Known | None:
    return next((entry for entry in found.known if entry.name == found.primary), None)


def _advice(request: Request, entry: Known, cost: Cost | None) -> str:
    """Where the primary metric's variance comes from, and what makes its smallest difference smaller."""
    n, m = request.prompts, request.seeds
    share = entry.spread.share_of_videos(n)
    whose = "what the clips bring to its variance is not known (they are not on disk, or not small)"
    if share is not None:
        whose = f"at {n} clips {100 * share:.0f} % of the variance of a difference is theirs, the rest the trainings'"
    bought = purchases(entry.spread, n, m, entry.level, None if cost is None else cost.seconds)
    told = [f"{one.what} {_number(one.shown)}{_price(one)}" for one in bought]
    able = [one for one in bought if one.shown is not None]
    now = smallest(entry.spread, n, m, entry.level)
    most = min(able, key=lambda one: one.shown or 0.0)
    said = f"{entry.header}, the primary metric: {whose}. {n} × {m} shows {_number(now)}; {', '.join(told)}."
    said += f" Most is bought by {most.what}"
    paid = {one: ((now or 0.0) - (one.shown or 0.0)) / one.seconds for one in able if one.seconds}
    by_time = max(paid, key=lambda one: paid[one], default=most)
    said += "." if by_time is most else f", for its time by {by_time.what}."
    pays_from = control_variate_pays_from(m, entry.level.alpha)
    if share is None or pays_from is None:
        return said
    could = "could pay" if share > pays_from else "does not pay"
    return (
        f"{said} A control variate of the clips, fitted on {m} seeds, {could}: it explains {100 * share:.0f} % at "
        f"best, and narrows the interval from {100 * pays_from:.0f} % on."
    )


def _price(one: Purchase) -> str:
    return f" (+{_duration(one.seconds)})" if one.seconds else ""


def _certainty(known: Sequence[Known]) -> str:
    from scipy.stats import chi2

    df = min(entry.spread.df for entry in known)
    low, high = math.sqrt(df / chi2.ppf(0.975, df)), math.sqrt(df / chi2.ppf(0.025, df))
    return (
        f"The spread between seeds rests on {df} degrees of freedom: the true smallest difference is {low:.1f} to "
        f"{high:.1f} times what is printed (95 %)."
    )


def _summary(request: Request, known: Sequence[Known]) -> Any:
    from rich import box
    from rich.table import Table

    n, m = request.prompts, request.seeds
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("metric")
    heads = ("mean", "sd of seeds", "sd of videos", f"shown by\n{n} × {m}", "to show", f"seeds,\n{n} prompts")
    for head in (*heads, f"prompts,\n{m} seed{'s' if m > 1 else '†'}"):
        table.add_column(head, justify="right")
    table.add_column("spread from", overflow="fold", style="dim")
    for entry in known:
        spread, level = entry.spread, entry.level
        prompts = prompts_for(spread, m, entry.target, level)
        table.add_row(
            entry.header,
            _number(entry.mean),
            _number(spread.seed),
            "of the set" if spread.video is None else _number(spread.video),
            _shown(entry, n, m),
            _number(entry.target),
            _count(seeds_for(spread, n, entry.target, level)),
            "only seeds" if prompts is None else _count(prompts),
            spread.source,
        )
    return table


def designs(request: Request) -> list[tuple[int, int]]:
    """The (prompts, seeds) of the grid, the asked-for one among them."""
    prompts = sorted({*PROMPTS, request.prompts})
    return [(n, m) for m in sorted({*SEEDS, request.seeds}) for n in prompts]


def _grid(request: Request, known: Sequence[Known], cost: Cost | None, title: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="dim", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("seeds", "prompts", *(entry.header for entry in known), *(["cost"] if cost else [])):
        table.add_column(head, justify="right")
    previous = None
    for n, m in designs(request):
        if previous not in (None, m):
            table.add_section()
        cells = [_shown(entry, n, m) for entry in known]
        asked = (n, m) == (request.prompts, request.seeds)
        table.add_row(
            ("1†" if m == 1 else str(m)) if previous != m else "",
            str(n),
            *cells,
            *([_duration(cost.seconds(n, m))] if cost else []),
            style="bold" if asked else "dim" if m == 1 else "",
        )
        previous = m
    return table


def _paper_table(request: Request, steps: Sequence[Step]) -> Any:
    from rich import box
    from rich.table import Table

    n, m = request.prompts, request.seeds
    table = Table(
        title="the paper's own differences beside what can be shown",
        title_justify="left",
        title_style="dim",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for head, side in (("step", "left"), ("metric", "left"), ("printed", "right")):
        table.add_column(head, justify=side)
    heads = [f"shown by\n{n} × 1†", "needs\nprompts × 1†"]
    for head in (*heads, *([f"shown by\n{n} × {m}"] if m > 1 else []), f"needs seeds,\n{n} prompts"):
        table.add_column(head, justify="right")
    previous = None
    for step in steps:
        if previous not in (None, step.step):
            table.add_section()
        of_pair, of_method = (
            bound is not None and abs(step.diff) >= bound for bound in (step.shown_by_checkpoints, step.shown)
        )
        table.add_row(
            step.step if previous != step.step else "",
            step.header,
            f"{'+' if step.diff > 0 else '−' if step.diff < 0 else ''}{abs(step.diff):.4g}",
            f"{_number(step.shown_by_checkpoints)} {'✓' if of_pair else '✗'}",
            _count(step.prompts_by_checkpoints),
            *([] if m == 1 else [f"{_number(step.shown)} {'✓' if of_method else '✗'}"]),
            _count(step.seeds_needed),
        )
        previous = step.step
    return table


def as_json(found: Answer) -> dict[str, Any]:
    """The answer as plain data: spreads, targets, the grid of both blocks, the paper's steps, the costs."""

    def block(known: Sequence[Known]) -> dict[str, Any]:
        grid = [
            {"prompts": n, "seeds": m, **{k.name: smallest(k.spread, n, m, k.level) for k in known}}
            for n, m in designs(found.request)
        ]
        return {"metrics": [asdict(entry) for entry in known], "grid": grid}

    request, entry = found.request, _primary(found)
    seconds = None if found.cost is None else found.cost.seconds
    n, m = request.prompts, max(2, request.seeds)
    bought = () if entry is None else purchases(entry.spread, n, m, entry.level, seconds)
    return {
        "title": found.title,
        "request": asdict(request),
        "primary": found.primary,
        "share_of_clips": None if entry is None else entry.spread.share_of_videos(n),
        "buys": [asdict(one) for one in bought],
        "measured": block(found.known),
        "assumed": block(found.paper_known),
        "paper": found.paper_name,
        "steps": [asdict(step) for step in found.steps],
        "cost": None if found.cost is None else asdict(found.cost),
        "notes": [*found.notes, *found.paper_notes],
    }


def _shown(entry: Known, prompts: int, seeds: int) -> str:
    """The smallest difference, or that it is more than the metric can differ by."""
    value, metric = smallest(entry.spread, prompts, seeds, entry.level), METRICS.get(entry.name)
    is_bounded = metric is not None and (metric.scale == "0-100" or metric.printed == 100)
    return "> 100" if is_bounded and value is not None and value > 100 else _number(value)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _count(value: int | None) -> str:
    return f"> {MOST}" if value is None else str(value)


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"
