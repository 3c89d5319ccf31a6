"""Means over videos with a bootstrap interval.

Videos of one prompt are not independent, so whole prompts are drawn where a prompt has several videos.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.stats.difference import LEVEL

RESAMPLES = 10_000
_SEED = re.compile(r"-\d+$")


def prompt_of(video: str) -> str:
    """What videos of one prompt share: the file name without ending and without the trailing `-0`, `-1`, …"""
    return _SEED.sub("", Path(video).stem)


@dataclass(frozen=True)
class Mean:
    """Mean over n videos of so many prompts, and its 95 % interval; None where one prompt alone leaves none."""

    mean: float
    low: float | None
    high: float | None
    n: int
    clusters: int


def bootstrap_mean(values: Sequence[float], clusters: Sequence[Hashable] | None = None, seed: int = 0) -> Mean:
    """Mean of values and its BCa interval (Efron 1987), clusters (prompts) drawn as wholes.

    values: one per video, finite; clusters: the prompt of each, None if every video has its own.
    Raises: ValueError if there is no value, or as many clusters as values are not given.
    """
    import numpy as np
    from scipy.stats import bootstrap

    given = np.asarray(values, float)
    if not len(given):
        raise ValueError("no values to average; leave the metric out instead")
    if not np.isfinite(given).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(given))} values that are not finite")
    names = list(range(len(given))) if clusters is None else list(clusters)
    if len(names) != len(given):
        raise ValueError(f"{len(given)} values, but {len(names)} clusters")
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    at = np.array([index[name] for name in names])
    sums = np.bincount(at, given, len(index))
    counts = np.bincount(at, minlength=len(index)).astype(float)
    mean = float(sums.sum() / counts.sum())
    if len(index) == 1:
        return Mean(mean, None, None, len(given), 1)
    if np.ptp(sums / counts) <= 1e-12 * max(1.0, abs(mean)):  # all alike: no spread, where BCa divides by it
        return Mean(mean, mean, mean, len(given), len(index))

    def ratio(totals: np.ndarray, ns: np.ndarray, axis: int = -1) -> np.ndarray:
        return totals.sum(axis) / ns.sum(axis)

    found = bootstrap(
        (sums, counts),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=1000,
        confidence_level=LEVEL,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Mean(mean, float(found.low), float(found.high), len(given), len(index))
