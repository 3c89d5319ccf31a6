"""Risks of `pw gpu-check`: memory is not as planned, frames leave the device slowly, a whole stage is slow.

denoise  an evaluation of stage II, at 2K or 4K
tile     decoding a tile as large as the card's memory makes it
copy     frames from the device to the CPU
bench    `pw bench what=generate`, whose rates the plan then takes
"""

from __future__ import annotations

import json
import math
import time

from benchmarks.speed.device_rates import LATENT_FRAMES
from benchmarks.speed.generation import main as bench_generation
from benchmarks.speed.gpu_machine import Figure, Machine, Skipped
from benchmarks.speed.risks_of_numbers import Figures, evaluate
from pw.cost.codec_cost import codec_bytes
from pw.cost.counts import CONTEXT, MARGIN, Moment, stage_flops
from pw.cost.generation_cost import denoising, last_stage, with_tile
from pw.cost.rates import rates_of
from pw.io.lazy import torch
from pw.nn import options
from pw.stages import network_of

LEAST_OF_PLAN = 0.9  # a plan above the truth by more refuses what would fit
SECONDS_PER_CLIP = (
    3.0  # to copy a clip of 4K, 3 GB: without order on the device it took 10.7 s, with it 0.9 s, on a CPU
)
CLIP = 3 * 121 * 2144 * 3840
COPIED_FRAMES, COPIED_ROWS = 33, 1024
BENCH_OVERHEAD = 100.0  # seconds: imports, comparison of kernels, codec and file; guessed
STEPS = (4, 2, 1)


def _against_plan(planned: Moment) -> Figures:
    """Peaks since the last reset, of tensors and of what the allocator holds for them."""
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {
        "allocated_gb": Figure(allocated / 1e9),
        "reserved_gb": Figure(reserved / 1e9),
        "planned_gb": Figure(planned.bytes / 1e9),
        "allocated_of_plan": Figure(allocated / planned.bytes, 1 + MARGIN, LEAST_OF_PLAN),
        "reserved_of_plan": Figure((reserved + CONTEXT) / planned.needs, 1.0),
    }


def _reset_memory() -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def denoise(machine: Machine, scale: str) -> Figures:
    """Memory of an evaluation in both branches of guidance, by a network of two blocks."""
    from pw.nn.networks import load_network

    machine.needs_gpu("the memory that the allocator holds")
    run = machine.run(scale, "injector.blocks=[1]")
    planned = denoising(run, "bf16")
    machine.needs_memory(planned.needs)
    net = load_network(network_of(run), "random", None, machine.device)
    _reset_memory()
    evaluate(run, net, machine)
    return _against_plan(planned)


def tile(machine: Machine) -> Figures:
    """Memory of decoding three latent frames of a tile that `codec.tile=auto` takes at 4K on this card."""
    from pw.nn.codec import WanCodec

    machine.needs_gpu("the memory that the allocator holds")
    run = machine.run("4k")
    run = last_stage(with_tile((run, None), torch.cuda.get_device_properties(0).total_memory))
    choice = run.codec
    assert isinstance(choice, options.WanVAE)
    rows, columns = (max(span.stop - span.start for span in spans) for spans in choice.tiles(*run.scale.size))
    frames, unit = choice.frames_factor * (LATENT_FRAMES - 1) + 1, choice.factor
    planned = Moment("decode", codec_bytes(choice, frames, rows * unit, columns * unit, "decode"))
    machine.needs_memory(planned.needs)
    codec = WanCodec.random(choice, machine.device)
    latent = torch.randn(1, choice.channels, LATENT_FRAMES, rows, columns, device=machine.device)
    _reset_memory()
    codec.decode(latent)
    return {"tile_px": Figure(rows * unit), **_against_plan(planned)}


def copy(machine: Machine) -> Figures:
    """Seconds to copy the pixels of a clip of 4K to the CPU, from those of a part of it."""
    from pw.generate.output import pixels_of

    frames, rows = (COPIED_FRAMES, COPIED_ROWS) if machine.is_gpu else (5, 256)
    machine.needs_memory(4 * 4 * 3 * frames * rows * 3840)
    band = torch.rand(3, frames, rows, 3840, device=machine.device)
    pixels_of(band.clone())  # the first copy has the start of the device in it
    if machine.is_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    pixels = pixels_of(band)
    seconds = (time.perf_counter() - start) * CLIP / pixels.size
    # a CPU only orders them, on as many threads as the process has
    return {"seconds_of_a_4k_clip": Figure(seconds, SECONDS_PER_CLIP if machine.is_gpu else math.inf)}


def bench(machine: Machine, scale: str, stock_steps: int, compiles: str) -> Figures:
    """Seconds of stage II, and the rates of the card, by `pw bench what=generate`. Fewer steps where the plan says that
    four take too long: the rates do not depend on them."""
    out = machine.folder / f"bench_{scale}.json"
    words = [f"stock_steps={stock_steps}", f"out={out}"]
    if machine.is_gpu:
        words += [f"scales={scale}", f"compile={compiles}", f"sampling.num_steps={_steps(machine, scale, stock_steps)}"]
    else:
        words += ["scales=proxy", "compile=false", "codec=false", "kernels=sdpa", "sampling.num_steps=1"]
        words += [word for word in machine.run(scale).config.overrides if not word.startswith("scale=")]
    if status := bench_generation(words):
        raise RuntimeError(f"pw bench what=generate ended with status {status}; {out} has what it measured")
    report = json.loads(out.read_text(encoding="utf-8"))
    [row] = report["measured"]
    rates = {f"{kind}_rate": Figure(rate) for kind, rate in report["rates"].items()}
    figures = {"seconds": row["seconds"], "evaluations": row["evaluations"], "peak_gb": row["peak_gb"]}
    figures |= {"speed_up_on_stock": row.get("speed_up")}
    return {name: Figure(value) for name, value in figures.items() if value is not None} | rates


def _steps(machine: Machine, scale: str, stock_steps: int) -> int:
    """The most steps that fit in the time by the plan. Raises Skipped where not even one does."""
    run = machine.run(scale, "backbone.num_layers=30")
    evaluation = rates_of(run).seconds(stage_flops(run))
    for steps in STEPS:
        # one to warm up, two in each step of ours and of stock
        seconds = BENCH_OVERHEAD + (1 + 2 * steps + 2 * stock_steps) * evaluation
        if seconds <= machine.seconds:
            return steps
    raise Skipped(f"one step takes {seconds:.0f} s by the plan, more than the {machine.seconds:.0f} s of a part")
