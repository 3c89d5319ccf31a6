"""What `pw train` and `pw sample` end with: the folder on stdout, what came out and the next commands on stderr."""

from __future__ import annotations

import importlib
import io
import json
import shlex
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from experiments.engine.sample_command import comparable
from pw import cli
from pw.io import arguments
from pw.io.command_line import program
from pw.io.files import write_json
from pw.run.build import build
from pw.train.record import curve_ends

SMALL = ["train.updates=20", "train.batch_size=2", "sampling.count=2"]


def call(*words: str) -> tuple[str, str]:
    """stdout and stderr of `pw …`, which must succeed."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert cli.main(words) == 0, err.getvalue()
    return out.getvalue(), err.getvalue()


def next_commands(text: str) -> list[list[str]]:
    """The words of each command below `next:`."""
    lines = text.partition("\nnext:\n")[2].splitlines()
    assert all(line.startswith(f"  {program()} ") for line in lines)
    return [shlex.split(line.strip().removeprefix(program())) for line in lines]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a folder")


@pytest.fixture(scope="module")
def trained(outputs: Path) -> tuple[str, str]:
    return call("train", *SMALL, f"outputs={outputs}")


@pytest.fixture(scope="module")
def ended(outputs: Path, trained: tuple[str, str]) -> Mapping[str, tuple[str, str]]:
    first = call("sample", *SMALL, "sampling.num_steps=2", f"outputs={outputs}")
    return {"train": trained, "first": first, "second": call("sample", *SMALL, f"outputs={outputs}")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "first", "second"])
def test_stdout_is_the_folder_alone(name: str, ended: Mapping[str, tuple[str, str]]) -> None:
    (folder,) = ended[name][0].splitlines()
    assert (Path(folder) / "done.json").exists()
    assert Path(folder).name in ended[name][1]


def test_a_training_tells_its_losses(trained: tuple[str, str]) -> None:
    (folder,), printed = map(Path, trained[0].splitlines()), trained[1]
    first, last = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert f"{folder.name}: 20 updates in " in printed
    for term in ("loss_flow", "loss_consistency"):
        assert f"\n  {term} {first[term]:.4g} → {last[term]:.4g}\n" in printed


def test_a_training_without_a_curve_has_no_losses(tmp_path: Path) -> None:
    assert curve_ends(tmp_path) == {}
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss_flow": 1.0}\n[]\nnull\n{"step": 20, "loss_fl')
    assert curve_ends(tmp_path) == {"step": (10, 10), "loss_flow": (1.0, 1.0)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "first", "second"])
def test_the_next_commands_are_calls(name: str, ended: Mapping[str, tuple[str, str]]) -> None:
    commands = next_commands(ended[name][1])
    verbs = {"train": ["sample", "export"], "first": ["export"], "second": ["compare", "export"]}
    assert [verb for verb, *_ in commands] == verbs[name]
    for verb, *words in commands:
        options = arguments.parse(importlib.import_module(cli.VERBS[verb].module).main.options, words)
        if verb == "sample":
            assert build(options.overrides).training_signature == Path(ended["train"][0].strip()).name


@pytest.mark.slow
def test_the_next_commands_work(ended: Mapping[str, tuple[str, str]]) -> None:
    compare, export = next_commands(ended["second"][1])
    call(*export)
    out = Path(ended["train"][0].strip()).parents[1] / "compare"
    call(*compare)
    (result,) = out.glob("*/*.json")
    psd = json.loads(result.read_text())["metrics"]["psd"]
    assert f"PSD {psd['b']:.3f} dB" in ended["second"][1]
    assert f"PSD {psd['a']:.3f} dB" in ended["first"][1]


@pytest.mark.slow
def test_a_sampling_has_a_contact_sheet(ended: Mapping[str, tuple[str, str]]) -> None:
    line = next(line for line in ended["second"][1].splitlines() if "contact sheet " in line)
    assert Path(line.partition("contact sheet ")[2]).read_bytes().startswith(b"\x89PNG")


def test_only_samplings_of_the_same_clips_are_compared(tmp_path: Path) -> None:
    def sampling(name: str, seed: int = 0, count: int = 2, data: str = "procedural") -> Path:
        text = f"# pw sample\nscale:\n  name: tiny\ndata:\n  urls: {data}\nsampling:\n  count: {count}\n"
        write_json(tmp_path / name / "done.json", {"seed": seed})
        (tmp_path / name / "config.yaml").write_text(text)
        return tmp_path / name

    folder = sampling("mine")
    sampling("other_seed", seed=1)
    sampling("other_count", count=4)
    sampling("other_data", data="shards")
    write_json(tmp_path / "no_config" / "done.json", {"seed": 0})
    assert comparable(folder) is None
    assert comparable(sampling("same").parent / "mine") == tmp_path / "same"
