"""frontier.png, and the plan's columns of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_figures import result_of

from benchmarks.report.costs import PLAN, costs
from benchmarks.report.frontier import figure_of, frontier, is_planned, plot
from benchmarks.report.render import differences
from benchmarks.report.write import to_csv

SECONDS = {"guided": 149.0, "unguided": 93.0, "half_size": 99.0, "fast_and_bad": 60.0}
QUALITY = {"guided": 1.0, "unguided": 1.3, "half_size": 1.35, "fast_and_bad": 2.0}


@pytest.fixture
def result() -> dict[str, Any]:
    content = result_of(QUALITY, versus={arm: None if arm == "guided" else "guided" for arm in QUALITY})
    for arm in content["arms"]:
        seconds = SECONDS[arm["name"]]
        arm["cost"] = {"plan_2k_s": seconds, "plan_2k_gb": 24.3, "plan_4k_s": 4 * seconds, "plan_4k_gb": 39.6}
    return content | {"versus": "first"}


def test_an_arm_is_dominated_by_one_that_is_as_fast_and_better() -> None:
    # half_size is slower and worse than unguided; ties dominate neither
    assert frontier({arm: (SECONDS[arm], QUALITY[arm]) for arm in SECONDS}) == ["fast_and_bad", "unguided", "guided"]
    assert frontier({"a": (1.0, 2.0), "b": (1.0, 2.0), "c": (1.0, 3.0)}) == ["a", "b"]


def test_dominated_arms_are_grey_and_the_others_are_joined(result: dict[str, Any]) -> None:
    panel = figure_of(result).axes[0]
    colours = {float(line.get_xdata()[0]): line.get_color() for line in panel.lines if line.get_marker() in "s^vDo"}
    assert {seconds for seconds, colour in colours.items() if colour == "#9A9A9A"} == {99.0}
    (joined,) = (line for line in panel.lines if len(line.get_xdata()) == 3)
    assert [float(x) for x in joined.get_xdata()] == [60.0, 93.0, 149.0]
    assert {text.get_text() for text in panel.texts} >= set(SECONDS)


def test_the_intervals_are_those_of_the_table(result: dict[str, Any]) -> None:
    panel, guided = figure_of(result).axes[0], result["arms"][0]["metrics"]["psd"]
    segments = [segment for bars in panel.collections for segment in bars.get_segments()]
    (interval,) = (segment[:, 1] for segment in segments if segment[0][0] == 149.0)
    assert interval.tolist() == pytest.approx([guided["low"], guided["high"]])


def test_names_do_not_lie_upon_each_other(result: dict[str, Any]) -> None:
    for arm in result["arms"]:
        arm["cost"]["plan_2k_s"] = 93.0
        arm["metrics"]["psd"] = {"mean": 1.0, "low": 0.9, "high": 1.1, "n": 3}
    heights = [text.xyann[1] for text in figure_of(result).axes[0].texts if text.get_text() in SECONDS]
    assert min(b - a for a, b in zip(sorted(heights), sorted(heights)[1:], strict=False)) > 0.04


def test_it_is_drawn_the_same_each_time(result: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        plot(result, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert Image.open(tmp_path / "one.png").width > 1500


def test_the_table_has_the_plan_and_how_many_times_faster_an_arm_is(result: dict[str, Any]) -> None:
    assert is_planned(result)
    assert [column.header for column in costs(result).columns if column.group == PLAN] == [
        *("2K [s]", "2K [GB]", "4K [s]", "4K [GB]")
    ]
    grid = differences(result)
    ratios = dict(zip(dict(grid.rows), (cells[-2].text for _, cells in grid.rows), strict=True))
    assert ratios == {"unguided": "1.60×", "half_size": "1.51×", "fast_and_bad": "2.48×"}
    assert "cost.plan_2k_s" in to_csv(result).splitlines()[0]


def test_a_result_without_a_plan_has_no_such_columns() -> None:
    plain = result_of(QUALITY)
    assert not is_planned(plain)
    assert not [
        column for grid in (costs(plain), differences(plain)) for column in grid.columns if column.group == PLAN
    ]
