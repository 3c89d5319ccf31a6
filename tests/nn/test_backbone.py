"""pw.nn.backbone: the stock transformer stays stock, and what is hooked on is silent, differentiable and its own."""

from __future__ import annotations

import copy
import weakref
from dataclasses import replace

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from pw.nn import options
from pw.nn.backbone import Backbone

WAN = options.Wan(
    patch_size=(1, 1, 1),
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=12,
    ffn_dim=48,
    num_layers=3,
    text_dim=8,
    text_tokens=2,
    freq_dim=256,
    rope_max_seq_len=32,
)
GATED, CHANNELWISE, ALPHA_ZERO = (options.Injector(gate, (1,), 0.5, 4) for gate in ("scalar", "channelwise", "fixed"))
INJECTORS = {"gated": GATED, "gated_channelwise": CHANNELWISE, "alpha_zero": ALPHA_ZERO}
every_injector = pytest.mark.parametrize("injector", INJECTORS.values(), ids=INJECTORS)


def stock() -> WanTransformer3DModel:
    """The transformer as diffusers' own constructor makes it."""
    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=12,
        out_channels=12,
        text_dim=8,
        freq_dim=256,
        ffn_dim=48,
        num_layers=3,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
        rope_max_seq_len=32,
    )


def backbone(
    injector: options.Injector | options.Add | None, wan: options.Wan = WAN, *, awake: bool = False
) -> Backbone:
    """Fresh, or `awake`: every parameter that starts at zero has left it, as after training."""
    torch.manual_seed(0)
    net = Backbone(wan, injector)
    if awake:
        with torch.no_grad():
            for parameter in net.parameters():
                if not parameter.any():
                    parameter.normal_(0, 0.3)
    return net


def inputs(seed: int = 0, batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(batch, generator=generator)
    return {
        "state": torch.randn(batch, 12, 2, 4, 4, generator=generator),
        "timestep": 200 + 800 * uniform,
        "stride": 100 * uniform.flip(0) + 10,
        "text": torch.randn(batch, 2, 8, generator=generator),
        "anchor": torch.randn(batch, 12, 2, 2, 2, generator=generator),
        "sigma_timestep": 200 + 800 * uniform,
    }


def gradients(net: Backbone) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def test_the_transformer_has_the_stock_keys_and_takes_a_stock_state_dict():
    net, other = backbone(GATED), stock()
    assert list(net.dit.state_dict()) == list(other.state_dict())
    net.dit.load_state_dict(other.state_dict(), strict=True)
    assert {k.split(".")[0] for k in net.state_dict()} == {"dit", "stride_embedding", "injector"}


@every_injector
def test_a_fresh_backbone_is_its_stock_transformer_bit_for_bit(injector: options.Injector):
    net, other = backbone(injector), stock()
    other.load_state_dict(net.dit.state_dict())
    for seed in (0, 1):
        arguments = inputs(seed)
        expected = other(arguments["state"], arguments["sigma_timestep"], arguments["text"], return_dict=False)[0]
        for change in ({}, {"stride": torch.zeros(2)}, {"anchor": 100 * arguments["anchor"]}):
            assert torch.equal(net(**arguments | change), expected)


def test_without_an_injector_a_fresh_backbone_is_its_stock_transformer_too():
    net, other = backbone(None), stock()
    other.load_state_dict(net.dit.state_dict())
    arguments = inputs() | {"anchor": None}
    expected = other(arguments["state"], arguments["sigma_timestep"], arguments["text"], return_dict=False)[0]
    assert torch.equal(net(**arguments), expected)


def test_add_is_the_stock_transformer_where_the_anchor_is_zero_and_on_the_sum_otherwise():
    net, other = backbone(options.Add()), stock()
    other.load_state_dict(net.dit.state_dict())
    arguments = inputs()
    ask = lambda state: other(state, arguments["sigma_timestep"], arguments["text"], return_dict=False)[0]  # noqa: E731
    assert torch.equal(net(**arguments | {"anchor": torch.zeros(2, 12, 2, 4, 4)}), ask(arguments["state"]))
    # an anchor already at the latent's size is not resized
    anchor = torch.randn(2, 12, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(net(**arguments | {"anchor": anchor}), ask(arguments["state"] + anchor))
    # the patch embedding is linear: adding latents is adding tokens, with nothing new learned
    embed, bias = net.dit.patch_embedding, net.dit.patch_embedding.bias.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(
        embed(arguments["state"] + anchor), embed(arguments["state"]) + embed(anchor) - bias, atol=1e-5, rtol=0
    )
    assert not any(name.startswith("injector") for name, _ in net.named_parameters())


@every_injector
def test_an_awake_backbone_listens_to_stride_anchor_and_timestep(injector: options.Injector):
    net, arguments = backbone(injector, awake=True), inputs()
    before = net(**arguments)
    for change in (
        {"stride": arguments["stride"] + 50},
        {"anchor": arguments["anchor"] + 1},
        {"sigma_timestep": arguments["sigma_timestep"] / 2},
    ):
        assert (net(**arguments | change) - before).abs().max() > 1e-3


def test_the_anchor_enters_by_its_own_sample_and_frame():
    net, arguments = backbone(GATED, awake=True), inputs()
    before = net(**arguments)
    other = arguments["anchor"].clone()
    other[1] += 1
    after = net(**arguments | {"anchor": other})
    torch.testing.assert_close(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 1e-3


def test_one_timestep_per_sample_is_what_one_per_token_is_in_the_stock_model():
    # Wan2.2-TI2V feeds a timestep per token; the same on every token is the same answer
    other, arguments = stock(), inputs()
    per_sample, per_token = (
        other(arguments["state"], t, arguments["text"], return_dict=False)[0]
        for t in (arguments["sigma_timestep"], arguments["sigma_timestep"][:, None].expand(2, 2 * 4 * 4))
    )
    torch.testing.assert_close(per_sample, per_token, atol=1e-5, rtol=0)


def test_clean_frames_have_timestep_and_stride_zero_at_their_tokens_alone():
    """All frames clean is timestep and stride 0; the gate of the injector has those of the sample."""
    net, arguments = backbone(None, awake=True), inputs()
    arguments["anchor"] = None
    zeros = torch.zeros_like(arguments["stride"])
    at_rest = net(**arguments | {"stride": zeros, "sigma_timestep": zeros})
    torch.testing.assert_close(net(**arguments, clean_frames=torch.tensor([2, 2])), at_rest, atol=1e-5, rtol=0)
    one, noisy = net(**arguments, clean_frames=torch.tensor([1, 0])), net(**arguments)
    assert (one - at_rest)[0].abs().max() > 1e-3
    assert (one - noisy)[0].abs().max() > 1e-3
    torch.testing.assert_close(one[1], noisy[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("blocks", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_the_anchor_is_added_to_the_input_of_the_blocks_it_names_and_no_other(blocks: tuple[int, ...]):
    net = backbone(replace(GATED, blocks=blocks), awake=True)
    outputs: list[torch.Tensor] = []  # of the patch embedding and of each block
    block_inputs: list[torch.Tensor] = []
    net.dit.patch_embedding.register_forward_hook(lambda _, args, out: outputs.append(out.flatten(2).mT))
    for block in net.dit.blocks:
        # registered after the injection's own hook, so it sees what that has made of the input
        block.register_forward_pre_hook(lambda _, args: block_inputs.append(args[0]))
        block.register_forward_hook(lambda _, args, out: outputs.append(out))
    arguments = inputs()
    net(**arguments)
    added = net.injector(arguments["anchor"], (4, 4), arguments["timestep"], arguments["stride"])
    assert set(added) == set(blocks)
    for index in range(3):
        torch.testing.assert_close(block_inputs[index], outputs[index] + added.get(index, 0))


@pytest.mark.parametrize("blocks", [(0,), (1,), (0, 1, 2)])
@pytest.mark.parametrize("injector", [GATED, CHANNELWISE], ids=["gated", "gated_channelwise"])
def test_checkpointed_gradients_equal_plain_ones(injector: options.Injector, blocks: tuple[int, ...]):
    """Also when other forwards, with other anchors and strides, come between forward and backward."""
    injector = replace(injector, blocks=blocks)
    plain, checkpointed = backbone(injector, awake=True), backbone(injector, awake=True)
    checkpointed.checkpoint_activations()
    for net in (plain, checkpointed):
        # a shortcut target comes before, an evaluation of another batch after the forward that is learned from
        with torch.no_grad():
            net(**inputs(1))
        loss = net(**inputs(0)).square().mean()
        with torch.no_grad():
            net(**inputs(2, batch=3))
        second = net(**inputs(3)).square().mean()
        (loss + 2 * second).backward()
    expected, result = gradients(plain), gradients(checkpointed)
    assert expected.keys() == result.keys()
    assert {"injector.narrow.weight", "stride_embedding.mlp.linear_1.weight"} <= expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(result[name], gradient, atol=1e-7, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_offloaded_inputs_are_let_go_and_the_gradients_are_the_same_bits():
    results = []
    for offload in (False, True):
        net = backbone(GATED, awake=True)
        net.checkpoint_activations(offload=offload)
        entered: list[weakref.ref] = []
        for block in net.dit.blocks[1:]:
            hook = lambda _, args, entered=entered: entered.append(weakref.ref(args[0]))  # noqa: E731
            block.register_forward_pre_hook(hook, prepend=True)  # before the injector's
        loss = net(**inputs()).square().mean()
        alive = [reference() is not None for reference in entered]
        loss.backward()
        results.append((alive, gradients(net)))
    (stored, expected), (offloaded, result) = results
    assert stored == [True] * len(stored)
    assert offloaded == [False] * len(offloaded)
    assert len(offloaded) == len(stored) >= 1
    assert expected.keys() == result.keys()
    assert all(torch.equal(result[name], gradient) for name, gradient in expected.items())


def test_checkpointing_recomputes_the_blocks():
    net = backbone(GATED, awake=True)
    net.checkpoint_activations()
    calls = []
    net.dit.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    loss = net(**inputs()).mean()
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 2


def test_a_deep_copy_calls_its_own_injector_and_stride_embedding():
    net = backbone(GATED, awake=True)
    twin = copy.deepcopy(net)
    arguments = inputs()
    before = net(**arguments)
    assert torch.equal(twin(**arguments), before)
    for name in ("injector", "stride_embedding"):
        for changed, other in ((twin, net), (net, twin)):
            other_before, changed_before = other(**arguments), changed(**arguments)
            with torch.no_grad():
                for parameter in getattr(changed, name).parameters():
                    parameter.add_(0.1)
            assert torch.equal(other(**arguments), other_before)
            assert (changed(**arguments) - changed_before).abs().max() > 1e-4


def test_a_deep_copy_of_a_checkpointed_backbone_recomputes_with_its_own_context():
    net = backbone(GATED, awake=True)
    plain = copy.deepcopy(net)
    net.checkpoint_activations()
    twin = copy.deepcopy(net)
    loss = twin(**inputs(0)).square().mean()
    net(**inputs(1))  # the original's context is another one now
    loss.backward()
    plain(**inputs(0)).square().mean().backward()
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(twin)[name], gradient, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_frozen_transformer_gets_no_gradient_and_what_is_hooked_on_gets_one(checkpointing: bool):
    net = backbone(GATED, awake=True)
    net.set_trainable("adapters")
    if checkpointing:
        net.checkpoint_activations()
    net(**inputs()).square().mean().backward()
    assert not [name for name, _ in net.dit.named_parameters() if name in gradients(net)]
    assert all(p.grad is None and not p.requires_grad for p in net.dit.parameters())
    for part in (net.injector, net.stride_embedding):
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())
    net.set_trainable("all")
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("injector", [None, GATED, options.Add()], ids=["none", "gated", "add"])
def test_an_anchor_that_is_missing_or_has_nowhere_to_go_is_refused(injector):
    net, arguments = backbone(injector), inputs()
    if injector is None:
        with pytest.raises(ValueError, match="no injector for the anchor"):
            net(**arguments)
    else:
        with pytest.raises(ValueError, match="needs an anchor"):
            net(**arguments | {"anchor": None})


@pytest.mark.parametrize(
    ("injector", "key"),
    [
        (replace(GATED, blocks=(3,)), r"injector\.blocks=\[3\]: the backbone has blocks 0 to 2"),
        (replace(GATED, blocks=(-1,)), r"injector\.blocks=\[-1\]"),
        (replace(GATED, groups=3), r"injector\.groups=3: does not divide the 16 hidden channels"),
    ],
)
def test_an_injector_that_does_not_fit_the_backbone_is_refused_by_key(injector: options.Injector, key: str):
    with pytest.raises(ValueError, match=key):
        Backbone(WAN, injector)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("scalar", (), 0.5, 4), r"injector\.blocks=\[\]"),
        (("scalar", (1, 1), 0.5, 4), r"injector\.blocks=\[1, 1\]"),
        (("scalar", (1,), 0.0, 4), r"injector\.hidden=0"),
        (("scalar", (1,), 0.5, 0), r"injector\.groups=0"),
    ],
)
def test_an_impossible_injector_is_refused_by_key(arguments: tuple, key: str):
    with pytest.raises(ValueError, match=key):
        options.Injector(*arguments)


@pytest.mark.parametrize("name", ["num_attention_heads", "num_layers", "in_channels"])
def test_an_impossible_transformer_is_refused_by_key(name: str):
    with pytest.raises(ValueError, match=rf"backbone\.{name}=0"):
        replace(WAN, **{name: 0})


def test_the_spatial_patch_sets_the_token_grid_the_anchor_is_resized_to():
    net = backbone(replace(GATED, blocks=(0, 2)), replace(WAN, patch_size=(1, 2, 2)), awake=True)
    arguments = inputs()
    out = net(**arguments)
    assert out.shape == arguments["state"].shape
    assert (net(**arguments | {"anchor": -arguments["anchor"]}) - out).abs().max() > 1e-3


def test_embeddings_of_timestep_and_stride_stay_fp32_under_autocast():
    """bf16 would tell 942 from 943 by rounding; Wan trains these in fp32."""
    net = backbone(GATED, awake=True)
    embeddings: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    for is_bf16, outputs in embeddings.items():
        handle = net.dit.condition_embedder.time_embedder.register_forward_hook(
            lambda m, a, o, outputs=outputs: outputs.append(o)
        )
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            net(**inputs())
        handle.remove()
    assert embeddings[True][0].dtype == torch.float32
    assert torch.equal(embeddings[False][0], embeddings[True][0])
