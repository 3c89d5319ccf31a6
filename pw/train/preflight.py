"""Checks before a training starts: data, weights, device, attention kernel, memory, disk.

A caller that starts work (`pw train`, the runner of an ablation, `train`) calls `preflight` once, before anything slow.
Only `check_kernel` computes something; each process calls it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from pw.cost.training_cost import (
    checkpoint_copy_bytes,
    network_bytes,
    network_parameters,
    offloaded_bytes,
    trained_parameters,
)
from pw.data import NO_DATA, Unset
from pw.io.arguments import ConfigError
from pw.io.files import check_space, check_writable
from pw.io.host import free_memory, may_have_gpu
from pw.io.lazy import torch
from pw.io.paths import OUTPUTS
from pw.io.wan_weights import check, locate
from pw.nn import options
from pw.parallel.team import Share, check_launch, current_place
from pw.run.build import Run
from pw.run.cross_checks import check_trains
from pw.run.strategies import as_config_error
from pw.stages import network_of
from pw.train.record import is_trained, training_folder

WITHOUT_GRADIENT = ("flash3", "sage")  # attention kernels, as diffusers calls them


def preflight(run: Run, outputs: Path = OUTPUTS, *, on_this_machine: bool = True) -> None:
    """Check everything that would stop a training, or the training of its start, before the first update.

    on_this_machine  False: another machine trains, so its devices, memory and processes are not checked

    Raises ConfigError with the key and a value to set.
    """
    if on_this_machine:
        check_device(run)  # first, because it is quick; also of a trained one, because sampling may follow
    check_share(run)
    if is_trained(run, outputs):
        return
    if run.train.updates:
        check_trains(run)
    if isinstance(run.source, Unset):
        raise ConfigError(NO_DATA)
    check_weights(run)
    if run.trainer.attention in WITHOUT_GRADIENT and run.train.updates:
        raise ConfigError(
            f"trainer.attention={run.trainer.attention}: is for sampling, it has no gradient; to train set "
            "trainer.attention to sdpa, cudnn or flash"
        )
    if on_this_machine:
        if current_place(run.trainer) is None:
            check_launch(run.trainer)
        _check_host_memory(run)
    if run.tracking is not None:
        with as_config_error():
            run.tracking.check()
    check_writable("outputs", outputs)
    _check_disk(run, training_folder(run, outputs))
    if run.start_run is not None and run.start_run.card is None:
        preflight(run.start_run, outputs, on_this_machine=on_this_machine)


def check_share(run: Run) -> None:
    """Raises ConfigError when several processes cannot compute the same update as one process."""
    if Share.of(run.train, 0, run.trainer.shares).parts > 1 and run.objective.depends_on_batch:
        raise ConfigError(
            "weighting.normalise=batch: weighs a clip by the others of its batch, and trainer.devices="
            f"{run.trainer.devices} cuts batches of train.batch_size={run.train.batch_size} into parts; set "
            f"weighting.normalise=expected, or train.accumulate={run.trainer.processes}"
        )


def check_weights(run: Run) -> Path | None:
    """The folder of Wan's weights, after a check of the files that a training needs; None if it needs none.

    Raises ConfigError when a file is missing or damaged, or its sizes are not those of the run.
    """
    parts = ["transformer"] if run.starts_from_wan else []
    if isinstance(run.codec, options.WanVAE) and run.config.choices["data"] != "latents":
        parts += ["vae"] if run.text is None else ["vae", "text_encoder", "tokenizer"]
    elif isinstance(run.codec, options.WanVAE) and run.tracking is not None and run.tracking.samples_every:
        parts += ["vae"]
    if not parts:
        return None
    with as_config_error():
        folder = locate(run.trainer.weights)
        check(folder, parts)
        if run.starts_from_wan:
            run.backbone.check(json.loads((folder / "transformer" / "config.json").read_text()), folder)
    return folder


def check_device(run: Run) -> None:
    """Raises ConfigError when the run needs more GPUs than there are."""
    if run.trainer.accelerator == "gpu":
        # without a driver torch, whose import takes seconds, need not be asked
        if not ("torch" in sys.modules or may_have_gpu()) or not torch.cuda.is_available():
            remedy = "trainer=cpu" if run.trainer.strategy == "single" else "trainer.accelerator=cpu"
            raise ConfigError(f"trainer={run.config.choices['trainer']}: torch sees no CUDA device here; set {remedy}")
        if torch.cuda.device_count() < run.trainer.devices:
            raise ConfigError(
                f"trainer.devices={run.trainer.devices}: torch sees {torch.cuda.device_count()} CUDA devices here; "
                "set trainer.devices to that"
            )


def check_kernel(run: Run) -> None:
    """Compute a small example with the attention kernel. Raises ValueError when it is wrong or fails on this machine.

    First, torch is told whether to use deterministic kernels, for the training that follows.
    """
    from pw.nn import networks

    if run.trainer.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA is used; Lightning would be too late
    torch.use_deterministic_algorithms(run.trainer.deterministic)
    trains = run.train.precision if run.train.updates else None
    networks.check_kernel(network_of(run), "cuda" if run.trainer.accelerator == "gpu" else "cpu", trains)


def _check_disk(run: Run, folder: Path) -> None:
    """Raises ConfigError unless three checkpoints (the third is being written) and two files of weights fit."""
    network, trained = network_bytes(run), trained_parameters(run)
    average = network if run.trainer.split > 1 else 4 * trained  # it shares frozen weights, unless they are split
    checkpoint = network + average + 8 * trained
    need = 8 * network_parameters(run) + (3 * checkpoint if run.train.updates > run.train.checkpoint_every else 0)
    check_space("outputs", folder, need, "free some, or set outputs=DIR elsewhere", "for checkpoints and weights")


def _check_host_memory(run: Run) -> None:
    """Raises ConfigError unless the CPU memory for `trainer.offload_activations` is free."""
    if not run.trainer.offload_activations:
        return
    devices, split = run.trainer.devices, run.trainer.split
    checkpoint = min(devices, split) * checkpoint_copy_bytes(run)  # only one of several copies is written
    offloaded = max(offloaded_bytes(sized) for sized, _ in run.in_buckets())
    need, free = devices * offloaded + checkpoint, free_memory()
    if need > free:
        note = f", {checkpoint / 1e9:.3g} GB of them for a checkpoint as it is written" if checkpoint else ""
        raise ConfigError(
            f"trainer.offload_activations=true: {need / 1e9:.3g} GB of CPU memory are needed{note}, {free / 1e9:.3g} "
            "GB are free; set it to false, or fewer scale.frames"
        )
