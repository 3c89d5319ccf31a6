"""Registering videos that somebody else made: what is refused, and that an earlier registration then stays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.measure import score
from benchmarks.systems import CARDS
from benchmarks.systems.jobs import costs, videos
from benchmarks.systems.system_command import main
from pw.io.video import write_video


def clip(path: Path, height: int = 12, width: int = 20) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.zeros((2, height, width, 3), np.uint8), fps=24, lossless=path.suffix == ".mkv")
    return path


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder with one video."""
    return clip(tmp_path / "there" / "a red ball-0.mkv").parent


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["name=sora", "videos={clips}"], "name=sora: no such system; known: cinescale, "),
        (["name=../cards/turbo2k", "videos={clips}"], "no such system"),
        (["videos={clips}"], "name=: which system?"),
        (["name=turbo2k", "videos="], "videos=: is empty"),
        (["name=turbo2k", "videos={clips}/none"], "there/none: no such folder"),
        (["name=turbo2k", "videos={clips}/a red ball-0.mkv"], "a red ball-0.mkv: no such folder"),
        (["name=turbo2k", "videos={clips}", "out=/dev/null/x"], "out=/dev/null/x: cannot be written (Not a directory)"),
        (["name=turbo2k", "videos={clips}", "seed=3"], "seed: with videos=DIR, use only name, out, prompts and seeds"),
        (["name=turbo2k", "videos={clips}", "seeds=²"], "seeds=²: a whole number from 1"),
        (
            ["name=turbo2k", "videos={clips}", "prompts={clips}/none.txt"],
            "none.txt: no such file; expected a .txt of one",
        ),
    ],
)
def test_a_mistake_in_the_call_is_named(words: list[str], says: str, clips: Path, out: Path, capsys):
    filled = [word.format(clips=clips) for word in words]
    assert says in error_of(capsys, *filled, *([] if any(w.startswith("out=") for w in words) else [f"out={out}"]))
    assert not out.exists()


def test_a_folder_that_may_not_be_read_is_named(clips: Path, out: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    def deny(self: Path) -> None:  # root may read any
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", deny)
    error = error_of(capsys, "name=turbo2k", f"videos={clips}", f"out={out}")
    assert f"videos={clips}: cannot be read (Permission denied)" in error


class TestACardThatContradicts:
    def test_of_the_videos_is_refused(self, clips: Path, out: Path, capsys):
        (clips / "card.yaml").write_bytes((CARDS / "wan2_2_5b.yaml").read_bytes())
        error = error_of(capsys, "name=turbo2k", f"videos={clips}", f"out={out}")
        assert f"videos={clips}: its card.yaml is of wan2_2_5b, not of turbo2k" in error

    def test_of_the_folder_written_to_is_refused_and_stays(self, clips: Path, out: Path, capsys):
        assert main(["name=turbo2k", f"videos={clips}", f"out={out}"]) == 0
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        error = error_of(capsys, "name=flashvideo", f"videos={clips}", f"out={out}")
        assert f"out={out}: its card.yaml is of turbo2k, not of flashvideo" in error
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    def test_every_video_of_is_refused_and_an_earlier_registration_stays(self, clips: Path, out: Path, capsys):
        card_path = out.with_name("mine.yaml")
        card = (CARDS / "turbo2k.yaml").read_text()
        card_path.write_text(card.replace("name: turbo2k", "name: mine"))
        assert main([f"name={card_path}", f"videos={clips}", f"out={out}"]) == 0
        before = (out / "registered.json").read_text()
        card_path.write_text(card_path.read_text().replace("width: null", "width: 64"))
        error = error_of(capsys, f"name={card_path}", f"videos={clips}", f"out={out}")
        assert (
            "none of its 1 videos matches the card of mine, such as a red ball-0.mkv: width is 20, requested 64"
            in error
        )
        assert (out / "registered.json").read_text() == before

    def test_that_cannot_be_read_is_named(self, clips: Path, out: Path, capsys):
        (clips / "card.yaml").write_text("kind: [")
        assert f"{clips / 'card.yaml'}: not a card" in error_of(capsys, "name=turbo2k", f"videos={clips}", f"out={out}")


def test_videos_that_were_made_in_a_folder_are_not_given_to_others(clips: Path, out: Path, capsys):
    (out / "jobs").mkdir(parents=True)
    error = error_of(capsys, "name=turbo2k", f"videos={clips}", f"out={out}")
    assert f"out={out}: has videos that were made there" in error


def test_two_videos_of_one_name_are_refused(clips: Path, out: Path, capsys):
    clip(clips / "a red ball-0.mp4")
    error = error_of(capsys, "name=turbo2k", f"videos={clips}", f"out={out}")
    assert "a red ball-0.mkv and a red ball-0.mp4 have the same stem" in error


@pytest.mark.parametrize("kind", ["made", "registered"])
def test_of_a_systems_folder_its_videos_are_registered_where_they_lie(kind: str, tmp_path: Path, out: Path):
    home = tmp_path / "home"
    folder = clip(home / "videos" / "a-0.mkv" if kind == "made" else tmp_path / "elsewhere" / "a-0.mkv").parent
    if kind == "registered":
        assert main(["name=turbo2k", f"videos={folder}", f"out={home}"]) == 0
    assert main(["name=turbo2k", f"videos={home}", f"out={out}"]) == 0
    assert [path.parent for path in videos(out)] == [folder]


def test_a_folder_that_was_moved_since_is_named_when_it_is_scored(clips: Path, out: Path, capsys):
    assert main(["name=turbo2k", f"videos={clips}", f"out={out}"]) == 0
    clips.rename(clips.with_name("moved"))
    assert score.main([str(out), "metrics=mhd_mse"]) == 2
    error = capsys.readouterr().err
    assert f"{out / 'registered.json'}: {clips} no longer exists; register the videos in their new folder" in error


@pytest.mark.parametrize("text", ["", "{", "[]", '{"directory": 3, "present": []}', '{"directory": "x"}'])
def test_a_registration_that_is_damaged_is_named_when_it_is_scored(text: str, clips: Path, out: Path, capsys):
    assert main(["name=turbo2k", f"videos={clips}", f"out={out}"]) == 0
    (out / "registered.json").write_text(text)
    assert score.main([str(out), "metrics=mhd_mse"]) == 2
    assert f"error: {out / 'registered.json'}: is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"width": 3, "height": 3})])
def test_a_note_that_is_damaged_is_named_where_costs_are_read(text: str, tmp_path: Path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "a-0.json").write_text(text)
    with pytest.raises(ValueError, match=r"a-0\.json: is damaged.*`make system` makes its video again"):
        costs(tmp_path)
