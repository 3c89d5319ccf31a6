"""The jobs of a plan: each training, sampling and scoring once.

A job is named by the signature of what it makes, and is done when its files say so. So a killed ablation continues
where it was, and two ablations share what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.metrics import lookup, protocols
from experiments.engine.plan import Plan, starts
from pw.cost.generation_cost import generation_cost
from pw.cost.training_cost import training_cost
from pw.io.files import digest, read_json, remove
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
    score  the arguments of a scoring (`score_request`)
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
        """Estimated time: on one core, or at one of Wan's scales by its FLOPs."""
        run = self.run
        if self.kind == "score":
            return SECONDS["score"]
        if run.text is not None:
            stages = (None, run) if run.stage == "anchor" else (run, None)
            flops = training_cost(run).flops if self.kind == "train" else self.limit * generation_cost(*stages).flops
            return SECONDS["job"] + flops / ASSUMED_FLOPS
        if self.kind == "train":
            consistency = run.objective.consistency_updates(run.train.updates)
            seconds = (run.train.updates - consistency) * SECONDS["flow"] + consistency * SECONDS["consistency"]
            return SECONDS["job"] + run.train.accumulate * seconds * run.train.batch_size / 8
        branches = 2 if run.guidance.scale != 1 else 1
        return SECONDS["job"] + self.limit * run.sampling.num_steps * branches * SECONDS["forward"]

    def is_done(self, outputs: Path) -> bool:
        if self.kind == "train":
            return is_trained(self.run, outputs)
        if self.kind == "sample":
            return is_sampled(self.run, self.limit, outputs, self.seed)
        return score_is_current(self.score)

    def folder(self, outputs: Path) -> Path:
        if self.kind == "train":
            return training_folder(self.run, outputs)
        return sample_folder(self.run, outputs, self.seed) if self.kind == "sample" else self.score["out"]

    def check_code(self) -> None:
        """Raises RuntimeError when the code has changed since the plan was made."""
        run = replace(self.run)  # without the code signature that the plan computed
        now = {"train": train_key(run), "sample": sample_key(run, self.limit, self.seed)}.get(self.kind, self.key)
        if now != self.key:
            raise RuntimeError(
                f"not run: the code is not that of the plan any more ({self.key} would be {now}); call it again"
            )


def run_job(job: Job, outputs: Path, progress: Callable[[int, int], None], *, is_checked: bool = False) -> None:
    """Run one job in this process.

    progress    called with (done, total)
    is_checked  whether `preflight` was called on this machine
    """
    import torch

    from pw.sample.evaluate import sample
    from pw.train.loop import train

    torch.set_num_threads(job.run.trainer.threads)
    if job.kind == "train":
        train(job.run, outputs, progress, is_checked=is_checked)
    elif job.kind == "sample":
        sample(job.run, outputs, limit=job.limit, seed=job.seed, progress=progress, is_checked=is_checked)
    else:
        from benchmarks.measure.clips import score_folder

        score_folder(**job.score)


def train_key(run: Run) -> str:
    return f"train:{run.training_signature}"


def sample_key(run: Run, limit: int, seed: int) -> str:
    return f"sample:{run.sample_signature(seed)}:{limit}"


def score_is_current(score: dict[str, Any]) -> bool:
    """Whether there is a scores.json that measured what is asked for."""
    scores = read_json(score["out"] / "scores.json")
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
    is_there = run.start_run is None or run.start_run.card or run.is_as_trained
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
    outputs, ceiling = plan.options.outputs, plan.ceiling
    needs_solutions = any("solution" in lookup(metric).needs for metric in plan.ablation.metrics)
    jobs: dict[str, Job] = {}
    rows: list[Row] = []

    def add_sampling(run: Run, label: str, clips: int, seed: int) -> str:
        added = sample_jobs(run, label, clips, seed)
        for job in added:
            jobs.setdefault(job.key, job)
        return added[-1].key

    def add_score(
        name: str, arm: str, seed: int, run: Run, videos: Path, needs: list[str], solution: Path | None = None
    ) -> None:
        score = score_request(plan, name, run, videos, solution, seed)
        key = f"score:{score['out']}"
        job = Job(key, f"score {name} seed {seed}", "score", run, tuple(needs), score=score)
        rows.append(Row(name, seed, jobs.setdefault(key, job), arm))

    for arm, seed, run in plan.runs():
        label, sampling = f"{arm.name} seed {seed}", run.sampling
        needs = [add_sampling(run, label, sampling.count, seed)]
        solution = None
        if sampling.num_steps < sampling.solution_steps and (needs_solutions or arm is ceiling):
            solved = run.solution
            of_ceiling = ceiling.runs[seed].solution  # of all clips, also for arms with the same weights
            is_shared = solved.sample_signature(seed) == of_ceiling.sample_signature(seed)
            clips = sampling.count if is_shared else sampling.solution_clips
            needs.append(add_sampling(solved, f"{sampling.solution_steps}-step solution of {label}", clips, seed))
            solution = sample_folder(solved, outputs, seed)
        if arm is ceiling:
            add_score("floor", arm.name, seed, run, reference_folder(run, outputs, seed) / "real_b", needs[:1])
            if solution is not None:
                add_score("ceiling", arm.name, seed, run, solution, needs[-1:])
        add_score(arm.name, arm.name, seed, run, sample_folder(run, outputs, seed), needs, solution)
    for probe in plan.probes:
        name, run, seed = probe_row(probe.arm, probe.value), probe.run, probe.seed
        needs = [add_sampling(run, f"{name} seed {seed}", run.sampling.count, seed)]
        add_score(name, probe.arm, seed, run, sample_folder(run, outputs, seed), needs)
    return list(jobs.values()), rows


def probe_row(arm: str, value: Any) -> str:
    return f"{arm} at {value}"


def score_request(plan: Plan, name: str, run: Run, videos: Path, solution: Path | None, seed: int) -> dict[str, Any]:
    """The arguments of `score_folder`: folders, metrics, and the contract that is written with the scores."""
    outputs, is_floor = plan.options.outputs, name == "floor"
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
        "out": outputs / "scores" / digest([about, metrics, run.sampling.solution_clips]),
        **folders,
        "n_solutions": run.sampling.solution_clips,
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
    from filelock import FileLock

    for folder in folders:
        with FileLock(folder / ".lock"):
            for path in folder.iterdir():
                if path.name != ".lock":
                    remove(path)
