"""The weight-free metrics of clips: one class per row of the registry, a module per family of formulas.

A scorer is fed batches and holds no more than it needs to finish the folder; its constructor's arguments are the
registry's `settings`. Unlike the metrics of videos (`benchmarks.metrics.stream`) it takes whole clips, several at a
time, and may have one value for all of them.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.metrics import METRICS, lookup
from benchmarks.metrics.reference.anchor_fidelity import AnchorFidelity
from benchmarks.metrics.reference.clip_frames import Batch, ClipScorer
from benchmarks.metrics.reference.mhd_of_clips import ClipMhd, MhdRatio
from benchmarks.metrics.reference.solution_gap import SolutionGain, SolutionGap
from benchmarks.metrics.reference.spectrum import PowerSpectrumDistance
from benchmarks.metrics.reference.wasserstein import SlicedWasserstein

_CLASSES = (
    *(PowerSpectrumDistance, SlicedWasserstein, ClipMhd, MhdRatio, SolutionGap, SolutionGain),
    AnchorFidelity,
)
SCORERS: dict[str, Callable[..., ClipScorer]] = {
    name: next(found for found in _CLASSES if found.__name__ == metric.scorer)
    for name, metric in METRICS.items()
    if metric.family == "reference"
}


def scorer(name: str) -> ClipScorer:
    """A fresh scorer of a metric with the registry's settings.

    Raises: ValueError for an unknown name.
    """
    return SCORERS[name](**lookup(name).settings)


def measure(name: str, batch: Batch) -> float:
    """One metric of clips that are in memory.

    Raises: ValueError for an unknown name, or if the batch lacks what the metric needs.
    """
    missing = [need for need in lookup(name).needs if getattr(batch, need) is None]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}; give it in the batch")
    of_clips = scorer(name)
    of_clips.add(batch)
    return of_clips.result()
