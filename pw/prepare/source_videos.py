"""Source videos: find them in a folder, cut clips within scenes, assign clips to train and val.

Train and val share no frame, and no source video if it is known.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pw.io.arguments import ConfigError
from pw.io.console import one_line, printable
from pw.io.progress import Pace, ProgressLine
from pw.io.video import Frame, Frames
from pw.io.video_files import SUFFIXES, videos_in

FEW_VIDEOS = 20  # with fewer, holding out whole videos would leave too little variety on one side


@dataclass(frozen=True)
class ClipSettings:
    """How clips are cut (`DataOptions` describes the fields).

    frames      4n + 1, the input of the Wan VAE
    short_side  at 80 px, crops of 24 px show parts of objects, with texture; at 48 px whole scenes, at 144 px often a
                single surface
    holdout     share of the clips; from 20 videos on, of the videos; of the source videos, if known
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
    """The clips and properties of one video, or why it was skipped.

    clips   (first frame, last frame, start in s) of each; shape: [F, H, W, 3] of a clip
    origin  name of its source video, "" if unknown
    peak    luminance that HDR tone mapping maps to white, cd/m2; 0 for SDR
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
    captions: list[str] = field(default_factory=list)
    warning: str = ""
    skipped: str = ""
    origin: str = ""
    peak: float = 0.0


class HardCuts:
    """Called with the frames in order, tells whether there is a hard cut before a frame; fades are not detected.

    It compares thumbnails: luma, about 24 px on the short side, 0 to 255. There is a cut if the mean |difference| is
    above 3 (q + 1.5), where q is the upper quartile of the last 15, or if it is above 15 and more than a fifth of the
    histogram has moved. The quartile, not the median, because animation repeats a drawing for two or three frames. In
    doubt there is a cut: a false cut costs one clip, a missed cut spoils one.
    """

    def __init__(self) -> None:
        self.frames = self.cuts = 0
        self._last: NDArray[np.float32] | None = None
        self._differences: deque[float] = deque(maxlen=15)

    def __call__(self, image: Frames) -> bool:
        self.frames += 1
        last, self._last = self._last, _thumbnail(image)
        if last is None:
            return False
        difference = float(np.abs(self._last - last).mean())
        typical = float(np.quantile(self._differences, 0.75)) if self._differences else 5.0
        self._differences.append(difference)
        is_cut = difference > 3 * (typical + 1.5) or (difference > 15 and _tone_change(last, self._last) > 0.2)
        self.cuts += is_cut
        return is_cut


def cut_clips(
    frames: Iterable[Frame], length: int, step: int, is_cut: Callable[[Frames], bool]
) -> Iterator[list[Frame]]:
    """Clips of `length` frames, one every `step` frames, none across a cut. Holds one clip in memory."""
    clip: list[Frame] = []
    skip = 0
    for frame in frames:
        if is_cut(frame.image):
            clip, skip = [], 0
        if skip:
            skip -= 1
            continue
        clip.append(frame)
        if len(clip) == length:
            yield clip
            clip, skip = clip[step:], max(0, step - length)


class CutProgress:
    """Shows the current video, the frames per second and the time left."""

    def __init__(self, frames: int) -> None:
        self.frames, self.done, self.video = frames, 0, ""
        self.line, self.pace = ProgressLine(sys.stdout, seconds=10), Pace()

    def watch(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The same frames; counts them."""
        for frame in frames:
            self.done += 1
            if self.line.is_due:
                self.show("cutting")
            yield frame

    def show(self, text: str, *, last: bool = False) -> None:
        remaining = self.pace.time_left(self.done, self.frames)
        rate = f"{self.pace.rate(self.done):.0f} frames/s, {remaining} left" if remaining else "no frames"
        self.line.show(f"{self.video}: {text} ({rate})", last=last)


def find_videos(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """(name relative to `folder` -> path, of the videos at any depth, sorted, without hidden ones; name -> why it is
    not read, of what else looks like a video; this is printed, too).

    Raises ConfigError if it is not a folder or has no video.
    """
    if not folder.is_dir():
        raise ConfigError(f"path={folder}: no such folder")
    paths, passed_over = videos_in(folder, deep=True)
    videos: dict[str, Path] = {}
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in paths):
        if not os.path.isfile(path):
            passed_over[one_line(name)] = "no file, but a folder, a pipe or a link to nothing"
        elif name.encode(errors="replace").decode() != name:
            passed_over[one_line(name)] = "its name is not UTF-8; rename it"
        else:
            videos[name] = path
    for name, reason in passed_over.items():
        print(printable(f"left out: {name}: {reason}"))
    if not videos:
        raise ConfigError(f"path={folder}: no videos in this folder; accepted are {', '.join(SUFFIXES)}")
    return videos, passed_over


def skip_duplicates(records: list[VideoRecord]) -> None:
    """Skip all but the first of files with the same bytes: a copy could be in the other split."""
    files: dict[str, str] = {}
    for record in records:
        if record.clips and files.setdefault(record.sha256, record.file) != record.file:
            record.clips, record.skipped = [], f"the same file as {files[record.sha256]}"


def record_id(name: str) -> str:
    """File name for the clips of a video: ten hex digits of the hash of its name."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:10]


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
    """(rule in words; "train", "val" or "gap" for each clip of each record).

    With fewer than 20 videos the last clips of each are val, and clips that end less than a clip before them are gap.
    Otherwise, and if no video has enough clips, whole videos are val, by the sha256 of their names.
    """
    counts = [round(holdout * len(record.clips)) for record in records]
    if holdout and any(counts) and len(records) < FEW_VIDEOS:
        rule = f"the last {holdout:.0%} of each video's clips are val, after a gap of one clip"
        return rule, [_split_in_time(record.clips, n) for record, n in zip(records, counts, strict=True)]
    by_hash = sorted(records, key=lambda record: hashlib.sha256(record.file.encode()).digest())
    is_split = holdout > 0 and len(records) > 1
    val = [record.file for record in by_hash[: max(1, round(holdout * len(records))) if is_split else 0]]
    rule = f"{len(val)} of {len(records)} whole videos are val, by a hash of their names"
    return rule, [["val" if record.file in val else "train"] * len(record.clips) for record in records]


def split_by_origin(records: list[VideoRecord], holdout: float) -> tuple[str, list[list[str]]]:
    """(rule in words; "train" or "val" for each clip of each record), one split for all clips of an origin.

    An origin is val if the sha256 of its name, as a fraction in [0, 1), is below `holdout`: it stays in its split when
    more origins come. If a split would be empty, the nearest origin moves there. A file of unknown origin counts as an
    origin. A single origin is split in time, as in `assign_splits`.
    """
    origins = [record.origin or f"file {record.file}" for record in records]
    hashes = {origin: hashlib.sha256(origin.encode()).digest()[:6] for origin in origins}
    shares = {origin: int.from_bytes(value) / (1 << 48) for origin, value in hashes.items()}  # in [0, 1)
    if len(shares) < 2:
        rule, splits = assign_splits(records, holdout)
        return f"a single source video: {rule}", splits
    val = {origin for origin, share in shares.items() if share < holdout}
    if holdout:
        val = val or {min(shares, key=shares.__getitem__)}
        val -= {max(shares, key=shares.__getitem__)} if len(val) == len(shares) else set()
    rule = f"{len(val)} of {len(shares)} source videos are val with all their files, by a hash of their ids"
    if count := sum(not record.origin for record in records):
        rule += f"; of {count} files the source is not known, each counts as one"
    return rule, [["val" if o in val else "train"] * len(r.clips) for o, r in zip(origins, records, strict=True)]


def _split_in_time(clips: list[tuple[int, int, float]], count: int) -> list[str]:
    if count == 0:
        return ["train"] * len(clips)
    first, last, _ = clips[-count]
    gap = last - first + 1
    return ["train" if end < first - gap else "gap" for _, end, _ in clips[:-count]] + ["val"] * count
