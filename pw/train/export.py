"""A finished training as a folder that diffusers opens.

    pw export run=<signature>

    transformer/          stock: `WanTransformer3DModel.from_pretrained(out, subfolder="transformer")`
    pixelwizard/          what diffusers lacks: adapters.safetensors (injector, stride embedding; fp32), config.json

`pw.nn.convert` reads both back: with dtype=fp32, bit for bit. The folder gets its name when all of it is written.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pw.io.arguments import Command, ConfigError, option
from pw.io.files import check_space, read_json, replacing, write_json
from pw.io.paths import OUTPUTS
from pw.run.build import make
from pw.run.provenance import provenance
from pw.train.record import cut_off, written_overrides

if TYPE_CHECKING:
    from torch import Tensor

SHARD = 10 * 10**9  # bytes; where diffusers begins another file, too
STEM = "diffusion_pytorch_model"


@dataclass(frozen=True)
class ExportOptions:
    """`pw export run=SIGNATURE`."""

    run: str = option("", "signature of the training, the name of its folder")
    out: Path | None = option(None, "folder to write; outputs/export/SIGNATURE by default")
    dtype: Literal["bf16", "fp32"] = option("bf16", "of the weights")
    weights: Literal["ema", "online"] = option("ema", "averaged, or as they were trained last")
    outputs: Path = option(OUTPUTS, "folder of all results")


@dataclass(frozen=True)
class FinishedTraining:
    """A finished training on disk: its folder, its resolved configuration, its `done.json`."""

    folder: Path
    values: dict[str, Any]
    done: dict[str, Any]


def find(signature: str, outputs: Path = OUTPUTS) -> FinishedTraining:
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
    return FinishedTraining(folder, {str(key): value for key, value in values.items()}, done)


def export(
    training: FinishedTraining,
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
    in_fp32 = set(stock._keep_in_fp32_modules or ())

    dtypes = {key: torch.float32 if dtype == "fp32" or in_fp32 & set(key.split(".")) else torch.bfloat16 for key in dit}
    adapters = {key: value.float() for key, value in state.items() if key.startswith(convert.ADAPTERS)}
    size = sum(value.numel() * dtypes[key].itemsize for key, value in dit.items())
    size += sum(value.nbytes for value in adapters.values())
    check_space("out", out, size, "choose another out=, or free some", "for the weights")
    try:
        with replacing(out) as partial:
            (partial / "pixelwizard").mkdir(parents=True)
            stock.save_config(partial / "transformer")
            _save_in_files(dit, dtypes, partial / "transformer", shard_bytes)
            _save(adapters, partial / "pixelwizard" / "adapters.safetensors")
            write_json(partial / "pixelwizard" / "config.json", _described(training, dtype, weights))
            for path in partial.rglob("*.safetensors"):  # which safetensors lets nobody else read
                shutil.copymode(partial / "pixelwizard" / "config.json", path)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"out={out}: {why}; nothing was left there") from error
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


def _save_in_files(tensors: Mapping[str, Tensor], dtypes: Mapping[str, Any], folder: Path, limit: int) -> None:
    """Write weights to files of at most `limit` bytes, cast file by file, with an index where there are several."""
    sizes = {key: value.numel() * dtypes[key].itemsize for key, value in tensors.items()}
    groups = shards(sizes, limit)
    count, weight_map = len(groups), {}
    for number, keys in enumerate(groups, start=1):
        name = f"{STEM}.safetensors" if count == 1 else f"{STEM}-{number:05d}-of-{count:05d}.safetensors"
        weight_map |= dict.fromkeys(keys, name)
        _save({key: tensors[key].to(dtypes[key]) for key in keys}, folder / name)
    if count > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_json(folder / f"{STEM}.safetensors.index.json", index)


def _described(training: FinishedTraining, dtype: str, weights: str) -> dict[str, Any]:
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


def run_export(options: ExportOptions) -> int:
    """Exit status: 0 exported."""
    outputs = options.outputs.expanduser()
    training = find(options.run, outputs)
    out = options.out or outputs / "export" / training.folder.name
    print(export(training, out, options.dtype, options.weights))
    return 0


main = Command(ExportOptions, run_export)
