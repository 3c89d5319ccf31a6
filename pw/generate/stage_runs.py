"""The two stages as runs, from the overrides of a call and of the trainings of their weights."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pw.io.arguments import ConfigError
from pw.io.files import human_size, parse_json
from pw.io.host import free_memory
from pw.io.lazy import torch
from pw.io.paths import OUTPUTS
from pw.parallel.team import current_place
from pw.run.build import Run, build
from pw.run.compose import compose_run, override_key
from pw.train.record import WEIGHTS, weights_of, written_overrides

if TYPE_CHECKING:
    from pw.generate.source_video import SourceVideo

# groups whose overrides for stage II also apply to stage I
SHARED_GROUPS = {"scale", "backbone", "codec", "text", "trainer", "seed", "train"}
# Settings for a small pipeline in Wan's layout at scale=tiny, which has another codec and other sizes.
TINY = (
    *("codec=wan_vae", "text=umt5", "guidance=on", "data=none", "start=none", "scale.anchor_upsample=latent"),
    *("scale.frames=9", "scale.height=128", "scale.width=192", "scale.anchor_height=64", "scale.anchor_width=96"),
)
OWN_CODEC = {"scale=tiny", "scale=small"}
# Wan's defaults, for a stage I that flow matching has trained: a shortcut model's velocities must not be extrapolated.
WAN_SAMPLING = ("solver=unipc", "sampling.grid=wan", "sampling.start=1.0")
FEW_STEPS = ("sampling.num_steps=4",)
# Groups of the configuration of a training that generation needs.
NETWORK_GROUPS = {
    *("scale", "backbone", "codec", "text", "injector", "attention", "schedule"),
    *("objective", "turns", "step_sampler", "weighting", "target"),
}


def has_own_codec(video: Path | None, weights: str | None, overrides: Sequence[str]) -> bool:
    """Whether a video is made at a scale for CPUs as it is trained: by its codec without weights, and without text."""
    return video is not None and weights is None and not OWN_CODEC.isdisjoint(overrides)


def split_overrides(arguments: Sequence[str], own: bool = False) -> tuple[list[str], list[str]]:
    """(overrides of stage II, those of stage I: `anchor.KEY=VALUE`). Raises ConfigError for one that is not allowed.

    own  see `has_own_codec`
    """
    overrides = [argument for argument in arguments if not argument.startswith("anchor.")]
    anchor_overrides = [argument.removeprefix("anchor.") for argument in arguments if argument.startswith("anchor.")]
    for argument in arguments:
        override = argument.removeprefix("anchor.")
        if override.startswith("stage="):
            raise ConfigError(f"{argument}: a video is made by both stages; anchor.KEY=VALUE is for stage I")
        if override.startswith("trainer.weights="):
            raise ConfigError(f"{argument}: use weights=DIR instead")
        if override_key(override).split(".")[0] == "anchors":
            raise ConfigError(
                f"{argument}: stage I makes the anchors; set anchor.KEY=VALUE, or anchors_from=DIR; or "
                "degradation=…, for that of video="
            )
        if own:
            continue
        if override == "text=none":
            raise ConfigError(f"{argument}: a prompt needs an encoder; leave it at umt5")
        if override == "scale=small":
            raise ConfigError(f"{argument}: has no prompts and no VAE; `pw sample` samples it, scale=2k makes videos")
        if override_key(override) == "codec" and override != "codec=wan_vae":
            raise ConfigError(f"{argument}: a video is decoded by Wan's VAE; leave it at wan_vae")
    _check_keys(overrides, anchor_overrides, own)
    return overrides, anchor_overrides


def _check_keys(overrides: Sequence[str], anchor_overrides: Sequence[str], own: bool) -> None:
    """Raises ConfigError for a key that is not in the configuration, before weights and anchors are looked for."""
    common = _scale_overrides(overrides, own)
    compose_run([*common, "stage=hires", *overrides])
    try:
        compose_run([*common, "stage=anchor", *anchor_overrides])
    except ConfigError as error:
        raise error.with_prefix("anchor.") from error


def _scale_overrides(overrides: Sequence[str], own: bool = False) -> list[str]:
    """The scale of both stages, and what it needs to make a video; `own`: see `has_own_codec`."""
    scale = next((o for o in overrides if override_key(o) == "scale"), "scale=2k")
    return [scale, *(["data=none"] if own else TINY if scale == "scale=tiny" else ())]


def stage_source(stage: str, value: str | None, weights: Path | None, outputs: Path | None) -> str:
    """The source of the weights of a stage: a path, `base` (Wan's weights, for stage I) or `random`.

    Raises ConfigError, which says where to get weights.
    """
    if stage == "hires" and value is None and weights is not None:
        raise ConfigError(
            "hires=…: stage II needs trained weights: a checkpoint, an export of `make export`, or a signature under "
            "outputs/train; weights=random needs none, for a trial"
        )
    if stage == "hires" and value == "base":
        raise ConfigError("hires=base: Wan's own weights take no anchor and no stride; give trained weights")
    if value in (None, "random") or (value == "base" and weights is None):
        return "random"
    if value == "base":
        return value
    if re.fullmatch(r"[0-9a-f]{8}", value):
        folder = (outputs or OUTPUTS) / "train" / value
        if not (folder / "done.json").exists():
            raise ConfigError(f"{stage}={value}: {folder} holds no finished training")
        return str(weights_of(folder))
    path = Path(value).expanduser()
    if not path.exists():
        raise ConfigError(f"{stage}={value}: no such file, folder or signature")
    if (path / "pytorch_lora_weights.safetensors").exists() and not (path / "transformer").exists():
        raise ConfigError(
            f"{stage}={value}: an export of adapters alone; `pw export run=… merge=true` writes all weights"
        )
    training = path if path.is_dir() else path.parent
    if training.absolute().parent.name == "train" and (training / "done.json").exists():
        weights_of(training, WEIGHTS if path.is_dir() else path.name)
    return str(path)


def with_training(source: str, overrides: Sequence[str], *, anchors: bool = False) -> list[str]:
    """The overrides, after those that the training of `source`, or its export, used for its network.

    anchors  also its degradation, to make anchors as it did
    """
    groups = NETWORK_GROUPS | ({"degradation"} if anchors else set())
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    export_config = path / "pixelwizard" / "config.json"
    if (folder / "config.yaml").exists():
        training_overrides = written_overrides(folder)
    elif export_config.exists():
        training_overrides = parse_json(export_config.read_text())["overrides"]
    else:
        return list(overrides)
    replaced_keys = {override_key(o) for o in overrides}

    def is_used(override: str) -> bool:
        key = override_key(override)
        group = key.split(".")[0]
        return group in groups and not replaced_keys & {key, group}

    return [*filter(is_used, training_overrides), *overrides]


def stage_runs(
    overrides: Sequence[str], anchor_overrides: Sequence[str], weights: Path | None, frames: int | None
) -> tuple[Run, Run]:
    """(stage II, stage I) as runs, with the sizes of `weights`. Raises ConfigError with the override."""
    common = _common_overrides(overrides, weights, frames)
    shared_overrides = [o for o in overrides if override_key(o).split(".")[0] in SHARED_GROUPS]
    hires = hires_run(overrides, weights, frames)
    objectives = ["objective=flow", *(o for o in anchor_overrides if override_key(o) == "objective")]
    sampling = WAN_SAMPLING if objectives[-1] == "objective=flow" else FEW_STEPS
    try:
        anchor = build(_last_of_each([*common, "stage=anchor", *sampling, *shared_overrides, *anchor_overrides]))
    except ConfigError as error:
        key = str(error).partition("=")[0]
        if key in {override_key(o) for o in (*common, *shared_overrides)}:
            raise
        raise error.with_prefix("anchor.") from error  # the key as the user writes it
    _check_stage("anchor.", anchor)
    for key in ("accelerator", "strategy", "devices", "nodes", "context"):
        expected, actual = getattr(hires.trainer, key), getattr(anchor.trainer, key)
        if expected != actual:
            raise ConfigError(f"anchor.trainer.{key}={actual}: stage II has {expected}")
    return hires, anchor


def hires_run(overrides: Sequence[str], weights: Path | None, frames: int | None, *, own: bool = False) -> Run:
    """Stage II as a run, with the sizes of `weights`; `own`: see `has_own_codec`. Raises ConfigError."""
    common = _common_overrides(overrides, weights, frames, own)
    hires = build(_last_of_each([*common, "stage=hires", *overrides]))
    if hires.injector is None:
        raise ConfigError("injector=none: stage II needs an anchor; choose the injector that it was trained with")
    _check_stage("", hires)
    return hires


def _common_overrides(
    overrides: Sequence[str], weights: Path | None, frames: int | None, own: bool = False
) -> list[str]:
    from pw.io.wan_weights import overrides_of

    sizes = [] if weights is None else [*overrides_of(weights), f"trainer.weights={weights}"]
    if frames is not None:
        sizes.append(f"scale.frames={frames}")
    return [*_scale_overrides(overrides, own), *sizes]


def _last_of_each(overrides: Sequence[str]) -> list[str]:
    """The last override of each key: Hydra accepts only one choice of a group."""
    return list({override_key(o): o for o in overrides}.values())


def _check_stage(prefix: str, run: Run) -> None:
    """Raises ConfigError for a guidance or a trainer that cannot generate from a prompt."""
    if run.guidance.drop != "text":
        raise ConfigError(f"{prefix}guidance.drop={run.guidance.drop}: with a prompt, guidance drops the text")
    if run.scale.anchor_upsample == "pixel" and run.sampling.sizes is not None:
        raise ConfigError(
            f"{prefix}sampling.sizes={list(run.sampling.sizes)}: with scale.anchor_upsample=pixel the VAE would "
            "have to be beside the network; set scale.anchor_upsample=latent"
        )
    if run.trainer.strategy not in ("single", "fsdp"):
        raise ConfigError(
            f"{prefix}trainer={run.config.choices['trainer']}: to generate, trainer=fsdp splits each network over "
            "trainer.devices GPUs; where it fits into one, give each GPU the same call with trainer=gpu"
        )


def check_processes(run: Run) -> None:
    """Select the GPU of this process. Raises ConfigError unless it is alone, or `generate` started it."""
    trainer = run.trainer
    if trainer.strategy == "single":
        return
    if trainer.nodes > 1:
        raise ConfigError(
            f"trainer.nodes={trainer.nodes}: a network is split over the GPUs of one machine; set it to 1"
        )
    place = current_place(trainer)
    if place is not None and place.processes > 1 and not place.is_launched:
        raise ConfigError("trainer=fsdp: starts its processes by itself; call it once, without torchrun or srun")
    if place is not None and trainer.accelerator == "gpu":
        torch.cuda.set_device(place.local_rank)


def check_decoder(run: Run) -> None:
    """Raises ConfigError if the file of a small decoder is not there; its content is read with the other weights."""
    file = getattr(run.codec, "decoder_file", None)
    if file is not None and not Path(file).is_file():
        raise ConfigError(f"codec.decoder_file={file}: no such file; taew2_2.safetensors of TAEHV is one")


def with_tiles(hires: Run, anchor: Run | None) -> tuple[Run, Run | None]:
    """The stages with the tile of `codec.tile=auto`, by the memory of the smallest GPU; on a CPU it stays."""
    if hires.trainer.accelerator != "gpu":
        return hires, anchor
    from pw.cost.generation_cost import with_tile

    devices = range(hires.trainer.devices)
    memory = min(torch.cuda.get_device_properties(device).total_memory for device in devices)
    tiled_hires, tiled_anchor = with_tile((hires, anchor), memory)
    assert tiled_hires is not None
    return tiled_hires, tiled_anchor


def check_memory(hires: Run, anchor: Run | None) -> None:
    """Raises ValueError, with the nearest setting that fits, if the memory of the GPU or of the CPU is too small."""
    if hires.trainer.accelerator != "gpu" or current_place(hires.trainer) is None:  # a launcher needs no GPU memory
        return
    from pw.cost.generation_cost import waiting_bytes
    from pw.cost.verdicts import check_generation

    need, free = max(waiting_bytes(run) for run in (hires, anchor) if run is not None), free_memory()
    if need > free:
        remedy = "leave it out" if hires.trainer.storage == "fp8" else "set trainer.storage=fp8, which takes half, too"
        raise ConfigError(
            f"trainer.offload=group: {human_size(need)} of CPU memory are needed, {human_size(free)} are free; {remedy}"
        )
    check_generation(hires, anchor, torch.cuda.mem_get_info()[0], torch.cuda.device_count())


def check_windows(run: Run, source: SourceVideo) -> None:
    """Raises ConfigError, with the length that fits, if CPU memory is too small for all windows of a video."""
    processes = run.trainer.processes
    if processes > 1 and current_place(run.trainer) is not None:  # what started them has checked for all
        return
    from pw.cost.generation_cost import waiting_bytes, window_bytes

    count, window = len(source.windows), processes * window_bytes(run)
    free = free_memory() - processes * waiting_bytes(run)
    if count == 1 or count * window <= free:
        return
    fitting = max(1, int(free // window))
    seconds = (source.first_frame(fitting - 1) + source.window_frames) / source.fps
    raise ConfigError(
        f"video={source.path}: the latents of its {count} windows need {human_size(count * window)} of CPU memory, "
        f"{human_size(max(0, free))} are free; cut it to {math.floor(10 * seconds) / 10:g} s"
    )
