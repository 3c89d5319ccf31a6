"""NIQE: distance of a frame's statistics from those of pristine images (Mittal, Soundararajan, Bovik 2013).

    luma           Y of YIQ in [0, 255], rounded to whole levels
    MSCN           (Y - mean) / (deviation + 1), both under a 7 x 7 Gaussian of 7/6 px
    features       18 per block of 96 px: an asymmetric generalised Gaussian (AGGD) fitted to the MSCN values, and to
                   their products with four neighbours; again at half the size, in blocks of 48 px
    value          sqrt(d' pinv((S + S_pristine) / 2) d), d the difference of the features' means, S their covariance

Only incomplete blocks at the borders are cropped. A pixel in a flat region has an MSCN value of exactly 0 and counts
for neither side of an AGGD, which gives MATLAB's values to five digits; in pyiqa, whose window sums to 1 + 1e-8, it is
negative, and frames with flat regions differ: mostly by hundredths, in one calibration picture by 0.41. A block without
values on one side of an AGGD has NaN features: the covariance omits the block, the means omit the NaN values, and its
shape is the table's first, as in the reference. A frame without a complete block has no value (pyiqa fails there); the
video's mean omits it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gamma

from benchmarks.measure import metric_weights as weights

if TYPE_CHECKING:
    from benchmarks.metrics.implementation import FrameView
    from pw.io.video import Frames, VideoInfo

Floats = NDArray[np.float64]

BLOCK = 96
HALO = 3  # radius of the window in px
TILE = 4  # blocks filtered at a time: what fits in the cache
LUMA = (0.299, 0.587, 0.114)  # Y of YIQ, as pyiqa has it

_offsets = np.arange(-HALO, HALO + 1)
WINDOW = np.exp(-(_offsets**2) / (2 * (7 / 6) ** 2))
WINDOW /= WINDOW.sum()
# MATLAB's imresize at 0.5: Keys' cubic with a = -1/2, stretched to twice its width, at 0.25, 0.75, 1.25, 1.75
HALVE = np.array([-3, -9, 29, 111]) / 256

SHAPES = 0.2 + 0.001 * np.arange(9801)  # of the AGGD, from 0.2 to 10
# Mallat's ratio E|x|^2 / E x^2 of every shape; it grows with the shape
RATIOS = gamma(2 / SHAPES) ** 2 / (gamma(1 / SHAPES) * gamma(3 / SHAPES))
NEAREST = (RATIOS[1:] + RATIOS[:-1]) / 2


@dataclass(frozen=True)
class Pristine:
    """Mean `[36]` and covariance `[36, 36]` of the features of pristine pictures."""

    mean: Floats
    covariance: Floats


@dataclass(frozen=True)
class NiqeVideo:
    pristine: Pristine
    every: int
    memory: int

    def wants(self, index: int) -> bool:
        return index % self.every == 0

    def frame(self, view: FrameView) -> float | None:
        return niqe(luma(view.image), self.pristine)

    def result(self, frames: Sequence[float | None]) -> Mapping[str, float]:
        """The mean over the frames with a value. Raises ValueError if there is none, because every frame is flat."""
        values = [value for value in frames if value is not None]
        if not values:
            raise ValueError(f"niqe: none of {len(frames)} frames has a block with texture (black or flat pictures)")
        return {"niqe": math.fsum(values) / len(values)}


@dataclass(frozen=True)
class NiqeScorer:
    pristine: Pristine
    every: int

    def begin(self, info: VideoInfo) -> NiqeVideo:
        """Raises ValueError for frames smaller than one block."""
        if min(info.height, info.width) < BLOCK:
            raise ValueError(f"niqe: {info.width}x{info.height} px is too small, expected at least {BLOCK}x{BLOCK}")
        return NiqeVideo(self.pristine, self.every, memory(info.height, info.width))


def scorer(names: Sequence[str], settings: Mapping[str, Any], device: str) -> NiqeScorer:
    """NIQE, always on the CPU. Raises MissingWeights, and ValueError for an invalid setting."""
    every = settings["every"]
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"niqe: every={every!r}: expected a whole number of at least 1")
    return NiqeScorer(read_pristine(weights.find("niqe")), every)


def read_pristine(path: Any) -> Pristine:
    """Read the statistics from BasicSR's npz. Raises ValueError for a file without them."""
    with np.load(path) as file:
        missing = {"mu_pris_param", "cov_pris_param"} - set(file)
        if missing:
            raise ValueError(f"{path}: lacks {', '.join(sorted(missing))}, it is not NIQE's pristine statistics")
        mean, covariance = file["mu_pris_param"].ravel(), file["cov_pris_param"]
    return Pristine(mean.astype(np.float64), covariance.astype(np.float64))


def memory(height: int, width: int) -> int:
    """The most bytes for one frame: luma and its half, each with a padded copy; a band; the tiles."""
    return 6 * height * width + 4096 * width + (6 << 20)


def luma(image: Frames) -> NDArray[np.uint8]:
    """Y of YIQ, uint8 `[H, W]`, of uint8 RGB `[H, W, 3]`.

    In float32 on [0, 1], as pyiqa: one pixel in a thousand lies half-way between two levels, where round-off decides.
    """
    result = np.empty(image.shape[:2], np.uint8)
    for top in range(0, len(image), BLOCK):
        band = image[top : top + BLOCK] / np.float32(255)
        total = band[..., 0] * np.float32(LUMA[0])
        for channel in (1, 2):
            total += band[..., channel] * np.float32(LUMA[channel])
        total *= np.float32(255)
        result[top : top + BLOCK] = np.rint(total, out=total)
    return result


def niqe(plane: NDArray[Any], pristine: Pristine) -> float | None:
    """NIQE of a luma plane `[H, W]` in [0, 255]; None if no block has texture. Raises as `features`."""
    values = features(plane)
    complete = values[~np.isnan(values).any(axis=1)]
    if not len(complete):
        return None
    deviation = complete - complete.mean(axis=0)
    covariance = deviation.T @ deviation / max(len(complete) - 1, 1)
    distance = pristine.mean - np.nanmean(values, axis=0)
    inverse = np.linalg.pinv((pristine.covariance + covariance) / 2, hermitian=True)
    return float(np.sqrt(distance @ inverse @ distance))


def features(plane: NDArray[Any]) -> Floats:
    """36 features per block of a luma plane `[H, W]`: `[blocks, 36]`, 18 at full and 18 at half size; NaN: undefined.

    Raises: ValueError for a plane smaller than a block.
    """
    rows, columns = plane.shape[0] // BLOCK, plane.shape[1] // BLOCK
    if not rows * columns:
        raise ValueError(f"niqe: {plane.shape[1]}x{plane.shape[0]} px is too small, expected at least {BLOCK}x{BLOCK}")
    plane = plane[: rows * BLOCK, : columns * BLOCK]
    return np.concatenate((_at_one_scale(plane, BLOCK), _at_one_scale(halve(plane), BLOCK // 2)), axis=1)


def halve(plane: NDArray[Any]) -> Floats:
    """`[H, W]`, both even, -> `[H / 2, W / 2]` as MATLAB's imresize: bicubic, antialiased, edges mirrored."""
    height, width = plane.shape
    padded = np.pad(plane, HALO, mode="symmetric")
    result = np.empty((height // 2, width // 2))
    for top in range(0, height, BLOCK):
        band = padded[top : top + BLOCK + 2 * HALO].astype(np.float64)
        result[top // 2 : (top + BLOCK) // 2] = _halve_rows(_halve_rows(band).T).T
    return result


def _halve_rows(padded: Floats) -> Floats:
    """Halve the number of rows by the cubic filter, `[2 n + 6]` -> `[n]`."""
    end = len(padded) - 2 * HALO
    total = HALVE[0] * (padded[:end:2] + padded[7 : end + 7 : 2])
    for tap in (1, 2, 3):
        total += HALVE[tap] * (padded[tap : end + tap : 2] + padded[7 - tap : end + 7 - tap : 2])
    return total


def _at_one_scale(plane: NDArray[Any], side: int) -> Floats:
    """18 features of every block of `side` px, `[blocks, 18]`, in row-major order."""
    padded = np.pad(plane, HALO, mode="edge")
    rows, columns = plane.shape[0] // side, plane.shape[1] // side
    result = []
    for row in range(rows):
        for first in range(0, columns, TILE):
            last = min(first + TILE, columns)
            tile = padded[row * side : (row + 1) * side + 2 * HALO, first * side : last * side + 2 * HALO]
            blocks = mscn(tile.astype(np.float64)).reshape(side, -1, side).transpose(1, 0, 2)
            result.append(_block_features(np.ascontiguousarray(blocks, np.float32)))
    return np.concatenate(result)


def mscn(padded: Floats) -> Floats:
    """Mean-subtracted, contrast-normalised: `[H + 6, W + 6]` -> `[H, W]`."""
    mean = _blur(padded)
    variance = _blur(padded * padded)
    variance -= mean * mean
    deviation = np.sqrt(np.abs(variance, out=variance), out=variance)
    deviation += 1
    result = padded[HALO:-HALO, HALO:-HALO] - mean
    # rounds to multiples of 2^-32, so that round-off does not decide the sign in flat regions
    result += 2.0**20
    result -= 2.0**20
    result /= deviation
    return result


def _blur(padded: Floats) -> Floats:
    """The Gaussian window, separated: `[H + 6, W + 6]` -> `[H, W]`."""
    height, width = padded.shape[0] - 2 * HALO, padded.shape[1] - 2 * HALO
    columns = WINDOW[HALO] * padded[HALO : HALO + height]
    for tap in range(HALO):
        pair = padded[tap : tap + height] + padded[2 * HALO - tap : 2 * HALO - tap + height]
        pair *= WINDOW[tap]
        columns += pair
    result = WINDOW[HALO] * columns[:, HALO : HALO + width]
    for tap in range(HALO):
        pair = columns[:, tap : tap + width] + columns[:, 2 * HALO - tap : 2 * HALO - tap + width]
        pair *= WINDOW[tap]
        result += pair
    return result


def _block_features(blocks: NDArray[np.float32]) -> Floats:
    """18 features of each MSCN block: `[n, side, side]` -> `[n, 18]`."""
    shape, left, right = aggd(blocks)
    values = [shape, (left + right) / 2]
    # the left, upper and upper left neighbour of each pixel; at a block's edge, the pixel of its opposite edge
    west, north, northwest = np.roll(blocks, 1, 2), np.roll(blocks, 1, 1), np.roll(blocks, 1, (1, 2))
    for a, b in ((blocks, west), (blocks, north), (blocks, northwest), (west, north)):
        shape, left, right = aggd(a * b)
        mean = (right - left) * gamma(2 / shape) / gamma(1 / shape)
        values += [shape, mean, left, right]
    return np.stack(values, axis=1)


def aggd(values: NDArray[np.float32]) -> tuple[Floats, Floats, Floats]:
    """(shape, left and right scale), each `[n]`, of the AGGD that fits `[n, side, side]` by moments; NaN: no values."""
    flat = values.reshape(len(values), -1)
    negative = np.minimum(flat, 0)
    squares = np.einsum("ni,ni->n", flat, flat).astype(np.float64)
    negative_squares = np.einsum("ni,ni->n", negative, negative).astype(np.float64)
    negative_count = np.array([np.count_nonzero(block) for block in flat < 0])
    positive_count = np.array([np.count_nonzero(block) for block in flat > 0])
    size = np.abs(flat).mean(axis=1).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.sqrt(negative_squares / negative_count)
        right = np.sqrt((squares - negative_squares) / positive_count)
        skew = left / right
        ratio = size**2 / (squares / flat.shape[1])
        ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = SHAPES[np.where(np.isnan(ratio), 0, np.searchsorted(NEAREST, ratio))]
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale
