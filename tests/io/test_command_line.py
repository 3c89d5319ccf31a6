"""Commands are printed as they can be called where they are printed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from pw.io.command_line import command_line, program, without_make

ROOT = Path(__file__).parents[2]


def environment(folder: Path) -> Path:
    """An environment `.venv` in a folder, with the files that are looked at."""
    for name in ("python", "pw"):
        (folder / ".venv" / "bin" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / ".venv" / "bin" / name).write_text("#!/bin/sh\n")
        (folder / ".venv" / "bin" / name).chmod(0o755)
    return folder / ".venv" / "bin"


def test_a_command_begins_with_pw_where_there_is_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command_line("train", "seed=1") == "pw train seed=1"


def test_a_command_names_the_environment_of_the_folder_unless_it_is_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = environment(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert program() == ".venv/bin/python -m pw"
    monkeypatch.setenv("PATH", str(folder))  # of another environment than this interpreter's
    assert program() == ".venv/bin/python -m pw"
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    assert program() == "pw"


def test_words_are_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["sample", "outputs=a b", "sampling.timesteps=[1000,600]"]
    assert shlex.split(command_line(*words))[1:] == words


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ('run `make data path=DIR args="overwrite=true"`, then', "run `pw data path=DIR overwrite=true`, then"),
        (
            "`make table name=t args='row.a=\"b c\"'` or `make mlflow-sync`",
            '`pw table name=t row.a="b c"` or `pw mlflow-sync`',
        ),
        ("make room; `make iqa` installs it", "make room; `make iqa` installs it"),
    ],
)
def test_make_is_named_only_where_there_is_a_makefile(
    text: str, there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert without_make(text) == text
    monkeypatch.chdir(tmp_path)
    assert without_make(text) == there
    (tmp_path / "Makefile").touch()  # of another project
    assert without_make(text) == there
