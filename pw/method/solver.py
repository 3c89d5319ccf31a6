"""Few-step integration from noise to data, and its grids of timesteps  (Eqs. 3, 7.5)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from pw.io.lazy import Tensor, torch
from pw.method import path
from pw.method.path import Velocity, broadcast
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


@dataclass(frozen=True)
class Phase:
    """Consecutive steps of an inference grid at one size; it begins from noise, or from data that noise is added to.

    size     share of the full size (`sampling.sizes`)
    grid     timesteps [m + 1] from the first of its steps to 0: a phase ends in data
    strides  [m]; that of the last step reaches 0, even if a later phase begins before
    """

    size: float
    grid: Tensor
    strides: Tensor


def phases(grid: Tensor, sizes: Sequence[float] | None) -> list[Phase]:
    """A grid of n steps divided where the size of a step changes; one phase without `sizes` [n]."""
    steps = len(grid) - 1
    sizes = [1.0] * steps if sizes is None else [*sizes]
    first_steps = [0, *(step for step in range(1, steps) if sizes[step] != sizes[step - 1]), steps]
    parts = [torch.cat([grid[first:last], grid[-1:]]) for first, last in pairwise(first_steps)]
    return [Phase(sizes[first], part, inference_strides(part)) for first, part in zip(first_steps, parts, strict=False)]


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


@dataclass(frozen=True)
class JumpAndRenoise:
    """data <- x - sigma v(x, T, stride T), x <- (1 - sigma_next) data + sigma_next fresh noise  (arXiv 2303.01469,
    Algorithm 1, on our path). One step is Euler's.

    When to use: with consistency training, and with MeanFlow, which trains such jumps, too.
    """

    def __call__(self, velocity: Velocity, noise: Tensor, grid: Tensor, strides: Tensor, schedule: Schedule) -> Tensor:
        """noise [B, C, F, h, w], grid [n + 1] -> data of noise's shape; `strides` are not used: each step is the jump
        to data."""
        state = data = noise
        for step, timestep in enumerate(grid[:-1].tolist()):
            timesteps = _full(timestep, noise)
            if step:
                state = path.state(data, fresh_noise(noise, step), schedule.sigma(timesteps))
            data = state - broadcast(schedule.sigma(timesteps), state) * velocity(state, timesteps, timesteps)
        return data


def fresh_noise(noise: Tensor, step: int) -> Tensor:
    """Noise of another step, drawn on the CPU from each clip's own initial noise: the same in every arm, on every
    device, and however many clips are sampled at once."""
    clips = []
    for clip in noise:
        first = clip.flatten()[:4].float().cpu().numpy().tobytes()
        seed = int.from_bytes(hashlib.sha256(first + step.to_bytes(4, "little")).digest()[:4], "little")
        clips.append(torch.randn(clip.shape, generator=torch.Generator().manual_seed(seed)))
    return torch.stack(clips).to(noise)


def _full(value: float, like: Tensor) -> Tensor:
    return torch.full((len(like),), value, dtype=torch.float64, device=like.device)
