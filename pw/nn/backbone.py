"""The velocity network: diffusers' `WanTransformer3DModel`, unmodified, with hooks for stride, anchor and attention.

The transformer keeps its state-dict keys, so stock checkpoints load and stock code reads ours. What is added enters
through bound-method hooks (a deep copy, such as the EMA, has hooks bound to itself): the stride embedding is added to
the output of `time_embedder`, which feeds both the modulation and the output head; the injector is added to the input
of the blocks it names; self-attention is handed a `SparseMask`. `_context` holds these values until the next forward,
because checkpointed blocks need them again in backward; `_checkpoint_block` restores the context of the forward that is
recomputed.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from diffusers.hooks.context_parallel import apply_context_parallel
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.checkpoint import checkpoint

from pw.nn import options
from pw.nn.adapters import AnchorGuidedInjector, StrideEmbedding, autocast_is_on, resize_frames, without_autocast
from pw.nn.sparse_attention import SparseMask


def wan_transformer(choice: options.Wan) -> WanTransformer3DModel:
    """A transformer of the sizes in `choice`, otherwise configured as Wan2.2-TI2V-5B."""
    return WanTransformer3DModel(
        patch_size=choice.patch_size,
        num_attention_heads=choice.num_attention_heads,
        attention_head_dim=choice.attention_head_dim,
        in_channels=choice.in_channels,
        out_channels=choice.in_channels,
        text_dim=choice.text_dim,
        freq_dim=choice.freq_dim,
        ffn_dim=choice.ffn_dim,
        num_layers=choice.num_layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
        rope_max_seq_len=choice.rope_max_seq_len,
    )


class Backbone(nn.Module):
    """state, timestep, stride, text, anchor -> velocity.

    dit        the transformer, randomly initialised by default
    attention  which keys a query of self-attention sees; None: all

    With fresh adapters the output equals that of `dit` bit for bit, at any stride and any anchor (except under `Add`,
    which has no weights to initialise at zero).
    """

    def __init__(
        self,
        choice: options.Wan,
        injector: options.Injector | options.Add | None,
        dit: WanTransformer3DModel | None = None,
        attention: options.Attention | None = None,
    ) -> None:
        super().__init__()
        if injector is not None:
            injector.check(choice)
        self.dit = wan_transformer(choice) if dit is None else dit
        self.stride_embedding = StrideEmbedding(choice.width)
        self.adds_anchor = isinstance(injector, options.Add)
        self.injector = AnchorGuidedInjector(injector, choice) if isinstance(injector, options.Injector) else None
        self.attention = attention
        self._context: dict[str, Any] = {}
        self._offloads = False
        self.part = (0, 1)  # (index, number) of the parts of a clip's tokens to compute here, see `share_tokens`
        attentions: list[Any] = [attention for block in self.dit.blocks for attention in (block.attn1, block.attn2)]
        self._hooks = [norm.register_forward_hook(_in_input_dtype) for a in attentions for norm in (a.norm_q, a.norm_k)]
        self._hooks.append(self.dit.condition_embedder.time_embedder.register_forward_hook(self._add_stride))
        if isinstance(injector, options.Injector):
            for index in injector.blocks:
                # with_kwargs=False: diffusers passes the hidden states first, by position
                self._hooks.append(self.dit.blocks[index].register_forward_pre_hook(self._inject))
        if attention is not None:
            self._hooks += [a.register_forward_pre_hook(self._mask) for a in attentions[::2]]  # self-attention

    def forward(
        self,
        state: Tensor,
        timestep: Tensor,
        stride: Tensor,
        text: Tensor,
        anchor: Tensor | None = None,
        *,
        sigma_timestep: Tensor,
        clean_frames: Tensor | None = None,
    ) -> Tensor:
        """Velocity [B, C, F, h, w] of a state [B, C, F, h, w].

        timestep, stride  [B], in the schedule's coordinate: inputs of the gate and the stride embedding
        sigma_timestep    [B], 1000 sigma: Wan's timestep input. One per sample: one per token costs 29 GB at 4K
        text              [B, tokens, text_dim]
        anchor            anchor latent [B, C, F, h', w'] or None for a network without injector
        clean_frames      [B], number of the first latent frames whose tokens have timestep and stride 0, as in image to
                          video: timesteps are then one per token (those of the injector's gate one per sample)

        Raises ValueError for a network with an injector and no anchor, or the reverse.
        """
        needs_anchor = self.adds_anchor or self.injector is not None
        if needs_anchor != (anchor is not None):
            raise ValueError(f"the network {'needs an' if needs_anchor else 'has no injector for the'} anchor")
        with without_autocast(state.device):
            context: dict[str, Any] = {"stride": self.stride_embedding(stride)}
        if self.adds_anchor and anchor is not None:
            state = state + resize_frames(anchor, (state.shape[-2], state.shape[-1]))
        frames, rows, columns = (n // p for n, p in zip(state.shape[-3:], self.dit.config["patch_size"], strict=True))
        if self.injector is not None and anchor is not None:
            context["anchor"] = self.injector(anchor, (rows, columns), timestep, stride, self.part)
        if clean_frames is not None:
            noisy = torch.arange(frames, device=state.device) >= clean_frames[:, None]
            noisy = noisy.repeat_interleave(rows * columns, 1).chunk(self.part[1], 1)[self.part[0]]
            with without_autocast(state.device):
                at_rest = self.stride_embedding(torch.zeros_like(stride))
            context["stride"] = torch.where(noisy[..., None], context["stride"][:, None], at_rest[:, None])
            sigma_timestep = sigma_timestep[:, None] * noisy
        if self.attention is not None:
            context["mask"] = SparseMask(self.attention, (frames, rows, columns), anchor)
        self._context = context
        dtype = self.dit.patch_embedding.weight.dtype
        return self.dit(state.to(dtype), sigma_timestep, text.to(dtype), return_dict=False)[0].to(state.dtype)

    def lower(self, dtype: torch.dtype) -> Backbone:
        """Cast the weights to `dtype` for inference; Wan's modulation, stride embedding and gate stay in fp32."""
        fp32_parts = (*(self.dit._keep_in_fp32_modules or ()), "stride_embedding", "injector.gate")
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(torch.float32 if any(part in name for part in fp32_parts) else dtype)
        return self

    def release(self) -> None:
        """Remove all hooks, which makes `dit` the stock transformer again."""
        for handle in self._hooks:
            handle.remove()
        self._hooks.clear()
        self._context.clear()
        if self.injector is not None:
            self.injector.clear_cache()

    def checkpoint_activations(self, *, offload: bool = False) -> None:
        """In backward, recompute each block's activations from its input instead of storing them.

        offload  store those inputs in CPU memory: 46 GB at 4K, of which the device then holds one at a time
        """
        self._offloads = offload
        self.dit.enable_gradient_checkpointing(self._checkpoint_block)

    def set_trainable(self, parts: str) -> None:
        """parts: `all`, or `adapters`, the injector and the stride embedding only ("Frozen DiT", Fig. 9.3)."""
        self.dit.requires_grad_(parts == "all")

    def _add_stride(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        if autocast_is_on(output.device):  # Wan trains this embedding in fp32
            with without_autocast(output.device):
                output = module.forward(args[0].float())
        return output + self._context["stride"].to(output.dtype)

    def _inject(self, block: nn.Module, args: tuple) -> tuple:
        hidden, *rest = args
        index = next(i for i, candidate in enumerate(self.dit.blocks) if candidate is block)
        return (hidden + self._context["anchor"][index].to(hidden.dtype), *rest)

    def _mask(self, attention: nn.Module, args: tuple) -> tuple:
        hidden, text, _, *rest = args  # as diffusers' block passes them
        return (hidden, text, self._context["mask"], *rest)

    def _checkpoint_block(self, block: nn.Module, *args: Any) -> Tensor:
        context = self._context

        def run(*inputs: Any) -> Tensor:
            # the recomputation runs after later forwards may have replaced the context
            previous, self._context = self._context, context
            try:
                return block(*inputs)
            finally:
                self._context = previous

        with on_host(args[0].shape) if self._offloads else nullcontext():
            result = checkpoint(run, *args, use_reentrant=False)
        assert isinstance(result, torch.Tensor)
        return result


def _in_input_dtype(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Hook: normalised queries and keys in the dtype of the values. CUDA's autocast returns fp32: twice the memory, and
    the kernels that diffusers calls directly (context parallelism, `flash3`) require one dtype."""
    return output.to(args[0].dtype)


def on_host(shape: torch.Size) -> saved_tensors_hooks:
    """Stores the tensors of `shape` that backward needs in CPU memory, page-locked for asynchronous copies."""

    def pack(tensor: Tensor) -> tuple[torch.device, Tensor]:
        if tensor.shape != shape:
            return tensor.device, tensor
        on_cpu = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return tensor.device, on_cpu.copy_(tensor, non_blocking=tensor.is_cuda)

    def unpack(packed: tuple[torch.device, Tensor]) -> Tensor:
        device, on_cpu = packed
        return on_cpu.to(device, non_blocking=on_cpu.is_pinned()) if on_cpu.device != device else on_cpu

    return saved_tensors_hooks(pack, unpack)


# ---- context parallelism: several processes evaluate the same clips, each a part of the tokens


def groups_of(processes: int, device: str) -> DeviceMesh:
    """A mesh of groups of `processes` consecutive ranks, on `cuda` or `cpu`. All processes must call it."""
    groups = dist.get_world_size() // processes
    return init_device_mesh(device, (groups, 1, processes), mesh_dim_names=("group", "ring", "ulysses"))


def share_tokens(net: Backbone, mesh: DeviceMesh) -> None:
    """Let the processes of each group evaluate the network together; they must call it with equal inputs.

    A block's linear layers work on this process's tokens; for self-attention the processes exchange tokens for heads
    and back (Ulysses). Each process computes the rest in full, and the velocity is gathered in each.
    The gradient of a loss in one process covers its tokens alone; the sum over the processes is the gradient.
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
    # the timestep is one per clip, and what enters the first block is split by `_take_part` before the anchor is added
    plan: Any = {part: split for part, split in net.dit._cp_plan.items() if part in ("rope", "proj_out")}
    apply_context_parallel(net.dit, context, plan)
    net.part = mesh["ulysses"].get_local_rank(), processes
    net.dit.blocks[0].register_forward_pre_hook(partial(_take_part, *net.part), prepend=True)


def _take_part(index: int, parts: int, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    hidden, *rest = args
    return (hidden.chunk(parts, dim=1)[index], *rest)
