"""pw.nn.backbone with sparse attention: in self-attention alone, of the forward that is recomputed, and of a copy."""

from __future__ import annotations

import copy
from functools import partialmethod
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from test_backbone import GATED, WAN, backbone, gradients, inputs, stock
from torch._dynamo.testing import CompileCounter

from pw.nn import options
from pw.nn.backbone import Backbone
from pw.nn.networks import compile_blocks
from pw.nn.sparse_attention import SparseMask

GRID, TILE = (2, 4, 4), (2, 2, 1)
CHOICES: dict[str, options.Attention] = {
    "window": options.Window((2, 3), TILE),
    "topk": options.TopBlocks(0.4, TILE),
    "anchor": options.AnchorBlocks(0.4, TILE),
}
every_choice = pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
ALL: tuple[options.Attention, ...] = (
    options.Window((4, 4), TILE),
    options.TopBlocks(1, TILE),
    options.AnchorBlocks(1, TILE),
)


def sparse(choice: options.Attention | None, injector: options.Injector | options.Add = GATED) -> Backbone:
    """The awake network of test_backbone, with sparse attention."""
    awake = backbone(injector, awake=True)
    net = Backbone(WAN, injector, attention=choice)
    net.load_state_dict(awake.state_dict())
    return net


def hooks_of(net: Backbone) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in net.modules())


def test_dense_attention_has_no_hook() -> None:
    assert hooks_of(sparse(None)) == hooks_of(backbone(GATED))
    assert hooks_of(sparse(ALL[0])) == hooks_of(backbone(GATED)) + 3  # one a block
    assert not any(block.attn1._forward_pre_hooks for block in sparse(None).dit.blocks)


@pytest.mark.parametrize("choice", ALL, ids=CHOICES)
def test_where_every_key_is_seen_it_is_the_dense_network_with_its_gradients(choice: options.Attention) -> None:
    results = []
    for net in (sparse(choice), sparse(None)):
        output = net(**inputs())
        output.square().mean().backward()
        results.append([output, *gradients(net).values()])
    torch.testing.assert_close(*results)


@every_choice
def test_self_attention_sees_the_mask_and_cross_attention_all_words(choice: options.Attention) -> None:
    net, arguments = sparse(choice), inputs()
    seen: list[tuple[Any, Any]] = []
    for block in net.dit.blocks:
        # after the hook of the network
        block.attn1.register_forward_pre_hook(lambda _, args: seen.append(args[1:3]))
        block.attn2.register_forward_pre_hook(lambda _, args: seen.append(args[1:3]))
    output = net(**arguments)
    assert [(text is None, isinstance(mask, SparseMask)) for text, mask in seen] == 3 * [(True, True), (False, False)]
    assert len({id(mask) for _, mask in seen[::2]}) == 1  # one for all layers
    assert seen[0][1].grid == GRID
    assert (output - sparse(None)(**arguments)).abs().max() > 1e-3


@every_choice
def test_checkpointed_blocks_are_recomputed_with_the_mask_of_their_forward(choice: options.Attention) -> None:
    """Other anchors come between forward and backward."""
    plain, checkpointed = sparse(choice), sparse(choice)
    checkpointed.checkpoint_activations()
    for net in (plain, checkpointed):
        loss = net(**inputs(0)).square().mean()
        second = net(**inputs(1, batch=3)).square().mean()
        with torch.no_grad():
            net(**inputs(2))
        (loss + 2 * second).backward()
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(checkpointed)[name], gradient, atol=1e-7, rtol=1e-5)


@every_choice
def test_a_deep_copy_has_its_own_mask(choice: options.Attention) -> None:
    net = sparse(choice)
    twin = copy.deepcopy(net)
    twin.checkpoint_activations()
    loss = twin(**inputs(0)).square().mean()
    net(**inputs(1))  # the original's is another one now
    loss.backward()
    net(**inputs(0)).square().mean().backward()
    for name, gradient in gradients(net).items():
        torch.testing.assert_close(gradients(twin)[name], gradient, atol=1e-7, rtol=1e-5)


def test_an_anchor_that_is_added_chooses_blocks_too() -> None:
    net, dense = sparse(CHOICES["anchor"], options.Add()), sparse(None, options.Add())
    assert (net(**inputs()) - dense(**inputs())).abs().max() > 1e-3


def test_released_it_is_the_stock_transformer_again() -> None:
    net, other = sparse(CHOICES["topk"]), stock()
    other.load_state_dict(net.dit.state_dict())
    net.release()
    arguments = inputs()
    state, when, text = (arguments[name] for name in ("state", "sigma_timestep", "text"))
    assert torch.equal(net.dit(state, when, text)[0], other(state, when, text)[0])


@pytest.mark.slow
@every_choice
def test_compiled_blocks_compute_the_same(choice: options.Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, but not lowered: that would take minutes."""
    counter, net = CompileCounter(), sparse(choice)
    expected = [net(**inputs(seed)) for seed in (0, 1)]
    compiled = partialmethod(WanTransformer3DModel.compile_repeated_blocks, backend=counter)
    monkeypatch.setattr(WanTransformer3DModel, "compile_repeated_blocks", compiled)
    torch.compiler.reset()
    compile_blocks(net)
    torch.testing.assert_close([net(**inputs(seed)) for seed in (0, 0)], expected[:1] * 2)
    frames = counter.frame_count
    assert frames > 0
    torch.testing.assert_close(net(**inputs(1)), expected[1])
    assert counter.frame_count == frames  # another mask is not another kernel
