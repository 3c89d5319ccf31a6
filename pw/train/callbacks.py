"""What a training does beside its updates: stop on a signal, write its curve and its checkpoints, report progress."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
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
from pw.train.batches import UpdateLosses, describe_not_finite
from pw.train.record import KEPT, WHOLE, write_weights

CURVE_EVERY = 10  # updates per line of metrics.jsonl


class AfterUpdates(L.Callback):
    """Acts after each update, of however many micro-batches it is made. All processes of a training must have one.

    received    the signal that came to this process, 0 if none did
    stopped_by  the signal that ended the training, 0 if it ran to its end: in all processes after the same update

    `metrics.jsonl` has a line for every tenth update, every checkpoint and the last update: the mean of each loss term
    over the processes and over the updates since the line before. The last two checkpoints are kept (`last.ckpt`,
    `previous.ckpt`), made every `train.checkpoint_every` updates and when a signal stops the training.

    Raises ValueError at a loss that is not finite, after the batch was written (`pw.train.batches`), and rather than
    save weights that are not finite; OSError on a full disk.
    """

    def __init__(self, run: Run, folder: Path, progress: Progress | None, team: Team) -> None:
        self.run, self.train, self.folder, self.progress, self.team = run, run.train, folder, progress, team
        self.update = 0  # optimizer updates done
        self.received = self.stopped_by = 0
        self.lines: list[dict[str, float]] = []  # of the curve, not written yet
        self.losses: dict[str, list[Any]] = {}  # term -> a loss for each update since the last line
        self.micro_batches: list[Any] = []  # losses of the update that is being made
        self.unchecked: list[UpdateLosses] = []  # not yet known to be finite
        self.spent_before = (0.0, 0.0)  # wall and CPU seconds, before this call
        self.unreadable_before: Sequence[str] = ()  # clips
        self.partial, self.last, self.previous = (
            folder / "checkpoints" / f"{name}.ckpt" for name in ("partial", *KEPT)
        )
        self.is_writing = False  # whether `partial` has yet to be given its name

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.strategy = trainer.strategy
        self.wall_began, self.cpu_began = time.perf_counter(), time.process_time()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # older checkpoints have no losses: they were written at a line of the curve
        self.losses = {term: list(values) for term, values in checkpoint.get("pw_losses", {}).items()}
        self.spent_before = tuple(checkpoint["pw_spent"])
        self.unreadable_before = checkpoint.get("pw_passed_over", [])

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["pw_losses"] = self._losses_of_all()
        checkpoint["pw_spent"] = list(self._spent())
        checkpoint["pw_passed_over"] = self._unreadable()
        checkpoint["pw_signature"] = self.run.training_signature

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.update = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            # Lightning's own handlers, set before, deadlock with several processes; at the end, and after a failure, it
            # puts back those that were there before its own
            for number in stop_signals():
                signal.signal(number, self._on_signal)
        # Lightning asks all processes before each micro-batch whether a signal came, and waits for the GPU to do so
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        if self.team.place.is_first:
            _truncate(self.folder / "metrics.jsonl", self.update)
            remove(self.folder / "checkpoints" / WHOLE)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.micro_batches.append(pl_module.last_loss[1])
        if trainer.global_step != self.update:
            self.update = trainer.global_step
            self._after_update(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._write_lines()
        pl_module.wall_seconds, pl_module.cpu_seconds = self._spent()
        pl_module.passed_over = self._unreadable()
        if not self.stopped_by:
            self._check_weights(pl_module)
            write_weights(self.folder, pl_module, self.team)  # before Lightning lets go of what is split

    def _after_update(self, trainer: Any, pl_module: Any) -> None:
        is_last, is_tenth = self.update == self.train.updates, self.update % CURVE_EVERY == 0
        is_due = self.update % self.train.checkpoint_every == 0 and not is_last  # then the weights are exported instead
        self.stopped_by = 0 if is_last else int(self.team.maximum(self.received))
        if self.stopped_by:
            trainer.should_stop = True
        term, losses = pl_module.last_loss[0], torch.stack(self.micro_batches)
        self.micro_batches.clear()
        self.losses.setdefault(term, []).append(losses.mean())
        self.unchecked.append((self.update, term, losses))
        if is_tenth or is_due or is_last:
            means = self._finite_means(pl_module)
            self.losses.clear()
            self.lines.append({"step": self.update, **means, "lr": trainer.optimizers[0].param_groups[0]["lr"]})
        if self.stopped_by:
            self._finite_means(pl_module)  # before it is saved
        if is_due or self.stopped_by:
            self._write_lines()
        if is_tenth or is_due or is_last:
            self._finish_writing(waits=is_last)
        if is_due or self.stopped_by:
            self._save(trainer)
        if self.progress is not None and (is_tenth or is_last):
            self.progress(self.update, self.train.updates)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number  # no more than that: a handler may interrupt anything

    def _losses_of_all(self) -> dict[str, Any]:
        """Term -> its losses since the last line, each the mean over the processes."""
        return {term: self.team.mean(torch.stack([v.cpu() for v in values])) for term, values in self.losses.items()}

    def _finite_means(self, pl_module: Any) -> dict[str, float]:
        """Column of the curve -> mean since the last line. Raises ValueError where one is not finite."""
        means = {f"loss_{term}": float(values.mean()) for term, values in self._losses_of_all().items()}
        if not all(map(math.isfinite, means.values())):
            reason = describe_not_finite(self.run, self.folder, self.unchecked, pl_module.share, self.team)
            with suppress(OSError):  # a disk that is full, too, must not hide it
                self._write_lines()
            raise self._not_finite(reason)
        self.unchecked.clear()
        return means

    def _write_lines(self) -> None:
        if self.team.place.is_first:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in self.lines)
        self.lines.clear()

    def _spent(self) -> tuple[float, float]:
        """Wall seconds, and CPU seconds of all processes, interruptions included."""
        wall, cpu = time.perf_counter() - self.wall_began, time.process_time() - self.cpu_began
        return self.spent_before[0] + wall, self.spent_before[1] + self.team.total(cpu)

    def _unreadable(self) -> list[str]:
        """Names of the clips that any process could not read."""
        return self.team.union([*self.unreadable_before, *getattr(self.run.source, "passed_over", list)()])

    def _save(self, trainer: Any) -> None:
        self._check_weights(trainer.lightning_module)
        self._finish_writing(waits=True)  # the one before
        if self.team.place.is_first:
            self.partial.parent.mkdir(exist_ok=True)
            remove(self.partial)
        self.team.wait()
        trainer.save_checkpoint(self.partial)
        self.is_writing = True
        self._finish_writing(waits=bool(self.stopped_by))

    def _finish_writing(self, *, waits: bool) -> None:
        """Give a checkpoint its name once every process has written its part, which may go on in the background."""
        if not self.is_writing:
            return
        written = getattr(self.strategy, "last_write", None)
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
            raise self._not_finite(
                f"weights are not finite after update {self.update}, though the losses were: a gradient was not"
            )

    def _not_finite(self, reason: str) -> ValueError:
        """The error that ends the training, with where it can be continued from."""
        with suppress(OSError):  # a disk that is full, too, must not hide it
            self._finish_writing(waits=True)
        is_kept = self.last.exists() or self.previous.exists()
        where = f"the last checkpoint before it is in {self.last.parent}" if is_kept else "no checkpoint is before it"
        return ValueError(f"{reason}; {where}; try a lower optimizer.lr")


def _truncate(curve: Path, update: int) -> None:
    """Drop the lines of a curve beyond an update: a resumed training writes them again."""
    if not curve.exists():
        return
    kept = []
    for line in curve.read_text().splitlines():
        with suppress(ValueError):  # the last line of a training that was killed, or of a disk that was full
            if json.loads(line)["step"] <= update:
                kept.append(f"{line}\n")
    write_atomically(curve, "".join(kept))
