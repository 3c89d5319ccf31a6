"""A run that another revision of the code makes: planned by its answers, made by a process of it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiments.engine.revisions import in_revision
from experiments.engine.revisions.checkout import Revision
from pw.io.arguments import ConfigError
from pw.io.command_line import command_line
from pw.io.progress import Progress
from pw.parallel.launch import LOG, REPORT, ProcessFailed
from pw.parallel.signals import Stopped, handle_stop_signals
from pw.parallel.team import PLACE, STORE
from pw.run import code
from pw.run.build import Card, Run
from pw.run.compose import Config

OLDEST = "95fe224 of 2026-11-29, from which on results have checksums (D83)"  # of the supported revisions
OURS = (REPORT, LOG, PLACE, STORE)  # environment variables for this process alone


def _answered(key: str) -> Any:
    """The property of a run that its revision has told."""
    return property(lambda self: self.answer[key])


@dataclass(frozen=True)
class RevisionRun(Run):
    """A run as another revision makes it. Its configuration and signatures are that revision's answer.

    stand_in  the run that the current code makes of the same words: what is planned with (sizes, devices, cost)
    words     from which the revision builds it, or the run that it is a part of at `path`, such as ("start_run",)
    """

    revision: Revision = field(kw_only=True)
    stand_in: Run = field(kw_only=True, repr=False)
    answer: Mapping[str, Any] = field(kw_only=True, repr=False)
    words: tuple[str, ...] = field(kw_only=True)
    path: tuple[str, ...] = field(kw_only=True, default=())

    @classmethod
    def of(cls, stand_in: Run, **values: Any) -> RevisionRun:
        """The run for a `stand_in` and the `answer`, `revision`, `words` and `path`."""
        config, card = values["answer"]["config"], values["answer"]["card"]
        known: dict[str, Any] = {field.name: getattr(stand_in, field.name) for field in fields(Run)}
        known["config"] = Config(config["values"], config["choices"], tuple(config["overrides"]))
        known["card"] = card and replace(Card(**card), file=Path(card["file"]))
        return cls(**known, stand_in=stand_in, **values)

    training_signature = _current_signature = _answered("training_signature")
    configuration_signature = _answered("configuration_signature")
    degradation_signature = _answered("degradation_signature")
    training_code, sampling_code, evaluation_code = map(_answered, in_revision.CODES)
    typed_values = property(lambda self: self.stand_in.typed_values)
    start_run = cached_property(lambda self: self._part("start_run"))
    anchor_run = cached_property(lambda self: self._part("anchor_run"))
    solution = cached_property(lambda self: self._part("solution"))

    def sample_signature(self, evaluation_seed: int) -> str:
        return self.answer["sample_signature"]

    def evaluation_signature(self, evaluation_seed: int) -> str:
        return self.answer["evaluation_signature"]

    def with_values(self, changes: Mapping[str, Any]) -> Run:
        raise NotImplementedError("a revision is asked for a run by its words")

    def _part(self, name: str) -> RevisionRun | None:
        if (answer := self.answer["parts"].get(name)) is None:
            return None
        path, stand_in = (*self.path, name), getattr(self.stand_in, name) or self.stand_in
        return RevisionRun.of(stand_in, answer=answer, revision=self.revision, words=self.words, path=path)

    def command(self, verb: str, *words: str) -> str:
        """The command of the revision that makes this run."""
        if self.revision.is_current:
            return command_line(verb, *words)
        return f"PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(self.revision.folder))} {command_line(verb, *words)}"


def describe(revision: Revision, runs: Sequence[tuple[Sequence[str], int]]) -> list[dict[str, Any]]:
    """What a revision says of the runs with these words and evaluation seeds (`in_revision.answer`), and of the first
    of every words but its seed what computes it (`computed`). Raises ConfigError."""
    arms = [[word for word in words if not word.startswith(("seed=", "start.seed="))] for words, _ in runs]
    request = {
        "kind": "describe",
        "runs": [[words, seed, arms.index(arms[i]) == i] for i, (words, seed) in enumerate(runs)],
        "walker": code.__file__,
    }
    try:
        return _ask(revision, request, subprocess.DEVNULL)["runs"]
    except ProcessFailed as error:
        raise ConfigError(f"code={revision.name}: {error}") from error


def make_elsewhere(
    run: RevisionRun, kind: str, outputs: Path, limit: int, seed: int, progress: Callable[[int, int], None]
) -> None:
    """Train or sample a run by its revision. Its output goes to stderr. Raises ProcessFailed, and Stopped after a
    signal, which is forwarded."""
    signature = run.training_signature if kind == "train" else run.sample_signature(seed)
    request = {"kind": kind, "words": run.words, "path": run.path, "seed": seed, "signature": signature}
    _ask(run.revision, {**request, "outputs": str(outputs), "limit": limit}, None, progress)


@contextmanager
def servers(revisions: Iterable[Revision]) -> Generator[dict[Revision, Revision]]:
    """Inside, a process per revision has all imported and forks others. Yields the revisions with its address."""
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="pw-"))
        served = {}
        for number, revision in enumerate(dict.fromkeys(revisions)):
            process = stack.enter_context(_process(revision, subprocess.DEVNULL))
            stack.callback(process.kill)
            served[revision] = replace(revision, server=f"{folder}/{number}")
            print(json.dumps({"kind": "serve", "path": served[revision].server}), file=process.stdin, flush=True)
            assert process.stdout is not None
            process.stdout.readline()  # ready
        yield served


def _process(revision: Revision, log: int | None) -> subprocess.Popen[str]:
    """A process of a revision, which ends with this one, however that ends."""
    outer = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(revision.folder), *([outer] if outer else [])])
    # the working directory stays, as words may have relative paths, but no code is imported from it
    environment = {key: value for key, value in os.environ.items() if key not in OURS}
    environment |= {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", Path(in_revision.__file__).read_text(encoding="utf-8")]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment, stdin=pipe, stdout=pipe, stderr=log, text=True, start_new_session=True
    )


def _ask(revision: Revision, request: Mapping[str, Any], log: int | None, progress: Progress | None = None) -> Any:
    """The answer of a process of a revision, or of one that its server forks. Raises ProcessFailed and Stopped."""
    if revision.server:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(revision.server)
            socket.send_fds(connection, [b"."], [2])
            return _answer(connection.makefile("w"), connection.makefile(), revision, request, progress)
    with _process(revision, log) as process:
        try:
            return _answer(process.stdin, process.stdout, revision, request, progress)
        finally:
            process.kill()


def _answer(to: Any, answers: Any, revision: Revision, request: Mapping[str, Any], progress: Progress | None) -> Any:
    """Send a request and read what is said of it, to the end. Signals to stop go to the process that answers."""
    received: list[int] = []
    pids: list[int] = []

    def forward(number: int, frame: Any) -> None:
        received.append(number)
        if pids and (len(received) == 1 or number == signal.SIGINT):  # Ctrl-C again ends it without a checkpoint
            with suppress(ProcessLookupError):
                os.kill(pids[0], signal.SIGTERM if len(received) == 1 else signal.SIGKILL)

    with handle_stop_signals(forward), suppress(ConnectionError):
        print(json.dumps(request, default=str), file=to, flush=True)
        for line in answers:
            ((kind, value),) = json.loads(line).items()
            if kind == "process":
                pids.append(value)
            elif kind == "progress" and progress is not None:
                progress(*value)
            elif kind == "done":
                return value
            elif kind == "stopped":
                raise Stopped(value - 128)
            elif kind == "broken" and request["kind"] == "describe":
                commit = f"{value}: commit {revision.commit[:8]} is broken, or older than the oldest that is supported"
                raise ProcessFailed(f"{commit}, {OLDEST}", None)
            elif kind in ("broken", "failed"):
                raise ProcessFailed(value, None)
    if received:
        raise Stopped(received[0])
    raise ProcessFailed(f"the process of {revision.name} was killed (out of memory?)", None)
