"""Live tracking of the trainings of one command, `pw train` or `pw sample`."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pw.io.console import print_line
from pw.parallel.signals import Stopped
from pw.parallel.team import prints_for_user
from pw.run.build import Run
from pw.run.compose import override_key
from pw.tracking.live import LiveTracking
from pw.tracking.loggers import Live
from pw.train.record import is_trained, training_folder

EXPERIMENT = "train"
NO_PARAMETERS = ("tracking", "trainer", "code")


@contextmanager
def watched(run: Run, outputs: Path) -> Generator[None]:
    """Inside, a run and its start are passed on to the store of `run.tracking` while they are trained."""
    tracking = run.tracking
    trainings = [training for training in (run.start_run, run) if training is not None and training.card is None]
    trainings = [training for training in trainings if not is_trained(training, outputs)]
    if tracking is None or not prints_for_user() or not trainings:
        yield
        return
    live, status = LiveTracking(outputs), "failed"
    for training in trainings:
        live.begin(_described(training, outputs), tracking)
    try:
        yield
        status = "success"
    except (Stopped, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        for training in trainings:
            live.end(training_folder(training, outputs), status)
        if problem := live.close():
            print_line(unlogged(problem))


def unlogged(problem: str) -> str:
    """What is printed when a store could not be written."""
    return f"tracking: not all was logged ({problem}); nothing else is affected, the curves are in outputs/train"


def _described(run: Run, outputs: Path) -> Live:
    words = (
        word.partition("=") for word in run.config.overrides if override_key(word).split(".")[0] not in NO_PARAMETERS
    )
    params = {"stage": run.stage, "scale": run.scale.name, **{key: value for key, _, value in words}, "seed": run.seed}
    signature = run.training_signature
    tags = {"training": signature, "pw.key": f"{EXPERIMENT}/{signature}"}
    return Live(training_folder(run, outputs), EXPERIMENT, f"{run.stage} {signature}", params, tags)
