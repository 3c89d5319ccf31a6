"""The paper's tables with ours beside them: what was printed, what was measured here, the difference and a verdict.

    pw table name=table_2 [systems=DIR score=true format=md out=DIR row.pixelwizard_2k=DIR …]

A row is filled from the folder of its system (`systems=`, by default outputs/systems/<name>, see `benchmarks.systems`),
or from any folder of videos that is named for it: `row.<name>=DIR`. The folder's scores.csv is read; score=true
measures what is lacking first. What was not measured is an en dash, with the command that supplies it below.
"""

from __future__ import annotations

import csv
import json
import math
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks import paper
from benchmarks.measure.videos import NoVideo, like, score_videos, videos_of
from benchmarks.metrics import GROUPS, METRICS, VBENCH_QUALITY, VBENCH_SEMANTIC, protocols
from benchmarks.report import vbench_totals
from benchmarks.report import write as report
from benchmarks.report.render import Cell, Column, Grid
from benchmarks.stats.bootstrap import Mean, bootstrap_mean, prompt_of
from benchmarks.stats.paired import compare_videos
from pw.io.files import check_writable, csv_text, write_atomically
from pw.io.paths import OUTPUTS

DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "vbench_average": GROUPS["table_1"],
    "vbench_quality": VBENCH_QUALITY,
    "vbench_semantic": VBENCH_SEMANTIC,
    "vbench_total": (*VBENCH_QUALITY, *VBENCH_SEMANTIC),
}
INDENT = "\u2003"
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
    peak_memory_from: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    """metric -> why it could not be measured, with the command that supplies what it needs"""

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
    missing: dict[str, str] = {}
    if path.is_file():
        beside = folder / "scores.protocol.json"
        if not beside.is_file():
            raise ValueError(f"{path}: no {beside.name} beside it says how it was measured; score again")
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for line in csv.DictReader(file):
                    for name, value in line.items():
                        if name in METRICS and value:
                            scores.setdefault(name, {})[line["video"]] = float(value)
            about = json.loads(beside.read_text(encoding="utf-8"))
            protocols, missing = dict(about["metrics"]), dict(about.get("missing", {}))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} or {beside.name} is damaged ({error!r}); score again") from error
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
    return Measured(folder, scores, protocols, costs, spent.devices, spent.peak_memory_from, deviations, missing)


def find(table: paper.Table, systems: Path, given: Mapping[str, Path]) -> dict[str, Path]:
    """arm -> the folder of its videos, for the rows that have one; a generation that made none yet left no row.

    Raises: ValueError for a row that the table does not have, or a folder that is not there.
    """
    arms = [row.arm for row in table.rows]
    for arm, folder in given.items():
        if arm not in arms:
            raise ValueError(f"row.{arm}={folder}: {table.name} has no such row; it has {', '.join(arms)}")
        if not folder.is_dir():
            raise ValueError(f"row.{arm}={folder}: no such folder")
    return {arm: systems / arm for arm in arms if _has_videos(systems / arm)} | dict(given)


def _has_videos(folder: Path) -> bool:
    """Whether there is a row to show. Raises ValueError for a registration that is damaged, or its videos gone."""
    if (folder / "scores.csv").is_file():
        return True
    try:
        return folder.is_dir() and bool(videos_of(folder))
    except NoVideo:
        return False


def compose(table: paper.Table, measured: Mapping[str, Measured], reference: str = "") -> dict[str, Any]:
    """The table as a plain dictionary, as in <name>.json.

    reference: the row that the others are held against, ours against ours; "" takes the paper's own system.
    Raises: ValueError if the rows of a column were measured by different protocols, or the reference is none of them.
    """
    wanted = _asked([column.metric for column in table.columns])
    _check_alike(measured, wanted)
    against = _reference(table, measured, reference)
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
            "peak_memory_from": [] if ours is None else list(ours.peak_memory_from),
            "deviations": [] if ours is None else list(ours.deviations),
            "missing": {} if ours is None else dict(ours.missing),
            "costs": {} if ours is None else dict(ours.costs),
            "versus": {} if ours is None or row.arm == against else _versus(table, measured, row.arm, against),
        })  # fmt: skip
    protocols = {name: about for m in measured.values() for name, about in m.protocols.items()}
    return {
        "table": table.name,
        "title": f"{table.title}. {table.caption}",
        "note": table.note,
        "columns": [asdict(column) for column in table.columns],
        "rows": rows,
        "reference": against,
        "protocols": {name: protocols[name] for name in wanted if name in protocols},
    }


def _asked(metrics: Sequence[str | None]) -> list[str]:
    """The registry's metrics that columns show, or are totals of."""
    found = [part for name in metrics if name for part in DIMENSIONS.get(name, (name,))]
    return list(dict.fromkeys(name for name in found if name in METRICS))


def _reference(table: paper.Table, measured: Mapping[str, Measured], wanted: str) -> str:
    """The row to hold the others against; "" where fewer than two were measured."""
    scored = [row.arm for row in table.rows if row.arm in measured and measured[row.arm].scores]
    if wanted and wanted not in scored:
        raise ValueError(f"reference={wanted}: was not measured; rows that were: {', '.join(scored) or 'none'}")
    if len(scored) < 2:
        return ""
    return wanted or next((arm for arm in scored if arm.startswith("pixelwizard")), scored[-1])


def _versus(table: paper.Table, measured: Mapping[str, Measured], arm: str, reference: str) -> dict[str, Any]:
    """column -> our difference to the reference's row, beside the printed one."""
    if not reference:
        return {}
    ours, theirs = measured[arm].scores, measured[reference].scores
    if not ours.keys() & theirs.keys():
        return {}
    outcome = compare_videos(theirs, ours)
    found = {}
    for column in table.columns:
        if column.kind != "quality" or column.metric not in outcome.differences:
            continue
        d = outcome.differences[column.metric]
        ends = {"diff": d.diff, "low": d.low, "high": d.high}
        a, b = (table.row(name).values.get(column.name) for name in (arm, reference))
        found[column.name] = {
            **{key: None if value is None else value * column.factor for key, value in ends.items()},
            **{key: getattr(d, key) for key in ("p", "p_adjusted", "verdict", "design", "n", "prompts")},
            "printed": None if a is None or b is None else a - b,
        }
    return found


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
        cell["difference"] = found.mean * column.factor - printed
        cell["verdict"] = _verdict(scaled, printed, column)
    return cell


def _verdict(ours: Mapping[str, float | None], printed: float, column: paper.Column) -> str | None:
    """Against one printed number without an interval: is it in ours?"""
    if column.kind != "quality" or column.direction is None:
        return None
    mean, low, high = ours["mean"], ours["low"], ours["high"]
    if mean is None or low is None or high is None:
        return "not resolved"
    if low <= printed <= high:
        return "no difference shown"
    return "better" if (mean > printed) == (column.direction == "higher") else "worse"


def _check_alike(measured: Mapping[str, Measured], shown: Collection[str]) -> None:
    seen: dict[str, tuple[str, Any]] = {}
    for arm, row in measured.items():
        for name, about in row.protocols.items():
            if name not in shown:
                continue
            how = {key: about.get(key) for key in ("protocol", "settings", "weights")}
            how |= {"code": code} if (code := about.get("code")) else {}  # tables of before do not say
            before = seen.setdefault(name, (arm, how))
            differing = [key for key in how if key in before[1] and how[key] != before[1][key]]
            if differing:
                key = differing[0]
                raise ValueError(
                    f"{name} was measured differently: {key} is {before[1][key]} for {before[0]} and {how[key]} for "
                    f"{arm}; score one of them again"
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


def _cost(row: Mapping[str, Any], column: paper.Column) -> Cell:
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
        return report.to_json(result)
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
        parts = [part for head, g in zip(heads, grids, strict=True) for part in (head, report.markdown_grid(g))]
        return "\n\n".join([*parts, notes]) + "\n"
    if kind == "tex":
        comments = "\n".join(f"% {label}: {text}" for label, text in below)
        labels = (name.replace("_", "-"), f"{name.replace('_', '-')}-differences")
        titles = (result["title"], f"{result['title']} Differences, ours.")
        made = [report.latex_table(g, report.tex(t), label) for g, t, label in zip(grids, titles, labels, strict=False)]
        return "\n\n".join(["% needs \\usepackage{booktabs,amssymb,graphicx}", *made, comments]) + "\n"
    return report.html_page(result["title"], [*map(report.html_grid, grids), report.html_list(below)])


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
    try:
        asked = _parse(words)
        table = paper.load(asked.name)
        folders = find(table, asked.systems, asked.rows)
        check_writable("out", asked.out)
        if asked.score:
            _score(table, folders)
        result = compose(table, {arm: read(folder) for arm, folder in folders.items()}, asked.reference)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}; what was measured before is kept", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what was measured is kept, the same command goes on with the rest", file=sys.stderr)
        return 130
    for kind in FORMATS:
        write_atomically(asked.out / f"{table.name}.{kind}", render(result, kind))
    if asked.format == "terminal":
        _show(result)
        print(f"{asked.out / table.name}.{{{','.join(FORMATS)}}}")
    else:
        print(render(result, asked.format), end="")
    return 0


@dataclass(frozen=True)
class Options:
    """What was asked: a table, where the systems' folders are, and how it is shown."""

    name: str = ""
    systems: Path = OUTPUTS / "systems"
    score: bool = False
    format: str = "terminal"
    out: Path = OUTPUTS / "tables"
    reference: str = ""
    rows: Mapping[str, Path] = field(default_factory=dict)


def _parse(words: Sequence[str]) -> Options:
    """Raises ValueError for a key or a value that there is not."""
    given: dict[str, Any] = {}
    rows: dict[str, Path] = {}
    known = [key for key in Options.__dataclass_fields__ if key != "rows"]
    for word in words:
        key, equals, value = word.partition("=")
        if key.startswith("row.") and equals:
            rows[key.removeprefix("row.")] = Path(value).expanduser()
        elif key in known and equals:
            given[key] = like(key, value, getattr(Options(), key))
        else:
            raise ValueError(f"{word}: wants KEY=VALUE with one of {', '.join(known)}, row.<name>")
    if not given.get("name"):
        raise ValueError(f"name=: which table? {', '.join(paper.names())}")
    if "systems" in given and not given["systems"].is_dir():
        raise ValueError(f"systems={given['systems']}: no such folder")
    if given.get("format", "terminal") not in ("terminal", *FORMATS):
        raise ValueError(f"format={given['format']}: one of terminal, {', '.join(FORMATS)}")
    return Options(**given, rows=rows)


def _score(table: paper.Table, folders: Mapping[str, Path]) -> None:
    """Measure what the table's columns ask for, folder by folder; what was measured before comes from the cache."""
    from benchmarks.measure.score import NothingMeasured, write

    names = _asked([column.metric for column in table.columns])
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
