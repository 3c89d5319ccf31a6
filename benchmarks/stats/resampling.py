"""Means over videos with a bootstrap interval, and a set metric's variance over clips by the jackknife."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.metrics import lookup
from benchmarks.stats.comparison import LEVEL

if TYPE_CHECKING:
    from benchmarks.metrics.implementation import Batch

RESAMPLES = 10_000
GROUPS = 8
_SEED = re.compile(r"-\d+$")


def prompt_of(video: str) -> str:
    """The file name without suffix and without the trailing `-0`, `-1`, …"""
    return _SEED.sub("", Path(video).stem)


@dataclass(frozen=True)
class Mean:
    """Mean over n videos and its 95 % interval, None for a single prompt; clusters: the number of prompts."""

    mean: float
    low: float | None
    high: float | None
    n: int
    clusters: int


def bootstrap_mean(values: Sequence[float], clusters: Sequence[Hashable] | None = None, seed: int = 0) -> Mean:
    """Mean of values and its BCa interval (Efron 1987), which is scipy's default.

    Videos of one prompt are not independent, so whole prompts are resampled.

    values: one per video, finite; clusters: the prompt of each, None if every video has its own.
    Raises: ValueError if there is no value, or if the numbers of values and clusters differ.
    """
    import numpy as np
    from scipy.stats import bootstrap

    array = np.asarray(values, float)
    if not len(array):
        raise ValueError("no values to average; leave the metric out instead")
    if not np.isfinite(array).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(array))} values that are not finite")
    names = list(range(len(array))) if clusters is None else list(clusters)
    if len(names) != len(array):
        raise ValueError(f"{len(array)} values, but {len(names)} clusters")
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    cluster_index = np.array([index[name] for name in names])
    sums = np.bincount(cluster_index, array, len(index))
    counts = np.bincount(cluster_index, minlength=len(index)).astype(float)
    mean = float(sums.sum() / counts.sum())
    if len(index) == 1:
        return Mean(mean, None, None, len(array), 1)
    if np.ptp(sums / counts) <= 1e-12 * max(1.0, abs(mean)):  # no spread, by which BCa would divide
        return Mean(mean, mean, mean, len(array), len(index))

    def ratio(totals: np.ndarray, ns: np.ndarray, axis: int = -1) -> np.ndarray:
        return totals.sum(axis) / ns.sum(axis)

    rng = np.random.default_rng(seed)
    result = bootstrap(
        (sums, counts), ratio, paired=True, n_resamples=RESAMPLES, batch=1000, confidence_level=LEVEL, rng=rng
    )
    low, high = (float(end) for end in result.confidence_interval)
    return Mean(mean, low, high, len(array), len(index))


def leave_out(metric: str, folders: Mapping[str, Path], groups: int = GROUPS) -> list[float]:
    """The metric without each group of clips; clip i, in the order of names, is in group i modulo `groups`.

    A set metric (psd, swd) has no values per clip. So it is measured again without each group and its references.

    folders: "video" and the folders that the metric needs ("real", "solution", …), as in `score_folder`.
    Raises: ValueError for a folder without clips, or fewer clips than groups.
    """
    from benchmarks.measure.clips import ClipHash, batches, clip_paths

    clips = {role: clip_paths(folder) for role, folder in folders.items() if role in ("video", *lookup(metric).needs)}
    common = sorted(set.intersection(*(set(by_name) for by_name in clips.values())))
    if len(common) < groups:
        raise ValueError(f"{folders['video']}: {len(common)} clips, fewer than {groups} groups of them")
    groups_of_clips = (
        {role: {n: by_name[n] for n in common[k::groups]} for role, by_name in clips.items()} for k in range(groups)
    )
    return values_without(metric, [[batch for _, batch in batches(group, ClipHash())] for group in groups_of_clips])


def values_without(metric: str, groups: Sequence[Sequence[Batch]]) -> list[float]:
    """The metric of all groups of batches except one, for each group."""
    from benchmarks.metrics.implementation import scorer_of

    scorers = [scorer_of([metric]) for _ in groups]
    for k, group in enumerate(groups):
        for batch in group:
            for index, scorer in enumerate(scorers):
                if index != k:
                    scorer.add(batch)
    return [scorer.result() for scorer in scorers]


def jackknife_variance(values: Sequence[float]) -> float:
    """Jackknife variance over clips, from the values without each group (Quenouille 1956, Tukey 1958)."""
    import numpy as np

    array = np.asarray(values, float)
    return float((len(array) - 1) / len(array) * ((array - array.mean()) ** 2).sum())
