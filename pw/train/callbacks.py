"""The callbacks of a training: its curve, its checkpoints, stopping on a signal, and reporting progress.

`callbacks` puts them in the order in which they act after an update: agree whether to stop, add to the curve (a loss
that is not finite ends the training here), save, report. All processes of a training must have the same ones.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

from pw.io.files import remove, write_atomically
from pw.io.progress import Progress
from pw.parallel.sharded import local_rows
from pw.parallel.signals import stop_signals
from pw.parallel.team import Team
from pw.run.build import Run
from pw.run.settings import Train
from pw.train.batches import UpdateLosses, describe_not_finite
from pw.train.record import KEPT, WHOLE, write_weights

CURVE_EVERY = 10  # updates per line of metrics.jsonl


def callbacks(run: Run, folder: Path, progress: Progress | None, team: Team) -> tuple[StopOnSignal, list[L.Callback]]:
    """The callbacks of a training in their order, and which of them knows whether a signal stopped it."""
    stop = StopOnSignal(run.train, team)
    checkpoints = Checkpoints(run.train, folder, team, stop)
    curve = LossCurve(run, folder, team, stop, checkpoints)
    reports = [] if progress is None else [ReportProgress(run.train, progress)]
    return stop, [stop, curve, TrainingRecord(run, team), checkpoints, *reports]


class AfterUpdate(L.Callback, ABC):
    """Calls `after_update` once for each optimizer update, of however many micro-batches it is made."""

    update = 0  # optimizer updates done

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.update = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self.update:
            self.update = trainer.global_step
            self.after_update(trainer, pl_module)

    @abstractmethod
    def after_update(self, trainer: Any, pl_module: Any) -> None:
        """Called once the weights are those after `self.update` updates."""


class StopOnSignal(AfterUpdate):
    """Ends the training after the update during which a signal came to any of its processes: in all at the same one.

    received    the signal that came to this process, 0 if none did
    stopped_by  the signal that ended the training, 0 if it ran to its end
    """

    def __init__(self, train: Train, team: Team) -> None:
        self.updates, self.team = train.updates, team
        self.received = self.stopped_by = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is threading.main_thread():
            # Lightning's own handlers, set before, deadlock with several processes; at the end, and after a failure, it
            # puts back those that were there before its own
            for number in stop_signals():
                signal.signal(number, self._on_signal)
        # Lightning asks all processes before each micro-batch whether a signal came, and waits for the GPU to do so
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number  # no more than that: a handler may interrupt anything

    def after_update(self, trainer: Any, pl_module: Any) -> None:
        is_last = self.update == self.updates
        self.stopped_by = 0 if is_last else int(self.team.maximum(self.received))
        if self.stopped_by:
            trainer.should_stop = True


class LossCurve(AfterUpdate):
    """Writes `metrics.jsonl`, a line for every tenth update, every checkpoint and the last update.

    A line has the mean of each loss term over the processes and over the updates since the line before. Raises
    ValueError at a loss that is not finite, after the batch was written (`pw.train.batches`).
    """

    def __init__(self, run: Run, folder: Path, team: Team, stop: StopOnSignal, checkpoints: Checkpoints) -> None:
        self.run, self.folder, self.team, self.stop, self.checkpoints = run, folder, team, stop, checkpoints
        self.lines: list[dict[str, float]] = []  # not written yet
        self.losses: dict[str, list[Any]] = {}  # term -> a loss for each update since the last line
        self.micro_batches: list[Any] = []  # losses of the update that is being made
        self.unchecked: list[tuple[int, str, Any]] = []  # (update, term, losses) not yet known to be finite

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self.share = pl_module.share
        if self.team.place.is_first:
            truncate_curve(self.folder / "metrics.jsonl", self.update)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # older checkpoints have no losses: they were written at a line of the curve
        self.losses = {term: list(values) for term, values in checkpoint.get("pw_losses", {}).items()}

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["pw_losses"] = self._means()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.micro_batches.append(pl_module.last_loss[1])
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def after_update(self, trainer: Any, pl_module: Any) -> None:
        term, values = pl_module.last_loss[0], torch.stack(self.micro_batches)
        self.micro_batches.clear()
        self.losses.setdefault(term, []).append(values.mean())
        self.unchecked.append((self.update, term, values))
        saves = is_checkpoint_due(self.run.train, self.update)
        if saves or self.update % CURVE_EVERY == 0 or self.update == self.run.train.updates:
            means = self._finite_means()
            self.losses.clear()
            self.lines.append({"step": self.update, **means, "lr": trainer.optimizers[0].param_groups[0]["lr"]})
        if self.stop.stopped_by:
            self._finite_means()  # before it is saved
        if saves or self.stop.stopped_by:
            self._write_lines()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._write_lines()

    def _means(self) -> dict[str, Any]:
        """Term -> its losses since the last line, each the mean over the processes."""
        return {term: self.team.mean(torch.stack([v.cpu() for v in values])) for term, values in self.losses.items()}

    def _finite_means(self) -> dict[str, float]:
        """Column of the curve -> mean since the last line. Raises ValueError where one is not finite."""
        means = {f"loss_{term}": float(values.mean()) for term, values in self._means().items()}
        if not all(map(math.isfinite, means.values())):
            losses = [UpdateLosses(update, term, [*map(str, x.tolist())]) for update, term, x in self.unchecked]
            reason = describe_not_finite(self.run, self.folder, losses, self.share, self.team)
            with suppress(OSError):  # a disk that is full, too, must not hide it
                self._write_lines()
            raise self.checkpoints.not_finite(reason)
        self.unchecked.clear()
        return means

    def _write_lines(self) -> None:
        if self.team.place.is_first:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in self.lines)
        self.lines.clear()


class TrainingRecord(L.Callback):
    """What `done.json` tells of a training, interruptions included: time spent, clips that could not be read.

    Both are in every checkpoint, and at the end on the module.
    """

    def __init__(self, run: Run, team: Team) -> None:
        self.run, self.team = run, team
        self.spent_before = (0.0, 0.0)  # wall and CPU seconds, before this call
        self.unreadable_before: Sequence[str] = ()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.wall_began, self.cpu_began = time.perf_counter(), time.process_time()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.spent_before = tuple(checkpoint["pw_spent"])
        self.unreadable_before = checkpoint.get("pw_passed_over", [])

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["pw_spent"] = list(self._spent())
        checkpoint["pw_passed_over"] = self._unreadable()
        checkpoint["pw_signature"] = self.run.training_signature

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.wall_seconds, pl_module.cpu_seconds = self._spent()
        pl_module.passed_over = self._unreadable()

    def _spent(self) -> tuple[float, float]:
        """Wall seconds, and CPU seconds of all processes."""
        wall, cpu = time.perf_counter() - self.wall_began, time.process_time() - self.cpu_began
        return self.spent_before[0] + wall, self.spent_before[1] + self.team.total(cpu)

    def _unreadable(self) -> list[str]:
        """Names of the clips that any process could not read."""
        return self.team.union([*self.unreadable_before, *getattr(self.run.source, "passed_over", list)()])


class Checkpoints(AfterUpdate):
    """Keeps the last two checkpoints (`last.ckpt`, `previous.ckpt`), and exports the weights at the end.

    Saves every `train.checkpoint_every` updates and when a signal stops the training. Raises ValueError rather than
    save weights that are not finite, and OSError on a full disk.
    """

    def __init__(self, train: Train, folder: Path, team: Team, stop: StopOnSignal) -> None:
        self.train, self.folder, self.team, self.stop = train, folder, team, stop
        self.partial, self.last, self.previous = (
            folder / "checkpoints" / f"{name}.ckpt" for name in ("partial", *KEPT)
        )
        self.is_writing = False  # whether `partial` has yet to be given its name

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.strategy = trainer.strategy

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        if self.team.place.is_first:
            remove(self.folder / "checkpoints" / WHOLE)

    def after_update(self, trainer: Any, pl_module: Any) -> None:
        is_last, saves = self.update == self.train.updates, is_checkpoint_due(self.train, self.update)
        if saves or is_last or self.update % CURVE_EVERY == 0:
            self.finish_writing(waits=is_last)
        if saves or self.stop.stopped_by:
            self._save(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if not self.stop.stopped_by:
            self._check_weights(pl_module)
            write_weights(self.folder, pl_module, self.team)  # before Lightning lets go of what is split

    def _save(self, trainer: Any) -> None:
        self._check_weights(trainer.lightning_module)
        self.finish_writing(waits=True)  # the one before
        if self.team.place.is_first:
            self.partial.parent.mkdir(exist_ok=True)
            remove(self.partial)
        self.team.wait()
        trainer.save_checkpoint(self.partial)
        self.is_writing = True
        self.finish_writing(waits=bool(self.stop.stopped_by))

    def finish_writing(self, *, waits: bool) -> None:
        """Give a checkpoint its name once every process has written its part, which may go on in the background."""
        if not self.is_writing:
            return
        written = getattr(self.strategy, "written", None)
        if written is not None and (waits or written.done()):
            written.result()  # raises OSError on a full disk
        if self.team.maximum(0 if written is None else not written.done()):
            return
        self.is_writing = False
        if self.team.place.is_first:
            if self.last.exists():
                remove(self.previous)
                self.last.replace(self.previous)
            self.partial.replace(self.last)

    def _check_weights(self, pl_module: Any) -> None:
        """Raises ValueError when an update spoilt the weights, which the losses would only show at the next update."""
        finite = torch.stack([local_rows(p)[0].isfinite().all() for p in pl_module.net.parameters()])
        if self.team.maximum(float(not finite.all())):
            raise self.not_finite(
                f"weights are not finite after update {self.update}, though the losses were: a gradient was not"
            )

    def not_finite(self, reason: str) -> ValueError:
        """The error that ends the training, with where it can be continued from."""
        with suppress(OSError):  # a disk that is full, too, must not hide it
            self.finish_writing(waits=True)
        is_kept = self.last.exists() or self.previous.exists()
        where = f"the last checkpoint before it is in {self.last.parent}" if is_kept else "no checkpoint is before it"
        return ValueError(f"{reason}; {where}; try a lower optimizer.lr")


class ReportProgress(AfterUpdate):
    """Calls progress(update, updates) every tenth update and after the last."""

    def __init__(self, train: Train, progress: Progress) -> None:
        self.updates, self.progress = train.updates, progress

    def after_update(self, trainer: Any, pl_module: Any) -> None:
        if self.update % CURVE_EVERY == 0 or self.update == self.updates:
            self.progress(self.update, self.updates)


def is_checkpoint_due(train: Train, update: int) -> bool:
    """Whether a checkpoint is saved after this update. After the last the weights are exported instead."""
    return update % train.checkpoint_every == 0 and update != train.updates


def truncate_curve(path: Path, step: int) -> None:
    """Drop the lines of a curve beyond `step`: a resumed training writes them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        with suppress(ValueError):  # the last line of a training that was killed, or of a disk that was full
            if json.loads(line)["step"] <= step:
                kept.append(f"{line}\n")
    write_atomically(path, "".join(kept))
