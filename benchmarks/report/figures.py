"""Draw plot.png: large panels with the primary metric's values and differences, a grid of small panels for the others.

Arms with a numeric setting (`curve` in table.json) are points of curves over that number; other arms are rows. The
marker's shape shows the verdict and the dash pattern the line, so the plot is readable in black and white.

The file holds no date and no version: on one machine, the same input gives the same bytes.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.metrics import lookup
from benchmarks.report import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
"""Maximum number of small panels in a row."""

WIDTH = 12.0
"""Width of the figure in inches. Fonts have at least 11 pt at this width."""


class Mark(NamedTuple):
    marker: str
    colour: str
    filled: bool


VERDICTS = {
    "better": Mark("^", "#0072B2", True),
    "worse": Mark("v", "#D55E00", True),
    "no difference shown": Mark("o", "#333333", False),
    "not resolved": Mark("D", "#333333", False),
}
NOT_COMPARED = Mark("s", "#333333", True)
REFERENCES: Mapping[str, tuple[str, Any]] = {"ceiling": ("#007A5A", "--"), "floor": ("#A6457E", ":")}
Point = tuple[Mapping[str, Any], Mark]
"""An estimate or a difference, and its marker."""

LINES: Sequence[tuple[str, Any]] = (
    ("#222222", "-"),
    ("#D55E00", (0, (6, 2))),
    ("#0072B2", (0, (2, 1.5))),
    ("#009E73", (0, (8, 2, 2, 2))),
    ("#CC79A7", (0, (4, 1, 1, 1, 1, 1))),
    ("#B07A00", (0, (1, 1))),
    ("#3A9BD9", (0, (10, 3))),
)
"""Colour and dashes of the lines of a curve, in order; they repeat from the eighth line on."""

STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "axes.formatter.use_mathtext": True,
}
_LARGE: Any = {"markersize": 10, "markeredgewidth": 1.8, "elinewidth": 2.2, "capsize": 5}
_SMALL: Any = {"markersize": 7, "markeredgewidth": 1.8, "elinewidth": 1.6, "capsize": 3}
_LEADS: Any = {"axes.titlesize": 16, "axes.labelsize": 13, "xtick.labelsize": 13, "ytick.labelsize": 13}


def plot(result: render.Result, out: Path) -> None:
    figure_of(result).savefig(out, format="png", dpi=160, metadata={"Software": None})


def figure_of(result: render.Result) -> Figure:
    """The figure. axes[0]: values of the primary metric; axes[1]: its differences; then the values of the others."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    primary, layout = render.primary_metric(result), Layout.of(result)
    others = [name for name in render.metrics(result) if name != primary]
    rows = -(-len(others) // COLUMNS)
    heights = [layout.height(large=True), *[layout.height(large=False)] * rows]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, sum(heights) + 1.3), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(textwrap.fill(render.title(result), 78), x=0.01, ha="left", fontsize=17, fontweight="bold")
        if primary is None:
            figure.text(0.5, 0.5, "no arm has scores", ha="center", fontsize=14)
            return figure
        ratios = [heights[0], sum(heights[1:])] if rows else heights
        upper, *lower = figure.add_gridspec(len(ratios), 1, height_ratios=ratios)
        with mpl.rc_context(_LEADS):
            values, differences = (figure.add_subplot(cell) for cell in upper.subgridspec(1, 2))
            _values_panel(values, result, layout, primary, large=True)
            _differences_panel(differences, result, layout, primary)
            layout.label_axis(values, at_left=True, at_bottom=True)
            layout.label_axis(differences, at_left=False, at_bottom=True)
            if len(layout.lines) > 1:
                _label_lines(values, result, layout, primary)
        if lower:
            columns = -(-len(others) // rows)
            cells = lower[0].subgridspec(rows, columns)
            for i, name in enumerate(others):
                axes = figure.add_subplot(cells[i // columns, i % columns])
                _values_panel(axes, result, layout, name, large=False)
                layout.label_axis(axes, at_left=i % columns == 0, at_bottom=i + columns >= len(others))
        _legend(figure, result)
    return figure


@dataclass(frozen=True)
class Layout:
    """Positions of the arms: rows along y, or numbers along x if `lines` is not empty.

    lines  name of a line -> its arms in order
    """

    positions: Mapping[str, float]
    ticks: Mapping[float, str]
    lines: Mapping[str, Sequence[str]]
    title: str = ""
    is_log: bool = False

    @classmethod
    def of(cls, result: render.Result) -> Layout:
        """The layout of a result. Lines are shifted a little along x, so that intervals do not overlap."""
        curve = result.get("curve")
        if not curve:
            names = [arm["name"] for arm in result["arms"]]
            return cls({name: y for y, name in enumerate(names)}, dict(enumerate(names)), {})
        numbers = sorted({number for line in curve["lines"] for number, _ in line["points"]})
        is_log = numbers[0] > 0 and numbers[-1] > 30 * numbers[0]
        transform, inverse = (math.log, math.exp) if is_log else (float, float)
        min_gap = min((transform(b) - transform(a) for a, b in itertools.pairwise(numbers)), default=1.0)
        n, positions = len(curve["lines"]), {}
        for i, line in enumerate(curve["lines"]):
            shift = min(0.06, 0.25 / n) * min_gap * (i - (n - 1) / 2)
            positions |= {arm: inverse(transform(number) + shift) for number, arm in line["points"]}
        lines = {line["name"]: [arm for _, arm in line["points"]] for line in curve["lines"]}
        return cls(positions, {number: f"{number:g}" for number in numbers}, lines, curve["label"], is_log)

    def seed_position(self, arm: str) -> float:
        """Position of an arm's seeds, next to the arm."""
        if not self.lines:
            return self.positions[arm] + 0.22
        low, high = min(self.ticks), max(self.ticks)
        return self.positions[arm] * (high / low) ** 0.02 if self.is_log else self.positions[arm] + 0.02 * (high - low)

    def height(self, *, large: bool) -> float:
        """Height of a row of panels in inches."""
        if self.lines:
            return (4.6 if len(self.lines) < 4 else 5.4) if large else 2.3
        n = len(self.positions)
        per_row = min(0.55, max(0.3, 9 / n)) if large else min(0.32, max(0.22, 6 / n))
        return max(2.2, per_row * n + 1.4) if large else per_row * n + 0.9

    def label_axis(self, axes: Axes, *, at_left: bool, at_bottom: bool) -> None:
        """Label the arm axis, or the number axis, of a panel at the left or bottom edge of the figure."""
        if self.lines:
            if self.is_log:
                axes.set_xscale("log")
                axes.minorticks_off()
            axes.set_xticks(list(self.ticks), list(self.ticks.values()) if at_bottom else [""] * len(self.ticks))
            axes.set_xlabel(self.title if at_bottom else "")
            if len(self.ticks) > 1:
                low, high = min(self.ticks), max(self.ticks)
                margin = (high / low) ** 0.07 if self.is_log else 0.07 * (high - low)
                axes.set_xlim(*((low / margin, high * margin) if self.is_log else (low - margin, high + margin)))
        else:
            axes.set_ylim(len(self.ticks) - 0.5, -0.5)
            axes.set_yticks(list(self.ticks), list(self.ticks.values()) if at_left else [""] * len(self.ticks))
            axes.tick_params(axis="y", length=0)


def _values_panel(axes: Axes, result: render.Result, layout: Layout, name: str, *, large: bool) -> None:
    metric, digits, (low, high) = lookup(name), render.digits_of(result, name), render.frame(result, name)
    points: dict[str, Point] = {}
    for arm in result["arms"]:
        if name in arm["metrics"]:
            verdict = arm["vs_previous"].get(name, {}).get("verdict")
            points[arm["name"]] = (arm["metrics"][name], NOT_COMPARED if verdict is None else VERDICTS[verdict])
            if large and len(layout.lines) < 2 and len(result["seeds"]) > 1:
                seeds = list((arm.get("values") or {}).get(name, {}).values())
                positions = [layout.seed_position(arm["name"])] * len(seeds)
                x, y = (positions, seeds) if layout.lines else (seeds, positions)
                axes.plot(x, y, "o", color="#999999", markersize=4, zorder=2, label="seeds")
    _draw(axes, layout, points, "mean", large=large, connect=True)
    axes.set_title(render.heading(metric, digits), loc="left", fontweight="bold" if large else "normal")
    _value_ticks(axes, layout, digits.exponent)
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    axes.set(**{"ylim" if layout.lines else "xlim": (low - margin, high + margin)})
    guide = axes.axhline if layout.lines else axes.axvline
    if metric.direction == "one" and low <= 1 <= high:
        guide(1, color="#999999", linewidth=0.9, zorder=1)
    for key, _, row in render.references(result):
        (colour, style), mean = REFERENCES[key], row.get(name, {}).get("mean")
        if mean is not None and low <= mean <= high:
            guide(mean, color=colour, linestyle=style, linewidth=2.2 if large else 1.6, zorder=1)
        elif mean is not None:
            arrow = ("↓" if mean < low else "↑") if layout.lines else ("←" if mean < low else "→")
            axes.set_title(f"{key} {digits.text(mean)} {arrow}", loc="right", fontsize=11, color=colour)


def _differences_panel(axes: Axes, result: render.Result, layout: Layout, name: str) -> None:
    comparisons = {arm["name"]: arm["vs_previous"][name] for arm in result["arms"] if name in arm["vs_previous"]}
    points = {arm: (row, VERDICTS[row["verdict"]]) for arm, row in comparisons.items() if row["diff"] is not None}
    one_reference = result.get("versus", "above") == "first" or bool(result.get("across"))
    if one_reference:
        arms = [arm["name"] for arm in result["arms"] if name in arm["metrics"]]
        points |= {arm: ({"diff": 0.0}, NOT_COMPARED) for arm in arms if arm not in comparisons}
    is_log = any(row["diff_of"] == "abs_log" for row in comparisons.values())
    (axes.axhline if layout.lines else axes.axvline)(0, color="#222222", linewidth=1.2, zorder=1)
    _draw(axes, layout, points, "diff", large=True, connect=one_reference)
    title = f"difference{' of |ln|' if is_log else ''} to {render.compared_with(result)}"
    axes.set_title("\n".join(textwrap.wrap(title, 46)), loc="left", fontsize=14)
    higher_is_better = lookup(name).direction == "higher"
    label = "← worse        better →" if higher_is_better else "← better        worse →"
    axes.set(**{"ylabel" if layout.lines else "xlabel": label})
    _value_ticks(axes, layout, 0 if is_log else render.digits_of(result, name).exponent)


def _value_ticks(axes: Axes, layout: Layout, exponent: int) -> None:
    """Set a few ticks on the metric's axis, in the unit of the table."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis = axes.yaxis if layout.lines else axes.xaxis
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 10**exponent:.6g}".replace("-", "−")))


def _draw(axes: Axes, layout: Layout, points: Mapping[str, Point], key: str, *, large: bool, connect: bool) -> None:
    """Draw means or differences with intervals. `connect` joins the points of a line; a single line has a band."""
    colours = {arm: mark.colour for arm, (_, mark) in points.items()}
    for (_, arms), (colour, dashes) in zip(layout.lines.items(), itertools.cycle(LINES), strict=False):
        names = [arm for arm in arms if arm in points]
        x, y = [layout.positions[arm] for arm in names], [points[arm][0][key] for arm in names]
        if connect:
            axes.plot(x, y, color=colour, linestyle=dashes, linewidth=2.4 if large else 1.6, zorder=2)
        if len(layout.lines) > 1:
            colours |= dict.fromkeys(names, colour)
        elif connect and names and all(points[arm][0].get("low") is not None for arm in names):
            low, high = ([points[arm][0][end] for arm in names] for end in ("low", "high"))
            axes.fill_between(x, low, high, color="#222222", alpha=0.1, linewidth=0, zorder=0)
    for arm, (row, mark) in points.items():
        error = None if row.get("low") is None else [[row[key] - row["low"]], [row["high"] - row[key]]]
        x, y = (layout.positions[arm], row[key]) if layout.lines else (row[key], layout.positions[arm])
        bars: dict[str, Any] = {"yerr" if layout.lines else "xerr": error, **(_LARGE if large else _SMALL)}
        face = colours[arm] if mark.filled else "white"
        axes.errorbar(x, y, fmt=mark.marker, color=colours[arm], markerfacecolor=face, zorder=3, **bars)


def _label_lines(axes: Axes, result: render.Result, layout: Layout, name: str) -> None:
    """Write the names of the lines to the right of a panel, in the order of their last values."""
    from matplotlib.lines import Line2D

    means = {arm["name"]: arm["metrics"][name]["mean"] for arm in result["arms"] if name in arm["metrics"]}
    ends = []
    for (line, arms), (colour, dashes) in zip(layout.lines.items(), itertools.cycle(LINES), strict=False):
        if values := [means[arm] for arm in arms if arm in means]:
            ends.append((values[-1], Line2D([], [], color=colour, linestyle=dashes, linewidth=2.4, label=line)))
    handles = [handle for _, handle in sorted(ends, key=lambda end: -end[0])]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=2.6, fontsize=12)


def _legend(figure: Figure, result: render.Result) -> None:
    from matplotlib.lines import Line2D

    verdicts = {row["verdict"] for arm in result["arms"] for row in arm["vs_previous"].values()}
    handles = [
        Line2D([], [], color=colour, linestyle=style, linewidth=2.2, label=label)
        for key, label, row in render.references(result)
        for colour, style in [REFERENCES[key]]
        if row
    ]
    several_lines = len((result.get("curve") or {}).get("lines", ())) > 1  # then colours identify lines
    for label, mark in (("not compared", NOT_COMPARED), *VERDICTS.items()):
        if label in verdicts or mark is NOT_COMPARED:
            colour = NOT_COMPARED.colour if several_lines else mark.colour
            face = colour if mark.filled else "white"
            dot = Line2D([], [], ls="", marker=mark.marker, ms=9, color=colour, markerfacecolor=face, label=label)
            handles.append(dot)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=11)
