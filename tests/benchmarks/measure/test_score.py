"""`make score`: any folder of videos to scores.csv and its protocol."""

from __future__ import annotations

import csv
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from odd_videos import BROKEN, WHOLE, encode, moving

from benchmarks.measure import folder_scoring, measurement, score
from benchmarks.measure.folder_scoring import FolderScoring, content_hash
from benchmarks.measure.measurement import BrokenVideo, MeasureOptions, device_for, videos_of
from benchmarks.measure.score import score_videos, share
from benchmarks.measure.streaming import remedy, shortage
from benchmarks.metrics import GROUPS, METRICS
from pw.io.video import read_video, write_video

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three whole videos; the cache is the test's own, and no weights are there."""
    monkeypatch.setenv("PW_SCORES", str(tmp_path / "cache"))
    monkeypatch.setenv("PW_METRICS", str(tmp_path / "weights"))
    videos = tmp_path / "videos"
    videos.mkdir()
    for i in range(3):
        encode(videos / f"a heron-{i}.mp4", moving(seed=i))
    return videos


def run(*words: str | Path) -> int:
    return score.main([str(word) for word in words])


def table(path: Path) -> dict[str, dict[str, str]]:
    return {row["video"]: row for row in csv.DictReader(path.open())}


def protocol(path: Path) -> dict[str, Any]:
    return json.loads(path.with_name(f"{path.stem}.protocol.json").read_text())


def test_a_row_per_video_and_a_protocol_beside_it(folder: Path, tmp_path: Path):
    out = tmp_path / "scores.csv"
    assert run(folder, "metrics=mhd_mse,temporal_flickering", f"out={out}") == 0
    rows = table(out)
    assert list(rows) == ["a heron-0.mp4", "a heron-1.mp4", "a heron-2.mp4"]
    assert list(rows["a heron-0.mp4"]) == ["video", "frames", "mhd_mse", "temporal_flickering"]
    frames = read_video(folder / "a heron-1.mp4").astype(float)
    expected = 1 - np.abs(np.diff(frames, axis=0)).mean() / 255
    assert float(rows["a heron-1.mp4"]["temporal_flickering"]) == pytest.approx(expected, abs=1e-6)
    assert {row["frames"] for row in rows.values()} == {"6"}
    about = protocol(out)
    mhd = about["metrics"]["mhd_mse"]
    assert (mhd["protocol"], mhd["settings"]) == ("mhd_mse/1", {"ks": [3, 4, 5], "reduction": "mean"})
    assert mhd["mean"] == pytest.approx(np.mean([float(row["mhd_mse"]) for row in rows.values()]))
    assert (mhd["n"], mhd["clusters"], mhd["low"]) == (3, 1, None)  # one prompt: nothing to draw from
    assert about["versions"]["av"]


def test_what_was_measured_is_not_measured_again(folder: Path, tmp_path: Path):
    first = score_videos(folder, ["mhd_mse"])
    assert first.n_measured == 3
    encode(folder / "new-0.mp4", moving(seed=9))
    (folder / "a heron-0.mp4").rename(folder / "renamed-0.mp4")
    second = score_videos(folder, ["mhd_mse"])
    assert second.n_measured == 1
    assert second.rows["renamed-0.mp4"] == first.rows["a heron-0.mp4"]
    assert score_videos(folder, ["mhd_mse"], MeasureOptions(overrides=("mhd.reduction=sum",))).n_measured == 4


def test_another_setting_is_another_score_and_is_said(folder: Path, tmp_path: Path):
    run(folder, "metrics=mhd_mse", f"out={tmp_path / 'mean.csv'}")
    run(folder, "metrics=mhd_mse", f"out={tmp_path / 'sum.csv'}", "mhd.reduction=sum")
    run(folder, "metrics=mhd_mse", f"out={tmp_path / 'one.csv'}", "mhd.ks=3")
    values = {n: float(table(tmp_path / f"{n}.csv")["a heron-0.mp4"]["mhd_mse"]) for n in ("mean", "sum", "one")}
    assert values["sum"] == pytest.approx(3 * values["mean"])
    assert values["one"] != values["mean"]
    assert protocol(tmp_path / "one.csv")["metrics"]["mhd_mse"]["settings"] == {"ks": [3], "reduction": "mean"}


def test_broken_videos_are_named_counted_and_left_out(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    for name, make in {**BROKEN, **WHOLE}.items():
        make(folder / name)
    (folder / "notes.txt").write_text("not a video by its name: not looked at")
    out = tmp_path / "scores.csv"
    assert run(folder, "metrics=mhd_mse", f"out={out}") == 0
    assert set(table(out)) == {path.name for path in folder.glob("a heron*")} | set(WHOLE)
    about = protocol(out)
    assert set(about["left_out"]) == set(BROKEN)
    assert all(name in reason for name, reason in about["left_out"].items())
    assert f"{len(BROKEN)} videos left out" in capsys.readouterr().out
    assert about["metrics"]["mhd_mse"]["n"] == 3 + len(WHOLE)


def test_what_only_has_the_name_of_a_video_is_left_out_and_never_waited_for(folder: Path, tmp_path: Path):
    os.mkfifo(folder / "pipe.mp4")
    (folder / "folder.mp4").mkdir()
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "gone.mp4").symlink_to("nowhere")
    shutil.copy(folder / "a heron-0.mp4", os.fsencode(folder) + b"/latin-\xe9.mp4")
    assert run(folder, "metrics=mhd_mse", f"out={tmp_path / 'scores.csv'}") == 0
    about = protocol(tmp_path / "scores.csv")
    assert len(table(tmp_path / "scores.csv")) == 3
    assert set(about["left_out"]) == {"pipe.mp4", "folder.mp4", "loop.mp4", "gone.mp4", "latin-\\udce9.mp4"}


def test_what_is_not_read_and_what_is_odd_is_said_also_from_the_cache(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    encode(folder / "old.avi", moving(), pts=[0, 1, 2, 4, 5, 6], codec_name="mpeg4")
    (folder / "tape.wmv").touch()
    (folder / "more").mkdir()
    encode(folder / "more" / "inner.mp4", moving())
    (folder / "link").symlink_to(folder / "more")
    for _ in range(2):
        assert run(folder, "metrics=mhd_mse", f"out={tmp_path / 'scores.csv'}") == 0
        about = protocol(tmp_path / "scores.csv")
        assert set(about["passed_over"]) == {"tape.wmv", "more", "link"}
        assert about["notes"] == {"old.avi": "1 of its 7 frames hold the one before, and are left out"}
        output = capsys.readouterr().out
        assert all(name in output for name in ("tape.wmv", "more", "link", "old.avi: 1 of its 7"))
    assert table(tmp_path / "scores.csv")["old.avi"]["frames"] == "6"


def test_a_real_video_that_cannot_be_read_leaves_its_metric_out_only(folder: Path, tmp_path: Path, monkeypatch):
    real = tmp_path / "real"
    real.mkdir()
    shutil.copy(folder / "a heron-0.mp4", real)
    os.mkfifo(real / "a heron-1.mp4")
    (real / "a heron-2.mp4").mkdir()
    monkeypatch.setattr(folder_scoring, "digest", lambda name: "0")
    monkeypatch.setitem(sys.modules, "benchmarks.metrics.lpips", SimpleNamespace(scorer=lambda *_: Same()))
    out = tmp_path / "s.csv"
    assert run(folder, "metrics=lpips", f"real={real}", f"out={out}") == 0
    assert protocol(out)["real"] == {"a heron-0.mp4": content_hash(real / "a heron-0.mp4")}
    scores = score_videos(folder, ["lpips", "mhd_mse"], MeasureOptions(real=real))
    assert len(scores.values("mhd_mse")) == 3
    assert scores.values("lpips") == {"a heron-0.mp4": 0.0}
    assert set(scores.not_measured["lpips"]) == {"a heron-1.mp4", "a heron-2.mp4"}


STUB = """
import json, sys
from pathlib import Path
asked = json.load(open(sys.argv[1]))
out, results = Path(asked["out"]), {name: {"per_video": {}} for name in asked["dimensions"]}
with open(f"{out}.journal", "w") as journal:
    print(json.dumps({"schema": 1, "versions": {}}), file=journal)
    for video in asked["videos"]:
        for name in asked["dimensions"]:
            broken = "fox" in video or "whale" in video
            value = None if broken else len(Path(video).stem) / 100
            why = "OutOfMemoryError: CUDA out of memory" if "whale" in video else "no fox"
            say = {"video": video, "dimension": name, "value": value, "why": why, "error": broken}
            print(json.dumps(say), file=journal)
            if not broken:
                results[name]["per_video"][video] = value
out.write_text(json.dumps({"schema": 1, "results": results}))
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """VBench's worker is a stub whose values are the lengths of the names; it cannot measure a fox or a whale."""
    from benchmarks.metrics import vbench

    (tmp_path / "worker.py").write_text(STUB)
    monkeypatch.setenv("PW_VBENCH_PYTHON", sys.executable)
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "vbench"))
    for name in ("overall_consistency", "dynamic_degree"):
        for file in vbench.weights_of(name):
            (tmp_path / "vbench" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "vbench" / file).write_bytes(b"weights")
    patched = functools.partial(vbench.score_videos, worker=tmp_path / "worker.py")
    monkeypatch.setattr(vbench, "score_videos", patched)


def test_what_depends_on_the_prompt_is_measured_again_under_another_name(folder: Path, worker: None):
    names = ["overall_consistency", "dynamic_degree"]
    first = score_videos(folder, names)
    assert first.values("overall_consistency")["a heron-0.mp4"] == 0.09
    (folder / "a heron-0.mp4").rename(folder / "a bat-0.mp4")
    second = score_videos(folder, names)
    assert second.values("overall_consistency")["a bat-0.mp4"] == 0.07
    assert second.values("dynamic_degree")["a bat-0.mp4"] == 0.09  # of the pictures alone


def test_videos_of_vbenchs_protocol_that_are_not_there_are_said(
    folder: Path, worker: None, tmp_path: Path, monkeypatch
):
    python = tmp_path / "env" / "bin" / "python"
    info = tmp_path / "env" / "lib" / "python3.11" / "site-packages" / "vbench" / "VBench_full_info.json"
    for path in (python, info):
        path.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    info.write_text(json.dumps([{"prompt_en": "a heron", "dimension": ["dynamic_degree"]}]))
    monkeypatch.setenv("PW_VBENCH_PYTHON", str(python))
    standard = ("vbench.mode=vbench_standard",)
    scores = score_videos(folder, ["dynamic_degree"], MeasureOptions(overrides=standard))
    assert len(scores.values("dynamic_degree")) == 3
    assert "2 videos of VBench's protocol are missing, such as 'a heron-3'" in scores.missing["dynamic_degree"]
    with pytest.raises(BrokenVideo, match="2 videos of VBench's protocol"):
        score_videos(folder, ["dynamic_degree"], MeasureOptions(overrides=standard, strict=True))


def test_strict_stops_at_a_video_that_the_worker_cannot_measure(folder: Path, worker: None):
    (folder / "a heron-1.mp4").rename(folder / "a fox-0.mp4")
    scores = score_videos(folder, ["dynamic_degree"])
    assert set(scores.values("dynamic_degree")) == {"a heron-0.mp4", "a heron-2.mp4"}
    with pytest.raises(BrokenVideo, match="no fox"):
        score_videos(folder, ["dynamic_degree"], MeasureOptions(strict=True))


def test_a_gpu_that_is_too_small_for_the_worker_is_said_with_what_would_do(folder: Path, worker: None):
    (folder / "a heron-1.mp4").rename(folder / "a whale-0.mp4")
    scores = score_videos(folder, ["dynamic_degree"])
    assert set(scores.values("dynamic_degree")) == {"a heron-0.mp4", "a heron-2.mp4"}
    assert "CUDA out of memory; device=cpu" in scores.missing["dynamic_degree"]


def test_a_video_that_is_written_anew_while_it_waits_is_not_kept_under_its_old_content(folder: Path):
    def overwrite(line: str) -> None:
        if line.startswith("1/"):
            encode(folder / "a heron-2.mp4", moving(seed=7))

    scores = score_videos(folder, ["mhd_mse"], progress=overwrite)
    assert set(scores.values("mhd_mse")) == {"a heron-0.mp4", "a heron-1.mp4"}
    assert "changed while it was measured" in scores.left_out["a heron-2.mp4"]
    encode(folder / "a heron-2.mp4", moving(seed=2))  # as it was
    assert score_videos(folder, ["mhd_mse"]).n_measured == 1


class Same:
    """A metric of pairs without weights: the largest difference to the real video."""

    memory = 0

    def begin(self, info: Any) -> Same:
        return self

    def wants(self, index: int) -> bool:
        return True

    def frame(self, view: Any) -> float:
        return float(np.abs(view.image.astype(float) - view.real).max())

    def result(self, frames: Any) -> dict[str, float]:
        return {"lpips": max(frames)}


@dataclass
class Large:
    """A metric in NIQE's place, of 100 MB a frame, that finds no memory for 6 frames of 64x96 in one of its steps.

    held: what the step that fails had in its hands, by weak reference.
    """

    failing_step: str
    error: Callable[[], Exception]
    tensors: list[weakref.ref] = field(default_factory=list)
    memory: int = 10**8
    small: bool = True

    def _step(self, name: str) -> None:
        if name == self.failing_step and not self.small:
            tensor = np.zeros(1000)
            self.tensors.append(weakref.ref(tensor))
            raise self.error()

    def begin(self, info: Any) -> Large:
        scorer = replace(self, small=info.frames < 6)
        scorer._step("begin")
        return scorer

    def wants(self, index: int) -> bool:
        return True

    def frame(self, view: Any) -> float:
        self._step("frame")
        return 1.0

    def result(self, frames: Any) -> dict[str, float]:
        self._step("result")
        return {"niqe": sum(frames)}


CUDA_FULL = functools.partial(
    torch.OutOfMemoryError,
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.62 MiB is "
    "free. Including non-PyTorch memory, this process has 79.00 GiB memory in use. Of the allocated memory 70 GiB is",
)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a `Large` in NIQE's place; what it would load is there."""

    def place(large: Large) -> Large:
        monkeypatch.setattr(folder_scoring, "digest", lambda name: "0")
        monkeypatch.setitem(sys.modules, "benchmarks.metrics.niqe", SimpleNamespace(scorer=lambda *_: large))
        return large

    return place


@pytest.mark.parametrize("step", ["begin", "frame", "result"])
def test_a_gpu_that_is_full_leaves_out_the_metric_of_the_video_and_nothing_else(step: str, folder: Path, install: Any):
    encode(folder / "a small one-0.mp4", moving(5))
    large = install(Large(step, CUDA_FULL))
    scores = score_videos(folder, ["niqe", "mhd_mse"], MeasureOptions(threads=2))
    assert len(scores.values("mhd_mse")) == 4
    assert scores.values("niqe") == {"a small one-0.mp4": 5.0}
    assert set(scores.not_measured["niqe"]) == {f"a heron-{i}.mp4" for i in range(3)}
    reason = scores.not_measured["niqe"]["a heron-0.mp4"]
    assert "Tried to allocate 2.00 GiB" in reason
    assert "device=cpu" in reason
    assert "non-PyTorch" not in reason
    assert ("memory=101MB measures one frame at a time" in reason) == (step == "frame")
    assert large.tensors
    assert not any(array() is not None for array in large.tensors)  # no error in somebody's keeping holds it


def test_strict_stops_where_memory_ran_out_and_says_what_would_do(folder: Path, install: Any, tmp_path: Path, capsys):
    install(Large("frame", lambda: RuntimeError("CUDA error: out of memory")))
    assert run(folder, "metrics=niqe", "strict=true", f"out={tmp_path / 's.csv'}") == 1
    message = capsys.readouterr().err
    assert "error: strict=true: a heron-0.mp4: niqe: CUDA error: out of memory; " in message
    assert "device=cpu" in message


def test_an_error_that_is_not_of_memory_is_not_taken_for_one(folder: Path, install: Any):
    install(Large("frame", lambda: RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        score_videos(folder, ["niqe"])


def test_a_network_that_does_not_fit_does_not_stop_the_others(folder: Path, install: Any, monkeypatch):
    install(Large("", CUDA_FULL))

    def scorer(*_: Any) -> None:
        raise CUDA_FULL()

    monkeypatch.setitem(sys.modules, "benchmarks.metrics.niqe", SimpleNamespace(scorer=scorer))
    scores = score_videos(folder, ["niqe", "mhd_mse"])
    assert len(scores.values("mhd_mse")) == 3
    assert "the network of niqe does not fit: CUDA out of memory" in scores.missing["niqe"]
    with pytest.raises(BrokenVideo, match="device=cpu uses the machine's memory"):
        score_videos(folder, ["niqe"], MeasureOptions(strict=True))


@pytest.mark.parametrize("ask", [lambda: torch.empty(10**15), lambda: np.empty(10**15), lambda: bytearray(10**15)])
def test_memory_that_ran_out_is_known_by_its_error_whoever_was_asked(ask: Callable[[], Any]):
    with pytest.raises((RuntimeError, MemoryError)) as error:
        ask()
    assert shortage(error.value)
    assert "a machine with more memory" in remedy(shortage(error.value))
    assert not shortage(ValueError("out of memory"))


def test_strict_stops_at_the_first_broken_video_and_keeps_what_was_measured(folder: Path, tmp_path: Path):
    BROKEN["truncated.mp4"](folder / "b-0.mp4")
    encode(folder / "c-0.mp4", moving(seed=7))
    with pytest.raises(BrokenVideo, match=r"b-0\.mp4"):
        score_videos(folder, ["mhd_mse"], MeasureOptions(strict=True))
    assert run(folder, "metrics=mhd_mse", f"out={tmp_path / 's.csv'}", "strict=true") == 1
    assert not (tmp_path / "s.csv").exists()
    (folder / "b-0.mp4").unlink()
    assert score_videos(folder, ["mhd_mse"], MeasureOptions(strict=True)).n_measured == 1


def test_why_there_is_no_interval_is_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert run(folder, "metrics=mhd_mse", f"out={tmp_path / 'scores.csv'}") == 0
    assert "only in the trailing -NUMBER have the same prompt" in " ".join(capsys.readouterr().out.split())


def test_a_metric_without_its_weights_does_not_stop_the_others(folder: Path, tmp_path: Path, capsys):
    out = tmp_path / "scores.csv"
    assert run(folder, "metrics=niqe,mhd_mse,dover_technical", f"out={out}") == 0
    assert list(next(iter(table(out).values()))) == ["video", "frames", "mhd_mse"]
    missing = protocol(out)["missing"]
    assert set(missing) == {"niqe", "dover_technical"}
    assert all("make weights what=metrics" in reason for reason in missing.values())
    assert "make weights what=metrics" in capsys.readouterr().out


def test_when_nothing_could_be_measured_the_status_says_so_and_an_earlier_table_stays(folder: Path, tmp_path, capsys):
    out = tmp_path / "s.csv"
    assert run(folder, "metrics=niqe", f"out={out}") == 1
    assert not out.exists()
    assert f"error: nothing was measured of niqe; {out} is not written" in capsys.readouterr().err
    assert run(folder, "metrics=mhd_mse", f"out={out}") == 0
    before = [path.read_bytes() for path in (out, tmp_path / "s.protocol.json")]
    capsys.readouterr()
    assert run(folder, "metrics=niqe", f"out={out}") == 1
    message = capsys.readouterr()
    assert f"error: nothing was measured of niqe; {out} stays as it was" in message.err
    assert "make weights what=metrics" in message.out
    assert [path.read_bytes() for path in (out, tmp_path / "s.protocol.json")] == before


def test_a_video_that_a_metric_cannot_measure_has_an_empty_cell_not_a_number(folder: Path, tmp_path: Path):
    WHOLE["one_frame.mp4"](folder / "one.mp4")
    out = tmp_path / "scores.csv"
    assert run(folder, "metrics=mhd_mse,temporal_flickering", f"out={out}") == 0
    row = table(out)["one.mp4"]
    assert row["temporal_flickering"] == ""
    assert float(row["mhd_mse"]) > 0
    assert "one.mp4" in protocol(out)["not_measured"]["temporal_flickering"]
    assert protocol(out)["metrics"]["temporal_flickering"]["n"] == 3


def test_metrics_of_clips_are_scored_beside_others(folder: Path, tmp_path: Path):
    real = tmp_path / "real"
    real.mkdir()
    for i in range(3):
        write_video(real / f"a heron-{i}.mkv", moving(seed=i))
    out = tmp_path / "scores.csv"
    assert run(folder, "metrics=mhd,psd,solution_gap,mhd_mse", f"out={out}", f"real={real}") == 0
    assert list(next(iter(table(out).values()))) == ["video", "frames", "mhd", "mhd_mse"]
    about = protocol(out)
    assert about["metrics"]["psd"]["mean"] > 0
    assert "solution=DIR" in about["missing"]["solution_gap"]


def test_clips_that_are_truncated_or_share_a_name_are_said_and_the_others_scored(folder: Path, tmp_path: Path):
    real = tmp_path / "real"
    real.mkdir()
    for path in folder.iterdir():
        shutil.copy(path, real)
    (real / "a heron-2.mp4").unlink()
    write_video(folder / "a heron-0.mkv", moving(seed=1))
    truncated = folder / "cut-0.mkv"
    write_video(truncated, moving(seed=5))
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size // 2])
    scores = score_videos(folder, ["mhd", "psd"], MeasureOptions(real=real))
    assert set(scores.left_out) == {"cut-0.mkv"}
    assert "a heron-0.mkv has the same" in scores.not_measured["mhd"]["a heron-0.mp4"]
    assert set(scores.values("mhd")) == {"a heron-0.mkv", "a heron-1.mp4", "a heron-2.mp4"}
    assert score.summary(scores, ["psd"])["psd"]["n"] == 2  # real has no third
    with pytest.raises(BrokenVideo, match="truncated"):
        score_videos(folder, ["mhd"], MeasureOptions(strict=True))


def test_real_clips_of_another_size_cost_only_the_metrics_that_hold_against_them(folder: Path, tmp_path: Path):
    real = tmp_path / "real"
    real.mkdir()
    for path in folder.iterdir():
        write_video(real / f"{path.stem}.mkv", moving(6, 32, 48))
    scores = score_videos(folder, ["mhd_mse", "mhd", "psd"], MeasureOptions(real=real))
    assert len(scores.values("mhd")) == len(scores.values("mhd_mse")) == 3
    assert "psd needs clips of real's size" in scores.missing["psd"]
    with pytest.raises(BrokenVideo, match="strict=true: psd: psd needs clips of real's size"):
        score_videos(folder, ["mhd", "psd"], MeasureOptions(real=real, strict=True))


def test_a_metric_of_clips_without_a_value_says_why(folder: Path, tmp_path: Path):
    real = tmp_path / "real"
    real.mkdir()
    for i in range(2):
        write_video(real / f"a heron-{i}.mkv", np.zeros((6, 64, 96, 3), np.uint8))
    scores = score_videos(folder, ["mhd_ratio", "anchor_fidelity"], MeasureOptions(real=real, structure=real))
    assert scores.missing["mhd_ratio"] == "mhd_ratio of these 2 clips is not finite"  # black clips have no detail
    assert set(scores.values("anchor_fidelity")) == {"a heron-0.mp4", "a heron-1.mp4"}
    assert f"structure={real} has no clip of its name" in scores.not_measured["anchor_fidelity"]["a heron-2.mp4"]
    with pytest.raises(BrokenVideo, match="anchor_fidelity: its value is not finite, or structure="):
        score_videos(folder, ["anchor_fidelity"], MeasureOptions(structure=real, strict=True))


def test_only_the_metric_without_a_value_is_said_to_have_none(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Two metrics of one family: of one the value is not finite, the other then comes from the cache."""
    answers = [{"dover_technical": math.nan, "dover_aesthetic": 0.5}] * 3

    def result(frames: Any) -> dict[str, float]:
        if not answers:
            raise ValueError("too odd")
        return answers.pop()

    steps = {"memory": 0, "wants": lambda i: True, "frame": lambda view: None, "result": result}
    scorer = SimpleNamespace(begin=lambda info: SimpleNamespace(**steps))
    monkeypatch.setattr(folder_scoring, "digest", lambda name: "0")
    monkeypatch.setitem(sys.modules, "benchmarks.metrics.dover", SimpleNamespace(scorer=lambda *_: scorer))
    scores = score_videos(folder, ["dover_technical", "dover_aesthetic"])
    assert len(scores.values("dover_aesthetic")) == 3
    assert scores.not_measured.keys() == {"dover_technical"}
    assert scores.not_measured["dover_technical"]["a heron-0.mp4"] == "dover_technical is nan"
    second = score_videos(folder, ["dover_technical", "dover_aesthetic"])
    assert len(second.values("dover_aesthetic")) == 3
    assert second.not_measured == {"dover_technical": dict.fromkeys(videos_of(folder), "too odd")}


def test_numbers_stand_beside_the_settings_they_were_measured_by(folder: Path, tmp_path: Path, capsys):
    assert run(folder, "metrics=mhd_mse", f"out={tmp_path / 's.csv'}", "mhd.ks=3,4", "mhd.reduction=sum") == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("mhd_mse/1", "ks=3,4", "reduction=sum"))
    assert run(folder, "metrics=mhd_mse", f"out={tmp_path / 's.csv'}") == 0
    assert "reduction" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("metric", "reason"), [("mhd_mse", "there is one video"), ("psd", "one value for the whole set")]
)
def test_an_interval_that_is_a_dash_says_why(metric: str, reason: str, folder: Path, tmp_path: Path, capsys):
    for i in (1, 2):
        (folder / f"a heron-{i}.mp4").unlink()
    real = tmp_path / "real"
    real.mkdir()
    write_video(real / "a heron-0.mkv", moving())
    assert run(folder, f"metrics={metric}", f"out={tmp_path / 's.csv'}", f"real={real}") == 0
    assert reason in capsys.readouterr().out


@pytest.mark.parametrize("unwritable", ["cache", "out"])
def test_what_cannot_be_written_is_an_error_in_words(unwritable: str, folder: Path, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("in the way")
    words = {"cache": tmp_path / "cache", "out": tmp_path / "scores.csv"} | {unwritable: tmp_path / "file" / "x"}
    assert run(folder, "metrics=mhd_mse", *(f"{key}={value}" for key, value in words.items())) == 2
    assert f"{tmp_path / 'file'}" in capsys.readouterr().err


def test_a_file_that_is_not_dovers_does_not_stop_the_others(folder: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "my.pth").write_bytes(b"not a checkpoint")
    monkeypatch.setenv("PW_METRICS_DOVER", str(tmp_path / "my.pth"))
    scores = score_videos(folder, ["dover_technical", "mhd_mse"])
    assert "not a checkpoint that can be read" in scores.missing["dover_technical"]
    assert len(scores.values("mhd_mse")) == 3


def test_a_gpu_that_is_named_is_not_shared_out_and_one_that_is_not_there_is_named(folder: Path, monkeypatch):
    monkeypatch.setattr(measurement, "gpus", lambda: 2)
    assert device_for("auto") == "cuda:0"
    assert device_for("cuda:1") == "cuda:1"
    with pytest.raises(ValueError, match="device=cuda:7: expected auto, cpu, cuda:0, cuda:1"):
        device_for("cuda:7")
    monkeypatch.setattr(subprocess, "Popen", None)  # which would start another process
    monkeypatch.setattr(folder_scoring, "digest", lambda name: "0")
    share(FolderScoring(videos_of(folder), ["niqe"], MeasureOptions(device="cuda:1")))


def test_metrics_of_clips_refuse_what_does_not_fit_into_memory(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(score, "SMALL_CLIP", 6 * 64 * 96 - 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2.4e9))
    scores = score_videos(folder, ["mhd", "mhd_mse"])
    assert "36,864 pixels" in scores.missing["mhd"]
    assert "need 2.5 GB, and 2.4 GB are free" in scores.missing["mhd"]
    assert scores.values("mhd_mse")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2.6e9))
    assert "mhd" not in score_videos(folder, ["mhd"]).missing


def test_an_entry_of_the_cache_that_is_not_as_it_was_written_is_measured_again(folder: Path, tmp_path: Path):
    rows = score_videos(folder, ["mhd_mse"]).rows
    first, second, third = sorted((tmp_path / "cache").rglob("mhd_mse-*.json"))
    edited = json.loads(first.read_text())
    first.write_text(json.dumps({**edited, "value": 2 * edited["value"]}))
    shutil.copy(third, second)
    scores = score_videos(folder, ["mhd_mse"])
    assert scores.rows == rows
    assert scores.n_measured == 2


def test_metrics_of_clips_leave_out_a_name_that_is_not_utf_8(folder: Path):
    bad = folder / os.fsdecode(b"bad\xff.mp4")
    shutil.copy(folder / "a heron-0.mp4", bad)
    scores = score_videos(folder, ["psd"], MeasureOptions(real=folder))
    assert scores.set_values.keys() == {"psd"}
    assert list(scores.left_out) == ["bad\\udcff.mp4"]


def test_processes_that_share_the_videos_give_the_same_scores(folder: Path, tmp_path: Path):
    single = score_videos(folder, ["mhd_mse"], MeasureOptions(cache=tmp_path / "one", processes=1))
    parallel = score_videos(folder, ["mhd_mse"], MeasureOptions(cache=tmp_path / "two", processes=2, device="cpu"))
    assert parallel.rows == single.rows
    assert (single.n_measured, parallel.n_measured) == (3, 0)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_where_it_was(folder: Path, tmp_path: Path):
    """kill -9 while the second of several videos is measured: what was finished is not measured again."""
    for i in range(3, 6):
        encode(folder / f"a heron-{i}.mp4", moving(40, 512, 768, seed=i))
    command = [sys.executable, "-m", "pw", "score", str(folder), "metrics=mhd_mse", "processes=1"]
    child = subprocess.Popen([*command, f"out={tmp_path / 's.csv'}"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    lines = [child.stderr.readline() for _ in range(4)]
    child.send_signal(signal.SIGKILL)
    child.wait()
    n_done = len(list((tmp_path / "cache").rglob("mhd_mse-*.json")))
    assert lines[3].startswith("4/6")
    assert 4 <= n_done < 6
    assert not (tmp_path / "s.csv").exists()
    scores = score_videos(folder, ["mhd_mse"])
    assert scores.n_measured == 6 - n_done
    shutil.rmtree(tmp_path / "cache")
    assert score_videos(folder, ["mhd_mse"]).rows == scores.rows


def test_a_process_that_shares_work_ends_with_the_one_it_shares_it_with(tmp_path: Path):
    script = (
        "import os, subprocess, sys; from benchmarks.measure.score import PARENT\n"
        "module = 'benchmarks.measure.score'\n"
        "child = f'from {module} import end_with_parent as e; e(); import time; time.sleep(60)'\n"
        "env = {**os.environ, PARENT: str(os.getpid())}\n"
        "print(subprocess.Popen([sys.executable, '-c', child], env=env).pid, flush=True); import time; time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 900
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3] if Path("/proc").exists() else True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{folder}", "metrics=nique"], "unknown metric 'nique'; known: "),
        (["{folder}", "metrics="], "no metric given"),
        (["{folder}/none", "metrics=niqe"], "no such folder"),
        (
            ["{folder}", "metrics=niqe", "strikt=true"],
            "strikt=true: there is no option strikt; did you mean strict? there are ",
        ),
        (["{folder}", "metrics=mhd_mse", "mhd.k=3"], "mhd.k: no such setting; mhd has ks, reduction"),
        (["{folder}", "metrics=mhd_mse", "mhd.ks=three"], "mhd.ks=three: expected something like (3, 4, 5)"),
        (["{folder}", "metrics=mhd_mse", "mhd.reduction=max"], "reduction"),
        (["{folder}", "metrics=mhd_mse", "niqe.every=2"], "unknown family 'niqe'"),
        (["{folder}", "metrics=lpips", "real=nowhere"], "real=nowhere: no such folder"),
        (["{folder}", "metrics=mhd_mse", "memory=much"], "memory=much: expected bytes, such as 2GB"),
        (["", "metrics=mhd_mse"], "videos=: expected one folder"),
        (["{folder}", "metrics=mhd_mse", "memory=0"], "memory=0: expected bytes, such as 2GB"),
        (["{folder}", "metrics=mhd_mse", "threads=-1"], "threads=-1: a whole number from 0"),
        (["{folder}", "metrics=mhd_mse", "processes=x"], "processes=x: a whole number from 0"),
        (["{folder}", "metrics=mhd_mse", "cache=/dev/null"], "cache=/dev/null: cannot be written"),
        (["{folder}", "metrics=mhd_mse", "strict=maybe"], "strict=maybe: true or false"),
        (["{folder}", "metrics=mhd_mse", "device=tpu"], "device=tpu: expected auto, cpu, cuda:0"),
        (["{folder}", "metrics=mhd_mse", "real="], "real=: is empty; give it a value, or leave it out"),
        (["{folder}", "metrics=mhd_mse", "cache="], "cache=: is empty"),
        (["{folder}", "metrics=mhd_mse", "out="], "out=: is empty"),
        (["{folder}", "metrics=mhd_mse", "out={folder}"], "is a folder, expected a file"),
        (
            ["{folder}", "metrics=mhd_mse", "out=/dev/null/x/scores.csv"],
            "x/scores.csv: cannot be written (Not a directory)",
        ),
    ],
)
def test_a_mistake_in_the_call_is_named(folder: Path, capsys: pytest.CaptureFixture, words: list[str], message: str):
    assert run(*(word.format(folder=folder) for word in words)) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_videos_says_what_was_looked_for(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"no video \(\.mp4, .*\) among its 1 entries"):
        videos_of(tmp_path)


def test_every_group_names_metrics_and_a_family_has_one_mapping_of_settings():
    for names in GROUPS.values():
        assert set(names) <= set(METRICS)
    for row in METRICS.values():
        if row.family != "reference":
            assert all(row.settings == other.settings for other in METRICS.values() if other.family == row.family)
