"""benchmarks.systems.external: programs of their own environment; here small ones that really write videos."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.systems.external import fill
from benchmarks.systems.jobs import costs
from benchmarks.systems.system_command import main
from pw.io.video import probe, read_video, write_video

ROOT = Path(__file__).parents[3]
PROGRAM = f"""
import argparse, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from pathlib import Path
from pw.io.video import probe, read_video, write_video

words = argparse.ArgumentParser()
for name in ("prompt", "out", "input", "mode"):
    words.add_argument(f"--{{name}}", default="")
for name in ("seed", "width", "height", "frames", "steps"):
    words.add_argument(f"--{{name}}", type=int, default=0)
words.add_argument("--fps", type=float, default=8)
asked = words.parse_args()
print("making", repr(asked.prompt))
if asked.input:
    frames = read_video(asked.input).repeat(2, 1).repeat(2, 2)
    fps = probe(asked.input).fps
else:
    draw = np.random.default_rng(asked.seed).integers
    frames, fps = draw(0, 256, (asked.frames, asked.height, asked.width, 3), dtype=np.uint8), asked.fps
write_video(Path(asked.out) / "result.mkv", frames, fps)
print("seconds_diffusion: 1.25")
print("peak_memory_bytes: 4096")
print("parameters: 7000000000")
"""
CARD = """
name: {name}
title: A stub
kind: command
setting: {{width: 32, height: 16, frames: 5, fps: 8, steps: 4, guidance: null, shift: null}}
setting_source: this test
parameters: null
licence: {{name: MIT, restricted: false, terms: null}}
repository: null
weights: {{repository: null, revision: null}}
adapter:
  command: {command}
  output: "*.mkv"
  takes: {takes}
  writes_fps: {writes_fps}
  driver: null
deviations: []
rows: {{}}
"""
USUAL = (
    "{python} make.py --prompt {prompt} --seed {seed} --width {width} --height {height} --frames {frames} "
    "--steps {steps} --out {out}"
)


class Stub:
    """A checkout with a program and a card of its own; `stub(command)` calls the command line with it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.card = folder, folder / "out", folder / "stub.yaml"
        self.checkout = folder / "checkout"
        self.checkout.mkdir()
        (self.checkout / "make.py").write_text(PROGRAM)
        self.prompts = folder / "prompts.txt"
        self.prompts.write_text('a red ball\na cat; touch injected --seed 9 {seed} "quoted" $HOME\n')

    def __call__(
        self, *words: str, command: str = USUAL, takes: str = "prompt", writes_fps: str = "null", prompts: bool = True
    ) -> int:
        text = CARD.format(name="stub", command=json.dumps(command), takes=takes, writes_fps=writes_fps)
        self.card.write_text(text)
        options = [f"name={self.card}", f"out={self.out}", f"checkout={self.checkout}", f"python={sys.executable}"]
        return main([*options, *([f"prompts={self.prompts}"] if prompts else []), *words])

    def note(self, stem: str) -> dict:
        return json.loads((self.out / "jobs" / f"{stem}.json").read_text())

    def videos(self) -> list[str]:
        return sorted(path.name for path in (self.out / "videos").glob("*"))


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    return Stub(tmp_path)


class TestACommandsWords:
    def test_are_split_before_they_are_filled(self) -> None:
        values = {"prompt": 'a "b" --seed 3 {seed}', "seed": "7", "out": "/x y"}
        assert fill("run --prompt {prompt} --out={out}/v.mp4 '{seed} {seed}'", values) == (
            *("run", "--prompt", 'a "b" --seed 3 {seed}', "--out=/x y/v.mp4", "7 7"),
        )

    def test_that_want_what_is_not_there_say_so(self) -> None:
        with pytest.raises(ValueError, match="set weights="):
            fill("run {weights}", {"weights": None})
        with pytest.raises(ValueError, match=r"unknown \{colour\}"):
            fill("run {colour}", {})


class TestAProgram:
    def test_makes_a_video_for_each_prompt_and_notes_how(self, stub: Stub) -> None:
        assert stub() == 0
        second = 'a cat; touch injected --seed 9 {seed} "quoted" $HOME'
        assert stub.videos() == [f"{second}-0.mkv", "a red ball-0.mkv"]
        note = stub.note(f"{second}-0")
        assert note["command"][note["command"].index("--prompt") + 1] == second
        assert (note["seed"], note["steps"], note["video"]) == (0, 4, f"{second}-0.mkv")
        assert (note["seconds_diffusion"], note["peak_memory_bytes"]) == (1.25, 4096)
        assert (note["parameters"], note["peak_memory_from"]) == (7_000_000_000, "its program")
        assert note["seconds_total"] > 0
        assert note["encoding"] == {"codec": "ffv1", "written_by": "its program"}
        assert not (stub.checkout / "injected").exists()
        assert not list((stub.out / "work").iterdir())
        assert f"making {second!r}" in (stub.out / "logs" / f"{second}-0.log").read_text()
        result = costs(stub.out)
        assert (result.n, result.latency, result.latency_per_pixel) == (2, 1.25, 1.25 / (32 * 16 * 5))

    def test_makes_nothing_twice_and_again_what_is_damaged(self, stub: Stub) -> None:
        assert stub("limit=1") == 0
        before = stub.note("a red ball-0")
        assert stub("limit=1", command="{python} -c 'raise SystemExit(3)' {prompt} {seed} {steps}") == 0
        video = stub.out / "videos" / "a red ball-0.mkv"
        video.write_bytes(video.read_bytes()[:200])
        assert stub("limit=1") == 0
        assert stub.note("a red ball-0") != before
        assert probe(video).frames == 5

    def test_gives_other_seeds_other_noise(self, stub: Stub) -> None:
        assert stub("limit=1", "steps=8") == 0
        assert stub("seeds=2", "shard=2/4", "steps=8") == 0  # the third of four
        clips = [read_video(path) for path in sorted((stub.out / "videos").iterdir())]
        assert len(clips) == 2
        assert not np.array_equal(clips[0], clips[1])

    def test_with_other_settings_is_refused_the_same_folder(
        self, stub: Stub, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert stub("limit=1") == 0
        assert stub("limit=1", "steps=8") == 2
        assert "was made with steps=4, now it is steps=8; choose another out=" in capsys.readouterr().err

    def test_that_fails_is_quoted_and_stops_the_rest(self, stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
        assert stub(command="{python} -c 'print(\"no weights here\"); raise SystemExit(3)' {prompt} {seed}") == 1
        message = capsys.readouterr().err
        assert "a red ball-0: the command ended with status 3" in message
        assert "    no weights here" in message
        assert not (stub.out / "videos").exists()
        assert len(list((stub.out / "logs").iterdir())) == 1

    def test_that_fails_once_does_not_stop_the_others(self, stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
        (stub.checkout / "choosy.py").write_text(
            "import runpy, sys\nif 'dog' in ' '.join(sys.argv): sys.exit('no dogs')\n"
            "sys.argv[0] = 'make.py'\nrunpy.run_path('make.py', run_name='__main__')\n"
        )
        stub.prompts.write_text("a cat\na dog\na bird\n")
        assert stub(command=USUAL.replace("make.py", "choosy.py")) == 1
        assert stub.videos() == ["a bird-0.mkv", "a cat-0.mkv"]
        assert "no dogs" in capsys.readouterr().err

    def test_that_hangs_is_ended_with_all_its_children(self, stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
        (stub.checkout / "hang.py").write_text(
            "import os, subprocess, sys, time\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
            "print('child', child.pid, flush=True)\ntime.sleep(600)\n"
        )
        assert stub("timeout=1", command="{python} hang.py {prompt} {seed}") == 1
        assert "took longer than timeout=1 s" in capsys.readouterr().err
        log = (stub.out / "logs" / "a red ball-0.log").read_text()
        child = int(log.split()[1])
        assert _becomes_true(lambda: not _is_alive(child))

    @pytest.mark.slow
    @pytest.mark.parametrize("words", [(), ("gpus=2",)])
    def test_ends_when_we_are_killed_and_the_next_call_goes_on(self, stub: Stub, words: tuple[str, ...]) -> None:
        (stub.checkout / "slow.py").write_text(
            "import os, pathlib, time\npathlib.Path(f'pid-{os.getpid()}').touch()\ntime.sleep(600)\n"
        )
        assert stub("dry_run=true", command=USUAL.replace("make.py", "slow.py")) == 0  # writes the card
        options = [f"name={stub.card}", f"out={stub.out}", f"checkout={stub.checkout}", f"python={sys.executable}"]
        command = [sys.executable, "-m", "pw", "system", *options, f"prompts={stub.prompts}", *words]
        call = subprocess.Popen(command, cwd=ROOT)
        count = len(words) + 1
        assert _becomes_true(lambda: len(list(stub.checkout.glob("pid-*"))) == count)
        pids = [child.pid for child in psutil.Process(call.pid).children(recursive=True)]  # a worker may hold a lock
        assert {int(path.name.partition("-")[2]) for path in stub.checkout.glob("pid-*")} <= {*pids}
        call.kill()
        call.wait()
        assert _becomes_true(lambda: not any(map(_is_alive, pids)))
        assert stub() == 0
        assert len(stub.videos()) == 2
        assert not list((stub.out / "work").iterdir())

    def test_that_writes_nothing_is_told(self, stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
        assert stub(command='{python} -c \'open(r"{out}/a.txt", "w")\' {prompt} {seed}') == 1
        assert "wrote no *.mkv to {out}; there is: a.txt" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("--width {width}", "--width 48", "width is 48, requested 32"),
            ("--frames {frames}", "--frames 3", "frames is 3, requested 5"),
            ("--steps {steps}", "--steps {steps} --fps 12", "fps is 12, requested 8"),
        ],
    )
    def test_that_makes_another_video_than_asked_is_refused(
        self, stub: Stub, old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert stub(command=USUAL.replace(old, new)) == 1
        assert message in capsys.readouterr().err
        assert not (stub.out / "jobs").exists()

    def test_that_writes_another_rate_by_habit_is_retimed_without_loss(self, stub: Stub) -> None:
        assert stub("limit=1", command=f"{USUAL} --fps 15", writes_fps="15") == 0
        [path] = (stub.out / "videos").iterdir()
        expected = np.random.default_rng(0).integers(0, 256, (5, 16, 32, 3), dtype=np.uint8)
        assert probe(path).fps == 8
        assert np.array_equal(read_video(path), expected)
        assert stub.note("a red ball-0")["encoding"]["retimed_from_fps"] == 15

    def test_that_is_not_there_is_named(self, stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
        assert stub(command="./no-such-program {prompt} {seed}") == 1
        assert "cannot start ./no-such-program" in capsys.readouterr().err


class TestSeveralProcesses:
    @pytest.mark.slow
    def test_make_the_same_videos_as_one(self, stub: Stub, tmp_path: Path) -> None:
        stub.prompts.write_text("a cat\na dog\na bird\n")
        assert stub() == 0
        alone = {name: read_video(stub.out / "videos" / name) for name in stub.videos()}
        stub.out = tmp_path / "many"
        assert stub("gpus=2") == 0
        assert stub.videos() == list(alone)
        assert all(np.array_equal(read_video(stub.out / "videos" / name), alone[name]) for name in alone)
        assert len((stub.out / "jobs.jsonl").read_text().splitlines()) == 3

    def test_fail_as_one_would(self, stub: Stub) -> None:
        stub.prompts.write_text("a cat\na dog\n")
        command = USUAL.replace("{frames}", "3")
        assert stub("gpus=2", command=command) == 1
        assert not (stub.out / "jobs").exists()

    @pytest.mark.slow
    def test_of_two_calls_share_a_folder(self, stub: Stub, capfd: pytest.CaptureFixture[str]) -> None:
        (stub.checkout / "slow.py").write_text(
            "import pathlib, runpy, sys, time\nopen('calls', 'a').write('.')\ntime.sleep(1.5)\n"
            "sys.argv[0] = 'make.py'\nrunpy.run_path('make.py', run_name='__main__')\n"
        )
        command = USUAL.replace("make.py", "slow.py")
        assert stub("dry_run=true", command=command) == 0  # writes the card
        options = [f"name={stub.card}", f"out={stub.out}", f"checkout={stub.checkout}", f"python={sys.executable}"]
        words = [sys.executable, "-m", "pw", "system", *options, f"prompts={stub.prompts}"]
        process = subprocess.Popen(words, cwd=ROOT)
        assert _becomes_true((stub.checkout / "calls").exists)
        assert stub(command=command) == 0
        assert process.wait() == 0
        assert "a red ball-0: claimed by another call" in capfd.readouterr().err
        assert len(stub.videos()) == 2
        assert (stub.checkout / "calls").read_text() == ".."

    def test_fail_when_one_of_them_is_killed(self, stub: Stub, capfd: pytest.CaptureFixture[str]) -> None:
        (stub.checkout / "killer.py").write_text(
            "import os, runpy, signal, sys\nif 'dog' in ' '.join(sys.argv): os.kill(os.getppid(), signal.SIGKILL)\n"
            "sys.argv[0] = 'make.py'\nrunpy.run_path('make.py', run_name='__main__')\n"
        )
        stub.prompts.write_text("a cat\na dog\n")
        assert stub("gpus=2", command=USUAL.replace("make.py", "killer.py")) == 1
        assert "share 2 of 2 was killed by SIGKILL" in capfd.readouterr().err
        assert stub.videos() == ["a cat-0.mkv"]


class TestSuperResolution:
    COMMAND = "{python} make.py --input {input} --out {out} --seed {seed} --steps {steps}"

    def small_videos(self, folder: Path) -> Path:
        folder.mkdir()
        frames = np.random.default_rng(3).integers(0, 256, (5, 8, 16, 3), dtype=np.uint8)
        for name in ("a red ball-0", "a cat-0"):
            write_video(folder / f"{name}.mkv", frames, 8)
        return folder

    def test_enlarges_every_video_of_a_folder_under_its_name(self, stub: Stub, tmp_path: Path) -> None:
        inputs = self.small_videos(tmp_path / "anchors")
        assert stub(f"inputs={inputs}", command=self.COMMAND, takes="video", prompts=False) == 0
        assert stub.videos() == ["a cat-0.mkv", "a red ball-0.mkv"]
        about = stub.note("a red ball-0")
        assert (about["prompt"], about["seed"]) == ("a red ball", 0)
        assert about["input"] == str(inputs / "a red ball-0.mkv")
        small, large = (read_video(f / "a red ball-0.mkv") for f in (inputs, stub.out / "videos"))
        assert np.array_equal(large[:, ::2, ::2], small)

    def test_knows_how_many_times_larger(self, stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        inputs = self.small_videos(tmp_path / "anchors")
        words = [f"inputs={inputs}", "dry_run=true", "limit=1"]
        command = "{python} up.py --upscale {upscale} --dir {input_dir} --out {out}"
        assert stub(*words, command=command, takes="video", prompts=False) == 0
        assert "--upscale 2 --dir" in capsys.readouterr().out

    def test_says_which_videos_are_not_there(
        self, stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        inputs = self.small_videos(tmp_path / "anchors")
        stub.prompts.write_text("a red ball\na dog\n")
        assert stub(f"inputs={inputs}", command=self.COMMAND, takes="video") == 2
        assert "1 of 2 are missing: a dog-0" in capsys.readouterr().err


def _becomes_true(holds: Callable[[], bool]) -> bool:
    """Whether it holds within half a minute."""
    for _ in range(300):
        if holds():
            return True
        time.sleep(0.1)
    return False


def _is_alive(pid: int) -> bool:
    """Whether a process runs (one that ended and was not asked about is none)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
