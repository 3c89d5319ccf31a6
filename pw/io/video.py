"""Writes, reads and probes video files (PyAV, which includes FFmpeg).

Frames are uint8 RGB `[F, H, W, 3]`; the networks' videos are float `[3, F, H, W]` in [-1, 1], see `to_uint8` and
`to_float`. Lossless is ffv1 in Matroska: a metric reads exactly the frames that the model made. Only local files in
known containers are opened, so that a playlist or a URL in a file is not followed.

HDR is tone-mapped to SDR, see `pw.io.hdr`.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.stream import Disposition
from numpy.typing import NDArray

from pw.io.audio import AudioCopy
from pw.io.container_ends import missing_bytes, outer_parts
from pw.io.ffv1 import has_right_checksums
from pw.io.files import replacing
from pw.io.hdr import HLG, PEAK, PQ, peak_of, tone_map
from pw.io.video_files import SAFE_INPUT, foreign_container

Frames = NDArray[np.uint8]
Matrix = tuple[int, int, int, int]  # a, b, c, d of a display matrix

# Pixels of a picture below which one thread is faster: 3 frames of 24x24 take 0.4 ms, a thread pool milliseconds.
ONE_THREAD_BELOW = 256 * 256
# Matroska has no frame count of its own; DURATION alone finds a missing frame only when the rate is steady.
COUNT_TAG = "PW_FRAMES"
SIZE_TAG = "PW_SIZE"  # FFV1's checksums do not cover the size, which the container holds
PICTURES_IN_DECODER = 32  # at most, roughly
# Without it FFmpeg paints over damage and says nothing.
DETECT_DAMAGE = {"err_detect": "crccheck+bitstream+buffer+explode"}
LIMITED_RANGE = 1  # FFmpeg's
NOT_CODED = 19  # bytes: an MPEG-4 packet up to this size may repeat the last picture (FFmpeg's MAX_NVOP_SIZE)


class VideoError(ValueError):
    """A file is not a complete, readable video; the message names the file and the reason."""


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file: frames (counted packets), size in px as displayed, rate in 1/s.

    peak  luminance in cd/m2 that becomes white in an HDR clip; 0 for SDR
    note  what the frames do not show: hidden or held pictures, other streams, transparency, interlacing; "" for nothing
    """

    frames: int
    height: int
    width: int
    fps: float
    codec: str
    peak: float = 0.0
    note: str = ""


class Frame(NamedTuple):
    """One decoded frame: its number in the file, its time in seconds, uint8 `[H, W, 3]`."""

    index: int
    time: float
    image: Frames


def write_video(
    path: str | os.PathLike[str],
    frames: Frames,
    fps: float = 24.0,
    lossless: bool = True,
    crf: int = 17,
    is_abandoned: Callable[[], bool] = lambda: False,
) -> None:
    """Write uint8 `[F, H, W, 3]` as ffv1 .mkv (bit-exact) or libx264 4:2:0 BT.709 .mp4 (`crf` 0 to 51).

    The write is atomic. Raises InterruptedError when `is_abandoned` says so.
    Raises ValueError: wrong shape or dtype, wrong file extension, odd sizes with `lossless=False`.
    """
    path = Path(path)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be uint8 [F, H, W, 3] (see to_uint8), not {frames.dtype} {frames.shape}")
    if path.suffix != (suffix := ".mkv" if lossless else ".mp4"):
        raise ValueError(f"lossless={lossless} is written as {suffix}, not as {path.name!r}")
    if not lossless and (frames.shape[1] % 2 or frames.shape[2] % 2):
        raise ValueError(f"4:2:0 needs even sizes, not {frames.shape[1:3]}: use lossless=True")
    if not 0 < fps <= 1000:
        raise ValueError(f"fps must be in (0, 1000], not {fps}")
    write_frames(path, frames, frames.shape, fps, lossless, crf, is_abandoned)


def write_frames(
    path: Path,
    frames: Iterable[Frames],
    shape: tuple[int, ...],
    fps: float,
    lossless: bool,
    crf: int,
    is_abandoned: Callable[[], bool],
    sound: Path | None = None,
) -> None:
    """`write_video` of frames that come one by one: `shape` is (F, H, W, 3).

    sound  a video whose first sound track is copied, from its first picture on, to the end of the frames
    """
    with replacing(path) as partial:
        kept = (image for image in frames if not is_abandoned())
        _encode(partial, kept, shape, Fraction(fps).limit_denominator(1001), lossless, crf, sound)
        if is_abandoned():
            raise InterruptedError(f"{path}: was not finished")


def frames_at(path: str | os.PathLike[str], fps: float, count: int) -> Iterator[Frames]:
    """`count` frames, uint8 `[H, W, 3]`, at the times n / fps after the first: each the nearest of the file, the
    earlier of two. The last one is repeated at the end. Raises as `decode`."""
    number, first, before = 0, None, None
    for frame in decode(path):
        first = frame.time if first is None else first
        while before is not None and number < count and first + number / fps <= (before.time + frame.time) / 2:
            yield before.image
            number += 1
        before = frame
    assert before is not None
    for _ in range(number, count):
        yield before.image


def read_video(path: str | os.PathLike[str]) -> Frames:
    """All frames, uint8 `[F, H, W, 3]`. Raises as `decode`."""
    with _naming_memory(path):
        return np.stack(list(iter_frames(path)))


def iter_frames(path: str | os.PathLike[str]) -> Iterator[Frames]:
    """The frames one by one, uint8 `[H, W, 3]`; raises as `decode`, for a truncated file after its last frame."""
    return (frame.image for frame in decode(path))


def decode(
    path: str | os.PathLike[str], short_side: int | None = None, max_fps: float | None = None
) -> Iterator[Frame]:
    """Frames with their times, as displayed (turned and mirrored), optionally resized and subsampled.

    `short_side` px: resized down to it by area averaging, never up. `max_fps`: frames are dropped to reach this rate,
    never repeated. 10-bit video is rounded to 8 bits, HDR is tone-mapped (`pw.io.hdr`) after resizing; non-square
    pixels stay as stored. Raises VideoError: not a video, damaged, truncated, or the picture size changes; MemoryError
    with the file's name.
    """
    with _open(path) as (container, stream):
        times = _FrameTimes(float(stream.average_rate or 24), max_fps)
        declared_frames, shape = _declared_frames(path, container, stream), None
        peak: float | None = None
        matrix: Matrix | None = None
        for index, picture in enumerate(_pictures(path, container, stream)):
            time = picture.time if picture.time is not None else index / times.rate
            if time < times.last and container.format.name != "avi":  # whose times are guessed
                raise VideoError(f"{path}: its pictures are out of order at {time:.2f} s; encode it again")
            if not times.keeps(time, float((picture.duration or 0) * (picture.time_base or 0))):
                continue
            peak = peak_of(picture) if peak is None else peak
            matrix = _display_matrix(picture) or matrix  # H.264 may say it of the first picture only
            image = np.ascontiguousarray(_upright(_rgb(picture, short_side, peak), matrix))
            if image.shape != (shape := shape or image.shape):
                raise VideoError(f"{path}: the picture changes from {shape[:2]} to {image.shape[:2]} midway")
            yield Frame(index, time, image)
        _check_whole(path, stream, declared_frames, times)


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Size, rate, codec and number of frames; decodes one frame only. Raises as `decode`."""
    with _open(path) as (container, stream):
        declared_frames = _declared_frames(path, container, stream)
        picture = next(_pictures(path, container, stream), None)
        if picture is None:
            raise VideoError(f"{path}: holds no frames")
        height, width = _upright(np.broadcast_to(0, (picture.height, picture.width)), _display_matrix(picture)).shape
        codec, fps, peak = stream.codec_context.name, float(stream.average_rate or 24), peak_of(picture)
        note = _note(container, stream, picture)
        frames = declared_frames if _has_index(container) else None
    if frames is None:  # a tag may claim anything
        with _open(path) as (container, stream):
            frames = sum(packet.size > 0 for packet in container.demux(stream))
        if declared_frames is not None and frames < declared_frames:
            raise VideoError(f"{path}: truncated, {frames} of the {declared_frames} frames it declares")
    return VideoInfo(frames, height, width, fps, codec, peak, note)


def to_uint8(video: Any) -> Frames:
    """Float `[..., 3, F, H, W]` in [-1, 1] (numpy, or torch on any device) -> uint8 `[..., F, H, W, 3]`.

    Clipped to [-1, 1], then (x + 1) * 127.5 rounded to the nearest, halves to even: `to_uint8(to_float(u)) == u`.
    Raises ValueError: no channel axis of 3, or values that are not finite.
    """
    if hasattr(video, "detach"):
        video = video.detach().float().cpu().numpy()
    video = np.asarray(video, dtype=np.float32)
    if video.ndim < 4 or video.shape[-4] != 3:
        raise ValueError(f"a video is [3, F, H, W] or [B, 3, F, H, W], not {list(video.shape)}")
    frames = np.empty((*video.shape[:-4], *video.shape[-3:], 3), np.uint8)
    invalid = 0
    for number in range(video.shape[-3]):  # one at a time: a clip at 2K has 5.4 GB
        picture = video[..., number, :, :]
        invalid += picture.size - np.count_nonzero(np.isfinite(picture))
        if not invalid:
            frames[..., number, :, :, :] = np.moveaxis(np.rint((np.clip(picture, -1, 1) + 1) * 127.5), -3, -1)
    if invalid:
        raise ValueError(f"the video holds {invalid} values that are not finite")
    return frames


def to_float(frames: Frames) -> NDArray[np.float32]:
    """uint8 `[..., F, H, W, 3]` -> float32 `[..., 3, F, H, W]` in [-1, 1]: u / 127.5 - 1."""
    video = np.moveaxis(frames, -1, -4).astype(np.float32)
    video /= np.float32(127.5)  # in place: a clip at 2K has 5.4 GB
    video -= 1
    return video


def _encode(
    path: Path,
    frames: Iterable[Frames],
    shape: tuple[int, ...],
    fps: Fraction,
    lossless: bool,
    crf: int,
    sound: Path | None,
) -> None:
    with ExitStack() as stack:
        container = stack.enter_context(av.open(str(path), "w", format="matroska" if lossless else "mp4"))
        container.metadata.update({COUNT_TAG: str(shape[0]), SIZE_TAG: f"{shape[2]}x{shape[1]}"})
        options = {"level": "3", "slicecrc": "1"} if lossless else {"crf": str(crf), "preset": "veryfast"}
        stream: Any = container.add_stream("ffv1" if lossless else "libx264", rate=fps, options=options)
        stream.height, stream.width = shape[1:3]
        stream.pix_fmt = "bgr0" if lossless else "yuv420p"
        stream.codec_context.thread_count = threads = _threads(stream)
        if not lossless:  # without tags a player guesses the matrix from the picture size
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        if sound is not None:
            audio = stack.enter_context(closing(AudioCopy(sound, next(decode(sound)).time, container)))
        for number, image in enumerate(frames, start=1):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if lossless:
                picture = picture.reformat(format="bgr0", threads=threads)
            else:
                picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", threads=threads)
                picture.colorspace = 1
            container.mux(stream.encode(picture))
            if sound is not None:
                audio.until(float(number / fps))
        container.mux(stream.encode())


@contextmanager
def _open(path: str | os.PathLike[str]) -> Generator[tuple[Any, Any]]:
    """(container, first video stream that is no cover picture); an FFmpeg error becomes a `VideoError`."""
    path = Path(path)
    try:
        _check_container(path)
        with (
            _naming_memory(path),
            av.open(str(path.absolute()), container_options=SAFE_INPUT, metadata_errors="replace") as container,
        ):
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                raise VideoError(f"{path}: no video stream in it")
            if streams[0].codec_context is None:
                raise VideoError(f"{path}: no decoder for its codec")
            streams[0].thread_type = "AUTO"
            context = streams[0].codec_context
            context.thread_count, context.options = _threads(context), DETECT_DAMAGE
            if context.name == "h264":  # where it says nothing of its range; other decoders know the default
                context.color_range = context.color_range or LIMITED_RANGE
            try:
                yield container, streams[0]
            except av.error.InvalidDataError:  # so H.264 calls it, too, if a picture finds no memory
                bytearray(PICTURES_IN_DECODER * 2 * context.width * context.height)
                raise
    except av.FFmpegError as error:
        problem = "damaged, truncated or not a video"
        if error.errno == errno.EOPNOTSUPP:  # e.g. YCgCo
            problem = "its codec or colour format is not read; convert it to yuv420p before"
        raise VideoError(f"{path}: {problem} ({error.strerror})") from error
    except OSError as error:
        raise VideoError(f"{path}: cannot be read ({error.strerror})") from error


def _check_container(path: Path) -> None:
    """Raises VideoError for a file that is empty, not there, in another container, or ends early."""
    if not path.is_file():
        raise VideoError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes)")
    if kind := foreign_container(path):
        raise VideoError(f"{path}: is {kind}, which is not read; ffmpeg -i IN -c copy OUT.mkv makes it readable")
    if missing := missing_bytes(path):
        count = "1 byte is" if missing == 1 else f"{missing:,} bytes are"
        raise VideoError(f"{path}: truncated, {count} missing at its end")


@contextmanager
def _naming_memory(path: str | os.PathLike[str]) -> Generator[None]:
    """Lack of memory, or of a thread (EAGAIN), becomes a MemoryError that names the file."""
    try:
        yield
    except (MemoryError, BlockingIOError) as error:
        reason = "not enough memory to decode it: free some, raise the limit (ulimit -v), or make the video smaller"
        raise MemoryError(f"{path}: {reason}") from error


def _pictures(path: str | os.PathLike[str], container: Any, stream: Any) -> Iterator[Any]:
    """The decoded pictures. Raises VideoError for one that FFmpeg repaired, or whose checksum is wrong."""
    if (size := container.metadata.get(SIZE_TAG)) not in (None, f"{stream.width}x{stream.height}"):
        raise VideoError(f"{path}: damaged, its size is {stream.width}x{stream.height}, and it was written as {size}")
    checks: set[bool]
    is_ffv1, checks = stream.codec_context.name == "ffv1", {True} if COUNT_TAG in container.metadata else set()
    for packet in container.demux(stream):
        if is_ffv1 and packet.size:
            checks.add(has_right_checksums(bytes(packet)))
        for picture in packet.decode():
            if picture.is_corrupt or packet.is_corrupt or checks == {True, False}:
                raise VideoError(f"{path}: damaged, a picture at {picture.time or 0:.2f} s is not as it was written")
            yield picture


def _threads(picture: Any) -> int:
    """1 for small pictures, else 0: FFmpeg's choice."""
    return int(picture.height * picture.width < ONE_THREAD_BELOW)


def _rgb(picture: Any, short_side: int | None, peak: float) -> Frames:
    height, width, options = picture.height, picture.width, {}
    if short_side and short_side < min(height, width):
        shrink = short_side / min(height, width)
        options = {"height": round(height * shrink), "width": round(width * shrink), "interpolation": "AREA"}
    options["threads"] = _threads(picture)
    if picture.color_trc in (PQ, HLG):
        image = tone_map(picture, options, peak or PEAK)
    elif picture.format.name.startswith("gray") and picture.color_range == LIMITED_RANGE:
        grey = picture.reformat(format="gray", **options).to_ndarray()  # swscale takes every grey for full range
        image = np.rint(np.clip((grey[..., None].repeat(3, -1) - 16.0) * (255 / 219), 0, 255)).astype(np.uint8)
    else:
        image = picture.reformat(format="rgb24", **options).to_ndarray()
    return image


def _display_matrix(picture: Any) -> Matrix | None:
    data = picture.side_data.get(Type.DISPLAYMATRIX)
    return struct.unpack_from("=2i4x2i", bytes(data)) if data else None


def _upright(image: NDArray[Any], matrix: Matrix | None) -> NDArray[Any]:
    """`[H, W, ...]` as a display matrix shows it: pixel (x, y) goes to (a x + c y, b x + d y); a view.

    By the nearest of the eight turns and mirrors, as a matrix may turn by any angle.
    """
    if matrix is None:
        return image
    a, b, c, d = matrix
    if abs(a) + abs(d) < abs(b) + abs(c):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


class _FrameTimes:
    """The times of a video's frames: selects frames for `max_fps`, and records the last time and the longest gap."""

    def __init__(self, rate: float, max_fps: float | None) -> None:
        self.rate, self.max_fps = rate, max_fps
        self.first: float | None = None
        self.last, self.end, self.longest = 0.0, 0.0, 1 / rate  # seconds
        self.frames = self.frames_kept = 0

    def keeps(self, time: float, duration: float) -> bool:
        """Record the next frame's time; False if the frame exceeds `max_fps` and is dropped."""
        self.frames += 1
        if self.first is None:
            self.first = self.last = time
        self.longest = max(self.longest, time - self.last)
        self.last, self.end = time, max(self.end, time + duration)
        if self.max_fps is None:
            return True
        due = (time - self.first) * self.max_fps + 1e-3 * self.max_fps  # 1 ms: Matroska rounds times to that
        if due < self.frames_kept:
            return False
        self.frames_kept = max(self.frames_kept, int(due)) + 1
        return True


def _has_index(container: Any) -> bool:
    """Whether FFmpeg has read the place of every picture from the container, which a number in a header is not."""
    return container.format.name.startswith("mov")


def _declared_frames(path: str | os.PathLike[str], container: Any, stream: Any) -> int | None:
    """The least number of frames that the container declares, or None.

    Not those that an edit list hides (a trimmed mp4), nor those of an .avi or an MPEG-4 stream that only hold the one
    before. Raises VideoError for a tag that is no number of frames.
    """
    least = NOT_CODED if stream.codec_context.name == "mpeg4" else 0
    entries = sum(entry.size > least and not entry.is_discard for entry in stream.index_entries)
    if _has_index(container) or container.format.name == "avi":
        return entries
    tag = container.metadata.get(COUNT_TAG)
    if tag is not None and not re.fullmatch("[0-9]{1,9}", tag):
        raise VideoError(f"{path}: damaged, it declares {tag[:24]!r} frames")
    return stream.frames or (None if tag is None else int(tag))


def _note(container: Any, stream: Any, picture: Any) -> str:
    notes = []
    if container.format.name != "avi" and (declared := max(stream.frames, len(stream.index_entries))):
        shown = sum(not entry.is_discard for entry in stream.index_entries)
        if _has_index(container) and shown < declared:
            notes.append(
                f"shows {shown} of the {declared} frames it declares: an edit list hides the others, or damage"
            )
    elif (held := stream.frames - len(stream.index_entries)) > 0:
        notes.append(f"{held} of its {stream.frames} frames hold the one before, and are left out")
    if len(container.streams.video) > 1:
        notes.append(f"has {len(container.streams.video)} video streams: only one is read")
    if sum(kind == b"moov" for kind, _ in outer_parts(Path(container.name))) > 1:
        notes.append("holds several files one after the other: only the first is read")
    if any(part.is_alpha for part in picture.format.components) or stream.metadata.get("alpha_mode") == "1":
        notes.append("has transparency, which is not read: colours are as stored")
    if picture.interlaced_frame:
        notes.append("is interlaced: moving edges have combs; deinterlace it before")
    return "; ".join(notes)


def _check_whole(path: str | os.PathLike[str], stream: Any, declared_frames: int | None, times: _FrameTimes) -> None:
    """Raise VideoError if the container declares more frames than were decoded, or a much later end."""
    if times.frames == 0:
        raise VideoError(f"{path}: holds no frames")
    if declared_frames is not None and times.frames < declared_frames:
        raise VideoError(f"{path}: truncated, {times.frames} of the {declared_frames} frames it declares")
    clock = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # Matroska's tag
    if declared_frames is None and clock:
        end = 3600 * float(clock[1]) + 60 * float(clock[2]) + float(clock[3])
        if end - max(times.last, times.end - times.longest) > 1.5 * times.longest:
            raise VideoError(f"{path}: truncated, it declares {end:.2f} s and its last frame is at {times.last:.2f}")
