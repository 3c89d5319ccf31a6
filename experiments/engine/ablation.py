"""What an ablation file holds: its arms, what they vary, and the clauses of its claim; and the options it is run with.
`pw ablations` lists them all.

`experiments/<name>.py` holds one `ABLATION`; its docstring is its `Statement`: a title, then the paragraphs Claim,
Refuted and Verdict. The clauses are data, which `experiments.engine.outcome.verdict` answers:

    better("full", "exponential")                               full is better, on the primary metric
    better("add", "anchor", metric="swd")                       on another one, behind the gate of the primary
    not_worse("shortcut", "flow", margin=0.1)                   at most a tenth of flow's value worse
    same("5", "4", "flat from 4 to 5 steps", margin=0.1)        within a tenth of 4's value
    all_of("every row", better("b", "a"), better("c", "b"))     any_of(…) likewise

An arm of an ablation that is crossed with values is named arm@value.
"""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pw.io.arguments import Command, ConfigError, did_you_mean, number, option
from pw.io.paths import OUTPUTS, explain_import_errors, user_folder
from pw.train.loop import outputs_folder

FOLDER = Path(__file__).parents[1]
DETAIL = ("psd", "swd", "mhd", "mhd_ratio")
SOLUTION = ("solution_gap", "solution_gain")
"""Metrics that need the many-step solution of every arm: a third of an arm's time."""
LINE = 110  # characters of a paragraph, at most: longer lines are hard to read

Relation = Literal["better", "not_worse", "same"]
WORDS: dict[Relation, str] = {"better": "better than", "not_worse": "not worse than", "same": "the same as"}


@dataclass(frozen=True)
class ArmPair:
    """A statement about two arms.

    metric  None is the ablation's primary metric
    margin  share of the other arm's value that does not matter; without one, not_worse holds only where better is
            shown, and same never
    """

    relation: Relation
    arm: str
    other: str
    metric: str | None = None
    margin: float | None = None

    def __str__(self) -> str:
        on = f" in {self.metric}" if self.metric else ""
        margin = f" (within {100 * self.margin:g} %)" if self.margin is not None else ""
        return f"{self.arm} is {WORDS[self.relation]} {self.other}{on}{margin}"


@dataclass(frozen=True)
class Clause:
    """A part of a claim that is answered by itself: that all of its parts hold, or that any does."""

    text: str
    parts: tuple[ArmPair | Clause, ...]
    needs: Literal["all", "any"] = "all"

    def pairs(self) -> Iterator[ArmPair]:
        """Every statement about two arms, at any depth."""
        for part in self.parts:
            yield from (part,) if isinstance(part, ArmPair) else part.pairs()


def better(arm: str, than: str, text: str = "", *, metric: str | None = None) -> Clause:
    """The arm is better; refuted if it is shown to be worse."""
    return _clause(text, ArmPair("better", arm, than, metric))


def not_worse(arm: str, than: str, text: str = "", *, metric: str | None = None, margin: float | None = None) -> Clause:
    """The arm is at most `margin` (a share of the other's value) worse; refuted where it is shown to be worse."""
    return _clause(text, ArmPair("not_worse", arm, than, metric, margin))


def same(arm: str, other: str, text: str = "", *, metric: str | None = None, margin: float | None = None) -> Clause:
    """The two differ by less than `margin` (a share of the other's value); refuted where a difference is shown."""
    return _clause(text, ArmPair("same", arm, other, metric, margin))


def all_of(text: str, *clauses: Clause) -> Clause:
    """Every clause holds; refuted where any is, by Holm over them."""
    return Clause(text, clauses, "all")


def any_of(text: str, *clauses: Clause) -> Clause:
    """Some clause holds, by Holm over them; refuted where every one is."""
    return Clause(text, clauses, "any")


def _clause(text: str, pair: ArmPair) -> Clause:
    return Clause(text or str(pair), (pair,))


@dataclass(frozen=True)
class Probe:
    """Some arms are also sampled with several values of a key; the best is shown in a column beside them."""

    key: str
    values: Sequence[Any]
    arms: Sequence[str]


@dataclass(frozen=True)
class Ablation:
    """Arms that differ in `varies` alone.

    fixed    overrides that every arm shares
    varies   config groups and dotted keys in which arms may differ
    arms     name -> overrides, in the table's order: each is compared with the one above
    paper    the table of `benchmarks/paper/` it mirrors, if there is one
    across   (key, values): every arm is also crossed with these values; an arm is then compared with the one above
             at the same value, and named arm@value
    versus   `above`: each arm is compared with the one above; `first`: all with the first
    primary  the metric that is tested first and alone, before the others; an order and the claim are judged by it
    claims   the clauses of the claim, answered at the end of a run; without any: each arm is better than the one it
             is compared with
    native   score stage I's clips at the anchor's size, against real clips degraded to it
    curve    (key, what stands for it where it is null or not there: a number, or another key): the number along which
             the arms lie, if it is neither the one key they vary nor that of `across`
    ceiling  the arm whose many-step solution is shown as the ceiling, the first by default
    """

    varies: Sequence[str]
    arms: Mapping[str, str]
    fixed: str = ""
    paper: str | None = None
    across: tuple[str, Sequence[Any]] | None = None
    probe: Probe | None = None
    versus: Literal["above", "first"] = "above"
    primary: str = "psd"
    curve: tuple[str, float | str] | None = None
    claims: Sequence[Clause] = ()
    ceiling: str | None = None
    native: bool = False
    metrics: Sequence[str] = (*DETAIL, *SOLUTION, "anchor_fidelity")


@dataclass(frozen=True)
class Statement:
    """What an ablation's docstring says: its title and the three paragraphs."""

    title: str
    claim: str
    refuted: str
    verdict: str


def files() -> dict[str, Path]:
    """name -> file of every ablation: the suite's, and those in `experiments/` of the user's own folder.

    Raises ConfigError for a file of the user's that is named as one of the suite's.
    """
    own = user_folder()
    suite = _ablation_files(FOLDER)
    users = {} if own is None else _ablation_files(own / "experiments")
    if both := suite.keys() & users.keys():
        raise ConfigError(f"{users[min(both)]}: {min(both)} comes with the suite; rename the file")
    return suite | users


def _ablation_files(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in folder.glob("*.py") if not path.stem.startswith("_")}


def names() -> list[str]:
    """The names of all ablations."""
    return sorted(files())


def load(name: str) -> tuple[Ablation, Statement]:
    """The ablation and its statement. Raises ConfigError when there is none of that name."""
    path = files().get(name)
    if path is None:
        hint = did_you_mean(name, names())
        raise ConfigError(f"name={name}: no such ablation; {hint}there are {', '.join(names())}")
    with explain_import_errors(f"name={name}", path.parent):
        found = runpy.run_path(str(path), run_name=f"experiments.{name}")
    ablation, docstring = found.get("ABLATION"), found["__doc__"] or ""
    if not isinstance(ablation, Ablation):
        raise ConfigError(f"name={name}: {path}: wants ABLATION = Ablation(…), from experiments import Ablation")
    if not docstring.strip():
        raise ConfigError(f"name={name}: {path}: wants a docstring: a title, then Claim, Refuted and Verdict")
    return ablation, statement(docstring)


def statement(docstring: str) -> Statement:
    """Parse a docstring of the form title, Claim, Refuted, Verdict."""
    parts = {"Title": docstring.strip().splitlines()[0].strip()}
    for word in ("Claim", "Refuted", "Verdict"):
        paragraph = re.search(rf"^{word}\s+(.*?)(?=^(?:Claim|Refuted|Verdict)\s|\Z)", docstring, re.S | re.M)
        parts[word] = " ".join(paragraph[1].split()) if paragraph else ""
    return Statement(parts["Title"], parts["Claim"], parts["Refuted"], parts["Verdict"])


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

    name: str = option(help="the ablation; `pw ablations` lists them", values=names)
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
        is_count = self.seeds == tuple(range(len(self.seeds)))
        seeds = len(self.seeds) if is_count else f"[{','.join(map(str, self.seeds))}]"
        arms = [f"arms={','.join(self.arms)}"] if self.arms else []
        start = ["vary_start=true"] if self.vary_start else []
        return [f"seeds={seeds}", *arms, *start, *self.overrides]


@dataclass(frozen=True)
class AblationsOptions:
    """There are none: all ablations are listed."""


def run(_: AblationsOptions) -> int:
    """Print every ablation: what it asks, its arms, what it claims and the result.

    Exit status: 0, or 1 where a file cannot be read.
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    unreadable = []
    for name in names():
        try:
            ablation, stated = load(name)
        except ConfigError as error:  # one of the user's, who wants to see the others
            unreadable.append(error)
            continue
        arms = ", ".join(ablation.arms)
        if ablation.across:
            arms += f"; each at {ablation.across[0].rpartition('.')[2]} {', '.join(map(str, ablation.across[1]))}"
        console.print(Text.assemble((name, "bold"), "  ", stated.title))
        # paragraphs below each other, not columns: a verdict of sixty words would be as wide as one of them
        paragraphs = Table.grid(padding=(0, 2, 0, 0))
        texts = {"arms": arms, "claim": stated.claim, "refuted": stated.refuted, "verdict": stated.verdict}
        for label, text in texts.items():
            if text:
                paragraphs.add_row(Text(label, style="dim"), Text(text, overflow="fold"))
        console.print(Padding(paragraphs, (0, 0, 1, 2)), width=min(console.width, LINE))
    for error in unreadable:
        print(f"error: {error}", file=sys.stderr)
    return 1 if unreadable else 0


main = Command(AblationsOptions, run)
