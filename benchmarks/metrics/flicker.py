"""VBench's temporal flickering, frame by frame: 1 - mean |difference of neighbouring frames| / 255.

VBench (0.1.5, temporal_flickering.py) takes the mean over pixels and channels of |uint8 difference| for each pair of
neighbours in float32, then their mean over pairs, then (255 - mean) / 255. Here the sums are exact, so the two differ
by float32's rounding: less than 1e-8 on the real clips. VBench's decoder reads every video as BT.601 and SDR; ours uses
the tags of the file, which changes a video tagged as BT.709 by about 1e-5 (at most 2.3e-5 on three real clips).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from benchmarks.metrics.implementation import FrameView
    from pw.io.video import Frames, VideoInfo

BAND = 1 << 20  # samples compared at a time, which limits the memory


@dataclass(frozen=True)
class _Video:
    memory: int = 8 * BAND

    def wants(self, index: int) -> bool:
        return index > 0

    def frame(self, view: FrameView) -> float:
        assert view.previous is not None
        return mean_difference(view.previous, view.image)

    def result(self, frames: Sequence[float]) -> Mapping[str, float]:
        return {"temporal_flickering": (255.0 - sum(_check_pairs(frames)) / len(frames)) / 255.0}


@dataclass(frozen=True)
class _Scorer:
    def begin(self, info: VideoInfo) -> _Video:
        _check_pairs(range(info.frames - 1))
        return _Video()


def scorer(names: Sequence[str], settings: Mapping[str, Any], device: str) -> _Scorer:
    """The scorer of the family's only metric; it always runs on the CPU."""
    return _Scorer()


def mean_difference(first: Frames, second: Frames) -> float:
    """Mean absolute difference of two frames, uint8 `[H, W, 3]` -> 0 to 255, exact except for one division."""
    first, second = first.reshape(-1), second.reshape(-1)
    total = 0
    for start in range(0, first.size, BAND):
        a, b = first[start : start + BAND], second[start : start + BAND]
        total += int((np.maximum(a, b) - np.minimum(a, b)).sum(dtype=np.uint32))
    return total / first.size


def _check_pairs(pairs: Sequence[Any]) -> Sequence[Any]:
    if not pairs:
        raise ValueError("temporal_flickering compares neighbouring frames: it needs two, not one")
    return pairs
