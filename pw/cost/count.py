"""What a run costs before anything is loaded: parameters, floating-point operations, memory. Pure formulas, no torch.

    L tokens, D width, f ffn_dim, S text tokens, N layers, b bytes of a number (bf16 2, fp32 4); FLOPs count a
    multiplication and an addition as two; bytes are bytes and GB is 10^9.

Where a number comes from (`Part.source`):

    counted       from shapes: parameters, operations; equal to the module's and to torch's counter (tests/cost)
    fake tensors  the most that is alive at once when the real modules run on tensors without data. Not measured on a
                  GPU: kernels' workspaces and the allocator's losses come on top, as `MARGIN` and `CONTEXT`.
    assumed       neither.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from pw.nn import options
from pw.run.build import Run

Precision = Literal["bf16", "fp32"]
Source = Literal["counted", "fake tensors", "assumed"]

BYTES: dict[Precision, int] = {"bf16": 2, "fp32": 4}
SINUSOID = 256  # channels of a sinusoidal embedding  (pw.nn.embed)

MARGIN = 0.06  # of a peak: what the caching allocator loses to fragments. Assumed.
PART = 1 << 25  # pixels of large clips that are taken at once as floats  (pw.data.degradation)
CONTEXT = 1 << 30  # bytes: CUDA context and libraries' workspaces. Assumed.

# Wan2.2's VAE, diffusers' AutoencoderKLWan at the published configuration, counted on the meta device.
VAE_ENCODER_PARAMETERS = 149_637_088
VAE_DECODER_PARAMETERS = 555_051_580
# FLOPs per px: (of the first frame, of each further one), convolutions alone; and channels of its one attention.
VAE_DECODE = (22.776466e6, 18.3941485e6, 1024)
VAE_ENCODE = (4.643752e6, 3.4907780e6, 640)
# Working set in bytes per px in bf16, for several frames and for one: frames are convolved four at a time, so it does
# not grow with their number. Fake tensors; method-notes 8.3: 39.8 and 88.9 GB decoding, 31.7 GB encoding at 4K.
VAE_DECODE_BYTES = (10_796, 2_900)
VAE_ENCODE_BYTES = (3_850, 970)

# UMT5-XXL's encoder  (google/umt5-xxl, config.json)
UMT5_LAYERS, UMT5_WIDTH, UMT5_FFN, UMT5_HEADS, UMT5_BUCKETS, UMT5_VOCABULARY = 24, 4096, 10240, 64, 32, 256384


@dataclass(frozen=True)
class Flops:
    """Operations by kind. `linear` has the cross-attention's projections of the text, too."""

    linear: float = 0.0
    self_attention: float = 0.0
    cross_attention: float = 0.0
    embeddings: float = 0.0
    injector: float = 0.0
    codec: float = 0.0
    text_encoder: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return sum(vars(self).values())

    def __mul__(self, count: float) -> Flops:
        return Flops(**{name: value * count for name, value in vars(self).items()})

    def __add__(self, other: Flops) -> Flops:
        return Flops(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Part:
    """A share of a peak: bytes on the device, and where the number comes from."""

    name: str
    bytes: float
    source: Source


@dataclass(frozen=True)
class Moment:
    """What is on the device at once: at a phase of generation, or at a moment of a training update.

    flops  of the phase, for one video; 0 for a moment of training
    evaluations  of the network, each branch of guidance by itself
    devices  among which the phase's flops are divided; fewer than there are where they do not come out even
    """

    name: str
    parts: tuple[Part, ...]
    flops: Flops = Flops()
    evaluations: int = 0
    devices: float = 1

    @property
    def bytes(self) -> float:
        """The peak."""
        return sum(part.bytes for part in self.parts)

    @property
    def needs(self) -> float:
        """Bytes of device memory it takes: the peak, the allocator's losses and the context."""
        return self.bytes * (1 + MARGIN) + CONTEXT

    def fits(self, memory: float) -> bool:
        """Whether a device of so many bytes can hold it."""
        return self.needs <= memory

    @property
    def largest(self) -> Part:
        """What takes most."""
        return max(self.parts, key=lambda part: part.bytes)


@dataclass(frozen=True)
class Generation:
    """One video: its phases one after the other, each with its own network alone on the device.

    host  what is held in CPU memory
    """

    phases: tuple[Moment, ...]
    host: tuple[Part, ...]

    @property
    def flops(self) -> float:
        """Of all phases."""
        return sum(phase.flops.total for phase in self.phases)

    @property
    def worst(self) -> Moment:
        """The phase that takes most memory."""
        return max(self.phases, key=lambda phase: phase.bytes)


@dataclass(frozen=True)
class Training:
    """A training on `gpus` devices.

    flow, consistency  FLOPs of one update of that kind over all its clips, encoding included
    context            devices that share the tokens of a clip
    micro_batches      forwards, one after the other, that an update takes on each device
    host               what is held in CPU memory for each device
    """

    moments: tuple[Moment, ...]
    trained_parameters: int
    clips: int
    updates: int
    consistency_updates: float
    flow: float
    consistency: float
    encode: float
    gpus: int
    context: int
    micro_batches: int
    accumulate: int
    host: tuple[Part, ...]

    @property
    def flops(self) -> float:
        """Of the whole training."""
        return self.consistency_updates * self.consistency + (self.updates - self.consistency_updates) * self.flow

    @property
    def worst(self) -> Moment:
        """The moment that takes most memory."""
        return max(self.moments, key=lambda moment: moment.bytes)

    def seconds(self, flops: float, tflops: float) -> float:
        """Wall time of so many FLOPs of it, spread over the devices as far as whole micro-batches go."""
        return flops * self.micro_batches / self.accumulate / self.context / (tflops * 1e12)


def latent_shape(
    codec: options.WanVAE | options.SpaceToDepth, frames: int, height: int, width: int
) -> tuple[int, int, int, int]:
    """(C, F, h, w) of the latent of a clip. Raises ValueError when the codec cannot make so many frames."""
    return codec.channels, codec.latent_frames(frames), height // codec.factor, width // codec.factor


def tokens(latent: tuple[int, int, int, int], patch_size: tuple[int, int, int]) -> int:
    """L = F h w / patch volume."""
    return math.prod(length // patch for length, patch in zip(latent[1:], patch_size, strict=True))


def stage_latent(run: Run) -> tuple[int, int, int, int]:
    """(C, F, h, w) of what the run's stage generates: the anchor, or the clip at full size."""
    height, width = run.scale.anchor_size if run.stage == "anchor" else run.scale.size
    return latent_shape(run.codec, run.scale.frames, height, width)


def block_parameters(backbone: options.Wan) -> int:
    """Of one transformer block: two attentions of 4 (D^2 + D) + 2 D, norm2, FFN, modulation table."""
    d, f = backbone.width, backbone.ffn_dim
    return 2 * (4 * (d * d + d) + 2 * d) + 2 * d + (2 * d * f + f + d) + 6 * d


def transformer_parameters(backbone: options.Wan) -> int:
    """Of the stock `WanTransformer3DModel`: 4,999,787,712 for Wan2.2-TI2V-5B. Counted."""
    d, patch = backbone.width, backbone.in_channels * math.prod(backbone.patch_size)
    embeddings = (
        (patch * d + d)
        + (backbone.freq_dim * d + d + d * d + d)  # time_embedder
        + (6 * d * d + 6 * d)  # time_proj
        + (backbone.text_dim * d + d + d * d + d)  # text_embedder
    )
    return embeddings + backbone.num_layers * block_parameters(backbone) + (d * patch + patch) + 2 * d


def kept_parameters(backbone: options.Wan) -> int:
    """Those of the transformer that stay fp32 when the rest is bf16: time embedder, modulation tables, norm2."""
    d = backbone.width
    return (backbone.freq_dim * d + d + d * d + d) + backbone.num_layers * (6 * d + 2 * d) + 2 * d


def stride_embedding_parameters(backbone: options.Wan) -> int:
    """Linear(256, D), Linear(D, D). Counted."""
    d = backbone.width
    return SINUSOID * d + d + d * d + d


def gate_parameters(injector: options.Injector, backbone: options.Wan) -> int:
    """Of the injector's gate. Counted."""
    d = backbone.width
    return {
        "scalar": SINUSOID * d + d + d + 1,
        "channelwise": 2 * (SINUSOID * d + d + d * d + d),
        "fixed": 0,
    }[injector.gate]


def injector_parameters(injector: options.Injector | options.Add | None, backbone: options.Wan) -> int:
    """1x1x1 and 3x3x3 convolution, their norms, the gate, a Linear(D, D) per injected block. Counted."""
    if not isinstance(injector, options.Injector):
        return 0
    d, hidden = backbone.width, injector.hidden_channels(backbone)
    refine = (backbone.in_channels * hidden + hidden) + 2 * hidden + (27 * hidden * d + d) + 2 * d
    return refine + gate_parameters(injector, backbone) + len(injector.blocks) * (d * d + d)


def parameters(backbone: options.Wan, injector: options.Injector | options.Add | None) -> int:
    """Of `pw.nn.backbone.Backbone`."""
    adapters = stride_embedding_parameters(backbone) + injector_parameters(injector, backbone)
    return transformer_parameters(backbone) + adapters


def text_encoder_parameters() -> int:
    """Of UMT5-XXL's encoder: 5.68e9, a quarter of them the vocabulary's. Counted."""
    attention = 4 * UMT5_WIDTH**2 + UMT5_HEADS * UMT5_BUCKETS  # each layer has its own position bias
    layer = attention + 3 * UMT5_WIDTH * UMT5_FFN + 2 * UMT5_WIDTH
    return UMT5_VOCABULARY * UMT5_WIDTH + UMT5_LAYERS * layer + UMT5_WIDTH


def forward_flops(
    backbone: options.Wan,
    tokens: int,
    text_tokens: int,
    injector: options.Injector | options.Add | None = None,
) -> Flops:
    """One evaluation of the network on one clip, by kind  (method-notes 8.1).

        linear            2 L N (6 D^2 + 2 D f) + 4 S N D^2
        self-attention    4 L^2 D N
        cross-attention   4 L S D N

    and what those leave out: patch and output projection, the embeddings of text, timestep and stride, the injector
    (counted at every evaluation, though inference keeps its refined anchor). Counted: torch's counter says the same.
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


def injector_flops(injector: options.Injector | options.Add | None, backbone: options.Wan, tokens: int) -> float:
    """2 L (C d' + 27 d' D + D^2 per block) + the gate's, d' hidden channels. The resize is not counted."""
    if not isinstance(injector, options.Injector):
        return 0
    d, hidden = backbone.width, injector.hidden_channels(backbone)
    gate = {"scalar": 2 * (SINUSOID * d + d), "channelwise": 4 * (SINUSOID * d + d * d), "fixed": 0}[injector.gate]
    return 2 * tokens * (backbone.in_channels * hidden + 27 * hidden * d + len(injector.blocks) * d * d) + gate


def text_flops(prompts: int, text_tokens: int) -> float:
    """UMT5-XXL on so many prompts, each padded to `text_tokens`. Counted by hand: linear layers and attention."""
    linear = 2 * text_tokens * UMT5_LAYERS * (4 * UMT5_WIDTH**2 + 3 * UMT5_WIDTH * UMT5_FFN)
    return prompts * (linear + UMT5_LAYERS * 4 * text_tokens**2 * UMT5_WIDTH)


def codec_flops(
    codec: options.WanVAE | options.SpaceToDepth,
    frames: int,
    height: int,
    width: int,
    way: Literal["encode", "decode"],
) -> float:
    """Encoding or decoding one clip: tiles overlap, so tiling costs more.

    Per px of a tile, convolutions cost as many FLOPs for every frame but the first; each latent frame's attention
    costs 4 (h w)^2 channels. The constants are counted; 8.25 and 18.5 PFLOP to decode in one piece at 2K and 4K, 1.58
    and 3.57 to encode (method-notes 8.1). `SpaceToDepth` computes nothing.
    """
    if isinstance(codec, options.SpaceToDepth):
        return 0
    first, further, channels = VAE_DECODE if way == "decode" else VAE_ENCODE
    tiles = codec.tiles(height, width)
    positions = [(row.stop - row.start) * (column.stop - column.start) for row in tiles[0] for column in tiles[1]]
    pixels = sum(positions) * codec.factor**2
    attention = 4 * sum(count**2 for count in positions) * channels * codec.latent_frames(frames)
    return pixels * (first + further * (frames - 1)) + attention


def weight_bytes(backbone: options.Wan, injector: options.Injector | options.Add | None, precision: Precision) -> float:
    """Weights for inference: in bf16 but those kept in fp32, the stride embedding's and the gate's among them."""
    kept = kept_parameters(backbone) + stride_embedding_parameters(backbone)
    if isinstance(injector, options.Injector):
        kept += gate_parameters(injector, backbone)
    return BYTES[precision] * (parameters(backbone, injector) - kept) + 4 * kept


def inference_bytes(backbone: options.Wan, tokens: int, precision: Precision) -> float:
    """Peak working set of an evaluation without gradients, timestep one per clip.

        L (max(b (4 D + 2 f), b 4 D + 14.2 D) + 8 head_dim)

    In the FFN (or, where that is narrow, the rotary embedding in fp32), and its two fp32 tables. Fake tensors say 9.26
    and 20.67 GB at 2K and 4K in bf16, the formula 9.26 and 20.67; method-notes 8.3 have 9.2 and 20.6. Residual: 0.5 %
    where the FFN is 4.67 wide, 1 % where it is 1 to 2 wide.
    """
    b, d = BYTES[precision], backbone.width
    ffn = b * (4 * d + 2 * backbone.ffn_dim)
    rotary = (4 * b + 14.2) * d
    return tokens * (max(ffn, rotary) + 8 * backbone.attention_head_dim)


def injector_bytes(
    injector: options.Injector | options.Add | None,
    backbone: options.Wan,
    tokens: int,
    precision: Precision,
    context: int = 1,
) -> float:
    """What the injector adds to an evaluation without gradients: L D b (1 + (1 + blocks) / context).

    The refined anchor, which it keeps; what goes into each block; and the sum of that and the block's input. Fake
    tensors say exactly this. Of `context` devices that share the tokens each has the refined anchor whole.
    """
    if not isinstance(injector, options.Injector):
        return 0
    return tokens * backbone.width * BYTES[precision] * (1 + (1 + len(injector.blocks)) / context)


def unshared_bytes(backbone: options.Wan, tokens: int, precision: Precision, context: int) -> float:
    """The tokens before the first block, L D b, which each of those that share tokens has whole; else 0: they are in
    the working set."""
    return tokens * backbone.width * BYTES[precision] if context > 1 else 0


def saved_block_bytes(backbone: options.Wan, tokens: int, precision: Precision, trainable: str) -> float:
    """What one block keeps for its backward when it is not checkpointed.

    L (b (10 D + 2 f) + 48 D), or L (b (7 D + f) + 36 D) when its weights are frozen: b-sized inputs of the linear
    layers and attention, fp32 ones of the norms and modulations. Fake tensors; residual below 0.5 %.
    """
    b, d, f = BYTES[precision], backbone.width, backbone.ffn_dim
    if trainable == "adapters":
        return tokens * (b * (7 * d + f) + 36 * d)
    return tokens * (b * (10 * d + 2 * f) + 48 * d)


def block_backward_bytes(backbone: options.Wan, tokens: int, precision: Precision, trainable: str) -> float:
    """Peak working set of recomputing one block and going back through it.

        all        L max(b (7 D + 2 f) + 68.5 D, saved + b f)
        adapters   L max(b (4 D + f) + 58.4 D, saved + 2 b f)

    Fake tensors say 50.6 L D b in bf16 at f = 4.67 D, this 50.6; method-notes 8.3 (65 and 133 GB at 2K and 4K with 30
    saved inputs and 10 GB of weights) give 50.2. Residual: 0.6 %, and 2.5 % for adapters.
    """
    b, d, f = BYTES[precision], backbone.width, backbone.ffn_dim
    saved = saved_block_bytes(backbone, tokens, precision, trainable)
    if trainable == "adapters":
        return max(tokens * (b * (4 * d + f) + 58.4 * d), saved + tokens * 2 * b * f)
    return max(tokens * (b * (7 * d + 2 * f) + 68.5 * d), saved + tokens * b * f)


def injector_saved_bytes(
    injector: options.Injector | options.Add | None,
    backbone: options.Wan,
    tokens: int,
    precision: Precision,
    context: int = 1,
) -> float:
    """What the injector keeps for its backward: L (4 (3 d' + 3 D) + 2.5 b D per block / context), its norms being fp32.

    Fake tensors; residual below 1 L D b, which is 1 % of a training's activations. With `context` it is an upper bound:
    not all of it is alive in a block's backward; fake tensors say 18.0 GB at 4K by 8 devices where the sum is 23.8.
    """
    if not isinstance(injector, options.Injector):
        return 0
    d, hidden = backbone.width, injector.hidden_channels(backbone)
    return tokens * (4 * (3 * hidden + 3 * d) + 2.5 * BYTES[precision] * d * len(injector.blocks) / context)


def codec_bytes(
    codec: options.WanVAE | options.SpaceToDepth,
    frames: int,
    height: int,
    width: int,
    way: Literal["encode", "decode"],
) -> tuple[Part, ...]:
    """Weights, the working set of a tile, and pixels, on the device. `SpaceToDepth` only rearranges: pixels twice."""
    if isinstance(codec, options.SpaceToDepth):
        return (Part("pixels", 2 * 12 * frames * height * width, "counted"),)
    b = BYTES[codec.precision]
    rows, columns = (codec.factor * max(span.stop - span.start for span in way) for way in codec.tiles(height, width))
    several, single = VAE_DECODE_BYTES if way == "decode" else VAE_ENCODE_BYTES
    per_pixel = (single if frames == 1 else several) * b / 2
    pixels = 2 * 3 * b * rows * columns  # a tile, as it is and as patches
    if way == "encode":
        pixels += 12 * height * width  # the clip in fp32
    elif len(codec.tiles(height, width)[0]) > 1 or len(codec.tiles(height, width)[1]) > 1:
        pixels += 2 * 12 * rows * width + 12 * rows * columns  # two bands of tiles being blended and a tile, fp32
    return (
        Part("weights", b * (VAE_ENCODER_PARAMETERS + VAE_DECODER_PARAMETERS), "counted"),
        Part("working set", rows * columns * per_pixel, "fake tensors"),
        Part("pixels", frames * pixels, "counted"),
    )


def evaluations(run: Run) -> int:
    """Of the network per clip: one a step, and one more where guided."""
    steps, guidance = run.sampling.num_steps, run.guidance
    if guidance.scale == 1:
        return steps
    return steps + (steps if guidance.first_steps is None else min(steps, guidance.first_steps))


def guided_at_once(run: Run) -> int:
    """Clips in one forward for one clip made: 2 when guidance runs its branches as one batch."""
    return 2 if run.guidance.scale != 1 and run.trainer.guidance_batch else 1


def denoising(run: Run, precision: Precision) -> Moment:
    """All evaluations of a stage's network for one clip, on each of the devices that split it or share its tokens."""
    latent, backbone, batch = stage_latent(run), run.backbone, guided_at_once(run)
    split, context = run.trainer.split, run.trainer.context
    length = tokens(latent, backbone.patch_size)
    forward = forward_flops(backbone, length, backbone.text_tokens, run.injector)
    count = evaluations(run)
    text = 2 * backbone.text_tokens * backbone.text_dim * 4
    # fp32 state, two velocities and their sum, and the network's own copy of the state
    state = math.prod(latent) * (4 * 4 + BYTES[precision] * batch)
    gathered = 2 * BYTES[precision] * block_parameters(backbone) if split > 1 else 0  # this block and the next
    parts = (
        Part("weights", weight_bytes(backbone, run.injector, precision) / split, "counted"),
        Part("gathered", gathered, "assumed"),
        Part("working set", batch * inference_bytes(backbone, length // context, precision), "fake tensors"),
        Part("all tokens", batch * unshared_bytes(backbone, length, precision, context), "fake tensors"),
        Part("injector", batch * injector_bytes(run.injector, backbone, length, precision, context), "fake tensors"),
        Part("latents, text", state + text, "assumed"),
    )
    return Moment("stage I" if run.stage == "anchor" else "stage II", parts, forward * count, count, context)


def text_encoding(run: Run) -> Moment:
    """The prompt, and with guidance the negative prompt, through UMT5-XXL in bf16."""
    prompts, length = 1 if run.guidance.scale == 1 else 2, run.backbone.text_tokens
    scores = 3 * 4 * UMT5_HEADS * length**2  # scores, their bias and softmax in fp32
    parts = (
        Part("weights", 2 * text_encoder_parameters(), "counted"),
        Part("working set", scores + 4 * length * (3 * UMT5_FFN + 4 * UMT5_WIDTH), "assumed"),
    )
    return Moment("text", parts, Flops(text_encoder=text_flops(prompts, length)))


def coding(run: Run, name: str, frames: int, size: tuple[int, int], way: Literal["encode", "decode"]) -> Moment:
    """One clip through the codec."""
    flops = Flops(codec=codec_flops(run.codec, frames, *size, way))
    return Moment(name, codec_bytes(run.codec, frames, *size, way), flops)


def decoders(run: Run, size: tuple[int, int]) -> float:
    """To how many devices the tiles of a decode are as good as dealt, of those that make a video together."""
    if isinstance(run.codec, options.SpaceToDepth):
        return 1
    rows, columns = run.codec.tiles(*size)
    tiles = len(rows) * len(columns)
    return tiles / math.ceil(tiles / run.trainer.context)


def generation_cost(
    hires: Run | None,
    anchor: Run | None,
    frames: int | None = None,
    precision: Precision | None = None,
) -> Generation:
    """One video from one prompt: text, stage I, stage II, decode; each network alone on the device.

    hires, anchor  the runs of the two stages; None leaves one out (a stage II without injector needs no anchor)
    frames         of the video, the scale's by default
    precision      of the networks' weights; by default bf16 on a GPU and fp32 on a CPU, as `make generate` loads them
    """
    runs = [_with_frames(run, frames) for run in (anchor, hires) if run is not None]
    assert runs, "nothing to generate"
    last = runs[-1]
    kind = precision or loaded_precision(last)
    phases = [text_encoding(run) for run in runs[-1:] if run.text is not None]
    for run in runs:
        phases.append(denoising(run, kind))
        upsampled = run.stage == "anchor" and len(runs) == 2 and run.scale.anchor_upsample == "pixel"
        if upsampled and isinstance(run.codec, options.WanVAE):
            phases.append(coding(run, "anchor decode", run.scale.frames, run.scale.anchor_size, "decode"))
            phases.append(coding(run, "anchor encode", run.scale.frames, run.scale.size, "encode"))
    size = last.scale.anchor_size if last.stage == "anchor" else last.scale.size
    decode = coding(last, "decode", last.scale.frames, size, "decode")
    phases.append(dataclasses.replace(decode, devices=decoders(last, size)))
    return Generation(tuple(phases), _host(runs, size))


def loaded_precision(run: Run) -> Precision:
    """Of a network's weights when it generates  (pw.nn.networks)."""
    return "bf16" if run.trainer.accelerator == "gpu" else "fp32"


def _with_frames(run: Run, frames: int | None) -> Run:
    if frames is None:
        return run
    return dataclasses.replace(run, scale=dataclasses.replace(run.scale, frames=frames))


def _host(runs: list[Run], size: tuple[int, int]) -> tuple[Part, ...]:
    """CPU memory of a generation: the largest network on its way to the device, a checkpoint being fp32; the frames."""
    last = runs[-1]
    networks = [4 * parameters(run.backbone, run.injector) for run in runs]
    if last.text is not None:
        networks.append(2 * text_encoder_parameters())
    return (
        Part("largest network as it loads", max(networks), "assumed"),
        Part("8-bit frames", 3 * last.scale.frames * size[0] * size[1], "counted"),
    )


def sampling_memory(run: Run, batch_size: int | None = None) -> int:
    """Bytes of CPU memory that clips take when a run is sampled, however many they are.

    A batch as floats, one clip twice in 8 bits, and some frames on their way between the two. Before a batch, each of
    its evaluation clips is held no more often: as it is stored, as it is read, as floats. Measured at 2K with 33
    frames: 2.3 GB, and 2.7 from shards of 1.5 times the size; this says 3.0. The network is on the device by then.
    """
    batch_size = run.sampling.batch_size if batch_size is None else batch_size
    pixels = run.scale.frames * run.scale.height * run.scale.width
    return 3 * pixels * (4 * batch_size + 2) + 24 * min(pixels * batch_size, PART)


def trained_parameters(run: Run) -> int:
    """Those with a gradient. The stride embedding is frozen under `objective=flow`  (D18)."""
    backbone, stride = run.backbone, stride_embedding_parameters(run.backbone)
    transformer = transformer_parameters(backbone) if run.train.trainable == "all" else 0
    return transformer + injector_parameters(run.injector, backbone) + (stride if run.objective.trains_strides else 0)


def update_flops(run: Run) -> tuple[float, float]:
    """(flow, consistency) FLOPs of one clip's update, backward taken as two forwards  (method-notes 8.2).

    With F of a forward: flow 3 F, and 4 F with checkpointing, which recomputes it; a consistency update adds the two
    halves of its target, 2 F. A frozen transformer spares the gradients of its weights: one `linear` less.
    """
    length = tokens(stage_latent(run), run.backbone.patch_size)
    forward = forward_flops(run.backbone, length, run.backbone.text_tokens, run.injector)
    flow = forward.total * (4 if run.train.checkpoint_activations else 3)
    if run.train.trainable == "adapters":
        flow -= forward.linear
    return flow, flow + 2 * forward.total


def encode_flops(run: Run) -> float:
    """Encoding one clip and its anchor, if the data are pixels; `data=none` stands for latents made beforehand."""
    if not reads_pixels(run):
        return 0
    scale = run.scale
    anchor = codec_flops(run.codec, scale.frames, *scale.anchor_size, "encode")
    if run.stage == "anchor":
        return anchor
    if scale.anchor_upsample == "pixel":
        anchor = codec_flops(run.codec, scale.frames, *scale.size, "encode")
    return codec_flops(run.codec, scale.frames, *scale.size, "encode") + (anchor if run.injector is not None else 0)


def reads_pixels(run: Run) -> bool:
    """Whether training sees clips, to be encoded, rather than latents."""
    return run.config.choices["data"] not in ("none", "latents")


def training_cost(run: Run, gpus: int = 1, context: int | None = None) -> Training:
    """A whole training, and its memory on each of `gpus` devices.

    On several, weights, gradients, optimiser and EMA are sharded over them (as FSDP does) and each, or each group of
    `context` that share a clip's tokens (the run's own number of them by default), takes its share of an update's
    micro-batches.
    """
    train = run.train
    context = min(gpus, run.trainer.context) if context is None else context
    clips, encode = train.accumulate * train.batch_size, encode_flops(run)
    flow, consistency = update_flops(run)
    return Training(
        moments=training_moments(run, gpus, context),
        trained_parameters=trained_parameters(run),
        clips=clips,
        updates=train.updates,
        consistency_updates=run.objective.consistency_updates(train.updates),
        flow=clips * (flow + encode),
        consistency=clips * (consistency + encode),
        encode=clips * encode,
        gpus=gpus,
        context=context,
        micro_batches=math.ceil(train.accumulate / (gpus // context)),
        accumulate=train.accumulate,
        host=_training_host(run, gpus, context),
    )


def _training_host(run: Run, gpus: int, context: int) -> tuple[Part, ...]:
    """CPU memory of a training: the network as it is made, in fp32, a checkpoint, what blocks are recomputed from."""
    found = [Part("network as it is made", 4 * parameters(run.backbone, run.injector), "counted")]
    if run.trainer.offload_activations:
        found.append(Part("offloaded activations", offloaded_bytes(run, context), "counted"))
    if copied := checkpoint_copy_bytes(run, gpus):
        found.append(Part("checkpoint as it is written", copied, "counted"))
    return tuple(found)


def checkpoint_copy_bytes(run: Run, split: int | None = None) -> int:
    """CPU memory that a checkpoint takes for each of `split` devices (the run's, by default) while it is written.

    Of a network that is split, all is copied and training goes on; of one that is whole, nothing.
    """
    split = run.trainer.split if split is None else split
    if split == 1:
        return 0
    return math.ceil((8 * parameters(run.backbone, run.injector) + 8 * trained_parameters(run)) / split)


def offloaded_bytes(run: Run, context: int | None = None) -> int:
    """CPU memory that `trainer.offload_activations` takes for each device; torch takes it in powers of two."""
    if not run.trainer.offload_activations:
        return 0
    length = run.train.batch_size * tokens(stage_latent(run), run.backbone.patch_size)
    whole = length * run.backbone.width * BYTES[run.train.precision]
    # the first block is given all tokens, and takes those that are its part itself
    first, other = (2 ** math.ceil(math.log2(size)) for size in (whole, whole // (context or run.trainer.context)))
    return first + (run.backbone.num_layers - 1) * other


def training_moments(run: Run, gpus: int = 1, context: int = 1) -> tuple[Moment, ...]:
    """The moments of an update at which memory may peak: encoding, forward, backward, the optimiser's step.

    Weights, gradients (they stay through `accumulate` micro-batches), AdamW's two moments and the EMA are fp32 whatever
    `train.precision`; bf16 is autocast's, whose copies of the weights live until the forward ends. Counted. AdamW's
    step holds one more number per trained weight (torch's foreach implementation).
    """
    train, backbone, precision = run.train, run.backbone, run.train.precision
    everything, trained = parameters(backbone, run.injector), trained_parameters(run)
    everywhere = train.batch_size * tokens(stage_latent(run), backbone.patch_size)
    length = everywhere // context  # the tokens that are here
    static = [
        Part("weights", 4 * everything / gpus, "counted"),
        Part("gradients", 4 * trained / gpus, "counted"),
        Part("AdamW", 8 * trained / gpus, "counted"),
        Part("EMA", 4 * (everything if gpus > 1 else trained) / gpus, "counted"),  # alone, it shares what is frozen
    ]
    block = 2 * BYTES[precision] * block_parameters(backbone)  # of this one and the next, or of this one's gradient
    casts = 2 * (everything if train.trainable == "all" else block_parameters(backbone))
    if precision == "fp32" or gpus > 1:  # sharded weights are gathered, cast, and let go block by block
        casts = block if gpus > 1 else 0
    injector = injector_saved_bytes(run.injector, backbone, everywhere, precision, context)
    if train.checkpoint_activations:
        saved = length * backbone.width * BYTES[precision]
        saved *= 1 if run.trainer.offload_activations else backbone.num_layers
        forward = inference_bytes(backbone, length, precision)
        backward = block_backward_bytes(backbone, length, precision, train.trainable)
        casts_in_backward = block
    else:
        saved = backbone.num_layers * saved_block_bytes(backbone, length, precision, train.trainable)
        forward = backward = 20.4 * length * backbone.width  # embeddings, output head and their gradients, fp32
        casts_in_backward = max(casts, block)

    def activations(working_set: float, cast: float) -> list[Part]:
        return [
            Part("saved", saved, "counted" if train.checkpoint_activations else "fake tensors"),
            Part("working set", working_set, "fake tensors"),
            Part("all tokens", unshared_bytes(backbone, everywhere, precision, context), "fake tensors"),
            Part("injector", injector, "fake tensors"),
            Part("casts", cast, "assumed"),
            Part("pixels", clip, "counted"),
        ]

    # the VAE stays, and so does the clip, in fp32
    codec = [Part("VAE", part.bytes, part.source) for part in _encoding(run) if part.name == "weights"]
    clip = 12 * train.batch_size * run.scale.frames * math.prod(run.scale.size) if reads_pixels(run) else 0
    moments = [
        Moment("forward", (*static, *codec, *activations(forward, casts))),
        Moment("backward", (*static, *codec, *activations(backward, casts_in_backward))),
        Moment("optimiser step", (*static, *codec, Part("working set", 4 * trained / gpus, "assumed"))),
    ]
    if _encoding(run):
        rest = (Part(p.name, train.batch_size * p.bytes, p.source) for p in _encoding(run) if p.name != "weights")
        moments.insert(0, Moment("encoding", (*static, *codec, *rest)))
    return tuple(moments)


def _encoding(run: Run) -> tuple[Part, ...]:
    if not reads_pixels(run):
        return ()
    size = run.scale.anchor_size if run.stage == "anchor" else run.scale.size
    return codec_bytes(run.codec, run.scale.frames, *size, "encode")
