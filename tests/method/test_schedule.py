"""pw.method.schedule: noise levels, nodes, snapping and spans, against the tables of docs/method.md."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pw.method.schedule import Schedule, shifted, unshifted

shifts = st.floats(0.2, 12)
positions = st.floats(0, 1000)
coordinates = st.sampled_from(["timestep", "index"])


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def index_schedule(shift: float, snap: bool = True) -> Schedule:
    return Schedule(shift, 1000, "index", snap)


@pytest.mark.parametrize(
    ("shift", "expected"),
    [  # sigma(T) at T = 100, 200, … 900  (docs/method.md)
        (1.0, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        (3.0, [0.250, 0.429, 0.563, 0.667, 0.750, 0.818, 0.875, 0.923, 0.964]),
        (5.0, [0.357, 0.556, 0.682, 0.769, 0.833, 0.882, 0.921, 0.952, 0.978]),
        (8.0, [0.471, 0.667, 0.774, 0.842, 0.889, 0.923, 0.949, 0.970, 0.986]),
    ],
)
def test_sigma_is_the_shift_of_the_index(shift: float, expected: list[float]):
    sigma = index_schedule(shift).sigma(torch.arange(100, 1000, 100, dtype=torch.float64))
    torch.testing.assert_close(sigma, f64(*expected), atol=5.1e-4, rtol=0)


def test_the_shift_in_full_digits():
    # s = 5, u = 0.8: 4 / (1 + 4 * 0.8) = 4 / 4.2
    assert float(shifted(f64(0.8), 5.0)) == pytest.approx(4 / 4.2, abs=1e-15)
    assert float(unshifted(f64(4 / 4.2), 5.0)) == pytest.approx(0.8, abs=1e-15)


@given(shifts, st.floats(0, 1))
def test_the_shift_keeps_the_ends_and_is_inverted(shift: float, u: float):
    torch.testing.assert_close(shifted(f64(0, 1), shift), f64(0, 1), atol=1e-15, rtol=0)
    torch.testing.assert_close(unshifted(shifted(f64(u), shift), shift), f64(u), atol=1e-12, rtol=0)


@given(shifts, coordinates, positions)
def test_timestep_and_sigma_are_inverses(shift: float, coordinate: str, position: float):
    schedule = Schedule(shift, 1000, coordinate, True)
    sigma = schedule.sigma(f64(position))
    assert 0 <= float(sigma) <= 1 + 1e-15
    torch.testing.assert_close(schedule.timestep(sigma), f64(position), atol=1e-8, rtol=0)


@given(shifts, coordinates)
def test_nodes_fall_from_pure_noise_and_are_noise_levels_of_an_even_grid(shift: float, coordinate: str):
    schedule = Schedule(shift, 1000, coordinate, True)
    nodes = schedule.nodes()
    assert nodes.dtype == torch.float64
    assert nodes.shape == (1000,)
    assert float(nodes[0]) == pytest.approx(1000, abs=1e-9)
    assert bool((nodes[1:] < nodes[:-1]).all())
    even = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
    torch.testing.assert_close(schedule.sigma(nodes), shift * even / (1 + (shift - 1) * even), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 4.5, 5.0, 5.5, 5.8])
def test_the_first_node_is_pure_noise_to_the_last_bit(shift: float):
    schedule = Schedule(shift, 1000, "timestep", True)
    assert float(schedule.nodes()[0]) == 1000.0
    assert float(schedule.sigma(schedule.nodes()[0])) == 1.0


def test_nodes_are_whole_numbers_in_the_index_coordinate_and_1000_sigma_in_the_timestep_one():
    nodes = index_schedule(5.0).nodes()
    torch.testing.assert_close(nodes, torch.arange(1000, 0, -1, dtype=torch.float64), atol=1e-9, rtol=0)
    # node 500 of shift 5: sigma = 2.5 / 3 = 0.8333
    assert float(Schedule(5.0, 1000, "timestep", True).nodes()[500]) == pytest.approx(2500 / 3, abs=1e-9)


@given(shifts, coordinates, st.lists(positions, min_size=1, max_size=8))
def test_snapping_finds_the_nearest_node_and_is_idempotent(shift: float, coordinate: str, where: list[float]):
    schedule = Schedule(shift, 1000, coordinate, True)
    snapped, nodes = schedule.snapped(f64(*where)), schedule.nodes()
    nearest = (nodes[:, None] - f64(*where)).abs().min(0).values
    torch.testing.assert_close((snapped - f64(*where)).abs(), nearest, atol=1e-7, rtol=0)
    assert float((nodes[:, None] - snapped).abs().min(0).values.max()) < 1e-7
    torch.testing.assert_close(schedule.snapped(snapped), snapped, atol=1e-7, rtol=0)


def test_snapping_can_be_switched_off():
    where = f64(0.3, 123.456, 777.7)
    assert torch.equal(Schedule(4.5, 1000, "timestep", False).snapped(where), where)
    assert not torch.equal(Schedule(4.5, 1000, "timestep", True).snapped(where), where)


@given(shifts, positions, positions)
def test_in_the_timestep_coordinate_a_span_is_the_stride_over_n(shift: float, first: float, second: float):
    timestep, end = max(first, second), min(first, second)
    span = Schedule(shift, 1000, "timestep", True).noise_span(f64(timestep), f64(end))
    assert float(span) == pytest.approx((timestep - end) / 1000, abs=1e-12)


@given(shifts, positions, positions)
def test_in_the_index_coordinate_a_span_has_the_closed_form(shift: float, first: float, second: float):
    # sigma(T) - sigma(T - D) = s (D / N) / (A(T) A(T - D)), A(T) = 1 + (s - 1) T / N  (docs/method.md)
    timestep, end = max(first, second), min(first, second)
    a, b = (1 + (shift - 1) * t / 1000 for t in (timestep, end))
    span = index_schedule(shift).noise_span(f64(timestep), f64(end))
    assert float(span) == pytest.approx(shift * (timestep - end) / 1000 / (a * b), abs=1e-12)


@given(shifts, coordinates, st.lists(positions, min_size=3, max_size=3))
def test_spans_add_up_along_a_trajectory(shift: float, coordinate: str, where: list[float]):
    schedule = Schedule(shift, 1000, coordinate, True)
    low, middle, high = f64(*sorted(where))
    whole = schedule.noise_span(high, low)
    assert float(whole) >= 0
    parts = schedule.noise_span(high, middle) + schedule.noise_span(middle, low)
    torch.testing.assert_close(parts, whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("shift", "timestep", "stride", "expected"),
    [  # docs/method.md
        (3.0, 500, 500, 0.750),
        (5.0, 500, 500, 0.833),
        (5.0, 500, 250, 0.208),
        (5.0, 800, 800, 0.952),
        (5.0, 800, 400, 0.183),
        (5.0, 800, 200, 0.070),
        (8.0, 800, 400, 0.128),
    ],
)
def test_spans_of_the_paper_set_in_the_index_coordinate(shift: float, timestep: int, stride: int, expected: float):
    span = index_schedule(shift).noise_span(f64(timestep), f64(timestep - stride))
    assert float(span) == pytest.approx(expected, abs=5e-4)


def test_a_fixed_stride_spans_most_noise_near_data():
    # the paper's words have it the other way round (docs/method.md): 1000 -> 800 is 0.048, 200 -> 0 is 0.556
    span = index_schedule(5.0).noise_span(f64(1000, 200), f64(800, 0))
    torch.testing.assert_close(span, f64(0.0476, 0.5556), atol=5e-5, rtol=0)


@given(shifts, st.floats(10, 1000), st.floats(0.01, 1))
def test_the_first_halfs_share_has_the_closed_form(shift: float, timestep: float, fraction: float):
    # w1 = A(Te) / (A(T) + A(Te)): ds1 = s h / (A(T) A(Tm)), ds2 = s h / (A(Tm) A(Te))  (docs/method.md)
    stride = timestep * fraction
    schedule = index_schedule(shift)
    top, middle, end = f64(timestep), f64(timestep - stride / 2), f64(timestep - stride)
    first, second = schedule.noise_span(top, middle), schedule.noise_span(middle, end)
    a, b = (1 + (shift - 1) * t / 1000 for t in (timestep, timestep - stride))
    assert float(first / (first + second)) == pytest.approx(b / (a + b), abs=1e-9)


def test_the_first_halfs_share_of_the_longest_strides():
    # shift 5, T = D = 500, 600, 700, 800: 1 / (A(T) + 1) = 1/4, 1/4.4, 1/4.8, 1/5.2
    schedule, top = index_schedule(5.0), f64(500, 600, 700, 800)
    first, whole = schedule.noise_span(top, top / 2), schedule.noise_span(top, 0 * top)
    torch.testing.assert_close(first / whole, f64(0.25, 1 / 4.4, 1 / 4.8, 1 / 5.2), atol=1e-12, rtol=0)


def test_the_network_is_told_1000_sigma_whatever_the_coordinate():
    # telling it 800 instead of 952.4 is the classic bug  (docs/method.md)
    timesteps = index_schedule(5.0).network_timestep(f64(800, 1000))
    torch.testing.assert_close(timesteps, torch.tensor([4000 / 4.2, 1000.0]))
    assert timesteps.dtype == torch.float32
    timestep_800 = Schedule(5.0, 1000, "timestep", True).network_timestep(f64(800))
    torch.testing.assert_close(timestep_800, torch.tensor([800.0]))


@pytest.mark.parametrize(
    ("arguments", "key"),
    [((0.0, 1000), "schedule.shift"), ((-1.0, 1000), "schedule.shift"), ((5.0, 1), "schedule.num_timesteps")],
)
def test_an_impossible_schedule_is_refused_by_key(arguments: tuple, key: str):
    with pytest.raises(ValueError, match=key):
        Schedule(*arguments, "timestep", True)
