"""`make table`: a table of the paper with ours beside it."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from odd_videos import encode, moving

from benchmarks import paper
from benchmarks.measure import score
from benchmarks.metrics import GROUPS, METRICS
from benchmarks.paper.recompute import vbench_total
from benchmarks.report.card_check import mismatches, prompts_of, with_own_rows
from benchmarks.report.paper_comparison import MeasuredRow, compose, find, read
from benchmarks.report.paper_tables import FORMATS, differences, footer, grid, main, render
from benchmarks.systems import CARDS
from benchmarks.systems.jobs import read_prompts, stem
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
    with pytest.raises(ValueError, match=r"row\.mochi_1=.*: no such row; table_2 has flashvideo, .*; a system of your"):
        with_own_rows(table, {"mochi_1": tmp_path})


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
        (["name=table_2", "row.flashvideo="], "row.flashvideo=: no such folder"),
        (["name=table_2", "row.flashvideo"], "'row.flashvideo': write key=value"),
        (["name=table_2", "row.flashvido=/"], "row.flashvido=/: no such row; did you mean flashvideo? table_2 has"),
        (
            ["name=table_2", "columns=Tehc."],
            "columns=Tehc.: no such column; did you mean Tech.? table_2 has Resolution",
        ),
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
    page = (tmp_path / "out" / "table_3.html").read_text()
    (file,) = (tmp_path / "out" / "table_3-page").glob("*.mp4")
    assert f'"mp4": "{file.name}"' in page
    assert '"folder": "table_3-page"' in page


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


def clips(
    folder: Path, names: Sequence[str], size: tuple[int, int] = (48, 64), frames: int = 3, fps: float = 8
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        noise = np.random.default_rng(i).integers(0, 255, (frames, *size, 3), np.uint8)
        write_video(folder / f"{name}.mkv", noise, fps=fps)
    return folder


def own_card(folder: Path, name: str = "mine", **setting: float) -> Path:
    """A card for existing videos in their folder."""
    values = {"width": 64, "height": 48, "frames": 3, "fps": 8, **setting}
    card = {
        "name": name, "title": "My system", "kind": "videos", "setting_source": "its README", "parameters": None,
        "setting": {**values, "steps": None, "guidance": None, "shift": None},
        "licence": {"name": "MIT", "restricted": False, "terms": None}, "repository": None,
        "weights": {"repository": None, "revision": None}, "adapter": None, "deviations": [], "rows": {},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    return folder


PROMPTS = [f"a heron, {i}-0" for i in range(100)]


class TestVideosThatAreNotAsTheCardSays:
    def test_nothing_is_said_of_those_that_are(self, tmp_path: Path) -> None:
        home = clips(own_card(tmp_path / "mine"), PROMPTS)
        table = with_own_rows(paper.load("table_2"), {"mine": home})
        assert mismatches(table, "mine", home) == []

    @pytest.mark.parametrize(
        ("clip", "says"),
        [
            (
                {"size": (144, 176)},
                "176x144, 3 frames at 8 fps (5 of 5 videos looked at), the card has 64x48, 3 frames",
            ),
            ({"frames": 2}, "64x48, 2 frames at 8 fps (5 of 5 "),
            ({"fps": 24}, "64x48, 3 frames at 24 fps (5 of 5 "),
            ({"names": PROMPTS[:7]}, "7 prompts, the paper has 100"),
            ({"names": [f"a heron-{i}" for i in range(100)]}, "1 prompt, the paper has 100"),  # seeds are no prompts
        ],
    )
    def test_each_difference_is_said(self, clip: dict[str, Any], says: str, tmp_path: Path) -> None:
        home = clips(own_card(tmp_path / "mine"), **{"names": PROMPTS, **clip})
        (line,) = mismatches(with_own_rows(paper.load("table_2"), {"mine": home}), "mine", home)
        assert line.startswith(says)

    def test_the_papers_card_counts_whatever_the_folder_says(self, tmp_path: Path) -> None:
        """Also in an ablation's table, whose arms are no systems: Table 4 is at 2560*1440."""
        home = clips(own_card(tmp_path, "pixelwizard_2k"), ["a-0"])
        for table, arm in (("table_2", "pixelwizard_2k"), ("table_4", "anchor")):
            assert (
                "64x48, 3 frames at 8 fps (1 of 1 videos), the card has 2560x1440, 121 frames at 24 fps"
                in mismatches(paper.load(table), arm, home)
            )

    def test_a_setting_in_the_notes_and_a_card_of_another_system_are_said(self, tmp_path: Path) -> None:
        home = clips(own_card(tmp_path), ["a-0"])
        (home / "jobs").mkdir()
        note = {"width": 64, "height": 48, "frames": 3, "steps": 2, "video": "a-0.mkv"}
        (home / "jobs" / "a-0.json").write_text(json.dumps(note))
        lines = mismatches(paper.load("table_2"), "pixelwizard_2k", home)
        assert {"made with steps=2, the card has 4", "the card in its folder is of mine"} <= {*lines}

    def test_scores_of_a_part_of_the_videos_are_said(self, tmp_path: Path) -> None:
        home = clips(own_card(tmp_path), PROMPTS)
        lines = mismatches(with_own_rows(paper.load("table_2"), {"mine": home}), "mine", home, ["a heron, 3-0.mkv"])
        assert lines == ["1 of its 100 videos have scores", "1 prompt, the paper has 100"]

    def test_the_prompts_of_table_8_1_are_vbenchs_by_their_hash(self, tmp_path: Path) -> None:
        home = clips(own_card(tmp_path), ["a-0"])
        table, other = with_own_rows(paper.load("table_8_1"), {"mine": home}), [f"{i}-0.mkv" for i in range(944)]
        assert "other prompts than the paper's 944" in mismatches(table, "mine", home, other)
        prompts = [f"{stem(prompt, 0)}.mkv" for prompt, _ in read_prompts(Path("vbench"))]
        assert prompts_of(prompts) == (table.prompts, table.prompts_sha256)

    def test_every_table_says_which_prompts_by_hash(self, tmp_path: Path) -> None:
        six = {f"{stem(prompt, 0)}.mp4": 0.5 for prompt, _ in read_prompts(Path("vbench_6"))}
        measured = {
            arm: read(write_scores(tmp_path / arm, {"mhd_mse": values}))
            for arm, values in (("flashvideo", draws(1.0)), ("pixelwizard_2k", six))
        }
        lines = [text for label, text in footer(compose(paper.load("table_2"), measured)) if label == "prompts"]
        own, listed = (prompts_of(names) for names in (draws(1.0), six))
        assert lines == [
            f"40, sha256 {own[1][:12]} (a list of your own): FlashVideo",
            f"251, sha256 {listed[1][:12]} (vbench_6): PixelWizard-2k",
        ]

    @pytest.mark.parametrize("kind", FORMATS)
    def test_every_format_marks_the_cell_and_says_why(self, kind: str, tmp_path: Path) -> None:
        row = replace(
            read(write_scores(tmp_path, {"mhd_mse": draws(0.0147, 0.001)})), mismatches=("176x144, the card has more",)
        )
        text = render(compose(paper.load("table_2"), {"pixelwizard_2k": row}), kind)
        mark = {"tex": r"0.0147 $\pm$ 0.0003$^{\dagger}$", "csv": "", "json": ""}.get(kind, "0.0147 ± 0.0003†")
        assert mark in text
        assert "176x144, the card has more" in text
        assert "†" not in render(compose(paper.load("table_2"), {"pixelwizard_2k": replace(row, mismatches=())}), kind)

    def test_rows_with_other_prompts_are_said(self, tmp_path: Path) -> None:
        others = {name.replace("prompt 1", "another 1"): value for name, value in draws(5.0).items()}
        rows = {
            "star_2k": read(write_scores(tmp_path / "a", {"niqe": others})),
            "pixelwizard_2k": read(write_scores(tmp_path / "b", {"niqe": draws(5.0)})),
        }
        lines = {row["arm"]: row["mismatches"] for row in compose(paper.load("table_3"), rows)["rows"]}
        # of prompt 0 to 39 those beginning with 1: 1 and 10 to 19
        assert lines["star_2k"] == ["29 of its 40 prompts are among the 40 of pixelwizard_2k"]
        assert lines["pixelwizard_2k"] == []

    def test_strict_refuses_them_before_anything_is_written(self, tmp_path: Path, capsys) -> None:
        home = clips(tmp_path / "videos", ["a-0"])
        words = ["name=table_2", f"systems={tmp_path}", f"out={tmp_path / 'out'}", f"row.pixelwizard_2k={home}"]
        assert main([*words, "score=true", "strict=true"]) == 2
        assert "row.pixelwizard_2k: 64x48, 3 frames at 8 fps (1 of 1 videos), the card has" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
        assert not (home / "scores.csv").exists()


def test_a_system_of_ones_own_is_a_row_by_its_card(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PW_SCORES", str(tmp_path / "cache"))
    home = clips(own_card(tmp_path / "mine"), PROMPTS[:2])
    words = ["name=table_2", f"systems={tmp_path}", f"out={tmp_path / 'out'}", "format=csv"]
    assert main([*words, f"row.other={home}"]) == 2
    assert "its card.yaml is of mine; write row.mine=…" in capsys.readouterr().err
    assert main([*words, f"row.mine={home}", "score=true"]) == 0
    rows = {row["row"]: row for row in csv.DictReader(capsys.readouterr().out.splitlines())}
    assert (rows["mine"]["label"], rows["mine"]["Resolution (H×W).paper"]) == ("My system", "64*48")
    assert float(rows["mine"]["mHD-MSE.mean"]) > 0
    assert rows["mine"]["mismatches"] == "2 prompts, the paper has 100"


def test_columns_are_chosen_by_their_printed_name_or_by_our_metric(tmp_path: Path, capsys):
    home = write_scores(tmp_path / "any", {"mhd_mse": draws(0.0147, 0.001)})
    words = ["name=table_2", f"out={tmp_path / 'out'}", f"systems={tmp_path}", f"row.pixelwizard_2k={home}"]
    assert main([*words, "columns=Aesth.,mhd_mse", "format=md"]) == 0
    output = capsys.readouterr().out.replace("\u00a0", " ")
    assert "| | Aesth. ↑ | mHD-MSE ↑ |" in output
    assert "| PixelWizard-2k | 99.58 | 0.0147 |" in output
    assert "Tech." in (tmp_path / "out" / "table_2.csv").read_text()
