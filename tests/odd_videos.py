"""Videos as users have them: whole ones of all kinds, and broken ones, each made in a line."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def moving(frames: int = 6, height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    """A drifting texture, uint8 [F, H, W, 3]."""
    picture = np.random.default_rng(seed).integers(0, 256, (height + frames, width, 3), dtype=np.uint8)
    return np.stack([picture[t : t + height] for t in range(frames)])


def encode(path: Path, frames: np.ndarray, pts: list[int] | None = None, **stream: Any) -> Path:
    """A foreign file of frames: libx264 in what the ending says; pts in 1/24 s."""
    given = {"codec_name": "libx264", "pix_fmt": "yuv420p", **stream}
    with av.open(str(path), "w") as container:
        out: Any = container.add_stream(given["codec_name"], rate=24, options={"crf": "12"})
        out.height, out.width, out.pix_fmt = frames.shape[1], frames.shape[2], given["pix_fmt"]
        for i, image in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = (i if pts is None else pts[i]), Fraction(1, 24)
            container.mux(out.encode(picture))
        container.mux(out.encode())
    return path


def sound_only(path: Path) -> Path:
    """A file with an audio stream and no pictures."""
    with av.open(str(path), "w") as container:
        out: Any = container.add_stream("aac", rate=8000)
        out.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(out.encode(frame))
        container.mux(out.encode())
    return path


def cut(path: Path, share: float) -> Path:
    """The first part of a file's bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def written(path: Path, content: bytes) -> Path:
    """A file of these bytes."""
    path.write_bytes(content)
    return path


BROKEN: dict[str, Callable[[Path], Path]] = {
    "truncated.mp4": lambda path: cut(encode(path, moving(24)), 0.6),
    "truncated.mkv": lambda path: cut(encode(path, moving(24)), 0.6),
    "empty.mp4": lambda path: written(path, b""),
    "text.mp4": lambda path: written(path, b"this is no video\n" * 100),
    "noise.mkv": lambda path: written(path, np.random.default_rng(0).bytes(20_000)),
    "playlist.mp4": lambda path: written(path, b"#EXTM3U\n#EXTINF:1,\nother.mp4\n"),
    "sound.mp4": sound_only,
}
"""Each must be named and left out."""

WHOLE: dict[str, Callable[[Path], Path]] = {
    "plain.mp4": lambda path: encode(path, moving()),
    "one_frame.mp4": lambda path: encode(path, moving(1)),
    "odd_size.mkv": lambda path: encode(path, moving(6, 65, 97), codec_name="ffv1", pix_fmt="bgr0"),
    "ten_bits.mkv": lambda path: encode(path, moving(), codec_name="ffv1", pix_fmt="yuv420p10le"),
    "variable_rate.mkv": lambda path: encode(path, moving(), pts=[0, 1, 5, 6, 20, 21]),
}
"""Each must be scored, every frame once."""
