"""What the paper printed: one CSV per table, every number as printed, with our arm's name and its source.

`load("table_9_3")` gives columns with their direction, and rows. Values are not comparable with ours (other
data, scale and metrics); the order of the rows is. Known slips are kept: Table 5 prints 14.39 for 4 steps and
14.31 for 3, where Tables 4 and 9.3 print 14.31 for the 4-step model; its 5 steps take 264 s, which is 8 times
33 s.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.metrics import ARROWS, Direction

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Column:
    """A printed column; a cost says nothing about quality and takes no part in the order of rows."""

    name: str
    direction: Direction
    unit: str = ""
    kind: Literal["quality", "cost"] = "quality"

    @property
    def header(self) -> str:
        """Name, unit and the direction that is better."""
        return f"{self.name}{f' [{self.unit}]' if self.unit else ''}\u00a0{ARROWS[self.direction]}"


@dataclass(frozen=True)
class Row:
    """A printed row: its label there, our arm's name, column -> value, and where it stands."""

    label: str
    arm: str
    values: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Table:
    """A table of the paper."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def values(self) -> dict[str, dict[str, float]]:
        """arm -> column -> printed value."""
        return {row.arm: dict(row.values) for row in self.rows}

    def quality(self) -> dict[str, Direction]:
        """The columns that order the rows, with their directions."""
        return {column.name: column.direction for column in self.columns if column.kind == "quality"}


COLUMNS = {
    column.name: column
    for column in (
        Column("MUSIQ", "higher"),
        Column("NIQE", "lower"),
        Column("Tech.", "higher"),
        Column("Aesth.", "higher"),
        Column("Latency", "lower", "s", "cost"),
    )
}


def names() -> list[str]:
    """The tables there are."""
    return sorted(path.stem for path in HERE.glob("*.csv"))


def load(name: str) -> Table:
    """A table of the paper.

    Raises: ValueError for an unknown name, listing the known ones.
    """
    path = HERE / f"{name}.csv"
    if name not in names():
        raise ValueError(f"no table {name!r} of the paper; known: {', '.join(names())}")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = [field for field in reader.fieldnames or () if field in COLUMNS]
        rows = [
            Row(line["label"], line["arm"], {c: float(line[c]) for c in columns}, line["source"]) for line in reader
        ]
    return Table(name, tuple(COLUMNS[c] for c in columns), tuple(rows))
