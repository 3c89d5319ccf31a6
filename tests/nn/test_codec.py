"""pw.nn.codec: video <-> latent loses nothing."""

from __future__ import annotations

import pytest
import torch

from pw.nn.codec import SpaceToDepthCodec
from pw.nn.options import SpaceToDepth


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_the_round_trip_is_exact_both_ways(factor: int):
    codec = SpaceToDepthCodec(SpaceToDepth(factor))
    video = torch.randn(2, 3, 5, 8, 16)
    latent = codec.encode(video)
    assert latent.shape == (2, 3 * factor**2, 5, 8 // factor, 16 // factor)
    assert latent.shape[1] == codec.channels
    assert torch.equal(codec.decode(latent), video)
    assert torch.equal(codec.encode(codec.decode(latent)), latent)


def test_a_latent_point_holds_its_own_square_of_its_own_frame():
    video = torch.zeros(1, 3, 2, 8, 8)
    video[0, :, 1, 4:8, 0:4] = 1
    latent = SpaceToDepthCodec(SpaceToDepth(4)).encode(video)
    assert torch.equal(latent[0, :, 1, 1, 0], torch.ones(48))
    assert float(latent.sum()) == 48


def test_a_video_the_factor_does_not_divide_is_refused_by_key():
    with pytest.raises(ValueError, match=r"codec\.factor=4 does not divide 8 x 10 pixels"):
        SpaceToDepthCodec(SpaceToDepth(4)).encode(torch.zeros(1, 3, 2, 8, 10))


def test_an_impossible_factor_is_refused_by_key():
    with pytest.raises(ValueError, match=r"codec\.factor=0"):
        SpaceToDepth(0)
