"""Cut a folder of videos, or UltraVideo, into webdataset shards of short, small clips without scene cuts: `pw data`.

    out/train-000000.tar …  <key>.npy uint8 [F, H, W, 3], <key>.json its origin, <key>.txt its caption, if any; of
                            several the first, and all in the .json
    out/val-000000.tar …    held out: shares no frame with train
    out/manifest.json       settings, sources, sha256 of the shards; written last, it marks a finished folder
    out/report.json         the record of every video; why some were skipped, and which files were not read
    out/.unfinished/        the cut videos of an unfinished call, one .raw and one .json each

Two files of one video (`name.part1.mp4`, `name.part2.mp4`) count as two videos: from 20 files on, one may be held out
and the other in train, which may then show the same scene. Join such files before, or remove them. If the origin of
each file is known (UltraVideo), whole origins are held out.

A call continues a killed one at the same video. The shards are written last, because the split needs all videos.
"""

from __future__ import annotations

import io
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout

from pw.data.shard_index import CAPTIONS, CHECKSUMS, ENDINGS, MANIFEST, checksums, index_tar, shard_digest, write_shards
from pw.io.arguments import Command, ConfigError, number, option
from pw.io.console import one_line
from pw.io.files import check_writable, length, parse_json, replacing, sha256, write_json
from pw.io.hub import revision_name
from pw.io.progress import Pace
from pw.io.video import Frames, VideoError, decode, probe
from pw.prepare.caption_files import (
    NONE,
    CaptionFile,
    captions_record,
    captions_summary,
    find_caption_file,
    sidecar_captions,
)
from pw.prepare.forecast import ScaleNeeds, announce, print_next
from pw.prepare.source_videos import (
    ClipSettings,
    CutProgress,
    HardCuts,
    VideoRecord,
    assign_splits,
    cut_clips,
    find_videos,
    record_id,
    skip_duplicates,
    split_by_origin,
)

REPORT = "report.json"
UNFINISHED = ".unfinished"
FORMAT = 1  # of manifest, records and cut detection; folders of another format are not continued


@dataclass(frozen=True)
class DataOptions:
    """Options of `pw data`: videos, output folder, and how clips are cut."""

    path: Path | None = option(None, "the folder with your videos")
    name: Literal["ultravideo"] | None = option(None, "a public dataset, instead of path=")
    out: Path | None = option(
        None, "output folder; without it data/shards, or data/NAME of a public dataset; with scale= shards-SCALE"
    )
    captions: str | None = option(
        None, "a .json, .jsonl, .csv or .parquet of captions; by default captions.* or metadata.* in path=; or none"
    )
    scale: str | None = option(None, "cut what `pw latents scale=…` needs: sets frames, short_side and fps")
    dry_run: bool = option(False, "say how many clips, and what disk and time they take, and stop")
    overwrite: bool = option(False, "replace existing shards")
    frames: int | None = option(None, f"frames of a clip, 4n + 1; {ClipSettings.frames}, or what scale= needs")
    short_side: int | None = option(
        None, f"px that frames are reduced to, none is enlarged; {ClipSettings.short_side}, or what scale= needs"
    )
    stride: int = option(ClipSettings.stride, "frames from one clip's start to the next; 0: clips do not overlap")
    fps: float | None = option(
        None, "largest frame rate, reached by dropping frames; 0 keeps all; 0, or Wan's 24 with scale="
    )
    holdout: float = option(ClipSettings.holdout, "share of the clips that is held out")
    shard_mb: float = option(ClipSettings.shard_mb, "approximate size of a shard, MB")
    accept_licence: bool = option(False, "you have read and accept the licence of the dataset")
    taste: int | None = option(None, "number of clips to take from the dataset", read=number(1, 1_000_000))
    size: Literal["native", "1920", "960"] = option("native", "which copy of the dataset, by its width in px")
    caption: Literal["summarized", "detailed", "brief"] = option("summarized", "which captions of the dataset")
    keep: bool = option(False, "keep the dataset's zips when their clips are out")
    revision: str = option(
        "", "branch, tag or commit of the dataset; without it main, or that of the earlier call", read=revision_name
    )

    def __post_init__(self) -> None:
        if self.path and self.name:
            raise ConfigError("give path= (your own videos) or name= (a public dataset), not both")
        if not self.path and not self.name:
            raise ConfigError("path is missing: the folder with your videos (or name=ultravideo)")
        dataset_keys = ("accept_licence", "taste", "size", "caption", "keep", "revision")
        if self.path and (unused := [key for key in dataset_keys if getattr(self, key) != getattr(DataOptions, key)]):
            raise ConfigError(f"{unused[0]}= is for name=ultravideo, not for path=")
        if self.name and self.captions is not None:
            raise ConfigError("captions= is for path=, not for name=ultravideo, which has its own (caption=)")

    @cached_property
    def needs(self) -> ScaleNeeds | None:
        """Raises ConfigError for an unknown scale."""
        return None if self.scale is None else ScaleNeeds.of_scale(self.scale)

    @cached_property
    def settings(self) -> ClipSettings:
        """How clips are cut. Raises ConfigError."""
        values = {field.name: getattr(self, field.name) for field in fields(ClipSettings)}
        given = {name: value for name, value in values.items() if value is not None}
        return ClipSettings(**given) if self.needs is None else self.needs.clip_settings(given)

    @property
    def shards_name(self) -> str:
        return "shards" if self.scale is None else f"shards-{self.scale}"


def run(options: DataOptions) -> int:
    """Exit status: 0 done, 1 the licence is not accepted."""
    if options.name:
        from pw.prepare.ultravideo import ultravideo

        return ultravideo(options, options.out or Path("data/ultravideo"))
    assert options.path is not None
    out, settings = options.out or Path("data") / options.shards_name, options.settings
    if options.dry_run:
        videos = find_videos(options.path)[0]
        find_caption_file(options.path, options.captions, videos)
        announce(videos, {}, settings, options.needs, out)
        return 0
    ingest(options.path, out, settings, options.overwrite, needs=options.needs, captions=options.captions)
    print_next(out, options.needs)
    return 0


main = Command(DataOptions, run, resume_hint="what is done is kept; run the same command again to resume")


def ingest(
    path: Path,
    out: Path,
    settings: ClipSettings,
    overwrite: bool = False,
    origins: Mapping[str, str] | None = None,
    needs: ScaleNeeds | None = None,
    captions: str | None = NONE,
) -> dict[str, Any]:
    """Write the shards to `out`, or continue an earlier call; returns the manifest.

    origins   file name relative to `path` -> its source video; whole sources are held out (`split_by_origin`)
    needs     what the clips are for
    captions  as in `find_caption_file`; videos that the file does not have may have one beside them
    Raises ConfigError for no videos, none that is large enough for `needs`, other files in `out`, too little disk
    space, or no clip in any video.
    """
    (videos, passed_over), frames = find_videos(path), 0
    captions_file = find_caption_file(path, captions, videos)
    if overwrite or not (out / MANIFEST).is_file():
        check_writable("out", out)
        frames = announce(videos, {} if overwrite else _read_records(out, videos), settings, needs, out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            if overwrite:
                _clear(out)
            if (out / MANIFEST).is_file():
                return _check_finished(out, videos, _settings_content(settings, origins, captions_file))
            return _write_dataset(out, videos, passed_over, settings, origins, captions_file, frames)
    except Timeout:
        raise ConfigError(f"out={out}: another `make data` is running there; wait, or give another out=") from None


def _write_dataset(
    out: Path,
    videos: dict[str, Path],
    passed_over: dict[str, str],
    settings: ClipSettings,
    origins: Mapping[str, str] | None,
    captions: CaptionFile | None,
    frames: int,
) -> dict[str, Any]:
    pace, folder = Pace(), out / UNFINISHED
    settings_file, content = folder / "settings.json", _settings_content(settings)
    if settings_file.is_file():  # cut videos do not depend on the split and the captions
        _read_earlier(out, settings_file, content)
    elif _shards_in(out):
        raise ConfigError(f"out={out}: holds tars without a {MANIFEST}; give another out=, or overwrite=true")
    else:
        write_json(settings_file, content)
    records = _read_records(out, videos)
    if records:
        print(f"resuming: {len(records)} of {len(videos)} videos are done")
    missing = {name: video for name, video in videos.items() if name not in records}
    progress = CutProgress(frames)
    for count, (name, video) in enumerate(missing.items(), start=1):
        progress.video = f"{count}/{len(missing)} {one_line(name)}"
        record = records[name] = _cut_video(folder, name, video, settings, progress)
        write_json(folder / f"{record_id(name)}.json", asdict(record))
        progress.show(f"skipped, {record.skipped}" if record.skipped else f"{len(record.clips)} clips", last=True)
    all_records = [records[name] for name in videos]
    skip_duplicates(all_records)
    for record in all_records:
        record.origin = (origins or {}).get(record.file, "")
        if captions is not None:
            record.captions = [*captions.captions.get(record.file, record.captions)]
    manifest = _assemble(out, all_records, passed_over, settings, _settings_content(settings, origins, captions))
    _summarise(out, manifest, all_records, pace.elapsed)
    return manifest


def _check_finished(out: Path, videos: dict[str, Path], settings: dict[str, Any]) -> dict[str, Any]:
    manifest = _read_earlier(out, out / MANIFEST, settings)
    earlier = {source["file"]: source["bytes"] for source in manifest["sources"]}
    current = {name: video.stat().st_size for name, video in videos.items()}
    if differences := [name for name in sorted(earlier | current) if earlier.get(name) != current.get(name)]:
        raise ConfigError(
            f"out={out}: {len(differences)} videos were added, removed or changed since, such as {differences[0]}; "
            "give another out=, or overwrite=true"
        )
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    totals = manifest["totals"]
    print(f"nothing to do: {out} has {totals['train']} train and {totals['val']} val clips")
    return manifest


def _settings_content(
    settings: ClipSettings, origins: Mapping[str, str] | None = None, captions: CaptionFile | None = None
) -> dict[str, Any]:
    content: dict[str, Any] = {"format": FORMAT, **asdict(settings)}
    content |= {} if origins is None else {"split_by": "source video"}
    return content | ({} if captions is None else {"captions": captions.digest})


def _read_earlier(out: Path, path: Path, current: dict[str, Any]) -> dict[str, Any]:
    """The manifest or settings of an earlier call. Raises ConfigError unless it had the current settings."""
    try:
        content = parse_json(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path}: is damaged ({error}); give another out=, or overwrite=true") from None
    defaults = {"split_by": "file", "captions": "beside the videos"}
    earlier, current = defaults | content.get("settings", content), {"captions": defaults["captions"]} | current
    if differences := [key for key in current if earlier.get(key) != current[key]]:
        text = ", ".join(f"{key}={earlier.get(key)} (now {current[key]})" for key in differences)
        raise ConfigError(f"out={out}: was made with {text}; give another out=, or overwrite=true")
    return content


def _read_record(out: Path, name: str, video: Path) -> VideoRecord | None:
    """The record of a cut video; None if the file has changed or clips are missing.

    After a power failure both files may exist without their content.
    """
    path = out / UNFINISHED / f"{record_id(name)}.json"
    try:
        record, stat = VideoRecord(**parse_json(path.read_text())), video.stat()
        raw = path.with_suffix(".raw").stat().st_size if record.clips else 0
    except (FileNotFoundError, ValueError, TypeError):
        return None
    is_whole = raw == len(record.clips) * math.prod(record.shape)
    return record if is_whole and (record.bytes, record.mtime_ns) == (stat.st_size, stat.st_mtime_ns) else None


def _read_records(out: Path, videos: dict[str, Path]) -> dict[str, VideoRecord]:
    """The records of the videos that are cut."""
    return {name: record for name, video in videos.items() if (record := _read_record(out, name, video))}


def _cut_video(folder: Path, name: str, video: Path, settings: ClipSettings, progress: CutProgress) -> VideoRecord:
    """Write the clips of one video to `<id>.raw`, uint8 [clips, F, H, W, 3]."""
    stat = video.stat()
    record = VideoRecord(name, stat.st_size, stat.st_mtime_ns)
    detector = HardCuts()
    try:
        record.sha256 = sha256(video)
        info = probe(video)
        frames = progress.watch(decode(video, settings.short_side, settings.fps or None))
        with replacing(folder / f"{record_id(name)}.raw") as partial, open(partial, "wb") as raw:
            for clip in cut_clips(frames, settings.frames, settings.step, detector):
                for frame in clip:
                    raw.write(frame.image.data)
                record.clips.append((clip[0].index, clip[-1].index, clip[0].time))
                record.shape = (len(clip), *clip[0].image.shape)
    except (VideoError, PermissionError) as error:
        record.clips, record.skipped = [], str(error).removeprefix(f"{video}: ")
        return record
    record.frames, record.cuts, record.fps = detector.frames, detector.cuts, min(info.fps, settings.fps or info.fps)
    record.peak = info.peak
    record.captions, warning = sidecar_captions(video)
    record.warning = "; ".join(filter(None, (warning, info.note)))
    if not record.clips:
        record.skipped = f"too short: {record.frames} frames, {record.cuts} cuts, no {settings.frames} in one shot"
    return record


def _assemble(
    out: Path,
    records: list[VideoRecord],
    passed_over: dict[str, str],
    settings: ClipSettings,
    settings_content: dict[str, Any],
) -> dict[str, Any]:
    """Write shards, report and manifest from the cut videos, then remove the raw clips."""
    usable = [record for record in records if record.clips]
    rule, splits = (split_by_origin if "split_by" in settings_content else assign_splits)(usable, settings.holdout)
    report = [asdict(record) | {"clips": len(record.clips)} for record in records]
    write_json(out / REPORT, {"split": rule, "videos": report, "passed_over": passed_over})
    if not usable:
        shutil.rmtree(out / UNFINISHED)
        raise ConfigError(
            f"none of the {len(records)} videos gives a clip (all reasons are in {out / REPORT}), such as "
            f"{records[0].file}: {records[0].skipped}"
        )
    folder = out / UNFINISHED / "shards"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shards, shard_bytes = [], int(settings.shard_mb * 1e6)
    for split in ("train", "val"):
        for path, samples in write_shards(folder, split, _samples(out, usable, splits, split), shard_bytes):
            shard = {"file": path.name, "split": split, "samples": samples, "bytes": length(path)}
            keys = shard_digest(*index_tar(path, ENDINGS))
            shards.append(shard | {"keys": keys, "sha256": sha256(path)})
    for path in _shards_in(out):
        path.unlink()
    for shard in shards:
        (folder / shard["file"]).replace(out / shard["file"])
    totals = {split: sum(assigned.count(split) for assigned in splits) for split in ("train", "val", "gap")}
    manifest = {
        "settings": settings_content,
        "split": rule,
        "totals": totals | {"bytes": sum(shard["bytes"] for shard in shards)},
        "captions": captions_record(usable),
        "shards": shards,
        "sources": [
            {key: entry[key] for key in ("file", "bytes", "sha256", "clips", "origin") if key != "origin" or entry[key]}
            for entry in report
        ],
    }
    write_json(out / MANIFEST, manifest)
    shutil.rmtree(out / UNFINISHED)
    return manifest


def _samples(out: Path, records: list[VideoRecord], splits: list[list[str]], split: str) -> Iterator[dict[str, Any]]:
    """The clips of one split as webdataset samples."""
    for record, clip_splits in zip(records, splits, strict=True):
        stem, identity = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(record.file).stem)[:40], record_id(record.file)
        raw, shape = out / UNFINISHED / f"{identity}.raw", (len(record.clips), *record.shape)
        clips = np.memmap(raw, np.uint8, mode="r", shape=shape)
        for frames, (start, _, seconds), clip_split in zip(clips, record.clips, clip_splits, strict=True):
            if clip_split != split:
                continue
            origin = {"source": record.file, "sha256": record.sha256, "start": start, "seconds": seconds}
            content: dict[str, Any] = origin | {"fps": record.fps, "shape": record.shape, "split": split}
            if record.peak:
                content["peak"] = record.peak
            if len(record.captions) > 1:
                content[CAPTIONS] = record.captions
            members = {"npy": _npy(frames)} | ({"txt": record.captions[0].encode()} if record.captions else {})
            content[CHECKSUMS] = checksums(members)
            yield {"__key__": f"{stem}-{identity}-{start:06d}", "json": json.dumps(content).encode(), **members}


def _summarise(out: Path, manifest: dict[str, Any], records: list[VideoRecord], seconds: float) -> None:
    totals, count = manifest["totals"], sum(bool(record.clips) for record in records)
    result = f"{totals['train']} train and {totals['val']} val clips, {totals['bytes'] / 1e6:.1f} MB"
    print(f"{out}: {result}, from {count} of {len(records)} videos in {seconds:.1f} s\nsplit: {manifest['split']}")
    print(captions_summary(manifest["captions"], out / MANIFEST))
    if not totals["val"]:
        print("warning: no val clips, nothing to evaluate on: give it more or longer videos")
    if count < len(records):
        print(f"skipped {len(records) - count}, see {out / REPORT}:")
    for record in records:
        if reason := record.skipped or record.warning:
            print(one_line(f"  {record.file}: {reason}"))


def _shards_in(out: Path) -> list[Path]:
    return [path for split in ("train", "val") for path in out.glob(f"{split}-[0-9]*.tar")]


def _clear(out: Path) -> None:
    """Remove the files of an earlier call, and no others; first the manifest, which marks a finished folder."""
    for path in [out / MANIFEST, out / REPORT, *_shards_in(out)]:
        path.unlink(missing_ok=True)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)


def _npy(frames: Frames) -> bytes:
    stream = io.BytesIO()
    np.save(stream, frames, allow_pickle=False)
    return stream.getvalue()
