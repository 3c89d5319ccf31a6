"""A finished training as a folder that diffusers opens.

    pw export run=<signature>

    transformer/          stock: `WanTransformer3DModel.from_pretrained(out, subfolder="transformer")`
    pixelwizard/          the rest: adapters.safetensors (injector, stride embedding; fp32), config.json

Of a training with `train.trainable=lora` the low-rank adapters take the place of the transformer, unless `merge=true`:

    pytorch_lora_weights.safetensors    for `WanPipeline.load_lora_weights(out)`, at scale 1

`pw.nn.convert` reads both, with dtype=fp32 bit for bit. The folder gets its final name when it is complete.
"""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from pw.io.arguments import Command, ConfigError, option
from pw.io.files import check_space, replacing, write_json
from pw.io.lazy import torch
from pw.io.manifest import check
from pw.io.paths import OUTPUTS
from pw.run.build import make
from pw.run.signatures import provenance
from pw.train.record import LORA_WEIGHTS, truncated_config, weights_of, written_overrides


@dataclass(frozen=True)
class ExportOptions:
    """`pw export run=SIGNATURE`."""

    run: str = option("", "signature of the training, the name of its folder")
    out: Path | None = option(None, "folder to write; outputs/export/SIGNATURE by default")
    dtype: Literal["bf16", "fp32"] = option("bf16", "of the weights")
    weights: Literal["ema", "online"] = option("ema", "averaged, or as they were trained last")
    merge: bool = option(False, "of a training of LoRA: the whole transformer, with the adapters in its weights")
    outputs: Path = option(OUTPUTS, "folder of all results")


@dataclass(frozen=True)
class FinishedTraining:
    """A finished training on disk: its folder, its resolved configuration, its `done.json`."""

    folder: Path
    values: dict[str, Any]
    done: dict[str, Any]

    @property
    def has_lora(self) -> bool:
        return self.values["train"].get("trainable") == "lora"


def find_training(signature: str, outputs: Path = OUTPUTS) -> FinishedTraining:
    """The finished training with a signature. Raises ConfigError, which lists the finished trainings."""
    folder = outputs / "train" / signature
    signatures = sorted(path.parent.name for path in (outputs / "train").glob("*/done.json"))
    if folder.parent != outputs / "train" or not (folder / "config.yaml").exists():
        names = ", ".join(signatures[:8]) + (f", … ({len(signatures)})" if len(signatures) > 8 else "")
        raise ConfigError(f"run={signature}: no such training in {outputs / 'train'}; finished are: {names or 'none'}")
    if signature not in signatures:
        command = shlex.join(written_overrides(folder))
        raise ConfigError(f'run={signature}: has not finished; `make train args="{command}"` continues it')
    done = check(folder / "done.json", ["config.yaml"])
    try:
        values = yaml.safe_load((folder / "config.yaml").read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise truncated_config(folder / "config.yaml") from error
    if not isinstance(values, dict) or "backbone" not in values:
        raise truncated_config(folder / "config.yaml")
    return FinishedTraining(folder, {str(key): value for key, value in values.items()}, done)


def export(
    training: FinishedTraining,
    out: Path,
    dtype: Literal["bf16", "fp32"] = "bf16",
    weights: Literal["ema", "online"] = "ema",
    shard_bytes: int | str = "10GB",
    *,
    merge: bool = False,
) -> Path:
    """Write a training to `out`, a folder that is empty or does not exist; it never holds half an export.

    dtype        with bf16, parameters that diffusers keeps in fp32 stay fp32 (norms, timestep embedding, modulation)
    shard_bytes  largest file of the transformer, an argument of `save_pretrained`
    merge        low-rank adapters in the weights of the transformer, instead of as a file of their own
    Raises ConfigError when there are none to merge, `out` is not empty, the disk is full, or the weights do not fit the
    configuration.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out={out}: exists; choose another, or remove it")
    if merge and not training.has_lora:
        raise ConfigError(f"merge=true: run={training.folder.name} trained no low-rank adapters; leave it out")
    backbone = make("backbone", training.values["backbone"])
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from pw.nn import convert
    from pw.nn.backbone import wan_transformer
    from pw.nn.lora import write_lora_file

    state = convert.read(weights_of(training.folder, f"{weights}.safetensors"))
    with torch.device("meta"):
        stock = wan_transformer(backbone)
    dit = {key.removeprefix("dit."): value for key, value in state.items() if key.startswith("dit.")}
    if dtype == "bf16":
        in_fp32 = set(stock._keep_in_fp32_modules or ())
        dit = {key: value if in_fp32 & set(key.split(".")) else value.bfloat16() for key, value in dit.items()}
    adapters = {key: value.float() for key, value in state.items() if key.startswith(convert.ADAPTERS)}
    try:
        convert.place(stock, dit, assign=True)
    except ValueError as error:
        raise ConfigError(f"{training.folder}: {error}") from error
    lora = {}
    if training.has_lora and not merge:
        lora = convert.read(weights_of(training.folder, LORA_WEIGHTS.format(weights)))
        lora, dit = {key: value.bfloat16() if dtype == "bf16" else value for key, value in lora.items()}, {}
    size = sum(value.nbytes for value in (*dit.values(), *lora.values(), *adapters.values()))
    check_space("out", out, size, "choose another out=, or free some", "for the weights")
    try:
        with replacing(out) as partial:
            (partial / "pixelwizard").mkdir(parents=True)
            if lora:
                write_lora_file(partial, lora)
            else:
                stock.save_pretrained(partial / "transformer", max_shard_size=shard_bytes)
            save_file(adapters, partial / "pixelwizard" / "adapters.safetensors", metadata={"format": "pt"})
            write_json(partial / "pixelwizard" / "config.json", _export_config(training, dtype, weights))
            for path in partial.rglob("*.safetensors"):  # safetensors makes files that only the owner can read
                shutil.copymode(partial / "pixelwizard" / "config.json", path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"out={out}: {reason}; nothing was written there") from error
    return out


def _export_config(training: FinishedTraining, dtype: str, weights: str) -> dict[str, Any]:
    """Content of `pixelwizard/config.json`: the network, its training, and the code that made it."""
    groups = ("stage", "seed", "backbone", "injector", "attention", "codec", "schedule", "scale", "objective")
    return {
        **{group: training.values.get(group) for group in groups},
        "overrides": written_overrides(training.folder),
        "signature": training.done["signature"],
        "updates": training.done.get("updates"),
        "weights": weights,
        "lora": training.values["train"]["lora"] if training.has_lora else None,
        "dtype": dtype,
        "trained_by": {key: training.done.get(key) for key in ("git_commit", "dirty", "code", "lock_hash", "torch")},
        "exported_by": provenance(),
    }


def run_export(options: ExportOptions) -> int:
    """Exit status: 0 exported."""
    outputs = options.outputs.expanduser()
    training = find_training(options.run, outputs)
    out = options.out or outputs / "export" / training.folder.name
    print(export(training, out, options.dtype, options.weights, merge=options.merge))
    return 0


main = Command(ExportOptions, run_export)
