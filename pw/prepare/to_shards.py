"""Turn a folder of videos, or UltraVideo, into shards: `pw data`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from pw.io.arguments import Command, ConfigError, option
from pw.prepare.ingest import ingest
from pw.prepare.source_videos import ClipSettings


@dataclass(frozen=True)
class DataOptions:
    """Where the videos come from, where the shards go, and how clips are cut."""

    path: Path | None = option(None, "the folder with your videos")
    name: Literal["ultravideo"] | None = option(None, "a public dataset, instead of path=")
    out: Path | None = option(None, "where to; without it data/shards, or data/NAME of a public dataset")
    overwrite: bool = option(False, "make the shards anew where there are some")
    frames: int = option(ClipSettings.frames, "frames of a clip, 4n + 1")
    short_side: int = option(ClipSettings.short_side, "px that frames are reduced to; none is enlarged")
    stride: int = option(ClipSettings.stride, "frames from one clip's start to the next; 0: clips do not overlap")
    fps: float = option(ClipSettings.fps, "frames are dropped to come down to this rate; 0 keeps them all")
    holdout: float = option(ClipSettings.holdout, "share of the clips that is held out")
    shard_mb: float = option(ClipSettings.shard_mb, "MB of a shard, about")
    accept_licence: bool = option(False, "you have read and accept the licence of the dataset")
    taste: int | None = option(None, "only so many clips of the dataset")
    size: Literal["native", "1920", "960"] = option("native", "which copy of the dataset, by its width in px")
    caption: Literal["summarized", "detailed", "brief"] = option("summarized", "which captions of the dataset")
    keep: bool = option(False, "keep the dataset's zips when their clips are out")
    revision: str = option("", "branch, tag or commit of the dataset; without it main, or what was begun")

    def __post_init__(self) -> None:
        if self.path and self.name:
            raise ConfigError("give path= (your own videos) or name= (a public dataset), not both")
        if not self.path and not self.name:
            raise ConfigError("path is missing: the folder with your videos (or name=ultravideo)")
        if self.path and (stray := [key for key in OF_DATASETS if getattr(self, key) != getattr(DataOptions, key)]):
            raise ConfigError(f"{stray[0]}= goes with name=ultravideo, not with path=")

    @property
    def settings(self) -> ClipSettings:
        """How clips are cut. Raises ConfigError."""
        return ClipSettings(**{field.name: getattr(self, field.name) for field in fields(ClipSettings)})


OF_DATASETS = ("accept_licence", "taste", "size", "caption", "keep", "revision")


def run(options: DataOptions) -> int:
    """Exit status: 0 done, 1 the licence is not accepted."""
    settings = options.settings
    if options.path:
        ingest(options.path, options.out or Path("data/shards"), settings, options.overwrite)
        return 0
    from pw.prepare.ultravideo import UltraVideoOrder, notice, ultravideo

    given = {key: getattr(options, key) for key in OF_DATASETS if key != "accept_licence"}
    order = UltraVideoOrder(options.out or Path("data/ultravideo"), **given)
    if not options.accept_licence:
        print(notice(order))
        return 1
    ultravideo(order, settings, options.overwrite)
    return 0


main = Command(DataOptions, run, resumes="what is done is kept; the same call goes on")
