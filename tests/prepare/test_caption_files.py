"""pw.prepare.caption_files: every kind of file gives the same shards, and captions of absent videos are refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from pw.cli import main as pw_main
from pw.data.shard_index import ShardIndex
from pw.io.video import write_video
from pw.prepare.caption_files import find_caption_file, sidecar_captions
from pw.prepare.ingest import ingest
from pw.prepare.source_videos import ClipSettings

ONE = {"a.mkv": ["a is for Äpfel"], "more/b.mkv": ["b, which is\tfor bees"]}
SEVERAL = {"a.mkv": ["a is for Äpfel", 'an "apple"'], "more/b.mkv": ["b"]}
Captions = dict[str, list[str]]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Three videos of 20 frames, one in a subfolder."""
    folder = tmp_path / "videos"
    (folder / "more").mkdir(parents=True)
    for seed, name in enumerate(("a.mkv", "more/b.mkv", "c.mkv")):
        picture = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        write_video(folder / name, np.stack([np.roll(picture, frame, 1) for frame in range(20)]))
    return folder


def pairs(captions: Captions) -> list[tuple[str, str]]:
    return [(name, text) for name, texts in captions.items() for text in texts]


def write_txt(folder: Path, captions: Captions) -> None:
    for name, texts in captions.items():
        (folder / name).with_suffix(".txt").write_text(texts[0] + "\n", encoding="utf-8")


def write_sidecar_json(folder: Path, captions: Captions) -> None:
    for name, texts in captions.items():
        (folder / name).with_suffix(".json").write_text(json.dumps({"id": 1, "caption": texts}))


def write_mapping(folder: Path, captions: Captions) -> None:
    content = {name: texts if len(texts) > 1 else texts[0] for name, texts in captions.items()}
    (folder / "captions.json").write_text(json.dumps(content))


def write_records(folder: Path, captions: Captions) -> None:
    rows = [{"seconds": 3, "video": str(Path(name).with_suffix("")), "text": texts} for name, texts in captions.items()]
    (folder / "metadata.json").write_text(json.dumps(rows))


def write_jsonl(folder: Path, captions: Captions) -> None:
    lines = [json.dumps({"file_name": f"./{name}", "caption": text}) for name, text in pairs(captions)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")


def write_csv(folder: Path, captions: Captions) -> None:
    with open(folder / "metadata.csv", "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([("file_name", "fps", "text"), *((n, 24, t) for n, t in pairs(captions))])


def write_parquet(folder: Path, captions: Captions) -> None:
    columns = {"path": [str(folder / name) for name in captions], "captions": list(captions.values())}
    parquet.write_table(pa.table(columns), folder / "captions.parquet")


FILES = (write_mapping, write_records, write_jsonl, write_csv, write_parquet)
Writer = Callable[[Path, Captions], None]


def shards(folder: Path, out: Path, **options: Any) -> dict[str, bytes]:
    ingest(folder, out, ClipSettings(), **options)
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


def copy_of(folder: Path, target: Path) -> Path:
    return shutil.copytree(folder, target)


@pytest.mark.parametrize("write", [write_sidecar_json, *FILES])
def test_every_kind_of_file_gives_the_same_shards_as_texts_beside_the_videos(
    videos: Path, tmp_path: Path, write: Writer
) -> None:
    other = copy_of(videos, tmp_path / "other")
    write_txt(videos, ONE)
    write(other, ONE)
    expected = shards(videos, tmp_path / "txt")
    assert shards(other, tmp_path / "out", captions=None) == expected
    index = ShardIndex(str(tmp_path / "out"), "train")
    found = {index.read(i).caption for i in range(len(index))}
    assert found == {"a is for Äpfel", "b, which is for bees", ""}
    assert all(index.captions(i) == index.read(i).captions for i in range(len(index)))


@pytest.mark.parametrize("write", [write_sidecar_json, *FILES])
def test_several_captions_of_a_video_are_kept_with_each_of_its_clips(
    videos: Path, tmp_path: Path, write: Writer
) -> None:
    write(videos, SEVERAL)
    shards(videos, tmp_path / "out", captions=None)
    index = ShardIndex(str(tmp_path / "out"), "train")
    clips = [index.read(i) for i in range(len(index))]
    assert {clip.captions for clip in clips} == {tuple(SEVERAL["a.mkv"]), ("b",), ()}
    assert {clip.caption for clip in clips} == {SEVERAL["a.mkv"][0], "b", ""}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["captions"] == {"videos": 2, "most": 2, "without": ["c.mkv"]}


def test_videos_without_a_caption_are_listed(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(videos, ONE)
    shards(videos, tmp_path / "out", captions=None)
    assert "captions: 2 of 3 videos have one; without: c.mkv\n" in capsys.readouterr().out
    shards(videos, tmp_path / "without")
    assert "captions: 0 of 3 videos have one\n" in capsys.readouterr().out


def test_a_video_that_the_file_leaves_out_has_the_text_beside_it(videos: Path) -> None:
    write_txt(videos, {"a.mkv": ["beside"], "c.mkv": ["beside"]})
    write_csv(videos, {"a.mkv": ["in the file"]})
    out = videos.parent / "out"
    shards(videos, out, captions=None)
    index = ShardIndex(str(out), "train")
    assert {index.captions(i) for i in range(len(index))} == {("in the file",), ("beside",), ()}


def test_captions_of_absent_videos_are_refused_before_a_video_is_cut(videos: Path, tmp_path: Path) -> None:
    write_csv(videos, ONE | {"aa.mkv": ["x"], "z.mkv": ["x"]})
    message = (
        r"captions=.*metadata\.csv: 2 of its 4 videos are not in path=.*: first aa\.mkv \(the nearest is a\.mkv\), "
        r"then z\.mkv; .* captions=none"
    )
    with pytest.raises(ValueError, match=message):
        shards(videos, tmp_path / "out", captions=None)
    assert not (tmp_path / "out").exists()
    assert shards(videos, tmp_path / "out", captions="none")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "id,caption\n1,a\n", r"has no column named file_name, .*; it has id, caption: rename one"),
        ("metadata.csv", "file_name,words\na.mkv,a\n", r"has no column named caption, .*; it has file_name, words"),
        ("captions.jsonl", '{"file": "a.mkv", "text": "a"}\n["b"]\n', r"cannot be read \(line 2 is \[\"b\"\], not a"),
        ("captions.json", "{broken", r"cannot be read"),
        ("captions.json", "3", r"cannot be read \(neither a mapping nor a list\)"),
        ("captions.parquet", "broken", r"cannot be read"),
    ],
)
def test_a_file_that_holds_no_captions_is_refused(videos: Path, name: str, content: str, message: str) -> None:
    (videos / name).write_text(content)
    with pytest.raises(ValueError, match=rf"captions=.*{name}: {message}"):
        find_caption_file(videos, None, ["a.mkv"])
    assert find_caption_file(videos, "none", ["a.mkv"]) is None


def test_of_several_files_one_must_be_chosen(videos: Path) -> None:
    write_csv(videos, ONE)
    write_mapping(videos, SEVERAL)
    with pytest.raises(ValueError, match=r"several files of captions; .* captions\.json or metadata\.csv"):
        find_caption_file(videos, None, [*ONE])
    for option in ("metadata.csv", str(videos / "metadata.csv")):
        chosen = find_caption_file(videos, option, [*ONE])
        assert chosen is not None
        assert {**chosen.captions} == {"a.mkv": ONE["a.mkv"], "more/b.mkv": ["b, which is for bees"]}
    with pytest.raises(ValueError, match=r"captions=.*x\.toml: expected a \.json, \.jsonl, \.csv, \.parquet, or none"):
        find_caption_file(videos, "x.toml", [*ONE])


def test_the_json_beside_a_video_of_that_name_is_not_taken_for_the_folders(videos: Path) -> None:
    (videos / "metadata.json").write_text('{"caption": "a film about data"}')
    assert find_caption_file(videos, None, ["metadata.mkv", "a.mkv"]) is None


def test_other_captions_for_finished_shards_are_refused(videos: Path, tmp_path: Path) -> None:
    write_csv(videos, ONE)
    first = shards(videos, tmp_path / "out", captions=None)
    assert shards(videos, tmp_path / "out", captions=None) == first
    write_csv(videos, SEVERAL)
    with pytest.raises(ValueError, match=r"was made with captions=[0-9a-f]{8} \(now [0-9a-f]{8}\).*overwrite=true"):
        shards(videos, tmp_path / "out", captions=None)
    with pytest.raises(ValueError, match=r"was made with captions=[0-9a-f]{8} \(now beside the videos\)"):
        shards(videos, tmp_path / "out")


def test_the_command_reads_the_file_of_the_folder(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(videos, {"none.mkv": ["x"]})
    for dry_run in ("true", "false"):
        call = ["data", f"path={videos}", f"out={tmp_path / 'out'}", f"dry_run={dry_run}"]
        assert pw_main(call) == 2
        assert "1 of its 1 videos are not in" in capsys.readouterr().err
    assert pw_main(["data", "name=ultravideo", "captions=x.csv"]) == 2
    assert "captions= is for path=" in capsys.readouterr().err


def test_captions_beside_a_video(tmp_path: Path) -> None:
    def captions(name: str, content: str) -> tuple[list[str], str]:
        (tmp_path / name).write_text(content)
        return sidecar_captions(tmp_path / f"{Path(name).stem}.mp4")

    assert captions("a.txt", "a bird\non a roof\n") == (["a bird on a roof"], "")
    assert captions("b.json", '{"caption": "a bird"}') == (["a bird"], "")
    assert captions("c.json", '[{"id": 3}, {"text": "a bird"}]') == (["a bird"], "")
    assert captions("d.json", '{"prompt": ["a bird", "two", "a  bird"]}') == (["a bird", "two"], "")
    assert captions("e.json", '["a bird"]') == (["a bird"], "")
    assert sidecar_captions(tmp_path / "none.mp4") == ([], "")
    for name, content in (("f.json", "{broken"), ("g.json", "[1, 2]"), ("h.txt", " ")):
        texts, warning = captions(name, content)
        assert not texts
        assert name in warning
