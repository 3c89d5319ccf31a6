"""Write a result as table.{md,tex,html,json,csv} and plot.png, and show it in the terminal.

The result is the dictionary that lands as table.json:

    {"ablation", "title", "claim", "refuted", "scale", "seeds": [...], "contract": {...},
     "verdict": [{"clause", "answer": "holds" | "refuted" | "not resolved" | "not run", "evidence"}],
     "versus": "above" | "first", "primary": metric | null, "across": key | null,
     "curve": {"key", "label", "lines": [{"name", "points": [[number, arm]]}]} | null,
     "arms": [{"name", "varied": {key: value}, "metrics": {metric: {"mean", "low", "high", "n"}},
               "values": {metric: {seed: value}},
               "vs_previous": {metric: {"diff", "low", "high", "p", "p_adjusted", "verdict", "diff_of", "n",
               "versus"}}, "cost": {"updates", "train_flops", "train_cpu_s", "sample_cpu_s",
               "peak_memory_mb"}, "probe": {"label", "metric", "mean", "low", "high", "at"} | null, "paper":
               {column: value} | null, "status": "ok" | "failed: ..."}],
     "best": {metric: arm | null}, "floor": {metric: {...}}, "ceiling": {metric: {...}},
     "ceiling_steps": 48,
     "order_as_in_paper": "yes" | "no" | "not resolved", "failed": [...], "notes": [...],
     "coverage": [{"arm", "grid": [[timestep, stride, trained, nearest]], "second_halves_trained",
                   "second_halves_total"}]}

`Comparison.row(arm)` gives an arm's "metrics" and "vs_previous", `Comparison.best` the "best", `Comparison.primary` the
"primary": the metric that was tested alone before the others, null where Holm went over all. A missing
score is printed as an en dash. The files depend on the result only: the same result gives the same bytes.
"""

from __future__ import annotations

import base64
import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report.dots import dot_plot
from benchmarks.report.render import (
    MISSING,
    PAPER,
    SIGNS,
    Cell,
    Column,
    Grid,
    Result,
    compared_with,
    costs,
    differences,
    footer,
    paper,
    scores,
    verdicts,
)
from pw.io.files import csv_text, write_atomically

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

WIDTH = 120
"""Columns of a terminal that everything fits in."""

_COLOURS = {"better": "green", "worse": "red"}
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "·": r"$\cdot$", "↓": r"$\downarrow$", "↑": r"$\uparrow$",
    "→": r"$\to$", "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$", "–": "--", "…": r"\dots{}",
    "Δ": r"$\Delta$", "α": r"$\alpha$", "β": r"$\beta$", "λ": r"$\lambda$", "σ": r"$\sigma$", "≥": r"$\geq$",
    "≤": r"$\leq$", "\u2003": r"\quad ", "\u2009": r"\,", "\u00a0": "~",
    "⁻": "$^{-}$", **{c: f"$^{{{i}}}$" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
}  # fmt: skip
_CSS = """
body { font: 14px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 92rem; margin: 2.5rem auto;
  padding: 0 1.5rem }
h1 { font-size: 1.5rem; margin: 0 0 .3rem }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem }
.claim { color: #555; margin: 0 0 1.5rem; max-width: 60rem }
.verdict { list-style: none; margin: 0 0 1.5rem; padding: 0 }
.scroll { overflow-x: auto; margin-bottom: 1.5rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; border-top: 2px solid;
  border-bottom: 2px solid }
th, td { padding: .35rem .5rem; text-align: right; white-space: nowrap }
thead th { white-space: normal }
th:first-child, td:first-child { text-align: left }
tbody th { font-weight: 500 }
thead tr:last-child th { border-bottom: 1px solid; font-weight: 600; vertical-align: bottom }
thead .group { text-align: center; color: #666; font-weight: 500; font-size: .85rem }
tr.rule > * { border-top: 1px solid #999 }
.aside { color: #666 } .better { color: #00639c } .worse { color: #b84a00 } .none { color: #999 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; font-size: .88rem;
  max-width: 80rem }
dt { color: #666 } dd { margin: 0; overflow-wrap: anywhere }
img { max-width: 100% }
""".strip()


def write(result: Result, folder: Path) -> list[Path]:
    """Write all files of a result; table.html shows a contact_sheet.png that is there already.

    Returns: the files written.
    Raises: ValueError for a metric that is not in the registry.
    """
    from benchmarks.report.figures import plot

    folder.mkdir(parents=True, exist_ok=True)
    plot(result, folder / "plot.png")
    images = {
        title: path.read_bytes()
        for title, path in (("Scores", folder / "plot.png"), ("Clips", folder / "contact_sheet.png"))
        if path.exists()
    }
    texts = {
        "table.json": to_json(result),
        "table.csv": to_csv(result),
        "table.md": markdown(result),
        "table.tex": latex(result),
        "table.html": html(result, images),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text)
    return [folder / "plot.png", *(folder / name for name in texts)]


def to_json(result: Result) -> str:
    """The result itself; numbers that are not finite are null."""
    return json.dumps(_finite(result), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(result: Result) -> str:
    """A wide table, full precision: a row per arm, ceiling and floor; columns `psd.mean`, `psd.diff`, ..."""
    rows = [_csv_row(arm["name"], "arm", arm) for arm in result["arms"]]
    rows += [_csv_row(key, key, {"metrics": result[key]}) for key in ("ceiling", "floor") if result.get(key)]
    return csv_text(list(dict.fromkeys(field for row in rows for field in row)), rows)


def markdown(result: Result) -> str:
    """The table for a README or a pull request."""
    parts = [f"## {result.get('title') or result['ablation']}"]
    if result.get("claim"):
        parts.append(f"**Claim.** {result['claim']}")
    if found := verdicts(result):
        parts.append("\n".join(f"- {SIGNS[answer]} **{answer}**: {_verdict(*rest)}" for answer, *rest in found))
    parts.append(markdown_grid(_whole(result)))
    if (deltas := differences(result)).rows:
        parts += [
            f"Differences to {compared_with(result)} (p after the primary metric's gate):",
            markdown_grid(deltas),
        ]
    parts.append("\n".join(f"- **{label}**: {text}" for label, text in footer(result)))
    return "\n\n".join(parts) + "\n"


def latex(result: Result) -> str:
    """booktabs tables, one of the scores and one of the differences. Needs booktabs, amssymb and graphicx."""
    name = tex(str(result["ablation"]))
    label = str(result["ablation"]).replace("_", "-")
    title = str(result.get("title") or result["ablation"])
    caption = f"{tex(title)}{'' if title.endswith(('?', '.')) else '.'} "
    notes = " ".join(f"{tex(head)}: {tex(text)}." for head, text in footer(result) if head in _CAPTION)
    first = latex_table(_whole(result), caption + notes, label)
    parts = ["% needs \\usepackage{booktabs,amssymb,graphicx}", first]
    if (deltas := differences(result)).rows:
        caption = f"{name}: differences to {tex(compared_with(result))}."
        parts.append(latex_table(deltas, caption, f"{label}-differences"))
    said = [("claim", result.get("claim")), *((answer, _verdict(*rest)) for answer, *rest in verdicts(result))]
    below = [(head, text) for head, text in footer(result) if head not in _CAPTION]
    comments = [f"% {head}: {text}" for head, text in (*said, *below) if text]
    return "\n\n".join([*parts, "\n".join(comments)]) + "\n"


def html(result: Result, images: Mapping[str, bytes] | None = None) -> str:
    """A page that needs no other file; images: title -> the bytes of a PNG."""
    title = str(result.get("title") or result["ablation"])
    claim = f'<p class="claim">{escape(result["claim"])}</p>' if result.get("claim") else ""
    parts = [claim, _html_verdict(result), html_grid(_whole(result))]
    if (deltas := differences(result)).rows:
        parts += [f"<h2>Differences to {escape(compared_with(result))}</h2>", html_grid(deltas)]
    parts.append(html_list(footer(result)))
    for head, data in (images or {}).items():
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        parts.append(f'<h2>{escape(head)}</h2><img alt="{escape(head)}" src="{source}">')
    return html_page(title, parts)


def html_page(title: str, parts: Sequence[str]) -> str:
    """A page of ready-made parts under a title, with the style of all tables."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>\n{_CSS}\n</style></head><body>\n<h1>{escape(title)}</h1>{body}\n</body></html>\n"
    )


def html_list(lines: Iterable[tuple[str, str]]) -> str:
    """What stands below a table."""
    items = "".join(f"<dt>{escape(head)}</dt><dd>{escape(text)}</dd>" for head, text in lines)
    return f"<h2>Reading and provenance</h2><dl>{items}</dl>"


def terminal(result: Result, width: int = WIDTH) -> Group:
    """The primary metric as dots, then scores, differences, costs and the paper for rich, within `width` columns."""
    from rich.console import Group
    from rich.text import Text

    costs_and_paper = costs(result).beside(paper(result))
    title = str(result.get("title") or result["ablation"])
    parts: list[Any] = [Text(title, style="bold"), Text("")]
    if (dots := dot_plot(result, width)) is not None:
        parts.append(dots)
    for heading, grid in (
        ("scores", scores(result, marks=False)),
        (f"differences to {compared_with(result)}", differences(result)),
        ("cost | paper (not comparable in value)", costs_and_paper),
    ):
        for i, part in enumerate(_chunks(grid, width)):
            parts.append(_rich_table(part, f"{heading}, continued" if i else heading))
    return Group(*parts, _rich_footer(footer(result)))


def terminal_verdict(result: Result) -> Table:
    """The claim and what came out of its clauses, for rich."""
    from rich.table import Table
    from rich.text import Text

    lines = Table.grid(padding=(0, 2, 0, 0))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    if result.get("claim"):
        lines.add_row(Text("claim", style="dim"), Text(result["claim"]))
    for answer, clause, evidence in verdicts(result):
        style = _ANSWER_COLOURS.get(answer, "dim")
        text = Text.assemble(clause, (f"  {evidence}" if evidence else "", "dim"))
        lines.add_row(Text(f"{SIGNS[answer]} {answer}", style=style), text)
    return lines


def terminal_grid(grids: Sequence[Grid], title: str, below: Sequence[tuple[str, str]], width: int = WIDTH) -> Group:
    """Grids for rich, cut into tables that fit, and what stands below them."""
    from rich.console import Group
    from rich.text import Text

    parts = []
    for n, grid in enumerate(grid for grid in grids if grid.rows):
        head = grid.columns[0].group if n else ""
        parts += [_rich_table(part, "continued" if i else head) for i, part in enumerate(_chunks(grid, width))]
    return Group(Text(title, style="bold"), *parts, _rich_footer(below))


_ANSWER_COLOURS = {"holds": "bold green", "refuted": "bold red"}
_DIFF_COLUMNS = {"low": "diff_low", "high": "diff_high", "n": "diff_n"}
_CAPTION = frozenset({"order as in the paper", "scale", "seeds", "reading"})


def _whole(result: Result) -> Grid:
    """The one table: scores with marks, cost, and the paper to the right."""
    return scores(result, marks=True).beside(costs(result)).beside(paper(result))


def _verdict(clause: str, evidence: str) -> str:
    return f"{clause} ({evidence})" if evidence else clause


def _html_verdict(result: Result) -> str:
    kinds = {"holds": "better", "refuted": "worse"}
    items = "".join(
        f'<li><b class="{kinds.get(answer, "none")}">{SIGNS[answer]} {answer}</b> {escape(clause)} '
        f'<span class="aside">{escape(evidence)}</span></li>'
        for answer, clause, evidence in verdicts(result)
    )
    return f'<ul class="verdict">{items}</ul>' if items else ""


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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


def markdown_grid(grid: Grid) -> str:
    """A grid as a Markdown table."""
    groups = [column.group for column in grid.columns]
    headers = [
        column.header if column.group != PAPER else f"{'paper' if groups[i - 1] == PAPER else PAPER}: {column.header}"
        for i, column in enumerate(grid.columns)
    ]
    lines = ["| | " + " | ".join(_md(h) for h in headers) + " |", "|---|" + "--:|" * len(headers)]
    for label, cells in grid.rows:
        texts = (f"**{_md(cell.plain())}**" if cell.bold else _md(cell.plain()) for cell in cells)
        lines.append(f"| {_md(label)} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _md(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def tex(text: str) -> str:
    """Text with everything escaped that TeX would read otherwise."""
    return "".join(_TEX.get(c, c) for c in text).replace("}$$^{", "")


def _groups(columns: tuple[Column, ...]) -> list[tuple[str, int]]:
    return [(name, len(list(found))) for name, found in groupby(columns, lambda column: column.group)]


def latex_table(grid: Grid, caption: str, label: str) -> str:
    """A grid as a booktabs table; the caption is TeX already."""
    spans, rules, at = [], [], 2
    for name, n in _groups(grid.columns):
        spans.append(rf"\multicolumn{{{n}}}{{c}}{{{tex(name)}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + n - 1}}}")
        at += n
    lines = [
        r"\begin{table*}",
        r"\centering",
        r"\resizebox{\linewidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * len(grid.columns)}}}",
        r"\toprule",
        " & " + " & ".join(spans) + r" \\",
        "".join(rules),
        " & " + " & ".join(tex(column.header) for column in grid.columns) + r" \\",
        r"\midrule",
    ]
    for i, (name, cells) in enumerate(grid.rows):
        if i == grid.rule_at:
            lines.append(r"\midrule")
        lines.append(f"{tex(name)} & " + " & ".join(_latex_cell(cell) for cell in cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", rf"\caption{{{caption}}}", rf"\label{{tab:{label}}}"]
    return "\n".join([*lines, r"\end{table*}"])


def _latex_cell(cell: Cell) -> str:
    text = rf"\textbf{{{tex(cell.text)}}}" if cell.bold else tex(cell.text)
    return text + rf"\,{tex(cell.mark)}" * bool(cell.mark) + rf" {{\scriptsize {tex(cell.aside)}}}" * bool(cell.aside)


def html_grid(grid: Grid) -> str:
    """A grid as an HTML table that scrolls sideways."""
    spans = _groups(grid.columns)
    groups = "".join(f'<th class="group" colspan="{n}">{escape(name)}</th>' for name, n in spans)
    heads = "".join(f"<th>{escape(column.header)}</th>" for column in grid.columns)
    body = []
    for i, (label, cells) in enumerate(grid.rows):
        rule = ' class="rule"' if i == grid.rule_at else ""
        data = "".join(
            f"<td{' class=aside' if column.group == PAPER else ''}>{_html_cell(cell)}</td>"
            for column, cell in zip(grid.columns, cells, strict=True)
        )
        body.append(f"<tr{rule}><th>{escape(label)}</th>{data}</tr>")
    rows = "\n".join(body)
    return (
        f'<div class="scroll"><table>\n<thead><tr><th></th>{groups}</tr><tr><th></th>{heads}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _html_cell(cell: Cell) -> str:
    text = f"<b>{escape(cell.text)}</b>" if cell.bold else escape(cell.text)
    if cell.verdict is None:
        return text
    kind = cell.verdict if cell.verdict in _COLOURS else "none"
    aside = f" <small>{escape(cell.aside)}</small>" if cell.aside else ""
    return f'{text} <span class="{kind}" title="{cell.verdict}">{cell.mark}</span>{aside}'


def _chunks(grid: Grid, width: int) -> list[Grid]:
    """The grid cut into tables that fit; the row labels are repeated."""
    label = _label_width(grid) + 4  # with the margins of the table
    parts, start, used = [], 0, label
    for i in range(len(grid.columns)):
        size = _column_width(grid, i) + 2
        if used + size > width and i > start:
            parts.append(grid.only(range(start, i)))
            start, used = i, label
        used += size
    return [*parts, grid.only(range(start, len(grid.columns)))] if grid.columns else []


def _label_width(grid: Grid) -> int:
    """Long labels break between words."""
    labels = [label for label, _ in grid.rows]
    longest = max((len(label) for label in labels), default=0)
    return min(longest, max(15, *(_longest_word(label) for label in labels)))


def _column_width(grid: Grid, i: int) -> int:
    """Headers may break between words, and a cell's aside has a line of its own."""
    cells = [cells[i] for _, cells in grid.rows]
    lines = [f"{cell.text} {cell.mark}".strip() for cell in cells] + [cell.aside for cell in cells]
    return max(_longest_word(grid.columns[i].header), *(len(line) for line in lines))


def _longest_word(text: str) -> int:
    return max((len(word) for word in text.split(" ")), default=0)


def _rich_table(grid: Grid, title: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="dim", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", width=_label_width(grid))
    for i, column in enumerate(grid.columns):
        header = textwrap.fill(column.header, _column_width(grid, i), break_long_words=False)
        table.add_column(Text(header), justify="right", vertical="bottom", no_wrap=True)
    for i, (label, cells) in enumerate(grid.rows):
        if i == grid.rule_at:
            table.add_section()
        table.add_row(Text(label), *(_rich_cell(cell) for cell in cells))
    return table


def _rich_cell(cell: Cell) -> Text:
    from rich.text import Text

    style = "dim" if cell.text == MISSING else _COLOURS.get(cell.verdict or "", "")
    text = Text(f"{cell.text} {cell.mark}".strip(), style=f"bold {style}" if cell.bold else style)
    return text if not cell.aside else Text.assemble(text, "\n", (cell.aside, "dim"))


def _rich_footer(below: Iterable[tuple[str, str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="dim", no_wrap=True)
    lines.add_column(overflow="fold")
    for label, text in below:
        lines.add_row(label, Text(text))
    return lines
