"""Clip -> training anchor  (sec. 3.3, "degradation"; numbers from the authors' code).

All frames of a clip have the same random parameters: area-downscale, bilinear to the anchor's size, Gaussian blur;
then, on the anchor's latent, noise with some probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pw.io.lazy import Tensor, torch

MAX_PIXELS = 2**25  # in one call of `resize`, 400 MB: some frames of a 2K clip, whole batches of small ones


class Degradation(Protocol):
    """A clip -> the anchor that stage II is trained or tested with.

    `anchor` is `draw` followed by `degrade`; called separately, they degrade a batch clip by clip.
    """

    def draw(self, clips: int, frames: int, size: tuple[int, int], rng: torch.Generator) -> list[Any]:
        """Random parameters for each of `clips` clips of `frames` frames, with anchors of `size`."""

    def degrade(self, video: Tensor, size: tuple[int, int], parameters: Sequence[Any]) -> Tensor:
        """video [B, 3, F, H, W], parameters of each clip from `draw` -> anchor video [B, 3, F, *size]."""

    def anchor(self, video: Tensor, size: tuple[int, int], rng: torch.Generator) -> Tensor:
        """video [B, 3, F, H, W] -> anchor video [B, 3, F, *size]."""

    def perturb(self, latent: Tensor, rng: torch.Generator) -> Tensor:
        """anchor latent -> noisy anchor latent, the same shape."""


def resize(video: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Each frame to `size` by `area`, `bilinear` or `bicubic`: [B, 3, F, H, W] -> [B, 3, F, *size]."""
    if tuple(video.shape[-2:]) == tuple(size):
        return video
    corners = None if mode == "area" else False

    def resize_frames(part: Tensor) -> Tensor:
        frames = part.transpose(1, 2).flatten(0, 1)  # a copy
        frames = torch.nn.functional.interpolate(frames, size=size, mode=mode, align_corners=corners)
        return frames.unflatten(0, (len(part), -1)).transpose(1, 2)

    frames_per_call = max(1, MAX_PIXELS // video[:, 0, 0].numel())
    if video.shape[2] <= frames_per_call:
        return resize_frames(video)
    return torch.cat([resize_frames(part) for part in video.split(frames_per_call, 2)], 2)


def blur(video: Tensor, sigma: Tensor, radius: int | None = None, taps: Tensor | None = None) -> Tensor:
    """Gaussian blur with one sigma (px) per clip, [B]; edges reflected where the kernel allows it.

    The kernel is cut at `radius` px (by default three times the largest sigma), that of a clip to `taps` px, odd, [B].
    """
    radius = math.ceil(3 * float(sigma.max())) if radius is None else radius
    radius = max(1, min(radius, min(video.shape[-2:]) - 1))
    offset = torch.arange(-radius, radius + 1, dtype=video.dtype, device=video.device)
    kernel = torch.exp(-(offset**2) / (2 * sigma.to(video)[:, None].clamp(min=1e-3) ** 2))
    if taps is not None:
        kernel = kernel * (2 * offset.abs() < taps.to(video)[:, None])
    kernel = kernel / kernel.sum(1, keepdim=True)  # [B, taps]
    batch, channels, frames = video.shape[:3]
    flat = video.reshape(1, -1, *video.shape[-2:])
    weight = kernel.repeat_interleave(channels * frames, 0)
    for pad, view in (
        ((radius, radius, 0, 0), (-1, 1, 1, 2 * radius + 1)),
        ((0, 0, radius, radius), (-1, 1, 2 * radius + 1, 1)),
    ):
        padded = torch.nn.functional.pad(flat, pad, mode="reflect")
        flat = torch.nn.functional.conv2d(padded, weight.view(view), groups=batch * channels * frames)
    return flat.view_as(video)


def _uniform(bounds: tuple[float, float], batch: int, rng: torch.Generator) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(batch, generator=rng)


def _check_range(name: str, bounds: tuple[float, float], minimum: float) -> None:
    if len(bounds) != 2 or bounds[0] > bounds[1] or bounds[0] < minimum:
        raise ValueError(f"degradation.{name}={list(bounds)}: [low, high] with {minimum} <= low <= high")


@dataclass(frozen=True)
class BlurParameters:
    """Random parameters of a clip: factor of the area-downscale, sigma and taps of the blur, radius of the batch's."""

    factor: float
    sigma: float
    radius: int
    taps: int


@dataclass(frozen=True)
class BlurAndNoise:
    """The training degradation.

    downscale          factor range of the area-downscale, relative to the clip
    blur               sigma range in anchor px (0, 0 for none)
    noise              range of the noise's std on the anchor's latent
    noise_probability  of adding it at all
    taps               widths of the blur's kernel, anchor px, odd, one drawn per clip; None: all within three sigma
    """

    downscale: tuple[float, float]
    blur: tuple[float, float]
    noise: tuple[float, float]
    noise_probability: float
    taps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_range("downscale", self.downscale, 1)
        _check_range("blur", self.blur, 0)
        _check_range("noise", self.noise, 0)
        if not 0 <= self.noise_probability <= 1:
            raise ValueError(f"degradation.noise_probability={self.noise_probability}: a probability, 0 to 1")
        if self.taps is not None and (not self.taps or any(width < 3 or width % 2 == 0 for width in self.taps)):
            raise ValueError(f"degradation.taps={list(self.taps)}: odd widths of a kernel, each at least 3, or null")

    def draw(self, clips: int, frames: int, size: tuple[int, int], rng: torch.Generator) -> list[BlurParameters]:
        factors = _uniform(self.downscale, clips, rng).tolist()
        sigmas = _uniform(self.blur, clips, rng).tolist()
        if self.taps is None:
            radius = math.ceil(3 * max(sigmas))
            taps = [2 * radius + 1] * clips
        else:
            radius = max(self.taps) // 2
            taps = [self.taps[i] for i in torch.randint(len(self.taps), (clips,), generator=rng).tolist()]
        return [BlurParameters(f, s, radius, width) for f, s, width in zip(factors, sigmas, taps, strict=True)]

    def degrade(self, video: Tensor, size: tuple[int, int], parameters: Sequence[BlurParameters]) -> Tensor:
        height, width = video.shape[-2:]
        reduce = lambda clips, f: resize(clips, (max(1, round(height / f)), max(1, round(width / f))), "area")  # noqa: E731
        if self.downscale[0] == self.downscale[1]:
            small = [reduce(video, parameters[0].factor)]
        else:
            small = [reduce(clip[None], p.factor) for clip, p in zip(video, parameters, strict=True)]
        anchor = torch.cat([resize(clip, size, "bilinear") for clip in small])
        if self.blur[1] == 0:
            return anchor
        sigmas, taps = torch.tensor([p.sigma for p in parameters]), torch.tensor([p.taps for p in parameters])
        return blur(anchor, sigmas, parameters[0].radius, taps)

    def anchor(self, video: Tensor, size: tuple[int, int], rng: torch.Generator) -> Tensor:
        return self.degrade(video, size, self.draw(len(video), video.shape[2], size, rng))

    def perturb(self, latent: Tensor, rng: torch.Generator) -> Tensor:
        """anchor latent + noise, in each clip with probability `noise_probability`."""
        batch = len(latent)
        std = _uniform(self.noise, batch, rng) * (torch.rand(batch, generator=rng) < self.noise_probability)
        noise = torch.randn(latent.shape, generator=rng)
        return latent + (std.view(-1, 1, 1, 1, 1) * noise).to(latent)


@dataclass(frozen=True)
class Clean:
    """Area-downscale to the anchor's size, no other degradation."""

    def draw(self, clips: int, frames: int, size: tuple[int, int], rng: torch.Generator) -> list[None]:
        return [None] * clips

    def degrade(self, video: Tensor, size: tuple[int, int], parameters: Sequence[None]) -> Tensor:
        return resize(video, size, "area")

    def anchor(self, video: Tensor, size: tuple[int, int], rng: torch.Generator) -> Tensor:
        return resize(video, size, "area")

    def perturb(self, latent: Tensor, rng: torch.Generator) -> Tensor:
        return latent


@dataclass(frozen=True)
class FlawParameters:
    """Random parameters of a clip: corner of the masked rectangle, px; index of the frame swapped with the next."""

    blur: BlurParameters
    top: int
    left: int
    swap: int | None


@dataclass(frozen=True)
class Flawed:
    """The training degradation and flaws of a bad first stage, for the stress test of Fig. 9.1.

    mask   share of the anchor's area replaced by its mean colour, in one rectangle per clip
    noise  std added to the anchor's latent
    swap   whether two neighbouring frames are swapped
    """

    base: BlurAndNoise
    mask: float
    noise: float
    swap: bool

    def __post_init__(self) -> None:
        if not 0 <= self.mask < 1:
            raise ValueError(f"degradation.mask={self.mask}: a share of the area, 0 to below 1")
        if self.noise < 0:
            raise ValueError(f"degradation.noise={self.noise}: a standard deviation, 0 or more")

    def draw(self, clips: int, frames: int, size: tuple[int, int], rng: torch.Generator) -> list[FlawParameters]:
        blurs, side, flaws = self.base.draw(clips, frames, size, rng), self._mask_size(size), []
        for blur in blurs:
            top, left = (int(torch.randint(0, s - d + 1, (), generator=rng)) for s, d in zip(size, side, strict=True))
            swap = int(torch.randint(0, frames - 1, (), generator=rng)) if self.swap and frames > 1 else None
            flaws.append(FlawParameters(blur, top, left, swap))
        return flaws

    def degrade(self, video: Tensor, size: tuple[int, int], parameters: Sequence[FlawParameters]) -> Tensor:
        anchor, side = self.base.degrade(video, size, [flaw.blur for flaw in parameters]).clone(), self._mask_size(size)
        for clip, flaw in zip(anchor, parameters, strict=True):
            rows, columns = slice(flaw.top, flaw.top + side[0]), slice(flaw.left, flaw.left + side[1])
            clip[..., rows, columns] = clip.mean((-3, -2, -1), keepdim=True)
            if flaw.swap is not None:
                clip[:, [flaw.swap, flaw.swap + 1]] = clip[:, [flaw.swap + 1, flaw.swap]]
        return anchor

    def _mask_size(self, size: tuple[int, int]) -> list[int]:
        """Height and width of the masked rectangle, px."""
        return [max(1, round(length * self.mask**0.5)) for length in size] if self.mask else [0, 0]

    def anchor(self, video: Tensor, size: tuple[int, int], rng: torch.Generator) -> Tensor:
        return self.degrade(video, size, self.draw(len(video), video.shape[2], size, rng))

    def perturb(self, latent: Tensor, rng: torch.Generator) -> Tensor:
        return latent + (self.noise * torch.randn(latent.shape, generator=rng)).to(latent)
