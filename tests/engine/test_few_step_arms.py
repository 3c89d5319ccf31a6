"""experiments/few_step.py: the arms of the same compute have it, by the plan's count, at every scale."""

from __future__ import annotations

import pytest

from experiments.engine.plan import make_plan, parse
from pw.cost.training_cost import training_cost
from pw.io.arguments import ConfigError
from pw.run.build import Run, build


def runs_of(*words: str) -> dict[str, Run]:
    """Arm -> its run of one step."""
    plan = make_plan(parse(["name=few_step", "seeds=1", "sampling.num_steps=1,2", *words]))
    return {arm.paper_arm: arm.first for arm in plan.arms if arm.name.endswith("@1")}


@pytest.fixture(scope="module")
def tiny() -> dict[str, Run]:
    return runs_of()


def flops(run: Run) -> float:
    return training_cost(run).flops.total


def an_update(run: Run) -> float:
    """FLOPs of one."""
    return flops(run) / run.train.updates


@pytest.mark.parametrize("arm", ["flow_flops", "consistency"])
def test_an_arm_of_the_shortcuts_compute_could_have_no_number_of_updates_nearer_to_it(
    tiny: dict[str, Run], arm: str
) -> None:
    assert abs(flops(tiny[arm]) - flops(tiny["shortcut"])) <= an_update(tiny[arm]) / 2


def test_flow_flops_is_the_run_of_213_updates_at_the_tiny_scale(tiny: dict[str, Run]) -> None:
    words = ["stage=hires", "start=hires", "objective=flow", "train.updates=213", "sampling.num_steps=1"]
    assert tiny["flow_flops"].configuration_signature == build(words).configuration_signature


def test_flow_flops_has_the_compute_of_the_shortcut_at_another_scale_too() -> None:
    runs = runs_of("arms=shortcut,flow_flops", "scale=small", "data=procedural")
    assert abs(flops(runs["flow_flops"]) - flops(runs["shortcut"])) <= an_update(runs["flow_flops"]) / 2
    assert runs["flow_flops"].train.updates != 213


def test_an_arm_of_the_same_flops_is_refused_by_the_words_that_it_cannot_have() -> None:
    with pytest.raises(ConfigError, match=r"^train\.updates=300: few_step varies train\.updates itself"):
        make_plan(parse(["name=few_step", "train.updates=300"]))


def test_mean_flow_costs_what_the_shortcut_does_within_two_per_cent(tiny: dict[str, Run]) -> None:
    assert flops(tiny["meanflow"]) / flops(tiny["shortcut"]) == pytest.approx(1, abs=0.021)


def test_the_other_arms_have_the_shortcuts_updates_and_cost_less(tiny: dict[str, Run]) -> None:
    for arm in ("flow", "meanflow_paper"):
        assert tiny[arm].train.updates == tiny["shortcut"].train.updates
        assert flops(tiny[arm]) < flops(tiny["shortcut"])
