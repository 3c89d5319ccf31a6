"""Scores that survive."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.measure.folder_scoring import Cache, Entry, FolderScoring, content_hash
from benchmarks.measure.measurement import MeasureOptions, videos_of
from pw.io.video import write_video

DEPENDS = {"protocol": "niqe/1", "settings": {"every": 1}, "weights": {"niqe": "ab"}}


def test_an_entry_is_found_by_content_metric_and_all_it_depends_on(tmp_path: Path):
    cache = Cache(tmp_path)
    cache.put("a" * 64, "niqe", DEPENDS, Entry(3.25, 121))
    assert cache.get("a" * 64, "niqe", DEPENDS) == Entry(3.25, 121)
    assert cache.get("b" * 64, "niqe", DEPENDS) is None
    assert cache.get("a" * 64, "musiq", DEPENDS) is None
    for key, other in (("protocol", "niqe/2"), ("settings", {"every": 2}), ("weights", {"niqe": "cd"})):
        assert cache.get("a" * 64, "niqe", {**DEPENDS, key: other}) is None


def test_an_entry_that_cannot_be_read_is_measured_again(tmp_path: Path):
    cache = Cache(tmp_path)
    cache.put("a" * 64, "niqe", DEPENDS, Entry(3.25, 121))
    (entry,) = tmp_path.rglob("*.json")
    for content in ("", "{", '{"value": "many", "frames": 3}', '{"value": NaN, "frames": 3}', "[]"):
        entry.write_text(content)
        assert cache.get("a" * 64, "niqe", DEPENDS) is None


def test_what_is_not_finite_is_no_score(tmp_path: Path):
    with pytest.raises(ValueError, match="no score"):
        Cache(tmp_path).put("a" * 64, "niqe", DEPENDS, Entry(math.nan, 3))
    assert not list(tmp_path.rglob("*"))


def test_the_content_counts_not_the_name(tmp_path: Path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"the same")
    (tmp_path / "c.mp4").write_bytes(b"another")
    hashes = [content_hash(tmp_path / name) for name in ("a.mp4", "b.mp4", "c.mp4")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_refusal_is_remembered_like_a_value(tmp_path: Path) -> None:
    write_video(tmp_path / "videos" / "a.mkv", np.zeros((1, 16, 16, 3), np.uint8))  # one frame flickers not
    options = MeasureOptions(cache=tmp_path / "cache")
    reasons, measured = [], []
    for _ in range(2):
        scoring = FolderScoring(videos_of(tmp_path / "videos"), ["temporal_flickering"], options)
        scoring.measure(lambda _: None)
        reasons.append(scoring.scores.not_measured["temporal_flickering"]["a.mkv"])
        measured.append(scoring.scores.n_measured)
    assert reasons[0] == reasons[1]
    assert measured == [1, 0]
