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

    def drop(self, mask: Tensor, null_text: Tensor | None = None) -> Condition:
        """Where `mask` [B] is True: zeros for the anchor, and `null_text` for the text if given."""
        text, anchor = self.text, self.anchor
        if null_text is not None:
            text = torch.where(mask.to(text.device).view(-1, 1, 1), null_text.to(text), text)
        if anchor is not None:
            anchor = anchor.masked_fill(mask.to(anchor.device).view(-1, 1, 1, 1, 1), 0.0)
        return Condition(text, anchor)


def velocity(net: Backbone, condition: Condition, schedule: Schedule) -> Velocity:
    """The network as a function of (state, timestep, stride), with everything else bound."""

    def velocity(state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
        timestep, stride = timestep.to(state.device), stride.to(state.device)
        inputs = (state, timestep.float(), stride.float(), condition.text, condition.anchor)
        return net(*inputs, sigma_timestep=schedule.network_timestep(timestep))

    return velocity


@torch.no_grad()
def integrate(
    run: Run,
    net: Backbone,
    noise: Tensor,
    condition: Condition,
    null: Condition | None = None,
    on_evaluation: Callable[[], None] | None = None,
) -> Tensor:
    """noise latent [B, C, F, h, w] -> latent, by the run's solver, grid and guidance.

    null           condition of the null branch, required with guidance
    on_evaluation  called after every evaluation of the network
    """
    grid = run.grid()
    strides = inference_strides(grid) if run.feeds_strides() else torch.zeros(len(grid) - 1)

    def wrap(inner: Velocity) -> Velocity:
        return _with_callback(_at_whole_timesteps(inner) if run.sampling.grid == "wan" else inner, on_evaluation)

    guided = wrap(velocity(net, condition, run.schedule))
    if run.guidance.scale != 1:
        assert null is not None, "guidance needs a null condition"
        null_velocity = wrap(velocity(net, null, run.schedule))
        batched = wrap(_both_branches(net, condition, null, run.schedule)) if run.trainer.guidance_batch else None
        guided = run.guidance(guided, null_velocity, run.guidance.last_guided(grid), batched)
    return run.solver(guided, noise, grid, strides, run.schedule)


def evaluations(run: Run) -> int:
    """Number of evaluations of the network by `integrate` for one sample: one per step, two if the step is guided."""
    steps = run.sampling.num_steps
    if run.guidance.scale == 1:
        return steps
    return steps + min(steps, run.guidance.first_steps or steps)


def _with_callback(inner: Velocity, on_evaluation: Callable[[], None] | None) -> Velocity:
    if on_evaluation is None:
        return inner

    def velocity(state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
        result = inner(state, timestep, stride)
        on_evaluation()
        return result

    return velocity


def _both_branches(net: Backbone, condition: Condition, null: Condition, schedule: Schedule) -> Velocity:
    """Both branches of guidance in one batch: [2 B, …], the conditioned branch first."""
    anchors = (condition.anchor, null.anchor)
    anchor = torch.cat([a for a in anchors if a is not None]) if condition.anchor is not None else None
    batched = velocity(net, Condition(torch.cat([condition.text, null.text]), anchor), schedule)

    def both_branches(state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
        return batched(torch.cat([state, state]), torch.cat([timestep, timestep]), torch.cat([stride, stride]))

    return both_branches


def _at_whole_timesteps(inner: Velocity) -> Velocity:
    # Wan's scheduler evaluates the network at whole timesteps, but steps by exact sigmas
    def velocity(state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
        return inner(state, timestep.floor(), stride)

    return velocity
