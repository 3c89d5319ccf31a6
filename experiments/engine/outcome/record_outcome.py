"""`pw record name=ansc`: an ablation's outcome, small enough to commit, as `experiments/results/<name>.json`.

It holds the scores, differences and answers to each clause of `outputs/<name>/table.json`, to four digits; where that
is more than `MOST` bytes, only those of the metrics that the claim is about. The Verdict paragraph of the ablation's
file begins with `experiments.engine.outcome.verdict.summary` of it; a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.engine.ablation import load, names
from experiments.engine.outcome.verdict import summary
from experiments.engine.outcome.written import read_written
from pw.io.arguments import Command, ConfigError, option
from pw.io.files import write_atomically
from pw.io.paths import OUTPUTS
from pw.train.loop import outputs_folder

RESULTS = Path(__file__).parents[2] / "results"
MOST = 8192
METRICS = ("mean", "low", "high", "n")
DIFFERENCES = ("diff", "low", "high", "p", "p_adjusted", "verdict", "versus")
LISTS = ("seeds", "settings", "arms", "verdict")
WRITTEN: dict[str, Any] = {"ablation": str, "scale": str} | dict.fromkeys(LISTS, list)


def digest_of(table: Mapping[str, Any], metrics: Sequence[str] | None = None) -> dict[str, Any]:
    """The part of a table.json that is kept: values in lists, named once by "columns".

    metrics: only these; None keeps all.
    """

    def rows(by_metric: Mapping[str, Any], columns: Sequence[str]) -> dict[str, list[Any]]:
        kept = {name: row for name, row in by_metric.items() if metrics is None or name in metrics}
        return {name: [_rounded(row[key]) for key in columns] for name, row in kept.items()}

    return {
        **{key: table.get(key) for key in ("ablation", "scale", "seeds", "settings", "primary", "verdict")},
        "git_commit": table["contract"].get("git_commit"),
        "columns": {"metrics": METRICS, "vs_previous": DIFFERENCES},
        "arms": [
            {
                "name": arm["name"],
                "metrics": rows(arm["metrics"], METRICS),
                "vs_previous": rows(arm["vs_previous"], DIFFERENCES),
            }
            for arm in table["arms"]
        ],
        **{key: rows(table.get(key) or {}, METRICS) for key in ("ceiling", "floor")},
    }


def digest_text(digest: Mapping[str, Any]) -> str:
    """As JSON, an arm and a clause a line, so that a change of one shows as one."""
    lines = []
    for key, value in digest.items():
        if key in ("arms", "verdict"):
            body = ",\n".join(f"  {_json(row)}" for row in value)
            lines.append(f' "{key}": [\n{body}\n ]')
        else:
            lines.append(f' "{key}": {_json(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def record(name: str, outputs: Path, results: Path = RESULTS) -> Path:
    """Write the digest of an ablation's table. Raises ConfigError where it has none, or a part of one."""
    ablation, _ = load(name)
    path = outputs / name / "table.json"
    if not path.exists():
        raise ConfigError(f"name={name}: has no table in {outputs}; `make ablation name={name}` makes it")
    remedy = f"remove it, and `make ablation name={name}` writes it again"
    table = read_written(path, WRITTEN | {"contract": dict}, remedy)
    if table["ablation"] != name:
        raise ConfigError(f"{path}: is of {table['ablation']}")
    if asked := [word for word in table["settings"] if word.partition("=")[0] not in ("seeds", "vary_start")]:
        raise ConfigError(f"{path}: was asked for with {' '.join(asked)}; what is recorded is of the ablation as it is")
    if table.get("failed") or any(arm.get("status", "ok") != "ok" for arm in table["arms"]):
        raise ConfigError(f"{path}: some of its runs failed; `make ablation name={name}` does them again")
    text = digest_text(digest_of(table))
    if len(text.encode()) > MOST:
        of_claim = [pair.metric for clause in ablation.claims for pair in clause.pairs()]
        text = digest_text(digest_of(table, [ablation.primary, *(metric for metric in of_claim if metric)]))
    out = results / f"{name}.json"
    write_atomically(out, text)
    return out


def recorded(results: Path = RESULTS) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every recorded result by the name of its ablation."""
    for path in sorted(results.glob("*.json")):
        yield path.stem, read_written(path, WRITTEN, f"`make record name={path.stem}` writes it again")


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class RecordOptions:
    """Which ablation's table is kept."""

    name: str = option(says="the ablation", values=names)
    outputs: Path = option(OUTPUTS, "where its table is", read=outputs_folder)


def run(options: RecordOptions) -> int:
    """Write the record and print how the Verdict paragraph begins; exit status 0. Raises ConfigError."""
    out = record(options.name, options.outputs)
    written = json.loads(out.read_text())
    print(f"{out}\nThe Verdict of experiments/{options.name}.py begins with:")
    print(summary(written["scale"], written["seeds"], written["verdict"]))
    return 0


main = Command(RecordOptions, run)
