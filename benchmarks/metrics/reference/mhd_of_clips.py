"""mHD-MSE of clips of any size, and its ratio to that of real clips  (paper: Eqs. 9.9-9.10).

`benchmarks.metrics.mhd` measures the same of videos, in float64 and frame by frame; the two agree but for the last
digits of float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.metrics.reference.clip_frames import Batch, RunningMean, floats, given, per_video, ratio_to, resize


def mhd_mse(video: Tensor, ks: Sequence[int]) -> Tensor:
    """Mean over k of || v - up(down(v, 2^k)) ||^2 per pixel, on [0, 1]: [B]  (paper: eqs. 9.9-9.10).

    UltraGen, app. D. Bilinear without antialias to floor(H / 2^k) as in the authors' script; their sum over k
    is a mean here. Frames are taken one at a time. Rewards noise and over-sharpening, and falls with
    resolution.
    """
    b, _, f, h, w = video.shape
    total = torch.zeros(b)
    for t in range(f):
        frame = (floats(video[:, :, t]) + 1) / 2
        for k in ks:
            small = resize(frame, max(1, h >> k), max(1, w >> k), "bilinear")
            total += per_video((frame - resize(small, h, w, "bilinear")).square(), b)
    return total / (f * len(ks))


def mhd_scales(video: Tensor, ks_small: Sequence[int], ks_large: Sequence[int], small_below: int) -> Sequence[int]:
    """The k's that fit: those for small frames if the shorter side is under `small_below` px."""
    return ks_small if min(video.shape[-2:]) < small_below else ks_large


@dataclass
class ClipMhd:
    """Mean mHD-MSE of the folder's videos."""

    ks_small: Sequence[int]
    ks_large: Sequence[int]
    small_below: int
    mean: RunningMean = field(default_factory=RunningMean)

    def add(self, batch: Batch) -> Tensor:
        scales = mhd_scales(batch.video, self.ks_small, self.ks_large, self.small_below)
        values = mhd_mse(batch.video, scales)
        self.mean.add(values)
        return values

    def result(self) -> float:
        return self.mean.value()


@dataclass
class MhdRatio:
    """Mean mHD-MSE of the folder over that of the real clips of the same names."""

    ks_small: Sequence[int]
    ks_large: Sequence[int]
    small_below: int
    mean: RunningMean = field(default_factory=RunningMean)
    real_mean: RunningMean = field(default_factory=RunningMean)

    def add(self, batch: Batch) -> None:
        for video, mean in ((batch.video, self.mean), (given(batch.real), self.real_mean)):
            mean.add(mhd_mse(video, mhd_scales(video, self.ks_small, self.ks_large, self.small_below)))

    def result(self) -> float:
        return ratio_to(self.mean.value(), self.real_mean.value())
