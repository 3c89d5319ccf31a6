"""plot.png: the primary metric large, values and differences side by side; the other metrics small, on one grid.

Arms that lie along a number (`curve` of table.json) are points of curves over it, other arms are rows. A marker's shape
is the verdict of its comparison, and line styles tell lines apart, so that it reads in black and white, too.

No date, no version in the file: the same input gives the same bytes on one machine.
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
"""Small panels side by side, at most."""

WIDTH = 12.0
"""Of the figure, in inches: fonts are 11 pt and more at this width."""


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
Spot = tuple[Mapping[str, Any], Mark]
"""An estimate or a difference, and how it is drawn."""

LINES: Sequence[tuple[str, Any]] = (
    ("#222222", "-"),
    ("#D55E00", (0, (6, 2))),
    ("#0072B2", (0, (2, 1.5))),
    ("#009E73", (0, (8, 2, 2, 2))),
    ("#CC79A7", (0, (4, 1, 1, 1, 1, 1))),
    ("#B07A00", (0, (1, 1))),
    ("#3A9BD9", (0, (10, 3))),
)
"""Colour and dashes of a curve's lines, in order; from the eighth line on they come again."""

_STYLE: Any = {
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
    figure_of(result).savefig(out, dpi=160, metadata={"Software": None})


def figure_of(result: render.Result) -> Figure:
    """The figure: axes[0] are the primary metric's values, axes[1] its differences, the others' values follow."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    leading, places = render.primary_metric(result), Places.of(result)
    others = [name for name in render.metrics(result) if name != leading]
    rows = -(-len(others) // COLUMNS)
    heights = [places.height(large=True), *[places.height(large=False)] * rows]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, sum(heights) + 1.3), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(textwrap.fill(render.title(result), 78), x=0.01, ha="left", fontsize=17, fontweight="bold")
        if leading is None:
            figure.text(0.5, 0.5, "no arm has scores", ha="center", fontsize=14)
            return figure
        ratios = [heights[0], sum(heights[1:])] if rows else heights
        top, *below = figure.add_gridspec(len(ratios), 1, height_ratios=ratios)
        with mpl.rc_context(_LEADS):
            values, differences = (figure.add_subplot(cell) for cell in top.subgridspec(1, 2))
            _values_panel(values, result, places, leading, leads=True)
            _differences_panel(differences, result, places, leading)
            places.label(values, at_left=True, at_bottom=True)
            places.label(differences, at_left=False, at_bottom=True)
            if len(places.lines) > 1:
                _name_lines(values, result, places, leading)
        if below:
            columns = -(-len(others) // rows)
            cells = below[0].subgridspec(rows, columns)
            for i, name in enumerate(others):
                axes = figure.add_subplot(cells[i // columns, i % columns])
                _values_panel(axes, result, places, name, leads=False)
                places.label(axes, at_left=i % columns == 0, at_bottom=i + columns >= len(others))
        _legend(figure, result)
    return figure


@dataclass(frozen=True)
class Places:
    """Where arms stand: in rows along y, or, where `lines` are given, at a number along x.

    at     arm -> its place
    lines  name -> arms in order
    """

    at: Mapping[str, float]
    ticks: Mapping[float, str]
    lines: Mapping[str, Sequence[str]]
    title: str = ""
    is_log: bool = False

    @classmethod
    def of(cls, result: render.Result) -> Places:
        """Those of a result's arms; lines stand a little beside each other, so that no interval hides another."""
        curve = result.get("curve")
        if not curve:
            names = [arm["name"] for arm in result["arms"]]
            return cls({name: y for y, name in enumerate(names)}, dict(enumerate(names)), {})
        numbers = sorted({number for line in curve["lines"] for number, _ in line["points"]})
        is_log = numbers[0] > 0 and numbers[-1] > 30 * numbers[0]
        to, back = (math.log, math.exp) if is_log else (float, float)
        nearest = min((to(b) - to(a) for a, b in itertools.pairwise(numbers)), default=1.0)
        n, at = len(curve["lines"]), {}
        for i, line in enumerate(curve["lines"]):
            aside = min(0.06, 0.25 / n) * nearest * (i - (n - 1) / 2)
            at |= {arm: back(to(number) + aside) for number, arm in line["points"]}
        lines = {line["name"]: [arm for _, arm in line["points"]] for line in curve["lines"]}
        return cls(at, {number: f"{number:g}" for number in numbers}, lines, curve["label"], is_log)

    def beside(self, arm: str) -> float:
        """A place next to an arm's, for its seeds."""
        if not self.lines:
            return self.at[arm] + 0.22
        low, high = min(self.ticks), max(self.ticks)
        return self.at[arm] * (high / low) ** 0.02 if self.is_log else self.at[arm] + 0.02 * (high - low)

    def height(self, *, large: bool) -> float:
        """Inches of a row of panels."""
        if self.lines:
            return (4.6 if len(self.lines) < 4 else 5.4) if large else 2.3
        per_row = min(0.55, max(0.3, 9 / len(self.at))) if large else min(0.32, max(0.22, 6 / len(self.at)))
        return max(2.2, per_row * len(self.at) + 1.4) if large else per_row * len(self.at) + 0.9

    def label(self, axes: Axes, *, at_left: bool, at_bottom: bool) -> None:
        """Name the arms, or the number, where there is nothing to the left of, or below, a panel."""
        if self.lines:
            if self.is_log:
                axes.set_xscale("log")
                axes.minorticks_off()
            axes.set_xticks(list(self.ticks), list(self.ticks.values()) if at_bottom else [""] * len(self.ticks))
            axes.set_xlabel(self.title if at_bottom else "")
            if len(self.ticks) > 1:
                low, high = min(self.ticks), max(self.ticks)
                aside = (high / low) ** 0.07 if self.is_log else 0.07 * (high - low)
                axes.set_xlim(*((low / aside, high * aside) if self.is_log else (low - aside, high + aside)))
        else:
            axes.set_ylim(len(self.ticks) - 0.5, -0.5)
            axes.set_yticks(list(self.ticks), list(self.ticks.values()) if at_left else [""] * len(self.ticks))
            axes.tick_params(axis="y", length=0)


def _values_panel(axes: Axes, result: render.Result, places: Places, name: str, *, leads: bool) -> None:
    metric, digits, (low, high) = lookup(name), render.digits_of(result, name), render.frame(result, name)
    spots: dict[str, Spot] = {}
    for arm in result["arms"]:
        if name in arm["metrics"]:
            verdict = arm["vs_previous"].get(name, {}).get("verdict")
            spots[arm["name"]] = (arm["metrics"][name], NOT_COMPARED if verdict is None else VERDICTS[verdict])
            if leads and len(places.lines) < 2 and len(result["seeds"]) > 1:
                seeds = list((arm.get("values") or {}).get(name, {}).values())
                at = [places.beside(arm["name"])] * len(seeds)
                x, y = (at, seeds) if places.lines else (seeds, at)
                axes.plot(x, y, "o", color="#999999", markersize=4, zorder=2, label="seeds")
    _draw(axes, places, spots, "mean", leads=leads, joined=True)
    axes.set_title(render.heading(metric, digits), loc="left", fontweight="bold" if leads else "normal")
    _numbers(axes, places, digits.exponent)
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    axes.set(**{"ylim" if places.lines else "xlim": (low - margin, high + margin)})
    guide = axes.axhline if places.lines else axes.axvline
    if metric.direction == "one" and low <= 1 <= high:
        guide(1, color="#999999", linewidth=0.9, zorder=1)
    for key, _, row in render.references(result):
        (colour, style), mean = REFERENCES[key], row.get(name, {}).get("mean")
        if mean is not None and low <= mean <= high:
            guide(mean, color=colour, linestyle=style, linewidth=2.2 if leads else 1.6, zorder=1)
        elif mean is not None:
            arrow = ("↓" if mean < low else "↑") if places.lines else ("←" if mean < low else "→")
            axes.set_title(f"{key} {digits.text(mean)} {arrow}", loc="right", fontsize=11, color=colour)


def _differences_panel(axes: Axes, result: render.Result, places: Places, name: str) -> None:
    found = {arm["name"]: arm["vs_previous"][name] for arm in result["arms"] if name in arm["vs_previous"]}
    spots = {arm: (row, VERDICTS[row["verdict"]]) for arm, row in found.items() if row["diff"] is not None}
    one_reference = result.get("versus", "above") == "first" or bool(result.get("across"))
    if one_reference:
        measured = [arm["name"] for arm in result["arms"] if name in arm["metrics"]]
        spots |= {arm: ({"diff": 0.0}, NOT_COMPARED) for arm in measured if arm not in found}
    is_log = any(row["diff_of"] == "abs_log" for row in found.values())
    (axes.axhline if places.lines else axes.axvline)(0, color="#222222", linewidth=1.2, zorder=1)
    _draw(axes, places, spots, "diff", leads=True, joined=one_reference)
    what = "difference of |ln|" if is_log else "difference"
    axes.set_title("\n".join(textwrap.wrap(f"{what} to {render.compared_with(result)}", 46)), loc="left", fontsize=14)
    more = lookup(name).direction == "higher"
    sides = "← worse        better →" if more else "← better        worse →"
    axes.set(**{"ylabel" if places.lines else "xlabel": sides})
    _numbers(axes, places, 0 if is_log else render.digits_of(result, name).exponent)


def _numbers(axes: Axes, places: Places, exponent: int) -> None:
    """A few ticks along the metric's axis, in the unit of the table."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis = axes.yaxis if places.lines else axes.xaxis
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 10**exponent:.6g}".replace("-", "−")))


def _draw(axes: Axes, places: Places, spots: Mapping[str, Spot], key: str, *, leads: bool, joined: bool) -> None:
    """Means (or differences) with intervals; along a curve joined to lines, and with a band where there is but one."""
    colours = {arm: mark.colour for arm, (_, mark) in spots.items()}
    for (_, arms), (colour, dashes) in zip(places.lines.items(), itertools.cycle(LINES), strict=False):
        there = [arm for arm in arms if arm in spots]
        x, y = [places.at[arm] for arm in there], [spots[arm][0][key] for arm in there]
        if joined:
            axes.plot(x, y, color=colour, linestyle=dashes, linewidth=2.4 if leads else 1.6, zorder=2)
        if len(places.lines) > 1:
            colours |= dict.fromkeys(there, colour)
        elif joined and there and all(spots[arm][0].get("low") is not None for arm in there):
            low, high = ([spots[arm][0][end] for arm in there] for end in ("low", "high"))
            axes.fill_between(x, low, high, color="#222222", alpha=0.1, linewidth=0, zorder=0)
    for arm, (row, mark) in spots.items():
        error = None if row.get("low") is None else [[row[key] - row["low"]], [row["high"] - row[key]]]
        x, y = (places.at[arm], row[key]) if places.lines else (row[key], places.at[arm])
        bars: dict[str, Any] = {"yerr" if places.lines else "xerr": error, **(_LARGE if leads else _SMALL)}
        face = colours[arm] if mark.filled else "white"
        axes.errorbar(x, y, fmt=mark.marker, color=colours[arm], markerfacecolor=face, zorder=3, **bars)


def _name_lines(axes: Axes, result: render.Result, places: Places, name: str) -> None:
    """The lines' names to the right of a panel, in the order in which they end."""
    from matplotlib.lines import Line2D

    means = {arm["name"]: arm["metrics"][name]["mean"] for arm in result["arms"] if name in arm["metrics"]}
    ends = []
    for (line, arms), (colour, dashes) in zip(places.lines.items(), itertools.cycle(LINES), strict=False):
        if there := [means[arm] for arm in arms if arm in means]:
            ends.append((there[-1], Line2D([], [], color=colour, linestyle=dashes, linewidth=2.4, label=line)))
    handles = [handle for _, handle in sorted(ends, key=lambda end: -end[0])]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=2.6, fontsize=12)


def _legend(figure: Figure, result: render.Result) -> None:
    from matplotlib.lines import Line2D

    drawn = {row["verdict"] for arm in result["arms"] for row in arm["vs_previous"].values()}
    handles = [
        Line2D([], [], color=colour, linestyle=style, linewidth=2.2, label=label)
        for key, label, row in render.references(result)
        for colour, style in [REFERENCES[key]]
        if row
    ]
    several = len((result.get("curve") or {}).get("lines", ())) > 1  # colours are the lines' then
    for label, mark in (("not compared", NOT_COMPARED), *VERDICTS.items()):
        if label in drawn or mark is NOT_COMPARED:
            colour = NOT_COMPARED.colour if several else mark.colour
            face = colour if mark.filled else "white"
            dot = Line2D([], [], ls="", marker=mark.marker, ms=9, color=colour, markerfacecolor=face, label=label)
            handles.append(dot)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=11)
