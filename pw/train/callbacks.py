"""The callback of a training: it stops on a signal, writes the curve and the checkpoints, and reports progress."""

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

from pw.io.files import remove
from pw.io.progress import Progress
from pw.parallel.sharded import local_rows
from pw.parallel.signals import stop_signals
from pw.parallel.team import Team
from pw.run.build import Run
from pw.tracking.curve_logger import truncate
from pw.train.batches import UpdateLosses, describe_not_finite
from pw.train.record import CHECKPOINTS, MERGED_CHECKPOINT, write_weights

CURVE_EVERY = 10  # updates per line of metrics.jsonl


class TrainingCallback(L.Callback):
    """Acts after each optimizer update. All processes of a training must have one.

    received_signal  the signal that this process received, 0 if none
    stop_signal      the signal that stopped the training in all processes after the same update, 0 if none

    `metrics.jsonl` gets a line at every tenth update, every checkpoint and the last update: the mean of each loss term
    over processes and updates since the previous line. A checkpoint is written every `train.checkpoint_every` updates
    and when a signal stops the training; the last two are kept (`last.ckpt`, `previous.ckpt`).

    Raises ValueError for a loss that is not finite, after it wrote the batch (`pw.train.batches`), and for weights that
    are not finite, instead of saving them; OSError on a full disk.
    """

    def __init__(self, run: Run, folder: Path, progress: Progress | None, team: Team) -> None:
        self.run, self.train, self.folder, self.progress, self.team = run, run.train, folder, progress, team
        self.update = 0  # optimizer updates done
        self.received_signal = self.stop_signal = 0
        self.losses: dict[str, list[Any]] = {}  # term -> loss of each update since the last line
        self.micro_batches: list[Any] = []  # losses of the current update
        self.unchecked_losses: list[UpdateLosses] = []  # since the last check that losses are finite
        self.earlier_seconds = (0.0, 0.0)  # wall and CPU seconds of earlier calls
        self.earlier_unreadable: Sequence[str] = ()  # names of clips, in earlier calls
        self.partial, self.last, self.previous = (
            folder / "checkpoints" / f"{name}.ckpt" for name in ("partial", *CHECKPOINTS)
        )
        self.is_writing = False  # whether `partial` has not got its final name yet

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.strategy = trainer.strategy
        self.wall_start, self.cpu_start = time.perf_counter(), time.process_time()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # older checkpoints have no losses: they were written together with a line of the curve
        self.losses = {term: list(values) for term, values in checkpoint.get("pw_losses", {}).items()}
        self.earlier_seconds = tuple(checkpoint["pw_spent"])
        self.earlier_unreadable = checkpoint.get("pw_passed_over", [])

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["pw_losses"] = self._losses_of_all()
        checkpoint["pw_spent"] = list(self._elapsed())
        checkpoint["pw_passed_over"] = self._unreadable()
        checkpoint["pw_signature"] = self.run.training_signature

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.update = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            # replaces Lightning's handlers, which deadlock with several processes; at the end, and after a failure,
            # Lightning restores the handlers from before the training
            for number in stop_signals():
                signal.signal(number, self._on_signal)
        # before each micro-batch Lightning would ask all processes for a signal, and wait for the GPU to do so
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        if self.team.place.is_first:
            truncate(self.folder / "metrics.jsonl", self.update)
            remove(self.folder / "checkpoints" / MERGED_CHECKPOINT)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.micro_batches.append(pl_module.last_loss.value)
        if trainer.global_step != self.update:
            self.update = trainer.global_step
            self._after_update(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.wall_seconds, pl_module.cpu_seconds = self._elapsed()
        pl_module.passed_over = self._unreadable()
        if not self.stop_signal:
            self._check_weights(pl_module)
            write_weights(self.folder, pl_module, self.team)  # before Lightning frees split weights

    def _after_update(self, trainer: Any, pl_module: Any) -> None:
        is_last, is_tenth = self.update == self.train.updates, self.update % CURVE_EVERY == 0
        is_due = self.update % self.train.checkpoint_every == 0 and not is_last  # the last update exports weights
        self.stop_signal = 0 if is_last else int(self.team.maximum(self.received_signal))
        if self.stop_signal:
            trainer.should_stop = True
        term, losses = pl_module.last_loss.term, torch.stack(self.micro_batches)
        self.micro_batches.clear()
        names = [term]
        if self.run.mix is not None:  # the same bucket in every process
            names.append(f"{term}/{self.run.mix.buckets[self.run.mix.turn(self.run.seed, self.update - 1)[0]]}")
        for name in names:
            self.losses.setdefault(name, []).append(losses.mean())
        self.unchecked_losses.append((self.update, term, losses))
        if is_tenth or is_due or is_last:
            means = self._finite_means(pl_module)
            self.losses.clear()
            self._write_line({"step": self.update, **means, "lr": trainer.optimizers[0].param_groups[0]["lr"]})
        if self.stop_signal:
            self._finite_means(pl_module)  # checks the losses before the checkpoint is saved
        if is_tenth or is_due or is_last:
            self._finish_writing(wait=is_last)
        if is_due or self.stop_signal:
            self._save(trainer)
        if self.progress is not None and (is_tenth or is_last):
            self.progress(self.update, self.train.updates)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.received_signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received_signal = number  # nothing else: a handler may interrupt any code

    def _losses_of_all(self) -> dict[str, Any]:
        """Term -> mean over the processes of each loss since the last line."""
        return {term: self.team.mean(torch.stack([v.cpu() for v in values])) for term, values in self.losses.items()}

    def _finite_means(self, pl_module: Any) -> dict[str, float]:
        """Column of the curve -> mean since the last line. Raises ValueError if a mean is not finite."""
        means = {f"loss_{term}": float(values.mean()) for term, values in self._losses_of_all().items()}
        if not all(map(math.isfinite, means.values())):
            reason = describe_not_finite(self.run, self.folder, self.unchecked_losses, pl_module.share, self.team)
            raise self._not_finite(reason)
        self.unchecked_losses.clear()
        return means

    def _write_line(self, line: dict[str, float]) -> None:
        if self.team.place.is_first:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    def _elapsed(self) -> tuple[float, float]:
        """Wall seconds, and CPU seconds of all processes, over all calls of this training."""
        wall, cpu = time.perf_counter() - self.wall_start, time.process_time() - self.cpu_start
        return self.earlier_seconds[0] + wall, self.earlier_seconds[1] + self.team.total(cpu)

    def _unreadable(self) -> list[str]:
        """Names of the clips that at least one process could not read."""
        return self.team.union([*self.earlier_unreadable, *getattr(self.run.source, "passed_over", list)()])

    def _save(self, trainer: Any) -> None:
        self._check_weights(trainer.lightning_module)
        self._finish_writing(wait=True)  # of the checkpoint before
        if self.team.place.is_first:
            self.partial.parent.mkdir(exist_ok=True)
            remove(self.partial)
        self.team.wait()
        trainer.save_checkpoint(self.partial)
        self.is_writing = True
        self._finish_writing(wait=bool(self.stop_signal))

    def _finish_writing(self, *, wait: bool) -> None:
        """Give a checkpoint its final name once every process has written its part, perhaps in the background."""
        if not self.is_writing:
            return
        writing = getattr(self.strategy, "last_write", None)
        if writing is not None and (wait or writing.done()):
            writing.result()  # raises OSError on a full disk
        if self.team.maximum(0 if writing is None else not writing.done()):
            return
        self.is_writing = False
        if self.team.place.is_first:
            if self.last.exists():
                remove(self.previous)
                self.last.replace(self.previous)
            self.partial.replace(self.last)

    def _check_weights(self, pl_module: Any) -> None:
        """Raises ValueError when weights are not finite; the losses would show it only at the next update."""
        is_finite = torch.stack([local_rows(parameter)[0].isfinite().all() for parameter in pl_module.net.parameters()])
        if self.team.maximum(float(not is_finite.all())):
            raise self._not_finite(
                f"weights are not finite after update {self.update}, though the losses were: a gradient was not"
            )

    def _not_finite(self, reason: str) -> ValueError:
        """The error that ends the training; it names the last checkpoint."""
        with suppress(OSError):  # an error of the disk must not hide this one
            self._finish_writing(wait=True)
        exists = self.last.exists() or self.previous.exists()
        hint = f"the last checkpoint before it is in {self.last.parent}" if exists else "no checkpoint is before it"
        return ValueError(f"{reason}; {hint}; try a lower optimizer.lr")
