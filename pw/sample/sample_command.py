"""`pw sample`: the evaluation clips of one run, which is trained first if need be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pw.io.arguments import Command, number, option
from pw.io.paths import OUTPUTS
from pw.sample.evaluate import sample, sample_folder
from pw.train.train_command import checked_run, outputs_folder, run_training


@dataclass(frozen=True)
class SampleOptions:
    """`pw sample key=value …`: one run."""

    outputs: Path = option(OUTPUTS, "folder of all results", read=outputs_folder)
    evaluation_seed: int | None = option(None, "of the evaluation clips; the run's own by default", read=number(0))
    overrides: tuple[str, ...] = ()


def run_sample(options: SampleOptions) -> int:
    """Exit status: 0 sampled, 1 it failed, 128 + n stopped by a signal."""
    run = checked_run(options.overrides, options.outputs)
    seed = options.evaluation_seed
    sample_folder(run, options.outputs, seed)  # composes the stage that makes its anchors, too
    return run_training(
        run, lambda progress: sample(run, options.outputs, seed=seed, training=progress, is_checked=True)
    )


main = Command(SampleOptions, run_sample)
