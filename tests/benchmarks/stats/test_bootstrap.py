"""Intervals of means over videos."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.stats.bootstrap import bootstrap_mean


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    """95 % nominal; 200 trials of 40 videos: 0.95 +- 0.05 is three standard errors."""
    rng = np.random.default_rng(0)
    found = [bootstrap_mean(rng.normal(3.0, 2.0, 40).tolist(), seed=i) for i in range(200)]
    assert np.mean([m.low <= 3.0 <= m.high for m in found]) == pytest.approx(0.95, abs=0.05)


def test_videos_of_one_prompt_are_drawn_together():
    """Five equal videos of each of 20 prompts say no more than one video of each."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=20)
    once = bootstrap_mean(values.tolist())
    five = bootstrap_mean(np.repeat(values, 5).tolist(), clusters=np.repeat(np.arange(20), 5).tolist())
    naive = bootstrap_mean(np.repeat(values, 5).tolist())
    assert (five.low, five.high) == pytest.approx((once.low, once.high))
    assert naive.high - naive.low < 0.6 * (five.high - five.low)
    assert (five.n, five.clusters) == (100, 20)


def test_the_same_values_give_the_same_interval():
    assert bootstrap_mean([1.0, 2.0, 4.0, 8.0]) == bootstrap_mean([1.0, 2.0, 4.0, 8.0])


def test_one_prompt_has_no_interval_and_equal_values_an_empty_one():
    assert bootstrap_mean([2.0]).low is None
    assert bootstrap_mean([2.0, 3.0], clusters=["a", "a"]).high is None
    equal = bootstrap_mean([2.0] * 5)
    assert (equal.low, equal.high) == (2.0, 2.0)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_no_value_and_nan_are_refused(values: list[float]):
    with pytest.raises(ValueError, match=r"no values|not finite"):
        bootstrap_mean(values)
