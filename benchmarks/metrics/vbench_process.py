"""One run of VBench's worker: it is started, its journal followed, and its result checked against the contract.

The contract is the docstring of `benchmarks/measure/vbench_worker.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
LARGEST = 2  # cosines may be a little below 0, and LAION's predictor above 10: this finds another scale, and NaN
Done = Callable[[Path, Mapping[str, float]], None]


class _Broken(Exception):
    """The worker did not keep to its contract; the message says how."""


@dataclass
class WorkerRun:
    """One worker at work: what it was asked, and what it has said so far."""

    paths: Sequence[Path]
    names: list[str]
    work: Path
    python: Path
    done: Done
    failed: dict[str, str] = field(default_factory=dict)
    errors: dict[str, dict[str, str]] = field(default_factory=dict)
    reported: dict[str, dict[str, float | None]] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    began: bool = False

    def __post_init__(self) -> None:
        self.videos = {str(path.absolute()): path for path in self.paths}
        self.reported = {video: {} for video in self.videos}
        self.out, self.log = self.work / "result.json", self.work / "worker.log"
        self.journal = Path(f"{self.out}.journal")

    def measure(self, request: Mapping[str, Any], device: str, worker: Path) -> dict[str, str]:
        """Run the worker to its end. Returns dimension -> why it, or some of its videos, have no value."""
        (self.work / "request.json").write_text(json.dumps(request), encoding="utf-8")
        try:
            with self._started(worker, device) as process:
                self._follow(process)
            self._check_result(process.returncode)
        except _Broken as error:
            names = [name for name in self.names if name not in self.failed]
            why = dict.fromkeys(names, f"VBench's worker {error}")
            if names:
                why[names[0]] += f"; the end of its log:\n{self._tail()}"
            return {**self.failed, **why}
        for name, errors in self.errors.items():
            video, why = next(iter(errors.items()))
            text = f"{name} failed on {len(errors)} of {len(self.videos)} videos: {Path(video).name}: {why}"
            self.failed.setdefault(name, text)
        return self.failed

    @contextmanager
    def _started(self, worker: Path, device: str) -> Generator[subprocess.Popen[bytes]]:
        """The worker's process, in a group of its own so that what it starts ends with it."""
        command = [str(self.python), "-u", str(worker), str(self.work / "request.json")]
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
        """Take in the journal as it grows, until the worker ends. Raises _Broken if it is silent for too long."""
        timeout = float(os.environ.get("PW_VBENCH_TIMEOUT") or 3600)
        read, heard = 0, time.monotonic()
        while True:
            ended = process.poll() is not None  # asked before reading: what it wrote last is read too
            text = _read_from(self.journal, read)
            whole = text.rpartition(b"\n")[0]
            if whole:
                read, heard = read + len(whole) + 1, time.monotonic()
                for line in whole.split(b"\n"):
                    self._take(line)
            if ended:
                return
            if time.monotonic() - heard > timeout:
                raise _Broken(f"said nothing for {timeout:.0f} s (PW_VBENCH_TIMEOUT) and was ended")
            time.sleep(0.1)

    def _take(self, line: bytes) -> None:
        """One line of the journal. Raises _Broken if it makes no sense."""
        try:
            said = json.loads(line)
            if not self.began:
                if said["schema"] != SCHEMA:
                    raise _Broken(f"writes schema {said['schema']}, {SCHEMA} is understood")
                self.began = True
                return
            name = said["dimension"]
            if name not in self.names:
                raise _Broken(f"writes of {name}, which was not asked for")
            if "failed" in said:
                self.failed[name] = str(said["failed"])
                waiting = list(self.videos)
            else:
                self._take_value(name, said)
                waiting = [said["video"]]
        except (ValueError, TypeError, KeyError) as error:
            raise _Broken(f"writes nonsense: {line[:200].decode(errors='replace')}") from error
        for video in waiting:
            self._finish(video)

    def _take_value(self, name: str, said: Mapping[str, Any]) -> None:
        video, value = said["video"], said["value"]
        if video not in self.videos:
            raise _Broken(f"writes of {video}, which was not asked for")
        if value is not None and not abs(value) <= LARGEST:
            raise _Broken(f"gives {Path(video).name} a {name} of {value}, which no value of VBench is")
        if value is None and said["error"]:
            self.errors.setdefault(name, {})[video] = str(said["why"])
        self.reported[video][name] = value

    def _finish(self, video: str) -> None:
        """Hand a video's values on, once, when all that it can have are there."""
        values = self.reported[video]
        if video not in self.finished and all(name in values or name in self.failed for name in self.names):
            self.finished.add(video)
            self.done(self.videos[video], {name: value for name, value in values.items() if value is not None})

    def _check_result(self, status: int) -> None:
        """Raises _Broken unless the worker ended well and its result holds what its journal held."""
        if status:
            ended = f"was ended by signal {-status}" if status < 0 else f"ended with exit status {status}"
            raise _Broken(f"{ended} after {len(self.finished)} of {len(self.videos)} videos")
        try:
            result = json.loads(self.out.read_text(encoding="utf-8"))
            if result["schema"] != SCHEMA:
                raise _Broken(f"writes schema {result['schema']}, {SCHEMA} is understood")
            results = {name: result["results"].get(name, {}).get("per_video", {}) for name in self.names}
        except FileNotFoundError:
            raise _Broken("ended with exit status 0, but without a result") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _Broken(f"writes a result that makes no sense ({type(error).__name__}: {error})") from error
        for name in [name for name in self.names if name not in self.failed]:
            journal = {video: values[name] for video, values in self.reported.items() if name in values}
            if len(journal) < len(self.videos):
                raise _Broken(f"measured {name} on {len(journal)} of {len(self.videos)} videos only")
            if results[name] != {video: value for video, value in journal.items() if value is not None}:
                raise _Broken(f"gives other values of {name} in its result than it gave on the way")

    def _tail(self) -> str:
        """The last lines of the worker's log, without the progress bars."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        lines = [line.rstrip()[:200] for line in text.splitlines() if line.strip() and "it/s]" not in line]
        return "\n".join(lines[-10:]) or "(empty)"


def _read_from(path: Path, start: int) -> bytes:
    """What a growing file has from there on; nothing if it is not there yet."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read()
    except FileNotFoundError:
        return b""


def _environ(device: str) -> dict[str, str]:
    """The worker's environment: nothing of ours on its path, and of the GPUs the one that it is to use."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environ = {key: value for key, value in os.environ.items() if key not in ours}
    environ["PYTHONWARNINGS"] = "ignore"  # the log's last lines are what an error shows
    kind, _, index = device.partition(":")
    visible = [gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if kind == "cpu":
        environ["CUDA_VISIBLE_DEVICES"] = ""
    elif index:
        environ["CUDA_VISIBLE_DEVICES"] = visible[int(index)] if visible else index
    return environ
