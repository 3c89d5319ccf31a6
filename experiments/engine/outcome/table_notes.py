"""The notes below a table: starts, clips, and what must be known to read it."""

from __future__ import annotations

from benchmarks.stats.comparison import Comparison
from experiments.engine.outcome.written import mark_of
from experiments.engine.plan import Plan, start_words, starts, trainings
from pw.sample.evaluate import reference_folder
from pw.train.record import training_folder

PASSED_OVER = 5  # clips named of those that could not be read


def without_primary(compared: Comparison, primary: str) -> list[str]:
    if compared.primary == primary:
        return []
    return [f"no arm has a score of {primary}, the primary metric: the others are tested by Holm over all of them"]


def notes_of(plan: Plan) -> list[str]:
    outputs = plan.options.outputs
    run = plan.arms[0].first
    departed = {r.start_run.training_signature: r.start_run for _, _, r in plan.runs() if r.start_run}
    notes = [start_words(start) for start in departed.values()]
    if len(departed) == 1 and not plan.options.vary_start:
        notes.append("all seeds share one start checkpoint; vary_start=true trains one per seed")
    reference = mark_of(reference_folder(run, outputs, plan.options.seeds[0]))
    notes.append(f"{run.sampling.count} clips and new noise per seed; floor: {reference.get('note')}")
    notes += _passed_over(plan)
    taken = {label: run for label, run in trainings(plan).values() if run.is_as_trained}
    return notes + ([f"trained by other code than this (code=as_trained): {', '.join(taken)}"] if taken else [])


def _passed_over(plan: Plan) -> list[str]:
    """Training clips that could not be read, and a warning where the arms of a seed passed over different ones."""
    outputs = plan.options.outputs
    departed = [mark_of(training_folder(run, outputs)) for run in starts(plan).values()]
    names = {name for done in departed for name in done.get("passed_over", ())}
    by_seed: dict[int, dict[str, list[str]]] = {}
    for arm, seed, run in plan.runs():
        if done := mark_of(training_folder(run, outputs)):
            by_seed.setdefault(seed, {})[arm.name] = done.get("passed_over", [])
            names.update(done.get("passed_over", ()))
    if not names:
        return []
    shown = ", ".join(sorted(names)[:PASSED_OVER])
    shown += f" and {len(names) - PASSED_OVER} more" if len(names) > PASSED_OVER else ""
    notes = [f"training clips that could not be read and were passed over: {len(names)} ({shown})"]
    for seed, of_seed in by_seed.items():
        if len({tuple(clips) for clips in of_seed.values()}) > 1:
            counts = ", ".join(f"{arm} {len(clips)}" for arm, clips in of_seed.items())
            notes.append(
                f"warning: the arms of seed {seed} did not pass over the same clips ({counts}), so they saw different "
                "data; make the shards again, and call with fresh=true"
            )
    return notes
