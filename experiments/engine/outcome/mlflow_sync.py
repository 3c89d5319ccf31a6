"""Logs the runs and the table of an ablation to MLflow, from files alone, at its end or by `pw mlflow-sync`.

`pw mlflow-sync` logs every table in an outputs folder that MLflow lacks, e.g. because its database was locked.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.engine.job import Row, all_jobs
from experiments.engine.outcome.result_files import read_scores
from experiments.engine.plan import Arm, Plan, make_plan, parse
from pw.io.arguments import Command, ConfigError, option
from pw.io.manifest import whole
from pw.io.paths import OUTPUTS
from pw.run.build import Run
from pw.sample.evaluate import sample_folder
from pw.tracking.mlflow_log import TrackingError
from pw.train.record import training_folder

if TYPE_CHECKING:
    from pw.tracking.mlflow_log import RunRecord

FILES = ("table.md", "table.html", "table.json", "table.csv", "table.tex", "plot.png", "contact_sheet.png")


def log_to_mlflow(plan: Plan, result: dict[str, Any], rows: Sequence[Row]) -> str:
    """Log a parent run and a run per arm and seed; return the id of the parent. Raises TrackingError."""
    from pw.tracking.mlflow_log import log_ablation

    score_folders = {(row.name, row.seed): Path(row.job.score["out"]) for row in rows}
    records = [
        _record(plan, arm, seed, run, score_folders[arm.name, seed] / "scores.json")
        for arm in plan.arms
        for seed, run in arm.runs.items()
    ]
    summary = {
        f"{entry['name']}.{metric}": value["mean"]
        for entry in result["arms"]
        for metric, value in entry["metrics"].items()
        if value["mean"] is not None
    }
    return log_ablation(
        plan.options.outputs,
        plan.name,
        records,
        artifacts=[plan.folder / name for name in FILES if (plan.folder / name).exists()],
        summary=summary,
        tags={"mlflow.note.content": (plan.folder / "table.md").read_text()},
    )


def _record(plan: Plan, arm: Arm, seed: int, run: Run, file: Path) -> RunRecord:
    from pw.tracking.mlflow_log import RunRecord

    outputs = plan.options.outputs
    training, clips = training_folder(run, outputs), sample_folder(run, outputs, seed)
    mark = whole(training / "done.json", ["metrics.jsonl"]) or {}  # {}: its job has failed by name
    cost = {key: mark[key] for key in ("cpu_seconds", "train_flops", "peak_memory_mb") if key in mark}
    scores = read_scores(file)["metrics"] if file.exists() else {}
    artifacts = [training / "config.yaml", file, file.with_suffix(".csv"), *sorted(clips.glob("000[0-3].mkv"))]
    return RunRecord(
        arm=arm.name,
        seed=seed,
        params={**arm.varied, "scale": run.scale.name, "seed": seed},
        curves=training / "metrics.jsonl" if "metrics.jsonl" in mark.get("files", ()) else None,
        scores={k: v for k, v in (scores | cost).items() if v is not None and math.isfinite(v)},
        artifacts=[path for path in artifacts if path.exists()],
        tags={
            "signature": run.sample_signature(seed),
            "training": run.training_signature,
            "git_commit": str(mark.get("git_commit")),
        },
        status="FINISHED" if scores else "FAILED",
    )


@dataclass(frozen=True)
class MlflowSyncOptions:
    """The options of `pw mlflow-sync`."""

    outputs: Path = option(OUTPUTS, "where the tables are")


def run(options: MlflowSyncOptions) -> int:
    """Log all tables; exit status 1 if one could not be logged. Raises ConfigError if there is no table."""
    outputs = options.outputs.expanduser().resolve()
    tables = [path.parent for path in sorted(outputs.glob("*/plan.json")) if (path.parent / "table.json").exists()]
    if not tables:
        raise ConfigError(f"outputs={outputs}: no ablation has a table there; `make ablation name=ansc` makes one")
    return max([_log(folder, outputs) for folder in tables])


def _log(folder: Path, outputs: Path) -> int:
    try:
        words = json.loads((folder / "plan.json").read_text())["words"]
        plan = make_plan(parse([*words, f"outputs={outputs}"]))
        log_to_mlflow(plan, json.loads((folder / "table.json").read_text()), all_jobs(plan)[1])
    except (TrackingError, ValueError, KeyError) as error:
        print(f"{folder.name}: not logged: {error}", file=sys.stderr)
        return 1
    print(f"{folder.name}: logged")
    return 0


main = Command(MlflowSyncOptions, run)
