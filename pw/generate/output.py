"""Latents to videos: files of latents, tiled decode, videos and their manifests, room on the disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pw.cost.parameters import parameters, stage_latent
from pw.generate.request import GenerationRequest, Prompt
from pw.generate.task import Task, release_memory
from pw.io.files import check_space, replacing, write_json, write_tensors
from pw.run.build import Run
from pw.run.signatures import provenance

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from pw.nn.codec import WanCodec


def save_latent(path: Path, latent: Tensor, metadata: Mapping[str, str], prompt: Prompt) -> None:
    """Write a latent [1, C, F, h, w] with its metadata, atomically.

    Raises ValueError when it is not finite, since nothing can come of it; OSError when the disk is full.
    """
    if not latent.isfinite().all():
        raise ValueError(f"{path.parent.name}/{path.name}: what was made for {prompt.text[:60]!r} is not finite")
    metadata = {**metadata, "prompt": prompt.text, "seed": str(prompt.seed)}
    write_tensors(path, {"latent": latent.float().cpu().contiguous()}, metadata)


def load_latent(path: Path) -> tuple[Tensor, dict[str, str]]:
    """A latent and its metadata. Raises OSError for a file that cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("latent"), file.metadata() or {}
    except SafetensorError as error:
        raise OSError(f"{path}: {error}; remove it to make it again") from error


def load_codec(request: GenerationRequest) -> WanCodec:
    """The codec of the request's weights, on its device."""
    from pw.nn.codec import WanCodec

    choice: Any = request.hires.codec
    if request.weights is None:
        return WanCodec.random(choice, request.device)
    return WanCodec.load(choice, request.weights, request.device)


def decode(task: Task) -> None:
    """Decode the latents into videos with manifests; what was kept for them is removed."""
    request, meter, codec = task.request, task.meter, None
    task.team.wait()  # for the latents that others write
    for prompt in task.prompts:
        if codec is None:
            codec = load_codec(request)
            meter.add("decode", 0.0, "decoding")
        began = time.perf_counter()
        frames = _decoded(task, codec, prompt)
        if not task.writes:
            continue
        _write_video(request, prompt, frames)
        meter.record("decode", prompt, began)
        write_json(request.manifest(prompt), manifest(request, prompt))
        remove_latents(request, prompt)
    del codec
    release_memory(request.device)


def _decoded(task: Task, codec: WanCodec, prompt: Prompt) -> NDArray[Any]:
    """A video as uint8 [F, H, W, 3], a band of rows at a time: in fp32 a 4K clip is 12 GB."""
    import numpy as np

    run = task.request.hires
    latent = load_latent(task.request.latent_file(prompt))[0].to(task.request.device)
    height, width = run.scale.size
    frames = np.empty((run.scale.frames, height, width, 3), dtype=np.uint8)
    for row, band in codec.bands(latent, run.trainer.context):
        frames[:, row : row + band.shape[-2]] = _pixels(band[0])
        task.meter.add("decode", band.shape[-2] / height, "decoding")
    return frames


def _pixels(band: Tensor) -> NDArray[Any]:
    """[3, F, rows, W] in [-1, 1] -> uint8 [F, rows, W, 3], as `pw.io.video.to_uint8` but in place and on its device.

    Raises ValueError when it is not finite.
    """
    import torch

    if not band.isfinite().all():
        raise ValueError("what the VAE decoded is not finite; codec.precision=fp32 may help")
    return band.clamp_(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def _write_video(request: GenerationRequest, prompt: Prompt, frames: NDArray[Any]) -> None:
    from PIL import Image

    from pw.io.video import write_video

    path, options = request.video(prompt), request.options
    if path.suffix != ".png":
        write_video(path, frames, fps=options.fps, lossless=options.lossless, crf=options.quality)
        return
    with replacing(path) as partial:
        Image.fromarray(frames[0]).save(partial, format="png")


def remove_latents(request: GenerationRequest, prompt: Prompt) -> None:
    """Remove the latents that a video was decoded from; its anchor stays."""
    for path in (request.latent_file(prompt), request.upsampled_file(prompt)):
        path.unlink(missing_ok=True)


def check_disk(request: GenerationRequest, count: int) -> None:
    """Raises ConfigError when `count` videos cannot fit: latents in fp32, and videos at no less than 1 bit a pixel."""
    run = request.hires
    latents = 4 * (prod(stage_latent(run)) + prod(stage_latent(request.anchor)))
    pixels = run.scale.frames * run.scale.height * run.scale.width
    need = count * (latents + pixels * (2 if request.options.lossless else 1 / 8))
    what = f"for {count} video{'' if count == 1 else 's'}"
    check_space("out", request.out, need, "free some, or choose another out=", what)


def manifest(request: GenerationRequest, prompt: Prompt) -> dict[str, Any]:
    """What a video was made of, how, and at what cost."""
    import torch

    run = request.hires
    return {
        "prompt": prompt.text,
        "seed": prompt.seed,
        "file": request.video(prompt).name,
        "scale": run.scale.name,
        "size": [run.scale.width, run.scale.height],
        "frames": run.scale.frames,
        "fps": request.options.fps,
        "quality": request.quality,
        "weights": None if request.weights is None else str(request.weights),
        "anchor": _stage_entry(request.anchor, request.anchor_source),
        "hires": _stage_entry(run, request.hires_source),
        "anchor_from": None if prompt.anchor is None else str(prompt.anchor),
        "identity": request.identity,
        "seconds": request.seconds.get(prompt.name, {}),
        "peak_memory_gb": request.peaks.get(prompt.name, {}),
        "device": torch.cuda.get_device_name() if request.device == "cuda" else "CPU",
        "torch": torch.__version__,
        "attention": run.trainer.attention,
        "compile": run.trainer.compile,
        "processes": run.trainer.processes,
        "context": run.trainer.context,
        **provenance(),
    }


def _stage_entry(run: Run, source: str) -> dict[str, Any]:
    from pw.method.solver import inference_strides

    grid = run.grid()
    return {
        "weights": source,
        "signature": run.signature,
        "steps": run.sampling.num_steps,
        "timesteps": [round(float(t), 3) for t in grid],
        "strides": inference_strides(grid).tolist() if run.feeds_strides() else None,
        "negative_prompt": run.text and run.text.negative_prompt,
        "solver": run.config.choices["solver"],
        "shift": run.schedule.shift if run.sampling.shift is None else run.sampling.shift,
        "guidance": run.guidance.scale,
        "guided_steps": run.guidance.first_steps,
        "parameters": parameters(run.backbone, run.injector),
        "overrides": list(run.config.overrides),
    }
