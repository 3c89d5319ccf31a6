"""What the commands list fits 80 columns, whole, and more where the terminal is wider."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from benchmarks import paper, systems
from experiments.engine import ablation
from experiments.engine.power_analysis.power_planner import number_text
from pw import cli

Listing = Callable[[Sequence[str]], str]


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Listing:
    """Words -> what the command prints in 80 columns; no line is wider, no number is cut."""

    def run(words: Sequence[str]) -> str:
        monkeypatch.setenv("COLUMNS", "80")
        assert cli.main(words) in (0, 1)  # 1: a plan that does not fit
        output = capsys.readouterr().out
        copied = ("  .venv", "  # score", "/")  # commands and paths stay in a line of their own
        lines = [line for line in output.splitlines() if not line.startswith(copied)]
        assert max(map(len, lines)) <= 80
        assert not re.search(r"\d…", output)
        return output

    return run


def are_shown(texts: Iterable[str], output: str) -> bool:
    """Whether every text is there to the letter, between spaces or line ends."""
    whole = f" {' '.join(output.split())} "
    return all(f" {text} " in whole for text in texts)


def test_of_systems(listing: Listing) -> None:
    output = listing(["system"])
    for system in map(systems.load, systems.names()):
        size, frames, fps = system.setting.texts()
        assert are_shown([system.name, size, f"{frames}@{fps}"], output)


def test_of_ablations_is_an_overview_and_of_one_is_all_of_it(listing: Listing) -> None:
    overview = listing(["ablations"])
    for name in ablation.names():
        assert f"{name}  {ablation.load(name)[1].title.split()[0]}" in overview
        output = listing(["ablations", f"name={name}"])
        described, docs = ablation.load(name)
        assert set(re.findall(r"[\d.]*\d", f"{docs.claim} {docs.refuted} {docs.verdict}")) <= {
            *re.findall(r"[\d.]*\d", output)
        }
        assert all(arm in output for arm in described.arms)


@pytest.mark.parametrize("name", paper.names())
def test_of_a_table_of_the_paper(name: str, listing: Listing, tmp_path: Path) -> None:
    output = listing(["table", f"name={name}", f"systems={tmp_path}", f"out={tmp_path}"])
    assert are_shown((cell for row in paper.load(name).rows for cell in row.printed.values()), output)


@pytest.mark.parametrize("words", [["ablation=ansc", "arms=exponential,full"], ["paper=table_8_1"]])
def test_of_what_can_be_shown(words: list[str], listing: Listing, tmp_path: Path) -> None:
    output = listing(["power", *words, f"outputs={tmp_path}", f"out={tmp_path / 'power.json'}"])
    answer = json.loads((tmp_path / "power.json").read_text())
    values = [v for row in answer["assumed"]["grid"] for key, v in row.items() if key not in ("prompts", "seeds")]
    texts = ["> 100" if value > 100 else number_text(value) for value in values]
    assert len(texts) > 50
    assert are_shown(texts, output)
    assert are_shown((f"{abs(step['diff']):.4g}" for step in answer["steps"]), re.sub("[+−]", "", output))


@pytest.mark.parametrize("words", [[], ["scale=2k", "gpus=1x24GB"], ["scale=4k", "gpus=8x80GB"]])
def test_of_a_plan(words: list[str], listing: Listing, tmp_path: Path) -> None:
    output = listing(["plan", *words, f"json={tmp_path / 'plan.json'}"])
    assert "peak" in output
    parameters = json.loads((tmp_path / "plan.json").read_text())["training"]["trained_parameters"]
    assert are_shown([f"{parameters:,}"], output)


def test_of_the_progress_and_the_arms_of_an_ablation(listing: Listing, tmp_path: Path) -> None:
    words = ["name=ladder", "arms=paper_and_start,full_range", "seeds=3", f"outputs={tmp_path}"]
    numbers = ablation.load("ladder")[0].across[1]
    assert listing(["status", *words]).count(" 0 of ") == 2 * len(numbers) * 3
    output = listing(["ablation", "dry_run=true", *words])
    assert are_shown((f"{arm}@{n}" for arm in ("paper_and_start", "full_range") for n in numbers), output)
    assert output.count("to train 0, 1, 2") == 2 * len(numbers)


def test_of_what_does_not_add_up(listing: Listing) -> None:
    assert are_shown(["24,125", "≥ 164.5"], listing(["lint-paper"]))
