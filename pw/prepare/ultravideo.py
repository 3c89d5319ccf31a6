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
Assumed: that the 960 copy is packed as the others are. The zips are not counted on: the Hub lists its files.
No commit is known by hash. What `revision` names at the first call is written down, and later calls stay on it.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from pw.io import hub
from pw.io.arguments import ConfigError
from pw.io.files import check_space, check_writable, human_size, length, replacing, write_json
from pw.io.hub import endpoint
from pw.prepare.ingest import ingest
from pw.prepare.remote_zip import RemoteFile, clips_in
from pw.prepare.source_videos import ENDINGS, ClipSettings
from pw.prepare.ultravideo_captions import CAPTIONS, CaptionRow, read_captions

REPOSITORY = "APRIL-AIGC/UltraVideo"
LICENCE = "UltraVideo Dataset License Agreement (CC-BY-4.0 with Additional Restrictions)"
TABLES = ("short.csv", "UltraVideo_short.csv")  # the second name is the one some copies have
FOLDERS = {"native": "clips_short", "1920": "clips_short_1920", "960": "clips_short_960"}
REPORT = "ultravideo.json"


@dataclass(frozen=True)
class UltraVideoOrder:
    """What to fetch.

    taste     this many clips, by range requests, one per source video while there are; None: all zips
    size      "native" (4K and 8K), or copies 1920 or 960 px wide
    caption   which of the captions goes beside a clip: "summarized", "detailed" or "brief"
    keep      zips are kept when their clips are out
    revision  branch, tag or commit; "" is main, or what was begun
    """

    out: Path
    taste: int | None = None
    size: str = "native"
    caption: str = "summarized"
    keep: bool = False
    revision: str = ""

    def __post_init__(self) -> None:
        if self.taste is not None and self.taste < 1:
            raise ConfigError(f"taste={self.taste}: must be 1 clip or more; leave it out for all of them")
        for name, choices in (("size", FOLDERS), ("caption", CAPTIONS)):
            if (value := getattr(self, name)) not in choices:
                raise ConfigError(f"{name}={value}: one of {', '.join(choices)}")


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


def notice(order: UltraVideoOrder) -> str:
    """The licence in short, what would be fetched, and how to accept."""
    clip, all_of_it = ("33 MB each on average", "36 zips, 1.4 TB") if order.size == "native" else ("", "all zips")
    what = f"{order.taste} clips by range requests, {clip}".rstrip(", ") if order.taste else all_of_it
    return f"""UltraVideo is under the {LICENCE}.
In short, and only the text at {endpoint()}/datasets/{REPOSITORY} is binding:
  - non-commercial research only; no products, services or redistribution for money
  - the Terms of Service of YouTube, copyright and privacy laws hold besides; no re-identification of people
  - raw videos, transcripts and thumbnails must not be passed on; works beyond research need their creators' leave
  - models may be trained on it; results must not hold more than a trifle of the data itself
This call would fetch short.csv and, from {FOLDERS[order.size]}, {what}, into {order.out}.
native is 4K and 8K; size=1920 and size=960 are reduced copies; taste=5 takes five clips only.
Nothing was fetched. If you have read and accept the licence, call again with accept_licence=true."""


def ultravideo(order: UltraVideoOrder, settings: ClipSettings, overwrite: bool = False) -> dict[str, Any]:
    """Fetch what is not in `order.out` yet and make shards of it; returns their manifest.

    `overwrite` makes the shards anew; what was fetched stays.

    Raises:
        ConfigError: `out` cannot be written or holds something else, the disk is too small, the server refuses, has
            no such revision or ignores ranges, a zip is broken or would write outside `out`.
    """
    check_writable("out", order.out)
    try:
        with FileLock(order.out / ".lock", timeout=0):
            rows = _fetch(order)
    except Timeout:
        raise ConfigError(f"out={order.out}: another call is fetching there; wait, or give another out=") from None
    origins = {clip: rows[stem].source for clip in _clips(order.out) if (stem := Path(clip).stem) in rows}
    return ingest(order.out / "clips", order.out / "shards", settings, overwrite, origins)


def _fetch(order: UltraVideoOrder) -> dict[str, CaptionRow]:
    """What is not here yet; returns the rows of short.csv."""
    report, out = _begun(order), order.out
    if report and (report.complete or (order.taste and _present(out, report) >= order.taste)):
        print(f"{out}: {len(report.clips)} clips are here, of commit {report.commit}")
        return _captions(out, order.caption, lambda: Dataset(report.commit))
    dataset = Dataset(report.commit if report else order.revision or "main")
    report = report or UltraVideoReport(order.revision or "main", dataset.commit, order.size, order.caption)
    zips = dataset.zips(order.size)
    print(f"{REPOSITORY} at commit {dataset.commit}, under the {LICENCE}")
    if order.taste is None:
        _check_space(out, *dataset.needed(out, [name for name in zips if name not in report.zips], order.keep))
    report.save(out)
    rows = _captions(out, order.caption, lambda: dataset)
    (out / "clips").mkdir(exist_ok=True)
    if order.taste is None:
        _fetch_zips(dataset, order, zips, rows, report)
    else:
        _fetch_taste(dataset, out, order.taste, zips, rows, report)
    captioned = sum(Path(clip).stem in rows for clip in report.clips)
    print(f"{out}: {len(report.clips)} clips, {captioned} with a caption; skipped {len(report.skipped)}")
    for member, reason in report.skipped.items():
        print(f"  {member}: {reason}")
    if not report.clips:
        raise ConfigError(f"out={out}: not one clip could be taken, see {out / REPORT}")
    return rows


def _clips(out: Path) -> list[str]:
    return [path.name for path in (out / "clips").iterdir() if path.name.lower().endswith(ENDINGS)]


def _begun(order: UltraVideoOrder) -> UltraVideoReport | None:
    """What an earlier call wrote down, if it was for the same thing."""
    path = order.out / REPORT
    if not path.is_file():
        return None
    try:
        report = UltraVideoReport(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: is damaged ({error}); remove it to begin anew, or give another out=") from None
    for name in ("size", "caption"):
        if (before := getattr(report, name)) != getattr(order, name):
            raise ConfigError(f"out={order.out}: was begun with {name}={before}; give another out=")
    if order.revision not in ("", report.revision, report.commit):
        raise ConfigError(
            f"out={order.out}: was begun at revision={report.revision}, commit {report.commit}; give another out="
        )
    return report


def _present(out: Path, report: UltraVideoReport) -> int:
    return sum((out / "clips" / clip).is_file() for clip in report.clips)


def _missing(out: Path, members: list[zipfile.ZipInfo]) -> int:
    """Bytes of the clips that are not in `out` yet."""
    clips = ((out / "clips" / PurePosixPath(member.filename).name, member.file_size) for member in members)
    return sum(size for clip, size in clips if length(clip) != size)


def _check_space(out: Path, need: float, what: str) -> None:
    remedy = "give an out= on another disk, size=960, or a taste= of a few clips"
    free = check_space("out", out, need, remedy, f"({what})")
    print(f"{what}: {human_size(need)}, {human_size(free)} are free", flush=True)


def _captions(out: Path, caption: str, connect: Callable[[], Dataset]) -> dict[str, CaptionRow]:
    """{clip without its ending: its row}; `connect` is called only if short.csv is not here."""
    table = out / TABLES[0]
    if not table.is_file():
        dataset = connect()
        dataset.download(dataset.table(), table)
    return read_captions(table, caption)


def _fetch_zips(
    dataset: Dataset, order: UltraVideoOrder, zips: list[str], rows: dict[str, CaptionRow], report: UltraVideoReport
) -> None:
    for name in zips:
        path = _zip(order.out, name)
        if name not in report.zips:
            if not path.is_file():
                dataset.download(name, path)
            try:
                with zipfile.ZipFile(path) as archive:
                    members = clips_in(archive, name)
                    _check_space(order.out, _missing(order.out, members), f"{len(members)} clips of {name}")
                    taken = sum(_take(archive, m, name, order.out, rows, report) for m in members)
            except zipfile.BadZipFile as error:
                path.unlink()
                raise ConfigError(f"{name}: {error}; it was removed, the same call fetches it again") from None
            report.zips[name] = taken
            report.complete = len(report.zips) == len(zips)
            report.save(order.out)
        if not order.keep:
            path.unlink(missing_ok=True)


def _fetch_taste(
    dataset: Dataset, out: Path, taste: int, zips: list[str], rows: dict[str, CaptionRow], report: UltraVideoReport
) -> None:
    for name in zips:
        with RemoteFile(dataset.source(name), dataset.size(name)) as remote:
            try:
                archive = zipfile.ZipFile(remote)
            except zipfile.BadZipFile as error:
                raise ConfigError(f"{name}: {error}; give another revision=, or HF_ENDPOINT") from None
            members = _varied(clips_in(archive, name), rows)
            missing = taste - _present(out, report)
            _check_space(out, _missing(out, members[:missing]), f"{missing} clips")
            for member in members:
                if _present(out, report) >= taste:
                    return
                remote.expect(member.compress_size)
                _take(archive, member, name, out, rows, report)
                report.save(out)


def _varied(members: list[zipfile.ZipInfo], rows: dict[str, CaptionRow]) -> list[zipfile.ZipInfo]:
    """The same members, those first that have a caption and come from a source video not met before."""
    seen: set[str] = set()
    first, later = [], []
    for member in members:
        row = rows.get(Path(member.filename).stem)
        (first if row and row.source not in seen else later).append(member)
        seen.add(row.source if row else "")
    return first + later


def _take(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    name: str,
    out: Path,
    rows: dict[str, CaptionRow],
    report: UltraVideoReport,
) -> bool:
    """Write one clip and its caption, or note why not."""
    clip = out / "clips" / PurePosixPath(member.filename).name
    if (before := report.clips.get(clip.name, name)) != name:
        report.skipped[f"{name}/{member.filename}"] = f"there is a clip of this name from {before}"
        return False
    try:
        if length(clip) != member.file_size:
            with replacing(clip) as partial, archive.open(member) as source, open(partial, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted, unknown method
        report.skipped[f"{name}/{member.filename}"] = f"damaged in the zip ({error})"
        return False
    if (row := rows.get(clip.stem)) and row.caption:
        clip.with_suffix(".txt").write_text(row.caption + "\n", encoding="utf-8")
    report.clips[clip.name] = name
    report.skipped.pop(f"{name}/{member.filename}", None)
    return True


class Dataset:
    """UltraVideo at one commit, on the Hub or a mirror of it."""

    def __init__(self, revision: str) -> None:
        self._repository = hub.repository(REPOSITORY, revision, "dataset")
        self.commit = self._repository.commit
        self._sizes = {name: listed.size for name, listed in self._repository.files.items()}

    def zips(self, size: str) -> list[str]:
        """The zips of one size, in the order of their numbers."""
        pattern = re.compile(rf"(?:.*/)?{FOLDERS[size]}(?:_(\d{{1,3}}))?\.zip")
        numbers = {name: int(match[1] or 0) for name in self._sizes if (match := pattern.fullmatch(name))}
        if not numbers:
            there = ", ".join(sorted(self._sizes)[:5]) or "nothing"
            raise ConfigError(f"size={size}: no {FOLDERS[size]}_*.zip at commit {self.commit}; it has {there} …")
        return sorted(numbers, key=lambda name: (numbers[name], name))

    def table(self) -> str:
        """The name of short.csv."""
        for name in TABLES:
            if name in self._sizes:
                return name
        raise ConfigError(f"no {TABLES[0]} at commit {self.commit}; give another revision=")

    def source(self, name: str) -> hub.HubFile:
        """Where a file comes from."""
        return self._repository.file(name)

    def size(self, name: str) -> int:
        """Bytes of a file, as listed or else as the server says when it is asked for the file's head."""
        size = self._sizes[name] or hub.served(self.source(name)).size
        if not size:
            raise ConfigError(
                f"{self.source(name)}: the server does not say how large it is; set HF_ENDPOINT to another"
            )
        self._sizes[name] = size
        return size

    def download(self, name: str, path: Path) -> None:
        """Fetch a file whole, going on where an earlier call or a lost connection left off."""
        hub.fetch(self.source(name), path, self.size(name), self._repository.files[name].digest)

    def needed(self, out: Path, zips: list[str], keep: bool) -> tuple[float, str]:
        """(bytes still to be written, how they come about): clips are as large as their zips, mp4 does not shrink."""
        sizes = [self.size(name) for name in zips]
        there = sum(length(_zip(out, name)) for name in zips) + hub.partial_bytes(out / "zips")
        need = sum(sizes) + (sum(sizes) if keep else max(sizes, default=0)) - there
        also = "the zips (keep=true)" if keep else "one zip at a time"
        return need, f"{len(zips)} zips of {human_size(sum(sizes))}: their clips, and {also}"


def _zip(out: Path, name: str) -> Path:
    return out / "zips" / PurePosixPath(name).name
