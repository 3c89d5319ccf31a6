"""Draw frontier.png: the plan's time of a video at 2K and 4K against the primary metric of each arm  (Pareto plot).

An arm is dominated if another is as fast and not worse, and faster or better, in the mean. Dominated arms are grey; the
others are joined. Dots carry the 95 % interval over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.metrics import Metric, lookup
from benchmarks.report import render
from benchmarks.report.figures import STYLE, VERDICTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCALES = {"plan_2k_s": "2K", "plan_4k_s": "4K"}
FAR = 4  # times the median: a value beyond it makes the axis logarithmic
LINE_HEIGHT = 0.042  # of a panel: the least distance of two labels


def is_planned(result: render.Result) -> bool:
    """Whether the arms of a result have a plan at 2K and 4K."""
    return any("plan_2k_s" in (arm.get("cost") or {}) for arm in result["arms"])


def frontier(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The arms that no other dominates, from fast to slow. points: arm -> (seconds, badness)."""

    def dominates(other: tuple[float, float], point: tuple[float, float]) -> bool:
        return other != point and all(a <= b for a, b in zip(other, point, strict=True))

    kept = [arm for arm, point in points.items() if not any(dominates(other, point) for other in points.values())]
    return sorted(kept, key=lambda arm: points[arm])


def plot(result: render.Result, out: Path) -> None:
    figure_of(result).savefig(out, format="png", dpi=160, metadata={"Software": None})


def figure_of(result: render.Result) -> Figure:
    """The figure, with a panel for each of 2K and 4K."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    name = render.primary_metric(result)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(14, 6.4), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(render.title(result), x=0.01, ha="left", fontsize=17, fontweight="bold")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (key, scale) in zip(panels, SCALES.items(), strict=True):
            arms = [arm for arm in result["arms"] if key in (arm.get("cost") or {}) and name in arm["metrics"]]
            if name is not None and arms:
                _panel(axes, arms, key, name, result)
            axes.set_xlabel(f"seconds of one {scale} video on an H200, by the plan (not measured)")
        if name is not None:
            heading = render.heading(lookup(name), render.digits_of(result, name))
            panels[0].set_ylabel(f"{heading} at scale={result.get('scale', 'tiny')}")
        panels[1].set_title("blue: no other arm is as fast and better; grey: one is", loc="right", fontsize=11)
    return figure


def _panel(axes: Axes, arms: Sequence[Mapping[str, Any]], key: str, name: str, result: render.Result) -> None:
    seconds = {arm["name"]: arm["cost"][key] for arm in arms}
    means = {arm["name"]: arm["metrics"][name]["mean"] for arm in arms}
    points = {arm: (seconds[arm], _badness(lookup(name), mean)) for arm, mean in means.items()}
    best = frontier(points)
    axes.plot([seconds[arm] for arm in best], [means[arm] for arm in best], color="#0072B2", linewidth=1.5, zorder=1)
    for arm in arms:
        label, row = arm["name"], arm["metrics"][name]
        error = None if row.get("low") is None else [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
        colour = "#0072B2" if label in best else "#9A9A9A"
        verdict = arm["vs_previous"].get(name, {}).get("verdict")
        mark = VERDICTS[verdict] if verdict else None
        axes.errorbar(
            seconds[label], row["mean"], yerr=error, fmt=mark.marker if mark else "s", color=colour, markersize=8,
            markerfacecolor=colour if mark is None or mark.filled else "white", capsize=4, zorder=3,
        )  # fmt: skip
    _scale_axes(axes, seconds.values(), [arm["metrics"][name] for arm in arms])
    if (ceiling := (result.get("ceiling") or {}).get(name, {}).get("mean")) is not None:
        axes.axhline(ceiling, color="#007A5A", linestyle="--", linewidth=1.6, zorder=0)
        axes.annotate("many-step ceiling", (1, ceiling), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                      color="#007A5A", fontsize=10)  # fmt: skip
    _label(axes, seconds, means, best)


def _badness(metric: Metric, value: float) -> float:
    signs = {"lower": value, "higher": -value}
    return signs.get(metric.direction, abs(math.log(value)) if value > 0 else math.inf)


def _scale_axes(axes: Axes, seconds: Iterable[float], rows: Sequence[Mapping[str, Any]]) -> None:
    """Logarithmic seconds, and values where one is far from the others: it would flatten them."""
    seconds, means = [*seconds], [row["mean"] for row in rows]
    low, high = min(seconds), max(seconds)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.15, high * 1.8)  # room for the labels at the right
    _tick(axes.set_xticks, low / 1.15, high * 1.8)
    if min(means) > 0 and max(means) > FAR * sorted(means)[len(means) // 2]:
        axes.set_yscale("log")
        ends = [min(means) / 1.5, max(means) * 1.5]
        axes.set_ylim(*ends)
        _tick(axes.set_yticks, *ends)
    axes.minorticks_off()


def _tick(set_ticks: Callable[..., Any], low: float, high: float) -> None:
    fine = high < 8 * low
    factors = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if fine else (1, 2, 5)
    ticks = [factor * 10**power for power in range(-6, 7) for factor in factors]
    ticks = [tick for tick in ticks if low <= tick <= high]
    set_ticks(ticks, [f"{tick:g}" for tick in ticks])


def _label(axes: Axes, x: Mapping[str, float], y: Mapping[str, float], best: Sequence[str]) -> None:
    """Write each arm's name to the right of its dot, moved up or down where another name is."""
    from matplotlib.patheffects import withStroke

    transform = axes.transData + axes.transAxes.inverted()
    places = {arm: tuple(transform.transform((x[arm], y[arm]))) for arm in x}
    taken: list[tuple[float, float, float]] = []  # left, right, height of the labels so far
    offsets = sorted((n * LINE_HEIGHT / 2 for n in range(-24, 25)), key=abs)
    for arm in sorted(places, key=lambda arm: (arm not in best, places[arm][1])):
        left, centre = places[arm][0] + 0.018, places[arm][1]
        right = left + 0.0125 * len(arm)
        beside = [height for start, end, height in taken if left < end and right > start]
        free = [offset for offset in offsets if all(abs(centre + offset - h) >= LINE_HEIGHT for h in beside)]
        height = centre + (free[0] if free else 0)
        taken.append((left, right, height))
        line = {"arrowstyle": "-", "color": "#BBBBBB", "linewidth": 0.8}
        axes.annotate(
            arm, places[arm], (left, height), xycoords="axes fraction", textcoords="axes fraction", va="center",
            fontsize=10, color="#222222" if arm in best else "#6A6A6A", zorder=4,
            path_effects=[withStroke(linewidth=3, foreground="white")],
            arrowprops=line if abs(height - centre) > LINE_HEIGHT else None,
        )  # fmt: skip
