"""LPIPS v0.1: distance of two images in AlexNet's features  (Zhang et al. 2018), by torchmetrics' network.

    LPIPS(a, b) = sum over 5 layers of  mean over positions of  sum over channels c of w_c (a_c / |a| - b_c / |b|)^2

The weights w ship inside torchmetrics; AlexNet comes from `benchmarks.measure.metric_weights` and is never downloaded
here. Callers have RGB in [0, 1], the network takes [-1, 1]; with the wrong range it gives values several times too
small, without an error.

The distance is computed layer by layer, so that only one layer's activations of one image are in memory: all five take
0.35 GB at 3840 x 2160. The other image's features (`Lpips.features`) are computed once for several comparisons.

mHD-LPIPS is the LPIPS between a video and itself after downsampling by 2^k and upsampling  (paper: Eq. 9.10):

    mHD-LPIPS(v) = mean over k of  mean over frames t of LPIPS(v_t, R_k(v)_t)

R_k and the reductions are mHD-MSE's. The frame's own activations are computed once for all k, so three k take four
passes of the network instead of six.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics.functional.image.lpips import _normalize_tensor, _NoTrainLpips

from benchmarks.measure import metric_weights as weights
from benchmarks.metrics.implementation import FrameView
from benchmarks.metrics.mhd import Scales, round_trip, to_tensor

if TYPE_CHECKING:
    from pw.io.video import VideoInfo

SMALLEST = 31  # px: the smallest input of AlexNet's second pooling
BAND = 1 << 20  # activations normalised at a time, 4 MB

_HINT = '`make weights what=metrics args="only=alexnet"` fetches it again'


@dataclass(frozen=True)
class Lpips:
    """The network, loaded once; thread-safe."""

    network: _NoTrainLpips
    device: str

    def features(self, picture: Tensor) -> list[Tensor]:
        """Activations of the five layers, of unit length over channels: `[1, 3, H, W]` in [0, 1] -> `[1, C, h, w]`s."""
        return [_unit(layer) for layer in self._layers(picture)]

    def distance(self, features: Sequence[Tensor], picture: Tensor) -> float:
        """LPIPS between the image that `features` come from and `picture`, `[1, 3, H, W]` in [0, 1]."""
        layers, heads = self._layers(picture), self.network.lins
        return sum(_distance(*args) for args in zip(features, layers, heads, strict=True))

    def _layers(self, picture: Tensor) -> Iterator[Tensor]:
        """Yield the activations layer by layer, so that the caller can release each one."""
        values = self.network.scaling_layer(2 * picture - 1)
        for part in self.network.net.children():
            values = part(values)
            yield values


@dataclass(frozen=True)
class LpipsScorer:
    lpips: Lpips

    def begin(self, info: VideoInfo) -> LpipsVideo:
        check_size("lpips", info)
        return LpipsVideo(self.lpips, working_memory(info))


@dataclass(frozen=True)
class LpipsVideo:
    lpips: Lpips
    memory: int

    def wants(self, index: int) -> bool:
        return True

    def frame(self, view: FrameView) -> float:
        """Raises: ValueError if the real frame is of another size."""
        assert view.real is not None, "the registry says that it is needed"
        if view.real.shape != view.image.shape:
            (height, width, _), (real_height, real_width, _) = view.image.shape, view.real.shape
            raise ValueError(
                f"lpips compares videos of one size: this one is {width}x{height}, the real one {real_width}x"
                f"{real_height}; generate at the real size, or resize one of the two, and note it in the system's card"
            )
        features = self.lpips.features(to_tensor(view.real, self.lpips.device))
        return self.lpips.distance(features, to_tensor(view.image, self.lpips.device))

    def result(self, frames: Sequence[float]) -> Mapping[str, float]:
        return {"lpips": math.fsum(frames) / len(frames)}


def scorer(names: Sequence[str], settings: Mapping[str, Any], device: str) -> LpipsScorer:
    """The family's scorer. Raises: MissingWeights without AlexNet; ValueError for another net."""
    return LpipsScorer(load(settings["net"], device))


@dataclass(frozen=True)
class MhdLpips:
    lpips: Lpips
    scales: Scales

    def begin(self, info: VideoInfo) -> MhdLpipsVideo:
        check_size("mhd_lpips", info)
        return MhdLpipsVideo(self.lpips, self.scales, working_memory(info))


@dataclass(frozen=True)
class MhdLpipsVideo:
    lpips: Lpips
    scales: Scales
    memory: int

    def wants(self, index: int) -> bool:
        return True

    def frame(self, view: FrameView) -> list[float]:
        frame = to_tensor(view.image, self.lpips.device)
        features = self.lpips.features(frame)
        return [self.lpips.distance(features, round_trip(frame, k)) for k in self.scales.ks]

    def result(self, frames: Sequence[Sequence[float]]) -> Mapping[str, float]:
        return {"mhd_lpips": self.scales.value(frames)}


def mhd_lpips_scorer(names: Sequence[str], settings: Mapping[str, Any], device: str) -> MhdLpips:
    """The scorer of family "mhd_lpips". Raises as `scorer`, and ValueError for an invalid k or reduction."""
    scales = Scales(tuple(settings["ks"]), settings["reduction"])
    return MhdLpips(load(settings["net"], device), scales)


def load(net: str, device: str) -> Lpips:
    """Load LPIPS with AlexNet's weights; on CUDA without TF32, which changes the third digit.

    Raises: MissingWeights; ValueError for another net, or a file that is not torchvision's AlexNet.
    """
    if net != "alex":
        raise ValueError(f"net={net!r}: only 'alex' is measured here, the net of the paper's authors' script")
    trunk = weights.find("alexnet")
    with torch.random.fork_rng(devices=[]):  # random initial weights must not advance the generator
        network = _NoTrainLpips(net="alex", pnet_rand=True)
    network.net.load_state_dict(_trunk_weights(trunk, network.net.state_dict()))
    if device != "cpu":
        torch.backends.cudnn.allow_tf32 = False
    return Lpips(network.to(device), device)


def check_size(metric: str, info: VideoInfo) -> None:
    """Raises: ValueError for frames that are too small for AlexNet."""
    if min(info.height, info.width) < SMALLEST:
        raise ValueError(f"{metric} needs frames of {SMALLEST} px and more, not {info.width}x{info.height}")


def working_memory(info: VideoInfo) -> int:
    """Bytes for one frame on a CPU, without the frame: measured 106 per pixel at 1080p and 113 at 4K."""
    return 120 * info.height * info.width + 2**26


def _trunk_weights(path: Path, template: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map torchvision's `features.0.weight` to torchmetrics' `slice1.0.weight` and so on, without the classifier."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {_HINT}") from error
    result = {}
    for name, tensor in template.items():
        key = f"features.{name.partition('.')[2]}"
        value = state.get(key) if isinstance(state, Mapping) else None
        if not isinstance(value, Tensor) or value.shape != tensor.shape:
            shape = list(value.shape) if isinstance(value, Tensor) else "missing"
            raise ValueError(
                f"{path} is not torchvision's AlexNet: {key} is {shape}, it should be {list(tensor.shape)}; {_HINT}"
            )
        result[name] = value
    return result


def _bands(layer: Tensor) -> Iterator[slice]:
    """Slices of rows of `[1, C, h, w]`, about `BAND` values each."""
    _, channels, height, width = layer.shape
    band_height = max(1, BAND // (channels * width))
    return (slice(top, top + band_height) for top in range(0, height, band_height))


def _unit(layer: Tensor) -> Tensor:
    result = torch.empty_like(layer)
    for rows in _bands(layer):
        result[:, :, rows] = _normalize_tensor(layer[:, :, rows])
    return result


def _distance(unit: Tensor, layer: Tensor, head: Any) -> float:
    """One layer's term: mean over positions of the weighted squared difference; `layer` is not normalised yet."""
    total = torch.zeros((), dtype=torch.float64, device=layer.device)
    for rows in _bands(layer):
        difference = _normalize_tensor(layer[:, :, rows]).sub_(unit[:, :, rows])
        total += head(difference.square_()).sum(dtype=torch.float64)
    return float(total) / (layer.shape[2] * layer.shape[3])
