"""A printed table (`Grid`) as Markdown, TeX and HTML, and the number of printed digits (`Digits`)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import NamedTuple

from pw.io.console import one_line

MISSING = "–"
MARKS = {"better": "▲", "worse": "▼", "no difference shown": "·", "not resolved": "?"}
PAPER = "paper (not comparable in value)"
"""Name of the column group with the paper's numbers."""

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8").strip()
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "·": r"$\cdot$", "↓": r"$\downarrow$", "↑": r"$\uparrow$",
    "→": r"$\to$", "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$", "–": "--", "…": r"\dots{}",
    "Δ": r"$\Delta$", "α": r"$\alpha$", "β": r"$\beta$", "λ": r"$\lambda$", "σ": r"$\sigma$", "≥": r"$\geq$",
    "≤": r"$\leq$", "\u2003": r"\quad ", "\u2009": r"\,", "\u00a0": "~",
    "⁻": "$^{-}$", **{c: f"$^{{{i}}}$" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
}  # fmt: skip


def tex(text: str) -> str:
    """Escape the special characters of TeX, on one line."""
    return "".join(_TEX.get(c, c) for c in one_line(text)).replace("}$$^{", "")


def md(text: str) -> str:
    """Escape what is emphasis, a column, a tag or a link in Markdown, on one line."""
    return re.sub(r"\\(?=[!-/:-@\[-`{-~])|[|*]|<(?=[A-Za-z/!?])|(?<=\])[(\[]", r"\\\g<0>", one_line(text))


@dataclass(frozen=True)
class Cell:
    """One printed cell. `verdict` sets its colour and mark; `note` follows in smaller print."""

    text: str = MISSING
    bold: bool = False
    verdict: str | None = None
    note: str = ""

    @property
    def mark(self) -> str:
        return MARKS[self.verdict] if self.verdict else ""

    def plain(self) -> str:
        """Text, mark and note in one line."""
        return " ".join(part for part in (self.text, self.mark, self.note) if part)

    def latex(self) -> str:
        text = rf"\textbf{{{tex(self.text)}}}" if self.bold else tex(self.text)
        mark = rf"\,{tex(self.mark)}" if self.mark else ""
        return text + mark + (rf" {{\scriptsize {tex(self.note)}}}" if self.note else "")

    def html(self) -> str:
        text = f"<b>{escape(self.text)}</b>" if self.bold else escape(self.text)
        if self.verdict is None:
            return text
        kind = self.verdict if self.verdict in ("better", "worse") else "none"
        note = f" <small>{escape(self.note)}</small>" if self.note else ""
        return f'{text} <span class="{kind}" title="{self.verdict}">{self.mark}</span>{note}'


class Column(NamedTuple):
    group: str
    header: str


@dataclass(frozen=True)
class Grid:
    """A table: columns, and rows of (label, cells). A rule is drawn above row `rule_at`."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    rule_at: int | None = None

    def join(self, other: Grid) -> Grid:
        """Append the columns of `other`, matched by row label; rows missing in `other` get empty cells."""
        other_rows = dict(other.rows)
        blank = tuple(Cell("") for _ in other.columns)
        rows = tuple((label, cells + other_rows.get(label, blank)) for label, cells in self.rows)
        return Grid(self.columns + other.columns, rows, self.rule_at)

    def select(self, columns: range) -> Grid:
        rows = tuple((label, tuple(cells[i] for i in columns)) for label, cells in self.rows)
        return Grid(tuple(self.columns[i] for i in columns), rows, self.rule_at)

    def markdown(self) -> str:
        headers, previous = [], ""
        for group, header in self.columns:
            prefix = f"{'paper' if previous == PAPER else PAPER}: " if group == PAPER else ""
            headers.append(md(prefix + header))
            previous = group
        lines = ["| | " + " | ".join(headers) + " |", "|---|" + "--:|" * len(headers)]
        for label, cells in self.rows:
            texts = (f"**{md(cell.plain())}**" if cell.bold else md(cell.plain()) for cell in cells)
            lines.append(f"| {md(label)} | " + " | ".join(texts) + " |")
        return "\n".join(lines)

    def latex(self, caption: str, label: str) -> str:
        """The table in LaTeX with booktabs. `caption` must be escaped already."""
        spans, rules, start = [], [], 2
        for name, n in self._groups():
            spans.append(rf"\multicolumn{{{n}}}{{c}}{{{tex(name)}}}")
            rules.append(rf"\cmidrule(lr){{{start}-{start + n - 1}}}")
            start += n
        lines = [
            r"\begin{table*}",
            r"\centering",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * len(self.columns)}}}",
            r"\toprule",
            " & " + " & ".join(spans) + r" \\",
            "".join(rules),
            " & " + " & ".join(tex(column.header) for column in self.columns) + r" \\",
            r"\midrule",
        ]
        for i, (name, cells) in enumerate(self.rows):
            if i == self.rule_at:
                lines.append(r"\midrule")
            lines.append(f"{tex(name)} & " + " & ".join(cell.latex() for cell in cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}}", rf"\caption{{{caption}}}", rf"\label{{tab:{label}}}"]
        return "\n".join([*lines, r"\end{table*}"])

    def html(self) -> str:
        """The table in HTML; it scrolls horizontally."""
        groups = "".join(f'<th class="group" colspan="{n}">{escape(name)}</th>' for name, n in self._groups())
        heads = "".join(f"<th>{escape(column.header)}</th>" for column in self.columns)
        body = []
        for i, (label, cells) in enumerate(self.rows):
            rule = ' class="rule"' if i == self.rule_at else ""
            data = "".join(
                f"<td{' class=aside' if column.group == PAPER else ''}>{cell.html()}</td>"
                for column, cell in zip(self.columns, cells, strict=True)
            )
            body.append(f"<tr{rule}><th>{escape(label)}</th>{data}</tr>")
        rows = "\n".join(body)
        return (
            f'<div class="scroll"><table>\n<thead><tr><th></th>{groups}</tr><tr><th></th>{heads}</tr></thead>\n'
            f"<tbody>\n{rows}\n</tbody></table></div>"
        )

    def _groups(self) -> list[tuple[str, int]]:
        return [(name, len(list(columns))) for name, columns in groupby(self.columns, lambda column: column.group)]


@dataclass(frozen=True)
class Digits:
    """Number format of a column: units of 10^exponent, with `decimals` decimals."""

    exponent: int
    decimals: int

    @classmethod
    def of(cls, means: Iterable[float], halves: Iterable[float], exponent: int | None = None) -> Digits:
        """Two digits of the median half-width; without intervals, three digits of the largest mean."""
        largest = max((abs(x) for x in means), default=0.0)
        if exponent is None:
            is_plain = largest == 0 or 0.1 <= largest < 10_000
            exponent = 0 if is_plain else 3 * math.floor(math.log10(largest) / 3)
        widths = [half / 10**exponent for half in halves if half > 0]
        if widths:
            decimals = 1 - math.floor(math.log10(median(widths)))
        else:
            decimals = 2 - math.floor(math.log10(largest / 10**exponent)) if largest else 0
        return cls(exponent, min(max(decimals, 0), 4))

    def text(self, value: float) -> str:
        """One number, with a true minus sign."""
        text = f"{value / 10**self.exponent:.{self.decimals}f}"
        return text.replace("-", "−") if float(text) else text.lstrip("-")

    def interval(self, mean: float, half: float | None) -> str:
        return self.text(mean) if half is None else f"{self.text(mean)} ± {self.text(half)}"

    @property
    def unit(self) -> str:
        """`×10⁻³`, or "" for exponent 0."""
        return f"×10{str(self.exponent).translate(SUPERSCRIPTS)}" if self.exponent else ""


def html_page(title: str, parts: Sequence[str]) -> str:
    """An HTML page with a title and HTML parts, in the style of all tables."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>\n{CSS}\n</style></head><body>\n<h1>{escape(title)}</h1>{body}\n</body></html>\n"
    )


def html_list(lines: Iterable[tuple[str, str]]) -> str:
    """The (label, text) lines below a table as an HTML list."""
    items = "".join(f"<dt>{escape(head)}</dt><dd>{escape(text)}</dd>" for head, text in lines)
    return f"<h2>Reading and provenance</h2><dl>{items}</dl>"
