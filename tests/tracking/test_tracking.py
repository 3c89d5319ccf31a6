"""MLflow shows exactly the table: no run twice, no parameter too many, and nothing but 127.0.0.1 listens."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest

from pw.parallel.signals import Stopped, interruptible
from pw.tracking import mlflow_log
from pw.tracking.mlflow_log import (
    RunRecord,
    TrackingError,
    curve_points,
    database_url,
    log_ablation,
    mlflow_folder,
)
from pw.tracking.mlflow_ui import main, page_urls, ui_command

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ROOT = Path(__file__).parents[2]
Logged = tuple[Path, list[RunRecord], str]  # outputs, its rows, id of the parent run


def record(folder: Path, arm: str, seed: int, signature: str = "ab12cd34") -> RunRecord:
    folder = folder / arm / str(seed)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    curves = folder / "metrics.jsonl"
    points = [{"step": step, "loss": 1 / (step + 1), "grad_norm": 2.0} for step in range(3)]
    curves.write_text("".join(json.dumps(point) + "\n" for point in points))
    (folder / "config.yaml").write_text(f"seed: {seed}\n")
    (folder / "clips" / "0.mp4").write_bytes(b"clip")
    params: dict[str, object] = {"objective": "flow" if arm == "baseline" else "shortcut", "scale": "tiny"}
    return RunRecord(
        arm=arm,
        seed=seed,
        params={**params, "seed": seed},
        curves={curves: "train/"},
        scores={"mhd": 0.5 + seed, "loss": 7.0},
        artifacts=[folder / "config.yaml", folder / "clips"],
        tags={"signature": f"{signature}-{arm}-{seed}", "git_commit": "0123abc"},
        status="FINISHED",
    )


def log(outputs: Path, runs: Sequence[RunRecord], ablation: str = "ansc") -> str:
    table = outputs / "table.md"
    table.write_text("| arm | mhd |\n")
    return log_ablation(outputs, ablation, runs, artifacts=[table], summary={"claims_held": 1.0}, tags={"lock": "beef"})


def client(outputs: Path) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(database_url(mlflow_folder(outputs)))


def live_runs(outputs: Path, ablation: str = "ansc") -> dict[str, Run]:
    """Id -> run, of all that are not in the trash."""
    mlflow_client = client(outputs)
    experiment = mlflow_client.get_experiment_by_name(ablation)
    assert experiment is not None
    return {run.info.run_id: run for run in mlflow_client.search_runs([experiment.experiment_id])}


def children(outputs: Path, parent: str) -> set[str]:
    runs = live_runs(outputs)
    return {identity for identity, run in runs.items() if run.data.tags.get("mlflow.parentRunId") == parent}


def names(outputs: Path, parent: str) -> list[str | None]:
    """Names of the parent's runs in the order of the compare page."""
    runs = live_runs(outputs)
    url = unquote(page_urls(outputs)["ansc"]["compare"])
    run_ids = json.loads(url.partition("runs=")[2].partition("&")[0])
    assert set(run_ids) == children(outputs, parent)
    return [runs[identity].info.run_name for identity in run_ids]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    """A logged ablation; a new database takes MLflow 4-8 s. The name has a space, as a user's folder may."""
    outputs = tmp_path_factory.mktemp("tracking") / "my outputs"
    outputs.mkdir()
    runs = [record(outputs, arm, seed) for arm in ("baseline", "full") for seed in (0, 1)]
    return outputs, runs, log(outputs, runs)


@pytest.fixture
def logged(template: Logged, tmp_path: Path) -> Logged:
    """A copy of the template to change (so, as it happens, a moved checkout)."""
    outputs, runs, parent = template
    shutil.copytree(outputs, tmp_path / "outputs")
    return tmp_path / "outputs", runs, parent


def test_importing_the_log_does_not_import_mlflow() -> None:
    code = "import sys, pw.tracking.mlflow_log; sys.exit('mlflow' in sys.modules or 'filelock' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_run_has_the_given_parameters_and_no_other(template: Logged) -> None:
    outputs, runs, parent = template
    runs_by_name = {run.info.run_name: run for run in live_runs(outputs).values()}
    assert runs_by_name.pop("ansc").info.run_id == parent
    assert len(runs_by_name) == 4
    for run in runs:
        data = runs_by_name[run.name].data
        assert data.params == {key: str(value) for key, value in run.params.items()}
        assert data.metrics == {
            "mhd": 0.5 + run.seed,
            "loss": 7.0,
            "train/loss": 1 / 3,
            "train/grad_norm": 2.0,
        }
        assert data.tags["ablation"] == "ansc"
        assert data.tags["mlflow.parentRunId"] == parent
        assert run.tags.items() <= data.tags.items()
        assert runs_by_name[run.name].info.status == "FINISHED"
    assert live_runs(outputs)[parent].data.params == {}
    assert live_runs(outputs)[parent].data.metrics == {"claims_held": 1}


def test_curves_and_artifacts_are_whole(template: Logged) -> None:
    outputs, _, parent = template
    mlflow_client = client(outputs)
    child = next(iter(children(outputs, parent)))
    history = mlflow_client.get_metric_history(child, "train/loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 1 / 2), (2, 1 / 3)]
    assert sorted(item.path for item in mlflow_client.list_artifacts(child)) == ["clips", "config.yaml"]
    assert Path(mlflow_client.download_artifacts(child, "clips/0.mp4")).read_bytes() == b"clip"
    assert [item.path for item in mlflow_client.list_artifacts(parent)] == ["table.md"]


def test_the_compare_page_has_the_rows_of_the_table_in_order(
    template: Logged,
) -> None:
    outputs, runs, parent = template
    assert names(outputs, parent) == [run.name for run in runs]
    pages = page_urls(outputs, port=5055)["ansc"]
    assert pages["compare"].startswith("http://127.0.0.1:5055/#/compare-runs?runs=")
    assert unquote(pages["compare"]).endswith('&experiments=["1"]')
    assert pages["runs"].startswith("http://127.0.0.1:5055/#/experiments/1/runs?")


def test_logging_the_same_again_changes_nothing(logged: Logged) -> None:
    outputs, runs, parent = logged
    before = {identity: (run.data.to_dictionary(), run.info.end_time) for identity, run in live_runs(outputs).items()}
    assert log(outputs, runs) == parent
    after = {identity: (run.data.to_dictionary(), run.info.end_time) for identity, run in live_runs(outputs).items()}
    assert after == before


def test_a_changed_run_replaces_its_old_self(logged: Logged) -> None:
    outputs, runs, parent = logged
    before = children(outputs, parent)
    again = log(outputs, [*runs[:3], replace(runs[3], scores={"mhd": 9.0})])
    after = children(outputs, again)
    assert names(outputs, again) == [run.name for run in runs]
    assert len(before & after) == 3
    assert [live_runs(outputs)[new].data.metrics["mhd"] for new in after - before] == [9.0]
    assert set(live_runs(outputs)) == {again, *after}  # the parent, too, is there once


def test_another_signature_is_another_run(logged: Logged) -> None:
    outputs, runs, parent = logged
    before = children(outputs, parent)
    again = log(outputs, [*runs[:2], *(record(outputs, "full", seed, "new") for seed in (0, 1))])
    assert again != parent
    assert names(outputs, again) == [run.name for run in runs]
    assert len(children(outputs, again) & before) == 2
    stale = children(outputs, parent)  # history: still there, under the older parent
    assert {live_runs(outputs)[identity].info.run_name for identity in stale} == {"full/seed=0", "full/seed=1"}


def test_a_larger_table_takes_over_the_runs_of_the_smaller(logged: Logged) -> None:
    outputs, runs, parent = logged
    before = children(outputs, parent)
    third = replace(record(outputs, "full", 2), status="FAILED")
    again = log(outputs, [*runs, third])
    assert before < children(outputs, again)
    assert parent not in live_runs(outputs)
    assert names(outputs, again) == [*(run.name for run in runs), "full/seed=2"]
    assert live_runs(outputs)[again].info.status == "FAILED"


def test_tables_on_other_data_stay_apart(logged: Logged) -> None:
    """The same arms and seeds, on other clips: each table has a parent, and names say which it is."""
    outputs, runs, parent = logged
    others = [record(outputs, run.arm, run.seed, "shards") for run in runs]
    others = [replace(run, origin="shards 01234567") for run in others]
    again = log_ablation(outputs, "ansc", others, artifacts=[], summary={}, tags={}, origin="shards 01234567")
    shown = live_runs(outputs)
    by_parent = {key: {shown[run].info.run_name for run in children(outputs, key)} for key in (parent, again)}
    assert by_parent == {parent: {run.name for run in runs}, again: {run.name for run in others}}
    assert not by_parent[parent] & by_parent[again]
    assert shown[again].info.run_name == "ansc [shards 01234567]"
    assert list(page_urls(outputs)) == ["ansc"]


def test_the_commit_is_a_column_of_the_list(template: Logged) -> None:
    experiment = client(template[0]).get_experiment_by_name("ansc")
    assert experiment is not None
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{mlflow_log.VIEW}"])
    assert "tags.`git_commit`" in view["selectedColumns"]


def test_what_a_killed_call_left_is_replaced(logged: Logged) -> None:
    outputs, runs, parent = logged
    mlflow_client = client(outputs)
    for child in children(outputs, parent):
        mlflow_client.delete_tag(child, mlflow_log.CONTENT)
    mlflow_client.delete_tag(parent, mlflow_log.CONTENT)
    assert page_urls(outputs) == {}
    again = log(outputs, runs)
    assert names(outputs, again) == [run.name for run in runs]
    assert set(live_runs(outputs)) == {again, *children(outputs, again)}


def test_an_experiment_deleted_in_the_ui_comes_back(logged: Logged) -> None:
    outputs, runs, _ = logged
    client(outputs).delete_experiment("1")
    assert page_urls(outputs) == {}
    again = log(outputs, runs)
    assert names(outputs, again) == [run.name for run in runs]


def test_a_moved_checkout_finds_its_artifacts(logged: Logged, tmp_path: Path) -> None:
    outputs, runs, parent = logged
    new_outputs = tmp_path / "elsewhere"
    outputs.rename(new_outputs)
    assert log(new_outputs, runs) == parent
    artifacts = (new_outputs / "mlflow" / "artifacts").as_uri()
    assert all((run.info.artifact_uri or "").startswith(artifacts) for run in live_runs(new_outputs).values())
    assert Path(client(new_outputs).download_artifacts(parent, "table.md")).read_text() == "| arm | mhd |\n"


@pytest.mark.parametrize(
    "name", ["q?x", "per%20cent", "%41", "a#b", "a b;c=d&e", "日本", 'it\'s "q"', "[a]{b}", "a:b@c"]
)
def test_outputs_may_have_any_name(logged: Logged, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    outputs = logged[0].rename(folder / name)
    parent = log(outputs, [record(outputs, "full", 5)])
    assert (outputs / "mlflow" / "artifacts" / "ansc" / parent / "artifacts" / "table.md").is_file()
    assert Path(client(outputs).download_artifacts(parent, "table.md")).read_text() == "| arm | mhd |\n"
    assert list(page_urls(outputs)) == ["ansc"]
    assert [path.name for path in folder.iterdir()] == [name]  # nothing beside it


TWO_PROCESSES = """
import os, sys
from pathlib import Path
from tests.tracking.test_tracking import log, mlflow_log, record
os.environ.update(mlflow_log.ENVIRONMENT)
import mlflow  # once for both: 6 s
outputs, children = Path(sys.argv[1]), []
for ablation in ("ansc", "aghs"):
    runs = [record(outputs / ablation, "full", 0)]
    child = os.fork()
    if not child:
        log(outputs, runs, ablation)
        os._exit(0)
    children.append(child)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


@pytest.mark.slow
def test_two_processes_may_make_the_database_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path)]
    both = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert (both.returncode, both.stdout, both.stderr) == (0, "", "")  # nor any chatter of MLflow's
    assert list(page_urls(tmp_path)) == ["aghs", "ansc"]
    with closing(sqlite3.connect(tmp_path / "mlflow" / "mlflow.db")) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_locked_database_is_reported_in_time(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, runs, _ = logged
    assert mlflow_log.BUSY_SECONDS <= 10
    monkeypatch.setattr(mlflow_log, "BUSY_SECONDS", 0.3)
    start = time.monotonic()
    with closing(sqlite3.connect(outputs / "mlflow" / "mlflow.db")) as db:
        db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TrackingError, match=r"mlflow\.db: database is locked"):
            log(outputs, runs)
    assert time.monotonic() - start < 15  # MLflow itself waits 20 s, for each statement


def test_a_broken_database_is_reported_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_text("not sqlite\n" * 100)
    with pytest.raises(TrackingError, match=r"not a database; if .* is moved away"):
        log(tmp_path, [record(tmp_path, "full", 0)])


def test_what_mlflow_refuses_is_a_tracking_error(logged: Logged) -> None:
    outputs, runs, _ = logged
    with pytest.raises(TrackingError, match="mhd%4"):
        log(outputs, [replace(runs[0], scores={"mhd%4": 1.0})])


def test_an_arm_crossed_with_a_value_has_a_name_that_mlflow_takes(logged: Logged) -> None:
    outputs = logged[0]
    run = replace(logged[1][0], arm="closed@3", scores={"psd": 1.0})
    parent = log_ablation(outputs, "crossed", [run], artifacts=[], summary={"closed@3.psd": 1.0}, tags={})
    assert client(outputs).get_run(parent).data.metrics == {"closed/3.psd": 1.0}


def test_mistakes_in_the_records_are_named(tmp_path: Path) -> None:
    run = record(tmp_path, "full", 0)
    with pytest.raises(ValueError, match="more than one run is called full/seed=0"):
        log(tmp_path, [run, run])
    with pytest.raises(ValueError, match=r"full/seed=0: there is no artifact .*nowhere\.mp4"):
        log(tmp_path, [replace(run, artifacts=[tmp_path / "nowhere.mp4"])])
    with pytest.raises(ValueError, match=r"both be the artifact config\.yaml"):
        log(tmp_path, [replace(run, artifacts=run.artifacts[:1] * 2)])
    (curves,) = run.curves
    curves.write_text('{"step": 1, "loss": 0.5}\n{"loss": 0.4}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        log(tmp_path, [run])


def test_a_resumed_curve_has_each_step_once_and_a_cut_off_line_is_left_out(tmp_path: Path) -> None:
    curves = tmp_path / "metrics.jsonl"
    curves.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 9}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    assert [(point[0], point[3], point[1]) for point in curve_points(curves, "train/")] == [
        ("train/loss", 1, 3.0),
        ("train/loss", 2, 2.0),
    ]


def test_the_ui_listens_on_this_machine_only(tmp_path: Path) -> None:
    command = ui_command(tmp_path, 5055)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5055"
    assert command[command.index("--backend-store-uri") + 1] == f"sqlite+pysqlite:///{tmp_path}/mlflow/mlflow.db"


def test_the_ui_replaces_the_process_and_prints_where_to_look(
    logged: Logged,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outputs, _, _ = logged
    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    main([f"port={port}", f"outputs={outputs}"])
    ((path, command, environment),) = calls
    assert (path, command) == (sys.executable, ui_command(outputs, port))
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == environment["DO_NOT_TRACK"] == "true"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    output = capsys.readouterr().out
    assert f"http://127.0.0.1:{port} " in output
    assert page_urls(outputs, port)["ansc"]["compare"] in output


def test_the_ui_says_what_is_wrong(template: Logged, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error_of(*words: str) -> str:
        assert main(words) == 2
        return capsys.readouterr().err

    assert re.search(
        r"no MLflow database in .* `make train` or `make ablation name=ansc` makes it", error_of(f"outputs={tmp_path}")
    )
    assert not list(tmp_path.iterdir())
    assert "prot=5000: there is no option prot; did you mean port? there are port, outputs" in error_of("prot=5000")
    assert "port=http: a whole number from 1024 to 65535" in error_of("port=http")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        message = error_of(f"port={port}", f"outputs={template[0]}")
        assert re.search(rf"port {port} is in use .*; port=\d+ is free", message)


def test_a_run_is_never_left_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal waits until the run is whole; a run that cannot be written, as on a full disk, is killed and trashed."""
    from mlflow import MlflowClient

    runs = [record(tmp_path, "baseline", 0), record(tmp_path, "full", 0)]
    log_artifact = MlflowClient.log_artifact

    def signalled(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        log_artifact(*arguments)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MlflowClient, "log_artifact", full)
    with pytest.raises(TrackingError, match="No space left"):
        log(tmp_path, runs)
    assert not live_runs(tmp_path)
    monkeypatch.setattr(MlflowClient, "log_artifact", signalled)
    with interruptible(), pytest.raises(Stopped):
        log(tmp_path, runs)
    assert [(run.info.run_name, run.info.status) for run in live_runs(tmp_path).values()] == [
        ("full/seed=0", "FINISHED")
    ]
    monkeypatch.setattr(MlflowClient, "log_artifact", log_artifact)
    log(tmp_path, runs)
    assert {run.info.run_name for run in live_runs(tmp_path).values()} == {"ansc", "baseline/seed=0", "full/seed=0"}
    with closing(sqlite3.connect(tmp_path / "mlflow" / "mlflow.db")) as database:
        assert not database.execute("SELECT name FROM runs WHERE status = 'RUNNING'").fetchall()
