"""`make bench what=generate`: time stage II on this machine, and the pipeline of diffusers in the same run.

Diffusion is timed with random weights: stage II of each scale with its steps and guidance ("ours"), and the first
steps of diffusers' WanPipeline with a similar transformer at the same size ("stock"). Its 50 steps are estimated as 50
times the mean step, without the first (a warm-up) if there are several; `stock_steps=0` skips stock. Stock uses torch's
default attention and is not compiled. Ours uses the fastest attention kernel whose result is right, and compiled blocks
if they are faster; each is timed on some frames of the first scale. With one kernel and `compile` false or always
nothing is timed. `kernel_errors` has the relative error of each kernel (`pw.nn.networks.kernel_error`).

After that come an evaluation with fewer tokens, a tile of Wan's VAE and a short video file, unless `codec=false`: the
rates of this machine (`benchmarks.speed.device_rates`), which on a GPU go to outputs/rates.json, where plans find them.

The file is rewritten after every evaluation and step, so a killed run leaves its measurements, then without `seconds`.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from benchmarks.speed.device_rates import codec_rates, file_rate, network_rates
from pw.cost.counts import Flops, evaluations, forward_flops, sampling_flops, stage_latent, stage_tokens, tokens
from pw.cost.rates import record_rates
from pw.io.arguments import Command, ConfigError, number, option
from pw.io.files import writable_file, write_json
from pw.io.lazy import torch
from pw.io.paths import OUTPUTS, silence_libraries
from pw.run.build import Run, build
from pw.run.settings import Trainer
from pw.run.signatures import provenance
from pw.stages import network_of
from pw.train.preflight import check_device

if TYPE_CHECKING:
    from pw.nn.backbone import Backbone

# Seconds and GB in the paper (Table 1, sec. 4), and our aims on one H200.
AIMS = {
    "2k": {"seconds": 75.0, "paper_seconds": [132.0, 146.0]},
    "4k": {"seconds": 340.0, "paper_seconds": [572.0, 590.0], "peak_gb": 45.0, "paper_peak_gb": 101.8},
}
SPEED_UP = 12.0
MAX_TIMED_TOKENS = 32_000  # enough to compare kernels: 4 % of a 2K evaluation
REPEATS = 3

Save = Callable[[dict[str, Any]], None]  # called after every step or evaluation with the measurements so far


@dataclass(frozen=True)
class Variant:
    """The attention kernel of a network, and whether its blocks are compiled."""

    kernel: str
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.kernel}, compiled" if self.compiled else self.kernel

    @property
    def overrides(self) -> list[str]:
        return [f"trainer.attention={self.kernel}", f"trainer.compile={str(self.compiled).lower()}"]


def choose_variant(run: Run, kernels: Sequence[str], compiles: str) -> tuple[Variant | None, dict[str, float | str]]:
    """The fastest variant, None if none can be timed; and the outcomes of `time_variants`.

    kernels   those that can be used here
    compiles  `BenchOptions.compile`
    """
    if len(kernels) > 1 or compiles == "true":
        variants = time_variants(run, kernels, compiles=compiles == "true")
        best = fastest(variants)
        if best is not None and compiles == "always":
            best = replace(best, compiled=True)
        return best, {str(variant): outcome for variant, outcome in variants.items()}
    variant = Variant(kernels[0], compiled=compiles == "always")
    return variant, {str(variant): "not timed, it is the only one"}


def kernel_errors(run: Run, kernels: Sequence[str]) -> dict[str, float | str]:
    """The relative error of each attention kernel, or the reason why it cannot be used here."""
    from pw.nn.networks import kernel_error

    errors: dict[str, float | str] = {}
    for name in kernels:
        try:
            errors[name] = kernel_error(replace(network_of(run), attention=name, compile=False), str(_device(run)))
        except ValueError as error:
            errors[name] = str(error)
        print(f"{name}: relative error {errors[name]}", file=sys.stderr, flush=True)
    return errors


def time_variants(run: Run, kernels: Sequence[str], *, compiles: bool) -> dict[Variant, float | str]:
    """Seconds of one evaluation of stage II with each attention kernel, and compiled with the fastest kernel.

    Compilation that fails has the reason instead. An evaluation has at most `MAX_TIMED_TOKENS` tokens.
    """
    from pw.nn.networks import compile_blocks, load_network, use_kernel

    network = replace(network_of(run), attention="sdpa", compile=False)
    net = load_network(network, "random", None, str(_free_device(run)))
    seconds = _stopwatch(run, net)
    outcomes: dict[Variant, float | str] = {}

    def record(variant: Variant, outcome: float | str) -> None:
        outcomes[variant] = outcome
        print(f"{variant}: {outcome}{' s' if isinstance(outcome, float) else ''}", file=sys.stderr, flush=True)

    for name in kernels:
        use_kernel(net, name)
        record(Variant(name), seconds())
    best = fastest(outcomes)
    if compiles and best is not None:
        variant = replace(best, compiled=True)
        use_kernel(net, variant.kernel)
        compile_blocks(net)
        try:
            record(variant, seconds())
        except Exception as error:  # a compiler without support for this machine may raise any error
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            record(variant, f"not available on this machine ({reason})")
        torch.compiler.reset()
    return outcomes


def _stopwatch(run: Run, net: Backbone) -> Callable[[], float]:
    """A function that returns the mean seconds of `REPEATS` evaluations, after one to warm up."""
    from pw.nn.unipc import synchronize
    from pw.stages.velocity import Condition, velocity

    state, text, anchor = _inputs(run, _timed_tokens(run)[0])
    evaluate = velocity(net, Condition(text, anchor), run.schedule)
    timestep = torch.full((1,), float(run.schedule.num_timesteps), dtype=torch.float64, device=state.device)

    def seconds() -> float:
        with torch.no_grad():
            evaluate(state, timestep, timestep)
            synchronize(state.device)
            start = time.perf_counter()
            for _ in range(REPEATS):
                evaluate(state, timestep, timestep)
            synchronize(state.device)
        return round((time.perf_counter() - start) / REPEATS, 4)

    return seconds


def _timed_tokens(run: Run) -> tuple[int, int]:
    """(latent frames, tokens) of an evaluation with at most `MAX_TIMED_TOKENS`, if one frame has not more."""
    channels, frames, rows, columns = stage_latent(run)
    patch = run.backbone.patch_size
    max_frames = MAX_TIMED_TOKENS // tokens((channels, patch[0], rows, columns), patch) * patch[0]
    timed = min(frames, max(patch[0], max_frames))
    return timed, tokens((channels, timed, rows, columns), patch)


def fastest(variants: Mapping[Variant, float | str]) -> Variant | None:
    timed = {variant: seconds for variant, seconds in variants.items() if isinstance(seconds, float)}
    return min(timed, key=lambda variant: timed[variant]) if timed else None


def measure_ours(run: Run, save: Save = lambda result: None) -> dict[str, Any]:
    """Settings, aims, seconds and peak memory of stage II at a scale. Raises torch.OutOfMemoryError."""
    from pw.generate.denoise import calls_of
    from pw.nn.networks import load_network
    from pw.nn.unipc import synchronize
    from pw.stages.velocity import Condition, integrate, noise_of_phases

    device = _free_device(run)
    net = load_network(network_of(run), "random", None, str(device))
    noise, text, anchor = _inputs(run, stage_latent(run)[1])
    condition, null = Condition(text, anchor), Condition(torch.zeros_like(text), anchor)
    timings: list[float] = []
    result: dict[str, Any] = {
        "scale": run.scale.name,
        "frames": run.scale.frames,
        "size": [run.scale.width, run.scale.height],
        "tokens": stage_tokens(run),
        "steps": run.sampling.num_steps,
        "guidance": run.guidance.scale,
        "evaluations": evaluations(run),
        "attention": run.trainer.attention,
        "compile": bool(run.trainer.compile),
        "guidance_batch": run.trainer.guidance_batch,
        "offload": run.trainer.offload,
        "storage": run.trainer.storage,
        "aim": {**AIMS.get(run.scale.name, {}), "speed_up": SPEED_UP},
        "evaluation_seconds": timings,
    }

    def log_seconds(label: str) -> float:
        """Print and return the seconds since `start`."""
        synchronize(device)
        seconds = time.perf_counter() - start
        print(f"{run.scale.name}: {label}: {seconds:.1f} s", file=sys.stderr, flush=True)
        return seconds

    def on_evaluation() -> None:
        timings.append(round(log_seconds(f"evaluation {len(timings) + 1} of {calls_of(run)}") - sum(timings), 4))
        save({**result, "peak_gb": _peak_gb(device)})

    # warm up with one evaluation of the measured size: this selects kernels and compiles blocks
    guidance = run.guidance if run.trainer.guidance_batch else replace(run.guidance, scale=1.0)
    one_step = replace(run.sampling, num_steps=1, timesteps=None, sizes=None, init="noise")
    start = time.perf_counter()
    integrate(replace(run, guidance=guidance, sampling=one_step), net, noise, condition, null)
    result["warm_up_seconds"] = round(log_seconds("warmed up"), 4)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    noises = [part[None].to(device) for part in noise_of_phases(run, noise[0], 0)]
    integrate(run, net, noises, condition, null, on_evaluation)
    seconds = log_seconds("done")
    return {
        **result,
        "seconds": round(seconds, 4),
        "peak_gb": _peak_gb(device),
        "tflop_per_second": round(sampling_flops(run).total / seconds / 1e12, 3),
    }


def _measure_stock(run: Run, steps: int, total_steps: int, save: Save) -> dict[str, Any]:
    """Seconds and peak memory of the first steps of diffusers' pipeline; `failed` if memory runs out."""
    from pw.nn.networks import load_network
    from pw.nn.unipc import stock_steps

    device = _free_device(run)
    network = replace(network_of(run), injector=None, attention="sdpa", compile=False, sparsity=None)
    net = load_network(network, "random", None, str(device))
    net.release()  # remove our hooks
    result: dict[str, Any] = {"attention": "sdpa", "compile": False, "steps": total_steps, "step_seconds": []}

    def after_step(seconds: float) -> None:
        timings = result["step_seconds"]
        timings.append(round(seconds, 4))
        print(f"{run.scale.name}: stock step {len(timings)} of {steps}: {seconds:.1f} s", file=sys.stderr, flush=True)
        save({**result, "peak_gb": _peak_gb(device)})

    try:
        inputs = _inputs(run, stage_latent(run)[1])[:2]
        timings = stock_steps(net.dit, *inputs, run.schedule.shift, steps, total_steps, after_step)
        step = sum(timings[1:]) / len(timings[1:]) if len(timings) > 1 else timings[0]
        result["seconds"] = round(step * total_steps, 4)
    except torch.OutOfMemoryError as error:  # modulation per token takes 9 GB at 4K, twice that in fp32
        result["failed"] = _first_line(error)
    return {**result, "peak_gb": _peak_gb(device)}


def _measure_scale(run: Run, stock_steps: int, stock_total: int, save: Save) -> dict[str, Any]:
    """Measure ours at a scale, then stock if `stock_steps` > 0; `failed` if memory runs out."""
    try:
        ours = measure_ours(run, save)
    except torch.OutOfMemoryError as error:
        return {"scale": run.scale.name, "failed": _first_line(error)}
    save(ours)
    if not stock_steps:
        return ours
    print(f"{run.scale.name}: now {stock_steps} steps of stock", file=sys.stderr, flush=True)
    try:
        stock = _measure_stock(run, stock_steps, stock_total, lambda partial: save({**ours, "stock": partial}))
    except torch.OutOfMemoryError as error:  # before its first step
        stock = {"failed": _first_line(error)}
    ratio = round(stock["seconds"] / ours["seconds"], 2) if "seconds" in stock else None
    return {**ours, "stock": stock, "speed_up": ratio}


def measure_rates(run: Run, best: Variant, results: Sequence[Mapping[str, Any]], codec: bool) -> dict[str, float]:
    """Rates by kind of work, from what was measured of each scale, and an evaluation of `run` with fewer tokens."""
    from pw.nn.networks import load_network

    def flops_of(tokens: int) -> Flops:
        return forward_flops(run.backbone, tokens, run.backbone.text_tokens, run.injector)

    entries = [
        (flops_of(result["tokens"]), result["seconds"] / result["evaluations"])
        for result in results
        if "seconds" in result
    ]
    if not entries:
        return {}
    run = build([*run.config.overrides, *best.overrides])
    net = load_network(network_of(run), "random", None, str(_free_device(run)))
    entries.append((flops_of(_timed_tokens(run)[1]), _stopwatch(run, net)()))
    del net
    rates = network_rates(entries)
    if codec:
        _free_device(run)
        rates |= {**codec_rates(run, _device(run).type), **file_rate(*run.scale.size)}
    return {name: round(rate, 3) for name, rate in rates.items()}


def _device(run: Run) -> torch.device:
    return torch.device("cuda" if run.trainer.accelerator == "gpu" else "cpu")


def _free_device(run: Run) -> torch.device:
    from pw.generate.output import release_memory

    release_memory(_device(run).type)
    return _device(run)


def _inputs(run: Run, frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random noise [1, C, frames, h, w], text [1, tokens, dim] and anchor [1, C, frames, anchor h, anchor w]."""
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
        raise ValueError("one of generate, metrics, train")
    return text


def _kernels(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    known = get_args(get_type_hints(Trainer)["attention"])
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{unknown[0]} is not one of {', '.join(known)}")
    return names


@dataclass(frozen=True)
class BenchOptions:
    what: str = option("generate", "generate, metrics or train", read=_what)
    scales: tuple[str, ...] = option(("2k", "4k"), "scales with text and guidance")
    stock_steps: int = option(3, "steps of diffusers' own pipeline that are timed; 0: none", read=number(0))
    stock_of: int = option(50, "steps of a whole video by that pipeline", read=number(1))
    kernels: tuple[str, ...] = option(
        ("sdpa", "cudnn", "flash", "flash3", "flash4"), "attention kernels to choose from", read=_kernels
    )
    compile: Literal["true", "false", "always"] = option("true", "compile blocks if that is faster, never, or always")
    codec: bool = option(True, "also time Wan's VAE and the video file")
    out: Path | None = option(
        None, "the JSON file, by default outputs/bench/generate_<device>.json", read=writable_file("out")
    )
    overrides: tuple[str, ...] = ()


def run_bench(options: BenchOptions) -> int:
    """Exit status: 0 measured, 1 a scale does not fit into memory. Raises ConfigError if nothing can be measured."""
    if not options.scales:
        raise ConfigError("scales=: no scale given; e.g. scales=2k,4k")
    runs = [build([f"scale={scale}", "stage=hires", *options.overrides]) for scale in options.scales]
    for run in runs:
        if run.text is None or run.guidance.scale == 1:
            raise ConfigError(f"scale={run.scale.name}: use a scale with text and guidance: 2k, 4k, proxy")
        check_device(run)
    silence_libraries()
    device = torch.cuda.get_device_name() if runs[0].trainer.accelerator == "gpu" else platform.processor() or "CPU"
    errors = kernel_errors(runs[0], options.kernels if runs[0].attention is None else ("sdpa",))
    kernels = [name for name, error in errors.items() if isinstance(error, float)]
    best, outcomes = choose_variant(runs[0], kernels, options.compile) if kernels else (None, {})
    print(json.dumps(outcomes, indent=1), flush=True)
    if best is None:
        raise ConfigError(f"kernels={','.join(options.kernels)}: none is available on this machine")
    out = options.out or OUTPUTS / "bench" / f"generate_{device.replace(' ', '-')}.json"
    metadata = {"device": device, "torch": torch.__version__, "kernels": outcomes, "kernel_errors": errors}
    metadata |= provenance()
    results: list[dict[str, Any]] = []

    def save(*partial: dict[str, Any]) -> None:
        write_json(out, {**metadata, "measured": [*results, *partial]})

    save()
    for base_run in runs:
        run = build([*base_run.config.overrides, *best.overrides])
        print(f"{run.scale.name} on {device}, {best} …", file=sys.stderr, flush=True)
        results.append(_measure_scale(run, options.stock_steps, options.stock_of, save))
        print(json.dumps(results[-1], indent=1), flush=True)
        save()
    rates = measure_rates(runs[0], best, results, options.codec)
    write_json(out, {**metadata, "measured": results, "rates": rates})
    print(json.dumps(rates, indent=1), flush=True)
    if rates and runs[0].trainer.accelerator == "gpu":
        record_rates(device, rates)
    print(out)
    return int(any("failed" in result for result in results))


main = Command(BenchOptions, run_bench)
