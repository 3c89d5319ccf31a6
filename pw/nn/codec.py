"""Video <-> latent. At `scale=tiny` a lossless rearrangement with as many channels as Wan2.2's VAE, 48."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pw.nn import options


class SpaceToDepthCodec:
    """[B, 3, F, H, W] <-> [B, 3 f^2, F, H/f, W/f], exactly invertible; nothing to learn, nothing to load."""

    def __init__(self, choice: options.SpaceToDepth) -> None:
        self.factor = choice.factor
        self.channels = choice.channels

    def encode(self, video: Tensor) -> Tensor:
        """Video in [-1, 1] -> latent. Raises ValueError when H or W is not a multiple of the factor."""
        if video.shape[-2] % self.factor or video.shape[-1] % self.factor:
            raise ValueError(f"codec.factor={self.factor} does not divide {video.shape[-2]} x {video.shape[-1]} pixels")
        return _per_frame(video, lambda frames: F.pixel_unshuffle(frames, self.factor))

    def decode(self, latent: Tensor) -> Tensor:
        """The inverse of `encode`; values may leave [-1, 1] and are clamped where they become pixels."""
        return _per_frame(latent, lambda frames: F.pixel_shuffle(frames, self.factor))


def _per_frame(video: Tensor, function) -> Tensor:
    frames = function(video.transpose(1, 2).flatten(0, 1))
    return frames.unflatten(0, (len(video), -1)).transpose(1, 2)
