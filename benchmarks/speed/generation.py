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
import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pw.io.arguments import ConfigError
from pw.io.files import write_json
from pw.io.imports import quiet
from pw.io.paths import ROOT
from pw.run.build import Run, build
from pw.run.provenance import provenance
from pw.train.preflight import check_device

if TYPE_CHECKING:
    import torch

OWN = {
    "what": "generate",
    "scales": "2k,4k",
    "stock_steps": "3",
    "stock_of": "50",
    "kernels": "sdpa,cudnn,flash,flash3",
    "compile": "true",
    "out": "",
}
# Seconds and GB of the paper, and what is aimed at on one H200  (issue 3; Table 1, sec. 4).
AIMS = {
    "2k": {"seconds": 75.0, "paper_seconds": [132.0, 146.0]},
    "4k": {"seconds": 340.0, "paper_seconds": [572.0, 590.0], "peak_gb": 45.0, "paper_peak_gb": 101.8},
}
SPEED_UP = 12.0
FEW_TOKENS = 32_000  # enough to tell kernels apart: 4 % of a 2K evaluation
REPEATS = 3
KERNELS = {"sdpa", "cudnn", "flash", "flash3", "sage"}

Keep = Callable[[dict[str, Any]], None]  # is given what has been measured so far


@dataclass(frozen=True)
class Way:
    """How a network is computed: the attention kernel, and whether its blocks are compiled."""

    kernel: str
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.kernel}, compiled" if self.compiled else self.kernel

    @property
    def overrides(self) -> list[str]:
        """As a run has it."""
        return [f"trainer.attention={self.kernel}", f"trainer.compile={str(self.compiled).lower()}"]


def choose_way(run: Run, kernels: Sequence[str], compiles: str) -> tuple[Way | None, dict[str, float | str]]:
    """(the way that ours is computed, None if none is to be had; what is told of each way: see `time_ways`).

    compiles  as `compile=` was given
    """
    if len(kernels) > 1 or compiles == "true":
        ways = time_ways(run, kernels, compiles=compiles == "true")
        best = fastest(ways)
        if best is not None and compiles == "always":
            best = dataclasses.replace(best, compiled=True)
        return best, {str(way): told for way, told in ways.items()}
    way = Way(kernels[0], compiled=compiles == "always")
    if why := _not_to_be_had(run, way.kernel):
        return None, {str(way): why}
    return way, {str(way): "not timed, there is no other"}


def _not_to_be_had(run: Run, kernel: str) -> str:
    """Why an attention kernel cannot be computed here; nothing where it can."""
    from pw.nn.networks import Network, check_kernel

    try:
        check_kernel(Network(run.backbone, run.injector, kernel, False, run.seed), str(_device(run)))
    except ValueError as error:
        return str(error)
    return ""


def time_ways(run: Run, kernels: Sequence[str], *, compiles: bool) -> dict[Way, float | str]:
    """Seconds of one evaluation of stage II's network with each attention kernel, and compiled with the fastest.

    Or why it is not to be had. Of no more frames than make `FEW_TOKENS`.
    """
    import torch

    from pw.cost.parameters import stage_latent, tokens
    from pw.nn.networks import Network, compile_blocks, load_network, use_kernel
    from pw.nn.stock import synchronize
    from pw.stages.velocity import Condition, velocity

    device = _device(run)
    _forget(device)
    net = load_network(Network(run.backbone, run.injector, "sdpa", False, run.seed), "random", None, str(device))
    channels, frames, rows, columns = stage_latent(run)
    patch = run.backbone.patch_size
    few = FEW_TOKENS // tokens((channels, patch[0], rows, columns), patch) * patch[0]
    shape = (channels, min(frames, max(patch[0], few)), rows, columns)
    state = torch.randn(1, *shape, device=device)
    small = [side // run.codec.factor for side in run.scale.anchor_size]
    anchor = torch.randn(1, *shape[:2], *small, device=device)
    text = torch.randn(1, run.backbone.text_tokens, run.backbone.text_dim, device=device)
    evaluate = velocity(net, Condition(text, anchor), run.schedule)
    now = torch.full((1,), float(run.schedule.num_timesteps), dtype=torch.float64, device=device)

    def seconds() -> float:
        with torch.no_grad():
            evaluate(state, now, now)
            synchronize(device)
            began = time.perf_counter()
            for _ in range(REPEATS):
                evaluate(state, now, now)
            synchronize(device)
        return round((time.perf_counter() - began) / REPEATS, 4)

    found: dict[Way, float | str] = {}

    def note(way: Way, told: float | str) -> None:
        found[way] = told
        print(f"{way}: {told}{' s' if isinstance(told, float) else ''}", file=sys.stderr, flush=True)

    for name in kernels:
        if why := _not_to_be_had(run, name):
            note(Way(name), why)
            continue
        use_kernel(net, name)
        note(Way(name), seconds())
    best = fastest(found)
    if compiles and best is not None:
        way = dataclasses.replace(best, compiled=True)
        use_kernel(net, way.kernel)
        compile_blocks(net)
        try:
            note(way, seconds())
        except Exception as error:  # whatever a compiler that is not for this machine raises
            note(way, f"not to be had here ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
        torch.compiler.reset()
    return found


def fastest(ways: Mapping[Way, float | str]) -> Way | None:
    """The one of least seconds; None if none is to be had."""
    timed = {way: seconds for way, seconds in ways.items() if isinstance(seconds, float)}
    return min(timed, key=lambda way: timed[way]) if timed else None


def measure_ours(run: Run, keep: Keep | None = None) -> dict[str, Any]:
    """Seconds and peak memory of stage II at a scale. Raises torch.OutOfMemoryError.

    keep  called after every evaluation of the network
    """
    import torch

    from pw.cost.flops import forward_flops
    from pw.cost.parameters import stage_latent, tokens
    from pw.nn.networks import Network, load_network
    from pw.nn.stock import synchronize
    from pw.stages.velocity import Condition, evaluations, integrate

    device = _device(run)
    _forget(device)
    network = Network(run.backbone, run.injector, run.trainer.attention, run.trainer.compile, run.seed)
    net = load_network(network, "random", None, str(device))
    noise, text = _inputs(run, device)
    anchor = torch.randn(1, *noise.shape[1:3], *(side // run.codec.factor for side in run.scale.anchor_size))
    conditions = [Condition(given, anchor.to(device)) for given in (text, torch.zeros_like(text))]
    count = tokens(stage_latent(run), run.backbone.patch_size)
    times = evaluations(run) if not run.trainer.guidance_batch else run.sampling.num_steps
    took: list[float] = []
    found: dict[str, Any] = {
        "scale": run.scale.name,
        "frames": run.scale.frames,
        "size": [run.scale.width, run.scale.height],
        "tokens": count,
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
    flops = forward_flops(run.backbone, count, run.backbone.text_tokens, run.injector).total * evaluations(run)
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

    device = _device(run)
    _forget(device)
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


def _device(run: Run) -> torch.device:
    import torch

    return torch.device("cuda" if run.trainer.accelerator == "gpu" else "cpu")


def _inputs(run: Run, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Initial noise and a text, [1, C, F, h, w] and [1, tokens, dim]."""
    import torch

    from pw.cost.parameters import stage_latent

    text = (1, run.backbone.text_tokens, run.backbone.text_dim)
    return torch.randn(1, *stage_latent(run), device=device), torch.randn(text, device=device)


def _peak_gb(device: torch.device) -> float | None:
    import torch

    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None


def _forget(device: torch.device) -> None:
    """Give back what was measured before, and measure memory from here.

    A network whose hooks point back at it stays until it is collected, and would be part of the next one's peak.
    """
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 measured, 1 a scale does not fit the device, 2 a mistake in the call."""
    own, overrides = dict(OWN), []
    for word in arguments:
        key, _, value = word.partition("=")
        if key in OWN:
            own[key] = value
        else:
            overrides.append(word)
    try:
        if own["what"] != "generate":
            raise ValueError(
                f"what={own['what']}: there are generate, metrics and train: make bench what=…; this one is generate"
            )
        if own["compile"] not in ("true", "false", "always"):
            raise ValueError(f"compile={own['compile']}: true, false or always")
        for key, least in (("stock_steps", 0), ("stock_of", 1)):
            if not own[key].isdecimal() or int(own[key]) < least:
                raise ValueError(f"{key}={own[key]}: a whole number from {least}")
        runs = [build([f"scale={scale}", "stage=hires", *overrides]) for scale in own["scales"].split(",")]
        for run in runs:
            if run.text is None or run.guidance.scale == 1:
                raise ConfigError(
                    f"scale={run.scale.name}: the bench is of a scale with text and guidance: 2k, 4k, proxy"
                )
            check_device(run)
        unknown = set(own["kernels"].split(",")) - KERNELS
        if unknown:
            raise ValueError(f"kernels={own['kernels']}: {unknown.pop()} is not one of {', '.join(sorted(KERNELS))}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    import torch

    quiet()
    device = torch.cuda.get_device_name() if runs[0].trainer.accelerator == "gpu" else platform.processor() or "CPU"
    best, told = choose_way(runs[0], own["kernels"].split(","), own["compile"])
    print(json.dumps(told, indent=1), flush=True)
    if best is None:
        print(f"error: kernels={own['kernels']}: none of them is to be had here", file=sys.stderr)
        return 2
    out = Path(own["out"] or ROOT / "outputs" / "bench" / f"generate_{device.replace(' ', '-')}.json")
    about = {"device": device, "torch": torch.__version__, "kernels": told, **provenance()}
    found: list[dict[str, Any]] = []

    def keep(*measuring: dict[str, Any]) -> None:
        write_json(out, {**about, "measured": [*found, *measuring]})

    keep()
    for given in runs:
        run = build([*given.config.overrides, *best.overrides])
        print(f"{run.scale.name} on {device}, {best} …", file=sys.stderr, flush=True)
        found.append(_measured(run, int(own["stock_steps"]), int(own["stock_of"]), keep))
        print(json.dumps(found[-1], indent=1), flush=True)
        keep()
    print(out)
    return int(any("failed" in measured for measured in found))
