"""Systems that bring their own program and environment: a command per video, watched, stopped in time, and checked.

The words of a card's command are split first and filled afterwards, and no shell sees them: a prompt stays one word
whatever it holds. What the program says goes to a log; a program that asks where its time went may print

    seconds_diffusion: 12.3
    peak_memory_bytes: 45678
    parameters: 5000000000

and is believed. Otherwise the diffusion's seconds and the parameters are not known (the whole program's seconds are),
and peak memory is what nvidia-smi saw on the program's GPUs, once a second, above what was in use before: with what
torch keeps and CUDA's own, so more than torch's allocated memory, and without any peak that is shorter than a second.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.systems import ExternalCommand, GenerationError, Setting, System
from benchmarks.systems.jobs import SUFFIXES, VideoJob, check
from benchmarks.systems.watch import GRACE, ending_with_us
from pw.io.arguments import ConfigError
from pw.io.paths import commit_of

# what {…} in a command may name
FIELDS = (
    *("prompt", "prompt_file", "seed", "width", "height", "frames", "fps", "steps", "guidance", "shift"),
    *("upscale", "input", "input_dir", "out", "checkout", "python", "weights"),
)
FIELD = re.compile(r"\{(\w+)\}")
LAST_LINES = 12


@dataclass(frozen=True)
class Program:
    """A command that is ready to be run: its words, the folder it runs in, the one it writes to, its patience in s."""

    words: tuple[str, ...]
    cwd: Path
    out: Path
    timeout: float | None


@dataclass
class External:
    """Runs a card's command, job by job."""

    system: System
    setting: Setting
    checkout: Path
    python: str
    weights: str | None
    timeout: float | None
    logs: Path
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def adapter(self) -> ExternalCommand:
        """The card's part that says how."""
        assert isinstance(self.system.adapter, ExternalCommand)
        return self.system.adapter

    def __post_init__(self) -> None:
        commit, dirty = commit_of(self.checkout)
        self.about = {"commit": commit, "dirty": dirty, "weights": {"folder": self.weights}, "offload": None}

    def program(self, job: VideoJob, work: Path) -> Program:
        """The command of a job, which writes below `work`."""
        return Program(fill(self.adapter.command, self.values(job, work)), self.checkout, work / "out", self.timeout)

    def values(self, job: VideoJob, work: Path) -> dict[str, str | None]:
        """What each field is filled with; None: this call has no such thing."""
        setting = self.setting
        numbers = {key: _number(getattr(setting, key)) for key in Setting.__annotations__}
        given = job.input
        upscale = None
        if given is not None:
            upscale = _number(round(setting.height / check_input(given).height, 4))
        return {
            **numbers,
            "prompt": job.text,
            "prompt_file": str(work / "prompt.txt"),
            "seed": str(job.seed),
            "upscale": upscale,
            "input": None if given is None else str(work / "in" / f"video{given.suffix}"),
            "input_dir": None if given is None else str(work / "in"),
            "out": str(work / "out"),
            "checkout": str(self.checkout),
            "python": self.python,
            "weights": self.weights,
        }

    def make(self, job: VideoJob, work: Path) -> tuple[Path, dict[str, Any]]:
        """The video of a job and what it cost. Raises GenerationError with the end of the log."""
        (work / "out").mkdir(parents=True)
        (work / "prompt.txt").write_text(f"{' '.join(job.text.split())}\n", encoding="utf-8")
        if job.input is not None:
            (work / "in").mkdir()
            (work / "in" / f"video{job.input.suffix}").symlink_to(job.input.absolute())
        program = self.program(job, work)
        log = self.logs / f"{job.stem}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        peak = execute(program, log)
        seconds = time.perf_counter() - began
        said = log.read_text(encoding="utf-8", errors="replace")
        found = self._found(program, log)
        retimed = self._retimed(found)
        path, info = retimed or found, check(retimed or found, self.setting)
        peak_memory, parameters = (_told(said, key) for key in ("peak_memory_bytes", "parameters"))
        return path, {
            "command": list(program.words),
            "seconds_total": seconds,
            "seconds_diffusion": _told(said, "seconds_diffusion"),
            "peak_memory_bytes": peak if peak_memory is None else int(peak_memory),
            "peak_memory_from": "its program"
            if peak_memory is not None
            else None
            if peak is None
            else "nvidia-smi, GPU",
            "parameters": None if parameters is None else int(parameters),
            "device": device_name(),
            "versions": {},
            "encoding": {"codec": info.codec, "written_by": "its program"}
            | ({} if retimed is None else {"retimed_from_fps": self.adapter.writes_fps}),
        }

    def _found(self, program: Program, log: Path) -> Path:
        found = sorted(p for p in program.out.rglob(self.adapter.output) if p.is_file())
        if len(found) == 1 and found[0].suffix in SUFFIXES:
            return found[0]
        there = sorted(str(p.relative_to(program.out)) for p in program.out.rglob("*") if p.is_file())
        raise GenerationError(
            f"the command ended well but wrote {len(found) or 'no'} {self.adapter.output} to {{out}}; there is: "
            f"{', '.join(there[:8]) or 'nothing'}. {_tail(log)}"
        )

    def _retimed(self, path: Path) -> Path | None:
        """The same frames, rewritten losslessly, where the program is known to write another rate than the paper's."""
        from pw.io.video import VideoError, probe, read_video, write_video

        writes = self.adapter.writes_fps
        try:
            if writes is None or writes == self.setting.fps or abs(probe(path).fps - writes) > 0.01:
                return None
            target = path.with_name("retimed.mkv")
            write_video(target, read_video(path), fps=self.setting.rate)
        except VideoError as error:
            raise GenerationError(str(error)) from error
        return target


def check_input(path: Path) -> Any:
    """What a video to be enlarged is. Raises GenerationError when it is none."""
    from pw.io.video import VideoError, probe

    try:
        return probe(path)
    except VideoError as error:
        raise GenerationError(str(error)) from error


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


def execute(program: Program, log: Path) -> int | None:
    """Run to the end; peak memory of the GPUs in bytes if nvidia-smi tells.

    Raises: GenerationError when it cannot be started, fails, or takes too long; with it end all that it started.
    """
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with log.open("wb") as said, _Memory() as memory:
        try:
            process = subprocess.Popen(
                program.words,
                cwd=program.cwd,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise GenerationError(f"cannot start {program.words[0]}: {error.strerror}") from error
        try:
            with ending_with_us(process.pid, group=True):
                status = process.wait(program.timeout)
        except subprocess.TimeoutExpired as error:
            raise GenerationError(f"took longer than timeout={program.timeout:g} s; {_tail(log)}") from error
        finally:
            _end(process)
    if status:
        what = f"ended with status {status}" if status > 0 else f"was ended by {signal.Signals(-status).name}"
        raise GenerationError(f"the command {what}; {_tail(log)}")
    return memory.peak


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a program's process group, which it shares with all that it started."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):  # macOS: PermissionError for a group of the dead
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        if number == signal.SIGTERM:
            time.sleep(0.05)  # its children were asked at the same moment
    process.wait()


class _Memory:
    """Watches the memory in use on the visible GPUs, once a second, through nvidia-smi."""

    peak: int | None = None

    def __enter__(self) -> _Memory:
        self._stop, self._thread = threading.Event(), None
        self._before = _memory_in_use()
        if self._before is not None:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            now = _memory_in_use()
            if now is not None and self._before is not None:
                self.peak = max(self.peak or 0, now - self._before)


def _memory_in_use() -> int | None:
    found = _nvidia_smi("memory.used")
    return None if found is None else sum(int(value) << 20 for value in found)


def device_name() -> str:
    """The GPUs that a program sees, or CPU."""
    found = _nvidia_smi("name")
    return " + ".join(found) if found else "CPU"


def _nvidia_smi(what: str) -> list[str] | None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shutil.which("nvidia-smi") is None or visible == "":
        return None
    only = [] if visible is None else ["-i", visible]
    words = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", *only]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    return lines if answer.returncode == 0 and lines else None


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
