"""`pw mlflow-sync`: log every table of a folder of outputs that MLflow lacks, from files alone.

For when MLflow's database was locked or gone as an ablation ended. What MLflow has already is left alone.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from experiments.engine.job import all_jobs
from experiments.engine.plan import make_plan, parse
from pw.io.arguments import Command, ConfigError, option
from pw.io.paths import OUTPUTS
from pw.tracking.mlflow_log import TrackingError


@dataclass(frozen=True)
class MlflowSyncOptions:
    """Where the tables are that are logged."""

    outputs: Path = option(OUTPUTS, "where the tables are")


def run(options: MlflowSyncOptions) -> int:
    """Exit status: 0 done, 1 some table could not be logged. Raises ConfigError where there is no table."""
    outputs = options.outputs.expanduser().resolve()
    tables = [path.parent for path in sorted(outputs.glob("*/plan.json")) if (path.parent / "table.json").exists()]
    if not tables:
        raise ConfigError(f"outputs={outputs}: no ablation has a table there; `make ablation name=ansc` makes one")
    return max([_log(folder, outputs) for folder in tables])


def _log(folder: Path, outputs: Path) -> int:
    from experiments.engine.outcome.log_table import log_to_mlflow

    try:
        words = json.loads((folder / "plan.json").read_text())["words"]
        plan = make_plan(parse([*words, f"outputs={outputs}"]))
        log_to_mlflow(plan, json.loads((folder / "table.json").read_text()), all_jobs(plan)[1])
    except (TrackingError, ValueError, KeyError) as error:
        print(f"{folder.name}: not logged: {error}", file=sys.stderr)
        return 1
    print(f"{folder.name}: logged")
    return 0


main = Command(MlflowSyncOptions, run)
