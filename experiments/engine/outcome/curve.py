"""Along which number the arms of a plan lie, if they do: its table is then shown as a curve."""

from __future__ import annotations

from typing import Any

from experiments.engine.plan import Arm, Plan
from pw.run.compose import at

FEWEST = 3  # points of a line: two are a comparison, no curve


def curve_of(plan: Plan) -> dict[str, Any] | None:
    """The "curve" of table.json: {"key", "label", "lines": [{"name", "points": [[number, arm]]}]}, points in order.

    None where the arms do not differ in a number, or no line has three of them.
    """
    ablation = plan.ablation
    if ablation.curve is not None:
        key, absent = ablation.curve
    elif ablation.across is not None:
        key, absent = ablation.across[0], None
    elif len(ablation.varies) == 1:
        key, absent = ablation.varies[0], None
    else:
        return None
    lines: dict[str, list[tuple[float, str]]] = {}
    for arm in plan.arms:
        number = _number(arm, key, absent)
        if number is None:
            return None
        lines.setdefault(_line(plan, arm, key), []).append((number, arm.name))
    if max(len(points) for points in lines.values()) < FEWEST:
        return None
    return {
        "key": key,
        "label": key.rpartition(".")[2],
        "lines": [{"name": name, "points": [list(p) for p in sorted(points)]} for name, points in lines.items()],
    }


def _number(arm: Arm, key: str, absent: float | str | None) -> float | None:
    """Where an arm lies; `absent` stands for a key that is null or not there: a number, or the key that then holds."""
    values = arm.first.config.values
    number = at(values, key)
    if number is None:
        number = at(values, absent) if isinstance(absent, str) else absent
    return number if isinstance(number, int | float) and not isinstance(number, bool) else None


def _line(plan: Plan, arm: Arm, key: str) -> str:
    """Name of the arm's line: the arm where arms are crossed with the key, else its values of the other varied keys."""
    if plan.ablation.across is not None and plan.ablation.across[0] == key:
        return arm.paper_arm
    others = [k for k in arm.varied if k != key and not key.startswith(f"{k}.")]
    return " ".join(str(arm.varied[k]) for k in others)
