"""`pw runs` and `pw status` without a name: what was run, from files; damage is named and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from filelock import FileLock

from experiments.engine import runs
from experiments.engine.job import all_jobs
from experiments.engine.ledger import Ledger
from experiments.engine.plan import Plan, make_plan, parse
from experiments.engine.runs import find_runs
from experiments.engine.status import main as status
from experiments.engine.status import outline, write_outline
from pw.io import arguments
from pw.io.files import write_json
from pw.run.build import Run
from pw.sample.clip_folders import sample_folder
from pw.train.record import training_folder, write_config

ROOT = Path(__file__).parents[2]
COMMIT = {"git_commit": "0123456789abcdef", "dirty": True}


def at(path: Path, day: int) -> None:
    """Set the time of a file, to noon of a day in November 2026, UTC."""
    os.utime(path, (1793534400 + 86400 * (day - 1),) * 2)


def trained(run: Run, outputs: Path, day: int, *, is_done: bool = True) -> Path:
    """The folder of a training; without `is_done` it is at update 20."""
    folder = training_folder(run, outputs)
    write_config(run, folder)
    lines = [{"step": 10, "loss_flow": 0.25, "lr": 1}, {"step": 20, "loss_flow": 0.125, "loss_consistency": 3e-3}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if is_done:
        write_json(folder / "done.json", {"signature": folder.name, "updates": 160, "files": {}, **COMMIT})
    for path in (*folder.iterdir(), folder):
        at(path, day)
    return folder


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    outputs = tmp_path_factory.mktemp("outputs")
    return make_plan(parse(["name=ansc", "arms=baseline,full", "seeds=1", f"outputs={outputs}"]))


@pytest.fixture
def outputs(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "outputs")


@pytest.fixture(scope="module")
def template(plan: Plan) -> Path:
    """Both trainings of `plan`, `full` unfinished; clips and scores of `baseline`; a table: of days 2, 4, 3 and 5."""
    tmp_path = plan.options.outputs
    baseline, full = (arm.first for arm in plan.arms)
    trained(baseline, tmp_path, 2)
    trained(full, tmp_path, 4, is_done=False)
    clips = sample_folder(baseline, tmp_path)
    write_config(baseline, clips, "sample")
    write_json(clips / "done.json", {"signature": clips.name, "clips": 128, "training": "0", "seed": 0, **COMMIT})
    at(clips / "done.json", 3)
    for arm, psd in (("baseline", 1.5), ("floor", 0.1)):
        contract = {"signature": clips.name, "arm": arm}
        write_json(tmp_path / "scores" / arm / "scores.json", {"metrics": {"psd": psd}, "contract": contract})
    write_outline(outline(plan, *all_jobs(plan)), plan.options)
    at(tmp_path / "ansc" / "plan.json", 4)
    answers = [{"clause": "", "answer": answer} for answer in ("holds", "not run", "holds")]
    table = {"contract": {**COMMIT, "scale": "tiny", "data": "procedural"}, "verdict": answers, "settings": ["seeds=1"]}
    write_json(tmp_path / "ansc" / "table.json", table)
    at(tmp_path / "ansc" / "table.json", 5)
    return tmp_path


def listed(outputs: Path, *words: str) -> list[str]:
    """What `json=` says of the words, as `kind state`."""
    file = outputs / "list.json"
    assert runs.main([*words, f"outputs={outputs}", f"json={file}"]) == 0
    return [f"{row['kind']} {row['state']}" for row in json.loads(file.read_text())]


def test_the_newest_comes_first_with_what_came_out(outputs: Path, plan: Plan) -> None:
    entries, damaged = find_runs(outputs)
    assert damaged == []
    assert [(entry.kind, entry.state, entry.when[8:10]) for entry in entries] == [
        ("ablation", "stopped", "05"),
        ("train", "stopped", "04"),
        ("sample", "done", "03"),
        ("train", "done", "02"),
    ]
    ablation, full, clips, baseline = entries
    assert ablation.outcome == "0 of 2 runs, holds 2, not run 1"
    assert full.outcome == "update 20 of 160, loss_flow 0.25 → 0.125, loss_consistency 0.003 → 0.003"
    assert (clips.outcome, clips.values["psd"]) == ("psd 1.5", 1.5)  # not the floor's
    assert baseline.outcome == "loss_flow 0.25 → 0.125, loss_consistency 0.003 → 0.003"
    assert [entry.commit for entry in entries] == ["0123456+", "", "0123456+", "0123456+"]
    assert baseline.signature == plan.arms[0].first.training_signature
    assert baseline.labels == [("ansc", "baseline seed 0", "baseline", "0")]
    assert baseline.choices == {"stage": "hires", "objective": "flow", "scale": "tiny", "data": "procedural"}
    assert "objective=flow" in baseline.overrides


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("kind=train", ["train stopped", "train done"]),
        ("kind=train state=done", ["train done"]),
        ("arm=full", ["train stopped"]),
        ("ablation=ansc arm=baseline", ["sample done", "train done"]),
        ("objective=flow", ["sample done", "train done"]),
        ("stage=hires objective=shortcut scale=tiny data=procedural", ["train stopped"]),
        ("step_sampler=exponential_index", ["train stopped"]),
        ("since=2026-11-03 until=2026-11-04", ["train stopped", "sample done"]),
        ("until=2026-11-03T11:00 kind=train", ["train done"]),
        ("commit=0123456789 kind=ablation", ["ablation stopped"]),
        ("stage=anchor", []),
    ],
)
def test_words_choose(words: str, found: list[str], outputs: Path) -> None:
    assert listed(outputs, *words.split()) == found


def test_a_time_of_another_zone_is_read_as_local_time() -> None:
    text = datetime(2026, 11, 3, 10).astimezone().astimezone(UTC).isoformat()
    assert arguments.parse(runs.RunsOptions, [f"since={text}"]).since == "2026-11-03T10:00:00"


def test_a_signature_that_is_copied_finds_its_run(outputs: Path, plan: Plan) -> None:
    assert listed(outputs, f"signature={plan.arms[1].first.training_signature}") == ["train stopped"]


def test_fits_80_columns_and_names_damage_below(outputs: Path, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    folder = training_folder(plan.arms[0].first, outputs)
    for name, file, text in (
        ("cut", "config.yaml", "# pw tr"),
        ("odd", "done.json", "[" * 9999),
        ("list", "done.json", "[]"),
    ):
        shutil.copytree(folder, folder.with_name(name))
        (folder.with_name(name) / file).write_text(text)
    (outputs / "deep").mkdir()
    (outputs / "deep" / "plan.json").write_text("[" * 99999)
    (outputs / "train" / "binary").write_bytes(b"\xff")
    (outputs / "train" / "emptied").mkdir()
    assert runs.main([f"outputs={outputs}"]) == 0
    listed, below = capsys.readouterr()
    assert max(map(len, listed.splitlines())) <= 80
    assert folder.name in listed
    named = {"train/cut/", "train/odd/", "train/list", "train/bina", "deep/plan."}
    assert {line.split(f"{outputs}/")[1][:10] for line in below.splitlines()} == named
    assert all(line.startswith("not listed: ") for line in below.splitlines())


def test_running_and_failed_are_told_from_stopped(outputs: Path, plan: Plan) -> None:
    run = plan.arms[1].first
    folder, ledger = training_folder(run, outputs), Ledger(outputs)
    with FileLock(folder / ".lock"):  # as `pw train` holds it
        assert listed(outputs, "arm=full") == ["train running"]
    assert listed(outputs, "arm=full") == ["train stopped"]
    claim = ledger.claim(f"train:{folder.name}", "train full seed 0", folder / "log")
    ledger.write(replace(claim, done=30, total=160))
    assert "update 30 of 160" in next(entry.outcome for entry in find_runs(outputs)[0] if entry.state == "running")
    ledger.fail(claim.key, "ValueError: no")
    assert listed(outputs, "arm=full") == ["train failed"]
    ledger.release(claim.key)
    (folder / "not_finite").mkdir()
    (folder / "not_finite" / "batch.json").touch()
    assert listed(outputs, "arm=full") == ["train failed"]


def test_an_earlier_table_is_listed(outputs: Path) -> None:
    earlier = outputs / "ansc" / "earlier" / "01234567"
    earlier.mkdir(parents=True)
    shutil.copy(outputs / "ansc" / "table.json", earlier)
    assert listed(outputs, "kind=ablation", "ablation=ansc", "state=done") == ["ablation done"]


def test_status_without_a_name_is_an_overview(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status([f"outputs={outputs}"]) == 0
    assert "0 of 2 runs, holds 2, not run 1" in capsys.readouterr().out
    assert status([f"outputs={outputs}", "weighting=uniform"]) == 2
    assert "weighting=uniform: name=… is missing" in capsys.readouterr().err


def test_status_shows_the_signatures(outputs: Path, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(["name=ansc", f"outputs={outputs}"]) == 0
    printed = capsys.readouterr().out
    for arm in plan.arms:
        assert f"{arm.first.training_signature}  {arm.first.signature}" in printed


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("weighting=unifrom", "weighting is one of .*; did you mean uniform?"),
        ("wieghting=uniform", "no run has a key 'wieghting'; did you mean weighting?"),
        ("kind=trian", "one of train, sample, ablation; did you mean train?"),
        ("since=yesterday", "since=yesterday: a day or a time, e.g. 2026-11-01"),
        ("outputs=/nonexistent", "outputs=/nonexistent: there is no such folder"),
    ],
)
def test_a_wrong_word_is_answered(word: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.main([word]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message.replace("?", r"\?"), error), error


def test_nothing_heavy_is_imported_for_a_list(outputs: Path) -> None:
    """2000 runs are listed in about a second, half of which is Python's start."""
    command = [sys.executable, "-X", "importtime", "-m", "pw", "runs", f"outputs={outputs}"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=True)
    imported = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
    assert not {"torch", "numpy", "hydra", "omegaconf", "rich", "scipy"} & imported
