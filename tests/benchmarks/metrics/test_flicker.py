"""VBench's temporal flickering, computed here, against its definition and against VBench itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.metrics.flicker import BAND, mean_difference, scorer
from benchmarks.metrics.implementation import FrameView
from pw.io.video import VideoInfo, decode, probe

CLIPS = Path(__file__).parents[3].parent / "shared" / "data" / "clips"
# VBench 0.1.5 itself (torch 2.5.1, opencv-python 4.11.0), measured with benchmarks/measure/vbench_worker.py
BY_VBENCH = {
    "bigbuckbunny.mp4": 0.9875890946855732,
    "bikes.mp4": 0.9689892133076986,
    "carphone_distorted.mp4": 0.9947501598619948,
    "carphone_pristine.mp4": 0.9844355601890414,
    "dove_001.mp4": 0.9969149470329285,
    "dove_002.mp4": 0.9571420445161707,
    "dove_003.mp4": 0.9486065658868528,
}


def flickering(frames: np.ndarray) -> float:
    info = VideoInfo(len(frames), *frames.shape[1:3], 24.0, "ffv1")
    video = scorer(["temporal_flickering"], {}, "cpu").begin(info)
    indices = [i for i in range(len(frames)) if video.wants(i)]
    return video.result([video.frame(FrameView(i, frames[i], frames[i - 1])) for i in indices])["temporal_flickering"]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_a_still_video_does_not_flicker_and_black_to_white_is_the_worst():
    still = np.repeat(noise(1, 6, 8, 3), 4, axis=0)
    assert flickering(still) == 1.0
    blink = np.zeros((3, 6, 8, 3), np.uint8)
    blink[1] = 255
    assert flickering(blink) == 0.0


def test_the_mean_is_over_pairs_of_the_means_over_samples():
    frames = np.zeros((3, 2, 2, 3), np.uint8)
    frames[1, 0, 0, 0] = 120  # 1 of 12 samples: pairs of mean 10 and 10 - 5
    frames[2, 0, 0, 0] = 60
    assert flickering(frames) == pytest.approx((255 - (10 + 5) / 2) / 255, abs=1e-15)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_it_is_the_formula_on_any_video(frames: int, height: int, width: int, seed: int):
    video = noise(frames, height, width, 3, seed=seed)
    expected = 1 - np.abs(np.diff(video.astype(float), axis=0)).mean() / 255
    assert flickering(video) == pytest.approx(expected, abs=1e-14)


def test_a_frame_larger_than_a_band_is_summed_whole():
    first, second = noise(2, 700, 700, 3)
    assert first.size > BAND
    assert mean_difference(first, second) == pytest.approx(np.abs(first.astype(float) - second).mean(), rel=1e-13)


def test_one_frame_has_no_neighbour_and_says_so():
    with pytest.raises(ValueError, match="needs two, not one"):
        flickering(noise(1, 4, 4, 3))


def test_a_video_that_declared_more_frames_than_it_has_says_so():
    video = scorer(["temporal_flickering"], {}, "cpu").begin(VideoInfo(9, 4, 4, 24.0, "h264"))
    with pytest.raises(ValueError, match="needs two, not one"):
        video.result([])


@pytest.mark.parametrize("name", ["carphone_pristine.mp4", "dove_001.mp4", "dove_002.mp4", "dove_003.mp4"])
def test_real_clips_score_as_vbench_scores_them(name: str):
    if not (CLIPS / name).is_file():
        pytest.skip("needs the real clips")
    video = scorer(["temporal_flickering"], {}, "cpu").begin(probe(CLIPS / name))
    values, previous = [], None
    for frame in decode(CLIPS / name):
        if video.wants(frame.index):
            values.append(video.frame(FrameView(frame.index, frame.image, previous)))
        previous = frame.image
    assert video.result(values)["temporal_flickering"] == pytest.approx(BY_VBENCH[name], abs=2e-8)
