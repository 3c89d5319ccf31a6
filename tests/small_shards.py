"""Shards of video such as `make data` writes, of noise, and what a bad disk makes of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from pw.data.shard_index import ShardIndex, write_shards


def write_noise(folder: Path, train: int, val: int, side: int = 28) -> Path:
    """So many clips of four frames, one tar for each split; clip n is `clip-<n>`, n counted in each split."""
    for split, count in (("train", train), ("val", val)):
        samples = []
        for number in range(count):
            array = io.BytesIO()
            np.save(array, np.random.default_rng(number + count).integers(0, 256, (4, side, side, 3), np.uint8))
            samples.append({"__key__": f"clip-{number}", "npy": array.getvalue()})
        write_shards(folder, split, samples, 100_000_000)
    return folder


def spoil(folder: Path, split: str, number: int) -> None:
    """Overwrite the beginning of a clip."""
    sample = ShardIndex(f"{folder}/*.tar", split).samples[number]
    with sample.shard.open("r+b") as file:
        file.seek(sample.members["npy"][0])
        file.write(b"damaged!")
