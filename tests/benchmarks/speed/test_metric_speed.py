"""`make bench what=metrics` measures what it says, and tells a mistake in the call."""

from __future__ import annotations

import itertools
import json
import resource
from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed import metric_speed as bench
from benchmarks.speed.metric_speed import BenchRow

DATA = Path(__file__).parents[4] / "shared" / "data"


class TestTheFrames:
    def test_are_the_same_for_the_same_seed(self) -> None:
        assert np.array_equal(bench.texture(60, 90, 3), bench.texture(60, 90, 3))
        assert not np.array_equal(bench.texture(60, 90, 3), bench.texture(60, 90, 4))

    def test_are_textured_and_no_pure_noise(self) -> None:
        """Of pure noise, neighbours would not be correlated; of a smooth picture, almost entirely."""
        grey = bench.texture(200, 300)[..., 0].astype(float)
        assert 0.6 < np.corrcoef(grey[:, 1:].ravel(), grey[:, :-1].ravel())[0, 1] < 0.99
        assert grey.std() > 30

    def test_of_a_clip_are_views_that_move_over_one_picture(self) -> None:
        frames = bench.pan(4, 20, 30)
        assert frames.shape == (4, 20, 30, 3)
        for frame, next_frame in itertools.pairwise(frames):
            assert np.array_equal(next_frame[:-2, :-1], frame[2:, 1:])
        assert np.shares_memory(frames[0], frames[3])


class TestRivals:
    def test_run_in_turn_and_the_first_round_is_not_counted(self) -> None:
        calls: list[str] = []

        def rival(name: str, value: float) -> float:
            calls.append(name)
            if len(calls) <= 2:
                bench.time.sleep(0.2)
            return value

        values, seconds = bench.time_rivals({"a": lambda: rival("a", 1.0), "b": lambda: rival("b", 2.0)}, 3)
        assert calls == ["a", "b"] * 4
        assert values == {"a": 1.0, "b": 2.0}
        assert max(seconds.values()) < 0.1

    def test_of_mhd_is_the_definition(self) -> None:
        """By hand, 8 x 8 and k = 3: the small picture is the mean of the middle four pixels."""
        frames = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
        unit = frames[0] / 255
        expected = ((unit - unit[3:5, 3:5].mean(axis=(0, 1))) ** 2).mean()
        assert bench.interpolated_mhd(frames, [3]) == pytest.approx(expected, rel=1e-5)

    def test_of_mhd_give_one_value(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench, "HD", (120, 160))
        monkeypatch.setattr(bench, "FRAMES", 2)
        rows = {row.what: row for row in bench.bench_mhd(1)}
        assert rows["largest relative difference"].met
        assert rows["faster than the whole clip"].value > 0
        assert rows["faster at equal memory"].aim == 1.5


class TestNiqe:
    def test_without_its_statistics_names_the_command(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PW_METRICS", str(tmp_path))
        (row,) = bench.bench_niqe(1)
        assert row.value is None
        assert "make weights what=metrics" in row.note

    @pytest.mark.skipif(not (DATA / "niqe").is_dir(), reason="no ../shared/data")
    def test_is_held_against_pyiqa_or_says_how_to_install_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PW_METRICS", str(DATA / "niqe"))
        monkeypatch.setattr(bench, "HD", (288, 288))
        rows = {row.what: row for row in bench.bench_niqe(1)}
        faster = rows["faster than pyiqa"]
        if faster.value is None:
            assert faster.note == "pyiqa is not installed: `make iqa` installs it"
        else:
            assert faster.met
            assert rows["difference"].met


class TestTheStream:
    @pytest.mark.slow
    def test_is_a_process_of_its_own_that_scores_the_clip(self, tmp_path: Path) -> None:
        """A process with numpy takes more than 20 MB; a frame takes 37 kB. Linux counts the memory of the process that
        starts it, too."""
        own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        (tmp_path / "videos").mkdir()
        bench.write_clip(tmp_path / "videos" / "pan.mp4", 3, (96, 128))
        seconds, peak = bench.score_in_a_process(tmp_path / "videos", "mhd_mse", tmp_path / "out")
        assert 0 < seconds < 300
        assert 2e7 < peak < max(3e9, 1.2 * own_peak)
        assert (tmp_path / "out" / "scores.csv").read_text().splitlines()[1].startswith("pan.mp4,3,")

    def test_that_fails_says_what_it_said(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match="no such folder"):
            bench.score_in_a_process(tmp_path / "nothing", "mhd_mse", tmp_path / "out")


class TestAnAim:
    @pytest.mark.parametrize(
        ("value", "aim", "sense", "met"),
        [
            (4.0, 4.0, "least", True),
            (3.9, 4.0, "least", False),
            (0.9, 1.0, "most", True),
            (1.1, 1.0, "most", False),
            (None, 1.0, "most", None),
            (1.0, None, "", None),
        ],
    )
    def test_is_met_or_missed(self, value: float | None, aim: float | None, sense: str, met: bool | None) -> None:
        assert BenchRow("mhd", "speed", value, "x", aim, sense).met is met


class TestTheCall:
    @pytest.mark.parametrize(
        ("word", "says"),
        [
            ("frame=3", "frame=3: there is no option frame; did you mean frames? there are only, frames, repeats, out"),
            ("niqe", "'niqe': write key=value"),
            ("frames=0", "frames=0: a whole number from 1"),
            ("repeats=x", "repeats=x: a whole number from 1"),
            ("only=mhd,lpips", "only=mhd,lpips: one of mhd, niqe, stream"),
            ("out=/dev/null/x/bench.json", "bench.json: cannot be written"),
        ],
    )
    def test_with_a_mistake_is_told_so(self, word: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert bench.main([word]) == 2
        assert says in capsys.readouterr().err

    def test_shows_everything_in_80_columns(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        bench.show([
            BenchRow("stream", "mhd_mse,niqe: 121 4K frames", 0.5698, "frames/s"),
            BenchRow("mhd", "largest relative difference", 2.328e-07, "", 1e-10, "most"),
        ])  # fmt: skip
        output = capsys.readouterr().out
        assert "…" not in output
        assert "missed" in output

    def test_writes_what_it_shows(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in bench.THREADS:
            monkeypatch.setenv(name, "1")
        monkeypatch.setenv("PW_METRICS", str(tmp_path))
        out = tmp_path / "bench.json"
        assert bench.main(["only=niqe", "repeats=1", f"out={out}"]) == 0
        report = json.loads(out.read_text())
        assert [row["value"] for row in report["measured"]] == [None]
        assert {"device", "cores", "torch", "threads"} <= set(report)
        output = capsys.readouterr().out
        assert str(out) in output
        assert "make weights" in output
