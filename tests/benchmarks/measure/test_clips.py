"""Folders of clips to scores, and which scores may share a table."""

from __future__ import annotations

import copy
import csv
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from benchmarks.measure import clips
from benchmarks.measure.clips import check_contracts, score_folder, table_contract
from benchmarks.metrics import GROUPS, protocols, reference
from benchmarks.metrics.implementation import Batch, scorer_of
from pw.io.manifest import check
from pw.io.video import to_float, write_video


def folder(path: Path, n: int, size: int = 16, seed: int = 0) -> Path:
    path.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(n):
        write_video(path / f"{i:04d}.mkv", rng.integers(0, 256, (3, size, size, 3), dtype=np.uint8))
    return path


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {
        "videos": folder(tmp_path / "videos", 4, seed=1),
        "real": folder(tmp_path / "real", 4, seed=2),
        "structure": folder(tmp_path / "structure", 4, size=4, seed=3),
        "solution": folder(tmp_path / "solution", 2, seed=4),
    }


def run(folders: dict[str, Path], out: Path, **changed: object) -> dict:
    kwargs = {
        **folders,
        "n_solutions": None,
        "metrics": list(GROUPS["clips"]),
        "contract": {"scale": "tiny", "seed": 0},
        **changed,
    }
    return score_folder(kwargs.pop("videos"), out, **kwargs)


def test_scores_are_those_of_the_clips_in_memory(folders: dict[str, Path], tmp_path: Path):
    result = run(folders, tmp_path / "out")
    rng = np.random.default_rng(1), np.random.default_rng(2)
    video, real = (np.stack([g.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8) for _ in range(4)]) for g in rng)
    import torch

    batch = Batch(torch.from_numpy(to_float(video)), real=torch.from_numpy(to_float(real)))
    for name in ("psd", "swd", "mhd", "mhd_ratio"):
        in_memory = scorer_of([name])
        in_memory.add(batch)
        assert result["metrics"][name] == pytest.approx(in_memory.result(), rel=1e-5)


def test_files_hold_a_row_per_video_and_the_contract(folders: dict[str, Path], tmp_path: Path):
    result = run(folders, tmp_path / "out")
    assert result.items() <= check(tmp_path / "out" / "scores.json").items()
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert list(rows[0]) == ["video", "frames", "mhd", "solution_gap", "anchor_fidelity"]
    assert [row["video"] for row in rows] == ["0000", "0001", "0002", "0003"]
    assert {row["frames"] for row in rows} == {"3"}
    assert np.mean([float(row["mhd"]) for row in rows]) == pytest.approx(result["metrics"]["mhd"])
    assert result["contract"]["scale"] == "tiny"
    assert result["contract"]["metrics"]["psd"]["protocol"] == "psd/2"
    assert result["contract"]["clips"]["n"] == 4
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".part"]


def test_fewer_solutions_are_paired_by_name_and_counted(folders: dict[str, Path], tmp_path: Path):
    result = run(folders, tmp_path / "out")
    assert result["n_videos"]["solution_gap"] == 2
    assert result["n_videos"]["psd"] == 4
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert [bool(row["solution_gap"]) for row in rows] == [True, True, False, False]


def test_a_metric_without_its_folder_is_absent(folders: dict[str, Path], tmp_path: Path):
    result = run(folders, tmp_path / "out", structure=None, solution=None)
    assert set(result["metrics"]) == {"psd", "swd", "mhd", "mhd_ratio"}


def test_the_clip_hash_follows_the_real_pixels_not_the_arm(folders: dict[str, Path], tmp_path: Path):
    first = run(folders, tmp_path / "a")["contract"]["clips"]
    second = run(folders, tmp_path / "b", videos=folder(tmp_path / "other", 4, seed=9))["contract"]["clips"]
    other = run(folders, tmp_path / "c", real=folder(tmp_path / "real2", 4, seed=8))["contract"]["clips"]
    assert first == second
    assert first != other


def test_the_batch_size_does_not_change_scores(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = run(folders, tmp_path / "a")["metrics"]
    monkeypatch.setattr(clips, "BATCH_PIXELS", 1)
    assert run(folders, tmp_path / "b")["metrics"] == pytest.approx(expected, rel=1e-5)


def test_of_clips_that_fill_a_batch_one_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clips, "BATCH_PIXELS", 1)
    monkeypatch.setattr(reference, "PIXELS_PER_PART", 1)
    videos, real = (folder(tmp_path / name, 6, size=200, seed=i) for i, name in enumerate(("videos", "real")))
    kwargs = {"real": real, "structure": real, "solution": None, "n_solutions": None}
    kwargs |= {"metrics": ["mhd"], "contract": {}}
    score_folder(videos, tmp_path / "warm", **kwargs)
    tracemalloc.start()
    score_folder(videos, tmp_path / "out", **kwargs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3.5 * 3 * 200 * 200 * 3  # a video and its real clip, of which the one read last is there twice


def test_an_empty_folder_and_foreign_names_are_refused(folders: dict[str, Path], tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no clips \(\*\.mkv\) in .*empty"):
        run(folders, tmp_path / "out", videos=tmp_path / "empty")
    (folders["solution"] / "0000.mkv").rename(folders["solution"] / "a.mkv")
    (folders["solution"] / "0001.mkv").rename(folders["solution"] / "b.mkv")
    with pytest.raises(ValueError, match="no clip of solution="):
        run(folders, tmp_path / "out")


def test_a_gap_counts_as_many_solutions_as_asked_though_more_are_there(folders: dict[str, Path], tmp_path: Path):
    both = run(folders, tmp_path / "both")
    first = run(folders, tmp_path / "first", n_solutions=1)
    assert both["n_videos"]["solution_gap"] == 2
    assert first["n_videos"]["solution_gap"] == 1
    rows = list(csv.DictReader((tmp_path / "both" / "scores.csv").open()))
    assert first["metrics"]["solution_gap"] == pytest.approx(float(rows[0]["solution_gap"]))


def contract(seed: int, signature: str) -> dict:
    return {
        "scale": "tiny",
        "data": "procedural",
        "signature": signature,
        "git_commit": "3fa91c2",
        "clips": {"n": 128, "sha256": f"clips of seed {seed}"},
        "metrics": protocols(["psd", "swd"]),
    }


@pytest.fixture
def contracts() -> dict[str, dict[int, dict]]:
    return {arm: {seed: contract(seed, f"{arm}{seed}") for seed in (0, 1)} for arm in ("baseline", "full")}


def test_signatures_commits_and_clips_of_other_seeds_may_differ(contracts: dict[str, dict[int, dict]]):
    contracts["full"][1]["git_commit"] = "0000000"
    check_contracts(contracts)


def test_a_row_may_lack_a_metric(contracts: dict[str, dict[int, dict]]):
    del contracts["full"][0]["metrics"]["swd"]
    check_contracts(contracts)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("scale",), "2k", "scale is 'tiny' in 'baseline' .* and '2k' in 'full'"),
        (("data",), "shards", "data is 'procedural'"),
        (("clips", "sha256"), "other", r"clips\.sha256"),
        (("metrics", "psd", "protocol"), "psd/3", r"metrics\.psd\.protocol is 'psd/2'"),
        (("metrics", "swd", "settings", "seed"), 1, r"metrics\.swd\.settings\.seed is 0"),
    ],
)
def test_a_mismatch_raises_and_names_key_and_rows(
    contracts: dict[str, dict[int, dict]], path: tuple[str, ...], value: object, message: str
):
    target = contracts["full"][1] = copy.deepcopy(contracts["full"][1])
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        check_contracts(contracts)


def test_a_key_that_one_row_lacks_is_a_mismatch(contracts: dict[str, dict[int, dict]]):
    del contracts["baseline"][0]["data"]
    with pytest.raises(ValueError, match="data is None in 'baseline'"):
        check_contracts(contracts)


def test_the_table_has_one_value_where_rows_agree_and_a_list_where_they_may_differ(
    contracts: dict[str, dict[int, dict]],
):
    merged = table_contract(contracts)
    assert merged["scale"] == "tiny"
    assert merged["signature"] == ["baseline0", "baseline1", "full0", "full1"]
    assert [clips["sha256"] for clips in merged["clips"]] == ["clips of seed 0", "clips of seed 1"]
    assert merged["metrics"] == protocols(["psd", "swd"])
