"""Where an ablation runs: what the launcher's keys mean, what becomes a job of the queue, and what a signal costs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from experiments._launch import LAUNCHERS, Local, Queue, Submitit, Unit, take_launcher, units
from experiments._ledger import Ledger
from experiments._plan import Plan, make_plan, parse
from experiments._runner import Job, all_jobs
from experiments._status import look, outline
from pw.config import CONF, ConfigError

ROOT = Path(__file__).parents[1]


def planned(outputs: Path, *words: str) -> Plan:
    return make_plan(parse([*words, f"outputs={outputs}"]))


def units_of(plan: Plan) -> dict[str, Unit]:
    jobs, rows = all_jobs(plan)
    return {unit.name: unit for unit in units(jobs, outline(plan, jobs, rows).cells)}


class TestTheWords:
    def test_of_a_launcher_are_taken_out_and_the_others_left(self) -> None:
        launcher, rest = take_launcher(
            ["name=ansc", "launcher=submitit", "launcher.partition=long", "launcher.time=90", "scale=tiny"]
        )
        assert isinstance(launcher, Submitit)
        assert (launcher.partition, launcher.time, launcher.account) == ("long", 90, None)
        assert rest == ["name=ansc", "scale=tiny"]

    def test_name_this_machine_when_there_are_none(self) -> None:
        assert take_launcher(["name=ansc"]) == (Local(workers=0), ["name=ansc"])

    def test_may_be_lists_and_null(self) -> None:
        launcher, _ = take_launcher(["launcher=submitit", "launcher.setup=[module load cuda]", "launcher.qos=null"])
        assert isinstance(launcher, Submitit)
        assert (launcher.setup, launcher.qos) == (["module load cuda"], None)

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            ("launcher=slurm", ["launcher=slurm", "local, submitit"]),
            ("launcher=submitit launcher.partion=x", ["launcher.partion=x", "did you mean partition?"]),
            ("launcher.partition=x", ["launcher=local has no partition", "launcher=submitit"]),
            ("launcher=submitit launcher.workers=2", ["launcher=submitit has no workers", "launcher=local"]),
            ("launcher=submitit launcher.time=long", ["launcher.time=long", "whole number"]),
            ("launcher=submitit launcher.gpus=0.5", ["launcher.gpus=0.5", "whole number"]),
            ("launcher=submitit launcher.parallel=0", ["launcher.parallel=0", "at least 1"]),
            ("launcher=submitit launcher.time=1 launcher.notice=60", ["launcher.notice=60", "launcher.time=1"]),
            ("launcher=submitit launcher.cluster=pbs", ["launcher.cluster=pbs", "slurm or local"]),
            ("launcher=submitit launcher.setup=3", ["launcher.setup=3", "a list"]),
        ],
    )
    def test_that_are_wrong_are_told_with_what_would_do(self, words: str, says: list[str]) -> None:
        with pytest.raises(ConfigError) as error:
            take_launcher(words.split())
        assert all(part in str(error.value) for part in says), error.value

    def test_have_a_file_for_each_launcher(self) -> None:
        assert {path.stem for path in (CONF / "launcher").glob("*.yaml")} == set(LAUNCHERS)

    def test_change_no_signature(self, tmp_path: Path) -> None:
        words = ["name=ansc", "seeds=1", "arms=full"]
        _, rest = take_launcher([*words, "launcher=submitit", "launcher.time=90", "launcher.gpus=8"])
        before, after = (planned(tmp_path, *w).arms[0].first for w in (words, rest))
        assert (before.signature, before.training_signature) == (after.signature, after.training_signature)


class TestAJobOfTheQueue:
    def test_is_an_arm_and_seed_and_what_all_share_is_one_before_them(self, tmp_path: Path) -> None:
        found = units_of(planned(tmp_path, "name=ansc", "seeds=2", "arms=baseline,full"))
        arms = {"baseline seed 0", "full seed 0", "baseline seed 1", "full seed 1"}
        assert found.keys() == {"train start hires", *arms}
        assert all(found[name].needs == ("train start hires",) for name in arms)
        assert [job.kind for job in found["full seed 1"].jobs] == ["train", "sample", "sample", "score"]

    def test_trains_once_what_is_sampled_in_several_ways(self, tmp_path: Path) -> None:
        found = units_of(planned(tmp_path, "name=steps", "seeds=1"))
        assert {found[f"{steps} seed 0"].needs for steps in (2, 3, 4, 5)} == {("sample 48-step solution of 2 seed 0",)}
        trained = {name: [j.label for j in unit.jobs if j.kind == "train"] for name, unit in found.items()}
        assert trained.pop("sample 48-step solution of 2 seed 0") == ["train start hires", "train 2 seed 0"]
        assert not any(trained.values())

    @pytest.mark.parametrize("name", ["ansc", "aghs", "steps", "anchor_robustness"])
    def test_holds_every_thing_to_do_once_and_waits_for_no_circle(self, tmp_path: Path, name: str) -> None:
        plan = planned(tmp_path, f"name={name}", "seeds=2")
        found, (jobs, _) = units_of(plan), all_jobs(plan)
        assert sorted(job.key for unit in found.values() for job in unit.jobs) == sorted(job.key for job in jobs)
        done: set[str] = set()
        while ready := [unit for unit in found.values() if unit.name not in done and set(unit.needs) <= done]:
            for unit in ready:
                there = {job.key for name in [*unit.needs, unit.name] for job in found[name].jobs}
                assert all(set(job.needs) <= there for job in unit.jobs)
            done |= {unit.name for unit in ready}
        assert done == found.keys()

    def test_asks_for_what_the_launcher_says_and_the_run_needs(self, tmp_path: Path) -> None:
        launcher, _ = take_launcher(["launcher=submitit", "launcher.account=pw", "launcher.time=90"])
        assert isinstance(launcher, Submitit)
        asked = launcher.parameters("ansc", planned(tmp_path, "name=ansc", "seeds=1", "arms=full").arms[0].first)
        assert (asked["slurm_account"], asked["timeout_min"], asked["cpus_per_task"]) == ("pw", 90, 1)
        assert not {"gpus_per_node", "slurm_partition"} & asked.keys()


WORDS = ["name=ansc", "seeds=1", "arms=full", "start.updates=6", "train.updates=120", "train.batch_size=2"]
SMALL = [*WORDS, "train.checkpoint_every=20", "sampling.count=4", "sampling.solution_steps=8"]


class Signals(threading.Thread):
    """Sends a training SIGUSR1 once it has a checkpoint, and SIGTERM once it has gone on to another; `hit`: to whom."""

    def __init__(self, outputs: Path, job: Job) -> None:
        super().__init__(daemon=True)
        self.outputs, self.job = outputs, job
        self.hit: list[int] = []

    def run(self) -> None:
        folder, ledger = self.outputs / "train" / self.job.run.training_signature, Ledger(self.outputs)
        last, sent = folder / "checkpoints" / "last.ckpt", 0
        until = time.monotonic() + 500
        for number in (signal.SIGUSR1, signal.SIGTERM):
            while time.monotonic() < until:
                claim = ledger.read(self.job.key)
                is_new = claim is not None and claim.state == "running" and claim.pid not in self.hit
                with suppress(FileNotFoundError):  # in between two checkpoints
                    if claim is not None and is_new and last.stat().st_mtime_ns > sent:
                        os.kill(claim.pid, number)
                        self.hit.append(claim.pid)
                        sent = time.time_ns()
                        break
                time.sleep(0.005)


@pytest.fixture
def no_orphans() -> Iterator[None]:
    """End what a failing test leaves."""
    yield
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "submitit" in " ".join(process.cmdline()):
                process.kill()


@pytest.mark.timeout(600)  # the machine may have other work: four processes import torch, one after the other
@pytest.mark.usefixtures("no_orphans")
def test_a_signal_puts_a_job_back_and_it_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """SIGUSR1, then SIGTERM, by submitit's executor on this machine."""
    from pw.train import train

    plan = planned(tmp_path / "signalled", *SMALL)
    outputs = plan.options.outputs
    jobs, rows = all_jobs(plan)
    cells = outline(plan, jobs, rows)
    launcher, _ = take_launcher(["launcher=submitit", "launcher.cluster=local"])
    assert isinstance(launcher, Submitit)
    told: list[tuple[str, str, str]] = []
    queue = Queue(
        launcher, plan.folder, outputs, units(jobs, cells.cells), lambda w, j, t: told.append((w, j.label, t))
    )
    signals = Signals(outputs, next(job for job in jobs if job.label == "train full seed 0"))
    signals.start()
    queue.run(jobs)
    assert queue.failed == {}
    assert {label for what, label, _ in told if what == "done"} == {job.label for job in jobs}
    assert len(signals.hit) == 2
    assert [cell.state for cell in look(cells, outputs)] == ["done"]
    logs = [path.read_text() for path in sorted((plan.folder / "queue").glob("*/*.out"))]
    assert [log.count("Requeued job") for log in logs] == [2]

    run = plan.arms[0].first
    alone = train(run, tmp_path / "alone")
    for name in ("ema.safetensors", "online.safetensors", "metrics.jsonl"):
        assert (outputs / "train" / alone.name / name).read_bytes() == (alone / name).read_bytes()
