"""`pw VERB key=value …`: one grammar, help and completion for every verb, mistakes told in one line."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pw.cli import VERBS, candidates, main
from pw.io.arguments import Command, describe
from pw.io.host import may_have_gpu

ROOT = Path(__file__).parents[1]
MODULES = sorted({module for verb in VERBS.values() for module in (verb.module, *verb.variants.values())})
HEAVY = {"torch", "lightning", "diffusers", "mlflow", "matplotlib"}


@pytest.mark.parametrize("module", MODULES)
def test_every_verb_declares_its_options_each_with_a_sentence(module: str) -> None:
    command = importlib.import_module(module).main
    assert isinstance(command, Command)
    assert not [word for word, text in describe(command.options) if not text]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"pw {verb}: {VERBS[verb].help}")
    for word, _ in describe(importlib.import_module(VERBS[verb].module).main.options):
        assert word in output


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_answers_a_word_without_a_value_in_one_line(verb: str) -> None:
    """At once, that is: before anything heavy is imported."""
    command = [sys.executable, "-X", "importtime", "-m", "pw", verb, "no_such_option=1", "=nonsense"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    lines = process.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    output = [line for line in lines if not line.startswith("import time:")]
    assert process.returncode == 2
    assert len(output) == 1
    assert output[0].startswith("error: ")
    assert not HEAVY & imported


def test_alone_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    output = capsys.readouterr().out
    assert all(f"pw {verb} " in output for verb in VERBS)


def test_a_verb_that_is_none_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err


class TestCompletion:
    @pytest.mark.parametrize(
        ("line", "completions"),
        [
            ("pw abl", ["ablation", "ablations"]),
            ("pw train weighting=u", ["weighting=uniform"]),
            ("pw train step_sa", ["step_sampler="]),
            ("pw ablation dry_run=", ["dry_run=true", "dry_run=false"]),
            ("pw ablation name=an", ["name=anchor_robustness", "name=anchor_tuning", "name=ansc"]),
            ("pw nonsense x", []),
        ],
    )
    def test_offers_verbs_options_groups_and_their_values(self, line: str, completions: list[str]) -> None:
        assert candidates(line) == completions

    @pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
    def test_works_in_bash(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["completion"]) == 0
        pw = tmp_path / "pw"
        pw.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m pw "$@"\n')
        pw.chmod(0o755)
        script = f"""{capsys.readouterr().out}
PATH="{tmp_path}:$PATH"; COMP_LINE="pw train weighting=de"; COMP_POINT=${{#COMP_LINE}}; _pw; echo "${{COMPREPLY[@]}}"
"""
        process = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, check=True)
        assert process.stdout.strip() == "delta_sigma"


@pytest.mark.parametrize(
    ("words", "streams", "status"),
    [
        ("ablations", ">&-", 0),
        ("trian", "2>&-", 2),
        ("data path=/nowhere", "<&- >&- 2>&-", 2),
        ("lint-paper", "| true; exit ${PIPESTATUS[0]}", 0),  # the reader is gone before the first line
        ("--help", "| true; exit ${PIPESTATUS[0]}", 0),
    ],
)
def test_a_closed_stream_changes_nothing(words: str, streams: str, status: int) -> None:
    call = ["bash", "-c", f"{sys.executable} -m pw {words} {streams}"]
    process = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (process.returncode, "Traceback" in process.stderr) == (status, False), process.stderr


@pytest.mark.parametrize("words", ["train outputs=/proc/x", "ablation name=ansc outputs=/sys/x dry_run=true"])
def test_outputs_that_cannot_be_made_are_refused_before_planning(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """/proc says that it can be written."""
    assert main(words.split()) == 2
    assert capsys.readouterr() == (
        "",
        f"error: {words.split()[-1 if 'train' in words else 2]}: expected a folder that "
        "can be written, e.g. outputs=outputs/trial\n",
    )


@pytest.mark.skipif(may_have_gpu(), reason="there is a GPU")
@pytest.mark.parametrize("words", ["train", "ablation name=ansc seeds=1 arms=baseline"])
def test_a_gpu_that_is_not_there_is_told_before_torch_is_imported(words: str, tmp_path: Path) -> None:
    code = "import sys, pw.cli as c; print(c.main(sys.argv[1:]), 'torch' in sys.modules)"
    call = [sys.executable, "-c", code, *words.split(), "trainer=gpu", f"outputs={tmp_path}"]
    process = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert process.stdout == "2 False\n", process.stderr
    assert process.stderr == "error: trainer=gpu: torch sees no CUDA device here; set trainer=cpu\n"
