"""Options of the network: plain data, checked without importing torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pw.io.arguments import Range

Size = Annotated[int, Range(1, 65_536)]
FLEX_BLOCK = 128  # tokens; on a GPU blocks of sparse attention are multiples of it


@dataclass(frozen=True)
class Wan:
    """Arguments of diffusers' `WanTransformer3DModel` that differ between sizes; the others are Wan2.2-TI2V-5B's.

    patch_size  (frames, rows, columns) of latent per token
    """

    patch_size: tuple[Size, Size, Size]
    num_attention_heads: Annotated[int, Range(1, 1024)]
    attention_head_dim: Annotated[int, Range(1, 1024)]
    in_channels: Size
    ffn_dim: Annotated[int, Range(1, 1_000_000)]
    num_layers: Annotated[int, Range(1, 1024)]
    text_dim: Size
    text_tokens: Size
    freq_dim: Size
    rope_max_seq_len: Size

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if min(value if name == "patch_size" else (value,)) < 1:
                raise ValueError(f"backbone.{name}={value}: needs at least 1")
        if self.attention_head_dim % 2:
            raise ValueError(f"backbone.attention_head_dim={self.attention_head_dim}: expected an even number")

    def check(self, config: Mapping[str, Any], path: object) -> None:
        """Raises ValueError if a transformer's config.json (diffusers) in the folder `path` has other sizes."""
        for name, value in vars(self).items():
            actual = config.get(name, value)
            if (tuple(actual) if name == "patch_size" else actual) != value:
                raise ValueError(f"backbone.{name}={value}: the transformer in {path} has {actual}")

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True)
class Injector:
    """How the anchor enters the network  (sec. 3.3).

    gate    `scalar`: one gain per sample, 1 + tanh(MLP(SinEmb(T) + SinEmb(D)))  (Eq. 1)
            `channelwise`: a gain per channel from two MLPs (the authors' code)
            `fixed`: gain 1 (Table 4, "alpha = 0")
    blocks  transformer blocks whose input it is added to (the authors: 1)
    hidden  channels between the two convolutions, as a share of the width
    groups  of the GroupNorm between them
    """

    gate: Literal["scalar", "channelwise", "fixed"]
    blocks: tuple[int, ...]
    hidden: float
    groups: int

    def __post_init__(self) -> None:
        if not self.blocks or len(set(self.blocks)) != len(self.blocks):
            raise ValueError(f"injector.blocks={list(self.blocks)}: distinct block indices, e.g. [1]")
        if not 0 < self.hidden <= 4:
            raise ValueError(f"injector.hidden={self.hidden}: a share of the width, e.g. 0.25")
        if self.groups < 1:
            raise ValueError(f"injector.groups={self.groups}: needs at least 1")

    def check(self, backbone: Wan) -> None:
        """Raises ValueError when a block does not exist or the groups do not divide the hidden channels."""
        if max(self.blocks) >= backbone.num_layers or min(self.blocks) < 0:
            raise ValueError(
                f"injector.blocks={list(self.blocks)}: the backbone has blocks 0 to {backbone.num_layers - 1}"
            )
        channels = self.hidden_channels(backbone)
        if not channels:
            raise ValueError(
                f"injector.hidden={self.hidden}: leaves no channel of the width {backbone.width}, e.g. 0.25"
            )
        if channels % self.groups:
            raise ValueError(f"injector.groups={self.groups}: does not divide the {channels} hidden channels")

    def hidden_channels(self, backbone: Wan) -> int:
        return int(self.hidden * backbone.width)


@dataclass(frozen=True)
class Add:
    """The resized anchor is added to the noisy latent, without new weights  ("w/o AGI")."""

    def check(self, backbone: Wan) -> None:
        """Fits every backbone."""


@dataclass(frozen=True)
class Window:
    """Sparse self-attention: a query sees the keys of all frames within a window of its frame.

    window  (rows, columns) of tokens around the query; at a border the window is shifted, not cut
    tile    (frames, rows, columns) of tokens that a block of the kernel has; it changes no result
    """

    window: tuple[Size, Size]
    tile: tuple[Size, Size, Size]

    def check(self, grid: tuple[int, int, int]) -> None:
        """grid: (frames, rows, columns) of tokens of a clip. Raises ValueError for a window that is larger, or all."""
        if self.window[0] > grid[1] or self.window[1] > grid[2] or self.window == grid[1:]:
            raise ValueError(
                f"attention.window={list(self.window)}: a frame has {grid[1]} x {grid[2]} tokens; set a smaller part "
                f"of attention.window=[{grid[1]},{grid[2]}], or attention=dense"
            )

    def within(self, grid: tuple[int, int, int]) -> Window:
        """The window in a clip of `grid` tokens, which may be smaller than it (`sampling.sizes`)."""
        return replace(self, window=(min(self.window[0], grid[1]), min(self.window[1], grid[2])))


@dataclass(frozen=True)
class TopBlocks:
    """Sparse self-attention: the queries of a block of tokens see their own and the key blocks that fit them best.

    The fit is that of mean query and mean key: chosen for each clip, step, layer and head.

    density  share of the key blocks that are seen, rounded up to whole blocks
    tile     (frames, rows, columns) of tokens that make a block
    """

    density: Annotated[float, Range(0.001, 1)]
    tile: tuple[Size, Size, Size]
    by_anchor: ClassVar[bool] = False

    def check(self, grid: tuple[int, int, int]) -> None:
        """grid: (frames, rows, columns) of tokens of a clip. Raises ValueError for a tile that holds all of it."""
        if math.prod(self.tile) >= math.prod(grid):
            raise ValueError(
                f"attention.tile={list(self.tile)}: one block would hold the {math.prod(grid)} tokens of a clip, which "
                "leaves nothing to choose; set a smaller tile, or attention=dense"
            )


@dataclass(frozen=True)
class AnchorBlocks(TopBlocks):
    """As `TopBlocks`, but the fit is likeness in the anchor: chosen once per clip, for all steps, layers and heads."""

    by_anchor: ClassVar[bool] = True


Attention = Window | TopBlocks  # None: dense


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters of the transformer: W x becomes W x + alpha / rank B A x, with A [rank, in] and B [out, rank].

    targets  linear layers of every block, with diffusers' names; those of an attention are of both attentions
    dropout  share of x that the adapters do not see in training
    """

    rank: Annotated[int, Range(1, 4096)]
    alpha: Annotated[float, Range(0.001, 65_536)]
    targets: tuple[str, ...]
    dropout: Annotated[float, Range(0, 0.9)]
    TARGETS: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")

    def __post_init__(self) -> None:
        if not self.targets or len({*self.targets} & {*self.TARGETS}) != len(self.targets):
            raise ValueError(
                f"train.lora.targets={list(self.targets)}: expected some of {', '.join(self.TARGETS)}, each once"
            )

    def check(self, backbone: Wan) -> None:
        """Raises ValueError for a rank that is no lower than that of the layers."""
        if self.rank >= (full := min(backbone.width, backbone.ffn_dim)):
            raise ValueError(f"train.lora.rank={self.rank}: the layers have rank {full}; set a lower one")

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class SpaceToDepth:
    """A lossless codec: each `factor` x `factor` square of pixels becomes 3 factor^2 channels."""

    factor: int

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"codec.factor={self.factor}: needs at least 1")

    @property
    def channels(self) -> int:
        return 3 * self.factor**2

    def latent_frames(self, frames: int) -> int:
        return frames


@dataclass(frozen=True)
class LappedCosine:
    """A lapped cosine transform: a block of `factor` x `factor` px is a position of factor^2 + 2 chroma^2 channels.

    chroma        coefficients of each chroma that are kept along each axis; half of `factor` is video's 4:2:0
    luma_scale    deviation of the mean of a block of luma, in units of [-1, 1] times `factor`
    chroma_scale  that of each of the two chroma
    falloff       the deviation of a coefficient falls as (1 + its frequency)^-falloff, as spectra of pictures do
    """

    factor: Literal[2, 4, 8, 16]
    chroma: Annotated[int, Range(1, 16)]
    luma_scale: Annotated[float, Range(1e-6, 1e6)]
    chroma_scale: tuple[Annotated[float, Range(1e-6, 1e6)], Annotated[float, Range(1e-6, 1e6)]]
    falloff: Annotated[float, Range(0, 8)]

    def __post_init__(self) -> None:
        if self.chroma > self.factor:
            raise ValueError(f"codec.chroma={self.chroma}: a block of codec.factor={self.factor} has no more than that")

    @property
    def channels(self) -> int:
        return self.factor**2 + 2 * self.chroma**2

    def latent_frames(self, frames: int) -> int:
        return frames

    def coefficients(self) -> list[tuple[int, int, int]]:
        """(colour, vertical frequency, horizontal frequency) of each channel; frequencies in half periods a block."""
        sides = (self.factor, self.chroma, self.chroma)
        return [(colour, u, v) for colour, side in enumerate(sides) for u in range(side) for v in range(side)]

    def deviation(self, colour: int, u: int, v: int) -> float:
        """The expected standard deviation of a coefficient, by which its channel is divided."""
        return (self.luma_scale, *self.chroma_scale)[colour] * (1 + math.hypot(u, v)) ** -self.falloff


def spans(length: int, tile: int, overlap: int) -> list[slice]:
    """Evenly spread spans that cover `length`: as few as `tile` allows, as short as that number allows.

    Neighbours overlap by at least `overlap`, at most half of `tile`; tile=0 is one span.
    """
    if not tile or length <= tile:
        return [slice(0, length)]
    count = math.ceil((length - overlap) / (tile - overlap))
    size = math.ceil((length + (count - 1) * overlap) / count)
    starts = [index * (length - size) // (count - 1) for index in range(count)]
    return [slice(start, start + size) for start in starts]


STANDARD_TILE = 768  # px; of encoding, and of `tile=auto` where no GPU's memory decides
INDEXABLE = 2**31  # elements of a tensor; kernels count them in 32 bits


@dataclass(frozen=True)
class WanVAE:
    """Wan2.2's VAE: `factor` x `factor` px and `frames_factor` frames a latent position, after the first frame.

    precision     of its weights; fp32 is the reference, bf16 halves memory and time
    tile          longest side of a tile, px; 0 for one piece; `auto`: 768, but `pw generate` decodes on a GPU in tiles
                  as large as its memory allows (D115)
    overlap       px by which neighbouring tiles overlap, blended by a cosine
    decoder       `vae`, its own; `tiny`: a small network of `pw.nn.tiny_decoder` in `decoder_file`, a .safetensors
    """

    factor: int
    frames_factor: int
    channels: int
    precision: Literal["fp32", "bf16"]
    tile: int | Literal["auto"]
    overlap: int
    decoder: Literal["vae", "tiny"] = "vae"
    decoder_file: str | None = None

    def __post_init__(self) -> None:
        for name in ("factor", "frames_factor", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"codec.{name}={getattr(self, name)}: needs at least 1")
        for name, value in (("tile", self.side), ("overlap", self.overlap)):
            if value < 0 or value % self.factor:
                raise ValueError(f"codec.{name}={value}: a multiple of codec.factor={self.factor}, or 0")
        if self.side and self.overlap > self.side // 2:
            raise ValueError(f"codec.overlap={self.overlap}: at most half of codec.tile={self.side}")
        self._check_decoder()

    def _check_decoder(self) -> None:
        if self.decoder == "vae" and self.decoder_file is not None:
            raise ValueError(f"codec.decoder_file={self.decoder_file}: is read by codec.decoder=tiny alone; set that")
        if self.decoder == "tiny" and self.decoder_file is None:
            raise ValueError("codec.decoder=tiny: set codec.decoder_file to its .safetensors, such as taew2_2's")
        if self.decoder == "tiny" and (self.factor, self.frames_factor) != (16, 4):
            raise ValueError(
                f"codec.decoder=tiny: makes 16 x 16 px and 4 frames a position, this VAE {self.factor} x {self.factor} "
                f"px and {self.frames_factor}; leave it at vae"
            )

    @property
    def side(self) -> int:
        """`tile` in px, 0 for one piece."""
        return STANDARD_TILE if self.tile == "auto" else self.tile

    @property
    def encoding(self) -> dict[str, Any]:
        """The options that encoding uses, with the number that `tile=auto` is there."""
        names = ("factor", "frames_factor", "channels", "precision", "overlap")
        return {"tile": self.side, **{name: getattr(self, name) for name in names}}

    def largest_tensor(self, frames: int, height: int, width: int) -> int:
        """Elements of the largest tensor of decoding a tile of a video (tests/cost has it from the modules).

        Wan's: 512 channels of 6 frames at half the size, padded by 1 px. `tiny`: 64 channels of 4 frames.
        """
        rows, columns = (max(s.stop - s.start for s in spans) * self.factor // 2 for spans in self.tiles(height, width))
        if self.decoder == "tiny":
            return 64 * 4 * rows * columns
        return 512 * (3 if frames == 1 else 6) * (rows + 2) * (columns + 2)

    def check_decode(self, frames: int, height: int, width: int) -> None:
        """Raises ValueError where decoding makes a tensor that kernels cannot index."""
        if (elements := self.largest_tensor(frames, height, width)) >= INDEXABLE:
            raise ValueError(
                f"codec.tile={self.tile}: decoding {height} x {width} px makes a tensor of {elements:.1e} numbers, "
                f"more than kernels can index ({INDEXABLE:.1e}); set codec.tile=auto, or {STANDARD_TILE}"
            )

    def tiles(self, height: int, width: int) -> tuple[list[slice], list[slice]]:
        """Spans of the latent's rows and columns."""
        f = self.factor
        rows, columns = (spans(size // f, self.side // f, self.overlap // f) for size in (height, width))
        return rows, columns

    def latent_frames(self, frames: int) -> int:
        """(frames - 1) / frames_factor + 1. Raises ValueError unless frames is frames_factor n + 1."""
        if (frames - 1) % self.frames_factor:
            lower = (frames - 1) // self.frames_factor * self.frames_factor + 1
            raise ValueError(
                f"scale.frames={frames}: the codec makes 1 + {self.frames_factor} n frames; "
                f"use {lower} or {lower + self.frames_factor}"
            )
        return (frames - 1) // self.frames_factor + 1


@dataclass(frozen=True)
class UMT5:
    """Prompts are encoded by Wan's text encoder, UMT5-XXL; its size is the backbone's text_tokens and text_dim.

    negative_prompt  of guidance; condition dropout in training uses the empty prompt
    """

    negative_prompt: str
