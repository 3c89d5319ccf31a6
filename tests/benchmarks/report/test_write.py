"""The written table: every format, deterministic, complete."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from benchmarks.metrics import GROUPS, METRICS, protocols
from benchmarks.paper import load
from benchmarks.report.grid import Cell, Column, Digits, Grid
from benchmarks.report.page import evidence_of, page_html
from benchmarks.report.render import (
    check_columns,
    compared_with,
    contract_line,
    coverage_line,
    differences,
    digits_of,
    scores,
)
from benchmarks.report.write import latex, markdown, terminal, to_csv, to_json, write
from benchmarks.stats.comparison import compare, estimate, order_as_in_paper
from pw.io.console import console
from pw.io.files import digest

MEANS = {
    "baseline": (4.1, 0.062, 0.0051, 0.61, 0.041, 0.52, 0.0041),
    "uniform": (2.0, 0.041, 0.0070, 0.84, 0.030, 0.77, 0.0038),
    "exponential": (1.3, 0.033, 0.0078, 0.94, 0.024, 0.90, 0.0037),
    "full": (1.0, 0.0325, 0.0078, 0.94, 0.022, 0.98, 0.0052),
}


@pytest.fixture(scope="module")
def result() -> dict:
    rng = np.random.default_rng(0)
    scores = {
        arm: {
            s: {m: v * (1 + 0.005 * rng.standard_normal()) for m, v in zip(GROUPS["clips"], row, strict=True)}
            for s in range(3)
        }
        for arm, row in MEANS.items()
    }
    comparison, paper = compare(scores), load("table_9_3")
    arms = [
        {
            "name": arm,
            "varied": {"objective": "shortcut", "step_sampler": f"{arm}_100%"},
            **comparison.row(arm),
            "cost": {"updates": 400, "train_flops": 1.23e14, "train_cpu_s": 31.4, "sample_cpu_s": None},
            "probe": None,
            "paper": paper.values().get(arm),
            "status": "ok",
        }
        for arm in scores
    ]
    arms[0]["probe"] = {
        "label": "best inference shift",
        "metric": "psd",
        "mean": 3,
        "low": 2.8,
        "high": 3.2,
        "at": 2,
    }
    floor = {"psd": vars(estimate([0.1, 0.12, 0.11])), "swd": vars(estimate([0.009, 0.01, 0.011]))}
    return {
        "ablation": "ansc",
        "title": "Table 9.3: what does each ingredient add?",
        "claim": "Each ingredient helps & more than 5 %.",
        "refuted": "if a row is worse than the row above it",
        "scale": "tiny",
        "seeds": [0, 1, 2],
        "contract": {
            "scale": "tiny",
            "git_commit": "3fa91c2",
            "dirty": True,
            "metrics": protocols(["psd", "swd"]),
        },
        "arms": arms,
        "best": comparison.best,
        "floor": floor,
        "ceiling": {"psd": vars(estimate([0.8, 0.9, 0.85]))},
        "order_as_in_paper": order_as_in_paper(comparison, paper.values(), paper.quality(), primary="psd"),
        "coverage": [
            {
                "arm": "full",
                "grid": [[1000, 69, False, [800, 50]], [600, 600, True, [600, 600]]],
                "second_halves_trained": 0,
                "second_halves_total": 20,
            }
        ],
        "failed": [],
        "notes": ["updates are matched, compute is not"],
    }


def test_the_json_is_the_result(result: dict):
    written = json.loads(to_json(result))
    checksum = written.pop("checksum")
    assert written == json.loads(json.dumps(result))
    assert checksum == digest(written, 64)


def test_a_dash_of_an_arm_that_was_scored_is_said(result: dict):
    assert "no value" not in markdown(result)
    arms = [{**arm, "metrics": dict(arm["metrics"])} for arm in result["arms"]]
    del arms[1]["metrics"]["mhd_ratio"], arms[3]["metrics"]["mhd_ratio"]
    arms[2]["metrics"] = {}  # it failed, which another line says
    incomplete = {**result, "arms": arms}
    assert "mhd_ratio of uniform, full: not finite, or not measured of such an arm" in markdown(incomplete)
    assert "exponential: not finite" not in markdown(incomplete)


def test_numbers_that_are_not_finite_become_null():
    assert json.loads(to_json({"a": [float("nan"), 1.5]}))["a"] == [None, 1.5]


@pytest.mark.slow
def test_all_files_are_written_and_the_same_bytes_again(result: dict, tmp_path: Path):
    files_a = {path.name: path.read_bytes() for path in write(result, tmp_path / "a")}
    files_b = {path.name: path.read_bytes() for path in write(result, tmp_path / "b")}
    assert set(files_a) == {"table.md", "table.tex", "table.json", "table.csv", "plot.png"}
    assert files_a == files_b
    assert not Image.open(tmp_path / "a" / "plot.png").info.get("Software")


def test_a_result_read_back_renders_the_same(result: dict):
    loaded = json.loads(to_json(result))
    assert markdown(loaded) == markdown(result)
    assert page_html(evidence_of(loaded)) == page_html(evidence_of(result))


def test_markdown_has_a_row_per_arm_the_ceiling_the_floor_and_the_papers_columns(result: dict):
    text = markdown(result)
    for label in (*MEANS, "48-step ceiling", "real vs real (floor)"):
        assert f"| {label} |" in text
    assert "paper (not comparable in value): MUSIQ" in text
    assert "57.67" in text
    assert "- **order as in the paper**: no" in text  # anchor fidelity is worse in the last row
    assert "git_commit 3fa91c2, dirty True" in text
    assert "metrics psd/2 swd/1" in text
    assert "second halves 0 of 20" in text


def test_only_a_significant_best_is_bold(result: dict):
    full = next(line for line in markdown(result).splitlines() if line.startswith("| full |"))
    cells = full.split(" | ")
    assert result["best"]["psd"] == "full"
    assert cells[1].startswith("**")
    assert result["best"]["mhd"] is None
    assert not cells[3].startswith("**")


@pytest.mark.parametrize(
    ("setting", "phrase"),
    [
        ({}, "the arm above"),  # a table.json of an earlier version says nothing
        ({"versus": "above"}, "the arm above"),
        ({"versus": "above", "across": "sampling.num_steps"}, "the arm above at the same num_steps"),
        ({"versus": "first"}, "baseline"),
        ({"versus": "first", "across": "sampling.num_steps"}, "baseline at the same num_steps"),
    ],
)
def test_every_format_says_what_an_arm_is_compared_with(result: dict, setting: dict, phrase: str):
    arms = result["arms"]
    if "across" in setting:
        arms = [{**arm, "name": f"{arm['name']}@4"} for arm in arms]
    changed_result = {**result, **setting, "arms": arms}
    assert compared_with(changed_result) == phrase
    output = io.StringIO()
    Console(file=output, width=200).print(terminal(changed_result, 200))
    assert f"differences to {phrase}\n" in re.sub(" +\n", "\n", output.getvalue())
    assert f"Differences to {phrase} (" in markdown(changed_result)
    assert f"compared with {phrase}, paired by seed" in markdown(changed_result)
    page = page_html(evidence_of(changed_result))
    assert f"<h2>Differences to {phrase}</h2>" in page
    assert f'<th class="group" scope="colgroup" colspan="7">difference to {phrase}</th>' in page
    assert f"differences to {phrase.replace('_', chr(92) + '_')}." in latex(changed_result)


def test_a_row_names_what_it_is_compared_with_only_where_the_heading_does_not(result: dict):
    assert [label for label, _ in differences({**result, "versus": "first"}).rows] == ["uniform", "exponential", "full"]
    arms = [{**arm, "vs_previous": {m: dict(d) for m, d in arm["vs_previous"].items()}} for arm in result["arms"]]
    for row in arms[3]["vs_previous"].values():
        row["versus"] = "uniform"
    assert [label for label, _ in differences({**result, "arms": arms}).rows][-1] == "full − uniform"


def test_a_missing_score_is_a_dash(result: dict):
    floor = next(line for line in markdown(result).splitlines() if line.startswith("| real vs real"))
    assert " | – | – | " in floor


def test_a_failed_arm_is_a_row_of_dashes_and_a_line_below(result: dict):
    arms = [dict(arm) for arm in result["arms"]]
    arms[2] = {**arms[2], "metrics": {}, "vs_previous": {}, "status": "failed: loss is not finite"}
    failed_result = {**result, "arms": arms}
    text = markdown(failed_result)
    assert "| exponential | – | – |" in text
    assert "- **failed**: exponential failed: loss is not finite" in text
    Console(file=io.StringIO(), width=120).print(terminal(failed_result, 120))


def test_a_table_without_a_single_score_still_prints(result: dict, tmp_path: Path):
    arms = [{**arm, "metrics": {}, "vs_previous": {}, "probe": None, "paper": None} for arm in result["arms"]]
    empty = {**result, "arms": arms, "floor": {}, "ceiling": {}, "best": {}}
    assert len(write(empty, tmp_path)) == 5
    assert "<h2>Scores</h2>" in page_html(evidence_of(empty))
    Console(file=io.StringIO(), width=120).print(terminal(empty, 120))


def test_latex_is_escaped_and_uses_booktabs(result: dict):
    text = latex(result)
    assert r"\toprule" in text
    assert r"\bottomrule" in text
    assert r"$\pm$" in text
    assert r"paper (not comparable in value)" in text
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert not any(symbol in line for line in body for symbol in "±×↓↑→▲▼·Δ–−⁻³")
    assert latex({**result, "title": "a_b & 5 %"}).count(r"a\_b \& 5 \%") == 1
    rows = [line for line in body if line.endswith(r"\\") and line.startswith("baseline")]
    columns = text.split(r"\begin{tabular}{l")[1].split("}")[0]
    assert rows[0].count(" & ") == len(columns)


def test_a_cell_tells_its_interval_its_seeds_and_what_it_was_compared_with(result: dict):
    arms = [{**arm, "values": {"psd": {"0": 0.95, "1": 1.0123, "2": -1.5}}} for arm in result["arms"]]
    grid = scores({**result, "arms": arms}, marks=True)
    first, full, ceiling = (dict(grid.rows)[label] for label in ("baseline", "full", "48-step ceiling"))
    assert "compared with" not in first[0].detail
    psd = arms[3]["metrics"]["psd"]
    digits = digits_of(result, "psd")
    low, mean, high = (f"{psd[key]:.{digits.decimals + 1}f}" for key in ("low", "mean", "high"))
    assert full[0].detail.startswith(f"{mean}, 95 % interval {low} to {high}, n=3; seeds 0: 0.95")
    assert ", 2: −1.5" in full[0].detail
    assert re.search(
        r"; better, compared with exponential: difference −0\.3\d+, 95 % interval −.*, p<0.001, adjusted p",
        full[0].detail,
    )
    assert "difference of |ln| " in next(
        cell.detail for cell, c in zip(full, grid.columns, strict=True) if c.key == "mhd_ratio"
    )
    assert ceiling[0].detail.endswith(", n=3")
    assert [cell.value for cell in full[:2]] == [psd["mean"], arms[3]["metrics"]["swd"]["mean"]]


def test_csv_is_wide_with_full_precision(result: dict):
    rows = {row["row"]: row for row in csv.DictReader(io.StringIO(to_csv(result)))}
    assert list(rows) == [*MEANS, "ceiling", "floor"]
    assert float(rows["full"]["psd.mean"]) == result["arms"][3]["metrics"]["psd"]["mean"]
    assert rows["full"]["mhd_ratio.diff_of"] == "abs_log"
    assert rows["full"]["paper.NIQE"] == "3.94"
    assert rows["floor"]["solution_gap.mean"] == ""


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_terminal_tables_keep_within_the_width_and_cut_nothing(result: dict, width: int):
    out = io.StringIO()
    Console(file=out, width=width).print(terminal(result, width))
    text = out.getvalue()
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    for name in GROUPS["clips"]:
        assert METRICS[name].header.split("/")[0] in text


def test_digits_follow_the_half_width():
    assert Digits.of([3.21417], [0.0871]).interval(3.21417, 0.0871) == "3.214 ± 0.087"
    assert Digits.of([0.00512], [0.00021]).interval(0.00512, 0.00021) == "5.12 ± 0.21"
    assert Digits.of([0.00512], [0.00021]).unit == "×10⁻³"
    assert Digits.of([123.456], []).interval(123.456, None) == "123"
    assert Digits.of([-0.5], [0.1]).text(-0.5) == "−0.50"
    assert Digits.of([1.0], [0.1]).text(-0.0001) == "0.00"


def test_coverage_is_one_line(result: dict):
    assert coverage_line(result["coverage"][0]) == (
        "full: 1 of 2 grid steps trained: (1000, 69) not trained (nearest (800, 50)), (600, 600) trained; "
        "second halves 0 of 20"
    )


def test_many_signatures_are_counted():
    assert contract_line({"signature": [f"{i}" for i in range(12)]}) == "signature 0 … 11 (12 values)"


def test_a_cached_table_is_shown_without_torch_or_matplotlib():
    code = (
        "import sys, benchmarks.stats.comparison, benchmarks.report.write, benchmarks.measure.clips, benchmarks.paper;"
        "print([m for m in ('torch', 'matplotlib', 'pandas', 'scipy', 'av') if m in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_other_real_clips_are_not_called_a_floor_where_they_bound_nothing(result: dict):
    bounded, unbounded = markdown(result), markdown({**result, "floor_is_bound": False})
    assert "real vs real (floor)" in bounded
    assert "other real clips (no bound)" in unbounded
    assert "(floor)" not in unbounded


def test_the_terminal_shows_every_number_in_80_columns(result: dict):
    arms = [{**arm, "name": f"{arm['name']}_{'x' * 30}@0.35"} for arm in result["arms"]]  # a label half as wide
    for shown in (result, {**result, "arms": arms}):
        output = io.StringIO()
        Console(file=output, width=80).print(terminal(shown, 80))
        lines = output.getvalue().splitlines()
        assert max(map(len, lines)) <= 80
        assert not re.search(r"\d…", output.getvalue())
        for arm in shown["arms"]:
            for metric, estimate_ in arm["metrics"].items():
                half = (estimate_["high"] - estimate_["low"]) / 2
                assert digits_of(shown, metric).interval(estimate_["mean"], half) in output.getvalue()


class TestTheColumnsOfATable:
    CHOSEN = ("train_flops", "swd", "psd")

    @pytest.fixture
    def chosen(self, result: dict) -> dict:
        return {**result, "shown_columns": list(self.CHOSEN)}

    def test_are_those_that_were_chosen_in_their_order(self, chosen: dict):
        scores, deltas = (line for line in markdown(chosen).splitlines() if line.startswith("| | "))
        assert re.findall("train FLOP|SWD|PSD|seeds|MUSIQ", scores) == ["train FLOP", "SWD", "PSD"]
        assert re.findall("ΔSWD|ΔPSD|ΔmHD", deltas) == ["ΔSWD", "ΔPSD"]
        for text in (latex(chosen), page_html(evidence_of(chosen))):
            assert "SWD" in text
            assert "mHD" not in text
        output = io.StringIO()
        Console(file=output, width=80).print(terminal(chosen, 80))
        assert "anchor" not in output.getvalue().partition("refuted")[0]

    def test_are_all_in_the_data(self, chosen: dict, result: dict):
        assert to_csv(chosen) == to_csv(result)
        assert json.loads(to_json(chosen))["arms"] == json.loads(to_json(result))["arms"]

    def test_have_a_nearest_name(self):
        check_columns(self.CHOSEN, METRICS, None)
        check_columns(("MUSIQ", "seeds", "probe"), (), "table_9_3")
        with pytest.raises(
            ValueError, match=r"columns=sdw: no such column; did you mean swd\? there are .*train_flops"
        ):
            check_columns(("psd", "sdw"), METRICS, None)
        with pytest.raises(ValueError, match="columns=MUSIQ: no such column"):
            check_columns(("MUSIQ",), METRICS, None)


class TestAWideTable:
    def test_is_split_between_groups_of_columns_that_fit_and_else_between_columns(self):
        columns = [Column(group, f"{group}{i}") for group, n in (("a", 2), ("b", 3), ("c", 1)) for i in range(n)]
        grid = Grid(tuple(columns), (("row", tuple(Cell(str(i)) for i in range(6))),))

        def parts(room: float) -> list[str]:
            return [" ".join(c.header for c in part.columns) for part in grid.split(room, 10, [10] * 6)]

        assert parts(70) == ["a0 a1 b0 b1 b2 c0"]
        assert parts(69) == ["a0 a1 b0 b1 b2", "c0"]
        assert parts(59) == ["a0 a1", "b0 b1 b2 c0"]
        assert parts(40) == ["a0 a1", "b0 b1 b2", "c0"]
        assert parts(30) == ["a0 a1", "b0 b1", "b2 c0"]
        assert parts(5) == ["a0", "a1", "b0", "b1", "b2", "c0"]  # what fits nowhere stands alone

    def test_has_every_column_once_in_tex_at_a_size_that_can_be_read(self, result: dict):
        text = latex(result)
        assert "resizebox" not in text
        sizes = [float(size) for size in re.findall(r"\\fontsize\{([\d.]+)\}", text)]
        assert len(sizes) == text.count(r"\begin{table*}") == text.count(r"\toprule") > 3
        assert min(sizes) >= 7
        for head in ("train CPU", "MUSIQ", "Aesth."):
            assert re.sub(r"\\\\ ", "", text).count(head) == 1
        assert text.count(r"baseline & ") == text[: text.index("differences to")].count(r"\begin{table*}") - 1

    @pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
    @pytest.mark.slow
    def test_compiles_and_is_no_wider_than_the_text(self, result: dict, tmp_path: Path):
        arms = [{**arm, "name": f"[{arm['name']}] * a long name of an arm {i}"} for i, arm in enumerate(result["arms"])]
        for i, shown in enumerate((result, {**result, "arms": arms})):
            (tmp_path / f"{i}.tex").write_text(latex(shown))
        page = r"\documentclass{article}\usepackage{booktabs,amssymb}\begin{document}\input{0}\clearpage\input{1}"
        (tmp_path / "page.tex").write_text(rf"{page}\end{{document}}")
        words = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "page.tex"]
        ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
        assert ended.returncode == 0, ended.stdout[-2000:]
        assert "Overfull" not in ended.stdout


HOSTILE = "a<script>alert(1)</script>|*b*\\<img>[x](http://x)\n\n# c\x1b]0;title\x07"


def test_markdown_has_no_tag_no_link_and_no_line_of_a_name(result: dict):
    changed = {**result, "title": HOSTILE, "claim": HOSTILE, "notes": [HOSTILE]}
    changed["arms"] = [{**arm, "name": HOSTILE} if i == 0 else arm for i, arm in enumerate(result["arms"])]
    text = markdown(changed)
    escaped = r"a\<script>alert(1)\</script>\|\*b\*\\\<img>[x]\(http://x) # c\x1b]0;title\x07"
    assert f"## {escaped}\n" in text
    assert f"**Claim.** {escaped}\n" in text
    assert f"| {escaped} |" in text
    assert not [line for line in text.splitlines() if line.startswith("# ")]
    assert not re.search(r"(?<!\\)(<[a-z/!?]|\]\()", text)


def test_tex_keeps_a_name_on_its_line(result: dict):
    text = latex({**result, "claim": "one\n\\input{two}", "title": "one\n\ntwo"})
    assert "one two." in text
    assert "\\input{two}" not in [line.strip() for line in text.splitlines()]


def test_the_terminal_shows_control_characters_and_obeys_none(result: dict):
    printed = console(file=io.StringIO(), width=120, force_terminal=True)
    printed.print(terminal({**result, "title": HOSTILE}, 120))
    text = printed.file.getvalue()
    assert r"\x1b]0;title" in text
    assert "\x1b]0" not in text
    assert "\x1b[1m" in text  # rich's own styles stay
