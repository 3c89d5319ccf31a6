"""Rates by kind of work, measured by `make bench what=generate` and kept for the plan (`pw.cost.rates`).

linear, attention  from evaluations of stage II with many tokens and with few, whose shares of the two differ
decode, encode     a few frames of a tile by Wan's VAE with random weights
file               a few frames with smooth shapes and grain, as H.264
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pw.cost.codec_cost import codec_flops
from pw.cost.counts import Flops
from pw.cost.generation_cost import last_stage, with_tile
from pw.io.lazy import torch
from pw.nn import options
from pw.run.build import Run

LATENT_FRAMES = 3  # of the VAE's measurement
FILE_FRAMES = 24


def network_rates(measurements: Sequence[tuple[Flops, float]]) -> dict[str, float]:
    """(FLOPs, seconds) of evaluations -> TFLOP/s of linear layers and of attention.

    The two with the most and the least attention make two equations; if noise gives them no positive solution, both
    kinds have the rate of the longest.
    """

    def parts(flops: Flops) -> tuple[float, float]:
        attention = flops.self_attention + flops.cross_attention
        return flops.total - attention, attention

    ordered = sorted(measurements, key=lambda entry: parts(entry[0])[1] / entry[0].total)
    ((linear, attention), seconds), ((longer_linear, longer_attention), longer) = (
        (parts(flops), seconds) for flops, seconds in (ordered[0], ordered[-1])
    )
    determinant = linear * longer_attention - longer_linear * attention
    if determinant:
        per_linear = (seconds * longer_attention - longer * attention) / determinant
        per_attention = (longer * linear - seconds * longer_linear) / determinant
        if min(per_linear, per_attention) > 0:
            return {"linear": 1e-12 / per_linear, "attention": 1e-12 / per_attention}
    total = (longer_linear + longer_attention) / longer / 1e12
    return {"linear": total, "attention": total}


def codec_rates(run: Run, device: str) -> dict[str, float]:
    """TFLOP/s of decoding and encoding the first frames of a tile, as large as the device's memory allows."""
    from pw.nn.codec import WanCodec
    from pw.nn.unipc import synchronize

    if device == "cuda":
        run = last_stage(with_tile((run, None), torch.cuda.get_device_properties(0).total_memory))
    choice = run.codec
    assert isinstance(choice, options.WanVAE)
    tiles = choice.tiles(*run.scale.size)
    rows, columns = (max(span.stop - span.start for span in spans) for spans in tiles)
    frames = choice.frames_factor * (LATENT_FRAMES - 1) + 1
    size = rows * choice.factor, columns * choice.factor
    codec = WanCodec.random(choice, device, compile=bool(run.trainer.compile))
    latent = torch.randn(1, choice.channels, LATENT_FRAMES, rows, columns, device=device)
    video = torch.rand(1, 3, frames, *size, device=device)

    def seconds(work: Callable[[], object]) -> float:
        work()  # kernels are chosen, and compiled
        synchronize(latent.device)
        start = time.perf_counter()
        work()
        synchronize(latent.device)
        return time.perf_counter() - start

    return {
        "decode": codec_flops(choice, frames, *size, "decode") / seconds(lambda: codec.decode(latent)) / 1e12,
        "encode": codec_flops(choice, frames, *size, "encode") / seconds(lambda: codec.encode(video)) / 1e12,
    }


def file_rate(height: int, width: int) -> dict[str, float]:
    """Mpx/s of writing H.264, as `pw generate` does."""
    from pw.generate.request import CRF
    from pw.io.video import to_uint8, write_video

    generator = torch.Generator().manual_seed(0)
    shapes = torch.randn(1, 3, 3, 9, 16, generator=generator)
    smooth = torch.nn.functional.interpolate(shapes, (FILE_FRAMES, height, width), mode="trilinear")[0]
    frames = to_uint8((0.4 * smooth + 0.01 * torch.randn(smooth.shape, generator=generator)).clamp(-1, 1))
    with tempfile.TemporaryDirectory(prefix="pw-bench-") as folder:
        start = time.perf_counter()
        write_video(Path(folder) / "a.mp4", frames, lossless=False, crf=CRF)
        seconds = time.perf_counter() - start
    return {"file": math.prod(frames.shape[:3]) / seconds / 1e6}
