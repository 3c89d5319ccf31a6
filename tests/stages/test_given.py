"""pw.stages.given: a given first frame is seen as it is, and is no part of a loss (D126)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pw.io.arguments import ConfigError
from pw.method.path import state
from pw.run.build import build
from pw.stages import stage_module
from pw.stages.given import GivenFrame
from pw.stages.stage import SeededDraws


class Recorder:
    """A network whose velocity is 7, and what it was given."""

    def __call__(self, seen: Tensor, *inputs: Any, **more: Any) -> Tensor:
        self.seen, self.more = seen, more
        return torch.full_like(seen, 7.0)


def module_of(micro: Any, *words: str) -> Any:
    module = stage_module(micro(*words))
    module.configure_model()
    return module


@pytest.mark.parametrize("per_token", [False, True])
def test_the_velocity_of_a_given_frame_is_that_of_its_path(micro: Any, per_token: bool) -> None:
    schedule, net = micro().schedule, Recorder()
    data, noise = torch.randn(2, 2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([900.0, 300.0])
    x = state(data, noise, schedule.sigma(timestep.double()).float())
    given = GivenFrame(net, schedule, data[:, :, :1], torch.tensor([True, False]), per_token)
    velocity = given(x, timestep, timestep, torch.zeros(2, 1, 1), sigma_timestep=timestep)
    torch.testing.assert_close(velocity[0, :, 0], (noise - data)[0, :, 0], atol=1e-5, rtol=0)
    assert (velocity[0, :, 1:] == 7).all()
    assert (velocity[1] == 7).all()
    assert torch.equal(net.seen[0, :, 0], data[0, :, 0])  # clean
    assert torch.equal(net.seen[:, :, 1:], x[:, :, 1:])
    assert torch.equal(net.seen[1], x[1])
    assert ([*net.more["clean_frames"]] == [1, 0]) if per_token else "clean_frames" not in net.more


@pytest.mark.parametrize("stage", ["anchor", "hires"])
def test_a_given_frame_adds_nothing_to_the_loss(micro: Any, stage: str) -> None:
    """A network that answers 0 has the loss mean((noise - data)^2) times a weight of the clip, without the part of a
    given first frame."""
    words = (f"stage={stage}", "objective=flow", "train.batch_size=1")
    losses = {}
    for share in (0, 1):
        module = module_of(micro, *words, f"train.image_share={share}")
        for part in (module.net.dit.proj_out.weight, module.net.dit.proj_out.bias):
            torch.nn.init.zeros_(part)
        clips = module.run.source.batch(module.run.seed, 0, 1)
        losses[share] = float(module.loss(clips, 0, 0).value.detach())
    draws = SeededDraws(module.run.seed, 0)
    data, _ = module.prepare(clips, draws)
    squares = (draws.noise(data) - data).square()
    assert losses[1] / losses[0] == pytest.approx(float(squares[:, :, 1:].sum() / squares.sum()), rel=1e-4)


@pytest.mark.parametrize("stage", ["anchor", "hires"])
def test_a_consistency_batch_has_a_finite_loss_and_gradient(micro: Any, stage: str) -> None:
    module = module_of(micro, f"stage={stage}", "objective=shortcut", "train.image_share=0.5", "train.batch_size=4")
    value = module.loss(module.run.source.batch(module.run.seed, 1, 4), 1, 1).value
    value.backward()
    gradients = [p.grad for p in module.net.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(g.isfinite().all()) for g in [value, *gradients])


def test_the_share_of_clips_is_drawn_from_a_stream_of_its_own() -> None:
    draws = SeededDraws(0, 0)
    images, dropped = draws.images(2000, 0.3), draws.dropout_masks(2000, 0.3)[0]
    assert 0.26 < float(images.float().mean()) < 0.34
    assert 0.05 < float((images & dropped).float().mean()) < 0.13  # independent: 0.09
    assert not draws.images(1000, 0.0).any()
    assert draws.images(1000, 1.0).all()


def test_a_clip_of_one_latent_frame_is_refused_and_no_share_is_no_other_run() -> None:
    with pytest.raises(ConfigError, match=r"train\.image_share=0\.5: scale\.frames=1 is one latent frame"):
        build(["scale=2k", "stage=hires", "scale.frames=1", "train.image_share=0.5"])
    words = ([], ["train.image_share=0"], ["train.image_share=0.5"])
    plain, same, other = (build(["stage=hires", *more]).training_signature for more in words)
    assert plain == same != other


@pytest.mark.parametrize("per_token", [False, True])
def test_the_velocity_of_a_given_frame_at_the_data_is_a_number(micro: Any, per_token: bool) -> None:
    """There sigma is 0; consistency training asks for it, and multiplies it by 0."""
    data = torch.randn(1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    given = GivenFrame(Recorder(), micro().schedule, data[:, :, :1], torch.tensor([True]), per_token)
    zero = torch.zeros(1)
    velocity = given(data, zero, zero, torch.zeros(1, 1, 1), sigma_timestep=zero)
    assert (velocity[0, :, 0] == 0).all()
    assert (velocity[0, :, 1:] == 7).all()


@pytest.mark.parametrize("objective", ["flow", "shortcut", "meanflow", "consistency"])
def test_every_objective_has_a_finite_loss_with_given_frames(micro: Any, objective: str) -> None:
    module = module_of(micro, f"objective={objective}", "train.batch_size=4", "train.image_share=1")
    for index in range(8):
        clips = module.run.source.batch(module.run.seed, index, 4)
        assert torch.isfinite(module.loss(clips, index, index).value)
