"""plot.png and the dot plot of the terminal; tests inspect the figure's objects, not its pixels."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.report.figures import COLUMNS, LINES, NOT_COMPARED, VERDICTS, figure_of, plot
from benchmarks.report.grid import MARKS
from benchmarks.report.render import frame
from benchmarks.report.write import dot_plot
from benchmarks.stats.comparison import compare

METRICS = {"psd": 1.5, "swd": 0.029, "mhd": 0.017, "mhd_ratio": 0.62, "solution_gap": 0.01, "anchor_fidelity": 0.0055}


def result_of(
    factors: Mapping[str, float],
    seeds: int = 3,
    metrics: Sequence[str] = tuple(METRICS),
    lines: Mapping[str, Mapping[float, str]] | None = None,
    versus: Mapping[str, str | None] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A result whose arms have the values of METRICS times a factor, with a little noise per seed."""
    noise = (0.0, 0.004, -0.004)
    scores = {
        arm: {s: {m: METRICS[m] * f * (1 + noise[s] + 0.001 * ((i + s) % 3)) for m in metrics} for s in range(seeds)}
        for i, (arm, f) in enumerate(factors.items())
    }
    comparison = compare(scores, versus=versus)
    curve = lines and {
        "key": "step_sampler.beta",
        "label": "beta",
        "lines": [{"name": n, "points": [[x, arm] for x, arm in points.items()]} for n, points in lines.items()],
    }
    arms = [
        {
            "name": arm,
            "varied": {},
            **comparison.row(arm),
            "values": {m: {str(s): row[m] for s, row in by_seed.items()} for m in metrics},
        }
        for arm, by_seed in scores.items()
    ]
    return {
        "ablation": "crafted",
        "title": "What was asked?",
        "seeds": list(range(seeds)),
        "versus": "above",
        "primary": "psd",
        "across": None,
        "curve": curve,
        "arms": arms,
        "ceiling": {m: {"mean": METRICS[m] * 0.97, "low": None, "high": None, "n": 1} for m in metrics},
        "floor": {m: {"mean": METRICS[m] * 0.1, "low": None, "high": None, "n": 1} for m in metrics},
        "best": {},
        **more,
    }


def row_result() -> dict[str, Any]:
    return result_of({"baseline": 2.9, "uniform": 1.0, "exponential": 1.0, "full": 1.3})


def curve_result() -> dict[str, Any]:
    arms = {"beta_0": 1.0, "beta_0.7": 0.9, "beta_1.4": 1.3}
    return result_of(
        arms,
        versus={"beta_0": None, "beta_0.7": "beta_0", "beta_1.4": "beta_0"},
        lines={"": dict(zip((0, 0.7, 1.4), arms, strict=True))},
    ) | {"versus": "first"}


def curves_result() -> dict[str, Any]:
    names, steps = [f"arm_{i}" for i in range(7)], (2, 3, 4, 5)
    arms = {f"{name}@{n}": 1 + 0.1 * i + 1 / n for n in steps for i, name in enumerate(names)}
    return result_of(
        arms,
        versus={arm: None if arm.startswith("arm_0") else f"arm_0@{arm[-1]}" for arm in arms},
        lines={name: {n: f"{name}@{n}" for n in steps} for name in names},
    ) | {"versus": "first", "across": "sampling.num_steps"}


def verdict_marks(axes: Axes) -> list[str]:
    markers = [line.get_marker() for line in axes.lines if line.get_label() != "seeds"]
    return [str(marker) for marker in markers if marker in {*"^vosD"}]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def dot_lines(result: dict[str, Any], width: int = 80) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(dot_plot(result, width))
    return out.getvalue().splitlines()


def test_every_verdict_of_the_table_has_a_mark_in_the_plot() -> None:
    assert set(VERDICTS) == set(MARKS)


class TestThePlotOfRows:
    def test_leads_with_the_primary_metric_and_its_differences(self) -> None:
        figure = figure_of(row_result())
        assert titles(figure)[:2] == ["PSD [dB]\u00a0↓", "difference to the arm above"]
        large, small = (figure.axes[i].title.get_fontsize() for i in (0, 2))
        assert large > small
        figure.draw_without_rendering()
        sizes = [axes.get_window_extent().width * axes.get_window_extent().height for axes in figure.axes]
        assert min(sizes[:2]) > 1.5 * max(sizes[2:])

    def test_leads_with_another_metric_where_that_is_the_primary_one(self) -> None:
        assert titles(figure_of({**row_result(), "primary": "swd"}))[0].startswith("SWD")

    def test_marks_verdicts_by_shape_and_fill(self) -> None:
        result = row_result()
        verdicts = [arm["vs_previous"].get("psd", {}).get("verdict") for arm in result["arms"]]
        assert verdicts == [None, "better", "no difference shown", "worse"]
        values, differences = figure_of(result).axes[:2]
        assert verdict_marks(values) == ["s", "^", "o", "v"]
        assert verdict_marks(differences) == ["^", "o", "v"]
        shapes = [(mark.marker, mark.filled) for mark in (*VERDICTS.values(), NOT_COMPARED)]
        assert len(set(shapes)) == len(shapes)  # also without colour

    def test_shows_every_seed(self) -> None:
        seeds = [line for line in figure_of(row_result()).axes[0].lines if line.get_label() == "seeds"]
        assert [len(line.get_xdata()) for line in seeds] == [3, 3, 3, 3]

    def test_has_the_other_metrics_on_one_grid_with_names_at_the_left_only(self) -> None:
        figure = figure_of(row_result())
        small = figure.axes[2:]
        assert len(small) == len(METRICS) - 1
        named = [bool(axes.get_yticklabels()[0].get_text()) for axes in small]
        assert named == [True, False, False, True, False]  # five in rows of three: no row is empty

    @pytest.mark.parametrize("n", range(1, len(METRICS) + 1))
    def test_has_no_empty_row_for_any_number_of_metrics(self, n: int) -> None:
        figure = figure_of(result_of({"a": 1, "b": 2}, metrics=tuple(METRICS)[:n]))
        assert len(figure.axes) == n + 1
        places = [axes.get_subplotspec() for axes in figure.axes[2:]]
        assert {p.rowspan.start for p in places if p} == set(range(-(-(n - 1) // COLUMNS)))

    def test_is_read_from_the_back_of_a_room(self) -> None:
        figure = figure_of(row_result())
        assert figure.get_figwidth() == 12
        texts = [t for axes in figure.axes for t in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title)]
        assert min(text.get_fontsize() for text in [*texts, *figure.legends[0].get_texts()]) >= 11
        assert figure.axes[0].get_yticklabels()[0].get_fontsize() >= 13

    def test_says_which_side_is_better(self) -> None:
        assert figure_of(row_result()).axes[1].get_xlabel().startswith("← better")
        assert figure_of({**row_result(), "primary": "mhd"}).axes[1].get_xlabel().endswith("better →")
        ratio = figure_of({**row_result(), "primary": "mhd_ratio"}).axes[1]
        assert ratio.get_title(loc="left").startswith("difference of |ln|")
        assert ratio.get_xlabel().startswith("← better")

    def test_puts_a_floor_that_is_far_away_into_words(self) -> None:
        near, far = figure_of(row_result()).axes[0], figure_of(result_of({"a": 1.0, "b": 1.05})).axes[0]
        assert near.get_title(loc="right") == ""
        assert far.get_title(loc="right") == "floor 0.150 ←"
        assert far.get_xlim()[0] > 1

    def test_of_one_seed_has_no_intervals(self) -> None:
        values, differences = figure_of(result_of({"a": 1, "b": 2}, seeds=1)).axes[:2]
        assert not any(len(c.get_segments()) for c in (*values.collections, *differences.collections))  # type: ignore[attr-defined]
        assert verdict_marks(values) == ["s", "D"]


class TestThePlotOfACurve:
    def test_is_over_the_number_with_its_interval(self) -> None:
        figure = figure_of(curve_result())
        values, differences = figure.axes[:2]
        for axes in (values, differences):
            assert axes.get_xlabel() == "beta"
            assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.7", "1.4"]
        assert verdict_marks(values) == ["s", "^", "v"]
        assert sorted(verdict_marks(differences)) == sorted(verdict_marks(values))
        assert differences.get_title(loc="left") == "difference to beta_0"
        assert [len(c.get_paths()) for c in values.collections][:1] == [1]  # the band
        assert values.get_xlim() == differences.get_xlim()

    def test_draws_the_ceiling_and_the_floor_in_styles_that_differ(self) -> None:
        figure = figure_of({**curve_result(), "floor": curve_result()["ceiling"]})
        guides = {str(line.get_linestyle()) for line in figure.axes[0].lines if len(line.get_xdata()) == 2}
        assert {"--", ":"} <= guides

    def test_has_a_line_per_arm_where_arms_are_crossed_with_the_number(self) -> None:
        result = curves_result()
        assert len(result["arms"]) == 28
        figure = figure_of(result)
        values = figure.axes[0]
        legend = values.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == [f"arm_{i}" for i in reversed(range(7))]
        dashes = [str(line._unscaled_dash_pattern) for line in legend.get_lines()]  # type: ignore[attr-defined]
        assert len(set(dashes)) == len(LINES) == 7
        assert len(verdict_marks(values)) == 28
        assert figure.get_figheight() < 12

    def test_of_far_apart_numbers_has_a_logarithmic_axis(self) -> None:
        arms = {f"updates_{n}": 1 + 1 / n for n in (10, 100, 1000)}
        result = result_of(arms, lines={"": dict(zip((10, 100, 1000), arms, strict=True))})
        assert {axes.get_xscale() for axes in figure_of(result).axes} == {"log"}

    def test_leaves_out_an_arm_that_failed(self) -> None:
        result = curve_result()
        result["arms"][1] |= {"metrics": {}, "vs_previous": {}, "values": {}}
        assert verdict_marks(figure_of(result).axes[0]) == ["s", "v"]


@pytest.mark.slow
@pytest.mark.parametrize("make", [row_result, curve_result, curves_result])
def test_a_plot_is_the_same_bytes_again(make: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    plot(make(), tmp_path / "a.png")
    plot(make(), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_result_without_scores_is_said_to_have_none(tmp_path: Path) -> None:
    result = row_result()
    for arm in result["arms"]:
        arm |= {"metrics": {}, "vs_previous": {}, "values": {}}
    assert [text.get_text() for text in figure_of(result).texts][-1] == "no arm has scores"
    assert dot_plot(result, 80) is None
    plot(result, tmp_path / "plot.png")


def test_the_frame_of_a_plot_holds_every_interval_and_what_is_near() -> None:
    result = result_of({"a": 1.0, "b": 1.05})
    low, high = frame(result, "psd")
    ends = [arm["metrics"]["psd"][end] for arm in result["arms"] for end in ("low", "high")]
    assert high == max(ends)
    assert low == result["ceiling"]["psd"]["mean"] < min(ends)


class TestTheDotsOfTheTerminal:
    @pytest.mark.parametrize("make", [row_result, curve_result, curves_result])
    @pytest.mark.parametrize("width", [60, 80, 200])
    def test_keep_within_the_width(self, make: Callable[[], dict[str, Any]], width: int) -> None:
        assert max(len(line) for line in dot_lines(make(), width)) <= width

    def test_are_a_row_per_number_with_verdict_and_interval(self) -> None:
        lines = dot_lines(curve_result())
        by_label = {line[:22].strip(): line[22:] for line in lines}
        for label, sign in (("beta 0", "■"), ("beta 0.7", "▲"), ("beta 1.4", "▼"), ("48-step ceiling", "◆")):
            assert sign in by_label[label], lines
        assert by_label["beta 0.7"].index("▲") < by_label["beta 0"].index("■") < by_label["beta 1.4"].index("▼")
        assert "├" in by_label["beta 1.4"]
        assert "┤" in by_label["beta 1.4"]
        assert "compared with beta_0" in lines[0]

    def test_follow_the_lines_of_crossed_arms(self) -> None:
        labels = [line.split()[0] for line in dot_lines(curves_result()) if line.strip().startswith("arm_")]
        assert labels == [f"arm_{i}@{n}" for i in range(7) for n in (2, 3, 4, 5)]

    def test_point_to_a_floor_that_is_far_away(self) -> None:
        floor = next(line for line in dot_lines(result_of({"a": 1.0, "b": 1.05})) if "floor" in line)
        assert floor.endswith("◂ 0.150")

    def test_of_one_seed_have_no_interval(self) -> None:
        assert not any("├" in line for line in dot_lines(result_of({"a": 1, "b": 2}, seeds=1)))
