"""The published hashes of downloaded files, and which files were found to have them, so that each is hashed once."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from pw.io.files import digest, human_size, length, read_json, sha256, write_json
from pw.io.hub import hash_problem

RECORD = ".sha256.json"  # {file: {"digest", "size", "mtime_ns"}}
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # see `pw.io.hub.fetch`


class HashRecord:
    """The record of the files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.file = self.folder / RECORD
        self.entries = read_json(self.file) or {}
        if not os.access(self.folder, os.W_OK):  # a shared copy
            name = f"{digest(str(self.folder), 16)}.json"
            self.file = Path.home() / ".cache" / "pixelwizard" / "hashes" / name
            self.entries |= read_json(self.file) or {}

    def digest(self, file: Path) -> str:
        """The published hash; "" if it is not known. The Hugging Face cache names a file's content by it."""
        name, entry = file.resolve().name, self.entries.get(self._key(file))
        recorded = entry.get("digest") if isinstance(entry, dict) else ""
        return name if file.is_symlink() and DIGEST.fullmatch(name) else str(recorded or "")

    def problem(self, file: Path, digest: str = "", *, again: bool = False) -> str | None:
        """How the file differs from its published hash; None if it does not, or none is known.

        again  hash also an unchanged file
        """
        digest = digest or self.digest(file)
        if not digest or (not again and self.entries.get(self._key(file)) == self._entry(file, digest)):
            return None
        if (size := length(file)) > 1e9:
            print(f"hashing {human_size(size)}, once: {file}", file=sys.stderr, flush=True)
        if problem := hash_problem(file, sha256(file), digest):
            return f"damaged: its {problem}"
        self.add(file, digest)
        return None

    def add(self, file: Path, digest: str) -> None:
        """Record that the file has this hash; that of a read-only folder is in the user's cache."""
        self.entries[self._key(file)] = self._entry(file, digest)
        with suppress(OSError):
            write_json(self.file, self.entries)

    def _key(self, file: Path) -> str:
        path = file.resolve()
        return str(path.relative_to(self.folder) if path.is_relative_to(self.folder) else path)

    def _entry(self, file: Path, digest: str) -> dict[str, Any]:
        stat = file.stat()
        return {"digest": digest, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
