"""The mark of a finished result (`done.json`, `scores.json`): what made it, and the SHA-256 of its files (D83).

A mark is written last, atomically. Every reader of a result checks it: the mark itself, that it is of this folder, the
sizes of the files, and their content. A file above `LARGE` is hashed only by a reader of its content.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pw.io.arguments import ConfigError
from pw.io.files import digest, read_json, remove, sha256, write_json

LARGE = 2**26  # bytes: smaller files are hashed by everyone who asks whether a result is whole
SETTLED = 2.0  # seconds after its last change, from which a file's hash is kept: clocks of file systems are coarse
REMEDIES = {
    "train": "put it back, or remove {} to train again",
    "videos": "`make sample` and `make ablation` make it again",
    "reference": "the next `make sample` or `make ablation` makes it again",
    "scores": "`make ablation` makes it again",
}
"""Kind of result, the name of the folder above its own -> remedy; {} is its folder."""


class DamagedResult(ConfigError):
    """A result on disk is not what was written there."""


def make_folder(folder: Path) -> None:
    """Create the folder of a result, if it does not exist. What is no folder, and a link to another result, is removed,
    except in place of a training. Raises DamagedResult."""
    is_another = folder.is_symlink() and Path(os.path.realpath(folder)).name != folder.name
    if os.path.lexists(folder) and (is_another or not folder.is_dir()):
        if _kind(folder / "done.json") == "train":
            raise _damage(folder / "done.json", folder, "is no folder, or a link to that of another training")
        folder.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / ".lock").is_dir():
        remove(folder / ".lock")


def write_mark(path: Path, values: Mapping[str, Any], files: Iterable[Path]) -> None:
    """Write a mark: the values, the name of its folder, the size and SHA-256 of `files` below it, its own checksum."""
    listed = {str(f.relative_to(path.parent)): {"size": f.stat().st_size, "sha256": checksum(f)} for f in sorted(files)}
    content = json.loads(json.dumps({**values, "folder": path.parent.name, "files": listed}, default=str))
    if path.is_dir():
        remove(path)
    write_json(path, {**content, "checksum": digest(content, 64)})


def read_mark(path: Path) -> dict[str, Any]:
    """The content of a mark without its checksum. Raises DamagedResult if anything in it differs from what was written,
    or if it is of another folder. That of a training from before checksums lists no files, and a warning says so."""
    try:
        content = read_json(path)
    except OSError as error:
        raise _damage(path, path, f"cannot be read ({error.strerror})") from error
    if content is None:
        raise _damage(path, path, "is truncated, as after a crash, or not JSON")
    if "checksum" not in content and _kind(path) == "train" and content.get("signature") == path.parent.name:
        _warn_once(f"{path}: of a version of the suite without checksums; its files are taken as they are")
        return {**content, "folder": path.parent.name, "files": {}}
    if "checksum" not in content:
        raise _damage(path, path, "has no checksum: an earlier version of the suite, or another program, wrote it")
    if content.pop("checksum") != digest(content, 64) or not isinstance(content.get("files"), dict):
        raise _damage(path, path, "is not as it was written, its checksum differs")
    if _kind(path) in REMEDIES and content.get("folder") != path.parent.name:
        raise _damage(path, path, f"is of {content.get('folder')}, not of {path.parent.name}")
    return content


def check(path: Path, names: Collection[str] | None = None, *, thorough: bool = False) -> dict[str, Any]:
    """The content of a mark, after a check of its files, or of those in `names`. Raises DamagedResult.

    thorough  hash files above `LARGE`, too
    """
    content = read_mark(path)
    files = {name: entry for name, entry in content["files"].items() if names is None or name in names}
    for name, reason in damaged_files(path.parent, files, thorough=thorough).items():
        raise _damage(path, path.parent / name, reason)
    return content


def whole(path: Path, names: Collection[str] | None = None, *, thorough: bool = False) -> dict[str, Any] | None:
    """As `check`; None if there is no mark, or something is damaged, which a warning then says."""
    if not path.exists():
        return None
    try:
        return check(path, names, thorough=thorough)
    except DamagedResult as error:
        _warn_once(str(error))
        return None


def damaged_files(folder: Path, files: Mapping[str, Mapping[str, Any]], *, thorough: bool = False) -> dict[str, str]:
    """Name -> what is wrong with it, of those of a mark's `files` that are not as they were written."""
    damage = {name: _damage_of(folder / name, entry, thorough) for name, entry in files.items()}
    return {name: reason for name, reason in damage.items() if reason}


def listed_names(folder: Path) -> set[str] | None:
    """The names of the files in a folder of clips of the suite, all whole; None for any other folder.

    What else is there is not of this result. Raises DamagedResult.
    """
    for mark, prefix in ((folder / "done.json", ""), (folder.parent / "done.json", f"{folder.name}/")):
        if _kind(mark) in ("videos", "reference") and mark.exists():
            files = read_mark(mark)["files"]
            names = {name for name in files if name.rpartition("/")[0] == prefix.rstrip("/")}
            check(mark, names, thorough=True)
            return {name.removeprefix(prefix) for name in names}
    return None


def checksum(path: Path) -> str:
    """The SHA-256 of a file, computed once per process unless the file changes."""
    status = path.stat()
    if time.time() - status.st_ctime < SETTLED:
        return sha256(path)
    return _sha256(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=2**16)
def _sha256(path: Path, *state: int) -> str:
    return sha256(path)


def _damage_of(path: Path, entry: Mapping[str, Any], thorough: bool) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "is no file"
        if status.st_size != entry["size"]:
            return f"has {status.st_size:,} bytes, {entry['size']:,} were written"
        if (thorough or status.st_size < LARGE) and checksum(path) != entry["sha256"]:
            return "has another content than was written"
    except FileNotFoundError:
        return "is gone"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""


def _damage(mark: Path, path: Path, reason: str) -> DamagedResult:
    return DamagedResult(f"{path}: {reason}; {REMEDIES.get(_kind(mark), 'put it back').format(mark.parent)}")


def _kind(mark: Path) -> str:
    return mark.absolute().parent.parent.name


@lru_cache
def _warn_once(text: str) -> None:
    logging.getLogger("pw").warning(text)
