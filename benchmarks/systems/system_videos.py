"""Generating a system's videos: what is asked is checked first, then made one by one, each kept as it is done."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from benchmarks.systems import Diffusers, ExternalCommand, GenerationError, PixelWizard
from benchmarks.systems.generation_call import Call
from benchmarks.systems.gpu_processes import environment, process_group, processes, same_everywhere
from benchmarks.systems.jobs import VideoJob, is_done, note, write_asked
from pw.io.files import write_atomically
from pw.io.paths import ROOT, commit_of
from pw.io.progress import Pace, duration


class Maker(Protocol):
    """What makes videos, loaded and ready."""

    about: dict[str, Any]

    def make(self, job: VideoJob, work: Path) -> tuple[Path, dict[str, Any]]:
        """A finished, checked video below (or outside) `work`, and what is to be noted. Raises GenerationError."""
        ...


def generate(call: Call, say: Callable[[str], None]) -> list[str]:
    """Make what is missing; what went wrong, a line for each video that could not be made.

    Stops at the first failure as long as nothing has succeeded: then it is the call, not the video, that is wrong.
    Raises: ConfigError for what is wrong with the call, GenerationError for the first failure.
    """
    prepare_folder(call)
    todo = missing(call)
    share = "" if call.options.shard[1] == 1 else f" (share {call.options.shard[0] + 1} of {call.options.shard[1]})"
    say(f"{call.system.title}: {call.setting}; {len(todo)} of {len(call.share)} to make in {call.out}{share}")
    if not todo:
        return []
    with process_group(call) as (rank, world):
        if world > 1:
            todo = same_everywhere(todo)
            return _in_step(call, _maker(call), todo, rank, world, say)
        return _one_by_one(call, todo, say)


def prepare_folder(call: Call) -> None:
    """The folder with its card and its list of jobs."""
    write_atomically(call.out / "card.yaml", call.card.read_text(encoding="utf-8"))
    if call.options.shard[0] == 0 and int(os.environ.get("RANK", "0")) == 0:
        write_asked(call.out, call.jobs)


def missing(call: Call) -> list[VideoJob]:
    """This process's jobs that are not done. Raises ConfigError when the folder holds videos of another setting."""
    return [job for job in call.share if not is_done(call.out, job, call.asked(job))]


def _one_by_one(call: Call, todo: Sequence[VideoJob], say: Callable[[str], None]) -> list[str]:
    if not todo:
        return []
    maker, failures, pace = _maker(call, todo), [], Pace()
    for number, job in enumerate(todo, 1):
        try:
            with _claimed(call, job) as is_ours:
                if not is_ours:
                    say(f"{number}/{len(todo)}  {job.stem}: another call makes it")
                    continue
                path = _make_one(call, maker, job)
        except GenerationError as error:
            failures.append(f"{job.stem}: {error}")
            if len(failures) == number:
                raise GenerationError(failures[0]) from error
            say(f"{number}/{len(todo)}  could not be made: {failures[-1]}")
            continue
        left, each = pace.left(number, len(todo)), duration(1 / pace.rate(number))
        say(f"{number}/{len(todo)}  {path.name}, {each} a video, about {left} left")
    return failures


def _in_step(
    call: Call, maker: Maker, todo: Sequence[VideoJob], rank: int, world: int, say: Callable[[str], None]
) -> list[str]:
    """A video of its own for each process, all at the same time; at the end some make one that is not kept."""
    for start in range(0, len(todo), world):
        mine = start + rank
        with _claimed(call, todo[mine]) if mine < len(todo) else nullcontext(False) as is_ours:
            if is_ours:
                path = _make_one(call, maker, todo[mine])
                say(f"{mine + 1}/{len(todo)}  {path.name}")
            else:
                with _work(call, todo[-1], f"spare-{rank}") as work:
                    maker.make(todo[-1], work)
    return []


@contextmanager
def _claimed(call: Call, job: VideoJob) -> Generator[bool]:
    """Whether a job is ours to make: no other call is at it, nor has it been made since we looked."""
    from filelock import FileLock, Timeout

    lock = FileLock(call.out / ".locks" / _short(job.stem), timeout=0)
    Path(lock.lock_file).parent.mkdir(exist_ok=True)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield not is_done(call.out, job, call.asked(job))
    finally:
        lock.release()


def _make_one(call: Call, maker: Maker, job: VideoJob) -> Path:
    """A video in its place, then its note: a reader sees both or neither is counted."""
    with _work(call, job) as work:
        video, about = maker.make(job, work)
        target = call.out / "videos" / f"{job.stem}{video.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        video.replace(target)
        content = {
            "system": call.system.name,
            "video": target.name,
            **call.asked(job),
            "encoding": _encoding(call),
            "processes": processes(call),
            **maker.about,
            **about,
            "licence": call.system.licence.name,
            "native": dataclasses.asdict(call.system.setting),
            "deviations": call.deviations,
        }
        content.setdefault("command", [sys.executable, "-m", "pw", "system", *call.words])
        if "commit" not in content:
            content["commit"], content["dirty"] = commit_of(ROOT)
        write_atomically(note(call.out, job), f"{json.dumps(content, indent=1, ensure_ascii=False)}\n")
    return target


@contextmanager
def _work(call: Call, job: VideoJob, what: str = "") -> Generator[Path]:
    """An empty folder for one video, on the disk of the result, gone afterwards."""
    work = call.out / "work" / _short(f"{job.stem}{what}")
    shutil.rmtree(work, ignore_errors=True)
    work.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def _maker(call: Call, todo: Sequence[VideoJob] = ()) -> Maker:
    """What makes the videos. Raises ConfigError for weights that are not there."""
    system, setting = call.system, call.setting
    if isinstance(system.adapter, Diffusers):
        from benchmarks.systems.diffusers_pipelines import Pipelines

        assert call.weights is not None
        kind = call.device, bool(call.options.offload), call.lossless, call.quality
        return Pipelines(system, setting, call.weights, *kind, sharded=call.is_fsdp)
    if isinstance(system.adapter, PixelWizard):
        maker = _pixelwizard(call)
        maker.prepare(todo, environment())
        return maker
    return _external(call)


def _pixelwizard(call: Call) -> Any:
    from benchmarks.systems.pixelwizard_system import PixelWizardGeneration

    further = [*call.further, *([f"trainer.devices={call.options.gpus}"] if call.is_split else [])]
    return PixelWizardGeneration(
        call.system, call.setting, further, call.weights, call.lossless, call.quality, call.out
    )


def _external(call: Call) -> Any:
    from benchmarks.systems.external import External

    checkout = (call.options.checkout or Path()).absolute()
    usual = checkout / ".venv" / "bin" / "python"
    python = _from_here(call.options.python or (str(usual) if usual.is_file() else "python"))
    weights = None if call.weights is None else _from_here(call.weights)
    timeout = None if call.options.timeout is None else float(call.options.timeout)
    return External(call.system, call.setting, checkout, python, weights, timeout, call.out / "logs")


def _from_here(path: str) -> str:
    """An absolute path of what is there (the command runs in its checkout), else the word itself: a name to look up."""
    found = Path(path).expanduser()
    return str(found.absolute()) if found.exists() else path


def commands(call: Call) -> Iterator[str]:
    """What would be run, a line each."""
    import shlex

    todo = missing(call) if (call.out / "jobs").is_dir() else list(call.share)
    if isinstance(call.system.adapter, PixelWizard) and todo:
        yield shlex.join(_pixelwizard(call).command(todo))
        return
    for job in todo:
        if isinstance(call.system.adapter, ExternalCommand):
            work = call.out / "work" / hashlib.sha256(job.stem.encode()).hexdigest()[:16]
            yield shlex.join(_external(call).program(job, work).words)
        else:
            assert isinstance(call.system.adapter, Diffusers)
            yield f"{call.system.adapter.pipeline}({call.weights}), seed {job.seed}: {job.text}"


def _encoding(call: Call) -> dict[str, Any]:
    return {"codec": "ffv1"} if call.lossless else {"codec": "h264", "crf": call.quality}
