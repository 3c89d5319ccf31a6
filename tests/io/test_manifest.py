"""A mark answers for itself, for its folder and for its files; what differs is named with what would do."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pw.io import manifest
from pw.io.files import digest, sha256, write_json
from pw.io.manifest import DamagedResult, check, checksum, listed_names, make_folder, read_mark, whole, write_mark

VALUES = {"signature": "1a2b3c4d", "seconds": 12.5, "names": ["é"], "none": None}


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The mark of a folder of three files, one in a folder of its own."""
    folder = tmp_path / "videos" / "1a2b3c4d"
    (folder / "native").mkdir(parents=True)
    for name in ("0000.mkv", "0001.mkv", "native/0000.mkv"):
        (folder / name).write_bytes(name.encode() * 100)
    write_mark(folder / "done.json", VALUES, folder.rglob("*.mkv"))
    return folder / "done.json"


def test_a_mark_says_what_it_was_given_and_has_its_files_as_anybody_would_hash_them(mark: Path) -> None:
    content = check(mark)
    assert content.items() >= VALUES.items()
    files = {str(path.relative_to(mark.parent)): path for path in mark.parent.rglob("*.mkv")}
    assert {name: entry["sha256"] for name, entry in content["files"].items()} == {
        name: sha256(path) for name, path in files.items()
    }


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.unlink(), "0001.mkv: is gone"),
        (lambda path: path.write_bytes(b""), "0001.mkv: has 0 bytes, 800 were written"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "0001.mkv: has 799 bytes, 800 were written"),
        (lambda path: path.write_bytes(b"1" + path.read_bytes()[1:]), "0001.mkv: has another content than was written"),
        (lambda path: shutil.copy(path.with_name("0000.mkv"), path), "0001.mkv: has another content than was written"),
        (lambda path: path.unlink() or path.mkdir(), "0001.mkv: is no file"),
        (lambda path: shutil.rmtree(path.with_name("native")), "native/0000.mkv: is gone"),
    ],
)
def test_a_file_that_differs_is_named_with_what_is_wrong(
    damage: Callable[[Path], object], reason: str, mark: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(mark.with_name("0001.mkv"))
    with pytest.raises(DamagedResult, match=rf"^{mark.parent}/{reason}; `make sample` and `make ablation` make it"):
        check(mark)
    assert check(mark, ["0000.mkv"])
    assert whole(mark) is whole(mark) is None
    assert [record.message.count(reason) for record in caplog.records] == [1]  # it is said once


@pytest.mark.parametrize("digits", ["12.25", "NaN", "Infinity", "1e308", "null", "true", '"12.5"', "[[]]"])
def test_a_value_that_was_changed_in_a_mark_is_seen(digits: str, mark: Path) -> None:
    mark.write_text(mark.read_text().replace("12.5", digits, 1))
    with pytest.raises(DamagedResult, match=r"done\.json: is not as it was written, its checksum differs"):
        read_mark(mark)


def test_any_flipped_bit_of_a_mark_is_seen(mark: Path) -> None:
    content, undamaged = mark.read_bytes(), read_mark(mark)
    for bit in range(0, 8 * len(content), 13):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        mark.write_bytes(damaged)
        try:
            assert read_mark(mark) == undamaged  # in the space between two values
        except DamagedResult:
            continue


def test_a_training_from_before_checksums_is_taken_as_it_is_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in ("train", "videos"):
        write_json(tmp_path / kind / "5a6b7c8d" / "done.json", {"signature": "5a6b7c8d"})
    content = read_mark(tmp_path / "train" / "5a6b7c8d" / "done.json")
    assert content == {"signature": "5a6b7c8d", "folder": "5a6b7c8d", "files": {}}
    assert "without checksums" in caplog.text
    with pytest.raises(DamagedResult, match="has no checksum"):
        read_mark(tmp_path / "videos" / "5a6b7c8d" / "done.json")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is truncated"),
        ("[" * 100_000, "is truncated, as after a crash, or not JSON"),
        ("[1]", "is truncated, as after a crash, or not JSON"),
        ('{"signature": "ffffffff"}', "has no checksum: an earlier version of the suite, or another program, wrote it"),
        ('{"a": ' + "[" * 900 + "]" * 900 + ', "checksum": 3}', "is not as it was written"),
    ],
)
def test_what_is_no_mark_is_named(text: str, reason: str, mark: Path) -> None:
    mark.write_text(text)
    with pytest.raises(DamagedResult, match=re.escape(f"{mark}: {reason}")):
        read_mark(mark)
    write_json(mark, {**VALUES, "folder": "1a2b3c4d", "checksum": digest({**VALUES, "folder": "1a2b3c4d"}, 64)})
    with pytest.raises(DamagedResult, match="is not as it was written"):
        read_mark(mark)
    mark.unlink()
    mark.mkdir()
    with pytest.raises(DamagedResult, match=r"done\.json: cannot be read \(Is a directory\)"):
        read_mark(mark)
    write_mark(mark, VALUES, [])
    assert read_mark(mark)["signature"] == "1a2b3c4d"


def test_a_folder_of_results_under_another_name_is_refused_and_a_copy_elsewhere_is_not(
    mark: Path, tmp_path: Path
) -> None:
    moved = mark.parent.rename(mark.parent.with_name("9f8e7d6c"))
    with pytest.raises(DamagedResult, match=r"done\.json: is of 1a2b3c4d, not of 9f8e7d6c"):
        check(moved / "done.json")
    assert check(Path(shutil.copytree(moved, tmp_path / "mine")) / "done.json")


def test_a_large_file_is_hashed_only_by_who_reads_it(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mark.with_name("0000.mkv")
    path.write_bytes(b"1" + path.read_bytes()[1:])
    monkeypatch.setattr(manifest, "LARGE", 800)
    assert check(mark)
    with pytest.raises(DamagedResult, match="another content"):
        check(mark, thorough=True)


def test_a_hash_is_kept_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    monkeypatch.setattr(manifest, "SETTLED", -1e9)  # as if it had been there for long
    first = checksum(path)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "sha256", lambda path: "computed again")
        assert checksum(path) == first == sha256(path)
        os.utime(path, (1, 1))
        assert checksum(path) == "computed again"


def test_what_lies_in_a_folder_of_clips_without_being_of_it_is_not_listed(mark: Path, tmp_path: Path) -> None:
    mark.with_name("0002.mkv").write_bytes(b"another's")
    assert listed_names(mark.parent) == {"0000.mkv", "0001.mkv"}
    assert listed_names(mark.parent / "native") == {"0000.mkv"}
    assert listed_names(tmp_path) is None
    mark.with_name("0001.mkv").unlink()
    assert listed_names(mark.parent / "native") == {"0000.mkv"}
    with pytest.raises(DamagedResult, match=r"0001\.mkv: is gone"):
        listed_names(mark.parent)
    assert json.loads(mark.read_text())["checksum"]


def test_what_is_no_folder_or_another_results_gives_way_and_a_training_is_refused(tmp_path: Path) -> None:
    other, folder = tmp_path / "videos" / "other", tmp_path / "videos" / "one"
    other.mkdir(parents=True)
    (other / "0000.mkv").write_bytes(b"clip")
    for target in (other, tmp_path / "nothing", folder, None):
        folder.write_bytes(b"") if target is None else folder.symlink_to(target)
        make_folder(folder)
        assert folder.is_dir()
        assert not folder.is_symlink()
        folder.rmdir()
    assert (other / "0000.mkv").read_bytes() == b"clip"
    (folder / ".lock").mkdir(parents=True)
    make_folder(folder)
    assert not list(folder.iterdir())
    training = tmp_path / "train" / "one"
    training.parent.mkdir()
    training.write_bytes(b"kept")
    with pytest.raises(DamagedResult, match=r"train/one: is no folder.*remove .* to train again"):
        make_folder(training)
    assert training.read_bytes() == b"kept"


def test_a_result_on_another_disk_stays_there(tmp_path: Path) -> None:
    (tmp_path / "disk" / "one").mkdir(parents=True)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "one").symlink_to(tmp_path / "disk" / "one")
    make_folder(tmp_path / "videos" / "one")
    assert (tmp_path / "videos" / "one").is_symlink()


def test_a_mark_that_is_a_pipe_or_of_no_folder_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "videos" / "one" / "done.json"
    path.parent.mkdir(parents=True)
    content = {"files": {}}
    path.write_text(json.dumps({**content, "checksum": digest(content, 64)}))
    with pytest.raises(DamagedResult, match=r"done\.json"):
        read_mark(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedResult, match=r"done\.json"):
        read_mark(path)
