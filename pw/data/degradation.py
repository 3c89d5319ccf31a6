"""What a clip loses on its way to being an anchor  (sec. 3.3, "degradation"; numbers from the authors' code).

One draw per clip, shared by its frames: area-downscale, bilinear to the anchor's size, Gaussian blur; then, on the
anchor's latent, noise with some probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pw.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Degradation(Protocol):
    """A clip -> the anchor a stage II is trained or tested on."""

    def anchor(self, video: Tensor, size: tuple[int, int], draw: Generator) -> Tensor:
        """video [B, 3, F, H, W] -> anchor video [B, 3, F, *size]."""
        ...

    def perturb(self, latent: Tensor, draw: Generator) -> Tensor:
        """anchor latent -> noisy anchor latent, the same shape."""
        ...


def resize(video: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Each frame to `size` by `area`, `bilinear` or `bicubic`: [B, 3, F, H, W] -> [B, 3, F, *size]."""
    if tuple(video.shape[-2:]) == tuple(size):
        return video
    frames = video.transpose(1, 2).flatten(0, 1)
    corners = None if mode == "area" else False
    frames = torch.nn.functional.interpolate(frames, size=size, mode=mode, align_corners=corners)
    return frames.unflatten(0, (len(video), -1)).transpose(1, 2)


def blur(video: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with one sigma (px) per clip, [B]; edges reflected where the kernel allows it."""
    reach = max(1, min(math.ceil(3 * float(sigma.max())), min(video.shape[-2:]) - 1))
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


def _between(bounds: tuple[float, float], batch: int, draw: Generator) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(batch, generator=draw)


def _check_range(name: str, bounds: tuple[float, float], least: float) -> None:
    if len(bounds) != 2 or bounds[0] > bounds[1] or bounds[0] < least:
        raise ValueError(f"degradation.{name}={list(bounds)}: [low, high] with {least} <= low <= high")


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

    def anchor(self, video: Tensor, size: tuple[int, int], draw: Generator) -> Tensor:
        """video [B, 3, F, H, W] -> anchor video [B, 3, F, *size]."""
        factors = _between(self.downscale, len(video), draw).tolist()
        sigma = _between(self.blur, len(video), draw)
        height, width = video.shape[-2:]
        reduced = lambda clips, f: resize(clips, (max(1, round(height / f)), max(1, round(width / f))), "area")  # noqa: E731
        if self.downscale[0] == self.downscale[1]:
            small = [reduced(video, factors[0])]
        else:
            small = [reduced(clip[None], f) for clip, f in zip(video, factors, strict=True)]
        anchor = torch.cat([resize(clip, size, "bilinear") for clip in small])
        return blur(anchor, sigma) if self.blur[1] > 0 else anchor

    def perturb(self, latent: Tensor, draw: Generator) -> Tensor:
        """anchor latent + noise, in the clips that the probability picks."""
        batch = len(latent)
        std = _between(self.noise, batch, draw) * (torch.rand(batch, generator=draw) < self.noise_probability)
        noise = torch.randn(latent.shape, generator=draw)
        return latent + (std.view(-1, 1, 1, 1, 1) * noise).to(latent)


@dataclass(frozen=True)
class Clean:
    """Nothing lost but size: area-downscale to the anchor. What "no degradation" means in training and at test."""

    def anchor(self, video: Tensor, size: tuple[int, int], draw: Generator) -> Tensor:
        """video [B, 3, F, H, W] -> anchor video [B, 3, F, *size]."""
        return resize(video, size, "area")

    def perturb(self, latent: Tensor, draw: Generator) -> Tensor:
        """The latent as it is."""
        return latent


@dataclass(frozen=True)
class Flawed:
    """A stress set for Fig. 9.1: what a bad first stage produces. Each flaw on top of the training degradation.

    mask   share of the anchor's area replaced by its mean colour, in one rectangle per clip
    noise  std added to the anchor's latent
    swap   whether two neighbouring frames trade places
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

    def anchor(self, video: Tensor, size: tuple[int, int], draw: Generator) -> Tensor:
        """video [B, 3, F, H, W] -> anchor video [B, 3, F, *size]."""
        anchor = self.base.anchor(video, size, draw).clone()
        side = [max(1, round(length * self.mask**0.5)) for length in size] if self.mask else [0, 0]
        for clip in anchor:
            top, left = (int(torch.randint(0, s - d + 1, (), generator=draw)) for s, d in zip(size, side, strict=True))
            clip[..., top : top + side[0], left : left + side[1]] = clip.mean((-3, -2, -1), keepdim=True)
            if self.swap and clip.shape[1] > 1:
                first = int(torch.randint(0, clip.shape[1] - 1, (), generator=draw))
                clip[:, [first, first + 1]] = clip[:, [first + 1, first]]
        return anchor

    def perturb(self, latent: Tensor, draw: Generator) -> Tensor:
        """anchor latent + noise."""
        return latent + (self.noise * torch.randn(latent.shape, generator=draw)).to(latent)
