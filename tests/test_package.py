"""The suite works from a wheel in an empty folder, and finds a user's own strategies and ablations beside its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pw.io.paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BUILD = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
SIGNATURES = """if True:
    import json, pw.io.suite_first
    from benchmarks.metrics import scoring_code
    from experiments.engine.plan import make_plan, parse
    from pw.io.paths import OUTPUTS
    from pw.run.signatures import provenance
    runs = make_plan(parse(["name=ansc", "seeds=1"])).runs()
    print(json.dumps({
        "signatures": {arm.name: [run.training_signature, run.signature] for arm, _, run in runs},
        "psd": scoring_code("psd"),
        "code": provenance()["code"],
        "outputs": str(OUTPUTS),
    }))
"""
MINE = """from dataclasses import dataclass

from behind import power


@dataclass(frozen=True)
class Mine:
    exponent: int | float

    def __call__(self, steps, schedule, step_sampler):
        return power(schedule.noise_span(steps.timestep, steps.end), self.exponent)
"""
EVERY_NODE = """from dataclasses import dataclass

from pw.method.step_sampler import TableSampler


@dataclass(frozen=True)
class EveryNode(TableSampler):
    stride: float

    def rows(self, schedule):
        nodes = [node for node in schedule.nodes().tolist() if node > self.stride]
        for node in nodes:
            yield node, self.stride, True, 1 / len(nodes)
"""
ABLATION = '''"""A weighting of mine.

Claim     It is better than uniform.
Refuted   if it is worse.
"""

from experiments import Ablation

ABLATION = Ablation(
    fixed="objective=shortcut",
    varies=("weighting", "step_sampler"),
    arms={
        "uniform": "weighting=uniform",
        "mine": "weighting=mine",
        "every_node": "weighting=mine step_sampler=every_node",
    },
)
'''
MICRO = (
    *("scale.frames=2", "scale.height=16", "scale.width=16", "scale.anchor_height=8", "scale.anchor_width=8"),
    *("backbone.num_layers=1", "backbone.num_attention_heads=1", "backbone.attention_head_dim=16"),
    *("backbone.ffn_dim=32", "start=none", "train.updates=4", "train.batch_size=2", "optimizer.warmup=1"),
    *("sampling.count=2", "sampling.batch_size=2", "sampling.num_steps=2", "sampling.solution_steps=4"),
)


def run_python(folder: Path, path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python in a folder, with packages from `path`."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PW_")}
    environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with what pyproject.toml puts into a wheel, where it puts it."""
    site = tmp_path_factory.mktemp("site")
    leave = shutil.ignore_patterns("__pycache__")
    for package in BUILD["packages"]:
        shutil.copytree(ROOT / package, site / package, ignore=leave)
    for source, target in BUILD["force-include"].items():
        shutil.copytree(ROOT / source, site / target, ignore=leave)
    return site


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """An empty folder to work in."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's folder: a weighting and a step sampler of their own, and an ablation of both."""
    folder = tmp_path / "own"
    files = {
        "mine.py": MINE,
        "behind.py": "def power(x, p):\n    return x**p\n",
        "every_node.py": EVERY_NODE,
        "conf/weighting/mine.yaml": "_target_: mine.Mine\nexponent: 2\n",
        "conf/step_sampler/every_node.yaml": "_target_: every_node.EveryNode\nstride: 100.0\n",
        "conf/model/theirs.yaml": "not: for us\n",
        "experiments/__init__.py": "",  # a package of the name of one of the suite's
        "experiments/mine.py": ABLATION,
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


class TestTheWheel:
    def test_holds_no_package_but_pw(self, site: Path) -> None:
        assert [path.name for path in site.iterdir()] == ["pw"]

    def test_says_its_licence_and_version_and_that_it_is_typed(self, site: Path) -> None:
        project = PYPROJECT["project"]
        citation = (ROOT / "CITATION.cff").read_text()
        assert f"\nversion: {project['version']}\nlicense: {project['license']}\n" in citation
        assert all((ROOT / name).is_file() for name in project["license-files"])
        assert (site / "pw" / "py.typed").is_file()

    @pytest.mark.slow
    def test_has_the_signatures_and_the_code_of_the_checkout_in_an_empty_folder(self, site: Path, empty: Path) -> None:
        installed, here = (
            json.loads(run_python(folder, path, "-c", SIGNATURES).stdout)
            for folder, path in ((empty, site), (ROOT, ROOT))
        )
        assert Path(installed.pop("outputs")) == empty / "outputs"
        assert Path(here.pop("outputs")) == ROOT / "outputs"
        assert installed == here

    @pytest.mark.slow
    def test_lists_plans_and_reads_the_papers_tables_in_an_empty_folder(self, site: Path, empty: Path) -> None:
        for words, part in (
            (("ablations",), "ansc  Table 9.3"),
            (("ablation", "name=ansc", "dry_run=true", "seeds=1"), "shipped, 40,000 updates"),
            (("lint-paper",), "claims of the text hold"),
        ):
            ended = run_python(empty, site, "-m", "pw", *words)
            assert ended.returncode == 0, ended.stderr
            assert part in ended.stdout
        assert not list(empty.iterdir())


class TestAFolderOfOnesOwn:
    @pytest.mark.slow
    def test_is_trained_sampled_and_scored_like_the_suite(self, own: Path) -> None:
        ended = run_python(own, ROOT, "-m", "pw", "ablation", "name=mine", "seeds=1", "tracking=none", *MICRO)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        table = json.loads((own / "outputs" / "mine" / "table.json").read_text())
        assert [arm["name"] for arm in table["arms"]] == ["uniform", "mine", "every_node"]
        assert all(arm["metrics"]["psd"]["n"] for arm in table["arms"])

    def test_is_listed_beside_the_suites(self, own: Path) -> None:
        listed = run_python(own, ROOT, "-m", "pw", "ablations").stdout
        assert "mine  A weighting of mine." in listed
        assert "ansc  Table 9.3" in listed

    def test_with_a_file_that_cannot_be_read_shows_the_other_ablations(self, own: Path) -> None:
        (own / "experiments" / "bad.py").write_text("def (\n")
        ended = run_python(own, ROOT, "-m", "pw", "ablations")
        assert ended.returncode == 1
        assert "mine  A weighting of mine." in ended.stdout
        assert "bad.py:1: SyntaxError" in ended.stderr

    @pytest.mark.slow
    def test_is_another_run_when_its_code_changes_also_behind_it(self, own: Path) -> None:
        def signature() -> str:
            code = "from pw.run.build import build; print(build(['weighting=mine']).training_signature)"
            return run_python(own, ROOT, "-c", code).stdout

        first = signature()
        assert len(first) == 9
        (own / "behind.py").write_text("def power(x, p):  # a comment\n    return x**p\n")
        assert signature() == first
        (own / "behind.py").write_text("def power(x, p):\n    return x ** (2 * p)\n")
        second = signature()
        (own / "mine.py").write_text(MINE.replace("self.exponent)", "self.exponent) / 2"))
        assert len({first, second, signature()}) == 3

    @pytest.mark.parametrize(
        ("file", "text", "told"),
        [
            ("conf/weighting/uniform.yaml", "_target_: mine.Mine\n", "weighting=uniform comes with the suite"),
            ("experiments/ansc.py", ABLATION, "ansc comes with the suite; rename the file"),
            ("conf/weighting/mine.yaml", "_target_: os.system\n", "a weighting must be in pw.method.weighting"),
            ("conf/weighting/mine.yaml", "_target_: mine.power\n", "mine.power': is not a class under @dataclass"),
            ("conf/weighting/mine.yaml", "_target_: mine.Mine\n", "weighting.exponent: missing"),
            ("conf/weighting/mine.yaml", "_target_: mine.Mine\nexponent: two\n", "a whole number or a number"),
            ("conf/weighting/mine.yaml", "_target_: mien.Mine\n", "where there is no mien.py"),
            ("conf/weighting/mine.yaml", "exponent: 1\n", "expected a line `_target_: module.Class`"),
            ("conf/weighting/mine.yaml", "_target_: [mine\n", "a file of conf/ is no YAML"),
            ("mine.py", "class Mine(:\n", "mine.py:1: SyntaxError: invalid syntax"),
            ("mine.py", "\nimport nosuchmodule\n", "mine.py:2: ModuleNotFoundError: No module named 'nosuchmodule'"),
            ("experiments/mine.py", "def (\n", "experiments/mine.py:1: SyntaxError"),
            ("experiments/mine.py", '"""A title."""\n', "expected ABLATION = Ablation(…)"),
            ("experiments/mine.py", "from experiments import Ablation\nAblation(vary=3)\n", "mine.py:2: TypeError"),
        ],
    )
    def test_with_a_mistake_is_told_so_in_a_line(self, file: str, text: str, told: str, own: Path) -> None:
        (own / file).write_text(text)
        ended = run_python(own, ROOT, "-m", "pw", "ablation", "name=mine", "dry_run=true")
        assert ended.returncode == 2
        assert told in ended.stderr
        assert "Traceback" not in ended.stderr
