"""Words of a command: read by what the fields say, refused with what would do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from pw.io.arguments import Command, ConfigError, describe, keys, option, parse, to_words, values


def even(text: str) -> int:
    if int(text) % 2:
        raise ValueError("an even number")
    return int(text)


@dataclass(frozen=True)
class Closed:
    name: str = option(help="which one")
    seeds: int = option(3, "how many")
    rate: float = option(0.5, "a share")
    format: Literal["md", "terminal"] = option("terminal", "how it is printed")
    only: tuple[str, ...] = option((), "these alone")
    out: Path | None = option(None, "where to")
    dry_run: bool = option(False, "do nothing")
    pairs: int = option(2, "a number of pairs", read=even)
    purpose: str = option("all", "what for", key="for")


@dataclass(frozen=True)
class Open:
    seeds: int = option(3, "how many")
    overrides: tuple[str, ...] = ()
    positional: tuple[str, ...] = ()


def test_words_become_values_of_their_fields_types() -> None:
    words = [
        "name=a=b",
        "seeds=5",
        "rate=0.25",
        "format=md",
        "only=x, y",
        "out=~/z",
        "dry_run=true",
        "pairs=4",
        "for=me",
    ]
    assert parse(Closed, words) == Closed("a=b", 5, 0.25, "md", ("x", "y"), Path.home() / "z", True, 4, "me")
    assert parse(Closed, ["name=a", "out=null"]).out is None


def test_written_options_are_read_as_the_same() -> None:
    words = ["name=a=b", "rate=0.12345678", "only=x,y", "out=/z", "dry_run=true", "for=me"]
    assert to_words(parse(Closed, words)) == words
    open_words = ["seeds=5", "x.y=1", "DIR"]
    assert to_words(parse(Open, open_words)) == open_words


def test_the_last_of_two_words_counts_as_in_hydra() -> None:
    assert parse(Closed, ["name=a", "seeds=1", "seeds=2"]).seeds == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seeds=1"], "name=… is missing: which one"),
        (["name=a", "seeds=two"], "seeds=two: a whole number"),
        (["name=a", "rate=x"], "rate=x: a number"),
        (["name=a", "format=mdd"], "format=mdd: one of md, terminal; did you mean md?"),
        (["name=a", "dry_run=yes"], "dry_run=yes: true or false"),
        (["name=a", "pairs=3"], "pairs=3: an even number"),
        (["name=a", "sedes=3"], "sedes=3: there is no option sedes; did you mean seeds?"),
        (["name=a", "seeds"], "'seeds': write key=value; there are name, seeds"),
    ],
)
def test_a_wrong_word_is_named_with_what_would_do(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Closed, words)
    assert message in str(caught.value)


def test_what_is_no_option_is_an_override_or_a_positional_word_where_there_are_any() -> None:
    options = parse(Open, ["a.b=1", "seeds=5", "DIR", "c=[1,2]"])
    assert options == Open(5, ("a.b=1", "c=[1,2]"), ("DIR",))


def test_help_and_completion_come_from_the_fields() -> None:
    descriptions = dict(describe(Closed))
    assert descriptions["name=…"] == "which one"
    assert descriptions["format=terminal"] == "how it is printed (md|terminal)"
    assert descriptions["for=all"] == "what for"
    assert "for" in keys(Closed)
    assert values(Closed, "format") == ("md", "terminal")
    assert values(Closed, "dry_run") == ("true", "false")
    assert values(Closed, "name") == ()


def test_a_command_tells_a_mistake_in_one_line_and_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    command = Command(Closed, lambda options: options.seeds)
    assert command(["name=a", "seeds=7"]) == 7
    assert command(["name=a", "seeds=x"]) == 2
    assert capsys.readouterr().err == "error: seeds=x: a whole number from 0 to 1000000\n"


def test_lack_of_memory_is_one_line_and_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    def run(_: Closed) -> int:
        raise MemoryError("a.mp4: not enough memory to decode it")

    assert Command(Closed, run, resume_hint="run it again to resume")(["name=x"]) == 2
    assert capsys.readouterr().err == "error: a.mp4: not enough memory to decode it; run it again to resume\n"
