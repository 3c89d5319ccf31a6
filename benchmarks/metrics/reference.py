"""The weight-free metrics of clips: one class per row of the registry's family "reference".

The constructor's arguments of a scorer are the registry's `settings`. Videos are float [B, 3, F, H, W] in [-1, 1]. A
batch may have uint8 clips: a metric then converts some frames at a time to float, `PIXELS_PER_PART` pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.metrics.implementation import Batch
from benchmarks.metrics.mhd import round_trip

PIXELS_PER_PART = 2**25  # 400 MB as floats; small clips stay whole, because a mean over parts differs in its last bits


def frames_of(video: Tensor) -> Tensor:
    """[B, 3, F, H, W] -> [B F, 3, H, W], frames of a clip next to each other."""
    return video.transpose(1, 2).flatten(0, 1)


def floats(video: Tensor) -> Tensor:
    """Convert uint8 to u / 127.5 - 1 in the same memory layout (`pw.io.video.to_float`); floats are unchanged."""
    return video.float().div_(127.5).sub_(1) if video.dtype == torch.uint8 else video


def parts(*videos: Tensor, depth: int = 1) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Split clips of equal length into parts of f frames as floats: (first frame number, [B, 3, f, H, W] of each clip).

    Parts overlap by depth - 1 frames, so that every `depth` consecutive frames are in exactly one part together.
    """
    b, _, f, h, w = videos[0].shape
    span = max(1, PIXELS_PER_PART // (b * h * w))
    for start in range(0, f - depth + 1, span):
        yield start, tuple(floats(video[:, :, start : start + span + depth - 1]) for video in videos)


def mean_over_parts(values: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Mean of the values [B] of parts, weighted by their numbers of frames."""
    total = torch.stack([value.double() * frames for value, frames in values]).sum(0)
    return (total / sum(frames for _, frames in values)).to(values[0][0].dtype)


def per_video(values: Tensor, videos: int) -> Tensor:
    """Means over everything but the video: [B F, ...] -> [B]."""
    return values.reshape(videos, -1).mean(1)


def resize(frames: Tensor, height: int, width: int, mode: str) -> Tensor:
    """[N, C, H, W] -> [N, C, height, width], `area` or `bilinear` without antialias (align_corners=False)."""
    return F.interpolate(frames, (height, width), mode=mode)


def gaussian_blur(frames: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian, sigma in px, cut at 3 sigma, borders replicated. [N, C, H, W] -> the same."""
    reach = math.ceil(3 * sigma)
    x = torch.arange(-reach, reach + 1, dtype=frames.dtype)
    kernel = torch.exp(-x.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(frames.shape[1], 1, 1, -1)
    padded = F.pad(frames, (reach, reach, reach, reach), mode="replicate")
    rows = F.conv2d(padded, kernel, groups=frames.shape[1])
    return F.conv2d(rows, kernel.transpose(2, 3), groups=frames.shape[1])


def residual(frames: Tensor, factor: int) -> Tensor:
    """High frequencies: the frames minus themselves reduced `factor` times (area) and enlarged (bilinear)."""
    _, _, h, w = frames.shape
    small = resize(frames, max(1, h // factor), max(1, w // factor), "area")
    return frames - resize(small, h, w, "bilinear")


@dataclass
class RunningMean:
    total: float = 0.0
    count: int = 0

    def add(self, values: Tensor) -> None:
        self.total += float(values.double().sum())
        self.count += len(values)

    def value(self) -> float:
        return self.total / self.count


def required(clip: Tensor | None) -> Tensor:
    assert clip is not None, "a scorer is only constructed with its folders"
    return clip


def check_same_size(a: Tensor, b: Tensor, metric: str, folder: str) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"{metric} needs clips of {folder}'s size: (frames, height, width) is {tuple(a.shape[2:])} in the "
            f"video, {tuple(b.shape[2:])} in {folder}; render or crop both alike"
        )


def ratio_to(energy: float, reference: float) -> float:
    """energy / reference; NaN, which is no score, for a reference without detail."""
    return energy / reference if reference > 0 else math.nan


def radial_power_spectrum(video: Tensor) -> Tensor:
    """Power by radial frequency of the Hann-windowed mean of R, G and B, averaged over angle and frames.

    Returns [B, R + 1] with R = min(H, W) // 2: bin r is the frequency r / min(H, W) cycles/px; the last bin includes
    the corners of the spectrum. The sum over bins, weighted by their sizes, is H W times the energy (Parseval).
    """
    h, w = video.shape[-2:]
    window = torch.hann_window(h, periodic=False)[:, None] * torch.hann_window(w, periodic=False)
    bins, sizes = radial_bins(h, w)
    spectra = []
    for _, (part,) in parts(video):
        grey = frames_of(part).mean(1)
        grey = (grey - grey.mean((1, 2), keepdim=True)) * window
        power = torch.fft.fft2(grey).abs().square().flatten(1)
        total = torch.zeros(len(grey), len(sizes), dtype=power.dtype).index_add_(1, bins, power)
        spectra.append((total / sizes).reshape(len(part), -1, len(sizes)))
    return torch.cat(spectra, 1).mean(1)


def radial_bins(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The radial bin of every coefficient of fft2, [H W], and the number of coefficients per bin, [R + 1]."""
    side = min(height, width)
    fy, fx = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    radius = (fy[:, None].square() + fx.square()).sqrt() * side
    bins = radius.round().long().clamp(max=side // 2).flatten()
    return bins, torch.bincount(bins, minlength=side // 2 + 1).float()


@dataclass
class PowerSpectrumDistance:
    """Rms over radial frequencies (without the mean) of 10 log10(mean power / real's mean power), in dB.

    The power of rounding to `round_off_bits` bits is added to both means, so that differences below it do not count.
    """

    round_off_bits: int
    clips: int = 0
    power: Tensor | None = None
    real_power: Tensor | None = None
    floor: float = 0.0

    def add(self, batch: Batch) -> None:
        real = required(batch.real)
        check_same_size(batch.video, real, "psd", "real")
        if self.power is None or self.real_power is None:
            h, w = batch.video.shape[-2:]
            self.power = torch.zeros(min(h, w) // 2 + 1, dtype=torch.float64)
            self.real_power = self.power.clone()
            step = 2 / (2**self.round_off_bits - 1)
            # White noise of variance step^2 / 12, seen through the squared window (mean 3/8 a side).
            self.floor = step**2 / 12 * h * w * (3 / 8) ** 2
        if len(self.power) != min(batch.video.shape[-2:]) // 2 + 1:
            raise ValueError("psd needs clips of one size in the folder; put other sizes in a folder of their own")
        self.clips += len(batch.video)
        self.power += radial_power_spectrum(batch.video).double().sum(0)
        self.real_power += radial_power_spectrum(real).double().sum(0)

    def result(self) -> float:
        totals = required(self.power), required(self.real_power)
        mean, real_mean = (total[1:] / self.clips + self.floor for total in totals)
        return float((10 * (mean / real_mean).log10()).square().mean().sqrt())


def laplacian_pyramid(frames: Tensor, levels: int) -> list[Tensor]:
    """Band-pass images, finest first, then the low-pass rest; each half the size of the one before."""
    bands = []
    for _ in range(levels - 1):
        _, _, h, w = frames.shape
        small = resize(gaussian_blur(frames, 1.0), max(1, h // 2), max(1, w // 2), "area")
        bands.append(frames - resize(small, h, w, "bilinear"))
        frames = small
    return [*bands, frames]


def wasserstein_1d(a: Tensor, b: Tensor) -> Tensor:
    """Mean |quantile difference| of the columns of a [n, P] and b [m, P]: [P]."""
    a, b = _sorted_columns(a), _sorted_columns(b)
    if len(a) != len(b):
        positions = (torch.arange(max(len(a), len(b))) + 0.5) / max(len(a), len(b))
        a, b = (x[(positions * len(x)).long()] for x in (a, b))
    return (a - b).abs().mean(0)


def _sorted_columns(x: Tensor) -> Tensor:
    # numpy's sort uses vector instructions: a third to a quarter of torch's time on a CPU
    return torch.from_numpy(np.sort(x.T.contiguous().numpy(), axis=1)).T.contiguous()


@dataclass
class SlicedWasserstein:
    """Mean over levels and projections of the 1-D Wasserstein distance between patches of the videos and of real.

    Patches are patch x patch px over `frames` consecutive frames of a level of a Laplacian pyramid, every `stride` px,
    at most `patches` per clip and level (a seeded choice, the same for the n-th clip of any folder). If a level or a
    clip is smaller, the patch is cropped to it. Projections are random unit vectors from `seed`. Values are in units of
    the pixels, [-1, 1].
    """

    levels: int
    patch: int
    frames: int
    stride: int
    patches: int
    projections: int
    seed: int
    clip_count: int = 0
    video_patches: list[list[Tensor]] = field(default_factory=list)
    real_patches: list[list[Tensor]] = field(default_factory=list)

    def add(self, batch: Batch) -> None:
        real = required(batch.real)
        check_same_size(batch.video, real, "swd", "real")
        self.video_patches.append(self._project(batch.video))
        self.real_patches.append(self._project(real))
        self.clip_count += len(real)

    def result(self) -> float:
        pairs = zip(zip(*self.video_patches, strict=True), zip(*self.real_patches, strict=True), strict=True)
        levels = [wasserstein_1d(torch.cat(a), torch.cat(b)).mean() for a, b in pairs]
        return float(torch.stack(levels).mean())

    def _project(self, video: Tensor) -> list[Tensor]:
        """Projected patches of every level: [patches, projections] each."""
        depth = min(self.frames, video.shape[2])
        levels: list[Tensor] = []
        corners: list[Tensor] = []
        for start, (part,) in parts(video, depth=depth):
            bands = [band.unflatten(0, (len(part), -1)) for band in laplacian_pyramid(frames_of(part), self.levels)]
            if not levels:
                shapes = [self._patch(band, depth) for band in bands]
                corners = [
                    self._corners(video.shape[2] - depth, band, shape)
                    for band, shape in zip(bands, shapes, strict=True)
                ]
                levels = [torch.empty(*c.shape[:2], *shape) for c, shape in zip(corners, shapes, strict=True)]
            for band, corner, patches in zip(bands, corners, levels, strict=True):
                self._pick(band, start, corner, patches)
        return [
            patches.flatten(0, 1).flatten(1) @ self._directions(level, patches[0, 0].numel())
            for level, patches in enumerate(levels)
        ]

    def _patch(self, clips: Tensor, depth: int) -> tuple[int, int, int, int]:
        """Size of a patch of clips [B, F, C, H, W]: C, frames, rows, columns."""
        c, h, w = clips.shape[2:]
        return c, depth, min(self.patch, h), min(self.patch, w)

    def _directions(self, level: int, length: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + level)
        directions = torch.randn(length, self.projections, generator=generator)
        return directions.div_(directions.norm(dim=0))

    def _corners(self, last: int, clips: Tensor, patch: tuple[int, int, int, int]) -> Tensor:
        """First frame, row and column of each clip's patches, [B, patches, 3]; last: the last possible first frame."""
        h, w = clips.shape[-2:]
        corners = torch.cartesian_prod(
            torch.arange(last + 1),
            torch.arange(0, h - patch[2] + 1, self.stride),
            torch.arange(0, w - patch[3] + 1, self.stride),
        )
        return torch.stack([self._choose(corners, self.clip_count + n) for n in range(len(clips))])

    def _pick(self, clips: Tensor, start: int, corners: Tensor, patches: Tensor) -> None:
        """Copy into `patches` those that begin in a part [B, f, C, H, W] of the clips; start: its first frame."""
        _, depth, rows, columns = patches.shape[2:]
        windows = clips.unfold(1, depth, 1).unfold(3, rows, self.stride).unfold(4, columns, self.stride)
        t, y, x = corners.unbind(2)
        clip, number = ((t >= start) & (t < start + windows.shape[1])).nonzero(as_tuple=True)
        t, y, x = (index[clip, number] for index in (t - start, y // self.stride, x // self.stride))
        patches[clip, number] = windows[clip, t, :, y, x]

    def _choose(self, corners: Tensor, clip: int) -> Tensor:
        if len(corners) <= self.patches:
            return corners
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + clip)
        return corners[torch.randperm(len(corners), generator=generator)[: self.patches]]


def mhd_mse(video: Tensor, ks: Sequence[int]) -> Tensor:
    """Mean over k of || v - R_k(v) ||^2 per pixel, on [0, 1]: [B]  (paper: Eq. 9.9).

    `benchmarks.metrics.mhd` computes the same for videos in float64; the two differ in the last digits of float32.
    """
    b, _, f, _, _ = video.shape
    total = torch.zeros(b)
    for t in range(f):
        frame = (floats(video[:, :, t]) + 1) / 2
        for k in ks:
            total += per_video((frame - round_trip(frame, k)).square(), b)
    return total / (f * len(ks))


@dataclass
class ClipMhd:
    """Mean mHD-MSE of the folder's videos; k: `ks_small` if a side is below `small_below` px, else `ks_large`."""

    ks_small: Sequence[int]
    ks_large: Sequence[int]
    small_below: int
    mean: RunningMean = field(default_factory=RunningMean)

    def add(self, batch: Batch) -> Tensor | None:
        values = self.values(batch.video)
        self.mean.add(values)
        return values

    def values(self, video: Tensor) -> Tensor:
        return mhd_mse(video, self.ks_small if min(video.shape[-2:]) < self.small_below else self.ks_large)

    def result(self) -> float:
        return self.mean.value()


@dataclass
class MhdRatio(ClipMhd):
    """Mean mHD-MSE of the folder over that of the real clips of the same names."""

    real_mean: RunningMean = field(default_factory=RunningMean)

    def add(self, batch: Batch) -> None:
        super().add(batch)
        self.real_mean.add(self.values(required(batch.real)))

    def result(self) -> float:
        return ratio_to(self.mean.value(), self.real_mean.value())


@dataclass
class SolutionGap:
    """Mean squared difference to the solution, on [-1, 1]."""

    mean: RunningMean = field(default_factory=RunningMean)

    def add(self, batch: Batch) -> Tensor:
        solution = required(batch.solution)
        check_same_size(batch.video, solution, "solution_gap", "solution")
        values = mean_over_parts([
            ((video - other).square().flatten(1).mean(1), video.shape[2])
            for _, (video, other) in parts(batch.video, solution)
        ])  # fmt: skip
        self.mean.add(values)
        return values

    def result(self) -> float:
        return self.mean.value()


@dataclass
class SolutionGain:
    """Energy of the high-frequency residual over that of the solution, summed over the folder."""

    factor: int
    energy: RunningMean = field(default_factory=RunningMean)
    solution_energy: RunningMean = field(default_factory=RunningMean)

    def add(self, batch: Batch) -> None:
        solution = required(batch.solution)
        check_same_size(batch.video, solution, "solution_gain", "solution")
        for video, energy in ((batch.video, self.energy), (solution, self.solution_energy)):
            energies = [
                (per_video(residual(frames_of(part), self.factor).square(), len(part)), part.shape[2])
                for _, (part,) in parts(video)
            ]
            energy.add(mean_over_parts(energies))

    def result(self) -> float:
        return ratio_to(self.energy.value(), self.solution_energy.value())


def to_grid(frames: Tensor, video_size: tuple[int, int], sigma: float, factor: int) -> Tensor:
    """Resize frames to the anchor's grid, which is `factor` times smaller than the video.

    Frames of the video's size are blurred (sigma px) and reduced by area. Others are structure clips, already reduced:
    they are only resized, by area if larger than the grid, else bilinearly.
    """
    height, width = max(1, video_size[0] // factor), max(1, video_size[1] // factor)
    frame_size = tuple(frames.shape[-2:])
    if frame_size == video_size:
        return resize(gaussian_blur(frames, sigma), height, width, "area")
    if frame_size == (height, width):
        return frames
    return resize(frames, height, width, "area" if frame_size[0] >= height and frame_size[1] >= width else "bilinear")


@dataclass
class AnchorFidelity:
    """Mean squared difference to the structure clip on the anchor's grid, on [-1, 1]."""

    sigma: float
    factor: int
    mean: RunningMean = field(default_factory=RunningMean)

    def add(self, batch: Batch) -> Tensor:
        structure = required(batch.structure)
        if structure.shape[2] != batch.video.shape[2]:
            raise ValueError(
                f"anchor_fidelity needs as many frames in structure as in the video: {structure.shape[2]} "
                f"against {batch.video.shape[2]}; cut both to the same length"
            )
        size = (batch.video.shape[-2], batch.video.shape[-1])
        values = mean_over_parts([
            (self._difference(video, other, size), video.shape[2])
            for _, (video, other) in parts(batch.video, structure)
        ])  # fmt: skip
        self.mean.add(values)
        return values

    def _difference(self, video: Tensor, structure: Tensor, size: tuple[int, int]) -> Tensor:
        a, b = (to_grid(frames_of(clips), size, self.sigma, self.factor) for clips in (video, structure))
        return per_video((a - b).square(), len(video))

    def result(self) -> float:
        return self.mean.value()
