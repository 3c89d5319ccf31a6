"""A table of the paper with ours: our means, their difference to the printed numbers, and ours against ours."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks import paper
from benchmarks.metrics import METRICS
from benchmarks.paper.recompute import DIMENSIONS
from benchmarks.report.paper_rows import MeasuredRow
from benchmarks.stats.paired import compare_videos
from benchmarks.stats.resampling import Mean
from pw.io.arguments import ConfigError


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


def _cell(column: paper.PaperColumn, row: paper.PaperRow, found: Mean | None) -> dict[str, Any] | None:
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
            before = seen.setdefault(name, (arm, how))
            differing = [key for key in how if key in before[1] and how[key] != before[1][key]]
            if differing:
                key = differing[0]
                raise ConfigError(
                    f"{name} was measured differently: {key} is {before[1][key]} for {before[0]} and {how[key]} for "
                    f"{arm}; score one of them again"
                )
