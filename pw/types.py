"""The nouns every module shares, and the letters that name axes.

B batch, C channels, F frames, H W rows and columns (h w on the latent grid), L tokens, D width, M rows of a table.
A *video* is float [B, 3, F, H, W] in [-1, 1]; a *latent* is what the codec makes of it, [B, C, F, h, w].
`timestep` is noise-side up: N is pure noise, 0 is data; a `stride` is a whole shortcut step towards data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pw.io.lazy import Tensor


class Velocity(Protocol):
    """dx/dsigma of a state: what the network is to an objective or a solver, all else bound."""

    def __call__(self, state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
        """state [B, C, F, h, w], timestep [B] and stride [B] in the schedule's coordinate -> [B, C, F, h, w]."""
        ...


@dataclass(frozen=True)
class Steps:
    """A batch of shortcut steps timestep -> end, with the point where the two halves meet. All fields are [B].

    timestep, middle, end   positions in the schedule's coordinate, timestep > middle > end >= 0
    stride                  timestep - end before snapping, the network's input
    ground                  True where the halves are evaluated at stride 0, the flow-trained velocity
    """

    timestep: Tensor
    middle: Tensor
    end: Tensor
    stride: Tensor
    ground: Tensor

    def __len__(self) -> int:
        return len(self.timestep)


@dataclass(frozen=True)
class StepTable:
    """Every step a step sampler can draw, with its probability: fields are float64 [M] (`ground` bool [M]).

    `timestep` and `stride` are nominal, before snapping to the schedule's nodes. Probabilities sum to 1.
    """

    timestep: Tensor
    stride: Tensor
    ground: Tensor
    probability: Tensor

    def __len__(self) -> int:
        return len(self.timestep)
