"""How well clips keep the structure clip that they were given."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from benchmarks.metrics.reference.clip_frames import (
    Batch,
    RunningMean,
    frames_of,
    gaussian_blur,
    given,
    mean_over_parts,
    parts,
    per_video,
    resize,
)


def to_grid(frames: Tensor, like: tuple[int, int], sigma: float, factor: int) -> Tensor:
    """Frames on the anchor's grid of a video of size `like`, `factor` times smaller than it.

    Frames of the video's size are blurred (sigma px) and reduced by area. Others are structure clips that were
    reduced already: they are only resized, by area if larger than the grid, else bilinearly.
    """
    height, width = max(1, like[0] // factor), max(1, like[1] // factor)
    size = tuple(frames.shape[-2:])
    if size == like:
        return resize(gaussian_blur(frames, sigma), height, width, "area")
    if size == (height, width):
        return frames
    return resize(frames, height, width, "area" if size[0] >= height and size[1] >= width else "bilinear")


@dataclass
class AnchorFidelity:
    """Mean squared difference to the structure clip on the anchor's grid, on [-1, 1]."""

    sigma: float
    factor: int
    mean: RunningMean = field(default_factory=RunningMean)

    def add(self, batch: Batch) -> Tensor:
        structure = given(batch.structure)
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
        ours, theirs = (to_grid(frames_of(clips), size, self.sigma, self.factor) for clips in (video, structure))
        return per_video((ours - theirs).square(), len(video))

    def result(self) -> float:
        return self.mean.value()
