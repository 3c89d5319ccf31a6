"""Bytes on a device: what takes them, and formulas for weights and working sets. GB is 10^9 bytes.

    L tokens, D width, f ffn_dim, b bytes of a number (bf16 2, fp32 4)

Where a number comes from (`Part.source`):

    counted       from shapes, as the modules have them (tests/cost)
    fake tensors  the most that is alive at once when the real modules run on tensors without data. Not measured on a
                  GPU: kernels' workspaces and the allocator's losses come on top, as `MARGIN` and `CONTEXT`.
    assumed       neither.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pw.cost import counts
from pw.cost.counts import Codec, Direction, Flops, Injector
from pw.nn import options

Precision = Literal["bf16", "fp32"]
Source = Literal["counted", "fake tensors", "assumed"]

BYTES: dict[Precision, int] = {"bf16": 2, "fp32": 4}
MARGIN = 0.06  # of a peak: what the caching allocator loses to fragments. Assumed.
CONTEXT = 1 << 30  # bytes: CUDA context and libraries' workspaces. Assumed.

# Working set of Wan2.2's VAE in bytes per px in bf16, for several frames and for one: it convolves four frames at a
# time, so more frames take no more. Fake tensors: 39.8 and 88.9 GB decoding at 2K and 4K, 31.7 GB encoding at 4K.
VAE_DECODE_BYTES = (10_796, 2_900)
VAE_ENCODE_BYTES = (3_850, 970)


@dataclass(frozen=True)
class Part:
    """One item of a peak: its bytes on the device, and where the number comes from."""

    name: str
    bytes: float
    source: Source


@dataclass(frozen=True)
class Moment:
    """What is on the device at once: in a phase of generation, or at a moment of a training update.

    flops        of the phase, for one video; 0 for a moment of training
    evaluations  of the network, each branch of guidance counted
    devices      that share the phase's flops; less than their number where the work cannot be divided evenly
    """

    name: str
    parts: tuple[Part, ...]
    flops: Flops = field(default_factory=Flops)
    evaluations: int = 0
    devices: float = 1

    @property
    def bytes(self) -> float:
        """The peak, without the allocator's losses."""
        return sum(part.bytes for part in self.parts)

    @property
    def needs(self) -> float:
        """Bytes of device memory that it takes: the peak, the allocator's losses and the CUDA context."""
        return self.bytes * (1 + MARGIN) + CONTEXT

    def fits(self, memory: float) -> bool:
        return self.needs <= memory


def weight_bytes(backbone: options.Wan, injector: Injector, precision: Precision) -> float:
    """Bytes of the weights for inference; time embedding, norms, stride embedding and gate stay fp32."""
    kept = counts.kept_parameters(backbone) + counts.stride_embedding_parameters(backbone)
    if isinstance(injector, options.Injector):
        kept += counts.gate_parameters(injector, backbone)
    return BYTES[precision] * (counts.parameters(backbone, injector) - kept) + 4 * kept


def inference_bytes(backbone: options.Wan, tokens: int, precision: Precision) -> float:
    """Peak working set of an evaluation without gradients, with one timestep per clip.

        L (max(b (4 D + 2 f), b 4 D + 14.2 D) + 8 head_dim)

    Reached in the FFN or, where that is narrow, in the fp32 rotary embedding, with its two fp32 tables. Fake tensors:
    9.26 and 20.67 GB at 2K and 4K in bf16, as the formula. Error: 0.5 % for an FFN of f = 4.67 D, 1 % for 1 to 2 D.
    """
    b, d = BYTES[precision], backbone.width
    ffn = b * (4 * d + 2 * backbone.ffn_dim)
    rotary = (4 * b + 14.2) * d
    return tokens * (max(ffn, rotary) + 8 * backbone.attention_head_dim)


def injector_bytes(
    injector: Injector, backbone: options.Wan, tokens: int, precision: Precision, context: int = 1
) -> float:
    """What the injector adds to an evaluation without gradients: L D b (1 + (1 + blocks) / context).

    The refined anchor, which it keeps; what is added to each block's input; and their sum. Exactly that of fake
    tensors. With `context` devices that share the tokens, each holds the whole refined anchor.
    """
    if not isinstance(injector, options.Injector):
        return 0
    return tokens * backbone.width * BYTES[precision] * (1 + (1 + len(injector.blocks)) / context)


def unshared_bytes(backbone: options.Wan, tokens: int, precision: Precision, context: int) -> float:
    """The tokens before the first block, L D b, which each device that shares tokens holds whole; 0 without sharing,
    where they are in the working set."""
    return tokens * backbone.width * BYTES[precision] if context > 1 else 0


def saved_block_bytes(backbone: options.Wan, tokens: int, precision: Precision, trainable: str) -> float:
    """What one block saves for its backward when it is not checkpointed.

    L (b (10 D + 2 f) + 48 D), or L (b (7 D + f) + 36 D) when its weights are frozen: b-sized inputs of the linear
    layers and attention, fp32 inputs of the norms and modulations. Fake tensors; error below 0.5 %.
    """
    b, d, f = BYTES[precision], backbone.width, backbone.ffn_dim
    if trainable == "adapters":
        return tokens * (b * (7 * d + f) + 36 * d)
    return tokens * (b * (10 * d + 2 * f) + 48 * d)


def block_backward_bytes(backbone: options.Wan, tokens: int, precision: Precision, trainable: str) -> float:
    """Peak working set of recomputing one block and its backward.

        all        L max(b (7 D + 2 f) + 68.5 D, saved + b f)
        adapters   L max(b (4 D + f) + 58.4 D, saved + 2 b f)

    Fake tensors: 50.6 L D b in bf16 at f = 4.67 D, as the formula. Error: 0.6 %, and 2.5 % for adapters.
    """
    b, d, f = BYTES[precision], backbone.width, backbone.ffn_dim
    saved = saved_block_bytes(backbone, tokens, precision, trainable)
    if trainable == "adapters":
        return max(tokens * (b * (4 * d + f) + 58.4 * d), saved + tokens * 2 * b * f)
    return max(tokens * (b * (7 * d + 2 * f) + 68.5 * d), saved + tokens * b * f)


def injector_saved_bytes(
    injector: Injector, backbone: options.Wan, tokens: int, precision: Precision, context: int = 1
) -> float:
    """What the injector saves for its backward: L (4 (3 d' + 3 D) + 2.5 b D per block / context), with fp32 norms.

    Fake tensors; error below L D b, 1 % of a training's activations. An upper bound where `context` devices share the
    tokens: not all of it is alive in a block's backward (at 4K on 8 devices fake tensors have 18.0 GB, the sum 23.8).
    """
    if not isinstance(injector, options.Injector):
        return 0
    d, hidden = backbone.width, injector.hidden_channels(backbone)
    return tokens * (4 * (3 * hidden + 3 * d) + 2.5 * BYTES[precision] * d * len(injector.blocks) / context)


def codec_bytes(codec: Codec, frames: int, height: int, width: int, direction: Direction) -> tuple[Part, ...]:
    """Weights, the working set of a tile, and pixels. `SpaceToDepth` only rearranges: pixels twice."""
    if isinstance(codec, options.SpaceToDepth):
        return (Part("pixels", 2 * 12 * frames * height * width, "counted"),)
    b = BYTES[codec.precision]
    tiles = codec.tiles(height, width)
    rows, columns = (codec.factor * max(span.stop - span.start for span in spans) for spans in tiles)
    several, single = VAE_DECODE_BYTES if direction == "decode" else VAE_ENCODE_BYTES
    per_pixel = (single if frames == 1 else several) * b / 2
    pixels = 2 * 3 * b * rows * columns  # a tile, as it is and as patches
    if direction == "encode":
        pixels += 12 * height * width  # the clip in fp32
    elif max(map(len, tiles)) > 1:
        pixels += 2 * 12 * rows * width + 12 * rows * columns  # two bands of tiles being blended and a tile, fp32
    return (
        Part("weights", b * (counts.VAE_ENCODER_PARAMETERS + counts.VAE_DECODER_PARAMETERS), "counted"),
        Part("working set", rows * columns * per_pixel, "fake tensors"),
        Part("pixels", frames * pixels, "counted"),
    )
