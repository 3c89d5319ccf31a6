"""`code=base,change`: arms by revisions of a repository that is made from this tree, with one commit for each case."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from experiments.engine.job import all_jobs
from experiments.engine.plan import Plan, make_plan, parse
from experiments.engine.revisions import checkout
from experiments.engine.revisions.checkout import CURRENT, Revision, revisions
from experiments.engine.revisions.revision_run import describe
from experiments.engine.run_ablation import main, run
from pw.io.arguments import ConfigError
from pw.io.paths import ROOT
from pw.run.code import definitions

EDITS = {  # branch -> file, old text, new text
    "louder": ("pw/method/weighting.py", "weight = span**self.p\n", "weight = 1.5 * span**self.p\n"),
    "comment": ("pw/method/weighting.py", "How much a shortcut step counts", "How much a step counts"),
    "euler": ("pw/method/solver.py", "state - (sigma - next_sigma) * v", "state + (next_sigma - sigma) * v"),
    "power": ("conf/weighting/delta_sigma.yaml", "p: 0.5", "p: 0.7"),
    "clips": ("pw/data/procedural.py", "CONTRAST = 0.45", "CONTRAST = 0.4"),
    "steps": ("conf/scale/tiny.yaml", "solution_count: 16", "solution_count: 12"),
    "broken": ("pw/method/weighting.py", "class Uniform", "klass Uniform"),
}
TINY = ["start=none", "train.updates=40", "train.batch_size=2", "sampling.count=4", "sampling.solution_steps=4"]


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the tree as it is, on branch `base`, and a branch with one commit for every edit."""
    folder = tmp_path_factory.mktemp("suite")
    for name in ("pw", "conf", "benchmarks", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "-q", "-b", "base")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "all: begin")
    for branch, (file, old, new) in EDITS.items():
        git(folder, "checkout", "-q", "-b", branch, "base")
        text = (folder / file).read_text()
        assert old in text, f"{file} does not say {old!r} any more"
        (folder / file).write_text(text.replace(old, new))
        git(folder, "commit", "-q", "-a", "-m", f"{branch}: change {file}")
    git(folder, "checkout", "-q", "base")
    return folder


@pytest.fixture
def clone(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository, as that of the suite that runs."""
    monkeypatch.setattr(checkout, "ROOT", repository)
    return repository


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs whose checkouts several tests use."""
    return tmp_path_factory.mktemp("outputs")


def plan_of(outputs: Path, *words: str) -> Plan:
    return make_plan(parse(["name=ansc", "seeds=2", f"outputs={outputs}", *words]))


class TestACall:
    @pytest.mark.parametrize("word", ["code=main,main", "code=main,", "code=", "code=--help", "code=main,as_trained"])
    def test_with_words_that_are_no_revisions_is_refused(self, word: str) -> None:
        with pytest.raises(ConfigError, match=f"^{word}: .*(each once|alone)"):
            parse(["name=ansc", word])

    def test_keeps_its_revisions_in_the_words_that_plan_it_again(self) -> None:
        options = parse(["name=ansc", "code=main,HEAD~1", "train.updates=4"])
        assert options.words() == ["name=ansc", "seeds=5", "code=main,HEAD~1", "train.updates=4"]
        assert parse(options.words()) == options
        assert parse(["name=ansc", "code=current"]).code == ()  # as without it

    @pytest.mark.usefixtures("clone")
    def test_with_an_unknown_revision_names_the_nearest(self, tmp_path: Path) -> None:
        with pytest.raises(
            ConfigError, match=r"^code=lauder: no such revision; did you mean louder\? expected current"
        ):
            revisions(["base", "lauder"], tmp_path)
        assert not (tmp_path / "code").exists()

    def test_in_a_shallow_clone_says_how_to_deepen_it(
        self, clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        git(tmp_path, "clone", "-q", "--depth=1", "--branch=louder", f"file://{clone}", "shallow")
        monkeypatch.setattr(checkout, "ROOT", tmp_path / "shallow")
        with pytest.raises(ConfigError, match=r"code=HEAD~1: no such revision.*git fetch --unshallow"):
            revisions(["HEAD~1"], tmp_path)
        with pytest.raises(ConfigError, match=r"code=base: no such revision"):
            revisions(["base"], tmp_path)

    def test_outside_a_repository_or_without_git_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "pw").mkdir()
        monkeypatch.setattr(checkout, "ROOT", tmp_path)
        with pytest.raises(ConfigError, match=r"code=base: .* is no clone of the suite's git repository"):
            revisions(["base"], tmp_path)
        monkeypatch.setenv("PATH", "")
        with pytest.raises(ConfigError, match=r"code=base: git is not installed here"):
            revisions(["base"], tmp_path)


class TestACheckout:
    def test_is_of_the_commit_and_leaves_the_clone_as_it_was(self, clone: Path, tmp_path: Path) -> None:
        before = git(clone, "status", "--porcelain", "--branch"), git(clone, "for-each-ref")
        hook = clone / ".git/hooks/post-checkout"
        hook.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
        hook.chmod(0o755)
        here, louder = revisions([CURRENT, "louder"], tmp_path)
        hook.unlink()
        assert not (tmp_path / "ran").exists()
        assert (here.folder, here.commit) == (clone, git(clone, "rev-parse", "base"))
        assert louder.folder == tmp_path / "code" / git(clone, "rev-parse", "louder")
        assert "1.5 * span" in (louder.folder / "pw/method/weighting.py").read_text()
        assert (git(clone, "status", "--porcelain", "--branch"), git(clone, "for-each-ref")) == before

    def test_that_was_interrupted_or_removed_is_made_again(self, clone: Path, tmp_path: Path) -> None:
        (first,) = revisions(["louder"], tmp_path)
        shutil.rmtree(first.folder)  # as `make clean` does: git still knows it
        half = first.folder.with_name(f".{first.commit}")
        half.mkdir()
        (half / "pw").write_text("half")
        (again,) = revisions(["louder"], tmp_path)
        assert again == first
        assert not git(again.folder, "status", "--porcelain")
        assert git(clone, "worktree", "list").count(str(tmp_path)) == 1

    @pytest.mark.usefixtures("clone")
    def test_that_was_edited_is_refused_and_kept(self, tmp_path: Path) -> None:
        (louder,) = revisions(["louder"], tmp_path)
        (louder.folder / "pw/mine.py").write_text("x = 1\n")
        with pytest.raises(
            ConfigError, match=r"code=louder: .* is not as \w{8} was checked out there; commit its changes"
        ):
            revisions(["louder"], tmp_path)
        assert (louder.folder / "pw/mine.py").exists()


def test_definitions_name_what_was_edited_and_not_what_refers_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import {0}b\nclass A:\n    def f(self):\n        return {0}b.g()\n    def h(self):\n        return {1}\n"
    monkeypatch.syspath_prepend(tmp_path)
    for name, number in (("one", 1), ("two", 2)):
        (tmp_path / f"{name}.py").write_text(text.format(name, 7))
        (tmp_path / f"{name}b.py").write_text(f"def g():\n    # {name}\n    return {number}\n")
    one, two = (definitions((f"{name}.A",)) for name in ("one", "two"))
    assert [*one] == ["one.A.f", "one.A.h", "one.A", "oneb.g"]
    assert [one[f"one{n}"] == two[f"two{n}"] for n in (".A.f", ".A.h", ".A", "b.g")] == [True, True, True, False]
    assert [*definitions(("one.A",), frozenset({"one.A.f"}))] == ["one.A.h", "one.A"]


def test_processes_of_a_revision_end_with_a_runner_that_is_killed(repository: Path) -> None:
    script = (
        "import time; from pathlib import Path; from experiments.engine.revisions.checkout import Revision\n"
        "from experiments.engine.revisions.revision_run import servers\n"
        f"with servers([Revision('base', '', '', Path({str(repository)!r}))]):\n"
        "    print('ready', flush=True)\n    time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == "ready\n"
        (server,) = psutil.Process(runner.pid).children()
        runner.kill()
    assert not psutil.wait_procs([server], timeout=60)[1]


@pytest.mark.slow
@pytest.mark.usefixtures("clone")
class TestAPlan:
    def test_has_an_arm_by_each_revision_and_says_what_computes_otherwise(self, outputs: Path) -> None:
        plan = plan_of(outputs, "arms=baseline,full", "code=base,louder,comment,euler,power")
        assert {arm.name: arm.versus for arm in plan.arms} == {
            "baseline@base": None,
            "baseline@euler": "baseline@base",
            "full@base": None,
            "full@louder": "full@base",
            "full@euler": "full@base",
            "full@power": "full@base",
        }
        assert {arm.varied["code"] for arm in plan.arms} == {"base", "louder", "euler", "power"}
        assert (plan.ablation.paper, plan.probes, plan.ablation.claims) == (None, (), ())
        differences = [note for note in plan.code_notes if not note.startswith("code ")]
        same = "computes what base computes: the runs are the same and have one row"
        assert differences == [
            f"louder, baseline: code=louder {same}",
            "louder, full: what computes its trainings has changed: pw.method.weighting.DeltaSigma.__call__",
            f"comment, baseline, full: code=comment {same}",
            "euler, baseline, full: trained as by base: the trainings are the same",
            "euler, baseline, full: what computes its clips has changed: pw.method.solver.Euler.__call__",
            f"power, baseline: code=power {same}",
            "power, full: conf/ has changed: weighting.p 0.5 → 0.7",
        ]
        runs = {arm.name: arm.first for arm in plan.arms}
        trainings = {name: run.training_signature for name, run in runs.items()}
        assert trainings["full@euler"] == trainings["full@base"] != trainings["full@louder"]
        assert runs["full@euler"].signature != runs["full@base"].signature
        here = next(arm.first for arm in plan_of(outputs).arms if arm.name == "full")  # the same code as base
        assert runs["full@base"].solution is not None
        assert here.solution is not None
        assert (runs["full@base"].signature, runs["full@base"].solution.signature) == (
            here.signature,
            here.solution.signature,
        )
        jobs = [job.key for job in all_jobs(plan)[0] if job.kind == "train"]
        assert len(jobs) == len(set(jobs)) == 2 * 4  # baseline, full, louder, power; the start is shipped

    def test_of_one_revision_keeps_rows_and_claim(self, outputs: Path) -> None:
        plan, here = plan_of(outputs, "code=louder"), plan_of(outputs)
        assert [(arm.name, arm.versus, *arm.varied) for arm in plan.arms] == [
            (arm.name, arm.versus, *arm.varied) for arm in here.arms
        ]
        assert (plan.ablation.claims, plan.ablation.paper) == (here.ablation.claims, "table_9_3")
        assert [note.partition(" is ")[0] for note in plan.code_notes] == ["code louder"]
        same = [a.first.signature == b.first.signature for a, b in zip(plan.arms, here.arms, strict=True)]
        assert same == [True, True, True, True, False]  # only `full` is weighted

    def test_is_refused_where_scores_would_not_compare_or_the_code_cannot_answer(self, outputs: Path) -> None:
        for branch, reason in {
            "clips": "makes other evaluation clips than base.*differs: pw.data.procedural.CONTRAST",
            "steps": "sampling.solution_count is 12 there and 16 in the current code; give it a value",
            "broken": "SyntaxError: .* is broken, or older than the oldest that is supported, 95fe224",
        }.items():
            with pytest.raises(ConfigError, match=f"^code={branch}: .*{reason}"):
                plan_of(outputs, "arms=full", f"code=base,{branch}")
        for words, reason in {
            "arms=full code=louder launcher=submitit trainer=ddp trainer.devices=2": "code=louder: launcher=submitit",
            "arms=full code=base,louder weighting.cap=1": "there is no key weighting.cap",
        }.items():
            with pytest.raises(ConfigError, match=reason):
                run(parse(["name=ansc", f"outputs={outputs}", "dry_run=true", *words.split()]))

    def test_shows_the_commands_that_do_it_by_hand(self, outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["name=ansc", "arms=full", "seeds=1", "code=louder", *TINY, f"outputs={outputs}"]
        assert main([*words, "dry_run=true"]) == 0
        lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if "/code/" in line]
        (louder,) = revisions(["louder"], outputs)
        folder = str(louder.folder)
        add = ["git", "worktree", "add", "--force", "--detach", folder, louder.commit]
        assert lines[0] == ["[", "-d", folder, "]", "||", *add]  # it may be there
        (run,) = (arm.first for arm in make_plan(parse(words)).arms)
        assert [line[:2] for line in lines[1:]] == [["PYTHONSAFEPATH=1", f"PYTHONPATH={louder.folder}"]] * 2
        (told,) = describe(louder, [(lines[1][lines[1].index("train") + 1 : -1], 0)])
        assert told["training_signature"] == run.training_signature


@pytest.mark.slow
def test_an_ablation_by_two_revisions_says_what_the_change_did(repository: Path, tmp_path: Path) -> None:
    words = [*("name=ansc", "arms=full", "seeds=1", "tracking=none", "code=base,louder"), *TINY, f"outputs={tmp_path}"]
    command = [sys.executable, "-m", "pw", "ablation", *words]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    ended = subprocess.run(
        command, cwd=repository, env=environment, stdout=subprocess.PIPE, text=True, timeout=600, check=True
    )
    table = json.loads((tmp_path / "ansc/table.json").read_text())
    assert [arm["name"] for arm in table["arms"]] == ["full@base", "full@louder"]
    assert table["arms"][0]["values"]["psd"] != table["arms"][1]["values"]["psd"]
    assert "full@louder is better than full@base" in [row["clause"] for row in table["verdict"]]
    commits = [git(repository, "rev-parse", name) for name in ("base", "louder")]
    assert table["code"] == [["base", commits[0]], ["louder", commits[1]]]
    marks = [json.loads(path.read_text()) for path in tmp_path.glob("train/*/done.json")]
    assert {(mark["git_commit"], mark["dirty"]) for mark in marks} == {(commit, False) for commit in commits}
    page = (tmp_path / "ansc/index.html").read_text()
    assert "pw.method.weighting.DeltaSigma.__call__" in page
    checkout = f"{tmp_path}/code/{commits[1]}"
    assert f"[ -d {checkout} ] || git worktree add --force --detach {checkout} {commits[1]}" in page
    assert "differences to the same arm by base" in ended.stdout
    assert git(repository, "status", "--porcelain") == ""


class TestTheWorkflows:
    """docs/pull_request.yml runs the code of strangers, docs/pull_request_comment.yml may write: never both in one."""

    def workflow(self, name: str) -> dict[str, object]:
        return yaml.safe_load((ROOT / "docs" / name).read_text())

    def steps(self, name: str) -> list[dict[str, str]]:
        (job,) = self.workflow(name)["jobs"].values()
        return job["steps"]

    def test_give_rights_to_write_only_where_nothing_is_checked_out(self) -> None:
        run, comment = self.workflow("pull_request.yml"), self.workflow("pull_request_comment.yml")
        assert (run[True].keys(), run["permissions"]) == (
            {"pull_request": 0}.keys(),
            {"contents": "read"},
        )  # True: `on`
        assert comment[True]["workflow_run"]["workflows"] == [run["name"]]
        assert not [s for s in self.steps("pull_request_comment.yml") if "checkout" in s.get("uses", "")]
        assert "secrets." not in (ROOT / "docs/pull_request.yml").read_text()

    @pytest.mark.parametrize("name", ["pull_request.yml", "pull_request_comment.yml"])
    def test_pin_actions_and_paste_nothing_of_a_stranger_into_a_shell(self, name: str) -> None:
        for step in self.steps(name):
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step.get("uses", f"actions/x@{'0' * 40}"))
            assert "${{" not in step.get("run", "")
            subprocess.run(["bash", "-n", "-c", step.get("run", "")], check=True)

    def test_call_an_ablation_with_words_that_it_has_and_read_what_it_writes(self) -> None:
        scripts = "\n".join(step.get("run", "") for step in self.steps("pull_request.yml"))
        (call,) = [line for line in scripts.splitlines() if line.startswith("make ")]
        target, name, words = shlex.split(call)[1:]
        assert target == "ablation"
        options = parse([name, *words.removeprefix("args=").split()])
        branches = re.findall(r"git branch (\w+) HEAD", scripts)
        assert list(options.code) == branches == ["base", "change"]
        plan = make_plan(parse([word for word in options.words() if not word.startswith("code=")]))
        assert str(plan.folder.relative_to(ROOT)) in scripts


def test_a_revision_says_what_it_is(tmp_path: Path) -> None:
    assert str(Revision("main", "0123456789abcdef", "a: b", tmp_path)) == "code main is 01234567 (a: b)"
