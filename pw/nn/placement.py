"""Where the weights of a network wait between their uses, and in how many bits: for GPUs of 24 or 32 GB."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.hooks import HookRegistry

from pw.nn.backbone import Backbone


def store_in_fp8(net: Backbone) -> None:
    """Keep the linear layers of the blocks in 8 bits (e4m3); each is cast to the network's dtype while it computes.

    Diffusers' layerwise casting. Embeddings, norms, modulation, the output layer, stride embedding and injector keep
    their dtypes.
    """
    dtype = net.dit.patch_embedding.weight.dtype
    net.dit.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)


def offload_blocks(net: Backbone, device: str) -> Backbone:
    """Keep the blocks in CPU memory and the rest on `device`, where each block is copied for its evaluation.

    Diffusers' group offloading. On a GPU the next block is copied from page-locked memory while one computes, so two
    are there at once. It changes no bit. Moving the network afterwards would undo it.
    """
    # `record_stream` would let the CPU run ahead, and blocks that are done with could not be freed in time
    options: dict[str, Any] = {"num_blocks_per_group": 1, "use_stream": device.startswith("cuda")}
    net.dit.enable_group_offload(torch.device(device), offload_type="block_level", record_stream=False, **options)
    # what is no block is small, but would be copied there and back in each evaluation, while nothing computes
    hook: Any = HookRegistry.check_if_exists_or_initialize(net.dit).get_hook("group_offloading")
    hook.group.modules, hook.group.parameters, hook.group.buffers = [], [], []
    rest = [module for module in (*net.dit.children(), *net.children()) if module not in (net.dit, net.dit.blocks)]
    for module in rest:
        module.to(device)
    for parameter in net.dit.parameters(recurse=False):
        parameter.data = parameter.data.to(device)
    return net
