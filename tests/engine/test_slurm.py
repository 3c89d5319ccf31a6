"""An ablation on a real SLURM: `make test-slurm` starts one with a single node and runs this file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.engine.job import all_jobs
from experiments.engine.plan import make_plan, parse
from experiments.engine.queue.launcher import units
from experiments.engine.status import outline

pytestmark = [
    pytest.mark.skipif(os.environ.get("PW_TEST_SLURM") != "1", reason="make test-slurm"),
    pytest.mark.timeout(1200),
]
ROOT = Path(__file__).parents[2]
QUEUE = ("launcher=submitit", "launcher.time=30", "launcher.notice=60")
TWO = ("arms=full", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.threads=1")
WORDS = (
    *("name=ansc", "seeds=1", "arms=uniform,full", "start.updates=60", "train.updates=300", "train.batch_size=2"),
    *("train.checkpoint_every=10", "sampling.count=4", "sampling.solution_steps=8", "tracking=none"),
)


def start(outputs: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pw", "ablation", *WORDS, f"outputs={outputs}", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def metrics(outputs: Path) -> list[Any]:
    table = json.loads((outputs / "ansc" / "table.json").read_text())
    return [table["floor"], *(arm["metrics"] for arm in table["arms"])]


def claims(outputs: Path) -> dict[str, Any]:
    rows = [json.loads(path.read_text()) for path in (outputs / "ledger").glob("*.json")]
    return {claim["label"]: claim for claim in rows}


def wait_for(condition: Any, process: subprocess.Popen[str]) -> Any:
    """Wait until condition() is true; return its value."""
    deadline = time.monotonic() + 400
    while not (value := condition()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def test_arms_run_as_jobs_that_are_put_back_by_a_notice_and_end_in_the_same_table(tmp_path: Path) -> None:
    outputs = tmp_path / "slurm"
    runner = start(outputs, *QUEUE)
    wait_for(lambda: claims(outputs).get("train full seed 0", {}).get("queue"), runner)
    query = ["squeue", "--noheader", "--array", "--format=%i %E"]
    queue = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    assert queue.count("afterany:") == 2, queue

    # what SLURM sends when the time is up, and when another job goes before; a runner that is gone changes nothing
    plan = make_plan(parse([*WORDS, f"outputs={outputs}"]))
    jobs, rows = all_jobs(plan)
    arms = [unit for unit in units(jobs, outline(plan, jobs, rows).cells) if unit.needs]
    runner.kill()
    runner.communicate()
    second_runner = start(outputs, *QUEUE)
    for unit, number in zip(arms, ("USR2", "TERM"), strict=True):
        job = unit.jobs[0]
        checkpoint = outputs / "train" / job.run.training_signature / "checkpoints" / "previous.ckpt"
        wait_for(checkpoint.exists, second_runner)
        place = claims(outputs)[job.label]["queue"].partition(":")[2]
        subprocess.run(["scancel", f"--signal={number}", place], check=True)
    output, _ = second_runner.communicate(timeout=900)
    assert second_runner.returncode == 0, output
    logs = [path.read_text() for path in (outputs / "ansc" / "queue").glob("*/*.out")]
    assert sum("Requeued job" in log for log in logs) == 2

    local_outputs = tmp_path / "alone"
    local_runner = start(local_outputs)
    assert local_runner.wait(600) == 0, local_runner.communicate()[0]
    assert metrics(outputs) == metrics(local_outputs)


def test_a_training_of_two_processes_is_two_tasks_that_are_put_back_together(tmp_path: Path) -> None:
    outputs = tmp_path / "slurm"
    runner = start(outputs, *QUEUE, *TWO)
    training = make_plan(parse([*WORDS, *TWO])).arms[0].first.training_signature
    folder = outputs / "train" / training
    wait_for((folder / "checkpoints" / "previous.ckpt").exists, runner)
    place = claims(outputs)["train full seed 0"]["queue"].partition(":")[2]
    subprocess.run(["scancel", "--signal=USR2", place], check=True)
    output, _ = runner.communicate(timeout=900)
    assert runner.returncode == 0, output
    logs = {path.name: path.read_text() for path in (outputs / "ansc" / "queue").glob(f"*/{place}_*.out")}
    assert sorted(logs) == [f"{place}_0_log.out", f"{place}_1_log.out"]
    # both stop, one of them puts the job back, both go on
    assert [log.count("Requeued job") for _, log in sorted(logs.items())] == [1, 0]
    assert [log.count("Starting with") for log in logs.values()] == [2, 2]
    assert json.loads((folder / "done.json").read_text())["processes"] == 2

    local_outputs = tmp_path / "alone"
    local_runner = start(local_outputs, *TWO)
    assert local_runner.wait(600) == 0, local_runner.communicate()[0]
    assert metrics(outputs) == metrics(local_outputs)
