"""How large a difference n prompts and m seeds show, and where its variance comes from: the statistics of `pw power`.

The test is that of the table's primary metric: the paired t over the seeds' differences, two-sided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

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

    def error_of_checkpoints(self, prompts: int) -> float | None:
        """The same for two given checkpoints, over prompts alone; None for a metric of the whole set."""
        return None if self.video is None or self.of_set else self.video / math.sqrt(prompts)

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

    @property
    def first_step(self) -> float:
        """The level of Holm's first step."""
        return self.alpha / self.metrics


def t_power(noncentrality: float, df: int, alpha: float) -> float:
    """Power of a two-sided t test: P(|T| > t_crit) of the noncentral t.

    E over chi of P(|Z + noncentrality| > t_crit chi / sqrt(df)), by Gauss-Legendre in chi's quantile: `scipy.stats.nct`
    1.17 gives NaN at few degrees of freedom, which is where this is needed.
    """
    import numpy as np
    from scipy.special import ndtr

    weights, scaled = _chi(df)
    bound = _critical(df, alpha) * scaled
    return float(weights @ (ndtr(noncentrality - bound) + ndtr(-noncentrality - bound)).astype(np.float64))


@lru_cache(maxsize=4096)
def noncentrality(df: int, alpha: float, power: float) -> float:
    """Difference over its standard error that a two-sided t test finds with this power."""
    from scipy.optimize import brentq

    high = 2 * _critical(df, alpha) + 10
    while t_power(high, df, alpha) < power:
        high *= 2
    return float(brentq(lambda x: t_power(x, df, alpha) - power, 0.0, high, xtol=1e-10))


def smallest(spread: Spread, prompts: int, seeds: int, level: Level) -> float | None:
    """The smallest true difference that this design shows with the level's power; None where nothing can be tested.

    seeds = 1: of two checkpoints, over prompts.
    """
    error = spread.error_of_checkpoints(prompts) if seeds == 1 else spread.error(prompts, seeds)
    df = (prompts if seeds == 1 else seeds) - 1
    return None if error is None or df < 1 else noncentrality(df, level.first_step, level.power) * error


def prompts_for(spread: Spread, seeds: int, target: float, level: Level) -> int | None:
    """Fewest prompts that show `target` with so many seeds; None if no number does."""
    if spread.video is None and seeds > 1:
        shown = smallest(spread, spread.videos, seeds, level)
        return spread.videos if shown is not None and shown <= target else None
    return _fewest(lambda n: smallest(spread, n, seeds, level), 2 if seeds == 1 else 1, target)


def seeds_for(spread: Spread, prompts: int, target: float, level: Level) -> int | None:
    """Fewest seeds (2 at least) that show `target` with so many prompts; None if more than any would do."""
    return _fewest(lambda m: smallest(spread, prompts, m, level), 2, target)


def _fewest(shown: Any, first: int, target: float) -> int | None:
    """The least count from `first` on whose smallest difference is within the target; it falls with the count."""
    high = first
    while (difference := shown(high)) is None or difference > target:
        if high >= MOST:
            return None
        high = min(2 * high, MOST)
    low = first
    while low < high:
        middle = (low + high) // 2
        if (difference := shown(middle)) is not None and difference <= target:
            high = middle
        else:
            low = middle + 1
    return high


@lru_cache(maxsize=64)
def _chi(df: int) -> tuple[Any, Any]:
    """Weights and nodes of E[f(chi / sqrt(df))]."""
    import numpy as np
    from scipy.stats import chi2

    nodes, weights = _gauss_legendre(NODES)
    return weights / 2, np.sqrt(chi2.ppf((nodes + 1) / 2, df) / df)


@lru_cache(maxsize=1)
def _gauss_legendre(n: int) -> tuple[Any, Any]:
    import numpy as np

    return np.polynomial.legendre.leggauss(n)


@lru_cache(maxsize=4096)
def _critical(df: int, alpha: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - alpha / 2))


@dataclass(frozen=True)
class Components:
    """Variances of one pair of arms: of the seeds' means, and between videos within a seed."""

    of_means: float
    df_means: int
    within: float | None
    df_within: int
    videos: float


def components(differences: Sequence[Sequence[float]]) -> Components:
    """Variances of paired differences, one sequence of videos per seed; a sequence of one is a metric of the set."""
    import numpy as np

    rows = [np.asarray(row, float) for row in differences]
    means = np.array([row.mean() for row in rows])
    of_means = float(means.var(ddof=1)) if len(means) > 1 else 0.0
    df_within = sum(len(row) - 1 for row in rows)
    within = sum(float(((row - row.mean()) ** 2).sum()) for row in rows) / df_within if df_within else None
    return Components(of_means, len(means) - 1, within, df_within, len(rows) / sum(1 / len(row) for row in rows))


def with_jackknife(pair: Components, variances: Sequence[float], groups: int, videos: int) -> Components:
    """The same for a metric of the set, from the jackknife variance that each seed's difference has at `videos` videos.

    That many videos would bring `variance`, so one of them brings videos times as much.
    """
    within = videos * sum(variances) / len(variances)
    return replace(pair, within=within, df_within=len(variances) * (groups - 1), videos=float(videos))


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


@dataclass(frozen=True)
class Purchase:
    """One way to a smaller difference: what it shows then, and the seconds it costs beyond the design."""

    what: str
    shown: float | None
    seconds: float | None


def purchases(
    spread: Spread, prompts: int, seeds: int, level: Level, seconds: Callable[[int, int], float] | None = None
) -> tuple[Purchase, ...]:
    """The differences that twice the videos, or two more seeds, would show.

    seconds: of (prompts, seeds).
    """
    now = 0.0 if seconds is None else seconds(prompts, seeds)

    def purchase(what: str, n: int, m: int) -> Purchase:
        is_known = spread.video is not None or n == prompts
        shown = smallest(spread, n, m, level) if is_known else None
        return Purchase(what, shown, None if seconds is None else seconds(n, m) - now)

    return purchase("twice the clips", 2 * prompts, seeds), purchase("two more seeds", prompts, seeds + 2)


def control_variate_pays_from(seeds: int, alpha: float = 0.05) -> float | None:
    """Share of a difference's variance that a control variate must explain to narrow its interval; None below 3 seeds.

    Its expectation is taken as known, and its coefficient is fitted on the seeds: a degree of freedom and the slope's
    own error are paid with (normal errors; `python -m benchmarks.stats.interval_coverage` simulates it). The pairing
    by seed is a control variate already, whose coefficient is 1: the arms share clips, noise and start.
    """
    from scipy.special import beta, gammaln

    if seeds < 3:
        return None

    def mean_sd(df: int) -> float:
        return math.sqrt(2 / df) * math.exp(gammaln((df + 1) / 2) - gammaln(df / 2))

    widening = _critical(seeds - 2, alpha) / _critical(seeds - 1, alpha) * mean_sd(seeds - 2) / mean_sd(seeds - 1)
    widening *= float(beta((seeds - 2) / 2, 0.5) / beta((seeds - 1) / 2, 0.5))
    return 1 - widening**-2


def number_text(value: float | None) -> str:
    """A spread or difference as it is printed; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
