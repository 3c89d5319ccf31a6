"""Live tracking: each point once, in any store, and a store that is gone costs nothing."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers.logger import Logger

from pw.io.arguments import ConfigError
from pw.io.paths import ROOT
from pw.io.playable import write_playable
from pw.run.build import build
from pw.run.settings import Tracking
from pw.tracking.live import LiveTracking
from pw.tracking.loggers import Live, MLflow, TensorBoard, WandB
from pw.tracking.mlflow_log import connect, database_url, mlflow_folder
from pw.tracking.relay import Followed, Relay
from pw.train.preflight import preflight

CADENCE = {"every": 10, "held_out": 8, "held_out_every": 100, "samples": 1, "samples_every": 100}
Points = list[tuple[int, dict[str, float]]]


class Remembered(Logger):
    """A store in memory, which fails where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.points: Points = []
        self.videos: list[tuple[str, int]] = []
        self.fails_at: int | None = None
        self.status = ""

    name = property(lambda self: "remembered")
    version = property(lambda self: "0")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step == self.fails_at:
            raise ConnectionError("the store is gone")
        assert step is not None
        self.points.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def finalize(self, status: str) -> None:
        self.status = status


@dataclass(frozen=True)
class Memory(Tracking):
    store: Remembered

    def open(self, live: Live, outputs: Path, identity: str | None) -> tuple[Any, str]:
        return self.store, "the one"

    def add_video(self, logger: Any, file: Path, name: str, step: int) -> None:
        logger.videos.append((f"{name}/{file.name}", step))


@pytest.fixture
def training(tmp_path: Path) -> Live:
    folder = tmp_path / "train" / "ab12cd34"
    folder.mkdir(parents=True)
    return Live(folder, "ansc", "full/seed=0", {"objective": "shortcut", "seed": 0}, {"training": "ab12cd34"})


def write(live: Live, *steps: int, ending: str = "\n") -> None:
    """The lines of both files at some steps."""
    for name, column in (("metrics.jsonl", "loss_flow"), ("diagnostics.jsonl", "train/grad_norm")):
        with (live.folder / name).open("a") as file:
            file.write("\n".join(json.dumps({"step": step, column: 1 / step}) for step in steps) + ending)


def follow(live: Live, store: Remembered) -> Followed:
    return Followed(live, Memory(**CADENCE, store=store), live.folder.parents[1])


def test_a_step_is_passed_on_once_when_both_files_have_it_and_the_last_at_the_end(training: Live) -> None:
    store = Remembered()
    followed = follow(training, store)
    followed.forward()  # nothing is there yet
    write(training, 10, 20)
    followed.forward()
    followed.forward()
    assert store.points == [(10, {"train/loss_flow": 0.1, "train/grad_norm": 0.1})]
    followed.status = "success"
    followed.forward()
    assert [step for step, _ in store.points] == [10, 20]
    assert store.status == "success"


def test_only_what_is_new_is_read_again(training: Live) -> None:
    store = Remembered()
    followed = follow(training, store)
    write(training, *range(10, 1000, 10))
    followed.forward()
    write(training, 1000)
    followed.forward()
    size = (training.folder / "metrics.jsonl").stat().st_size
    assert 0 < size - followed.offsets["metrics.jsonl"] < 100  # the lines that were not passed on yet
    assert [step for step, _ in store.points] == [*range(10, 1000, 10)]


def test_a_line_that_is_cut_off_waits_for_its_end(training: Live) -> None:
    store = Remembered()
    followed = follow(training, store)
    write(training, 10)
    with (training.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "loss_')
    followed.status = "success"
    followed.forward()
    assert [step for step, _ in store.points] == [10]


def test_what_failed_is_passed_on_later_and_nothing_twice(training: Live) -> None:
    store = Remembered()
    followed = follow(training, store)
    write(training, 10, 20, 30, 40)
    store.fails_at = 20
    with pytest.raises(ConnectionError):
        followed.forward()
    store.fails_at = None
    followed.forward()
    assert [step for step, _ in store.points] == [10, 20, 30]


def test_a_resumed_training_goes_on_where_the_earlier_relay_ended(training: Live) -> None:
    store = Remembered()
    write(training, 10, 20)
    first = follow(training, store)
    first.status = "KILLED"
    first.forward()
    (training.folder / "metrics.jsonl").write_text('{"step": 10, "loss_flow": 0.1}\n')  # cut at its checkpoint
    write(training, 20, 30)
    second = follow(training, store)
    second.status = "success"
    second.forward()
    assert [step for step, _ in store.points] == [10, 20, 30]


def test_videos_are_passed_on_once_with_their_update(training: Live) -> None:
    store = Remembered()
    followed = follow(training, store)
    for name in ("real", "update-000100"):
        write_playable(training.folder / "samples" / name / "clip-0.mp4", np.zeros((3, 24, 24, 3), np.uint8))
    followed.forward()
    followed.forward()
    assert store.videos == [("samples/real/clip-0.mp4", 0), ("samples/update-000100/clip-0.mp4", 100)]


def test_scores_of_a_training_that_ended_earlier_go_to_its_run(training: Live) -> None:
    store = Remembered()
    write(training, 10, 20)
    first = follow(training, store)
    first.status = "success"
    first.forward()
    later = follow(training, store)
    later.status = "success"
    later.added.append((20, {"score/psd": 1.5}))
    later.forward()
    assert store.points[2:] == [(20, {"score/psd": 1.5})]


def test_a_training_is_passed_on_by_one_runner_at_a_time(training: Live) -> None:
    store = Remembered()
    write(training, 10, 20, 30)
    first, waiting = follow(training, store), follow(training, store)
    first.forward()
    waiting.status = "KILLED"  # it only waited
    waiting.forward()
    assert ([step for step, _ in store.points], store.status) == ([10, 20], "")
    first.status = "success"
    first.forward()
    write(training, 40)
    later = follow(training, store)
    later.status = "failed"
    later.forward()
    assert ([step for step, _ in store.points], store.status) == ([10, 20, 30, 40], "failed")


def test_a_training_that_was_stopped_after_its_last_line_ends_as_it_did(training: Live) -> None:
    store = Remembered()
    write(training, 10, 20)
    for status in ("KILLED", "success"):
        followed = follow(training, store)
        followed.status = status
        followed.forward()
        assert store.status == status
    assert [step for step, _ in store.points] == [10, 20]


def test_a_run_is_known_before_its_first_point_so_a_kill_leaves_no_second(training: Live) -> None:
    store = Remembered()
    store.fails_at = 10
    write(training, 10, 20)
    with pytest.raises(ConnectionError):
        follow(training, store).forward()
    assert json.loads((training.folder / "tracked.json").read_text())["identity"] == "the one"


def test_what_fails_for_one_training_holds_up_no_other(training: Live) -> None:
    other = replace(training, folder=training.folder.with_name("other"))
    other.folder.mkdir()
    failing, store = Remembered(), Remembered()
    failing.fails_at = 10
    relay = Relay(training.folder.parents[1], Pipe()[0])
    for live, of in ((training, failing), (other, store)):
        write(live, 10, 20)
        relay.followed[live.folder] = follow(live, of)
    relay._forward()
    assert [step for step, _ in store.points] == [10]
    assert "the store is gone" in relay.problem


def test_nothing_is_lost_while_the_relay_is_busy(training: Live, tmp_path: Path) -> None:
    live, received = LiveTracking(tmp_path), []
    live._connection, relay = Pipe()
    for step in range(1000):
        live.add(training, Memory(**CADENCE, store=Remembered()), {"score/psd": 1.5}, step)
    while len(received) < 1000 and relay.poll(0):
        received.append(relay.recv()[1][-1])
        live.end(training.folder, "success")  # whatever is sent next sends on what waits
    assert received == [*range(1000)]


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")  # so that it is restored
        monkeypatch.delenv(name)
    connect("http://127.0.0.1:9")
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

    assert MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() * MLFLOW_HTTP_REQUEST_TIMEOUT.get() < 30


def logged(outputs: Path) -> dict[str, Any]:
    """The only run of the database: name, status, parameters, and (name, step, value) of its points."""
    with closing(sqlite3.connect(outputs / "mlflow" / "mlflow.db")) as db:
        ((run, name, status, began),) = db.execute("SELECT run_uuid, name, status, start_time FROM runs").fetchall()
        params = dict(db.execute("SELECT key, value FROM params WHERE run_uuid = ?", (run,)))
        points = db.execute("SELECT key, step, value FROM metrics WHERE run_uuid = ?", (run,)).fetchall()
    return {"name": name, "status": status, "start_time": began, "params": params, "points": sorted(points)}


@pytest.mark.slow
def test_mlflow_has_a_running_training_and_the_same_run_after_a_resume(training: Live, tmp_path: Path) -> None:
    tracking = MLflow(**CADENCE, uri=None)
    write_playable(training.folder / "samples" / "update-000100" / "clip-0.mp4", np.zeros((3, 24, 24, 3), np.uint8))
    write(training, 10, 20, 30)
    training = replace(training, began=1700000000.0)  # not the time at which MLflow was loaded
    first = Followed(training, tracking, tmp_path)
    first.forward()
    assert (logged(tmp_path)["status"], logged(tmp_path)["start_time"]) == ("RUNNING", 1700000000000)
    first.status = "KILLED"
    first.forward()
    assert logged(tmp_path)["status"] == "KILLED"
    write(training, 40)
    second = Followed(training, tracking, tmp_path, "success")
    second.forward()
    run = logged(tmp_path)
    assert (run["name"], run["status"]) == ("full/seed=0", "FINISHED")
    assert run["params"] == {"objective": "shortcut", "seed": "0"}
    names = ("train/grad_norm", "train/loss_flow")
    assert run["points"] == [(name, step, 1 / step) for name in names for step in (10, 20, 30, 40)]
    assert len(list(tmp_path.glob("mlflow/artifacts/ansc/*/artifacts/samples/update-000100/clip-0.mp4"))) == 1


@pytest.mark.slow
def test_the_relay_ends_with_a_runner_that_is_killed_and_its_run_says_so(training: Live, tmp_path: Path) -> None:
    write(training, 10, 20)
    code = f"""
import os, signal, sys, time
from pathlib import Path
from pw.tracking.live import LiveTracking
from pw.tracking.loggers import Live, MLflow
live = LiveTracking(Path({str(tmp_path)!r}))
live.begin(Live(Path({str(training.folder)!r}), "ansc", "full/seed=0", {{}}, {{}}), MLflow(**{CADENCE}, uri=None))
print(live._relay.pid, flush=True)
time.sleep(3)
os.kill(live._relay.pid, signal.SIGTERM)  # as `timeout` and Slurm, which signal all processes
os.kill(os.getpid(), signal.SIGKILL)
"""
    runner = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    relay = int(runner.stdout)
    end = time.monotonic() + 600
    while Path(f"/proc/{relay}").exists() and time.monotonic() < end:
        if "Z" in Path(f"/proc/{relay}/stat").read_text().split(")")[1][:3]:
            break
        time.sleep(0.2)
    assert time.monotonic() < end
    run = logged(tmp_path)
    assert run["status"] == "KILLED"
    assert [step for name, step, _ in run["points"] if name == "train/loss_flow"] == [10, 20]


@pytest.mark.slow
def test_a_locked_store_is_said_at_the_end_and_what_it_lacks_is_passed_on_by_the_next(
    training: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pw.tracking import live as live_module
    from pw.tracking.mlflow_log import locked_database

    write(training, 10, 20)
    tracking = MLflow(**CADENCE, uri=None)
    monkeypatch.setattr(live_module, "CLOSE_SECONDS", 12.0)
    with locked_database(mlflow_folder(tmp_path)):
        live = LiveTracking(tmp_path)
        live.begin(training, tracking)
        live.end(training.folder, "success")
        problem = live.close()
    assert problem
    assert not (tmp_path / "mlflow" / "mlflow.db").exists()
    later = Followed(training, tracking, tmp_path, "success")
    later.forward()
    assert len(logged(tmp_path)["points"]) == 4


@pytest.mark.slow
def test_a_relay_that_is_killed_is_replaced_by_one_that_goes_on(
    training: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pw.tracking import live as live_module

    relays: list[subprocess.Popen[bytes]] = []

    def started(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        relays.append(subprocess.Popen(*words, **options))
        return relays[-1]

    monkeypatch.setattr(live_module, "subprocess", SimpleNamespace(Popen=started, DEVNULL=subprocess.DEVNULL))
    monkeypatch.setattr(live_module, "CLOSE_SECONDS", 300.0)
    write(training, 10, 20)
    live = LiveTracking(tmp_path)
    live.begin(training, MLflow(**CADENCE, uri=None))
    relays[0].kill()
    relays[0].wait()
    live.end(training.folder, "success")
    assert live.close() == ""
    assert len(relays) == 2
    assert (len(logged(tmp_path)["points"]), logged(tmp_path)["status"]) == (4, "FINISHED")


@pytest.mark.slow
def test_a_server_that_is_gone_is_named(training: Live, tmp_path: Path) -> None:
    write(training, 10, 20)
    live = LiveTracking(tmp_path)
    live.begin(training, MLflow(**CADENCE, uri="http://127.0.0.1:9"))
    live.end(training.folder, "success")
    problem = live.close()
    assert "127.0.0.1" in problem or "did not answer" in problem


@pytest.mark.slow
def test_tensorboard_has_the_points_and_the_frames(training: Live, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(training, 10, 20)
    write_playable(training.folder / "samples" / "update-000020" / "clip-0.mp4", np.zeros((3, 24, 24, 3), np.uint8))
    Followed(training, TensorBoard(**CADENCE), tmp_path, "success").forward()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "ansc" / "full seed=0"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss_flow")] == [
        (10, pytest.approx(0.1)),
        (20, pytest.approx(0.05)),
    ]
    assert (events.Images("samples/clip-0")[0].height, events.Images("samples/clip-0")[0].width) == (384, 3 * 384)


@pytest.mark.slow
def test_wandb_writes_a_run_that_can_be_synchronised_later(
    training: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write(training, 10, 20)
    write_playable(training.folder / "samples" / "update-000020" / "clip-0.mp4", np.zeros((3, 24, 24, 3), np.uint8))
    tracking = WandB(**CADENCE, project="pixelwizard", entity=None, mode="offline")
    other = replace(training, folder=training.folder.with_name("other"), name="baseline/seed=0")
    other.folder.mkdir()
    write(other, 10, 20)
    at_once = [Followed(live, tracking, tmp_path) for live in (training, other)]
    for status in ("", "success"):
        for followed in at_once:
            followed.status = status
            followed.forward()
    (run,) = (tmp_path / "wandb").glob("offline-run-*-ab12cd34-*")
    assert list(run.glob("*.wandb"))
    assert list(run.glob("files/media/videos/samples/*.mp4"))
    assert len(list((tmp_path / "wandb").glob("offline-run-*-other-*/*.wandb"))) == 1


def test_a_store_whose_package_is_missing_is_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    with pytest.raises(ConfigError, match=r"tracking=wandb: the package wandb is missing"):
        preflight(build(["tracking=wandb"]), tmp_path)


def test_wandb_without_a_key_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"tracking=wandb: there is no API key: `wandb login`"):
        preflight(build(["tracking=wandb"]), tmp_path)
    preflight(build(["tracking=wandb", "tracking.mode=offline"]), tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    preflight(build(["tracking=wandb"]), tmp_path)


def test_samples_need_held_out_clips() -> None:
    with pytest.raises(ConfigError, match=r"tracking.samples=4: the clips are those of tracking.held_out=2"):
        build(["tracking=mlflow", "tracking.samples_every=10", "tracking.held_out=2"])


def test_an_unknown_choice_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PW_TRACKING", "mlfow")
    with pytest.raises(ConfigError, match=r"PW_TRACKING=mlfow: in the environment; is one of mlflow, none"):
        build([])


def test_a_relay_that_cannot_start_stops_nothing(tmp_path: Path, training: Live) -> None:
    (tmp_path / "logs").write_text("a file where the folder of its log would be")
    live = LiveTracking(tmp_path)
    live.begin(training, MLflow(**CADENCE, uri=None))
    live.end(training.folder, "success")
    assert live.close() == "" or os.name == "nt"


def test_the_database_of_the_outputs_is_that_of_the_table(tmp_path: Path) -> None:
    assert database_url(mlflow_folder(tmp_path)) == f"sqlite+pysqlite:///{tmp_path}/mlflow/mlflow.db"


def test_a_store_of_ones_own_folder_is_chosen_by_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf" / "tracking").mkdir(parents=True)
    keys = "".join(f"{key}: {value}\n" for key, value in CADENCE.items())
    (tmp_path / "conf" / "tracking" / "mine.yaml").write_text(f"_target_: my_store.Mine\nproject: heron\n{keys}")
    (tmp_path / "my_store.py").write_text(
        "from dataclasses import dataclass\n"
        "from pw.run.settings import Tracking\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Tracking):\n"
        "    project: str\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    run = build(["tracking=mine", "tracking.every=5"])
    assert vars(run.tracking) == {**CADENCE, "every": 5, "project": "heron"}
