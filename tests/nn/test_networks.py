"""pw.nn.networks: the real loading code, on small weights in the published layouts."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from safetensors.torch import save_file
from test_convert import authors_name
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import current_flash_attention_impl

from pw.io.wan_weights import fingerprint, overrides_of
from pw.nn import options
from pw.nn.backbone import Backbone
from pw.nn.networks import Network, check_kernel, kernel_error, load_network, network_without_weights
from pw.run.build import build


@pytest.fixture(scope="module")
def small(pipeline: tuple[Path, Any]) -> Network:
    run = build(["scale=tiny", "codec=wan_vae", "start=none", "scale.frames=5", "scale.height=64", "scale.width=64",
                 "scale.anchor_height=32", "scale.anchor_width=32", *overrides_of(pipeline[0])])  # fmt: skip
    return Network(run.backbone, run.injector, "sdpa", False, 0)


def velocity(net: Backbone, stride: float = 0.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    state, text = torch.randn(1, 4, 2, 4, 4, generator=draw), torch.randn(1, 8, 16, generator=draw)
    anchor = torch.randn(1, 4, 2, 2, 2, generator=draw) if net.injector is not None else None
    t = torch.tensor([700.0])
    with torch.no_grad():
        return net(state, t, torch.tensor([stride]), text, anchor, sigma_timestep=t)


def test_the_base_network_is_the_published_transformer(pipeline: tuple[Path, Any], small: Network) -> None:
    net = load_network(small, "base", pipeline[0], "cpu")
    for name, value in pipeline[1].transformer.state_dict().items():
        assert torch.equal(net.dit.state_dict()[name], value), name
    assert not any(p.requires_grad for p in net.parameters())
    assert torch.equal(velocity(net, 300.0), velocity(net, 0.0))  # fresh adapters are silent


def test_a_transformer_of_another_size_is_refused_by_key(pipeline: tuple[Path, Any], small: Network) -> None:
    larger = replace(small, backbone=replace(small.backbone, num_layers=5))
    with pytest.raises(ValueError, match=r"backbone\.num_layers=5: the transformer in .* has 3"):
        load_network(larger, "base", pipeline[0], "cpu")


def test_a_kernel_is_chosen_without_a_word_and_nothing_else_is_hushed(small: Network) -> None:
    messages: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    diffusers, listening = logging.getLogger("diffusers.models.modeling_utils"), Listening()
    diffusers.addHandler(listening)
    try:
        net = load_network(small, "random", None, "cpu")
        diffusers.warning("something else")
        net.dit.set_attention_backend("native")
    finally:
        diffusers.removeHandler(listening)
    assert messages[0] == "something else"
    assert messages[1].startswith("Attention backends are an experimental feature")  # of a call that is not ours


def test_a_training_of_ours_comes_back(small: Network, tmp_path: Path) -> None:
    trained = load_network(replace(small, seed=5), "random", None, "cpu")
    save_file(trained.state_dict(), tmp_path / "ema.safetensors")
    result = load_network(small, str(tmp_path / "ema.safetensors"), None, "cpu")
    for name, value in trained.state_dict().items():
        assert torch.equal(result.state_dict()[name], value), name
    # not bit for bit: a file's tensors lie otherwise in memory, and sums are taken in another order
    torch.testing.assert_close(velocity(result, 300.0), velocity(trained, 300.0))
    assert not any(b.is_meta for b in result.buffers())


def test_a_base_checkpoint_is_no_second_stage(pipeline: tuple[Path, Any], small: Network, tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    shutil.copytree(pipeline[0] / "transformer", folder)
    with pytest.raises(ValueError, match=r"diffusers layout.*not found.*injector"):
        load_network(small, str(folder), None, "cpu")
    first = load_network(replace(small, injector=None), str(folder), None, "cpu")
    base = load_network(replace(small, injector=None), "base", pipeline[0], "cpu")
    assert torch.equal(velocity(first), velocity(base))


def test_the_authors_injector_is_asked_for_by_name(small: Network, tmp_path: Path) -> None:
    wide = replace(small.backbone, num_attention_heads=4, attention_head_dim=32)
    injector = options.Injector("channelwise", (1,), 0.25, 16)
    net = Backbone(wide, injector)
    state = {authors_name(key): value for key, value in net.state_dict().items()}
    path = tmp_path / "model.pt"
    torch.save({"generator_ema": {f"model.{k}": v for k, v in state.items()}}, path)
    with pytest.raises(ValueError, match=r"set injector=gated_channelwise .*injector\.groups=16"):
        load_network(replace(small, backbone=wide), str(path), None, "cpu")
    result = load_network(replace(small, backbone=wide, injector=injector), str(path), None, "cpu")
    assert result.injector is not None
    assert result.injector.token_norm.eps == 1e-6
    empty = network_without_weights(replace(small, backbone=wide, injector=injector), str(path), "cpu")
    assert empty.injector is not None
    assert empty.injector.token_norm.eps == 1e-6


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_without_weights_is_of_the_same_shapes_and_types(small: Network, device: str) -> None:
    empty, net = network_without_weights(small, "random", device), load_network(small, "random", None, "cpu", device)
    assert {t.device.type for t in empty.parameters()} == {"meta"}
    expected = [{n: (t.shape, t.dtype, t.requires_grad) for n, t in of.named_parameters()} for of in (net, empty)]
    assert expected[0] == expected[1]
    assert torch.bfloat16 in {t.dtype for t in empty.parameters()} or device == "cpu"
    assert not empty.training


def test_in_bf16_what_wan_keeps_in_fp32_stays_so(small: Network) -> None:
    net = load_network(small, "random", None, "cpu").lower(torch.bfloat16)
    kinds = {name: p.dtype for name, p in net.named_parameters()}
    assert kinds["dit.blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert kinds["injector.widen.weight"] == torch.bfloat16
    for name in (
        "dit.blocks.0.scale_shift_table",
        "dit.blocks.0.norm2.weight",
        "dit.condition_embedder.time_embedder.linear_1.weight",
        "stride_embedding.mlp.linear_1.weight",
        "injector.gate.mlp.0.weight",
    ):
        assert kinds[name] == torch.float32, name
    result = velocity(net, 300.0)
    assert result.dtype == torch.float32
    reference = velocity(load_network(small, "random", None, "cpu"), 300.0)
    assert (result - reference).abs().mean() < 0.05 * reference.abs().mean()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_kernel_to_train_with_is_tried_with_its_gradient_and_in_the_trainings_precision(
    small: Network, precision: Any
) -> None:
    check_kernel(replace(small, attention="flash"), "cpu", precision)
    message = rf"trainer\.attention=cudnn: not available on this machine in {precision} .* trainer\.attention=sdpa"
    with pytest.raises(ValueError, match=message):
        check_kernel(replace(small, attention="cudnn"), "cpu", precision)


def test_a_kernel_without_a_gradient_is_not_one_to_train_with(small: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*args: Any, **kwargs: Any) -> Any:
        return dispatch_attention_fn(*args, **kwargs).detach()

    monkeypatch.setattr("pw.nn.networks.dispatch_attention_fn", silent)
    check_kernel(replace(small, attention="flash"), "cpu")
    with pytest.raises(ValueError, match=r"trainer\.attention=flash: not available on this machine in fp32"):
        check_kernel(replace(small, attention="flash"), "cpu", "fp32")


def test_a_kernel_is_held_against_attention_in_fp32(small: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of random numbers rounded to bf16, whose relative error is at most 2^-9 each."""
    flash = replace(small, attention="flash")
    assert kernel_error(flash, "cpu") < 1e-5
    assert 2**-10 < kernel_error(flash, "cpu", "bf16") < 2**-8
    sdpa = F.scaled_dot_product_attention
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_SAGE_ATTN", True)  # as if it were installed
    for noise, is_right in ((0.02, True), (0.2, False)):

        def sage(q: Any, k: Any, v: Any, noise: float = noise, **_: Any) -> Any:
            output = sdpa(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
            return output * (1 + noise * torch.randn_like(output))

        monkeypatch.setattr(attention_dispatch, "sageattn", sage)
        if is_right:
            assert kernel_error(replace(small, attention="sage"), "cpu") == pytest.approx(noise, rel=0.1)
        else:
            message = r"attention=sage: wrong on this machine, its relative error is 0\.2 \(at most 0\.1, .*=sdpa"
            with pytest.raises(ValueError, match=message):
                check_kernel(replace(small, attention="sage"), "cpu")


def test_a_kernel_whose_gradient_alone_is_not_finite_is_wrong(small: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def sage(q: Any, k: Any, v: Any, **_: Any) -> Any:
        output = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
        return output + 0 * (k - k.detach()).sqrt()

    monkeypatch.setattr(attention_dispatch, "sageattn", sage)  # as if it were installed
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_SAGE_ATTN", True)
    assert kernel_error(replace(small, attention="sage"), "cpu") < 1e-5
    with pytest.raises(ValueError, match=r"wrong on this machine, its relative error is nan"):
        kernel_error(replace(small, attention="sage"), "cpu", "fp32")


@pytest.mark.parametrize("name", ["window", "topk", "anchor"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sparse_attention_is_held_against_its_mask_in_fp32(small: Network, name: str, precision: Any) -> None:
    network = replace(small, sparsity=build([f"attention={name}"]).attention)
    assert kernel_error(network, "cpu", precision) < (1e-5 if precision == "fp32" else 0.01)


def test_flash_attention_4_is_told_to_be_missing_and_leaves_torchs_own_flash(small: Network) -> None:
    with pytest.raises(ValueError, match=r"attention=flash4: not available on this machine .*flash_attn.*sdpa"):
        check_kernel(replace(small, attention="flash4"), "cpu")
    with pytest.raises(ValueError, match=r"trainer\.attention=flash4: not available on this machine"):
        load_network(replace(small, attention="flash4"), "random", None, "cpu")
    assert current_flash_attention_impl() is None
    assert kernel_error(replace(small, attention="flash"), "cpu") < 1e-5


def test_a_kernel_that_is_not_there_is_told_with_what_would_do(small: Network) -> None:
    with pytest.raises(
        ValueError, match=r"trainer\.attention=sage: not available on this machine .* trainer\.attention=sdpa"
    ):
        load_network(replace(small, attention="sage"), "random", None, "cpu")


@pytest.mark.slow
def test_blocks_are_compiled_for_every_size_they_meet(small: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its limit torch continues without compiling, and says so in a warning alone."""
    counter = CompileCounter()
    compiled = partialmethod(WanTransformer3DModel.compile_repeated_blocks, backend=counter)  # in ms, not in minutes
    monkeypatch.setattr(WanTransformer3DModel, "compile_repeated_blocks", compiled)
    torch.compiler.reset()
    one, text = torch.tensor([700.0]), torch.zeros(1, 8, 16)
    config: Any = torch._dynamo.config
    with config.patch(recompile_limit=1), torch.no_grad():  # as before afterwards, which `monkeypatch` would not see to
        net = load_network(replace(small, injector=None, compile=True), "random", None, "cpu")
        for sizes, frames in enumerate((1, 2, 3), start=1):
            net(torch.zeros(1, 4, frames, 4, 4), one, one, text, sigma_timestep=one)
            assert counter.frame_count == sizes
    torch.compiler.reset()


def test_a_fingerprint_changes_with_the_weights(pipeline: tuple[Path, Any], tmp_path: Path) -> None:
    copy = tmp_path / "transformer"
    shutil.copytree(pipeline[0] / "transformer", copy)
    before = fingerprint(copy)
    assert before == fingerprint(pipeline[0] / "transformer")
    weights = copy / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(bytes(data))
    assert fingerprint(copy) != before
