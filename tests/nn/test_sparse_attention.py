"""pw.nn.sparse_attention: FlexAttention and the mask of all pairs agree, and both see what they should."""

from __future__ import annotations

import math
import shutil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pw.nn import options
from pw.nn.sparse_attention import SparseMask, compiled_flex_attention
from pw.nn.token_blocks import Grid, block_count, density, kept_count, tile_order

GRID, TILE = (3, 5, 4), (3, 2, 2)
CHOICES = {
    "window": options.Window((3, 2), TILE),
    "topk": options.TopBlocks(0.4, TILE),
    "anchor": options.AnchorBlocks(0.4, (2, 2, 3)),
}
ALL = {
    "window": options.Window(GRID[1:], TILE),
    "topk": options.TopBlocks(1, TILE),
    "anchor": options.AnchorBlocks(1, TILE),
}
every_choice = pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
# torch says once that FlexAttention is slow unless it is compiled
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def inputs(grid: Grid = GRID, batch: int = 2, width: int = 8) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values [B, 3, L, width], and an anchor."""
    draw = torch.Generator().manual_seed(0)
    tokens = [torch.randn(batch, 3, math.prod(grid), width, generator=draw) for _ in range(3)]
    return tokens, torch.randn(batch, 5, grid[0], 2, 2, generator=draw)


def attention(mask: SparseMask | None, tokens: list[Tensor]) -> Tensor:
    """As diffusers calls it."""
    query, key, value = tokens
    given: Any = mask
    return F.scaled_dot_product_attention(query=query, key=key, value=value, attn_mask=given, dropout_p=0.0)


@every_choice
def test_flex_attention_is_the_mask_of_all_pairs(choice: options.Attention) -> None:
    tokens, anchor = inputs()
    mask = SparseMask(choice, GRID, anchor)
    result = mask.attend_by_blocks(*tokens)
    torch.testing.assert_close(result, attention(mask, tokens))
    assert (result - attention(None, tokens)).abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    "choice",
    [options.Window((3, 5), (8, 4, 4)), options.TopBlocks(0.4, (8, 4, 4)), options.AnchorBlocks(0.4, (8, 4, 4))],
    ids=CHOICES,
)
def test_a_compiled_kernel_reads_the_lists_of_blocks_as_they_are_meant(choice: options.Attention) -> None:
    """Uncompiled, FlexAttention looks at no list. Blocks of 128 tokens and a last one of 21; two masks, one kernel."""
    grid = (5, 11, 19)
    torch.compiler.reset()
    kernel = compiled_flex_attention()
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):  # ty: ignore[unresolved-attribute]
        for number in range(2):
            tokens, anchor = inputs(grid, batch=1, width=32)
            tokens[1] += number * torch.randn(32, generator=torch.Generator().manual_seed(1))
            mask = SparseMask(choice, grid, anchor.roll(number, -1))
            torch.testing.assert_close(mask.attend_by_blocks(*tokens, kernel), attention(mask, tokens))


@pytest.mark.parametrize("choice", ALL.values(), ids=ALL)
def test_where_every_key_is_seen_it_is_dense_attention_with_its_gradients(choice: options.Attention) -> None:
    tokens, anchor = inputs()
    results = []
    for mask in (SparseMask(choice, GRID, anchor), None):
        leaves = [x.clone().requires_grad_() for x in tokens]
        output = attention(mask, leaves)
        results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    torch.testing.assert_close(*results)


@every_choice
def test_lists_of_blocks_have_what_the_mask_and_the_plan_have_and_their_transpose(choice: options.Attention) -> None:
    """The second is what FlexAttention's backward reads, of which there is none on a CPU."""
    (query, key, _), anchor = inputs()
    mask, order = SparseMask(choice, GRID, anchor), torch.from_numpy(tile_order(GRID, choice.tile))
    blocks: Any = mask.block_mask(query[..., order, :].requires_grad_(), key[..., order, :])
    pairs = mask.as_tensor(query, key)[..., order, :][..., order]
    size, count = math.prod(choice.tile), block_count(GRID, choice.tile)
    missing = count * size - math.prod(GRID)
    some = F.pad(pairs, (0, missing, 0, missing)).unflatten(-1, (count, size)).unflatten(-3, (count, size))
    some = some.any(-1).any(-2)
    assert torch.equal(blocks.to_dense().bool().expand_as(some), some)
    assert some.float().mean() == pytest.approx(density(choice, GRID))
    for of in ("", "full_"):
        lists = {}
        for side in ("kv", "q"):
            numbers, indices = getattr(blocks, f"{of}{side}_num_blocks"), getattr(blocks, f"{of}{side}_indices")
            listed = torch.arange(count) < numbers[..., None]
            lists[side] = torch.zeros_like(listed, dtype=torch.long).scatter_add_(-1, indices.long(), listed.long())
            assert lists[side].max() <= 1  # each block once
        assert torch.equal(lists["kv"].mT, lists["q"])


def test_blocks_at_4k_take_megabytes() -> None:
    grid, choice = (31, 67, 120), options.Window((22, 40), (32, 2, 2))
    blocks: Any = SparseMask(choice, grid).block_mask(torch.empty(0), torch.empty(0))
    lists = [x for x in blocks.as_tuple() if isinstance(x, Tensor)]
    assert sum(x.numel() * x.element_size() for x in lists) < 1.1 * 16 * 1948**2  # 61 MB, and not 62 GB
    kept = int(blocks.kv_num_blocks.sum() + blocks.full_kv_num_blocks.sum())
    assert kept == pytest.approx(density(choice, grid) * 1948**2)
    assert blocks.full_kv_num_blocks.sum() > kept / 2


def test_the_best_key_blocks_are_those_whose_mean_fits_the_mean_query_and_the_own_one() -> None:
    (query, key, _), _ = inputs()
    choice = options.TopBlocks(0.4, TILE)
    block = torch.from_numpy(tile_order(GRID, TILE)).argsort() // math.prod(TILE)
    mask = SparseMask(choice, GRID).as_tensor(query, key)
    for clip, head, number in ((0, 0, 0), (1, 2, 3), (0, 1, 4)):
        mean = query[clip, head, block == number].mean(0)
        scores = [float(mean @ key[clip, head, block == other].mean(0)) for other in range(5)]
        others = sorted((o for o in range(5) if o != number), key=lambda o: -scores[o])
        expected = {number, *others[: kept_count(choice, GRID) - 1]}
        for token in (block == number).nonzero().flatten():
            assert set(block[mask[clip, head, token]].tolist()) == expected


def test_blocks_that_look_alike_in_the_anchor_see_each_other_and_near_ones_where_all_do() -> None:
    grid, choice = (2, 4, 8), options.AnchorBlocks(0.5, (2, 2, 2))
    picture = torch.zeros(2, 1, 2, 4, 8)
    picture[0, ..., 2:4] = picture[0, ..., 6:8] = 1.0  # stripes, each two columns wide; the second clip is all black
    queries = torch.zeros(2, 1, 64, 4)
    seen = SparseMask(choice, grid, picture).as_tensor(queries, queries)
    column = (torch.arange(64) % 8) // 2
    assert torch.equal(seen[0, 0], (column[:, None] + column) % 2 == 0)
    black, grey = (
        SparseMask(options.AnchorBlocks(0.25, (2, 2, 2)), grid, picture[1:] + tone).as_tensor(queries, queries)[0, 0]
        for tone in (0, 0.1)
    )
    row = torch.arange(64) // 8 % 4 // 2  # each block and the nearest one: above or below, or at its side
    distance = (row[:, None] - row).abs() + (column[:, None] - column).abs()
    assert set(distance[black].tolist()) == set(distance[grey].tolist()) == {0, 1}


@every_choice
def test_what_is_not_seen_has_no_gradient(choice: options.Attention) -> None:
    tokens, anchor = inputs(batch=1)
    mask = SparseMask(choice, GRID, anchor)
    seen = mask.as_tensor(*tokens[:2]).expand(1, 3, 60, 60)
    value = tokens[2].requires_grad_()
    output = attention(mask, tokens)
    for token in (0, 33, 59):
        (gradient,) = torch.autograd.grad(output[0, 1, token].sum(), value, retain_graph=True)
        assert torch.equal(gradient[0, 1].any(-1), seen[0, 1, token])
        assert not gradient[0, 0].any()
