"""The straight path between data and noise  (sec. 7.1)."""

from __future__ import annotations

from typing import Protocol

from pw.io.lazy import Tensor


class Velocity(Protocol):
    """dx/dsigma of a state: the network as objectives and solvers call it, with its condition bound."""

    def __call__(self, state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
        """state [B, C, F, h, w], timestep [B] and stride [B] in the schedule's coordinate -> [B, C, F, h, w]."""
        ...


def broadcast(per_sample: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, …], in `like`'s dtype and on its device: one factor for each sample of a batch."""
    return per_sample.to(like).view(-1, *[1] * (like.ndim - 1))


def state(data: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x = (1 - sigma) data + sigma noise  (Eq. 7.1); sigma is [B]."""
    s = broadcast(sigma, data)
    return (1 - s) * data + s * noise


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """dx/dsigma = noise - data  (Eq. 7.2, towards noise as Wan predicts it)."""
    return noise - data
