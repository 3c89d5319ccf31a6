"""The first frame of a clip is given, an image, and the network generates the others (D126)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pw.method.schedule import Schedule
from pw.nn.adapters import resize_frames


@dataclass(frozen=True)
class GivenFrame:
    """A network that sees the first latent frame of some clips as it is given, whatever the state has there.

    Its velocity there is (state - latent) / sigma. For a state on the path, in training, this is noise - data, what the
    objective aims at: this frame adds nothing to a loss. When a clip is generated it leads to the given frame.

    latent     [1 or B, C, 1, h, w], of the image alone
    samples    [B], True where it is given; None: everywhere
    per_token  whether its tokens have timestep 0, as Wan2.2-TI2V-5B was trained; else that of the clip
    """

    net: Callable[..., Tensor]
    schedule: Schedule
    latent: Tensor
    samples: Tensor | None = None
    per_token: bool = False

    def __call__(
        self,
        state: Tensor,
        timestep: Tensor,
        stride: Tensor,
        text: Tensor,
        anchor: Tensor | None = None,
        *,
        sigma_timestep: Tensor,
    ) -> Tensor:
        """The velocity, as `Backbone.forward`."""
        seen = self.in_place(state)
        given = self._samples(state)
        clean = {"clean_frames": given.long()} if self.per_token else {}
        velocity = self.net(seen, timestep, stride, text, anchor, sigma_timestep=sigma_timestep, **clean)
        # at sigma 0 the state is the data, and any velocity will do that is a number
        sigma = self.schedule.sigma(timestep.double()).to(state).clamp(min=1e-12).view(-1, 1, 1, 1, 1)
        return self._first(velocity, (state[:, :, :1] - seen[:, :, :1]) / sigma, given)

    def in_place(self, latent: Tensor) -> Tensor:
        """The latent [B, C, F, h, w] with the given frame."""
        first = resize_frames(self.latent.to(latent), (latent.shape[-2], latent.shape[-1]))
        return self._first(latent, first, self._samples(latent))

    def _samples(self, state: Tensor) -> Tensor:
        """[B], True where the frame is given."""
        everywhere = torch.ones(len(state), dtype=torch.bool, device=state.device)
        return everywhere if self.samples is None else self.samples.to(state.device)

    @staticmethod
    def _first(latent: Tensor, first: Tensor, samples: Tensor) -> Tensor:
        chosen = torch.where(samples.view(-1, 1, 1, 1, 1), first, latent[:, :, :1])
        return torch.cat([chosen, latent[:, :, 1:]], 2)
