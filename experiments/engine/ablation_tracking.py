"""Live tracking of an ablation: a run for each training, and its scores. In MLflow the table's runs replace these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from experiments.engine.job import Job, Row
from experiments.engine.plan import Plan
from pw.io.files import digest, read_json
from pw.run.build import Run
from pw.run.signatures import data_hash
from pw.tracking.live import LiveTracking
from pw.tracking.loggers import Live, MLflow
from pw.tracking.mlflow_log import KEY, run_key
from pw.train.record import training_folder

STATUS = {"done": "success", "failed": "failed", "stopping": "KILLED"}  # event of a pool -> status of a run


class AblationTracking:
    """Passes the trainings of a plan on, by the events of its pool."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.live = plan, LiveTracking(plan.options.outputs)
        self.rows = {run.training_signature: (arm, seed, run) for arm, seed, run in reversed([*plan.runs()])}

    def event(self, state: str, job: Job) -> None:
        tracking = job.run.tracking
        if job.kind != "train" or tracking is None:
            return
        if state == "started":
            self.live.begin(self._described(job.run, job.label), tracking)
        elif state in STATUS:
            self.live.end(training_folder(job.run, self.live.outputs), STATUS[state])

    def scores(self, rows: Sequence[Row]) -> None:
        """Pass the scores on; MLflow gets them with the table, as runs that are never edited."""
        by_name = {(arm.name, seed): run for arm, seed, run in self.plan.runs()}
        for row in rows:
            run = by_name.get((row.name, row.seed))
            if run is None or run.tracking is None or isinstance(run.tracking, MLflow):
                continue
            metrics = (read_json(Path(row.job.score["out"]) / "scores.json") or {}).get("metrics", {})
            first = self.rows[run.training_signature][0].name  # whose run it is; others only sample differently
            prefix = "score" if row.name == first else f"score/{row.name}"
            values = {f"{prefix}/{name}": value for name, value in metrics.items() if value is not None}
            if values := {name: value for name, value in values.items() if math.isfinite(value)}:
                self.live.add(self._described(run, row.name), run.tracking, values, run.train.updates)

    def _described(self, run: Run, label: str) -> Live:
        folder, name, params = training_folder(run, self.live.outputs), label, {}
        tags = {"training": run.training_signature}
        if row := self.rows.get(run.training_signature):
            arm, seed, run = row
            name, params = f"{arm.name}/seed={seed}", {**arm.varied, "seed": seed}
            tags[KEY] = run_key(self.plan.name, arm.name, seed, run.sample_signature(seed))
        height, width = run.scale.size
        params |= {"data": run.config.choices["data"], "data_hash": data_hash(run), "scale": run.scale.name}
        params |= {"size": f"{run.scale.frames}x{height}x{width}", "code": digest([run.training_code])}
        return Live(folder, self.plan.name, name, params, tags)
