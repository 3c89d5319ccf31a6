"""A folder with a training of another signature is refused; modules that stay imported are not garbage-collected."""

from __future__ import annotations

import gc
import shutil
import sys
from pathlib import Path

import pytest

from pw.io.arguments import ConfigError
from pw.io.manifest import DamagedResult, write_mark
from pw.io.paths import import_without_gc
from pw.run.build import build
from pw.train.record import is_trained, training_folder, written_overrides

RUN = ["start=none", "objective=flow", "train.updates=2"]


def test_a_finished_training_of_another_signature_is_named_with_what_would_do(tmp_path: Path) -> None:
    run = build(RUN)
    folder = training_folder(run, tmp_path)
    folder.mkdir(parents=True)
    assert not is_trained(run, tmp_path)
    write_mark(tmp_path / "train" / "0badc0de" / "done.json", {}, [])
    shutil.copy(tmp_path / "train" / "0badc0de" / "done.json", folder)
    with pytest.raises(DamagedResult, match=rf"is of 0badc0de, not of {run.training_signature}; .*remove {folder}"):
        is_trained(run, tmp_path)
    write_mark(folder / "done.json", {}, [])
    assert is_trained(run, tmp_path)


def test_a_checkpoint_of_another_signature_is_not_continued(tmp_path: Path) -> None:
    import torch

    from pw.train.record import last_checkpoint

    folder = tmp_path / "12345678"
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"global_step": 4, "pw_signature": "0badc0de"}, folder / "checkpoints" / "last.ckpt")
    with pytest.raises(ConfigError, match="checkpoint of signature 0badc0de, not 12345678"):
        last_checkpoint(folder)
    torch.save({"global_step": 4, "pw_signature": "12345678"}, folder / "checkpoints" / "last.ckpt")
    checkpoint = last_checkpoint(folder)
    assert checkpoint is not None
    assert checkpoint[1] == 4


@pytest.mark.parametrize("text", ["", "# python -m pw train seed=1", "seed: 1\n"])
def test_a_config_that_is_cut_off_is_named_with_what_would_do(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml: .* truncated or empty; put it back, or remove"):
        written_overrides(tmp_path)


def test_a_finished_training_whose_mark_is_cut_off_is_neither_done_nor_silently_done_again(tmp_path: Path) -> None:
    run = build(RUN)
    done = training_folder(run, tmp_path) / "done.json"
    write_mark(done, {}, [])
    assert is_trained(run, tmp_path)
    done.write_text(done.read_text()[:20])
    with pytest.raises(ConfigError, match=r"done\.json: is truncated"):
        is_trained(run, tmp_path)


def test_what_is_imported_for_good_is_looked_through_neither_meanwhile_nor_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_this_test.py").write_text(
        "import gc\nCOLLECTS, MADE = gc.isenabled(), [[n] for n in range(5000)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    frozen = gc.get_freeze_count()
    assert gc.isenabled()
    import_without_gc("of_this_test")
    assert not sys.modules.pop("of_this_test").COLLECTS
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen + 5000
