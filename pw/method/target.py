"""Two short steps make one long one  (Eqs. 4, 7.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pw.io.arguments import Range
from pw.io.lazy import Tensor, torch
from pw.method.guidance import Drop
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
    guidance        of the halves, so that the trained velocity needs none while sampling (`guidance=baked`): `finest`:
                    at stride 0, where the smallest stride is grounded, and longer strides inherit it; `every`: at every
                    stride, so that it compounds from stride to stride
    guidance_scale  of it; guidance_drop: what its null branch goes without (`pw.method.guidance.Guidance`)
    """

    halves: Literal["span_weighted", "equal"]
    target_network: Literal["online", "ema"]
    guidance: Literal["none", "finest", "every"] = "none"
    guidance_scale: Annotated[float, Range(0, 100)] = 1.0
    guidance_drop: Drop = "text"

    def __post_init__(self) -> None:
        if (self.guidance == "none") != (self.guidance_scale == 1):
            raise ValueError(
                f"target.guidance_scale={self.guidance_scale:g} target.guidance={self.guidance}: set both, e.g. "
                "target.guidance=finest target.guidance_scale=3, or leave both out"
            )
        if self.guidance == "none" and self.guidance_drop != "text":
            raise ValueError(
                f"target.guidance_drop={self.guidance_drop}: is of target.guidance=finest or every; set one, or leave "
                "it out"
            )

    def guided(self, velocity: Velocity, null: Velocity) -> Velocity:
        """The velocity of the halves: v + (scale - 1) (v - v_null) where it is guided, v elsewhere.

        Evaluates both everywhere: processes that share a network must evaluate it equally often.
        """

        def guided(state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
            v = velocity(state, timestep, stride)
            is_guided = stride == 0 if self.guidance == "finest" else torch.ones_like(stride, dtype=torch.bool)
            excess = broadcast(torch.where(is_guided, self.guidance_scale - 1, 0.0), v)
            return v + excess * (v - null(state, timestep, stride))

        return guided

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
