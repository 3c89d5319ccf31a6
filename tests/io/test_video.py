"""pw.io.video: what is written comes back, and what is broken says so by name."""

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

from pw.io.hdr import HLG, PQ, light_to_pq, pq_to_light
from pw.io.video import (
    VideoError,
    decode,
    iter_frames,
    probe,
    read_video,
    to_float,
    to_uint8,
    write_video,
)


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
    ("name", "frames", "lossless", "message"),
    [
        ("a.mp4", noise(1, 8, 8), True, "written as .mkv"),
        ("a.mkv", noise(1, 8, 8), False, "written as .mp4"),
        ("a.mp4", noise(1, 7, 8), False, "even sizes"),
        ("a.mkv", noise(1, 8, 8).astype(np.float32), True, "float32"),
        ("a.mkv", noise(1, 8, 8)[:0], True, r"\(0, 8, 8, 3\)"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(
    tmp_path: Path, name: str, frames: np.ndarray, lossless: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
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
    ("content", "message"),
    [
        (b"", "empty"),
        (b"no video" * 99, "not a video"),
        (b"#EXTM3U\n#EXTINF:1,\nx.mp4\n", "not a video"),
    ],
)
def test_what_is_not_a_video_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    for read in (read_video, probe):
        with pytest.raises(VideoError, match=rf"clip\.mp4.*{message}"):
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


def encode_10_bit(
    path: Path, ycc: np.ndarray, transfer: int, primaries: int = 9, codec: str = "ffv1", x264: str = ""
) -> Path:
    """One picture of columns: 10-bit limited-range Y, Cb, Cr `[W, 3]`, each column 2 px wide and 16 high, twice."""
    with av.open(str(path), "w") as container:
        options = {"qp": "0"} | ({"x264-params": x264} if x264 else {})
        out: Any = container.add_stream(codec, rate=24, options=options)
        out.height, out.width, out.pix_fmt = 16, 2 * len(ycc), "yuv420p10le"
        context = out.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 9, primaries, transfer, 1
        for i in range(2):
            picture = av.VideoFrame(out.width, out.height, "yuv420p10le")
            for plane, values in zip(picture.planes, (np.repeat(ycc[:, 0], 2), ycc[:, 1], ycc[:, 2]), strict=True):
                rows = np.zeros((plane.height, plane.line_size // 2), np.uint16)
                rows[:, : plane.width] = values
                plane.update(rows.tobytes())
            picture.colorspace, picture.color_primaries, picture.color_trc, picture.color_range = (
                9,
                primaries,
                transfer,
                1,
            )
            picture.pts, picture.time_base = i, Fraction(1, 24)
            container.mux(out.encode(picture))
        container.mux(out.encode())
    return path


def ycc_2020(signal: np.ndarray) -> np.ndarray:
    """R'G'B' in [0, 1] `[W, 3]` -> 10-bit limited-range Y'CbCr, BT.2020 non-constant luminance."""
    y = signal @ (0.2627, 0.6780, 0.0593)
    cb, cr = (signal[:, 2] - y) / 1.8814, (signal[:, 0] - y) / 1.4746
    return np.rint(np.stack([64 + 876 * y, 512 + 896 * cb, 512 + 896 * cr], -1)).astype(np.uint16)


def greys(signal: np.ndarray) -> np.ndarray:
    return ycc_2020(np.repeat(signal[:, None], 3, 1))


def columns(path: Path) -> np.ndarray:
    """`[W, 3]`: what each column was decoded to, int."""
    (first, second) = decode(path)
    assert np.array_equal(first.image, second.image)
    assert (first.image == first.image[:1]).all()
    return first.image[0, ::2].astype(int)


def test_pq_is_what_st_2084_says() -> None:
    # 10-bit full-scale signals that ITU-R BT.2408 lists (table 1): 38 % is 26 nit, 58 % is 203 nit, 75 % is 1000 nit
    assert light_to_pq(np.array([26, 203, 1000, 10_000])) == pytest.approx([0.38, 0.58, 0.75, 1], abs=2e-3)
    light = np.array([0.01, 1, 100, 203, 4000])
    assert pq_to_light(light_to_pq(light)) == pytest.approx(light, rel=1e-9)
    assert pq_to_light(np.array(0.5)) == pytest.approx(92.2457, rel=1e-5)


# Below the knee, 88 nit: 255 (nit / 203)^(1 / 2.4). 26 nit, a grey card: 255 (0.12808)^0.41667 = 108.3.
# 203 nit: signals relative to PQ(1000) = 0.75183 are E1 = 0.77237, knee = 0.65856, so T = 1/3 and, by the Hermite
# spline, E2 = 20/27 0.65856 + 4/27 0.34144 + 7/27 0.77237 = 0.73865; 0.55534 in PQ is 159.0 nit: 255 (0.7835)^0.41667
NITS = {0: 0, 1: 27.9, 10: 72.7, 26: 108.3, 50: 142.2, 100: 189.3, 203: 230.3, 1000: 255, 4000: 255, 10_000: 255}


@pytest.mark.parametrize(("codec", "name"), [("ffv1", "a.mkv"), ("libx264", "a.mp4")])
def test_a_pq_clip_decodes_to_what_the_standards_say(tmp_path: Path, codec: str, name: str) -> None:
    signal = light_to_pq(np.array(list(NITS), float))
    got = columns(encode_10_bit(tmp_path / name, greys(signal), PQ, codec=codec))
    assert (np.ptp(got, axis=1) == 0).all()
    # a 10-bit step is up to 1.3 of 255 here
    assert got[:, 0] == pytest.approx(list(NITS.values()), abs=1.3)


DISPLAY = "mastering-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L({}0000,50)"


@pytest.mark.parametrize(
    ("x264", "peak"),
    [
        ("", 1000),
        ("cll=0,0", 1000),  # 0 is "unknown"
        ("cll=2000,300", 2000),
        (DISPLAY.format(4000), 4000),
        (DISPLAY.format(4000) + ":cll=3200,400", 3200),
        (DISPLAY.format(600) + ":cll=9999,400", 600),
        ("cll=20,10", 400),
        ("cll=60000,400", 10_000),
    ],
)
def test_white_is_the_peak_that_the_file_says(tmp_path: Path, x264: str, peak: int) -> None:
    path = tmp_path / "a.mkv"
    light = np.array([26, 0.2 * peak, 0.4 * peak, peak, *[min(2 * peak, 10_000)] * 4])
    encode_10_bit(path, greys(light_to_pq(light)), PQ, codec="libx264", x264=x264)
    assert probe(path).peak == peak
    got = columns(path)[:, 0]
    assert (got[3:] == 255).all()
    assert got[1] < got[2] < 255
    if peak <= 2000:  # 26 nit is below the knee
        assert got[0] == pytest.approx(NITS[26], abs=1.3)


def test_a_roll_off_from_4000_is_what_bt_2390_says(tmp_path: Path) -> None:
    # PQ(4000) = 0.90257, PQ(1000) = 0.75183, PQ(203) = 0.58069: E1 = 0.83299, max = 0.64337, knee = 0.46506, so
    # T = 0.68779 and E2 = 0.23157 0.46506 + 0.06704 0.53494 + 0.76843 0.64337 = 0.63794; 0.57579 in PQ is 193.7 nit
    light = np.array([30.0, 1000, 4000, 4000, 4000, 4000, 4000, 4000])
    path = encode_10_bit(tmp_path / "a.mkv", greys(light_to_pq(light)), PQ, codec="libx264", x264=DISPLAY.format(4000))
    got = columns(path)
    assert got[:3, 0] == pytest.approx([255 * (30 / 203) ** (1 / 2.4), 255 * (193.7 / 203) ** (1 / 2.4), 255], abs=1.3)


def test_sdr_and_hlg_have_the_peak_they_always_had(tmp_path: Path) -> None:
    for transfer, peak in ((1, 0), (HLG, 1000)):
        path, signal = tmp_path / f"{transfer}.mkv", np.linspace(0, 1, 8)
        lossless = encode_10_bit(path, greys(signal), transfer, codec="libx264", x264="cll=4000,400")
        assert probe(lossless).peak == peak
        assert np.array_equal(columns(lossless), columns(encode_10_bit(path, greys(signal), transfer)))


def test_every_grey_stays_grey_and_brighter_is_never_darker(tmp_path: Path) -> None:
    for transfer in (PQ, HLG):
        y = np.arange(64, 941, dtype=np.uint16)
        got = columns(encode_10_bit(tmp_path / "a.mkv", np.stack([y, y * 0 + 512, y * 0 + 512], -1), transfer))
        assert (np.ptp(got, axis=1) == 0).all()
        assert (np.diff(got[:, 0]) >= 0).all()
        assert np.diff(got[:, 0]).max() <= 3
        assert (got[0, 0], got[-1, 0]) == (0, 255)


def test_hlg_and_pq_pictures_of_the_same_light_look_the_same(tmp_path: Path) -> None:
    # BT.2408, table 1: HLG at 38 % is the grey card, 26 nit, at 75 % reference white, 203 nit, at 100 % 1000 nit
    got = columns(encode_10_bit(tmp_path / "a.mkv", greys(np.array([0.0, 0.38, 0.75, 1.0])), HLG))
    assert got[:, 0] == pytest.approx([0, NITS[26], NITS[203], 255], abs=1.5)


def test_a_colour_that_bt709_has_too_keeps_its_light(tmp_path: Path) -> None:
    narrow = np.array(
        [[60.0, 30.0, 15.0], [5.0, 40.0, 20.0], [8.0, 8.0, 70.0]]
    )  # nit, BT.709 primaries, below the knee
    to_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087
    signal = light_to_pq(narrow @ to_2020.T)
    got = columns(encode_10_bit(tmp_path / "wide.mkv", ycc_2020(signal), PQ))
    assert got == pytest.approx(255 * (narrow / 203) ** (1 / 2.4), abs=4)  # 10-bit chroma, in the shadows
    bt709 = columns(encode_10_bit(tmp_path / "narrow.mkv", ycc_2020(light_to_pq(narrow)), PQ, primaries=1))
    assert bt709 == pytest.approx(255 * (narrow / 203) ** (1 / 2.4), abs=4)


def test_what_lies_outside_bt709_is_clipped_to_it(tmp_path: Path) -> None:
    got = columns(encode_10_bit(tmp_path / "a.mkv", ycc_2020(light_to_pq(np.full((8, 3), [0.0, 80.0, 0.0]))), PQ))
    assert (got[:, [0, 2]] == 0).all()
    assert (got[:, 1] > 150).all()


@pytest.mark.parametrize("transfer", [1, 14, 2])
def test_sdr_is_converted_as_it_always_was(tmp_path: Path, transfer: int) -> None:
    generator = np.random.default_rng(0)
    path = encode_10_bit(tmp_path / "a.mkv", generator.integers(64, 941, (40, 3)).astype(np.uint16), transfer)
    with av.open(str(path)) as container:
        pictures = [picture.reformat(format="rgb24").to_ndarray() for picture in container.decode(video=0)]
    assert np.array_equal(np.stack(pictures), read_video(path))


def test_hdr_is_reduced_as_sdr_is(tmp_path: Path) -> None:
    path = encode_10_bit(tmp_path / "a.mkv", greys(np.full(32, light_to_pq(26.0))), PQ)
    (small, _) = decode(path, short_side=8)
    assert small.image.shape == (8, 32, 3)
    assert np.unique(small.image).tolist() == [108]
