"""pw.prepare.ingest: clips contain no cuts, all are written, and a killed call changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from odd_videos import encode

from pw.cli import main as pw_main
from pw.data.shard_index import ShardIndex, read_member
from pw.io.paths import ROOT
from pw.io.video import Frame, VideoError, decode, write_video
from pw.prepare import ingest as module
from pw.prepare.ingest import ingest, main
from pw.prepare.source_videos import (
    ClipSettings,
    HardCuts,
    VideoRecord,
    assign_splits,
    cut_clips,
    find_videos,
    split_by_origin,
)

CLIPS = Path(__file__).parents[3] / "shared" / "data" / "clips"
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="../shared/data/clips is not here")


def scene(seed: int, frames: int, height: int = 36, width: int = 48) -> np.ndarray:
    """A smooth picture of its own colours, panning one px per frame; the last row counts the frames."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (6, 16, 3)).astype(float)
    enlarged = np.kron(coarse, np.ones((height // 6, 16, 1)))
    video = np.stack([enlarged[:, t % 100 : t % 100 + width] for t in range(frames)]).astype(np.uint8)
    video[:, -1, :, 0] = np.arange(frames)[:, None]
    return video


def frames_of(video: np.ndarray) -> Iterator[Frame]:
    return (Frame(i, i / 24, image) for i, image in enumerate(video))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three videos, one of them in a subfolder, one with a cut at frame 33."""
    videos = tmp_path / "videos"
    (videos / "more").mkdir(parents=True)
    write_video(videos / "a.mkv", np.concatenate([scene(0, 33), scene(1, 40)]))
    write_video(videos / "b.mkv", scene(2, 52))
    write_video(videos / "more" / "c.mkv", scene(3, 30))
    return videos


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.suffix in (".tar", ".json")}


def samples(out: Path) -> list[dict[str, Any]]:
    """The samples as webdataset reads them."""
    import webdataset

    files = [str(path) for path in sorted(out.glob("*.tar"))]
    return list(webdataset.WebDataset(files, shardshuffle=False, empty_check=False).decode())


def test_a_folder_becomes_shards_that_webdataset_reads_as_the_frames_of_the_videos(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    manifest = ingest(folder, out, ClipSettings(short_side=100))
    read = samples(out)
    assert len(read) == manifest["totals"]["train"] + manifest["totals"]["val"] > 0
    for sample in read:
        origin = sample["json"]
        source = [frame.image for frame in decode(folder / origin["source"])]
        assert np.array_equal(sample["npy"], source[origin["start"] : origin["start"] + 5])
    assert {sample["json"]["source"] for sample in read} == {"a.mkv", "b.mkv", "more/c.mkv"}
    assert not (out / module.UNFINISHED).exists()


def test_every_clip_has_the_checksums_of_its_members(folder: Path, tmp_path: Path) -> None:
    (folder / "b.txt").write_text("a bird")
    ingest(folder, tmp_path / "out", ClipSettings())
    index = ShardIndex(str(tmp_path / "out"), "train")
    endings = set()
    for i, sample in enumerate(index.samples):
        members = {ending: read_member(sample.shard, *place) for ending, place in sample.members.items()}
        recorded = json.loads(members.pop("json"))["crc32"]
        assert recorded == {ending: zlib.crc32(content) for ending, content in members.items()}
        assert index.read(i).frames.shape == (5, 36, 48, 3)
        endings.add(tuple(sorted(recorded)))
    assert endings == {("npy",), ("npy", "txt")}


def test_the_manifest_tells_size_and_hash_of_every_shard(folder: Path, tmp_path: Path) -> None:
    import hashlib

    manifest = ingest(folder, tmp_path / "out", ClipSettings(shard_mb=0.05))
    assert len(manifest["shards"]) > 4
    for shard in manifest["shards"]:
        content = (tmp_path / "out" / shard["file"]).read_bytes()
        assert shard["bytes"] == len(content)
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())


def test_no_clip_crosses_a_cut(folder: Path, tmp_path: Path) -> None:
    ingest(folder, tmp_path / "out", ClipSettings(short_side=36))
    starts = [s["json"]["start"] for s in samples(tmp_path / "out") if s["json"]["source"] == "a.mkv"]
    assert 25 in starts
    assert not any(start < 33 < start + 5 for start in starts)
    assert 33 in starts


@pytest.mark.parametrize("first", [1, 2, 17, 40])
def test_the_detector_finds_the_cut_and_nothing_else(first: int) -> None:
    is_cut = HardCuts()
    video = np.concatenate([scene(4, first), scene(5, 30)])
    assert [i for i, image in enumerate(video) if is_cut(image)] == [first]


def test_the_detector_is_not_fooled_by_held_drawings_nor_by_steady_fast_motion() -> None:
    on_threes = np.repeat(scene(6, 20)[::2], 3, axis=0)
    fast_motion = np.stack([np.roll(scene(7, 1)[0], 5 * t, 1) for t in range(30)])
    for video in (on_threes, fast_motion):
        is_cut = HardCuts()
        assert max((i for i, image in enumerate(video) if is_cut(image)), default=0) < 8


@pytest.mark.slow
@needs_clips
def test_the_detector_finds_the_five_cuts_of_a_real_clip_and_every_join_with_another() -> None:
    whole, bunny, doves = (
        [frame.image for frame in decode(CLIPS / f"{name}.mp4", short_side=80)]
        for name in ("bikes", "bigbuckbunny", "dove_002")
    )
    is_cut = HardCuts()
    assert [i for i, image in enumerate(whole) if is_cut(image)] == [30, 76, 137, 187, 242]
    bikes, bunny, doves = ([image[:80, :80] for image in video] for video in (whole, bunny, doves))
    for one, other in ((bunny, doves), (doves, bunny), (bikes[190:240], doves), (bunny, bikes[:30])):
        is_cut = HardCuts()
        assert len(one) in [i for i, image in enumerate([*one, *other]) if is_cut(image)]


@pytest.mark.parametrize(
    ("step", "starts"),
    [(5, [0, 5, 12, 17]), (3, [0, 3, 6, 12, 15, 18]), (8, [0, 12]), (1, [*range(7), *range(12, 20)])],
)
def test_clips_begin_every_step_frames_and_anew_after_a_cut(step: int, starts: list[int]) -> None:
    video = np.arange(24, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)

    def is_cut(image: np.ndarray) -> bool:
        return image[0, 0, 0] in (11, 12)

    clips = list(cut_clips(frames_of(video), 5, step, is_cut))
    assert [clip[0].index for clip in clips] == starts
    assert all([frame.index for frame in clip] == list(range(s, s + 5)) for clip, s in zip(clips, starts, strict=True))


@pytest.mark.parametrize("stride", [5, 2])
def test_train_and_val_share_no_frame(folder: Path, tmp_path: Path, stride: int) -> None:
    ingest(folder, tmp_path / "out", ClipSettings(stride=stride))
    frames: dict[str, set[tuple[str, int]]] = {"train": set(), "val": set()}
    for sample in samples(tmp_path / "out"):
        origin = sample["json"]
        frames[origin["split"]] |= {(origin["source"], origin["start"] + i) for i in range(5)}
    assert frames["train"]
    assert frames["val"]
    assert not frames["train"] & frames["val"]
    for source in ("a.mkv", "b.mkv", "more/c.mkv"):
        last = max(i for name, i in frames["train"] if name == source)
        assert last + 5 < min(i for name, i in frames["val"] if name == source)


def test_from_twenty_videos_on_whole_ones_are_held_out() -> None:
    records = [VideoRecord(f"{i}.mp4", 1, 1, clips=[(0, 4, 0.0), (5, 9, 0.2)]) for i in range(25)]
    rule, splits = assign_splits(records, 0.2)
    assert "whole videos" in rule
    assert sorted(map(tuple, splits)) == [("train", "train")] * 20 + [("val", "val")] * 5
    long = VideoRecord("long.mp4", 1, 1, clips=[(5 * i, 5 * i + 4, i / 5) for i in range(9)])
    rule, splits = assign_splits([*records[:9], long], 0.2)
    assert "each video's clips" in rule
    assert splits[-1] == ["train"] * 6 + ["gap"] + ["val"] * 2
    assert assign_splits(records[:1], 0.2)[1] == [["train", "train"]]


def test_files_of_one_origin_are_on_one_side_and_stay_there_when_more_come() -> None:
    clips = [(0, 4, 0.0), (5, 9, 0.2)]
    records = [VideoRecord(f"{i}.mp4", 1, 1, clips=clips, origin=f"v{i % 60}") for i in range(180)]
    rule, splits = split_by_origin(records, 0.2)
    side = {}
    for record, split in zip(records, splits, strict=True):
        assert split in (["train"] * 2, ["val"] * 2)
        assert side.setdefault(record.origin, split) == split
    val_count = sum(split == ["val"] * 2 for split in side.values())
    assert 6 <= val_count <= 18
    assert rule.startswith(f"{val_count} of 60 source videos are val")
    fewer = [record for record in records if int(record.origin[1:]) < 30]
    assert split_by_origin(fewer, 0.2)[1] == [side[record.origin] for record in fewer]
    assert split_by_origin(records, 0)[1] == [["train"] * 2] * 180


def test_two_origins_are_enough_for_two_sides_and_one_is_split_in_time() -> None:
    for pair in range(20):
        records = [VideoRecord(f"{i}.mp4", 1, 1, clips=[(0, 4, 0.0)], origin=f"{pair} {i}") for i in range(2)]
        for holdout in (0.01, 0.5, 0.9):
            assert sorted(split_by_origin(records, holdout)[1]) == [["train"], ["val"]]
    long = [(5 * i, 5 * i + 4, i / 5) for i in range(9)]
    rule, splits = split_by_origin([VideoRecord("a.mp4", 1, 1, clips=long, origin="v")], 0.2)
    assert rule.startswith("a single source video")
    assert splits == [["train"] * 6 + ["gap"] + ["val"] * 2]


def test_files_of_unknown_origin_count_as_one_each_and_are_counted() -> None:
    records = [VideoRecord(f"{i}.mp4", 1, 1, clips=[(0, 4, 0.0)], origin="v" if i < 3 else "") for i in range(40)]
    rule, splits = split_by_origin(records, 0.5)
    assert "of 38 source videos" in rule
    assert "of 37 files the source is not known" in rule
    assert len({tuple(split) for split in splits[3:]}) == 2


def test_shards_split_by_file_are_not_taken_for_shards_split_by_origin(folder: Path, tmp_path: Path) -> None:
    ingest(folder, tmp_path / "out", ClipSettings())
    origins = {"a.mkv": "v", "b.mkv": "w", "more/c.mkv": "v"}
    with pytest.raises(ValueError, match=r"split_by=file \(now source video\).*overwrite=true"):
        ingest(folder, tmp_path / "out", ClipSettings(), origins=origins)
    manifest = ingest(folder, tmp_path / "out", ClipSettings(), overwrite=True, origins=origins)
    assert manifest["split"] == "1 of 2 source videos are val with all their files, by a hash of their ids"
    assert [source["origin"] for source in manifest["sources"]] == ["v", "w", "v"]
    sides = {(origins[sample["json"]["source"]], sample["json"]["split"]) for sample in samples(tmp_path / "out")}
    assert len(sides) == 2
    assert ingest(folder, tmp_path / "out", ClipSettings(), origins=origins) == manifest


def test_the_peak_of_hdr_is_noted_with_its_clips_and_nothing_of_sdr(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, transfer in (("sdr", 1), ("hdr", 16)):
        with av.open(str(videos / f"{name}.mkv"), "w") as container:
            out: Any = container.add_stream("libx264", rate=24, options={"x264-params": "cll=3000,400"})
            out.height, out.width, out.pix_fmt = 32, 48, "yuv420p10le"
            out.codec_context.color_trc = transfer
            for image in scene(0, 12, 36)[:, :32]:
                container.mux(out.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
            container.mux(out.encode())
    ingest(videos, tmp_path / "out", ClipSettings())
    peaks = {(sample["json"]["source"], sample["json"].get("peak")) for sample in samples(tmp_path / "out")}
    assert peaks == {("sdr.mkv", None), ("hdr.mkv", 3000.0)}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {video["file"]: video["peak"] for video in report["videos"]} == {"sdr.mkv": 0, "hdr.mkv": 3000}


def test_broken_videos_are_skipped_by_name_and_the_others_go_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (folder / "a.mkv").read_bytes()
    (folder / "cut short.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "empty.mp4").touch()
    (folder / "text.webm").write_text("not a video" * 100)
    write_video(folder / "three.mkv", scene(8, 3))
    (folder / "twin.mkv").write_bytes(whole)
    (folder / "._a.mkv").write_bytes(b"made by a Mac")
    ingest(folder, tmp_path / "out", ClipSettings())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    reasons = {video["file"]: video["skipped"] for video in report["videos"] if video["skipped"]}
    assert reasons.keys() == {"cut short.mkv", "empty.mp4", "text.webm", "three.mkv", "twin.mkv"}
    for name, message in (
        ("cut short.mkv", "truncated"),
        ("empty.mp4", "empty"),
        ("text.webm", "not a video"),
        ("three.mkv", "3 frames"),
        ("twin.mkv", "the same file as a.mkv"),
    ):
        assert message in reasons[name]
    output = capsys.readouterr().out
    assert "skipped 5" in output
    assert all(name in output for name in reasons)
    assert {s["json"]["source"] for s in samples(tmp_path / "out")} == {"a.mkv", "b.mkv", "more/c.mkv"}
    assert not list((tmp_path / "out").glob("**/*.part"))


def test_a_pipe_and_a_link_to_nothing_are_left_out_by_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "gone.mp4").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "link.mp4").symlink_to(folder / "b.mkv")
    assert sorted(find_videos(folder)[0]) == ["a.mkv", "b.mkv", "link.mp4", "more/c.mkv"]
    output = capsys.readouterr().out
    assert "gone.mp4" in output
    assert "pipe.mp4" in output


def test_every_kind_of_video_is_read_and_nothing_else_is_passed_over_in_silence(folder: Path, tmp_path: Path) -> None:
    encode(folder / "old.avi", scene(4, 12, 36), pts=[0, 1, 2, *range(4, 13)], codec_name="mpeg4")
    encode(folder / "phone.m4v", scene(5, 12, 36))
    encode(folder / "日本.mov", scene(6, 12, 36))
    for name in ("tape.wmv", "more/disc.MPG", "notes.txt", ".hidden.wmv"):
        (folder / name).touch()
    (folder / os.fsdecode(b"latin\xe9.mp4")).write_bytes((folder / "phone.m4v").read_bytes())
    (folder / "esc\x1b[2J.mkv").write_bytes(b"no video")
    (folder / "0\x1b[2J.mkv").write_bytes((folder / "a.mkv").read_bytes())  # a reason names it, too
    (folder / "link").symlink_to(folder / "more")
    words = [sys.executable, "-m", "pw", "data", f"path={folder}", f"out={tmp_path / 'out'}"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    process = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, timeout=900, check=True)
    lines = process.stdout.decode("ascii")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["passed_over"]) == {"tape.wmv", "more/disc.MPG", "latin\\udce9.mp4", "link"}
    for text in (
        *report["passed_over"],
        r"\u65e5\u672c.mov",
        r"esc\x1b[2J.mkv",
        "1 of its 13 frames hold the one before",
    ):
        assert text in lines
    assert "\x1b" not in lines
    read = {video["file"] for video in report["videos"] if video["clips"]}
    assert read == {"0\x1b[2J.mkv", "b.mkv", "more/c.mkv", "old.avi", "phone.m4v", "日本.mov"}
    assert next(video["warning"] for video in report["videos"] if video["file"] == "old.avi").startswith("1 of its 13")


def test_a_claim_of_a_header_leaves_its_file_out_and_no_other(folder: Path, tmp_path: Path) -> None:
    content = (folder / "b.mkv").read_bytes()
    (folder / "claims.mkv").write_bytes(content.replace(b"D\x87\x8252", b"D\x87\x8299"))
    ingest(folder, tmp_path / "out", ClipSettings())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    reasons = {video["file"]: video["skipped"] for video in report["videos"] if video["skipped"]}
    assert reasons == {"claims.mkv": "truncated, 52 of the 99 frames it declares"}


@pytest.mark.parametrize("loss", ["raw gone", "raw short", "record empty"])
def test_a_video_whose_clips_were_lost_with_the_power_is_cut_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    ingest(folder, tmp_path / "undisturbed", ClipSettings())
    out = tmp_path / "out"

    def kill(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(module, "_assemble", kill)
    with pytest.raises(Killed):
        ingest(folder, out, ClipSettings())
    monkeypatch.undo()
    record = next(
        path for path in out.glob(".unfinished/*.json") if json.loads(path.read_text()).get("file") == "b.mkv"
    )
    if loss == "raw gone":
        record.with_suffix(".raw").unlink()
    else:
        os.truncate(record if loss == "record empty" else record.with_suffix(".raw"), 0)
    ingest(folder, out, ClipSettings())
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_a_damaged_manifest_is_named(folder: Path, tmp_path: Path) -> None:
    ingest(folder, tmp_path / "out", ClipSettings())
    (tmp_path / "out" / "manifest.json").write_text("")
    with pytest.raises(ValueError, match=r"manifest\.json: is damaged.*overwrite=true"):
        ingest(folder, tmp_path / "out", ClipSettings())


def test_a_folder_where_nothing_can_be_used_says_why(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "short.mkv", scene(0, 3))
    with pytest.raises(ValueError, match=r"short\.mkv: too short: 3 frames"):
        ingest(tmp_path / "videos", tmp_path / "out", ClipSettings())
    manifest = ingest(one_video(tmp_path), tmp_path / "out", ClipSettings(frames=9))
    assert manifest["totals"]["train"]


def one_video(tmp_path: Path) -> Path:
    (tmp_path / "one").mkdir()
    write_video(tmp_path / "one" / "a.mkv", scene(0, 50))
    return tmp_path / "one"


class Killed(BaseException):
    """Ends a call like the end of the process: nothing catches it."""


@pytest.mark.parametrize("crash", ["in the first video", "in the second video", "in the shards", "at the end"])
def test_a_call_that_died_anywhere_is_taken_up_and_gives_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: str
) -> None:
    ingest(folder, tmp_path / "undisturbed", ClipSettings(shard_mb=0.05))
    out, decoded = tmp_path / "out", []

    def kill_in(name: str, condition: Callable[..., bool]) -> None:
        original = getattr(module, name)

        def function(*args: Any, **kwargs: Any) -> Any:
            if condition(*args):
                raise Killed
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, function)

    if crash == "in the first video":
        kill_in("sidecar_captions", lambda video: video.name == "a.mkv")
    elif crash == "in the second video":
        kill_in("sidecar_captions", lambda video: video.name == "b.mkv")
    elif crash == "in the shards":
        kill_in("_npy", lambda frames: (tmp_path / "out/.unfinished/shards/train-000001.tar").exists())
    else:
        kill_in("write_json", lambda path, value: path.name == "manifest.json")
    with pytest.raises(Killed):
        ingest(folder, out, ClipSettings(shard_mb=0.05))
    monkeypatch.undo()
    assert not (out / "manifest.json").exists()

    original_decode = module.decode
    monkeypatch.setattr(module, "decode", lambda path, *rest: decoded.append(path.name) or original_decode(path, *rest))
    ingest(folder, out, ClipSettings(shard_mb=0.05))
    expected = {"in the first video": ["a.mkv", "b.mkv", "c.mkv"], "in the second video": ["b.mkv", "c.mkv"]}
    assert decoded == expected.get(crash, [])
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_a_call_killed_by_the_system_is_taken_up_and_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    ingest(folder, tmp_path / "undisturbed", ClipSettings())
    script = (
        "import sys, time, pathlib, pw.prepare.ingest as m; real = m.decode\n"
        "def slow(*args):\n    for f in real(*args): time.sleep(0.01); yield f\n"
        "m.decode = slow; m.ingest(*map(pathlib.Path, sys.argv[1:]), m.ClipSettings())"
    )
    process = subprocess.Popen([sys.executable, "-c", script, folder, tmp_path / "out"])
    try:
        deadline = time.monotonic() + 900
        while not list((tmp_path / "out").glob(".unfinished/*.raw")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list((tmp_path / "out").glob(".unfinished/*.part"))
    ingest(folder, tmp_path / "out", ClipSettings())
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_a_second_call_does_nothing_and_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = ingest(folder, tmp_path / "out", ClipSettings())
    earlier = contents(tmp_path / "out")
    monkeypatch.setattr(module, "decode", None)
    capsys.readouterr()
    assert ingest(folder, tmp_path / "out", ClipSettings()) == manifest
    assert "nothing to do" in capsys.readouterr().out
    assert contents(tmp_path / "out") == earlier


def test_other_settings_or_other_videos_need_another_folder_or_overwrite(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ingest(folder, out, ClipSettings())
    with pytest.raises(ValueError, match=r"frames=5 \(now 9\).*overwrite=true"):
        ingest(folder, out, ClipSettings(frames=9))
    write_video(folder / "new.mkv", scene(9, 30))
    with pytest.raises(ValueError, match=r"new\.mkv.*overwrite=true"):
        ingest(folder, out, ClipSettings())
    (out / "mine.txt").write_text("not yours")
    assert ingest(folder, out, ClipSettings(frames=9), overwrite=True)["settings"]["frames"] == 9
    assert (out / "mine.txt").exists()
    assert samples(out)[0]["npy"].shape == (9, 36, 48, 3)


def test_an_unfinished_folder_with_other_settings_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "write_shards", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ingest(folder, tmp_path / "out", ClipSettings())
    with pytest.raises(ValueError, match=r"short_side=80 \(now 40\)"):
        ingest(folder, tmp_path / "out", ClipSettings(short_side=40))


def test_foreign_tars_are_not_overwritten(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train-000000.tar").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"tars without a manifest\.json"):
        ingest(folder, tmp_path, ClipSettings())


def test_a_disk_too_small_is_noticed_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 100_000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"needs .* 100\.0 kB are free there.*lower short_side"):
        ingest(folder, tmp_path / "out", ClipSettings())


def test_a_full_disk_is_not_taken_for_a_broken_video(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert pw_main(["data", f"path={folder}", f"out={tmp_path / 'out'}"]) == 2
    monkeypatch.undo()
    assert ingest(folder, tmp_path / "out", ClipSettings())["totals"]["train"]


def test_two_calls_at_once_do_not_mix(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with module.FileLock(tmp_path / "out" / ".lock"), pytest.raises(ValueError, match="running there"):
        ingest(folder, tmp_path / "out", ClipSettings())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("path=", "path=: is empty"),
        ("path={folder} frmes=5", "did you mean frames?"),
        ("path={folder} frames=five", "frames=five: a whole number"),
        ("path={folder} frames=6", "5 and 9"),
        ("path={folder} frames=0", "frames=0"),
        ("path={folder} fps=nan", "fps=nan"),
        ("path={folder} overwrite=perhaps", "overwrite=perhaps: true or false"),
        ("path={folder} short", "write key=value"),
        ("path={folder}/none", "no such folder"),
        ("path={here}", "no videos in this folder; accepted are .mp4, .m4v, .mov, .mkv, .webm, .avi"),
    ],
)
def test_a_wrong_call_gets_one_clear_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    here = folder.parent / "nothing"
    here.mkdir()
    assert main(words.format(folder=folder, here=here).split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_wrong_call_is_answered_without_loading_torch() -> None:
    wrong = "import sys; from pw.prepare.ingest import main as m; m(['path=x']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", wrong], check=True, capture_output=True)


def test_only_one_clip_is_held_in_memory() -> None:
    decoded: list[int] = []

    def endless() -> Iterator[Frame]:
        for i in range(100):
            decoded.append(i)
            yield Frame(i, float(i), np.zeros((2, 2, 3), np.uint8))

    clips = cut_clips(endless(), 5, 5, lambda _: False)
    next(clips)
    assert len(decoded) == 5


def test_videos_are_found_at_any_depth_in_a_fixed_order(folder: Path) -> None:
    os.rename(folder / "b.mkv", folder / "more" / "B.MKV")
    assert list(find_videos(folder)[0]) == ["a.mkv", "more/B.MKV", "more/c.mkv"]


@pytest.mark.slow
@needs_clips
def test_the_real_clips_give_their_clips(tmp_path: Path) -> None:
    manifest = ingest(CLIPS, tmp_path / "out", ClipSettings())
    assert manifest["totals"] == {"train": 120, "val": 32, "gap": 7, "bytes": manifest["totals"]["bytes"]}
    index = ShardIndex(str(tmp_path / "out"), "val")
    assert len(index) == 32
    assert {min(index.read(i).frames.shape[1:3]) for i in range(32)} == {80}


def test_a_video_error_names_what_is_wrong_once(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"x")
    with pytest.raises(VideoError) as error:
        next(decode(tmp_path / "bad.mp4"))
    assert str(error.value).count("bad.mp4") == 1


def test_shards_hold_no_names_of_the_machine(folder: Path, tmp_path: Path) -> None:
    ingest(folder, tmp_path / "out", ClipSettings())
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        assert {(member.uname, member.mtime) for member in tar} == {("pw", 0)}
    assert str(tmp_path).encode() not in b"".join(contents(tmp_path / "out").values())
