"""Writes, reads and probes video files (PyAV, which includes FFmpeg).

Frames are uint8 RGB `[F, H, W, 3]`; the networks' videos are float `[3, F, H, W]` in [-1, 1], see `to_uint8` and
`to_float`. Lossless is ffv1 in Matroska: a metric reads exactly the frames that the model made. Only local files in
known containers are opened, so that a playlist or a URL in a file is not followed.

HDR (PQ and HLG, as tagged in the file) is tone-mapped to SDR. The peak of a PQ clip, and all above, becomes white. The
peak is in the static metadata of the first picture: MaxCLL of CTA-861.3 or the mastering display's luminance of
SMPTE ST 2086, the lower if both; else 1000 cd/m2, as for HLG. At 1000 the reference white of 203 cd/m2 (ITU-R BT.2408)
becomes 230 of 255, and light below 88 cd/m2 is unchanged:

    light     PQ: the EOTF of ST 2084. HLG: inverse OETF and OOTF of ITU-R BT.2100, 1000 cd/m2, system gamma 1.2
    roll-off  EETF of ITU-R BT.2390, 5.4.1, on each of R, G, B: from the clip's peak to one of 203 cd/m2
    colours   BT.2020 to BT.709 primaries in linear light, colours outside are clipped
    signal    the inverse of BT.1886: (light / 203)^(1 / 2.4)
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.stream import Disposition
from numpy.typing import NDArray

from pw.io.files import replacing

Frames = NDArray[np.uint8]

# Demuxers, not file extensions: hls, concat and similar ones would open URLs in the file.
SAFE_INPUT = {"format_whitelist": "mov,matroska,avi", "protocol_whitelist": "file"}
# Pixels of a picture below which one thread is faster: 3 frames of 24x24 take 0.4 ms, a thread pool milliseconds.
ONE_THREAD_BELOW = 256 * 256
# Matroska has no frame count of its own; DURATION alone finds a missing frame only when the rate is steady.
COUNT_TAG = "PW_FRAMES"

# Code points of ITU-T H.273: transfer characteristics, matrix coefficients and primaries, full range (FFmpeg's 2).
PQ, HLG, BT2020, BT709, FULL_RANGE = 16, 18, 9, 1, 2
M1, M2, C1, C2, C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128  # of PQ, SMPTE ST 2084
WHITE = 203.0  # cd/m2: reference white of BT.2408
PEAK = 1000.0  # cd/m2: nominal peak of HLG, and of nearly all PQ masters
PEAKS = 400.0, 10_000.0  # cd/m2: limits of a plausible peak: no HDR is mastered on less, PQ ends at 10 000
BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
# ITU-R BT.2087, with its rows summing to 1, so that greys stay grey
BT2020_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008350], [-0.018151, -0.100579, 1.118730]], np.float32
)
LEVELS = 1 << 14  # entries of the tables over light; the index is its square root, for precision in the shadows
BAND = 1 << 16  # pixels tone-mapped at a time: they fit in the cache


class VideoError(ValueError):
    """A file is not a complete, readable video; the message names the file and the reason."""


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file: frames (declared, else counted packets), size in px as displayed, rate in 1/s.

    `peak` is the luminance in cd/m2 that becomes white in an HDR clip; 0 for SDR.
    """

    frames: int
    height: int
    width: int
    fps: float
    codec: str
    peak: float = 0.0


class Frame(NamedTuple):
    """One decoded frame: its number in the file, its time in seconds, uint8 `[H, W, 3]`."""

    index: int
    time: float
    image: Frames


def write_video(
    path: str | os.PathLike[str], frames: Frames, fps: float = 24.0, lossless: bool = True, crf: int = 17
) -> None:
    """Write uint8 `[F, H, W, 3]` as ffv1 .mkv (bit-exact) or libx264 4:2:0 BT.709 .mp4 (`crf` 0 to 51).

    The write is atomic. Raises ValueError: wrong shape or dtype, wrong file extension, odd sizes with `lossless=False`.
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
    with replacing(path) as partial:
        _encode(partial, frames, Fraction(fps).limit_denominator(1001), lossless, crf)


def read_video(path: str | os.PathLike[str]) -> Frames:
    """All frames, uint8 `[F, H, W, 3]`. Raises VideoError: not a video, or fewer frames than the container declares."""
    return np.stack(list(iter_frames(path)))


def iter_frames(path: str | os.PathLike[str]) -> Iterator[Frames]:
    """The frames one by one, uint8 `[H, W, 3]`; raises as `read_video`, for a truncated file after its last frame."""
    return (frame.image for frame in decode(path))


def decode(
    path: str | os.PathLike[str], short_side: int | None = None, max_fps: float | None = None
) -> Iterator[Frame]:
    """Frames with their times, as displayed (rotation metadata applied), optionally resized and subsampled.

    `short_side` px: resized down to it by area averaging, never up. `max_fps`: frames are dropped to reach this rate,
    never repeated. 10-bit video is rounded to 8 bits, HDR is tone-mapped (see above) after resizing; non-square pixels
    stay as stored. Raises VideoError: not a video, damaged, truncated, or the picture size changes.
    """
    with _open(path) as (container, stream):
        times = _FrameTimes(float(stream.average_rate or 24), max_fps)
        declared_frames, shape, peak = _declared_frames(container, stream), None, None
        for index, picture in enumerate(container.decode(stream)):
            time = picture.time if picture.time is not None else index / times.rate
            if not times.keeps(time):
                continue
            peak = _peak(picture) if peak is None else peak
            image = _rgb(picture, short_side, peak)
            if image.shape != (shape := shape or image.shape):
                raise VideoError(f"{path}: the picture changes from {shape[:2]} to {image.shape[:2]} midway")
            yield Frame(index, time, image)
        _check_whole(path, stream, declared_frames, times)


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Size, rate, codec and number of frames; decodes one frame only. Raises VideoError: not a video."""
    with _open(path) as (container, stream):
        picture = next(container.decode(stream), None)
        if picture is None:
            raise VideoError(f"{path}: holds no frames")
        height, width = picture.height, picture.width
        if round(picture.rotation / 90) % 2:
            height, width = width, height
        codec, fps, peak = stream.codec_context.name, float(stream.average_rate or 24), _peak(picture)
        frames = _declared_frames(container, stream)
    if frames is None:
        with _open(path) as (container, stream):
            frames = sum(packet.size > 0 for packet in container.demux(stream))
    return VideoInfo(frames, height, width, fps, codec, peak)


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


def _encode(path: Path, frames: Frames, fps: Fraction, lossless: bool, crf: int) -> None:
    with av.open(str(path), "w", format="matroska" if lossless else "mp4") as container:
        container.metadata[COUNT_TAG] = str(len(frames))
        options = {} if lossless else {"crf": str(crf), "preset": "veryfast"}
        stream: Any = container.add_stream("ffv1" if lossless else "libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0" if lossless else "yuv420p"
        stream.codec_context.thread_count = threads = _threads(stream)
        if not lossless:  # without tags a player guesses the matrix from the picture size
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        for image in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if lossless:
                picture = picture.reformat(format="bgr0", threads=threads)
            else:
                picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", threads=threads)
                picture.colorspace = 1
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


@contextmanager
def _open(path: str | os.PathLike[str]) -> Generator[tuple[Any, Any]]:
    """(container, first video stream that is no cover picture); an FFmpeg error becomes a `VideoError`."""
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes)")
    try:
        with av.open(str(path.absolute()), container_options=SAFE_INPUT, metadata_errors="replace") as container:
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                raise VideoError(f"{path}: no video stream in it")
            streams[0].thread_type = "AUTO"
            streams[0].codec_context.thread_count = _threads(streams[0].codec_context)
            yield container, streams[0]
    except av.FFmpegError as error:
        raise VideoError(f"{path}: damaged, truncated or not a video ({error.strerror})") from error


def _threads(picture: Any) -> int:
    """1 for small pictures, else 0: FFmpeg's choice."""
    return int(picture.height * picture.width < ONE_THREAD_BELOW)


def _peak(picture: Any) -> float:
    """The luminance that becomes white, cd/m2; 0 for SDR."""
    if picture.color_trc != PQ:
        return PEAK if picture.color_trc == HLG else 0.0
    luminances = []
    if level := picture.side_data.get(Type.CONTENT_LIGHT_LEVEL):
        luminances.append(float(struct.unpack_from("=I", bytes(level))[0]))  # AVContentLightMetadata.MaxCLL
    if display := picture.side_data.get(Type.MASTERING_DISPLAY_METADATA):
        # AVMasteringDisplayMetadata: max_luminance is its tenth fraction, has_luminance its last field
        numerator, denominator, has_luminance = struct.unpack_from("=2i4xi", bytes(display), 72)
        luminances.append(numerator / denominator if has_luminance and denominator else 0.0)
    known_peaks = [peak for peak in luminances if peak > 0]
    return float(round(np.clip(min(known_peaks), *PEAKS))) if known_peaks else PEAK


def _rgb(picture: Any, short_side: int | None, peak: float) -> Frames:
    height, width, options = picture.height, picture.width, {}
    if short_side and short_side < min(height, width):
        shrink = short_side / min(height, width)
        options = {"height": round(height * shrink), "width": round(width * shrink), "interpolation": "AREA"}
    options["threads"] = _threads(picture)
    if picture.color_trc in (PQ, HLG):
        image = _tone_map(picture, options, peak or PEAK)
    else:
        image = picture.reformat(format="rgb24", **options).to_ndarray()
    return np.ascontiguousarray(np.rot90(image, round(picture.rotation / 90)))  # both count anticlockwise


class _FrameTimes:
    """The times of a video's frames: selects frames for `max_fps`, and records the last time and the longest gap."""

    def __init__(self, rate: float, max_fps: float | None) -> None:
        self.rate, self.max_fps = rate, max_fps
        self.first: float | None = None
        self.last, self.longest = 0.0, 1 / rate  # seconds
        self.frames = self.frames_kept = 0

    def keeps(self, time: float) -> bool:
        """Record the next frame's time; False if the frame exceeds `max_fps` and is dropped."""
        self.frames += 1
        if self.first is None:
            self.first = self.last = time
        self.longest = max(self.longest, time - self.last)
        self.last = time
        if self.max_fps is None:
            return True
        due = (time - self.first) * self.max_fps + 1e-3 * self.max_fps  # 1 ms: Matroska rounds times to that
        if due < self.frames_kept:
            return False
        self.frames_kept = max(self.frames_kept, int(due)) + 1
        return True


def _declared_frames(container: Any, stream: Any) -> int | None:
    """Number of frames that the container declares, without frames hidden by an edit list (a trimmed mp4), or None."""
    if container.format.name.startswith("mov") and len(stream.index_entries):
        return sum(not entry.is_discard for entry in stream.index_entries)
    tag = container.metadata.get(COUNT_TAG, "")
    return stream.frames or (int(tag) if tag.isdecimal() else None)


def _check_whole(path: str | os.PathLike[str], stream: Any, declared_frames: int | None, times: _FrameTimes) -> None:
    """Raise VideoError if the container declares more frames than were decoded, or a much later end."""
    if times.frames == 0:
        raise VideoError(f"{path}: holds no frames")
    if declared_frames is not None and times.frames < declared_frames:
        raise VideoError(f"{path}: truncated, {times.frames} of the {declared_frames} frames it declares")
    end = stream.metadata.get("DURATION", "")  # Matroska: "00:00:04.167000000"
    if declared_frames is None and end.count(":") == 2:
        hours, minutes, seconds = (float(part) for part in end.split(":"))
        end = 3600 * hours + 60 * minutes + seconds
        if end - times.last > 1.5 * times.longest:
            raise VideoError(f"{path}: truncated, it declares {end:.2f} s and its last frame is at {times.last:.2f}")


# ---- HDR to SDR


def _tone_map(picture: Any, options: dict[str, Any], peak: float) -> NDArray[np.uint8]:
    """An HDR picture as SDR, uint8 `[H, W, 3]`."""
    matrix = picture.colorspace if picture.colorspace in (BT709, BT2020) else BT2020
    codes = picture.reformat(format="gbrp16le", src_colorspace=matrix, **options).to_ndarray()
    # swscale shifts bits, it does not rescale: 940 of 64..940 becomes 255/256 of 2^16, 1023 of 0..1023 1023/1024
    full = picture.color_range == FULL_RANGE or picture.format.is_rgb
    bits = picture.format.components[0].bits if full else 8
    light_table, (roll_off, tone) = _light_table(picture.color_trc, bits, peak), _tables()
    pixels, result = codes.reshape(-1, 3), np.empty((codes.shape[0] * codes.shape[1], 3), np.uint8)
    for start in range(0, len(pixels), BAND):
        light = light_table[pixels[start : start + BAND]]
        if picture.color_trc == HLG:  # BT.2100: the OOTF raises luminance to the power of 1.2, hues are kept
            light *= np.power(light @ BT2020_LUMA, np.float32(0.2))[:, None]
            light = roll_off[_level(light)]
        if picture.color_primaries != BT709:
            light = light @ BT2020_TO_BT709.T
        result[start : start + BAND] = tone[_level(light)]
    return result.reshape(codes.shape)


def _level(light: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Light, clipped in place to [0, 1] -> index into the tables over light."""
    np.clip(light, 0, 1, out=light)
    np.sqrt(light, out=light)
    light *= LEVELS - 1
    light += 0.5
    return light.astype(np.uint16)


@functools.lru_cache(maxsize=16)
def _light_table(transfer: int, bits: int, peak: float) -> NDArray[np.float32]:
    """Light of every 16-bit code, PQ: after the roll-off, as a share of the SDR peak; HLG: scene light in [0, 1]."""
    signal = np.minimum(np.arange(1 << 16) / (65536 * (1 - 2.0**-bits)), 1)
    if transfer == PQ:
        return _roll_off(pq_to_light(signal), peak).astype(np.float32)
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)


@functools.cache
def _tables() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """(Share of `PEAK` -> share of the SDR peak, share of the SDR peak -> 8-bit signal by BT.1886 inverted)."""
    root = np.arange(LEVELS) / (LEVELS - 1)
    return _roll_off(PEAK * root**2, PEAK).astype(np.float32), np.rint(255 * root ** (2 / 2.4)).astype(np.uint8)


def pq_to_light(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """EOTF of SMPTE ST 2084: signal in [0, 1] -> cd/m2 in [0, 10000]."""
    root = np.power(signal, 1 / M2)
    return 10_000 * np.power(np.maximum(root - C1, 0) / (C2 - C3 * root), 1 / M1)


def light_to_pq(light: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Inverse EOTF of SMPTE ST 2084: cd/m2 in [0, 10000] -> signal in [0, 1]."""
    power = np.power(np.asarray(light) / 10_000, M1)
    return np.power((C1 + C2 * power) / (1 + C3 * power), M2)


def _roll_off(light: NDArray[np.float64], peak: float) -> NDArray[np.float64]:
    """EETF of ITU-R BT.2390, 5.4.1, black at 0: cd/m2 -> share of `WHITE` in [0, 1]; a spline above the knee."""
    top = light_to_pq(peak)
    e, white = np.minimum(light_to_pq(light) / top, 1), light_to_pq(WHITE) / top
    knee = 1.5 * white - 0.5
    t = (e - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * white
    return pq_to_light(np.where(e < knee, e, spline) * top) / WHITE
