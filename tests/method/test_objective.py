"""pw.method.objective: what is minimised and when, on velocities that are plain functions."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from pw.method import path
from pw.method.objective import Alternate, Bernoulli, Flow, FlowWeight, Shortcut, flow_loss
from pw.method.schedule import Schedule
from pw.method.step_sampler import Aligned, ExponentialIndex
from pw.method.target import TwoSteps
from pw.method.weighting import DeltaSigma, Uniform

SCHEDULE = Schedule(4.5, 1000, "timestep", True)
INDEX = Schedule(5.0, 1000, "index", True)
PAPER = ExponentialIndex(0.7, 6, True, (500, 600, 700, 800), False)
TARGET = TwoSteps("span_weighted", "online")


@dataclass(frozen=True)
class Draws:
    """The protocol's two streams, from a seed."""

    seed: int

    def noise(self, like: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(self.seed))
        return noise.to(like)

    def uniform(self, batch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.rand(batch, generator=generator, dtype=torch.float64)


def data(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 3, 2, 4, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def shortcut(turns=None, sampler=PAPER, weighting=None) -> Shortcut:
    return Shortcut("uniform", turns or Alternate(), sampler, weighting or Uniform(), TARGET)


def towards(point: torch.Tensor, schedule: Schedule):
    """The perfect velocity when all data is one point: noise - data = (state - point) / sigma, at every stride."""
    return lambda state, timestep, stride: (state - point) / path.broadcast(schedule.sigma(timestep), state)


def zero(state: torch.Tensor, timestep: torch.Tensor, stride: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(state)


@pytest.mark.parametrize("schedule", [SCHEDULE, INDEX], ids=["timestep", "index"])
@pytest.mark.parametrize("update", [0, 1])
@pytest.mark.parametrize("sampler", [PAPER, Aligned(0.7, 6, True, (2, 3, 4, 5))], ids=["paper", "aligned"])
def test_a_perfect_velocity_has_no_loss_and_another_has(schedule: Schedule, update: int, sampler):
    x = data(1).expand(8, -1, -1, -1, -1)
    perfect = towards(x, schedule)
    objective = shortcut(sampler=sampler, weighting=DeltaSigma(0.5, "expected"))
    # float32 inside the loss: (state - point) / sigma divides by as little as 0.004
    assert float(objective(perfect, perfect, x, schedule, Draws(0), update).value) < 1e-9
    imperfect = lambda state, timestep, stride: 0.9 * perfect(state, timestep, stride)  # noqa: E731
    assert float(objective(imperfect, perfect, x, schedule, Draws(0), update).value) > 1e-3


def test_the_flow_loss_is_the_mean_square_of_noise_minus_data():
    x, draws = data(), Draws(3)
    expected = (draws.noise(x) - x).square().mean()
    loss = Flow("uniform")(zero, zero, x, SCHEDULE, draws, 0)
    assert loss.term == "flow"
    torch.testing.assert_close(loss.value.double(), expected, atol=1e-6, rtol=0)


def test_flow_asks_at_stride_zero_on_the_path_and_its_timesteps_are_uniform_over_the_nodes():
    calls = []

    def velocity(state, timestep, stride):
        calls.append((state, timestep, stride))
        return torch.zeros_like(state)

    x, draws = data(4096), Draws(0)
    flow_loss(velocity, x, SCHEDULE, draws, FlowWeight("uniform"))
    ((state, timestep, stride),) = calls
    assert not stride.any()
    torch.testing.assert_close(state, path.state(x, draws.noise(x), timestep / 1000))
    node = (SCHEDULE.nodes()[:, None] == timestep).double().argmax(0)
    assert torch.equal(SCHEDULE.nodes()[node], timestep)
    # 4096 uniforms in 4 bins of 1024: sd 27.7, so within 5 sd
    assert (node // 250).bincount(minlength=4).sub(1024).abs().max() < 5 * 27.7


def test_at_stride_zero_shortcut_is_flow_the_same_batch_gives_the_same_loss():
    field = lambda state, timestep, stride: state * 0.3  # noqa: E731
    flow = Flow("bell")(field, field, data(), SCHEDULE, Draws(1), 6)
    mixed = Shortcut("bell", Alternate(), PAPER, Uniform(), TARGET)(field, field, data(), SCHEDULE, Draws(1), 6)
    assert mixed.term == flow.term == "flow"
    assert torch.equal(mixed.value, flow.value)


def test_a_consistency_batch_asks_the_long_step_of_the_velocity_and_the_halves_of_the_target():
    evaluations, halves, x, draws = [], [], data(), Draws(2)

    def velocity(state, timestep, stride):
        evaluations.append((state, timestep, stride))
        return torch.zeros_like(state)

    def target(state, timestep, stride):
        halves.append((timestep, stride))
        return torch.zeros_like(state)

    shortcut()(velocity, target, x, SCHEDULE, draws, 1)
    steps = PAPER.draw(draws.uniform(4), SCHEDULE)
    ((state, timestep, stride),) = evaluations
    assert torch.equal(timestep, steps.timestep)
    assert torch.equal(stride, steps.stride)
    torch.testing.assert_close(state, path.state(x, draws.noise(x), steps.timestep / 1000))
    half = torch.where(steps.ground, 0 * steps.stride, steps.stride / 2)
    assert [t.tolist() for t, _ in halves] == [steps.timestep.tolist(), steps.middle.tolist()]
    assert [s.tolist() for _, s in halves] == [half.tolist()] * 2


def test_the_consistency_loss_is_weighted_sample_by_sample():
    # velocity 0 against a target of 1: the squared error is 1, so the loss is the mean weight
    ones = lambda state, timestep, stride: torch.ones_like(state)  # noqa: E731
    for weighting in (Uniform(), DeltaSigma(0.5, "none"), DeltaSigma(0.5, "expected"), DeltaSigma(1.0, "batch")):
        loss = shortcut(weighting=weighting)(zero, ones, data(), SCHEDULE, Draws(5), 1)
        steps = PAPER.draw(Draws(5).uniform(4), SCHEDULE)
        assert loss.term == "consistency"
        assert float(loss.value) == pytest.approx(float(weighting(steps, SCHEDULE, PAPER).mean()), abs=1e-6)


def test_only_the_long_step_is_learned_from():
    online, frozen = (torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    velocity = lambda state, timestep, stride: online * state  # noqa: E731
    target = lambda state, timestep, stride: frozen * state * 2  # noqa: E731
    shortcut()(velocity, target, data(), SCHEDULE, Draws(0), 1).value.backward()
    assert online.grad is not None
    assert float(online.grad) != 0
    assert frozen.grad is None


def test_alternate_takes_consistency_on_exactly_the_odd_updates():
    assert [Alternate().is_consistency(u) for u in range(6)] == [False, True] * 3
    terms = [shortcut()(zero, zero, data(), SCHEDULE, Draws(0), u).term for u in range(4)]
    assert terms == ["flow", "consistency"] * 2


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
def test_bernoulli_meets_its_rate(rate: float):
    share = sum(Bernoulli(rate, seed=3).is_consistency(u) for u in range(4000)) / 4000
    assert share == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 4000) ** 0.5)  # 4 sd


def test_bernoulli_is_a_function_of_seed_and_update_alone():
    turns = [Bernoulli(0.3, seed=1).is_consistency(u) for u in range(200)]
    torch.manual_seed(123)  # the global generator has no part in it
    assert [Bernoulli(0.3, seed=1).is_consistency(u) for u in reversed(range(200))] == turns[::-1]
    assert [Bernoulli(0.3, seed=2).is_consistency(u) for u in range(200)] != turns


def test_bernoulli_refuses_an_impossible_rate_by_key():
    with pytest.raises(ValueError, match=r"^turns\.rate=1\.5"):
        Bernoulli(1.5, seed=0)


@pytest.mark.parametrize("shape", ["uniform", "bell"])
@pytest.mark.parametrize("schedule", [SCHEDULE, INDEX], ids=["timestep", "index"])
def test_the_flow_weight_has_mean_one_over_the_nodes(shape, schedule: Schedule):
    weight = FlowWeight(shape)(schedule.nodes(), schedule)
    assert float(weight.mean()) == pytest.approx(1, abs=1e-9)
    assert float(weight.min()) >= 0


def test_the_bell_peaks_at_half_noise_and_vanishes_at_pure_noise():
    # exp(-2 (sigma - 1/2)^2) less its minimum: sigma = 1 is the node furthest from 1/2; 0.75 mirrors 0.25
    t = torch.tensor([1000, 750, 500, 250], dtype=torch.float64)
    weight = FlowWeight("bell")(t, SCHEDULE)
    assert float(weight[0]) == 0
    assert float(weight[1]) == pytest.approx(float(weight[3]), abs=1e-12)
    floor = 2.718281828459045**-0.5
    assert float(weight[1] / weight[2]) == pytest.approx((2.718281828459045**-0.125 - floor) / (1 - floor), abs=1e-9)


def test_a_bell_divided_by_its_mean_over_the_batch_does_nothing_at_a_batch_of_one():
    bell = FlowWeight("bell_batch")
    t = torch.tensor([900, 500, 100], dtype=torch.float64)
    assert bell(t[:1], SCHEDULE).tolist() == pytest.approx([1])
    plain = FlowWeight("bell")(t, SCHEDULE)
    torch.testing.assert_close(bell(t, SCHEDULE), plain / plain.mean())
    assert bell(t.new_tensor([1000.0]), SCHEDULE).tolist() == [0]  # its minimum
    assert Flow("bell_batch").depends_on_batch
    assert not Flow("bell").depends_on_batch


def test_the_loss_is_taken_where_the_data_is():
    """Draws come from the CPU; the `meta` device stands in for an accelerator and refuses any tensor left behind."""
    x = torch.empty(4, 3, 2, 4, 4, device="meta")
    field = lambda state, timestep, stride: state * 0.5  # noqa: E731
    for weighting in (Uniform(), DeltaSigma(0.5, "expected"), DeltaSigma(0.5, "batch")):
        for update in (0, 1):
            loss = Shortcut("bell", Alternate(), PAPER, weighting, TARGET)(field, field, x, SCHEDULE, Draws(0), update)
            assert loss.value.device.type == "meta"


@pytest.mark.parametrize("updates", [0, 1, 7, 400])
def test_the_number_of_consistency_updates_is_that_of_the_updates_that_are(updates: int):
    assert Flow("uniform").consistency_updates(updates) == 0
    alternate = shortcut(Alternate())
    assert alternate.consistency_updates(updates) == sum(map(alternate.is_consistency, range(updates)))
    bernoulli = shortcut(Bernoulli(0.3, seed=1))
    count = sum(map(bernoulli.is_consistency, range(updates)))
    assert abs(bernoulli.consistency_updates(updates) - count) <= 4 * (0.3 * 0.7 * updates) ** 0.5


def test_only_a_weighting_that_normalises_by_the_batch_depends_on_it():
    assert shortcut(weighting=DeltaSigma(0.5, "batch")).depends_on_batch
    for objective in (shortcut(), shortcut(weighting=DeltaSigma(0.5, "expected")), Flow("uniform")):
        assert not objective.depends_on_batch
