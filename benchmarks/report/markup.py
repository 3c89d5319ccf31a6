"""A grid as Markdown, TeX or HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from benchmarks.report.grid import Cell, Column, Grid
from benchmarks.report.render import (
    PAPER,
)

if TYPE_CHECKING:
    pass

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
    kind = cell.verdict if cell.verdict in ("better", "worse") else "none"
    aside = f" <small>{escape(cell.aside)}</small>" if cell.aside else ""
    return f'{text} <span class="{kind}" title="{cell.verdict}">{cell.mark}</span>{aside}'
