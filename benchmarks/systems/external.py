"""Systems in their own processes: PixelWizard in one call of `pw generate`, other programs in one command per video.

An external program has its own environment and a time limit, and its video is checked. The command of a card is split
into words before the fields are filled, and no shell is used, so a prompt always stays one word. The output of the
program goes to a log. A program may report its costs in lines such as

    seconds_diffusion: 12.3
    peak_memory_bytes: 45678
    parameters: 5000000000

Otherwise the seconds of diffusion and the parameters are unknown (the seconds of the whole program are known), and peak
memory is the increase of nvidia-smi's used memory, sampled once a second. It includes CUDA and torch's cache, so it is
more than torch's allocated memory, and it misses peaks shorter than a second.
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
from benchmarks.systems.gpu_processes import GRACE, end_with_parent, environment, nvidia_smi
from benchmarks.systems.jobs import VideoJob, check
from pw.io.arguments import ConfigError
from pw.io.files import parse_json, write_atomically
from pw.io.paths import commit_of
from pw.io.video import probe, read_video, write_video
from pw.io.video_files import is_video

# the fields {…} of a command
FIELDS = (
    *("prompt", "prompt_file", "seed", "width", "height", "frames", "fps", "steps", "guidance", "shift"),
    *("upscale", "input", "input_dir", "out", "checkout", "python", "weights"),
)
FIELD = re.compile(r"\{(\w+)\}")
LAST_LINES = 12


class PixelWizardGeneration:
    """One call of `pw.generate.pipeline` for all jobs, which loads each network once.

    It works in the folder `generate` and does not repeat videos that are finished there.
    """

    def __init__(self, call: Call) -> None:
        self.call, self.out = call, call.out / "generate"
        self.metadata: dict[str, Any] = {}
        self._videos: dict[str, Path] = {}

    def _prompts(self, jobs: Sequence[VideoJob]) -> tuple[Path, str]:
        """Path and content of the prompt file of the jobs."""
        text = "".join(f"{json.dumps({'prompt': job.text, 'seed': job.seed})}\n" for job in jobs)
        return self.out / f"prompts-{hashlib.sha256(text.encode()).hexdigest()[:8]}.jsonl", text

    def command(self, jobs: Sequence[VideoJob]) -> list[str]:
        call, setting, native = self.call, self.call.setting, self.call.system.setting
        assert isinstance(call.system.adapter, PixelWizard)
        is_native = (setting.width, setting.height) == (native.width, native.height)
        return [
            *(sys.executable, "-m", "pw", "generate"),
            *(f"prompts={self._prompts(jobs)[0]}", f"out={self.out}"),
            *(f"scale={call.system.adapter.scale}", f"frames={setting.frames}", f"fps={setting.fps:g}"),
            "lossless=true" if call.lossless else f"quality={call.quality}",
            *([] if is_native else [f"scale.width={setting.width}", f"scale.height={setting.height}"]),
            f"sampling.num_steps={setting.steps}",
            *([f"weights={call.weights}"] if call.weights else []),
            *call.overrides,
            *([f"trainer.devices={call.options.gpus}"] if call.is_split else []),
        ]

    def prepare(self, jobs: Sequence[VideoJob]) -> None:
        """Make the videos of all jobs. Raises GenerationError; finished videos are kept."""
        words = self.command(jobs)
        write_atomically(*self._prompts(jobs))
        call = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, text=True)
        with call as process, end_with_parent(process.pid):
            paths = process.communicate()[0].splitlines()  # one line per prompt, in order
        if process.returncode or len(paths) != len(jobs):
            raise GenerationError(
                f"pw generate ended with status {process.returncode} and {len(paths)} of {len(jobs)} videos; "
                "see its messages above"
            )
        self._videos = {job.stem: Path(path) for job, path in zip(jobs, paths, strict=True)}
        self.metadata["command"] = words

    def make(self, job: VideoJob, work: Path) -> tuple[Path, dict[str, Any]]:
        """Path of the video that `prepare` made, with the costs of its manifest."""
        path = self._videos[job.stem]
        manifest = parse_json(path.with_suffix(f"{path.suffix}.json").read_text(encoding="utf-8"))
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
    """Runs the command of a card, job by job."""

    def __init__(self, call: Call) -> None:
        assert isinstance(call.system.adapter, ExternalCommand)
        self.adapter, self.setting, self.out = call.system.adapter, call.setting, call.out
        self.timeout = call.options.timeout
        self.checkout = (call.options.checkout or Path()).absolute()
        venv_python = self.checkout / ".venv" / "bin" / "python"
        self.python = _absolute(call.options.python or (str(venv_python) if venv_python.is_file() else "python"))
        self.weights = None if call.weights is None else _absolute(call.weights)
        commit, dirty = commit_of(self.checkout)
        self.metadata = {"commit": commit, "dirty": dirty, "weights": {"folder": self.weights}, "offload": None}

    def words(self, job: VideoJob, work: Path) -> tuple[str, ...]:
        """The command of a job; it writes below `work`."""
        return fill(self.adapter.command, self._values(job, work))

    def _values(self, job: VideoJob, work: Path) -> dict[str, str | None]:
        """field -> value; None if this call has no value."""
        input_video, height = job.input, self.setting.height or 0
        return {
            **{key: _number_text(getattr(self.setting, key)) for key in SETTINGS},
            "prompt": job.text,
            "prompt_file": str(work / "prompt.txt"),
            "seed": str(job.seed),
            "upscale": None if input_video is None else _number_text(round(height / probe(input_video).height, 4)),
            "input": None if input_video is None else str(work / "in" / f"video{input_video.suffix}"),
            "input_dir": None if input_video is None else str(work / "in"),
            "out": str(work / "out"),
            "checkout": str(self.checkout),
            "python": self.python,
            "weights": self.weights,
        }

    def make(self, job: VideoJob, work: Path) -> tuple[Path, dict[str, Any]]:
        """Make the video of a job; returns path and costs. Raises GenerationError (with the log's end), VideoError."""
        (work / "out").mkdir(parents=True)
        (work / "prompt.txt").write_text(f"{' '.join(job.text.split())}\n", encoding="utf-8")
        if job.input is not None:
            (work / "in").mkdir()
            (work / "in" / f"video{job.input.suffix}").symlink_to(job.input.absolute())
        words, log = self.words(job, work), self.out / "logs" / f"{job.stem}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        peak, peak_from = execute(words, self.checkout, self.timeout, log), "nvidia-smi, GPU"
        seconds = time.perf_counter() - start
        log_text = log.read_text(encoding="utf-8", errors="replace")
        output = self._find_output(work / "out", log)
        retimed_path = self._retime(output)
        path, info = retimed_path or output, check(retimed_path or output, self.setting)
        if (reported := _log_value(log_text, "peak_memory_bytes")) is not None:
            peak, peak_from = int(reported), "its program"
        parameters = _log_value(log_text, "parameters")
        return path, {
            "command": list(words),
            "seconds_total": seconds,
            "seconds_diffusion": _log_value(log_text, "seconds_diffusion"),
            "peak_memory_bytes": peak,
            "peak_memory_from": None if peak is None else peak_from,
            "parameters": None if parameters is None else int(parameters),
            "device": " + ".join(nvidia_smi("name") or ["CPU"]),
            "versions": {},
            "encoding": {"codec": info.codec, "written_by": "its program"}
            | ({} if retimed_path is None else {"retimed_from_fps": self.adapter.writes_fps}),
        }

    def _find_output(self, out: Path, log: Path) -> Path:
        outputs = sorted(p for p in out.rglob(self.adapter.output) if p.is_file())
        if len(outputs) == 1 and is_video(outputs[0]):
            return outputs[0]
        files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
        raise GenerationError(
            f"the command succeeded but wrote {len(outputs) or 'no'} {self.adapter.output} to {{out}}; there is: "
            f"{', '.join(files[:8]) or 'nothing'}. {_tail(log)}"
        )

    def _retime(self, path: Path) -> Path | None:
        """Rewrite the frames losslessly at the requested rate if the program always writes another one; else None."""
        writes = self.adapter.writes_fps
        if writes is None or writes == self.setting.fps or abs(probe(path).fps - writes) > 0.01:
            return None
        target = path.with_name("retimed.mkv")
        write_video(target, read_video(path), fps=self.setting.rate)
        return target


def _absolute(path: str) -> str:
    """The absolute path if it exists (the command runs in its checkout), else the word itself."""
    full = Path(path).expanduser()
    return str(full.absolute()) if full.exists() else path


def fields(command: str) -> set[str]:
    """The fields of a command. Raises ConfigError for an unknown one."""
    names = set(FIELD.findall(command))
    if unknown := names - set(FIELDS):
        raise ConfigError(f"command: unknown {{{', '.join(sorted(unknown))}}}; known: {', '.join(FIELDS)}")
    return names


def fill(command: str, values: Mapping[str, str | None]) -> tuple[str, ...]:
    """Split a command as a shell does, then fill the fields; a {field} inside a value is not filled again.

    Raises: ConfigError for a field without a value.
    """

    def value(match: re.Match[str]) -> str:
        text = values[match[1]]
        if text is None:
            raise ConfigError(f"the command needs {{{match[1]}}}: set {match[1]}=…")
        return text

    fields(command)
    return tuple(FIELD.sub(value, word) for word in shlex.split(command))


def execute(words: Sequence[str], cwd: Path, timeout: float | None, log: Path) -> int | None:
    """Run a program for at most `timeout` s; returns the peak memory of the GPUs in bytes, or None.

    Raises: GenerationError if it cannot start, fails, or takes too long. Its child processes end with it.
    """
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    memory_before, start = _memory_in_use(), time.monotonic()
    peak: int | None = None
    with log.open("wb") as log_file:
        try:
            process = subprocess.Popen(
                words,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,
            )
        except OSError as error:
            raise GenerationError(f"cannot start {words[0]}: {error.strerror}") from error
        try:
            with end_with_parent(process.pid, group=True):
                while not _ends_within(process, 1.0):
                    if timeout is not None and time.monotonic() - start >= timeout:
                        raise GenerationError(f"took longer than timeout={timeout:g} s; {_tail(log)}")
                    if memory_before is not None and (memory := _memory_in_use()) is not None:
                        peak = max(peak or 0, memory - memory_before)
        finally:
            _end_group(process)
    if status := process.returncode:
        ending = f"ended with status {status}" if status > 0 else f"was killed by {signal.Signals(-status).name}"
        raise GenerationError(f"the command {ending}; {_tail(log)}")
    return peak


def _ends_within(process: subprocess.Popen[bytes], seconds: float | None) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process group of a program: the program and its child processes."""
    for signal_number, grace in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, signal_number)
        except (ProcessLookupError, PermissionError):  # macOS raises PermissionError if all have ended
            break
        if _ends_within(process, grace) and signal_number == signal.SIGTERM:
            time.sleep(0.05)  # its children got the signal at the same time
    process.wait()


def _memory_in_use() -> int | None:
    megabytes = nvidia_smi("memory.used")
    return None if megabytes is None else sum(int(value) << 20 for value in megabytes)


def _number_text(value: float | None) -> str | None:
    return None if value is None else f"{value:g}" if value < 1e6 else str(value)


def _log_value(log_text: str, key: str) -> float | None:
    values = re.findall(rf"^{key}[:=]\s*([0-9.]+(?:e[+-]?\d+)?)\s*$", log_text, re.MULTILINE)
    return float(values[-1]) if values else None


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"the end of {log}:\n" + "\n".join(
        f"    {line[:200]}" for line in lines[-LAST_LINES:] or ["(it said nothing)"]
    )
