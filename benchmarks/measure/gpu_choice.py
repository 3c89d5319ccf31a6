"""Which GPU networks are measured on."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

from pw.io.arguments import ConfigError


def device_for(wanted: str) -> str:
    """The device of networks: "auto" is the first GPU, else the CPU.

    torch, half a GB, is imported only where there may be a GPU. Raises ConfigError for a GPU that there is not.
    """
    if wanted == "cpu" or (wanted == "auto" and not gpus()):
        return "cpu"
    if not gpus():
        raise ConfigError(f"device={wanted}: torch sees no GPU here; device=cpu works")
    known = [f"cuda:{i}" for i in range(gpus())]
    if wanted not in ("auto", *known):
        raise ConfigError(f"device={wanted}: one of auto, cpu, {', '.join(known)}")
    return known[0] if wanted == "auto" else wanted


@functools.cache
def gpus() -> int:
    """GPUs that torch sees; without NVIDIA's driver it is not asked."""
    if not (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()):
        return 0
    import torch

    return torch.cuda.device_count()


def visible_gpu(i: int) -> str:
    """The i-th of the GPUs that this process may use."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return given.split(",")[i] if given else str(i)
