"""From scores on disk to the ablation's table, plot, contact sheet and MLflow experiment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from experiments.engine.outcome.curve import curve_of
from experiments.engine.outcome.table_notes import notes_of, without_primary
from experiments.engine.outcome.verdict import clauses_of, verdict
from experiments.engine.outcome.written import mark_of, read_scores
from experiments.engine.plan import Arm, Plan
from pw.io.files import digest, read_json
from pw.sample.evaluate import SHOWN, reference_folder, sample_folder
from pw.train.record import training_folder

FLOOR, CEILING = "floor", "ceiling"
SHEET_CLIPS = 6


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
        "floor": _reference_row(scores, FLOOR),
        "floor_is_bound": plan.arms[0].first.source.twins_share_structure,
        "ceiling": _reference_row(scores, CEILING),
        "ceiling_steps": plan.ceiling.first.sampling.solution_steps,
        "coverage": [entry for arm in plan.arms if (entry := _coverage(plan, arm)) is not None],
        "failed": sorted(_causes(failed)),
        "notes": notes_of(plan) + without_primary(compared, primary),
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
    by_seed = scores.get(name, {})
    metrics = list(dict.fromkeys(metric for values in by_seed.values() for metric in values))
    row = {}
    for metric in metrics:
        values = [v[metric] for v in by_seed.values() if v.get(metric) is not None]
        if values:
            interval = estimate(values)
            row[metric] = {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}
    return row


def _arm_entry(
    plan: Plan, arm: Arm, compared: Comparison, scores: Mapping[str, Any], failed: Mapping[str, str]
) -> dict[str, Any]:
    missing = [seed for seed in plan.options.seeds if seed not in scores.get(arm.name, {})]
    reasons = [reason for reason in _causes(failed) if f"{arm.name} seed" in reason]
    status = (
        "ok" if not missing else f"failed: seeds {', '.join(map(str, missing))}" + "".join(f"; {r}" for r in reasons)
    )
    return {
        "name": arm.name,
        "varied": dict(arm.varied),
        **compared.row(arm.name),
        "values": _by_metric(scores.get(arm.name, {})),
        "cost": _cost(plan, arm),
        "probe": _probe(plan, arm, scores),
        "paper": paper.load(plan.ablation.paper).values().get(arm.paper_arm) if plan.ablation.paper else None,
        "status": status,
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
    trainings = [d for run in arm.runs.values() if (d := mark_of(training_folder(run, outputs)))]
    samplings = [d for seed, run in arm.runs.items() if (d := mark_of(sample_folder(run, outputs, seed)))]

    def mean(dones: Sequence[Mapping[str, Any]], key: str) -> float | None:
        values = [done[key] for done in dones if done.get(key) is not None]
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
    means = {
        v: estimate([by_seed[seed][metric] for seed in sorted(common)]) for v, by_seed in of_value.items() if common
    }
    if not means:
        return None
    best = min(means, key=lambda v: means[v].mean)
    chosen = means[best]
    return {
        "label": f"best {probe.key.rpartition('.')[2]} of {', '.join(f'{v:g}' for v in probe.values)}",
        "metric": metric,
        "mean": chosen.mean,
        "low": chosen.low,
        "high": chosen.high,
        "at": best,
    }


def _coverage(plan: Plan, arm: Arm) -> dict[str, Any] | None:
    coverage = mark_of(sample_folder(arm.first, plan.options.outputs, plan.options.seeds[0])).get("coverage")
    return None if coverage is None else {"arm": arm.name, **coverage}


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
    names = [f"{index:04d}.mkv" for index in range(min(SHEET_CLIPS, SHOWN, ceiling.sampling.count))]
    given: list[SheetRow] = [
        ("real", _existing(reference_folder(ceiling, outputs, seed) / "real", names)),
        ("anchor", _existing(sample_folder(ceiling, outputs, seed) / "anchors", names)),
    ]
    arms: list[SheetRow] = [
        (arm.name, _existing(sample_folder(arm.runs[seed], outputs, seed), names)) for arm in plan.arms
    ]
    above: list[SheetRow] = []
    if ceiling.sampling.num_steps < ceiling.sampling.solution_steps:
        label = f"{ceiling.sampling.solution_steps}-step ceiling"
        above.append((label, _existing(sample_folder(ceiling.solution, outputs, seed), names)))
    return [[(label, paths) for label, paths in rows if any(paths)] for rows in (given, arms, above)]


def _existing(folder: Path, names: Sequence[str]) -> list[Path | None]:
    return [path if (path := folder / name).exists() else None for name in names]
