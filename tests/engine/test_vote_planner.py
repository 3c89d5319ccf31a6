"""`pw power what=votes`: how many votes show how large a preference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pw.cli import main


def test_answers_for_a_design_in_a_table_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "votes.json"
    assert main(["power", "what=votes", "judges=5", "shares=60,75", "simulate=20", f"out={out}"]) == 0
    told = capsys.readouterr().out
    assert "ASSUMED: 20 % ties" in told
    assert "75 %" in told
    assert "simulated" in told.split("ASSUMED")[1]  # the heading, whole at 80 columns
    small, large = json.loads(out.read_text())
    assert (small["share"], large["share"]) == (0.6, 0.75)
    assert 0.05 < small["power"] < large["power"] < 1
    assert 0 <= small["simulated"] < large["simulated"] <= 1
    needed = large["needed"]
    assert needed["5"] > needed["10"] > needed["20"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("shares=40", "shares=40: expected percentages above 50, up to 99, e.g. 55,60,70"),
        ("ties=0.5", "ties=0.5: a tie is half a vote, so no arm gets 80 % of them; below 75 %"),
        ("judges=0", "judges=0: a whole number from 1 to 1000"),
        ("votse=3", "no option votse; did you mean votes?"),
    ],
)
def test_says_what_is_wrong_in_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power", "what=votes", words]) == 2
    assert message in capsys.readouterr().err
