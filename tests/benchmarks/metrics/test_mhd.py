"""mHD-MSE against torch's own interpolation of whole clips, and against numbers worked out by hand."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from benchmarks.metrics import lookup
from benchmarks.metrics.implementation import FrameView
from benchmarks.metrics.mhd import BAND, losses, losses_on, scorer
from pw.io.video import Frames, VideoInfo, iter_frames

KS = (3, 4, 5)
CLIPS = Path(__file__).parents[3].parent / "shared" / "data" / "clips"


def plain(clip: Frames, ks: Sequence[int] = KS) -> list[float]:
    """Eq. 9.9 as it is written, for each k: the whole clip `[T, H, W, 3]` in float64."""
    video = torch.from_numpy(clip).permute(0, 3, 1, 2).double() / 255
    height, width = video.shape[-2:]
    values = []
    for k in ks:
        small = interpolate(video, (max(1, height // 2**k), max(1, width // 2**k)), mode="bilinear")
        values.append(float((video - interpolate(small, (height, width), mode="bilinear")).square().mean()))
    return values


def noise(height: int, width: int, low: int = 0, high: int = 256, frames: int = 1, seed: int = 0) -> Frames:
    return np.random.default_rng(seed).integers(low, high, (frames, height, width, 3), dtype=np.uint8)


def ramp(height: int, width: int) -> Frames:
    """Light growing from corner to corner: all that is lost is what rounding to 8 bits put there."""
    y, x = np.arange(height)[:, None, None], np.arange(width)[:, None]
    return np.repeat((255 * (y + x) // (height + width)).astype(np.uint8), 3, axis=2)


def score(clip: Frames, **changed: object) -> float:
    settings = {**lookup("mhd_mse").settings, **changed}
    video = scorer(["mhd_mse"], settings, "cpu").begin(VideoInfo(len(clip), *clip.shape[1:3], 24.0, "ffv1"))
    return video.result([video.frame(FrameView(n, image)) for n, image in enumerate(clip)])["mhd_mse"]


class TestAgainstTorch:
    @given(
        height=st.integers(1, 90),
        width=st.integers(1, 90),
        ks=st.lists(st.integers(1, 7), min_size=1, max_size=3),
        contrast=st.integers(1, 256),
        seed=st.integers(0, 9),
    )
    def test_any_size_gives_the_same_odd_ones_and_those_below_one_small_pixel_too(
        self, height: int, width: int, ks: list[int], contrast: int, seed: int
    ) -> None:
        clip = noise(height, width, 256 - contrast, 256, seed=seed)
        assert losses(clip[0], ks) == pytest.approx(plain(clip, ks), rel=1e-6, abs=1e-13)

    @pytest.mark.parametrize("size", [(361, 643), (200, 1200), (5, BAND // 12 + 7)])
    def test_frames_of_several_bands_give_the_same(self, size: tuple[int, int]) -> None:
        assert size[0] * size[1] * 3 > BAND
        clip = noise(*size)
        assert losses(clip[0], KS) == pytest.approx(plain(clip), rel=1e-6)

    def test_frames_that_lose_almost_nothing_give_the_same(self) -> None:
        dark = np.full((270, 483, 3), 255, np.uint8)
        dark[100, 200, 1] = 254
        for image in (dark, ramp(270, 483), noise(270, 483, 200, 202)[0]):
            assert 0 < losses(image, KS)[2] < 1e-4
            assert losses(image, KS) == pytest.approx(plain(image[None]), rel=1e-6)

    @pytest.mark.parametrize("grey", [0, 1, 97, 255])
    def test_flat_frames_lose_nothing_at_all(self, grey: int) -> None:
        assert losses(np.full((61, 75, 3), grey, np.uint8), KS) == [0, 0, 0]

    @pytest.mark.parametrize("name", ["bikes.mp4", "dove_001.mp4"])
    def test_real_frames_give_the_same(self, name: str) -> None:
        if not (CLIPS / name).is_file():
            pytest.skip(f"{CLIPS / name} is not there")
        frames = iter_frames(CLIPS / name)
        clip = np.stack([next(frames) for _ in range(2)])
        assert score(clip) == pytest.approx(np.mean(plain(clip)), rel=1e-6)

    def test_a_device_that_computes_by_torch_gives_the_same(self) -> None:
        clip = noise(37, 53)
        assert losses_on("cpu", clip[0], KS) == pytest.approx(plain(clip), rel=1e-5)


class TestByHand:
    def test_an_edge_is_smeared_over_four_pixels(self) -> None:
        # k = 1 of 0 0 1 1: down 0 1, up at -1/4, 1/4, 3/4, 5/4: 0 1/4 3/4 1; errors 0 1/4 1/4 0: mean square 1/32
        image = np.repeat(np.array([[[0], [0], [255], [255]]], np.uint8), 3, axis=2)
        assert losses(image, [1]) == pytest.approx([1 / 32])

    def test_only_the_two_middle_rows_and_columns_are_read(self) -> None:
        # 8 x 8, k = 3: one pixel, the mean of rows 3, 4 x columns 3, 4. A corner is not seen: its energy is lost.
        image = np.zeros((8, 8, 3), np.uint8)
        image[0, 0] = 255
        assert losses(image, [3]) == pytest.approx([1 / 64])
        # In the middle: 1/4 everywhere; (3/4)^2 once and (1/4)^2 in 63 pixels.
        image[0, 0], image[3, 4] = 0, 255
        assert losses(image, [3]) == pytest.approx([(9 / 16 + 63 / 16) / 64])


class TestTheScore:
    def test_is_the_mean_over_frames_and_scales(self) -> None:
        clip = noise(50, 70, frames=3)
        clip[1] = 7
        assert score(clip) == pytest.approx(np.mean(plain(clip)), rel=1e-6)

    def test_of_the_authors_script_is_the_sum_over_scales(self) -> None:
        clip = noise(50, 70, frames=2)
        assert score(clip, reduction="sum") == pytest.approx(3 * score(clip), rel=1e-12)

    def test_grows_with_noise(self) -> None:
        image = ramp(64, 96).astype(float)
        grain = np.random.default_rng(0).normal(size=image.shape)
        values = [score(np.clip(image + s * grain, 0, 255).astype(np.uint8)[None]) for s in (0, 2, 8, 30)]
        assert sorted(values) == values
        assert values[3] > 10 * values[0]

    def test_is_the_same_from_several_threads_and_leaves_the_frames_alone(self) -> None:
        clip = noise(96, 128, frames=8)
        copy = clip.copy()
        video = scorer(["mhd_mse"], lookup("mhd_mse").settings, "cpu").begin(VideoInfo(8, 96, 128, 24.0, "ffv1"))
        with ThreadPoolExecutor(4) as pool:
            values = list(pool.map(video.frame, (FrameView(n, image) for n, image in enumerate(clip))))
        assert video.result(values)["mhd_mse"] == score(clip)
        assert np.array_equal(clip, copy)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"ks": ()}, r"ks=\[\]"),
            ({"ks": (3, 0)}, r"ks=\[3, 0\].* at least 1"),
            ({"reduction": "max"}, "reduction='max': known: mean, sum"),
        ],
    )
    def test_of_settings_that_make_no_sense_is_refused(self, changed: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            score(noise(8, 8), **changed)


@pytest.mark.parametrize(
    ("size", "ks"), [((1080, 1920), KS), ((720, 1280), (1,)), ((719, 405), (2, 3)), ((64, 64), KS)]
)
def test_a_frame_takes_no_more_memory_than_is_said_and_a_video_keeps_nothing_of_it(
    size: tuple[int, int], ks: tuple[int, ...]
) -> None:
    settings = {**lookup("mhd_mse").settings, "ks": ks}
    video = scorer(["mhd_mse"], settings, "cpu").begin(VideoInfo(3, *size, 24.0, "ffv1"))
    image = noise(*size)[0]
    video.frame(FrameView(0, image))
    tracemalloc.start()
    values = [video.frame(FrameView(n, image)) for n in range(3)]
    current, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(values) == 3
    assert current < 20_000
    assert peak <= video.memory
    if ks == KS:
        assert video.memory < 2 * image.nbytes + 2**22
