"""`pw train`: the words of one run, and its progress on the terminal."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pw.io.arguments import ConfigError
from pw.io.paths import OUTPUTS
from pw.io.progress import Progress
from pw.parallel import processes as parallel
from pw.run.build import Run, build
from pw.train.loop import train
from pw.train.preflight import (
    check_data,
    check_device,
    check_share,
)
from pw.train.record import is_trained, training_folder, with_code


def outputs_folder(value: str) -> Path:
    """What `outputs=` names. Raises ConfigError when nothing can be written there."""
    folder = Path(value).expanduser().resolve()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not value or not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"outputs={value}: wants a folder that can be written, e.g. outputs=outputs/trial")
    return folder


def command_line(arguments: list[str]) -> tuple[Run, Path, int | None]:
    """(run, outputs, evaluation seed) of a command: overrides, `outputs=`, `evaluation_seed=`. Raises ConfigError."""
    own = {k: v for k, _, v in (word.partition("=") for word in arguments) if k in ("outputs", "evaluation_seed")}
    outputs = outputs_folder(own["outputs"]) if "outputs" in own else OUTPUTS
    run = with_code(build([word for word in arguments if word.partition("=")[0] not in own]), outputs)
    training_folder(run)  # composes the runs it needs, too
    check_share(run)
    place = parallel.place(run.trainer)
    if not is_trained(run, outputs):
        check_data(run)
        if place is None:
            parallel.check_launch(run.trainer)
    check_device(run)
    seed = own.get("evaluation_seed")
    if seed is not None and not seed.isdecimal():
        raise ConfigError(f"evaluation_seed={seed}: wants a whole number")
    return run, outputs, None if seed is None else int(seed)


class _Shown:
    """The line of progress, with the time left at the pace since this call began to train; a line now and then where
    there is no terminal."""

    def __init__(self, run: Run) -> None:
        self.updates, self.is_heard = run.train.updates, parallel.is_heard(run.trainer)
        self.every = 0.0 if sys.stderr.isatty() else 15.0
        self.first: tuple[int, int, float] | None = None
        self.last = time.perf_counter()

    def __call__(self, update: int, updates: int) -> None:
        now = time.perf_counter()
        if self.first is None or self.first[1] != updates:
            self.first = (update, updates, now)
        if not self.is_heard or (now - self.last < self.every and update < updates):
            return
        self.last = now
        first, _, since = self.first
        left = f", about {(now - since) / (update - first) * (updates - update):.0f} s left" if update > first else ""
        end = "\r" if sys.stderr.isatty() and update < updates else "\n"
        what = "" if updates == self.updates else "its start: "
        with parallel.unheard(sys.stderr):
            print(f"{what}update {update} of {updates}{left}   ", end=end, file=sys.stderr, flush=True)


def tell(run: Run, work: Callable[[Progress], Path]) -> int:
    """Exit code of a command's work, which trains: its progress, and what went wrong, are told in a line."""
    shown = _Shown(run)

    def progress(update: int, updates: int) -> None:
        parallel.report(update=update, updates=updates)
        shown(update, updates)

    try:
        import torch

        torch.set_num_threads(run.trainer.threads)
        folder = work(progress)
    except (parallel.Stopped, KeyboardInterrupt) as stopped:
        number = stopped.signal if isinstance(stopped, parallel.Stopped) else signal.SIGINT
        if parallel.is_heard(run.trainer):
            name = signal.Signals(number).name
            words = f"stopped by {name}; the same command goes on from the last checkpoint, if there is one"
            with parallel.unheard(sys.stderr):
                print(words, file=sys.stderr, flush=True)
        return 128 + number
    except (ValueError, OSError) as error:
        if not parallel.tell_failure(error):
            print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if not parallel.tell_failure(error):
            raise
        return 1
    if parallel.is_heard(run.trainer):
        print(folder)
    return 0


def main(arguments: list[str]) -> int:
    """Train one run from the command line, with a line of progress."""
    try:
        run, outputs, _ = command_line(arguments)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    parallel.end_with_parent()
    return tell(run, lambda progress: train(run, outputs, progress))
