"""pw.nn.convert: every known layout becomes ours bit for bit, and what has no place is named."""

from __future__ import annotations

import copy
import json
import os
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import save_file
from torch import Tensor

from pw.nn import options
from pw.nn.backbone import Backbone
from pw.nn.convert import authors_injector, layout, place, read, to_pw

WAN = options.Wan(
    patch_size=(1, 2, 2),
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
FULL = options.Wan((1, 2, 2), 24, 128, 48, 14336, 30, 4096, 512, 256, 1024)  # Wan2.2-TI2V-5B
CHANNELWISE = options.Injector("channelwise", (1,), 0.5, 16)

# diffusers' names -> original Wan's, in the order that the original's forward meets them
ORIGINAL = (
    ("condition_embedder.text_embedder.linear_1.", "text_embedding.0."),
    ("condition_embedder.text_embedder.linear_2.", "text_embedding.2."),
    ("condition_embedder.time_embedder.linear_1.", "time_embedding.0."),
    ("condition_embedder.time_embedder.linear_2.", "time_embedding.2."),
    ("condition_embedder.time_proj.", "time_projection.1."),
    (".attn1.", ".self_attn."),
    (".attn2.", ".cross_attn."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".to_out.0.", ".o."),
    (".norm2.", ".norm3."),
    (".ffn.net.0.proj.", ".ffn.0."),
    (".ffn.net.2.", ".ffn.2."),
    ("proj_out.", "head.head."),
)
AUTHORS = (
    ("stride_embedding.mlp.linear_1.", "dt_embedding.0."),
    ("stride_embedding.mlp.linear_2.", "dt_embedding.2."),
    ("injector.narrow.", "spatial_adapter.backbone.0."),
    ("injector.norm.", "spatial_adapter.backbone.1."),
    ("injector.widen.", "spatial_adapter.backbone.3."),
    ("injector.token_norm.", "spatial_adapter.feature_norm."),
    ("injector.gate.timestep_mlp.", "spatial_adapter.adapter_time_proj."),
    ("injector.gate.stride_mlp.", "spatial_adapter.adapter_dt_proj."),
    ("injector.out.", "spatial_adapter.zero_layers."),
)


def original_name(key: str) -> str:
    """`dit.blocks.0.attn1.to_q.weight` -> `blocks.0.self_attn.q.weight`."""
    key = key.removeprefix("dit.")
    if key == "scale_shift_table":
        return "head.modulation"
    key = key.replace("scale_shift_table", "modulation")
    for renamed, original in ORIGINAL:
        key = key.replace(renamed, original)
    return key


def authors_name(key: str) -> str:
    for renamed, original in AUTHORS:
        if key.startswith(renamed):
            return original + key.removeprefix(renamed)
    return original_name(key)


def network(injector: options.Injector | None = CHANNELWISE, seed: int = 0) -> Backbone:
    """Random everywhere, so that no key can be mistaken for another."""
    torch.manual_seed(seed)
    net = Backbone(WAN, injector)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return net.eval()


def output(net: Backbone) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    state = torch.randn(2, 12, 2, 4, 6, generator=generator)
    anchor = torch.randn(2, 12, 2, 2, 3, generator=generator) if net.injector is not None else None
    text = torch.randn(2, 2, 8, generator=generator)
    timestep, stride = torch.tensor([800.0, 600.0]), torch.tensor([400.0, 30.0])
    with torch.no_grad():
        return net(state, timestep, stride, text, anchor, sigma_timestep=timestep)


def stock(net: Backbone) -> dict[str, Tensor]:
    return {key: value for key, value in net.state_dict().items() if key.startswith("dit.")}


def wrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As FSDP, activation checkpointing and torch.compile leave it in the authors' files."""

    def name(key: str) -> str:
        key = key.replace("blocks.1.", "blocks.1._fsdp_wrapped_module._checkpoint_wrapped_module.")
        return f"model._fsdp_wrapped_module._orig_mod.{key}"

    return {name(key): value for key, value in state.items()}


class TestOriginalWan:
    def test_weights_give_the_same_output_bit_for_bit(self) -> None:
        source, target = network(None), network(None, seed=1)
        original = {original_name(key): value for key, value in stock(source).items()}
        assert layout(original) == "wan"
        not_loaded = place(target, to_pw(original), adapters_optional=True)
        assert not_loaded == sorted(f"stride_embedding.{key}" for key in target.stride_embedding.state_dict())
        target.stride_embedding.load_state_dict(source.stride_embedding.state_dict())
        assert torch.equal(output(source), output(target))

    def test_names_become_what_diffusers_own_converter_makes_of_them(self) -> None:
        original = {original_name(key): value for key, value in stock(network(None)).items()}
        renamed = to_pw(original)
        assert renamed.keys() == {f"dit.{key}" for key in convert_wan_transformer_to_diffusers(dict(original))}

    def test_names_at_full_size_cover_the_stock_transformer_exactly(self) -> None:
        with torch.device("meta"):
            net = Backbone(FULL, None)
        assert sum(p.numel() for p in net.dit.parameters()) == 4_999_787_712
        original = {original_name(key): value for key, value in stock(net).items()}
        assert len(original) == len(stock(net))
        renamed = to_pw(original)
        assert {key: value.shape for key, value in renamed.items()} == {k: v.shape for k, v in stock(net).items()}
        assert not any(key.startswith("dit.") for key in original)


class TestTheAuthorsCheckpoint:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        states = {"generator": network(), "generator_ema": network(seed=1)}
        named = {
            name: wrapped({authors_name(key): value for key, value in net.state_dict().items()})
            for name, net in states.items()
        }
        torch.save(named, tmp_path / "model.pt")
        return tmp_path / "model.pt"

    @pytest.mark.parametrize(("weights", "seed"), [("ema", 1), ("online", 0)])
    def test_gives_the_same_output_bit_for_bit(self, file: Path, weights: Any, seed: int) -> None:
        state, target = read(file, weights), network(seed=2)
        assert layout(state) == "authors"
        assert place(target, to_pw(state)) == []
        assert torch.equal(output(network(seed=seed)), output(target))

    def test_tells_which_injector_it_needs(self, file: Path) -> None:
        assert authors_injector(to_pw(read(file))) == CHANNELWISE

    def test_without_an_ema_is_not_taken_for_one(self, tmp_path: Path) -> None:
        torch.save({"generator": {"a": torch.zeros(1)}}, tmp_path / "model.pt")
        with pytest.raises(ValueError, match="no generator_ema, only generator"):
            read(tmp_path / "model.pt")

    def test_of_an_earlier_generation_is_refused_saying_why(self, file: Path) -> None:
        state = to_pw(read(file))
        state["injector.narrow.weight"] = torch.zeros(16, 12, 1, 2, 2)
        state["injector.gate.timestep_mlp.2.weight"] = torch.zeros(64, 64)
        with pytest.raises(ValueError, match=r"patchifying convolution \(1, 2, 2\).*64 channels \(gain and shift\)"):
            authors_injector(state)
        with pytest.raises(ValueError, match=r"2 of another shape .*narrow.weight \(16, 12, 1, 2, 2\) for"):
            place(network(), state)


class TestPlace:
    def test_lists_what_has_no_place_what_is_missing_and_what_differs(self) -> None:
        net = network()
        before = copy.deepcopy(net.state_dict())
        state = dict(net.state_dict())
        state["proj_in.weight"] = torch.zeros(1)
        state["dit.proj_out.bias"] = torch.zeros(7)
        for key in [key for key in state if key.startswith("dit.blocks.2.")]:
            del state[key]
        with pytest.raises(ValueError, match=r"1 without a place \(proj_in\.weight\)") as caught:
            place(net, state)
        assert "27 not found (dit.blocks.2.attn1.norm_k.weight, " in str(caught.value)
        assert str(caught.value).count("dit.blocks.2.") == 10
        assert "1 of another shape (dit.proj_out.bias (7,) for (48,))" in str(caught.value)
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())

    def test_keeps_the_silent_start_of_adapters_a_base_checkpoint_lacks(self) -> None:
        net = Backbone(WAN, CHANNELWISE).eval()
        not_loaded = place(net, stock(network()), adapters_optional=True)
        assert {key.split(".")[0] for key in not_loaded} == {"injector", "stride_embedding"}
        base = Backbone(WAN, None).eval()
        place(base, stock(network()), adapters_optional=True)
        assert torch.equal(output(net), output_with(base))

    def test_wants_adapters_whole_or_not_at_all(self) -> None:
        state = {**stock(network()), "injector.norm.weight": torch.zeros(16)}
        with pytest.raises(ValueError, match=r"17 not found \(injector\."):
            place(network(), state, adapters_optional=True)

    def test_wants_the_adapters_unless_told_otherwise(self) -> None:
        with pytest.raises(ValueError, match="not found"):
            place(network(), stock(network()))

    def test_fills_a_network_on_the_meta_device(self) -> None:
        with torch.device("meta"):
            net = Backbone(WAN, CHANNELWISE)
        source = network()
        place(net, source.state_dict(), assign=True)
        assert all(torch.equal(value, source.state_dict()[key]) for key, value in net.state_dict().items())


def output_with(net: Backbone) -> Tensor:
    """`output` of a network without injector on the inputs of one with."""
    generator = torch.Generator().manual_seed(1)
    state = torch.randn(2, 12, 2, 4, 6, generator=generator)
    torch.randn(2, 12, 2, 2, 3, generator=generator)
    text = torch.randn(2, 2, 8, generator=generator)
    timestep = torch.tensor([800.0, 600.0])
    with torch.no_grad():
        return net(state, timestep, torch.tensor([400.0, 30.0]), text, sigma_timestep=timestep)


class TestLayout:
    def test_of_diffusers_and_of_ours_is_known(self) -> None:
        net = network()
        assert layout(net.dit.state_dict()) == "diffusers"
        assert layout(net.state_dict()) == "pw"
        assert to_pw(net.state_dict()).keys() == net.state_dict().keys()
        assert to_pw(net.dit.state_dict()).keys() == stock(net).keys()

    def test_of_something_else_is_refused_with_some_of_its_keys(self) -> None:
        with pytest.raises(ValueError, match=r"not the weights of a Wan.*encoder\.conv_in\.weight"):
            layout({"encoder.conv_in.weight": torch.zeros(1)})

    def test_with_two_keys_that_become_one_is_refused(self) -> None:
        state = {"model.time_embedding.0.bias": torch.zeros(1), "time_embedding.0.bias": torch.zeros(1)}
        with pytest.raises(ValueError, match="would be a second dit"):
            to_pw(state)

    def test_keeps_the_name_of_a_key_no_table_knows(self) -> None:
        state = {"time_embedding.0.bias": torch.zeros(1), "model.img_emb.proj.0.bias": torch.zeros(1)}
        assert "img_emb.proj.0.bias" in to_pw(state)


class Malicious:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class TestRead:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_never_runs_code_of_a_pickle(self, tmp_path: Path, zipped: bool) -> None:
        file = tmp_path / "weights.pth"
        torch.save({"a": Malicious(tmp_path / "ran")}, file, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match="would have to run code"):
            read(file)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("zipped", [True, False])
    def test_takes_pickles_of_tensors_old_and_new(self, tmp_path: Path, zipped: bool) -> None:
        torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
        assert torch.equal(read(tmp_path / "a.ckpt")["a"], torch.ones(2))

    def test_takes_shards_and_misses_one(self, tmp_path: Path) -> None:
        state = {f"blocks.{index}.weight": torch.full((3,), float(index)) for index in range(4)}
        names = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
        for name, keys in zip(names, (list(state)[:2], list(state)[2:]), strict=True):
            save_file({key: state[key] for key in keys}, tmp_path / name)
        weight_map = {key: names[index // 2] for index, key in enumerate(state)}
        index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
        assert all(torch.equal(value, state[key]) for key, value in read(tmp_path).items())
        index.write_text(json.dumps({"weight_map": {**weight_map, "head.bias": names[0]}}))
        with pytest.raises(ValueError, match=r"lack 1 keys of their index: head\.bias"):
            read(tmp_path)
        (tmp_path / names[1]).unlink()
        with pytest.raises(ValueError, match=f"1 of 2 shards are missing: {names[1]}"):
            read(tmp_path)

    @pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
    def test_says_when_a_file_is_cut_off(self, tmp_path: Path, name: str) -> None:
        state = {"a": torch.ones(5000)}
        save_file(state, tmp_path / name) if name.endswith("tensors") else torch.save(state, tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=rf"{name}: (not a complete|truncated)"):
            read(tmp_path / name)

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    def test_says_so_of_random_bytes(self, tmp_path: Path) -> None:
        """The unpickler raises IndexError, struct.error, AssertionError and others."""
        path, random, stream = tmp_path / "a.pth", Random(0), BytesIO()
        torch.save({"a": torch.ones(3)}, stream, _use_new_zipfile_serialization=False)
        for number in range(120):
            content = bytearray(stream.getvalue())
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
            starts = (
                bytes(content),
                b"\x80\x02" + random.randbytes(60),
                bytes(random.choices(b"()[]tuRcX\x80\x02", k=30)),
            )
            path.write_bytes(starts[number % 3])
            with suppress(ValueError):  # a bit of a value may flip unseen
                assert read(path).keys() <= {"a"} or number % 3 == 0

    def test_refuses_what_it_does_not_read(self, tmp_path: Path) -> None:
        (tmp_path / "a.npz").write_bytes(b"")
        torch.save([torch.ones(1)], tmp_path / "list.pt")
        torch.save({"a": torch.ones(1), "step": 3}, tmp_path / "mixed.pt")
        for name, words in {
            "a.npz": ".npz is not read",
            "none.pt": "no such file",
            "list.pt": "holds a list",
            "mixed.pt": "1 entries are no tensors: step",
            "": "expected one .safetensors",
        }.items():
            with pytest.raises(ValueError, match=words):
                read(tmp_path / name)
