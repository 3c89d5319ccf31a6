"""pw.train.batches, pw.train.batches: the batch of a loss that is not finite is kept, and can be looked at."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pw.run.build import Run
from pw.train import batches
from pw.train.batches import read
from pw.train.loop import train
from pw.train.record import training_folder


def spoilt_batch(run: Run, outputs: Path) -> Path:
    """The JSON that a training left, named by its error."""
    with pytest.raises(ValueError, match="the loss is not finite at update 2") as caught:
        train(run, outputs)
    (path,) = (training_folder(run, outputs) / "not_finite").glob("*.json")
    assert f"pw replay {path}" in str(caught.value)
    return path


def test_the_batch_is_the_one_that_was_trained_on_with_all_that_is_known_of_it(micro, tmp_path: Path) -> None:
    run = micro("objective=shortcut", "optimizer.lr=1e30", "train.accumulate=2")
    path = spoilt_batch(run, tmp_path)
    assert path.name == "update-000002-rank0.json"
    result, clips = read(path)
    assert (result.signature, result.seed, result.batch, result.update) == (run.training_signature, 0, 2, 2)
    assert torch.equal(clips, run.source.batch(0, 2, 2))  # two micro-batches an update: the first of the second
    about = json.loads(path.read_text())
    assert [losses["update"] for losses in about["losses"]] == [1, 2, 3, 4]
    assert all(map(torch.isfinite, torch.tensor([float(value) for value in about["losses"][0]["values"]])))
    assert about["losses"][1]["values"][0] in ("nan", "inf")
    assert about["clips"]["clips"]["not_finite"] == 0
    assert about["clips"]["clips"]["shape"] == [2, 3, 2, 16, 16]


def test_a_batch_is_computed_again_with_the_weights_of_the_last_checkpoint_or_of_the_start(
    micro, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = spoilt_batch(micro("objective=flow", "optimizer.lr=1e30"), tmp_path / "start")
    assert batches.main([str(start)]) == 0  # it is not the batch: the first update spoilt the weights
    assert "weights it started from" in capsys.readouterr().out
    spoilt = spoilt_batch(micro("objective=flow", "optimizer.lr=1e30", "train.checkpoint_every=1"), tmp_path / "spoilt")
    assert batches.main([str(spoilt)]) == 1
    assert "nan with the weights of its checkpoint of update 1" in capsys.readouterr().out


def test_weights_that_no_loss_will_tell_of_are_neither_exported_nor_kept(micro, tmp_path: Path) -> None:
    for more in ("train.updates=1", "train.checkpoint_every=1"):
        run = micro("objective=flow", "optimizer.lr=1e39", more)
        with pytest.raises(ValueError, match=r"weights are not finite after update 1, .* no checkpoint is before it"):
            train(run, tmp_path)
        names = {path.name for path in training_folder(run, tmp_path).rglob("*")}
        assert not names & {"ema.safetensors", "online.safetensors", "done.json", "last.ckpt", "partial.ckpt"}


def test_what_is_not_left_by_a_training_or_by_another_is_refused(
    micro, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batches.main([]) == 2
    assert batches.main([str(tmp_path / "update-000001-rank0.json")]) == 2
    assert "not the batch of a loss" in capsys.readouterr().err
    path = spoilt_batch(micro("objective=flow", "optimizer.lr=1e30"), tmp_path)
    folder = path.parents[1]
    other = train(micro("objective=flow", "train.updates=1"), tmp_path)
    shutil.copy(other / "config.yaml", folder / "config.yaml")
    assert batches.main([str(path)]) == 2
    assert f"signature {other.name} now, not {folder.name}" in capsys.readouterr().err


def test_a_batch_that_cannot_be_written_hides_nothing(micro, tmp_path: Path) -> None:
    run = micro("objective=flow", "optimizer.lr=1e30")
    training_folder(run, tmp_path).mkdir(parents=True)
    (training_folder(run, tmp_path) / "not_finite").write_text("a file where a folder should be")
    (training_folder(run, tmp_path) / "checkpoints" / "partial.ckpt").mkdir(parents=True)  # of a run that was killed
    message = r"not finite at update 2 .* its batch, number 1, could not be written .*File.* no checkpoint is before it"
    with pytest.raises(ValueError, match=message):
        train(run, tmp_path)
