"""pw.nn.token_blocks: tiles are consecutive, and window blocks are those of the mask of all pairs of tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pw.nn import options
from pw.nn.token_blocks import Grid, block_count, density, first_seen, kept_count, tile_order, window_blocks

GRIDS = {"2k": (31, 45, 80), "4k": (31, 67, 120)}


@pytest.mark.parametrize(("grid", "tile"), [((4, 6, 6), (2, 3, 2)), ((3, 6, 6), (3, 2, 2)), ((3, 7, 5), (2, 2, 3))])
def test_tokens_come_tile_by_tile_and_neighbours_follow_each_other(grid: Grid, tile: Grid) -> None:
    order = tile_order(grid, tile)
    assert sorted(order) == list(range(math.prod(grid)))
    tiles = np.stack(np.unravel_index(order, grid), -1) // tile
    steps = np.abs(np.diff(tiles, axis=0)).sum(1)
    assert set(steps) == {0, 1}  # within a tile, or to one beside it
    assert (steps == 1).sum() == math.prod(-(-n // t) for n, t in zip(grid, tile, strict=True)) - 1


def test_a_window_is_centred_and_shifted_at_the_borders() -> None:
    assert first_seen(7, 3).tolist() == [0, 0, 1, 2, 3, 4, 4]
    assert first_seen(4, 4).tolist() == [0] * 4


def seen(choice: options.Window, grid: Grid) -> np.ndarray:
    """[L, L] by the definition, one query after another, in tile order."""
    mask = np.zeros((*grid, *grid), bool)
    for frame, row, column in np.ndindex(*grid):
        starts = [
            min(max(place - size // 2, 0), length - size)
            for place, size, length in zip((row, column), choice.window, grid[1:], strict=True)
        ]
        height, width = choice.window
        mask[frame, row, column, :, starts[0] : starts[0] + height, starts[1] : starts[1] + width] = True
    order, count = tile_order(grid, choice.tile), math.prod(grid)
    return mask.reshape(count, count)[order][:, order]


@pytest.mark.parametrize(
    ("grid", "window", "tile"),
    [
        ((3, 6, 6), (3, 3), (3, 1, 1)),
        ((3, 7, 5), (3, 4), (2, 2, 3)),
        ((5, 9, 8), (4, 3), (8, 2, 2)),
        ((2, 4, 4), (4, 4), (2, 2, 2)),
    ],
)
def test_window_blocks_are_those_of_all_pairs_of_tokens(
    grid: Grid, window: tuple[int, int], tile: tuple[int, int, int]
) -> None:
    choice = options.Window(window, tile)
    mask, block = seen(choice, grid), math.prod(tile)
    assert set(mask.sum(1)) == {grid[0] * math.prod(window)}  # every query sees equally many
    starts = range(0, math.prod(grid), block)
    pairs = [[mask[q : q + block, k : k + block] for k in starts] for q in starts]
    some, every = window_blocks(choice, grid)
    assert np.array_equal(some, [[pair.any() for pair in row] for row in pairs])
    assert np.array_equal(every, [[pair.all() for pair in row] for row in pairs])
    assert density(choice, grid) == some.mean()


@pytest.mark.parametrize(("scale", "exact", "kept"), [("2k", 0.2444, 0.281), ("4k", 0.1095, 0.1295)])
def test_wans_training_view_keeps_little_more_than_its_share(scale: str, exact: float, kept: float) -> None:
    grid, choice = GRIDS[scale], options.Window((22, 40), (32, 2, 2))
    assert math.prod(choice.window) / math.prod(grid[1:]) == pytest.approx(exact, abs=1e-4)
    assert density(choice, grid) == pytest.approx(kept, abs=1e-3)


def test_a_share_of_blocks_is_rounded_up_and_all_of_them_are_one() -> None:
    grid, tile = (3, 6, 6), (3, 2, 2)
    assert block_count(grid, tile) == 9
    shares = (0.01, 1 / 9, 0.12, 0.25, 1 / 3, 0.5, 1)
    assert [kept_count(options.TopBlocks(share, tile), grid) for share in shares] == [1, 1, 2, 3, 3, 5, 9]
    assert density(options.TopBlocks(1, tile), grid) == density(None, grid) == 1
    assert density(options.AnchorBlocks(0.25, (8, 4, 4)), GRIDS["4k"]) == 487 / 1948
