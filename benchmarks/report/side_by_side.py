"""Two folders of videos side by side: their sizes, and a contact sheet of the same frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.metrics.implementation import spread

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

VIDEOS, FRAMES = 4, 3
CELL = 300
"""Width of a cell in px; the last column shows as many px of the middle frame 1:1."""


def video_sizes(paths: Iterable[Path]) -> dict[str, int]:
    """`2560 x 1408, 121 frames, 24 fps` -> how many videos are so; "unreadable" for broken ones."""
    from pw.io.video import VideoError, probe

    sizes: dict[str, int] = {}
    for path in paths:
        try:
            info = probe(path)
            text = f"{info.width} x {info.height}, {info.frames} frames, {info.fps:g} fps"
        except VideoError:
            text = "unreadable"
        sizes[text] = sizes.get(text, 0) + 1
    return sizes


def contact_sheet(a: tuple[str, Mapping[str, Path]], b: tuple[str, Mapping[str, Path]], out: Path) -> Path | None:
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
    for (name, heads, rows), height in zip(blocks, heights, strict=True):
        x = margin
        for i, (head, cell) in enumerate(zip(heads, rows[0], strict=True)):
            draw.text((x + 2, y + 6), f"{name}   {head}" if i == 0 else head, "#555555", small)
            x += cell.width + gap
        at = y + top
        for label, row in zip("ab", rows, strict=True):
            draw.text((margin / 2, at + row[0].height / 2), label, "black", font, anchor="mm")
            x = margin
            for cell in row:
                sheet.paste(cell, (x, at))
                x += cell.width + gap
            at += row[0].height + gap
        y += height
    sheet.save(out, format="PNG")
    return out


def _block(a: Path, b: Path) -> tuple[str, list[str], list[list[Image]]]:
    """One video of both: its name, the columns' heads, and two rows of cells of one size."""
    from pw.io.video import probe

    infos = [probe(path) for path in (a, b)]
    wanted = spread(FRAMES, min(info.frames for info in infos))
    width = infos[0].width if infos[0].width <= CELL else CELL
    width *= max(1, CELL // (2 * width))  # a whole number of px per px where it is enlarged
    size = (width, max(1, round(width * infos[0].height / infos[0].width)))
    rows = []
    is_large = any(info.width > CELL for info in infos)
    for path in (a, b):
        images = _frames(path, wanted)
        cells = [_fitted(image, size) for image in images]
        if is_large:
            cells.append(_centre(images[len(images) // 2], size))
        rows.append(cells)
    heads = [f"frame {index}" for index in wanted] + ([f"frame {wanted[len(wanted) // 2]}, 1:1"] if is_large else [])
    return a.stem if len(a.stem) <= 28 else f"{a.stem[:27]}…", heads, rows


def _frames(path: Path, wanted: Sequence[int]) -> list[np.ndarray]:
    """uint8 [H, W, 3] of the wanted frames; nothing beyond the last is decoded."""
    from pw.io.video import iter_frames

    images = []
    for index, image in enumerate(iter_frames(path)):
        if index in wanted:
            images.append(image)
        if index == wanted[-1]:
            break
    return images


def _fitted(image: np.ndarray, size: tuple[int, int]) -> Image:
    """Into a cell: small pictures enlarged pixel by pixel, large ones averaged down."""
    from PIL import Image

    resample = Image.Resampling.NEAREST if image.shape[1] <= size[0] else Image.Resampling.BOX
    return Image.fromarray(image).resize(size, resample)


def _centre(image: np.ndarray, size: tuple[int, int]) -> Image:
    """The middle of a frame in its own pixels; what a smaller frame lacks is grey."""
    from PIL import Image

    cell = Image.new("RGB", size, "#DDDDDD")
    height, width = image.shape[:2]
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    part = image[max(0, top) : max(0, top) + size[1], max(0, left) : max(0, left) + size[0]]
    cell.paste(Image.fromarray(part), (max(0, -left), max(0, -top)))
    return cell
