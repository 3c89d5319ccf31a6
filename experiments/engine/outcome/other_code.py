"""Which results of a table other versions of the code made: start, training, anchors, clips and scores of each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.engine.job import Row
from experiments.engine.plan import Plan, trainings
from pw.io.manifest import whole
from pw.sample.clip_folders import sample_folder
from pw.train.record import training_folder

NAMED = 5  # results that a note names


def other_code_notes(plan: Plan, rows: Sequence[Row]) -> list[str]:
    """A note per kind of result that another version of the code made, with the labels of these results.

    A damaged one is passed over: its job has failed by name.
    """
    found = {
        "trained by another version of the code (code=as_trained)": _trained(plan),
        "trained from another start than that of this plan": _other_starts(plan),
        "clips sampled by another version of the code": _sampled(plan),
        "scored from clips of another version of the code": _scored(rows),
    }
    notes = []
    for text, labels in found.items():
        names = list(dict.fromkeys(labels))
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        notes += [f"{text}: {', '.join(names[:NAMED])}{more}"] if names else []
    return notes


def _is_other(mark: Mapping[str, Any], code: str) -> bool:
    """Whether a mark says that other code made the result; marks of early versions do not say it."""
    return mark.get("code", code) != code


def _trained(plan: Plan) -> Iterator[str]:
    outputs = plan.options.outputs
    for label, run in trainings(plan).values():
        is_made_here = run.card is None
        if is_made_here and (run.is_as_trained or _is_other(_mark(training_folder(run, outputs)), run.training_code)):
            yield label


def _other_starts(plan: Plan) -> Iterator[str]:
    """Trainings whose mark names another start; with `code=as_trained` a training brings its own."""
    outputs = plan.options.outputs
    for label, run in trainings(plan).values():
        start = run.start_run
        mark = {} if run.card is not None or start is None else _mark(training_folder(run, outputs))
        if start is not None and mark.get("start", start.training_signature) != start.training_signature:
            yield f"{label} (from {mark['start']}, here {start.training_signature})"


def _mark(folder: Path) -> dict[str, Any]:
    return whole(folder / "done.json", ["config.yaml"]) or {}


def _sampled(plan: Plan) -> Iterator[str]:
    for arm, seed, run in plan.runs():
        label = f"{arm.name} seed {seed}"
        solution = f"{run.sampling.solution_steps}-step solution of {label}"
        sampled_runs = {label: run, f"anchors of {label}": run.anchor_run, solution: run.solution}
        for name, sampled in sampled_runs.items():
            if sampled is not None:
                mark = _mark(sample_folder(sampled, plan.options.outputs, seed))
                if _is_other(mark, sampled.sampling_code):
                    yield name


def _scored(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        scores = whole(Path(row.job.score["out"]) / "scores.json")
        if scores is not None and _is_other(scores["contract"], row.job.run.sampling_code):
            yield f"{row.name} seed {row.seed}"
