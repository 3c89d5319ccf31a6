"""The batches of a training, from any update on; one whose loss is not finite is written, and can be computed again.

    pw replay outputs/train/<signature>/not_finite/update-000123-rank0.json

    …/update-000123-rank0.safetensors  the clips, as the stage was given them
    …/update-000123-rank0.json         which batch it is, the command that replays it, and the losses

`pw replay` computes its loss with the weights of the last checkpoint. If that is not finite either, the batch is to
blame. If it is finite, the updates since the checkpoint spoilt the weights; the same `pw train` repeats them, bit for
bit on one CPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pw.data import LatentBatch
from pw.io.arguments import Command, ConfigError
from pw.io.files import write_json, write_tensors
from pw.io.lazy import Tensor, torch
from pw.parallel.team import Share, Team
from pw.run.build import Run, build
from pw.stages import stage_module
from pw.train.preflight import check_weights
from pw.train.record import last_checkpoint, start_file, written_overrides

NOT_FINITE = "not_finite"  # folder of a training
UpdateLosses = tuple[int, str, Tensor]  # update, counted from 1; term; a loss for each micro-batch of this process


def batches(run: Run, first: int, share: Share | None = None) -> Any:
    """Endless batches of a share (of everything by default), from number `first` on.

    Each is {"clips": as `Stage.prepare` takes them, "index": number of the batch}. The position in the data is the
    batch's number alone, so the data loader has no state to save.
    """
    from torch.utils.data import DataLoader, IterableDataset

    mine = share or Share.of(run.train)

    class Batches(IterableDataset):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            turn = first
            while True:
                index = mine.index(turn)
                yield {"clips": clips(run, index, mine), "index": index}
                turn += 1

    return DataLoader(Batches(), batch_size=None)


def clips(run: Run, index: int, share: Share) -> Any:
    """The index-th batch: of encoded clips the share's part, of clips in pixels all."""
    from pw.data.latents import LatentClips

    if isinstance(run.source, LatentClips):  # by position: a part is a smaller batch of a higher number
        return run.source.batch(run.seed, index * share.parts + share.part, share.clips)
    return run.source.batch(run.seed, index, run.train.batch_size)


@dataclass(frozen=True)
class NotFiniteBatch:
    """Which batch had a loss that is not finite.

    signature        of the training
    configuration    `Run.configuration_signature` of the training, which a change of code leaves as it is
    batch            number of the micro-batch in the whole training; with the seed it decides all randomness
    update           the update that it is part of, counted from 1
    term             the loss's name
    rank, processes  which process's share of the micro-batch this is (`pw.parallel.team.Share`)
    """

    signature: str
    configuration: str
    seed: int
    batch: int
    update: int
    term: str
    rank: int
    processes: int


def write(
    training: Path, rank: int, batch: NotFiniteBatch, data: Tensor | LatentBatch, losses: Sequence[UpdateLosses]
) -> Path:
    """Write a batch to the folder of its training, and return the path of the JSON. Raises OSError on a full disk.

    rank    of this process, for the file's name
    losses  of this update and of those around it
    """
    path = training / NOT_FINITE / f"update-{batch.update:06d}-rank{rank}.json"
    parts: Mapping[str, Tensor] = vars(data) if isinstance(data, LatentBatch) else {"clips": data}
    tensors = {name: tensor.contiguous() for name, tensor in parts.items()}
    write_tensors(path.with_suffix(".safetensors"), tensors)
    described = {}
    for name, tensor in tensors.items():
        finite = tensor.isfinite()
        low, high = (float(end) for end in tensor[finite].aminmax()) if finite.any() else (None, None)
        shape, count = list(tensor.shape), int((~finite).sum())
        described[name] = {"shape": shape, "not_finite": count, "low": low, "high": high}
    # as words: JSON has no nan
    told = [{"update": update, "term": term, "values": [*map(str, x.tolist())]} for update, term, x in losses]
    about = {**asdict(batch), "losses": told, "clips": described}
    write_json(path, about | {"replay": f"pw replay {path}"})
    return path


def read(path: Path) -> tuple[NotFiniteBatch, Tensor | LatentBatch]:
    """Read what `write` wrote. Raises ConfigError when the file is something else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        about = json.loads(path.read_text())
        batch = NotFiniteBatch(**{field.name: about[field.name] for field in fields(NotFiniteBatch)})
        tensors = load_file(path.with_suffix(".safetensors"))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ConfigError(
            f"{path}: not what a training leaves of a loss that is not finite ({error}); such are "
            f"outputs/train/*/{NOT_FINITE}/*.json"
        ) from error
    return batch, tensors["clips"] if "clips" in tensors else LatentBatch(**tensors)


def describe_not_finite(run: Run, folder: Path, losses: Sequence[UpdateLosses], share: Share, team: Team) -> str:
    """A sentence about a loss that is not finite. Every process that computed one writes its batch.

    folder  of the training
    losses  of this process, since they were last known to be finite

    All processes must call it.
    """
    here = {update: (term, values) for update, term, values in losses if not values.isfinite().all()}
    first = -int(team.maximum(-min(here, default=run.train.updates)))
    value, where = "", f"its batch is in {folder / NOT_FINITE}"
    if first in here:
        term, values = here[first]
        turn = int((~values.isfinite()).nonzero()[0])  # the first micro-batch of those
        value = f" ({term} {float(values[turn])})"
        number = share.index((first - 1) * share.micro_batches + turn)
        signatures = (run.training_signature, run.configuration_signature)
        batch = NotFiniteBatch(*signatures, run.seed, number, first, term, share.rank, share.processes)
        try:
            path = write(folder, team.place.rank, batch, clips(run, number, share), losses)
            where = f"its batch is in {path.with_suffix('.safetensors')}, look at it with `pw replay {path}`"
        except (OSError, ValueError) as error:
            where = f"its batch, number {number}, could not be written ({error})"
    team.wait()  # the first process that ends takes the others along
    return f"the loss is not finite at update {first}{value}; {where}"


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
    from pw.parallel.sharded import as_one_file

    checkpoint, update = last_checkpoint(folder) or (None, 0)
    start = weights = None
    if checkpoint is None:
        start = str(start_file(run.start_run, folder.parents[1])) if run.start_run else None
        weights = check_weights(run) if run.departs_from_wan else None
    module = stage_module(run, start, weights)
    module.configure_model()
    if checkpoint is not None:
        state = as_one_file(checkpoint) if checkpoint.is_dir() else torch.load(checkpoint, "cpu", weights_only=True)
        module.load_state_dict(state["state_dict"])
    return update, module


main = Command(ReplayOptions, run_replay)
