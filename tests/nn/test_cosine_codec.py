"""pw.nn.cosine_codec: all of luma and half of chroma's resolution, in channels of about unit variance."""

from __future__ import annotations

import pytest
import torch
from scipy.fft import dctn

from pw.io.arguments import ConfigError
from pw.nn.cosine_codec import LappedCosineCodec
from pw.nn.options import LappedCosine
from pw.run.build import build

CHOICE = LappedCosine(factor=8, chroma=4, luma_scale=4.6, chroma_scale=(0.66, 0.48), falloff=2)
CODEC = LappedCosineCodec(CHOICE)


def test_the_channels_are_scipys_coefficients_over_their_deviation():
    video = torch.rand(1, 3, 2, 16, 24) * 2 - 1
    latent = CODEC.encode(video)
    assert latent.shape == (1, 96, 2, 2, 3)
    red, green, blue = video[0, :, 1, 8:16, 16:24].double()
    colours = ((red + green + blue) / 3**0.5, (red - blue) / 2**0.5, (red - 2 * green + blue) / 6**0.5)
    blocks = [dctn(colour.numpy(), norm="ortho") for colour in colours]
    for channel, (colour, u, v) in enumerate(CHOICE.coefficients()):
        expected = blocks[colour][u, v] / CHOICE.deviation(colour, u, v)
        assert float(latent[0, channel, 1, 1, 2]) == pytest.approx(expected, abs=1e-4)


def test_a_grey_video_survives_and_so_does_every_latent():
    grey = torch.rand(2, 1, 3, 16, 16).expand(-1, 3, -1, -1, -1) * 2 - 1
    assert torch.allclose(CODEC.decode(CODEC.encode(grey)), grey, atol=1e-5)
    latent = torch.randn(2, 96, 3, 2, 4)
    assert torch.allclose(CODEC.encode(CODEC.decode(latent)), latent, atol=1e-3)


def test_with_all_of_chroma_nothing_is_lost():
    codec = LappedCosineCodec(LappedCosine(8, 8, 4.6, (0.66, 0.48), 2))
    video = torch.rand(1, 3, 2, 8, 16) * 2 - 1
    assert codec.channels == 192
    assert torch.allclose(codec.decode(codec.encode(video)), video, atol=1e-5)


def test_only_fine_detail_of_colour_is_lost():
    """A stripe of 1 px of pure chroma fades; one that is as wide as a block stays."""
    column = torch.arange(32)
    for width, kept in ((1, False), (8, True)):
        red = torch.where(column // width % 2 == 0, 0.5, -0.5).expand(1, 1, 1, 8, 32)
        video = torch.cat([red, torch.zeros_like(red), -red], dim=1)
        assert torch.allclose(CODEC.decode(CODEC.encode(video)), video, atol=0.05) is kept


def test_a_video_the_factor_does_not_divide_is_refused_by_key():
    with pytest.raises(ValueError, match=r"codec\.factor=8 does not divide 16 x 20 pixels"):
        CODEC.encode(torch.zeros(1, 3, 2, 16, 20))


def test_more_chroma_than_a_block_has_is_refused_by_key():
    with pytest.raises(ConfigError, match=r"codec\.chroma=9.*codec\.factor=8"):
        build(["scale=small", "data=none", "codec.chroma=9"])


def test_a_network_for_other_channels_is_refused_by_key():
    with pytest.raises(ConfigError, match=r"backbone\.in_channels=96: the codec makes 72 channels"):
        build(["scale=small", "data=none", "codec.chroma=2"])
