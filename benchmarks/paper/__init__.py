"""What the paper printed: one CSV per table, every cell as printed, with our name of the row and its source.

`load("table_1")` gives columns with their direction, unit and the metric of ours that measures the same, and rows.
Values are not comparable with ours (other data, scale and metrics); the order of the rows is. Slips are kept as
printed: `benchmarks.paper.lint` finds them. A system has one name in all tables; an ablation's rows have their arms'.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Literal

from benchmarks.metrics import ARROWS, METRICS, Direction
from pw.io.arguments import ConfigError

HERE = Path(__file__).parent
Kind = Literal["quality", "cost", "setting"]

# What is measured beside the registry, and its unit there: fractions, seconds, counts, bytes. -> factor to the paper's.
_FACTORS: Mapping[str, float] = {
    **dict.fromkeys(("vbench_average", "vbench_total", "vbench_quality", "vbench_semantic"), 100.0),
    **dict.fromkeys(("latency", "latency_per_pixel", "latency_per_frame"), 1.0),
    **dict.fromkeys(("parameters", "peak_memory"), 1e-9),
}


@dataclass(frozen=True)
class PaperColumn:
    """A printed column; only quality orders the rows: a cost or a setting says nothing about it.

    direction: None for a setting.
    metric: what of ours measures the same: a row of the registry, a total of `vbench_totals`, or a cost.
    derived: computed by the authors from other columns of the row.
    """

    name: str
    direction: Direction | None
    unit: str = ""
    kind: Kind = "quality"
    metric: str | None = None
    derived: bool = False

    @property
    def header(self) -> str:
        """Name, unit and the direction that is better."""
        unit = f" [{self.unit}]" if self.unit else ""
        return f"{self.name}{unit}\u00a0{ARROWS[self.direction]}" if self.direction else f"{self.name}{unit}"

    @property
    def factor(self) -> float:
        """Our measurement times this is in the paper's unit: 100 for VBench's fractions, 1e-9 for bytes in GB."""
        if self.metric is None:
            return 1.0
        return METRICS[self.metric].printed if self.metric in METRICS else _FACTORS[self.metric]


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
        return {
            column.name: column.direction
            for column in self.columns
            if column.kind == "quality" and column.direction is not None
        }

    def row(self, arm: str) -> PaperRow:
        """The row of a system or an arm.

        Raises: ConfigError for one that the table does not have, listing those it has.
        """
        for row in self.rows:
            if row.arm == arm:
                return row
        raise ConfigError(f"no row {arm!r} in {self.name}; its rows: {', '.join(row.arm for row in self.rows)}")


def _vbench(name: str, metric: str, *, derived: bool = False) -> PaperColumn:
    return PaperColumn(name, "higher", "%", metric=metric, derived=derived)


COLUMNS: Mapping[str, PaperColumn] = {
    column.name: column
    for column in (
        PaperColumn("MUSIQ", "higher", metric="musiq"),
        PaperColumn("NIQE", "lower", metric="niqe"),
        PaperColumn("mHD-MSE", "higher", metric="mhd_mse"),
        PaperColumn("mHD-LPIPS", "higher", metric="mhd_lpips"),
        PaperColumn("Tech.", "higher", metric="dover_technical"),
        PaperColumn("Aesth.", "higher", metric="dover_aesthetic"),
        # Table 1: six dimensions on 100 prompts
        PaperColumn("Resolution (T×H×W)", None, kind="setting"),
        _vbench("Subject Consis.", "subject_consistency"),
        _vbench("Background Consis.", "background_consistency"),
        _vbench("Motion Smooth.", "motion_smoothness"),
        _vbench("Dynamic Degree", "dynamic_degree"),
        _vbench("Aesthetic Quality", "aesthetic_quality"),
        _vbench("Imaging Quality", "imaging_quality"),
        _vbench("Avg.", "vbench_average", derived=True),
        PaperColumn("Playback FPS", None, "1/s", "setting"),
        PaperColumn("Latency", "lower", "s", "cost", "latency"),
        PaperColumn("Latency per Pixel", "lower", "s", "cost", "latency_per_pixel", derived=True),
        PaperColumn("Latency per Frame", "lower", "s", "cost", "latency_per_frame", derived=True),
        # Tables 2 and 3
        PaperColumn("Resolution (H×W)", None, kind="setting"),
        # Table 8.1: VBench-Long
        _vbench("Total Score", "vbench_total", derived=True),
        _vbench("Quality Score", "vbench_quality", derived=True),
        _vbench("Semantic Score", "vbench_semantic", derived=True),
        _vbench("Subject Consistency", "subject_consistency"),
        _vbench("Background Consistency", "background_consistency"),
        _vbench("Temporal Flickering", "temporal_flickering"),
        _vbench("Motion Smoothness", "motion_smoothness"),
        _vbench("Object Class", "object_class"),
        _vbench("Multiple Objects", "multiple_objects"),
        _vbench("Human Action", "human_action"),
        _vbench("Color", "color"),
        _vbench("Spatial Relationship", "spatial_relationship"),
        _vbench("Scene", "scene"),
        _vbench("Appearance Style", "appearance_style"),
        _vbench("Temporal Style", "temporal_style"),
        _vbench("Overall Consistency", "overall_consistency"),
        # Table 8.2
        PaperColumn("Params.", "lower", "B", "cost", "parameters"),
        PaperColumn("Peak Mem.", "lower", "GB", "cost", "peak_memory"),
    )
}
"""The columns of all tables by their printed name: a name is the same column wherever it stands."""

_TEXTS: Mapping[str, tuple[str, str, str]] = {
    "table_1": (
        "Table 1",
        "Quantitative comparison of video generation quality and efficiency across resolutions, with inference "
        "latency measured on a single GPU.",
        "VBench on 100 prompts, the same for all. Latency is of the diffusion inference process (sec. 4.2).",
    ),
    "table_2": (
        "Table 2",
        "Comparison of video quality across different methods.",
        "Tech. and Aesth. are as DOVER's own script prints them, which swaps the two branches' statistics.",
    ),
    "table_3": (
        "Table 3",
        "Quantitative comparison with representative video super-resolution (SR) methods.",
        "Two blocks, one at 2K and one at 4K; each system is printed twice but for SeedVR2.",
    ),
    "table_4": (
        "Table 4",
        "Ablation on Anchor-Guided High-Resolution Synthesis (AGHS) at 2560*1440 resolution.",
        "+AGHS is PixelWizard-2k.",
    ),
    "table_5": (
        "Table 5",
        "Ablation on inference steps of Anchor-Guided High-Resolution Synthesis stage at 2560*1440 resolution.",
        "Latency without its unit in print. 4 steps are the setting of all other tables (sec. 4.3).",
    ),
    "table_8_1": (
        "Table 8.1",
        "Comparison with state-of-the-art open-source models on VBench-Long benchmark.",
        "Total, quality and semantic score are VBench's weighted means of the normalised dimensions.",
    ),
    "table_8_2": (
        "Table 8.2",
        "Parameter count and peak memory comparison.",
        "OOM: out of memory on a GPU that the paper does not name.",
    ),
    "table_9_3": (
        "Table 9.3",
        "Ablation Study of the proposed training Noise-Span Aligned Shortcut Training strategy under 4-step inference.",
        "The last row is PixelWizard-2k.",
    ),
}
"""Title, printed caption, our note."""

_BESIDE = ("label", "arm", "group", "source")


def names() -> list[str]:
    """The tables there are."""
    return sorted(_TEXTS)


def load(name: str, folder: Path = HERE) -> PaperTable:
    """A table of the paper.

    folder: where its CSV is.
    Raises: ConfigError for an unknown name, listing the known ones; for a column that no table of the paper has.
    """
    if name not in _TEXTS:
        raise ConfigError(f"no table {name!r} of the paper; known: {', '.join(names())}")
    path = folder / f"{name}.csv"
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = [field for field in reader.fieldnames or () if field not in _BESIDE]
        if unknown := [column for column in columns if column not in COLUMNS]:
            raise ConfigError(f"{path}: unknown column {unknown[0]!r}; known: {', '.join(COLUMNS)}")
        rows = tuple(_row(line, columns) for line in reader)
    title, caption, note = _TEXTS[name]
    return PaperTable(name, tuple(COLUMNS[c] for c in columns), rows, title, caption, note)


def number(text: str, unit: str = "") -> Decimal | None:
    """The number that a printed cell is, with as many digits as printed: "1,635", "3.66e-6", "10B" in B; or None."""
    try:
        return Decimal(text.removesuffix(unit).replace(",", ""))
    except InvalidOperation:
        return None


def _row(line: Mapping[str, str], columns: list[str]) -> PaperRow:
    found = {column: number(line[column], COLUMNS[column].unit) for column in columns}
    return PaperRow(
        line["label"],
        line["arm"],
        {column: float(value) for column, value in found.items() if value is not None},
        line["source"],
        {column: line[column] for column in columns},
        line.get("group", ""),
    )
