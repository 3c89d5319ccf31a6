"""The options of `pw ablation`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.engine.ablation import names
from pw.io.arguments import number, option
from pw.io.paths import OUTPUTS
from pw.train.loop import outputs_folder


def seeds_word(seeds: Sequence[int]) -> str:
    """Seeds as one would type them: seeds=3 of 0, 1 and 2, else the list."""
    counted = list(seeds) == list(range(len(seeds)))
    return f"seeds={len(seeds)}" if counted else f"seeds=[{','.join(map(str, seeds))}]"


def _seeds(text: str) -> tuple[int, ...]:
    try:
        is_list = "," in text or text.startswith("[")
        seeds = tuple(int(part) for part in text.strip("[]").split(",")) if is_list else tuple(range(int(text)))
    except ValueError:
        seeds = ()
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError("a number of seeds (5 is 0 to 4) or a list of them ([0,1,7])")
    return seeds


@dataclass(frozen=True)
class AblationOptions:
    """Which ablation, which part of it, and how it is run. `overrides` are of every run."""

    name: str = option(says="the ablation; `pw ablations` lists them", values=names)
    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), "a number (5 is 0 to 4) or a list ([0,3])", read=_seeds)
    arms: tuple[str, ...] = option((), "only these arms")
    vary_start: bool = option(False, "train a start checkpoint per seed, instead of one for all")
    workers: int = option(0, "runs at a time; 0 is one per core", read=number(0))
    dry_run: bool = option(False, "print the plan and the commands, do nothing")
    fresh: bool = option(False, "redo what is cached, but for starts, which other ablations share")
    mlflow: bool = option(True, "record the runs in MLflow")
    launcher: str = option("local", "local, or submitit for SLURM; its keys are launcher.partition=… and such")
    outputs: Path = option(OUTPUTS, "where results go", read=outputs_folder)
    overrides: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """The words from which `parse` gives the same plan, without what says how it is run."""
        return [f"name={self.name}", *self.settings()]

    def settings(self) -> list[str]:
        """What was asked for beyond the ablation's file, as on the command line."""
        arms = [f"arms={','.join(self.arms)}"] if self.arms else []
        start = ["vary_start=true"] if self.vary_start else []
        return [seeds_word(self.seeds), *arms, *start, *self.overrides]
