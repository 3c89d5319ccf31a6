"""What the plan says of an arm at 2K and 4K, in a table and in the evidence of a verdict."""

from __future__ import annotations

import pytest

from experiments import Ablation, all_of, better, not_worse
from experiments.engine.ablation import load, names
from experiments.engine.outcome.planned_cost import planned_costs, with_savings

ABLATION = Ablation(
    varies=("guidance",),
    arms={"on": "guidance=on", "off": "guidance=off", "other": ""},
    planned={"on": "", "off": "guidance=off"},
    claims=(
        not_worse("off", "on"),
        better("other", "on"),
        all_of("both", better("on", "off"), better("off", "on")),
    ),
)


def test_an_arm_is_priced_at_both_scales_where_the_ablation_says_how():
    costs, notes = planned_costs(ABLATION)
    assert (costs.keys(), notes) == ({"on", "off"}, [])
    on, off = costs["on"], costs["off"]
    assert on.keys() == off.keys() == {"plan_2k_s", "plan_2k_gb", "plan_4k_s", "plan_4k_gb"}
    # 8 evaluations of 5.6 PFLOP at 2K and 25.1 at 4K become 4: at 400 TFLOP/s 56 and 251 s less
    assert on["plan_2k_s"] - off["plan_2k_s"] == pytest.approx(56, abs=1)
    assert on["plan_4k_s"] - off["plan_4k_s"] == pytest.approx(251, abs=2)


def test_the_evidence_of_a_clause_says_what_is_saved():
    rows = [{"clause": "", "answer": "holds", "evidence": evidence} for evidence in ("psd 1 → 1 dB", "", "")]
    evidence = [row["evidence"] for row in with_savings(rows, ABLATION.claims, planned_costs(ABLATION)[0])]
    assert evidence[0].startswith("psd 1 → 1 dB, 2K 145 → 89 s by the plan, 4K ")
    assert evidence[1:] == ["", ""]


def test_an_arm_that_cannot_be_planned_is_noted_and_costs_no_table():
    ablation = Ablation(varies=("guidance",), arms={"on": ""}, planned={"on": "guidance=of"})
    costs, [note] = planned_costs(ablation)
    assert costs == {}
    assert note.startswith("no plan of on at 2K and 4K: guidance=of")


@pytest.mark.parametrize("name", names())
def test_every_ablation_that_prices_arms_prices_all_of_them(name: str):
    ablation, _ = load(name)
    assert not ablation.planned or ablation.planned.keys() == ablation.arms.keys()
    assert not planned_costs(ablation)[1]
