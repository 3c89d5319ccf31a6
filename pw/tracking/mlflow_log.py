"""Log an ablation to MLflow: an experiment with a parent run, and a child run for each arm and seed.

    outputs/mlflow/mlflow.db                          sqlite; no server is needed to write it
    outputs/mlflow/artifacts/<ablation>/<run id>/     copies of the artifacts

MLflow is only a view. Configurations, curves, scores and tables are separate files, so `outputs/mlflow` may be deleted
at any time: the next `pw ablation` logs it again. The database is read and repaired without MLflow where possible,
because its import takes 6 s. MLflow stores absolute paths: if the checkout was moved, `prepare_database` rewrites them.

A logged run is never edited. It is identified by a key (`ablation/arm/seed/signature`) and a digest of its content. If
the content changed, a new run is logged, and the old one goes to MLflow's trash (`mlflow gc` empties it). The same
holds for parents. A run belongs to the latest table that has it: a new parent becomes the parent of the runs that it
shares with older tables, and a parent without runs goes to the trash. Runs that are not in the new table (an arm with
another signature, another scale) keep the older parent.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from pw.io.files import parse_json, sha256
from pw.parallel.signals import hold_stop_signals

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCK_SECONDS = 120.0  # wait for another `pw` process that logs; it holds the lock for 10-20 s
BUSY_SECONDS = 10.0  # wait for another program that locks the database (MLflow waits 20 s, for each statement)
# tags: key of the run, digest of its content, table row as 0003, when it was logged (ns, as 20 digits)
KEY, CONTENT, ROW, LOGGED = "pw.key", "pw.content", "pw.row", "pw.logged"
PARENT = "mlflow.parentRunId"
VIEW = "table"  # the saved view of the run list
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # otherwise the UI starts 8 more processes
}
# a server that is gone is known in seconds, by MLflow's own choice in 20 minutes; the environment overrides it
SERVER = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
BATCH = 1000  # MLflow's limit for one log_batch
ALL = 50_000  # MLflow's limit for one search

Point = tuple[str, float, int, int]  # name, value, time in ms, step: MLflow's Metric


class TrackingError(RuntimeError):
    """MLflow could not be written or read. No result is lost, because the results are in separate files."""


@dataclass(frozen=True)
class RunRecord:
    """The logged data of one arm and seed.

    origin        data, scale and code in a few words: another table may have the same arm and seed
    began, ended  Unix time of its work; equal values mean that it is not known
    """

    arm: str
    seed: int
    params: dict[str, object]  # only the varied keys, scale and seed
    curves: Mapping[Path, str]  # a file with lines like {"step": 10, "loss": 0.1, …} -> prefix of its names
    scores: dict[str, float]
    artifacts: list[Path]  # files or folders
    tags: dict[str, str]  # signature, git commit, …; "signature" is part of the key
    status: Literal["FINISHED", "FAILED", "KILLED"]
    origin: str = ""
    began: float = 0.0
    ended: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.arm}/seed={self.seed}" + (f" [{self.origin}]" if self.origin else "")


def log_ablation(
    outputs: Path,
    ablation: str,
    runs: Sequence[RunRecord],
    *,
    artifacts: Sequence[Path],
    summary: Mapping[str, float],
    tags: Mapping[str, str],
    origin: str = "",
    uri: str | None = None,
) -> str:
    """Log an ablation's table (runs in the table's order) and return the id of its parent run.

    origin: that of the table, see `RunRecord`. uri: of a server; None: the database in `outputs/mlflow`.

    Artifacts, summary and tags are for the parent; a tag `mlflow.note.content` (markdown) is its description.

    Raises:
        ValueError: an arm x seed or artifact given twice, an artifact missing, a broken line of curves.
        TrackingError: the database is locked, broken or another MLflow version's; the server is gone; the disk is full.
    """
    names = [run.name for run in runs]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{ablation}: more than one run is called {', '.join(duplicates)}")
    home = mlflow_folder(outputs) if uri is None else None
    with named_errors(uri, "start it, or set tracking.uri=null") if home is None else locked_database(home):
        rows = [_row(ablation, run) for run in runs]
        contents = tuple(row.content() for row in rows)
        status = "FINISHED" if all(run.status == "FINISHED" for run in runs) else "FAILED"
        name = f"{ablation} [{origin}]" if origin else ablation
        times = (min((run.began for run in runs), default=0.0), max((run.ended for run in runs), default=0.0))
        new = _StoredRun(name, ablation, tags, {}, _points(summary), artifacts, status, contents, times)
        if home is not None:
            prepare_database(home)
            latest = latest_tables(home).get(ablation)
            if latest and latest.content == new.content() and len(latest.rows) == len(rows):
                return latest.parent  # without importing MLflow, which takes 6 s
        table = _AblationTable(connect(uri or database_url(mlflow_folder(outputs))), home, ablation)
        ids = [table.log_row(row) for row in reversed(rows)][::-1]  # reversed: the UI lists the newest first
        parent = table.log_parent(new, ids)
        table.save_view(runs, parent)
        return parent


def warm_up() -> None:
    """Import MLflow, which takes 6 s, with telemetry off; to be called in a thread, in parallel to other work."""
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
    rows: Sequence[str] = ()  # of a parent: the content digests of its runs
    times: tuple[float, float] = (0.0, 0.0)  # Unix time of its beginning and end

    def content(self) -> str:
        """16 hex digits of all fields and of the bytes of the artifacts."""
        points = [(name, step, value) for name, value, _, step in self.points]
        values = [self.name, self.key, self.tags, self.params, points, self.status, self.rows]
        digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())
        for name, file in sorted(_files(self.name, self.artifacts).items()):
            digest.update(name.encode() + bytes.fromhex(sha256(file)))
        return digest.hexdigest()[:16]


class _AblationTable:
    """Writes an ablation's experiment, under the lock."""

    def __init__(self, client: MlflowClient, home: Path | None, ablation: str) -> None:
        self.client, self.ablation = client, ablation
        self.experiment = experiment_id(client, ablation, home)
        self.logged = {run.info.run_id: run for run in client.search_runs([self.experiment], max_results=ALL)}

    def log_row(self, new: _StoredRun) -> str:
        """Id of the run of this key and content: the existing one, or a new one that replaces it."""
        run_id, duplicates = self._find_or_create(new)
        for duplicate in duplicates:
            self._trash(duplicate)
        return run_id

    def log_parent(self, new: _StoredRun, rows: Sequence[str]) -> str:
        """Id of the parent of these runs: the latest if nothing changed, else a new one."""
        parent, duplicates = self._find_or_create(new)
        for row, child in enumerate(rows):
            tags = self.logged[child].data.tags
            for key, value in ((PARENT, parent), (ROW, f"{row:04d}")):
                if tags.get(key) != value:
                    self.client.set_tag(child, key, value)
                    tags[key] = value
        in_use = {run.data.tags.get(PARENT) for run in self.logged.values()}
        for duplicate in duplicates:
            if duplicate not in in_use:
                self._trash(duplicate)
        return parent

    def save_view(self, runs: Sequence[RunRecord], parent: str) -> None:
        """Save the view `VIEW` of the run list: the table's runs, with columns for parameters, scores and commit."""
        params = dict.fromkeys(name for run in runs for name in run.params)
        params = [name for name in params if name == "seed" or len({str(run.params.get(name)) for run in runs}) > 1]
        scores = dict.fromkeys(name for run in runs for name in run.scores)
        columns = [f"params.`{name}`" for name in params] + [f"metrics.`{name}`" for name in scores]
        columns.append("tags.`git_commit`")
        view = {
            "selectedColumns": columns,
            "searchFilter": f"tags.`{PARENT}` = '{parent}'",
            "orderByKey": f"tags.`{ROW}`",
            "orderByAsc": True,
        }
        self.client.set_experiment_tag(self.experiment, f"mlflow.sharedViewState.{VIEW}", json.dumps(view))

    def _find_or_create(self, new: _StoredRun) -> tuple[str, list[str]]:
        """(id of the latest run with this key if its content is the same, else of a new run; ids of the other runs)."""
        content = new.content()
        candidates = [run for run in self.logged.values() if run.data.tags.get(KEY) == new.key]
        latest = max(candidates, key=lambda run: run.data.tags.get(LOGGED, ""), default=None)
        is_same = latest is not None and latest.data.tags.get(CONTENT) == content
        run_id = latest.info.run_id if latest is not None and is_same else self._create(new, content)
        return run_id, [run.info.run_id for run in candidates if run.info.run_id != run_id]

    def _create(self, new: _StoredRun, content: str) -> str:
        from mlflow.entities import Metric, Param

        client = self.client
        tags = {**new.tags, "ablation": self.ablation, KEY: new.key, LOGGED: f"{time.time_ns():020d}"}
        began, ended = (int(1000 * moment) for moment in new.times) if new.times[0] < new.times[1] else (None, None)
        with hold_stop_signals():  # else the run would stay RUNNING
            run_id = client.create_run(self.experiment, began, tags, new.name).info.run_id
            try:
                client.log_batch(run_id, params=[Param(key, str(value)) for key, value in new.params.items()])
                for start in range(0, len(new.points), BATCH):
                    client.log_batch(run_id, metrics=[Metric(*point) for point in new.points[start : start + BATCH]])
                for path in new.artifacts:
                    client.log_artifact(run_id, str(path))
                client.set_tag(run_id, CONTENT, content)  # last, so that a run without it is incomplete
                client.set_terminated(run_id, new.status, ended)
            except Exception:  # e.g. a full disk
                with suppress(Exception):
                    client.set_terminated(run_id, "KILLED")
                    client.delete_run(run_id)
                raise
        self.logged[run_id] = client.get_run(run_id)
        return run_id

    def _trash(self, run_id: str) -> None:
        self.client.delete_run(run_id)
        del self.logged[run_id]


def run_key(ablation: str, arm: str, seed: int, signature: str) -> str:
    """The key of a run of an ablation; `signature` is that of its clips."""
    return f"{ablation}/{arm}/{seed}/{signature}"


def _row(ablation: str, run: RunRecord) -> _StoredRun:
    key = run_key(ablation, run.arm, run.seed, run.tags.get("signature", ""))
    points = _points(run.scores)
    for path, prefix in run.curves.items():
        points += curve_points(path, prefix)
    times = (run.began, run.ended)
    return _StoredRun(run.name, key, run.tags, run.params, points, run.artifacts, run.status, times=times)


def _points(scores: Mapping[str, float]) -> list[Point]:
    now = int(time.time() * 1000)
    # MLflow rejects @, which is in the name of an arm crossed with a value, arm@value
    return [(name.replace("@", "/"), float(value), now, 0) for name, value in scores.items()]


def curve_points(path: Path, prefix: str) -> list[Point]:
    """The points of a file of curves. If a step occurs twice (after a resume), the later line counts."""
    points: dict[tuple[str, int], float] = {}
    lines = path.read_text(errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            values = parse_json(line)
            step = int(values.pop("step"))
            points.update({(name, step): float(value) for name, value in values.items() if value is not None})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):  # no newline: incomplete because the process was killed
                break
            example = '{"step": 10, "loss": 0.1, …}'
            raise ValueError(f"{path}, line {number} is not like {example}: {line[:80]!r}") from error
    stamp = int(path.stat().st_mtime * 1000)
    return [(f"{prefix}{name}", value, stamp, step) for (name, step), value in points.items()]


def _files(owner: str, artifacts: Sequence[Path]) -> dict[str, Path]:
    """Path in the run's artifacts -> file."""
    files: dict[str, Path] = {}
    for path in artifacts:
        if not path.exists():
            raise ValueError(f"{owner}: there is no artifact {path}")
        members = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in members:
            name = file.relative_to(path.parent).as_posix()
            if name in files:
                raise ValueError(f"{owner}: {files[name]} and {file} would both be the artifact {name}")
            files[name] = file
    return files


def connect(uri: str) -> MlflowClient:
    """A client of a server or database."""
    os.environ.update(ENVIRONMENT | {key: os.environ.get(key, value) for key, value in SERVER.items()})
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # hides migrations, and tracebacks of errors that are raised here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: MlflowClient, name: str, home: Path | None) -> str:
    """The id of an experiment, made or restored if need be. home: where its artifacts go; None: the server decides."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = None if home is None else f"{(home / 'artifacts').as_uri()}/{quote(name)}"
        kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI's other kind is chatbots
        return client.create_experiment(name, artifact_location=location, tags=kind)
    if experiment.lifecycle_stage == "deleted":  # deleted in the UI; its name stays reserved
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id


# ---- the database, without MLflow


def mlflow_folder(outputs: Path) -> Path:
    """The folder of MLflow's database and artifacts."""
    return outputs.resolve() / "mlflow"


def database_url(home: Path) -> str:
    """SQLAlchemy's URL of the database; the folder may have any name."""
    from sqlalchemy import URL

    # with the driver: of a plain sqlite:/// MLflow makes the parent folder, by its quoted name
    return URL.create("sqlite+pysqlite", database=str(home / "mlflow.db")).render_as_string()


@contextmanager
def locked_database(home: Path) -> Generator[None]:
    """Lock the database, because two processes that create it break it. Errors are raised as TrackingError."""
    from filelock import FileLock, Timeout

    remedy = f"if {home} is moved away, the next `make ablation` makes it again from the results"
    with named_errors(home, remedy):
        try:
            home.mkdir(parents=True, exist_ok=True)
            with FileLock(home / "mlflow.db.lock", timeout=LOCK_SECONDS):
                yield
        except Timeout as error:
            raise TrackingError(f"another process has been logging to {home} for {LOCK_SECONDS:g} s") from error
        except sqlite3.DatabaseError as error:
            advice = "is another program using it?" if "locked" in str(error) else remedy
            raise TrackingError(f"{home / 'mlflow.db'}: {error}; {advice}") from error


@contextmanager
def named_errors(where: object, remedy: str) -> Generator[None]:
    """Inside, errors of MLflow and of files are raised as TrackingError."""
    try:
        yield
    except Exception as error:
        is_mlflows = type(error).__module__.startswith(("mlflow", "sqlalchemy", "alembic", "requests"))
        if is_mlflows or isinstance(error, OSError | ImportError):
            reason = str(error).partition("\n")[0]
            raise TrackingError(f"MLflow could not log to {where}: {reason}; {remedy}") from error
        raise


@dataclass(frozen=True)
class LatestTable:
    """An ablation's latest table: ids of its experiment, of its parent run, and of its runs in table order."""

    experiment: str
    parent: str
    content: str  # digest of the parent run
    rows: list[str]


def latest_tables(home: Path) -> dict[str, LatestTable]:
    """Ablation -> its latest table. To be called in `locked_database`, which converts the errors."""
    database = home / "mlflow.db"
    if not database.exists():
        return {}
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as db:
        if not _has_tables(db):
            return {}
        parents = db.execute(
            "SELECT e.name, e.experiment_id, r.run_uuid, c.value"
            " FROM experiments e JOIN runs r USING (experiment_id)"
            " JOIN tags k ON k.run_uuid = r.run_uuid AND k.key = ? AND k.value = e.name"
            " JOIN tags c ON c.run_uuid = r.run_uuid AND c.key = ?"
            " LEFT JOIN tags l ON l.run_uuid = r.run_uuid AND l.key = ?"
            " WHERE e.lifecycle_stage = 'active' AND r.lifecycle_stage = 'active'"
            " ORDER BY e.name, l.value, r.start_time",
            (KEY, CONTENT, LOGGED),
        ).fetchall()
        rows = (
            "SELECT r.run_uuid FROM runs r"
            " JOIN tags p ON p.run_uuid = r.run_uuid AND p.key = ? AND p.value = ?"
            " JOIN tags o ON o.run_uuid = r.run_uuid AND o.key = ?"
            " WHERE r.lifecycle_stage = 'active' ORDER BY o.value"
        )
        tables = {}  # the newest comes last
        for name, experiment, parent, content in parents:
            ids = [run for (run,) in db.execute(rows, (PARENT, parent, ROW))]
            tables[name] = LatestTable(str(experiment), parent, content, ids)
        return tables


def newest_runs(home: Path) -> tuple[str, bool, bool] | None:
    """(id of the experiment with the newest run, whether it has running ones, whether it has a table), if there is one.

    To be called in `locked_database`, which converts the errors.
    """
    with closing(sqlite3.connect(f"{(home / 'mlflow.db').as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as db:
        if not _has_tables(db):
            return None
        found = db.execute(
            "SELECT r.experiment_id, EXISTS(SELECT 1 FROM runs o WHERE o.experiment_id = r.experiment_id"
            " AND o.status = 'RUNNING' AND o.lifecycle_stage = 'active'), EXISTS(SELECT 1 FROM experiment_tags t"
            " WHERE t.experiment_id = r.experiment_id AND t.key = ?)"
            " FROM runs r JOIN experiments e USING (experiment_id)"
            " WHERE r.lifecycle_stage = 'active' AND e.lifecycle_stage = 'active'"
            " ORDER BY r.start_time DESC LIMIT 1",
            (f"mlflow.sharedViewState.{VIEW}",),
        ).fetchone()
    return found and (str(found[0]), bool(found[1]), bool(found[2]))


def _has_tables(db: sqlite3.Connection) -> bool:
    return bool(db.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchall())


def prepare_database(home: Path) -> None:
    """Turn on WAL (readers do not block) and rewrite paths of a moved checkout; fails if it is locked or broken."""

    def rewrite_location(location: str | None) -> str | None:
        _, separator, relative = (location or "").rpartition("/mlflow/artifacts/")
        return f"{(home / 'artifacts').as_uri()}/{relative}" if separator else location

    with closing(sqlite3.connect(home / "mlflow.db", timeout=BUSY_SECONDS, isolation_level=None)) as db:
        db.create_function("moved", 1, rewrite_location)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("BEGIN IMMEDIATE")
        if _has_tables(db):
            for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                db.execute(f"UPDATE {table} SET {column} = moved({column}) WHERE {column} != moved({column})")
        db.execute("COMMIT")
