"""Log an ablation to MLflow: an experiment with a parent run, and below it a run for each arm and seed.

MLflow is only a view. Configurations, curves, scores and tables are files of their own, so `outputs/mlflow` may be
deleted at any time: the next `pw ablation` logs it again.

A run that was logged is never edited. It is identified by a key (`ablation/arm/seed/signature`) and a digest of its
content. If the content changed, a new run is logged, and the old one goes to MLflow's trash (`mlflow gc` empties it).
The same holds for parents. A run belongs to the latest table that has it: a new parent takes over the runs that it
shares with older tables, and a parent without runs goes to the trash. Runs that a new table lacks (an arm with another
signature, another scale) stay with the older parent.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from pw.tracking.mlflow_database import (
    CONTENT,
    ENVIRONMENT,
    KEY,
    PARENT,
    ROW,
    VIEW,
    latest_tables,
    locked_database,
    mlflow_folder,
    prepare_database,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

BATCH = 1000  # MLflow's limit for one log_batch

Point = tuple[str, float, int, int]  # name, value, time in ms, step: MLflow's Metric


@dataclass(frozen=True)
class RunRecord:
    """What is logged of one arm and seed."""

    arm: str
    seed: int
    params: dict[str, object]  # exactly the varied keys + scale + seed: nothing else becomes a parameter
    curves: Path | None  # metrics.jsonl: a line is {"step": 10, "loss": 0.1, …}
    scores: dict[str, float]
    artifacts: list[Path]  # files or folders
    tags: dict[str, str]  # signature, git commit, …; "signature" is part of the key
    status: Literal["FINISHED", "FAILED", "KILLED"]

    @property
    def name(self) -> str:
        return f"{self.arm}/seed={self.seed}"


def log_ablation(
    outputs: Path,
    ablation: str,
    runs: Sequence[RunRecord],
    *,
    artifacts: Sequence[Path],
    summary: Mapping[str, float],
    tags: Mapping[str, str],
) -> str:
    """Log an ablation's table (runs in the table's order) and return the id of its parent run.

    Artifacts, summary and tags are the parent's; a tag `mlflow.note.content` (markdown) is its description.
    Curves become `train/<name>`, so that none mixes with a score of the same name.

    Raises:
        ValueError: an arm x seed or artifact given twice, an artifact missing, a broken line of curves.
        TrackingError: the database is locked, broken or another MLflow version's; the disk is full.
    """
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{ablation}: more than one run is called {', '.join(twice)}")
    home = mlflow_folder(outputs)
    with locked_database(home):
        rows = [_row(ablation, run) for run in runs]
        contents = tuple(row.content() for row in rows)
        status = "FINISHED" if all(run.status == "FINISHED" for run in runs) else "FAILED"
        points = _points(summary)
        new = _StoredRun(ablation, ablation, tags, {}, points, artifacts, status, contents)
        prepare_database(home)
        latest = latest_tables(home).get(ablation)
        if latest and latest.content == new.content() and len(latest.rows) == len(rows):
            return latest.parent  # without importing MLflow, which takes 6 s
        table = _AblationTable(_client(home), home, ablation)
        ids = [table.log_row(row) for row in reversed(rows)][::-1]  # reversed: the UI lists the newest first
        parent = table.log_parent(new, ids)
        table.save_view(runs, parent)
        return parent


def warm_up() -> None:
    """Import MLflow, which takes 6 s, with its telemetry off: for a thread, while something else takes its time."""
    os.environ.update(ENVIRONMENT)
    with suppress(ImportError):
        import mlflow  # noqa: F401


@dataclass(frozen=True)
class _StoredRun:
    """A run as it is stored in MLflow."""

    name: str
    key: str
    tags: Mapping[str, str]
    params: Mapping[str, object]
    points: Sequence[Point]
    artifacts: Sequence[Path]
    status: str
    rows: Sequence[str] = ()  # a parent's: content of its rows

    def content(self) -> str:
        """16 hex digits of all fields and of the bytes of the artifacts."""
        points = [(name, step, value) for name, value, _, step in self.points]
        values = [self.name, self.key, self.tags, self.params, points, self.status, self.rows]
        digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())
        for place, file in sorted(_files(self.name, self.artifacts).items()):
            with file.open("rb") as stream:
                digest.update(place.encode() + hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:16]


class _AblationTable:
    """An ablation's experiment, while it is written (under the lock)."""

    def __init__(self, client: MlflowClient, home: Path, ablation: str) -> None:
        self.client, self.ablation = client, ablation
        experiment = client.get_experiment_by_name(ablation)
        if experiment is None:
            location = f"{(home / 'artifacts').as_uri()}/{quote(ablation)}"
            kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI's other kind is chatbots
            self.experiment = client.create_experiment(ablation, artifact_location=location, tags=kind)
        else:
            self.experiment = experiment.experiment_id
            if experiment.lifecycle_stage == "deleted":  # in the UI, where its name stays taken
                client.restore_experiment(self.experiment)
        self.logged = self._active_runs()

    def log_row(self, new: _StoredRun) -> str:
        """Id of the run of this key and content: the existing one, or a new one that replaces it."""
        content, known = new.content(), self._known(new.key)
        same = [old.info.run_id for old in known if old.data.tags.get(CONTENT) == content]
        run_id = same[0] if same else self._create(new, content)
        for old in known:
            if old.info.run_id != run_id:
                self._trash(old)
        return run_id

    def log_parent(self, new: _StoredRun, rows: Sequence[str]) -> str:
        """Id of the parent of these runs: the latest if nothing changed, else a new one."""
        content, known = new.content(), self._known(self.ablation)
        latest = max(known, key=lambda run: run.info.start_time, default=None)
        if latest is not None and latest.data.tags.get(CONTENT) == content:
            parent = latest.info.run_id
        else:
            parent = self._create(new, content)
        for row, child in enumerate(rows):
            self._place(child, parent, row)
        in_use = {run.data.tags.get(PARENT) for run in self.logged.values()}
        for old in known:
            if old.info.run_id not in {parent, *in_use}:
                self._trash(old)
        return parent

    def save_view(self, runs: Sequence[RunRecord], parent: str) -> None:
        """Save the view `VIEW` of the run list: the table's runs, with a column for each parameter and score."""
        params = dict.fromkeys(name for run in runs for name in run.params)
        scores = dict.fromkeys(name for run in runs for name in run.scores)
        columns = [f"params.`{name}`" for name in params] + [f"metrics.`{name}`" for name in scores]
        view = {
            "selectedColumns": columns,
            "searchFilter": f"tags.`{PARENT}` = '{parent}'",
            "orderByKey": f"tags.`{ROW}`",
            "orderByAsc": True,
        }
        self.client.set_experiment_tag(self.experiment, f"mlflow.sharedViewState.{VIEW}", json.dumps(view))

    def _create(self, new: _StoredRun, content: str) -> str:
        from mlflow.entities import Metric, Param

        client = self.client
        tags = {**new.tags, "ablation": self.ablation, KEY: new.key}
        run_id = client.create_run(self.experiment, tags=tags, run_name=new.name).info.run_id
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in new.params.items()])
        for start in range(0, len(new.points), BATCH):
            client.log_batch(run_id, metrics=[Metric(*point) for point in new.points[start : start + BATCH]])
        for path in new.artifacts:
            if path.is_dir():
                client.log_artifacts(run_id, str(path), artifact_path=path.name)
            else:
                client.log_artifact(run_id, str(path))
        client.set_tag(run_id, CONTENT, content)  # last: so that what a killed call leaves is not taken for complete
        client.set_terminated(run_id, new.status)
        self.logged[run_id] = client.get_run(run_id)
        return run_id

    def _place(self, child: str, parent: str, row: int) -> None:
        from mlflow.entities import RunTag

        place = {PARENT: parent, ROW: f"{row:04d}"}
        tags = self.logged[child].data.tags
        if any(tags.get(key) != value for key, value in place.items()):
            self.client.log_batch(child, tags=[RunTag(key, value) for key, value in place.items()])
            tags.update(place)

    def _known(self, key: str) -> list[Run]:
        return [run for run in self.logged.values() if run.data.tags.get(KEY) == key]

    def _trash(self, run: Run) -> None:
        self.client.delete_run(run.info.run_id)
        del self.logged[run.info.run_id]

    def _active_runs(self) -> dict[str, Run]:
        runs: dict[str, Run] = {}
        token = None
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            runs.update({run.info.run_id: run for run in page})
            if not (token := page.token):
                return runs


def _row(ablation: str, run: RunRecord) -> _StoredRun:
    key = f"{ablation}/{run.arm}/{run.seed}/{run.tags.get('signature', '')}"
    points = _points(run.scores) + curve_points(run.curves)
    return _StoredRun(run.name, key, run.tags, run.params, points, run.artifacts, run.status)


def _points(scores: Mapping[str, float]) -> list[Point]:
    now = int(time.time() * 1000)
    # an arm crossed with a value is called arm@value, a name that MLflow refuses
    return [(name.replace("@", "/"), float(value), now, 0) for name, value in scores.items()]


def curve_points(path: Path | None) -> list[Point]:
    """The points of a metrics.jsonl. A step that occurs again (after a resume) replaces the earlier one."""
    if path is None:
        return []
    points: dict[tuple[str, int], float] = {}
    lines = path.read_text().split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            values = json.loads(line)
            step = int(values.pop("step"))
            points.update({(name, step): float(value) for name, value in values.items() if value is not None})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):  # no newline: a kill cut it off
                break
            wanted = '{"step": 10, "loss": 0.1, …}'
            raise ValueError(f"{path}, line {number} is not like {wanted}: {line[:80]!r}") from error
    stamp = int(path.stat().st_mtime * 1000)
    return [(f"train/{name}", value, stamp, step) for (name, step), value in points.items()]


def _files(owner: str, artifacts: Sequence[Path]) -> dict[str, Path]:
    """Path among the run's artifacts -> file."""
    files: dict[str, Path] = {}
    for path in artifacts:
        if not path.exists():
            raise ValueError(f"{owner}: there is no artifact {path}")
        inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in inside:
            place = file.relative_to(path.parent).as_posix()
            if place in files:
                raise ValueError(f"{owner}: {files[place]} and {file} would both be the artifact {place}")
            files[place] = file
    return files


def _client(home: Path) -> MlflowClient:
    os.environ.update(ENVIRONMENT)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # migrations; also tracebacks of errors, which we raise
        logging.getLogger(name).setLevel(logging.CRITICAL)
    uri = f"sqlite:///{home}/mlflow.db"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)
