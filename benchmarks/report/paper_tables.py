"""The paper's tables with ours beside them: what was printed, what was measured here, the difference and a verdict.

    pw table name=table_2 [systems=DIR score=true format=md out=DIR row.pixelwizard_2k=DIR …]

A row is filled from the folder of its system (`systems=`, by default outputs/systems/<name>, see `benchmarks.systems`),
or from any folder of videos that is named for it: `row.<name>=DIR`. The folder's scores.csv is read; score=true
measures what is lacking first. What was not measured is an en dash, with the command that supplies it below.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import paper
from benchmarks.measure.measurement import existing_folder
from benchmarks.measure.score import score_videos
from benchmarks.metrics import METRICS, protocols
from benchmarks.report import write as report
from benchmarks.report.grid import Cell, Column, Grid, html_list, html_page, tex
from benchmarks.report.paper_comparison import compose, find, metrics_of, read
from pw.io.arguments import Command, ConfigError, no_such_option, option
from pw.io.files import check_writable, write_atomically
from pw.io.paths import OUTPUTS

INDENT = "\u2003"
FORMATS = ("md", "tex", "html", "csv", "json")
LEGEND = (
    "ours: mean over videos ± half the 95 % bootstrap interval, prompts drawn as wholes; difference: ours minus the "
    "printed number; ▲ better, ▼ worse than printed, · the printed number lies in our interval, ? no interval; "
    "not corrected for the number of cells"
)


@dataclass(frozen=True)
class TableOptions:
    name: str = option("", f"which table: {', '.join(paper.names())}", values=paper.names)
    systems: Path = option(OUTPUTS / "systems", "where the systems' folders are", read=existing_folder)
    score: bool = option(False, "measure what is lacking first")
    format: Literal["terminal", "md", "tex", "html", "csv", "json"] = option("terminal", "how it is printed")
    out: Path = option(OUTPUTS / "tables", "the folder that gets the table in every format")
    reference: str = option("", "the row that ours are compared with; by default the paper's own system")
    overrides: tuple[str, ...] = option((), "row.NAME=DIR: a folder of videos for a row")

    @property
    def rows(self) -> dict[str, Path]:
        """row -> its folder of videos. Raises ConfigError for a word that names none."""
        if wrong := [word for word in self.overrides if not word.startswith("row.")]:
            raise no_such_option(type(self), wrong[0], ", and row.NAME")
        words = (word.removeprefix("row.").partition("=") for word in self.overrides)
        return {arm: Path(folder).expanduser() for arm, _, folder in words}


def run(options: TableOptions) -> int:
    """Write the table in every format and show it. Exit status 0."""
    if not options.name:
        raise ConfigError(f"name=: which table? {', '.join(paper.names())}")
    table = paper.load(options.name)
    folders = find(table, options.systems, options.rows)
    check_writable("out", options.out)
    if options.score:
        _score(table, folders)
    result = compose(table, {arm: read(folder) for arm, folder in folders.items()}, options.reference)
    for kind in FORMATS:
        write_atomically(options.out / f"{table.name}.{kind}", render(result, kind))
    if options.format == "terminal":
        _show(result)
        print(f"{options.out / table.name}.{{{','.join(FORMATS)}}}")
    else:
        print(render(result, options.format), end="")
    return 0


main = Command(TableOptions, run, resume_hint="what was measured is kept, the same command goes on with the rest")


def _score(table: paper.PaperTable, folders: Mapping[str, Path]) -> None:
    """Measure what the table's columns ask for, folder by folder; what was measured before comes from the cache."""
    from benchmarks.measure.score import NothingMeasured, write

    names = metrics_of([column.metric for column in table.columns])
    for arm, folder in folders.items():
        print(f"scoring {arm} in {folder}", file=sys.stderr)
        all_names = [*names, *(name for name in _of_other_tables(folder) if name not in names)]
        try:
            found = score_videos(folder, all_names, progress=lambda line: print(line, file=sys.stderr, flush=True))
        except ValueError as error:  # nothing there yet, say; the other rows are shown all the same
            print(f"  {error}", file=sys.stderr)
            continue
        for name, why in found.missing.items():
            print(f"  {name} –  {why}", file=sys.stderr)
        try:
            write(found, all_names, folder / "scores.csv")
        except NothingMeasured as error:
            print(f"  {error}", file=sys.stderr)


def _of_other_tables(folder: Path) -> list[str]:
    """What was measured before just as it would be now: it stays, from the cache, when scores.csv is written anew."""
    try:
        before = read(folder).protocols
    except ValueError:
        return []
    known = [name for name in before if name in METRICS and not METRICS[name].needs]
    return [name for name in known if before[name].get("settings") == protocols([name])[name]["settings"]]


def _show(result: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=report.WIDTH)
    grids = [grid(result), differences(result)]
    console.print(report.terminal_grid(grids, result["title"], footer(result), console.width))


def grid(result: Mapping[str, Any]) -> Grid:
    """A printed row, below it ours and the difference where something was measured."""
    # cost columns of the paper's other tables that we measured for a row of this one
    lacking = {name for row in result["rows"] for name in row["costs"]} - {c["metric"] for c in result["columns"]}
    beside = [column for column in paper.COLUMNS.values() if column.kind == "cost" and column.metric in lacking]
    columns = [Column(c["kind"], paper.PaperColumn(**c).header) for c in result["columns"]]
    columns += [Column("cost, ours", column.header) for column in beside]
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    blank = (Cell(""),) * len(beside)
    for row in result["rows"]:
        rows.append((row["label"], (*(Cell(row["paper"][c["name"]]) for c in result["columns"]), *blank)))
        if row["ours"]:
            ours = [row["ours"].get(c["name"]) for c in result["columns"]]
            digits = [_digits(result, c["name"], row) for c in result["columns"]]
            n = max((cell["n"] for c, cell in zip(result["columns"], ours, strict=True) if cell), default=0)
            costs = tuple(_cost(row, column) for column in beside)
            rows.append((f"{INDENT}ours (n={n})", (*map(_ours, ours, digits), *costs)))
            rows.append((f"{INDENT}difference", (*map(_difference, ours, digits), *blank)))
    return Grid(tuple(columns), tuple(rows))


def _cost(row: Mapping[str, Any], column: paper.PaperColumn) -> Cell:
    value = row["costs"].get(column.metric)
    return Cell() if value is None else Cell(f"{value * column.factor:.3g}")


def differences(result: Mapping[str, Any]) -> Grid:
    """Ours against ours: each row's difference to the reference's, with the printed difference beside; or nothing."""
    names = [c["name"] for c in result["columns"] if any(c["name"] in row["versus"] for row in result["rows"])]
    heads = {c["name"]: paper.PaperColumn(**c).header for c in result["columns"]}
    label = next((row["label"] for row in result["rows"] if row["arm"] == result["reference"]), "")
    columns = tuple(Column(f"ours minus ours of {label}", f"Δ{heads[name]}") for name in names)
    rows = [
        (row["label"], tuple(_versus_cell(row["versus"].get(n), _digits(result, n, row)) for n in names))
        for row in result["rows"]
        if row["versus"]
    ]
    return Grid(columns, tuple(rows))


def _versus_cell(found: Mapping[str, Any] | None, digits: str) -> Cell:
    if found is None or found["diff"] is None:
        return Cell(verdict=None if found is None else found["verdict"])
    printed = "" if found["printed"] is None else f"printed {_text(found['printed'], digits)}"
    return Cell(_interval(found["diff"], found, digits), verdict=found["verdict"], aside=printed)


def _digits(result: Mapping[str, Any], column: str, row: Mapping[str, Any]) -> str:
    """How numbers of a column are printed: as the paper prints this row's, or another row's, if it is none."""
    texts = [row["paper"][column], *(other["paper"][column] for other in result["rows"])]
    text = next((t for t in texts if paper.number(t) is not None), "0.00").replace(",", "")
    mantissa, e, _ = text.partition("e")
    return f".{len(mantissa.partition('.')[2])}{e or 'f'}"


def _text(value: float, digits: str) -> str:
    text = f"{value:{digits}}"
    if "e" in digits:
        return text
    return text.replace("-", "−") if float(text) else text.removeprefix("-")


def _interval(middle: float, ends: Mapping[str, Any], digits: str) -> str:
    text = _text(middle, digits)
    return text if ends["low"] is None else f"{text} ± {_text((ends['high'] - ends['low']) / 2, digits)}"


def _ours(cell: Mapping[str, Any] | None, digits: str) -> Cell:
    return Cell() if cell is None else Cell(_interval(cell["mean"], cell, digits))


def _difference(cell: Mapping[str, Any] | None, digits: str) -> Cell:
    if cell is None or cell["difference"] is None or not math.isfinite(cell["difference"]):
        return Cell("")
    text = _text(cell["difference"], digits)
    sign = "+" if cell["difference"] > 0 and float(text) else ""
    return Cell(f"{sign}{text}", verdict=cell["verdict"])


def footer(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What stands below the table."""
    lines = [("source", result["rows"][0]["source"].partition(",")[0]), ("note", result["note"])]
    lines += [("protocol", f"{name}: {_protocol(about)}") for name, about in result["protocols"].items()]
    for row in result["rows"]:
        by = f"; peak memory by {' and '.join(row['peak_memory_from'])}" if row["peak_memory_from"] else ""
        lines += [(row["label"], f"measured on {', '.join(row['devices'])}{by}")] if row["devices"] else []
        lines += [(row["label"], text) for text in row["deviations"] if row["ours"]]
    lines += [("not measured", text) for text in _supplies(result)]
    return [*lines, ("reading", LEGEND)] if any(row["ours"] for row in result["rows"]) else lines


def _protocol(about: Mapping[str, Any]) -> str:
    settings = " ".join(f"{key}={value}" for key, value in (about.get("settings") or {}).items())
    weights = " ".join(f"{key} {digest[:12]}" for key, digest in (about.get("weights") or {}).items())
    parts = [about["protocol"], settings, weights, about.get("licence", "")]
    return ", ".join(part for part in parts if part)


def _supplies(result: Mapping[str, Any]) -> list[str]:
    """The commands that would fill what is empty."""
    from benchmarks.systems import load, names

    found: list[str] = []
    without = [row["arm"] for row in result["rows"] if row["folder"] is None]
    wanted: dict[str, list[str]] = {}
    for arm in without:
        if arm in names():
            wanted.setdefault(load(arm).wants, []).append(arm)
    for wants, arms in wanted.items():
        does = "registers its videos" if wants.startswith("videos") else "makes its videos"
        found.append(f'{", ".join(arms)}: `make system name={arms[0]} args="{wants}"` {does}')
    if without:
        found.append(f"videos that you have, e.g. of {without[0]}: {_scoring(result, without[0], 'DIR')}")
    reasons: dict[tuple[str, ...], list[str]] = {}
    again: list[str] = []
    for row in result["rows"]:
        parts = metrics_of([c["metric"] for c in result["columns"] if c["name"] not in row["ours"]])
        if row["folder"] is None or not parts:
            continue
        for why in dict.fromkeys(row["missing"][part] for part in parts if part in row["missing"]):
            of = dict.fromkeys(part for part in parts if row["missing"].get(part) == why)
            reasons.setdefault((why, *of), []).append(row["arm"])
        again.append(f"{row['arm']}: {_scoring(result, row['arm'], row['folder'])}")
    found += [f"{', '.join(of)} of {', '.join(arms)}: {why}" for (why, *of), arms in reasons.items()]
    return [*found, *again]


def _scoring(result: Mapping[str, Any], arm: str, folder: str) -> str:
    """The command that measures a row; with another folder for its scores, a table would not find them."""
    return f'`make table name={result["table"]} args="{shlex.quote(f"row.{arm}={folder}")} score=true"`'


def render(result: Mapping[str, Any], kind: str) -> str:
    if kind == "json":
        return report.to_json(result)
    if kind == "csv":
        return _csv(result)
    shown, deltas, below, title = grid(result), differences(result), footer(result), result["title"]
    if kind == "md":
        parts = [f"## {title}", shown.markdown()]
        if deltas.rows:
            group = deltas.columns[0].group
            parts += [f"{group[:1].upper()}{group[1:]}:", deltas.markdown()]
        return "\n\n".join([*parts, "\n".join(f"- **{label}**: {text}" for label, text in below)]) + "\n"
    if kind == "tex":
        label = result["table"].replace("_", "-")
        parts = ["% needs \\usepackage{booktabs,amssymb,graphicx}", shown.latex(tex(title), label)]
        if deltas.rows:
            parts.append(deltas.latex(tex(f"{title} Differences, ours."), f"{label}-differences"))
        return "\n\n".join([*parts, "\n".join(f"% {label}: {text}" for label, text in below)]) + "\n"
    return html_page(title, [shown.html(), *([deltas.html()] if deltas.rows else []), html_list(below)])


def _csv(result: Mapping[str, Any]) -> str:
    """A row per row of the paper, full precision: `NIQE.paper`, `NIQE.mean`, `NIQE.low`, …"""
    rows = []
    for row in result["rows"]:
        cells = {"row": row["arm"], "label": row["label"], "source": row["source"]}
        for name, printed in row["paper"].items():
            cells[f"{name}.paper"] = printed
            cells |= {f"{name}.{key}": value for key, value in row["ours"].get(name, {}).items()}
        rows.append(cells)
    return report.wide_csv(rows)
