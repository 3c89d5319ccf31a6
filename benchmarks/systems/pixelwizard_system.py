"""PixelWizard itself as a system: `pw.generate.pipeline` makes the videos, its manifests say at what cost."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.systems import GenerationError, PixelWizard, Setting, System
from benchmarks.systems.jobs import VideoJob, check
from benchmarks.systems.watch import ending_with_us
from pw.io.files import write_atomically


@dataclass
class PixelWizardGeneration:
    """One call of `pw.generate.pipeline` for all jobs, since each network is loaded once; then a video after the other.

    words  further words of `pw.generate.pipeline`: hires=, anchor=, overrides of conf/
    """

    system: System
    setting: Setting
    words: Sequence[str]
    weights: str | None
    lossless: bool
    quality: int
    folder: Path
    about: dict[str, Any] = field(default_factory=dict)
    _made: dict[str, Path] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """Where `pw.generate.pipeline` works; what it has finished it finds there again."""
        return self.folder / "generate"

    def prompts(self, jobs: Sequence[VideoJob]) -> str:
        """The prompts of these, as `pw.generate.pipeline` reads them."""
        return "".join(f"{json.dumps({'prompt': job.text, 'seed': job.seed})}\n" for job in jobs)

    def prompts_file(self, jobs: Sequence[VideoJob]) -> Path:
        """Where `prepare` writes them."""
        name = hashlib.sha256(self.prompts(jobs).encode()).hexdigest()[:8]
        return self.out / f"prompts-{name}.jsonl"

    def command(self, jobs: Sequence[VideoJob]) -> list[str]:
        """The call that makes these."""
        assert isinstance(self.system.adapter, PixelWizard)
        native, asked = self.system.setting, self.setting
        size = (asked.width, asked.height) != (native.width, native.height)
        return [
            *(
                sys.executable,
                *("-m", "pw", "generate"),
                f"prompts={self.prompts_file(jobs)}",
                f"out={self.out}",
            ),
            *(f"scale={self.system.adapter.scale}", f"frames={asked.frames}", f"fps={asked.fps:g}"),
            *(f"lossless={str(self.lossless).lower()}", f"quality={self.quality}"),
            *([f"scale.width={asked.width}", f"scale.height={asked.height}"] if size else []),
            f"sampling.num_steps={asked.steps}",
            *([f"weights={self.weights}"] if self.weights else []),
            *self.words,
        ]

    def prepare(self, jobs: Sequence[VideoJob], environment: Mapping[str, str]) -> None:
        """Make the videos of all jobs. Raises GenerationError; what was finished before is kept."""
        words = self.command(jobs)
        write_atomically(self.prompts_file(jobs), self.prompts(jobs))
        call = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
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
        check(path, self.setting)
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
