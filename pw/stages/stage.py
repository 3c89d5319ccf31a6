"""The two stages and their base class: a velocity network, its EMA, one update of an objective  (sec. 3.1-3.3)."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from pw.data import Batch, LabelledClips, LatentBatch
from pw.data.degradation import Degradation, resize
from pw.data.procedural import generator
from pw.io.wan_weights import locate
from pw.method.objective import Loss
from pw.method.path import Velocity
from pw.nn import options
from pw.nn.backbone import Backbone, groups_of, share_tokens
from pw.nn.codec import SpaceToDepthCodec, WanCodec
from pw.nn.cosine_codec import LappedCosineCodec
from pw.nn.lora import add_lora, seed_dropout, train_lora
from pw.nn.networks import compile_blocks, pretrained, use_kernel
from pw.parallel.sharded import copy_parts, device_type, fill, mesh_of, shard
from pw.parallel.team import Share
from pw.run.build import Run
from pw.stages.clip_texts import ClipTexts
from pw.stages.given import GivenFrame
from pw.stages.velocity import Condition, integrate, resized, velocity

Texts = tuple[Tensor, Tensor] | None  # embeddings of prompts and negative prompts, each [B, tokens, dim]

# A random stream for each purpose: arms that draw more from one still share all others. The rest are 6 and 7 in
# pw.sample.clip_folders, 8 in pw.generate.denoise and 10 in pw.generate.video_anchors.
NOISE, STEPS, DEGRADE, DROPOUT, SIZE, IMAGE = 2, 3, 4, 5, 9, 11
SINGLE_PROCESS = Share(rank=0, processes=1, accumulate=1, batch_size=1)


@dataclass(frozen=True)
class SeededDraws:
    """The randomness of one batch, a pure function of (seed, index): equal in every arm, and after a resume.

    Each process draws the numbers of the whole batch and uses those of its share.
    """

    seed: int
    index: int
    share: Share = SINGLE_PROCESS

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal of `like`'s shape, drawn on the CPU: the same on every device."""
        shape = (self.share.total_clips(len(like)), *like.shape[1:])
        noise = torch.randn(shape, generator=generator(self.seed, self.index, NOISE))
        return self.share.of_batch(noise).to(like)

    def uniform(self, batch: int) -> Tensor:
        """[B] in [0, 1), float64."""
        rng = generator(self.seed, self.index, STEPS)
        return self.share.of_batch(torch.rand(self.share.total_clips(batch), generator=rng, dtype=torch.float64))

    def dropout_masks(self, batch: int, rate: float, dropout: str = "both") -> tuple[Tensor, Tensor]:
        """(text, anchor), [B] bool each: True where that part of a sample's condition is dropped.

        rate  at which both are; with `both_or_text` the text alone is, too
        """
        rng = generator(self.seed, self.index, DROPOUT)
        drawn = self.share.of_batch(torch.rand(self.share.total_clips(batch), generator=rng))
        return drawn < (2 * rate if dropout == "both_or_text" else rate), drawn < rate

    def images(self, batch: int, share: float) -> Tensor:
        """[B] bool: True where the first frame of a clip is given."""
        rng = generator(self.seed, self.index, IMAGE)
        return self.share.of_batch(torch.rand(self.share.total_clips(batch), generator=rng)) < share

    def size(self, sizes: Sequence[float] | None) -> float:
        """The share of the full size that the batch has, one of `sizes`: the same in every process."""
        if sizes is None:
            return 1.0
        return sizes[int(torch.randint(len(sizes), (), generator=generator(self.seed, self.index, SIZE)))]

    def degrade(self) -> torch.Generator:
        return generator(self.seed, self.index, DEGRADE)

    def perturb(self, degradation: Degradation, latent: Tensor, rng: torch.Generator) -> Tensor:
        """The anchor latents of this share after `perturb`, with their part of the whole batch's noise."""
        if self.share.parts == 1:
            return degradation.perturb(latent, rng)
        zeros = torch.zeros(1).expand(self.share.total_clips(len(latent)), *latent.shape[1:])
        return latent + self.share.of_batch(degradation.perturb(zeros, rng)).to(latent)


class Stage(L.LightningModule, ABC):
    """The training of a velocity network. Subclasses define the latent to generate and its condition (`prepare`).

    `net` is trained; `ema` is sampled and exported; a checkpoint has both. They share the tensors of frozen weights,
    unless weights are sharded over processes.
    """

    wall_seconds = cpu_seconds = 0.0  # of training, set by `pw.train.loop`; 0 at `updates=0`
    tracking_seconds = 0.0  # of them, for what is only shown (`pw.train.diagnostics`)
    passed_over: Sequence[str] = ()  # clips that could not be read, set by `pw.train.loop`

    def __init__(self, run: Run, start: str | None = None, weights: Path | None = None) -> None:
        """start: .safetensors file of initial weights; weights: folder of Wan's, to start from its transformer.

        Modules that are not in the start, such as an injector, are initialised at random.
        """
        super().__init__()
        self.run = run
        self.start = start
        self.weights = weights
        self.share = Share.of(run.train)
        self._codec: Any = None
        self.texts = ClipTexts(run)
        self.net: Backbone | None = None
        self.ema: Backbone | None = None
        self._ema_updates = 0  # updates the EMA has seen

    @property
    def codec(self) -> Any:
        """Video <-> latent. Wan's VAE is loaded at first use: training on latents does not need it."""
        if self._codec is None:
            choice = self.run.codec
            if isinstance(choice, options.SpaceToDepth):
                self._codec = SpaceToDepthCodec(choice)
            elif isinstance(choice, options.LappedCosine):
                self._codec = LappedCosineCodec(choice)
            else:
                self._codec = WanCodec.load(choice, locate(self.run.trainer.weights), str(self.device))
        return self._codec

    def configure_model(self) -> None:
        if self.net is not None:  # Lightning may call this more than once
            return
        if self.device_mesh is None:
            self.net = self._initial_network()
        else:
            with torch.device("meta"):
                self.net = Backbone(self.run.backbone, self.run.injector, attention=self.run.attention)
        self.net.set_trainable(self.run.train.trainable)
        train_lora(self.net, self.run.train.low_rank, self.run.seed, self.run.train.precision)
        if not self.run.objective.trains_strides:  # from stride 0 alone it would learn a constant, wrong elsewhere
            self.net.stride_embedding.requires_grad_(False)
        if self.run.train.checkpoint_activations:
            self.net.checkpoint_activations(offload=self.run.trainer.offload_activations)
        frozen = {id(p): p for p in self.net.parameters() if not p.requires_grad}
        shared = frozen if self.device_mesh is None else {}  # FSDP2 needs separate tensors
        self.ema = copy.deepcopy(self.net, shared).requires_grad_(False).eval()  # a sharded network cannot be copied
        for net in (self.net, self.ema):
            use_kernel(net, self.run.trainer.attention)
        if self.run.trainer.compile:
            for net in (self.net, self.ema):
                compile_blocks(net)
        if self.device_mesh is not None:
            mesh = mesh_of(self.run.trainer)
            for net in (self.net, self.ema):
                shard(net, net.dit.blocks, mesh)
            fill(self.net, self._initial_network() if dist.get_rank() == 0 else None, device_type(self.run.trainer))
            copy_parts(self.ema, self.net)
        if self.run.trainer.context > 1 and self._trainer is not None:  # sampling has one process and no trainer
            groups = groups_of(self.run.trainer.context, device_type(self.run.trainer))
            for net in (self.net, self.ema):
                share_tokens(net, groups)

    def _initial_network(self) -> Backbone:
        """The network at the start of training, not sharded, on the CPU."""
        # fp32 also under bf16: updates of 1e-5 are added to these weights
        dit = None if self.weights is None else pretrained(self.run.backbone, self.weights, torch.float32)
        torch.manual_seed(self.run.seed)
        with torch.device("cpu"):  # not on the GPU, as Lightning would: all machines get the same start
            net = Backbone(self.run.backbone, self.run.injector, dit, self.run.attention)
        if self.start is not None:
            load_start(net, self.start)
        add_lora(net, self.run.train.low_rank, self.run.seed)
        return net

    @abstractmethod
    def prepare(self, clips: Batch, draws: SeededDraws, size: float = 1.0) -> tuple[Tensor, Condition]:
        """A batch of clips, in pixels or encoded -> the latent to generate, and its condition.

        size  share of the full size that the latent has; less than 1 for clips in pixels only

        Encoded clips are this process's share of a batch. Clips in pixels are the whole batch: it is degraded first
        (its strongest blur sets the kernel size) and then cut to the share.
        """

    def encoded(self, pixels: Tensor, size: float) -> Tensor:
        """Clips [B, 3, F, H, W] -> their latents at a share of the full size."""
        rows, columns = self.run.latent_size(size, frame_size(pixels))
        return self.codec.encode(resize(pixels, (rows * self.codec.factor, columns * self.codec.factor), "area"))

    def resized(self, latent: Tensor, size: tuple[int, int]) -> Tensor:
        """The latent at (rows, columns), resized in latent space or in pixels (`scale.anchor_upsample`)."""
        if latent.shape[-2:] == size or self.run.scale.anchor_upsample == "latent":
            return resized(latent, size)
        mode = "bicubic" if size > tuple(latent.shape[-2:]) else "area"
        rows, columns = (length * self.codec.factor for length in size)
        return self.codec.encode(resize(self.codec.decode(latent), (rows, columns), mode))

    def pixels_and_text(self, clips: Tensor | LabelledClips, draws: SeededDraws) -> tuple[Tensor, Tensor]:
        """(the whole batch of clips, the embeddings of the share's texts)."""
        if isinstance(clips, LabelledClips):
            return clips.pixels, self.caption_text(draws.share.of_batch(clips.label))
        return clips, self.text(len(draws.share.of_batch(clips)))

    def caption_text(self, label: Tensor) -> Tensor:
        """The embeddings of captions by their numbers (`LabelledClips`), [B] -> [B, tokens, dim]. Captions of shards
        need a text encoder: at a scale without one they are the empty prompt."""
        if self.run.text is not None:
            return self.texts.of(label).to(self.device)
        return class_text(label, self.run.backbone) if self.run.has_texts else self.text(len(label))

    def text(self, batch: int) -> Tensor:
        """The empty prompt's embedding, [B, tokens, dim]; zeros at a scale without text encoder."""
        backbone = self.run.backbone
        if self.run.text is None:
            return torch.zeros(batch, backbone.text_tokens, backbone.text_dim, device=self.device)
        return self.texts.empty().to(self.device).expand(batch, -1, -1)

    def velocity(self, net: Callable[..., Tensor], condition: Condition) -> Velocity:
        return velocity(net, condition, self.run.schedule)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        index = int(batch["index"])
        loss = self.loss(batch["clips"], index, index // self.run.train.accumulate)
        self.last_loss = loss.detach()
        # gradients are averaged over processes, but those of processes that share tokens must be summed
        return loss.value * self.run.trainer.context

    def loss(self, clips: Batch, index: int, update: int) -> Loss:
        """The objective on the index-th batch; `update`, the same on every rank, chooses the term."""
        assert self.net is not None
        assert self.ema is not None
        draws = SeededDraws(self.run.seed, index, self.share)
        seed_dropout(self.net, draws)
        with torch.autocast(clips.device.type, enabled=False):  # the same data and anchors as in an fp32 arm
            data, condition = self.prepare(clips, draws, draws.size(self.run.train.sizes))
        null_text, train = self.null_text(clips), self.run.train
        masks = draws.dropout_masks(len(data), train.condition_dropout, train.dropout)
        condition = condition.drop(*masks, null_text)
        net, target_net = self.net, self.ema if self.run.objective.uses_ema else self.net
        if train.image_share:
            first = data[:, :, :1], draws.images(len(data), train.image_share), self.run.stage == "anchor"
            net, target_net = (GivenFrame(part, self.run.schedule, *first) for part in (net, target_net))
        velocity = self.velocity(net, condition)
        target = self.velocity(target_net, condition)
        if (guidance := self.run.target_guidance) is not None:
            everywhere = torch.ones(len(data), dtype=torch.bool)
            without_anchor = everywhere if guidance.guidance_drop == "text_and_anchor" else ~everywhere
            null = condition.drop(everywhere, without_anchor, null_text)
            target = guidance.guided(target, self.velocity(target_net, null))
        return self.run.objective(velocity, target, data, self.run.schedule, draws, update)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # here and not on_train_batch_end: once per update, not per accumulated batch, and before any callback saves
        super().optimizer_step(*args, **kwargs)
        self._ema_updates += 1
        decay = min(self.run.optimizer.ema, (1 + self._ema_updates) / (10 + self._ema_updates))
        with torch.no_grad():
            torch._foreach_lerp_(*self._ema_and_online, 1 - decay)

    @cached_property
    def _ema_and_online(self) -> tuple[Any, Any]:
        """Parameters of EMA and network without the shared ones. Cached: listing them takes 2 % of a tiny update."""
        assert self.net is not None
        assert self.ema is not None
        pairs = zip(self.ema.parameters(), self.net.parameters(), strict=True)
        separate = [pair for pair in pairs if pair[0] is not pair[1]]
        return [ema for ema, _ in separate], [online for _, online in separate]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._ema_updates = int(checkpoint["global_step"])
        # Lightning counts batches per process; the checkpoint may have another number of batches per update
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (batches["total"], batches["current"]):
            counts.update(dict.fromkeys(counts, self._ema_updates * self.share.micro_batches))

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

    def null_text(self, clips: Batch) -> Tensor | None:
        """The embedding of the empty prompt for dropped texts; None where all texts are the empty prompt."""
        if isinstance(clips, LabelledClips):
            return self.text(1)[0]
        return clips.null_text if isinstance(clips, LatentBatch) else None

    @torch.no_grad()
    def sample(
        self, noise: Tensor | Sequence[Tensor], condition: Condition, negative_text: Tensor | None = None
    ) -> Tensor:
        """noise latent [B, C, F, h, w] of each phase -> latent, by the run's solver, grid, sizes and guidance, with the
        EMA weights.

        negative_text  embedding of the negative prompt, [B, tokens, dim]; None: only the anchor is dropped
        """
        assert self.ema is not None
        all_samples = torch.ones(len(condition.text), dtype=torch.bool)
        null = condition.drop(all_samples, all_samples)
        if negative_text is not None:
            null = Condition(negative_text, condition.anchor if self.run.guidance.drop == "text" else null.anchor)
        return integrate(self.run, self.ema, noise, condition, null, resized=self.resized)


class AnchorModel(Stage):
    """Stage I: generates clips at the anchor's size, with few tokens: plain flow matching, many steps  (sec. 3.2).

    Its training data are the anchors of stage II: degraded clips, without the latent noise (D11).
    """

    def prepare(self, clips: Batch, draws: SeededDraws, size: float = 1.0) -> tuple[Tensor, Condition]:
        if isinstance(clips, LatentBatch):
            return clips.anchor, Condition(clips.text, anchor=None)
        pixels, text = self.pixels_and_text(clips, draws)
        anchors = self.run.degradation.anchor(pixels, self.run.anchor_size(frame_size(pixels)), draws.degrade())
        return self.encoded(draws.share.of_batch(anchors), size), Condition(text, anchor=None)

    @torch.no_grad()
    def synthesise(self, noise: Tensor | Sequence[Tensor], anchor: Tensor | None, texts: Texts = None) -> Tensor:
        """noise latents [B, …] of the phases, embeddings of prompts and negative prompts -> anchor video in [-1, 1]."""
        text, negative_text = texts or (self.text(len(noise if isinstance(noise, Tensor) else noise[0])), None)
        return self.codec.decode(self.sample(noise, Condition(text, anchor=None), negative_text))


class HiresSynth(Stage):
    """Stage II: generates clips at full size from an anchor latent, through the injector; any objective  (sec. 3.3).

    In training the anchor is the degraded clip itself ("decoupled training", sec. 3.3).
    """

    def prepare(self, clips: Batch, draws: SeededDraws, size: float = 1.0) -> tuple[Tensor, Condition]:
        degradation, rng, anchor = self.run.degradation, draws.degrade(), None
        if isinstance(clips, LatentBatch):
            if self.run.injector is not None:
                anchor = draws.perturb(degradation, clips.anchor, rng)
            return clips.latent, Condition(clips.text, anchor)
        pixels, text = self.pixels_and_text(clips, draws)
        if self.run.injector is not None:
            full = frame_size(pixels)
            small = draws.share.of_batch(degradation.anchor(pixels, self.run.anchor_size(full), rng))
            anchor = draws.perturb(degradation, self.anchor_latent(small, full), rng)
            if self.run.scale.anchor_upsample == "pixel":
                anchor = self.resized(anchor, self.run.latent_size(size, full))
        return self.encoded(draws.share.of_batch(pixels), size), Condition(text, anchor)

    def anchor_latent(self, anchor: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Anchor video [B, 3, F, h, w] -> latent; `scale.anchor_upsample` says whether to resize before the codec, to
        `size` (rows, columns), by default that of the scale."""
        if self.run.scale.anchor_upsample == "pixel":
            anchor = resize(anchor, size or self.run.scale.size, "bicubic")
        return self.codec.encode(anchor)

    @torch.no_grad()
    def synthesise(self, noise: Tensor | Sequence[Tensor], anchor: Tensor | None, texts: Texts = None) -> Tensor:
        """noise latents [B, …] of the phases, anchor latent, embeddings of prompts and negative prompts -> video in
        about [-1, 1]."""
        text, negative_text = texts or (self.text(len(noise if isinstance(noise, Tensor) else noise[0])), None)
        condition = Condition(text, None if self.run.injector is None else anchor)
        return self.codec.decode(self.sample(noise, condition, negative_text))


def frame_size(video: Tensor) -> tuple[int, int]:
    """(rows, columns) of a video [..., H, W]."""
    return video.shape[-2], video.shape[-1]


def class_text(label: Tensor, backbone: options.Wan) -> Tensor:
    """The text embedding of classes [B] -> [B, tokens, dim]: one-hot in every token, of unit mean square, as the
    stand-in for a text encoder. The empty prompt is zeros."""
    one_hot = torch.nn.functional.one_hot(label, backbone.text_dim).float() * backbone.text_dim**0.5
    return one_hot[:, None].expand(-1, backbone.text_tokens, -1)


def load_start(net: Backbone, path: str) -> None:
    """Load the weights of a start. The keys of the transformer must match; an injector in only one of the two is
    ignored. Raises ValueError naming the keys that do not match."""
    weights = load_file(path)
    state = net.state_dict()
    mismatched = [k for k in state if k in weights and state[k].shape != weights[k].shape]
    mismatched += [k for k in {**state, **weights} if k.startswith("dit.") and (k in state) != (k in weights)]
    if mismatched:
        raise ValueError(f"{path}: does not fit this network at {', '.join(mismatched[:5])} ({len(mismatched)} keys)")
    net.load_state_dict({k: v for k, v in weights.items() if k in state}, strict=False)
