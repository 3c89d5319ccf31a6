"""Videos that clips are cut from: found in a folder, with their captions, and cut where no scene changes."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pw.io.arguments import ConfigError
from pw.io.video import Frame, Frames

ENDINGS = (".mp4", ".mov", ".mkv", ".webm")


@dataclass(frozen=True)
class ClipSettings:
    """How clips are cut.

    frames      per clip, 4n + 1: what the Wan VAE takes
    short_side  px; frames are area-averaged down to it, never enlarged. At 80, crops of 24 px from the test
                clips show parts of things, with texture; at 48 whole scenes, at 144 often a single surface
    stride      frames from one clip's start to the next; 0 is `frames`, so that clips do not overlap
    fps         frames are dropped to come down to this rate; 0 keeps them all
    holdout     share of the clips (of the videos, from 20 on; of the source videos, if known) that goes to val
    shard_mb    MB per tar, about
    """

    frames: int = 5
    short_side: int = 80
    stride: int = 0
    fps: float = 0.0
    holdout: float = 0.2
    shard_mb: float = 100.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("frames", 1, 1001),
            ("short_side", 16, 4320),
            ("stride", 0, 1_000_000),
            ("fps", 0, 1000),
            ("holdout", 0, 0.9),
            ("shard_mb", 0.01, 100_000),
        ):
            if not low <= (value := getattr(self, name)) <= high:
                raise ConfigError(f"{name}={value}: must be from {low} to {high}")
        if self.frames % 4 != 1:
            near = (self.frames - 1) // 4 * 4 + 1
            raise ConfigError(f"frames={self.frames}: a clip has 4n+1 frames; nearest are {near} and {near + 4}")

    @property
    def step(self) -> int:
        """Frames from one clip's start to the next."""
        return self.stride or self.frames


@dataclass
class VideoRecord:
    """What became of one video; `clips` are (first frame, last frame, start in s), `shape` [F, H, W, 3].

    `origin` names the video that the file was cut from, "" if that is not known. `peak`: what became white where HDR
    was tone-mapped, cd/m2; 0 for SDR.
    """

    file: str
    bytes: int
    mtime_ns: int
    sha256: str = ""
    frames: int = 0
    fps: float = 0.0
    cuts: int = 0
    clips: list[tuple[int, int, float]] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    caption: str = ""
    warning: str = ""
    skipped: str = ""
    origin: str = ""
    peak: float = 0.0

    @property
    def id(self) -> str:
        """What its files are called."""
        return record_id(self.file)


class HardCuts:
    """Says of each frame whether a hard cut lies just before it. Fades and dissolves are not found.

    Compared are thumbnails: luma, about 24 px on the short side, 0 to 255. It is a cut if their mean
    |difference| is over 3 (q + 1.5), q being the upper quartile of the last 15, or if it is over 15 and more
    than a fifth of the histogram has moved. A quartile, not the median: animation holds a drawing for two or
    three frames. In doubt it is a cut: a false one costs a clip, a missed one spoils it.
    """

    def __init__(self) -> None:
        self.seen = self.found = 0
        self._last: NDArray[np.float32] | None = None
        self._changes: deque[float] = deque(maxlen=15)

    def __call__(self, image: Frames) -> bool:
        self.seen += 1
        last, self._last = self._last, _thumbnail(image)
        if last is None:
            return False
        change = float(np.abs(self._last - last).mean())
        usual = float(np.quantile(self._changes, 0.75)) if self._changes else 5.0
        self._changes.append(change)
        cut = change > 3 * (usual + 1.5) or (change > 15 and _tone_change(last, self._last) > 0.2)
        self.found += cut
        return cut


def cut_clips(
    frames: Iterable[Frame], length: int, step: int, is_cut: Callable[[Frames], bool]
) -> Iterator[list[Frame]]:
    """Clips of `length` frames, `step` frames apart, none across a cut. Holds one clip in memory."""
    clip: list[Frame] = []
    wait = 0
    for frame in frames:
        if is_cut(frame.image):
            clip, wait = [], 0
        if wait:
            wait -= 1
            continue
        clip.append(frame)
        if len(clip) == length:
            yield clip
            clip, wait = clip[step:], max(0, step - length)


def find_videos(folder: Path) -> dict[str, Path]:
    """{name below `folder`: path} of its videos at any depth, sorted; what is hidden is left out.

    Raises:
        ConfigError: not a folder, or no video in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"path={folder}: no such folder")
    named = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        named += [Path(place, f) for f in files if not f.startswith(".") and f.lower().endswith(ENDINGS)]
    videos = [video for video in named if video.is_file()]
    for video in sorted(set(named) - set(videos)):
        print(f"left out, a pipe or a link to nothing: {video}")
    if not videos:
        raise ConfigError(f"path={folder}: no videos in this folder; accepted are {', '.join(ENDINGS)}")
    return dict(sorted((video.relative_to(folder).as_posix(), video) for video in videos))


def read_caption(video: Path) -> tuple[str, str]:
    """(caption, warning) from `<stem>.txt`, else "caption", "text" or "prompt" in `<stem>.json`, else ""."""
    for file in (video.with_suffix(".txt"), video.with_suffix(".json")):
        if not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8-sig")
            caption = text if file.suffix == ".txt" else _caption_in(json.loads(text))
        except (OSError, ValueError) as error:
            return "", f"its caption {file.name} is unreadable: {error}"
        return " ".join(caption.split()), "" if caption.strip() else f"no caption in {file.name}"
    return "", ""


def record_id(name: str) -> str:
    """Ten hex digits of a video's name."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:10]


def _caption_in(value: Any) -> str:
    if isinstance(value, list):
        return next((caption for item in value if (caption := _caption_in(item))), "")
    if isinstance(value, dict):
        return next((_caption_in(value[key]) for key in ("caption", "text", "prompt") if value.get(key)), "")
    return value if isinstance(value, str) else ""


def _thumbnail(image: Frames) -> NDArray[np.float32]:
    """Luma in [0, 255], averaged over squares to 24 to 47 px on the short side."""
    side = max(1, min(image.shape[:2]) // 24)
    height, width = image.shape[0] // side, image.shape[1] // side
    squares = image[: height * side, : width * side].reshape(height, side, width, side, 3)
    return squares.mean((1, 3), dtype=np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def _tone_change(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Share of the luma histogram (32 bins) that moved, in [0, 1]."""
    first, second = (np.histogram(image, 32, (0, 256))[0] / image.size for image in (a, b))
    return float(np.abs(first - second).sum() / 2)
