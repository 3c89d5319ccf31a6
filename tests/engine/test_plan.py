"""Plans of all ablations: each is controlled, is checked before anything runs, and shares equal runs."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest

from benchmarks import metrics, paper
from experiments.engine.ablation import Ablation, AblationOptions, Statement, load, names, statement
from experiments.engine.ablation import main as list_ablations
from experiments.engine.job import JOB_SECONDS, Job, all_jobs, jobs_to_run, run_job
from experiments.engine.plan import Plan, make_plan, parse, plan_of
from experiments.engine.run_ablation import main
from pw.cost.planner import PlanOptions
from pw.cost.planner import make_plan as make_cost_plan
from pw.io import arguments
from pw.io.arguments import ConfigError
from pw.io.command_line import program
from pw.io.manifest import DamagedResult, write_mark
from pw.run.compose import leaves, value_at
from pw.sample.evaluate import SampleOptions
from pw.train.loop import checked_run

NOTHING_STATED = Statement("", "", "", "")
PARTS_OF_AN_OBJECTIVE = ("turns", "step_sampler", "weighting", "target")


@cache
def plan_for(*words: str) -> Plan:
    return make_plan(parse(words))


@cache
def jobs_of(name: str) -> tuple[list[Job], set[tuple[str, int]]]:
    """All jobs of an ablation and the (row, seed) pairs of its table."""
    jobs, rows = all_jobs(plan_for(f"name={name}", "seeds=2"))
    return jobs, {(row.name, row.seed) for row in rows}


def error_of(*words: str) -> str:
    with pytest.raises(ConfigError) as error:
        make_plan(parse(words))
    return str(error.value)


def plan_of_ablation(ablation: Ablation, *words: str) -> Plan:
    return plan_of(replace(parse(["name=ansc", *words]), name="crafted"), ablation, NOTHING_STATED)


def error_of_ablation(ablation: Ablation, *words: str) -> str:
    with pytest.raises(ConfigError) as error:
        plan_of_ablation(ablation, *words)
    return str(error.value)


def training(name: str, arm: str) -> str:
    return next(a for a in plan_for(f"name={name}", "seeds=2").arms if a.name == arm).first.training_signature


def asks_for_solutions(plan: Plan) -> bool:
    """Whether a metric of the ablation compares each arm with its own many-step solution."""
    return any("solution" in metrics.lookup(metric).needs for metric in plan.ablation.metrics)


def test_five_seeds_are_planned_unless_others_are_asked_for() -> None:
    assert list(plan_for("name=power").arms[0].runs) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", names())
class TestEveryAblation:
    def test_states_its_claim_what_refutes_it_and_its_verdict(self, name: str) -> None:
        description = load(name)[1]
        assert description.title
        assert description.claim
        assert description.refuted.startswith("if ")
        assert description.verdict
        # a paragraph that swallowed the next one would hold its word
        assert not {"Claim", "Refuted", "Verdict"} & set(f"{description.claim} {description.refuted}".split())

    def test_is_planned_with_a_run_for_every_arm_value_and_seed(self, name: str) -> None:
        ablation, plan = load(name)[0], plan_for(f"name={name}", "seeds=2")
        values = ablation.across[1] if ablation.across else [None]
        arm_names = [arm if value is None else f"{arm}@{value}" for value in values for arm in ablation.arms]
        assert [arm.name for arm in plan.arms] == arm_names
        assert len(arm_names) >= 2
        assert all(list(arm.runs) == [0, 1] for arm in plan.arms)
        assert all(run.seed == seed for arm in plan.arms for seed, run in arm.runs.items())

    def test_differs_between_arms_in_what_it_varies_and_nothing_else(self, name: str) -> None:
        """Compares leaf by leaf, independently of the check in the plan."""
        ablation, plan = load(name)[0], plan_for(f"name={name}", "seeds=2")
        varies = [*ablation.varies, *([ablation.across[0]] if ablation.across else [])]
        for one, other in combinations([arm.first.config for arm in plan.arms], 2):
            a, b = leaves(one.values), leaves(other.values)
            differing = {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
            assert differing
            parts = PARTS_OF_AN_OBJECTIVE if one.choices["objective"] != other.choices["objective"] else ()
            stray = [k for k in differing if not any(k == v or k.startswith(f"{v}.") for v in (*varies, *parts))]
            assert not stray

    def test_varies_nothing_in_vain(self, name: str) -> None:
        ablation, plan = load(name)[0], plan_for(f"name={name}", "seeds=2")
        for key in ablation.varies:
            assert len({str(arm.varied[key]) for arm in plan.arms}) > 1, f"{key} is the same in every arm"

    def test_has_no_two_arms_that_are_the_same_run(self, name: str) -> None:
        plan = plan_for(f"name={name}", "seeds=2")
        signatures = [run.signature for arm in plan.arms for run in arm.runs.values()]
        assert len(set(signatures)) == len(signatures)

    def test_shares_one_start_between_all_arms_and_seeds(self, name: str) -> None:
        plan = plan_for(f"name={name}", "seeds=2")
        starts = {run.start_run and run.start_run.training_signature for _, _, run in plan.runs()}
        assert len(starts) == 1
        assert starts != {None}

    def test_is_judged_by_metrics_that_exist(self, name: str) -> None:
        ablation = load(name)[0]
        assert ablation.primary in ablation.metrics
        assert all(metrics.lookup(metric) for metric in ablation.metrics)
        assert ablation.ceiling is None or ablation.ceiling in ablation.arms

    def test_mirrors_rows_of_the_paper_that_exist(self, name: str) -> None:
        ablation = load(name)[0]
        if ablation.paper is not None:
            rows = {row.arm for row in paper.load(ablation.paper).rows}
            assert set(ablation.arms) - rows == ({"uniform"} if name == "ansc" else set())
            assert rows <= set(ablation.arms)

    def test_gives_mlflow_exactly_the_varied_keys(self, name: str) -> None:
        """`scale` and `seed` are added to the records; test_ablation checks them in the database."""
        ablation, plan = load(name)[0], plan_for(f"name={name}", "seeds=2")
        keys = {*ablation.varies, *([ablation.across[0]] if ablation.across else [])}
        assert all(set(arm.varied) == keys for arm in plan.arms)
        for arm in plan.arms:
            for key, label in arm.varied.items():
                assert label == arm.first.config.choices.get(key, value_at(arm.first.config.values, key))

    def test_has_jobs_each_once_and_after_what_they_need(self, name: str) -> None:
        jobs, _ = jobs_of(name)
        keys = [job.key for job in jobs]
        assert len(set(keys)) == len(keys)
        for place, job in enumerate(jobs):
            assert set(job.needs) <= set(keys[:place]), job.label

    def test_trains_samples_and_scores_every_row(self, name: str) -> None:
        plan, (jobs, rows) = plan_for(f"name={name}", "seeds=2"), jobs_of(name)
        job_keys = {job.key for job in jobs}
        for arm, seed, run in plan.runs():
            assert f"train:{run.training_signature}" in job_keys
            assert f"sample:{run.signature}:{run.sampling.count}" in job_keys
            assert (arm.name, seed) in rows
            if run.start_run is not None and run.start_run.card is None:
                assert f"train:{run.start_run.training_signature}" in job_keys

    def test_has_a_floor_and_a_many_step_ceiling_for_every_seed(self, name: str) -> None:
        plan, (jobs, rows) = plan_for(f"name={name}", "seeds=2"), jobs_of(name)
        ceiling = plan.ceiling.first.sampling
        for seed in plan.options.seeds:
            assert ("floor", seed) in rows
            # an anchor takes more steps (50) than the solution it would be held against
            assert (("ceiling", seed) in rows) == (ceiling.num_steps < ceiling.solution_steps)
        job_keys = {job.key for job in jobs}
        for arm, seed, run in plan.runs():
            if run.solution is not None:
                solution = f"sample:{run.solution.sample_signature(seed)}"
                # the ceiling's solution is that of every arm with the same weights, and of all clips
                ceilings = plan.ceiling.runs[seed].solution
                is_ceilings = ceilings and run.solution.sample_signature(seed) == ceilings.sample_signature(seed)
                assert (f"{solution}:{run.sampling.count}" in job_keys) == is_ceilings, arm.name
                if not is_ceilings:
                    assert (f"{solution}:{run.sampling.solution_clips}" in job_keys) == asks_for_solutions(plan), (
                        arm.name
                    )


class TestTheRowsOfAnAblation:
    def test_are_compared_with_the_one_above(self) -> None:
        plan = plan_for("name=ansc")
        assert [arm.versus for arm in plan.arms] == [None, "baseline", "original", "uniform", "exponential"]

    def test_are_compared_with_the_first_where_it_says_so(self) -> None:
        assert [arm.versus for arm in plan_for("name=beta").arms] == [None, *["beta_0.0"] * 3]

    def test_are_compared_at_the_same_value_of_what_they_are_crossed_with(self) -> None:
        versus = {arm.name: arm.versus for arm in plan_for("name=coordinate").arms}
        assert versus["timestep@3"] is None
        assert versus["index@3"] == "timestep@3"

    def test_skip_an_arm_that_was_not_asked_for(self) -> None:
        plan = make_plan(parse(["name=ansc", "arms=full,baseline", "seeds=1"]))
        assert [(arm.name, arm.versus) for arm in plan.arms] == [("baseline", None), ("full", "baseline")]

    def test_give_the_baseline_a_fairer_chance_at_other_shifts(self) -> None:
        plan = plan_for("name=ansc")
        assert {(p.arm, p.value) for p in plan.probes} == {("baseline", s) for s in (1.0, 2.0, 3.0, 5.0)}
        assert len(plan.probes) == 4 * len(plan.options.seeds)
        assert {p.run.training_signature for p in plan.probes if p.seed == 0} == {training("ansc", "baseline")}
        assert len({p.run.signature for p in plan.probes}) == len(plan.probes)


class TestTheSameTraining:
    def test_is_shared_by_the_ablations_it_stands_in(self) -> None:
        full = training("ansc", "full")
        assert {training("steps", arm) for arm in ("2", "3", "4", "5")} == {full}
        assert training("power", "p_0.5") == full
        assert training("beta", "beta_0.7") == full
        assert training("ladder", "paper@4") == full
        assert training("coordinate", "timestep@4") == full
        assert training("anchor_robustness", "flawed") == full
        assert training("paper_vs_release", "suite") == full
        assert training("inference_shift", "shortcut_2") == full

    def test_is_shared_by_the_baselines_too(self) -> None:
        assert training("inference_shift", "flow_1") == training("ansc", "baseline")
        assert training("frozen_dit", "trainable") == training("direct", "anchored") == training("aghs", "gated")
        assert training("aghs", "anchor") == training("anchor_tuning", "tuned")

    def test_is_not_shared_by_arms_that_train_differently(self) -> None:
        arms = [arm.first.training_signature for arm in plan_for("name=ansc").arms]
        assert len(set(arms)) == len(arms)

    def test_starts_from_a_seed_of_its_own_only_when_asked_to(self) -> None:
        plan = make_plan(parse(["name=ansc", "arms=full", "vary_start=true"]))
        starts = {seed: run.start_run.training_signature for seed, run in plan.arms[0].runs.items() if run.start_run}
        assert len(set(starts.values())) == len(starts) == 5


class TestAnUncontrolledAblation:
    def test_is_refused_naming_the_stray_key(self) -> None:
        message = error_of_ablation(
            Ablation(
                varies=("weighting",),
                arms={"one": "weighting=uniform", "two": "weighting=delta_sigma optimizer.lr=1e-3"},
            )
        )
        assert "arms one and two differ in optimizer.lr" in message
        assert "varies only weighting" in message

    def test_is_refused_when_only_a_part_of_a_group_may_vary(self) -> None:
        message = error_of_ablation(
            Ablation(varies=("weighting.p",), arms={"one": "", "two": "weighting.p=1 weighting.normalise=none"})
        )
        assert "weighting.normalise" in message

    def test_is_refused_when_objectives_hide_another_difference(self) -> None:
        """Parts that flow does not have are no stray difference; all others are."""
        arms = {"flow": "objective=flow", "shortcut": "objective=shortcut schedule.shift=3"}
        assert "schedule.shift" in error_of_ablation(Ablation(varies=("objective",), arms=arms))
        arms["shortcut"] = "objective=shortcut"
        assert len(plan_of_ablation(Ablation(varies=("objective",), arms=arms)).arms) == 2

    def test_is_refused_when_arms_of_one_objective_differ_behind_another(self) -> None:
        arms = {
            "flow": "objective=flow",
            "uniform": "objective=shortcut weighting=uniform",
            "stray": "objective=shortcut weighting=uniform target.halves=equal",
        }
        message = error_of_ablation(Ablation(varies=("objective", "weighting"), arms=arms))
        assert "arms uniform and stray differ in target.halves" in message

    def test_with_an_arm_that_is_the_same_run_is_refused_naming_both(self) -> None:
        ablation = Ablation(varies=("weighting.p",), arms={"half": "weighting.p=0.5", "default": ""})
        message = error_of_ablation(ablation)
        assert "arms half and default are the same run" in message

    def test_with_an_arm_that_changes_nothing_of_the_result_is_refused(self) -> None:
        ablation = Ablation(varies=("trainer.threads",), arms={"one": "", "two": "trainer.threads=2"})
        assert "the same run" in error_of_ablation(ablation)

    def test_with_a_wrong_arm_is_refused_naming_the_arm(self) -> None:
        message = error_of_ablation(Ablation(varies=("weighting",), arms={"a": "", "b": "weighting=unifrom"}))
        assert message.startswith("arm b: weighting=unifrom: ")
        assert "did you mean uniform?" in message


# (words of the command line, what the message must say)
WRONG = [
    (["name=ansc", "arms=basline"], ["arms=basline", "did you mean baseline?", "uniform, exponential, full"]),
    (["name=ansc", "arms=nothing_like_it"], ["arms=nothing_like_it", "baseline"]),
    (["name=ansc", "seeds=0"], ["seeds=0", "5 is 0 to 4"]),
    (["name=ansc", "seeds=three"], ["seeds=three", "[0,1,7]"]),
    (["name=ansc", "seeds=[1,1]"], ["seeds=[1,1]"]),
    (["name=ansc", "seeds=[-1]"], ["seeds=[-1]"]),
    (["name=ansc", "seed=3"], ["seed=3", "seeds=[3]"]),
    (["name=ansc", "dry_run=yes"], ["dry_run=yes", "true or false"]),
    (["name=ansc", "workers=two"], ["workers=two", "whole number"]),
    (["name=ansc", "full"], ["'full'", "key=value"]),
    (["seeds=3"], ["name=… is missing", "ansc", "steps"]),
    # what the ablation varies is not the command line's to set
    (["name=ansc", "weighting=uniform"], ["weighting=uniform", "ansc varies", "baseline"]),
    (["name=power", "weighting.p=1"], ["weighting.p=1", "power varies", "weighting.p=…,…"]),
    (["name=beta", "step_sampler=closed"], ["step_sampler=closed", "beta varies"]),
    (["name=coordinate", "sampling.num_steps=4"], ["sampling.num_steps=4", "coordinate varies"]),
    # what a training would refuse when it starts, hours later; also that of a start, or of the stage that makes anchors
    (["name=ansc", "trainer=fsdp", "trainer.devices=3"], ["arm baseline", "trainer.devices", "train.accumulate=3"]),
    (["name=ansc", "trainer=ddp", "trainer.devices=16", "train.batch_size=16"], ["start:", "train.batch_size=8"]),
    # what would be no difference at all
    (["name=anchor_robustness", "injector=none"], ["arm clean", "anchors=clean", "injector=none"]),
    (["name=power", "objective=flow"], ["arm p_0", "weighting=uniform", "objective=flow"]),
]


class TestAWrongCall:
    @pytest.mark.parametrize(("words", "parts"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
    def test_is_told_the_word_and_what_would_do(self, words: list[str], parts: list[str]) -> None:
        message = error_of(*words)
        assert not [part for part in parts if part not in message], message

    def test_of_an_unknown_ablation_names_the_nearest(self) -> None:
        with pytest.raises(ValueError, match=r"name=step: no such ablation; did you mean steps\?"):
            make_plan(parse(["name=step"]))

    def test_exits_with_two_and_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["name=ansc", "arms=basline"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: arms=basline")
        assert err.count("\n") == 1


class TestTheWordsOfTheCommandLine:
    @pytest.mark.parametrize(
        ("word", "seeds"),
        [("seeds=5", (0, 1, 2, 3, 4)), ("seeds=[0,3]", (0, 3)), ("seeds=2,7", (2, 7)), ("seeds=[4]", (4,))],
    )
    def test_give_seeds_as_a_number_or_a_list(self, word: str, seeds: tuple[int, ...]) -> None:
        assert parse(["name=ansc", word]).seeds == seeds

    def test_that_are_no_option_are_overrides_of_every_run(self, tmp_path: Path) -> None:
        options = parse(["name=ansc", f"outputs={tmp_path}", "train.updates=7", "workers=1", "tracking=none"])
        assert options == AblationOptions(
            "ansc", workers=1, outputs=tmp_path, overrides=("train.updates=7", "tracking=none")
        )
        plan = make_plan(replace(options, seeds=(0,)))
        assert {arm.first.train.updates for arm in plan.arms} == {7}

    def test_beat_what_the_ablation_fixes(self) -> None:
        plan = make_plan(parse(["name=ansc", "sampling.num_steps=2", "seeds=1", "arms=full"]))
        assert plan.arms[0].first.sampling.num_steps == 2


class TestTheTimeOfAJob:
    @pytest.mark.slow
    def test_is_that_of_the_plan_on_all_its_devices(self) -> None:
        times = []
        for words in ((), ("trainer=fsdp", "trainer.devices=8")):
            jobs = all_jobs(plan_for("name=ansc", "scale=2k", "seeds=1", *words))[0]
            job = next(job for job in jobs if job.kind == "train")
            planned = make_cost_plan(arguments.parse(PlanOptions, job.run.config.overrides))
            times.append(planned.training.seconds(planned.training.flops, planned.rates))
            assert job.seconds() == pytest.approx(times[-1] + JOB_SECONDS)
        assert times[0] == pytest.approx(8 * times[1])  # 8 micro-batches of one clip

    def test_at_the_tiny_scale_is_what_was_measured(self) -> None:
        """160 updates of flow in 0.058 s each, half of them consistency in 0.092 s with objective=shortcut."""
        plan = plan_for("name=ansc", "seeds=1")
        baseline, full = (
            Job("", "", "train", next(a for a in plan.arms if a.name == name).first).seconds() - JOB_SECONDS
            for name in ("baseline", "full")
        )
        assert baseline == pytest.approx(160 * 0.058, rel=0.1)
        assert full == pytest.approx(80 * (0.058 + 0.092), rel=0.1)


class TestADryRun:
    @pytest.mark.parametrize("line", ["name=paper_vs_release arms=suite,betas", "name=aghs arms=gated,add"])
    def test_writes_nothing_and_prints_a_command_for_every_run(
        self, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        outputs = tmp_path / "outputs"
        words = [*line.split(), "seeds=[2]", "start.updates=3", f"outputs={outputs}"]
        assert main([*words, "dry_run=true"]) == 0
        assert not outputs.exists()
        lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
        commands = [shlex.split(line.removeprefix(program())) for line in lines if line.startswith(f"{program()} ")]
        results = set()
        for verb, *overrides in commands:  # what each of them would do
            options = arguments.parse(SampleOptions, overrides)
            run, seed = checked_run(options.overrides, options.outputs), options.evaluation_seed
            clips = run.sample_signature(run.seed if seed is None else seed)
            results.add((verb, run.training_signature if verb == "train" else clips))
            assert options.outputs == outputs
        plan = make_plan(parse(words))
        runs = [arm.first for arm in plan.arms]
        solution_runs = [arm.first for arm in plan.arms if asks_for_solutions(plan) or arm is plan.ceiling]
        stages = [run.anchor_run for run in runs if run.anchor_run]
        starts = [run.start_run for run in (*runs, *stages) if run.start_run and run.start_run.card is None]
        assert results == {
            *(("train", run.training_signature) for run in (*runs, *stages, *starts)),
            *(("sample", run.signature) for run in (*runs, *(run.solution for run in solution_runs))),
            *(("sample", stage.sample_signature(2)) for stage in stages),
        }

    def test_shows_what_is_cached(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["name=ansc", "arms=baseline", "seeds=1", "start.shipped=false", f"outputs={tmp_path}"]
        start = make_plan(parse(words)).arms[0].first.start_run
        assert start is not None
        folder = tmp_path / "train" / start.training_signature
        folder.mkdir(parents=True)
        write_mark(folder / "done.json", {"signature": start.training_signature}, [])
        assert main([*words, "dry_run=true"]) == 0
        assert "1 trainings" in (output := capsys.readouterr().out)
        assert "1 cached" in output

    def test_refuses_a_folder_that_holds_another_training_and_only_that(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        words = ["name=ansc", "arms=baseline", "seeds=1", f"outputs={tmp_path}"]
        plan = make_plan(parse(words))
        run = plan.arms[0].first
        folder = tmp_path / "train" / run.training_signature
        write_mark(tmp_path / "train" / "0badf00d" / "done.json", {"signature": "0badf00d"}, [])
        (tmp_path / "train" / "0badf00d").rename(folder)
        assert main([*words, "dry_run=true"]) == 0
        reason = f"{folder / 'done.json'}: is of 0badf00d, not of {run.training_signature}; put it back, or remove"
        assert reason in caplog.text
        (job,) = (job for job in jobs_to_run(all_jobs(plan)[0], tmp_path) if job.kind == "train" and job.run == run)
        with pytest.raises(DamagedResult, match=re.escape(reason)):
            run_job(job, tmp_path, lambda done, total: None, is_checked=True)


@pytest.mark.parametrize(
    ("typed", "shown"),
    [("seeds=1", "seeds=1"), ("seeds=3", "seeds=3"), ("seeds=[0,1]", "seeds=2"), ("seeds=2,7", "seeds=[2,7]")],
)
def test_seeds_are_said_as_one_types_them(typed: str, shown: str) -> None:
    options = parse(["name=ansc", typed])
    assert options.words() == ["name=ansc", shown]
    assert parse(options.words()) == options
    assert make_plan(options).options.settings()[0] == shown


class TestTheList:
    def test_shows_every_ablation_with_its_verdict(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert list_ablations([]) == 0
        output = capsys.readouterr().out
        assert all(name in output for name in names())

    @pytest.mark.parametrize("columns", [60, 80, 120, 200])
    def test_is_readable_at_any_width(
        self, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert list_ablations([]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= columns
        assert len(lines) < 5 * len(names())
        for name in names():
            assert list_ablations([f"name={name}"]) == 0
            output = capsys.readouterr().out
            assert max(map(len, output.splitlines())) <= columns
            whole, description = " ".join(output.split()), load(name)[1]
            for text in (description.title, description.claim, description.refuted, description.verdict):
                assert " ".join(text.split()) in whole  # to the letter, each in lines of its own

    def test_of_a_docstring_is_its_title_and_three_paragraphs(self) -> None:
        description = statement("What?\n\nClaim     It is\n          so.\nRefuted   if not.\nVerdict   It was.\n")
        assert description == Statement("What?", "It is so.", "if not.", "It was.")
