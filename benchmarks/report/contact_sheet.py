"""Contact sheets: PNGs with a column per clip and a row per source, or with two folders of videos side by side.

The files hold no date and no version: on one machine, the same input gives the same bytes.
"""

from __future__ import annotations

import logging
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
"""Maximum size of a sheet in px. Tiles are as large as it allows."""

MAX_TILE = 480
"""Maximum side of a tile in px."""

GAP, BLOCK_GAP, TOP, MARGIN = 6, 26, 34, 12

VIDEOS, FRAMES = 4, 3
CELL = 300
"""Width in px of a cell of `side_by_side`. The last column shows a crop of this width from the middle frame, 1:1."""

Row = tuple[str, Sequence[Path | None]]


def contact_sheet(blocks: Sequence[Sequence[Row]], out: Path) -> None:
    """Write a PNG with the middle frame of every clip. Small clips are enlarged pixel by pixel, large ones averaged.

    blocks: rows of (label, clip paths) that belong together; every other block has a grey background. A path that is
        None, does not exist or cannot be read leaves its cell empty. All tiles have the size of the largest clip's.
    Raises: ValueError if there is no clip, or if the rows differ in length.
    """
    from PIL import Image, ImageDraw, ImageFont

    blocks = [block for block in blocks if block]
    rows = list(chain.from_iterable(blocks))
    lengths = {len(paths) for _, paths in rows}
    if len(lengths) != 1:
        raise ValueError(f"a contact sheet needs rows of one length; lengths are {sorted(lengths)}")
    frames = [[_middle_frame(path) for path in paths] for _, paths in rows]
    sizes = [frame.shape[:2] for row in frames for frame in row if frame is not None]
    if not sizes:
        raise ValueError(f"no clip of the contact sheet exists, e.g. {rows[0][1][0]}")
    n, font, small = lengths.pop(), ImageFont.load_default(20), ImageFont.load_default(16)
    left = MARGIN + int(max(font.getlength(label) for label, _ in rows)) + 14
    largest = max(size[0] for size in sizes), max(size[1] for size in sizes)
    width, height = tile = _tile_size(*largest, (WIDTH - left) // n - GAP, HEIGHT // len(rows) - GAP)
    bands = [len(block) * (height + GAP) + GAP for block in blocks]
    size = (left + n * (width + GAP) + MARGIN, TOP + sum(band + BLOCK_GAP for band in bands) - BLOCK_GAP + MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i in range(n):
        name = next((f"clip {path.stem}" for _, paths in rows if (path := paths[i]) is not None), "")
        draw.text((left + i * (width + GAP) + width / 2, TOP / 2), name, "#555555", small, anchor="mm")
    y, frame_rows = TOP, iter(frames)
    for i, (block, band) in enumerate(zip(blocks, bands, strict=True)):
        if i % 2 == 0:
            draw.rectangle((0, y - BLOCK_GAP // 4, size[0], y + band - GAP + BLOCK_GAP // 4), "#E8E8E8")
        for j, (label, _) in enumerate(block):
            row_y = y + j * (height + GAP) + GAP // 2
            draw.text((left - 14, row_y + height / 2), label, "black", font, anchor="rm")
            for k, frame in enumerate(next(frame_rows)):
                image = Image.new("RGB", tile, "#C8C8C8") if frame is None else _resize(frame, tile)
                sheet.paste(image, (left + k * (width + GAP), row_y))
        y += band + BLOCK_GAP
    sheet.save(out, format="PNG")


def _tile_size(height: int, width: int, max_width: int, max_height: int) -> tuple[int, int]:
    """(width, height) of a tile. Clips are enlarged by a whole factor only."""
    factor = min(min(max_width, MAX_TILE) / width, min(max_height, MAX_TILE) / height)
    factor = float(int(factor)) if factor >= 1 else factor
    return max(1, round(width * factor)), max(1, round(height * factor))


def _middle_frame(path: Path | None) -> np.ndarray | None:
    """Frame F // 2 of a clip, uint8 [H, W, 3]; None if the file does not exist or cannot be read."""
    if path is None or not path.exists():
        return None
    from pw.io.video import VideoError, read_video

    try:
        frames = read_video(path)
    except VideoError as error:
        logging.getLogger("pw").warning(f"not on the contact sheet: {error}")
        return None
    return frames[len(frames) // 2]


def _resize(image: np.ndarray, size: tuple[int, int]) -> Image:
    """Resize to (width, height): a small image is enlarged pixel by pixel, a large one averaged."""
    from PIL import Image

    resample = Image.Resampling.NEAREST if image.shape[1] <= size[0] else Image.Resampling.BOX
    return Image.fromarray(image).resize(size, resample)


def video_sizes(paths: Iterable[Path]) -> dict[str, int]:
    """Count videos by format, e.g. `2560 x 1408, 121 frames, 24 fps`; broken videos count as "unreadable"."""
    from pw.io.video import VideoError, probe

    def size(path: Path) -> str:
        try:
            info = probe(path)
        except VideoError:
            return "unreadable"
        return f"{info.width} x {info.height}, {info.frames} frames, {info.fps:g} fps"

    return dict(Counter(map(size, paths)))


def side_by_side(a: tuple[str, Mapping[str, Path]], b: tuple[str, Mapping[str, Path]], out: Path) -> Path | None:
    """Write a PNG of the same frames of two sets of videos, a above b; the last column is a 1:1 crop of the centre.

    a, b: (label, file name -> video). Videos are paired by file name without suffix.
    Returns: out, or None (and writes no file) if no two readable videos share a name.
    """
    from PIL import Image, ImageDraw, ImageFont

    from pw.io.video import VideoError

    paths_b = {Path(name).stem: path for name, path in b[1].items()}
    blocks = []
    for name, path in a[1].items():
        if Path(name).stem in paths_b and len(blocks) < VIDEOS:
            try:
                blocks.append(_block(path, paths_b[Path(name).stem]))
            except VideoError:  # reported where the videos are scored
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
            row_y = y + top + j * (cell_height + gap)
            draw.text((margin / 2, row_y + cell_height / 2), label, "black", font, anchor="mm")
            for i, cell in enumerate(row):
                sheet.paste(cell, (margin + i * (cell_width + gap), row_y))
        y += block_height
    sheet.save(out, format="PNG")
    return out


def _block(a: Path, b: Path) -> tuple[str, list[str], list[list[Image]]]:
    """For one pair of videos: the name, the column headings, and two rows of cells of one size."""
    from pw.io.video import iter_frames, probe

    infos = [probe(path) for path in (a, b)]
    indices = spread(FRAMES, min(info.frames for info in infos))
    width = infos[0].width if infos[0].width <= CELL else CELL
    width *= max(1, CELL // (2 * width))  # enlarge by a whole factor only
    size = (width, max(1, round(width * infos[0].height / infos[0].width)))
    is_large = any(info.width > CELL for info in infos)
    rows = []
    for path in (a, b):
        frames = islice(iter_frames(path), indices[-1] + 1)  # decode no frame after the last one
        images = [image for index, image in enumerate(frames) if index in indices]
        centre = [_centre(images[len(images) // 2], size)] if is_large else []
        rows.append([*(_resize(image, size) for image in images), *centre])
    heads = [f"frame {index}" for index in indices] + ([f"frame {indices[len(indices) // 2]}, 1:1"] if is_large else [])
    return a.stem if len(a.stem) <= 28 else f"{a.stem[:27]}…", heads, rows


def _centre(image: np.ndarray, size: tuple[int, int]) -> Image:
    """The centre crop of a frame, not resized; a smaller frame is padded with grey."""
    from PIL import Image

    cell = Image.new("RGB", size, "#DDDDDD")
    height, width = image.shape[:2]
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    part = image[max(0, top) : max(0, top) + size[1], max(0, left) : max(0, left) + size[0]]
    cell.paste(Image.fromarray(part), (max(0, -left), max(0, -top)))
    return cell
