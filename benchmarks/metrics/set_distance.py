"""Distances between two sets of videos, from a row of features per video.

    FVD = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)             (Unterthiner et al. 2019; Dowson and Landau 1982)
    KVD = mean k(x, x') + mean k(y, y') - 2 mean k(x, y),  k(a, b) = (a . b / D + 1)^3
          over pairs of different videos: the unbiased estimate of MMD^2  (Gretton et al. 2012; Binkowski et al. 2018)

With centred features A^T A = S1 and B^T B = S2, tr (S1 S2)^(1/2) is the sum of the singular values of A B^T: there is
no square root of a matrix, and no jitter where there are fewer videos than features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]


@dataclass(frozen=True)
class SetDistance:
    """A distance of sets. compute: (real [N, D], generated [M, D]) -> value, from two videos each; lower is better.

    is_biased: whether its expectation falls with the number of videos.
    """

    name: str
    compute: Callable[[Features, Features], float]
    is_biased: bool
    about: str


def frechet(real: Features, generated: Features) -> float:
    """FVD of [N, D] and [M, D]; a value within rounding is 0, as between a set and itself."""
    a, b = _root(real), _root(generated)
    shift = real.mean(0) - generated.mean(0)
    spread = float((a**2).sum() + (b**2).sum())
    value = float(shift @ shift) + spread - 2 * float(np.linalg.svd(a @ b.T, compute_uv=False).sum())
    return value if value > 8 * np.finfo(float).eps * real.shape[1] * spread else 0.0


def _root(features: Features) -> Features:
    """A [min(N, D), D] with A^T A = the covariance of [N, D]."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return centred if len(centred) <= centred.shape[1] else np.asarray(np.linalg.qr(centred, mode="r"))


def kernel_distance(real: Features, generated: Features) -> float:
    """KVD of [N, D] and [M, D]; below 0 by chance where the sets are alike."""
    return _within(real) + _within(generated) - 2 * float(_kernel(real, generated).mean())


def _kernel(a: Features, b: Features) -> Features:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _within(features: Features) -> float:
    values, count = _kernel(features, features), len(features)
    return float(values.sum() - np.trace(values)) / (count * (count - 1))


DISTANCES: Mapping[str, SetDistance] = {
    row.name: row
    for row in (
        SetDistance("fvd", frechet, True, "Frechet distance of Gaussians fitted to the features"),
        SetDistance("kvd", kernel_distance, False, "squared MMD of the features, cubic kernel, unbiased"),
    )
}
"""Name -> distance; `pw score what=sets` reports all of them."""
