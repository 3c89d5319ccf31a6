"""Networks from weights on disk, ready to generate: Wan's, a checkpoint of any layout we read, or random ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformer3DModel
from torch import Tensor

from pw.nn import options
from pw.nn.backbone import Backbone, wan_transformer
from pw.nn.convert import PICKLES, authors_injector, layout, place, read, to_ours

KERNELS = {"sdpa": "native", "cudnn": "_native_cudnn", "flash": "_native_flash", "flash3": "_flash_3", "sage": "sage"}
COMPILED = 64  # compiled variants of a block at most; a process needs few


@dataclass(frozen=True)
class Network:
    """A network to load: sizes, adapters, kernel and compilation (see `pw.run.settings.Trainer`)."""

    backbone: options.Wan
    injector: options.Injector | options.Add | None
    attention: str
    compile: bool
    seed: int


def load_network(
    run: Network, source: str, weights: Path | None, device: str, computes_on: str | None = None
) -> Backbone:
    """A network in evaluation mode, in bf16 for a GPU (except for weights that Wan keeps in fp32), in fp32 for a CPU.

    source       `base`: the transformer of `weights`, with fresh (silent) adapters; `random`: for timing and tests;
                 else the path of a checkpoint that `pw.nn.convert` reads
    computes_on  device that it will compute on, if not `device`
    Raises ValueError when the weights do not match the sizes of the run.
    """
    dtype = _dtype(computes_on or device)
    if source == "random":
        net = _random(run, dtype, device)
    elif source == "base":
        assert weights is not None
        net = Backbone(run.backbone, run.injector, pretrained(run.backbone, weights, dtype))
    else:
        net = _from_checkpoint(run, Path(source))
    return _ready(run, net, dtype).to(device)


def network_without_weights(run: Network, source: str, device: str) -> Backbone:
    """The network of `load_network` on the meta device, to be split and then filled from one with weights."""
    with torch.device("meta"):
        net = Backbone(run.backbone, run.injector)
    if source not in ("base", "random"):
        path = Path(source)
        _fit(net, _place(run, net, read(path, _which(path), shapes_only=True), path))
    return _ready(run, net, _dtype(device))


def _dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def _ready(run: Network, net: Backbone, dtype: torch.dtype) -> Backbone:
    net.lower(dtype).eval().requires_grad_(False)
    use_kernel(net, run.attention)
    if run.compile:
        compile_blocks(net)
    return net


def _random(run: Network, dtype: torch.dtype, device: str) -> Backbone:
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # 5e9 numbers: drawn on the device and in the dtype that they are used in
    try:
        with torch.device(device):
            torch.manual_seed(run.seed)
            net = Backbone(run.backbone, run.injector)
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


def check_checkpoint(run: Network, path: Path) -> None:
    """Raises ValueError for wrong names and shapes in a checkpoint, as loading it would."""
    with torch.device("meta"):
        net = Backbone(run.backbone, run.injector)
    _place(run, net, read(path, _which(path), shapes_only=True), path)


def check_kernel(run: Network, device: str, trains: Literal["fp32", "bf16"] | None = None) -> None:
    """Raises ValueError when a small computation fails, with gradients in the precision `trains` of a training."""
    if run.attention == "sdpa":
        return
    dtype = _dtype(device) if trains is None else {"fp32": torch.float32, "bf16": torch.bfloat16}[trains]
    query = torch.ones(1, 64, 2, run.backbone.attention_head_dim, dtype=dtype, device=device)
    query.requires_grad_(trains is not None)
    try:
        with torch.set_grad_enabled(trains is not None):
            made = dispatch_attention_fn(query, query, query, backend=AttentionBackendName(KERNELS[run.attention]))
            if trains is not None:
                made.sum().backward()
    except Exception as error:  # kernels raise all kinds of errors on a machine they are not for
        raise ValueError(
            f"trainer.attention={run.attention}: not to be had here{'' if trains is None else f' in {trains}'} "
            f"({' '.join(str(error).split())[:200]}); trainer.attention=sdpa always is"
        ) from error


def _which(path: Path) -> Literal["ema", "online"]:
    """`ema`, or `online`, with a warning, of an authors' checkpoint saved before its EMA began."""
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


def _from_checkpoint(run: Network, path: Path) -> Backbone:
    with torch.device("meta"):  # else 20 GB would be initialised and overwritten
        dit = wan_transformer(run.backbone)
    net = Backbone(run.backbone, run.injector, dit)
    _fit(net, _place(run, net, read(path, _which(path)), path))
    choice = run.backbone
    dit.rope = WanRotaryPosEmbed(choice.attention_head_dim, choice.patch_size, choice.rope_max_seq_len)
    return net


def _fit(net: Backbone, layout: str) -> None:
    """Set the constants that a checkpoint's layout implies and its tensors do not show."""
    if layout == "authors" and net.injector is not None:
        net.injector.token_norm.eps = 1e-6


def _place(run: Network, net: Backbone, state: dict[str, Tensor], path: Path) -> str:
    """Returns the checkpoint's layout."""
    found = layout(state)
    ours = to_ours(state, found)
    if found == "authors" and run.injector is not None:
        wanted = authors_injector(ours)
        if run.injector != wanted:
            raise ValueError(
                f"{path} is a checkpoint of the authors: set injector=gated_channelwise "
                f"injector.blocks={list(wanted.blocks)} injector.hidden={wanted.hidden} injector.groups={wanted.groups}"
            )
    try:
        place(net, ours, adapters_optional=run.injector is None, assign=True)
    except ValueError as error:
        raise ValueError(f"{path} ({found} layout): {error}") from error
    return found


def compile_blocks(net: Backbone) -> None:
    """Compile each block separately for every size that occurs: there are few, and kernels for any size are slower."""
    # once for each size, with gradient and without, with an anchor and without, …: beyond a limit, 8 at first, torch
    # goes on without compiling, and a process may train and sample both stages
    config: Any = torch._dynamo.config
    config.recompile_limit = max(COMPILED, config.recompile_limit)
    net.dit.compile_repeated_blocks(dynamic=False)


def use_kernel(net: Backbone, name: str) -> None:
    """Select the attention kernel by name. Raises ValueError when it is not available."""
    talkative = logging.getLogger("diffusers.models.modeling_utils")
    talkative.addFilter(_is_news)
    try:
        net.dit.set_attention_backend(KERNELS[name])
    except (ImportError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"trainer.attention={name}: not to be had here ({' '.join(str(error).split())}); trainer.attention=sdpa "
            "always is"
        ) from error
    finally:
        talkative.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log record is other than the one diffusers emits for every choice of a kernel."""
    return not record.getMessage().startswith("Attention backends are an experimental feature")
