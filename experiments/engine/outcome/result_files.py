"""Reads the JSON files that the suite writes. A damaged file is an error that names the file and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pw.io.arguments import ConfigError
from pw.io.files import digest, read_json
from pw.io.manifest import check


def read_result(path: Path, types: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """The values of a JSON file. Raises ConfigError with `remedy` if it is damaged or lacks a key of `types`.

    types: key -> type. A checksum is compared; tables of earlier versions have none.
    """
    try:
        values = read_json(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    if values is None:
        raise ConfigError(f"{path}: is truncated, as after a crash, or not JSON; {remedy}")
    if values.pop("checksum", None) not in (None, digest(values, 64)):
        raise ConfigError(f"{path}: is not as it was written, its checksum differs; {remedy}")
    if bad_keys := [key for key, type_ in types.items() if not isinstance(values.get(key), type_)]:
        unexpected = ", ".join(f"{key}={values[key]!r}" if key in values else f"no {key}" for key in bad_keys)
        raise ConfigError(f"{path}: holds {unexpected}, which this suite does not write; {remedy}")
    return values


def mark_of(folder: Path) -> dict[str, Any]:
    """The done.json of a training, sampling or reference; empty if there is none. Raises DamagedResult."""
    path = folder / "done.json"
    return check(path, ["config.yaml"]) if path.exists() else {}


def read_scores(path: Path) -> dict[str, Any]:
    """A scores.json of `benchmarks.measure.clips`. Raises DamagedResult, also for its scores.csv."""
    return check(path)
