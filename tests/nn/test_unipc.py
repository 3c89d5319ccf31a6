"""pw.nn.unipc: diffusers' UniPC behind our solver interface."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from pw.method.schedule import Schedule
from pw.method.solver import Euler, inference_grid
from pw.nn.unipc import UniPC

TIMESTEP, INDEX = (Schedule(4.5, 1000, coordinate, True) for coordinate in ("timestep", "index"))


def noise() -> torch.Tensor:
    return torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def solve(solver, world, num_steps: int, schedule: Schedule) -> float:
    """Largest error of the plain flow's end point; the exact one is sd * noise."""
    grid = inference_grid(num_steps, schedule)
    result = solver(world.velocity, noise(), grid, torch.zeros(num_steps), schedule)
    return float((result - world.sd * noise()).abs().max())


@pytest.mark.parametrize("schedule", [TIMESTEP, INDEX], ids=["timestep", "index"])
@pytest.mark.parametrize(("num_steps", "share"), [(8, 0.95), (16, 0.7), (32, 0.2)])
def test_unipc_beats_euler_on_a_plain_flow(gaussian_world, schedule: Schedule, num_steps: int, share: float):
    world = gaussian_world(0.5, schedule)
    assert solve(UniPC(2), world, num_steps, schedule) < share * solve(Euler(), world, num_steps, schedule)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("num_steps", [4, 20])
def test_it_is_the_stock_scheduler_on_the_grid_it_is_given(gaussian_world, order: int, num_steps: int):
    """Wan's own way, `flow_shift` and a number of steps, against ours on the noise levels that this comes to."""
    world = gaussian_world(0.5, TIMESTEP)
    stock = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=4.5, solver_order=order
    )
    stock.set_timesteps(num_steps)
    sigmas, state = stock.sigmas[:-1].double(), noise()
    for sigma, label in zip(sigmas, stock.timesteps, strict=True):
        t = torch.full((2,), 1000 * float(sigma), dtype=torch.float64)
        state = stock.step(world.velocity(state, t, 0 * t), label, state, return_dict=False)[0]
    grid = torch.cat([1000 * sigmas, torch.zeros(1, dtype=torch.float64)])
    result = UniPC(order)(world.velocity, noise(), grid, torch.zeros(num_steps), TIMESTEP)
    torch.testing.assert_close(result, state, atol=1e-5, rtol=0)


def test_a_higher_order_is_better_on_many_steps(gaussian_world):
    first, second = (solve(UniPC(order), gaussian_world(0.5, TIMESTEP), 32, TIMESTEP) for order in (1, 2))
    assert second < 0.5 * first


def test_a_fine_grid_whose_first_labels_round_to_the_same_integer_is_walked_from_its_start(gaussian_world):
    # 300 steps at shift 5.8: sigma = 1, .99942, .99885 -> labels 999, 999, 998; stock looks its start up by label
    schedule = Schedule(5.8, 1000, "timestep", True)
    assert solve(UniPC(2), gaussian_world(0.5, schedule), 300, schedule) < 2e-3


def test_it_tells_the_velocity_the_grids_own_timesteps_and_strides():
    calls = []

    def velocity(state, timestep, stride):
        calls.append((timestep.tolist(), stride.tolist()))
        return torch.zeros_like(state)

    grid = inference_grid(4, INDEX)
    strides = torch.tensor([250.0, 250.0, 250.0, 250.0])
    UniPC(2)(velocity, noise(), grid, strides, INDEX)
    assert calls == [([t, t], [250.0, 250.0]) for t in grid[:-1].tolist()]


def test_a_batch_is_solved_sample_by_sample(gaussian_world):
    world, grid = gaussian_world(0.5, TIMESTEP), inference_grid(4, TIMESTEP)
    batched = UniPC(2)(world.velocity, noise(), grid, torch.zeros(4), TIMESTEP)
    single = UniPC(2)(world.velocity, noise()[:1], grid, torch.zeros(4), TIMESTEP)
    torch.testing.assert_close(batched[:1], single, atol=1e-6, rtol=0)


@pytest.mark.parametrize("order", [0, 4])
def test_an_unknown_order_is_refused_by_key(order: int):
    with pytest.raises(ValueError, match=rf"solver\.order={order}"):
        UniPC(order)
