"""Atomic writes of files: after a crash a reader sees the old file or the new one. Also locks, sizes and hashes."""

from __future__ import annotations

import csv
import errno
import glob
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pw.io.arguments import ConfigError
from pw.io.lazy import Tensor


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Generator[Path]:
    """Yield a temporary path beside `path`, for a file or a folder; it is renamed to `path` when the block ends.

    If the block raises, the temporary file is removed and `path` is unchanged. The next call for the same `path`
    removes the files of killed processes. durable: flush the file to the disk first. Raises OSError for a device.
    """
    if _is_special(path):
        raise OSError(errno.EEXIST, SPECIAL, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if leftover == partial or _is_abandoned(leftover):
            remove(leftover)
    try:
        yield partial
        if durable:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        remove(partial)


SPECIAL = "is a device or pipe, expected a file"


def _is_special(path: Path) -> bool:
    """Whether it is a device or pipe, which a rename would replace (`json=/dev/full` of root)."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _is_abandoned(partial: Path) -> bool:
    """Whether no process writes a `.part` any more: its process does not run here, and it has not changed for ten
    minutes (another machine that shares the disk may write it)."""
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
    """Write a `.safetensors` file atomically. Raises OSError if the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as partial:
        try:
            save_file(dict(tensors), partial, None if metadata is None else dict(metadata))
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from error


FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


def os_reason(error: OSError) -> str:
    """An error of the file system in words: the file, if it is known, what is wrong, and what would help."""
    text = error.strerror or str(error)
    if error.errno in FULL or (error.errno is None and "No space left" in text):
        text = f"the disk is full ({text})"
    if error.errno in (errno.EISDIR, errno.ENOTDIR):
        text += "; move it away"
    if error.errno in NOT_WRITABLE:
        text += "; outputs=, out= and cache= choose another place"
    place = error.filename2 or error.filename
    return text if place is None else f"{place}: {text}"


def check_writable(key: str, folder: Path, name: str = "") -> None:
    """Test that a file can be written to the folder, or to the nearest that exists above it; leaves nothing there.

    name  of the file, which may exist but is no folder and no device
    Raises ConfigError with the key.
    """
    path = folder / name
    if name and path.is_dir():
        raise ConfigError(f"{key}={path}: is a folder, expected a file")
    if name and _is_special(path):
        raise ConfigError(f"{key}={path}: {SPECIAL}")
    try:
        nearest = next(above for above in (folder, *folder.absolute().parents) if os.path.lexists(above))
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = error.strerror if error.errno not in FULL else f"the disk is full: {error.strerror}"
        example = f"{key}=~/{folder.name}" + (f"/{name}" if name else "")
        raise ConfigError(
            f"{key}={path}: cannot be written ({reason}); expected a place that can, e.g. {example}"
        ) from error


def writable_file(key: str) -> Callable[[str], Path]:
    """A parser of an output file, `out=FILE`, whose folder need not exist. A link is followed (/dev/stdout)."""

    def read(text: str) -> Path:
        if _is_special(Path(text).expanduser()):
            raise ValueError(SPECIAL)
        path = Path(os.path.realpath(Path(text).expanduser()))
        check_writable(key, path.parent, path.name)
        return path

    return read


@contextmanager
def exclusive_lock(lock: Path) -> Generator[None]:
    """Hold a file lock; if another call holds it, print that and wait. Raises OSError if the file cannot be written."""
    from filelock import FileLock, Timeout

    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock_guard = FileLock(lock).acquire(timeout=0)
    except Timeout:
        print("another call is running; waiting for it", flush=True)
        lock_guard = FileLock(lock).acquire()
    with lock_guard:
        yield


def check_space(key: str, path: Path, size: float, remedy: str, purpose: str = "") -> int:
    """Free bytes on the disk of `path`, which need not exist. Raises ConfigError with the key if fewer than `size`
    bytes (for `purpose`) are free."""
    free = free_space(path)
    if size > free:
        request = f"{human_size(size)} {purpose}".rstrip()
        raise ConfigError(f"{key}={path}: needs {request}, {human_size(free)} are free there; {remedy}")
    return free


def free_space(path: Path) -> int:
    """Free bytes on the disk of `path`, which need not exist."""
    return shutil.disk_usage(next(parent for parent in (path, *path.absolute().parents) if parent.exists())).free


def human_size(count: float) -> str:
    """Bytes as text: 12.3 GB, or in TB, MB or kB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def length(path: Path) -> int:
    """Bytes of a file, 0 if it does not exist."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# a spreadsheet would compute such a cell; ' before it says that it is text, and '' that the text begins with '
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV with a header line; a key that is missing in a row becomes an empty cell. `read_csv` reads it."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(_csv_cell, columns))
    writer.writerows([_csv_cell(row.get(column, "")) for column in columns] for row in rows)
    return file.getvalue()


def _csv_cell(value: Any) -> Any:
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)  # -1.5, as text
    except ValueError:
        return f"'{value}"
    return value


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """(columns, rows) of a file of `csv_text`. Raises OSError or ValueError."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = [[_csv_text(cell) for cell in line] for line in csv.reader(file) if line] or [[]]
    except csv.Error as error:
        raise ValueError(str(error)) from error
    return header, [dict(zip(header, line, strict=False)) for line in lines]


def _csv_text(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    write_atomically(path, csv_text(columns, rows))


def write_json(path: Path, values: Any, *, durable: bool = False) -> None:
    write_atomically(path, json.dumps(values, indent=1, default=str) + "\n", durable=durable)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for any other text, also for one that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """The object that `write_json` wrote; None if the file is missing, truncated by a crash, or another's."""
    try:
        if path.is_fifo():  # reading would wait for a writer
            return None
        values = parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def remove(path: Path) -> None:
    """Remove a file, a folder or a link, if it exists; never what a link points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def digest(values: Any, length: int = 8) -> str:
    """The first hex digits of the SHA-256 of plain data as JSON; the order of keys does not matter."""
    text = json.dumps(values, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]
