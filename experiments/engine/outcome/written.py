"""JSON that the suite wrote, read again: whole, or an error that names the file and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pw.io.arguments import ConfigError
from pw.io.files import read_json

NUMBER = (int, float)
TRAINING: dict[str, Any] = {"signature": str}
SAMPLING: dict[str, Any] = {"signature": str, "training": str, "clips": int, "seed": int}
SCORES: dict[str, Any] = {"metrics": dict, "n_videos": dict, "contract": dict}
MARKS: dict[str, tuple[dict[str, Any], str]] = {
    "train": (TRAINING, "put it back, or remove it to train anew"),
    "videos": (SAMPLING, "remove it, and `make sample` or `make ablation` samples again"),
    "reference": ({}, "remove {folder}, and the next sampling writes it again"),
}
"""Where folders lie -> what their done.json holds, and the remedy where it does not."""


def read_written(path: Path, wants: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """The values of a JSON file that must hold `wants`: key -> type.

    remedy: what to do where it is cut off or not ours. Raises ConfigError.
    """
    try:
        values = read_json(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    if values is None:
        raise ConfigError(f"{path}: is cut off, as a crash of the machine leaves it, or no JSON; {remedy}")
    if odd := [key for key, kind in wants.items() if not isinstance(values.get(key), kind)]:
        unexpected = ", ".join(f"{key}={values[key]!r}" if key in values else f"no {key}" for key in odd)
        raise ConfigError(f"{path}: holds {unexpected}, which this suite does not write; {remedy}")
    return values


def mark_of(folder: Path, wants: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The done.json of a training, sampling or reference; empty where it is not there. Raises ConfigError.

    wants: instead of what such a mark holds. A damaged one is an error, not work to do.
    """
    held, remedy = MARKS[folder.parent.name]
    path = folder / "done.json"
    return read_written(path, held if wants is None else wants, remedy.format(folder=folder)) if path.exists() else {}


def read_scores(path: Path) -> dict[str, Any]:
    """A scores.json, as `benchmarks.measure.clips` writes it. Raises ConfigError."""
    return read_written(path, SCORES, "remove it, and `make ablation` scores again")
