"""pw.method.consistency_model and the solver of its jumps, on Gaussian data, where the jump to data is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pw.method import path
from pw.method.consistency_model import ConsistencyTraining, jump
from pw.method.schedule import Schedule
from pw.method.solver import Euler, JumpAndRenoise, fresh_noise, inference_grid, inference_strides

SCHEDULE = Schedule(4.5, 1000, "timestep", True)
INDEX = Schedule(5.0, 1000, "index", True)
SQUARED = ConsistencyTraining("online", 8, 0, 160, "squared", 5.4e-4)
SCHEDULES = pytest.mark.parametrize("schedule", [SCHEDULE, INDEX], ids=["timestep", "index"])


class Draws:
    """The protocol's two streams; a new state with each seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=torch.Generator().manual_seed(2 * self.seed)).to(like)

    def uniform(self, batch: int) -> Tensor:
        generator = torch.Generator().manual_seed(2 * self.seed + 1)
        return torch.rand(batch, generator=generator, dtype=torch.float64)


def normal(*shape: int, seed: int = 9) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zero(state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
    return torch.zeros_like(state)


def recorded(objective: ConsistencyTraining, data: Tensor, schedule: Schedule, update: int = 0):
    """(loss, calls of the trained velocity, calls of its target), with velocities of 0."""
    calls: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {"velocity": [], "target": []}

    def record(name: str):
        return lambda *inputs: calls[name].append(inputs) or torch.zeros_like(inputs[0])

    loss = objective(record("velocity"), record("target"), data, schedule, Draws(0), update)
    return loss, calls["velocity"], calls["target"]


@SCHEDULES
def test_a_pair_is_two_neighbours_of_the_discretisation_on_one_path_and_both_jump_to_data(schedule: Schedule):
    data, noise = normal(64, 1, 1, 2, 2), Draws(0).noise(normal(64, 1, 1, 2, 2))
    loss, [(state, timestep, stride)], [(lower_state, lower, lower_stride)] = recorded(SQUARED, data, schedule)
    assert torch.equal(timestep, stride)
    assert torch.equal(lower, lower_stride)
    torch.testing.assert_close(state, path.state(data, noise, schedule.sigma(timestep)))
    torch.testing.assert_close(lower_state, path.state(data, noise, schedule.sigma(lower)))
    positions = inference_grid(8, schedule)  # even in u, as grids are
    first = (positions[:, None] - timestep).abs().argmin(0)
    torch.testing.assert_close(positions[first], timestep)
    torch.testing.assert_close(positions[first + 1], lower)
    assert first.unique().tolist() == [*range(8)]
    assert torch.equal(loss.timestep, timestep)


@SCHEDULES
def test_the_target_of_the_least_noisy_timestep_is_the_data_whatever_the_network_says(schedule: Schedule):
    data = normal(64, 1, 1, 2, 2)
    noise = Draws(0).noise(data)
    huge = lambda state, t, s: torch.full_like(state, 1e6)  # noqa: E731
    # a velocity of noise - data, from each state of the path, jumps to data: no error where the target is the data
    exact = lambda state, t, s: noise - data  # noqa: E731
    loss = SQUARED(exact, huge, data, schedule, Draws(0), 0)
    is_last = (loss.timestep - inference_grid(8, schedule)[-2]).abs() < 1e-6
    assert bool(is_last.any())
    assert float(loss.error[is_last].abs().max()) < 1e-12
    assert float(loss.error[~is_last].min()) > 1e6


@SCHEDULES
def test_a_pair_counts_by_the_inverse_of_its_noise_span(schedule: Schedule):
    data = normal(64, 1, 1, 2, 2)
    for objective in (SQUARED, replace(SQUARED, distance="pseudo_huber", huber=0.1)):
        loss, [(_, timestep, _)], [(_, lower, _)] = recorded(objective, data, schedule)
        # states of a path differ by span (noise - data), and velocities are 0
        span = schedule.noise_span(timestep, lower)
        error = span**2 * (Draws(0).noise(data) - data).square().flatten(1).mean(1)
        torch.testing.assert_close(loss.error.double(), error, rtol=1e-5, atol=1e-9)
        distance = error if objective is SQUARED else (error + 0.01).sqrt() - 0.1
        assert float(loss.value) == pytest.approx(float((distance / span).mean()), rel=1e-5)


@SCHEDULES
def test_the_exact_jump_is_its_own_target_to_the_second_order_of_a_pair(gaussian_world, schedule: Schedule):
    """Linear in the velocity, the expected target at a state is the jump from one Euler step below it."""
    world, x, timestep = gaussian_world(0.5, schedule, 0.7), normal(1, 1, 1, 2, 2), torch.tensor([600.0]).double()

    def error(share: float) -> float:
        lower = schedule.timestep(schedule.sigma(timestep) * (1 - share))
        span = schedule.noise_span(timestep, lower)
        lower_state = x - span * world.velocity(x, timestep, torch.zeros(1))
        landings = jump(world.velocity, x, timestep, schedule), jump(world.velocity, lower_state, lower, schedule)
        return float((landings[0] - landings[1]).norm())

    assert error(0.02) / error(0.01) == pytest.approx(4, rel=0.1)
    assert error(0.01) / error(0.005) == pytest.approx(4, rel=0.1)


def euler_factor(grid: Tensor, world) -> float:
    """What Euler's steps of the flow along a grid multiply a state by: 1 - span S'/S each."""
    factor, one = 1.0, torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    for timestep, end in pairwise(grid):
        rate = world.velocity(one, timestep[None], torch.zeros(1))
        factor *= float(1 - world.schedule.noise_span(timestep, end) * rate)
    return factor


@SCHEDULES
def test_what_training_converges_to_is_the_eulers_solution_on_its_timesteps(gaussian_world, schedule: Schedule):
    """For Gaussian data f(x, T) = c x: c of each of four timesteps by least squares, in four rounds."""
    objective, world = replace(SQUARED, first_steps=4), gaussian_world(0.5, schedule)
    grid = inference_grid(4, schedule)
    data = 0.5 * normal(80_000, 1, 1, 1, 1)
    slopes = torch.zeros(5, dtype=torch.float64)  # v = slope x; the last, at timestep 0, has no say

    def at(timestep: Tensor) -> Tensor:
        return (grid[:, None] - timestep).abs().argmin(0)

    for _ in range(4):
        trained, frozen = slopes.clone().requires_grad_(), slopes.clone()
        velocity = lambda x, t, s: path.broadcast(trained[at(t)], x) * x  # noqa: E731, B023
        target = lambda x, t, s: path.broadcast(frozen[at(t)], x) * x  # noqa: E731, B023
        loss = objective(velocity, target, data, schedule, Draws(3), 0)
        (gradient,) = torch.autograd.grad(loss.value, trained, create_graph=True)
        (curvature,) = torch.autograd.grad(gradient.sum(), trained)
        slopes = slopes - (gradient / curvature.clamp(min=1e-9)).detach()  # a parabola's minimum in one step
    for place in range(4):
        c = 1 - schedule.sigma(grid[place]) * slopes[place]
        assert float(c) == pytest.approx(euler_factor(grid[place:], world), abs=0.02)


@SCHEDULES
def test_eulers_solution_on_many_timesteps_is_the_exact_jump(gaussian_world, schedule: Schedule):
    world = gaussian_world(0.5, schedule)
    errors = [0.5 - euler_factor(inference_grid(n, schedule), world) for n in (125, 250, 500, 1000)]
    assert errors[-1] < 0.003
    assert [a / b for a, b in pairwise(errors)] == pytest.approx([2] * 3, rel=0.05)  # of first order


def test_a_trained_model_reaches_mean_and_spread_of_the_data_in_one_jump(gaussian_world):
    """f(x, T) = a x + b by a table over the 32 timesteps; the target is a running average."""
    objective, schedule = replace(SQUARED, first_steps=32, target_network="ema"), INDEX
    grid = inference_grid(32, schedule)
    table = torch.zeros(33, 2, dtype=torch.float64, requires_grad=True)
    average = table.detach().clone()

    def velocity(of: Tensor):
        def velocity(state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
            a, b = (path.broadcast(x, state) for x in of[(grid[:, None] - timestep).abs().argmin(0)].unbind(1))
            return a * state + b

        return velocity

    optimizer = torch.optim.Adam([table], 0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for update in range(400):
        data = 0.7 + 0.5 * normal(512, 1, 1, 1, 1, seed=update)
        optimizer.zero_grad()
        objective(velocity(table), velocity(average), data, schedule, Draws(update), update).value.backward()
        optimizer.step()
        decay.step()
        average.lerp_(table.detach(), 0.1)
    noise = normal(20_000, 1, 1, 1, 1, seed=1)
    sampled = JumpAndRenoise()(velocity(average), noise, inference_grid(1, schedule), torch.ones(1), schedule)
    assert float(sampled.mean()) == pytest.approx(0.7, abs=0.05)
    expected = euler_factor(grid, gaussian_world(0.5, schedule))  # 0.44; 0.5 with more timesteps
    assert float(sampled.std()) == pytest.approx(expected, abs=0.02)


def test_the_number_of_timesteps_doubles_evenly_over_the_updates():
    objective = ConsistencyTraining("ema", 8, 4, 160, "squared", 1e-3)
    assert [objective.steps(u) for u in (0, 31, 32, 64, 96, 127, 128, 159, 160, 999)] == [
        *(8, 8, 16, 32, 64, 64, 128, 128, 128, 128)
    ]
    assert {SQUARED.steps(u) for u in range(200)} == {8}
    assert replace(objective, updates=0).steps(0) == 8


def test_more_timesteps_than_the_schedule_has_are_refused_by_key():
    replace(SQUARED, first_steps=125, doublings=3).check(SCHEDULE)
    with pytest.raises(ValueError, match=r"^objective\.doublings=4: .* 2000 timesteps"):
        replace(SQUARED, first_steps=125, doublings=4).check(SCHEDULE)


def test_only_the_noisier_state_is_learned_from():
    online, frozen = (torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = SQUARED(lambda x, t, s: online * x, lambda x, t, s: frozen * x, normal(4, 1, 1, 2, 2), SCHEDULE, Draws(0), 0)
    loss.value.backward()
    assert loss.term == "consistency"
    assert online.grad is not None
    assert frozen.grad is None


@SCHEDULES
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_exact_jumps_land_on_the_data_after_any_number_of_fresh_noises(gaussian_world, schedule, num_steps: int):
    world, noise, grid = (
        gaussian_world(0.5, schedule, 0.7),
        normal(64, 1, 1, 16, 16),
        inference_grid(num_steps, schedule),
    )
    sampled = JumpAndRenoise()(world.velocity, noise, grid, inference_strides(grid), schedule)
    # 16,384 numbers: the mean's error is 0.004, the spread's 0.003
    assert float(sampled.mean()) == pytest.approx(0.7, abs=0.02)
    assert float(sampled.std()) == pytest.approx(0.5, abs=0.015)


@SCHEDULES
def test_one_jump_is_one_step_of_euler(gaussian_world, schedule: Schedule):
    world, noise, grid = gaussian_world(0.5, schedule), normal(2, 3, 2, 4, 4), inference_grid(1, schedule)
    jumped, stepped = (
        solver(world.velocity, noise, grid, inference_strides(grid), schedule) for solver in (JumpAndRenoise(), Euler())
    )
    torch.testing.assert_close(jumped, stepped)


def test_a_step_asks_for_the_jump_from_data_that_fresh_noise_was_added_to():
    calls = []

    def velocity(state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
        calls.append((state, timestep, stride))
        return torch.ones_like(state)

    noise, grid = normal(2, 1, 1, 2, 2), inference_grid(2, SCHEDULE)
    result = JumpAndRenoise()(velocity, noise, grid, inference_strides(grid), SCHEDULE)
    (first, *_), (second, timestep, stride) = calls
    assert torch.equal(first, noise)
    assert timestep.tolist() == stride.tolist() == pytest.approx([818.181818] * 2)
    sigma = 2.25 / 2.75
    torch.testing.assert_close(second, (1 - sigma) * (noise - 1) + sigma * fresh_noise(noise, 1))
    torch.testing.assert_close(result, second - sigma)


def test_fresh_noise_is_a_function_of_a_clips_own_noise_and_the_step():
    noise = torch.randn(3, 4, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    first, second = fresh_noise(noise, 1), fresh_noise(noise, 2)
    assert torch.equal(fresh_noise(noise[1:], 1), first[1:])  # in any batch
    assert torch.equal(fresh_noise(noise, 1), first)
    everything = torch.stack([*noise, *first, *second]).flatten(1)  # 8,192 numbers each
    correlation = torch.corrcoef(everything) - torch.eye(9)
    assert float(correlation.abs().max()) < 5 / 8192**0.5
    assert float(first.std()) == pytest.approx(1, abs=5 / (2 * 3 * 8192) ** 0.5)
