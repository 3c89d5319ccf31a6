"""pw.method.step_sampler: which steps are drawn, how often, and that every one of them is a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pw.method.schedule import Schedule
from pw.method.step_sampler import (
    Aligned,
    Chain,
    Closed,
    ExponentialIndex,
    FullRange,
    Original,
    StepSampler,
    TableSampler,
    even,
    rung_probabilities,
    stride_ladder,
)

STARTS = (500, 600, 700, 800)
TIMESTEP, INDEX = (Schedule(4.5, 1000, coordinate, True) for coordinate in ("timestep", "index"))
UNSNAPPED = Schedule(4.5, 1000, "timestep", False)
PAPER = ExponentialIndex(0.7, 6, True, STARTS, False)
SAMPLERS = {
    "paper": PAPER,
    "uniform": ExponentialIndex(0.0, 6, True, STARTS, False),
    "paper_and_start": ExponentialIndex(0.7, 6, True, STARTS, True),
    "closed": Closed(0.7, 6, True, STARTS, False, descend=0.5, depth=2),
    "chain": Chain(0.7, 6, True, STARTS, False),
    "original": Original(0.0, 8, True),
    "full_range": FullRange(0.7, 6, True),
    "aligned": Aligned(0.7, 6, True, (2, 3, 4, 5)),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def all_rows(sampler: StepSampler, schedule: Schedule):
    """One draw of every row of the table: its probability's middle, by inverse CDF."""
    table = sampler.table(schedule)
    return sampler.draw(table.probability.cumsum(0) - table.probability / 2, schedule)


def test_rung_probabilities_are_those_of_the_paper():
    # p(k) = exp(-0.7 k) / Z, Z = 1 + .496585 + .246597 + .122456 + .060810 + .030197 = 1.956646  (Eq. 6)
    expected = [0.511079, 0.253794, 0.126030, 0.062585, 0.031079, 0.015433]
    assert rung_probabilities(0.7, 6).tolist() == pytest.approx(expected, abs=5e-7)


def test_rung_probabilities_at_beta_zero_are_uniform():
    assert rung_probabilities(0.0, 6).tolist() == pytest.approx([1 / 6] * 6, abs=1e-15)


@given(st.floats(-3, 3), st.integers(1, 10))
def test_rung_probabilities_sum_to_one_and_fall_by_one_ratio(beta: float, num_strides: int):
    p = rung_probabilities(beta, num_strides)
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(p[1:], p[:-1] * math.exp(-beta), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(
    ("timestep", "ladder"),
    [  # floor(T / 2^k), k = 0 … 5, then down to even: 500 / 4 = 125 -> 124, 500 / 16 = 31 -> 30, 500 / 32 = 15 -> 14
        (500, [500, 250, 124, 62, 30, 14]),
        (600, [600, 300, 150, 74, 36, 18]),
        (700, [700, 350, 174, 86, 42, 20]),
        (800, [800, 400, 200, 100, 50, 24]),
    ],
)
def test_strides_halve_and_are_made_even(timestep: int, ladder: list[int]):
    assert stride_ladder(timestep, 6) == ladder


@given(st.floats(2, 1000))
def test_even_is_the_next_even_number_below(stride: float):
    assert even(stride) % 2 == 0
    assert 0 <= stride - even(stride) < 2


def test_no_stride_is_shorter_than_two():
    assert even(0.5) == 2
    assert min(stride_ladder(64, 6)) == 2


def test_the_paper_set_is_24_steps_with_the_start_uniform():
    table = PAPER.table(TIMESTEP)
    assert len(table) == 24
    for i, start in enumerate(STARTS):
        rows = slice(6 * i, 6 * i + 6)
        assert table.timestep[rows].tolist() == [start] * 6
        assert table.stride[rows].tolist() == stride_ladder(start, 6)
        torch.testing.assert_close(table.probability[rows], rung_probabilities(0.7, 6) / 4)
    # only the last rung has no trained half
    assert table.ground.tolist() == [False, False, False, False, False, True] * 4


def test_nothing_is_grounded_when_grounding_is_off():
    assert not ExponentialIndex(0.7, 6, False, STARTS, False).table(TIMESTEP).ground.any()


def test_include_start_adds_pure_noise():
    with_start = SAMPLERS["paper_and_start"].table(TIMESTEP)
    assert set(with_start.timestep.tolist()) == {*map(float, STARTS), 1000.0}
    assert float(with_start.probability[with_start.timestep == 1000].sum()) == pytest.approx(0.2)


@every_sampler
@pytest.mark.parametrize("schedule", [TIMESTEP, INDEX], ids=["timestep", "index"])
def test_the_table_sums_to_one_and_stays_in_range(sampler: StepSampler, schedule: Schedule):
    table = sampler.table(schedule)
    assert float(table.probability.sum()) == pytest.approx(1, abs=1e-12)
    assert float(table.probability.min()) >= 0
    assert float(table.timestep.max()) <= 1000
    assert float((table.timestep - table.stride).min()) >= -1e-9


@every_sampler
@pytest.mark.parametrize("shift", [1.0, 3.0, 4.5, 5.5, 8.0])
@pytest.mark.parametrize("coordinate", ["timestep", "index"])
def test_every_step_goes_down_by_two_halves(sampler: StepSampler, shift: float, coordinate: str):
    """Also where the nodes lie further apart than a stride, as they do near data under a shift."""
    schedule = Schedule(shift, 1000, coordinate, True)
    steps = all_rows(sampler, schedule)
    assert bool((steps.timestep <= 1000).all())
    assert bool((steps.timestep > steps.middle).all())
    assert bool((steps.middle > steps.end).all())
    assert bool((steps.end >= 0).all())
    # snapping moves a point by half a node at most, and a node is at most 1000 * max(shift, 1 / shift) / N long
    table = sampler.table(schedule)
    assert float((steps.timestep - table.timestep).abs().max()) <= shift / 2
    assert float((steps.middle - table.timestep + table.stride / 2).abs().max()) <= shift / 2


@every_sampler
def test_drawing_by_inverse_cdf_reproduces_the_tables_frequencies(sampler: StepSampler):
    table, n = sampler.table(UNSNAPPED), 200_000
    steps = sampler.draw((torch.arange(n, dtype=torch.float64) + 0.5) / n, UNSNAPPED)

    def key(timestep: torch.Tensor, stride: torch.Tensor, ground: torch.Tensor) -> torch.Tensor:
        return torch.stack([timestep, stride, ground.double()], 1)

    steps_drawn, counts = key(steps.timestep, steps.stride, steps.ground).unique(dim=0, return_counts=True)
    listed, row = key(table.timestep, table.stride, table.ground).unique(dim=0, return_inverse=True)
    expected = torch.zeros(len(listed), dtype=torch.float64).index_add_(0, row, table.probability)
    repeats = int(row.bincount().max())  # equal rows that do not lie next to each other round separately
    result = torch.zeros_like(expected)
    for step, count in zip(steps_drawn, counts.tolist(), strict=True):
        match = (listed == step).all(1)
        assert int(match.sum()) == 1
        result[match] = count / n
    torch.testing.assert_close(result, expected, atol=1.01 * repeats / n, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
@every_sampler
def test_the_ends_of_the_unit_interval_draw_the_first_and_the_last_row(sampler: StepSampler, uniform: float):
    table = sampler.table(UNSNAPPED)
    row = 0 if uniform == 0 else -1
    step = sampler.draw(torch.tensor([uniform], dtype=torch.float64), UNSNAPPED)
    assert float(step.stride) == float(table.stride[row])
    assert float(step.timestep) == float(table.timestep[row])


def test_a_boundary_belongs_to_the_row_above_it():
    # rows (1000, 1000), (1000, 500), (500, 500) with 1/2, 1/4, 1/4: exact in binary
    steps = Original(0.0, 2, True).draw(torch.tensor([0.4999, 0.5, 0.75], dtype=torch.float64), UNSNAPPED)
    assert steps.timestep.tolist() == [1000, 1000, 500]
    assert steps.stride.tolist() == [1000, 500, 500]


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=16))
def test_samplers_with_the_same_starts_draw_the_same_start_from_the_same_uniform(uniforms: list[float]):
    uniform = torch.tensor(uniforms, dtype=torch.float64)
    uniform = uniform[((uniform * 4) % 1 - 0.5).abs() < 0.4999]  # a boundary may fall either way by rounding
    starts = torch.tensor(STARTS, dtype=torch.float64)[(uniform * 4).long()]
    for name in ("paper", "uniform"):
        assert torch.equal(SAMPLERS[name].draw(uniform, UNSNAPPED).timestep, starts)
    chain = SAMPLERS["chain"].draw(uniform, UNSNAPPED)
    states_back = (starts - chain.timestep) / chain.stride
    torch.testing.assert_close(states_back, states_back.round(), atol=1e-9, rtol=0)
    closed = SAMPLERS["closed"].draw(uniform, UNSNAPPED)
    descents = torch.log2((starts - closed.timestep) / closed.stride + 1)  # 0, 1 half or 1/2 + 1/4 -> 3 quarters
    torch.testing.assert_close(descents, descents.round(), atol=1e-9, rtol=0)


def test_closed_descends_into_second_halves_only():
    # (800, 800) with p/2, (400, 400) with p/4, (200, 200) with p/4: at most twice
    table = Closed(0.0, 6, True, (800,), False, descend=0.5, depth=2).table(TIMESTEP)
    assert table.timestep[:3].tolist() == [800, 400, 200]
    assert table.stride[:3].tolist() == [800, 400, 200]
    assert (6 * table.probability[:3]).tolist() == pytest.approx([0.5, 0.25, 0.25])


def test_closed_without_descending_is_the_papers_set():
    table = Closed(0.7, 6, True, STARTS, False, descend=0.0, depth=2).table(TIMESTEP)
    paper = PAPER.table(TIMESTEP)
    assert torch.equal(table.timestep, paper.timestep)
    assert torch.equal(table.stride, paper.stride)
    assert torch.equal(table.ground, paper.ground)
    torch.testing.assert_close(table.probability, paper.probability)


def test_chain_holds_every_state_of_each_trajectory():
    table = Chain(0.7, 3, True, (800,), False).table(TIMESTEP)
    pairs = list(zip(table.timestep.tolist(), table.stride.tolist(), strict=True))
    assert pairs == [(800, 800), (800, 400), (400, 400), (800, 200), (600, 200), (400, 200), (200, 200)]
    p = rung_probabilities(0.7, 3).tolist()
    assert table.probability.tolist() == pytest.approx([p[0], p[1] / 2, p[1] / 2, *[p[2] / 4] * 4])


def test_original_has_strides_n_over_2_to_the_k_and_their_multiples():
    table = Original(0.0, 3, True).table(TIMESTEP)
    pairs = list(zip(table.timestep.tolist(), table.stride.tolist(), strict=True))
    assert pairs == [(1000, 1000), (1000, 500), (500, 500), (1000, 250), (750, 250), (500, 250), (250, 250)]


def test_full_range_starts_at_every_node_that_can_be_halved():
    table = FullRange(0.7, 6, True).table(TIMESTEP)
    nodes = TIMESTEP.nodes()
    expected = nodes[nodes >= 64]
    torch.testing.assert_close(table.timestep[::6], expected)


def test_aligned_asks_for_the_steps_of_its_grids():
    # 2 steps at shift 4.5: u = 1, 0.5 -> 1000, 818.18, 0: strides 181.8 -> 180 and 818.2 -> 818
    table = Aligned(0.7, 2, True, (2,)).table(TIMESTEP)
    pairs = [(round(t, 2), s) for t, s in zip(table.timestep.tolist(), table.stride.tolist(), strict=True)]
    assert pairs == [(1000, 180), (1000, 90), (910, 90), (818.18, 818), (818.18, 409), (409.18, 409)]


@pytest.mark.parametrize("name", ["aligned", "original"])
def test_these_samplers_are_closed_under_halving(name: str):
    table = SAMPLERS[name].table(TIMESTEP)
    rows = torch.stack([table.timestep, table.stride], 1)
    open_rows = rows[~table.ground]
    half = torch.stack([torch.zeros(len(open_rows)), open_rows[:, 1] / 2], 1).double()
    first = torch.stack([open_rows[:, 0], open_rows[:, 1] / 2], 1)
    for expected in (first, first - torch.stack([half[:, 1], half[:, 0]], 1)):
        assert float(torch.cdist(expected, rows, p=1).min(1).values.max()) < 1e-9


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: ExponentialIndex(0.7, 0, True, STARTS, False), "step_sampler.num_strides=0"),
        (lambda: ExponentialIndex(30.0, 6, True, STARTS, False), "step_sampler.beta=30"),
        (lambda: ExponentialIndex(0.7, 6, True, (), False), r"step_sampler.starts=\[\]"),
        (lambda: ExponentialIndex(0.7, 6, True, (40,), False), r"step_sampler.starts=\[40\]: needs .* at least 64"),
        (
            lambda: ExponentialIndex(0.7, 6, True, (1200,), False).check(TIMESTEP),
            "step_sampler.starts=.*at most N=1000",
        ),
        (lambda: Closed(0.7, 6, True, STARTS, False, 1.5, 2), "step_sampler.descend=1.5"),
        (lambda: Aligned(0.7, 6, True, (0, 4)), r"step_sampler.grids=\[0, 4\]"),
    ],
)
def test_an_impossible_sampler_is_refused_by_key(make, key: str):
    with pytest.raises(ValueError, match=key):
        make()


def test_a_sampler_of_ones_own_needs_rows_alone():
    @dataclass(frozen=True)
    class OneStep(TableSampler):
        def rows(self, schedule: Schedule):
            yield float(schedule.num_timesteps), 400.0, False, 1.0

    steps = OneStep().draw(torch.tensor([0.0, 0.5, 0.999]), UNSNAPPED)
    assert steps.timestep.tolist() == [1000.0] * 3
    assert steps.middle.tolist() == [800.0] * 3
    assert steps.end.tolist() == [600.0] * 3
