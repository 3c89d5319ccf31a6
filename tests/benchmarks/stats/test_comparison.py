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

ONE = {"m": "lower"}


def table(rows: dict[str, list[float | None]], metric: str = "m") -> dict:
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
    # by hand: m differs by −1 ± 0.1 (t = −17, p = 0.003), x by −0.3, −0.4, −0.2 (p = 0.035), y by −0.1, 0, −0.1 (0.18)
    base, deltas = (4.0, 4.2, 4.1), {"m": (1.0, 1.1, 0.9), "x": (0.3, 0.4, 0.2), "y": (0.1, 0.0, 0.1)}
    scores = {
        "a": {s: dict.fromkeys(deltas, base[s]) for s in range(3)},
        "b": {s: {m: base[s] - d[s] for m, d in deltas.items()} for s in range(3)},
    }
    sides = dict.fromkeys(deltas, "lower")

    def marks(primary: str | None) -> dict[str, str]:
        return {m: d.verdict for m, d in compare(scores, sides, primary=primary).differences["b"].items()}

    none = "no difference shown"
    assert marks(None) == {"m": "better", "x": none, "y": none}  # 0.035 times 2
    assert marks("x") == {"m": "better", "x": "better", "y": none}
    assert marks("y") == {"m": none, "x": none, "y": none}
    assert compare(scores, sides, primary="x").best == {"m": "b", "x": "b", "y": None}
    assert compare(scores, sides, primary="y").best == {"m": None, "x": None, "y": None}
    assert compare(scores, sides, primary="x").primary == "x"
    gone = compare(scores, sides, primary="psd")  # no arm has it: Holm over all, and said to be
    assert (gone.primary, gone.differences) == (None, compare(scores, sides).differences)


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
    d = compare(table({"a": list(a), "b": list(b)}), ONE).differences["b"]["m"]
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
    got = compare(table({"a": seeds, "b": [s - 0.5 + e for s, e in zip(seeds, (0, 0.01, -0.01), strict=True)]}), ONE)
    assert got.differences["b"]["m"].verdict == "better"
    assert got.best == {"m": "b"}


@pytest.mark.parametrize(("direction", "verdict"), [("lower", "worse"), ("higher", "better")])
def test_the_verdict_follows_the_direction(direction: str, verdict: str):
    got = compare(table({"a": [1.0, 1.1, 0.9], "b": [2.0, 2.1, 1.91]}), {"m": direction})
    assert got.differences["b"]["m"].verdict == verdict


def test_a_ratio_is_compared_by_its_distance_from_one_on_either_side():
    got = compare(table({"half": [0.5, 0.51, 0.49], "over": [1.25, 1.24, 1.26]}), {"m": "one"})
    d = got.differences["over"]["m"]
    assert (d.diff_of, d.verdict) == ("abs_log", "better")
    assert d.diff == pytest.approx(math.log(1.25) - math.log(2), abs=1e-3)
    mirrored = compare(table({"a": [0.5, 0.4, 0.8], "b": [2.0, 2.5, 1.25]}), {"m": "one"}).differences["b"]["m"]
    assert mirrored.diff == pytest.approx(0, abs=1e-12)
    assert mirrored.verdict == "no difference shown"


def test_a_failed_run_leaves_the_common_seeds():
    got = compare(table({"a": [1.0, 2.0, 3.0], "b": [0.5, None, 2.5], "c": [None, 1.0, float("nan")]}), ONE)
    assert (got.arms["b"]["m"].n, got.differences["b"]["m"].n) == (2, 2)
    c = got.differences["c"]["m"]
    assert (c.n, c.diff, c.verdict) == (0, None, "not resolved")


def test_a_single_seed_has_no_interval_and_no_verdict():
    got = compare(table({"a": [1.0], "b": [0.1]}), ONE)
    d = got.differences["b"]["m"]
    assert (d.diff, d.low, d.p, d.p_adjusted, d.verdict) == (
        pytest.approx(-0.9),
        None,
        None,
        None,
        "not resolved",
    )
    assert got.arms["a"]["m"].low is None
    assert got.best == {"m": None}


def test_an_arm_without_any_score_is_absent_not_zero():
    got = compare({"a": {0: {"m": 1.0}, 1: {"m": 1.2}}, "b": {}}, ONE)
    assert got.arms["b"] == {}
    assert got.row("b")["vs_previous"]["m"]["verdict"] == "not resolved"


def test_arms_that_are_the_same_run_do_not_differ():
    got = compare(table({"a": [0.1, 0.2, 0.3], "b": [0.1, 0.2, 0.3]}), ONE).differences["b"]["m"]
    assert (got.diff, got.p, got.verdict) == (0, 1, "no difference shown")


def test_arms_can_be_held_against_a_named_reference():
    scores = table({"a": [1.0, 2.0, 3.0], "b": [2.0, 3.0, 4.1], "c": [3.0, 4.0, 5.1]})
    got = compare(scores, ONE, reference="b")
    assert {arm: [d.versus for d in row.values()] for arm, row in got.differences.items()} == {
        "a": ["b"],
        "b": [],
        "c": ["b"],
    }
    with pytest.raises(ValueError, match="reference='d' is not an arm; arms: a, b, c"):
        compare(scores, ONE, reference="d")


def test_the_first_arm_has_nothing_above_it():
    assert compare(table({"a": [1.0, 2.0]}), ONE).differences == {"a": {}}


def test_a_metric_without_direction_is_refused():
    with pytest.raises(ValueError, match="unknown metric 'm'"):
        compare(table({"a": [1.0]}))
    with pytest.raises(ValueError, match="no direction given for metric 'm'; given: x"):
        compare(table({"a": [1.0]}), {"x": "lower"})


def test_best_needs_a_significant_lead_over_every_other_arm():
    clear = {"a": [3.0, 3.1, 2.9], "b": [2.0, 2.1, 1.91], "c": [1.0, 1.1, 0.91]}
    assert compare(table(clear), ONE).best == {"m": "c"}
    assert compare(table({**clear, "d": [1.0, 1.2, 0.7]}), ONE).best == {"m": None}


def test_a_null_is_not_called_better_or_worse():
    # Five arms that do not differ, six metrics, three seeds: false calls per comparison at most 5 %.
    rng = np.random.default_rng(0)
    names = [f"m{i}" for i in range(6)]
    sides = dict(zip(names, ("lower", "higher", "lower", "higher", "lower", "lower"), strict=True))
    false, bold, comparisons, tables = 0, 0, 0, 250
    for _ in range(tables):
        draw = rng.normal(size=(5, 3, 6)) + 3 * rng.normal(size=(1, 3, 6))
        scores = {f"arm{a}": {s: dict(zip(names, draw[a, s], strict=True)) for s in range(3)} for a in range(5)}
        got = compare(scores, sides)
        called = [any(d.verdict in ("better", "worse") for d in row.values()) for row in got.differences.values()]
        false, comparisons = false + sum(called), comparisons + len(called) - 1
        bold += any(arm is not None for arm in got.best.values())
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
    got = compare(_steps(values))
    assert order_as_in_paper(got, paper.values(), paper.quality(), primary="psd") == answer


def test_a_pair_that_the_paper_does_not_order_is_left_out():
    paper = load("table_5")  # 4 -> 5 steps: Tech. falls, Aesth. rises
    scores = table({"4": [1.0, 1.1, 0.9], "5": [3.0, 3.1, 2.91]}, "psd")
    assert order_as_in_paper(compare(scores), paper.values(), paper.quality(), primary="psd") == "not resolved"


def test_other_metrics_may_contradict_unless_left_out():
    paper = load("table_9_3")
    good, bad = [2.0, 2.1, 1.9], [1.0, 1.1, 0.91]
    scores = {
        arm: {s: {"psd": p, "swd": w} for s, (p, w) in enumerate(zip(ps, ws, strict=True))}
        for arm, ps, ws in (("baseline", good, bad), ("original", bad, good))
    }
    got = compare(scores)
    assert order_as_in_paper(got, paper.values(), paper.quality(), primary="psd") == "no"
    assert order_as_in_paper(got, paper.values(), paper.quality(), primary="psd", metrics=["psd"]) == "yes"
