"""A loss that is not finite: its batch is written, so that `pw.train.replay` can compute it again.

<training>/not_finite/update-000123-rank0.safetensors  the clips, as the stage was given them
<training>/not_finite/update-000123-rank0.json         which batch it is, the command that replays it, and the losses
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pw.data import LatentBatch
from pw.io.arguments import ConfigError
from pw.io.files import write_json, write_tensors
from pw.parallel.team import Share, Team
from pw.run.build import Run
from pw.train.batches import clips
from pw.train.checkpoint import KEPT

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "not_finite"


@dataclass(frozen=True)
class UpdateLosses:
    """The losses of one update (counted from 1): a value for each micro-batch that this process computed."""

    update: int
    term: str
    values: tuple[float, ...]

    @property
    def first_not_finite(self) -> int | None:
        """Index of the first micro-batch whose loss is not finite."""
        return next((index for index, value in enumerate(self.values) if not math.isfinite(value)), None)


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
    folder = training / FOLDER
    stem = f"update-{batch.update:06d}-rank{rank}"
    tensors = _tensors(data)
    write_tensors(folder / f"{stem}.safetensors", tensors)
    about = {
        **asdict(batch),
        # as words: JSON has no nan
        "losses": [{"update": x.update, "term": x.term, "values": list(map(str, x.values))} for x in losses],
        "clips": {name: _described(tensor) for name, tensor in tensors.items()},
        "replay": f"pw replay {folder / stem}.json",
    }
    path = folder / f"{stem}.json"
    write_json(path, about)
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
            f"outputs/train/*/{FOLDER}/*.json"
        ) from error
    return batch, tensors["clips"] if "clips" in tensors else LatentBatch(**tensors)


def describe_not_finite(run: Run, folder: Path, losses: Sequence[UpdateLosses], share: Share, team: Team) -> str:
    """A sentence about a loss that is not finite. Every process that computed one writes its batch.

    folder  of the training
    losses  of this process, since they were last known to be finite

    All processes must call it.
    """
    here = {update.update: update for update in losses if update.first_not_finite is not None}
    first = -int(team.maximum(-min(here, default=run.train.updates)))
    value, where = "", f"its batch is in {folder / FOLDER}"
    if first in here:
        update = here[first]
        turn = update.first_not_finite
        assert turn is not None
        value = f" ({update.term} {update.values[turn]})"
        number = share.index((first - 1) * share.micro_batches + turn)
        batch = NotFiniteBatch(
            signature=run.training_signature,
            configuration=run.configuration_signature,
            seed=run.seed,
            batch=number,
            update=first,
            term=update.term,
            rank=share.rank,
            processes=share.processes,
        )
        try:
            path = write(folder, team.place.rank, batch, clips(run, number, share), losses)
            where = f"its batch is in {path.with_suffix('.safetensors')}, look at it with `pw replay {path}`"
        except (OSError, ValueError) as error:
            where = f"its batch, number {number}, could not be written ({error})"
    team.wait()  # the first process that ends takes the others along
    return f"the loss is not finite at update {first}{value}; {where}"


def last_checkpoint_sentence(folder: Path) -> str:
    """Where a training that stopped can be continued from."""
    exists = any((folder / "checkpoints" / f"{name}.ckpt").exists() for name in KEPT)
    return f"the last checkpoint before it is in {folder / 'checkpoints'}" if exists else "no checkpoint is before it"


def _tensors(data: Tensor | LatentBatch) -> dict[str, Tensor]:
    parts = vars(data) if isinstance(data, LatentBatch) else {"clips": data}
    return {name: tensor.contiguous() for name, tensor in parts.items()}


def _described(tensor: Tensor) -> dict[str, Any]:
    finite = tensor.isfinite()
    return {
        "shape": list(tensor.shape),
        "not_finite": int((~finite).sum()),
        "low": float(tensor[finite].min()) if finite.any() else None,
        "high": float(tensor[finite].max()) if finite.any() else None,
    }
