"""Few-step integration from noise to data, and its grids of timesteps  (Eqs. 3, 7.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Protocol

from pw.io.arguments import Range
from pw.io.lazy import Tensor, torch
from pw.method.path import Velocity
from pw.method.schedule import Schedule, shifted


def inference_grid(num_steps: int, schedule: Schedule, shift: float | None = None, start: float = 1.0) -> Tensor:
    """Timesteps T_0 > … > T_n = 0 in the schedule's coordinate, float64 [n + 1].

    u = start (1 - i / n), sigma = shifted(u). `shift` is the inference shift, the training one by default; the
    authors start at u = 0.999. Raises ValueError when n < 1 or start is not in (0, 1].
    """
    if num_steps < 1:
        raise ValueError(f"sampling.num_steps={num_steps}: needs at least 1")
    if not 0 < start <= 1:
        raise ValueError(f"sampling.start={start}: a fraction of the schedule in (0, 1]; 1 is pure noise")
    u = start * (1 - torch.arange(num_steps + 1, dtype=torch.float64) / num_steps)
    return schedule.timestep(shifted(u, schedule.shift if shift is None else shift))


def wan_grid(num_steps: int, schedule: Schedule, shift: float | None = None) -> Tensor:
    """The grid of Wan's scheduler: u from 1 to 1 / N, not to 0, shifted, then 0; float64 [n + 1].

    Like diffusers' `UniPCMultistepScheduler` with `use_flow_sigmas`, it lowers sigma = 1 by a millionth.
    """
    nodes = schedule.num_timesteps
    u = torch.linspace(1, 1 / nodes, num_steps + 1, dtype=torch.float64)[:-1]
    sigma = shifted(u, schedule.shift if shift is None else shift)
    sigma = torch.cat([sigma.clamp(max=1 - 1e-6), sigma.new_zeros(1)])
    return schedule.timestep(sigma)


def custom_grid(timesteps: Sequence[float], schedule: Schedule) -> Tensor:
    """`timesteps` and a final 0. Raises ValueError unless they fall strictly and lie in (0, N]."""
    grid = torch.tensor([*map(float, timesteps), 0.0], dtype=torch.float64)
    if len(grid) < 2 or grid[0] > schedule.num_timesteps or not bool((grid[1:] < grid[:-1]).all()):
        raise ValueError(
            f"sampling.timesteps={list(timesteps)}: expected falling timesteps between {schedule.num_timesteps} and 0 "
            "(the final 0 is added), e.g. [1000,931,818,600]"
        )
    return grid


def inference_strides(grid: Tensor) -> Tensor:
    """The network's stride input at each step: T_i - T_{i+1}, floored to even, at least 2."""
    return ((grid[:-1] - grid[1:] + 1e-6) // 2 * 2).clamp(min=2)


class Solver(Protocol):
    """Integrates a velocity along a grid. To add one, write such a class and name it in a file of `conf/solver/`."""

    def __call__(self, velocity: Velocity, noise: Tensor, grid: Tensor, strides: Tensor, schedule: Schedule) -> Tensor:
        """noise [B, C, F, h, w], falling timesteps grid [n + 1], strides [n] -> data of noise's shape."""
        ...


@dataclass(frozen=True)
class Euler:
    """x <- x + (sigma_next - sigma) v  (Eq. 3): exact for a shortcut model, whose v is the mean over the step.

    When to use: with shortcut training, and with many steps on any model.
    """

    def __call__(self, velocity: Velocity, noise: Tensor, grid: Tensor, strides: Tensor, schedule: Schedule) -> Tensor:
        """noise [B, C, F, h, w], grid [n + 1], strides [n] -> data of noise's shape."""
        state = noise
        states = pairwise(zip(grid.tolist(), schedule.sigma(grid.double()).tolist(), strict=True))
        for ((timestep, sigma), (_, next_sigma)), stride in zip(states, strides.tolist(), strict=True):
            v = velocity(state, _full(timestep, noise), _full(stride, noise))
            state = state - (sigma - next_sigma) * v
        return state


def _full(value: float, like: Tensor) -> Tensor:
    return torch.full((len(like),), value, dtype=torch.float64, device=like.device)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: v_null + scale (v - v_null), or none at scale 1.

    scale        5.0 is Wan's default; 1 evaluates the network once
    drop         what the null branch goes without: `text` (both branches get the anchor) or `text_and_anchor`
    first_steps  guide only that many steps from the start; null guides all
    """

    scale: Annotated[float, Range(0, 100)]
    drop: str
    first_steps: int | None

    def __post_init__(self) -> None:
        if self.drop not in ("text", "text_and_anchor"):
            raise ValueError(f"guidance.drop={self.drop!r}: one of text, text_and_anchor")
        if self.first_steps is not None and self.first_steps < 1:
            raise ValueError(f"guidance.first_steps={self.first_steps}: needs at least 1; guidance=off guides none")

    def __call__(
        self, velocity: Velocity, null: Velocity, last_guided: float, both_branches: Velocity | None = None
    ) -> Velocity:
        """The guided velocity; `velocity` itself at timesteps below `last_guided`.

        both_branches  evaluates both as one batch, [2 B, …]: faster, with more memory
        """

        def guided(state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
            if self.scale == 1 or float(timestep[0]) < last_guided:
                return velocity(state, timestep, stride)
            if both_branches is not None:
                v, base = both_branches(state, timestep, stride).chunk(2)
            else:
                v, base = velocity(state, timestep, stride), null(state, timestep, stride)
            return base + self.scale * (v - base)

        return guided

    def last_guided(self, grid: Tensor) -> float:
        """The lowest timestep of the grid that is still guided."""
        steps = len(grid) - 1 if self.first_steps is None else min(self.first_steps, len(grid) - 1)
        return float(grid[steps - 1]) if steps else float("inf")
