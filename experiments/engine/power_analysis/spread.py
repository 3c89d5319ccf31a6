"""The spread of a paired difference: what n prompts and m seeds show of it, and how large it is in scores on disk.

The test is that of the table's primary metric: the paired t over the seeds' differences, two-sided.
"""

from __future__ import annotations

import csv
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
from experiments.engine.outcome.written import read_scores
from experiments.engine.plan import Arm, Plan
from pw.io.arguments import ConfigError
from pw.sample.evaluate import sample_folder

MOST = 100_000
"""Prompts or seeds beyond which a design counts as out of reach."""

NODES = 400
"""Of the integral over chi: the power is right to 1e-5."""


@dataclass(frozen=True)
class Spread:
    """Standard deviations of a paired difference of two arms, in the units that are printed.

    seed: between seeds, of the mean over infinitely many videos.
    video: between videos within a seed (of a metric of the set by the jackknife); None where that is not known, and
    `seed` was measured at `videos` videos.
    df: degrees of freedom of `seed`, 0 where assumed. of_set: of a metric of the whole set.
    """

    seed: float
    video: float | None
    basis: Literal["measured", "assumed"]
    source: str
    videos: int = 0
    df: int = 0
    of_set: bool = False

    def error(self, prompts: int, seeds: int) -> float:
        """Standard error of the mean difference over so many prompts and seeds."""
        if self.video is None:
            # how a set's metric gains from videos is not known: nothing from more, all that can be lost from fewer
            return self.seed * math.sqrt(max(1.0, self.videos / prompts) / seeds)
        return math.sqrt(self.seed**2 / seeds + self.video**2 / (prompts * seeds))

    def share_of_videos(self, prompts: int) -> float | None:
        """The share of the videos in the variance of a seed's difference; None where it is not known."""
        if self.video is None:
            return None
        of_videos = self.video**2 / prompts
        return of_videos / (of_videos + self.seed**2) if of_videos else 0.0


@dataclass(frozen=True)
class Level:
    """The error and power of a test: two-sided error after Holm over so many metrics."""

    alpha: float = 0.05
    power: float = 0.8
    metrics: int = 1


def t_power(noncentrality: float, df: int, alpha: float) -> float:
    """Power of a two-sided t test: P(|T| > t_crit) of the noncentral t.

    E over chi of P(|Z + noncentrality| > t_crit chi / sqrt(df)), by Gauss-Legendre in chi's quantile: `scipy.stats.nct`
    1.17 gives NaN at few degrees of freedom, which is where this is needed.
    """
    ndtr = scipy.special.ndtr
    weights, scaled = _chi(df)
    bound = _critical(df, alpha) * scaled
    return float(weights @ (ndtr(noncentrality - bound) + ndtr(-noncentrality - bound)).astype(np.float64))


@lru_cache(maxsize=4096)
def noncentrality(df: int, alpha: float, power: float) -> float:
    """Difference over its standard error that a two-sided t test finds with this power."""
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


def smallest(spread: Spread, prompts: int, seeds: int, level: Level) -> float | None:
    """The smallest true difference that this design shows with the level's power, by Holm's first step.

    seeds = 1: of two given checkpoints, over prompts; None for a metric of the whole set, which has no test then.
    """
    if seeds > 1:
        error, df = spread.error(prompts, seeds), seeds - 1
    elif spread.video is None or spread.of_set:
        return None
    else:
        error, df = spread.video / math.sqrt(prompts), prompts - 1
    return noncentrality(df, level.alpha / level.metrics, level.power) * error


def prompts_for(spread: Spread, seeds: int, target: float, level: Level) -> int | None:
    """Fewest prompts that show `target` with so many seeds; None if no number does."""
    if spread.video is None and seeds > 1:
        shown = smallest(spread, spread.videos, seeds, level)
        return spread.videos if shown is not None and shown <= target else None
    return _fewest(lambda n: smallest(spread, n, seeds, level), 2 if seeds == 1 else 1, target)


def seeds_for(spread: Spread, prompts: int, target: float, level: Level) -> int | None:
    """Fewest seeds (2 at least) that show `target` with so many prompts; None if more than any would do."""
    return _fewest(lambda m: smallest(spread, prompts, m, level), 2, target)


def _fewest(shown: Callable[[int], float | None], first: int, target: float) -> int | None:
    """The least count from `first` on whose smallest difference, which falls with the count, is within the target."""

    def is_enough(count: int) -> bool:
        difference = shown(count)
        return difference is not None and difference <= target

    counts = range(first, MOST + 1)
    place = bisect_left(counts, True, key=is_enough)
    return counts[place] if place < len(counts) else None


def purchases(
    spread: Spread, prompts: int, seeds: int, level: Level, seconds: Callable[[int, int], float]
) -> list[dict[str, Any]]:
    """What twice the videos, or two more seeds, would show, and the seconds they cost beyond the design, as written.

    seconds: of (prompts, seeds).
    """
    rows = []
    for what, n, m in (("twice the clips", 2 * prompts, seeds), ("two more seeds", prompts, seeds + 2)):
        is_known = spread.video is not None or n == prompts
        shown = smallest(spread, n, m, level) if is_known else None
        rows.append({"what": what, "shown": shown, "seconds": seconds(n, m) - seconds(prompts, seeds)})
    return rows


def control_variate_pays_from(seeds: int, alpha: float = 0.05) -> float | None:
    """Share of a difference's variance that a control variate must explain to narrow its interval; None below 3 seeds.

    Its expectation is taken as known, and its coefficient is fitted on the seeds: a degree of freedom and the slope's
    own error are paid with (normal errors; `tests/simulated_tables.py` simulates it). The pairing
    by seed is a control variate already, whose coefficient is 1: the arms share clips, noise and start.
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
    """Variances of one pair of arms: of the seeds' means, and between videos within a seed."""

    of_means: float
    df_means: int
    within: float | None
    df_within: int
    videos: float


def components(differences: Sequence[Sequence[float]], jackknife: Sequence[float] = (), videos: int = 0) -> Components:
    """Variances of paired differences, one sequence of videos per seed; a sequence of one is a metric of the set.

    jackknife: the variances of such a metric's differences, by leaving out groups of the `videos` videos of a seed.
    """
    rows = [np.asarray(row, float) for row in differences]
    of_means = float(np.var([row.mean() for row in rows], ddof=1)) if len(rows) > 1 else 0.0
    if jackknife:  # so many videos bring a variance, so one of them brings videos times as much
        within = videos * sum(jackknife) / len(jackknife)
        return Components(of_means, len(rows) - 1, within, len(jackknife) * (GROUPS - 1), videos)
    df_within = sum(len(row) - 1 for row in rows)
    within = sum(float(((row - row.mean()) ** 2).sum()) for row in rows) / df_within if df_within else None
    return Components(of_means, len(rows) - 1, within, df_within, len(rows) / sum(1 / len(row) for row in rows))


def pooled(
    pairs: Sequence[Components], factor: float, videos: int, source: str, *, of_set: bool = False
) -> Spread | None:
    """One spread from several pairs of arms, weighted by degrees of freedom; None where no pair has two seeds.

    The seeds' component is the variance of their means less what the videos put into it, and never below 0.
    factor: from the registry's to printed units. videos: of a set, for a metric of the whole set (of_set).
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


def measured(plan: Plan, names: Sequence[str]) -> tuple[dict[str, tuple[Spread, float]], list[str]]:
    """(metric -> (spread, mean of all arms) from the scores on disk, notes on metrics without)."""
    scores = _scores(plan.options.outputs)
    arms = {arm.name: arm for arm in plan.arms}
    compared = [(arm, arms[arm.above]) for arm in plan.arms if arm.above is not None]
    spreads, notes = {}, []

    @cache
    def left_out(arm: str, seed: int) -> dict[int, float]:
        return _left_out(plan, arms[arm], seed, lookup(plan.ablation.primary))

    for metric in map(lookup, names):
        pairs, means, seeds, videos = [], [], set(), 0
        for arm, other in compared:
            rows, variances = [], []
            for seed in sorted(plan.options.seeds):
                a, b = (scores.get(one.runs[seed].sample_signature(seed), []) for one in (arm, other))
                found = product(_current(a, metric), _current(b, metric))
                alike = [(x, y) for x, y in found if x["contract"].get("clips") == y["contract"].get("clips")]
                if not alike:
                    continue
                both = [_values(one, metric) for one in alike[0]]
                rows.append(_differences(*both, metric))
                means += [fmean(values.values()) for values in both if values]
                seeds.add(seed)
                videos = max(videos, *(result["n_videos"].get(metric.name, 0) for result in a))
                if metric.name == plan.ablation.primary and metric.level == "set":
                    groups = left_out(arm.name, seed), left_out(other.name, seed)
                    if all(groups):
                        variances.append(jackknife_variance(_differences(*groups, metric)))
            if len(rows) > 1 and all(rows):
                pairs.append(components(rows, variances, videos))
        of = f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''} of arms, {len(seeds)} seeds, {videos} videos"
        factor = 1.0 if metric.direction == "one" else metric.printed
        spread = pooled(pairs, factor, videos, of, of_set=metric.level == "set")
        if spread is None:
            found = [one for _, seed, run in plan.runs() for one in scores.get(run.sample_signature(seed), [])]
            notes.append(f"{metric.name}: {_why_not(plan, found, metric)}")
        else:
            spreads[metric.name] = (spread, fmean(means) * metric.printed)
    return spreads, notes


def _differences(a: Mapping[Any, float], b: Mapping[Any, float], metric: Metric) -> list[float]:
    values = [tuple(distance(side[name], metric.direction) for side in (a, b)) for name in a if name in b]
    return [x - y for x, y in values if math.isfinite(x) and math.isfinite(y)]


def _left_out(plan: Plan, arm: Arm, seed: int, metric: Metric) -> dict[int, float]:
    """A metric of the set without each group of an arm's clips; empty where these are not there, few, or not small."""
    run, outputs = arm.runs[seed], plan.options.outputs
    if run.text is not None:  # a video of Wan's scales is measured in minutes
        return {}
    solution = sample_folder(run.solution, outputs, seed) if "solution" in metric.needs else None
    asked = score_request(plan, arm.name, run, sample_folder(run, outputs, seed), solution, seed)
    folders = {"video": asked["videos"], **{need: asked[need] for need in metric.needs}}
    try:
        values = leave_out(metric.name, {what: Path(path) for what, path in folders.items() if path is not None})
        return dict(enumerate(values))
    except ValueError:  # no clips there: they were removed, or sampled elsewhere
        return {}


def _scores(outputs: Path) -> dict[str, list[dict[str, Any]]]:
    """What is under `outputs/scores`, with its folder, by the signature of the clips it is of."""
    by_signature: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((outputs / "scores").glob("*/scores.json")):
        result = read_scores(path)
        contract = result["contract"]
        if contract.get("arm") not in ("floor", "ceiling"):  # of real clips, of many steps: not of the arm
            by_signature.setdefault(str(contract.get("signature")), []).append({**result, "folder": path.parent})
    return by_signature


def _current(results: Sequence[dict[str, Any]], metric: Metric) -> list[dict[str, Any]]:
    """Those that have the metric, by the protocol and settings of now."""
    wanted = protocols([metric.name])[metric.name]
    scored = [result for result in results if metric.name in result["metrics"]]
    return [result for result in scored if result["contract"].get("metrics", {}).get(metric.name) == wanted]


def _values(result: Mapping[str, Any], metric: Metric) -> dict[str, float]:
    """The values per video; of a metric of the set one, named ""."""
    if metric.level == "set":
        return {"": result["metrics"][metric.name]}
    path = result["folder"] / "scores.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["video"]: float(row[metric.name]) for row in csv.DictReader(file) if row.get(metric.name)}
    except (OSError, ValueError, KeyError) as error:
        remedy = f"remove {path.parent}, and `make ablation` scores again"
        raise ConfigError(f"{path}: is damaged ({error!r}); {remedy}") from error


def _why_not(plan: Plan, results: Sequence[dict[str, Any]], metric: Metric) -> str:
    """Why a metric's spread is not measured."""
    if not any(metric.name in result["metrics"] and result["contract"].get("arm") for result in results):
        return f"not scored yet (`make ablation name={plan.name}` does)"
    is_current = _current(results, metric)
    return "fewer than two seeds of a pair of arms" if is_current else "scored by another protocol or settings"
