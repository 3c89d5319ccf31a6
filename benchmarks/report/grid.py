"""A printed table (`Grid`) as Markdown and TeX, and the number of printed digits (`Digits`)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from statistics import median
from typing import NamedTuple

from pw.io.console import one_line

MISSING = "–"
MARKS = {"better": "▲", "worse": "▼", "no difference shown": "·", "not resolved": "?"}
PAPER = "paper (not comparable in value)"
"""Name of the column group with the paper's numbers."""

TEXT_WIDTH, SIZE, GAP, MAX_LABEL = 345.0, 8, 8.0, 110.0
"""In pt: LaTeX's narrowest usual text (article at 10 pt), size of print, gap of columns, maximum of a row label."""

PAGE_WIDTH, PX, PADDING = 1300, 8.5, 16
"""In px: room for a table in a window of 1400 px, width of a character, and of a cell's padding."""

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "·": r"$\cdot$", "↓": r"$\downarrow$", "↑": r"$\uparrow$",
    "→": r"$\to$", "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$", "–": "--", "…": r"\dots{}",
    "Δ": r"$\Delta$", "α": r"$\alpha$", "β": r"$\beta$", "λ": r"$\lambda$", "σ": r"$\sigma$", "≥": r"$\geq$",
    "≤": r"$\leq$", "\u2003": r"\quad ", "\u2009": r"\,", "\u00a0": "~",
    "†": r"$^{\dagger}$", "⁻": "$^{-}$", **{c: f"$^{{{i}}}$" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
}  # fmt: skip


def tex(text: str) -> str:
    """Escape the special characters of TeX, on one line."""
    return "".join(_TEX.get(c, c) for c in one_line(text)).replace("}$$^{", "")


def _points(text: str) -> float:
    """Width of a text in Computer Modern at `SIZE` in pt, rather too wide than too narrow."""
    ems = {".,:;'!|()[]ijlftrsI-/† \u2009": 0.43, "0123456789": 0.54, "abcdeghknopquvxyz": 0.6, "mwMW→Δ▲▼×": 1.0}
    return SIZE * sum(next((em for characters, em in ems.items() if c in characters), 0.84) for c in text)


def _stacked(text: str, width: float, at: str, to: str) -> str:
    """A text for a cell of TeX, in lines broken at spaces where it is wider than `width` pt.

    at: the line that is on the row's, t(op) or b(ottom); to: where lines are set, l, c or r
    """
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip(" ")
        lines[-1:] = [longer] if not lines[-1] or _points(longer) <= width else [lines[-1], word]
    stack = r" \\ ".join(f"{'{}' if line.startswith(('[', '*')) else ''}{tex(line)}" for line in lines)  # \\[2pt], \\*
    return stack if len(lines) == 1 else rf"\begin{{tabular}}[{at}]{{@{{}}{to}@{{}}}}{stack}\end{{tabular}}"


def md(text: str) -> str:
    """Escape what is emphasis, a column, a tag or a link in Markdown, on one line."""
    return re.sub(r"\\(?=[!-/:-@\[-`{-~])|[|*]|<(?=[A-Za-z/!?])|(?<=\])[(\[]", r"\\\g<0>", one_line(text))


@dataclass(frozen=True)
class Cell:
    """One printed cell. `verdict` sets its colour and mark; `note` follows in smaller print.

    value   the number by which the page sorts
    detail  what the page tells of the cell: its interval, its seeds, and what it was compared with
    """

    text: str = MISSING
    bold: bool = False
    verdict: str | None = None
    note: str = ""
    value: float | None = None
    detail: str = ""

    @property
    def mark(self) -> str:
        return MARKS[self.verdict] if self.verdict else ""

    def plain(self) -> str:
        """Text, mark and note in one line."""
        return " ".join(part for part in (self.text, self.mark, self.note) if part)

    def latex(self) -> str:
        text = rf"\textbf{{{tex(self.text)}}}" if self.bold else tex(self.text)
        mark = rf"\,{tex(self.mark)}" if self.mark else ""
        if not self.note:
            return text + mark
        return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{text}{mark} \\ {tex(self.note)}\end{{tabular}}"


class Column(NamedTuple):
    """A column: the heading of its group, its own, and the name by which it is chosen."""

    group: str
    header: str
    key: str = ""


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

    def choose(self, keys: Sequence[str]) -> Grid:
        """The columns with these keys, in their order; all without keys. A grid without columns has no rows."""
        chosen = [i for key in keys for i, column in enumerate(self.columns) if column.key == key]
        return self if not keys else self.select(chosen) if chosen else Grid((), ())

    def split(self, room: float, label: float, columns: Sequence[float]) -> list[Grid]:
        """Tables that fit into `room`, each with the row labels. A group of columns that fits is not torn apart.

        label, columns: width of the labels and of each column, gaps included.
        """
        cuts, used, last = [0], 0.0, 0
        for _, n in self.groups():
            total = sum(columns[last : last + n])
            for i in range(last, last + n):
                is_torn = i == last and used + total > room - label >= total
                if i > cuts[-1] and (is_torn or used + columns[i] > room - label):
                    cuts.append(i)
                    used = 0.0
                used += columns[i]
            last += n
        return [self.select(range(*ends)) for ends in pairwise([*cuts, len(self.columns)])]

    def split_for_page(self) -> list[Grid]:
        """Tables that fit into a window of 1400 px. The paper's columns are hidden at first and take no room."""
        widths = [0 if column.group == PAPER else PX * self.width(i) + PADDING for i, column in enumerate(self.columns)]
        return self.split(PAGE_WIDTH, self._label_px(), widths)

    def fits_page(self) -> bool:
        """Whether a window of 1400 px has room for all columns, the paper's too."""
        return self._label_px() + sum(PX * self.width(i) + PADDING for i in range(len(self.columns))) <= PAGE_WIDTH

    def _label_px(self) -> float:
        return PX * max((len(label) + 2 for label, _ in self.rows), default=0) + PADDING

    def select(self, columns: Sequence[int]) -> Grid:
        rows = tuple((label, tuple(cells[i] for i in columns)) for label, cells in self.rows)
        return Grid(tuple(self.columns[i] for i in columns), rows, self.rule_at)

    def markdown(self) -> str:
        headers, previous = [], ""
        for group, header, _ in self.columns:
            prefix = f"{'paper' if previous == PAPER else PAPER}: " if group == PAPER else ""
            headers.append(md(prefix + header))
            previous = group
        lines = ["| | " + " | ".join(headers) + " |", "|---|" + "--:|" * len(headers)]
        for label, cells in self.rows:
            texts = (f"**{md(cell.plain())}**" if cell.bold else md(cell.plain()) for cell in cells)
            lines.append(f"| {md(label)} | " + " | ".join(texts) + " |")
        return "\n".join(lines)

    def latex(self, caption: str, label: str) -> str:
        """The table in LaTeX with booktabs, as several where it is wider than the text. `caption` must be escaped."""
        parts = self.split(TEXT_WIDTH, self._label_points(), [self._points(i) for i in range(len(self.columns))])
        texts = [parts[0]._latex(caption, label)] if parts else []
        texts += [
            part._latex(rf"Table~\ref{{tab:{label}}}, continued.", f"{label}-{n}")
            for n, part in enumerate(parts[1:], 2)
        ]
        return "\n\n".join(texts)

    def _latex(self, caption: str, label: str) -> str:
        points = [self._points(i) for i in range(len(self.columns))]
        spans, rules, start = [], [], 2
        for name, n in self.groups():
            heading = _stacked(name, sum(points[start - 2 : start - 2 + n]) - GAP, "b", "c")
            spans.append(rf"\multicolumn{{{n}}}{{c}}{{{heading}}}")
            rules.append(rf"\cmidrule(lr){{{start}-{start + n - 1}}}")
            start += n
        heads = (_stacked(c.header, width - GAP, "b", "r") for c, width in zip(self.columns, points, strict=True))
        lines = [
            r"\begin{table*}",
            rf"\centering\fontsize{{{SIZE}}}{{{SIZE + 1.5}}}\selectfont\setlength{{\tabcolsep}}{{{GAP / 2}pt}}",
            rf"\begin{{tabular}}{{l{'r' * len(self.columns)}}}",
            r"\toprule",
            " & " + " & ".join(spans) + r" \\",
            "".join(rules),
            " & " + " & ".join(heads) + r" \\",
            r"\midrule",
        ]
        for i, (name, cells) in enumerate(self.rows):
            if i == self.rule_at:
                lines.append(r"\midrule")
            lines.append(" & ".join([_stacked(name, MAX_LABEL, "t", "l"), *(c.latex() for c in cells)]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", rf"\label{{tab:{label}}}"]
        return "\n".join([*lines, r"\end{table*}"])

    def _points(self, i: int) -> float:
        """Width of column i in TeX in pt."""
        return max(self.width(i, _points), *map(_points, self.columns[i].group.split(" "))) + GAP

    def _label_points(self) -> float:
        words = (word for label, _ in self.rows for word in label.split(" "))
        longest = max((_points(label) for label, _ in self.rows), default=0.0)
        return max(min(longest, MAX_LABEL), *map(_points, words)) + GAP if self.rows else 0.0

    def width(self, i: int, measure: Callable[[str], float] = len) -> float:
        """Width of column i, in characters. Headers wrap at spaces, and the note of a cell has its own line."""
        cells = [cells[i] for _, cells in self.rows]
        texts = [*self.columns[i].header.split(" "), *(f"{cell.text} {cell.mark}".strip() for cell in cells)]
        return max(measure(text) for text in [*texts, *(cell.note for cell in cells)])

    def groups(self) -> list[tuple[str, int]]:
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
