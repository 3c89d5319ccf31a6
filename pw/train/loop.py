"""Train one run to `outputs/train/<signature>/`: resumable, exact, and done once.

    pw train stage=hires objective=shortcut seed=1
    pw train trainer=fsdp trainer.devices=8 …    (ddp, fsdp, hsdp: `pw.parallel.processes`)

A folder holds `config.yaml`, `metrics.jsonl` (curves), `checkpoints/` while it runs, and at the end `ema.safetensors`,
`online.safetensors` and `done.json`; `not_finite/` if a loss was (`pw.train.not_finite`). A folder without `done.json`
is continued from its last readable checkpoint, by any number of processes. SIGTERM, SIGUSR1, SIGUSR2,
Ctrl-C and a terminal that closes (SIGHUP) end the update that is going on and write a checkpoint.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from pw.io.files import remove
from pw.io.imports import import_for_good, quiet
from pw.io.paths import OUTPUTS
from pw.io.progress import Progress
from pw.parallel import processes as parallel
from pw.run.build import Run
from pw.train.batches import batches, clips
from pw.train.checkpoint import KEPT, _as_one_file, export, last_checkpoint
from pw.train.not_finite import FOLDER, Found, Losses, write
from pw.train.preflight import (
    _check_kernel,
    check_attention,
    check_device,
    check_disk,
    check_host_memory,
    check_share,
    check_weights,
)
from pw.train.record import is_trained, on_disk, start_file, training_folder, write_config, write_done

CURVE_EVERY = 10  # updates per line of metrics.jsonl
TURN = 60.0  # seconds of waiting for another runner, after which several processes say to each other that they wait


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


def train(run: Run, outputs: Path = OUTPUTS, progress: Progress | None = None) -> Path:
    """Train, or continue, or return at once if done: the folder with `ema.safetensors`.

    Trains the start it departs from first, if need be. progress(update, updates) is called as either goes. Several
    processes are started here, unless this is one of them.
    Raises ValueError when a start does not fit, when Wan's weights are wanting, or when the loss is not finite, and
    Stopped when a signal came: the checkpoint is there.
    """
    folder = training_folder(run, outputs)
    if run.is_as_trained:
        return folder
    weights = None
    if not is_trained(run, outputs):
        weights = check_weights(run)
        check_attention(run)
    check_share(run)
    place = parallel.place(run.trainer)
    if place is None:
        if not is_trained(run, outputs):
            parallel.check_launch(run.trainer)
        _train_start(run, outputs, progress)
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, parallel.Team(parallel.Place(0, 1))):
            if not is_trained(run, outputs):
                check_device(run)
                command = [
                    sys.executable,
                    *("-m", "pw", "train"),
                    *run.config.overrides,
                    f"outputs={outputs.absolute()}",
                ]
                parallel.launch(command, run.trainer.processes, folder / "logs", progress)
        return folder
    with parallel.joined(run.trainer, place) as team:
        start = _train_start(run, outputs, progress)
        if start is not None and run.trainer.split > 1:
            gc.collect()  # Lightning leaves a split network on its device, and refers to it in circles
        folder.mkdir(parents=True, exist_ok=True)
        with nullcontext() if place.is_launched else _alone(folder, team):
            if not team.agreed(is_trained(run, outputs)):
                _train(run, folder, None if start is None else str(start), weights, progress, team)
    return folder


def _train_start(run: Run, outputs: Path, progress: Progress | None) -> Path | None:
    """The weights that a training departs from, trained if need be; None where it has no start."""
    if run.start_run is None:
        return None
    if run.start_run.shipped is None:
        train(run.start_run, outputs, progress)
    return start_file(run.start_run, outputs)


@contextmanager
def _alone(folder: Path, team: parallel.Team) -> Generator[None]:
    """Hold a training's lock: a second runner waits, which it says, then finds it done.

    Of several processes the first holds it for all. The others hear of it again and again, however long it waits: one
    that is silent for long is taken to be gone.
    """
    from filelock import FileLock

    lock = FileLock(folder / ".lock")
    try:
        is_held = team.place.is_first and _is_acquired(lock, 0)
        if team.place.is_first and not is_held:
            logging.getLogger("pw").warning("%s is being trained by another process; waiting for it", folder)
        while not team.agreed(is_held):
            is_held = team.place.is_first and _is_acquired(lock, TURN)
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


def _train(
    run: Run, folder: Path, start: str | None, weights: Path | None, progress: Progress | None, team: parallel.Team
) -> None:
    import_stages()
    import lightning.pytorch as L
    import torch

    from pw.parallel.sharded import Placed, strategy

    quiet()
    check_device(run)
    _check_kernel(run)
    place = team.place
    if place.is_first:
        check_disk(run, folder)
        check_host_memory(run)
        write_config(run, folder)
    module = stage_module(run, start, weights if run.departs_from_wan else None)
    module.share = parallel.Share.of(run.train, place.rank // run.trainer.context, run.trainer.shares)
    keeper = _keeper(run, folder, progress, team)
    if run.train.updates == 0:
        if place.is_first:
            module.configure_model()
            export(folder, module, team)
            write_done(run, folder, module)
        team.wait()
        return
    module.share_text(team)
    trainer = L.Trainer(
        accelerator=run.trainer.accelerator,
        strategy=strategy(run.trainer, place),
        devices=run.trainer.devices,
        num_nodes=run.trainer.nodes,
        plugins=[Placed(place)],
        precision="bf16-mixed" if run.train.precision == "bf16" else "32-true",
        max_steps=run.train.updates,
        accumulate_grad_batches=module.share.micro_batches,
        gradient_clip_val=run.optimizer.clip,
        callbacks=[keeper],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    resume = team.agreed(last_checkpoint(folder) if place.is_first else None)
    if resume is not None and resume[0].is_dir() and run.trainer.split == 1:
        resume = (_as_one_file(resume[0], team), resume[1])
    first = 0 if resume is None else resume[1] * module.share.micro_batches
    checkpoint = None if resume is None else str(resume[0])
    trainer.fit(module, batches(run, first, module.share), ckpt_path=checkpoint, weights_only=True)
    if run.trainer.offload_activations:
        torch.accelerator.empty_host_cache()  # which no larger blocks, those of the next stage, could be taken from
    if keeper.stopped_by:
        raise parallel.Stopped(keeper.stopped_by)
    if place.is_first:
        write_done(run, folder, module)
        on_disk(folder, "ema.safetensors", "online.safetensors", "done.json")
        for path in (folder / "checkpoints").glob("*"):
            remove(path)
    if told := int(team.most(keeper.told)):  # too late for a checkpoint, but there may be more to do after this
        raise parallel.Stopped(told)


def _keeper(run: Run, folder: Path, progress: Progress | None, team: parallel.Team) -> Any:
    """The callback that keeps curves and checkpoints, reports progress, and stops: at a loss that is not finite, or
    when a signal came to any of the processes, which then end the same update."""
    import lightning.pytorch as L
    import torch

    partial, last, previous = (folder / "checkpoints" / f"{name}.ckpt" for name in ("partial", *KEPT))

    class Keeper(L.Callback):
        stopped_by = 0
        passed_before: Sequence[str] = ()
        is_writing = False  # whether there is a checkpoint that has yet to be given its name

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.strategy = trainer.strategy
            self.began, self.cpu_began = time.perf_counter(), time.process_time()
            self.before: tuple[float, float] = getattr(pl_module, "_spent", (0.0, 0.0))
            self.share = pl_module.share
            self.curve: list[dict[str, float]] = []
            self.losses: dict[str, list[Any]] = {}
            self.micro_batches: list[Any] = []
            self.recent: list[tuple[int, str, Any]] = []  # (update, term, its losses here) since the last look at them

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.before = getattr(pl_module, "_spent", self.before)  # a network that is split is restored late
            self.losses = {term: list(values) for term, values in getattr(pl_module, "_losses", {}).items()}
            self.done = trainer.global_step
            if team.place.is_first:
                _truncate(folder / "metrics.jsonl", self.done)
                remove(folder / "checkpoints" / "whole.ckpt")
            self.told = 0
            if threading.current_thread() is threading.main_thread():
                # Lightning's own, set before, deadlock where there are several processes; at the end, and after a
                # failure, it puts back those that were there before its own
                for number in parallel.heeded():
                    signal.signal(number, self.hear)
            # its question whether one of them came waits, before each micro-batch, until the GPU has nothing left to do
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

        def hear(self, number: int, frame: Any) -> None:
            if self.told and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.told = number  # no more than that: a handler may interrupt anything

        def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            pl_module._spent = tuple(checkpoint["pw_spent"])
            pl_module._losses = checkpoint.get("pw_losses", {})  # none in those written before it could be stopped
            self.passed_before = checkpoint.get("pw_passed_over", [])

        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            checkpoint["pw_spent"] = list(self.spent())
            checkpoint["pw_losses"] = self.means()
            checkpoint["pw_passed_over"] = self.passed_over()
            checkpoint["pw_signature"] = run.training_signature

        def spent(self) -> tuple[float, float]:
            wall, cpu = time.perf_counter() - self.began, time.process_time() - self.cpu_began
            return self.before[0] + wall, self.before[1] + team.total(cpu)

        def passed_over(self) -> list[str]:
            """Clips that could not be read by any of the processes, nor by those before, by name."""
            found = getattr(run.source, "passed_over", list)
            return team.union([*self.passed_before, *found()])

        def means(self) -> dict[str, Any]:
            """The losses since the last point of the curve, each the mean over the processes."""
            return {term: team.mean(torch.stack([v.cpu() for v in values])) for term, values in self.losses.items()}

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            term, value = pl_module.last_loss
            self.micro_batches.append(value)
            if trainer.global_step == self.done:
                return
            self.done = trainer.global_step
            # one for each update, of however many micro-batches it was made here
            values = torch.stack(self.micro_batches)
            self.losses.setdefault(term, []).append(values.mean())
            self.recent.append((self.done, term, values))
            self.micro_batches.clear()
            ends = self.done == run.train.updates
            saves = self.done % run.train.checkpoint_every == 0 and not ends
            if self.done % CURVE_EVERY == 0 or ends or saves:
                self.settle(waits=ends)
                self.point(trainer)  # before a checkpoint: a loss that is not finite must not be saved
            self.stopped_by = 0 if ends else int(team.most(self.told))
            if self.stopped_by:
                self.check(self.means())
                trainer.should_stop = True
            if saves or self.stopped_by:
                self.save(trainer)
            if progress is not None and (self.done % CURVE_EVERY == 0 or ends):
                progress(self.done, run.train.updates)

        def check(self, losses: dict[str, Any]) -> dict[str, float]:
            means = {f"loss_{term}": float(values.mean()) for term, values in losses.items()}
            if not all(map(math.isfinite, means.values())):
                recent = [Losses(update, term, tuple(values.tolist())) for update, term, values in self.recent]
                told = not_finite(run, folder, recent, self.share, team)
                with suppress(OSError):  # a disk that is full, too, must not hide it
                    self.settle(waits=True)
                    self.flush()
                raise ValueError(f"{told}; {before_it(folder)}; try a lower optimizer.lr")
            self.recent.clear()
            return means

        def check_weights(self, pl_module: Any) -> None:
            """A gradient that is not finite shows in the losses of the next update, and there may be none."""
            from pw.parallel.sharded import rows_here

            finite = torch.stack([rows_here(p)[0].isfinite().all() for p in pl_module.net.parameters()])
            if team.most(float(not finite.all())):
                with suppress(OSError):
                    self.settle(waits=True)
                    self.flush()
                raise ValueError(
                    f"weights are not finite after update {self.done}, though the losses were: a gradient was not; "
                    f"{before_it(folder)}; try a lower optimizer.lr"
                )

        def point(self, trainer: Any) -> None:
            means = self.check(self.means())
            self.losses.clear()
            self.curve.append({"step": self.done, **means, "lr": trainer.optimizers[0].param_groups[0]["lr"]})

        def save(self, trainer: Any) -> None:
            self.check_weights(trainer.lightning_module)
            self.flush()
            self.settle(waits=True)  # the one before
            if team.place.is_first:
                partial.parent.mkdir(exist_ok=True)
                remove(partial)
            team.wait()
            trainer.save_checkpoint(partial)
            self.is_writing = True
            self.settle(waits=bool(self.stopped_by))

        def settle(self, *, waits: bool) -> None:
            """Give a checkpoint its name once every process has written its part, which may go on in the background."""
            if not self.is_writing:
                return
            written = getattr(self.strategy, "written", None)
            if written is not None and (waits or written.done()):
                written.result()  # a full disk is heard of here
            if team.most(0 if written is None else not written.done()):
                return
            self.is_writing = False
            if team.place.is_first:
                if last.exists():
                    remove(previous)
                    os.replace(last, previous)
                os.replace(partial, last)

        def flush(self) -> None:
            if team.place.is_first:
                with (folder / "metrics.jsonl").open("a") as file:
                    file.writelines(json.dumps(line) + "\n" for line in self.curve)
            self.curve.clear()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.flush()
            pl_module.wall_seconds, pl_module.cpu_seconds = self.spent()
            pl_module.passed_over = self.passed_over()
            if not self.stopped_by:
                self.check_weights(pl_module)
                export(folder, pl_module, team)  # before Lightning lets go of what is split

    return Keeper()


def not_finite(run: Run, folder: Path, recent: Sequence[Losses], share: parallel.Share, team: parallel.Team) -> str:
    """What to tell of a loss that is not finite; each process whose it is writes the batch, see `pw.train.not_finite`.

    recent  the losses here since they were last found finite
    """
    here = {losses.update: losses for losses in recent if losses.first_bad is not None}
    update = -int(team.most(-min(here, default=run.train.updates)))
    value, told = "", f"its batch is in {folder / FOLDER}"
    if update in here:
        turn = here[update].first_bad
        assert turn is not None
        value = f" ({here[update].term} {here[update].values[turn]})"
        index = share.index((update - 1) * share.micro_batches + turn)
        found = Found(
            run.training_signature,
            run.configuration_signature,
            run.seed,
            index,
            update,
            here[update].term,
            share.rank,
            share.processes,
        )
        try:
            # by its number it is the one that was trained on
            path = write(folder, team.place.rank, found, clips(run, index, share), recent)
            told = f"its batch is in {path.with_suffix('.safetensors')}, look at it with `pw replay {path}`"
        except (OSError, ValueError) as error:
            told = f"its batch, number {index}, could not be written ({error})"
    team.wait()  # the first that ends takes the others along
    return f"the loss is not finite at update {update}{value}; {told}"


def before_it(folder: Path) -> str:
    """Where a training that stopped can be taken up."""
    before = any((folder / "checkpoints" / f"{name}.ckpt").exists() for name in KEPT)
    return f"the last checkpoint before it is in {folder / 'checkpoints'}" if before else "no checkpoint is before it"


def _truncate(path: Path, step: int) -> None:
    """Drop the lines of a curve beyond `step`: a resumed run writes them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(f"{line}\n")
        except ValueError:  # the last line of a run that was killed, or of a disk that was full
            continue
    partial = path.with_name(f".{path.name}")
    partial.write_text("".join(kept))
    os.replace(partial, path)
