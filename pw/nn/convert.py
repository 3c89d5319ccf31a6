"""Checkpoints of any layout under our names: diffusers, the original Wan, the authors' and our exports.

    net_state = to_pw(read(path))     # any layout -> `dit.*` (diffusers' names), `injector.*`, `stride_embedding.*`
    not_loaded = place(net, net_state)  # strict: a ValueError lists the keys that do not match

Nothing that is read here can run code.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pw.io.files import parse_json
from pw.nn import options

Layout = Literal["diffusers", "wan", "authors", "pw"]
ADAPTERS = ("injector.", "stride_embedding.")  # our modules; the rest of a network is stock
PICKLES = (".pt", ".pth", ".ckpt")
LISTED = 10

# Parts of a key that FSDP, checkpointing, torch.compile and wrapper classes add.
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_OWNERS = ("model.", "module.")

# Original Wan -> diffusers. diffusers numbers the norms of a block in the order they are called, Wan does not.
_WAN = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_BLOCK = {
    **{f"self_attn.{wan}": f"attn1.{diffusers}" for wan, diffusers in _ATTENTION.items()},
    **{f"cross_attn.{wan}": f"attn2.{diffusers}" for wan, diffusers in _ATTENTION.items()},
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}
# The authors' adapters -> ours, for injector=gated_channelwise. `zero_layers.<block>` is in `_rename`.
_AUTHORS = {
    "dt_embedding.0": "stride_embedding.mlp.linear_1",
    "dt_embedding.2": "stride_embedding.mlp.linear_2",
    "spatial_adapter.backbone.0": "injector.narrow",
    "spatial_adapter.backbone.1": "injector.norm",
    "spatial_adapter.backbone.3": "injector.widen",
    "spatial_adapter.feature_norm": "injector.token_norm",
    "spatial_adapter.adapter_time_proj.0": "injector.gate.timestep_mlp.0",
    "spatial_adapter.adapter_time_proj.2": "injector.gate.timestep_mlp.2",
    "spatial_adapter.adapter_dt_proj.0": "injector.gate.stride_mlp.0",
    "spatial_adapter.adapter_dt_proj.2": "injector.gate.stride_mlp.2",
}
AUTHORS_GROUPS = 16  # of their GroupNorm, which a state dict does not show


def read(
    path: str | Path, weights: Literal["ema", "online"] = "ema", *, shapes_only: bool = False
) -> dict[str, Tensor]:
    """The state dict at a path, with its own names, on the CPU, memory-mapped where the format allows it.

    path         a `.safetensors` file, a folder of them (one file, or shards with their index; a snapshot with
                 `transformer/`, one of our exports, one of our trainings), or a `.pt`, `.pth` or `.ckpt` of tensors
    shapes_only  tensors on the meta device, from the headers of .safetensors alone: to check early whether they fit

    Raises ValueError for anything else: a truncated file, a shard that is missing, a pickle that needs code.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _read_folder(path, weights, shapes_only)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, shapes_only)
    if path.suffix in PICKLES:
        state = _select_weights(_read_pickle(path), weights, path)
        return {key: value.to("meta") for key, value in state.items()} if shapes_only else state
    raise ValueError(
        f"{path}: {path.suffix or 'a file without suffix'} is not read; expected .safetensors, a folder of them, or "
        f"{', '.join(PICKLES)} with tensors only"
    )


def layout(state: Mapping[str, Any]) -> Layout:
    """The layout of a state dict, by its names. Raises ValueError with some of its keys if it is none of these."""
    keys = {_without_wrappers(key) for key in state}

    def has(*starts: str) -> bool:
        return any(key.startswith(starts) for key in keys)

    if has("dit.", *ADAPTERS):
        return "pw"
    if has("spatial_adapter.", "dt_embedding."):
        return "authors"
    if has("condition_embedder."):
        return "diffusers"
    if has("time_embedding.", "time_projection.", "text_embedding."):
        return "wan"
    raise ValueError(
        f"not the weights of a Wan transformer: {_key_list(sorted(state)) or 'no keys at all'}; expected names "
        "of diffusers (condition_embedder.…), original Wan (time_embedding.…), the authors or ours (dit.…)"
    )


def to_pw(state: Mapping[str, Tensor], names: Layout | None = None) -> dict[str, Tensor]:
    """The same tensors under our names. Unknown keys stay as they are. Raises ValueError when two keys become one."""
    names = layout(state) if names is None else names
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        renamed = _rename(_without_wrappers(key), names)
        if renamed in out:
            raise ValueError(f"{key}: would be a second {renamed}")
        out[renamed] = value
    return out


def authors_injector(state: Mapping[str, Tensor]) -> options.Injector:
    """The options of the injector in a checkpoint of the authors under our names, from its shapes.

    Their public code has three versions; ours is the last. For an earlier one, raises ValueError with the differences.
    """
    blocks = sorted(int(m[1]) for key in state if (m := re.fullmatch(r"injector\.out\.(\d+)\.weight", key)))
    if "injector.narrow.weight" not in state or not blocks:
        raise ValueError(f"no injector of the authors (spatial_adapter.*) among {_key_list(sorted(state))}")
    narrow, width = state["injector.narrow.weight"], state[f"injector.out.{blocks[0]}.weight"].shape[0]
    misfits = []
    if tuple(narrow.shape[2:]) != (1, 1, 1):
        misfits.append(
            f"spatial_adapter.backbone.0 is a patchifying convolution {tuple(narrow.shape[2:])}, ours (1, 1, 1) on the "
            "token grid"
        )
    gate = state.get("injector.gate.timestep_mlp.2.weight")
    if gate is not None and gate.shape[0] != width:
        misfits.append(f"adapter_time_proj ends in {gate.shape[0]} channels (gain and shift), ours in {width} (gain)")
    if "injector.gate.stride_mlp.2.weight" not in state:
        misfits.append("there is no adapter_dt_proj: it knows no stride")
    if misfits:
        raise ValueError(f"an earlier injector of the authors, which ours cannot be: {'; '.join(misfits)}")
    return options.Injector("channelwise", tuple(blocks), narrow.shape[0] / width, AUTHORS_GROUPS)


def place(
    net: nn.Module, state: Mapping[str, Tensor], *, adapters_optional: bool = False, assign: bool = False
) -> list[str]:
    """Load a state dict with our names; returns the network's keys that were not loaded.

    adapters_optional  injector or stride embedding may be missing (a base checkpoint) and then keep their weights
    assign             take the tensors themselves, with their dtype, instead of copying (a network on the meta device)
    Raises ValueError listing up to ten unknown keys, missing keys and mismatched shapes; the network is then unchanged.
    """
    expected = net.state_dict()
    unknown = sorted(state.keys() - expected.keys())
    missing = sorted(expected.keys() - state.keys())
    not_loaded: list[str] = []
    if adapters_optional:
        missing_adapters = tuple(part for part in ADAPTERS if not any(key.startswith(part) for key in state))
        not_loaded = [key for key in missing if missing_adapters and key.startswith(missing_adapters)]
        missing = sorted(set(missing) - set(not_loaded))
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    lists = {"without a place": unknown, "not found": missing, "of another shape": shapes}
    if any(lists.values()):
        raise ValueError(
            "the weights do not fit the network: "
            + "; ".join(f"{len(keys)} {what} ({_key_list(keys)})" for what, keys in lists.items() if keys)
        )
    net.load_state_dict(dict(state), strict=False, assign=assign)
    return not_loaded


def _rename(key: str, names: Layout) -> str:
    if names == "pw":
        return key if key.startswith(("dit.", *ADAPTERS)) else f"dit.{key}"
    if names == "diffusers":
        return f"dit.{key}"
    if names == "authors":
        zero = re.fullmatch(r"spatial_adapter\.zero_layers\.(\d+)\.(weight|bias)", key)
        if zero:
            return f"injector.out.{zero[1]}.{zero[2]}"
        module, _, leaf = key.rpartition(".")
        if module in _AUTHORS:
            return f"{_AUTHORS[module]}.{leaf}"
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
    prefix, rest, table = ("", key, _WAN) if block is None else (f"blocks.{block[1]}.", block[2], _BLOCK)
    if rest in table:  # a parameter
        return f"dit.{prefix}{table[rest]}"
    module, _, leaf = rest.rpartition(".")
    return f"dit.{prefix}{table[module]}.{leaf}" if module in table else key


def _without_wrappers(key: str) -> str:
    for wrapper in _WRAPPERS:
        key = key.replace(wrapper, "")
    while key.startswith(_OWNERS):
        key = key.partition(".")[2]
    return key


def _key_list(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(keys[:LISTED]) + (", …" if len(keys) > LISTED else "")


def _read_folder(folder: Path, weights: str, shapes_only: bool = False) -> dict[str, Tensor]:
    adapters = folder / "pixelwizard" / "adapters.safetensors"
    if adapters.exists():  # one of our exports
        stock = _read_folder(folder / "transformer", weights, shapes_only)
        return {**stock, **_read_safetensors(adapters, shapes_only)}
    if (folder / f"{weights}.safetensors").exists():  # one of our trainings
        return _read_safetensors(folder / f"{weights}.safetensors", shapes_only)
    indices, files = sorted(folder.glob("*.safetensors.index.json")), sorted(folder.glob("*.safetensors"))
    if len(indices) == 1:
        return _read_shards(indices[0], shapes_only)
    if not indices and len(files) == 1:
        return _read_safetensors(files[0], shapes_only)
    if not indices and not files and (folder / "transformer").is_dir():
        return _read_folder(folder / "transformer", weights, shapes_only)
    names = _key_list(path.name for path in [*indices, *files]) or "none"
    raise ValueError(f"{folder}: expected one .safetensors file, or shards with one index; there are: {names}")


def _read_shards(index: Path, shapes_only: bool = False) -> dict[str, Tensor]:
    try:
        weight_map = parse_json(index.read_text())["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: not an index of shards ({error})") from error
    missing = [shard for shard in shards if not (index.parent / shard).exists()]
    if missing:
        raise ValueError(f"{index.parent}: {len(missing)} of {len(shards)} shards are missing: {_key_list(missing)}")
    state = {
        key: value for shard in shards for key, value in _read_safetensors(index.parent / shard, shapes_only).items()
    }
    missing = sorted(weight_map.keys() - state.keys())
    if missing:
        raise ValueError(f"{index.parent}: the shards lack {len(missing)} keys of their index: {_key_list(missing)}")
    return state


def _read_safetensors(path: Path, shapes_only: bool = False) -> dict[str, Tensor]:
    try:
        if shapes_only:
            with safe_open(path, "pt") as file:
                return {
                    key: torch.empty(file.get_slice(key).get_shape(), device="meta")
                    for key in file.keys()  # noqa: SIM118
                }
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a complete .safetensors file ({error})") from error


def _read_pickle(path: Path) -> Any:
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except pickle.UnpicklingError as error:
        first = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
        raise ValueError(
            f"{path}: holds more than tensors and would have to run code to be read, which is refused"
            f"{f' ({first.strip()})' if first else ''}; expected a state dict, better as .safetensors"
        ) from error
    except Exception as error:  # random bytes make the unpickler raise almost anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: truncated, or not a torch file ({reason})") from error


def _select_weights(checkpoint: Any, weights: str, path: Path) -> dict[str, Tensor]:
    """The state dict in a loaded checkpoint; `weights` chooses between `ema` and `online` if it has both."""
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path}: holds a {type(checkpoint).__name__}; expected a state dict")
    entries = {"ema": "generator_ema", "online": "generator"}
    if checkpoint.keys() & set(entries.values()):
        if entries[weights] not in checkpoint:
            raise ValueError(f"{path}: has no {entries[weights]}, only {_key_list(map(str, checkpoint))}")
        checkpoint = checkpoint[entries[weights]]
    else:
        for name in ("model", "state_dict"):
            if isinstance(checkpoint.get(name), Mapping):
                checkpoint = checkpoint[name]
                break
    others = [str(key) for key, value in checkpoint.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{path}: not a state dict; {len(others)} entries are no tensors: {_key_list(others)}")
    return dict(checkpoint)
