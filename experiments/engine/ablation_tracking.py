"""Live tracking of the trainings of an ablation: one run each, which the table's run of that arm and seed replaces."""

from __future__ import annotations

from experiments.engine.job import Job
from experiments.engine.plan import Plan
from pw.io.files import digest
from pw.run.signatures import data_hash
from pw.tracking.live import LiveTracking
from pw.tracking.loggers import Live
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
            self.live.begin(self._described(job), tracking)
        elif state in STATUS:
            self.live.end(training_folder(job.run, self.live.outputs), STATUS[state])

    def _described(self, job: Job) -> Live:
        run, name, params, tags = job.run, job.label, {}, {"training": job.run.training_signature}
        if row := self.rows.get(job.run.training_signature):
            arm, seed, run = row
            name, params = f"{arm.name}/seed={seed}", {**arm.varied, "seed": seed}
            tags[KEY] = run_key(self.plan.name, arm.name, seed, run.sample_signature(seed))
        height, width = run.scale.size
        params |= {"data": run.config.choices["data"], "data_hash": data_hash(run), "scale": run.scale.name}
        params |= {"size": f"{run.scale.frames}x{height}x{width}", "code": digest([run.training_code])}
        return Live(training_folder(job.run, self.live.outputs), self.plan.name, name, params, tags)
