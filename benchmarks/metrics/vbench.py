"""VBench: runs VBench's own code in a worker process, reads its journal and checks its result.

VBench 0.1.5 requires torch 2.5 and transformers 4.33, so it runs in `.venv-vbench` (`make vbench-env`; PW_VBENCH_PYTHON
names another interpreter) as the process `benchmarks/measure/vbench_worker.py`, whose docstring defines the contract.
`make weights what=metrics args="only=vbench"` fetches its weights. Nothing is downloaded unless PW_VBENCH_DOWNLOAD=1. A
worker without output for PW_VBENCH_TIMEOUT seconds (3600) is killed.

Values are VBench's per-video results in [0, 1]. For videos of different lengths their mean differs from VBench's own
aggregate of the dimensions that average over frames instead of videos (subject and background consistency).
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure.metric_weights import WEIGHTS, vbench_folder
from benchmarks.measure.vbench_worker import GRIT, OF_PROMPTS, SCHEMA
from benchmarks.metrics import lookup
from benchmarks.stats.resampling import prompt_of
from pw.io.files import sha256
from pw.io.paths import ROOT

WORKER = ROOT / "benchmarks" / "measure" / "vbench_worker.py"
LARGEST = 2  # bound of |value|: cosines may be below 0 and LAION's predictor above 10; detects a wrong scale, and NaN
MODES = ("custom_input", "vbench_standard", "long_custom_input", "long_vbench_standard")
PREPROCESSING = ("longer", "shorter", "shorter_centercrop", "None")
SAMPLES = 5  # videos per prompt in VBench's protocol
OnVideo = Callable[[Path, Mapping[str, float]], None]


def available(names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, str]:
    """Dimension -> what is missing and how to get it. Raises ValueError for an invalid setting."""
    for key, choices in (("mode", MODES), ("imaging_quality_preprocessing_mode", PREPROCESSING)):
        if settings[key] not in choices:
            raise ValueError(f"vbench.{key}={settings[key]}: expected one of {', '.join(choices)}")
    python = interpreter()
    if not python.is_file():
        hint = "set by PW_VBENCH_PYTHON" if "PW_VBENCH_PYTHON" in os.environ else "`make vbench-env` creates it"
        return dict.fromkeys(names, f"VBench's environment {python} does not exist: {hint}")
    reasons = {name: _missing(name, settings["mode"], python) for name in names}
    return {name: reason for name, reason in reasons.items() if reason}


def score_videos(
    videos: Sequence[Path],
    names: Sequence[str],
    settings: Mapping[str, Any],
    device: str,
    on_video: OnVideo,
    *,
    worker: Path = WORKER,
) -> dict[str, str]:
    """Measure dimensions of VBench; returns dimension -> why it, or some of its videos, have no value.

    videos: named `{prompt}-{i}.mp4`. settings: the registry's. device: "cpu" or "cuda:1". on_video: called with the
    values of a video as soon as they are complete. Raises: ValueError for an invalid setting.
    """
    missing = available(names, settings)
    names = [name for name in names if name not in missing]
    if settings["mode"].endswith("vbench_standard") and names:
        known = all_prompts()
        unknown = [v.name for v in videos if prompt_of(v.name) not in known]
        if unknown:
            reason = (
                f"mode={settings['mode']}: {len(unknown)} videos, such as {unknown[0]!r}, are not named PROMPT-NUMBER "
                f"after one of VBench's {len(known)} prompts; mode=custom_input takes any name"
            )
            return {**missing, **dict.fromkeys(names, reason)}
        dimensions = {v: [name for name in names if name in known[prompt_of(v.name)]] for v in videos}
        for video in [video for video in videos if not dimensions[video]]:
            on_video(video, {})
        videos = [video for video in videos if dimensions[video]]
        names = [name for name in names if any(name in names_of_video for names_of_video in dimensions.values())]
    if not names or not videos:
        return missing
    with tempfile.TemporaryDirectory(prefix="pw-vbench-") as work:
        run = WorkerRun({str(path.absolute()): path for path in videos}, names, Path(work), on_video)
        request = {
            "schema": SCHEMA,
            "videos": list(run.videos),
            "dimensions": names,
            **{key: settings[key] for key in ("mode", "imaging_quality_preprocessing_mode")},
            # a string: torch.device("cuda") == "cuda" is False, and AMT would then not scale to the GPU's memory
            "device": device.partition(":")[0],
            "cache": str(cache()),
            "weights": {name: weights_of(name) for name in names},
            "download": _may_download(),
            "full_info": None,
            "out": str(run.out),
            "parent": os.getpid(),
        }
        return {**missing, **run.measure(request, device, worker)}


def interpreter() -> Path:
    """The Python of VBench's environment: PW_VBENCH_PYTHON, or the one of `make vbench-env`."""
    return Path(os.environ.get("PW_VBENCH_PYTHON") or ROOT / ".venv-vbench" / "bin" / "python").expanduser()


def cache() -> Path:
    """VBench's folder of weights."""
    return vbench_folder().absolute()


def weights_of(name: str) -> dict[str, str]:
    """The weights of a dimension: file in VBench's folder -> description (vbench/utils.py, init_submodules)."""
    return {WEIGHTS[row].file: WEIGHTS[row].about.partition(":")[0] for row in lookup(name).weights}


def digests(name: str) -> dict[str, str]:
    """File -> SHA-256 of a dimension's existing weights."""
    paths = {file: cache() / file for file in weights_of(name)}
    return {file: _sha256(path, path.stat().st_mtime_ns) for file, path in paths.items() if path.is_file()}


def all_prompts() -> dict[str, tuple[str, ...]]:
    """VBench's 944 prompts in its order -> the dimensions measured on each. Raises ValueError without VBench."""
    paths = [path for folder in _packages(interpreter()) for path in folder.glob("vbench/VBench_full_info.json")]
    if not paths:
        raise ValueError(f"no VBench_full_info.json beside {interpreter()}: `make vbench-env` installs VBench")
    prompts: dict[str, tuple[str, ...]] = {}
    for entry in json.loads(paths[0].read_text(encoding="utf-8")):
        earlier = prompts.get(entry["prompt_en"], ())
        prompts[entry["prompt_en"]] = tuple(dict.fromkeys((*earlier, *entry["dimension"])))
    return prompts


def missing_stems(names: Sequence[str], stems: Sequence[str]) -> dict[str, list[str]]:
    """Dimension -> the stems `{prompt}-{i}` of VBench's protocol that are not in `stems`; VBench itself only warns."""
    known = all_prompts()
    prompts_by_name = {name: [prompt for prompt, dimensions in known.items() if name in dimensions] for name in names}
    existing = set(stems)
    return {
        name: [stem for prompt in prompts for i in range(SAMPLES) if (stem := f"{prompt}-{i}") not in existing]
        for name, prompts in prompts_by_name.items()
    }


def _missing(name: str, mode: str, python: Path) -> str:
    """What is missing for a dimension, "" if nothing."""
    if name in OF_PROMPTS and not mode.endswith("vbench_standard"):
        return f"{name} is measured on VBench's own prompts only: vbench.mode=vbench_standard"
    if name in GRIT and not any((folder / "detectron2").is_dir() for folder in _packages(python)):
        return (
            f"{name} needs detectron2, which no package index has: build it from GitHub facebookresearch/detectron2 "
            f"against the torch of {python}"
        )
    files = {file: what for file, what in weights_of(name).items() if not (cache() / file).is_file()}
    if not files or _may_download():
        return ""
    file_list = "; ".join(f"{cache() / file} ({what})" for file, what in files.items())
    return f'{name} lacks weights: {file_list}; `make weights what=metrics args="only=vbench"` fetches them'


def _may_download() -> bool:
    return os.environ.get("PW_VBENCH_DOWNLOAD", "0") not in ("", "0")


def _packages(python: Path) -> list[Path]:
    """The site-packages folders of an interpreter's environment."""
    return sorted(python.absolute().parent.parent.glob("lib/python3.*/site-packages"))


@functools.cache
def _sha256(path: Path, mtime_ns: int) -> str:
    """mtime_ns: part of the cache's key, so that a changed file is read again."""
    return sha256(path)


# ---- the worker's process


class _ContractError(Exception):
    """The worker broke its contract; the message says how."""


@dataclass
class WorkerRun:
    """One run of the worker: its request, and its results so far."""

    videos: Mapping[str, Path]
    names: Sequence[str]
    work: Path
    on_video: OnVideo
    failed: dict[str, str] = field(default_factory=dict)
    errors: dict[str, dict[str, str]] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    has_header: bool = False

    def __post_init__(self) -> None:
        self.journal_values: dict[str, dict[str, float | None]] = {video: {} for video in self.videos}
        self.out, self.log = self.work / "result.json", self.work / "worker.log"
        self.journal = Path(f"{self.out}.journal")
        self.journal.touch()

    def measure(self, request: Mapping[str, Any], device: str, worker: Path) -> dict[str, str]:
        """Run the worker. Returns dimension -> why it, or some of its videos, have no value."""
        (self.work / "request.json").write_text(json.dumps(request), encoding="utf-8")
        try:
            with self._worker_process(worker, device) as process:
                self._follow(process)
            self._check_result(process.returncode)
        except _ContractError as error:
            names = [name for name in self.names if name not in self.failed]
            reasons = dict.fromkeys(names, f"VBench's worker {error}")
            if names:
                reasons[names[0]] += f"; the end of its log:\n{self._tail()}"
            return {**self.failed, **reasons}
        for name, errors in self.errors.items():
            video, reasons = next(iter(errors.items()))
            text = f"{name} failed on {len(errors)} of {len(self.videos)} videos: {Path(video).name}: {reasons}"
            self.failed.setdefault(name, text)
        return self.failed

    @contextmanager
    def _worker_process(self, worker: Path, device: str) -> Generator[subprocess.Popen[bytes]]:
        """The worker's process, with its own process group, so that its children are killed with it."""
        command = [str(interpreter()), "-u", str(worker), str(self.work / "request.json")]
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=self.work,
                env=_environ(device),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
            process.wait()

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        """Read the journal until the worker ends. Raises _ContractError after the timeout without a new line."""
        timeout = float(os.environ.get("PW_VBENCH_TIMEOUT") or 3600)
        last_message, rest = time.monotonic(), b""
        with self.journal.open("rb") as journal:
            while True:
                is_ended = process.poll() is not None  # before reading, so that the last lines are read, too
                *lines, rest = (rest + journal.read()).split(b"\n")
                for line in lines:
                    last_message = time.monotonic()
                    self._handle_line(line)
                if is_ended:
                    return
                if time.monotonic() - last_message > timeout:
                    raise _ContractError(f"wrote nothing for {timeout:.0f} s (PW_VBENCH_TIMEOUT) and was stopped")
                time.sleep(0.1)

    def _handle_line(self, line: bytes) -> None:
        """Handle one line of the journal. Raises _ContractError for an invalid line."""
        try:
            message = json.loads(line)
            if not self.has_header:
                if message["schema"] != SCHEMA:
                    raise _ContractError(f"writes schema {message['schema']}, expected {SCHEMA}")
                self.has_header = True
                return
            name = message["dimension"]
            if name not in self.names:
                raise _ContractError(f"writes of {name}, which was not requested")
            if "failed" in message:
                self.failed[name] = str(message["failed"])
                videos = list(self.videos)
            else:
                self._handle_value(name, message)
                videos = [message["video"]]
        except (ValueError, TypeError, KeyError) as error:
            raise _ContractError(f"writes an invalid line: {line[:200].decode(errors='replace')}") from error
        for video in videos:
            self._finish(video)

    def _handle_value(self, name: str, message: Mapping[str, Any]) -> None:
        video, value = message["video"], message["value"]
        if video not in self.videos:
            raise _ContractError(f"writes of {video}, which was not requested")
        if value is not None and not abs(value) <= LARGEST:
            raise _ContractError(f"gives {Path(video).name} a {name} of {value}, which is no value of VBench")
        if value is None and message["error"]:
            self.errors.setdefault(name, {})[video] = str(message["why"])
        self.journal_values[video][name] = value

    def _finish(self, video: str) -> None:
        """Call `on_video` once, as soon as a video has a value or a failure for every dimension."""
        values = self.journal_values[video]
        if video not in self.finished and all(name in values or name in self.failed for name in self.names):
            self.finished.add(video)
            self.on_video(self.videos[video], {name: value for name, value in values.items() if value is not None})

    def _check_result(self, status: int) -> None:
        """Raises _ContractError unless the exit status is 0 and the result equals the journal."""
        if status:
            status_text = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
            raise _ContractError(f"{status_text} after {len(self.finished)} of {len(self.videos)} videos")
        try:
            result = json.loads(self.out.read_text(encoding="utf-8"))
            if result["schema"] != SCHEMA:
                raise _ContractError(f"writes schema {result['schema']}, expected {SCHEMA}")
            results = {name: result["results"].get(name, {}).get("per_video", {}) for name in self.names}
        except FileNotFoundError:
            raise _ContractError("ended with exit status 0, but without a result") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _ContractError(f"writes an invalid result ({type(error).__name__}: {error})") from error
        for name in [name for name in self.names if name not in self.failed]:
            journal = {video: values[name] for video, values in self.journal_values.items() if name in values}
            if len(journal) < len(self.videos):
                raise _ContractError(f"measured {name} on {len(journal)} of {len(self.videos)} videos only")
            if results[name] != {video: value for video, value in journal.items() if value is not None}:
                raise _ContractError(f"gives other values of {name} in its result than in its journal")

    def _tail(self) -> str:
        """The last lines of the worker's log, without the progress bars."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        lines = [line.rstrip()[:200] for line in text.splitlines() if line.strip() and "it/s]" not in line]
        return "\n".join(lines[-10:]) or "(empty)"


def _environ(device: str) -> dict[str, str]:
    """The worker's environment variables: without our Python path, and with only the requested GPU visible."""
    excluded = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environ = {key: value for key, value in os.environ.items() if key not in excluded}
    environ["PYTHONWARNINGS"] = "ignore"  # the log's last lines are what an error shows
    kind, _, index = device.partition(":")
    visible = [gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if kind == "cpu":
        environ["CUDA_VISIBLE_DEVICES"] = ""
    elif index:
        environ["CUDA_VISIBLE_DEVICES"] = visible[int(index)] if visible else index
    return environ
