"""The parts of a run that are not strategies: sizes, budgets, sampling. Plain data, checked without importing torch.

What one number may be stands in its annotation, which `pw.run.strategies.coerce` checks; what must fit together is
checked here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from pw.run.strategies import Only

Count = Annotated[int, Only(lambda count: count >= 1, "needs at least 1")]
Positive = Annotated[float, Only(lambda value: value > 0, "needs to be positive")]
OrNone = Only(lambda value: value >= 0, "0 (none) or more")


@dataclass(frozen=True)
class Scale:
    """Sizes of a clip and of its anchor, px.

    anchor_upsample  `latent`: the anchor is encoded at its own size and its latent resized in the injector (sec. 3.3).
                     `pixel`: the anchor is resized to the clip's size, then encoded.
    shift            of the noise schedule at this many tokens; anchor_shift of stage I
    injector_blocks  transformer blocks at whose input the anchor enters (the authors: the second of 30)
    injector_hidden  channels between the injector's convolutions, as a share of the width
    norm_groups      of the injector's GroupNorm at this width
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
    """Length and mode of training. `updates` are optimiser updates, each of accumulate * batch_size clips."""

    updates: Annotated[int, Only(lambda updates: updates >= 0, "0 (the start checkpoint as it is) or more")]
    batch_size: Count
    accumulate: Count
    precision: Literal["fp32", "bf16"]
    condition_dropout: Annotated[float, Only(lambda p: 0 <= p < 1, "a probability, 0 to below 1")]
    trainable: Literal["all", "adapters"]
    checkpoint_activations: bool
    checkpoint_every: Count


@dataclass(frozen=True)
class Optimizer:
    """AdamW with warm-up and a cosine to `final_lr` * lr, gradient norm at most `clip`, and the EMA's decay."""

    lr: Positive
    betas: tuple[float, float]
    weight_decay: Annotated[float, OrNone]
    clip: Annotated[float, OrNone]
    warmup: Annotated[int, OrNone]
    final_lr: Annotated[float, Only(lambda share: 0 <= share <= 1, "a share of lr, 0 to 1")]
    ema: float

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in (*self.betas, self.ema)):
            raise ValueError(f"optimizer.betas={list(self.betas)} ema={self.ema}: each 0 to below 1")


@dataclass(frozen=True)
class Sampling:
    """How clips are sampled and how many.

    grid    `uniform` in u; `wan`: that of Wan's scheduler, which gives the network whole timesteps
    stride  the network's input: `grid`, the step's stride; `zero`, for the flow velocity; `auto`, zero if the objective
            trains no stride
    solution_count  clips whose many-step solution is computed, to measure the gap to it; null is all. The ceiling of a
            table has all in any case
    """

    grid: Literal["uniform", "wan"]
    num_steps: Count
    shift: Annotated[float, Only(lambda shift: shift > 0, "a shift is positive; null is the training shift")] | None
    start: Annotated[float, Only(lambda u: 0 < u <= 1, "a fraction of the schedule in (0, 1]; 1 is pure noise")]
    timesteps: tuple[float, ...] | None
    stride: Literal["auto", "grid", "zero"]
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
                f"sampling.timesteps={list(self.timesteps)}: wants falling timesteps above 0 (the final 0 is added), "
                "e.g. [1000,931,818,600]"
            )
        if self.grid == "wan" and (self.timesteps is not None or self.start != 1):
            raise ValueError("sampling.grid=wan: Wan's own grid has no use for sampling.timesteps or sampling.start")

    @property
    def solved(self) -> int:
        """Clips of which the many-step solution is computed."""
        return self.count if self.solution_count is None else min(self.count, self.solution_count)


@dataclass(frozen=True)
class Recipe:
    """Another run that this one needs: a start checkpoint, or the first stage that makes its anchors.

    overrides  of that run
    inherit    config groups copied from the run that needs it; with a final dot only their keys
    shipped    whether to use weights that come with the repository, if there are any (`pw.run.build.Card`)
    tuning     updates, at learning rate `tuning_lr`, to adapt shipped weights to other data
    """

    name: str
    overrides: tuple[str, ...]
    inherit: tuple[str, ...]
    updates: int
    seed: int
    shipped: bool = False
    tuning: Annotated[int, Only(lambda n: n >= 0, "updates; 0 (train from the recipe on other data) or more")] = 0
    tuning_lr: Positive = 1e-3


@dataclass(frozen=True)
class Trainer:
    """Devices and processes, kernels and memory; they change results by rounding alone.

    strategy        how several processes train: `ddp` keeps everything in each, `fsdp` splits weights, gradients,
                    AdamW's moments and the EMA over all of them, `hsdp` over the `shards` of a group of them
    devices         of one machine, a process for each; nodes: machines
    shards          processes that hold one copy together; null is those of a machine
    context         processes of a machine that compute the same clips together, each a part of their tokens: for
                    clips whose activations are too large for one device (context parallelism, `pw.nn.backbone`)
    attention       the kernel: `sdpa` is torch's choice; `cudnn`, `flash`, `flash3`, `sage` and so on are named as
                    diffusers names them
    compile         torch.compile for each block
    weights         folder of Wan's weights in diffusers' layout; null is where `pw weights` puts them
    guidance_batch  both branches of guidance in one batch: faster, for twice the activations
    offload_activations  keep the inputs of checkpointed blocks (`train.checkpoint_activations`) in CPU memory until
                    backward: longer clips fit, at the cost of two copies
    """

    accelerator: Literal["cpu", "gpu"]
    devices: Count
    threads: Count
    attention: Literal["sdpa", "cudnn", "flash", "flash3", "sage"]
    compile: bool
    guidance_batch: bool
    weights: str | None
    strategy: Literal["single", "ddp", "fsdp", "hsdp"] = "single"
    nodes: Count = 1
    shards: int | None = None
    context: Count = 1
    offload_activations: bool = False

    def __post_init__(self) -> None:
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
            would_do = [str(n) for n in range(1, self.devices + 1) if not self.devices % n]
            raise ValueError(
                f"trainer.context={self.context}: the {self.devices} processes of a machine (trainer.devices) are not "
                f"a multiple of it; {' or '.join(would_do)} would do"
            )

    @property
    def processes(self) -> int:
        return self.devices * self.nodes

    @property
    def split(self) -> int:
        """Number of processes that one copy of the weights is split over; 1 if each has all weights."""
        if self.strategy == "hsdp":
            return self.devices if self.shards is None else self.shards
        return self.processes if self.strategy == "fsdp" else 1

    @property
    def shares(self) -> int:
        """Number of parts that an update's clips are divided into: processes, or groups that share clips."""
        return self.processes // self.context

    @property
    def copies(self) -> int:
        return self.processes // max(1, self.split)
