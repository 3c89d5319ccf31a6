"""Text-to-video systems that run with diffusers, one video at a time, with separate times for text, diffusion and VAE.

The seconds of diffusion last from the first call of the denoiser to the end of the last step, with the device
synchronised at both. Peak memory is torch's allocated memory during a video. Noise is drawn on the CPU, so a seed gives
the same noise on every device.

With `trainer=fsdp` the processes shard the weights of the denoiser (FSDP2, which gathers one block at a time), and each
process makes its own video. All videos have the same number of steps, so the processes stay synchronous.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.metric_weights import snapshot
from benchmarks.systems import Diffusers, GenerationError
from benchmarks.systems.generation_call import Call
from benchmarks.systems.jobs import VideoJob, check
from pw.io.arguments import ConfigError
from pw.io.files import parse_json
from pw.io.lazy import torch
from pw.io.video import write_video

DENOISERS = ("transformer", "transformer_2")


class Pipelines:
    """A loaded pipeline, from a folder in diffusers' layout or a repository in the cache of the hub."""

    def __init__(self, call: Call) -> None:
        assert isinstance(call.system.adapter, Diffusers)
        assert call.weights is not None
        self.call, self.adapter, self.setting = call, call.system.adapter, call.setting
        self.device, self.is_cuda = call.device, call.device.startswith("cuda")
        folder, revision = locate(call.weights, call.system.weights.revision)  # before the slow imports
        self.pipe = self._load(folder, call.weights)
        denoisers = [getattr(self.pipe, name) for name in DENOISERS if getattr(self.pipe, name, None) is not None]
        parts = [part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)]
        self.metadata: dict[str, Any] = {
            "parameters": _count(denoisers),
            "parameters_all": _count(parts),
            "weights": {"source": call.weights, "revision": revision, "fingerprint": fingerprint(folder)},
            "versions": {"torch": torch.__version__, **{name: version(name) for name in ("diffusers", "transformers")}},
            "device": torch.cuda.get_device_name(self.device) if self.is_cuda else "CPU",
            "offload": bool(call.options.offload),
        }
        self._place(denoisers)
        self._times: list[float] = []  # of the first call of the denoiser, then of the end of each step
        denoisers[0].register_forward_pre_hook(self._on_denoiser_call)

    def make(self, job: VideoJob, work: Path) -> tuple[Path, dict[str, Any]]:
        """Make the video of a job; returns its path and costs. Raises GenerationError if memory runs out."""
        work.mkdir(parents=True, exist_ok=True)
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        self._times.clear()
        start = self._now()
        try:
            frames = self._frames(job)
        except torch.OutOfMemoryError as error:
            raise GenerationError(f"{self.setting} does not fit ({error}); offload=true needs less") from error
        end = self._now()
        path = work / f"video.{'mkv' if self.call.lossless else 'mp4'}"
        write_video(path, frames, fps=self.setting.rate, lossless=self.call.lossless, crf=self.call.quality)
        check(path, self.setting)
        if (steps := len(self._times[1:])) != self.setting.steps:
            raise GenerationError(f"the pipeline took {steps} steps, requested {self.setting.steps}")
        first, last = self._times[0], self._times[-1]
        return path, {
            "seconds_total": end - start,
            "seconds_diffusion": last - first,
            "seconds": {"text": first - start, "diffusion": last - first, "decode": end - last},
            "peak_memory_bytes": torch.cuda.max_memory_allocated(self.device) if self.is_cuda else None,
            "peak_memory_from": "torch, allocated" if self.is_cuda else None,
        }

    def _frames(self, job: VideoJob) -> Any:
        """The video as uint8 [F, H, W, 3], copied to the CPU frame by frame."""
        with torch.no_grad():
            call = self._arguments(job)
            video = self.pipe(**call, output_type="pt", callback_on_step_end=self._on_step_end).frames[0]
        height, width = video.shape[-2:]
        frames = np.empty((len(video), height, width, 3), np.uint8)
        for target, image in zip(frames, video, strict=True):
            if not image.isfinite().all():
                raise GenerationError(f"what was made for {job.text[:60]!r} is not finite")
            target[:] = image.float().mul(255).round_().clamp_(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        return frames

    def _arguments(self, job: VideoJob) -> dict[str, Any]:
        setting = self.setting
        known = inspect.signature(self.pipe.__call__).parameters
        call = {
            "prompt": job.text,
            "width": setting.width,
            "height": setting.height,
            "num_frames": setting.frames,
            "num_inference_steps": setting.steps,
            "guidance_scale": setting.guidance,
            "generator": torch.Generator("cpu").manual_seed(job.seed),
            **self.adapter.arguments,
        }
        if "frame_rate" in known:  # of LTX-Video
            call["frame_rate"] = round(setting.rate)
        if unknown := call.keys() - known.keys():
            raise ConfigError(
                f"{self.call.system.name}: adapter: arguments: {self.adapter.pipeline} takes no {unknown}"
            )
        return {key: value for key, value in call.items() if value is not None}

    def _load(self, folder: Path, weights: str) -> Any:
        import diffusers

        class_name = parse_json((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
        if class_name != self.adapter.pipeline:
            expected = f"{self.call.system.name} needs {self.adapter.pipeline}"
            raise ConfigError(f"weights={weights}: are of {class_name}, {expected}")
        half = torch.bfloat16 if self.is_cuda else torch.float32
        vae = torch.float32 if self.adapter.vae == "float32" else half
        cls = getattr(diffusers, self.adapter.pipeline)
        diffusers.utils.logging.disable_progress_bar()
        try:
            pipe = cls.from_pretrained(folder, dtype={"default": half, "vae": vae}, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"weights={weights}: {self.adapter.pipeline} cannot read them ({error})") from error
        pipe.scheduler = scheduler(pipe.scheduler, self.adapter.scheduler, self.setting.shift)
        pipe.set_progress_bar_config(disable=True)
        pipe.vae.enable_tiling()
        return pipe

    def _place(self, denoisers: list[torch.nn.Module]) -> None:
        if self.call.is_fsdp:
            for denoiser in denoisers:
                shard(denoiser, self.device)
            for part in self.pipe.components.values():
                if hasattr(part, "parameters") and part not in denoisers:
                    part.to(self.device)
        elif self.call.options.offload:
            self.pipe.enable_model_cpu_offload(device=self.device)
        else:
            self.pipe.to(self.device)

    def _on_denoiser_call(self, *_: Any) -> None:
        if not self._times:
            self._times.append(self._now())

    def _on_step_end(self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self._times.append(self._now())
        return tensors

    def _now(self) -> float:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def locate(weights: str, revision: str | None) -> tuple[Path, str | None]:
    """Folder and revision of the weights. Raises ConfigError with the command that downloads missing ones."""
    folder = Path(weights).expanduser()
    if (folder / "model_index.json").is_file():
        return folder, None
    if folder.exists():
        raise ConfigError(f"weights={weights}: expected a folder in diffusers' layout, with a model_index.json")
    try:
        cached = snapshot(weights, revision)
    except (OSError, ValueError) as error:
        option = f" --revision {revision}" if revision else ""
        raise ConfigError(
            f"the weights {weights} are not on this machine: `hf download {weights}{option}` fetches them, "
            "or set weights=DIR"
        ) from error
    return cached, cached.name if cached.parent.name == "snapshots" else revision


def fingerprint(folder: Path) -> str:
    """Hash (16 hex digits) of the names and sizes of all files and the content of small JSON files."""
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.startswith(".") or not path.is_file():
            continue
        size = path.stat().st_size
        sha.update(f"{name} {size}\n".encode())
        if path.suffix == ".json" and size < 1 << 20:
            sha.update(path.read_bytes())
    return sha.hexdigest()[:16]


def scheduler(base: Any, changes: Mapping[str, Any], shift: float | None) -> Any:
    """The scheduler with the changes of the card and the shift. Raises ConfigError if it has no shift."""
    import diffusers

    changes = dict(changes)
    name = changes.pop("class", None)
    cls = type(base) if name is None else getattr(diffusers, name)
    if shift is not None:
        keys = [key for key in ("flow_shift", "shift") if key in inspect.signature(cls.__init__).parameters]
        if not keys:
            raise ConfigError(f"shift={shift}: {cls.__name__} has none")
        changes[keys[0]] = shift
    return cls.from_config(base.config, **changes)


def shard(denoiser: torch.nn.Module, device: str) -> None:
    """Shard a denoiser over the processes of the default group, block by block (FSDP2)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(torch.device(device).type, (torch.distributed.get_world_size(),))
    denoiser.requires_grad_(False)  # frozen weights may have mixed precision
    for child in denoiser.children():
        if isinstance(child, torch.nn.ModuleList):
            for block in child:
                fully_shard(block, mesh=mesh)
    fully_shard(denoiser, mesh=mesh)


def _count(modules: list[Any]) -> int:
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())
