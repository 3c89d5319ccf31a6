"""Where a video file should end: the lengths that the outer parts of its container declare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

BOXES = frozenset(b"ftyp styp sidx moov moof mdat mfra free skip wide uuid".split())  # of an .mp4; others may be junk
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # of Matroska
MOST_PARTS = 100_000  # that are looked at


def missing_bytes(path: Path) -> int:
    """By how many bytes a file is shorter than its container says; 0 if that does not say it, as a recording's."""
    return max(0, max((end for _, end in outer_parts(path)), default=0) - path.stat().st_size)


def outer_parts(path: Path) -> Iterator[tuple[bytes, int]]:
    """(kind, place of its end) of the boxes of an .mp4, the RIFF of an .avi, or the header and the segment of Matroska,
    in the order of the file, as long as they are known and have a length."""
    with open(path, "rb") as file:
        place, in_fragments = 0, False
        for _ in range(MOST_PARTS):
            file.seek(place)
            head = file.read(16)
            kind, length = _part(head)
            if not length and in_fragments and 0 < len(head) < 8:  # cut within the head of a box
                kind, length = head[4:], 8
            if not length:
                return
            in_fragments = in_fragments or kind == b"moof"
            place += length
            yield kind, place


def _part(head: bytes) -> tuple[bytes, int]:
    """(kind, length in bytes with its head) of the part that begins with `head`; a length of 0 if it is not known."""
    if head.startswith(b"RIFF"):
        size = int.from_bytes(head[4:8], "little")
        return head[:4], 8 + size if 0 < size < 2**32 - 1 else 0
    if head.startswith((EBML, SEGMENT)) and len(head) > 4 and head[4]:
        width = 9 - head[4].bit_length()
        size = int.from_bytes(head[4 : 4 + width]) - (1 << 7 * width)
        return head[:4], 4 + width + size if size < (1 << 7 * width) - 1 else 0  # all ones: not known
    size = int.from_bytes(head[8:16] if head[:4] == bytes(3) + b"\x01" else head[:4])
    return head[4:8], size if head[4:8] in BOXES and size >= 8 else 0
