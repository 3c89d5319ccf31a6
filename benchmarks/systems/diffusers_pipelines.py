"""Systems that diffusers runs: text to video, one at a time, timed part by part.

Seconds of diffusion are taken from the denoiser's first call to the end of the last step, with the device
synchronised at both: what comes before (the text) and after (the VAE) is counted apart. Peak memory is what torch
allocated while the video was made. Noise is drawn on the CPU, so the same seed is the same noise on every device.

With `trainer=fsdp` the denoiser's weights are shared by all processes of a run (FSDP2, each block gathered when it is
needed) and every process makes a video of its own meanwhile: all take the same number of steps, so they stay in step.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure.metric_weights import snapshot
from benchmarks.systems import Diffusers, GenerationError, Setting, System
from benchmarks.systems.jobs import VideoJob, check
from pw.io.arguments import ConfigError

if TYPE_CHECKING:
    import torch

DENOISERS = ("transformer", "transformer_2")


@dataclass
class Pipelines:
    """A loaded pipeline that makes videos.

    weights   a folder in diffusers' layout, or a repository that is in the hub's cache
    offload   whether parts wait on the CPU until they are needed
    sharded   whether the denoiser is shared by the processes of torch.distributed's group
    """

    system: System
    setting: Setting
    weights: str
    device: str
    offload: bool
    lossless: bool
    quality: int
    sharded: bool = False
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        folder, revision = locate(self.weights, self.system.weights.revision)  # before what takes long to import

        import diffusers
        import torch

        self.pipe = self._load(folder)
        denoisers = [getattr(self.pipe, name) for name in DENOISERS if getattr(self.pipe, name, None) is not None]
        parts = [part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)]
        self.about = {
            "parameters": _count(denoisers),
            "parameters_all": _count(parts),
            "weights": {"source": self.weights, "revision": revision, "fingerprint": fingerprint(folder)},
            "versions": {
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "transformers": version("transformers"),
            },
            "device": torch.cuda.get_device_name(self.device) if self.is_cuda else "CPU",
            "offload": self.offload,
        }
        self._place(denoisers)
        self._clock = _Clock(denoisers[0], self._now)

    @property
    def adapter(self) -> Diffusers:
        """The card's part that says how."""
        assert isinstance(self.system.adapter, Diffusers)
        return self.system.adapter

    @property
    def is_cuda(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device.startswith("cuda")

    def make(self, job: VideoJob, work: Path) -> tuple[Path, dict[str, Any]]:
        """The video of a job and what it cost. Raises GenerationError when memory does not suffice."""
        import torch

        from pw.io.video import write_video

        work.mkdir(parents=True, exist_ok=True)
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        began = self._now()
        try:
            frames = self._frames(job)
        except torch.OutOfMemoryError as error:
            raise GenerationError(f"{self.setting} does not fit ({error}); offload=true needs less") from error
        ended = self._now()
        path = work / f"video.{'mkv' if self.lossless else 'mp4'}"
        write_video(path, frames, fps=self.setting.rate, lossless=self.lossless, crf=self.quality)
        check(path, self.setting)
        diffusion = self._clock.seconds(self.setting.steps)
        return path, {
            "seconds_total": ended - began,
            "seconds_diffusion": diffusion,
            "seconds": {
                "text": self._clock.first - began,
                "diffusion": diffusion,
                "decode": ended - self._clock.last,
            },
            "peak_memory_bytes": torch.cuda.max_memory_allocated(self.device) if self.is_cuda else None,
            "peak_memory_from": "torch, allocated" if self.is_cuda else None,
        }

    def _frames(self, job: VideoJob) -> Any:
        """uint8 [F, H, W, 3], brought to the CPU frame by frame."""
        import numpy as np
        import torch

        self._clock.start()
        call = self._arguments(job)
        with torch.no_grad():
            video = self.pipe(**call, output_type="pt", callback_on_step_end=self._clock.step).frames[0]
        height, width = video.shape[-2:]
        frames = np.empty((len(video), height, width, 3), np.uint8)
        for target, image in zip(frames, video, strict=True):
            if not image.isfinite().all():
                raise GenerationError(f"what was made for {job.text[:60]!r} is not finite")
            target[:] = image.float().mul(255).round_().clamp_(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        return frames

    def _arguments(self, job: VideoJob) -> dict[str, Any]:
        import torch

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
        if "frame_rate" in known:  # LTX-Video is told the rate
            call["frame_rate"] = round(setting.rate)
        if unknown := call.keys() - known.keys():
            raise ConfigError(f"{self.system.name}: adapter: arguments: {self.adapter.pipeline} takes no {unknown}")
        return {key: value for key, value in call.items() if value is not None}

    def _load(self, folder: Path) -> Any:
        import diffusers
        import torch

        there = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
        if there != self.adapter.pipeline:
            wants = f"{self.system.name} wants {self.adapter.pipeline}"
            raise ConfigError(f"weights={self.weights}: are of {there}, {wants}")
        half = torch.bfloat16 if self.is_cuda else torch.float32
        vae = torch.float32 if self.adapter.vae == "float32" else half
        cls = getattr(diffusers, self.adapter.pipeline)
        diffusers.utils.logging.disable_progress_bar()
        try:
            pipe = cls.from_pretrained(folder, dtype={"default": half, "vae": vae}, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"weights={self.weights}: {self.adapter.pipeline} cannot read them ({error})") from error
        pipe.scheduler = scheduler(pipe.scheduler, self.adapter.scheduler, self.setting.shift)
        pipe.set_progress_bar_config(disable=True)
        pipe.vae.enable_tiling()
        return pipe

    def _place(self, denoisers: list[torch.nn.Module]) -> None:
        if self.sharded:
            for denoiser in denoisers:
                shard(denoiser, self.device)
            for part in self.pipe.components.values():
                if hasattr(part, "parameters") and part not in denoisers:
                    part.to(self.device)
        elif self.offload:
            self.pipe.enable_model_cpu_offload(device=self.device)
        else:
            self.pipe.to(self.device)

    def _now(self) -> float:
        if self.is_cuda:
            import torch

            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class _Clock:
    """When the denoiser was first called, and when each step ended."""

    def __init__(self, denoiser: torch.nn.Module, now: Any) -> None:
        self.now = now
        self.start()
        denoiser.register_forward_pre_hook(self._called)

    def start(self) -> None:
        self.first = self.last = 0.0
        self.steps = 0

    def step(self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self.last, self.steps = self.now(), self.steps + 1
        return tensors

    def seconds(self, asked: int | None) -> float:
        """Of the whole loop. Raises GenerationError when it took another number of steps than was asked."""
        if self.steps != asked:
            raise GenerationError(f"the pipeline took {self.steps} steps, asked {asked}")
        return self.last - self.first

    def _called(self, *_: Any) -> None:
        if not self.first:
            self.first = self.now()


def locate(weights: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder of the weights and their revision on the hub. Nothing is ever downloaded.

    Raises: ConfigError with the command that fetches what is missing.
    """
    folder = Path(weights).expanduser()
    if (folder / "model_index.json").is_file():
        return folder, None
    if folder.exists():
        raise ConfigError(f"weights={weights}: wants a folder in diffusers' layout, with a model_index.json")
    try:
        found = snapshot(weights, revision)
    except (OSError, ValueError) as error:
        version = f" --revision {revision}" if revision else ""
        raise ConfigError(
            f"the weights {weights} are not on this machine: `hf download {weights}{version}` fetches them, "
            "or weights=DIR says where they are"
        ) from error
    return found, found.name if found.parent.name == "snapshots" else revision


def fingerprint(folder: Path) -> str:
    """16 hex digits of the names and sizes of all files and the content of the small ones (the configurations)."""
    sha = hashlib.sha256()
    for path in sorted(
        p for p in folder.rglob("*") if p.is_file() and not p.relative_to(folder).parts[0].startswith(".")
    ):
        size = path.stat().st_size
        sha.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        if path.suffix == ".json" and size < 1 << 20:
            sha.update(path.read_bytes())
    return sha.hexdigest()[:16]


def scheduler(given: Any, changes: Mapping[str, Any], shift: float | None) -> Any:
    """The scheduler with the card's changes; its shift is called flow_shift or shift.

    Raises: ConfigError for a shift that it does not have.
    """
    import diffusers

    changes = dict(changes)
    name = changes.pop("class", None)
    cls = type(given) if name is None else getattr(diffusers, name)
    if shift is not None:
        keys = [key for key in ("flow_shift", "shift") if key in inspect.signature(cls.__init__).parameters]
        if not keys:
            raise ConfigError(f"shift={shift}: {cls.__name__} has none")
        changes[keys[0]] = shift
    return cls.from_config(given.config, **changes)


def shard(denoiser: torch.nn.Module, device: str) -> None:
    """Share a denoiser's weights over the processes of the default group, block by block (FSDP2)."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.split(":", maxsplit=1)[0], (torch.distributed.get_world_size(),))
    denoiser.requires_grad_(False)  # frozen weights may be of two precisions
    for child in denoiser.children():
        if isinstance(child, torch.nn.ModuleList):
            for block in child:
                fully_shard(block, mesh=mesh)
    fully_shard(denoiser, mesh=mesh)


def _count(modules: list[Any]) -> int:
    seen = {id(p): p.numel() for module in modules for p in module.parameters()}
    return sum(seen.values())
