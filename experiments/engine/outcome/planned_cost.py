"""What the plan says of an arm at 2K and 4K: seconds and gigabytes of one video on an H200, beside the tiny scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.engine.ablation import Ablation, Clause
from pw.cost.generation_cost import generation_cost, stages_of, with_tile
from pw.cost.rates import parse_gpus, rates_of_gpus
from pw.io.arguments import ConfigError
from pw.run.build import build

SCALES = ("2k", "4k")
CARD = "H200"


Costs = Mapping[str, Mapping[str, float]]  # arm -> `plan_2k_s`, `plan_2k_gb`, `plan_4k_s`, `plan_4k_gb`


def planned_costs(ablation: Ablation) -> tuple[Costs, list[str]]:
    """(the costs of the arms that the ablation prices, notes on those that cannot be planned)."""
    costs, notes = {}, []
    for arm, words in ablation.planned.items():
        try:
            costs[arm] = _cost(words.split())
        except ConfigError as error:
            notes.append(f"no plan of {arm} at 2K and 4K: {error}")
    return costs, notes


def _cost(overrides: Sequence[str]) -> dict[str, float]:
    cost: dict[str, float] = {}
    for scale in SCALES:
        gpus = parse_gpus(CARD)
        generation = generation_cost(*with_tile(stages_of(build([f"scale={scale}", *overrides])), gpus.memory))
        cost[f"plan_{scale}_s"] = generation.seconds(rates_of_gpus(gpus))
        cost[f"plan_{scale}_gb"] = generation.worst.needs / 1e9
    return cost


def with_savings(rows: Sequence[Mapping[str, str]], clauses: Sequence[Clause], costs: Costs) -> list[dict[str, str]]:
    """The verdict with the plan's seconds of the two arms of each clause, where they differ."""
    result = []
    for row, clause in zip(rows, clauses, strict=True):
        evidence, pairs = [row["evidence"]] if row["evidence"] else [], [*clause.pairs()]
        if len(pairs) == 1 and {pairs[0].arm, pairs[0].other} <= costs.keys():
            new, old = costs[pairs[0].arm], costs[pairs[0].other]
            times = [(scale, old[f"plan_{scale}_s"], new[f"plan_{scale}_s"]) for scale in SCALES]
            evidence += [f"{s.upper()} {a:.0f} → {b:.0f} s by the plan" for s, a, b in times if round(a) != round(b)]
        result.append({**row, "evidence": ", ".join(evidence)})
    return result
