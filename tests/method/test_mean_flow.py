"""pw.method.mean_flow: the derivative that makes a target, on Gaussian data, whose mean velocities are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pw.method import path
from pw.method.mean_flow import MeanFlow, difference, exact_slope, node_pairs
from pw.method.objective import Alternate, Bernoulli, Flow
from pw.method.schedule import Schedule
from pw.method.solver import Euler, inference_grid, inference_strides

SCHEDULE = Schedule(4.5, 1000, "timestep", True)
INDEX = Schedule(5.0, 1000, "index", True)
EVERY = Bernoulli(1.0, seed=0)
SCHEDULES = pytest.mark.parametrize("schedule", [SCHEDULE, INDEX], ids=["timestep", "index"])


def mean_flow(derivative="exact", power: float = 0.0, step: float = 1e-4, turns=EVERY) -> MeanFlow:
    return MeanFlow(turns, derivative, step, power, 1e-3)


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


def steps() -> tuple[Tensor, Tensor]:
    """(timestep, end) of long and short steps, one of which begins at pure noise and ends in data."""
    return tuple(torch.tensor(v, dtype=torch.float64) for v in ([1000, 1000, 700, 400, 90], [0, 930, 20, 0, 60]))


@SCHEDULES
@pytest.mark.parametrize(("derivative", "tolerance"), [("exact", 1e-10), ("difference", 1e-5)])
def test_the_mean_velocity_of_gaussian_data_is_its_own_target(
    gaussian_world, schedule: Schedule, derivative, tolerance
):
    """The target is linear in the conditional velocity: its expectation at a state is that of the flow's velocity."""
    world, (timestep, end), x = gaussian_world(0.5, schedule, 0.7), steps(), normal(5, 3, 1, 2, 2)
    flow = world.velocity(x, timestep, torch.zeros_like(timestep))
    # at pure noise there is nothing on one side, and a difference to one side errs by its step
    target = mean_flow(derivative, step=1e-6 if derivative == "difference" else 1e-4).target(
        world.velocity, x, flow, timestep, end, schedule
    )
    torch.testing.assert_close(target, world.velocity(x, timestep, timestep - end), atol=tolerance, rtol=tolerance)


@SCHEDULES
def test_the_gradient_of_the_loss_vanishes_at_the_mean_velocity_and_not_beside_it(gaussian_world, schedule: Schedule):
    world = gaussian_world(0.5, schedule)
    data = 0.5 * normal(40_000, 1, 1, 1, 1)

    def gradients(excess: float) -> Tensor:
        """Of every clip's error by a factor of the velocity."""
        factor = torch.full((len(data), 1, 1, 1, 1), 1 + excess, dtype=torch.float64, requires_grad=True)
        velocity = lambda x, t, s: factor * world.velocity(x, t, s)  # noqa: E731
        mean_flow()(velocity, velocity, data, schedule, Draws(1), 0).value.backward()
        assert factor.grad is not None
        return factor.grad.flatten() * len(data)

    def z(values: Tensor) -> float:
        return float(values.mean() / values.std() * len(values) ** 0.5)

    assert abs(z(gradients(0.0))) < 4
    assert abs(z(gradients(0.1))) > 8


@SCHEDULES
def test_the_difference_errs_by_the_square_of_its_step(gaussian_world, schedule: Schedule):
    world, x, flow = gaussian_world(0.5, schedule, 0.7), normal(2, 1, 1, 2, 2), normal(2, 1, 1, 2, 2, seed=1)
    timestep, end = torch.tensor([700.0, 400.0], dtype=torch.float64), torch.tensor([100.0, 50.0], dtype=torch.float64)

    def curve(state: Tensor, sigma: Tensor) -> Tensor:
        return world.velocity(state, schedule.timestep(sigma), schedule.timestep(sigma) - end)

    sigma = schedule.sigma(timestep)
    exact = exact_slope(curve, x, flow, sigma)
    errors = [(difference(curve, x, flow, sigma, schedule.sigma(end), h) - exact).norm() for h in (4e-3, 2e-3, 1e-3)]
    assert float(errors[0] / errors[1]) == pytest.approx(4, rel=0.02)
    assert float(errors[1] / errors[2]) == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("derivative", ["exact", "difference"])
def test_a_step_without_length_has_the_target_of_flow_matching(gaussian_world, derivative):
    world, (timestep, _), x = gaussian_world(0.5, SCHEDULE, 0.7), steps(), normal(5, 3, 1, 2, 2)
    flow = normal(5, 3, 1, 2, 2, seed=1)
    assert torch.equal(mean_flow(derivative).target(world.velocity, x, flow, timestep, timestep, SCHEDULE), flow)


def test_the_end_stays_while_the_timestep_moves():
    """u = T - stride, the end, has no derivative; u = T has dT / dsigma = 1000."""
    timestep, end = steps()
    x, flow, span = normal(5, 1, 1, 1, 1), normal(5, 1, 1, 1, 1, seed=1), (timestep - end) / 1000
    ends = lambda state, t, s: path.broadcast(t - s, state) + 0 * state  # noqa: E731
    torch.testing.assert_close(mean_flow().target(ends, x, flow, timestep, end, SCHEDULE), flow, atol=1e-9, rtol=0)
    begins = lambda state, t, s: path.broadcast(t, state) + 0 * state  # noqa: E731
    target = mean_flow().target(begins, x, flow, timestep, end, SCHEDULE)
    torch.testing.assert_close(target, flow - 1000 * path.broadcast(span, flow))


def test_a_velocity_that_does_not_move_has_no_derivative():
    timestep, end = steps()
    x, flow = normal(5, 1, 1, 1, 1), normal(5, 1, 1, 1, 1, seed=1)
    constant = lambda state, t, s: torch.ones_like(x)  # noqa: E731
    for derivative in ("exact", "difference"):
        assert torch.equal(mean_flow(derivative).target(constant, x, flow, timestep, end, SCHEDULE), flow)


@pytest.mark.parametrize("derivative", ["exact", "difference"])
def test_only_the_long_step_is_learned_from(gaussian_world, derivative):
    world, data = gaussian_world(0.5, SCHEDULE), normal(4, 1, 1, 2, 2)
    online, frozen = (torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    objective = mean_flow(derivative)
    objective(
        lambda x, t, s: online * world.velocity(x, t, s),
        lambda x, t, s: frozen * world.velocity(x, t, s),
        *(data, SCHEDULE, Draws(0), 0),
    ).value.backward()
    assert online.grad is not None
    assert frozen.grad is None


def test_the_other_turns_are_flow_matching_on_the_same_batches():
    field = lambda x, t, s: 0.3 * x  # noqa: E731
    data = normal(4, 3, 2, 4, 4)
    objective = mean_flow(turns=Alternate())
    terms = [objective(field, field, data, SCHEDULE, Draws(u), u).term for u in range(4)]
    assert terms == ["flow", "meanflow"] * 2
    flow = Flow("uniform")(field, field, data, SCHEDULE, Draws(2), 2)
    assert torch.equal(objective(field, field, data, SCHEDULE, Draws(2), 2).value, flow.value)


@pytest.mark.parametrize("update", [0, 1])
def test_a_clip_counts_by_the_power_of_its_error(update: int):
    """loss = mean of error / (error + c)^p, and its gradient that of a weighted error."""
    data, factor = normal(4, 3, 2, 4, 4), torch.ones((), dtype=torch.float64, requires_grad=True)
    objective = MeanFlow(Alternate(), "exact", 1e-4, 0.5, 0.25)
    loss = objective(lambda x, t, s: factor * x, lambda x, t, s: x, data, SCHEDULE, Draws(0), update)
    assert loss.error is not None
    weight = (loss.error.detach() + 0.25) ** -0.5
    assert float(loss.value.detach()) == pytest.approx(float((weight * loss.error).mean().detach()), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss.value, factor, retain_graph=True)
    (expected,) = torch.autograd.grad((weight * loss.error).mean(), factor)
    torch.testing.assert_close(gradient, expected)


def test_pairs_of_nodes_are_two_independent_nodes_the_noisier_first():
    four = Schedule(1.0, 4, "timestep", True)  # nodes 4, 3, 2, 1, and 0
    sixteen = (torch.arange(16, dtype=torch.float64) + 0.5) / 16  # each outcome of two draws of four once
    timestep, end = node_pairs(sixteen, four)
    counts: dict[tuple[float, float], int] = {}
    for pair in zip(timestep.tolist(), end.tolist(), strict=True):
        counts[pair] = counts.get(pair, 0) + 1
    # first of 4, 3, 2, 1 and second of 3, 2, 1, 0: in either order, or twice the same, which ends one node on
    assert counts == {
        **{(4, 3): 1, (4, 2): 1, (4, 1): 1, (4, 0): 1},
        **{(3, 2): 3, (3, 1): 2, (3, 0): 1, (2, 1): 3, (2, 0): 1, (1, 0): 2},
    }
    uniform = Draws(0).uniform(4096)
    timestep, end = node_pairs(uniform, SCHEDULE)
    assert bool((timestep > end).all())
    assert torch.isin(timestep, SCHEDULE.nodes()).all()
    # the second draw is independent: the smaller of two uniforms has mean 1/3 (in u), sd 0.236
    u = torch.searchsorted(SCHEDULE.nodes().flip(0), end) / 1000
    assert float(u.mean()) == pytest.approx(1 / 3, abs=5 * 0.236 / 64)


class CubicModel(nn.Module):
    """u(x, T, s) = a x + b, a and b cubic in the sigma of either end (Legendre polynomials)."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.weight = nn.Parameter(torch.zeros(16, 2, dtype=torch.float64))

    def forward(self, state: Tensor, timestep: Tensor, stride: Tensor) -> Tensor:
        ends = (2 * self.schedule.sigma(t) - 1 for t in (timestep, (timestep - stride).clamp(min=0)))
        first, second = (torch.stack([0 * z + 1, z, 1.5 * z**2 - 0.5, 2.5 * z**3 - 1.5 * z], 1) for z in ends)
        a, b = ((first[:, :, None] * second[:, None]).flatten(1) @ self.weight).unbind(1)
        return path.broadcast(a, state) * state + path.broadcast(b, state)


@pytest.mark.parametrize(("derivative", "schedule"), [("exact", INDEX), ("difference", SCHEDULE)])
def test_a_trained_model_reaches_mean_and_spread_of_the_data_in_one_step_and_in_two(derivative, schedule: Schedule):
    """One step of flow matching reaches the mean alone."""
    model, objective = CubicModel(schedule), mean_flow(derivative, step=1e-3, turns=Alternate())
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for update in range(400):
        data = 0.7 + 0.5 * normal(1024, 1, 1, 1, 1, seed=update)
        optimizer.zero_grad()
        objective(model, model, data, schedule, Draws(update), update).value.backward()
        optimizer.step()
        decay.step()
    noise = normal(20_000, 1, 1, 1, 1, seed=1)
    for n in (1, 2):
        grid = inference_grid(n, schedule)
        with torch.no_grad():
            sampled = Euler()(model, noise, grid, inference_strides(grid), schedule)
        assert float(sampled.mean()) == pytest.approx(0.7, abs=0.05)
        assert float(sampled.std()) == pytest.approx(0.5, abs=0.05)
