"""Risks of `pw gpu-check`: a kernel, a number format or a place of the weights changes the result.

attention   a kernel, or a pattern of sparse attention, against attention in fp32 on random tokens
block       a block of the network at 4K length against the same block in pieces
decode      two latent frames of a tile, in the codec's precision against fp32
weights     blocks that wait in CPU memory, and blocks in 8 bits, against blocks as they are
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from benchmarks.speed.gpu_machine import SPARSE_ON_CPU, VAE_ON_CPU, Figure, Machine, Skipped, relative_error
from pw.cost.codec_cost import codec_bytes
from pw.cost.counts import Moment, Part, stage_latent, stage_tokens
from pw.cost.generation_cost import denoising
from pw.io.lazy import torch
from pw.nn import options
from pw.run.build import Run
from pw.stages import network_of
from pw.train.preflight import WITHOUT_GRADIENT

MAX_ROUNDING = 0.01  # of attention and of a block, as `pw.nn.networks.MAX_ERROR`: sdpa in bf16 has 0.0033
MAX_DECODE = 0.05  # of some sixty convolutions in bf16, one after the other
MAX_FP8 = 0.1  # as of 8-bit attention; e4m3 has 3 bits behind the point, 0.026 of a weight
PIECE = 8192  # tokens of a block that are computed at once
ROWS, PLACES = 128, 5  # queries whose attention is computed in fp32 at once, and places of the sequence that have them

Figures = dict[str, Figure]


def attention(machine: Machine, kernel: str = "sdpa", pattern: str = "dense") -> Figures:
    """Relative error of the result and, where the kernel has one, of the gradients."""
    from pw.nn.networks import MAX_ERROR, kernel_error

    words = [f"attention={pattern}", *(SPARSE_ON_CPU if pattern != "dense" and not machine.is_gpu else ())]
    if pattern == "window" and not machine.is_gpu:
        words.append("attention.window=[2,3]")
    network = network_of(machine.run("proxy", f"trainer.attention={kernel}", *words))
    most = MAX_ERROR.get(kernel, MAX_ROUNDING)
    with _kernels_may_lack(kernel):
        figures = {"result": Figure(kernel_error(network, machine.device), most)}
    if kernel not in WITHOUT_GRADIENT:
        trains = "bf16" if machine.is_gpu else "fp32"
        with _kernels_may_lack(kernel):
            figures["gradients"] = Figure(kernel_error(network, machine.device, trains), most)
    return figures


@contextmanager
def _kernels_may_lack(kernel: str) -> Any:
    """A kernel other than torch's own choice that this machine does not have is no failure. A kernel whose result is
    wrong is one: that error has no cause."""
    try:
        yield
    except ValueError as error:
        if kernel != "sdpa" and error.__cause__ is not None:
            raise Skipped(str(error)) from error
        raise


# ---- a block at full length


class _Keeps:
    """In the place of an attention mask: keeps the keys and values of one piece after the other; attends to nothing."""

    ndim, shape = 4, (1, 1, 1, 1)

    def __init__(self) -> None:
        self.pieces: list[tuple[torch.Tensor, torch.Tensor]] = []

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return kwargs["attn_mask"].attend(kwargs["query"], kwargs["key"], kwargs["value"])

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        self.pieces.append((key, value))
        return torch.zeros_like(query)


class _Sees(_Keeps):
    """Likewise: attends in fp32 to all keys and values that were kept."""

    def __init__(self, kept: _Keeps) -> None:
        super().__init__()
        self.key, self.value = (torch.cat(parts, -2) for parts in zip(*kept.pieces, strict=True))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        heads = range(query.shape[1])
        return torch.cat([self._of_head(query[:, h : h + 1], h) for h in heads], 1).to(query.dtype)

    def _of_head(self, query: torch.Tensor, head: int) -> torch.Tensor:
        key, value = (x[:, head : head + 1].float() for x in (self.key, self.value))
        return torch.softmax(query.float() @ key.mT / query.shape[-1] ** 0.5, -1) @ value


def block(machine: Machine, kernel: str = "sdpa") -> Figures:
    """Error of the self-attention, and of the whole block, at the start, the end, and between.

    The block in pieces computes keys and values 8,192 tokens at a time, then a few queries in fp32, so none of its
    tensors has 2^31 elements; the whole one has such tensors.
    """
    from pw.nn.networks import kernel_error, use_kernel

    run = machine.run("4k", "injector=none", "backbone.num_layers=1", f"trainer.attention={kernel}", "guidance=off")
    machine.needs_memory(planned_block(run).needs)
    with _kernels_may_lack(kernel):
        kernel_error(network_of(run), machine.device)
    with torch.no_grad():
        net, arguments, whole = _evaluated_block(run, machine)
        use_kernel(net, "sdpa")  # which takes a mask
        block, length, step = net.dit.blocks[0], arguments[0].shape[1], PIECE if machine.is_gpu else 16
        kept = _Keeps()
        for start in range(0, length, step):
            _run_piece(block, arguments, slice(start, min(start + step, length)), kept)
        sees, rows = _Sees(kept), min(ROWS, step)
        kept.pieces.clear()
        errors: list[list[float]] = []
        for place in range(PLACES):
            start = place * (length - rows) // (PLACES - 1)
            part = slice(start, start + rows)
            exact = _run_piece(block, arguments, part, sees)
            errors.append([relative_error(x[:, part], y) for x, y in zip(whole, exact, strict=True)])
    of_attention, of_block = torch.tensor(errors).amax(0).tolist()  # which lets no NaN pass, as `max` may
    figures = {"attention": Figure(of_attention, MAX_ROUNDING), "block": Figure(of_block, MAX_ROUNDING)}
    return {**figures, "tokens": Figure(length)}


def planned_block(run: Run) -> Moment:
    """Memory of an evaluation from which the output of the attention is kept, too, in bf16."""
    planned, kept = denoising(run, "bf16"), 2 * stage_tokens(run) * run.backbone.width
    return replace(planned, parts=(*planned.parts, Part("kept", kept, "counted")))


def _evaluated_block(run: Run, machine: Machine) -> tuple[Any, tuple[Any, ...], tuple[Any, Any]]:
    """The network of a run, the inputs of its first block in an evaluation, and (output of attention, of the block)."""
    from pw.nn.networks import load_network

    net = load_network(network_of(run), "random", None, machine.device)
    seen: dict[str, Any] = {}
    first: Any = net.dit.blocks[0]
    hooks = [
        first.register_forward_hook(lambda _, args, output: seen.update(arguments=args, block=output)),
        first.attn1.register_forward_hook(lambda _, args, output: seen.update(attention=output)),
    ]
    evaluate(run, net, machine)
    for hook in hooks:
        hook.remove()
    return net, seen["arguments"], (seen["attention"], seen["block"])


def _run_piece(block: Any, arguments: tuple[Any, ...], part: slice, mask: _Keeps) -> tuple[Any, Any]:
    """(output of self-attention, output) of a block for some of its tokens, which see what `mask` gives them."""
    hidden, text, modulation, rotary = arguments
    outputs: list[Any] = []
    hooks = [
        block.attn1.register_forward_pre_hook(lambda _, args: (*args[:2], mask, *args[3:])),
        block.attn1.register_forward_hook(lambda _, args, output: outputs.append(output)),
    ]
    result = block(hidden[:, part], text, modulation, tuple(table[:, part] for table in rotary))
    for hook in hooks:
        hook.remove()
    return outputs[0], result


# ---- an evaluation, and what changes its weights


def evaluate(run: Run, net: Any, machine: Machine) -> torch.Tensor:
    """The difference that one step, with the run's guidance, makes to its noise; drawn on the CPU from a fixed seed."""
    from pw.stages.velocity import Condition, integrate

    draw, channels = torch.Generator().manual_seed(0), run.codec.channels
    frames = stage_latent(run)[1]
    anchor = (channels, frames, *(side // run.codec.factor for side in run.scale.anchor_size))
    shapes = (stage_latent(run), (run.backbone.text_tokens, run.backbone.text_dim), anchor)
    noise, text, anchor = (torch.randn(1, *shape, generator=draw).to(machine.device) for shape in shapes)
    anchor = None if run.injector is None else anchor
    conditions = Condition(text, anchor), Condition(torch.zeros_like(text), anchor)
    return integrate(one_step(run), net, noise, *conditions) - noise


def one_step(run: Run) -> Run:
    return replace(run, sampling=replace(run.sampling, num_steps=1, timesteps=None, sizes=None, init="noise"))


def weights(machine: Machine, word: str, most: float) -> Figures:
    """Error of an evaluation where `word` says how the blocks wait, against blocks as they are; and its memory."""
    from pw.nn.networks import load_network

    words = ("guidance=off", "backbone.num_layers=8")
    runs = [machine.run("proxy", *words), machine.run("proxy", *words, word)]
    planned = max((denoising(run, "bf16") for run in runs), key=lambda moment: moment.needs)
    machine.needs_memory(planned.needs)

    def evaluated(run: Run) -> tuple[torch.Tensor, int]:
        net = load_network(network_of(run), "random", None, machine.device)
        evaluate(run, net, machine)  # chooses kernels, whose workspaces stay
        if machine.is_gpu:
            torch.cuda.reset_peak_memory_stats()
        result = evaluate(run, net, machine).cpu()
        return result, torch.cuda.max_memory_allocated() if machine.is_gpu else 0

    exact = _then_free(lambda: evaluated(runs[0]), machine)[0]
    result, peak = _then_free(lambda: evaluated(runs[1]), machine)
    figures = {"difference": Figure(relative_error(result, exact), most)}
    if machine.is_gpu:
        ratio = peak / denoising(runs[1], "bf16").bytes
        figures |= {"allocated_gb": Figure(peak / 1e9), "allocated_of_plan": Figure(ratio, 1.1, 0.8)}
    return figures


def _then_free(work: Callable[[], Any], machine: Machine) -> Any:
    from pw.generate.output import release_memory

    result = work()
    release_memory(machine.device)
    return result


# ---- the decoder


def decode(machine: Machine) -> Figures:
    """Error of two latent frames of a tile in bf16. Both decoders have the same random weights."""
    from pw.nn.codec import random_codec

    run = machine.run("2k", "codec.precision=fp32")
    choice: Any = run.codec
    assert isinstance(choice, options.WanVAE)
    side = choice.side // choice.factor if machine.is_gpu else 4
    machine.needs_memory(1.1 * sum(part.bytes for part in codec_bytes(choice, 5, choice.side, choice.side, "decode")))
    torch.manual_seed(0)
    codec = random_codec(choice, machine.device, {} if machine.is_gpu else VAE_ON_CPU)
    latent = torch.randn(1, choice.channels, 2, side, side).to(machine.device)
    exact = codec.decode(latent).cpu()
    for parameter in codec.vae.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return {"error": Figure(relative_error(codec.decode(latent).cpu(), exact), MAX_DECODE)}
