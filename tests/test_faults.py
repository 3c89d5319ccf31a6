"""Faults of real machines in a small ablation: the final table equals that of an undisturbed run, digit for digit.

A runner killed from the command line, a training that cannot begin and a locked database are in `test_ablation.py`,
signals in `test_launcher.py`.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from filelock import FileLock, Timeout
from rich.console import Console
from small_shards import spoil, write_noise

from experiments.engine.ablation import DETAIL, Ablation, AblationOptions, Statement
from experiments.engine.job import Job, all_jobs
from experiments.engine.ledger import Ledger
from experiments.engine.outcome.table import make_table
from experiments.engine.outcome.table_files import write_pictures, write_table
from experiments.engine.plan import Plan, plan_of
from experiments.engine.pool import PRELOAD, Pool, RunningJob, read_reports
from experiments.engine.run_ablation import finish
from experiments.engine.status import cells_of, outline
from pw.io.manifest import read_mark, write_mark
from pw.io.paths import ROOT
from pw.parallel.signals import Stopped
from pw.train.batches import read
from pw.train.record import training_folder

pytestmark = pytest.mark.slow

# arms that differ in what will happen to them
ABLATION = Ablation(
    fixed="stage=hires",
    varies=("weighting.p", "optimizer.lr"),
    arms={"killed": "weighting.p=0.25", "full_disk": "weighting.p=0.75", "not_finite": "optimizer.lr=1e30"},
    versus="first",
    metrics=DETAIL,
)
SIZES = (
    *("start.updates=6", "train.updates=60", "train.batch_size=2", "train.checkpoint_every=1"),
    *("sampling.count=4", "sampling.solution_steps=8"),
)


def plan_for(outputs: Path, ablation: Ablation = ABLATION, sizes: Sequence[str] = SIZES) -> Plan:
    return plan_of(
        AblationOptions("faults", seeds=(0,), outputs=outputs, overrides=tuple(sizes)),
        ablation,
        Statement("", "", "", ""),
    )


def table(plan: Plan, pool: Pool) -> dict[str, Any]:
    """The table without measured costs and without paths."""
    result = make_table(plan, all_jobs(plan)[1], pool.failures)
    without_place = json.loads(json.dumps(result, default=str).replace(str(plan.options.outputs), ""))
    for arm in without_place["arms"]:
        arm["cost"] = {"train_flops": arm["cost"].get("train_flops")}
    return without_place


@dataclass(frozen=True)
class PoolRun:
    """A pool that has run, with its events (event, label, text)."""

    plan: Plan
    pool: Pool
    events: list[tuple[str, str, str]]

    def event_of(self, label: str) -> tuple[str, str]:
        """(done, failed or skipped; its text) of the job with this label."""
        return next((event, text) for event, name, text in self.events if name == label and event != "started")


def run_pool(outputs: Path, tick: Callable[[Pool], None] = lambda _: None, plan: Plan | None = None) -> PoolRun:
    """Run a plan as `make ablation` does between plan and table, with two workers."""
    plan, events = plan or plan_for(outputs), []
    pool = Pool(outputs, 2, lambda event, job, text: events.append((event, job.label, text)))
    todo = [job for job in all_jobs(plan)[0] if not job.is_done(outputs)]
    try:
        pool.run(todo, lambda: tick(pool))
    except Stopped as stopped:
        events.append(("interrupted", "", signal.Signals(stopped.signal).name))
    return PoolRun(plan, pool, events)


class Disturber(threading.Thread):
    """Calls an action on the process of each named training, once it has begun its updates."""

    def __init__(self, plan: Plan, actions: dict[str, Callable[[int, Path], None]]) -> None:
        super().__init__(daemon=True)
        self.outputs, self.stop = plan.options.outputs, threading.Event()
        self.pending = {job.label: (job, actions[job.label]) for job in all_jobs(plan)[0] if job.label in actions}

    def run(self) -> None:
        ledger = Ledger(self.outputs)
        while self.pending and not self.stop.wait(0.002):
            for label, (job, action) in list(self.pending.items()):
                checkpoints = self.folder(job) / "checkpoints"
                claim = ledger.read(job.key)
                if (checkpoints / "previous.ckpt").exists() and claim is not None and claim.pid != os.getpid():
                    action(claim.pid, checkpoints)
                    del self.pending[label]

    def folder(self, job: Job) -> Path:
        return self.outputs / "train" / job.run.training_signature


def kill_during_save(pid: int, checkpoints: Path) -> None:
    """kill -9 while a checkpoint is half written: suspends the process repeatedly until that is the case."""
    process = psutil.Process(pid)
    while True:
        process.suspend()
        while process.status() != psutil.STATUS_STOPPED:
            time.sleep(0.0001)
        sizes = {path.name: path.stat().st_size for path in checkpoints.glob("*.ckpt")}
        if 0 < sizes.get("partial.ckpt", 0) < 0.9 * max(sizes.values()):
            process.kill()
            return
        process.resume()
        time.sleep(0.001)


def fill_the_disk(pid: int, checkpoints: Path) -> None:
    """Limit files of the process to 20 kB. Python ignores SIGXFSZ, so a write raises OSError."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (20_000, 20_000))


@dataclass(frozen=True)
class Story:
    """One ablation undisturbed; another with a killed worker and a full disk, then with its runner killed, then
    interrupted, then finished.

    checkpoints_after_kill  checkpoint of the killed worker -> whether it can be read
    orphans                 workers of the killed runner that are alive ten seconds later
    """

    undisturbed: PoolRun
    disturbed: PoolRun
    checkpoints_after_kill: dict[str, bool]
    orphans: list[int]
    interrupted: PoolRun
    finished: PoolRun
    workers_left: list[int]
    claims_left: list[str]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    if not hasattr(resource, "prlimit"):
        pytest.skip("a limit on another process's files is Linux's")
    undisturbed = run_pool(tmp_path_factory.mktemp("undisturbed"))
    outputs = tmp_path_factory.mktemp("disturbed")
    actions = {"train killed seed 0": kill_during_save, "train full_disk seed 0": fill_the_disk}
    disturber = Disturber(plan_for(outputs), actions)
    disturber.start()
    disturbed = run_pool(outputs)
    disturber.stop.set()
    assert not disturber.pending, "the trainings were over before anything could happen to them"
    folder = next(disturber.folder(job) for job in all_jobs(disturbed.plan)[0] if job.label == "train killed seed 0")
    checkpoints = {path.name: can_be_read(path) for path in (folder / "checkpoints").iterdir()}

    orphans = kill_a_runner(outputs)
    workers: list[int] = []

    def interrupt(pool: Pool) -> None:
        if pool.running:
            workers.extend(r.process.pid for r in pool.running)
            signal.raise_signal(signal.SIGHUP)

    interrupted = run_pool(outputs, interrupt)
    alive = [pid for pid in workers if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
    claims = [json.loads(path.read_text()) for path in (outputs / "ledger").glob("*.json")]
    running = [claim["label"] for claim in claims if claim["state"] == "running"]
    checkpoint = folder / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    return Story(undisturbed, disturbed, checkpoints, orphans, interrupted, run_pool(outputs), alive, running)


def kill_a_runner(outputs: Path) -> list[int]:
    """kill -9 of another runner while both workers run; returns the workers that live ten seconds later."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    runner = context.Process(target=run_pool, args=(outputs,))  # its workers come from our fork server, too
    runner.start()
    ledger, deadline = Ledger(outputs), time.monotonic() + 900
    at_work: dict[int, psutil.Process] = {}
    while len(at_work) < 2:
        assert runner.is_alive()
        assert time.monotonic() < deadline
        claims = [ledger.read(job.key) for job in all_jobs(plan_for(outputs))[0]]
        for pid in {claim.pid for claim in claims if claim and claim.state == "running"} - {runner.pid, *at_work}:
            with contextlib.suppress(psutil.NoSuchProcess):  # one that failed meanwhile
                at_work[pid] = psutil.Process(pid)
                suspend(at_work[pid], ledger)  # or its training may be over before the other one has begun
        at_work = {pid: process for pid, process in at_work.items() if process.is_running()}
    runner.kill()
    runner.join()
    for process in at_work.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
    _, alive = psutil.wait_procs(list(at_work.values()), timeout=900)
    return [process.pid for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def suspend(process: psutil.Process, ledger: Ledger) -> None:
    """Suspend a worker, but not while it has the ledger's lock, which its runner needs."""
    while True:
        process.suspend()
        with contextlib.suppress(Timeout), FileLock(ledger.folder / ".lock", timeout=0.2):
            return
        process.resume()
        time.sleep(0.01)


def can_be_read(checkpoint: Path) -> bool:
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception:  # torch has many for a file that is cut off
        return False
    return True


def test_a_killed_worker_takes_only_what_depends_on_it(story: Story) -> None:
    event, text = story.disturbed.event_of("train killed seed 0")
    assert (event, "was killed" in text or "ended with code" in text) == ("failed", True)
    assert story.disturbed.event_of("sample killed seed 0")[0] == "skipped"
    assert story.disturbed.event_of("train start hires")[0] == "done"


def test_a_kill_while_a_checkpoint_is_written_leaves_the_two_before_and_later_no_part(story: Story) -> None:
    assert story.checkpoints_after_kill == {"partial.ckpt": False, "last.ckpt": True, "previous.ckpt": True}
    assert not list(story.finished.plan.options.outputs.glob("train/*/checkpoints/partial.ckpt"))


def test_a_killed_runner_takes_its_workers_along(story: Story) -> None:
    assert story.orphans == []


def test_a_full_disk_fails_its_own_training_and_says_so(story: Story) -> None:
    event, text = story.disturbed.event_of("train full_disk seed 0")
    assert event == "failed"
    assert "File too large" in text


def test_a_loss_that_is_not_finite_stops_its_arm_and_no_other(story: Story) -> None:
    for pool_run in (story.undisturbed, story.finished):
        failed = {label for event, label, _ in pool_run.events if event == "failed"}
        assert failed == {"train not_finite seed 0"}
        assert "the loss is not finite at update 2" in pool_run.event_of("train not_finite seed 0")[1]
    assert story.undisturbed.event_of("score full_disk seed 0")[0] == "done"


def test_a_loss_that_is_not_finite_leaves_its_batch(story: Story) -> None:
    run = next(job.run for job in all_jobs(story.finished.plan)[0] if job.label == "train not_finite seed 0")
    (path,) = story.finished.plan.options.outputs.glob(f"train/{run.training_signature}/not_finite/*.json")
    record, clips = read(path)
    assert (record.signature, record.update) == (run.training_signature, 2)
    assert torch.equal(clips, run.source.batch(0, record.batch, 2))


def test_an_interrupted_runner_leaves_no_worker_and_no_claim(story: Story) -> None:
    assert story.interrupted.events[-1] == ("interrupted", "", "SIGHUP")
    assert story.workers_left == []
    assert story.claims_left == []


HUNG_UP = """if True:
    import multiprocessing, os, signal, time
    from experiments.engine.pool import start_fork_server
    start_fork_server()
    worker = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(1,))
    worker.start()
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)
        os.killpg(0, number)
    worker.join()
    print(worker.exitcode)
"""


def test_a_terminal_that_closes_tells_the_runner_alone_who_sees_its_workers_end() -> None:
    """Its signals go to all processes; the fork server must survive them to report the ends of workers."""
    words = [sys.executable, "-c", HUNG_UP]
    process = subprocess.run(words, cwd=ROOT, start_new_session=True, capture_output=True, text=True, check=True)
    assert process.stdout == "0\n"


ENDLESS = ("start=none", "train.updates=100000", "train.batch_size=2", "train.checkpoint_every=100000")


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="a limit on another process's files is Linux's")
@pytest.mark.parametrize("who", ["runner", "worker"])
def test_what_a_worker_says_of_being_stopped_is_told(who: str, tmp_path: Path) -> None:
    """If the runner stops: its checkpoint could not be written. If the worker alone is stopped: that it was stopped."""
    job = next(job for job in all_jobs(plan_for(tmp_path, sizes=(*SIZES, *ENDLESS)))[0] if job.kind == "train")
    events: list[tuple[str, str]] = []
    pool = Pool(tmp_path, 1, lambda event, job, text: events.append((event, text)))

    def stop() -> None:
        if pool.running and pool.running[0].share:
            pid = pool.running[0].process.pid
            if who == "runner":
                fill_the_disk(pid, tmp_path)
            os.kill(os.getpid() if who == "runner" else pid, signal.SIGTERM)
            pool.running[0].share = 0.0

    with pytest.raises(Stopped) if who == "runner" else contextlib.nullcontext():
        pool.run([job], stop)
    event, text = events[-1]
    assert event == "failed"
    assert ("File too large" if who == "runner" else "stopped by SIGTERM; run the same command again to resume") in text


def test_half_a_word_of_a_worker_that_was_killed_ends_no_runner(tmp_path: Path) -> None:
    report, worker_end = multiprocessing.Pipe(duplex=False)
    os.write(worker_end.fileno(), b"\0\0\0\x20half")
    worker_end.close()
    running = RunningJob(all_jobs(plan_for(tmp_path))[0][0], None, report, 0.0)
    assert read_reports(running) is None
    assert running.is_silent


def test_a_corrupt_checkpoint_is_set_aside_for_the_one_before(story: Story) -> None:
    (log,) = (story.finished.plan.options.outputs / "logs").glob("train_killed_seed_0_*.log")
    assert "is unreadable" in log.read_text()
    assert story.finished.event_of("train killed seed 0")[0] == "done"


def test_the_table_is_afterwards_the_undisturbed_one(story: Story) -> None:
    expected, result = (table(pool_run.plan, pool_run.pool) for pool_run in (story.undisturbed, story.finished))
    assert [arm["status"].partition(":")[0] for arm in expected["arms"]] == ["ok", "ok", "failed"]
    assert result == expected


def test_the_status_tells_who_failed_and_why(story: Story) -> None:
    plan = story.finished.plan
    cells = cells_of(outline(plan, *all_jobs(plan)), plan.options.outputs)
    assert [cell.state for cell in cells] == ["done", "done", "failed"]
    assert "the loss is not finite" in cells[2].detail
    assert "ValueError" in cells[2].log[-1]


def test_a_clip_that_cannot_be_read_is_passed_over_by_every_arm_and_the_table_names_it(tmp_path: Path) -> None:
    shards = write_noise(tmp_path, train=6, val=4)
    spoil(shards, "train", 2)
    spoil(shards, "val", 3)
    arms = {"one": "weighting.p=0.25", "two": "weighting.p=0.75"}
    ablation = Ablation(fixed="stage=hires", varies=("weighting.p",), arms=arms, versus="first", metrics=("psd",))
    sizes = ("start=none", "train.updates=4", "train.batch_size=2", "sampling.count=2", "sampling.num_steps=1")
    plan = plan_for(
        tmp_path, ablation, (*sizes, "sampling.solution_steps=1", "data=shards", f"data.urls={shards}/*.tar")
    )
    pool_run = run_pool(tmp_path, plan=plan)
    folders = [training_folder(arm.runs[0], tmp_path) for arm in plan.arms]
    marks = [read_mark(folder / "done.json") for folder in folders]
    assert [mark["passed_over"] for mark in marks] == [["train-000000.tar/clip-2"]] * 2
    for arm in arms:
        (log,) = (tmp_path / "logs").glob(f"train_{arm}_seed_0_*.log")
        assert "cannot read 'clip-2'" in log.read_text()
    result = table(plan, pool_run.pool)
    assert "training clips that could not be read and were skipped: 1 (train-000000.tar/clip-2)" in result["notes"]
    assert any("unreadable: val-000000.tar/clip-3" in note for note in result["notes"])
    assert not [note for note in result["notes"] if note.startswith("warning")]
    write_mark(folders[1] / "done.json", {**marks[1], "passed_over": []}, [])  # one that was trained on other shards
    (warning,) = [note for note in table(plan, pool_run.pool)["notes"] if note.startswith("warning")]
    assert "arms of seed 0 did not skip the same clips (one 1, two 0)" in warning


def test_an_mlflow_that_cannot_be_written_costs_no_table(story: Story) -> None:
    plan = story.finished.plan
    (plan.options.outputs / "mlflow").write_text("a file where a folder should be")
    console = Console(file=io.StringIO(), width=200)
    plan = plan_for(plan.options.outputs, sizes=(*SIZES, "tracking=mlflow"))
    assert finish(plan, all_jobs(plan)[1], story.finished.pool.failures, console, time.perf_counter()) == 1  # one arm
    assert "MLflow was not written" in console.file.getvalue()
    assert "make mlflow-sync" in console.file.getvalue()
    assert (plan.folder / "table.md").exists()


def write_again_and_again(plan: Plan, result: dict[str, Any]) -> None:
    while True:
        write_table(plan, result, [])
        write_pictures(plan, result, [])


def test_a_kill_while_the_table_is_written_leaves_no_half_of_one(story: Story) -> None:
    plan = story.finished.plan
    result = make_table(plan, all_jobs(plan)[1], story.finished.pool.failures)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    write_table(plan, result, [])
    write_pictures(plan, result, [])
    whole = {path.name: path.read_bytes() for path in plan.folder.iterdir() if path.is_file()}
    stamp = (plan.folder / "table.json").stat().st_mtime_ns
    for pause in (0.0, 0.15):
        writer = context.Process(target=write_again_and_again, args=(plan, result), daemon=True)
        writer.start()
        deadline = time.monotonic() + 900
        while (plan.folder / "table.json").stat().st_mtime_ns == stamp:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(pause)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        stamp = (plan.folder / "table.json").stat().st_mtime_ns
        assert {name: (plan.folder / name).read_bytes() for name in whole} == whole
