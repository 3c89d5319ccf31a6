"""The jackknife of a set's metric: exact where a closed form is known, and right for psd by drawing sets again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.metrics.implementation import Batch, scorer_of
from benchmarks.metrics.reference import mhd_mse
from benchmarks.stats.jackknife import GROUPS, jackknife_variance, leave_out, values_without
from pw.io.video import write_video


def test_of_a_mean_it_is_the_variance_over_n():
    video = torch.rand(12, 3, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values = mhd_mse(video, (1, 2, 3)).double().numpy()
    found = values_without("mhd", [[Batch(video[i : i + 1])] for i in range(12)])
    assert jackknife_variance(found) == pytest.approx(values.var(ddof=1) / 12, rel=1e-4)


def smooth(sets: int, clips: int, generator: torch.Generator) -> torch.Tensor:
    """[sets, clips, 3, 1, 16, 16]: noise with a contrast of its own in every clip."""
    shape = (sets, clips, 3, 1, 16, 16)
    contrast = 0.1 + 0.2 * torch.rand(sets, clips, 1, 1, 1, 1, generator=generator)
    return contrast * torch.randn(shape, generator=generator)


def test_of_psd_it_is_the_variance_that_other_clips_bring():
    # 100 sets of 32 clips: the true variance is then known to 14 % (one sd), the mean jackknife to about 5 %
    generator = torch.Generator().manual_seed(1)
    videos, reals = 1.5 * smooth(100, 32, generator), smooth(100, 32, generator)
    values, variances = [], []
    for video, real in zip(videos, reals, strict=True):
        made = scorer_of(["psd"])
        made.add(Batch(video, real))
        values.append(made.result())
        variances.append(
            jackknife_variance(values_without("psd", [[Batch(video[k::8], real[k::8])] for k in range(8)]))
        )
    assert np.mean(variances) == pytest.approx(np.var(values, ddof=1), rel=0.45)


def test_clips_are_left_out_with_what_they_are_held_against(tmp_path: Path):
    rng = np.random.default_rng(2)
    made = {}
    for what in ("video", "real"):
        (tmp_path / what).mkdir()
        made[what] = rng.integers(60, 190, (GROUPS + 1, 3, 24, 24, 3)).astype(np.uint8)
        for i, clip in enumerate(made[what]):
            write_video(tmp_path / what / f"{i:04d}.mkv", clip)
    folders = {what: tmp_path / what for what in made}
    found = leave_out("psd", folders)
    left = {what: np.delete(clips, 2, 0).transpose(0, 4, 1, 2, 3) for what, clips in made.items()}
    expected = scorer_of(["psd"])
    expected.add(Batch(**{what: torch.from_numpy(clips) for what, clips in left.items()}))
    assert len(found) == GROUPS
    assert found[2] == pytest.approx(expected.result(), rel=1e-6)
    with pytest.raises(ValueError, match="9 clips, fewer than 10 groups"):
        leave_out("psd", folders, groups=10)
