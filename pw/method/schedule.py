"""The shifted noise schedule: timestep <-> sigma, and the noise a stride removes  (sec. 3.4, Eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pw.io.arguments import Range
from pw.io.lazy import Tensor, torch


def shifted(u: Tensor, shift: float) -> Tensor:
    """sigma = s u / (1 + (s - 1) u): with a shift s > 1, more of u in [0, 1] is at high noise  (docs/method.md)."""
    return shift * u / (1 + (shift - 1) * u)


def unshifted(sigma: Tensor, shift: float) -> Tensor:
    """The inverse of `shifted`: u = sigma / (s - (s - 1) sigma)."""
    return sigma / (shift - (shift - 1) * sigma)


@dataclass(frozen=True)
class Schedule:
    """N noise levels under a shift, and the meaning of a timestep.

    coordinate  `timestep`: a timestep is N sigma, so a noise span is stride / N (the authors' code; D1).
                `index`: a timestep is N u, and sigma = shifted(u) (the paper's text).
    snap        move training timesteps to the nearest of the N nodes, as a table look-up does.

    Raises ValueError on a shift <= 0, fewer than 2 nodes, or an unknown coordinate.
    """

    shift: float
    num_timesteps: Annotated[int, Range(2, 10_000)]
    coordinate: Literal["timestep", "index"]
    snap: bool

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise ValueError(f"schedule.shift={self.shift}: a shift is positive (1 leaves the grid as it is)")
        if self.num_timesteps < 2:
            raise ValueError(f"schedule.num_timesteps={self.num_timesteps}: needs at least 2")

    def sigma(self, timestep: Tensor) -> Tensor:
        """Noise level in [0, 1] of a timestep in [0, N]."""
        u = timestep / self.num_timesteps
        return u if self.coordinate == "timestep" else shifted(u, self.shift)

    def timestep(self, sigma: Tensor) -> Tensor:
        """The inverse of `sigma`."""
        u = sigma if self.coordinate == "timestep" else unshifted(sigma, self.shift)
        return u * self.num_timesteps

    def noise_span(self, timestep: Tensor, end: Tensor) -> Tensor:
        """Delta sigma >= 0 of the step timestep -> end  (Eq. 7, with the sign of D2: a step goes towards data)."""
        return (self.sigma(timestep) - self.sigma(end)).abs()

    def nodes(self) -> Tensor:
        """The N trained timesteps, float64 [N], from N (pure noise) down."""
        # float64: float32 does not give sigma = 1 at the first node
        u = torch.linspace(1, 0, self.num_timesteps + 1, dtype=torch.float64)[:-1]
        return self.timestep(shifted(u, self.shift))

    def snapped(self, timestep: Tensor) -> Tensor:
        """The node nearest to each timestep, or the timestep itself with `snap: false`."""
        if not self.snap:
            return timestep
        # nodes are evenly spaced in u, in either coordinate
        u = unshifted(self.sigma(timestep), self.shift) * self.num_timesteps
        indices = (u.floor().clamp(1, self.num_timesteps), u.ceil().clamp(1, self.num_timesteps))
        lower, upper = (self.timestep(shifted(n / self.num_timesteps, self.shift)) for n in indices)
        return torch.where((timestep - lower) < (upper - timestep), lower, upper)

    def network_timestep(self, timestep: Tensor) -> Tensor:
        """The timestep input of Wan's transformer: 1000 sigma in either coordinate, float32."""
        return (1000 * self.sigma(timestep)).float()
