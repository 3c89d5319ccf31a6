"""pw.method.coverage: which steps were trained, against docs/method.md and docs/tiny.md."""

from __future__ import annotations

import itertools

import pytest

from pw.method.coverage import coverage
from pw.method.schedule import Schedule
from pw.method.solver import custom_grid, inference_grid
from pw.method.step_sampler import Aligned, Chain, Closed, ExponentialIndex, Original

STARTS = (500, 600, 700, 800)
PAPER = ExponentialIndex(0.7, 6, True, STARTS, False)
ALIGNED = Aligned(0.7, 6, True, (2, 3, 4, 5))
TIMESTEP, INDEX = Schedule(4.5, 1000, "timestep", True), Schedule(5.0, 1000, "index", True)


@pytest.mark.parametrize("schedule", [TIMESTEP, INDEX], ids=["timestep", "index"])
def test_none_of_the_second_halves_of_the_papers_set_is_trained(schedule: Schedule):
    report = coverage(PAPER, schedule, inference_grid(4, schedule))
    assert (report.second_halves_trained, report.second_halves, report.second_halves_grounded) == (0, 24, 4)


@pytest.mark.parametrize(
    ("num_steps", "trained"),
    [  # docs/method.md, exactly trained: 2 steps (500, 500); 4 steps (500, 250); 5 steps (800, 200)
        (2, [(500, 500)]),
        (3, []),
        (4, [(500, 250)]),
        (5, [(800, 200)]),
    ],
)
def test_in_the_index_coordinate_the_papers_set_holds_hardly_a_step_of_an_even_grid(num_steps: int, trained: list):
    report = coverage(PAPER, INDEX, inference_grid(num_steps, INDEX))
    result = [(round(p.timestep), round(p.stride)) for p in report.pairs if p.trained]
    assert result == trained


def test_at_shift_4_5_the_last_of_four_steps_is_trained():
    # 1000, 931, 818, 600: only (600, 600) is a pair of the paper's set  (docs/tiny.md)
    report = coverage(PAPER, TIMESTEP, inference_grid(4, TIMESTEP))
    assert [p.trained for p in report.pairs] == [False, False, False, True]
    assert report.pairs[-1].nearest == (600, 600)


def test_the_nodes_of_the_starts_are_half_trained():
    # docs/method.md: 800-700-600-500-0 is trained at (800, 100) and (500, 500); (700, 100), (600, 100) are not
    report = coverage(PAPER, INDEX, custom_grid([800, 700, 600, 500], INDEX))
    assert [p.trained for p in report.pairs] == [True, False, False, True]


@pytest.mark.parametrize("num_steps", [2, 3, 4, 5])
@pytest.mark.parametrize("schedule", [TIMESTEP, INDEX], ids=["timestep", "index"])
def test_aligned_covers_all_of_its_own_grids_and_all_of_its_halves(num_steps: int, schedule: Schedule):
    report = coverage(ALIGNED, schedule, inference_grid(num_steps, schedule))
    assert all(p.trained for p in report.pairs)
    assert report.second_halves_trained == report.second_halves - report.second_halves_grounded


def test_aligned_does_not_cover_a_grid_it_was_not_asked_for():
    report = coverage(Aligned(0.7, 6, True, (4,)), TIMESTEP, inference_grid(3, TIMESTEP))
    assert not all(p.trained for p in report.pairs)


def test_closed_trains_the_second_halves_it_descends_into():
    # depth 1: the halves of the paper's rungs 0 … 4 are trained, those of the rows descended into are not
    report = coverage(Closed(0.7, 6, True, (800,), False, 0.5, 1), TIMESTEP, inference_grid(4, TIMESTEP))
    assert report.second_halves_trained >= 5
    assert report.second_halves_trained < report.second_halves - report.second_halves_grounded


def test_chain_and_original_train_their_own_trajectories():
    for sampler, grid in (
        (Chain(0.7, 6, True, STARTS, False), [800, 600, 400, 200]),
        (Original(0.0, 8, True), [1000, 750, 500, 250]),
    ):
        report = coverage(sampler, INDEX, custom_grid(grid, INDEX))
        assert all(p.trained for p in report.pairs), sampler


def test_only_six_trajectories_to_data_are_trained_throughout_by_the_papers_set():
    # docs/method.md: 500-0, 600-0, 700-0, 800-0, 800-700-0, 800-600-0, nothing longer
    trajectories = set()
    for length in (1, 2, 3, 4):
        for nodes in itertools.combinations(sorted(STARTS, reverse=True), length):
            if all(p.trained for p in coverage(PAPER, INDEX, custom_grid(nodes, INDEX)).pairs):
                trajectories.add(nodes)
    assert trajectories == {(500,), (600,), (700,), (800,), (800, 700), (800, 600)}


def test_of_the_paper_s_set_trains_one_step_of_four_and_no_second_half():
    report = coverage(PAPER, TIMESTEP, inference_grid(4, TIMESTEP))
    assert [pair.trained for pair in report.pairs].count(True) == 1
    assert len(report.pairs) == 4
    assert (report.second_halves_trained, report.second_halves, report.second_halves_grounded) == (0, 24, 4)
