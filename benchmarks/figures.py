"""plot.png and contact_sheet.png: the table's numbers with their intervals, and the clips themselves.

No date, no version in the files: the same input gives the same bytes on one machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.metrics import lookup
from benchmarks.table import FLOOR, Result, ceiling_label, metrics

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from PIL.Image import Image

COLUMNS = 4
"""Metrics side by side in the plot."""

VERDICT_COLOURS = {
    "better": "#0072B2",
    "worse": "#D55E00",
    "no difference shown": "#777777",
    "not resolved": "#BBBBBB",
}
_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def plot(result: Result, out: Path) -> None:
    """Per metric: the arms with intervals, floor and ceiling; below, the paired differences."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = metrics(result)
    blocks = [names[i : i + COLUMNS] for i in range(0, len(names), COLUMNS)] or [[]]
    width = min(len(names), COLUMNS) or 1
    arms = len(result["arms"])
    with mpl.rc_context(_STYLE):
        heights = [0.24 * arms + 0.9, 0.24 * max(arms - 1, 1) + 0.8]
        figure = Figure(figsize=(2.6 * width + 1.0, sum(heights) * len(blocks) + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2 * len(blocks), width, squeeze=False, height_ratios=heights * len(blocks))
        for row, block in enumerate(blocks):
            for column in range(width):
                above, below = axes[2 * row, column], axes[2 * row + 1, column]
                if column >= len(block):
                    above.axis("off")
                    below.axis("off")
                    continue
                _scores_panel(above, result, block[column], labels=column == 0)
                _differences_panel(below, result, block[column], labels=column == 0)
        _legend(figure, result)
        figure.savefig(out, dpi=160, metadata={"Software": None})


def contact_sheet(rows: Sequence[tuple[str, Sequence[Path | None]]], out: Path, scale: int) -> None:
    """The same clips in columns, a row each for real, anchor and every arm; middle frame, nearest neighbour.

    rows: (label, clip paths); None or a file that is not there leaves its cell grey. Smaller clips (anchors)
        are enlarged to the size of the largest.
    scale: screen px per px of the largest clip.
    Raises: ValueError for no clips at all, rows of different length, or a scale under 1.
    """
    from PIL import Image, ImageDraw

    columns = {len(paths) for _, paths in rows}
    if len(columns) != 1 or scale < 1:
        raise ValueError(
            f"a contact sheet needs rows of one length and scale >= 1; lengths are {sorted(columns)}, scale {scale}"
        )
    frames = [[_middle_frame(path) for path in paths] for _, paths in rows]
    sizes = [frame.shape[:2] for row in frames for frame in row if frame is not None]
    if not sizes:
        raise ValueError(f"none of the clips of the contact sheet is there, e.g. {rows[0][1][0]}")
    height, width = (max(size[axis] for size in sizes) * scale for axis in (0, 1))
    font = _font(13)
    left = int(max(font.getlength(label) for label, _ in rows)) + 20
    gap, top = 4, 26
    n = columns.pop()
    size = (left + n * (width + gap) + gap, top + len(rows) * (height + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, name in enumerate(_column_names(rows, n)):
        draw.text((left + i * (width + gap) + width / 2, top / 2), name, "#777777", font, anchor="mm")
    for j, ((label, _), row) in enumerate(zip(rows, frames, strict=True)):
        y = top + j * (height + gap)
        draw.text((left - 10, y + height / 2), label, "black", font, anchor="rm")
        for i, frame in enumerate(row):
            sheet.paste(_tile(frame, width, height), (left + i * (width + gap), y))
    sheet.save(out, format="PNG")


def _scores_panel(axes: Axes, result: Result, name: str, *, labels: bool) -> None:
    metric, arms = lookup(name), result["arms"]
    for y, arm in enumerate(arms):
        if name in arm["metrics"]:
            _interval(axes, arm["metrics"][name], "mean", y, "#222222")
    for key, colour, style in (("ceiling", "#009E73", "--"), ("floor", "#CC79A7", ":")):
        if name in (result.get(key) or {}):
            axes.axvline(result[key][name]["mean"], color=colour, linestyle=style, linewidth=1.3, zorder=1)
    if metric.direction == "one":
        axes.axvline(1, color="#888888", linewidth=0.8, zorder=1)
    unit = f" [{metric.unit}]" if metric.unit else ""
    axes.set_title(f"{metric.header}{unit} {metric.arrow}", loc="left")
    _rows(axes, [arm["name"] for arm in arms], labels=labels)


def _differences_panel(axes: Axes, result: Result, name: str, *, labels: bool) -> None:
    arms = [arm for arm in result["arms"] if arm["vs_previous"]]
    kind = "Δ"
    for y, arm in enumerate(arms):
        row = arm["vs_previous"].get(name)
        if row is not None and row["diff"] is not None:
            _interval(axes, row, "diff", y, VERDICT_COLOURS[row["verdict"]])
            kind = "Δ |ln|" if row["diff_of"] == "abs_log" else "Δ"
    axes.axvline(0, color="#222222", linewidth=0.9, zorder=1)
    better = "right" if lookup(name).direction == "higher" else "left"
    axes.set_title(f"{kind} to the arm above, {better} is better", loc="left", fontsize=7, color="#555555")
    _rows(axes, [arm["name"] for arm in arms], labels=labels)


def _interval(axes: Axes, row: Mapping[str, Any], key: str, y: int, colour: str) -> None:
    if row.get("low") is not None:
        axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    axes.plot([row[key]], [y], "o", color=colour, markersize=4.5)


def _rows(axes: Axes, names: Sequence[str], *, labels: bool) -> None:
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), list(names) if labels else [""] * len(names))
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 4), useMathText=True)


def _legend(figure: Any, result: Result) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color="#009E73", linestyle="--", label=ceiling_label(result)),
        Line2D([], [], color="#CC79A7", linestyle=":", label=FLOOR),
        *(
            Line2D([], [], color=colour, marker="o", markersize=4, label=verdict)
            for verdict, colour in VERDICT_COLOURS.items()
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _middle_frame(path: Path | None) -> np.ndarray | None:
    """uint8 [H, W, 3] of frame F // 2, or None if there is no clip."""
    if path is None or not path.exists():
        return None
    from pw.video import read_video

    frames = read_video(path)
    return frames[len(frames) // 2]


def _tile(frame: np.ndarray | None, width: int, height: int) -> Image:
    from PIL import Image

    if frame is None:
        return Image.new("RGB", (width, height), "#DDDDDD")
    return Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)


def _column_names(rows: Sequence[tuple[str, Sequence[Path | None]]], n: int) -> list[str]:
    return [next((p.stem for _, paths in rows if (p := paths[i]) is not None), "") for i in range(n)]


def _font(size: int) -> Any:
    """matplotlib's own DejaVu Sans: the same letters on every machine."""
    import matplotlib as mpl
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
