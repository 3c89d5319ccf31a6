"""Whether a generation or a training fits the devices, and the overrides or devices that do if not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pw.cost.devices import CARDS, DEVICES, Gpus, contexts, sharding
from pw.cost.generation_cost import Stages, generation_cost, last_stage, stages_of
from pw.cost.memory import Moment, Precision
from pw.cost.nearest import amended, generation_changes, nearest, training_changes
from pw.cost.training_cost import TrainingCost, training_cost
from pw.io.files import human_size
from pw.run.build import Run, build
from pw.run.compose import override_key

SHARDED = (2, 4, 8, 16, 32, 64)  # numbers of GPUs offered for training


@dataclass(frozen=True)
class Verdict:
    """Whether generation or training fits, said in a line; `remedy` holds the overrides that would make it fit."""

    what: str
    fits: bool
    line: str
    remedy: tuple[str, ...] = ()


def judge_generation(stages: Stages, memory: float, card: str, precision: Precision | None, count: int = 1) -> Verdict:
    """Whether one video can be made on one of `count` devices, each of `memory` bytes and called `card`."""
    worst = generation_cost(*stages, precision=precision).worst
    if worst.fits(memory):
        return Verdict("generation", True, f"generation fits {card}: {_needs(worst)}")

    def fits(others: Stages) -> bool:
        return generation_cost(*others, precision=precision).worst.fits(memory)

    remedy = nearest(stages, generation_changes, fits)
    if precision == "fp32" and generation_cost(*stages, precision="bf16").worst.fits(memory):
        remedy = ("dtype=bf16",)
    offers = [offer for offer in (remedy, together(stages, count, fits)) if offer]
    # first the one that does not change the video
    offers.sort(key=lambda offer: any(override_key(o) in ("scale", "scale.frames") for o in offer))
    offer = "; or ".join(" ".join(offer) for offer in offers) or f"gpus=1x{_enough(worst)}GB"
    line = f"generation does not fit {card}: {_needs(worst)}; the nearest setting that does: {offer}"
    return Verdict("generation", False, line, offers[0] if offers else ())


def together(stages: Stages, count: int, fits: Callable[[Stages], bool]) -> tuple[str, ...]:
    """The overrides that split the networks, and if need be a video's tokens, over the devices of a machine; empty
    where there is one device, or where that does not fit either."""
    run = last_stage(stages)
    if not 1 < count <= DEVICES or run.trainer.split > 1:
        return ()
    for context in (1, *contexts(run, count)):
        words = ("trainer=fsdp", f"trainer.devices={count}", *([f"trainer.context={context}"] if context > 1 else []))
        if fits(stages_of(build(amended(run.config.overrides, words)))):
            return words
    return ()


def judge_training(run: Run, training: TrainingCost, gpus: Gpus) -> Verdict:
    """Whether a training fits these devices."""
    worst = training.worst
    note = f", sharded over {gpus.count}: {sharding(run, gpus.count)}" if gpus.count > 1 else ""
    if worst.fits(gpus.memory):
        return Verdict("training", True, f"training fits {gpus}: {_needs(worst)}{note}")

    def fits(stages: Stages) -> bool:
        return training_cost(last_stage(stages), gpus.count).worst.fits(gpus.memory)

    remedy = nearest((None, run) if run.stage == "anchor" else (run, None), training_changes, fits)
    offers = [" ".join(remedy)] if remedy else []
    for context in contexts(run, gpus.count):
        if training_cost(run, gpus.count, context).worst.fits(gpus.memory):
            offers.insert(0, f"each clip's tokens shared by {context} ({sharding(run, gpus.count, context)})")
            break
    more = enough_devices(run, [n for n in SHARDED if n > gpus.count], {gpus.card: gpus.memory})
    if more is None and not offers:
        more = enough_devices(run, (1, *SHARDED), {card: gb * 1e9 for card, (gb, _) in CARDS.items()})
    if more is not None:
        count, card, context = more
        how = f", sharded ({sharding(run, count, context)})" if count > 1 else ""
        offers.append(f"gpus={count}x{card}{how}")
    offers = offers or [f"gpus={gpus.count}x{_enough(worst)}GB"]
    line = f"training does not fit {gpus}: {_needs(worst)}; the nearest setting that does: {'; or '.join(offers)}"
    return Verdict("training", False, line, remedy)


def enough_devices(run: Run, counts: Sequence[int], cards: Mapping[str, float]) -> tuple[int, str, int] | None:
    """The fewest and smallest devices on which a training fits: (their number, card, how many share a clip's tokens).

    cards  card -> its bytes
    """
    for count in counts:
        for card, memory in sorted(cards.items(), key=lambda item: item[1]):
            for context in (run.trainer.context, *contexts(run, count)):
                if count % context == 0 and training_cost(run, count, context).worst.fits(memory):
                    return count, card, context
    return None


def _needs(moment: Moment) -> str:
    return f"{moment.name} needs {human_size(moment.needs)}, most of it {moment.largest.name}"


def _enough(moment: Moment) -> int:
    return math.ceil(moment.needs / 1e9)


def check_generation(hires: Run | None, anchor: Run | None, memory: float, count: int = 1) -> None:
    """Raises ValueError when a device of `memory` bytes cannot make a video, with the nearest setting that fits.

    count  devices of the machine
    """
    verdict = judge_generation((hires, anchor), memory, human_size(memory), None, count)
    if not verdict.fits:
        raise ValueError(verdict.line)
