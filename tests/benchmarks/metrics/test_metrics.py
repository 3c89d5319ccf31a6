"""The metrics against known answers."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.metrics import GROUPS, METRICS, lookup, protocols, reference
from benchmarks.metrics.implementation import Batch, scorer_of
from benchmarks.metrics.reference import (
    SlicedWasserstein,
    floats,
    frames_of,
    gaussian_blur,
    laplacian_pyramid,
    mhd_mse,
    parts,
    radial_bins,
    radial_power_spectrum,
    resize,
    to_grid,
    wasserstein_1d,
)
from pw.io.video import to_float


def clips(n: int = 6, size: int = 24, seed: int = 0) -> torch.Tensor:
    return (torch.randn(n, 3, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 0.3).clamp(-1, 1)


def blurred(video: torch.Tensor) -> torch.Tensor:
    frames = gaussian_blur(frames_of(video), 1.0)
    return frames.unflatten(0, (video.shape[0], video.shape[2])).transpose(1, 2)


def measure(name: str, batch: Batch) -> float:
    """One metric of clips that are in memory."""
    scorer = scorer_of([name])
    scorer.add(batch)
    return scorer.result()


def test_every_row_of_the_registry_has_a_scorer_that_takes_its_settings():
    assert set(GROUPS["clips"]) == {name for name, row in METRICS.items() if row.scorer.startswith("reference.")}
    for name in GROUPS["clips"]:
        scorer_of([name])


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown metric 'fid'; known: psd, swd"):
        lookup("fid")


def test_the_contract_of_a_metric_is_its_protocol_and_plain_settings():
    result = protocols(["mhd"])
    assert re.fullmatch("[0-9a-f]{12}", result["mhd"].pop("code"))
    assert result == {
        "mhd": {
            "protocol": "mhd/1",
            "settings": {"ks_small": [1, 2, 3], "ks_large": [3, 4, 5], "small_below": 256},
        }
    }


def test_identical_folders_score_perfectly():
    x = clips()
    batch = Batch(video=x, real=x.clone(), structure=x.clone(), solution=x.clone())
    for name, metric in METRICS.items():
        if metric.family != "reference":
            continue
        if name not in ("mhd", "class_share"):  # of which no value is the best
            assert measure(name, batch) == pytest.approx(1.0 if metric.direction == "one" else 0.0, abs=1e-6), name


def test_blur_raises_the_distances_to_real_and_lowers_mhd_and_gain():
    x, other = clips(), clips(seed=1)
    soft = Batch(video=blurred(other), real=x, solution=other)
    sharp = Batch(video=other, real=x, solution=other)
    for name in ("psd", "swd"):
        assert measure(name, soft) > 3 * measure(name, sharp)
    for name in ("mhd", "mhd_ratio", "solution_gain"):
        assert measure(name, soft) < 0.5 * measure(name, sharp)


def test_blur_leaves_the_anchor_alone_and_a_colour_drift_does_not():
    x = clips()
    small = torch.nn.functional.interpolate(x, scale_factor=(1, 4, 4), mode="nearest")[..., :24, :24]
    drift, soft = measure("anchor_fidelity", Batch(small + 0.2, structure=small)), blurred(small)
    assert drift == pytest.approx(0.04, rel=1e-3)
    assert measure("anchor_fidelity", Batch(soft, structure=small)) < 0.1 * drift


def test_the_order_of_the_clips_does_not_matter_to_set_metrics():
    x, y = clips(), clips(seed=1)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    for name in ("psd", "swd", "mhd_ratio"):
        assert measure(name, Batch(y[order], real=x)) == pytest.approx(measure(name, Batch(y, real=x)), rel=1e-5)


def test_batches_and_one_batch_give_the_same_score():
    x, y = clips(), clips(seed=1)
    tensors = {"video": y, "real": x, "structure": x[..., ::4, ::4], "solution": x}
    for name in GROUPS["clips"]:
        scorer = scorer_of([name])
        for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
            scorer.add(Batch(**{key: value[part] for key, value in tensors.items()}))
        assert scorer.result() == pytest.approx(measure(name, Batch(**tensors)), rel=1e-5), name


@pytest.mark.parametrize("pixels", [1, 2 * 6 * 24 * 24, 5 * 6 * 24 * 24])
def test_clips_in_8_bits_and_some_frames_at_once_give_the_score_of_floats(pixels: int, monkeypatch: pytest.MonkeyPatch):
    stored = np.random.default_rng(0).integers(0, 256, (3, 6, 7, 24, 24, 3), np.uint8)
    video, real, solution = (torch.from_numpy(one).permute(0, 4, 1, 2, 3) for one in stored)
    tensors = {"video": video, "real": real, "structure": real[..., ::4, ::4], "solution": solution}
    expected = {name: measure(name, Batch(**{k: floats(v) for k, v in tensors.items()})) for name in GROUPS["clips"]}
    monkeypatch.setattr(reference, "PIXELS_PER_PART", pixels)
    for name, value in expected.items():
        assert measure(name, Batch(**tensors)) == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize(("depth", "frames"), [(1, 7), (2, 7), (3, 7), (7, 7), (2, 2)])
def test_parts_hold_every_run_of_frames_once_and_no_more_than_is_asked_for(
    depth: int, frames: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reference, "PIXELS_PER_PART", 2 * 4 * 4)
    numbers = torch.arange(frames).view(1, 1, -1, 1, 1).expand(1, 3, -1, 4, 4)
    runs = []
    for start, (part,) in parts(numbers, depth=depth):
        assert depth <= part.shape[2] <= 2 + depth - 1
        assert int(part[0, 0, 0, 0, 0]) == start
        runs += [tuple(part[0, 0, t : t + depth, 0, 0].tolist()) for t in range(part.shape[2] - depth + 1)]
    assert runs == [tuple(range(t, t + depth)) for t in range(frames - depth + 1)]


def test_floats_are_those_that_videos_are_read_as():
    stored = np.arange(768, dtype=np.uint8).reshape(1, 1, 16, 16, 3)
    assert np.array_equal(floats(torch.from_numpy(stored).permute(0, 4, 1, 2, 3)), to_float(stored))


def test_mhd_of_a_two_by_two_checkerboard_by_hand():
    # [0, 1] scale: 1 0 / 0 1. Down by 2 is 0.5, up is 0.5 everywhere; every pixel is off by 0.5.
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).expand(1, 3, 2, 2, 2)
    assert mhd_mse(board, (1,)).item() == pytest.approx(0.25)


def test_mhd_takes_the_coarsest_copy_as_one_pixel_and_averages_over_k():
    # 1 x 2 px, values 0 and 1: for k = 1 and 2 the copy is one pixel of 0.5, each pixel is off by 0.5.
    pair = torch.tensor([[-1.0, 1.0]]).expand(1, 3, 1, 1, 2)
    assert mhd_mse(pair, (1, 2)).item() == pytest.approx(0.25)


def test_mhd_uses_the_papers_scales_from_256_px_on():
    small, large = torch.rand(1, 3, 1, 255, 256), torch.rand(1, 3, 1, 256, 256)
    assert measure("mhd", Batch(small)) == pytest.approx(mhd_mse(small, (1, 2, 3)).item())
    assert measure("mhd", Batch(large)) == pytest.approx(mhd_mse(large, (3, 4, 5)).item())


def test_bins_of_the_spectrum_sum_to_the_energy():
    x = clips(n=2, size=16)
    grey = frames_of(x).mean(1)
    window = torch.hann_window(16, periodic=False)
    windowed = (grey - grey.mean((1, 2), keepdim=True)) * window[:, None] * window
    energy = windowed.square().sum((1, 2)).reshape(2, 3).mean(1) * 16 * 16
    _, sizes = radial_bins(16, 16)
    assert sizes.sum() == 256
    torch.testing.assert_close((radial_power_spectrum(x) * sizes).sum(1), energy, rtol=1e-4, atol=1e-4)


def test_a_grating_stands_in_its_own_bin():
    wave = torch.cos(2 * math.pi * torch.arange(24) / 4).expand(1, 3, 1, 24, 24)
    assert radial_power_spectrum(wave).argmax().item() == 6


def test_twice_the_contrast_is_six_decibels():
    x = clips(n=64) * 0.5
    assert measure("psd", Batch(2 * x, real=x)) == pytest.approx(20 * math.log10(2), rel=1e-2)


@pytest.mark.parametrize("copies", [8, 64])
def test_psd_does_not_depend_on_the_number_of_clips(copies: int):
    # black beside faint texture: its finest frequencies are below the power of rounding, which is added once to a mean
    x = gaussian_blur(clips(1, 24)[0].transpose(0, 1), 2.0).transpose(0, 1)[None] * 0.1
    one = measure("psd", Batch(torch.zeros_like(x), real=x))
    many = x.expand(copies, -1, -1, -1, -1)
    assert measure("psd", Batch(torch.zeros_like(many), real=many)) == pytest.approx(one, rel=1e-6)


def test_black_clips_have_a_finite_distance():
    assert math.isfinite(measure("psd", Batch(torch.zeros(2, 3, 3, 24, 24), real=clips(2))))


def test_the_laplacian_pyramid_adds_up_to_the_frames():
    frames = frames_of(clips(size=24))
    fine, middle, rest = laplacian_pyramid(frames, 3)
    restored = middle + resize(rest, 12, 12, "bilinear")
    torch.testing.assert_close(fine + resize(restored, 24, 24, "bilinear"), frames)


def test_the_wasserstein_distance_of_a_shift_is_the_shift_also_between_sets_of_other_sizes():
    x = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(wasserstein_1d(x + 0.3, x), torch.full((5,), 0.3))
    torch.testing.assert_close(wasserstein_1d(x.repeat_interleave(2, 0), x), torch.zeros(5))


def test_swd_sees_frames_in_the_wrong_order_where_single_frames_do_not():
    x = clips(n=16)
    constant = x[:, :, :1].expand_as(x)
    shuffled = torch.stack([constant.roll(t, 0)[:, :, t] for t in range(3)], 2)
    single = SlicedWasserstein(**{**METRICS["swd"].settings, "frames": 1})
    single.add(Batch(shuffled, real=constant))
    assert single.result() == pytest.approx(0, abs=1e-6)
    assert measure("swd", Batch(shuffled, real=constant)) > 0.01


def test_projections_are_seeded():
    batch = Batch(clips(), real=clips(seed=1))
    assert measure("swd", batch) == measure("swd", batch)


def test_many_patches_are_thinned_out_and_still_see_blur():
    x, y = clips(n=2, size=96), clips(n=2, size=96, seed=1)
    assert measure("swd", Batch(blurred(y), real=x)) > 3 * measure("swd", Batch(y, real=x))


def test_a_structure_clip_on_the_grid_or_at_full_size_is_the_same_structure():
    x, y = clips(), clips(seed=1)
    grid = to_grid(frames_of(x), (24, 24), 2.0, 4).unflatten(0, (6, 3)).transpose(1, 2)
    assert grid.shape == (6, 3, 3, 6, 6)
    at_full_size = measure("anchor_fidelity", Batch(y, structure=x))
    assert measure("anchor_fidelity", Batch(y, structure=grid)) == pytest.approx(at_full_size)


def test_the_gap_is_a_mean_square_on_minus_one_to_one():
    x = torch.zeros(3, 3, 2, 8, 8)
    assert measure("solution_gap", Batch(x + 0.5, solution=x)) == pytest.approx(0.25)


def test_a_reference_without_detail_gives_no_ratio():
    flat = torch.zeros(1, 3, 1, 8, 8)
    assert math.isnan(measure("solution_gain", Batch(clips(1, 8)[:, :, :1], solution=flat)))


@settings(deadline=None, max_examples=15)
@given(st.floats(0.1, 0.9))
def test_gain_and_mhd_ratio_are_energies(contrast: float):
    x = clips(n=2)
    assert measure("solution_gain", Batch(contrast * x, solution=x)) == pytest.approx(contrast**2, rel=1e-3)
    # mHD is on [0, 1], an affine map of [-1, 1], and blind to the mean.
    assert measure("mhd_ratio", Batch(contrast * x, real=x)) == pytest.approx(contrast**2, rel=1e-3)


def test_clips_of_other_sizes_are_refused():
    for name, key in (
        ("psd", "real"),
        ("swd", "real"),
        ("solution_gap", "solution"),
        ("solution_gain", "solution"),
    ):
        with pytest.raises(ValueError, match=f"{name} needs clips of {key}'s size"):
            measure(name, Batch(clips(), **{key: clips(size=16)}))
    with pytest.raises(ValueError, match="as many frames in structure"):
        measure("anchor_fidelity", Batch(clips(), structure=clips()[:, :, :1]))
