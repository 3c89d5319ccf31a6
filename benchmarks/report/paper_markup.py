"""A table of the paper with ours as grids, notes, and text of each format."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from benchmarks import paper
from benchmarks.metrics import METRICS
from benchmarks.paper.recompute import DIMENSIONS
from benchmarks.report import markup
from benchmarks.report.grid import Cell, Column, Grid
from benchmarks.report.write import to_json
from pw.io.files import csv_text

INDENT = "\u2003"


FORMATS = ("md", "tex", "html", "csv", "json")


LEGEND = (
    "ours: mean over videos ± half the 95 % bootstrap interval, prompts drawn as wholes; difference: ours minus the "
    "printed number; ▲ better, ▼ worse than printed, · the printed number lies in our interval, ? no interval; "
    "not corrected for the number of cells"
)


def grid(result: Mapping[str, Any]) -> Grid:
    """A printed row, below it ours and the difference where something was measured."""
    beside = _costs_beside(result)
    columns = [Column(c["kind"], _header(c)) for c in result["columns"]]
    columns += [Column("cost, ours", paper.COLUMNS[name].header) for name in beside]
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    blank = (Cell(""),) * len(beside)
    for row in result["rows"]:
        rows.append((row["label"], (*(Cell(row["paper"][c["name"]]) for c in result["columns"]), *blank)))
        if row["ours"]:
            ours = [row["ours"].get(c["name"]) for c in result["columns"]]
            digits = [_digits(result, c["name"], row) for c in result["columns"]]
            n = max((cell["n"] for c, cell in zip(result["columns"], ours, strict=True) if cell), default=0)
            costs = tuple(_cost(row, paper.COLUMNS[name]) for name in beside)
            rows.append((f"{INDENT}ours (n={n})", (*map(_ours, ours, digits), *costs)))
            rows.append((f"{INDENT}difference", (*map(_difference, ours, digits), *blank)))
    return Grid(tuple(columns), tuple(rows))


def _costs_beside(result: Mapping[str, Any]) -> list[str]:
    """Cost columns of the paper's other tables that we measured for a row of this one."""
    there = {column["metric"] for column in result["columns"]}
    measured = {name for row in result["rows"] for name in row["costs"]}
    return [c.name for c in paper.COLUMNS.values() if c.kind == "cost" and c.metric in measured - there]


def _cost(row: Mapping[str, Any], column: paper.PaperColumn) -> Cell:
    value = row["costs"].get(column.metric)
    return Cell() if value is None else Cell(f"{value * column.factor:.3g}")


def differences(result: Mapping[str, Any]) -> Grid:
    """Ours against ours: each row's difference to the reference's, with the printed difference beside; or nothing."""
    names = [c["name"] for c in result["columns"] if any(c["name"] in row["versus"] for row in result["rows"])]
    heads = {c["name"]: _header(c) for c in result["columns"]}
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
    text = _text(found["diff"], digits)
    if found["low"] is not None:
        text += f" ± {_text((found['high'] - found['low']) / 2, digits)}"
    printed = "" if found["printed"] is None else f"printed {_text(found['printed'], digits)}"
    return Cell(text, verdict=found["verdict"], aside=printed)


def _header(column: Mapping[str, Any]) -> str:
    known = {f.name: column[f.name] for f in paper.PaperColumn.__dataclass_fields__.values()}
    return paper.PaperColumn(**known).header


def _digits(result: Mapping[str, Any], column: str, row: Mapping[str, Any]) -> str:
    """How numbers of a column are printed: as the paper prints this row's, or another row's, if it is none."""
    texts = [row["paper"][column], *(other["paper"][column] for other in result["rows"])]
    text = next((t for t in texts if paper.number(t) is not None), "0.00").replace(",", "")
    if "e" in text:
        return f".{len(text.partition('e')[0].partition('.')[2])}e"
    exponent = Decimal(text).as_tuple().exponent
    return f".{max(0, -exponent) if isinstance(exponent, int) else 0}f"


def _text(value: float, digits: str) -> str:
    text = f"{value:{digits}}"
    if "e" in digits:
        return text
    return text.replace("-", "−") if float(text) else text.removeprefix("-")


def _ours(cell: Mapping[str, Any] | None, digits: str) -> Cell:
    if cell is None:
        return Cell()
    if cell["low"] is None:
        return Cell(_text(cell["mean"], digits))
    half = (cell["high"] - cell["low"]) / 2
    return Cell(f"{_text(cell['mean'], digits)} ± {_text(half, digits)}")


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
        lacking = [c["metric"] for c in result["columns"] if c["metric"] and c["name"] not in row["ours"]]
        parts = [part for metric in lacking for part in (DIMENSIONS.get(metric) or (metric,)) if part in METRICS]
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
    """The table as text of one of FORMATS."""
    shown, below = grid(result), footer(result)
    name = result["table"]
    if kind == "json":
        return to_json(result)
    if kind == "csv":
        return _csv(result)
    deltas = differences(result)
    grids = [shown, deltas] if deltas.rows else [shown]
    if kind == "md":
        notes = "\n".join(f"- **{label}**: {text}" for label, text in below)
        heads = [
            f"## {result['title']}",
            *(f"{g.columns[0].group[:1].upper()}{g.columns[0].group[1:]}:" for g in grids[1:]),
        ]
        parts = [part for head, g in zip(heads, grids, strict=True) for part in (head, markup.markdown_grid(g))]
        return "\n\n".join([*parts, notes]) + "\n"
    if kind == "tex":
        comments = "\n".join(f"% {label}: {text}" for label, text in below)
        labels = (name.replace("_", "-"), f"{name.replace('_', '-')}-differences")
        titles = (result["title"], f"{result['title']} Differences, ours.")
        tables = [
            markup.latex_table(g, markup.tex(t), label) for g, t, label in zip(grids, titles, labels, strict=False)
        ]
        return "\n\n".join(["% needs \\usepackage{booktabs,amssymb,graphicx}", *tables, comments]) + "\n"
    return markup.html_page(result["title"], [*map(markup.html_grid, grids), markup.html_list(below)])


def _csv(result: Mapping[str, Any]) -> str:
    """A row per row of the paper, full precision: `NIQE.paper`, `NIQE.mean`, `NIQE.low`, …"""
    flat: list[dict[str, Any]] = []
    for row in result["rows"]:
        cells: dict[str, Any] = {"row": row["arm"], "label": row["label"], "source": row["source"]}
        for column in result["columns"]:
            cells[f"{column['name']}.paper"] = row["paper"][column["name"]]
            cells |= {
                f"{column['name']}.{key}": value for key, value in (row["ours"].get(column["name"]) or {}).items()
            }
        flat.append(cells)
    return csv_text(list(dict.fromkeys(key for row in flat for key in row)), flat)
