"""Prompt -> video: text encoding, stage I, stage II, tiled decode, each network on the device by itself.

Every part is done for all prompts before the next one loads, and kept as a file: a call that was stopped goes on where
it was, and a video that is done is not made again. Several calls may share prompts and `out`, one for each GPU: what
one is making, the others leave to it.

With `trainer=fsdp` one call starts a process for each GPU (`pw.parallel.launch`). Each makes videos of its own, the
same ones that a single process makes, but all evaluate their networks at the same time, since each holds only a part
of the weights (`pw.parallel.sharded`). With `trainer.context` above 1 that many processes share the tokens of a video
(`pw.nn.context`) and the tiles of its decode; the first of them encodes its text, and writes. Text encoder and VAE are
whole in every process that uses them.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

from pw.generate.denoise import encode_texts, make_anchors, make_details
from pw.generate.output import check_disk, decode, remove_latents
from pw.generate.request import GenerationRequest, Prompt
from pw.generate.task import Meter, PartProgress, Task
from pw.io.arguments import written
from pw.io.imports import quiet
from pw.parallel.launch import launch
from pw.parallel.team import Place, join_team

OTHER_FILES = 512  # open files beside the prompts' locks, libraries and weights among them


def generate(request: GenerationRequest, progress: PartProgress | None = None) -> list[Path]:
    """Make every video that is not there: the files of all prompts, in their order.

    progress(label, share, within): what is being done, the share of all work that is done, and of this part
    Starts the processes that are to hold the networks together, unless this is one of them.
    Raises ValueError when the weights do not fit, or where the disk is full.
    """
    place = request.place
    if place is None:
        _launch(request)
    else:
        _generate(request, progress, place)
    return [request.video(prompt) for prompt in request.prompts if request.is_done(prompt)]


def _launch(request: GenerationRequest) -> None:
    logs = request.out / "logs" / str(os.getpid())  # several calls may share `out`
    command = [sys.executable, "-m", "pw", "generate", *written(request.options)]
    launch(command, request.hires.trainer.processes, logs, None)
    shutil.rmtree(logs, ignore_errors=True)


def _generate(request: GenerationRequest, progress: PartProgress | None, place: Place) -> None:
    quiet()
    trainer = request.hires.trainer
    with join_team(trainer, place) as team, ExitStack() as locks:
        todo = team.agreed(locked_prompts(request, locks) if place.is_first else [])
        if not todo:
            return
        group, member = divmod(place.rank, trainer.context)  # a group makes videos together
        prompts = todo[group :: trainer.shares]
        meter = Meter(request, len(prompts), progress if place.is_first else None)
        task = Task(request, prompts, meter, team, writes=member == 0)
        embedding = encode_texts(task)
        make_anchors(task, embedding)
        make_details(task, embedding)
        decode(task)
        team.wait()  # the first process holds the locks of all


def locked_prompts(request: GenerationRequest, locks: ExitStack) -> list[Prompt]:
    """The prompts that this call is to make, locked.

    Where processes evaluate their networks together, prompts with most left to do come first, so that dealing them out
    in turns gives each process as much of it.
    """
    for folder in (request.out, request.out / "anchors", request.out / "latents", request.out / ".locks"):
        if not folder.exists() and request.prompts:
            check_disk(request, len(request.prompts))
        folder.mkdir(parents=True, exist_ok=True)
    allow_open_files(len(request.prompts))
    todo = [prompt for prompt in request.prompts if _lock(request, prompt, locks)]
    if todo:
        check_disk(request, len(todo))

    def files(prompt: Prompt) -> tuple[bool, bool]:
        return request.latent_file(prompt).exists(), prompt.anchor is not None or request.anchor_file(prompt).exists()

    return sorted(todo, key=files) if request.is_split else todo


def _lock(request: GenerationRequest, prompt: Prompt, locks: ExitStack) -> bool:
    """Lock a prompt for this call; False where it is done, or another call makes it."""
    from filelock import FileLock, Timeout

    if not request.is_done(prompt):
        try:
            locks.enter_context(FileLock(request.out / ".locks" / prompt.name, timeout=0))
        except Timeout:
            print(f"{prompt.name}: another call is making it", file=sys.stderr)
            return False
    if request.is_done(prompt):  # perhaps since the look before it was locked
        remove_latents(request, prompt)
        return False
    for folder in (request.out, request.out / "anchors", request.out / "latents"):
        for path in folder.glob(f".{prompt.name}.*"):  # a call that was killed was writing it
            path.unlink(missing_ok=True)
    return True


def allow_open_files(locks: int) -> None:
    """Raise this process's limit on open files for so many locks: 1024 are usual, and VBench has 4,720 prompts.

    Raises ValueError where that is not allowed.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = locks + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ValueError(
            f"{locks} prompts need {needed} open files, {hard} are allowed (ulimit -Hn): give fewer at once"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
