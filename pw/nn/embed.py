"""Sinusoidal embeddings of timestep and stride, and the stride embedding  (sec. 3.4)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

SINUSOID = 256  # channels of every sinusoidal embedding, as Wan's freq_dim


def is_lowered(device: torch.device) -> bool:
    """Whether autocast is on where the device computes; never on the meta device, which autocast does not know."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def unlowered(device: torch.device) -> AbstractContextManager[Any]:
    """Without autocast: a timestep's or stride's sinusoid has more digits than bf16."""
    return torch.autocast(device.type, enabled=False) if is_lowered(device) else nullcontext()


def sinusoid(position: Tensor) -> Tensor:
    """[B] -> [B, 256], float32, cosines first as Wan's."""
    return Timesteps(SINUSOID, flip_sin_to_cos=True, downscale_freq_shift=0)(position.float())


class StrideEmbedding(nn.Module):
    """SinEmb(stride) -> Linear -> SiLU -> Linear, added to the timestep embedding before its modulation projection.

    The last layer starts at zero: a fresh model is its base at every stride.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = TimestepEmbedding(SINUSOID, width)
        nn.init.zeros_(self.mlp.linear_2.weight)
        nn.init.zeros_(self.mlp.linear_2.bias)

    def forward(self, stride: Tensor) -> Tensor:
        """stride [B] in the schedule's coordinate -> [B, D]."""
        return self.mlp(sinusoid(stride).to(self.mlp.linear_1.weight.dtype))


def mlp_head(width: int, out: int, *, silent: bool) -> nn.Sequential:
    """Linear(256, D) -> SiLU -> Linear(D, out); a silent one starts at zero."""
    head = nn.Sequential(nn.Linear(SINUSOID, width), nn.SiLU(), nn.Linear(width, out))
    if silent:
        last = head[-1]
        assert isinstance(last, nn.Linear)
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    return head
