"""PixelWizard itself as a system: `pw.generate.pipeline` makes the videos, its manifests say at what cost."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.systems import GenerationError, PixelWizard
from benchmarks.systems.generation_call import Call
from benchmarks.systems.gpu_processes import ending_with_us, environment
from benchmarks.systems.jobs import VideoJob, check
from pw.io.files import write_atomically


class PixelWizardGeneration:
    """One call of `pw.generate.pipeline` for all jobs, since each network is loaded once; then a video after the other.

    It works in the folder `generate`, and finds there again what it has finished.
    """

    def __init__(self, call: Call) -> None:
        self.call, self.out = call, call.out / "generate"
        self.about: dict[str, Any] = {}
        self._made: dict[str, Path] = {}

    def _prompts(self, jobs: Sequence[VideoJob]) -> tuple[Path, str]:
        """The file of these jobs' prompts, and what it holds."""
        text = "".join(f"{json.dumps({'prompt': job.text, 'seed': job.seed})}\n" for job in jobs)
        return self.out / f"prompts-{hashlib.sha256(text.encode()).hexdigest()[:8]}.jsonl", text

    def command(self, jobs: Sequence[VideoJob]) -> list[str]:
        """The call that makes these."""
        call, asked, native = self.call, self.call.setting, self.call.system.setting
        assert isinstance(call.system.adapter, PixelWizard)
        is_native = (asked.width, asked.height) == (native.width, native.height)
        return [
            *(sys.executable, "-m", "pw", "generate"),
            *(f"prompts={self._prompts(jobs)[0]}", f"out={self.out}"),
            *(f"scale={call.system.adapter.scale}", f"frames={asked.frames}", f"fps={asked.fps:g}"),
            *(f"lossless={str(call.lossless).lower()}", f"quality={call.quality}"),
            *([] if is_native else [f"scale.width={asked.width}", f"scale.height={asked.height}"]),
            f"sampling.num_steps={asked.steps}",
            *([f"weights={call.weights}"] if call.weights else []),
            *call.further,
            *([f"trainer.devices={call.options.gpus}"] if call.is_split else []),
        ]

    def prepare(self, jobs: Sequence[VideoJob]) -> None:
        """Make the videos of all jobs. Raises GenerationError; what was finished before is kept."""
        words = self.command(jobs)
        write_atomically(*self._prompts(jobs))
        call = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, text=True)
        with call as process, ending_with_us(process.pid):
            paths = process.communicate()[0].splitlines()  # a line for each prompt, in their order
        if process.returncode or len(paths) != len(jobs):
            raise GenerationError(
                f"pw.generate.pipeline ended with status {process.returncode} and {len(paths)} of {len(jobs)} videos; "
                "it says why above"
            )
        self._made = {job.stem: Path(path) for job, path in zip(jobs, paths, strict=True)}
        self.about["command"] = words

    def make(self, job: VideoJob, work: Path) -> tuple[Path, dict[str, Any]]:
        """The video that `prepare` made for a job, with its manifest's costs."""
        path = self._made[job.stem]
        manifest = json.loads(path.with_suffix(f"{path.suffix}.json").read_text(encoding="utf-8"))
        seconds, peaks = manifest["seconds"], manifest["peak_memory_gb"]
        check(path, self.call.setting)
        stages = [seconds.get(part) for part in ("anchor", "hires")]
        return path, {
            "seconds_total": sum(seconds.values()) if seconds else None,
            "seconds_diffusion": None if None in stages else sum(stages),
            "seconds": seconds,
            "peak_memory_bytes": int(max(peaks.values()) * 1e9) if peaks else None,
            "peak_memory_from": "torch, allocated" if manifest["device"] != "CPU" else "process",
            "parameters": manifest["anchor"]["parameters"] + manifest["hires"]["parameters"],
            "device": manifest["device"],
            "processes": manifest.get("processes", 1),
            "commit": manifest["git_commit"],
            "dirty": manifest["dirty"],
            "weights": {key: manifest[key]["weights"] for key in ("anchor", "hires")} | {"wan": manifest["weights"]},
            "versions": {"torch": manifest["torch"]},
            "manifest": manifest,
        }
