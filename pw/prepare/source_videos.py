"""Videos that clips are cut from: found in a folder, captioned, cut where no scene changes, and dealt to train and val.

No frame, and no source video where it is known, is on both sides.
"""

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
FEW_VIDEOS = 20  # below, holding out whole videos would leave too little variety on one side


@dataclass(frozen=True)
class ClipSettings:
    """How clips are cut (`DataOptions` says what the fields are).

    frames      4n + 1: what the Wan VAE takes
    short_side  at 80 px, crops of 24 px from the test clips show parts of things, with texture; at 48 whole scenes, at
                144 often a single surface
    holdout     of the clips; of the videos, from 20 on; of the source videos, if known
    """

    frames: int = 5
    short_side: int = 80
    stride: int = 0
    fps: float = 0.0
    holdout: float = 0.2
    shard_mb: float = 100.0

    def __post_init__(self) -> None:
        for name, low, high in (
            *(("frames", 1, 1001), ("short_side", 16, 4320), ("stride", 0, 1_000_000)),
            *(("fps", 0, 1000), ("holdout", 0, 0.9), ("shard_mb", 0.01, 100_000)),
        ):
            if not low <= (value := getattr(self, name)) <= high:
                raise ConfigError(f"{name}={value}: must be from {low} to {high}")
        if self.frames % 4 != 1:
            near = (self.frames - 1) // 4 * 4 + 1
            raise ConfigError(f"frames={self.frames}: a clip has 4n+1 frames; nearest are {near} and {near + 4}")

    @property
    def step(self) -> int:
        return self.stride or self.frames


@dataclass
class VideoRecord:
    """What became of one video.

    clips   (first frame, last frame, start in s) of each; shape: [F, H, W, 3]
    origin  names the video that the file was cut from, "" if that is not known
    peak    what became white where HDR was tone-mapped, cd/m2; 0 for SDR
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

    Raises ConfigError: not a folder, or no video in it.
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
    """What a video's files are called: ten hex digits of its name."""
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


def assign_splits(records: list[VideoRecord], holdout: float) -> tuple[str, list[list[str]]]:
    """(the rule in words, "train", "val" or "gap" for each clip of each record).

    Fewer than 20 videos: the last clips of each are held out, and what ends less than a clip before them is
    left out. Otherwise, and if none has clips enough, whole videos are, by the sha256 of their names.
    """
    held = [round(holdout * len(record.clips)) for record in records]
    if holdout and any(held) and len(records) < FEW_VIDEOS:
        rule = f"the last {holdout:.0%} of each video's clips are val, after a gap of one clip"
        return rule, [_split_in_time(record.clips, n) for record, n in zip(records, held, strict=True)]
    by_hash = sorted(records, key=lambda record: hashlib.sha256(record.file.encode()).digest())
    several = holdout > 0 and len(records) > 1
    val = [record.file for record in by_hash[: max(1, round(holdout * len(records))) if several else 0]]
    rule = f"{len(val)} of {len(records)} whole videos are val, by a hash of their names"
    return rule, [["val" if record.file in val else "train"] * len(record.clips) for record in records]


def split_by_origin(records: list[VideoRecord], holdout: float) -> tuple[str, list[list[str]]]:
    """(the rule in words, "train" or "val" for each clip of each record): an origin is in one of the two.

    It is val if the sha256 of its name, as a share of all values, is below `holdout`: what was on one side stays there
    when more origins come. Only where that leaves a side empty, the origin nearest to it goes there. A file of
    unknown origin is one of its own. A single origin is split in time, as in `assign_splits`.
    """
    origins = [record.origin or f"file {record.file}" for record in records]
    hashes = {origin: hashlib.sha256(origin.encode()).digest()[:6] for origin in origins}
    shares = {origin: int.from_bytes(found) / (1 << 48) for origin, found in hashes.items()}  # in [0, 1)
    if len(shares) < 2:
        rule, splits = assign_splits(records, holdout)
        return f"a single source video: {rule}", splits
    val = {origin for origin, share in shares.items() if share < holdout}
    if holdout:
        val = val or {min(shares, key=shares.__getitem__)}
        val -= {max(shares, key=shares.__getitem__)} if len(val) == len(shares) else set()
    rule = f"{len(val)} of {len(shares)} source videos are val with all their files, by a hash of their ids"
    if unknown := sum(not record.origin for record in records):
        rule += f"; of {unknown} files the source is not known, each counts as one"
    return rule, [["val" if o in val else "train"] * len(r.clips) for o, r in zip(origins, records, strict=True)]


def _split_in_time(clips: list[tuple[int, int, float]], held: int) -> list[str]:
    if held == 0:
        return ["train"] * len(clips)
    first, last, _ = clips[-held]
    gap = last - first + 1
    return ["train" if end < first - gap else "gap" for _, end, _ in clips[:-held]] + ["val"] * held
