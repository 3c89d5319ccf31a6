"""pw.prepare.ultravideo, with a small server that imitates the Hub, including redirects."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from pw.data.shard_index import ShardIndex
from pw.io import hub as downloads
from pw.io.video import write_video
from pw.prepare import ultravideo
from pw.prepare.captions import source_video
from pw.prepare.ingest import DataOptions, main
from pw.prepare.ultravideo import Dataset, UltraVideoReport, notice

REPOSITORY = "APRIL-AIGC/UltraVideo"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ONE, TWO = "clips_short/clips_short_1.zip", "clips_short/clips_short_2.zip"
FILLER = 3_000_000  # bytes in each zip that nobody needs


class Hub(ThreadingHTTPServer):
    """Serves files of one commit; `resolve` redirects to a storage address, like the Hub for large files."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.sent = files, Counter[str]()
        self.requests: list[tuple[str, str]] = []  # file, Range
        self.ranges = self.sizes = True
        self.token = ""
        self.status: dict[str, int] = {}  # file: what it is answered with
        self.cut_at: dict[str, int] = {}  # file: after so many bytes the connection is lost, once
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.removeprefix("/")
        api, resolve = f"api/datasets/{REPOSITORY}/revision/", f"datasets/{REPOSITORY}/resolve/{COMMIT}/"
        if path.startswith("storage/"):
            self._send(path.removeprefix("storage/"))
        elif self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._answer(401)
        elif path in (f"{api}main", f"{api}{COMMIT}"):
            siblings = [
                {"rfilename": name, "size": len(content)} if self.server.sizes else {"rfilename": name}
                for name, content in self.server.files.items()
            ]
            self._answer(200, json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(api):
            self._answer(404, error="RevisionNotFound")
        elif (name := path.removeprefix(resolve)) in self.server.files and path.startswith(resolve):
            if status := self.server.status.get(name):
                self._answer(status)
            elif name.endswith(".zip"):
                size = len(self.server.files[name])
                self._answer(302, location=f"/storage/{name}", total=size)
            else:
                self._send(name)
        else:
            self._answer(404, error="EntryNotFound")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", error: str = "", location: str = "", total: int = 0) -> None:
        self.send_response(status)
        for name, value in (("X-Error-Code", error), ("Location", location), ("X-Linked-Size", total)):
            if value:
                self.send_header(name, str(value))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, name: str) -> None:
        content, byte_range = self.server.files[name], self.headers.get("Range", "")
        self.server.requests.append((name, byte_range))
        partial = bool(byte_range) and self.server.ranges
        start, _, end = byte_range.removeprefix("bytes=").partition("-") if partial else ("0", "", "")
        body = content[int(start) : int(end) + 1 if end else None]
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{int(start) + len(body) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            body = body[: self.server.cut_at.pop(name, None)]
            try:
                self.wfile.write(body)
                self.server.sent[name] += len(body)
            except OSError:
                pass  # the other side had enough


def clip(seed: int) -> bytes:
    """The bytes of an mp4 of 12 frames."""
    coarse = np.random.default_rng(seed).integers(0, 256, (1, 6, 8, 3), dtype=np.uint8)
    path = Path(os.environ["PYTEST_CLIPS"]) / f"{seed}.mp4"
    if not path.is_file():
        write_video(path, coarse.repeat(12, 0).repeat(6, 1).repeat(6, 2), lossless=False)
    return path.read_bytes()


def zip_of(folder: str, members: dict[str, bytes]) -> bytes:
    """A zip with its members in a folder, and filler before and after."""
    stream, filler = io.BytesIO(), np.random.default_rng(0).bytes(FILLER // 2)
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.bin", filler)
        for name, content in members.items():
            archive.writestr(name if "/" in name else f"{folder}/{name}", content)
        archive.writestr("z.bin", filler)
    return stream.getvalue()


def table() -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["clip_id", "url", "Brief Description", "Detailed Description", "Summarized Description"])
    for i in range(6):
        # the first two are from the same source video
        writer.writerow([f"c{i}.mp4", f"v{max(1, i)}", f"brief {i}", f"detailed {i}", f'a "summary",\nof {i}'])
    return stream.getvalue().encode()


@pytest.fixture(scope="session", autouse=True)
def _clip_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["PYTEST_CLIPS"] = str(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(
        {
            "README.md": b"",
            "short.csv": table(),
            ONE: zip_of("clips_short_1", {f"c{i}.mp4": clip(i) for i in range(4)}),
            TWO: zip_of("clips_short_2", {f"c{i}.mp4": clip(i) for i in range(4, 7)}),
        }
    )
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def call(out: Path, *words: str) -> int:
    return main(["name=ultravideo", f"out={out}", "accept_licence=true", *words])


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "ultravideo.json").read_text())


def clips(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "clips").glob("*.mp4"))


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error message, which has one line."""
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_without_acceptance_the_licence_is_shown_and_nothing_is_fetched(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["name=ultravideo", f"out={tmp_path / 'out'}", "taste=5"]) == 1
    output = capsys.readouterr().out
    assert "non-commercial research only" in output
    assert "accept_licence=true" in output
    assert "5 clips by range requests" in output
    assert "1.4 TB" in notice(DataOptions(name="ultravideo"), tmp_path)
    assert not hub.requests
    assert not (tmp_path / "out").exists()


def test_a_taste_fetches_its_clips_and_little_more_of_the_zip(hub: Hub, tmp_path: Path) -> None:
    assert call(tmp_path, "taste=2") == 0
    assert clips(tmp_path) == ["c0.mp4", "c2.mp4"]  # c1 is from the same source video as c0
    for i in (0, 2):
        assert (tmp_path / "clips" / f"c{i}.mp4").read_bytes() == clip(i)
        assert (tmp_path / "clips" / f"c{i}.txt").read_text() == f'a "summary", of {i}\n'
    assert hub.sent[ONE] < 4 * len(clip(0)) + 2 * ultravideo.WINDOW < len(hub.files[ONE]) / 15
    assert not hub.sent[TWO]
    assert len([name for name, _ in hub.requests if name == ONE]) <= 3  # its directory, and one for each clip
    captions = {ShardIndex(str(tmp_path / "shards"), "train").read(i).caption for i in range(2)}
    assert captions <= {'a "summary", of 0', 'a "summary", of 2'}


def test_a_larger_taste_adds_to_a_smaller_one_and_goes_on_to_the_next_zip(hub: Hub, tmp_path: Path) -> None:
    assert call(tmp_path, "taste=1") == 0
    sent = hub.sent[ONE]
    assert call(tmp_path, "taste=6", "overwrite=true") == 0
    assert clips(tmp_path) == [f"c{i}.mp4" for i in range(6)]
    assert hub.sent[ONE] - sent < 5 * len(clip(0)) + 5 * ultravideo.WINDOW
    count = len(hub.requests)
    assert call(tmp_path, "taste=6") == 0
    assert len(hub.requests) == count


def test_a_taste_from_a_server_without_ranges_is_refused_not_downloaded(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.ranges = False
    assert call(tmp_path, "taste=1") == 2
    assert "ignores range requests" in error_line(capsys)
    assert not clips(tmp_path)


@pytest.mark.parametrize("sizes", [True, False])
def test_all_of_it_becomes_captioned_shards_and_the_commit_is_written_down(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], sizes: bool
) -> None:
    hub.sizes = sizes  # False: they come from Content-Length
    assert call(tmp_path, "frames=5", "short_side=36", "caption=brief") == 0
    assert clips(tmp_path) == [f"c{i}.mp4" for i in range(7)]
    content = report(tmp_path)
    assert (content["commit"], content["revision"], content["complete"]) == (COMMIT, "main", True)
    assert content["zips"] == {ONE: 4, TWO: 3}
    assert content["licence"].startswith("UltraVideo Dataset License Agreement")
    assert COMMIT in capsys.readouterr().out
    assert not (tmp_path / "clips" / "c6.txt").exists()
    assert not list((tmp_path / "zips").iterdir())
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert manifest["totals"]["train"] + manifest["totals"]["val"] == 14
    index = ShardIndex(str(tmp_path / "shards"), "train")
    assert "brief 3" in {index.read(i).caption for i in range(len(index))}


def test_clips_of_one_source_video_are_all_held_out_or_all_trained_on(hub: Hub, tmp_path: Path) -> None:
    sources = {f"c{i}.mp4": f"v{i % 3}" for i in range(7)}
    lines = [f"{name},{source},x" for name, source in sources.items()]
    hub.files["short.csv"] = "\n".join(["clip_id,url,Summarized Description", *lines]).encode()
    assert call(tmp_path, "frames=5", "short_side=36") == 0
    sides = set()
    for split in ("train", "val"):
        index = ShardIndex(str(tmp_path / "shards"), split)
        sides |= {(sources[f"{sample.key.partition('-')[0]}.mp4"], split) for sample in index.samples}
    assert len(sides) == 3
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert manifest["settings"]["split_by"] == "source video"
    assert manifest["split"].startswith("1 of 3 source videos") or manifest["split"].startswith("2 of 3 source videos")
    assert {source["file"]: source["origin"] for source in manifest["sources"]} == sources
    assert call(tmp_path, "frames=5", "short_side=36") == 0


def test_a_table_without_sources_is_said_in_the_manifest(hub: Hub, tmp_path: Path) -> None:
    hub.files["short.csv"] = b"clip_id,Summarized Description\nc0.mp4,x\n"
    assert call(tmp_path, "taste=2") == 0
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert "of 2 files the source is not known" in manifest["split"]


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("dQw4w9WgXcQ", "dQw4w9WgXcQ"),
        (" -Qw4w9WgXcQ ", "-Qw4w9WgXcQ"),
        ("https://www.youtube.com/watch?v=dQw4w9WgXcQ&t=12s", "dQw4w9WgXcQ"),
        ("youtube.com/watch?t=3&v=dQw4w9WgXcQ", "dQw4w9WgXcQ"),
        ("https://m.youtube.com/shorts/dQw4w9WgXcQ?t=1", "dQw4w9WgXcQ"),
        ("https://youtu.be/dQw4w9WgXcQ?t=12", "dQw4w9WgXcQ"),
        ("https://example.org/a.mp4?x=1", "https://example.org/a.mp4?x=1"),
        ("[not:an/address", "[not:an/address"),
        ("", ""),
        (None, ""),
    ],
)
def test_one_source_video_has_one_name_however_it_is_written(url: str | None, source: str) -> None:
    assert source_video(url) == source


def test_a_call_that_stopped_between_zips_goes_on_with_the_second(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.status[TWO] = 403
    assert call(tmp_path, "keep=true") == 2
    assert "HF_TOKEN" in error_line(capsys)
    assert report(tmp_path)["zips"] == {ONE: 4}
    hub.status.clear()
    assert call(tmp_path, "keep=true") == 0
    assert hub.sent[ONE] == len(hub.files[ONE])
    assert len(clips(tmp_path)) == 7
    assert sorted(path.name for path in (tmp_path / "zips").iterdir()) == [Path(ONE).name, Path(TWO).name]


def test_a_call_killed_while_clips_come_out_of_a_zip_goes_on_without_fetching_it_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    copy, names = shutil.copyfileobj, []

    def kill_at_third(source: Any, file: Any, length: int) -> None:
        names.append(source.name)
        if len(names) == 3:
            file.write(b"half")
            raise Killed
        copy(source, file, length)

    monkeypatch.setattr("shutil.copyfileobj", kill_at_third)
    with pytest.raises(Killed):
        call(tmp_path)
    assert len(clips(tmp_path)) == 2
    assert call(tmp_path) == 0
    assert len(clips(tmp_path)) == 7
    assert hub.sent[ONE] == len(hub.files[ONE])
    assert len(names) == 3 + 5


@pytest.mark.parametrize("ranges", [True, False])
def test_a_lost_connection_is_taken_up_where_it_broke(hub: Hub, tmp_path: Path, ranges: bool) -> None:
    hub.cut_at[ONE], hub.ranges = 1_000_000, ranges
    assert call(tmp_path) == 0
    assert len(clips(tmp_path)) == 7
    size, ranges_sent = len(hub.files[ONE]), [byte_range for name, byte_range in hub.requests if name == ONE]
    if ranges:
        assert ranges_sent == ["", "bytes=1000000-"]
    assert hub.sent[ONE] == size + (0 if ranges else 1_000_000)


def test_a_connection_that_brings_nothing_is_given_up_and_what_came_is_kept(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.status[ONE] = 503
    source = downloads.HubFile(REPOSITORY, ONE, COMMIT, "dataset")
    (tmp_path / "zips").mkdir()
    part = downloads.partial_path(tmp_path / "zips" / "clips_short_1.zip", source)
    part.write_bytes(hub.files[ONE][:1000])
    assert call(tmp_path) == 2
    assert "answers 503; try later, or another mirror: HF_ENDPOINT; 1.0 kB are kept" in error_line(capsys)
    hub.status.clear()
    assert call(tmp_path) == 0
    assert ("bytes=1000-") in [byte_range for name, byte_range in hub.requests if name == ONE]


@pytest.mark.parametrize("words", [(), ("taste=6",)])
def test_a_damaged_member_is_skipped_by_name_and_counted(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    content = hub.files[ONE]
    position = content.index(clip(1)) + 100
    hub.files[ONE] = content[:position] + b"damaged" + content[position + 7 :]
    assert call(tmp_path, *words) == 0
    assert clips(tmp_path) == ["c0.mp4", *(f"c{i}.mp4" for i in range(2, 7))]
    assert list(report(tmp_path)["skipped"]) == [f"{ONE}/clips_short_1/c1.mp4"]
    output = capsys.readouterr().out
    assert "skipped 1" in output
    assert "c1.mp4: damaged in the zip (Bad CRC-32" in output


def test_a_table_that_cannot_be_read_is_named(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.files["short.csv"] = b"clip_id,Summarized Description\nc0.mp4,\xff\xfe\n"
    assert call(tmp_path, "taste=1") == 2
    assert "short.csv: is no table" in error_line(capsys)


def test_a_table_with_a_byte_order_mark_is_read(hub: Hub, tmp_path: Path) -> None:
    hub.files["short.csv"] = b"\xef\xbb\xbf" + table()
    assert call(tmp_path, "taste=1") == 0
    assert (tmp_path / "clips" / "c0.txt").is_file()


def test_a_damaged_report_is_named(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in ("", "[1]", '{"what": 1}'):
        (tmp_path / "ultravideo.json").write_text(content)
        assert call(tmp_path, "taste=1") == 2
        assert "ultravideo.json: is damaged" in error_line(capsys)


def test_a_clip_of_another_zip_is_not_written_over(hub: Hub, tmp_path: Path) -> None:
    hub.files[TWO] = zip_of("clips_short_2", {"c0.mp4": clip(9), "c4.mp4": clip(4)})
    for _ in range(2):
        assert call(tmp_path) == 0
        assert (tmp_path / "clips" / "c0.mp4").read_bytes() == clip(0)
        assert report(tmp_path)["skipped"] == {
            f"{TWO}/clips_short_2/c0.mp4": f"there is a clip of this name from {ONE}"
        }
        assert report(tmp_path)["zips"] == {ONE: 4, TWO: 1}


def test_a_taste_does_not_fetch_what_a_zip_calls_its_directory_without_bound(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ultravideo, "LONGEST_READ", 1_000_000)
    content = hub.files[ONE]
    end = content.rindex(b"PK\x05\x06")
    size = struct.pack("<II", end, 0)  # of the directory, and where it begins
    hub.files[ONE] = content[: end + 12] + size + content[end + 20 :]
    assert call(tmp_path, "taste=1") == 2
    assert "declares a directory of" in error_line(capsys)
    assert hub.sent[ONE] < 200_000


def test_what_is_not_a_zip_is_removed_and_named(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.files[ONE] = b"no zip" * 100
    assert call(tmp_path) == 2
    assert "clips_short_1.zip: File is not a zip file; it was removed" in error_line(capsys)
    hub.files[ONE] = b"<html>" * 100
    assert call(tmp_path) == 2
    assert f"{ONE} of {REPOSITORY} at {hub.address}: a web page" in error_line(capsys)
    assert not list((tmp_path / "zips").iterdir())


@pytest.mark.parametrize("words", [(), ("taste=2",)])
@pytest.mark.parametrize("name", ["../c9.mp4", "x/../../c9.mp4", "/tmp/c9.mp4", "..\\c9.mp4", "C:/c9.mp4", "link/"])
def test_a_zip_that_would_write_elsewhere_is_refused_whole(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: tuple[str, ...]
) -> None:
    stream = io.BytesIO(hub.files[ONE])
    with zipfile.ZipFile(stream, "a") as archive:
        member = zipfile.ZipInfo(name)
        if name == "link/":
            member = zipfile.ZipInfo("clips_short_1/c9.mp4")
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, clip(0))
    hub.files[ONE] = stream.getvalue()
    assert call(tmp_path / "out", *words) == 2
    assert "leads elsewhere; nothing was taken" in error_line(capsys)
    assert not clips(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("words", "text"), [((), "2 zips of 6.0 MB"), (("taste=2",), "2 clips")])
def test_a_disk_too_small_is_noticed_before_the_download(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: Any, text: str
) -> None:
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert call(tmp_path, *words) == 2
    error = error_line(capsys)
    assert text in error
    assert f"out={tmp_path}: needs" in error
    assert "0.1 kB are free" in error
    assert not hub.sent[TWO]


def test_the_disk_needed_is_that_of_the_clips_and_one_zip_or_all_with_keep(hub: Hub, tmp_path: Path) -> None:
    dataset, sizes = Dataset("main"), [len(hub.files[name]) for name in (ONE, TWO)]
    assert dataset.disk_need(tmp_path, [ONE, TWO], keep=False)[0] == sum(sizes) + max(sizes)
    assert dataset.disk_need(tmp_path, [ONE, TWO], keep=True)[0] == 2 * sum(sizes)


def test_a_token_is_sent_and_asked_for(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.token = "hf_mine"
    assert call(tmp_path, "taste=1") == 2
    assert "answers 401 (needs a token); accept its terms" in error_line(capsys)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert call(tmp_path, "taste=1") == 0


def test_the_commit_of_the_first_call_is_stayed_on(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tmp_path, "taste=1", "revision=v9") == 2
    assert "revision=v9: there is no such branch, tag or commit" in error_line(capsys)
    assert call(tmp_path, "taste=1") == 0
    assert call(tmp_path, "taste=1", f"revision={COMMIT}") == 0
    capsys.readouterr()
    assert call(tmp_path, "taste=1", "revision=v9") == 2
    assert f"was begun at revision=main, commit {COMMIT}" in error_line(capsys)
    assert call(tmp_path, "taste=1", "size=960") == 2
    assert "was begun with size=native" in error_line(capsys)


def test_a_file_that_is_gone_and_a_size_that_is_not_there_are_named(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.status["short.csv"] = 404
    assert call(tmp_path / "a") == 2
    assert "short.csv of" in (error := error_line(capsys))
    assert "404" in error
    assert call(tmp_path / "b", "size=960") == 2
    assert "no clips_short_960_*.zip at commit" in error_line(capsys)
    hub.status.clear()
    hub.files["short.csv"] = b"id,text\n1,a\n"
    assert call(tmp_path / "c") == 2
    assert "has no column 'clip_id'; it has id, text" in error_line(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("name=ultravido", "did you mean ultravideo?"),
        ("name=ultravideo taste=0", "taste=0: a whole number from 1 to 1000000"),
        ("name=ultravideo taste=1000000000000", "from 1 to 1000000"),
        ("name=ultravideo size=4k", "size=4k: one of native, 1920, 960"),
        ("name=ultravideo caption=long", "caption=long: one of"),
        ("name=ultravideo frames=6", "5 and 9"),
        ("name=ultravideo path=x", "not both"),
        ("path=x taste=3", "taste= is for name=ultravideo"),
        ("name=ultravideo accept_licence=true out={file}/out", "cannot be written (Not a directory)"),
    ],
)
def test_a_wrong_call_gets_one_line_before_anything_is_asked(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    (tmp_path / "file").touch()
    assert main(words.format(file=tmp_path / "file").split()) == 2
    assert message in error_line(capsys)
    assert not hub.requests


def test_offline_says_what_is_missing_and_uses_what_is_here(hub: Hub, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pw",
        "data",
        "name=ultravideo",
        "accept_licence=true",
        "taste=1",
        f"out={tmp_path}",
    ]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    failure = subprocess.run(command, env=offline, capture_output=True, text=True, check=False)
    assert failure.returncode == 2
    assert "HF_HUB_OFFLINE=1" in failure.stderr
    assert call(tmp_path, "taste=1") == 0
    result = subprocess.run(command, env=offline, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert COMMIT in result.stdout


def test_no_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for address in ("http://127.0.0.1:9", "nowhere"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert call(tmp_path, "taste=1") == 2
        assert f"at {address}: no answer" in error_line(capsys)


def test_a_report_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    record = UltraVideoReport("main", COMMIT, "native", "brief", clips={"ü.mp4": ONE}, skipped={f"{ONE}/x": "damaged"})
    record.save(tmp_path)
    assert UltraVideoReport(**report(tmp_path)) == record
