"""Which steps of an inference grid, and which second halves of the training targets, are trained  (D5).

`pw coverage step_sampler=closed` prints it for 2, 3, 4 and 5 steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from pw.io.lazy import Tensor, torch
from pw.method.schedule import Schedule, shifted, unshifted
from pw.method.solver import inference_strides
from pw.method.step_sampler import StepSampler


@dataclass(frozen=True)
class Pair:
    """A step of an inference grid, whether it is trained, and the nearest trained step."""

    timestep: float
    stride: float
    trained: bool
    nearest: tuple[float, float]


@dataclass(frozen=True)
class Coverage:
    """How much of an inference grid a step sampler trains.

    second_halves           distinct trained steps, each of which has a second half
    second_halves_trained   those whose second half is a trained step too
    second_halves_grounded  those evaluated at stride 0, where flow matching trains every timestep
    """

    pairs: tuple[Pair, ...]
    second_halves: int
    second_halves_trained: int
    second_halves_grounded: int


def coverage(step_sampler: StepSampler, schedule: Schedule, grid: Tensor) -> Coverage:
    """The coverage of a grid of timesteps [n + 1] in the schedule's coordinate.

    Two steps are the same if their strides differ by at most 2 (both are even) and their timesteps by at most one node.
    """
    table = step_sampler.table(schedule)
    rows = torch.stack([table.timestep, table.stride, table.ground.double()], 1)[table.probability > 0]
    timestep, stride, ground = rows.unique(dim=0).unbind(1)
    ground = ground.bool()
    spacing = _node_spacing(timestep, schedule)

    def is_trained(t: Tensor, s: Tensor) -> Tensor:
        same_timestep = (timestep - t[:, None]).abs() <= spacing
        same_stride = (stride - s[:, None]).abs() <= 2
        return (same_timestep & same_stride).any(1)

    timesteps, strides = grid[:-1], inference_strides(grid)
    distance = (timestep - timesteps[:, None]).abs() + (stride - strides[:, None]).abs()
    nearest = distance.argmin(1)
    pairs = tuple(
        Pair(float(t), float(s), bool(trained), (float(timestep[n]), float(stride[n])))
        for t, s, trained, n in zip(timesteps, strides, is_trained(timesteps, strides), nearest, strict=True)
    )
    halves = is_trained(timestep - stride / 2, stride / 2)
    return Coverage(pairs, len(timestep), int((halves & ~ground).sum()), int(ground.sum()))


def is_trained_timestep(timestep: Tensor, trained: Tensor, schedule: Schedule) -> bool:
    """Whether a timestep [1] is, up to a node, one of `trained` [M]."""
    return bool(((trained - timestep).abs() <= _node_spacing(trained, schedule)).any())


def _node_spacing(timestep: Tensor, schedule: Schedule) -> Tensor:
    """Distance to the next lower node, at most 5, [M]: the tolerance for snapped timesteps."""
    u = unshifted(schedule.sigma(timestep), schedule.shift)
    lower_node = schedule.timestep(shifted((u - 1 / schedule.num_timesteps).clamp(min=0), schedule.shift))
    return torch.minimum(timestep - lower_node, torch.tensor(5.0, dtype=torch.float64))
