"""Make the videos of a system with several processes: one per GPU, or all sharing one model.

A process that is started here ends when its parent ends for any reason, so no process keeps holding a GPU.
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

GRACE = 5.0  # s between SIGTERM and SIGKILL


def spread_over_gpus(call: Call) -> int:
    """Start a process for each GPU and wait for all; returns the largest exit status.

    Each process makes its share of the videos, or (trainer=fsdp) all share one model. The videos do not depend on the
    number of processes.
    """
    gpus, (first, parts), visible = call.options.gpus, call.options.shard, _visible_gpus()
    if call.options.device != "cpu" and visible is not None and gpus > len(visible):
        raise ConfigError(f"gpus={gpus}: only {len(visible)} visible on this machine")
    if call.is_fsdp:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", "-m"]
        words = [sys.executable, "-m", *launcher, "pw", "system", *call.words(1, first, parts)]
        with subprocess.Popen(words, env=environment()) as process, end_with_parent(process.pid):
            return process.wait()
    processes = []
    for i in range(gpus):
        variables = environment()
        if visible:
            variables["CUDA_VISIBLE_DEVICES"] = visible[i]
        words = call.words(1, first * gpus + i, parts * gpus)
        processes.append(subprocess.Popen([sys.executable, "-m", "pw", "system", *words], env=variables))
    try:
        with ExitStack() as stack:
            for process in processes:
                stack.enter_context(end_with_parent(process.pid))
            statuses = [process.wait() for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
    for i, status in enumerate(statuses):
        if status < 0:
            name = signal.Signals(-status).name
            message = f"error: share {i + 1} of {gpus} was killed by {name}; run the same command again to resume"
            print(message, file=sys.stderr)
    return max(status if status >= 0 else 1 for status in statuses)


def environment() -> dict[str, str]:
    """The environment variables, with PYTHONPATH for this code in any working directory."""
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": str(ROOT) if not path else f"{ROOT}{os.pathsep}{path}"}


def _visible_gpus() -> list[str] | None:
    """Names of the visible GPUs, without importing torch; None if unknown."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is not None:
        return [name for name in value.split(",") if name.strip()]
    return nvidia_smi("index") or (None if shutil.which("nvidia-smi") is None else [])


def nvidia_smi(field: str) -> list[str] | None:
    """A field of nvidia-smi for each visible GPU; None if there is no answer."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shutil.which("nvidia-smi") is None or visible == "":
        return None
    selection = [] if visible is None else ["-i", visible]
    words = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", *selection]
    try:
        result = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    return lines if result.returncode == 0 and lines else None


@contextmanager
def end_with_parent(pid: int, *, group: bool = False) -> Generator[None]:
    """Context in which a process (or its process group) ends when this process ends, even by `kill -9`.

    A shell in its own session reads from a pipe that only this process holds open; the pipe closes when it ends.
    """
    target = f"-{pid}" if group else str(pid)
    script = f'read -r _; kill -s TERM -- "$1"; sleep {GRACE:g}; kill -s KILL -- "$1"'
    null = subprocess.DEVNULL
    watcher = subprocess.Popen(
        ["sh", "-c", script, "sh", target], stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True
    )
    try:
        yield
    finally:
        watcher.kill()  # before its pipe closes
        watcher.communicate()


@contextmanager
def process_group(call: Call, todo: list[VideoJob]) -> Generator[tuple[int, int, list[VideoJob]]]:
    """The group of trainer=fsdp: (rank, number of processes, `todo` of rank 0), so that all run the same rounds."""
    if not call.is_fsdp:
        yield 0, 1, todo
        return
    if "RANK" not in os.environ:
        raise ConfigError("trainer=fsdp: set gpus=N too, the number of GPUs that share the model (at least 2)")
    if call.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if call.device == "cuda" else "gloo")
    try:
        shared = [todo]
        torch.distributed.broadcast_object_list(shared)
        yield torch.distributed.get_rank(), torch.distributed.get_world_size(), shared[0]
    finally:
        torch.distributed.destroy_process_group()
