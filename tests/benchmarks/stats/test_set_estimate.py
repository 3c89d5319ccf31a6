"""The line over 1/N and the intervals of distances of sets, on Gaussians whose distance is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.metrics.set_distance import DISTANCES
from benchmarks.stats.set_estimate import SetEstimate, estimate

FVD, KVD = DISTANCES["fvd"], DISTANCES["kvd"]
N, D, SCALE = 60, 3, 1.2
TRUTH = 1 + D * (SCALE - 1) ** 2  # means 1 apart, deviations 1 and 1.2


def sets(seed: int, n: int = N, d: int = D) -> tuple[np.ndarray, np.ndarray]:
    real, generated = np.random.default_rng(seed).standard_normal((2, n, d))
    return real, generated * SCALE + np.eye(1, d)


def apart(n: int) -> tuple[range, range]:
    """Every video has a prompt of its own."""
    return range(n), range(n, 2 * n)


def percentiles(real: np.ndarray, generated: np.ndarray, seed: int) -> np.ndarray:
    """The usual bootstrap interval: videos drawn with repetition."""
    draws = np.random.default_rng(seed).integers(N, size=(60, 2, N))
    return np.percentile([FVD.compute(real[a], generated[b]) for a, b in draws], [2.5, 97.5])


def test_the_line_removes_the_bias_and_intervals_cover_where_percentiles_do_not():
    """95 of 100 is promised; 33 of 40 is 3.6 standard errors below. The bias of 8 features exceeds the interval."""
    pairs = [sets(seed, d=8) for seed in range(40)]
    truth = 1 + 8 * (SCALE - 1) ** 2
    results = [estimate(FVD, *pair, apart(N), seed) for seed, pair in enumerate(pairs)]
    values, limits = (np.array([getattr(r, key) for r in results]) for key in ("value", "extrapolated"))
    error = 3 * limits.std() / np.sqrt(len(limits))
    assert abs(limits.mean() - truth) < error < values.mean() - truth
    assert sum(r.extrapolated_low <= truth <= r.extrapolated_high for r in results) >= 33
    assert sum(r.low <= values.mean() <= r.high for r in results) >= 33
    covered = [low <= truth <= high for low, high in (percentiles(*pair, seed) for seed, pair in enumerate(pairs[:15]))]
    assert sum(covered) <= 7


def test_intervals_of_kvd_cover_its_expectation():
    """With k(a, b) = (a . b / D + 1)^3 the expectation is the mean over many sets, as KVD has no bias."""
    expected = np.mean([KVD.compute(*sets(1000 + seed, n=200)) for seed in range(100)])
    results = [estimate(KVD, *sets(seed), apart(N), seed) for seed in range(40)]
    assert sum(r.low <= expected <= r.high for r in results) >= 33
    assert {r.extrapolated for r in results} == {None}


def test_a_seed_gives_the_same_numbers():
    first, again, other = (estimate(FVD, *sets(0), apart(N), seed) for seed in (1, 1, 2))
    assert first == again != other
    assert first.value == other.value


def test_videos_of_one_prompt_are_drawn_together():
    """Two equal videos of every prompt say no more than one: the interval stays as wide, and is narrower if they are
    taken for different prompts."""
    real, generated = sets(0)
    prompts = apart(N)
    once = estimate(FVD, real, generated, prompts)
    twice = [np.repeat(features, 2, axis=0) for features in (real, generated)]
    together = estimate(FVD, twice[0], twice[1], (np.repeat(prompts[0], 2).tolist(), np.repeat(prompts[1], 2).tolist()))
    alone = estimate(FVD, twice[0], twice[1], apart(2 * N))
    widths = [r.high - r.low for r in (once, together, alone)]
    assert widths[1] == pytest.approx(widths[0], rel=0.05)
    assert widths[2] < 0.85 * widths[0]


def test_a_set_and_itself_are_at_zero_with_nothing_left_open():
    real, _ = sets(0)
    result = estimate(FVD, real, real, (range(N), range(N)))
    assert (result.value, result.low, result.high, result.extrapolated_low, result.extrapolated_high) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("n", "d", "says"),
    [
        (40, 64, "without full rank, and the value is largely bias"),
        (60, 40, "halves without full rank"),
        (40, 3, "fewer"),
    ],
)
def test_too_few_videos_for_the_line_are_said_and_give_no_interval_of_the_limit(n: int, d: int, says: str):
    result = estimate(FVD, *sets(0, n, d), apart(n))
    assert says in result.notes[0]
    assert str(n) in result.notes[0]
    assert (result.extrapolated_low, result.extrapolated_high) == (None, None)
    assert result.low < result.value < result.high
    assert estimate(KVD, *sets(0, n, d), apart(n)).notes == ()


def test_with_few_prompts_there_is_a_value_and_no_interval():
    real, generated = sets(0)
    result = estimate(FVD, real, generated, ([0] * N, range(N)))
    assert result == SetEstimate(FVD.compute(real, generated), notes=result.notes)
    assert "1 prompt, 8 are needed" in result.notes[0]


@pytest.mark.parametrize("bad", [np.zeros((1, 3)), np.full((9, 3), np.nan)])
def test_one_video_and_broken_features_are_refused(bad: np.ndarray):
    with pytest.raises(ValueError, match="two videos or more, with finite features"):
        estimate(FVD, bad, np.zeros((9, 3)), (range(len(bad)), range(9)))
