"""Clip -> training anchor  (sec. 3.3, "degradation"; numbers from the authors' code).

One draw per clip, shared by its frames: area-downscale, bilinear to the anchor's size, Gaussian blur; then, on the
anchor's latent, noise with some probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pw.io.lazy import Tensor, torch

AT_ONCE = 2**25  # pixels that `resize` handles at once, 400 MB: some frames of a 2K clip, whole batches of small ones


class Degradation(Protocol):
    """A clip -> the anchor that stage II is trained or tested with.

    `anchor` is `draw` followed by `degrade`. Called separately, parameters drawn for a batch degrade it clip by clip.
    """

    def draw(self, clips: int, frames: int, size: tuple[int, int], draw: torch.Generator) -> list[Any]:
        """Random parameters for each of `clips` clips of `frames` frames, with anchors of `size`."""

    def degrade(self, video: Tensor, size: tuple[int, int], drawn: Sequence[Any]) -> Tensor:
        """video [B, 3, F, H, W], drawn parameters of each clip -> anchor video [B, 3, F, *size]."""

    def anchor(self, video: Tensor, size: tuple[int, int], draw: torch.Generator) -> Tensor:
        """video [B, 3, F, H, W] -> anchor video [B, 3, F, *size]."""

    def perturb(self, latent: Tensor, draw: torch.Generator) -> Tensor:
        """anchor latent -> noisy anchor latent, the same shape."""


def resize(video: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Each frame to `size` by `area`, `bilinear` or `bicubic`: [B, 3, F, H, W] -> [B, 3, F, *size]."""
    if tuple(video.shape[-2:]) == tuple(size):
        return video
    corners = None if mode == "area" else False

    def resized(part: Tensor) -> Tensor:
        frames = part.transpose(1, 2).flatten(0, 1)  # a copy
        frames = torch.nn.functional.interpolate(frames, size=size, mode=mode, align_corners=corners)
        return frames.unflatten(0, (len(part), -1)).transpose(1, 2)

    at_once = max(1, AT_ONCE // video[:, 0, 0].numel())
    if video.shape[2] <= at_once:
        return resized(video)
    return torch.cat([resized(part) for part in video.split(at_once, 2)], 2)


def blur(video: Tensor, sigma: Tensor, widest: float | None = None) -> Tensor:
    """Gaussian blur with one sigma (px) per clip, [B]; edges reflected where the kernel allows it.

    The kernel is cut at three times the `widest` sigma of all clips that belong together, that of `sigma` by default.
    """
    widest = float(sigma.max()) if widest is None else widest
    reach = max(1, min(math.ceil(3 * widest), min(video.shape[-2:]) - 1))
    offset = torch.arange(-reach, reach + 1, dtype=video.dtype, device=video.device)
    kernel = torch.exp(-(offset**2) / (2 * sigma.to(video)[:, None].clamp(min=1e-3) ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)  # [B, taps]
    batch, channels, frames = video.shape[:3]
    flat = video.reshape(1, -1, *video.shape[-2:])
    weight = kernel.repeat_interleave(channels * frames, 0)
    for pad, view in (
        ((reach, reach, 0, 0), (-1, 1, 1, 2 * reach + 1)),
        ((0, 0, reach, reach), (-1, 1, 2 * reach + 1, 1)),
    ):
        padded = torch.nn.functional.pad(flat, pad, mode="reflect")
        flat = torch.nn.functional.conv2d(padded, weight.view(view), groups=batch * channels * frames)
    return flat.view_as(video)


def _between(bounds: tuple[float, float], batch: int, draw: torch.Generator) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(batch, generator=draw)


def _check_range(name: str, bounds: tuple[float, float], least: float) -> None:
    if len(bounds) != 2 or bounds[0] > bounds[1] or bounds[0] < least:
        raise ValueError(f"degradation.{name}={list(bounds)}: [low, high] with {least} <= low <= high")


@dataclass(frozen=True)
class DrawnLoss:
    """Drawn parameters of one clip: factor of the area-downscale, sigma of the blur, largest sigma of its batch."""

    factor: float
    sigma: float
    widest: float


@dataclass(frozen=True)
class BlurAndNoise:
    """The training degradation.

    downscale          factor range of the area-downscale, relative to the clip
    blur               sigma range in anchor px (0, 0 for none)
    noise              range of the noise's std on the anchor's latent
    noise_probability  of adding it at all
    """

    downscale: tuple[float, float]
    blur: tuple[float, float]
    noise: tuple[float, float]
    noise_probability: float

    def __post_init__(self) -> None:
        _check_range("downscale", self.downscale, 1)
        _check_range("blur", self.blur, 0)
        _check_range("noise", self.noise, 0)
        if not 0 <= self.noise_probability <= 1:
            raise ValueError(f"degradation.noise_probability={self.noise_probability}: a probability, 0 to 1")

    def draw(self, clips: int, frames: int, size: tuple[int, int], draw: torch.Generator) -> list[DrawnLoss]:
        factors = _between(self.downscale, clips, draw).tolist()
        sigmas = _between(self.blur, clips, draw).tolist()
        return [DrawnLoss(factor, sigma, max(sigmas)) for factor, sigma in zip(factors, sigmas, strict=True)]

    def degrade(self, video: Tensor, size: tuple[int, int], drawn: Sequence[DrawnLoss]) -> Tensor:
        height, width = video.shape[-2:]
        reduced = lambda clips, f: resize(clips, (max(1, round(height / f)), max(1, round(width / f))), "area")  # noqa: E731
        if self.downscale[0] == self.downscale[1]:
            small = [reduced(video, drawn[0].factor)]
        else:
            small = [reduced(clip[None], loss.factor) for clip, loss in zip(video, drawn, strict=True)]
        anchor = torch.cat([resize(clip, size, "bilinear") for clip in small])
        sigmas = torch.tensor([loss.sigma for loss in drawn])
        return blur(anchor, sigmas, drawn[0].widest) if self.blur[1] > 0 else anchor

    def anchor(self, video: Tensor, size: tuple[int, int], draw: torch.Generator) -> Tensor:
        return self.degrade(video, size, self.draw(len(video), video.shape[2], size, draw))

    def perturb(self, latent: Tensor, draw: torch.Generator) -> Tensor:
        """anchor latent + noise, in each clip with probability `noise_probability`."""
        batch = len(latent)
        std = _between(self.noise, batch, draw) * (torch.rand(batch, generator=draw) < self.noise_probability)
        noise = torch.randn(latent.shape, generator=draw)
        return latent + (std.view(-1, 1, 1, 1, 1) * noise).to(latent)


@dataclass(frozen=True)
class Clean:
    """Area-downscale to the anchor's size, no other degradation."""

    def draw(self, clips: int, frames: int, size: tuple[int, int], draw: torch.Generator) -> list[None]:
        return [None] * clips

    def degrade(self, video: Tensor, size: tuple[int, int], drawn: Sequence[None]) -> Tensor:
        return resize(video, size, "area")

    def anchor(self, video: Tensor, size: tuple[int, int], draw: torch.Generator) -> Tensor:
        return resize(video, size, "area")

    def perturb(self, latent: Tensor, draw: torch.Generator) -> Tensor:
        return latent


@dataclass(frozen=True)
class Flaw:
    """Drawn flaws of one clip: corner of the masked rectangle, px; index of the frame swapped with the next."""

    loss: DrawnLoss
    top: int
    left: int
    swap: int | None


@dataclass(frozen=True)
class Flawed:
    """Flaws of a bad first stage, for the stress test of Fig. 9.1, on top of the training degradation.

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

    def draw(self, clips: int, frames: int, size: tuple[int, int], draw: torch.Generator) -> list[Flaw]:
        losses, side, flaws = self.base.draw(clips, frames, size, draw), self._masked(size), []
        for loss in losses:
            top, left = (int(torch.randint(0, s - d + 1, (), generator=draw)) for s, d in zip(size, side, strict=True))
            first = int(torch.randint(0, frames - 1, (), generator=draw)) if self.swap and frames > 1 else None
            flaws.append(Flaw(loss, top, left, first))
        return flaws

    def degrade(self, video: Tensor, size: tuple[int, int], drawn: Sequence[Flaw]) -> Tensor:
        anchor, side = self.base.degrade(video, size, [flaw.loss for flaw in drawn]).clone(), self._masked(size)
        for clip, flaw in zip(anchor, drawn, strict=True):
            rows, columns = slice(flaw.top, flaw.top + side[0]), slice(flaw.left, flaw.left + side[1])
            clip[..., rows, columns] = clip.mean((-3, -2, -1), keepdim=True)
            if flaw.swap is not None:
                clip[:, [flaw.swap, flaw.swap + 1]] = clip[:, [flaw.swap + 1, flaw.swap]]
        return anchor

    def _masked(self, size: tuple[int, int]) -> list[int]:
        """Height and width of the masked rectangle, px."""
        return [max(1, round(length * self.mask**0.5)) for length in size] if self.mask else [0, 0]

    def anchor(self, video: Tensor, size: tuple[int, int], draw: torch.Generator) -> Tensor:
        return self.degrade(video, size, self.draw(len(video), video.shape[2], size, draw))

    def perturb(self, latent: Tensor, draw: torch.Generator) -> Tensor:
        return latent + (self.noise * torch.randn(latent.shape, generator=draw)).to(latent)
