"""Single damages of a small ablation's outputs: its table comes out equal to the last digit, or a file is named.

Each damage is done to a copy, in which what would read the damaged file is still to be made.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from experiments.engine.job import all_jobs, jobs_to_run, run_job
from experiments.engine.outcome.table import make_table
from experiments.engine.plan import Plan, make_plan, parse
from experiments.engine.run_ablation import main
from pw.sample.clip_folders import reference_folder, sample_folder
from pw.train.record import training_folder

pytestmark = pytest.mark.slow

WORDS = (
    *("name=ansc", "arms=baseline,full", "seeds=1", "start.updates=4", "train.updates=6", "train.batch_size=2"),
    *("sampling.count=3", "sampling.num_steps=1", "sampling.solution_steps=2", "sampling.solution_count=2"),
)
DIGITS = {"missing": None, "null": "null", "NaN": "NaN", "infinite": "Infinity", "true": "true", "text": '"good"'}


@dataclass(frozen=True)
class Results:
    """The finished ablation: its plan, the folders of its first arm (`baseline`) and of its second (`full`)."""

    plan: Plan
    table: Any

    def folders(self, outputs: Path, arm: int) -> dict[str, Path]:
        run = self.plan.arms[arm].first
        rows = {row.name: row for row in all_jobs(at(self.plan, outputs))[1]}
        return {
            "train": training_folder(run, outputs),
            "start": training_folder(run.start_run, outputs) if run.start_run else outputs,
            "videos": sample_folder(run, outputs),
            "solution": sample_folder(run.solution, outputs),
            "reference": reference_folder(run, outputs),
            "scores": Path(rows[run_name(self.plan, arm)].job.score["out"]),
        }


def run_name(plan: Plan, arm: int) -> str:
    return plan.arms[arm].name


def at(plan: Plan, outputs: Path) -> Plan:
    return replace(plan, options=replace(plan.options, outputs=outputs))


def finish(plan: Plan) -> tuple[Any, dict[str, str]]:
    """(the table, failures) after what `make ablation` does, in this process."""
    outputs, (jobs, rows), failures = plan.options.outputs, all_jobs(plan), {}
    for job in jobs_to_run(jobs, outputs):
        if any(need in failures for need in job.needs):
            failures[job.key] = "not run: what it needs failed"
            continue
        try:
            run_job(job, outputs, lambda done, total: None, is_checked=True)
        except (ValueError, OSError) as error:
            failures[job.key] = f"{job.label} failed: {error}"
    return make_table(plan, rows, failures), failures


def numbers(table: Any, arm: str | None = None) -> Any:
    """What a reader of the table compares: everything but measured seconds and bytes; of one arm its own values."""
    if arm is not None:
        return next(entry["values"] for entry in table["arms"] if entry["name"] == arm)
    arms = [{**entry, "cost": {"train_flops": entry["cost"]["train_flops"]}} for entry in table["arms"]]
    return json.dumps({**table, "arms": arms}, default=str, sort_keys=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    plan = make_plan(parse([*WORDS, f"outputs={tmp_path_factory.mktemp('undamaged')}"]))
    table, failures = finish(plan)
    assert not failures
    return Results(plan, table)


@pytest.fixture
def outputs(results: Results, tmp_path: Path) -> Path:
    """A copy of the finished ablation, of links: damages write new files."""
    shutil.copytree(results.plan.options.outputs, tmp_path / "copy", copy_function=os.link)
    return tmp_path / "copy"


def rewrite(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def flip(path: Path) -> None:
    """Flip a bit in each of four bytes in the middle of a file: one is the exponent of a weight."""
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 4):
        content[place] ^= 4
    rewrite(path, bytes(content))


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": lambda path: rewrite(path, path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": flip,
    "empty": lambda path: rewrite(path, b""),
    "text": lambda path: rewrite(path, b"not what it was"),
    "nested": lambda path: rewrite(path, b"[" * 100_000),
    "gone": lambda path: path.unlink(),
    "folder": make_folder,
}
ALL, TWO = tuple(DAMAGES), ("flipped", "gone")
# file -> its damages, and the results of the arm that are to be made from it
FILES = {
    "train/ema.safetensors": (ALL, ("videos", "scores")),
    "train/done.json": (ALL, ("videos", "scores")),
    "train/online.safetensors": (TWO, ()),
    "train/config.yaml": (TWO, ()),
    "train/metrics.jsonl": (TWO, ()),
    "start/ema.safetensors": (ALL, ("train", "videos", "scores")),
    "start/done.json": (ALL, ("train", "videos", "scores")),
    "videos/0001.mkv": (ALL, ("scores",)),
    "videos/anchors/0001.mkv": (TWO, ()),
    "videos/done.json": (ALL, ()),
    "videos/config.yaml": (TWO, ()),
    "solution/0000.mkv": (TWO, ("scores",)),
    "solution/done.json": (TWO, ()),
    "reference/real/0001.mkv": (ALL, ("scores",)),
    "reference/real_b/0001.mkv": (TWO, ()),
    "reference/done.json": (ALL, ()),
    "scores/scores.json": (ALL, ()),
    "scores/scores.csv": (TWO, ()),
}
CASES = [(file, damage) for file, (damages, _) in FILES.items() for damage in damages]


def check_outcome(results: Results, outputs: Path, damaged: Path) -> None:
    """The table is the undamaged one; or the failure names the file, and the other arm's numbers are the same."""
    table, failures = finish(at(results.plan, outputs))
    if not failures:
        assert numbers(table) == numbers(results.table)
        return
    reasons = [reason for reason in failures.values() if not reason.startswith("not run")]
    assert reasons
    assert all(str(damaged) in reason or str(damaged.parent) in reason for reason in reasons), reasons
    assert damaged.parent.parent.name == "train", "what is cheap is made again"
    assert numbers(table, "baseline") == numbers(results.table, "baseline")


@pytest.mark.parametrize(("file", "damage"), CASES)
def test_a_damaged_file_changes_no_number(file: str, damage: str, results: Results, outputs: Path) -> None:
    folders = results.folders(outputs, 1)
    kind, _, name = file.partition("/")
    DAMAGES[damage](folders[kind] / name)
    for reader in FILES[file][1]:
        shutil.rmtree(folders[reader])
    check_outcome(results, outputs, folders[kind] / name)


@pytest.mark.parametrize("name", ["ema.safetensors", "done.json"])
def test_with_a_damaged_training_whose_clips_and_scores_are_there_the_table_stays(
    name: str, results: Results, outputs: Path
) -> None:
    path = results.folders(outputs, 1)["train"] / name
    flip(path)
    table, failures = finish(at(results.plan, outputs))
    assert [str(path) in reason for reason in failures.values()] == [True]
    assert numbers(table, "full") == numbers(results.table, "full")


EXCHANGED = {
    "train": ("videos",),
    "videos": ("scores",),
    "solution": (),
    "scores": (),
    "train/ema.safetensors": ("videos",),
    "train/done.json": ("videos",),
    "videos/0001.mkv": ("scores",),
    "videos/done.json": (),
    "scores/scores.json": (),
    "scores/scores.csv": (),
}


@pytest.mark.parametrize("what", EXCHANGED)
def test_what_two_arms_exchange_changes_no_number(what: str, results: Results, outputs: Path) -> None:
    sides = [results.folders(outputs, arm) for arm in (0, 1)]
    kind, _, name = what.partition("/")
    one, other = (folders[kind] / name for folders in sides)
    one.rename(outputs / "aside")
    other.rename(one)
    (outputs / "aside").rename(other)
    for reader in EXCHANGED[what]:
        shutil.rmtree(sides[1][reader])
    table, failures = finish(at(results.plan, outputs))
    if kind == "train":  # both are refused, the clips and scores of the first arm are there
        assert all("train/" in reason for reason in failures.values() if not reason.startswith("not run"))
        assert numbers(table, "baseline") == numbers(results.table, "baseline")
    else:
        assert not failures
        assert numbers(table) == numbers(results.table)


@pytest.mark.parametrize("sets", [("real", "real_b"), ("real_b", "real")])
def test_reference_clips_of_another_set_change_no_number(
    sets: tuple[str, str], results: Results, outputs: Path
) -> None:
    folder = results.folders(outputs, 0)["reference"]
    path = folder / sets[0] / "0000.mkv"
    rewrite(path, (folder / sets[1] / "0002.mkv").read_bytes())
    shutil.rmtree(outputs / "scores")
    check_outcome(results, outputs, path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("videos", "0003.mkv"), ("videos", "0001.mp4"), ("solution", "0000b.mkv"), ("reference", "0003.mkv")],
)
def test_one_clip_too_many_changes_no_number(kind: str, name: str, results: Results, outputs: Path) -> None:
    first, second = (results.folders(outputs, arm) for arm in (0, 1))
    folder = first["reference"] / "real" if kind == "reference" else second[kind]
    shutil.copy(first["videos"] / "0000.mkv", folder / name)
    shutil.rmtree(second["scores"])
    check_outcome(results, outputs, folder / name)


@pytest.mark.parametrize("digits", [*DIGITS, "huge"])
def test_a_score_that_is_no_number_is_made_again(digits: str, results: Results, outputs: Path) -> None:
    path = results.folders(outputs, 1)["scores"] / "scores.json"
    content = json.loads(path.read_text())
    if digits == "missing":
        del content["metrics"]["psd"]
    else:
        content["metrics"]["psd"] = json.loads(DIGITS.get(digits) or "1e308")
    rewrite(path, json.dumps(content).encode())
    table, failures = finish(at(results.plan, outputs))
    assert not failures
    assert numbers(table) == numbers(results.table)


@pytest.mark.parametrize("values", [{"files": 3}, {"clips": "all"}, {"clips": 1e9}, {"cpu_seconds": "long"}])
@pytest.mark.parametrize("kind", ["train", "videos", "reference"])
def test_a_mark_of_wrong_types_changes_no_number(
    kind: str, values: dict[str, Any], results: Results, outputs: Path
) -> None:
    path = results.folders(outputs, 1)[kind] / "done.json"
    rewrite(path, json.dumps(json.loads(path.read_text()) | values).encode())
    check_outcome(results, outputs, path)


def test_results_from_before_the_marks_are_made_again_and_a_training_is_refused(
    results: Results, outputs: Path
) -> None:
    for path in [*outputs.rglob("done.json"), *outputs.rglob("scores.json")]:
        content = json.loads(path.read_text())
        if path.parent.parent.name != "train":
            rewrite(path, json.dumps({k: v for k, v in content.items() if k not in ("files", "checksum")}).encode())
    table, failures = finish(at(results.plan, outputs))
    assert not failures
    assert numbers(table) == numbers(results.table)


def test_the_command_shows_the_other_arms_and_its_status_tells(
    results: Results, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = results.folders(outputs, 1)
    flip(folders["train"] / "ema.safetensors")
    for kind in ("videos", "scores"):
        shutil.rmtree(folders[kind])
    assert main([*WORDS, f"outputs={outputs}", "tracking=none"]) == 1
    output = "".join(capsys.readouterr().out.split())
    reason = f"{folders['train'] / 'ema.safetensors'}: has another content than was written; put it back, or remove"
    assert "".join(reason.split()) in output
    assert "Traceback" not in output
    table = json.loads((outputs / "ansc" / "table.json").read_text())
    assert numbers(table, "baseline") == numbers(results.table, "baseline")
    assert [entry["status"].startswith("failed") for entry in table["arms"]] == [False, True]
