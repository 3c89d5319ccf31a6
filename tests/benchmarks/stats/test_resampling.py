"""Intervals of means over videos; the jackknife: exact where a closed form is known, right for psd by drawing anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.metrics.implementation import Batch, scorer_of
from benchmarks.metrics.reference import mhd_mse
from benchmarks.stats.resampling import GROUPS, bootstrap_mean, jackknife_variance, leave_out, values_without
from pw.io.video import write_video


@pytest.mark.slow
def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    """95 % nominal; 200 trials of 40 videos: 0.95 +- 0.05 is three standard errors."""
    rng = np.random.default_rng(0)
    result = [bootstrap_mean(rng.normal(3.0, 2.0, 40).tolist(), seed=i) for i in range(200)]
    assert np.mean([m.low <= 3.0 <= m.high for m in result]) == pytest.approx(0.95, abs=0.05)


def test_videos_of_one_prompt_are_drawn_together():
    """Five equal videos of each of 20 prompts say no more than one video of each."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=20)
    single = bootstrap_mean(values.tolist())
    five = bootstrap_mean(np.repeat(values, 5).tolist(), clusters=np.repeat(np.arange(20), 5).tolist())
    naive = bootstrap_mean(np.repeat(values, 5).tolist())
    assert (five.low, five.high) == pytest.approx((single.low, single.high))
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


def test_of_a_mean_the_jackknife_is_the_variance_over_n():
    video = torch.rand(12, 3, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values = mhd_mse(video, (1, 2, 3)).double().numpy()
    result = values_without("mhd", [[Batch(video[i : i + 1])] for i in range(12)])
    assert jackknife_variance(result) == pytest.approx(values.var(ddof=1) / 12, rel=1e-4)


def smooth(sets: int, clips: int, generator: torch.Generator) -> torch.Tensor:
    """[sets, clips, 3, 1, 16, 16]: noise with a contrast of its own in every clip."""
    shape = (sets, clips, 3, 1, 16, 16)
    contrast = 0.1 + 0.2 * torch.rand(sets, clips, 1, 1, 1, 1, generator=generator)
    return contrast * torch.randn(shape, generator=generator)


@pytest.mark.slow
def test_of_psd_the_jackknife_is_the_variance_that_other_clips_bring():
    # 100 sets of 32 clips: the true variance is then known to 14 % (one sd), the mean jackknife to about 5 %
    generator = torch.Generator().manual_seed(1)
    videos, reals = 1.5 * smooth(100, 32, generator), smooth(100, 32, generator)
    values, variances = [], []
    for video, real in zip(videos, reals, strict=True):
        clips_by_role = scorer_of(["psd"])
        clips_by_role.add(Batch(video, real))
        values.append(clips_by_role.result())
        variances.append(
            jackknife_variance(values_without("psd", [[Batch(video[k::8], real[k::8])] for k in range(8)]))
        )
    assert np.mean(variances) == pytest.approx(np.var(values, ddof=1), rel=0.45)


def test_clips_are_left_out_with_what_they_are_held_against(tmp_path: Path):
    rng = np.random.default_rng(2)
    clips_by_role = {}
    for role in ("video", "real"):
        (tmp_path / role).mkdir()
        clips_by_role[role] = rng.integers(60, 190, (GROUPS + 1, 3, 24, 24, 3)).astype(np.uint8)
        for i, clip in enumerate(clips_by_role[role]):
            write_video(tmp_path / role / f"{i:04d}.mkv", clip)
    folders = {role: tmp_path / role for role in clips_by_role}
    result = leave_out("psd", folders)
    remaining = {role: np.delete(clips, 2, 0).transpose(0, 4, 1, 2, 3) for role, clips in clips_by_role.items()}
    expected = scorer_of(["psd"])
    expected.add(Batch(**{role: torch.from_numpy(clips) for role, clips in remaining.items()}))
    assert len(result) == GROUPS
    assert result[2] == pytest.approx(expected.result(), rel=1e-6)
    with pytest.raises(ValueError, match="9 clips, fewer than 10 groups"):
        leave_out("psd", folders, groups=10)
