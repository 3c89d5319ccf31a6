"""UltraVideo, the training data of the paper (sec. 4.1): some or all of its clips -> captions -> shards.

    out/clips/<clip>.mp4, .txt   the videos and their captions, as `pw.prepare.ingest` takes them
    out/shards/                  its output, with a report; train and val share no source video
    out/short.csv                the captions as published
    out/zips/                    the zip in progress; with keep=true also finished zips
    out/ultravideo.json          the report: commit, finished zips and clips, skipped clips and why

Known from public code that reads it and from stored web pages, not from the dataset itself:
    `short.csv` and `clips_short/clips_short_{1..36}.zip`, 1.4 TB, whose members are found by base name and read one by
        one over HTTP ranges; columns `clip_id` (a name ending in .mp4), `url` (the source video: a YouTube id), `Brief
        Description`, `Detailed Description`: cxh42/Ad-Up, adup/sources/ultravideo.py
    `clips_short_1920/clips_short_1920_*.zip`, reduced copies; 42,158 different captions; some clips are PQ or HLG:
        the data preparation of DMAD for MiniMax-H3
    `Summarized Description`, 49,604 rows, a copy that is 960 px wide, members in a folder of the zip's name: loaders
    the licence: quoted by the dataset cards of DMAD-Wan-data and DMAD-H3-data, which are derived from it
Assumed: the 960 copy is packed like the others. No hash of a commit is known: the first call records the commit of
`revision`, and later calls use it.
"""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import stat
import zipfile
import zlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from filelock import FileLock, Timeout

from pw.io import hub
from pw.io.arguments import ConfigError
from pw.io.console import printable
from pw.io.files import check_space, check_writable, free_space, human_size, length, parse_json, replacing, write_json
from pw.io.video_files import is_video
from pw.prepare.captions import CaptionRow, read_captions
from pw.prepare.forecast import Forecast, VideoSize, forecast
from pw.prepare.ingest import DataOptions, ingest, print_next

REPOSITORY = "APRIL-AIGC/UltraVideo"
LICENCE = "UltraVideo Dataset License Agreement (CC-BY-4.0 with Additional Restrictions)"
TABLES = ("short.csv", "UltraVideo_short.csv")  # the second name is that of some copies
FOLDERS = {"native": "clips_short", "1920": "clips_short_1920", "960": "clips_short_960"}
REPORT = "ultravideo.json"
# Of a clip of each copy: bytes on average (native: 1.4 TB in 42,000 clips; the others by their area), size in px.
CLIPS = 42_000
COPIES = {"native": (33e6, 2160, 3840), "1920": (8e6, 1080, 1920), "960": (2e6, 540, 960)}
SECONDS, RATE = 6.5, 30.0  # length and frames/s of a clip. Assumed; published are lengths from 3 to 10 s.
FETCH_RATE = 50e6  # bytes a second. Assumed.
WINDOW = 1 << 16  # bytes per read in the directory of a zip
LONGEST_WINDOW = 1 << 23  # bytes per read in a clip, at most
LONGEST_READ = 1 << 26  # bytes that a zip may request at once: its directory has some hundred bytes per clip
HEADER = 1 << 12  # bytes before a clip in a zip, usually fewer


@dataclass
class UltraVideoReport:
    """Content of `out`. `zips`: name -> number of clips; `clips`: file -> zip; `skipped`: zip/member -> reason."""

    revision: str
    commit: str
    size: str
    caption: str
    dataset: str = REPOSITORY
    licence: str = LICENCE
    complete: bool = False
    zips: dict[str, int] = field(default_factory=dict)
    clips: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def save(self, out: Path) -> None:
        # durable: if a power failure lost it, all zips would be downloaded again
        write_json(out / REPORT, asdict(self), durable=True)

    def clip_count(self, out: Path) -> int:
        return sum((out / "clips" / clip).is_file() for clip in self.clips)


def notice(options: DataOptions, out: Path) -> str:
    """The text with the licence in short, what would be downloaded, and how to accept."""
    everything = "36 zips, 1.4 TB" if options.size == "native" else "all zips"
    amount = f"{options.taste} clips by range requests" if options.taste else everything
    forecast = expected(options).text(options.settings, options.needs)
    return f"""UltraVideo is under the {LICENCE}.
In short, and only the text at {hub.endpoint()}/datasets/{REPOSITORY} is binding:
  - non-commercial research only; no products, services or redistribution for money
  - the Terms of Service of YouTube, copyright and privacy laws also apply; no re-identification of people
  - raw videos, transcripts and thumbnails must not be passed on; works beyond research need their creators' permission
  - models may be trained on it; results must not hold more than a trivial part of the data itself
This call would fetch short.csv and, from {FOLDERS[options.size]}, {amount}, into {out}:
{forecast}
native is 4K and 8K; size=1920 and size=960 are reduced copies; taste=5 takes five clips only.
Nothing was fetched. If you have read and accept the licence, call again with accept_licence=true."""


def expected(options: DataOptions, zip_bytes: float | None = None) -> Forecast:
    """The forecast of a call, before its clips are known. zip_bytes: of all zips, if known.

    Raises ConfigError if the chosen copy is too small for the scale.
    """
    clip_bytes, height, width = COPIES[options.size]
    videos = options.taste or (CLIPS if zip_bytes is None else math.ceil(zip_bytes / clip_bytes))
    source = VideoSize(SECONDS * RATE, height, width, RATE)
    if options.needs is not None and (height < options.needs.crop.height or width < options.needs.crop.width):
        raise ConfigError(f"size={options.size}: has {height} x {width} px; {options.needs}: use size=native")
    one = forecast([source], options.settings)
    fetch_bytes = videos * clip_bytes if options.taste or zip_bytes is None else zip_bytes
    note = f"assumed: videos of {SECONDS} s at {RATE:g} frames/s"
    return replace(one * videos, fetch_bytes=fetch_bytes, fetch_rate=FETCH_RATE, note=note)


def _remedy(options: DataOptions, out: Path) -> str:
    """What fits the disk of `out`."""
    one = expected(replace(options, taste=1))
    count = int(free_space(out) / (1.05 * one.disk_bytes))
    return f"give an out= on another disk{f', or taste={count}' if count else ''}"


def ultravideo(options: DataOptions, out: Path) -> int:
    """Download missing clips to `out` and write shards. Exit status: 0 done, 1 the licence is not accepted.

    `overwrite` writes the shards again; downloaded clips stay.
    Raises ConfigError when `out` is not writable or has other content, the disk is too small, the server refuses, has
    no such revision or ignores ranges, or a zip is damaged or has paths outside `out`.
    """
    settings, shards, coming = options.settings, out / options.shards_name, expected(options)
    if options.dry_run or not options.accept_licence:
        print(notice(options, out), flush=True)
        if options.dry_run:
            coming.check_disk(out, _remedy(options, out))
        return int(not options.dry_run)
    check_writable("out", out)
    try:
        with FileLock(out / ".lock", timeout=0):
            rows = _fetch(options, out)
    except Timeout:
        raise ConfigError(f"out={out}: another call is fetching there; wait, or give another out=") from None
    clips = [path for path in (out / "clips").iterdir() if is_video(path)]
    origins = {clip.name: rows[clip.stem].source for clip in clips if clip.stem in rows}
    ingest(out / "clips", shards, settings, options.overwrite, origins, options.needs)
    print_next(shards, options.needs)
    return 0


def _fetch(options: DataOptions, out: Path) -> dict[str, CaptionRow]:
    """Download missing clips; returns the rows of short.csv."""
    report, table, taste = _read_report(options, out), out / TABLES[0], options.taste
    if report and (report.complete or (taste and report.clip_count(out) >= taste)):
        print(f"{out}: {len(report.clips)} clips are here, of commit {report.commit}")
        if not table.is_file():
            Dataset(report.commit).download_table(table)
        return read_captions(table, options.caption)
    dataset = Dataset(report.commit if report else options.revision or "main")
    report = report or UltraVideoReport(options.revision or "main", dataset.commit, options.size, options.caption)
    zips = dataset.zips(options.size)
    print(f"{REPOSITORY} at commit {dataset.commit}, under the {LICENCE}")
    missing = [name for name in zips if name not in report.zips]
    coming = expected(options, sum(map(dataset.size, zips)) if taste is None else None)
    print(coming.text(options.settings, options.needs))
    need, purpose = (
        dataset.disk_need(out, missing, options.keep) if taste is None else (coming.fetch_bytes, f"{taste} clips")
    )
    purpose = f"{purpose}, and shards"
    free = check_space("out", out, need + 2 * coming.shard_bytes, _remedy(options, out), f"({purpose})")
    print(f"  free   {human_size(free)}", flush=True)
    report.save(out)
    if not table.is_file():
        dataset.download_table(table)
    rows = read_captions(table, options.caption)
    (out / "clips").mkdir(exist_ok=True)
    fetcher = _Fetcher(dataset, out, rows, report)
    if taste is None:
        fetcher.fetch_all(zips, options.keep)
    else:
        fetcher.fetch_some(zips, taste)
    caption_count = sum(Path(clip).stem in rows for clip in report.clips)
    print(f"{out}: {len(report.clips)} clips, {caption_count} with a caption; skipped {len(report.skipped)}")
    for member, reason in report.skipped.items():
        print(printable(f"  {member}: {reason}"))
    if not report.clips:
        raise ConfigError(f"out={out}: not one clip could be taken, see {out / REPORT}")
    return rows


def _read_report(options: DataOptions, out: Path) -> UltraVideoReport | None:
    """The report of an earlier call, None if there is none. Raises ConfigError if its options differ."""
    path = out / REPORT
    if not path.is_file():
        return None
    try:
        report = UltraVideoReport(**parse_json(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: is damaged ({error}); remove it to start again, or give another out=") from None
    for name in ("size", "caption"):
        if (earlier := getattr(report, name)) != getattr(options, name):
            raise ConfigError(f"out={out}: was begun with {name}={earlier}; give another out=")
    if options.revision not in ("", report.revision, report.commit):
        origin = f"revision={report.revision}, commit {report.commit}"
        raise ConfigError(f"out={out}: was begun at {origin}; give another out=")
    return report


def _check_space(out: Path, required: float, purpose: str) -> None:
    remedy = "give an out= on another disk, or a taste= of a few clips"
    free = check_space("out", out, required, remedy, f"({purpose})")
    print(f"{purpose}: {human_size(required)}, {human_size(free)} are free", flush=True)


@dataclass
class _Fetcher:
    """Extracts clips from zips to `out`, with captions from the table, and updates the report."""

    dataset: Dataset
    out: Path
    rows: dict[str, CaptionRow]
    report: UltraVideoReport

    def fetch_all(self, zips: list[str], keep: bool) -> None:
        """Download and extract all clips, zip by zip."""
        report = self.report
        for name in zips:
            path = _zip_path(self.out, name)
            if name not in report.zips:
                if not path.is_file():
                    self.dataset.download(name, path)
                try:
                    with zipfile.ZipFile(path) as archive:
                        members = clips_in(archive, name)
                        _check_space(self.out, self._missing_bytes(members), f"{len(members)} clips of {name}")
                        count = sum(self._extract(archive, member, name) for member in members)
                except zipfile.BadZipFile as error:
                    path.unlink()
                    raise ConfigError(f"{name}: {error}; it was removed, call again to fetch it again") from None
                report.zips[name] = count
                report.complete = len(report.zips) == len(zips)
                report.save(self.out)
            if not keep:
                path.unlink(missing_ok=True)

    def fetch_some(self, zips: list[str], count: int) -> None:
        """Extract `count` clips; first those that have a caption and a new source video."""
        for name in zips:
            with RemoteFile(self.dataset.source(name), self.dataset.size(name)) as remote:
                try:
                    archive = zipfile.ZipFile(remote)
                except zipfile.BadZipFile as error:
                    raise ConfigError(f"{name}: {error}; give another revision=, or HF_ENDPOINT") from None
                members = self._by_variety(clips_in(archive, name))
                missing = count - self.report.clip_count(self.out)
                _check_space(self.out, self._missing_bytes(members[:missing]), f"{missing} clips")
                for member in members:
                    if self.report.clip_count(self.out) >= count:
                        return
                    remote.window = min(member.compress_size + HEADER, LONGEST_WINDOW)
                    self._extract(archive, member, name)
                    self.report.save(self.out)

    def _by_variety(self, members: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
        sources: set[str] = set()
        first, rest = [], []
        for member in members:
            row = self.rows.get(Path(member.filename).stem)
            (first if row and row.source not in sources else rest).append(member)
            sources.add(row.source if row else "")
        return first + rest

    def _path(self, member: zipfile.ZipInfo) -> Path:
        return self.out / "clips" / PurePosixPath(member.filename).name

    def _missing_bytes(self, members: list[zipfile.ZipInfo]) -> int:
        """Bytes of the clips that are not in `out`."""
        return sum(member.file_size for member in members if length(self._path(member)) != member.file_size)

    def _extract(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> bool:
        """Write one clip of the zip `name` and its caption; False, with a reason in the report, if that fails."""
        clip, report, key = self._path(member), self.report, f"{name}/{member.filename}"
        if (other_zip := report.clips.get(clip.name, name)) != name:
            report.skipped[key] = f"there is a clip of this name from {other_zip}"
            return False
        try:
            if length(clip) != member.file_size:
                with replacing(clip) as partial, archive.open(member) as source, open(partial, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # encrypted, or an unknown method
            report.skipped[key] = f"damaged in the zip ({error})"
            return False
        if (row := self.rows.get(clip.stem)) and row.caption:
            clip.with_suffix(".txt").write_text(row.caption + "\n", encoding="utf-8")
        report.clips[clip.name] = name
        report.skipped.pop(key, None)
        return True


class Dataset:
    """UltraVideo at one commit, on the Hub or a mirror of it."""

    def __init__(self, revision: str) -> None:
        self._repository = hub.repository(REPOSITORY, revision, "dataset")
        self.commit = self._repository.commit
        self._sizes = {name: entry.size for name, entry in self._repository.files.items()}

    def zips(self, size: str) -> list[str]:
        """Names of the zips, in the order of their numbers."""
        pattern = re.compile(rf"(?:.*/)?{FOLDERS[size]}(?:_(\d{{1,3}}))?\.zip")
        numbers = {name: int(match[1] or 0) for name in self._sizes if (match := pattern.fullmatch(name))}
        if not numbers:
            names = ", ".join(sorted(self._sizes)[:5]) or "nothing"
            raise ConfigError(f"size={size}: no {FOLDERS[size]}_*.zip at commit {self.commit}; it has {names} …")
        return sorted(numbers, key=lambda name: (numbers[name], name))

    def download_table(self, path: Path) -> None:
        name = next((name for name in TABLES if name in self._sizes), None)
        if name is None:
            raise ConfigError(f"no {TABLES[0]} at commit {self.commit}; give another revision=")
        self.download(name, path)

    def source(self, name: str) -> hub.HubFile:
        return self._repository.file(name)

    def size(self, name: str) -> int:
        """Bytes of a file, from the list of files or a HEAD request."""
        size = self._sizes[name] or hub.server_metadata(self.source(name)).size
        if not size:
            source = self.source(name)
            raise ConfigError(f"{source}: the server does not say how large it is; set HF_ENDPOINT to another")
        self._sizes[name] = size
        return size

    def download(self, name: str, path: Path) -> None:
        """Download a file; continues after an earlier call or a lost connection."""
        hub.fetch(self.source(name), path, self.size(name), self._repository.files[name].digest)

    def disk_need(self, out: Path, zips: list[str], keep: bool) -> tuple[float, str]:
        """(bytes still to be written, a description). Clips are as large as their zips: mp4 does not compress."""
        sizes = [self.size(name) for name in zips]
        existing = sum(length(_zip_path(out, name)) for name in zips) + hub.partial_bytes(out / "zips")
        required = sum(sizes) + (sum(sizes) if keep else max(sizes, default=0)) - existing
        zip_text = "the zips (keep=true)" if keep else "one zip at a time"
        return required, f"{len(zips)} zips of {human_size(sum(sizes))}: their clips, and {zip_text}"


def _zip_path(out: Path, name: str) -> Path:
    return out / "zips" / PurePosixPath(name).name


# ---- zips, read member by member over HTTP ranges


class RemoteFile(io.RawIOBase):
    """A file on the Hub that `zipfile` can read. Buffers one read of at least `window` bytes."""

    def __init__(self, source: hub.HubFile, size: int) -> None:
        self.source, self.size, self.window = source, size, WINDOW
        self._position = self._buffer_start = 0
        self._buffer = b""

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if self._position < 0:
            raise OSError(f"{self.source}: seek to {self._position}")
        return self._position

    def read(self, n: int = -1) -> bytes:
        stop = self.size if n < 0 else min(self.size, self._position + n)
        if stop - self._position > LONGEST_READ:
            raise zipfile.BadZipFile(f"declares a directory of {stop - self._position:,} bytes")
        pieces = []
        while self._position < stop:
            if not self._buffer_start <= self._position < self._buffer_start + len(self._buffer):
                # `zipfile` reads the end backwards, a few bytes at a time
                self._buffer_start = min(self._position, max(0, self.size - WINDOW))
                end = min(self.size, max(stop, self._position + self.window))
                self._buffer = hub.read_range(self.source, self._buffer_start, end)
            piece = self._buffer[self._position - self._buffer_start : stop - self._buffer_start]
            pieces.append(piece)
            self._position += len(piece)
        return b"".join(pieces)


def clips_in(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """The videos of a zip. Raises ConfigError if a member is a link or its path is absolute or has `..`."""
    for member in archive.infolist():
        path = PureWindowsPath(member.filename)  # splits at / and \ and C:
        if path.anchor or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
            raise ConfigError(
                f"{name}: holds {member.filename!r}, a link or a path that leads elsewhere; nothing was taken from "
                "it. Do not trust this server: set HF_ENDPOINT to another, or give another revision="
            )
    return [member for member in archive.infolist() if is_video(PurePosixPath(member.filename))]
