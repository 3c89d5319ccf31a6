"""From scores on disk to the ablation's table, plot, contact sheet and MLflow experiment."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import paper
from benchmarks.measure.contract import table_contract
from benchmarks.report import write as report
from benchmarks.report.contact_sheet import Row as SheetRow
from benchmarks.report.contact_sheet import contact_sheet
from benchmarks.stats.comparison import Comparison, compare, estimate, order_as_in_paper
from experiments.engine.curve import curve_of
from experiments.engine.plan import Arm, Plan, seeds_word, start_words, starts, trainings
from experiments.engine.pool import Row, probe_row
from experiments.engine.verdict import clauses_of, verdict
from experiments.engine.written import read_reference, read_sampling, read_scores, read_training
from pw.io.files import digest, read_json
from pw.sample.evaluate import SHOWN, reference_folder, sample_folder
from pw.train.record import training_folder

FLOOR, CEILING = "floor", "ceiling"
SHEET_CLIPS = 6
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
        "settings": _settings(plan),
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
        "notes": _notes(plan) + _without_primary(compared, primary),
    }
    if plan.ablation.paper:
        table = paper.load(plan.ablation.paper)
        printed = {arm.name: arms[arm.name] for arm in plan.arms if arm.name in table.values()}  # an arm may be ours
        result["order_as_in_paper"] = order_as_in_paper(
            compare(printed, primary=primary),
            table.values(),
            table.quality(),
            primary=primary,
            metrics=(primary,),  # the others are trade-offs the paper did not print
        )
    return result


def _without_primary(compared: Comparison, primary: str) -> list[str]:
    if compared.primary == primary:
        return []
    return [f"no arm has a score of {primary}, the primary metric: the others are tested by Holm over all of them"]


def _settings(plan: Plan) -> list[str]:
    """What was asked for beyond the ablation's own file, as on the command line."""
    options = plan.options
    arms = [f"arms={','.join(options.arms)}"] if options.arms else []
    return [seeds_word(options.seeds), *arms, *(["vary_start=true"] if options.vary_start else []), *options.overrides]


def _causes(failed: Mapping[str, str]) -> list[str]:
    """Why what failed did, without what then could not be run, each once."""
    return list(dict.fromkeys(reason for reason in failed.values() if not reason.startswith("not run: ")))


def _read_scores(rows: Sequence[Row], failed: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    scores: dict[str, dict[int, dict[str, float]]] = {}
    contracts: dict[str, dict[int, Any]] = {}
    for row in rows:
        path = Path(row.job.score["out"]) / "scores.json"
        if row.job.key in failed or not path.exists():
            continue
        found = read_scores(path)
        scores.setdefault(row.name, {})[row.seed] = found["metrics"]
        # who asked for a shared score does not matter, what was measured does
        contracts.setdefault(row.name, {})[row.seed] = found["contract"]
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
    own = [r for r in dict.fromkeys(failed.values()) if f"{arm.name} seed" in r]
    reasons = [r for r in own if not r.startswith("not run: ")]
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
    found: dict[str, dict[str, float]] = {}
    for seed, values in by_seed.items():
        for metric, value in values.items():
            if value is not None and math.isfinite(value):
                found.setdefault(metric, {})[str(seed)] = value
    return found


def _done(folder: Path) -> dict[str, Any]:
    """The mark of a training, sampling or reference; empty where it is not there. Raises ConfigError."""
    read = {"train": read_training, "videos": read_sampling, "reference": read_reference}[folder.parent.name]
    return read(folder) if (folder / "done.json").exists() else {}


def _cost(plan: Plan, arm: Arm) -> dict[str, Any]:
    """What a seed of the arm cost, its start not counted (it is shared)."""
    outputs = plan.options.outputs
    trainings = [d for run in arm.runs.values() if (d := _done(training_folder(run, outputs)))]
    samplings = [d for seed, run in arm.runs.items() if (d := _done(sample_folder(run, outputs, seed)))]

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
    found = {v: scores.get(probe_row(arm.name, v), {}) for v in probe.values}
    common = set.intersection(*({seed for seed, s in f.items() if s.get(metric) is not None} for f in found.values()))
    means = {v: estimate([by_seed[seed][metric] for seed in sorted(common)]) for v, by_seed in found.items() if common}
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
    found = _done(sample_folder(arm.first, plan.options.outputs, plan.options.seeds[0])).get("coverage")
    return None if found is None else {"arm": arm.name, **found}


def _notes(plan: Plan) -> list[str]:
    outputs = plan.options.outputs
    run = plan.arms[0].first
    departed = {r.start_run.training_signature: r.start_run for _, _, r in plan.runs() if r.start_run}
    notes = [start_words(start) for start in departed.values()]
    if len(departed) == 1 and not plan.options.vary_start:
        notes.append("all seeds share one start checkpoint; vary_start=true trains one per seed")
    reference = _done(reference_folder(run, outputs, plan.options.seeds[0]))
    notes.append(f"{run.sampling.count} clips and new noise per seed; floor: {reference.get('note')}")
    notes += _passed_over(plan)
    taken = {label: run for label, run in trainings(plan).values() if run.is_as_trained}
    return notes + ([f"trained by other code than this (code=as_trained): {', '.join(taken)}"] if taken else [])


def _passed_over(plan: Plan) -> list[str]:
    """What is to be said of training clips that could not be read."""
    outputs = plan.options.outputs
    departed = [_done(training_folder(run, outputs)) for run in starts(plan).values()]
    names = {name for done in departed for name in done.get("passed_over", ())}
    found: dict[int, dict[str, list[str]]] = {}
    for arm, seed, run in plan.runs():
        if done := _done(training_folder(run, outputs)):
            found.setdefault(seed, {})[arm.name] = done.get("passed_over", [])
            names.update(done.get("passed_over", ()))
    if not names:
        return []
    shown = ", ".join(sorted(names)[:PASSED_OVER])
    shown += f" and {len(names) - PASSED_OVER} more" if len(names) > PASSED_OVER else ""
    notes = [f"training clips that could not be read and were passed over: {len(names)} ({shown})"]
    for seed, of_seed in found.items():
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
    earlier = _keep_earlier(folder, result["settings"])
    partial = folder / ".contact_sheet.png"
    contact_sheet(_sheet_blocks(plan), partial)
    if partial.exists():
        os.replace(partial, folder / "contact_sheet.png")
    report.write(result, folder)
    return earlier


def _keep_earlier(folder: Path, settings: list[str]) -> Path | None:
    """A table of other settings (other data, seeds, arms, a sweep) moves to `earlier/`, it is not written over."""
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


def log_to_mlflow(plan: Plan, result: dict[str, Any], rows: Sequence[Row]) -> str:
    """One parent run, a run per arm and seed; returns the parent's id. Raises TrackingError."""
    from pw.tracking.mlflow_log import RunRecord, log_ablation

    outputs = plan.options.outputs
    where = {(row.name, row.seed): Path(row.job.score["out"]) for row in rows}
    records = []
    for arm in plan.arms:
        for seed, run in arm.runs.items():
            scored = where[arm.name, seed] / "scores.json"
            training, clips = training_folder(run, outputs), sample_folder(run, outputs, seed)
            cost = {k: v for k, v in _done(training).items() if k in ("cpu_seconds", "train_flops", "peak_memory_mb")}
            scores = read_scores(scored)["metrics"] if scored.exists() else {}
            artifacts = [
                training / "config.yaml",
                scored,
                scored.with_suffix(".csv"),
                *sorted(clips.glob("000[0-3].mkv")),
            ]
            records.append(
                RunRecord(
                    arm=arm.name,
                    seed=seed,
                    params={**arm.varied, "scale": run.scale.name, "seed": seed},
                    curves=curves if (curves := training / "metrics.jsonl").exists() else None,
                    scores={k: v for k, v in (scores | cost).items() if v is not None and math.isfinite(v)},
                    artifacts=[path for path in artifacts if path.exists()],
                    tags={
                        "signature": run.sample_signature(seed),
                        "training": run.training_signature,
                        "git_commit": str(_done(training).get("git_commit")),
                    },
                    status="FINISHED" if scores else "FAILED",
                )
            )
    files = ("table.md", "table.html", "table.json", "table.csv", "table.tex", "plot.png", "contact_sheet.png")
    summary = {
        f"{entry['name']}.{metric}": value["mean"]
        for entry in result["arms"]
        for metric, value in entry["metrics"].items()
        if value["mean"] is not None
    }
    return log_ablation(
        outputs,
        plan.name,
        records,
        artifacts=[plan.folder / name for name in files if (plan.folder / name).exists()],
        summary=summary,
        tags={"mlflow.note.content": (plan.folder / "table.md").read_text()},
    )
