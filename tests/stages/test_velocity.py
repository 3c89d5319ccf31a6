"""pw.stages.velocity: our trajectory is Wan's own where nothing of ours has a say, and guidance is one or two calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from torch import Tensor

from pw.cost.counts import evaluations
from pw.io.wan_weights import overrides_of
from pw.nn.backbone import Backbone
from pw.nn.codec import WanCodec
from pw.nn.networks import Network, load_network
from pw.run.build import Run, build
from pw.stages.given import GivenFrame
from pw.stages.velocity import Condition, integrate

SIZE = (
    *("scale=tiny", "codec=wan_vae", "text=umt5", "guidance=on", "data=none", "start=none"),
    *("scale.frames=9", "scale.height=128", "scale.width=192", "scale.anchor_height=64", "scale.anchor_width=96"),
    *("scale.anchor_upsample=latent", "scale.anchor_shift=5"),
)
WAN = ("stage=anchor", "solver=unipc", "sampling.grid=wan")


def run_of(folder: Path, *overrides: str) -> Run:
    return build([*SIZE, *overrides_of(folder), *overrides])


def network(run: Run, folder: Path, source: str = "base") -> Backbone:
    return load_network(Network(run.backbone, run.injector, "sdpa", False, 0), source, folder, "cpu")


@pytest.fixture(scope="module")
def embeddings(pipeline: tuple[Path, Any]) -> tuple[Tensor, Tensor]:
    """Of a prompt and of a negative one, [1, 512, D], as the pipeline makes them."""
    with torch.no_grad():
        result = [pipeline[1]._get_t5_prompt_embeds(text, max_sequence_length=512) for text in ("a heron", "blurred")]
    return result[0], result[1]


@pytest.mark.parametrize("steps", [4, 13])
def test_a_trajectory_of_ours_is_the_pipelines(
    pipeline: tuple[Path, Any], embeddings: tuple[Tensor, Tensor], steps: int
) -> None:
    """Same noise, UniPC, guidance 5, stride 0: to 1e-5 of values of about 5."""
    folder, pipe = pipeline
    text, negative_text = embeddings
    run = run_of(folder, *WAN, f"sampling.num_steps={steps}")
    noise = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(3))
    result = integrate(run, network(run, folder), noise, Condition(text, None), Condition(negative_text, None))
    pipe.set_progress_bar_config(disable=True)
    reference = pipe(
        prompt_embeds=text,
        negative_prompt_embeds=negative_text,
        height=64,
        width=96,
        num_frames=9,
        num_inference_steps=steps,
        guidance_scale=5.0,
        latents=noise,
        output_type="latent",
    ).frames
    assert (reference - noise).abs().mean() > 0.5  # it went somewhere
    assert (result - reference).abs().max() < 1e-5


def test_a_trajectory_from_an_image_is_the_pipelines(
    pipeline: tuple[Path, Any], embeddings: tuple[Tensor, Tensor]
) -> None:
    """diffusers' image to video of Wan2.2-TI2V-5B: the first latent frame is the image's, with timestep 0 per token."""
    folder, pipe = pipeline
    parts = {name: getattr(pipe, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")}
    stock = WanImageToVideoPipeline(**parts, expand_timesteps=True)
    stock.set_progress_bar_config(disable=True)
    text, negative_text = embeddings
    run = run_of(folder, *WAN, "sampling.num_steps=4")
    rng = torch.Generator().manual_seed(3)
    noise, image = torch.randn(1, 4, 3, 4, 6, generator=rng), torch.rand(1, 3, 64, 96, generator=rng)
    codec = WanCodec(cast(Any, run.codec), pipe.vae)
    given = GivenFrame(network(run, folder), run.schedule, codec.encode(image[:, :, None] * 2 - 1), per_token=True)
    result = given.in_place(integrate(run, given, noise, Condition(text, None), Condition(negative_text, None)))
    reference = stock(
        image=image,
        prompt_embeds=text,
        negative_prompt_embeds=negative_text,
        height=64,
        width=96,
        num_frames=9,
        num_inference_steps=4,
        guidance_scale=5.0,
        latents=noise,
        output_type="latent",
    ).frames
    assert (reference - noise).abs().mean() > 0.5  # it went somewhere
    assert (result - reference).abs().max() < 1e-5
    per_sample = replace(given, per_token=False)
    other = integrate(run, per_sample, noise, Condition(text, None), Condition(negative_text, None))
    assert (other - reference)[:, :, 1:].abs().max() > 1e-3  # the timesteps of tokens have a say


def test_a_silent_injector_has_no_say_in_it(pipeline: tuple[Path, Any], embeddings: tuple[Tensor, Tensor]) -> None:
    """Stage II's network, fresh adapters and an anchor given, told the strides of its grid: Wan's own velocity."""
    folder, _ = pipeline
    text, negative_text = embeddings
    noise = torch.randn(1, 4, 3, 8, 12, generator=torch.Generator().manual_seed(3))
    anchor = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(4))
    with_anchor = run_of(folder, "stage=hires")
    without = run_of(folder, "stage=hires", "injector=none", "objective=flow")
    assert with_anchor.feeds_strides()
    result = integrate(
        with_anchor, network(with_anchor, folder), noise, Condition(text, anchor), Condition(negative_text, anchor)
    )
    stock = integrate(without, network(without, folder), noise, Condition(text, None), Condition(negative_text, None))
    assert torch.equal(result, stock)


@pytest.mark.parametrize(("first", "calls"), [("null", 8), ("1", 5), ("3", 7)])
def test_guidance_costs_a_second_evaluation_where_it_guides(
    pipeline: tuple[Path, Any], embeddings: tuple[Tensor, Tensor], first: str, calls: int
) -> None:
    folder, _ = pipeline
    run = run_of(folder, "stage=hires", f"guidance.first_steps={first}")
    counted = 0

    def tick() -> None:
        nonlocal counted
        counted += 1

    anchor = torch.randn(1, 4, 3, 4, 6)
    conditions = [Condition(text, anchor) for text in embeddings]
    integrate(run, network(run, folder, "random"), torch.randn(1, 4, 3, 8, 12), *conditions, tick)
    assert counted == calls == evaluations(run)


def test_both_branches_of_guidance_in_one_batch_give_the_same_clip(
    pipeline: tuple[Path, Any], embeddings: tuple[Tensor, Tensor]
) -> None:
    folder, _ = pipeline
    noise = torch.randn(1, 4, 3, 8, 12, generator=torch.Generator().manual_seed(3))
    anchor = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(4))
    conditions = [Condition(text, anchor) for text in embeddings]
    result, calls = {}, {}
    for batched in ("false", "true"):
        run = run_of(folder, "stage=hires", f"trainer.guidance_batch={batched}")
        ticks: list[int] = []
        net = network(run, folder, "random")
        result[batched] = integrate(run, net, noise, *conditions, on_evaluation=lambda ticks=ticks: ticks.append(1))
        calls[batched] = len(ticks)
    assert calls == {"false": 8, "true": 4}
    torch.testing.assert_close(result["true"], result["false"], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_each_block_compiled_gives_the_same_velocity(pipeline: tuple[Path, Any], embeddings: tuple[Tensor, Tensor]):
    """The hooks of stride and anchor survive `torch.compile` of each block, also with a second call's values."""
    folder, _ = pipeline
    run = run_of(folder, "stage=hires")
    plain, compiled = network(run, folder, "random"), network(run, folder, "random")
    for block in compiled.dit.blocks:
        block.compile(backend="eager", fullgraph=True)  # a real compiler needs g++, which not every machine has
    for seed in (0, 1):
        draw = torch.Generator().manual_seed(seed)
        state, anchor = torch.randn(1, 4, 3, 8, 12, generator=draw), torch.randn(1, 4, 3, 4, 6, generator=draw)
        timestep, stride = torch.rand(1, generator=draw) * 1000, torch.rand(1, generator=draw) * 500
        one, other = (
            net(state, timestep, stride, embeddings[0], anchor, sigma_timestep=timestep) for net in (plain, compiled)
        )
        torch.testing.assert_close(one, other)
