"""The clips of an evidence page: H.264 files that can be sent, and of small clips all frames in one PNG.

A file is named by the SHA-256 of its clip and made once; `media.json` lists what was made (D104).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.measure.measurement import NoVideo, videos_of
from benchmarks.metrics.implementation import spread
from pw.io.arguments import ConfigError
from pw.io.files import digest, length, os_reason, read_json, remove, replacing, write_json
from pw.io.manifest import checksum
from pw.io.progress import Pace, ProgressLine

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1  # of the files: another number makes them all again
SIDE = 384
"""Px: smaller clips are enlarged to about this side, pixel by pixel; larger ones have a preview of it, too."""

STRIP_PIXELS, STRIP_HEIGHT = 2**22, 2**13
"""A clip of at most so many pixels, all frames together, has a PNG with its frames one below the other."""

THREADS, ALONE = 4, 2**24
"""So many clips are encoded at once, but one by one where a file of theirs has so many bytes, for its memory."""

INDEX_SECONDS = 2.0  # between two times that the list of what was made is written

COMPARED_FRAMES, COMPARED_SIDE = 8, 512
"""Two clips are compared over so many frames, spread evenly, and in their centre of at most this side."""

PAGE_CLIPS, PAGE_PIXELS = 128, 2e9
"""A page shows at most so many clips, of at most so many pixels in a row: 128 at the tiny scale, 4 at 2K."""

SENT_CLIPS = 16
"""So many of them have an H.264 file, to be sent; the others only if a player needs it."""


class Clip(NamedTuple):
    """A clip on disk. `sha256`: of its file, if its mark has it; `gap`: why there is none, or "" if there is."""

    path: Path
    sha256: str = ""
    gap: str = ""


ClipRow = tuple[str, Mapping[str, Clip]]
"""A label, and name -> clip; a name is the same clip in every row."""


class Media(NamedTuple):
    """What the players show.

    names        of the clips, in order
    rows         (label, per name the entry of `media.json` or {"gap": reason})
    differences  per name, of every two rows the mean absolute difference in levels of 0 to 255, None if not comparable
    """

    names: list[str]
    rows: list[tuple[str, list[dict[str, Any]]]]
    differences: list[list[list[float | None]]]


def most_clips(pixels: int) -> int:
    """How many clips of so many pixels, all frames together, a page shows at most; two at least."""
    return min(PAGE_CLIPS, max(2, int(PAGE_PIXELS // pixels)))


def common_clips(folders: Mapping[str, Path]) -> list[ClipRow]:
    """The first videos that all folders with videos have, by their names without suffix. folders: label -> folder

    A folder whose videos cannot be listed has the reason as its gaps.
    """
    from pw.io.video import VideoError, probe

    videos: dict[str, dict[str, Path]] = {}
    reasons: dict[str, str] = {}
    for label, folder in folders.items():
        try:
            videos[label] = {path.stem: path for path in videos_of(folder).values()}
        except NoVideo:  # it has scores
            continue
        except ConfigError as error:
            reasons[label] = str(error)
    names = [name for name in next(iter(videos.values()), ()) if all(name in paths for paths in videos.values())]
    count = PAGE_CLIPS
    for paths in videos.values() if names else ():
        with suppress(VideoError):  # a gap of the page
            info = probe(paths[names[0]])
            count = min(count, most_clips(info.frames * info.height * info.width))
    rows = [(label, {name: Clip(paths[name]) for name in names[:count]}) for label, paths in videos.items()]
    gaps = [(label, {name: Clip(Path(), gap=reason) for name in names[:count]}) for label, reason in reasons.items()]
    return [*rows, *gaps] if names else []


def make_media(rows: Sequence[ClipRow], folder: Path, *, is_shared: bool = False) -> Media:
    """Write the files of all clips to `folder`, and remove those of other clips, unless the folder is shared; what is
    there is not made again.

    A clip that is gone or cannot be read or encoded is a gap. Raises OSError if a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = read_json(folder / "media.json") or {}
    kept: dict[str, Any] = {}
    media = Media(sorted({name for _, clips in rows for name in clips}), [(label, []) for label, _ in rows], [])
    line, pace, written = ProgressLine(), Pace(), time.monotonic()
    for number, name in enumerate(media.names):
        if line.is_due:
            left = pace.time_left(number, len(media.names))
            line.show(f"page: clip {number} of {len(media.names)}{f', about {left} left' if left else ''}")
        made = [_Made(clips.get(name)) for _, clips in rows]
        distinct = {one.key: one for one in made if one.key}
        workers = THREADS if all(length(one.clip.path) < ALONE for one in made) else 1
        make = partial(_Made.make, folder=folder, index=index, is_sent=number < SENT_CLIPS)
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(make, distinct.values()))
        made = [distinct.get(one.key, one) for one in made]
        for one, (_, entries) in zip(made, media.rows, strict=True):
            entries.append(one.entry)
            kept |= {one.key: one.entry} if one.key else {}
        key = digest([FORMAT, [one.key for one in made]], 16)
        media.differences.append(kept.setdefault(key, index.get(key) or _differences([one.compared() for one in made])))
        if time.monotonic() > written + INDEX_SECONDS:  # a call that is stopped continues here
            write_json(folder / "media.json", index | kept)
            written = time.monotonic()
    line.clear()
    if is_shared:
        return media
    write_json(folder / "media.json", kept)
    used = {"media.json", *(file for entry in kept.values() if isinstance(entry, dict) for file in entry["bytes"])}
    for path in folder.iterdir():
        if path.name not in used:
            remove(path)
    return media


class _Made:
    """A clip whose files are made. `key` is the name of the files, "" for a gap."""

    def __init__(self, clip: Clip | None) -> None:
        self.clip = clip or Clip(Path(), gap="is not stored")
        self.key, self._compared = "", None
        self.entry: dict[str, Any] = {"gap": self.clip.gap}
        if not self.clip.gap:
            try:
                self.key = digest([FORMAT, self.clip.sha256 or checksum(self.clip.path)], 16)
            except OSError as error:
                self.entry = {"gap": "is gone" if isinstance(error, FileNotFoundError) else os_reason(error)}

    def make(self, folder: Path, index: Mapping[str, Any], *, is_sent: bool) -> None:
        """Make the files, unless they are there as the index says. Raises OSError if they cannot be written."""
        try:
            is_whole = _is_whole(index.get(self.key), folder) and (not is_sent or "mp4" in index[self.key])
            self.entry = index[self.key] if is_whole else self._make(folder, self.key, is_sent=is_sent)
        except OSError:  # of the folder: a clip that cannot be read is a VideoError
            raise
        except Exception as error:  # FFmpeg's, or no memory: of this clip alone
            self.key, self.entry = "", {"gap": str(error) or type(error).__name__}

    def _make(self, folder: Path, key: str, *, is_sent: bool) -> dict[str, Any]:
        from PIL import Image

        from pw.io.video import probe, read_video

        frames, fps = read_video(self.clip.path), probe(self.clip.path).fps
        n, height, width = frames.shape[:3]
        self._compared = _compared(frames)
        files: dict[str, str] = {}
        if n * height * width <= STRIP_PIXELS and n * height <= STRIP_HEIGHT:
            files["strip"] = f"{key}.png"
            with replacing(folder / files["strip"]) as partial:
                Image.fromarray(frames.reshape(n * height, width, 3)).save(partial, format="PNG")
        if is_sent or not files:
            files |= self._encode(folder, key, frames, fps)
        sizes = {name: (folder / name).stat().st_size for name in files.values()}
        return {**files, "frames": n, "height": height, "width": width, "fps": fps, "bytes": sizes}

    def _encode(self, folder: Path, key: str, frames: np.ndarray, fps: float) -> dict[str, str]:
        """Write the H.264 file of a clip, and of a large one without a PNG a small preview."""
        import numpy as np
        from PIL import Image

        from pw.io.video import probe, write_video

        n, height, width = frames.shape[:3]
        factor = max(1, round(SIDE / min(height, width)))
        factor += factor > 1 and factor % 2 * (height % 2 or width % 2)
        large = frames.repeat(factor, 1).repeat(factor, 2) if factor > 1 else frames
        odd = [side * factor % 2 for side in (height, width)]
        if any(odd):
            large = np.pad(large, ((0, 0), (0, odd[0]), (0, odd[1]), (0, 0)), "edge")
        files = {"mp4": f"{key}.mp4"}
        write_video(folder / files["mp4"], large, fps, lossless=False)
        if min(height, width) > SIDE and (n * height * width > STRIP_PIXELS or n * height > STRIP_HEIGHT):
            files["preview"] = f"{key}-preview.mp4"
            size = [round(side * SIDE / min(height, width) / 2) * 2 for side in (width, height)]
            small = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames]
            write_video(folder / files["preview"], np.stack(small), fps, lossless=False)
        if probe(folder / files["mp4"]).frames != n:
            raise OSError(f"{folder / files['mp4']}: is not whole; is the disk full?")
        return files

    def compared(self) -> np.ndarray | None:
        """The frames that are compared, [F, h, w, 3]; None for a gap."""
        from pw.io.video import VideoError, read_video

        if self.key and self._compared is None:
            try:
                self._compared = _compared(read_video(self.clip.path))
            except (VideoError, MemoryError):
                return None
        return self._compared


def _compared(frames: np.ndarray) -> np.ndarray:
    """A few frames of [F, H, W, 3], in their centre; a copy, as a clip at 2K has 1.3 GB."""
    top, left = (max(0, (size - COMPARED_SIDE) // 2) for size in frames.shape[1:3])
    chosen = frames[spread(COMPARED_FRAMES, len(frames))]
    return chosen[:, top : top + COMPARED_SIDE, left : left + COMPARED_SIDE].copy()


def _is_whole(entry: Any, folder: Path) -> bool:
    """Whether the files of an entry are there in the size in which they were written."""
    try:
        return bool(entry["bytes"]) and all((folder / n).stat().st_size == size for n, size in entry["bytes"].items())
    except (OSError, TypeError, KeyError, AttributeError):
        return False


def _differences(clips: Sequence[np.ndarray | None]) -> list[list[float | None]]:
    import numpy as np

    table: list[list[float | None]] = [[None] * len(clips) for _ in clips]
    for i, j in combinations(range(len(clips)), 2):
        a, b = clips[i], clips[j]
        if a is not None and b is not None and a.shape == b.shape:
            levels = np.abs(a.astype(np.int16) - b.astype(np.int16)).mean(dtype=np.float64)
            table[i][j] = table[j][i] = round(float(levels), 2)
    return table
