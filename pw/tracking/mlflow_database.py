"""The MLflow database on disk: its folder, its lock, and what can be read and repaired without importing MLflow (6 s).

    outputs/mlflow/mlflow.db                          sqlite; no server is needed to write it
    outputs/mlflow/artifacts/<ablation>/<run id>/     copies of the artifacts

MLflow stores absolute paths. If the checkout was moved, `prepare_database` rewrites them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

LOCK_SECONDS = 120.0  # another process of ours is logging: it holds the lock for 10-20 s
BUSY_SECONDS = 10.0  # someone else holds the database (MLflow itself waits 20 s, for each statement)
KEY, CONTENT, ROW = "pw.key", "pw.content", "pw.row"  # tags: who, a digest of what, 0003 of the table
PARENT = "mlflow.parentRunId"
VIEW = "table"  # the run list's saved view
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # otherwise the UI starts 8 more processes
}
_REMEDY = "if {} is moved away, the next `make ablation` makes it anew from the results"


class TrackingError(RuntimeError):
    """MLflow could not be written or read. The results are files of their own, of which nothing is lost."""


def mlflow_folder(outputs: Path) -> Path:
    """Where MLflow's database and artifacts lie."""
    return outputs.resolve() / "mlflow"


@contextmanager
def locked_database(home: Path) -> Generator[None]:
    """Hold the database's lock: two processes that open a new one break it. Failures are raised as TrackingError."""
    from filelock import FileLock, Timeout

    try:
        home.mkdir(parents=True, exist_ok=True)
        with _database_errors(home), FileLock(home / "mlflow.db.lock", timeout=LOCK_SECONDS):
            yield
    except Timeout as error:
        raise TrackingError(f"another process has been logging to {home} for {LOCK_SECONDS:g} s") from error
    except (TrackingError, ValueError):
        raise
    except Exception as error:
        is_mlflows = type(error).__module__.startswith(("mlflow", "sqlalchemy", "alembic"))
        if is_mlflows or isinstance(error, OSError | ImportError):
            reason = str(error).partition("\n")[0]
            raise TrackingError(f"MLflow could not log to {home}: {reason}; {_REMEDY.format(home)}") from error
        raise


@contextmanager
def _database_errors(home: Path) -> Generator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        advice = "is another program using it?" if "locked" in str(error) else _REMEDY.format(home)
        raise TrackingError(f"{home / 'mlflow.db'}: {error}; {advice}") from error


@dataclass(frozen=True)
class LatestTable:
    """An ablation's latest table as it is stored.

    experiment  MLflow's id
    parent      id of its parent run
    content     digest of the parent run
    rows        ids of its runs, in its order
    """

    experiment: str
    parent: str
    content: str
    rows: list[str]


def latest_tables(home: Path) -> dict[str, LatestTable]:
    """Ablation -> its latest table, read from the database itself: importing MLflow takes 6 s."""
    database = home / "mlflow.db"
    if not database.exists():
        return {}
    with (
        _database_errors(home),
        closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as db,
    ):
        if not _has_tables(db):
            return {}
        parents = db.execute(
            "SELECT e.name, e.experiment_id, r.run_uuid, c.value"
            " FROM experiments e JOIN runs r USING (experiment_id)"
            " JOIN tags k ON k.run_uuid = r.run_uuid AND k.key = ? AND k.value = e.name"
            " JOIN tags c ON c.run_uuid = r.run_uuid AND c.key = ?"
            " WHERE e.lifecycle_stage = 'active' AND r.lifecycle_stage = 'active'"
            " ORDER BY e.name, r.start_time",
            (KEY, CONTENT),
        ).fetchall()
        newest = {name: (str(experiment), parent, content) for name, experiment, parent, content in parents}
        rows = (
            "SELECT r.run_uuid FROM runs r"
            " JOIN tags p ON p.run_uuid = r.run_uuid AND p.key = ? AND p.value = ?"
            " JOIN tags o ON o.run_uuid = r.run_uuid AND o.key = ?"
            " WHERE r.lifecycle_stage = 'active' ORDER BY o.value"
        )
        return {
            name: LatestTable(*parent, [run for (run,) in db.execute(rows, (PARENT, parent[1], ROW))])
            for name, parent in newest.items()
        }


def _has_tables(db: sqlite3.Connection) -> bool:
    return bool(db.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchall())


def prepare_database(home: Path) -> None:
    """Turn on WAL (readers do not block) and rewrite paths of a moved checkout. Fails early if locked or broken."""
    with closing(sqlite3.connect(home / "mlflow.db", timeout=BUSY_SECONDS, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("BEGIN IMMEDIATE")
        if _has_tables(db):
            here = f"{(home / 'artifacts').as_uri()}/"
            stored = db.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall()
            for experiment, location in stored:
                root, separator, _ = (location or "").rpartition("/mlflow/artifacts/")
                there = root + separator
                if separator and there != here:
                    moved = "SET {0} = ? || substr({0}, ?) WHERE experiment_id = ? AND substr({0}, 1, ?) = ?"
                    values = (here, len(there) + 1, experiment, len(there), there)
                    db.execute("UPDATE experiments " + moved.format("artifact_location"), values)
                    db.execute("UPDATE runs " + moved.format("artifact_uri"), values)
        db.execute("COMMIT")
