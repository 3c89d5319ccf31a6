"""Two sets of per-video scores: known cases, and the error rates that are promised."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test, ttest_ind

from benchmarks.metrics import GROUPS
from benchmarks.stats.paired import compare_videos, independent, paired, sign_flip


def videos(values: list[float] | np.ndarray, per_prompt: int = 1) -> dict[str, float]:
    return {f"prompt {i // per_prompt}-{i % per_prompt}": float(v) for i, v in enumerate(values)}


def one(a: dict[str, float], b: dict[str, float], metric: str = "mhd"):
    return compare_videos({metric: a}, {metric: b}).differences[metric]


def test_sign_flips_of_three_by_hand():
    # |±1 ±2 ±4| >= 5 for 1+2+4, -1+2+4 and their negatives: 4 of 8
    p, test_name = sign_flip(np.array([-1.0, 2.0, 4.0]))
    assert p == 4 / 8
    assert test_name == "sign flip, all 8"


def test_exact_sign_flips_are_scipys():
    totals = np.random.default_rng(3).normal(0.4, 1, 11)
    reference = permutation_test((totals,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(totals)[0] == pytest.approx(reference.pvalue)


def test_drawn_sign_flips_agree_with_the_normal_approximation_of_the_same_null():
    totals = np.random.default_rng(4).normal(0.15, 1, 200)
    p, test_name = sign_flip(totals)
    # the sum of randomly signed terms has variance sum(x^2); 10,000 draws leave 0.005 (one sd at most)
    z = abs(totals.sum()) / math.sqrt((totals**2).sum())
    assert p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.02)
    assert test_name == "sign flip, 10000 drawn"


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=9))
@settings(max_examples=50)
def test_a_p_is_never_below_what_so_many_prompts_can_give(values: list[float]):
    p, _ = sign_flip(np.array(values))
    assert min(1.0, 2.0 ** (1 - len(values))) - 1e-12 <= p <= 1


def test_equal_videos_differ_by_nothing():
    a = videos(np.arange(10.0))
    d = one(a, a)
    assert (d.diff, d.low, d.high, d.p, d.verdict) == (0, 0, 0, 1, "no difference shown")


def test_the_difference_is_b_minus_a_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    a = rng.normal(size=40)
    b = a + rng.normal(0.5, 0.2, 40)
    d = one(videos(a), videos(b))
    assert d.diff == pytest.approx((b - a).mean())
    assert d.low < d.diff < d.high
    assert (d.n, d.prompts, d.design) == (40, 40, "paired")
    assert (d.a, d.b) == (pytest.approx(a.mean()), pytest.approx(b.mean()))


@pytest.mark.parametrize(("metric", "verdict"), [("mhd", "better"), ("psd", "worse")])
def test_a_clear_rise_is_judged_by_the_metrics_direction(metric: str, verdict: str):
    rng = np.random.default_rng(1)
    a = rng.normal(size=30)
    assert one(videos(a), videos(a + 1 + rng.normal(0, 0.1, 30)), metric).verdict == verdict


def test_of_a_ratio_the_distance_from_one_counts():
    a, b = videos(np.linspace(0.4, 0.6, 20)), videos(np.linspace(1.05, 1.25, 20))
    d = one(a, b, "mhd_ratio")
    assert (d.verdict, d.diff_of) == ("better", "abs_log")
    assert d.diff < 0
    assert one(a, {**b, "prompt 0-0": 0.0}, "mhd_ratio").verdict == "not resolved"


def test_pairing_shows_what_the_spread_of_videos_hides():
    rng = np.random.default_rng(2)
    a = rng.normal(50, 10, 30)
    b = a + rng.normal(1, 0.5, 30)
    assert one(videos(a), videos(b)).verdict == "better"
    others = {f"other {name}": value for name, value in videos(b).items()}
    d = one(videos(a), others)
    assert (d.verdict, d.design, d.test) == ("no difference shown", "independent", "Welch")


def test_sets_without_a_common_name_are_compared_by_welch():
    rng = np.random.default_rng(5)
    a, b = rng.normal(0, 1, 12), rng.normal(1, 3, 20)
    reference = ttest_ind(b, a, equal_var=False)
    d = independent(videos(a), videos(b), "higher")
    low, high = reference.confidence_interval(0.95)
    assert (d.p, d.low, d.high) == tuple(pytest.approx(x) for x in (reference.pvalue, low, high))
    assert (d.n, d.prompts) == ((12, 20), (12, 20))


def test_videos_of_one_prompt_stay_together():
    rng = np.random.default_rng(6)
    prompts = np.repeat(rng.normal(0, 1, 8), 5)  # five seeds that all say the same
    d = one(videos(np.zeros(40), 5), videos(prompts, 5))
    assert (d.n, d.prompts) == (40, 8)
    assert d.p == sign_flip(prompts[::5])[0]
    single = one(videos(np.zeros(40)), videos(prompts))
    assert d.high - d.low > 1.5 * (single.high - single.low)


def test_the_ending_of_a_file_makes_no_other_video_of_it():
    a = {f"{name}.mp4": value for name, value in videos(np.arange(10.0)).items()}
    b = {f"{name}.mkv": value for name, value in videos(np.arange(10.0)).items()}
    assert one(a, b).n == 10


def test_what_has_no_partner_is_counted_and_named():
    a, b = videos(np.arange(10.0)), videos(np.arange(10.0))
    del a["prompt 3-0"]
    b["prompt 4-0"] = math.nan
    outcome = compare_videos({"mhd": a}, {"mhd": b})
    rest = outcome.left_out["mhd"]
    assert (rest.only_a, rest.names_a, rest.only_b, rest.names_b) == (1, ("prompt 4-0",), 1, ("prompt 3-0",))
    assert outcome.differences["mhd"].n == 8


def test_too_few_prompts_are_not_resolved_and_say_so():
    d = one(videos([0.0] * 5), videos([1.0, 1.1, 0.9, 1.2, 0.8]))
    assert (d.verdict, d.p) == ("not resolved", 2 / 32)
    assert "5 prompts" in d.reason
    assert one(videos([0.0]), videos([1.0])).reason.endswith("all videos are of one prompt")


def test_holm_runs_over_the_metrics():
    rng = np.random.default_rng(7)
    base = videos(rng.normal(size=8))
    larger = {name: value + 1 for name, value in base.items()}  # p = 2/256 alone
    names = GROUPS["table_8_1"][:8]
    outcome = compare_videos(dict.fromkeys(names, base), dict.fromkeys(names, larger)).differences
    assert all(d.p == 2 / 256 and d.p_adjusted == 16 / 256 for d in outcome.values())
    assert {d.verdict for d in outcome.values()} == {"no difference shown"}


def test_the_primary_is_tested_first_and_alone():
    rng = np.random.default_rng(7)
    base = videos(rng.normal(size=8))
    larger = {name: value + 1 for name, value in base.items()}  # p = 2/256 alone
    same = {name: value + 0.01 * (-1) ** i for i, (name, value) in enumerate(base.items())}
    metrics = GROUPS["table_8_1"][:8]
    first, main = metrics[0], metrics[3]
    a, b = dict.fromkeys(metrics, base), dict.fromkeys(metrics, larger)
    result = compare_videos(a, b, primary=main)
    assert result.primary == main
    assert result.differences[main].p_adjusted == 2 / 256
    assert result.differences[main].verdict == "better"
    assert result.differences[first].p_adjusted == 14 / 256  # by Holm over the other seven
    differences = compare_videos(a, {**b, main: same}, primary=main).differences
    assert {row.verdict for row in differences.values()} == {"no difference shown"}
    assert compare_videos(a, b, primary="gone").primary is None


def test_sets_that_share_no_metric_are_refused():
    with pytest.raises(ValueError, match="a has niqe, b has musiq"):
        compare_videos({"niqe": {"x": 1.0}}, {"musiq": {"x": 1.0}})


def test_false_positives_are_as_rare_as_promised():
    # 600 comparisons of skewed differences (centred exponential of both signs), 12 prompts of 2 videos: the sign flip
    # is exact, so rejections are Binomial(600, <= 0.05): under 5 % + 3 sd = 7.7 %, and not suspiciously few
    rng = np.random.default_rng(8)
    n_rejected = 0
    for _ in range(600):
        totals = rng.exponential(size=(2, 12)).sum(0) * rng.choice([-1, 1], 12)
        n_rejected += sign_flip(totals)[0] < 0.05
    assert 0.023 < n_rejected / 600 < 0.077


@pytest.mark.slow
def test_intervals_cover_as_often_as_they_say():
    # 500 samples of 30 prompts x 2 videos, true difference 0.3. BCa at 30 clusters covers 93 to 94 %; 3 sd of
    # Binomial(500, 0.935) are 3.3 %.
    rng = np.random.default_rng(9)
    n_covered = 0
    for _ in range(500):
        of_prompt = np.repeat(rng.normal(0.3, 1, 30), 2)
        d = paired(videos(np.zeros(60), 2), videos(of_prompt + rng.normal(0, 0.5, 60), 2), "higher")
        n_covered += d.low <= 0.3 <= d.high
    assert 0.935 - 0.033 < n_covered / 500 < 0.95 + 0.033
