"""Generating a system's videos: what is asked is checked first, then made one by one, each kept as it is done."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from benchmarks.systems import Command, Diffusers, GenerationError, PixelWizard, Setting, System, find, read_card
from benchmarks.systems.jobs import Job, input_jobs, is_done, make_jobs, note, read_prompts, write_asked
from benchmarks.systems.watch import ending_with_us
from pw.io.files import write_atomically
from pw.io.paths import OUTPUTS

ROOT = Path(__file__).parents[2]
SETTINGS = ("width", "height", "frames", "fps", "steps", "guidance", "shift")
SPLIT = "trainer=fsdp"
EVERYWHERE = {
    "name": "",
    "prompts": "",
    "inputs": "",
    "seeds": "1",
    "out": "",
    "limit": "",
    "dry_run": "false",
    "accept_licence": "false",
    "gpus": "1",
    "shard": "0/1",
    "weights": "",
    **dict.fromkeys(SETTINGS, ""),
}
OF_KIND = {
    "diffusers": {"trainer": "", "device": "auto", "offload": "false", "lossless": "true", "quality": "10"},
    "pixelwizard": {"lossless": "true", "quality": "10"},
    "command": {"checkout": "", "python": "", "timeout": ""},
}


class Maker(Protocol):
    """What makes videos, loaded and ready."""

    about: dict[str, Any]

    def make(self, job: Job, work: Path) -> tuple[Path, dict[str, Any]]:
        """A finished, checked video below (or outside) `work`, and what is to be noted. Raises GenerationError."""
        ...


@dataclass(frozen=True)
class Call:
    """What is asked, checked.

    words    the command line, for the processes of several GPUs
    further  words that are not ours: overrides for `pw.generate.pipeline`
    shard    (i, n): this process's share is every n-th job from the i-th, whatever is done already
    """

    card: Path
    system: System
    setting: Setting
    jobs: tuple[Job, ...]
    out: Path
    own: dict[str, str]
    words: tuple[str, ...]
    further: tuple[str, ...]
    shard: tuple[int, int]
    gpus: int

    def truth(self, key: str) -> bool:
        """A yes-or-no option; false where the kind has none."""
        return self.own.get(key) == "true"

    @property
    def share(self) -> tuple[Job, ...]:
        """This process's jobs."""
        first, parts = self.shard
        return self.jobs[first::parts]

    @property
    def is_fsdp(self) -> bool:
        """Whether one model is shared by all GPUs, in processes that are started here."""
        return self.own.get("trainer") == "fsdp"

    @property
    def is_split(self) -> bool:
        """Whether PixelWizard's networks are shared by all GPUs: `pw.generate.pipeline` starts the processes."""
        return self.system.kind == "pixelwizard" and SPLIT in self.further

    @property
    def weights(self) -> str | None:
        """What was said, else the card's repository."""
        return self.own["weights"] or (self.system.weights.repository if self.system.kind == "diffusers" else None)

    @cached_property
    def device(self) -> str:
        """cuda or cpu."""
        if self.own.get("device", "auto") != "auto":
            return self.own["device"]
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def deviations(self) -> list[str]:
        """How this call leaves the native setting, then the card's own deviations."""
        native = self.system.setting
        asked = [(key, getattr(self.setting, key), getattr(native, key)) for key in SETTINGS]
        said = [f"{key}={ours} instead of the native {card}" for key, ours, card in asked if ours != card]
        return [*said, *self.system.deviations]

    def asked(self, job: Job) -> dict[str, Any]:
        """What decides a job's video, as its note has it."""
        about = {"prompt": job.prompt, "text": job.text, "seed": job.seed, **dataclasses.asdict(self.setting)}
        if job.input is not None:
            about["input"] = str(job.input)
        if self.system.kind != "command":
            about["crf"] = None if self.truth("lossless") else int(self.own["quality"])
        further = [word for word in self.further if word != SPLIT]  # which changes no video
        return about | {"asked_weights": self.weights, "further": further}


# ---- what is asked for, checked before anything loads


def parse(words: Sequence[str]) -> Call:
    """A call from its words. Raises ValueError naming the key, its value and what would do."""
    given = dict(word.partition("=")[::2] for word in words)
    card = find(given.get("name", ""))
    system = read_card(card)
    if system.kind == "videos":
        raise ValueError(f"name={system.name}: its videos are not made here; videos=DIR registers those you have")
    own, further = _options(system, words)
    setting = _setting(system, own)
    jobs = _jobs(system, own)
    _check_licence(system, own)
    _check_kind(system, own, further, setting, jobs)
    gpus, share = _whole(own, "gpus", 1), _share(own["shard"])
    out = Path(own["out"] or OUTPUTS / "systems" / system.name).expanduser().absolute()
    return Call(card, system, setting, tuple(jobs), out, own, tuple(words), tuple(further), share, gpus)


def _options(system: System, words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    own, further = {**EVERYWHERE, **OF_KIND[system.kind]}, []
    for word in words:
        key, equals, value = word.partition("=")
        if key in own and equals:
            own[key] = value
        elif equals and system.kind == "pixelwizard":
            further.append(word)
        else:
            raise ValueError(f"{word}: no option of {system.name} ({system.kind}); there are {', '.join(own)}")
    for key in ("dry_run", "accept_licence", "offload", "lossless"):
        if own.get(key, "true") not in ("true", "false"):
            raise ValueError(f"{key}={own[key]}: true or false")
    if not 0 <= _whole(own, "quality", 0) <= 51:
        raise ValueError(f"quality={own['quality']}: x264's crf, from 0 (lossless) to 51")
    return own, further


def _setting(system: System, own: dict[str, str]) -> Setting:
    native, said = system.setting, {}
    for key in SETTINGS:
        if not own[key]:
            continue
        if getattr(native, key) is None:
            raise ValueError(f"{key}={own[key]}: {system.name} has no such setting (its card says null)")
        try:
            said[key] = float(own[key]) if key in ("fps", "guidance", "shift") else int(own[key])
        except ValueError as error:
            raise ValueError(f"{key}={own[key]}: not a number") from error
        if not said[key] > 0:
            raise ValueError(f"{key}={own[key]}: must be above 0")
    return dataclasses.replace(native, **said)


def _jobs(system: System, own: dict[str, str]) -> list[Job]:
    enlarges = system.enlarges
    if not own["prompts"] and not enlarges:
        raise ValueError('prompts=FILE: a .txt of one prompt a line or a .jsonl of {"text", "long"?, "id"?}')
    if bool(own["inputs"]) != enlarges:
        what = "wants inputs=DIR, the videos to be enlarged" if enlarges else "takes no inputs"
        raise ValueError(f"name={system.name}: {what}")
    prompts = read_prompts(Path(own["prompts"]).expanduser()) if own["prompts"] else None
    seeds = _whole(own, "seeds", 1)
    given = Path(own["inputs"]).expanduser()
    jobs = input_jobs(given, prompts, seeds) if enlarges else make_jobs(prompts or [], seeds)
    return jobs[: _whole(own, "limit", 1)] if own["limit"] else jobs


def _check_licence(system: System, own: dict[str, str]) -> None:
    if system.licence.restricted and own["accept_licence"] != "true" and own["dry_run"] != "true":
        raise ValueError(
            f"{system.title} is under the licence {system.licence.name!r} ({system.licence.terms}); "
            "read it, and say accept_licence=true if you accept it"
        )


def _check_kind(
    system: System, own: dict[str, str], further: Sequence[str], setting: Setting, jobs: Sequence[Job]
) -> None:
    if isinstance(system.adapter, Diffusers):
        if own["trainer"] not in ("", "fsdp"):
            raise ValueError(f"trainer={own['trainer']}: fsdp (one model over all GPUs), or leave it out")
        if own["offload"] == "true" and (own["device"] == "cpu" or own["trainer"]):
            raise ValueError("offload=true: moves parts between CPU and GPU; not with device=cpu or trainer=fsdp")
        if own["lossless"] == "false" and not setting.is_even:
            raise ValueError(f"lossless=false: wants even sizes, not {setting.width}x{setting.height}")
    elif isinstance(system.adapter, PixelWizard):
        for key in ("guidance", "shift"):
            if own[key]:
                raise ValueError(f"{key}={own[key]}: say it in pw.generate.pipeline's words, e.g. schedule.shift=…")
        known = ("trainer=gpu", "trainer=cpu", SPLIT)
        if others := [w for w in further if w.startswith("trainer=") and w not in known]:
            raise ValueError(
                f"{others[0]}: gpus=N shares the videos; {SPLIT}, with gpus=N, splits each network, where it does not "
                "fit into one GPU"
            )
        if others := [w for w in further if w.startswith("trainer.devices=")]:
            raise ValueError(f"{others[0]}: say gpus=N")
    elif isinstance(system.adapter, Command):
        _check_command(system.adapter, own, jobs)


def _check_command(adapter: Command, own: dict[str, str], jobs: Sequence[Job]) -> None:
    from benchmarks.systems.external import fields

    known = fields(adapter.command)
    for key in ("steps", "guidance", "shift"):
        if own[key] and key not in known:
            raise ValueError(f"{key}={own[key]}: its command has no such option, it would change nothing")
    if "seed" not in known and adapter.takes == "prompt" and any(job.seed for job in jobs):
        raise ValueError(f"seeds={own['seeds']}: its command takes no seed, all would be the same video; use seeds=1")
    if "weights" in known and not own["weights"]:
        raise ValueError("weights=PATH: its command wants to know where the weights are")
    checkout = Path(own["checkout"]).expanduser()
    if own["dry_run"] == "true":
        return
    if not own["checkout"] or not checkout.is_dir():
        raise ValueError(f"checkout={own['checkout']}: the folder of its repository, with its environment")
    if own["timeout"]:
        _whole(own, "timeout", 1)


def _whole(own: dict[str, str], key: str, least: int) -> int:
    text = own.get(key, str(least))
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise ValueError(f"{key}={text}: a whole number from {least}")
    return int(text)


def _share(text: str) -> tuple[int, int]:
    first, _, second = text.partition("/")
    if not (first.isdigit() and second.isdigit() and int(first) < int(second)):
        raise ValueError(f"shard={text}: i/n, the i-th of n shares, counted from 0, as 0/4")
    return int(first), int(second)


# ---- making


def generate(call: Call, say: Callable[[str], None]) -> list[str]:
    """Make what is missing; what went wrong, a line for each video that could not be made.

    Stops at the first failure as long as nothing has succeeded: then it is the call, not the video, that is wrong.
    Raises: ValueError for what is wrong with the call, GenerationError for the first failure.
    """
    prepare_folder(call)
    todo = missing(call)
    share = "" if call.shard[1] == 1 else f" (share {call.shard[0] + 1} of {call.shard[1]})"
    say(f"{call.system.title}: {call.setting}; {len(todo)} of {len(call.share)} to make in {call.out}{share}")
    if not todo:
        return []
    with _group(call) as (rank, world):
        if world > 1:
            todo = _same_everywhere(todo)
            return _in_step(call, _maker(call), todo, rank, world, say)
        return _one_by_one(call, todo, say)


def prepare_folder(call: Call) -> None:
    """The folder with its card and its list of jobs."""
    write_atomically(call.out / "card.yaml", call.card.read_text(encoding="utf-8"))
    if call.shard[0] == 0 and int(os.environ.get("RANK", "0")) == 0:
        write_asked(call.out, call.jobs)


def missing(call: Call) -> list[Job]:
    """This process's jobs that are not done. Raises ValueError when the folder holds videos of another setting."""
    return [job for job in call.share if not is_done(call.out, job, call.asked(job))]


def _one_by_one(call: Call, todo: Sequence[Job], say: Callable[[str], None]) -> list[str]:
    if not todo:
        return []
    maker, failures, began = _maker(call, todo), [], time.perf_counter()
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
        spent = time.perf_counter() - began
        left = spent / number * (len(todo) - number)
        say(f"{number}/{len(todo)}  {path.name}, {_time(spent / number)} a video, about {_time(left)} left")
    return failures


def _in_step(
    call: Call, maker: Maker, todo: Sequence[Job], rank: int, world: int, say: Callable[[str], None]
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
def _claimed(call: Call, job: Job) -> Generator[bool]:
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


def _make_one(call: Call, maker: Maker, job: Job) -> Path:
    """A video in its place, then its note: a reader sees both or neither is counted."""
    from benchmarks.systems.external import commit_of

    with _work(call, job) as work:
        made, about = maker.make(job, work)
        target = call.out / "videos" / f"{job.stem}{made.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(made, target)
        content = {
            "system": call.system.name,
            "video": target.name,
            **call.asked(job),
            "encoding": _encoding(call),
            "processes": _processes(call),
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
def _work(call: Call, job: Job, what: str = "") -> Generator[Path]:
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


def _maker(call: Call, todo: Sequence[Job] = ()) -> Maker:
    """What makes the videos. Raises ValueError for weights that are not there."""
    system, setting, own = call.system, call.setting, call.own
    if isinstance(system.adapter, Diffusers):
        from benchmarks.systems.diffusers_pipelines import Pipelines

        assert call.weights is not None
        kind = call.device, call.truth("offload"), call.truth("lossless"), int(own["quality"])
        return Pipelines(system, setting, call.weights, *kind, sharded=call.is_fsdp)
    if isinstance(system.adapter, PixelWizard):
        maker = _own(call)
        maker.prepare(todo, environment())
        return maker
    return _external(call)


def _own(call: Call) -> Any:
    from benchmarks.systems.own import Own

    lossless, quality = call.truth("lossless"), int(call.own["quality"])
    further = [*call.further, *([f"trainer.devices={call.gpus}"] if call.is_split else [])]
    return Own(call.system, call.setting, further, call.weights, lossless, quality, call.out)


def _external(call: Call) -> Any:
    from benchmarks.systems.external import External

    own, checkout = call.own, Path(call.own["checkout"]).expanduser().absolute()
    usual = checkout / ".venv" / "bin" / "python"
    python = _from_here(own["python"] or (str(usual) if usual.is_file() else "python"))
    weights = None if call.weights is None else _from_here(call.weights)
    timeout = float(own["timeout"]) if own["timeout"] else None
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
        yield shlex.join(_own(call).command(todo))
        return
    for job in todo:
        if isinstance(call.system.adapter, Command):
            work = call.out / "work" / hashlib.sha256(job.stem.encode()).hexdigest()[:16]
            yield shlex.join(_external(call).program(job, work).words)
        else:
            assert isinstance(call.system.adapter, Diffusers)
            yield f"{call.system.adapter.pipeline}({call.weights}), seed {job.seed}: {job.text}"


# ---- several processes


def spread(call: Call) -> int:
    """Start a process for each GPU and wait for all; the worst exit status.

    Each makes its share of the videos, or (trainer=fsdp) all share one model. What is made does not depend on how many.
    """
    rest = [w for w in call.words if w.partition("=")[0] not in ("gpus", "shard")]
    visible = _visible()
    if call.own.get("device") != "cpu" and visible is not None and call.gpus > len(visible):
        raise ValueError(f"gpus={call.gpus}: {len(visible)} are to be seen here")
    me = [sys.executable, "-m"]
    first, parts = call.shard
    if call.is_fsdp:
        many = ["torch.distributed.run", "--standalone", f"--nproc-per-node={call.gpus}", "-m"]
        words = [*me, *many, "pw", "system", *rest, f"shard={first}/{parts}"]
        with subprocess.Popen(words, env=environment()) as process, ending_with_us(process.pid):
            return process.wait()
    prepare_folder(call)
    running = []
    for i in range(call.gpus):
        one = environment()
        if visible:
            one["CUDA_VISIBLE_DEVICES"] = visible[i]
        share = f"shard={first * call.gpus + i}/{parts * call.gpus}"
        running.append(subprocess.Popen([*me, "pw", "system", *rest, share], env=one))
    try:
        with ExitStack() as watched:
            for process in running:
                watched.enter_context(ending_with_us(process.pid))
            statuses = [process.wait() for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
    for i, status in enumerate(statuses):
        if status < 0:
            name = signal.Signals(-status).name
            print(f"error: share {i + 1} of {call.gpus} was ended by {name}; the same command goes on", file=sys.stderr)
    return max(status if status >= 0 else 1 for status in statuses)


def environment() -> dict[str, str]:
    """Ours, in which `python -m` finds this code from any folder."""
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": str(ROOT) if not path else f"{ROOT}{os.pathsep}{path}"}


def _visible() -> list[str] | None:
    """Names of the GPUs to be used, without importing torch; None: not known."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [name for name in said.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return None
    answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    return [str(i) for i, line in enumerate(answer.stdout.splitlines()) if line.startswith("GPU ")]


@contextmanager
def _group(call: Call) -> Generator[tuple[int, int]]:
    """(rank, processes) of trainer=fsdp's group; (0, 1) without one."""
    if not call.is_fsdp:
        yield 0, 1
        return
    import torch

    if "RANK" not in os.environ:
        raise ValueError("trainer=fsdp: give gpus=N too, the number of GPUs that share the model (at least 2)")
    if call.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if call.device == "cuda" else "gloo")
    try:
        yield torch.distributed.get_rank(), torch.distributed.get_world_size()
    finally:
        torch.distributed.destroy_process_group()


def _same_everywhere(todo: list[Job]) -> list[Job]:
    """The first process's list, so that all take part in the same rounds."""
    import torch

    said: list[Any] = [todo]
    torch.distributed.broadcast_object_list(said)
    return said[0]


def _processes(call: Call) -> int:
    """How many processes share the model."""
    return int(os.environ.get("WORLD_SIZE", "1")) if call.is_fsdp else 1


def _encoding(call: Call) -> dict[str, Any]:
    if call.truth("lossless"):
        return {"codec": "ffv1"}
    return {"codec": "h264", "crf": int(call.own.get("quality", "0"))}


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
