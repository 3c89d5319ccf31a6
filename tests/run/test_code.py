"""The code that computes a result enters its signature; comments, names and places of the code do not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.engine.job import all_jobs
from experiments.engine.outcome.table import make_table
from experiments.engine.plan import make_plan, other_code, parse
from experiments.engine.run_ablation import main
from pw.io.manifest import write_mark
from pw.io.paths import ROOT
from pw.run.build import build
from pw.run.code import UnknownCode, code_hash, definitions
from pw.run.signatures import (
    ALTERNATIVES,
    LORA_CALLS,
    MERGE_CALLS,
    PLACEMENT_CODE,
    PLANNING,
    SAMPLING_CODE,
    STAGES,
    TRAINING_CODE,
)
from pw.train.loop import train
from pw.train.record import earlier_trainings, is_trained, training_folder, with_finished_trainings, write_config

# Prints the signatures of a shortcut training, a flow matching training, clips with a class and two metrics.
SCRIPT = """if True:
    import json, pw
    from benchmarks.metrics import scoring_code
    from pw.run.build import build
    shortcut, flow = build([]), build(["objective=flow"])
    print(json.dumps({
        "from": pw.__file__,
        "shortcut": shortcut.training_signature,
        "flow": flow.training_signature,
        "clips": shortcut.signature,
        "evaluation": shortcut.evaluation_signature(0),
        "configuration": shortcut.configuration_signature,
        "captioned": build(["data.captions=texture"]).sampling_code,
        "psd": scoring_code("psd"),
        "mhd": scoring_code("mhd"),
    }))
"""


class Sources:
    """A copy of the sources, to be edited."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignore = shutil.ignore_patterns("__pycache__", "starts")
        for name in ("pw", "conf", "benchmarks"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert old in text, f"{file} does not say {old!r} any more"
        path.write_text(text.replace(old, new))

    def names(self) -> dict[str, str]:
        """The signatures that these sources compute, in a new process."""
        command = [sys.executable, "-c", SCRIPT]
        env = {"PYTHONPATH": str(self.folder), "PATH": "", "PW_STARTS": str(self.folder / "none")}
        process = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
        result = json.loads(process.stdout)
        assert Path(result.pop("from")).is_relative_to(self.folder)
        return result


@pytest.fixture(scope="module")
def unedited(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return Sources(tmp_path_factory.mktemp("unedited")).names()


def invert_the_weighting(sources: Sources) -> None:
    sources.edit("pw/method/weighting.py", "weight = span**self.p", "weight = span**-self.p")


def change_a_function_behind_it(sources: Sources) -> None:
    sources.edit("pw/method/weighting.py", "(table.probability * span**p).sum()", "(table.probability * span).sum()")


def change_the_path_of_flow_matching(sources: Sources) -> None:
    sources.edit("pw/method/path.py", "return noise - data", "return data - noise")


def change_a_constant_of_the_clips(sources: Sources) -> None:
    sources.edit("pw/data/procedural.py", "CONTRAST = 0.45", "CONTRAST = 0.46")


def change_the_learning_rate_schedule(sources: Sources) -> None:
    sources.edit("pw/stages/stage.py", "0.5 * (1 + math.cos(", "0.4 * (1 + math.cos(")


def change_the_solver(sources: Sources) -> None:
    sources.edit("pw/method/solver.py", "state - (sigma", "state - 1.01 * (sigma")


def change_which_clips_are_held_out(sources: Sources) -> None:
    sources.edit("pw/data/procedural.py", "rng = generator(seed, 0, 1)", "rng = generator(seed, 0, 9)")


def change_the_sizes_of_steps(sources: Sources) -> None:
    sources.edit("pw/run/build.py", "share - 0.5)", "share - 0.4)")


def change_how_the_grid_is_divided(sources: Sources) -> None:
    sources.edit("pw/method/solver.py", "if sizes[step] != sizes[step - 1]", "if sizes[step] > sizes[step - 1]")


def change_the_text_of_a_class(sources: Sources) -> None:
    sources.edit("pw/sample/evaluate.py", "torch.zeros_like(text)", "torch.ones_like(text)")


def change_a_metric(sources: Sources) -> None:
    sources.edit("benchmarks/metrics/reference.py", "(10 * (mean /", "(20 * (mean /")


EDITS: dict[str, tuple[Callable[[Sources], None], set[str]]] = {
    "an inverted formula": (invert_the_weighting, {"shortcut", "clips"}),
    "a formula of a function behind it": (change_a_function_behind_it, {"shortcut", "clips"}),
    "the path": (change_the_path_of_flow_matching, {"shortcut", "flow", "clips"}),
    "a constant of the clips": (change_a_constant_of_the_clips, {"shortcut", "flow", "clips", "evaluation"}),
    "the learning rate's schedule": (change_the_learning_rate_schedule, {"shortcut", "flow", "clips"}),
    "the solver": (change_the_solver, {"clips", "captioned"}),
    "the sizes of steps": (change_the_sizes_of_steps, {"shortcut", "flow", "clips", "captioned"}),
    "how the grid is divided": (change_how_the_grid_is_divided, {"clips", "captioned"}),
    "the text of a class": (change_the_text_of_a_class, {"captioned"}),
    "the held-out clips": (change_which_clips_are_held_out, {"clips", "evaluation"}),
    "a metric": (change_a_metric, {"psd"}),
}


IN_SECONDS = {"an inverted formula", "the solver", "a metric"}


@pytest.mark.parametrize(
    "what", [what if what in IN_SECONDS else pytest.param(what, marks=pytest.mark.slow) for what in EDITS]
)
def test_an_edit_of_what_computes_a_result_is_another_result_and_of_nothing_else(
    what: str, unedited: dict[str, str], tmp_path: Path
) -> None:
    change, expected = EDITS[what]
    sources = Sources(tmp_path)
    change(sources)
    names = sources.names()
    assert {key for key in names if names[key] != unedited[key]} == expected


def comment(sources: Sources) -> None:
    """Change a comment, a docstring, an error message, an annotation and the formatting."""
    file = "pw/method/weighting.py"
    sources.edit(
        file, "        weight = span**self.p\n", "        # to the power\n\n        weight = (span ** self.p)\n"
    )
    sources.edit(file, "lambda = 1.\n", "All alike.\n")
    sources.edit(file, "Annotated[float, Range(0, 10)]\n", "Annotated[float | None, Range(0, 9)]  # the power\n")
    sources.edit("pw/method/step_sampler.py", "needs at least 1", "wants 1 or more")


def add_a_class_beside(sources: Sources) -> None:
    file = sources.folder / "pw/method/weighting.py"
    file.write_text(f"{file.read_text()}\n\n@dataclass(frozen=True)\nclass Log:\n    base: float\n")


def move_to_another_module(sources: Sources) -> None:
    (sources.folder / "pw/method/spans.py").write_text((sources.folder / "pw/method/weighting.py").read_text())
    (sources.folder / "pw/method/weighting.py").write_text(
        "from pw.method.spans import DeltaSigma, Uniform, Weighting\n"
    )
    sources.edit("conf/weighting/delta_sigma.yaml", "pw.method.weighting.", "pw.method.spans.")
    sources.edit("pw/run/strategies.py", '("pw.method.weighting",)', '("pw.method.weighting", "pw.method.spans")')


def write_imports_otherwise(sources: Sources) -> None:
    sources.edit("pw/method/objective.py", "from pw.method import path\n", "import pw.method.path as path\n")
    sources.edit("pw/method/target.py", "Velocity, broadcast\n", "Velocity\nfrom pw.method import path as p\n")
    sources.edit("pw/method/target.py", "broadcast(", "p.broadcast(")


def rename_a_function(sources: Sources) -> None:
    sources.edit("pw/method/weighting.py", "expected_weight", "mean_weight")


def rename_a_constant(sources: Sources) -> None:
    sources.edit("pw/data/procedural.py", "CONTRAST", "STRENGTH")


def change_what_was_not_chosen(sources: Sources) -> None:
    sources.edit(
        "pw/nn/adapters.py", "self.timestep_mlp(sinusoid(timestep)) +", "self.timestep_mlp(sinusoid(timestep)) -"
    )
    sources.edit("pw/method/step_sampler.py", "states = int(start // stride)", "states = int(start // stride) - 1")
    sources.edit(
        "pw/nn/codec.py", "self.choice, self.vae = choice, vae.eval()", "self.vae, self.choice = vae.eval(), choice"
    )


def change_how_it_is_run(sources: Sources) -> None:
    sources.edit("pw/train/callbacks.py", "CURVE_EVERY = 10", "CURVE_EVERY = 11")
    sources.edit("pw/nn/networks.py", "SLICE = 1024", "SLICE = 1025")


NO_EDITS = (
    *(comment, add_a_class_beside, write_imports_otherwise, rename_a_function, rename_a_constant),
    *(change_what_was_not_chosen, change_how_it_is_run, move_to_another_module),
)


def test_edits_of_anything_else_together_are_the_same_result(unedited: dict[str, str], tmp_path: Path) -> None:
    sources = Sources(tmp_path)
    for change in NO_EDITS:
        change(sources)
    assert sources.names() == unedited


class TestTheHash:
    def test_of_a_strategy_in_a_module_of_its_user_knows_what_is_behind_it_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(tmp_path)
        hashes = []
        for number, body in enumerate(("x + 1", "x + 2", "x + 1  # again")):
            package = tmp_path / f"mine{number}"
            package.mkdir()
            (package / "__init__.py").touch()
            (package / "behind.py").write_text(f"def more(x):\n    return {body}\n")
            text = "from {0}.behind import more\nclass Mine:\n    def __call__(self, x):\n        return more(x)\n"
            (package / "strategy.py").write_text(text.format(package.name))
            hashes.append(code_hash((f"{package.name}.strategy.Mine",)))
        assert hashes[0] == hashes[2] != hashes[1]

    def test_of_two_that_call_each_other_has_an_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(tmp_path)
        text = "def even(n):\n    return n == 0 or odd(n - 1)\ndef odd(n):\n    return n != 0 and even(n - 1)\n"
        (tmp_path / "in_turn.py").write_text(text)
        assert code_hash(("in_turn.even",)) != code_hash(("in_turn.odd",))

    def test_takes_a_variable_for_no_function_of_the_same_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(tmp_path)
        text = (
            "def scale():\n    return {0}\ndef f(x):\n    scale = 3\n    return [scale * x for x in (lambda y: y)(x)]\n"
        )
        for number in (1, 2):
            (tmp_path / f"shadow{number}.py").write_text(text.format(number))
        assert code_hash(("shadow1.f",)) == code_hash(("shadow2.f",))
        assert code_hash(("shadow1.scale",)) != code_hash(("shadow2.scale",))

    def test_is_told_of_calls_that_do_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(tmp_path)
        functions = "def extra(x):\n    x.pop()\ndef f(x):\n"
        (tmp_path / "without_call.py").write_text(f"{functions}    return x\n")
        (tmp_path / "with_call.py").write_text(f"{functions}    extra(x)\n    return x\n")
        (tmp_path / "with_value.py").write_text(f"{functions}    x = extra(x)\n    return x\n")
        plain = code_hash(("without_call.f",))
        assert code_hash(("with_call.f",)) != plain
        assert code_hash(("with_call.f",), frozenset({"with_call.extra()"})) == plain
        assert code_hash(("with_value.f",), frozenset({"with_value.extra()"})) != plain

    def test_of_a_training_covers_low_rank_adapters_where_it_has_them(self) -> None:
        for words, expected in (((), False), (("train.trainable=lora",), True)):
            run = build(words)
            parts = definitions(("pw.stages.stage.HiresSynth",), LORA_CALLS if not run.train.low_rank else frozenset())
            assert ("pw.nn.lora.add_lora" in parts) == expected
        assert build(["train.trainable=lora"]).training_code != build([]).training_code

    def test_of_what_is_nowhere_is_refused(self) -> None:
        with pytest.raises(UnknownCode, match=r"pw\.method\.weighting\.Nothing"):
            code_hash(("pw.method.weighting.Nothing",))
        with pytest.raises(UnknownCode, match=r"DeltaSigma\.nothing"):
            code_hash(("pw.method.weighting.DeltaSigma.nothing",))

    @pytest.mark.parametrize(
        "name",
        sorted(
            {
                *STAGES.values(),
                *SAMPLING_CODE,
                *TRAINING_CODE,
                *PLACEMENT_CODE,
                *(name.removesuffix("()") for name in LORA_CALLS | MERGE_CALLS),
                *(f"pw.method.objective.Flow.{name}" for name in PLANNING),
                *(n for c in ALTERNATIVES.values() for n in c.values()),
            }
        ),
    )
    def test_is_told_to_leave_out_only_what_there_is(self, name: str) -> None:
        assert code_hash((name,))

    def test_is_that_of_the_gate_that_was_chosen(self) -> None:
        codes = {build([f"injector={name}"]).training_code for name in ("gated", "gated_channelwise", "alpha_zero")}
        assert len(codes) == 3

    def test_needs_no_torch(self) -> None:
        code = "import sys; from pw.run.build import build; build([]).signature; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


WORDS = ["name=ansc", "arms=baseline", "seeds=1", "start.updates=6", "train.updates=6", "start.shipped=false"]


def write_other_training(outputs: Path, *more: str, code: str = "0123456789ab", name: str = "0badc0de") -> Path:
    """Write a finished training of the arm, as another version of the code would."""
    run = make_plan(parse([*WORDS, f"outputs={outputs}", *more])).arms[0].first
    folder = outputs / "train" / name
    write_config(run, folder)
    path = folder / "config.yaml"
    path.write_text(re.sub("by code .*", f"by code {code}", path.read_text(), count=1))
    write_mark(folder / "done.json", {"signature": name, "updates": 6}, [])
    return folder


class TestATrainingOfOtherCode:
    def test_is_kept_and_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = write_other_training(tmp_path)
        assert main([*WORDS, f"outputs={tmp_path}", "dry_run=true"]) == 0
        output = " ".join(capsys.readouterr().out.split())
        use = "(kept; code=as_trained uses it)"
        assert f"baseline seed 0: {folder} was trained by another version of the code {use}" in output
        assert "2 trainings" in output

    def test_is_used_as_it_was_trained_when_asked_to(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = write_other_training(tmp_path)
        words = [*WORDS, f"outputs={tmp_path}", "code=as_trained"]
        plan = make_plan(parse(words))
        run = plan.arms[0].first
        assert run.is_as_trained
        assert training_folder(run, tmp_path) == folder
        assert training_folder(run.solution, tmp_path) == folder
        assert is_trained(run, tmp_path)
        assert train(run, tmp_path) == folder
        assert not [job for job in all_jobs(plan)[0] if job.kind == "train" and not job.is_done(tmp_path)]
        assert main([*words, "dry_run=true"]) == 0
        output = " ".join(capsys.readouterr().out.split())
        assert "baseline seed 0: 0badc0de, trained by another version of the code (0123456789ab)" in output
        assert "0 trainings" in output

    def test_is_noted_in_the_table(self, tmp_path: Path) -> None:
        write_other_training(tmp_path)
        plan = make_plan(parse([*WORDS, f"outputs={tmp_path}", "code=as_trained"]))
        rows = all_jobs(plan)[1]
        for row in rows:
            scores = {"metrics": {"mhd": 0.02}, "n_videos": {"mhd": 8}, "contract": {"metrics": {}}}
            write_mark(Path(row.job.score["out"]) / "scores.json", scores, [])
        notes = make_table(plan, rows, {})["notes"]
        assert "trained by another version of the code (code=as_trained): baseline seed 0" in notes

    def test_is_the_newest_of_several_and_never_one_that_this_code_made(self, tmp_path: Path) -> None:
        import os

        for age, name in enumerate(("0badc0de", "1badc0de")):
            done = write_other_training(tmp_path, name=name) / "done.json"
            os.utime(done, (1e9 - age, 1e9 - age))
        run = with_finished_trainings(make_plan(parse([*WORDS, "code=as_trained"])).arms[0].first, tmp_path)
        assert run.training_signature == "0badc0de"
        current = build([o for o in run.config.overrides if o != "code=as_trained"])
        write_config(current, training_folder(current, tmp_path))
        write_mark(training_folder(current, tmp_path) / "done.json", {}, [])
        rerun = with_finished_trainings(build(run.config.overrides), tmp_path)
        assert not rerun.is_as_trained
        assert rerun.training_signature == current.training_signature

    def test_that_is_not_finished_is_named_and_not_used(self, tmp_path: Path) -> None:
        (write_other_training(tmp_path) / "done.json").unlink()
        plan = make_plan(parse([*WORDS, f"outputs={tmp_path}", "code=as_trained"]))
        assert not plan.arms[0].first.is_as_trained
        (output,) = other_code(plan)
        assert "unfinished; only that version of the code can resume it" in output

    def test_of_another_configuration_or_an_older_suite_is_none(self, tmp_path: Path) -> None:
        write_other_training(tmp_path, "optimizer.lr=1e-5")
        (tmp_path / "train" / "2badc0de").mkdir()
        (tmp_path / "train" / "2badc0de" / "config.yaml").write_text("# python -m pw train seed=1\nseed: 1\n")
        (tmp_path / "train" / "folder" / "config.yaml").mkdir(parents=True)
        (tmp_path / "train" / "pipe").mkdir()
        os.mkfifo(tmp_path / "train" / "pipe" / "config.yaml")
        assert [earlier.folder.name for earlier in earlier_trainings(tmp_path)] == ["0badc0de"]
        assert not other_code(make_plan(parse([*WORDS, f"outputs={tmp_path}"])))


class TestFresh:
    def test_says_in_its_dry_run_what_it_would_remove_and_leaves_the_start(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = [*WORDS, f"outputs={tmp_path}", "fresh=true", "dry_run=true"]
        run = make_plan(parse(words)).arms[0].first
        assert run.start_run is not None
        folders = [training_folder(trained_run, tmp_path) for trained_run in (run, run.start_run)]
        for folder in folders:
            write_mark(folder / "done.json", {"signature": folder.name}, [])
        assert main(words) == 0
        output = capsys.readouterr().out
        assert "fresh=true would remove 1 folders of results" in output
        assert f"  {folders[0]}\n" in output
        assert str(folders[1]) not in output
        assert "1 trainings" in output
        assert all((folder / "done.json").exists() for folder in folders)

    def test_is_refused_beside_as_trained(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*WORDS, "fresh=true", "code=as_trained"]) == 2
        assert "fresh=true: deletes the results that code=as_trained reuses" in capsys.readouterr().err


VERSION = "import json; from pw.run.code import suite_version; print(json.dumps(suite_version()))"


class TestTheCommit:
    """Of the suite's own repository, and of no repository around it."""

    def version(self, sources: Sources, **environment: str) -> list[Any]:
        env = {"PYTHONPATH": str(sources.folder), "PATH": os.environ["PATH"], **environment}
        command = [sys.executable, "-c", VERSION]
        process = subprocess.run(command, cwd=sources.folder, env=env, capture_output=True, text=True, check=True)
        return json.loads(process.stdout)

    def repository(self, folder: Path, *files: str) -> str:
        def git(*words: str) -> str:
            call = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e", *words]
            return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()

        folder.mkdir(exist_ok=True)
        git("init", "-q")
        git("add", *files)
        git("commit", "-q", "--allow-empty", "-m", "x")
        return git("rev-parse", "HEAD")

    def test_is_unknown_inside_another_repository(self, tmp_path: Path) -> None:
        self.repository(tmp_path / "other")
        sources = Sources(tmp_path / "other" / "pw-1.0")
        commit, dirty, code = self.version(sources)
        assert (commit, dirty) == (f"unknown, code {code}", None)
        # a hook of git sets it
        assert self.version(sources, GIT_DIR=str(tmp_path / "other" / ".git")) == [commit, dirty, code]
        invert_the_weighting(sources)
        edited = self.version(sources)
        assert edited[0] == f"unknown, code {edited[2]}" != commit

    def test_is_known_in_its_own(self, tmp_path: Path) -> None:
        sources = Sources(tmp_path)
        commit = self.repository(tmp_path, ".")
        assert self.version(sources)[:2] == [commit, False]
        invert_the_weighting(sources)
        assert self.version(sources)[:2] == [commit, True]

    def test_code_that_is_not_in_the_repository_is_a_change(self, tmp_path: Path) -> None:
        sources = Sources(tmp_path)
        commit = self.repository(tmp_path)
        assert self.version(sources)[:2] == [commit, True]
