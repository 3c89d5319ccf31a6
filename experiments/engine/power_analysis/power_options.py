"""The options of `pw power`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from benchmarks import paper
from benchmarks.metrics import METRICS, lookup
from experiments.engine.ablation import names
from experiments.engine.power_analysis.spread import MOST
from pw.io.arguments import ConfigError, number, option
from pw.io.files import writable_file
from pw.io.paths import OUTPUTS

SEED_RATIO = 0.5
"""Spread between seeds over that between videos, assumed where none was measured: the median of 131 differences (pairs
of arms and metrics) at the tiny scale, whose quartiles are 0.26 and 0.82."""

PerMetric: TypeAlias = tuple[tuple[str, str], ...]
"""(metric, number) pairs; "" is every metric that has no number of its own."""


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
    prompts: int = option(100, "evaluation prompts of a seed", read=number(2, MOST))
    seeds: int = option(3, "trainings of an arm", read=number(1, MOST))
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
    correlation: float = option(0.5, "assumed between arms, over videos", read=number(-1, 1, float, without=(1,)))
    seed_ratio: float = option(
        SEED_RATIO, "assumed spread between seeds over that between videos", read=number(0, 100, float)
    )
    power: float = option(0.8, "the chance to show a true difference", read=number(0, 1, float, without=(0, 1)))
    alpha: float = option(0.05, "the two-sided error of the test", read=number(0, 1, float, without=(0, 1)))
    outputs: Path = option(OUTPUTS, "where scores are looked for")
    out: Path | None = option(None, "a JSON file for the answer", read=writable_file("out"))
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.ablation and self.paper is None:
            raise ConfigError(
                f"ablation=… is missing: one of {', '.join(names())}; or a table of the paper: "
                f"paper={', '.join(paper.names())}"
            )
        if self.ablation is None and self.overrides:
            raise ConfigError(f"{self.overrides[0]}: without ablation=… there is nothing to override")
