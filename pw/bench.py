"""Measurements on whatever machine there is, side by side in one run: `make bench what=generate`.

    python -m pw.bench what=generate [scales=2k,4k] [stock_steps=3] [kernels=sdpa,cudnn,…] [out=FILE.json] [override …]

generate  Diffusion only, random weights: stage II of each scale with its steps and guidance, beside the first steps of
          diffusers' own WanPipeline around the same transformer at the same size, whose 50 steps take 50 times their
          mean. The stock steps' first is left out where there are several: it warms up. Of the attention kernels that
          are to be had, each is timed on one evaluation at the first scale, and the fastest is used.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pw.build import Run, build
from pw.config import ROOT, ConfigError
from pw.provenance import provenance
from pw.train import check_device, write_json

OWN = {
    "what": "generate",
    "scales": "2k,4k",
    "stock_steps": "3",
    "stock_of": "50",
    "kernels": "sdpa,cudnn,flash,flash3",
    "out": "",
}
# Seconds and GB of the paper, and what is aimed at on one H200  (issue 3; Table 1, sec. 4).
AIMS = {
    "2k": {"seconds": 75.0, "paper_seconds": [132.0, 146.0]},
    "4k": {"seconds": 340.0, "paper_seconds": [572.0, 590.0], "peak_gb": 45.0, "paper_peak_gb": 101.8},
}
SPEED_UP = 12.0
KERNELS = {"sdpa", "cudnn", "flash", "flash3", "sage"}


def time_kernels(run: Run, names: Sequence[str]) -> dict[str, float | str]:
    """Seconds of one evaluation of stage II's network with each attention kernel, or why it is not to be had."""
    import torch

    from pw.cost import stage_latent
    from pw.nn.networks import Network, check_kernel, load_network, use_kernel
    from pw.nn.stock import synchronize
    from pw.stages.velocity import Condition, velocity

    device = torch.device("cuda" if run.trainer.accelerator == "gpu" else "cpu")
    network = Network(run.backbone, run.injector, "sdpa", False, run.seed)
    net = load_network(network, "random", None, str(device))
    shape = stage_latent(run)
    state = torch.randn(1, *shape, device=device)
    small = [side // run.codec.factor for side in run.scale.anchor_size]
    anchor = torch.randn(1, *shape[:2], *small, device=device)
    text = torch.randn(1, run.backbone.text_tokens, run.backbone.text_dim, device=device)
    evaluate = velocity(net, Condition(text, anchor), run.schedule)
    now = torch.full((1,), float(run.schedule.num_timesteps), dtype=torch.float64, device=device)
    found: dict[str, float | str] = {}
    for name in names:
        try:
            check_kernel(dataclasses.replace(network, attention=name), str(device))
        except ValueError as error:
            found[name] = str(error)
            continue
        use_kernel(net, name)
        with torch.no_grad():
            evaluate(state, now, now)
            synchronize(device)
            began = time.perf_counter()
            evaluate(state, now, now)
            synchronize(device)
        found[name] = round(time.perf_counter() - began, 4)
    return found


def measure_generation(run: Run, stock_steps: int, stock_of: int) -> dict[str, Any]:
    """Seconds and peak memory of stage II at a scale, and of stock steps on the same transformer."""
    import torch

    from pw.cost import forward_flops, stage_latent, tokens
    from pw.nn.networks import Network, load_network
    from pw.nn.stock import stock_steps as stock
    from pw.nn.stock import synchronize
    from pw.stages.velocity import Condition, evaluations, integrate

    device = torch.device("cuda" if run.trainer.accelerator == "gpu" else "cpu")
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
    # the same transformer, our hooks told nothing: the stride of 0 and a silent injector cost the stock steps nothing
    dit = net.dit
    net.release()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    took, _ = stock(dit, noise, text, run.schedule.shift, stock_steps, stock_of)
    stock_peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    step = sum(took[1:]) / len(took[1:]) if len(took) > 1 else took[0]
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
        "stock": {
            "step_seconds": [round(s, 4) for s in took],
            "steps": stock_of,
            "seconds": round(step * stock_of, 4),
            "peak_gb": None if stock_peak is None else round(stock_peak, 2),
        },
        "speed_up": round(step * stock_of / seconds, 2),
        "aim": {**AIMS.get(run.scale.name, {}), "speed_up": SPEED_UP},
    }


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 measured, 2 a mistake in the call."""
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

    device = torch.cuda.get_device_name() if runs[0].trainer.accelerator == "gpu" else platform.processor() or "CPU"
    kernels = time_kernels(runs[0], own["kernels"].split(","))
    print(json.dumps(kernels, indent=1), flush=True)
    timed = {name: seconds for name, seconds in kernels.items() if isinstance(seconds, float)}
    found = []
    for given in runs:
        run = build([*given.config.overrides, f"trainer.attention={min(timed, key=lambda name: timed[name])}"])
        print(f"{run.scale.name} on {device} …", file=sys.stderr, flush=True)
        found.append(measure_generation(run, int(own["stock_steps"]), int(own["stock_of"])))
        print(json.dumps(found[-1], indent=1), flush=True)
    out = Path(own["out"] or ROOT / "outputs" / "bench" / f"generate_{device.replace(' ', '-')}.json")
    write_json(
        out, {"device": device, "torch": torch.__version__, "kernels": kernels, "measured": found, **provenance()}
    )
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
