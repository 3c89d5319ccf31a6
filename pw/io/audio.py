"""Sound of a video file, copied into another without encoding it again (PyAV)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av

from pw.io.video_files import SAFE_INPUT

# Of what FFmpeg writes into an .mp4, what players read there. Matroska takes all.
PLAYED_IN_MP4 = ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")


def audio_codec(path: Path) -> str:
    """The codec of the first sound track of a readable video, "" for none."""
    with _open(path) as container:
        context = container.streams.audio[0].codec_context if container.streams.audio else None
        return "" if context is None else context.codec.canonical_name


def can_copy(path: Path, lossless: bool) -> bool:
    """Whether the first sound track of a video can be in an .mkv (`lossless`), or in an .mp4 that players read."""
    if not lossless and audio_codec(path) not in PLAYED_IN_MP4:
        return False
    try:  # FFmpeg says it when it writes the head of a file
        with _open(path) as source, av.open(io.BytesIO(), "w", format="matroska" if lossless else "mp4") as container:
            container.add_stream_from_template(source.streams.audio[0])
            container.start_encoding()
    except (av.FFmpegError, ValueError):
        return False
    return True


def _open(path: Path) -> Any:
    return av.open(str(path.absolute()), container_options=SAFE_INPUT, metadata_errors="replace")


class AudioCopy:
    """The first sound track of the video `source` in another file.

    start      time in `source`, s, that is 0 in the other file: sound that begins before is left out
    container  the other file, to which nothing was written yet
    """

    def __init__(self, source: Path, start: float, container: Any) -> None:
        self._input = _open(source)
        self._container = container
        self._stream = container.add_stream_from_template(self._input.streams.audio[0])
        self._packets = self._packets_from(start)
        self._next = next(self._packets, None)

    def _packets_from(self, start: float) -> Iterator[tuple[float, Any]]:
        """(its end, packet) in seconds after `start`, of the sound that begins then or later."""
        for packet in self._input.demux(self._input.streams.audio[0]):
            if packet.pts is None or packet.dts is None:
                continue
            shift, unit = round(start / packet.time_base), packet.time_base
            if packet.pts < shift:
                continue
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            yield float((packet.pts + (packet.duration or 0)) * unit), packet

    def until(self, time: float) -> None:
        """Write what ends by `time`, seconds after the first picture."""
        while self._next is not None and self._next[0] <= time + 1e-6:
            self._next[1].stream = self._stream
            self._container.mux(self._next[1])
            self._next = next(self._packets, None)

    def close(self) -> None:
        self._input.close()
