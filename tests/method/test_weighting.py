"""pw.method.weighting: lambda = (noise span)^p and its three normalisations  (Eq. 8)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pw.method.schedule import Schedule
from pw.method.step_sampler import Aligned, Chain, ExponentialIndex, Steps, StepSampler
from pw.method.weighting import DeltaSigma, Uniform, expected_weight

STARTS = (500, 600, 700, 800)
PAPER = ExponentialIndex(0.7, 6, True, STARTS, False)
SAMPLERS = [PAPER, Chain(0.7, 6, True, STARTS, True), Aligned(0.7, 6, True, (2, 3, 4, 5))]
TIMESTEP, INDEX = Schedule(4.5, 1000, "timestep", True), Schedule(5.0, 1000, "index", True)


def draw_steps(sampler: StepSampler, schedule: Schedule, batch: int) -> Steps:
    uniform = torch.rand(batch, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return sampler.draw(uniform, schedule)


def paper_rows() -> list[tuple[float, int, int]]:
    """(probability, timestep, stride) of the paper's set, from Eqs. 5-6 alone."""
    z = sum(2.718281828459045 ** (-0.7 * k) for k in range(6))
    return [
        (2.718281828459045 ** (-0.7 * k) / z / 4, start, (start >> k) // 2 * 2) for start in STARTS for k in range(6)
    ]


def test_the_expected_weight_in_the_index_coordinate_is_0_648():
    # docs/method.md: E[lambda] = 0.648 at shift 5, beta 0.7, p 0.5 (odd strides there; even ones move the 4th digit)
    def sigma(index: float) -> float:
        return 5 * index / 1000 / (1 + 4 * index / 1000)

    expected = sum(p * (sigma(t) - sigma(t - d)) ** 0.5 for p, t, d in paper_rows())
    assert expected == pytest.approx(0.648, abs=1e-3)
    assert expected_weight(0.5, INDEX, PAPER) == pytest.approx(expected, abs=1e-12)


def test_the_expected_weight_in_the_timestep_coordinate_is_that_of_shift_one():
    # docs/method.md: E[lambda] = 0.631 at shift 1, where a span is stride / N
    expected = sum(p * (d / 1000) ** 0.5 for p, t, d in paper_rows())
    assert expected == pytest.approx(0.631, abs=1e-3)
    assert expected_weight(0.5, TIMESTEP, PAPER) == pytest.approx(expected, abs=1e-12)


def test_unnormalised_it_is_the_root_of_the_span():
    # shift 5: (800, 800) spans 4 / 4.2; (500, 250) spans 2.5 / 3 - 1.25 / 2 = 0.208333
    f64 = lambda *v: torch.tensor(v, dtype=torch.float64)  # noqa: E731
    steps = Steps(f64(800, 500), f64(400, 375), f64(0, 250), f64(800, 250), torch.tensor([False, False]))
    weight = DeltaSigma(0.5, "none")(steps, INDEX, PAPER)
    torch.testing.assert_close(weight, f64((4 / 4.2) ** 0.5, 0.2083333333333333**0.5), atol=1e-12, rtol=0)


@pytest.mark.parametrize("normalise", ["none", "expected", "batch"])
@pytest.mark.parametrize("schedule", [TIMESTEP, INDEX], ids=["timestep", "index"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_power_zero_is_uniform(normalise: str, schedule: Schedule, sampler: StepSampler):
    steps = draw_steps(sampler, schedule, 16)
    uniform = Uniform()(steps, schedule, sampler)
    assert torch.equal(uniform, torch.ones(16, dtype=torch.float64))
    torch.testing.assert_close(DeltaSigma(0.0, normalise)(steps, schedule, sampler), uniform, atol=1e-12, rtol=0)


@pytest.mark.parametrize("p", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("coordinate", ["timestep", "index"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_expected_has_mean_one_under_the_sampler(p: float, coordinate: str, sampler: StepSampler):
    exact, snapped = (Schedule(4.5, 1000, coordinate, snap) for snap in (False, True))
    table = sampler.table(exact)
    middles = table.probability.cumsum(0) - table.probability / 2
    for schedule, tolerance in ((exact, 1e-9), (snapped, 1e-2)):  # snapping lengthens a step by half a node
        weight = DeltaSigma(p, "expected")(sampler.draw(middles, schedule), schedule, sampler)
        assert float((weight * table.probability).sum()) == pytest.approx(1, abs=tolerance)


def test_expected_changes_which_steps_count_and_nothing_else():
    steps = draw_steps(PAPER, TIMESTEP, 16)
    plain, expected = (DeltaSigma(0.5, n)(steps, TIMESTEP, PAPER) for n in ("none", "expected"))
    ratio = expected / plain
    torch.testing.assert_close(ratio, ratio[:1].expand(16))


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 4))
def test_batch_at_batch_size_one_is_exactly_one(uniform: float, p: float):
    # R trains at batch size 1: its calibration is a no-op  (docs/method.md)
    steps = PAPER.draw(torch.tensor([uniform], dtype=torch.float64), TIMESTEP)
    assert DeltaSigma(p, "batch")(steps, TIMESTEP, PAPER).tolist() == [1.0]


def test_batch_clamps_to_a_tenth_and_ten_before_it_averages():
    # spans 0.8 and 0.008 of mean 0.404, p = 2: 3.92 and 0.000392 -> 3.92, 0.1; over their mean 2.01: 1.950, 0.0497
    f64 = lambda *v: torch.tensor(v, dtype=torch.float64)  # noqa: E731
    steps = Steps(f64(800, 800), f64(400, 796), f64(0, 792), f64(800, 8), torch.tensor([False, False]))
    large = (0.8 / 0.404) ** 2
    mean = (large + 0.1) / 2
    weight = DeltaSigma(2.0, "batch")(steps, TIMESTEP, PAPER)
    torch.testing.assert_close(weight, f64(large / mean, 0.1 / mean), atol=1e-12, rtol=0)
    # 99 short steps and a long one, p = 2: (0.8 / 0.01592)^2 = 2525 -> 10
    spans = f64(800, *[8] * 99)
    steps = Steps(f64(*[800] * 100), 800 - spans / 2, 800 - spans, spans, torch.zeros(100, dtype=torch.bool))
    weight = DeltaSigma(2.0, "batch")(steps, TIMESTEP, PAPER)
    short = (0.008 / 0.01592) ** 2
    assert float(weight[0] / weight[1]) == pytest.approx(10 / short)


def test_batch_weights_average_to_one():
    weight = DeltaSigma(0.5, "batch")(draw_steps(PAPER, TIMESTEP, 32), TIMESTEP, PAPER)
    assert float(weight.mean()) == pytest.approx(1, abs=1e-12)
    assert float(weight.std()) > 0.1
