"""Whether a generation or a training fits the given GPUs; if not, overrides or devices with which it fits."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pw.cost.counts import Moment, Precision, stage_tokens
from pw.cost.generation_cost import Stages, generation_cost, last_stage, stages_of, with_tile
from pw.cost.rates import CARDS, Gpus
from pw.cost.training_cost import TrainingCost, training_cost
from pw.io.arguments import ConfigError
from pw.io.files import human_size
from pw.nn import options
from pw.parallel.team import Share
from pw.run.build import Run, assemble, build
from pw.run.compose import override_key

DEVICES = 8  # of a machine
GPU_COUNTS = (2, 4, 8, 16, 32, 64)  # suggested for training
SCALES = ("4k", "2k", "proxy")  # from large to small
FEWEST_FRAMES = 49  # two seconds; suggested before a smaller scale


@dataclass(frozen=True)
class Verdict:
    """Whether generation or training fits, with a line of text; `remedy` are overrides with which it fits."""

    what: str
    fits: bool
    line: str
    remedy: tuple[str, ...] = ()


def judge_generation(stages: Stages, memory: float, card: str, precision: Precision | None, count: int = 1) -> Verdict:
    """Whether one of `count` devices, each with `memory` bytes and called `card`, can generate one video."""

    def fits(candidates: Stages, weights: Precision | None = precision) -> bool:
        return generation_cost(*with_tile(candidates, memory), precision=weights).worst.fits(memory)

    worst = generation_cost(*with_tile(stages, memory), precision=precision).worst
    if worst.fits(memory):
        return Verdict("generation", True, f"generation fits {card}: {_needs(worst)}")
    if precision == "fp32" and fits(stages, "bf16"):
        remedy = ("dtype=bf16",)
    else:
        remedy = nearest_setting(stages, lambda run: generation_changes(run, memory), fits)
    rounded = ("trainer.storage=fp8",)
    fp8 = rounded if can_wait(last_stage(stages)) and _fits_with({"trainer.storage": "fp8"}, stages, fits) else ()
    offers = [offer for offer in (remedy, split_over_devices(stages, count, fits), fp8) if offer]
    # first offers that do not change the video, then the one that rounds its weights
    size = {"scale", "scale.frames"}
    offers.sort(key=lambda offer: (bool(size & {override_key(o) for o in offer}), offer == rounded))
    offer = "; or ".join(" ".join(offer) for offer in offers) or f"gpus=1x{math.ceil(worst.needs / 1e9)}GB"
    line = f"generation does not fit {card}: {_needs(worst)}; the nearest setting that does: {offer}"
    return Verdict("generation", False, line, offers[0] if offers else ())


def check_generation(hires: Run | None, anchor: Run | None, memory: float, count: int = 1) -> None:
    """Raises ValueError if a device of `memory` bytes cannot generate a video, with the nearest setting that fits.

    count  devices of the machine
    """
    verdict = judge_generation((hires, anchor), memory, human_size(memory), None, count)
    if not verdict.fits:
        raise ValueError(verdict.line)


def judge_training(run: Run, training: TrainingCost, gpus: Gpus) -> Verdict:
    worst = training.worst
    split, count = training.split, gpus.count
    note = f", sharded over {count}: {sharding(run, count)}" if split == count > 1 else f", sharded over {split}"
    note = note if split > 1 else ""
    if worst.fits(gpus.memory):
        return Verdict("training", True, f"training fits {gpus}: {_needs(worst)}{note}")

    def fits(stages: Stages) -> bool:
        return training_cost(last_stage(stages), gpus.count).worst.fits(gpus.memory)

    remedy = nearest_setting((None, run) if run.stage == "anchor" else (run, None), training_changes, fits)
    offers = [" ".join(remedy)] if remedy else []
    for context in (run.trainer.context, *contexts(run, count)):
        if training_cost(run, count, context, count).worst.fits(gpus.memory):
            shared = f"each clip's tokens shared by {context}" if context > run.trainer.context else "sharded"
            offers.insert(0, f"{shared} ({sharding(run, count, context)})")
            break
    larger = enough_devices(run, [n for n in GPU_COUNTS if n > gpus.count], {gpus.card: gpus.memory})
    if larger is None and not offers:
        larger = enough_devices(run, (1, *GPU_COUNTS), {name: card.memory for name, card in CARDS.items()})
    if larger is not None:
        count, card, context = larger
        sharding_text = f", sharded ({sharding(run, count, context)})" if count > 1 else ""
        offers.append(f"gpus={count}x{card}{sharding_text}")
    offers = offers or [f"gpus={gpus.count}x{math.ceil(worst.needs / 1e9)}GB"]
    line = f"training does not fit {gpus}: {_needs(worst)}; the nearest setting that does: {'; or '.join(offers)}"
    return Verdict("training", False, line, remedy)


def _needs(moment: Moment) -> str:
    largest = max(moment.parts, key=lambda part: part.bytes)
    return f"{moment.name} needs {human_size(moment.needs)}, most of it {largest.name}"


def split_over_devices(stages: Stages, count: int, fits: Callable[[Stages], bool]) -> tuple[str, ...]:
    """The overrides that split the networks, and if necessary a video's tokens, over the devices of a machine; empty
    for one device, or if that does not fit either."""
    run = last_stage(stages)
    if not 1 < count <= DEVICES or run.trainer.split > 1:
        return ()
    for context in (1, *contexts(run, count)):
        words = ("trainer=fsdp", f"trainer.devices={count}", *([f"trainer.context={context}"] if context > 1 else []))
        if fits(stages_of(build(replace_overrides(run.config.overrides, words)))):
            return words
    return ()


def enough_devices(run: Run, counts: Sequence[int], cards: Mapping[str, float]) -> tuple[int, str, int] | None:
    """The fewest and smallest devices on which a training fits: (number, card, devices that share a clip's tokens).

    cards  card -> bytes
    """
    for count in counts:
        for card, memory in sorted(cards.items(), key=lambda item: item[1]):
            for context in (run.trainer.context, *contexts(run, count)):
                if count % context == 0 and training_cost(run, count, context, count).worst.fits(memory):
                    return count, card, context
    return None


def contexts(run: Run, count: int) -> list[int]:
    """Valid values of `trainer.context` for both stages that are larger than the run's."""
    lengths = (stage_tokens(stage) for stage in stages_of(run) if stage is not None)
    counts = (count // node_count(count), *lengths, run.backbone.num_attention_heads)
    return [n for n in range(run.trainer.context + 1, counts[0] + 1) if not any(total % n for total in counts)]


def node_count(count: int) -> int:
    """The fewest machines that have `count` devices in total, equally many and at most eight in each."""
    return next(n for n in range(math.ceil(count / DEVICES), count + 1) if count % n == 0)


def sharding(run: Run, count: int, context: int | None = None) -> str:
    """The overrides that split a training over `count` devices, at most eight in a machine."""
    nodes, context = node_count(count), context or run.trainer.context
    words = f"trainer=fsdp trainer.devices={count // nodes}" + (f" trainer.nodes={nodes}" if nodes > 1 else "")
    words += f" trainer.context={context}" if context > 1 else ""
    try:
        Share.of(run.train, 0, count // context)
    except ConfigError:  # an update has fewer clips than there are devices
        words += f" train.accumulate={count // context}, which makes updates larger"
    return words


# run -> possible changes, each {key of conf/: value}
Changes = Callable[[Run], list[dict[str, Any]]]


def generation_changes(run: Run, memory: float) -> list[dict[str, Any]]:
    """Changes that reduce memory but not the video, except for rounding and the seams of tiles that `memory` allows."""
    changes: list[dict[str, Any]] = []
    if run.trainer.guidance_batch:
        changes.append({"trainer.guidance_batch": False})
    codec = run.codec
    if isinstance(codec, options.WanVAE):
        if codec.precision == "fp32":
            changes.append({"codec.precision": "bf16"})
        best = last_stage(with_tile((run.with_values({"codec.tile": "auto"}), None), memory)).config["codec"]["tile"]
        if best != codec.tile:
            changes.append({"codec.tile": best})
    if can_wait(run) and run.trainer.offload == "none":
        changes.append({"trainer.offload": "group"})
    return changes


def can_wait(run: Run) -> bool:
    """Whether a run can have other values of `trainer.offload` and `trainer.storage`."""
    return run.text is not None and run.trainer.strategy == "single" and run.trainer.accelerator == "gpu"


def training_changes(run: Run) -> list[dict[str, Any]]:
    """Changes that reduce the memory of a training: first those with the same updates, then training fewer weights."""
    changes: list[dict[str, Any]] = []
    train = run.train
    if not train.checkpoint_activations:
        changes.append({"train.checkpoint_activations": True})
    if not run.trainer.offload_activations:
        changes.append({"trainer.offload_activations": True})
    if train.batch_size > 1:
        changes.append({"train.batch_size": 1, "train.accumulate": train.accumulate * train.batch_size})
    if train.trainable == "all" and isinstance(run.injector, options.Injector):
        changes.append({"train.trainable": "adapters"})
    if train.trainable == "all":
        changes.append({"train.trainable": "lora"})
    return changes


def nearest_setting(stages: Stages, changes: Changes, fits: Callable[[Stages], bool]) -> tuple[str, ...]:
    """The overrides of the nearest setting that fits; empty if there is none.

    Tries in this order: one of `changes`, then several; fewer frames, at least 49; a smaller scale; a smaller scale
    with fewer frames. Tries no smaller scale for stage I, which has the same size at every scale.
    """
    hires, anchor = stages
    if (values := _fitting_values(stages, changes, fits)) is not None:
        return values
    if hires is None or hires.scale.name not in SCALES:
        return ()
    for scale in SCALES[SCALES.index(hires.scale.name) + 1 :]:
        try:
            run = build(replace_overrides(hires.config.overrides, [f"scale={scale}"]))
            values = _fitting_values((run, None) if anchor is None else stages_of(run), changes, fits)
        except ConfigError:  # another override does not allow this scale
            continue
        if values is not None:
            return (f"scale={scale}", *values)
    return ()


def replace_overrides(overrides: Sequence[str], changes: Sequence[str]) -> list[str]:
    """`overrides` with `changes` in place of those with the same key; a new `scale=` also removes explicit sizes."""
    keys = {override_key(change) for change in changes}
    if "scale" in keys:
        keys |= {f"scale.{name}" for name in ("height", "width", "anchor_height", "anchor_width")}
    return [o for o in overrides if override_key(o) not in keys] + list(changes)


def _fitting_values(stages: Stages, changes: Changes, fits: Callable[[Stages], bool]) -> tuple[str, ...] | None:
    """The overrides that make the stages fit, with fewer frames if `changes` are not enough; None if nothing fits."""

    def fit(values: dict[str, Any]) -> bool:
        return _fits_with(values, stages, fits)

    run = last_stage(stages)
    possible = changes(run)
    # none, each one, each two, …; if two changes have the same key, the later one counts
    combinations = (subset for size in range(len(possible) + 1) for subset in itertools.combinations(possible, size))
    subsets = [{key: value for change in subset for key, value in change.items()} for subset in combinations]
    step = run.codec.frames_factor if isinstance(run.codec, options.WanVAE) else 1  # the codec needs whole steps
    counts = range(run.scale.frames - step, FEWEST_FRAMES - 1, -step)
    # fewer frames never need more memory
    most = bisect_left(counts, True, key=lambda n: fit({**subsets[-1], "scale.frames": n}))
    for frames in ({}, *({"scale.frames": n} for n in counts[most : most + 1])):
        for subset in subsets:
            values = {**subset, **frames}
            if fit(values):
                return tuple(f"{key}={str(value).lower()}" for key, value in values.items())
    return None


def _fits_with(values: dict[str, Any], stages: Stages, fits: Callable[[Stages], bool]) -> bool:
    """Whether the stages fit with other values of their keys; False if the values contradict each other."""
    try:
        hires, anchor = (run and _with_values(run, values) for run in stages)
    except ConfigError:
        return False
    return fits((hires, anchor))


def _with_values(run: Run, values: dict[str, Any]) -> Run:
    """The run with other values of its keys, without composing it again; `data.frames` follows `scale.frames`."""
    if "scale.frames" in values and "frames" in run.config["data"]:
        values = {**values, "data.frames": values["scale.frames"]}
    return assemble(run.config.with_values(values)) if values else run
