"""pw.nn.adapters: Eqs. 1-2, and the rivals as identities of one another."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pw.nn import options
from pw.nn.adapters import (
    AnchorGuidedInjector,
    ChannelGate,
    FixedGate,
    ScalarGate,
    StrideEmbedding,
    resize_frames,
    sinusoid,
)

WAN = options.Wan((1, 1, 1), 2, 16, 12, 48, 3, 8, 2, 256, 32)


def injector(gate: str) -> AnchorGuidedInjector:
    """An injector whose projections have left zero, and its gate's last layers too."""
    torch.manual_seed(0)
    module = AnchorGuidedInjector(options.Injector(gate, (0, 2), 0.5, 4), WAN)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def inject(module: AnchorGuidedInjector, timestep: float = 700.0, stride: float = 100.0) -> dict[int, torch.Tensor]:
    anchor = torch.randn(2, 12, 2, 2, 2, generator=torch.Generator().manual_seed(2))
    return module(anchor, (4, 4), torch.full((2,), timestep), torch.full((2,), stride))


def with_gate(source: AnchorGuidedInjector, gate: nn.Module) -> AnchorGuidedInjector:
    copy = injector("fixed")
    shared = {k: v for k, v in source.state_dict().items() if not k.startswith("gate.")}
    copy.load_state_dict(shared)
    copy.gate = gate
    return copy


def silence(head: nn.Sequential) -> None:
    with torch.no_grad():
        head[-1].weight.zero_()
        head[-1].bias.zero_()


def test_gated_with_a_silent_gate_is_alpha_zero():
    gated = injector("scalar")
    alpha_zero = with_gate(gated, FixedGate())
    assert not torch.equal(inject(gated)[0], inject(alpha_zero)[0])
    silence(gated.gate.mlp)
    for block, tokens in inject(gated).items():
        assert torch.equal(tokens, inject(alpha_zero)[block])


def test_gated_channelwise_with_both_gates_silent_is_alpha_zero():
    channelwise = injector("channelwise")
    alpha_zero = with_gate(channelwise, FixedGate())
    silence(channelwise.gate.timestep_mlp)
    silence(channelwise.gate.stride_mlp)
    for block, tokens in inject(channelwise).items():
        assert torch.equal(tokens, inject(alpha_zero)[block])


def test_gated_is_alpha_zero_scaled_by_one_plus_alpha():
    # without its bias the projection is linear, so the gain of Eq. 2 comes through as a factor
    gated = injector("scalar")
    for linear in gated.out.values():
        nn.init.zeros_(linear.bias)
    alpha_zero = with_gate(gated, FixedGate())
    timestep, stride = torch.full((2,), 700.0), torch.full((2,), 100.0)
    gain = 1 + gated.gate(timestep, stride).detach()
    assert float((gain - 1).abs().max()) > 0.01
    for block, tokens in inject(gated).items():
        torch.testing.assert_close(tokens, gain[:, None] * inject(alpha_zero)[block])


@pytest.mark.parametrize("gate", [ScalarGate, ChannelGate])
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_the_gain_lies_between_zero_and_two(gate: type[nn.Module], scale: float):
    torch.manual_seed(0)
    module = gate(32)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, scale)
    timestep, stride = torch.linspace(0, 1000, 64), torch.linspace(0, 800, 64).flip(0)
    gain = 1 + module(timestep, stride).detach()
    assert float(gain.min()) >= 0
    assert float(gain.max()) <= 2
    assert float(gain.std()) > 0.01
    if scale == 0.1:  # not saturated in float32: strictly inside
        assert 0 < float(gain.min()) < float(gain.max()) < 2


def test_a_fresh_scalar_gate_is_one_per_sample_and_zero():
    alpha = ScalarGate(32)(torch.tensor([1000.0, 500.0]), torch.tensor([68.0, 500.0]))
    assert torch.equal(alpha, torch.zeros(2, 1))


def test_the_scalar_gate_sums_the_sinusoids_of_eq_1_so_timestep_and_stride_trade_places():
    gate = injector("scalar").gate
    a, b = torch.tensor([700.0]), torch.tensor([100.0])
    torch.testing.assert_close(gate(a, b), gate(b, a))
    assert float((gate(a, b) - gate(a, 2 * b)).detach().abs()) > 1e-4


def test_a_fresh_channel_gate_is_one_per_channel_and_zero():
    # D18: both MLPs are silent, so that a start's injector keeps its gain of 1
    alpha = ChannelGate(32)(torch.tensor([1000.0, 500.0]), torch.tensor([68.0, 500.0]))
    assert torch.equal(alpha, torch.zeros(2, 32))


def test_an_awake_channel_gate_listens_to_timestep_and_stride_by_mlps_of_their_own():
    gate = injector("channelwise").gate
    a, b = torch.tensor([700.0]), torch.tensor([100.0])
    with torch.no_grad():
        alpha, swapped, longer = gate(a, b), gate(b, a), gate(a, 2 * b)
    assert float(alpha.std()) > 1e-3
    assert float((alpha - swapped).abs().max()) > 1e-3
    assert float((alpha - longer).abs().max()) > 1e-3


def test_a_fresh_injector_is_silent_in_every_block():
    torch.manual_seed(0)
    fresh = AnchorGuidedInjector(options.Injector("channelwise", (0, 2), 0.5, 4), WAN)
    tokens = inject(fresh)
    assert set(tokens) == {0, 2}
    for added in tokens.values():
        assert torch.equal(added, torch.zeros(2, 2 * 4 * 4, 32))


def test_tokens_are_in_the_transformers_order_frames_then_rows_then_columns():
    # without the norms, which mix all positions, one latent point reaches the 3 x 3 x 3 tokens around it
    module = injector("fixed")
    module.norm = nn.Identity()
    anchor = torch.zeros(1, 12, 4, 2, 3)
    ask = lambda: module(anchor, (2, 3), torch.zeros(1), torch.zeros(1))[0]  # noqa: E731
    before = ask()
    anchor[0, :, 3, 1, 2] = 5.0
    changed = ((ask() - before).abs().amax(-1)[0] > 0).view(4, 2, 3)
    expected = torch.zeros(4, 2, 3, dtype=torch.bool)
    expected[2:, :, 1:] = True
    assert torch.equal(changed, expected)


def test_resizing_keeps_a_constant_and_works_frame_by_frame():
    latent = torch.randn(2, 3, 4, 1, 1).expand(-1, -1, -1, 3, 3)
    resized = resize_frames(latent, (6, 5))
    assert resized.shape == (2, 3, 4, 6, 5)
    torch.testing.assert_close(resized, latent[..., :1, :1].expand(-1, -1, -1, 6, 5))
    same = torch.randn(1, 3, 2, 4, 4)
    assert resize_frames(same, (4, 4)) is same


def test_the_sinusoid_has_cosines_first_and_the_frequencies_of_wan():
    # 128 frequencies 10000^(-i / 128): at position 0 all cosines are 1 and all sines 0
    at_zero, at_ten = sinusoid(torch.tensor([0.0, 10.0], dtype=torch.float64))
    assert torch.equal(at_zero, torch.cat([torch.ones(128), torch.zeros(128)]))
    frequency = 10_000 ** (-3 / 128)
    assert float(at_ten[3]) == pytest.approx(math.cos(10 * frequency), abs=1e-5)
    assert float(at_ten[128 + 3]) == pytest.approx(math.sin(10 * frequency), abs=1e-5)


def test_a_fresh_stride_embedding_is_zero_and_an_awake_one_tells_strides_apart():
    torch.manual_seed(0)
    embedding = StrideEmbedding(32)
    strides = torch.tensor([0.0, 14.0, 600.0])
    assert torch.equal(embedding(strides), torch.zeros(3, 32))
    nn.init.normal_(embedding.mlp.linear_2.weight)
    zero, short, long = embedding(strides)
    assert (zero - short).abs().max() > 0.01
    assert (short - long).abs().max() > 0.01


def test_a_refined_anchor_is_kept_for_the_next_step_and_no_longer_than_it_is_true():
    module = injector("fixed")
    anchor = torch.randn(2, 12, 2, 2, 2, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        first = module.refined_anchor(anchor, (4, 4))
        assert module.refined_anchor(anchor, (4, 4)) is first
        assert module.refined_anchor(anchor.clone(), (4, 4)) is not first  # another tensor
        again = module.refined_anchor(anchor, (4, 4))
        module.widen.weight.mul_(2)  # as an optimiser's update does
        assert not torch.equal(module.refined_anchor(anchor, (4, 4)), again)
        anchor.add_(1)
        assert torch.equal(module.refined_anchor(anchor, (4, 4)), module.refined_anchor(anchor.clone(), (4, 4)))
    assert module.refined_anchor(anchor, (4, 4)).requires_grad  # the cache does not cut off the anchor's gradient
