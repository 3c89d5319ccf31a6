"""`pw plan`: what a run needs before anything is loaded, and whether it fits the GPUs that are given.

    pw plan scale=4k gpus=1x80GB [tflops=400] [for=generation] [json=plan.json] [any override of conf/]

Tokens, FLOPs, memory by part and time, without importing torch. Exit status: 0 if what was asked for fits, 1 if not, 2
for a mistake in the call.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pw.cost.devices import UNNAMED, Gpus, parse_gpus
from pw.cost.generation_cost import (
    GenerationCost,
    Stages,
    generation_cost,
    last_stage,
    loaded_precision,
    stages_of,
)
from pw.cost.memory import Moment, Precision
from pw.cost.training_cost import TrainingCost, training_cost
from pw.cost.verdicts import Verdict, judge_generation, judge_training
from pw.io.arguments import Command, ConfigError, option
from pw.io.files import writable_file, write_json
from pw.run.build import Run, build

CPU = 0.02  # TFLOP/s of a thread


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError("wants a positive number, e.g. tflops=400")
    return value


@dataclass(frozen=True)
class PlanOptions:
    """The options of `pw plan`."""

    gpus: Gpus | None = option(
        None, "NxMGB, or a card: 8x80GB, 1xH100, A100-40; else nothing is judged", read=parse_gpus
    )
    tflops: float | None = option(
        None, "what a GPU achieves; by default a share of the card's peak (assumed, not measured)", read=_positive
    )
    what: Literal["generation", "training", "both"] = option("both", "what is shown and judged", key="for")
    dtype: Precision | None = option(None, "of the networks' weights in generation; by default bf16 on a GPU")
    json: Path | None = option(None, "a file for the plan as JSON", read=writable_file("json"))
    overrides: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[str, ...]:
        """What is shown and judged, one by one."""
        return ("generation", "training") if self.what == "both" else (self.what,)


@dataclass(frozen=True)
class CostPlan:
    """Everything that `pw plan` shows. `overrides` are those of the call, `tflops_from` says where `tflops` is from."""

    overrides: tuple[str, ...]
    stages: Stages
    gpus: Gpus | None
    tflops: float
    tflops_from: str
    precision: Precision
    generation: GenerationCost
    training: TrainingCost

    @property
    def run(self) -> Run:
        """The run that was asked for."""
        return last_stage(self.stages)

    @property
    def runs(self) -> tuple[Run, ...]:
        """Stage I and stage II, as far as there are both."""
        return tuple(run for run in reversed(self.stages) if run is not None)

    def seconds(self, phase: Moment) -> float:
        """Wall time of a phase of generation on the devices that share it."""
        return phase.flops.total / phase.devices / (self.tflops * 1e12)


def make_plan(
    overrides: Sequence[str],
    gpus: Gpus | None = None,
    tflops: float | None = None,
    precision: Precision | None = None,
) -> CostPlan:
    """The plan of a run. Raises ConfigError naming the key."""
    run = build(overrides)
    if tflops is not None:
        tflops_from = f"{tflops:g} TFLOP/s"
    else:
        on_cpu = CPU * run.trainer.threads
        tflops = gpus.tflops if gpus is not None else UNNAMED if run.trainer.accelerator == "gpu" else on_cpu
        tflops_from = f"{tflops:g} TFLOP/s assumed (tflops= to set it)"
    stages, count = stages_of(run), 1 if gpus is None else gpus.count
    if gpus is not None and count % run.trainer.context:
        raise ConfigError(f"trainer.context={run.trainer.context}: gpus={gpus} are not a multiple of it")
    return CostPlan(
        overrides=tuple(overrides),
        stages=stages,
        gpus=gpus,
        tflops=tflops,
        tflops_from=tflops_from,
        precision=precision or loaded_precision(run),
        generation=generation_cost(*stages, precision=precision),
        training=training_cost(run, count),
    )


def verdicts(plan: CostPlan, asked: Sequence[str]) -> list[Verdict]:
    """A verdict on each of `asked` (generation, training); none without GPUs to judge by."""
    gpus = plan.gpus
    if gpus is None:
        return []
    card = f"{plan.run.trainer.split}x{gpus.card}"
    judged = {
        "generation": lambda: judge_generation(plan.stages, gpus.memory, card, plan.precision, gpus.count),
        "training": lambda: judge_training(plan.run, plan.training, gpus),
    }
    return [judged[what]() for what in asked]


def as_json(plan: CostPlan, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The plan as plain data: bytes, FLOPs, seconds."""
    memory = None if plan.gpus is None else plan.gpus.memory

    def moment(of: Moment) -> dict[str, Any]:
        fits = None if memory is None else of.fits(memory)
        time = {"seconds": plan.seconds(of)} if of.flops.total else {}
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
            "seconds": sum(plan.seconds(phase) for phase in plan.generation.phases),
        },
        "training": training,
        "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
    }


def run(options: PlanOptions) -> int:
    """Print the plan, and write it as JSON where that is asked for."""
    from rich.console import Console

    from pw.cost.plan_table import show

    plan = make_plan(options.overrides, options.gpus, options.tflops, options.dtype)
    judged = verdicts(plan, options.asked)
    if options.json is not None:
        write_json(options.json, as_json(plan, judged))
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 120  # a file or a pipe has no width of its own
    show(plan, options.asked, judged, console)
    return 0 if all(verdict.fits for verdict in judged) else 1


main = Command(PlanOptions, run)
