"""The contact sheet: the same clips in columns, tiles as large as possible, blocks apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.report.contact_sheet import HEIGHT, MAX_TILE, WIDTH, contact_sheet
from pw.io.video import write_video


def clip(path: Path, size: int, value: int, width: int | None = None) -> Path:
    frames = np.full((3, size, width or size, 3), value, dtype=np.uint8)
    frames[0] = 0  # the sheet shows the middle frame
    path.parent.mkdir(exist_ok=True)
    write_video(path, frames)
    return path


def row(folder: Path, n: int, size: int, value: int) -> tuple[str, list[Path | None]]:
    return folder.name, [clip(folder / f"{i:04d}.mkv", size, value) for i in range(n)]


def area_of(sheet: np.ndarray, value: int) -> int:
    """Number of pixels of a grey value."""
    return int((sheet == value).all(axis=-1).sum())


def test_shows_the_middle_frame_of_every_clip_in_tiles_of_one_size(tmp_path: Path):
    real, anchor, full = (
        row(tmp_path / n, 5, s, v) for n, s, v in (("real", 24, 220), ("anchor", 6, 100), ("full", 24, 150))
    )
    full[1][0] = None
    anchor[1][2].write_bytes(b"cut off")
    out = tmp_path / "sheet.png"
    contact_sheet([[real, anchor], [full]], out)
    sheet = np.asarray(Image.open(out).convert("RGB"))
    side = round((area_of(sheet, 220) / 5) ** 0.5)
    assert side > 200
    assert side % 24 == 0  # each pixel is a whole number of pixels
    areas = area_of(sheet, 100), area_of(sheet, 150)
    assert areas == pytest.approx((4 * side**2, 4 * side**2), rel=1e-3)  # edges of letters are grey, too
    assert sheet.shape[1] <= WIDTH + 24
    assert Image.open(out).info == {}


def test_is_the_same_bytes_again(tmp_path: Path):
    blocks = [[row(tmp_path / "real", 2, 8, 90)]]
    contact_sheet(blocks, tmp_path / "a.png")
    contact_sheet(blocks, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_sets_the_references_apart_on_grey(tmp_path: Path):
    real, full, ceiling = (row(tmp_path / n, 2, 24, 10) for n in ("real", "full", "48-step ceiling"))
    out = tmp_path / "sheet.png"
    contact_sheet([[real], [full], [ceiling]], out)
    edge = np.asarray(Image.open(out).convert("L"))[:, 1]  # left of all labels
    changes = np.flatnonzero(np.diff(edge.astype(int)))
    assert [int(edge[0]), *(int(edge[i + 1]) for i in changes)] == [255, 232, 255, 232, 255]


def test_an_empty_block_takes_no_room(tmp_path: Path):
    real = row(tmp_path / "real", 1, 24, 10)
    contact_sheet([[real]], tmp_path / "one.png")
    contact_sheet([[real], [], []], tmp_path / "three.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "three.png").read_bytes()


def test_few_clips_are_larger_and_many_rows_smaller(tmp_path: Path):
    real = row(tmp_path / "real", 6, 24, 10)
    few, many = ("real", real[1][:2]), [(f"arm {i}", real[1]) for i in range(31)]
    contact_sheet([[few]], tmp_path / "few.png")
    contact_sheet([many], tmp_path / "many.png")
    assert MAX_TILE - 24 < Image.open(tmp_path / "few.png").height - 60 <= MAX_TILE
    assert Image.open(tmp_path / "many.png").height < HEIGHT + 100


def test_large_clips_are_shrunk(tmp_path: Path):
    clips = [clip(tmp_path / "large" / f"{i}.mkv", 720, 60, 1280) for i in range(4)]
    contact_sheet([[("real", clips)]], tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width <= WIDTH + 24


def test_rows_of_different_length_and_no_clips_at_all_are_refused(tmp_path: Path):
    real = [clip(tmp_path / "0.mkv", 8, 0)]
    with pytest.raises(ValueError, match=r"rows of one length; lengths are \[1, 2\]"):
        contact_sheet([[("real", real)], [("full", [*real, None])]], tmp_path / "s.png")
    with pytest.raises(ValueError, match="no clip of the contact sheet exists"):
        contact_sheet([[("real", [tmp_path / "gone.mkv"])]], tmp_path / "s.png")
