"""Passes the curves and samples of running trainings on to their stores, in a process of its own.

    runner  --(begin, end, close)-->  relay  --(Lightning's logger)-->  MLflow, W&B, TensorBoard
                                        ^
    training  --(metrics.jsonl, diagnostics.jsonl, samples/)

A store that is slow, locked or gone costs a training nothing: the relay tries again, at longer and longer intervals,
from the files. What was passed on is in `tracked.json` beside them, so a resumed training continues the same run. The
relay ends with its runner, even if that is killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pw.io.files import digest, parse_json, read_json, write_json
from pw.tracking.curves import CURVES, SAMPLES
from pw.tracking.loggers import Live

POLL = 2.0  # seconds
LONGEST_WAIT = 120.0  # between two attempts
AFTER_RUNNER = 20.0  # seconds for the rest, when the runner is gone
STATE = "tracked.json"


@dataclass
class Followed:
    """A training that is followed: how far each of its files was passed on."""

    live: Live
    tracking: Any  # pw.run.settings.Tracking, with the methods of `pw.tracking.loggers`
    outputs: Path
    status: str = ""  # at its end: success, failed or KILLED
    added: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)  # (step, values) that are in no file
    logger: Any = None
    lock: FileLock | None = None  # while there is a logger
    state: dict[str, Any] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)  # file -> bytes that were passed on

    def forward(self) -> None:
        """Pass on what is new. Raises whatever the store raises; then nothing is lost."""
        lines = self._new_lines()
        videos = self._new_videos()
        if self.logger is None:
            if not (lines or videos or self.added or self._is_resumed()) or not self._is_ours():
                return
            self._open()
            lines = self._new_lines()
        for step, values in lines:
            self.logger.log_metrics(values, step)
            self.state["step"] = step
        while self.added:
            step, values = self.added[0]
            self.logger.log_metrics(values, step)
            del self.added[0]
        for file in videos:
            name = file.parent.name
            step = int(name.rpartition("-")[2]) if "-" in name else 0
            self.tracking.add_video(self.logger, file, f"{SAMPLES}/{name}", step)
            self.state["videos"].append(str(file.relative_to(self.live.folder)))
        if lines or videos:
            self._write_state()
        if self.status:
            self.tracking.close(self.logger, self.status)
            self.state["ended"] = self.status
            self._write_state()
            if self.lock is not None:
                self.lock.release()

    def _is_ours(self) -> bool:
        """Whether no relay of another runner, which trains what this one waits for, passes it on."""
        if self.lock is None and self.live.folder.is_dir():
            self.lock = FileLock(self.live.folder / ".tracked.lock")
        with suppress(Timeout):
            if self.lock is not None and not self.lock.is_locked:
                self.lock.acquire(timeout=AFTER_RUNNER if self.status == "success" else 0.0)
        return self.lock is None or self.lock.is_locked

    def _is_resumed(self) -> bool:
        """Whether a training ended after all that an earlier call had passed on."""
        earlier = read_json(self.live.folder / STATE) or {}
        return bool(self.status) and earlier.get("store") == self._store() and earlier.get("ended") != self.status

    def _store(self) -> str:
        return digest([type(self.tracking).__name__, repr(self.tracking), self.live.experiment, self.live.name])

    def _write_state(self) -> None:
        if self.live.folder.is_dir():  # else only its scores are here
            write_json(self.live.folder / STATE, self.state)

    def _open(self) -> None:
        store = self._store()
        earlier = read_json(self.live.folder / STATE) or {}
        identity = earlier.get("identity") if earlier.get("store") == store else None
        self.logger, opened = self.tracking.open(self.live, self.outputs, identity)
        is_same = identity is not None and opened == identity
        self.state = earlier if is_same else {"store": store, "identity": opened, "step": -1, "videos": []}
        self.state.pop("ended", None)
        self._write_state()  # at once: a kill would leave a run without one that goes on with it

    def _new_lines(self) -> list[tuple[int, dict[str, float]]]:
        """(step, values), in order, of the whole lines after the last step."""
        points: dict[int, dict[str, float]] = {}
        last = self.state.get("step", -1)
        for name, prefix in CURVES.items():
            with suppress(OSError):
                for step, values in self._lines_after(self.live.folder / name, last):
                    points.setdefault(step, {}).update({f"{prefix}{key}": value for key, value in values.items()})
        newest = max(points, default=-1)
        is_over = bool(self.status)  # a line of the newest step may still come from the other file
        return sorted((step, values) for step, values in points.items() if is_over or step < newest)

    def _lines_after(self, file: Path, last: int) -> Iterator[tuple[int, dict[str, float]]]:
        """The lines of a file after a step, and only its bytes from there on."""
        start = self.offsets.get(file.name, 0)
        start = start if start <= file.stat().st_size else 0  # a resumed training has cut it
        with file.open("rb") as content:
            content.seek(start)
            lines = content.readlines()
        is_passed = True
        for line in lines:
            step = last + 1  # of a line that is cut off, which is read again
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                values = parse_json(line)
                step = int(values.pop("step"))
                if step > last:
                    yield step, values
            is_passed = is_passed and step <= last
            start += len(line) * is_passed
        self.offsets[file.name] = start

    def _new_videos(self) -> list[Path]:
        files = sorted((self.live.folder / SAMPLES).glob("*/clip-*.mp4"))
        return [f for f in files if str(f.relative_to(self.live.folder)) not in self.state.get("videos", ())]


class Relay:
    """Follows the trainings of a runner until it says `close`, or is gone."""

    def __init__(self, outputs: Path, runner: Connection) -> None:
        self.outputs, self.runner = outputs, runner
        self.followed: dict[Path, Followed] = {}
        self.problem = ""  # why the last attempt failed
        self.wait, self.next_attempt = POLL, 0.0

    def run(self) -> None:
        while self._listen():
            if time.monotonic() >= self.next_attempt:
                self._forward()
        self._answer(None)
        self._forward(is_last=True)
        self._answer(self.problem)

    def _answer(self, problem: str | None) -> None:
        with suppress(OSError):
            self.runner.send(problem)

    def _listen(self) -> bool:
        """Take the messages of one poll; False at the end."""
        try:
            end = time.monotonic() + POLL
            while self.runner.poll(max(0.0, end - time.monotonic())):
                kind, content = self.runner.recv()
                if kind == "begin":
                    live, tracking = content
                    self.followed[live.folder] = Followed(live, tracking, self.outputs)
                elif kind == "add":
                    live, tracking, values, step = content
                    known = self.followed.get(live.folder) or Followed(live, tracking, self.outputs, "success")
                    known.added.append((step, values))
                    self.followed[live.folder] = known
                elif kind == "end" and content[0] in self.followed:
                    self.followed[content[0]].status = content[1]
                elif kind == "close":
                    return False
        except (EOFError, OSError):  # the runner was killed
            signal.alarm(int(AFTER_RUNNER))
            for followed in self.followed.values():
                is_done = (followed.live.folder / "done.json").exists()
                followed.status = followed.status or ("success" if is_done else "KILLED")
            return False
        return True

    def _forward(self, *, is_last: bool = False) -> None:
        problems: list[str] = []
        for folder, followed in list(self.followed.items()):
            try:
                followed.forward()
            except Exception as error:
                first_line = str(error).strip().partition("\n")[0][:300]
                problems.append(f"{type(error).__name__}: {first_line}")
                print(f"{time.strftime('%F %T')} {followed.live.name}: {problems[-1]}", file=sys.stderr, flush=True)
                self.followed[folder] = self.followed.pop(folder)  # behind the others: what fails may be its own
                if len(problems) == 2:  # what fails is the store
                    break
                continue
            if followed.status:
                del self.followed[folder]
            if is_last:
                self._answer(None)  # a sign of life
        self.problem = problems[0] if problems else ""
        self.wait = min(LONGEST_WAIT, 2 * self.wait) if problems else POLL
        self.next_attempt = time.monotonic() + self.wait if problems else 0.0


def main() -> None:
    """Called by `pw.tracking.live` with the number of a socket and the outputs folder."""
    os.nice(5)
    warnings.simplefilter("ignore")
    Relay(Path(sys.argv[2]), Connection(int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
