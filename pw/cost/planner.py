"""`pw plan`: FLOPs, memory and time of a run before anything is loaded, and whether it fits the GPUs.

    pw plan scale=4k gpus=1x80GB [tflops=400] [for=generation] [json=plan.json] [any override of conf/]

Does not import torch. Exit status: 0 for an answer, also for one that nothing fits, unless `strict=true` (1 then);
2 for invalid words.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pw.cost import counts
from pw.cost.counts import MARGIN, Moment, Precision
from pw.cost.generation_cost import (
    HOST_RATE,
    GenerationCost,
    Stages,
    generation_cost,
    last_stage,
    offloads,
    sampling_memory,
    stages_of,
    with_tile,
)
from pw.cost.rates import Gpus, Rates, parse_gpus, rates_of, rates_of_gpus, uniform_rates
from pw.cost.training_cost import TrainingCost, reads_pixels, training_cost
from pw.cost.verdicts import Verdict, judge_generation, judge_training
from pw.io.arguments import Command, ConfigError, option
from pw.io.console import console
from pw.io.files import human_size, writable_file, write_json
from pw.io.progress import duration
from pw.nn import options as codecs
from pw.run.build import Run, build
from pw.run.cross_checks import check_trains

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MOST_TFLOPS = 100_000  # of a device


def _tflops(text: str) -> float:
    try:
        value = float(text) if text.isascii() else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value <= MOST_TFLOPS:
        raise ValueError(f"expected a positive number up to {MOST_TFLOPS:,}, e.g. tflops=400")
    return value


def _json_file(text: str) -> Path:
    if not (folder := Path(text).expanduser().absolute().parent).is_dir():
        raise ConfigError(f"json={text}: {folder} is no folder; make it first, or name a file elsewhere")
    return writable_file("json")(text)


@dataclass(frozen=True)
class PlanOptions:
    """The options of `pw plan`."""

    gpus: Gpus | None = option(
        None, "NxMGB, or a card: 8x80GB, 1xH100, A100-40; without it no verdict", read=parse_gpus
    )
    tflops: float | None = option(
        None,
        "what a GPU achieves in every phase; by default what `pw bench` measured on the card, else a share of its peak",
        read=_tflops,
    )
    what: Literal["generation", "training", "both"] = option("both", "what to plan", key="for")
    dtype: Precision | None = option(None, "of the networks' weights in generation; by default bf16 on a GPU")
    json: Path | None = option(None, "a file for the plan as JSON", read=_json_file)
    strict: bool = option(False, "exit with status 1 when something does not fit")
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class CostPlan:
    """The content of `pw plan`. rates: of a device, from the options, measured or assumed."""

    options: PlanOptions
    run: Run
    stages: Stages
    rates: Rates
    generation: GenerationCost
    training: TrainingCost


def make_plan(options: PlanOptions) -> CostPlan:
    """The plan of a run. Raises ConfigError with the key."""
    run, gpus = build(options.overrides), options.gpus
    if options.what != "generation":
        check_trains(run, "set for=generation")
    stages, count = stages_of(run), run.trainer.processes if gpus is None else gpus.count
    if gpus is not None and count % run.trainer.context:
        raise ConfigError(f"trainer.context={run.trainer.context}: gpus={gpus} are not a multiple of it")
    if gpus is not None and run.trainer.processes > gpus.count:
        devices = f"trainer.devices={run.trainer.devices} trainer.nodes={run.trainer.nodes}"
        raise ConfigError(f"{devices}: gpus={gpus} are fewer; set trainer.devices={gpus.count}, or more gpus=")
    if options.tflops is not None:
        rates = uniform_rates(options.tflops)
    else:
        rates = rates_of(run) if gpus is None else rates_of_gpus(gpus)
    if gpus is not None:
        stages = with_tile(stages, gpus.memory)
    generation = generation_cost(*stages, precision=options.dtype)
    return CostPlan(options, run, stages, rates, generation, training_cost(run, count))


def verdicts(plan: CostPlan) -> list[Verdict]:
    """A verdict on generation, on training, or on both; none without `gpus`."""
    gpus, what = plan.options.gpus, plan.options.what
    if gpus is None:
        return []
    results = []
    if what != "training":
        card = f"{plan.run.trainer.split}x{gpus.card}"
        results.append(judge_generation(plan.stages, gpus.memory, card, plan.generation.precision, gpus.count))
    if what != "generation":
        results.append(judge_training(plan.run, plan.training, gpus))
    return results


def as_json(plan: CostPlan, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The plan as plain data: bytes, FLOPs, seconds."""
    gpus = plan.options.gpus

    def moment(phase: Moment) -> dict[str, Any]:
        fits = None if gpus is None else phase.fits(gpus.memory)
        time = {"seconds": phase.seconds(plan.rates)} if phase.flops.total else {}
        return dataclasses.asdict(phase) | {"bytes": phase.bytes, "needs": phase.needs, "fits": fits} | time

    training = plan.training
    return {
        "fits": all(verdict.fits for verdict in verdicts) if verdicts else None,
        "overrides": plan.options.overrides,
        "gpus": None if gpus is None else dataclasses.asdict(gpus),
        "tflops": plan.options.tflops,
        "rates": dataclasses.asdict(plan.rates) | {"measured": sorted(plan.rates.measured)},
        "precision": plan.generation.precision,
        "generation": {
            "phases": [moment(p) for p in plan.generation.phases],
            "host": [dataclasses.asdict(part) for part in plan.generation.host],
            "flops": plan.generation.flops,
            "seconds": plan.generation.seconds(plan.rates),
            "file_seconds": plan.rates.file_seconds(plan.generation.pixels),
            "tile": getattr(last_stage(plan.stages).codec, "tile", None),
        },
        "training": dataclasses.asdict(training)
        | {
            "moments": [moment(m) for m in training.moments],
            "flops": training.flops.total,
            "seconds": training.seconds(training.flops, plan.rates),
        },
        "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
    }


# ---- output


def show(plan: CostPlan, verdicts: Sequence[Verdict], console: Console) -> None:
    """Print the tables of generation and training, as selected by `for=`, and the verdicts."""
    options = plan.options
    device = "no GPU given, so no verdict" if options.gpus is None else f"gpus={options.gpus}"
    rates = f"{plan.rates} (tflops= to set it)" if options.tflops is None else f"{options.tflops:g} TFLOP/s"
    console.print(f"{' '.join(options.overrides) or 'scale=tiny'}  |  {device}  |  {rates}")
    console.print()
    console.print(stage_table(plan))
    console.print()
    if options.what != "training":
        _show_generation(plan, console)
    if options.what != "generation":
        _show_training(plan, console)
    console.print(
        "from: counted, from shapes; fake tensors, most alive at once when the real modules run without data; "
        "assumed. No memory or time here was measured on a GPU."
    )
    for verdict in verdicts:
        word, style = ("yes", "green") if verdict.fits else ("no", "red")
        console.print(f"fits: {word}. {verdict.line}", style=style, markup=False)


def _show_generation(plan: CostPlan, console: Console) -> None:
    console.print(generation_table(plan))
    total, file = plan.generation.seconds(plan.rates), plan.rates.file_seconds(plan.generation.pixels)
    host = ", ".join(f"{part.name} {human_size(part.bytes)}" for part in plan.generation.host)
    codec = last_stage(plan.stages).codec
    tile = f", tiles of {codec.side} px" if isinstance(codec, codecs.WanVAE) and codec.side else ""
    console.print(
        f"{duration(total)} a video in all, {plan.generation.precision} weights{tile}; then {duration(file)} of a CPU "
        f"core for its file, at {plan.rates.file:g} Mpx/s. CPU memory: {host}."
    )
    if offloads(plan.run):
        console.print(f"Blocks come from CPU memory at {HOST_RATE / 1e9:g} GB/s (assumed), each while one computes.")
    gpus, context = plan.options.gpus, plan.run.trainer.context
    if gpus is not None and gpus.count > 1:
        if context == gpus.count:
            console.print(f"The {gpus.count} GPUs make a video together.")
        elif context > 1:
            console.print(f"Of the {gpus.count} GPUs each {context} make a video of their own.")
        else:
            console.print(f"Each of the {gpus.count} GPUs makes a video of its own.")
    console.print()


def _show_training(plan: CostPlan, console: Console) -> None:
    run, training, gpus = plan.run, plan.training, plan.options.gpus
    console.print(training_times(plan))
    if training.gpus > 1 or gpus is not None:
        time = training.seconds(training.flops, plan.rates)
        console.print(f"{duration(time)} on {gpus or training.gpus}: {time / 3600 * training.gpus:,.1f} GPU-hours.")
    if run.mix is not None:
        shares = ", ".join(f"{share:.0%} {size}" for size, share in zip(run.mix.buckets, run.mix.shares, strict=True))
        console.print(f"Buckets: {shares}. FLOPs are their mean, memory is that of the largest.")
    if not reads_pixels(run):
        console.print("data=none: latents made beforehand; encoding clips as they are read comes on top.")
    console.print()
    place = f"each of {training.gpus} devices" if training.gpus > 1 else "one device"
    console.print(moment_table(plan, f"Training of {counts.stage_name(run)}, memory on {place}", training.moments))
    host = ", ".join(f"{part.name} {human_size(part.bytes)}" for part in training.host)
    trained_text = f"{training.trained_parameters:,} weights are trained (train.trainable={run.train.trainable})."
    console.print(f"{trained_text} CPU memory{' for each device' if training.gpus > 1 else ''}: {host}.")
    if run.text is not None:
        batch, memory = run.sampling.batch_size, human_size(sampling_memory(run))
        console.print(f"Sampled to be scored, {batch} at once, its clips take {memory} of CPU memory.")
    console.print()


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        is_text = column in ("", "from")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    return table


def stage_table(plan: CostPlan) -> Table:
    """The input of each stage's network, and the FLOPs of one evaluation."""
    runs = [run for run in reversed(plan.stages) if run is not None]
    flops = [counts.stage_flops(run) for run in runs]
    table = _table("One evaluation of the network", "", *map(counts.stage_name, runs))
    videos = ((*counts.stage_size(run), run.scale.frames) for run in runs)
    table.add_row("video, px and frames", *(f"{width} x {height} x {frames}" for height, width, frames in videos))
    table.add_row("latent, C F h w", *(" ".join(map(str, counts.stage_latent(run))) for run in runs))
    table.add_row("tokens", *(f"{counts.stage_tokens(run):,}" for run in runs))
    table.add_row("parameters", *(f"{counts.parameters(run.backbone, run.injector):,}" for run in runs))
    table.add_row("linear layers, FLOP", *(operations(count.linear) for count in flops))
    table.add_row("self-attention", *(operations(count.self_attention) for count in flops))
    if any(count.choice_of_blocks for count in flops):
        table.add_row("choice of its blocks", *(operations(count.choice_of_blocks) for count in flops))
    table.add_row("cross-attention", *(operations(count.cross_attention) for count in flops))
    table.add_row("injector", *(operations(count.injector) for count in flops))
    table.add_row("embeddings", *(operations(count.embeddings) for count in flops))
    table.add_row("total", *(operations(count.total) for count in flops), style="bold")
    return table


def operations(count: float) -> str:
    """FLOPs with three digits and P, T, G or M; a dash for 0."""
    if not count:
        return "–"
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if count >= size:
            return f"{count / size:,.{max(0, 2 - int(math.log10(count / size)))}f} {unit}"
    return f"{count / 1e6:.3g} M"


def generation_table(plan: CostPlan) -> Table:
    """The phases of one video: evaluations, FLOPs, time and memory."""
    phases, trainer = plan.generation.phases, plan.run.trainer
    place = "on one device"
    if trainer.split > 1:
        place = f"on each of {trainer.split} devices that "
        place += "make it together" if trainer.context == trainer.split else "split the networks"
        place += f"; {trainer.context} make a video together" if 1 < trainer.context < trainer.split else ""
    times = [duration(p.seconds(plan.rates)) if p.flops.total else "–" for p in phases]
    rates = [f"{p.flops.total / plan.rates.seconds(p.flops) / 1e12:.3g}" if p.flops.total else "–" for p in phases]
    assumed = [p.name for p in phases if "assumed" in plan.rates.source(p.flops)]
    source = "assumed" if len(assumed) == sum(p.flops.total > 0 for p in phases) else "measured"
    source += f"; {', '.join(assumed)} assumed" if assumed and source == "measured" else ""
    rows = [
        ("evaluations", *(str(p.evaluations or "–") for p in phases), ""),
        ("FLOP", *(operations(p.flops.total) for p in phases), "counted"),
        ("time", *times, ""),
        ("TFLOP/s", *rates, source if plan.options.tflops is None else "given"),
    ]
    return moment_table(plan, f"Generation of one video, {place}", phases, rows)


def moment_table(plan: CostPlan, title: str, moments: Sequence[Moment], rows: Sequence[tuple[str, ...]] = ()) -> Table:
    """Memory by part, below `rows`: a column for each moment, and the source of the numbers in the last column."""
    table = _table(title, "", *(moment.name for moment in moments), "from")
    for row in rows:
        table.add_row(*row)
    for name in dict.fromkeys(part.name for moment in moments for part in moment.parts):
        parts = [next((part for part in moment.parts if part.name == name and part.bytes), None) for moment in moments]
        sources = dict.fromkeys(part.source for part in parts if part is not None)
        if sources:
            cells = (human_size(part.bytes) if part is not None else "–" for part in parts)
            table.add_row(name, *cells, ", ".join(sources))
    table.add_row("peak", *(human_size(m.bytes) for m in moments), "", style="bold")
    if gpus := plan.options.gpus:
        table.add_row("needed", *(human_size(m.needs) for m in moments), f"+ {MARGIN:.0%} + 1 GiB: assumed")
        table.add_row("fits", *("[green]yes[/]" if m.fits(gpus.memory) else "[red]no[/]" for m in moments), "")
    return table


def training_times(plan: CostPlan) -> Table:
    """FLOPs and time of each kind of update, and of all updates."""
    training = plan.training
    table = _table(f"Training, {training.clips} clips an update", "", "updates", "FLOP each", "time each", "time")
    choice = plan.run.config.choices["objective"]
    kinds = {
        "flow": (training.updates - training.consistency_updates, training.flow),
        "consistency" if choice == "shortcut" else choice: (training.consistency_updates, training.consistency),
        "encoding therein": (training.updates, training.encode),
    }
    for name, (count, flops) in kinds.items():
        if (count and flops.total) or (name == "flow" and not training.updates):
            seconds = training.seconds(flops, plan.rates)
            table.add_row(name, f"{count:,.0f}", operations(flops.total), duration(seconds), duration(seconds * count))
    total = duration(training.seconds(training.flops, plan.rates))
    table.add_row("all", f"{training.updates:,}", "", "", total, style="bold")
    return table


def run(options: PlanOptions) -> int:
    """Print the plan, and write it to `json=`; returns the exit status."""

    plan = make_plan(options)
    results = verdicts(plan)
    if options.json is not None:
        write_json(options.json, as_json(plan, results))
    show(plan, results, console())
    return int(options.strict and not all(verdict.fits for verdict in results))


main = Command(PlanOptions, run)
