"""VBench's totals, against Table 8.1 and VBench's own constants."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.metrics import VBENCH_QUALITY, VBENCH_SEMANTIC
from benchmarks.paper import load
from benchmarks.paper.recompute import DIMENSIONS, RANGES, WEIGHTS, normalise, vbench_total

CONSTANTS = Path(__file__).parents[3].parent / "shared" / "data" / "vbench" / "vbench_constants.json"
TABLE = load("table_8_1")
SCORES = {"Total Score": "vbench_total", "Quality Score": "vbench_quality", "Semantic Score": "vbench_semantic"}


def fractions(arm: str) -> dict[str, float]:
    """Table 8.1's dimensions of a system, by our names, in [0, 1]."""
    row = TABLE.row(arm)
    return {c.metric: row.values[c.name] / 100 for c in TABLE.columns if c.metric in RANGES}


def max_error(arm: str) -> float:
    """The largest difference between printed and recomputed, in points."""
    row = TABLE.row(arm)
    return max(abs(100 * vbench_total(score, fractions(arm)) - row.values[name]) for name, score in SCORES.items())


@pytest.mark.parametrize("arm", [row.arm for row in TABLE.rows if row.arm != "hunyuanvideo"])
def test_twelve_rows_of_table_8_1_recompute_in_all_three_totals(arm: str):
    assert max_error(arm) < 0.01


def test_the_thirteenth_row_does_not_and_an_aesthetic_of_60_36_makes_it():
    assert max_error("hunyuanvideo") == pytest.approx(0.08, abs=0.01)
    corrected = {**fractions("hunyuanvideo"), "aesthetic_quality": 0.6036}
    assert 100 * vbench_total("vbench_quality", corrected) == pytest.approx(85.09, abs=0.005)
    assert 100 * vbench_total("vbench_total", corrected) == pytest.approx(83.24, abs=0.005)


def test_normalised_values_are_not_clipped():
    assert normalise("motion_smoothness", 0.7060) == 0
    assert normalise("motion_smoothness", 1.0) > 1
    assert normalise("subject_consistency", 0.0) == pytest.approx(-0.1462 / 0.8538)  # VBench's score of a missing one
    assert normalise("imaging_quality", 0.7139) == pytest.approx(0.7139)


def test_dynamic_degree_weighs_half():
    ones = {name: RANGES[name][1] for name in VBENCH_QUALITY}
    assert vbench_total("vbench_quality", ones) == pytest.approx(1)
    assert vbench_total("vbench_quality", {**ones, "dynamic_degree": 0.0}) == pytest.approx(6 / 6.5)
    assert vbench_total("vbench_quality", {**ones, "imaging_quality": 0.0}) == pytest.approx(5.5 / 6.5)


def test_quality_weighs_four_times_as_much_as_semantic():
    tops = {name: RANGES[name][1] for name in VBENCH_QUALITY}
    floors = {name: RANGES[name][0] for name in VBENCH_SEMANTIC}
    assert vbench_total("vbench_total", {**tops, **floors}) == pytest.approx(0.8)


def test_a_total_that_lacks_dimensions_has_no_value_and_names_them():
    values = fractions("pixelwizard_2k")
    del values["temporal_flickering"], values["scene"]
    for name, lacks in (
        ("quality", "temporal_flickering"),
        ("semantic", "scene"),
        ("total", "temporal_flickering, scene"),
    ):
        with pytest.raises(ValueError, match=f"vbench_{name} lacks {lacks}$"):
            vbench_total(f"vbench_{name}", values)
    assert 0 < vbench_total("vbench_average", values) < 1


def test_a_total_of_one_group_alone_has_no_value():
    with pytest.raises(ValueError, match=f"lacks {', '.join(VBENCH_SEMANTIC)}"):
        vbench_total("vbench_total", dict.fromkeys(VBENCH_QUALITY, 0.5))


def test_the_average_is_plain_and_of_six():
    values = dict.fromkeys(VBENCH_QUALITY, 0.9) | {"temporal_flickering": 0.0, "dynamic_degree": 0.3}
    assert vbench_total("vbench_average", values) == pytest.approx(0.8)
    table = load("table_1")
    for row in table.rows:
        six = {c.metric: row.values[c.name] / 100 for c in table.columns if c.metric in RANGES}
        assert 100 * vbench_total("vbench_average", six) == pytest.approx(row.values["Avg."], abs=0.0051)


def test_a_percentage_and_an_unknown_dimension_are_refused():
    with pytest.raises(ValueError, match=r"scene=54.87: VBench's values are fractions in \[0, 1\]; divide"):
        normalise("scene", 54.87)
    with pytest.raises(ValueError, match="unknown dimension 'colour' of VBench; known: subject_consistency"):
        normalise("colour", 0.5)


def test_every_total_of_the_tables_has_its_dimensions():
    assert {c.metric for c in TABLE.columns if c.derived} == DIMENSIONS.keys() - {"vbench_average"}


@pytest.mark.skipif(not CONSTANTS.exists(), reason="needs ../shared/data")
def test_the_constants_are_vbenchs():
    constants = json.loads(CONSTANTS.read_text())["dimensions"]
    assert {name: (row["min"], row["max"]) for name, row in constants.items()} == dict(RANGES)
    assert {name: row["weight"] for name, row in constants.items()} == dict(WEIGHTS)
    assert {name for name, row in constants.items() if row["group"] == "quality"} == set(VBENCH_QUALITY)
