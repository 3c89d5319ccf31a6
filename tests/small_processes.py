"""Trainings by several processes on one machine, which share one import of torch."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PRELOAD = ["torch", "lightning.pytorch", "pw.stages.anchor", "pw.stages.hires", "pw.data.procedural", "pw.train"]
WAIT = 240


def run_together(work: Callable[..., Any], processes: int, *arguments: Any) -> list[Any]:
    """What `work(*arguments)` returned in each of the processes, or the exception it ended with.

    Each finds itself placed as `pw.parallel.launch` would have done it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as meeting:
        workers = [
            context.Process(target=_rank, args=(answers, rank, processes, meeting, work, arguments), daemon=True)
            for rank in range(processes)
        ]
        for worker in workers:
            worker.start()
        try:
            found = dict(answers.get(timeout=WAIT) for _ in workers)
        finally:
            for worker in workers:
                worker.join(10)
                worker.kill()
    return [found[rank] for rank in range(processes)]


def _rank(answers: Any, rank: int, processes: int, meeting: str, work: Callable[..., Any], arguments: Any) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["PW_PLACE"] = json.dumps([rank, processes, rank])
    os.environ["PW_STORE"] = str(Path(meeting) / "store")
    try:
        answers.put((rank, work(*arguments)))
    except BaseException as error:
        import traceback

        traceback.print_exc()
        answers.put((rank, error))


def train_all(jobs: Sequence[tuple[Sequence[str], Path]]) -> list[Path]:
    """Train runs one after the other, each from its overrides to its outputs."""
    from pw.build import build
    from pw.train import train

    folders = []
    store = os.environ["PW_STORE"]
    for number, (overrides, outputs) in enumerate(jobs):
        os.environ["PW_STORE"] = f"{store}-{number}"
        folders.append(train(build(overrides), outputs))
    return folders
