"""The paired t of a table after every seed from the second on, at one error over all looks. Pure statistics.

Tested at 5 % after every seed, two equal arms differ "significantly" in 13 % of comparisons of five seeds. Here the
error is spent over the looks as Lan and DeMets (1983) spend it for the bounds of O'Brien and Fleming: hardly any early,
nearly all of it at the last seed, so that little power is lost there. The bounds are those of the t test itself, not of
the normal distribution: under the null hypothesis the p of all looks depend on no unknown variance, so `PATHS`
simulated sequences give the p below which just the spent share of them has crossed by each look. They hold for normal
differences, as the paired t does; tests/benchmarks/stats/test_sequential.py simulates others, and the power (D124).

A look's p becomes a sequential p: the smallest error at which its bound is crossed. Its minimum over the looks is below
any level with at most that probability, so it enters the rules for several pairs, metrics and Holm as a p does.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from benchmarks.stats.comparison import LEVEL, paired_t

if TYPE_CHECKING:
    import numpy as np

PATHS, DRAWS = 200_000, 4_000
FIRST = 2
"""The seeds of the first look."""


def spent(fraction: float, level: float = 1 - LEVEL) -> float:
    """The error spent when this fraction of the seeds has run: 2 - 2 Phi(z / sqrt(fraction)), Phi(z) = 1 - level / 2.

    It is O'Brien and Fleming's two-sided spending function (Lan and DeMets 1983); all of `level` at fraction 1.
    """
    from scipy.special import ndtr, ndtri

    return float(2 * ndtr(ndtri(level / 2) / fraction**0.5))


def sequential_p(p: float, n: int, seeds: int) -> float:
    """The sequential p of a two-sided p after n of at most `seeds` seeds; 1 before the first look.

    Between 0.001 and 0.5; what is below counts as 0.001, what is above as 1. It is the p itself where n = seeds = 2.
    A one-sided p may be given, too: its sequential p is then rather too large.
    """
    import numpy as np

    if n < FIRST:
        return 1.0
    levels, bounds = _bounds(seeds)
    column = bounds[:, n - FIRST]
    return float(np.exp(np.interp(np.log(max(p, 1e-300)), np.log(column), np.log(levels), right=0.0)))


def bound(n: int, seeds: int) -> float:
    """The p below which a difference is shown at 5 % over all looks, after n of at most `seeds` seeds."""
    import numpy as np

    levels, bounds = _bounds(seeds)
    return float(np.exp(np.interp(np.log(1 - LEVEL), np.log(levels), np.log(bounds[:, n - FIRST]))))


def chance(differences: np.ndarray, seeds: int) -> float:
    """The probability that the remaining seeds show a difference, in whichever direction, given those of n >= 2 seeds.

    It is predictive: over the means and variances that the n differences leave possible (the posterior under the prior
    1 / variance), and not at the mean that they happen to have.
    """
    import numpy as np

    n = len(differences)
    rng = np.random.default_rng(0)
    sd = differences.std(ddof=1) * np.sqrt((n - 1) / rng.chisquare(n - 1, DRAWS))
    mean = differences.mean() + sd / np.sqrt(n) * rng.standard_normal(DRAWS)
    later = mean[:, None] + sd[:, None] * rng.standard_normal((DRAWS, seeds - n))
    paths = np.concatenate([np.broadcast_to(differences, (DRAWS, n)), later], 1)
    crossed = [paired_t(paths[:, :k])[2] < bound(k, seeds) for k in range(n + 1, seeds + 1)]
    return float(np.any(crossed, 0).mean()) if crossed else 0.0


@cache
def _bounds(seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Levels [L], and the bounds on p [L, looks] at which each is spent."""
    import numpy as np

    levels = np.geomspace(0.001, 0.5, 24)
    looks = range(FIRST, seeds + 1)
    noise = np.random.default_rng(0).standard_normal((PATHS, seeds))
    p = np.stack([paired_t(noise[:, :n])[2] for n in looks], -1)
    bounds = np.empty((len(levels), len(looks)))
    for row, level in zip(bounds, levels, strict=True):
        going = np.ones(PATHS, bool)
        for look, n in enumerate(looks):
            crossing = round(spent(n / seeds, level) * PATHS) - int((~going).sum())
            row[look] = np.partition(p[going, look], crossing)[crossing]
            going &= p[:, look] >= row[look]
    return levels, np.maximum.accumulate(bounds)
