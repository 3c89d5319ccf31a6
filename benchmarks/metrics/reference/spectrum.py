"""PSD: the distance of mean power spectra; sees blur."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.metrics.reference.clip_frames import Batch, check_same_size, frames_of, given, parts


def radial_power_spectrum(video: Tensor) -> Tensor:
    """Power by radial frequency of the Hann-windowed mean of R, G and B, averaged over angle and frames.

    Returns [B, R + 1] with R = min(H, W) // 2: bin r is the frequency r / min(H, W) cycles/px, the corners of
    the spectrum are in the last bin. Times the bins' sizes it sums to H W times the energy (Parseval).
    """
    h, w = video.shape[-2:]
    window = torch.hann_window(h, periodic=False)[:, None] * torch.hann_window(w, periodic=False)
    bins, sizes = radial_bins(h, w)
    found = []
    for _, (part,) in parts(video):
        grey = frames_of(part).mean(1)
        grey = (grey - grey.mean((1, 2), keepdim=True)) * window
        power = torch.fft.fft2(grey).abs().square().flatten(1)
        total = torch.zeros(len(grey), len(sizes), dtype=power.dtype).index_add_(1, bins, power)
        found.append((total / sizes).reshape(len(part), -1, len(sizes)))
    return torch.cat(found, 1).mean(1)


def radial_bins(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The radial bin of every coefficient of fft2 [H W], and how many coefficients a bin holds [R + 1]."""
    side = min(height, width)
    fy, fx = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    radius = (fy[:, None].square() + fx.square()).sqrt() * side
    bins = radius.round().long().clamp(max=side // 2).flatten()
    return bins, torch.bincount(bins, minlength=side // 2 + 1).float()


@dataclass
class PowerSpectrumDistance:
    """Rms over radial frequencies (without the mean) of 10 log10(mean power / real's mean power), in dB.

    Powers below that of rounding to `round_off_bits` bits are not told apart.
    """

    round_off_bits: int
    power: Tensor | None = None
    real_power: Tensor | None = None
    floor: float = 0.0

    def add(self, batch: Batch) -> None:
        real = given(batch.real)
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
        self.power += radial_power_spectrum(batch.video).double().sum(0)
        self.real_power += radial_power_spectrum(real).double().sum(0)

    def result(self) -> float:
        ratio = (given(self.power)[1:] + self.floor) / (given(self.real_power)[1:] + self.floor)
        return float((10 * ratio.log10()).square().mean().sqrt())
