"""Write a table of the paper with our measurements, their difference to the printed numbers, and a verdict.

    pw table name=table_2 [systems=DIR score=true format=md out=DIR row.pixelwizard_2k=DIR row.mine=DIR …]

A row takes the scores.csv of its system's folder (`systems=`, by default outputs/systems/<name>, see
`benchmarks.systems`), or of the folder `row.<name>=DIR`; score=true first measures what is missing. A missing value is
an en dash, and the command that supplies it is printed below the table. A folder with a card of one's own is a row of
its own. Values of videos that are not as their card says have a dagger (`card_check`); strict=true refuses them.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks import paper
from benchmarks.measure.measurement import existing_folder
from benchmarks.measure.score import score_videos
from benchmarks.metrics import METRICS, protocols
from benchmarks.report import write as report
from benchmarks.report.card_check import mismatches, prompt_lists, with_own_rows
from benchmarks.report.grid import MISSING, Cell, Column, Grid, md, tex
from benchmarks.report.page import Evidence, page_html, write_page
from benchmarks.report.page_media import ClipRow, common_clips
from benchmarks.report.paper_comparison import MeasuredRow, compose, find, metrics_of, read
from pw.io.arguments import Command, ConfigError, did_you_mean, missing_option, no_such_option, option
from pw.io.console import console, one_line, print_line
from pw.io.files import check_writable, write_atomically
from pw.io.paths import OUTPUTS

INDENT = "\u2003"
MISMATCH = "†"
"""Stands behind a value of videos that are not as their card says."""

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
    score: bool = option(False, "first measure what is missing")
    strict: bool = option(False, "refuse videos that are not as the card of their row says, instead of marking them")
    format: Literal["terminal", "md", "tex", "html", "csv", "json"] = option("terminal", "how it is printed")
    out: Path = option(OUTPUTS / "tables", "the folder that gets the table in every format")
    columns: tuple[str, ...] = option((), "only these columns, in this order; csv and json have all")
    reference: str = option("", "the row that ours are compared with; by default the paper's own system")
    overrides: tuple[str, ...] = option((), "row.NAME=DIR: a folder of videos for a row, or with a card of your own")

    @property
    def rows(self) -> dict[str, Path]:
        """row -> folder of its videos. Raises ConfigError for an override that is not row.NAME=DIR with a folder."""
        if unknown := [word for word in self.overrides if not word.startswith("row.")]:
            raise no_such_option(type(self), unknown[0], ", and row.NAME")
        folders = {}
        for word in self.overrides:
            arm, _, folder = word.removeprefix("row.").partition("=")
            try:
                folders[arm] = existing_folder(folder)
            except ValueError as error:
                raise ConfigError(f"{word}: {error}") from None
        return folders


def run(options: TableOptions) -> int:
    """Write the table in every format and show it. Exit status 0."""
    if not options.name:
        message = f"name=: which table? {', '.join(paper.names())}"
        raise missing_option(TableOptions, "name", message, options.overrides)
    table = with_own_rows(paper.load(options.name), options.rows)
    columns = _columns(table, options.columns)
    folders = find(table, options.systems, options.rows)
    if options.strict:
        _refuse({arm: mismatches(table, arm, folder) for arm, folder in folders.items()})
    check_writable("out", options.out)
    if options.score:
        _score(table, folders)
    rows = {arm: read(folder) for arm, folder in folders.items()}
    rows = {arm: replace(row, mismatches=_mismatches(table, arm, row)) for arm, row in rows.items()}
    result = compose(table, rows, options.reference)
    result["shown_columns"] = columns
    if options.strict:
        _refuse({row["arm"]: row["mismatches"] for row in result["rows"]})
    for kind in FORMATS:
        if kind == "html":
            labels = {row["arm"]: row["label"] for row in result["rows"]}
            clips = common_clips({labels[arm]: folder for arm, folder in folders.items()})
            write_page(_page(result, clips), options.out, f"{table.name}.html")
        else:
            write_atomically(options.out / f"{table.name}.{kind}", render(result, kind))
    if options.format == "terminal":
        _show(result)
        print(f"{options.out / table.name}.{{{','.join(FORMATS)}}}")
    else:
        print(render(result, options.format), end="")
    return 0


main = Command(TableOptions, run, resume_hint="measured values are kept, run the same command again to resume")


def _columns(table: paper.PaperTable, names: Sequence[str]) -> list[str]:
    """The printed names of columns, which may be given as our metrics. Raises ConfigError with the nearest name."""
    shown = [*table.columns, *(column for column in paper.COLUMNS.values() if column.kind == "cost")]
    known = {column.metric: column.name for column in reversed(shown) if column.metric}
    known |= {column.name: column.name for column in shown}
    for name in names:
        if name not in known:
            printed = ", ".join(column.name for column in table.columns)
            hint = did_you_mean(name, known)
            raise ConfigError(f"columns={name}: no such column; {hint}{table.name} has {printed}")
    return [known[name] for name in names]


def _mismatches(table: paper.PaperTable, arm: str, row: MeasuredRow) -> tuple[str, ...]:
    return () if row.folder is None else tuple(mismatches(table, arm, row.folder, row.videos))


def _refuse(mismatches_of: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigError naming the first row that is not as its card says."""
    for arm, lines in mismatches_of.items():
        if lines:
            raise ConfigError(f"row.{arm}: {'; '.join(lines)}; without strict=true such values are marked {MISMATCH}")


def _score(table: paper.PaperTable, folders: Mapping[str, Path]) -> None:
    """Measure the metrics of the table's columns, folder by folder; earlier results come from the cache."""
    from benchmarks.measure.score import NothingMeasured, write

    names = metrics_of([column.metric for column in table.columns])
    for arm, folder in folders.items():
        print(f"scoring {arm} in {folder}", file=sys.stderr)
        all_names = [*names, *(name for name in _metrics_of_other_tables(folder) if name not in names)]
        try:
            result = score_videos(folder, all_names, progress=print_line)
        except ValueError as error:  # e.g. an empty folder; the other rows are still shown
            print_line(f"  {error}")
            continue
        for name, reason in result.missing.items():
            print(f"  {name} –  {reason}", file=sys.stderr)
        try:
            write(result, all_names, folder / "scores.csv")
        except NothingMeasured as error:
            print_line(f"  {error}")


def _metrics_of_other_tables(folder: Path) -> list[str]:
    """Metrics already in scores.csv with today's settings; they are kept (from the cache) when it is rewritten."""
    try:
        recorded = read(folder).protocols
    except ValueError:
        return []
    names = [name for name in recorded if name in METRICS and not METRICS[name].needs]
    return [name for name in names if recorded[name].get("settings") == protocols([name])[name]["settings"]]


def _show(result: Mapping[str, Any]) -> None:
    terminal = console()
    grids = [grid(result), differences(result)]
    terminal.print(report.terminal_grid(grids, result["title"], footer(result), terminal.width))


def grid(result: Mapping[str, Any]) -> Grid:
    """Each row as printed; below it, if it was measured, our values and the differences."""
    # costs that we measured, and that only other tables of the paper have a column for
    metrics = {name for row in result["rows"] for name in row["costs"]} - {c["metric"] for c in result["columns"]}
    extra_columns = [column for column in paper.COLUMNS.values() if column.kind == "cost" and column.metric in metrics]
    columns = [Column(c["kind"], paper.PaperColumn(**c).header, c["name"]) for c in result["columns"]]
    columns += [Column("cost, ours", column.header, column.name) for column in extra_columns]
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    blank = (Cell(""),) * len(extra_columns)
    for row in result["rows"]:
        rows.append((row["label"], (*(Cell(row["paper"][c["name"]]) for c in result["columns"]), *blank)))
        if row["ours"]:
            ours = [row["ours"].get(c["name"]) for c in result["columns"]]
            digits = [_digits(result, c["name"], row) for c in result["columns"]]
            n = max((cell["n"] for c, cell in zip(result["columns"], ours, strict=True) if cell), default=0)
            costs = tuple(_cost(row, column) for column in extra_columns)
            rows.append((f"{INDENT}ours (n={n})", _marked(row, (*map(_ours, ours, digits), *costs))))
            if any(cell and cell["difference"] is not None for cell in ours):
                rows.append((f"{INDENT}difference", _marked(row, (*map(_difference, ours, digits), *blank))))
    return Grid(tuple(columns), tuple(rows)).choose(result.get("shown_columns", ()))


def _marked(row: Mapping[str, Any], cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """The cells with a dagger behind each value if the row's videos are not as its card says."""
    is_marked = bool(row["mismatches"])
    return tuple(replace(c, text=c.text + MISMATCH) if is_marked and c.text not in ("", MISSING) else c for c in cells)


def _cost(row: Mapping[str, Any], column: paper.PaperColumn) -> Cell:
    value = row["costs"].get(column.metric)
    return Cell() if value is None else Cell(f"{value * column.factor:.3g}")


def differences(result: Mapping[str, Any]) -> Grid:
    """Our difference between each row and the reference row, with the printed difference; may be empty."""
    names = [c["name"] for c in result["columns"] if any(c["name"] in row["versus"] for row in result["rows"])]
    heads = {c["name"]: paper.PaperColumn(**c).header for c in result["columns"]}
    reference = next((row for row in result["rows"] if row["arm"] == result["reference"]), None)
    label = "" if reference is None else reference["label"]
    columns = tuple(Column(f"ours minus ours of {label}", f"Δ{heads[name]}", name) for name in names)
    rows = [
        (
            row["label"],
            _marked(
                row if row["mismatches"] or reference is None else reference,
                (_versus_cell(row["versus"].get(n), _digits(result, n, row)) for n in names),
            ),
        )
        for row in result["rows"]
        if row["versus"]
    ]
    return Grid(columns, tuple(rows)).choose(result.get("shown_columns", ()))


def _versus_cell(difference: Mapping[str, Any] | None, digits: str) -> Cell:
    if difference is None or difference["diff"] is None:
        return Cell(verdict=None if difference is None else difference["verdict"])
    printed = "" if difference["printed"] is None else f"printed {_text(difference['printed'], digits)}"
    return Cell(_interval(difference["diff"], difference, digits), verdict=difference["verdict"], note=printed)


def _digits(result: Mapping[str, Any], column: str, row: Mapping[str, Any]) -> str:
    """Number format of a column: that of the paper in this row, or in another row if this cell is not a number."""
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
    """The (label, text) lines below the table."""
    lines = [("source", result["rows"][0]["source"].partition(",")[0]), ("note", result["note"])]
    lines += [("protocol", f"{name}: {_protocol(record)}") for name, record in result["protocols"].items()]
    for row in result["rows"]:
        memory_source = f"; peak memory by {' and '.join(row['peak_memory_from'])}" if row["peak_memory_from"] else ""
        lines += [(row["label"], f"measured on {', '.join(row['devices'])}{memory_source}")] if row["devices"] else []
        lines += [(row["label"], text) for text in row["deviations"] if row["ours"]]
    lines += _card_notes(result)
    lines += _prompt_notes(result)
    lines += [("not measured", text) for text in _commands_for_missing(result)]
    return [*lines, ("reading", LEGEND)] if any(row["ours"] for row in result["rows"]) else lines


def _prompt_notes(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    labels: dict[tuple[int, str], list[str]] = {}
    for row in result["rows"]:
        if row["prompts"]:
            labels.setdefault((row["prompts"]["number"], row["prompts"]["sha256"]), []).append(row["label"])
    names = {identity: prompt_lists().get(identity, "a list of your own") for _, identity in labels}
    return [
        ("prompts", f"{n}, sha256 {identity[:12]} ({names[identity]}): {', '.join(rows)}")
        for (n, identity), rows in labels.items()
    ]


def _card_notes(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(f"{MISMATCH} {row['label']}", text) for row in result["rows"] for text in row["mismatches"]]


def _protocol(record: Mapping[str, Any]) -> str:
    settings = " ".join(f"{key}={value}" for key, value in (record.get("settings") or {}).items())
    weights = " ".join(f"{key} {digest[:12]}" for key, digest in (record.get("weights") or {}).items())
    parts = [record["protocol"], settings, weights, record.get("licence", "")]
    return ", ".join(part for part in parts if part)


def _commands_for_missing(result: Mapping[str, Any]) -> list[str]:
    """The commands that supply the missing values."""
    from benchmarks.systems import load, names

    lines: list[str] = []
    unmeasured = [row["arm"] for row in result["rows"] if row["folder"] is None]
    arms_of: dict[str, list[str]] = {}
    for arm in unmeasured:
        if arm in names():
            arms_of.setdefault(load(arm).required_option, []).append(arm)
    for argument, arms in arms_of.items():
        effect = "registers its videos" if argument.startswith("videos") else "makes its videos"
        lines.append(f'{", ".join(arms)}: `make system name={arms[0]} args="{argument}"` {effect}')
    if unmeasured:
        lines.append(f"videos that you have, e.g. of {unmeasured[0]}: {_score_command(result, unmeasured[0], 'DIR')}")
    reasons: dict[tuple[str, ...], list[str]] = {}
    score_lines: list[str] = []
    for row in result["rows"]:
        parts = metrics_of([c["metric"] for c in result["columns"] if c["name"] not in row["ours"]])
        if row["folder"] is None or not parts:
            continue
        for reason in dict.fromkeys(row["missing"][part] for part in parts if part in row["missing"]):
            metrics = dict.fromkeys(part for part in parts if row["missing"].get(part) == reason)
            reasons.setdefault((reason, *metrics), []).append(row["arm"])
        score_lines.append(f"{row['arm']}: {_score_command(result, row['arm'], row['folder'])}")
    lines += [f"{', '.join(metrics)} of {', '.join(arms)}: {reason}" for (reason, *metrics), arms in reasons.items()]
    return [*lines, *score_lines]


def _score_command(result: Mapping[str, Any], arm: str, folder: str) -> str:
    """The command that measures a row and writes scores.csv where the table reads it."""
    return f'`make table name={result["table"]} args="{shlex.quote(f"row.{arm}={folder}")} score=true"`'


def render(result: Mapping[str, Any], kind: str) -> str:
    if kind == "json":
        return report.to_json(result)
    if kind == "csv":
        return _csv(result)
    if kind == "html":
        return page_html(_page(result))
    table, deltas, notes, title = grid(result), differences(result), footer(result), result["title"]
    if kind == "md":
        parts = [f"## {md(title)}", table.markdown()]
        if deltas.rows:
            group = deltas.columns[0].group
            parts += [f"{group[:1].upper()}{group[1:]}:", deltas.markdown()]
        return "\n\n".join([*parts, "\n".join(f"- **{md(label)}**: {md(text)}" for label, text in notes)]) + "\n"
    label = result["table"].replace("_", "-")
    caption = " ".join([title, *(f"{head}: {text}." for head, text in _card_notes(result))])
    parts = ["% needs \\usepackage{booktabs,amssymb}", table.latex(tex(caption), label)]
    if deltas.rows:
        parts.append(deltas.latex(tex(f"{title} Differences, ours."), f"{label}-differences"))
    return "\n\n".join([*parts, "\n".join(f"% {one_line(f'{label}: {text}')}" for label, text in notes)]) + "\n"


def _page(result: Mapping[str, Any], clips: Sequence[ClipRow] = ()) -> Evidence:
    tables = {"Printed and ours": grid(result), "Differences": differences(result)}
    return Evidence(
        result["title"],
        tables=[part for part in tables.items() if part[1].rows],
        rows=clips,
        about="The first videos that all measured rows have, by name. The scores are of all videos.",
        notes=footer(result),
    )


def _csv(result: Mapping[str, Any]) -> str:
    """One row per row of the paper, in full precision; columns `NIQE.paper`, `NIQE.mean`, `NIQE.low`, …"""
    rows = []
    for row in result["rows"]:
        cells = {"row": row["arm"], "label": row["label"], "source": row["source"]}
        cells["mismatches"] = "; ".join(row["mismatches"])
        for name, printed in row["paper"].items():
            cells[f"{name}.paper"] = printed
            cells |= {f"{name}.{key}": value for key, value in row["ours"].get(name, {}).items()}
        rows.append(cells)
    return report.wide_csv(rows)
