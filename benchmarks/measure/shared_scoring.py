"""Scoring on several GPUs: processes that each fill the cache with their share of the videos."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.measure.folder_scoring import FolderScoring
from benchmarks.measure.gpu_choice import gpus, visible_gpu
from benchmarks.measure.measurement import MeasureOptions
from benchmarks.metrics import lookup
from pw.io.arguments import written

PARENT = "PW_SCORE_PARENT"
"""The process whose end ends one that shares its work."""


def share(names: Sequence[str], options: MeasureOptions, todo: FolderScoring) -> None:
    """Let several processes fill the cache first, each with every n-th video, where there are several GPUs."""
    networks = options.device == "auto" and any(lookup(n).weights or lookup(n).extra for n in todo.names)
    count = options.processes or (gpus() if networks else 1)
    videos = [p for p in todo.readable() if todo.lacking(p)] if count > 1 else []
    count = min(count, len(videos))
    if count < 2:
        return
    streamed = [name for name in names if lookup(name).family != "reference"]  # those take the folder as a whole
    device = "cpu" if options.device == "cpu" else "auto"
    one = replace(options, processes=1, threads=max(1, todo.threads // count), device=device)
    workers = []
    for i in range(count):
        shard = tempfile.TemporaryDirectory(prefix="pw-score-")
        for path in videos[i::count]:
            os.symlink(path.resolve(), Path(shard.name) / path.name)
        workers.append((shard, _score_in_a_process(Path(shard.name), streamed, one, i)))
    try:
        for _, process in workers:
            process.wait()
    finally:  # what a worker left undone is measured here, and what is wrong is said here
        for shard, process in workers:
            process.kill()
            process.wait()
            shard.cleanup()


def _score_in_a_process(
    folder: Path, names: Sequence[str], options: MeasureOptions, number: int
) -> subprocess.Popen[bytes]:
    """Start `pw score` on a folder, with a GPU of its own where there are several."""
    words = [f"videos={folder}", f"metrics={','.join(names)}", f"out={folder / '.scores.csv'}", *written(options)]
    here = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": str(here), PARENT: str(os.getpid())}
    if gpus() > 1:
        env["CUDA_VISIBLE_DEVICES"] = visible_gpu(number % gpus())
    return subprocess.Popen([sys.executable, "-m", "pw", "score", *words], env=env, stdout=subprocess.DEVNULL)


def end_with_parent() -> None:
    """Let this process end soon after the one that shares its work with it, also if that one was killed."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
