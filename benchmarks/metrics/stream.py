"""How a video is scored: frame by frame, one decode for all metrics, never held whole.

`benchmarks.measure.score` decodes a video once, hands every frame to the metrics that want it, on several threads, and
gives their answers back in the frames' order. A family's module has

    def scorer(names: Sequence[str], settings: Mapping[str, Any], device: str) -> Scorer

names: the family's metrics that are asked for; settings: all of the registry's keys; device: "cpu" or "cuda:0". It
raises `MissingWeights` (weights or a package that is not there) or ValueError (a setting that makes no sense).

A family that cannot go frame by frame (VBench's worker) has `score_videos` instead, see `benchmarks.measure.score`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pw.io.video import Frames, VideoInfo


@dataclass(frozen=True)
class Look:
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
        ...

    def wants(self, index: int) -> bool:
        """Whether frame number `index` is looked at; others are decoded, but not handed over."""
        ...

    def frame(self, look: Look) -> Any:
        """What is kept of a frame: small, and of nothing but `look`. Called on any thread, in any order."""
        ...

    def result(self, frames: Sequence[Any]) -> Mapping[str, float]:
        """Metric -> value, from what `frame` gave for every wanted frame, in order."""
        ...


class Scorer(Protocol):
    """A family's implementation, its networks loaded once."""

    def begin(self, info: VideoInfo) -> Video:
        """Start on a video. Raises ValueError where it cannot be scored (too short, too small), saying so."""
        ...


def spread(wanted: int, frames: int) -> list[int]:
    """`wanted` frame numbers spread evenly over a video, the middles of equal parts; all of them if it has fewer."""
    if wanted >= frames:
        return list(range(frames))
    return [(2 * i + 1) * frames // (2 * wanted) for i in range(wanted)]
