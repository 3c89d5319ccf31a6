"""Clips as any browser plays them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pw.io.video import Frames

SIDE = 384  # px, to which the shorter side of small clips is enlarged


def write_playable(file: Path, frames: Frames) -> None:
    """uint8 [F, H, W, 3] -> an .mp4 of H.264: small pictures enlarged pixel by pixel, a short clip slowed to 1 s."""
    from pw.io.video import write_video

    factor = max(1, SIDE // min(frames.shape[1:3]) // 2 * 2)  # even: 4:2:0 has even sizes
    file.parent.mkdir(parents=True, exist_ok=True)
    write_video(file, frames.repeat(factor, 1).repeat(factor, 2), min(24.0, len(frames)), lossless=False)


def playable_copies(clips: list[Path], folder: Path) -> list[Path]:
    """The clips in `folder` as .mp4; one that is there and no older is kept. Raises VideoError."""
    from pw.io.video import read_video

    copies = []
    for clip in clips:
        copy = folder / f"{clip.stem}.mp4"
        if not copy.exists() or copy.stat().st_mtime < clip.stat().st_mtime:
            write_playable(copy, read_video(clip))
        copies.append(copy)
    return copies
