"""A system's videos by several processes: one for each GPU, or all of them sharing one model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from benchmarks.systems.generation_call import Call
from benchmarks.systems.jobs import VideoJob
from benchmarks.systems.watch import ending_with_us
from pw.io.arguments import ConfigError, written
from pw.io.paths import ROOT


def spread_over_gpus(call: Call) -> int:
    """Start a process for each GPU and wait for all; the worst exit status.

    Each makes its share of the videos, or (trainer=fsdp) all share one model. What is made does not depend on how many.
    """
    rest, gpus = written(replace(call.options, gpus=1, shard=(0, 1))), call.options.gpus
    visible = _visible()
    if call.options.device != "cpu" and visible is not None and gpus > len(visible):
        raise ConfigError(f"gpus={gpus}: {len(visible)} are to be seen here")
    me = [sys.executable, "-m"]
    first, parts = call.options.shard
    if call.is_fsdp:
        many = ["torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", "-m"]
        words = [*me, *many, "pw", "system", *rest, f"shard={first}/{parts}"]
        with subprocess.Popen(words, env=environment()) as process, ending_with_us(process.pid):
            return process.wait()
    running = []
    for i in range(gpus):
        one = environment()
        if visible:
            one["CUDA_VISIBLE_DEVICES"] = visible[i]
        share = f"shard={first * gpus + i}/{parts * gpus}"
        running.append(subprocess.Popen([*me, "pw", "system", *rest, share], env=one))
    try:
        with ExitStack() as watched:
            for process in running:
                watched.enter_context(ending_with_us(process.pid))
            statuses = [process.wait() for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
    for i, status in enumerate(statuses):
        if status < 0:
            name = signal.Signals(-status).name
            print(f"error: share {i + 1} of {gpus} was ended by {name}; the same command goes on", file=sys.stderr)
    return max(status if status >= 0 else 1 for status in statuses)


def environment() -> dict[str, str]:
    """Ours, in which `python -m` finds this code from any folder."""
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": str(ROOT) if not path else f"{ROOT}{os.pathsep}{path}"}


def _visible() -> list[str] | None:
    """Names of the GPUs to be used, without importing torch; None: not known."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [name for name in said.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return None
    answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    return [str(i) for i, line in enumerate(answer.stdout.splitlines()) if line.startswith("GPU ")]


@contextmanager
def process_group(call: Call) -> Generator[tuple[int, int]]:
    """(rank, processes) of trainer=fsdp's group; (0, 1) without one."""
    if not call.is_fsdp:
        yield 0, 1
        return
    import torch

    if "RANK" not in os.environ:
        raise ConfigError("trainer=fsdp: give gpus=N too, the number of GPUs that share the model (at least 2)")
    if call.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if call.device == "cuda" else "gloo")
    try:
        yield torch.distributed.get_rank(), torch.distributed.get_world_size()
    finally:
        torch.distributed.destroy_process_group()


def same_everywhere(todo: list[VideoJob]) -> list[VideoJob]:
    """The first process's list, so that all take part in the same rounds."""
    import torch

    said: list[Any] = [todo]
    torch.distributed.broadcast_object_list(said)
    return said[0]


def processes(call: Call) -> int:
    """How many processes share the model."""
    return int(os.environ.get("WORLD_SIZE", "1")) if call.is_fsdp else 1
