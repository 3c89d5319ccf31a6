"""Train one run to `outputs/train/<signature>/`: resumable, exact, and done once.

    pw train stage=hires objective=shortcut seed=1
    pw train trainer=fsdp trainer.devices=8 …    (ddp, fsdp, hsdp: `pw.parallel`)

The folder of a training has `config.yaml`, `metrics.jsonl` (curves), `checkpoints/` while it runs, and at the end
`ema.safetensors`, `online.safetensors` and `done.json`; `not_finite/` if a loss was not finite (`pw.train.not_finite`).
A folder without `done.json` is continued from its last readable checkpoint, by any number of processes. SIGTERM,
SIGUSR1, SIGUSR2, Ctrl-C and a terminal that closes (SIGHUP) end the training after the current update, with a
checkpoint.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pw.io.files import remove
from pw.io.paths import OUTPUTS, import_for_good, quiet
from pw.io.progress import Progress
from pw.io.wan_weights import locate
from pw.parallel.launch import launch
from pw.parallel.signals import Stopped
from pw.parallel.team import Place, Share, Team, current_place, join_team
from pw.run.build import Run
from pw.train.batches import batches
from pw.train.checkpoint import export, last_checkpoint, merge_shards
from pw.train.preflight import check_kernel, preflight
from pw.train.record import is_trained, start_file, sync_to_disk, training_folder, write_config, write_done

LOCK_SECONDS = 60.0  # of waiting for another runner, after which several processes tell each other that they wait


def import_stages() -> None:
    """Import Lightning and both stages, the first time, see `import_for_good`."""
    if "pw.stages.hires" not in sys.modules:
        import_for_good("pw.stages.anchor", "pw.stages.hires")


def stage_module(run: Run, start: str | None = None, weights: Path | None = None) -> Any:
    """The LightningModule of the run's stage; `start` and `weights` as `Stage` takes them."""
    import_stages()
    from pw.stages.anchor import AnchorModel
    from pw.stages.hires import HiresSynth

    return (AnchorModel if run.stage == "anchor" else HiresSynth)(run, start, weights)


def train(run: Run, outputs: Path = OUTPUTS, progress: Progress | None = None, *, is_checked: bool = False) -> Path:
    """Train, or continue, or return at once if done: the folder with `ema.safetensors`.

    The start that the training departs from is trained first, if need be. progress(update, updates) is called as either
    goes. Several processes are started here, unless this is one of them.

    is_checked  whether the caller has called `preflight`

    Raises ConfigError as `preflight` does, ValueError when a start does not fit or when the loss is not finite, and
    Stopped when a signal came: there is a checkpoint then.
    """
    folder = training_folder(run, outputs)
    if run.is_as_trained:
        return folder
    if not is_checked and not is_trained(run, outputs):
        preflight(run, outputs)
    place = current_place(run.trainer)
    if place is None:
        _launch(run, outputs, progress)
        return folder
    with join_team(run.trainer, place) as team:
        start = _train_start(run, outputs, progress)
        if start is not None and run.trainer.split > 1:
            gc.collect()  # Lightning leaves a split network on its device, and refers to it in circles
        folder.mkdir(parents=True, exist_ok=True)
        with nullcontext() if place.is_launched else training_lock(folder, team):
            if not team.agreed(is_trained(run, outputs)):
                _train(run, folder, start, progress, team)
    return folder


def _launch(run: Run, outputs: Path, progress: Progress | None) -> None:
    """Train by processes that are started here, one for each device."""
    _train_start(run, outputs, progress)
    folder = training_folder(run, outputs)
    folder.mkdir(parents=True, exist_ok=True)
    with training_lock(folder, Team(Place(0, 1))):
        if not is_trained(run, outputs):
            overrides = [*run.config.overrides, f"outputs={outputs.absolute()}"]
            command = [sys.executable, "-m", "pw", "train", *overrides]
            launch(command, run.trainer.processes, folder / "logs", progress)


def _train_start(run: Run, outputs: Path, progress: Progress | None) -> Path | None:
    """The weights that a training departs from, trained if need be; None where it has no start."""
    if run.start_run is None:
        return None
    if run.start_run.shipped is None:
        train(run.start_run, outputs, progress, is_checked=True)
    return start_file(run.start_run, outputs)


@contextmanager
def training_lock(folder: Path, team: Team) -> Generator[None]:
    """Hold a training's lock. A second runner says that it waits, and then finds the training done.

    The first process of a team holds the lock for all. The others hear from it once in `LOCK_SECONDS`, however long it
    waits: a process that is silent for long is taken to be gone.
    """
    from filelock import FileLock

    lock = FileLock(folder / ".lock")
    try:
        is_held = team.place.is_first and _is_acquired(lock, 0)
        if team.place.is_first and not is_held:
            logging.getLogger("pw").warning("%s is being trained by another process; waiting for it", folder)
        while not team.agreed(is_held):
            is_held = team.place.is_first and _is_acquired(lock, LOCK_SECONDS)
        yield
    finally:
        lock.release()


def _is_acquired(lock: Any, seconds: float) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    return True


def _train(run: Run, folder: Path, start: Path | None, progress: Progress | None, team: Team) -> None:
    """Train in this process, one of the team's, to the end or until a signal stops it."""
    import_stages()
    from pw.train.callbacks import callbacks

    quiet()
    check_kernel(run)
    place = team.place
    if place.is_first:
        write_config(run, folder)
    weights = locate(run.trainer.weights) if run.departs_from_wan else None
    module = stage_module(run, None if start is None else str(start), weights)
    module.share = Share.of(run.train, place.rank // run.trainer.context, run.trainer.shares)
    if run.train.updates == 0:
        if place.is_first:
            module.configure_model()
            export(folder, module, team)
            write_done(run, folder, module)
        team.wait()
        return
    module.share_text(team)
    stop, in_order = callbacks(run, folder, progress, team)
    _fit(run, folder, module, in_order, team)
    if stop.stopped_by:
        raise Stopped(stop.stopped_by)
    if place.is_first:
        write_done(run, folder, module)
        sync_to_disk(folder, "ema.safetensors", "online.safetensors", "done.json")
        for path in (folder / "checkpoints").glob("*"):
            remove(path)
    if received := int(
        team.maximum(stop.received)
    ):  # too late for a checkpoint, but there may be more to do after this
        raise Stopped(received)


def _fit(run: Run, folder: Path, module: Any, callbacks: list[Any], team: Team) -> None:
    """Fit a stage by Lightning, from the last checkpoint if there is one."""
    import lightning.pytorch as L
    import torch

    from pw.parallel.strategy import PlaceEnvironment, lightning_strategy

    trainer = L.Trainer(
        accelerator=run.trainer.accelerator,
        strategy=lightning_strategy(run.trainer, team.place),
        devices=run.trainer.devices,
        num_nodes=run.trainer.nodes,
        plugins=[PlaceEnvironment(team.place)],
        precision="bf16-mixed" if run.train.precision == "bf16" else "32-true",
        max_steps=run.train.updates,
        accumulate_grad_batches=module.share.micro_batches,
        gradient_clip_val=run.optimizer.clip,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    checkpoint, update = team.agreed(last_checkpoint(folder) if team.place.is_first else None) or (None, 0)
    if checkpoint is not None and checkpoint.is_dir() and run.trainer.split == 1:
        checkpoint = merge_shards(checkpoint, team)
    data = batches(run, update * module.share.micro_batches, module.share)
    trainer.fit(module, data, ckpt_path=checkpoint and str(checkpoint), weights_only=True)
    if run.trainer.offload_activations:
        torch.accelerator.empty_host_cache()  # which no larger blocks, those of the next stage, could be taken from
