"""Measurements on whatever machine there is, side by side in one run: `make bench what=generate`.

    python -m pw.bench what=generate [scales=2k,4k] [stock_steps=3] [kernels=sdpa,cudnn,…] [compile=true]
                       [out=FILE.json] [override …]

generate  Diffusion only, random weights: stage II of each scale with its steps and guidance, beside the first steps of
          diffusers' own WanPipeline around a like transformer at the same size, whose 50 steps take 50 times their
          mean. The stock steps' first is left out where there are several: it warms up. Stock is as diffusers has it,
          torch's own choice of attention and nothing compiled; ours takes the fastest of the attention kernels that
          are to be had, compiled blocks if those are faster still: all timed on one evaluation of some frames of the
          first scale (`compile=false` spares the minute that compiling takes).
"""

from __future__ import annotations

import dataclasses
import gc
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pw.build import Run, build
from pw.config import ROOT, ConfigError
from pw.provenance import provenance
from pw.train import check_device, quiet, write_json

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


def time_ways(run: Run, kernels: Sequence[str], *, compiles: bool) -> dict[Way, float | str]:
    """Seconds of one evaluation of stage II's network with each attention kernel, and compiled with the fastest.

    Or why it is not to be had. Of no more frames than make `FEW_TOKENS`.
    """
    import torch

    from pw.cost import stage_latent, tokens
    from pw.nn.networks import Network, check_kernel, compile_blocks, load_network, use_kernel
    from pw.nn.stock import synchronize
    from pw.stages.velocity import Condition, velocity

    device = torch.device("cuda" if run.trainer.accelerator == "gpu" else "cpu")
    _forget(device)
    network = Network(run.backbone, run.injector, "sdpa", False, run.seed)
    net = load_network(network, "random", None, str(device))
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
    for name in kernels:
        try:
            check_kernel(dataclasses.replace(network, attention=name), str(device))
        except ValueError as error:
            found[Way(name)] = str(error)
            continue
        use_kernel(net, name)
        found[Way(name)] = seconds()
    best = fastest(found)
    if compiles and best is not None:
        way = dataclasses.replace(best, compiled=True)
        use_kernel(net, way.kernel)
        compile_blocks(net)
        try:
            found[way] = seconds()
        except Exception as error:  # whatever a compiler that is not for this machine raises
            found[way] = f"not to be had here ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        torch.compiler.reset()
    return found


def fastest(ways: Mapping[Way, float | str]) -> Way | None:
    """The one of least seconds; None if none is to be had."""
    timed = {way: seconds for way, seconds in ways.items() if isinstance(seconds, float)}
    return min(timed, key=lambda way: timed[way]) if timed else None


def measure_generation(run: Run, stock_steps: int, stock_of: int) -> dict[str, Any]:
    """Seconds and peak memory of stage II at a scale, and of stock steps on a transformer like its own."""
    import torch

    from pw.cost import forward_flops, stage_latent, tokens
    from pw.nn.networks import Network, load_network
    from pw.nn.stock import stock_steps as stock
    from pw.nn.stock import synchronize
    from pw.stages.velocity import Condition, evaluations, integrate

    device = torch.device("cuda" if run.trainer.accelerator == "gpu" else "cpu")
    _forget(device)
    shape = stage_latent(run)
    net = load_network(
        Network(run.backbone, run.injector, run.trainer.attention, run.trainer.compile, run.seed),
        "random",
        None,
        str(device),
    )
    noise = torch.randn(1, *shape, device=device)
    anchor_size = [side // run.codec.factor for side in run.scale.anchor_size]
    anchor = torch.randn(1, *shape[:2], *anchor_size, device=device)
    text = torch.randn(1, run.backbone.text_tokens, run.backbone.text_dim, device=device)
    conditions = Condition(text, anchor), Condition(torch.zeros_like(text), anchor)
    warm = build([*run.config.overrides, "sampling.num_steps=1", "guidance.first_steps=null"])
    integrate(warm, net, noise, *conditions)  # kernels are chosen, blocks compiled
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    integrate(run, net, noise, *conditions)
    synchronize(device)
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    print(f"{run.scale.name}: {seconds:.1f} s; now {stock_steps} steps of stock", file=sys.stderr, flush=True)
    del net
    _forget(device)
    plain = load_network(Network(run.backbone, None, "sdpa", False, run.seed), "random", None, str(device))
    plain.release()  # no hook of ours is left
    theirs: dict[str, Any] = {"attention": "sdpa", "compile": False}
    try:
        took, _ = stock(plain.dit, noise, text, run.schedule.shift, stock_steps, stock_of)
        step = sum(took[1:]) / len(took[1:]) if len(took) > 1 else took[0]
        theirs |= {"step_seconds": [round(s, 4) for s in took], "steps": stock_of, "seconds": round(step * stock_of, 4)}
    except torch.OutOfMemoryError as error:  # a modulation per token is 9 GB at 4K, and twice that in fp32
        theirs["failed"] = _first_line(error)
    stock_peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    count = tokens(shape, run.backbone.patch_size)
    flops = forward_flops(run.backbone, count, run.backbone.text_tokens, run.injector).total * evaluations(run)
    return {
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
        "seconds": round(seconds, 4),
        "peak_gb": None if peak is None else round(peak, 2),
        "tflop_per_second": round(flops / seconds / 1e12, 3),
        "stock": {**theirs, "peak_gb": None if stock_peak is None else round(stock_peak, 2)},
        "speed_up": round(theirs["seconds"] / seconds, 2) if "seconds" in theirs else None,
        "aim": {**AIMS.get(run.scale.name, {}), "speed_up": SPEED_UP},
    }


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
        if own["compile"] not in ("true", "false"):
            raise ValueError(f"compile={own['compile']}: true or false")
        for key in ("stock_steps", "stock_of"):
            if not own[key].isdecimal() or not int(own[key]):
                raise ValueError(f"{key}={own[key]}: a whole number from 1")
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
    ways = time_ways(runs[0], own["kernels"].split(","), compiles=own["compile"] == "true")
    best = fastest(ways)
    told = {str(way): seconds for way, seconds in ways.items()}
    print(json.dumps(told, indent=1), flush=True)
    if best is None:
        print(f"error: kernels={own['kernels']}: none of them is to be had here", file=sys.stderr)
        return 2
    out = Path(own["out"] or ROOT / "outputs" / "bench" / f"generate_{device.replace(' ', '-')}.json")
    found: list[dict[str, Any]] = []
    for given in runs:
        run = build([*given.config.overrides, *best.overrides])
        print(f"{run.scale.name} on {device} …", file=sys.stderr, flush=True)
        try:
            found.append(measure_generation(run, int(own["stock_steps"]), int(own["stock_of"])))
        except torch.OutOfMemoryError as error:
            found.append({"scale": run.scale.name, "failed": _first_line(error)})
        print(json.dumps(found[-1], indent=1), flush=True)
        # after each scale: the next may take an hour
        written = {"device": device, "torch": torch.__version__, "kernels": told, "measured": found}
        write_json(out, {**written, **provenance()})
    print(out)
    return int(any("failed" in measured for measured in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
