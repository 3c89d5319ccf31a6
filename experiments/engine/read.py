"""What came out, for notebooks and scripts: `table("ansc")`, `runs("ansc")`, `paper("table_2")`.

Each reads files alone, returns plain values, and shows itself in Jupyter. Without `outputs` they read `$PW_OUTPUTS`, or
the outputs of the checkout or working directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import paper as tables_of_the_paper
from benchmarks.paper import lint
from benchmarks.paper.recompute import Check
from benchmarks.report import paper_tables
from benchmarks.report import write as report
from benchmarks.report.paper_comparison import compose, find
from benchmarks.report.paper_comparison import read as read_videos
from experiments.engine.outcome.result_files import mark_of, read_result, read_scores
from pw.io.arguments import ConfigError, did_you_mean
from pw.io.manifest import DamagedResult
from pw.io.paths import OUTPUTS
from pw.tracking.curves import CURVES
from pw.tracking.mlflow_log import curve_points

Curve = Sequence[tuple[int, float]]
"""(update, value) of each point."""


@dataclass(frozen=True)
class Outcome:
    """The table of an ablation. result: the content of its table.json (`benchmarks.report.write`)."""

    folder: Path
    result: Mapping[str, Any] = field(repr=False)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row per arm: its name, what it varies, and the mean of each metric."""
        return [
            {"arm": arm["name"], **arm["varied"], **{name: row["mean"] for name, row in arm["metrics"].items()}}
            for arm in self.result["arms"]
        ]

    @property
    def differences(self) -> list[dict[str, Any]]:
        """A row per arm and metric, to the arm it is compared with: diff, low, high, p, verdict, versus, …"""
        return [
            {"arm": arm["name"], "metric": metric, **row}
            for arm in self.result["arms"]
            for metric, row in arm["vs_previous"].items()
        ]

    @property
    def scores(self) -> dict[tuple[str, int], dict[str, float]]:
        """(arm, seed) -> metric -> score; scores that are not finite are missing."""
        scores: dict[tuple[str, int], dict[str, float]] = {}
        for arm in self.result["arms"]:
            for metric, by_seed in arm["values"].items():
                for seed, value in by_seed.items():
                    scores.setdefault((arm["name"], int(seed)), {})[metric] = value
        return scores

    def _repr_markdown_(self) -> str:
        return report.markdown(self.result)


@dataclass(frozen=True)
class TableRun:
    """A run of a table: one arm and seed.

    training, clips  signatures, the names of its folders in outputs/train and outputs/videos
    commit           that trained it; + for uncommitted changes
    code             hash of what trained it; None if it was trained elsewhere or its training is gone
    curves           name, as in docs/tracking.md -> its points; empty without a training here
    """

    arm: str
    seed: int
    training: str
    clips: str
    commit: str
    code: str | None
    scores: Mapping[str, float]
    curves: Mapping[str, Curve]


@dataclass(frozen=True)
class TableRuns:
    """The runs of one table, all of its data, scale and code; `left_out` says what is missing, and why."""

    title: str
    entries: Sequence[TableRun] = field(repr=False)
    left_out: Sequence[str]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row per run: arm, seed, signatures, commit, code, and its scores."""
        keys = ("arm", "seed", "training", "clips", "commit", "code")
        return [{key: getattr(run, key) for key in keys} | dict(run.scores) for run in self.entries]

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(run.arm for run in self.entries))

    @property
    def curve_names(self) -> list[str]:
        return sorted({name for run in self.entries for name in run.curves})

    def last(self, prefix: str) -> dict[str, dict[str, float]]:
        """Arm -> curve -> its last value, the mean over seeds; of curves that begin with `prefix`, without it."""
        ends: dict[str, dict[str, list[float]]] = {arm: {} for arm in self.arms}
        for run in self.entries:
            for name, curve in run.curves.items():
                if name.startswith(prefix):
                    ends[run.arm].setdefault(name.removeprefix(prefix), []).append(curve[-1][1])
        return {arm: {name: fmean(curves[name]) for name in sorted(curves)} for arm, curves in ends.items()}

    def _repr_markdown_(self) -> str:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        lines = [f"**{self.title}**", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for row in self.rows:
            cells = (row.get(column, "–") for column in columns)
            lines.append(f"| {' | '.join(f'{c:.4g}' if isinstance(c, float) else str(c) for c in cells)} |")
        return "\n".join([*lines, "", *(f"- left out: {line}" for line in self.left_out)])


@dataclass(frozen=True)
class PaperComparison:
    """A table of the paper with our rows below the printed ones, and the checks of its numbers (`pw lint-paper`)."""

    result: Mapping[str, Any] = field(repr=False)
    checks: Sequence[Check] = field(repr=False)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row per row of the paper: `arm`, `paper` (the printed cells), `ours` (estimates by column), …"""
        return self.result["rows"]

    def _repr_markdown_(self) -> str:
        return paper_tables.render(self.result, "md") + "\n" + lint.markdown(self.checks)


def table(ablation: str, outputs: Path | None = None) -> Outcome:
    """The latest table of an ablation. Raises ConfigError if there is none or it is damaged."""
    folder = _outputs(outputs) / ablation
    if not (folder / "table.json").is_file():
        raise ConfigError(f"{folder} has no table yet; `make ablation name={ablation}` makes it")
    remedy = f"`make ablation name={ablation}` writes it again"
    return Outcome(folder, read_result(folder / "table.json", {"arms": list, "contract": dict}, remedy))


def runs(ablation: str, outputs: Path | None = None) -> TableRuns:
    """The runs of the latest table of an ablation, and no other. Raises ConfigError if there is no table."""
    outcome, outputs = table(ablation, outputs), _outputs(outputs)
    contracts = list(_contracts(outputs, outcome.result["contract"]))
    entries: list[TableRun] = []
    left_out: list[str] = []
    codes: dict[str, str] = {}  # of each arm's first run
    for (arm, seed), scores in outcome.scores.items():
        try:
            contract = _contract_of(outcome, arm, seed, scores, contracts)
            run = _read_run(outputs, contract, scores)
            if run.code is not None and codes.setdefault(arm, run.code) != run.code:
                raise ConfigError(f"it was trained by code {run.code}, the others of this arm by {codes[arm]}")
            entries.append(run)
        except (ConfigError, ValueError, OSError) as error:
            left_out.append(f"{arm} seed {seed}: {error}".replace(f"{outputs}{os.sep}", ""))
    for arm in outcome.result["arms"]:
        left_out += [f"{arm['name']}: {arm['status']}"] if arm["status"] != "ok" else []
    return TableRuns(_title(outcome.result), entries, left_out)


def paper(name: str, outputs: Path | None = None, rows: Mapping[str, Path] | None = None) -> PaperComparison:
    """A table of the paper with ours beside it, from outputs/systems (`make system`, `make score`).

    rows: row -> folder of its videos, instead of outputs/systems/<row>. Raises ConfigError.
    """
    names = tables_of_the_paper.names()
    if name not in names:
        raise ConfigError(f"{name}: {did_you_mean(name, names)}the paper's tables are {', '.join(names)}")
    printed = tables_of_the_paper.load(name)
    measured = {
        arm: read_videos(folder) for arm, folder in find(printed, _outputs(outputs) / "systems", rows or {}).items()
    }
    return PaperComparison(compose(printed, measured), [check for check in checks() if name in check.tables])


@cache
def checks() -> list[Check]:
    """All of `pw lint-paper`."""
    return lint.lint()


def _outputs(outputs: Path | None) -> Path:
    return Path(outputs or os.environ.get("PW_OUTPUTS") or OUTPUTS).expanduser().resolve()


def _contracts(outputs: Path, of_table: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """(scores.json, its content) of all scores of the table's clips. A damaged one is in no table."""
    signatures = _listed(of_table.get("signature"))
    for path in sorted((outputs / "scores").glob("*/scores.json")):
        try:
            content = read_scores(path)
        except DamagedResult:
            continue
        if content["contract"]["signature"] in signatures:
            yield path, content


def _listed(value: Any) -> list[Any]:
    """The values of a key of a table's contract, which has a list where its rows differ."""
    return value if isinstance(value, list) else [value]


def _contract_of(
    outcome: Outcome,
    arm: str,
    seed: int,
    scores: Mapping[str, float],
    contents: Sequence[tuple[Path, Mapping[str, Any]]],
) -> Mapping[str, Any]:
    """The contract of the scores that the table has of an arm and seed. Raises ConfigError if they are not there."""
    of_table, reason = (
        outcome.result["contract"],
        "its scores are not here, or damaged; `make ablation` makes them again",
    )
    for path, content in contents:
        contract = content["contract"]
        if (contract["arm"], contract["seed"]) != (arm, seed):
            continue
        other = [
            f"{key} {contract[key]}, not {of_table[key]}"
            for key in ("data", "clips_fingerprint", "scale", "count", "code", "train_signature")
            if contract.get(key) not in _listed(of_table.get(key))
        ]
        other += [
            f"{metric} {content['metrics'].get(metric)}, not {value}"
            for metric, value in scores.items()
            if content["metrics"].get(metric) != value
        ]
        if not other:
            return contract
        reason = f"{path.parent} is of something else than the table: {'; '.join(other[:2])}"
    raise ConfigError(reason)


def _read_run(outputs: Path, contract: Mapping[str, Any], scores: Mapping[str, float]) -> TableRun:
    folder = outputs / "train" / contract["train_signature"]
    mark = mark_of(folder)
    origin = mark or contract
    points: dict[str, list[tuple[int, float]]] = {}
    for file, prefix in CURVES.items():
        if mark and (folder / file).is_file():
            for name, value, _, step in curve_points(folder / file, prefix):
                points.setdefault(name, []).append((step, value))
    return TableRun(
        contract["arm"],
        contract["seed"],
        contract["train_signature"],
        contract["signature"],
        f"{str(origin.get('git_commit'))[:7]}{'+' if origin.get('dirty') else ''}",
        mark.get("code"),
        scores,
        {name: sorted(curve) for name, curve in points.items()},
    )


def _title(result: Mapping[str, Any]) -> str:
    contract, seeds = result["contract"], ", ".join(map(str, result["seeds"]))
    commits = ", ".join(str(commit)[:7] for commit in _listed(contract.get("git_commit")))
    data = f"data {contract['data']} {contract['clips_fingerprint']}, {contract['count']} clips"
    return f"{result['ablation']}: seeds {seeds}, scale {contract['scale']}, {data}, commit {commits}"
