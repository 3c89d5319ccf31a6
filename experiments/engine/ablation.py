"""The data of an ablation file (arms, varied keys, clauses of its claim), and the options of `pw ablation`.
`pw ablations` lists all ablations, `pw ablations name=ansc` shows one.

`experiments/<name>.py` holds one `ABLATION`; its docstring is its `Statement`: a title, then the paragraphs Claim,
Refuted and Verdict. `experiments.engine.outcome.verdict` answers the clauses:

    better("full", "exponential")                               full is better in the primary metric
    better("add", "anchor", metric="swd")                       in another metric, behind the gate of the primary
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pw.io.arguments import MAX_SEED, Command, ConfigError, did_you_mean, number, option
from pw.io.console import console
from pw.io.paths import OUTPUTS, explain_import_errors, user_folder
from pw.run.compose import override_key
from pw.train.loop import outputs_folder, results_folder

if TYPE_CHECKING:
    from rich.console import Console

FOLDER = Path(__file__).parents[1]
DETAIL = ("psd", "swd", "mhd", "mhd_ratio")
SOLUTION = ("solution_gap", "solution_gain")
"""Metrics that need the many-step solution of every arm, which takes a third of an arm's time."""
MAX_SEEDS = 1000
LINE_WIDTH = 110  # most characters in a line of a paragraph

Relation = Literal["better", "not_worse", "same"]
RELATION_TEXTS: dict[Relation, str] = {"better": "better than", "not_worse": "not worse than", "same": "the same as"}


@dataclass(frozen=True)
class ArmPair:
    """A statement about two arms.

    metric  None: the primary metric of the ablation
    margin  largest difference that counts as equal, as a share of the other arm's value; without a margin, not_worse
            holds only where better is shown, and same never holds
    """

    relation: Relation
    arm: str
    other: str
    metric: str | None = None
    margin: float | None = None

    def __str__(self) -> str:
        metric_text = f" in {self.metric}" if self.metric else ""
        margin = f" (within {100 * self.margin:g} %)" if self.margin is not None else ""
        return f"{self.arm} is {RELATION_TEXTS[self.relation]} {self.other}{metric_text}{margin}"


@dataclass(frozen=True)
class Clause:
    """A part of a claim with its own answer: all of its parts hold, or any of them."""

    text: str
    parts: tuple[ArmPair | Clause, ...]
    needs: Literal["all", "any"] = "all"

    def pairs(self) -> Iterator[ArmPair]:
        """Every statement about two arms, at any depth."""
        for part in self.parts:
            yield from (part,) if isinstance(part, ArmPair) else part.pairs()


def better(arm: str, other: str, text: str = "", *, metric: str | None = None) -> Clause:
    """The arm is better. It is refuted if the arm is shown to be worse."""
    return _clause(text, ArmPair("better", arm, other, metric))


def not_worse(
    arm: str, other: str, text: str = "", *, metric: str | None = None, margin: float | None = None
) -> Clause:
    """The arm is at most `margin` (a share of the other's value) worse. Refuted if it is shown to be worse."""
    return _clause(text, ArmPair("not_worse", arm, other, metric, margin))


def same(arm: str, other: str, text: str = "", *, metric: str | None = None, margin: float | None = None) -> Clause:
    """The two differ by less than `margin` (a share of the other's value). It is refuted if a difference is shown."""
    return _clause(text, ArmPair("same", arm, other, metric, margin))


def all_of(text: str, *clauses: Clause) -> Clause:
    """Every clause holds. It is refuted if any clause is, by Holm over the clauses."""
    return Clause(text, clauses, "all")


def any_of(text: str, *clauses: Clause) -> Clause:
    """Any clause holds, by Holm over the clauses. It is refuted if every clause is."""
    return Clause(text, clauses, "any")


def _clause(text: str, pair: ArmPair) -> Clause:
    return Clause(text or str(pair), (pair,))


@dataclass(frozen=True)
class Probe:
    """Some arms are also sampled with other values of a key; a column of the table shows the best value."""

    key: str
    values: Sequence[Any]
    arms: Sequence[str]


@dataclass(frozen=True)
class Ablation:
    """Arms that differ in `varies` alone.

    fixed    overrides of all arms
    varies   config groups and dotted keys in which arms may differ
    arms     name -> overrides, in the order of the table
    paper    the table of `benchmarks/paper/` that the ablation repeats
    across   (key, values): every arm is crossed with these values and named arm@value; arms are compared at the same
             value
    versus   `above`: each arm is compared with the arm above; `first`: each with the first arm
    primary  the metric that is tested first and alone; it decides the order of arms and the claim
    claims   the clauses of the claim; by default each arm is better than the arm it is compared with
    planned  arm -> overrides with which the plan prices it at 2K and 4K, in place of the tiny scale's
    same_flops  arm -> the arm whose training FLOPs it has: its `train.updates` are counted at the scale of the call
    native   whether stage I's clips are scored at the anchor's size, against real clips degraded to that size
    curve    (key, default): the x axis of the curve, if it is neither the only varied key nor that of `across`;
             `default` is a number or another key, used where `key` is null or missing
    ceiling  the arm whose many-step solution is the ceiling, by default the first
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
    planned: Mapping[str, str] = field(default_factory=dict)
    same_flops: Mapping[str, str] = field(default_factory=dict)
    native: bool = False
    metrics: Sequence[str] = (*DETAIL, *SOLUTION, "anchor_fidelity")


@dataclass(frozen=True)
class Statement:
    """The docstring of an ablation file: its title and three paragraphs."""

    title: str
    claim: str
    refuted: str
    verdict: str


def files() -> dict[str, Path]:
    """name -> file of every ablation, of the suite and of `experiments/` in the user's folder.

    Raises ConfigError when a user's file has the name of an ablation of the suite.
    """
    folder = user_folder()
    suite = _ablation_files(FOLDER)
    user_files = {} if folder is None else _ablation_files(folder / "experiments")
    if duplicates := suite.keys() & user_files.keys():
        raise ConfigError(f"{user_files[min(duplicates)]}: {min(duplicates)} comes with the suite; rename the file")
    return suite | user_files


def _ablation_files(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in folder.glob("*.py") if not path.stem.startswith("_")}


def names() -> list[str]:
    """The names of all ablations."""
    return sorted(files())


def load(name: str) -> tuple[Ablation, Statement]:
    """The ablation and its statement. Raises ConfigError for an unknown name or a wrong file."""
    path = files().get(name)
    if path is None:
        hint = did_you_mean(name, names())
        raise ConfigError(f"name={name}: no such ablation; {hint}there are {', '.join(names())}")
    with explain_import_errors(f"name={name}", path.parent):
        namespace = runpy.run_path(str(path), run_name=f"experiments.{name}")
    ablation, docstring = namespace.get("ABLATION"), namespace["__doc__"] or ""
    if not isinstance(ablation, Ablation):
        raise ConfigError(f"name={name}: {path}: expected ABLATION = Ablation(…), from experiments import Ablation")
    if not docstring.strip():
        raise ConfigError(f"name={name}: {path}: expected a docstring: a title, then Claim, Refuted and Verdict")
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
        read_seed, read_count = number(0, MAX_SEED), number(1, MAX_SEEDS)
        seeds = tuple(map(read_seed, text.strip("[]").split(","))) if is_list else tuple(range(read_count(text)))
    except ValueError:
        seeds = ()
    if not 0 < len(seeds) == len(set(seeds)):
        raise ValueError(f"expected a number of seeds to {MAX_SEEDS} (5 is 0 to 4) or a list of them ([0,1,7])")
    return seeds


def _code(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.strip("[]").split(","))
    if "as_trained" in names and len(names) > 1:
        raise ValueError("as_trained takes what any version trained; give it alone, or give revisions")
    if not all(names) or len(set(names)) < len(names) or any(name.startswith("-") for name in names):
        raise ValueError("expected revisions of git, each once, e.g. main,my-branch; current is the code as it is")
    return () if names == ("current",) else names


def _outputs(text: str) -> Path:
    """An existing folder, even if it is only read: a table whose results are all there can be shown; or a new one."""
    return results_folder(text) if text and Path(text).expanduser().is_dir() else outputs_folder(text)


@dataclass(frozen=True)
class AblationOptions:
    """The options of `pw ablation`; `overrides` apply to every run."""

    name: str = option(help="the ablation; `pw ablations` lists them", values=names)
    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), "a number (5 is 0 to 4) or a list ([0,3])", read=_seeds)
    arms: tuple[str, ...] = option((), "only these arms")
    columns: tuple[str, ...] = option((), "only these columns of the table, in this order; csv and json have all")
    code: tuple[str, ...] = option(
        (), "revisions of git that make the runs, compared: main,current; or as_trained: trainings of any", read=_code
    )
    vary_start: bool = option(False, "train a start checkpoint per seed, instead of one for all")
    workers: int = option(0, "runs at a time; 0 is one per core", read=number(0, 1024))
    dry_run: bool = option(False, "print the plan and the commands without running them")
    fresh: bool = option(False, "delete and redo cached results, except starts, which other ablations share")
    launcher: str = option("local", "local, or submitit for SLURM; set its keys as launcher.partition=…")
    outputs: Path = option(OUTPUTS, "where results go", read=_outputs)
    overrides: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """Command-line words from which `parse` gives the same plan; options that change no result are left out."""
        tracking = [word for word in self.overrides if _is_of_tracking(word)]
        return [f"name={self.name}", *self.settings(), *tracking]

    def settings(self) -> list[str]:
        """The part of `words` that selects seeds, arms, starts and overrides."""
        is_count = self.seeds == tuple(range(len(self.seeds)))
        seeds = len(self.seeds) if is_count else f"[{','.join(map(str, self.seeds))}]"
        arms = [f"arms={','.join(self.arms)}"] if self.arms else []
        start = ["vary_start=true"] if self.vary_start else []
        code = [f"code={','.join(self.code)}"] if self.code else []
        overrides = [word for word in self.overrides if not _is_of_tracking(word)]
        return [f"seeds={seeds}", *arms, *start, *code, *overrides]


def _is_of_tracking(word: str) -> bool:
    return override_key(word).split(".")[0] == "tracking"


@dataclass(frozen=True)
class AblationsOptions:
    """The options of `pw ablations`."""

    name: str = option("", "show this one in full", values=names)


def run(options: AblationsOptions) -> int:
    """Print a title, the number of arms and the outcome of every ablation, or one in full.

    Exit status: 0, or 1 where a file cannot be read.
    """
    from rich.padding import Padding
    from rich.text import Text

    terminal = console()
    if options.name:
        _show(terminal, options.name)
        return 0
    unreadable = []
    for name in names():
        try:
            ablation, docs = load(name)
        except ConfigError as error:  # in a user's file; the others are still listed
            unreadable.append(error)
            continue
        outcome = re.split(r"(?<=\.)\s", docs.verdict)[0]
        terminal.print(Text.assemble((name, "bold"), "  ", docs.title))
        terminal.print(Padding(Text(f"{len(ablation.arms)} arms; {outcome}", style="dim"), (0, 0, 0, 2)))
    terminal.print(Text("pw ablations name=…  shows one in full", style="dim"))
    for error in unreadable:
        print(f"error: {error}", file=sys.stderr)
    return 1 if unreadable else 0


def _show(terminal: Console, name: str) -> None:
    """Print an ablation in full: title, arms, claim, what refutes it, verdict."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    ablation, docs = load(name)
    arms = ", ".join(ablation.arms)
    if ablation.across:
        arms += f"; each at {ablation.across[0].rpartition('.')[2]} {', '.join(map(str, ablation.across[1]))}"
    terminal.print(Text.assemble((name, "bold"), "  ", docs.title))
    paragraphs = Table.grid(padding=(0, 2, 0, 0))
    for label, text in {"arms": arms, "claim": docs.claim, "refuted": docs.refuted, "verdict": docs.verdict}.items():
        if text:
            paragraphs.add_row(Text(label, style="dim"), Text(text, overflow="fold"))
    terminal.print(Padding(paragraphs, (0, 0, 0, 2)), width=min(terminal.width, LINE_WIDTH))


main = Command(AblationsOptions, run)
