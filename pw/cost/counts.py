"""Sizes of latents, parameters, FLOPs and bytes, from shapes; tests/cost compares them with the real modules.

L tokens, D width, f ffn_dim, S text tokens, N layers, b bytes of a number (bf16 2, fp32 4). A multiplication and an
addition are two FLOPs. GB is 10^9 bytes.

The source of a number (`Part.source`):

    counted       from the shapes of the modules (tests/cost)
    fake tensors  peak memory when the real modules run on tensors without data. Not measured on a GPU: `MARGIN` and
                  `CONTEXT` add the kernels' workspaces and the allocator's losses.
    assumed       an estimate
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from pw.nn import options
from pw.run.build import Run

if TYPE_CHECKING:
    from pw.cost.rates import Rates

Injector = options.Injector | options.Add | None
Precision = Literal["bf16", "fp32"]
Source = Literal["counted", "fake tensors", "assumed"]

SINUSOID = 256  # channels of a sinusoidal embedding  (pw.nn.adapters)

# UMT5-XXL's encoder  (google/umt5-xxl, config.json)
UMT5_LAYERS, UMT5_WIDTH, UMT5_FFN, UMT5_HEADS = 24, 4096, 10240, 64
UMT5_BUCKETS, UMT5_VOCABULARY = 32, 256384

BYTES: dict[Precision, int] = {"bf16": 2, "fp32": 4}
MARGIN = 0.06  # share of a peak that fragmentation in the caching allocator adds. Assumed.
CONTEXT = 1 << 30  # bytes: CUDA context and libraries' workspaces. Assumed.


def tokens(latent: tuple[int, int, int, int], patch_size: tuple[int, int, int]) -> int:
    """L = F h w / patch volume."""
    return math.prod(length // patch for length, patch in zip(latent[1:], patch_size, strict=True))


def stage_name(run: Run) -> str:
    return "stage I" if run.stage == "anchor" else "stage II"


def stage_size(run: Run) -> tuple[int, int]:
    """(height, width) in px of the video of the run's stage."""
    return run.scale.anchor_size if run.stage == "anchor" else run.scale.size


def stage_latent(run: Run, size: float = 1.0) -> tuple[int, int, int, int]:
    """(C, F, h, w) of the latent that the run's stage generates: of the anchor, or of the clip, at a share of its full
    size."""
    return run.codec.channels, run.codec.latent_frames(run.scale.frames), *run.latent_size(size)


def stage_grid(run: Run, size: float = 1.0) -> tuple[int, int, int]:
    """(frames, rows, columns) of tokens of that latent."""
    latent = stage_latent(run, size)[1:]
    frames, rows, columns = (n // p for n, p in zip(latent, run.backbone.patch_size, strict=True))
    return frames, rows, columns


def stage_tokens(run: Run, size: float = 1.0) -> int:
    return math.prod(stage_grid(run, size))


def block_parameters(backbone: options.Wan) -> int:
    """Parameters of one transformer block: two attentions of 4 (D^2 + D) + 2 D, norm2, FFN, modulation table."""
    d, f = backbone.width, backbone.ffn_dim
    return 2 * (4 * (d * d + d) + 2 * d) + 2 * d + (2 * d * f + f + d) + 6 * d


def layer_parameters(backbone: options.Wan) -> int:
    """Parameters of the linear layers of one block, those that `trainer.storage=fp8` keeps in a byte each."""
    d, f = backbone.width, backbone.ffn_dim
    return 8 * (d * d + d) + (2 * d * f + f + d)


def transformer_parameters(backbone: options.Wan) -> int:
    """Parameters of the stock `WanTransformer3DModel`: 4,999,787,712 for Wan2.2-TI2V-5B."""
    d, patch = backbone.width, backbone.in_channels * math.prod(backbone.patch_size)
    embeddings = (
        (patch * d + d)
        + (backbone.freq_dim * d + d + d * d + d)  # time_embedder
        + (6 * d * d + 6 * d)  # time_proj
        + (backbone.text_dim * d + d + d * d + d)  # text_embedder
    )
    return embeddings + backbone.num_layers * block_parameters(backbone) + (d * patch + patch) + 2 * d


def fp32_parameters(backbone: options.Wan) -> int:
    """Parameters of the transformer that are fp32 in a bf16 model: time embedder, modulation tables, norm2."""
    d = backbone.width
    return (backbone.freq_dim * d + d + d * d + d) + backbone.num_layers * (6 * d + 2 * d) + 2 * d


def stride_embedding_parameters(backbone: options.Wan) -> int:
    """Parameters of the stride embedding: Linear(256, D), Linear(D, D)."""
    d = backbone.width
    return SINUSOID * d + d + d * d + d


def gate_parameters(injector: options.Injector, backbone: options.Wan) -> int:
    d = backbone.width
    counts = {"scalar": SINUSOID * d + d + d + 1, "channelwise": 2 * (SINUSOID * d + d + d * d + d), "fixed": 0}
    return counts[injector.gate]


def injector_parameters(injector: Injector, backbone: options.Wan) -> int:
    """Parameters of the injector: 1x1x1 and 3x3x3 convolution, their norms, the gate, a Linear(D, D) per block."""
    if not isinstance(injector, options.Injector):
        return 0
    d, hidden = backbone.width, injector.hidden_channels(backbone)
    refine = (backbone.in_channels * hidden + hidden) + 2 * hidden + (27 * hidden * d + d) + 2 * d
    return refine + gate_parameters(injector, backbone) + len(injector.blocks) * (d * d + d)


def parameters(backbone: options.Wan, injector: Injector) -> int:
    """Parameters of `pw.nn.backbone.Backbone`: transformer, stride embedding and injector."""
    stock, stride = transformer_parameters(backbone), stride_embedding_parameters(backbone)
    return stock + stride + injector_parameters(injector, backbone)


def text_encoder_parameters() -> int:
    """Parameters of UMT5-XXL's encoder: 5.68e9, a fifth of them in the token embedding."""
    attention = 4 * UMT5_WIDTH**2 + UMT5_HEADS * UMT5_BUCKETS  # each layer has its own position bias
    layer = attention + 3 * UMT5_WIDTH * UMT5_FFN + 2 * UMT5_WIDTH
    return UMT5_VOCABULARY * UMT5_WIDTH + UMT5_LAYERS * layer + UMT5_WIDTH


@dataclass(frozen=True)
class Flops:
    """FLOPs by kind. `linear` includes the cross-attention's projections of the text; `self_attention` is what a
    block-sparse kernel computes, `choice_of_blocks` the scores that choose its blocks."""

    linear: float = 0.0
    self_attention: float = 0.0
    cross_attention: float = 0.0
    embeddings: float = 0.0
    injector: float = 0.0
    choice_of_blocks: float = 0.0
    decode: float = 0.0
    encode: float = 0.0
    text_encoder: float = 0.0

    @property
    def total(self) -> float:
        return sum(vars(self).values())

    def __mul__(self, count: float) -> Flops:
        return Flops(**{name: value * count for name, value in vars(self).items()})

    def __add__(self, other: Flops) -> Flops:
        return Flops(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def has_timestep_per_token(run: Run) -> bool:
    """Whether in training each token has a timestep of its own: in stage I, where the first frame may be given."""
    return run.stage == "anchor" and run.train.image_share > 0


def forward_flops(
    backbone: options.Wan, tokens: int, text_tokens: int, injector: Injector = None, timesteps: int = 1
) -> Flops:
    """FLOPs of one evaluation of the network on one clip, by kind.

        linear            2 L N (6 D^2 + 2 D f) + 4 S N D^2
        self-attention    4 L^2 D N
        cross-attention   4 L S D N
        injector          2 L (C d' + 27 d' D + D^2 per block) + gate, d' hidden channels

    plus patch and output projection, and the embeddings of text, timestep and stride. There is one timestep, or one for
    each token; the stride then is embedded twice, as it is and as 0. The injector counts in every evaluation, although
    inference computes its refined anchor once; resizing is not counted.
    """
    length, text, d, n = tokens, text_tokens, backbone.width, backbone.num_layers
    patch = backbone.in_channels * math.prod(backbone.patch_size)
    embeddings = (
        4 * length * patch * d
        + 2 * text * (backbone.text_dim * d + d * d)
        + 2 * timesteps * (backbone.freq_dim * d + d * d + 6 * d * d)
        + 2 * (1 if timesteps == 1 else 2) * (SINUSOID * d + d * d)
    )
    extra = 0
    if isinstance(injector, options.Injector):
        hidden = injector.hidden_channels(backbone)
        gate = {"scalar": 2 * (SINUSOID * d + d), "channelwise": 4 * (SINUSOID * d + d * d), "fixed": 0}[injector.gate]
        extra = 2 * length * (backbone.in_channels * hidden + 27 * hidden * d + len(injector.blocks) * d * d) + gate
    return Flops(
        linear=2 * length * n * (6 * d * d + 2 * d * backbone.ffn_dim) + 4 * text * n * d * d,
        self_attention=4 * length**2 * d * n,
        cross_attention=4 * length * text * d * n,
        embeddings=embeddings,
        injector=extra,
    )


def stage_flops(run: Run, size: float = 1.0, *, timestep_per_token: bool = False) -> Flops:
    """FLOPs of one evaluation on one clip at a share of its full size, with its share of the self-attention.

    Choosing n blocks by their means costs 2 n^2 D N, by the anchor 2 n^2 C; the means themselves are not counted.
    """
    length = stage_tokens(run, size)
    timesteps = length if timestep_per_token else 1
    flops = forward_flops(run.backbone, length, run.backbone.text_tokens, run.injector, timesteps)
    if run.attention is None:
        return flops
    from pw.nn.token_blocks import block_count, density  # imports numpy

    grid, choice = stage_grid(run, size), 0
    if isinstance(run.attention, options.TopBlocks):
        width = run.backbone.in_channels if run.attention.by_anchor else run.backbone.width * run.backbone.num_layers
        choice = 2 * block_count(grid, run.attention.tile) ** 2 * width
    share = density(run.attention, grid)
    return replace(flops, self_attention=share * flops.self_attention, choice_of_blocks=choice)


def sampling_flops(run: Run) -> Flops:
    """FLOPs of the evaluations for one clip, each step at its size (`sampling.sizes`)."""
    steps, guided = run.sampling.num_steps, run.guidance.guided_steps(run.sampling.num_steps)
    sizes = run.sampling.sizes or (1.0,) * steps
    counts = Counter({size: 0 for size in sizes})
    for step, size in enumerate(sizes):
        counts[size] += 2 if step < guided else 1
    return sum((stage_flops(run, size) * count for size, count in counts.items()), start=Flops())


def mask_bytes(run: Run, context: int = 1) -> float:
    """Bytes of what says which keys are seen, for one clip on each of `context` devices that share its heads.

    On a GPU lists of block pairs, 16 bytes a pair for all heads, or of each head 24 with their scores; on a CPU, and
    where blocks are too small for FlexAttention, a boolean mask of L x L and torch's float copy of it.
    """
    attention = run.attention
    if attention is None:
        return 0
    from pw.nn.token_blocks import block_count

    grid, block = stage_grid(run), math.prod(attention.tile)
    by_head = isinstance(attention, options.TopBlocks) and not attention.by_anchor
    heads = run.backbone.num_attention_heads / context if by_head else 1
    if run.trainer.accelerator == "gpu" and block % options.FLEX_BLOCK == 0:
        return heads * block_count(grid, attention.tile) ** 2 * (24 if by_head else 16)
    return heads * math.prod(grid) ** 2 * 5


def evaluations(run: Run) -> int:
    """Evaluations of the network to generate one clip: one per step, two per step with guidance."""
    return run.sampling.num_steps + run.guidance.guided_steps(run.sampling.num_steps)


@dataclass(frozen=True)
class Part:
    """One item of a memory peak: its bytes on the device, and the source of the number."""

    name: str
    bytes: float
    source: Source


@dataclass(frozen=True)
class Moment:
    """The memory on a device in a phase of generation, or at a moment of a training update.

    flops        of the phase, for one video; 0 for a moment of training
    evaluations  of the network, in each branch of guidance
    devices      that share the phase's flops; fractional if the work cannot be divided equally
    copying      seconds of copies to the device, while it computes; casting: seconds of casts, when it does not
    """

    name: str
    parts: tuple[Part, ...]
    flops: Flops = field(default_factory=Flops)
    evaluations: int = 0
    devices: float = 1
    copying: float = 0
    casting: float = 0

    @property
    def bytes(self) -> float:
        """The peak, without `MARGIN` and `CONTEXT`."""
        return sum(part.bytes for part in self.parts)

    @property
    def needs(self) -> float:
        """Bytes of device memory: the peak, the allocator's losses and the CUDA context."""
        return self.bytes * (1 + MARGIN) + CONTEXT

    def seconds(self, rates: Rates) -> float:
        """Wall time of the phase, on devices of these rates."""
        return max(rates.seconds(self.flops) / self.devices, self.copying) + self.casting

    def fits(self, memory: float) -> bool:
        return self.needs <= memory


def weight_bytes(
    backbone: options.Wan, injector: Injector, precision: Precision, storage: str = "as_computed"
) -> float:
    """Bytes of the weights for inference; time embedding, norms, stride embedding and gate are fp32."""
    fp32_count = fp32_parameters(backbone) + stride_embedding_parameters(backbone)
    if isinstance(injector, options.Injector):
        fp32_count += gate_parameters(injector, backbone)
    b = BYTES[precision]
    stored = backbone.num_layers * layer_parameters(backbone) if storage == "fp8" else 0
    return b * (parameters(backbone, injector) - fp32_count) + 4 * fp32_count - (b - 1) * stored


def block_bytes(backbone: options.Wan, precision: Precision, storage: str) -> int:
    """Bytes of the weights of one block; its modulation table and norm2 are fp32."""
    fp32_count, b = 6 * backbone.width + 2 * backbone.width, BYTES[precision]
    stored = layer_parameters(backbone) if storage == "fp8" else 0
    return b * (block_parameters(backbone) - fp32_count) + 4 * fp32_count - (b - 1) * stored


def inference_bytes(backbone: options.Wan, tokens: int, precision: Precision) -> float:
    """Peak working set of an evaluation without gradients, with one timestep per clip.

        L (max(b (4 D + 2 f), b 4 D + 14.2 D) + 8 head_dim)

    The peak is in the FFN or, if that is narrow, in the fp32 rotary embedding, with its two fp32 tables. Fake tensors
    and formula: 9.26 and 20.67 GB at 2K and 4K in bf16. Error: 0.5 % for an FFN of f = 4.67 D, 1 % for 1 to 2 D.
    """
    b, d = BYTES[precision], backbone.width
    ffn = b * (4 * d + 2 * backbone.ffn_dim)
    rotary = (4 * b + 14.2) * d
    return tokens * (max(ffn, rotary) + 8 * backbone.attention_head_dim)


def injector_bytes(
    injector: Injector, backbone: options.Wan, tokens: int, precision: Precision, context: int = 1
) -> float:
    """Bytes of the injector in an evaluation without gradients: L D b (1 + (1 + blocks) / context).

    The cached refined anchor, the term added to each block's input, and their sum; equal to fake tensors. With
    `context` devices that share the tokens, each device holds the whole refined anchor.
    """
    if not isinstance(injector, options.Injector):
        return 0
    return tokens * backbone.width * BYTES[precision] * (1 + (1 + len(injector.blocks)) / context)


def unshared_bytes(backbone: options.Wan, tokens: int, precision: Precision, context: int) -> float:
    """Bytes of all tokens before the first block, L D b, on each device that shares tokens; 0 without sharing, because
    then they are part of the working set."""
    return tokens * backbone.width * BYTES[precision] if context > 1 else 0


def saved_block_bytes(backbone: options.Wan, tokens: int, precision: Precision, trainable: str) -> float:
    """Bytes that one block saves for its backward without checkpointing.

    L (b (10 D + 2 f) + 48 D), or L (b (7 D + f) + 36 D) with frozen weights: inputs of the linear layers and attention
    in b bytes, inputs of the norms and modulations in fp32. Fake tensors; error below 0.5 %.
    """
    b, d, f = BYTES[precision], backbone.width, backbone.ffn_dim
    if trainable != "all":
        return tokens * (b * (7 * d + f) + 36 * d)
    return tokens * (b * (10 * d + 2 * f) + 48 * d)


def block_backward_bytes(backbone: options.Wan, tokens: int, precision: Precision, trainable: str) -> float:
    """Peak working set of the backward of one block, with its recomputation.

        all        L max(b (7 D + 2 f) + 68.5 D, saved + b f)
        adapters   L max(b (4 D + f) + 58.4 D, saved + 2 b f)

    Fake tensors: 50.6 L D b in bf16 at f = 4.67 D, as the formula. Error: 0.6 %, and 2.5 % for adapters.
    """
    b, d, f = BYTES[precision], backbone.width, backbone.ffn_dim
    saved = saved_block_bytes(backbone, tokens, precision, trainable)
    if trainable != "all":
        return max(tokens * (b * (4 * d + f) + 58.4 * d), saved + tokens * 2 * b * f)
    return max(tokens * (b * (7 * d + 2 * f) + 68.5 * d), saved + tokens * b * f)


def timestep_bytes(backbone: options.Wan, tokens: int, precision: Precision, *, checkpoint: bool) -> float:
    """Bytes that a timestep for each token adds to a forward and its backward.

        L (D (8 b + 12) + 4 freq_dim)   the embedding of timestep and stride, and the six modulations of a token
        32 L D                          what a block adds to these, fp32: of every block, or with checkpointing of one
        7 L D b                         with checkpointing, their gradient and that of the timestep

    Fake tensors; error below 2 %. An upper bound with frozen weights, and in a forward, which is not the peak.
    """
    b, d = BYTES[precision], backbone.width
    embedding = d * (8 * b + 12) + 4 * backbone.freq_dim
    return tokens * (embedding + ((32 + 7 * b) * d if checkpoint else 32 * d * backbone.num_layers))


def injector_saved_bytes(
    injector: Injector, backbone: options.Wan, tokens: int, precision: Precision, context: int = 1
) -> float:
    """Bytes that the injector saves for its backward: L (4 (3 d' + 3 D) + 2.5 b D per block / context), fp32 norms.

    Fake tensors; error below L D b, 1 % of a training's activations. An upper bound if `context` devices share the
    tokens: a block's backward does not need all of it (at 4K on 8 devices fake tensors have 18.0 GB, the sum 23.8).
    """
    if not isinstance(injector, options.Injector):
        return 0
    d, hidden = backbone.width, injector.hidden_channels(backbone)
    return tokens * (4 * (3 * hidden + 3 * d) + 2.5 * BYTES[precision] * d * len(injector.blocks) / context)
