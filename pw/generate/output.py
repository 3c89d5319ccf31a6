"""The work of one process on a request: progress, time and memory, and the files: latents, videos, manifests."""

from __future__ import annotations

import gc
import itertools
import math
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from pw.io.video import write_frames
from pw.nn.codec import SpaceToDepthCodec, WanCodec, random_codec
from pw.nn.cosine_codec import LappedCosineCodec
from pw.nn.options import LappedCosine, SpaceToDepth, WanVAE
from pw.parallel.team import Team
from pw.run.build import Run
from pw.run.signatures import provenance

# progress(label, share, part_share): label of the current part, fraction of all work done, fraction of this part done
PartProgress = Callable[[str, float, float], None]
Codec = WanCodec | SpaceToDepthCodec | LappedCosineCodec


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
        count = sum(len(request.windows(prompt)) for prompt in prompts)
        self.required = dict.fromkeys(self.seconds, float(count))  # prompts, or their windows, to make, for each part
        self.required["text"] = float(len(prompts))
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
        name = self.request.video_of(prompt).name  # windows add up
        if "seconds" in metadata:
            seconds = self.request.seconds.setdefault(name, {})
            seconds[part] = round(seconds.get(part, 0.0) + float(metadata["seconds"]), 3)
        if "peak_gb" in metadata:
            peaks = self.request.peaks.setdefault(name, {})
            peaks[part] = max(peaks.get(part, 0.0), float(metadata["peak_gb"]))


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


def load_codec(request: GenerationRequest) -> Codec:
    choice: Any = request.hires.codec
    if isinstance(choice, SpaceToDepth):
        return SpaceToDepthCodec(choice)
    if isinstance(choice, LappedCosine):
        return LappedCosineCodec(choice)
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
        windows = request.windows(prompt)
        if len(windows) > 1:
            writer.finish()  # a window of frames is in memory, beside those that are being written
            _join_windows(task, codec, prompt, windows)
            continue
        frames = _decoded(task, codec, prompt)[: request.frames]
        if task.writes:
            writer.submit(partial(_finish, request, prompt, frames, writer.is_abandoned))
        del frames  # 3 GB of a 4K clip, beside those that are being written
    del codec
    task.models.release()
    release_memory(request.device)


def _join_windows(task: Task, codec: Codec, prompt: Prompt, windows: Sequence[Prompt]) -> None:
    """Decode the windows of a video one by one into its file; neighbours are blended where they overlap."""
    assert task.request.source is not None
    decoded = (_decoded(task, codec, window) for window in windows)
    shared = [task.request.source.shared_frames(window.window) for window in windows]
    frames = itertools.islice(crossfaded(decoded, shared), task.request.frames)
    if task.writes:
        _finish(task.request, prompt, frames, lambda: False)
    else:
        deque(frames, maxlen=0)


def crossfaded(clips: Iterable[NDArray[Any]], shared: Sequence[int]) -> Iterator[NDArray[Any]]:
    """The frames of clips [F, H, W, 3], of which the n-th begins with the `shared[n]` last frames of the one before:
    these frames change linearly from the one to the other."""
    tail = None
    for clip, overlap, following in zip(clips, shared, [*shared[1:], 0], strict=True):
        for number, frame in enumerate(clip[: len(clip) - following]):
            if tail is None or number >= overlap:
                yield frame
            else:
                weight = np.float32((number + 1) / (overlap + 1))
                yield np.rint(tail[number] + weight * (frame - tail[number].astype(np.float32))).astype(np.uint8)
        tail = clip[len(clip) - following :].copy()
        del clip  # before the next one is decoded


def _load_codec(task: Task) -> Codec:
    task.add("decode", 0.0, "loading the VAE")
    codec = load_codec(task.request)
    task.add("decode", 0.0, "decoding")
    return codec


def _finish(
    request: GenerationRequest, prompt: Prompt, frames: Iterable[NDArray[Any]], is_abandoned: Callable[[], bool]
) -> None:
    """Write a video and its manifest, and remove its latents."""
    seconds = request.seconds.setdefault(prompt.name, {})
    start, decoded = time.perf_counter(), seconds.get("decode", 0.0)
    _write_video(request, prompt, frames, is_abandoned)
    decoding = seconds.get("decode", 0.0) - decoded  # of frames that come one by one
    seconds["file"] = round(time.perf_counter() - start - decoding, 3)
    write_json(request.manifest(prompt), manifest(request, prompt))
    request.remove_latents(prompt)


def _decoded(task: Task, codec: Codec, prompt: Prompt) -> NDArray[Any]:
    """A video, or a window of one, as uint8 [F, H, W, 3], decoded in bands of rows: in fp32 a 4K clip has 12 GB."""
    run, trainer = task.request.hires, task.request.hires.trainer
    start = time.perf_counter()
    latent = load_latent(task.request.latent_file(prompt))[0].to(task.request.device)
    height, width = run.scale.size
    if not isinstance(codec, WanCodec):
        frames = pixels_of(codec.decode(latent)[0])
        task.record("decode", prompt, start)
        return frames
    frames = np.empty((run.scale.frames, height, width, 3), dtype=np.uint8)
    tiles = math.prod(map(len, codec.choice.tiles(height, width)))
    calls = math.ceil(tiles / trainer.context) * latent.shape[2]  # of the decoder, for each tile and latent frame
    hook = codec.decoder.register_forward_hook(lambda *_: task.add("decode", 1 / calls, "decoding"))
    try:
        for row, band in codec.bands(latent, trainer.context):
            frames[:, row : row + band.shape[-2]] = pixels_of(band[0])
    finally:
        hook.remove()
    if task.writes:
        task.record("decode", prompt, start)
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
    request: GenerationRequest, prompt: Prompt, frames: Iterable[NDArray[Any]], is_abandoned: Callable[[], bool]
) -> None:
    path, source = request.video(prompt), request.source
    if path.suffix != ".png":
        shape = (request.frames, *request.hires.scale.size, 3)
        sound = source.path if source is not None and source.audio else None
        write_frames(path, frames, shape, request.fps, request.options.lossless, request.crf, is_abandoned, sound)
        return
    with replacing(path) as partial:
        Image.fromarray(next(iter(frames))).save(partial, format="png")


def manifest(request: GenerationRequest, prompt: Prompt) -> dict[str, Any]:
    run = request.hires
    return {
        "prompt": prompt.text,
        "seed": prompt.seed,
        "file": request.video(prompt).name,
        "scale": run.scale.name,
        "size": [run.scale.width, run.scale.height],
        "frames": request.frames,
        "fps": request.fps,
        "quality": request.quality,
        "decode": decode_entry(request),
        "weights": None if request.weights is None else str(request.weights),
        "anchor": request.anchor and _stage_entry(request.anchor, request.anchor_source, request.anchor_loras),
        "video": None if request.source is None else request.source.entry(run),
        "hires": _stage_entry(run, request.hires_source, request.hires_loras),
        "image": None if request.image is None else request.image.entry(run),
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
    if not isinstance(codec, WanVAE):
        return {}
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
