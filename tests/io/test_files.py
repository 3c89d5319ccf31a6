"""pw.io.files: a reader sees the old file or the whole new one, and a disk too small is noticed before."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pw.data.shard_index import ShardError, find_shards
from pw.io.arguments import ConfigError
from pw.io.files import (
    check_space,
    check_writable,
    human_size,
    os_reason,
    parse_json,
    read_csv,
    read_json,
    replacing,
    writable_file,
    write_csv,
    write_json,
    write_tensors,
)
from pw.io.prompts import prompt_entries


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2}, durable=True)
    assert read_json(path) == {"a": 2}
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_a_device_or_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with pytest.raises(OSError, match="is a device or pipe, expected a file"):
        write_json(link, {"a": 1})
    with pytest.raises(ValueError, match=r"^is a device or pipe, expected a file"):
        writable_file("out")(str(link))
    assert link.is_symlink()
    assert pipe.is_fifo()


def test_an_output_file_that_is_a_link_is_the_file_it_names(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real.json")
    assert writable_file("out")(str(tmp_path / "link")) == tmp_path / "real.json"


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def write_half() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_gets_its_name_when_all_of_it_is_there(tmp_path: Path) -> None:
    with replacing(tmp_path / "made") as partial:
        partial.mkdir()
        (partial / "part").touch()
        assert not (tmp_path / "made").exists()
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["part"]


def test_tensors_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"x": torch.arange(3.0)}, {"format": "pt"})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["x"], torch.arange(3.0))


def test_a_disk_too_small_is_told_by_key_for_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert check_space("out", tmp_path / "not" / "there", 1, "") > 1
    with pytest.raises(ConfigError, match=r"out=.*there: needs 1000\.0 TB for clips, .* are free there; take another"):
        check_space("out", tmp_path / "not" / "there", 1e15, "take another", "for clips")
    assert not (tmp_path / "not").exists()


def test_sizes_are_told_in_a_unit_that_fits() -> None:
    assert [human_size(count) for count in (0, 4900, 25_200_000, 12.34e9)] == ["0.0 kB", "4.9 kB", "25.2 MB", "12.3 GB"]


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_another_writes_is_not(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    pids = (process.pid, process.pid + 4_000_000, os.getppid())
    stale, fresh, running = (tmp_path / f".a.{pid}.part" for pid in pids)
    for path in (stale, fresh, running):
        path.touch()
    for path in (stale, running):
        os.utime(path, (0, 0))
    write_json(tmp_path / "a", {})
    assert (stale.exists(), fresh.exists(), running.exists()) == (False, True, True)


DEEP = "[" * 200_000


def test_deeply_nested_json_is_an_error_like_any_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP)
    (tmp_path / "a.json").write_text(DEEP)
    assert read_json(tmp_path / "a.json") is None
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"text": "a heron"}\n' + '{"text":' * 100_000)
    with pytest.raises(ConfigError, match=r"p\.jsonl: line 2 is not .*nested too deeply"):
        prompt_entries(prompts, "text", '{"text": "…"}')
    (tmp_path / "manifest.json").write_text(DEEP)
    with pytest.raises(ShardError, match=r"manifest\.json: not a manifest \(nested too deeply\)"):
        find_shards(tmp_path)


@pytest.mark.parametrize("name", ["=1+1", "+x", "-2+3", "@SUM(A1)", "\tx", "'=1", "''x", "'", "plain", "", "-clip.mp4"])
def test_a_name_is_no_formula_in_a_spreadsheet_and_is_read_back_as_it_was(name: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ["video", "=x"], [{"video": name, "=x": -1.5}, {"video": "b", "=x": "-1.5"}])
    header, first, second = (tmp_path / "a.csv").read_text().splitlines()
    assert header == "video,'=x"
    assert first.strip('"')[:1] not in set("=+-@\t") or not name
    assert (first.endswith(",-1.5"), second) == (True, "b,-1.5")
    assert read_csv(tmp_path / "a.csv") == (
        ["video", "=x"],
        [{"video": name, "=x": "-1.5"}, {"video": "b", "=x": "-1.5"}],
    )


def test_an_error_of_the_file_system_is_told_in_words() -> None:
    assert os_reason(OSError(errno.ENOSPC, "No space left on device", "/x")) == (
        "/x: the disk is full (No space left on device)"
    )
    assert os_reason(OSError(errno.EROFS, "Read-only file system", "/x")) == (
        "/x: Read-only file system; outputs=, out= and cache= choose another place"
    )
    assert os_reason(OSError("weights: No space left on device (os error 28)")).startswith("the disk is full (weights")
    assert os_reason(FileNotFoundError(errno.ENOENT, "No such file or directory", "/x")) == (
        "/x: No such file or directory"
    )


def test_a_place_that_cannot_be_written_is_named_and_one_that_can_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable("outputs", tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"outputs=.*file/b: cannot be written \(Not a directory\); expected a place"):
        check_writable("outputs", tmp_path / "file" / "b")
