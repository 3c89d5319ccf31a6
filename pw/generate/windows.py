"""The windows of a long video as one batch: one at a time on the device, agreed on what they share (D125)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from pw.io.files import write_tensors
from pw.nn.backbone import Backbone
from pw.stages.velocity import resized


@dataclass
class JointWindows:
    """A network for the windows of a video, a batch on the CPU [W, C, F, h, w] of which each is evaluated alone.

    What two windows share has one state, since they begin with the same noise (`share_noise`) and, where they begin
    from their anchors, with the mean of these (`resized`); and one velocity: their mean, whose weight changes linearly
    from one window to the other at every step, as in MultiDiffusion (arXiv 2302.08113). The batch can hold several
    branches of guidance, one after the other.

    shared         latent frames of the beginning of each window that are the end of the one before; 0 of the first
    is_whole       whether the first shared latent frame encodes the same frames in both; if not, it is not shared
    on_evaluation  called after each evaluation
    file           (evaluation, window) -> where its velocity is kept, so that a stopped call goes on; None: nowhere
    """

    net: Backbone
    device: str
    shared: Sequence[int]
    is_whole: bool
    on_evaluation: Callable[[], None]
    file: Callable[[int, int], Path] | None
    writes: bool
    calls: int = field(default=0, init=False)

    def __call__(
        self, state: Tensor, timestep: Tensor, stride: Tensor, text: Tensor, anchor: Tensor, *, sigma_timestep: Tensor
    ) -> Tensor:
        """The velocity, as `Backbone.forward`; text [branches, tokens, dim]."""
        velocities = torch.empty_like(state)
        windows = len(self.shared)
        for index in range(len(state)):
            one = slice(index, index + 1)
            branch = slice(index // windows, index // windows + 1)
            inputs = (state[one], timestep[one], stride[one], text[branch], anchor[one], sigma_timestep[one])
            velocities[one] = self._evaluated(index, *inputs)
        self.calls += 1
        for branch in velocities.split(windows):
            blend(branch, self.shared, self.is_whole)
        return velocities

    def resized(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Of all windows, at another size (rows, columns) and agreed: what a state begins from, where it is not noise
        alone. Each window's anchor is encoded by itself, so the frames that two share differ."""
        agreed = resized(latents, size).clone()
        blend(agreed, self.shared, self.is_whole)
        return agreed

    def _evaluated(self, index: int, *inputs: Tensor) -> Tensor:
        from pw.generate.output import load_latent

        path = None if self.file is None else self.file(self.calls, index)
        if path is not None and path.exists():
            velocity = load_latent(path)[0]
        else:
            *inputs_on_device, sigma_timestep = (value.to(self.device) for value in inputs)
            velocity = self.net(*inputs_on_device, sigma_timestep=sigma_timestep).cpu()
            if path is not None and self.writes:
                write_tensors(path, {"latent": velocity.contiguous()}, {})
        self.on_evaluation()
        return velocity


def blend(latents: Tensor, shared: Sequence[int], is_whole: bool) -> None:
    """In place: what neighbouring windows [W, C, F, h, w] share becomes their weighted mean, in both."""
    for window, count in enumerate(shared):
        first = 0 if is_whole else 1
        if count <= first:
            continue
        before, after = latents[window - 1, :, latents.shape[2] - count :], latents[window, :, :count]
        weight = torch.arange(1, count + 1, dtype=latents.dtype).view(-1, 1, 1) / (count + 1)
        mean = torch.lerp(before, after, weight)[:, first:]
        before[:, first:], after[:, first:] = mean, mean


def share_noise(noise: Sequence[Tensor], shared: Sequence[int]) -> list[Tensor]:
    """The noise [C, F, h, w] of each window, which begins with the end of that of the one before."""
    result = [noise[0]]
    for own, count in zip(noise[1:], shared[1:], strict=True):
        result.append(torch.cat([result[-1][:, own.shape[1] - count :], own[:, count:]], 1))
    return result
