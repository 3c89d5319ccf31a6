"""The clauses of a claim, as data: what is said of which arms. `experiments.engine.outcome.verdict` answers them.

    better("full", "exponential")                               full is better, on the primary metric
    better("add", "anchor", metric="swd")                       on another one, behind the gate of the primary
    not_worse("shortcut", "flow", margin=0.1)                   at most a tenth of flow's value worse
    same("5", "4", "flat from 4 to 5 steps", margin=0.1)        within a tenth of 4's value
    all_of("every row", better("b", "a"), better("c", "b"))     any_of(…) likewise

An arm of an ablation that is crossed with values is named arm@value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Relation = Literal["better", "not_worse", "same"]
WORDS: dict[Relation, str] = {"better": "better than", "not_worse": "not worse than", "same": "the same as"}


@dataclass(frozen=True)
class Pair:
    """One arm held against another.

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
    """A part of a claim that gets an answer of its own: all of its parts are said, or any of them."""

    text: str
    parts: tuple[Pair | Clause, ...]
    needs: Literal["all", "any"] = "all"

    def pairs(self) -> Iterator[Pair]:
        """All that is said of two arms, at any depth."""
        for part in self.parts:
            yield from (part,) if isinstance(part, Pair) else part.pairs()


def better(arm: str, than: str, text: str = "", *, metric: str | None = None) -> Clause:
    """The arm is better; refuted where it is shown to be worse."""
    return _clause(text, Pair("better", arm, than, metric))


def not_worse(arm: str, than: str, text: str = "", *, metric: str | None = None, margin: float | None = None) -> Clause:
    """The arm is at most `margin` (a share of the other's value) worse; refuted where it is shown to be worse."""
    return _clause(text, Pair("not_worse", arm, than, metric, margin))


def same(arm: str, other: str, text: str = "", *, metric: str | None = None, margin: float | None = None) -> Clause:
    """The two differ by less than `margin` (a share of the other's value); refuted where a difference is shown."""
    return _clause(text, Pair("same", arm, other, metric, margin))


def all_of(text: str, *clauses: Clause) -> Clause:
    """Every clause holds; refuted where any is, by Holm over them."""
    return Clause(text, clauses, "all")


def any_of(text: str, *clauses: Clause) -> Clause:
    """Some clause holds, by Holm over them; refuted where every one is."""
    return Clause(text, clauses, "any")


def _clause(text: str, pair: Pair) -> Clause:
    return Clause(text or str(pair), (pair,))
