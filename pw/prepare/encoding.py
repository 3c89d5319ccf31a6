"""The checked plan of a `pw latents` call: which clips are encoded, the sizes of their latents, the output folder."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pw.cost.generation_cost import coding, text_encoding
from pw.cost.rates import rate_text, rates_of
from pw.data.buckets import assigned, fits
from pw.data.latents import encoding_settings
from pw.data.shard_index import ShardIndex, find_shards, manifest_entry
from pw.io.arguments import ConfigError, number, option
from pw.io.files import check_space, digest, parse_json
from pw.io.progress import duration
from pw.io.wan_weights import check, fingerprint, locate
from pw.nn.options import WanVAE
from pw.prepare.forecast import WAN_FPS, data_command, manifest
from pw.run.build import Run, build
from pw.run.strategies import as_config_error
from pw.train.preflight import check_device

PARTS = ("vae", "text_encoder", "tokenizer")
FORMAT = 1  # of the written files, part of the digest
MOST_CALLS = 10_000


@dataclass(frozen=True)
class LatentsOptions:
    """Options of `pw latents`."""

    urls: str | None = option(None, "the shards of `pw data scale=…`; data/shards-SCALE by default")
    anchors: int = option(8, "degraded anchors of each clip; training draws one of them", read=number(1, 1000))
    out: Path = option(Path("data/latents"), "parent of the folder SCALE-DIGEST that is made or resumed")
    splits: tuple[Literal["train", "val"], ...] = option(("train", "val"), "which clips; training reads those of train")
    rank: int | None = option(None, "index of this call, of world calls; torchrun sets it", read=number(0, MOST_CALLS))
    world: int | None = option(
        None, "number of calls that share the work; each takes every world-th shard", read=number(1, MOST_CALLS)
    )
    dry_run: bool = option(False, "print sizes and check the disk space; needs no weights")
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for override in self.overrides:
            if override.startswith("data="):
                raise ConfigError(f"{override}: clips are read from urls=DIR here")
            if override.startswith("data.bucket_weights="):
                raise ConfigError(
                    f"{override}: every clip is encoded once, whatever its bucket weighs; give it to the training "
                    "(`pw train data=latents`)"
                )


@dataclass(frozen=True)
class VideoShard:
    """A shard of video. `ids`: indices of the clips that are large enough; `problem`: why it has no index.

    buckets  the bucket of each of these clips; None: all have the size of the scale
    """

    path: Path
    split: str
    index: ShardIndex | None
    ids: tuple[int, ...]
    problem: str = ""
    buckets: tuple[int, ...] | None = None


@dataclass(frozen=True)
class LatentSizes:
    """Shapes of the tensors of an encoded clip; of the text, the largest, as its length differs.

    captions  largest number that a clip has
    """

    latent: tuple[int, int, int, int]
    anchor: tuple[int, int, int, int]
    anchors: int
    text: tuple[int, int]
    patch: tuple[int, int, int]
    captions: int = 1

    @property
    def clip_bytes(self) -> int:
        """Largest size of a clip."""
        texts = self.captions * bf16_bytes(self.text)
        return bf16_bytes(self.latent) + self.anchors * bf16_bytes(self.anchor) + texts

    def tokens(self, shape: tuple[int, int, int, int]) -> int:
        """Number of tokens of a latent in the network."""
        return math.prod(shape[1:]) // math.prod(self.patch)


def bf16_bytes(shape: Sequence[int]) -> int:
    """Bytes of a tensor in bf16, as it is stored."""
    return 2 * math.prod(shape)


@dataclass
class Encoding:
    """One checked call: its input and output. `find_weights` sets `weights` and `identity`, which names the folder."""

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
        """The output folder, named by the scale and a digest of everything that decides its content."""
        return self.out / f"{self.run.scale.name}-{digest(self.identity, 8)}"

    @property
    def rank_shards(self) -> list[VideoShard]:
        """The shards that this call encodes."""
        return self.shards[self.rank :: self.world]

    def record(self, shard: VideoShard) -> Path:
        """The file with the result of a shard, written last."""
        return self.folder / f"{shard.path.stem}.json"

    def is_done(self, shard: VideoShard) -> bool:
        """Whether a shard is encoded; an unreadable shard is not, and is tried again."""
        path = self.record(shard)
        return path.exists() and not parse_json(path.read_text())["problem"]


def sizes(run: Run, anchors: int) -> LatentSizes:
    """Sizes of an encoded clip of this run. Raises ConfigError unless Wan's VAE encodes it."""
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
    """Check a call; reads headers of shards, no weights. Raises ConfigError with the key and a valid value."""
    world = int(os.environ.get("WORLD_SIZE", "1")) if options.world is None else options.world
    rank = int(os.environ.get("RANK", "0")) if options.rank is None else options.rank
    if rank >= world:
        raise ConfigError(f"rank={rank}: of world={world} calls the ranks are 0 to {world - 1}")
    scale = () if any(word.startswith("scale=") for word in options.overrides) else ("scale=2k",)
    run = build([*scale, *options.overrides, "data=none"])
    # of the largest clips
    clip_sizes = max((sizes(sized, options.anchors) for sized, _ in run.in_buckets()), key=lambda one: one.clip_bytes)
    urls = str(Path(options.urls or f"data/shards-{run.scale.name}").expanduser())
    shards, skipped_small = _read_shards(urls, options.splits, run)
    clip_sizes = replace(clip_sizes, captions=max(1, manifest(urls).get("captions", {}).get("most", 1)))
    return Encoding(run, urls, options.out, clip_sizes, shards, skipped_small, rank, world)


def _read_shards(urls: str, splits: Sequence[str], run: Run) -> tuple[list[VideoShard], int]:
    """(damaged shards, and shards with clips that are large enough; number of clips that are too small)."""
    try:
        paths = find_shards(urls)
    except ValueError as error:
        text = str(error).replace("data.urls", "urls").replace("make data path=DIR", data_command(run, urls))
        raise ConfigError(text) from error
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
        clip_shapes = [sample.shape for sample in index.samples]
        size = (scale.frames, scale.height, scale.width)
        shards.append(VideoShard(path, split, index, tuple(i for i, s in enumerate(clip_shapes) if fits(s, size))))
        shapes += clip_shapes
    shards = _in_buckets(shards, run, urls)
    if not shards:
        raise ConfigError(f"urls={urls}: none of its {len(paths)} shards is named {' or '.join(splits)}-*.tar")
    if duplicates := [name for name, count in Counter(shard.path.name for shard in shards).items() if count > 1]:
        raise ConfigError(f"urls={urls}: {duplicates[0]} occurs twice; encode folders one by one")
    if not any(shard.index for shard in shards):
        raise ConfigError(f"urls={urls}: none of {len(shards)} shards can be read, such as {shards[0].problem}")
    too_small = len(shapes) - sum(len(shard.ids) for shard in shards)
    if too_small == len(shapes):
        frames, height, width = max(filter(None, shapes))[:3]
        raise ConfigError(
            f"scale={scale.name}: needs clips of {scale.frames} frames, {scale.height} x {scale.width} px, and none of "
            f"{too_small} in urls={urls} is as large (the largest has {frames} frames of {height} x {width}; none is "
            f"enlarged); `{data_command(run, urls)}` makes such clips of videos that are large enough"
        )
    return [shard for shard in shards if shard.ids or shard.index is None], too_small


def _in_buckets(shards: list[VideoShard], run: Run, urls: str) -> list[VideoShard]:
    """The shards of train with the clips of the run's buckets; those of val keep the size of the scale, as evaluations
    do. Raises ConfigError for a bucket without clips."""
    train = [shard for shard in shards if shard.split == "train" and shard.index is not None]
    if run.mix is None or not train:
        return shards
    shapes = [sample.shape for shard in train if shard.index is not None for sample in shard.index.samples]
    with as_config_error():
        numbers = iter(assigned(shapes, run.mix.buckets, urls))
    for shard in train:
        assert shard.index is not None
        own = {i: number for i, number in zip(range(len(shard.index)), numbers, strict=False) if number is not None}
        shards[shards.index(shard)] = replace(shard, ids=tuple(own), buckets=tuple(own.values()))
    return shards


def estimate(encoding: Encoding) -> str:
    """The text that describes number and size of the latents, and how long they take."""
    scale, clip = encoding.run.scale, encoding.sizes
    clips = sum(len(shard.ids) for shard in encoding.shards)
    note = f" ({encoding.skipped_small} more are too small)" if encoding.skipped_small else ""
    shape = lambda sides: " x ".join(map(str, sides))  # noqa: E731
    megabytes = lambda sides: f"{bf16_bytes(sides) / 1e6:.3g} MB"  # noqa: E731
    rate, note_rate = manifest(encoding.urls).get("settings", {}).get("fps"), ""
    if rate is not None and not 0 < rate <= WAN_FPS:
        kept = f"up to {rate:g}" if rate else "all"
        note_rate = f"\n  note     the shards keep {kept} frames/s of their videos; Wan's have {WAN_FPS:g}"
    each = f", for each of at most {clip.captions} captions" if clip.captions > 1 else ""
    buckets = "" if encoding.run.mix is None else f"; to train {', '.join(map(str, encoding.run.mix.buckets))}"
    work = len(encoding.rank_shards) / len(encoding.shards) * clips * seconds_of_clip(encoding)
    return (
        f"scale={scale.name}: {clips:,} clips in {len(encoding.shards)} shards{note}, "
        f"{scale.frames} frames of {scale.height} x {scale.width} px{buckets}\n"
        f"  latent   {shape(clip.latent)}, {clip.tokens(clip.latent):,} tokens, {megabytes(clip.latent)}\n"
        f"  anchors  {clip.anchors} of {shape(clip.anchor)}, {clip.tokens(clip.anchor):,} tokens, "
        f"{megabytes(clip.anchor)} each\n"
        f"  text     at most {shape(clip.text)}, {megabytes(clip.text)}{each}\n"
        f"  a clip {clip.clip_bytes / 1e6:.3g} MB, all {clips * clip.clip_bytes / 1e9:,.2f} GB at most\n"
        f"  time     about {duration(work)} {rate_text(encoding.run)}{note_rate}"
    )


def seconds_of_clip(encoding: Encoding) -> float:
    """Estimated time of encoding a clip, its anchors and its caption on one device."""
    seconds = 0.0
    for run, weight in encoding.run.in_buckets():
        phases = [coding(run, "clip", run.scale.size, "encode"), *encoding.sizes.captions * [text_encoding(run)]]
        phases += encoding.sizes.anchors * [coding(run, "anchor", run.scale.anchor_size, "encode")]
        seconds += weight * sum(phase.seconds(rates_of(run)) for phase in phases)
    return seconds


def check_disk(encoding: Encoding) -> None:
    """Raises ConfigError unless the missing latents fit into `out`."""
    shards = [shard for shard in encoding.shards if not (encoding.identity and encoding.is_done(shard))]
    lengths = [len(shard.ids) for shard in shards]
    # while a shard is written its clips exist, too: once for every call that works
    required = encoding.sizes.clip_bytes * (sum(lengths) + sum(sorted(lengths)[-encoding.world :]))
    check_space("out", encoding.out, required, "give an out= on another disk, fewer anchors=, or splits=train")


def find_weights(encoding: Encoding) -> None:
    """Find and check the weights, and set the identity. Raises ConfigError when weights are missing or do not fit."""
    run = encoding.run
    encoding.weights = locate(run.trainer.weights)
    check(encoding.weights, PARTS)
    vae, text = (parse_json((encoding.weights / part / "config.json").read_text()) for part in PARTS[:2])
    codec: Any = run.codec
    for key, expected, config, name in (
        ("codec.channels", codec.channels, vae, "z_dim"),
        ("codec.factor", codec.factor, vae, "scale_factor_spatial"),
        ("codec.frames_factor", codec.frames_factor, vae, "scale_factor_temporal"),
        ("backbone.text_dim", run.backbone.text_dim, text, "d_model"),
    ):
        if (actual := config.get(name, expected)) != expected:
            raise ConfigError(f"{key}={expected}: the weights in {encoding.weights} have {actual}")
    check_device(run)
    encoding.identity = {
        "format": FORMAT,
        "encoded": encoding_settings(run.scale, run.codec, run.degradation, run.backbone),
        "anchors": encoding.sizes.anchors,
        "seed": run.seed,
        "weights": {part: fingerprint(encoding.weights / part) for part in PARTS},
        "accelerator": run.trainer.accelerator,
        "clips": digest([[shard.path.name, _content(shard)] for shard in encoding.shards], 16),
        **({} if run.mix is None else {"buckets": [[*bucket] for bucket in run.mix.buckets]}),
    }


def _content(shard: VideoShard) -> str:
    """Identifies the content of a shard: sha256 from its manifest, else the fingerprint of its index."""
    if (entry := manifest_entry(shard.path)) is not None:
        return entry["sha256"]
    return "damaged" if shard.index is None else shard.index.fingerprint
