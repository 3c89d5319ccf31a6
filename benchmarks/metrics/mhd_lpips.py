"""mHD-LPIPS: what a video loses on the way 2^k down and up again, in AlexNet's eyes  (paper: Eq. 9.10).

    mHD-LPIPS(v) = mean over k of  mean over frames t of LPIPS(v_t, R_k(v)_t)

R_k and the reductions are mHD-MSE's. The frame's own activations are the same for every k: they are computed once, so
three k take four passes of the network instead of six.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.metrics.lpips import Lpips, check_size, load, working_memory
from benchmarks.metrics.mhd import Scales, round_trip, to_tensor
from benchmarks.metrics.stream import Look

if TYPE_CHECKING:
    from pw.io.video import VideoInfo


@dataclass(frozen=True)
class MhdLpips:
    """The scorer of "mhd_lpips"."""

    lpips: Lpips
    scales: Scales

    def begin(self, info: VideoInfo) -> MhdLpipsVideo:
        """Raises: ValueError for frames that AlexNet is too deep for."""
        check_size("mhd_lpips", info)
        return MhdLpipsVideo(self.lpips, self.scales, working_memory(info))


@dataclass(frozen=True)
class MhdLpipsVideo:
    """mHD-LPIPS of one video; of a frame is kept one number for each k."""

    lpips: Lpips
    scales: Scales
    memory: int

    def wants(self, index: int) -> bool:
        return True

    def frame(self, look: Look) -> list[float]:
        frame = to_tensor(look.image, self.lpips.device)
        features = self.lpips.features(frame)
        return [self.lpips.distance(features, round_trip(frame, k)) for k in self.scales.ks]

    def result(self, frames: Sequence[Sequence[float]]) -> Mapping[str, float]:
        return {"mhd_lpips": self.scales.value(frames)}


def scorer(names: Sequence[str], settings: Mapping[str, Any], device: str) -> MhdLpips:
    """The family's scorer. Raises: MissingWeights without AlexNet; ValueError for settings that make no sense."""
    scales = Scales(tuple(settings["ks"]), settings["reduction"])
    return MhdLpips(load(settings["net"], device), scales)
