"""What an ablation file holds: its arms, what they vary, and the clauses of its claim.

`experiments/<name>.py` holds one `ABLATION`; its docstring is its `Statement`: a title, then the paragraphs Claim,
Refuted and Verdict.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.engine.clauses import Clause
from pw.io.arguments import ConfigError, did_you_mean
from pw.io.paths import explained, own_folder

FOLDER = Path(__file__).parents[1]
DETAIL = ("psd", "swd", "mhd", "mhd_ratio")
SOLUTION = ("solution_gap", "solution_gain")
"""Metrics that need the many-step solution of every arm: a third of an arm's time."""


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
    claims   the clauses of the claim (`experiments.engine.clauses`), answered at the end of a run; without any: each
             arm is better than the one it is compared with
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
    own = own_folder()
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
    spec = importlib.util.spec_from_file_location(f"experiments.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with explained(f"name={name}", path.parent):
        spec.loader.exec_module(module)
    ablation = getattr(module, "ABLATION", None)
    if not isinstance(ablation, Ablation):
        raise ConfigError(f"name={name}: {path}: wants ABLATION = Ablation(…), from experiments import Ablation")
    if not (module.__doc__ or "").strip():
        raise ConfigError(f"name={name}: {path}: wants a docstring: a title, then Claim, Refuted and Verdict")
    return ablation, statement(str(module.__doc__))


def statement(docstring: str) -> Statement:
    """Parse a docstring of the form title, Claim, Refuted, Verdict."""
    parts = {"Title": docstring.strip().splitlines()[0].strip()}
    for word in ("Claim", "Refuted", "Verdict"):
        paragraph = re.search(rf"^{word}\s+(.*?)(?=^(?:Claim|Refuted|Verdict)\s|\Z)", docstring, re.S | re.M)
        parts[word] = " ".join(paragraph[1].split()) if paragraph else ""
    return Statement(parts["Title"], parts["Claim"], parts["Refuted"], parts["Verdict"])
