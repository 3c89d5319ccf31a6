"""Write a result as table.{md,tex,json,csv} and plot.png, and show it in the terminal.

The result is a dictionary, the content of table.json:

    {"ablation", "title", "claim", "refuted", "scale", "seeds": [...], "contract": {...},
     "verdict": [{"clause", "answer": "holds" | "refuted" | "not resolved" | "not run", "evidence"}],
     "versus": "above" | "first", "primary": metric | null, "across": key | null,
     "compared_with": text | null, "code": [[revision, commit]],
     "curve": {"key", "label", "lines": [{"name", "points": [[number, arm]]}]} | null,
     "arms": [{"name", "varied": {key: value}, "metrics": {metric: {"mean", "low", "high", "n"}},
               "values": {metric: {seed: value}},
               "vs_previous": {metric: {"diff", "low", "high", "p", "p_adjusted", "verdict", "diff_of", "n",
               "versus"}}, "cost": {"updates", "train_flops", "train_cpu_s", "sample_cpu_s",
               "peak_memory_mb"}, "probe": {"label", "metric", "mean", "low", "high", "at"} | null, "paper":
               {column: value} | null, "status": "ok" | "failed: ..."}],
     "best": {metric: arm | null}, "floor": {metric: {...}}, "ceiling": {metric: {...}},
     "ceiling_steps": 48,
     "votes": {"n", "judges", "arms": {arm: {"mean", "low", "high", "n"}}, "vs_previous": {arm: {"diff", ...}}, "best",
               "agreement": [{"metric", "mean", "low", "high", "p", "n", ...}], "notes": [...]},  # if people have voted
     "order_as_in_paper": "yes" | "no" | "not resolved", "failed": [...], "notes": [...],
     "coverage": [{"arm", "grid": [[timestep, stride, trained, nearest]], "second_halves_trained",
                   "second_halves_total"}]}

`Comparison.row(arm)` gives "metrics" and "vs_previous" of an arm, `Comparison.best` the "best". "primary" is
`Comparison.primary`, the metric that was tested before the others; null if Holm's correction covered all metrics. A
missing score is printed as an en dash. The same result gives the same bytes.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.metrics import lookup
from benchmarks.report import render
from benchmarks.report.costs import costs
from benchmarks.report.grid import MARKS, MISSING, PAPER, Cell, Digits, Grid, md, tex
from benchmarks.report.render import SIGNS, Result, compared_with, differences, footer, paper, scores, verdicts
from pw.io.console import one_line
from pw.io.files import csv_text, digest, replacing, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

FILES = ("table.json", "table.csv", "table.md", "table.tex", "plot.png")
FRONTIER = "frontier.png"
"""A further file of a result whose arms have a plan at 2K and 4K (`benchmarks.report.frontier`)."""

MAX_PLOT_WIDTH = 100
"""Maximum width of the dot plot in columns; wider rows are hard to follow."""

_DOTS = {"not compared": "■", **MARKS, "no difference shown": "○", "reference": "◆"}
_COLOURS = {"better": "green", "worse": "red"}
_ANSWER_COLOURS = {"holds": "bold green", "refuted": "bold red"}
_DIFF_COLUMNS = {"low": "diff_low", "high": "diff_high", "n": "diff_n"}
_CAPTION = frozenset({"order as in the paper", "scale", "seeds", "reading"})


def write(result: Result, folder: Path, names: Sequence[str] = FILES) -> list[Path]:
    """Write files of a result, atomically.

    Returns: the files written.
    Raises: ValueError for a metric that is not in the registry.
    """
    from benchmarks.report import figures as result_figures
    from benchmarks.report import frontier

    figures = {"plot.png": result_figures.plot, FRONTIER: frontier.plot}
    formats = {"table.json": to_json, "table.csv": to_csv, "table.md": markdown, "table.tex": latex}
    for name in names:
        if name in figures:
            with replacing(folder / name) as partial:
                figures[name](result, partial)
        else:
            write_atomically(folder / name, formats[name](result))
    return [folder / name for name in names]


def to_json(result: Result) -> str:
    """The result itself and its checksum (`pw.io.files.digest`); numbers that are not finite are null."""
    content = json.loads(json.dumps(_finite(result), allow_nan=False))
    return json.dumps({**content, "checksum": digest(content, 64)}, indent=1, ensure_ascii=False) + "\n"


def to_csv(result: Result) -> str:
    """A wide table in full precision: rows for arms, ceiling and floor; columns `psd.mean`, `psd.diff`, ..."""
    rows = [_csv_row(arm["name"], "arm", _with_votes(arm, result.get("votes"))) for arm in result["arms"]]
    rows += [_csv_row(key, key, {"metrics": row}) for key, _, row in render.references(result) if row]
    return wide_csv(rows)


def wide_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with the fields of all rows as columns."""
    return csv_text(list(dict.fromkeys(field for row in rows for field in row)), rows)


def markdown(result: Result) -> str:
    parts = [f"## {md(render.title(result))}"]
    if result.get("claim"):
        parts.append(f"**Claim.** {md(result['claim'])}")
    if clauses := verdicts(result):
        lines = [f"- {SIGNS[answer]} **{answer}**: {md(_clause_text(*rest))}" for answer, *rest in clauses]
        parts.append("\n".join(lines))
    parts.append(_full_grid(result).markdown())
    if (deltas := _differences(result)).rows:
        heading = f"Differences to {md(compared_with(result))} (p after the primary metric's gate):"
        parts += [heading, deltas.markdown()]
    parts.append("\n".join(f"- **{md(label)}**: {md(text)}" for label, text in footer(result)))
    return "\n\n".join(parts) + "\n"


def latex(result: Result) -> str:
    """Tables of scores and of differences in LaTeX. They need booktabs and amssymb."""
    label, title = str(result["ablation"]).replace("_", "-"), render.title(result)
    caption = f"{tex(title)}{'' if title.endswith(('?', '.')) else '.'} "
    caption += " ".join(f"{tex(head)}: {tex(text)}." for head, text in footer(result) if head in _CAPTION)
    parts = ["% needs \\usepackage{booktabs,amssymb}", _full_grid(result).latex(caption, label)]
    if (deltas := _differences(result)).rows:
        caption = f"{tex(str(result['ablation']))}: differences to {tex(compared_with(result))}."
        parts.append(deltas.latex(caption, f"{label}-differences"))
    claims = [("claim", result.get("claim")), *((answer, _clause_text(*rest)) for answer, *rest in verdicts(result))]
    notes = [(head, text) for head, text in footer(result) if head not in _CAPTION]
    comments = [f"% {one_line(f'{head}: {text}')}" for head, text in (*claims, *notes) if text]
    return "\n\n".join([*parts, "\n".join(comments)]) + "\n"


def terminal(result: Result, width: int) -> Group:
    """For rich, within `width` columns: dot plot of the primary metric, scores, differences, costs, paper."""
    from rich.console import Group
    from rich.text import Text

    grids = {
        "scores": scores(result, marks=False),
        f"differences to {compared_with(result)}": _differences(result),
        f"cost | {PAPER}": costs(result).join(paper(result)),
    }
    if result.get("shown_columns"):
        grids |= {"scores": _full_grid(result, marks=False), f"cost | {PAPER}": Grid((), ())}
    parts: list[Any] = [Text(render.title(result), style="bold"), Text("")]
    if (dots := dot_plot(result, width)) is not None:
        parts.append(dots)
    for heading, grid in grids.items():
        parts += _rich_tables(grid, width, heading, f"{heading}, continued")
    return Group(*parts, _rich_footer(footer(result)))


def terminal_verdict(result: Result) -> Table:
    from rich.table import Column, Table
    from rich.text import Text

    lines = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2, 0, 0))
    if result.get("claim"):
        lines.add_row(Text("claim", style="dim"), Text(result["claim"]))
    for answer, clause, evidence in verdicts(result):
        sign = Text(f"{SIGNS[answer]} {answer}", style=_ANSWER_COLOURS.get(answer, "dim"))
        lines.add_row(sign, Text.assemble(clause, (f"  {evidence}" if evidence else "", "dim")))
    return lines


def terminal_grid(grids: Sequence[Grid], title: str, notes: Sequence[tuple[str, str]], width: int) -> Group:
    """Grids for rich, split into tables that fit into `width` columns, and the notes below them."""
    from rich.console import Group
    from rich.text import Text

    parts = []
    for n, grid in enumerate(grid for grid in grids if grid.rows):
        parts += _rich_tables(grid, width, grid.columns[0].group if n else "", "continued")
    return Group(Text(title, style="bold"), *parts, _rich_footer(notes))


def dot_plot(result: Result, width: int) -> Group | None:
    """The primary metric in the terminal: a mean with its interval per row, all rows on one axis of `width` columns.

        beta 0     ├────■────┤  ┊
        beta 0.35     ├────○──────┤
        beta 0.7         ▲ ┊

    A sign is the verdict of the arm's comparison. A line through all rows marks the ceiling's mean; a ceiling or floor
    outside the axis is an arrow at its end.

    Returns: None if no arm has scores.
    """
    from rich.console import Group
    from rich.text import Text

    name = render.primary_metric(result)
    if name is None:
        return None
    rows = [
        (label, arm["metrics"][name], arm["vs_previous"].get(name, {}).get("verdict", "not compared"))
        for label, arm in render.shown_arms(result)
        if name in arm["metrics"]
    ]
    rows += [(label, row[name], "reference") for _, label, row in render.references(result) if name in row]
    digits = render.digits_of(result, name)
    margin = min(max(len(label) for label, _, _ in rows), width // 3)
    columns = min(width, MAX_PLOT_WIDTH) - margin - 2
    low, high = render.frame(result, name)
    left, right = digits.text(low), digits.text(high)
    axis = _Axis(low, high, columns, digits)
    ticks = f"{left}{right:>{columns - len(left)}}" if low < high else f"{left:^{columns}}"
    ceiling = (result.get("ceiling") or {}).get(name, {}).get("mean")
    lines = [
        Text.assemble(
            f"{label[:margin]:>{margin}}  ",
            (axis.line(estimate, _DOTS[verdict], ceiling), _COLOURS.get(verdict, "")),
            style="dim" if verdict == "reference" else "",
            no_wrap=True,
        )
        for label, estimate, verdict in rows
    ]
    row_verdicts = {verdict for _, _, verdict in rows} - {"reference"}
    signs = ", ".join(f"{sign} {verdict}" for verdict, sign in _DOTS.items() if verdict in row_verdicts)
    title = f"{render.heading(lookup(name), digits)}, and compared with {compared_with(result)}: {signs}"
    return Group(Text(title, style="dim"), *lines, Text(" " * (margin + 2) + ticks, style="dim"), Text(""))


@dataclass(frozen=True)
class _Axis:
    """An axis of `columns` characters for values from `low` to `high`."""

    low: float
    high: float
    columns: int
    digits: Digits

    def column(self, value: float) -> int:
        """Column of a value, clipped to the axis."""
        if self.high <= self.low:
            return self.columns // 2
        place = round((value - self.low) / (self.high - self.low) * (self.columns - 1))
        return min(max(place, 0), self.columns - 1)

    def line(self, estimate: Mapping[str, Any], sign: str, guide: float | None) -> str:
        """One row as text: the interval and the sign, drawn over the guide line."""
        cells, mean = [" "] * self.columns, estimate["mean"]
        if guide is not None and self.low <= guide <= self.high:
            cells[self.column(guide)] = "┊"
        if not self.low <= mean <= self.high:
            text = self.digits.text(mean)
            return f"◂ {text}" if mean < self.low else f"{text + ' ▸':>{self.columns}}"
        if estimate.get("low") is not None:
            first, last = self.column(estimate["low"]), self.column(estimate["high"])
            cells[first : last + 1] = "─" * (last - first + 1)
            cells[first], cells[last] = "├", "┤"
        cells[self.column(mean)] = sign
        return "".join(cells).rstrip()


def _full_grid(result: Result, *, marks: bool = True) -> Grid:
    """Scores, costs and the paper's numbers in one grid, or of their columns those that are to be shown."""
    grid = scores(result, marks=marks).join(costs(result)).join(paper(result))
    return grid.choose(result.get("shown_columns") or ())


def _differences(result: Result) -> Grid:
    return differences(result).choose(result.get("shown_columns") or ())


def _clause_text(clause: str, evidence: str) -> str:
    return f"{clause} ({evidence})" if evidence else clause


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_votes(arm: Mapping[str, Any], votes: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The entry of an arm with its votes beside its metrics."""
    if not votes:
        return arm
    parts = {"metrics": votes["arms"], "vs_previous": votes["vs_previous"]}
    added = {key: {"votes": rows[arm["name"]]} for key, rows in parts.items() if arm["name"] in rows}
    return {**arm, **{key: {**arm[key], **row} for key, row in added.items()}}


def _csv_row(name: str, kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {"row": name, "kind": kind, "status": row.get("status", "ok")}
    flat |= {f"varied.{key}": value for key, value in (row.get("varied") or {}).items()}
    for metric, values in row["metrics"].items():
        flat |= {f"{metric}.{key}": value for key, value in values.items()}
    for metric, values in (row.get("vs_previous") or {}).items():
        flat |= {f"{metric}.{_DIFF_COLUMNS.get(key, key)}": value for key, value in values.items()}
    flat |= {f"cost.{key}": value for key, value in (row.get("cost") or {}).items()}
    flat |= {f"paper.{key}": value for key, value in (row.get("paper") or {}).items()}
    return flat


def _label_width(grid: Grid, width: int) -> int:
    """Width of the label column; long labels wrap, at spaces where they are not half as wide as the table."""
    labels = [label for label, _ in grid.rows]
    longest = max((len(label) for label in labels), default=0)
    return min(longest, width // 2, max([15, *(_longest_word(label) for label in labels)]))


def _longest_word(text: str) -> int:
    return max(len(word) for word in text.split(" "))


def _rich_tables(grid: Grid, width: int, heading: str, continuation: str) -> list[Table]:
    """Tables that fit into `width` columns; each repeats the row labels."""
    if not grid.columns:
        return []
    columns = [int(grid.width(i)) + 2 for i in range(len(grid.columns))]
    parts = grid.split(width, _label_width(grid, width) + 4, columns)  # the label with both margins
    return [_rich_table(part, width, continuation if i else heading) for i, part in enumerate(parts)]


def _rich_table(grid: Grid, width: int, title: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="dim", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", width=_label_width(grid, width), overflow="fold")
    for i, column in enumerate(grid.columns):
        header = textwrap.fill(column.header, int(grid.width(i)), break_long_words=False)
        table.add_column(Text(header), justify="right", vertical="bottom", overflow="fold")
    for i, (label, cells) in enumerate(grid.rows):
        if i == grid.rule_at:
            table.add_section()
        table.add_row(Text(label), *(_rich_cell(cell) for cell in cells))
    return table


def _rich_cell(cell: Cell) -> Text:
    from rich.text import Text

    style = "dim" if cell.text == MISSING else _COLOURS.get(cell.verdict or "", "")
    text = Text(f"{cell.text} {cell.mark}".strip(), style=f"bold {style}" if cell.bold else style)
    return text if not cell.note else Text.assemble(text, "\n", (cell.note, "dim"))


def _rich_footer(notes: Iterable[tuple[str, str]]) -> Table:
    from rich.table import Column, Table
    from rich.text import Text

    lines = Table.grid(Column(style="dim", no_wrap=True), Column(overflow="fold"), padding=(0, 2))
    for label, text in notes:
        lines.add_row(label, Text(text))
    return lines
