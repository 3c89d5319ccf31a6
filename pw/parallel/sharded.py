"""A network split over processes (FSDP2): how to split, fill and gather it, and its checkpoints.

A checkpoint is a folder that any number of processes can read: <folder>/shard-00003-of-00008.safetensors has the rows
of process 3 of every weight and of AdamW's moments, the .json beside it its SHA-256, <folder>/rest.pt all other state.
Only plain values are pickled, for `weights_only`. `pw.train.callbacks.TrainingCallback` renames the folder when it is
complete.
"""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from pw.io.files import read_json, sha256, write_json, write_tensors
from pw.parallel.team import Place
from pw.run.settings import Trainer

REST = "rest.pt"
ROWS = "rows"  # key of a shard's metadata: {name: first row}


def device_type(trainer: Trainer) -> str:
    return "cuda" if trainer.accelerator == "gpu" else "cpu"


def mesh_of(trainer: Trainer) -> DeviceMesh:
    """The mesh of processes: [shards] for fsdp, [copies, shards] for hsdp."""
    device = device_type(trainer)
    if trainer.strategy == "hsdp":
        return init_device_mesh(device, (trainer.copies, trainer.split), mesh_dim_names=("copy", "shard"))
    return init_device_mesh(device, (trainer.processes,), mesh_dim_names=("shard",))


def shard(net: nn.Module, blocks: Any, mesh: DeviceMesh) -> None:
    """Split a network over a mesh: each block is gathered for its computation, the other weights with the first block.

    Weights are gathered in fp32, and autocast casts them as on one device, so that Wan's fp32 modules stay in fp32.
    All are freed after a forward: the EMA and the optimizer see only shards.
    """
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh, reshard_after_forward=True)


def fill(net: nn.Module, source: nn.Module | None, device: str) -> None:
    """Copy the weights and buffers of a whole network to a split one on the meta device. All processes must call it.

    source  the whole network in the first process, None in the others, so that only one copy is in memory
    """
    net.to_empty(device=device)
    values = {} if source is None else _tensors(source)
    for name, tensor in _tensors(net).items():
        full = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        with torch.no_grad():
            if source is not None:
                full.copy_(values[name].detach())
            if isinstance(tensor, DTensor):
                split = distribute_tensor(full, tensor.device_mesh, tensor.placements)
                tensor.to_local().copy_(split.to_local())
            else:
                torch.distributed.broadcast(full, 0)
                tensor.copy_(full)


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def copy_parts(net: nn.Module, source: nn.Module) -> None:
    """Copy weights and buffers of a split network to another on the meta device that is split in the same way."""
    net.to_empty(device=next(source.parameters()).device)
    with torch.no_grad():
        for tensor, value in zip(_tensors(net).values(), _tensors(source).values(), strict=True):
            tensor.copy_(value)


def gather(tensor: Tensor, *, keep: bool = True) -> Tensor:
    """The whole tensor, which may be split, on the CPU; empty unless `keep`. All processes must call it."""
    full = tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()
    return full.cpu().contiguous() if keep else torch.empty(0)


def local_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """(rows of a tensor in this process, index of the first one)."""
    if not isinstance(tensor, DTensor):
        return tensor.detach(), 0
    mesh, first_row = tensor.device_mesh, 0
    for axis, placement in enumerate(tensor.placements):
        if isinstance(placement, Shard):
            assert placement.dim == 0, "FSDP splits rows"
            # like torch.chunk: rows / processes, rounded up, in all processes but the last
            rows = -(-tensor.shape[0] // mesh.size(axis))
            first_row = min(rows * mesh.get_local_rank(axis), tensor.shape[0])
        else:
            assert isinstance(placement, Replicate)
    return tensor.to_local().detach(), first_row


def is_first_copy(tensor: Tensor) -> bool:
    """Whether this process writes its rows: it is the first of those with the same rows."""
    if not isinstance(tensor, DTensor):
        return torch.distributed.get_rank() == 0
    mesh = tensor.device_mesh
    return all(
        mesh.get_local_rank(axis) == 0
        for axis, placement in enumerate(tensor.placements)
        if isinstance(placement, Replicate)
    )


def gather_state(net: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """The whole state of a network, which may be split, on the CPU; empty unless `keep`. All processes must call it."""
    state = {name: gather(tensor, keep=keep) for name, tensor in net.state_dict().items()}
    return state if keep else {}


class Shards:
    """The tensors of a checkpoint folder, read by rows. Raises ValueError when a file is missing or damaged."""

    def __init__(self, folder: Path) -> None:
        self._parts: dict[str, list[tuple[int, int, Any]]] = {}  # name -> (first row, number of rows, open file)
        paths = sorted(folder.glob("shard-*-of-*.safetensors"))
        if not paths or len(paths) != int(paths[0].stem.rpartition("-")[2]):
            raise ValueError(f"{folder}: {len(paths)} shards are not all of it")
        try:
            for path in paths:
                file = safe_open(path, "pt")
                for name, first in json.loads(file.metadata()[ROWS]).items():
                    shape = file.get_slice(name).get_shape()
                    self._parts.setdefault(name, []).append((first, shape[0] if shape else 1, file))
        except SafetensorError as error:
            raise ValueError(f"{folder}: a shard is damaged ({error})") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

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


def snapshot(tensors: Mapping[str, Tensor], rest: Mapping[str, Any], place: Place) -> Callable[[Path], None]:
    """Copy this process's part of a checkpoint to the CPU. Returns a function that writes it to the checkpoint's folder
    while training continues: the shard, and in the first process `rest.pt`; it raises OSError on a full disk."""
    rows, first_rows, rest = {}, {}, copy.deepcopy(dict(rest))
    for name, tensor in tensors.items():
        if is_first_copy(tensor):
            local, first_rows[name] = local_rows(tensor)
            rows[name] = local.to("cpu", copy=True).contiguous()

    def write(folder: Path) -> None:
        path = folder / f"shard-{place.rank:05d}-of-{place.processes:05d}.safetensors"
        write_tensors(path, rows, {ROWS: json.dumps(first_rows)})
        write_json(path.with_suffix(".json"), {"sha256": sha256(path)})
        if place.is_first:
            write_checkpoint(rest, folder / REST)

    return write


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint to one file. Raises OSError on a full disk, instead of torch's RuntimeError."""
    try:
        with path.open("wb") as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise OSError(f"{path}: {error.__context__}") from error
        raise


def check_checkpoint(path: Path) -> None:
    """Check every byte of a checkpoint, a file or a folder. Raises ValueError, or as `zipfile` does, if one changed.

    A file of torch is a zip whose CRC-32s torch does not read; a shard has its SHA-256 beside it.
    """
    if path.is_dir():
        shards = list(path.glob("shard-*.safetensors"))
        with ThreadPoolExecutor() as threads:
            for shard, actual in zip(shards, threads.map(sha256, shards), strict=True):
                expected = (read_json(shard.with_suffix(".json")) or {}).get("sha256", actual)  # older ones have none
                if actual != expected:
                    raise ValueError(f"{shard.name} has another content than was written")
        path = path / REST
    with zipfile.ZipFile(path) as archive:
        if part := archive.testzip():
            raise ValueError(f"{part} has another content than was written")


def read_rest(folder: Path) -> dict[str, Any]:
    """The content of `rest.pt` of a checkpoint folder. Raises ValueError unless every shard is complete."""
    Shards(folder)
    return torch.load(folder / REST, map_location="cpu", weights_only=True)


def as_one_file(folder: Path) -> dict[str, Any]:
    """A checkpoint folder, converted to the checkpoint of a single process."""
    checkpoint, shards = read_rest(folder), Shards(folder)
    state: dict[int, dict[str, Tensor]] = {}
    checkpoint["state_dict"] = {}
    for name in shards:
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            state.setdefault(int(number), {})[key] = shards.rows(name)
        else:
            checkpoint["state_dict"][name] = shards.rows(name)
    checkpoint["optimizer_states"][0]["state"] = dict(sorted(state.items()))
    return checkpoint
