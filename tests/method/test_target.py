"""pw.method.target: two exact halves make the exact long step, and what the 1/2-1/2 rule does instead."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pw.method import path
from pw.method.schedule import Schedule
from pw.method.step_sampler import Steps
from pw.method.target import TwoSteps

INDEX, TIMESTEP = Schedule(5.0, 1000, "index", True), Schedule(5.0, 1000, "timestep", False)
SPAN = TwoSteps("span_weighted", "online")
EQUAL = TwoSteps("equal", "online")


def step(timestep: float, stride: float, ground: bool = False, batch: int = 1) -> Steps:
    full = lambda value: torch.full((batch,), value, dtype=torch.float64)  # noqa: E731
    return Steps(
        full(timestep), full(timestep - stride / 2), full(timestep - stride), full(stride), full(float(ground)).bool()
    )


def states(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def end_point_scale(target: TwoSteps, velocity, schedule: Schedule, timestep: float, stride: float) -> float:
    """How much of a state is left after the step that the target asks for."""
    x, steps = states(), step(timestep, stride)
    v = target(velocity, x, steps, schedule)
    end = x - path.broadcast(schedule.noise_span(steps.timestep, steps.end), x) * v
    ratio = end / x
    assert float(ratio.std()) < 1e-12
    return float(ratio.mean())


@pytest.mark.parametrize(
    ("sd", "timestep", "stride", "exact", "equal"),
    [  # docs/method.md, shift 5. (800, 800), sd 0.5: S(0) = 0.5, S(0.95238)^2 = 0.04762^2 / 4 + 0.95238^2 -> 0.52484
        (0.5, 800, 800, 0.525, 0.342),
        (1.0, 800, 800, 1.049, 0.718),
        (0.5, 500, 250, 0.779, 0.778),
    ],
)
def test_perfect_halves_on_gaussian_data(gaussian_world, sd, timestep, stride, exact, equal):
    """Span-weighted lands where the exact flow does; the 1/2-1/2 of Eq. 4 shrinks the longest steps by a third."""
    world = gaussian_world(sd, INDEX)
    spread = lambda t: world.spread(float(INDEX.sigma(torch.tensor(float(t), dtype=torch.float64))))  # noqa: E731
    closed_form = spread(timestep - stride) / spread(timestep)
    assert closed_form == pytest.approx(exact, abs=5e-4)
    assert end_point_scale(SPAN, world.velocity, INDEX, timestep, stride) == pytest.approx(closed_form, abs=1e-12)
    assert end_point_scale(EQUAL, world.velocity, INDEX, timestep, stride) == pytest.approx(equal, abs=5e-4)


def test_the_exact_world_is_the_flow_of_its_data(gaussian_world):
    # at stride 0 the velocity is E[noise - data | state]: its regression slope on states, from 400,000 samples
    world, generator = gaussian_world(0.5, INDEX), torch.Generator().manual_seed(0)
    data, noise = 0.5 * torch.randn(400_000, generator=generator), torch.randn(400_000, generator=generator)
    for timestep in (200.0, 800.0):
        t = torch.tensor([timestep], dtype=torch.float64)
        x = path.state(data[None], noise[None], INDEX.sigma(t))[0]
        slope = float((x * (noise - data)).mean() / x.square().mean())
        assert float(world.velocity(torch.ones(1, 1), t, 0 * t)) == pytest.approx(slope, abs=0.01)


@given(st.floats(0.5, 9), st.floats(0.1, 3), st.floats(20, 1000), st.floats(0.05, 1))
def test_span_weighted_halves_land_where_the_two_steps_land(gaussian_world, shift, sd, timestep, fraction):
    schedule = Schedule(shift, 1000, "index", False)
    world, stride = gaussian_world(sd, schedule), timestep * fraction
    x, steps = states(), step(timestep, stride)
    first, second = schedule.noise_span(steps.timestep, steps.middle), schedule.noise_span(steps.middle, steps.end)
    half = steps.stride / 2
    middle = x - path.broadcast(first, x) * world.velocity(x, steps.timestep, half)
    landed = middle - path.broadcast(second, x) * world.velocity(middle, steps.middle, half)
    v = SPAN(world.velocity, x, steps, schedule)
    torch.testing.assert_close(x - path.broadcast(first + second, x) * v, landed, atol=1e-10, rtol=0)


@given(st.floats(20, 1000), st.floats(0.05, 1))
def test_in_the_timestep_coordinate_span_weighting_is_the_half_and_half_of_eq_4(gaussian_world, timestep, fraction):
    velocity, x, steps = gaussian_world(0.5, TIMESTEP).velocity, states(), step(timestep, timestep * fraction)
    span, equal = (target(velocity, x, steps, TIMESTEP) for target in (SPAN, EQUAL))
    torch.testing.assert_close(span, equal, atol=1e-10, rtol=0)


def test_in_the_index_coordinate_they_differ_on_a_velocity_that_is_sigma():
    # T = D = 500, shift 5: halves span 0.2083 and 0.6250; v = sigma at T, Tm: 0.8333, 0.6250. docs/method.md takes each
    # half's own mean, (0.8333 + 0.6250) / 2 and 0.6250 / 2: 0.25 * 0.7292 + 0.75 * 0.3125 = 0.4167, and 1/2-1/2: 0.5208
    def mean_sigma(state, timestep, stride):
        v = (INDEX.sigma(timestep) + INDEX.sigma(timestep - stride)) / 2
        return path.broadcast(v, state).expand_as(state)

    for target, expected in ((SPAN, 0.4166667), (EQUAL, 0.5208333)):
        v = target(mean_sigma, states(), step(500, 500), INDEX)
        torch.testing.assert_close(v, torch.full_like(v, expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("target", [SPAN, EQUAL], ids=["span_weighted", "equal"])
@pytest.mark.parametrize("schedule", [TIMESTEP, INDEX], ids=["timestep", "index"])
def test_a_constant_velocity_is_its_own_target(target: TwoSteps, schedule: Schedule):
    field = states(2)
    v = target(lambda state, timestep, stride: field, states(2), step(800, 400, batch=2), schedule)
    torch.testing.assert_close(v, field, atol=1e-12, rtol=0)


def test_the_halves_are_asked_for_at_half_the_stride_and_grounded_ones_at_zero():
    calls = []

    def velocity(state, timestep, stride):
        calls.append((timestep.tolist(), stride.tolist()))
        return torch.zeros_like(state)

    steps = Steps(
        *(torch.tensor(v, dtype=torch.float64) for v in ([800, 500], [400, 493], [0, 486], [800, 14])),
        torch.tensor([False, True]),
    )
    SPAN(velocity, states(2), steps, INDEX)
    assert calls == [([800, 500], [400, 0]), ([400, 493], [400, 0])]


def test_the_second_half_starts_where_the_first_one_landed():
    states_seen = []

    def velocity(state, timestep, stride):
        states_seen.append(state.clone())
        return torch.ones_like(state)

    x = states()
    SPAN(velocity, x, step(500, 500), INDEX)
    # sigma(500) - sigma(250) = 0.833333 - 0.625
    torch.testing.assert_close(states_seen[1], x - (2.5 / 3 - 0.625), atol=1e-12, rtol=0)


def test_the_target_carries_no_gradient():
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    x = states().requires_grad_()
    target = SPAN(lambda state, timestep, stride: weight * state, x, step(800, 400), INDEX)
    assert not target.requires_grad
    assert target.grad_fn is None


def test_samples_of_a_batch_do_not_mix(gaussian_world):
    world, x = gaussian_world(0.5, INDEX), states(2)
    pair = [step(800, 800), step(500, 62, ground=True)]
    joined = Steps(
        *(torch.cat([getattr(s, f) for s in pair]) for f in ("timestep", "middle", "end", "stride", "ground"))
    )
    batched = SPAN(world.velocity, x, joined, INDEX)
    for i, single in enumerate(pair):
        torch.testing.assert_close(batched[i : i + 1], SPAN(world.velocity, x[i : i + 1], single, INDEX))
