"""The cost of one generated video: FLOPs and memory of its phases, and CPU memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pw.cost import counts
from pw.cost.codec_cost import Direction, codec_bytes, codec_flops
from pw.cost.counts import BYTES, Flops, Moment, Part, Precision
from pw.cost.rates import Rates
from pw.nn import options
from pw.nn.unipc import UniPC
from pw.run.build import Run, build
from pw.run.compose import override_key

# (stage II, stage I) of a generation; None for a stage that it does not have
Stages = tuple[Run | None, Run | None]
SHARED_GROUPS = {"scale", "codec", "backbone", "text", "data", "trainer"}  # stage I copies them from stage II

# Bytes a second. Assumed: page-locked memory over PCIe 4.0 x16 (31.5 GB/s by its standard), and the memory of a card of
# 24 GB (RTX 4090: 1008 GB/s by its data sheet).
HOST_RATE, DEVICE_RATE = 20e9, 1e12
TILE_STEP, TILE_SLACK = 8, 1.05  # of `codec.tile=auto`: latent positions between tiles, and time against the least
CONVERSION_PIXELS = 1 << 25  # converted to floats at a time  (pw.data.degradation)


@dataclass(frozen=True)
class GenerationCost:
    """The cost of one video: consecutive phases, each with only its own network on the device.

    precision  of the networks' weights
    host       items in CPU memory
    pixels     of the video, which the CPU writes as H.264
    """

    precision: Precision
    phases: tuple[Moment, ...]
    host: tuple[Part, ...]
    pixels: int

    @property
    def flops(self) -> float:
        return sum(phase.flops.total for phase in self.phases)

    def seconds(self, rates: Rates) -> float:
        """Wall time of one video on its devices, without its file."""
        return sum(phase.seconds(rates) for phase in self.phases)

    @property
    def worst(self) -> Moment:
        return max(self.phases, key=lambda phase: phase.bytes)

    def together(self, *, with_text: bool = False) -> Moment:
        """All networks on the device at once, beside the largest working set of a phase."""
        phases = [phase for phase in self.phases if with_text or phase.name != "text"]
        weights = {  # the VAE of several phases is one
            "VAE" if phase.flops.decode or phase.flops.encode else phase.name: part
            for phase in phases
            for part in phase.parts
            if part.name == "weights"
        }
        rest = max((sum(part.bytes for part in phase.parts if part.name != "weights") for phase in phases), default=0)
        parts = [replace(part, name=f"weights of {name}") for name, part in weights.items()]
        return Moment("all networks", (*parts, Part("working set", rest, "assumed")))


def stages_of(run: Run) -> Stages:
    """The stages that generate with a run: only stage I for a stage I run, only stage II without an injector."""
    if run.stage == "anchor":
        return None, run
    if run.injector is None:
        return run, None
    overrides = [o for o in run.config.overrides if override_key(o).split(".")[0] in SHARED_GROUPS]
    return run, run.anchor_run or build([*overrides, "stage=anchor"])


def last_stage(stages: Stages) -> Run:
    run = stages[0] or stages[1]
    assert run is not None, "nothing to generate"
    return run


def generation_cost(hires: Run | None, anchor: Run | None, precision: Precision | None = None) -> GenerationCost:
    """The cost of one video from one prompt: text, stage I, stage II, decode.

    hires, anchor  the runs of the two stages; None skips a stage (stage II without an injector needs no anchor)
    precision      of the networks' weights; default bf16 on a GPU and fp32 on a CPU, as in `pw.nn.networks`
    """
    runs, final_run = [run for run in (anchor, hires) if run is not None], last_stage((hires, anchor))
    precision = precision or ("bf16" if final_run.trainer.accelerator == "gpu" else "fp32")
    phases = [text_encoding(final_run)] if final_run.text is not None else []
    for run in runs:
        phases.append(denoising(run, precision))
        upsampled = run.stage == "anchor" and len(runs) == 2 and run.scale.anchor_upsample == "pixel"
        if upsampled and isinstance(run.codec, options.WanVAE):
            phases.append(coding(run, "anchor decode", run.scale.anchor_size, "decode"))
            phases.append(coding(run, "anchor encode", run.scale.size, "encode"))
    phases.append(decoding(final_run))
    # a network is loaded from a checkpoint in fp32
    networks = [4 * counts.parameters(run.backbone, run.injector) for run in runs]
    if final_run.text is not None:
        networks.append(2 * counts.text_encoder_parameters())
    pixels = final_run.scale.frames * math.prod(counts.stage_size(final_run))
    waiting = max(waiting_bytes(run, precision) for run in runs)
    host = (
        Part("largest network as it loads", max(networks), "assumed"),
        *([Part("offloaded blocks", waiting, "counted")] if waiting else []),
        Part("8-bit frames", 3 * pixels, "counted"),
    )
    return GenerationCost(precision, tuple(phases), host, pixels)


def offloads(run: Run) -> bool:
    """Whether blocks are copied to the device for their evaluation; on a CPU they are there anyway."""
    return run.trainer.offload == "group" and run.trainer.accelerator == "gpu"


def waiting_bytes(run: Run, precision: Precision = "bf16") -> int:
    """Bytes of CPU memory for the blocks with `trainer.offload=group`; torch locks pages in powers of two."""
    if not offloads(run):
        return 0
    d, b = run.backbone.width, 1 if run.trainer.storage == "fp8" else BYTES[precision]
    square, wide = (2 ** math.ceil(math.log2(b * size)) for size in (d * d, d * run.backbone.ffn_dim))
    return run.backbone.num_layers * (8 * square + 2 * wide)


def window_bytes(run: Run) -> int:
    """Bytes of CPU memory for each window of a long video while all are denoised (`pw.generate.windows`), in fp32.

    Its latent is there 5 times: noise, state, velocity, its part in the step, the next state; guided 7 times, from the
    noised anchor 6, and by UniPC, which keeps earlier steps, 14. Its anchor once, and again in a batch of two branches:
    at full size where it is enlarged in pixels (`scale.anchor_upsample`).
    """
    is_guided = run.guidance.scale != 1
    copies = 7 if is_guided else 6 if run.sampling.init == "anchor" else 5
    copies = 14 if isinstance(run.solver, UniPC) else copies
    anchors = 3 if is_guided and run.trainer.guidance_batch else 1
    channels, frames, *_ = latent = counts.stage_latent(run)
    size = run.scale.anchor_size if run.scale.anchor_upsample == "latent" else run.scale.size
    anchor = channels * frames * math.prod(length // run.codec.factor for length in size)
    return 4 * (copies * math.prod(latent) + anchors * anchor)


def text_encoding(run: Run) -> Moment:
    """Encoding the prompt, and with guidance the negative prompt, by UMT5-XXL in bf16."""
    prompts, length = 1 if run.guidance.scale == 1 else 2, run.backbone.text_tokens  # length of each, with padding
    layers, width, ffn = counts.UMT5_LAYERS, counts.UMT5_WIDTH, counts.UMT5_FFN
    linear, attention = 2 * length * layers * (4 * width**2 + 3 * width * ffn), layers * 4 * length**2 * width
    scores = 3 * 4 * counts.UMT5_HEADS * length**2  # scores, their bias and softmax in fp32
    parts = (
        Part("weights", 2 * counts.text_encoder_parameters(), "counted"),
        Part("working set", scores + 4 * length * (3 * ffn + 4 * width), "assumed"),
    )
    return Moment("text", parts, Flops(text_encoder=prompts * (linear + attention)))


def denoising(run: Run, precision: Precision) -> Moment:
    """Sampling one clip with a stage's network, on each device that holds part of its weights or tokens.

    A layer that is cast (`trainer.storage=fp8`) needs no more: with over D tokens the FFN peaks between its layers.
    """
    backbone, length, count = run.backbone, counts.stage_tokens(run), counts.evaluations(run)
    batch = 2 if run.guidance.scale != 1 and run.trainer.guidance_batch else 1  # both branches of guidance at once
    split, context = run.trainer.split, run.trainer.context
    text = 2 * backbone.text_tokens * backbone.text_dim * 4
    # fp32: state, two velocities, their sum; and a copy of the state in the network's precision
    state = math.prod(counts.stage_latent(run)) * (4 * 4 + BYTES[precision] * batch)
    weights = counts.weight_bytes(backbone, run.injector, precision, run.trainer.storage) / split
    blocks = 2 * BYTES[precision] * counts.block_parameters(backbone) if split > 1 else 0  # this block and the next
    if offloads(run):
        block = counts.block_bytes(backbone, precision, run.trainer.storage)
        weights, blocks = weights - backbone.num_layers * block, 2 * block
    injector = counts.injector_bytes(run.injector, backbone, length, precision, context)
    parts = (
        Part("weights", weights, "counted"),
        Part("gathered", blocks, "fake tensors" if offloads(run) else "assumed"),
        Part("working set", batch * counts.inference_bytes(backbone, length // context, precision), "fake tensors"),
        Part("all tokens", batch * counts.unshared_bytes(backbone, length, precision, context), "fake tensors"),
        Part("injector", batch * injector, "fake tensors"),
        Part("attention mask", batch * counts.mask_bytes(run, context), "assumed"),
        Part("latents, text", state + text, "assumed"),
    )
    flops, calls = counts.sampling_flops(run), run.sampling.num_steps if batch == 2 else count
    return Moment(counts.stage_name(run), parts, flops, count, context, *_moving(run, precision, calls))


def _moving(run: Run, precision: Precision, calls: int) -> tuple[float, float]:
    """Seconds in which `calls` of a network copy blocks to the device, while it computes, and in which they cast.

    A layer in fp8 is read and written twice: to be computed, and to be stored again.
    """
    backbone, storage, copying, casting = run.backbone, run.trainer.storage, 0.0, 0.0
    if offloads(run):
        copying = backbone.num_layers * counts.block_bytes(backbone, precision, storage) / HOST_RATE
    if storage == "fp8":
        casting = 2 * (1 + BYTES[precision]) * backbone.num_layers * counts.layer_parameters(backbone) / DEVICE_RATE
    return calls * copying, calls * casting


def coding(run: Run, name: str, size: tuple[int, int], direction: Direction) -> Moment:
    video = (run.codec, run.scale.frames, *size, direction)
    return Moment(name, codec_bytes(*video), Flops(**{direction: codec_flops(*video)}))


def decoding(run: Run) -> Moment:
    """Decoding the video of a run's stage; devices that generate it together share its tiles."""
    size = counts.stage_size(run)
    phase = coding(run, "decode", size, "decode")
    if not isinstance(run.codec, options.WanVAE):
        return phase
    tiles = math.prod(map(len, run.codec.tiles(*size)))
    return replace(phase, devices=tiles / math.ceil(tiles / run.trainer.context))


def with_tile(stages: Stages, memory: float) -> Stages:
    """The stages with the tile that `codec.tile=auto` is on devices of `memory` bytes (D115).

    Of the tiles that fit and whose tensors can be indexed the smallest whose decode takes hardly more time than the
    fastest's; if none fits, the smallest. It depends on the card and the run alone: a call that is repeated makes the
    same video.
    """
    run = last_stage(stages)
    codec, size = run.codec, counts.stage_size(run)
    if not isinstance(codec, options.WanVAE) or codec.tile != "auto":
        return stages
    step = TILE_STEP * codec.factor

    def phase_of(tile: int) -> tuple[options.WanVAE, Moment]:
        choice = replace(codec, tile=tile)
        return choice, decoding(replace(run, codec=choice))

    first = max(2 * step, math.ceil(2 * codec.overlap / step) * step)
    choices = [phase_of(tile) for tile in range(first, max(*size, first) + step, step)]
    fitting = [
        (phase.flops.total / phase.devices, choice.tile)
        for choice, phase in choices
        if phase.fits(memory) and choice.largest_tensor(run.scale.frames, *size) < options.INDEXABLE
    ]
    tile = min((tile for time, tile in fitting if time <= TILE_SLACK * min(fitting)[0]), default=first)
    hires, anchor = (stage and stage.with_values({"codec.tile": tile}) for stage in stages)
    return hires, anchor


def sampling_memory(run: Run, batch_size: int | None = None) -> int:
    """Bytes of CPU memory for clips while a run is sampled, independent of their number.

    A batch in fp32, one clip twice in 8 bits, and the frames under conversion. Also an upper bound for reading the
    evaluation clips. Measured at 2K with 33 frames: 2.3 GB, and 2.7 from shards of 1.5 times the size; the formula
    gives 3.0. Without the network, which is already on the device.
    """
    batch_size = run.sampling.batch_size if batch_size is None else batch_size
    pixels = run.scale.frames * run.scale.height * run.scale.width
    return 3 * pixels * (4 * batch_size + 2) + 24 * min(pixels * batch_size, CONVERSION_PIXELS)
