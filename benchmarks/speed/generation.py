"""Measurements on whatever machine there is, side by side in one run: `make bench what=generate`.

    pw bench what=generate [scales=2k,4k] [stock_steps=3] [kernels=sdpa,cudnn,…]
                       [compile=true|false|always] [out=FILE.json] [override …]

generate  Diffusion only, random weights: stage II of each scale with its steps and guidance, beside the first steps of
          diffusers' own WanPipeline around a like transformer at the same size, whose 50 steps take 50 times their
          mean. The stock steps' first is left out where there are several: it warms up; `stock_steps=0` spares them.
          Stock is as diffusers has it, torch's own choice of attention and nothing compiled; ours takes the fastest of
          the attention kernels that are to be had, and compiled blocks if those are faster still: all timed on one
          evaluation of some frames of the first scale (`compile=false` spares the minute that compiling takes). Where
          one kernel is named and `compile` is false or always there is nothing to choose, and none of this is timed.

The file is written anew after every evaluation of ours and every step of stock: what is killed, by a time limit say,
has left what it measured. There is `seconds` only where all of it was.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.speed.attention_choice import choose_variant, device_of, forget
from pw.io.arguments import Command, ConfigError, number, option
from pw.io.files import write_json
from pw.io.imports import quiet
from pw.io.paths import OUTPUTS
from pw.run.build import Run, build
from pw.run.signatures import provenance
from pw.train.preflight import check_device

if TYPE_CHECKING:
    import torch

# Seconds and GB of the paper, and what is aimed at on one H200  (Table 1, sec. 4).
AIMS = {
    "2k": {"seconds": 75.0, "paper_seconds": [132.0, 146.0]},
    "4k": {"seconds": 340.0, "paper_seconds": [572.0, 590.0], "peak_gb": 45.0, "paper_peak_gb": 101.8},
}
SPEED_UP = 12.0
KERNELS = {"sdpa", "cudnn", "flash", "flash3", "sage"}

Keep = Callable[[dict[str, Any]], None]  # is given what has been measured so far


def _about(run: Run) -> dict[str, Any]:
    """What is measured, and what is aimed at."""
    from pw.cost.parameters import stage_latent, tokens
    from pw.stages.velocity import evaluations

    return {
        "scale": run.scale.name,
        "frames": run.scale.frames,
        "size": [run.scale.width, run.scale.height],
        "tokens": tokens(stage_latent(run), run.backbone.patch_size),
        "steps": run.sampling.num_steps,
        "guidance": run.guidance.scale,
        "evaluations": evaluations(run),
        "attention": run.trainer.attention,
        "compile": run.trainer.compile,
        "guidance_batch": run.trainer.guidance_batch,
        "aim": {**AIMS.get(run.scale.name, {}), "speed_up": SPEED_UP},
    }


def measure_ours(run: Run, keep: Keep | None = None) -> dict[str, Any]:
    """Seconds and peak memory of stage II at a scale. Raises torch.OutOfMemoryError.

    keep  called after every evaluation of the network
    """
    import torch

    from pw.cost.flops import forward_flops
    from pw.nn.networks import Network, load_network
    from pw.nn.stock import synchronize
    from pw.stages.velocity import Condition, evaluations, integrate

    device = device_of(run)
    forget(device)
    network = Network(run.backbone, run.injector, run.trainer.attention, run.trainer.compile, run.seed)
    net = load_network(network, "random", None, str(device))
    noise, text = _inputs(run, device)
    anchor = torch.randn(1, *noise.shape[1:3], *(side // run.codec.factor for side in run.scale.anchor_size))
    conditions = [Condition(given, anchor.to(device)) for given in (text, torch.zeros_like(text))]
    times = evaluations(run) if not run.trainer.guidance_batch else run.sampling.num_steps
    took: list[float] = []
    found: dict[str, Any] = {**_about(run), "evaluation_seconds": took}

    def told(what: str) -> float:
        """Seconds since `began`, of which each is said."""
        synchronize(device)
        seconds = time.perf_counter() - began
        print(f"{run.scale.name}: {what}: {seconds:.1f} s", file=sys.stderr, flush=True)
        return seconds

    def tick() -> None:
        took.append(round(told(f"evaluation {len(took) + 1} of {times}") - sum(took), 4))
        if keep is not None:
            keep({**found, "peak_gb": _peak_gb(device)})

    # warms up with one evaluation of the size that is measured: kernels are chosen, blocks compiled
    guidance = run.guidance if run.trainer.guidance_batch else dataclasses.replace(run.guidance, scale=1.0)
    one_step = dataclasses.replace(run.sampling, num_steps=1, timesteps=None)
    began = time.perf_counter()
    integrate(dataclasses.replace(run, guidance=guidance, sampling=one_step), net, noise, conditions[0], conditions[1])
    found["warm_up_seconds"] = round(told("warmed up"), 4)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    integrate(run, net, noise, *conditions, tick)
    seconds = told("done")
    flops = forward_flops(run.backbone, found["tokens"], run.backbone.text_tokens, run.injector).total * evaluations(
        run
    )
    return {
        **found,
        "seconds": round(seconds, 4),
        "peak_gb": _peak_gb(device),
        "tflop_per_second": round(flops / seconds / 1e12, 3),
    }


def measure_stock(run: Run, steps: int, of: int, keep: Keep | None = None) -> dict[str, Any]:
    """Seconds and peak memory of the first steps of diffusers' pipeline; `failed` where memory runs out.

    keep  called after every step
    """
    import torch

    from pw.nn.networks import Network, load_network
    from pw.nn.stock import stock_steps

    device = device_of(run)
    forget(device)
    net = load_network(Network(run.backbone, None, "sdpa", False, run.seed), "random", None, str(device))
    net.release()  # no hook of ours is left
    found: dict[str, Any] = {"attention": "sdpa", "compile": False, "steps": of, "step_seconds": []}

    def after_step(seconds: float) -> None:
        took = found["step_seconds"]
        took.append(round(seconds, 4))
        print(f"{run.scale.name}: stock step {len(took)} of {steps}: {seconds:.1f} s", file=sys.stderr, flush=True)
        if keep is not None:
            keep({**found, "peak_gb": _peak_gb(device)})

    try:
        took, _ = stock_steps(net.dit, *_inputs(run, device), run.schedule.shift, steps, of, after_step)
        step = sum(took[1:]) / len(took[1:]) if len(took) > 1 else took[0]
        found["seconds"] = round(step * of, 4)
    except torch.OutOfMemoryError as error:  # a modulation per token is 9 GB at 4K, and twice that in fp32
        found["failed"] = _first_line(error)
    return {**found, "peak_gb": _peak_gb(device)}


def _measured(run: Run, stock_steps: int, stock_of: int, keep: Keep) -> dict[str, Any]:
    """A scale: ours, and stock beside it if there are to be steps of it; `failed` where memory runs out."""
    import torch

    try:
        ours = measure_ours(run, keep)
    except torch.OutOfMemoryError as error:
        return {"scale": run.scale.name, "failed": _first_line(error)}
    keep(ours)
    if not stock_steps:
        return ours
    print(f"{run.scale.name}: now {stock_steps} steps of stock", file=sys.stderr, flush=True)
    try:
        stock = measure_stock(run, stock_steps, stock_of, lambda so_far: keep({**ours, "stock": so_far}))
    except torch.OutOfMemoryError as error:  # before its first step
        stock = {"failed": _first_line(error)}
    ratio = round(stock["seconds"] / ours["seconds"], 2) if "seconds" in stock else None
    return {**ours, "stock": stock, "speed_up": ratio}


def _inputs(run: Run, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Initial noise and a text, [1, C, F, h, w] and [1, tokens, dim]."""
    import torch

    from pw.cost.parameters import stage_latent

    text = (1, run.backbone.text_tokens, run.backbone.text_dim)
    return torch.randn(1, *stage_latent(run), device=device), torch.randn(text, device=device)


def _peak_gb(device: torch.device) -> float | None:
    import torch

    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _what(text: str) -> str:
    if text != "generate":
        raise ValueError("there are generate, metrics and train: make bench what=…; this one is generate")
    return text


def _kernels(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in KERNELS]:
        raise ValueError(f"{unknown[0]} is not one of {', '.join(sorted(KERNELS))}")
    return names


@dataclass(frozen=True)
class BenchOptions:
    """The options of `pw bench what=generate`."""

    what: str = option("generate", "generate, metrics or train", read=_what)
    scales: tuple[str, ...] = option(("2k", "4k"), "scales with text and guidance")
    stock_steps: int = option(3, "steps of diffusers' own pipeline that are timed; 0: none", read=number(0))
    stock_of: int = option(50, "steps that it would take", read=number(1))
    kernels: tuple[str, ...] = option(
        ("sdpa", "cudnn", "flash", "flash3"), "attention kernels to choose from", read=_kernels
    )
    compile: Literal["true", "false", "always"] = option("true", "compile blocks if that is faster, never, or anyway")
    out: Path | None = option(None, "the JSON file, by default outputs/bench/generate_<device>.json")
    overrides: tuple[str, ...] = ()


def _runs(options: BenchOptions) -> list[Run]:
    """A run of each scale. Raises ConfigError for a scale or a device that cannot be measured."""
    runs = [build([f"scale={scale}", "stage=hires", *options.overrides]) for scale in options.scales]
    for run in runs:
        if run.text is None or run.guidance.scale == 1:
            raise ConfigError(f"scale={run.scale.name}: the bench is of a scale with text and guidance: 2k, 4k, proxy")
        check_device(run)
    return runs


def run_bench(options: BenchOptions) -> int:
    """Exit status: 0 measured, 1 a scale does not fit the device."""
    runs = _runs(options)
    import torch

    quiet()
    device = torch.cuda.get_device_name() if runs[0].trainer.accelerator == "gpu" else platform.processor() or "CPU"
    best, timed = choose_variant(runs[0], options.kernels, options.compile)
    print(json.dumps(timed, indent=1), flush=True)
    if best is None:
        raise ConfigError(f"kernels={','.join(options.kernels)}: none of them is to be had here")
    out = options.out or OUTPUTS / "bench" / f"generate_{device.replace(' ', '-')}.json"
    about = {"device": device, "torch": torch.__version__, "kernels": timed, **provenance()}
    found: list[dict[str, Any]] = []

    def keep(*measuring: dict[str, Any]) -> None:
        write_json(out, {**about, "measured": [*found, *measuring]})

    keep()
    for given in runs:
        run = build([*given.config.overrides, *best.overrides])
        print(f"{run.scale.name} on {device}, {best} …", file=sys.stderr, flush=True)
        found.append(_measured(run, options.stock_steps, options.stock_of, keep))
        print(json.dumps(found[-1], indent=1), flush=True)
        keep()
    print(out)
    return int(any("failed" in measured for measured in found))


main = Command(BenchOptions, run_bench)
