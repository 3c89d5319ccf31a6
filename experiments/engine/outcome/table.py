"""From scores on disk to the ablation's table, its curve and notes, and the contact sheet."""

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
from benchmarks.report import write as report
from benchmarks.report.contact_sheet import Row as SheetRow
from benchmarks.report.contact_sheet import contact_sheet
from benchmarks.stats.comparison import Comparison, compare, estimate, order_as_in_paper
from experiments.engine.job import Row, probe_row
from experiments.engine.outcome.verdict import clauses_of, verdict
from experiments.engine.outcome.written import mark_of, read_scores
from experiments.engine.plan import Arm, Plan, start_words, starts, trainings
from pw.io.files import digest, read_json
from pw.run.compose import at
from pw.sample.evaluate import STORED_ANCHORS, reference_folder, sample_folder
from pw.train.record import training_folder

SHEET_CLIPS = 6
POINTS = 3  # of a line, at least, to be shown as a curve: two are a comparison
PASSED_OVER = 5  # clips named of those that could not be read


def make_table(plan: Plan, rows: Sequence[Row], failed: Mapping[str, str]) -> dict[str, Any]:
    """The result dictionary of `benchmarks.report.write`, from every score that is there. Raises ValueError when
    scores of different contracts would share it, or when there are none at all."""
    scores, contracts = _read_scores(rows, failed)
    arms = {arm.name: scores.get(arm.name, {}) for arm in plan.arms}
    if not any(arms.values()):
        raise ValueError(f"{plan.name}: no arm has scores, so there is no table; {'; '.join(_causes(failed))}")
    contract = table_contract(contracts)
    versus = {arm.name: arm.above for arm in plan.arms}
    primary = plan.ablation.primary
    compared = compare(arms, primary=primary, versus=versus)
    result = {
        "ablation": plan.name,
        "title": plan.statement.title,
        "claim": plan.statement.claim,
        "refuted": plan.statement.refuted,
        "primary": compared.primary,
        "verdict": verdict(clauses_of(plan.ablation, versus), arms, primary),
        "scale": plan.arms[0].first.scale.name,
        "seeds": list(plan.options.seeds),
        "contract": contract,
        "settings": plan.options.settings(),
        "versus": plan.ablation.versus,
        "across": plan.ablation.across[0] if plan.ablation.across else None,
        "curve": curve_of(plan),
        "arms": [_arm_entry(plan, arm, compared, scores, failed) for arm in plan.arms],
        "best": compared.best,
        "floor": _reference_row(scores, "floor"),
        "floor_is_bound": plan.arms[0].first.source.twins_share_structure,
        "ceiling": _reference_row(scores, "ceiling"),
        "ceiling_steps": plan.ceiling.first.sampling.solution_steps,
        "coverage": _coverage(plan),
        "failed": sorted(_causes(failed)),
        "notes": _notes(plan, compared.primary),
    }
    if plan.ablation.paper:
        result["order_as_in_paper"] = _order_as_in_paper(plan, arms)
    return result


def _order_as_in_paper(plan: Plan, scores: Mapping[str, Any]) -> str:
    table, primary = paper.load(plan.ablation.paper or ""), plan.ablation.primary
    printed = {arm.name: scores[arm.name] for arm in plan.arms if arm.name in table.values()}  # some arms are ours
    # the primary metric alone: the others are trade-offs the paper did not print
    return order_as_in_paper(
        compare(printed, primary=primary), table.values(), table.quality(), primary=primary, metrics=(primary,)
    )


def _causes(failed: Mapping[str, str]) -> list[str]:
    """The reasons of failures, each once, without jobs that were not run because of them."""
    return list(dict.fromkeys(reason for reason in failed.values() if not reason.startswith("not run: ")))


def _read_scores(rows: Sequence[Row], failed: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    scores: dict[str, dict[int, dict[str, float]]] = {}
    contracts: dict[str, dict[int, Any]] = {}
    for row in rows:
        path = Path(row.job.score["out"]) / "scores.json"
        if row.job.key in failed or not path.exists():
            continue
        score = read_scores(path)
        scores.setdefault(row.name, {})[row.seed] = score["metrics"]
        contracts.setdefault(row.name, {})[row.seed] = score["contract"]
    return scores, contracts


def _reference_row(scores: Mapping[str, Any], name: str) -> dict[str, Any]:
    by_metric = _by_metric(scores.get(name, {}))
    return {metric: asdict(estimate(list(values.values()))) for metric, values in by_metric.items()}


def _arm_entry(
    plan: Plan, arm: Arm, compared: Comparison, scores: Mapping[str, Any], failed: Mapping[str, str]
) -> dict[str, Any]:
    of_seeds = scores.get(arm.name, {})
    missing = [str(seed) for seed in plan.options.seeds if seed not in of_seeds]
    reasons = [reason for reason in _causes(failed) if f"{arm.name} seed" in reason]
    return {
        "name": arm.name,
        "varied": dict(arm.varied),
        **compared.row(arm.name),
        "values": _by_metric(of_seeds),
        "cost": _cost(plan, arm),
        "probe": _probe(plan, arm, scores),
        "paper": paper.load(plan.ablation.paper).values().get(arm.paper_arm) if plan.ablation.paper else None,
        "status": "; ".join([f"failed: seeds {', '.join(missing)}", *reasons]) if missing else "ok",
    }


def _by_metric(by_seed: Mapping[int, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    """metric -> seed -> value, without what has none."""
    by_metric: dict[str, dict[str, float]] = {}
    for seed, values in by_seed.items():
        for metric, value in values.items():
            if value is not None and math.isfinite(value):
                by_metric.setdefault(metric, {})[str(seed)] = value
    return by_metric


def _cost(plan: Plan, arm: Arm) -> dict[str, Any]:
    """The cost of a seed of the arm, without its start, which is shared."""
    outputs = plan.options.outputs
    trainings = [mark_of(training_folder(run, outputs)) for run in arm.runs.values()]
    samplings = [mark_of(sample_folder(run, outputs, seed)) for seed, run in arm.runs.items()]

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
    """The best of the probed values by the primary metric, over the seeds that have all of them."""
    probe, metric = plan.ablation.probe, plan.ablation.primary
    if probe is None or arm.paper_arm not in probe.arms:
        return None
    of_value = {v: scores.get(probe_row(arm.name, v), {}) for v in probe.values}
    common = set.intersection(
        *({seed for seed, s in f.items() if s.get(metric) is not None} for f in of_value.values())
    )
    if not common:
        return None
    means = {v: estimate([by_seed[seed][metric] for seed in sorted(common)]) for v, by_seed in of_value.items()}
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
    found = {arm.name: mark_of(sample_folder(arm.first, outputs, seed)).get("coverage") for arm in plan.arms}
    return [{"arm": name, **coverage} for name, coverage in found.items() if coverage is not None]


def curve_of(plan: Plan) -> dict[str, Any] | None:
    """The "curve" of table.json: {"key", "label", "lines": [{"name", "points": [[number, arm]]}]}, points in order.

    None where the arms do not differ in a number, or no line has enough of them.
    """
    ablation = plan.ablation
    keys = [ablation.across[0]] if ablation.across is not None else ablation.varies
    if ablation.curve is None and len(keys) != 1:
        return None
    key, absent = ablation.curve or (keys[0], None)
    lines: dict[str, list[tuple[float, str]]] = {}
    for arm in plan.arms:
        values = arm.first.config.values
        number = at(values, key)
        if number is None:
            number = at(values, absent) if isinstance(absent, str) else absent
        if not isinstance(number, int | float) or isinstance(number, bool):
            return None
        lines.setdefault(_line(plan, arm, key), []).append((number, arm.name))
    if max(len(points) for points in lines.values()) < POINTS:
        return None
    return {
        "key": key,
        "label": key.rpartition(".")[2],
        "lines": [{"name": name, "points": [list(p) for p in sorted(points)]} for name, points in lines.items()],
    }


def _line(plan: Plan, arm: Arm, key: str) -> str:
    """Name of the arm's line: the arm where arms are crossed with the key, else its values of the other varied keys."""
    if plan.ablation.across is not None and plan.ablation.across[0] == key:
        return arm.paper_arm
    others = [k for k in arm.varied if k != key and not key.startswith(f"{k}.")]
    return " ".join(str(arm.varied[k]) for k in others)


def _notes(plan: Plan, tested_first: str | None) -> list[str]:
    """The notes below a table: starts, clips, and what must be known to read it."""
    outputs = plan.options.outputs
    run = plan.arms[0].first
    departed = {r.start_run.training_signature: r.start_run for _, _, r in plan.runs() if r.start_run}
    notes = [start_words(start) for start in departed.values()]
    if len(departed) == 1 and not plan.options.vary_start:
        notes.append("all seeds share one start checkpoint; vary_start=true trains one per seed")
    reference = mark_of(reference_folder(run, outputs, plan.options.seeds[0]))
    notes.append(f"{run.sampling.count} clips and new noise per seed; floor: {reference.get('note')}")
    notes += _passed_over(plan)
    if taken := [label for label, run in trainings(plan).values() if run.is_as_trained]:
        notes.append(f"trained by other code than this (code=as_trained): {', '.join(dict.fromkeys(taken))}")
    if tested_first is None:
        lacking = f"no arm has a score of {plan.ablation.primary}, the primary metric"
        notes.append(f"{lacking}: the others are tested by Holm over all of them")
    return notes


def _passed_over(plan: Plan) -> list[str]:
    """Training clips that could not be read, and a warning where the arms of a seed passed over different ones."""
    outputs = plan.options.outputs
    by_seed: dict[int, dict[str, list[str]]] = {}
    for arm, seed, run in plan.runs():
        if mark := mark_of(training_folder(run, outputs)):
            by_seed.setdefault(seed, {})[arm.name] = mark.get("passed_over", [])
    departed = [mark_of(training_folder(run, outputs)).get("passed_over", []) for run in starts(plan).values()]
    names = set(chain(*departed, *(clips for of_seed in by_seed.values() for clips in of_seed.values())))
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


def write_table(plan: Plan, result: dict[str, Any]) -> Path | None:
    """table.{md,tex,html,json,csv}, plot.png and contact_sheet.png in the ablation's folder.

    Returns: where the table of other settings went that was there, if one was.
    """
    folder = plan.folder
    folder.mkdir(parents=True, exist_ok=True)
    earlier = keep_earlier(folder, result["settings"])
    partial = folder / ".contact_sheet.png"
    contact_sheet(_sheet_blocks(plan), partial)
    if partial.exists():
        partial.replace(folder / "contact_sheet.png")
    report.write(result, folder)
    return earlier


def keep_earlier(folder: Path, settings: list[str]) -> Path | None:
    """Move a table of other settings (data, seeds, arms, a sweep) to `earlier/`; returns where, if there was one."""
    if not (folder / "table.json").exists():
        return None
    before = (read_json(folder / "table.json") or {}).get("settings")
    if before == settings:
        return None
    earlier = folder / "earlier" / digest(before)
    earlier.mkdir(parents=True, exist_ok=True)
    for path in [*folder.glob("table.*"), *folder.glob("*.png")]:
        path.replace(earlier / path.name)
    return earlier


def _sheet_blocks(plan: Plan) -> list[list[SheetRow]]:
    """Real and anchor, then the arms, then the ceiling: the same clips of the first seed."""
    outputs, seed = plan.options.outputs, plan.options.seeds[0]
    ceiling = plan.ceiling.runs[seed]
    given = {
        "real": reference_folder(ceiling, outputs, seed) / "real",
        "anchor": sample_folder(ceiling, outputs, seed) / "anchors",
    }
    arms = {arm.name: sample_folder(arm.runs[seed], outputs, seed) for arm in plan.arms}
    above = {}
    if ceiling.sampling.num_steps < ceiling.sampling.solution_steps:
        above[f"{ceiling.sampling.solution_steps}-step ceiling"] = sample_folder(ceiling.solution, outputs, seed)
    clips = [f"{index:04d}.mkv" for index in range(min(SHEET_CLIPS, STORED_ANCHORS, ceiling.sampling.count))]

    def rows(folders: Mapping[str, Path]) -> list[SheetRow]:
        """Of folders that have any of the clips."""
        paths = {
            label: [path if (path := folder / clip).exists() else None for clip in clips]
            for label, folder in folders.items()
        }
        return [(label, row) for label, row in paths.items() if any(row)]

    return [rows(given), rows(arms), rows(above)]
