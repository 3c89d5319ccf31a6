"""pw.data.buckets: which bucket a clip is in, and which one a batch has: a function of (seed, number) alone."""

from __future__ import annotations

import io
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pw.data.buckets import BLOCK, Bucket, BucketMix, bucket_of, check_buckets
from pw.data.shard_index import ShardIndex, write_shards
from pw.data.shards import ShardClips

WIDE, TALL, SHORT = Bucket(5, 16, 32), Bucket(5, 32, 16), Bucket(3, 24, 32)
MIX = BucketMix.of((WIDE, TALL, SHORT), (6.0, 3.0, 1.0), ())


def write_clips(folder: Path, shapes: dict[str, list[tuple[int, int, int]]]) -> Path:
    """Clips of one colour each, their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, sizes in shapes.items():
        samples = []
        for n, size in enumerate(sizes):
            array = io.BytesIO()
            np.save(array, np.full((*size, 3), n, np.uint8))
            samples.append({"__key__": f"clip-{n:03d}", "npy": array.getvalue()})
        write_shards(folder, split, samples, 100_000_000)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine wide clips (0 to 8), three tall ones (9 to 11), and one (12) that is too small for both."""
    shapes = {"train": [(6, 18, 34)] * 9 + [(5, 40, 20)] * 3 + [(5, 8, 8)], "val": [(5, 18, 34)] * 4}
    return write_clips(tmp_path_factory.mktemp("buckets"), shapes)


def clips_of(folder: Path, **values: Any) -> ShardClips:
    return ShardClips(f"{folder}/*.tar", **{"frames": 5, "size": 16, "width": 32} | values)


def numbers(batch: Any) -> list[int]:
    """Which clips a batch has."""
    return ((batch[:, 0, 0, 0, 0] + 1) * 127.5).round().int().tolist()


@pytest.mark.parametrize(
    ("shape", "bucket"),
    [
        ((5, 16, 32, 3), 0),
        ((9, 90, 160, 3), 0),  # 1.78 is nearer to 2 than to 4 : 3: log(2 / 1.78) = 0.12, log(1.78 / 1.33) = 0.29
        ((9, 90, 130, 3), 2),  # 1.44: log(2 / 1.44) = 0.33, log(1.44 / 1.33) = 0.08
        ((9, 160, 90, 3), 1),
        ((4, 90, 160, 3), 2),  # too short for the others
        ((5, 16, 40, 3), 0),
        ((5, 40, 17, 3), 1),
        ((5, 30, 15, 3), None),
        ((2, 90, 160, 3), None),
    ],
)
def test_a_clip_is_in_the_bucket_of_the_nearest_aspect_ratio_that_it_covers(
    shape: tuple[int, ...], bucket: int | None
) -> None:
    assert bucket_of(shape, (WIDE, TALL, SHORT)) == bucket


def test_of_equal_aspect_ratios_a_clip_is_in_the_largest_that_it_covers() -> None:
    same = (Bucket(3, 16, 32), Bucket(5, 16, 32), Bucket(5, 32, 64))
    assert [bucket_of((f, h, 2 * h, 3), same) for f, h in ((5, 32), (5, 31), (4, 32), (3, 99))] == [2, 1, 0, 0]


class TestTheSchedule:
    def test_counts_the_batches_of_each_bucket(self) -> None:
        counts = Counter[int]()
        for index in range(3 * BLOCK + 17):
            bucket, turn = MIX.turn(5, index)
            assert turn == counts[bucket]
            counts[bucket] += 1

    def test_can_be_asked_for_anywhere(self) -> None:
        in_order = [MIX.turn(7, index) for index in range(4 * BLOCK)]
        again = BucketMix.of((WIDE, TALL, SHORT), (60.0, 30.0, 10.0), ())
        assert [again.turn(7, index) for index in reversed(range(4 * BLOCK))] == in_order[::-1]
        assert [MIX.turn(8, index)[0] for index in range(BLOCK)] != [bucket for bucket, _ in in_order[:BLOCK]]

    def test_has_each_bucket_as_often_as_it_weighs(self) -> None:
        for block in range(4):
            counts = Counter(MIX.turn(3, block * BLOCK + place)[0] for place in range(BLOCK))
            # 256 evenly spaced places: 153.6, 76.8 and 25.6, to within one
            assert all(abs(counts[bucket] - BLOCK * share) < 1 for bucket, share in enumerate((0.6, 0.3, 0.1)))

    def test_is_not_in_turn(self) -> None:
        drawn = [MIX.turn(0, index)[0] for index in range(2 * BLOCK)]
        repeats = sum(a == b for a, b in pairwise(drawn)) / len(drawn)
        # in random order a bucket follows itself with probability 0.6^2 + 0.3^2 + 0.1^2 = 0.46, give or take 0.022
        assert 0.36 < repeats < 0.56

    def test_has_rare_buckets_in_their_turn(self) -> None:
        rare = BucketMix.of((WIDE, TALL), (999.0, 1.0), ())
        count = sum(rare.turn(0, index)[0] for index in range(40 * BLOCK))
        assert 1 <= count <= 30  # 10 on average, of 40 blocks that have at most one


class TestClipsInShards:
    def test_come_in_batches_of_one_bucket_each_once_an_epoch(self, folder: Path) -> None:
        clips = clips_of(folder, buckets=(WIDE, TALL))
        assert clips.mix is not None
        assert clips.mix.shares == (0.75, 0.25)
        seen: dict[int, list[int]] = {0: [], 1: []}
        for index in range(64):
            batch = clips.batch(0, index, 3)
            bucket, turn = clips.mix.turn(0, index)
            assert batch.shape == (3, 3, *clips.mix.buckets[bucket])
            assert turn * 3 == len(seen[bucket])
            seen[bucket] += numbers(batch)
        assert sorted(seen[0][:9]) == [*range(9)]
        assert sorted(seen[1][:3]) == sorted(seen[1][3:6]) == [9, 10, 11]

    def test_of_one_bucket_are_those_without_buckets(self, folder: Path) -> None:
        plain, one = clips_of(folder), clips_of(folder, buckets=(WIDE,))
        for index in (0, 7):
            assert torch.equal(one.batch(3, index, 4), plain.batch(3, index, 4))
        assert one.fingerprint() == plain.fingerprint()
        assert clips_of(folder, buckets=(WIDE, TALL)).fingerprint() != plain.fingerprint()

    def test_are_divided_in_parts_of_one_batch(self, folder: Path) -> None:
        clips = clips_of(folder, buckets=(WIDE, TALL))
        for index in range(12):
            parts = torch.cat([clips.batch(0, index, 2, part, 3) for part in range(3)])
            assert torch.equal(parts, clips.batch(0, index, 6))

    def test_may_be_weighed(self, folder: Path) -> None:
        clips = clips_of(folder, buckets=(WIDE, TALL), bucket_weights=(1.0, 3.0))
        widths = Counter(clips.batch(0, index, 1).shape[-1] for index in range(BLOCK))
        assert widths == {32: 64, 16: 192}

    def test_are_evaluated_at_the_size_of_the_scale(self, folder: Path) -> None:
        assert clips_of(folder, buckets=(TALL,)).evaluation(2, 0).real[0].shape == (3, 5, 16, 32)

    def test_of_a_bucket_without_any_are_named_with_the_sizes_there_are(self, folder: Path) -> None:
        message = r"data\.buckets: no train clip .* is in \[5, 64, 64\]; .* There are 9 of 6x18x34, 3 of 5x40x20"
        with pytest.raises(ValueError, match=message):
            clips_of(folder, buckets=(WIDE, (5, 64, 64)))

    def test_that_are_passed_over_are_named(self, tmp_path: Path) -> None:
        place = write_clips(tmp_path, {"train": [(5, 16, 32)] * 5 + [(5, 32, 16)] * 5, "val": [(5, 16, 32)]})
        sample = ShardIndex(f"{place}/*.tar", "train").samples[7]
        with sample.shard.open("r+b") as file:
            file.seek(sample.members["npy"][0])
            file.write(b"damaged!")
        clips = clips_of(place, buckets=(WIDE, TALL))
        for index in range(12):
            assert 7 not in numbers(clips.batch(0, index, 5))
        assert clips.passed_over() == ["train-000000.tar/clip-007"]


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ((), None, r"data\.buckets=\[\]: expected different sizes"),
        ((WIDE, WIDE), None, r"data\.buckets=\[\[5, 16, 32\], \[5, 16, 32\]\]: expected different sizes"),
        (((0, 16, 16),), None, r"expected different sizes"),
        ((WIDE, TALL), (1.0,), r"data\.bucket_weights=\[1\.0\]: expected 2 numbers above 0, or null"),
        ((WIDE, TALL), (1.0, 0.0), r"expected 2 numbers above 0"),
        (None, (1.0,), r"data\.bucket_weights=\[1\.0\]: there are no data\.buckets to weigh"),
    ],
)
def test_wrong_buckets_are_refused(sizes: Any, weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_buckets(sizes, weights)
