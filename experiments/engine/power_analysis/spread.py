"""The spread of a paired difference: its size in scores on disk, and what n prompts and m seeds can show with it.

The test is that of the primary metric in a table: the two-sided paired t over the differences of the seeds.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import scipy

from benchmarks.metrics import Metric, lookup, protocols
from benchmarks.stats.comparison import distance
from benchmarks.stats.resampling import GROUPS, jackknife_variance, leave_out
from experiments.engine.job import score_request
from experiments.engine.outcome.result_files import read_scores
from experiments.engine.plan import Arm, Plan
from pw.io.arguments import ConfigError
from pw.io.command_line import without_make
from pw.io.files import read_csv
from pw.sample.clip_folders import sample_folder

MAX_COUNT = 100_000
"""Largest number of prompts or seeds that the planner considers."""

NODES = 400
"""Nodes of the integral over chi; the power is accurate to 1e-5."""


@dataclass(frozen=True)
class Spread:
    """Standard deviations of a paired difference of two arms, in printed units.

    seed    between seeds, of the mean over infinitely many videos
    video   between videos within a seed (for a metric of the set by the jackknife); None if not known: then `seed` was
            measured at `videos` videos
    df      degrees of freedom of `seed`, 0 if assumed
    of_set  whether the metric is of the whole set
    """

    seed: float
    video: float | None
    basis: Literal["measured", "assumed"]
    source: str
    videos: int = 0
    df: int = 0
    of_set: bool = False

    def error(self, prompts: int, seeds: int) -> float:
        """Standard error of the mean difference over `prompts` x `seeds`."""
        if self.video is None:
            # unknown effect of videos on a metric of the set: assume no gain from more, the full loss from fewer
            return self.seed * math.sqrt(max(1.0, self.videos / prompts) / seeds)
        return math.sqrt(self.seed**2 / seeds + self.video**2 / (prompts * seeds))

    def share_of_videos(self, prompts: int) -> float | None:
        """The share of the videos in the variance of the difference at one seed; None if not known."""
        if self.video is None:
            return None
        video_variance = self.video**2 / prompts
        return video_variance / (video_variance + self.seed**2) if video_variance else 0.0


@dataclass(frozen=True)
class Level:
    """The two-sided error of a test, its power, and the number of metrics for Holm."""

    alpha: float = 0.05
    power: float = 0.8
    metrics: int = 1


def t_power(noncentrality: float, df: int, alpha: float) -> float:
    """Power of a two-sided t test: P(|T| > t_crit) of the noncentral t.

    E over chi of P(|Z + noncentrality| > t_crit chi / sqrt(df)), by Gauss-Legendre in the quantile of chi, because
    `scipy.stats.nct` 1.17 gives NaN at few degrees of freedom.
    """
    ndtr = scipy.special.ndtr
    weights, scaled = _chi(df)
    bound = _critical(df, alpha) * scaled
    return float(weights @ (ndtr(noncentrality - bound) + ndtr(-noncentrality - bound)).astype(np.float64))


@lru_cache(maxsize=4096)
def noncentrality(df: int, alpha: float, power: float) -> float:
    """The difference, in units of its standard error, that a two-sided t test shows with this power."""
    high = 2 * _critical(df, alpha) + 10
    while t_power(high, df, alpha) < power:
        high *= 2
    return float(scipy.optimize.brentq(lambda x: t_power(x, df, alpha) - power, 0.0, high, xtol=1e-10))


@lru_cache(maxsize=64)
def _chi(df: int) -> tuple[Any, Any]:
    """Weights and nodes of E[f(chi / sqrt(df))]."""
    nodes, weights = _gauss_legendre(NODES)
    return weights / 2, np.sqrt(scipy.stats.chi2.ppf((nodes + 1) / 2, df) / df)


_gauss_legendre = cache(np.polynomial.legendre.leggauss)


@lru_cache(maxsize=4096)
def _critical(df: int, alpha: float) -> float:
    return float(scipy.special.stdtrit(df, 1 - alpha / 2))


def smallest_difference(spread: Spread, prompts: int, seeds: int, level: Level) -> float | None:
    """The smallest true difference that this design shows with the power of `level`, by Holm's first step.

    seeds = 1: between two fixed checkpoints, over prompts; None for a metric of the whole set, which has no test then.
    """
    if seeds > 1:
        error, df = spread.error(prompts, seeds), seeds - 1
    elif spread.video is None or spread.of_set:
        return None
    else:
        error, df = spread.video / math.sqrt(prompts), prompts - 1
    return noncentrality(df, level.alpha / level.metrics, level.power) * error


def prompts_for(spread: Spread, seeds: int, target: float, level: Level) -> int | None:
    """Fewest prompts that show `target` with `seeds` seeds; None if no number does."""
    if spread.video is None and seeds > 1:
        difference = smallest_difference(spread, spread.videos, seeds, level)
        return spread.videos if difference is not None and difference <= target else None
    return _smallest_count(lambda n: smallest_difference(spread, n, seeds, level), 2 if seeds == 1 else 1, target)


def seeds_for(spread: Spread, prompts: int, target: float, level: Level) -> int | None:
    """Fewest seeds (at least 2) that show `target` with `prompts` prompts; None above MAX_COUNT."""
    return _smallest_count(lambda m: smallest_difference(spread, prompts, m, level), 2, target)


def _smallest_count(difference_at: Callable[[int], float | None], first: int, target: float) -> int | None:
    """The least count from `first` with a smallest difference of at most `target`; the difference falls with it."""

    def is_enough(count: int) -> bool:
        difference = difference_at(count)
        return difference is not None and difference <= target

    counts = range(first, MAX_COUNT + 1)
    index = bisect_left(counts, True, key=is_enough)
    return counts[index] if index < len(counts) else None


def purchases(
    spread: Spread, prompts: int, seeds: int, level: Level, seconds: Callable[[int, int], float]
) -> list[dict[str, Any]]:
    """The rows of "buys" in the JSON answer: what twice the videos or two more seeds show, and their extra seconds.

    seconds: (prompts, seeds) -> seconds of the design
    """
    rows = []
    for what, n, m in (("twice the clips", 2 * prompts, seeds), ("two more seeds", prompts, seeds + 2)):
        is_known = spread.video is not None or n == prompts
        difference = smallest_difference(spread, n, m, level) if is_known else None
        rows.append({"what": what, "shown": difference, "seconds": seconds(n, m) - seconds(prompts, seeds)})
    return rows


def control_variate_pays_from(seeds: int, alpha: float = 0.05) -> float | None:
    """The share of variance that a control variate must explain to narrow the interval; None below 3 seeds.

    Its expectation counts as known. Its coefficient is fitted on the seeds, which costs a degree of freedom and adds
    the error of the slope (normal errors; `tests/simulated_tables.py` simulates it). The pairing by seed already is a
    control variate with coefficient 1: the arms share clips, noise and start.
    """
    if seeds < 3:
        return None

    beta, gammaln = scipy.special.beta, scipy.special.gammaln

    def mean_sd(df: int) -> float:
        return math.sqrt(2 / df) * math.exp(gammaln((df + 1) / 2) - gammaln(df / 2))

    widening = _critical(seeds - 2, alpha) / _critical(seeds - 1, alpha) * mean_sd(seeds - 2) / mean_sd(seeds - 1)
    widening *= float(beta((seeds - 2) / 2, 0.5) / beta((seeds - 1) / 2, 0.5))
    return 1 - widening**-2


@dataclass(frozen=True)
class Components:
    """Variances of a pair of arms: between the means of the seeds, and between videos within a seed."""

    of_means: float
    df_means: int
    within: float | None
    df_within: int
    videos: float


def components(differences: Sequence[Sequence[float]], jackknife: Sequence[float] = (), videos: int = 0) -> Components:
    """Variances of paired differences: a sequence of videos per seed, or of one value for a metric of the set.

    jackknife: variances of the differences in a metric of the set, from leaving out groups of the `videos` videos
    """
    rows = [np.asarray(row, float) for row in differences]
    of_means = float(np.var([row.mean() for row in rows], ddof=1)) if len(rows) > 1 else 0.0
    if jackknife:  # the variance of one video is `videos` times that of the set
        within = videos * sum(jackknife) / len(jackknife)
        return Components(of_means, len(rows) - 1, within, len(jackknife) * (GROUPS - 1), videos)
    df_within = sum(len(row) - 1 for row in rows)
    within = sum(float(((row - row.mean()) ** 2).sum()) for row in rows) / df_within if df_within else None
    return Components(of_means, len(rows) - 1, within, df_within, len(rows) / sum(1 / len(row) for row in rows))


def pool_components(
    pairs: Sequence[Components], factor: float, videos: int, source: str, *, of_set: bool = False
) -> Spread | None:
    """One spread of several pairs of arms, weighted by degrees of freedom; None if no pair has two seeds.

    The component of the seeds is the variance of their means minus the part of the videos, at least 0.
    factor: printed units per unit of the registry. videos: videos of a set, for a metric of the whole set (of_set).
    """
    df = sum(pair.df_means for pair in pairs)
    if not df:
        return None
    of_means = sum(pair.of_means * pair.df_means for pair in pairs) / df
    df_within = sum(pair.df_within for pair in pairs)
    if not df_within:
        return Spread(factor * math.sqrt(of_means), None, "measured", source, videos, df, of_set)
    within = sum((pair.within or 0.0) * pair.df_within for pair in pairs) / df_within
    by_videos = sum((pair.within or 0.0) / pair.videos * pair.df_means for pair in pairs) / df
    seed = math.sqrt(max(0.0, of_means - by_videos))
    return Spread(factor * seed, factor * math.sqrt(within), "measured", source, videos, df, of_set)


def measured_spreads(plan: Plan, names: Sequence[str]) -> tuple[dict[str, tuple[Spread, float]], list[str]]:
    """(metric -> (spread, mean of all arms) from scores on disk, notes on metrics without a spread)."""
    scores = _scores(plan.options.outputs)
    arms = {arm.name: arm for arm in plan.arms}
    arm_pairs = [(arm, arms[arm.versus]) for arm in plan.arms if arm.versus is not None]
    spreads, notes = {}, []

    @cache
    def group_values(arm: str, seed: int) -> dict[int, float]:
        return _leave_group_out(plan, arms[arm], seed, lookup(plan.ablation.primary))

    for metric in map(lookup, names):
        pairs, means, seeds, videos = [], [], set(), 0
        for arm, other in arm_pairs:
            rows, variances = [], []
            for seed in sorted(plan.options.seeds):
                a, b = (scores.get(side.runs[seed].sample_signature(seed), []) for side in (arm, other))
                candidates = product(_current(a, metric), _current(b, metric))
                matching = [(x, y) for x, y in candidates if x["contract"].get("clips") == y["contract"].get("clips")]
                if not matching:
                    continue
                values = [_values(score, metric) for score in matching[0]]
                rows.append(_differences(*values, metric))
                means += [fmean(by_video.values()) for by_video in values if by_video]
                seeds.add(seed)
                videos = max(videos, *(result["n_videos"].get(metric.name, 0) for result in a))
                if metric.name == plan.ablation.primary and metric.level == "set":
                    without_group = group_values(arm.name, seed), group_values(other.name, seed)
                    if all(without_group):
                        variances.append(jackknife_variance(_differences(*without_group, metric)))
            if len(rows) > 1 and all(rows):
                pairs.append(components(rows, variances, videos))
        source = f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''} of arms, {len(seeds)} seeds, {videos} videos"
        factor = 1.0 if metric.direction == "one" else metric.printed
        spread = pool_components(pairs, factor, videos, source, of_set=metric.level == "set")
        if spread is None:
            candidates = [score for _, seed, run in plan.runs() for score in scores.get(run.sample_signature(seed), [])]
            notes.append(f"{metric.name}: {_missing_reason(plan, candidates, metric)}")
        else:
            spreads[metric.name] = (spread, fmean(means) * metric.printed)
    return spreads, notes


def _differences(a: Mapping[Any, float], b: Mapping[Any, float], metric: Metric) -> list[float]:
    values = [tuple(distance(scores[name], metric.direction) for scores in (a, b)) for name in a if name in b]
    return [x - y for x, y in values if math.isfinite(x) and math.isfinite(y)]


def _leave_group_out(plan: Plan, arm: Arm, seed: int, metric: Metric) -> dict[int, float]:
    """Group -> metric of the set without this group of clips; empty if the clips are missing, few, or not small."""
    run, outputs = arm.runs[seed], plan.options.outputs
    if run.text is not None:  # a video at Wan's scales takes minutes to measure
        return {}
    solution = sample_folder(run.solution, outputs, seed) if "solution" in metric.needs and run.solution else None
    request = score_request(plan, arm.name, run, sample_folder(run, outputs, seed), solution, seed)
    if any(request[need] is None for need in metric.needs):
        return {}
    folders = {"video": request["videos"], **{need: request[need] for need in metric.needs}}
    try:
        values = leave_out(metric.name, {kind: Path(path) for kind, path in folders.items() if path is not None})
        return dict(enumerate(values))
    except ValueError:  # clips removed, or sampled on another machine
        return {}


def _scores(outputs: Path) -> dict[str, list[dict[str, Any]]]:
    """Signature of clips -> their scores in `outputs/scores`, each with its folder."""
    by_signature: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((outputs / "scores").glob("*/scores.json")):
        result = read_scores(path)
        contract = result["contract"]
        if contract.get("arm") not in ("floor", "ceiling"):  # these are not of the clips of the arm
            by_signature.setdefault(str(contract.get("signature")), []).append({**result, "folder": path.parent})
    return by_signature


def _current(results: Sequence[dict[str, Any]], metric: Metric) -> list[dict[str, Any]]:
    """The results that have the metric by its current protocol and settings."""
    protocol = protocols([metric.name])[metric.name]
    with_metric = [result for result in results if metric.name in result["metrics"]]
    return [result for result in with_metric if result["contract"].get("metrics", {}).get(metric.name) == protocol]


def _values(result: Mapping[str, Any], metric: Metric) -> dict[str, float]:
    """Video -> value; for a metric of the set the only key is ""."""
    if metric.level == "set":
        return {"": result["metrics"][metric.name]}
    path = result["folder"] / "scores.csv"
    try:
        return {row["video"]: float(row[metric.name]) for row in read_csv(path)[1] if row.get(metric.name)}
    except (OSError, ValueError, KeyError) as error:
        remedy = f"remove {path.parent}, and `make ablation` scores again"
        raise ConfigError(f"{path}: is damaged ({error!r}); {remedy}") from error


def _missing_reason(plan: Plan, results: Sequence[dict[str, Any]], metric: Metric) -> str:
    """The reason why the spread of a metric is not measured."""
    if not any(metric.name in result["metrics"] and result["contract"].get("arm") for result in results):
        return without_make(f"not scored yet; run `make ablation name={plan.name}`")
    is_current = _current(results, metric)
    return "fewer than two seeds of a pair of arms" if is_current else "scored by another protocol or settings"
