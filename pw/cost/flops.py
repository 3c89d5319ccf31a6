"""FLOPs, counted from shapes; a multiplication and an addition are two. Equal to torch's own counter (tests/cost).

L tokens, D width, f ffn_dim, S text tokens, N layers
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pw.cost.parameters import SINUSOID, UMT5_FFN, UMT5_LAYERS, UMT5_WIDTH, Codec, Injector
from pw.nn import options
from pw.run.build import Run

# Of Wan2.2's VAE: FLOPs per px of the first frame and of each further one, convolutions alone; channels of its one
# attention layer.
VAE_DECODE = (22.776466e6, 18.3941485e6, 1024)
VAE_ENCODE = (4.643752e6, 3.4907780e6, 640)


@dataclass(frozen=True)
class Flops:
    """FLOPs by kind. `linear` includes the cross-attention's projections of the text."""

    linear: float = 0.0
    self_attention: float = 0.0
    cross_attention: float = 0.0
    embeddings: float = 0.0
    injector: float = 0.0
    codec: float = 0.0
    text_encoder: float = 0.0

    @property
    def total(self) -> float:
        """Sum over all kinds."""
        return sum(vars(self).values())

    def __mul__(self, count: float) -> Flops:
        return Flops(**{name: value * count for name, value in vars(self).items()})

    def __add__(self, other: Flops) -> Flops:
        return Flops(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def forward_flops(
    backbone: options.Wan,
    tokens: int,
    text_tokens: int,
    injector: Injector = None,
) -> Flops:
    """FLOPs of one evaluation of the network on one clip, by kind.

        linear            2 L N (6 D^2 + 2 D f) + 4 S N D^2
        self-attention    4 L^2 D N
        cross-attention   4 L S D N

    plus patch and output projection, the embeddings of text, timestep and stride, and the injector (counted at every
    evaluation, although inference computes its refined anchor once).
    """
    length, text, d, n = tokens, text_tokens, backbone.width, backbone.num_layers
    patch = backbone.in_channels * math.prod(backbone.patch_size)
    embeddings = (
        4 * length * patch * d
        + 2 * text * (backbone.text_dim * d + d * d)
        + 2 * (backbone.freq_dim * d + d * d + 6 * d * d)
        + 2 * (SINUSOID * d + d * d)
    )
    return Flops(
        linear=2 * length * n * (6 * d * d + 2 * d * backbone.ffn_dim) + 4 * text * n * d * d,
        self_attention=4 * length**2 * d * n,
        cross_attention=4 * length * text * d * n,
        embeddings=embeddings,
        injector=injector_flops(injector, backbone, length),
    )


def injector_flops(injector: Injector, backbone: options.Wan, tokens: int) -> float:
    """FLOPs of the injector, 2 L (C d' + 27 d' D + D^2 per block) + gate, d' hidden channels; resizing is left out."""
    if not isinstance(injector, options.Injector):
        return 0
    d, hidden = backbone.width, injector.hidden_channels(backbone)
    gate = {"scalar": 2 * (SINUSOID * d + d), "channelwise": 4 * (SINUSOID * d + d * d), "fixed": 0}[injector.gate]
    return 2 * tokens * (backbone.in_channels * hidden + 27 * hidden * d + len(injector.blocks) * d * d) + gate


def text_flops(prompts: int, text_tokens: int) -> float:
    """FLOPs of UMT5-XXL on `prompts` prompts, each padded to `text_tokens`: linear layers and attention."""
    linear = 2 * text_tokens * UMT5_LAYERS * (4 * UMT5_WIDTH**2 + 3 * UMT5_WIDTH * UMT5_FFN)
    return prompts * (linear + UMT5_LAYERS * 4 * text_tokens**2 * UMT5_WIDTH)


def codec_flops(codec: Codec, frames: int, height: int, width: int, direction: Literal["encode", "decode"]) -> float:
    """FLOPs of encoding or decoding one clip, tile by tile; tiles overlap, so smaller tiles cost more.

    Convolutions cost the same per px for every frame but the first; attention costs 4 (h w)^2 channels a latent frame.
    In one piece, decoding takes 8.25 and 18.5 PFLOP at 2K and 4K, encoding 1.58 and 3.57. `SpaceToDepth` computes
    nothing.
    """
    if isinstance(codec, options.SpaceToDepth):
        return 0
    first, further, channels = VAE_DECODE if direction == "decode" else VAE_ENCODE
    tiles = codec.tiles(height, width)
    positions = [(row.stop - row.start) * (column.stop - column.start) for row in tiles[0] for column in tiles[1]]
    pixels = sum(positions) * codec.factor**2
    attention = 4 * sum(count**2 for count in positions) * channels * codec.latent_frames(frames)
    return pixels * (first + further * (frames - 1)) + attention


def evaluations(run: Run) -> int:
    """Evaluations of the network to generate one clip: one a step, and one more in a guided step."""
    steps, guidance = run.sampling.num_steps, run.guidance
    if guidance.scale == 1:
        return steps
    return steps + (steps if guidance.first_steps is None else min(steps, guidance.first_steps))


def operations(count: float) -> str:
    """FLOPs in three digits with P, T, G or M."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if count >= size:
            return f"{count / size:,.{max(0, 2 - int(math.log10(count / size)))}f} {unit}"
    return f"{count / 1e6:.3g} M"
