"""The jobs of a plan: each training, sampling and scoring once. Begin with `all_jobs`.

The signature of its result names a job, and its files on disk tell whether it is done. So a killed ablation continues,
and two ablations share their common jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.metrics import lookup, protocols
from experiments.engine.plan import Arm, Plan, starts
from experiments.engine.revisions.checkout import Revision
from experiments.engine.revisions.revision_run import RevisionRun, make_elsewhere
from experiments.engine.share.adopted import adoption, spared
from pw.cost.generation_cost import generation_cost
from pw.cost.rates import rates_of
from pw.cost.training_cost import training_cost
from pw.io.files import digest, remove
from pw.io.manifest import whole
from pw.run.build import Run
from pw.run.signatures import evaluation_clips, provenance
from pw.sample.clip_folders import PARTIAL, anchor_reference, is_sampled, reference_folder, sample_folder
from pw.train.record import WEIGHTS, training_folder

# Seconds on one core of the development machine, for estimates before anything is measured.
SCORE_SECONDS, JOB_SECONDS = 1.2, 0.5  # a scoring at the tiny scale; what any job takes besides its work
MARKS = ("done.json", PARTIAL, "scores.json")  # whose existence says that a result is there


@dataclass(frozen=True)
class Job:
    """A training, sampling or scoring.

    key    name of its result
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
        """Estimated time, as `pw plan` has it: a training on its devices, a sampling on one."""
        run, rates = self.run, rates_of(self.run)
        if self.kind == "score":
            return SCORE_SECONDS
        if self.kind == "train":
            training = training_cost(run, run.trainer.processes)
            return JOB_SECONDS + training.seconds(training.flops, rates)
        alone = (None, run) if run.stage == "anchor" else (run, None)  # anchors are a job of their own
        return JOB_SECONDS + self.limit * generation_cost(*alone).seconds(rates)

    def is_done(self, outputs: Path, *, thorough: bool = False) -> bool:
        """Whether the result is there, whole; a warning says what is damaged. thorough: hash large files, too."""
        if self.kind == "train":
            return whole(training_folder(self.run, outputs) / "done.json", [WEIGHTS], thorough=thorough) is not None
        if self.kind == "sample":
            return is_sampled(self.run, self.limit, outputs, self.seed, thorough=thorough)
        return score_is_current(self.score)

    def folder(self, outputs: Path) -> Path:
        if self.kind == "train":
            return training_folder(self.run, outputs)
        return sample_folder(self.run, outputs, self.seed) if self.kind == "sample" else self.score["out"]

    def check_code(self) -> None:
        """Raises RuntimeError when the code has changed since the plan was made."""
        run = replace(self.run)  # without the cached code signature of the plan
        key = {"train": train_key(run), "sample": sample_key(run, self.limit, self.seed)}.get(self.kind, self.key)
        if key != self.key:
            raise RuntimeError(
                f"not run: the code has changed since the plan was made ({self.key} would be {key}); run it again"
            )


def run_job(job: Job, outputs: Path, progress: Callable[[int, int], None], *, is_checked: bool = False) -> None:
    """Run one job in this process, or, where another revision of the code makes its run, in one of that.

    progress    called with (done, total)
    is_checked  whether `preflight` has run on this machine
    """
    if isinstance(job.run, RevisionRun) and job.kind != "score":
        make_elsewhere(job.run, job.kind, outputs, job.limit, job.seed, progress)
        return
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


def served_by(job: Job, served: Mapping[Revision, Revision]) -> Job:
    """The job, with the process that makes the runs of its revision, if there is one."""
    if not isinstance(job.run, RevisionRun) or job.run.revision not in served:
        return job
    return replace(job, run=replace(job.run, revision=served[job.run.revision]))


def train_key(run: Run) -> str:
    return f"train:{run.training_signature}"


def sample_key(run: Run, limit: int, seed: int) -> str:
    return f"sample:{run.sample_signature(seed)}:{limit}"


def score_is_current(score: dict[str, Any]) -> bool:
    """Whether scores.json exists, is whole, and has the requested metrics by their current protocols."""
    scores = whole(score["out"] / "scores.json")
    return scores is not None and scores["contract"]["metrics"] == protocols(score["metrics"])


@dataclass
class Row:
    """A row of the table at one seed: the job that scores it, and its arm."""

    name: str
    seed: int
    job: Job
    arm: str


def train_jobs(run: Run, label: str) -> list[Job]:
    """The training of a run, after the training of its start."""
    needs_no_start = run.start_run is None or run.start_run.card or run.is_as_trained
    start_jobs = [] if needs_no_start else train_jobs(run.start_run, f"start {run.start.name}")
    needs = (start_jobs[-1].key,) if start_jobs else ()
    return [*start_jobs, Job(train_key(run), f"train {label}", "train", run, needs)]


def sample_jobs(run: Run, label: str, limit: int, seed: int) -> list[Job]:
    """The sampling of a run, after the jobs that it needs."""
    jobs = train_jobs(run, label)
    needs = [jobs[-1].key]
    if run.anchor_run is not None:
        anchors = sample_jobs(run.anchor_run, "anchors", limit, seed)
        jobs += anchors
        needs.append(anchors[-1].key)
    key = sample_key(run, limit, seed)
    return [*jobs, Job(key, f"sample {label}", "sample", run, tuple(needs), limit, seed)]


def needs_solution(plan: Plan, arm: Arm) -> bool:
    """Whether the table uses the many-step solution of an arm: as the ceiling, or in a metric of every arm."""
    return arm is plan.ceiling or any("solution" in lookup(metric).needs for metric in plan.ablation.metrics)


def all_jobs(plan: Plan) -> tuple[list[Job], list[Row]]:
    """All jobs of a plan, each once and after the jobs that it needs, and the table rows that read their scores."""
    outputs, ceiling = plan.options.outputs, plan.ceiling
    jobs: dict[str, Job] = {}
    rows: list[Row] = []

    def add_sampling(run: Run, label: str, clips: int, seed: int) -> str:
        new_jobs = sample_jobs(run, label, clips, seed)
        for job in new_jobs:
            jobs.setdefault(job.key, job)
        return new_jobs[-1].key

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
        solution_run = run.solution if needs_solution(plan, arm) else None
        if solution_run is not None:
            # the ceiling's has all clips, also for arms with the same weights
            best = ceiling.runs[seed].solution if seed in ceiling.runs else None
            is_shared = best and solution_run.sample_signature(seed) == best.sample_signature(seed)
            clips = sampling.count if is_shared else sampling.solution_clips
            needs.append(add_sampling(solution_run, f"{sampling.solution_steps}-step solution of {label}", clips, seed))
            solution = sample_folder(solution_run, outputs, seed)
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


def jobs_to_run(jobs: Sequence[Job], outputs: Path, removals: Sequence[Path] = ()) -> list[Job]:
    """The jobs without a whole result, but not those that only adopted results were made from. What one of them reads
    is checked to the last byte. removals: not results"""
    todo: list[Job] = []
    read: set[str] = set()
    for job in reversed(jobs):  # every job comes after those that it needs
        if job.folder(outputs) in removals or not job.is_done(outputs, thorough=job.key in read):
            todo.append(job)
            read.update(job.needs)
    unread = spared(jobs, {job.key for job in todo}, lambda job: adoption(job.folder(outputs)) is not None)
    return [job for job in reversed(todo) if job.key not in unread]


def probe_row(arm: str, value: Any) -> str:
    return f"{arm} at {value}"


def score_request(plan: Plan, name: str, run: Run, videos: Path, solution: Path | None, seed: int) -> dict[str, Any]:
    """The arguments of `score_folder`: folders, metrics, and the contract stored with the scores."""
    outputs, is_floor = plan.options.outputs, name == "floor"
    real = reference_folder(run, outputs, seed) / "real"
    if plan.ablation.native:
        real = anchor_reference(run, outputs, seed)
        videos = anchor_reference(run, outputs, seed, twin=True) if is_floor else videos / "native"
    structure = _structure(run, outputs, seed, is_floor)
    references = {"real": real, "structure": structure, "solution": solution}
    metrics = [m for m in plan.ablation.metrics if all(references[need] is not None for need in lookup(m).needs)]
    contract = {
        "scale": run.scale.name,
        "data": run.config.choices["data"],
        "clips_fingerprint": evaluation_clips(run),
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
    folders = {"videos": videos, **references}
    paths = {kind: str(path.relative_to(outputs)) for kind, path in folders.items() if path is not None}
    return {
        "out": outputs / "scores" / digest([paths, metrics, run.sampling.solution_clips]),
        **folders,
        "n_solutions": run.sampling.solution_clips,
        "metrics": metrics,
        "contract": contract,
    }


def _structure(run: Run, outputs: Path, seed: int, is_floor: bool) -> Path | None:
    """The folder of clips whose structure a run should keep; None if it has no anchor."""
    if run.injector is None:
        return None
    if run.anchor_run is not None:
        return None if is_floor else sample_folder(run.anchor_run, outputs, seed)
    if is_floor and not run.source.twins_share_structure:
        return None
    return reference_folder(run, outputs, seed) / "real"


def results_to_remove(plan: Plan, jobs: Sequence[Job], outputs: Path) -> list[Path]:
    """The folders that `fresh=true` empties: results of these jobs, except starts, which other ablations share."""
    shared = {train_key(start) for start in starts(plan).values()}
    folders = dict.fromkeys(job.folder(outputs) for job in jobs if job.key not in shared)
    return [folder for folder in folders if folder.is_dir() and any(p.name != ".lock" for p in folder.iterdir())]


def remove_results(folders: Sequence[Path]) -> None:
    """Empty folders of results, each under its lock; first its mark, so that a kill leaves nothing that looks done."""
    from filelock import FileLock

    for folder in folders:
        with FileLock(folder / ".lock"):
            for path in sorted(folder.iterdir(), key=lambda path: path.name not in MARKS):
                if path.name != ".lock":
                    remove(path)
