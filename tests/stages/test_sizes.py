"""Steps of several sizes, and sampling from the anchor, against loops written out here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pw.cost.counts import sampling_flops, stage_flops
from pw.cost.training_cost import update_flops
from pw.data.degradation import resize
from pw.io.arguments import ConfigError
from pw.nn.codec import SpaceToDepthCodec
from pw.parallel.team import Share
from pw.run.build import Run, build
from pw.stages import stage_module
from pw.stages.stage import SeededDraws
from pw.stages.velocity import Condition, integrate, noise_of_phases
from pw.train.loop import train

Make = Callable[..., Run]
SIZES = ("sampling.num_steps=4", "sampling.sizes=[0.5,0.5,1,1]")
FROM_ANCHOR = ("sampling.init=anchor", "sampling.num_steps=2", "sampling.timesteps=[800,600]")


def stage(run: Run, scale: float = 0.3) -> torch.nn.Module:
    """A stage with random weights whose adapters have a say."""
    module = stage_module(run).eval()
    module.configure_model()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.ema.parameters():
            parameter.add_(torch.randn_like(parameter) * scale / max(1, parameter.shape[-1]) ** 0.5)
    return module


def inputs(run: Run, batch: int = 2) -> tuple[list[Tensor], Condition]:
    draw = torch.Generator().manual_seed(1)
    rows, columns = run.latent_size(1)
    full = [torch.randn(48, 2, rows, columns, generator=draw) for _ in range(batch)]
    noises = [noise_of_phases(run, noise, index, 0) for index, noise in enumerate(full)]
    anchor = torch.randn(batch, 48, 2, rows, columns, generator=draw)
    return [torch.stack(parts) for parts in zip(*noises, strict=True)], Condition(torch.zeros(batch, 4, 8), anchor)


def velocity(module: torch.nn.Module, state: Tensor, anchor: Tensor, timestep: float, stride: float) -> Tensor:
    full = lambda value: torch.full((len(state),), value)  # noqa: E731
    text = torch.zeros(len(state), 4, 8)
    return module.ema(state, full(timestep), full(stride), text, anchor, sigma_timestep=full(timestep))


def in_pixels(latent: Tensor, size: int, mode: str) -> Tensor:
    codec = SpaceToDepthCodec(build([]).codec)
    video = codec.decode(latent)
    frames = video.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, (4 * size, 4 * size), mode=mode, align_corners=None if mode == "area" else False)
    return codec.encode(frames.unflatten(0, (len(video), -1)).transpose(1, 2))


@torch.no_grad()
def test_smaller_steps_end_in_data_that_is_enlarged_and_noised_again(micro: Make):
    run = micro("objective=shortcut", *SIZES)
    module = stage(run)
    (small_noise, noise), condition = inputs(run)
    assert small_noise.shape == (2, 48, 2, 2, 2)
    result = module.sample([small_noise, noise], condition)
    # by hand: 1000 -> 931 -> data at 2 x 2, then 818 -> 600 -> data at 4 x 4; timesteps are 1000 sigma
    anchor = condition.anchor
    small_anchor = in_pixels(anchor, 2, "area")
    t = run.grid().tolist()
    state = small_noise
    state = state - (t[0] - t[1]) / 1000 * velocity(module, state, small_anchor, t[0], 68)
    data = state - t[1] / 1000 * velocity(module, state, small_anchor, t[1], 930)
    sigma = t[2] / 1000
    state = (1 - sigma) * in_pixels(data, 4, "bicubic") + sigma * noise
    state = state - (t[2] - t[3]) / 1000 * velocity(module, state, anchor, t[2], 218)
    expected = state - t[3] / 1000 * velocity(module, state, anchor, t[3], 600)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    assert (result - noise).abs().mean() > 0.1


@torch.no_grad()
def test_sampling_from_the_anchor_begins_at_the_noised_anchor(micro: Make):
    run = micro("objective=shortcut", *FROM_ANCHOR)
    module = stage(run)
    [noise], condition = inputs(run)
    state = 0.2 * condition.anchor + 0.8 * noise
    state = state - 0.2 * velocity(module, state, condition.anchor, 800, 200)
    expected = state - 0.6 * velocity(module, state, condition.anchor, 600, 600)
    torch.testing.assert_close(module.sample(noise, condition), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_sizes_of_one_are_no_sizes_to_the_bit(micro: Make, solver: str):
    plain, ones = (
        micro("objective=flow", "sampling.num_steps=4", f"solver={solver}", *o)
        for o in ((), ("sampling.sizes=[1,1,1,1]",))
    )
    module = stage(plain)
    [noise], condition = inputs(plain)
    assert torch.equal(integrate(plain, module.ema, noise, condition), integrate(ones, module.ema, [noise], condition))


@torch.no_grad()
def test_with_latents_that_are_resized_the_anchor_stays_as_it_is(micro: Make):
    run = micro("objective=shortcut", *SIZES, "scale.anchor_upsample=latent")
    module = stage(run)
    noises, condition = inputs(run)
    seen: list[torch.Size] = []
    hook = module.ema.injector.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    module.sample(noises, condition)
    hook.remove()
    assert seen == [condition.anchor.shape] * 4


def test_half_of_2k_and_of_4k_is_whole_tokens():
    # 45 x 80 tokens at 2K, 67 x 120 at 4K: a half rounds down, to Wan's own training view at 2K
    for scale, expected in (("2k", (44, 80)), ("4k", (66, 120))):
        assert build([f"scale={scale}"]).latent_size(0.5) == expected


def test_a_smaller_batch_is_the_smaller_clip(micro: Make):
    run = micro("train.sizes=[0.5,1]", "degradation.noise_probability=0")
    module = stage_module(run)
    clips = run.source.batch(0, 0, 2)
    data, condition = module.prepare(clips, SeededDraws(0, 0), 0.5)
    assert torch.equal(module.codec.decode(data), resize(clips, (8, 8), "area"))
    assert condition.anchor.shape == data.shape == (2, 48, 2, 2, 2)


def test_every_process_and_arm_draws_the_same_sizes(micro: Make):
    sizes = (0.5, 1.0)
    draws = [SeededDraws(3, index).size(sizes) for index in range(200)]
    assert [SeededDraws(3, index, Share(1, 2, 1, 4)).size(sizes) for index in range(200)] == draws
    assert 70 < draws.count(0.5) < 130
    assert SeededDraws(3, 0).size(None) == 1.0


def test_a_training_of_two_sizes_runs_and_counts_its_operations(micro: Make, tmp_path: Path):
    small, full, mixed = (
        train(micro("train.updates=8", *o), tmp_path) for o in (("train.sizes=[1]",), (), ("train.sizes=[0.5,1]",))
    )
    flops = [read_flops(folder) for folder in (small, full, mixed)]
    assert flops[0] == flops[1] > flops[2] > 0.25 * flops[1]
    assert len({folder.name for folder in (small, full, mixed)}) == 3


def read_flops(folder: Path) -> float:
    import json

    return json.loads((folder / "done.json").read_text())["train_flops"]


GUIDED = ("data.captions=texture", "train.condition_dropout=0.1", "train.dropout=both_or_text")


@torch.no_grad()
@pytest.mark.parametrize(
    "overrides",
    [
        SIZES,
        FROM_ANCHOR,
        ("sampling.num_steps=4", *GUIDED, "guidance=on"),
        ("sampling.num_steps=4", *GUIDED, "guidance=first_steps", "guidance.first_steps=3"),
        ("sampling.num_steps=4", *GUIDED, "guidance=reuse"),
        (*SIZES, *GUIDED, "guidance=reuse", "guidance.first_steps=3"),
    ],
    ids=" ".join,
)
def test_the_plan_counts_the_operations_that_torch_counts(micro: Make, overrides: tuple[str, ...]):
    run = micro("injector=add", *overrides)  # without a refined anchor, which sampling computes once
    module = stage(run)
    noises, condition = inputs(run, batch=1)
    # torch counts the attention of this kernel; that of a CPU's own it does not
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module.sample(noises, condition, torch.zeros(1, 4, 8))
    assert counter.get_total_flops() == pytest.approx(sampling_flops(run).total, rel=1e-3)


def test_the_plan_counts_guided_targets_and_mixed_sizes_of_a_training(micro: Make):
    plain, guided, mixed = (
        micro(*o)
        for o in (
            (*GUIDED,),
            (*GUIDED, "guidance=baked", "target.guidance=finest", "target.guidance_scale=3"),
            (*GUIDED, "train.sizes=[0.5,1]"),
        )
    )
    totals = [[flops.total for flops in update_flops(run)] for run in (plain, guided, mixed)]
    forward, small = stage_flops(plain).total, stage_flops(plain, 0.5).total
    assert totals[1] == pytest.approx([totals[0][0], totals[0][1] + 2 * forward])
    assert totals[2][0] == pytest.approx(totals[0][0] * (1 + small / forward) / 2)


def test_guided_targets_train_and_cost_two_more_evaluations(micro: Make):
    run = micro(*GUIDED, "guidance=baked", "target.guidance=finest", "target.guidance_scale=3", "step_sampler=uniform")
    module = stage_module(run)
    module.configure_model()
    calls = []
    module.net.dit.register_forward_hook(lambda *_: calls.append(1))
    loss = module.loss(run.source.batch(0, 1, 2), 1, 1)
    assert loss.term == "consistency"
    assert loss.value.isfinite()
    assert len(calls) == 1 + run.objective.target_evaluations == 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("sampling.num_steps=3", "sampling.sizes=[0.5,1]"), r"sampling\.sizes=\[0\.5, 1\.0\]: .* 3 steps, rising"),
        (("sampling.num_steps=2", "sampling.sizes=[1,0.5]"), "rising to 1"),
        (("sampling.num_steps=2", "sampling.sizes=[0.5,0.5]"), "with 1 among them"),
        (("sampling.num_steps=2", "sampling.sizes=[0.1,1]"), r"0\.1 of 16 x 16 px leaves no whole token of 4 x 4"),
        (("train.sizes=[0.5]",), r"train\.sizes=\[0\.5\]: .*with 1 among them"),
        (("sampling.init=anchor",), r"sampling\.timesteps=\[800,600\]"),
        (("sampling.init=anchor", "sampling.num_steps=1", "sampling.timesteps=[760]"), "760, which .* it trains 500"),
        (("sampling.init=anchor", "injector=none", "objective=flow"), "is given no anchor"),
        (("guidance=baked",), r"set target\.guidance=finest"),
        (("guidance=on", "train.condition_dropout=0.1"), r"data\.captions=texture"),
        (("target.guidance=finest", "target.guidance_scale=3"), "set guidance=baked"),
    ],
)
def test_what_does_not_fit_is_named(micro: Make, overrides: tuple[str, ...], message: str):
    with pytest.raises(ConfigError, match=message):
        micro(*overrides)


def test_a_flow_model_may_begin_at_any_timestep(micro: Make):
    micro("objective=flow", "sampling.init=anchor", "sampling.num_steps=1", "sampling.timesteps=[760]")
