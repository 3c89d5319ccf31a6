"""Whether the texture of a procedural clip is of its class  (`data.captions=texture`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.metrics.implementation import Batch
from benchmarks.metrics.reference import RunningMean, check_same_size, frames_of, parts, required
from pw.data.procedural import CELL, WAVES


def orientation_shares(video: Tensor) -> Tensor:
    """[B, 3, F, H, W] -> [B, 4]: how the power near the four wave vectors of the gratings is divided among them.

    Near is within half a cycle of a texture cell, 1 / (2 CELL) cycles/px, of the vector or its negative.
    """
    height, width = video.shape[-2:]
    fy, fx = torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)
    waves = [(x / (2 * math.pi), y / (2 * math.pi)) for x, y in WAVES]  # cycles/px
    is_near = [
        (torch.hypot(fx - x, fy - y) <= 0.5 / CELL) | (torch.hypot(fx + x, fy + y) <= 0.5 / CELL) for x, y in waves
    ]
    masks = torch.stack(is_near).flatten(1).float()
    power = torch.zeros(len(video), len(WAVES))
    for _, (part,) in parts(video):
        grey = frames_of(part).mean(1)
        spectrum = torch.fft.fft2(grey - grey.mean((1, 2), keepdim=True)).abs().square().flatten(1)
        power += (spectrum @ masks.T).reshape(len(part), -1, len(WAVES)).sum(1)
    return power / power.sum(1, keepdim=True).clamp(min=1e-12)


@dataclass
class ClassShare:
    """Share of a clip's grating power that has the class of the real clip of its name: the largest of that one's."""

    mean: RunningMean = field(default_factory=RunningMean)

    def add(self, batch: Batch) -> Tensor:
        """-> [B], 0 to 1."""
        real = required(batch.real)
        check_same_size(batch.video, real, "class_share", "real")
        label = orientation_shares(real).argmax(1, keepdim=True)
        values = orientation_shares(batch.video).gather(1, label)[:, 0]
        self.mean.add(values)
        return values

    def result(self) -> float:
        return self.mean.value()
