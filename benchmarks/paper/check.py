"""A check of the paper's numbers, and the arithmetic of rounded numbers that checks are made with.

A printed number stands for the interval that rounds to it: 146 s is 145.5 to 146.5. What is derived from such
numbers has an interval too, and a printed result adds up if its own interval meets that one; so a finding is never
rounding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.paper import PaperTable, number

Kind = Literal["derived", "consistency", "claim"]
Tables = Mapping[str, PaperTable]


@dataclass(frozen=True)
class Interval:
    """All values that a printed number, or a result of printed numbers, can stand for."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """Of both ends."""
        return (self.low + self.high) / 2

    def meets(self, other: Interval) -> bool:
        """Whether they have a value in common, up to the round-off of the arithmetic here."""
        slack = 1e-9 * max(abs(self.low), abs(other.low))
        return self.low <= other.high + slack and other.low <= self.high + slack


@dataclass(frozen=True)
class Check:
    """One thing that was recomputed.

    tables: the tables it concerns. place: table and row, or section, where it is printed.
    possible: what the inputs allow, given how they are rounded; None where it is not about a number.
    inference: the smallest correction that would make it add up, if there is one.
    """

    kind: Kind
    tables: tuple[str, ...]
    place: str
    row: str
    column: str
    printed: str
    recomputed: str
    how: str
    adds_up: bool
    possible: Interval | None = None
    inference: str = ""


def rounding(text: str, unit: str = "") -> Interval:
    """The values that are printed so: half a unit of the last printed digit to both sides.

    Raises: ValueError for a text that is no number.
    """
    value = number(text, unit)
    if value is None:
        raise ValueError(f"{text!r} is not a number")
    exponent = value.as_tuple().exponent
    half = 0.5 * 10.0 ** (exponent if isinstance(exponent, int) else 0)
    return Interval(float(value) - half, float(value) + half)


def size(text: str) -> tuple[int, ...]:
    """The numbers of "121*2560*1440" or "2240x1280"."""
    return tuple(int(part) for part in re.split(r"[*x×]", text))


def ends(interval: Interval, like: str) -> str:
    """Both ends in the notation of a printed number, with one digit more."""
    power = int(like.partition("e")[2] or 0)
    value = number(like.partition("e")[0])
    last = value.as_tuple().exponent if value is not None else 0
    decimals = max(0, 1 - (last if isinstance(last, int) else 0))
    texts = [
        f"{end / 10.0**power:,.{decimals}f}{f'e{power}' if power else ''}" for end in (interval.low, interval.high)
    ]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


def listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
