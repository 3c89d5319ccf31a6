"""The paper's tables with ours beside them: what was printed, what was measured here, the difference and a verdict.

    python -m benchmarks.tables name=table_2 [systems=DIR score=true format=md out=DIR row.pixelwizard_2k=DIR …]

A row is filled from the folder of its system (`systems=`, by default outputs/systems/<name>, see `benchmarks.systems`),
or from any folder of videos that is named for it: `row.<name>=DIR`. The folder's scores.csv is read; score=true
measures what is lacking first. What was not measured is an en dash, with the command that supplies it below.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks import paper, report, vbench_totals
from benchmarks.bootstrap import Mean, bootstrap_mean, prompt_of
from benchmarks.cache import ROOT
from benchmarks.files import csv_text, write_atomically
from benchmarks.metrics import GROUPS, METRICS, VBENCH_QUALITY, VBENCH_SEMANTIC
from benchmarks.table import Cell, Column, Grid

DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "vbench_average": GROUPS["table_1"],
    "vbench_quality": VBENCH_QUALITY,
    "vbench_semantic": VBENCH_SEMANTIC,
    "vbench_total": (*VBENCH_QUALITY, *VBENCH_SEMANTIC),
}
FORMATS = ("md", "tex", "html", "csv", "json")
LEGEND = (
    "ours: mean over videos ± half the 95 % bootstrap interval, prompts drawn as wholes; difference: ours minus the "
    "printed number; ▲ better, ▼ worse than printed, · the printed number lies in our interval, ? no interval; "
    "not corrected for the number of cells"
)


@dataclass(frozen=True)
class Measured:
    """What is known of a row's videos: metric -> video -> value, metric -> how it was measured, metric -> cost."""

    folder: Path
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()

    def estimate(self, metric: str) -> Mean | None:
        """Mean of a metric, or of one of VBench's totals, with its interval; None if it was not measured."""
        if metric in self.costs:
            return Mean(self.costs[metric], None, None, 1, 1)
        if metric in DIMENSIONS:
            return self._total(metric)
        values = self.scores.get(metric)
        return bootstrap_mean(list(values.values()), [prompt_of(v) for v in values]) if values else None

    def _total(self, metric: str) -> Mean | None:
        """Totals are linear in the dimensions: an interval where all dimensions have the same videos."""
        of = DIMENSIONS[metric]
        if any(not self.scores.get(name) for name in of):
            return None
        videos = [set(self.scores[name]) for name in of]
        if all(found == videos[0] for found in videos):
            each = {v: _total(metric, {n: self.scores[n][v] for n in of}) for v in sorted(videos[0])}
            return bootstrap_mean(list(each.values()), [prompt_of(v) for v in each])
        means = {name: sum(self.scores[name].values()) / len(self.scores[name]) for name in of}
        return Mean(_total(metric, means), None, None, min(map(len, videos)), 1)


def _total(metric: str, values: Mapping[str, float]) -> float:
    found = vbench_totals.TOTALS[metric](values).value
    assert found is not None, "all dimensions are there"
    return found


def read(folder: Path) -> Measured:
    """Scores, protocols and costs of a folder of videos.

    Raises: ValueError for a score table that is damaged or has no protocol beside it.
    """
    from benchmarks.systems import jobs, read_card

    path = folder / "scores.csv"
    scores: dict[str, dict[str, float]] = {}
    protocols: dict[str, Any] = {}
    if path.is_file():
        beside = folder / "scores.protocol.json"
        if not beside.is_file():
            raise ValueError(
                f"{path}: has no {beside.name} beside it, so nobody knows how it was measured; score again"
            )
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                for name, value in line.items():
                    if name in METRICS and value:
                        scores.setdefault(name, {})[line["video"]] = float(value)
        protocols = json.loads(beside.read_text(encoding="utf-8"))["metrics"]
    card = read_card(folder / "card.yaml") if (folder / "card.yaml").is_file() else None
    spent = jobs.costs(folder)
    known = {
        "latency": spent.latency,
        "latency_per_pixel": spent.latency_per_pixel,
        "latency_per_frame": spent.latency_per_frame,
        "parameters": spent.parameters,
        "peak_memory": spent.peak_memory,
    }
    costs = {name: float(value) for name, value in known.items() if value is not None}
    deviations = card.deviations if card else ()
    return Measured(folder, scores, protocols, costs, spent.devices, deviations)


def find(table: paper.Table, systems: Path, given: Mapping[str, Path]) -> dict[str, Path]:
    """arm -> the folder of its videos, for the rows that have one.

    Raises: ValueError for a row that the table does not have, or a folder that is not there.
    """
    arms = [row.arm for row in table.rows]
    for arm, folder in given.items():
        if arm not in arms:
            raise ValueError(f"row.{arm}={folder}: {table.name} has no such row; it has {', '.join(arms)}")
        if not folder.is_dir():
            raise ValueError(f"row.{arm}={folder}: no such folder")
    return {arm: systems / arm for arm in arms if (systems / arm).is_dir()} | dict(given)


def compose(table: paper.Table, measured: Mapping[str, Measured]) -> dict[str, Any]:
    """The table as a plain dictionary, as in <name>.json.

    Raises: ValueError if the rows of a column were measured by different protocols.
    """
    _check_alike(measured)
    rows = []
    for row in table.rows:
        ours = measured.get(row.arm)
        cells = {
            column.name: _cell(column, row, ours.estimate(column.metric))
            for column in table.columns
            if ours is not None and column.metric is not None
        }
        rows.append({
            "arm": row.arm,
            "label": row.label,
            "source": row.source,
            "paper": dict(row.printed),
            "ours": {name: cell for name, cell in cells.items() if cell is not None},
            "folder": None if ours is None else str(ours.folder),
            "devices": [] if ours is None else list(ours.devices),
            "deviations": [] if ours is None else list(ours.deviations),
            "costs": {} if ours is None else dict(ours.costs),
        })  # fmt: skip
    protocols = {name: about for m in measured.values() for name, about in m.protocols.items()}
    wanted = [column.metric for column in table.columns if column.metric in METRICS]
    return {
        "table": table.name,
        "title": f"{table.title}. {table.caption}",
        "note": table.note,
        "columns": [asdict(column) for column in table.columns],
        "rows": rows,
        "protocols": {name: protocols[name] for name in wanted if name in protocols},
    }


def _cell(column: paper.Column, row: paper.Row, found: Mean | None) -> dict[str, Any] | None:
    """Ours in the paper's unit, the difference to the printed number, and what that says."""
    if found is None:
        return None
    scaled = {
        key: None if value is None else value * column.factor
        for key, value in (("mean", found.mean), ("low", found.low), ("high", found.high))
    }
    printed = row.values.get(column.name)
    cell: dict[str, Any] = {**scaled, "n": found.n, "prompts": found.clusters, "difference": None, "verdict": None}
    if printed is not None:
        cell["difference"] = scaled["mean"] - printed
        cell["verdict"] = _verdict(scaled, printed, column)
    return cell


def _verdict(ours: Mapping[str, float], printed: float, column: paper.Column) -> str | None:
    """Against one printed number without an interval: is it in ours?"""
    if column.kind != "quality" or column.direction is None:
        return None
    if ours["low"] is None:
        return "not resolved"
    if ours["low"] <= printed <= ours["high"]:
        return "no difference shown"
    return "better" if (ours["mean"] > printed) == (column.direction == "higher") else "worse"


def _check_alike(measured: Mapping[str, Measured]) -> None:
    seen: dict[str, tuple[str, Any]] = {}
    for arm, row in measured.items():
        for name, about in row.protocols.items():
            how = {key: about.get(key) for key in ("protocol", "settings", "weights")}
            before = seen.setdefault(name, (arm, how))
            if before[1] != how:
                key = next(key for key in how if how[key] != before[1][key])
                raise ValueError(
                    f"{name} was measured differently: {key} is {before[1][key]} for {before[0]} and {how[key]} for "
                    f"{arm}; score one of them again"
                )


def grid(result: Mapping[str, Any]) -> Grid:
    """A printed row, below it ours and the difference where something was measured."""
    columns = tuple(Column(_group(c), _header(c)) for c in result["columns"])
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for row in result["rows"]:
        rows.append((row["label"], tuple(Cell(row["paper"][c["name"]]) for c in result["columns"])))
        if row["ours"]:
            ours = [row["ours"].get(c["name"]) for c in result["columns"]]
            digits = [_digits(result, c["name"], row) for c in result["columns"]]
            n = max(cell["n"] for cell in ours if cell)
            rows.append((f"  ours (n={n})", tuple(map(_ours, ours, digits))))
            rows.append(("  difference", tuple(map(_difference, ours, digits))))
    return Grid(columns, tuple(rows))


def _group(column: Mapping[str, Any]) -> str:
    return {"quality": "quality", "cost": "cost", "setting": "setting"}[column["kind"]]


def _header(column: Mapping[str, Any]) -> str:
    known = {f.name: column[f.name] for f in paper.Column.__dataclass_fields__.values()}
    return paper.Column(**known).header


def _digits(result: Mapping[str, Any], column: str, row: Mapping[str, Any]) -> str:
    """How numbers of a column are printed: as the paper prints this row's, or another row's, if it is none."""
    texts = [row["paper"][column], *(other["paper"][column] for other in result["rows"])]
    text = next((t for t in texts if paper.number(t) is not None), "0.00").replace(",", "")
    if "e" in text:
        return f".{len(text.partition('e')[0].partition('.')[2])}e"
    exponent = Decimal(text).as_tuple().exponent
    return f".{max(0, -exponent) if isinstance(exponent, int) else 0}f"


def _text(value: float, digits: str) -> str:
    return f"{value:{digits}}".replace("-", "−") if "e" not in digits else f"{value:{digits}}"


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
    sign = "+" if cell["difference"] > 0 else ""
    return Cell(f"{sign}{_text(cell['difference'], digits)}", verdict=cell["verdict"])


def footer(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What stands below the table."""
    lines = [("source", result["rows"][0]["source"].partition(",")[0]), ("note", result["note"])]
    lines += [("protocol", f"{name}: {_protocol(about)}") for name, about in result["protocols"].items()]
    for row in result["rows"]:
        lines += [(row["label"], f"measured on {', '.join(row['devices'])}")] if row["devices"] else []
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
    from benchmarks.systems import names

    found = []
    without = [row["arm"] for row in result["rows"] if row["folder"] is None]
    for arm in [arm for arm in without if arm in names()]:
        found.append(f'{arm}: `make system name={arm} args="prompts=FILE"`, or its videos: `args="row.{arm}=DIR"`')
    others = [arm for arm in without if arm not in names()]
    if others:
        found.append(f'{", ".join(others)}: `args="row.{others[0]}=DIR score=true"` names the folder of its videos')
    for row in result["rows"]:
        lacking = [c["name"] for c in result["columns"] if c["metric"] and c["name"] not in row["ours"]]
        scored = [c["metric"] for c in result["columns"] if c["name"] in lacking and c["metric"] in METRICS]
        if row["folder"] is not None and scored:
            found.append(f"{row['arm']}: `make score videos={row['folder']} metrics={','.join(scored)}`")
    return found


def render(result: Mapping[str, Any], kind: str) -> str:
    """The table as text of one of FORMATS."""
    shown, below = grid(result), footer(result)
    name = result["table"]
    if kind == "json":
        return report.to_json(result)
    if kind == "csv":
        return _csv(result)
    if kind == "md":
        notes = "\n".join(f"- **{label}**: {text}" for label, text in below)
        return f"## {result['title']}\n\n{report.markdown_grid(shown)}\n\n{notes}\n"
    if kind == "tex":
        comments = "\n".join(f"% {label}: {text}" for label, text in below)
        table = report.latex_table(shown, report.tex(result["title"]), name.replace("_", "-"))
        return f"% needs \\usepackage{{booktabs,amssymb,graphicx}}\n\n{table}\n\n{comments}\n"
    return report.html_page(result["title"], [report.html_grid(shown), report.html_list(below)])


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


def main(words: Sequence[str]) -> int:
    """Exit status: 0 shown, 2 a mistake in the call."""
    given = {
        "systems": str(ROOT / "outputs" / "systems"),
        "score": "false",
        "format": "terminal",
        "out": "",
        "name": "",
    }
    rows: dict[str, Path] = {}
    try:
        for word in words:
            key, equals, value = word.partition("=")
            if key.startswith("row.") and equals:
                rows[key.removeprefix("row.")] = Path(value).expanduser()
            elif key in given and equals:
                given[key] = value
            else:
                raise ValueError(f"{word}: wants KEY=VALUE with one of {', '.join(given)}, row.<name>")
        if not given["name"]:
            raise ValueError(f"name=: which table? {', '.join(paper.names())}")
        if given["format"] not in ("terminal", *FORMATS):
            raise ValueError(f"format={given['format']}: one of terminal, {', '.join(FORMATS)}")
        table = paper.load(given["name"])
        folders = find(table, Path(given["systems"]), rows)
        if given["score"] == "true":
            _score(table, folders)
        elif given["score"] != "false":
            raise ValueError(f"score={given['score']}: true or false")
        result = compose(table, {arm: read(folder) for arm, folder in folders.items()})
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = Path(given["out"] or ROOT / "outputs" / "tables")
    for kind in FORMATS:
        write_atomically(out / f"{table.name}.{kind}", render(result, kind))
    if given["format"] == "terminal":
        _show(result)
        print(f"{out / table.name}.{{{','.join(FORMATS)}}}")
    else:
        print(render(result, given["format"]), end="")
    return 0


def _score(table: paper.Table, folders: Mapping[str, Path]) -> None:
    """Measure what the table's columns ask for, folder by folder; what was measured before comes from the cache."""
    from benchmarks.measure import score_videos
    from benchmarks.score import write

    wanted = [column.metric for column in table.columns if column.metric in METRICS]
    totals = [column.metric for column in table.columns if column.metric in DIMENSIONS]
    wanted += [name for total in totals for name in DIMENSIONS[total]]
    names = list(dict.fromkeys(name for name in wanted if name is not None))
    for arm, folder in folders.items():
        print(f"scoring {arm} in {folder}", file=sys.stderr)
        found = score_videos(folder, names, progress=lambda line: print(line, file=sys.stderr, flush=True))
        write(found, names, folder / "scores.csv")
        for name, why in found.missing.items():
            print(f"  {name} –  {why}", file=sys.stderr)


def _show(result: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    console.print(report.terminal_grid(grid(result), result["title"], footer(result), console.width))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
