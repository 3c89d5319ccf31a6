"""pw.nn.placement: weights that wait in CPU memory or in 8 bits, on diffusers' real hooks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partialmethod
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks.group_offloading import ModuleGroup
from torch._dynamo.testing import CompileCounter

from pw.nn import options
from pw.nn.backbone import Backbone
from pw.nn.networks import Network, load_network

FP8 = torch.float8_e4m3fn
NETWORK = Network(
    options.Wan((1, 2, 2), 2, 48, 4, 448, 4, 16, 8, 64, 64), options.Injector("scalar", (1,), 0.25, 8), "sdpa", False, 0
)


def network(**changes: Any) -> Backbone:
    return load_network(replace(NETWORK, **changes), "random", None, "cpu")


def evaluations(net: Backbone) -> Iterator[torch.Tensor]:
    """Velocities of two steps under the same anchor: the second takes the refined anchor from the injector's cache."""
    draw = torch.Generator().manual_seed(0)
    state, text = torch.randn(1, 4, 2, 8, 8, generator=draw), torch.randn(1, 8, 16, generator=draw)
    anchor = torch.randn(1, 4, 2, 2, 2, generator=draw)
    for timestep in (900.0, 600.0):
        t = torch.tensor([timestep])
        with torch.no_grad():
            velocity = net(state, t, t / 2, text, anchor, sigma_timestep=t)
        yield velocity


def kinds(net: Backbone) -> dict[str, torch.dtype]:
    return {name: parameter.dtype for name, parameter in net.named_parameters()}


@pytest.mark.parametrize("storage", ["as_computed", "fp8"])
def test_offloaded_blocks_give_the_same_bits(storage: str) -> None:
    expected = list(evaluations(network(storage=storage)))
    assert not torch.equal(*expected)
    for one, other in zip(evaluations(network(storage=storage, offload="group")), expected, strict=True):
        assert torch.equal(one, other)


def test_one_block_is_there_at_a_time_and_what_is_no_block_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the copies in advance that a CPU cannot make."""
    there: list[set[str]] = []
    names = {}

    def recorded(method: Any, is_there: bool) -> Any:
        def call(group: ModuleGroup) -> None:
            blocks = {names[module] for module in group.modules}
            there.append(there[-1] | blocks if is_there else there[-1] - blocks)
            method(group)

        return call

    net = network(offload="group")
    names.update({block: f"block {i}" for i, block in enumerate(net.dit.blocks)})
    there.append(set())
    for name, is_there in (("onload_", True), ("offload_", False)):
        monkeypatch.setattr(ModuleGroup, name, recorded(getattr(ModuleGroup, name), is_there))
    next(evaluations(net))
    # diffusers also asks the group of what is no block, which is empty
    assert [blocks for i, blocks in enumerate(there) if blocks != there[i - 1]] == [
        state for i in range(4) for state in ({f"block {i}"}, set())
    ]


def test_in_8_bits_are_the_linear_layers_of_the_blocks_and_nothing_else() -> None:
    net, plain = network(storage="fp8"), network()
    list(evaluations(net))  # between two evaluations, too
    linear = {
        f"dit.blocks.{i}.{layer}.{kind}"
        for i in range(4)
        for layer in (
            *(
                f"{attention}.{part}"
                for attention in ("attn1", "attn2")
                for part in ("to_q", "to_k", "to_v", "to_out.0")
            ),
            *("ffn.net.0.proj", "ffn.net.2"),
        )
        for kind in ("weight", "bias")
    }
    assert {name for name, kind in kinds(net).items() if kind == FP8} == linear
    assert {n: k for n, k in kinds(net).items() if n not in linear} == {
        n: k for n, k in kinds(plain).items() if n not in linear
    }
    for name, parameter in plain.named_parameters():
        if name not in linear:
            assert torch.equal(net.get_parameter(name), parameter), name


def test_8_bits_round_the_velocity_by_a_few_percent() -> None:
    """e4m3 has three bits after the first: a weight is off by up to 1/16, at random, so a sum of many by less."""
    for rounded, exact in zip(evaluations(network(storage="fp8")), evaluations(network()), strict=True):
        error = (rounded - exact).norm() / exact.norm()
        assert 1e-4 < error < 1 / 16


def test_what_is_stored_in_8_bits_is_computed_in_bf16_with_wans_fp32_parts() -> None:
    net = load_network(replace(NETWORK, storage="fp8"), "random", None, "cpu", compute_device="cuda")
    dtypes: set[torch.dtype] = set()
    for layer in (net.dit.blocks[0].attn1.to_q, net.dit.blocks[0].ffn.net[2]):
        layer.register_forward_hook(lambda module, args, output: dtypes.update({args[0].dtype, output.dtype}))
    assert next(evaluations(net)).dtype == torch.float32
    assert dtypes == {torch.bfloat16}
    for name in ("dit.blocks.0.scale_shift_table", "dit.blocks.0.norm2.weight", "stride_embedding.mlp.linear_1.weight"):
        assert kinds(net)[name] == torch.float32
    assert kinds(net)["dit.proj_out.weight"] == torch.bfloat16


def test_offloaded_blocks_are_compiled_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies cut a block into pieces, of which all blocks have the same."""
    expected = list(evaluations(network()))
    for layers in (4, 8):
        counter = CompileCounter()
        compiled = partialmethod(WanTransformer3DModel.compile_repeated_blocks, backend=counter)
        monkeypatch.setattr(WanTransformer3DModel, "compile_repeated_blocks", compiled)
        torch.compiler.reset()
        net = network(offload="group", compile=True, backbone=replace(NETWORK.backbone, num_layers=layers))
        results = list(evaluations(net))
        assert 0 < counter.frame_count < 4  # not one for each block
        if layers == 4:
            for one, other in zip(results, expected, strict=True):
                torch.testing.assert_close(one, other)
    torch.compiler.reset()
