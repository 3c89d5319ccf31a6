"""Sweeps from the command line, and the curve over numeric arms."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from small_shards import write_noise

from benchmarks.measure.clips import table_contract
from experiments.engine.ablation import Ablation, Statement
from experiments.engine.job import all_jobs
from experiments.engine.outcome.table import curve_of
from experiments.engine.outcome.table_files import archive_table
from experiments.engine.plan import Plan, make_plan, parse, plan_of
from pw.io.arguments import ConfigError
from pw.run.build import build
from pw.run.compose import swept_values


@cache
def plan_for(line: str) -> Plan:
    return make_plan(parse([*line.split(), "seeds=1"]))


def arms(line: str) -> dict[str, str | None]:
    """Arm -> the one it is compared with."""
    return {arm.name: arm.versus for arm in plan_for(line).arms}


def lines_of(line: str) -> dict[str, list[float]] | None:
    """Line of the curve -> its numbers."""
    curve = curve_of(plan_for(line))
    return curve and {line["name"]: [number for number, _ in line["points"]] for line in curve["lines"]}


class TestASweep:
    def test_takes_the_place_of_the_arms_and_keeps_what_the_ablation_fixes(self) -> None:
        plan = plan_for("name=beta step_sampler.beta=0,0.2,0.7")
        assert arms("name=beta step_sampler.beta=0,0.2,0.7") == {
            "beta_0": None,
            "beta_0.2": "beta_0",
            "beta_0.7": "beta_0",
        }
        assert [arm.varied["step_sampler.beta"] for arm in plan.arms] == [0, 0.2, 0.7]
        runs = {arm.name: arm.first.signature for arm in plan_for("name=beta").arms}
        assert [arm.first.signature for arm in plan.arms][::2] == [runs["beta_0.0"], runs["beta_0.7"]]  # cached runs

    def test_is_found_again_by_the_words_that_the_plan_keeps(self) -> None:
        plan = plan_for("name=beta step_sampler.beta=0,0.2,0.7")
        assert plan.options.words() == ["name=beta", "seeds=1", "step_sampler.beta=0,0.2,0.7"]
        assert make_plan(parse(plan.options.words())).arms == plan.arms

    def test_of_a_key_that_is_not_varied_is_of_one_arm(self) -> None:
        plan = plan_for("name=ansc arms=full weighting.p=0,0.5,1")
        assert [arm.name for arm in plan.arms] == ["p_0", "p_0.5", "p_1"]
        full = next(arm for arm in plan_for("name=ansc").arms if arm.name == "full")
        assert plan.arms[1].first.signature == full.first.signature
        assert (plan.probes, plan.ablation.paper) == ((), None)

    def test_of_a_group_names_its_arms_by_the_choice(self) -> None:
        assert arms("name=beta step_sampler=uniform,closed") == {"uniform": None, "closed": "uniform"}
        assert list(arms("name=ansc arms=full weighting=uniform,delta_sigma")) == ["uniform", "delta_sigma"]

    def test_of_what_arms_are_crossed_with_replaces_those_values(self) -> None:
        line = "name=ladder arms=paper,closed sampling.num_steps=2,8,16"
        assert list(arms(line)) == [f"{arm}@{n}" for n in (2, 8, 16) for arm in ("paper", "closed")]
        assert lines_of(line) == {"paper": [2, 8, 16], "closed": [2, 8, 16]}

    def test_with_another_is_crossed(self) -> None:
        line = "name=beta step_sampler.beta=0,0.7 sampling.num_steps=2,4,8"
        assert arms(line) == {f"beta_{b}@{n}": None if b == 0 else f"beta_0@{n}" for n in (2, 4, 8) for b in (0, 0.7)}
        assert lines_of(line) == {"beta_0": [2, 4, 8], "beta_0.7": [2, 4, 8]}

    def test_of_lists_has_an_arm_for_each_and_one_list_is_one_value(self) -> None:
        line = "name=beta arms=beta_0.7 optimizer.betas=[0.9,0.99],[0.8,0.9]"
        assert list(arms(line)) == ["betas_0.9_0.99", "betas_0.8_0.9"]
        assert len(plan_for("name=beta optimizer.betas=[0.9,0.95]").arms) == 4

    def test_of_buckets_scores_all_arms_by_the_same_clips(self, tmp_path: Path) -> None:
        urls = f"data=shards data.urls={write_noise(tmp_path, 4, 4)}/*.tar"
        plan = plan_for(f"name=ansc arms=full {urls} data.buckets=null,[[4,24,24]],[[2,24,12]]")
        jobs, rows = all_jobs(plan)
        assert len({job.key for job in jobs if job.kind == "train" and job.label.endswith("seed 0")}) == 3
        scores = {row.name: row.job.score for row in rows}
        assert {*scores} == {"floor", "ceiling", *(arm.name for arm in plan.arms)}
        assert len({score["real"] for score in scores.values()}) == 1
        contract = table_contract({name: {0: score["contract"]} for name, score in scores.items()})
        assert contract["clips_fingerprint"] == build(urls.split()).source.fingerprint()

    def test_does_not_state_the_claim_of_the_ablation(self) -> None:
        line = "name=beta step_sampler.beta=0,0.2,0.7"
        assert plan_for(line).statement == Statement("step_sampler.beta=0,0.2,0.7 (a sweep of beta)", "", "", "")

    def test_moves_the_table_of_the_ablation_aside(self, tmp_path: Path) -> None:
        signatures, swept = (
            plan_for(line).options.settings() for line in ("name=beta", "name=beta step_sampler.beta=0,0.2,0.7")
        )
        (tmp_path / "table.json").write_text(json.dumps({"settings": signatures}))
        (tmp_path / "index.html").write_text('{"source": "../videos/1a2b3c4d/0000.mkv"}')
        assert archive_table(tmp_path, {"settings": signatures}) is None
        archive = archive_table(tmp_path, {"settings": swept})
        assert archive is not None
        # outputs/beta/earlier/<digest>/../../../videos is outputs/videos
        assert (archive / "index.html").read_text() == '{"source": "../../../videos/1a2b3c4d/0000.mkv"}'
        assert json.loads((archive / "table.json").read_text()) == {"settings": signatures}
        assert not (tmp_path / "table.json").exists()

    def test_of_other_clips_behind_the_same_path_moves_it_too(self, tmp_path: Path) -> None:
        tables = [{"settings": ["data=shards"], "contract": {"clips_fingerprint": name}} for name in "ab"]
        (tmp_path / "table.json").write_text(json.dumps(tables[0]))
        assert archive_table(tmp_path, tables[0]) is None
        archive = archive_table(tmp_path, tables[1])
        assert archive is not None
        assert json.loads((archive / "table.json").read_text()) == tables[0]


# (words, what the message must say)
WRONG = [
    ("name=beta step_sampler.beta=0,much", ["step_sampler.beta='much'", "expected a number"]),
    ("name=steps sampling.num_steps=2,4.5", ["sampling.num_steps=4.5", "whole number"]),
    ("name=beta step_sampler=uniform,closd", ["step_sampler=closd", "did you mean closed?"]),
    ("name=beta step_sampler.beta=0,0.5,0.5", ["step_sampler.beta=0,0.5,0.5", "0.5 is given twice"]),
    ("name=beta step_sampler.beta=1,1.0", ["beta_1 and beta_1.0 are the same run"]),
    ("name=beta step_sampler.beta=0,1 step_sampler.beta=2", ["step_sampler.beta is given more than once"]),
    ("name=beta step_sampler.bta=0,1", ["there is no key step_sampler.bta", "did you mean step_sampler.beta?"]),
    ("name=beta train.updates=100,200", ["also varies step_sampler.beta", "arms=beta_1.4"]),
    ("name=ansc weighting.p=0,1", ["also varies objective, step_sampler", "arms=full"]),
    ("name=ansc arms=uniform,full weighting=uniform,delta_sigma", ["also varies objective", "arms=full"]),
    ("name=beta step_sampler.beta=0.2", ["beta varies", "step_sampler.beta=…,…"]),
    (
        "name=beta step_sampler.beta=range(0,1,0.2)",
        ["range(0,1,0.2) is no list of values", "step_sampler.beta=0,0.2,0.4"],
    ),
    ("name=beta seed=1,2", ["seeds=[1,2]"]),
    (
        "name=beta step_sampler.beta=0,1 sampling.num_steps=2,3 weighting.p=0,1",
        ["at most two lists are crossed", "give weighting.p one value"],
    ),
    (
        "name=ladder arms=aligned weighting.p=0,1 train.updates=1,2",
        ["ladder is crossed with sampling.num_steps", "give train.updates one value"],
    ),
]


@pytest.mark.parametrize(("line", "parts"), WRONG, ids=[line for line, _ in WRONG])
def test_a_wrong_sweep_is_told_what_would_do(line: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        plan_for(line)
    assert not [part for part in parts if part not in str(error.value)], str(error.value)


def test_a_run_of_its_own_takes_no_list_of_values() -> None:
    with pytest.raises(ConfigError, match="0,1 is not one value"):
        build(["stage=hires", "step_sampler.beta=0,1"])


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("a=0,0.2", ("0", "0.2")),
        ("a=[1,2]", ()),
        ("a=[1,2],[3,4]", ("[1,2]", "[3,4]")),
        ("a=null,1", ("null", "1")),
        ("a='x, y'", ()),
        ("a=", ()),
        ("a=1,", ()),
    ],
)
def test_only_values_between_commas_are_swept(override: str, values: tuple[str, ...]) -> None:
    assert swept_values(override) == values


class TestACurve:
    @pytest.mark.parametrize(
        ("name", "lines"),
        [
            ("beta", {"": [0, 0.35, 0.7, 1.4]}),
            ("power", {"": [0, 0.25, 0.5, 1]}),  # p = 0 is weighting=uniform, which has no p
            ("steps", {"": [2, 3, 4, 5]}),
            ("inference_shift", {"shortcut": [1, 2, 3, 4.5, 5.5], "flow": [1, 2, 3, 4.5, 5.5]}),
            ("coordinate", {"timestep": [2, 3, 4, 5], "index": [2, 3, 4, 5]}),
        ],
    )
    def test_is_what_numeric_arms_are(self, name: str, lines: dict[str, list[float]]) -> None:
        assert lines_of(f"name={name}") == lines

    @pytest.mark.slow
    def test_of_crossed_arms_has_a_line_each(self) -> None:
        assert list(lines_of("name=ladder") or ()) == list(plan_for("name=ladder").ablation.arms)

    @pytest.mark.parametrize("name", ["ansc", "aghs", "frozen_dit", "halves", "anchor_tuning", "paper_vs_release"])
    def test_is_not_what_other_arms_are(self, name: str) -> None:
        assert lines_of(f"name={name}") is None

    def test_puts_an_arm_without_a_value_where_the_value_then_comes_from(self) -> None:
        assert lines_of("name=inference_shift schedule.shift=2.5 arms=flow,flow_1,flow_5.5") == {"flow": [1, 2.5, 5.5]}

    def test_is_none_of_two_points_or_of_truth_values(self) -> None:
        assert lines_of("name=beta arms=beta_0.0,beta_0.7") is None
        flags = Ablation(
            varies=("step_sampler.include_start",),
            fixed="step_sampler=exponential_index",
            arms={"a": "step_sampler.include_start=true", "b": "step_sampler.include_start=false"},
        )
        assert curve_of(plan_of(parse(["name=beta", "seeds=1"]), flags, Statement("", "", "", ""))) is None

    def test_names_the_arm_of_every_point(self) -> None:
        plan = plan_for("name=inference_shift")
        curve = curve_of(plan)
        assert curve is not None
        assert {arm for line in curve["lines"] for _, arm in line["points"]} == {arm.name for arm in plan.arms}
        assert (curve["key"], curve["label"]) == ("sampling.shift", "shift")
