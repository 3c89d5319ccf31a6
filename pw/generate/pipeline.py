"""`pw generate`, prompt -> video: text encoding, stage I, stage II, tiled decode.

    pw generate prompt="a heron lifts off a misty lake" scale=2k hires=DIR-OR-FILE [key=value …]

Besides its options (`pw generate --help`) it takes overrides of conf/ for stage II, as anchor.KEY=VALUE for stage I.

If all networks fit on the device together, each of several prompts goes through all parts before the next one. If not,
each part runs for all prompts before the next part loads (D116). A thread writes the video of a prompt while the device
works on the next. Each part writes files: a call continues a stopped one, and makes no finished video again. Several
calls, such as one for each GPU, can share prompts and `out`: a call skips the prompts that another one makes.

With `trainer=fsdp trainer.devices=N` one call starts a process for each of N GPUs (`pw.parallel.launch`). Each process
makes other videos, the same as a single process would, but all evaluate their networks at the same time, because each
holds only a part of the weights (`pw.parallel.sharded`). With `trainer.context=M`, groups of M processes share the
tokens of a video (`pw.nn.backbone`) and the tiles of its decode, in about 1/M of the time; the first process of a group
encodes the text and writes the files. Every process that uses text encoder or VAE holds all of it.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from pw.cost.counts import evaluations, stage_latent
from pw.generate.estimate import describe, has_small_vae, threads_of
from pw.generate.request import GenerateOptions, GenerationRequest, Prompt, make_request
from pw.io.arguments import Command, to_words
from pw.io.files import check_space, os_reason
from pw.io.lazy import torch
from pw.io.paths import silence_libraries
from pw.io.progress import Pace, ProgressLine
from pw.parallel.launch import carry_out, exit_with_parent, launch, report_mistakes
from pw.parallel.team import PLACE, Place, join_team

if TYPE_CHECKING:
    from pw.generate.models import Models
    from pw.generate.output import PartProgress

RESUMES = "what is finished is kept; run the same command again to resume"
OTHER_FILES = 512  # open files other than the locks of prompts, such as libraries and weights


def generate(
    request: GenerationRequest, progress: PartProgress | None = None, models: Models | None = None
) -> list[Path]:
    """Make the missing videos; returns the files of all finished prompts, in their order.

    models  networks that stay between calls; by default those of this call alone

    Starts the processes that hold the networks together, unless this is one of them.
    Raises ValueError when the weights do not fit, or the disk is too small.
    """
    if request.place is None:
        logs = request.out / "logs" / str(os.getpid())  # several calls can share `out`
        command = [sys.executable, "-m", "pw", "generate", *to_words(request.options)]
        launch(command, request.hires.trainer.processes, logs, None)
        shutil.rmtree(logs, ignore_errors=True)
    else:
        _generate(request, progress, request.place, models)
    return [request.video(prompt) for prompt in request.prompts if request.is_done(prompt)]


def _generate(request: GenerationRequest, progress: PartProgress | None, place: Place, models: Models | None) -> None:
    silence_libraries()
    from pw.generate.denoise import encode_texts, make_anchors, make_details
    from pw.generate.models import FileWriter, Models, fit_together
    from pw.generate.output import Task, decode

    trainer = request.hires.trainer
    with join_team(trainer, place) as team, ExitStack() as locks, FileWriter() as writer:
        todo = team.broadcast(locked_prompts(request, locks) if place.is_first else [])
        if not todo:
            return
        group, rank_in_group = divmod(place.rank, trainer.context)  # a group makes each of its videos together
        prompts = todo[group :: trainer.shares]
        models = models or Models(keep=len(prompts) > 1 and fit_together(request))
        task = Task(request, prompts, team, rank_in_group == 0, models, progress if place.is_first else None)
        embedding = encode_texts(task)
        for group_prompts in [[prompt] for prompt in prompts] if models.keep else [prompts]:
            make_anchors(task, group_prompts, embedding)
            make_details(task, group_prompts, embedding)
            decode(task, group_prompts, writer)
        task.add("decode", 0.0, "writing the file")
        writer.finish()
        team.wait()  # the first process holds the locks of all


def locked_prompts(request: GenerationRequest, locks: ExitStack) -> list[Prompt]:
    """Lock and return the prompts that this call makes.

    If processes evaluate their networks together, prompts with most work left come first, so that processes that take
    them in turn get about the same work.
    """
    for folder in (request.out, request.out / "anchors", request.out / "latents", request.out / ".locks"):
        if not folder.exists() and request.prompts:
            check_disk(request, len(request.prompts))
        folder.mkdir(parents=True, exist_ok=True)
    allow_open_files(len(request.prompts))
    todo = [prompt for prompt in request.prompts if _lock(request, prompt, locks)]
    if todo:
        check_disk(request, len(todo))

    def finished_parts(prompt: Prompt) -> tuple[int, bool]:
        latents = sum(request.latent_file(window).exists() for window in request.windows(prompt))
        return latents, prompt.anchor is not None or request.anchor_file(prompt).exists()

    return sorted(todo, key=finished_parts) if request.is_split else todo


def check_disk(request: GenerationRequest, count: int) -> None:
    """Raises ConfigError unless `count` videos fit on the disk: latents in fp32, and videos with 1 bit per pixel."""
    run = request.hires
    windows = 1 if request.source is None else len(request.source.windows)
    kept = 1 if windows == 1 else 1 + evaluations(run)  # velocities, in fp32, until the video is done
    latents = 4 * windows * (kept * prod(stage_latent(run)) + prod(request.anchor_latent))
    pixels = request.frames * run.scale.height * run.scale.width
    required = count * (latents + pixels * (2 if request.options.lossless else 1 / 8))
    purpose = f"for {count} video{'' if count == 1 else 's'}"
    check_space("out", request.out, required, "free some, or choose another out=", purpose)


def _lock(request: GenerationRequest, prompt: Prompt, locks: ExitStack) -> bool:
    """Lock a prompt for this call; False if it is done or another call makes it."""
    from filelock import FileLock, Timeout

    if not request.is_done(prompt):
        try:
            locks.enter_context(FileLock(request.out / ".locks" / prompt.name, timeout=0))
        except Timeout:
            print(f"{prompt.name}: another call is making it", file=sys.stderr)
            return False
    if request.is_done(prompt):  # another call may have finished it before the lock
        request.remove_latents(prompt)
        return False
    for folder in (request.out, request.out / "anchors", request.out / "latents"):
        for path in folder.glob(f".{prompt.name}.*"):  # a killed call left it
            path.unlink(missing_ok=True)
    return True


def allow_open_files(locks: int) -> None:
    """Raise the limit on open files of this process for `locks` locks: 1024 is usual, but VBench has 4,720 prompts.

    Raises ValueError if the system does not allow it.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    required = locks + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= required:
        return
    if hard != resource.RLIM_INFINITY and hard < required:
        raise ValueError(
            f"{locks} prompts need {required} open files, {hard} are allowed (ulimit -Hn): give fewer at once"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (required, hard))


def announce(request: GenerationRequest) -> None:
    """Print how long the missing videos will take, and what is not real of random weights."""
    count = sum(not request.is_done(prompt) for prompt in request.prompts)
    if PLACE in os.environ or not count:
        return
    for source in (request.source, request.image):
        if source is not None:
            print(source.line(request.hires), file=sys.stderr)
    if request.weights is None and (request.hires.text is not None or request.hires_source == "random"):
        real = "its VAE is a small one" if has_small_vae(request) else "its time and memory are real"
        print(f"weights=random: the video is noise; {real}", file=sys.stderr)
    print(describe(request, count), file=sys.stderr, flush=True)


def run(options: GenerateOptions) -> int:
    """Exit status: 0 done, 1 failed, 2 a mistake in the call, 130 interrupted."""
    exit_with_parent()
    with report_mistakes():
        request = make_request(options, announce)
    torch.set_num_threads(threads_of(request))

    def make_videos() -> None:
        progress = GenerationProgress()
        try:
            paths = generate(request, progress)
        finally:
            progress.line.clear()
        for path in paths:
            print(path)

    return carry_out(make_videos, RESUMES, lambda error: _user_error(error, request))


def _user_error(error: Exception, request: GenerationRequest) -> Exception | None:
    """The error with a remedy; None for an unexpected error."""
    if isinstance(error, torch.OutOfMemoryError):
        return ValueError(f"{error}\n`make plan scale={request.hires.scale.name} gpus=…` shows what it needs")
    if isinstance(error, OSError):
        return OSError(f"out={request.out}: {os_reason(error)}; {RESUMES}")
    return error if isinstance(error, ValueError) else None


class GenerationProgress:
    """Shows a line with the fraction done and the time left.

    The time left of a part follows the pace of the part. The time left in all appears after a tenth of the work,
    because the pace of parts differs.
    """

    def __init__(self) -> None:
        self.line, self.total_pace, self.part_pace, self.label = ProgressLine(), Pace(), Pace(), ""

    def __call__(self, label: str, share: float, part_share: float) -> None:
        if label != self.label or not part_share:
            self.part_pace.restart()
        if label == self.label and not self.line.is_due and share < 1:
            return
        self.label = label
        text = f"{100 * share:3.0f} %  {label}"
        if 0 < part_share < 1:
            text += f", about {self.part_pace.time_left(part_share, 1)} to the end of this part"
        if 0.1 < share < 1:
            text += f", {self.total_pace.time_left(share, 1)} in all"
        self.line.show(text, last=share >= 1)


main = Command(GenerateOptions, run)
