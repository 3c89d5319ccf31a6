"""`make ablation name=ansc` from an empty folder to its table, as a user calls it, at a size that takes seconds."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from filelock import FileLock

from experiments.engine.ablation import load
from experiments.engine.outcome.mlflow_sync import data_hash
from experiments.engine.plan import Plan, make_plan, parse
from pw.io.files import digest
from pw.io.video import read_video
from pw.run.build import build
from pw.sample.clip_folders import reference_folder, sample_folder
from pw.sample.evaluate import sample
from pw.train.record import training_folder

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1)
SIZES = ["start.updates=6", "train.updates=6", "train.batch_size=2", "sampling.count=4", "sampling.solution_steps=8"]
MICRO = ["name=ansc", "seeds=2", "arms=baseline,full", *SIZES]
METRICS = load("ansc")[0].metrics


@dataclass(frozen=True)
class Call:
    """A finished call: its outputs folder, exit status, output, and CPU seconds including its workers."""

    outputs: Path
    status: int
    output: str
    seconds: float

    @property
    def folder(self) -> Path:
        return self.outputs / "ansc"

    @property
    def table(self) -> dict[str, Any]:
        return json.loads((self.folder / "table.json").read_text())

    def arm(self, name: str) -> dict[str, Any]:
        return next(arm for arm in self.table["arms"] if arm["name"] == name)


def command(outputs: Path, *words: str, verb: str = "ablation") -> list[str]:
    return [sys.executable, "-m", "pw", verb, *words, f"outputs={outputs}"]


def call(outputs: Path, *words: str, verb: str = "ablation") -> Call:
    before = os.times()
    process = subprocess.run(
        command(outputs, *words, verb=verb), cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return Call(outputs, process.returncode, process.stdout + process.stderr, seconds)


def stamps(outputs: Path, *folders: str) -> dict[str, int]:
    """File -> time of its last write; without locks, which readers also touch."""
    files = [path for folder in folders for path in (outputs / folder).rglob("*") if path.is_file()]
    return {str(p.relative_to(outputs)): p.stat().st_mtime_ns for p in files if p.name != ".lock"}


def plan_for(outputs: Path, *words: str) -> Plan:
    return make_plan(parse([*words, f"outputs={outputs}"]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Call:
    """The whole call, while another program locks MLflow's database."""
    outputs = tmp_path_factory.mktemp("finished")
    (outputs / "mlflow").mkdir()
    with closing(sqlite3.connect(outputs / "mlflow" / "mlflow.db")) as database:
        database.execute("BEGIN EXCLUSIVE")
        result = call(outputs, *MICRO, "tracking=mlflow")
    assert result.status == 1, result.output  # MLflow's record is missing, and nothing else
    return result


@pytest.fixture(scope="module")
def synced(finished: Call) -> Call:
    """`make mlflow-sync`, after the database is free."""
    result = call(finished.outputs, verb="mlflow-sync")
    assert result.status == 0, result.output
    return result


class TestTheTable:
    def test_has_every_arm_asked_for_and_no_other_in_the_papers_order(self, finished: Call) -> None:
        table = finished.table
        assert (table["ablation"], table["scale"], table["seeds"]) == ("ansc", "tiny", [0, 1])
        assert [arm["name"] for arm in table["arms"]] == ["baseline", "full"]
        assert [arm["status"] for arm in table["arms"]] == ["ok", "ok"]
        assert table["failed"] == []

    @pytest.mark.parametrize("arm", ["baseline", "full"])
    def test_has_every_metric_of_every_arm_with_an_interval_over_all_seeds(self, finished: Call, arm: str) -> None:
        metrics = finished.arm(arm)["metrics"]
        assert set(metrics) == set(METRICS)
        for metric, value in metrics.items():
            assert value["n"] == len(SEEDS), metric
            assert value["low"] < value["mean"] < value["high"], metric

    def test_holds_the_scores_on_disk_and_nothing_else(self, finished: Call) -> None:
        """The mean of an arm is the mean of its seeds' scores.json, found by signature."""
        plan = plan_for(finished.outputs, *MICRO)
        scores = [json.loads(path.read_text()) for path in (finished.outputs / "scores").glob("*/scores.json")]
        for arm in plan.arms:
            for metric in METRICS:
                values = [
                    score["metrics"][metric]
                    for score in scores
                    if score["contract"]["signature"] in {run.signature for run in arm.runs.values()}
                    and score["contract"]["arm"] == arm.name
                ]
                assert len(values) == len(SEEDS)
                assert finished.arm(arm.name)["metrics"][metric]["mean"] == pytest.approx(np.mean(values), rel=1e-12)

    def test_compares_a_row_with_the_one_above(self, finished: Call) -> None:
        assert finished.arm("baseline")["vs_previous"] == {}
        differences = finished.arm("full")["vs_previous"]
        assert set(differences) == set(METRICS)
        for metric, row in differences.items():
            assert {"diff", "low", "high", "p", "p_adjusted", "verdict"} <= row.keys(), metric
            assert row["low"] <= row["diff"] <= row["high"], metric
            assert row["p"] <= row["p_adjusted"] <= 1, metric
            assert row["verdict"] in ("better", "worse", "no difference shown"), metric

    def test_has_the_floor_and_the_many_step_ceiling(self, finished: Call) -> None:
        table = finished.table
        of_one_video_set = {metric for metric in METRICS if not metric.startswith("solution")}
        assert set(table["floor"]) == set(table["ceiling"]) == of_one_video_set
        for metric in ("psd", "swd"):  # real video is nearer to real video than six updates can be
            assert table["floor"][metric]["mean"] < finished.arm("full")["metrics"][metric]["mean"]

    def test_states_what_an_arm_cost(self, finished: Call) -> None:
        for arm in finished.table["arms"]:
            cost = arm["cost"]
            assert cost["updates"] == 6
            assert cost["peak_memory_mb"] > 100
            assert cost["train_flops"] > 1e6
            assert cost["train_cpu_s"] > 0
            assert cost["sample_cpu_s"] > 0
        # three updates of a shortcut take two more forward passes, for their targets
        flow, shortcut = (arm["cost"]["train_flops"] for arm in finished.table["arms"])
        assert shortcut / flow == pytest.approx((3 * 3 + 3 * 5) / (6 * 3))

    def test_reports_which_inference_steps_were_trained(self, finished: Call) -> None:
        (entry,) = finished.table["coverage"]  # the flow baseline trains no stride
        assert entry["arm"] == "full"
        assert [trained for _, _, trained, _ in entry["grid"]] == [False, False, False, True]  # D5
        assert (entry["second_halves_trained"], entry["second_halves_total"]) == (0, 24)

    def test_gives_the_baseline_its_best_shift(self, finished: Call) -> None:
        probe = finished.arm("baseline")["probe"]
        assert probe["at"] in (1.0, 2.0, 3.0, 5.0)
        assert finished.arm("full")["probe"] is None

    def test_sets_the_papers_row_beside_ours_and_judges_the_order_only(self, finished: Call) -> None:
        assert finished.arm("baseline")["paper"] == {"MUSIQ": 51.54, "NIQE": 4.04, "Tech.": 12.98, "Aesth.": 99.01}
        assert finished.table["order_as_in_paper"] in ("yes", "no", "not resolved")
        markdown = (finished.folder / "table.md").read_text()
        assert "8-step ceiling" in markdown  # not 48: sampling.solution_steps says so
        assert all(word in markdown for word in ("MUSIQ", "51.54", "57.67", "order as in the paper"))

    def test_is_stamped_with_what_was_measured_and_from_what(self, finished: Call) -> None:
        contract = finished.table["contract"]
        assert {"signature", "git_commit", "dirty", "lock_hash", "clips", "metrics", "scale", "data"} <= contract.keys()
        assert {metric for protocols in contract["metrics"] for metric in protocols} == set(METRICS)
        for path in (finished.outputs / "scores").glob("*/scores.json"):
            stamp = json.loads(path.read_text())["contract"]
            assert stamp["clips"]["n"] == 4
            assert stamp["seed"] in SEEDS

    def test_comes_as_five_files_that_say_the_same(self, finished: Call) -> None:
        folder, mean = finished.folder, finished.arm("full")["metrics"]["psd"]["mean"]
        with (folder / "table.csv").open(newline="") as file:
            rows = {row["row"]: row for row in csv.DictReader(file)}
        assert set(rows) == {"baseline", "full", "ceiling", "floor"}
        assert float(rows["full"]["psd.mean"]) == mean
        text = f"{mean:.1f}"
        assert text in (folder / "table.md").read_text()
        tex, html = (folder / "table.tex").read_text(), (folder / "index.html").read_text()
        assert r"\begin{tabular}" in tex
        assert text in tex
        assert html.count("<img ") == 1
        players = json.loads(html.partition('id="data">')[2].partition("</script>")[0])
        assert players["labels"] == ["real", "anchor", "baseline", "full", "8-step ceiling"]
        assert all("mp4" in clip for row in players["clips"] for clip in row)
        assert text in html

    def test_is_printed(self, finished: Call) -> None:
        assert "differences to the arm above" in finished.output
        assert "real vs real" in finished.output
        assert str(finished.folder) in finished.output.replace("\n", "")

    def test_comes_with_a_plot_and_a_contact_sheet(self, finished: Call) -> None:
        from matplotlib.image import imread

        plot, sheet = (imread(finished.folder / f"{name}.png") for name in ("plot", "contact_sheet"))
        assert plot.std() > 0.01
        # real, anchor, two arms, ceiling: five rows of four clips, 24 px wide, enlarged to what there is room for
        assert sheet.shape[0] > 5 * 240
        assert sheet.shape[1] > 4 * 240
        assert sheet.std() > 0.05


class TestASecondCall:
    @pytest.fixture(scope="class")
    def calls(self, finished: Call, synced: Call) -> tuple[dict[str, int], bytes, Call]:
        folders = ("train", "videos", "reference", "scores", "logs")
        before, table = stamps(finished.outputs, *folders), (finished.folder / "table.json").read_bytes()
        second_call = call(finished.outputs, *MICRO, "tracking=mlflow")
        assert second_call.status == 0, second_call.output
        assert stamps(finished.outputs, *folders) == before, "something was done twice"
        return before, table, second_call

    def test_does_no_job_and_takes_less_than_twenty_seconds(self, calls: tuple[Any, bytes, Call]) -> None:
        before, _, second_call = calls
        assert len(before) > 100
        assert "jobs are cached" in second_call.output
        assert second_call.seconds < 20

    def test_writes_the_same_table_byte_for_byte(self, calls: tuple[Any, bytes, Call]) -> None:
        _, table, second_call = calls
        assert (second_call.folder / "table.json").read_bytes() == table
        assert not (second_call.folder / "earlier").exists()

    def test_logs_nothing_anew(self, calls: tuple[Any, bytes, Call]) -> None:
        """`make mlflow-sync` has logged from files exactly what this call would log."""
        assert "MLflow was not written" not in calls[2].output
        assert len(mlflow_runs(calls[2].outputs)) == 1 + 2 * len(SEEDS)


def mlflow_runs(outputs: Path) -> dict[str, dict[str, str]]:
    """Name of each run, also of deleted ones, without `[data, scale, code]` -> its parameters."""
    with closing(sqlite3.connect(outputs / "mlflow" / "mlflow.db")) as database:
        runs = database.execute("SELECT run_uuid, name FROM runs").fetchall()
        params = database.execute("SELECT run_uuid, key, value FROM params").fetchall()
    assert len({name for _, name in runs}) == len(runs)
    by_name = {name: {key: value for owner, key, value in params if owner == run} for run, name in runs}
    return {name.partition(" [")[0]: values for name, values in by_name.items()}


class TestMlflow:
    def test_that_is_locked_costs_no_table_and_is_told_later(self, finished: Call, synced: Call) -> None:
        output = " ".join(finished.output.split())
        assert "MLflow was not written" in output
        assert "database is locked" in output
        assert "make mlflow-sync" in output
        assert "tracking: not all was logged (" in output  # while they were trained
        assert "ansc: logged" in synced.output
        with closing(sqlite3.connect(synced.outputs / "mlflow" / "mlflow.db")) as database:
            curves = {name for (name,) in database.execute("SELECT DISTINCT key FROM metrics")}
        assert {"psd", "train/loss_flow", "train/rung_error/k0", "held_out/flow_error"} <= curves

    def test_has_a_parent_and_a_run_for_every_arm_and_seed(self, synced: Call) -> None:
        arms = {f"{arm}/seed={seed}" for arm in ("baseline", "full") for seed in SEEDS}
        assert mlflow_runs(synced.outputs).keys() == {"ansc", *arms}

    def test_has_the_varied_keys_data_scale_code_and_seed_for_parameters(self, synced: Call) -> None:
        runs = mlflow_runs(synced.outputs)
        run = plan_for(synced.outputs, *MICRO).arms[-1].runs[1]
        code = digest([run.training_code, run.sampling_code, run.evaluation_code])
        assert runs["full/seed=1"] == {
            **{"objective": "shortcut", "step_sampler": "exponential_index", "weighting": "delta_sigma"},
            **{"data": "procedural", "data_hash": data_hash(run), "scale": "tiny", "size": "3x24x24", "code": code},
            "seed": "1",
        }
        assert runs["ansc"] == {}

    def test_is_named_after_the_ablation(self, synced: Call) -> None:
        with closing(sqlite3.connect(synced.outputs / "mlflow" / "mlflow.db")) as database:
            names = {name for (name,) in database.execute("SELECT name FROM experiments")}
        assert "ansc" in names


class TestArmsOfOneSeed:
    def test_are_given_the_same_anchors_and_other_seeds_others(self, finished: Call) -> None:
        plan, anchors = plan_for(finished.outputs, *MICRO), {}
        for arm, seed, run in plan.runs():
            files = sorted((sample_folder(run, finished.outputs) / "anchors").glob("*.mkv"))
            anchors[arm.name, seed] = np.stack([read_video(path) for path in files])
        assert anchors["baseline", 0].shape == (4, 3, 12, 12, 3)
        for seed in SEEDS:
            np.testing.assert_array_equal(anchors["baseline", seed], anchors["full", seed])
        assert (anchors["full", 0] != anchors["full", 1]).any()

    def test_are_held_against_the_same_real_clips(self, finished: Call) -> None:
        plan = plan_for(finished.outputs, *MICRO)
        for seed in SEEDS:
            assert len({reference_folder(arm.runs[seed], finished.outputs) for arm in plan.arms}) == 1
        clips = {}
        for path in (finished.outputs / "scores").glob("*/scores.json"):
            stamp = json.loads(path.read_text())["contract"]
            clips.setdefault(stamp["seed"], set()).add(stamp["clips"]["sha256"])
        assert [len(hashes) for hashes in clips.values()] == [1, 1]
        assert clips[0] != clips[1]

    def test_begin_from_the_same_noise(self, finished: Call, tmp_path: Path) -> None:
        """Untrained arms equal their start at every stride (D18): same noise and anchors give the same clips."""
        sizes = [word for word in SIZES if not word.startswith("train.updates")]
        flow, shortcut, other_noise = (
            build([*sizes, "train.updates=0", *words])
            for words in (
                ["objective=flow"],
                ["objective=shortcut"],
                ["objective=flow", "seed=1"],
            )
        )
        start = flow.start_run
        assert start is not None
        shutil.copytree(training_folder(start, finished.outputs), training_folder(start, tmp_path))
        assert flow.signature != shortcut.signature
        clips = [
            np.stack([read_video(folder / f"{index:04d}.mkv") for index in range(4)])
            for folder in (sample(run, tmp_path) for run in (flow, shortcut, other_noise))
        ]
        np.testing.assert_array_equal(clips[0], clips[1])
        assert (clips[0] != clips[2]).mean() > 0.5


@dataclass(frozen=True)
class Disturbed:
    """An ablation whose runner was killed; a second call adds an arm that cannot be trained.

    survivors    processes of the killed runner that still ran ten seconds later
    finished     done.json of the trainings that were done when it was killed -> time of writing
    second_call  the call with the arm that cannot be trained
    """

    survivors: list[str]
    finished: dict[str, int]
    second_call: Call


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory, finished: Call) -> Disturbed:
    outputs = tmp_path_factory.mktemp("disturbed")
    words = ["name=ansc", "seeds=2", "arms=uniform,full", "workers=2", "tracking=none", *SIZES]
    locked = training_folder(plan_for(outputs, *words).arms[1].runs[0], outputs)
    locked.mkdir(parents=True)
    with FileLock(locked / ".lock"):  # one worker waits for it: a runner cannot be done before it is killed
        survivors = kill_after_an_arm(outputs, words)
    at_the_kill = done_trainings(outputs)
    words[2] = "arms=uniform,exponential,full"
    broken_run = next(arm for arm in plan_for(outputs, *words).arms if arm.name == "exponential").runs[1]
    training_folder(broken_run, outputs).write_text("a file where a folder should be")
    return Disturbed(survivors, at_the_kill, call(outputs, *words))


def done_trainings(outputs: Path) -> dict[str, int]:
    """done.json of each training -> time of its write."""
    return {str(path.relative_to(outputs)): path.stat().st_mtime_ns for path in outputs.glob("train/*/done.json")}


def kill_after_an_arm(outputs: Path, words: list[str]) -> list[str]:
    """Kill a runner after the start and one arm are trained; return its processes that live ten seconds later."""
    no_output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    runner = subprocess.Popen(command(outputs, *words), cwd=ROOT, **no_output)
    family: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 900
        log = "logs/train_full_seed_0_*.log"  # of the worker that waits
        while not (len(done_trainings(outputs)) >= 2 and any(outputs.glob(log))):
            assert runner.poll() is None, "the runner ended before it could be killed"
            assert time.monotonic() < deadline, "the runner trained nothing in two minutes"
            time.sleep(0.01)
        family = psutil.Process(runner.pid).children(recursive=True)
        os.kill(runner.pid, signal.SIGKILL)
        runner.wait()
        _, alive = psutil.wait_procs(family, timeout=900)
        return [str(p) for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    finally:
        runner.kill()
        for process in family:
            if process.is_running():
                process.kill()


@pytest.mark.slow
class TestAKilledRunner:
    def test_takes_its_workers_along(self, disturbed: Disturbed) -> None:
        assert disturbed.survivors == []

    def test_had_done_a_part_of_its_trainings(self, disturbed: Disturbed) -> None:
        """There are five trainings: the start, and two arms of two seeds. None or all would leave nothing to test."""
        assert 2 <= len(disturbed.finished) < 5

    def test_leaves_what_was_finished_to_the_next_call(self, disturbed: Disturbed) -> None:
        now = stamps(disturbed.second_call.outputs, "train")
        assert {path: now[path] for path in disturbed.finished} == disturbed.finished

    def test_changes_no_score(self, disturbed: Disturbed, finished: Call) -> None:
        """To the last digit: `full` and the floor are in both tables."""
        assert disturbed.second_call.arm("full")["metrics"] == finished.arm("full")["metrics"]
        assert disturbed.second_call.arm("full")["cost"]["train_flops"] == finished.arm("full")["cost"]["train_flops"]
        assert disturbed.second_call.table["floor"] == finished.table["floor"]

    def test_leaves_no_half_written_file(self, disturbed: Disturbed) -> None:
        outputs = disturbed.second_call.outputs
        for path in outputs.rglob("*.json"):
            json.loads(path.read_text())
        clips = list((outputs / "videos").rglob("*.mkv"))
        assert clips
        assert {len(read_video(path)) for path in clips} == {3}


@pytest.mark.slow
class TestAnArmThatFails:
    def test_is_told_by_name_with_the_reason_and_its_log(self, disturbed: Disturbed) -> None:
        output = disturbed.second_call.output.replace("\n", "")
        assert "✗ train exponential seed 1: DamagedResult" in output
        (log,) = (disturbed.second_call.outputs / "logs").glob("train_exponential_seed_1_*.log")
        assert f"log: {log}" in output
        assert "Traceback" in log.read_text()

    def test_makes_the_exit_status_one(self, disturbed: Disturbed) -> None:
        assert disturbed.second_call.status == 1

    def test_does_not_keep_the_others_from_finishing(self, disturbed: Disturbed) -> None:
        for arm in ("uniform", "full"):
            assert disturbed.second_call.arm(arm)["status"] == "ok"
            assert {v["n"] for v in disturbed.second_call.arm(arm)["metrics"].values()} == {2}

    def test_keeps_the_seeds_that_did_not_fail(self, disturbed: Disturbed) -> None:
        arm = disturbed.second_call.arm("exponential")
        assert {v["n"] for v in arm["metrics"].values()} == {1}
        assert arm["status"].startswith("failed: seeds 1; train exponential seed 1 failed: DamagedResult")
        assert arm["status"].count("DamagedResult") == 1

    def test_is_marked_in_the_table_and_not_scored_as_zero(self, disturbed: Disturbed) -> None:
        (reason,) = disturbed.second_call.table["failed"]
        assert reason.startswith("train exponential seed 1 failed: ")
        assert "exponential failed: seeds 1" in (disturbed.second_call.folder / "table.md").read_text()
        # one seed has no interval, and a comparison over one seed no verdict
        assert {v["low"] for v in arm_metrics(disturbed, "exponential")} == {None}
        verdicts = {v["verdict"] for v in disturbed.second_call.arm("exponential")["vs_previous"].values()}
        assert not verdicts & {"better", "worse"}


def arm_metrics(disturbed: Disturbed, name: str) -> list[dict[str, Any]]:
    return list(disturbed.second_call.arm(name)["metrics"].values())


@pytest.mark.slow
def test_the_notebook_shows_what_the_ablation_left(finished: Call) -> None:
    from experiments.engine.notebooks_write import executed
    from experiments.engine.read import runs

    read = runs("ansc", finished.outputs)
    assert [(run.arm, run.seed) for run in read.entries] == [
        (arm, seed) for arm in ("baseline", "full") for seed in SEEDS
    ]
    assert read.left_out == []
    notebook = executed(ROOT / "notebooks" / "3_runs.ipynb", finished.outputs)
    data = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    tables = ["".join(shown["text/markdown"]) for shown in data if "text/markdown" in shown]
    assert [table.splitlines()[0] for table in tables] == [
        f"## {finished.table['title']}",
        read._repr_markdown_().splitlines()[0],
    ]
    assert sum("image/png" in shown for shown in data) == 4


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_while_the_table_is_written_is_one_line_and_loses_nothing(
    number: signal.Signals, finished: Call, tmp_path: Path
) -> None:
    outputs = tmp_path / "outputs"
    shutil.copytree(finished.outputs, outputs, ignore=shutil.ignore_patterns("mlflow", "table.*", "*.png"))
    handler = signal.signal(number, signal.SIG_DFL)  # a shell may have started the tests in the background
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command(outputs, *MICRO), cwd=ROOT, **pipes) as process:
        signal.signal(number, handler)
        while process.poll() is None and not (outputs / "ansc" / "table.json").exists():
            time.sleep(0.01)
        process.send_signal(number)
        output = process.communicate(timeout=900)[0]
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith(f"stopped by {number.name}; finished results are kept; run the same")
    assert json.loads((outputs / "ansc" / "table.json").read_text()) == finished.table
