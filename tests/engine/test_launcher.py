"""Launchers: their keys, the jobs of a queue, and stops by a signal."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.numpy import load_file
from small_processes import PRELOAD
from warm_python import warm_python

from experiments.engine.job import Job, all_jobs
from experiments.engine.ledger import Ledger
from experiments.engine.plan import Plan, make_plan, parse
from experiments.engine.queue.hand_over import Queue
from experiments.engine.queue.launcher import LAUNCHERS, Local, Submitit, Unit, take_launcher, units
from experiments.engine.run_ablation import main
from experiments.engine.status import cells_of, outline
from pw.io.arguments import ConfigError
from pw.io.paths import CONF, ROOT
from pw.run.build import build
from pw.train.record import training_folder

ONE = ["name=ansc", "seeds=1", "arms=full"]


def plan_for(outputs: Path, *words: str) -> Plan:
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
        assert (launcher.setup, launcher.qos) == (("module load cuda",), None)

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            ("launcher=slurm", ["launcher=slurm", "local, submitit", "SLURM's is launcher=submitit"]),
            ("launcher=submit", ["launcher=submit", "did you mean submitit?"]),
            ("launcher=submitit launcher.partion=x", ["launcher.partion=x", "did you mean partition?"]),
            ("launcher.partition=x", ["launcher=local has no partition", "launcher=submitit"]),
            ("launcher=submitit launcher.workers=2", ["launcher=submitit has no workers", "launcher=local"]),
            ("launcher=submitit launcher.time=long", ["launcher.time=long", "whole number"]),
            ("launcher=submitit launcher.gpus=0.5", ["launcher.gpus=0.5", "whole number"]),
            ("launcher=submitit launcher.parallel=0", ["launcher.parallel=0", "at least 1"]),
            ("launcher=submitit launcher.time=1 launcher.notice=60", ["launcher.notice=60", "launcher.time=1"]),
            ("launcher=submitit launcher.cluster=pbs", ["launcher.cluster=pbs", "one of slurm, local"]),
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
        before, after = (plan_for(tmp_path, *w).arms[0].first for w in (words, rest))
        assert (before.signature, before.training_signature) == (after.signature, after.training_signature)


class TestAJobOfTheQueue:
    def test_is_an_arm_and_seed_and_what_all_share_is_one_before_them(self, tmp_path: Path) -> None:
        queue = units_of(plan_for(tmp_path, "name=ansc", "seeds=2", "arms=baseline,full", "start.shipped=false"))
        arms = {"baseline seed 0", "full seed 0", "baseline seed 1", "full seed 1"}
        assert queue.keys() == {"train start hires", *arms}
        assert all(queue[name].needs == ("train start hires",) for name in arms)
        assert [job.kind for job in queue["full seed 1"].jobs] == ["train", "sample", "sample", "score"]

    def test_trains_once_what_is_sampled_in_several_ways(self, tmp_path: Path) -> None:
        queue = units_of(plan_for(tmp_path, "name=steps", "seeds=1", "start.shipped=false"))
        assert {queue[f"{steps} seed 0"].needs for steps in (2, 3, 4, 5)} == {("sample 48-step solution of 2 seed 0",)}
        trainings = {name: [j.label for j in unit.jobs if j.kind == "train"] for name, unit in queue.items()}
        assert trainings.pop("sample 48-step solution of 2 seed 0") == ["train start hires", "train 2 seed 0"]
        assert not any(trainings.values())

    @pytest.mark.parametrize("name", ["ansc", "aghs", "steps", "anchor_robustness"])
    def test_holds_every_thing_to_do_once_and_waits_for_no_circle(self, tmp_path: Path, name: str) -> None:
        plan = plan_for(tmp_path, f"name={name}", "seeds=2")
        queue, (jobs, _) = units_of(plan), all_jobs(plan)
        assert sorted(job.key for unit in queue.values() for job in unit.jobs) == sorted(job.key for job in jobs)
        done: set[str] = set()
        while ready := [unit for unit in queue.values() if unit.name not in done and set(unit.needs) <= done]:
            for unit in ready:
                keys = {job.key for name in [*unit.needs, unit.name] for job in queue[name].jobs}
                assert all(set(job.needs) <= keys for job in unit.jobs)
            done |= {unit.name for unit in ready}
        assert done == queue.keys()

    def test_asks_for_what_the_launcher_says_and_the_run_needs(self, tmp_path: Path) -> None:
        launcher, _ = take_launcher(["launcher=submitit", "launcher.account=pw", "launcher.time=90"])
        assert isinstance(launcher, Submitit)
        parameters = launcher.parameters("ansc", units_of(plan_for(tmp_path, *ONE))["full seed 0"])
        assert (parameters["slurm_account"], parameters["timeout_min"], parameters["cpus_per_task"]) == ("pw", 90, 1)
        assert (parameters["nodes"], parameters["tasks_per_node"]) == (1, 1)
        assert not {"gpus_per_node", "slurm_partition"} & parameters.keys()

    def test_is_apart_for_a_training_of_several_processes_which_has_a_task_for_each(self, tmp_path: Path) -> None:
        words = ["trainer=fsdp", "trainer.devices=4", "trainer.nodes=2", "trainer.threads=3", "start.shipped=false"]
        queue = units_of(plan_for(tmp_path, *ONE, *words))
        training, rest = queue["train full seed 0"], queue["full seed 0"]
        assert [job.kind for job in training.jobs] == ["train", "train"]  # its start, which no other arm needs here
        assert rest.needs == (training.name,)
        assert {job.kind for job in rest.jobs} == {"sample", "score"}
        launcher, _ = take_launcher(["launcher=submitit"])
        assert isinstance(launcher, Submitit)
        keys = ("nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task")
        parameters, rest_parameters = (launcher.parameters("ansc", unit) for unit in (training, rest))
        assert [parameters[key] for key in keys] == [2, 4, 4, 3]
        assert [rest_parameters[key] for key in keys] == [1, 1, 1, 3]
        # one task that is gone leaves the others waiting for it
        assert "--kill-on-bad-exit=1" in parameters["slurm_srun_args"]


class TestATrainingOnSeveralMachines:
    @pytest.mark.parametrize(
        ("words", "says"),
        [
            ("", ["trainer.nodes=2", "launcher=submitit", "trainer.nodes=1"]),
            ("launcher=submitit launcher.cluster=local", ["trainer.nodes=2", "launcher.cluster=slurm"]),
            ("launcher=submitit launcher.gpus=2", ["launcher.gpus=2", "trainer.devices=4", "launcher.gpus=null"]),
        ],
    )
    def test_is_refused_before_anything_runs_where_it_cannot_be(
        self, words: str, says: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*ONE, "trainer=fsdp", "trainer.devices=4", "trainer.nodes=2", "dry_run=true", *words.split()]) == 2
        message = capsys.readouterr().err
        assert not [part for part in says if part not in message], message


WORDS = ["name=ansc", "seeds=1", "arms=full", "start.updates=6", "train.updates=60", "train.batch_size=2"]
SMALL = [*WORDS, "train.checkpoint_every=10", "sampling.count=4", "sampling.solution_steps=8"]
TWO = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.threads=1"]


class Signals(threading.Thread):
    """Sends SIGUSR1 to a training after its first checkpoint, and SIGTERM after another one.

    tasks  which task of the job each signal goes to; pids: the process of the claim at that time
    """

    def __init__(self, plan: Plan, job: Job, tasks: Sequence[int]) -> None:
        super().__init__(daemon=True)
        self.plan, self.job, self.tasks = plan, job, tasks
        self.pids: list[int] = []

    def run(self) -> None:
        outputs = self.plan.options.outputs
        folder, ledger = outputs / "train" / self.job.run.training_signature, Ledger(outputs)
        last, sent = folder / "checkpoints" / "last.ckpt", 0
        deadline = time.monotonic() + 900
        for number, task in zip((signal.SIGUSR1, signal.SIGTERM), self.tasks, strict=True):
            while time.monotonic() < deadline:
                claim = ledger.read(self.job.key)
                is_new = claim is not None and claim.state == "running" and claim.pid not in self.pids
                with suppress(FileNotFoundError):  # in between two checkpoints
                    if claim is not None and is_new and last.stat().st_mtime_ns > sent:
                        os.kill(self.process_of(task) if task else claim.pid, number)
                        self.pids.append(claim.pid)
                        sent = time.time_ns()
                        break
                time.sleep(0.005)

    def process_of(self, task: int) -> int:
        """The pid of the process that writes the log of the task."""
        logs = {str(path) for path in (self.plan.folder / "queue").glob(f"*/*_{task}_log.out")}
        for process in psutil.process_iter():
            with suppress(OSError):
                if os.readlink(f"/proc/{process.pid}/fd/1") in logs:
                    return process.pid
        raise FileNotFoundError(f"no process of task {task}")


@pytest.fixture(scope="module")
def python() -> Iterator[str]:
    with warm_python(
        [*PRELOAD, "experiments.engine.queue.hand_over", "pw.sample.evaluate", "benchmarks.measure.clips"]
    ) as program:
        yield program


@pytest.fixture(scope="module")
def undisturbed(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same training by one process, without queue and signals."""
    outputs = tmp_path_factory.mktemp("alone")
    words = plan_for(outputs, *SMALL).arms[0].first.config.overrides
    process = subprocess.run(
        [python, "-m", "pw", "train", *words, f"outputs={outputs}"], stdout=subprocess.PIPE, text=True, check=True
    )
    return Path(process.stdout.strip())


@pytest.fixture
def no_orphans() -> Iterator[None]:
    """Kill the processes that a failing test leaves."""
    yield
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "submitit" in " ".join(process.cmdline()):
                process.kill()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
@pytest.mark.timeout(600)  # the machine may have other work
@pytest.mark.usefixtures("no_orphans")
@pytest.mark.parametrize(("more", "tasks", "outs"), [((), (0, 0), 1), (TWO, (1, 0), 3)], ids=["one", "two"])
def test_a_signal_to_any_task_puts_a_job_back_and_it_goes_on_to_the_same_weights(
    more: Sequence[str],
    tasks: Sequence[int],
    outs: int,
    python: str,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGUSR1, then SIGTERM, by submitit's executor on this machine."""
    monkeypatch.setattr(sys, "executable", python)
    plan = plan_for(tmp_path, *SMALL, *more)
    jobs, rows = all_jobs(plan)
    cells = outline(plan, jobs, rows)
    launcher, _ = take_launcher(["launcher=submitit", "launcher.cluster=local"])
    assert isinstance(launcher, Submitit)
    events: list[tuple[str, str, str]] = []
    queue = Queue(
        launcher, plan.folder, tmp_path, units(jobs, cells.cells), lambda w, j, t: events.append((w, j.label, t))
    )
    signals = Signals(plan, next(job for job in jobs if job.label == "train full seed 0"), tasks)
    signals.start()
    queue.run(jobs)
    assert queue.failures == {}
    assert {label for event, label, _ in events if event == "done"} == {job.label for job in jobs}
    assert len(signals.pids) == 2
    assert [cell.state for cell in cells_of(cells, tmp_path)] == ["done"]
    logs = {path: path.read_text() for path in (plan.folder / "queue").glob("*/*.out")}
    assert len(logs) == outs
    # one task puts the job back for all
    assert sorted(log.count("Requeued job") for log in logs.values()) == [*[0] * (outs - 1), 2]

    folder = tmp_path / "train" / undisturbed.name
    if not more:
        for name in ("ema.safetensors", "online.safetensors", "metrics.jsonl"):
            assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()
        return
    assert json.loads((folder / "done.json").read_text())["processes"] == 2
    expected = load_file(undisturbed / "ema.safetensors")
    for name, value in load_file(folder / "ema.safetensors").items():
        np.testing.assert_allclose(value, expected[name], atol=2e-4, err_msg=name)  # sums of another order, 60 times


# Starts a command as the first of its terminal, which the kernel tells when that closes.
AT_A_TERMINAL = """if True:
    import fcntl, os, signal, sys, termios
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if sys.argv[1] == "nohup":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="makes a terminal")
@pytest.mark.parametrize("wrapper", ["", "nohup"])
def test_a_terminal_that_closes_stops_a_training_with_a_checkpoint_but_not_one_under_nohup(
    wrapper: str, tmp_path: Path
) -> None:
    every = 20 if wrapper else 100000  # so that there is one only because it was stopped
    run = build(
        ["train.updates=100000", f"train.checkpoint_every={every}", "train.batch_size=2", "start=none", "stage=hires"]
    )
    checkpoint = training_folder(run, tmp_path) / "checkpoints" / "last.ckpt"
    terminal, child_end = pty.openpty()
    words = [sys.executable, "-m", "pw", "train", *run.config.overrides, f"outputs={tmp_path}"]
    training = subprocess.Popen(
        [sys.executable, "-ISB", "-c", AT_A_TERMINAL, wrapper, *words],
        stdin=child_end, stdout=child_end, stderr=child_end, start_new_session=True,
    )  # fmt: skip
    os.close(child_end)
    output = b""
    while not any(int(update) > 20 for update in re.findall(rb"update (\d+) of", output)):  # not every one is shown
        output += os.read(terminal, 4096)
    os.close(terminal)
    if wrapper == "nohup":  # it goes on, though its words about that can no longer be written
        saved = checkpoint.stat().st_mtime_ns
        while checkpoint.stat().st_mtime_ns < saved + 10**8:
            assert training.poll() is None
            time.sleep(0.01)
        training.send_signal(signal.SIGTERM)
    assert training.wait(60) == 128 + (signal.SIGTERM if wrapper else signal.SIGHUP)
    assert torch.load(checkpoint, weights_only=True)["global_step"] > 20


@pytest.mark.slow
def test_what_workers_are_forked_from_has_all_they_work_with_and_does_not_look_through_it_again() -> None:
    code = (
        "import gc, sys; import experiments.engine.preload\n"
        "there = {'lightning.pytorch', 'pw.stages.stage', 'pw.sample.evaluate', 'benchmarks.measure.clips'}\n"
        "assert there <= sys.modules.keys()\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 100_000\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
