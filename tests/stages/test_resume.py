"""pw.train.loop and the stages: a training that is interrupted and continued is the one that was not."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_shards import spoil, write_noise

from pw.data.shards import epoch_order
from pw.io.arguments import ConfigError
from pw.io.paths import ROOT
from pw.parallel.sharded import check_checkpoint, read_rest
from pw.parallel.signals import STOP_SIGNALS, Stopped
from pw.run.build import Run
from pw.stages.stage import Stage
from pw.train.loop import train
from pw.train.record import is_trained, last_checkpoint, training_folder

# diffusers normalises bf16 queries by an fp32 weight, and torch says so
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")

ARMS = {
    "flow": ("objective=flow",),
    "shortcut": ("objective=shortcut",),
    "shortcut_accumulated": ("objective=shortcut", "train.accumulate=2"),
    "ema_target_bf16": ("objective=shortcut", "target.target_network=ema", "train.precision=bf16"),
    "lora": (
        *("objective=shortcut", "target.target_network=ema", "train.trainable=lora", "train.lora.dropout=0.2"),
        *("train.checkpoint_activations=true", "train.accumulate=2"),
    ),
    "lora_bf16": ("objective=shortcut", "train.trainable=lora", "train.precision=bf16"),
    "adapters_offloaded": (
        *("objective=shortcut", "target.target_network=ema", "train.trainable=adapters"),
        *("train.checkpoint_activations=true", "trainer.offload_activations=true"),
    ),
}


class Interrupted(Exception):
    """Stands for whatever ends a run early."""


def interrupt(update: int, updates: int) -> None:
    """progress is first called at update 10: the checkpoints of 4 and 8 are there by then."""
    raise Interrupted


def curve(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(one: Path, other: Path, updates: int = 12) -> None:
    for name in ("online", "ema"):
        expected, result = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
        assert expected.keys() == result.keys()
        different = [key for key in expected if not torch.equal(expected[key], result[key])]
        assert not different, f"{name}: {len(different)} of {len(expected)} tensors, e.g. {different[0]}"
    assert curve(one) == curve(other)
    # every checkpoint, every tenth, the last
    steps = [n for n in range(1, updates + 1) if not n % 4 or not n % 10 or n == updates]
    assert [point["step"] for point in curve(one)] == steps


@pytest.fixture(scope="module")
def undisturbed(micro, tmp_path_factory):
    """Folder of an arm trained in one go; each is trained once."""
    outputs = tmp_path_factory.mktemp("undisturbed")
    return lambda run: train(run, outputs)


def interrupted(run: Run, outputs: Path) -> Path:
    with pytest.raises(Interrupted):
        train(run, outputs, progress=interrupt)
    folder = training_folder(run, outputs)
    assert not is_trained(run, outputs)
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}
    return folder


@pytest.mark.parametrize("overrides", ARMS.values(), ids=ARMS)
def test_an_interrupted_training_is_continued_to_the_same_bits(micro, undisturbed, tmp_path: Path, overrides):
    run = micro(*overrides)
    folder = interrupted(run, tmp_path)
    assert train(run, tmp_path) == folder
    assert is_trained(run, tmp_path)
    assert_same_training(undisturbed(run), folder)
    assert not list((folder / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_training_killed_by_sigkill_is_continued_to_the_same_bits(micro, undisturbed, tmp_path: Path):
    run = micro("objective=shortcut")
    code = (
        "import os, signal, sys, torch; from pathlib import Path\n"
        "from pw.run.build import build; from pw.train.loop import train\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"  # sums in another order would be other bits
        "train(build(sys.argv[2:]), Path(sys.argv[1]), lambda *_: os.kill(os.getpid(), signal.SIGKILL))"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path), *run.config.overrides], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not is_trained(run, tmp_path)
    assert {path.name for path in (training_folder(run, tmp_path) / "checkpoints").iterdir()} >= {"last.ckpt"}
    assert_same_training(undisturbed(run), train(run, tmp_path))


@pytest.mark.slow
def test_a_split_training_killed_while_it_writes_a_checkpoint_is_continued_from_the_one_before(micro, tmp_path: Path):
    """No file may grow beyond 20 kB once there is a checkpoint, and the system kills whoever tries."""
    split = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.threads=1")
    run = micro("objective=flow", "train.updates=60", "train.checkpoint_every=4", *split)
    code = (
        "import resource, signal, sys, threading, time, torch; from pathlib import Path\n"
        "from pw.run.build import build; from pw.train.loop import train; from pw.train.record import training_folder\n"
        "torch.set_num_threads(1)\n"
        "run, outputs = build(sys.argv[2:]), Path(sys.argv[1])\n"
        "def limit():\n"
        "    while not (training_folder(run, outputs) / 'checkpoints' / 'last.ckpt').exists(): time.sleep(0.001)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "threading.Thread(target=limit, daemon=True).start()\n"
        "train(run, outputs)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "killed"), *run.config.overrides]
    assert subprocess.run(words, cwd=ROOT, check=False).returncode == -signal.SIGXFSZ
    folder = training_folder(run, tmp_path / "killed")
    partial = folder / "checkpoints" / "partial.ckpt"
    assert partial.is_dir()
    with pytest.raises((ValueError, OSError)):
        read_rest(partial)
    result = last_checkpoint(folder)
    assert result is not None
    assert result[0].name == "last.ckpt"
    assert_same_training(train(run, tmp_path / "undisturbed"), train(run, tmp_path / "killed"), updates=60)
    assert not list(folder.glob("checkpoints/*"))


def test_a_training_interrupted_twice_is_the_same_still(micro, undisturbed, tmp_path: Path):
    run = micro("objective=shortcut")
    interrupted(run, tmp_path)
    with pytest.raises(Interrupted):  # from update 8 to 10 again
        train(run, tmp_path, progress=interrupt)
    assert_same_training(undisturbed(run), train(run, tmp_path))


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2  # in a weight
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [half, flipped])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    micro, undisturbed, tmp_path: Path, caplog, damage: Callable[[bytes], bytes]
):
    run = micro("objective=shortcut")
    folder = interrupted(run, tmp_path)
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(damage(last.read_bytes()))
    with caplog.at_level(logging.WARNING, logger="pw"):
        train(run, tmp_path)
    assert "last.ckpt is unreadable" in caplog.text
    assert "previous.ckpt" not in caplog.text
    assert_same_training(undisturbed(run), folder)


@pytest.mark.slow
def test_a_bit_of_any_part_of_a_checkpoint_is_looked_at(micro, tmp_path: Path):
    last = interrupted(micro("objective=flow"), tmp_path) / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    with zipfile.ZipFile(last) as archive:
        parts = [part for name in archive.namelist() if len(part := archive.read(name)) >= 64]
    assert sum(map(len, parts)) > len(content) / 2
    check_checkpoint(last)
    for part in parts:
        place = content.index(part) + len(part) // 2  # of equal parts, such as zeros, the first is changed
        last.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match="has another content than was written"):
            check_checkpoint(last)


def test_a_clip_that_was_passed_over_before_the_interruption_is_told_at_the_end(micro, tmp_path: Path):
    shards = write_noise(tmp_path, train=40, val=2)  # more clips than the 24 of a training: each is met once
    run = micro("objective=flow", "data=shards", f"data.urls={shards}/*.tar")
    number = epoch_order(40, run.seed, 0)[0]
    spoil(shards, "train", number)
    whole = train(run, tmp_path / "undisturbed")
    again = micro("objective=flow", "data=shards", f"data.urls={shards}/*.tar")  # it knows of no clip yet
    folder = interrupted(again, tmp_path)
    train(micro("objective=flow", "data=shards", f"data.urls={shards}/*.tar"), tmp_path)
    assert_same_training(whole, folder)
    for done in (json.loads((path / "done.json").read_text()) for path in (whole, folder)):
        assert done["passed_over"] == [f"train-000000.tar/clip-{number}"]


def test_without_a_readable_checkpoint_training_begins_anew(micro, undisturbed, tmp_path: Path):
    run = micro("objective=flow")
    folder = interrupted(run, tmp_path)
    for name in ("last.ckpt", "previous.ckpt"):
        (folder / "checkpoints" / name).write_bytes(b"not a checkpoint")
    assert_same_training(undisturbed(run), train(run, tmp_path))


def test_a_finished_training_is_not_repeated(micro, undisturbed):
    run = micro("objective=flow")
    folder = undisturbed(run)
    before = (folder / "ema.safetensors").stat().st_mtime_ns
    assert undisturbed(run) == folder
    assert (folder / "ema.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("more", [(), ("optimizer.lr=1e30",)], ids=["done", "failed"])
def test_a_training_leaves_signals_to_those_before_it_and_nothing_of_itself(micro, tmp_path: Path, more) -> None:
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS}
    stages = {id(item) for item in gc.get_objects() if isinstance(item, Stage)}
    try:
        with pytest.raises(ValueError, match="not finite") if more else nullcontext():
            train(micro("objective=flow", *more), tmp_path)
        assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == dict.fromkeys(
            STOP_SIGNALS, signal.SIG_DFL
        )
        gc.collect()
        assert not [item for item in gc.get_objects() if isinstance(item, Stage) and id(item) not in stages]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_sighup_stops_a_training_after_its_update_unless_it_was_started_to_ignore_it(micro, tmp_path: Path) -> None:
    hang_up = lambda *_: signal.raise_signal(signal.SIGHUP)  # noqa: E731
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(Stopped) as stopped:
            train(micro("objective=flow"), tmp_path, progress=hang_up)
        assert (stopped.value.signal, stopped.value.code) == (signal.SIGHUP, 129)
        result = last_checkpoint(training_folder(micro("objective=flow"), tmp_path))
        assert result is not None
        assert result[1] == 11
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert is_trained(micro("objective=flow"), train(micro("objective=flow"), tmp_path, hang_up).parents[1])
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_at_the_last_update_is_told_when_all_is_written(micro, tmp_path: Path) -> None:
    """Else whoever trained a start, or has a sampling to do next, would go on with that."""
    run = micro("objective=flow")
    with pytest.raises(Stopped) as stopped:
        train(run, tmp_path, lambda update, updates: update == updates and signal.raise_signal(signal.SIGUSR2))
    assert stopped.value.signal == signal.SIGUSR2
    assert is_trained(run, tmp_path)


def test_training_again_from_scratch_gives_the_same_bits_and_another_seed_others(micro, undisturbed, tmp_path: Path):
    assert_same_training(undisturbed(micro("objective=flow")), train(micro("objective=flow"), tmp_path))
    other = load_file(train(micro("objective=flow", "seed=1"), tmp_path) / "ema.safetensors")
    first = load_file(undisturbed(micro("objective=flow")) / "ema.safetensors")
    assert not torch.equal(first["dit.proj_out.weight"], other["dit.proj_out.weight"])


def test_the_time_of_both_parts_of_an_interrupted_training_is_counted(micro, tmp_path: Path):
    run = micro("objective=flow")
    folder = interrupted(run, tmp_path)
    first = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["pw_spent"]
    train(run, tmp_path)
    done = json.loads((folder / "done.json").read_text())
    assert first[0] > 0
    assert done["wall_seconds"] > round(first[0], 2) - 0.01
    assert done["updates"] == 12


@pytest.mark.parametrize("objective", ["flow", "shortcut"])
def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_update(micro, tmp_path: Path, objective: str):
    run = micro(f"objective={objective}", "optimizer.lr=1e30")
    with pytest.raises(ValueError, match=r"loss is not finite at update 2 .*optimizer\.lr"):
        train(run, tmp_path)
    assert not is_trained(run, tmp_path)
    assert not list(training_folder(run, tmp_path).glob("checkpoints/*"))  # nothing that is not finite is kept


def test_a_disk_that_cannot_hold_the_checkpoints_is_told_before_training(micro, tmp_path: Path, monkeypatch):
    """Three checkpoints at once (the third is being written) and two exports: 5e9 parameters are 280 GB."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1_000_000))
    with pytest.raises(ConfigError, match=r"needs .* for checkpoints and weights, .* are free"):
        train(micro("objective=flow"), tmp_path)
    assert not (training_folder(micro("objective=flow"), tmp_path) / "config.yaml").exists()
