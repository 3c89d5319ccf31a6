"""`pw system`: make, or register, the videos of a system of the paper's tables.

    pw system                                   the systems there are
    pw system name=NAME prompts=FILE [key=value …]

What a system needs beside prompts depends on its kind: `videos=DIR` registers videos that are there, PixelWizard takes
whatever else `pw generate` takes (`hires=… anchor=…`), a program of its own `checkout=DIR`.

What is asked is checked first, then made video by video, each kept as it is done.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from benchmarks.systems import Diffusers, ExternalCommand, GenerationError, PixelWizard, System, find, load, names
from benchmarks.systems.diffusers_pipelines import Pipelines
from benchmarks.systems.external import External, PixelWizardGeneration
from benchmarks.systems.generation_call import Call, SystemOptions, checked_call
from benchmarks.systems.gpu_processes import process_group, spread_over_gpus
from benchmarks.systems.jobs import VideoJob, is_done, make_jobs, note, read_prompts, register, write_asked
from pw.io.arguments import Command, ConfigError, to_words
from pw.io.files import write_atomically
from pw.io.paths import OUTPUTS, ROOT, commit_of
from pw.io.progress import Pace, duration
from pw.io.video import VideoError

Maker = Pipelines | PixelWizardGeneration | External


def run(options: SystemOptions) -> int:
    """Exit status: 0 done, 1 some videos could not be made."""
    if options == SystemOptions():
        print("\n".join(_list([load(name) for name in names()])))
        return 0
    if options.videos is not None:
        return _register(options, options.videos)
    call = checked_call(options)
    if options.dry_run:
        print("\n".join(commands(call)))
        return 0
    if options.gpus > 1 and not call.is_split:
        if not call.is_fsdp:
            prepare_folder(call)
        return spread_over_gpus(call)
    try:
        failures = generate(call)
    except (GenerationError, VideoError) as error:
        failures = [str(error)]
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


main = Command(SystemOptions, run, resume_hint="what is finished is kept, the same command goes on from here")


def _list(systems: Sequence[System]) -> list[str]:
    rows = [("name", "kind", "size", "frames@fps", "steps", "licence", "rows")]
    for system in systems:
        (size, frames, fps), steps, licence = system.setting.shown(), system.setting.steps, system.licence
        rows.append(
            (
                *(system.name, system.kind, size, f"{frames}@{fps}", "–" if steps is None else str(steps)),
                f"{licence.name}{' (must be accepted)' if licence.restricted else ''}",
                " ".join(system.rows) or "–",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _register(options: SystemOptions, directory: Path) -> int:
    allowed = dict.fromkeys(("name", "videos", "out", "prompts", "seeds"))
    rest = dataclasses.replace(options, **{key: getattr(SystemOptions(), key) for key in allowed})
    if others := [word.partition("=")[0] for word in to_words(rest)]:
        raise ConfigError(f"{', '.join(sorted(others))}: with videos=DIR there are name, out, prompts and seeds")
    system = load(options.name)
    jobs = None if options.prompts is None else make_jobs(read_prompts(options.prompts), options.seeds)
    out = (options.out or OUTPUTS / "systems" / system.name).absolute()
    registered = register(find(options.name), system, directory, out, jobs)
    print(f"{len(registered['present'])} videos of {system.title} are registered in {out}")
    for file, why in registered["wrong"]:
        print(f"left out: {directory / file}: {why.rpartition(f'{file}: ')[2]}")
    if any(", asked " in why for _, why in registered["wrong"]):
        print(f"the card of {system.title}: {system.setting}")
    for what, key in (("missing", "missing"), ("not asked for", "unasked")):
        if stems := registered[key]:
            print(f"{what}: {len(stems)}: {', '.join(stems[:5])}{' …' if len(stems) > 5 else ''}")
    return 1 if registered["wrong"] or registered["missing"] else 0


def generate(call: Call) -> list[str]:
    """Make what is missing; what went wrong, a line for each video that could not be made.

    Stops at the first failure as long as nothing has succeeded: then it is the call, not the video, that is wrong.
    Raises: ConfigError for what is wrong with the call, GenerationError for the first failure.
    """
    prepare_folder(call)
    todo = missing(call)
    share = "" if call.options.shard[1] == 1 else f" (share {call.options.shard[0] + 1} of {call.options.shard[1]})"
    _say(f"{call.system.title}: {call.setting}; {len(todo)} of {len(call.share)} to make in {call.out}{share}")
    if not todo:
        return []
    with process_group(call, todo) as (rank, world, todo):
        if world > 1:
            return _in_step(call, _maker(call, todo), todo, rank, world)
        return _one_by_one(call, todo)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def prepare_folder(call: Call) -> None:
    write_atomically(call.out / "card.yaml", call.card.read_text(encoding="utf-8"))
    if call.options.shard[0] == 0 and int(os.environ.get("RANK", "0")) == 0:
        write_asked(call.out, call.jobs)


def missing(call: Call) -> list[VideoJob]:
    """This process's jobs that are not done. Raises ConfigError when the folder holds videos of another setting."""
    return [job for job in call.share if not is_done(call.out, job, call.asked(job))]


def commands(call: Call) -> Iterator[str]:
    """What would be run, a line each."""
    todo = missing(call) if (call.out / "jobs").is_dir() else list(call.share)
    if not todo:
        return
    match call.system.adapter:
        case PixelWizard():
            yield shlex.join(PixelWizardGeneration(call).command(todo))
        case ExternalCommand():
            program = External(call)
            yield from (shlex.join(program.words(job, _work_folder(call, job))) for job in todo)
        case Diffusers(pipeline=pipeline):
            yield from (f"{pipeline}({call.weights}), seed {job.seed}: {job.text}" for job in todo)


def _maker(call: Call, todo: Sequence[VideoJob]) -> Maker:
    """What makes the videos, loaded and ready. Raises ConfigError for weights that are not there."""
    match call.system.adapter:
        case PixelWizard():
            maker = PixelWizardGeneration(call)
            maker.prepare(todo)
            return maker
        case ExternalCommand():
            return External(call)
        case _:
            return Pipelines(call)


def _one_by_one(call: Call, todo: Sequence[VideoJob]) -> list[str]:
    maker, failures, pace = _maker(call, todo), [], Pace()
    for number, job in enumerate(todo, 1):
        try:
            with _claimed(call, job) as is_ours:
                if not is_ours:
                    _say(f"{number}/{len(todo)}  {job.stem}: another call makes it")
                    continue
                path = _make_one(call, maker, job)
        except (GenerationError, VideoError) as error:
            failures.append(f"{job.stem}: {error}")
            if len(failures) == number:
                raise GenerationError(failures[0]) from error
            _say(f"{number}/{len(todo)}  could not be made: {failures[-1]}")
            continue
        left, each = pace.time_left(number, len(todo)), duration(1 / pace.rate(number))
        _say(f"{number}/{len(todo)}  {path.name}, {each} a video, about {left} left")
    return failures


def _in_step(call: Call, maker: Maker, todo: Sequence[VideoJob], rank: int, world: int) -> list[str]:
    """A video of its own for each process, all at the same time; at the end some make one that is not kept."""
    for start in range(0, len(todo), world):
        mine = start + rank
        with _claimed(call, todo[mine]) if mine < len(todo) else nullcontext(False) as is_ours:
            if is_ours:
                path = _make_one(call, maker, todo[mine])
                _say(f"{mine + 1}/{len(todo)}  {path.name}")
            else:
                with _work(call, todo[-1], f"spare-{rank}") as work:
                    maker.make(todo[-1], work)
    return []


@contextmanager
def _claimed(call: Call, job: VideoJob) -> Generator[bool]:
    """Whether a job is ours to make: no other call is at it, nor has it been made since we looked."""
    from filelock import FileLock, Timeout

    lock = call.out / ".locks" / _short(job.stem)
    lock.parent.mkdir(exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(lock, timeout=0))
        except Timeout:
            yield False
            return
        yield not is_done(call.out, job, call.asked(job))


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
            "encoding": {"codec": "ffv1"} if call.lossless else {"codec": "h264", "crf": call.quality},
            "processes": int(os.environ.get("WORLD_SIZE", "1")) if call.is_fsdp else 1,  # that share the model
            **maker.about,
            **about,
            "licence": call.system.licence.name,
            "native": dataclasses.asdict(call.system.setting),
            "deviations": call.deviations,
        }
        words = call.words(call.options.gpus, *call.options.shard)
        content.setdefault("command", [sys.executable, "-m", "pw", "system", *words])
        if "commit" not in content:
            content["commit"], content["dirty"] = commit_of(ROOT)
        write_atomically(note(call.out, job), f"{json.dumps(content, indent=1, ensure_ascii=False)}\n")
    return target


@contextmanager
def _work(call: Call, job: VideoJob, what: str = "") -> Generator[Path]:
    """An empty folder for one video, on the disk of the result, gone afterwards."""
    work = _work_folder(call, job, what)
    shutil.rmtree(work, ignore_errors=True)
    work.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _work_folder(call: Call, job: VideoJob, what: str = "") -> Path:
    return call.out / "work" / _short(f"{job.stem}{what}")


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
