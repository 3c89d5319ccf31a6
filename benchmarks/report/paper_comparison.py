"""A table of the paper with ours: what was measured of its rows, held against the printed numbers and each other.

A row's folder of videos has its scores (scores.csv), their protocols, and what its generation cost (jobs/).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import paper
from benchmarks.measure.measurement import NoVideo, videos_of
from benchmarks.metrics import METRICS
from benchmarks.paper.recompute import DIMENSIONS, vbench_total
from benchmarks.stats.paired import compare_videos
from benchmarks.stats.resampling import Mean, bootstrap_mean, prompt_of
from pw.io.arguments import ConfigError

_COSTS = ("latency", "latency_per_pixel", "latency_per_frame", "parameters", "peak_memory")


@dataclass(frozen=True)
class MeasuredRow:
    """What is known of a row's videos: metric -> video -> value, metric -> how it was measured, metric -> cost."""

    folder: Path | None = None
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
        values = self.scores.get(metric, {})
        if metric in DIMENSIONS:  # linear in the dimensions: an interval where all of them have the same videos
            of = {name: self.scores.get(name, {}) for name in DIMENSIONS[metric]}
            videos = [sorted(found) for found in of.values()]
            if not all(videos):
                return None
            if any(found != videos[0] for found in videos):
                means = {name: sum(found.values()) / len(found) for name, found in of.items()}
                return Mean(vbench_total(metric, means), None, None, min(map(len, videos)), 1)
            values = {v: vbench_total(metric, {name: found[v] for name, found in of.items()}) for v in videos[0]}
        return bootstrap_mean(list(values.values()), [prompt_of(v) for v in values]) if values else None


def read(folder: Path) -> MeasuredRow:
    """Scores, protocols and costs of a folder of videos.

    Raises: ConfigError for a score table that is damaged or has no protocol beside it.
    """
    from benchmarks.systems import jobs, read_card

    path = folder / "scores.csv"
    scores: dict[str, dict[str, float]] = {}
    protocols: dict[str, Any] = {}
    missing: dict[str, str] = {}
    if path.is_file():
        beside = folder / "scores.protocol.json"
        if not beside.is_file():
            raise ConfigError(f"{path}: no {beside.name} beside it says how it was measured; score again")
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for line in csv.DictReader(file):
                    for name, value in line.items():
                        if name in METRICS and value:
                            scores.setdefault(name, {})[line["video"]] = float(value)
            about = json.loads(beside.read_text(encoding="utf-8"))
            protocols, missing = dict(about["metrics"]), dict(about.get("missing", {}))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} or {beside.name} is damaged ({error!r}); score again") from error
    deviations = read_card(folder / "card.yaml").deviations if (folder / "card.yaml").is_file() else ()
    spent = jobs.costs(folder)
    costs = {name: float(value) for name in _COSTS if (value := getattr(spent, name)) is not None}
    return MeasuredRow(folder, scores, protocols, costs, spent.devices, spent.peak_memory_from, deviations, missing)


def find(table: paper.PaperTable, systems: Path, given: Mapping[str, Path]) -> dict[str, Path]:
    """arm -> the folder of its videos, for the rows that have one; a generation that made none yet left no row.

    Raises: ConfigError for a row that the table does not have, or a folder that is not there.
    """
    arms = [row.arm for row in table.rows]
    for arm, folder in given.items():
        if arm not in arms:
            raise ConfigError(f"row.{arm}={folder}: {table.name} has no such row; it has {', '.join(arms)}")
        if not folder.is_dir():
            raise ConfigError(f"row.{arm}={folder}: no such folder")
    return {arm: systems / arm for arm in arms if _has_videos(systems / arm)} | dict(given)


def _has_videos(folder: Path) -> bool:
    """Whether there is a row to show. Raises ConfigError for a registration that is damaged, or its videos gone."""
    if (folder / "scores.csv").is_file():
        return True
    try:
        return folder.is_dir() and bool(videos_of(folder))
    except NoVideo:
        return False


def compose(table: paper.PaperTable, measured: Mapping[str, MeasuredRow], reference: str = "") -> dict[str, Any]:
    """The table as a plain dictionary, as in <name>.json.

    reference: the row that the others are held against, ours against ours; "" takes the paper's own system.
    Raises: ConfigError if the rows of a column were measured by different protocols, or the reference is none of them.
    """
    wanted = metrics_of([column.metric for column in table.columns])
    _check_alike(measured, wanted)
    against = _reference(table, measured, reference)
    rows = []
    for row in table.rows:
        ours = measured.get(row.arm, MeasuredRow())
        estimates = [(column, ours.estimate(column.metric)) for column in table.columns if column.metric is not None]
        rows.append({
            "arm": row.arm,
            "label": row.label,
            "source": row.source,
            "paper": dict(row.printed),
            "ours": {column.name: _cell(column, row, found) for column, found in estimates if found is not None},
            "folder": None if ours.folder is None else str(ours.folder),
            "devices": list(ours.devices),
            "peak_memory_from": list(ours.peak_memory_from),
            "deviations": list(ours.deviations),
            "missing": dict(ours.missing),
            "costs": dict(ours.costs),
            "versus": _versus(table, measured, row.arm, against) if against not in ("", row.arm) else {},
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


def metrics_of(metrics: Sequence[str | None]) -> list[str]:
    """The registry's metrics that columns show, or are totals of."""
    found = [part for name in metrics if name for part in DIMENSIONS.get(name, (name,))]
    return list(dict.fromkeys(name for name in found if name in METRICS))


def _reference(table: paper.PaperTable, measured: Mapping[str, MeasuredRow], wanted: str) -> str:
    """The row to hold the others against; "" where fewer than two were measured."""
    scored = [row.arm for row in table.rows if row.arm in measured and measured[row.arm].scores]
    if wanted and wanted not in scored:
        raise ConfigError(f"reference={wanted}: was not measured; rows that were: {', '.join(scored) or 'none'}")
    if len(scored) < 2:
        return ""
    return wanted or next((arm for arm in scored if arm.startswith("pixelwizard")), scored[-1])


def _versus(table: paper.PaperTable, measured: Mapping[str, MeasuredRow], arm: str, reference: str) -> dict[str, Any]:
    """column -> our difference to the reference's row, beside the printed one."""
    ours, theirs = (measured.get(name, MeasuredRow()).scores for name in (arm, reference))
    if not ours.keys() & theirs.keys():
        return {}
    differences = compare_videos(theirs, ours).differences
    found = {}
    for column in table.columns:
        if column.kind != "quality" or column.metric not in differences:
            continue
        d = differences[column.metric]
        a, b = (table.row(name).values.get(column.name) for name in (arm, reference))
        found[column.name] = {
            **_in_print(column, d, "diff", "low", "high"),
            **{key: getattr(d, key) for key in ("p", "p_adjusted", "verdict", "design", "n", "prompts")},
            "printed": None if a is None or b is None else a - b,
        }
    return found


def _in_print(column: paper.PaperColumn, found: Any, *keys: str) -> dict[str, float | None]:
    values = {key: getattr(found, key) for key in keys}
    return {key: None if value is None else value * column.factor for key, value in values.items()}


def _cell(column: paper.PaperColumn, row: paper.PaperRow, found: Mean) -> dict[str, Any]:
    """Ours in the paper's unit, the difference to the printed number, and what that says."""
    ours = _in_print(column, found, "mean", "low", "high")
    printed = row.values.get(column.name)
    return {
        **ours,
        "n": found.n,
        "prompts": found.clusters,
        "difference": None if printed is None else found.mean * column.factor - printed,
        "verdict": None if printed is None else _verdict(ours, printed, column),
    }


def _verdict(ours: Mapping[str, float | None], printed: float, column: paper.PaperColumn) -> str | None:
    """Against one printed number without an interval: is it in ours?"""
    if column.kind != "quality" or column.direction is None:
        return None
    mean, low, high = ours["mean"], ours["low"], ours["high"]
    if mean is None or low is None or high is None:
        return "not resolved"
    if low <= printed <= high:
        return "no difference shown"
    return "better" if (mean > printed) == (column.direction == "higher") else "worse"


def _check_alike(measured: Mapping[str, MeasuredRow], shown: Collection[str]) -> None:
    seen: dict[str, tuple[str, Any]] = {}
    for arm, row in measured.items():
        for name, about in row.protocols.items():
            if name not in shown:
                continue
            how = {key: about.get(key) for key in ("protocol", "settings", "weights")}
            how |= {"code": code} if (code := about.get("code")) else {}  # tables of before do not say
            first, before = seen.setdefault(name, (arm, how))
            if differing := [key for key in how if key in before and how[key] != before[key]]:
                key = differing[0]
                raise ConfigError(
                    f"{name} was measured differently: {key} is {before[key]} for {first} and {how[key]} for {arm}; "
                    f"score one of them again"
                )
