"""Video <-> coefficients of a lapped cosine transform, frame by frame: a linear codec without trained weights."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from pw.nn import options

# Rows: (R + G + B) / sqrt(3), the luma; (R - B) / sqrt(2) and (R - 2 G + B) / sqrt(6), the chroma. Orthonormal.
COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))


class LappedCosineCodec:
    """[B, 3, F, H, W] <-> [B, n^2 + 2 c^2, F, H/n, W/n], with n = `factor` and c = `chroma`.

    A latent position holds the coefficients of one block of n x n px of one frame: all of luma, and of each chroma the
    c x c of lowest frequency. Each is divided by its expected deviation (`options.LappedCosine`), since channels that
    differ less in variance are easier to learn, as those of Wan's VAE.
    """

    def __init__(self, choice: options.LappedCosine) -> None:
        self.factor, self.channels, self.chroma = choice.factor, choice.channels, choice.chroma
        colours = torch.tensor(COLOURS, dtype=torch.float64)
        self.colours = (colours / colours.norm(dim=1, keepdim=True)).float()
        self.deviation = torch.tensor([choice.deviation(*index) for index in choice.coefficients()])

    def encode(self, video: Tensor) -> Tensor:
        """Raises ValueError when H or W is not a multiple of the factor."""
        n, c = self.factor, self.chroma
        if video.shape[-2] % n or video.shape[-1] % n:
            raise ValueError(f"codec.factor={n} does not divide {video.shape[-2]} x {video.shape[-1]} pixels")
        down, across = (lapped_cosines(length, n).to(video) for length in video.shape[-2:])
        planes = torch.einsum("kc,bcfhw->bkfhw", self.colours.to(video), video)
        blocks = (down @ planes @ across.T).unflatten(-1, (-1, n)).unflatten(-3, (-1, n))
        blocks = blocks.permute(0, 1, 4, 6, 2, 3, 5)  # [B, colour, n, n, F, rows, columns]
        latent = torch.cat([blocks[:, 0].flatten(1, 2), blocks[:, 1:, :c, :c].flatten(1, 3)], dim=1)
        return latent / self.deviation.to(latent).view(-1, 1, 1, 1)

    def decode(self, latent: Tensor) -> Tensor:
        """Values may leave [-1, 1] and are clamped where they become pixels."""
        n, c = self.factor, self.chroma
        latent = latent * self.deviation.to(latent).view(-1, 1, 1, 1)
        blocks = latent.new_zeros(len(latent), 3, n, n, *latent.shape[2:])
        blocks[:, 0] = latent[:, : n * n].unflatten(1, (n, n))
        blocks[:, 1:, :c, :c] = latent[:, n * n :].unflatten(1, (2, c, c))
        planes = blocks.permute(0, 1, 4, 5, 2, 6, 3).flatten(-2).flatten(-3, -2)
        down, across = (lapped_cosines(length, n).to(latent) for length in planes.shape[-2:])
        return torch.einsum("kc,bkfhw->bcfhw", self.colours.to(latent), down.T @ planes @ across)


@cache
def lapped_cosines(length: int, n: int) -> Tensor:
    """The lapped orthogonal transform of a line in blocks of n px, [coefficient, px], both of `length`, orthonormal.

    A filter across each border of blocks, n px wide, comes before their DCT-II, so that an error of a coefficient fades
    into the neighbours and shows no border. With V = J C2^T C4 J (C2, C4: DCT-II and IV of n/2, J: reversal) it is
    Malvar's fast lapped transform of type II, as Tran, Liang and Tu (2003) write it. The outer borders have no filter.
    """
    half = n // 2
    identity = torch.eye(half, dtype=torch.float64)
    reversal = identity.flip(0)
    butterfly = torch.cat([torch.cat([identity, reversal], 1), torch.cat([reversal, -identity], 1)]) / math.sqrt(2)
    rotation = reversal @ _cosines(half, 0.0).T @ _cosines(half, 0.5) @ reversal
    border = butterfly @ torch.block_diag(identity, rotation) @ butterfly
    line = torch.eye(length, dtype=torch.float64)
    for at in range(n - half, length - n, n):
        line[at : at + n, at : at + n] = border
    return (torch.block_diag(*[_cosines(n, 0.0)] * (length // n)) @ line).float()


def _cosines(n: int, shift: float) -> Tensor:
    """DCT-II, or DCT-IV with a shift of 0.5, orthonormal: [frequency, px]."""
    at = torch.arange(n, dtype=torch.float64)
    cosines = torch.cos(math.pi / n * (at + 0.5) * (at[:, None] + shift))
    return cosines / cosines.norm(dim=1, keepdim=True)
