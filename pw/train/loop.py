"""Train one run to `outputs/train/<signature>/`: resumable, bit-exact, and trained only once.

    pw train stage=hires objective=shortcut seed=1
    pw train trainer=fsdp trainer.devices=8 …    (ddp, fsdp, hsdp: `pw.parallel`)

The folder has `config.yaml`, its curves (`metrics.jsonl`, `diagnostics.jsonl`), `checkpoints/` while it trains, and at
the end `ema.safetensors`, `online.safetensors` and `done.json`; `not_finite/` if a loss was not finite.
Without `done.json` the training continues from its last readable checkpoint, with any number of processes. SIGTERM,
SIGQUIT, SIGUSR1, SIGUSR2, SIGHUP and Ctrl-C end it after the current update, with a checkpoint.

stdout has only the folder, for scripts; what came out and the next commands are on stderr.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pw.io.arguments import Command, ConfigError, option
from pw.io.command_line import command_line
from pw.io.files import check_writable, read_json, remove
from pw.io.lazy import torch
from pw.io.manifest import make_folder
from pw.io.paths import OUTPUTS, silence_libraries
from pw.io.progress import Pace, Progress, ProgressLine, duration, ignore_closed_stream
from pw.io.wan_weights import locate
from pw.parallel.launch import carry_out, exit_with_parent, launch, report, report_mistakes
from pw.parallel.signals import Stopped
from pw.parallel.team import Place, Share, Team, current_place, join_team, prints_for_user
from pw.run.build import Run, build
from pw.stages import import_stages, stage_module
from pw.tracking.loggers import MLflow
from pw.train import record
from pw.train.batches import batches
from pw.train.preflight import check_kernel, preflight
from pw.train.watch import watched

LOCK_SECONDS = 60.0  # between two messages of processes that wait for another runner


def train(run: Run, outputs: Path = OUTPUTS, progress: Progress | None = None, *, is_checked: bool = False) -> Path:
    """Train or continue a run, unless it is done; returns the folder with `ema.safetensors`.

    Trains the start of the run first, if it has one that is not trained. Calls progress(update, updates) during both.
    Starts the processes of a trainer with several devices, unless this is one of them.

    is_checked  whether the caller has called `preflight`

    Raises ConfigError as `preflight` does, ValueError when a start does not fit or when the loss is not finite, and
    Stopped after a signal, when it has saved a checkpoint.
    """
    folder = record.training_folder(run, outputs)
    if run.is_as_trained:
        return folder
    if not is_checked and not record.is_trained(run, outputs):
        preflight(run, outputs)
    place = current_place(run.trainer)  # None: this call starts the processes
    with nullcontext(Team(Place(0, 1))) if place is None else join_team(run.trainer, place) as team:
        if team.broadcast(record.is_trained(run, outputs)):
            return folder
        start = _train_start(run, outputs, progress)
        if start is not None and run.trainer.split > 1:
            gc.collect()  # Lightning keeps a split network on its device, in reference cycles
        make_folder(folder)
        with nullcontext() if place is not None and place.is_launched else training_lock(folder, team):
            if team.broadcast(record.is_trained(run, outputs)):
                return folder
            if place is None:
                arguments = [*run.config.overrides, f"outputs={outputs.absolute()}"]
                command = [sys.executable, "-m", "pw", "train", *arguments]
                launch(command, run.trainer.processes, folder / "logs", progress)
            else:
                _train(run, folder, start, progress, team)
    return folder


def _train_start(run: Run, outputs: Path, progress: Progress | None) -> Path | None:
    """The start weights of a training, trained first if they do not exist; None if it has no start."""
    if run.start_run is None:
        return None
    if run.start_run.card is None:
        train(run.start_run, outputs, progress, is_checked=True)
    return record.start_file(run.start_run, outputs)


@contextmanager
def training_lock(folder: Path, team: Team) -> Generator[None]:
    """Hold the lock of a training. A second runner prints that it waits; afterwards the training is done.

    The first process of a team holds the lock for all. While it waits it sends the others a message every
    `LOCK_SECONDS`, because they treat a process that is silent for long as dead.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")

    def acquire(seconds: float) -> None:
        with suppress(Timeout):
            if team.place.is_first:
                lock.acquire(timeout=seconds)

    try:
        acquire(0)
        if team.place.is_first and not lock.is_locked:
            logging.getLogger("pw").warning("%s is being trained by another process; waiting for it", folder)
        while not team.broadcast(lock.is_locked):
            acquire(LOCK_SECONDS)
        yield
    finally:
        lock.release()


def _train(run: Run, folder: Path, start: Path | None, progress: Progress | None, team: Team) -> None:
    """Train in this process of the team, to the end or until a signal."""
    import_stages()
    from pw.train.callbacks import TrainingCallback

    silence_libraries()
    check_kernel(run)
    place = team.place
    if place.is_first:
        record.write_config(run, folder)
    weights = locate(run.trainer.weights) if run.starts_from_wan else None
    module = stage_module(run, None if start is None else str(start), weights)
    module.share = Share.of(run.train, place.rank // run.trainer.context, run.trainer.shares)
    if run.train.updates == 0:
        if place.is_first:
            module.configure_model()
            record.write_weights(folder, module, team)
            record.write_done(run, folder, module)
        team.wait()
        return
    if run.text is not None:
        module.texts.share(team, folder.parents[1] / "text")
    elif place.is_first and getattr(run.source, "has_captions", False):
        words = f"data.urls={run.config['data']['urls']}: its captions are not used: scale={run.scale.name}"
        logging.getLogger("pw").warning("%s has no text encoder (text=none)", words)
    callback = TrainingCallback(run, folder, progress, team)
    _fit(run, folder, module, callback, team)
    if callback.stop_signal:
        raise Stopped(callback.stop_signal)
    if place.is_first:
        record.write_done(run, folder, module)
        _sync_to_disk(folder / "ema.safetensors", folder / "online.safetensors", folder / "done.json", folder)
        for path in (folder / "checkpoints").glob("*"):
            remove(path)
    signal_number = int(team.maximum(callback.received_signal))
    if signal_number:  # the training is done, but the caller may have more work
        raise Stopped(signal_number)


def _sync_to_disk(*paths: Path) -> None:
    """Flush files and their folder to disk, before the checkpoints that they replace are deleted."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _fit(run: Run, folder: Path, module: Any, callback: Any, team: Team) -> None:
    """Fit a stage with Lightning, from the last checkpoint if there is one."""
    import lightning.pytorch as L

    from pw.parallel.sharded import as_one_file, write_checkpoint
    from pw.parallel.strategy import PlaceEnvironment, check_precision, lightning_strategy
    from pw.tracking.curve_logger import CurveLogger
    from pw.tracking.curves import DIAGNOSTICS
    from pw.train.diagnostics import Diagnostics

    checkpoint, update = team.broadcast(record.last_checkpoint(folder) if team.place.is_first else None) or (None, 0)
    tracking = run.tracking
    diagnostics = [] if tracking is None else [Diagnostics(run, tracking, folder, team)]
    trainer = L.Trainer(
        accelerator=run.trainer.accelerator,
        strategy=lightning_strategy(run.trainer, team.place),
        devices=run.trainer.devices,
        num_nodes=run.trainer.nodes,
        plugins=[PlaceEnvironment(team.place)],
        precision="bf16-mixed" if run.train.precision == "bf16" else "32-true",
        max_steps=run.train.updates,
        accumulate_grad_batches=module.share.micro_batches,
        deterministic=run.trainer.deterministic,
        gradient_clip_val=run.optimizer.clip,
        callbacks=[callback, *diagnostics],
        logger=tracking is not None and CurveLogger(folder / DIAGNOSTICS, update),
        log_every_n_steps=1 if tracking is None else tracking.every,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    check_precision(trainer.precision_plugin)
    if checkpoint is not None and checkpoint.is_dir() and run.trainer.split == 1:  # each process has the whole network
        split_checkpoint, checkpoint = checkpoint, checkpoint.with_name(record.MERGED_CHECKPOINT)
        if team.place.is_first:
            write_checkpoint(as_one_file(split_checkpoint), checkpoint)
        team.wait()
    data = batches(run, update * module.share.micro_batches, module.share)
    trainer.fit(module, data, ckpt_path=checkpoint and str(checkpoint), weights_only=True)
    if run.trainer.offload_activations:
        torch.accelerator.empty_host_cache()  # else the next stage cannot reuse this memory for larger blocks


# ---- the command


def outputs_folder(value: str) -> Path:
    """The folder of `outputs=`. Raises ConfigError when it is not writable."""
    folder = Path(value).expanduser().resolve()
    check_writable("outputs", folder)
    return folder


def results_folder(value: str) -> Path:
    """The folder of `outputs=` for what can do with reading it. Raises ConfigError when it does not exist."""
    folder = Path(value).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"outputs={value}: there is no such folder")
    return folder


@dataclass(frozen=True)
class TrainOptions:
    """`pw train key=value …`: one run."""

    outputs: Path = option(OUTPUTS, "folder of all results", read=outputs_folder)
    overrides: tuple[str, ...] = ()


def checked_run(overrides: Sequence[str], outputs: Path) -> Run:
    """The run of a command's overrides, after `preflight`. Raises ConfigError.

    A process that another one launched does not repeat its checks.
    """
    run = record.with_finished_trainings(build(overrides), outputs)
    place = current_place(run.trainer)
    if place is None or not place.is_launched:
        preflight(run, outputs)
    return run


def run_train(options: TrainOptions) -> int:
    """Exit status: 0 trained, 1 failed, 128 + n stopped by signal n."""
    with report_mistakes():
        run = checked_run(options.overrides, options.outputs)
    exit_with_parent()
    outputs = options.outputs
    return run_training(
        run,
        outputs,
        lambda progress: train(run, outputs, progress, is_checked=True),
        lambda: [*training_summary(run, outputs), "next:", *next_commands(run, outputs)],
    )


def training_summary(run: Run, outputs: Path) -> list[str]:
    """What came of a training, in words: its updates, its time, and the trend of its losses."""
    folder = record.training_folder(run, outputs)
    done, ends = read_json(folder / "done.json") or {}, record.curve_ends(folder)
    ends.pop("step", None)
    losses = [f"  {name} {first:.4g} → {last:.4g}" for name, (first, last) in ends.items()]
    return [f"{folder.name}: {run.train.updates:,} updates{time_of(done)}", *losses]


def time_of(done: Mapping[str, Any]) -> str:
    """` in 12 s`, of a done.json; empty if it does not say."""
    seconds = done.get("wall_seconds")
    return f" in {duration(seconds)}" if isinstance(seconds, int | float) else ""


def next_commands(run: Run, outputs: Path) -> list[str]:
    """The commands that go on from a training, each after two spaces, so that it can be copied."""
    where = outputs_word(outputs)
    signature = record.training_folder(run, outputs).name
    commands = [
        command_line("sample", *run.config.overrides, *where),
        command_line("export", f"run={signature}", *where),
    ]
    if run.text is not None and run.stage == "hires":
        words = (f"scale={run.scale.name}", f"hires={signature}", "prompt=a heron lifts off a misty lake")
        commands.append(command_line("generate", *words, *where))
    if isinstance(run.tracking, MLflow) and (outputs / "mlflow" / "mlflow.db").exists():
        commands.append(command_line("mlflow", *where))
    return [f"  {command}" for command in commands]


def outputs_word(outputs: Path) -> list[str]:
    """`outputs=…`, unless it is the default."""
    return [] if outputs == OUTPUTS else [f"outputs={outputs}"]


def run_training(
    run: Run, outputs: Path, work: Callable[[Progress], Path], summary: Callable[[], Sequence[str]] = lambda: ()
) -> int:
    """Call `work`, which trains, with a progress line; print the folder that it returns. Returns the exit status.

    summary  lines to print before it, on stderr
    """
    progress = TrainingProgress(run)

    def train_and_print() -> None:
        torch.set_num_threads(run.trainer.threads)
        try:
            with watched(run, outputs):
                folder = work(progress)
        finally:
            progress.line.clear()
        if prints_for_user():
            with ignore_closed_stream(sys.stderr):
                print("".join(f"{line}\n" for line in summary()), end="", file=sys.stderr, flush=True)
            print(folder)

    return carry_out(train_and_print, "run the same command again to resume from the last checkpoint, if there is one")


class TrainingProgress:
    """Reports to the process that launched this one, and shows a line with the time left at the pace of this call."""

    def __init__(self, run: Run) -> None:
        self.run_updates, self.prints = run.train.updates, prints_for_user()
        self.line, self.pace, self.updates = ProgressLine(), Pace(), 0

    def __call__(self, update: int, updates: int) -> None:
        report(update=update, updates=updates)
        if updates != self.updates:
            self.updates = updates
            self.pace.restart(update)
        if not self.prints or (not self.line.is_due and update < updates):
            return
        subject = "" if updates == self.run_updates else "its start: "
        time_left = f", about {time_left} left" if (time_left := self.pace.time_left(update, updates)) else ""
        self.line.show(f"{subject}update {update} of {updates}{time_left}", last=update >= updates)


main = Command(TrainOptions, run_train)
