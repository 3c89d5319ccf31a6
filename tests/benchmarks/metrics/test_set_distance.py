"""FVD and KVD of features, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.kid import poly_mmd

from benchmarks.metrics import METRICS, SET_METRICS
from benchmarks.metrics.set_distance import DISTANCES, frechet, kernel_distance


def standard(n: int, d: int, seed: int = 0) -> np.ndarray:
    """[n, d] whose mean is 0 and whose covariance is the identity, to rounding."""
    values = np.random.default_rng(seed).standard_normal((n, d))
    return np.linalg.qr(values - values.mean(0))[0] * np.sqrt(n - 1)


def test_fvd_of_diagonal_gaussians_is_the_closed_form():
    """|m1 - m2|^2 + sum (s1 - s2)^2: 9 + 16 + (1 - 2)^2 + (3 - 3)^2 + (0.5 - 4)^2 = 38.25."""
    real = standard(40, 3) * [1, 3, 0.5]
    generated = standard(25, 3, seed=1) * [2, 3, 4] + [3, 0, -4]
    assert frechet(real, generated) == pytest.approx(38.25, rel=1e-12)
    assert frechet(generated, real) == pytest.approx(38.25, rel=1e-12)


def test_fvd_of_correlated_features_is_that_of_the_matrix_square_root():
    rng = np.random.default_rng(0)
    real, generated = (rng.standard_normal((n, 6)) @ rng.standard_normal((6, 6)) for n in (50, 30))
    s, t = np.cov(real.T), np.cov(generated.T)
    shift = real.mean(0) - generated.mean(0)
    expected = shift @ shift + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert frechet(real, generated) == pytest.approx(expected, rel=1e-10)


def test_fvd_of_fewer_videos_than_features_needs_no_jitter():
    """{a, -a} has covariance 2 a a^T, so the distance to {b, -b} is 2 |a|^2 + 2 |b|^2 - 4 |a . b|."""
    a, b = np.arange(5.0), np.array([1.0, -2, 0, 3, 1])
    expected = 2 * (a @ a) + 2 * (b @ b) - 4 * abs(a @ b)
    assert frechet(np.stack([a, -a]), np.stack([b, -b])) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_fvd_of_a_set_and_itself_is_exactly_zero_in_any_order(shape: tuple[int, int]):
    features = np.random.default_rng(0).standard_normal(shape) * 7 + 100
    assert frechet(features, features) == 0
    assert frechet(features, features[::-1]) == 0
    assert frechet(features, features + 1e-3) > 0


def test_kvd_leaves_out_a_video_and_itself():
    """k(a, b) = (ab + 1)^3: k(1, 2) = 27, k(0, 3) = 1, and across 1, 64, 1, 343: 27 + 1 - 2 * 409 / 4 = -176.5."""
    assert kernel_distance(np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])) == pytest.approx(-176.5)


def test_kvd_is_torchmetrics_polynomial_mmd_where_the_sets_are_equally_large():
    real, generated = np.random.default_rng(0).standard_normal((2, 20, 5))
    expected = poly_mmd(torch.from_numpy(real), torch.from_numpy(generated)).item()
    assert kernel_distance(real, generated) == pytest.approx(expected, rel=1e-12)


def test_kvd_has_no_bias_and_fvd_has():
    """Sets of one distribution: KVD is 0 on average, FVD of 10 videos twice that of 20 or more."""
    rng = np.random.default_rng(0)
    pairs = rng.standard_normal((2000, 2, 10, 3))
    kvd = [kernel_distance(*pair) for pair in pairs]
    assert abs(np.mean(kvd)) < 3 * np.std(kvd) / np.sqrt(len(kvd))
    few, many = (np.mean([frechet(x[:n], y[:n]) for x, y in rng.standard_normal((300, 2, 20, 3))]) for n in (10, 20))
    assert few > 1.8 * many > 0.1


def test_no_metric_of_videos_has_the_name_of_a_set_metric():
    assert set(SET_METRICS) == set(DISTANCES)
    assert not set(SET_METRICS) & set(METRICS)
