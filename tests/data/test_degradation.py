"""pw.data.degradation: what a clip loses on its way to being an anchor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pw.data import degradation
from pw.data.degradation import BlurAndNoise, Clean, Flawed, blur, resize

SIZE = (12, 12)
PLAIN = BlurAndNoise((4.0, 4.0), (1.0, 1.0), (0.0, 0.1), 0.5)
RANGED = BlurAndNoise((2.0, 6.0), (0.5, 2.0), (0.0, 0.1), 0.5)
FLAWED = Flawed(PLAIN, mask=0.15, noise=0.2, swap=True)
every_kind = pytest.mark.parametrize(
    "kind", [PLAIN, RANGED, Clean(), FLAWED], ids=["fixed", "ranged", "clean", "flawed"]
)


def clips(batch: int = 4, frames: int = 3, size: int = 24) -> torch.Tensor:
    return torch.rand(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_kind
@pytest.mark.parametrize("size", [(12, 12), (6, 10)])
def test_an_anchor_has_the_asked_size_and_the_clips_range(kind, size: tuple[int, int]):
    anchor = kind.anchor(clips(), size, seeded())
    assert anchor.shape == (4, 3, 3, *size)
    assert float(anchor.abs().max()) <= 1 + 1e-6
    latent = torch.randn(4, 48, 3, 6, 6)
    assert kind.perturb(latent, seeded()).shape == latent.shape


@every_kind
def test_the_generator_decides_everything(kind):
    video, latent = clips(), torch.zeros(4, 48, 3, 6, 6)
    before = video.clone()
    first, second = (kind.anchor(video, SIZE, seeded(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(kind.perturb(latent, seeded(1)), kind.perturb(latent, seeded(1)))
    assert torch.equal(video, before)  # and nothing is changed in place


@pytest.mark.parametrize("kind", [RANGED, FLAWED], ids=["ranged", "flawed"])
def test_another_generator_makes_another_anchor(kind):
    assert not torch.equal(kind.anchor(clips(), SIZE, seeded(1)), kind.anchor(clips(), SIZE, seeded(2)))


@pytest.mark.parametrize("kind", [PLAIN, RANGED, Clean()], ids=["fixed", "ranged", "clean"])
def test_the_frames_of_a_clip_share_one_draw(kind):
    """Equal frames stay equal: no frame has a factor or a blur of its own."""
    still = clips()[:, :, :1].expand(-1, -1, 3, -1, -1)
    anchor = kind.anchor(still, SIZE, seeded())
    torch.testing.assert_close(anchor, anchor[:, :, :1].expand_as(anchor), atol=1e-6, rtol=0)


def test_clips_of_a_batch_have_draws_of_their_own():
    copies = clips(1).expand(4, -1, -1, -1, -1)
    anchor = RANGED.anchor(copies, SIZE, seeded())
    for i in range(4):
        for j in range(i):
            assert (anchor[i] - anchor[j]).abs().max() > 1e-3


def test_a_fixed_factor_is_the_ranged_one_of_no_width():
    # both roads through `anchor`: the whole batch at once, and clip by clip
    nearly = replace(PLAIN, downscale=(4.0, 4.0 + 1e-9))
    torch.testing.assert_close(PLAIN.anchor(clips(), SIZE, seeded()), nearly.anchor(clips(), SIZE, seeded()))


def test_without_blur_the_anchor_is_the_area_mean_enlarged():
    # factor 4: 24 -> 6 by means of 4 x 4 px, then bilinear to 12
    unblurred = replace(PLAIN, blur=(0.0, 0.0))
    frames = clips().transpose(1, 2).flatten(0, 1)
    means = F.avg_pool2d(frames, 4)
    small = F.interpolate(means, size=SIZE, mode="bilinear", align_corners=False)
    expected = small.unflatten(0, (4, 3)).transpose(1, 2)
    torch.testing.assert_close(unblurred.anchor(clips(), SIZE, seeded()), expected)


def test_a_factor_larger_than_the_clip_leaves_one_pixel():
    single = BlurAndNoise((60.0, 60.0), (0.0, 0.0), (0.0, 0.0), 0.0)
    anchor = single.anchor(clips(), SIZE, seeded())
    torch.testing.assert_close(anchor, clips().mean((-2, -1), keepdim=True).expand_as(anchor))


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0, 4.0])
def test_blur_preserves_a_constant(sigma: float):
    constant = torch.rand(2, 3, 2, 1, 1).expand(-1, -1, -1, 12, 10)
    torch.testing.assert_close(blur(constant, torch.full((2,), sigma)), constant.contiguous(), atol=1e-6, rtol=0)


def test_blur_of_a_point_is_a_gaussian_of_its_sigma():
    point = torch.zeros(2, 1, 1, 31, 31)
    point[..., 15, 15] = 1
    sigmas = torch.tensor([1.0, 2.0])
    spread = blur(point, sigmas)
    torch.testing.assert_close(spread.sum((1, 2, 3, 4)), torch.ones(2))
    offset = torch.arange(31.0) - 15
    for clip, sigma in zip(spread[:, 0, 0], sigmas.tolist(), strict=True):
        assert float((clip.sum(0) * offset**2).sum()) == pytest.approx(sigma**2, rel=0.03)  # cut off at 3 sigma
        assert float((clip.sum(1) * offset**2).sum()) == pytest.approx(sigma**2, rel=0.03)
        torch.testing.assert_close(clip[15, 16] / clip[15, 15], torch.exp(torch.tensor(-1 / (2 * sigma**2))))


@pytest.mark.parametrize(
    ("sigma", "taps", "std"),  # sqrt(sum o^2 exp(-o^2 / 2 sigma^2) / sum exp(...)) over |o| <= taps // 2
    [(3.0, 7, 1.835), (3.0, 9, 2.227), (4.3, 7, 1.919), (4.3, 9, 2.405), (1.0, 3, 0.740)],
)
def test_a_cut_kernel_blurs_less_than_its_sigma(sigma: float, taps: int, std: float):
    point = torch.zeros(1, 1, 1, 41, 41)
    point[..., 20, 20] = 1
    spread = blur(point, torch.tensor([sigma]), 6, torch.tensor([taps]))[0, 0, 0]
    offset = torch.arange(41.0) - 20
    assert float((spread.sum(0) * offset**2).sum()) ** 0.5 == pytest.approx(std, abs=1e-3)
    assert int((spread.sum(0) > 0).sum()) == taps


def test_taps_are_drawn_per_clip_and_change_no_other_draw():
    cut = replace(PLAIN, blur=(3.0, 4.3), taps=(7, 9))
    whole = replace(cut, taps=None)
    drawn, uncut = cut.draw(400, 3, SIZE, seeded()), whole.draw(400, 3, SIZE, seeded())
    assert {p.taps for p in drawn} == {7, 9}
    assert [(p.factor, p.sigma) for p in drawn] == [(p.factor, p.sigma) for p in uncut]
    assert sum(p.taps == 7 for p in drawn) == pytest.approx(200, abs=40)  # sd 10
    clip = torch.rand(2, 3, 2, 64, 64)
    together = cut.degrade(clip, (32, 32), drawn[:2])
    torch.testing.assert_close(together[1:], cut.degrade(clip[1:], (32, 32), drawn[1:2]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("taps", [(), (4,), (1,), (7, -9)])
def test_taps_are_odd_widths(taps: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"^degradation\.taps="):
        replace(PLAIN, taps=taps)


def test_no_blur_at_all_is_the_identity_and_more_blur_is_smoother():
    video = clips()
    torch.testing.assert_close(blur(video, torch.zeros(4)), video)
    rough = [float(blur(video, torch.full((4,), s)).std()) for s in (0.5, 1.0, 2.0)]
    assert rough[0] > 1.2 * rough[1] > 1.2 * 1.2 * rough[2]


def test_noise_comes_with_its_probability_and_its_range():
    latent = torch.zeros(2000, 4, 1, 4, 4)
    noisy = BlurAndNoise((4.0, 4.0), (1.0, 1.0), (0.05, 0.1), 0.5).perturb(latent, seeded())
    std = noisy.flatten(1).std(1)
    touched = std > 0
    assert float(touched.float().mean()) == pytest.approx(0.5, abs=0.05)  # sd 0.011
    # std of 64 numbers of std 0.05 … 0.1: 9 % relative error each
    assert 0.03 < float(std[touched].min()) < 0.06
    assert 0.09 < float(std[touched].max()) < 0.14
    assert float(std[touched].mean()) == pytest.approx(0.075, abs=0.003)


@pytest.mark.parametrize(("noise", "probability"), [((0.1, 0.1), 0.0), ((0.0, 0.0), 1.0)])
def test_no_noise_leaves_the_latent_as_it_is(noise: tuple[float, float], probability: float):
    latent = torch.randn(4, 4, 1, 4, 4)
    assert torch.equal(BlurAndNoise((4.0, 4.0), (1.0, 1.0), noise, probability).perturb(latent, seeded()), latent)


def test_clean_is_an_area_resize_and_nothing_else():
    frames = clips().transpose(1, 2).flatten(0, 1)
    expected = F.avg_pool2d(frames, 2).unflatten(0, (4, 3)).transpose(1, 2)
    torch.testing.assert_close(Clean().anchor(clips(), SIZE, seeded()), expected)
    latent = torch.randn(2, 4, 1, 4, 4)
    assert torch.equal(Clean().perturb(latent, seeded()), latent)


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_resizing_to_the_same_size_or_of_a_constant_changes_nothing(mode: str):
    assert torch.equal(resize(clips(), (24, 24), mode), clips())
    constant = torch.full((1, 3, 2, 8, 8), 0.3)
    torch.testing.assert_close(resize(constant, (20, 12), mode), torch.full((1, 3, 2, 20, 12), 0.3))


def test_flawed_paints_one_rectangle_of_its_share_in_the_mean_colour():
    flawed = Flawed(PLAIN, mask=0.25, noise=0.0, swap=False)
    anchor, base = flawed.anchor(clips(), SIZE, seeded()), PLAIN.anchor(clips(), SIZE, seeded())
    changed = (anchor != base).any(1)  # [B, F, H, W]
    for i in range(4):
        assert torch.equal(changed[i, 0], changed[i, 1])  # the same place in every frame
        rows, columns = changed[i, 0].nonzero().unbind(1)
        # a quarter of 12 x 12 is 6 x 6
        assert (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1) == (6, 6)
        patch = anchor[i][..., int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1]
        mean = base[i].mean((-3, -2, -1), keepdim=True)
        torch.testing.assert_close(patch, mean.expand_as(patch))
    assert len({tuple(changed[i, 0].nonzero()[0].tolist()) for i in range(4)}) > 1


def test_flawed_swaps_two_neighbouring_frames():
    flawed = Flawed(PLAIN, mask=0.0, noise=0.0, swap=True)
    video = clips(frames=5)
    anchor, base = flawed.anchor(video, SIZE, seeded()), PLAIN.anchor(video, SIZE, seeded())
    places = set()
    for swapped, order in zip(anchor, base, strict=True):
        moved = [f for f in range(5) if not torch.equal(swapped[:, f], order[:, f])]
        assert len(moved) == 2
        first, second = moved
        assert second == first + 1
        assert torch.equal(swapped[:, first], order[:, second])
        assert torch.equal(swapped[:, second], order[:, first])
        places.add(first)
    assert len(places) > 1


def test_a_clip_of_one_frame_has_nothing_to_swap():
    flawed, video = Flawed(PLAIN, mask=0.0, noise=0.0, swap=True), clips(frames=1)
    assert torch.equal(flawed.anchor(video, SIZE, seeded()), PLAIN.anchor(video, SIZE, seeded()))


def test_flawed_without_flaws_is_its_base():
    flawed = Flawed(PLAIN, mask=0.0, noise=0.0, swap=False)
    assert torch.equal(flawed.anchor(clips(), SIZE, seeded()), PLAIN.anchor(clips(), SIZE, seeded()))
    latent = torch.randn(4, 4, 1, 4, 4)
    assert torch.equal(flawed.perturb(latent, seeded()), latent)


def test_flawed_adds_noise_of_its_std():
    noisy = FLAWED.perturb(torch.zeros(4, 48, 3, 6, 6), seeded())
    assert float(noisy.std()) == pytest.approx(0.2, abs=0.005)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: replace(PLAIN, downscale=(0.5, 4.0)), r"degradation\.downscale=\[0\.5, 4\.0\]"),
        (lambda: replace(PLAIN, downscale=(6.0, 4.0)), r"degradation\.downscale=\[6\.0, 4\.0\]"),
        (lambda: replace(PLAIN, blur=(-1.0, 1.0)), r"degradation\.blur"),
        (lambda: replace(PLAIN, noise=(0.2, 0.1)), r"degradation\.noise"),
        (lambda: replace(PLAIN, noise_probability=1.5), r"degradation\.noise_probability=1\.5"),
        (lambda: replace(FLAWED, mask=1.0), r"degradation\.mask=1\.0"),
        (lambda: replace(FLAWED, mask=-0.1), r"degradation\.mask=-0\.1"),
        (lambda: replace(FLAWED, noise=-0.1), r"degradation\.noise=-0\.1"),
    ],
)
def test_an_impossible_range_is_refused_by_key(make, key: str):
    with pytest.raises(ValueError, match=key):
        make()


@every_kind
def test_clips_degraded_one_by_one_are_those_degraded_at_once(kind):
    video = clips()
    parameters = kind.draw(len(video), video.shape[2], SIZE, seeded(3))
    result = [kind.degrade(clip[None], SIZE, [p]) for clip, p in zip(video, parameters, strict=True)]
    assert torch.equal(torch.cat(result), kind.anchor(video, SIZE, seeded(3)))


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_frames_resized_some_at_once_are_those_resized_together(mode: str, monkeypatch: pytest.MonkeyPatch):
    whole = resize(clips(), (10, 14), mode)
    monkeypatch.setattr(degradation, "MAX_PIXELS", 1)
    assert torch.equal(resize(clips(), (10, 14), mode), whole)
