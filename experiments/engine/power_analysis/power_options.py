"""The options of `pw power`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from benchmarks import paper
from benchmarks.metrics import METRICS, lookup
from experiments.engine.ablation import names
from experiments.engine.power_analysis.spread import MOST
from pw.io.arguments import ConfigError, option
from pw.io.paths import OUTPUTS

SEED_RATIO = 0.5
"""Spread between seeds over that between videos, assumed where none was measured: the median of 131 differences (pairs
of arms and metrics) at the tiny scale, whose quartiles are 0.26 and 0.82."""

PerMetric: TypeAlias = tuple[tuple[str, str], ...]
"""(metric, number) pairs; "" is every metric that has no number of its own."""


def _count(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= MOST:
            raise ValueError(f"a whole number from {least} to {MOST}")
        return int(text)

    return read


def _number(low: float, high: float, without: Sequence[float] = ()) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high or number in without:
            but = f", but not {' or '.join(f'{end:g}' for end in without)}" if without else ""
            raise ValueError(f"a number from {low:g} to {high:g}{but}")
        return number

    return read


def _per_metric(example: str, *, percent: bool) -> Callable[[str], PerMetric]:
    """Reads `5%,psd:0.2`; with percent a number may have a percent sign, and need not name its metric."""

    def read(text: str) -> PerMetric:
        pairs = {}
        for word in filter(None, text.split(",")):
            name, colon, value = word.rpartition(":")
            try:
                is_positive = float(value.removesuffix("%") if percent else value) > 0
            except ValueError:
                is_positive = False
            if not is_positive or not (colon or percent):
                raise ValueError(f"wants positive numbers, e.g. {example}")
            if colon and name not in METRICS:
                lookup(name)
            pairs[name] = value
        return tuple(pairs.items())

    return read


@dataclass(frozen=True)
class PowerOptions:
    """A design of prompts and seeds, and the difference that it is to show."""

    ablation: str | None = option(None, "the ablation that is planned")
    paper: str | None = option(None, "a table of the paper instead, or beside it: table_9_3")
    prompts: int = option(100, "evaluation prompts of a seed", read=_count(2))
    seeds: int = option(3, "trainings of an arm", read=_count(1))
    metrics: tuple[str, ...] = option((), "only these metrics")
    of: PerMetric = option(
        (),
        "the difference to be shown: 0.5, 5% of the mean, psd:0.2,swd:5%",
        read=_per_metric("of=0.5, of=5% or of=psd:0.2,swd:5%", percent=True),
    )
    sd: PerMetric = option(
        (),
        "standard deviation over videos, for the paper's metrics: musiq:9,niqe:0.5",
        read=_per_metric("sd=musiq:9,niqe:0.5", percent=False),
    )
    correlation: float = option(0.5, "assumed between arms, over videos", read=_number(-1, 1, without=(1,)))
    seed_ratio: float = option(
        SEED_RATIO, "assumed spread between seeds over that between videos", read=_number(0, 100)
    )
    power: float = option(0.8, "the chance to show a true difference", read=_number(0, 1, without=(0, 1)))
    alpha: float = option(0.05, "the two-sided error of the test", read=_number(0, 1, without=(0, 1)))
    outputs: Path = option(OUTPUTS, "where scores are looked for")
    out: Path | None = option(None, "a JSON file for the answer")
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.ablation and self.paper is None:
            raise ConfigError(
                f"ablation=… is missing: one of {', '.join(names())}; or a table of the paper: "
                f"paper={', '.join(paper.names())}"
            )
        if self.ablation is None and self.overrides:
            raise ConfigError(f"{self.overrides[0]}: without ablation=… there is nothing to override")
