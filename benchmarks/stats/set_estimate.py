"""A distance of two sets of videos: its value, what it tends to with more videos, and intervals of both.

**The bias.** A Frechet distance of N videos is too large by about c / N. Chong and Forsyth (2020) draw subsets of
several sizes and extend the line over 1/N to 0. Here both sets are thinned alike, so that the line covers the bias of
both. It is a line only where the smallest subset still has more videos than features.

**The interval.** A bootstrap draws videos twice, which is as if there were fewer: its values lie above the distance,
and their percentiles hardly ever cover it (D127). So half of the videos are drawn, without repetition: the spread of
the values of halves estimates that of the whole (the delete-half jackknife; Shao and Wu 1989), and the halves are the
last point of the line. Videos of one prompt are drawn together, and so are the prompt's real videos.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.metrics.set_distance import Features, SetDistance
from benchmarks.stats.comparison import LEVEL

INVERSE_SHARES = (1.25, 1.5, 1.75, 2.0)  # the line's points: all videos, 4/5, 2/3, 4/7, 1/2
DRAWS = {1.25: 25, 1.5: 25, 1.75: 25, 2.0: 100}
FEWEST_PROMPTS = 8  # of a set: below, its halves say nothing
FEWEST_VIDEOS = 50


@dataclass(frozen=True)
class SetEstimate:
    """A distance, its expectation with unlimited videos (None if it has no bias), and 95 % intervals, None for none.

    low, high: of the expected value at these numbers of videos. notes: what the numbers do not show.
    """

    value: float
    low: float | None = None
    high: float | None = None
    extrapolated: float | None = None
    extrapolated_low: float | None = None
    extrapolated_high: float | None = None
    notes: tuple[str, ...] = ()


def estimate(
    distance: SetDistance,
    real: Features,
    generated: Features,
    prompts: tuple[Sequence[Hashable], Sequence[Hashable]],
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SetEstimate:
    """Estimate the distance of features [N, D] and [M, D].

    prompts: of the real and of the generated videos; equal ones are drawn together, also across the two sets
    Raises: ValueError for fewer than two videos, or features that are not finite.
    """
    for features in (real, generated):
        if len(features) < 2 or not np.isfinite(features).all():
            raise ValueError("a set needs two videos or more, with finite features")
    value, notes = distance.compute(real, generated), [*_shortage(distance, real, generated)]
    number_of_prompts = min(len(set(names)) for names in prompts)
    if number_of_prompts < FEWEST_PROMPTS:
        counted = f"{number_of_prompts} prompt{'s' * (number_of_prompts != 1)}"
        notes.append(
            f"no interval: a set has videos of {counted}, {FEWEST_PROMPTS} are needed (names that differ only in the "
            "trailing -NUMBER are of one prompt)"
        )
        return SetEstimate(value, notes=tuple(notes))
    values = _values_of_subsets(distance, real, generated, prompts, seed, progress)
    reach = _quantile(number_of_prompts) * float(np.std(values[2.0], ddof=1))
    if not distance.is_biased:
        return SetEstimate(value, value - reach, value + reach, notes=tuple(notes))
    means = [value, *(float(np.mean(values[inverse])) for inverse in INVERSE_SHARES)]
    limit = float(np.polyfit([1.0, *INVERSE_SHARES], means, 1)[1])
    ends = (limit - reach, limit + reach) if _has_line(real, generated) else (None, None)
    return SetEstimate(value, value - reach, value + reach, limit, *ends, notes=tuple(notes))


def _has_line(real: Features, generated: Features) -> bool:
    fewest = min(len(real), len(generated))
    return fewest >= FEWEST_VIDEOS and fewest // 2 > real.shape[1]


def _shortage(distance: SetDistance, real: Features, generated: Features) -> list[str]:
    """What too few videos do to a biased distance."""
    fewest, dimensions = min(len(real), len(generated)), real.shape[1]
    if not distance.is_biased or _has_line(real, generated):
        return []
    counted = f"{fewest} videos of {dimensions} features"
    if fewest <= dimensions:
        counted += " have covariances without full rank, and the value is largely bias"
    elif fewest >= FEWEST_VIDEOS:
        counted += " have halves without full rank"
    else:
        counted += f", fewer than {FEWEST_VIDEOS}"
    return [f"{counted}: compare it at equal numbers only; what it tends to is too large, and has no interval"]


def _quantile(number_of_prompts: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, number_of_prompts - 1))


def _values_of_subsets(
    distance: SetDistance,
    real: Features,
    generated: Features,
    prompts: tuple[Sequence[Hashable], Sequence[Hashable]],
    seed: int,
    progress: Callable[[int, int], None],
) -> dict[float, list[float]]:
    """Inverse share -> the distances of subsets; only halves of a distance without bias."""
    draw, rng = _Subsets(prompts).draw, np.random.default_rng(seed)
    draws = {inverse: DRAWS[inverse] for inverse in (INVERSE_SHARES if distance.is_biased else (2.0,))}
    values: dict[float, list[float]] = {inverse: [] for inverse in draws}
    done, total = 0, sum(draws.values())
    for inverse, count in draws.items():
        for _ in range(count):
            of_real, of_generated = draw(1 / inverse, rng)
            values[inverse].append(distance.compute(real[of_real], generated[of_generated]))
            done += 1
            progress(done, total)
    return values


class _Subsets:
    """Random subsets of prompts: the same share of those of real videos alone, of generated ones alone, of both."""

    def __init__(self, prompts: tuple[Sequence[Hashable], Sequence[Hashable]]) -> None:
        numbers = {name: i for i, name in enumerate(dict.fromkeys((*prompts[0], *prompts[1])))}
        self.of_rows = [np.array([numbers[name] for name in names]) for names in prompts]
        in_real, in_generated = (np.isin(np.arange(len(numbers)), rows) for rows in self.of_rows)
        kinds = (in_real & ~in_generated, ~in_real & in_generated, in_real & in_generated)
        self.groups = [np.flatnonzero(kind) for kind in kinds]

    def draw(self, share: float, rng: np.random.Generator) -> list[np.ndarray]:
        """Masks of the rows of the real and of the generated videos."""
        drawn = np.zeros(sum(map(len, self.groups)), bool)
        for group in self.groups:
            drawn[rng.permutation(group)[: round(len(group) * share)]] = True
        return [drawn[rows] for rows in self.of_rows]
