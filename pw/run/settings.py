"""The settings of a run: sizes, budgets, sampling, devices. Plain data, checked without torch.

`pw.run.strategies.coerce` checks each value against its annotation; `__post_init__` checks values together.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from pw.io.arguments import Range, Seed, check_path
from pw.nn import options
from pw.run.strategies import Constraint

Count = Annotated[int, Constraint(lambda count: count >= 1, "needs at least 1")]
Positive = Annotated[float, Constraint(lambda value: value > 0, "needs to be positive")]
Updates = Range(0, 100_000_000)
NonNegative = Constraint(lambda value: value >= 0, "0 (none) or more")


@dataclass(frozen=True)
class Scale:
    """Sizes of a clip and of its anchor, px.

    anchor_upsample  `latent`: the anchor is encoded at its own size and its latent resized in the injector (sec. 3.3).
                     `pixel`: the anchor is resized to the clip's size, then encoded.
    shift            of the noise schedule, which depends on the number of tokens; anchor_shift: that of stage I
    injector_blocks  indices of the blocks that get the anchor at their input (the authors: the second of 30)
    injector_hidden  channels between the convolutions of the injector, as a fraction of the width
    norm_groups      groups of the injector's GroupNorm
    window           (rows, columns) of tokens that a query sees under `attention=window`
    window_tile      (frames, rows, columns) of tokens in a block of its kernel
    attention_tile   the same of `attention=topk` and `anchor`
    """

    name: str
    frames: Count
    height: Count
    width: Count
    anchor_height: Count
    anchor_width: Count
    anchor_upsample: Literal["latent", "pixel"]
    shift: float
    anchor_shift: float
    injector_blocks: tuple[int, ...]
    injector_hidden: float
    norm_groups: int
    window: tuple[Count, Count]
    window_tile: tuple[Count, Count, Count]
    attention_tile: tuple[Count, Count, Count]

    def __post_init__(self) -> None:
        if self.anchor_height > self.height or self.anchor_width > self.width:
            raise ValueError(
                f"scale.anchor_height={self.anchor_height} x anchor_width={self.anchor_width}: an anchor is no larger "
                f"than the clip, {self.height} x {self.width}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns) of a frame, px."""
        return self.height, self.width

    @property
    def anchor_size(self) -> tuple[int, int]:
        return self.anchor_height, self.anchor_width


@dataclass(frozen=True)
class Train:
    """Length and mode of training. `updates` are optimiser updates, each of accumulate * batch_size clips.

    condition_dropout  share of clips without condition: text and anchor both
    dropout            `both_or_text`: as many again without text alone, which `guidance.drop=text` evaluates
    image_share        share of clips whose first latent frame is given, and no part of the loss (`pw.stages.given`)
    sizes              shares of the full size, one of which each batch has, drawn evenly: [0.5,1,1,1] is a quarter at
                       half size; null: all at full size
    trainable          `adapters`: injector and stride embedding; `lora`: these and low-rank adapters of the transformer
                       (`lora`), whose weights are then in bf16 with precision=bf16; `all`
    """

    updates: Annotated[
        int, Updates, Constraint(lambda updates: updates >= 0, "0 (the start checkpoint as it is) or more")
    ]
    batch_size: Count
    accumulate: Count
    precision: Literal["fp32", "bf16"]
    condition_dropout: Annotated[float, Constraint(lambda p: 0 <= p < 1, "a probability, 0 to below 1")]
    dropout: Literal["both", "both_or_text"]
    image_share: Annotated[float, Constraint(lambda share: 0 <= share <= 1, "a share of the clips, 0 to 1")]
    sizes: tuple[float, ...] | None
    trainable: Literal["all", "adapters", "lora"]
    lora: options.Lora
    checkpoint_activations: bool
    checkpoint_every: Count

    def __post_init__(self) -> None:
        if self.sizes is not None:
            _check_sizes("train.sizes", self.sizes)
        if self.dropout == "both_or_text" and not 0 < self.condition_dropout <= 0.5:
            raise ValueError(
                f"train.condition_dropout={self.condition_dropout}: with train.dropout=both_or_text above 0, e.g. 0.1, "
                "and at most 0.5"
            )

    @property
    def low_rank(self) -> options.Lora | None:
        """The low-rank adapters; None if they are not trained."""
        return self.lora if self.trainable == "lora" else None


def _check_sizes(key: str, sizes: tuple[float, ...]) -> None:
    if not sizes or not all(0 < size <= 1 for size in sizes) or max(sizes) != 1:
        raise ValueError(f"{key}={list(sizes)}: shares of the full size, above 0 to 1, with 1 among them")


@dataclass(frozen=True)
class Optimizer:
    """AdamW, warm-up, cosine decay to `final_lr` * lr, gradients clipped to norm `clip`, and the decay of the EMA."""

    lr: Annotated[Positive, Range(0, 1e39)]  # one that is too large makes a loss that is not finite, which is named
    betas: tuple[float, float]
    weight_decay: Annotated[float, NonNegative]
    clip: Annotated[float, NonNegative]
    warmup: Annotated[int, NonNegative]
    final_lr: Annotated[float, Constraint(lambda share: 0 <= share <= 1, "a share of lr, 0 to 1")]
    ema: float

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in (*self.betas, self.ema)):
            raise ValueError(f"optimizer.betas={list(self.betas)} ema={self.ema}: each 0 to below 1")


@dataclass(frozen=True)
class Sampling:
    """How clips are sampled, and how many.

    grid    `uniform` in u; `wan`: the grid of Wan's scheduler, with integer timesteps
    stride  input of the network: `grid`: the stride of the step; `zero`: the network predicts the flow velocity;
            `auto`: `grid` if the objective trains strides, else `zero`
    sizes   of each step, as shares of the full size, rising to 1, e.g. [0.5,0.5,1,1]; null: all at full size
    init    `noise`, or `anchor`: the grid begins from the anchor, noised to its first timestep, which is trained
    solution_count  number of clips with a many-step solution, to measure the gap to it; null: all. The ceiling of a
            table always uses all
    """

    grid: Literal["uniform", "wan"]
    num_steps: Count
    shift: (
        Annotated[float, Constraint(lambda shift: shift > 0, "a shift is positive; null is the training shift")] | None
    )
    start: Annotated[float, Constraint(lambda u: 0 < u <= 1, "a fraction of the schedule in (0, 1]; 1 is pure noise")]
    timesteps: tuple[float, ...] | None
    stride: Literal["auto", "grid", "zero"]
    sizes: tuple[float, ...] | None
    init: Literal["noise", "anchor"]
    count: Count
    batch_size: Count
    solution_steps: Count
    solution_count: Count | None

    def __post_init__(self) -> None:
        if self.timesteps is not None and len(self.timesteps) != self.num_steps:
            raise ValueError(
                f"sampling.timesteps={list(self.timesteps)}: has {len(self.timesteps)} steps, "
                f"sampling.num_steps={self.num_steps}"
            )
        if self.timesteps is not None and not all(a > b for a, b in pairwise((*self.timesteps, 0.0))):
            raise ValueError(
                f"sampling.timesteps={list(self.timesteps)}: expected falling timesteps above 0 (a final 0 is added), "
                "e.g. [1000,931,818,600]"
            )
        if self.sizes is not None:
            _check_sizes("sampling.sizes", self.sizes)
            if len(self.sizes) != self.num_steps or any(a > b for a, b in pairwise(self.sizes)):
                raise ValueError(
                    f"sampling.sizes={list(self.sizes)}: expected a size for each of the {self.num_steps} steps, "
                    f"rising to 1, e.g. {[0.5] * (self.num_steps // 2) + [1] * (self.num_steps - self.num_steps // 2)}"
                )
        if self.grid == "wan" and (self.timesteps is not None or self.start != 1):
            raise ValueError("sampling.grid=wan: Wan's own grid does not use sampling.timesteps or sampling.start")

    @property
    def solution_clips(self) -> int:
        """Number of clips whose many-step solution is computed."""
        return self.count if self.solution_count is None else min(self.count, self.solution_count)


@dataclass(frozen=True)
class Recipe:
    """Another run that this one needs: its start, or the first stage that makes its anchors.

    overrides  of the other run
    inherit    config groups copied from this run; with a final dot (`scale.`) only overrides of their keys
    shipped    whether to use weights in the repository, if they exist (`pw.run.build.Card`)
    tuning     updates, at learning rate `tuning_lr`, that adapt shipped weights to other data
    """

    name: str
    overrides: tuple[str, ...]
    inherit: tuple[str, ...]
    updates: Annotated[int, Updates]
    seed: Seed
    shipped: bool = False
    tuning: Annotated[int, Constraint(lambda n: n >= 0, "updates; 0 (train from the recipe on other data) or more")] = 0
    tuning_lr: Positive = 1e-3


@dataclass(frozen=True)
class Trainer:
    """Devices, processes, kernels and memory. They change results only by rounding, `storage=fp8` that of the weights.

    strategy        `ddp`: every process has everything; `fsdp`: weights, gradients, AdamW's moments and EMA are split
                    over all processes; `hsdp`: over groups of `shards` processes
    devices         GPUs or CPU processes of a machine, one process each; nodes: machines
    shards          processes that hold one copy of the weights together; null: all processes of a machine
    context         number of processes of a machine that share the tokens of a clip (context parallelism,
                    `pw.nn.backbone`), when its activations are too large for one device
    attention       kernel, with the name that diffusers uses; with `sdpa`, torch chooses. `flash4`: FlashAttention-4 in
                    the place of torch's own `flash`, from the package flash-attn-4
    deterministic   the same training twice is the same bit for bit, also on a GPU, by kernels that are slower
    compile         torch.compile for each block, and for the VAE's decoder in generation; null: in generation on a GPU
                    if its prompts are enough to gain by it, otherwise not
    offload         `group`: to generate and sample, blocks of the network wait in CPU memory and each is on the device
                    while it computes (`pw.nn.placement`)
    storage         `fp8`: to generate and sample, weights of the blocks have 8 bits while they wait, which rounds them
    weights         folder of Wan's weights in diffusers' layout; null: the folder of `pw weights`
    guidance_batch  both branches of guidance in one batch: faster, with twice the activations
    offload_activations  keep the inputs of checkpointed blocks in CPU memory until backward: longer clips fit, at
                    the cost of two copies (needs `train.checkpoint_activations`)
    """

    accelerator: Literal["cpu", "gpu"]
    devices: Annotated[Count, Range(1, 1024)]
    threads: Annotated[Count, Range(1, 4096)]
    attention: Literal["sdpa", "cudnn", "flash", "flash3", "flash4", "sage"]
    compile: bool | None
    guidance_batch: bool
    weights: str | None
    strategy: Literal["single", "ddp", "fsdp", "hsdp"] = "single"
    nodes: Count = 1
    shards: Count | None = None
    context: Count = 1
    offload_activations: bool = False
    deterministic: bool = False
    offload: Literal["none", "group"] = "none"
    storage: Literal["as_computed", "fp8"] = "as_computed"

    def __post_init__(self) -> None:
        try:
            check_path(self.weights or "")
        except ValueError as error:
            raise ValueError(f"trainer.weights={self.weights}: {error}") from None
        if self.strategy == "single" and self.processes != 1:
            raise ValueError(
                f"trainer.devices={self.devices}: trainer={self.accelerator} trains on one device; set trainer=ddp, "
                "fsdp or hsdp for several"
            )
        if self.strategy == "hsdp" and (self.copies < 1 or self.copies * self.split != self.processes):
            raise ValueError(
                f"trainer.shards={self.split}: {self.processes} processes (trainer.devices times trainer.nodes) are "
                "not a multiple of it; trainer.shards=null takes those of a machine"
            )
        if self.devices % self.context:
            valid = [str(n) for n in range(1, self.devices + 1) if not self.devices % n]
            raise ValueError(
                f"trainer.context={self.context}: the {self.devices} processes of a machine (trainer.devices) are not "
                f"a multiple of it; use {' or '.join(valid)}"
            )

    @property
    def inference_only(self) -> str:
        """The overrides that only generation and sampling can have; empty by default."""
        offload = [] if self.offload == "none" else [f"trainer.offload={self.offload}"]
        return " ".join([*offload, *([] if self.storage == "as_computed" else [f"trainer.storage={self.storage}"])])

    @property
    def processes(self) -> int:
        return self.devices * self.nodes

    @property
    def split(self) -> int:
        """Number of processes that share one copy of the weights; 1 if each process has all weights."""
        if self.strategy == "hsdp":
            return self.devices if self.shards is None else self.shards
        return self.processes if self.strategy == "fsdp" else 1

    @property
    def shares(self) -> int:
        """Number of parts of the clips of an update: one for each process, or for each group of `context` processes."""
        return self.processes // self.context

    @property
    def copies(self) -> int:
        return self.processes // max(1, self.split)


@dataclass(frozen=True)
class Tracking:
    """What a training logs while it runs, and how often; it changes no result. `pw.tracking.loggers` has the stores.

    every           updates per point of a curve
    held_out        clips of the held-out loss; 0: none. held_out_every: updates between two, besides the last one
    samples         clips that are sampled while a training runs, as videos; samples_every: updates; 0: never
    """

    every: Count
    held_out: Annotated[int, NonNegative, Range(0, 4096)]
    held_out_every: Count
    samples: Annotated[Count, Range(1, 64)]
    samples_every: Annotated[int, NonNegative]

    def __post_init__(self) -> None:
        if self.samples_every and self.held_out < self.samples:
            raise ValueError(
                f"tracking.samples={self.samples}: the clips are those of tracking.held_out={self.held_out}; raise it"
            )

    def check(self) -> None:
        """Raises ValueError if a package is missing."""

    def close(self, logger: Any, status: str) -> None:
        """End a run. status: success, failed or KILLED"""
        logger.finalize(status)
