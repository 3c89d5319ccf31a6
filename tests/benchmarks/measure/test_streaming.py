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
from benchmarks.metrics.implementation import Look, spread
from pw.io.video import Frames, VideoError, VideoInfo, decode, read_video


@dataclass
class Brightness:
    """Mean of every `every`-th frame, and what it saw on the way."""

    every: int = 1
    memory: int = 0
    refuses: str = ""
    sleep: float = 0.0
    seen: list[int] = field(default_factory=list)
    running: int = 0
    most: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def begin(self, info: VideoInfo) -> Brightness:
        if self.refuses:
            raise ValueError(self.refuses)
        return self

    def wants(self, index: int) -> bool:
        return index % self.every == 0

    def frame(self, look: Look) -> float:
        with self.lock:
            self.seen.append(look.index)
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(self.sleep)
        with self.lock:
            self.running -= 1
        return float(look.image.mean())

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

    def frame(self, look: Look) -> float:
        other: Frames | None = look.real if self.real else look.previous
        assert other is not None
        return float(np.abs(look.image.astype(float) - other).mean())

    def result(self, frames: Sequence[Any]) -> Mapping[str, float]:
        return {"difference": float(np.mean(frames))}


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return encode(tmp_path / "a.mkv", moving(12), codec_name="ffv1", pix_fmt="bgr0")


@pytest.mark.parametrize("threads", [1, 4])
def test_every_metric_gets_its_frames_once_and_in_order(video: Path, threads: int):
    all_, third, difference = Brightness(), Brightness(every=3), Difference()
    found = score_video(video, {"a": all_, "b": third, "c": difference}, threads=threads)
    frames = read_video(video).astype(float)
    assert sorted(all_.seen) == list(range(12))
    assert sorted(third.seen) == [0, 3, 6, 9]
    assert found.frames == 12
    assert found.values == pytest.approx({
        "brightness_1": frames.mean(),
        "brightness_3": frames[::3].mean(),
        "difference": np.abs(np.diff(frames, axis=0)).mean(),
    })  # fmt: skip


def test_the_real_video_comes_frame_by_frame_beside(video: Path, tmp_path: Path):
    real = encode(tmp_path / "real.mkv", moving(12, seed=1), codec_name="ffv1", pix_fmt="bgr0")
    found = score_video(video, {"c": Difference(real=True)}, real=real, paired={"c"})
    expected = np.abs(read_video(video).astype(float) - read_video(real)).mean()
    assert found.values["difference"] == pytest.approx(expected)


def test_a_real_video_of_another_length_refuses_only_the_metrics_that_need_it(video: Path, tmp_path: Path):
    real = encode(tmp_path / "real.mkv", moving(5), codec_name="ffv1", pix_fmt="bgr0")
    found = score_video(video, {"a": Brightness(), "c": Difference(real=True)}, real=real, paired={"c"})
    assert "5 frames, the video has 12" in found.refused["c"]
    assert set(found.values) == {"brightness_1"}


def test_a_metric_that_will_not_score_a_video_does_not_stop_the_others(video: Path):
    found = score_video(video, {"a": Brightness(refuses="too small"), "b": Brightness(every=2)})
    assert found.refused == {"a": "too small"}
    assert set(found.values) == {"brightness_2"}


def test_a_metric_that_needs_much_memory_is_given_one_frame_at_a_time(video: Path):
    small, large = Brightness(sleep=0.01), Brightness(every=2, memory=1 << 40, sleep=0.01)
    score_video(video, {"large": large, "small": small}, threads=4)
    assert (large.most, len(large.seen)) == (1, 6)
    together = Brightness(sleep=0.05)
    score_video(video, {"small": together}, threads=4)
    assert together.most > 1


def test_a_mistake_in_a_metric_is_not_taken_for_a_bad_video(video: Path):
    class Wrong(Brightness):
        def frame(self, look: Look) -> float:
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
    found = score_video(path, {"a": Brightness()}, threads=2)
    assert found.frames == len(expected) == (1 if name == "one_frame.mp4" else 6)
    assert found.values["brightness_1"] == pytest.approx(np.mean(expected))


def test_frames_are_spread_evenly():
    assert spread(4, 12) == [1, 4, 7, 10]
    assert spread(1, 121) == [60]
    assert spread(5, 3) == [0, 1, 2]
