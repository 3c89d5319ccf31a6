"""Which (timestep, stride) to train a shortcut on  (sec. 3.4, Eqs. 5-6).

A step sampler is a finite distribution: `table` lists every step it can draw with its probability, and `draw` picks
rows by inverse CDF. So two samplers with the same uniforms draw paired steps, expectations are exact sums, and the
coverage report needs no sampling.

To add one, subclass `TableSampler`, write `rows`, and name the class in a file of `conf/step_sampler/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Protocol

from pw.io.arguments import Range
from pw.io.lazy import Tensor, torch
from pw.method.schedule import Schedule
from pw.method.solver import inference_grid, inference_strides

Row = tuple[float, float, bool, float]  # timestep, stride, ground, probability


def even(stride: float) -> float:
    """The stride floored to even, at least 2: its two halves are then equal whole numbers  (D3)."""
    return max(2.0, stride // 2 * 2)


def stride_ladder(timestep: float, num_strides: int) -> list[float]:
    """Delta_k = floor(T / 2^k), k = 0 … K-1, made even  (Eq. 5)."""
    return [even(timestep // 2**k) for k in range(num_strides)]


def rung_probabilities(beta: float, num_strides: int) -> Tensor:
    """p(k) = exp(-beta k) / sum_j exp(-beta j), float64 [K]  (Eq. 6); beta = 0 is uniform."""
    return torch.softmax(-beta * torch.arange(num_strides, dtype=torch.float64), 0)


@dataclass(frozen=True)
class Steps:
    """A batch of shortcut steps timestep -> end, which two halves make, divided at `middle`. All fields are [B].

    timestep, middle, end   positions in the schedule's coordinate, timestep > middle > end >= 0
    stride                  timestep - end before snapping, the network's input
    ground                  True where the halves are evaluated at stride 0, the flow-trained velocity
    """

    timestep: Tensor
    middle: Tensor
    end: Tensor
    stride: Tensor
    ground: Tensor

    def __len__(self) -> int:
        return len(self.timestep)


@dataclass(frozen=True)
class StepTable:
    """Every step a step sampler can draw, with its probability: fields are float64 [M] (`ground` bool [M]).

    `timestep` and `stride` are nominal, before snapping to the schedule's nodes. Probabilities sum to 1.
    """

    timestep: Tensor
    stride: Tensor
    ground: Tensor
    probability: Tensor

    def __len__(self) -> int:
        return len(self.timestep)


class StepSampler(Protocol):
    """The sampler that objective, weighting and coverage use. Equal samplers have equal hashes (a frozen dataclass)."""

    def __hash__(self) -> int: ...

    def check(self, schedule: Schedule) -> None:
        """Raises ValueError when the sampler does not fit the schedule."""
        ...

    def table(self, schedule: Schedule) -> StepTable:
        """Every step that can be drawn, with its probability."""
        ...

    def draw(self, uniform: Tensor, schedule: Schedule) -> Steps:
        """uniform [B] in [0, 1) -> steps [B]."""
        ...


@dataclass(frozen=True)
class BiasedStrides(ABC):
    """Base of the samplers with K strides per start, k drawn with bias beta; the last rung may be grounded.

    beta         decay of p(k); 0 is uniform
    num_strides  K, how often a start is halved
    ground       evaluate the halves of the smallest stride at stride 0: half of it is never trained  (D4)

    Raises ValueError when K < 1 or beta is so large that a rung is never drawn.
    """

    beta: Annotated[float, Range(-50, 50)]
    num_strides: int
    ground: bool

    def __post_init__(self) -> None:
        if self.num_strides < 1:
            raise ValueError(f"step_sampler.num_strides={self.num_strides}: needs at least 1")
        if self.num_strides > 12:
            raise ValueError(f"step_sampler.num_strides={self.num_strides}: at most 12 (strides of 1/2048)")
        if abs(self.beta) * self.num_strides > 50:
            raise ValueError(f"step_sampler.beta={self.beta}: |beta| * num_strides above 50 leaves rungs undrawn")

    def check(self, schedule: Schedule) -> None:  # noqa: B027 (most fit every schedule)
        """Raises ValueError when the sampler does not fit the schedule."""

    @abstractmethod
    def rows(self, schedule: Schedule) -> Iterator[Row]:
        """(timestep, stride, ground, probability) of every step. A step may occur twice; probabilities sum to 1."""

    def table(self, schedule: Schedule) -> StepTable:
        """The rows as columns, in their order, which the inverse CDF follows."""
        return _table(self, schedule)

    def draw(self, uniform: Tensor, schedule: Schedule) -> Steps:
        """uniform [B] in [0, 1) -> steps [B] in float64, by inverse CDF."""
        table = self.table(schedule)
        row = torch.searchsorted(table.probability.cumsum(0), uniform.double().cpu(), right=True)
        row = row.clamp(max=len(table) - 1)
        pick = lambda column: column[row].to(uniform.device)  # noqa: E731
        timestep, stride = pick(table.timestep), pick(table.stride)
        middle, end = timestep - stride / 2, (timestep - stride).clamp(min=0)
        start_node, middle_node = schedule.snapped(timestep), schedule.snapped(middle)
        # snapping would empty one half of a step that is shorter than the node spacing: such a step is not snapped
        distinct = (start_node > middle_node) & (middle_node > end)
        return Steps(
            timestep=torch.where(distinct, start_node, timestep),
            middle=torch.where(distinct, middle_node, middle),
            end=end,
            stride=stride,
            ground=pick(table.ground),
        )

    def is_grounded(self, rung: int) -> bool:
        """Whether the halves of rung k are evaluated at stride 0."""
        return self.ground and rung == self.num_strides - 1


@lru_cache(maxsize=64)
def _table(sampler: BiasedStrides | TableSampler, schedule: Schedule) -> StepTable:
    timestep, stride, ground, probability = zip(*sampler.rows(schedule), strict=True)
    float64 = lambda column: torch.tensor(column, dtype=torch.float64)  # noqa: E731
    return StepTable(float64(timestep), float64(stride), torch.tensor(ground), float64(probability))


class TableSampler(ABC):
    """Base of a step sampler of your own, without fields: a subclass defines only `rows`."""

    @abstractmethod
    def rows(self, schedule: Schedule) -> Iterator[Row]: ...

    check, table, draw = BiasedStrides.check, BiasedStrides.table, BiasedStrides.draw


@dataclass(frozen=True)
class _FromStarts(BiasedStrides):
    """Base of the samplers whose trajectories begin at the timesteps `starts`.

    starts         e.g. 500, 600, 700, 800: the high-noise interval of sec. 3.4
    include_start  adds N, where every inference begins  (docs/method.md)
    """

    starts: tuple[int, ...]
    include_start: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.starts or min(self.starts) < 2 ** (self.num_strides - 1) * 2:
            raise ValueError(
                f"step_sampler.starts={list(self.starts)}: needs timesteps of at least {2**self.num_strides} "
                f"for num_strides={self.num_strides}"
            )

    def check(self, schedule: Schedule) -> None:
        if max(self.starts) > schedule.num_timesteps:
            raise ValueError(f"step_sampler.starts={list(self.starts)}: at most N={schedule.num_timesteps}")

    def start_timesteps(self, schedule: Schedule) -> list[float]:
        """The starts in rising order, and N with `include_start`."""
        first = {schedule.num_timesteps} if self.include_start else set()
        return [float(t) for t in sorted({*self.starts} | first)]

    def ladder_rows(self, schedule: Schedule) -> Iterator[tuple[int, float, float, float]]:
        """(rung, timestep, stride, probability) of Eqs. 5-6 with the start uniform."""
        starts = self.start_timesteps(schedule)
        p = rung_probabilities(self.beta, self.num_strides).tolist()
        for start in starts:
            for k, stride in enumerate(stride_ladder(start, self.num_strides)):
                yield k, start, stride, p[k] / len(starts)


@dataclass(frozen=True)
class ExponentialIndex(_FromStarts):
    """The paper's sampler: T uniform over the starts, Delta = floor(T / 2^k), k ~ p(k)  (Eqs. 5-6).

    When to use: to reproduce the paper, or as the baseline of a new sampler. The second steps of its targets start
    where nothing was trained (`pw coverage`).
    """

    def rows(self, schedule: Schedule) -> Iterator[Row]:
        for k, timestep, stride, p in self.ladder_rows(schedule):
            yield timestep, stride, self.is_grounded(k), p


@dataclass(frozen=True)
class Closed(_FromStarts):
    """The paper's set, stepping into the second half with probability `descend`, at most `depth` times.

    So (T - Delta/2, Delta/2), which the targets evaluate, is trained too.

    When to use: when the targets of the paper's set overshoot. The starts themselves are trained less often.
    """

    descend: float
    depth: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.descend <= 1:
            raise ValueError(f"step_sampler.descend={self.descend}: a probability, 0 to 1")

    def rows(self, schedule: Schedule) -> Iterator[Row]:
        for k, timestep, stride, p in self.ladder_rows(schedule):
            yield from self._descend(k, timestep, stride, p, self.depth)

    def _descend(self, k: int, timestep: float, stride: float, p: float, depth: int) -> Iterator[Row]:
        p_descend = self.descend if depth and k < self.num_strides - 1 else 0.0
        if p_descend < 1:
            yield timestep, stride, self.is_grounded(k), p * (1 - p_descend)
        if p_descend:
            half = stride / 2
            yield from self._descend(k + 1, timestep - half, half, p * p_descend, depth - 1)


@dataclass(frozen=True)
class Chain(_FromStarts):
    """Every state of a Delta-trajectory: T = start - j Delta >= Delta, j uniform.

    When to use: to sample with equal strides from one of the starts.
    """

    def rows(self, schedule: Schedule) -> Iterator[Row]:
        for k, start, stride, p in self.ladder_rows(schedule):
            states = int(start // stride)
            for j in range(states):
                yield start - j * stride, stride, self.is_grounded(k), p / states


@dataclass(frozen=True)
class Original(BiasedStrides):
    """The first shortcut models' grid: Delta = N / 2^k and T a multiple of Delta; closed under halving.

    "Shortcut Original Sampling" of Table 9.3, with beta = 0.

    When to use: to sample in 1, 2, 4, 8, … steps. Other numbers of steps have strides that it never trains.
    """

    def rows(self, schedule: Schedule) -> Iterator[Row]:
        p = rung_probabilities(self.beta, self.num_strides).tolist()
        for k in range(self.num_strides):
            stride = schedule.num_timesteps / 2**k
            for j in range(2**k):
                yield schedule.num_timesteps - j * stride, stride, self.is_grounded(k), p[k] / 2**k


@dataclass(frozen=True)
class FullRange(BiasedStrides):
    """T uniform over every node large enough for K halvings, Delta = floor(T / 2^k).

    When to use: when the inference grid is not known in training. Every step is covered, but seldom drawn.
    """

    def check(self, schedule: Schedule) -> None:
        if schedule.num_timesteps < 2**self.num_strides:
            raise ValueError(
                f"step_sampler.num_strides={self.num_strides}: N={schedule.num_timesteps} has no such halvings"
            )

    def rows(self, schedule: Schedule) -> Iterator[Row]:
        p = rung_probabilities(self.beta, self.num_strides).tolist()
        starts = [t for t in schedule.nodes().tolist() if t >= 2**self.num_strides]
        for start in starts:
            for k, stride in enumerate(stride_ladder(start, self.num_strides)):
                yield start, stride, self.is_grounded(k), p[k] / len(starts)


@dataclass(frozen=True)
class Aligned(BiasedStrides):
    """The pairs that inference uses (D6): a step of a uniform n-step grid, or one of its 2^k equal parts.

    grids  numbers of inference steps to train for, e.g. 2, 3, 4, 5, at the training shift

    Closed under halving (but for the grounded rung), so every target is made of trained steps.

    When to use: when the number of inference steps is known.
    """

    grids: tuple[Annotated[int, Range(1, 1000)], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.grids or min(self.grids) < 1:
            raise ValueError(f"step_sampler.grids={list(self.grids)}: numbers of inference steps, each at least 1")

    def rows(self, schedule: Schedule) -> Iterator[Row]:
        p = rung_probabilities(self.beta, self.num_strides).tolist()
        for n in self.grids:
            grid = inference_grid(n, schedule)
            for timestep, stride in zip(grid[:-1].tolist(), inference_strides(grid).tolist(), strict=True):
                for k in range(self.num_strides):
                    part = stride / 2**k
                    for j in range(2**k):
                        weight = p[k] / 2**k / n / len(self.grids)
                        yield timestep - j * part, part, self.is_grounded(k), weight
