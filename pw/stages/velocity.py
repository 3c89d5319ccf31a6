"""The velocity of a network under a condition, and its integration from noise to data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pw.method.path import Velocity
from pw.method.schedule import Schedule
from pw.method.solver import inference_strides
from pw.nn.backbone import Backbone
from pw.run.build import Run


@dataclass(frozen=True)
class Condition:
    """The condition of a velocity: text [B, tokens, dim] and the anchor's latent, if there is one."""

    text: Tensor
    anchor: Tensor | None

    def dropped(self, which: Tensor, null_text: Tensor | None = None) -> Condition:
        """Zeros for the anchor and the empty prompt for the text of the samples marked in `which` [B]."""
        text, anchor = self.text, self.anchor
        if null_text is not None:
            text = torch.where(which.to(text.device).view(-1, 1, 1), null_text.to(text), text)
        if anchor is not None:
            anchor = anchor.masked_fill(which.to(anchor.device).view(-1, 1, 1, 1, 1), 0.0)
        return Condition(text, anchor)


def velocity(net: Backbone, condition: Condition, schedule: Schedule) -> Velocity:
    """The network with all but (state, timestep, stride) bound."""

    def velocity(state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
        timestep, stride = timestep.to(state.device), stride.to(state.device)
        told = schedule.network_timestep(timestep)
        return net(state, timestep.float(), stride.float(), condition.text, condition.anchor, sigma_timestep=told)

    return velocity


@torch.no_grad()
def integrate(
    run: Run,
    net: Backbone,
    noise: Tensor,
    condition: Condition,
    null: Condition | None = None,
    tick: Callable[[], None] | None = None,
) -> Tensor:
    """noise latent [B, C, F, h, w] -> latent, by the run's solver, grid and guidance.

    null  condition of the null branch, required with guidance
    tick  called after every evaluation of the network
    """
    grid = run.grid()
    strides = inference_strides(grid) if run.feeds_strides() else torch.zeros(len(grid) - 1)

    def evaluated(inner: Velocity) -> Velocity:
        return _calling_after(_at_whole_timesteps(inner) if run.sampling.grid == "wan" else inner, tick)

    conditioned = evaluated(velocity(net, condition, run.schedule))
    if run.guidance.scale != 1:
        assert null is not None, "guidance needs a null condition"
        away = evaluated(velocity(net, null, run.schedule))
        both = evaluated(_both_branches(net, condition, null, run.schedule)) if run.trainer.guidance_batch else None
        conditioned = run.guidance(conditioned, away, run.guidance.last_guided(grid), both)
    return run.solver(conditioned, noise, grid, strides, run.schedule)


def evaluations(run: Run) -> int:
    """Evaluations of the network by `integrate` for one sample: one per step, two where it is guided."""
    steps = run.sampling.num_steps
    if run.guidance.scale == 1:
        return steps
    return steps + min(steps, run.guidance.first_steps or steps)


def _calling_after(inner: Velocity, tick: Callable[[], None] | None) -> Velocity:
    if tick is None:
        return inner

    def velocity(state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
        found = inner(state, timestep, stride)
        tick()
        return found

    return velocity


def _both_branches(net: Backbone, condition: Condition, null: Condition, schedule: Schedule) -> Velocity:
    """Both branches of guidance in one batch: [2 B, …], the conditioned ones first."""
    anchors = (condition.anchor, null.anchor)
    anchor = torch.cat([a for a in anchors if a is not None]) if condition.anchor is not None else None
    twice = velocity(net, Condition(torch.cat([condition.text, null.text]), anchor), schedule)

    def both(state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
        return twice(torch.cat([state, state]), torch.cat([timestep, timestep]), torch.cat([stride, stride]))

    return both


def _at_whole_timesteps(inner: Velocity) -> Velocity:
    # Wan's scheduler gives the network whole timesteps, and steps by exact sigmas
    def velocity(state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
        return inner(state, timestep.floor(), stride)

    return velocity
