"""DOVER's two networks, with the official names, shapes and dtypes of all 381 tensors (56.22 M parameters).

    technical  Swin-T over 3D windows of (8, 7, 7) tokens, with FAST-VQA's gated relative position biases
    aesthetic  ConvNeXt-T, inflated: in each stage the blocks' kernels have 1, 3, 1, 1, 3, 1, ... frames

Each has a head of its own that scores every position; the branch's output is their mean, without a sigmoid.

Sources: Wu et al., "Exploring Video Quality Assessment on User Generated Contents from Aesthetic and Technical
Perspectives", ICCV 2023; Wu et al., FAST-VQA, ECCV 2022 (the gate); Liu et al., Video Swin Transformer, CVPR 2022; Liu
et al., "A ConvNet for the 2020s", CVPR 2022. Facts from VQAssessment/DOVER at f1ddc96; no code of theirs is here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW = (8, 7, 7)
FRAGMENTS = 7
# Attention bias between tokens that are neighbours only after the cyclic shift; upstream's value, not -inf.
SHIFT_BIAS = -100.0
# The number of biases computed at once (16 MiB); all windows of the first stage would need 59 million.
BIASES = 1 << 22

Sides = tuple[int, ...]


def to_windows(x: Tensor, window: Sides) -> Tensor:
    """`[B, D, H, W, C]` -> `[B * windows, tokens, C]`; each side a multiple of the window's."""
    b, sides, c = x.shape[0], x.shape[1:4], x.shape[4]
    (d, i), (h, j), (w, k) = ((side // step, step) for side, step in zip(sides, window, strict=True))
    return x.reshape(b, d, i, h, j, w, k, c).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, i * j * k, c)


def from_windows(windows: Tensor, window: Sides, sides: Sides) -> Tensor:
    """The inverse of `to_windows`; sides: (D, H, W)."""
    d, h, w = (side // step for side, step in zip(sides, window, strict=True))
    x = windows.reshape(-1, d, h, w, *window, windows.shape[-1])
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, *sides, windows.shape[-1])


def fragment_distance(sides: Sides, window: Sides, shift: Sides) -> Tensor:
    """Distance of two tokens of a window in fragments, height plus width: int8 `[windows, tokens, tokens]`.

    A frame always has 7x7 fragments, whatever the number of tokens.
    """
    rows, columns = ((torch.arange(side) * FRAGMENTS // side).to(torch.int8) for side in sides[1:])
    cells = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).expand(1, *sides, 2)
    rows, columns = to_windows(_shift(cells, shift), window).unbind(-1)
    return (rows[:, :, None] - rows[:, None]).abs() + (columns[:, :, None] - columns[:, None]).abs()


def shift_mask(sides: Sides, window: Sides, shift: Sides) -> Tensor:
    """Whether two tokens share a window only because of the cyclic shift: bool `[windows, tokens, tokens]`."""
    ends = [torch.arange(side) >= side - step for side, step in zip(sides, shift, strict=True)]
    depth, height, width = torch.meshgrid(*ends, indexing="ij")
    part = to_windows((4 * depth + 2 * height + width)[None, ..., None], window)[..., 0]
    return part[:, :, None] != part[:, None]


def relative_position_index(window: Sides) -> Tensor:
    """Row of the bias table for two tokens of a window, int64 `[tokens, tokens]`."""
    tokens = torch.stack(torch.meshgrid(*map(torch.arange, window), indexing="ij"), -1).reshape(-1, 3)
    offset = tokens[:, None] - tokens[None] + torch.tensor(window) - 1
    _, height, width = (2 * side - 1 for side in window)
    return (offset * torch.tensor([height * width, width, 1])).sum(-1)


@dataclass(frozen=True)
class Windows:
    """How a block splits `[B, D, H, W, C]` into windows; mask: of `shift_mask`, None without a shift."""

    sides: Sides
    window: Sides
    shift: Sides
    distance: Tensor
    mask: Tensor | None

    @classmethod
    def of_input(cls, x: Tensor, shifted: bool) -> Windows:
        """The windows for a stage's input x; a side that one window covers is not shifted."""
        sides = tuple(x.shape[1:4])
        window = tuple(min(pair) for pair in zip(sides, WINDOW, strict=True))
        shift = tuple(step // 2 * (shifted and step < side) for side, step in zip(sides, window, strict=True))
        mask = shift_mask(sides, window, shift).to(x.device) if any(shift) else None
        return cls(sides, window, shift, fragment_distance(sides, window, shift).to(x.device), mask)

    def split(self, x: Tensor) -> Tensor:
        """`[B, D, H, W, C]` -> `[B * windows, tokens, C]`."""
        return to_windows(_shift(x, self.shift), self.window)

    def join(self, windows: Tensor) -> Tensor:
        return from_windows(windows, self.window, self.sides).roll(self.shift, (1, 2, 3))


def _shift(x: Tensor, shift: Sides) -> Tensor:
    return x.roll([-step for step in shift], (1, 2, 3))


class WindowAttention(nn.Module):
    """Attention within windows, with one table of position biases, or with two tables and a gate.

    The gate g is the tokens' distance in fragments: bias = (1 - g) * fragment + g * relative. It extrapolates above
    g = 1, as in the released code.
    """

    def __init__(self, width: int, heads: int, gated: bool) -> None:
        super().__init__()
        rows = math.prod(2 * side - 1 for side in WINDOW)
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))
        if gated:
            self.fragment_position_bias_table = nn.Parameter(torch.zeros(rows, heads))
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", relative_position_index(WINDOW))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def bias(self, distance: Tensor) -> Tensor:
        """distance: int8 `[windows, tokens, tokens]` -> `[windows or 1, heads, tokens, tokens]`."""
        return _biases(*self._tables(distance.shape[-1]), distance)

    def _tables(self, tokens: int) -> tuple[Tensor, Tensor | None]:
        """Bias within a fragment, and its increase per fragment of distance; `[heads, tokens, tokens]`."""
        index = self.relative_position_index[:tokens, :tokens]  # fewer frames: the first tokens are the first frames
        relative = self.relative_position_bias_table[index].permute(2, 0, 1)
        if not hasattr(self, "fragment_position_bias_table"):
            return relative, None
        fragment = self.fragment_position_bias_table[index].permute(2, 0, 1)
        return fragment, relative - fragment

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """x: `[B * windows, tokens, C]`."""
        count, tokens = windows.distance.shape[:2]
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unflatten(0, (-1, count))
        tables, parts = self._tables(tokens), []
        step = max(1, BIASES // (self.heads * tokens**2))
        for i in range(0, count, step):
            bias = _biases(*tables, windows.distance[i : i + step])
            if windows.mask is not None:
                bias = bias + SHIFT_BIAS * windows.mask[i : i + step, None]
            parts.append(self._attend(qkv[:, i : i + step], bias))
        return self.proj(torch.cat(parts, 1).flatten(0, 1))

    def _attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """`[B, windows, tokens, 3, heads, channels]` -> `[B, windows, tokens, C]`."""
        windows = qkv.shape[1]
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3)
        bias = bias.expand(windows, -1, -1, -1).flatten(0, 1)[None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return y.unflatten(1, (windows, self.heads)).transpose(2, 3).flatten(3)


def _biases(base: Tensor, slope: Tensor | None, distance: Tensor) -> Tensor:
    return base[None] if slope is None else torch.addcmul(base, distance[:, None].to(base), slope)


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Attention within windows and an MLP, both residual with pre-normalisation."""

    def __init__(self, width: int, heads: int, gated: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, gated)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """x: `[B, D, H, W, C]`."""
        x = x + windows.join(self.attn(windows.split(self.norm1(x)), windows))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """`[B, D, H, W, C]` -> `[B, D, H/2, W/2, 2C]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate 2x2 neighbours column by column, as in Swin."""
        quads = [x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(quads, -1)))


class SwinStage(nn.Module):
    """Blocks of one resolution, every second one with shifted windows; all stages but the last then merge patches."""

    def __init__(self, width: int, depth: int, heads: int, gated: bool, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(width, heads, gated) for _ in range(depth))
        self.downsample = None if last else PatchMerging(width)

    def forward(self, x: Tensor) -> Tensor:
        """x: `[B, D, H, W, C]`."""
        windows = Windows.of_input(x, shifted=False), Windows.of_input(x, shifted=True)
        for number, block in enumerate(self.blocks):
            x = block(x, windows[number % 2])
        return x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """`[B, 3, F, H, W]` -> tokens of 2x4x4 px, `[B, F/2, H/4, W/4, C]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, width, (2, 4, 4), (2, 4, 4))
        self.norm = nn.LayerNorm(width)

    def forward(self, video: Tensor) -> Tensor:
        return self.norm(self.proj(video).movedim(1, -1))


class Swin3D(nn.Module):
    """The technical branch's trunk: `[B, 3, F, 224, 224]` -> `[B, 8 * width, F/2, 7, 7]`; F <= 16 or a multiple of 16.

    The last stage has one window per frame and therefore no gate.
    """

    def __init__(
        self, width: int = 96, depths: Sequence[int] = (2, 2, 6, 2), heads: Sequence[int] = (3, 6, 12, 24)
    ) -> None:
        super().__init__()
        last = len(depths) - 1
        self.patch_embed = PatchEmbed(width)
        self.layers = nn.ModuleList(
            SwinStage(width << i, depth, heads[i], gated=i < last, last=i == last) for i, depth in enumerate(depths)
        )
        self.norm = nn.LayerNorm(width << last)

    def forward(self, video: Tensor) -> Tensor:
        x = self.patch_embed(video)
        for stage in self.layers:
            x = stage(x)
        return self.norm(x).movedim(-1, 1)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of `[B, C, F, H, W]`."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution of `frames`x7x7, then an MLP per position, scaled and residual."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.dwconv = nn.Conv3d(width, width, (frames, 7, 7), padding=(frames // 2, 3, 3), groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: `[B, C, F, H, W]`."""
        y = self.norm(self.dwconv(x).movedim(1, -1))
        return x + (self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))).movedim(-1, 1)


class ConvNeXt3D(nn.Module):
    """The aesthetic branch's trunk: `[B, 3, F, H, W]` -> `[B, 8 * width, F/2, H/32, W/32]`."""

    def __init__(self, width: int = 96, depths: Sequence[int] = (3, 3, 9, 3)) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv3d(3, width, (2, 4, 4), (2, 4, 4)), ChannelNorm(width, eps=1e-6))
        halve = (
            nn.Sequential(
                ChannelNorm(width << i, eps=1e-6), nn.Conv3d(width << i, width << i + 1, (1, 2, 2), (1, 2, 2))
            )
            for i in range(len(depths) - 1)
        )
        self.downsample_layers = nn.ModuleList([stem, *halve])
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(width << i, 3 if j % 3 == 1 else 1) for j in range(depth)))
            for i, depth in enumerate(depths)
        )
        self.norm = nn.LayerNorm(width << len(depths) - 1, eps=1e-6)

    def forward(self, video: Tensor) -> Tensor:
        x = video
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Head(nn.Module):
    """A score for every position: `[B, C, ...]` -> `[B, 1, ...]`, without upstream's dropout."""

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        self.fc_hid = nn.Conv3d(width, hidden, 1)
        self.fc_last = nn.Conv3d(hidden, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_last(F.gelu(self.fc_hid(x)))


class Dover(nn.Module):
    """Both branches, on videos from `dover.normalise`. The defaults are the released model; tests use smaller ones."""

    def __init__(self, width: int = 96, heads: Sequence[int] = (3, 6, 12, 24)) -> None:
        super().__init__()
        self.technical_backbone = Swin3D(width, heads=heads)
        self.aesthetic_backbone = ConvNeXt3D(width)
        self.technical_head = Head(8 * width)
        self.aesthetic_head = Head(8 * width)

    def technical(self, video: Tensor) -> Tensor:
        """Score of each clip of fragments `[B, 3, F, 224, 224]` -> `[B]`."""
        return self.technical_head(self.technical_backbone(video)).flatten(1).mean(1)

    def aesthetic(self, video: Tensor) -> Tensor:
        """Score of each clip of whole, resized frames `[B, 3, F, 224, 224]` -> `[B]`."""
        return self.aesthetic_head(self.aesthetic_backbone(video)).flatten(1).mean(1)


def load(path: Path) -> Dover:
    """Load `DOVER.pth` into the network: on the CPU, in eval mode, without gradients.

    Raises: ValueError if the file is not a state dict (plain, or under "state_dict"), or if names, shapes or dtypes of
    its tensors differ from DOVER's; the message lists them.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # random bytes make the unpickler raise almost anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a checkpoint that can be read: {reason}") from error
    if isinstance(state, dict) and "state_dict" in state:
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f'{path}: holds no state dict, neither plain nor under "state_dict"')
    network = Dover()
    problems = _differences(network.state_dict(), state)
    if problems:
        raise ValueError(f"{path}: not the weights of DOVER: {'; '.join(problems)}")
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def _differences(expected: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    """The differences in words, with at most 8 names of each kind."""
    kinds = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "another shape": [
            f"{key} {list(state[key].shape)} instead of {list(value.shape)}"
            for key, value in expected.items()
            if key in state and state[key].shape != value.shape
        ],
        "another dtype": [
            f"{key} {state[key].dtype} instead of {value.dtype}"
            for key, value in expected.items()
            if key in state and state[key].dtype != value.dtype
        ],
    }
    return [
        f"{len(names)} {kind}: {', '.join(map(str, names[:8]))}{', ...' if len(names) > 8 else ''}"
        for kind, names in kinds.items()
        if names
    ]
