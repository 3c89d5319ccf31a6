"""The server of `pw mlflow`: it takes runs over HTTP, and opens where the newest runs are."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, needs_browser

from pw.io.paths import ROOT
from pw.io.playable import write_playable
from pw.tracking.loggers import Live, MLflow
from pw.tracking.mlflow_log import RunRecord, connect, log_ablation
from pw.tracking.mlflow_ui import ui_command, ui_environment
from pw.tracking.relay import Followed
from pw.tracking.ui_app import opening_page

pytestmark = pytest.mark.slow
CADENCE = {"every": 10, "held_out": 8, "held_out_every": 100, "samples": 1, "samples_every": 100}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    outputs = tmp_path_factory.mktemp("served")
    (outputs / "mlflow").mkdir()
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = ui_environment("/experiments/1/runs?workflowType=machine_learning")
    process = subprocess.Popen(
        ui_command(outputs, port), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.3)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def test_a_training_and_its_table_are_logged_to_a_server(server: str, tmp_path: Path) -> None:
    folder = tmp_path / "train" / "ab12cd34"
    write_playable(folder / "samples" / "update-000020" / "clip-0.mp4", np.zeros((3, 24, 24, 3), np.uint8))
    curves = folder / "metrics.jsonl"
    curves.write_text('{"step": 10, "loss_flow": 0.5}\n{"step": 20, "loss_flow": 0.25}\n')
    live = Live(folder, "ansc", "full/seed=0", {"seed": 0}, {"pw.key": "ansc/full/0/s"})
    Followed(live, MLflow(**CADENCE, uri=server), tmp_path, "success").forward()
    client = connect(server)
    experiment = client.get_experiment_by_name("ansc")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss_flow")] == [
        (10, 0.5),
        (20, 0.25),
    ]
    assert [item.path for item in client.list_artifacts(run.info.run_id, "samples/update-000020")] == [
        "samples/update-000020/clip-0.mp4"
    ]
    table = tmp_path / "table.md"
    table.write_text("| arm |\n")
    record = RunRecord(
        *("full", 0, {"seed": 0}, {curves: "train/"}, {"psd": 1.0}, [], {"signature": "s"}, "FINISHED"),
        began=1000.0,
        ended=1060.0,
    )
    parents = [
        log_ablation(tmp_path, "ansc", [record], artifacts=[table], summary={}, tags={}, uri=server) for _ in range(2)
    ]
    assert parents[0] == parents[1]  # logging the same again changes nothing
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {"ansc", "full/seed=0"}  # the live run is in the trash
    durations = {run.info.run_name: run.info.end_time - run.info.start_time for run in runs if run.info.end_time}
    assert durations == {"ansc": 60_000, "full/seed=0": 60_000}


@needs_browser
def test_it_opens_on_the_newest_runs_without_the_assistant(server: str, tmp_path: Path) -> None:
    connect(server).create_experiment("opened")
    with Browser(tmp_path / "profile") as browser:
        browser.call("Page.navigate", url=server)
        browser.wait("document.body?.innerText.includes('Runs')", 300)
        assert browser.value("location.hash").startswith("#/experiments/1/runs")
        assert "Assistant" not in browser.value("document.body.innerText")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{server}/ajax-api/3.0/mlflow/assistant/config", timeout=60)


def test_a_hostile_name_stays_text_in_the_opening_page() -> None:
    page = opening_page("<head></head>", '/experiments/"</script><script>alert(1)</script>')
    assert page.count("<script>") == page.count("</script>") == 1
