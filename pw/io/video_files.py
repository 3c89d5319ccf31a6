"""What counts as a video file, for all commands: which files of a folder are read, and why others are not."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

from pw.io.console import one_line

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
UNREAD_SUFFIXES = (
    *(".wmv", ".asf", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".flv", ".f4v", ".ogv", ".3gp", ".3g2", ".rm"),
    *(".rmvb", ".mxf", ".y4m", ".gif", ".divx", ".h264", ".hevc"),
)
"""Videos in other containers, which are named but not read."""

# Demuxers, not file extensions: hls, concat and similar ones would open URLs in the file.
SAFE_INPUT = {"format_whitelist": "mov,matroska,avi", "protocol_whitelist": "file"}
SIGNATURES = {
    b"\x00\x00\x01\xba": "an MPEG program stream (.mpg)",
    b"FLV\x01": "a Flash video (.flv)",
    b"\x30\x26\xb2\x75": "a Windows Media file (.wmv)",
    b"OggS": "an Ogg file (.ogv)",
    b"GIF8": "a GIF",
}
"""First bytes of containers that are not read."""


def is_video(path: PurePath) -> bool:
    """Whether the name is that of a video that is read; hidden files are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def foreign_container(path: Path) -> str:
    """The name of the file's container by its first bytes, if it is one that is not read; else ""."""
    with open(path, "rb") as file:
        start = file.read(4 + 192 + 192 + 1)
    for offset, size in ((0, 188), (4, 192)):  # a packet's size in a .ts and a .m2ts
        if len(start) > offset + 2 * size and {start[offset + i * size] for i in range(3)} == {0x47}:
            return "an MPEG transport stream (.ts)"
    return next((name for signature, name in SIGNATURES.items() if start.startswith(signature)), "")


def videos_in(folder: Path, *, deep: bool = False) -> tuple[list[Path], dict[str, str]]:
    """(what has the name of a video, sorted; name relative to `folder` -> why what looks like a video is not read).

    The former may be a pipe, a folder or a link to nothing. The latter are videos in other containers, links to
    folders, folders that cannot be read and, unless `deep`, folders with videos. What is hidden is not even named.
    Raises OSError if `folder` cannot be read.
    """
    paths, passed_over = [], {}

    def fail(error: OSError) -> None:
        if error.filename == str(folder):
            raise error
        passed_over[_relative(error.filename, folder)] = f"cannot be read ({error.strerror})"

    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = [Path(place, name) for name in (*files, *folders) if not name.startswith(".")]
        videos = [path for path in visible if is_video(path)]
        others = [path for path in visible if path.suffix.lower() in UNREAD_SUFFIXES]
        if place != str(folder) and not deep:
            if videos or others:
                inner = _relative(place, folder)
                passed_over[inner] = "a folder with videos; only those beside it are read"
            continue
        paths += videos
        passed_over |= {
            _relative(path, folder): f"a {path.suffix} is not read; ffmpeg -i IN -c copy OUT.mkv makes it readable"
            for path in others
        }
        links = [Path(place, name) for name in folders if os.path.islink(Path(place, name))]
        passed_over |= {_relative(link, folder): "a link to a folder, which is not followed" for link in links}
    return sorted(paths), dict(sorted(passed_over.items()))


def _relative(path: str | Path, folder: Path) -> str:
    return one_line(Path(path).relative_to(folder).as_posix())
