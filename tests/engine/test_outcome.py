"""The table and MLflow runs are made from files; a damaged or foreign file gives an error that names it."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from small_shards import write_noise

from benchmarks.metrics import protocols
from experiments.engine.job import all_jobs, remove_results, results_to_remove, score_is_current
from experiments.engine.outcome import mlflow_sync
from experiments.engine.outcome.result_files import read_result
from experiments.engine.outcome.table import make_table
from experiments.engine.outcome.table_files import TEXTS, archive_table, write_table
from experiments.engine.plan import Plan, make_plan, parse
from experiments.engine.run_ablation import finish, main
from pw.io.arguments import ConfigError
from pw.io.files import write_json
from pw.io.manifest import DamagedResult, write_mark
from pw.io.video import write_video
from pw.sample.clip_folders import is_sampled, reference_folder, sample_folder
from pw.tracking.mlflow_log import RunRecord
from pw.train.record import is_trained, training_folder

SAMPLING = {"signature": str, "training": str, "clips": int, "seed": int}
DAMAGED = ("", '{"signature": "0', "[]", "null")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A plan of one arm and seed, with all of its scores on disk."""
    return scored_plan(tmp_path)


def scored_plan(outputs: Path, *words: str) -> Plan:
    plan = make_plan(parse(["name=ansc", "arms=baseline", "seeds=1", *words, f"outputs={outputs}"]))
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


def test_an_arm_of_jumps_alone_has_no_gap_to_a_solution_and_the_table_says_why(tmp_path: Path) -> None:
    plan = make_plan(parse(["name=few_step", "arms=flow,consistency", "seeds=1", f"outputs={tmp_path}"]))
    plan = replace(plan, ablation=replace(plan.ablation, metrics=("psd", "solution_gap")))
    rows = all_jobs(plan)[1]
    has_gap = {row.name: "solution_gap" in row.job.score["metrics"] for row in rows}
    assert has_gap == {
        **{"floor": False, "ceiling": False},
        **{f"{arm}@{steps}": arm == "flow" for arm in ("flow", "consistency") for steps in (1, 2, 4, 8)},
    }
    for row in rows:
        contract = {"arm": row.name, "metrics": protocols(["psd"])}
        write_mark(Path(row.job.score["out"]) / "scores.json", {"metrics": {"psd": 1.0}, "contract": contract}, [])
    arms = ", ".join(f"consistency@{steps}" for steps in (1, 2, 4, 8))
    reason = f"no many-step solution of {arms}: only jumps to data are trained, no steps of a grid"
    assert reason in make_table(plan, rows, {})["notes"]


@pytest.mark.parametrize("text", ['{"settings": [', '{"contract": [1]}'])
def test_a_table_that_is_damaged_is_put_aside_and_not_fallen_over(text: str, plan: Plan):
    plan.folder.mkdir(parents=True)
    (plan.folder / "table.json").write_text(text)
    unwritten: list[str] = []
    write_table(plan, make_table(plan, all_jobs(plan)[1], {}), unwritten)
    assert not unwritten
    assert next((plan.folder / "earlier").rglob("table.json")).read_text() == text
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


def test_a_table_of_an_earlier_call_is_not_logged_as_the_latest(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    """As while the same ablation runs on other data."""
    write_json(plan.folder / "plan.json", {"words": [*plan.options.words(), "train.updates=9"]})
    write_json(plan.folder / "table.json", {"settings": plan.options.settings()})
    assert mlflow_sync.main([f"outputs={plan.options.outputs}"]) == 1
    assert "ansc: not logged: its table is of an earlier call" in capsys.readouterr().err


def test_runs_on_other_clips_at_another_size_or_by_other_code_have_other_names(tmp_path: Path) -> None:
    """What MLflow shows of the same arm and seed."""
    (tmp_path / "shards").mkdir()
    urls = f"{write_noise(tmp_path / 'shards', train=3, val=3)}/*.tar"
    shards = ["data=shards", f"data.urls={urls}"]

    def record(*words: str) -> RunRecord:
        plan = make_plan(parse(["name=ansc", "arms=baseline", "seeds=1", f"outputs={tmp_path}", *words]))
        arm = plan.arms[0]
        return mlflow_sync.run_record(plan, arm, 0, arm.first, tmp_path / "scores.json")

    records = [record(), record("scale.height=32", "scale.width=32", "start.updates=3"), record(*shards)]
    (tmp_path / "shards" / "train-000000.tar").unlink()
    write_noise(tmp_path / "shards", train=4, val=3)
    records.append(record(*shards))  # other clips behind the same path
    assert len({record.name for record in records}) == len(records)
    assert [record.params["data"] for record in records] == ["procedural", "procedural", "shards", "shards"]
    assert [record.params["size"] for record in records] == ["3x24x24", "3x32x32", "3x24x24", "3x24x24"]
    assert all(str(record.params["data_hash"]) in record.name for record in records)
    training = training_folder(make_plan(parse(["name=ansc", "arms=baseline", "seeds=1"])).arms[0].first, tmp_path)
    mark = {"signature": training.name, "code": "of another version", "git_commit": "0123", "dirty": True}
    write_mark(training / "done.json", mark, [])
    by_other_code = record()
    assert by_other_code.name != records[0].name
    assert by_other_code.tags["git_commit"] == "0123-dirty"


@pytest.mark.parametrize("text", ["{", "[1]", '{"words": [1]}', '{"words": null}', '{"words": ["name=ansc"]}'])
def test_a_table_whose_plan_is_damaged_is_named_and_the_status_says_so(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ansc").mkdir()
    (tmp_path / "ansc" / "plan.json").write_text(text)
    (tmp_path / "ansc" / "table.json").write_text("[]")
    assert mlflow_sync.main([f"outputs={tmp_path}"]) == 1
    assert "ansc: not logged" in capsys.readouterr().err


def write_clip(plan: Plan) -> Path:
    clip = marks(plan)["sampling"].parent / "0000.mkv"
    clip.parent.mkdir(parents=True, exist_ok=True)
    write_video(clip, np.zeros((2, 24, 24, 3), np.uint8))
    return clip


def finished(plan: Plan) -> tuple[int, str]:
    """(exit status, output) of the last stage."""
    console = Console(file=io.StringIO(), width=200)
    return finish(plan, all_jobs(plan)[1], {}, console, time.perf_counter()), console.file.getvalue()


@pytest.fixture
def untracked(plan: Plan) -> Plan:
    """The plan with a clip; tests set tracking=none."""
    write_clip(plan)
    return plan


@pytest.mark.parametrize("name", [*TEXTS, "plot.png", "contact_sheet.png", "index.html"])
def test_a_file_of_the_table_that_cannot_be_written_is_named_and_costs_no_other(name: str, untracked: Plan) -> None:
    (untracked.folder / name / "in the way").mkdir(parents=True)
    status, output = finished(untracked)
    assert status == 1
    assert f"{name} was not written" in output or f"{name}: Is a directory" in output
    assert "psd" in output
    written = {path.name for path in untracked.folder.iterdir() if path.is_file()}
    others = {*TEXTS, "plot.png", "contact_sheet.png", "index.html"} - {name}
    # a table.json that cannot be read may be of other settings: nothing is written over what is beside it
    assert written - {".lock"} == (others - set(TEXTS) if name == "table.json" else others)
    assert not list(untracked.folder.glob(".*.part"))


def test_a_clip_that_cannot_be_read_costs_the_contact_sheet_alone(untracked: Plan) -> None:
    assert finished(untracked)[0] == 0
    write_clip(untracked).write_bytes(b"no video")
    status, output = finished(untracked)
    assert status == 1
    assert "contact_sheet.png was not written: " in output
    assert "0000.mkv" in output
    assert not (untracked.folder / "contact_sheet.png").exists()  # it was of other clips
    assert (untracked.folder / "index.html").exists()


def page_data(plan: Plan) -> dict[str, Any]:
    """What the players of the page show."""
    text = (plan.folder / "index.html").read_text()
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


def test_the_page_shows_clips_that_are_as_their_mark_says(untracked: Plan) -> None:
    clip = write_clip(untracked)
    assert finished(untracked)[0] == 0
    assert '<ul class="verdict">' in (untracked.folder / "index.html").read_text()
    assert {clip["gap"] for clip in page_data(untracked)["clips"][0]} == {"is not made"}  # it has no mark
    write_mark(clip.with_name("done.json"), {"signature": "0", "training": "0", "clips": 1, "seed": 0}, [clip])
    assert finished(untracked)[0] == 0
    data = page_data(untracked)
    assert (data["labels"], data["names"]) == (["baseline"], ["0000"])
    assert (untracked.folder / data["clips"][0][0]["source"]).resolve() == clip
    assert (untracked.folder / "page" / data["clips"][0][0]["mp4"]).stat().st_size > 500
    write_video(clip, np.full((2, 24, 24, 3), 99, np.uint8))  # a video, but not that of the run
    assert finished(untracked)[0] == 0
    assert "were written" in page_data(untracked)["clips"][0][0]["gap"]
    assert f"pw ablation name=ansc seeds=1 arms=baseline outputs={untracked.options.outputs}" in (
        untracked.folder / "index.html"
    ).read_text().replace("&#39;", "")


def test_a_page_is_put_aside_with_its_table(untracked: Plan) -> None:
    result = make_table(untracked, all_jobs(untracked)[1], {})
    for settings in ("a", "b", "a", "b"):
        (untracked.folder / "page").mkdir(parents=True, exist_ok=True)
        for name in ("index.html", "page/0.mp4"):
            (untracked.folder / name).write_text(settings)
        write_json(untracked.folder / "table.json", {"settings": [settings]})
        archive = archive_table(untracked.folder, result)
        assert archive is not None
        assert {(archive / name).read_text() for name in ("index.html", "page/0.mp4")} == {settings}
        assert not (untracked.folder / "page").exists()


def test_a_table_that_can_be_written_nowhere_is_shown(untracked: Plan) -> None:
    untracked.folder.write_text("a file, as on a disk that is only read")
    status, output = finished(untracked)
    assert status == 1
    assert "psd" in output
    assert f"no file was written: outputs={untracked.folder}: cannot be written (Not a directory)" in output


@pytest.mark.parametrize("text", ["\x00", '{"step": 1}\nno line\n'])
def test_a_damaged_curve_costs_no_table(text: str, tmp_path: Path) -> None:
    plan = scored_plan(tmp_path, "tracking=mlflow")
    write_clip(plan)
    curve = marks(plan)["training"].parent / "metrics.jsonl"
    curve.parent.mkdir(parents=True)
    curve.write_text(text + '\n{"step": 2}\n')
    write_mark(marks(plan)["training"], {"signature": "0"}, [curve])
    status, output = finished(plan)
    assert status == 1
    assert "MLflow was not written" in output
    assert "metrics.jsonl, line" in output
    assert (plan.folder / "index.html").exists()


def test_a_fresh_start_that_is_killed_leaves_nothing_that_looks_done(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    paths, jobs = marks(plan), all_jobs(plan)[0]
    for name in ("training", "sampling"):
        write_json(paths[name], {"signature": "0"})
        for number in range(9):
            (paths[name].parent / f"{number}").mkdir()
    monkeypatch.setattr(shutil, "rmtree", killed)
    for name in ("training", "sampling"):
        folders = [f for f in results_to_remove(plan, jobs, plan.options.outputs) if f == paths[name].parent]
        with pytest.raises(KeyboardInterrupt):
            remove_results(folders)
        assert not paths[name].exists()
        assert (paths[name].parent / "0").exists()


def test_what_other_code_made_is_named_in_the_notes_once(plan: Plan) -> None:
    run, paths = plan.arms[0].first, marks(plan)
    assert run.start_run is not None
    own = {"signature": "0", "code": run.training_code, "start": run.start_run.training_signature}
    clips = {"signature": "0", "training": "0", "clips": 8, "seed": 0}
    score = {"metrics": {"mhd": 0.02}, "n_videos": {"mhd": 8}}
    contract = {"arm": "floor", "metrics": protocols(["mhd"])}
    solution = sample_folder(run.solution, plan.options.outputs) / "done.json"

    def notes(other: str) -> list[str]:
        write_mark(paths["training"], own | ({"code": other, "start": other} if other else {}), [])
        write_mark(paths["sampling"], clips | {"code": other or run.sampling_code}, [])
        write_mark(solution, clips | {"code": other or run.sampling_code}, [])
        write_mark(paths["scores"], {**score, "contract": contract | {"code": other or run.sampling_code}}, [])
        return make_table(plan, all_jobs(plan)[1], {})["notes"]

    row = all_jobs(plan)[1][0].name
    expected = [
        "trained by another version of the code (code=as_trained): baseline seed 0",
        f"trained from another start than that of this plan: baseline seed 0 (from 0ther, here {own['start']})",
        "clips sampled by another version of the code: baseline seed 0, 48-step solution of baseline seed 0",
        f"scored from clips of another version of the code: {row} seed 0",
    ]
    assert [note for note in notes("0ther") if note not in notes("")] == expected


@pytest.mark.parametrize("name", ["ledger", "logs", "scores", "train", "videos", "reference", "ansc"])
def test_a_file_where_results_go_is_named_before_anything_is_planned(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("")
    assert main(["name=ansc", f"outputs={tmp_path}"]) == 2
    assert f"outputs={tmp_path}: {tmp_path / name} is no folder" in capsys.readouterr().err


def test_outputs_that_cannot_be_written_are_named_and_no_full_disk(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["name=ansc", "outputs=/dev/null/x"]) == 2
    assert "outputs=/dev/null/x: cannot be written (Not a directory)" in capsys.readouterr().err
