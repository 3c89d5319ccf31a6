"""Checks between the parts of a run. Each raises ConfigError with the key and the remedy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pw.io.arguments import ConfigError
from pw.method.coverage import is_trained_timestep
from pw.method.step_sampler import ExponentialIndex
from pw.nn import options
from pw.run.compose import override_key
from pw.run.objective_checks import check_derivative, check_objective
from pw.run.strategies import as_config_error

if TYPE_CHECKING:
    from pw.run.build import Run

DENSE_MASK = 4096  # tokens of a clip, above which a mask of all pairs is too large for a GPU


def cross_check(run: Run) -> None:
    """Raises ConfigError when parts of a run do not fit each other."""
    _check_grid(run)
    for sized, _ in run.in_buckets() if run.mix is not None else ():
        try:
            _check_grid(sized)
            _check_sizes_and_init(sized)
        except ConfigError as error:
            bucket = [sized.scale.frames, *sized.scale.size]
            raise error.with_prefix(f"data.buckets, {bucket} (frames, height, width): ") from error
    _check_placement(run)
    _check_data(run)
    _check_anchor(run)
    _check_lora(run)
    check_objective(run)
    _check_guidance(run)
    _check_sizes_and_init(run)
    _check_weights(run)


def _check_grid(run: Run) -> None:
    """The clips of a run fit codec, network, processes and attention."""
    positions = _check_sizes(run)
    frames, rows, columns = (p // patch for p, patch in zip(positions, run.backbone.patch_size, strict=True))
    _check_trainer(run, frames * rows * columns)
    _check_attention(run, (frames, rows, columns))


def _check_sizes(run: Run) -> list[int]:
    """Latent size [frames, rows, columns] of the generated clip. Raises if codec or patch size do not divide it."""
    scale, backbone, codec = run.scale, run.backbone, run.codec
    for name in ("height", "width", "anchor_height", "anchor_width"):
        if getattr(scale, name) % codec.factor:
            raise ConfigError(
                f"scale.{name}={getattr(scale, name)}: not a multiple of codec.factor={codec.factor}; "
                f"use {_near(getattr(scale, name), codec.factor)}"
            )
    if codec.channels != backbone.in_channels:
        raise ConfigError(
            f"backbone.in_channels={backbone.in_channels}: codec={run.config.choices['codec']} makes {codec.channels} "
            f"channels; set backbone.in_channels={codec.channels}, or the codec of that backbone"
        )
    size_names = ("anchor_height", "anchor_width") if run.stage == "anchor" else ("height", "width")
    with as_config_error():
        frames = codec.latent_frames(scale.frames)
    if run.train.image_share and frames < 2:
        raise ConfigError(
            f"train.image_share={run.train.image_share:g}: scale.frames={scale.frames} is one latent frame, "
            "which leaves nothing to generate; leave it at 0, or set more frames"
        )
    positions = [frames, *(getattr(scale, name) // codec.factor for name in size_names)]
    for name, length, patch in zip(("frames", *size_names), positions, backbone.patch_size, strict=True):
        if length % patch:
            near = "" if name == "frames" else f"; use {_near(getattr(scale, name), codec.factor * patch)}"
            raise ConfigError(
                f"scale.{name}={getattr(scale, name)}: its {length} latent positions are no multiple of patch size "
                f"{patch}{near}"
            )
    if isinstance(codec, options.WanVAE):
        with as_config_error():
            codec.check_decode(scale.frames, *(getattr(scale, name) for name in size_names))
    if max(positions) > backbone.rope_max_seq_len:
        raise ConfigError(
            f"scale={scale.name}: {max(positions)} latent positions in a row, the backbone's rotary table has "
            f"{backbone.rope_max_seq_len}; set backbone.rope_max_seq_len"
        )
    return positions


def _check_trainer(run: Run, tokens: int) -> None:
    """The processes of `trainer.context` divide the `tokens` of a clip and the attention heads equally."""
    if run.trainer.offload_activations and not run.train.checkpoint_activations:
        raise ConfigError(
            "trainer.offload_activations=true: offloads what checkpointed blocks are recomputed from; set "
            "train.checkpoint_activations=true, too"
        )
    _check_tokens(run, tokens, f"trainer.context={run.trainer.context}: a clip")
    if run.trainer.deterministic and run.trainer.attention in ("cudnn", "flash3", "sage"):
        raise ConfigError(
            f"trainer.deterministic=true: trainer.attention={run.trainer.attention} has no backward that is the same "
            "bit for bit; set trainer.attention to sdpa, flash or flash4"
        )
    processes = run.trainer.context
    if processes > 1 and run.trainer.attention == "flash3":
        raise ConfigError(
            f"trainer.attention={run.trainer.attention}: cannot be computed with trainer.context={processes}; set "
            "trainer.attention to sdpa, cudnn or flash"
        )


def _check_tokens(run: Run, tokens: int, beginning: str) -> None:
    """The processes that share a clip divide its tokens."""
    processes, heads = run.trainer.context, run.backbone.num_attention_heads
    if tokens % processes or heads % processes:
        valid = [n for n in range(1, heads + 1) if not (tokens % n or heads % n or run.trainer.devices % n)]
        raise ConfigError(
            f"{beginning} has {tokens} tokens and a block {heads} heads, which {processes} processes (trainer.context) "
            f"cannot share equally; use {' or '.join(map(str, valid))}"
        )


def _check_placement(run: Run) -> None:
    """`trainer.offload` and `trainer.storage` are for one device and the network of a real scale."""
    trainer = run.trainer
    if not (words := trainer.inference_only):
        return
    if run.text is None:
        raise ConfigError(f"{words}: scale={run.scale.name} has a network of a few MB; leave it out, or set scale=2k")
    if trainer.strategy != "single":
        raise ConfigError(
            f"{words}: trainer={run.config.choices['trainer']} keeps weights on its devices and splits them to save "
            "memory; leave it out, or set trainer=gpu"
        )
    if trainer.compile and trainer.storage == "fp8":
        raise ConfigError(
            "trainer.storage=fp8: with trainer.compile=true each cast would cut a block, into 13 graphs; set "
            "trainer.compile=false, or trainer.offload=group instead, which can be compiled"
        )


def check_trains(run: Run, remedy: str = "leave it out to train") -> None:
    """Raises ConfigError for settings that only generation and sampling have, or with which the objective cannot be
    computed."""
    if words := run.trainer.inference_only:
        raise ConfigError(f"{words}: is for generation and sampling; {remedy}")
    check_derivative(run)


def _check_attention(run: Run, grid: tuple[int, int, int]) -> None:
    """Sparse attention fits a clip of `grid` tokens, its anchor and the kernel."""
    attention = run.attention
    if attention is None:
        return
    name, kernel = f"attention={run.config.choices['attention']}", run.trainer.attention
    from pw.nn.token_blocks import block_count, kept_count  # imports numpy

    with as_config_error():
        attention.check(grid)
    if isinstance(attention, options.TopBlocks) and kept_count(attention, grid) == block_count(grid, attention.tile):
        raise ConfigError(
            f"attention.density={attention.density}: of {block_count(grid, attention.tile)} blocks all would be seen; "
            "set a lower one, or attention=dense"
        )
    if isinstance(attention, options.AnchorBlocks) and run.injector is None:
        raise ConfigError(
            f"{name}: stage={run.stage} with injector=none is given no anchor to choose blocks by; set attention=topk"
        )
    if kernel != "sdpa":
        raise ConfigError(
            f"trainer.attention={kernel}: has no sparse attention; with {name} set trainer.attention=sdpa, which on a "
            "GPU is FlexAttention then"
        )
    block = math.prod(attention.tile)
    if run.trainer.accelerator == "gpu" and block % options.FLEX_BLOCK and math.prod(grid) > DENSE_MASK:
        raise ConfigError(
            f"attention.tile={list(attention.tile)}: blocks of {block} tokens, FlexAttention needs a multiple of "
            f"{options.FLEX_BLOCK}; set e.g. attention.tile=[8,4,4]"
        )


def _check_data(run: Run) -> None:
    """Clips have the size of the scale; latents were encoded with the settings of this run."""
    scale, data = run.scale, run.config["data"]
    width_key = "width" if data.get("width") else "size"  # clips without a width are square
    for name, length in (("frames", scale.frames), ("size", scale.height), (width_key, scale.width)):
        if data.get(name, length) != length:
            reason = "" if "width" in data else f", and data={run.config.choices['data']} makes squares"
            raise ConfigError(
                f"data.{name}={data[name]}: the scale has {scale.frames} frames of {scale.height} x {scale.width} px"
                f"{reason}; set scale.frames, scale.height and scale.width, data follows"
            )
    if data.get("captions", "none") != "none":
        from pw.data.procedural import WAVES  # imports numpy

        if run.text is not None or run.backbone.text_dim < len(WAVES):
            raise ConfigError(
                f"data.captions={data['captions']}: a class is a text of its own, one of {len(WAVES)}; leave text at "
                f"none and backbone.text_dim at {len(WAVES)} or more"
            )
    if run.config.choices["data"] == "latents":
        from pw.data.latents import LatentClips, encoding_settings  # slow to import

        assert isinstance(run.source, LatentClips)
        expected = encoding_settings(run.scale, run.codec, run.degradation, run.backbone)
        if run.stage == "hires" and run.injector is None:
            expected.pop("degradation")  # there is no anchor
        with as_config_error():
            run.source.check(expected)


def _check_anchor(run: Run) -> None:
    """A run has an anchor if and only if it has an injector."""
    if run.injector is not None:
        with as_config_error():
            run.injector.check(run.backbone)
    if run.stage == "anchor" and run.injector is not None:
        raise ConfigError(
            f"injector={run.config.choices['injector']}: stage=anchor makes the anchor itself, leave it at none"
        )
    anchors = run.config.choices["anchors"]
    if run.injector is None and anchors != "reference":
        raise ConfigError(
            f"anchors={anchors}: stage={run.stage} with injector=none is given no anchor; leave anchors at reference"
        )
    degradation_overrides = [o for o in run.config.overrides if override_key(o).split(".")[0] == "degradation"]
    if run.stage == "hires" and run.injector is None and degradation_overrides:
        raise ConfigError(f"{degradation_overrides[0]}: with injector=none there is no anchor to degrade; leave it out")
    if run.train.trainable == "adapters" and not isinstance(run.injector, options.Injector):
        raise ConfigError("train.trainable=adapters: without an injector there is nothing to adapt; set injector=gated")


def _check_lora(run: Run) -> None:
    """Low-rank adapters have settings where they are trained; their dropout is the same in every arrangement."""
    lora = run.train.low_rank
    if lora is None:
        for override in run.config.overrides:
            if f"{override_key(override)}.".startswith("train.lora."):
                raise ConfigError(
                    f"{override}: train.trainable={run.train.trainable} has none; set train.trainable=lora"
                )
        return
    with as_config_error():
        lora.check(run.backbone)
    if lora.dropout and (run.trainer.context > 1 or run.trainer.compile):
        key = "context" if run.trainer.context > 1 else "compile"
        raise ConfigError(
            f"train.lora.dropout={lora.dropout:g}: with trainer.{key}={getattr(run.trainer, key)} its masks would not "
            "be those of one process; set it to 0"
        )


def _check_guidance(run: Run) -> None:
    """Guidance needs a condition to drop that training dropped, too."""
    guidance, choice = run.guidance, run.config.choices["guidance"]
    _check_baked(run)
    if run.train.dropout == "both_or_text":
        _check_trained_texts(run, "train.dropout=both_or_text", "train.dropout=both")
    if guidance.scale == 1 and choice != "baked":
        neutral = {"scale": 1, "drop": "text", "first_steps": None, "later": "unguided"}
        if choice != "off" or vars(guidance) != neutral:
            raise ConfigError(
                f"guidance={choice}: at guidance.scale=1 the network is not guided, whatever else is set; leave "
                "guidance at off, or set guidance=on guidance.drop=text_and_anchor and a scale above 1"
            )
    if guidance.scale != 1:
        _check_dropped(run, "guidance.drop", guidance.drop, f"guidance.scale={guidance.scale}")
        _check_first_steps(run)


def _check_dropped(run: Run, key: str, drop: str, reason: str) -> None:
    """The null branch goes without a part of the condition that there is, and that some clips went without."""
    if drop == "text" and not run.has_texts:
        raise ConfigError(
            f"{key}=text: at scale={run.scale.name} there is only the empty prompt, so guidance would change nothing; "
            f"set {key}=text_and_anchor, or data.captions=texture start=guided"
        )
    if run.injector is None and not run.has_texts:
        raise ConfigError(f"{reason}: injector=none has no anchor to drop")
    if run.train.condition_dropout == 0 and run.text is None:
        raise ConfigError(
            f"{reason}: with train.condition_dropout=0 the null branch is never trained; set "
            "train.condition_dropout=0.1"
        )
    if drop == "text" and run.text is None and run.train.dropout == "both" and run.injector is not None:
        raise ConfigError(
            f"{key}=text: with train.dropout=both no clip goes without its text alone; set train.dropout=both_or_text"
        )


def _check_trained_texts(run: Run, words: str, other: str) -> None:
    """Raises ConfigError where training sees the empty prompt alone, so that to drop a text changes nothing."""
    if run.text is not None and not getattr(run.source, "has_captions", True):
        raise ConfigError(
            f"{words}: no clip of data.urls={run.config['data']['urls']} has a caption; set {other}, or make shards "
            "with captions (`pw data path=DIR captions=FILE`)"
        )
    if not run.has_texts:
        raise ConfigError(
            f"{words}: at scale={run.scale.name} there is only the empty prompt; set {other}, or data.captions=texture"
        )


def _check_first_steps(run: Run) -> None:
    first_steps, steps, sizes = run.guidance.first_steps, run.sampling.num_steps, run.sampling.sizes
    if first_steps is None:
        return
    if first_steps >= steps:
        raise ConfigError(
            f"guidance.first_steps={first_steps}: there are {steps} steps, so none is later; set fewer, or guidance=on"
        )
    if run.guidance.later != "reuse" or sizes is None or first_steps > sizes.index(1):
        return
    first = sizes.index(1) + 1
    remedy = f"set {first}, the first at full size" if first < steps else "set guidance=on: one step is at full size"
    raise ConfigError(
        f"guidance.first_steps={first_steps}: guidance.later=reuse takes the difference of a step of the same size; "
        f"{remedy} in sampling.sizes={list(sizes)}"
    )


def _check_baked(run: Run) -> None:
    """`target.guidance` and `guidance=baked` go together."""
    choice, target = run.config.choices["guidance"], run.target_guidance
    if target is None:
        if choice == "baked":
            raise ConfigError(
                "guidance=baked: training puts no guidance into the velocity; set target.guidance=finest "
                "target.guidance_scale=3, or another guidance"
            )
        return
    if choice != "baked" and run.feeds_strides():
        raise ConfigError(
            f"guidance={choice}: target.guidance={target.guidance} has guided the velocity already; set guidance=baked"
        )
    if choice == "baked" and not run.feeds_strides():
        raise ConfigError(
            "guidance=baked: at sampling.stride=zero the network has the velocity of flow matching, which is not "
            "guided; set sampling.stride=auto, or guidance=on"
        )
    _check_dropped(run, "target.guidance_drop", target.guidance_drop, f"target.guidance={target.guidance}")
    if target.guidance_drop == "text":
        _check_trained_texts(run, "target.guidance_drop=text", "target.guidance_drop=text_and_anchor")
    sampler = run.objective.step_sampler
    if target.guidance == "finest" and sampler is not None and not sampler.table(run.schedule).ground.any():
        raise ConfigError(
            "target.guidance=finest: no half of a step is evaluated at stride 0; set step_sampler.ground=true, or "
            "target.guidance=every"
        )


def _check_sizes_and_init(run: Run) -> None:
    """Sizes of steps and batches leave whole tokens; an anchor as the initial state is noised to a trained timestep."""
    for key, sizes in (("sampling", run.sampling.sizes), ("train", run.train.sizes)):
        distinct: dict[tuple[int, int], float] = {}
        words = f"{key}.sizes={list(sizes or ())}"
        for size in sizes or ():
            try:
                rows, columns = run.latent_size(size)
            except ValueError as error:
                raise ConfigError(f"{words}: {error}") from None
            if (other := distinct.setdefault((rows, columns), size)) != size:
                raise ConfigError(f"{words}: {other:g} and {size:g} are the same whole tokens; leave one out")
            frames = run.codec.latent_frames(run.scale.frames)
            tokens = math.prod(
                n // patch for n, patch in zip((frames, rows, columns), run.backbone.patch_size, strict=True)
            )
            _check_tokens(run, tokens, f"{words}: at {size:g} a clip")
    if run.train.sizes is not None and run.config.choices["data"] == "latents":
        raise ConfigError(
            f"train.sizes={list(run.train.sizes)}: encoded clips have one size; leave it out, or set data=shards"
        )
    if run.sampling.init == "anchor":
        _check_init(run)


def _check_init(run: Run) -> None:
    first = run.sampling.timesteps[0] if run.sampling.timesteps else None
    if run.injector is None:
        raise ConfigError(f"sampling.init=anchor: stage={run.stage} with injector=none is given no anchor")
    begins_at_noise = run.sampling.start > 0.99 if first is None else first == run.schedule.num_timesteps
    if run.sampling.grid == "wan" or begins_at_noise:
        raise ConfigError(
            "sampling.init=anchor: the grid begins at pure noise, where nothing is left of the anchor; set a trained "
            "timestep below it, e.g. sampling.num_steps=2 sampling.timesteps=[800,600]"
        )
    sampler = run.objective.step_sampler
    if sampler is None:  # every timestep is trained
        return
    if isinstance(sampler, ExponentialIndex) and first is not None:  # without torch
        timestep, trained = first, sampler.start_timesteps(run.schedule)
        is_trained = any(abs(t - first) <= 1 for t in trained)
    else:
        table, grid = sampler.table(run.schedule), run.grid()[:1]
        starts = table.timestep[table.probability > 0].unique()
        timestep, trained = float(grid), starts.tolist()
        is_trained = is_trained_timestep(grid, starts, run.schedule)
    if not is_trained:
        above = ", ".join(f"{t:g}" for t in sorted(trained)[-8:])
        raise ConfigError(
            f"sampling.init=anchor: begins at timestep {timestep:.0f}, which "
            f"step_sampler={run.config.choices['step_sampler']} does not train; it trains {above}: set "
            "sampling.timesteps=[…] to begin there"
        )


def _check_weights(run: Run) -> None:
    """Raises ConfigError for Wan's weights where none are read, a recipe of the tiny scale at another one, and a run
    without training that has no start weights."""
    if run.trainer.weights is not None and not isinstance(run.codec, options.WanVAE) and not run.starts_from_wan:
        raise ConfigError(
            f"trainer.weights={run.trainer.weights}: scale={run.scale.name} reads none of Wan's weights; leave it out, "
            "or set scale=2k"
        )
    if isinstance(run.codec, options.WanVAE) and run.config.choices["start"] != "none":
        raise ConfigError(
            f"start={run.config.choices['start']}: a recipe of the tiny scale; with codec=wan_vae a training starts "
            "from Wan's own weights: start=none"
        )
    recipe = run.anchor_recipe
    if isinstance(run.codec, options.WanVAE) and recipe and any(o.startswith("optimizer.") for o in recipe.overrides):
        raise ConfigError(
            f"anchors={run.config.choices['anchors']}: trains stage I by a recipe of the tiny scale "
            f"({' '.join(recipe.overrides)}); with codec=wan_vae set anchors.stage.overrides=[stage=anchor] "
            "anchors.stage.updates=0 (Wan's own), or your own"
        )
    if run.start.name == "none" and run.train.updates == 0 and not run.starts_from_wan:
        raise ConfigError("train.updates=0: with start=none there would be only random weights")


def _near(value: int, unit: int) -> str:
    """The multiples of `unit` next to a value, in words."""
    multiple = value // unit * unit
    return f"{multiple} or {multiple + unit}" if multiple else str(unit)
