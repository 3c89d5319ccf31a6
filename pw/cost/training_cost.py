"""The cost of a training: FLOPs of its updates, and memory at the moments of an update."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pw.cost import counts
from pw.cost.codec_cost import codec_bytes, codec_flops
from pw.cost.counts import BYTES, Flops, Moment, Part
from pw.cost.lora_cost import lora_flops, lora_parameters, lora_saved_bytes
from pw.cost.rates import Rates
from pw.io.arguments import ConfigError
from pw.method.mean_flow import MeanFlow
from pw.parallel.team import Share
from pw.run.build import Run
from pw.run.settings import Train


@dataclass(frozen=True)
class TrainingCost:
    """The cost of a training on `gpus` devices.

    flow, consistency  FLOPs of one update of this kind over all its clips, with encoding
    encode             FLOPs of encoding the clips of one update
    split, context     devices that share the weights and their optimiser; that share the tokens of a clip
    share              part of an update's clips that a device, or a group of `context` devices, computes
    host               items in CPU memory for each device
    """

    moments: tuple[Moment, ...]
    trained_parameters: int
    clips: int
    updates: int
    consistency_updates: float
    flow: Flops
    consistency: Flops
    encode: Flops
    gpus: int
    split: int
    context: int
    share: float
    host: tuple[Part, ...]

    @property
    def flops(self) -> Flops:
        """Of all updates."""
        return self.consistency * self.consistency_updates + self.flow * (self.updates - self.consistency_updates)

    @property
    def worst(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.bytes)

    def seconds(self, flops: Flops, rates: Rates) -> float:
        """Wall time of `flops` of the training on all its devices, each of these rates."""
        return rates.seconds(flops) * self.share / self.context


def training_cost(run: Run, gpus: int = 1, context: int | None = None, split: int | None = None) -> TrainingCost:
    """The cost of a whole training on `gpus` devices, which share the micro-batches of an update. Of several buckets
    FLOPs are the mean, by their shares of the batches, and memory is that of the largest.

    context  devices that share a clip's tokens and so compute a micro-batch together; default from the run
    split    devices that shard weights, gradients, optimiser and EMA; default all, with trainer=ddp none, with
             trainer=hsdp the groups of the run
    """
    train = run.train
    context = min(gpus, run.trainer.context) if context is None else context
    if split is None:
        split = min(gpus, run.trainer.split) if run.trainer.strategy in ("ddp", "hsdp") else gpus
    clips, sized = train.accumulate * train.batch_size, run.in_buckets()
    encode, flow, consistency = Flops(), Flops(), Flops()
    for one, weight in sized:
        parts = (encode_flops(one), *update_flops(one))
        encode, flow, consistency = (a + b * weight for a, b in zip((encode, flow, consistency), parts, strict=True))
    host = (
        Part("network as it is made", 4 * network_parameters(run), "counted"),
        Part("offloaded activations", max(offloaded_bytes(one, context) for one, _ in sized), "counted"),
        Part("checkpoint as it is written", checkpoint_copy_bytes(run, split), "counted"),
    )
    return TrainingCost(
        moments=max((training_moments(one, split, context) for one, _ in sized), key=_peak),
        trained_parameters=trained_parameters(run),
        clips=clips,
        updates=train.updates,
        consistency_updates=run.objective.consistency_updates(train.updates),
        flow=(flow + encode) * clips,
        consistency=(consistency + encode) * clips,
        encode=encode * clips,
        gpus=gpus,
        split=split,
        context=context,
        share=share_of_update(train, gpus // context),
        host=tuple(part for part in host if part.bytes),
    )


def _peak(moments: tuple[Moment, ...]) -> float:
    return max(moment.bytes for moment in moments)


def share_of_update(train: Train, shares: int) -> float:
    """The largest part of an update's clips that one of `shares` devices, or groups of devices, computes."""
    try:
        share = Share.of(train, 0, shares)
    except ConfigError:  # a training would refuse this number; whole micro-batches then, and some devices idle
        return math.ceil(train.accumulate / shares) / train.accumulate
    return share.micro_batches * share.clips / (train.accumulate * train.batch_size)


def network_parameters(run: Run) -> int:
    """Parameters of the network in training, with its low-rank adapters."""
    return counts.parameters(run.backbone, run.injector) + lora_parameters(run.train.low_rank, run.backbone)


def network_bytes(run: Run) -> int:
    """Bytes of these parameters: fp32, but with precision=bf16 the layers beside low-rank adapters are in bf16."""
    layers = run.backbone.num_layers * counts.layer_parameters(run.backbone)
    is_lower = run.train.low_rank is not None and run.train.precision == "bf16"
    return 4 * network_parameters(run) - (2 * layers if is_lower else 0)


def trained_parameters(run: Run) -> int:
    """Parameters with a gradient. The stride embedding is frozen under `objective=flow`  (D18)."""
    count = counts.injector_parameters(run.injector, run.backbone)
    count += lora_parameters(run.train.low_rank, run.backbone)
    if run.train.trainable == "all":
        count += counts.transformer_parameters(run.backbone)
    if run.objective.trains_strides:
        count += counts.stride_embedding_parameters(run.backbone)
    return count


def update_flops(run: Run) -> tuple[Flops, Flops]:
    """(flow, consistency) FLOPs of one clip in an update; a backward counts as two forwards.

    With F FLOPs of a forward: flow 3 F, or 4 F with checkpointing, which recomputes the forward; a consistency update
    adds F for each evaluation of its target (`Objective.target_evaluations`), and for an exact derivative attention
    once more: the derivative of a product is two products. A frozen transformer has no weight gradients: minus one
    `linear`. With `train.sizes`, F is the mean over the sizes. Low-rank adapters add theirs to every forward.
    """
    sizes, forwards = run.train.sizes or (1.0,), 4 if run.train.checkpoint_activations else 3
    per_token = counts.has_timestep_per_token(run)
    of_sizes = (counts.stage_flops(run, size, timestep_per_token=per_token) for size in sizes)
    forward = sum(of_sizes, start=Flops()) * (1 / len(sizes))
    flow = forward * forwards
    if run.train.trainable != "all":
        flow = replace(flow, linear=flow.linear - forward.linear)
    tokens = round(sum(counts.stage_tokens(run, size) for size in sizes) / len(sizes))
    adapters = lora_flops(run.train.low_rank, run.backbone, tokens, run.backbone.text_tokens)
    evaluations = run.objective.target_evaluations
    target = (forward + adapters) * evaluations
    if isinstance(run.objective, MeanFlow) and run.objective.derivative == "exact":
        target += Flops(self_attention=forward.self_attention, cross_attention=forward.cross_attention)
    flow += adapters * forwards
    return flow, flow + target


def encode_flops(run: Run) -> Flops:
    """FLOPs of encoding one clip and its anchor; 0 if training reads latents (also for `data=none`)."""
    if not reads_pixels(run):
        return Flops()
    codec, scale = run.codec, run.scale
    clip = codec_flops(codec, scale.frames, *counts.stage_size(run), "encode")
    if run.stage == "anchor" or run.injector is None:
        return Flops(encode=clip)
    if scale.anchor_upsample == "pixel":
        return Flops(encode=2 * clip)
    return Flops(encode=clip + codec_flops(codec, scale.frames, *scale.anchor_size, "encode"))


def reads_pixels(run: Run) -> bool:
    return run.config.choices["data"] not in ("none", "latents")


def checkpoint_copy_bytes(run: Run, split: int | None = None) -> int:
    """Bytes of CPU memory for writing a checkpoint, for each of `split` devices (default from the run).

    A split network is copied to the CPU, so that training continues during the write; an unsplit network is not.
    """
    split = run.trainer.split if split is None else split
    if split == 1:
        return 0
    return math.ceil((2 * network_bytes(run) + 8 * trained_parameters(run)) / split)


def offloaded_bytes(run: Run, context: int | None = None) -> int:
    """Bytes of CPU memory for `trainer.offload_activations` on each device; torch allocates powers of two."""
    if not run.trainer.offload_activations:
        return 0
    total = run.train.batch_size * counts.stage_tokens(run) * run.backbone.width * BYTES[run.train.precision]
    # the input of the first block has all tokens; the block selects the device's share
    first, later = (2 ** math.ceil(math.log2(size)) for size in (total, total // (context or run.trainer.context)))
    return first + (run.backbone.num_layers - 1) * later


def training_moments(run: Run, gpus: int = 1, context: int = 1) -> tuple[Moment, ...]:
    """The moments of an update at which memory may peak: encoding, forward, backward, optimiser step.

    AdamW's step allocates one more number per trained weight (torch's foreach implementation).
    """
    encoding = ()
    if reads_pixels(run):
        encoding = codec_bytes(run.codec, run.scale.frames, *counts.stage_size(run), "encode")
    network, trained = network_bytes(run), trained_parameters(run)
    persistent = (  # fp32 at any precision; gradients accumulate over `accumulate` micro-batches
        Part("weights", network / gpus, "counted"),
        Part("gradients", 4 * trained / gpus, "counted"),
        Part("AdamW", 8 * trained / gpus, "counted"),
        # on one device it shares the frozen weights
        Part("EMA", (network if gpus > 1 else 4 * trained) / gpus, "counted"),
        *(replace(part, name="VAE") for part in encoding if part.name == "weights"),
    )
    forward, backward = _activations(run, gpus, context)
    moments = [
        Moment("forward", (*persistent, *forward)),
        Moment("backward", (*persistent, *backward)),
        Moment("optimiser step", (*persistent, Part("working set", 4 * trained / gpus, "assumed"))),
    ]
    if encoding:
        batch = run.train.batch_size
        batch_parts = (replace(part, bytes=batch * part.bytes) for part in encoding if part.name != "weights")
        moments.insert(0, Moment("encoding", (*persistent, *batch_parts)))
    return tuple(moments)


def _activations(run: Run, gpus: int, context: int) -> tuple[list[Part], list[Part]]:
    train, backbone, precision = run.train, run.backbone, run.train.precision
    total_tokens = train.batch_size * counts.stage_tokens(run)
    length = total_tokens // context  # of this device
    injector = counts.injector_saved_bytes(run.injector, backbone, total_tokens, precision, context)
    # weights cast to bf16: autocast's copies exist until the end of the forward; sharded weights are gathered, cast and
    # freed block by block
    block = counts.block_parameters(backbone)
    pair = 2 * BYTES[precision] * block  # this block and the next, or the gradient of this block
    adapters = lora_saved_bytes(train.low_rank, backbone, length, precision)
    if gpus > 1:
        casts = pair
    elif train.low_rank is not None:  # what is frozen is in bf16 already
        casts = pair = 0
    elif precision == "fp32":
        casts = 0
    else:
        casts = 2 * (counts.parameters(backbone, run.injector) if train.trainable == "all" else block)
    if train.checkpoint_activations:
        saved = length * backbone.width * BYTES[precision]
        saved *= 1 if run.trainer.offload_activations else backbone.num_layers
        forward = counts.inference_bytes(backbone, length, precision)
        backward = counts.block_backward_bytes(backbone, length, precision, train.trainable) + adapters
    else:
        saved = counts.saved_block_bytes(backbone, length, precision, train.trainable) + adapters
        saved *= backbone.num_layers
        forward = backward = 20.4 * length * backbone.width  # embeddings, output head and their gradients, fp32
    timesteps = 0.0
    if counts.has_timestep_per_token(run):
        timesteps = counts.timestep_bytes(backbone, length, precision, checkpoint=train.checkpoint_activations)
    clip = 12 * train.batch_size * run.scale.frames * math.prod(run.scale.size) if reads_pixels(run) else 0

    def parts(working_set: float, cast: float) -> list[Part]:
        return [
            Part("saved", saved, "counted" if train.checkpoint_activations else "fake tensors"),
            Part("working set", working_set, "fake tensors"),
            Part("all tokens", counts.unshared_bytes(backbone, total_tokens, precision, context), "fake tensors"),
            Part("injector", injector, "fake tensors"),
            Part("timesteps", timesteps, "fake tensors"),
            Part("attention mask", train.batch_size * counts.mask_bytes(run, context), "assumed"),
            Part("casts", cast, "assumed"),
            Part("pixels", clip, "counted"),  # the clip in fp32
        ]

    return parts(forward, casts), parts(backward, pair if train.checkpoint_activations else max(casts, pair))
