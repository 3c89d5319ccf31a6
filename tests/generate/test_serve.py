"""pw.generate.serve: prompts by HTTP become the videos of `pw generate`, in turn, with networks that stay."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import WanTransformer3DModel
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from pw.generate.pipeline import generate
from pw.generate.request import GenerateOptions, make_request
from pw.generate.serve import ServeOptions, VideoQueue, listening, main, make_template
from pw.generate.video_server import VideoServer
from pw.io.arguments import parse
from pw.io.paths import ROOT
from pw.io.video import read_video, write_video

SIZE = (
    *("scale=tiny", "scale.height=64", "scale.width=96", "scale.anchor_height=32", "scale.anchor_width=64"),
    *("scale.anchor_upsample=latent", "anchor.sampling.num_steps=2", "sampling.num_steps=2", "hires=random"),
    *("frames=5", "lossless=true"),
)
JSON = {"Content-Type": "application/json"}


def ask(url: str, content: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """(status, content) of a GET, or of a POST of bytes or of an object as JSON."""
    body = content if content is None or isinstance(content, bytes) else json.dumps(content).encode()
    request = urllib.request.Request(url, body, JSON if headers is None else headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            data = answer.read()
            return answer.status, json.loads(data) if answer.headers.get_content_type() == JSON[
                "Content-Type"
            ] else data
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def finished(url: str, job: dict[str, Any]) -> dict[str, Any]:
    """The state of a video when it is done or has failed."""
    for _ in range(600):
        state = ask(f"{url}videos/{job['id']}")[1]
        if state["state"] in ("done", "failed"):
            return state
        time.sleep(0.1)
    raise TimeoutError(state)


@pytest.fixture
def words(pipeline: tuple[Path, Any], tmp_path: Path) -> list[str]:
    return [*SIZE, f"weights={pipeline[0]}", f"out={tmp_path / 'out'}"]


@contextmanager
def serving(words: Sequence[str]) -> Iterator[str]:
    """The address of a server whose queue is worked on."""
    template = make_template(parse(ServeOptions, words), lambda request: None)
    videos = VideoQueue(template)
    server = VideoServer(0, videos.jobs, videos.add, videos.file)
    with listening(server, template.out):
        threading.Thread(target=videos.work, daemon=True).start()
        yield server.url
    assert not (template.out / "serve.json").exists()


@pytest.fixture
def url(words: list[str]) -> Iterator[str]:
    with serving(words) as address:
        yield address


class TestAPrompt:
    def test_becomes_the_video_of_pw_generate_by_networks_that_stay(
        self, url: str, words: list[str], tmp_path: Path
    ) -> None:
        networks: list[Any] = []

        def note(module: Any, args: Any) -> None:
            if isinstance(module, WanTransformer3DModel) and not any(module is other for other in networks):
                networks.append(module)

        hook = register_module_forward_pre_hook(note)
        try:
            jobs = [ask(f"{url}videos", {"prompt": text, "seed": 3}) for text in ("a heron", "a fox")]
            assert [(status, job["state"]) for status, job in jobs][1] == (202, "waiting")
            states = [finished(url, job) for _, job in jobs]
        finally:
            hook.remove()
        assert [(state["state"], state["share"], state["seed"]) for state in states] == [("done", 1.0, 3)] * 2
        assert len(networks) == 2  # of two stages, for two videos
        assert ask(f"{url}videos")[1] == states
        (tmp_path / "p.jsonl").write_text('{"prompt": "a fox", "seed": 3}\n')
        other = [word for word in words if not word.startswith("out=")]
        request = make_request(
            parse(GenerateOptions, [*other, f"out={tmp_path / 'other'}", f"prompts={tmp_path / 'p.jsonl'}"])
        )
        [path] = generate(request)
        assert path.stem == states[1]["id"]
        status, video = ask(f"{url}videos/{states[1]['id']}/file")
        (tmp_path / "fox.mkv").write_bytes(video)
        assert status == 200
        assert np.array_equal(read_video(tmp_path / "fox.mkv"), read_video(path))

    def test_again_is_the_same_job_and_one_whose_video_is_there_is_done(self, url: str, words: list[str]) -> None:
        generate(make_request(parse(GenerateOptions, [*words, "prompt=a fox"])))
        assert ask(f"{url}videos", {"prompt": "a fox"})[1]["state"] == "done"
        first, again = (ask(f"{url}videos", {"prompt": "a heron"})[1] for _ in range(2))
        assert first["id"] == again["id"]
        assert finished(url, first)["state"] == "done"
        assert len(ask(f"{url}videos")[1]) == 2

    @pytest.mark.parametrize(("key", "name", "frames"), [("video", "a.mkv", 7), ("image", "a.png", 5)])
    def test_becomes_a_video_from_the_file_of_the_call(
        self, words: list[str], tmp_path: Path, key: str, name: str, frames: int
    ) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (7, 64, 96, 3), np.uint8)
        write_video(tmp_path / "a.mkv", pixels, 8)
        Image.fromarray(pixels[0]).save(tmp_path / "a.png")
        words = [*words, f"{key}={tmp_path / name}"]
        if key == "video":  # there is no stage I
            words = [word for word in words if not word.startswith("anchor.")]
        with serving(words) as url:
            states = [finished(url, ask(f"{url}videos", {"prompt": text})[1]) for text in ("a heron", "a fox")]
            assert [(state["state"], state["error"]) for state in states] == [("done", "")] * 2
            status, video = ask(f"{url}videos/{states[1]['id']}/file")
        assert status == 200
        (tmp_path / "fox.mkv").write_bytes(video)
        [path] = generate(make_request(parse(GenerateOptions, [*words, f"out={tmp_path / 'other'}", "prompt=a fox"])))
        assert (path.stem, len(read_video(path))) == (states[1]["id"], frames)
        assert np.array_equal(read_video(tmp_path / "fox.mkv"), read_video(path))

    def test_that_fails_says_why_and_can_be_posted_again(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda path: __import__("shutil")._ntuple_diskusage(10, 9, 1))
            failed = finished(url, ask(f"{url}videos", {"prompt": "a heron"})[1])
        assert (failed["state"], failed["part"]) == ("failed", "")
        assert "0.0 kB are free" in failed["error"]
        assert ask(f"{url}videos/{failed['id']}/file")[0] == 409
        assert finished(url, ask(f"{url}videos", {"prompt": "a heron"})[1])["state"] == "done"


class TestARequest:
    @pytest.mark.parametrize(
        ("content", "status", "reason"),
        [
            ({"text": "a"}, 400, "expected an object with the text of a prompt"),
            ([], 400, "expected an object with the text of a prompt"),
            (b"{", 400, ""),
            (b"\xff", 400, ""),
            ({"prompt": "a", "steps": 3}, 400, "steps: is no field of a request"),
            ({"prompt": "a", "video": "a.mkv"}, 400, "video: is no field of a request, which has prompt and seed"),
            ({"prompt": "a", "image": "a.png"}, 400, "image: is no field of a request, which has prompt and seed"),
            ({"prompt": "a", "seed": "3"}, 400, "seed='3': expected a whole number"),
            ({"prompt": "a", "seed": -1}, 400, "seed=-1: a whole number from 0"),
            ({"prompt": " "}, 400, "is empty: write a text prompt"),
            (b'{"prompt": "a \\ud83d"}', 400, "character 3 is half a surrogate pair"),
            ({"prompt": "a" * 600}, 400, "has 601 tokens, the encoder takes 512"),
            (b" " * 70_000, 413, "at most 65536 bytes"),
        ],
    )
    def test_that_cannot_be_is_told_why(self, url: str, content: Any, status: int, reason: str) -> None:
        answer = ask(f"{url}videos", content)
        assert answer[0] == status
        assert reason in answer[1]["error"]
        assert ask(f"{url}videos") == (200, [])

    def test_of_another_page_or_path_is_refused(self, url: str) -> None:
        base, token = url.rstrip("/").rsplit("/", 1)
        prompt = {"prompt": "a"}
        assert ask(f"{base}/{token}x/videos", prompt)[0] == 403
        assert ask(f"{url}videos", prompt, {**JSON, "Origin": "http://example.org"})[0] == 403
        assert ask(f"{url}videos", prompt, {**JSON, "Host": "example.org"})[0] == 403
        assert ask(f"{url}videos", prompt, {"Content-Type": "text/plain"})[0] == 415
        assert ask(f"{url}video", prompt)[0] == 404
        for path in ("", "videos/none", "videos/../serve.json", "videos/none/file"):
            assert ask(f"{url}{path}")[0] == 404
        assert ask(f"{url}videos") == (200, [])


class TestTheCommand:
    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("prompt=a", r"prompt=a: requests bring the prompts"),
            ("port=80", "port=80: a whole number from 1024 to 65535"),
            ("sampling.num_stepz=3", "did you mean sampling.num_steps"),
            ("quality=60", "quality=60: a whole number from 0 to 51"),
            ("trainer=fsdp trainer.accelerator=cpu trainer.devices=2", "trainer=fsdp: pw serve uses one device"),
        ],
    )
    def test_that_is_wrong_is_told_what_would_do(
        self, words: list[str], word: str, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*words, *word.split()]) == 2
        assert message in capsys.readouterr().err

    def test_without_texts_is_told_that_there_is_nothing_to_post(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_video(tmp_path / "a.mkv", np.zeros((3, 24, 24, 3), np.uint8), 8)
        assert main(["scale=tiny", f"video={tmp_path / 'a.mkv'}", f"out={tmp_path / 'out'}"]) == 2
        assert f"video={tmp_path / 'a.mkv'}: the networks of scale=tiny and small take no" in capsys.readouterr().err

    @pytest.mark.slow
    def test_serves_until_a_signal_and_ends_cleanly(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "pw", "serve", *SIZE, "weights=random", f"out={tmp_path}", "port=18186"]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
        ) as process:
            try:
                assert process.stdout is not None
                url = process.stdout.readline().strip()
                record = tmp_path / "serve.json"
                assert json.loads(record.read_text()) == {"url": url}
                assert stat.S_IMODE(record.stat().st_mode) == 0o600
                job = finished(url, ask(f"{url}videos", {"prompt": "a heron"})[1])
                assert job["state"] == "done"
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == 130
        assert "stopped by SIGINT; finished videos are kept" in errors
        assert "Traceback" not in errors
        assert not record.exists()
        assert (tmp_path / f"{job['id']}.mkv").exists()
