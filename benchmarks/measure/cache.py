"""Scores that survive: one small file per (video's content, metric, what the metric depends on).

A file that is there was written whole, so a run that was killed goes on with the video it was at, and a video that was
renamed or copied is not measured again. PW_SCORES names the folder, by default outputs/cache/scores.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pw.io.files import write_atomically
from pw.io.paths import OUTPUTS


@dataclass(frozen=True)
class Entry:
    """A measured value, with the number of frames of the video."""

    value: float
    frames: int


def default_folder() -> Path:
    """PW_SCORES, or outputs/cache/scores of this repository."""
    return Path(os.environ.get("PW_SCORES") or OUTPUTS / "cache" / "scores").expanduser()


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises: OSError if it cannot be read, or is no file: opening a named pipe would wait for ever.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Cache:
    """A folder of entries, safe for several processes at once: entries are only ever added, each atomically."""

    folder: Path

    def get(self, video: str, metric: str, depends: Mapping[str, Any]) -> Entry | None:
        """The entry of a video (its content hash), None if it is not there or not readable.

        depends: whatever the value depends on beside the video: protocol, settings, hashes of weights.
        """
        try:
            found = json.loads(self._path(video, metric, depends).read_text(encoding="utf-8"))
            entry = Entry(float(found["value"]), int(found["frames"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return entry if math.isfinite(entry.value) else None

    def put(self, video: str, metric: str, depends: Mapping[str, Any], entry: Entry) -> None:
        """Add an entry.

        Raises: ValueError for a value that is not finite, which is no score.
        """
        if not math.isfinite(entry.value):
            raise ValueError(f"{metric} of {video[:12]} is {entry.value}, which is no score")
        about = {**asdict(entry), "metric": metric, "video": video, "depends": dict(depends)}
        write_atomically(self._path(video, metric, depends), json.dumps(about, indent=1, sort_keys=True) + "\n")

    def _path(self, video: str, metric: str, depends: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(json.dumps([metric, depends], sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / video[:2] / video / f"{metric}-{key}.json"
