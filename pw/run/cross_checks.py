"""Checks between the parts of a run. Each raises ConfigError with the key and the remedy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pw.io.arguments import ConfigError
from pw.nn import options
from pw.run.compose import override_key
from pw.run.strategies import as_config_error

if TYPE_CHECKING:
    from pw.run.build import Run


def cross_check(run: Run) -> None:
    """Raises ConfigError when parts of a run do not fit each other."""
    positions = _check_sizes(run)
    _check_trainer(run, math.prod(p // patch for p, patch in zip(positions, run.backbone.patch_size, strict=True)))
    _check_data(run)
    _check_anchor(run)
    _check_objective_and_grid(run)
    _check_guidance(run)
    _check_weights(run)


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
        raise ConfigError(f"backbone.in_channels={backbone.in_channels}: the codec makes {codec.channels} channels")
    size_names = ("anchor_height", "anchor_width") if run.stage == "anchor" else ("height", "width")
    with as_config_error():
        frames = codec.latent_frames(scale.frames)
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
    processes, heads = run.trainer.context, run.backbone.num_attention_heads
    if tokens % processes or heads % processes:
        valid = [n for n in range(1, heads + 1) if not (tokens % n or heads % n or run.trainer.devices % n)]
        raise ConfigError(
            f"trainer.context={processes}: a clip has {tokens} tokens and a block {heads} heads, which that "
            f"number of processes cannot share equally; use {' or '.join(map(str, valid))}"
        )
    if processes > 1 and run.trainer.attention == "flash3":
        raise ConfigError(
            f"trainer.attention={run.trainer.attention}: cannot be computed with trainer.context={processes}; set "
            "trainer.attention to sdpa, cudnn or flash"
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


def _check_objective_and_grid(run: Run) -> None:
    timesteps = run.sampling.timesteps
    if timesteps is not None and (run.sampling.shift is not None or run.sampling.start != 1):
        raise ConfigError("sampling.timesteps: an explicit grid does not use sampling.shift or sampling.start")
    if timesteps is not None and timesteps[0] > run.schedule.num_timesteps:
        raise ConfigError(f"sampling.timesteps={list(timesteps)}: at most N={run.schedule.num_timesteps}")
    for name in ("num_steps", "solution_steps"):
        if (steps := getattr(run.sampling, name)) > run.schedule.num_timesteps:
            raise ConfigError(
                f"sampling.{name}={steps}: more steps than schedule.num_timesteps={run.schedule.num_timesteps}"
            )
    with as_config_error():
        run.objective.check(run.schedule)
    if run.sampling.stride == "grid" and not run.objective.trains_strides:
        raise ConfigError(
            f"sampling.stride=grid: objective={run.config.choices['objective']} never trained a stride, its samples "
            "would look worse than the model is; leave it at auto"
        )


def _check_guidance(run: Run) -> None:
    """Guidance needs a condition to drop that training dropped, too."""
    neutral = {"scale": 1, "drop": "text", "first_steps": None}
    if run.guidance.scale == 1 and (run.config.choices["guidance"] == "on" or vars(run.guidance) != neutral):
        raise ConfigError(
            f"guidance={run.config.choices['guidance']}: at guidance.scale=1 the network is not guided, whatever else "
            "is set; leave guidance at off, or set guidance=on guidance.drop=text_and_anchor and a scale above 1"
        )
    if run.guidance.scale != 1:
        if run.guidance.drop == "text" and run.text is None:
            raise ConfigError(
                f"guidance.drop=text: at scale={run.scale.name} there is only the empty prompt, so guidance would "
                "change nothing; set guidance.drop=text_and_anchor"
            )
        if run.injector is None and run.text is None:
            raise ConfigError(f"guidance.scale={run.guidance.scale}: injector=none has no anchor to drop")
        if run.train.condition_dropout == 0 and run.text is None:
            raise ConfigError(
                f"guidance.scale={run.guidance.scale}: with train.condition_dropout=0 the null branch is never "
                "trained; set train.condition_dropout=0.1"
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
            f"anchors=generated: trains stage I by a recipe of the tiny scale ({' '.join(recipe.overrides)}); with "
            "codec=wan_vae set anchors.stage.overrides=[stage=anchor] anchors.stage.updates=0 (Wan's own), or your own"
        )
    if run.start.name == "none" and run.train.updates == 0 and not run.starts_from_wan:
        raise ConfigError("train.updates=0: with start=none there would be only random weights")


def _near(value: int, unit: int) -> str:
    """The multiples of `unit` next to a value, in words."""
    multiple = value // unit * unit
    return f"{multiple} or {multiple + unit}" if multiple else str(unit)
