"""Votes: the fit against closed forms and another implementation, its interval in simulated studies, its planning."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import t

from benchmarks.stats.preference import Vote, mean_of, preferences
from benchmarks.stats.vote_power import VoteDesign, simulated_power


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def two_arms(wins: int, losses: int, judges: int = 1) -> list[Vote]:
    """Votes for b against a, half of the wins and of the losses with b on the left; a clip for each."""
    votes = []
    for i, won in enumerate([True] * wins + [False] * losses):
        left, right, score = ("b", "a", float(won)) if i % 2 else ("a", "b", float(not won))
        votes.append(Vote(left, right, score, f"j{i % judges}", f"c{i}"))
    return votes


class TestTwoArms:
    @pytest.mark.parametrize(("wins", "losses"), [(14, 6), (10, 10), (20, 0)])
    def test_have_the_odds_of_their_votes_with_half_a_vote_more_each(self, wins: int, losses: int) -> None:
        share = preferences(two_arms(wins, losses), ["a", "b"]).share("b", "a").share
        assert share == pytest.approx((wins + 0.5) / (wins + losses + 1), abs=1e-6)

    def test_of_one_judge_have_students_interval_over_clips(self) -> None:
        """All sides balanced: the fit is a mean m of 20 + 1 votes, with the cluster-robust error of its log-odds."""
        found = preferences(two_arms(14, 6), ["a", "b"]).share("b", "a")
        m, n = 14.5 / 21, 20
        residuals = np.array([1 - m] * 14 + [-m] * 6)
        error = math.sqrt((residuals**2).sum() * n / (n - 1)) / (21 * m * (1 - m))
        error = max(error, math.sqrt(1 / (21 * m * (1 - m))))
        half = t.ppf(0.975, n - 1) * error
        middle = math.log(m / (1 - m))
        assert (found.low, found.high) == pytest.approx((logistic(middle - half), logistic(middle + half)), rel=1e-4)
        assert found.p == pytest.approx(2 * t.sf(middle / error, n - 1), rel=1e-4)

    def test_are_each_others_mirror(self) -> None:
        fitted = preferences(two_arms(40, 10, judges=5), ["a", "b"])
        ahead, behind = fitted.share("b", "a"), fitted.share("a", "b")
        assert (ahead.share, ahead.low, ahead.high) == pytest.approx(
            (1 - behind.share, 1 - behind.high, 1 - behind.low)
        )
        assert (ahead.verdict, behind.verdict, fitted.best()) == ("better", "worse", "b")
        assert fitted.mean_share("b").share == pytest.approx(ahead.share)

    def test_with_ties_alone_are_alike_and_nothing_is_divided_by_zero(self) -> None:
        share = preferences([Vote("a", "b", 0.5, "j", f"c{i}") for i in range(8)], ["a", "b"]).share("a", "b")
        assert share.share == pytest.approx(0.5)
        assert share.verdict == "no difference shown"
        assert share.low is not None
        assert 0 < share.low < 0.5

    def test_on_a_single_clip_have_no_interval(self) -> None:
        votes = [Vote("a", "b", 1.0, f"j{i}", "c") for i in range(5)]
        share = preferences(votes, ["a", "b"]).share("a", "b")
        assert (share.low, share.p, share.verdict) == (None, None, "not resolved")

    def test_need_a_vote(self) -> None:
        with pytest.raises(ValueError, match="no votes"):
            preferences([], ["a", "b"])


def test_three_arms_and_the_side_maximise_the_likelihood_with_a_tie_for_each_pair_and_the_side() -> None:
    rng = np.random.default_rng(0)
    strength = {"a": 0.0, "b": 0.8, "c": 1.5}
    votes = []
    for i in range(90):
        left, right = rng.permutation(["a", "b", "c"])[:2]
        score = float(rng.random() < logistic(strength[left] - strength[right] + 0.6))
        votes.append(Vote(str(left), str(right), 0.5 if i % 9 == 0 else score, f"j{i % 4}", f"c{i % 12}"))
    added = [("a", "b", 0), ("a", "c", 0), ("b", "c", 0)]

    def loss(parameters: np.ndarray) -> float:
        b, c, side = parameters
        value = {"a": 0.0, "b": b, "c": c}
        terms = [(v.score, value[v.left] - value[v.right] + side) for v in votes]
        terms += [(0.5, value[x] - value[y]) for x, y, _ in added] + [(0.5, side)]
        return sum(math.log1p(math.exp(-x)) * y + math.log1p(math.exp(x)) * (1 - y) for y, x in terms)

    b, c, side = minimize(loss, np.zeros(3), tol=1e-10).x
    fitted = preferences(votes, ["a", "b", "c", "unseen"])
    assert fitted.arms == ("a", "b", "c")
    assert fitted.share("b", "a").share == pytest.approx(logistic(b), abs=1e-4)
    assert fitted.share("c", "b").share == pytest.approx(logistic(c - b), abs=1e-4)
    assert fitted.left.share == pytest.approx(logistic(side), abs=1e-4)
    assert fitted.mean_share("c").share == pytest.approx((logistic(c) + logistic(c - b)) / 2, abs=1e-4)


def test_arms_that_no_vote_links_are_not_compared() -> None:
    others = [Vote("c", "d", 1.0, "j", f"c{i}") for i in range(3)]
    fitted = preferences([*others, *two_arms(7, 3)], ["a", "b", "c", "d"])
    assert (fitted.arms, fitted.n) == (("a", "b"), 10)
    assert preferences([*others, *two_arms(7, 3), Vote("d", "a", 0.0, "j", "x")], ["a", "b", "c", "d"]).n == 14


def test_a_mean_of_agreements_counts_one_tie_more() -> None:
    share = mean_of([1.0] * 30 + [0.0] * 10, ["j"] * 40, [f"c{i}" for i in range(40)])
    assert share.share == pytest.approx(30.5 / 41, abs=1e-6)
    assert share.verdict == "better"


def coverage(design: VoteDesign, runs: int, seed: int = 0) -> tuple[float, float]:
    """Of equal arms: how often the 95 % interval has one half, and how often that of independent votes has."""
    rng = np.random.default_rng(seed)
    found = naive = 0
    for _ in range(runs):
        share = preferences(design.draw(0.5, rng), [str(i) for i in range(design.arms)])
        found += share.share("1", "0").verdict == "no difference shown"
        weights = np.eye(design.arms)[0]
        middle, error = share.fit.estimates @ weights, math.sqrt(share.fit.floor * share.fit.inverse[0, 0])
        naive += abs(middle) < 1.96 * error
    return found / runs, naive / runs


def test_the_interval_holds_with_few_judges_who_differ_where_independent_votes_would_not() -> None:
    found, naive = coverage(VoteDesign(3, 60, 16, arms=3, judge_sd=1.0), 150)
    assert found >= 0.9
    assert naive <= 0.75


@pytest.mark.slow
@pytest.mark.parametrize(("judges", "judge_sd"), [(1, 0.5), (2, 0.0), (2, 0.5), (3, 0.5), (5, 1.0), (10, 0.5)])
def test_the_interval_holds_with_any_number_of_judges(judges: int, judge_sd: float) -> None:
    found, _ = coverage(VoteDesign(judges, 60, 16, arms=3, judge_sd=judge_sd), 400)
    assert found >= 0.92


class TestAPlan:
    def test_knows_what_more_votes_judges_and_clips_give(self) -> None:
        design = VoteDesign(3, 60, 40)
        assert design.power(0.5) < 0.05 < design.power(0.6) < design.power(0.7) < replace(design, judges=6).power(0.7)
        needed = replace(design, judges=8).votes_needed(0.7, 0.8)
        assert needed is not None
        assert (
            replace(design, judges=8, votes=needed).power(0.7)
            >= 0.8
            > replace(design, judges=8, votes=needed - 1).power(0.7)
        )

    def test_says_where_no_number_of_votes_is_enough(self) -> None:
        assert VoteDesign(3, 60, 40, judge_sd=1.0).votes_needed(0.55, 0.8) is None

    def test_draws_votes_of_the_share_that_is_asked_for(self) -> None:
        votes = VoteDesign(40, 100, 50).draw(0.7, np.random.default_rng(0))
        scores = [vote.score if vote.left == "1" else 1 - vote.score for vote in votes]
        assert np.mean(scores) == pytest.approx(0.7, abs=0.03)
        assert np.mean([score == 0.5 for score in scores]) == pytest.approx(0.2, abs=0.03)

    @pytest.mark.slow
    @pytest.mark.parametrize("share", [0.55, 0.6, 0.7])
    @pytest.mark.parametrize("design", [VoteDesign(1, 60, 40), VoteDesign(3, 60, 40), VoteDesign(5, 60, 40, arms=3)])
    def test_promises_no_more_than_the_test_keeps(self, design: VoteDesign, share: float) -> None:
        simulated, promised = simulated_power(design, share, 300), design.power(share)
        assert promised - 0.06 < simulated < promised + 0.15
