"""`make table`: a table of the paper with ours beside it."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from odd_videos import encode, moving

from benchmarks import paper
from benchmarks.measure import score
from benchmarks.metrics import GROUPS, METRICS
from benchmarks.paper.recompute import vbench_total
from benchmarks.report.paper_comparison import MeasuredRow, compose, find, read
from benchmarks.report.paper_tables import FORMATS, differences, grid, main, render
from benchmarks.systems import CARDS
from pw import cli
from pw.io.files import write_csv
from pw.io.video import write_video


def write_scores(path: Path, scores: Mapping[str, Mapping[str, float]], **protocol: Any) -> Path:
    """A folder as `make score` leaves it: metric -> video -> value."""
    videos = sorted({video for by_video in scores.values() for video in by_video})
    rows = [{"video": v, "frames": 121, **{m: x[v] for m, x in scores.items() if v in x}} for v in videos]
    write_csv(path / "scores.csv", ["video", "frames", *scores], rows)
    records = {m: {"protocol": METRICS[m].protocol, "settings": {}, "weights": {}, **protocol} for m in scores}
    (path / "scores.protocol.json").write_text(json.dumps({"metrics": records}))
    return path


def draws(mean: float, spread: float = 0.1, n: int = 40, seed: int = 0) -> dict[str, float]:
    noise = np.random.default_rng(seed).normal(0, 1, n)
    noise = (noise - noise.mean()) / noise.std()
    return {f"prompt {i}-0.mp4": float(mean + spread * x) for i, x in enumerate(noise)}


def cells_of(table: str, arm: str, measured: MeasuredRow) -> dict[str, Any]:
    rows = compose(paper.load(table), {arm: measured})["rows"]
    return next(row["ours"] for row in rows if row["arm"] == arm)


@pytest.mark.parametrize("name", paper.names())
def test_every_table_shows_every_printed_cell_and_how_to_fill_the_others(name: str):
    table = paper.load(name)
    result = compose(table, {})
    for kind in FORMATS:
        text = render(result, kind)
        for row in table.rows:
            for cell in row.printed.values():
                assert cell in text or cell.replace("*", "\\*") in text, (kind, cell)
        if kind in ("md", "html", "tex"):
            assert "not measured" in text
    assert len(grid(result).rows) == len(table.rows)


def test_ours_stand_below_in_the_papers_unit_and_digits_with_difference_and_verdict(tmp_path: Path):
    """Table 2 prints mHD-MSE of PixelWizard-2k as 0.0147 and Tech. as 14.31."""
    scores = {"mhd_mse": draws(0.0147, 0.001), "dover_technical": draws(12.0, 0.5), "dover_aesthetic": draws(99.9)}
    ours = read(write_scores(tmp_path, scores))
    result = compose(paper.load("table_2"), {"pixelwizard_2k": ours})
    cells = cells_of("table_2", "pixelwizard_2k", ours)
    assert cells["mHD-MSE"]["verdict"] == "no difference shown"
    assert cells["Tech."]["verdict"] == "worse"
    assert cells["Tech."]["difference"] == pytest.approx(12.0 - 14.31)
    assert cells["Aesth."]["verdict"] == "better"
    assert "mHD-LPIPS" not in cells
    rows = dict(grid(result).rows)
    # standard error of 40 prompts: 0.5 * sqrt(40 / 39) / sqrt(40) = 0.080; BCa's half-width is about 1.96 of it
    assert [cell.text for cell in rows["\u2003ours (n=40)"]] == [
        "–",
        "0.0147 ± 0.0003",
        "–",
        "12.00 ± 0.16",
        "99.90 ± 0.03",
    ]
    assert [c.plain() for c in rows["\u2003difference"]] == ["", "0.0000 ·", "", "−2.31 ▼", "+0.32 ▲"]


def test_fractions_are_printed_as_per_cent_and_the_average_is_ours(tmp_path: Path):
    scores = {name: draws(0.9 - 0.02 * i, 0.01, seed=i) for i, name in enumerate(GROUPS["table_1"])}
    cells = cells_of("table_1", "pixelwizard_2k", read(write_scores(tmp_path, scores)))
    assert cells["Subject Consis."]["mean"] == pytest.approx(90.0)
    assert cells["Avg."]["mean"] == pytest.approx(np.mean([90 - 2 * i for i in range(6)]))
    assert cells["Avg."]["low"] < cells["Avg."]["mean"] < cells["Avg."]["high"]


def test_totals_of_vbench_are_the_totals_of_the_means_and_none_where_a_dimension_lacks(tmp_path: Path):
    scores = {name: draws(0.7, 0.02, seed=i) for i, name in enumerate(GROUPS["table_8_1"])}
    cells = cells_of("table_8_1", "turbo2k", read(write_scores(tmp_path / "a", scores)))
    means = {name: float(np.mean(list(by.values()))) for name, by in scores.items()}
    for column, name in (("Total Score", "total"), ("Quality Score", "quality"), ("Semantic Score", "semantic")):
        assert cells[column]["mean"] == pytest.approx(100 * vbench_total(f"vbench_{name}", means))
        assert cells[column]["low"] is not None
    del scores["color"]
    cells = cells_of("table_8_1", "turbo2k", read(write_scores(tmp_path / "b", scores)))
    assert "Quality Score" in cells
    assert not {"Color", "Semantic Score", "Total Score"} & set(cells)


def test_a_total_takes_a_cosine_below_zero(tmp_path: Path):
    scores = {name: draws(0.7, 0.02, seed=i) for i, name in enumerate(GROUPS["table_8_1"])}
    scores["temporal_style"]["prompt 0-0.mp4"] = -0.01
    cells = cells_of("table_8_1", "turbo2k", read(write_scores(tmp_path, scores)))
    means = {name: float(np.mean(list(by.values()))) for name, by in scores.items()}
    assert cells["Total Score"]["mean"] == pytest.approx(100 * vbench_total("vbench_total", means))


def test_totals_over_different_videos_have_no_interval(tmp_path: Path):
    """VBench's standard mode: each dimension has prompts of its own."""
    scores = {n: {f"{n} {v}": x for v, x in draws(0.7, seed=i).items()} for i, n in enumerate(GROUPS["table_8_1"])}
    cells = cells_of("table_8_1", "turbo2k", read(write_scores(tmp_path, scores)))
    assert (cells["Total Score"]["low"], cells["Total Score"]["verdict"]) == (None, "not resolved")
    assert cells["Color"]["low"] is not None


def test_two_measured_rows_are_held_against_each_other_by_prompt(tmp_path: Path):
    a, b = draws(5.0, 1.0), draws(4.0, 1.0)
    rows = {
        "star_2k": read(write_scores(tmp_path / "a", {"niqe": a})),
        "pixelwizard_2k": read(write_scores(tmp_path / "b", {"niqe": b})),
    }
    result = compose(paper.load("table_3"), rows)
    assert result["reference"] == "pixelwizard_2k"
    ((label, (cell,)),) = differences(result).rows
    assert (label, cell.text, cell.verdict, cell.note) == ("STAR", "1.00 ± 0.00", "worse", "printed 1.61")
    other_result = compose(paper.load("table_3"), rows, "star_2k")
    assert [row["arm"] for row in other_result["rows"] if row["versus"]] == ["pixelwizard_2k"]
    with pytest.raises(ValueError, match="reference=dove_2k: was not measured; rows that were: star_2k, pixel"):
        compose(paper.load("table_3"), rows, "dove_2k")


def test_rows_measured_differently_are_refused(tmp_path: Path):
    rows = {
        "star_2k": read(write_scores(tmp_path / "a", {"niqe": draws(5.0)})),
        "dove_2k": read(write_scores(tmp_path / "b", {"niqe": draws(5.0)}, settings={"every": 2})),
    }
    with pytest.raises(ValueError, match=r"niqe was measured differently: settings is \{\} for star_2k and .*dove_2k"):
        compose(paper.load("table_3"), rows)
    table_1 = compose(paper.load("table_1"), rows)  # which has no NIQE
    assert table_1["rows"]


def test_costs_come_from_the_notes_of_the_jobs_and_deviations_from_the_card(tmp_path: Path):
    """Table 1 has latency columns; Table 2 gets ours beside."""
    home = write_scores(tmp_path / "pixelwizard_2k", {"mhd_mse": draws(0.01)})
    shutil.copy(CARDS / "pixelwizard_2k.yaml", home / "card.yaml")
    note = {"width": 2560, "height": 1440, "frames": 121, "fps": 24, "seconds_diffusion": 60.5, "seconds_total": 90.0}
    note |= {"peak_memory_bytes": 40e9, "parameters": 5_000_000_000, "device": "NVIDIA H200", "video": "a-0.mp4"}
    note |= {"processes": 1, "peak_memory_from": "torch, allocated"}
    (home / "jobs").mkdir()
    (home / "jobs" / "a-0.json").write_text(json.dumps(note))
    ours = read(home)
    cells = cells_of("table_1", "pixelwizard_2k", ours)
    assert cells["Latency"]["mean"] == 60.5
    assert cells["Latency per Frame"]["mean"] == pytest.approx(0.5)
    assert cells["Latency per Pixel"]["mean"] == pytest.approx(60.5 / (121 * 2560 * 1440))
    assert cells["Latency"]["verdict"] is None  # a cost is no quality
    table = grid(compose(paper.load("table_2"), {"pixelwizard_2k": ours}))
    heads = [column.header for column in table.columns if column.group == "cost, ours"]
    assert [head.split("\u00a0")[0] for head in heads] == [
        *("Latency [s]", "Latency per Pixel [s]", "Latency per Frame [s]", "Params. [B]", "Peak Mem. [GB]")
    ]
    text = render(compose(paper.load("table_1"), {"pixelwizard_2k": ours}), "md")
    assert "measured on NVIDIA H200; peak memory by torch, allocated" in text


def test_scores_without_their_protocol_are_refused(tmp_path: Path):
    write_scores(tmp_path, {"niqe": draws(4.0)})
    (tmp_path / "scores.protocol.json").unlink()
    with pytest.raises(ValueError, match="says how it was measured"):
        read(tmp_path)


def test_the_folders_of_systems_are_found_by_name_and_any_other_is_given(tmp_path: Path):
    for name in ("flashvideo", "mochi_1", "cinescale"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "card.yaml").write_text((CARDS / f"{name}.yaml").read_text())
        if name != "cinescale":  # its generation failed before the first video
            write_scores(tmp_path / name, {"mhd_mse": draws(0.01)})
    table = paper.load("table_2")
    assert find(table, tmp_path, {}) == {"flashvideo": tmp_path / "flashvideo"}
    assert find(table, tmp_path, {"flashvideo": tmp_path})["flashvideo"] == tmp_path
    with pytest.raises(ValueError, match=r"row\.mochi_1=.*: table_2 has no such row; it has flashvideo"):
        find(table, tmp_path, {"mochi_1": tmp_path})


def test_the_command_writes_every_format_and_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture):
    home = write_scores(tmp_path / "any", {"mhd_mse": draws(0.0147, 0.001)})
    words = ["name=table_2", f"out={tmp_path / 'out'}", f"systems={tmp_path}", f"row.pixelwizard_2k={home}"]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "PixelWizard-2k" in output
    assert "ours (n=40)" in output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"table_2.{kind}" for kind in FORMATS}
    rows = {row["row"]: row for row in csv.DictReader((tmp_path / "out" / "table_2.csv").open())}
    assert float(rows["pixelwizard_2k"]["mHD-MSE.mean"]) == pytest.approx(0.0147)
    assert rows["flashvideo"]["mHD-MSE.paper"] == "0.0098"
    assert main([*words, "format=md"]) == 0
    assert capsys.readouterr().out.startswith("## Table 2.")


def test_scoring_for_one_table_keeps_the_columns_of_another_and_an_empty_folder_stops_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PW_SCORES", str(tmp_path / "cache"))
    monkeypatch.setenv("PW_METRICS", str(tmp_path / "weights"))
    home, empty = tmp_path / "videos", tmp_path / "empty"
    home.mkdir()
    empty.mkdir()
    encode(home / "a heron-0.mp4", moving())
    assert score.main([str(home), "metrics=temporal_flickering", f"out={home / 'scores.csv'}"]) == 0
    rows = [f"row.flashvideo={empty}", f"row.pixelwizard_2k={home}"]
    assert main(["name=table_2", "score=true", f"systems={tmp_path}", f"out={tmp_path / 'out'}", *rows]) == 0
    assert read(home).scores.keys() == {"mhd_mse", "temporal_flickering"}


@pytest.mark.parametrize("damage", ["scores.csv", "scores.protocol.json"])
def test_damaged_scores_are_named(damage: str, tmp_path: Path):
    home = write_scores(tmp_path, {"niqe": draws(5.0)})
    text = (home / damage).read_text()
    (home / damage).write_text(text.replace("video", "niqe") if damage == "scores.csv" else text[:20])
    with pytest.raises(ValueError, match=r"scores.csv or scores.protocol.json is damaged"):
        read(home)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name=: which table? table_1, "),
        (["name=table_7"], "no table 'table_7' of the paper; known: table_1"),
        (["name=table_2", "format=pdf"], "format=pdf: one of terminal, md"),
        (
            ["name=table_2", "system=x"],
            "system=x: there is no option system; did you mean systems? there are name, systems, score",
        ),
        (["name=table_2", "score=yes"], "score=yes: true or false"),
        (["name=table_2", "row.flashvideo=nowhere"], "row.flashvideo=nowhere: no such folder"),
        (["name=table_2", "systems=nowhere"], "systems=nowhere: no such folder"),
        (["name=table_2", "out=/dev/null/x"], "out=/dev/null/x: cannot be written (Not a directory)"),
    ],
)
def test_a_mistake_in_the_call_is_named(words: list[str], says: str, capsys: pytest.CaptureFixture):
    assert main(words) == 2
    assert says in capsys.readouterr().err


def test_what_is_said_to_fill_a_cell_does_fill_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """A folder with a space in its name, one metric measurable here and one whose weights are not there."""
    monkeypatch.setenv("PW_METRICS", str(tmp_path / "no weights"))
    monkeypatch.setenv("PW_SCORES", str(tmp_path / "cache"))
    videos = tmp_path / "my videos"
    videos.mkdir()
    write_video(videos / "a.mkv", np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), np.uint8), fps=8)
    words = ["name=table_3", f"out={tmp_path / 'out'}", f"systems={tmp_path}", "format=md"]
    assert main([*words, f"row.star_2k={videos}"]) == 0
    command = re.search(r"star_2k: `make table name=table_3 args=\"(.*)\"`", capsys.readouterr().out)
    assert command
    assert main([*words, *shlex.split(command[1])]) == 0
    output = capsys.readouterr().out
    assert "ours (n=1)" in output
    assert "mhd_lpips of star_2k: " in output
    assert '`make weights what=metrics args="only=alexnet"` fetches it' in output


def test_a_system_is_called_with_what_it_wants():
    """STAR enlarges videos, Open-Sora's are registered, Mochi is generated from prompts."""
    texts = {name: render(compose(paper.load(name), {}), "md") for name in ("table_3", "table_8_1")}
    assert '`make system name=star_2k args="inputs=DIR"`' in texts["table_3"]
    assert '`make system name=pixelwizard_2k args="prompts=FILE"`' in texts["table_3"]
    assert 'args="videos=DIR"`' in texts["table_8_1"]
    assert 'args="prompts=FILE"`' in texts["table_8_1"]


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (KeyboardInterrupt(), 130, "stopped by SIGINT; measured values are kept"),
        (OSError(28, "No space left on device"), 2, "the disk is full (No space left on device); measured values"),
    ],
)
def test_a_scoring_that_is_stopped_or_finds_a_full_disk_is_no_traceback(
    error: BaseException, status: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def scorer(*_: Any) -> None:
        raise error

    monkeypatch.setenv("PW_SCORES", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "benchmarks.metrics.mhd", SimpleNamespace(scorer=scorer))
    (tmp_path / "videos").mkdir()
    encode(tmp_path / "videos" / "a heron-0.mp4", moving())
    words = ["name=table_2", "score=true", f"systems={tmp_path}", f"row.flashvideo={tmp_path / 'videos'}"]
    assert cli.main(["table", *words, f"out={tmp_path / 'out'}"]) == status
    assert says in capsys.readouterr().err


def test_a_row_whose_registered_videos_are_gone_is_not_left_out_in_silence(tmp_path: Path, capsys):
    home = tmp_path / "flashvideo"
    home.mkdir()
    shutil.copy(CARDS / "flashvideo.yaml", home / "card.yaml")
    (home / "registered.json").write_text(json.dumps({"directory": str(tmp_path / "gone"), "present": ["a-0"]}))
    assert main(["name=table_2", f"systems={tmp_path}", f"out={tmp_path / 'out'}"]) == 2
    assert f"{tmp_path / 'gone'} no longer exists" in capsys.readouterr().err
