"""experiments/few_step.py: the arms of the same compute have it, by the plan's count."""

from __future__ import annotations

import pytest

from experiments.engine.ablation import load
from pw.cost.training_cost import training_cost
from pw.run.build import build


def flops(arm: str, *overrides: str) -> float:
    """Training FLOPs of an arm."""
    ablation, _ = load("few_step")
    return training_cost(build([*ablation.fixed.split(), *ablation.arms[arm].split(), *overrides])).flops.total


@pytest.mark.parametrize("arm", ["flow_flops", "consistency"])
def test_an_arm_of_the_shortcuts_compute_could_have_no_number_of_updates_nearer_to_it(arm: str) -> None:
    an_update = flops(arm, "train.updates=2000") / 2000
    assert abs(flops(arm) - flops("shortcut")) <= an_update / 2


def test_mean_flow_costs_what_the_shortcut_does_within_two_per_cent() -> None:
    assert flops("meanflow") / flops("shortcut") == pytest.approx(1, abs=0.021)


def test_the_other_arms_have_the_shortcuts_updates_and_cost_less() -> None:
    for arm in ("flow", "meanflow_paper"):
        assert flops(arm, "train.updates=160") == flops(arm) < flops("shortcut")
