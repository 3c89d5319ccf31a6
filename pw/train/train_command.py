"""`pw train`: the words of one run, and its progress on the terminal."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pw.io.arguments import Command, ConfigError, option
from pw.io.paths import OUTPUTS
from pw.io.progress import Progress
from pw.parallel.launch import exit_with_parent, report, report_failure
from pw.parallel.place import current_place, prints_for_user
from pw.parallel.signals import Stopped, ignore_closed_stream
from pw.run.build import Run, build
from pw.train.loop import train
from pw.train.preflight import preflight
from pw.train.record import with_code


def outputs_folder(value: str) -> Path:
    """The folder that `outputs=` names. Raises ConfigError when nothing can be written there."""
    folder = Path(value).expanduser().resolve()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not value or not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"outputs={value}: wants a folder that can be written, e.g. outputs=outputs/trial")
    return folder


@dataclass(frozen=True)
class TrainOptions:
    """`pw train key=value …`: one run."""

    outputs: Path = option(OUTPUTS, "folder of all results", read=outputs_folder)
    overrides: tuple[str, ...] = ()


def checked_run(overrides: Sequence[str], outputs: Path) -> Run:
    """The run that a command's overrides describe, once nothing is in the way of its training.

    Of processes that were launched together the one that launched them has checked it. Raises ConfigError.
    """
    run = with_code(build(overrides), outputs)
    place = current_place(run.trainer)
    if place is None or not place.is_launched:
        preflight(run, outputs)
    return run


def run_train(options: TrainOptions) -> int:
    """Exit status: 0 trained, 1 it failed, 128 + n stopped by a signal."""
    try:
        run = checked_run(options.overrides, options.outputs)
    except ValueError as error:
        report_failure(error)
        raise
    exit_with_parent()
    return run_training(run, lambda progress: train(run, options.outputs, progress, is_checked=True))


def run_training(run: Run, work: Callable[[Progress], Path]) -> int:
    """Do work that trains, with a line of progress, and print the folder that it returns; the exit status.

    What goes wrong is printed in a line, or reported to the process that launched this one.
    """
    show = TrainingProgress(run)

    def progress(update: int, updates: int) -> None:
        report(update=update, updates=updates)
        show(update, updates)

    try:
        import torch

        torch.set_num_threads(run.trainer.threads)
        folder = work(progress)
    except (Stopped, KeyboardInterrupt) as stopped:
        number = stopped.signal if isinstance(stopped, Stopped) else signal.SIGINT
        if prints_for_user(run.trainer):
            name = signal.Signals(number).name
            message = f"stopped by {name}; the same command goes on from the last checkpoint, if there is one"
            with ignore_closed_stream(sys.stderr):
                print(message, file=sys.stderr, flush=True)
        return 128 + number
    except (ValueError, OSError) as error:
        if not report_failure(error):
            print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if not report_failure(error):
            raise
        return 1
    if prints_for_user(run.trainer):
        print(folder)
    return 0


class TrainingProgress:
    """A line of progress with the time left, at the pace since this call began to train.

    On a terminal the line is rewritten; elsewhere one is printed every 15 s.
    """

    def __init__(self, run: Run) -> None:
        self.updates, self.prints = run.train.updates, prints_for_user(run.trainer)
        self.every = 0.0 if sys.stderr.isatty() else 15.0
        self.first: tuple[int, int, float] | None = None  # update, updates, time
        self.last = time.perf_counter()

    def __call__(self, update: int, updates: int) -> None:
        now = time.perf_counter()
        if self.first is None or self.first[1] != updates:
            self.first = (update, updates, now)
        if not self.prints or (now - self.last < self.every and update < updates):
            return
        self.last = now
        first, _, since = self.first
        left = f", about {(now - since) / (update - first) * (updates - update):.0f} s left" if update > first else ""
        end = "\r" if sys.stderr.isatty() and update < updates else "\n"
        what = "" if updates == self.updates else "its start: "
        with ignore_closed_stream(sys.stderr):
            print(f"{what}update {update} of {updates}{left}   ", end=end, file=sys.stderr, flush=True)


main = Command(TrainOptions, run_train)
