"""Measurements on whatever machine there is, side by side in one run: `make bench what=generate`.

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

import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pw.cost.counts import stage_latent, tokens
from pw.generate.request import network_of
from pw.io.arguments import Command, ConfigError, number, option
from pw.io.files import write_json
from pw.io.lazy import torch
from pw.io.paths import OUTPUTS, silence_libraries
from pw.run.build import Run, build
from pw.run.signatures import provenance
from pw.train.preflight import check_device

if TYPE_CHECKING:
    from pw.nn.backbone import Backbone

# Seconds and GB of the paper, and what is aimed at on one H200  (Table 1, sec. 4).
AIMS = {
    "2k": {"seconds": 75.0, "paper_seconds": [132.0, 146.0]},
    "4k": {"seconds": 340.0, "paper_seconds": [572.0, 590.0], "peak_gb": 45.0, "paper_peak_gb": 101.8},
}
SPEED_UP = 12.0
KERNELS = {"sdpa", "cudnn", "flash", "flash3", "sage"}
FEW_TOKENS = 32_000  # enough to tell kernels apart: 4 % of a 2K evaluation
REPEATS = 3

Keep = Callable[[dict[str, Any]], None]  # called after every step or evaluation, with what has been measured so far


@dataclass(frozen=True)
class Variant:
    """How a network is computed: the attention kernel, and whether its blocks are compiled."""

    kernel: str
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.kernel}, compiled" if self.compiled else self.kernel

    @property
    def overrides(self) -> list[str]:
        return [f"trainer.attention={self.kernel}", f"trainer.compile={str(self.compiled).lower()}"]


def choose_variant(run: Run, kernels: Sequence[str], compiles: str) -> tuple[Variant | None, dict[str, float | str]]:
    """The fastest variant, None if none is to be had; and of each its seconds, or why it has none (`time_variants`).

    compiles  `BenchOptions.compile`
    """
    if len(kernels) > 1 or compiles == "true":
        variants = time_variants(run, kernels, compiles=compiles == "true")
        best = fastest(variants)
        if best is not None and compiles == "always":
            best = replace(best, compiled=True)
        return best, {str(variant): outcome for variant, outcome in variants.items()}
    variant = Variant(kernels[0], compiled=compiles == "always")
    why = _not_to_be_had(run, variant.kernel)
    return None if why else variant, {str(variant): why or "not timed, there is no other"}


def _not_to_be_had(run: Run, kernel: str) -> str:
    """Why an attention kernel cannot be computed here; nothing where it can."""
    from pw.nn.networks import check_kernel

    try:
        check_kernel(replace(network_of(run), attention=kernel, compile=False), str(_device(run)))
    except ValueError as error:
        return str(error)
    return ""


def time_variants(run: Run, kernels: Sequence[str], *, compiles: bool) -> dict[Variant, float | str]:
    """Seconds of one evaluation of stage II's network with each attention kernel, and compiled with the fastest.

    Or why it is not to be had. Of no more frames than make `FEW_TOKENS`.
    """
    from pw.nn.networks import compile_blocks, load_network, use_kernel

    network = replace(network_of(run), attention="sdpa", compile=False)
    net = load_network(network, "random", None, str(_emptied_device(run)))
    seconds = _stopwatch(run, net)
    found: dict[Variant, float | str] = {}

    def note(variant: Variant, outcome: float | str) -> None:
        found[variant] = outcome
        print(f"{variant}: {outcome}{' s' if isinstance(outcome, float) else ''}", file=sys.stderr, flush=True)

    for name in kernels:
        if why := _not_to_be_had(run, name):
            note(Variant(name), why)
            continue
        use_kernel(net, name)
        note(Variant(name), seconds())
    best = fastest(found)
    if compiles and best is not None:
        variant = replace(best, compiled=True)
        use_kernel(net, variant.kernel)
        compile_blocks(net)
        try:
            note(variant, seconds())
        except Exception as error:  # whatever a compiler that is not for this machine raises
            note(variant, f"not to be had here ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
        torch.compiler.reset()
    return found


def _stopwatch(run: Run, net: Backbone) -> Callable[[], float]:
    """Measures the mean seconds of `REPEATS` evaluations of a network after one that warms up."""
    from pw.nn.unipc import synchronize
    from pw.stages.velocity import Condition, velocity

    channels, frames, rows, columns = stage_latent(run)
    patch = run.backbone.patch_size
    few = FEW_TOKENS // tokens((channels, patch[0], rows, columns), patch) * patch[0]
    state, text, anchor = _inputs(run, min(frames, max(patch[0], few)))
    evaluate = velocity(net, Condition(text, anchor), run.schedule)
    now = torch.full((1,), float(run.schedule.num_timesteps), dtype=torch.float64, device=state.device)

    def seconds() -> float:
        with torch.no_grad():
            evaluate(state, now, now)
            synchronize(state.device)
            began = time.perf_counter()
            for _ in range(REPEATS):
                evaluate(state, now, now)
            synchronize(state.device)
        return round((time.perf_counter() - began) / REPEATS, 4)

    return seconds


def fastest(variants: Mapping[Variant, float | str]) -> Variant | None:
    timed = {variant: seconds for variant, seconds in variants.items() if isinstance(seconds, float)}
    return min(timed, key=lambda variant: timed[variant]) if timed else None


def measure_ours(run: Run, keep: Keep = lambda found: None) -> dict[str, Any]:
    """What is measured and aimed at; seconds and peak memory of stage II at a scale. Raises torch.OutOfMemoryError."""
    from pw.cost.counts import forward_flops
    from pw.generate.denoise import calls_of
    from pw.nn.networks import load_network
    from pw.nn.unipc import synchronize
    from pw.stages.velocity import Condition, evaluations, integrate

    device = _emptied_device(run)
    net = load_network(network_of(run), "random", None, str(device))
    noise, text, anchor = _inputs(run, stage_latent(run)[1])
    condition, null = Condition(text, anchor), Condition(torch.zeros_like(text), anchor)
    took: list[float] = []
    found: dict[str, Any] = {
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
        "evaluation_seconds": took,
    }

    def told(what: str) -> float:
        """Seconds since `began`, of which each is said."""
        synchronize(device)
        seconds = time.perf_counter() - began
        print(f"{run.scale.name}: {what}: {seconds:.1f} s", file=sys.stderr, flush=True)
        return seconds

    def tick() -> None:
        took.append(round(told(f"evaluation {len(took) + 1} of {calls_of(run)}") - sum(took), 4))
        keep({**found, "peak_gb": _peak_gb(device)})

    # warms up with one evaluation of the size that is measured: kernels are chosen, blocks compiled
    guidance = run.guidance if run.trainer.guidance_batch else replace(run.guidance, scale=1.0)
    one_step = replace(run.sampling, num_steps=1, timesteps=None)
    began = time.perf_counter()
    integrate(replace(run, guidance=guidance, sampling=one_step), net, noise, condition, null)
    found["warm_up_seconds"] = round(told("warmed up"), 4)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    integrate(run, net, noise, condition, null, tick)
    seconds = told("done")
    one = forward_flops(run.backbone, found["tokens"], run.backbone.text_tokens, run.injector).total
    return {
        **found,
        "seconds": round(seconds, 4),
        "peak_gb": _peak_gb(device),
        "tflop_per_second": round(one * evaluations(run) / seconds / 1e12, 3),
    }


def _measure_stock(run: Run, steps: int, of: int, keep: Keep) -> dict[str, Any]:
    """Seconds and peak memory of the first steps of diffusers' pipeline; `failed` where memory runs out."""
    from pw.nn.networks import load_network
    from pw.nn.unipc import stock_steps

    device = _emptied_device(run)
    network = replace(network_of(run), injector=None, attention="sdpa", compile=False)
    net = load_network(network, "random", None, str(device))
    net.release()  # no hook of ours is left
    found: dict[str, Any] = {"attention": "sdpa", "compile": False, "steps": of, "step_seconds": []}

    def after_step(seconds: float) -> None:
        took = found["step_seconds"]
        took.append(round(seconds, 4))
        print(f"{run.scale.name}: stock step {len(took)} of {steps}: {seconds:.1f} s", file=sys.stderr, flush=True)
        keep({**found, "peak_gb": _peak_gb(device)})

    try:
        inputs = _inputs(run, stage_latent(run)[1])[:2]
        took = stock_steps(net.dit, *inputs, run.schedule.shift, steps, of, after_step)
        step = sum(took[1:]) / len(took[1:]) if len(took) > 1 else took[0]
        found["seconds"] = round(step * of, 4)
    except torch.OutOfMemoryError as error:  # a modulation per token is 9 GB at 4K, and twice that in fp32
        found["failed"] = _first_line(error)
    return {**found, "peak_gb": _peak_gb(device)}


def _measured(run: Run, stock_steps: int, stock_of: int, keep: Keep) -> dict[str, Any]:
    """A scale: ours, and stock beside it if there are to be steps of it; `failed` where memory runs out."""
    try:
        ours = measure_ours(run, keep)
    except torch.OutOfMemoryError as error:
        return {"scale": run.scale.name, "failed": _first_line(error)}
    keep(ours)
    if not stock_steps:
        return ours
    print(f"{run.scale.name}: now {stock_steps} steps of stock", file=sys.stderr, flush=True)
    try:
        stock = _measure_stock(run, stock_steps, stock_of, lambda so_far: keep({**ours, "stock": so_far}))
    except torch.OutOfMemoryError as error:  # before its first step
        stock = {"failed": _first_line(error)}
    ratio = round(stock["seconds"] / ours["seconds"], 2) if "seconds" in stock else None
    return {**ours, "stock": stock, "speed_up": ratio}


def _device(run: Run) -> torch.device:
    return torch.device("cuda" if run.trainer.accelerator == "gpu" else "cpu")


def _emptied_device(run: Run) -> torch.device:
    from pw.generate.output import release_memory

    release_memory(_device(run).type)
    return _device(run)


def _inputs(run: Run, frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise [1, C, frames, h, w], a text [1, tokens, dim] and an anchor like the noise, but of the anchor's size."""
    channels, _, *size = stage_latent(run)
    small = [side // run.codec.factor for side in run.scale.anchor_size]
    words = (run.backbone.text_tokens, run.backbone.text_dim)
    shapes = ((channels, frames, *size), words, (channels, frames, *small))
    noise, text, anchor = (torch.randn(1, *shape, device=_device(run)) for shape in shapes)
    return noise, text, anchor


def _peak_gb(device: torch.device) -> float | None:
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


def run_bench(options: BenchOptions) -> int:
    """Exit status: 0 measured, 1 a scale does not fit the device. Raises ConfigError for what cannot be measured."""
    runs = [build([f"scale={scale}", "stage=hires", *options.overrides]) for scale in options.scales]
    for run in runs:
        if run.text is None or run.guidance.scale == 1:
            raise ConfigError(f"scale={run.scale.name}: the bench is of a scale with text and guidance: 2k, 4k, proxy")
        check_device(run)
    silence_libraries()
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
