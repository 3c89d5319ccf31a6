"""The first frame of a clip is given, an image, and the network generates the others (D126)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pw.nn.adapters import resize_frames
from pw.nn.backbone import Backbone


@dataclass(frozen=True)
class GivenFrame:
    """A network that sees the first latent frame of every clip as it is given, whatever the state has there.

    latent     [1, C, 1, h, w], of the image alone
    per_token  whether its tokens have timestep 0, as Wan2.2-TI2V-5B was trained; else that of the clip
    """

    net: Backbone
    latent: Tensor
    per_token: bool

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
        """The velocity, as `Backbone.forward`; that of the given frame means nothing."""
        inputs = (self.in_place(state), timestep, stride, text, anchor)
        return self.net(*inputs, sigma_timestep=sigma_timestep, clean_frames=int(self.per_token))

    def in_place(self, latent: Tensor) -> Tensor:
        """The latent [B, C, F, h, w] with the given frame."""
        given = resize_frames(self.latent.to(latent), (latent.shape[-2], latent.shape[-1]))
        return torch.cat([given.expand(len(latent), -1, -1, -1, -1), latent[:, :, 1:]], 2)
