"""A printed table before any markup: cells under headed columns, and how many digits a number has."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

MISSING = "–"


MARKS = {"better": "▲", "worse": "▼", "no difference shown": "·", "not resolved": "?"}


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Cell:
    """One printed cell; `verdict` colours it and adds its mark, `aside` follows in smaller print."""

    text: str = MISSING
    bold: bool = False
    verdict: str | None = None
    aside: str = ""

    @property
    def mark(self) -> str:
        """The verdict's sign, or nothing."""
        return MARKS[self.verdict] if self.verdict else ""

    def plain(self) -> str:
        """Text, mark and aside in one line."""
        return " ".join(part for part in (self.text, self.mark, self.aside) if part)


@dataclass(frozen=True)
class Column:
    """A column under the heading of its group."""

    group: str
    header: str


@dataclass(frozen=True)
class Grid:
    """A table: its columns and its rows by label; `rule_at` is the first row below the arms."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    rule_at: int | None = None

    def beside(self, other: Grid) -> Grid:
        """Both, side by side; rows that `other` lacks get missing cells."""
        theirs = dict(other.rows)
        blank = tuple(Cell("") for _ in other.columns)
        rows = tuple((label, cells + theirs.get(label, blank)) for label, cells in self.rows)
        return Grid(self.columns + other.columns, rows, self.rule_at)

    def only(self, columns: range) -> Grid:
        """Some of the columns."""
        rows = tuple((label, tuple(cells[i] for i in columns)) for label, cells in self.rows)
        return Grid(tuple(self.columns[i] for i in columns), rows, self.rule_at)


@dataclass(frozen=True)
class Digits:
    """How a column is printed: in units of 10^exponent with so many decimals."""

    exponent: int
    decimals: int

    @classmethod
    def of(cls, means: Iterable[float], halves: Iterable[float], exponent: int | None = None) -> Digits:
        """Two digits of the typical half-width; three of the largest mean where there is no interval."""
        largest = max((abs(x) for x in means), default=0.0)
        if exponent is None:
            plain = largest == 0 or 0.1 <= largest < 10_000
            exponent = 0 if plain else 3 * math.floor(math.log10(largest) / 3)
        widths = [half / 10**exponent for half in halves if half > 0]
        if widths:
            decimals = 1 - math.floor(math.log10(median(widths)))
        else:
            decimals = 2 - math.floor(math.log10(largest / 10**exponent)) if largest else 0
        return cls(exponent, min(max(decimals, 0), 4))

    def text(self, value: float) -> str:
        """One number, with a true minus sign."""
        shown = f"{value / 10**self.exponent:.{self.decimals}f}"
        return shown.replace("-", "−") if float(shown) else shown.lstrip("-")

    def interval(self, mean: float, half: float | None) -> str:
        """mean ± half."""
        return self.text(mean) if half is None else f"{self.text(mean)} ± {self.text(half)}"

    @property
    def unit(self) -> str:
        """×10⁻³, or nothing."""
        return f"×10{str(self.exponent).translate(SUPERSCRIPTS)}" if self.exponent else ""
