"""The work of one process on a request: progress, time and memory, and the files: latents, videos, manifests."""

from __future__ import annotations

import gc
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pw.cost.counts import parameters
from pw.generate.estimate import SMALL_VAE, has_small_vae, part_seconds
from pw.generate.models import FileWriter, Models
from pw.generate.request import GenerationRequest, Prompt
from pw.io.files import replacing, write_json, write_tensors
from pw.io.video import write_video
from pw.nn.codec import WanCodec, random_codec
from pw.parallel.team import Team
from pw.run.build import Run
from pw.run.signatures import provenance

# progress(label, share, part_share): label of the current part, fraction of all work done, fraction of this part done
PartProgress = Callable[[str, float, float], None]


class Task:
    """The work of one process on a request; measures progress in estimated seconds.

    prompts  the prompts of this process, alone or together with others
    team     all processes of the request
    writes   whether this process writes the files; of a group with the same prompts, one does
    models   its networks; if they are kept, each prompt goes through all parts before the next one

    Each prompt has the parts text, anchor (stage I), hires (stage II) and decode.
    """

    def __init__(
        self,
        request: GenerationRequest,
        prompts: list[Prompt],
        team: Team,
        writes: bool,
        models: Models,
        progress: PartProgress | None,
    ) -> None:
        self.request, self.prompts, self.team, self.writes = request, prompts, team, writes
        self.models, self.progress = models, progress
        self.seconds = part_seconds(request)
        self.seconds.pop("file")  # written beside the next work
        self.required = dict.fromkeys(self.seconds, float(len(prompts)))  # prompts to make, for each part
        self.completed = dict.fromkeys(self.seconds, 0.0)

    def skip(self, part: str, label: str) -> None:
        self.required[part] -= 1
        self.add(part, 0.0, label)

    def add(self, part: str, share: float, label: str) -> None:
        """Add the fraction `share` of one prompt to the progress of a part."""
        self.completed[part] += share
        if self.progress is not None:
            total = sum(self.required[p] * self.seconds[p] for p in self.seconds)
            done = sum(self.completed[p] * self.seconds[p] for p in self.seconds)
            part_share = self.completed[part] / self.required[part] if self.required[part] else 1.0
            if self.models.keep:  # of this prompt
                part_share = math.ceil(self.completed[part]) and 1 - (-self.completed[part]) % 1
            self.progress(label, min(1.0, done / total) if total else 1.0, min(1.0, part_share))

    def record(self, part: str, prompt: Prompt, start: float) -> dict[str, str]:
        """Record seconds since `start` (time.perf_counter) and peak memory of a part; returns them as metadata."""
        values = {"seconds": round(time.perf_counter() - start, 3), "peak_gb": _peak_gb(self.request.device)}
        metadata = {key: str(value) for key, value in values.items()}
        self.record_from(part, prompt, metadata)
        return metadata

    def record_from(self, part: str, prompt: Prompt, metadata: Mapping[str, str]) -> None:
        """Record seconds and peak memory from the metadata of a latent, which an earlier call wrote."""
        for table, key in ((self.request.seconds, "seconds"), (self.request.peaks, "peak_gb")):
            if key in metadata:
                table.setdefault(prompt.name, {})[part] = float(metadata[key])


def _peak_gb(device: str) -> float:
    """Peak memory in GB: of the GPU since `release_memory`, or of the whole process on a CPU."""
    if device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 1e9, 2)
    unit = 1024 if sys.platform == "linux" else 1
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)


def release_memory(device: str) -> None:
    """Free unused memory before the next part loads, and reset the peak of GPU memory."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def save_latent(path: Path, latent: Tensor, metadata: Mapping[str, str], prompt: Prompt) -> None:
    """Write a latent [1, C, F, h, w] atomically. Raises ValueError if it is not finite, OSError on a full disk."""
    if not latent.isfinite().all():
        raise ValueError(f"{path.parent.name}/{path.name}: the latent of {prompt.text[:60]!r} is not finite")
    metadata = {**metadata, "prompt": prompt.text, "seed": str(prompt.seed)}
    write_tensors(path, {"latent": latent.float().cpu().contiguous()}, metadata)


def load_latent(path: Path) -> tuple[Tensor, dict[str, str]]:
    """A latent and its metadata. Raises OSError for a file that cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("latent"), file.metadata() or {}
    except SafetensorError as error:
        raise OSError(f"{path}: {error}; remove it to make it again") from error


def load_codec(request: GenerationRequest) -> WanCodec:
    choice: Any = request.hires.codec
    compiles = bool(request.hires.trainer.compile)
    if has_small_vae(request):
        return random_codec(choice, request.device, SMALL_VAE)
    if request.weights is None:
        return WanCodec.random(choice, request.device, compile=compiles)
    return WanCodec.load(choice, request.weights, request.device, compile=compiles)


def decode(task: Task, prompts: Sequence[Prompt], writer: FileWriter) -> None:
    """Decode the latents into videos; `writer` writes them with their manifests, then removes the latents."""
    request = task.request
    task.team.wait()  # until other processes have written the latents
    codec = task.models.get("codec", lambda: _load_codec(task)) if prompts else None
    for prompt in prompts:
        assert codec is not None
        start = time.perf_counter()
        frames = _decoded(task, codec, prompt)
        if task.writes:
            task.record("decode", prompt, start)
            writer.submit(partial(_finish, request, prompt, frames, writer.is_abandoned))
        del frames  # 3 GB of a 4K clip, beside those that are being written
    del codec
    task.models.release()
    release_memory(request.device)


def _load_codec(task: Task) -> WanCodec:
    task.add("decode", 0.0, "loading the VAE")
    codec = load_codec(task.request)
    task.add("decode", 0.0, "decoding")
    return codec


def _finish(request: GenerationRequest, prompt: Prompt, frames: NDArray[Any], is_abandoned: Callable[[], bool]) -> None:
    """Write a video and its manifest, and remove its latents."""
    start = time.perf_counter()
    _write_video(request, prompt, frames, is_abandoned)
    request.seconds.setdefault(prompt.name, {})["file"] = round(time.perf_counter() - start, 3)
    write_json(request.manifest(prompt), manifest(request, prompt))
    request.remove_latents(prompt)


def _decoded(task: Task, codec: WanCodec, prompt: Prompt) -> NDArray[Any]:
    """The video as uint8 [F, H, W, 3], decoded in bands of rows: in fp32 a 4K clip has 12 GB."""
    run, trainer = task.request.hires, task.request.hires.trainer
    latent = load_latent(task.request.latent_file(prompt))[0].to(task.request.device)
    height, width = run.scale.size
    frames = np.empty((run.scale.frames, height, width, 3), dtype=np.uint8)
    tiles = math.prod(map(len, codec.choice.tiles(height, width)))
    calls = math.ceil(tiles / trainer.context) * latent.shape[2]  # of the decoder, for each tile and latent frame
    hook = codec.decoder.register_forward_hook(lambda *_: task.add("decode", 1 / calls, "decoding"))
    try:
        for row, band in codec.bands(latent, trainer.context):
            frames[:, row : row + band.shape[-2]] = pixels_of(band[0])
    finally:
        hook.remove()
    return frames


def pixels_of(band: Tensor) -> NDArray[Any]:
    """[3, F, rows, W] in [-1, 1] -> uint8 [F, rows, W, 3], like `pw.io.video.to_uint8`, but in place on the device.

    Raises ValueError if it is not finite.
    """
    if not band.isfinite().all():
        raise ValueError("the decoded video is not finite; codec.precision=fp32 may help")
    pixels = band.clamp_(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).contiguous().cpu().numpy()  # ordered here: a host copies strides 16 x slower


def _write_video(
    request: GenerationRequest, prompt: Prompt, frames: NDArray[Any], is_abandoned: Callable[[], bool]
) -> None:
    path, options = request.video(prompt), request.options
    if path.suffix != ".png":
        write_video(path, frames, options.fps, options.lossless, request.crf, is_abandoned)
        return
    with replacing(path) as partial:
        Image.fromarray(frames[0]).save(partial, format="png")


def manifest(request: GenerationRequest, prompt: Prompt) -> dict[str, Any]:
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
        "decode": decode_entry(request),
        "weights": None if request.weights is None else str(request.weights),
        "anchor": _stage_entry(request.anchor, request.anchor_source, request.anchor_loras),
        "hires": _stage_entry(run, request.hires_source, request.hires_loras),
        "anchor_from": None if prompt.anchor is None else str(prompt.anchor),
        "identity": request.identity,
        "seconds": request.seconds.get(prompt.name, {}),
        "peak_memory_gb": request.peaks.get(prompt.name, {}),
        "device": torch.cuda.get_device_name() if request.device == "cuda" else "CPU",
        "torch": torch.__version__,
        **{key: getattr(run.trainer, key) for key in ("attention", "processes", "context")},
        "compile": bool(run.trainer.compile),
        **provenance(),
    }


def decode_entry(request: GenerationRequest) -> dict[str, Any]:
    codec: Any = request.hires.codec
    names = ("decoder", "decoder_file", "precision", "overlap")
    return {**{name: getattr(codec, name) for name in names}, "tile": codec.side}


def _stage_entry(run: Run, source: str, loras: Sequence[tuple[Path, float]]) -> dict[str, Any]:
    grid = run.grid()
    return {
        "weights": source,
        "lora": [{"file": str(path), "scale": scale} for path, scale in loras],
        "signature": run.signature,
        "steps": run.sampling.num_steps,
        "timesteps": [round(float(t), 3) for t in grid],
        "strides": [s for phase in run.phases() for s in phase.strides.tolist()] if run.feeds_strides() else None,
        "sizes": run.sampling.sizes,
        "init": run.sampling.init,
        "negative_prompt": run.text and run.text.negative_prompt,
        "solver": run.config.choices["solver"],
        "shift": run.schedule.shift if run.sampling.shift is None else run.sampling.shift,
        "guidance": run.guidance.scale,
        "guided_steps": run.guidance.guided_steps(run.sampling.num_steps),
        "guidance_baked": None if run.target_guidance is None else run.target_guidance.guidance_scale,
        "parameters": parameters(run.backbone, run.injector),
        "offload": run.trainer.offload,
        "storage": run.trainer.storage,
        "overrides": list(run.config.overrides),
    }
