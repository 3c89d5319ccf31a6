"""How much a set's metric owes to the very clips it was measured on: the delete-a-group jackknife.

A metric of a whole set (psd, swd) has no values per clip whose spread could be taken. It is measured again with each
of `GROUPS` groups of clips left out, with what they are held against. The spread of these values, times what leaving
out so small a share understates, is the variance that other clips would have brought (Quenouille 1956, Tukey 1958).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure.clips import ClipHash, batches, clip_paths
from benchmarks.metrics import lookup

if TYPE_CHECKING:
    from benchmarks.metrics.implementation import Batch

GROUPS = 8


def leave_out(metric: str, folders: Mapping[str, Path], groups: int = GROUPS) -> list[float]:
    """The metric with each group of clips left out; clip i, by name, is of group i modulo `groups`.

    folders: "video" and what the metric needs ("real", "solution", …), as `score_folder` is given them.
    Raises: ValueError for a folder without clips, or fewer clips than groups.
    """
    clips = {what: clip_paths(folder) for what, folder in folders.items() if what in ("video", *lookup(metric).needs)}
    common = sorted(set.intersection(*(set(found) for found in clips.values())))
    if len(common) < groups:
        raise ValueError(f"{folders['video']}: {len(common)} clips, fewer than {groups} groups of them")
    groups_of_clips = (
        {what: {n: found[n] for n in common[k::groups]} for what, found in clips.items()} for k in range(groups)
    )
    return values_without(metric, [[batch for _, batch in batches(group, ClipHash())] for group in groups_of_clips])


def values_without(metric: str, groups: Sequence[Sequence[Batch]]) -> list[float]:
    """The metric of all groups of batches but one, for each that is left out."""
    from benchmarks.metrics.implementation import scorer_of

    scorers = [scorer_of([metric]) for _ in groups]
    for k, group in enumerate(groups):
        for batch in group:
            for left_out, left_scorer in enumerate(scorers):
                if left_out != k:
                    left_scorer.add(batch)
    return [each.result() for each in scorers]


def jackknife_variance(values: Sequence[float]) -> float:
    """Variance of an estimate over all clips, from its values with each group of them left out."""
    import numpy as np

    found = np.asarray(values, float)
    return float((len(found) - 1) / len(found) * ((found - found.mean()) ** 2).sum())
