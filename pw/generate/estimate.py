"""How long each part of a request takes, from the plan's FLOPs and rates; progress is measured in the same seconds."""

from __future__ import annotations

import json
import math
from typing import Any

from pw.cost.generation_cost import coding, generation_cost
from pw.cost.rates import CPU_TFLOPS, Rates, rates_of, uniform_rates
from pw.generate.request import GenerationRequest
from pw.io.host import default_threads
from pw.io.progress import duration
from pw.nn.options import WanVAE

PARTS = {
    "text": "text",
    "stage I": "anchor",
    "video": "anchor",
    "decode": "decode",
}  # phase of the plan -> part; the others are stage II's
WAN_DECODER = 256  # decoder_base_dim of Wan2.2's VAE; its work grows with the square
# Assumed: a compiled evaluation takes 13 % less at 2K, by a public calibration of the 5B model; both stages and the
# decoder take two minutes to compile.
COMPILE_GAIN, COMPILE_SECONDS = 0.13, 120.0
SMALL_VAE: dict[str, Any] = {"base_dim": 8, "decoder_base_dim": 8, "num_res_blocks": 1}


def has_small_vae(request: GenerationRequest) -> bool:
    """Whether a trial with random weights decodes by a small VAE: Wan's takes minutes on a CPU for any size."""
    has_vae = isinstance(request.hires.codec, WanVAE)
    return request.weights is None and request.hires.scale.name == "tiny" and has_vae


def part_seconds(request: GenerationRequest) -> dict[str, float]:
    """Part -> estimated seconds of one video, or of a window of it; `file` is writing it; loading is in none."""
    width, rates = WAN_DECODER, rates_of_request(request)
    if has_small_vae(request):
        width = SMALL_VAE["decoder_base_dim"]
    elif request.weights is not None:
        config = json.loads((request.weights / "vae" / "config.json").read_text())
        width = config.get("decoder_base_dim") or config.get("base_dim", WAN_DECODER)
    seconds = dict.fromkeys(("text", "anchor", "hires", "decode"), 0.0)
    run = request.hires
    cost = generation_cost(run, request.anchor)
    encode = [] if request.source is None else [coding(run, "video", run.scale.anchor_size, "encode")]
    for phase in [*cost.phases, *encode]:
        is_vae = phase.flops.encode or (phase.flops.decode and run.config["codec"].get("decoder", "vae") == "vae")
        share = (width / WAN_DECODER) ** 2 if is_vae else 1.0
        seconds[PARTS.get(phase.name, "hires")] += share * phase.seconds(rates)
    if request.weights is None:  # random embeddings take no time
        seconds["text"] = 0.0
    return seconds | {"file": rates.file_seconds(cost.pixels)}


def pays_to_compile(request: GenerationRequest) -> bool:
    """Whether compiling for all prompts of a call takes less time than it saves; not on a CPU."""
    if request.device != "cuda":
        return False
    seconds = part_seconds(request)
    rounds = math.ceil(len(request.prompts) / request.hires.trainer.shares)
    rounds *= 1 if request.source is None else len(request.source.windows)
    return rounds * COMPILE_GAIN * sum(seconds[part] for part in ("anchor", "hires", "decode")) > COMPILE_SECONDS


def threads_of(request: GenerationRequest) -> int:
    """CPU threads of each process: all cores on a CPU, unless OMP_NUM_THREADS says otherwise."""
    trainer = request.hires.trainer
    return max(trainer.threads, 1 if request.device == "cuda" else default_threads() // trainer.processes)


def rates_of_request(request: GenerationRequest) -> Rates:
    """Rates of the device of a process."""
    return rates_of(request.hires) if request.device == "cuda" else uniform_rates(CPU_TFLOPS * threads_of(request))


def describe(request: GenerationRequest, count: int) -> str:
    """What a reader is told before `count` videos are made."""
    rates, threads = rates_of_request(request), threads_of(request)
    windows = 1 if request.source is None else len(request.source.windows)
    seconds = {part: value * (1 if part == "text" else windows) for part, value in part_seconds(request).items()}
    rounds = math.ceil(count / request.hires.trainer.shares)
    first = "stage I" if request.source is None else "encode"
    names = {"text": "text", "anchor": first, "hires": "stage II", "decode": "decode", "file": "file"}
    parts = ", ".join(f"{name} {duration(seconds[part])}" for part, name in names.items() if seconds[part])
    at = f"{rates.linear:.3g} TFLOP/s of a process of {threads} CPU thread{'s' * (threads > 1)}, not measured here"
    at = f"{rates} for a GPU" if request.device == "cuda" else at
    device = sum(seconds.values()) - seconds["file"]  # files are written beside the next video's work
    total = "" if rounds == 1 else f"; {rounds} in turn, about {duration(rounds * device + seconds['file'])}"
    return (
        f"a video takes about {duration(sum(seconds.values()))}: {parts}{total}\n"
        f"at the plan's {at}; loading comes on top"
    )
