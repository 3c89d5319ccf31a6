"""pw.method.path: the straight line between data and noise."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pw.method import path


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    data, noise = (torch.randn(3, 2, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return data, noise


def test_the_path_runs_from_data_at_zero_to_noise_at_one():
    data, noise = pair()
    ends = path.state(data, noise, torch.tensor([0.0, 1.0, 0.25], dtype=torch.float64))
    assert torch.equal(ends[0], data[0])
    assert torch.equal(ends[1], noise[1])
    torch.testing.assert_close(ends[2], 0.75 * data[2] + 0.25 * noise[2])


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_velocity_is_the_slope_of_the_path(a: float, b: float):
    data, noise = pair()
    at = lambda sigma: path.state(data, noise, torch.full((3,), sigma, dtype=torch.float64))  # noqa: E731
    torch.testing.assert_close(at(b) - at(a), (b - a) * path.velocity(data, noise), atol=1e-12, rtol=0)


def test_a_factor_per_sample_takes_the_batchs_type():
    x = torch.ones(2, 3, 1, 1, 1, dtype=torch.bfloat16)
    factor = path.broadcast(torch.tensor([0.5, 2.0], dtype=torch.float64), x)
    assert factor.dtype == torch.bfloat16
    assert factor.shape == (2, 1, 1, 1, 1)
