"""Carry a plan out: each training, sampling and scoring once, two processes of one thread on two cores.

A job is found by signature and is done when its files say so; so a killed ablation continues where it was, and two
ablations share what they have in common. A job that fails takes only what depends on it along.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from benchmarks.metrics import lookup
from experiments.engine.ledger import Claim, Ledger
from experiments.engine.plan import Plan, starts
from pw.cost.count import generation_cost, training_cost
from pw.io.files import digest, read_json
from pw.io.host import free_memory, usable_cores
from pw.parallel.processes import GRACE, Failed, Stopped, interruptible
from pw.run.build import Run
from pw.run.provenance import provenance
from pw.sample.evaluate import anchor_reference, is_sampled, reference_folder, sample_folder
from pw.train.record import is_trained, training_folder

# Seconds on one core of the machine this was written on, to estimate with before anything has been measured.
SECONDS = {"flow": 0.058, "consistency": 0.092, "forward": 0.0016, "score": 1.2, "job": 0.5}
ASSUMED_FLOPS = 4e14  # a second, at Wan's scales: as `make plan` assumes of an H100
FORK_SECONDS = 20  # importing torch, lightning and diffusers, once
PRELOAD = ["pw.io.suite_first", "experiments.engine.preload"]  # imported once, where workers are forked from


@dataclass(frozen=True)
class Job:
    """One thing to do: its key says what is made, `needs` which keys come first."""

    key: str
    label: str
    kind: Literal["train", "sample", "score"]
    run: Run
    needs: tuple[str, ...] = ()
    limit: int = 0
    seed: int = 0
    score: dict[str, Any] = field(default_factory=dict)

    def seconds(self) -> float:
        """Estimated time on one core."""
        run = self.run
        if run.text is not None and self.kind != "score":
            return SECONDS["job"] + self._flops() / ASSUMED_FLOPS
        if self.kind == "train":
            consistency = run.objective.consistency_updates(run.train.updates)
            seconds = (run.train.updates - consistency) * SECONDS["flow"] + consistency * SECONDS["consistency"]
            return SECONDS["job"] + run.train.accumulate * seconds * run.train.batch_size / 8
        if self.kind == "sample":
            branches = 2 if run.guidance.scale != 1 else 1
            return SECONDS["job"] + self.limit * run.sampling.num_steps * branches * SECONDS["forward"]
        return SECONDS["score"]

    def _flops(self) -> float:
        """Of a job at one of Wan's scales, by `pw.cost.count`."""
        run = self.run
        if self.kind == "train":
            return training_cost(run).flops
        stages = (None, run) if run.stage == "anchor" else (run, None)
        return self.limit * generation_cost(*stages).flops

    def is_done(self, outputs: Path) -> bool:
        """Whether its files are there."""
        if self.kind == "train":
            return is_trained(self.run, outputs)
        if self.kind == "sample":
            return is_sampled(self.run, self.limit, outputs, self.seed)
        return score_is_current(self.score)

    def folder(self, outputs: Path) -> Path:
        """Where its files are."""
        if self.kind == "train":
            return training_folder(self.run, outputs)
        return sample_folder(self.run, outputs, self.seed) if self.kind == "sample" else Path(self.score["out"])

    def check_code(self) -> None:
        """Raises RuntimeError in a process that has other code than the one that made the plan."""
        run = replace(self.run)  # what it knows of code is of the plan
        found = {"train": train_key(run), "sample": sample_key(run, self.limit, self.seed)}.get(self.kind, self.key)
        if found != self.key:
            raise RuntimeError(
                f"not run: the code is not that of the plan any more ({self.key} would be {found}); call it again"
            )


def train_key(run: Run) -> str:
    """Of the job that trains a run."""
    return f"train:{run.training_signature}"


def sample_key(run: Run, limit: int, seed: int) -> str:
    """Of the job that samples a run."""
    return f"sample:{run.sample_signature(seed)}:{limit}"


def score_is_current(score: dict[str, Any]) -> bool:
    """Whether a scores.json is there that measured what is asked for."""
    from benchmarks.metrics import protocols

    found = read_json(Path(score["out"]) / "scores.json")
    contract = (found or {}).get("contract")
    return isinstance(contract, dict) and contract.get("metrics") == protocols(score["metrics"])


@dataclass
class Row:
    """Where one (row, seed) of the table finds its scores, and the arm that it belongs to."""

    name: str
    seed: int
    job: Job
    arm: str


def train_jobs(run: Run, label: str) -> list[Job]:
    """The training of a run, its start first."""
    is_there = run.start_run is None or run.start_run.shipped or run.is_as_trained
    before = [] if is_there else train_jobs(run.start_run, f"start {run.start.name}")
    needs = (before[-1].key,) if before else ()
    return [*before, Job(train_key(run), f"train {label}", "train", run, needs)]


def sample_jobs(run: Run, label: str, limit: int, seed: int) -> list[Job]:
    """The sampling of a run, all it needs first."""
    before = train_jobs(run, label)
    needs = [before[-1].key]
    if run.anchor_run is not None:
        anchors = sample_jobs(run.anchor_run, "anchors", limit, seed)
        before += anchors
        needs.append(anchors[-1].key)
    key = sample_key(run, limit, seed)
    return [*before, Job(key, f"sample {label}", "sample", run, tuple(needs), limit, seed)]


def all_jobs(plan: Plan) -> tuple[list[Job], list[Row]]:
    """Every job of a plan, each once and after what it needs, and the rows that will be read from them."""
    outputs = plan.options.outputs
    jobs: dict[str, Job] = {}
    rows: list[Row] = []

    def add(more: Sequence[Job]) -> str:
        for job in more:
            jobs.setdefault(job.key, job)
        return more[-1].key

    def scored(
        name: str, arm: str, seed: int, run: Run, videos: Path, needs: list[str], solution: Path | None = None
    ) -> None:
        score = score_request(plan, name, run, videos, solution, seed)
        key = f"score:{score['out']}"
        job = jobs.setdefault(key, Job(key, f"score {name} seed {seed}", "score", run, tuple(needs), score=score))
        rows.append(Row(name, seed, job, arm))

    asks = any("solution" in lookup(metric).needs for metric in plan.ablation.metrics)
    for arm, seed, run in plan.runs():
        label = f"{arm.name} seed {seed}"
        count, ceiling = run.sampling.count, arm is plan.ceiling
        needs = [add(sample_jobs(run, label, count, seed))]
        solution = None
        if run.sampling.num_steps < run.sampling.solution_steps and (asks or ceiling):
            solved = run.solution
            ceilings = plan.ceiling.runs[seed].solution  # of all clips, also for arms with the same weights
            shared = solved.sample_signature(seed) == ceilings.sample_signature(seed)
            clips = count if shared else run.sampling.solved
            needs.append(
                add(sample_jobs(solved, f"{run.sampling.solution_steps}-step solution of {label}", clips, seed))
            )
            solution = sample_folder(solved, outputs, seed)
        if ceiling:
            scored("floor", arm.name, seed, run, reference_folder(run, outputs, seed) / "real_b", needs[:1])
            if solution is not None:
                scored("ceiling", arm.name, seed, run, solution, needs[-1:])
        scored(arm.name, arm.name, seed, run, sample_folder(run, outputs, seed), needs, solution)
    for probe in plan.probes:
        name = probe_row(probe.arm, probe.value)
        needs = [add(sample_jobs(probe.run, f"{name} seed {probe.seed}", probe.run.sampling.count, probe.seed))]
        scored(name, probe.arm, probe.seed, probe.run, sample_folder(probe.run, outputs, probe.seed), needs)
    return list(jobs.values()), rows


def probe_row(arm: str, value: Any) -> str:
    """Name of the scores of a probed arm."""
    return f"{arm} at {value}"


def score_request(plan: Plan, name: str, run: Run, videos: Path, solution: Path | None, seed: int) -> dict[str, Any]:
    """What `score_folder` is asked: folders, metrics and the contract stamped on the scores."""
    outputs = plan.options.outputs
    is_floor = name == "floor"
    real = reference_folder(run, outputs, seed) / "real"
    if plan.ablation.native:
        real = anchor_reference(run, outputs, seed)
        videos = anchor_reference(run, outputs, seed, twin=True) if is_floor else videos / "native"
    structure = _structure(run, outputs, seed, is_floor)
    there = {"real": real, "structure": structure, "solution": solution}
    metrics = [m for m in plan.ablation.metrics if all(there[need] is not None for need in lookup(m).needs)]
    contract = {
        "scale": run.scale.name,
        "data": run.config.choices["data"],
        "clips_fingerprint": run.source.fingerprint(),
        "count": run.sampling.count,
        "seed": seed,
        "arm": name,
        "signature": run.sample_signature(seed),
        "train_signature": run.training_signature,
        **{key: provenance()[key] for key in ("git_commit", "dirty", "lock_hash")},
        "code": run.sampling_code,
    }
    if structure is not None:  # D21
        contract["metrics.structure"] = "generated anchors" if run.anchor_run else "the anchored clips"
    folders = {"videos": videos, **there}
    about = {what: str(path.relative_to(outputs)) for what, path in folders.items() if path is not None}
    return {
        "out": str(outputs / "scores" / digest([about, metrics, run.sampling.solved])),
        **{what: None if path is None else str(path) for what, path in folders.items()},
        "solved": run.sampling.solved,
        "metrics": metrics,
        "contract": contract,
    }


def _structure(run: Run, outputs: Path, seed: int, is_floor: bool) -> Path | None:
    """What a run's clips should be faithful to: None where it was given no anchor."""
    if run.injector is None:
        return None
    if run.anchor_run is not None:
        return None if is_floor else sample_folder(run.anchor_run, outputs, seed)
    if is_floor and not run.source.twins_share_structure:
        return None
    return reference_folder(run, outputs, seed) / "real"


# ---- the worker's side


def _work(job: Job, outputs: Path, claim: Claim, report: Connection, parent: Connection) -> None:
    """Carry out one job in a process of its own; its words go to the claim's log, its progress to `report`."""
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    log, ledger = Path(claim.log), Ledger(outputs)
    log.parent.mkdir(parents=True, exist_ok=True)
    stream = log.open("w", buffering=1)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    try:
        with ledger.working(claim) as note:

            def progress(done: int, total: int) -> None:
                note(done, total)
                report.send(("progress", done, total))

            carry_out(job, outputs, progress)
        ledger.release(job.key)
        report.send(("done", "", ""))
    except Stopped as stopped:
        name = signal.Signals(stopped.signal).name
        report.send(("stopped", f"stopped by {name}; the same command goes on", str(log)))
    except Failed as error:  # in one of several processes, which has a log of its own
        traceback.print_exc()
        report.send(("failed", str(error), str(error.log or log)))
    except BaseException as error:
        traceback.print_exc()
        report.send(("failed", f"{type(error).__name__}: {error}", str(log)))


def _end_with_parent(parent: Connection) -> None:
    # the runner holds the other end: a runner that is killed, even by SIGKILL, ends its workers
    try:
        parent.recv()
    except (EOFError, OSError):
        os._exit(1)


def carry_out(job: Job, outputs: Path, progress: Callable[[int, int], None]) -> None:
    """Do one job in this process."""
    import torch

    from pw.sample.evaluate import sample
    from pw.train.loop import train

    torch.set_num_threads(job.run.trainer.threads)
    if job.kind == "train":
        train(job.run, outputs, progress)
    elif job.kind == "sample":
        sample(job.run, outputs, limit=job.limit, seed=job.seed, progress=progress)
    else:
        from benchmarks.measure.clips import score_folder

        ask = job.score
        score_folder(
            Path(ask["videos"]),
            Path(ask["out"]),
            real=Path(ask["real"]),
            structure=None if ask["structure"] is None else Path(ask["structure"]),
            solution=None if ask["solution"] is None else Path(ask["solution"]),
            solved=ask["solved"],
            metrics=ask["metrics"],
            contract=ask["contract"],
        )


# ---- the runner's side


@dataclass
class _Running:
    job: Job
    process: Any
    report: Connection
    parent: Connection
    began: float
    share: float = 0.0
    is_silent: bool = False  # it cannot report any more


def _heard(running: _Running) -> tuple[str, str, str] | None:
    """What a worker reported of its end: (done, stopped or failed; why; the log). None until it did."""
    outcome = None
    try:
        while running.report.poll():
            word, first, second = running.report.recv()
            if word == "progress":
                running.share = first / max(1, second)
            else:
                outcome = (word, first, second)
    except (EOFError, OSError):  # a killed process may leave half a word
        running.is_silent = True
    return outcome


def default_workers() -> int:
    """One per core this process may use, with a GiB of free memory for each."""

    return max(1, min(usable_cores(), free_memory() // 2**30))


def start_fork_server() -> None:
    """Start what workers are forked from, unless it is there. A terminal that closes is nothing to it, nor to them: it
    would leave its workers, who are told to stop by the runner, without anybody to say that they have."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Pool:
    """Runs jobs in their order as soon as what they need is done, `workers` at a time.

    show(event, job, text) is told what happens; failed: key -> reason, dependants included; held: key -> the claim of
    another runner, whose job is waited for while there is nothing else to do.
    """

    def __init__(self, outputs: Path, workers: int, show: Callable[[str, Job, str], None]) -> None:
        self.outputs, self.show = outputs, show
        self.workers = workers or default_workers()
        self.ledger = Ledger(outputs)
        self.failed: dict[str, str] = {}
        self.held: dict[str, Claim] = {}
        self.running: list[_Running] = []
        self.waiting: list[Job] = []
        self.pace = 1.0  # measured seconds per estimated second
        self._measured = (0.0, 0.0)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)

    def run(self, jobs: Sequence[Job], tick: Callable[[], None] = lambda: None) -> None:
        """Carry the jobs out; returns when none is left that can run. Raises KeyboardInterrupt or Stopped when it was
        told to stop, and its workers have ended."""
        self.waiting = list(jobs)
        start_fork_server()
        with interruptible():
            try:
                while self.waiting or self.running:
                    self._start()
                    if not self.running and not self.held:
                        break
                    ends = [r.report for r in self.running] + [r.process.sentinel for r in self.running]
                    wait(ends, timeout=1.0)
                    for running in list(self.running):
                        self._listen(running)
                    tick()
            finally:
                self._end()

    def _end(self) -> None:
        """End what runs: a training has time to write a checkpoint, unless Ctrl-C is pressed once more."""
        with suppress(KeyboardInterrupt):
            for running in self.running:
                running.process.terminate()
            for running in self.running:
                if running.job.kind == "train":
                    self.show("stopping", running.job, "until its checkpoint is written; Ctrl-C ends it at once")
            until = time.monotonic() + GRACE
            for running in self.running:
                running.process.join(max(0.0, until - time.monotonic()))
        for running in self.running:
            running.process.kill()
            running.process.join()
            self.ledger.release(running.job.key)
            outcome = _heard(running)
            if outcome is not None and outcome[0] == "failed":  # at its checkpoint, say
                self.show("failed", running.job, f"{outcome[1]} (log: {outcome[2]})")
        self.running.clear()

    def seconds_left(self) -> float:
        """Estimated wall time to the end: the work left over the workers, but no less than its longest chain."""
        begun = sum((1 - r.share) * r.job.seconds() for r in self.running)
        longest = max((self._chain(job) for job in self.waiting), default=0.0)
        longest = max([longest, *[(1 - r.share) * r.job.seconds() for r in self.running]], default=0.0)
        return self.pace * max((begun + sum(j.seconds() for j in self.waiting)) / self.workers, longest)

    def _chain(self, job: Job) -> float:
        needed = [j for j in self.waiting if j.key in job.needs]
        begun = [(1 - r.share) * r.job.seconds() for r in self.running if r.job.key in job.needs]
        return job.seconds() + max([*(self._chain(j) for j in needed), *begun], default=0.0)

    def _start(self) -> None:
        pending = {j.key for j in self.waiting} | {r.job.key for r in self.running}
        for job in list(self.waiting):
            broken = [need for need in job.needs if need in self.failed]
            if broken:
                self.waiting.remove(job)
                first = self.failed[broken[0]].removeprefix("not run: ").partition(" failed")[0]
                self.failed[job.key] = f"not run: {first} failed"
                self.show("skipped", job, self.failed[job.key])
                return self._start()
        self.held.clear()
        for job in [job for job in self.waiting if not pending & set(job.needs)]:
            if len(self.running) >= self.workers:
                return None
            claim = self.ledger.claim(job.key, job.label, self.log_of(job))
            if claim.owner != self.ledger.owner:
                self.held[job.key] = claim
                continue
            self.waiting.remove(job)
            if job.is_done(self.outputs):  # by another runner, since the plan was made
                self.ledger.release(job.key)
                self.show("done", job, "by another runner")
                return self._start()
            self._launch(job, claim)
        return None

    def _launch(self, job: Job, claim: Claim) -> None:
        report, theirs = self.context.Pipe(duplex=False)
        parent_read, parent_write = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_work, args=(job, self.outputs, claim, theirs, parent_read), daemon=True)
        process.start()
        theirs.close()
        parent_read.close()
        self.running.append(_Running(job, process, report, parent_write, time.perf_counter()))
        self.show("started", job, "")

    def log_of(self, job: Job) -> Path:
        """Where a job's words go."""
        return self.outputs / "logs" / f"{job.label.replace(' ', '_').replace('/', '-')}_{digest(job.key, 4)}.log"

    def _listen(self, running: _Running) -> None:
        outcome = _heard(running)
        if outcome is None and (running.is_silent or running.process.exitcode is not None):
            code = running.process.exitcode
            how = "was killed" if running.is_silent else f"ended with code {code}"
            outcome = ("failed", f"its process {how} (out of memory?)", str(self.log_of(running.job)))
        if outcome is None:
            return
        running.process.join(10)
        running.parent.close()
        self.running.remove(running)
        took = time.perf_counter() - running.began
        if outcome[0] == "done":
            estimated, measured = self._measured
            self._measured = (estimated + running.job.seconds(), measured + took)
            self.pace = self._measured[1] / self._measured[0]
            self.show("done", running.job, f"{took:.0f} s")
        else:
            self.failed[running.job.key] = f"{running.job.label} failed: {outcome[1]}"
            self.ledger.fail(running.job.key, outcome[1], Path(outcome[2]))
            self.show("failed", running.job, f"{outcome[1]} (log: {outcome[2]})")


def fresh_results(plan: Plan, jobs: Sequence[Job], outputs: Path) -> list[Path]:
    """What `fresh=true` removes: what the jobs made before, but for starts, which other ablations share."""
    kept = {train_key(start) for start in starts(plan).values()}
    folders = dict.fromkeys(job.folder(outputs) for job in jobs if job.key not in kept)
    return [folder for folder in folders if folder.exists() and any(p.name != ".lock" for p in folder.iterdir())]


def remove_results(folders: Sequence[Path]) -> None:
    """Empty the folders of results, so that they are made again, under their locks."""
    import shutil

    from filelock import FileLock

    for folder in folders:
        with FileLock(folder / ".lock"):
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != ".lock":
                    path.unlink()
