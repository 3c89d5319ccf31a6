"""Intervals, corrections and verdicts against known cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp, ttest_rel

from benchmarks.paper import load
from benchmarks.stats.comparison import compare, equivalence, estimate, gatekeep, holm, order_as_in_paper


def table(rows: dict[str, list[float | None]], metric: str = "psd") -> dict:
    return {arm: {s: {metric: v} for s, v in enumerate(values)} for arm, values in rows.items()}


def test_holm_against_a_case_worked_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04 -> running maximum.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_the_order(p: list[float]):
    adjusted = holm(p)
    assert all(p[i] <= adjusted[i] <= 1 for i in range(len(p)))
    assert all(adjusted[i] <= adjusted[j] for i in range(len(p)) for j in range(len(p)) if p[i] <= p[j])


def test_the_primary_is_tested_alone_and_the_others_by_holm_behind_it():
    p = {"a": 0.03, "main": 0.02, "b": 0.004, "c": 0.01}
    # main as it is; of the others 0.004, 0.01, 0.03 times 3, 2, 1: 0.012, 0.02, 0.03, and none below main's
    assert gatekeep(p, "main") == pytest.approx({"a": 0.03, "main": 0.02, "b": 0.02, "c": 0.02})
    # a gate that is shut keeps all of them out
    assert gatekeep({**p, "main": 0.056}, "main") == pytest.approx({"a": 0.056, "main": 0.056, "b": 0.056, "c": 0.056})
    # without one, or without a test of it: Holm over all
    assert gatekeep({"a": 0.03, "b": 0.004}, None) == pytest.approx({"a": 0.03, "b": 0.008})
    assert gatekeep({"a": 0.03, "b": 0.004}, "main") == pytest.approx({"a": 0.03, "b": 0.008})
    assert gatekeep({}, "main") == {}


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 1), min_size=1), st.sampled_from("abcdef"))
def test_a_gate_never_shows_a_metric_that_holm_among_the_others_would_not(p: dict[str, float], primary: str):
    adjusted = gatekeep(p, primary)
    assert adjusted.keys() == p.keys()
    assert all(p[m] <= adjusted[m] <= 1 for m in p)
    if primary in p:
        assert adjusted[primary] == p[primary] == min(adjusted.values())


def test_a_table_marks_by_the_gate_and_names_the_metric_of_it():
    # by hand: psd differs by −1 ± 0.1 (t = −17, p = 0.003), swd by −0.3, −0.4, −0.2 (p = 0.035), the gap by −0.1, 0,
    # −0.1 (0.18)
    base, deltas = (4.0, 4.2, 4.1), {"psd": (1.0, 1.1, 0.9), "swd": (0.3, 0.4, 0.2), "solution_gap": (0.1, 0.0, 0.1)}
    scores = {
        "a": {s: dict.fromkeys(deltas, base[s]) for s in range(3)},
        "b": {s: {m: base[s] - d[s] for m, d in deltas.items()} for s in range(3)},
    }

    def marks(primary: str | None) -> dict[str, str]:
        return {m: d.verdict for m, d in compare(scores, primary=primary).differences["b"].items()}

    none = "no difference shown"
    assert marks(None) == {"psd": "better", "swd": none, "solution_gap": none}  # 0.035 times 2
    assert marks("swd") == {"psd": "better", "swd": "better", "solution_gap": none}
    assert marks("solution_gap") == {"psd": none, "swd": none, "solution_gap": none}
    assert compare(scores, primary="swd").best == {"psd": "b", "swd": "b", "solution_gap": None}
    assert compare(scores, primary="solution_gap").best == {"psd": None, "swd": None, "solution_gap": None}
    assert compare(scores, primary="swd").primary == "swd"
    result = compare(scores, primary="mhd")  # no arm has it: Holm over all, and said to be
    assert (result.primary, result.differences) == (None, compare(scores).differences)


@pytest.mark.parametrize("n", [3, 6])
def test_equivalence_is_shown_where_the_90_percent_interval_is_within_the_margin(n: int):
    rng = np.random.default_rng(n)
    for _ in range(40):
        b = rng.normal(10, 1, n)
        a = b + rng.normal(0.2, 0.5, n)
        by_seed = [dict(enumerate(values.tolist())) for values in (a, b)]
        # the margin grows with b, so the interval is that of a − 0.9 b and a − 1.1 b
        low = ttest_rel(a, 0.9 * b).confidence_interval(0.9).low
        high = ttest_rel(a, 1.1 * b).confidence_interval(0.9).high
        assert (equivalence(*by_seed, "lower", 0.1) < 0.05) == (low > 0 and high < 0)
        assert (equivalence(*by_seed, "lower", 0.1, both=False) < 0.05) == (high < 0)
        assert (equivalence(*by_seed, "higher", 0.1, both=False) < 0.05) == (low > 0)


def test_equivalence_of_a_ratio_is_of_its_distance_from_one():
    a, b = ({0: 1.05, 1: 1.06, 2: 1.04}, {0: 0.96, 1: 0.95, 2: 0.97})
    assert equivalence(a, b, "one", 0.1) < 0.01  # |ln| 0.05 and 0.04, and up to ln 1.1 = 0.095 apart
    assert equivalence(a, b, "one", 0.005) > 0.05
    assert equivalence({0: 1.0}, {0: 1.0}, "one", 0.1) is None


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_interval_and_p_are_those_of_the_paired_t_test(n: int):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=n), rng.normal(1, 1, size=n)
    d = compare(table({"a": list(a), "b": list(b)})).differences["b"]["psd"]
    reference = ttest_rel(b, a)
    low, high = reference.confidence_interval(0.95)
    assert d.p == pytest.approx(reference.pvalue)
    assert (d.low, d.high) == pytest.approx((low, high))
    assert (d.diff, d.n, d.versus) == (pytest.approx((b - a).mean()), n, "a")


def test_an_arms_interval_is_students():
    values = [1.0, 2.0, 4.0]
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    e = estimate(values)
    assert (e.mean, e.low, e.high, e.n) == (pytest.approx(7 / 3), pytest.approx(low), pytest.approx(high), 3)


def test_pairing_finds_what_is_small_beside_the_spread_of_seeds():
    seeds = [1.0, 5.0, 9.0]
    result = compare(table({"a": seeds, "b": [s - 0.5 + e for s, e in zip(seeds, (0, 0.01, -0.01), strict=True)]}))
    assert result.differences["b"]["psd"].verdict == "better"
    assert result.best == {"psd": "b"}


@pytest.mark.parametrize(("metric", "verdict"), [("psd", "worse"), ("mhd", "better")])
def test_the_verdict_follows_the_direction(metric: str, verdict: str):
    result = compare(table({"a": [1.0, 1.1, 0.9], "b": [2.0, 2.1, 1.91]}, metric))
    assert result.differences["b"][metric].verdict == verdict


def test_a_ratio_is_compared_by_its_distance_from_one_on_either_side():
    result = compare(table({"half": [0.5, 0.51, 0.49], "over": [1.25, 1.24, 1.26]}, "mhd_ratio"))
    d = result.differences["over"]["mhd_ratio"]
    assert (d.diff_of, d.verdict) == ("abs_log", "better")
    assert d.diff == pytest.approx(math.log(1.25) - math.log(2), abs=1e-3)
    mirrored = compare(table({"a": [0.5, 0.4, 0.8], "b": [2.0, 2.5, 1.25]}, "mhd_ratio")).differences["b"]["mhd_ratio"]
    assert mirrored.diff == pytest.approx(0, abs=1e-12)
    assert mirrored.verdict == "no difference shown"


def test_a_failed_run_leaves_the_common_seeds():
    result = compare(table({"a": [1.0, 2.0, 3.0], "b": [0.5, None, 2.5], "c": [None, 1.0, float("nan")]}))
    assert (result.arms["b"]["psd"].n, result.differences["b"]["psd"].n) == (2, 2)
    c = result.differences["c"]["psd"]
    assert (c.n, c.diff, c.verdict) == (0, None, "not resolved")


def test_a_single_seed_has_no_interval_and_no_verdict():
    result = compare(table({"a": [1.0], "b": [0.1]}))
    d = result.differences["b"]["psd"]
    assert (d.diff, d.low, d.p, d.p_adjusted, d.verdict) == (
        pytest.approx(-0.9),
        None,
        None,
        None,
        "not resolved",
    )
    assert result.arms["a"]["psd"].low is None
    assert result.best == {"psd": None}


def test_an_arm_without_any_score_is_absent_not_zero():
    result = compare({"a": {0: {"psd": 1.0}, 1: {"psd": 1.2}}, "b": {}})
    assert result.arms["b"] == {}
    assert result.row("b")["vs_previous"]["psd"]["verdict"] == "not resolved"


def test_arms_that_are_the_same_run_do_not_differ():
    result = compare(table({"a": [0.1, 0.2, 0.3], "b": [0.1, 0.2, 0.3]})).differences["b"]["psd"]
    assert (result.diff, result.p, result.verdict) == (0, 1, "no difference shown")


def test_arms_can_be_held_against_others_than_the_one_above():
    scores = table({"a": [1.0, 2.0, 3.0], "b": [2.0, 3.0, 4.1], "c": [3.0, 4.0, 5.1]})
    result = compare(scores, versus={"a": "b", "b": None, "c": "b"})
    assert {arm: [d.versus for d in row.values()] for arm, row in result.differences.items()} == {
        "a": ["b"],
        "b": [],
        "c": ["b"],
    }


def test_the_first_arm_has_nothing_above_it():
    assert compare(table({"a": [1.0, 2.0]})).differences == {"a": {}}


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="unknown metric 'm'"):
        compare(table({"a": [1.0]}, "m"))


def test_best_needs_a_significant_lead_over_every_other_arm():
    clear = {"a": [3.0, 3.1, 2.9], "b": [2.0, 2.1, 1.91], "c": [1.0, 1.1, 0.91]}
    assert compare(table(clear)).best == {"psd": "c"}
    assert compare(table({**clear, "d": [1.0, 1.2, 0.7]})).best == {"psd": None}


@pytest.mark.slow
def test_a_null_is_not_called_better_or_worse():
    # Five arms that do not differ, six metrics, three seeds: false calls per comparison at most 5 %.
    rng = np.random.default_rng(0)
    names = ["psd", "mhd", "swd", "musiq", "niqe", "solution_gap"]
    false, bold, comparisons, tables = 0, 0, 0, 250
    for _ in range(tables):
        draw = rng.normal(size=(5, 3, 6)) + 3 * rng.normal(size=(1, 3, 6))
        scores = {f"arm{a}": {s: dict(zip(names, draw[a, s], strict=True)) for s in range(3)} for a in range(5)}
        result = compare(scores)
        calls = [any(d.verdict in ("better", "worse") for d in row.values()) for row in result.differences.values()]
        false, comparisons = false + sum(calls), comparisons + len(calls) - 1
        bold += any(arm is not None for arm in result.best.values())
    assert false / comparisons < 0.065  # 5 % and two standard errors of 1000 comparisons
    assert bold / tables < 0.05


def _steps(values: list[float]) -> dict:
    arms = load("table_9_3").values()
    wobble = (0.0, 0.01, -0.01)
    rows = {arm: [v + w * (i + 1) for w in wobble] for i, (arm, v) in enumerate(zip(arms, values, strict=True))}
    return table(rows, "psd")


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ([4.0, 3.0, 2.0, 1.0], "yes"),
        ([4.0, 3.0, 2.0, 2.0], "not resolved"),
        ([4.0, 3.0, 2.0, 2.5], "no"),
    ],
)
def test_the_order_is_held_against_the_papers(values: list[float], answer: str):
    paper = load("table_9_3")
    result = compare(_steps(values))
    assert order_as_in_paper(result, paper.values(), paper.quality(), primary="psd") == answer


def test_a_pair_that_the_paper_does_not_order_is_left_out():
    paper = load("table_5")  # 4 -> 5 steps: Tech. falls, Aesth. rises
    scores = table({"4": [1.0, 1.1, 0.9], "5": [3.0, 3.1, 2.91]}, "psd")
    assert order_as_in_paper(compare(scores), paper.values(), paper.quality(), primary="psd") == "not resolved"


def test_other_metrics_may_contradict_unless_left_out():
    paper = load("table_9_3")
    high, low = [2.0, 2.1, 1.9], [1.0, 1.1, 0.91]
    scores = {
        arm: {s: {"psd": p, "swd": w} for s, (p, w) in enumerate(zip(ps, ws, strict=True))}
        for arm, ps, ws in (("baseline", high, low), ("original", low, high))
    }
    result = compare(scores)
    assert order_as_in_paper(result, paper.values(), paper.quality(), primary="psd") == "no"
    assert order_as_in_paper(result, paper.values(), paper.quality(), primary="psd", metrics=["psd"]) == "yes"
