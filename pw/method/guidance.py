"""Classifier-free guidance: away from the velocity of a network that goes without a part of its condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pw.io.arguments import Range
from pw.io.lazy import Tensor
from pw.method.path import Velocity

Drop = Literal["text", "text_and_anchor"]


@dataclass(frozen=True)
class Guidance:
    """v_null + scale (v - v_null), in every step or in the first ones; at scale 1 none.

    scale        5.0 is Wan's default; 1 evaluates the network once
    drop         what the null branch goes without: `text` (both branches get the anchor) or `text_and_anchor`
    first_steps  steps from the start that evaluate the null branch; null: all
    later        the steps after them: `unguided`, or `reuse`: v + (scale - 1) times the last difference v - v_null

    When to use: `first_steps` and `reuse` where each guided step costs two evaluations and the condition decides early.
    """

    scale: Annotated[float, Range(0, 100)]
    drop: Drop
    first_steps: int | None
    later: Literal["unguided", "reuse"] = "unguided"

    def __post_init__(self) -> None:
        if self.first_steps is not None and self.first_steps < 1:
            raise ValueError(f"guidance.first_steps={self.first_steps}: needs at least 1; guidance=off guides none")
        if self.first_steps is None and self.later == "reuse":
            raise ValueError("guidance.later=reuse: with guidance.first_steps=null no step is later; set it, e.g. 1")

    def __call__(
        self, velocity: Velocity, null: Velocity, last_guided: float, both_branches: Velocity | None = None
    ) -> Velocity:
        """The guided velocity of one integration; timesteps below `last_guided` evaluate no null branch.

        both_branches  evaluates both as one batch, [2 B, …]: faster, with more memory
        """
        difference: Tensor | None = None

        def guided(state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
            nonlocal difference
            if self.scale == 1 or float(timestep[0]) < last_guided:
                v = velocity(state, timestep, stride)
                return v if difference is None else v + (self.scale - 1) * difference
            if both_branches is not None:
                v, base = both_branches(state, timestep, stride).chunk(2)
            else:
                v, base = velocity(state, timestep, stride), null(state, timestep, stride)
            if self.later == "reuse":
                difference = v - base
            return base + self.scale * (v - base)

        return guided

    def guided_steps(self, steps: int) -> int:
        """How many of `steps` evaluate the null branch."""
        if self.scale == 1:
            return 0
        return steps if self.first_steps is None else min(steps, self.first_steps)

    def last_guided(self, grid: Tensor) -> float:
        """The lowest timestep of the grid that evaluates the null branch."""
        steps = self.guided_steps(len(grid) - 1)
        return float(grid[steps - 1]) if steps else float("inf")


@dataclass(frozen=True)
class Baked:
    """None while sampling: training has put it into the velocity (`target.guidance`), for one evaluation a step.

    When to use: for the fewest evaluations. The scale cannot be changed after training.
    """

    scale: ClassVar[float] = 1.0
    drop: ClassVar[Drop] = "text"
    first_steps: ClassVar[None] = None
    later: ClassVar[Literal["unguided"]] = "unguided"

    def guided_steps(self, steps: int) -> int:
        return 0
