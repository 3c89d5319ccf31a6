"""What the suite wrote as JSON, read again: whole, or an error that names the file and what would do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pw.io.files import read_json
from pw.run.compose import ConfigError

NUMBER = (int, float)
TRAINING: dict[str, Any] = {"signature": str}
SAMPLING: dict[str, Any] = {"signature": str, "training": str, "clips": int, "seed": int}
SCORES: dict[str, Any] = {"metrics": dict, "n_videos": dict, "contract": dict}


def read_written(path: Path, wants: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """The values of a JSON file, with what it must hold: key -> type.

    remedy: what would do, said where it is cut off or somebody else's. Raises ConfigError.
    """
    try:
        found = read_json(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    if found is None:
        raise ConfigError(f"{path}: is cut off, as a crash of the machine leaves it, or no JSON; {remedy}")
    if odd := [key for key, kind in wants.items() if not isinstance(found.get(key), kind)]:
        told = ", ".join(f"{key}={found[key]!r}" if key in found else f"no {key}" for key in odd)
        raise ConfigError(f"{path}: holds {told}, which this suite does not write; {remedy}")
    return found


def read_training(folder: Path, wants: Mapping[str, Any] = TRAINING) -> dict[str, Any]:
    """The mark of a finished training (D49: it is not passed over as not done). Raises ConfigError."""
    return read_written(folder / "done.json", wants, "put it back, or remove it to train anew")


def read_sampling(folder: Path, wants: Mapping[str, Any] = SAMPLING) -> dict[str, Any]:
    """The mark of sampled clips. Raises ConfigError."""
    remedy = "remove it, and `make sample` or `make ablation` samples again"
    return read_written(folder / "done.json", wants, remedy)


def read_reference(folder: Path) -> dict[str, Any]:
    """The mark of written evaluation clips. Raises ConfigError."""
    return read_written(folder / "done.json", {}, f"remove {folder}, and the next sampling writes it again")


def read_scores(path: Path) -> dict[str, Any]:
    """A scores.json, as `benchmarks.measure.clips` writes it. Raises ConfigError."""
    return read_written(path, SCORES, "remove it, and `make ablation` scores again")
