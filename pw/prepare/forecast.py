"""Which clips a scale needs, and what a call of `pw data` will make and take: said before it begins."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pw.data.shard_index import MANIFEST
from pw.data.shards import short_side
from pw.io.arguments import ConfigError
from pw.io.files import check_space, human_size
from pw.io.progress import duration
from pw.io.video import VideoError, probe
from pw.prepare.source_videos import ClipSettings, VideoRecord
from pw.run.build import Run, build

WAN_FPS = 24.0  # of the videos that Wan2.2-TI2V-5B was trained on and makes
SCALES = ("4k", "2k", "proxy", "small", "tiny")  # from large to small
CUT_RATE = 50e6  # px of source video decoded and cut in a second, by one core. Assumed; 720p measured twice that.


class Crop(NamedTuple):
    """What training at a scale reads of a clip; a clip may be larger."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class ScaleNeeds:
    """What `pw data` must cut for a scale: `settings` are options of `pw data`, here with 16:9 in mind."""

    scale: str
    crop: Crop
    settings: dict[str, Any]

    @classmethod
    def of(cls, run: Run) -> ScaleNeeds:
        """The needs of a run. Without a text encoder motion has any rate, and frames are at least twice as high as a
        crop, so that crops differ; at the tiny scale the defaults of `pw data` are enough."""
        crop, tiny = Crop(run.scale.frames, run.scale.height, run.scale.width), ClipSettings()
        frames, short = 4 * math.ceil((crop.frames - 1) / 4) + 1, short_side(crop.height, crop.width)
        if run.text is None:
            roomy = max(2 * min(crop.height, crop.width), short, tiny.short_side)
            settings = {"frames": max(frames, tiny.frames), "short_side": roomy}
            return cls(run.scale.name, crop, settings)
        return cls(run.scale.name, crop, {"frames": frames, "short_side": short, "fps": WAN_FPS})

    @classmethod
    def of_scale(cls, name: str) -> ScaleNeeds:
        """Raises ConfigError for no such scale."""
        return cls.of(build([f"scale={name}", "data=none"]))

    def clip_settings(self, given: dict[str, Any]) -> ClipSettings:
        """The settings of a call, with the `given` ones. Raises ConfigError if their clips are too small."""
        for key in ("frames", "short_side"):
            if given.get(key, math.inf) < self.settings[key]:
                raise ConfigError(
                    f"{key}={given[key]}: scale={self.scale} needs {self.settings[key]} or more; leave {key}= out"
                )
        return ClipSettings(**self.settings | given)

    def are_met_by(self, frames: float, height: float, width: float) -> bool:
        return all(actual >= needed for actual, needed in zip((frames, height, width), self.crop, strict=True))

    def __str__(self) -> str:
        return f"scale={self.scale}: {self.crop.frames} frames of {self.crop.height} x {self.crop.width} px"


def manifest(urls: str) -> dict[str, dict[str, Any]]:
    """`settings` and `captions` of the `pw data` call that made some shards; empty if unknown."""
    try:
        content = json.loads((Path(urls) / MANIFEST).read_text())
        return {key: dict(content[key]) for key in ("settings", "captions") if key in content}
    except (OSError, ValueError, TypeError):
        return {}


def data_command(run: Run, urls: str) -> str:
    """The `pw data` call that makes clips for a run from the videos that the shards in `urls` came from."""
    needs, settings = ScaleNeeds.of(run), manifest(urls).get("settings", {})
    is_ultravideo, folder = "split_by" in settings, Path(urls)
    words = ["name=ultravideo accept_licence=true" if is_ultravideo else "path=DIR"]
    if is_preset := needs == ScaleNeeds.of_scale(needs.scale):
        words.append(f"scale={needs.scale}")
    else:
        words += [f"{key}={value:g}" for key, value in needs.settings.items()]
    if folder.exists() and not (is_preset and folder.name == "shards"):  # else the call would find other shards there
        words.append("overwrite=true" if is_ultravideo else f"out={folder}-larger")
    return f"pw data {' '.join(words)}"


@dataclass(frozen=True)
class Forecast:
    """What a call will make and take.

    videos        to cut; `serving` of them give clips that are large enough for `needs`
    clips         at most, as scene cuts are not known yet
    shard_bytes   of these clips
    pixels        of source video to decode
    fetch_bytes   to download, and `fetch_rate` in bytes a second
    """

    videos: int
    clips: int
    shard_bytes: float
    pixels: float
    frames: int
    serving: int | None = None
    fetch_bytes: float = 0.0
    fetch_rate: float = 1.0
    note: str = ""

    def __mul__(self, count: int) -> Forecast:
        """Of `count` times as many videos."""
        names = ("videos", "clips", "shard_bytes", "pixels", "frames")
        return replace(self, serving=None, **{name: count * getattr(self, name) for name in names})

    @property
    def disk_bytes(self) -> float:
        """While it works: what is fetched, the cut clips and their shards."""
        return self.fetch_bytes + 2 * self.shard_bytes

    def text(self, settings: ClipSettings, needs: ScaleNeeds | None) -> str:
        """Clips, disk and time, a line each."""
        rate = f"at most {settings.fps:g} frames/s" if settings.fps else "their own frame rate"
        serving = "" if needs is None or self.serving is None else f", {self.serving} large enough for {needs}"
        fetched = f"{human_size(self.fetch_bytes)} fetched, " if self.fetch_bytes else ""
        times = f"{duration(self.pixels / CUT_RATE)} to cut ({CUT_RATE / 1e6:.0f} million px/s of one core, assumed)"
        if self.fetch_bytes:
            rate_text = f"at {human_size(self.fetch_rate)}/s, assumed"
            times = f"{duration(self.fetch_bytes / self.fetch_rate)} to fetch ({rate_text}), {times}"
        return (
            f"{self.videos:,} videos{serving}\n"
            f"  clips  at most {self.clips:,} of {settings.frames} frames, {settings.short_side} px on the short side, "
            f"{rate}{f' ({self.note})' if self.note else ''}\n"
            f"  disk   {human_size(self.disk_bytes)} while it works: {fetched}clips {human_size(self.shard_bytes)} and "
            "their shards as much\n"
            f"  time   about {times}"
        )

    def check_disk(self, out: Path, remedy: str, more: float = 0) -> None:
        """Raises ConfigError unless the disk of `out` has room for this and `more` bytes."""
        free = check_space("out", out, (self.disk_bytes + more) * 1.05, remedy)
        print(f"  free   {human_size(free)} on the disk of {out}", flush=True)


class VideoSize(NamedTuple):
    """A video before it is cut: number of frames, size in px, frames a second."""

    frames: float
    height: int
    width: int
    fps: float


def forecast(sources: Iterable[VideoSize], settings: ClipSettings, needs: ScaleNeeds | None = None) -> Forecast:
    """The forecast for some videos, without what is fetched."""
    videos = clips = serving = frames_in_all = 0
    shard_bytes = pixels = 0.0
    for source in sources:
        kept = round(source.frames * min(1.0, (settings.fps or source.fps) / source.fps))
        ratio = min(1.0, settings.short_side / min(source.height, source.width))
        height, width = round(source.height * ratio), round(source.width * ratio)
        count = max(0, (kept - settings.frames) // settings.step + 1)
        videos, clips, frames_in_all = videos + 1, clips + count, frames_in_all + kept
        serving += needs is None or needs.are_met_by(kept, height, width)
        shard_bytes += count * settings.frames * height * width * 3
        pixels += source.frames * source.height * source.width
    return Forecast(videos, clips, shard_bytes, pixels, frames_in_all, serving)


def too_small(sources: Sequence[VideoSize], settings: ClipSettings, needs: ScaleNeeds) -> str:
    """The message for videos of which none serves a scale, with a scale that does."""
    largest, longest = max(sources, key=lambda s: s.height * s.width), max(sources, key=lambda s: s.frames / s.fps)
    text = (
        f"{needs} at {settings.fps or longest.fps:g} frames/s, and none of {len(sources)} videos is as large (at most "
        f"{largest.height} x {largest.width} px, {longest.frames / longest.fps:.1f} s; none is enlarged)"
    )
    for name in SCALES[SCALES.index(needs.scale) + 1 :] if needs.scale in SCALES else ():
        smaller = ScaleNeeds.of_scale(name)
        if count := forecast(sources, smaller.clip_settings({}), smaller).serving:
            return f"{text}; scale={name} takes {count} of them"
    return f"{text}; give it larger or longer videos"


def announce(
    videos: dict[str, Path],
    done: Mapping[str, VideoRecord],
    settings: ClipSettings,
    needs: ScaleNeeds | None,
    out: Path,
) -> int:
    """Print what the videos that are not done will make and take; returns their number of frames.

    Raises ConfigError if none serves `needs`, or if raw clips and shards do not fit on the disk.
    """
    sources = []
    for name, video in videos.items():
        with suppress(VideoError):
            if name not in done:
                info = probe(video)
                sources.append(VideoSize(info.frames, info.height, info.width, info.fps))
    expected = forecast(sources, settings, needs)
    if needs is not None and sources and not done and not expected.serving:
        raise ConfigError(too_small(sources, settings, needs))
    print(expected.text(settings, needs))
    raw = sum(len(record.clips) * math.prod(record.shape) for record in done.values())
    expected.check_disk(out, "give an out= on another disk, or lower short_side, or raise stride", raw)
    return expected.frames


def print_next(out: Path, needs: ScaleNeeds | None) -> None:
    """The command that the shards are for."""
    if needs is not None and "fps" in needs.settings:
        print(f"next: pw latents urls={out} scale={needs.scale}")
    elif needs is not None and needs.scale != "tiny":
        print(f"next: pw ablation name=ansc scale={needs.scale} data.urls={out}")
