"""Compare our measurements with a table of the paper: with its printed numbers, and one row with another.

The folder of a row's videos holds the scores (scores.csv), their protocols, and the cost of generation (jobs/).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import paper
from benchmarks.measure.measurement import NoVideo, videos_of
from benchmarks.metrics import METRICS
from benchmarks.paper.recompute import DIMENSIONS, vbench_total
from benchmarks.report.card_check import prompts_of
from benchmarks.stats.paired import compare_videos
from benchmarks.stats.resampling import Mean, bootstrap_mean, prompt_of
from pw.io.arguments import ConfigError
from pw.io.files import parse_json, read_csv

_COSTS = ("latency", "latency_per_pixel", "latency_per_frame", "parameters", "peak_memory")


@dataclass(frozen=True)
class MeasuredRow:
    """Measurements of a row's videos.

    scores: metric -> video -> value. protocols: metric -> how it was measured. costs: metric -> value.
    missing: metric -> reason why it could not be measured, with the command that supplies what it needs.
    mismatches: how the videos differ from the row's card, see `card_check`.
    """

    folder: Path | None = None
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    peak_memory_from: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    mismatches: tuple[str, ...] = ()

    @property
    def videos(self) -> set[str]:
        """The videos with a score."""
        return {video for by_video in self.scores.values() for video in by_video}

    def estimate(self, metric: str) -> Mean | None:
        """Mean and interval of a metric or of a total of VBench; None if it was not measured."""
        if metric in self.costs:
            return Mean(self.costs[metric], None, None, 1, 1)
        values = self.scores.get(metric, {})
        if metric in DIMENSIONS:  # linear in the dimensions: has an interval if all dimensions have the same videos
            parts = {name: self.scores.get(name, {}) for name in DIMENSIONS[metric]}
            videos = [sorted(scores) for scores in parts.values()]
            if not all(videos):
                return None
            if any(scores != videos[0] for scores in videos):
                means = {name: sum(scores.values()) / len(scores) for name, scores in parts.items()}
                return Mean(vbench_total(metric, means), None, None, min(map(len, videos)), 1)
            values = {v: vbench_total(metric, {name: scores[v] for name, scores in parts.items()}) for v in videos[0]}
        return bootstrap_mean(list(values.values()), [prompt_of(v) for v in values]) if values else None


def read(folder: Path) -> MeasuredRow:
    """Read the scores, protocols and costs of a folder of videos.

    Raises: ConfigError if scores.csv is damaged or its protocol file is missing.
    """
    from benchmarks.systems import jobs, read_card

    path = folder / "scores.csv"
    scores: dict[str, dict[str, float]] = {}
    protocols: dict[str, Any] = {}
    missing: dict[str, str] = {}
    if path.is_file():
        protocol_path = folder / "scores.protocol.json"
        if not protocol_path.is_file():
            raise ConfigError(f"{path}: no {protocol_path.name} beside it says how it was measured; score again")
        try:
            for row in read_csv(path)[1]:
                for name, value in row.items():
                    if name in METRICS and value:
                        scores.setdefault(name, {})[row["video"]] = float(value)
            record = parse_json(protocol_path.read_text(encoding="utf-8"))
            protocols, missing = dict(record["metrics"]), dict(record.get("missing", {}))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} or {protocol_path.name} is damaged ({error!r}); score again") from error
    deviations = read_card(folder / "card.yaml").deviations if (folder / "card.yaml").is_file() else ()
    totals = jobs.costs(folder)
    costs = {name: float(value) for name in _COSTS if (value := getattr(totals, name)) is not None}
    return MeasuredRow(folder, scores, protocols, costs, totals.devices, totals.peak_memory_from, deviations, missing)


def find(table: paper.PaperTable, systems: Path, folders: Mapping[str, Path]) -> dict[str, Path]:
    """arm -> folder of its videos, for the rows that have videos. `folders` takes precedence over `systems`.

    Raises: ConfigError if the registered videos of a folder are gone.
    """
    arms = [row.arm for row in table.rows]
    return {arm: systems / arm for arm in arms if _has_videos(systems / arm)} | dict(folders)


def _has_videos(folder: Path) -> bool:
    """Whether a folder has scores or videos. Raises ConfigError if its registered videos are damaged or gone."""
    if (folder / "scores.csv").is_file():
        return True
    try:
        return folder.is_dir() and bool(videos_of(folder))
    except NoVideo:
        return False


def compose(table: paper.PaperTable, measurements: Mapping[str, MeasuredRow], reference: str = "") -> dict[str, Any]:
    """The table as a plain dictionary, as in <name>.json.

    reference: the row that our other rows are compared with; "" selects the paper's own system.
    Raises: ConfigError if a column was measured by different protocols, or the reference was not measured.
    """
    names = metrics_of([column.metric for column in table.columns])
    _check_protocols(measurements, names)
    reference = _reference(table, measurements, reference)
    rows = []
    for row in table.rows:
        ours = measurements.get(row.arm, MeasuredRow())
        estimates = [(c, ours.estimate(c.metric)) for c in table.columns if c.metric is not None]
        rows.append({
            "arm": row.arm,
            "label": row.label,
            "source": row.source,
            "paper": dict(row.printed),
            "ours": {c.name: _cell(c, row, estimate) for c, estimate in estimates if estimate is not None},
            "folder": None if ours.folder is None else str(ours.folder),
            "devices": list(ours.devices),
            "peak_memory_from": list(ours.peak_memory_from),
            "deviations": list(ours.deviations),
            "missing": dict(ours.missing),
            "mismatches": [*ours.mismatches, *_other_prompts(measurements, row.arm, reference)],
            "prompts": dict(zip(("number", "sha256"), prompts_of(ours.videos), strict=True)) if ours.videos else None,
            "costs": dict(ours.costs),
            "versus": _versus(table, measurements, row.arm, reference) if reference not in ("", row.arm) else {},
        })  # fmt: skip
    protocols = {name: protocol for m in measurements.values() for name, protocol in m.protocols.items()}
    return {
        "table": table.name,
        "title": f"{table.title}. {table.caption}",
        "note": table.note,
        "columns": [asdict(column) for column in table.columns],
        "rows": rows,
        "reference": reference,
        "protocols": {name: protocols[name] for name in names if name in protocols},
    }


def metrics_of(metrics: Sequence[str | None]) -> list[str]:
    """The metrics of the registry in `metrics`, with each total replaced by its dimensions."""
    parts = [part for name in metrics if name for part in DIMENSIONS.get(name, (name,))]
    return list(dict.fromkeys(name for name in parts if name in METRICS))


def _reference(table: paper.PaperTable, measurements: Mapping[str, MeasuredRow], reference: str) -> str:
    """The row that others are compared with; "" if fewer than two rows have scores."""
    arms = [row.arm for row in table.rows if row.arm in measurements and measurements[row.arm].scores]
    if reference and reference not in arms:
        raise ConfigError(f"reference={reference}: was not measured; rows that were: {', '.join(arms) or 'none'}")
    if len(arms) < 2:
        return ""
    return reference or next((arm for arm in arms if arm.startswith("pixelwizard")), arms[-1])


def _other_prompts(measurements: Mapping[str, MeasuredRow], arm: str, reference: str) -> list[str]:
    """A sentence if the prompts of a row are not those of the reference."""
    if not reference or not (ours := measurements.get(arm, MeasuredRow()).videos):
        return []
    prompts, others = ({*map(prompt_of, videos)} for videos in (ours, measurements[reference].videos))
    if prompts == others:
        return []
    return [f"{len(prompts & others)} of its {len(prompts)} prompts are among the {len(others)} of {reference}"]


def _versus(table: paper.PaperTable, rows: Mapping[str, MeasuredRow], arm: str, reference: str) -> dict[str, Any]:
    """column -> our difference to the reference row, with the printed difference."""
    scores, reference_scores = (rows.get(name, MeasuredRow()).scores for name in (arm, reference))
    if not scores.keys() & reference_scores.keys():
        return {}
    differences = compare_videos(reference_scores, scores).differences
    cells = {}
    for column in table.columns:
        if column.kind != "quality" or column.metric not in differences:
            continue
        difference = differences[column.metric]
        value, reference_value = (table.row(name).values.get(column.name) for name in (arm, reference))
        cells[column.name] = {
            **_in_paper_unit(column, difference, "diff", "low", "high"),
            **{key: getattr(difference, key) for key in ("p", "p_adjusted", "verdict", "design", "n", "prompts")},
            "printed": None if value is None or reference_value is None else value - reference_value,
        }
    return cells


def _in_paper_unit(column: paper.PaperColumn, estimate: Any, *keys: str) -> dict[str, float | None]:
    values = {key: getattr(estimate, key) for key in keys}
    return {key: None if value is None else value * column.factor for key, value in values.items()}


def _cell(column: paper.PaperColumn, row: paper.PaperRow, estimate: Mean) -> dict[str, Any]:
    """Our estimate in the paper's unit, its difference to the printed number, and the verdict."""
    ours = _in_paper_unit(column, estimate, "mean", "low", "high")
    printed = row.values.get(column.name)
    return {
        **ours,
        "n": estimate.n,
        "prompts": estimate.clusters,
        "difference": None if printed is None else estimate.mean * column.factor - printed,
        "verdict": None if printed is None else _verdict(ours, printed, column),
    }


def _verdict(ours: Mapping[str, float | None], printed: float, column: paper.PaperColumn) -> str | None:
    """Compare our interval with the printed number, which has no interval."""
    if column.kind != "quality" or column.direction is None:
        return None
    mean, low, high = ours["mean"], ours["low"], ours["high"]
    if mean is None or low is None or high is None:
        return "not resolved"
    if low <= printed <= high:
        return "no difference shown"
    return "better" if (mean > printed) == (column.direction == "higher") else "worse"


def _check_protocols(measurements: Mapping[str, MeasuredRow], metrics: Collection[str]) -> None:
    firsts: dict[str, tuple[str, Any]] = {}
    for arm, row in measurements.items():
        for name, record in row.protocols.items():
            if name not in metrics:
                continue
            new = {key: record.get(key) for key in ("protocol", "settings", "weights")}
            new |= {"code": code} if (code := record.get("code")) else {}  # older tables do not have it
            first, old = firsts.setdefault(name, (arm, new))
            if key := next((key for key in new if key in old and new[key] != old[key]), None):
                raise ConfigError(
                    f"{name} was measured differently: {key} is {old[key]} for {first} and {new[key]} for {arm}; "
                    f"score one of them again"
                )
