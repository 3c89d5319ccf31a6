"""contact_sheet.png: the same clips in columns, a row for each source.

No date, no version in the file: the same input gives the same bytes on one machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

WIDTH, HEIGHT = 1600, 3600
"""Of a sheet in px: tiles are as large as this allows."""

LARGEST = 480
"""Px of a tile, however few there are."""

GAP, APART, TOP, MARGIN = 6, 26, 34, 12

Row = tuple[str, Sequence[Path | None]]


def contact_sheet(blocks: Sequence[Sequence[Row]], out: Path) -> None:
    """Write the middle frames. Clips of a few px are enlarged pixel by pixel, large ones averaged down.

    blocks: rows of (label, clip paths) that belong together; blocks are set apart, every other one on grey. None, or a
        file that is not there, leaves its cell empty. Smaller clips (anchors) are enlarged to the size of the largest.
    Raises: ValueError for no clips at all, or rows of different length.
    """
    from PIL import Image, ImageDraw, ImageFont

    blocks = [block for block in blocks if block]
    rows = list(chain.from_iterable(blocks))
    lengths = {len(paths) for _, paths in rows}
    if len(lengths) != 1:
        raise ValueError(f"a contact sheet needs rows of one length; lengths are {sorted(lengths)}")
    frames = [[_middle_frame(path) for path in paths] for _, paths in rows]
    there = [frame.shape[:2] for row in frames for frame in row if frame is not None]
    if not there:
        raise ValueError(f"none of the clips of the contact sheet is there, e.g. {rows[0][1][0]}")
    n, font, small = lengths.pop(), ImageFont.load_default(20), ImageFont.load_default(16)
    left = MARGIN + int(max(font.getlength(label) for label, _ in rows)) + 14
    largest = max(size[0] for size in there), max(size[1] for size in there)
    width, height = _tile_size(*largest, (WIDTH - left) // n - GAP, HEIGHT // len(rows) - GAP)
    bands = [len(block) * (height + GAP) + GAP for block in blocks]
    size = (left + n * (width + GAP) + MARGIN, TOP + sum(band + APART for band in bands) - APART + MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, name in enumerate(_column_names(rows, n)):
        draw.text((left + i * (width + GAP) + width / 2, TOP / 2), name, "#555555", small, anchor="mm")
    y, found = TOP, iter(frames)
    for i, (block, band) in enumerate(zip(blocks, bands, strict=True)):
        if i % 2 == 0:
            draw.rectangle((0, y - APART // 4, size[0], y + band - GAP + APART // 4), "#E8E8E8")
        for j, (label, _) in enumerate(block):
            at = y + j * (height + GAP) + GAP // 2
            draw.text((left - 14, at + height / 2), label, "black", font, anchor="rm")
            for k, frame in enumerate(next(found)):
                sheet.paste(_tile(frame, width, height), (left + k * (width + GAP), at))
        y += band + APART
    sheet.save(out, format="PNG")


def _tile_size(height: int, width: int, most_wide: int, most_high: int) -> tuple[int, int]:
    """(width, height) of a tile: a whole number of px per px where clips are enlarged."""
    factor = min(min(most_wide, LARGEST) / width, min(most_high, LARGEST) / height)
    factor = float(int(factor)) if factor >= 1 else factor
    return max(1, round(width * factor)), max(1, round(height * factor))


def _middle_frame(path: Path | None) -> np.ndarray | None:
    """uint8 [H, W, 3] of frame F // 2, or None if there is no clip."""
    if path is None or not path.exists():
        return None
    from pw.io.video import read_video

    frames = read_video(path)
    return frames[len(frames) // 2]


def _tile(frame: np.ndarray | None, width: int, height: int) -> Image:
    from PIL import Image

    if frame is None:
        return Image.new("RGB", (width, height), "#C8C8C8")
    resample = Image.Resampling.NEAREST if frame.shape[1] <= width else Image.Resampling.BOX
    return Image.fromarray(frame).resize((width, height), resample)


def _column_names(rows: Sequence[Row], n: int) -> list[str]:
    return [next((f"clip {p.stem}" for _, paths in rows if (p := paths[i]) is not None), "") for i in range(n)]
