"""Video <-> coefficients of the discrete cosine transform of square blocks, as in JPEG: without trained weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pw.nn import options

# Rows: (R + G + B) / sqrt(3), the luma; (R - B) / sqrt(2) and (R - 2 G + B) / sqrt(6), the chroma. Orthonormal.
COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))


class BlockCosineCodec:
    """[B, 3, F, H, W] <-> [B, n^2 + 2 c^2, F, H/n, W/n], with n = `factor` and c = `chroma`.

    A latent position holds the coefficients of one block of n x n px of one frame: all of luma, and of each chroma the
    c x c of lowest frequency. Each is divided by its expected deviation (`options.BlockCosine`), so that a channel has
    about unit variance, as the channels of Wan's VAE have.
    """

    def __init__(self, choice: options.BlockCosine) -> None:
        self.factor, self.channels, self.chroma = choice.factor, choice.channels, choice.chroma
        colours = torch.tensor(COLOURS, dtype=torch.float64)
        self.colours = (colours / colours.norm(dim=1, keepdim=True)).float()
        n = choice.factor
        basis = [[math.cos(math.pi * (x + 0.5) * k / n) for x in range(n)] for k in range(n)]
        cosines = torch.tensor(basis, dtype=torch.float64)
        self.cosines = (cosines / cosines.norm(dim=1, keepdim=True)).float()  # DCT-II, orthonormal: [frequency, px]
        self.deviation = torch.tensor([choice.deviation(*index) for index in choice.coefficients()])

    def encode(self, video: Tensor) -> Tensor:
        """Raises ValueError when H or W is not a multiple of the factor."""
        n = self.factor
        if video.shape[-2] % n or video.shape[-1] % n:
            raise ValueError(f"codec.factor={n} does not divide {video.shape[-2]} x {video.shape[-1]} pixels")
        colours, cosines = self.colours.to(video), self.cosines.to(video)
        blocks = video.unflatten(-1, (-1, n)).unflatten(-3, (-1, n))  # [B, 3, F, rows, n, columns, n]
        blocks = torch.einsum("kd,bdfrycx->bkfrycx", colours, blocks)
        blocks = torch.einsum("uy,bkfrycx,vx->bkuvfrc", cosines, blocks, cosines)
        luma, chroma = blocks[:, 0], blocks[:, 1:, : self.chroma, : self.chroma]
        latent = torch.cat([luma.flatten(1, 2), chroma.flatten(1, 3)], dim=1)
        return latent / self.deviation.to(latent).view(-1, 1, 1, 1)

    def decode(self, latent: Tensor) -> Tensor:
        """Values may leave [-1, 1] and are clamped where they become pixels."""
        n, c = self.factor, self.chroma
        colours, cosines = self.colours.to(latent), self.cosines.to(latent)
        latent = latent * self.deviation.to(latent).view(-1, 1, 1, 1)
        batch, _, frames, rows, columns = latent.shape
        blocks = latent.new_zeros(batch, 3, n, n, frames, rows, columns)
        blocks[:, 0] = latent[:, : n * n].unflatten(1, (n, n))
        blocks[:, 1:, :c, :c] = latent[:, n * n :].unflatten(1, (2, c, c))
        blocks = torch.einsum("uy,bkuvfrc,vx->bkfrycx", cosines, blocks, cosines)
        blocks = torch.einsum("kd,bkfrycx->bdfrycx", colours, blocks)
        return blocks.flatten(-2).flatten(-3, -2)
