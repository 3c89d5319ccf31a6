"""pw.method.solver: inference grids, Euler and guidance, against the Gaussian world's closed form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pw.method.guidance import Guidance
from pw.method.schedule import Schedule
from pw.method.solver import Euler, custom_grid, inference_grid, inference_strides

TINY = Schedule(4.5, 1000, "timestep", True)
INDEX = Schedule(5.0, 1000, "index", True)


def noise(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_four_step_grid_at_shift_4_5_ends_on_a_trained_pair():
    # u = 1, .75, .5, .25: 4.5 u / (1 + 3.5 u) = 1, 3.375 / 3.625, 2.25 / 2.75, 1.125 / 1.875
    grid = inference_grid(4, TINY)
    assert grid.dtype == torch.float64
    assert grid.tolist() == pytest.approx([1000, 931.034483, 818.181818, 600, 0], abs=1e-6)


def test_the_four_step_noise_levels_at_shift_5_are_flow_map_eulers():
    # docs/method.md: 1, .9375, .8333, .625, 0, in either coordinate
    for coordinate in ("timestep", "index"):
        schedule = Schedule(5.0, 1000, coordinate, True)
        sigma = schedule.sigma(inference_grid(4, schedule))
        assert sigma.tolist() == pytest.approx([1, 0.9375, 0.8333333333, 0.625, 0], abs=1e-9)
    assert inference_grid(4, INDEX).tolist() == pytest.approx([1000, 750, 500, 250, 0], abs=1e-9)


def test_the_two_k_grid_of_the_authors():
    # docs/method.md: shift 5.5, start u = 0.999: 999, 942, 845, 646 -> 0
    grid = inference_grid(4, Schedule(5.5, 1000, "timestep", True), start=0.999)
    assert [int(t) for t in grid.tolist()] == [999, 942, 845, 646, 0]


def test_an_inference_shift_replaces_the_training_one():
    assert inference_grid(4, TINY, shift=1.0).tolist() == pytest.approx([1000, 750, 500, 250, 0], abs=1e-9)
    # in the index coordinate a sigma of 0.75 is the index 0.75 / (5 - 4 * 0.75) = 0.375
    assert inference_grid(4, INDEX, shift=1.0)[1].item() == pytest.approx(375, abs=1e-9)


@given(st.integers(1, 60), st.floats(0.3, 10), st.floats(0.05, 1), st.sampled_from(["timestep", "index"]))
def test_every_grid_falls_to_data_and_its_strides_are_even(n: int, shift: float, start: float, coordinate: str):
    grid = inference_grid(n, Schedule(4.5, 1000, coordinate, True), shift, start)
    assert grid.shape == (n + 1,)
    assert float(grid[0]) <= 1000 + 1e-9
    assert float(grid[-1]) == 0
    assert bool((grid[1:] < grid[:-1]).all())
    strides, steps = inference_strides(grid), grid[:-1] - grid[1:]
    assert bool((strides % 2 == 0).all())
    assert bool((strides >= 2).all())
    assert bool((steps - strides < 2).all())
    assert bool((strides <= steps.clamp(min=2) + 1e-5).all())


def test_the_strides_of_the_four_step_grid():
    # 68.97, 112.85, 218.18, 600 floored to even
    assert inference_strides(inference_grid(4, TINY)).tolist() == [68, 112, 218, 600]


def test_a_custom_grid_is_taken_as_given():
    assert custom_grid([1000, 931, 818, 600], TINY).tolist() == [1000, 931, 818, 600, 0]


@pytest.mark.parametrize("timesteps", [[], [500, 600], [600, 600], [1200, 500], [500, 0], [500, -10]])
def test_a_custom_grid_that_does_not_fall_within_the_schedule_is_refused_by_key(timesteps: list):
    with pytest.raises(ValueError, match=r"sampling\.timesteps"):
        custom_grid(timesteps, TINY)


@pytest.mark.parametrize(
    ("arguments", "key"), [((0,), "num_steps"), ((4, None, 0.0), "start"), ((4, None, 1.1), "start")]
)
def test_an_impossible_grid_is_refused_by_key(arguments: tuple, key: str):
    with pytest.raises(ValueError, match=rf"sampling\.{key}"):
        inference_grid(arguments[0], TINY, *arguments[1:])


@pytest.mark.parametrize("schedule", [TINY, INDEX], ids=["timestep", "index"])
@pytest.mark.parametrize("num_steps", [1, 2, 4, 7])
def test_euler_is_exact_on_a_straight_path(schedule: Schedule, num_steps: int):
    # data = 2 noise - 1: every path has the velocity noise - data, and arrives exactly
    start = noise()
    data, grid = 2 * start - 1, inference_grid(num_steps, schedule)
    result = Euler()(lambda state, timestep, stride: start - data, start, grid, inference_strides(grid), schedule)
    torch.testing.assert_close(result, data, atol=1e-6, rtol=0)


@pytest.mark.parametrize("schedule", [TINY, INDEX], ids=["timestep", "index"])
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_euler_is_exact_on_a_perfect_shortcut_at_any_number_of_steps(
    gaussian_world, schedule: Schedule, num_steps: int
):
    # x / S is constant, S(1) = 1, S(0) = sd
    world, grid = gaussian_world(0.5, schedule), inference_grid(num_steps, schedule)
    exact_strides = grid[:-1] - grid[1:]
    result = Euler()(world.velocity, noise(), grid, exact_strides, schedule)
    torch.testing.assert_close(result, 0.5 * noise(), atol=1e-6, rtol=0)


def test_euler_steps_by_spans_in_float64():
    ends = []
    for timesteps in ([1000, 931], [1000]):  # 931 / 1000 has no float32
        grid, x = custom_grid(timesteps, TINY), noise().double()
        first = lambda state, timestep, stride: torch.full_like(state, float(timestep[0] == 1000))  # noqa: E731
        ends.append(float((x - Euler()(first, x, grid, inference_strides(grid), TINY)).mean()))
    assert ends == pytest.approx([0.069, 1.0], abs=1e-12)


def test_euler_on_the_plain_flow_errs_by_the_first_order(gaussian_world):
    world = gaussian_world(0.5, TINY)
    errors = []
    for n in (16, 32, 64):
        grid = inference_grid(n, TINY)
        result = Euler()(world.velocity, noise(), grid, torch.zeros(n), TINY)
        errors.append(float((result / noise()).mean()) - 0.5)
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.25)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.15)


def test_euler_tells_the_velocity_each_timestep_and_stride():
    calls = []

    def velocity(state, timestep, stride):
        calls.append((timestep.tolist(), stride.tolist()))
        return torch.zeros_like(state)

    grid = custom_grid([1000, 600], TINY)
    assert torch.equal(Euler()(velocity, noise(), grid, inference_strides(grid), TINY), noise())
    assert calls == [([1000, 1000], [400, 400]), ([600, 600], [600, 600])]


def counted(value: float):
    """A constant velocity and the list of timesteps it was asked at."""
    calls: list[float] = []

    def velocity(state, timestep, stride):
        calls.append(float(timestep[0]))
        return torch.full_like(state, value)

    return velocity, calls


def test_guidance_extrapolates_from_the_null_velocity():
    # null 1, conditional 3, scale 5: 1 + 5 (3 - 1) = 11
    (velocity, _), (null, _) = counted(3.0), counted(1.0)
    guided = Guidance(5.0, "text", None)(velocity, null, 0.0)
    t = torch.full((2,), 500.0)
    assert torch.equal(guided(noise(), t, t), torch.full_like(noise(), 11.0))


def test_guidance_of_scale_one_evaluates_the_network_once():
    (velocity, calls), (null, null_calls) = counted(3.0), counted(1.0)
    t = torch.full((2,), 500.0)
    assert torch.equal(Guidance(1.0, "text", None)(velocity, null, 0.0)(noise(), t, t), torch.full_like(noise(), 3.0))
    assert (len(calls), len(null_calls)) == (1, 0)


@pytest.mark.parametrize(("first_steps", "guided_steps"), [(None, 4), (1, 1), (3, 3), (4, 4), (9, 4)])
def test_guidance_covers_the_first_steps_alone(first_steps: int | None, guided_steps: int):
    grid, guidance = inference_grid(4, TINY), Guidance(5.0, "text", first_steps)
    (velocity, calls), (null, null_calls) = counted(3.0), counted(1.0)
    guided = guidance(velocity, null, guidance.last_guided(grid))
    Euler()(guided, noise(), grid, inference_strides(grid), TINY)
    assert calls == grid[:-1].tolist()
    assert null_calls == grid[:guided_steps].tolist()


@pytest.mark.parametrize(
    ("arguments", "key"),
    [((5.0, "text", 0), r"guidance\.first_steps=0"), ((5.0, "text", None, "reuse"), r"guidance\.later=reuse")],
)
def test_impossible_guidance_is_refused_by_key(arguments: tuple, key: str):
    with pytest.raises(ValueError, match=key):
        Guidance(*arguments)
