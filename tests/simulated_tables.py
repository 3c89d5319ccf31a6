"""Simulated coverage of the candidate intervals of a table: the numbers of D13, D74 and D75.

A simulated metric has arms x seeds: an effect of the seed shared by all arms plus an error of arm and seed. The errors
are normal, heavy-tailed (t with 5 df) or skewed (exponential); the variances of the paired differences are equal, or
one comparison has 16 times the variance of the others, or they are graded from 1 to 16. Coverage is counted for the
difference of each arm to the one before it, and the comparison with the lowest coverage decides: an average would hide
the noisy comparison behind the quiet ones.

Also: family-wise error and power of gatekeeping behind the primary metric against Holm over all metrics, and the effect
of a control variate fitted on the seeds on the interval's width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmarks.stats.comparison import LEVEL, gatekeep, holm, paired_t

Interval = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Middle, half-width and two-sided p, each [tables, comparisons]."""

ERRORS = ("normal", "t5", "skewed")
VARIANCES = ("equal", "one noisy", "graded")
RATIO = 16.0


@dataclass(frozen=True)
class Scenario:
    seeds: int
    arms: int
    errors: str
    variances: str

    def differences(self, tables: int, rng: np.random.Generator) -> np.ndarray:
        """Paired differences of neighbouring arms with true mean 0: [tables, arms - 1, seeds]."""
        shape = (tables, self.arms, self.seeds)
        noise = _errors(self.errors, shape, rng) * np.sqrt(_arm_variances(self.variances, self.arms))[:, None]
        return np.diff(noise + rng.normal(size=(tables, 1, self.seeds)), axis=1)


class IntervalCoverage(NamedTuple):
    """Coverage of the worst comparison, mean coverage, and mean width relative to paired t's."""

    worst: float
    mean: float
    width: float


def _errors(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Errors with mean 0 and variance 1."""
    if kind == "normal":
        return rng.normal(size=shape)
    if kind == "t5":
        return rng.standard_t(5, size=shape) * np.sqrt(3 / 5)
    return rng.exponential(size=shape) - 1


def _arm_variances(kind: str, arms: int) -> np.ndarray:
    """Variances of the arms, for the required variances of the differences of neighbours."""
    if kind == "equal":
        return np.ones(arms)
    if kind == "one noisy":  # differences: 2, 2, ..., 2 * RATIO
        return np.array([1.0] * (arms - 1) + [2 * RATIO - 1])
    return RATIO ** (np.arange(arms) / (arms - 2))  # differences: geometric from 1 + q to RATIO * (1 + q)


def pooled(differences: np.ndarray) -> Interval:
    """One variance for all comparisons of a metric, C (n - 1) df. Right where the variances are equal."""
    from scipy.special import stdtr, stdtrit

    n, c = differences.shape[-1], differences.shape[-2]
    mean = differences.mean(-1)
    error = np.sqrt(differences.var(-1, ddof=1).mean(-1, keepdims=True) / n)
    df = c * (n - 1)
    half = np.broadcast_to(stdtrit(df, (1 + LEVEL) / 2) * error, mean.shape)
    return mean, half, 2 * stdtr(df, -abs(mean) / error)


def moderated(differences: np.ndarray) -> Interval:
    """Empirical-Bayes t: variances shrunk to a common one by as much as they resemble each other.

    Smyth 2004 (limma): the prior's df and variance by moments of the log variances, df at most the pooled df.
    """
    return _moderate(differences)[:3]


def guarded(differences: np.ndarray) -> Interval:
    """`moderated`, but a comparison noisier than the prior's variance keeps its own variance and df."""
    mean, half, p, raw, prior = _moderate(differences)
    _, t_half, t_p = paired_t(differences)
    noisy = raw > prior
    return mean, np.where(noisy, t_half, half), np.where(noisy, t_p, p)


def bootstrap(differences: np.ndarray) -> Interval:
    """Percentile bootstrap over seeds: all n^n resamples at three seeds, 500 beyond."""
    n = differences.shape[-1]
    indices = np.array(list(itertools.product(range(n), repeat=n)))
    if len(indices) > 500:
        indices = np.random.default_rng(0).choice(indices, 500, replace=False)
    means = differences[..., indices].mean(-1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=-1)
    tail = np.minimum((means <= 0).mean(-1), (means >= 0).mean(-1))
    return (low + high) / 2, (high - low) / 2, np.minimum(1.0, 2 * tail)


METHODS: dict[str, Callable[[np.ndarray], Interval]] = {
    "paired t": paired_t,
    "guarded": guarded,
    "moderated": moderated,
    "pooled": pooled,
    "bootstrap": bootstrap,
}


def _moderate(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """mean, half-width, p, own variance, prior variance of the moderated t."""
    from scipy.special import digamma, polygamma, stdtr, stdtrit

    n, c = differences.shape[-1], differences.shape[-2]
    df = n - 1
    mean, raw = differences.mean(-1), differences.var(-1, ddof=1)
    log_variance = np.log(raw) - digamma(df / 2) + np.log(df / 2)
    excess = log_variance.var(-1, ddof=1, keepdims=True) - polygamma(1, df / 2)
    spread = np.maximum(excess, 1e-4)
    prior_df = 2 * _inverse_trigamma(spread)
    prior = np.exp(log_variance.mean(-1, keepdims=True) + digamma(prior_df / 2) - np.log(prior_df / 2))
    variance = (prior_df * prior + df * raw) / (prior_df + df)
    total_df = np.minimum(prior_df + df, c * df)
    error = np.sqrt(variance / n)
    return mean, stdtrit(total_df, (1 + LEVEL) / 2) * error, 2 * stdtr(total_df, -abs(mean) / error), raw, prior


def _inverse_trigamma(y: np.ndarray) -> np.ndarray:
    """x with trigamma(x) = y, by Newton on 1 / trigamma (Smyth 2004, appendix)."""
    from scipy.special import polygamma

    x = 0.5 + 1 / y
    for _ in range(20):
        trigamma = polygamma(1, x)
        x = x + trigamma * (1 - trigamma / y) / polygamma(2, x)
    return x


def cover(scenario: Scenario, tables: int, seed: int = 0) -> dict[str, IntervalCoverage]:
    """Coverage and relative width of every method in a scenario, the same simulated tables for all."""
    differences = scenario.differences(tables, np.random.default_rng(seed))
    width = paired_t(differences)[1].mean()
    outcomes = {}
    for name, method in METHODS.items():
        sample = differences[: max(1, tables // 5)] if method is bootstrap else differences
        middle, half, _ = method(sample)
        covered = (np.abs(middle) <= half).mean(0)
        outcomes[name] = IntervalCoverage(float(covered.min()), float(covered.mean()), float(half.mean() / width))
    return outcomes


def false_positives(
    scenario: Scenario, method: Callable[[np.ndarray], Interval], tables: int, metrics: int = 6, seed: int = 0
) -> float:
    """The share of comparisons of equal arms with any metric called better or worse, after Holm.

    The worst comparison of the table; metrics are independent, which is the hardest case for Holm.
    """
    rng = np.random.default_rng(seed)
    p = np.stack([method(scenario.differences(tables, rng))[2] for _ in range(metrics)], -1)
    any_significant = (p.min(-1) * metrics) < 1 - LEVEL  # Holm rejects something exactly when Bonferroni does
    assert any_significant[0, 0] == (min(holm(p[0, 0])) < 1 - LEVEL)
    return float(any_significant.mean(0).max())


class Rates(NamedTuple):
    """Family-wise error, power of the primary metric, and mean power of the others; None without a true difference."""

    error: float
    primary: float | None
    others: float | None


FAMILIES = {
    "none differs": (0.0,) * 7,
    "only the primary": (3.0, *(0.0,) * 6),
    "all but the primary": (0.0, *(3.0,) * 6),
    "primary and three others": (3.0,) * 4 + (0.0,) * 3,
    "all": (3.0,) * 7,
}


def family_rates(
    seeds: int, correlation: float, effects: tuple[float, ...], tables: int, seed: int = 0
) -> dict[str, Rates]:
    """Family-wise error and power of gatekeeping and of Holm over all, the same simulated comparisons for both.

    effects: the true difference of each metric over the standard deviation of its paired differences; the first is the
        primary metric.
    correlation: between any two metrics' differences of a seed.
    """
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(tables, 1, seeds))
    specific = rng.normal(size=(tables, len(effects), seeds))
    noise = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * specific
    p = paired_t(noise + np.array(effects)[:, None])[2]
    names = [str(i) for i in range(p.shape[1])]
    real = np.array(effects) != 0
    rates = {}
    for method, primary in (("gatekeeping", names[0]), ("Holm over all", None)):
        adjusted = [gatekeep(dict(zip(names, row, strict=True)), primary) for row in p.tolist()]
        significant = np.array([[row[name] for name in names] for row in adjusted]) < 1 - LEVEL
        rates[method] = Rates(
            float(significant[:, ~real].any(-1).mean()),
            float(significant[:, 0].mean()) if real[0] else None,
            float(significant[:, 1:][:, real[1:]].mean()) if real[1:].any() else None,
        )
    return rates


def control_variate_width(seeds: int, share: float, tables: int, seed: int = 0) -> float:
    """Mean width of the interval with a control variate over that of paired t.

    share: of the variance of a paired difference that the covariate explains, whose expectation is taken as known, and
    its coefficient is fitted on the seeds: least squares, seeds - 2 degrees of freedom.
    """
    from scipy.special import stdtrit

    rng = np.random.default_rng(seed)
    x, specific = rng.normal(size=(2, tables, seeds))
    y = np.sqrt(share) * x + np.sqrt(1 - share) * specific
    centred = x - x.mean(-1, keepdims=True)
    slope = (centred * y).sum(-1) / (centred**2).sum(-1)
    residual = y - y.mean(-1, keepdims=True) - slope[:, None] * centred
    variance = (residual**2).sum(-1) / (seeds - 2)
    error = np.sqrt(variance * (1 / seeds + x.mean(-1) ** 2 / (centred**2).sum(-1)))
    return float((stdtrit(seeds - 2, (1 + LEVEL) / 2) * error).mean() / paired_t(y)[1].mean())
