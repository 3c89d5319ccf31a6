"""VBench's process as this side sees it: what it is asked, what is believed, and what is said when it misbehaves."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.measure.vbench_worker import Measurement, load_once, value_of
from benchmarks.metrics import GROUPS, METRICS
from benchmarks.metrics.flicker import scorer
from benchmarks.metrics.implementation import FrameView
from benchmarks.metrics.vbench import (
    MODES,
    all_prompts,
    available,
    digests,
    interpreter,
    missing_stems,
    score_videos,
    weights_of,
)
from benchmarks.stats.resampling import prompt_of
from pw.io.video import decode, probe, write_video

CLIPS = Path(__file__).parents[3].parent / "shared" / "data" / "clips"
SETTINGS = METRICS["imaging_quality"].settings
NAMES = ["dynamic_degree", "imaging_quality"]
# A worker that keeps to the contract: the value of a video is its number over 10, a dimension more is a half more.
STUB = """
import json, os, sys, time
request = json.load(open(sys.argv[1]))
out, videos, names = request["out"], request["videos"], request["dimensions"]
journal = open(out + ".journal", "w")
def say(**line):
    print(json.dumps(line), file=journal, flush=True)
def value(video, name):
    return videos.index(video) / 10 + names.index(name) / 2
def header():
    say(schema=1, versions={})
def measure(videos, names=names):
    for video in videos:
        for name in names:
            say(video=video, dimension=name, value=value(video, name))
def result(schema=1, videos=videos, names=names, **more):
    results = {n: {"score": 0.0, "per_video": {v: value(v, n) for v in videos}} for n in names}
    json.dump({"schema": schema, "results": results, **more}, open(out, "w"))
print("a worker at work", flush=True)
"""


class Setup:
    """Four videos in a folder, a stub of a worker, and what `score_videos` made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.videos = [folder / f"a heron-{i}.mp4" for i in range(4)]
        self.values: dict[str, Mapping[str, float]] = {}

    def score(self, script: str, names: list[str] = NAMES, **changed: str) -> dict[str, str]:
        worker = self.folder / "worker.py"
        worker.write_text(STUB + textwrap.dedent(script))
        return score_videos(self.videos, names, {**SETTINGS, **changed}, "cpu", self.keep, worker=worker)

    def keep(self, video: Path, values: Mapping[str, float]) -> None:
        assert video.name not in self.values
        self.values[video.name] = values


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setenv("PW_VBENCH_PYTHON", sys.executable)
    monkeypatch.setenv("PW_VBENCH_TIMEOUT", "20")
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("dynamic_degree", "imaging_quality", "motion_smoothness"):
        for file in weights_of(name):
            path = tmp_path / "cache" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"weights")
    return Setup(tmp_path)


WHOLE = {f"a heron-{i}.mp4": {"dynamic_degree": i / 10, "imaging_quality": i / 10 + 0.5} for i in range(4)}


class TestAWorkerThatKeepsToTheContract:
    def test_gives_each_video_all_its_dimensions(self, setup: Setup) -> None:
        assert setup.score("header(); measure(videos); result()") == {}
        assert setup.values == WHOLE

    def test_is_asked_for_what_the_registry_says(self, setup: Setup) -> None:
        script = f"""
            import shutil
            shutil.copy(sys.argv[1], {str(setup.folder / "request.json")!r})
            header(); measure(videos); result()
            json.dump(dict(os.environ), open({str(setup.folder / "environ.json")!r}, "w"))
        """
        setup.score(script)
        request = json.loads((setup.folder / "request.json").read_text())
        assert request["videos"] == [str(video) for video in setup.videos]
        assert request["dimensions"] == NAMES
        assert request["imaging_quality_preprocessing_mode"] == "longer"
        assert request["mode"] == "custom_input"
        assert request["device"] == "cpu"
        assert request["download"] is False
        assert json.loads((setup.folder / "environ.json").read_text())["CUDA_VISIBLE_DEVICES"] == ""

    def test_hands_a_video_on_before_the_next_is_measured(self, setup: Setup) -> None:
        seen = setup.folder / "seen"
        script = f"""
            header(); measure(videos[:1])
            while not os.path.exists({str(seen)!r}):
                time.sleep(0.02)
            measure(videos[1:]); result()
        """
        worker = setup.folder / "worker.py"
        worker.write_text(STUB + textwrap.dedent(script))
        score_videos(setup.videos, NAMES, SETTINGS, "cpu", lambda video, values: seen.touch(), worker=worker)
        assert seen.exists()

    def test_may_give_up_a_dimension_and_the_videos_have_the_others(self, setup: Setup) -> None:
        script = """
            header(); say(dimension="dynamic_degree", failed="no RAFT"); measure(videos, ["imaging_quality"])
            result(names=["imaging_quality"])
        """
        assert setup.score(script) == {"dynamic_degree": "no RAFT"}
        assert setup.values["a heron-1.mp4"] == {"imaging_quality": 0.6}

    def test_may_give_up_a_dimension_midway_and_no_video_waits_for_it(self, setup: Setup) -> None:
        script = """
            header()
            for video in videos:
                say(video=video, dimension="imaging_quality", value=0.25)
            say(dimension="dynamic_degree", failed="out of memory")
            results = {"imaging_quality": {"per_video": dict.fromkeys(videos, 0.25)}}
            json.dump({"schema": 1, "results": results}, open(out, "w"))
        """
        assert setup.score(script) == {"dynamic_degree": "out of memory"}
        assert setup.values == {video.name: {"imaging_quality": 0.25} for video in setup.videos}

    def test_names_a_video_that_fails_and_keeps_the_others(self, setup: Setup) -> None:
        script = """
            header(); measure(videos[1:])
            for name in names:
                say(video=videos[0], dimension=name, value=None, why="OutOfMemoryError", error=True)
            result(videos=videos[1:])
        """
        missing = setup.score(script)
        assert missing["imaging_quality"] == "imaging_quality failed on 1 of 4 videos: a heron-0.mp4: OutOfMemoryError"
        assert setup.values == {**WHOLE, "a heron-0.mp4": {}}

    def test_may_leave_a_video_out_by_vbenchs_rules(self, setup: Setup) -> None:
        script = """
            header(); measure(videos[1:])
            for name in names:
                say(video=videos[0], dimension=name, value=None, why="no object", error=False)
            result(videos=videos[1:])
        """
        assert setup.score(script) == {}
        assert setup.values["a heron-0.mp4"] == {}


class TestAWorkerThatDoesNot:
    @pytest.mark.parametrize(
        ("script", "message"),
        [
            ("header(); measure(videos)", "exit status 0, but without a result"),
            ("say(schema=2); measure(videos); result()", "writes schema 2, expected 1"),
            ("header(); measure(videos); result(schema=2)", "writes schema 2, expected 1"),
            ("header(); measure(videos[:3]); result(videos=videos[:3])", "on 3 of 4 videos only"),
            ("header(); measure(videos); result(videos=videos[:3])", "other values of dynamic_degree"),
            ("header(); say(video=videos[0], dimension=names[0], value=float('nan'))", "of nan, which is no value"),
            ("header(); say(video=videos[0], dimension=names[0], value=74.2)", "of 74.2, which is no value"),
            ("header(); say(video='/other.mp4', dimension=names[0], value=0.1)", "/other.mp4, which was not requested"),
            ("header(); say(video=videos[0], dimension='color', value=0.1)", "color, which was not requested"),
            ("header(); say(video=videos[0], dimension=names[0], value='high')", "writes an invalid line"),
            ("header(); print('[1,', file=journal, flush=True)", "writes an invalid line: [1,"),
            ("header(); measure(videos); open(out, 'w').write('{')", "writes an invalid result"),
            ("header(); measure(videos); open(out, 'w').write('[]')", "writes an invalid result"),
            ("header(); sys.exit(3)", "exit status 3 after 0 of 4 videos"),
            ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        ],
    )
    def test_is_named_with_the_end_of_its_log(self, setup: Setup, script: str, message: str) -> None:
        missing = setup.score(script)
        assert list(missing) == NAMES
        assert message in missing["dynamic_degree"]
        assert "a worker at work" in missing["dynamic_degree"]
        assert "VBench's worker" in missing["imaging_quality"]

    def test_and_dies_midway_has_the_videos_it_measured_kept(self, setup: Setup) -> None:
        missing = setup.score("header(); measure(videos[:2]); os.kill(os.getpid(), 9)")
        assert "killed by signal 9 after 2 of 4 videos" in missing["dynamic_degree"]
        assert setup.values == {name: WHOLE[name] for name in list(WHOLE)[:2]}

    def test_and_is_silent_is_ended_with_what_it_started(self, setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PW_VBENCH_TIMEOUT", "1")
        script = f"""
            import subprocess
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            print(child.pid, file=open({str(setup.folder / "child")!r}, "w"), flush=True)
            header(); measure(videos[:1]); time.sleep(600)
        """
        missing = setup.score(script)
        assert "wrote nothing for 1 s" in missing["imaging_quality"]
        assert list(setup.values) == ["a heron-0.mp4"]
        assert not _alive(int((setup.folder / "child").read_text()))

    def test_does_not_outlive_an_interruption_here(self, setup: Setup) -> None:
        script = f"""
            print(os.getpid(), file=open({str(setup.folder / "pid")!r}, "w"), flush=True)
            header(); measure(videos[:1]); time.sleep(60)
        """

        def interrupt(video: Path, values: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

        setup.keep = interrupt  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            setup.score(script)
        assert not _alive(int((setup.folder / "pid").read_text()))


class TestWhatIsMissing:
    def test_is_the_environment_and_the_command_that_makes_it(
        self, setup: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PW_VBENCH_PYTHON", str(tmp_path / "python"))
        missing = setup.score("")
        assert list(missing) == NAMES
        assert "does not exist: set by PW_VBENCH_PYTHON" in missing["dynamic_degree"]
        monkeypatch.delenv("PW_VBENCH_PYTHON")
        monkeypatch.setattr("benchmarks.metrics.vbench.ROOT", tmp_path)
        assert "`make vbench-env` creates it" in available(NAMES, SETTINGS)["dynamic_degree"]

    def test_is_the_file_and_where_it_comes_from_and_the_others_are_measured(self, setup: Setup) -> None:
        script = "header(); measure(videos); result()"
        missing = setup.score(script, ["dynamic_degree", "aesthetic_quality", "imaging_quality"])
        assert list(missing) == ["aesthetic_quality"]
        assert "clip_model/ViT-L-14.pt (CLIP ViT-L/14)" in missing["aesthetic_quality"]
        assert setup.values == WHOLE

    def test_may_be_fetched_by_vbench_if_it_is_told_to(self, setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PW_VBENCH_DOWNLOAD", "1")
        assert available(["aesthetic_quality"], SETTINGS) == {}

    def test_is_a_package_where_no_index_has_it(self, setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PW_VBENCH_DOWNLOAD", "1")
        assert "detectron2" in available(["color"], {**SETTINGS, "mode": "vbench_standard"})["color"]

    def test_is_a_prompt_of_vbench_where_a_dimension_is_made_for_them(self, setup: Setup) -> None:
        assert "vbench.mode=vbench_standard" in available(["scene"], SETTINGS)["scene"]

    @pytest.mark.parametrize("key", ["mode", "imaging_quality_preprocessing_mode"])
    def test_is_a_setting_that_vbench_has(self, setup: Setup, key: str) -> None:
        with pytest.raises(ValueError, match=rf"vbench\.{key}=best: expected one of "):
            setup.score("", **{key: "best"})


class TestVBenchsPrompts:
    @pytest.fixture
    def standard(self, setup: Setup, monkeypatch: pytest.MonkeyPatch) -> Setup:
        """An environment with three entries of VBench's list, two of one prompt."""
        folder = setup.folder / "env" / "lib" / "python3.11" / "site-packages" / "vbench"
        folder.mkdir(parents=True)
        entries = [
            {"prompt_en": "a heron", "dimension": ["dynamic_degree"]},
            {"prompt_en": "a cat", "dimension": ["imaging_quality"]},
            {"prompt_en": "a heron", "dimension": ["motion_smoothness"]},
        ]
        (folder / "VBench_full_info.json").write_text(json.dumps(entries))
        (setup.folder / "env" / "bin").mkdir()
        (setup.folder / "env" / "bin" / "python").symlink_to(sys.executable)
        monkeypatch.setenv("PW_VBENCH_PYTHON", str(setup.folder / "env" / "bin" / "python"))
        return setup

    def test_are_read_from_its_package(self, standard: Setup) -> None:
        assert all_prompts() == {"a heron": ("dynamic_degree", "motion_smoothness"), "a cat": ("imaging_quality",)}

    def test_are_what_a_file_is_named_after(self) -> None:
        assert prompt_of("a heron-12.mp4") == "a heron"
        assert prompt_of("a blue-eyed heron.mp4") == "a blue-eyed heron"

    def test_say_which_dimensions_a_video_has(self, standard: Setup) -> None:
        standard.videos[0] = standard.folder / "a cat-0.mp4"
        script = """
            header(); cat, herons = videos[0], videos[1:]
            say(video=cat, dimension="imaging_quality", value=0.5)
            say(video=cat, dimension="dynamic_degree", value=None, why="not of this prompt", error=False)
            for heron in herons:
                say(video=heron, dimension="imaging_quality", value=None, why="not of this prompt", error=False)
                say(video=heron, dimension="dynamic_degree", value=1.0)
            per_video = {"imaging_quality": {cat: 0.5}, "dynamic_degree": dict.fromkeys(herons, 1.0)}
            results = {name: {"per_video": found} for name, found in per_video.items()}
            json.dump({"schema": 1, "results": results}, open(out, "w"))
        """
        assert standard.score(script, mode="vbench_standard") == {}
        assert standard.values["a cat-0.mp4"] == {"imaging_quality": 0.5}
        assert standard.values["a heron-3.mp4"] == {"dynamic_degree": 1.0}

    def test_need_no_worker_for_videos_that_have_none_of_the_dimensions(self, standard: Setup) -> None:
        assert standard.score("sys.exit(9)", ["imaging_quality"], mode="vbench_standard") == {}
        assert standard.values == {video.name: {} for video in standard.videos}

    def test_are_asked_of_a_name_that_is_none(self, standard: Setup) -> None:
        standard.videos[2] = standard.folder / "clip_0003.mp4"
        missing = standard.score("", mode="vbench_standard")
        assert "1 videos, such as 'clip_0003.mp4', are not named PROMPT-NUMBER" in missing["dynamic_degree"]

    def test_are_five_videos_each_and_those_absent_are_listed(self, standard: Setup) -> None:
        stems = [f"a heron-{i}" for i in (0, 1, 2, 4)]
        assert missing_stems(["dynamic_degree"], stems) == {"dynamic_degree": ["a heron-3"]}
        assert missing_stems(["imaging_quality"], stems) == {"imaging_quality": [f"a cat-{i}" for i in range(5)]}


class TestInsideTheWorker:
    """What it does around VBench's functions, which are here functions of a full-info file as VBench's are."""

    @pytest.fixture
    def measurement(self, tmp_path: Path) -> Measurement:
        entries = [
            {"prompt_en": "a heron", "dimension": ["scene"], "auxiliary_info": {"scene": {"scene": "lake"}}},
            {"prompt_en": "a heron", "dimension": ["color"], "auxiliary_info": {"color": "red"}},
        ]
        (tmp_path / "full_info.json").write_text(json.dumps(entries))
        return Measurement(
            {
                "videos": [str(tmp_path / f"a heron-{i}.mov") for i in range(5)],
                "dimensions": ["scene", "color", "imaging_quality"],
                "mode": "vbench_standard",
                "device": "cpu",
                "cache": str(tmp_path),
                "full_info": str(tmp_path / "full_info.json"),
                "out": str(tmp_path / "result.json"),
            }
        )

    def measure(self, measurement: Measurement, name: str, vbench: Callable[[dict], Any], videos: int = 1) -> list:
        """The journal of a dimension measured by `vbench`, a function of the full-info file's only entry."""
        for number, video in enumerate(measurement.request["videos"][:videos]):
            if name not in measurement.failed:
                measurement.measure_video(
                    number, video, {name: lambda path: vbench(*json.loads(Path(path).read_text()))}
                )
        journal = Path(f"{measurement.out}.journal").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k not in ("video", "dimension")} for line in journal]

    def test_vbench_gets_the_prompt_what_is_known_of_it_and_an_mp4(self, measurement: Measurement) -> None:
        seen: list[dict] = []

        def vbench(entry: dict) -> list:
            seen.append(entry)
            assert Path(entry["video_list"][0]).resolve() == Path(measurement.request["videos"][0])
            return [{"video_results": True}]

        assert self.measure(measurement, "scene", vbench) == [{"value": 1.0}]
        assert seen[0]["prompt_en"] == "a heron"
        assert seen[0]["dimension"] == ["scene"]
        assert seen[0]["auxiliary_info"] == {"scene": {"scene": "lake"}}
        assert [Path(path).name for path in seen[0]["video_list"]] == ["a heron-0.mp4"]
        assert not Path(seen[0]["video_list"][0]).exists(), "a video's folder goes away with it"

    def test_a_dimension_that_is_not_the_prompts_is_left_out(self, measurement: Measurement) -> None:
        (message,) = self.measure(measurement, "imaging_quality", lambda entry: [{"video_results": 50.0}])
        assert message == {"value": None, "why": "imaging_quality is not measured on this prompt", "error": False}

    def test_a_video_whose_object_no_frame_shows_is_left_out_as_vbench_does(self, measurement: Measurement) -> None:
        (message,) = self.measure(measurement, "color", lambda entry: [{"video_results": 1 / 0}])
        assert message["value"] is None
        assert message["error"] is False

    def test_a_dimension_that_fails_on_three_videos_from_the_first_on_is_given_up(
        self, measurement: Measurement
    ) -> None:
        def vbench(entry: dict) -> list:
            raise RuntimeError("CUDA\nout of memory")

        *errors, failed = self.measure(measurement, "scene", vbench, videos=5)
        assert errors == [{"value": None, "why": "RuntimeError: CUDA out of memory", "error": True}] * 3
        assert "scene failed on the first 3 videos" in failed["failed"]

    def test_a_dimension_that_fails_on_some_videos_is_not(self, measurement: Measurement) -> None:
        values = iter([0.5, float("nan"), float("nan"), float("nan"), 0.25])
        message = self.measure(measurement, "scene", lambda entry: [{"video_results": next(values)}], videos=5)
        assert [line["value"] for line in message] == [0.5, None, None, None, 0.25]
        assert message[1]["why"] == "ValueError: VBench's result is nan"

    def test_a_value_is_the_mean_over_clips_on_vbenchs_scale(self) -> None:
        assert value_of("dynamic_degree", [{"video_results": True}, {"video_results": False}]) == 0.5
        assert value_of("imaging_quality", [{"video_results": 50.0}, {"video_results": 70.0}]) == 0.6
        with pytest.raises(ValueError, match="no result"):
            value_of("scene", [])

    def test_a_network_is_built_once_for_the_same_arguments(self) -> None:
        owner = SimpleNamespace(__name__="owner", build=lambda *args, **kwargs: [args, kwargs])
        load_once(owner, "build")
        load_once(owner, "build")
        assert owner.build("B/32", device="cpu") is owner.build("B/32", device="cpu")
        assert owner.build("B/32", device="cpu") is not owner.build("L/14", device="cpu")


def test_every_dimension_of_the_registry_has_its_weights_listed():
    assert {name for name in GROUPS["vbench16"] if not weights_of(name)} == {"temporal_flickering"}
    assert SETTINGS["mode"] in MODES


def test_weights_are_known_by_their_digest_and_another_file_has_another(setup: Setup):
    (file, digest), *_ = digests("imaging_quality").items()
    path = setup.folder / "cache" / file
    path.write_bytes(b"others")
    os.utime(path, ns=(1, 1))
    assert digests("imaging_quality")[file] != digest
    assert digests("aesthetic_quality") == {}


def _alive(process: int) -> bool:
    """Whether a process runs; one that ended and was not asked after does not."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.1)
    return True


@pytest.fixture(scope="module")
def real_environment() -> Path:
    if not any(folder.is_dir() for folder in interpreter().parent.parent.glob("lib/python3.*/site-packages/vbench")):
        pytest.skip("needs VBench's environment: make vbench-env")
    return interpreter()


class TestTheRealWorker:
    def test_gives_temporal_flickering_as_it_is_computed_here_and_names_what_it_cannot_read(
        self, real_environment: Path, tmp_path: Path
    ) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (9, 31, 33, 3), dtype=np.uint8)
        written = [tmp_path / "100% noise: a_b-3.mkv", tmp_path / "one colour.mkv"]
        write_video(written[0], noise)
        write_video(written[1], np.full((3, 16, 16, 3), 77, np.uint8))
        videos = [*written, *(p for p in (CLIPS / "carphone_pristine.mp4", CLIPS / "dove_002.mp4") if p.is_file())]
        broken = tmp_path / "broken.mp4"
        broken.write_bytes(b"no video")
        values: dict[Path, Mapping[str, float]] = {}
        missing = score_videos([*videos, broken], ["temporal_flickering"], SETTINGS, "cpu", values.__setitem__)
        assert "failed on 1 of" in missing["temporal_flickering"]
        assert "broken.mp4: ValueError: VBench gives no result" in missing["temporal_flickering"]
        assert values.pop(broken) == {}
        scores = {path: row["temporal_flickering"] for path, row in values.items()}
        assert scores == pytest.approx({path: _flickering(path) for path in videos}, abs=1e-6)

    def test_has_the_prompts_of_the_paper(self, real_environment: Path) -> None:
        prompts = all_prompts()
        assert len(prompts) == 944
        assert sum("human_action" in dimensions for dimensions in prompts.values()) == 100


def _flickering(path: Path) -> float:
    video = scorer(["temporal_flickering"], {}, "cpu").begin(probe(path))
    frames, previous = [], None
    for frame in decode(path):
        if video.wants(frame.index):
            frames.append(video.frame(FrameView(frame.index, frame.image, previous)))
        previous = frame.image
    return video.result(frames)["temporal_flickering"]
