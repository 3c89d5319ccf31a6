"""A folder of videos -> webdataset shards of short, scene-safe, moderately reduced clips (`make data`).

    out/train-000000.tar …  <key>.npy uint8 [F, H, W, 3], <key>.json its origin, <key>.txt its caption, if any
    out/val-000000.tar …    held out: no frame of it is in train
    out/manifest.json       settings, sources, sha256 of the shards; written last: without it, unfinished
    out/report.json         what became of every video, and why some were skipped
    out/.unfinished/        the finished videos of an unfinished call, one .raw and one .json each

Two files may be parts of one video (`name.part1.mp4`, `name.part2.mp4`). Nothing tells them apart from any two others,
so they count as two: from 20 files on, one part may be held out while the other is trained on. No frame is in both, but
the scene may be. Join such parts before, or keep them out. Where the origin of each file is known (UltraVideo), whole
origins are held out.

Each video is cut on its own and kept under `.unfinished`, so that a killed call is taken up where it was. The
shards are put together when all videos are there, because the split has to know them all.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from pw.data.shards import CHECKSUMS, MANIFEST, checksums, write_shards
from pw.io.video import Frame, Frames, VideoError, decode, probe

ENDINGS = (".mp4", ".mov", ".mkv", ".webm")
REPORT = "report.json"
UNFINISHED = ".unfinished"
FORMAT = 1  # of manifest, records and cut detection: what another one began is not continued
FEW_VIDEOS = 20  # below, holding out whole videos would leave too little variety on one side


@dataclass(frozen=True)
class Settings:
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
                raise ValueError(f"{name}={value}: must be from {low} to {high}")
        if self.frames % 4 != 1:
            near = (self.frames - 1) // 4 * 4 + 1
            raise ValueError(f"frames={self.frames}: a clip has 4n+1 frames; nearest are {near} and {near + 4}")

    @property
    def step(self) -> int:
        """Frames from one clip's start to the next."""
        return self.stride or self.frames


@dataclass
class Record:
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
        """Ten hex digits of the name."""
        return _id(self.file)


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
        ValueError: not a folder, or no video in it.
    """
    if not folder.is_dir():
        raise ValueError(f"path={folder}: no such folder")
    named = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        named += [Path(place, f) for f in files if not f.startswith(".") and f.lower().endswith(ENDINGS)]
    videos = [video for video in named if video.is_file()]
    for video in sorted(set(named) - set(videos)):
        print(f"left out, a pipe or a link to nothing: {video}")
    if not videos:
        raise ValueError(f"path={folder}: no videos in this folder; accepted are {', '.join(ENDINGS)}")
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


def assign_splits(records: list[Record], holdout: float) -> tuple[str, list[list[str]]]:
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


def split_by_origin(records: list[Record], holdout: float) -> tuple[str, list[list[str]]]:
    """(the rule in words, "train" or "val" for each clip of each record): an origin is in one of the two.

    It is val if the sha256 of its name, as a share of all values, is below `holdout`: what was on one side stays there
    when more origins come. Only where that leaves a side empty, the origin nearest to it goes there. A file of
    unknown origin is one of its own. A single origin is split in time, as in `assign_splits`.
    """
    origins = [record.origin or f"file {record.file}" for record in records]
    shares = {origin: _share(origin) for origin in origins}
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


def ingest(
    path: Path,
    out: Path,
    settings: Settings,
    overwrite: bool = False,
    origins: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Make the shards in `out`, or go on making them; returns the manifest.

    `origins` {name below `path`: the video that it was cut from}: whole origins are held out, see `split_by_origin`.

    Raises:
        ValueError: no videos, `out` holds something else, too little disk space, no clip in any video.
    """
    videos = find_videos(path)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            if overwrite:
                _clear(out)
            if (out / MANIFEST).is_file():
                return _finished(out, videos, _noted(settings, origins))
            return _make(out, videos, settings, origins)
    except Timeout:
        raise ValueError(f"out={out}: another `make data` is at work there; wait, or give another out=") from None


def _make(out: Path, videos: dict[str, Path], settings: Settings, origins: Mapping[str, str] | None) -> dict[str, Any]:
    begun, noted = time.monotonic(), _noted(settings, origins)
    _begin(out, _noted(settings, None))  # the split comes last: videos that were cut for another one serve
    records = {name: record for name, video in videos.items() if (record := _recorded(out, name, video))}
    if records:
        print(f"going on: {len(records)} of {len(videos)} videos are done")
    todo = {name: video for name, video in videos.items() if name not in records}
    frames = _check_space(out, todo, list(records.values()), settings)
    with _Progress(frames, len(todo)) as progress:
        for name, video in todo.items():
            progress.begin(name)
            records[name] = _cut_video(out / UNFINISHED, name, video, settings, progress)
            _write(out / UNFINISHED / f"{_id(name)}.json", asdict(records[name]))
            progress.end(records[name])
    ordered = [records[name] for name in videos]
    _skip_twins(ordered)
    for record in ordered:
        record.origin = (origins or {}).get(record.file, "")
    manifest = _assemble(out, ordered, settings, noted)
    _summarise(out, manifest, ordered, time.monotonic() - begun)
    return manifest


def _begin(out: Path, now: dict[str, Any]) -> None:
    """Mark `out` as ours and unfinished, or make sure that what was begun there is the same."""
    noted = out / UNFINISHED / "settings.json"
    if noted.is_file():
        _check_settings(out, _read_noted(out, noted), now)
    elif _shards_in(out):
        raise ValueError(f"out={out}: holds tars without a {MANIFEST}; give another out=, or overwrite=true")
    else:
        noted.parent.mkdir(exist_ok=True)
        _write(noted, now)


def _finished(out: Path, videos: dict[str, Path], settings: dict[str, Any]) -> dict[str, Any]:
    manifest = _read_noted(out, out / MANIFEST)
    _check_settings(out, manifest["settings"], settings)
    before = {source["file"]: source["bytes"] for source in manifest["sources"]}
    now = {name: video.stat().st_size for name, video in videos.items()}
    if changed := [name for name in sorted(before | now) if before.get(name) != now.get(name)]:
        raise ValueError(
            f"out={out}: {len(changed)} videos came, went or changed since, such as {changed[0]}; "
            "give another out=, or overwrite=true"
        )
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    totals = manifest["totals"]
    print(f"nothing to do: {out} has {totals['train']} train and {totals['val']} val clips")
    return manifest


def _check_settings(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    before = {"split_by": "file"} | before
    if changed := [key for key in now if before.get(key) != now[key]]:
        what = ", ".join(f"{key}={before.get(key)} (now {now[key]})" for key in changed)
        raise ValueError(f"out={out}: was made with {what}; give another out=, or overwrite=true")


def _noted(settings: Settings, origins: Mapping[str, str] | None) -> dict[str, Any]:
    noted = {"format": FORMAT, **asdict(settings)}
    return noted if origins is None else noted | {"split_by": "source video"}


def _read_noted(out: Path, path: Path) -> dict[str, Any]:
    """What an earlier call wrote down."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: is damaged ({error}); give another out=, or overwrite=true") from None


def _recorded(out: Path, name: str, video: Path) -> Record | None:
    """What was noted about a finished video, if it is still the same file and all of its clips are there.

    A machine that lost its power may have kept the names of both files, and not what was in them.
    """
    noted = out / UNFINISHED / f"{_id(name)}.json"
    try:
        record, stat = Record(**json.loads(noted.read_text())), video.stat()
        raw = noted.with_suffix(".raw").stat().st_size if record.clips else 0
    except (FileNotFoundError, ValueError, TypeError):
        return None
    is_whole = raw == len(record.clips) * math.prod(record.shape)
    return record if is_whole and (record.bytes, record.mtime_ns) == (stat.st_size, stat.st_mtime_ns) else None


def _check_space(out: Path, todo: dict[str, Path], done: list[Record], settings: Settings) -> int:
    """The number of frames to come, an estimate; raises if raw clips and shards would not fit on the disk."""
    need: float = sum(len(record.clips) * math.prod(record.shape) for record in done)
    total = 0
    for video in todo.values():
        try:
            info = probe(video)
        except VideoError:
            continue
        frames = round(info.frames * min(1.0, (settings.fps or info.fps) / info.fps))
        shrink = min(1.0, settings.short_side / min(info.height, info.width))
        clip = settings.frames * info.height * info.width * 3 * shrink**2
        need += 2 * clip * math.ceil(frames / settings.step)  # raw, and again in a shard
        total += frames
    free = shutil.disk_usage(out).free
    if need * 1.05 > free:
        raise ValueError(
            f"out={out}: needs about {need * 1.05 / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; give an out= "
            "on another disk, or lower short_side, or raise stride"
        )
    return total


def _cut_video(work: Path, name: str, video: Path, settings: Settings, progress: _Progress) -> Record:
    """Write the clips of one video to `<id>.raw`, uint8 [clips, F, H, W, 3]."""
    stat = video.stat()
    record = Record(name, stat.st_size, stat.st_mtime_ns)
    part, is_cut = work / f"{record.id}.part", HardCuts()
    try:
        with open(video, "rb") as source:
            record.sha256 = hashlib.file_digest(source, "sha256").hexdigest()
        info = probe(video)
        frames = progress.watch(decode(video, settings.short_side, settings.fps or None))
        with open(part, "wb") as raw:
            for clip in cut_clips(frames, settings.frames, settings.step, is_cut):
                for frame in clip:
                    raw.write(frame.image.data)
                record.clips.append((clip[0].index, clip[-1].index, clip[0].time))
                record.shape = (len(clip), *clip[0].image.shape)
        os.replace(part, work / f"{record.id}.raw")
    except (VideoError, PermissionError) as error:
        part.unlink(missing_ok=True)
        record.clips, record.skipped = [], str(error).removeprefix(f"{video}: ")
        return record
    record.frames, record.cuts, record.fps = is_cut.seen, is_cut.found, min(info.fps, settings.fps or info.fps)
    record.peak = info.peak
    record.caption, record.warning = read_caption(video)
    if not record.clips:
        record.skipped = f"too short: {record.frames} frames, {record.cuts} cuts, no {settings.frames} in one shot"
    return record


def _skip_twins(records: list[Record]) -> None:
    """Of files with the same bytes only the first is used: a twin could come into the other split."""
    first: dict[str, str] = {}
    for record in records:
        if record.clips and first.setdefault(record.sha256, record.file) != record.file:
            record.clips, record.skipped = [], f"the same file as {first[record.sha256]}"


def _assemble(out: Path, records: list[Record], settings: Settings, noted: dict[str, Any]) -> dict[str, Any]:
    """Shards, report and manifest from the finished videos; then the raw clips go."""
    used = [record for record in records if record.clips]
    rule, splits = (split_by_origin if "split_by" in noted else assign_splits)(used, settings.holdout)
    report = [asdict(record) | {"clips": len(record.clips)} for record in records]
    _write(out / REPORT, {"split": rule, "videos": report})
    if not used:
        shutil.rmtree(out / UNFINISHED)
        raise ValueError(
            f"none of the {len(records)} videos gives a clip (all reasons are in {out / REPORT}), such as "
            f"{records[0].file}: {records[0].skipped}"
        )
    shards = _write_all(out, used, splits, int(settings.shard_mb * 1e6))
    totals = {split: sum(assigned.count(split) for assigned in splits) for split in ("train", "val", "gap")}
    manifest = {
        "settings": noted,
        "split": rule,
        "totals": totals | {"bytes": sum(shard["bytes"] for shard in shards)},
        "shards": shards,
        "sources": [_source(entry) for entry in report],
    }
    _write(out / MANIFEST, manifest)
    shutil.rmtree(out / UNFINISHED)
    return manifest


def _source(entry: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of a file."""
    keys = ("file", "bytes", "sha256", "clips", *(["origin"] if entry["origin"] else []))
    return {key: entry[key] for key in keys}


def _write_all(out: Path, records: list[Record], splits: list[list[str]], shard_bytes: int) -> list[dict[str, Any]]:
    """Write the tars aside, then put all in place; returns the manifest's entries."""
    aside = out / UNFINISHED / "shards"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    shards: list[dict[str, Any]] = []
    for split in ("train", "val"):
        for path, samples in write_shards(aside, split, _samples(out, records, splits, split), shard_bytes):
            with open(path, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = path.stat().st_size
            shards.append({"file": path.name, "split": split, "samples": samples, "bytes": size, "sha256": sha256})
    for stale in _shards_in(out):
        stale.unlink()
    for shard in shards:
        os.replace(aside / shard["file"], out / shard["file"])
    return shards


def _samples(out: Path, records: list[Record], splits: list[list[str]], split: str) -> Iterator[dict[str, Any]]:
    """The clips of one split as webdataset samples."""
    for record, assigned in zip(records, splits, strict=True):
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(record.file).stem)[:40]
        raw, shape = out / UNFINISHED / f"{record.id}.raw", (len(record.clips), *record.shape)
        clips = np.memmap(raw, np.uint8, mode="r", shape=shape)
        for frames, (start, _, seconds), mine in zip(clips, record.clips, assigned, strict=True):
            if mine != split:
                continue
            origin = {"source": record.file, "sha256": record.sha256, "start": start, "seconds": seconds}
            about: dict[str, Any] = origin | {"fps": record.fps, "shape": record.shape, "split": split}
            if record.peak:
                about["peak"] = record.peak
            members = {"npy": _npy(frames)} | ({"txt": record.caption.encode()} if record.caption else {})
            about[CHECKSUMS] = checksums(members)
            key = f"{stem}-{record.id}-{start:06d}"
            yield {"__key__": key, "json": json.dumps(about).encode(), **members}


def _summarise(out: Path, manifest: dict[str, Any], records: list[Record], seconds: float) -> None:
    totals, used = manifest["totals"], sum(bool(record.clips) for record in records)
    print(
        f"{out}: {totals['train']} train and {totals['val']} val clips, {totals['bytes'] / 1e6:.1f} MB, ",
        end="",
    )
    print(f"from {used} of {len(records)} videos in {seconds:.1f} s\nsplit: {manifest['split']}")
    if not totals["val"]:
        print("warning: no val clips, nothing to evaluate on: give it more or longer videos")
    if used < len(records):
        print(f"skipped {len(records) - used}, see {out / REPORT}:")
    for record in records:
        if reason := record.skipped or record.warning:
            print(f"  {record.file}: {reason}")


class _Progress:
    """A bar on a terminal; elsewhere a line per video, and one every ten seconds within a long one."""

    def __init__(self, frames: int, videos: int) -> None:
        self.frames, self.videos, self.done, self.number, self.name = frames, videos, 0, 0, ""
        self.begun = self.said = time.monotonic()
        self.bar: Any = None
        if sys.stdout.isatty() and videos:
            from rich.progress import BarColumn, Progress, TextColumn

            self.bar = Progress(TextColumn("{task.description}", markup=False), BarColumn(), transient=True)
            self.task = self.bar.add_task("", total=frames)

    def __enter__(self) -> _Progress:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def begin(self, name: str) -> None:
        self.name, self.number = name, self.number + 1

    def watch(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The same frames, counted."""
        for frame in frames:
            self.done += 1
            if self.bar:
                self.bar.update(self.task, completed=self.done, description=self._line("cutting"))
            elif time.monotonic() - self.said > 10:
                self._say("cutting")
            yield frame

    def end(self, record: Record) -> None:
        self._say(f"skipped, {record.skipped}" if record.skipped else f"{len(record.clips)} clips")

    def _line(self, what: str) -> str:
        rate = self.done / max(1e-3, time.monotonic() - self.begun)
        left = max(0, self.frames - self.done) / max(1e-3, rate)
        return f"{self.number}/{self.videos} {self.name}: {what} ({rate:.0f} frames/s, {left:.0f} s left)"

    def _say(self, what: str) -> None:
        self.said = time.monotonic()
        if self.bar:
            self.bar.console.print(self._line(what), highlight=False, markup=False)
        else:
            print(self._line(what), flush=True)


def _shards_in(out: Path) -> list[Path]:
    return [path for split in ("train", "val") for path in out.glob(f"{split}-[0-9]*.tar")]


def _clear(out: Path) -> None:
    """Remove what an earlier call made, and nothing else; the manifest first, for it says "whole"."""
    for path in [out / MANIFEST, out / REPORT, *_shards_in(out)]:
        path.unlink(missing_ok=True)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)


def _write(path: Path, value: Any) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)


def _share(name: str) -> float:
    """The sha256 of a name as a share of all its values, in [0, 1)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / (1 << 48)


def _id(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:10]


def _npy(frames: Frames) -> bytes:
    stream = io.BytesIO()
    np.save(stream, frames, allow_pickle=False)
    return stream.getvalue()


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


def _split_in_time(clips: list[tuple[int, int, float]], held: int) -> list[str]:
    if held == 0:
        return ["train"] * len(clips)
    first, last, _ = clips[-held]
    gap = last - first + 1
    return ["train" if end < first - gap else "gap" for _, end, _ in clips[:-held]] + ["val"] * held
