"""What a training shows while it runs: right, the same however it is interrupted, and without effect on the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pw.io.arguments import MAX_SEED
from pw.io.video import probe
from pw.run.build import Run, build
from pw.stages import stage_module
from pw.stages.stage import SeededDraws
from pw.train.batches import batches
from pw.train.loop import train

UPDATES = 6
FOLLOWED = ("tracking=mlflow", "tracking.every=3", "tracking.held_out=8", "tracking.held_out_every=4")


def small_run(*overrides: str) -> Run:
    return build(["objective=shortcut", f"train.updates={UPDATES}", "train.batch_size=4", "seed=3", *overrides])


def lines(folder: Path) -> dict[int, dict[str, float]]:
    read = [json.loads(line) for line in (folder / "diagnostics.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in read}) == len(read)
    return {line.pop("step"): line for line in read}


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(small_run(*FOLLOWED, "tracking.samples=2", "tracking.samples_every=5"), tmp_path_factory.mktemp("f"))


@pytest.fixture(scope="module")
def updates() -> list[dict[str, Any]]:
    """The same training by hand: after each update its loss, gradients before clipping, and weights."""
    run = small_run("tracking=none")
    module = stage_module(run)
    module.configure_model()
    from safetensors.torch import load_file as read

    assert run.start_run is not None
    assert run.start_run.card is not None
    weights = read(run.start_run.card.file)
    for net in (module.net, module.ema):
        net.load_state_dict(weights, strict=False)
    optimisation = module.configure_optimizers()
    optimizer, schedule = optimisation["optimizer"], optimisation["lr_scheduler"]["scheduler"]
    parameters = [p for p in module.net.parameters() if p.requires_grad]
    made = []
    for update, batch in zip(range(UPDATES), batches(run, 0), strict=False):
        optimizer.zero_grad()
        loss = module.loss(batch["clips"], batch["index"], update)
        loss.value.backward()
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm().item()
        torch.nn.utils.clip_grad_norm_(parameters, run.optimizer.clip)
        optimizer.step()
        schedule.step()
        decay = min(run.optimizer.ema, (2 + update) / (11 + update))
        with torch.no_grad():
            for ema, online in zip(module.ema.parameters(), module.net.parameters(), strict=True):
                ema.lerp_(online, 1 - decay)
        flat = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in (module.net, module.ema)]
        made.append({"loss": loss.detach(), "gradient": gradient, "net": flat[0], "ema": flat[1]})
    made[-1]["module"] = module
    return made


def test_weights_and_curve_are_to_the_bit_those_of_a_training_that_is_not_followed(followed, tmp_path: Path) -> None:
    alone = train(small_run("tracking=none"), tmp_path)
    assert alone.name == followed.name  # the signature
    for name in ("online", "ema"):
        expected, result = (load_file(folder / f"{name}.safetensors") for folder in (alone, followed))
        assert all(torch.equal(expected[key], result[key]) for key in expected)
    assert (alone / "metrics.jsonl").read_text() == (followed / "metrics.jsonl").read_text()
    assert not (alone / "diagnostics.jsonl").exists()


def test_the_gradient_is_that_before_clipping_and_the_distance_is_relative(followed, updates) -> None:
    shown = lines(followed)
    assert [step for step in shown if "train/grad_norm" in shown[step]] == [3, 6]
    for step in (3, 6):
        made = updates[step - 1]
        assert shown[step]["train/grad_norm"] == pytest.approx(made["gradient"], rel=1e-4)
        distance = ((made["ema"] - made["net"]).norm() / made["net"].norm()).item()
        assert shown[step]["train/ema_distance"] == pytest.approx(distance, rel=1e-3)


def test_errors_are_means_over_the_clips_of_a_timestep_bin_or_a_rung_since_the_last_line(followed, updates) -> None:
    for step, since in ((3, range(3)), (6, range(3, 6))):
        expected: dict[str, list[float]] = {}
        for update in since:
            loss = updates[update]["loss"]
            for error, timestep, stride in zip(loss.error, loss.timestep, loss.stride, strict=True):
                quarter = min(3, int(timestep // 250))
                names = ("t000-250", "t250-500", "t500-750", "t750-1000")
                rung = 0 if loss.term == "flow" else round(torch.log2(timestep / stride).item())
                name = f"flow_error/{names[quarter]}" if loss.term == "flow" else f"rung_error/k{rung}"
                expected.setdefault(f"train/{name}", []).append(float(error))
        shown = {name: value for name, value in lines(followed)[step].items() if "_error" in name and "train" in name}
        assert shown == pytest.approx({name: sum(v) / len(v) for name, v in expected.items()}, rel=1e-4)
        assert any(name.startswith("train/rung_error/") for name in shown)


@torch.no_grad()
def test_the_held_out_loss_is_of_clips_and_noise_that_no_training_sees(followed, updates) -> None:
    run, module = small_run("tracking=none"), updates[-1]["module"]
    errors, gates = [], []
    for i, clip in enumerate(run.source.evaluation(8, MAX_SEED).real):
        draws = SeededDraws(MAX_SEED, i)
        data, condition = module.prepare(clip[None], draws)
        # clips 0 … 3 are in the bins at a quarter of each, clips 4 … 7 at three quarters
        sigma = (i % 4 + (0.25 if i < 4 else 0.75)) / 4
        noise, timestep = draws.noise(data), torch.full((1,), 1000 * sigma, dtype=torch.float64)
        state = (1 - sigma) * data + sigma * noise
        predicted = module.velocity(module.net, condition)(state, timestep, torch.zeros(1))
        errors.append((predicted - (noise - data)).square().mean().item())
        gates.append(module.net.injector.gate(timestep.float(), torch.zeros(1)).mean().item())
    shown = lines(followed)
    assert [step for step in shown if "held_out/flow_error" in shown[step]] == [4, 6]
    for quarter, name in enumerate(("t000-250", "t250-500", "t500-750", "t750-1000")):
        mean = (errors[quarter] + errors[quarter + 4]) / 2
        assert shown[6][f"held_out/flow_error/{name}"] == pytest.approx(mean, rel=1e-4)
        assert shown[6][f"gate/{name}"] == pytest.approx((gates[quarter] + gates[quarter + 4]) / 2, rel=1e-3, abs=1e-6)
    assert shown[6]["held_out/flow_error"] == pytest.approx(sum(errors) / 8, rel=1e-4)


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        (("objective=meanflow", "turns=bernoulli", "turns.rate=1"), "mean_velocity"),
        (("objective=consistency",), "jump"),
    ],
)
def test_the_errors_of_a_rival_are_by_timestep_under_a_name_of_their_own(objective, name: str, tmp_path: Path) -> None:
    run = small_run(*objective, *FOLLOWED, "train.updates=1", "tracking.held_out=4")
    module = stage_module(run)
    module.configure_model()
    assert run.start_run is not None
    assert run.start_run.card is not None
    for net in (module.net, module.ema):
        net.load_state_dict(load_file(run.start_run.card.file), strict=False)
    batch = next(iter(batches(run, 0)))
    loss = module.loss(batch["clips"], batch["index"], 0).detach()
    expected: dict[str, list[float]] = {}
    for error, timestep in zip(loss.error, loss.timestep, strict=True):
        quarter = min(3, int(timestep // 250))
        bin_name = ("t000-250", "t250-500", "t500-750", "t750-1000")[quarter]
        expected.setdefault(f"train/{name}_error/{bin_name}", []).append(float(error))
    folder = train(run, tmp_path)
    shown = {key: value for key, value in lines(folder)[1].items() if "_error" in key}
    in_training = {key: value for key, value in shown.items() if key.startswith("train/")}
    assert in_training == pytest.approx({key: sum(v) / len(v) for key, v in expected.items()}, rel=1e-4)
    module.net.load_state_dict(load_file(folder / "online.safetensors"))
    for i, clip in enumerate(run.source.evaluation(4, MAX_SEED).real if name == "jump" else ()):
        draws, sigma = SeededDraws(MAX_SEED, i), (i + 0.5) / 4
        with torch.no_grad():
            data, condition = module.prepare(clip[None], draws)
            timestep = torch.full((1,), 1000 * sigma, dtype=torch.float64)
            state = (1 - sigma) * data + sigma * draws.noise(data)
            landing = state - sigma * module.velocity(module.net, condition)(state, timestep, timestep)
        quarter = ("t000-250", "t250-500", "t500-750", "t750-1000")[i]
        assert shown[f"held_out/jump_error/{quarter}"] == pytest.approx(
            float((landing - data).square().mean()), rel=1e-4
        )
    assert ("held_out/flow_error" in shown, "held_out/jump_error" in shown) == (name != "jump", name == "jump")


def test_samples_are_playable_videos_of_fixed_clips_beside_the_real_ones(followed) -> None:
    files = sorted(str(path.relative_to(followed / "samples")) for path in followed.glob("samples/*/*"))
    folders = ("real", "update-000005", "update-000006")
    assert files == [f"{folder}/clip-{i}.mp4" for folder in folders for i in (0, 1)]
    info = probe(followed / "samples/real/clip-0.mp4")
    assert (info.frames, info.height, info.width) == (3, 384, 384)


def test_an_interrupted_training_has_each_line_once_and_the_same(followed, tmp_path: Path) -> None:
    run = small_run(*FOLLOWED, "train.checkpoint_every=4")

    class Killed(Exception):
        pass

    def kill(update: int, updates: int) -> None:
        raise Killed

    from pw.train import callbacks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "CURVE_EVERY", 5)  # progress comes with a point of the curve
        with pytest.raises(Killed):
            train(run, tmp_path, kill)
    folder = train(run, tmp_path)
    times = ("system/clips_per_second", "system/memory_gb", "train/flow_error", "train/rung_error")
    kept = [
        {step: {k: v for k, v in line.items() if not k.startswith(times)} for step, line in lines(one).items()}
        for one in (followed, folder)
    ]
    assert kept[0] == kept[1]
