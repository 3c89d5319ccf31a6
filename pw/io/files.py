"""Files that are whole or not there: what a reader sees after a crash is the old file or the new one."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pw.io.arguments import ConfigError
from pw.io.lazy import Tensor


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Generator[Path]:
    """Yield a hidden name beside `path`, for a file or a folder; it becomes `path` when the block ends.

    A block that raises leaves nothing of it, and `path` as it was; what a killed process left is removed by the next.
    durable: on the disk, not only in its cache.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if left == partial or _is_abandoned(left):
            remove(left)
    try:
        yield partial
        if durable:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        remove(partial)


def _is_abandoned(partial: Path) -> bool:
    """Whether nobody writes a `.part` any more: its process is gone from here, and as it may be another machine's that
    shares the disk, it was not touched for ten minutes."""
    import psutil

    try:
        return time.time() - partial.stat().st_mtime > 600 and not psutil.pid_exists(int(partial.name.split(".")[-2]))
    except (OSError, ValueError):
        return False


def write_atomically(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a text file, see `replacing`."""
    with replacing(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a `.safetensors` file atomically. Raises OSError where the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as partial:
        try:
            save_file(dict(tensors), partial, None if metadata is None else dict(metadata))
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from error


def check_writable(key: str, folder: Path, name: str = "") -> None:
    """Before what takes long: make the folder, and see whether a file can be written there. Raises ConfigError naming
    the key."""
    if name and (folder / name).is_dir():
        raise ConfigError(f"{key}={folder / name}: is a folder, wants a file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{key}={folder / name}: cannot be written ({error.strerror})") from error


def writable_file(key: str) -> Callable[[str], Path]:
    """Reads a file that is to be written, `out=FILE`; its folder is made."""

    def read(text: str) -> Path:
        path = Path(text).expanduser().absolute()
        check_writable(key, path.parent, path.name)
        return path

    return read


@contextmanager
def alone(lock: Path) -> Generator[None]:
    """One call works at a time; another says so and waits. Raises OSError where nothing can be written."""
    from filelock import FileLock, Timeout

    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(lock).acquire(timeout=0)
    except Timeout:
        print("another call is at work; this one waits", flush=True)
        held = FileLock(lock).acquire()
    with held:
        yield


def check_space(key: str, place: Path, needed: float, remedy: str, what: str = "") -> int:
    """Before what takes long: the bytes free where `place` is or will be. Raises ConfigError naming the key when
    `needed` bytes (for `what`) do not fit."""
    free = shutil.disk_usage(next(path for path in (place, *place.absolute().parents) if path.exists())).free
    if needed > free:
        said = f"{human_size(needed)} {what}".rstrip()
        raise ConfigError(f"{key}={place}: needs {said}, {human_size(free)} are free there; {remedy}")
    return free


def human_size(count: float) -> str:
    """Bytes in words: 12.3 GB, or MB and kB when they are few."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def length(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A CSV with a head; a key that a row lacks is an empty cell."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    write_atomically(path, csv_text(columns, rows))


def write_json(path: Path, values: Any, *, durable: bool = False) -> None:
    write_atomically(path, json.dumps(values, indent=1, default=str) + "\n", durable=durable)


def read_json(path: Path) -> dict[str, Any] | None:
    """What `write_json` wrote; None where it is not, or cut off by a crash of the machine."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def digest(values: Any, length: int = 8) -> str:
    """Hex digits that name plain data: the same for equal content, whatever the order of keys."""
    text = json.dumps(values, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]
