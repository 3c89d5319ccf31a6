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

import csv
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from pw.prepare.ingest import ENDINGS, Settings, ingest

REPOSITORY = "APRIL-AIGC/UltraVideo"
LICENCE = "UltraVideo Dataset License Agreement (CC-BY-4.0 with Additional Restrictions)"
TABLES = ("short.csv", "UltraVideo_short.csv")  # the second name is the one some copies have
FOLDERS = {"native": "clips_short", "1920": "clips_short_1920", "960": "clips_short_960"}
CAPTIONS = {"summarized": "Summarized Description", "detailed": "Detailed Description", "brief": "Brief Description"}
YOUTUBE = re.compile(r"(?:https?://)?(?:www\.|m\.)?youtu(?:\.be/|be\.com/(?:watch\?(?:.*&)?v=|[a-z]+/))([\w-]+)")
REPORT = "ultravideo.json"
TIMEOUT = 30.0  # s without a byte
RETRIES = 5  # in a row, none of which brought a byte
WINDOW = 1 << 16  # bytes read at once where a zip keeps its directory
LONGEST_WINDOW = 1 << 23  # bytes read at once of a clip
LONGEST_READ = 1 << 26  # bytes that a zip may ask for at once: its directory has some hundred bytes for each clip
HEADER = 1 << 12  # bytes before a clip in a zip, at most, as a rule


@dataclass(frozen=True)
class Order:
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
            raise ValueError(f"taste={self.taste}: must be 1 clip or more; leave it out for all of them")
        for name, choices in (("size", FOLDERS), ("caption", CAPTIONS)):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name}={value}: is one of {', '.join(choices)}")


@dataclass
class Report:
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
        part = out / f"{REPORT}.part"
        with open(part, "w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(self), indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())  # lost with the power, it would cost all zips again
        os.replace(part, out / REPORT)


class Row(NamedTuple):
    """What short.csv says of a clip; `source` names the video that it was cut from, "" if it is not said."""

    caption: str
    source: str


def notice(order: Order) -> str:
    """The licence in short, what would be fetched, and how to accept."""
    clip, all_of_it = ("33 MB each on average", "36 zips, 1.4 TB") if order.size == "native" else ("", "all zips")
    what = f"{order.taste} clips by range requests, {clip}".rstrip(", ") if order.taste else all_of_it
    return f"""UltraVideo is under the {LICENCE}.
In short, and only the text at {_endpoint()}/datasets/{REPOSITORY} is binding:
  - non-commercial research only; no products, services or redistribution for money
  - the Terms of Service of YouTube, copyright and privacy laws hold besides; no re-identification of people
  - raw videos, transcripts and thumbnails must not be passed on; works beyond research need their creators' leave
  - models may be trained on it; results must not hold more than a trifle of the data itself
This call would fetch short.csv and, from {FOLDERS[order.size]}, {what}, into {order.out}.
native is 4K and 8K; size=1920 and size=960 are reduced copies; taste=5 takes five clips only.
Nothing was fetched. If you have read and accept the licence, call again with accept_licence=true."""


def ultravideo(order: Order, settings: Settings, overwrite: bool = False) -> dict[str, Any]:
    """Fetch what is not in `order.out` yet and make shards of it; returns their manifest.

    `overwrite` makes the shards anew; what was fetched stays.

    Raises:
        ValueError: `out` cannot be written or holds something else, the disk is too small, the server refuses, has
            no such revision or ignores ranges, a zip is broken or would write outside `out`.
    """
    try:
        order.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=order.out):
            pass
    except OSError as error:
        raise ValueError(f"out={order.out}: cannot be written ({error.strerror}); give another out=") from None
    try:
        with FileLock(order.out / ".lock", timeout=0):
            rows = _fetch(order)
    except Timeout:
        raise ValueError(f"out={order.out}: another call is fetching there; wait, or give another out=") from None
    origins = {clip: rows[stem].source for clip in _clips(order.out) if (stem := Path(clip).stem) in rows}
    return ingest(order.out / "clips", order.out / "shards", settings, overwrite, origins)


def _fetch(order: Order) -> dict[str, Row]:
    """What is not here yet; returns the rows of short.csv."""
    report, out = _begun(order), order.out
    if report and (report.complete or (order.taste and _present(out, report) >= order.taste)):
        print(f"{out}: {len(report.clips)} clips are here, of commit {report.commit}")
        return _rows(out, order.caption, lambda: Hub(report.commit))
    hub = Hub(report.commit if report else order.revision or constants.DEFAULT_REVISION)
    report = report or Report(order.revision or constants.DEFAULT_REVISION, hub.commit, order.size, order.caption)
    zips = hub.zips(order.size)
    print(f"{REPOSITORY} at commit {hub.commit}, under the {LICENCE}")
    if order.taste is None:
        _check_space(out, *_needed(hub, out, [name for name in zips if name not in report.zips], order.keep))
    report.save(out)
    rows = _rows(out, order.caption, lambda: hub)
    (out / "clips").mkdir(exist_ok=True)
    if order.taste is None:
        _fetch_zips(hub, order, zips, rows, report)
    else:
        _fetch_taste(hub, out, order.taste, zips, rows, report)
    captioned = sum(Path(clip).stem in rows for clip in report.clips)
    print(f"{out}: {len(report.clips)} clips, {captioned} with a caption; skipped {len(report.skipped)}")
    for member, reason in report.skipped.items():
        print(f"  {member}: {reason}")
    if not report.clips:
        raise ValueError(f"out={out}: not one clip could be taken, see {out / REPORT}")
    return rows


def _clips(out: Path) -> list[str]:
    return [path.name for path in (out / "clips").iterdir() if path.name.lower().endswith(ENDINGS)]


def _begun(order: Order) -> Report | None:
    """What an earlier call wrote down, if it was for the same thing."""
    path = order.out / REPORT
    if not path.is_file():
        return None
    try:
        report = Report(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: is damaged ({error}); remove it to begin anew, or give another out=") from None
    for name in ("size", "caption"):
        if (before := getattr(report, name)) != getattr(order, name):
            raise ValueError(f"out={order.out}: was begun with {name}={before}; give another out=")
    if order.revision not in ("", report.revision, report.commit):
        raise ValueError(
            f"out={order.out}: was begun at revision={report.revision}, commit {report.commit}; give another out="
        )
    return report


def _present(out: Path, report: Report) -> int:
    return sum((out / "clips" / clip).is_file() for clip in report.clips)


def _needed(hub: Hub, out: Path, zips: list[str], keep: bool) -> tuple[float, str]:
    """(bytes still to be written, how they come about): clips are as large as their zips, mp4 does not shrink."""
    sizes = [hub.size(name) for name in zips]
    here = sum(_here(path) for name in zips for path in (_zip(out, name), _part(_zip(out, name))))
    need = sum(sizes) + (sum(sizes) if keep else max(sizes, default=0)) - here
    also = "the zips (keep=true)" if keep else "one zip at a time"
    return need, f"{len(zips)} zips of {sum(sizes) / 1e9:.2f} GB: their clips, and {also}"


def _missing(out: Path, members: list[zipfile.ZipInfo]) -> int:
    """Bytes of the clips that are not in `out` yet."""
    clips = ((out / "clips" / PurePosixPath(member.filename).name, member.file_size) for member in members)
    return sum(size for clip, size in clips if _here(clip) != size)


def _check_space(out: Path, need: float, what: str) -> None:
    free = shutil.disk_usage(out).free
    if need > free:
        raise ValueError(
            f"out={out}: needs {need / 1e9:.2f} GB ({what}), {free / 1e9:.2f} GB are free there; give an out= on "
            "another disk, size=960, or a taste= of a few clips"
        )
    print(f"{what}: {need / 1e9:.2f} GB, {free / 1e9:.2f} GB are free", flush=True)


def _rows(out: Path, caption: str, connect: Callable[[], Hub]) -> dict[str, Row]:
    """{clip without its ending: its row}; `connect` is asked only if short.csv is not here."""
    table = out / TABLES[0]
    if not table.is_file():
        hub = connect()
        hub.download(hub.table(), table)
    try:
        return _read_table(table, caption)
    except UnicodeDecodeError as error:
        raise ValueError(f"{table}: is no table ({error}); remove the file to fetch it again") from None


def _read_table(table: Path, caption: str) -> dict[str, Row]:
    csv.field_size_limit(sys.maxsize)
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or ())
        if missing := [name for name in ("clip_id", CAPTIONS[caption]) if name not in names]:
            raise ValueError(
                f"{table}: has no column {missing[0]!r}; it has {', '.join(names) or 'none'}; "
                "give another caption=, or remove the file to fetch it again"
            )
        text = CAPTIONS[caption]
        return {
            Path(row["clip_id"]).stem: Row(" ".join((row[text] or "").split()), source_video(row.get("url")))
            for row in reader
            if row["clip_id"]
        }


def source_video(url: str | None) -> str:
    """What names the video behind an entry of the column `url`: YouTube's id, else the entry as it is, "" if empty.

    The id also where the entry is an address, so that a time in it (`&t=12s`) does not make two videos of one.
    """
    text = (url or "").strip()
    address = YOUTUBE.match(text)
    return address[1] if address else text


def _fetch_zips(hub: Hub, order: Order, zips: list[str], rows: dict[str, Row], report: Report) -> None:
    for name in zips:
        path = _zip(order.out, name)
        if name not in report.zips:
            if not path.is_file():
                path.parent.mkdir(exist_ok=True)
                hub.download(name, path)
            try:
                with zipfile.ZipFile(path) as archive:
                    members = clips_in(archive, name)
                    _check_space(order.out, _missing(order.out, members), f"{len(members)} clips of {name}")
                    taken = sum(_take(archive, m, name, order.out, rows, report) for m in members)
            except zipfile.BadZipFile as error:
                path.unlink()
                raise ValueError(f"{name}: {error}; it was removed, the same call fetches it again") from None
            report.zips[name] = taken
            report.complete = len(report.zips) == len(zips)
            report.save(order.out)
        if not order.keep:
            path.unlink(missing_ok=True)


def _fetch_taste(hub: Hub, out: Path, taste: int, zips: list[str], rows: dict[str, Row], report: Report) -> None:
    for name in zips:
        with RemoteFile(hub, name) as remote:
            try:
                archive = zipfile.ZipFile(remote)
            except zipfile.BadZipFile as error:
                raise ValueError(f"{name}: {error}; give another revision=, or HF_ENDPOINT") from None
            members = _varied(clips_in(archive, name), rows)
            missing = taste - _present(out, report)
            _check_space(out, _missing(out, members[:missing]), f"{missing} clips")
            for member in members:
                if _present(out, report) >= taste:
                    return
                remote.window = min(member.compress_size + HEADER, LONGEST_WINDOW)
                _take(archive, member, name, out, rows, report)
                report.save(out)


def _varied(members: list[zipfile.ZipInfo], rows: dict[str, Row]) -> list[zipfile.ZipInfo]:
    """The same members, those first that have a caption and come from a source video not met before."""
    seen: set[str] = set()
    first, later = [], []
    for member in members:
        row = rows.get(Path(member.filename).stem)
        (first if row and row.source not in seen else later).append(member)
        seen.add(row.source if row else "")
    return first + later


def clips_in(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """The videos of a zip.

    Raises:
        ValueError: any member has an absolute path, a `..` in it, or is a link.
    """
    for member in archive.infolist():
        path = PureWindowsPath(member.filename)  # takes / as well as \ and C: apart
        if path.anchor or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(
                f"{name}: holds {member.filename!r}, a link or a path that leads elsewhere; nothing was taken from "
                "it. Do not trust this server: set HF_ENDPOINT to another, or give another revision="
            )
    return [
        member
        for member in archive.infolist()
        if member.filename.lower().endswith(ENDINGS) and not PurePosixPath(member.filename).name.startswith(".")
    ]


def _take(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, out: Path, rows: dict[str, Row], report: Report
) -> bool:
    """Write one clip and its caption, or note why not."""
    clip = out / "clips" / PurePosixPath(member.filename).name
    part = _part(clip)
    if (before := report.clips.get(clip.name, name)) != name:
        report.skipped[f"{name}/{member.filename}"] = f"there is a clip of this name from {before}"
        return False
    try:
        if _here(clip) != member.file_size:
            with archive.open(member) as source, open(part, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            os.replace(part, clip)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted, unknown method
        part.unlink(missing_ok=True)
        report.skipped[f"{name}/{member.filename}"] = f"damaged in the zip ({error})"
        return False
    if (row := rows.get(clip.stem)) and row.caption:
        clip.with_suffix(".txt").write_text(row.caption + "\n", encoding="utf-8")
    report.clips[clip.name] = name
    report.skipped.pop(f"{name}/{member.filename}", None)
    return True


class Hub:
    """The dataset at one commit, on the Hub or a mirror of it (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE)."""

    def __init__(self, revision: str) -> None:
        self.endpoint = _endpoint()
        with self._explained("the dataset", revision):
            api = HfApi(endpoint=self.endpoint)
            info = api.dataset_info(REPOSITORY, revision=revision, files_metadata=True, timeout=TIMEOUT)
        if not info.sha:
            raise ValueError(f"{self.endpoint}: does not say which commit {revision} is; set HF_ENDPOINT to another")
        self.commit = info.sha
        self._sizes = {file.rfilename: file.size for file in info.siblings or ()}

    def zips(self, size: str) -> list[str]:
        """The zips of one size, in the order of their numbers."""
        pattern = re.compile(rf"(?:.*/)?{FOLDERS[size]}(?:_(\d{{1,3}}))?\.zip")
        found = {name: int(match[1] or 0) for name in self._sizes if (match := pattern.fullmatch(name))}
        if not found:
            there = ", ".join(sorted(self._sizes)[:5]) or "nothing"
            raise ValueError(f"size={size}: no {FOLDERS[size]}_*.zip at commit {self.commit}; it has {there} …")
        return sorted(found, key=lambda name: (found[name], name))

    def table(self) -> str:
        """The name of short.csv."""
        for name in TABLES:
            if name in self._sizes:
                return name
        raise ValueError(f"no {TABLES[0]} at commit {self.commit}; give another revision=")

    def size(self, name: str) -> int:
        """Bytes of a file, as listed or else by its Content-Length."""
        size = self._sizes[name]
        if size is None:
            with self._explained(name, self.commit):
                size = get_hf_file_metadata(self._url(name), timeout=TIMEOUT).size
        if size is None:
            raise ValueError(f"{name}: the server does not say how large it is; set HF_ENDPOINT to another")
        self._sizes[name] = size
        return size

    def download(self, name: str, path: Path) -> None:
        """Fetch a file whole, going on where an earlier call or a lost connection left off."""
        size, part, failures = self.size(name), _part(path), 0
        pace = _Pace(name, size, _here(part))
        while (have := _here(part)) < size:
            try:
                with self._explained(name, self.commit), self.open(name, have) as response, open(part, "ab") as file:
                    if have and response.status_code != 206:
                        file.truncate(0)  # ranges are ignored there: from the beginning
                    for chunk in response.iter_bytes():  # of a given size, what came before a break would be lost
                        file.write(chunk)
                        pace(file.tell())
                    if file.tell() <= have:
                        raise ConnectionError(f"{name}: {self.endpoint} ends it at byte {file.tell()} of {size}")
            except ConnectionError:
                failures = 0 if _here(part) > have else failures + 1
                if failures > RETRIES:
                    raise
                time.sleep(min(8, 2**failures / 4))
        if have > size:
            part.unlink()
            raise ValueError(f"{name}: {have} bytes came, {size} were declared; call again, or set HF_ENDPOINT")
        os.replace(part, path)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of a file.

        Raises:
            ValueError: the server would send all of it.
        """
        for failures in range(RETRIES + 1):
            try:
                with self._explained(name, self.commit), self.open(name, start, stop) as response:
                    if response.status_code != 206:
                        raise ValueError(
                            f"{self.endpoint}: ignores range requests, a taste would fetch all {self.size(name):,} "
                            f"bytes of {name}; set HF_ENDPOINT to another, or leave taste= out"
                        )
                    return response.read()
            except ConnectionError:
                if failures == RETRIES:
                    raise
                time.sleep(min(8, 2**failures / 4))
        raise AssertionError

    @contextmanager
    def open(self, name: str, start: int, stop: int | None = None) -> Generator[Any]:
        """The response for a file from byte `start` on, its body not read yet."""
        headers = build_hf_headers(headers={"Accept-Encoding": "identity"})
        if start or stop:
            headers["Range"] = f"bytes={start}-{stop - 1 if stop else ''}"
        with get_session().stream("GET", self._url(name), headers=headers, timeout=TIMEOUT) as response:
            hf_raise_for_status(response)
            yield response

    def _url(self, name: str) -> str:
        return hf_hub_url(REPOSITORY, name, repo_type="dataset", revision=self.commit, endpoint=self.endpoint)

    @contextmanager
    def _explained(self, what: str, revision: str) -> Generator[None]:
        """What the Hub refuses becomes a ValueError, what may pass a ConnectionError, in one line each."""
        try:
            yield
        except json.JSONDecodeError:
            raise ValueError(f"{self.endpoint}: does not answer as the Hub does; set HF_ENDPOINT to another") from None
        except OfflineModeIsEnabled:
            raise ValueError(
                f"HF_HUB_OFFLINE is set and {what} is not here yet; unset it, or fetch it elsewhere and copy out="
            ) from None
        except HfHubHTTPError as error:
            status, where = error.response.status_code, f"{what} at {self.endpoint}"
            if error.response.headers.get("X-Error-Code") == "RevisionNotFound":
                raise ValueError(f"revision={revision}: no such branch, tag or commit of {where}; try main") from None
            if status in (401, 403):
                raise ValueError(
                    f"{where}: {status}, not allowed; accept its terms on its page if it asks for that, and set "
                    "HF_TOKEN to a token of that account"
                ) from None
            if status == 404:
                raise ValueError(
                    f"{where}: 404, not there at revision {revision}; try revision=main, or another HF_ENDPOINT"
                ) from None
            raise ConnectionError(f"{where}: the server answers {status}") from None
        except HTTPError as error:
            reason = str(error) or type(error).__name__
            raise ConnectionError(f"{what}: no answer from {self.endpoint} ({reason}); is HF_ENDPOINT right?") from None


class RemoteFile:
    """A file on the Hub for `zipfile` to read: seekable, fetches `window` bytes at a time and holds only those."""

    def __init__(self, hub: Hub, name: str) -> None:
        self.hub, self.name, self.size, self.window = hub, name, hub.size(name), WINDOW
        self._at = self._start = 0
        self._held = b""

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._held = b""

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if self._at < 0:
            raise OSError(f"{self.name}: seek to {self._at}")
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
                self._held = self.hub.read(self.name, self._start, end)
            piece = self._held[self._at - self._start : stop - self._start]
            pieces.append(piece)
            self._at += len(piece)
        return b"".join(pieces)


class _Pace:
    """A line every ten seconds on how a download goes."""

    def __init__(self, name: str, size: int, have: int) -> None:
        self.name, self.size, self.have = name, size, have
        self.begun = self.said = time.monotonic()
        if size > 1e8:
            print(f"{name}: {have / 1e9:.2f} of {size / 1e9:.2f} GB are here", flush=True)

    def __call__(self, now: int) -> None:
        if time.monotonic() - self.said < 10:
            return
        self.said = time.monotonic()
        rate = max(1.0, (now - self.have) / (self.said - self.begun))
        left = (self.size - now) / rate
        print(
            f"{self.name}: {now / 1e9:.2f} of {self.size / 1e9:.2f} GB ({rate / 1e6:.1f} MB/s, {left:.0f} s left)",
            flush=True,
        )


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _zip(out: Path, name: str) -> Path:
    return out / "zips" / PurePosixPath(name).name


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _here(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0
