"""Consistency training: every state of a path is mapped to the same data  (Song et al. 2023, arXiv 2303.01469)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pw.io.arguments import Range
from pw.io.lazy import Tensor, torch
from pw.method import path
from pw.method.objective import Draws, Loss, squared_error
from pw.method.path import Velocity, broadcast
from pw.method.schedule import Schedule, shifted

MOST_DOUBLINGS = 12


@dataclass(frozen=True)
class ConsistencyTraining:
    """d(f(x, T), f(x', T')), f(x, T) = x - sigma s(x, T, stride T): the data where the jump from x lands.

    T > T' are neighbours among K timesteps, x and x' the same data with the same noise; f(x', T') has no gradient, and
    is the data itself at T' = 0. Weighted by 1 / (sigma(T) - sigma(T'))  (Song & Dhariwal 2023, arXiv 2310.14189).

    target_network  of f(x', T'): `ema`, or `online` as in the second paper
    first_steps     K in the first updates, even in u; doublings: how often it doubles, evenly over `updates`
    distance        `pseudo_huber`: sqrt(error + huber^2) - huber; `squared`: the error, a mean square of latents
    huber           the second paper's is 0.00054

    When to use: for one or two steps, with `solver=consistency`; other steps are not trained.
    """

    target_network: Literal["ema", "online"]
    first_steps: Annotated[int, Range(1, 10_000)]
    doublings: Annotated[int, Range(0, MOST_DOUBLINGS)]
    updates: int
    distance: Literal["pseudo_huber", "squared"]
    huber: Annotated[float, Range(1e-9, 10)]

    trains_strides = True
    depends_on_batch = False

    @property
    def uses_ema(self) -> bool:
        return self.target_network == "ema"

    @property
    def step_sampler(self) -> None:
        """Jumps to data are trained, no steps of a grid."""

    @property
    def jumps_to_data(self) -> Literal["only"]:
        return "only"

    @property
    def target_evaluations(self) -> int:
        return 1

    def check(self, schedule: Schedule) -> None:
        most = self.first_steps * 2**self.doublings
        if most > schedule.num_timesteps:
            raise ValueError(
                f"objective.doublings={self.doublings}: from objective.first_steps={self.first_steps} they lead to "
                f"{most} timesteps, schedule.num_timesteps={schedule.num_timesteps} has fewer; set fewer doublings"
            )

    def is_consistency(self, update: int) -> bool:
        return True

    def consistency_updates(self, updates: int) -> float:
        return updates

    def steps(self, update: int) -> int:
        """K of an update."""
        doublings = update * (self.doublings + 1) // max(1, self.updates)
        return self.first_steps * 2 ** min(doublings, self.doublings)

    def __call__(
        self, velocity: Velocity, target: Velocity, data: Tensor, schedule: Schedule, draws: Draws, update: int
    ) -> Loss:
        """data [B, C, F, h, w] -> loss; `target` is evaluated at the less noisy of the two states."""
        noise, count = draws.noise(data), self.steps(update)
        place = (count - (draws.uniform(len(data)) * count).floor()).to(data.device)  # from K, pure noise, to 1
        timestep, end = (schedule.timestep(shifted(n / count, schedule.shift)) for n in (place, place - 1))
        with torch.no_grad():
            landing = jump(target, path.state(data, noise, schedule.sigma(end)), end, schedule)
        state = path.state(data, noise, schedule.sigma(timestep))
        error = squared_error(jump(velocity, state, timestep, schedule), landing)
        distance = error
        if self.distance == "pseudo_huber":
            distance = (error + self.huber**2).sqrt() - self.huber
        value = (distance / schedule.noise_span(timestep, end).to(distance)).mean()
        return Loss(value, "consistency", error, timestep, timestep)


def jump(velocity: Velocity, state: Tensor, timestep: Tensor, schedule: Schedule) -> Tensor:
    """f(x, T) = x - sigma s(x, T, stride T), x itself at T = 0; timestep [B]."""
    return state - broadcast(schedule.sigma(timestep), state) * velocity(state, timestep, timestep)
