"""Trainings by several processes on one machine, which share one import of torch."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOAD = ["torch", "lightning.pytorch", "pw.stages.stage", "pw.data.procedural", "pw.train.loop"]
WAIT = 240


@dataclass(frozen=True)
class Training:
    """A training to do, and (process, update) to which and from when on a SIGTERM comes, if one does.

    Progress is reported at every tenth update.
    """

    overrides: Sequence[str]
    outputs: Path
    told: tuple[int, int] | None = None

    def carried_out(self, rank: int) -> str:
        """Its folder, or `stopped by 15, code 143`."""
        from pw.parallel.signals import Stopped
        from pw.run.build import build
        from pw.train.loop import train

        def progress(update: int, updates: int) -> None:
            if (rank, update) == self.told:
                os.kill(os.getpid(), signal.SIGTERM)

        try:
            return str(train(build(self.overrides), self.outputs, progress))
        except Stopped as stopped:
            return f"stopped by {stopped.signal}, code {stopped.code}"


def train_together(processes: int, *trainings: Training) -> list[list[str]]:
    """What became of trainings that so many processes did together, one after the other: in each process a word for
    each, see `Training`. Raises RuntimeError with the traceback of a process that failed.

    Each process finds itself placed as `pw.parallel.launch` would have done it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as meeting:
        workers = [
            context.Process(target=_rank, args=(answers, rank, processes, meeting, trainings), daemon=True)
            for rank in range(processes)
        ]
        for worker in workers:
            worker.start()
        try:
            found: dict[int, list[str]] = {}
            for _ in workers:
                rank, words, failure = answers.get(timeout=WAIT)
                if failure:
                    raise RuntimeError(f"process {rank} of {processes}: {failure}")
                found[rank] = words
        finally:
            for worker in workers:
                worker.join(5 if len(found) == processes else 0)
                worker.kill()
    return [found[rank] for rank in range(processes)]


def _rank(answers: Any, rank: int, processes: int, meeting: str, trainings: Sequence[Training]) -> None:
    import torch

    torch.set_num_threads(1)
    words = []
    try:
        for number, training in enumerate(trainings):
            os.environ["PW_PLACE"] = json.dumps([rank, processes, rank])
            os.environ["PW_STORE"] = str(Path(meeting) / f"store-{number}")
            words.append(training.carried_out(rank))
        answers.put((rank, words, ""))
    except BaseException:
        answers.put((rank, words, traceback.format_exc()))
