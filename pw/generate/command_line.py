"""`pw generate`: prompt to video.

    pw generate prompt="a heron lifts off a misty lake" scale=2k hires=DIR-OR-FILE [key=value …]

Beside its options (`pw generate --help`) it takes overrides of conf/ for stage II, and as `anchor.KEY=VALUE` for stage
I. `trainer=fsdp trainer.devices=N` splits each network over N GPUs, where one is too small for it; with
`trainer.context=M` groups of M of them make each video together, in nearly an Mth of the time.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from pw.generate.pipeline import generate
from pw.generate.request import GenerateOptions, GenerationRequest, make_request
from pw.io.arguments import Command, ConfigError
from pw.io.progress import ignore_closed_stream
from pw.parallel.launch import exit_with_parent, report_failure
from pw.parallel.place import PLACE
from pw.parallel.signals import Stopped


def run(options: GenerateOptions) -> int:
    """Exit status: 0 done, 1 it could not be made, 2 a mistake in the call, 130 interrupted."""
    exit_with_parent()
    try:
        request = make_request(options)
    except (ValueError, OSError) as error:
        if report_failure(error):
            return 2
        raise ConfigError(str(error)) from error
    _use_threads(request)
    if request.weights is None and PLACE not in os.environ:
        print("weights=random: what comes out is noise; its time and memory are real", file=sys.stderr)
    try:
        for path in generate(request, GenerationProgress()):
            print(path)
    except (KeyboardInterrupt, Stopped) as error:
        with ignore_closed_stream(sys.stderr):
            print("\ninterrupted; what is finished is kept, the same command goes on from here", file=sys.stderr)
        return 128 + (error.signal if isinstance(error, Stopped) else signal.SIGINT)
    except Exception as error:
        explained = _explained(error, request)
        if not report_failure(explained or error):
            if explained is None:
                raise
            print(f"\nerror: {explained}", file=sys.stderr)
        return 1
    return 0


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
        return OSError(f"out={request.out}: {error}; what is finished is kept, the same command goes on from here")
    return error if isinstance(error, ValueError) else None


class GenerationProgress:
    """A line with what is done and the time left: rewritten on a terminal, printed now and then elsewhere.

    The time left of a part follows its own pace. That of the whole is shown once a tenth is done: parts differ in pace.
    """

    def __init__(self) -> None:
        self.began = self.part_began = time.perf_counter()
        self.last, self.label = -1e9, ""

    def __call__(self, label: str, share: float, within: float) -> None:
        now, on_terminal = time.perf_counter(), sys.stderr.isatty()
        if label != self.label:
            self.part_began = now
        elif now - self.last < (0.5 if on_terminal else 15) and share < 1:
            return
        if not within:
            self.part_began = now
        self.last, self.label = now, label
        text = f"{100 * share:3.0f} %  {label}"
        if 0 < within < 1:
            text += f", about {_time((now - self.part_began) * (1 / within - 1))} to the end of this part"
        if 0.1 < share < 1:
            text += f", {_time((now - self.began) * (1 / share - 1))} in all"
        start, end = ("\r\x1b[2K", "" if share < 1 else "\n") if on_terminal else ("", "\n")
        with ignore_closed_stream(sys.stderr):
            print(f"{start}{text}", end=end, file=sys.stderr, flush=True)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


main = Command(GenerateOptions, run)
