"""Two sets of per-video scores compared: difference, interval, sign-flip test, verdict. Pure statistics.

This is for one folder of videos against another, where `benchmarks.stats.comparison` is for arms repeated over seeds.
The unit is the prompt: the videos of one prompt (`<prompt>-0.mp4`, `<prompt>-1.mp4`, …) stay together, in the
bootstrap as in the test. What is claimed is of these two sets of videos and other prompts like them. Of another
training of the same method it says nothing: that takes seeds.

Two folders share names where the same prompts were given to both; then they are paired by name, and what has no
partner is counted and named. Without any common name the two sets are compared as independent ones (Welch 1947, over
the prompts' means), which is called so and needs many more videos for the same difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.measure.clips import SUFFIXES
from benchmarks.metrics import Direction, lookup
from benchmarks.stats.comparison import LEVEL, Difference, compared_as, distance, judge
from benchmarks.stats.resampling import bootstrap_mean, prompt_of

if TYPE_CHECKING:
    import numpy as np

DRAWS = 10_000
EXACT_UP_TO = 13
"""Prompts up to which all 2^n sign flips are made; more are drawn."""
NAMED = 20
"""Videos without a partner that are named; all are counted."""

ONE_PROMPT = "by the names, `<prompt>-<number>`, all videos are of one prompt"

Values = Mapping[str, float | None]
Count = int | tuple[int, int]


@dataclass(frozen=True)
class VideoDifference(Difference):
    """Mean of b minus mean of a over n videos of so many prompts.

    a, b: the means of what was compared.
    design: "paired" by video name, or "independent" sets. test: how p was found.
    n, prompts: of b - a where paired, else (of a, of b).
    reason: why nothing could be resolved, else empty.
    """

    a: float | None
    b: float | None
    design: Literal["paired", "independent"]
    test: str
    n: Count
    prompts: Count
    reason: str = ""


@dataclass(frozen=True)
class LeftOut:
    """Videos of one metric that were not compared: how many, and the first of their names."""

    only_a: int
    only_b: int
    names_a: tuple[str, ...]
    names_b: tuple[str, ...]


@dataclass(frozen=True)
class VideoComparison:
    """metric -> difference, and metric -> what was left out, where anything was.

    primary: the metric that was tested alone, before the others; None if all were tested by Holm.
    """

    differences: dict[str, VideoDifference]
    left_out: dict[str, LeftOut]
    primary: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "metrics": {name: asdict(found) for name, found in self.differences.items()},
            "left_out": {name: asdict(found) for name, found in self.left_out.items()},
        }


def compare_videos(a: Mapping[str, Values], b: Mapping[str, Values], *, primary: str | None = None) -> VideoComparison:
    """b against a, metric by metric; the primary first, the others by Holm behind it (`gatekeep`).

    a, b: metric -> video -> value; None or NaN is no score. Only metrics of both are compared. Videos are the same by
        their names without ending: an .mp4 is paired with an .mkv.
    primary: the metric that is tested first and alone; None, or one that has no test here, leaves Holm over all.
    Raises: ValueError if no metric is in both, or one is not in the registry.
    """
    common = [metric for metric in a if metric in b]
    if not common:
        raise ValueError(
            f"nothing to compare: a has {', '.join(a) or 'no scores'}, b has {', '.join(b) or 'no scores'}; score both "
            f"with the same metrics"
        )
    sides = {metric: lookup(metric).direction for metric in common}
    found, left_out = {}, {}
    for metric, side in sides.items():
        left = _finite(a[metric])
        right = _named_alike(_finite(b[metric]), left)
        if left.keys() & right.keys():
            found[metric] = paired(left, right, side)
            only_a, only_b = sorted(left.keys() - right.keys()), sorted(right.keys() - left.keys())
            if only_a or only_b:
                left_out[metric] = LeftOut(len(only_a), len(only_b), tuple(only_a[:NAMED]), tuple(only_b[:NAMED]))
        else:
            found[metric] = independent(left, right, side)
    gate = primary if primary in found and found[primary].p is not None else None
    return VideoComparison(judge(found, sides, gate), left_out, gate)


def paired(a: Mapping[str, float], b: Mapping[str, float], side: Direction, seed: int = 0) -> VideoDifference:
    """b - a over the videos of both: BCa interval and sign-flip p, prompts as wholes; not yet adjusted.

    Under the null hypothesis that swapping the two videos of a prompt changes nothing, the sign of a prompt's
    difference is a coin toss. So p is exact whatever the distribution; with up to 13 prompts every one of the 2^n
    flips is made, else 10,000 are drawn and (k + 1) / (10,000 + 1) is reported (Phipson and Smyth 2010).
    """
    import numpy as np

    names = sorted(a.keys() & b.keys())
    left = np.array([distance(a[name], side) for name in names])
    right = np.array([distance(b[name], side) for name in names])
    prompts = [prompt_of(name) for name in names]
    n, clusters = len(names), len(set(prompts))
    nothing = _unresolved(side, "paired", "", n, clusters)
    if not np.isfinite([*left, *right]).all():
        return replace(nothing, reason="a value of 0 or below has no distance from 1")
    interval = bootstrap_mean(right - left, prompts, seed)
    means = {"a": float(left.mean()), "b": float(right.mean())}
    measured = replace(nothing, **means, diff=interval.mean, low=interval.low, high=interval.high)
    if clusters < 2:
        return replace(measured, reason=ONE_PROMPT)
    index = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    totals = np.bincount([index[prompt] for prompt in prompts], right - left)
    p, test = sign_flip(totals, seed)
    if 2.0 ** (1 - clusters) > 1 - LEVEL:
        reason = f"{clusters} prompts cannot show anything: the smallest p is {2.0 ** (1 - clusters):.2g}; 6 can"
        return replace(measured, p=p, test=test, reason=reason)
    return replace(measured, p=p, test=test, verdict="no difference shown")


def _unresolved(
    side: Direction, design: Literal["paired", "independent"], test: str, n: Count, prompts: Count
) -> VideoDifference:
    """A comparison of so many videos before anything is known of its outcome."""
    kind = compared_as(side)
    return VideoDifference(None, None, None, None, None, "not resolved", kind, None, None, design, test, n, prompts)


def sign_flip(totals: np.ndarray, seed: int = 0, draws: int = DRAWS) -> tuple[float, str]:
    """Two-sided p of a sum under random signs of its terms, and how it was found (Fisher 1935).

    totals: [n], a prompt's summed difference each.
    """
    import numpy as np

    n = len(totals)
    observed = abs(totals.sum())
    scale = np.abs(totals).sum()
    if scale == 0:
        return 1.0, "no difference anywhere"
    reached = observed - 1e-12 * scale  # equal up to rounding counts as equal
    if n <= EXACT_UP_TO:
        flips = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(flips @ totals) >= reached).mean()), f"sign flip, all {2**n}"
    rng = np.random.default_rng(seed)
    hits, left = 0, draws
    while left:
        size = min(left, max(1, 2_000_000 // n))
        signs = 2.0 * rng.integers(0, 2, (size, n), dtype=np.int8) - 1.0
        hits += int((np.abs(signs @ totals) >= reached).sum())
        left -= size
    return (hits + 1) / (draws + 1), f"sign flip, {draws} drawn"


def independent(a: Mapping[str, float], b: Mapping[str, float], side: Direction) -> VideoDifference:
    """b - a of two sets without a common name: Welch's t over the prompts' means; not yet adjusted."""
    import numpy as np
    from scipy.stats import ttest_ind

    means = [_prompt_means(values, side) for values in (a, b)]
    sizes, prompts = (len(a), len(b)), (len(means[0]), len(means[1]))
    nothing = _unresolved(side, "independent", "Welch", sizes, prompts)
    if not np.isfinite(np.concatenate(means)).all():
        return replace(nothing, reason="a value of 0 or below has no distance from 1")
    if not all(prompts):
        return replace(nothing, reason="no scores")
    left, right = (float(values.mean()) for values in means)
    measured = replace(nothing, a=left, b=right, diff=right - left)
    if min(prompts) < 2:
        return replace(measured, reason=ONE_PROMPT)
    if not any(np.ptp(values) for values in means):
        return replace(measured, reason="no spread within either set")
    test = ttest_ind(means[1], means[0], equal_var=False)
    low, high = (float(end) for end in test.confidence_interval(LEVEL))
    return replace(measured, low=low, high=high, p=float(test.pvalue), verdict="no difference shown")


def _prompt_means(values: Mapping[str, float], side: Direction) -> np.ndarray:
    import numpy as np

    by_prompt: dict[str, list[float]] = {}
    for name, value in values.items():
        by_prompt.setdefault(prompt_of(name), []).append(distance(value, side))
    return np.array([np.mean(found) for found in by_prompt.values()])


def _finite(values: Values) -> dict[str, float]:
    return {name: float(v) for name, v in values.items() if v is not None and math.isfinite(v)}


def _named_alike(values: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    """With the others' endings, where the rest of the name is the same."""

    def stem(video: str) -> str:
        path = Path(video)
        return path.stem if path.suffix.lower() in SUFFIXES else video

    theirs = {stem(name): name for name in others}
    return {theirs.get(stem(name), name): value for name, value in values.items()}
