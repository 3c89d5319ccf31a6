"""The jobs of a plan: each training, sampling and scoring once.

A job is named by the signature of what it makes, and is done when its files say so. So a killed ablation continues
where it was, and two ablations share what they have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.metrics import lookup
from experiments.engine.plan import Arm, Plan, starts
from pw.cost.generation_cost import generation_cost
from pw.cost.training_cost import training_cost
from pw.io.files import digest, read_json
from pw.run.build import Run
from pw.run.signatures import provenance
from pw.sample.evaluate import anchor_reference, is_sampled, reference_folder, sample_folder
from pw.train.record import is_trained, training_folder

# Seconds on one core of the machine this was written on, to estimate with before anything has been measured.
SECONDS = {"flow": 0.058, "consistency": 0.092, "forward": 0.0016, "score": 1.2, "job": 0.5}


ASSUMED_FLOPS = 4e14  # a second, at Wan's scales: as `make plan` assumes of an H100


@dataclass(frozen=True)
class Job:
    """A training, sampling or scoring.

    key    names what it makes
    needs  keys of the jobs that come first
    limit  clips of a sampling
    score  what a scoring is asked for (`score_request`)
    """

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
        """FLOPs of a job at one of Wan's scales, by `pw.cost.training_cost`."""
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
        """Raises RuntimeError when the code has changed since the plan was made."""
        run = replace(self.run)  # without the code signature that the plan computed
        now = {"train": train_key(run), "sample": sample_key(run, self.limit, self.seed)}.get(self.kind, self.key)
        if now != self.key:
            raise RuntimeError(
                f"not run: the code is not that of the plan any more ({self.key} would be {now}); call it again"
            )


def train_key(run: Run) -> str:
    """Key of the job that trains a run."""
    return f"train:{run.training_signature}"


def sample_key(run: Run, limit: int, seed: int) -> str:
    """Key of the job that samples a run."""
    return f"sample:{run.sample_signature(seed)}:{limit}"


def score_is_current(score: dict[str, Any]) -> bool:
    """Whether there is a scores.json that measured what is asked for."""
    from benchmarks.metrics import protocols

    scores = read_json(Path(score["out"]) / "scores.json")
    contract = (scores or {}).get("contract")
    return isinstance(contract, dict) and contract.get("metrics") == protocols(score["metrics"])


@dataclass
class Row:
    """One (row, seed) of the table: the job that scores it, and its arm."""

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
    """Every job of a plan, each once and after what it needs, and the table rows that are read from them."""
    collected = _Jobs(plan)
    for arm, seed, run in plan.runs():
        collected.add_arm(arm, seed, run)
    for probe in plan.probes:
        name, run, seed = probe_row(probe.arm, probe.value), probe.run, probe.seed
        needs = [collected.add(sample_jobs(run, f"{name} seed {seed}", run.sampling.count, seed))]
        collected.add_score(name, probe.arm, seed, run, sample_folder(run, plan.options.outputs, seed), needs)
    return list(collected.jobs.values()), collected.rows


class _Jobs:
    """The jobs and rows of a plan, as they are collected."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.outputs = plan, plan.options.outputs
        self.jobs: dict[str, Job] = {}
        self.rows: list[Row] = []
        self.needs_solutions = any("solution" in lookup(metric).needs for metric in plan.ablation.metrics)

    def add(self, more: Sequence[Job]) -> str:
        """Add jobs that are new; the key of the last one."""
        for job in more:
            self.jobs.setdefault(job.key, job)
        return more[-1].key

    def add_arm(self, arm: Arm, seed: int, run: Run) -> None:
        """An arm at one seed: sampled, solved in many steps if that is needed, and scored."""
        label, sampling, is_ceiling = f"{arm.name} seed {seed}", run.sampling, arm is self.plan.ceiling
        needs = [self.add(sample_jobs(run, label, sampling.count, seed))]
        solution = None
        if sampling.num_steps < sampling.solution_steps and (self.needs_solutions or is_ceiling):
            solved = run.solution
            of_ceiling = self.plan.ceiling.runs[seed].solution  # of all clips, also for arms with the same weights
            is_shared = solved.sample_signature(seed) == of_ceiling.sample_signature(seed)
            clips = sampling.count if is_shared else sampling.solved
            needs.append(
                self.add(sample_jobs(solved, f"{sampling.solution_steps}-step solution of {label}", clips, seed))
            )
            solution = sample_folder(solved, self.outputs, seed)
        if is_ceiling:
            real = reference_folder(run, self.outputs, seed) / "real_b"
            self.add_score("floor", arm.name, seed, run, real, needs[:1])
            if solution is not None:
                self.add_score("ceiling", arm.name, seed, run, solution, needs[-1:])
        self.add_score(arm.name, arm.name, seed, run, sample_folder(run, self.outputs, seed), needs, solution)

    def add_score(
        self, name: str, arm: str, seed: int, run: Run, videos: Path, needs: list[str], solution: Path | None = None
    ) -> None:
        """The scoring of a folder of videos, and the row that shows it."""
        score = score_request(self.plan, name, run, videos, solution, seed)
        key = f"score:{score['out']}"
        job = Job(key, f"score {name} seed {seed}", "score", run, tuple(needs), score=score)
        self.rows.append(Row(name, seed, self.jobs.setdefault(key, job), arm))


def probe_row(arm: str, value: Any) -> str:
    """Name of the scores of a probed arm."""
    return f"{arm} at {value}"


def score_request(plan: Plan, name: str, run: Run, videos: Path, solution: Path | None, seed: int) -> dict[str, Any]:
    """The arguments of `score_folder`: folders, metrics, and the contract that is written with the scores."""
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
    if structure is not None:
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
    """The folder that a run's clips should be faithful to; None where it has no anchor."""
    if run.injector is None:
        return None
    if run.anchor_run is not None:
        return None if is_floor else sample_folder(run.anchor_run, outputs, seed)
    if is_floor and not run.source.twins_share_structure:
        return None
    return reference_folder(run, outputs, seed) / "real"


def fresh_results(plan: Plan, jobs: Sequence[Job], outputs: Path) -> list[Path]:
    """What `fresh=true` removes: results of these jobs, except starts, which other ablations share."""
    shared = {train_key(start) for start in starts(plan).values()}
    folders = dict.fromkeys(job.folder(outputs) for job in jobs if job.key not in shared)
    return [folder for folder in folders if folder.exists() and any(p.name != ".lock" for p in folder.iterdir())]


def remove_results(folders: Sequence[Path]) -> None:
    """Empty folders of results, each under its lock."""
    import shutil

    from filelock import FileLock

    for folder in folders:
        with FileLock(folder / ".lock"):
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != ".lock":
                    path.unlink()
