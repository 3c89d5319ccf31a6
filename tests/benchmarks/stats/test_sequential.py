"""The sequential paired t: its error over all looks and its power, simulated, and spending worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.stats.comparison import paired_t
from benchmarks.stats.sequential import bound, chance, sequential_p, spent

TABLES = 40_000
SLACK = 4 * (0.05 * 0.95 / TABLES) ** 0.5  # of a share of 0.05 in so many tables: 0.0044

ERRORS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "t5": lambda rng, shape: rng.standard_t(5, shape),
    "t3": lambda rng, shape: rng.standard_t(3, shape),
    "two skewed arms": lambda rng, shape: rng.exponential(size=shape) - rng.exponential(size=shape),
}


def looks(differences: np.ndarray) -> np.ndarray:
    """[tables, n] -> p [tables, n - 1] of the paired t after every seed from the second on."""
    return np.stack([paired_t(differences[:, :n])[2] for n in range(2, differences.shape[1] + 1)], -1)


def shown(differences: np.ndarray) -> np.ndarray:
    """[tables, n] -> whether a look crosses its bound [tables, n - 1]."""
    seeds = differences.shape[1]
    return looks(differences) < [bound(n, seeds) for n in range(2, seeds + 1)]


def test_the_spending_function_is_that_of_o_brien_and_fleming() -> None:
    # z = 1.959964 at 5 %; 1.959964 / sqrt(0.4) = 3.098975, and 2 - 2 Phi(3.098975) = 0.0019420
    assert spent(0.4) == pytest.approx(0.001942, abs=2e-6)
    # 1.959964 / sqrt(0.25) = 3.919928: 2 - 2 Phi = 0.0000886
    assert spent(0.25) == pytest.approx(8.86e-5, rel=1e-3)
    assert spent(1.0) == pytest.approx(0.05)
    assert spent(1.0, 0.2) == pytest.approx(0.2)


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
@pytest.mark.parametrize("errors", ERRORS)
def test_the_error_over_all_looks_is_at_most_five_percent(errors: str, seeds: int) -> None:
    differences = ERRORS[errors](np.random.default_rng(7), (TABLES, seeds))
    share = shown(differences).any(1).mean()
    assert share < 0.05 + SLACK
    if errors == "normal":
        assert share > 0.05 - SLACK  # nothing is given away


def test_a_test_at_five_percent_after_every_seed_errs_far_more_often() -> None:
    differences = ERRORS["normal"](np.random.default_rng(7), (TABLES, 5))
    assert (looks(differences) < 0.05).any(1).mean() > 0.12


def test_by_each_look_just_the_spent_error_is_spent() -> None:
    crossed = shown(ERRORS["normal"](np.random.default_rng(8), (4 * TABLES, 5)))
    by_look = np.logical_or.accumulate(crossed, 1).mean(0)
    expected = [spent(n / 5) for n in (2, 3, 4, 5)]
    assert by_look == pytest.approx(expected, abs=0.0025)
    assert by_look[0] == pytest.approx(expected[0], abs=0.0006)  # 0.0019 ± 4 sd, of both simulations


def test_two_seeds_have_one_look_and_its_p_is_the_sequential_one() -> None:
    for p in (0.002, 0.05, 0.3):
        assert sequential_p(p, 2, 2) == pytest.approx(p, rel=0.05)  # the share of 0.002 in PATHS is known to 5 %


def test_a_sequential_p_is_below_a_level_where_the_bound_is_crossed() -> None:
    for n in (2, 3, 4, 5):
        edge = bound(n, 5)
        assert sequential_p(edge, n, 5) == pytest.approx(0.05)
        assert sequential_p(0.9 * edge, n, 5) < 0.05 < sequential_p(1.1 * edge, n, 5)
    assert sequential_p(1e-9, 1, 5) == 1  # there is no look at one seed
    assert sequential_p(0.99, 5, 5) == 1
    assert sequential_p(0.0, 2, 5) == pytest.approx(0.001)


@pytest.mark.parametrize("level", [0.01, 0.025, 0.2])
def test_the_least_sequential_p_is_below_any_level_as_rarely_as_it_says(level: float) -> None:
    p = looks(ERRORS["normal"](np.random.default_rng(9), (5_000, 4)))
    least = [min(sequential_p(value, n, 4) for n, value in enumerate(row, 2)) for row in p.tolist()]
    assert np.mean(np.array(least) < level) == pytest.approx(level, abs=4 * (level * (1 - level) / 5_000) ** 0.5)


def test_the_looks_cost_a_fifteenth_of_the_power_at_most_and_save_seeds() -> None:
    """At a difference of 2 sd five seeds show 91 % by one test at their end."""
    differences = ERRORS["normal"](np.random.default_rng(3), (TABLES, 5)) + 2
    crossed = shown(differences)
    fixed = (looks(differences)[:, -1] < 0.05).mean()
    assert fixed == pytest.approx(0.909, abs=0.01)
    assert crossed.any(1).mean() > fixed - 0.07
    clear = shown(ERRORS["normal"](np.random.default_rng(3), (TABLES, 5)) + 10)
    assert clear.any(1).mean() > 0.999
    assert np.where(clear.any(1), clear.argmax(1) + 2, 5).mean() < 3.2  # seeds that run


class TestTheChanceOfTheRemainingSeeds:
    def test_is_that_of_new_seeds_drawn_from_what_the_seeds_so_far_leave_possible(self) -> None:
        """With one seed to come, the difference of that seed is m + s sqrt(1 + 1/4) t, of Student's t with 3 df."""
        differences = np.array([1.0, 1.5, 0.2, 1.1])
        student = np.random.default_rng(5).standard_t(3, 100_000)
        fifth = differences.mean() + differences.std(ddof=1) * 1.25**0.5 * student
        paths = np.concatenate([np.broadcast_to(differences, (100_000, 4)), fifth[:, None]], 1)
        expected = (paired_t(paths)[2] < bound(5, 5)).mean()
        assert 0.1 < expected < 0.9
        assert chance(differences, 5) == pytest.approx(expected, abs=4 * 0.5 / 4_000**0.5)

    def test_is_small_for_no_difference_and_large_for_a_clear_one(self) -> None:
        assert chance(np.array([0.1, -0.12, 0.08, -0.07]), 5) < 0.1
        assert chance(np.array([1.0, 1.3, 0.8, 1.1]), 5) > 0.9
        # opposite signs at first: whatever follows, t stays below its bounds
        assert chance(np.array([0.1, -0.1]), 5) < 0.01
        assert chance(np.zeros(3), 5) == 0

    def test_is_none_when_no_seed_remains(self) -> None:
        assert chance(np.array([1.0, 2.0, 3.0]), 3) == 0

    def test_when_it_is_small_hides_few_true_differences(self) -> None:
        """Stopping below 10 % costs next to no power at 2 sd, and no error: what stops is not resolved."""
        rng = np.random.default_rng(6)
        differences = rng.standard_normal((150, 5)) + 2
        crossed = shown(differences)
        rows = zip(differences, crossed, strict=True)
        stopped = [any(chance(row[:n], 5) < 0.1 and not c[: n - 1].any() for n in (2, 3, 4)) for row, c in rows]
        assert (crossed.any(1) & np.array(stopped)).mean() < 0.03
