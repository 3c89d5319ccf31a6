"""`make mlflow-sync`: log every table of a folder of outputs that MLflow does not have, from files alone.

pw mlflow-sync [outputs=DIR]

For when MLflow's database was locked or gone as an ablation ended. What MLflow has already is left alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.engine.plan import make_plan, parse
from experiments.engine.pool import all_jobs
from pw.io.paths import OUTPUTS
from pw.tracking.mlflow_database import TrackingError


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 done, 1 some table could not be logged, 2 a mistake in the call."""
    given = dict(word.partition("=")[::2] for word in arguments)
    if given.keys() - {"outputs"}:
        print(f"error: {' '.join(arguments)}: there is only outputs=DIR", file=sys.stderr)
        return 2
    outputs = Path(given.get("outputs", OUTPUTS)).expanduser().resolve()
    tables = [path.parent for path in sorted(outputs.glob("*/plan.json")) if (path.parent / "table.json").exists()]
    if not tables:
        print(
            f"error: outputs={outputs}: no ablation has a table there; `make ablation name=ansc` makes one",
            file=sys.stderr,
        )
        return 2
    return max([_log(folder, outputs) for folder in tables])


def _log(folder: Path, outputs: Path) -> int:
    from experiments.engine.table import log_to_mlflow

    try:
        words = json.loads((folder / "plan.json").read_text())["words"]
        plan = make_plan(parse([*words, f"outputs={outputs}"]))
        log_to_mlflow(plan, json.loads((folder / "table.json").read_text()), all_jobs(plan)[1])
    except (TrackingError, ValueError, KeyError) as error:
        print(f"{folder.name}: not logged: {error}", file=sys.stderr)
        return 1
    print(f"{folder.name}: logged")
    return 0
