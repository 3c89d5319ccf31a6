"""A system's videos by several processes: one for each GPU, or all of them sharing one model.

A process that is started here ends with the one that started it, however that ends: nothing is left that holds a GPU.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from benchmarks.systems.generation_call import Call
from benchmarks.systems.jobs import VideoJob
from pw.io.arguments import ConfigError
from pw.io.lazy import torch
from pw.io.paths import ROOT

GRACE = 5.0  # s between asking a program to end and ending it


def spread_over_gpus(call: Call) -> int:
    """Start a process for each GPU and wait for all; the worst exit status.

    Each makes its share of the videos, or (trainer=fsdp) all share one model. What is made does not depend on how many.
    """
    gpus, (first, parts), visible = call.options.gpus, call.options.shard, _visible()
    if call.options.device != "cpu" and visible is not None and gpus > len(visible):
        raise ConfigError(f"gpus={gpus}: {len(visible)} are to be seen here")
    if call.is_fsdp:
        many = ["torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", "-m"]
        words = [sys.executable, "-m", *many, "pw", "system", *call.words(1, first, parts)]
        with subprocess.Popen(words, env=environment()) as process, ending_with_us(process.pid):
            return process.wait()
    running = []
    for i in range(gpus):
        one = environment()
        if visible:
            one["CUDA_VISIBLE_DEVICES"] = visible[i]
        words = call.words(1, first * gpus + i, parts * gpus)
        running.append(subprocess.Popen([sys.executable, "-m", "pw", "system", *words], env=one))
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
    return nvidia_smi("index") or (None if shutil.which("nvidia-smi") is None else [])


def nvidia_smi(what: str) -> list[str] | None:
    """What nvidia-smi says of each visible GPU; None where it says nothing."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shutil.which("nvidia-smi") is None or visible == "":
        return None
    only = [] if visible is None else ["-i", visible]
    words = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", *only]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    return lines if answer.returncode == 0 and lines else None


@contextmanager
def ending_with_us(pid: int, *, group: bool = False) -> Generator[None]:
    """While in it, a process (or its process group) is ended when we are gone, `kill -9` and a full memory included.

    A shell of its own session reads from a pipe that nobody but us holds open, which closes as we end.
    """
    target = f"-{pid}" if group else str(pid)
    script = f'read -r _; kill -s TERM -- "$1"; sleep {GRACE:g}; kill -s KILL -- "$1"'
    quiet = subprocess.DEVNULL
    watcher = subprocess.Popen(
        ["sh", "-c", script, "sh", target], stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        yield
    finally:
        watcher.kill()  # before its pipe closes
        watcher.communicate()


@contextmanager
def process_group(call: Call, todo: list[VideoJob]) -> Generator[tuple[int, int, list[VideoJob]]]:
    """(rank, processes, the first one's `todo`) of trainer=fsdp's group, in which all take part in the same rounds."""
    if not call.is_fsdp:
        yield 0, 1, todo
        return
    if "RANK" not in os.environ:
        raise ConfigError("trainer=fsdp: give gpus=N too, the number of GPUs that share the model (at least 2)")
    if call.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if call.device == "cuda" else "gloo")
    try:
        agreed = [todo]
        torch.distributed.broadcast_object_list(agreed)
        yield torch.distributed.get_rank(), torch.distributed.get_world_size(), agreed[0]
    finally:
        torch.distributed.destroy_process_group()
