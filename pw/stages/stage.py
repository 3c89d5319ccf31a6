"""What both stages are: a velocity network, its EMA, and one update of an objective  (sec. 3.1)."""

from __future__ import annotations

import copy
import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from pw.data import LatentBatch
from pw.data.degradation import Degradation
from pw.data.latents import LatentClips
from pw.data.procedural import generator
from pw.io.wan_weights import locate
from pw.method.objective import Loss
from pw.nn import options
from pw.nn.backbone import Backbone
from pw.nn.codec import SpaceToDepthCodec, WanCodec
from pw.nn.context import groups_of, share_tokens
from pw.nn.networks import compile_blocks, pretrained, use_kernel
from pw.nn.text import TextEncoder
from pw.parallel.sharded import copy_parts, device_type, fill, mesh_of, shard
from pw.parallel.share import Share
from pw.parallel.team import Team
from pw.run.build import Run
from pw.stages.velocity import Condition, integrate, velocity
from pw.types import Velocity

Texts = tuple[Tensor, Tensor] | None  # embeddings of prompts and negative prompts, each [B, tokens, dim]

# One stream of random numbers per purpose, so that none shifts another: arms stay paired whatever they draw.
NOISE, STEPS, DEGRADE, DROPOUT = 2, 3, 4, 5
ALONE = Share(rank=0, processes=1, accumulate=1, batch_size=1)


@dataclass(frozen=True)
class SeededDraws:
    """The randomness of one batch, a pure function of (seed, index): equal in every arm, and after a resume.

    share  the part of the batch that is here: all is drawn for the whole batch, so that the number of processes
           changes nothing
    """

    seed: int
    index: int
    share: Share = ALONE

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal of `like`'s shape, drawn on the CPU: the same on every device."""
        shape = (self.share.whole(len(like)), *like.shape[1:])
        drawn = torch.randn(shape, generator=generator(self.seed, self.index, NOISE))
        return self.share.of_batch(drawn).to(like)

    def uniform(self, batch: int) -> Tensor:
        """[B] in [0, 1), float64."""
        draw = generator(self.seed, self.index, STEPS)
        return self.share.of_batch(torch.rand(self.share.whole(batch), generator=draw, dtype=torch.float64))

    def dropped(self, batch: int, rate: float) -> Tensor:
        """[B] bool: whose condition is dropped, with probability `rate`."""
        draw = generator(self.seed, self.index, DROPOUT)
        return self.share.of_batch(torch.rand(self.share.whole(batch), generator=draw)) < rate

    def degrade(self) -> torch.Generator:
        """For the degradation."""
        return generator(self.seed, self.index, DEGRADE)

    def perturbed(self, degradation: Degradation, latent: Tensor, draw: torch.Generator) -> Tensor:
        """This part's anchor latent with the noise that the degradation adds to the whole batch's."""
        if self.share.parts == 1:
            return degradation.perturb(latent, draw)
        nothing = torch.zeros(1).expand(self.share.whole(len(latent)), *latent.shape[1:])
        return latent + self.share.of_batch(degradation.perturb(nothing, draw)).to(latent)


class Stage(L.LightningModule, ABC):
    """One training of a velocity network. A subclass says what is generated and under which condition.

    `net` is trained, `ema` is what is sampled and exported. Both are in the checkpoint. Weights that are frozen are the
    same tensors in both, unless they are split over processes.
    """

    wall_seconds = cpu_seconds = 0.0  # spent on training it; set by `pw.train.loop`, and nothing at `updates=0`
    passed_over: Sequence[str] = ()  # clips that could not be read, likewise

    def __init__(self, run: Run, start: str | None = None, weights: Path | None = None) -> None:
        """What a start lacks (an injector, say) begins fresh, and all of it without a start.

        start    safetensors of the run it departs from
        weights  folder of Wan's weights, whose transformer it departs from instead
        """
        super().__init__()
        self.run = run
        self.start = start
        self.weights = weights
        self.share = Share.of(run.train)
        self._codec: Any = None
        self._empty: Tensor | None = None
        self.net: Backbone | None = None
        self.ema: Backbone | None = None
        self._averaged = 0  # updates the EMA has seen

    @property
    def codec(self) -> Any:
        """Video <-> latent: Wan's VAE is loaded when it is first asked for, training on latents never does."""
        if self._codec is None:
            choice = self.run.codec
            if isinstance(choice, options.SpaceToDepth):
                self._codec = SpaceToDepthCodec(choice)
            else:
                self._codec = WanCodec.load(choice, locate(self.run.trainer.weights), str(self.device))
        return self._codec

    def configure_model(self) -> None:
        if self.net is not None:  # Lightning may call this more than once
            return
        if self.device_mesh is None:
            self.net = self._made()
        else:
            with torch.device("meta"):
                self.net = Backbone(self.run.backbone, self.run.injector)
        self.net.trainable(self.run.train.trainable)
        if not self.run.objective.trains_strides:  # one stride alone would teach it a constant, and spoil the others
            self.net.stride_embedding.requires_grad_(False)
        if self.run.train.checkpoint_activations:
            self.net.checkpoint_activations(offload=self.run.trainer.offload_activations)
        frozen = {id(p): p for p in self.net.parameters() if not p.requires_grad}
        shared = frozen if self.device_mesh is None else {}  # FSDP2 wants its own
        self.ema = copy.deepcopy(self.net, shared).requires_grad_(False).eval()  # once split, it cannot be copied
        for net in (self.net, self.ema):
            use_kernel(net, self.run.trainer.attention)
        if self.run.trainer.compile:
            for net in (self.net, self.ema):
                compile_blocks(net)
        if self.device_mesh is not None:
            mesh = mesh_of(self.run.trainer)
            for net in (self.net, self.ema):
                shard(net, net.dit.blocks, mesh)
            fill(self.net, self._made() if dist.get_rank() == 0 else None, device_type(self.run.trainer))
            copy_parts(self.ema, self.net)
        if self.run.trainer.context > 1 and self._trainer is not None:  # sampled from, it is one process's
            groups = groups_of(self.run.trainer.context, device_type(self.run.trainer))
            for net in (self.net, self.ema):
                share_tokens(net, groups)

    def _made(self) -> Backbone:
        """The network that the training departs from, whole, on the CPU."""
        # fp32 also under bf16: these are the weights that updates of 1e-5 are added to
        dit = None if self.weights is None else pretrained(self.run.backbone, self.weights, torch.float32)
        torch.manual_seed(self.run.seed)
        with torch.device("cpu"):  # where Lightning would have it drawn on a GPU: the same start everywhere
            net = Backbone(self.run.backbone, self.run.injector, dit)
        if self.start is not None:
            load_start(net, self.start)
        return net

    @abstractmethod
    def prepare(self, clips: Tensor | LatentBatch, draws: SeededDraws) -> tuple[Tensor, Condition]:
        """A batch of clips, in pixels or encoded -> the latent to generate, and its condition.

        Encoded clips are this process's share of a batch. Pixels are all of it, of which the share is kept: what they
        are degraded by is drawn for a batch, and its strongest blur decides the kernel of all.
        Clips in pixels come without captions: their text is the empty prompt's. `make latents` encodes captions.
        """

    def text(self, batch: int) -> Tensor:
        """The empty prompt's embedding, [B, tokens, dim]; zeros at a scale without text encoder."""
        backbone, source = self.run.backbone, self.run.source
        if self.run.text is None:
            return torch.zeros(batch, backbone.text_tokens, backbone.text_dim, device=self.device)
        if self._empty is None:
            self._empty = source.null_text() if isinstance(source, LatentClips) else self._encoded("")
        return self._empty.to(self.device).expand(batch, -1, -1)

    def share_text(self, team: Team) -> None:
        """Encode the empty prompt in the first process alone, before a training: else each process would hold the
        encoder in memory. All must call it."""
        if self.run.text is not None and not isinstance(self.run.source, LatentClips):
            self._empty = team.agreed(self._encoded("") if team.place.is_first else None)

    def _encoded(self, prompt: str) -> Tensor:
        """[tokens, dim], on the CPU: the encoder's 11 GB are needed once, next to a network in training."""
        weights = locate(self.run.trainer.weights)
        dtype = torch.bfloat16 if self.run.trainer.accelerator == "gpu" else torch.float32
        with tempfile.TemporaryDirectory() as cache:
            encoder = TextEncoder(weights, self.run.backbone.text_tokens, Path(cache), "", "cpu", dtype)
            return encoder.encode(prompt).float()

    def velocity(self, net: Backbone, condition: Condition) -> Velocity:
        """The network with all but (state, timestep, stride) bound."""
        return velocity(net, condition, self.run.schedule)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        assert self.net is not None
        assert self.ema is not None
        index = int(batch["index"])
        loss = self.loss(batch["clips"], index, index // self.run.train.accumulate)
        self.last_loss = (loss.term, loss.value.detach())
        # each of those that share tokens has its tokens' part of the gradient, and the mean of all processes is taken
        return loss.value * self.run.trainer.context

    def loss(self, clips: Tensor | LatentBatch, index: int, update: int) -> Loss:
        """The objective on the index-th batch; `update` decides whose turn it is, alike on every rank."""
        assert self.net is not None
        assert self.ema is not None
        draws = SeededDraws(self.run.seed, index, self.share)
        with torch.autocast(clips.device.type, enabled=False):  # data and anchors are those of an fp32 arm
            data, condition = self.prepare(clips, draws)
        null_text = clips.null_text if isinstance(clips, LatentBatch) else None  # the text of pixels is it already
        condition = condition.dropped(draws.dropped(len(data), self.run.train.condition_dropout), null_text)
        velocity = self.velocity(self.net, condition)
        target = getattr(self.run.objective, "target", None)
        uses_ema = target is not None and target.target_network == "ema"
        halves = self.velocity(self.ema, condition) if uses_ema else velocity
        return self.run.objective(velocity, halves, data, self.run.schedule, draws, update)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # here and not on_train_batch_end: once per update, not per accumulated batch, and before any callback saves
        super().optimizer_step(*args, **kwargs)
        self._averaged += 1
        decay = min(self.run.optimizer.ema, (1 + self._averaged) / (10 + self._averaged))
        with torch.no_grad():
            torch._foreach_lerp_(*self._average_and_online, 1 - decay)

    @cached_property
    def _average_and_online(self) -> tuple[Any, Any]:
        """What is averaged, and of what: the same objects once it trains, and to find them is 2 % of a tiny update."""
        assert self.net is not None
        assert self.ema is not None
        pairs = zip(self.ema.parameters(), self.net.parameters(), strict=True)
        apart = [pair for pair in pairs if pair[0] is not pair[1]]
        return [average for average, _ in apart], [online for _, online in apart]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._averaged = int(checkpoint["global_step"])
        # batches are counted by each process for itself, and an update may have taken another number of them
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (batches["total"], batches["current"]):
            counts.update(dict.fromkeys(counts, self._averaged * self.share.micro_batches))

    def configure_optimizers(self) -> Any:
        assert self.net is not None
        o, total = self.run.optimizer, max(1, self.run.train.updates)
        trained = [p for p in self.net.parameters() if p.requires_grad]
        fused = self.run.train.precision == "fp32"  # Lightning clips no gradients of a fused one in mixed precision
        optimizer = torch.optim.AdamW(trained, lr=o.lr, betas=o.betas, weight_decay=o.weight_decay, fused=fused)

        def factor(update: int) -> float:
            warm = min(1.0, (update + 1) / o.warmup) if o.warmup else 1.0
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, update / total)))
            return warm * (o.final_lr + (1 - o.final_lr) * cosine)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def sample(self, noise: Tensor, condition: Condition, away: Tensor | None = None) -> Tensor:
        """noise latent [B, C, F, h, w] -> latent, by the run's solver, grid and guidance, with the EMA weights.

        away  embedding of the negative prompt, [B, tokens, dim]; None drops the anchor alone
        """
        assert self.ema is not None
        everyone = torch.ones(len(noise), dtype=torch.bool)
        null = condition.dropped(everyone)
        if away is not None:
            null = Condition(away, condition.anchor if self.run.guidance.drop == "text" else null.anchor)
        return integrate(self.run, self.ema, noise, condition, null)


def load_start(net: Backbone, path: str) -> None:
    """Weights of a start into a network. The transformer must fit key for key; an injector the start lacks, or has in
    vain, is left. Raises ValueError naming the keys that do not fit."""
    weights = load_file(path)
    own = net.state_dict()
    wrong = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    wrong += [k for k in {**own, **weights} if k.startswith("dit.") and (k in own) != (k in weights)]
    if wrong:
        raise ValueError(f"{path}: does not fit this network at {', '.join(wrong[:5])} ({len(wrong)} keys)")
    net.load_state_dict({k: v for k, v in weights.items() if k in own}, strict=False)
