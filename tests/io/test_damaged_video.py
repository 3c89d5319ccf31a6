"""pw.io.video on files that are damaged, mirrored, or claim what is not so."""

from __future__ import annotations

import itertools
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from odd_videos import cut, encode, moving

from pw.io.container_ends import outer_parts
from pw.io.video import VideoError, decode, probe, read_video, write_video

RIGHT_ANGLES = [
    m for m in itertools.product((-1, 0, 1), repeat=4) if abs(m[0] * m[3] - m[1] * m[2]) == 1 and sum(map(abs, m)) == 2
]


def quarters() -> np.ndarray:
    """Four fields of different colours, uint8 [3, 32, 64, 3]."""
    frames = np.zeros((3, 32, 64, 3), np.uint8)
    frames[:, :16, :32], frames[:, :16, 32:], frames[:, 16:, :32] = (200, 60, 60), (60, 200, 60), (60, 60, 200)
    return frames


def shown(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Each pixel (x, y) moved to (a x + c y, b x + d y), as ISO/IEC 14496-12 defines the matrix of a track."""
    a, b, c, d = matrix
    height, width = image.shape[:2]
    places = {(a * x + c * y, b * x + d * y): image[y, x] for y in range(height) for x in range(width)}
    left, top = min(x for x, _ in places), min(y for _, y in places)
    result = np.empty((height, width, 3) if a else (width, height, 3), np.uint8)
    for (x, y), pixel in places.items():
        result[y - top, x - left] = pixel
    return result


def with_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """quarters() with a display matrix: in the bytes of an .mp4's track header, remuxed to .mkv, or in H.264 itself."""
    a, b, c, d = (65536 * value for value in matrix)
    source = encode(path.with_suffix(".mp4"), quarters())
    content = source.read_bytes()
    place = content.index(b"tkhd") + 44
    values = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    source.write_bytes(content[:place] + values + content[place + 36 :])
    if path.suffix == ".mp4":
        return source
    with av.open(str(source)) as container, av.open(str(path), "w") as copy:
        stream = copy.add_stream_from_template(container.streams.video[0])
        stream.set_display_matrix(np.frombuffer(values, ">i4").tolist())
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    return path


def test_there_are_eight_right_angles() -> None:
    assert len(RIGHT_ANGLES) == 8


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("matrix", RIGHT_ANGLES)
def test_every_turn_and_mirror_is_shown_as_the_matrix_says(
    tmp_path: Path, matrix: tuple[int, int, int, int], suffix: str
) -> None:
    path = with_matrix(tmp_path / f"a{suffix}", matrix)
    expected, frames = shown(quarters()[0], matrix), read_video(path)
    assert frames.shape == (3, *expected.shape) == (3, probe(path).height, probe(path).width, 3)
    assert np.abs(frames[0].astype(int) - expected).mean() < 8
    small = next(decode(path, short_side=16)).image
    assert np.abs(small[4:-4, 4:-4].astype(int) - expected[::2, ::2][4:-4, 4:-4]).mean() < 12


def test_a_matrix_of_zeros_changes_nothing(tmp_path: Path) -> None:
    path = with_matrix(tmp_path / "a.mp4", (0, 0, 0, 0))
    assert read_video(path).shape == (3, probe(path).height, probe(path).width, 3) == (3, 32, 64, 3)


def test_an_orientation_in_the_pictures_of_h264_counts_too(tmp_path: Path) -> None:
    source = encode(tmp_path / "a.mp4", quarters())
    path = tmp_path / "a.avi"
    with av.open(str(source)) as container, av.open(str(path), "w") as copy:
        video = container.streams.video[0]
        stream: Any = copy.add_stream_from_template(video)
        bits = av.BitStreamFilterContext("h264_metadata=display_orientation=insert:rotate=90:flip=horizontal", video)
        packets = [packet for original in container.demux(video) if original.size for packet in bits.filter(original)]
        for packet in packets:
            packet.stream = stream
            copy.mux(packet)
    expected = np.rot90(quarters()[0, :, ::-1])  # H.264, D.2.21: flipped, then turned anticlockwise
    assert read_video(path).shape == (3, probe(path).height, probe(path).width, 3) == (3, 64, 32, 3)
    assert np.abs(read_video(path)[0].astype(int) - expected).mean() < 8


def flipped(path: Path, bit: int) -> Path:
    """A copy of a file with one other bit."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    copy = path.with_name(f"flipped{path.suffix}")
    copy.write_bytes(content)
    return copy


def packet_bits(path: Path, count: int) -> list[int]:
    """Random bits of a file's packets."""
    with av.open(str(path)) as container:
        spans = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    bytes_of_packets = np.concatenate([np.arange(start, start + size) for start, size in spans])
    generator = np.random.default_rng(0)
    return (8 * generator.choice(bytes_of_packets, count) + generator.integers(0, 8, count)).tolist()


def test_no_flipped_bit_of_our_lossless_clips_changes_a_pixel_without_a_word(tmp_path: Path) -> None:
    path, frames = tmp_path / "a.mkv", moving(3, 12, 16)
    write_video(path, frames)
    size = path.read_bytes().index(b"\xb0\x81\x10\xba\x81\x0c")  # the elements PixelWidth and PixelHeight
    places = [*packet_bits(path, 60), *np.random.default_rng(1).integers(0, 8 * path.stat().st_size, 60)]
    refused = unchanged = 0
    bits = [*places, *range(8 * size, 8 * size + 48)]
    for bit in bits:
        copy = flipped(path, int(bit))
        try:
            assert np.array_equal(read_video(copy), frames)
        except VideoError as error:
            refused += str(error).startswith(str(copy))
        else:
            unchanged += 1
    assert refused + unchanged == len(bits)
    assert refused > 100


def test_checksums_of_other_peoples_ffv1_are_compared_where_there_are_any(tmp_path: Path) -> None:
    for slicecrc in (True, False):
        path, frames = tmp_path / f"{slicecrc}.mkv", moving(4, 32, 48)
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("ffv1", rate=24, options={"slicecrc": str(int(slicecrc)), "level": "3"})
            stream.height, stream.width, stream.pix_fmt = 32, 48, "bgr0"
            for image in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        assert np.array_equal(read_video(path), frames)
        if slicecrc:
            for bit in packet_bits(path, 20):
                with pytest.raises(VideoError, match=r"flipped\.mkv"):
                    read_video(flipped(path, bit))


def gradient(frames: int, height: int, width: int) -> np.ndarray:
    t, y, x = np.ogrid[:frames, :height, :width]
    return np.stack([2 * y + x + 3 * t, 2 * x + 5 * t + 0 * y, y + x * t], -1).astype(np.uint8)


def test_what_ffmpeg_would_paint_over_is_damage(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", gradient(12, 64, 96))
    assert len(read_video(path)) == 12
    named = painted_over = 0
    for bit in packet_bits(path, 40):
        copy = flipped(path, bit)
        try:
            with av.open(str(copy)) as container:
                is_painted_over = any([picture.is_corrupt for picture in container.decode(video=0)])
        except av.FFmpegError:
            continue
        painted_over += is_painted_over
        try:
            read_video(copy)
        except VideoError as error:
            named += "flipped.mp4: damaged" in str(error)
        else:
            assert not is_painted_over
    assert named >= painted_over > 5


def test_a_held_picture_of_an_avi_is_no_missing_one(tmp_path: Path) -> None:
    for codec, pts in (("mpeg4", [0, 1, 2, 4, 5, 6]), ("libx264", [0, 1, 2, 4, 5, 6]), ("mpeg4", [0, 3, 4, 5, 6, 9])):
        path = encode(tmp_path / "held.avi", moving(6), pts=pts, codec_name=codec)
        assert len(read_video(path)) == probe(path).frames == 6
        assert "hold the one before" in probe(path).note
    assert not probe(encode(tmp_path / "steady.avi", moving(6), codec_name="mpeg4")).note
    with pytest.raises(VideoError, match=r"cut\.avi: .*truncated"):
        read_video(cut(encode(tmp_path / "cut.avi", moving(24), codec_name="mpeg4"), 0.7))


def test_a_last_picture_that_is_held_is_no_missing_end(tmp_path: Path) -> None:
    source, path = encode(tmp_path / "a.mp4", moving(6), codec_name="mpeg4"), tmp_path / "a.mkv"
    with av.open(str(source)) as container, av.open(str(path), "w") as copy:
        stream = copy.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                packet.duration = (48 if packet.pts == 5 * 512 else 1) * 512
                packet.stream = stream
                copy.mux(packet)
    assert len(read_video(path)) == 6
    assert read_with_tag(path, "DURATION") == "00:00:02.208000000"


def read_with_tag(path: Path, tag: str) -> str:
    with av.open(str(path)) as container:
        return container.streams.video[0].metadata[tag]


@pytest.mark.parametrize(
    ("box", "offset", "message"),
    [
        ("stts", 8, "holds no frames"),
        ("mdhd", 16, "shows 1 of the 12 frames"),
        ("stsz", 12, "holds no frames"),
    ],
)
def test_tables_of_an_mp4_that_hide_pictures_are_named(tmp_path: Path, box: str, offset: int, message: str) -> None:
    path = encode(tmp_path / "a.mp4", moving(12))
    content = bytearray(path.read_bytes())
    place = content.index(box.encode()) + offset
    content[place : place + 4] = bytes(4)
    path.write_bytes(content)
    try:
        note = probe(path).note
    except VideoError as error:
        note = str(error)
    assert message in note


@pytest.mark.parametrize("claim", ["99999999999999999999", "9" * 5000, "100000", "many"])
def test_a_claim_of_a_header_is_no_number_of_frames(tmp_path: Path, claim: str) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["PW_FRAMES"] = claim
        stream: Any = container.add_stream("ffv1", rate=24)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "bgr0"
        for image in moving(3, 32, 48):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    for read in (read_video, probe):
        with pytest.raises(VideoError, match=rf"a\.mkv: .*{claim[:20]}.* frames"):
            read(path)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("color_range", [0, 1, 2])
def test_greys_of_either_range_are_the_greys_that_were_meant(tmp_path: Path, codec: str, color_range: int) -> None:
    path, codes = tmp_path / "a.mkv", np.arange(16, 236, 3, dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=24, options={"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = 64, 80, "gray"
        stream.codec_context.color_range = color_range
        picture = av.VideoFrame(80, 64, "gray")
        rows = np.zeros((64, picture.planes[0].line_size), np.uint8)
        rows[:, : len(codes)] = codes
        picture.planes[0].update(rows.tobytes())
        picture.color_range = color_range
        container.mux(stream.encode(picture))
        container.mux(stream.encode())
    expected = codes if color_range == 2 else (codes - 16.0) * 255 / 219
    frame = read_video(path)[0, 32, : len(codes)]
    assert np.abs(frame - expected[:, None]).max() <= 4


def test_an_interlaced_clip_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"x264-params": "tff=1"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for image in moving():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    assert "interlaced" in probe(path).note
    assert not probe(encode(tmp_path / "b.mkv", moving())).note


@pytest.mark.parametrize("container", ["mpegts", "flv", "asf"])
def test_another_container_under_our_name_is_called_what_it_is(tmp_path: Path, container: str) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", format=container) as output:
        stream: Any = output.add_stream("mpeg4" if container == "asf" else "libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for i, image in enumerate(moving()):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = i, Fraction(1, 24)
            output.mux(stream.encode(picture))
        output.mux(stream.encode())
    name = {"mpegts": "MPEG transport stream", "flv": "Flash", "asf": "Windows Media"}[container]
    with pytest.raises(VideoError, match=rf"a\.mp4: is .*{name}.*which is not read"):
        read_video(path)


LACK_OF_MEMORY = """
import resource, sys
from pw.io.video import decode
used = 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize")))
for megabytes in (1, 6, 10, 15, 20, 25, 30):
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), -1))
    try:
        for path in sys.argv[1:]:
            print(len(list(decode(path))))
    except MemoryError as error:
        print(error)
"""


def test_lack_of_memory_is_not_called_damage(tmp_path: Path) -> None:
    path = encode(tmp_path / "large.mp4", gradient(6, 720, 1280))
    command = [sys.executable, "-c", LACK_OF_MEMORY, path]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 7
    assert lines[0].startswith(f"{path}: not enough memory to decode it")
    assert {line for line in lines if not line.startswith(f"{path}: not enough memory")} <= {"6"}


FRAGMENTS = {"movflags": "frag_every_frame+empty_moov+default_base_moof"}


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mp4", {"movflags": "faststart"}), ("b.mp4", FRAGMENTS), ("c.mkv", {}), ("d.avi", {}), ("e.mov", {})],
)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_file_that_ends_early_is_named_whatever_its_pictures_say(
    tmp_path: Path, name: str, options: dict[str, str], share: float
) -> None:
    path = tmp_path / name
    with av.open(str(path), "w", container_options=options) as container:
        stream: Any = container.add_stream("mpeg4" if name.endswith("avi") else "libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for image in moving(24):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    assert len(read_video(path)) == 24
    for read in (read_video, probe):
        content = path.read_bytes()
        length = int(len(content) * share)  # of which the encoder's threads decide what is there
        between = any(end == length for _, end in outer_parts(path))  # what is cut between fragments is a recording
        path.write_bytes(content[: length - between])
        with pytest.raises(VideoError, match=rf"{name}: truncated, [0-9,]+ bytes? (is|are) missing at its end"):
            read(path)


@pytest.mark.parametrize("left", [1, 4, 7])
def test_a_cut_within_the_head_of_a_fragment_is_named(tmp_path: Path, left: int) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", container_options=FRAGMENTS) as container:
        stream: Any = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for image in moving(24):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    ends = [end for kind, end in outer_parts(path) if kind == b"mdat"]
    path.write_bytes(path.read_bytes()[: ends[10] + left])
    with pytest.raises(VideoError, match=rf"truncated, {8 - left} bytes? (is|are) missing at its end"):
        probe(path)


def test_a_recording_whose_length_was_never_written_is_read(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", moving(6))
    content = path.read_bytes()
    place = content.index(b"\x18\x53\x80\x67") + 4
    path.write_bytes(content[:place] + b"\x01" + b"\xff" * 7 + content[place + 8 :])
    assert len(read_video(path)) == probe(path).frames == 6


def test_what_is_not_shown_is_said(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", moving(6))
    path.write_bytes(path.read_bytes() * 2)
    assert len(read_video(path)) == 6
    assert "only the first is read" in probe(path).note
    clear = encode(tmp_path / "b.mkv", moving(6), codec_name="ffv1", pix_fmt="bgra")
    assert "transparency" in probe(clear).note
    assert not probe(encode(tmp_path / "c.mkv", moving(6), codec_name="ffv1", pix_fmt="bgr0")).note
    with av.open(str(tmp_path / "d.mkv"), "w") as container:
        for _ in range(2):
            stream: Any = container.add_stream("ffv1", rate=24)
            stream.height, stream.width, stream.pix_fmt = 64, 96, "bgr0"
        for stream in container.streams.video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moving(1)[0], format="rgb24")))
            container.mux(stream.encode())
    assert "2 video streams" in probe(tmp_path / "d.mkv").note


def test_pictures_out_of_order_are_named(tmp_path: Path) -> None:
    path, frames = tmp_path / "a.mkv", moving(4)
    with av.open(str(path), "w") as container:
        out: Any = container.add_stream("ffv1", rate=24)
        out.height, out.width, out.pix_fmt = 64, 96, "bgr0"
        packets = [p for image in frames for p in out.encode(av.VideoFrame.from_ndarray(image, format="rgb24"))]
        for index, (packet, shown_as) in enumerate(zip([*packets, *out.encode()], (0, 2, 1, 3), strict=True)):
            packet.dts, packet.pts = index - 2, shown_as
            container.mux(packet)
    with pytest.raises(VideoError, match=r"a\.mkv: its pictures are out of order at 0\.04 s"):
        read_video(path)
