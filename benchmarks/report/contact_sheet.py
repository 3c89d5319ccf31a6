"""Contact sheets: the same clips in columns, a row for each source; or two folders of videos side by side.

No date, no version in the file: the same input gives the same bytes on one machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.metrics.implementation import spread

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

WIDTH, HEIGHT = 1600, 3600
"""Of a sheet in px: tiles are as large as this allows."""

LARGEST = 480
"""Px of a tile, however few there are."""

GAP, APART, TOP, MARGIN = 6, 26, 34, 12

VIDEOS, FRAMES = 4, 3
CELL = 300
"""Width in px of a cell of two folders side by side; the last column shows as many px of the middle frame 1:1."""

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
    width, height = tile = _tile_size(*largest, (WIDTH - left) // n - GAP, HEIGHT // len(rows) - GAP)
    bands = [len(block) * (height + GAP) + GAP for block in blocks]
    size = (left + n * (width + GAP) + MARGIN, TOP + sum(band + APART for band in bands) - APART + MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i in range(n):
        name = next((f"clip {path.stem}" for _, paths in rows if (path := paths[i]) is not None), "")
        draw.text((left + i * (width + GAP) + width / 2, TOP / 2), name, "#555555", small, anchor="mm")
    y, found = TOP, iter(frames)
    for i, (block, band) in enumerate(zip(blocks, bands, strict=True)):
        if i % 2 == 0:
            draw.rectangle((0, y - APART // 4, size[0], y + band - GAP + APART // 4), "#E8E8E8")
        for j, (label, _) in enumerate(block):
            at = y + j * (height + GAP) + GAP // 2
            draw.text((left - 14, at + height / 2), label, "black", font, anchor="rm")
            for k, frame in enumerate(next(found)):
                shown = Image.new("RGB", tile, "#C8C8C8") if frame is None else _fitted(frame, tile)
                sheet.paste(shown, (left + k * (width + GAP), at))
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


def _fitted(image: np.ndarray, size: tuple[int, int]) -> Image:
    """Into a tile of (width, height): small pictures enlarged pixel by pixel, large ones averaged down."""
    from PIL import Image

    resample = Image.Resampling.NEAREST if image.shape[1] <= size[0] else Image.Resampling.BOX
    return Image.fromarray(image).resize(size, resample)


def video_sizes(paths: Iterable[Path]) -> dict[str, int]:
    """`2560 x 1408, 121 frames, 24 fps` -> how many videos are so; "unreadable" for broken ones."""
    from pw.io.video import VideoError, probe

    def size(path: Path) -> str:
        try:
            info = probe(path)
        except VideoError:
            return "unreadable"
        return f"{info.width} x {info.height}, {info.frames} frames, {info.fps:g} fps"

    return dict(Counter(map(size, paths)))


def side_by_side(a: tuple[str, Mapping[str, Path]], b: tuple[str, Mapping[str, Path]], out: Path) -> Path | None:
    """The same frames of the same videos, a above b; the last column is the middle frame's centre at full size.

    a, b: (label, file name -> video); videos are the same by name without ending.
    Returns: out, or None (and no file) where no two readable videos share a name.
    """
    from PIL import Image, ImageDraw, ImageFont

    from pw.io.video import VideoError

    theirs = {Path(name).stem: path for name, path in b[1].items()}
    blocks = []
    for name, path in a[1].items():
        if Path(name).stem in theirs and len(blocks) < VIDEOS:
            try:
                blocks.append(_block(path, theirs[Path(name).stem]))
            except VideoError:  # said where the videos are scored
                continue
    if not blocks:
        return None
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    margin, top, gap = 30, 24, 4
    width = margin + max(sum(cell.width + gap for cell in rows[0]) for _, _, rows in blocks)
    heights = [top + sum(row[0].height + gap for row in rows) + 2 * gap for _, _, rows in blocks]
    sheet = Image.new("RGB", (width, 28 + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((8, 6), f"a: {a[0]}     b: {b[0]}", "black", font)
    y = 28
    for (name, heads, rows), block_height in zip(blocks, heights, strict=True):
        cell_width, cell_height = rows[0][0].size
        for i, head in enumerate(heads):
            text = f"{name}   {head}" if i == 0 else head
            draw.text((margin + i * (cell_width + gap) + 2, y + 6), text, "#555555", small)
        for j, (label, row) in enumerate(zip("ab", rows, strict=True)):
            at = y + top + j * (cell_height + gap)
            draw.text((margin / 2, at + cell_height / 2), label, "black", font, anchor="mm")
            for i, cell in enumerate(row):
                sheet.paste(cell, (margin + i * (cell_width + gap), at))
        y += block_height
    sheet.save(out, format="PNG")
    return out


def _block(a: Path, b: Path) -> tuple[str, list[str], list[list[Image]]]:
    """One video of both: its name, the columns' heads, and two rows of cells of one size."""
    from pw.io.video import iter_frames, probe

    infos = [probe(path) for path in (a, b)]
    wanted = spread(FRAMES, min(info.frames for info in infos))
    width = infos[0].width if infos[0].width <= CELL else CELL
    width *= max(1, CELL // (2 * width))  # a whole number of px per px where it is enlarged
    size = (width, max(1, round(width * infos[0].height / infos[0].width)))
    is_large = any(info.width > CELL for info in infos)
    rows = []
    for path in (a, b):
        frames = islice(iter_frames(path), wanted[-1] + 1)  # nothing beyond the last is decoded
        images = [image for index, image in enumerate(frames) if index in wanted]
        centre = [_centre(images[len(images) // 2], size)] if is_large else []
        rows.append([*(_fitted(image, size) for image in images), *centre])
    heads = [f"frame {index}" for index in wanted] + ([f"frame {wanted[len(wanted) // 2]}, 1:1"] if is_large else [])
    return a.stem if len(a.stem) <= 28 else f"{a.stem[:27]}…", heads, rows


def _centre(image: np.ndarray, size: tuple[int, int]) -> Image:
    """The middle of a frame in its own pixels; what a smaller frame lacks is grey."""
    from PIL import Image

    cell = Image.new("RGB", size, "#DDDDDD")
    height, width = image.shape[:2]
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    part = image[max(0, top) : max(0, top) + size[1], max(0, left) : max(0, left) + size[0]]
    cell.paste(Image.fromarray(part), (max(0, -left), max(0, -top)))
    return cell
