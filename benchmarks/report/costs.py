"""Columns of the tables with what an arm costs: measured here, and by the plan at 2K and 4K."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.report.grid import SUPERSCRIPTS, Cell, Column, Grid

Result = Mapping[str, Any]


def _flops(value: float) -> str:
    exponent = math.floor(math.log10(value)) if value > 0 else 0
    return f"{value / 10**exponent:.1f}×10{str(exponent).translate(SUPERSCRIPTS)}"


def _count(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")  # a thin space


COSTS = (
    ("updates", "updates", _count),
    ("train_flops", "train FLOP", _flops),
    ("train_cpu_s", "train CPU [s]", _count),
    ("sample_cpu_s", "sample CPU [s]", _count),
    ("peak_memory_mb", "peak [MB]", _count),
)
PLANNED = (
    ("plan_2k_s", "2K [s]", _count),
    ("plan_2k_gb", "2K [GB]", _count),
    ("plan_4k_s", "4K [s]", _count),
    ("plan_4k_gb", "4K [GB]", _count),
)
PLAN = "plan of a video on an H200 (not measured)"
COST_KEYS = tuple(key for key, _, _ in (*COSTS, *PLANNED))


def costs(result: Result) -> Grid:
    """Updates, FLOPs, CPU-seconds and peak memory of every arm, and its plan at 2K and 4K, without empty columns."""
    costs_of = {arm["name"]: arm.get("cost") or {} for arm in result["arms"]}
    named = [(group, cost) for group, costs in (("cost", COSTS), (PLAN, PLANNED)) for cost in costs]
    columns = [(group, cost) for group, cost in named if any(row.get(cost[0]) is not None for row in costs_of.values())]

    def cell(row: Mapping[str, Any], key: str, text: Callable[[float], str]) -> Cell:
        return Cell() if (value := row.get(key)) is None else Cell(text(value), value=value)

    rows = tuple((arm, tuple(cell(row, key, text) for _, (key, _, text) in columns)) for arm, row in costs_of.items())
    return Grid(tuple(Column(group, header, key) for group, (key, header, _) in columns), rows)


def speed_ups(result: Result, rows: Sequence[tuple[str, str, str]]) -> Grid:
    """How many times faster each arm is than its reference arm by the plan; no columns without a plan.

    rows: label, arm, reference arm
    """
    costs_of = {arm["name"]: arm.get("cost") or {} for arm in result["arms"]}
    keys = [key for key in ("plan_2k_s", "plan_4k_s") if any(key in cost for cost in costs_of.values())]

    def cell(arm: str, reference: str, key: str) -> Cell:
        if key not in costs_of[arm] or key not in costs_of[reference]:
            return Cell()
        ratio = costs_of[reference][key] / costs_of[arm][key]
        return Cell(f"{ratio:.2f}×", value=ratio)

    headers = {"plan_2k_s": "2K faster", "plan_4k_s": "4K faster"}
    cells = tuple((label, tuple(cell(arm, other, key) for key in keys)) for label, arm, other in rows)
    return Grid(tuple(Column(PLAN, headers[key], key) for key in keys), cells)
