"""A call of `pw latents`, checked: which clips become which latents, how large they are and where they go."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pw.data.latents import encoding_settings
from pw.data.shard_index import ShardIndex, find_shards, manifest_entry
from pw.data.shards import fits, short_side
from pw.io.arguments import ConfigError, option
from pw.io.files import check_space, digest
from pw.io.wan_weights import check, fingerprint, locate
from pw.nn.options import WanVAE
from pw.run.build import Run, build
from pw.train.preflight import check_device

PARTS = ("vae", "text_encoder", "tokenizer")
FORMAT = 1  # of what is written: part of the digest


@dataclass(frozen=True)
class LatentsOptions:
    """What to encode, of which shards, and where to."""

    urls: str = option("data/shards", "the shards of `make data`")
    anchors: int = option(8, "degraded anchors of each clip; training draws one of them")
    out: Path = option(Path("data/latents"), "in it a folder SCALE-DIGEST is made or gone on with")
    splits: tuple[Literal["train", "val"], ...] = option(("train", "val"), "which clips; training reads those of train")
    rank: int | None = option(None, "which call of several this is; under torchrun it is known")
    world: int | None = option(None, "how many calls share the work: each takes every world-th shard")
    dry_run: bool = option(False, "print sizes and look at the disk; needs no weights")
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key, least in (("anchors", 1), ("rank", 0), ("world", 1)):
            if (value := getattr(self, key)) is not None and value < least:
                raise ConfigError(f"{key}={value}: wants a whole number, {least} or more")
        for word in self.overrides:
            if word.startswith("data="):
                raise ConfigError(f"{word}: clips are read from urls=DIR here")


@dataclass(frozen=True)
class VideoShard:
    """A shard of video; `ids` are the clips of its index that are large enough, `problem` why it has no index."""

    path: Path
    split: str
    index: ShardIndex | None
    ids: tuple[int, ...]
    problem: str = ""


@dataclass(frozen=True)
class LatentSizes:
    """The shapes that a clip becomes; of the text, whose length differs, the largest."""

    latent: tuple[int, int, int, int]
    anchor: tuple[int, int, int, int]
    anchors: int
    text: tuple[int, int]
    patch: tuple[int, int, int]

    @property
    def clip_bytes(self) -> int:
        """Of a whole clip, at most."""
        return bf16_bytes(self.latent) + self.anchors * bf16_bytes(self.anchor) + bf16_bytes(self.text)

    def tokens(self, shape: tuple[int, int, int, int]) -> int:
        """Tokens that the network makes of a latent."""
        return math.prod(shape[1:]) // math.prod(self.patch)


def bf16_bytes(shape: Sequence[int]) -> int:
    """Bytes of a tensor as it is stored."""
    return 2 * math.prod(shape)


@dataclass
class Encoding:
    """One call, checked: what is encoded and where it goes. `find_weights` adds weights and what names the folder."""

    run: Run
    urls: str
    out: Path
    sizes: LatentSizes
    shards: list[VideoShard]
    skipped_small: int
    rank: int
    world: int
    weights: Path = Path()
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where it goes: named by the scale and a digest of all that decides what is in it."""
        return self.out / f"{self.run.scale.name}-{digest(self.identity, 8)}"

    @property
    def mine(self) -> list[VideoShard]:
        """The shards that this call is dealt."""
        return self.shards[self.rank :: self.world]

    def record(self, shard: VideoShard) -> Path:
        """The file that says what became of a shard: written last."""
        return self.folder / f"{shard.path.stem}.json"

    def is_done(self, shard: VideoShard) -> bool:
        """Whether a shard needs no more work; one that could not be read at all is tried again."""
        path = self.record(shard)
        return path.exists() and not json.loads(path.read_text())["problem"]


def sizes(run: Run, anchors: int) -> LatentSizes:
    """What a clip of this run becomes. Raises ConfigError where clips are not encoded by Wan's VAE."""
    scale, codec, backbone = run.scale, run.codec, run.backbone
    if not isinstance(codec, WanVAE) or run.text is None or scale.anchor_upsample != "latent":
        raise ConfigError(
            f"scale={scale.name}: latents are for what Wan's VAE and text encoder encode; set scale=proxy, 2k or 4k "
            "(codec=wan_vae text=umt5 scale.anchor_upsample=latent)"
        )
    frames, f = codec.latent_frames(scale.frames), codec.factor
    return LatentSizes(
        latent=(codec.channels, frames, scale.height // f, scale.width // f),
        anchor=(codec.channels, frames, scale.anchor_height // f, scale.anchor_width // f),
        anchors=anchors,
        text=(backbone.text_tokens, backbone.text_dim),
        patch=backbone.patch_size,
    )


def plan_encoding(options: LatentsOptions) -> Encoding:
    """Check a call; reads headers of shards, no weights. Raises ConfigError naming the key and what would do."""
    world = int(os.environ.get("WORLD_SIZE", "1")) if options.world is None else options.world
    rank = int(os.environ.get("RANK", "0")) if options.rank is None else options.rank
    if rank >= world:
        raise ConfigError(f"rank={rank}: of world={world} calls the ranks are 0 to {world - 1}")
    scale = () if any(word.startswith("scale=") for word in options.overrides) else ("scale=2k",)
    run = build([*scale, *options.overrides, "data=none"])
    becomes = sizes(run, options.anchors)
    urls = str(Path(options.urls).expanduser())
    shards, small = _read_shards(urls, options.splits, run)
    return Encoding(run, urls, options.out, becomes, shards, small, rank, world)


def _read_shards(urls: str, splits: Sequence[str], run: Run) -> tuple[list[VideoShard], int]:
    """(the shards with clips that are large enough, and the damaged ones; how many clips are too small)."""
    try:
        paths = find_shards(urls)
    except ValueError as error:
        raise ConfigError(str(error).replace("data.urls", "urls")) from error
    scale, shards, shapes = run.scale, [], []
    for path in paths:
        split = path.name.partition("-")[0]
        if split not in splits:
            continue
        try:
            index = ShardIndex([str(path)], split)
        except (ValueError, OSError) as error:
            shards.append(VideoShard(path, split, None, (), str(error)))
            continue
        found = [sample.shape for sample in index.samples]
        size = (scale.frames, scale.height, scale.width)
        shards.append(VideoShard(path, split, index, tuple(i for i, shape in enumerate(found) if fits(shape, size))))
        shapes += found
    if not shards:
        raise ConfigError(f"urls={urls}: none of its {len(paths)} shards is named {' or '.join(splits)}-*.tar")
    if twice := [name for name, count in Counter(shard.path.name for shard in shards).items() if count > 1]:
        raise ConfigError(f"urls={urls}: {twice[0]} is there twice; encode folders one by one")
    if not any(shard.index for shard in shards):
        raise ConfigError(f"urls={urls}: none of {len(shards)} shards can be read, such as {shards[0].problem}")
    small = len(shapes) - sum(len(shard.ids) for shard in shards)
    if small == len(shapes):
        frames, height, width = max(filter(None, shapes))[:3]
        side = short_side(scale.height, scale.width)
        raise ConfigError(
            f"scale={scale.name}: needs clips of {scale.frames} frames, {scale.height} x {scale.width} px, and none of "
            f"{small} in urls={urls} is as large (the largest has {frames} frames of {height} x {width}; none is "
            f'enlarged); `make data … args="frames={scale.frames} short_side={side}"` makes such clips of videos that '
            "are large enough"
        )
    return [shard for shard in shards if shard.ids or shard.index is None], small


def estimate(encoding: Encoding) -> str:
    """What will be made and how large it is, in words."""
    scale, clip = encoding.run.scale, encoding.sizes
    clips = sum(len(shard.ids) for shard in encoding.shards)
    small = f" ({encoding.skipped_small} more are too small)" if encoding.skipped_small else ""
    shape = lambda sides: " x ".join(map(str, sides))  # noqa: E731
    mb = lambda sides: f"{bf16_bytes(sides) / 1e6:.3g} MB"  # noqa: E731
    return (
        f"scale={scale.name}: {clips:,} clips in {len(encoding.shards)} shards{small}, "
        f"{scale.frames} frames of {scale.height} x {scale.width} px\n"
        f"  latent   {shape(clip.latent)}, {clip.tokens(clip.latent):,} tokens, {mb(clip.latent)}\n"
        f"  anchors  {clip.anchors} of {shape(clip.anchor)}, {clip.tokens(clip.anchor):,} tokens, "
        f"{mb(clip.anchor)} each\n"
        f"  text     at most {shape(clip.text)}, {mb(clip.text)}\n"
        f"  a clip {clip.clip_bytes / 1e6:.3g} MB, all {clips * clip.clip_bytes / 1e9:,.2f} GB at most"
    )


def check_disk(encoding: Encoding) -> None:
    """That what is still to be made fits into `out`. Raises ConfigError when it does not."""
    todo = [shard for shard in encoding.shards if not (encoding.identity and encoding.is_done(shard))]
    lengths = [len(shard.ids) for shard in todo]
    # a shard is put together of its clips: both are there for a moment, of every call at work
    need = encoding.sizes.clip_bytes * (sum(lengths) + sum(sorted(lengths)[-encoding.world :]))
    check_space("out", encoding.out, need, "give an out= on another disk, fewer anchors=, or splits=train")


def find_weights(encoding: Encoding) -> None:
    """Find and check the weights, and name the folder. Raises ConfigError when they are wanting."""
    run = encoding.run
    encoding.weights = locate(run.trainer.weights)
    check(encoding.weights, PARTS)
    vae, text = (json.loads((encoding.weights / part / "config.json").read_text()) for part in PARTS[:2])
    codec: Any = run.codec
    for key, wanted, config, name in (
        ("codec.channels", codec.channels, vae, "z_dim"),
        ("codec.factor", codec.factor, vae, "scale_factor_spatial"),
        ("codec.frames_factor", codec.frames_factor, vae, "scale_factor_temporal"),
        ("backbone.text_dim", run.backbone.text_dim, text, "d_model"),
    ):
        if (found := config.get(name, wanted)) != wanted:
            raise ConfigError(f"{key}={wanted}: the weights in {encoding.weights} have {found}")
    check_device(run)
    encoding.identity = {
        "format": FORMAT,
        "encoded": encoding_settings(run.scale, run.codec, run.degradation, run.backbone),
        "anchors": encoding.sizes.anchors,
        "seed": run.seed,
        "weights": {part: fingerprint(encoding.weights / part) for part in PARTS},
        "accelerator": run.trainer.accelerator,
        "clips": digest([[shard.path.name, _content(shard)] for shard in encoding.shards], 16),
    }


def _content(shard: VideoShard) -> str:
    """What is in a shard: its sha256 if a manifest knows it."""
    if (known := manifest_entry(shard.path)) is not None:
        return known["sha256"]
    return "damaged" if shard.index is None else shard.index.fingerprint
