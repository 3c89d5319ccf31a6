"""UniPC, Wan's solver, from diffusers behind our solver interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pw.io.lazy import torch
from pw.method.path import Velocity
from pw.method.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class UniPC:
    """Multistep predictor-corrector of the given order (1 to 3).

    When to use: on a flow model, whose ODE it solves in fewer steps than Euler. Not on a shortcut model: its velocities
    are means over a step and must not be extrapolated.
    """

    order: int

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 3:
            raise ValueError(f"solver.order={self.order}: 1, 2 or 3")

    def __call__(self, velocity: Velocity, noise: Tensor, grid: Tensor, strides: Tensor, schedule: Schedule) -> Tensor:
        """noise [B, C, F, h, w], grid [n + 1], strides [n] -> data of noise's shape."""
        from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, solver_order=self.order
        )
        scheduler.set_timesteps(sigmas=schedule.sigma(grid[:-1]).numpy())
        scheduler.set_begin_index(0)  # else looked up by whole timestep, which two steps of a fine grid share
        state = noise
        full = lambda value: torch.full((len(noise),), value, dtype=torch.float64, device=noise.device)  # noqa: E731
        for timestep, stride, label in zip(grid[:-1].tolist(), strides.tolist(), scheduler.timesteps, strict=True):
            v = velocity(state, full(timestep), full(stride))
            state = scheduler.step(v, label, state, return_dict=False)[0]
        return state
