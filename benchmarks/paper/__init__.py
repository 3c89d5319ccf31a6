"""The tables of the paper: one CSV per table with every cell as printed, our name of the row, and its source.

Begin with `load("table_1")`. Values are not comparable with ours (other data, scale and metrics), but the order of the
rows is. Errors of the paper are kept; `benchmarks.paper.lint` finds them. A system has the same name in all tables; a
row of an ablation has the name of its arm.

columns.csv describes the columns by their printed name, which means the same in all tables. captions.csv holds the
titles, the printed captions, our notes, and what the paper says of the videos of all rows.
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
_ROW_KEYS = ("label", "arm", "group", "source")


@dataclass(frozen=True)
class PaperColumn:
    """A printed column. Only columns of kind "quality" rank the rows.

    direction: None for a setting.
    metric: our metric for the same quantity: a name in the registry, a total of VBench, or a cost.
    derived: whether the authors computed it from other columns of the row.
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
        """Factor from our unit to the paper's: 100 for VBench's fractions, 1e-9 from bytes to GB."""
        return _FACTORS.get(self.unit, 1.0)


@dataclass(frozen=True)
class PaperRow:
    """A printed row.

    label: as printed. arm: our name of the system or of the ablation's arm. group: heading above the row.
    values: column -> number, for numeric cells ("10B" in billions is 10; "OOM" and sizes are not numeric).
    printed: column -> text of every cell.
    """

    label: str
    arm: str
    values: Mapping[str, float]
    source: str
    printed: Mapping[str, str] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper; `note` is our comment.

    card: the system whose card describes the videos of rows that are no system, such as the arms of an ablation.
    prompts: their number, the same for all rows; prompts_sha256: their identity (`report.card_check.prompts_of`).
        None and "" where the paper does not say.
    """

    name: str
    columns: tuple[PaperColumn, ...]
    rows: tuple[PaperRow, ...]
    title: str = ""
    caption: str = ""
    note: str = ""
    card: str = ""
    prompts: int | None = None
    prompts_sha256: str = ""

    def values(self) -> dict[str, dict[str, float]]:
        """arm -> column -> printed value."""
        return {row.arm: dict(row.values) for row in self.rows}

    def quality(self) -> dict[str, Direction]:
        """The columns that rank the rows, with their directions."""
        return {c.name: c.direction for c in self.columns if c.kind == "quality" and c.direction is not None}

    def row(self, arm: str) -> PaperRow:
        """The row of a system or an arm. Raises ConfigError for an unknown name, listing the known ones."""
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
    """Read a table of the paper from <folder>/<name>.csv. Raises ConfigError for an unknown name or column."""
    if name not in _CAPTIONS:
        raise ConfigError(f"no table {name!r} of the paper; known: {', '.join(names())}")
    path = folder / f"{name}.csv"
    heads, lines = _lines(path)
    columns = [head for head in heads if head not in _ROW_KEYS]
    if unknown := [column for column in columns if column not in COLUMNS]:
        raise ConfigError(f"{path}: unknown column {unknown[0]!r}; known: {', '.join(COLUMNS)}")
    texts = dict(_CAPTIONS[name])
    prompts = texts.pop("prompts")
    return PaperTable(
        columns=tuple(COLUMNS[column] for column in columns),
        rows=tuple(_row(line, columns) for line in lines),
        prompts=int(prompts) if prompts else None,
        **texts,
    )


def number(text: str, unit: str = "") -> Decimal | None:
    """The number of a printed cell with its printed digits, e.g. of "1,635", "3.66e-6", "10B" with unit B; or None."""
    try:
        return Decimal(text.removesuffix(unit).replace(",", ""))
    except InvalidOperation:
        return None


def _row(line: Mapping[str, str], columns: list[str]) -> PaperRow:
    numbers = {column: number(line[column], COLUMNS[column].unit) for column in columns}
    values = {column: float(value) for column, value in numbers.items() if value is not None}
    printed = {column: line[column] for column in columns}
    return PaperRow(line["label"], line["arm"], values, line["source"], printed, line.get("group", ""))
