"""What is added to Wan's transformer: the stride embedding (sec. 3.4) and the anchor-guided injector (sec. 3.3)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from pw.nn import options

SINUSOID = 256  # channels of every sinusoidal embedding, as Wan's freq_dim


def autocast_is_on(device: torch.device) -> bool:
    """Whether autocast is on where the device computes; never on the meta device, which autocast does not know."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Turns autocast off: the sinusoid of a timestep or stride needs more digits than bf16 has."""
    return torch.autocast(device.type, enabled=False) if autocast_is_on(device) else nullcontext()


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


# ---- the injector


def resize_frames(latent: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of each frame, [B, C, F, h, w] -> [B, C, F, *size]."""
    if latent.shape[-2:] == size:
        return latent
    frames = latent.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, size=size, mode="bilinear", align_corners=False)
    return frames.unflatten(0, (len(latent), -1)).transpose(1, 2)


def mlp_head(width: int, out: int, *, zero_init: bool) -> nn.Sequential:
    """Linear(256, D) -> SiLU -> Linear(D, out); with `zero_init` the last layer, so the output, starts at zero."""
    head = nn.Sequential(nn.Linear(SINUSOID, width), nn.SiLU(), nn.Linear(width, out))
    if zero_init:
        last = head[-1]
        assert isinstance(last, nn.Linear)
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    return head


class ScalarGate(nn.Module):
    """alpha = tanh(MLP(SinEmb(T) + SinEmb(D))), one per sample, [B, 1]  (Eq. 1); starts at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = mlp_head(width, 1, zero_init=True)

    def forward(self, timestep: Tensor, stride: Tensor) -> Tensor:
        return torch.tanh(self.mlp(sinusoid(timestep) + sinusoid(stride)))


class ChannelGate(nn.Module):
    """alpha = tanh(MLP_T(SinEmb(T)) + MLP_D(SinEmb(D))), one per channel, [B, D] (the authors' code).

    The authors initialise only MLP_D to 0. Here both start at 0, so the injector of a start keeps its gain of 1 (D18).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_mlp = mlp_head(width, width, zero_init=True)
        self.stride_mlp = mlp_head(width, width, zero_init=True)

    def forward(self, timestep: Tensor, stride: Tensor) -> Tensor:
        return torch.tanh(self.timestep_mlp(sinusoid(timestep)) + self.stride_mlp(sinusoid(stride)))


class FixedGate(nn.Module):
    """alpha = 0: the gain is 1 at every step  (Table 4)."""

    def forward(self, timestep: Tensor, stride: Tensor) -> Tensor:
        return torch.zeros(len(timestep), 1, device=timestep.device)


class AnchorGuidedInjector(nn.Module):
    """z_out = z + (1 + alpha) z'_A  (Eq. 2), with z'_A the refined anchor.

    Refinement: bilinear to the token grid, 1x1x1 conv, GroupNorm, SiLU, 3x3x3 conv, SiLU, LayerNorm; then the gain and
    a Linear per injected block, which starts at zero, so a fresh injector adds nothing.
    """

    def __init__(self, choice: options.Injector, backbone: options.Wan) -> None:
        super().__init__()
        width, hidden = backbone.width, choice.hidden_channels(backbone)
        self.narrow = nn.Conv3d(backbone.in_channels, hidden, 1)
        self.norm = nn.GroupNorm(choice.groups, hidden)
        self.widen = nn.Conv3d(hidden, width, 3, padding=1)
        self.token_norm = nn.LayerNorm(width)
        self.gate: nn.Module
        match choice.gate:
            case "scalar":
                self.gate = ScalarGate(width)
            case "channelwise":
                self.gate = ChannelGate(width)
            case "fixed":
                self.gate = FixedGate()
        self.out = nn.ModuleDict({str(block): nn.Linear(width, width) for block in choice.blocks})
        self._cache: tuple[Tensor, tuple, Tensor] | None = None  # anchor, key, refined anchor
        for linear in self.out.values():
            assert isinstance(linear, nn.Linear)
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, anchor: Tensor, grid: tuple[int, int], timestep: Tensor, stride: Tensor, part: tuple[int, int] = (0, 1)
    ) -> dict[int, Tensor]:
        """anchor latent [B, C, F, h, w], token grid (rows, columns) -> {block: [B, L, D] to add to its input}.

        part  (index, number) of the equal parts of the L tokens to compute
        """
        index, parts = part
        z = self.refined_anchor(anchor, grid).chunk(parts, dim=1)[index]
        with without_autocast(z.device):
            gain = 1 + self.gate(timestep, stride)
        z = z * gain.to(z.dtype)[:, None]
        return {int(block): linear(z) for block, linear in self.out.items()}

    def refined_anchor(self, anchor: Tensor, grid: tuple[int, int]) -> Tensor:
        """z'_A before its gain, [B, L, D]. It does not depend on the step: without gradients it is cached for the next
        call with the same tensor `anchor`, until that tensor or a weight changes."""
        if torch.is_grad_enabled() or anchor.is_inference():
            self._cache = None
            return self._refine(anchor, grid)
        key = (grid, autocast_is_on(anchor.device), anchor._version)
        key += tuple(parameter._version for parameter in self.parameters())
        if self._cache is None or self._cache[0] is not anchor or self._cache[1] != key:
            self._cache = (anchor, key, self._refine(anchor, grid))
        return self._cache[2]

    def clear_cache(self) -> None:
        """Free the cached refined anchor, 1.5 GB at 4K."""
        self._cache = None

    def _refine(self, anchor: Tensor, grid: tuple[int, int]) -> Tensor:
        # on CPUs with AVX-512, oneDNN's bf16 gradient of a 3x3x3 weight is NaN now and then (torch 2.13)
        with torch.autocast("cpu", enabled=False):
            z = F.silu(self.norm(self.narrow(resize_frames(anchor, grid).to(self.narrow.weight.dtype))))
            z = F.silu(self.widen(z)).flatten(2).transpose(1, 2)
        return self.token_norm(z)
