"""The paper's tables as printed."""

from __future__ import annotations

import pytest

from benchmarks.paper import load, names


def test_the_tables_there_are():
    assert names() == ["table_4", "table_5", "table_9_3"]


def test_table_9_3_is_as_printed():
    table = load("table_9_3")
    assert [row.arm for row in table.rows] == ["baseline", "uniform", "exponential", "full"]
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


def test_an_unknown_table_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no table 'table_6' of the paper; known: table_4, table_5, table_9_3"):
        load("table_6")
