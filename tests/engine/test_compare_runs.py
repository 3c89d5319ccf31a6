"""`make compare`: runs by signature, their differences as text, and verdicts on videos with known differences."""

from __future__ import annotations

import io
import json
import signal
import sys
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from benchmarks.measure.measurement import MeasureOptions
from benchmarks.measure.score import score_videos
from benchmarks.report.contact_sheet import side_by_side
from experiments.engine.compare.compare_runs import compare_sides, main, renderables
from experiments.engine.compare.sides import CompareOptions, Folder, config_difference, side
from pw import cli
from pw.io.arguments import ConfigError, parse
from pw.io.files import write_json
from pw.io.manifest import read_mark, write_mark
from pw.io.video import write_video
from pw.parallel.signals import Stopped
from pw.run.build import Run, build
from pw.sample.clip_folders import reference_folder, sample_folder
from pw.train.record import training_folder, write_config

BASE = ("stage=hires", "objective=flow", "sampling.num_steps=4")
CLIPS = 8


def clip(seed: int, size: tuple[int, int] = (24, 24), frames: int = 3) -> np.ndarray:
    """A smooth video (T, H, W, 3), uint8, far from 0 and 255."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]] / 6
    wave = 120 + 40 * np.sin(rows + seed) + 30 * np.cos(columns * (1 + seed % 3))
    return (wave[None, :, :, None] + rng.integers(0, 8, (frames, *size, 3))).astype(np.uint8)


def with_texture(video: np.ndarray, strength: int, seed: int) -> np.ndarray:
    """The video with independent noise per frame, which mHD counts as detail."""
    noise = np.random.default_rng(seed).integers(-strength, strength + 1, video.shape)
    return np.clip(video.astype(int) + noise, 0, 255).astype(np.uint8)


def folder_of(path: Path, strength: int, *, count: int = CLIPS, suffix: str = ".mkv", **kind) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        video = with_texture(clip(i, **kind), strength, 100 + i)
        write_video(path / f"{i:04d}{suffix}", video, lossless=suffix == ".mkv")
    return path


def make_run(outputs: Path, run: Run, strength: int, evaluation_seed: int | None = None) -> Run:
    """Write the files of a training and a sampling, without running them."""
    seed = run.seed if evaluation_seed is None else evaluation_seed
    write_config(run, training_folder(run, outputs))
    write_mark(training_folder(run, outputs) / "done.json", {"signature": run.training_signature}, [])
    videos = folder_of(sample_folder(run, outputs, seed), strength)
    write_config(run, videos, "sample")
    values = {"signature": run.sample_signature(seed), "training": run.training_signature, "clips": CLIPS, "seed": seed}
    write_mark(videos / "done.json", values, videos.glob("*.mkv"))
    real = reference_folder(run, outputs, seed) / "real"
    if not real.exists():
        folder_of(real, 10)
    return run


def comparison_of(tmp_path: Path, *words: str) -> dict:
    out = tmp_path / "out"
    assert main([*words, f"outputs={tmp_path}", f"out={out}", f"cache={tmp_path / 'cache'}"]) == 0
    return json.loads((out / "comparison.json").read_text())


def values_of(folder: Path, tmp_path: Path) -> dict[str, float]:
    return score_videos(folder, ["mhd_mse"], MeasureOptions(cache=tmp_path / "cache")).values("mhd_mse")


def error_of(tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words, f"outputs={tmp_path}", f"cache={tmp_path / 'cache'}"]) == 2
    return capsys.readouterr().err


class TestTwoFolders:
    def test_are_paired_by_name_whatever_made_them(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        a = folder_of(tmp_path / "a", 0, size=(64, 64))
        b = folder_of(tmp_path / "b", 30, size=(64, 64))
        result = comparison_of(tmp_path, f"a={a}", f"b={b}")
        row = result["metrics"]["mhd_mse"]
        assert (row["verdict"], row["design"], row["n"]) == ("better", "paired", CLIPS)
        assert row["diff"] == pytest.approx(row["b"] - row["a"])
        assert result["config"] == ["not both are runs of this suite, so no configurations are compared"]
        assert "not for other trainings" in result["unit"]
        assert "better" in capsys.readouterr().out
        text = (tmp_path / "out" / "comparison.md").read_text()
        assert "| mHD-MSE ↑ |" in text
        assert Image.open(tmp_path / "out" / "contact_sheet.png").width > 3 * 64
        page = (tmp_path / "out" / "index.html").read_text()
        assert "judged against" in page
        assert "<canvas" in page
        assert len(list((tmp_path / "out" / "page").glob("*.mp4"))) == 2 * CLIPS

    def test_say_what_has_no_partner_and_that_sizes_differ(self, tmp_path: Path) -> None:
        a = folder_of(tmp_path / "a", 5, size=(64, 64))
        b = folder_of(tmp_path / "b", 5, size=(96, 64), count=CLIPS - 1)
        result = comparison_of(tmp_path, f"a={a}", f"b={b}")
        assert result["left_out"]["mhd_mse"]["names_a"] == ["0007.mkv"]
        assert any("a has 64 x 64, 3 frames, 24 fps (8 videos); b has 64 x 96" in note for note in result["notes"])

    def test_without_a_common_name_are_not_called_paired(self, tmp_path: Path) -> None:
        a, b = (folder_of(tmp_path / name, 5, size=(64, 64)) for name in "ab")
        for path in sorted(b.iterdir()):
            path.rename(b / f"other {path.name}")
        result = comparison_of(tmp_path, f"a={a}", f"b={b}")
        assert result["metrics"]["mhd_mse"]["design"] == "independent"
        assert result["unit"].startswith("not paired")
        assert not (tmp_path / "out" / "contact_sheet.png").exists()
        assert "<canvas" not in (tmp_path / "out" / "index.html").read_text()

    def test_of_one_name_are_told_apart(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        a, b = (tmp_path / name / "videos" for name in "ab")
        for folder in (a, b):
            folder.parent.mkdir()
            folder_of(folder, 5, size=(64, 64))
        words = [f"a={a}", f"b={b}", f"outputs={tmp_path}", f"cache={tmp_path / 'cache'}"]
        assert main(words) == 0
        assert capsys.readouterr().out.startswith("a  a-videos\nb  b-videos, judged")
        assert (tmp_path / "compare" / "a-videos_b-videos" / "comparison.md").is_file()

    def test_of_equal_videos_show_no_difference(self, tmp_path: Path) -> None:
        a, b = (folder_of(tmp_path / name, 5, size=(64, 64)) for name in "ab")
        row = comparison_of(tmp_path, f"a={a}", f"b={b}")["metrics"]["mhd_mse"]
        assert (row["diff"], row["verdict"]) == (0, "no difference shown")

    def test_measured_differently_are_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        a, b = (folder_of(tmp_path / name, 5, size=(64, 64)) for name in "ab")
        for name, protocol in (("a", "mhd_mse/1"), ("b", "mhd_mse/2")):
            rows = "".join(f"{i:04d}.mkv,3,{0.1 + 0.01 * i}\n" for i in range(CLIPS))
            (tmp_path / f"{name}.csv").write_text(f"video,frames,mhd_mse\n{rows}")
            about = {"metrics": {"mhd_mse": {"protocol": protocol}}}
            (tmp_path / f"{name}.protocol.json").write_text(json.dumps(about))
        files = [f"{name}_scores={tmp_path / name}.csv" for name in "ab"]
        assert "metrics.mhd_mse.protocol is 'mhd_mse/1'" in error_of(tmp_path, capsys, f"a={a}", f"b={b}", *files)
        (tmp_path / "b.protocol.json").unlink()
        notes = comparison_of(tmp_path, f"a={a}", f"b={b}", *files)["notes"]
        assert any("no protocol file beside it" in note for note in notes)


class TestTwoRuns:
    def test_of_one_training_differ_in_their_sampling(self, tmp_path: Path) -> None:
        four = make_run(tmp_path, build([*BASE]), 2)
        eight = make_run(tmp_path, build([*BASE[:2], "sampling.num_steps=8"]), 12)
        # the training's config.yaml is of the last that was written, each folder's own of its sampling
        result = comparison_of(tmp_path, f"a={four.signature}", f"b={eight.signature}")
        assert result["config"] == [
            f"same training {four.training_signature}, other sampling",
            "sampling.num_steps: 4 → 8",
        ]
        row = result["metrics"]["mhd"]
        assert (row["verdict"], row["n"]) == ("better", CLIPS)
        assert result["metrics"]["psd"]["verdict"] == "not resolved"
        assert result["metrics"]["psd"]["diff"] < 0  # real has texture, too
        assert result["measured_by"]["psd"]["clips"]["n"] == CLIPS
        page = (tmp_path / "out" / "index.html").read_text()
        labels = ["real", f"a: {four.signature}", f"b: {eight.signature}"]  # no anchors were written
        assert f'"labels": {json.dumps(labels)}' in page

    def test_of_two_trainings_name_the_choices_that_differ(self, tmp_path: Path) -> None:
        a = make_run(tmp_path, build([*BASE]), 2)
        b = make_run(tmp_path, build(["objective=shortcut", "step_sampler=uniform", *BASE[2:], BASE[0]]), 6)
        result = comparison_of(tmp_path, f"a={a.training_signature}", f"b={b.training_signature[:6]}", "metrics=mhd")
        assert result["config"][0] == f"two trainings, {a.training_signature} and {b.training_signature}"
        assert "objective: flow → shortcut" in result["config"]
        assert "step_sampler: none → uniform" in result["config"]
        assert not any(line.startswith(("step_sampler.", "trainer")) for line in result["config"])

    @pytest.mark.slow
    def test_with_several_seeds_are_compared_over_seeds(self, tmp_path: Path) -> None:
        names: dict[str, list[str]] = {"a": [], "b": []}
        for seed in (0, 1, 2):
            for key, steps, strength in (("a", 4, 2), ("b", 2, 12 + seed)):
                run = build([*BASE[:2], f"sampling.num_steps={steps}", f"seed={seed}", f"train.updates={300 + steps}"])
                names[key].append(make_run(tmp_path, run, strength).training_signature)
        words = [*(f"{key}={','.join(names[key])}" for key in "ab"), "metrics=mhd,psd"]
        result = comparison_of(tmp_path, *words)
        assert result["metrics"]["mhd"]["n"] == 3
        assert result["metrics"]["psd"]["low"] is not None
        assert "over 3 seeds (6 trainings), psd first, the others by Holm behind it" in result["unit"]
        assert result["primary"] == "psd"
        other = comparison_of(tmp_path, *words, "primary=mhd")
        assert (other["primary"], other["metrics"]["mhd"]["p_adjusted"]) == ("mhd", other["metrics"]["mhd"]["p"])

    def test_of_one_seed_are_judged_by_the_first_metric_that_has_a_test(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        a, b = (make_run(tmp_path, build([*BASE, *more]), 2 + len(more)) for more in ([], ["optimizer.lr=1e-3"]))
        words = [f"a={a.signature}", f"b={b.signature}", "metrics=psd,mhd_mse,mhd"]
        result = comparison_of(tmp_path, *words)
        assert (result["primary"], "mhd_mse first" in result["unit"]) == ("mhd_mse", True)
        assert comparison_of(tmp_path, *words, "primary=mhd")["primary"] == "mhd"
        assert "primary=psd: is of the whole set and has no test with one seed" in error_of(
            tmp_path, capsys, *words, "primary=psd"
        )
        assert "primary=swd: is not among the metrics (psd, mhd_mse, mhd)" in error_of(
            tmp_path, capsys, *words, "primary=swd"
        )

    def test_with_several_seeds_are_compared_over_the_videos_that_both_have(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        runs = {
            "a": [make_run(tmp_path, build([*BASE, f"seed={seed}"]), 2 + seed) for seed in (0, 1)],
            "b": [make_run(tmp_path, build([*BASE, f"seed={seed}", "optimizer.lr=1e-3"]), 5) for seed in (0, 1)],
        }
        words = [f"{key}={','.join(run.signature for run in of)}" for key, of in runs.items()]
        missing = sample_folder(runs["b"][1], tmp_path) / "0003.mkv"
        sides = {key: values_of(sample_folder(of[1], tmp_path), tmp_path) for key, of in runs.items()}
        missing.unlink()
        assert f"{missing}: is gone; `make sample` and" in error_of(tmp_path, capsys, *words, "metrics=mhd_mse")
        done = missing.with_name("done.json")
        write_mark(done, {**read_mark(done), "clips": 3}, missing.parent.glob("*.mkv"))
        result = comparison_of(tmp_path, *words, "metrics=mhd_mse")
        left = [value for name, value in sides["a"].items() if name != "0003.mkv"]
        right = [value for name, value in sides["b"].items() if name != "0003.mkv"]
        first = [fmean(values_of(sample_folder(runs[key][0], tmp_path), tmp_path).values()) for key in "ab"]
        expected = (fmean(right) - fmean(left) + first[1] - first[0]) / 2
        assert result["metrics"]["mhd_mse"]["diff"] == pytest.approx(expected)
        assert result["left_out"]["mhd_mse"] == {
            "only_a": 1, "only_b": 0, "names_a": ["0003.mkv of seed 1"], "names_b": []
        }  # fmt: skip

    def test_of_other_evaluation_clips_are_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        a = make_run(tmp_path, build([*BASE]), 2)
        b = make_run(tmp_path, build([*BASE]), 2, evaluation_seed=5)
        words = [f"a={a.sample_signature(0)}", f"b={b.sample_signature(5)}"]
        assert "no clips can be paired" in error_of(tmp_path, capsys, *words)

    def test_of_a_sampling_that_is_not_on_record_say_so(self, tmp_path: Path) -> None:
        base = make_run(tmp_path, build([*BASE]), 2)
        other = build([*BASE, "sampling.start=0.9"])
        make_run(tmp_path, other, 4)
        write_config(base, training_folder(base, tmp_path))
        (sample_folder(other, tmp_path) / "config.yaml").unlink()
        result = comparison_of(tmp_path, f"a={base.signature}", f"b={other.signature}", "metrics=mhd")
        assert any(f"how {other.signature} was sampled is not recorded" in line for line in result["config"])
        write_config(other, sample_folder(other, tmp_path))
        result = comparison_of(tmp_path, f"a={base.signature}", f"b={other.signature}", "metrics=mhd")
        assert result["config"][1:] == ["sampling.start: 1.0 → 0.9"]


class TestAName:
    def test_that_is_wrong_lists_near_ones(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "there are none yet" in error_of(tmp_path, capsys, "a=1234abcd", "b=1234abcd")
        run = make_run(tmp_path, build([*BASE]), 2)
        wrong = run.signature[:-1] + ("0" if run.signature[-1] != "0" else "1")
        assert f"similar: {run.signature}" in error_of(tmp_path, capsys, f"a={wrong}", f"b={wrong}")

    def test_that_begins_several_is_not_guessed(self, tmp_path: Path) -> None:
        for name in ("ab12cd34", "ab99cd34"):
            write_json(tmp_path / "videos" / name / "done.json", {})
        with pytest.raises(ConfigError, match="'ab' matches 2 signatures: ab12cd34"):
            side("ab", tmp_path)

    def test_of_a_training_without_clips_comes_with_the_command(self, tmp_path: Path) -> None:
        run = build([*BASE])
        write_config(run, training_folder(run, tmp_path))
        write_mark(training_folder(run, tmp_path) / "done.json", {"signature": run.training_signature}, [])
        with pytest.raises(ConfigError, match='not sampled: `make sample args="stage=hires'):
            side(run.training_signature, tmp_path)


class TestWhatIsShown:
    @pytest.mark.parametrize("columns", [80, 100, 130])
    def test_has_whole_words_at_any_width(self, columns: int, tmp_path: Path) -> None:
        a, b = folder_of(tmp_path / "one", 2), folder_of(tmp_path / "two", 6)
        result = compare_sides(
            parse(CompareOptions, [f"a={a}", f"b={b}", "metrics=temporal_flickering,mhd,psd", f"real={a}"])
        )
        console = Console(width=columns, file=io.StringIO())
        for part in renderables(result, columns):
            console.print(part)
        output = console.file.getvalue()
        assert "…" not in output.replace(" … ", "")
        for words in ("worse", "better", "not resolved (of the set: needs seeds)"):
            assert words in output

    def test_is_in_the_order_that_was_asked_for(self, tmp_path: Path) -> None:
        words = [f"a={folder_of(tmp_path / 'one', 2)}", f"b={folder_of(tmp_path / 'two', 6)}"]
        comparison_of(tmp_path, *words, "metrics=mhd")  # which the cache has, from now on
        metrics = ["temporal_flickering", "mhd", "mhd_mse"]
        assert list(comparison_of(tmp_path, *words, f"metrics={','.join(metrics)}")["metrics"]) == metrics

    def test_names_a_metric_that_a_file_of_scores_lacks(self, tmp_path: Path) -> None:
        one = folder_of(tmp_path / "one", 2)
        (tmp_path / "mine.csv").write_text(
            "video,frames,mhd_mse\n" + "".join(f"{i:04d}.mkv,3,0.{i}1\n" for i in range(8))
        )
        words = (f"a={one}", f"b={one}", f"a_scores={tmp_path / 'mine.csv'}", "metrics=mhd_mse,temporal_flickering")
        note = f"temporal_flickering: not compared, no score in {tmp_path / 'mine.csv'}"
        assert note in comparison_of(tmp_path, *words)["notes"]


class TestAFileThatIsNotWhatItShouldBe:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ('{"training": "', "is truncated"),
            ("", "is truncated"),
            ("[1]", "is truncated, as after a crash, or not JSON"),
            ('{"done": true}', "has no checksum"),
            ('{"signature": "a", "training": "b", "clips": 8, "checksum": 1}', "is not as it was written"),
        ],
    )
    @pytest.mark.parametrize("source", ["its clips", "its training"])
    def test_is_named_with_what_would_do(
        self, text: str, says: str, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = make_run(tmp_path, build([*BASE]), 2)
        clips = sample_folder(run, tmp_path)
        (clips / "done.json").write_text(text)
        name = clips.name if source == "its clips" else run.training_signature
        message = error_of(tmp_path, capsys, f"a={name}", f"b={name}")
        assert f"{clips / 'done.json'}: {says}" in message
        assert "; `make sample` and `make ablation` make it again" in message

    @pytest.mark.parametrize(
        ("csv", "protocol", "says"),
        [
            ("video,frames,mhd_mse\n0000.mkv,3,many\n", "", "mhd_mse of 0000.mkv is 'many', expected a number"),
            ("video,frames,mhd_mse\n0000.mkv,3,nan\n", "", "mhd_mse of 0000.mkv is 'nan', expected a number"),
            ("video,frames,taste\n0000.mkv,3,1\n", "", "column taste is not a metric"),
            ("name,mhd_mse\nx,1\n", "", "no column `video`"),
            ("video,frames,mhd_mse\n0000.mkv,3,1\n", "{", "mine.protocol.json: is truncated"),
            ("video,frames,mhd_mse\n0000.mkv,3,1\n", "{}", "mine.protocol.json: holds no metrics"),
        ],
    )
    def test_of_scores_too(
        self, csv: str, protocol: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder_of(tmp_path / "one", 2)
        (tmp_path / "mine.csv").write_text(csv)
        if protocol:
            (tmp_path / "mine.protocol.json").write_text(protocol)
        words = (f"a={tmp_path / 'one'}", f"b={tmp_path / 'one'}", f"a_scores={tmp_path / 'mine.csv'}")
        message = error_of(tmp_path, capsys, *words)
        assert f"error: {tmp_path / 'mine'}" in message
        assert says in message

    def test_of_a_systems_note_too(self, tmp_path: Path) -> None:
        (tmp_path / "jobs").mkdir()
        (tmp_path / "jobs" / "a-0.json").write_text("{")
        with pytest.raises(ConfigError, match=r"a-0\.json: is truncated.*`make system` makes its video again"):
            config_difference(Folder(tmp_path), Folder(tmp_path))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a=x"], "b=… is missing"),
        (["a=x", "b=y", "metric=mhd"], "did you mean metrics?"),
        (["a=x", "b=y", "metrics=musick"], "unknown metric 'musick'"),
        (["a=x", "b=y", "primary=musick"], "unknown metric 'musick'"),
        (["a=x", "b=y", "real=/nowhere"], "real=/nowhere: no such folder"),
        (["a=x", "b=y", "a_scores=/nowhere.csv"], "no such file"),
        (["a=x", "b=y", "out=/dev/null/x"], "out=/dev/null/x: cannot be written"),
    ],
)
def test_a_mistake_in_the_call_is_named(words: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    assert main(words) == 2
    assert says in capsys.readouterr().err


def test_large_videos_are_also_shown_pixel_by_pixel(tmp_path: Path):
    wide = np.zeros((2, 200, 640, 3), np.uint8)
    wide[:, 100:, :, 0] = 255
    videos = {}
    for name in "ab":
        write_video(tmp_path / f"{name}.mkv", wide if name == "a" else wide[:, ::-1])
        videos[name] = {"x.mkv": tmp_path / f"{name}.mkv"}
    out = side_by_side(("a", videos["a"]), ("b", videos["b"]), tmp_path / "sheet.png")
    assert out is not None
    sheet = np.asarray(Image.open(out).convert("RGB"))
    # two frames and the 1:1 column of 300 px each; in the last, rows of a end red and rows of b begin red
    assert sheet.shape[1] == 30 + 3 * 304
    column = sheet[52:, -100]
    red = np.flatnonzero((column == (255, 0, 0)).all(1))
    assert len(red) == 2 * 47  # the cell is 94 px high: half of each


def test_two_calls_of_a_system_differ_in_what_was_asked(tmp_path: Path) -> None:
    for name, steps in (("few", 4), ("many", 50)):
        (tmp_path / name / "jobs").mkdir(parents=True)
        about = {"system": "wan2_2_5b", "width": 64, "steps": steps, "encoding": {"codec": "ffv1"}, "seed": 0}
        (tmp_path / name / "jobs" / "a-0.json").write_text(json.dumps(about))
    few, many = (Folder(tmp_path / name) for name in ("few", "many"))
    assert config_difference(few, many) == ["steps: 4 → 50"]
    assert config_difference(few, few) == ["wan2_2_5b twice, with the same requested settings"]


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (KeyboardInterrupt(), 130, "stopped by SIGINT; what was measured is kept"),
        (Stopped(signal.SIGQUIT), 131, "stopped by SIGQUIT; what was measured is kept"),
        (OSError(28, "No space left on device"), 2, "the disk is full (No space left on device); what was measured"),
    ],
)
def test_a_comparison_that_is_stopped_or_finds_a_full_disk_is_no_traceback(
    error: BaseException, status: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def scorer(*_: object) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "benchmarks.metrics.mhd", SimpleNamespace(scorer=scorer))
    one = folder_of(tmp_path / "one", 2)
    words = [f"a={one}", f"b={one}", "metrics=mhd_mse", f"outputs={tmp_path}", f"cache={tmp_path / 'cache'}"]
    assert cli.main(["compare", *words]) == status
    assert says in capsys.readouterr().err
