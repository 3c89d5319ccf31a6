"""One decode for all metrics, on threads, in bounded memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_videos import BROKEN, WHOLE, encode, moving

from benchmarks.measure.streaming import score_video
from benchmarks.metrics.implementation import FrameView, spread
from pw.io.video import Frames, VideoError, VideoInfo, decode, read_video


@dataclass
class Brightness:
    """Mean of every `every`-th frame, and what it saw on the way."""

    every: int = 1
    memory: int = 0
    refuses: str = ""
    sleep: float = 0.0
    indices: list[int] = field(default_factory=list)
    n_running: int = 0
    max_running: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def begin(self, info: VideoInfo) -> Brightness:
        if self.refuses:
            raise ValueError(self.refuses)
        return self

    def wants(self, index: int) -> bool:
        return index % self.every == 0

    def frame(self, view: FrameView) -> float:
        with self.lock:
            self.indices.append(view.index)
            self.n_running += 1
            self.max_running = max(self.max_running, self.n_running)
        time.sleep(self.sleep)
        with self.lock:
            self.n_running -= 1
        return float(view.image.mean())

    def result(self, frames: Sequence[Any]) -> Mapping[str, float]:
        return {f"brightness_{self.every}": float(np.mean(frames))}


@dataclass
class Difference:
    """Mean difference to the frame before, or to the real one."""

    real: bool = False
    memory: int = 0

    def begin(self, info: VideoInfo) -> Difference:
        return self

    def wants(self, index: int) -> bool:
        return self.real or index > 0

    def frame(self, view: FrameView) -> float:
        other: Frames | None = view.real if self.real else view.previous
        assert other is not None
        return float(np.abs(view.image.astype(float) - other).mean())

    def result(self, frames: Sequence[Any]) -> Mapping[str, float]:
        return {"difference": float(np.mean(frames))}


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return encode(tmp_path / "a.mkv", moving(12), codec_name="ffv1", pix_fmt="bgr0")


@pytest.mark.parametrize("threads", [1, 4])
def test_every_metric_gets_its_frames_once_and_in_order(video: Path, threads: int):
    every_frame, every_third, difference = Brightness(), Brightness(every=3), Difference()
    result = score_video(video, {"a": every_frame, "b": every_third, "c": difference}, threads=threads)
    frames = read_video(video).astype(float)
    assert sorted(every_frame.indices) == list(range(12))
    assert sorted(every_third.indices) == [0, 3, 6, 9]
    assert result.frames == 12
    assert result.values == pytest.approx({
        "brightness_1": frames.mean(),
        "brightness_3": frames[::3].mean(),
        "difference": np.abs(np.diff(frames, axis=0)).mean(),
    })  # fmt: skip


def test_the_real_video_comes_frame_by_frame_beside(video: Path, tmp_path: Path):
    real = encode(tmp_path / "real.mkv", moving(12, seed=1), codec_name="ffv1", pix_fmt="bgr0")
    result = score_video(video, {"c": Difference(real=True)}, real=real, paired={"c"})
    expected = np.abs(read_video(video).astype(float) - read_video(real)).mean()
    assert result.values["difference"] == pytest.approx(expected)


def test_a_real_video_of_another_length_refuses_only_the_metrics_that_need_it(video: Path, tmp_path: Path):
    real = encode(tmp_path / "real.mkv", moving(5), codec_name="ffv1", pix_fmt="bgr0")
    result = score_video(video, {"a": Brightness(), "c": Difference(real=True)}, real=real, paired={"c"})
    assert "5 frames, the video has 12" in result.refusals["c"]
    assert set(result.values) == {"brightness_1"}


def test_a_metric_that_will_not_score_a_video_does_not_stop_the_others(video: Path):
    result = score_video(video, {"a": Brightness(refuses="too small"), "b": Brightness(every=2)})
    assert result.refusals == {"a": "too small"}
    assert set(result.values) == {"brightness_2"}


def test_a_metric_that_needs_much_memory_is_given_one_frame_at_a_time(video: Path):
    small, large = Brightness(sleep=0.01), Brightness(every=2, memory=1 << 40, sleep=0.01)
    score_video(video, {"large": large, "small": small}, threads=4)
    assert (large.max_running, len(large.indices)) == (1, 6)
    slow = Brightness(sleep=0.05)
    score_video(video, {"small": slow}, threads=4)
    assert slow.max_running > 1


def test_a_mistake_in_a_metric_is_not_taken_for_a_bad_video(video: Path):
    class Wrong(Brightness):
        def frame(self, view: FrameView) -> float:
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        score_video(video, {"a": Wrong()}, threads=2)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_video_is_named(tmp_path: Path, name: str):
    path = BROKEN[name](tmp_path / name)
    with pytest.raises(VideoError, match=name):
        score_video(path, {"a": Brightness()}, threads=2)


@pytest.mark.parametrize("name", WHOLE)
def test_an_unusual_video_is_scored_frame_by_frame(tmp_path: Path, name: str):
    path = WHOLE[name](tmp_path / name)
    expected = [frame.image.mean() for frame in decode(path)]
    result = score_video(path, {"a": Brightness()}, threads=2)
    assert result.frames == len(expected) == (1 if name == "one_frame.mp4" else 6)
    assert result.values["brightness_1"] == pytest.approx(np.mean(expected))


def test_frames_are_spread_evenly():
    assert spread(4, 12) == [1, 4, 7, 10]
    assert spread(1, 121) == [60]
    assert spread(5, 3) == [0, 1, 2]
