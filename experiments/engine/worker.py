"""One job, run in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from experiments.engine.job import Job
from experiments.engine.ledger import Claim, Ledger
from pw.parallel.launch import ProcessFailed
from pw.parallel.signals import Stopped


def work(job: Job, outputs: Path, claim: Claim, report: Connection, parent: Connection) -> None:
    """Run one job: its output goes to the claim's log, its progress and its end to `report`."""
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    log, ledger = Path(claim.log), Ledger(outputs)
    log.parent.mkdir(parents=True, exist_ok=True)
    stream = log.open("w", buffering=1)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    try:
        with ledger.working(claim) as note:

            def progress(done: int, total: int) -> None:
                note(done, total)
                report.send(("progress", done, total))

            run_job(job, outputs, progress, is_checked=True)
        ledger.release(job.key)
        report.send(("done", "", ""))
    except Stopped as stopped:
        name = signal.Signals(stopped.signal).name
        report.send(("stopped", f"stopped by {name}; the same command goes on", str(log)))
    except ProcessFailed as error:  # in one of several processes, which has a log of its own
        traceback.print_exc()
        report.send(("failed", str(error), str(error.log or log)))
    except BaseException as error:
        traceback.print_exc()
        report.send(("failed", f"{type(error).__name__}: {error}", str(log)))


def _end_with_parent(parent: Connection) -> None:
    # the runner holds the other end, which closes when it dies, even by SIGKILL
    try:
        parent.recv()
    except (EOFError, OSError):
        os._exit(1)


def run_job(job: Job, outputs: Path, progress: Callable[[int, int], None], *, is_checked: bool = False) -> None:
    """Run one job in this process.

    progress    called with (done, total)
    is_checked  whether `preflight` was called on this machine
    """
    import torch

    from pw.sample.evaluate import sample
    from pw.train.loop import train

    torch.set_num_threads(job.run.trainer.threads)
    if job.kind == "train":
        train(job.run, outputs, progress, is_checked=is_checked)
    elif job.kind == "sample":
        sample(job.run, outputs, limit=job.limit, seed=job.seed, progress=progress, is_checked=is_checked)
    else:
        from benchmarks.measure.clips import score_folder

        asked = job.score
        score_folder(
            Path(asked["videos"]),
            Path(asked["out"]),
            real=Path(asked["real"]),
            structure=None if asked["structure"] is None else Path(asked["structure"]),
            solution=None if asked["solution"] is None else Path(asked["solution"]),
            solved=asked["solved"],
            metrics=asked["metrics"],
            contract=asked["contract"],
        )
