"""MeanFlow and consistency training of the real network: derivatives, what arms share, and sampling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pw.io.arguments import ConfigError
from pw.io.video import read_video
from pw.method import path
from pw.method.mean_flow import difference, exact_slope
from pw.run.build import Run
from pw.run.cross_checks import check_trains
from pw.sample.evaluate import sample
from pw.stages import stage_module
from pw.stages.stage import SeededDraws, Stage

# diffusers normalises bf16 queries by an fp32 weight, and torch says so
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")

EVERY_TURN = ("turns=bernoulli", "turns.rate=1.0")


def module_of(run: Run) -> Stage:
    """The stage with random weights where fresh ones are zeros, which would hide stride and anchor."""
    module = stage_module(run)
    module.configure_model()
    generator = torch.Generator().manual_seed(0)
    for parameter in module.net.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return module


def curve(module: Stage) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor, Tensor]:
    """(the velocity as a function of state and sigma, its step's end staying; state, flow, sigma) of two clips."""
    run, draws = module.run, SeededDraws(0, 0)
    data, condition = module.prepare(run.source.batch(0, 0, 2), draws)
    velocity, noise = module.velocity(module.net, condition), draws.noise(data)
    sigma, end = torch.tensor([0.7, 0.4], dtype=torch.float64), torch.tensor([200.0, 50.0], dtype=torch.float64)

    def at(state: Tensor, level: Tensor) -> Tensor:
        timestep = run.schedule.timestep(level)
        return velocity(state, timestep, timestep - end)

    return at, path.state(data, noise, sigma), path.velocity(data, noise), sigma


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("schedule.coordinate=index",),
        ("train.checkpoint_activations=true",),
        ("attention=window", "attention.window=[2,2]", "attention.tile=[2,1,1]"),
        ("attention=anchor", "attention.density=0.5", "attention.tile=[2,2,1]"),
    ],
    ids=lambda overrides: overrides[0] if overrides else "plain",
)
def test_the_exact_derivative_of_the_network_is_the_limit_of_differences(micro, overrides: tuple[str, ...]):
    at, state, flow, sigma = curve(module_of(micro("objective=meanflow", *overrides)))
    exact = exact_slope(at, state, flow, sigma)
    errors = [
        float((difference(at, state, flow, sigma, 0 * sigma, step) - exact).norm() / exact.norm())
        for step in (2e-3, 1e-3, 1e-4)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)  # the square of the step
    assert errors[2] < 0.01


def test_an_exact_derivative_computes_the_products_of_attention_three_times(micro):
    """The plan counts a forward, its derivative, and attention once more."""
    at, state, flow, sigma = curve(module_of(micro("objective=meanflow")))

    def products(compute: Callable[[], object]) -> float:
        with FlopCounterMode(display=False) as counter:
            compute()
        return counter.get_flop_counts()["Global"][torch.ops.aten.bmm]

    def forward() -> Tensor:
        with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return at(state, sigma)

    assert products(lambda: exact_slope(at, state, flow, sigma)) == 3 * products(forward)


@pytest.mark.parametrize("derivative", ["exact", "difference"])
def test_mean_flow_differentiates_the_trained_network_and_learns_from_its_long_step_alone(micro, derivative: str):
    run = micro("objective=meanflow", *EVERY_TURN, f"objective.derivative={derivative}")
    module = module_of(run)
    loss = module.loss(run.source.batch(0, 3, 2), 3, 3)
    assert loss.term == "meanflow"
    loss.value.backward()
    assert all(p.grad is None for p in module.ema.parameters())
    assert module.net.stride_embedding.mlp.linear_2.weight.grad.any()


def test_bf16_has_the_exact_derivatives_loss_of_fp32(micro):
    values = {}
    for precision in ("fp32", "bf16"):
        run = micro("objective=meanflow", *EVERY_TURN, f"train.precision={precision}")
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            values[precision] = module_of(run).loss(run.source.batch(0, 3, 2), 3, 3).error
    torch.testing.assert_close(values["bf16"], values["fp32"], rtol=0.02, atol=0)


def test_rivals_of_a_seed_see_the_same_clips_and_noise(micro):
    states = {}
    for objective in ("flow", "meanflow", "consistency"):
        run = micro(f"objective={objective}", *(("turns=alternate",) if objective == "meanflow" else ()))
        module = module_of(run)
        seen: list[tuple[Tensor, Tensor]] = []
        module.net.register_forward_pre_hook(lambda _, args, seen=seen: seen.append((args[0], args[1])))
        module.loss(run.source.batch(0, 4, 2), 4, 4)
        states[objective] = seen[-1]
    assert all(map(torch.equal, states["flow"], states["meanflow"]))
    # of consistency training another timestep of the same path: data and noise follow from two of its states
    data, _ = module.prepare(run.source.batch(0, 4, 2), SeededDraws(0, 4))
    noise = SeededDraws(0, 4).noise(data)
    state, timestep = states["consistency"]
    torch.testing.assert_close(state, path.state(data, noise, run.schedule.sigma(timestep)))


def test_the_target_of_consistency_training_is_the_average_network(micro):
    run = micro("objective=consistency")
    module = module_of(run)
    before = module.loss(run.source.batch(0, 3, 2), 3, 3).error
    with torch.no_grad():
        for parameter in module.ema.parameters():
            parameter.add_(0.1)
    assert not torch.equal(module.loss(run.source.batch(0, 3, 2), 3, 3).error, before)


def test_the_same_clips_come_again_after_a_part_of_them_was_lost(micro, tmp_path: Path):
    run = micro("objective=consistency", "sampling.num_steps=2", "train.updates=2")
    folder = sample(run, tmp_path)
    clips = [read_video(folder / f"{i:04d}.mkv") for i in range(4)]
    (folder / "0003.mkv").unlink()
    assert sample(run, tmp_path) == folder
    assert all((read_video(folder / f"{i:04d}.mkv") == clip).all() for i, clip in enumerate(clips))


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (("trainer.compile=true",), ["trainer.compile=true", "objective.derivative=difference"]),
        (("trainer.attention=flash",), ["trainer.attention=flash", "objective.derivative=difference"]),
        (("trainer=fsdp", "trainer.devices=2", "trainer.context=2"), ["trainer.context=2", "difference"]),
        (("trainer.accelerator=gpu", "attention=window", "attention.window=[2,2]"), ["attention=window", "difference"]),
        (("objective.derivative=difference", "train.precision=bf16"), ["objective.step=0.0003", "0.005", "bf16"]),
    ],
    ids=lambda value: value[-1],
)
def test_what_cannot_compute_or_resolve_a_derivative_is_told_before_training(micro, overrides, parts: list[str]):
    with pytest.raises(ConfigError) as error:
        check_trains(micro("objective=meanflow", *overrides))
    assert not [part for part in parts if part not in str(error.value)], str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("trainer=fsdp", "trainer.devices=2", "train.checkpoint_activations=true"),
        ("objective.derivative=difference", "trainer.compile=true", "trainer.attention=flash"),
        ("objective.derivative=difference", "train.precision=bf16", "objective.step=0.005"),
    ],
)
def test_what_can_is_not_refused(micro, overrides):
    check_trains(micro("objective=meanflow", *overrides))


def test_at_2k_the_plan_names_the_derivative_that_can_be_trained():
    from pw.run.build import build

    remedy = r"111,600\^2 scores .* set objective\.derivative=difference objective\.step=0\.005"
    with pytest.raises(ConfigError, match=remedy):
        check_trains(build(["scale=2k", "objective=meanflow"]))
