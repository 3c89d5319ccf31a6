"""The tables that `pw plan` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pw.cost.flops import forward_flops, operations
from pw.cost.generation_cost import sampling_memory
from pw.cost.memory import MARGIN, Moment
from pw.cost.parameters import parameters, stage_latent, tokens
from pw.cost.planner import CostPlan
from pw.cost.training_cost import reads_pixels
from pw.cost.verdicts import Verdict
from pw.io.files import human_size
from pw.io.progress import duration
from pw.run.build import Run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def stage_table(plan: CostPlan) -> Table:
    """What each stage's network is given, and what one evaluation of it takes."""
    columns = (f"stage {'I' if run.stage == 'anchor' else 'II'}" for run in plan.runs)
    table = _table("One evaluation of the network", "", *columns)
    cells = [_stage_cells(run) for run in plan.runs]
    for name in cells[0]:
        table.add_row(name, *(cell[name] for cell in cells), style="bold" if name == "total" else None)
    return table


def _stage_cells(run: Run) -> dict[str, str]:
    latent, scale = stage_latent(run), run.scale
    length = tokens(latent, run.backbone.patch_size)
    flops = forward_flops(run.backbone, length, run.backbone.text_tokens, run.injector)
    height, width = scale.anchor_size if run.stage == "anchor" else scale.size
    return {
        "video, px and frames": f"{width} x {height} x {scale.frames}",
        "latent, C F h w": " ".join(map(str, latent)),
        "tokens": f"{length:,}",
        "parameters": f"{parameters(run.backbone, run.injector):,}",
        "linear layers, FLOP": operations(flops.linear),
        "self-attention": operations(flops.self_attention),
        "cross-attention": operations(flops.cross_attention),
        "injector": operations(flops.injector) if flops.injector else "–",
        "embeddings": operations(flops.embeddings),
        "total": operations(flops.total),
    }


def moment_rows(table: Table, moments: Sequence[Moment], memory: float | None) -> None:
    """Rows of memory by part: a column for each moment, and where the numbers come from in the last one."""
    names = dict.fromkeys(part.name for moment in moments for part in moment.parts)
    for name in names:
        parts = [next((part for part in moment.parts if part.name == name), None) for moment in moments]
        sources = dict.fromkeys(part.source for part in parts if part is not None and part.bytes)
        if sources:
            cells = (human_size(part.bytes) if part is not None and part.bytes else "–" for part in parts)
            table.add_row(name, *cells, ", ".join(sources))
    table.add_row("peak", *(human_size(m.bytes) for m in moments), "", style="bold")
    if memory is not None:
        margin = f"+ {MARGIN:.0%} + 1 GiB: assumed"
        table.add_row("needed", *(human_size(m.needs) for m in moments), margin)
        table.add_row("fits", *("[green]yes[/]" if m.fits(memory) else "[red]no[/]" for m in moments), "")


def generation_table(plan: CostPlan) -> Table:
    """The phases of one video: evaluations, FLOPs, time and memory."""
    phases = plan.generation.phases
    trainer = plan.run.trainer
    title = _generation_title(trainer.split, trainer.context)
    table = _table(title, "", *(p.name for p in phases), "from")
    table.columns[-1].justify = "left"
    table.add_row("evaluations", *(str(p.evaluations or "–") for p in phases), "")
    table.add_row("FLOP", *(operations(p.flops.total) if p.flops.total else "–" for p in phases), "counted")
    times = (duration(plan.seconds(p)) if p.flops.total else "–" for p in phases)
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


def training_table(plan: CostPlan) -> Table:
    """Memory at the moments of an update."""
    training = plan.training
    title = f"Training of stage {'I' if plan.run.stage == 'anchor' else 'II'}, "
    title += f"memory on each of {training.gpus} devices" if training.gpus > 1 else "memory on one device"
    table = _table(title, "", *(moment.name for moment in training.moments), "from")
    table.columns[-1].justify = "left"
    moment_rows(table, training.moments, None if plan.gpus is None else plan.gpus.memory)
    return table


def training_times(plan: CostPlan) -> Table:
    """FLOPs and time of an update of each kind, and of all updates."""
    training, tflops = plan.training, plan.tflops
    table = _table(f"Training, {training.clips} clips an update", "", "updates", "FLOP each", "time each", "time")
    kinds = {"flow": (training.updates - training.consistency_updates, training.flow)}
    if training.consistency_updates:
        kinds["consistency"] = (training.consistency_updates, training.consistency)
    for name, (count, flops) in kinds.items():
        each = training.seconds(flops, tflops)
        table.add_row(name, f"{count:,.0f}", operations(flops), duration(each), duration(each * count))
    if training.encode:
        each = training.seconds(training.encode, tflops)
        total = duration(each * training.updates)
        table.add_row("encoding therein", f"{training.updates:,}", operations(training.encode), duration(each), total)
    table.add_row(
        *("all", f"{training.updates:,}", "", "", duration(training.seconds(training.flops, tflops))),
        style="bold",
    )
    return table


def show(plan: CostPlan, asked: Sequence[str], verdicts: Sequence[Verdict], console: Console) -> None:
    """Print the tables of what is asked for (generation, training), and the verdicts."""
    device = "no GPU given, so nothing is judged" if plan.gpus is None else f"gpus={plan.gpus}"
    console.print(f"{' '.join(plan.overrides) or 'scale=tiny'}  |  {device}  |  {plan.tflops_from}")
    console.print()
    console.print(stage_table(plan))
    console.print()
    if "generation" in asked:
        _show_generation(plan, console)
    if "training" in asked:
        _show_training(plan, console)
    console.print(
        "from: counted, from shapes; fake tensors, most alive at once when the real modules run without data; "
        "assumed. No memory or time here was measured on a GPU."
    )
    for verdict in verdicts:
        console.print(verdict.line, style="green" if verdict.fits else "red")


def _show_generation(plan: CostPlan, console: Console) -> None:
    console.print(generation_table(plan))
    total = duration(sum(plan.seconds(phase) for phase in plan.generation.phases))
    host = ", ".join(f"{part.name} {human_size(part.bytes)}" for part in plan.generation.host)
    console.print(f"{total} a video in all, {plan.precision} weights. CPU memory: {host}.")
    if plan.gpus is not None and plan.gpus.count > 1:
        console.print(_sharing(plan.gpus.count, plan.run.trainer.context))
    console.print()


def _sharing(gpus: int, context: int) -> str:
    if context == gpus:
        return f"The {gpus} GPUs make a video together."
    if context > 1:
        return f"Of the {gpus} GPUs each {context} make a video of their own."
    return f"Each of the {gpus} GPUs makes a video of its own."


def _show_training(plan: CostPlan, console: Console) -> None:
    run, training = plan.run, plan.training
    console.print(training_times(plan))
    if plan.gpus is not None:
        time = training.seconds(training.flops, plan.tflops)
        console.print(f"{duration(time)} on {plan.gpus}: {time / 3600 * training.gpus:,.1f} GPU-hours.")
    if not reads_pixels(run):
        console.print("data=none: latents made beforehand; encoding clips as they are read comes on top.")
    console.print()
    console.print(training_table(plan))
    host = ", ".join(f"{part.name} {human_size(part.bytes)}" for part in training.host)
    trained = f"{training.trained_parameters:,} weights are trained (train.trainable={run.train.trainable})."
    console.print(f"{trained} CPU memory{' for each device' if training.gpus > 1 else ''}: {host}.")
    if run.text is not None:
        batch, memory = run.sampling.batch_size, human_size(sampling_memory(run))
        console.print(f"Sampled to be scored, {batch} at once, its clips take {memory} of CPU memory.")
    console.print()
