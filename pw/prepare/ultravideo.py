"""UltraVideo, which the paper trains on (sec. 4.1): a taste or all of it -> captioned clips -> shards.

    out/clips/<clip>.mp4, .txt   the videos and their captions, as `pw.prepare.ingest` takes them
    out/shards/                  what it makes of them, with its own report; train and val share no source video
    out/short.csv                the captions as published
    out/zips/                    zips under way; with keep=true those that are done, too
    out/ultravideo.json          the report: commit, zips and clips that are done, what was skipped and why

Known, from public code that reads it and from pages that were stored; the dataset itself was not at hand:
    `short.csv` and `clips_short/clips_short_{1..36}.zip`, 1.4 TB, members found by base name and read one by one
        over HTTP ranges; columns `clip_id` (a name ending in .mp4), `url` (the source video: a YouTube id), `Brief
        Description`, `Detailed Description`: cxh42/Ad-Up, adup/sources/ultravideo.py
    `clips_short_1920/clips_short_1920_*.zip`, reduced copies; 42,158 different captions; some clips are PQ or HLG:
        the data preparation of DMAD for MiniMax-H3
    `Summarized Description`, 49,604 rows, a copy that is 960 px wide, members in a folder of the zip's name: loaders
    the licence: quoted by the dataset cards of DMAD-Wan-data and DMAD-H3-data, which are derived from it
Assumed: that the 960 copy is packed as the others are. No commit is known by hash: what `revision` names at the first
call is written down, and later calls stay on it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import stat
import sys
import zipfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from filelock import FileLock, Timeout

from pw.io import hub
from pw.io.arguments import ConfigError
from pw.io.files import check_space, check_writable, human_size, length, replacing, write_json
from pw.prepare.ingest import DataOptions, ingest
from pw.prepare.source_videos import ENDINGS

REPOSITORY = "APRIL-AIGC/UltraVideo"
LICENCE = "UltraVideo Dataset License Agreement (CC-BY-4.0 with Additional Restrictions)"
TABLES = ("short.csv", "UltraVideo_short.csv")  # the second name is the one some copies have
FOLDERS = {"native": "clips_short", "1920": "clips_short_1920", "960": "clips_short_960"}
REPORT = "ultravideo.json"
WINDOW = 1 << 16  # bytes read at once where a zip keeps its directory
LONGEST_WINDOW = 1 << 23  # bytes read at once of a clip
LONGEST_READ = 1 << 26  # bytes that a zip may ask for at once: its directory has some hundred bytes for each clip
HEADER = 1 << 12  # bytes before a clip in a zip, at most, as a rule
CAPTIONS = {"summarized": "Summarized Description", "detailed": "Detailed Description", "brief": "Brief Description"}
YOUTUBE = re.compile(r"(?:https?://)?(?:www\.|m\.)?youtu(?:\.be/|be\.com/(?:watch\?(?:.*&)?v=|[a-z]+/))([\w-]+)")


@dataclass
class UltraVideoReport:
    """What is in `out`: `zips` are {name: clips in it}, `clips` {file: zip}, `skipped` {zip/member: reason}."""

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
        # durable: lost with the power, it would cost all zips again
        write_json(out / REPORT, asdict(self), durable=True)

    def present(self, out: Path) -> int:
        return sum((out / "clips" / clip).is_file() for clip in self.clips)


def notice(options: DataOptions, out: Path) -> str:
    """The licence in short, what would be fetched, and how to accept."""
    clip, all_of_it = ("33 MB each on average", "36 zips, 1.4 TB") if options.size == "native" else ("", "all zips")
    what = f"{options.taste} clips by range requests, {clip}".rstrip(", ") if options.taste else all_of_it
    return f"""UltraVideo is under the {LICENCE}.
In short, and only the text at {hub.endpoint()}/datasets/{REPOSITORY} is binding:
  - non-commercial research only; no products, services or redistribution for money
  - the Terms of Service of YouTube, copyright and privacy laws hold besides; no re-identification of people
  - raw videos, transcripts and thumbnails must not be passed on; works beyond research need their creators' leave
  - models may be trained on it; results must not hold more than a trifle of the data itself
This call would fetch short.csv and, from {FOLDERS[options.size]}, {what}, into {out}.
native is 4K and 8K; size=1920 and size=960 are reduced copies; taste=5 takes five clips only.
Nothing was fetched. If you have read and accept the licence, call again with accept_licence=true."""


def ultravideo(options: DataOptions, out: Path) -> int:
    """Fetch what is not in `out` yet and make shards of it. Exit status: 0 done, 1 the licence is not accepted.

    `overwrite` makes the shards anew; what was fetched stays.
    Raises ConfigError: `out` cannot be written or holds something else, the disk is too small, the server refuses, has
    no such revision or ignores ranges, a zip is broken or would write outside `out`.
    """
    settings = options.settings
    if not options.accept_licence:
        print(notice(options, out))
        return 1
    check_writable("out", out)
    try:
        with FileLock(out / ".lock", timeout=0):
            rows = _fetch(options, out)
    except Timeout:
        raise ConfigError(f"out={out}: another call is fetching there; wait, or give another out=") from None
    clips = [path for path in (out / "clips").iterdir() if path.name.lower().endswith(ENDINGS)]
    origins = {clip.name: rows[clip.stem].source for clip in clips if clip.stem in rows}
    ingest(out / "clips", out / "shards", settings, options.overwrite, origins)
    return 0


def _fetch(options: DataOptions, out: Path) -> dict[str, CaptionRow]:
    """What is not here yet; returns the rows of short.csv."""
    report, table, taste = _begun(options, out), out / TABLES[0], options.taste
    if report and (report.complete or (taste and report.present(out) >= taste)):
        print(f"{out}: {len(report.clips)} clips are here, of commit {report.commit}")
        if not table.is_file():
            Dataset(report.commit).download_table(table)
        return read_captions(table, options.caption)
    dataset = Dataset(report.commit if report else options.revision or "main")
    report = report or UltraVideoReport(options.revision or "main", dataset.commit, options.size, options.caption)
    zips = dataset.zips(options.size)
    print(f"{REPOSITORY} at commit {dataset.commit}, under the {LICENCE}")
    if taste is None:
        _check_space(out, *dataset.needed(out, [name for name in zips if name not in report.zips], options.keep))
    report.save(out)
    if not table.is_file():
        dataset.download_table(table)
    rows = read_captions(table, options.caption)
    (out / "clips").mkdir(exist_ok=True)
    fetching = _Fetching(dataset, out, rows, report)
    if taste is None:
        fetching.whole(zips, options.keep)
    else:
        fetching.taste(zips, taste)
    captioned = sum(Path(clip).stem in rows for clip in report.clips)
    print(f"{out}: {len(report.clips)} clips, {captioned} with a caption; skipped {len(report.skipped)}")
    for member, reason in report.skipped.items():
        print(f"  {member}: {reason}")
    if not report.clips:
        raise ConfigError(f"out={out}: not one clip could be taken, see {out / REPORT}")
    return rows


def _begun(options: DataOptions, out: Path) -> UltraVideoReport | None:
    """What an earlier call wrote down, if it was for the same thing."""
    path = out / REPORT
    if not path.is_file():
        return None
    try:
        report = UltraVideoReport(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: is damaged ({error}); remove it to begin anew, or give another out=") from None
    for name in ("size", "caption"):
        if (before := getattr(report, name)) != getattr(options, name):
            raise ConfigError(f"out={out}: was begun with {name}={before}; give another out=")
    if options.revision not in ("", report.revision, report.commit):
        begun = f"revision={report.revision}, commit {report.commit}"
        raise ConfigError(f"out={out}: was begun at {begun}; give another out=")
    return report


def _check_space(out: Path, need: float, what: str) -> None:
    remedy = "give an out= on another disk, size=960, or a taste= of a few clips"
    free = check_space("out", out, need, remedy, f"({what})")
    print(f"{what}: {human_size(need)}, {human_size(free)} are free", flush=True)


@dataclass
class _Fetching:
    """Takes clips out of zips into `out`, with captions from the table, and keeps the report."""

    dataset: Dataset
    out: Path
    rows: dict[str, CaptionRow]
    report: UltraVideoReport

    def whole(self, zips: list[str], keep: bool) -> None:
        """Every clip, zip by zip."""
        report = self.report
        for name in zips:
            path = _zip(self.out, name)
            if name not in report.zips:
                if not path.is_file():
                    self.dataset.download(name, path)
                try:
                    with zipfile.ZipFile(path) as archive:
                        members = clips_in(archive, name)
                        _check_space(self.out, self._missing(members), f"{len(members)} clips of {name}")
                        taken = sum(self._take(archive, member, name) for member in members)
                except zipfile.BadZipFile as error:
                    path.unlink()
                    raise ConfigError(f"{name}: {error}; it was removed, the same call fetches it again") from None
                report.zips[name] = taken
                report.complete = len(report.zips) == len(zips)
                report.save(self.out)
            if not keep:
                path.unlink(missing_ok=True)

    def taste(self, zips: list[str], count: int) -> None:
        """The first `count` clips, those before others that have a caption and a source video not met before."""
        for name in zips:
            with RemoteFile(self.dataset.source(name), self.dataset.size(name)) as remote:
                try:
                    archive = zipfile.ZipFile(remote)
                except zipfile.BadZipFile as error:
                    raise ConfigError(f"{name}: {error}; give another revision=, or HF_ENDPOINT") from None
                members = self._varied(clips_in(archive, name))
                missing = count - self.report.present(self.out)
                _check_space(self.out, self._missing(members[:missing]), f"{missing} clips")
                for member in members:
                    if self.report.present(self.out) >= count:
                        return
                    remote.window = min(member.compress_size + HEADER, LONGEST_WINDOW)
                    self._take(archive, member, name)
                    self.report.save(self.out)

    def _varied(self, members: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
        seen: set[str] = set()
        first, later = [], []
        for member in members:
            row = self.rows.get(Path(member.filename).stem)
            (first if row and row.source not in seen else later).append(member)
            seen.add(row.source if row else "")
        return first + later

    def _path(self, member: zipfile.ZipInfo) -> Path:
        return self.out / "clips" / PurePosixPath(member.filename).name

    def _missing(self, members: list[zipfile.ZipInfo]) -> int:
        """Bytes of the clips that are not in `out` yet."""
        return sum(member.file_size for member in members if length(self._path(member)) != member.file_size)

    def _take(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> bool:
        """Write one clip of the zip `name` and its caption, or note why not."""
        clip, report, where = self._path(member), self.report, f"{name}/{member.filename}"
        if (before := report.clips.get(clip.name, name)) != name:
            report.skipped[where] = f"there is a clip of this name from {before}"
            return False
        try:
            if length(clip) != member.file_size:
                with replacing(clip) as partial, archive.open(member) as source, open(partial, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # encrypted, or an unknown method
            report.skipped[where] = f"damaged in the zip ({error})"
            return False
        if (row := self.rows.get(clip.stem)) and row.caption:
            clip.with_suffix(".txt").write_text(row.caption + "\n", encoding="utf-8")
        report.clips[clip.name] = name
        report.skipped.pop(where, None)
        return True


class Dataset:
    """UltraVideo at one commit, on the Hub or a mirror of it."""

    def __init__(self, revision: str) -> None:
        self._repository = hub.repository(REPOSITORY, revision, "dataset")
        self.commit = self._repository.commit
        self._sizes = {name: listed.size for name, listed in self._repository.files.items()}

    def zips(self, size: str) -> list[str]:
        """In the order of their numbers."""
        pattern = re.compile(rf"(?:.*/)?{FOLDERS[size]}(?:_(\d{{1,3}}))?\.zip")
        numbers = {name: int(match[1] or 0) for name in self._sizes if (match := pattern.fullmatch(name))}
        if not numbers:
            there = ", ".join(sorted(self._sizes)[:5]) or "nothing"
            raise ConfigError(f"size={size}: no {FOLDERS[size]}_*.zip at commit {self.commit}; it has {there} …")
        return sorted(numbers, key=lambda name: (numbers[name], name))

    def download_table(self, path: Path) -> None:
        name = next((name for name in TABLES if name in self._sizes), None)
        if name is None:
            raise ConfigError(f"no {TABLES[0]} at commit {self.commit}; give another revision=")
        self.download(name, path)

    def source(self, name: str) -> hub.HubFile:
        return self._repository.file(name)

    def size(self, name: str) -> int:
        """Bytes of a file, as listed or else as the server says when it is asked for the file's head."""
        size = self._sizes[name] or hub.server_metadata(self.source(name)).size
        if not size:
            where = self.source(name)
            raise ConfigError(f"{where}: the server does not say how large it is; set HF_ENDPOINT to another")
        self._sizes[name] = size
        return size

    def download(self, name: str, path: Path) -> None:
        """Fetch a file whole, going on where an earlier call or a lost connection left off."""
        hub.fetch(self.source(name), path, self.size(name), self._repository.files[name].digest)

    def needed(self, out: Path, zips: list[str], keep: bool) -> tuple[float, str]:
        """(bytes still to be written, what for): clips are as large as their zips, mp4 does not shrink."""
        sizes = [self.size(name) for name in zips]
        there = sum(length(_zip(out, name)) for name in zips) + hub.partial_bytes(out / "zips")
        need = sum(sizes) + (sum(sizes) if keep else max(sizes, default=0)) - there
        also = "the zips (keep=true)" if keep else "one zip at a time"
        return need, f"{len(zips)} zips of {human_size(sum(sizes))}: their clips, and {also}"


def _zip(out: Path, name: str) -> Path:
    return out / "zips" / PurePosixPath(name).name


# ---- zips, read member by member over HTTP ranges


class RemoteFile(io.RawIOBase):
    """A file on the Hub for `zipfile` to read: fetches `window` bytes at a time and holds only those."""

    def __init__(self, source: hub.HubFile, size: int) -> None:
        self.source, self.size, self.window = source, size, WINDOW
        self._at = self._start = 0
        self._held = b""

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if self._at < 0:
            raise OSError(f"{self.source}: seek to {self._at}")
        return self._at

    def read(self, n: int = -1) -> bytes:
        stop = self.size if n < 0 else min(self.size, self._at + n)
        if stop - self._at > LONGEST_READ:
            raise zipfile.BadZipFile(f"declares a directory of {stop - self._at:,} bytes")
        pieces = []
        while self._at < stop:
            if not self._start <= self._at < self._start + len(self._held):
                # the end is read backwards, in bits of a few bytes
                self._start = min(self._at, max(0, self.size - WINDOW))
                end = min(self.size, max(stop, self._at + self.window))
                self._held = hub.read_range(self.source, self._start, end)
            piece = self._held[self._at - self._start : stop - self._start]
            pieces.append(piece)
            self._at += len(piece)
        return b"".join(pieces)


def clips_in(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """The videos of a zip. Raises ConfigError if any member has an absolute path, a `..` in it, or is a link."""
    for member in archive.infolist():
        path = PureWindowsPath(member.filename)  # takes / as well as \ and C: apart
        if path.anchor or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
            raise ConfigError(
                f"{name}: holds {member.filename!r}, a link or a path that leads elsewhere; nothing was taken from "
                "it. Do not trust this server: set HF_ENDPOINT to another, or give another revision="
            )
    videos = [member for member in archive.infolist() if member.filename.lower().endswith(ENDINGS)]
    return [member for member in videos if not PurePosixPath(member.filename).name.startswith(".")]


# ---- short.csv


class CaptionRow(NamedTuple):
    """What short.csv says of a clip; `source` names the video that it was cut from, "" if it is not said."""

    caption: str
    source: str


def read_captions(table: Path, caption: str) -> dict[str, CaptionRow]:
    """{clip without its ending: its row}, with one of CAPTIONS. Raises ConfigError where the table is another."""
    csv.field_size_limit(sys.maxsize)
    text = CAPTIONS[caption]
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            names = list(reader.fieldnames or ())
            if missing := [name for name in ("clip_id", text) if name not in names]:
                raise ConfigError(
                    f"{table}: has no column {missing[0]!r}; it has {', '.join(names) or 'none'}; "
                    "give another caption=, or remove the file to fetch it again"
                )
            rows = [row for row in reader if row["clip_id"]]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{table}: is no table ({error}); remove the file to fetch it again") from None
    return {
        Path(row["clip_id"]).stem: CaptionRow(" ".join((row[text] or "").split()), source_video(row.get("url")))
        for row in rows
    }


def source_video(url: str | None) -> str:
    """What names the video behind an entry of the column `url`: YouTube's id, also where it is an address (with a time,
    `&t=12s`, it would be another one), else the entry as it is, "" if empty."""
    text = (url or "").strip()
    address = YOUTUBE.match(text)
    return address[1] if address else text
