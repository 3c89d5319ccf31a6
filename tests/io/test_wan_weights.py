"""Wan's weights: fetched from a small hub on this machine, found again without it, and checked to the byte."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pw.io.wan_weights import PARTS, REPO, REVISION, WeightsError, check, locate

ROOT = Path(__file__).parents[2]
LONG = 24 << 20  # bytes; huggingface_hub hands a download on in pieces of 10 MiB
STALL = 21 << 20


def tensors(size: int, seed: int = 0) -> bytes:
    """A `.safetensors` file of `size` random bytes."""
    header = json.dumps({"weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(size)


def as_json(values: Any) -> bytes:
    return json.dumps(values).encode()


@cache
def repository() -> dict[str, bytes]:
    """A small one in the layout of Wan2.2-TI2V-5B-Diffusers, with what nobody needs beside it."""
    shards = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    return {
        "README.md": b"# Wan",
        "assets/logo.png": b"png",
        "Wan2.2_VAE.pth": b"pickle",
        "model_index.json": as_json({"_class_name": "WanPipeline"}),
        "transformer/config.json": as_json({"num_layers": 1}),
        "transformer/diffusion_pytorch_model.safetensors.index.json": as_json(
            {"weight_map": {"a": shards[0], "b": shards[1]}}
        ),
        f"transformer/{shards[0]}": tensors(900, 1),
        f"transformer/{shards[1]}": tensors(700, 2),
        "transformer/old.bin": b"pickle",
        "vae/config.json": as_json({"z_dim": 48}),
        "vae/diffusion_pytorch_model.safetensors": tensors(LONG, 3),
        "text_encoder/config.json": as_json({"d_model": 8}),
        "text_encoder/model.safetensors": tensors(500, 4),
        "tokenizer/tokenizer_config.json": as_json({}),
        "tokenizer/spiece.model": b"pieces",
        "scheduler/scheduler_config.json": as_json({"flow_shift": 5.0}),
    }


WEIGHT_FILES = sorted(name for name in repository() if name == "model_index.json" or name.split("/")[0] in PARTS)
WEIGHT_FILES.remove("transformer/old.bin")


class Hub(ThreadingHTTPServer):
    """The parts of the Hub's API that a download asks for. Repositories `some/gated` and `some/liar` misbehave."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []  # (file, Range) of every GET of a file
        self.stalling_file: str | None = None  # the file whose download hangs
        self.has_stalled = threading.Event()
        self.damaged_file: str | None = None  # the file of which other bytes come, as many

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/").split("/")
        api = path[:2] == ["api", "models"]
        owner, name, verb, revision, *rest = path[2:] if api else path
        repo = f"{owner}/{name}"
        if repo not in (REPO, "some/gated", "some/liar"):
            return self.answer(404, X_Error_Code="RepoNotFound")
        if revision not in (REVISION, "main"):
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if verb == "revision":
            lie = 1 if repo == "some/liar" else 0
            files = [{"rfilename": path, "size": len(content) + lie} for path, content in repository().items()]
            return self.answer(200, as_json({"id": repo, "sha": REVISION, "siblings": files}))
        if repo == "some/gated":
            return self.answer(403, X_Error_Code="GatedRepo")
        return self.file("/".join(rest))

    def file(self, name: str) -> None:
        content = repository()[name]
        git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        etag = git if name.endswith(".json") else hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION}
        if self.command == "HEAD":
            return self.answer(200, content, **headers)
        byte_range = self.headers["Range"]
        self.server.requests.append((name, byte_range))
        if name == self.server.stalling_file:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:STALL])
            self.server.has_stalled.set()
            time.sleep(30)
            return None
        if name == self.server.damaged_file:
            content = content[::-1]
        start = int(byte_range.removeprefix("bytes=").rstrip("-")) if byte_range else 0
        if byte_range:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.answer(206 if byte_range else 200, content[start:], **headers)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf")


@pytest.fixture
def full_cache(hub: Hub, home: Path) -> Path:
    """`home` with everything fetched."""
    if not snapshot(home).exists():
        run(home, "-m", "pw", "weights", HF_ENDPOINT=hub.endpoint)
    return home


def start(home: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**env, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment},
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(home: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    process = start(home, *arguments, **environment)
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


def snapshot(home: Path) -> Path:
    return home / "hub" / f"models--{REPO.replace('/', '--')}" / "snapshots" / REVISION


def write(folder: Path) -> Path:
    for name, content in repository().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


class TestFetching:
    def test_goes_on_where_a_killed_call_stopped(self, hub: Hub, home: Path) -> None:
        hub.stalling_file = "vae/diffusion_pytorch_model.safetensors"
        process = start(home, "-m", "pw", "weights", HF_ENDPOINT=hub.endpoint)
        assert hub.has_stalled.wait(900), process.communicate(timeout=1)
        blobs = snapshot(home).parents[1] / "blobs"
        until = time.monotonic() + 900
        while not any(path.stat().st_size >= 20 << 20 for path in blobs.glob(".*.part")):
            assert time.monotonic() < until
            time.sleep(0.02)
        process.kill()
        process.communicate()
        assert not (snapshot(home) / hub.stalling_file).exists()
        hub.stalling_file = None
        count = len(hub.requests)
        code, out, err = run(home, "-m", "pw", "weights", HF_ENDPOINT=hub.endpoint)
        assert (code, err) == (0, "")
        byte_range = dict(hub.requests[count:])["vae/diffusion_pytorch_model.safetensors"]
        assert byte_range is not None
        assert int(byte_range.removeprefix("bytes=").rstrip("-")) >= 20 << 20
        assert "licence Apache-2.0: 12 files, 25.2 MB" in out
        assert "continues at 2" in out
        files = [path for path in snapshot(home).rglob("*") if not path.is_dir()]
        assert sorted(str(path.relative_to(snapshot(home))) for path in files) == WEIGHT_FILES
        for name in WEIGHT_FILES:
            assert (snapshot(home) / name).read_bytes() == repository()[name]
        check(snapshot(home))

    def test_mends_a_truncated_file_and_fetches_nothing_else(self, hub: Hub, full_cache: Path) -> None:
        name = "text_encoder/model.safetensors"
        blob = (snapshot(full_cache) / name).resolve()
        blob.write_bytes(blob.read_bytes()[:99])
        with pytest.raises(
            WeightsError, match=r"`make weights` repairs it:\n  text_encoder/model.safetensors: 99 bytes"
        ):
            check(snapshot(full_cache))
        hub.requests.clear()
        code, out, _ = run(full_cache, "-m", "pw", "weights", HF_ENDPOINT=hub.endpoint)
        assert code == 0
        assert "was 99 bytes: fetched again" in out
        assert hub.requests == [(name, None)]
        check(snapshot(full_cache))

    @pytest.mark.parametrize(
        ("name", "in_cache"), [("transformer/config.json", False), ("vae/diffusion_pytorch_model.safetensors", True)]
    )
    def test_a_flipped_byte_is_found_and_mended(
        self, hub: Hub, full_cache: Path, tmp_path: Path, name: str, in_cache: bool
    ) -> None:
        """By the time of the file when it is loaded, and by its bytes alone on request."""
        folder, words = (snapshot(full_cache), []) if in_cache else (tmp_path, [f"dest={tmp_path}"])
        if not in_cache:
            assert run(full_cache, "-m", "pw", "weights", *words, HF_ENDPOINT=hub.endpoint)[0] == 0
        check(folder)
        path = folder / name
        stat, content = path.stat(), bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
        with pytest.raises(
            WeightsError, match=rf"is damaged; `make weights.*` fetches it again:\n  {name}: .*expected"
        ):
            check(folder)
        check(folder, ("scheduler",))
        hub.requests.clear()
        code, out, _ = run(full_cache, "-m", "pw", "weights", *words, HF_ENDPOINT=hub.endpoint)
        assert (code, hub.requests) == (0, [(name, None)])
        assert f"{name}: damaged" in out
        check(folder)
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a failing disk would
        code, out, err = run(full_cache, "-m", "pw", "weights", *words, "verify=true", HF_HUB_OFFLINE="1")
        assert (code, err) == (1, "")
        assert f"1 damaged\n{name}: damaged" in out
        path.write_bytes(repository()[name])

    @pytest.mark.parametrize("name", ["transformer/config.json", "text_encoder/model.safetensors"])
    def test_refuses_a_file_whose_hash_is_another(self, hub: Hub, home: Path, tmp_path: Path, name: str) -> None:
        hub.damaged_file = name
        code, _, err = run(home, "-m", "pw", "weights", f"dest={tmp_path}", HF_ENDPOINT=hub.endpoint)
        hub.damaged_file = None
        assert code == 2
        assert f"{name} of {REPO} at {hub.endpoint}: gave a file whose " in err
        assert not (tmp_path / name).exists()

    def test_says_in_one_line_what_stands_in_the_way(self, hub: Hub, home: Path, tmp_path: Path) -> None:
        cases = {
            "revision=beefbeef": f"error: {REPO} at {hub.endpoint}: revision=beefbeef: there is no such branch",
            "repo=some/thing": "there is no such repository, or it is private",
            f"repo=some/gated dest={tmp_path}/a": "answers 403 (forbidden); accept its terms",
            f"repo=some/liar dest={tmp_path}/b": "the listing says 31 bytes, the server has 30",
            f"dest={tmp_path}/c full": "needs 25.2 MB, 2.0 kB are free there",
            f"dest={tmp_path}/d dry_run=true": "",
        }
        script = (
            "import collections, shutil, sys; from pw.io.wan_weights import main\n"
            "usage = shutil.disk_usage; Usage = collections.namedtuple('Usage', 'total used free')\n"
            "for line in sys.argv[1:]:\n"
            "    words = [word for word in line.split() if word != 'full']\n"
            "    shutil.disk_usage = (lambda path: Usage(9, 9, 2000)) if line.endswith('full') else usage\n"
            "    print('code', main(words), file=sys.stderr)\n"
        )
        code, _, err = run(home, "-c", script, *cases, HF_ENDPOINT=hub.endpoint)
        assert code == 0, err
        blocks = err.split("code ")
        for block, follows, (arguments, words) in zip(blocks, blocks[1:], cases.items(), strict=False):
            message = block.partition("\n")[2] if block is not blocks[0] else block
            assert words in message, arguments
            assert message.count("\n") == bool(words), message
            assert follows[0] == ("2" if words else "0")
        assert not list(tmp_path.rglob("*.safetensors"))
        assert not (tmp_path / "d").exists()

    def test_offline_says_what_is_there_and_what_is_not(self, full_cache: Path, tmp_path: Path) -> None:
        write(tmp_path)
        (tmp_path / "vae/config.json").unlink()
        script = (
            "import sys; from pw.io.wan_weights import main; from pw.io.wan_weights import locate\n"
            "print(locate(None)); print(main([]), main(['dest=' + sys.argv[1]]), main(['dest=/nowhere']))"
        )
        code, out, err = run(full_cache, "-c", script, str(tmp_path), HF_HUB_OFFLINE="1")
        assert code == 0, err
        assert out.splitlines()[0] == str(snapshot(full_cache))
        assert out.splitlines()[-1] == "0 2 2"
        assert "files are missing (complete: transformer, text_encoder, tokenizer, scheduler)" in err
        assert f'`make weights args="dest={tmp_path}"` repairs it:\n  vae/config.json: missing' in err
        assert f"nothing of {REPO} is at /nowhere" in err

    def test_without_network_or_with_wrong_arguments_ends_in_one_line(self, tmp_path: Path) -> None:
        script = (
            "from pw.io.wan_weights import main; from pw.io.wan_weights import locate, WeightsError\n"
            "print(main([]), main(['colour=red']), main(['repo=wan']), main(['dry_run=maybe']), main(['dest']))\n"
            "print(main(['repo=../x']), main(['revision=../../x']), main(['repo=a/b/c']))\n"
            "try:\n    locate(None)\nexcept WeightsError as error:\n    print(error)\n"
            "import sys; print('torch' in sys.modules)\n"
        )
        code, out, err = run(tmp_path, "-c", script, HF_ENDPOINT="http://127.0.0.1:9")
        assert code == 0, err
        assert out.splitlines()[:2] == ["2 2 2 2 2", "2 2 2"]
        lines = err.splitlines()
        assert len(lines) == 8
        assert "http://127.0.0.1:9: no answer" in lines[0]
        assert "HF_ENDPOINT" in lines[0]
        assert (
            lines[1]
            == "error: colour=red: there is no option colour; there are dest, repo, revision, dry_run, verify, what"
        )
        assert f"no weights: {REPO} at revision b8fff731 is not in {tmp_path}/hub; `make weights` fetches it" in out
        assert out.splitlines()[-1] == "False"


class TestCheck:
    @pytest.fixture(scope="class")
    def complete(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write(tmp_path_factory.mktemp("whole"))

    @pytest.fixture
    def folder(self, complete: Path, tmp_path: Path) -> Path:
        """The same, by links to files, to be damaged."""
        for path in complete.rglob("*"):
            if path.is_file():
                link = tmp_path / path.relative_to(complete)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
        return tmp_path

    def damage(self, path: Path, content: bytes | None) -> None:
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    def test_passes_what_is_whole(self, complete: Path) -> None:
        began = time.process_time()
        check(complete)
        assert time.process_time() - began < 1  # the headers are read, not the gigabytes

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("transformer/config.json", None, "config.json: missing"),
            ("vae/config.json", b"{", "config.json: not JSON (1 bytes)"),
            ("transformer/diffusion_pytorch_model-00002-of-00002.safetensors", None, "of-00002.safetensors: missing"),
            ("transformer/diffusion_pytorch_model.safetensors.index.json", None, "safetensors.index.json: missing"),
            ("transformer/diffusion_pytorch_model.safetensors.index.json", b"[]", "not an index of shards"),
            ("vae/diffusion_pytorch_model.safetensors", None, "diffusion_pytorch_model.safetensors: missing"),
            ("text_encoder/model.safetensors", tensors(500)[:-1], "576 bytes, its header says 577"),
            ("text_encoder/model.safetensors", tensors(500) + b"x", "578 bytes, its header says 577"),
            ("text_encoder/model.safetensors", b"", "0 bytes, truncated or not safetensors"),
            ("text_encoder/model.safetensors", tensors(500)[:40], "40 bytes, truncated or not safetensors"),
            ("text_encoder/model.safetensors", b"version https://git-lfs", "a Git LFS pointer"),
            ("text_encoder/model.safetensors", (4).to_bytes(8, "little") + b"{..}", "its header is damaged"),
            ("tokenizer/tokenizer_config.json", None, "tokenizer_config.json: missing"),
            ("tokenizer/spiece.model", None, "tokenizer.json or spiece.model: missing"),
            ("scheduler/scheduler_config.json", None, "scheduler_config.json: missing"),
        ],
    )
    def test_names_what_is_missing_or_cut_off(self, folder: Path, name: str, content: bytes, words: str) -> None:
        self.damage(folder / name, content)
        with pytest.raises(WeightsError) as caught:
            check(folder)
        first, problem = str(caught.value).splitlines()
        assert first == f'{folder} is incomplete; `make weights args="dest={folder}"` repairs it:'
        assert problem.startswith(f"  {Path(name).parent}/")
        assert words in problem

    def test_lists_everything_at_once_and_looks_only_where_asked(self, folder: Path) -> None:
        self.damage(folder / "vae/config.json", None)
        self.damage(folder / "tokenizer/spiece.model", None)
        with pytest.raises(WeightsError) as caught:
            check(folder)
        assert len(str(caught.value).splitlines()) == 3
        check(folder, ("transformer", "text_encoder", "scheduler"))


class TestLocate:
    def test_takes_a_folder_in_diffusers_layout(self, tmp_path: Path) -> None:
        (tmp_path / "transformer").mkdir()
        assert locate(str(tmp_path)) == tmp_path

    def test_says_what_is_wrong_with_another(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="no such folder"):
            locate(str(tmp_path / "none"))
        (tmp_path / "Wan2.2_VAE.pth").touch()
        with pytest.raises(WeightsError, match=r"has no transformer/, .*it holds Wan2\.2_VAE\.pth"):
            locate(str(tmp_path))
