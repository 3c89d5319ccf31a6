"""A finished training as a folder that diffusers opens.

    pw export run=<signature> [out=DIR] [dtype=bf16|fp32] [weights=ema|online] [outputs=DIR]

    transformer/          stock: `WanTransformer3DModel.from_pretrained(out, subfolder="transformer")`
    pixelwizard/          what is ours: adapters.safetensors (injector, stride embedding; in fp32) and config.json

`pw.nn.convert` reads both back: with dtype=fp32, bit for bit. The folder gets its name when all of it is written.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pw.io.files import read_json, write_json
from pw.io.paths import OUTPUTS
from pw.run.compose import ConfigError
from pw.run.provenance import provenance
from pw.run.strategies import make
from pw.train.record import cut_off, written_overrides

if TYPE_CHECKING:
    from torch import Tensor

SHARD = 10 * 10**9  # bytes; where diffusers begins another file, too
STEM = "diffusion_pytorch_model"


@dataclass(frozen=True)
class Training:
    """A finished training on disk: its folder, its resolved configuration, its `done.json`."""

    folder: Path
    values: dict[str, Any]
    done: dict[str, Any]


def find(signature: str, outputs: Path = OUTPUTS) -> Training:
    """The finished training of a signature. Raises ConfigError saying what there is instead."""
    folder = outputs / "train" / signature
    finished = sorted(path.parent.name for path in (outputs / "train").glob("*/done.json"))
    if not signature or not (folder / "config.yaml").exists():
        some = ", ".join(finished[:8]) + (f", … ({len(finished)})" if len(finished) > 8 else "")
        raise ConfigError(f"run={signature}: no such training in {outputs / 'train'}; finished are: {some or 'none'}")
    text = (folder / "config.yaml").read_text()
    if signature not in finished:
        command = shlex.join(written_overrides(folder))
        raise ConfigError(f'run={signature}: has not finished; `make train args="{command}"` continues it')
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        values = OmegaConf.to_container(OmegaConf.create(text))
    except (ValueError, YAMLError) as error:
        raise cut_off(folder / "config.yaml") from error
    if not isinstance(values, dict) or "backbone" not in values:
        raise cut_off(folder / "config.yaml")
    done = read_json(folder / "done.json")
    if done is None:
        raise ConfigError(f"{folder / 'done.json'}: is cut off; remove it to train anew")
    return Training(folder, {str(key): value for key, value in values.items()}, done)


def export(
    training: Training,
    out: Path,
    dtype: Literal["bf16", "fp32"] = "bf16",
    weights: Literal["ema", "online"] = "ema",
    shard_bytes: int = SHARD,
) -> Path:
    """Write a training to `out`, which must not exist or be empty; at no time is half of it there.

    bf16 leaves in fp32 what diffusers keeps so (norms, the timestep embedding, modulation).
    Raises ConfigError when `out` is taken, or the disk too full, or the weights are not those of the configuration.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out={out}: exists; choose another, or remove it")
    backbone = make("backbone", training.values["backbone"])
    import torch
    from safetensors import SafetensorError

    from pw.nn import convert
    from pw.nn.backbone import wan_transformer

    state = convert.read(training.folder / f"{weights}.safetensors")
    with torch.device("meta"):
        stock = wan_transformer(backbone)
    dit = {key.removeprefix("dit."): value for key, value in state.items() if key.startswith("dit.")}
    try:
        convert.place(stock, dit, assign=True)
    except ValueError as error:
        raise ConfigError(f"{training.folder}: {error}") from error
    kept = tuple(stock._keep_in_fp32_modules or ())

    def cast(key: str) -> torch.dtype:
        return torch.float32 if dtype == "fp32" or set(kept) & set(key.split(".")) else torch.bfloat16

    sizes = {key: value.numel() * cast(key).itemsize for key, value in dit.items()}
    adapters = {key: value.float() for key, value in state.items() if key.startswith(convert.ADAPTERS)}
    _check_disk(out, sum(sizes.values()) + sum(4 * value.numel() for value in adapters.values()))
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "transformer").mkdir(parents=True)
        (partial / "pixelwizard").mkdir()
        stock.save_config(partial / "transformer")
        groups = shards(sizes, shard_bytes)
        for number, keys in enumerate(groups, start=1):
            name = (
                f"{STEM}.safetensors" if len(groups) == 1 else f"{STEM}-{number:05d}-of-{len(groups):05d}.safetensors"
            )
            _save({key: dit[key].to(cast(key)) for key in keys}, partial / "transformer" / name)
        if len(groups) > 1:
            write_json(partial / "transformer" / f"{STEM}.safetensors.index.json", _index(groups, sizes))
        _save(adapters, partial / "pixelwizard" / "adapters.safetensors")
        write_json(partial / "pixelwizard" / "config.json", _described(training, dtype, weights))
        for path in partial.rglob("*.safetensors"):  # which safetensors lets nobody else read
            shutil.copymode(partial / "pixelwizard" / "config.json", path)
        os.replace(partial, out)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"out={out}: {why}; nothing was left there") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Keys in files of at most `limit` bytes each, in their order; a tensor above it has a file of its own."""
    groups: list[list[str]] = [[]]
    filled = 0
    for key, size in sizes.items():
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(key)
        filled += size
    return groups


def _index(groups: Sequence[Iterable[str]], sizes: Mapping[str, int]) -> dict[str, Any]:
    names = [f"{STEM}-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    weight_map = {key: name for name, keys in zip(names, groups, strict=True) for key in keys}
    return {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}


def _described(training: Training, dtype: str, weights: str) -> dict[str, Any]:
    """`pixelwizard/config.json`: what the network is, what it was trained on, and where it comes from."""
    groups = ("stage", "seed", "backbone", "injector", "codec", "schedule", "scale", "objective")
    return {
        **{group: training.values.get(group) for group in groups},
        "overrides": written_overrides(training.folder),
        "signature": training.done["signature"],
        "updates": training.done.get("updates"),
        "weights": weights,
        "dtype": dtype,
        "trained_by": {key: training.done.get(key) for key in ("git_commit", "dirty", "code", "lock_hash", "torch")},
        "exported_by": provenance(),
    }


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    # a copy of its own: tensors mapped from one file share its storage; "pt" is what diffusers looks for
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata={"format": "pt"})


def _check_disk(out: Path, needed: int) -> None:
    place = next(path for path in out.absolute().parents if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ConfigError(f"out={out}: needs {needed / 1e9:.2f} GB, {place} has {free / 1e9:.2f} GB free")


def _arguments(words: Sequence[str]) -> dict[str, str]:
    choices = {"run": (), "out": (), "outputs": (), "dtype": ("bf16", "fp32"), "weights": ("ema", "online")}
    options: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in choices or not equals:
            raise ConfigError(f"{word}: wants run=<signature>, out=DIR, dtype=…, weights=… or outputs=DIR")
        if choices[key] and value not in choices[key]:
            raise ConfigError(f"{word}: {key} is one of {', '.join(choices[key])}")
        options[key] = value
    return options


def main(arguments: Sequence[str]) -> int:
    """Export one training from the command line: 0, or 2 and a line saying what is wrong."""
    try:
        options = _arguments(arguments)
        outputs = Path(options.get("outputs", OUTPUTS)).expanduser()
        training = find(options.get("run", ""), outputs)
        out = Path(options["out"]).expanduser() if options.get("out") else outputs / "export" / training.folder.name
        dtype: Any = options.get("dtype", "bf16")
        weights: Any = options.get("weights", "ema")
        print(export(training, out, dtype, weights))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
