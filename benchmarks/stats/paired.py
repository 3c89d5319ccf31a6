"""Two sets of per-video scores compared: difference, interval, sign-flip test, verdict. Pure statistics.

It compares one folder of videos with another; `benchmarks.stats.comparison` compares arms over seeds. The unit is the
prompt: the videos of one prompt (`<prompt>-0.mp4`, `<prompt>-1.mp4`, …) stay together in the bootstrap and in the test.
The result holds for these two sets of videos and similar prompts, not for another training of the same method, which
needs several seeds.

Videos are paired by name; videos without a partner are counted and listed. Without any common name the two sets are
compared as independent ones (Welch 1947, over the prompts' means), which takes many more videos for the same result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.metrics import Direction, lookup
from benchmarks.stats.comparison import LEVEL, Difference, difference_kind, distance, judge
from benchmarks.stats.resampling import bootstrap_mean, prompt_of
from pw.io.video_files import SUFFIXES

if TYPE_CHECKING:
    import numpy as np

DRAWS = 10_000
EXACT_UP_TO = 13
"""Up to as many prompts all 2^n sign flips are evaluated; above, they are sampled."""
LIMIT = 20
"""The most names of unpaired videos to list."""

ONE_PROMPT = "by the names, `<prompt>-<number>`, all videos are of one prompt"

Values = Mapping[str, float | None]
Count = int | tuple[int, int]


@dataclass(frozen=True)
class VideoDifference(Difference):
    """Mean of b minus mean of a.

    a, b: the means.
    design: "paired" by video name, or "independent" sets. test: the method of p.
    n, prompts: numbers of videos and prompts; for independent sets (of a, of b).
    reason: why the verdict is "not resolved", else empty.
    """

    a: float | None
    b: float | None
    design: Literal["paired", "independent"]
    test: str
    n: Count
    prompts: Count
    reason: str = ""


@dataclass(frozen=True)
class Unpaired:
    """Videos of one metric without a partner: their numbers, and the first names."""

    only_a: int
    only_b: int
    names_a: tuple[str, ...]
    names_b: tuple[str, ...]


@dataclass(frozen=True)
class VideoComparison:
    """Metric -> difference, and metric -> unpaired videos, if there are any.

    primary: the metric that was tested alone, before the others; None if all were tested by Holm.
    """

    differences: dict[str, VideoDifference]
    left_out: dict[str, Unpaired]
    primary: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "metrics": {name: asdict(value) for name, value in self.differences.items()},
            "left_out": {name: asdict(value) for name, value in self.left_out.items()},
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
    directions = {metric: lookup(metric).direction for metric in common}
    differences, left_out = {}, {}
    for metric, direction in directions.items():
        a_values = _finite(a[metric])
        b_values = _match_names(_finite(b[metric]), a_values)
        if a_values.keys() & b_values.keys():
            differences[metric] = paired(a_values, b_values, direction)
            only_a, only_b = sorted(a_values.keys() - b_values.keys()), sorted(b_values.keys() - a_values.keys())
            if only_a or only_b:
                left_out[metric] = Unpaired(len(only_a), len(only_b), tuple(only_a[:LIMIT]), tuple(only_b[:LIMIT]))
        else:
            differences[metric] = independent(a_values, b_values, direction)
    gate = primary if primary in differences and differences[primary].p is not None else None
    return VideoComparison(judge(differences, directions, gate), left_out, gate)


def paired(a: Mapping[str, float], b: Mapping[str, float], direction: Direction, seed: int = 0) -> VideoDifference:
    """b - a over the videos of both: BCa interval and sign-flip p, prompts as wholes; not yet adjusted.

    Under the null hypothesis that swapping the two videos of a prompt changes nothing, the sign of a prompt's
    difference is a coin toss. So p is exact whatever the distribution; with up to 13 prompts every one of the 2^n
    flips is made, else 10,000 are drawn and (k + 1) / (10,000 + 1) is reported (Phipson and Smyth 2010).
    """
    import numpy as np

    names = sorted(a.keys() & b.keys())
    a_values = np.array([distance(a[name], direction) for name in names])
    b_values = np.array([distance(b[name], direction) for name in names])
    prompts = [prompt_of(name) for name in names]
    n, clusters = len(names), len(set(prompts))
    unresolved = _unresolved(direction, "paired", "", n, clusters)
    if not np.isfinite([*a_values, *b_values]).all():
        return replace(unresolved, reason="a value of 0 or below has no distance from 1")
    interval = bootstrap_mean(b_values - a_values, prompts, seed)
    means = {"a": float(a_values.mean()), "b": float(b_values.mean())}
    result = replace(unresolved, **means, diff=interval.mean, low=interval.low, high=interval.high)
    if clusters < 2:
        return replace(result, reason=ONE_PROMPT)
    index = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    totals = np.bincount([index[prompt] for prompt in prompts], b_values - a_values)
    p, test = sign_flip(totals, seed)
    if 2.0 ** (1 - clusters) > 1 - LEVEL:
        reason = f"{clusters} prompts cannot show a difference: the smallest p is {2.0 ** (1 - clusters):.2g}; use 6"
        return replace(result, p=p, test=test, reason=reason)
    return replace(result, p=p, test=test, verdict="no difference shown")


def _unresolved(
    direction: Direction, design: Literal["paired", "independent"], test: str, n: Count, prompts: Count
) -> VideoDifference:
    """A difference of n videos with verdict "not resolved" and without values."""
    kind = difference_kind(direction)
    return VideoDifference(None, None, None, None, None, "not resolved", kind, None, None, design, test, n, prompts)


def sign_flip(totals: np.ndarray, seed: int = 0, draws: int = DRAWS) -> tuple[float, str]:
    """Two-sided p of a sum under random signs of its terms, and the method's name (Fisher 1935).

    totals: [n], the summed difference of each prompt.
    """
    import numpy as np

    n = len(totals)
    observed = abs(totals.sum())
    scale = np.abs(totals).sum()
    if scale == 0:
        return 1.0, "no difference anywhere"
    threshold = observed - 1e-12 * scale  # equal up to rounding counts as equal
    if n <= EXACT_UP_TO:
        flips = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(flips @ totals) >= threshold).mean()), f"sign flip, all {2**n}"
    rng = np.random.default_rng(seed)
    hits, remaining = 0, draws
    while remaining:
        size = min(remaining, max(1, 2_000_000 // n))
        signs = 2.0 * rng.integers(0, 2, (size, n), dtype=np.int8) - 1.0
        hits += int((np.abs(signs @ totals) >= threshold).sum())
        remaining -= size
    return (hits + 1) / (draws + 1), f"sign flip, {draws} drawn"


def independent(a: Mapping[str, float], b: Mapping[str, float], direction: Direction) -> VideoDifference:
    """b - a of two sets without a common name: Welch's t over the prompts' means; not yet adjusted."""
    import numpy as np
    from scipy.stats import ttest_ind

    means = [_prompt_means(values, direction) for values in (a, b)]
    sizes, prompts = (len(a), len(b)), (len(means[0]), len(means[1]))
    unresolved = _unresolved(direction, "independent", "Welch", sizes, prompts)
    if not np.isfinite(np.concatenate(means)).all():
        return replace(unresolved, reason="a value of 0 or below has no distance from 1")
    if not all(prompts):
        return replace(unresolved, reason="no scores")
    mean_a, mean_b = (float(values.mean()) for values in means)
    result = replace(unresolved, a=mean_a, b=mean_b, diff=mean_b - mean_a)
    if min(prompts) < 2:
        return replace(result, reason=ONE_PROMPT)
    if not any(np.ptp(values) for values in means):
        return replace(result, reason="no spread within either set")
    test = ttest_ind(means[1], means[0], equal_var=False)
    low, high = (float(end) for end in test.confidence_interval(LEVEL))
    return replace(result, low=low, high=high, p=float(test.pvalue), verdict="no difference shown")


def _prompt_means(values: Mapping[str, float], direction: Direction) -> np.ndarray:
    import numpy as np

    by_prompt: dict[str, list[float]] = {}
    for name, value in values.items():
        by_prompt.setdefault(prompt_of(name), []).append(distance(value, direction))
    return np.array([np.mean(prompt_values) for prompt_values in by_prompt.values()])


def _finite(values: Values) -> dict[str, float]:
    return {name: float(v) for name, v in values.items() if v is not None and math.isfinite(v)}


def _match_names(values: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    """Replace names by those of `others` with the same stem."""

    def stem(video: str) -> str:
        path = Path(video)
        return path.stem if path.suffix.lower() in SUFFIXES else video

    name_of_stem = {stem(name): name for name in others}
    return {name_of_stem.get(stem(name), name): value for name, value in values.items()}
