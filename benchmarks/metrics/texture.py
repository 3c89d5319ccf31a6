"""Whether the texture of a procedural clip is of its class  (`data.captions=texture`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.metrics.implementation import Batch
from benchmarks.metrics.reference import RunningMean, check_same_size, frames_of, parts, required

Waves = Sequence[tuple[float, float]]  # frequencies (x, y) of gratings, cycles/px


def orientation_shares(video: Tensor, waves: Waves, radius: float) -> Tensor:
    """[B, 3, F, H, W] -> [B, waves]: how the power near the frequencies `waves` is divided among them.

    Near is within `radius`, cycles/px, of a frequency or its negative.
    """
    height, width = video.shape[-2:]
    fy, fx = torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)
    is_near = [(torch.hypot(fx - x, fy - y) <= radius) | (torch.hypot(fx + x, fy + y) <= radius) for x, y in waves]
    masks = torch.stack(is_near).flatten(1).float()
    power = torch.zeros(len(video), len(waves))
    for _, (part,) in parts(video):
        grey = frames_of(part).mean(1)
        spectrum = torch.fft.fft2(grey - grey.mean((1, 2), keepdim=True)).abs().square().flatten(1)
        power += (spectrum @ masks.T).reshape(len(part), -1, len(waves)).sum(1)
    return power / power.sum(1, keepdim=True).clamp(min=1e-12)


@dataclass
class ClassShare:
    """Share of a clip's grating power that has the class of the real clip of its name: the largest of that one's."""

    waves: Waves
    radius: float
    mean: RunningMean = field(default_factory=RunningMean)

    def add(self, batch: Batch) -> Tensor:
        """-> [B], 0 to 1."""
        real = required(batch.real)
        check_same_size(batch.video, real, "class_share", "real")
        label = orientation_shares(real, self.waves, self.radius).argmax(1, keepdim=True)
        values = orientation_shares(batch.video, self.waves, self.radius).gather(1, label)[:, 0]
        self.mean.add(values)
        return values

    def result(self) -> float:
        return self.mean.value()
