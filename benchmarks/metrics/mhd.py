"""mHD-MSE: the energy that a video loses by downsampling by 2^k and upsampling  (paper: Eq. 9.9; UltraGen, app. D).

    mHD-MSE(v) = mean over k of  mean over pixels, channels, frames of (v - R_k(v))^2,    v RGB in [0, 1]

R_k is the operator of the authors' script: bilinear, align_corners=False, without antialias, to floor(H / 2^k) x
floor(W / 2^k) and the same filter up. Their script sums over k (`reduction="sum"`). Higher is not always better: noise
and over-sharpening are rewarded, and the same content at twice the size scores less.

Without antialias each pixel of the small image depends on four pixels of the frame. So the code gathers the small
image, widens it to the frame's width, and enlarges it to the frame's height in bands that fit the cache; each band is
compared at once. No array of the frame's size is allocated. torch is not imported on a CPU.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.metrics.implementation import FrameView
from pw.io.lazy import Tensor

if TYPE_CHECKING:
    from pw.io.video import Frames, VideoInfo

REDUCTIONS = ("mean", "sum")
BAND = 1 << 18  # float32 values of a band: 1 MB; larger ones are no faster, smaller ones slower
RUN = 2048  # squares summed in float32


@dataclass(frozen=True)
class Scales:
    """The exponents k, and the reduction of their values: "mean" (the paper) or "sum" (its authors' script).

    Raises: ValueError for no k, a k that is not an integer of at least 1, or another reduction.
    """

    ks: tuple[int, ...]
    reduction: str

    def __post_init__(self) -> None:
        if not self.ks or any(not isinstance(k, int) or k < 1 for k in self.ks):
            raise ValueError(f"ks={list(self.ks)}: expected one or more whole numbers of at least 1, as (3, 4, 5)")
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction={self.reduction!r}: known: {', '.join(REDUCTIONS)}")

    def value(self, frames: Sequence[Sequence[float]]) -> float:
        """A video's value from the values of its frames, `[frames][k]`."""
        means = np.asarray(frames, np.float64).mean(0)
        return float(means.sum() if self.reduction == "sum" else means.mean())


@dataclass(frozen=True)
class Mhd:
    scales: Scales
    device: str

    def begin(self, info: VideoInfo) -> MhdVideo:
        return MhdVideo(self.scales, self.device, working_memory(info.height, info.width, self.scales.ks))


@dataclass(frozen=True)
class MhdVideo:
    scales: Scales
    device: str
    memory: int

    def wants(self, index: int) -> bool:
        return True

    def frame(self, view: FrameView) -> list[float]:
        if self.device == "cpu":
            return losses(view.image, self.scales.ks)
        return losses_on(self.device, view.image, self.scales.ks)

    def result(self, frames: Sequence[Sequence[float]]) -> Mapping[str, float]:
        return {"mhd_mse": self.scales.value(frames)}


def scorer(names: Sequence[str], settings: Mapping[str, Any], device: str) -> Mhd:
    """The family's scorer. Raises: ValueError for invalid settings."""
    return Mhd(Scales(tuple(settings["ks"]), settings["reduction"]), device)


class Axis(NamedTuple):
    """Bilinear samples of one axis: `(1 - weight) x[low] + weight x[high]`, one entry per sample."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    weight: NDArray[np.float64]


@functools.lru_cache(maxsize=64)
def axis(size: int, samples: int) -> Axis:
    """`samples` samples of `size` values, at the positions of F.interpolate(align_corners=False)."""
    centre = np.maximum((np.arange(samples) + 0.5) * (size / samples) - 0.5, 0)
    low = np.minimum(centre.astype(np.intp), size - 1)
    return Axis(low, np.minimum(low + 1, size - 1), centre - low)


def small_size(height: int, width: int, k: int) -> tuple[int, int]:
    """Height and width 2^k times smaller: rounded down, at least 1 px."""
    return max(1, height >> k), max(1, width >> k)


def losses(image: Frames, ks: Sequence[int]) -> list[float]:
    """Mean of (v - R_k(v))^2 of a frame uint8 `[H, W, 3]`, on [0, 1], for each k."""
    height, width, _ = image.shape
    rows = np.ascontiguousarray(image).reshape(height, -1)
    small = [downsample(image, k) for k in ks]
    # R_k preserves constants: subtracting a grey value keeps float32's precision in an almost flat frame
    grey = np.rint(small[0].mean())
    pictures = [widen(picture - grey, width) for picture in small]
    band_height = min(height, max(1, BAND // rows.shape[1]))
    band, error = np.empty((2, band_height, rows.shape[1]), np.float32)
    totals = [0.0] * len(ks)
    for top in range(0, height, band_height):
        values, errors = band[: height - top], error[: height - top]
        np.copyto(values, rows[top : top + band_height])
        values -= np.float32(grey)
        for n, picture in enumerate(pictures):
            _enlarge(picture, height, top, errors)
            errors -= values
            totals[n] += _sum_of_squares(errors)
    return [total / (255.0**2 * rows.size) for total in totals]


def losses_on(device: str, image: Frames, ks: Sequence[int]) -> list[float]:
    """The same as `losses` by torch, with whole frames on the device."""
    import torch

    frame = to_tensor(image, device)
    return [float((frame - round_trip(frame, k)).square().mean(dtype=torch.float64)) for k in ks]


def round_trip(frame: Tensor, k: int) -> Tensor:
    """R_k of frames `[N, 3, H, W]`."""
    from torch.nn.functional import interpolate

    height, width = frame.shape[-2:]
    small = interpolate(frame, small_size(height, width, k), mode="bilinear", align_corners=False)
    return interpolate(small, (height, width), mode="bilinear", align_corners=False)


def to_tensor(image: Frames, device: str) -> Tensor:
    """uint8 `[H, W, 3]` -> float32 `[1, 3, H, W]` in [0, 1]."""
    import torch

    return torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float().div_(255)


def downsample(image: Frames, k: int) -> NDArray[np.float64]:
    """A frame 2^k times smaller: uint8 `[H, W, 3]` -> `[h, w, 3]` in [0, 255]."""
    h, w = small_size(image.shape[0], image.shape[1], k)
    y, x = axis(image.shape[0], h), axis(image.shape[1], w)
    columns = np.concatenate([x.low, x.high])
    upper = np.take(image[y.low], columns, axis=1).astype(np.float64)
    upper += y.weight[:, None, None] * (np.take(image[y.high], columns, axis=1) - upper)
    left, right = upper[:, :w], upper[:, w:]
    return left + x.weight[:, None] * (right - left)


def widen(small: NDArray[np.float64], width: int) -> NDArray[np.float32]:
    """Resize the rows of a small image to `width` px: `[h, w, 3]` -> `[h, 3 width]`, channels interleaved."""
    h, w, _ = small.shape
    x = axis(w, width)
    low, high = ((3 * indices[:, None] + np.arange(3)).ravel() for indices in (x.low, x.high))
    flat = small.reshape(h, -1).astype(np.float32)
    left, result = np.take(flat, low, axis=1), np.take(flat, high, axis=1)
    result -= left
    result *= np.repeat(x.weight, 3).astype(np.float32)
    result += left
    return result


def _enlarge(picture: NDArray[np.float32], height: int, top: int, out: NDArray[np.float32]) -> None:
    """Enlarge `picture` `[h, X]` to `height` rows and write its rows `top`, `top + 1`, ... to `out` `[n, X]`."""
    low, high, weight = (values[top : top + len(out)] for values in axis(len(picture), height))
    weights = weight.astype(np.float32)[:, None]
    edges = [0, *(np.flatnonzero(np.diff(low)) + 1), len(out)]
    for start, stop in itertools.pairwise(edges):
        lower = picture[low[start]]
        np.multiply(picture[high[start]] - lower, weights[start:stop], out=out[start:stop])
        out[start:stop] += lower


def _sum_of_squares(values: NDArray[np.float32]) -> float:
    """Sum in float32 within runs of `RUN` values, and in float64 over the runs, to keep the precision."""
    flat = values.reshape(-1)
    rest = flat.size % RUN
    runs, last = flat[: flat.size - rest].reshape(-1, RUN), flat[flat.size - rest :]
    return float(np.vecdot(runs, runs).sum(dtype=np.float64)) + float(np.vecdot(last, last))


def working_memory(height: int, width: int, ks: Sequence[int]) -> int:
    """Bytes that `losses` allocates: bands, widened images, and temporaries of the largest of them."""
    heights, widths = zip(*(small_size(height, width, k) for k in ks), strict=True)
    row = 4 * 3 * width
    reduction_bytes = max(row * max(heights), 120 * max(heights) * max(widths))
    return row * sum(heights) + reduction_bytes + 2 * max(4 * BAND, row)
