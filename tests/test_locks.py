"""What is committed: locks that pin everything and name no host, commands that exist, and no trace of a machine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest

from experiments.engine.ablation import names
from experiments.engine.plan import make_plan, parse
from experiments.engine.queue.launcher import take_launcher
from pw.cli import VERBS
from pw.run.build import build

ROOT = Path(__file__).parents[1]
LOCKS = tuple(f"requirements/{name}.lock" for name in ("dev", "uv", "iqa", "vbench"))
README = ROOT / "README.md"
MAKEFILE = (ROOT / "Makefile").read_text()

needs_git = pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a git checkout")
needs_readme = pytest.mark.skipif(not README.exists(), reason="there is no README.md")


def git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout


@cache
def committed() -> dict[str, str]:
    """Path -> text of every text file that is committed, or would be by `git add .`."""
    found = {}
    for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        path = ROOT / name
        if name and path.is_file() and b"\0" not in (data := path.read_bytes()):
            found[name] = data.decode()
    return found


def requirements(lock: str) -> list[str]:
    """Each requirement of a lock with its hashes, on one line."""
    text = re.sub(r"(?m)^\s*#.*$", "", (ROOT / lock).read_text()).replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def project_name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


@pytest.mark.parametrize("lock", LOCKS)
class TestALock:
    def test_pins_every_requirement_to_a_version_and_a_sha256(self, lock: str) -> None:
        found = requirements(lock)
        assert found
        pinned = re.compile(r"[A-Za-z0-9._-]+==\S+ (;.*? )?(--hash=sha256:[0-9a-f]{64} ?)+")
        assert not [line[:80] for line in found if not pinned.fullmatch(line)]

    def test_names_no_host(self, lock: str) -> None:
        text = (ROOT / lock).read_text()
        assert not re.search(r"https?://|git\+|file:|\b--(extra-)?index-url|--find-links|\s@\s", text)


class TestTheEnvironment:
    def test_has_every_dependency_of_the_project_in_the_lock(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        wanted = {project_name(r) for r in [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]}
        assert wanted <= {project_name(line) for line in requirements("requirements/dev.lock")}

    def test_has_no_index_or_download_address_in_its_settings(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        uv = project["tool"]["uv"]
        assert not {"index", "index-url", "extra-index-url", "find-links", "sources", "pip"} & uv.keys()
        assert not re.search(r"https?://", (ROOT / "pyproject.toml").read_text())

    def test_fetches_the_uv_that_the_makefile_names(self) -> None:
        version = re.search(r"(?m)^UV_VERSION := (\S+)$", MAKEFILE)
        assert version
        assert [line.split()[0] for line in requirements("requirements/uv.lock")] == [f"uv=={version[1]}"]

    def test_keeps_its_versions_where_pyiqa_is_added(self) -> None:
        """`make iqa` adds to the environment and changes nothing in it."""
        dev, iqa = (set(requirements(f"requirements/{name}.lock")) for name in ("dev", "iqa"))
        versions = [{line.split(" --hash")[0] for line in lock} for lock in (dev, iqa)]
        pinned = [{line.split(" ;")[0] for line in lock} for lock in versions]
        assert pinned[0] < pinned[1]

    def test_installs_by_hash_only(self) -> None:
        makefile = MAKEFILE.replace("\\\n", " ")
        installs = [line for line in makefile.splitlines() if re.search(r"pip (install|sync)", line)]
        assert len(installs) == 4
        assert all("--require-hashes" in line for line in installs)


@needs_git
class TestWhatIsCommitted:
    def test_includes_the_locks_and_never_uv_lock(self) -> None:
        assert set(LOCKS) <= committed().keys()
        assert not [name for name in committed() if Path(name).name == "uv.lock" and name not in LOCKS]
        assert git("check-ignore", "uv.lock").strip() == "uv.lock"

    def test_holds_no_package_host(self) -> None:
        hosts = re.compile(r"(?:files\.)?python" + r"hosted\.org|pypi" + r"\.org/simple|download\.py" + r"torch\.org")
        assert not [name for name, text in committed().items() if hosts.search(text)]

    def test_holds_no_path_of_a_machine(self) -> None:
        # spelled so that this file does not find itself
        places = re.compile(
            "|".join(("/ho" + r"me/\w", "/Use" + r"rs/\w", "/wo" + r"rk/\w", "/ro" + r"ot/\w", r"[A-Z]:\\Us" + "ers"))
        )
        found = {name: match[0] for name, text in committed().items() if (match := places.search(text))}
        assert not found

    def test_holds_no_results_weights_or_videos_but_the_shipped_starts(self) -> None:
        endings = {".ckpt", ".safetensors", ".pt", ".mkv", ".mp4", ".tar", ".db", ".pyc"}
        listed = git("ls-files", "--cached", "--others", "--exclude-standard").splitlines()
        starts = {f"pw/starts/{name}.safetensors" for name in ("base", "guided", "hires", "hires-small")}
        found = {n for n in listed if Path(n).suffix in endings or n.startswith(("outputs/", "data/"))}
        assert found == starts

    def test_lets_git_ignore_what_a_run_makes(self) -> None:
        made = ["outputs/ansc/table.md", "data/shards/train-000000.tar", ".venv/.ready", ".tools/uv"]
        answer = subprocess.run(
            ["git", "-C", str(ROOT), "check-ignore", *made], capture_output=True, text=True, check=False
        )
        assert answer.stdout.split() == made

    def test_keeps_the_data_package_of_the_code(self) -> None:
        """`/data/` is ignored, pw/data must not be."""
        assert "pw/data/shards.py" in committed()


def readme_commands() -> list[list[str]]:
    """The words of every `make …` in a code block of the README, comments left out."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", README.read_text(), re.S)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("make")]


def targets() -> set[str]:
    return set(re.findall(r"(?m)^([a-z-]+):(?!=)", MAKEFILE))


@needs_readme
class TestTheReadme:
    def test_calls_targets_that_exist(self) -> None:
        called = {words[1] for words in readme_commands() if len(words) > 1}
        assert {"ablation", "test"} <= called
        assert called <= targets()

    def test_gives_arguments_that_are_accepted(self) -> None:
        """Planned and built, not run; real video needs a folder of it."""
        checked = 0
        for _, *words in readme_commands():
            given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
            arguments = shlex.split(given.get("args", ""))
            if not words or "data=shards" in arguments or "…" in given.get("args", ""):
                continue
            if words[0] == "ablation":
                assert given["name"] in names()
                if arguments:  # without any, test_experiments has planned it
                    _, rest = take_launcher(arguments)
                    assert make_plan(parse([f"name={given['name']}", "seeds=1", *rest])).arms
            elif words[0] in ("train", "sample", "coverage"):
                assert build(arguments).signature
            else:
                continue
            checked += 1
        assert checked >= 3


def make(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`make` in a bare environment: when it is make that runs these tests, its own variables are no part of them."""
    bare = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    call = ["make", "-C", str(ROOT), "--no-print-directory", *words]
    return subprocess.run(call, env=bare | environment, capture_output=True, text=True, timeout=900, check=False)


def passed_by_make(folder: Path, *words: str, **environment: str) -> list[str]:
    """What `make` calls `pw` with, by a program in its place that prints its words."""
    program = folder / "program"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    told = make("-o", ".venv/.ready", f"PW={program}", *words, **environment)
    assert told.returncode == 0, told.stderr
    return told.stdout.split("\n")[:-1]


class TestTheMakefile:
    def test_says_what_each_target_is_for(self) -> None:
        described = set(re.findall(r"(?m)^([a-z-]+):.*## \S", MAKEFILE))
        assert described == targets()

    def test_has_a_target_for_every_verb(self) -> None:
        ours = set(re.findall(r"\$\(PW\) ([\w-]+)", MAKEFILE))
        assert ours == {*VERBS} - {"replay"}

    @pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
    def test_alone_lists_the_targets(self) -> None:
        told = make()
        assert told.returncode == 0, told.stderr
        lines = [line.split()[1] for line in told.stdout.splitlines() if line.strip().startswith("make ")]
        assert set(lines) == targets()

    @pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
    @pytest.mark.parametrize(
        ("words", "passed"),
        [
            (["score"], ["score"]),
            (
                ["score", "videos=my $5 `clips`", "metrics=mhd_mse, niqe", "out=my $x.csv", "args=strict=true"],
                ["score", "videos=my $5 `clips`", "metrics=mhd_mse, niqe", "out=my $x.csv", "strict=true"],
            ),
            (["compare", "a=x"], ["compare", "a=x"]),
            (["compare", "a=my $a", 'b=the "other"'], ["compare", "a=my $a", 'b=the "other"']),
            (["generate", 'prompt=a $5 "heron"'], ["generate", 'prompt=a $5 "heron"']),
            (["table", "args='row.x=my clips'"], ["table", "row.x=my clips"]),
            (["system"], ["system"]),
            (["power"], ["power"]),
        ],
    )  # fmt: skip
    def test_hands_on_what_was_typed(self, tmp_path: Path, words: list[str], passed: list[str]) -> None:
        assert passed_by_make(tmp_path, *words) == passed

    @pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
    def test_no_value_is_expanded_or_run(self, tmp_path: Path) -> None:
        """Of every target and each of its variables; one of the environment is no word of the call."""
        hit = tmp_path / "hit"
        value = f"/v/$5 a#b `touch {hit}` $(shell touch {hit}) $(touch {hit}) $$x \"; touch {hit}; ' \\ %41 日本 ~"
        rules = re.findall(r"(?m)^([a-z-]+):(?!=).*\n\t@\$\(PW\) \1 \$\(call given,([a-z ]+)\) \$\(args\)$", MAKEFILE)
        assert len(rules) >= 12
        assert {key for _, keys in rules for key in keys.split()} >= {
            *["path", "name", "run", "ablation", "scale", "gpus", "what", "port"]
        }
        for target, keys in rules:
            words = [f"{key}={value}" for key in keys.split()]
            assert passed_by_make(tmp_path, target, *words) == [target, *words]
            leaks = dict.fromkeys((*keys.split(), "args"), "leak")
            assert passed_by_make(tmp_path, target, f"unknown={value}", **leaks) == [target]
        assert not hit.exists()

    def test_every_recipe_passes_variables_in_that_way(self) -> None:
        """A recipe that names one itself would have make or the shell expand it."""
        calls = re.findall(r"(?m)^\t@?\$\(PW\).*$", MAKEFILE)
        assert {name for call in calls for name in re.findall(r"\$[({](\w+)", call)} == {"PW", "call", "args"}
