"""Clips of several sizes in one training: the buckets of `data.buckets`, each batch of one of them.

A clip is in the bucket whose aspect ratio is nearest to its own, of those that it covers in frames, height and width:
no clip is enlarged, and the nearest ratio keeps the largest part of its picture. Of equally near ones it is in the one
with most pixels in all frames. Which bucket a batch has is a function of (seed, number of the batch).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from typing import NamedTuple

from pw.io.files import digest
from pw.io.lazy import torch

BLOCK = 256  # batches, in which the buckets have their shares to within one batch


class Bucket(NamedTuple):
    """A size of clips: frames, and px."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


Sizes = tuple[tuple[int, int, int], ...]


def fits(shape: Sequence[int] | None, size: tuple[int, int, int]) -> bool:
    """Whether a clip is at least as large as `size` (frames, height, width); True if its shape is unknown."""
    return shape is None or all(have >= need for have, need in zip(shape, size, strict=False))


def bucket_of(shape: Sequence[int] | None, buckets: Sequence[Bucket]) -> int | None:
    """The number of the bucket of a clip [F, H, W, …]; None if it covers none. One of unknown shape is in the first."""
    if shape is None:
        return 0
    ratio = shape[2] / shape[1]
    distances = {
        number: (abs(math.log(bucket.width / bucket.height / ratio)), -math.prod(bucket))
        for number, bucket in enumerate(buckets)
        if fits(shape, bucket)
    }
    return min(distances, key=distances.__getitem__, default=None)


@dataclass(frozen=True)
class BucketMix:
    """Buckets of a training and the share of batches that each has."""

    buckets: tuple[Bucket, ...]
    shares: tuple[float, ...]

    @staticmethod
    def of(buckets: Sequence[Bucket], weights: Sequence[float] | None, clips: Sequence[int]) -> BucketMix:
        """weights: of the buckets; None: as many batches as there are clips. Raises ValueError."""
        weights = clips if weights is None else weights
        return BucketMix(tuple(buckets), tuple(weight / sum(weights) for weight in weights))

    def turn(self, seed: int, index: int) -> tuple[int, int]:
        """(number of the bucket of the index-th batch, how many batches of it come before)."""
        block, place = divmod(index, BLOCK)
        drawn = _block(self.shares, seed, block)
        return drawn[place], _earlier(self.shares, seed, block)[drawn[place]] + drawn[:place].count(drawn[place])


def check_buckets(sizes: Sizes | None, weights: Sequence[float] | None) -> tuple[Bucket, ...]:
    """Raises ValueError for `data.buckets` that are none, or weights that do not fit them."""
    if sizes is None:
        if weights is not None:
            raise ValueError(f"data.bucket_weights={list(weights)}: there are no data.buckets to weigh")
        return ()
    buckets = tuple(Bucket(*size) for size in sizes)
    if not buckets or len({*buckets}) < len(buckets) or min(map(min, buckets)) < 1:
        raise ValueError(
            f"data.buckets={[[*size] for size in sizes]}: expected different sizes [frames, height, width], or null"
        )
    if weights is not None and (len(weights) != len(buckets) or min(weights) <= 0):
        raise ValueError(f"data.bucket_weights={list(weights)}: expected {len(buckets)} numbers above 0, or null")
    return buckets


def assigned(shapes: Sequence[Sequence[int] | None], buckets: Sequence[Bucket], urls: str) -> list[int | None]:
    """The bucket of each clip. Raises ValueError naming a bucket without clips, and the sizes of the clips."""
    numbers = [bucket_of(shape, buckets) for shape in shapes]
    if empty := [bucket for number, bucket in enumerate(buckets) if number not in numbers]:
        found = Counter(str(Bucket(*shape[:3])) for shape in shapes if shape is not None)
        listed = ", ".join(f"{count} of {size}" for size, count in found.most_common(4))
        raise ValueError(
            f"data.buckets: no train clip of data.urls={urls} is in {[*empty[0]]}; a clip is in the bucket of the "
            f"nearest aspect ratio that it covers. There are {listed}{', …' if len(found) > 4 else ''} "
            "(frames x height x width): leave the bucket out, or make such clips"
        )
    return numbers


@cache
def _block(shares: tuple[float, ...], seed: int, block: int) -> tuple[int, ...]:
    """The buckets of a block of batches: evenly spaced places of a random offset, in random order."""
    rng = torch.Generator().manual_seed(int(digest([seed, "buckets", block], 15), 16))
    offset, order = float(torch.rand((), generator=rng)), torch.randperm(BLOCK, generator=rng).tolist()
    ends = [*accumulate(shares)][:-1]
    return tuple(bisect_right(ends, (place + offset) / BLOCK) for place in order)


@lru_cache(maxsize=64)
def _earlier(shares: tuple[float, ...], seed: int, block: int) -> tuple[int, ...]:
    """How many batches each bucket has before a block."""
    counts = [0] * len(shares)
    for number in range(block):
        for bucket, count in Counter(_block(shares, seed, number)).items():
            counts[bucket] += count
    return tuple(counts)
