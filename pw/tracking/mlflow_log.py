"""The only door to MLflow: an ablation's table as one experiment, one parent run, a run per arm x seed.

MLflow is a view here. Config, curves, scores and table are files that exist without it, so `outputs/mlflow`
may be deleted at any time: the next `make ablation` logs it again.

    outputs/mlflow/mlflow.db                          sqlite; no server is needed to write it
    outputs/mlflow/artifacts/<ablation>/<run id>/     copies of the artifacts

What was logged is never edited. A run is known by its key (`ablation/arm/seed/signature`) and a digest of its
content: unchanged, it is left alone; changed, it is logged anew and the old one goes to MLflow's trash
(`mlflow gc` empties it). So it is with the parent. A run belongs to the latest table it is in: a new parent
takes over the runs it shares with older tables, and a parent left without runs goes to the trash. What a new
table no longer holds (an arm re-run with another signature, another scale) stays under the older parent.

MLflow stores absolute places. If the checkout was moved, the next call and `make mlflow` rewrite them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import sqlite3
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

HOST = "127.0.0.1"
LOCK_SECONDS = 120.0  # another process of ours is logging: it holds the lock for 10-20 s
BUSY_SECONDS = 10.0  # someone else holds the database (MLflow itself waits 20 s, for each statement)
BATCH = 1000  # MLflow's limit for one log_batch

_Point = tuple[str, float, int, int]  # name, value, time in ms, step: MLflow's Metric
_ANEW = "if {} is moved away, the next `make ablation` makes it anew from the results"

KEY, CONTENT, ROW = "pw.key", "pw.content", "pw.row"  # tags: who, a digest of what, 0003 of the table
PARENT = "mlflow.parentRunId"
VIEW = "table"  # the run list's saved view
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # otherwise the UI starts 8 more processes
}


class TrackingError(RuntimeError):
    """MLflow could not be written or read. The results are files of their own: nothing of them is lost."""


@dataclass(frozen=True)
class RunRecord:
    """What MLflow is told about one arm x seed."""

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
    home = _home(outputs)
    with _door(home):
        rows = [_row(ablation, run) for run in runs]
        contents = tuple(row.content() for row in rows)
        status = "FINISHED" if all(run.status == "FINISHED" for run in runs) else "FAILED"
        points = _points(summary)
        new = _Run(ablation, ablation, tags, {}, points, artifacts, status, contents)
        _prepare(home)
        latest = _latest(home).get(ablation)
        if latest and latest.content == new.content() and len(latest.rows) == len(rows):
            return latest.parent  # without importing MLflow, which takes 6 s
        table = _Table(_client(home), home, ablation)
        ids = [table.log_row(row) for row in reversed(rows)][::-1]  # reversed: the UI lists the newest first
        parent = table.log_parent(new, ids)
        table.save_view(runs, parent)
        return parent


def warm_up() -> None:
    """Import MLflow, which takes 6 s, with its telemetry off: for a thread, while something else takes its time."""
    os.environ.update(ENVIRONMENT)
    with suppress(ImportError):
        import mlflow  # noqa: F401


def page_urls(outputs: Path, port: int = 5000) -> dict[str, dict[str, str]]:
    """Ablation -> {"runs", "compare"}: addresses of its latest table, as a list and side by side."""
    pages = {}
    for name, table in _latest(_home(outputs)).items():
        rows = quote(json.dumps(table.rows, separators=(",", ":")), safe=",")
        ui = f"http://{HOST}:{port}/#"
        pages[name] = {
            "runs": f"{ui}/experiments/{table.experiment}/runs?viewStateShareKey={VIEW}",
            "compare": f"{ui}/compare-runs?runs={rows}&experiments={quote(json.dumps([table.experiment]))}",
        }
    return pages


def ui_command(outputs: Path, port: int) -> list[str]:
    """The command that serves the UI, to this machine only."""
    home = _home(outputs)
    options = {
        "--host": HOST,
        "--port": str(port),
        "--workers": "1",
        "--backend-store-uri": f"sqlite:///{home}/mlflow.db",
        "--registry-store-uri": f"sqlite:///{home}/mlflow.db",
        "--artifacts-destination": str(home / "artifacts"),
        "--uvicorn-opts": "--log-level warning",
    }
    return [sys.executable, "-m", "mlflow", "server", *(word for pair in options.items() for word in pair)]


@dataclass(frozen=True)
class _Run:
    """A run as it is to be stored."""

    name: str
    key: str
    tags: Mapping[str, str]
    params: Mapping[str, object]
    points: Sequence[_Point]
    artifacts: Sequence[Path]
    status: str
    rows: Sequence[str] = ()  # a parent's: content of its rows

    def content(self) -> str:
        """16 hex digits of everything above; files count by their bytes."""
        points = [(name, step, value) for name, value, _, step in self.points]
        values = [self.name, self.key, self.tags, self.params, points, self.status, self.rows]
        digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())
        for place, file in sorted(_files(self.name, self.artifacts).items()):
            with file.open("rb") as stream:
                digest.update(place.encode() + hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:16]


class _Table:
    """One ablation's experiment, while it is written (behind the door)."""

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

    def log_row(self, new: _Run) -> str:
        """Id of the run of this key and content: the one there is, or a new one that replaces it."""
        content, known = new.content(), self._known(new.key)
        same = [old.info.run_id for old in known if old.data.tags.get(CONTENT) == content]
        run_id = same[0] if same else self._create(new, content)
        for old in known:
            if old.info.run_id != run_id:
                self._trash(old)
        return run_id

    def log_parent(self, new: _Run, rows: Sequence[str]) -> str:
        """Id of the parent of these runs: the latest one if nothing changed, or a new one."""
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
        """Make VIEW of the run list: the table's runs only, a column for each parameter and score."""
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

    def _create(self, new: _Run, content: str) -> str:
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
        client.set_tag(run_id, CONTENT, content)  # last: what a killed call leaves is not taken for whole
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
        found: dict[str, Run] = {}
        token = None
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            found.update({run.info.run_id: run for run in page})
            if not (token := page.token):
                return found


def _row(ablation: str, run: RunRecord) -> _Run:
    key = f"{ablation}/{run.arm}/{run.seed}/{run.tags.get('signature', '')}"
    points = _points(run.scores) + _curves(run.curves)
    return _Run(run.name, key, run.tags, run.params, points, run.artifacts, run.status)


def _points(scores: Mapping[str, float]) -> list[_Point]:
    now = int(time.time() * 1000)
    # an arm crossed with a value is called arm@value, a name that MLflow refuses
    return [(name.replace("@", "/"), float(value), now, 0) for name, value in scores.items()]


def _curves(path: Path | None) -> list[_Point]:
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
    """Place among the run's artifacts -> file."""
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


def _home(outputs: Path) -> Path:
    return outputs.resolve() / "mlflow"


def _client(home: Path) -> MlflowClient:
    os.environ.update(ENVIRONMENT)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # migrations; also tracebacks of errors, which we raise
        logging.getLogger(name).setLevel(logging.CRITICAL)
    uri = f"sqlite:///{home}/mlflow.db"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _door(home: Path) -> Generator[None]:
    """One process of ours at a time (two that open a new database break it); failures as TrackingError."""
    from filelock import FileLock, Timeout

    try:
        home.mkdir(parents=True, exist_ok=True)
        with _sqlite_errors(home), FileLock(home / "mlflow.db.lock", timeout=LOCK_SECONDS):
            yield
    except Timeout as error:
        raise TrackingError(f"another process has been logging to {home} for {LOCK_SECONDS:g} s") from error
    except (TrackingError, ValueError):
        raise
    except Exception as error:
        theirs = type(error).__module__.startswith(("mlflow", "sqlalchemy", "alembic"))
        if theirs or isinstance(error, OSError | ImportError):
            reason = str(error).partition("\n")[0]
            raise TrackingError(f"MLflow could not log to {home}: {reason}; {_ANEW.format(home)}") from error
        raise


@contextmanager
def _sqlite_errors(home: Path) -> Generator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        advice = "is another program using it?" if "locked" in str(error) else _ANEW.format(home)
        raise TrackingError(f"{home / 'mlflow.db'}: {error}; {advice}") from error


@dataclass(frozen=True)
class _Latest:
    """An ablation's latest table as it is stored."""

    experiment: str
    parent: str
    content: str
    rows: list[str]  # ids of its runs, in its order


def _latest(home: Path) -> dict[str, _Latest]:
    """Ablation -> its latest table, read from the database itself: importing MLflow takes 6 s."""
    database = home / "mlflow.db"
    if not database.exists():
        return {}
    with (
        _sqlite_errors(home),
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
            name: _Latest(*parent, [run for (run,) in db.execute(rows, (PARENT, parent[1], ROW))])
            for name, parent in newest.items()
        }


def _has_tables(db: sqlite3.Connection) -> bool:
    return bool(db.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchall())


def _prepare(home: Path) -> None:
    """Turn on WAL (readers do not block), follow a moved checkout; fail early if locked or broken."""
    with closing(sqlite3.connect(home / "mlflow.db", timeout=BUSY_SECONDS, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("BEGIN IMMEDIATE")
        if _has_tables(db):
            here = f"{(home / 'artifacts').as_uri()}/"
            stored = db.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall()
            for experiment, location in stored:
                root, ours, _ = (location or "").rpartition("/mlflow/artifacts/")
                there = root + ours
                if ours and there != here:
                    moved = "SET {0} = ? || substr({0}, ?) WHERE experiment_id = ? AND substr({0}, 1, ?) = ?"
                    values = (here, len(there) + 1, experiment, len(there), there)
                    db.execute("UPDATE experiments " + moved.format("artifact_location"), values)
                    db.execute("UPDATE runs " + moved.format("artifact_uri"), values)
        db.execute("COMMIT")


def _options(arguments: Sequence[str]) -> tuple[int, Path]:
    options = {"port": "5000", "outputs": "outputs"}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in options:
            raise ValueError(f"unknown option {argument!r}; there are port=5000 and outputs=outputs")
        options[key] = value
    if not options["port"].isdecimal() or not 1024 <= int(options["port"]) <= 65535:
        raise ValueError(f"port={options['port']}: must be a number from 1024 to 65535")
    return int(options["port"]), Path(options["outputs"])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        with suppress(OSError):
            probe.bind((HOST, port))
            return True
    return False


def _check_port(port: int) -> None:
    if not _is_free(port):
        free = next((other for other in range(port + 1, min(port + 100, 65536)) if _is_free(other)), None)
        advice = f"; port={free} is free" if free else ""
        raise ValueError(f"port {port} is in use (perhaps by an MLflow UI already open?){advice}")


def main(arguments: Sequence[str]) -> None:
    """`pw mlflow [port=5000] [outputs=outputs]`: become the UI's server, until Ctrl-C."""
    try:
        port, outputs = _options(arguments)
        home = _home(outputs)
        if not (home / "mlflow.db").exists():
            raise ValueError(f"no MLflow database in {home} yet: run `make ablation name=ansc` first")
        _check_port(port)
        with _door(home):
            _prepare(home)
        pages = page_urls(outputs, port)
    except (ValueError, TrackingError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"MLflow on http://{HOST}:{port} in about 20 seconds; Ctrl-C stops it")
    for ablation, urls in pages.items():
        print(f"\n{ablation}, latest table")
        print("".join(f"  {page:<8} {url}\n" for page, url in urls.items()), end="")
    sys.stdout.flush()
    command = ui_command(outputs, port)
    os.execve(command[0], command, {**os.environ, **ENVIRONMENT, "PYTHONWARNINGS": "ignore"})
