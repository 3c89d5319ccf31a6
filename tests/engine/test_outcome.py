"""The table and MLflow runs are made from files; a damaged or foreign file gives an error that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.metrics import protocols
from experiments.engine.job import all_jobs, score_is_current
from experiments.engine.outcome import mlflow_sync
from experiments.engine.outcome.result_files import read_result
from experiments.engine.outcome.table import make_table, write_table
from experiments.engine.plan import Plan, make_plan, parse
from pw.io.arguments import ConfigError
from pw.io.files import write_json
from pw.io.manifest import DamagedResult, write_mark
from pw.io.video import write_video
from pw.sample.evaluate import is_sampled, reference_folder, sample_folder
from pw.train.record import is_trained, training_folder

SAMPLING = {"signature": str, "training": str, "clips": int, "seed": int}
DAMAGED = ("", '{"signature": "0', "[]", "null")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A plan of one arm and seed, with all of its scores on disk."""
    plan = make_plan(parse(["name=ansc", "arms=baseline", "seeds=1", f"outputs={tmp_path}"]))
    for row in all_jobs(plan)[1]:
        contract = {"arm": row.name, "metrics": protocols(["mhd"])}
        scores = {"metrics": {"mhd": 0.02}, "n_videos": {"mhd": 8}, "contract": contract}
        write_mark(Path(row.job.score["out"]) / "scores.json", scores, [])
    return plan


def marks(plan: Plan) -> dict[str, Path]:
    run, outputs = plan.arms[0].first, plan.options.outputs
    return {
        "training": training_folder(run, outputs) / "done.json",
        "sampling": sample_folder(run, outputs) / "done.json",
        "reference": reference_folder(run, outputs) / "done.json",
        "scores": Path(all_jobs(plan)[1][0].job.score["out"]) / "scores.json",
    }


@pytest.mark.parametrize("text", [*DAMAGED, '{"metrics": {}, "contract": {}}'])
@pytest.mark.parametrize("what", ["training", "sampling", "reference", "scores"])
def test_a_damaged_file_is_named_and_costs_the_table_no_more_than_what_it_said(
    what: str, text: str, plan: Plan, caplog: pytest.LogCaptureFixture
):
    undamaged = make_table(plan, all_jobs(plan)[1], {})["arms"][0]["metrics"]
    path = marks(plan)[what]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if what == "scores":
        with pytest.raises(DamagedResult, match=r"scores\.json: .*; `make ablation` makes it again") as caught:
            make_table(plan, all_jobs(plan)[1], {})
        assert str(path) in str(caught.value)
    else:  # `make ablation` has it made again, or its job fails
        assert make_table(plan, all_jobs(plan)[1], {})["arms"][0]["metrics"] == undamaged
        assert f"{path}: " in caplog.text


def test_a_mark_that_cannot_be_read_is_an_error_in_words(plan: Plan):
    marks(plan)["training"].mkdir(parents=True)
    with pytest.raises(DamagedResult, match=r"done\.json: cannot be read \(Is a directory\)"):
        is_trained(plan.arms[0].first, plan.options.outputs)


def test_a_training_that_did_not_note_its_costs_has_none(plan: Plan):
    write_mark(marks(plan)["training"], {"signature": "0", "updates": 3}, [])
    cost = make_table(plan, all_jobs(plan)[1], {})["arms"][0]["cost"]
    assert (cost["updates"], cost["train_flops"]) == (3, None)


def test_a_table_that_is_cut_off_is_put_aside_and_not_fallen_over(plan: Plan):
    plan.folder.mkdir(parents=True)
    (plan.folder / "table.json").write_text('{"settings": [')
    clips = marks(plan)["sampling"].parent
    clips.mkdir(parents=True)
    write_video(clips / "0000.mkv", np.zeros((2, 24, 24, 3), np.uint8))
    write_table(plan, make_table(plan, all_jobs(plan)[1], {}))
    assert next((plan.folder / "earlier").rglob("table.json")).read_text() == '{"settings": ['
    assert (plan.folder / "table.md").exists()


@pytest.mark.parametrize("text", [*DAMAGED, "{}", '{"clips": "all", "contract": 3}'])
def test_clips_and_scores_of_a_mark_that_says_nothing_are_made_again(text: str, plan: Plan):
    run, paths = plan.arms[0].first, marks(plan)
    score = all_jobs(plan)[1][0].job.score
    checks: dict[str, Callable[[], bool]] = {
        "sampling": lambda: is_sampled(run, 1, plan.options.outputs),
        "scores": lambda: score_is_current(score),
    }
    for what, is_done in checks.items():
        paths[what].parent.mkdir(parents=True, exist_ok=True)
        paths[what].write_text(text)
        assert not is_done()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is truncated"),
        ("[]", "is truncated, .* or not JSON"),
        ('{"signature": "0"}', "holds no training, no clips, no seed, which this suite does not write"),
        ('{"signature": "0", "training": "1", "clips": "2", "seed": 3}', "holds clips='2', which"),
    ],
)
def test_a_mark_is_read_whole_or_told_by_name_with_what_would_do(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "done.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"done.json: {message}.*; sample again"):
        read_result(path, SAMPLING, "sample again")
    mark = {"signature": "0", "training": "1", "clips": 2, "seed": 3}
    write_json(path, mark)
    assert read_result(path, SAMPLING, "sample again") == mark


def test_outputs_without_a_table_and_a_wrong_key_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mlflow_sync.main([f"outputs={tmp_path}"]) == 2
    assert f"outputs={tmp_path}: no ablation has a table there" in capsys.readouterr().err
    assert mlflow_sync.main(["output=x"]) == 2
    assert "output=x: there is no option output; did you mean outputs?" in capsys.readouterr().err


def test_a_table_whose_plan_is_damaged_is_named_and_the_status_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ansc").mkdir()
    (tmp_path / "ansc" / "plan.json").write_text("{")
    (tmp_path / "ansc" / "table.json").write_text("{}")
    assert mlflow_sync.main([f"outputs={tmp_path}"]) == 1
    assert "ansc: not logged" in capsys.readouterr().err
