"""The velocity of a network under a condition, and its integration from noise to data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pw.data.procedural import generator
from pw.method import path
from pw.method.guidance import Guidance
from pw.method.path import Velocity
from pw.method.schedule import Schedule
from pw.nn.adapters import resize_frames
from pw.run.build import Run


@dataclass(frozen=True)
class Condition:
    """The condition of a velocity: text [B, tokens, dim] and the anchor's latent, if there is one."""

    text: Tensor
    anchor: Tensor | None

    def drop(self, texts: Tensor, anchors: Tensor, null_text: Tensor | None = None) -> Condition:
        """Without some parts. texts, anchors: [B], True where `null_text`, if given, and zeros take their places."""
        text, anchor = self.text, self.anchor
        if null_text is not None:
            text = torch.where(texts.to(text.device).view(-1, 1, 1), null_text.to(text), text)
        if anchor is not None:
            anchor = anchor.masked_fill(anchors.to(anchor.device).view(-1, 1, 1, 1, 1), 0.0)
        return Condition(text, anchor)

    def with_anchor(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """The same with a changed anchor, if there is one."""
        return Condition(self.text, None if self.anchor is None else change(self.anchor))


def velocity(net: Callable[..., Tensor], condition: Condition, schedule: Schedule) -> Velocity:
    """The network as a function of (state, timestep, stride), with everything else bound."""

    def velocity(state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
        timestep, stride = timestep.to(state.device), stride.to(state.device)
        inputs = (state, timestep.float(), stride.float(), condition.text, condition.anchor)
        return net(*inputs, sigma_timestep=schedule.network_timestep(timestep))

    return velocity


def resized(latent: Tensor, size: tuple[int, int]) -> Tensor:
    """The latent [B, C, F, h, w] at (rows, columns), bilinear: where `scale.anchor_upsample` is `latent`."""
    return resize_frames(latent, size)


def noise_of_phases(run: Run, noise: Tensor, *entropy: int) -> list[Tensor]:
    """The noise of each phase of one clip: `noise` [C, F, h, w] in the last, at full size; smaller ones have their own,
    drawn from the integers `entropy`."""
    sizes = [run.latent_size(phase.size) for phase in run.phases()[:-1]]
    shapes = [(*noise.shape[:2], *size) for size in sizes]
    return [*(torch.randn(shape, generator=generator(*entropy, n)) for n, shape in enumerate(shapes, start=1)), noise]


@torch.no_grad()
def integrate(
    run: Run,
    net: Callable[..., Tensor],
    noise: Tensor | Sequence[Tensor],
    condition: Condition,
    null: Condition | None = None,
    on_evaluation: Callable[[], None] | None = None,
    resized: Callable[[Tensor, tuple[int, int]], Tensor] = resized,
) -> Tensor:
    """noise latent [B, C, F, h, w] of each phase, or of the only one -> latent at full size, by the run's solver, grid,
    sizes and guidance.

    A phase after the first begins from the data of the one before, resized, and noised to its first timestep; so does
    the first from the anchor with `sampling.init=anchor`.

    null           condition of the null branch, required with guidance
    on_evaluation  called after every evaluation of the network
    resized        gives a latent another size (rows, columns)
    """
    data = condition.anchor if run.sampling.init == "anchor" else None
    noises = [noise] if isinstance(noise, Tensor) else noise
    for phase, phase_noise in zip(run.phases(), noises, strict=True):
        state, size = phase_noise, (phase_noise.shape[-2], phase_noise.shape[-1])
        if data is not None:
            sigma = run.schedule.sigma(phase.grid[:1]).to(state.device).expand(len(state))
            state = path.state(resized(data, size), state, sigma)
        fits = phase.size == 1 or run.scale.anchor_upsample == "latent"  # which the injector resizes
        sized = condition if fits else condition.with_anchor(lambda anchor, size=size: resized(anchor, size))
        sized_null = null if fits or null is None else null.with_anchor(lambda z, size=size: resized(z, size))
        v = _sampled_velocity(run, net, sized, sized_null, on_evaluation)
        strides = phase.strides if run.feeds_strides() else torch.zeros_like(phase.strides)
        data = run.solver(v, state, phase.grid, strides, run.schedule)
    assert data is not None
    return data


def _sampled_velocity(
    run: Run,
    net: Callable[..., Tensor],
    condition: Condition,
    null: Condition | None,
    on_evaluation: Callable[[], None] | None,
) -> Velocity:
    """The velocity under the run's guidance and grid."""

    def wrap(inner: Velocity) -> Velocity:
        return _with_callback(_at_whole_timesteps(inner) if run.sampling.grid == "wan" else inner, on_evaluation)

    conditioned = wrap(velocity(net, condition, run.schedule))
    if run.guidance.scale == 1:
        return conditioned
    assert null is not None, "guidance needs a null condition"
    assert isinstance(run.guidance, Guidance)
    null_velocity = wrap(velocity(net, null, run.schedule))
    batched = wrap(_both_branches(net, condition, null, run.schedule)) if run.trainer.guidance_batch else None
    return run.guidance(conditioned, null_velocity, run.guidance.last_guided(run.grid()), batched)


def _with_callback(inner: Velocity, on_evaluation: Callable[[], None] | None) -> Velocity:
    if on_evaluation is None:
        return inner

    def velocity(state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
        result = inner(state, timestep, stride)
        on_evaluation()
        return result

    return velocity


def _both_branches(net: Callable[..., Tensor], condition: Condition, null: Condition, schedule: Schedule) -> Velocity:
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
