"""What the paper printed: one CSV per table, every cell as printed, with our name of the row and its source.

`load("table_1")` gives columns with their direction, unit and the metric of ours that measures the same, and rows.
Values are not comparable with ours (other data, scale and metrics); the order of the rows is. Slips are kept as
printed: `benchmarks.paper.lint` finds them. A system has one name in all tables; an ablation's rows have their arms'.

columns.csv has the columns of all tables by their printed name: a name is the same column wherever it stands.
captions.csv has the tables' titles, printed captions and our notes.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal

from benchmarks.metrics import ARROWS, Direction
from pw.io.arguments import ConfigError

HERE = Path(__file__).parent
_FACTORS = {"%": 100.0, "B": 1e-9, "GB": 1e-9}  # printed unit -> factor of our fractions, counts and bytes
_BESIDE = ("label", "arm", "group", "source")


@dataclass(frozen=True)
class PaperColumn:
    """A printed column; only quality orders the rows: a cost or a setting says nothing about it.

    direction: None for a setting.
    metric: what of ours measures the same: a row of the registry, a total of VBench, or a cost.
    derived: computed by the authors from other columns of the row.
    """

    name: str
    direction: Direction | None
    unit: str = ""
    kind: Literal["quality", "cost", "setting"] = "quality"
    metric: str | None = None
    derived: bool = False

    @property
    def header(self) -> str:
        unit = f" [{self.unit}]" if self.unit else ""
        return f"{self.name}{unit}\u00a0{ARROWS[self.direction]}" if self.direction else f"{self.name}{unit}"

    @property
    def factor(self) -> float:
        """Our measurement times this is in the paper's unit: 100 for VBench's fractions, 1e-9 for bytes in GB."""
        return _FACTORS.get(self.unit, 1.0)


@dataclass(frozen=True)
class PaperRow:
    """A printed row.

    label: as printed. arm: our name of the system or of the ablation's arm.
    values: column -> number, of the cells that are one ("10B" in billions is 10; "OOM" and sizes are none).
    printed: column -> text of every cell. group: the heading it stands under.
    """

    label: str
    arm: str
    values: Mapping[str, float]
    source: str
    printed: Mapping[str, str] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper; note is ours."""

    name: str
    columns: tuple[PaperColumn, ...]
    rows: tuple[PaperRow, ...]
    title: str = ""
    caption: str = ""
    note: str = ""

    def values(self) -> dict[str, dict[str, float]]:
        """arm -> column -> printed value."""
        return {row.arm: dict(row.values) for row in self.rows}

    def quality(self) -> dict[str, Direction]:
        """The columns that order the rows, with their directions."""
        return {c.name: c.direction for c in self.columns if c.kind == "quality" and c.direction is not None}

    def row(self, arm: str) -> PaperRow:
        """The row of a system or an arm.

        Raises: ConfigError for one that the table does not have, listing those it has.
        """
        for row in self.rows:
            if row.arm == arm:
                return row
        raise ConfigError(f"no row {arm!r} in {self.name}; its rows: {', '.join(row.arm for row in self.rows)}")


def _lines(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or ()), list(reader)


def _column(line: Mapping[str, Any]) -> PaperColumn:
    kind, metric = line["kind"], line["metric"] or None
    return PaperColumn(line["name"], line["direction"] or None, line["unit"], kind, metric, line["derived"] == "yes")


COLUMNS: Mapping[str, PaperColumn] = {line["name"]: _column(line) for line in _lines(HERE / "columns.csv")[1]}
_CAPTIONS = {line["name"]: line for line in _lines(HERE / "captions.csv")[1]}


def names() -> list[str]:
    return sorted(_CAPTIONS)


def load(name: str, folder: Path = HERE) -> PaperTable:
    """A table of the paper.

    folder: where its CSV is.
    Raises: ConfigError for an unknown name, listing the known ones; for a column that no table of the paper has.
    """
    if name not in _CAPTIONS:
        raise ConfigError(f"no table {name!r} of the paper; known: {', '.join(names())}")
    path = folder / f"{name}.csv"
    heads, lines = _lines(path)
    columns = [head for head in heads if head not in _BESIDE]
    if unknown := [column for column in columns if column not in COLUMNS]:
        raise ConfigError(f"{path}: unknown column {unknown[0]!r}; known: {', '.join(COLUMNS)}")
    return PaperTable(
        columns=tuple(COLUMNS[column] for column in columns),
        rows=tuple(_row(line, columns) for line in lines),
        **_CAPTIONS[name],
    )


def number(text: str, unit: str = "") -> Decimal | None:
    """The number that a printed cell is, with as many digits as printed: "1,635", "3.66e-6", "10B" in B; or None."""
    try:
        return Decimal(text.removesuffix(unit).replace(",", ""))
    except InvalidOperation:
        return None


def _row(line: Mapping[str, str], columns: list[str]) -> PaperRow:
    numbers = {column: number(line[column], COLUMNS[column].unit) for column in columns}
    values = {column: float(value) for column, value in numbers.items() if value is not None}
    printed = {column: line[column] for column in columns}
    return PaperRow(line["label"], line["arm"], values, line["source"], printed, line.get("group", ""))
