"""How many votes show a preference: the power of the test of `preference`, by formula, and by simulation with it.

The formula is that of a round of all arms, in which judges vote equally often on clips that all of them see. `share` is
the share of votes for the better of two arms, ties counted half. Judges and clips have log-odds of their own for every
two arms, normal with the deviations `judge_sd` and `clip_sd`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

from benchmarks.stats.comparison import LEVEL
from benchmarks.stats.preference import Vote, preferences

if TYPE_CHECKING:
    import numpy as np

MOST = 1_000_000
DRAWS = 4000


@dataclass(frozen=True)
class VoteDesign:
    """judges, each with `votes` votes on pairs of `arms` arms, on `clips` clips (of all seeds); ties: their share."""

    judges: int
    votes: int
    clips: int
    arms: int = 2
    ties: float = 0.2
    judge_sd: float = 0.5
    clip_sd: float = 0.5

    def power(self, share: float) -> float:
        """The chance that the test shows `share` at 5 %: over the chi-squared estimates of its variances, and a normal
        estimate of the log-odds."""
        import numpy as np
        from scipy.special import ndtr, stdtrit

        chance, votes = share * (1 - share), self.judges * self.votes
        independent = (1 - self.ties / 4 / chance) * (self.arms - 1) / (votes * chance)
        decided = self._decided(share)
        slope = (1 - self.ties) * decided * (1 - decided) / chance  # of all votes' log-odds by those of decided ones
        judge_part = (slope * self.judge_sd) ** 2 / self.judges if self.judges > 1 else 0.0
        clip_part = (slope * self.clip_sd) ** 2 / min(self.clips, votes)
        error = math.sqrt(independent + judge_part + clip_part)
        groups = [(independent + clip_part, min(self.clips, votes) - 1)]
        groups += [(independent + judge_part, self.judges - 1)] if self.judges > 1 else []
        rng = np.random.default_rng(0)
        drawn = np.array([v * rng.chisquare(n, DRAWS) / n for v, n in groups])
        both = independent * (len(groups) - 1)
        variance = np.maximum(np.maximum(drawn.sum(0) - both, drawn.max(0)), independent)
        df = variance**2 / sum(v**2 / n for v, (_, n) in zip(drawn, groups, strict=True))
        bound = stdtrit(np.minimum(df, max(n for _, n in groups)), (1 + LEVEL) / 2) * np.sqrt(variance)
        return float(ndtr((abs(math.log(share / (1 - share))) - bound) / error).mean())

    def votes_needed(self, share: float, power: float) -> int | None:
        """The votes of each judge for this power; None where no number is enough: judges or clips differ too much."""
        low, high = 1, 2
        while replace(self, votes=high).power(share) < power:
            low, high = high, 2 * high
            if high > MOST:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if replace(self, votes=middle).power(share) >= power else (middle, high)
        return high

    def draw(self, share: float, rng: np.random.Generator) -> list[Vote]:
        """Votes of which a share prefers the second arm to the first; further arms are as good as the first."""
        import numpy as np

        pairs = list(combinations(range(self.arms), 2))
        strengths = np.zeros(self.arms)
        strengths[1] = self._conditional(share)
        tastes = [
            rng.normal(size=(count, self.arms)) * sd / math.sqrt(2)
            for count, sd in ((self.judges, self.judge_sd * (self.judges > 1)), (self.clips, self.clip_sd))
        ]
        votes = []
        for judge in range(self.judges):
            clips = rng.permutation(np.arange(self.votes) % self.clips)
            order = rng.permutation(np.arange(self.votes) % len(pairs))
            for clip, index in zip(clips.tolist(), order.tolist(), strict=True):
                left, right = pairs[index][:: rng.choice([1, -1])]
                odds = strengths + tastes[0][judge] + tastes[1][clip]
                wins = rng.random() < 1 / (1 + math.exp(odds[right] - odds[left]))
                score = 0.5 if rng.random() < self.ties else float(wins)
                votes.append(Vote(str(left), str(right), score, str(judge), str(clip)))
        return votes

    def _decided(self, share: float) -> float:
        """The share of decided votes, for a share of all votes."""
        return (share - self.ties / 2) / (1 - self.ties)

    def _conditional(self, share: float) -> float:
        """The log-odds of a decided vote of an average judge on an average clip, for a share of all votes."""
        import numpy as np
        from scipy.optimize import brentq

        nodes, weights = np.polynomial.hermite_e.hermegauss(40)
        sd = math.hypot(self.judge_sd * (self.judges > 1), self.clip_sd)
        decided = self._decided(share)

        def excess(odds: float) -> float:
            return float(weights @ (1 / (1 + np.exp(-odds - sd * nodes))) / weights.sum()) - decided

        return float(brentq(excess, -40, 40))


def simulated_power(design: VoteDesign, share: float, runs: int, seed: int = 0) -> float:
    """The share of simulated sets of votes in which the test shows the preference, in its direction."""
    import numpy as np

    rng = np.random.default_rng(seed)
    arms: Sequence[str] = [str(i) for i in range(design.arms)]
    found = [preferences(design.draw(share, rng), arms).share("1", "0").verdict for _ in range(runs)]
    return found.count("better") / runs
