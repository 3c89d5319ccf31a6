"""`pw system`: make or register the videos of a system of the paper's tables.

    pw system                                   list the systems
    pw system name=NAME show=true               one card in full
    pw system name=NAME prompts=FILE [key=value …]

Other options depend on the kind of the system: `videos=DIR` registers existing videos, PixelWizard takes the options of
`pw generate` (`hires=… anchor=…`), an external program needs `checkout=DIR`. All options are checked first; then the
videos are made one by one, and each is kept when it is finished.
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
from benchmarks.systems.generation_call import Call, SystemOptions, make_call
from benchmarks.systems.gpu_processes import process_group, spread_over_gpus
from benchmarks.systems.jobs import (
    VideoJob,
    check_names,
    is_done,
    make_jobs,
    note_path,
    read_prompts,
    register,
    write_jobs,
)
from pw.io.arguments import Command, ConfigError, missing_option, to_words
from pw.io.console import print_line, printable
from pw.io.files import write_atomically
from pw.io.paths import OUTPUTS
from pw.io.progress import Pace, duration
from pw.io.video import VideoError
from pw.run.code import suite_version

Maker = Pipelines | PixelWizardGeneration | External


def run(options: SystemOptions) -> int:
    """Exit status: 0 done, 1 some videos failed."""
    if options == SystemOptions():
        print("\n".join(_list([load(name) for name in names()])))
        return 0
    if not options.name:
        message = f"name=: which system? {', '.join(names())}, or a card of your own: a .yaml"
        raise missing_option(SystemOptions, "name", message, options.overrides)
    if options.show:
        print(find(options.name).read_text(encoding="utf-8"), end="")
        return 0
    if options.videos is not None:
        return _register(options, options.videos)
    call = make_call(options)
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
        print_line(f"error: {failure}")
    return 1 if failures else 0


main = Command(SystemOptions, run, resume_hint="finished videos are kept, run the same command again to resume")


def _list(systems: Sequence[System]) -> list[str]:
    rows = [("name", "kind", "size", "frames@fps", "steps", "tables", "licence")]
    for system in systems:
        (size, frames, fps), steps, licence = system.setting.texts(), system.setting.steps, system.licence
        tables = (table.removeprefix("table_").replace("_", ".") for table in system.rows)
        rows.append(
            (
                *(system.name, system.kind, size, f"{frames}@{fps}", "–" if steps is None else str(steps)),
                *(" ".join(tables) or "–", f"{'* ' if licence.restricted else ''}{licence.name}"),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    room = shutil.get_terminal_size().columns
    if max(map(len, lines)) > room:  # of the licence only whether it must be accepted
        start = len(lines[0]) - len("licence")
        lines = [f"{line[:start].rstrip():{start}}{'*' * (line[start:].startswith('* '))}".rstrip() for line in lines]
    return [*lines, "* the licence must be accepted; pw system name=… show=true prints a card in full"]


def _register(options: SystemOptions, directory: Path) -> int:
    allowed = dict.fromkeys(("name", "videos", "out", "prompts", "seeds"))
    other_options = dataclasses.replace(options, **{key: getattr(SystemOptions(), key) for key in allowed})
    if unknown := [word.partition("=")[0] for word in to_words(other_options)]:
        raise ConfigError(f"{', '.join(sorted(unknown))}: with videos=DIR, use only name, out, prompts and seeds")
    system = load(options.name)
    jobs = None if options.prompts is None else make_jobs(read_prompts(options.prompts), options.seeds)
    out = (options.out or OUTPUTS / "systems" / system.name).absolute()
    registered = register(find(options.name), system, directory, out, jobs)
    print(f"{len(registered['present'])} videos of {system.title} are registered in {out}")
    for file, problem in registered["wrong"]:
        print(printable(f"left out: {directory / file}: {problem.rpartition(f'{file}: ')[2]}"))
    if any(", requested " in problem for _, problem in registered["wrong"]):
        print(f"the card of {system.title}: {system.setting}")
    for label, key in (("missing", "missing"), ("unexpected", "unasked")):
        if stems := registered[key]:
            print(printable(f"{label}: {len(stems)}: {', '.join(stems[:5])}{' …' if len(stems) > 5 else ''}"))
    return 1 if registered["wrong"] or registered["missing"] else 0


def generate(call: Call) -> list[str]:
    """Make the missing videos; returns an error message for each video that failed.

    Raises: ConfigError for a wrong call; GenerationError if all videos so far failed, as the call may be wrong.
    """
    prepare_folder(call)
    todo = missing(call)
    share = "" if call.options.shard[1] == 1 else f" (share {call.options.shard[0] + 1} of {call.options.shard[1]})"
    print_line(f"{call.system.title}: {call.setting}; {len(todo)} of {len(call.share)} to make in {call.out}{share}")
    if not todo:
        return []
    with process_group(call, todo) as (rank, world, todo):
        if world > 1:
            return _make_together(call, _maker(call, todo), todo, rank, world)
        return _make_in_order(call, todo)


def prepare_folder(call: Call) -> None:
    write_atomically(call.out / "card.yaml", call.card.read_text(encoding="utf-8"))
    check_names(call.jobs, ignores_case=(call.out / "CARD.YAML").exists())
    if call.options.shard[0] == 0 and int(os.environ.get("RANK", "0")) == 0:
        write_jobs(call.out, call.jobs)


def missing(call: Call) -> list[VideoJob]:
    """The jobs of this process that are not done. Raises ConfigError if the folder has videos of another setting."""
    return [job for job in call.share if not is_done(call.out, job, call.request(job))]


def commands(call: Call) -> Iterator[str]:
    """The commands that would run, one per line."""
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
    """The loaded maker of the videos. Raises ConfigError for missing weights."""
    match call.system.adapter:
        case PixelWizard():
            maker = PixelWizardGeneration(call)
            maker.prepare(todo)
            return maker
        case ExternalCommand():
            return External(call)
        case _:
            return Pipelines(call)


def _make_in_order(call: Call, todo: Sequence[VideoJob]) -> list[str]:
    maker, failures, pace = _maker(call, todo), [], Pace()
    for number, job in enumerate(todo, 1):
        try:
            with _claim(call, job) as is_ours:
                if not is_ours:
                    print_line(f"{number}/{len(todo)}  {job.stem}: claimed by another call")
                    continue
                path = _make_one(call, maker, job)
        except (GenerationError, VideoError) as error:
            failures.append(f"{job.stem}: {error}")
            if len(failures) == number:
                raise GenerationError(failures[0]) from error
            print_line(f"{number}/{len(todo)}  could not be made: {failures[-1]}")
            continue
        remaining, per_video = pace.time_left(number, len(todo)), duration(1 / pace.rate(number))
        print_line(f"{number}/{len(todo)}  {path.name}, {per_video} a video, about {remaining} left")
    return failures


def _make_together(call: Call, maker: Maker, todo: Sequence[VideoJob], rank: int, world: int) -> list[str]:
    """Each process makes its own video at the same time; in the last round some make one that is not kept."""
    for start in range(0, len(todo), world):
        index = start + rank
        with _claim(call, todo[index]) if index < len(todo) else nullcontext(False) as is_ours:
            if is_ours:
                path = _make_one(call, maker, todo[index])
                print_line(f"{index + 1}/{len(todo)}  {path.name}")
            else:
                with _work(call, todo[-1], f"spare-{rank}") as work:
                    maker.make(todo[-1], work)
    return []


@contextmanager
def _claim(call: Call, job: VideoJob) -> Generator[bool]:
    """Lock a job; yields whether to make it: no other call works on it, and it is not done."""
    from filelock import FileLock, Timeout

    lock = call.out / ".locks" / _hash(job.stem)
    lock.parent.mkdir(exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(lock, timeout=0))
        except Timeout:
            yield False
            return
        yield not is_done(call.out, job, call.request(job))


def _make_one(call: Call, maker: Maker, job: VideoJob) -> Path:
    """Make a video, move it to its place, then write its note; only videos with a note count."""
    with _work(call, job) as work:
        video, costs = maker.make(job, work)
        target = call.out / "videos" / f"{job.stem}{video.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        video.replace(target)
        note = {
            "system": call.system.name,
            "video": target.name,
            **call.request(job),
            "encoding": {"codec": "ffv1"} if call.lossless else {"codec": "h264", "crf": call.quality},
            "processes": int(os.environ.get("WORLD_SIZE", "1")) if call.is_fsdp else 1,  # sharing the model
            **maker.metadata,
            **costs,
            "licence": call.system.licence.name,
            "native": dataclasses.asdict(call.system.setting),
            "deviations": call.deviations,
        }
        words = call.words(call.options.gpus, *call.options.shard)
        note.setdefault("command", [sys.executable, "-m", "pw", "system", *words])
        if "commit" not in note:
            note["commit"], note["dirty"], _ = suite_version()
        write_atomically(note_path(call.out, job), f"{json.dumps(note, indent=1, ensure_ascii=False)}\n")
    return target


@contextmanager
def _work(call: Call, job: VideoJob, suffix: str = "") -> Generator[Path]:
    """An empty temporary folder for one video, on the file system of the result."""
    work = _work_folder(call, job, suffix)
    shutil.rmtree(work, ignore_errors=True)
    work.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _work_folder(call: Call, job: VideoJob, suffix: str = "") -> Path:
    return call.out / "work" / _hash(f"{job.stem}{suffix}")


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
