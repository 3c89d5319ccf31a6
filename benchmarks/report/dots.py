"""The primary metric in the terminal: a mean with its interval per row, all rows on one axis.

beta 0     ├────■────┤  ┊
beta 0.35     ├────○──────┤
beta 0.7         ▲ ┊
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.metrics import lookup
from benchmarks.report import render
from benchmarks.report.grid import MARKS, Digits

if TYPE_CHECKING:
    from rich.console import Group

SIGNS = {"not compared": "■", **MARKS, "no difference shown": "○"}
WIDEST = 100
"""Columns beyond which a row is hard to follow."""

_COLOURS = {"better": "green", "worse": "red"}


@dataclass(frozen=True)
class _Row:
    label: str
    estimate: Mapping[str, Any]
    verdict: str = "not compared"
    is_reference: bool = False


def dot_plot(result: render.Result, width: int) -> Group | None:
    """The plot for rich, within `width` columns; None where no arm was scored.

    A sign is the verdict of the arm's comparison. The ceiling's mean is drawn through all rows; a ceiling or floor that
    is far from the arms is an arrow at the edge.
    """
    from rich.console import Group
    from rich.text import Text

    name = render.primary_metric(result)
    if name is None:
        return None
    rows, digits, (low, high) = list(_rows(result, name)), render.digits_of(result, name), render.frame(result, name)
    labels = min(max(len(row.label) for row in rows), width // 3)
    axis = PlotAxis(low, high, min(width, WIDEST) - labels - 2, digits)
    ceiling = (result.get("ceiling") or {}).get(name)
    lines = [
        Text.assemble(
            f"{row.label[:labels]:>{labels}}  ",
            (axis.line(row, None if ceiling is None else ceiling["mean"]), _COLOURS.get(row.verdict, "")),
            style="dim" if row.is_reference else "",
            no_wrap=True,
        )
        for row in rows
    ]
    drawn = {row.verdict for row in rows if not row.is_reference}
    signs = ", ".join(f"{sign} {verdict}" for verdict, sign in SIGNS.items() if verdict in drawn)
    title = Text(
        f"{render.heading(lookup(name), digits)}, and compared with {render.compared_with(result)}: {signs}",
        style="dim",
    )
    return Group(title, *lines, Text(" " * (labels + 2) + axis.ticks, style="dim"), Text(""))


@dataclass(frozen=True)
class PlotAxis:
    """Values from `low` to `high` on so many columns."""

    low: float
    high: float
    columns: int
    digits: Digits

    def column(self, value: float) -> int:
        """Where a value stands; beyond the ends it is at the end."""
        if self.high <= self.low:
            return self.columns // 2
        place = round((value - self.low) / (self.high - self.low) * (self.columns - 1))
        return min(max(place, 0), self.columns - 1)

    @property
    def ticks(self) -> str:
        """The line below the rows: the values at both ends."""
        left, right = self.digits.text(self.low), self.digits.text(self.high)
        return f"{left}{right:>{self.columns - len(left)}}" if self.low < self.high else f"{left:^{self.columns}}"

    def line(self, row: _Row, guide: float | None) -> str:
        """A row's interval and sign, over the guide's column."""
        cells, mean = [" "] * self.columns, row.estimate["mean"]
        if guide is not None and self.low <= guide <= self.high:
            cells[self.column(guide)] = "┊"
        if not self.low <= mean <= self.high:
            text = self.digits.text(mean)
            return f"◂ {text}" if mean < self.low else f"{text + ' ▸':>{self.columns}}"
        if row.estimate.get("low") is not None:
            first, last = self.column(row.estimate["low"]), self.column(row.estimate["high"])
            cells[first : last + 1] = "─" * (last - first + 1)
            cells[first], cells[last] = "├", "┤"
        cells[self.column(mean)] = "◆" if row.is_reference else SIGNS[row.verdict]
        return "".join(cells).rstrip()


def _rows(result: render.Result, name: str) -> Iterator[_Row]:
    for label, arm in render.shown_arms(result):
        if name in arm["metrics"]:
            yield _Row(label, arm["metrics"][name], arm["vs_previous"].get(name, {}).get("verdict", "not compared"))
    for label, key in ((render.ceiling_label(result), "ceiling"), (render.floor_label(result), "floor")):
        if name in (result.get(key) or {}):
            yield _Row(label, result[key][name], is_reference=True)
