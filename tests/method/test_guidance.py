"""pw.method.guidance and the guided halves of pw.method.target, on Gaussian data, where guidance is known exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pw.method.guidance import Baked, Guidance
from pw.method.path import Velocity
from pw.method.schedule import Schedule
from pw.method.solver import Euler, inference_grid, inference_strides
from pw.method.step_sampler import ExponentialIndex
from pw.method.target import TwoSteps

SCHEDULE = Schedule(4.5, 1000, "timestep", False)
MEAN, SPREAD = 0.7, 0.3


def flow_of(mean: float) -> Velocity:
    """The flow velocity of data N(mean, SPREAD^2), E[noise - data | state].

    It is affine in the mean: v_null + w (v - v_null) with null mean 0 is the velocity of data with mean w MEAN.
    """

    def velocity(state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
        sigma = SCHEDULE.sigma(timestep).to(state).view(-1, 1, 1, 1, 1)
        share = (1 - sigma) * SPREAD**2 / ((1 - sigma) ** 2 * SPREAD**2 + sigma**2)
        data = mean + share * (state - (1 - sigma) * mean)
        return (state - data) / sigma

    return velocity


def noise(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def times(value: float, batch: int = 2) -> Tensor:
    return torch.full((batch,), value, dtype=torch.float64)


def sampled(velocity: Velocity, steps: int = 40) -> Tensor:
    grid = inference_grid(steps, SCHEDULE)
    return Euler()(velocity, noise(), grid, inference_strides(grid), SCHEDULE)


def guided(guidance: Guidance, steps: int = 40) -> Tensor:
    grid = inference_grid(steps, SCHEDULE)
    return sampled(guidance(flow_of(MEAN), flow_of(0), guidance.last_guided(grid)), steps)


@pytest.mark.parametrize("scale", [0.5, 2.0, 5.0])
def test_guidance_of_gaussian_data_moves_the_mean_by_its_scale(scale: float):
    torch.testing.assert_close(guided(Guidance(scale, "text", None)), sampled(flow_of(scale * MEAN)))


def test_reusing_the_last_difference_is_exact_where_the_difference_is_constant():
    constant = lambda value: lambda state, timestep, stride: torch.full_like(state, value)  # noqa: E731
    v, null = constant(3.0), constant(1.0)
    grid = inference_grid(4, SCHEDULE)
    for later, expected in (("reuse", 11.0), ("unguided", 3.0)):  # 1 + 5 (3 - 1), or v itself
        guidance = Guidance(5.0, "text", 1, later)
        calls = guidance(v, null, guidance.last_guided(grid))
        assert [float(calls(noise(1), t[None], t[None]).mean()) for t in grid[:-1]] == [11.0, *[expected] * 3]


def test_reuse_evaluates_the_null_branch_in_the_first_steps_alone():
    evaluated: list[float] = []

    def null(state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
        evaluated.append(float(timestep[0]))
        return flow_of(0)(state, timestep, stride)

    grid, guidance = inference_grid(4, SCHEDULE), Guidance(2.0, "text", 2, "reuse")
    v = guidance(flow_of(MEAN), null, guidance.last_guided(grid))
    Euler()(v, noise(), grid, inference_strides(grid), SCHEDULE)
    assert evaluated == grid[:2].tolist()
    assert guidance.guided_steps(4) == 2


def test_the_difference_of_one_integration_is_not_used_in_the_next():
    guidance = Guidance(5.0, "text", 1, "reuse")
    first, second = (guidance(flow_of(MEAN), flow_of(mean), 900.0) for mean in (0.0, 0.4))
    first(noise(), times(1000), times(2))
    unguided = second(noise(), times(500), times(2))
    torch.testing.assert_close(unguided, flow_of(MEAN)(noise(), times(500), times(2)))


def test_baked_guidance_is_none_while_sampling():
    assert (Baked().guided_steps(4), Baked().scale) == (0, 1)


def target(guidance: str, scale: float) -> TwoSteps:
    return TwoSteps("span_weighted", "online", guidance, scale)


def test_baked_in_at_the_finest_stride_the_flow_is_guided_and_longer_strides_are_not():
    v = target("finest", 3.0).guided(flow_of(MEAN), flow_of(0))
    strides = torch.tensor([0.0, 100.0], dtype=torch.float64)
    short, long = v(noise(), times(700), strides).split(1)
    torch.testing.assert_close(short, flow_of(3 * MEAN)(noise(), times(700), strides)[:1])
    assert torch.equal(long, flow_of(MEAN)(noise(), times(700), strides)[1:])


def test_baked_in_at_every_stride_it_compounds():
    """The target of a rung guides what the rung below it has learned: after two rungs the mean is scale^2 MEAN."""
    guide = target("every", 3.0).guided
    rung_1 = guide(flow_of(MEAN), flow_of(0))
    rung_2 = guide(rung_1, flow_of(0))
    state, strides = noise(), times(100)
    torch.testing.assert_close(rung_2(state, times(700), strides), flow_of(9 * MEAN)(state, times(700), strides))


def test_the_target_of_a_grounded_step_is_the_mean_guided_velocity_of_its_halves():
    sampler = ExponentialIndex(0.0, 3, True, (800,), False)
    steps = sampler.draw(torch.tensor([0.999, 0.0], dtype=torch.float64), SCHEDULE)  # the last rung; the first
    assert steps.ground.tolist() == [True, False]
    guide = target("finest", 3.0)
    result = guide(guide.guided(flow_of(MEAN), flow_of(0)), noise(), steps, SCHEDULE)
    plain = TwoSteps("span_weighted", "online")
    torch.testing.assert_close(result[:1], plain(flow_of(3 * MEAN), noise(), steps, SCHEDULE)[:1])
    torch.testing.assert_close(result[1:], plain(flow_of(MEAN), noise(), steps, SCHEDULE)[1:])


@pytest.mark.parametrize(("guidance", "scale"), [("none", 3.0), ("finest", 1.0), ("every", 1.0)])
def test_guidance_of_a_target_and_its_scale_are_set_together(guidance: str, scale: float):
    with pytest.raises(ValueError, match=r"target\.guidance_scale=.* target\.guidance="):
        target(guidance, scale)
