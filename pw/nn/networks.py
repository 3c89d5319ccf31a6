"""Networks ready to generate, with Wan's weights, those of a checkpoint in any layout we read, or random ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformer3DModel
from torch import Tensor
from torch.nn.attention import (
    activate_flash_attention_impl,
    current_flash_attention_impl,
    restore_flash_attention_impl,
)

from pw.nn import options
from pw.nn.backbone import Backbone, wan_transformer
from pw.nn.convert import PICKLES, authors_injector, layout, place, read, to_pw
from pw.nn.lora import LoraFile, merge_loras
from pw.nn.placement import offload_blocks, store_in_fp8
from pw.nn.sparse_attention import COMPILED, SparseMask

# flash4 replaces torch's own flash kernel, see `_choose_flash`
KERNELS = {
    "sdpa": "native",
    "cudnn": "_native_cudnn",
    "flash": "_native_flash",
    "flash3": "_flash_3",
    "flash4": "_native_flash",
    "sage": "sage",
}
SLICE = 1024  # tokens that a kernel is checked on
# Largest relative error of a kernel. sdpa in bf16 has 0.0033, and it has gradients (D114); sage computes with 8 bits.
MAX_ERROR = {"sdpa": 0.01, "sage": 0.1}


@dataclass(frozen=True)
class Network:
    """A network to load: sizes, adapters, kernel, compilation and memory (see `pw.run.settings.Trainer`), its sparse
    attention, and LoRAs to merge into its weights."""

    backbone: options.Wan
    injector: options.Injector | options.Add | None
    attention: str
    compile: bool
    seed: int
    sparsity: options.Attention | None = None
    offload: str = "none"
    storage: str = "as_computed"
    loras: tuple[LoraFile, ...] = ()

    def build(self, dit: Any = None) -> Backbone:
        return Backbone(self.backbone, self.injector, dit, self.sparsity)


def load_network(
    network: Network, source: str, weights: Path | None, device: str, compute_device: str | None = None
) -> Backbone:
    """A network in evaluation mode, in bf16 for a GPU (except for weights that Wan keeps in fp32), in fp32 for a CPU.

    source          `base`: the transformer of `weights`, with fresh adapters; `random`: for timing and tests;
                    else the path of a checkpoint that `pw.nn.convert` reads
    compute_device  the device it will run on, `device` by default
    Raises ValueError when the weights do not match the sizes of the run.
    """
    dtype = _dtype(compute_device or device)
    if source == "random":
        net = _random(network, dtype, device)
    elif source == "base":
        assert weights is not None
        net = network.build(pretrained(network.backbone, weights, dtype))
    else:
        net = _from_checkpoint(network, Path(source))
    merge_loras(net, network.loras)
    net = _prepare(network, net, dtype)
    if network.storage == "fp8":
        store_in_fp8(net)
    return offload_blocks(net, device) if network.offload == "group" else net.to(device)


def network_without_weights(network: Network, source: str, device: str) -> Backbone:
    """The network of `load_network` on the meta device, to be sharded and then filled with weights."""
    with torch.device("meta"):
        net = network.build()
    if source not in ("base", "random"):
        _place_checkpoint(network, net, Path(source), shapes_only=True)
    return _prepare(network, net, _dtype(device))


def _dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def _prepare(network: Network, net: Backbone, dtype: torch.dtype) -> Backbone:
    net.lower(dtype).eval().requires_grad_(False)
    use_kernel(net, network.attention)
    if network.compile:
        compile_blocks(net)
    return net


def _random(network: Network, dtype: torch.dtype, device: str) -> Backbone:
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # 5e9 numbers: drawn on their device in their dtype
    try:
        with torch.device(device):
            torch.manual_seed(network.seed)
            net = network.build()
    finally:
        torch.set_default_dtype(default)
    if net.injector is not None:
        # the initial zeros would hide the injector from a test
        for linear in net.injector.out.values():
            torch.nn.init.normal_(linear.get_parameter("weight"), std=0.02)
    return net


def pretrained(choice: options.Wan, weights: Path, dtype: torch.dtype) -> Any:
    """The transformer of weights in diffusers' layout. Raises ValueError when its size is not that of `choice`."""
    transformer: Any = WanTransformer3DModel
    dit = transformer.from_pretrained(weights, subfolder="transformer", torch_dtype=dtype, local_files_only=True)
    choice.check(dit.config, weights)
    return dit


def check_checkpoint(network: Network, path: Path) -> None:
    """Raises ValueError for wrong names and shapes in a checkpoint, without loading it."""
    with torch.device("meta"):
        net = network.build()
    _place_checkpoint(network, net, path, shapes_only=True)


def check_kernel(network: Network, device: str, trains: Literal["fp32", "bf16"] | None = None) -> None:
    """Raises as `kernel_error`, but does not check sdpa, except where it is FlexAttention."""
    if network.attention != "sdpa" or (network.sparsity is not None and device.startswith("cuda")):
        kernel_error(network, device, trains)


def kernel_error(network: Network, device: str, trains: Literal["fp32", "bf16"] | None = None) -> float:
    """Relative error (root mean square) of the attention kernel on random numbers, compared with attention in fp32.

    trains  in this precision, and with gradients; the largest error counts
    Raises ValueError where the kernel fails, or its error is above `MAX_ERROR`.
    """
    name = f"trainer.attention={network.attention}"
    dtype = _dtype(device) if trains is None else {"fp32": torch.float32, "bf16": torch.bfloat16}[trains]
    mask = None if network.sparsity is None else _small_mask(network, device)
    draw, length = torch.Generator().manual_seed(0), SLICE if mask is None else mask.shape[-1]
    shape = (1, length, 2, network.backbone.attention_head_dim)
    inputs = [torch.randn(shape, generator=draw).to(device, dtype) for _ in range(3)]
    try:
        _choose_flash(network.attention)
        results = _attend(inputs, KERNELS[network.attention], mask, has_backward=trains is not None)
    except Exception as error:  # kernels raise all kinds of errors on a machine they are not for
        raise ValueError(
            f"{name}: not available on this machine{'' if trains is None else f' in {trains}'} "
            f"({' '.join(str(error).split())[:200]}); {_remedy(network)}"
        ) from error
    if mask is not None:
        mask = mask.as_tensor(*(x.transpose(1, 2) for x in inputs[:2]))
    exact = _attend([x.float() for x in inputs], "_native_math", mask, has_backward=trains is not None)
    pairs = zip(results, exact, strict=True)
    errors = [(result.float() - expected).norm() / expected.norm() for result, expected in pairs]
    error = float(torch.stack(errors).max())  # NaN if one is, unlike Python's `max`
    if not error <= (bound := MAX_ERROR.get(network.attention, MAX_ERROR["sdpa"])):
        raise ValueError(
            f"{name}: wrong on this machine, its relative error is {error:.2g} (at most {bound:g}, sdpa in bf16 has "
            f"0.003); {_remedy(network)}"
        )
    return error


def _remedy(network: Network) -> str:
    return "use trainer.attention=sdpa" if network.sparsity is None else "use attention=dense"


def _small_mask(network: Network, device: str) -> SparseMask:
    """The sparse attention of a network, for a clip of some tiles."""
    choice = network.sparsity
    assert choice is not None
    frames, rows, columns = choice.tile
    grid = (frames, 3 * rows + 1, 3 * columns + 1)
    if isinstance(choice, options.Window):
        choice = replace(choice, window=(min(choice.window[0], 2 * rows), min(choice.window[1], 2 * columns)))
    anchor = torch.randn(1, 4, *grid, generator=torch.Generator().manual_seed(0))
    return SparseMask(choice, grid, anchor.to(device))


def _attend(inputs: list[Tensor], backend: str, mask: Any, *, has_backward: bool) -> list[Tensor]:
    """Attention of [1, L, H, d] each, and with `has_backward` the gradients of the inputs."""
    query, key, value = (x.detach().requires_grad_(has_backward) for x in inputs)
    with torch.set_grad_enabled(has_backward):
        output = dispatch_attention_fn(query, key, value, attn_mask=mask, backend=AttentionBackendName(backend))
        gradients = torch.autograd.grad(output, (query, key, value), inputs[0]) if has_backward else ()
    return [output.detach(), *gradients]


def _weights_in(path: Path) -> Literal["ema", "online"]:
    """`ema`; for an authors' checkpoint saved before its EMA began, `online`, with a warning."""
    if path.is_dir() or path.suffix not in PICKLES:
        return "ema"
    try:
        read(path, "ema", shapes_only=True)
    except ValueError as error:
        if "has no generator_ema" not in str(error):
            raise
        logging.getLogger("pw").warning("%s: has no generator_ema, taking generator", path)
        return "online"
    return "ema"


def _from_checkpoint(network: Network, path: Path) -> Backbone:
    with torch.device("meta"):  # else 20 GB would be initialised and overwritten
        dit = wan_transformer(network.backbone)
    net = network.build(dit)
    _place_checkpoint(network, net, path)
    choice = network.backbone
    dit.rope = WanRotaryPosEmbed(choice.attention_head_dim, choice.patch_size, choice.rope_max_seq_len)
    return net


def _place_checkpoint(network: Network, net: Backbone, path: Path, *, shapes_only: bool = False) -> None:
    """Assign the tensors of the checkpoint at `path` to `net`; with `shapes_only`, tensors on the meta device."""
    state = read(path, _weights_in(path), shapes_only=shapes_only)
    names = layout(state)
    renamed = to_pw(state, names)
    if names == "authors" and network.injector is not None:
        injector = authors_injector(renamed)
        if network.injector != injector:
            raise ValueError(
                f"{path} is a checkpoint of the authors: set injector=gated_channelwise injector.blocks="
                f"{list(injector.blocks)} injector.hidden={injector.hidden} injector.groups={injector.groups}"
            )
    try:
        place(net, renamed, adapters_optional=network.injector is None, assign=True)
    except ValueError as error:
        raise ValueError(f"{path} ({names} layout): {error}") from error
    if names == "authors" and net.injector is not None:
        net.injector.token_norm.eps = 1e-6  # a constant of theirs, in no state dict


def compile_blocks(net: Backbone) -> None:
    """Compile each block separately for every size that occurs: there are few, and kernels for any size are slower."""
    # once for each size, with gradient and without, with an anchor and without, …: beyond a limit, 8 at first, torch
    # continues without compiling, and a process may train and sample both stages
    config: Any = torch._dynamo.config
    config.recompile_limit = max(COMPILED, config.recompile_limit)
    net.dit.compile_repeated_blocks(dynamic=False)


def use_kernel(net: Backbone, name: str) -> None:
    """Select the attention kernel by name. Raises ValueError when it is not available."""
    logger = logging.getLogger("diffusers.models.modeling_utils")
    logger.addFilter(_is_other_message)
    try:
        _choose_flash(name)
        net.dit.set_attention_backend(KERNELS[name])
    except (ImportError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"trainer.attention={name}: not available on this machine ({' '.join(str(error).split())}); "
            "use trainer.attention=sdpa"
        ) from error
    finally:
        logger.removeFilter(_is_other_message)


def _choose_flash(name: str) -> None:
    """Let torch's flash kernel be FlashAttention-4 in this process, or the one that it comes with."""
    if name == "flash4":
        activate_flash_attention_impl("FA4")
    elif current_flash_attention_impl() is not None:
        restore_flash_attention_impl()


def _is_other_message(record: logging.LogRecord) -> bool:
    """Whether a log record is not the one that diffusers emits for every choice of a kernel."""
    return not record.getMessage().startswith("Attention backends are an experimental feature")
