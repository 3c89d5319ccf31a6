"""pw.video: what is written comes back, and what is broken says so by name."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from pw.video import VideoError, decode, iter_frames, probe, read_video, to_float, to_uint8, write_video


def noise(frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def gradient(frames: int, height: int, width: int) -> np.ndarray:
    t, y, x = np.ogrid[:frames, :height, :width]
    levels = (10 * t + 255 * y / height + 255 * x / width) / 2
    return np.repeat(np.clip(levels, 0, 255).astype(np.uint8)[..., None], 3, -1)


def encode(path: Path, frames: np.ndarray, pts: list[int] | None = None, **stream: Any) -> Path:
    """x264 by hand, for what write_video does not write."""
    rotation = stream.pop("rotation", 0)
    with av.open(str(path), "w", container_options={"movflags": "faststart"}) as container:
        out: Any = container.add_stream("libx264", rate=24, options={"g": "12", "preset": "ultrafast"})
        out.height, out.width = frames.shape[1:3]
        out.pix_fmt = stream.get("pix_fmt", "yuv420p")
        if rotation:
            out.set_display_rotation(rotation)
        for i, image in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = (pts or range(len(frames)))[i], Fraction(1, 24)
            container.mux(out.encode(picture))
        container.mux(out.encode())
    return path


@pytest.mark.parametrize("shape", [(3, 24, 24), (3, 12, 12), (1, 7, 13), (2, 300, 302)])
def test_lossless_gives_back_every_bit(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    frames = noise(*shape)
    write_video(tmp_path / "clip.mkv", frames, fps=23.976)
    assert np.array_equal(read_video(tmp_path / "clip.mkv"), frames)
    info = probe(tmp_path / "clip.mkv")
    assert (info.frames, info.height, info.width, info.codec) == (*shape, "ffv1")
    assert info.fps == pytest.approx(23.976, abs=1e-3)
    assert os.listdir(tmp_path) == ["clip.mkv"]


def test_lossy_keeps_colours_and_is_read_as_it_was_meant(tmp_path: Path) -> None:
    frames = np.zeros((4, 64, 64, 3), np.uint8)
    frames[:] = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [190, 120, 50]])[:, None, None]
    write_video(tmp_path / "clip.mp4", frames, lossless=False)
    assert np.abs(read_video(tmp_path / "clip.mp4").astype(int) - frames).max() <= 4
    assert probe(tmp_path / "clip.mp4").codec == "h264"


@pytest.mark.parametrize(
    ("name", "frames", "lossless", "says"),
    [
        ("a.mp4", noise(1, 8, 8), True, "written as .mkv"),
        ("a.mkv", noise(1, 8, 8), False, "written as .mp4"),
        ("a.mp4", noise(1, 7, 8), False, "even sizes"),
        ("a.mkv", noise(1, 8, 8).astype(np.float32), True, "float32"),
        ("a.mkv", noise(1, 8, 8)[:0], True, r"\(0, 8, 8, 3\)"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(
    tmp_path: Path, name: str, frames: np.ndarray, lossless: bool, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        write_video(tmp_path / name, frames, lossless=lossless)
    assert not os.listdir(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.mkv"
    write_video(path, noise(2, 8, 8))

    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(av.VideoFrame, "from_ndarray", full)
    with pytest.raises(OSError, match="disk full"):
        write_video(path, noise(3, 8, 8))
    monkeypatch.undo()
    assert len(read_video(path)) == 2
    assert os.listdir(tmp_path) == ["clip.mkv"]


@pytest.mark.parametrize("share", [0.4, 0.7, 0.97])
def test_a_truncated_clip_of_ours_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "clip.mkv"
    write_video(path, noise(12, 32, 32))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(VideoError, match=r"clip\.mkv"):
        read_video(path)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_a_truncated_foreign_file_is_named(tmp_path: Path, name: str) -> None:
    path = encode(tmp_path / name, noise(60, 64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(VideoError, match=name.replace(".", r"\.")):
        read_video(path)


def test_a_clip_trimmed_by_an_edit_list_is_not_called_truncated(tmp_path: Path) -> None:
    for hidden in (5, 30):
        path = encode(tmp_path / "clip.mp4", noise(60, 64, 64), pts=[i - hidden for i in range(60)])
        assert len(read_video(path)) == 60 - hidden


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"no video" * 99, "not a video"),
        (b"#EXTM3U\n#EXTINF:1,\nx.mp4\n", "not a video"),
    ],
)
def test_what_is_not_a_video_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    for read in (read_video, probe):
        with pytest.raises(VideoError, match=rf"clip\.mp4.*{says}"):
            read(path)


def test_a_missing_file_and_one_without_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no such file"):
        read_video(tmp_path / "clip.mp4")
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=r"sound\.mp4: no video stream"):
        probe(path)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_is_applied(tmp_path: Path, rotation: int) -> None:
    frames = gradient(3, 32, 64)
    path = encode(tmp_path / "clip.mp4", frames, rotation=rotation)
    expected = np.rot90(frames, rotation // 90, axes=(1, 2))
    read = read_video(path)
    assert read.shape == expected.shape == (3, probe(path).height, probe(path).width, 3)
    assert np.abs(read.astype(int) - expected).mean() < 6


def test_ten_bits_variable_rate_and_odd_sizes_are_read(tmp_path: Path) -> None:
    ten = encode(tmp_path / "ten.mkv", gradient(4, 32, 48), pix_fmt="yuv420p10le")
    assert read_video(ten).shape == (4, 32, 48, 3)
    assert read_video(ten).dtype == np.uint8
    odd = encode(tmp_path / "odd.mkv", gradient(4, 31, 47), pix_fmt="yuv444p")
    assert read_video(odd).shape == (4, 31, 47, 3)
    for name in ("slow.mkv", "slow.mp4"):
        path = encode(tmp_path / name, noise(6, 32, 32), pts=[0, 1, 2, 50, 51, 90])
        assert len(read_video(path)) == probe(path).frames == 6
        assert [frame.time for frame in decode(path)][3] == pytest.approx(50 / 24, abs=2e-3)


def test_frames_are_reduced_and_thinned_out_but_never_enlarged_or_repeated(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    frames = gradient(24, 60, 100)
    write_video(path, frames, fps=24)
    small = list(decode(path, short_side=30, max_fps=8))
    assert [frame.index for frame in small] == list(range(0, 24, 3))
    assert small[0].image.shape == (30, 50, 3)
    area = frames[::3].reshape(8, 30, 2, 50, 2, 3).mean((2, 4))
    assert np.abs(np.stack([frame.image for frame in small]) - area).max() <= 2
    assert next(decode(path, short_side=600)).image.shape == (60, 100, 3)
    assert len(list(decode(path, max_fps=60))) == len(list(iter_frames(path))) == 24


@settings(max_examples=30, deadline=None)
@given(arrays(np.uint8, (2, 3, 4, 5, 3)))
def test_uint8_to_float_and_back_is_the_identity(frames: np.ndarray) -> None:
    video = to_float(frames)
    assert video.shape == (2, 3, 3, 4, 5)
    assert -1 <= video.min() <= video.max() <= 1
    assert np.array_equal(to_uint8(video), frames)
    assert np.array_equal(to_uint8(video[0]), frames[0])


def test_tensors_are_taken_and_nonsense_is_not() -> None:
    import torch

    video = torch.full((3, 1, 2, 2), 1.5, dtype=torch.bfloat16, requires_grad=True)
    assert (to_uint8(video) == 255).all()
    with pytest.raises(ValueError, match="not finite"):
        to_uint8(np.full((3, 1, 2, 2), np.nan))
    with pytest.raises(ValueError, match=r"\[1, 3, 2, 2\]"):
        to_uint8(np.zeros((1, 3, 2, 2)))
