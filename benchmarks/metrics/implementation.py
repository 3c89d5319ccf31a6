"""What the implementation of a metric must have; the registry's `scorer` names it, and `scorer_of` makes it.

Metrics of videos are made by a function, one for all metrics of a family, with its networks loaded once:

    def scorer(names: Sequence[str], settings: Mapping[str, Any], device: str) -> Scorer

names: those of the family that are asked for; settings: all of the registry's keys; device: "cpu" or "cuda:0". It
raises `MissingWeights` (weights or a package that is not there) or ValueError (a setting that makes no sense).
`benchmarks.measure.streaming` decodes a video once, hands every frame to the metrics that want it, on several threads,
and gives their answers back in the frames' order, so that no video is ever held whole.

Metrics of clips (family "reference") are classes, one per metric, whose arguments are its settings: a `ClipScorer`.
`benchmarks.measure.clips` feeds it whole clips, several at a time, as it may have one value for all of them.

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
    """One frame with its neighbour and, where the metric needs it, the real video's frame; uint8 `[H, W, 3]` RGB."""

    index: int
    image: Frames
    previous: Frames | None = None
    real: Frames | None = None


class Video(Protocol):
    """One video being scored."""

    @property
    def memory(self) -> int:
        """Bytes that one call of `frame` needs at most beside the frame itself."""

    def wants(self, index: int) -> bool:
        """Whether frame number `index` is looked at; others are decoded, but not handed over."""

    def frame(self, view: FrameView) -> Any:
        """What is kept of a frame: small, and of nothing but `look`. Called on any thread, in any order."""

    def result(self, frames: Sequence[Any]) -> Mapping[str, float]:
        """Metric -> value, from what `frame` gave for every wanted frame, in order."""


class Scorer(Protocol):
    """What measures videos by one family of metrics."""

    def begin(self, info: VideoInfo) -> Video:
        """Start on a video. Raises ValueError where it cannot be scored (too short, too small), saying so."""


@dataclass(frozen=True)
class Batch:
    """Clips of one size and what they are held against, structure of another H, W.

    [B, 3, F, H, W] each: float in [-1, 1], or uint8 that stand for them (see `reference.floats`).
    """

    video: Tensor
    real: Tensor | None = None
    structure: Tensor | None = None
    solution: Tensor | None = None


class ClipScorer(Protocol):
    """Scores one folder of clips: `add` every batch once, then `result`."""

    def add(self, batch: Batch) -> Tensor | None:
        """Take in a batch; the values per video [B], or None for a metric of the whole set."""

    def result(self) -> float:
        """The folder's value."""


def scorer_of(names: Sequence[str], settings: Mapping[str, Any] | None = None, device: str = "cpu") -> Any:
    """A `Scorer` of metrics of one family, or the fresh `ClipScorer` of one metric; by default the registry's settings.

    Raises: ConfigError for an unknown metric; what the implementation raises.
    """
    row = lookup(names[0])
    module, _, name = row.scorer.rpartition(".")
    factory = getattr(importlib.import_module(f"benchmarks.metrics.{module}"), name)
    settings = row.settings if settings is None else settings
    return factory(**settings) if row.family == "reference" else factory(names, settings, device)


def spread(count: int, frames: int) -> list[int]:
    """`wanted` frame numbers spread evenly over a video, the middles of equal parts; all of them if it has fewer."""
    if count >= frames:
        return list(range(frames))
    return [(2 * i + 1) * frames // (2 * count) for i in range(count)]
