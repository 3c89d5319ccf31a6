"""Low-rank adapters of the transformer (LoRA): trained, taken out of trained weights, and those of others merged.

They are peft's, through diffusers' own support of it, so their files are what `WanPipeline.load_lora_weights` reads and
what others have made for Wan. A finished training and a generation have them merged into plain weights (D121).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pw.io.files import digest
from pw.nn import options
from pw.nn.backbone import Backbone, wan_transformer

ADAPTER = "default"  # peft's name of the adapters that are trained
PREFIX = "transformer."  # of the keys of a file

LoraFile = tuple[Path, float]  # a .safetensors of anybody, and its scale


class BatchDraws(Protocol):
    """What identifies a batch, see `pw.stages.stage.SeededDraws`."""

    @property
    def seed(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def share(self) -> Any: ...


class Masks:
    """The batch that is trained, and how many evaluations with gradient it had: what a mask is drawn from."""

    def __init__(self) -> None:
        self.draws: BatchDraws | None = None
        self.evaluation = 0

    def __deepcopy__(self, memo: Any) -> Masks:
        return Masks()  # of the EMA, which is evaluated without dropout


class SeededDropout(nn.Module):
    """Dropout whose mask is a pure function of seed, batch, evaluation and layer, so that a resumed training, another
    number of processes and a recomputed block have the same.

    It acts in evaluations with gradient alone: targets and held-out losses have none. The mask is drawn for the whole
    batch, on the device of x [B, L, in].
    """

    def __init__(self, rate: float, layer: str, net: Backbone, masks: Masks) -> None:
        super().__init__()
        self.rate, self.layer, self.masks = rate, layer, masks
        self._net = [net]  # in a list: it is no part of this module

    def __deepcopy__(self, memo: Any) -> nn.Module:
        return nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return x
        draws = self.masks.draws
        assert draws is not None, "`seed_dropout` was not called"
        # of the forward that is computed or, in backward, recomputed (`Backbone._checkpoint_block`)
        words = [draws.seed, draws.index, self._net[0]._context["evaluation"], self.layer]
        generator = torch.Generator(x.device).manual_seed(int(digest(words), 16))
        shape = (draws.share.total_clips(len(x)), *x.shape[1:])
        kept = draws.share.of_batch(torch.rand(shape, generator=generator, device=x.device)) >= self.rate
        return x * kept / (1 - self.rate)


def add_lora(net: Backbone, lora: options.Lora | None, seed: int) -> None:
    """Give the transformer low-rank adapters, unless it has them; nothing for None. B starts at zero: the network is as
    before, bit for bit. A is drawn from `seed` alone."""
    if lora is None or getattr(net.dit, "peft_config", None):
        return
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=[*lora.targets])  # ty: ignore[invalid-argument-type]
    with torch.random.fork_rng(devices=[]), net.dit.device:
        torch.random.default_generator.manual_seed(seed)
        net.dit.add_adapter(config, ADAPTER)
    masks = Masks()
    if lora.dropout:
        net.dit.register_forward_pre_hook(lambda *_: _count_evaluation(net, masks))
    for name, layer in net.dit.named_modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False  # autocast does it, without keeping an fp32 copy for backward
            if lora.dropout:
                layer.lora_dropout[ADAPTER] = SeededDropout(lora.dropout, name, net, masks)


def _count_evaluation(net: Backbone, masks: Masks) -> None:
    if torch.is_grad_enabled():  # else it may be the EMA, between a forward of `net` and its backward
        net._context["evaluation"] = masks.evaluation
        masks.evaluation += 1


def train_lora(net: Backbone, lora: options.Lora | None, seed: int, precision: str) -> None:
    """Let the low-rank adapters be all of the transformer that is trained; nothing for None.

    precision  with bf16 the frozen layers of the blocks are stored in it, which autocast would cast them to: the same
               results bit for bit, in half the memory
    """
    if lora is None:
        return
    add_lora(net, lora, seed)
    for name, parameter in net.dit.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    if precision == "bf16":
        for block in net.dit.blocks:
            for layer in block.modules():
                if isinstance(layer, nn.Linear):
                    for parameter in layer.parameters():
                        if not parameter.requires_grad:
                            parameter.data = parameter.data.bfloat16()


def seed_dropout(net: Backbone, draws: BatchDraws) -> None:
    """Say which batch is evaluated next, for its masks; nothing without dropout."""
    for layer in net.dit.modules() if getattr(net.dit, "peft_config", None) else ():
        if isinstance(layer, SeededDropout):
            layer.masks.draws, layer.masks.evaluation = draws, 0
            return


# ---- out of trained weights


def merged(state: Mapping[str, Tensor], lora: options.Lora) -> dict[str, Tensor]:
    """The state of a trained network with the adapters in its weights, under the names of one without, in fp32."""
    result = {}
    for key, value in state.items():
        if ".lora_" in key:
            continue
        module, _, leaf = key.rpartition(".")
        weight = value.float()
        if module.endswith(".base_layer") and leaf == "weight":
            down, up = (state[f"{module.removesuffix('.base_layer')}.lora_{x}.{ADAPTER}.weight"] for x in "AB")
            weight = weight + lora.scaling * (up @ down)
        result[key.replace(".base_layer.", ".")] = weight
    return result


def lora_file_state(state: Mapping[str, Tensor], lora: options.Lora) -> dict[str, Tensor]:
    """The adapters of a trained network under the names of diffusers' LoRA files.

    Their scale alpha / rank is in B, so that a reader which knows none takes them at 1, as they were trained.
    """
    return {
        PREFIX + key.removeprefix("dit.").replace(f".{ADAPTER}.", "."): value
        * (lora.scaling if ".lora_B." in key else 1)
        for key, value in state.items()
        if ".lora_" in key
    }


def write_lora_file(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write pytorch_lora_weights.safetensors, which `WanPipeline.load_lora_weights(folder)` reads."""
    layers: Any = {key.removeprefix(PREFIX): value for key, value in state.items()}
    WanLoraLoaderMixin.save_lora_weights(folder, layers)


# ---- those of others


def merge_loras(net: Backbone, loras: Sequence[LoraFile]) -> None:
    """Merge LoRAs of anybody into the transformer, each W + scale alpha / rank B A, rounded to the dtype of W.

    They cost nothing afterwards, and all that changes how weights are kept or computed works as without them.
    """
    for path, scale in loras:
        state, metadata = _read(path)
        net.dit.load_lora_adapter(state, adapter_name=ADAPTER, metadata=metadata)
        net.dit.fuse_lora(lora_scale=scale, adapter_names=[ADAPTER])
        net.dit.unload_lora()


def check_loras(choice: options.Wan, loras: Sequence[LoraFile]) -> None:
    """Raises ValueError for a file that is no LoRA of this transformer, with the tensor and both shapes.

    Reads the header alone.
    """
    if not loras:
        return
    with torch.device("meta"):
        weights = {key: tuple(value.shape) for key, value in wan_transformer(choice).state_dict().items()}
    for path, _ in loras:
        shapes = {key: tuple(value.shape) for key, value in _read(path, shapes_only=True)[0].items()}
        for key, shape in shapes.items():
            module, _, leaf = key.removeprefix(PREFIX).rpartition(".lora_")
            layer = weights.get(f"{module}.weight")
            if layer is None or not key.startswith(PREFIX) or leaf not in ("A.weight", "B.weight", "B.bias"):
                raise ValueError(f"{path}: {key} {shape} has no place in this transformer; expected a LoRA of it")
            partner = shapes.get(f"{PREFIX}{module}.lora_{'B' if leaf == 'A.weight' else 'A'}.weight")
            if partner is None:
                raise ValueError(f"{path}: {key} has no partner; the file is not complete")
            rank = partner[1] if leaf == "A.weight" else partner[0]
            if shape != {"A.weight": (rank, *layer[1:]), "B.weight": (layer[0], rank), "B.bias": layer[:1]}[leaf]:
                raise ValueError(
                    f"{path}: {key} is {shape}, for a layer {layer} of this transformer; it is a LoRA of another model"
                )


def _read(path: Path, *, shapes_only: bool = False) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """(tensors, metadata of peft) of a LoRA file, under diffusers' names: its converter knows the original Wan's and
    musubi's. Raises ValueError if it does not know them."""
    try:
        with safe_open(path, "pt") as file:
            metadata = (file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
            state = {}
            for key in file.keys():  # noqa: SIM118
                shape = file.get_slice(key).get_shape()
                is_number = all(length == 1 for length in shape)  # an alpha, which the converter reads
                on_meta = shapes_only and not is_number
                state[key] = torch.empty(shape, device="meta") if on_meta else file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a complete .safetensors file ({error})") from error
    listed = ", ".join(sorted(state)[:3])
    try:
        converted: Any = WanLoraLoaderMixin.lora_state_dict(state)
    except Exception as error:  # the converter assumes what it expects
        raise ValueError(f"{path}: not a LoRA of Wan's transformer ({listed}, …)") from error
    if not converted:
        raise ValueError(f"{path}: has no tensors")
    return converted, None if metadata is None else json.loads(metadata)
