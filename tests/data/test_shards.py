"""pw.data.shards: an order that can be asked for anywhere, and no trust in what a tar holds."""

from __future__ import annotations

import io
import json
import logging
import pickle
import shutil
import tarfile
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from small_shards import write_noise

from pw.data import LabelledClips
from pw.data.shard_index import ShardError, ShardIndex, checksums, find_shards, write_shards
from pw.data.shards import ShardClips, short_side
from pw.io.video import to_float

F, H, W = 5, 30, 40


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def clip(number: int, frames: int = F, height: int = H, width: int = W) -> np.ndarray:
    """Red is the clip's number, green the row, blue the column + 50 x the frame."""
    t, y, x = np.mgrid[:frames, :height, :width]
    return np.stack([np.full_like(t, number), y, x + 50 * t], -1).astype(np.uint8)


def make(
    folder: Path, split: str, numbers: range, shard_bytes: int = 100_000, captions: int = 1
) -> list[tuple[Path, int]]:
    """Clips with so many captions each: `clip 3`, `clip 3, 1`, …"""
    samples = []
    for n in numbers:
        texts = [f"clip {n}", *(f"clip {n}, {i}" for i in range(1, captions))][:captions]
        sample = {"__key__": f"clip-{n:03d}", "npy": npy(clip(n)), "json": b"{}"}
        sample |= {"json": json.dumps({"captions": texts}).encode()} if captions > 1 else {}
        samples.append(sample | ({"txt": texts[0].encode()} if captions else {}))
    return write_shards(folder, split, samples, shard_bytes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve train and six val clips, without a manifest."""
    make(tmp_path, "train", range(12))
    make(tmp_path, "val", range(100, 106))
    return tmp_path


@pytest.fixture
def clips(folder: Path) -> ShardClips:
    return ShardClips(f"{folder}/*.tar", frames=3, size=24)


def with_manifest(folder: Path) -> Path:
    shards = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            samples = len(tar.getnames()) // 3
        shards.append({"file": path.name, "bytes": path.stat().st_size, "samples": samples, "sha256": path.name})
    (folder / "manifest.json").write_text(json.dumps({"shards": shards}))
    return folder


def tar_of(path: Path, members: list[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, "/etc/passwd"
            tar.addfile(member, io.BytesIO(content))
    return path


def crops(batch: torch.Tensor | LabelledClips) -> torch.Tensor:
    return batch if isinstance(batch, torch.Tensor) else batch.pixels


def numbers(batch: torch.Tensor | LabelledClips) -> list[int]:
    """The clips that a batch is made of."""
    return ((crops(batch)[:, 0, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def pixels(video: torch.Tensor) -> set[tuple[int, ...]]:
    """All (clip, row, column + 50 x frame) in a crop."""
    return set(map(tuple, ((video + 1) * 127.5).round().int().flatten(1).T.tolist()))


def test_every_clip_is_read_back_with_its_caption(folder: Path) -> None:
    index = ShardIndex(str(folder / "*.tar"), "train")
    assert len({sample.shard for sample in index.samples}) > 1
    assert [index.read(i).key for i in range(len(index))] == [f"clip-{n:03d}" for n in range(12)]
    for i in range(12):
        assert np.array_equal(index.read(i).frames, clip(i))
        assert index.read(i).caption == f"clip {i}"


def test_folder_pattern_braces_and_list_give_the_same(folder: Path) -> None:
    with_manifest(folder)
    tars = [str(path) for path in folder.glob("*.tar")]
    forms = [str(folder), f"{folder}/*.tar", f"{folder}/{{val,train}}-*.tar", tars]
    assert len({ShardIndex(form, "train").fingerprint for form in forms}) == 1
    assert {len(ShardIndex(form, "val")) for form in forms} == {6}


def test_a_name_with_signs_of_a_pattern_is_a_name(folder: Path, tmp_path: Path) -> None:
    odd = shutil.copytree(folder, tmp_path / "[a] {b,c} * 日本")
    forms = [[str(path) for path in sorted(odd.glob("*.tar"))], str(next(odd.glob("train-*.tar")))]
    assert [len(ShardIndex(form, "train")) > 0 for form in forms] == [True, True]


@pytest.mark.parametrize(
    "urls",
    ["/x/{0..999999999}.tar", "/x/{0..999}{0..999}", "/x/" + "{a,b}" * 40, "/x/" + "{" * 4000 + "}" * 4000, "/x/{a",
     f"/x/{{0..{'9' * 5000}}}.tar", ["/x/{1..9999999}.tar"], "x" * 5000],
)  # fmt: skip
def test_an_absurd_pattern_is_refused_at_once(urls: str | list[str]) -> None:
    with pytest.raises(ValueError, match=r"^data\.urls=.*(more than 100000 shards|Unbalanced|digits|not there)"):
        find_shards(urls)


def test_a_batch_can_be_asked_for_directly_and_again(clips: ShardClips, folder: Path) -> None:
    in_order = [crops(clips.batch(7, i, 4)) for i in range(9)]
    fresh = ShardClips(f"{folder}/*.tar", frames=3, size=24)
    for i in (8, 0, 5):
        assert torch.equal(crops(fresh.batch(7, i, 4)), in_order[i])
    assert in_order[0].shape == (4, 3, 3, 24, 24)
    assert in_order[0].dtype == torch.float32
    assert -1 <= min(batch.min() for batch in in_order) <= max(batch.max() for batch in in_order) <= 1


def test_the_order_does_not_depend_on_the_batch_size(clips: ShardClips) -> None:
    small, large = [torch.cat([crops(clips.batch(7, i, size)) for i in range(24 // size)]) for size in (4, 6)]
    assert torch.equal(small, large)


def test_an_epoch_has_every_clip_once_and_the_next_another_order(clips: ShardClips) -> None:
    epochs = [numbers(clips.batch(0, epoch, 12)) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert numbers(clips.batch(0, 1, 8)) == epochs[0][8:] + epochs[1][:4]


def test_another_seed_gives_another_order_and_other_crops(clips: ShardClips) -> None:
    assert numbers(clips.batch(0, 0, 12)) != numbers(clips.batch(1, 0, 12))
    videos = torch.cat([crops(clips.batch(seed, 0, 12)) for seed in range(4)])
    assert len({video.numpy().tobytes() for video in videos}) == 48


def test_crops_are_consecutive_frames_of_one_place_sometimes_mirrored(clips: ShardClips) -> None:
    mirrored, starts = 0, set()
    for video in crops(clips.batch(3, 0, 48)):
        values = sorted(pixels(video))
        number, top, corner = values[0]
        start, left = divmod(corner, 50)
        expected = clip(number)[start : start + 3, top : top + 24, left : left + 24]
        flipped = bool(video[2, 0, 0, 0] > video[2, 0, 0, 1])
        levels = ((video + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
        assert np.array_equal(levels, expected[:, :, ::-1] if flipped else expected)
        mirrored += flipped
        starts.add(start)
    assert 12 <= mirrored <= 36
    assert starts == {0, 1, 2}


def test_crops_may_be_wider_than_high(folder: Path) -> None:
    wide = ShardClips(f"{folder}/*.tar", frames=3, size=18, width=32)
    batch, evaluation = crops(wide.batch(0, 0, 6)), wide.evaluation(3, 0)
    assert batch.shape == (6, 3, 3, 18, 32)
    for crop in (*batch, *evaluation.real, *evaluation.real_b):
        assert crop.shape == (3, 3, 18, 32)
        _, rows, columns = ((crop + 1) * 127.5).round().int()
        assert (rows.diff(dim=1) == 1).all()
        assert (columns.diff(dim=2).abs() == 1).all()
    square = ShardClips(f"{folder}/*.tar", frames=3, size=18, width=18)
    implicit = ShardClips(f"{folder}/*.tar", frames=3, size=18)
    assert torch.equal(crops(square.batch(0, 0, 4)), crops(implicit.batch(0, 0, 4)))
    assert square.fingerprint() == ShardClips(f"{folder}/*.tar", frames=3, size=18).fingerprint()
    assert square.fingerprint() != wide.fingerprint()
    with pytest.raises(ValueError, match=r"18x41 px, the largest has 5 of 30x40: lower .*scale\.width"):
        ShardClips(f"{folder}/*.tar", frames=3, size=18, width=41)


def test_the_two_evaluation_sets_share_no_clip_and_none_of_train(clips: ShardClips) -> None:
    evaluation = clips.evaluation(3, seed=0)
    first, second = (torch.stack(list(clips)) for clips in (evaluation.real, evaluation.real_b))
    assert first.shape == second.shape == (3, 3, 3, 24, 24)
    real, real_b = set(numbers(first)), set(numbers(second))
    assert len(real) == len(real_b) == 3
    assert not real & real_b
    assert real | real_b == set(range(100, 106))
    assert "3 crops each, from 3 clips (0 crops overlap" in evaluation.note()
    assert torch.equal(torch.stack(list(clips.evaluation(3, seed=0).real)), first)
    assert not torch.equal(torch.stack(list(clips.evaluation(3, seed=1).real)), first)


def test_with_too_few_clips_evaluation_crops_do_not_overlap_while_there_is_room(folder: Path) -> None:
    clips = ShardClips(f"{folder}/*.tar", frames=3, size=12)
    evaluation = clips.evaluation(18, seed=0)
    assert "(0 crops overlap others)" in evaluation.note()
    crops = [pixels(video) for video in [*evaluation.real, *evaluation.real_b]]
    result = numbers(torch.stack(list(evaluation.real)))
    assert len(set.union(*crops)) == 36 * 3 * 12 * 12
    assert {result.count(number) for number in result} == {6}
    assert "(2 crops overlap others)" in clips.evaluation(20, seed=0).note()


def test_a_single_held_out_clip_serves_both_sets_with_different_crops(tmp_path: Path) -> None:
    make(tmp_path, "train", range(2))
    make(tmp_path, "val", range(100, 101))
    clips = ShardClips(f"{tmp_path}/*.tar", frames=5, size=12)
    evaluation = clips.evaluation(3, seed=0)
    assert "the same single clip in both" in evaluation.note()
    crops = [pixels(video) for video in [*evaluation.real, *evaluation.real_b]]
    assert len(set.union(*crops)) == 6 * 5 * 12 * 12


@pytest.mark.slow
def test_workers_read_what_the_parent_reads(clips: ShardClips) -> None:
    expected = crops(clips.batch(0, 0, 4))
    for method in ("fork", "spawn"):
        with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
            assert torch.equal(torch.from_numpy(pool.submit(_batch, clips).result(timeout=900)), expected)


def _batch(clips: ShardClips) -> np.ndarray:
    return crops(clips.batch(0, 0, 4)).numpy()


def test_the_fingerprint_changes_with_the_clips_and_with_the_crop(folder: Path, tmp_path: Path) -> None:
    clips = ShardClips(f"{folder}/*.tar", 3, 24)
    assert clips.fingerprint() == ShardClips(f"{folder}/*.tar", 3, 24).fingerprint()
    assert clips.fingerprint() != ShardClips(f"{folder}/*.tar", 3, 20).fingerprint()
    make(folder, "train", range(11))
    assert clips.fingerprint() != ShardClips(f"{folder}/*.tar", 3, 24).fingerprint()


def damage(path: Path, key: str) -> None:
    """Overwrite the magic of one array."""
    index = ShardIndex([str(path)], path.name.split("-")[0])
    sample = next(sample for sample in index.samples if sample.key == key)
    with open(sample.shard, "r+b") as file:
        file.seek(sample.members["npy"][0])
        file.write(b"damaged!")


def test_a_corrupt_clip_is_passed_over_by_name_for_the_next_in_order(
    clips: ShardClips, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    order = numbers(clips.batch(0, 0, 12))
    damage(folder / "train-000000.tar", "clip-002")
    again = ShardClips(f"{folder}/*.tar", frames=3, size=24)
    with caplog.at_level(logging.WARNING):
        result = numbers(again.batch(0, 0, 12))
    place = order.index(2)
    assert result == [*order[:place], order[(place + 1) % 12], *order[place + 1 :]]
    assert caplog.text.count("'clip-002'") == 1


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_shard_that_is_damaged_while_it_is_in_use_is_passed_over_clip_by_clip(folder: Path, is_deleted: bool) -> None:
    """Damage that is there before a run refuses to plan it, see below."""
    clips = ShardClips(f"{folder}/*.tar", frames=3, size=24)
    index = ShardIndex(f"{folder}/*.tar", "train")
    shard = folder / "train-000001.tar"
    damaged = [sample for sample in index.samples if sample.shard == shard]
    assert 1 < len(damaged) < 11
    if is_deleted:
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[: damaged[0].members["npy"][0] + 100])
    result = set(numbers(clips.batch(0, 0, 12)))
    assert result == {int(sample.key[-3:]) for sample in index.samples} - {int(sample.key[-3:]) for sample in damaged}
    assert clips.passed_over() == [f"train-000001.tar/{sample.key}" for sample in damaged]


def checked(folder: Path, split: str = "train") -> Path:
    """Twelve clips with their checksums, as ingest writes them."""
    members = [{"npy": npy(clip(n)), "txt": f"clip {n}".encode()} for n in range(12)]
    samples = [
        {"__key__": f"clip-{n:03d}", "json": json.dumps({"crc32": checksums(parts)}).encode(), **parts}
        for n, parts in enumerate(members)
    ]
    (path, _), *_ = write_shards(folder, split, samples, 10**9)
    return path


def flip(path: Path, offset: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("ending", ["npy", "txt"])
def test_a_single_flipped_bit_is_found(tmp_path: Path, ending: str) -> None:
    path = checked(tmp_path)
    index = ShardIndex([str(path)], "train")
    offset, size = index.samples[7].members[ending]
    generator = np.random.default_rng(0)
    for place in {*generator.integers(offset, offset + size, 20).tolist(), offset + size - 1}:
        flip(path, place, bit := int(generator.integers(8)))
        with pytest.raises(ShardError, match=r"train-000000\.tar: cannot read 'clip-007'"):
            index.read(7)
        flip(path, place, bit)
    assert np.array_equal(index.read(7).frames, clip(7))


def test_a_clip_whose_pixels_are_not_what_was_written_is_passed_over_by_name(tmp_path: Path) -> None:
    path = checked(tmp_path)
    checked(tmp_path, "val")
    clips = ShardClips(f"{tmp_path}/*.tar", frames=3, size=24)
    offset, size = ShardIndex([str(path)], "train").samples[7].members["npy"]
    flip(path, offset + size // 2, 3)
    assert set(numbers(clips.batch(0, 0, 12))) == set(range(12)) - {7}
    assert clips.passed_over() == ["train-000000.tar/clip-007"]
    with pytest.raises(ShardError, match=r"its \.npy does not match its checksum"):
        ShardIndex([str(path)], "train").read(7)


def test_shards_without_checksums_are_read_as_they_are(folder: Path) -> None:
    path = folder / "train-000000.tar"
    offset, size = ShardIndex([str(path)], "train").samples[2].members["npy"]
    flip(path, offset + size - 1, 0)
    assert ShardIndex([str(path)], "train").read(2).frames[-1, -1, -1, -1] == clip(2)[-1, -1, -1, -1] ^ 1
    assert ShardIndex(f"{folder}/*.tar", "train").fingerprint == "e69b5c6b496024cc"


def test_arrays_of_any_order_and_no_other_content_are_read(tmp_path: Path) -> None:
    frames = clip(3)
    path = tar_of(tmp_path / "train-0.tar", [("a.npy", npy(np.asfortranarray(frames)))])
    assert np.array_equal(ShardIndex([str(path)], "train").read(0).frames, frames)
    for array in (
        npy(frames) + b"x",
        npy(frames)[:-1],
        npy(frames.astype(np.int8)),
        npy(frames[..., :2]),
        npy(frames[0]),
    ):
        path = tar_of(tmp_path / "train-0.tar", [("a.npy", array)])
        with pytest.raises(ShardError, match="cannot read 'a'"):
            ShardIndex([str(path)], "train").read(0)


def test_too_many_corrupt_clips_are_an_error(folder: Path) -> None:
    for number in range(12):
        path = next(p for p, n in _shards_with(folder) if f"clip-{number:03d}" in n)
        damage(path, f"clip-{number:03d}")
    with pytest.raises(ShardError, match=r"11 of 12 clips unreadable.*overwrite=true"):
        ShardClips(f"{folder}/*.tar", frames=3, size=24).batch(0, 0, 12)


def _shards_with(folder: Path) -> list[tuple[Path, set[str]]]:
    return [
        (path, {sample.key for sample in ShardIndex([str(path)], "train").samples})
        for path in sorted(folder.glob("train-*.tar"))
    ]


def test_corrupt_held_out_clips_do_not_hang_the_evaluation(folder: Path) -> None:
    for number in (100, 102, 104):
        damage(next(folder.glob("val-000000.tar")), f"clip-{number}")
    with pytest.raises(ShardError, match="none of 3 clips to evaluate on"):
        ShardClips(f"{folder}/*.tar", frames=3, size=24).evaluation(3, 0).note()


def test_an_evaluation_clip_is_the_same_in_whichever_order_clips_are_asked_for(folder: Path) -> None:
    damage(next(folder.glob("val-000000.tar")), "clip-102")
    clips = ShardClips(f"{folder}/*.tar", frames=3, size=24)
    in_turn, backwards = clips.evaluation(5, seed=0), clips.evaluation(5, seed=0)
    assert "; unreadable: val-000000.tar/clip-102" in in_turn.note()
    for first, second in ((in_turn.real, backwards.real), (in_turn.real_b, backwards.real_b)):
        expected = list(first)
        for i in reversed(range(5)):
            assert torch.equal(second[i], expected[i])
            assert np.array_equal(to_float(second.frames(i)), expected[i])
        with pytest.raises(IndexError, match="clip 5 of 5"):
            second[5]


def test_memory_of_the_evaluation_does_not_grow_with_its_clips(tmp_path: Path) -> None:
    write_noise(tmp_path, 1, 24, side=64)
    clip = 4 * 64 * 64 * 3
    evaluation = ShardClips(f"{tmp_path}/*.tar", frames=4, size=64).evaluation(12, seed=0)
    tracemalloc.start()
    for i in range(12):
        evaluation.real.frames(i), evaluation.real_b.frames(i)
    evaluation.note()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * clip  # measured 3.2: as it is read, and as an array


def test_an_evaluation_clip_that_is_gone_since_it_was_found_is_an_error_by_name(folder: Path) -> None:
    evaluation = ShardClips(f"{folder}/*.tar", frames=3, size=24).evaluation(3, seed=0)
    evaluation.note()
    (folder / "val-000000.tar").unlink()
    with pytest.raises(ShardError, match=r"val-000000\.tar/clip-10\d: was readable before, and no longer is"):
        list(evaluation.real)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, ("/tmp/pw-unpickled", "w"))


def test_pickled_arrays_are_refused_unread(tmp_path: Path) -> None:
    tar_of(tmp_path / "train-0.tar", [("a.npy", npy(np.array([Evil()], dtype=object)))])
    with pytest.raises(ShardError, match=r"train-0\.tar.*pickled objects"):
        ShardIndex(str(tmp_path / "*.tar"), "train")
    disguised = tar_of(tmp_path / "train-0.tar", [("a.npy", pickle.dumps(Evil()))])
    with pytest.raises(ShardError, match="cannot read 'a'"):
        ShardIndex([str(disguised)], "train").read(0)
    assert not Path("/tmp/pw-unpickled").exists()


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("../a.npy", tarfile.REGTYPE, "outside"),
        ("b/../../a.npy", tarfile.REGTYPE, "outside"),
        ("/a.npy", tarfile.REGTYPE, "outside"),
        ("a.npy", tarfile.SYMTYPE, "link"),
        ("a.npy", tarfile.LNKTYPE, "link"),
        ("a.npy", tarfile.FIFOTYPE, "device"),
        ("a.pyd", tarfile.REGTYPE, "does not end in"),
        ("a.npy.gz", tarfile.REGTYPE, "does not end in"),
        ("a", tarfile.REGTYPE, "does not end in"),
    ],
)
def test_members_that_should_not_be_there_are_refused(tmp_path: Path, name: str, kind: bytes, says: str) -> None:
    shard = tar_of(tmp_path / "train-0.tar", [(name, b"")], kind)
    with pytest.raises(ShardError, match=rf"train-0\.tar.*{says}"):
        ShardIndex([str(shard)], "train")


def test_duplicates_are_refused(tmp_path: Path) -> None:
    array = npy(clip(0))
    with pytest.raises(ShardError, match="occurs twice"):
        ShardIndex([str(tar_of(tmp_path / "train-0.tar", [("a.npy", array), ("a.npy", array)]))], "train")
    for name in ("train-0.tar", "train-1.tar"):
        tar_of(tmp_path / name, [("a.npy", array)])
    with pytest.raises(ShardError, match=r"train-1\.tar: key 'a' is already in .*train-0\.tar"):
        ShardIndex(str(tmp_path / "*.tar"), "train")


def test_a_sample_without_frames_is_refused(tmp_path: Path) -> None:
    shard = tar_of(tmp_path / "train-0.tar", [("a.npy", npy(clip(0))), ("b.json", b"{}")])
    with pytest.raises(ShardError, match=r"train-0\.tar: sample 'b' has no \.npy.*copy it again"):
        ShardIndex([str(shard)], "train")


def test_a_tar_truncated_anywhere_is_refused(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "train-000000.tar").read_bytes()
    boundary = ShardIndex([str(folder / "train-000000.tar")], "train").samples[1].members["json"][0] - 512
    for size in (0, 100, 512, 700, boundary, boundary + 100, len(whole) // 2, len(whole) - 12_000):
        (tmp_path / "train-9.tar").write_bytes(whole[:size])
        with pytest.raises(ShardError, match=r"train-9\.tar"):
            ShardIndex([str(tmp_path / "train-9.tar")], "train")


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train-0.tar").write_bytes(b"garbage" * 1000)
    with pytest.raises(ShardError, match=r"train-0\.tar: not a complete, uncompressed tar"):
        ShardIndex(str(tmp_path / "*.tar"), "train")


def test_what_does_not_fit_the_manifest_is_refused(folder: Path) -> None:
    with_manifest(folder)
    path = folder / "train-000001.tar"
    manifest = json.loads((folder / "manifest.json").read_text())
    content = path.read_bytes()
    path.write_bytes(content + bytes(512))
    with pytest.raises(ShardError, match=r"train-000001\.tar: \d+ bytes, but manifest\.json says"):
        ShardIndex(str(folder), "train")
    path.write_bytes(content)
    manifest["shards"][1]["samples"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match=r"samples, but manifest\.json says"):
        ShardIndex(str(folder), "train")
    manifest["shards"][1] |= {"samples": manifest["shards"][1]["samples"] - 1, "keys": "of other clips"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match=r"train-000001\.tar: has other clips than manifest\.json says"):
        ShardIndex(str(folder), "train")
    path.unlink()
    with pytest.raises(ShardError, match=r"train-000001\.tar: listed in manifest\.json, but not there"):
        ShardIndex(str(folder), "train")
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ShardError, match="not a manifest"):
        ShardIndex(str(folder), "train")


@pytest.mark.parametrize(
    ("urls", "says"),
    [
        ("", "data.urls is not set"),
        ("pipe:touch /tmp/x", "only local files"),
        ("https://example.org/train-0.tar", "only local files"),
        ("{folder}", r"no manifest\.json"),
        ("{folder}/none-*.tar", "not there; run `make data"),
        ("{folder}/val-*.tar", r"named train-\*\.tar"),
    ],
)
def test_a_wrong_place_gets_one_clear_line(folder: Path, urls: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ShardClips(urls.replace("{folder}", str(folder)), frames=3, size=24)


@pytest.mark.parametrize(("frames", "size", "says"), [(6, 24, "5 of 30x40"), (3, 31, "31x31"), (0, 24, "frames")])
def test_a_crop_larger_than_every_clip_is_refused(folder: Path, frames: int, size: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ShardClips(f"{folder}/*.tar", frames=frames, size=size)


@pytest.mark.parametrize(
    ("size", "side"), [((448, 832), 468), ((2144, 3840), 2160), ((1440, 2560), 1440), ((96, 80), 80)]
)
def test_the_short_side_that_is_advised_covers_the_crop_with_clips_of_16_to_9(size: tuple[int, int], side: int) -> None:
    assert short_side(*size) == side
    clip_size = (side, round(side * 16 / 9))
    assert all(have >= need for have, need in zip(clip_size, sorted(size), strict=True))


def test_clips_smaller_than_the_crop_are_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tar_of(folder / "train-9.tar", [("small.npy", npy(clip(50, height=20)))])
    clips = ShardClips(f"{folder}/*.tar", frames=3, size=24)
    assert sorted(numbers(clips.batch(0, 0, 12))) == list(range(12))
    assert "1 of 13 train clips are smaller" in caplog.text


def test_shards_are_written_and_read_under_wds_secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from webdataset import utils

    monkeypatch.setattr(utils, "enforce_security", True)
    make(tmp_path, "train", range(2))
    assert len(ShardIndex(f"{tmp_path}/*.tar", "train")) == 2


def captions_of(clips: ShardClips, seed: int, index: int, size: int) -> list[str]:
    batch = clips.batch(seed, index, size)
    assert isinstance(batch, LabelledClips)
    return [clips.captions[label] for label in batch.label]


class TestCaptions:
    def test_of_a_batch_are_those_of_its_clips(self, clips: ShardClips) -> None:
        assert clips.captions == ("", *sorted(f"clip {n}" for n in (*range(12), *range(100, 106))))
        batch = clips.batch(7, 1, 8)
        assert captions_of(clips, 7, 1, 8) == [f"clip {n}" for n in numbers(batch)]

    def test_change_no_crop(self, clips: ShardClips, tmp_path: Path) -> None:
        for captions in (0, 3):
            folder = tmp_path / str(captions)
            folder.mkdir()
            make(folder, "train", range(12), captions=captions)
            make(folder, "val", range(100, 106))
            other = ShardClips(f"{folder}/*.tar", frames=3, size=24).batch(7, 2, 10)
            assert isinstance(other, LabelledClips) == (captions > 0)
            assert torch.equal(crops(other), crops(clips.batch(7, 2, 10)))

    def test_are_drawn_evenly_by_seed_and_position_where_a_clip_has_several(self, folder: Path) -> None:
        make(folder, "train", range(12), captions=3)
        clips, fresh = (ShardClips(f"{folder}/*.tar", frames=3, size=24) for _ in range(2))
        drawn = [text for index in range(30) for text in captions_of(clips, 5, index, 12)]  # 360 = 30 epochs
        resumed = [text for index in range(20, 40) for text in captions_of(fresh, 5, index, 9)]
        assert resumed == drawn[180:]
        for n in range(12):
            counts = [drawn.count(text) for text in (f"clip {n}", f"clip {n}, 1", f"clip {n}, 2")]
            assert sum(counts) == 30
            # 10 each on average, with a standard deviation of sqrt(30 * 1/3 * 2/3) = 2.6
            assert min(counts) >= 1
        totals = [sum(text.endswith(end) for text in drawn) for end in (", 1", ", 2")]
        assert all(abs(total - 120) < 36 for total in totals)  # four standard deviations, sqrt(360 * 2/9) = 9
        assert [text for index in range(30) for text in captions_of(clips, 6, index, 12)] != drawn

    def test_of_clips_without_are_the_empty_prompt(self, tmp_path: Path) -> None:
        make(tmp_path, "train", range(6))
        (tmp_path / "train-000000.tar").rename(tmp_path / "train-000009.tar")
        make(tmp_path, "train", range(6, 12), captions=0)
        make(tmp_path, "val", range(100, 106), captions=0)
        clips = ShardClips(f"{tmp_path}/*.tar", frames=3, size=24)
        expected = {f"clip {n}" if n < 6 else "" for n in numbers(clips.batch(0, 0, 12))}
        assert set(captions_of(clips, 0, 0, 12)) == expected

    def test_of_an_evaluation_are_those_of_its_clips(self, clips: ShardClips, tmp_path: Path) -> None:
        evaluation = clips.evaluation(5, seed=0)
        assert evaluation.captions() == tuple(f"clip {n}" for n in numbers(torch.stack([*evaluation.real])))
        make(tmp_path, "train", range(12))
        make(tmp_path, "val", range(100, 106), captions=0)
        assert ShardClips(f"{tmp_path}/*.tar", frames=3, size=24).evaluation(5, seed=0).captions() == ()

    def test_in_a_damaged_member_are_those_of_a_clip_that_is_passed_over(self, folder: Path) -> None:
        sample = next(s for s in ShardIndex(f"{folder}/*.tar", "train").samples if s.key == "clip-003")
        with sample.shard.open("r+b") as file:
            file.seek(sample.members["json"][0])
            file.write(b"?")
        clips = ShardClips(f"{folder}/*.tar", frames=3, size=24)
        assert "clip 3" not in clips.captions
        assert set(numbers(clips.batch(0, 0, 12))) == set(range(12)) - {3}
