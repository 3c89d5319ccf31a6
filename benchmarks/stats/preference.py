"""Votes on pairs of clips -> how much people prefer each arm, with an interval (Bradley and Terry 1952).

    log-odds that the left clip is preferred = strength(left arm) - strength(right arm) + side

A tie is half a vote for either side. Every pair of arms that was shown, and the side, has one tie more: so no estimate
is infinite, and two arms have the log-odds of (wins + 1/2) : (losses + 1/2) (Haldane 1956).

**Judges differ, and clips differ**: both have arms of their own that they favour. So the variance is clustered by judge
and by clip (Cameron, Gelbach and Miller 2011), is at least that of independent votes, and has the degrees of freedom of
both kinds of clusters after Satterthwaite (`Fit.test`). Simulated coverage: D106. A single judge speaks for no other.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.stats.comparison import LEVEL, Verdict

if TYPE_CHECKING:
    import numpy as np


class Vote(NamedTuple):
    """left, right: arms; score: 1 for left, 0 for right, 0.5 for a tie; judge, clip: who saw what."""

    left: str
    right: str
    score: float
    judge: str
    clip: str


class VoteShare(NamedTuple):
    """A share of votes with its 95 % interval, and p of one half; None where votes cannot tell."""

    share: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @property
    def verdict(self) -> Verdict:
        if self.p is None:
            return "not resolved"
        if self.p >= 1 - LEVEL:
            return "no difference shown"
        return "better" if self.share > 0.5 else "worse"


class Fit(NamedTuple):
    """A logistic regression of votes.

    estimates  [k]
    inverse    of the information, [k, k]
    scores     of each vote, [n, k]
    clusters   judge and clip of each vote, as numbers from 0, [2, n]
    floor      variance of independent votes with as many ties, relative to that without ties
    """

    estimates: np.ndarray
    inverse: np.ndarray
    scores: np.ndarray
    clusters: np.ndarray
    floor: float

    def test(self, weights: np.ndarray) -> tuple[float, float | None, float | None]:
        """(weighted sum of the estimates, half-width of its 95 % interval, two-sided p); weights: [k].

        No interval without two clips. A single judge is taken as it is: the interval is over clips.
        """
        import numpy as np
        from scipy.special import stdtr, stdtrit

        influence = self.scores @ self.inverse @ weights
        judges, clips = self.clusters
        parts = [part for part in map(_cluster_variance, (influence, influence), (judges, clips)) if part[1]]
        both = _cluster_variance(influence, judges * (clips.max() + 1) + clips)[0] if len(parts) == 2 else 0.0
        middle = float(self.estimates @ weights)
        if not clips.any():
            return middle, None, None
        independent = self.floor * float(weights @ self.inverse @ weights)
        variances = [variance for variance, _ in parts]
        variance = max(sum(variances) - both, independent, *variances)
        spread = sum(v**2 / df for v, df in parts)
        df = variance**2 / spread if spread else max(df for _, df in parts)
        df = min(df, max(df for _, df in parts))
        error = math.sqrt(variance)
        p = 2 * stdtr(df, -abs(middle) / error)
        return middle, float(stdtrit(df, (1 + LEVEL) / 2) * error), float(np.clip(p, 0, 1))

    def share(self, weights: np.ndarray) -> VoteShare:
        """`test` as a share."""
        middle, half, p = self.test(weights)
        if half is None:
            return VoteShare(_logistic(middle))
        return VoteShare(_logistic(middle), _logistic(middle - half), _logistic(middle + half), p)


def fit(design: np.ndarray, score: np.ndarray, ties: np.ndarray, judges: Sequence[str], clips: Sequence[str]) -> Fit:
    """Logistic regression. design: [n, k]; score: [n] in [0, 1]; ties: [m, k], the rows of the ties that are added."""
    import numpy as np
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    response = np.concatenate([score, np.full(len(ties), 0.5)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a perfect separation, which the ties that are added end
        result = GLM(response, np.concatenate([design, ties]), family=Binomial()).fit()
    chance = result.fittedvalues[: len(score)]
    clusters = np.stack([np.unique(names, return_inverse=True)[1] for names in (judges, clips)])
    share_of_ties = (score == 0.5).sum() / (len(score) + 2)
    floor = 1 - share_of_ties / 4 / float((chance * (1 - chance)).mean())
    inverse = np.asarray(result.normalized_cov_params)
    return Fit(np.asarray(result.params), inverse, design * (score - chance)[:, None], clusters, max(0.0, floor))


def _cluster_variance(influence: np.ndarray, clusters: np.ndarray) -> tuple[float, int]:
    """(variance of a sum over independent clusters, its degrees of freedom)."""
    import numpy as np

    sums = np.bincount(clusters, influence)
    n = int(np.count_nonzero(np.bincount(clusters)))
    return float((sums**2).sum() * n / max(1, n - 1)), n - 1


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@dataclass(frozen=True)
class Preferences:
    """How much each arm is preferred.

    arms  those with votes, in the order given; the parameters of `fit` are the arms' strengths but the first's (0),
          then the side
    """

    arms: tuple[str, ...]
    fit: Fit
    n: int

    def share(self, arm: str, other: str) -> VoteShare:
        """The share of votes for `arm` against `other`, also if they were never shown together."""
        return self.fit.share(self._strength(arm) - self._strength(other))

    def mean_share(self, arm: str) -> VoteShare:
        """The mean share of an arm against each of the others; interval by the delta method on the log-odds."""
        import numpy as np

        others = [other for other in self.arms if other != arm]
        weights = [self._strength(arm) - self._strength(other) for other in others]
        shares = np.array([_logistic(float(self.fit.estimates @ w)) for w in weights])
        mean, slopes = float(shares.mean()), shares * (1 - shares)
        gradient = sum(slope * w for slope, w in zip(slopes, weights, strict=True)) / len(others) / (mean * (1 - mean))
        _, half, _ = self.fit.test(gradient)
        if half is None:
            return VoteShare(mean)
        middle = math.log(mean / (1 - mean))
        return VoteShare(mean, _logistic(middle - half), _logistic(middle + half))

    def best(self) -> str | None:
        """The arm that is significantly preferred to every other one (the largest p decides), or None."""
        for arm in self.arms:
            if all(self.share(arm, other).verdict == "better" for other in self.arms if other != arm):
                return arm
        return None

    @property
    def left(self) -> VoteShare:
        """The share of votes for the left clip, were both alike."""
        import numpy as np

        return self.fit.share(np.eye(len(self.fit.estimates))[-1])

    def _strength(self, arm: str) -> np.ndarray:
        import numpy as np

        return np.eye(len(self.arms) + 1)[self.arms.index(arm)][1:]


def preferences(votes: Sequence[Vote], arms: Sequence[str]) -> Preferences:
    """Fit the votes. arms: their order; those that no vote links to the others are left out, with their votes.

    Raises ValueError without a vote.
    """
    import numpy as np

    if not votes:
        raise ValueError("no votes to estimate from")
    linked = _linked(votes)
    names = tuple(arm for arm in arms if arm in linked)
    votes = [vote for vote in votes if vote.left in linked]
    row = np.eye(len(names) + 1)
    index = {arm: i for i, arm in enumerate(names)}
    shown = {tuple(sorted(vote[:2], key=names.index)) for vote in votes}
    ties = np.stack([row[-1], *(row[index[a]] - row[index[b]] for a, b in sorted(shown))])
    design = np.stack([row[index[vote.left]] - row[index[vote.right]] + row[-1] for vote in votes])
    judges, clips = [vote.judge for vote in votes], [vote.clip for vote in votes]
    fitted = fit(design[:, 1:], np.array([vote.score for vote in votes]), ties[:, 1:], judges, clips)
    return Preferences(names, fitted, len(votes))


def _linked(votes: Sequence[Vote]) -> set[str]:
    """The arms that votes link, directly or over others; of several such sets the one with the most votes."""
    groups: list[set[str]] = []
    for pair in dict.fromkeys(frozenset(vote[:2]) for vote in votes):
        joined = [group for group in groups if group & pair]
        groups = [group for group in groups if group not in joined] + [set(pair).union(*joined)]
    return max(groups, key=lambda group: sum(vote.left in group for vote in votes))


def mean_of(agrees: Sequence[float], judges: Sequence[str], clips: Sequence[str]) -> VoteShare:
    """The share of ones with the same interval: a fit of the mean alone, with one tie more."""
    import numpy as np

    return fit(np.ones((len(agrees), 1)), np.array(agrees, float), np.ones((1, 1)), judges, clips).share(np.ones(1))
