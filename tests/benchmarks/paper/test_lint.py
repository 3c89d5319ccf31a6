"""What does not add up in the paper, and nothing else."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import paper
from benchmarks.paper.lint import as_json, lint, main, markdown, summary, terminal
from benchmarks.paper.recompute import Check, Interval, possible_interval, rounding, size

PAPER = Path(__file__).parents[3].parent / "shared" / "paper.md"
CHECKS = lint()
KNOWN = {
    ("Table 1, row 4", "UltraWan-1k", "Latency per Pixel", "9.66e-6"),
    ("Table 1, row 5", "UltraWan-4k", "Latency per Frame", "298.17"),
    ("Table 8.1, row 9", "HunyuanVideo", "Total Score", "83.24"),
    ("Table 8.1, row 9", "HunyuanVideo", "Quality Score", "85.09"),
    ("Table 2, row 1", "FlashVideo", "Resolution (H×W)", "1920*1080"),
    ("Table 5, row 3", "4 steps", "Tech.", "14.39"),
    ("Table 1, head", "all", "Resolution (T×H×W)", "T×H×W"),
    ("Table 2, head", "all", "Resolution (H×W)", "H×W"),
    ("Table 3, head", "all", "Resolution (H×W)", "H×W"),
    ("Table 5, row 4", "5 steps", "Latency", "264"),
    ("Table 1, row 8", "PixelWizard-2k", "Latency", "146"),
    ("Table 8.2, row 2", "UltraWan-4K", "Peak Mem.", "OOM"),
    ("sec. 8.2, paragraph 2", "FlashVideo (Table 1, row 3)", "playback duration", "approximately 5 seconds"),
}


def failures(checks: list[Check]) -> set[tuple[str, str, str, str]]:
    return {(c.place, c.row, c.column, c.printed) for c in checks if not c.adds_up}


def check_at(place: str, column: str, checks: list[Check] = CHECKS) -> Check:
    (check,) = [c for c in checks if (c.place, c.column) == (place, column)]
    return check


def lint_edited(folder: Path, name: str, before: str, after: str) -> list[Check]:
    """Lint a copy of the tables in which `before` is replaced by `after`."""
    shutil.copytree(paper.HERE, folder, dirs_exist_ok=True)
    path = folder / f"{name}.csv"
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1
    path.write_text(text.replace(before, after), encoding="utf-8")
    return lint(folder)


def test_exactly_the_known_slips_are_found():
    assert failures(CHECKS) == KNOWN


def test_how_much_adds_up_is_counted():
    assert summary(CHECKS) == [
        "62 of 66 derived cells recompute",
        "31 of 39 cells agree with the rest of the tables",
        "22 of 23 claims of the text hold",
    ]


def test_every_derived_column_of_every_row_is_recomputed():
    tables = [paper.load(name) for name in paper.names()]
    cells = {(row.source, c.name) for t in tables for row in t.rows for c in t.columns if c.derived}
    assert {(c.place, c.column) for c in CHECKS if c.kind == "derived"} == cells


def test_hunyuans_aesthetic_is_the_inferred_misprint():
    check = check_at("Table 8.1, row 9", "Total Score")
    assert check.possible == Interval(pytest.approx(83.291, abs=1e-3), pytest.approx(83.309, abs=1e-3))
    assert check.inference.startswith("Aesthetic Quality 60.36 instead of 60.86 makes the whole row add up")


def test_ultrawans_slips_are_explained_by_one_edit_each():
    per_pixel = check_at("Table 1, row 4", "Latency per Pixel")
    assert per_pixel.recomputed == "9.589e-6 to 9.595e-6"
    assert per_pixel.inference.startswith("Resolution (T×H×W) 81*1920*1080 instead of 81*1920*1088")
    assert "Latency 24,152 instead of 24,125" in check_at("Table 1, row 5", "Latency per Frame").inference


def test_five_steps_cost_what_seven_should():
    check = check_at("Table 5, row 4", "Latency")
    assert check.possible == Interval(pytest.approx(197), pytest.approx(199))
    assert check.inference == "198; 264 is what 7 steps would take"
    assert "52.8 s a step" in check.how


def test_the_speed_ups_of_the_abstract_hold():
    at_2k = check_at("abstract; sec. 1, last paragraph", "speed-up at 2K")
    assert at_2k.adds_up
    assert at_2k.possible == Interval(pytest.approx(1634.5 / 146.5), pytest.approx(1635.5 / 145.5))
    assert check_at("abstract; sec. 1, last paragraph", "speed-up at 4K").recomputed == "12.11 to 12.13"


@pytest.mark.skipif(not PAPER.exists(), reason="needs ../shared/paper.md")
def test_claims_are_quoted_from_the_text():
    text = re.sub(r"\\times", "×", PAPER.read_text(encoding="utf-8"))
    quotes = {c.printed for c in CHECKS if c.kind == "claim" and c.place[0] in "as" and "×16" not in c.printed}
    assert len(quotes) == 9
    assert not [quote for quote in quotes if quote not in text]


def test_a_printed_number_stands_for_what_rounds_to_it():
    assert rounding("146") == Interval(145.5, 146.5)
    assert rounding("75.50") == Interval(pytest.approx(75.495), pytest.approx(75.505))
    assert rounding("3.66e-6") == Interval(pytest.approx(3.655e-6), pytest.approx(3.665e-6))
    with pytest.raises(ValueError, match="'OOM' is not a number"):
        rounding("OOM")
    assert size("121*2560*1440") == (121, 2560, 1440)
    assert size("2240x1280") == (2240, 1280)


def test_intervals_meet_at_their_ends_and_not_beyond():
    assert Interval(1, 2).overlaps(Interval(2, 3))
    assert not Interval(1, 2).overlaps(Interval(2.001, 3))
    assert not Interval(145.5, 146.5).overlaps(Interval(164.5, float("inf")))


def test_honest_rounding_is_never_a_finding():
    rng = random.Random(0)
    columns = [c for c in paper.load("table_8_1").columns if not c.derived]
    sixth = [c for c in paper.load("table_1").columns if c.unit == "%" and not c.derived]
    for _ in range(100):
        exact = {c.name: rng.uniform(20, 99) for c in columns}
        printed = {name: f"{value:.2f}" for name, value in exact.items()}
        truth = possible_interval("Total Score", {name: f"{value:.12f}" for name, value in exact.items()}).middle
        assert possible_interval("Total Score", printed).overlaps(rounding(f"{truth:.2f}"))
        six = {c.name: rng.uniform(20, 99) for c in sixth}
        rounded = {name: f"{value:.2f}" for name, value in six.items()}
        assert possible_interval("Avg.", rounded).overlaps(rounding(f"{sum(six.values()) / 6:.2f}"))
        latency, frames = rng.uniform(100, 30_000), rng.randrange(40, 130)
        row = {"Latency": f"{latency:,.0f}", "Resolution (T×H×W)": f"{frames}*1920*1080"}
        per_pixel = f"{latency / (frames * 1920 * 1080):.2e}"
        assert possible_interval("Latency per Frame", row).overlaps(rounding(f"{latency / frames:.2f}"))
        assert possible_interval("Latency per Pixel", row).overlaps(rounding(per_pixel))


@pytest.mark.parametrize(
    ("name", "before", "after", "new"),
    [
        ("table_1", ",79.34,", ",79.43,", ("Table 1, row 8", "PixelWizard-2k", "Avg.", "79.43")),
        ("table_1", ",188.09,", ",180.89,", ("Table 1, row 7", "CineScale-Pro", "Latency per Frame", "180.89")),
        ("table_1", "49*1920*1072", "41*1920*1072", ("Table 1, row 3", "FlashVideo", "Latency per Frame", "2.53")),
        ("table_8_1", "71.39", "77.39", ("Table 8.1, row 13", "PixelWizard-2k (Ours)", "Quality Score", "84.56")),
        ("table_8_1", ",74.24,", ",72.44,", ("Table 8.1, row 12", "Turbo2K", "Semantic Score", "72.44")),
        ("table_3", ",57.67,", ",57.76,", ("Table 9.3, row 4", "", "MUSIQ", "57.67")),
        ("table_2", ",0.4756,", ",0.5756,", ("sec. 4.2, after Table 3", "PixelWizard", "mHD-LPIPS", "")),
        (
            "table_9_3",
            ",4.02,",
            ",4.05,",
            ("sec. 9.5", "", "NIQE", "yields consistent improvements across all metrics"),
        ),
        ("table_5", ",132,", ",123,", ("Table 5, row 2", "3 steps", "Latency", "123")),
        ("table_8_2", "10B", "12B", ("Table 8.2, row 3", "PixelWizard-4K", "Params.", "12B")),
    ],
)
def test_a_doctored_cell_is_caught(tmp_path: Path, name: str, before: str, after: str, new: tuple[str, ...]):
    more = failures(lint_edited(tmp_path, name, before, after)) - KNOWN
    assert any(all(want in got for want, got in zip(new, row, strict=True)) for row in more), more


def test_a_swap_of_digits_in_a_result_is_undone_by_the_inference(tmp_path: Path):
    check = check_at("Table 1, row 8", "Avg.", lint_edited(tmp_path, "table_1", ",79.34,", ",79.43,"))
    assert check.inference.startswith("Avg. 79.34 instead of 79.43 makes the whole row add up")


def test_a_slip_that_no_single_edit_explains_has_no_inference(tmp_path: Path):
    check = check_at("Table 1, row 8", "Avg.", lint_edited(tmp_path, "table_1", ",79.34,", ",11.99,"))
    assert not check.adds_up
    assert check.inference == ""


def test_the_terminal_shows_the_findings_within_its_width(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "264" in text
    assert "62 of 66 derived cells recompute" in lines
    assert "Table 1, row 1 " not in text


def test_markdown_has_a_row_per_finding(capsys: pytest.CaptureFixture[str]):
    assert main(["format=md"]) == 0
    out = capsys.readouterr().out
    assert out == markdown(CHECKS)
    assert len([line for line in out.splitlines() if line.startswith("| ")]) == 1 + len(KNOWN)
    assert out.endswith("- 22 of 23 claims of the text hold\n")


def test_all_shows_what_adds_up_too(capsys: pytest.CaptureFixture[str]):
    assert main(["format=md", "all=true", "table=table_1"]) == 0
    out = capsys.readouterr().out
    assert "### What adds up" in out
    assert "Table 1, row 1: Wan2.2-TI2V-5b, Avg. | 75.29 | 75.287 to 75.297 |" in out
    assert "HunyuanVideo" not in out


def test_json_has_every_check(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Printed by `format=`, written by `json=`, as by `pw plan`."""
    assert main(["format=json", f"json={tmp_path / 'new' / 'checks.json'}"]) == 0
    out = capsys.readouterr().out
    assert out == as_json(CHECKS) + "\n" == (tmp_path / "new" / "checks.json").read_text(encoding="utf-8")
    result = json.loads(out)
    assert len(result["checks"]) == len(CHECKS)
    least = next(c for c in result["checks"] if c["printed"] == "146" and not c["adds_up"])
    assert least["possible"] == [164.5, None]


def test_a_table_without_findings_prints_only_its_counts():
    clean = [c for c in CHECKS if c.adds_up and "table_9_3" in c.tables]
    assert markdown(clean).count("|") == 0
    assert len(terminal(clean).renderables) == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "tabel=table_1",
            "tabel=table_1: there is no option tabel; did you mean table? there are table, all, format, json",
        ),
        ("table=table_6", "table=table_6: choose from table_1, table_2"),
        ("format=pdf", "format=pdf: one of terminal, md"),
        ("json", "'json': write key=value; did you mean format=json? there are table, all, format, json"),
        ("json=true", "json=true: expected a file; format=json prints it"),
        ("json=/dev/null/x", "json=/dev/null/x: cannot be written"),
    ],
)
def test_a_wrong_argument_is_refused(argument: str, message: str, capsys: pytest.CaptureFixture[str]):
    assert main([argument]) == 2
    assert message in capsys.readouterr().err


def test_it_imports_nothing_heavy():
    code = (
        "import sys, benchmarks.paper.lint;print([m for m in ('torch', 'numpy', 'rich', 'pandas') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_all_checks_take_less_than_a_second():
    start = time.process_time()
    lint()
    assert time.process_time() - start < 1
