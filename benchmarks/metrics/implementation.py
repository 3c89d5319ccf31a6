"""The interface of a metric's implementation; the registry's `scorer` names it, and `scorer_of` constructs it.

Each family of video metrics has one function, which loads the networks once:

    def scorer(names: Sequence[str], settings: Mapping[str, Any], device: str) -> Scorer

names: the requested metrics of the family; settings: all of the registry's keys; device: "cpu" or "cuda:0". It raises
`MissingWeights` (weights or a package are missing) or ValueError (a setting is invalid).
`benchmarks.measure.streaming` decodes a video once and calls `Video.frame` for every frame that a metric wants, on
several threads. It passes the results in the order of the frames to `Video.result`. No video is ever in memory whole.

Each metric of clips (family "reference") is a class, a `ClipScorer`; its constructor's arguments are the settings.
`benchmarks.measure.clips` calls it with batches of whole clips.

A family that takes neither frames nor clips (VBench's worker) has `score_videos`, see `benchmarks.metrics.vbench`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.metrics import lookup
from pw.io.lazy import Tensor

if TYPE_CHECKING:
    from pw.io.video import Frames, VideoInfo


@dataclass(frozen=True)
class FrameView:
    """A frame, the frame before it and, if the metric needs it, the real video's frame; uint8 `[H, W, 3]` RGB."""

    index: int
    image: Frames
    previous: Frames | None = None
    real: Frames | None = None


class Video(Protocol):
    """One video being scored."""

    @property
    def memory(self) -> int:
        """The most bytes that one call of `frame` allocates, without the frame itself."""

    def wants(self, index: int) -> bool:
        """Whether `frame` is to be called for frame number `index`."""

    def frame(self, view: FrameView) -> Any:
        """A small result that depends on `view` only. Called on any thread, in any order."""

    def result(self, frames: Sequence[Any]) -> Mapping[str, float]:
        """Metric -> value. frames: the results of `frame`, in the order of the frames."""


class Scorer(Protocol):
    """Measures videos by one family of metrics."""

    def begin(self, info: VideoInfo) -> Video:
        """Begin a video. Raises ValueError if it cannot be scored, for example because it is too short or too small."""


@dataclass(frozen=True)
class Batch:
    """Clips of one size and their reference clips; the structure clips may have another H, W.

    Each is [B, 3, F, H, W]: float in [-1, 1], or uint8, which `reference.floats` converts.
    """

    video: Tensor
    real: Tensor | None = None
    structure: Tensor | None = None
    solution: Tensor | None = None


class ClipScorer(Protocol):
    """Scores one folder of clips: `add` every batch once, then `result`."""

    def add(self, batch: Batch) -> Tensor | None:
        """Add a batch. Returns the values per video [B], or None for a metric of the whole set."""

    def result(self) -> float:
        """The folder's value."""


def scorer_of(names: Sequence[str], settings: Mapping[str, Any] | None = None, device: str = "cpu") -> Any:
    """The `Scorer` for metrics of one family, or a new `ClipScorer` for one metric of the family "reference".

    settings: the registry's by default. Raises: ConfigError for an unknown metric, and what the implementation raises.
    """
    row = lookup(names[0])
    module, _, name = row.scorer.rpartition(".")
    factory = getattr(importlib.import_module(f"benchmarks.metrics.{module}"), name)
    settings = row.settings if settings is None else settings
    return factory(**settings) if row.family == "reference" else factory(names, settings, device)


def spread(count: int, frames: int) -> list[int]:
    """`count` frame numbers, the middles of equal parts of a video; all frame numbers if there are fewer."""
    if count >= frames:
        return list(range(frames))
    return [(2 * i + 1) * frames // (2 * count) for i in range(count)]
