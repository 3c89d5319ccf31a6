"""Compute the loss of a batch again at which a training stopped, with the weights of its last checkpoint.

    pw replay outputs/train/<signature>/not_finite/update-000123-rank0.json

If the loss is not finite with those weights either, the batch is to blame. If it is finite, the updates since the
checkpoint spoilt the weights; the same `pw train` repeats them, bit for bit on one CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pw.io.arguments import Command, ConfigError
from pw.parallel.team import Share
from pw.run.build import Run, build
from pw.train.checkpoint import last_checkpoint
from pw.train.loop import stage_module
from pw.train.not_finite import read
from pw.train.preflight import check_weights
from pw.train.record import start_file, written_overrides

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ReplayOptions:
    """`pw replay FILE`."""

    positional: tuple[str, ...] = ()


def run_replay(options: ReplayOptions) -> int:
    """Exit status: 0 the loss is finite with the weights before, 1 it is not."""
    if len(options.positional) != 1:
        raise ConfigError("wants one file, outputs/train/<signature>/not_finite/update-….json")
    path = Path(options.positional[0])
    update, loss = replay(path)
    batch, _ = read(path)
    weights = f"of its checkpoint of update {update}" if update else "it departed from"
    print(f"batch {batch.batch}, whose {batch.term} loss was not finite at update {batch.update}:")
    print(f"{float(loss):g} with the weights {weights}")
    return 0 if loss.isfinite() else 1


def replay(path: Path) -> tuple[int, Tensor]:
    """(the update after which the weights were saved, 0 for the start; the loss of the batch with them).

    Raises ConfigError when the file is not what a training wrote, or when its configuration is another now.
    """
    import torch

    batch, clips = read(path)
    folder = path.absolute().parents[1]
    run = build(written_overrides(folder))
    if run.configuration_signature != batch.configuration:
        raise ConfigError(
            f"{folder / 'config.yaml'}: composes a training of signature {run.training_signature} now, not "
            f"{batch.signature}; have the data and the configuration as they were"
        )
    update, module = _last_weights(run, folder)
    module.share = Share.of(run.train, batch.rank, batch.processes)
    device = "cuda" if run.trainer.accelerator == "gpu" else "cpu"
    module.to(device)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=run.train.precision == "bf16"):
        loss = module.loss(clips.to(device), batch.batch, batch.update - 1)
    return update, loss.value


def _last_weights(run: Run, folder: Path) -> tuple[int, Any]:
    """(update, stage) of the last checkpoint, or of what the training departed from."""
    import torch

    from pw.parallel.sharded import as_one_file

    saved = last_checkpoint(folder)
    if saved is None:
        start = str(start_file(run.start_run, folder.parents[1])) if run.start_run else None
        module = stage_module(run, start, check_weights(run) if run.departs_from_wan else None)
        module.configure_model()
        return 0, module
    checkpoint, update = saved
    state = as_one_file(checkpoint) if checkpoint.is_dir() else torch.load(checkpoint, "cpu", weights_only=True)
    module = stage_module(run)
    module.configure_model()
    module.load_state_dict(state["state_dict"])
    return update, module


main = Command(ReplayOptions, run_replay)
