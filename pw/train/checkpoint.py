"""Checkpoints of a training: find the newest that can be read, and export the weights at the end."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pw.io.arguments import ConfigError
from pw.io.files import remove, write_tensors
from pw.parallel.team import Team

KEPT = ("last", "previous")  # checkpoints, the newest first
WHOLE = "whole.ckpt"  # a split checkpoint put together, while it is being read


def export(folder: Path, module: Any, team: Team) -> None:
    """Write `online.safetensors` and `ema.safetensors`, whole. All processes must call it."""
    from pw.parallel.sharded import gathered_state

    for name in ("online", "ema"):
        state = gathered_state(module.net if name == "online" else module.ema, keep=team.place.is_first)
        if team.place.is_first:
            write_tensors(folder / f"{name}.safetensors", state)
        del state  # before the next one is put together: 20 GB each


def last_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """The newest readable checkpoint and its update; an unreadable one is set aside with a warning."""
    import torch

    for name in KEPT:
        path = folder / "checkpoints" / f"{name}.ckpt"
        if not path.exists():
            continue
        try:
            if path.is_dir():
                from pw.parallel.sharded import read_rest

                checkpoint = read_rest(path)
            else:
                checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            signature = checkpoint["pw_signature"]
            if signature != folder.name:
                raise ConfigError(f"{path} is a checkpoint of signature {signature}, not {folder.name}; remove it")
            return path, int(checkpoint["global_step"])
        except ConfigError:
            raise
        except Exception as error:
            logging.getLogger("pw").warning("%s is unreadable (%s); trying the one before", path, error)
            aside = path.with_suffix(".unreadable")
            remove(aside)
            path.rename(aside)
    return None


def merge_shards(shards: Path, team: Team) -> Path:
    """Write a split checkpoint as one file, which processes that each hold the whole network can read.

    All processes must call it.
    """
    from pw.parallel.sharded import as_one_file, write_checkpoint

    path = shards.with_name(WHOLE)
    if team.place.is_first:
        write_checkpoint(as_one_file(shards), path)
    team.wait()
    return path
