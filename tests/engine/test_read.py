"""What notebooks read: the runs of one table and no other, from files that say what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import write as report
from experiments.engine.read import paper, runs, table
from pw.io.arguments import ConfigError
from pw.io.manifest import write_mark

ARMS, SEEDS = ("flow", "full"), (0, 1)
PSD = {("flow", 0): 1.5, ("flow", 1): 1.25, ("full", 0): 0.75, ("full", 1): 0.5}


def contract(arm: str, seed: int, **changes: Any) -> dict[str, Any]:
    values = {"arm": arm, "seed": seed, "data": "procedural", "clips_fingerprint": "procedural/1", "scale": "tiny"}
    values |= {"count": 8, "code": "c0de", "git_commit": "0123456789", "dirty": False}
    return values | {"signature": f"clips-{arm}-{seed}", "train_signature": f"train-{arm}-{seed}"} | changes


def write_scores(outputs: Path, arm: str, seed: int, psd: float, name: str = "", **changes: Any) -> None:
    folder = outputs / "scores" / (name or f"{arm}-{seed}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.csv").write_text("clip,psd\n")
    content = {"metrics": {"psd": psd}, "contract": contract(arm, seed, **changes)}
    write_mark(folder / "scores.json", content, [folder / "scores.csv"])


def write_training(outputs: Path, arm: str, seed: int, code: str = "7ra1n") -> Path:
    folder = outputs / "train" / f"train-{arm}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    lines = [{"step": 10, "loss_flow": 0.5 + seed}, {"step": 20, "loss_flow": 0.25 + seed}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rungs = {"train/rung_error/k0": 0.5 + seed, "train/rung_error/k2": 0.25, "held_out/flow_error": 1.0}
    (folder / "diagnostics.jsonl").write_text(json.dumps({"step": 20, **rungs}) + "\n")
    mark = {"signature": folder.name, "code": code, "git_commit": "fedcba9876", "dirty": True}
    write_mark(folder / "done.json", mark, [folder / "config.yaml", folder / "metrics.jsonl"])
    return folder


def arm_entry(arm: str) -> dict[str, Any]:
    values = [PSD[arm, seed] for seed in SEEDS]
    difference = {"diff": -0.75, "low": -1.0, "high": -0.5, "p": 0.01, "p_adjusted": 0.01, "verdict": "better"}
    estimate = {"mean": sum(values) / 2, "low": None, "high": None, "n": 2}
    return {
        "name": arm,
        "varied": {"objective": arm},
        "metrics": {"psd": estimate},
        "values": {"psd": {str(seed): PSD[arm, seed] for seed in SEEDS}},
        "vs_previous": {"psd": difference | {"diff_of": "value", "n": 2, "versus": "flow"}} if arm == "full" else {},
        "status": "ok",
    }


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A table of two arms and two seeds, with the files of its runs."""
    of_all = {key: [contract(arm, seed)[key] for arm, seed in PSD] for key in ("signature", "train_signature")}
    result: dict[str, Any] = {"ablation": "ansc", "seeds": [*SEEDS], "contract": contract("flow", 0) | of_all}
    (tmp_path / "ansc").mkdir()
    report.write(result | {"arms": [arm_entry(arm) for arm in ARMS]}, tmp_path / "ansc", ("table.json",))
    for (arm, seed), psd in PSD.items():
        write_scores(tmp_path, arm, seed, psd)
        write_training(tmp_path, arm, seed)
    return tmp_path


def shown(outputs: Path) -> tuple[set[tuple[str, int]], str]:
    """(the runs that are shown, why others are not)."""
    read = runs("ansc", outputs)
    return {(run.arm, run.seed) for run in read.entries}, "\n".join(read.left_out)


def test_runs_have_the_scores_and_curves_of_their_files(outputs: Path) -> None:
    read = runs("ansc", outputs)
    assert read.left_out == []
    assert [(row["arm"], row["seed"], row["psd"]) for row in read.rows] == [(*key, psd) for key, psd in PSD.items()]
    run = read.entries[1]
    assert (run.training, run.clips, run.commit, run.code) == ("train-flow-1", "clips-flow-1", "fedcba9+", "7ra1n")
    assert run.curves["train/loss_flow"] == [(10, 1.5), (20, 1.25)]
    assert run.curves["held_out/flow_error"] == [(20, 1.0)]
    # k0 is 0.5 and 1.5 in seeds 0 and 1
    assert read.last("train/rung_error/")["full"] == {"k0": 1.0, "k2": 0.25}


def test_runs_say_of_what_they_are(outputs: Path) -> None:
    text = runs("ansc", outputs)._repr_markdown_()
    assert "ansc: seeds 0, 1, scale tiny, data procedural procedural/1, 8 clips, commit 0123456" in text
    assert "| full | 1 | train-full-1 | clips-full-1 | fedcba9+ | 7ra1n | 0.5 |" in text


@pytest.mark.parametrize(
    ("key", "value"),
    [("data", "shards"), ("clips_fingerprint", "procedural/2"), ("scale", "proxy"), ("count", 4), ("code", "0ther")],
)
def test_a_run_of_other_data_scale_or_code_is_left_out(outputs: Path, key: str, value: Any) -> None:
    write_scores(outputs, "full", 1, PSD["full", 1], **{key: value})
    kept, reason = shown(outputs)
    assert kept == {*PSD} - {("full", 1)}
    assert reason == f"full seed 1: scores/full-1 is of something else than the table: {key} {value}, not " + str(
        contract("full", 1)[key]
    )


def test_scores_that_are_not_the_tables_are_left_out(outputs: Path) -> None:
    write_scores(outputs, "flow", 0, 9.0)
    kept, reason = shown(outputs)
    assert kept == {*PSD} - {("flow", 0)}
    assert reason.endswith("psd 9.0, not 1.5")


def test_a_seed_that_other_code_trained_is_left_out(outputs: Path) -> None:
    write_training(outputs, "full", 1, code="0lder")
    kept, reason = shown(outputs)
    assert kept == {*PSD} - {("full", 1)}
    assert reason == "full seed 1: it was trained by code 0lder, the others of this arm by 7ra1n"


def test_what_is_damaged_is_left_out_and_the_rest_is_shown(outputs: Path) -> None:
    with (outputs / "train" / "train-flow-0" / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    (outputs / "scores" / "flow-1" / "scores.json").write_text("{")
    kept, reason = shown(outputs)
    assert kept == {("full", 0), ("full", 1)}
    assert "flow seed 0: train/train-flow-0" in reason
    assert "flow seed 1: its scores are not here, or damaged" in reason


def test_an_arm_of_that_name_in_another_ablation_is_another_run(outputs: Path) -> None:
    write_scores(outputs, "full", 0, 3.0, name="another", signature="clips-elsewhere")
    assert shown(outputs) == ({*PSD}, "")


def test_a_training_that_was_made_elsewhere_has_scores_without_curves(outputs: Path) -> None:
    folder = outputs / "train" / "train-full-0"
    folder.rename(outputs / "moved")
    run = next(run for run in runs("ansc", outputs).entries if (run.arm, run.seed) == ("full", 0))
    assert (run.scores, run.curves, run.code, run.commit) == ({"psd": 0.75}, {}, None, "0123456")


def test_a_table_gives_rows_and_differences(outputs: Path) -> None:
    outcome = table("ansc", outputs)
    assert outcome.rows == [
        {"arm": "flow", "objective": "flow", "psd": 1.375},
        {"arm": "full", "objective": "full", "psd": 0.625},
    ]
    assert [(row["arm"], row["metric"], row["diff"]) for row in outcome.differences] == [("full", "psd", -0.75)]
    assert outcome.scores[("full", 1)] == {"psd": 0.5}


def test_without_a_table_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no table yet; `make ablation name=ansc` makes it"):
        runs("ansc", tmp_path)


def test_a_table_of_the_paper_has_its_printed_cells_and_checks(tmp_path: Path) -> None:
    read = paper("table_9_3", tmp_path)
    printed = {row["arm"]: row["paper"]["MUSIQ"] for row in read.rows}
    assert float(printed["full"]) == 57.67
    assert [row["ours"] for row in read.rows] == [{}] * len(read.rows)
    assert all("table_9_3" in check.tables for check in read.checks)
    assert "57.67" in read._repr_markdown_()


def test_a_table_that_the_paper_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"table_6: .*the paper's tables are table_1, table_2"):
        paper("table_6", tmp_path)
