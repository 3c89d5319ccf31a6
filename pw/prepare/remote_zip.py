"""A zip on the Hub, read member by member over HTTP ranges, and what may be taken out of a zip at all."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from pathlib import PurePosixPath, PureWindowsPath

from pw.io.arguments import ConfigError
from pw.io.hub import HubFile, read_range
from pw.prepare.source_videos import ENDINGS

WINDOW = 1 << 16  # bytes read at once where a zip keeps its directory
LONGEST_WINDOW = 1 << 23  # bytes read at once of a clip
LONGEST_READ = 1 << 26  # bytes that a zip may ask for at once: its directory has some hundred bytes for each clip
HEADER = 1 << 12  # bytes before a clip in a zip, at most, as a rule


class RemoteFile(io.RawIOBase):
    """A file on the Hub for `zipfile` to read: fetches `window` bytes at a time and holds only those."""

    def __init__(self, source: HubFile, size: int) -> None:
        self.source, self.size, self.window = source, size, WINDOW
        self._at = self._start = 0
        self._held = b""

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if self._at < 0:
            raise OSError(f"{self.source}: seek to {self._at}")
        return self._at

    def expect(self, count: int) -> None:
        """That so many bytes of one member will be read next."""
        self.window = min(count + HEADER, LONGEST_WINDOW)

    def read(self, n: int = -1) -> bytes:
        stop = self.size if n < 0 else min(self.size, self._at + n)
        if stop - self._at > LONGEST_READ:
            raise zipfile.BadZipFile(f"declares a directory of {stop - self._at:,} bytes")
        pieces = []
        while self._at < stop:
            if not self._start <= self._at < self._start + len(self._held):
                # the end is read backwards, in bits of a few bytes
                self._start = min(self._at, max(0, self.size - WINDOW))
                end = min(self.size, max(stop, self._at + self.window))
                self._held = read_range(self.source, self._start, end)
            piece = self._held[self._at - self._start : stop - self._start]
            pieces.append(piece)
            self._at += len(piece)
        return b"".join(pieces)


def clips_in(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """The videos of a zip.

    Raises:
        ConfigError: any member has an absolute path, a `..` in it, or is a link.
    """
    for member in archive.infolist():
        path = PureWindowsPath(member.filename)  # takes / as well as \ and C: apart
        if path.anchor or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
            raise ConfigError(
                f"{name}: holds {member.filename!r}, a link or a path that leads elsewhere; nothing was taken from "
                "it. Do not trust this server: set HF_ENDPOINT to another, or give another revision="
            )
    return [
        member
        for member in archive.infolist()
        if member.filename.lower().endswith(ENDINGS) and not PurePosixPath(member.filename).name.startswith(".")
    ]
