"""Scores on disk -> the table of an ablation with its curve and notes. Begin with `make_table`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import paper
from benchmarks.measure.clips import table_contract
from benchmarks.stats.comparison import Comparison, compare, estimate, order_as_in_paper
from experiments.engine.job import Row, all_jobs, needs_solution, probe_row
from experiments.engine.judge.vote_report import votes_of
from experiments.engine.outcome.other_code import other_code_notes
from experiments.engine.outcome.planned_cost import Costs, planned_costs, with_savings
from experiments.engine.outcome.result_files import read_scores
from experiments.engine.outcome.verdict import clauses_of, verdict
from experiments.engine.plan import Arm, Plan, start_words, starts
from experiments.engine.share.adopted import adopted_notes
from pw.io.arguments import ConfigError
from pw.io.files import os_reason
from pw.io.manifest import whole
from pw.run.compose import value_at
from pw.sample.clip_folders import reference_folder, sample_folder
from pw.train.record import training_folder

MIN_POINTS = 3  # of a line in a curve; two points are a comparison
UNREADABLE_NAMES = 5  # unreadable clips that a note names


def make_table(plan: Plan, rows: Sequence[Row], failures: Mapping[str, str]) -> dict[str, Any]:
    """The result dictionary for `benchmarks.report.write`, from all scores on disk. Raises ValueError if there are no
    scores, or if scores have different contracts."""
    scores, contracts = scores_of_rows(rows, failures)
    arms = {arm.name: scores.get(arm.name, {}) for arm in plan.arms}
    if not any(arms.values()):
        raise ValueError(f"{plan.name}: no arm has scores, so there is no table; {'; '.join(_reasons(failures))}")
    contract = table_contract(contracts)
    versus = {arm.name: arm.versus for arm in plan.arms}
    primary = plan.ablation.primary
    comparison, clauses = compare(arms, primary=primary, versus=versus), clauses_of(plan.ablation, versus)
    planned, plan_notes = planned_costs(plan.ablation)
    result = {
        "ablation": plan.name,
        "title": plan.statement.title,
        "claim": plan.statement.claim,
        "refuted": plan.statement.refuted,
        "primary": comparison.primary,
        "verdict": with_savings(verdict(clauses, arms, primary), clauses, planned),
        "scale": plan.arms[0].first.scale.name,
        "seeds": list(plan.options.seeds),
        "contract": contract,
        "settings": plan.options.settings(),
        "versus": plan.ablation.versus,
        "compared_with": f"the same arm by {plan.revisions[0].name}" if len(plan.revisions) > 1 else None,
        "code": [[revision.name, revision.commit] for revision in plan.revisions],
        "across": plan.ablation.across[0] if plan.ablation.across else None,
        "curve": curve_of(plan),
        "arms": [_arm_entry(plan, arm, comparison, scores, failures, planned) for arm in plan.arms],
        "best": comparison.best,
        "floor": _reference_row(scores, "floor"),
        "floor_is_bound": plan.arms[0].first.source.twins_share_structure,
        "ceiling": _reference_row(scores, "ceiling"),
        "ceiling_steps": plan.ceiling.first.sampling.solution_steps,
        "coverage": _coverage(plan),
        "failed": sorted(_reasons(failures)),
        "notes": [*_notes(plan, rows, comparison.primary), *plan_notes],
        "shown_columns": list(plan.options.columns),
    }
    try:
        votes = votes_of(plan, rows)
        result |= {"votes": votes} if votes else {}
    except (ConfigError, OSError) as error:  # the table does without them
        result["notes"].append(f"votes are left out: {os_reason(error) if isinstance(error, OSError) else error}")
    if plan.ablation.paper:
        result["order_as_in_paper"] = _order_as_in_paper(plan, arms)
    return result


def _order_as_in_paper(plan: Plan, scores: Mapping[str, Any]) -> str:
    table, primary = paper.load(plan.ablation.paper or ""), plan.ablation.primary
    paper_scores = {arm.name: scores[arm.name] for arm in plan.arms if arm.name in table.values()}  # some arms are ours
    # only the primary metric: the paper does not print the others
    return order_as_in_paper(
        compare(paper_scores, primary=primary), table.values(), table.quality(), primary=primary, metrics=(primary,)
    )


def _reasons(failures: Mapping[str, str]) -> list[str]:
    """The different reasons of failures, without those of skipped jobs."""
    return list(dict.fromkeys(reason for reason in failures.values() if not reason.startswith("not run: ")))


def scores_of_rows(rows: Sequence[Row], failures: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Row -> seed -> metric -> value, and row -> seed -> contract, of the scores on disk."""
    scores: dict[str, dict[int, dict[str, float]]] = {}
    contracts: dict[str, dict[int, Any]] = {}
    for row in rows:
        path = Path(row.job.score["out"]) / "scores.json"
        if row.job.key in failures or not path.exists():
            continue
        score = read_scores(path)
        scores.setdefault(row.name, {})[row.seed] = score["metrics"]
        contracts.setdefault(row.name, {})[row.seed] = score["contract"]
    return scores, contracts


def _mark(folder: Path) -> dict[str, Any]:
    """The done.json of a result; empty if there is none or it is damaged: then its job has failed by name."""
    return whole(folder / "done.json", ()) or {}


def _reference_row(scores: Mapping[str, Any], name: str) -> dict[str, Any]:
    by_metric = _by_metric(scores.get(name, {}))
    return {metric: asdict(estimate(list(values.values()))) for metric, values in by_metric.items()}


def _arm_entry(
    plan: Plan,
    arm: Arm,
    comparison: Comparison,
    scores: Mapping[str, Any],
    failures: Mapping[str, str],
    planned: Costs,
) -> dict[str, Any]:
    seed_scores = scores.get(arm.name, {})
    missing = [str(seed) for seed in plan.options.seeds if seed in arm.runs and seed not in seed_scores]
    reasons = [reason for reason in _reasons(failures) if f"{arm.name} seed" in reason]
    return {
        "name": arm.name,
        "varied": dict(arm.varied),
        **comparison.row(arm.name),
        "values": _by_metric(seed_scores),
        "cost": _cost(plan, arm) | dict(planned.get(arm.paper_arm, {})),
        "probe": _probe(plan, arm, scores),
        "paper": paper.load(plan.ablation.paper).values().get(arm.paper_arm) if plan.ablation.paper else None,
        "status": "; ".join([f"failed: seeds {', '.join(missing)}", *reasons]) if missing else "ok",
    }


def _by_metric(by_seed: Mapping[int, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    """metric -> seed -> value, finite values only."""
    by_metric: dict[str, dict[str, float]] = {}
    for seed, values in by_seed.items():
        for metric, value in values.items():
            if value is not None and math.isfinite(value):
                by_metric.setdefault(metric, {})[str(seed)] = value
    return by_metric


def _cost(plan: Plan, arm: Arm) -> dict[str, Any]:
    """The mean cost of a seed of the arm, without its shared start."""
    outputs = plan.options.outputs
    trainings = [_mark(training_folder(run, outputs)) for run in arm.runs.values()]
    samplings = [_mark(sample_folder(run, outputs, seed)) for seed, run in arm.runs.items()]

    def mean(marks: Sequence[Mapping[str, Any]], key: str) -> float | None:
        values = [mark[key] for mark in marks if mark.get(key) is not None]
        return fmean(values) if values else None

    return {
        "updates": mean(trainings, "updates"),
        "train_flops": mean(trainings, "train_flops"),
        "train_cpu_s": mean(trainings, "cpu_seconds"),
        "sample_cpu_s": mean(samplings, "cpu_seconds"),
        "peak_memory_mb": mean(trainings, "peak_memory_mb"),
    }


def _probe(plan: Plan, arm: Arm, scores: Mapping[str, Any]) -> dict[str, Any] | None:
    """The best probed value by the primary metric, over the seeds that have all values."""
    probe, metric = plan.ablation.probe, plan.ablation.primary
    if probe is None or arm.paper_arm not in probe.arms:
        return None
    value_scores = {v: scores.get(probe_row(arm.name, v), {}) for v in probe.values}
    common = set.intersection(
        *({seed for seed, s in by_seed.items() if s.get(metric) is not None} for by_seed in value_scores.values())
    )
    if not common:
        return None
    means = {v: estimate([by_seed[seed][metric] for seed in sorted(common)]) for v, by_seed in value_scores.items()}
    best = min(means, key=lambda v: means[v].mean)
    return {
        "label": f"best {probe.key.rpartition('.')[2]} of {', '.join(f'{v:g}' for v in probe.values)}",
        "metric": metric,
        "mean": means[best].mean,
        "low": means[best].low,
        "high": means[best].high,
        "at": best,
    }


def _coverage(plan: Plan) -> list[dict[str, Any]]:
    outputs, seed = plan.options.outputs, plan.options.seeds[0]
    coverages = {arm.name: _mark(sample_folder(arm.first, outputs, seed)).get("coverage") for arm in plan.arms}
    return [{"arm": name, **coverage} for name, coverage in coverages.items() if coverage is not None]


def curve_of(plan: Plan) -> dict[str, Any] | None:
    """The "curve" of table.json: {"key", "label", "lines": [{"name", "points": [[number, arm]]}]}, sorted points.

    None if the arms do not differ in a number, or no line has MIN_POINTS points.
    """
    ablation = plan.ablation
    keys = [ablation.across[0]] if ablation.across is not None else ablation.varies
    if ablation.curve is None and len(keys) != 1:
        return None
    key, default = ablation.curve or (keys[0], None)
    lines: dict[str, list[tuple[float, str]]] = {}
    for arm in plan.arms:
        values = arm.first.config.values
        number = value_at(values, key)
        if number is None:
            number = value_at(values, default) if isinstance(default, str) else default
        if not isinstance(number, int | float) or isinstance(number, bool):
            return None
        lines.setdefault(_line(plan, arm, key), []).append((number, arm.name))
    if max(len(points) for points in lines.values()) < MIN_POINTS:
        return None
    return {
        "key": key,
        "label": key.rpartition(".")[2],
        "lines": [{"name": name, "points": [list(p) for p in sorted(points)]} for name, points in lines.items()],
    }


def _line(plan: Plan, arm: Arm, key: str) -> str:
    """Name of the line of an arm: the arm itself if `key` is that of `across`, else its other varied values."""
    if plan.ablation.across is not None and plan.ablation.across[0] == key:
        return arm.paper_arm
    others = [k for k in arm.varied if k != key and not key.startswith(f"{k}.")]
    return " ".join(str(arm.varied[k]) for k in others)


def _notes(plan: Plan, rows: Sequence[Row], primary: str | None) -> list[str]:
    """The notes below a table: its starts, its clips, and warnings."""
    outputs = plan.options.outputs
    run = plan.arms[0].first
    start_runs = {r.start_run.training_signature: r.start_run for _, _, r in plan.runs() if r.start_run}
    notes = [start_words(start) for start in start_runs.values()]
    if len(start_runs) == 1 and not plan.options.vary_start:
        notes.append("all seeds share one start checkpoint; vary_start=true trains one per seed")
    reference = _mark(reference_folder(run, outputs, plan.options.seeds[0]))
    floor = f"; floor: {reference['note']}" if reference.get("note") else ""  # none where only scores were adopted
    notes.append(f"{run.sampling.count} clips and new noise per seed{floor}")
    jumps = [a.name for a in plan.arms if a.first.objective.jumps_to_data == "only" and needs_solution(plan, a)]
    if jumps:
        notes.append(f"no many-step solution of {', '.join(jumps)}: only jumps to data are trained, no steps of a grid")
    notes += _unreadable_notes(plan)
    notes += [*filter(None, [plan.table_note]), *plan.code_notes, *other_code_notes(plan, rows)]
    notes += adopted_notes([(job.kind, job.folder(outputs)) for job in all_jobs(plan)[0]])
    if primary is None:
        missing = f"no arm has a score of {plan.ablation.primary}, the primary metric"
        notes.append(f"{missing}: the others are tested by Holm over all of them")
    return notes


def _unreadable_notes(plan: Plan) -> list[str]:
    """A note on unreadable training clips, and a warning if the arms of a seed skipped different clips."""
    outputs = plan.options.outputs
    by_seed: dict[int, dict[str, list[str]]] = {}
    for arm, seed, run in plan.runs():
        if mark := _mark(training_folder(run, outputs)):
            by_seed.setdefault(seed, {})[arm.name] = mark.get("passed_over", [])
    start_clips = [_mark(training_folder(run, outputs)).get("passed_over", []) for run in starts(plan).values()]
    names = set(chain(*start_clips, *(clips for arm_clips in by_seed.values() for clips in arm_clips.values())))
    if not names:
        return []
    listed = ", ".join(sorted(names)[:UNREADABLE_NAMES])
    listed += f" and {len(names) - UNREADABLE_NAMES} more" if len(names) > UNREADABLE_NAMES else ""
    notes = [f"training clips that could not be read and were skipped: {len(names)} ({listed})"]
    for seed, arm_clips in by_seed.items():
        if len({tuple(clips) for clips in arm_clips.values()}) > 1:
            counts = ", ".join(f"{arm} {len(clips)}" for arm, clips in arm_clips.items())
            notes.append(
                f"warning: the arms of seed {seed} did not skip the same clips ({counts}), so they saw different "
                "data; make the shards again, and run with fresh=true"
            )
    return notes
