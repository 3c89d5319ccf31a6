"""pw.nn.lora: low-rank adapters against stock diffusers, their dropout, and the files of others."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file
from small_loras import WAN, write_lora
from torch import Tensor, nn

from pw.nn import options
from pw.nn.backbone import Backbone, wan_transformer
from pw.nn.lora import add_lora, check_loras, lora_file_state, merge_loras, merged, seed_dropout, train_lora
from pw.parallel.team import Share

LORA = options.Lora(4, 6.0, options.Lora.TARGETS, 0.0)
INJECTOR = options.Injector("scalar", (1,), 0.5, 4)
WHOLE = Share(0, 1, 1, 2)  # of a batch of two


@dataclass(frozen=True)
class Draws:
    seed: int = 0
    index: int = 0
    share: Share = WHOLE


def network(lora: options.Lora | None = LORA, seed: int = 0) -> Backbone:
    """A network whose adapters, if it has them, have a say."""
    torch.manual_seed(3)
    net = Backbone(WAN, INJECTOR)
    train_lora(net, lora, seed, "fp32")
    generator = torch.Generator().manual_seed(7)
    for name, parameter in net.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return net


def arguments(batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    t = torch.tensor([300.0, 900.0])[:batch]
    state, text, anchor = draw(batch, 4, 2, 8, 8), draw(batch, 8, 16), draw(batch, 4, 2, 4, 4)
    return {"state": state, "timestep": t, "stride": t / 2, "text": text, "anchor": anchor, "sigma_timestep": t}


def ask(dit: WanTransformer3DModel) -> Tensor:
    values = arguments()
    with torch.no_grad():
        return dit(values["state"], values["timestep"], values["text"], return_dict=False)[0]


def gradients(net: Backbone, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    net.zero_grad()
    net(**batch).square().sum().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


class TestAdapters:
    def test_can_be_at_every_linear_layer_of_a_block_and_no_other(self) -> None:
        names = [name for name, layer in wan_transformer(WAN).blocks[0].named_modules() if isinstance(layer, nn.Linear)]
        assert {name.removeprefix("attn1.").removeprefix("attn2.") for name in names} == {*options.Lora.TARGETS}
        net = network(replace(LORA, targets=("to_v", "ffn.net.2")))
        adapted = {name.partition(".lora_A")[0] for name, _ in net.dit.blocks[2].named_parameters() if "lora_A" in name}
        assert adapted == {"attn1.to_v", "attn2.to_v", "ffn.net.2"}

    def test_change_nothing_before_they_are_trained(self) -> None:
        torch.manual_seed(3)
        plain = Backbone(WAN, INJECTOR)
        adapted = copy.deepcopy(plain)
        add_lora(adapted, LORA, 0)
        with torch.no_grad():
            assert torch.equal(adapted(**arguments()), plain(**arguments()))

    def test_are_drawn_from_the_seed_alone(self) -> None:
        states = []
        for seed, noise in ((0, 1), (0, 2), (1, 1)):
            net = Backbone(WAN, None)
            torch.manual_seed(noise)
            add_lora(net, LORA, seed)
            states.append(next(p for name, p in net.named_parameters() if "lora_A" in name))
        assert torch.equal(states[0], states[1])
        assert not torch.equal(states[0], states[2])

    def test_are_all_of_the_transformer_that_is_trained(self) -> None:
        net = network()
        trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
        assert {name for name in trained if name.startswith("dit.")} == {
            n for n in dict(net.named_parameters()) if ".lora_" in n
        }
        assert any(name.startswith("injector.") for name in trained)

    def test_have_the_same_gradients_beside_layers_stored_in_bf16(self) -> None:
        wide, narrow = network(), network()
        train_lora(narrow, LORA, 0, "bf16")
        assert narrow.dit.blocks[0].attn1.to_q.base_layer.weight.dtype == torch.bfloat16
        assert narrow.dit.blocks[0].scale_shift_table.dtype == torch.float32
        results = []
        for net in (wide, narrow):
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                results.append(gradients(net, arguments()))
        assert results[0].keys() == results[1].keys()
        assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


class TestWhatIsWritten:
    def test_merged_is_the_network_with_its_adapters(self) -> None:
        net = network()
        plain = Backbone(WAN, INJECTOR)
        plain.load_state_dict(merged(net.state_dict(), LORA), strict=True)
        with torch.no_grad():
            expected = net(**arguments())
            assert torch.allclose(plain(**arguments()), expected, atol=1e-5)
            assert not torch.allclose(network(None)(**arguments()), expected, atol=1e-2)

    def test_is_read_by_the_stock_pipeline(self, pipeline: tuple[Path, Any], tmp_path: Path) -> None:
        stock = WanPipeline.from_pretrained(pipeline[0])
        net = Backbone(WAN, None, copy.deepcopy(stock.transformer))
        train_lora(net, LORA, 0, "fp32")
        for name, parameter in net.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.3)
        save_file(lora_file_state(net.state_dict(), LORA), tmp_path / "lora.safetensors")
        before = ask(stock.transformer)
        stock.load_lora_weights(tmp_path / "lora.safetensors")
        net.release()
        after = ask(stock.transformer)
        assert torch.allclose(after, ask(net.dit), atol=1e-5)
        assert not torch.allclose(after, before, atol=1e-2)


class TestDropout:
    LORA = replace(LORA, dropout=0.4)

    def ready(self, draws: Draws, *, checkpointed: bool = False) -> Backbone:
        net = network(self.LORA)
        net.train()
        if checkpointed:
            net.checkpoint_activations()
        seed_dropout(net, draws)
        return net

    def test_depends_on_seed_and_batch_alone(self) -> None:
        one = gradients(self.ready(Draws(index=4)), arguments())
        torch.manual_seed(99)
        for draws, is_same in ((Draws(index=4), True), (Draws(index=5), False), (Draws(1, 4), False)):
            other = gradients(self.ready(draws), arguments())
            assert all(torch.equal(one[name], other[name]) for name in one) == is_same

    def test_differs_between_evaluations_of_a_batch_and_begins_again_with_the_next(self) -> None:
        net = self.ready(Draws())
        first, second = (net(**arguments()).detach() for _ in range(2))
        seed_dropout(net, Draws())
        assert torch.equal(net(**arguments()), first)
        assert not torch.equal(second, first)

    def test_is_the_same_in_a_block_that_is_computed_again(self) -> None:
        stored, checkpointed = self.ready(Draws()), self.ready(Draws(), checkpointed=True)
        results = []
        for net in (stored, checkpointed):
            loss = net(**arguments()).square().sum()
            with torch.no_grad():
                net(**arguments())  # a target, before backward
            loss.backward()
            results.append([p.grad for p in net.parameters() if p.grad is not None])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    def test_of_a_part_of_a_batch_is_that_of_the_whole(self) -> None:
        whole = self.ready(Draws())(**arguments()).detach()
        for rank in (0, 1):
            net = self.ready(Draws(share=Share(rank, 2, 1, 2)))
            part = {name: value[[rank]] for name, value in arguments().items()}
            assert torch.allclose(net(**part), whole[[rank]], atol=1e-5)

    def test_is_of_evaluations_with_gradient_alone(self) -> None:
        net = self.ready(Draws())
        with torch.no_grad():
            assert torch.equal(net(**arguments()), network()(**arguments()))

    def test_keeps_the_mean_of_what_the_adapters_see(self) -> None:
        net = self.ready(Draws())
        net(**arguments())  # an evaluation, whose masks are drawn from now on
        dropout = net.dit.blocks[0].attn1.to_q.lora_dropout["default"]
        result = dropout(torch.ones(2, 500, 100))
        assert {round(float(value), 4) for value in result.unique()} == {0.0, 1.6667}  # 1 / (1 - 0.4)
        assert abs(float(result.mean()) - 1) < 0.02  # 6 standard deviations: sqrt(0.4 / 0.6 / 1e5) = 0.0026


# ---- files of others


class TestALoraOfOthers:
    @pytest.mark.parametrize("kind", ["diffusers", "original", "kohya"])
    def test_is_merged_to_what_the_stock_pipeline_computes_with_it(
        self, pipeline: tuple[Path, Any], tmp_path: Path, kind: str
    ) -> None:
        file = write_lora(tmp_path / "a.safetensors", kind)
        stock = WanPipeline.from_pretrained(pipeline[0])
        net = Backbone(WAN, None, copy.deepcopy(stock.transformer))
        names = net.state_dict().keys()
        before = ask(stock.transformer)
        check_loras(WAN, [(file, 1.0)])
        merge_loras(net, [(file, 1.0)])
        assert net.state_dict().keys() == names
        net.release()
        stock.load_lora_weights(file)
        assert torch.allclose(ask(net.dit), ask(stock.transformer), atol=1e-5)
        assert not torch.allclose(ask(net.dit), before, atol=1e-2)

    def test_with_an_alpha_is_scaled_by_it_over_the_rank(self, tmp_path: Path) -> None:
        """W + alpha / rank B A = W + 1.5 / 2 B A."""
        net, other = network(None), network(None)
        merge_loras(net, [(write_lora(tmp_path / "a.safetensors", "kohya"), 1.0)])
        merge_loras(other, [(write_lora(tmp_path / "b.safetensors", "original"), 0.75)])
        for name, value in net.dit.state_dict().items():
            assert torch.allclose(value, other.dit.state_dict()[name], atol=1e-6), name

    def test_is_added_to_others_each_at_its_scale(self, pipeline: tuple[Path, Any], tmp_path: Path) -> None:
        files = [
            (write_lora(tmp_path / "a.safetensors", "diffusers", 1), 0.8),
            (write_lora(tmp_path / "b.safetensors", "kohya", 2, rank=3), -0.5),
        ]
        stock = WanPipeline.from_pretrained(pipeline[0])
        net = Backbone(WAN, None, copy.deepcopy(stock.transformer))
        merge_loras(net, files)
        net.release()
        for (file, _), name in zip(files, "ab", strict=True):
            stock.load_lora_weights(file, adapter_name=name)
        stock.set_adapters(["a", "b"], [scale for _, scale in files])
        assert torch.allclose(ask(net.dit), ask(stock.transformer), atol=1e-5)

    def test_in_bf16_is_rounded_once(self, tmp_path: Path) -> None:
        file = write_lora(tmp_path / "a.safetensors", "diffusers")
        exact, rounded = network(None), network(None)
        rounded.dit.to(torch.bfloat16)
        start = rounded.dit.blocks[0].attn1.to_q.weight.float().clone()
        exact.dit.blocks[0].attn1.to_q.weight.data.copy_(start)
        merge_loras(exact, [(file, 1.0)])
        merge_loras(rounded, [(file, 1.0)])
        expected, result = (net.dit.blocks[0].attn1.to_q.weight for net in (exact, rounded))
        assert result.dtype == torch.bfloat16
        assert torch.allclose(result.float(), expected, rtol=2**-7, atol=2**-9)

    @pytest.mark.parametrize("kind", ["diffusers", "original", "kohya"])
    def test_of_a_wider_model_is_refused_with_tensor_and_shapes(self, tmp_path: Path, kind: str) -> None:
        wider = replace(WAN, num_attention_heads=4)
        file = write_lora(tmp_path / "wide.safetensors", kind, choice=wider)
        message = (
            r"wide.safetensors: transformer.blocks.0.attn1.to_\w.lora_A.weight is \(2, 64\), for a layer \(32, 32\)"
        )
        with pytest.raises(ValueError, match=message):
            check_loras(WAN, [(file, 1.0)])

    def test_of_a_deeper_model_is_refused(self, tmp_path: Path) -> None:
        file = write_lora(tmp_path / "deep.safetensors", "original", choice=replace(WAN, num_layers=4))
        with pytest.raises(ValueError, match=r"blocks\.3\.attn1\.to_q\.lora_A\.weight \(2, 32\) has no place"):
            check_loras(WAN, [(file, 1.0)])

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            (("transformer.blocks.0.attn1.to_q.lora_A.weight",), "has no partner"),
            (("transformer.blocks.0.attn3.lora_A.weight", "transformer.blocks.0.attn3.lora_B.weight"), "has no place"),
            (("unet.down.lora_A.weight", "unet.down.lora_B.weight"), "has no place"),
            (("diffusion_model.blocks.0.mystery.lora_A.weight",), "not a LoRA of Wan's transformer .*mystery"),
            (("diffusion_model.patch_embedding.weight",), "not a LoRA of Wan's transformer"),
        ],
    )
    def test_with_other_tensors_is_refused_by_name(self, tmp_path: Path, keys: tuple[str, ...], message: str) -> None:
        save_file({key: torch.zeros(32, 32) for key in keys}, tmp_path / "odd.safetensors")
        with pytest.raises(ValueError, match=f"odd.safetensors: .*{message}"):
            check_loras(WAN, [(tmp_path / "odd.safetensors", 1.0)])

    def test_that_is_cut_off_is_refused(self, tmp_path: Path) -> None:
        file = write_lora(tmp_path / "cut.safetensors", "diffusers")
        file.write_bytes(file.read_bytes()[:5000])
        with pytest.raises(ValueError, match=r"cut.safetensors: not a complete .safetensors file"):
            check_loras(WAN, [(file, 1.0)])
