"""Systems that run in processes of their own: PixelWizard in one of `pw generate`, others in a command per video.

Those bring their own program and environment: it is watched, stopped in time, and what it made is checked. The words
of a card's command are split first and filled afterwards, and no shell sees them: a prompt stays one word whatever it
holds. What the program says goes to a log; a program that asks where its time went may print

    seconds_diffusion: 12.3
    peak_memory_bytes: 45678
    parameters: 5000000000

and is believed. Otherwise the diffusion's seconds and the parameters are not known (the whole program's seconds are),
and peak memory is what nvidia-smi saw on the program's GPUs, once a second, above what was in use before: with what
torch keeps and CUDA's own, so more than torch's allocated memory, and without any peak that is shorter than a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.systems import ExternalCommand, GenerationError, PixelWizard
from benchmarks.systems.generation_call import SETTINGS, Call
from benchmarks.systems.gpu_processes import GRACE, ending_with_us, environment, nvidia_smi
from benchmarks.systems.jobs import SUFFIXES, VideoJob, check
from pw.io.arguments import ConfigError
from pw.io.files import write_atomically
from pw.io.paths import commit_of
from pw.io.video import probe, read_video, write_video

# what {…} in a command may name
FIELDS = (
    *("prompt", "prompt_file", "seed", "width", "height", "frames", "fps", "steps", "guidance", "shift"),
    *("upscale", "input", "input_dir", "out", "checkout", "python", "weights"),
)
FIELD = re.compile(r"\{(\w+)\}")
LAST_LINES = 12


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


class External:
    """Runs a card's command, job by job."""

    def __init__(self, call: Call) -> None:
        assert isinstance(call.system.adapter, ExternalCommand)
        self.adapter, self.setting, self.out = call.system.adapter, call.setting, call.out
        self.timeout = call.options.timeout
        self.checkout = (call.options.checkout or Path()).absolute()
        usual = self.checkout / ".venv" / "bin" / "python"
        self.python = _from_here(call.options.python or (str(usual) if usual.is_file() else "python"))
        self.weights = None if call.weights is None else _from_here(call.weights)
        commit, dirty = commit_of(self.checkout)
        self.about = {"commit": commit, "dirty": dirty, "weights": {"folder": self.weights}, "offload": None}

    def words(self, job: VideoJob, work: Path) -> tuple[str, ...]:
        """The command of a job, which writes below `work`."""
        return fill(self.adapter.command, self._values(job, work))

    def _values(self, job: VideoJob, work: Path) -> dict[str, str | None]:
        """What each field is filled with; None: this call has no such thing."""
        given, height = job.input, self.setting.height or 0
        return {
            **{key: _number(getattr(self.setting, key)) for key in SETTINGS},
            "prompt": job.text,
            "prompt_file": str(work / "prompt.txt"),
            "seed": str(job.seed),
            "upscale": None if given is None else _number(round(height / probe(given).height, 4)),
            "input": None if given is None else str(work / "in" / f"video{given.suffix}"),
            "input_dir": None if given is None else str(work / "in"),
            "out": str(work / "out"),
            "checkout": str(self.checkout),
            "python": self.python,
            "weights": self.weights,
        }

    def make(self, job: VideoJob, work: Path) -> tuple[Path, dict[str, Any]]:
        """The video of a job and what it cost. Raises GenerationError with the end of the log, or VideoError."""
        (work / "out").mkdir(parents=True)
        (work / "prompt.txt").write_text(f"{' '.join(job.text.split())}\n", encoding="utf-8")
        if job.input is not None:
            (work / "in").mkdir()
            (work / "in" / f"video{job.input.suffix}").symlink_to(job.input.absolute())
        words, log = self.words(job, work), self.out / "logs" / f"{job.stem}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        peak, peak_from = execute(words, self.checkout, self.timeout, log), "nvidia-smi, GPU"
        seconds = time.perf_counter() - began
        said = log.read_text(encoding="utf-8", errors="replace")
        found = self._found(work / "out", log)
        retimed = self._retimed(found)
        path, info = retimed or found, check(retimed or found, self.setting)
        if (told := _told(said, "peak_memory_bytes")) is not None:
            peak, peak_from = int(told), "its program"
        parameters = _told(said, "parameters")
        return path, {
            "command": list(words),
            "seconds_total": seconds,
            "seconds_diffusion": _told(said, "seconds_diffusion"),
            "peak_memory_bytes": peak,
            "peak_memory_from": None if peak is None else peak_from,
            "parameters": None if parameters is None else int(parameters),
            "device": " + ".join(nvidia_smi("name") or ["CPU"]),
            "versions": {},
            "encoding": {"codec": info.codec, "written_by": "its program"}
            | ({} if retimed is None else {"retimed_from_fps": self.adapter.writes_fps}),
        }

    def _found(self, out: Path, log: Path) -> Path:
        found = sorted(p for p in out.rglob(self.adapter.output) if p.is_file())
        if len(found) == 1 and found[0].suffix in SUFFIXES:
            return found[0]
        there = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
        raise GenerationError(
            f"the command ended well but wrote {len(found) or 'no'} {self.adapter.output} to {{out}}; there is: "
            f"{', '.join(there[:8]) or 'nothing'}. {_tail(log)}"
        )

    def _retimed(self, path: Path) -> Path | None:
        """The same frames, rewritten losslessly, where the program is known to write another rate than the paper's."""
        writes = self.adapter.writes_fps
        if writes is None or writes == self.setting.fps or abs(probe(path).fps - writes) > 0.01:
            return None
        target = path.with_name("retimed.mkv")
        write_video(target, read_video(path), fps=self.setting.rate)
        return target


def _from_here(path: str) -> str:
    """An absolute path of what is there (the command runs in its checkout), else the word itself: a name to look up."""
    found = Path(path).expanduser()
    return str(found.absolute()) if found.exists() else path


def fields(command: str) -> set[str]:
    """The fields of a command. Raises ConfigError for one that there is not."""
    found = set(FIELD.findall(command))
    if unknown := found - set(FIELDS):
        raise ConfigError(f"command: unknown {{{', '.join(sorted(unknown))}}}; there are {', '.join(FIELDS)}")
    return found


def fill(command: str, values: Mapping[str, str | None]) -> tuple[str, ...]:
    """The words of a command: split as a shell would, then filled, each once (a filled-in {seed} stays text).

    Raises: ConfigError for a field without a value.
    """

    def value(match: re.Match[str]) -> str:
        found = values[match[1]]
        if found is None:
            raise ConfigError(f"the command wants {{{match[1]}}}: give {match[1]}=…")
        return found

    fields(command)
    return tuple(FIELD.sub(value, word) for word in shlex.split(command))


def execute(words: Sequence[str], cwd: Path, timeout: float | None, log: Path) -> int | None:
    """Run to the end, for `timeout` s at most; peak memory of the GPUs in bytes if nvidia-smi tells.

    Raises: GenerationError when it cannot be started, fails, or takes too long; with it end all that it started.
    """
    own = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    before, began = _memory_in_use(), time.monotonic()
    peak: int | None = None
    with log.open("wb") as said:
        try:
            process = subprocess.Popen(
                words,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=own,
                start_new_session=True,
            )
        except OSError as error:
            raise GenerationError(f"cannot start {words[0]}: {error.strerror}") from error
        try:
            with ending_with_us(process.pid, group=True):
                while not _ends_within(process, 1.0):
                    if timeout is not None and time.monotonic() - began >= timeout:
                        raise GenerationError(f"took longer than timeout={timeout:g} s; {_tail(log)}")
                    if before is not None and (now := _memory_in_use()) is not None:
                        peak = max(peak or 0, now - before)
        finally:
            _end(process)
    if status := process.returncode:
        what = f"ended with status {status}" if status > 0 else f"was ended by {signal.Signals(-status).name}"
        raise GenerationError(f"the command {what}; {_tail(log)}")
    return peak


def _ends_within(process: subprocess.Popen[bytes], seconds: float | None) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a program's process group, which it shares with all that it started."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):  # macOS: PermissionError for a group of the dead
            break
        if _ends_within(process, patience) and number == signal.SIGTERM:
            time.sleep(0.05)  # its children were asked at the same moment
    process.wait()


def _memory_in_use() -> int | None:
    found = nvidia_smi("memory.used")
    return None if found is None else sum(int(value) << 20 for value in found)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:g}" if value < 1e6 else str(value)


def _told(said: str, key: str) -> float | None:
    found = re.findall(rf"^{key}[:=]\s*([0-9.]+(?:e[+-]?\d+)?)\s*$", said, re.MULTILINE)
    return float(found[-1]) if found else None


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"the end of {log}:\n" + "\n".join(
        f"    {line[:200]}" for line in lines[-LAST_LINES:] or ["(it said nothing)"]
    )
