"""What a run needs, on the screen, before anything is loaded: tokens, FLOPs, memory by part, time; and whether it fits.

    pw plan scale=4k gpus=1x80GB [tflops=400] [for=generation] [json=plan.json] [any override of conf/]

gpus    NxMGB, or a card: 8x80GB, 1xH100, H200, A100-40. Without it nothing is judged.
tflops  what a device achieves on this; by default a share of the card's peak. Assumed, not measured.
dtype   of the networks' weights in generation, bf16 or fp32; by default bf16 on a GPU
for     generation, training or both

Exit status: 0 if what was asked for fits, 1 if not, 2 for a mistake in the call. The formulas are in `pw.cost.count`.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pw.cost import count as cost
from pw.cost.count import Generation, Moment, Precision, Training
from pw.nn import options
from pw.parallel.share import Share
from pw.run.build import Run, assemble, build
from pw.run.compose import ConfigError, override_key

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# card -> (GB, dense bf16 peak TFLOP/s; the vendor's data sheets). A GB is taken as 10^9 bytes, a little less than what
# the cards have.
CARDS: dict[str, tuple[int, float]] = {
    "A100-40": (40, 312),
    "A100": (80, 312),
    "H100": (80, 989),
    "H200": (141, 989),
    "B200": (180, 2250),
    "L40S": (48, 362),
    "RTX4090": (24, 165),
    "RTX5090": (32, 209),
}
# Share of that peak achieved. Assumed: the paper's own latencies are 341 TFLOP/s on a Hopper card (method-notes 8.2),
# its kernels with FlashAttention-2; 400 with torch's own. Older and smaller cards come nearer to their peaks.
SHARE, SHARE_AMPERE_ADA = 0.4, 0.55
UNNAMED = 400.0  # TFLOP/s of a card of which only the memory is known
CPU = 0.02  # TFLOP/s of a thread

OWN = ("gpus", "tflops", "json", "for", "dtype")
ASKED = {"generation": ("generation",), "training": ("training",), "both": ("generation", "training")}
SCALES = ("4k", "2k", "proxy")  # from large to small
FEWEST_FRAMES = 49  # offered instead of a smaller scale: two seconds
SHARDED = (2, 4, 8, 16, 32, 64)  # GPUs offered for training
DEVICES = 8  # of a machine

# (stage II, stage I) of a generation; None where it has none
Stages = tuple[Run | None, Run | None]
# what could be changed about a run: plain values by dotted path
Changes = Callable[[Run], list[dict[str, Any]]]


@dataclass(frozen=True)
class Gpus:
    """Devices to plan for: how many, bytes and TFLOP/s of each."""

    count: int
    memory: float
    tflops: float
    card: str

    def __str__(self) -> str:
        return f"{self.count}x{self.card}"


def parse_gpus(text: str) -> Gpus:
    """`8x80GB`, `1xH100`, `H200` -> Gpus. Raises ConfigError naming what is known."""
    found = re.fullmatch(r"(?:(\d+)x)?(.+)", text.strip(), re.IGNORECASE)
    count, card = (int(found[1] or 1), found[2]) if found else (1, text)
    if count < 1:
        raise ConfigError(f"gpus={text}: needs at least one GPU, e.g. gpus=1x{card}")
    size = re.fullmatch(r"(\d+(?:\.\d+)?)(GB|GiB|G)", card, re.IGNORECASE)
    if size:
        memory = float(size[1]) * (1 << 30 if size[2].lower() == "gib" else 1e9)
        if not memory:
            raise ConfigError(f"gpus={text}: a GPU without memory; e.g. gpus=1x80GB")
        return Gpus(count, memory, UNNAMED, card)
    names = {name.lower(): name for name in CARDS}
    names |= {f"{name}-{gb}".lower(): name for name, (gb, _) in CARDS.items()}
    name = names.get(card.lower().removesuffix("gb"))
    if name is None:
        near = difflib.get_close_matches(card.lower(), names, 1)
        hint = f"did you mean {names[near[0]]}? " if near else ""
        raise ConfigError(f"gpus={text}: {hint}known are {', '.join(CARDS)}, and memory as in gpus=1x80GB")
    gb, peak = CARDS[name]
    share = SHARE if name[:2] in ("H1", "H2", "B2") else SHARE_AMPERE_ADA
    return Gpus(count, gb * 1e9, round(peak * share, -1), name)


@dataclass(frozen=True)
class Plan:
    """All that is known before anything is loaded. `overrides` are the run's own."""

    overrides: tuple[str, ...]
    stages: Stages
    gpus: Gpus | None
    tflops: float
    tflops_from: str
    precision: Precision
    generation: Generation
    training: Training

    @property
    def run(self) -> Run:
        """The run that was asked for."""
        return _last(self.stages)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The stages there are, in their order."""
        return tuple(run for run in reversed(self.stages) if run is not None)


@dataclass(frozen=True)
class Verdict:
    """Whether generation or training fits, in a line, with the overrides that make it fit if it does not."""

    what: str
    fits: bool
    line: str
    remedy: tuple[str, ...] = ()


def stages(run: Run) -> Stages:
    """(stage II, stage I) of a generation: of a run of stage I itself alone; without injector, stage II alone."""
    if run.stage == "anchor":
        return None, run
    if run.injector is None:
        return run, None
    return run, run.anchor_run or build([*_shared(run.config.overrides), "stage=anchor"])


def _shared(overrides: Sequence[str]) -> list[str]:
    """What the first stage takes over: where and how large, not how the second one is trained or sampled."""
    groups = {"scale", "codec", "backbone", "text", "data", "trainer"}
    return [o for o in overrides if override_key(o).split(".")[0] in groups]


def generation_of(runs: Stages, precision: Precision | None = None) -> Generation:
    """The cost of one video by these stages."""
    return cost.generation_cost(*runs, precision=precision)


def amended(overrides: Sequence[str], changes: Sequence[str]) -> list[str]:
    """Overrides with some replaced; another `scale=` takes the sizes of its own frames."""
    keys = {override_key(change) for change in changes}
    if "scale" in keys:
        keys |= {f"scale.{name}" for name in ("height", "width", "anchor_height", "anchor_width")}
    return [o for o in overrides if override_key(o) not in keys] + list(changes)


def generation_changes(run: Run) -> list[dict[str, Any]]:
    """What makes a generation smaller and leaves the video as it is, but for rounding and the seams of tiles."""
    changes: list[dict[str, Any]] = []
    if run.trainer.guidance_batch:
        changes.append({"trainer.guidance_batch": False})
    codec = run.codec
    if isinstance(codec, options.WanVAE):
        if codec.precision == "fp32":
            changes.append({"codec.precision": "bf16"})
        for tile in (512, 256):
            if not codec.tile or codec.tile > tile:
                changes.append({"codec.tile": tile, "codec.overlap": tile // 4})
    return changes


def training_changes(run: Run) -> list[dict[str, Any]]:
    """What makes a training smaller: the same updates first, then fewer weights to train."""
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
    return changes


def nearest(runs: Stages, changes: Changes, fits: Callable[[Stages], bool]) -> tuple[str, ...]:
    """The overrides of the nearest setting that fits; none if there is none.

    In order: each of `changes`, and several of them; with as many frames as will do, 49 at least; with a smaller
    scale; with both.
    Each is a whole run, evaluated. Stage I is of one size at every scale, so there it is not offered.
    """
    hires = runs[0]
    scales = SCALES[SCALES.index(hires.scale.name) + 1 :] if hires is not None and hires.scale.name in SCALES else ()
    for scale, few_frames in [(None, False), (None, True), *itertools.product(scales, (False, True))]:
        base, first = runs, ()
        if hires is not None and scale is not None:
            first = (f"scale={scale}",)
            try:
                smaller = build(amended(hires.config.overrides, first))
                base = (smaller, None) if runs[1] is None else stages(smaller)
            except ConfigError:  # another override forbids this scale
                continue
        found = _smaller(base, changes, fits, few_frames=few_frames)
        if found is not None:
            return (*first, *(f"{key}={_text(value)}" for key, value in found.items()))
    return ()


def _smaller(
    runs: Stages, changes: Changes, fits: Callable[[Stages], bool], *, few_frames: bool
) -> dict[str, Any] | None:
    last = _last(runs)
    subsets = list(_subsets(changes(last)))
    for frames in _frames(last) if few_frames else (None,):
        length = {} if frames is None else {"scale.frames": frames}
        if frames is not None and not _fits(runs, {**subsets[-1], **length}, fits):  # not even with all of them
            continue
        for chosen in subsets:
            if _fits(runs, {**chosen, **length}, fits):
                return {**chosen, **length}
    return None


def _fits(runs: Stages, values: dict[str, Any], fits: Callable[[Stages], bool]) -> bool:
    """Whether the stages fit with these values set; not where those contradict each other."""
    try:
        hires, anchor = (run and _with_values(run, values) for run in runs)
    except ConfigError:
        return False
    return fits((hires, anchor))


def _last(runs: Stages) -> Run:
    """The stage that makes the video."""
    run = runs[0] or runs[1]
    assert run is not None, "nothing to generate"
    return run


def _subsets(changes: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Nothing, each, each two, …; of two changes of one key the later."""
    for size in range(len(changes) + 1):
        for chosen in itertools.combinations(changes, size):
            yield {key: value for change in chosen for key, value in change.items()}


def _frames(run: Run) -> Iterator[int]:
    """Fewer frames that the codec makes, from many to few."""
    step = run.codec.frames_factor if isinstance(run.codec, options.WanVAE) else 1
    yield from range(run.scale.frames - step, FEWEST_FRAMES - 1, -step)


def _with_values(run: Run, values: dict[str, Any]) -> Run:
    """The run with plain values set, quickly: `data.frames` follows `scale.frames`."""
    if "scale.frames" in values and "frames" in run.config["data"]:
        values = {**values, "data.frames": values["scale.frames"]}
    return assemble(run.config.with_values(values)) if values else run


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def judge_generation(runs: Stages, memory: float, card: str, precision: Precision | None, count: int = 1) -> Verdict:
    """Whether one video can be made on a device of `memory` bytes, of `count`; each network is alone on it."""
    worst = generation_of(runs, precision).worst
    if worst.fits(memory):
        return Verdict("generation", True, f"generation fits {card}: {_needs(worst)}")

    def fits(others: Stages) -> bool:
        return generation_of(others, precision).worst.fits(memory)

    remedy = nearest(runs, generation_changes, fits)
    if precision == "fp32" and generation_of(runs, "bf16").worst.fits(memory):
        remedy = ("dtype=bf16",)
    offers = [offer for offer in (remedy, together(runs, count, fits)) if offer]
    # first what leaves the video as it is
    offers.sort(key=lambda offer: any(override_key(o) in ("scale", "scale.frames") for o in offer))
    offer = "; or ".join(" ".join(offer) for offer in offers) or f"gpus=1x{_enough(worst)}GB"
    line = f"generation does not fit {card}: {_needs(worst)}; the nearest setting that does: {offer}"
    return Verdict("generation", False, line, offers[0] if offers else ())


def together(runs: Stages, count: int, fits: Callable[[Stages], bool]) -> tuple[str, ...]:
    """The overrides that split the networks over the devices of a machine, and if need be a video's tokens; none where
    there is one device, or where that does not fit either."""
    run = _last(runs)
    if not 1 < count <= DEVICES or run.trainer.split > 1:
        return ()
    for context in (1, *contexts(run, count)):
        words = ("trainer=fsdp", f"trainer.devices={count}", *([f"trainer.context={context}"] if context > 1 else []))
        if fits(stages(build(amended(run.config.overrides, words)))):
            return words
    return ()


def judge_training(run: Run, made: Training, gpus: Gpus) -> Verdict:
    """Whether a training fits on these devices."""
    worst = made.worst
    note = f", sharded over {gpus.count}: {sharding(run, gpus.count)}" if gpus.count > 1 else ""
    if worst.fits(gpus.memory):
        return Verdict("training", True, f"training fits {gpus}: {_needs(worst)}{note}")

    def fits(runs: Stages) -> bool:
        return cost.training_cost(_last(runs), gpus.count).worst.fits(gpus.memory)

    remedy = nearest((None, run) if run.stage == "anchor" else (run, None), training_changes, fits)
    offers = [" ".join(remedy)] if remedy else []
    for context in contexts(run, gpus.count):
        if cost.training_cost(run, gpus.count, context).worst.fits(gpus.memory):
            offers.insert(0, f"each clip's tokens shared by {context} ({sharding(run, gpus.count, context)})")
            break
    more = [n for n in SHARDED if n > gpus.count]
    if found := enough_devices(run, more, {gpus.card: gpus.memory}) or (
        None if offers else enough_devices(run, (1, *SHARDED), {card: gb * 1e9 for card, (gb, _) in CARDS.items()})
    ):
        count, card, context = found
        how = f", sharded ({sharding(run, count, context)})" if count > 1 else ""
        offers.append(f"gpus={count}x{card}{how}")
    offers = offers or [f"gpus={gpus.count}x{_enough(worst)}GB"]
    line = f"training does not fit {gpus}: {_needs(worst)}; the nearest setting that does: {'; or '.join(offers)}"
    return Verdict("training", False, line, remedy)


def enough_devices(run: Run, counts: Sequence[int], cards: Mapping[str, float]) -> tuple[int, str, int] | None:
    """(devices, card, how many share the tokens of a clip) of a training that fits: as few as do, of as little memory.

    cards  bytes of each
    """
    for count in counts:
        for card, memory in sorted(cards.items(), key=lambda item: item[1]):
            for context in (run.trainer.context, *contexts(run, count)):
                if count % context == 0 and cost.training_cost(run, count, context).worst.fits(memory):
                    return count, card, context
    return None


def contexts(run: Run, count: int) -> list[int]:
    """By how many of so many devices, more than do so now, the tokens of a clip could be shared, of either stage."""
    both = (stage for stage in stages(run) if stage is not None)
    lengths = (cost.tokens(cost.stage_latent(stage), stage.backbone.patch_size) for stage in both)
    shared = (count // nodes_of(count), *lengths, run.backbone.num_attention_heads)
    return [n for n in range(run.trainer.context + 1, shared[0] + 1) if not any(whole % n for whole in shared)]


def nodes_of(count: int) -> int:
    """Machines of at most eight devices that make so many, alike in all."""
    return next(n for n in range(math.ceil(count / DEVICES), count + 1) if count % n == 0)


def sharding(run: Run, count: int, context: int | None = None) -> str:
    """The overrides that split a training over so many devices, at most eight to a machine."""
    nodes, context = nodes_of(count), context or run.trainer.context
    words = f"trainer=fsdp trainer.devices={count // nodes}" + (f" trainer.nodes={nodes}" if nodes > 1 else "")
    words += f" trainer.context={context}" if context > 1 else ""
    try:
        Share.of(run.train, 0, count // context)
    except ConfigError:  # fewer clips in an update than devices
        words += f" train.accumulate={count // context}, which makes updates larger"
    return words


def _needs(moment: Moment) -> str:
    return f"{moment.name} needs {gigabytes(moment.needs)}, most of it {moment.largest.name}"


def _enough(moment: Moment) -> int:
    return math.ceil(moment.needs / 1e9)


def check_generation(hires: Run | None, anchor: Run | None, memory: float, count: int = 1) -> None:
    """Raises ValueError when a device of `memory` bytes cannot make a video: what takes it, and what would do.

    count  devices of the machine
    """
    verdict = judge_generation((hires, anchor), memory, gigabytes(memory), None, count)
    if not verdict.fits:
        raise ValueError(verdict.line)


def verdicts(plan: Plan, asked: Sequence[str]) -> list[Verdict]:
    """One for each thing asked for; none without GPUs to judge by."""
    if plan.gpus is None:
        return []
    gpus, split = plan.gpus, plan.run.trainer.split
    judged = {
        "generation": lambda: judge_generation(
            plan.stages, gpus.memory, f"{split}x{gpus.card}", plan.precision, gpus.count
        ),
        "training": lambda: judge_training(plan.run, plan.training, gpus),
    }
    return [judged[what]() for what in asked]


def gigabytes(count: float) -> str:
    """12.3 GB, or MB and kB when there are few."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def operations(count: float) -> str:
    """3 digits and P, T, G or M: of FLOP."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if count >= size:
            return f"{count / size:,.{max(0, 2 - int(math.log10(count / size)))}f} {unit}"
    return f"{count / 1e6:.3g} M"


def duration(seconds: float) -> str:
    """0.12 s, 98 s, 8.4 min, 34.5 h."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def stage_table(plan: Plan) -> Table:
    """What each stage's network sees, and what one evaluation of it takes."""
    columns = (f"stage {'I' if run.stage == 'anchor' else 'II'}" for run in plan.runs)
    table = _table("One evaluation of the network", "", *columns)
    rows: dict[str, list[str]] = {}
    for run in plan.runs:
        latent, scale = cost.stage_latent(run), run.scale
        length = cost.tokens(latent, run.backbone.patch_size)
        flops = cost.forward_flops(run.backbone, length, run.backbone.text_tokens, run.injector)
        height, width = scale.anchor_size if run.stage == "anchor" else scale.size
        cells = {
            "video, px and frames": f"{width} x {height} x {scale.frames}",
            "latent, C F h w": " ".join(map(str, latent)),
            "tokens": f"{length:,}",
            "parameters": f"{cost.parameters(run.backbone, run.injector):,}",
            "linear layers, FLOP": operations(flops.linear),
            "self-attention": operations(flops.self_attention),
            "cross-attention": operations(flops.cross_attention),
            "injector": operations(flops.injector) if flops.injector else "–",
            "embeddings": operations(flops.embeddings),
            "total": operations(flops.total),
        }
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)
    for name, cells in rows.items():
        table.add_row(name, *cells, style="bold" if name == "total" else None)
    return table


def moment_rows(table: Table, moments: Sequence[Moment], memory: float | None) -> None:
    """Memory by part, a column per moment, and where the numbers come from in the last one."""
    names = dict.fromkeys(part.name for moment in moments for part in moment.parts)
    for name in names:
        parts = [next((part for part in moment.parts if part.name == name), None) for moment in moments]
        sources = dict.fromkeys(part.source for part in parts if part is not None and part.bytes)
        if sources:
            cells = (gigabytes(part.bytes) if part is not None and part.bytes else "–" for part in parts)
            table.add_row(name, *cells, ", ".join(sources))
    table.add_row("peak", *(gigabytes(m.bytes) for m in moments), "", style="bold")
    if memory is not None:
        margin = f"+ {cost.MARGIN:.0%} + 1 GiB: assumed"
        table.add_row("needed", *(gigabytes(m.needs) for m in moments), margin)
        table.add_row("fits", *("[green]yes[/]" if m.fits(memory) else "[red]no[/]" for m in moments), "")


def generation_table(plan: Plan) -> Table:
    """Phases of one video."""
    phases = plan.generation.phases
    trainer = plan.run.trainer
    title = _generation_title(trainer.split, trainer.context)
    table = _table(title, "", *(p.name for p in phases), "from")
    table.columns[-1].justify = "left"
    table.add_row("evaluations", *(str(p.evaluations or "–") for p in phases), "")
    table.add_row("FLOP", *(operations(p.flops.total) if p.flops.total else "–" for p in phases), "counted")
    times = (duration(seconds(p, plan.tflops)) if p.flops.total else "–" for p in phases)
    table.add_row("time", *times, f"at {plan.tflops:g} TFLOP/s")
    moment_rows(table, phases, None if plan.gpus is None else plan.gpus.memory)
    return table


def _generation_title(split: int, context: int) -> str:
    if split == 1:
        return "Generation of one video, on one device"
    if context == split:
        return f"Generation of one video, on each of {split} devices that make it together"
    together = f"; {context} make a video together" if context > 1 else ""
    return f"Generation of one video, on each of {split} devices that split the networks{together}"


def training_table(plan: Plan) -> Table:
    """Moments of an update."""
    made = plan.training
    title = f"Training of stage {'I' if plan.run.stage == 'anchor' else 'II'}, "
    title += f"memory on each of {made.gpus} devices" if made.gpus > 1 else "memory on one device"
    table = _table(title, "", *(moment.name for moment in made.moments), "from")
    table.columns[-1].justify = "left"
    moment_rows(table, made.moments, None if plan.gpus is None else plan.gpus.memory)
    return table


def training_times(plan: Plan) -> Table:
    """FLOPs and time of the updates, and of all of them."""
    made, tflops = plan.training, plan.tflops
    table = _table(f"Training, {made.clips} clips an update", "", "updates", "FLOP each", "time each", "time")
    kinds = {"flow": (made.updates - made.consistency_updates, made.flow)}
    if made.consistency_updates:
        kinds["consistency"] = (made.consistency_updates, made.consistency)
    for name, (count, flops) in kinds.items():
        each = made.seconds(flops, tflops)
        table.add_row(name, f"{count:,.0f}", operations(flops), duration(each), duration(each * count))
    if made.encode:
        each = made.seconds(made.encode, tflops)
        total = duration(each * made.updates)
        table.add_row("encoding therein", f"{made.updates:,}", operations(made.encode), duration(each), total)
    table.add_row(
        *("all", f"{made.updates:,}", "", "", duration(made.seconds(made.flops, tflops))),
        style="bold",
    )
    return table


def seconds(phase: Moment, tflops: float) -> float:
    """Of a phase of generation, on the devices that share it."""
    return phase.flops.total / phase.devices / (tflops * 1e12)


def show(plan: Plan, asked: Sequence[str], found: Sequence[Verdict], console: Console) -> None:
    """Everything on the screen."""
    run, made = plan.run, plan.training
    device = "no GPU given, so nothing is judged" if plan.gpus is None else f"gpus={plan.gpus}"
    console.print(f"{' '.join(plan.overrides) or 'scale=tiny'}  |  {device}  |  {plan.tflops_from}")
    console.print()
    console.print(stage_table(plan))
    console.print()
    if "generation" in asked:
        console.print(generation_table(plan))
        total = duration(sum(seconds(phase, plan.tflops) for phase in plan.generation.phases))
        host = ", ".join(f"{part.name} {gigabytes(part.bytes)}" for part in plan.generation.host)
        console.print(f"{total} a video in all, {plan.precision} weights. CPU memory: {host}.")
        if plan.gpus is not None and plan.gpus.count > 1:
            console.print(_makers(plan.gpus.count, run.trainer.context))
        console.print()
    if "training" in asked:
        console.print(training_times(plan))
        if plan.gpus is not None:
            time = made.seconds(made.flops, plan.tflops)
            console.print(f"{duration(time)} on {plan.gpus}: {time / 3600 * made.gpus:,.1f} GPU-hours.")
        if not cost.reads_pixels(run):
            console.print("data=none: latents made beforehand; encoding clips as they are read comes on top.")
        console.print()
        console.print(training_table(plan))
        host = ", ".join(f"{part.name} {gigabytes(part.bytes)}" for part in made.host)
        trained = f"{made.trained_parameters:,} weights are trained (train.trainable={run.train.trainable})."
        console.print(f"{trained} CPU memory{' for each device' if made.gpus > 1 else ''}: {host}.")
        if run.text is not None:
            batch, memory = run.sampling.batch_size, gigabytes(cost.sampling_memory(run))
            console.print(f"Sampled to be scored, {batch} at once, its clips take {memory} of CPU memory.")
        console.print()
    console.print(
        "from: counted, from shapes; fake tensors, most alive at once when the real modules run without data; "
        "assumed. No memory or time here was measured on a GPU."
    )
    for verdict in found:
        console.print(verdict.line, style="green" if verdict.fits else "red")


def _makers(gpus: int, context: int) -> str:
    if context == gpus:
        return f"The {gpus} GPUs make a video together."
    if context > 1:
        return f"Of the {gpus} GPUs each {context} make a video of their own."
    return f"Each of the {gpus} GPUs makes a video of its own."


def as_json(plan: Plan, found: Sequence[Verdict]) -> dict[str, Any]:
    """The plan as plain data: bytes, FLOPs, seconds."""
    memory = None if plan.gpus is None else plan.gpus.memory

    def moment(of: Moment) -> dict[str, Any]:
        fits = None if memory is None else of.fits(memory)
        time = {"seconds": seconds(of, plan.tflops)} if of.flops.total else {}
        return dataclasses.asdict(of) | {"bytes": of.bytes, "needs": of.needs, "fits": fits} | time

    training = dataclasses.asdict(plan.training) | {
        "moments": [moment(m) for m in plan.training.moments],
        "flops": plan.training.flops,
        "seconds": plan.training.seconds(plan.training.flops, plan.tflops),
    }
    return {
        "overrides": plan.overrides,
        "gpus": None if plan.gpus is None else dataclasses.asdict(plan.gpus),
        "tflops": plan.tflops,
        "precision": plan.precision,
        "generation": {
            "phases": [moment(p) for p in plan.generation.phases],
            "host": [dataclasses.asdict(part) for part in plan.generation.host],
            "flops": plan.generation.flops,
            "seconds": sum(seconds(phase, plan.tflops) for phase in plan.generation.phases),
        },
        "training": training,
        "verdicts": [dataclasses.asdict(verdict) for verdict in found],
    }


def write_json(path: Path, values: Any) -> None:
    """Write it whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(values, indent=1) + "\n")
    os.replace(partial, path)


def make_plan(overrides: Sequence[str], gpus: Gpus | None, tflops: float | None, precision: Precision | None) -> Plan:
    """Everything about a run of these overrides. Raises ConfigError by key."""
    run = build(overrides)
    if tflops is not None:
        said = f"{tflops:g} TFLOP/s"
    elif gpus is not None:
        tflops, said = gpus.tflops, f"{gpus.tflops:g} TFLOP/s assumed (tflops= to set it)"
    else:
        tflops = UNNAMED if run.trainer.accelerator == "gpu" else CPU * run.trainer.threads
        said = f"{tflops:g} TFLOP/s assumed (tflops= to set it)"
    both, count = stages(run), 1 if gpus is None else gpus.count
    if gpus is not None and count % run.trainer.context:
        raise ConfigError(f"trainer.context={run.trainer.context}: gpus={gpus} are not a multiple of it")
    return Plan(
        overrides=tuple(overrides),
        stages=both,
        gpus=gpus,
        tflops=tflops,
        tflops_from=said,
        precision=precision or cost.loaded_precision(run),
        generation=generation_of(both, precision),
        training=cost.training_cost(run, count),
    )


def command_line(arguments: Sequence[str]) -> tuple[Plan, tuple[str, ...], Path | None]:
    """(plan, what is asked for, where JSON goes) of a command. Raises ConfigError by key."""
    own = {k: v for k, _, v in (word.partition("=") for word in arguments) if k in OWN}
    gpus = parse_gpus(own["gpus"]) if "gpus" in own else None
    tflops = _positive("tflops", own["tflops"]) if "tflops" in own else None
    asked, dtype = own.get("for", "both"), own.get("dtype")
    if asked not in ASKED:
        raise ConfigError(f"for={asked}: one of {', '.join(ASKED)}")
    if dtype is not None and dtype not in cost.BYTES:
        raise ConfigError(f"dtype={dtype}: one of {', '.join(cost.BYTES)}")
    precision: Precision | None = None if dtype is None else ("bf16" if dtype == "bf16" else "fp32")
    plan = make_plan([word for word in arguments if word.partition("=")[0] not in OWN], gpus, tflops, precision)
    return plan, ASKED[asked], Path(own["json"]).expanduser() if "json" in own else None


def _positive(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"{key}={text}: wants a positive number, e.g. {key}=400")
    return value


def main(arguments: list[str]) -> int:
    """Print the plan."""
    from rich.console import Console

    try:
        plan, asked, path = command_line(arguments)
        found = verdicts(plan, asked)
        if path is not None:
            write_json(path, as_json(plan, found))
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 120  # a file or a pipe has no width of its own
    show(plan, asked, found, console)
    return 0 if all(verdict.fits for verdict in found) else 1
