"""How far clips are from the many-step solution of the same checkpoint and noise."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from benchmarks.metrics.reference.clip_frames import (
    Batch,
    RunningMean,
    check_same_size,
    frames_of,
    given,
    mean_over_parts,
    parts,
    per_video,
    ratio_to,
    residual,
)


@dataclass
class SolutionGap:
    """Mean squared difference to the solution, on [-1, 1]."""

    mean: RunningMean = field(default_factory=RunningMean)

    def add(self, batch: Batch) -> Tensor:
        solution = given(batch.solution)
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
        solution = given(batch.solution)
        check_same_size(batch.video, solution, "solution_gain", "solution")
        for video, energy in ((batch.video, self.energy), (solution, self.solution_energy)):
            lost = [
                (per_video(residual(frames_of(part), self.factor).square(), len(part)), part.shape[2])
                for _, (part,) in parts(video)
            ]
            energy.add(mean_over_parts(lost))

    def result(self) -> float:
        return ratio_to(self.energy.value(), self.solution_energy.value())
