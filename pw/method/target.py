"""Two short steps make one long one  (Eqs. 4, 7.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pw.io.lazy import Tensor, torch
from pw.method.path import Velocity, broadcast
from pw.method.schedule import Schedule
from pw.method.step_sampler import Steps


@dataclass(frozen=True)
class TwoSteps:
    """The target of a long step: its mean velocity over two steps of half the stride, without gradient.

    halves          `span_weighted`: (Dsigma1 v1 + Dsigma2 v2) / (Dsigma1 + Dsigma2), which ends where the two steps
                    end. `equal`: (v1 + v2) / 2 as in Eq. 4; the same where a noise span is linear in the stride
                    (coordinate `timestep`), wrong elsewhere (docs/method.md).
    target_network  the network that evaluates the halves: `online` (the authors' code) or `ema`.
    """

    halves: Literal["span_weighted", "equal"]
    target_network: Literal["online", "ema"]

    def __call__(self, velocity: Velocity, state: Tensor, steps: Steps, schedule: Schedule) -> Tensor:
        """state [B, C, F, h, w] at steps.timestep -> target velocity, detached, the same shape."""
        half_stride = torch.where(steps.ground, torch.zeros_like(steps.stride), steps.stride / 2)
        first_span = schedule.noise_span(steps.timestep, steps.middle)
        second_span = schedule.noise_span(steps.middle, steps.end)
        with torch.no_grad():
            first = velocity(state, steps.timestep, half_stride)
            middle_state = state - broadcast(first_span, state) * first
            second = velocity(middle_state, steps.middle, half_stride)
            share = first_span / (first_span + second_span)
            if self.halves == "equal":
                share = torch.full_like(share, 0.5)
            share = broadcast(share, state)
            return share * first + (1 - share) * second
