"""What the weight-free metrics do with the frames of clips.

Videos are float [B, 3, F, H, W] in [-1, 1]. A batch may hold its clips as they are stored, in 8 bits: a metric then
takes some of their frames at a time, `AT_ONCE` pixels, as floats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

AT_ONCE = 2**25  # pixels as floats, 400 MB: small clips are taken whole, as a mean over parts differs in its last bits


def frames_of(video: Tensor) -> Tensor:
    """[B, 3, F, H, W] -> [B F, 3, H, W], frames of a clip next to each other."""
    return video.transpose(1, 2).flatten(0, 1)


def floats(video: Tensor) -> Tensor:
    """Pixels in [-1, 1]: of uint8, u / 127.5 - 1, laid out alike (`pw.io.video.to_float`); floats as they are."""
    return video.float().div_(127.5).sub_(1) if video.dtype == torch.uint8 else video


def parts(*videos: Tensor, depth: int = 1) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Clips of as many frames, as floats and some frames at a time: (number of the first, [B, 3, f, H, W] of each).

    Any `depth` consecutive frames are together in one part: the first of them is in one only.
    """
    b, _, f, h, w = videos[0].shape
    span = max(1, AT_ONCE // (b * h * w))
    for start in range(0, f - depth + 1, span):
        yield start, tuple(floats(video[:, :, start : start + span + depth - 1]) for video in videos)


def mean_over_parts(values: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Values [B] of parts of clips, each with its number of frames -> of the clips; one part's own as they are."""
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
    """What is lost by reducing `factor` times (area) and enlarging again (bilinear): the high frequencies."""
    _, _, h, w = frames.shape
    small = resize(frames, max(1, h // factor), max(1, w // factor), "area")
    return frames - resize(small, h, w, "bilinear")


@dataclass
class RunningMean:
    """Running mean over videos."""

    total: float = 0.0
    count: int = 0

    def add(self, values: Tensor) -> None:
        self.total += float(values.double().sum())
        self.count += len(values)

    def value(self) -> float:
        return self.total / self.count


def given(clip: Tensor | None) -> Tensor:
    assert clip is not None, "the scorer is only made when its folders are there"
    return clip


def check_same_size(a: Tensor, b: Tensor, metric: str, what: str) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"{metric} needs clips of {what}'s size: (frames, height, width) is {tuple(a.shape[2:])} in the "
            f"video, {tuple(b.shape[2:])} in {what}; render or crop both alike"
        )


def ratio_to(energy: float, reference: float) -> float:
    """energy / reference; against a reference without any detail, NaN, which is no score."""
    return energy / reference if reference > 0 else math.nan
