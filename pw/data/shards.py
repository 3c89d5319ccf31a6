"""Real video as a training source: random crops of the clips in shards."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count as count_from
from itertools import product
from typing import ClassVar, Generic, TypeVar

import numpy as np

from pw.data import Clips, Evaluation
from pw.data.shard_index import REMAKE, ShardError, ShardIndex, shard_digest
from pw.io.lazy import Tensor, torch
from pw.io.video import Frames, to_float

log = logging.getLogger(__name__)

Read = TypeVar("Read")
Item = TypeVar("Item")


@dataclass(frozen=True)
class ShardClips:
    """Random crops of the clips in shards: `size` px high, `width` px wide (0: square), `frames` frames.

    Whole frames shrunk to 24 px would keep no texture, so moderately reduced ones are cropped.
    """

    urls: str
    frames: int
    size: int
    train_split: str = "train"
    eval_split: str = "val"
    width: int = 0
    twins_share_structure: ClassVar[bool] = False
    _train: _Pool = field(init=False, repr=False, compare=False)
    _eval: _Pool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("frames", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, not {getattr(self, name)}")
        if self.width < 0:
            raise ValueError(f"data.width={self.width}: a number of px, or 0 for data.size")
        crop = (self.frames, self.size, self.width or self.size)
        object.__setattr__(self, "_train", _Pool(ShardIndex(self.urls, self.train_split), crop))
        object.__setattr__(self, "_eval", _Pool(ShardIndex(self.urls, self.eval_split), crop))

    def fingerprint(self) -> str:
        return shard_digest(self._train.index.fingerprint, self._eval.index.fingerprint, self._train.crop)

    def batch(self, seed: int, index: int, batch_size: int) -> Tensor:
        """Every clip comes once per epoch, in an order drawn from (seed, epoch); its crop from (seed, position)."""
        positions = range(index * batch_size, (index + 1) * batch_size)
        return torch.stack([self._training_crop(seed, position) for position in positions])

    def evaluation(self, count: int, seed: int) -> Evaluation:
        """Two sets of held-out crops: clips are dealt to them in turn, so that both have crops of all videos.

        With fewer clips than crops, a clip gives several, which do not overlap as long as there is room; `note` says
        so. A single clip serves both sets, with different crops.
        """
        clips = range(len(self._eval))
        alone = len(clips) == 1
        sets, held = [], LastRead(self._eval)
        for turn in (0, 1):
            dealt = clips if alone else clips[turn::2]
            sets.append(LazyList(self._crops(dealt, slice(turn * alone, None, 1 + alone), seed, held)))

        def note() -> str:
            notes = []
            for crops in (found.first(count) for found in sets):
                overlapping = sum(not crop.clear for crop in crops)
                notes.append(f"{len({crop.clip for crop in crops})} clips ({overlapping} crops overlap others)")
            shared = "the same single clip in both" if alone else "no clip in both"
            passed_over = unreadable(self._eval.passed_over())
            return f"{count} crops each, from {notes[0]} and {notes[1]}, {shared}{passed_over}"

        def cut_out(crops: LazyList[_Crop]) -> Clips:
            return Clips(count, lambda i: _cut(held.read(crops[i].clip), crops[i].start, self._eval.crop))

        return Evaluation(cut_out(sets[0]), cut_out(sets[1]), note)

    def passed_over(self) -> list[str]:
        return self._train.passed_over()

    def _training_crop(self, seed: int, position: int) -> Tensor:
        epoch, place = divmod(position, len(self._train))
        frames = self._train.take(epoch_order(len(self._train), seed, epoch), place)
        generator = seeded(seed, position)
        crop = _cut(frames, _random_start(frames.shape, self._train.crop, generator), self._train.crop)
        return _to_video(crop[:, :, ::-1] if _randint(2, generator) else crop)

    def _crops(self, clips: Sequence[int], part: slice, seed: int, held: LastRead[Frames]) -> Iterator[_Crop]:
        """Crops without end: one of each clip, then further ones of each, then anywhere; within `part` of each clip."""
        generator = seeded(seed, "evaluation", *clips[:1])
        order = torch.randperm(len(clips), generator=generator).tolist()
        tiles: dict[int, list[tuple[int, ...]]] = {}
        for turn in count_from():
            for clip in (clips[i] for i in order):
                if not held.is_readable(clip):
                    continue
                shape = held.read(clip).shape
                if clip not in tiles:
                    tiles[clip] = _tiles(shape, self._eval.crop, seeded(seed, "tiles", clip))[part]
                if clear := turn < len(tiles[clip]):
                    start = tiles[clip][turn]
                elif all(turn >= len(starts) for starts in tiles.values()):
                    start = _random_start(shape, self._eval.crop, generator)
                else:
                    continue
                yield _Crop(clip, start, clear)
            if not tiles:
                raise ShardError(f"none of {len(clips)} clips to evaluate on can be read; {REMAKE}")


class Readable(ABC, Generic[Read]):
    """Clips by position, of which some may turn out to be unreadable.

    An unreadable clip is passed over by name; more than 1 % of them, and more than ten, are an error.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids
        self.bad: set[int] = set()

    @abstractmethod
    def read(self, i: int) -> Read:
        """The clip of one of `ids`. Raises ShardError where it is unreadable."""

    @abstractmethod
    def name(self, i: int) -> str:
        """`<shard>/<key>`, for messages."""

    def passed_over(self) -> list[str]:
        """The unreadable clips met so far, by name."""
        return sorted(self.name(self.ids[i]) for i in self.bad)

    def __len__(self) -> int:
        return len(self.ids)

    def get(self, i: int) -> Read | None:
        if i in self.bad:
            return None
        try:
            return self.read(self.ids[i])
        except ShardError as error:
            self.bad.add(i)
            log.warning("%s; passed over", error)
            if len(self.bad) > max(10, len(self) // 100) or len(self.bad) == len(self):
                raise ShardError(f"{len(self.bad)} of {len(self)} clips unreadable; {error}") from error
            return None

    def take(self, order: Sequence[int], place: int) -> Read:
        """The clip at `place` of `order`, or the next readable one."""
        turned = (self.get(order[(place + step) % len(order)]) for step in range(len(order)))
        return next(found for found in turned if found is not None)


class LastRead(Generic[Read]):
    """Clips of a pool, with the last one kept, so that checking a clip and taking it need one read."""

    def __init__(self, pool: Readable[Read]) -> None:
        self._pool = pool
        self._last: tuple[int, Read] | None = None

    def is_readable(self, i: int) -> bool:
        if self._last is None or self._last[0] != i:
            self._last = None  # before the next is read: one clip in memory, not two
            found = self._pool.get(i)
            self._last = None if found is None else (i, found)
        return self._last is not None

    def read(self, i: int) -> Read:
        """The i-th clip. Raises ShardError where it is unreadable."""
        if not self.is_readable(i) or self._last is None:
            raise ShardError(
                f"{self._pool.name(self._pool.ids[i])}: could be read before, and cannot any more; {REMAKE}"
            )
        return self._last[1]


class LazyList(Generic[Item]):
    """The items of an iterator by position, taken from it only as far as needed."""

    def __init__(self, rest: Iterator[Item]) -> None:
        self._rest = rest
        self._known: list[Item] = []

    def __getitem__(self, i: int) -> Item:
        return self.first(i + 1)[i]

    def first(self, count: int) -> list[Item]:
        while len(self._known) < count:
            self._known.append(next(self._rest))
        return self._known[:count]


@dataclass(frozen=True)
class _Crop:
    """Position of an evaluation crop: its clip, (frame, row, column), and whether it overlaps no other."""

    clip: int
    start: tuple[int, ...]
    clear: bool


class _Pool(Readable[Frames]):
    """The clips of a split, uint8 [F, H, W, 3], that the crop (frames, height, width) fits into."""

    def __init__(self, index: ShardIndex, crop: tuple[int, int, int]) -> None:
        self.index, self.crop = index, crop
        super().__init__([i for i, sample in enumerate(index.samples) if fits(sample.shape, crop)])
        if not self.ids:
            frames, height, width = max(sample.shape or () for sample in index.samples)[:3]
            raise ValueError(
                f"no {index.split!r} clip has {crop[0]} frames of {crop[1]}x{crop[2]} px, the largest "
                f"has {frames} of {height}x{width}: lower scale.frames, scale.height or scale.width, or make larger "
                f'clips with `make data … args="frames={crop[0]} short_side={short_side(*crop[1:])}"`'
            )
        if len(self.ids) < len(index):
            small = len(index) - len(self.ids)
            log.warning("%d of %d %s clips are smaller than the crop", small, len(index), index.split)

    def read(self, i: int) -> Frames:
        return self.index.read(i).frames

    def name(self, i: int) -> str:
        return self.index.samples[i].name


def short_side(height: int, width: int) -> int:
    """The `short_side` of `make data` whose clips cover `height` x `width` px: of 16:9 or wider, turned alike."""
    short, long = sorted((height, width))
    return max(short, math.ceil(long * 9 / 16))


def unreadable(names: Sequence[str]) -> str:
    """The end of a note about held-out clips."""
    return f"; unreadable: {', '.join(names)}" if names else ""


def seeded(*parts: int | str) -> torch.Generator:
    """A pure function of some numbers and words."""
    return torch.Generator().manual_seed(int(shard_digest(*parts), 16))


@lru_cache(maxsize=4)
def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(n, generator=seeded(seed, "epoch", epoch)).tolist()


def _randint(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


def fits(shape: tuple[int, ...] | None, crop: tuple[int, int, int]) -> bool:
    """Whether a clip is at least `crop` (frames, height, width); one of unknown shape may be."""
    return shape is None or all(have >= need for have, need in zip(shape, crop, strict=False))


def _random_start(shape: tuple[int, ...], crop: tuple[int, int, int], generator: torch.Generator) -> tuple[int, ...]:
    return tuple(_randint(have - need + 1, generator) for have, need in zip(shape, crop, strict=False))


def _tiles(shape: tuple[int, ...], crop: tuple[int, int, int], generator: torch.Generator) -> list[tuple[int, ...]]:
    """Starts (frame, row, column) of as many crops as fit side by side, in random order, randomly shifted."""
    spare = tuple(have % need for have, need in zip(shape, crop, strict=False))
    shift = _random_start(tuple(s + 1 for s in spare), (1, 1, 1), generator)
    grid = [range(s, s + have - need + 1, need) for s, have, need in zip(shift, shape, crop, strict=False)]
    starts = list(product(*grid))
    return [starts[i] for i in torch.randperm(len(starts), generator=generator).tolist()]


def _cut(frames: Frames, start: tuple[int, ...], crop: tuple[int, int, int]) -> Frames:
    return frames[tuple(slice(at, at + extent) for at, extent in zip(start, crop, strict=True))]


def _to_video(frames: Frames) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(to_float(frames)))
