"""pw.stages: what an arm sees, how its weights are averaged, and what it departs from."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from diffusers.models import attention_dispatch
from safetensors.torch import load_file, save_file

from pw.cost.training_cost import training_cost
from pw.io import host
from pw.io.arguments import ConfigError
from pw.io.paths import silence_libraries
from pw.nn.backbone import Backbone
from pw.run.build import Run
from pw.stages import stage_module
from pw.stages.stage import AnchorModel, HiresSynth, SeededDraws, Stage, load_start
from pw.train.batches import batches
from pw.train.loop import train

# diffusers normalises bf16 queries by an fp32 weight, and torch says so
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")


class RecordingSynth(HiresSynth):
    """`HiresSynth` that records the inputs and conditions of all evaluations of its velocities."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.conditions: list[Any] = []
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def velocity(self, net: Backbone, condition: Any) -> Any:
        inner = super().velocity(net, condition)
        self.conditions.append(condition)

        def velocity(state: torch.Tensor, timestep: torch.Tensor, stride: torch.Tensor) -> torch.Tensor:
            self.calls.append((state.detach(), timestep, stride))
            return inner(state, timestep, stride)

        return velocity


def record(run: Run, index: int, update: int) -> RecordingSynth:
    module = RecordingSynth(run)
    module.configure_model()
    module.loss(run.source.batch(run.seed, index, run.train.batch_size), index, update)
    return module


def fit(run: Run, *callbacks: L.Callback) -> Any:
    """A stage after the run's updates, by the settings of `pw.train.loop` but without its files."""
    silence_libraries()
    module = stage_module(run)
    trainer = L.Trainer(
        accelerator="cpu",
        precision="bf16-mixed" if run.train.precision == "bf16" else "32-true",
        max_steps=run.train.updates,
        accumulate_grad_batches=run.train.accumulate,
        gradient_clip_val=run.optimizer.clip,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches(run, 0))
    return module


def test_the_randomness_of_a_batch_is_a_function_of_seed_and_index():
    like = torch.empty(2, 48, 2, 4, 4)

    def draw_all(seed: int, index: int) -> list[torch.Tensor]:
        draws = SeededDraws(seed, index)
        return [
            draws.noise(like),
            draws.uniform(2),
            draws.dropout_masks(64, 0.5)[0].double(),
            torch.rand(3, generator=draws.degrade()),
        ]

    torch.manual_seed(5)  # the global generator has no part in it
    assert all(map(torch.equal, draw_all(0, 3), draw_all(0, 3)))
    for other in ((1, 3), (0, 4)):
        assert not any(map(torch.equal, draw_all(0, 3), draw_all(*other)))


def test_streams_do_not_shift_each_other():
    draws = SeededDraws(0, 0)
    expected = draws.uniform(4)
    draws.noise(torch.empty(1000))
    draws.dropout_masks(10, 0.5)
    assert torch.equal(draws.uniform(4), expected)
    assert draws.uniform(4).dtype == torch.float64


RIVALS = {
    "weighting": ("weighting=uniform", "weighting=delta_sigma"),
    "target": ("target.halves=equal", "target.target_network=ema"),
    "injector": ("injector=gated", "injector=alpha_zero"),
    "optimizer": ("optimizer.lr=1e-4", "optimizer.lr=1e-3"),
}


@pytest.mark.parametrize("pair", RIVALS.values(), ids=RIVALS)
@pytest.mark.parametrize("update", [0, 1])
def test_two_arms_of_a_seed_see_the_same_states_steps_and_anchors(micro, pair: tuple[str, str], update: int):
    one, other = (record(micro("objective=shortcut", override), 5, update) for override in pair)
    # the middle of a step depends on what the first half answered: compare the long step, asked last, and the first
    for which in (0, -1):
        for left, right in zip(one.calls[which], other.calls[which], strict=True):
            assert torch.equal(left, right)
    assert torch.equal(one.conditions[0].anchor, other.conditions[0].anchor)


def test_a_flow_arm_and_a_shortcut_arm_share_their_flow_batches(micro):
    flow, shortcut = (record(micro(f"objective={name}"), 4, 4) for name in ("flow", "shortcut"))
    assert len(flow.calls) == len(shortcut.calls) == 1
    for left, right in zip(flow.calls[0], shortcut.calls[0], strict=True):
        assert torch.equal(left, right)


def test_arms_that_differ_in_beta_share_starts_and_noise(micro):
    one, other = (
        record(micro("objective=shortcut", f"step_sampler={s}"), 7, 1) for s in ("exponential_index", "uniform")
    )
    assert torch.equal(one.calls[0][1], other.calls[0][1])  # timesteps
    assert torch.equal(one.calls[0][0], other.calls[0][0])  # states


def test_another_seed_sees_other_states(micro):
    one, other = (record(micro("objective=shortcut", f"seed={seed}"), 5, 1) for seed in (0, 1))
    assert not torch.equal(one.calls[0][0], other.calls[0][0])
    assert not torch.equal(one.conditions[0].anchor, other.conditions[0].anchor)


def test_condition_dropout_zeroes_the_anchors_of_exactly_the_drawn_samples(micro):
    run = micro("train.condition_dropout=0.5", "train.batch_size=16")
    module = record(run, 3, 0)
    draws = SeededDraws(run.seed, 3)
    _, condition = module.prepare(run.source.batch(run.seed, 3, 16), draws)
    is_dropped = draws.dropout_masks(16, 0.5)[1]
    assert 0 < int(is_dropped.sum()) < 16
    anchor = module.conditions[0].anchor
    assert torch.equal(anchor[is_dropped], torch.zeros_like(anchor[is_dropped]))
    assert torch.equal(anchor[~is_dropped], condition.anchor[~is_dropped])
    assert bool((condition.anchor.flatten(1).abs().amax(1) > 0).all())


def test_one_dropout_holds_for_all_three_evaluations_of_a_consistency_batch(micro):
    module = record(micro("objective=shortcut", "train.condition_dropout=0.5", "target.target_network=ema"), 3, 1)
    online, ema = module.conditions  # the long step's condition and the halves'
    assert torch.equal(online.anchor, ema.anchor)
    assert len(module.calls) == 3


def test_no_dropout_drops_nothing():
    assert not any(mask.any() for mask in SeededDraws(0, 0).dropout_masks(1000, 0.0))


@pytest.mark.parametrize("upsample", ["pixel", "latent"])
def test_the_training_anchor_is_the_degraded_clip_encoded(micro, upsample: str):
    run = micro(f"scale.anchor_upsample={upsample}", "degradation.noise_probability=0")
    module = HiresSynth(run)
    video = run.source.batch(0, 0, 2)
    data, condition = module.prepare(video, SeededDraws(0, 0))
    assert torch.equal(module.codec.decode(data), video)
    assert condition.anchor.shape == ((2, 48, 2, 4, 4) if upsample == "pixel" else (2, 48, 2, 2, 2))
    anchor = module.codec.decode(condition.anchor)
    # its colours are the clip's: the anchor's mean over a frame is the frame's, but for edges and rounding
    torch.testing.assert_close(anchor.mean((-2, -1)), video.mean((-2, -1)), atol=0.1, rtol=0)


def test_stage_one_learns_the_anchors_of_stage_two_without_their_latent_noise(micro):
    first, second = (
        micro("stage=anchor"),
        micro("stage=hires", "degradation.noise_probability=0", "scale.anchor_upsample=latent"),
    )
    video = first.source.batch(0, 0, 2)
    data, condition = AnchorModel(first).prepare(video, SeededDraws(0, 0))
    assert condition.anchor is None
    assert torch.equal(data, HiresSynth(second).prepare(video, SeededDraws(0, 0))[1].anchor)


class Weights(L.Callback):
    """Copies the online weights after every batch."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, list[torch.Tensor]]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.updates.append((trainer.global_step, [p.detach().clone() for p in pl_module.net.parameters()]))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_taken_once_per_optimiser_update(micro, accumulate: int):
    run = micro("train.updates=5", f"train.accumulate={accumulate}", "optimizer.lr=1e-2", "optimizer.ema=0.4")
    weights = Weights()
    module = fit(run, weights)
    assert len(weights.updates) == 5 * accumulate
    fresh = stage_module(run)
    fresh.configure_model()
    average = [p.detach().clone() for p in fresh.net.parameters()]
    for update, online in weights.updates[accumulate - 1 :: accumulate]:
        # (1 + n) / (10 + n), until it reaches the decay: 2/11, 3/12, 4/13, 5/14, then 0.4
        decay = min(0.4, (1 + update) / (10 + update))
        average = [decay * a + (1 - decay) * w for a, w in zip(average, online, strict=True)]
    for expected, result in zip(average, module.ema.parameters(), strict=True):
        torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-5)
    assert not any(p.requires_grad for p in module.ema.parameters())


def test_accumulated_batches_belong_to_one_update(micro):
    """Four batches of two updates: flow, flow, consistency, consistency."""
    terms = []

    class Terms(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            terms.append(pl_module.last_loss.term)

    fit(micro("objective=shortcut", "train.updates=2", "train.accumulate=2"), Terms())
    assert terms == ["flow", "flow", "consistency", "consistency"]


def test_two_accumulated_batches_are_one_batch_of_twice_the_size(micro):
    """The gradient of the flow loss is a mean over samples: halves average to the whole."""
    run = micro("objective=flow", "train.accumulate=2", "train.condition_dropout=0")
    module = stage_module(run)
    module.configure_model()
    for index in (0, 1):
        (module.loss(run.source.batch(0, index, 2), index, 0).value / 2).backward()
    trained = [p for p in module.net.parameters() if p.requires_grad]
    halves = [p.grad.clone() for p in trained]
    module.zero_grad()
    value = sum(module.loss(run.source.batch(0, index, 2), index, 0).value for index in (0, 1)) / 2
    value.backward()
    for expected, parameter in zip(halves, trained, strict=True):
        torch.testing.assert_close(parameter.grad, expected, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("objective", ["flow", "shortcut"])
def test_bf16_trains_near_fp32_and_keeps_its_weights_in_fp32(micro, objective: str):
    full, half = (
        fit(micro(f"objective={objective}", "train.updates=4", f"train.precision={p}")) for p in ("fp32", "bf16")
    )
    # what diffusers keeps in fp32 (`_keep_in_fp32_modules`), and all the rest: bf16 is the arithmetic, not the weights
    fp32 = dict(half.net.dit.condition_embedder.time_embedder.named_parameters()) | {
        name: p for name, p in half.net.dit.named_parameters() if "scale_shift_table" in name or "norm" in name
    }
    assert len(fp32) > 10
    assert all(p.dtype == torch.float32 for p in [*fp32.values(), *half.net.parameters(), *half.ema.parameters()])
    assert half.last_loss.value.dtype == torch.float32
    expected, result = float(full.last_loss.value), float(half.last_loss.value)
    assert math.isfinite(result)
    assert result != expected
    assert result == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("target_network", ["online", "ema"])
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_a_bf16_consistency_batch_reaches_every_weight(micro, target_network: str, checkpointing: str):
    """The halves are evaluated without gradient first: autocast must not keep their casts of the weights."""
    run = micro(
        "objective=shortcut",
        "train.batch_size=4",
        f"target.target_network={target_network}",
        f"train.checkpoint_activations={checkpointing}",
    )
    gradients = []
    for enabled in (False, True):
        module = module_of(run)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = module.loss(run.source.batch(0, 1, 4), 1, 1).value
        loss.backward()
        gradients.append({n: p.grad for n, p in module.net.named_parameters() if p.grad is not None})
    full, half = gradients
    assert full.keys() == half.keys()
    total = lambda g: float(sum(v.double().square().sum() for v in g.values()) ** 0.5)  # noqa: E731
    assert total(half) == pytest.approx(total(full), rel=0.1)


def test_a_bf16_arm_sees_the_anchors_of_an_fp32_arm(micro):
    run = micro("objective=flow", "train.precision=bf16")
    full, half = RecordingSynth(run), RecordingSynth(run)
    for module, enabled in ((full, False), (half, True)):
        module.configure_model()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            module.loss(run.source.batch(0, 0, 2), 0, 0)
    assert torch.equal(half.conditions[0].anchor, full.conditions[0].anchor)
    assert torch.equal(half.calls[0][0], full.calls[0][0])


def test_bf16_gradients_of_the_injector_are_finite_every_time(micro):
    # oneDNN's own gradient of this 3 x 3 x 3 convolution (16 -> 32 channels, 2 x 4 x 4) was NaN every seventh time
    run = micro("backbone.attention_head_dim=16", "injector.hidden=0.5", "objective=flow")
    module = module_of(run)
    torch.nn.init.normal_(module.net.injector.out["0"].weight)
    video, first = run.source.batch(0, 0, 2), None
    for _ in range(40):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = module.loss(video, 0, 0).value
        loss.backward()
        gradient = module.net.injector.widen.weight.grad
        first = gradient.clone() if first is None else first
        assert torch.equal(gradient, first)


@pytest.mark.parametrize("stage", ["anchor", "hires"])
def test_training_lowers_the_loss(micro, stage: str):
    """On the training's own batches, against the weights it began with."""
    run = micro(
        f"stage={stage}", "objective=flow", "train.updates=40", "optimizer.lr=1e-2", "train.condition_dropout=0"
    )
    module, fresh = fit(run), stage_module(run)
    fresh.configure_model()

    def loss(m: Stage) -> float:
        with torch.no_grad():
            return sum(float(m.loss(run.source.batch(0, i, 2), i, 0).value) for i in range(8)) / 8

    before, after = loss(fresh), loss(module)
    assert after < 0.9 * before


def test_activation_checkpointing_trains_to_the_same_weights(micro):
    plain, checkpointed = (
        fit(micro("objective=shortcut", "train.updates=4", f"train.checkpoint_activations={on}"))
        for on in ("false", "true")
    )
    for expected, result in zip(plain.net.parameters(), checkpointed.net.parameters(), strict=True):
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)


def test_both_networks_compute_attention_by_the_kernel_that_was_chosen(micro):
    module = module_of(micro("objective=shortcut", "trainer.attention=flash"))
    for net in (module.net, module.ema):
        kernels = {block.attn1.processor._attention_backend for block in net.dit.blocks}
        assert [kernel.value for kernel in kernels] == ["_native_flash"]


def test_a_deterministic_training_is_the_same_training(micro, tmp_path: Path):
    """The same here; on a GPU torch then refuses operations that are not. The next one is free again."""
    words = ("objective=shortcut", "train.updates=3", "attention=topk", "attention.tile=[2,2,1]")
    free, fixed = micro(*words), micro(*words, "trainer.deterministic=true")
    assert free.training_signature == fixed.training_signature
    weights = []
    for run, folder in ((fixed, "fixed"), (free, "free")):
        weights.append(load_file(train(run, tmp_path / folder) / "online.safetensors"))
        assert torch.are_deterministic_algorithms_enabled() == (run is fixed)
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


@pytest.mark.parametrize("attention", ["window", "topk", "anchor"])
def test_sparse_attention_trains_both_networks_and_counts_what_it_leaves_out(micro, tmp_path: Path, attention: str):
    words = ("scale.window=[2,2]", "scale.window_tile=[2,1,1]", "scale.attention_tile=[2,2,1]", "train.updates=2")
    dense, sparse = (micro(*words, f"attention={name}", "objective=shortcut") for name in ("dense", attention))
    module = module_of(sparse)
    assert module.net.attention == module.ema.attention == sparse.attention
    assert 0.5 < training_cost(sparse).flops.total / training_cost(dense).flops.total < 1
    weights = [load_file(train(run, tmp_path) / "online.safetensors") for run in (dense, sparse)]
    assert not all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


@pytest.mark.parametrize("kernel", ["sage", "flash3"])
def test_a_kernel_without_gradient_does_not_train(micro, tmp_path: Path, kernel: str):
    with pytest.raises(ConfigError, match=rf"trainer\.attention={kernel}: is for sampling, .* sdpa, cudnn or flash"):
        train(micro("objective=shortcut", f"trainer.attention={kernel}"), tmp_path)


def test_a_kernel_is_not_asked_for_gradients_where_nothing_is_trained(
    micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = ("start=hires", "start.updates=1", "train.updates=0")
    train(micro(*words).start_run, tmp_path)
    untrained = micro(*words, "trainer.attention=sage")
    with pytest.raises(ValueError, match=r"trainer\.attention=sage: not available on this machine \("):
        train(untrained, tmp_path)
    sdpa = F.scaled_dot_product_attention
    as_sage = lambda q, k, v, **_: sdpa(*(x.detach().transpose(1, 2) for x in (q, k, v))).transpose(1, 2)  # noqa: E731
    monkeypatch.setattr(attention_dispatch, "sageattn", as_sage)  # as if it were installed
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_SAGE_ATTN", True)
    assert (train(untrained, tmp_path) / "ema.safetensors").exists()


def test_offloading_beyond_the_memory_of_a_container_is_refused_before_anything_is_trained(
    micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = micro("objective=shortcut", "train.checkpoint_activations=true", "trainer.offload_activations=true")
    for name, value in (("memory.max", "1000"), ("memory.current", "900"), ("memory.stat", "inactive_file 0")):
        (tmp_path / name).write_text(value)
    (tmp_path / "membership").write_text("0::/")
    monkeypatch.setattr(host, "GROUPS", tmp_path)
    monkeypatch.setattr(host, "MEMBERSHIP", tmp_path / "membership")
    with pytest.raises(
        ConfigError, match=r"offload_activations=true: .* are needed, 1e-07 GB are free; set it to false"
    ):
        train(run, tmp_path / "outputs")


def test_offloaded_activations_train_to_the_same_bits(micro):
    checkpointed = ("objective=shortcut", "train.updates=4", "train.checkpoint_activations=true")
    stored, offloaded = (fit(micro(*checkpointed, f"trainer.offload_activations={on}")) for on in ("false", "true"))
    for expected, result in zip(stored.parameters(), offloaded.parameters(), strict=True):
        assert torch.equal(result, expected)


def test_frozen_weights_are_there_once_and_the_others_are_averaged(micro):
    module = fit(micro("objective=shortcut", "train.updates=4", "train.trainable=adapters", "optimizer.lr=1e-2"))
    average = dict(module.ema.named_parameters())
    for name, online in module.net.named_parameters():
        assert (average[name] is online) == name.startswith("dit."), name
    for part in ("injector.out", "stride_embedding.mlp.linear_2"):
        assert any(not torch.equal(average[k], v) for k, v in module.net.named_parameters() if k.startswith(part))
    saved = io.BytesIO()
    torch.save(module.state_dict(), saved)
    size = sum(p.numel() * p.element_size() for p in {*module.net.parameters(), *module.ema.parameters()})
    assert saved.tell() < 1.1 * size + 200_000


def test_training_the_adapters_leaves_the_transformer_alone(micro):
    run = micro("objective=shortcut", "train.updates=4", "train.trainable=adapters", "optimizer.lr=1e-2")
    module, fresh = fit(run), stage_module(run)
    fresh.configure_model()
    before, after = fresh.net.state_dict(), module.net.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before if k.startswith("dit."))
    for part in ("injector.out", "stride_embedding.mlp.linear_2"):
        assert any(not torch.equal(after[k], before[k]) for k in before if k.startswith(part))


# Starts.


def module_of(run: Run, start: Path | None = None) -> Any:
    module = stage_module(run, None if start is None else str(start))
    module.configure_model()
    return module


def saved(module: Any, path: Path) -> Path:
    save_file({k: v.contiguous() for k, v in module.net.state_dict().items()}, path)
    return path


def ask(module: Any, anchor: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    state, text = torch.randn(2, 48, 2, 4, 4, generator=generator), module.text(2)
    anchor_latent = torch.randn(2, 48, 2, 4, 4, generator=generator) if anchor else None
    t = torch.tensor([600.0, 900.0])
    with torch.no_grad():
        return module.net(state, t, t / 2, text, anchor_latent, sigma_timestep=t)


def test_an_injector_absent_from_the_start_begins_silent(micro, tmp_path: Path):
    base = module_of(micro("objective=flow", "injector=none", "train.condition_dropout=0", "seed=3"))
    torch.nn.init.normal_(base.net.stride_embedding.mlp.linear_2.weight)
    path = saved(base, tmp_path / "base.safetensors")
    hires = module_of(micro("injector=gated"), path)
    assert torch.equal(ask(hires, anchor=True), ask(base, anchor=False))
    assert hires.net.injector is not None
    # and the average departs from the same weights
    for online, average in zip(hires.net.parameters(), hires.ema.parameters(), strict=True):
        assert torch.equal(online, average)


def test_an_injector_the_start_has_in_vain_is_left(micro, tmp_path: Path):
    hires = module_of(micro("injector=gated", "seed=3"))
    base = module_of(micro("injector=none", "objective=flow"), saved(hires, tmp_path / "hires.safetensors"))
    for key, value in base.net.dit.state_dict().items():
        assert torch.equal(value, hires.net.dit.state_dict()[key])


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("backbone.num_attention_heads=1", r"dit\.\S+"),  # another width
        ("backbone.num_layers=3", r"dit\.blocks\.2\.\S+"),  # the start lacks a block
        ("backbone.num_layers=1 injector.blocks=[0]", r"dit\.blocks\.1\.\S+"),  # the start has a block too many
        ("injector.hidden=0.5", r"injector\.narrow\.\S+"),  # another injector
    ],
)
def test_a_start_that_does_not_fit_is_refused_naming_keys(micro, tmp_path: Path, change: str, key: str):
    path = saved(module_of(micro("objective=flow")), tmp_path / "start.safetensors")
    with pytest.raises(ValueError, match=rf"start\.safetensors: does not fit this network at .*{key}.* keys\)"):
        module_of(micro("objective=flow", *change.split()), path)


def test_a_run_departs_from_the_average_of_its_start(micro, tmp_path: Path):
    run = micro("start=hires", "start.updates=3", "train.updates=0")
    assert run.start_run is not None
    start = train(run.start_run, tmp_path)
    averaged, online = (load_file(start / f"{name}.safetensors") for name in ("ema", "online"))
    assert not torch.equal(averaged["dit.proj_out.weight"], online["dit.proj_out.weight"])
    result = module_of(run, start / "ema.safetensors").net.state_dict()
    assert averaged.keys() <= result.keys()
    assert all(torch.equal(result[key], averaged[key]) for key in averaged)


@pytest.mark.parametrize("injector", ["gated", "gated_channelwise", "alpha_zero"])
def test_before_its_first_update_an_arm_equals_its_start_at_every_stride(micro, tmp_path: Path, injector: str):
    """D18: the start has no gate and a silent stride embedding, and a fresh gate begins at gain 1."""
    run = micro("start=hires", "start.updates=3", f"injector={injector}", "injector.blocks=[0]")
    path = train(run.start_run, tmp_path) / "ema.safetensors"
    start, arm = module_of(run.start_run, path), module_of(run, path)
    assert torch.equal(ask(arm, anchor=True), ask(start, anchor=True))
    assert not torch.equal(ask(arm, anchor=True), ask(module_of(run), anchor=True))
    assert not any(".gate." in key for key in start.net.state_dict())


def test_flow_matching_teaches_nothing_about_strides(micro):
    flow, shortcut = (
        fit(micro(f"objective={o}", "train.updates=4", "optimizer.lr=1e-2")) for o in ("flow", "shortcut")
    )
    assert not flow.net.stride_embedding.mlp.linear_2.weight.any()
    assert shortcut.net.stride_embedding.mlp.linear_2.weight.any()


def test_no_updates_gives_the_starts_own_weights(micro, tmp_path: Path):
    run = micro("start=hires", "start.updates=3", "train.updates=0", "injector=alpha_zero")
    folder = train(run, tmp_path)
    assert (folder / "done.json").exists()
    expected = load_file(train(run.start_run, tmp_path) / "ema.safetensors")
    for name in ("ema", "online"):
        result = load_file(folder / f"{name}.safetensors")
        assert expected.keys() == result.keys()
        assert all(torch.equal(expected[k], result[k]) for k in expected)


def test_a_stage_two_departs_from_a_flow_model_without_an_anchor(micro, tmp_path: Path):
    run = micro("start=base", "start.updates=2", "train.updates=2")
    weights = load_file(train(run, tmp_path) / "ema.safetensors")
    assert any(key.startswith("injector.") for key in weights)
    assert not any(key.startswith("injector.") for key in load_file(train(run.start_run, tmp_path) / "ema.safetensors"))


def test_load_start_leaves_what_the_file_does_not_name_as_it_was(micro, tmp_path: Path):
    module = module_of(micro("objective=flow"))
    before = {k: v.clone() for k, v in module.net.state_dict().items()}
    other = module_of(micro("objective=flow", "seed=8")).net.dit.state_dict()
    save_file({f"dit.{k}": v.contiguous() for k, v in other.items()}, tmp_path / "stock.safetensors")
    load_start(module.net, str(tmp_path / "stock.safetensors"))
    after = module.net.state_dict()
    assert all(torch.equal(after[f"dit.{k}"], v) for k, v in other.items())
    assert all(torch.equal(after[k], v) for k, v in before.items() if not k.startswith("dit."))
