"""`pw score what=sets`: folders of videos to rows of sets, with features that are kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from odd_videos import BROKEN
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEModel

from benchmarks.measure import score
from benchmarks.measure.measurement import BrokenVideo
from benchmarks.measure.set_scoring import SetOptions, SetScoring
from benchmarks.metrics.set_distance import frechet, kernel_distance
from pw import cli
from pw.io.video import write_video

CLIPS = Path(__file__).parents[4] / "shared" / "data" / "clips"


class MeanColour(nn.Module):
    """Stands for FVD's I3D: three features, the mean of each colour from -1 to 1."""

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True) -> Tensor:
        return x.mean((2, 3, 4))


def coloured(path: Path, colour: tuple[int, int, int], frames: int = 16, fps: float = 24.0) -> np.ndarray:
    """A video of one colour; returns the features that it must have."""
    path.parent.mkdir(exist_ok=True)
    write_video(path, np.full((frames, 16, 24, 3), colour, np.uint8), fps)
    return np.array(colour) / 127.5 - 1


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The network; the cache and the folder of published weights are the test's own."""
    monkeypatch.setenv("PW_SCORES", str(tmp_path / "cache"))
    monkeypatch.setenv("PW_METRICS", str(tmp_path / "metrics"))
    monkeypatch.chdir(tmp_path)
    torch.jit.script(MeanColour()).save(tmp_path / "colour.pt")
    return tmp_path / "colour.pt"


@pytest.fixture
def folders(tmp_path: Path, weights: Path) -> tuple[np.ndarray, np.ndarray]:
    """real/ and made/ with 10 and 12 videos; their features."""
    colours = np.random.default_rng(0).integers(0, 256, (2, 12, 3))
    real = [coloured(tmp_path / "real" / f"real {i}.mkv", tuple(c)) for i, c in enumerate(colours[0, :10].tolist())]
    made = [coloured(tmp_path / "made" / f"made {i}.mkv", tuple(c)) for i, c in enumerate(colours[1].tolist())]
    return np.array(real), np.array(made)


def run(*words: str | Path) -> int:
    return cli.main(["score", "what=sets", *map(str, words)])


def rows(path: Path = Path("sets.json")) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["set"], row["metric"]): row for row in json.loads(path.read_text())["sets"]}


def test_a_row_is_a_set_with_all_that_its_number_depends_on(
    folders: tuple[np.ndarray, np.ndarray], weights: Path, capsys: pytest.CaptureFixture
):
    assert run("made", "real=real", f"weights={weights}", "seed=3") == 0
    fvd, kvd = rows()["made", "fvd"], rows()["made", "kvd"]
    assert fvd["value"] == pytest.approx(frechet(*folders), rel=1e-5)
    assert kvd["value"] == pytest.approx(kernel_distance(*folders), rel=1e-5)
    assert fvd["low"] < fvd["value"] < fvd["high"]
    assert (fvd["n_real"], fvd["n_generated"], fvd["dimensions"], fvd["seed"]) == (10, 12, 3, 3)
    assert (fvd["features"], fvd["protocol"], fvd["weights"]["published"]) == ("i3d", "sets/1", False)
    assert (fvd["extrapolated"] is None, fvd["extrapolated_low"], kvd["extrapolated"]) == (False, None, None)
    output = " ".join(capsys.readouterr().out.split())
    assert "made: fvd: 10 videos of 3 features, fewer than 50" in output
    assert "not the published ones" in output
    assert "mean" not in fvd


def test_the_middle_of_a_video_is_measured_at_its_own_rate(tmp_path: Path, weights: Path):
    pictures = np.zeros((26, 16, 24, 3), np.uint8)
    pictures[5:21] = 255  # frames 5 to 20 are the middle 16 of 26
    (tmp_path / "real").mkdir()
    write_video(tmp_path / "real" / "a.mkv", pictures)
    scoring = SetScoring(SetOptions(real=tmp_path / "real", weights=weights))
    assert scoring.features(tmp_path / "real", print).rows["a.mkv"] == pytest.approx([1, 1, 1])
    longer = SetScoring(SetOptions(real=tmp_path / "real", weights=weights, frames=20))
    assert longer.features(tmp_path / "real", print).rows["a.mkv"] == pytest.approx([2 * 16 / 20 - 1] * 3)


def test_features_are_kept_and_a_stopped_call_continues(tmp_path: Path, folders: Any, weights: Path):
    (tmp_path / "real" / "real 4.mkv").write_bytes(b"")
    options = SetOptions(real=tmp_path / "real", weights=weights, strict=True)
    with pytest.raises(BrokenVideo, match=r"real 4\.mkv"):
        SetScoring(options).features(tmp_path / "real", print)
    coloured(tmp_path / "real" / "real 4.mkv", (1, 2, 3))
    assert SetScoring(options).features(tmp_path / "real", print).n_measured == 6
    first = SetScoring(options).features(tmp_path / "real", print)
    assert (first.n_measured, len(first.rows)) == (0, 10)
    (tmp_path / "real" / "real 0.mkv").rename(tmp_path / "real" / "renamed.mkv")
    assert SetScoring(options).features(tmp_path / "real", print).n_measured == 0
    plain = SetOptions(real=tmp_path / "real", weights=weights, antialias=False)
    assert SetScoring(plain).features(tmp_path / "real", print).n_measured == 10


def test_a_damaged_entry_of_the_cache_is_measured_again(tmp_path: Path, folders: Any, weights: Path):
    options = SetOptions(real=tmp_path / "real", weights=weights)
    before = SetScoring(options).features(tmp_path / "real", print)
    entries = sorted((tmp_path / "cache").rglob("*.safetensors"))
    cut, changed, moved = entries[:3]
    cut.write_bytes(cut.read_bytes()[:-3])
    changed.write_bytes(changed.read_bytes()[:-1] + b"\x11")
    shutil.copy(entries[3], moved)
    after = SetScoring(options).features(tmp_path / "real", print)
    assert after.n_measured == 3
    assert all(np.array_equal(after.rows[name], row) for name, row in before.rows.items())


def test_other_weights_are_other_features(tmp_path: Path, folders: Any, weights: Path):
    SetScoring(SetOptions(real=tmp_path / "real", weights=weights)).features(tmp_path / "real", print)

    class Brighter(nn.Module):
        def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True) -> Tensor:
            return 2 * x.mean((2, 3, 4))

    torch.jit.script(Brighter()).save(weights)
    again = SetScoring(SetOptions(real=tmp_path / "real", weights=weights)).features(tmp_path / "real", print)
    assert again.n_measured == 10


def test_broken_and_short_videos_are_left_out_by_name(tmp_path: Path, folders: Any, weights: Path):
    for name, make in BROKEN.items():
        make(tmp_path / "made" / name)
    coloured(tmp_path / "made" / "short.mkv", (0, 0, 0), frames=15)
    assert run("made", "real=real", f"weights={weights}") == 0
    left_out = json.loads(Path("sets.json").read_text())["left_out"]["made"]
    assert set(left_out) >= {"short.mkv", "truncated.mp4"}
    assert left_out["short.mkv"] == "has 15 frames, 16 are needed"
    assert rows()["made", "fvd"]["n_generated"] == 12
    assert run("made", "real=real", f"weights={weights}", "strict=true") == 1


def test_sets_that_differ_in_rate_or_aspect_are_told(tmp_path: Path, folders: Any, weights: Path):
    for i in range(3):
        coloured(tmp_path / "slow" / f"{i}x.mkv", (i, 0, 0), fps=12.0)
    assert run("slow", "made", "real=real", f"weights={weights}") == 0
    assert "rates differ, which is measured, too: real 24; generated 12" in rows()["slow", "kvd"]["notes"]
    assert not any("differ, which" in note for note in rows()["made", "kvd"]["notes"])
    assert any("3 prompts, 8 are needed" in note for note in rows()["slow", "kvd"]["notes"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["real=real"], "no folder of videos to compare"),
        (["made"], "real=… is missing"),
        (["made", "real=gone"], "real=gone: no such folder"),
        (["gone", "real=real"], "gone: no such folder"),
        (["made", "real=real"], "i3d_torchscript.pt is missing: `pw weights what=metrics only=i3d` fetches it"),
        (["made", "real=real", "features=videomae"], "only=videomae"),
        (["made", "real=real", "weights=gone"], "weights=gone: no such file or folder"),
        (["made", "real=real", "weights=real"], "weights=real: is a folder; features=i3d takes a TorchScript file"),
        (["made", "real=real", "weights=real", "features=videomae"], "no config.json in it"),
        (["made", "real=real", "weights=notes.txt"], "weights=notes.txt: notes.txt is no TorchScript file"),
        (["made", "real=real", "features=jedi"], "one of i3d, videomae"),
    ],
)
def test_a_wrong_call_is_answered_in_a_line(
    words: list[str], says: str, tmp_path: Path, folders: Any, capsys: pytest.CaptureFixture
):
    (tmp_path / "notes.txt").write_text("not a network")
    assert run(*words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert says in error


def test_one_video_is_no_set(tmp_path: Path, folders: Any, weights: Path, capsys: pytest.CaptureFixture):
    coloured(tmp_path / "one" / "a.mkv", (0, 0, 0))
    coloured(tmp_path / "one" / "b.mkv", (0, 0, 0), frames=2)
    assert run("one", "real=real", f"weights={weights}") == 2
    assert "one: 1 videos with features, 2 are needed at least; b.mkv: has 2 frames" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fvd", "kvd"])
def test_it_is_never_a_metric_of_videos(name: str, tmp_path: Path, folders: Any, capsys: pytest.CaptureFixture):
    assert score.main(["made", f"metrics=mhd_mse,{name}"]) == 2
    assert (
        f"{name} compares two sets of videos and has no value per video: pw score what=sets" in capsys.readouterr().err
    )
    assert not Path("scores.csv").exists()


def test_another_file_is_not_taken_for_the_published_one(
    tmp_path: Path, folders: Any, weights: Path, capsys, monkeypatch
):
    monkeypatch.setenv("PW_METRICS_I3D", str(weights))
    assert run("made", "real=real") == 2
    assert f"truncated, {weights.stat().st_size} bytes, expected 51235320" in capsys.readouterr().err


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the shared clips are not here")
def test_real_clips_run_end_to_end_in_a_small_videomae(tmp_path: Path, weights: Path):
    config = VideoMAEConfig(
        **{"image_size": 32, "patch_size": 8, "num_frames": 16, "tubelet_size": 2, "hidden_size": 16},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32},
    )
    torch.manual_seed(0)
    VideoMAEModel(config).save_pretrained(tmp_path / "mae")
    for folder, names in {
        "a": ["dove_001", "dove_003", "carphone_pristine"],
        "b": ["dove_002", "carphone_distorted"],
    }.items():
        (tmp_path / folder).mkdir()
        for name in names:
            shutil.copy(CLIPS / f"{name}.mp4", tmp_path / folder)
    assert run("a", "b", "real=a", "features=videomae", "weights=mae") == 0
    assert rows()["a", "fvd"]["value"] == 0
    assert rows()["b", "fvd"]["value"] > 0
    assert rows()["b", "fvd"]["dimensions"] == 16
    assert any("aspects differ" in note for note in rows()["b", "fvd"]["notes"])
