"""The paper's tables as printed."""

from __future__ import annotations

import hashlib
import re
from decimal import Decimal
from pathlib import Path

import pytest

from benchmarks.metrics import GROUPS, METRICS
from benchmarks.paper import COLUMNS, PaperTable, load, names, number
from benchmarks.paper.recompute import DIMENSIONS

PAPER = Path(__file__).parents[3].parent / "shared" / "paper.md"
NUMBER = re.compile(r"\d[\d,.]*(?:e-\d+)?")
COSTS = {"latency", "latency_per_pixel", "latency_per_frame", "parameters", "peak_memory"}
FINGERPRINTS = {
    "table_1": (9, 126, "04aaab404bcd014b"),
    "table_2": (7, 42, "8279f49563dddc20"),
    "table_3": (9, 72, "25459433638e073f"),
    "table_4": (5, 10, "45753be94a9e7fa4"),
    "table_5": (4, 12, "92ebc5c06e136f2c"),
    "table_8_1": (13, 247, "170f4031de2e6b27"),
    "table_8_2": (3, 4, "6e1e8d0dd808f13c"),
    "table_9_3": (4, 16, "569794dfa34e65e9"),
}
"""table -> rows, printed numbers, sha256 over its lines."""


def without_spaces(text: str) -> str:
    return re.sub(r"\s", "", text.replace(r"\alpha", "α"))


def lines_of(table: PaperTable) -> list[str]:
    """Every row, with the heading it stands under before the first of them, as one string without spaces."""
    lines, group = [], ""
    for row in table.rows:
        if row.group and row.group != group:
            lines.append(without_spaces(row.group))
            group = row.group
        lines.append(without_spaces(row.label + "".join(row.printed[column.name] for column in table.columns)))
    return lines


def paper_lines(title: str) -> list[str]:
    """The lines of a table in the paper, below its head."""
    text = PAPER.read_text(encoding="utf-8")
    return text.split(f"\n{title}: ", 1)[1].split("\n\n")[1].splitlines()[1:]


def count_numbers(table: PaperTable) -> int:
    return sum(len(NUMBER.findall(text)) for row in table.rows for text in row.printed.values())


def test_the_tables_there_are():
    assert names() == [f"table_{n}" for n in ("1", "2", "3", "4", "5", "8_1", "8_2", "9_3")]


@pytest.mark.skipif(not PAPER.exists(), reason="needs ../shared/paper.md")
@pytest.mark.parametrize("name", names())
def test_every_cell_is_as_in_the_paper_and_nothing_else_is_there(name: str):
    table = load(name)
    assert lines_of(table) == [without_spaces(line) for line in paper_lines(table.title)]


@pytest.mark.skipif(not PAPER.exists(), reason="needs ../shared/paper.md")
@pytest.mark.parametrize("name", names())
def test_captions_and_heads_are_as_in_the_paper(name: str):
    table = load(name)
    text = PAPER.read_text(encoding="utf-8")
    caption, head = text.split(f"\n{table.title}: ", 1)[1].split("\n\n")[:2]
    assert re.sub(r" \[vbench\]", "", caption).strip() == table.caption
    head_text = without_spaces(head.splitlines()[0]).replace(r"\times", "×")
    for column in table.columns:
        assert without_spaces(column.name) in head_text


@pytest.mark.parametrize("name", names())
def test_no_cell_has_changed_since_it_was_compared_with_the_paper(name: str):
    table = load(name)
    digest = hashlib.sha256("\n".join(lines_of(table)).encode()).hexdigest()
    assert (len(table.rows), count_numbers(table), digest[:16]) == FINGERPRINTS[name]


@pytest.mark.parametrize("name", names())
def test_every_row_has_a_name_of_its_own_and_its_source(name: str):
    table = load(name)
    assert len(table.values()) == len(table.rows)
    assert [row.source for row in table.rows] == [f"{table.title}, row {i}" for i in range(1, len(table.rows) + 1)]
    assert all(re.fullmatch(r"[a-z0-9_]+", row.arm) for row in table.rows)


def test_a_system_has_the_same_name_in_all_tables():
    systems: dict[str, set[str]] = {}
    for name in ("table_1", "table_2", "table_3", "table_8_1", "table_8_2"):
        for row in load(name).rows:
            systems.setdefault(row.arm, set()).add(row.label.removesuffix(" (Ours)").lower())
    assert all(len(labels) == 1 for labels in systems.values())
    assert len(systems) == 28


def test_table_9_3_is_as_printed():
    table = load("table_9_3")
    assert [row.arm for row in table.rows] == ["baseline", "original", "exponential", "full"]
    assert table.values()["full"] == {"MUSIQ": 57.67, "NIQE": 3.94, "Tech.": 14.31, "Aesth.": 99.58}
    assert table.quality()["NIQE"] == "lower"
    assert table.rows[1].label == "Shortcut Original Sampling"
    assert table.rows[1].source == "Table 9.3, row 2"


def test_table_4_is_as_printed():
    table = load("table_4")
    assert {arm: row["Tech."] for arm, row in table.values().items()} == {
        "anchor": 8.01,
        "anchor_untuned": 3.30,
        "add": 12.51,
        "alpha_zero": 13.47,
        "gated": 14.31,
    }


def test_latency_is_a_cost_and_orders_nothing():
    table = load("table_5")
    assert table.values()["5"] == {"Tech.": 14.38, "Aesth.": 99.59, "Latency": 264}
    assert set(table.quality()) == {"Tech.", "Aesth."}


def test_cells_that_are_no_number_stay_text():
    row = load("table_8_2").row("ultrawan_4k")
    assert row.printed == {"Params.": "1.3B", "Peak Mem.": "OOM"}
    assert row.values == {"Params.": 1.3}
    row_2k = load("table_1").row("pixelwizard_2k")
    assert row_2k.printed["Resolution (T×H×W)"] == "121*2560*1440"
    assert "Resolution (T×H×W)" not in row_2k.values
    assert row_2k.values["Playback FPS"] == 24


def test_a_number_keeps_the_digits_it_was_printed_with():
    assert str(number("75.50")) == "75.50"
    assert number("24,125") == 24125
    assert number("4.00e-5") == Decimal("0.0000400")
    assert number("101.8GB", "GB") == Decimal("101.8")
    assert number("OOM", "GB") is None
    assert number("121*2560*1440") is None


@pytest.mark.parametrize("column", COLUMNS.values(), ids=lambda column: column.name)
def test_every_column_but_a_setting_says_what_of_ours_measures_the_same(column):
    if column.kind == "setting":
        assert column.metric is None
        assert column.direction is None
    elif column.kind == "cost":
        assert column.metric in COSTS
        assert column.direction == "lower"
    elif column.metric in METRICS:
        metric = METRICS[column.metric]
        assert (column.direction, column.factor, column.unit) == (metric.direction, metric.printed, metric.unit)
    else:
        assert column.metric in DIMENSIONS
        assert column.derived
        assert column.factor == 100


@pytest.mark.parametrize("name", ["table_1", "table_2", "table_3", "table_8_1"])
def test_a_tables_columns_are_the_metrics_of_its_group(name: str):
    metrics = {c.metric for c in load(name).columns if c.kind == "quality" and not c.derived}
    assert metrics == set(GROUPS[name])


def test_a_setting_has_no_arrow_and_a_cost_has_its_unit():
    assert COLUMNS["Playback FPS"].header == "Playback FPS [1/s]"
    assert COLUMNS["Latency"].header == "Latency [s]\u00a0↓"


def test_an_unknown_table_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no table 'table_6' of the paper; known: table_1, table_2, table_3, table_4"):
        load("table_6")


def test_an_unknown_row_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no row 'turbo' in table_8_2; its rows: flashvideo_4k, ultrawan_4k"):
        load("table_8_2").row("turbo")


def test_an_unknown_column_is_refused(tmp_path: Path):
    (tmp_path / "table_4.csv").write_text("label,arm,Sharpness,source\nAnchor,anchor,1,x\n")
    with pytest.raises(ValueError, match=r"table_4.csv: unknown column 'Sharpness'; known: MUSIQ, NIQE"):
        load("table_4", tmp_path)
