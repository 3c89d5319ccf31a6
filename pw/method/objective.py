"""What is minimised: flow matching, or flow matching and shortcut consistency in turn  (Eqs. 4, 7.3, 7.7, 7.8).

Its rivals from elsewhere are in `pw.method.mean_flow` and `pw.method.consistency_model`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

from pw.io.arguments import Seed
from pw.io.lazy import Tensor, torch
from pw.method import path
from pw.method.path import Velocity
from pw.method.schedule import Schedule
from pw.method.step_sampler import StepSampler
from pw.method.target import TwoSteps
from pw.method.weighting import Weighting


class Draws(Protocol):
    """The random numbers of one update, a pure function of (seed, update): the same in every arm."""

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal of `like`'s shape."""
        ...

    def uniform(self, batch: int) -> Tensor:
        """[B] in [0, 1), float64."""
        ...


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise, and which term it is.

    error  [B], the squared error of each clip before it is weighted, at its `timestep` and `stride`, [B] each. Curves
           show it; an objective may leave the three out
    """

    value: Tensor
    term: Literal["flow", "consistency", "meanflow"]
    error: Tensor | None = None
    timestep: Tensor | None = None
    stride: Tensor | None = None

    def detach(self) -> Loss:
        """The same without a graph."""
        return replace(self, value=self.value.detach(), error=None if self.error is None else self.error.detach())


class Objective(Protocol):
    """What a training minimises. To add one, write such a dataclass and name it in a file of `conf/objective/`.

    A field named after a config group (turns, step_sampler, weighting, target) gets that group's choice.

    trains_strides    whether the network learns strides other than 0; if not, it is sampled at stride 0
    uses_ema          whether `target` in a call is the velocity of the EMA network; if not, of the trained one
    depends_on_batch  whether a clip's loss depends on the other clips of its batch; such a batch must not be split

    What only plans a training and does not change its loss is a method or a property: `pw.run.signatures.PLANNING`.
    """

    trains_strides: bool

    @property
    def uses_ema(self) -> bool: ...

    @property
    def depends_on_batch(self) -> bool: ...

    @property
    def step_sampler(self) -> StepSampler | None:
        """The sampler of (timestep, stride), None if the trained steps are no list: stride 0 alone, or all."""
        ...

    @property
    def jumps_to_data(self) -> Literal["never", "also", "only"]:
        """Whether the step from any timestep to 0 is trained, as `solver=consistency` needs; `only`: and no other."""
        ...

    @property
    def target_evaluations(self) -> int:
        """Evaluations of the network for the target of a consistency update, without gradient."""
        ...

    def __call__(
        self, velocity: Velocity, target: Velocity, data: Tensor, schedule: Schedule, draws: Draws, update: int
    ) -> Loss:
        """data [B, C, F, h, w] -> loss. `velocity` is trained; `target` computes its targets, without gradient."""
        ...

    def check(self, schedule: Schedule) -> None:
        """Raises ValueError when a part does not fit the schedule."""
        ...

    def is_consistency(self, update: int) -> bool:
        """Whether an update has a target of the network's own, which costs `target_evaluations` more."""
        ...

    def consistency_updates(self, updates: int) -> float:
        """Number of consistency updates among the first `updates`; the expected number if they are drawn at random."""
        ...


@dataclass(frozen=True)
class FlowWeight:
    """Per-timestep weight of the flow loss, mean 1 over the nodes.

    `uniform`, or `bell`: exp(-2 ((1000 sigma - 500) / 1000)^2) less its minimum. `bell_batch` divides by the mean over
    the batch instead, as the authors' code does; in a batch of one clip it is then 1 (0 at its minimum).
    """

    shape: Literal["uniform", "bell", "bell_batch"]

    @property
    def depends_on_batch(self) -> bool:
        return self.shape == "bell_batch"

    def __call__(self, timestep: Tensor, schedule: Schedule) -> Tensor:
        """timestep [B] -> weight [B]."""
        if self.shape == "uniform":
            return torch.ones_like(timestep)
        bell = lambda t: torch.exp(-2 * (schedule.sigma(t) - 0.5) ** 2)  # noqa: E731
        nodes = bell(schedule.nodes().to(timestep.device))
        weight = bell(timestep) - nodes.min()
        return weight / (weight if self.depends_on_batch else nodes - nodes.min()).mean().clamp(min=1e-8)


@dataclass(frozen=True)
class Flow:
    """L_flow = || v(x, T, stride 0) - (noise - data) ||^2, T uniform over the N nodes  (Eq. 7.3).

    A model trained with this alone must be sampled at stride 0, the only one it was trained on.

    When to use: for stage I, for starts, and as the many-step baseline.
    """

    flow_weight: Literal["uniform", "bell", "bell_batch"]

    trains_strides = uses_ema = False

    @property
    def depends_on_batch(self) -> bool:
        return FlowWeight(self.flow_weight).depends_on_batch

    @property
    def step_sampler(self) -> None:
        """Only stride 0 is trained."""

    @property
    def jumps_to_data(self) -> Literal["never"]:
        return "never"

    @property
    def target_evaluations(self) -> int:
        return 0

    def check(self, schedule: Schedule) -> None:
        """Fits every schedule."""

    def is_consistency(self, update: int) -> bool:
        return False

    def consistency_updates(self, updates: int) -> float:
        return 0

    def __call__(
        self, velocity: Velocity, target: Velocity, data: Tensor, schedule: Schedule, draws: Draws, update: int
    ) -> Loss:
        """data [B, C, F, h, w] -> loss; `target` and `update` are not used."""
        return flow_loss(velocity, data, schedule, draws, FlowWeight(self.flow_weight))


def flow_loss(velocity: Velocity, data: Tensor, schedule: Schedule, draws: Draws, weight: FlowWeight) -> Loss:
    """Mean over the batch of weight(T) * MSE(velocity, noise - data)  (Eq. 7.3)."""
    noise = draws.noise(data)
    nodes = schedule.nodes().to(data.device)
    timestep = nodes[(draws.uniform(len(data)) * len(nodes)).long()]
    state = path.state(data, noise, schedule.sigma(timestep))
    stride = torch.zeros_like(timestep)
    error = squared_error(velocity(state, timestep, stride), path.velocity(data, noise))
    value = (weight(timestep, schedule).to(error) * error).mean()
    return Loss(value, "flow", error, timestep, stride)


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """[B, …] twice -> mean squared error of each clip, [B], in float32: a bf16 mean over 10^7 elements loses the small
    errors."""
    return (predicted.float() - target.float()).square().flatten(1).mean(1)


class Turns(Protocol):
    """Chooses the updates that minimise the consistency term; the methods are those of `Objective`.

    The choice depends on the update alone, so that every rank takes the same branch.
    """

    def is_consistency(self, update: int) -> bool: ...

    def consistency_updates(self, updates: int) -> float: ...


@dataclass(frozen=True)
class Alternate:
    """Flow on even updates, consistency on odd ones ("alternating mini-batches", sec. 3.4).

    When to use: to follow the paper's text.
    """

    def is_consistency(self, update: int) -> bool:
        return update % 2 == 1

    def consistency_updates(self, updates: int) -> float:
        return updates // 2


@dataclass(frozen=True)
class Bernoulli:
    """Consistency with probability `rate`, by a hash of (seed, update): the authors' code, rate 0.3.

    When to use: to choose the share of consistency updates, which cost about twice as much as flow updates.
    """

    rate: float
    seed: Seed

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"turns.rate={self.rate}: a probability, 0 to 1")

    def is_consistency(self, update: int) -> bool:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + update)
        return float(torch.rand((), generator=generator)) < self.rate

    def consistency_updates(self, updates: int) -> float:
        return self.rate * updates


@dataclass(frozen=True)
class Shortcut:
    """Flow and consistency batches in turn: L_flow, then L_ANC = lambda * || s(x, T, D) - target ||^2  (Eqs. 4, 8).

    When to use: for sampling in few steps.
    """

    flow_weight: Literal["uniform", "bell", "bell_batch"]
    turns: Turns
    step_sampler: StepSampler
    weighting: Weighting
    target: TwoSteps

    trains_strides = True

    @property
    def uses_ema(self) -> bool:
        return self.target.target_network == "ema"

    @property
    def depends_on_batch(self) -> bool:
        return FlowWeight(self.flow_weight).depends_on_batch or getattr(self.weighting, "depends_on_batch", False)

    @property
    def jumps_to_data(self) -> Literal["never"]:
        """From the starts of its step sampler alone."""
        return "never"

    @property
    def target_evaluations(self) -> int:
        """Two halves, in each branch where they are guided."""
        return 2 if self.target.guidance == "none" else 4

    def check(self, schedule: Schedule) -> None:
        self.step_sampler.check(schedule)

    def is_consistency(self, update: int) -> bool:
        return self.turns.is_consistency(update)

    def consistency_updates(self, updates: int) -> float:
        return self.turns.consistency_updates(updates)

    def __call__(
        self, velocity: Velocity, target: Velocity, data: Tensor, schedule: Schedule, draws: Draws, update: int
    ) -> Loss:
        """data [B, C, F, h, w] -> the update's term; `target` evaluates the two half steps."""
        if self.turns.is_consistency(update):
            return self.consistency_loss(velocity, target, data, schedule, draws)
        return flow_loss(velocity, data, schedule, draws, FlowWeight(self.flow_weight))

    def consistency_loss(
        self, velocity: Velocity, target: Velocity, data: Tensor, schedule: Schedule, draws: Draws
    ) -> Loss:
        """L_ANC = mean over the batch of lambda(T, D) * MSE(s(x, T, D), target)  (Eqs. 4, 8)."""
        noise = draws.noise(data)
        steps = self.step_sampler.draw(draws.uniform(len(data)), schedule)
        state = path.state(data, noise, schedule.sigma(steps.timestep))
        target_velocity = self.target(target, state, steps, schedule)
        error = squared_error(velocity(state, steps.timestep, steps.stride), target_velocity)
        value = (self.weighting(steps, schedule, self.step_sampler).to(error) * error).mean()
        return Loss(value, "consistency", error, steps.timestep, steps.stride)
