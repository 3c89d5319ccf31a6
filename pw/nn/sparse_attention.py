"""Sparse self-attention: which keys a query sees, handed to diffusers in the place of an attention mask.

A `SparseMask` is no tensor: `scaled_dot_product_attention` calls it through torch's `__torch_function__`, as it does
torch's own `CausalBias`. So diffusers' processors stay as they are, and with context parallelism the mask meets queries
and keys after the exchange: all tokens, a share of the heads. On a GPU, FlexAttention computes only the blocks that are
seen (Dong et al. 2024, arXiv 2412.05496); elsewhere a boolean mask of L x L gives the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from pw.nn import options
from pw.nn.adapters import resize_frames, without_autocast
from pw.nn.token_blocks import Grid, block_count, first_seen, kept_count, tile_order, window_blocks

COMPILED = 64  # compiled variants of a function, at most; a process needs few
FAINT = 1e-4  # what differs less from the mean of the anchor, whose latents are about 1, is like anything
NEARNESS = 1e-3  # of similarity, across the whole clip: it decides between anchor blocks that are alike


class SparseMask:
    """What the queries of one forward see, for clips of `grid` tokens, L in all.

    anchor  latent [B, C, frames, h', w'], for `AnchorBlocks`
    """

    ndim = 4

    def __init__(self, choice: options.Attention, grid: Grid, anchor: Tensor | None = None) -> None:
        self.choice = choice.within(grid) if isinstance(choice, options.Window) else choice
        self.grid, self._anchor = grid, anchor
        self.shape = (1, 1, math.prod(grid), math.prod(grid))

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if function is not F.scaled_dot_product_attention or args:
            return NotImplemented
        return kwargs["attn_mask"].attend(kwargs["query"], kwargs["key"], kwargs["value"])

    @torch.compiler.disable  # a compiled block calls it as it is: FlexAttention is compiled by itself
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of [B, H, L, d] each."""
        if query.is_cuda and math.prod(self.choice.tile) % options.FLEX_BLOCK == 0:
            return self.attend_by_blocks(query, key, value, compiled_flex_attention())
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.as_tensor(query, key))

    def attend_by_blocks(
        self, query: Tensor, key: Tensor, value: Tensor, kernel: Callable[..., Any] = flex_attention
    ) -> Tensor:
        """`attend` by FlexAttention, whose blocks are consecutive tokens: in tile order."""
        order, inverse = _orders(self.grid, self.choice.tile, query.device)
        query, key, value = (_Reordered.apply(x, order, inverse) for x in (query, key, value))
        return _Reordered.apply(kernel(query, key, value, block_mask=self.block_mask(query, key)), inverse, order)

    def as_tensor(self, query: Tensor, key: Tensor) -> Tensor:
        """[B or 1, H or 1, L, L] bool, True for a key that is seen."""
        choice = self.choice
        if isinstance(choice, options.Window):
            return _window_mask(choice, self.grid, query.device)
        order, inverse = _orders(self.grid, choice.tile, query.device)
        chosen = self._chosen(choice, query[..., order, :], key[..., order, :])
        block = inverse // math.prod(choice.tile)
        return _seen(chosen, block_count(self.grid, choice.tile))[..., block[:, None], block]

    def block_mask(self, query: Tensor, key: Tensor) -> BlockMask:
        """For queries and keys in tile order."""
        choice = self.choice
        if isinstance(choice, options.Window):
            return _window_block_mask(choice, self.grid, query.device)
        if choice.by_anchor:
            return self._anchor_block_mask
        return _block_mask(choice, self.grid, self._chosen(choice, query, key), has_backward=query.requires_grad)

    def _chosen(self, choice: options.TopBlocks, query: Tensor, key: Tensor) -> Tensor:
        """[B, H or 1, n, kept] the key blocks that each of the n query blocks sees, of [B, H, L, d] in tile order."""
        if choice.by_anchor:
            return self._chosen_by_anchor
        block = math.prod(choice.tile)
        with torch.no_grad(), without_autocast(query.device):
            return _top(block_means(query, block) @ block_means(key, block).mT, choice, self.grid)

    @cached_property
    def _chosen_by_anchor(self) -> Tensor:
        choice, anchor, grid = self.choice, self._anchor, self.grid
        assert isinstance(choice, options.TopBlocks)
        assert anchor is not None, "pw.run.cross_checks demands an injector"
        block, (order, _) = math.prod(choice.tile), _orders(grid, choice.tile, anchor.device)
        with torch.no_grad(), without_autocast(anchor.device):
            features = block_means(resize_frames(anchor.float(), grid[1:]).flatten(2).mT[:, order], block)
            features = F.normalize(features - features.mean(1, keepdim=True), dim=-1, eps=FAINT)
            axes = (torch.arange(float(size), device=anchor.device) for size in grid)
            centres = block_means(torch.cartesian_prod(*axes)[order], block)
            distance = torch.cdist(centres, centres) / math.hypot(*grid)
            return _top((features @ features.mT - NEARNESS * distance)[:, None], choice, grid)

    @cached_property
    def _anchor_block_mask(self) -> BlockMask:
        assert isinstance(self.choice, options.TopBlocks)
        return _block_mask(self.choice, self.grid, self._chosen_by_anchor, has_backward=True)


class _Reordered(torch.autograd.Function):
    """x [..., L, d] in another order. Its backward is the inverse order, where indexing would add with atomics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return x.index_select(-2, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(-2, ctx.inverse), None, None


def block_means(x: Tensor, block: int) -> Tensor:
    """[..., L, d] -> fp32 means of blocks of tokens [..., n, d]; the last one may be shorter."""
    whole = x.shape[-2] // block * block
    means = [x[..., :whole, :].unflatten(-2, (-1, block)).mean(-2, dtype=torch.float32)]
    if whole < x.shape[-2]:
        means.append(x[..., whole:, :].mean(-2, keepdim=True, dtype=torch.float32))
    return torch.cat(means, -2)


def _top(scores: Tensor, choice: options.TopBlocks, grid: Grid) -> Tensor:
    """Scores [..., n, n] -> the best blocks of each row [..., n, kept], its own among them."""
    scores.diagonal(dim1=-2, dim2=-1).fill_(math.inf)
    return scores.topk(kept_count(choice, grid), -1).indices


def _seen(chosen: Tensor, count: int) -> Tensor:
    """Chosen blocks [..., n, kept] -> [..., n, n] bool."""
    return chosen.new_zeros((*chosen.shape[:-1], count), dtype=torch.bool).scatter_(-1, chosen, True)


@lru_cache(maxsize=1)
def compiled_flex_attention() -> Any:
    """FlexAttention, compiled once for every size. Uncompiled it would store the scores of all pairs, so beyond torch's
    limit of sizes it must raise, which `fullgraph` sees to."""
    config: Any = torch._dynamo.config
    config.recompile_limit = max(COMPILED, config.recompile_limit)
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


@lru_cache(maxsize=16)
def _orders(grid: Grid, tile: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Numbers of the tokens in tile order, and the place of each token in it."""
    order = torch.from_numpy(tile_order(grid, tile))
    return order.to(device), order.argsort().to(device)


def _in_window(choice: options.Window, grid: Grid, tokens: Tensor) -> Callable[..., Tensor]:
    """A `mask_mod` of FlexAttention for `tokens` [L] in their order: whether a query sees a key."""
    rows, columns = tokens // grid[2] % grid[1], tokens % grid[2]
    firsts = (torch.from_numpy(first_seen(*sizes)).to(tokens) for sizes in zip(grid[1:], choice.window, strict=True))
    first_row, first_column = (first[places] for first, places in zip(firsts, (rows, columns), strict=True))
    height, width = choice.window

    def is_seen(clip: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        down, right = rows[key] - first_row[query], columns[key] - first_column[query]
        return (down >= 0) & (down < height) & (right >= 0) & (right < width)

    return is_seen


@lru_cache(maxsize=4)
def _window_mask(choice: options.Window, grid: Grid, device: torch.device) -> Tensor:
    tokens = torch.arange(math.prod(grid), device=device)
    return _in_window(choice, grid, tokens)(tokens, tokens, tokens[:, None], tokens)[None, None]


@lru_cache(maxsize=4)
def _window_block_mask(choice: options.Window, grid: Grid, device: torch.device) -> BlockMask:
    some, every = (torch.from_numpy(blocks).to(device)[None, None] for blocks in window_blocks(choice, grid))
    partial = some & ~every
    lists = [x for of in (partial, every) for x in (of.sum(-1), of.int().argsort(dim=-1, descending=True, stable=True))]
    tokens, _ = _orders(grid, choice.tile, device)
    return _from_lists(lists, choice, grid, _in_window(choice, grid, tokens), has_backward=True)


def _block_mask(choice: options.TopBlocks, grid: Grid, chosen: Tensor, *, has_backward: bool) -> BlockMask:
    """Whole blocks only. Where there is a backward, torch makes the lists of query blocks, too."""
    block, count = math.prod(choice.tile), block_count(grid, choice.tile)
    seen = _seen(chosen, count)
    clips, heads = seen.shape[:2]

    def is_seen(clip: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return seen[clip % clips, head % heads, query // block, key // block]

    number = torch.full(chosen.shape[:-1], chosen.shape[-1], device=chosen.device)
    indices = F.pad(chosen.int(), (0, count - chosen.shape[-1]))
    none = (torch.zeros_like(number), torch.zeros_like(indices))  # Inductor does not compile one tensor given twice
    return _from_lists([*none, number, indices], choice, grid, is_seen, has_backward=has_backward)


def _from_lists(
    lists: list[Tensor], choice: options.Attention, grid: Grid, is_seen: Callable[..., Tensor], *, has_backward: bool
) -> BlockMask:
    """lists: numbers and indices of the key blocks of each query block, of those seen in part, then of those in full"""
    return BlockMask.from_kv_blocks(
        *(x.int().contiguous() for x in lists),  # Inductor's kernel for CPUs reads them as if they were
        BLOCK_SIZE=math.prod(choice.tile),
        mask_mod=is_seen,
        seq_lengths=(math.prod(grid), math.prod(grid)),
        compute_q_blocks=has_backward,
    )
