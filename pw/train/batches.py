"""The batches of a training. A batch whose loss is not finite is written to disk, and `pw replay` computes it again.

    pw replay outputs/train/<signature>/not_finite/update-000123-rank0.json

    …/update-000123-rank0.safetensors  the clips, as the stage got them
    …/update-000123-rank0.json         number of the batch, command that replays it, and the losses

`pw replay` computes the loss with the weights of the last checkpoint. If it is not finite, the batch is the cause; else
the updates since the checkpoint are, and the same `pw train` repeats them, bit for bit on one CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pw.data import Batch, LabelledClips, LatentBatch
from pw.io.arguments import Command, ConfigError, option
from pw.io.files import parse_json, write_json, write_tensors
from pw.io.lazy import Tensor, torch
from pw.parallel.team import Share, Team
from pw.run.build import Run, build
from pw.stages import stage_module
from pw.train.preflight import check_weights
from pw.train.record import last_checkpoint, start_file, written_overrides

NOT_FINITE = "not_finite"  # folder of a training
UpdateLosses = tuple[int, str, Tensor]  # update, counted from 1; term; a loss for each micro-batch of this process


def batches(run: Run, first: int, share: Share | None = None) -> Any:
    """A data loader without end: the batches of a share (by default, all clips), from number `first` on.

    A batch is {"clips": input of `Stage.prepare`, "index": number of the batch}. The number alone decides the position
    in the data, so the data loader has no state to save.
    """
    from torch.utils.data import DataLoader, IterableDataset

    part = share or Share.of(run.train)

    class Batches(IterableDataset):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            number = first
            while True:
                index = part.index(number)
                yield {"clips": clips(run, index, part), "index": index}
                number += 1

    return DataLoader(Batches(), batch_size=None)


def clips(run: Run, index: int, share: Share) -> Any:
    """The batch of number `index`: the share's part of latents, or the whole batch of clips in pixels."""
    from pw.data.latents import LatentClips
    from pw.data.shards import ShardClips

    update, turn = divmod(index, run.train.accumulate)  # whose micro-batches are of one bucket
    if isinstance(run.source, LatentClips):
        parts = run.train.accumulate * share.parts
        return run.source.batch(run.seed, update, share.clips, turn * share.parts + share.part, parts)
    if isinstance(run.source, ShardClips):
        return run.source.batch(run.seed, update, run.train.batch_size, turn, run.train.accumulate)
    return run.source.batch(run.seed, index, run.train.batch_size)


@dataclass(frozen=True)
class NotFiniteBatch:
    """Identifies a batch whose loss is not finite.

    signature        of the training
    configuration    `Run.configuration_signature` of the training, the same for every version of the code
    batch            number of the micro-batch in the training; number and seed decide all random draws
    update           its update, counted from 1
    term             name of the loss
    rank, processes  the share of the micro-batch (`pw.parallel.team.Share`)
    """

    signature: str
    configuration: str
    seed: int
    batch: int
    update: int
    term: str
    rank: int
    processes: int


def write(training: Path, rank: int, batch: NotFiniteBatch, clips: Batch, losses: Sequence[UpdateLosses]) -> Path:
    """Write a batch to the folder of its training; returns the path of the JSON file. Raises OSError on a full disk.

    rank    of this process, part of the file name
    losses  of this update and the updates around it
    """
    path = training / NOT_FINITE / f"update-{batch.update:06d}-rank{rank}.json"
    parts: Mapping[str, Tensor] = {"clips": clips} if isinstance(clips, torch.Tensor) else vars(clips)
    tensors = {name: tensor.contiguous() for name, tensor in parts.items()}
    write_tensors(path.with_suffix(".safetensors"), tensors)
    statistics = {}
    for name, tensor in tensors.items():
        finite = tensor.isfinite()
        low, high = (float(end) for end in tensor[finite].aminmax()) if finite.any() else (None, None)
        shape, count = list(tensor.shape), int((~finite).sum())
        statistics[name] = {"shape": shape, "not_finite": count, "low": low, "high": high}
    # as text: JSON has no nan
    records = [{"update": update, "term": term, "values": [*map(str, x.tolist())]} for update, term, x in losses]
    content = {**asdict(batch), "losses": records, "clips": statistics}
    write_json(path, content | {"replay": f"pw replay {path}"})
    return path


def read(path: Path) -> tuple[NotFiniteBatch, Batch]:
    """Read the files of `write`. Raises ConfigError for any other file."""
    from safetensors import SafetensorError

    try:
        content = parse_json(path.read_text())
        batch = NotFiniteBatch(**{field.name: content[field.name] for field in fields(NotFiniteBatch)})
        from safetensors.torch import load_file  # imports torch, which takes seconds

        tensors = load_file(path.with_suffix(".safetensors"))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise ConfigError(
            f"{path}: not the batch of a loss that is not finite{reason}; expected one of "
            f"outputs/train/*/{NOT_FINITE}/*.json"
        ) from error
    if "clips" in tensors:
        return batch, tensors["clips"]
    return batch, (LabelledClips if "label" in tensors else LatentBatch)(**tensors)


def describe_not_finite(run: Run, folder: Path, losses: Sequence[UpdateLosses], share: Share, team: Team) -> str:
    """The message about a loss that is not finite. Every process with such a loss writes its batch.

    folder  of the training
    losses  of this process, since the last check

    All processes must call it.
    """
    failures = {update: (term, values) for update, term, values in losses if not values.isfinite().all()}
    first = -int(team.maximum(-min(failures, default=run.train.updates)))
    value, location = "", f"its batch is in {folder / NOT_FINITE}"
    if first in failures:
        term, values = failures[first]
        position = int((~values.isfinite()).nonzero()[0])  # the first such micro-batch
        value = f" ({term} {float(values[position])})"
        number = share.index((first - 1) * share.micro_batches + position)
        signatures = (run.training_signature, run.configuration_signature)
        batch = NotFiniteBatch(*signatures, run.seed, number, first, term, share.rank, share.processes)
        try:
            path = write(folder, team.place.rank, batch, clips(run, number, share), losses)
            location = f"its batch is in {path.with_suffix('.safetensors')}, reproduce it with `pw replay {path}`"
        except (OSError, ValueError) as error:
            location = f"its batch, number {number}, could not be written ({error})"
    team.wait()  # the first process that exits ends the others, too
    return f"the loss is not finite at update {first}{value}; {location}"


@dataclass(frozen=True)
class ReplayOptions:
    """`pw replay FILE`."""

    positional: tuple[str, ...] = option((), "that a training with such a loss wrote", key="FILE.json")


def run_replay(options: ReplayOptions) -> int:
    """Exit status: 0 if the loss is finite with the last saved weights, else 1."""
    if len(options.positional) != 1:
        raise ConfigError("expected one file, outputs/train/<signature>/not_finite/update-….json")
    path = Path(options.positional[0]).expanduser()
    update, loss = replay(path)
    batch, _ = read(path)
    weights = f"of its checkpoint of update {update}" if update else "it started from"
    print(f"batch {batch.batch}, whose {batch.term} loss was not finite at update {batch.update}:")
    print(f"{float(loss):g} with the weights {weights}")
    return 0 if loss.isfinite() else 1


def replay(path: Path) -> tuple[int, Tensor]:
    """(update of the saved weights, 0 for the start; loss of the batch with these weights).

    Raises ConfigError when no training wrote the file, or when the configuration has changed since.
    """
    batch, clips = read(path)
    folder = path.absolute().parents[1]
    run = build(written_overrides(folder))
    if run.configuration_signature != batch.configuration:
        raise ConfigError(
            f"{folder / 'config.yaml'}: composes a training of signature {run.training_signature} now, not "
            f"{batch.signature}; restore the data and the configuration"
        )
    update, module = _last_weights(run, folder)
    module.share = Share.of(run.train, batch.rank, batch.processes)
    module.texts.cache = folder.parents[1] / "text"
    device = "cuda" if run.trainer.accelerator == "gpu" else "cpu"
    module.to(device)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=run.train.precision == "bf16"):
        loss = module.loss(clips.to(device), batch.batch, batch.update - 1)
    return update, loss.value


def _last_weights(run: Run, folder: Path) -> tuple[int, Any]:
    """(update, stage) of the last checkpoint; (0, stage) with the start weights if there is none."""
    from pw.parallel.sharded import as_one_file

    checkpoint, update = last_checkpoint(folder) or (None, 0)
    start = weights = None
    if checkpoint is None:
        start = str(start_file(run.start_run, folder.parents[1])) if run.start_run else None
        weights = check_weights(run) if run.starts_from_wan else None
    module = stage_module(run, start, weights)
    module.configure_model()
    if checkpoint is not None:
        state = as_one_file(checkpoint) if checkpoint.is_dir() else torch.load(checkpoint, "cpu", weights_only=True)
        module.load_state_dict(state["state_dict"])
    return update, module


main = Command(ReplayOptions, run_replay)
