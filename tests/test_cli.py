"""`pw VERB key=value …`: one grammar, help and completion for every verb, mistakes told in one line."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from pw.cli import VERBS, candidates, main
from pw.io.arguments import Command, ConfigError, describe, keys, parse
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
    assert not [line for line in output.splitlines()[1:] if len(line) > 80 and " " in line.strip()]
    for word, _ in describe(importlib.import_module(VERBS[verb].module).main.options):
        assert word in output


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_answers_a_word_without_a_value_in_one_line(verb: str) -> None:
    """At once, that is: before anything heavy is imported."""
    command = [sys.executable, "-X", "importtime", "-m", "pw", verb, "no_such_option=1", "=nonsense"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    lines = process.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    output = [line for line in lines if not line.startswith("import time:")]
    assert process.returncode == 2
    assert len(output) == 1
    assert output[0].startswith("error: ")
    assert not HEAVY & imported


WRONG_CALLS = [
    ("coverage seed=1 seed=2", "seed is given twice, seed=1 and seed=2"),
    ("coverage train={updates:3}", "write each key out, e.g. train.updates=3"),
    ("coverage train.updates=${seed}", "train.updates=${seed}: the value refers to another key"),
    ("coverage sampling.num_steps=2000", "more steps than schedule.num_timesteps=1000"),
    ("ablation nme=ansc", "no option nme; did you mean name?"),
    ("ablation name=ansc seeds=1000000000", "seeds=1000000000: expected a number of seeds to 1000"),
    ("start nme=hires", "no option nme; did you mean name?"),
    ("table nme=table_2", "no option nme; did you mean name?"),
    ("power abltion=ansc", "no option abltion; did you mean ablation?"),
    ("power ablation=ansc metrics=foo", "unknown metric 'foo'"),
    ("power ablation=ansc outputs=/nope", "outputs=/nope: no such folder"),
    ("score vidoes=x", "no option vidoes; did you mean videos?"),
    ("score x memory=" + 400 * "9", "expected bytes, such as 2GB, to 100000GB"),
    ("system nme=wan2_2_5b", "no option nme; did you mean name?"),
    ("system name=wan2_2_5b width=7", "width=7: a whole number from 8"),
    ("system name=wan2_2_5b gpus=1000", "gpus=1000: a whole number from 1 to 64"),
    ("generate prompt=x scle=2k", "there is no key scle; did you mean scale?"),
    ("generate prompt=x anchor.scle=2k", "anchor.scle=2k: there is no key scle"),
    ("generate prompt=x anchors_from=/nope", "anchors_from=/nope: no such folder"),
    ("generate prompt=x scale=tiny weights=random out=/proc/x", "out=/proc/x: cannot be written"),
    ("generate prompt=x scale=2k hires=" + 300 * "x", "too long for a path"),
    ("generate prompt=x scale=2k anchor=~nobody-here/x", "there is no user nobody-here here"),
    ("ablation ansc", "'ansc': write key=value; did you mean name=ansc? there are name"),
    ("weights metrics", "did you mean what=metrics?"),
    ("plan 4k", "strict, and overrides of conf/, e.g. weighting=uniform"),
    ("help trian", "did you mean train?"),
    ("bench scales=", "scales=: no scale given"),
    ("weights dest=/proc/x", "dest=/proc/x: cannot be written"),
    ("table name=table_3 out=/dev/null", "out=/dev/null: cannot be written"),
    ("lint-paper json=/dev/null", "json=/dev/null: is a device or pipe, expected a file"),
    ("weights wat=metrics", "no option wat; did you mean what?"),
    ("completion fooo=1", "fooo=1: pw completion takes no words"),
    ("replay nope.json", "nope.json: not the batch"),
    ("share name=ansc out=/dev/null", "out=/dev/null: is a device or pipe, expected a file"),
    ("open", "FILE.zip is missing: expected one file of `pw share`"),
    ("adopt nope.zip", "nope.zip: no such file"),
    ("weights repo=../x", "repo=../x: expected OWNER/NAME"),
    ("weights revision=../../x", "revision=../../x: expected a branch, tag or commit"),
    ("data name=ultravideo accept_licence=true revision=../../x", "revision=../../x: expected a branch, tag or commit"),
    ("bench what=metrics only=((", "only=((: one of mhd"),
]


@pytest.mark.parametrize(("line", "message"), WRONG_CALLS, ids=[line[:40] for line, _ in WRONG_CALLS])
def test_a_wrong_call_is_answered_in_one_line_and_leaves_nothing(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    [answer] = capsys.readouterr().err.splitlines()
    assert answer.startswith("error: ")
    assert message in answer
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("module", MODULES)
def test_a_name_longer_than_a_path_may_have_is_refused(module: str) -> None:
    options = importlib.import_module(module).main.options
    hints = typing.get_type_hints(options)
    for key, field in keys(options).items():
        if hints[field] is Path or Path in typing.get_args(hints[field]):
            with pytest.raises(ConfigError, match=f"^{key}=.*too long for a path"):
                parse(options, [f"{key}=/x/{300 * 'é'}/y"])


@pytest.mark.parametrize("words", ["data=shards data.urls", "trainer.weights", "start.name"])
def test_a_long_name_in_a_configuration_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *f"{words}={300 * 'a'}".split()]) == 2
    [answer] = capsys.readouterr().err.splitlines()
    assert answer.startswith(f"error: {words.rsplit(maxsplit=1)[-1]}={100 * 'a'}…")
    assert len(answer) < 500


def test_a_value_that_cannot_be_printed_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coverage", "weighting=a\n\x1b[31m"]) == 2
    assert capsys.readouterr().err.startswith("error: weighting=a \\x1b[31m: ")


def test_a_value_with_a_line_end_is_refused_since_a_run_begins_with_its_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "data=shards", "data.urls=/tmp/a\nb"]) == 2
    assert "the value has a line end" in capsys.readouterr().err


def test_help_of_a_verb_and_completion_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "plan"]) == 0
    assert capsys.readouterr().out.startswith("pw plan: ")
    assert candidates("") == [*VERBS]


@pytest.mark.parametrize(
    "line",
    [
        "replay nope.json",
        "train anchor.foo=1",
        "train backbone.num_attention_heads=99999999999",
        "generate prompt=x anchors_from=/nope",
        "power ablation=ansc metrics=foo",
    ],
)
def test_a_wrong_call_is_refused_before_heavy_imports(line: str, tmp_path: Path) -> None:
    code = f"import sys, pw.cli; print(pw.cli.main({line.split()}), *{HEAVY} & sys.modules.keys())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert process.stdout == "2\n", process.stderr
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no device that is always full")
@pytest.mark.parametrize("line", ["--help", "complete pw tr", "ablations", "lint-paper table=table_3", "coverage"])
def test_a_full_disk_under_the_output_is_told_in_one_line(line: str) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "pw", *line.split()]
        process = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        [answer] = process.stderr.splitlines()
        assert answer.startswith("error: ")
        assert "the disk is full" in answer
        assert process.returncode == 2
        wrong = [sys.executable, "-m", "pw", line.split(maxsplit=1)[0], "nope=1"]
        assert subprocess.run(wrong, cwd=ROOT, stdout=full, stderr=full, check=False).returncode == 2


@pytest.mark.parametrize("folder", ["", "conf"], ids=["any folder", "a folder with conf/"])
def test_a_file_in_the_working_directory_does_not_shadow_a_library(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    for name in ("json", "random", "torch", "hydra", "dataclasses"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')")
    command = [sys.executable, "-m", "pw", "train", "seed=-1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert process.stderr == "error: seed=-1: expected a whole number from 0 to 4294967295\n"


def test_the_command_of_make_setup_does_nothing_where_a_worker_imports_it() -> None:
    """A worker of multiprocessing imports the file of the main program, which must not begin again in it."""
    runpy.run_path(str(Path(sys.executable).with_name("pw")), run_name="__mp_main__")


def test_the_version_is_told_without_importing_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"pw \d+\.\d+\S*( \(commit \w{12}.*\))?, torch \d+\.\S+\n", capsys.readouterr().out)


def test_help_lists_words_without_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--help"]) == 0
    assert "\n  FILE.json  " in capsys.readouterr().out


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
        process = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=900, check=True)
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
    process = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert (process.returncode, "Traceback" in process.stderr) == (status, False), process.stderr


@pytest.mark.parametrize("words", ["train outputs=/proc/x", "ablation name=ansc outputs=/sys/x dry_run=true"])
def test_outputs_that_cannot_be_made_are_refused_before_planning(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """/proc says that it can be written."""
    assert main(words.split()) == 2
    output, answer = capsys.readouterr()
    assert not output
    assert answer.startswith(f"error: {words.split()[-1 if 'train' in words else 2]}: cannot be written (")


@pytest.mark.skipif(may_have_gpu(), reason="there is a GPU")
@pytest.mark.parametrize("words", ["train", "ablation name=ansc seeds=1 arms=baseline"])
def test_a_gpu_that_is_not_there_is_told_before_torch_is_imported(words: str, tmp_path: Path) -> None:
    code = "import sys, pw.cli as c; print(c.main(sys.argv[1:]), 'torch' in sys.modules)"
    call = [sys.executable, "-c", code, *words.split(), "trainer=gpu", f"outputs={tmp_path}"]
    process = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert process.stdout == "2 False\n", process.stderr
    assert process.stderr == "error: trainer=gpu: torch sees no CUDA device here; set trainer=cpu\n"
