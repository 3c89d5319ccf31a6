"""Blocks of tokens for sparse self-attention: tile by tile through a clip. Plain numpy, which the plan uses, too.

A grid is (frames, rows, columns) of tokens. Its tokens are numbered frame by frame and row by row, as the transformer
has them. A block is `prod(tile)` consecutive tokens of the tile order, the last one what is left.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from pw.nn import options

Grid = tuple[int, int, int]


@lru_cache(maxsize=16)
def tile_order(grid: Grid, tile: Grid) -> np.ndarray:
    """[L] numbers of the tokens in tile order.

    Rows of tiles run back and forth: where a grid is no multiple of the tile, blocks have parts of two neighbours.
    """
    place = np.indices(grid)
    frames, rows, columns = (axis // size for axis, size in zip(place, tile, strict=True))
    rows = np.where(frames % 2, rows.max() - rows, rows)
    columns = np.where((frames * (rows.max() + 1) + rows) % 2, columns.max() - columns, columns)
    return np.lexsort([axis.ravel() for axis in (*place[::-1], columns, rows, frames)])


def block_count(grid: Grid, tile: Grid) -> int:
    """n, the blocks of a clip."""
    return math.ceil(math.prod(grid) / math.prod(tile))


def kept_count(choice: options.TopBlocks, grid: Grid) -> int:
    """The key blocks that the queries of a block see."""
    return math.ceil(round(choice.density * block_count(grid, choice.tile), 6))


def first_seen(length: int, window: int) -> np.ndarray:
    """[length] the first of the `window` positions that are seen from each: centred, shifted at the borders."""
    return np.clip(np.arange(length) - window // 2, 0, length - window)


@lru_cache(maxsize=16)
def window_blocks(choice: options.Window, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Whether (some, every) query of a block sees (some, every) key of a block: [n, n] bool, query blocks first."""
    _, height, width = grid
    block = np.arange(math.prod(grid)) // math.prod(choice.tile)
    cells = height * width  # all frames see alike, so the tokens of a block count as places in a frame
    block, cell = np.divmod(np.unique(block * cells + tile_order(grid, choice.tile) % cells), cells)
    starts = np.searchsorted(block, np.arange(block[-1] + 1))
    # the places of each block that are seen from each place of a frame, by sums over rectangles that begin at 0, 0
    seen = np.zeros((len(starts), height + 1, width + 1), np.int32)
    seen[block, cell // width + 1, cell % width + 1] = 1
    for axis, (length, window) in enumerate(zip((height, width), choice.window, strict=True), start=1):
        total, first = seen.cumsum(axis, dtype=np.int32), first_seen(length, window)
        seen = total.take(first + window, axis) - total.take(first, axis)
    seen = seen.reshape(len(starts), cells)[:, cell]
    some = np.maximum.reduceat(seen, starts, 1) > 0
    every = np.minimum.reduceat(seen, starts, 1) == np.bincount(block)[:, None]
    return some.T, every.T


def density(choice: options.Attention | None, grid: Grid) -> float:
    """Share of the block pairs that a block-sparse kernel computes; 1 for dense attention."""
    if choice is None:
        return 1.0
    if isinstance(choice, options.Window):
        return float(window_blocks(choice.within(grid), grid)[0].mean())
    return kept_count(choice, grid) / block_count(grid, choice.tile)
