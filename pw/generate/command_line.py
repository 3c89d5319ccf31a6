"""`pw generate`: prompt to video.

    pw generate prompt="a heron lifts off a misty lake" scale=2k hires=DIR-OR-FILE [key=value …]

Beside its options (`pw generate --help`) it takes overrides of conf/ for stage II, and as `anchor.KEY=VALUE` for stage
I. `trainer=fsdp trainer.devices=N` splits each network over N GPUs, where one is too small for it; with
`trainer.context=M` groups of M of them make each video together, in nearly an Mth of the time.
"""

from __future__ import annotations

import os
import sys

from pw.generate.pipeline import generate
from pw.generate.request import GenerateOptions, GenerationRequest, make_request
from pw.io.arguments import Command
from pw.io.progress import Pace, ProgressLine
from pw.parallel.launch import carry_out, exit_with_parent, reported_mistakes
from pw.parallel.team import PLACE

RESUMES = "what is finished is kept, the same command goes on from here"


def run(options: GenerateOptions) -> int:
    """Exit status: 0 done, 1 it could not be made, 2 a mistake in the call, 130 interrupted."""
    exit_with_parent()
    with reported_mistakes():
        request = make_request(options)
    _use_threads(request)
    if request.weights is None and PLACE not in os.environ:
        print("weights=random: what comes out is noise; its time and memory are real", file=sys.stderr)

    def make_videos() -> None:
        progress = GenerationProgress()
        try:
            paths = generate(request, progress)
        finally:
            progress.line.clear()
        for path in paths:
            print(path)

    return carry_out(make_videos, RESUMES, lambda error: _explained(error, request))


def _use_threads(request: GenerationRequest) -> None:
    import torch

    trainer = request.hires.trainer
    # torch's own number heeds OMP_NUM_THREADS and the cores that this process may use
    cores = 1 if request.device == "cuda" else torch.get_num_threads() // trainer.processes
    torch.set_num_threads(max(trainer.threads, cores))


def _explained(error: Exception, request: GenerationRequest) -> Exception | None:
    """The error with what would do; None for one that nobody expects."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return ValueError(f"{error}\n`make plan scale={request.hires.scale.name} gpus=…` says what it needs")
    if isinstance(error, OSError):
        return OSError(f"out={request.out}: {error}; {RESUMES}")
    return error if isinstance(error, ValueError) else None


class GenerationProgress:
    """A line with what is done and the time left.

    The time left of a part follows its own pace. That of the whole is shown once a tenth is done: parts differ in pace.
    """

    def __init__(self) -> None:
        self.line, self.whole, self.part, self.label = ProgressLine(), Pace(), Pace(), ""

    def __call__(self, label: str, share: float, within: float) -> None:
        if label != self.label or not within:
            self.part.restart()
        if label == self.label and not self.line.is_due and share < 1:
            return
        self.label = label
        text = f"{100 * share:3.0f} %  {label}"
        if 0 < within < 1:
            text += f", about {self.part.left(within, 1)} to the end of this part"
        if 0.1 < share < 1:
            text += f", {self.whole.left(share, 1)} in all"
        self.line.show(text, last=share >= 1)


main = Command(GenerateOptions, run)
