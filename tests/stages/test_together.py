"""Trainings by 2 and 4 processes on gloo equal the one by a single process, stop together, and go on as 4 or 1."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_processes import Training, train_together

from pw.run.build import Run
from pw.tracking.curves import DIAGNOSTICS
from pw.train.batches import read, replay
from pw.train.loop import train
from pw.train.record import last_checkpoint, training_folder

# diffusers normalises bf16 queries by an fp32 weight, and torch says so
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")]

# The tiny scale's text is zeros, and all keys of its cross-attention are alike: the gradient of its queries, its keys
# and what they are made of is rounding, of which AdamW makes whole steps.
WITHOUT_GRADIENT = ("norm2.", "attn2.to_q", "attn2.to_k", "attn2.norm_q", "attn2.norm_k")

CPU = ("trainer.accelerator=cpu", "trainer.threads=1")
OFFLOADED = ("train.checkpoint_activations=true", "trainer.offload_activations=true")
TRACKED = (
    "tracking=mlflow",
    "tracking.every=2",
    "tracking.held_out=5",
    "tracking.samples=1",
    "tracking.samples_every=5",
)
SHORT = ("train.updates=5", "train.batch_size=4", "optimizer.clip=0.5", *TRACKED)  # a norm that is above it
LONG = (
    "objective=shortcut",
    "train.updates=24",
    "train.batch_size=2",
    "train.accumulate=2",
    "train.checkpoint_every=8",
)
ARMS = {
    "flow": ("objective=flow", *SHORT),
    "shortcut": ("objective=shortcut", *SHORT),
    "ema_target": (
        *("objective=shortcut", *SHORT, "target.target_network=ema"),
        *(*OFFLOADED, "train.batch_size=1", "train.accumulate=4"),
    ),
    "adapters": ("objective=shortcut", *SHORT, "train.trainable=adapters", "train.accumulate=2", *OFFLOADED),
    "lora": (
        *("objective=shortcut", *SHORT, "train.trainable=lora", "train.lora.dropout=0.2", "train.accumulate=2"),
        *OFFLOADED,
    ),
    "lora_bf16": ("objective=shortcut", *SHORT, "train.trainable=lora", "train.precision=bf16"),
    "guided": (
        *("objective=shortcut", *SHORT, "step_sampler=uniform", "train.sizes=[0.5,1]", "guidance=baked"),
        *("target.guidance=finest", "target.guidance_scale=3", "target.guidance_drop=text"),
        *("data.captions=texture", "train.condition_dropout=0.2", "train.dropout=both_or_text"),
    ),
    "bf16": ("objective=shortcut", *SHORT, "train.precision=bf16"),
    "sparse": (
        *("objective=shortcut", *SHORT, "train.checkpoint_activations=true"),
        *("attention=anchor", "attention.density=0.5", "attention.tile=[2,2,1]"),
    ),
}
BY_TWO = [("ddp", "shortcut"), ("ddp", "ema_target"), ("fsdp", "flow"), ("fsdp", "shortcut"), ("fsdp", "ema_target")]
BY_TWO += [("fsdp", "bf16"), ("fsdp", "guided"), ("context", "ema_target"), ("context", "guided")]
BY_TWO += [("context", "sparse"), ("ddp", "lora"), ("fsdp", "lora"), ("fsdp", "lora_bf16")]
BY_FOUR = [("hsdp", "shortcut"), ("hsdp", "adapters"), ("ddp", "adapters"), ("context", "shortcut")]
STOPPED = "stopped by 15, code 143"


def several(run: Run, strategy: str, processes: int) -> tuple[str, ...]:
    more = {"hsdp": ("trainer.shards=2",), "context": ("trainer.context=2",)}.get(strategy, ())
    trainer = strategy.replace("context", "fsdp")
    return (*run.config.overrides, f"trainer={trainer}", *CPU, f"trainer.devices={processes}", *more)


@pytest.fixture(scope="module")
def single(micro, tmp_path_factory) -> Callable[..., Path]:
    """Folder of a training by one process; each is trained once."""
    outputs = tmp_path_factory.mktemp("alone")
    return lambda *overrides: train(micro(*overrides), outputs)


@pytest.fixture(scope="module")
def multi(micro, tmp_path_factory) -> Path:
    """Where the trainings of several processes are: all of 2, then all of 4, and those that stop on the way.

    <strategy><processes>  the arms
    handed_on              2 processes to update 11, 4 to update 21
    spread                 one process to update 11, 2 to the end
    """
    root = tmp_path_factory.mktemp("together")
    long = micro(*LONG)
    outcome = Training(long.config.overrides, root / "spread", told=(0, 10)).carried_out(0)
    assert outcome == STOPPED
    trainings = [Training(several(micro(*ARMS[arm]), kind, 2), root / f"{kind}2") for kind, arm in BY_TWO]
    trainings += [
        Training(several(long, "fsdp", 2), root / "handed_on", told=(1, 10)),
        Training(several(long, "fsdp", 2), root / "spread"),
    ]
    two = train_together(2, *trainings)
    assert two[0] == two[1]
    assert two[0][-2:] == [STOPPED, str(training_folder(long, root / "spread"))]
    shutil.copytree(root / "handed_on", root / "of_two")
    trainings = [Training(several(micro(*ARMS[arm]), kind, 4), root / f"{kind}4") for kind, arm in BY_FOUR]
    four = train_together(4, *trainings, Training(several(long, "fsdp", 4), root / "handed_on", told=(3, 20)))
    assert [words[-1] for words in four] == [STOPPED] * 4
    return root


def max_difference(one: Path, other: Path, name: str) -> float:
    """The largest difference of any weight that has a gradient."""
    expected, result = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
    assert expected.keys() == result.keys()
    keys = [key for key in expected if not any(part in key for part in WITHOUT_GRADIENT)]
    assert len(keys) > 0.8 * len(expected)
    return max(float((expected[key] - result[key]).abs().max()) for key in keys)


def curve(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.parametrize(
    ("kind", "processes", "arm"),
    [(kind, n, arm) for n, arms in ((2, BY_TWO), (4, BY_FOUR)) for kind, arm in arms],
)
def test_several_processes_train_what_one_does(micro, single, multi, kind: str, processes: int, arm: str) -> None:
    run = micro(*ARMS[arm])
    folder, reference = training_folder(run, multi / f"{kind}{processes}"), single(*ARMS[arm])
    # fp32: 5 updates of up to 4e-4; bf16 rounds to 3 digits
    tolerance = 1e-5 if run.train.precision == "fp32" else 1e-3
    assert max_difference(reference, folder, "online") < tolerance
    assert max_difference(reference, folder, "ema") < tolerance
    for expected, result in zip(curve(reference), curve(folder), strict=True):
        assert expected.keys() == result.keys()
        assert result == pytest.approx(expected, rel=1e-5 if tolerance == 1e-5 else 1e-2)
    for expected, result in zip(curve(reference, DIAGNOSTICS), curve(folder, DIAGNOSTICS), strict=True):
        for values in (expected, result):
            assert values.pop("system/memory_gb") + values.pop("system/clips_per_second") > 0
        assert result == pytest.approx(expected, rel=1e-3 if tolerance == 1e-5 else 5e-2, abs=1e-6)
    assert [path.name for path in folder.glob("samples/*/*")] == ["clip-0.mp4"] * 2
    done = json.loads((folder / "done.json").read_text())
    expected = (processes, kind.replace("context", "fsdp"), run.training_signature)
    assert (done["processes"], done["strategy"], done["signature"]) == expected
    assert done["train_flops"] == json.loads((reference / "done.json").read_text())["train_flops"]
    assert done["parameters"] == json.loads((reference / "done.json").read_text())["parameters"]
    assert not list(folder.glob("checkpoints/*"))


def test_the_comparison_sees_an_update_of_another_batch(micro, single, tmp_path: Path) -> None:
    """1e-5 tells trainings apart: those of another seed's batches differ by more than a hundred times that."""
    other = train(micro(*ARMS["flow"], "train.condition_dropout=0.5"), tmp_path)
    assert max_difference(single(*ARMS["flow"]), other, "online") > 1e-4


def test_a_training_by_two_is_continued_by_four_and_ended_by_one(micro, single, multi) -> None:
    run = micro(*LONG)
    folder = training_folder(run, multi / "handed_on")
    checkpoint = last_checkpoint(folder)
    assert checkpoint is not None
    assert (checkpoint[0].is_dir(), checkpoint[1]) == (True, 21)  # each of them stopped after the same update
    assert len(list(checkpoint[0].glob("shard-*-of-00004.safetensors"))) == 4
    assert train(run, multi / "handed_on") == folder
    reference = single(*LONG)
    # 24 updates by up to 4e-4, in other orders of summation
    assert max(max_difference(reference, folder, name) for name in ("online", "ema")) < 1e-4
    assert [point["step"] for point in curve(folder)] == [8, 10, 16, 20, 24]  # none where it was stopped
    for expected, values in zip(curve(reference), curve(folder), strict=True):
        assert values == pytest.approx(expected, rel=1e-5)
    assert not list(folder.glob("checkpoints/*"))


def test_a_training_by_one_is_continued_by_two(micro, single, multi) -> None:
    folder = training_folder(micro(*LONG), multi / "spread")
    assert max(max_difference(single(*LONG), folder, name) for name in ("online", "ema")) < 1e-4
    for expected, result in zip(curve(single(*LONG)), curve(folder), strict=True):
        assert result == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_that_lacks_a_process_s_part_falls_back_to_the_one_before(micro, multi, tmp_path, caplog) -> None:
    for number, spoil in enumerate((Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-8]))):
        folder = tmp_path / str(number) / training_folder(micro(*LONG), tmp_path).name
        shutil.copytree(training_folder(micro(*LONG), multi / "of_two"), folder)
        assert last_checkpoint(folder) == (folder / "checkpoints" / "last.ckpt", 11)
        spoil(folder / "checkpoints" / "last.ckpt" / "shard-00001-of-00002.safetensors")
        with caplog.at_level(logging.WARNING, logger="pw"):
            assert last_checkpoint(folder) == (folder / "checkpoints" / "previous.ckpt", 8)
        assert "last.ckpt is unreadable" in caplog.text
        caplog.clear()


def test_a_split_checkpoint_holds_what_one_file_would(micro, multi) -> None:
    """Every weight, its average and both moments, whole; and nothing that needs unpickling."""
    from pw.parallel.sharded import as_one_file

    folder = training_folder(micro(*LONG), multi / "of_two") / "checkpoints" / "last.ckpt"
    checkpoint = as_one_file(folder)
    shapes = {name: value.shape for name, value in load_file(_exported(micro, multi)).items()}
    assert checkpoint["state_dict"].keys() == {f"{net}.{name}" for net in ("net", "ema") for name in shapes}
    assert all(value.shape == shapes[name.partition(".")[2]] for name, value in checkpoint["state_dict"].items())
    (optimizer,) = checkpoint["optimizer_states"]
    trained = optimizer["param_groups"][0]["params"]
    assert sorted(optimizer["state"]) == list(trained) == list(range(len(shapes)))
    assert all(float(values["step"]) == 11 for values in optimizer["state"].values())
    assert any(torch.count_nonzero(values["exp_avg_sq"]) for values in optimizer["state"].values())
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".pt", ".json"}


def _exported(micro, multi: Path) -> Path:
    return training_folder(micro(*LONG), multi / "spread") / "ema.safetensors"


def test_a_loss_that_is_not_finite_leaves_each_process_s_part_of_the_batch(micro, tmp_path) -> None:
    run = micro("objective=flow", "train.batch_size=4", "optimizer.lr=1e30")
    training = Training(several(run, "fsdp", 2), tmp_path)
    with pytest.raises(RuntimeError, match=r"not finite at update 2 .*update-000002-rank[01]\.json"):
        train_together(2, training)
    result = {path: read(path) for path in sorted(training_folder(run, tmp_path).glob("not_finite/*.json"))}
    assert [(part.rank, part.processes, part.batch) for part, _ in result.values()] == [(0, 2, 1), (1, 2, 1)]
    # of pixels each has all of the micro-batch, of which it takes its part
    assert all(torch.equal(clips, run.source.batch(0, 1, 4)) for _, clips in result.values())
    assert all(replay(path)[1].isfinite() for path in result)  # with the weights it departed from
