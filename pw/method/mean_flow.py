"""MeanFlow: the mean velocity of any step from its derivative along the path  (Geng et al. 2025, arXiv 2505.13447)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pw.io.arguments import Range
from pw.io.lazy import Tensor, torch
from pw.method import path
from pw.method.objective import Draws, FlowWeight, Loss, Turns, flow_loss, squared_error
from pw.method.path import Velocity, broadcast
from pw.method.schedule import Schedule

Curve = Callable[[Tensor, Tensor], Tensor]  # (state, sigma [B]) -> a tensor like the state


@dataclass(frozen=True)
class MeanFlow:
    """|| u(x, T, s) - target ||^2, target = v - (sigma(T) - sigma(r)) du/dsigma, without gradient.

    du/dsigma is the total derivative along the path, on which x moves by v = noise - data; the end r = T - s stays, so
    the stride grows with the timestep. On the other turns T = r: flow matching.

    turns       which updates train strides
    derivative  `exact`: by forward-mode differentiation, for which attention is computed by torch's plain kernel;
                `difference`: of two evaluations on the path, `step` before and after, with any kernel
    step        of the difference, in sigma
    power       a clip's error counts 1 / (error + constant)^power, its adaptive weight; 0: every error counts the same

    When to use: for one step, or where the number of steps is not known in training.
    """

    turns: Turns
    derivative: Literal["exact", "difference"]
    step: Annotated[float, Range(1e-6, 0.1)]
    power: Annotated[float, Range(0, 2)]
    constant: Annotated[float, Range(1e-12, 1)]

    trains_strides = True
    uses_ema = depends_on_batch = False

    @property
    def step_sampler(self) -> None:
        """Every step between two nodes is trained."""

    @property
    def jumps_to_data(self) -> Literal["also"]:
        return "also"

    @property
    def target_evaluations(self) -> int:
        """A derivative costs as much as a forward, and comes with one; a difference is of two (docs/method.md)."""
        return 2

    def check(self, schedule: Schedule) -> None:
        """Fits every schedule."""

    def is_consistency(self, update: int) -> bool:
        return self.turns.is_consistency(update)

    def consistency_updates(self, updates: int) -> float:
        return self.turns.consistency_updates(updates)

    def __call__(
        self, velocity: Velocity, target: Velocity, data: Tensor, schedule: Schedule, draws: Draws, update: int
    ) -> Loss:
        """data [B, C, F, h, w] -> the update's term; `target` is differentiated along the path."""
        if not self.turns.is_consistency(update):
            loss = flow_loss(velocity, data, schedule, draws, FlowWeight("uniform"))
            assert loss.error is not None
            return Loss(self.weighted(loss.error), "flow", loss.error, loss.timestep, loss.stride)
        noise = draws.noise(data)
        timestep, end = node_pairs(draws.uniform(len(data)), schedule)
        timestep, end = timestep.to(data.device), end.to(data.device)
        state, flow = path.state(data, noise, schedule.sigma(timestep)), path.velocity(data, noise)
        mean_velocity = self.target(target, state, flow, timestep, end, schedule)
        error = squared_error(velocity(state, timestep, timestep - end), mean_velocity)
        return Loss(self.weighted(error), "meanflow", error, timestep, timestep - end)

    def weighted(self, error: Tensor) -> Tensor:
        """errors [B] -> loss."""
        return (error / (error.detach() + self.constant) ** self.power).mean()

    def target(
        self, velocity: Velocity, state: Tensor, flow: Tensor, timestep: Tensor, end: Tensor, schedule: Schedule
    ) -> Tensor:
        """The mean velocity of the step timestep -> end, [B] each, that the derivative of `velocity` says; detached."""

        def mean_velocity(state: Tensor, sigma: Tensor) -> Tensor:
            timestep = schedule.timestep(sigma)
            return velocity(state, timestep, (timestep - end).clamp(min=0))

        sigma = schedule.sigma(timestep)
        if self.derivative == "exact":
            slope = exact_slope(mean_velocity, state, flow, sigma)
        else:
            slope = difference(mean_velocity, state, flow, sigma, schedule.sigma(end), self.step)
        return flow - broadcast(schedule.noise_span(timestep, end), state) * slope


def exact_slope(curve: Curve, state: Tensor, flow: Tensor, sigma: Tensor) -> Tensor:
    """d curve(state + h flow, sigma + h) / dh at h = 0, by forward-mode differentiation, without gradient."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    forward_ad = torch.autograd.forward_ad
    # no fused kernel of attention can be differentiated forward
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        value = curve(forward_ad.make_dual(state, flow), forward_ad.make_dual(sigma, torch.ones_like(sigma)))
        slope = forward_ad.unpack_dual(value).tangent
    return torch.zeros_like(state) if slope is None else slope


def difference(curve: Curve, state: Tensor, flow: Tensor, sigma: Tensor, end: Tensor, step: float) -> Tensor:
    """The same by two evaluations, at sigma - step and sigma + step; nearer where these are below `end` or above 1."""
    lower, upper = torch.maximum(sigma - step, end), (sigma + step).clamp(max=1)
    on_path = lambda level: state + broadcast(level - sigma, state) * flow  # noqa: E731
    with torch.no_grad():
        rise = curve(on_path(upper), upper) - curve(on_path(lower), lower)
        return rise / broadcast((upper - lower).clamp(min=1e-12), state)


def node_pairs(uniform: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """uniform [B] in [0, 1), float64 -> (timestep, end) [B], timestep > end: of two independent nodes the noisier one
    and the other, where the end may also be 0.

    The first node is the one that flow matching takes; what the number has left over draws the second.
    """
    positions = torch.cat([schedule.nodes(), torch.zeros(1, dtype=torch.float64)]).to(uniform.device)
    count = len(positions) - 1
    first = (uniform * count).long()
    second = 1 + ((uniform * count - first) * count).long()
    start, end = torch.minimum(first, second), torch.maximum(first, second)
    return positions[start], positions[torch.where(start == end, end + 1, end).clamp(max=count)]
