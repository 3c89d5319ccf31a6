"""Real video as a training source: random crops of the clips in shards."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import count as count_from
from itertools import product
from typing import ClassVar, Generic, TypeVar

import numpy as np

from pw.data import Clips, Evaluation, LabelledClips
from pw.data.buckets import Bucket, BucketMix, Sizes, assigned, check_buckets, fits
from pw.data.shard_index import REMEDY, ShardError, ShardIndex, StoredClip, shard_digest
from pw.io.lazy import Tensor, torch
from pw.io.video import Frames, to_float

log = logging.getLogger(__name__)

Clip = TypeVar("Clip")
Item = TypeVar("Item")


@dataclass(frozen=True)
class ShardClips:
    """Random crops of the clips in shards: `size` px high, `width` px wide (0: square), `frames` frames.

    Whole frames reduced to 24 px would lose their texture, so clips are cropped instead.

    buckets         sizes (frames, height, width) of training clips, in the place of the one size (`pw.data.buckets`)
    bucket_weights  how many batches each bucket has; None: in proportion to its clips
    """

    urls: str
    frames: int
    size: int
    train_split: str = "train"
    eval_split: str = "val"
    width: int = 0
    buckets: Sizes | None = None
    bucket_weights: tuple[float, ...] | None = None
    twins_share_structure: ClassVar[bool] = False
    mix: BucketMix | None = field(init=False, repr=False, compare=False)
    _train: tuple[_Pool, ...] = field(init=False, repr=False, compare=False)
    _eval: _Pool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("frames", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, not {getattr(self, name)}")
        if self.width < 0:
            raise ValueError(f"data.width={self.width}: a number of px, or 0 for data.size")
        crop = (self.frames, self.size, self.width or self.size)
        buckets, train = check_buckets(self.buckets, self.bucket_weights), ShardIndex(self.urls, self.train_split)
        object.__setattr__(self, "_train", _bucket_pools(train, buckets) if buckets else (_Pool(train, crop),))
        mix = BucketMix.of(buckets, self.bucket_weights, [*map(len, self._train)]) if buckets else None
        object.__setattr__(self, "mix", mix)
        object.__setattr__(self, "_eval", _Pool(ShardIndex(self.urls, self.eval_split), crop))

    def fingerprint(self) -> str:
        crops = [pool.crop for pool in self._train]
        return shard_digest(self._train[0].index.fingerprint, self._eval.index.fingerprint, *crops)

    def evaluated(self) -> str:
        """The fingerprint without buckets, which divide the clips to train on and change none to evaluate on."""
        return shard_digest(self._train[0].index.fingerprint, self._eval.index.fingerprint, self._eval.crop)

    @property
    def has_captions(self) -> bool:
        """Whether any clip to train on has a caption."""
        return any(pool.has_captions for pool in self._train)

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """The empty prompt, then all different captions of both splits: `LabelledClips` has their positions."""
        return "", *sorted({caption for pool in (*self._train, self._eval) for caption in pool.captions()})

    @cached_property
    def _label(self) -> dict[str, int]:
        return {caption: label for label, caption in enumerate(self.captions)}

    def labels(self, captions: Sequence[str]) -> Tensor:
        """The positions of captions of these clips in `captions`, int64."""
        return torch.tensor([self._label[caption] for caption in captions])

    def batch(self, seed: int, index: int, batch_size: int, part: int = 0, parts: int = 1) -> Tensor | LabelledClips:
        """Every clip comes once per epoch of its bucket, in an order drawn from (seed, epoch); its crop, and which of
        its captions it has, from (seed, position).

        part, parts  the index-th batch has so many parts of `batch_size` clips, all in one bucket; which is taken
        """
        bucket, turn = (0, index) if self.mix is None else self.mix.turn(seed, index)
        first = (turn * parts + part) * batch_size
        positions = range(first, first + batch_size)
        crops, captions = zip(*(self._training_clip(seed, bucket, position) for position in positions), strict=True)
        pixels = torch.stack(crops)
        return LabelledClips(pixels, self.labels(captions)) if self.has_captions else pixels

    def evaluation(self, count: int, seed: int) -> Evaluation:
        """Two sets of held-out crops. Clips alternate between the sets, so that both have crops of all videos.

        With fewer clips than crops, a clip gives several crops, which overlap only if there is no other room; `note`
        counts them. A single clip gives both sets, with different crops.
        """
        clips = range(len(self._eval))
        is_single = len(clips) == 1
        sets, reader = [], ClipReader(self._eval)
        for turn in (0, 1):
            positions = clips if is_single else clips[turn::2]
            sets.append(LazyList(self._crops(positions, slice(turn * is_single, None, 1 + is_single), seed, reader)))

        def note() -> str:
            notes = []
            for crops in (lazy.first(count) for lazy in sets):
                overlapping = sum(not crop.is_separate for crop in crops)
                notes.append(f"{len({crop.clip for crop in crops})} clips ({overlapping} crops overlap others)")
            shared = "the same single clip in both" if is_single else "no clip in both"
            passed_over = unreadable(self._eval.passed_over())
            return f"{count} crops each, from {notes[0]} and {notes[1]}, {shared}{passed_over}"

        def clips_of(crops: LazyList[_Crop]) -> Clips:
            return Clips(count, lambda i: _cut(reader.read(crops[i].clip).frames, crops[i].start, self._eval.crop))

        def captions() -> tuple[str, ...]:
            if not self._eval.has_captions:
                return ()
            return tuple(next(iter(self._eval.captions_of(crop.clip)), "") for crop in sets[0].first(count))

        return Evaluation(clips_of(sets[0]), clips_of(sets[1]), note, captions)

    def passed_over(self) -> list[str]:
        return sorted(name for pool in self._train for name in pool.passed_over())

    def _training_clip(self, seed: int, bucket: int, position: int) -> tuple[Tensor, str]:
        pool, place = self._train[bucket], in_bucket(bucket, position)
        epoch, turn = divmod(position, len(pool))
        clip = pool.take(epoch_order(len(pool), seed, epoch), turn)
        frames, generator = clip.frames, seeded_rng(seed, *place)
        crop = _cut(frames, _random_start(frames.shape, pool.crop, generator), pool.crop)
        caption = clip.captions[choice(len(clip.captions), seed, *place)] if clip.captions else ""
        return _to_video(crop[:, :, ::-1] if _randint(2, generator) else crop), caption

    def _crops(self, clips: Sequence[int], part: slice, seed: int, reader: ClipReader[StoredClip]) -> Iterator[_Crop]:
        """Endless crops: one of each clip, then more, then overlapping ones; `part` limits the tiles of each clip."""
        generator = seeded_rng(seed, "evaluation", *clips[:1])
        order = torch.randperm(len(clips), generator=generator).tolist()
        tiles: dict[int, list[tuple[int, ...]]] = {}
        for turn in count_from():
            for clip in (clips[i] for i in order):
                if not reader.is_readable(clip):
                    continue
                shape = reader.read(clip).frames.shape
                if clip not in tiles:
                    tiles[clip] = _tiles(shape, self._eval.crop, seeded_rng(seed, "tiles", clip))[part]
                if is_separate := turn < len(tiles[clip]):
                    start = tiles[clip][turn]
                elif all(turn >= len(starts) for starts in tiles.values()):
                    start = _random_start(shape, self._eval.crop, generator)
                else:
                    continue
                yield _Crop(clip, start, is_separate)
            if not tiles:
                raise ShardError(f"none of {len(clips)} clips to evaluate on can be read; {REMEDY}")


class ClipPool(ABC, Generic[Clip]):
    """Clips by position, some of which may be unreadable.

    An unreadable clip is skipped with a warning; more than 1 % and more than ten of them are an error.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids
        self.bad: set[int] = set()

    @abstractmethod
    def read(self, i: int) -> Clip:
        """The clip with one of `ids`. Raises ShardError if it is unreadable."""

    @abstractmethod
    def name(self, i: int) -> str:
        """`<shard>/<key>`, for messages."""

    def passed_over(self) -> list[str]:
        """Names of the clips that were found unreadable so far."""
        return sorted(self.name(self.ids[i]) for i in self.bad)

    def __len__(self) -> int:
        return len(self.ids)

    def get(self, i: int) -> Clip | None:
        if i in self.bad:
            return None
        try:
            return self.read(self.ids[i])
        except ShardError as error:
            self.bad.add(i)
            log.warning("%s; skipped", error)
            if len(self.bad) > max(10, len(self) // 100) or len(self.bad) == len(self):
                raise ShardError(f"{len(self.bad)} of {len(self)} clips unreadable; {error}") from error
            return None

    def take(self, order: Sequence[int], place: int) -> Clip:
        """The clip at `place` of `order`, or the next readable one."""
        clips = (self.get(order[(place + step) % len(order)]) for step in range(len(order)))
        return next(clip for clip in clips if clip is not None)


class ClipReader(Generic[Clip]):
    """Reads clips of a pool and caches the last one: to check a clip and then read it takes one read."""

    def __init__(self, pool: ClipPool[Clip]) -> None:
        self._pool = pool
        self._last: tuple[int, Clip] | None = None

    def is_readable(self, i: int) -> bool:
        if self._last is None or self._last[0] != i:
            self._last = None  # before the next is read: one clip in memory, not two
            clip = self._pool.get(i)
            self._last = None if clip is None else (i, clip)
        return self._last is not None

    def read(self, i: int) -> Clip:
        """The i-th clip. Raises ShardError if it is unreadable."""
        if not self.is_readable(i) or self._last is None:
            raise ShardError(f"{self._pool.name(self._pool.ids[i])}: was readable before, and no longer is; {REMEDY}")
        return self._last[1]


class LazyList(Generic[Item]):
    """The items of an iterator by position; it advances only as far as needed."""

    def __init__(self, iterator: Iterator[Item]) -> None:
        self._iterator = iterator
        self._items: list[Item] = []

    def __getitem__(self, i: int) -> Item:
        return self.first(i + 1)[i]

    def first(self, count: int) -> list[Item]:
        while len(self._items) < count:
            self._items.append(next(self._iterator))
        return self._items[:count]


@dataclass(frozen=True)
class _Crop:
    """Position of an evaluation crop: its clip, (frame, row, column), and whether it overlaps no other."""

    clip: int
    start: tuple[int, ...]
    is_separate: bool


class _Pool(ClipPool[StoredClip]):
    """The clips of a split that are at least as large as the crop (frames, height, width); of them `ids`, if given."""

    def __init__(self, index: ShardIndex, crop: tuple[int, int, int], ids: Sequence[int] | None = None) -> None:
        self.index, self.crop = index, crop
        if ids is not None:
            super().__init__(ids)
            return
        super().__init__([i for i, sample in enumerate(index.samples) if fits(sample.shape, crop)])
        if not self.ids:
            frames, height, width = max(sample.shape or () for sample in index.samples)[:3]
            raise ValueError(
                f"no {index.split!r} clip has {crop[0]} frames of {crop[1]}x{crop[2]} px, the largest "
                f"has {frames} of {height}x{width}: lower scale.frames, scale.height or scale.width, or make larger "
                f'clips with `make data … args="frames={crop[0]} short_side={short_side(*crop[1:])}"`, or with the '
                "scale= of this call"
            )
        if len(self.ids) < len(index):
            small = len(index) - len(self.ids)
            log.warning("%d of %d %s clips are smaller than the crop", small, len(index), index.split)

    def read(self, i: int) -> StoredClip:
        return self.index.read(i)

    @property
    def has_captions(self) -> bool:
        return any("txt" in self.index.samples[i].members for i in self.ids)

    def captions_of(self, i: int) -> tuple[str, ...]:
        """The captions of the i-th clip."""
        return self.index.captions(self.ids[i])

    def captions(self) -> Iterator[str]:
        """All captions of all clips; reads no frames."""
        return (caption for i in range(len(self)) for caption in self.captions_of(i))

    def name(self, i: int) -> str:
        return self.index.samples[i].name


def _bucket_pools(index: ShardIndex, buckets: Sequence[Bucket]) -> tuple[_Pool, ...]:
    """The clips of each bucket. Raises ValueError if one has none."""
    numbers = assigned([sample.shape for sample in index.samples], buckets, str(index.samples[0].shard.parent))
    if small := numbers.count(None):
        log.warning("%d of %d %s clips are smaller than every bucket", small, len(index), index.split)
    ids: list[list[int]] = [[i for i, own in enumerate(numbers) if own == number] for number in range(len(buckets))]
    return tuple(_Pool(index, bucket, own) for bucket, own in zip(buckets, ids, strict=True))


def short_side(height: int, width: int) -> int:
    """The `short_side` of `make data` whose clips, of 16:9 or wider, cover `height` x `width` px or its transpose."""
    short, long = sorted((height, width))
    return max(short, math.ceil(long * 9 / 16))


def unreadable(names: Sequence[str]) -> str:
    """The end of an evaluation's note: the names of unreadable clips."""
    return f"; unreadable: {', '.join(names)}" if names else ""


def seeded_rng(*parts: int | str) -> torch.Generator:
    """A random generator seeded by some numbers and words."""
    return torch.Generator().manual_seed(int(shard_digest(*parts), 16))


@lru_cache(maxsize=4)
def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(n, generator=seeded_rng(seed, "epoch", epoch)).tolist()


def in_bucket(bucket: int, position: int) -> tuple[int, ...]:
    """What identifies a position in the order of a bucket: those of the first are the positions of one size alone."""
    return (position, bucket) if bucket else (position,)


def choice(count: int, seed: int, *position: int) -> int:
    """Which of a clip's `count` captions the position in the order has, evenly drawn: a random stream of its own."""
    return 0 if count < 2 else _randint(count, seeded_rng(seed, "caption", *position))


def _randint(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (), generator=generator))


def _random_start(shape: tuple[int, ...], crop: tuple[int, int, int], generator: torch.Generator) -> tuple[int, ...]:
    return tuple(_randint(have - need + 1, generator) for have, need in zip(shape, crop, strict=False))


def _tiles(shape: tuple[int, ...], crop: tuple[int, int, int], generator: torch.Generator) -> list[tuple[int, ...]]:
    """Starts (frame, row, column) of as many crops as fit side by side, shifted and ordered at random."""
    remainder = tuple(have % need for have, need in zip(shape, crop, strict=False))
    shift = _random_start(tuple(r + 1 for r in remainder), (1, 1, 1), generator)
    grid = [range(first, first + have - need + 1, need) for first, have, need in zip(shift, shape, crop, strict=False)]
    starts = list(product(*grid))
    return [starts[i] for i in torch.randperm(len(starts), generator=generator).tolist()]


def _cut(frames: Frames, start: tuple[int, ...], crop: tuple[int, int, int]) -> Frames:
    return frames[tuple(slice(at, at + extent) for at, extent in zip(start, crop, strict=True))]


def _to_video(frames: Frames) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(to_float(frames)))
