"""Encoded video as a training source, read without a codec; `pw latents` (`pw.prepare.encode`) writes it.

<folder>/latents.json       source, settings and weights of the encoding; their digest is in the folder's name
<folder>/empty.safetensors  `text` [length, D]: the empty prompt's embedding, for condition dropout
<folder>/train-000000.tar   webdataset, one for each shard of video. bf16 <key>.safetensors: `latent` [C, F', h, w],
                            `anchors` [n, C, F', h', w'], `text` [length, D], of more captions `text_1` and so on;
                            <key>.json: captions and origin
<folder>/train-000000.json  the shard's record, written last: a shard without it is unfinished; with buckets it has
                            that of each clip
<folder>/.unfinished/       the encoded clips of unfinished shards, one file each
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pw.data import Clips, Evaluation, LatentBatch
from pw.data.buckets import Bucket, BucketMix, check_buckets, fits
from pw.data.shard_index import ShardError, ShardIndex, StoredClip, index_tar, read_member, shard_digest
from pw.data.shards import ClipPool, ClipReader, LazyList, choice, epoch_order, in_bucket, seeded_rng, unreadable
from pw.io.files import parse_json
from pw.io.lazy import Tensor, torch
from pw.io.video import Frames, to_float

log = logging.getLogger(__name__)

RECORD = "latents.json"
EMPTY = "empty.safetensors"
UNFINISHED = ".unfinished"
ENDINGS = ("safetensors", "json")
REMEDY = "encode it again: remove it and its .json, and call `make latents` as before"
TRAINING_KEYS = ("noise", "noise_probability")  # of a degradation: drawn in every update, so not stored
SIZES = ("frames", "height", "width", "anchor_height", "anchor_width", "anchor_upsample")


def text_name(number: int) -> str:
    """The name of the embedding of a clip's caption."""
    return f"text_{number}" if number else "text"


def encoding_settings(scale: Any, codec: Any, degradation: Any, backbone: Any) -> dict[str, Any]:
    """The settings of a run that determine the encoding of a clip, {group: {key: JSON value}}."""
    settings = {
        "scale": {name: getattr(scale, name) for name in SIZES},
        "codec": {"kind": type(codec).__name__, **getattr(codec, "encoding", dataclasses.asdict(codec))},
        "degradation": {"kind": type(degradation).__name__, **_encoding_keys(dataclasses.asdict(degradation))},
        "backbone": {"text_tokens": backbone.text_tokens, "text_dim": backbone.text_dim},
    }
    return json.loads(json.dumps(settings))


def _encoding_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _encoding_keys(v) if isinstance(v, Mapping) else v for k, v in values.items() if k not in TRAINING_KEYS}


def fit(frames: Frames, size: tuple[int, int, int]) -> Tensor:
    """uint8 [F, H, W, 3] of at least `size` -> its first frames, float32 [3, *size] in [-1, 1].

    Larger frames are reduced (bicubic, antialiased) to the smallest size that covers `size`, and centre-cropped to it.
    """
    length, height, width = size
    video = torch.empty(3, *size)
    factor = max(height / frames.shape[1], width / frames.shape[2])
    reduced_size = (max(height, round(frames.shape[1] * factor)), max(width, round(frames.shape[2] * factor)))
    for number in range(length):  # one at a time: 121 frames of 4K are 12 GB
        picture = torch.from_numpy(to_float(frames[number : number + 1])).transpose(0, 1)
        if factor < 1:
            picture = torch.nn.functional.interpolate(picture, size=reduced_size, mode="bicubic", antialias=True)
            picture = picture.clamp(-1, 1)
        video[:, number] = _centre_crop(picture[0], height, width)
    return video


def fit_frames(frames: Frames, size: tuple[int, int, int]) -> Tensor | Frames:
    """`fit`, but clips that need no reduction stay uint8 [F, H, W, 3]."""
    length, height, width = size
    if max(height / frames.shape[1], width / frames.shape[2]) < 1:
        return fit(frames, size)
    return _centre_crop(frames[:length], height, width)


def _centre_crop(pictures: Any, height: int, width: int) -> Any:
    top, left = (pictures.shape[1] - height) // 2, (pictures.shape[2] - width) // 2
    return pictures[:, top : top + height, left : left + width]


@dataclass(frozen=True)
class LatentClips:
    """Latents of real video, with anchors and captions; the order of `batch` is that of `ShardClips`.

    urls            a folder data/latents/<scale>-<digest> of `make latents`; ShardError if it is missing or incomplete
    text_tokens     length of an embedding with its padding
    bucket_weights  how many batches each of the folder's buckets has; None: in proportion to its clips
    """

    urls: str
    text_tokens: int
    bucket_weights: tuple[float, ...] | None = None
    twins_share_structure: ClassVar[bool] = False
    _record: dict[str, Any] = field(init=False, repr=False, compare=False)
    mix: BucketMix | None = field(init=False, repr=False, compare=False)
    _train: EncodedClips = field(init=False, repr=False, compare=False)
    _pools: tuple[EncodedClips, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        record = read_record(self.urls)
        sizes = record.get("buckets")
        buckets = check_buckets(sizes and tuple((f, h, w) for f, h, w in sizes), self.bucket_weights)
        train = EncodedClips(Path(self.urls), record, "train")
        pools = tuple(train.of_bucket(number, bucket) for number, bucket in enumerate(buckets)) or (train,)
        mix = BucketMix.of(buckets, self.bucket_weights, [*map(len, pools)]) if buckets else None
        for name, value in {"_record": record, "_train": train, "_pools": pools, "mix": mix}.items():
            object.__setattr__(self, name, value)

    def check(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Raises ValueError naming a key of a run's `encoding_settings` that the clips were not encoded with."""
        for group, values in settings.items():
            encoded = self._record["encoded"][group]
            for name in {**values, **encoded}:
                if values.get(name) == encoded.get(name):
                    continue
                key = group if name == "kind" else f"{group}.{name}"
                raise ValueError(
                    f"{key}={values.get(name)}: data.urls={self.urls} was encoded with {encoded.get(name)} (scale="
                    f"{self._record['scale']}); set {key} to that, or encode with this by `make latents`"
                )

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with source, settings and available clips."""
        parts = [(key, *sizes) for key, sizes in self._train.sizes()]
        return shard_digest(self._record["digest"], *parts)

    def null_text(self) -> Tensor:
        """The empty prompt's embedding, float32 [tokens, D], padded with zeros."""
        path = Path(self.urls) / EMPTY
        try:
            return padded(_tensors(path.read_bytes())["text"], self.text_tokens)
        except (OSError, ValueError, KeyError) as error:
            raise ShardError(f"{path}: cannot be read ({error}); {REMEDY}") from error

    def batch(self, seed: int, index: int, batch_size: int, part: int = 0, parts: int = 1) -> LatentBatch:
        """Every clip comes once per epoch of its bucket, in an order drawn from (seed, epoch); its anchor, and which of
        its captions it has, from (seed, position). part, parts: as in `ShardClips.batch`."""
        bucket, turn = (0, index) if self.mix is None else self.mix.turn(seed, index)
        first = (turn * parts + part) * batch_size
        positions = range(first, first + batch_size)
        latents, anchors, texts = zip(*(self._clip(seed, bucket, position) for position in positions), strict=True)
        return LatentBatch(torch.stack(latents), torch.stack(anchors), torch.stack(texts), self.null_text())

    def _clip(self, seed: int, bucket: int, position: int) -> tuple[Tensor, Tensor, Tensor]:
        pool, place = self._pools[bucket], in_bucket(bucket, position)
        epoch, turn = divmod(position, len(pool))
        encoded = pool.take(epoch_order(len(pool), seed, epoch), turn)
        i = int(torch.randint(len(encoded["anchors"]), (), generator=seeded_rng(seed, *place)))
        captions = sum(name.startswith("text") for name in encoded)
        text = encoded[text_name(choice(captions, seed, *place))]
        return encoded["latent"].float(), encoded["anchors"][i].float(), padded(text, self.text_tokens)

    def passed_over(self) -> list[str]:
        return sorted(name for pool in self._pools for name in pool.passed_over())

    def held_out(self) -> str:
        """Sixteen hex digits of the evaluation clips; `none` if the videos are not on the disk."""
        try:
            index = ShardIndex(self._record["urls"], "val")
        except ValueError:
            return "none"
        return shard_digest(*((sample.key, str(sample.shape)) for sample in index.samples))

    def _pool(self) -> _HeldOutPool:
        """The held-out clips that are large enough. Raises ValueError if their shards are not on the disk."""
        videos, scale = self._record["urls"], self._record["encoded"]["scale"]
        try:
            index = ShardIndex(videos, "val")
        except ValueError as error:
            raise ValueError(
                f"data.urls={self.urls}: evaluation clips are the val shards of the videos in {videos}, and those "
                f"cannot be read ({error}); put them back there"
            ) from error
        return _HeldOutPool(index, (scale["frames"], scale["height"], scale["width"]))

    def check_evaluation(self, count: int) -> None:
        """Raises ValueError if too few held-out clips are large enough for two sets of `count`; reads sizes only."""
        self._check_count(len(self._pool()), count)

    def _check_count(self, available: int, count: int) -> None:
        if available < 2 * count:
            raise ValueError(
                f"sampling.count={count}: {self._record['urls']} has {available} held-out clips for two sets; "
                f"use sampling.count={available // 2}, or more or longer videos"
            )

    def evaluation(self, count: int, seed: int) -> Evaluation:
        """Two disjoint sets of held-out clips in pixels, from the videos that were encoded, cropped in the same way.

        Raises ValueError if shards or clips are missing, and, at the clips' first use, if too few are readable.
        """
        pool = self._pool()
        self._check_count(len(pool), count)
        reader = ClipReader(pool)
        held_out = LazyList(self._held_out(pool, reader, count, seed))

        def note() -> str:
            held_out.first(2 * count)
            return f"{count} clips each of {self._record['urls']}, no clip in both{unreadable(pool.passed_over())}"

        def clips(turn: int) -> Clips:
            return Clips(count, lambda i: fit_frames(reader.read(held_out[2 * i + turn][0]).frames, pool.size))

        return Evaluation(clips(0), clips(1), note, lambda: tuple(text for _, text in held_out.first(2 * count)[::2]))

    def _held_out(
        self, pool: _HeldOutPool, reader: ClipReader[StoredClip], count: int, seed: int
    ) -> Iterator[tuple[int, str]]:
        """(position, caption) of readable clips, in random order. Raises ValueError if there are too few."""
        readable = 0
        for i in torch.randperm(len(pool), generator=seeded_rng(seed, "evaluation")).tolist():
            if reader.is_readable(i):
                readable += 1
                yield i, reader.read(i).caption
        self._check_count(readable, count)


class _HeldOutPool(ClipPool[StoredClip]):
    def __init__(self, index: ShardIndex, size: tuple[int, int, int]) -> None:
        self.index, self.size = index, size
        super().__init__([i for i, sample in enumerate(index.samples) if fits(sample.shape, size)])

    def read(self, i: int) -> StoredClip:
        return self.index.read(i)

    def name(self, i: int) -> str:
        return self.index.samples[i].name


class EncodedClips(ClipPool["dict[str, Tensor]"]):
    """The encoded clips of a split, by position. It holds no open file, so worker processes can share it."""

    def __init__(self, folder: Path, record: Mapping[str, Any], split: str) -> None:
        shards = [shard["file"] for shard in record["shards"] if shard["split"] == split]
        if unfinished := [name for name in shards if not (folder / name).with_suffix(".json").is_file()]:
            raise ShardError(
                f"data.urls={folder}: {len(unfinished)} of {len(shards)} shards are not encoded yet, such as "
                f"{unfinished[0]}; run the same `make latents` again to resume"
            )
        records = {name: parse_json((folder / name).with_suffix(".json").read_text()) for name in shards}
        if missing := [name for name in shards if records[name]["clips"] and not (folder / name).is_file()]:
            raise ShardError(f"{folder / missing[0]}: not there; {REMEDY}")
        self.samples = [
            (folder / name, key, parts)
            for name in shards
            if records[name]["clips"]
            for key, parts in index_tar(folder / name, ENDINGS).items()
        ]
        if incomplete := [name for name in shards if records[name]["skipped"] or records[name]["problem"]]:
            log.warning("%s: of %d shards not all could be read and encoded, see their .json", folder, len(incomplete))
        if not self.samples:
            raise ShardError(f"data.urls={folder}: no {split} clip in it; encode some that can be read")
        buckets = [records[name].get("buckets", {}) for name in shards if records[name]["clips"]]
        self.buckets: dict[str, int] = {key: number for record in buckets for key, number in record.items()}
        super().__init__(range(len(self.samples)))

    def of_bucket(self, number: int, bucket: Bucket) -> EncodedClips:
        """The clips of one bucket. Raises ShardError if it has none."""
        pool = copy.copy(self)
        pool.ids, pool.bad = [i for i, (_, key, _) in enumerate(self.samples) if self.buckets.get(key) == number], set()
        if not pool.ids:
            raise ShardError(f"data.urls={self.samples[0][0].parent}: no clip of bucket {bucket} could be encoded")
        return pool

    def sizes(self) -> Iterator[tuple[str, list[int]]]:
        return ((key, [size for _, size in parts.values()]) for _, key, parts in self.samples)

    def read(self, i: int) -> dict[str, Tensor]:
        path, key, parts = self.samples[i]
        try:
            tensors = _tensors(read_member(path, *parts["safetensors"]))
            texts = [text_name(number) for number in range(max(1, len(tensors) - 2))]
            return {name: tensors[name] for name in ("latent", "anchors", *texts)}
        except (ValueError, KeyError, OSError) as error:
            raise ShardError(f"{path}: cannot read {key!r} ({error}); {REMEDY}") from error

    def name(self, i: int) -> str:
        path, key, _ = self.samples[i]
        return f"{path.name}/{key}"


def _tensors(content: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def padded(text: Tensor, tokens: int) -> Tensor:
    """[length, D] -> [tokens, D], with zeros."""
    return torch.nn.functional.pad(text.float(), (0, 0, 0, tokens - len(text)))


def read_record(urls: str) -> dict[str, Any]:
    """The `latents.json` of a folder. Raises ShardError."""
    folder = Path(urls)
    path = folder / RECORD
    if not path.is_file():
        folders = sorted(path.parent.name for path in folder.glob(f"*/{RECORD}"))
        hint = f"choose one of its folders: {', '.join(folders)}" if folders else "`make latents` writes one"
        raise ShardError(f"data.urls={urls}: no {RECORD} in it; {hint}")
    try:
        record = parse_json(path.read_text())
        _ = record["digest"], record["scale"], record["encoded"], record["urls"], [s["split"] for s in record["shards"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: not what `make latents` writes ({error}); {REMEDY}") from error
    return record
