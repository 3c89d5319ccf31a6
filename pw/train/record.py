"""The folder of a training: its path, `config.yaml`, `done.json`, checkpoints and weights."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pw.cost.training_cost import training_cost
from pw.io.arguments import ConfigError
from pw.io.files import remove, write_atomically, write_tensors
from pw.io.lazy import torch
from pw.io.manifest import check, write_mark
from pw.io.paths import OUTPUTS
from pw.parallel.team import Team
from pw.run.build import Run
from pw.run.signatures import provenance
from pw.tracking.curves import CURVES

WEIGHTS = "ema.safetensors"
LORA_WEIGHTS = "{}_lora.safetensors"  # of `online` and `ema`: low-rank adapters as diffusers reads them
CHECKPOINTS = ("last", "previous")  # checkpoints, the newest first
MERGED_CHECKPOINT = "whole.ckpt"  # the parts of a split checkpoint in one file, while it is read
CURVE_BYTES = 4096  # read at the end of a curve, and twice as many at its beginning
ORIGIN_LINE = "# trained from configuration {} by code {}\n"


def training_folder(run: Run, outputs: Path = OUTPUTS) -> Path:
    """The folder of a training, named by its signature."""
    return outputs / "train" / run.training_signature


def is_trained(run: Run, outputs: Path = OUTPUTS) -> bool:
    """Whether the training is done. Raises DamagedResult when `done.json` or the weights are not what was written."""
    mark = training_folder(run, outputs) / "done.json"
    return mark.exists() and bool(check(mark, [WEIGHTS]))


def weights_of(folder: Path, name: str = WEIGHTS) -> Path:
    """A file of weights of a finished training, whole. Raises DamagedResult."""
    check(folder / "done.json", [name], thorough=True)
    return folder / name


@dataclass(frozen=True)
class EarlierTraining:
    """A training in the outputs, from the line `ORIGIN_LINE` of its `config.yaml`.

    key   `Run.training_key`, the same for every version of the code
    code  `Run.training_code`
    """

    folder: Path
    key: str
    code: str
    is_finished: bool


def earlier_trainings(outputs: Path = OUTPUTS) -> list[EarlierTraining]:
    """All trainings whose `config.yaml` has the line `ORIGIN_LINE`, finished or not, the newest first."""
    trainings = []
    for config in (outputs / "train").glob("*/config.yaml"):
        if not config.is_file():  # a folder, or a pipe, which would wait for a writer
            continue
        with config.open(errors="replace") as file:
            match = re.fullmatch(ORIGIN_LINE.format(r"(\S+ \S+)", r"(\S+)"), [*file, "", ""][1])
        if match is not None:
            done_file = config.with_name("done.json")
            training = EarlierTraining(config.parent, *match.groups(), done_file.exists())
            trainings.append(((done_file if done_file.exists() else config).stat().st_mtime, training))
    return [training for _, training in sorted(trainings, key=lambda pair: -pair[0])]


def with_finished_trainings(run: Run, outputs: Path = OUTPUTS) -> Run:
    """The run; with `code=as_trained`, it knows the finished trainings in the outputs, of any version of the code."""
    if run.code == "current":
        return run
    signatures: dict[str, tuple[str, ...]] = {}
    for training in earlier_trainings(outputs):
        if training.is_finished:
            signatures[training.key] = (*signatures.get(training.key, ()), training.folder.name)
    return replace(run, finished_trainings=signatures)


def start_file(start: Run, outputs: Path = OUTPUTS) -> Path:
    """The weights of a start, shipped or trained in `outputs`. Raises DamagedResult."""
    return start.card.file if start.card else weights_of(training_folder(start, outputs))


def curve_ends(folder: Path) -> dict[str, tuple[float, float]]:
    """Column of `metrics.jsonl` -> (first, last value), of `step` and the losses; empty without a whole line.

    Of a long file only both ends are read.
    """
    with suppress(OSError), (folder / "metrics.jsonl").open("rb") as file:
        text = file.read(2 * CURVE_BYTES)
        if (size := file.seek(0, os.SEEK_END)) > len(text):
            file.seek(max(len(text), size - CURVE_BYTES))
            text += b"\n" + file.read()
        lines: list[dict[str, Any]] = []
        for line in text.splitlines():
            with suppress(ValueError):  # cut off
                lines += [values] if isinstance(values := json.loads(line), dict) else []
        columns = [
            key for key in dict.fromkeys(key for line in lines for key in line) if key.startswith(("step", "loss"))
        ]
        values = {key: [line[key] for line in lines if isinstance(line.get(key), int | float)] for key in columns}
        return {key: (column[0], column[-1]) for key, column in values.items() if column}
    return {}


def write_done(run: Run, folder: Path, module: Any) -> None:
    """Write `done.json`, the mark of a finished training, with its cost and origin."""
    start = run.start_run
    while start is not None and start.card is None:  # the card may be that of the start's start
        start = start.start_run
    card = None if start is None else start.card
    mebibyte = 1024 if sys.platform == "linux" else 1 << 20  # of ru_maxrss: in KiB on Linux, in bytes on macOS
    content = {
        "signature": run.training_signature,
        "updates": run.train.updates,
        "train_flops": training_cost(run).flops.total,
        "cpu_seconds": round(module.cpu_seconds, 2),
        "wall_seconds": round(module.wall_seconds, 2),
        "tracking_seconds": round(module.tracking_seconds, 3),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // mebibyte,
        "parameters": sum(p.numel() for p in module.net.parameters()),
        "trained_parameters": sum(p.numel() for p in module.net.parameters() if p.requires_grad),
        "torch": torch.__version__,
        **provenance(),
        "code": run.training_code,
        "configuration": run.configuration_signature,
        "start": run.start_run.training_signature if run.start_run else None,
        "shipped_start": card and {"name": card.name, "updates": card.updates, "sha256": card.sha256},
        "passed_over": list(module.passed_over),
        **({} if run.mix is None else {"buckets": dict(zip(map(str, run.mix.buckets), run.mix.shares, strict=True))}),
        "processes": run.trainer.processes,
        "strategy": run.trainer.strategy,
    }
    adapters = map(LORA_WEIGHTS.format, ("online", "ema"))
    names = ("config.yaml", *CURVES, *adapters, "online.safetensors", WEIGHTS)
    write_mark(folder / "done.json", content, [path for name in names if (path := folder / name).exists()])


def write_config(run: Run, folder: Path, command: str = "train") -> None:
    """Write `config.yaml`: a line with the command, after `train` also `ORIGIN_LINE`, and the resolved configuration.

    command  `train` or `sample`
    """
    head = f"# pw {command} {shlex.join(run.config.overrides)}\n"
    if command == "train":
        head += ORIGIN_LINE.format(run.training_key, run.training_code)
    write_atomically(
        folder / "config.yaml", head + yaml.safe_dump(run.config.values, allow_unicode=True, sort_keys=False)
    )


def written_overrides(folder: Path) -> list[str]:
    """The overrides in the first line of a `config.yaml`. Raises ConfigError when it is truncated."""
    return overrides_in((folder / "config.yaml").read_text(), folder / "config.yaml")


def overrides_in(text: str, config: Path) -> list[str]:
    """As `written_overrides`, of the text of `config`."""
    head, newline, _ = text.partition("\n")
    is_old = head.startswith("# python -m pw.")  # written before the command `pw` existed
    if not newline or not (is_old or head.startswith("# pw ")):
        raise truncated_config(config)
    words = shlex.split(head) if set(head) & set("\"'\\") else head.split()  # 20 times faster, for `pw runs`
    return words[4 if is_old else 3 :]  # "# pw train …"


def truncated_config(config: Path) -> ConfigError:
    """The error for a `config.yaml` that is empty or truncated."""
    return ConfigError(
        f"{config}: does not say how it was trained, is truncated or empty; put it back, or remove {config.parent} to "
        "train again"
    )


def write_weights(folder: Path, module: Any, team: Team) -> None:
    """Write `online.safetensors` and `ema.safetensors`, not split. All processes must call it.

    Low-rank adapters are merged there, and also in files of their own, as diffusers reads them.
    """
    from pw.nn.lora import lora_file_state, merged
    from pw.parallel.sharded import gather_state

    for name in ("online", "ema"):
        state = gather_state(module.net if name == "online" else module.ema, keep=team.place.is_first)
        if team.place.is_first:
            if (lora := module.run.train.low_rank) is not None:
                write_tensors(folder / LORA_WEIGHTS.format(name), lora_file_state(state, lora))
                state = merged(state, lora)
            write_tensors(folder / f"{name}.safetensors", state)
        del state  # before the next one is gathered: 20 GB each


def last_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """(newest readable checkpoint, its update), None if there is none. An unreadable one is renamed, with a warning."""
    from pw.parallel.sharded import check_checkpoint, read_rest

    for path in (folder / "checkpoints" / f"{name}.ckpt" for name in CHECKPOINTS):
        if not path.exists():
            continue
        try:
            check_checkpoint(path)
            checkpoint = read_rest(path) if path.is_dir() else torch.load(path, "cpu", weights_only=True, mmap=True)
            signature, update = checkpoint["pw_signature"], int(checkpoint["global_step"])
        except Exception as error:
            logging.getLogger("pw").warning("%s is unreadable (%s); trying the one before", path, error)
            unreadable = path.with_suffix(".unreadable")
            remove(unreadable)
            path.rename(unreadable)
            continue
        if signature != folder.name:
            raise ConfigError(f"{path} is a checkpoint of signature {signature}, not {folder.name}; remove it")
        return path, update
    return None
