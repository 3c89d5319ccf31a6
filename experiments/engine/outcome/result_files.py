"""Reads the JSON files that the suite writes. A damaged file is an error that names the file and the remedy."""

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
    "train": (TRAINING, "restore it, or remove it to train again"),
    "videos": (SAMPLING, "remove it, and `make sample` or `make ablation` samples again"),
    "reference": ({}, "remove {folder}, and the next sampling writes it again"),
}
"""Parent folder -> (key -> type in done.json, remedy for a damaged file)."""


def read_result(path: Path, types: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """The values of a JSON file. Raises ConfigError with `remedy` if it is damaged or lacks a key of `types`.

    types: key -> type
    """
    try:
        values = read_json(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    if values is None:
        raise ConfigError(f"{path}: is truncated, as after a crash, or not JSON; {remedy}")
    if bad_keys := [key for key, type_ in types.items() if not isinstance(values.get(key), type_)]:
        unexpected = ", ".join(f"{key}={values[key]!r}" if key in values else f"no {key}" for key in bad_keys)
        raise ConfigError(f"{path}: holds {unexpected}, which this suite does not write; {remedy}")
    return values


def mark_of(folder: Path, types: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The done.json of a training, sampling or reference; empty if there is none. Raises ConfigError if damaged.

    types: key -> type, instead of those in MARKS
    """
    default, remedy = MARKS[folder.parent.name]
    path = folder / "done.json"
    return read_result(path, default if types is None else types, remedy.format(folder=folder)) if path.exists() else {}


def read_scores(path: Path) -> dict[str, Any]:
    """A scores.json of `benchmarks.measure.clips`. Raises ConfigError if damaged."""
    return read_result(path, SCORES, "remove it, and `make ablation` scores again")
