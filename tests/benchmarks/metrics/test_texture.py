"""benchmarks.metrics.texture: the class of a clip is seen in its spectrum."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.metrics import lookup
from benchmarks.metrics.implementation import Batch, scorer_of
from benchmarks.metrics.texture import orientation_shares
from pw.data.procedural import WAVES, ProceduralClips

SETTINGS = lookup("class_share").settings


def test_the_frequencies_are_those_of_the_gratings():
    expected = [[x / (2 * math.pi), y / (2 * math.pi)] for x, y in WAVES]
    assert [pytest.approx(wave) for wave in SETTINGS["waves"]] == expected


def grating(wave: int, phase: float = 0.3, size: int = 24) -> torch.Tensor:
    axis = torch.arange(size) + 0.5
    x, y = axis[None, :], axis[:, None]
    picture = torch.cos(WAVES[wave][0] * x + WAVES[wave][1] * y + phase)
    return picture.expand(1, 3, 2, size, size)


@pytest.mark.parametrize("wave", range(4))
def test_a_grating_is_of_its_orientation_at_any_phase(wave: int):
    for phase in (0.0, 1.0, 2.5):
        assert float(orientation_shares(grating(wave, phase), **SETTINGS)[0, wave]) > 0.95


def test_two_gratings_of_one_strength_share_equally():
    shares = orientation_shares(grating(0) + grating(1), **SETTINGS)[0]
    assert shares[:2].tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    assert float(shares.sum()) == pytest.approx(1)


def test_the_class_is_that_of_the_real_clip():
    scorer = scorer_of(["class_share"])
    real = torch.cat([grating(0), grating(2)])
    made = torch.cat([grating(0, 1.0), 0.5 * grating(0)])  # of the class; of another, and fainter
    values = scorer.add(Batch(video=made, real=real))
    assert values.tolist() == pytest.approx([1, 0], abs=0.05)
    assert scorer.result() == pytest.approx(0.5, abs=0.05)


def test_independent_clips_of_a_class_share_it_and_of_none_do_not():
    evaluation = ProceduralClips(3, 24, "texture").evaluation(64, 0)
    real, twin = torch.stack([*evaluation.real]), torch.stack([*evaluation.real_b])
    scores = []
    for video in (twin, twin.roll(1, 0)):
        scorer = scorer_of(["class_share"])
        scorer.add(Batch(video=video, real=real))
        scores.append(scorer.result())
    assert scores[0] > 0.55
    assert scores[1] < 0.4
