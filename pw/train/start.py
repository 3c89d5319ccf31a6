"""Train a start from its recipe, and write the two files to ship: weights and card (`pw.run.build.Card`).

    pw start name=hires out=pw/starts

writes pw/starts/hires.safetensors and hires.json. The training is resumable and done once, like any other. Its first
updates are then trained again; the card records their losses.
"""

from __future__ import annotations

import hashlib
import math
import platform
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from pw.data.shard_index import MANIFEST
from pw.io.arguments import Command, ConfigError, missing_option, option
from pw.io.files import parse_json, replacing, write_json
from pw.io.manifest import check
from pw.io.paths import OUTPUTS
from pw.io.progress import Progress
from pw.run.build import LARGEST, Run, build, start_name
from pw.run.compose import groups, leaves, override_key
from pw.run.signatures import NOT_SCALE, NOT_TRAINING, data_hash
from pw.train.loop import outputs_folder, run_training, train
from pw.train.preflight import check_device, preflight

FIRST_UPDATES = 20  # updates that are trained again
CURVE_POINTS = 60  # in the curve of a card
TOLERANCE = 1e-3  # relative, of the first losses: CPUs differ in the order of sums


class _FirstUpdatesDone(Exception):
    """Ends a training after its first updates."""


def first_losses(start: Run) -> list[list[float]]:
    """[update, mean loss since the previous point] of the first `FIRST_UPDATES` updates, which this call trains."""

    def stop(update: int, updates: int) -> None:
        if update >= FIRST_UPDATES:
            raise _FirstUpdatesDone

    run = start.with_values({"train.checkpoint_every": FIRST_UPDATES})  # writes the curve to disk
    with tempfile.TemporaryDirectory() as outputs:
        with suppress(_FirstUpdatesDone):
            train(run, Path(outputs), stop)
        (path,) = Path(outputs).glob("train/*/metrics.jsonl")
        return [[point["step"], _loss(point)] for point in _curve(path)]


def write_start(start: Run, name: str, training: Path, out: Path) -> Path:
    """Write weights and card of a trained start; returns the path of the card.

    Raises ConfigError when the training has another recipe or other code, or its weights are too large; DamagedResult.
    """
    from safetensors.torch import load_file, save

    done = check(training / "done.json", thorough=True) if (training / "done.json").exists() else {}
    curve = _curve(training / "metrics.jsonl")
    if done.get("configuration") != start.configuration_signature:
        _check_recipe(start, training)
    losses, recorded = first_losses(start), {point["step"]: _loss(point) for point in curve}
    for update, loss in losses:
        if not math.isclose(recorded.get(update, math.nan), loss, rel_tol=TOLERANCE):
            raise ConfigError(
                f"training={training}: its loss by update {update} was {recorded.get(update)}, that of this code is "
                f"{loss:.6g}: it was made by other code"
            )
    weights = load_file(training / "ema.safetensors")
    if not start.objective.trains_strides:  # still random: a training from this start draws its own
        weights = {key: value for key, value in weights.items() if not key.startswith("stride_embedding.")}
    dtype, content = "float32", save(weights)
    if len(content) > LARGEST:
        dtype, content = "float16", save({key: value.half() for key, value in weights.items()})
    if len(content) > LARGEST:
        raise ConfigError(f"{training}: {len(content):,} bytes in float16; a shipped start has at most {LARGEST:,}")
    with replacing(out / f"{name}.safetensors") as partial:
        partial.write_bytes(content)
    card = {
        "name": name,
        "recipe": shlex.join(o for o in start.config.overrides if override_key(o) != "data.urls"),
        "updates": start.train.updates,
        "seed": start.seed,
        "configuration": start.configuration_signature,
        **_without_data(start),
        "code": start.training_code,
        "sha256": hashlib.sha256(content).hexdigest(),
        "dtype": dtype,
        "parameters": sum(value.numel() for value in weights.values()),
        "first_losses": losses,
        "curve": _thin_curve(curve),
        "seconds": done.get("wall_seconds"),
        "cpu_seconds": done.get("cpu_seconds"),
        "machine": f"{platform.machine()}, {_processor()}",
        "torch": done.get("torch"),
        "date": date.fromtimestamp((training / "done.json").stat().st_mtime).isoformat(),
        "commit": done.get("git_commit"),
        "dirty": done.get("dirty"),
    }
    write_json(out / f"{name}.json", card)
    return out / f"{name}.json"


def _without_data(start: Run) -> dict[str, Any]:
    """The part of a card that says which recipe the start has on any clips; empty where clips are procedural."""
    if start.config.choices["data"] == "procedural":
        return {}
    others = [override for override in start.config.overrides if override_key(override).split(".")[0] != "data"]
    return {
        "scale": start.config.choices["scale"],
        "without_data": build([*others, "data=none"]).configuration_signature,
        "data": data_hash(start),
        "videos": _videos(Path(start.config["data"].get("urls") or "")),
    }


def _videos(shards: Path) -> dict[str, str]:
    """File name -> sha256 of the videos that a folder of shards was cut from; empty if it does not say."""
    with suppress(OSError, ValueError, KeyError):
        return {source["file"]: source["sha256"] for source in parse_json((shards / MANIFEST).read_text())["sources"]}
    return {}


def _check_recipe(start: Run, training: Path) -> None:
    """Raises ConfigError unless `config.yaml` has the recipe's values; called if the hash in `done.json` differs."""
    if not (training / "done.json").exists() or not (training / "config.yaml").exists():
        raise ConfigError(f"training={training}: not a finished training (no done.json, or no config.yaml)")
    values: Any = yaml.safe_load((training / "config.yaml").read_text())
    recipe, actual = _training_values(start.config.values), _training_values(values)
    if unequal := sorted(key for key in recipe.keys() | actual.keys() if recipe.get(key) != actual.get(key)):
        key = unequal[0]
        raise ConfigError(
            f"training={training}: is not of this recipe, {key} is {actual.get(key)} there and {recipe.get(key)} here "
            f"({len(unequal)} keys differ)"
        )


def _training_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted path -> value, for all values that can change a training."""
    ignored_groups = {*NOT_TRAINING, "start", "text"}
    used = {key: value for key, value in values.items() if key not in ignored_groups}
    ignored_keys = {"train.checkpoint_every", *(f"scale.{key}" for key in NOT_SCALE)}
    return {k: v for k, v in leaves(used).items() if not k.endswith("_target_") and k not in ignored_keys}


def _curve(path: Path) -> list[dict[str, float]]:
    try:
        return [parse_json(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: is no curve of a training ({error})") from error


def _loss(point: Mapping[str, float]) -> float:
    return fmean(value for key, value in point.items() if key.startswith("loss_") and "/" not in key)


def _thin_curve(curve: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """About `CURVE_POINTS` points; each is the mean loss since the previous point."""
    length = max(1, len(curve) // CURVE_POINTS)
    parts = [curve[first : first + length] for first in range(0, len(curve), length)]
    return [{"update": part[-1]["step"], "loss": round(fmean(map(_loss, part)), 6)} for part in parts]


def _processor() -> str:
    """The name of the CPU, if the system provides it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown CPU"


@dataclass(frozen=True)
class StartOptions:
    """`pw start name=… key=value …`: one start."""

    name: str = option("", "name of a file in conf/start")
    out: Path | None = option(
        None, "folder for its two files: outputs/starts by default, pw/starts to ship it", read=outputs_folder
    )
    training: Path | None = option(None, "a finished training of this recipe, to be written without training again")
    outputs: Path = option(OUTPUTS, "folder of all results", read=outputs_folder)
    overrides: tuple[str, ...] = ()


def run_start(options: StartOptions) -> int:
    """Exit status: 0 both files written, 1 failed, 128 + n stopped by signal n."""
    names = [name for name in groups()["start"] if name != "none"]
    if options.name not in names:
        message = f"name={options.name}: one of {', '.join(names)}, e.g. `make start name={names[-1]}`"
        raise missing_option(StartOptions, "name", message, options.overrides)
    start = build([f"start={options.name}", *options.overrides]).start_run
    assert start is not None
    start = replace(start, card=None)  # of its own; the start that it departs from may be shipped
    if options.training is None:
        preflight(start, options.outputs)
    else:
        check_device(start)  # `write_start` trains the first updates again

    def work(progress: Progress) -> Path:
        training = options.training or train(start, options.outputs, progress, is_checked=True)
        name = start_name(options.name, start.config.choices["scale"])
        return write_start(start, name, training, options.out or options.outputs / "starts")

    return run_training(start, options.outputs, work)


main = Command(StartOptions, run_start)
