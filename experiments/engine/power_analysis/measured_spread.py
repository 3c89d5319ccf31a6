"""The spread of a metric between seeds and between videos, from the scores of an ablation."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.metrics import Metric, lookup, protocols
from benchmarks.stats.comparison import distance
from benchmarks.stats.resampling import GROUPS, jackknife_variance, leave_out
from experiments.engine.job import score_request
from experiments.engine.outcome.written import read_scores
from experiments.engine.plan import Arm, Plan
from experiments.engine.power_analysis.spread import (
    Spread,
    components,
    pooled,
    with_jackknife,
)
from pw.io.arguments import ConfigError
from pw.sample.evaluate import sample_folder


def measured(plan: Plan, names: Sequence[str]) -> tuple[dict[str, tuple[Spread, float]], list[str]]:
    """(metric -> (spread, mean of all arms) from the scores on disk, notes on metrics without)."""
    scores, jackknife = _Scores(plan.options.outputs), _Jackknife(plan)
    spreads, notes = {}, []
    for name in names:
        metric = lookup(name)
        pairs, means, seeds, videos = [], [], set(), 0
        for arm, other in _pairs(plan):
            rows, variances = [], []
            for seed in sorted(arm.runs.keys() & other.runs.keys()):
                ids = (arm.runs[seed].sample_signature(seed), other.runs[seed].sample_signature(seed))
                both = scores.pair(*ids, metric)
                if both is not None:
                    rows.append(_differences(*both, metric))
                    means += [m for values in both if (m := _mean(values)) is not None]
                    seeds.add(seed)
                    videos = max(videos, scores.count(ids[0], name))
                    if name == plan.ablation.primary and metric.level == "set":
                        variances.append(jackknife.variance(arm, other, seed, metric))
            if len(rows) > 1 and all(rows):
                pair = components(rows)
                known = [variance for variance in variances if variance is not None]
                pairs.append(with_jackknife(pair, known, GROUPS, videos) if known else pair)
        of = f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''} of arms, {len(seeds)} seeds, {videos} videos"
        factor = 1.0 if metric.direction == "one" else metric.printed
        spread = pooled(pairs, factor, videos, of, of_set=metric.level == "set") if pairs else None
        if spread is None:
            notes.append(f"{name}: {scores.why_not(plan, metric)}")
        else:
            spreads[name] = (spread, fmean(means) * metric.printed)
    return spreads, notes


def _pairs(plan: Plan) -> Iterator[tuple[Arm, Arm]]:
    by_name = {arm.name: arm for arm in plan.arms}
    for arm in plan.arms:
        if arm.above is not None:
            yield arm, by_name[arm.above]


def _differences(a: Mapping[str, float], b: Mapping[str, float], metric: Metric) -> list[float]:
    values = [tuple(distance(side[name], metric.direction) for side in (a, b)) for name in a if name in b]
    return [x - y for x, y in values if math.isfinite(x) and math.isfinite(y)]


def _mean(values: Mapping[str, float]) -> float | None:
    return fmean(values.values()) if values else None


class _Jackknife:
    """The variance that the clips on disk bring to a difference in a metric of the whole set, by the jackknife."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.left_out: dict[tuple[str, int], list[float] | None] = {}

    def variance(self, arm: Arm, other: Arm, seed: int, metric: Metric) -> float | None:
        """Of arm - other in this seed; None where clips are not there, are too few, or not small."""
        both = [self._left_out(one, seed, metric) for one in (arm, other)]
        if both[0] is None or both[1] is None:
            return None
        left, right = ({str(group): value for group, value in enumerate(values)} for values in (both[0], both[1]))
        return jackknife_variance(_differences(left, right, metric))

    def _left_out(self, arm: Arm, seed: int, metric: Metric) -> list[float] | None:
        key = (arm.name, seed)
        if key not in self.left_out:
            self.left_out[key] = self._measure(arm, seed, metric)
        return self.left_out[key]

    def _measure(self, arm: Arm, seed: int, metric: Metric) -> list[float] | None:
        run, outputs = arm.runs[seed], self.plan.options.outputs
        if run.text is not None:  # a video of Wan's scales is measured in minutes
            return None
        solution = sample_folder(run.solution, outputs, seed) if "solution" in metric.needs else None
        asked = score_request(self.plan, arm.name, run, sample_folder(run, outputs, seed), solution, seed)
        folders = {"video": asked["videos"], **{need: asked[need] for need in metric.needs}}
        try:
            return leave_out(metric.name, {what: Path(path) for what, path in folders.items() if path is not None})
        except ValueError:  # no clips there: they were removed, or sampled elsewhere
            return None


class _Scores:
    """The scores under `outputs/scores`, by the signature of the clips they are of."""

    def __init__(self, outputs: Path) -> None:
        self.by_signature: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
        for path in sorted((outputs / "scores").glob("*/scores.json")):
            result = read_scores(path)
            contract = result["contract"]
            if contract.get("arm") not in ("floor", "ceiling"):  # of real clips, of many steps: not of the arm
                self.by_signature.setdefault(str(contract.get("signature")), []).append((path.parent, result))

    def pair(self, a: str, b: str, metric: Metric) -> tuple[dict[str, float], dict[str, float]] | None:
        """Both values per video (one named "" for a set), of the metric's protocol and against the same real clips."""
        for folder, left in self._of(a, metric):
            for other, right in self._of(b, metric):
                if left["contract"].get("clips") == right["contract"].get("clips"):
                    return _values(folder, left, metric), _values(other, right, metric)
        return None

    def count(self, signature: str, name: str) -> int:
        """How many videos a score was made of."""
        return max(result["n_videos"].get(name, 0) for _, result in self.by_signature[signature])

    def why_not(self, plan: Plan, metric: Metric) -> str:
        """Why a metric's spread is not measured."""
        ids = [run.sample_signature(seed) for _, seed, run in plan.runs()]
        if any(metric.name in r["metrics"] and r["contract"].get("arm") for i in ids for _, r in self._all(i)):
            is_current = any(self._of(i, metric) for i in ids)
            return "fewer than two seeds of a pair of arms" if is_current else "scored by another protocol or settings"
        return f"not scored yet (`make ablation name={plan.name}` does)"

    def _all(self, signature: str) -> list[tuple[Path, dict[str, Any]]]:
        return self.by_signature.get(signature, [])

    def _of(self, signature: str, metric: Metric) -> list[tuple[Path, dict[str, Any]]]:
        wanted = protocols([metric.name])[metric.name]
        return [
            (folder, result)
            for folder, result in self._all(signature)
            if metric.name in result["metrics"] and result["contract"].get("metrics", {}).get(metric.name) == wanted
        ]


def _values(folder: Path, result: Mapping[str, Any], metric: Metric) -> dict[str, float]:
    if metric.level == "set":
        return {"": result["metrics"][metric.name]}
    path = folder / "scores.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["video"]: float(row[metric.name]) for row in csv.DictReader(file) if row.get(metric.name)}
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{path}: is damaged ({error!r}); remove {folder}, and `make ablation` scores again"
        ) from error
