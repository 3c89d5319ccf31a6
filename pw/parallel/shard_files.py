"""Checkpoints of a split network, which any number of processes can read.

A checkpoint is a folder: <folder>/shard-00003-of-00008.safetensors, the rows that process 3 holds of every weight and
of AdamW's moments, and <folder>/rest.pt, all else. Only plain values are pickled, which `weights_only` loads.
`pw.train.callbacks.AfterUpdates` gives the folder its name when it is complete.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pw.parallel.place import Place
from pw.parallel.sharded import is_first_copy, local_rows

REST = "rest.pt"
ROWS = "rows"  # key of a shard's metadata: {name: first row}


class Shards:
    """The tensors of a checkpoint folder, read by rows. Raises ValueError when a file is missing or damaged."""

    def __init__(self, folder: Path) -> None:
        self._open = ExitStack()
        self._parts: dict[str, list[tuple[int, int, Any]]] = {}  # name -> (first row, number of rows, file)
        paths = sorted(folder.glob("shard-*-of-*.safetensors"))
        if not paths or len(paths) != int(paths[0].stem.rpartition("-")[2]):
            raise ValueError(f"{folder}: {len(paths)} shards are not all of it")
        try:
            for path in paths:
                file = self._open.enter_context(safe_open(path, "pt"))
                for name, first in json.loads(file.metadata()[ROWS]).items():
                    shape = file.get_slice(name).get_shape()
                    self._parts.setdefault(name, []).append((first, shape[0] if shape else 1, file))
        except SafetensorError as error:
            raise ValueError(f"{folder}: a shard is damaged ({error})") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def close(self) -> None:
        """Close the files."""
        self._open.close()

    def rows(self, name: str, first: int = 0, count: int | None = None) -> Tensor:
        """Rows [first, first + count) of a tensor; all rows by default."""
        parts = []
        for start, length, file in sorted(self._parts[name], key=lambda part: part[0]):
            tensor = file.get_slice(name)
            if not tensor.get_shape():
                return file.get_tensor(name)
            low = max(first, start) - start
            high = length if count is None else min(first + count, start + length) - start
            if low < high:
                parts.append(tensor[low:high])
        return torch.cat(parts) if parts else file.get_slice(name)[:0]


@dataclass(frozen=True)
class Snapshot:
    """A copy of what this process writes of a checkpoint: training may go on while it is being written."""

    rows: dict[str, Tensor]  # on the CPU
    first_rows: dict[str, int]
    rest: dict[str, Any]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> Snapshot:
        """Copy the rows that this process is to write."""
        rows, first_rows = {}, {}
        for name, tensor in tensors.items():
            if is_first_copy(tensor):
                here, first_rows[name] = local_rows(tensor)
                rows[name] = here.to("cpu", copy=True).contiguous()
        return cls(rows, first_rows, copy.deepcopy(dict(rest)))

    def write(self, folder: Path, place: Place) -> None:
        """Write this process's shard; the first process also writes `rest.pt`. Raises OSError on a full disk."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"shard-{place.rank:05d}-of-{place.processes:05d}.safetensors"
        try:
            save_file(self.rows, path, metadata={ROWS: json.dumps(self.first_rows)})
        except SafetensorError as error:  # a full disk
            raise OSError(f"{path}: {error}") from error
        if place.is_first:
            write_checkpoint(self.rest, folder / REST)


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint to one file. Raises OSError on a full disk, for which torch raises RuntimeError."""
    try:
        with path.open("wb") as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise OSError(f"{path}: {error.__context__}") from error
        raise


def read_rest(folder: Path) -> dict[str, Any]:
    """All of a checkpoint folder but its tensors. Raises ValueError unless every shard is complete."""
    Shards(folder).close()
    return torch.load(folder / REST, map_location="cpu", weights_only=True)


def as_one_file(folder: Path) -> dict[str, Any]:
    """A checkpoint folder as the checkpoint that a single process would have written."""
    checkpoint, shards = read_rest(folder), Shards(folder)
    state: dict[int, dict[str, Tensor]] = {}
    checkpoint["state_dict"] = {name: shards.rows(name) for name in shards if not name.startswith("optimizer.")}
    for name in shards:
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            state.setdefault(int(number), {})[key] = shards.rows(name)
    checkpoint["optimizer_states"][0]["state"] = dict(sorted(state.items()))
    shards.close()
    return checkpoint
