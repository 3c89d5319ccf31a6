"""A network split over processes (FSDP2): how it is split, and its checkpoints, which any number of processes can read.

A checkpoint is a folder: <folder>/shard-00003-of-00008.safetensors, the rows that process 3 holds of every weight and
of AdamW's moments, and <folder>/rest.pt, all else. Nothing in it is pickled but plain values, which `weights_only`
loads. `pw.train.loop` renames it into place when it is whole.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.optim import Optimizer

from pw.parallel.place import Place
from pw.run.settings import Trainer

REST = "rest.pt"
ROWS = "rows"  # key of a shard's metadata: {name: first row}


def device_type(trainer: Trainer) -> str:
    """What torch calls the devices."""
    return "cuda" if trainer.accelerator == "gpu" else "cpu"


def mesh_of(trainer: Trainer) -> DeviceMesh:
    """The processes as a row (fsdp), or as copies x shards of each copy (hsdp)."""
    device = device_type(trainer)
    if trainer.strategy == "hsdp":
        return init_device_mesh(device, (trainer.copies, trainer.split), mesh_dim_names=("copy", "shard"))
    return init_device_mesh(device, (trainer.processes,), mesh_dim_names=("shard",))


def shard(net: nn.Module, blocks: Any, mesh: DeviceMesh) -> None:
    """Split a network over a mesh: each block is gathered when it computes, the rest with the first of them.

    Weights are gathered in fp32 and autocast lowers them where it lowers one device's, so that what Wan keeps in fp32
    is kept here, too. All are let go after a forward: the EMA and the optimiser see shards alone.
    """
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh, reshard_after_forward=True)


def fill(net: nn.Module, source: nn.Module | None, device: str) -> None:
    """Give a split network, made on the meta device, the weights and buffers of a whole one.

    source  the whole one in the first process, None in the others: one copy in a machine's memory, not one for each

    All processes must call it.
    """
    net.to_empty(device=device)
    for tensor, found in zip(_tensors(net).values(), _found(net, source), strict=True):
        full = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        with torch.no_grad():
            if found is not None:
                full.copy_(found)
            if isinstance(tensor, DTensor):
                dealt = distribute_tensor(full, tensor.device_mesh, tensor.placements)
                tensor.to_local().copy_(dealt.to_local())
            else:
                torch.distributed.broadcast(full, 0)
                tensor.copy_(full)


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def _found(net: nn.Module, source: nn.Module | None) -> list[Tensor | None]:
    if source is None:
        return [None] * len(_tensors(net))
    found = _tensors(source)
    return [found[name].detach() for name in _tensors(net)]


def copy_parts(net: nn.Module, source: nn.Module) -> None:
    """Give a network that was made on the meta device, and split as another was, the other's weights and buffers."""
    net.to_empty(device=next(source.parameters()).device)
    with torch.no_grad():
        for tensor, found in zip(_tensors(net).values(), _tensors(source).values(), strict=True):
            tensor.copy_(found)


def whole(tensor: Tensor, *, keep: bool = True) -> Tensor:
    """All of a tensor that may be split, on the CPU; empty where it is not to be kept. All processes must call it."""
    full = tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()
    return full.cpu().contiguous() if keep else torch.empty(0)


def rows_here(tensor: Tensor) -> tuple[Tensor, int]:
    """(what this process holds of a tensor, the number of its first row)."""
    if not isinstance(tensor, DTensor):
        return tensor.detach(), 0
    mesh, first = tensor.device_mesh, 0
    for axis, placement in enumerate(tensor.placements):
        if isinstance(placement, Shard):
            assert placement.dim == 0, "FSDP splits rows"
            # torch.chunk's cut: all but the last have as many rows, rounded up
            most = -(-tensor.shape[0] // mesh.size(axis))
            first = min(most * mesh.get_local_rank(axis), tensor.shape[0])
        else:
            assert isinstance(placement, Replicate)
    return tensor.to_local().detach(), first


def is_first_copy(tensor: Tensor) -> bool:
    """Whether this process's part is to be written by it: the first of those that hold the same."""
    if not isinstance(tensor, DTensor):
        return torch.distributed.get_rank() == 0
    mesh = tensor.device_mesh
    return all(
        mesh.get_local_rank(axis) == 0
        for axis, placement in enumerate(tensor.placements)
        if isinstance(placement, Replicate)
    )


def moments(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors by name, `optimizer.<number of the parameter>.exp_avg` and so on."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"optimizer.{number}.{key}": value
        for number, parameter in enumerate(parameters)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


class Shards:
    """The tensors of a checkpoint folder, by rows. Raises ValueError when a file is missing or damaged."""

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
        """Let the files go."""
        self._open.close()

    def rows(self, name: str, first: int = 0, count: int | None = None) -> Tensor:
        """Rows first … first + count of a tensor; all of it by default."""
        found = []
        for start, length, file in sorted(self._parts[name], key=lambda part: part[0]):
            tensor = file.get_slice(name)
            if not tensor.get_shape():
                return file.get_tensor(name)
            low = max(first, start) - start
            high = length if count is None else min(first + count, start + length) - start
            if low < high:
                found.append(tensor[low:high])
        return torch.cat(found) if found else file.get_slice(name)[:0]


@dataclass(frozen=True)
class Snapshot:
    """What a process writes of a checkpoint, as it was when this was made: training may go on meanwhile."""

    rows: dict[str, Tensor]  # on the CPU
    first_rows: dict[str, int]
    rest: dict[str, Any]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> Snapshot:
        """The rows that this process is the first to hold, copied."""
        rows, first_rows = {}, {}
        for name, tensor in tensors.items():
            if is_first_copy(tensor):
                here, first_rows[name] = rows_here(tensor)
                rows[name] = here.to("cpu", copy=True).contiguous()
        return cls(rows, first_rows, copy.deepcopy(dict(rest)))

    def write(self, folder: Path, place: Place) -> None:
        """Write this process's part of a checkpoint folder, the first one all the rest. Raises OSError: a full disk."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"shard-{place.rank:05d}-of-{place.processes:05d}.safetensors"
        try:
            save_file(self.rows, path, metadata={ROWS: json.dumps(self.first_rows)})
        except SafetensorError as error:  # a full disk
            raise OSError(f"{path}: {error}") from error
        if place.is_first:
            write_checkpoint(self.rest, folder / REST)


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint to one file. Raises OSError on a full disk, which torch calls an unexpected position."""
    try:
        with path.open("wb") as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise OSError(f"{path}: {error.__context__}") from error
        raise


class InPlace(TorchCheckpointIO):
    """A checkpoint of one file, written where it belongs: Lightning's own is held in memory twice, written to the
    system's folder for temporary files, which may be full where `outputs` is not, and copied from there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, Path(path))


def read_rest(folder: Path) -> dict[str, Any]:
    """All of a checkpoint folder but its tensors, once every shard has been found whole."""
    Shards(folder).close()
    return torch.load(folder / REST, map_location="cpu", weights_only=True)


def as_one_file(folder: Path) -> dict[str, Any]:
    """A checkpoint folder as the checkpoint that one device would have written."""
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


class Placed(ClusterEnvironment):
    """A `Place` in Lightning's words."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        raise AssertionError("the processes have met already")

    @property
    def main_port(self) -> int:
        raise AssertionError("the processes have met already")

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.place.processes

    def set_world_size(self, size: int) -> None:
        assert size == self.place.processes

    def global_rank(self) -> int:
        return self.place.rank

    def set_global_rank(self, rank: int) -> None:
        assert rank == self.place.rank

    def local_rank(self) -> int:
        return self.place.local_rank

    def node_rank(self) -> int:
        return self.place.node


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with checkpoints that know nothing of how many wrote them."""

    def __init__(self, place: Place) -> None:
        super().__init__(data_parallel_size=place.processes, tensor_parallel_size=1)
        self.place = place
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.written: Future[None] | None = None  # the last checkpoint, see `save_checkpoint`
        self._read: Path | None = None

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        inner: Optimizer = getattr(optimizer, "_optimizer", optimizer)
        return {"state": moments(inner), "param_groups": inner.state_dict()["param_groups"]}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Begin to write a checkpoint: when this returns all is copied, and `written` tells when it is on the disk."""
        tensors = {**checkpoint.pop("state_dict"), **checkpoint["optimizer_states"][0]["state"]}
        checkpoint["optimizer_states"][0]["state"] = {}
        snapshot = Snapshot.of(tensors, checkpoint)
        self.written = self.writer.submit(snapshot.write, Path(filepath), self.place)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        self._read = Path(checkpoint_path)
        if self._read.is_dir():
            return read_rest(self._read)
        return torch.load(self._read, map_location="cpu", weights_only=True, mmap=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        self._load(self.lightning_module.state_dict(), checkpoint.get("state_dict", {}))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        (optimizer,) = self.optimizers
        saved = checkpoint["optimizer_states"][0]
        state = {}
        for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            state[number] = {
                "step": torch.zeros(()),
                **{key: torch.zeros_like(parameter.detach()) for key in ("exp_avg", "exp_avg_sq")},
            }
        flat = {f"optimizer.{n}.{key}": value for n, values in state.items() for key, value in values.items()}
        self._load(flat, {f"optimizer.{n}.{k}": v for n, values in saved["state"].items() for k, v in values.items()})
        optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})

    def _load(self, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
        """Fill tensors with their rows of the checkpoint: a folder's, or of the whole ones `found` in a file."""
        assert self._read is not None
        shards = Shards(self._read) if self._read.is_dir() else None
        for name, tensor in wanted.items():
            here, first = rows_here(tensor)
            count = len(here) if here.ndim else None
            if shards is not None:
                here.copy_(shards.rows(name, first, count))
            else:
                here.copy_(found[name][first : first + len(here)] if here.ndim else found[name])
        if shards is not None:
            shards.close()


def strategy(trainer: Trainer, place: Place) -> Strategy:
    """Lightning's strategy for what `trainer` asks."""
    if trainer.strategy == "single":
        return SingleDeviceStrategy("cuda:0" if trainer.accelerator == "gpu" else "cpu", checkpoint_io=InPlace())
    if trainer.strategy == "ddp":
        return DDPStrategy(checkpoint_io=InPlace())
    return Sharded(place)


def exported(net: LightningModule | nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """A network's whole state on the CPU, where it is kept. All processes must call it."""
    state = {name: whole(tensor, keep=keep) for name, tensor in net.state_dict().items()}
    return state if keep else {}
