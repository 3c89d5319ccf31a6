"""Context parallelism: processes that evaluate the same clips together, each on a part of the tokens.

A block's linear layers work on this process's tokens; for self-attention the processes exchange tokens for heads and
back (Ulysses), forward and backward by diffusers' hooks. Layers before the blocks are computed in full by each process,
and the velocity is gathered, so that each process has all of it. The gradient of a loss in one process covers its
tokens alone; the sum over the processes is the gradient.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.distributed as dist
from diffusers.hooks.context_parallel import apply_context_parallel
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
from diffusers.models.attention import AttentionModuleMixin
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pw.nn.backbone import Backbone


def groups_of(processes: int, device: str) -> DeviceMesh:
    """All processes in groups of so many neighbours in rank, which meet on `cuda` or `cpu`. All must call it."""
    groups = dist.get_world_size() // processes
    return init_device_mesh(device, (groups, 1, processes), mesh_dim_names=("group", "ring", "ulysses"))


def share_tokens(net: Backbone, mesh: DeviceMesh) -> None:
    """Have a network evaluated by each of the groups together, which must be given equal inputs.

    The tokens of a clip and the heads of a block must be multiples of a group's processes.
    """
    processes = mesh["ulysses"].size()
    context = ContextParallelConfig(ulysses_degree=processes, mesh=mesh)
    config = ParallelConfig(context_parallel_config=context)
    config.setup(dist.get_rank(), dist.get_world_size(), net.dit.device, mesh=mesh)
    for module in net.dit.modules():
        processor: Any = getattr(module, "processor", None)
        if isinstance(module, AttentionModuleMixin) and processor is not None:
            processor._parallel_config = config
    # the timestep is one per clip, and what enters the first block is split by `_part_of` before the anchor is added
    plan: Any = {part: how for part, how in net.dit._cp_plan.items() if part in ("rope", "proj_out")}
    apply_context_parallel(net.dit, context, plan)
    net.part = mesh["ulysses"].get_local_rank(), processes
    net.dit.blocks[0].register_forward_pre_hook(partial(_part_of, *net.part), prepend=True)


def _part_of(which: int, parts: int, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    hidden, *rest = args
    return (hidden.chunk(parts, dim=1)[which], *rest)
