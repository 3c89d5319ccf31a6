"""The clauses of a claim, as data. `experiments.engine.outcome.verdict` answers them.

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
