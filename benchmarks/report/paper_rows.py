"""What was measured of a row of the paper's tables: scores, protocols and costs of its folder of videos."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import paper
from benchmarks.measure.measurement import NoVideo, videos_of
from benchmarks.metrics import METRICS
from benchmarks.paper.recompute import DIMENSIONS, vbench_total
from benchmarks.stats.resampling import Mean, bootstrap_mean, prompt_of
from pw.io.arguments import ConfigError


@dataclass(frozen=True)
class MeasuredRow:
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
            each = {v: vbench_total(metric, {n: self.scores[n][v] for n in of}) for v in sorted(videos[0])}
            return bootstrap_mean(list(each.values()), [prompt_of(v) for v in each])
        means = {name: sum(self.scores[name].values()) / len(self.scores[name]) for name in of}
        return Mean(vbench_total(metric, means), None, None, min(map(len, videos)), 1)


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
