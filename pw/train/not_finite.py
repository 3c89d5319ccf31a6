"""The batch at which a loss was not finite, as a training leaves it for a closer look; `pw.train.replay` computes it
again.

<training>/not_finite/update-000123-rank0.safetensors  the clips, as the stage was given them
<training>/not_finite/update-000123-rank0.json         which they are, how to look at them, and the losses
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pw.data import LatentBatch

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "not_finite"


@dataclass(frozen=True)
class Losses:
    """Of one update (counted from 1), one for each micro-batch that this process did of it."""

    update: int
    term: str
    values: tuple[float, ...]

    @property
    def first_bad(self) -> int | None:
        """Which of them is the first that is not finite."""
        return next((turn for turn, value in enumerate(self.values) if not math.isfinite(value)), None)


@dataclass(frozen=True)
class Found:
    """A loss that is not finite.

    signature        of the training; configuration: the same without the code, which may since be another
    batch            number of the micro-batch among all of the training: with the seed, all of its randomness
    update           whose it was a part of, counted from 1
    rank, processes  whose share of the micro-batch it is, see `pw.parallel.processes.Share`
    """

    signature: str
    configuration: str
    seed: int
    batch: int
    update: int
    term: str
    rank: int
    processes: int


def write(training: Path, rank: int, found: Found, clips: Tensor | LatentBatch, losses: Sequence[Losses]) -> Path:
    """Write a batch and what is known of it; the path of the JSON. Raises OSError on a full disk.

    rank    of this process, for the name
    losses  of this update and of those around it
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = training / FOLDER
    folder.mkdir(exist_ok=True)
    stem = f"update-{found.update:06d}-rank{rank}"
    tensors = _tensors(clips)
    partial = folder / f".{stem}.partial"
    try:
        save_file(tensors, partial)
        os.replace(partial, folder / f"{stem}.safetensors")
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{partial}: {error}") from error
    about = {
        **asdict(found),
        # as words: JSON has no nan
        "losses": [{"update": u.update, "term": u.term, "values": list(map(str, u.values))} for u in losses],
        "clips": {name: _described(tensor) for name, tensor in tensors.items()},
        "look": f"python -m pw replay {folder / stem}.json",
    }
    path = folder / f"{stem}.json"
    path.write_text(json.dumps(about, indent=1) + "\n")
    return path


def read(path: Path) -> tuple[Found, Tensor | LatentBatch]:
    """What `write` wrote. Raises ValueError when it is not that."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        about = json.loads(path.read_text())
        found = Found(**{field.name: about[field.name] for field in fields(Found)})
        tensors = load_file(path.with_suffix(".safetensors"))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"{path}: not what a training leaves of a loss that is not finite ({error}); such are "
            f"outputs/train/*/{FOLDER}/*.json"
        ) from error
    return found, tensors["clips"] if "clips" in tensors else LatentBatch(**tensors)


def _tensors(clips: Tensor | LatentBatch) -> dict[str, Tensor]:
    parts = vars(clips) if isinstance(clips, LatentBatch) else {"clips": clips}
    return {name: tensor.contiguous() for name, tensor in parts.items()}


def _described(tensor: Tensor) -> dict[str, Any]:
    finite = tensor.isfinite()
    return {
        "shape": list(tensor.shape),
        "not_finite": int((~finite).sum()),
        "low": float(tensor[finite].min()) if finite.any() else None,
        "high": float(tensor[finite].max()) if finite.any() else None,
    }
