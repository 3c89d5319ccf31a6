"""How much a shortcut step counts: lambda(timestep, stride)  (sec. 3.4, Eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, Protocol

from pw.io.arguments import Range
from pw.io.lazy import Tensor, torch
from pw.method.schedule import Schedule
from pw.method.step_sampler import Steps, StepSampler


class Weighting(Protocol):
    """lambda of a batch of steps. To add one, write such a class and name it in a file of `conf/weighting/`.

    Set `depends_on_batch = True` if a clip's weight depends on the other clips of its batch; False by default.
    """

    def __call__(self, steps: Steps, schedule: Schedule, step_sampler: StepSampler) -> Tensor:
        """steps [B] -> weights [B]."""
        ...


@dataclass(frozen=True)
class Uniform:
    """lambda = 1.

    When to use: to measure the effect of the step sampler alone.
    """

    def __call__(self, steps: Steps, schedule: Schedule, step_sampler: StepSampler) -> Tensor:
        return torch.ones_like(steps.timestep)


@dataclass(frozen=True)
class DeltaSigma:
    """lambda = (noise span)^p: a step counts by the noise it removes  (Eq. 8).

    normalise  `none`: Eq. 8 as it is; it also lowers the whole loss (E[lambda] is about 0.6).
               `expected`: divided by E[lambda] under the step sampler, so that only *which* steps count changes (D7).
               `batch`: the authors' code: span over its batch mean, ^p, clamped to [0.1, 10], weighted mean over the
               batch. At batch size 1 this is exactly 1.

    When to use: for few-step sampling, where long steps decide how the result looks.
    """

    p: Annotated[float, Range(0, 10)]
    normalise: Literal["none", "expected", "batch"]

    @property
    def depends_on_batch(self) -> bool:
        return self.normalise == "batch"

    def __call__(self, steps: Steps, schedule: Schedule, step_sampler: StepSampler) -> Tensor:
        """steps [B] -> weights [B], float64; p = 0 is `Uniform`."""
        span = schedule.noise_span(steps.timestep, steps.end)
        if self.normalise == "batch":
            weight = (span / span.mean()).pow(self.p).clamp(0.1, 10)
            return weight / weight.mean()
        weight = span**self.p
        return weight / expected_weight(self.p, schedule, step_sampler) if self.normalise == "expected" else weight


@lru_cache(maxsize=64)
def expected_weight(p: float, schedule: Schedule, step_sampler: StepSampler) -> float:
    """E[(noise span)^p] over the steps of the sampler, an exact sum."""
    table = step_sampler.table(schedule)
    span = schedule.noise_span(table.timestep, table.timestep - table.stride)
    return float((table.probability * span**p).sum())
