"""A video file in the place of stage I: how it is cut into clips, checked before anything loads (D125)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pw.io.arguments import ConfigError
from pw.nn import options
from pw.run.build import Run

if TYPE_CHECKING:
    from pw.io.video import VideoInfo

FPS = 1.0, 240.0  # rates that a video may have
OVERLAP = 6  # a window shares a sixth of its latent frames with the next


@dataclass(frozen=True)
class SourceVideo:
    """One video, as the windows that are made from it.

    info     of the file
    fps      rate of the result; frames: their number, at that rate
    crop     rows and columns of the picture that are kept, px
    windows  latent frames of each window, all of one number
    factor   frames of a latent frame after the first
    audio    codec of the sound that is copied, "" for none; lost: of the sound that the file cannot hold
    """

    path: Path
    info: VideoInfo
    fps: float
    frames: int
    crop: tuple[slice, slice]
    windows: tuple[slice, ...]
    factor: int
    audio: str
    lost: str
    fingerprint: str

    @property
    def window_frames(self) -> int:
        return 1 + self.factor * (self.windows[0].stop - 1)

    def first_frame(self, window: int) -> int:
        return self.factor * self.windows[window].start

    def shared_latents(self, window: int) -> int:
        """Latent frames of a window that are in the one before, too; the first of them encodes `factor` frames there,
        and one here."""
        return self.windows[window - 1].stop - self.windows[window].start if window else 0

    def shared_frames(self, window: int) -> int:
        """Frames at the beginning of a window that the one before has, too."""
        return self.first_frame(window - 1) + self.window_frames - self.first_frame(window) if window else 0

    def needs(self, run: Run) -> list[str]:
        """What is done to the picture and its time, in words."""
        info, (rows, columns) = self.info, self.crop
        height, width = rows.stop - rows.start, columns.stop - columns.start
        words = []
        if abs(self.fps - info.fps) > 1e-3:
            words.append(f"{self.frames} frames at {self.fps:g}/s")
        if (height, width) != (info.height, info.width):
            edges = "left and right" if height == info.height else "top and bottom"
            words.append(f"{edges} are cut, {1 - height * width / (info.height * info.width):.1%} of the picture")
        if height < run.scale.anchor_height or width < run.scale.anchor_width:
            words.append("it is smaller than its anchor and enlarged")
        last = self.first_frame(len(self.windows) - 1) + self.window_frames
        if last > self.frames:
            words.append(f"its last frame is repeated {last - self.frames} times, and they are cut off again")
        if len(self.windows) > 1:
            shared = min(self.shared_frames(n) for n in range(1, len(self.windows)))
            words.append(f"{len(self.windows)} windows of {self.window_frames} frames share {shared} or more")
        if self.audio:
            words.append(f"its sound ({self.audio}) is kept")
        if self.lost:
            words.append(f"its sound ({self.lost}) is left out: it cannot be copied as it is; lossless=true may")
        return [*words, *([self.info.note] if self.info.note else [])]

    def line(self, run: Run) -> str:
        """The line that is printed before work begins."""
        info, anchor = self.info, run.scale
        at = f"{info.frames} frames of {info.width} x {info.height} at {info.fps:g}/s"
        head = f"video={self.path.name}: {at} become an anchor of {anchor.anchor_width} x {anchor.anchor_height}"
        return f"{head}, degradation={run.config.choices['degradation']}; " + "; ".join(self.needs(run))

    def entry(self, run: Run) -> dict[str, Any]:
        """The manifest's entry."""
        rows, columns = self.crop
        return {
            "file": str(self.path),
            "fingerprint": self.fingerprint,
            **{name: value for name, value in asdict(self.info).items() if name != "note"},
            "crop": [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start],
            "windows": [self.first_frame(number) for number in range(len(self.windows))],
            "window_frames": self.window_frames,
            "audio": self.audio or None,
            "degradation": run.config.choices["degradation"],
            "changes": self.needs(run),
        }


@dataclass(frozen=True)
class VideoFile:
    """What `video=FILE` says before the size of the result is known. Raises ConfigError unless it can be read."""

    path: Path
    fps: float | None

    @cached_property
    def info(self) -> VideoInfo:
        from pw.io.video import VideoError, probe

        try:
            info = probe(self.path)
        except VideoError as error:
            raise ConfigError(f"video={error}") from error
        if not FPS[0] <= (self.fps or info.fps) <= FPS[1]:
            raise ConfigError(f"video={self.path}: has {info.fps:g} frames a second; set fps=, from 1 to 240")
        return info

    @property
    def frames(self) -> int:
        """Frames of the result."""
        return max(1, round(self.info.frames / self.info.fps * (self.fps or self.info.fps)))

    def window(self, run: Run) -> int:
        """`scale.frames` of a run for this video: no more than it has, else windows as short as their number allows."""
        factor = frames_factor(run)
        if run.scale.frames <= factor:
            raise ConfigError(
                f"frames={run.scale.frames}: is a window of the video, and needs two latent frames, {1 + factor}"
            )
        return 1 + factor * (_windows(run, self.frames)[0].stop - 1)

    def source(self, run: Run, lossless: bool) -> SourceVideo:
        """The plan for a run whose `scale.frames` is `window`."""
        from pw.io.audio import audio_codec, can_copy
        from pw.io.wan_weights import fingerprint

        info, audio = self.info, audio_codec(self.path)
        is_kept = bool(audio) and can_copy(self.path, lossless)
        windows, crop = _windows(run, self.frames), centre_crop((info.height, info.width), run.scale.size)
        return SourceVideo(
            self.path,
            info,
            self.fps or info.fps,
            self.frames,
            crop,
            windows,
            frames_factor(run),
            audio if is_kept else "",
            "" if is_kept else audio,
            fingerprint(self.path),
        )


def frames_factor(run: Run) -> int:
    """Frames of a latent frame after the first."""
    return run.codec.frames_factor if isinstance(run.codec, options.WanVAE) else 1


def _windows(run: Run, frames: int) -> tuple[slice, ...]:
    """Latent frames of each window of a video: evenly spread, neighbours share at least one in `OVERLAP`."""
    most = run.codec.latent_frames(run.scale.frames)
    latent_frames = max(2, -(-(frames - 1) // frames_factor(run)) + 1)
    return tuple(options.spans(latent_frames, most, max(1, most // OVERLAP)))


def centre_crop(size: tuple[int, int], shape: tuple[int, int]) -> tuple[slice, slice]:
    """(rows, columns) of the largest part of a picture of `size`, in its middle, that has the aspect of `shape`."""
    kept = [min(size[0], max(1, round(size[1] * shape[0] / shape[1])))]
    kept.append(min(size[1], max(1, round(size[0] * shape[1] / shape[0]))))
    first = [(length - part) // 2 for length, part in zip(size, kept, strict=True)]
    return slice(first[0], first[0] + kept[0]), slice(first[1], first[1] + kept[1])
