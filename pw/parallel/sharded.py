"""A network split over processes (FSDP2): how it is split, filled, and gathered again."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from pw.run.settings import Trainer


def device_type(trainer: Trainer) -> str:
    """What torch calls the devices."""
    return "cuda" if trainer.accelerator == "gpu" else "cpu"


def mesh_of(trainer: Trainer) -> DeviceMesh:
    """The mesh of processes: shards (fsdp), or copies x shards of each copy (hsdp)."""
    device = device_type(trainer)
    if trainer.strategy == "hsdp":
        return init_device_mesh(device, (trainer.copies, trainer.split), mesh_dim_names=("copy", "shard"))
    return init_device_mesh(device, (trainer.processes,), mesh_dim_names=("shard",))


def shard(net: nn.Module, blocks: Any, mesh: DeviceMesh) -> None:
    """Split a network over a mesh: each block is gathered when it computes, the rest with the first block.

    Weights are gathered in fp32, and autocast casts them as it does on one device, so that what Wan keeps in fp32 stays
    in fp32. All are freed after a forward: the EMA and the optimizer see shards only.
    """
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh, reshard_after_forward=True)


def fill(net: nn.Module, source: nn.Module | None, device: str) -> None:
    """Give a split network, made on the meta device, the weights and buffers of a whole one.

    source  the whole network in the first process, None in the others, so that a machine holds one copy

    All processes must call it.
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
    """Copy weights and buffers of a split network to another, made on the meta device and split in the same way."""
    net.to_empty(device=next(source.parameters()).device)
    with torch.no_grad():
        for tensor, value in zip(_tensors(net).values(), _tensors(source).values(), strict=True):
            tensor.copy_(value)


def gathered(tensor: Tensor, *, keep: bool = True) -> Tensor:
    """The whole of a tensor that may be split, on the CPU; empty unless `keep`. All processes must call it."""
    full = tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()
    return full.cpu().contiguous() if keep else torch.empty(0)


def local_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """(the rows of a tensor that this process holds, the number of the first)."""
    if not isinstance(tensor, DTensor):
        return tensor.detach(), 0
    mesh, first = tensor.device_mesh, 0
    for axis, placement in enumerate(tensor.placements):
        if isinstance(placement, Shard):
            assert placement.dim == 0, "FSDP splits rows"
            # as torch.chunk splits: rows / processes, rounded up, for all but the last
            rows = -(-tensor.shape[0] // mesh.size(axis))
            first = min(rows * mesh.get_local_rank(axis), tensor.shape[0])
        else:
            assert isinstance(placement, Replicate)
    return tensor.to_local().detach(), first


def is_first_copy(tensor: Tensor) -> bool:
    """Whether this process writes its part: it is the first of those that hold the same rows."""
    if not isinstance(tensor, DTensor):
        return torch.distributed.get_rank() == 0
    mesh = tensor.device_mesh
    return all(
        mesh.get_local_rank(axis) == 0
        for axis, placement in enumerate(tensor.placements)
        if isinstance(placement, Replicate)
    )


def gathered_state(net: LightningModule | nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """The state of a network that may be split, whole, on the CPU; empty unless `keep`. All processes must call it."""
    state = {name: gathered(tensor, keep=keep) for name, tensor in net.state_dict().items()}
    return state if keep else {}
