"""An ablation's runs and table, logged to MLflow from files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.engine.job import Row
from experiments.engine.outcome.written import mark_of, read_scores
from experiments.engine.plan import Arm, Plan
from pw.run.build import Run
from pw.sample.evaluate import sample_folder
from pw.train.record import training_folder

if TYPE_CHECKING:
    from pw.tracking.mlflow_log import RunRecord

FILES = ("table.md", "table.html", "table.json", "table.csv", "table.tex", "plot.png", "contact_sheet.png")


def log_to_mlflow(plan: Plan, result: dict[str, Any], rows: Sequence[Row]) -> str:
    """Log one parent run, and a run per arm and seed; returns the parent's id. Raises TrackingError."""
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


def _record(plan: Plan, arm: Arm, seed: int, run: Run, scored: Path) -> RunRecord:
    from pw.tracking.mlflow_log import RunRecord

    outputs = plan.options.outputs
    training, clips = training_folder(run, outputs), sample_folder(run, outputs, seed)
    mark = mark_of(training)
    cost = {key: mark[key] for key in ("cpu_seconds", "train_flops", "peak_memory_mb") if key in mark}
    scores = read_scores(scored)["metrics"] if scored.exists() else {}
    artifacts = [training / "config.yaml", scored, scored.with_suffix(".csv"), *sorted(clips.glob("000[0-3].mkv"))]
    return RunRecord(
        arm=arm.name,
        seed=seed,
        params={**arm.varied, "scale": run.scale.name, "seed": seed},
        curves=curves if (curves := training / "metrics.jsonl").exists() else None,
        scores={k: v for k, v in (scores | cost).items() if v is not None and math.isfinite(v)},
        artifacts=[path for path in artifacts if path.exists()],
        tags={
            "signature": run.sample_signature(seed),
            "training": run.training_signature,
            "git_commit": str(mark.get("git_commit")),
        },
        status="FINISHED" if scores else "FAILED",
    )
