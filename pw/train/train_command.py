"""`pw train`: the words of one run, and its progress on the terminal."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pw.io.arguments import Command, ConfigError, option
from pw.io.paths import OUTPUTS
from pw.io.progress import Pace, Progress, ProgressLine
from pw.parallel.launch import carry_out, exit_with_parent, report, reported_mistakes
from pw.parallel.team import current_place, prints_for_user
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
    with reported_mistakes():
        run = checked_run(options.overrides, options.outputs)
    exit_with_parent()
    return run_training(run, lambda progress: train(run, options.outputs, progress, is_checked=True))


def run_training(run: Run, work: Callable[[Progress], Path]) -> int:
    """Do work that trains, with a line of progress, and print the folder that it returns; the exit status."""
    show = TrainingProgress(run)

    def progress(update: int, updates: int) -> None:
        report(update=update, updates=updates)
        show(update, updates)

    def train_and_print() -> None:
        import torch

        torch.set_num_threads(run.trainer.threads)
        try:
            folder = work(progress)
        finally:
            show.line.clear()
        if prints_for_user():
            print(folder)

    return carry_out(train_and_print, "the same command goes on from the last checkpoint, if there is one")


class TrainingProgress:
    """A line of progress with the time left, at the pace since this call began to train."""

    def __init__(self, run: Run) -> None:
        self.own_updates, self.prints = run.train.updates, prints_for_user()
        self.line, self.pace, self.updates = ProgressLine(), Pace(), 0

    def __call__(self, update: int, updates: int) -> None:
        if updates != self.updates:
            self.updates = updates
            self.pace.restart(update)
        if not self.prints or (not self.line.is_due and update < updates):
            return
        what = "" if updates == self.own_updates else "its start: "
        left = f", about {left} left" if (left := self.pace.left(update, updates)) else ""
        self.line.show(f"{what}update {update} of {updates}{left}", last=update >= updates)


main = Command(TrainOptions, run_train)
