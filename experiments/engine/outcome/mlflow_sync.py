"""Logs the runs and the table of an ablation to MLflow, from files alone, at its end or by `pw mlflow-sync`.

`pw mlflow-sync` logs every table in an outputs folder that MLflow lacks, e.g. because its database was locked.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.engine.job import Row, all_jobs
from experiments.engine.outcome.result_files import read_result, read_scores
from experiments.engine.plan import Arm, Plan, make_plan, parse
from pw.io.arguments import Command, ConfigError, option
from pw.io.command_line import without_make
from pw.io.files import digest, parse_json, read_json
from pw.io.manifest import whole
from pw.io.paths import OUTPUTS
from pw.io.playable import playable_copies
from pw.run.build import Run
from pw.run.signatures import data_hash
from pw.sample.clip_folders import sample_folder
from pw.tracking.curves import CURVES, SAMPLES
from pw.tracking.loggers import MLflow
from pw.tracking.mlflow_log import TrackingError
from pw.train.record import training_folder

if TYPE_CHECKING:
    from pw.tracking.mlflow_log import RunRecord

FILES = (
    "table.md",
    "index.html",
    "table.json",
    "table.csv",
    "table.tex",
    "plot.png",
    "frontier.png",
    "contact_sheet.png",
)


def log_to_mlflow(plan: Plan, result: dict[str, Any], rows: Sequence[Row], uri: str | None = None) -> str:
    """Log a parent run and a run per arm and seed; return the id of the parent. Raises TrackingError.

    uri: of a server; None: the database in the outputs
    """
    from pw.tracking.mlflow_log import log_ablation

    score_folders = {(row.name, row.seed): Path(row.job.score["out"]) for row in rows}
    records = [
        run_record(plan, arm, seed, run, score_folders[arm.name, seed] / "scores.json")
        for arm in plan.arms
        for seed, run in arm.runs.items()
    ]
    summary = {
        f"{entry['name']}.{metric}": value["mean"]
        for entry in result["arms"]
        for metric, value in entry["metrics"].items()
        if value["mean"] is not None
    }
    commits = dict.fromkeys(record.tags["git_commit"] for record in records)
    code = digest(sorted({str(record.params["code"]) for record in records}))
    return log_ablation(
        plan.options.outputs,
        plan.name,
        records,
        artifacts=[plan.folder / name for name in FILES if (plan.folder / name).exists()],
        summary=summary,
        tags={
            "mlflow.note.content": (plan.folder / "table.md").read_text(),
            **{key: str(records[0].params[key]) for key in ("data", "data_hash", "scale", "size")},
            "code": code,
            "git_commit": ", ".join(commits),
        },
        origin=_origin(records[0].params | {"code": code}),
        uri=uri,
    )


def _origin(params: Mapping[str, object]) -> str:
    return f"{params['data']} {params['data_hash']}, {params['scale']} {params['size']}, code {params['code']}"


def run_record(plan: Plan, arm: Arm, seed: int, run: Run, file: Path) -> RunRecord:
    """What is logged of an arm and seed. file: its scores.json"""
    from pw.io.video import VideoError
    from pw.tracking.mlflow_log import RunRecord

    outputs = plan.options.outputs
    training, clips = training_folder(run, outputs), sample_folder(run, outputs, seed)
    mark = whole(training / "done.json", ["metrics.jsonl"]) or {}  # {}: its job has failed by name
    cost = {key: mark[key] for key in ("cpu_seconds", "train_flops", "peak_memory_mb") if key in mark}
    height, width = run.scale.size
    parts = (mark.get("code", run.training_code), run.sampling_code, run.evaluation_code)
    params = {
        **arm.varied,
        "data": run.config.choices["data"],
        "data_hash": data_hash(run),
        "scale": run.scale.name,
        "size": f"{run.scale.frames}x{height}x{width}",
        "code": digest(parts),
        "seed": seed,
    }
    scores = read_scores(file)["metrics"] if file.exists() else {}
    artifacts = [training / "config.yaml", file, file.with_suffix(".csv"), training / SAMPLES]
    with suppress(VideoError, OSError):  # a clip that is damaged is named by the page
        artifacts += playable_copies(sorted(clips.glob("000[0-3].mkv")), clips / "playable")
    curves = {training / name: prefix for name, prefix in CURVES.items() if mark and (training / name).exists()}
    began, ended = work_times(mark, read_json(clips / "done.json") or {}, file)
    return RunRecord(
        arm=arm.name,
        seed=seed,
        params=params,
        curves=curves,
        scores={k: v for k, v in (scores | cost).items() if v is not None and math.isfinite(v)},
        artifacts=[path for path in artifacts if path.exists()],
        tags={
            "signature": run.sample_signature(seed),
            "training": run.training_signature,
            "git_commit": f"{mark.get('git_commit')}{'-dirty' if mark.get('dirty') else ''}",
        },
        status="FINISHED" if scores else "FAILED",
        origin=_origin(params),
        began=began,
        ended=ended,
    )


def work_times(training: Mapping[str, Any], sampling: Mapping[str, Any], scores: Path) -> tuple[float, float]:
    """Unix time of the beginning and end of a run: as long as it trained and sampled, to when it was scored."""
    seconds = training.get("wall_seconds", 0.0) + sampling.get("wall_seconds", 0.0)
    ended = scores.stat().st_mtime if scores.exists() else 0.0
    return max(0.0, ended - seconds), ended


@dataclass(frozen=True)
class MlflowSyncOptions:
    """The options of `pw mlflow-sync`."""

    outputs: Path = option(OUTPUTS, "where the tables are")


def run(options: MlflowSyncOptions) -> int:
    """Log all tables; exit status 1 if one could not be logged. Raises ConfigError if there is no table."""
    outputs = options.outputs.expanduser().resolve()
    tables = [path.parent for path in sorted(outputs.glob("*/plan.json")) if (path.parent / "table.json").exists()]
    if not tables:
        raise ConfigError(f"outputs={outputs}: no ablation has a table there; `make ablation name=ansc` makes one")
    return max([_log(folder, outputs) for folder in tables])


def _log(folder: Path, outputs: Path) -> int:
    try:
        words = parse_json((folder / "plan.json").read_text())["words"]
        plan = make_plan(parse([*words, f"outputs={outputs}"]))
        table = read_result(folder / "table.json", {}, "run the ablation again")
        if table["settings"] != plan.options.settings():
            raise ValueError("its table is of an earlier call; run the latest call again to its end")
        tracking = plan.arms[0].first.tracking
        log_to_mlflow(plan, table, all_jobs(plan)[1], tracking.uri if isinstance(tracking, MLflow) else None)
    except (TrackingError, ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        is_clear = isinstance(error, TrackingError | ValueError | OSError)
        reason = error if is_clear else f"its plan.json or table.json is damaged ({error!r}); run the ablation again"
        print(without_make(f"{folder.name}: not logged: {reason}"), file=sys.stderr)
        return 1
    print(f"{folder.name}: logged")
    return 0


main = Command(MlflowSyncOptions, run, resume_hint="what was logged is kept; run the same command again to resume")
