"""pw.nn.cosine_codec: all of luma and half of chroma's resolution, in blocks that fade into each other."""

from __future__ import annotations

import math

import pytest
import torch

from pw.io.arguments import ConfigError
from pw.nn.cosine_codec import LappedCosineCodec, lapped_cosines
from pw.nn.options import LappedCosine
from pw.run.build import build

CHOICE = LappedCosine(factor=8, chroma=4, luma_scale=2.0, chroma_scale=(0.29, 0.21), falloff=1.5)
CODEC = LappedCosineCodec(CHOICE)


@pytest.mark.parametrize(("length", "n"), [(8, 8), (64, 8), (12, 4), (32, 2), (48, 16)])
def test_the_transform_is_orthonormal(length: int, n: int):
    transform = lapped_cosines(length, n)
    assert torch.allclose(transform @ transform.T, torch.eye(length), atol=1e-6)


def test_its_coding_gain_is_the_published_one():
    """9.22 dB on a Markov line of correlation 0.95, where blocks without lapping have 8.83 (Malvar; Tran et al.)."""
    at = torch.arange(72, dtype=torch.float64)
    covariance = 0.95 ** (at - at[:, None]).abs()
    for transform, block, expected in ((lapped_cosines(72, 8), 4, 9.22), (lapped_cosines(8, 8), 0, 8.83)):
        rows = transform[8 * block : 8 * block + 8].double()
        part = covariance[: rows.shape[1], : rows.shape[1]]
        variances = (rows @ part @ rows.T).diag()
        assert -10 * float(variances.log10().mean()) == pytest.approx(expected, abs=0.01)


def test_a_flat_picture_is_in_the_first_coefficient_of_each_block_alone():
    flat = lapped_cosines(40, 8) @ torch.ones(40)
    assert torch.allclose(flat.view(5, 8)[:, 0], torch.full((5,), math.sqrt(8)), atol=1e-5)
    assert float(flat.view(5, 8)[:, 1:].abs().max()) < 1e-5


def test_an_error_of_one_block_shows_no_border():
    """A wrong mean rises over several px; separate blocks would step by all of it."""
    latent = torch.zeros(1, 96, 1, 5, 5)
    latent[0, 0, 0, 2, 2] = 1
    middle = CODEC.decode(latent)[0, 0, 0, 20]
    separate = CHOICE.deviation(0, 0, 0) / 8 / 3**0.5
    assert float(middle.diff().abs().max()) < 0.6 * separate


def test_a_channel_is_a_coefficient_over_its_deviation():
    video = torch.rand(1, 3, 2, 16, 24) * 2 - 1
    latent = CODEC.encode(video)
    assert latent.shape == (1, 96, 2, 2, 3)
    red, green, blue = video[0, :, 1]
    colours = ((red + green + blue) / 3**0.5, (red - blue) / 2**0.5, (red - 2 * green + blue) / 6**0.5)
    blocks = [(lapped_cosines(16, 8) @ colour @ lapped_cosines(24, 8).T)[8:16, 16:24] for colour in colours]
    for channel, (colour, u, v) in enumerate(CHOICE.coefficients()):
        expected = float(blocks[colour][u, v]) / CHOICE.deviation(colour, u, v)
        assert float(latent[0, channel, 1, 1, 2]) == pytest.approx(expected, abs=1e-4)


def test_a_grey_video_survives_and_so_does_every_latent():
    grey = torch.rand(2, 1, 3, 16, 16).expand(-1, 3, -1, -1, -1) * 2 - 1
    assert torch.allclose(CODEC.decode(CODEC.encode(grey)), grey, atol=1e-5)
    latent = torch.randn(2, 96, 3, 2, 4)
    assert torch.allclose(CODEC.encode(CODEC.decode(latent)), latent, atol=1e-3)


def test_with_all_of_chroma_nothing_is_lost():
    codec = LappedCosineCodec(LappedCosine(8, 8, 2.0, (0.29, 0.21), 1.5))
    video = torch.rand(1, 3, 2, 8, 16) * 2 - 1
    assert codec.channels == 192
    assert torch.allclose(codec.decode(codec.encode(video)), video, atol=1e-5)


def test_only_fine_detail_of_colour_is_lost():
    """Stripes of 1 px of pure chroma fade; a ramp of it stays."""
    stripes = torch.where(torch.arange(32) % 2 == 0, 0.5, -0.5)
    for line, kept in ((stripes, False), (torch.linspace(-0.5, 0.5, 32), True)):
        red = line.expand(1, 1, 1, 16, 32)
        video = torch.cat([red, torch.zeros_like(red), -red], dim=1)
        assert torch.allclose(CODEC.decode(CODEC.encode(video)), video, atol=0.02) is kept


def test_a_video_the_factor_does_not_divide_is_refused_by_key():
    with pytest.raises(ValueError, match=r"codec\.factor=8 does not divide 16 x 20 pixels"):
        CODEC.encode(torch.zeros(1, 3, 2, 16, 20))


def test_more_chroma_than_a_block_has_is_refused_by_key():
    with pytest.raises(ConfigError, match=r"codec\.chroma=9.*codec\.factor=8"):
        build(["scale=small", "data=none", "codec.chroma=9"])


def test_a_network_for_other_channels_is_refused_by_key():
    with pytest.raises(ConfigError, match=r"backbone\.in_channels=96: codec=lapped_cosine makes 72 channels; set"):
        build(["scale=small", "data=none", "codec.chroma=2"])
