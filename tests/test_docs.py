"""What a reader is told: links lead somewhere, commands exist, and the examples of docs/extending.md run."""

from __future__ import annotations

import ast
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pw.cli import VERBS
from pw.cost.generation_cost import coding
from pw.cost.planner import PlanOptions, make_plan, verdicts
from pw.io.arguments import Command, parse
from pw.io.video import write_video
from pw.prepare.ingest import DataOptions
from pw.run.build import build

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CURRENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]  # which names what is gone
SOURCES = sorted(
    path
    for folder, ending in (("pw", "py"), ("experiments", "py"), ("benchmarks", "py"), ("conf", "yaml"), ("tests", "py"))
    for path in (ROOT / folder).rglob(f"*.{ending}")
    if path != Path(__file__)
)
ROOMS = ("pw", "experiments", "benchmarks", "conf", "docs", "tests", "requirements", "notebooks")
PATH = re.compile(
    rf"(?<![\w./<-])(?:{'|'.join(ROOMS)})/[\w/.-]*\w\.(?:py|md|yaml|json|csv|png|lock|ipynb|safetensors)\b"
)
# design documents that a clone does not have
ABSENT = ("method-notes", "house", "evaluation", "speed", "stack", "faults", "users", "peers", "DECISIONS")
EXTENDING = (ROOT / "docs" / "extending.md").read_text()


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def prose(path: Path) -> str:
    """What a file tells its reader: of a document all, of a source its comments and docstrings."""
    text = path.read_text()
    if path.suffix == ".md":
        return text
    if path.suffix == ".yaml":
        return "\n".join(re.findall(r"#.*", text))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, documented)]
    return "\n".join([*comments, *docstrings])


def blocks(text: str) -> list[tuple[str, str, str]]:
    """(language, file it is called, code) of every fenced block."""
    return re.findall(r"^```(\w+)[ ]?(\S*)\n(.*?)^```", text, re.S | re.M)


def commands(path: Path) -> Iterator[list[str]]:
    """The words of every `pw …` and `make …` of a document: lines of code blocks, and code within sentences."""
    text = path.read_text()
    fenced = "\n".join(code for _, _, code in blocks(text))
    rest = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    indented = "\n".join(re.findall(r"^    (\S.*)$", rest, re.M))
    within = "\n".join(re.findall(r"(?<!`)`([^`\n]+)`", rest))
    for line in f"{fenced}\n{indented}\n{within}".splitlines():
        if re.match(r"(pw|make) [a-z]", line):
            yield shlex.split(line, comments=True)


def is_there(cited: str) -> bool:
    examples = {file for _, file, _ in blocks(EXTENDING)}
    return (ROOT / cited).exists() or cited in examples


class TestTheDocuments:
    @pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
    def test_link_to_what_is_there(self, path: Path) -> None:
        for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", path.read_text()):
            link = "".join(target)
            if link.startswith("https://"):
                continue
            file, _, anchor = link.partition("#")
            found = path.parent / file if file else path
            assert found.exists(), link
            if anchor:
                assert anchor in anchors(found), link

    @pytest.mark.parametrize("path", CURRENT, ids=name_of)
    def test_name_commands_that_exist(self, path: Path) -> None:
        targets = set(re.findall(r"(?m)^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text()))
        for program, *words in commands(path):
            known = {*VERBS, "VERB"} if program == "pw" else {*targets, "VERB"}
            assert words[0] in known or words[0].startswith("-"), [program, *words]

    @pytest.mark.parametrize("path", CURRENT, ids=name_of)
    def test_give_options_that_the_command_has(self, path: Path) -> None:
        for program, verb, *words in (words for words in commands(path) if len(words) > 2):
            if program != "pw" or verb not in VERBS or "…" in "".join(words):
                continue
            what = next((word.removeprefix("what=") for word in words if word.startswith("what=")), "")
            module = VERBS[verb].variants.get(what, VERBS[verb].module)
            command = importlib.import_module(module).main
            if isinstance(command, Command):
                parse(command.options, [word for word in words if word != f"what={what}" or not VERBS[verb].variants])

    def test_begin_with_one_page(self) -> None:
        assert len((ROOT / "README.md").read_text().splitlines()) <= 150

    def test_name_the_function_of_each_equation(self) -> None:
        rows = re.findall(
            r"^\|[^|]*\|[^|]*\| \[([\w/.]+)\]\([^)]*\) \| (.*?) \|$", (ROOT / "docs/method.md").read_text(), re.M
        )
        assert len(rows) > 12
        for file, names in rows:
            defined = set(re.findall(r"(?:class|def) (\w+)", (ROOT / file).read_text()))
            assert set(re.findall(r"`(\w+)`", names)) <= defined, file


def scaled_commands() -> list[str]:
    """Every command of the documents that names one of Wan's scales, as the words of `pw`."""
    lines = set()
    for path in CURRENT:
        lines |= {" ".join(map(shlex.quote, words[1:])) for words in commands(path)}
        launched = re.findall(r"^    torchrun .* -m pw (.*)$", path.read_text(), re.M)
        lines |= {" ".join(map(shlex.quote, shlex.split(line, comments=True))) for line in launched}
    lines = {line.replace("'args=", "'").replace("'", "") if "args=" in line else line for line in lines}
    return sorted(line for line in lines if re.search(r"(^| )scale=(proxy|2k|4k)( |$)", line))


class TestACommandThatNamesAScale:
    """Fits by `pw plan`: several GPUs are of 80 GB; one trains on an H200 unless only the adapters do."""

    @pytest.mark.parametrize("line", scaled_commands())
    def test_fits(self, line: str) -> None:
        verb, *words = shlex.split(line)
        verb = "generate" if verb == "serve" else verb  # whose options it takes
        words = [word for word in words if "…" not in word and not word.startswith(("data=", "data.", "launcher"))]
        if verb == "plan":
            options = parse(PlanOptions, [word for word in words if not word.startswith("json=")])
        elif verb in ("train", "ablation", "sample", "generate"):
            command = importlib.import_module(VERBS[verb].module).main
            overrides = parse(command.options, words).overrides
            count = build(overrides).trainer.processes
            small = count > 1 or verb == "generate" or "train.trainable=adapters" in overrides
            what = "generation" if verb == "generate" else "training"
            options = parse(PlanOptions, [*overrides, f"gpus={count}x{'80GB' if small else 'H200'}", f"for={what}"])
        elif verb == "data":
            assert parse(DataOptions, words).settings.frames > 5
            return
        else:
            assert verb in ("latents", "bench", "weights"), verb
            run = build([word for word in words if word.startswith("scale=")])
            assert coding(run, "clip", run.scale.size, "encode").fits(80e9)
            return
        assert [verdict.line for verdict in verdicts(make_plan(options)) if not verdict.fits] == []

    def test_is_found(self) -> None:
        verbs = {line.split()[0] for line in scaled_commands()}
        assert {"plan", "train", "generate", "ablation", "latents", "data"} <= verbs

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ("| one H200 | all weights at `proxy`, {} GB |", "scale=proxy gpus=1xH200"),
            ("likewise at 4K, {} GB", "scale=4k gpus=1xH200 train.trainable=adapters trainer.offload_activations=true"),
            (
                "| one 32 GB card | low-rank adapters at `proxy`: `train.trainable=lora`, {} GB",
                "scale=proxy gpus=1xRTX5090 train.trainable=lora",
            ),
            ("| one 80 GB card | likewise at 2K, {} GB", "scale=2k gpus=1x80GB train.trainable=lora"),
            (
                "likewise at 4K with `trainer.offload_activations=true`, {} GB",
                "scale=4k gpus=1xH200 train.trainable=lora trainer.offload_activations=true",
            ),
            ("at 2K, with `trainer=fsdp trainer.context=2`, {} GB each", "scale=2k gpus=8x80GB trainer.context=2"),
            ("at 4K, with `trainer=fsdp trainer.context=8`, {} GB each", "scale=4k gpus=8x80GB trainer.context=8"),
        ],
    )
    def test_in_the_table_needs_what_it_says(self, row: str, words: str) -> None:
        fsdp = ["trainer=fsdp"] if "context" in words else []
        plan = make_plan(parse(PlanOptions, [*fsdp, *words.split(), "for=training"]))
        assert row.format(f"{plan.training.worst.needs / 1e9:.0f}") in (ROOT / "docs" / "scale_up.md").read_text()
        assert verdicts(plan)[0].fits

    def test_generates_in_the_memory_and_the_work_that_are_stated(self) -> None:
        text, stated = (ROOT / "docs" / "scale_up.md").read_text(), []
        for scale in ("2k", "4k"):
            tiled, auto = (make_plan(parse(PlanOptions, [f"scale={scale}", *w])) for w in ((), ("gpus=1xH200",)))
            stage, before, after = tiled.generation.phases[2], tiled.generation.phases[-1], auto.generation.phases[-1]
            flops = (f"{phase.flops.total / 1e15:.1f}" for phase in (before, after))
            stated.append((f"{stage.bytes / 1e9:.0f} GB at {scale.upper()}", *flops))
            assert after.bytes < 39.5e9
            assert auto.generation.together().fits(80e9)
        (memory, *work), (larger_memory, *larger_work) = stated
        assert f"stage II takes {memory} and {larger_memory}" in " ".join(text.split())
        sentence = "falls from {} to {} PFLOP at 2K and from {} to {} at 4K"
        assert sentence.format(*work, *larger_work) in " ".join(text.split())


def anchors(path: Path) -> set[str]:
    """What a link into a document can name: explicit ids, and headings as GitHub spells them."""
    text = path.read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {
        *re.findall(r'id="([^"]+)"', text),
        *(re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings),
    }


def not_in_a_clone(path: Path) -> list[str]:
    """What a file cites that a clone does not have."""
    text = prose(path)
    lacking = [cited for cited in PATH.findall(text) if not is_there(cited)]
    lacking += re.findall(rf"\b(?:{'|'.join(ABSENT)})(?:\.md| \d+\.\d)", text)
    lacking += re.findall(r"(?<![\w/])(?:method|tiny)\.md", text) if path.suffix != ".md" else []
    return lacking + re.findall(r"shared/\w[\w/.]*", text)


def is_module(dotted: str) -> bool:
    """Whether a dotted name is a package, a module, or a name that occurs in one."""
    parts = dotted.split(".")
    for n in range(len(parts), 0, -1):
        found = ROOT.joinpath(*parts[:n])
        source = found / "__init__.py" if found.is_dir() else found.with_suffix(".py")
        if source.exists():
            return n == len(parts) or bool(re.search(rf"\b{parts[n]}\b", source.read_text()))
    return False


class TestWhatIsCited:
    @pytest.mark.parametrize("path", CURRENT, ids=name_of)
    def test_by_a_document_is_in_a_clone(self, path: Path) -> None:
        assert not_in_a_clone(path) == []

    def test_by_a_docstring_or_comment_is_in_a_clone(self) -> None:
        assert {name_of(path): lacking for path in SOURCES if (lacking := not_in_a_clone(path))} == {}

    def test_of_modules_is_there(self) -> None:
        dotted = re.compile(r"`((?:pw|experiments|benchmarks)(?:\.[A-Za-z_]\w*)+)`")
        cited = {name_of(path): dotted.findall(prose(path)) for path in [*CURRENT, *SOURCES]}
        assert {file: gone for file, names in cited.items() if (gone := [n for n in names if not is_module(n)])} == {}

    def test_of_decisions_is_one_of_them(self) -> None:
        numbers = {name_of(path): set(re.findall(r"(?<=[ (])D\d+\b", prose(path))) for path in [*SOURCES, *CURRENT]}
        assert {file: unknown for file, found in numbers.items() if (unknown := found - decisions().keys())} == {}


@cache
def decisions() -> dict[str, str]:
    """Number -> where it is, of every decision."""
    found: dict[str, str] = {}
    for path in (ROOT / "docs" / "decisions").glob("*.md"):
        for anchor, number in re.findall(r'^<a id="(d\d+)"></a>\n\*\*(D\d+)\. ', path.read_text(), re.M):
            assert anchor == number.lower()
            assert number not in found
            found[number] = path.stem
    return found


def test_every_decision_is_in_the_index_under_its_file() -> None:
    index = (ROOT / "docs" / "decisions" / "README.md").read_text()
    listed = {}
    for file, numbers in re.findall(r"^\| \[(\w+)\.md\]\S+ \|[^|]*\| (.*) \|$", index, re.M):
        for first, last in re.findall(r"D(\d+)(?:-D(\d+))?", numbers):
            listed |= {f"D{n}": file for n in range(int(first), int(last or first) + 1)}
    assert listed == decisions()


def section(title: str) -> list[tuple[str, str, str]]:
    """The blocks of one section of docs/extending.md."""
    return blocks(EXTENDING.partition(f"\n## {title}\n")[2].partition("\n## ")[0])


def run_pw(folder: Path, line: str, suite: Path = ROOT) -> str:
    """What `pw …` prints in a folder, with the code of `suite`. An ablation is planned, not run."""
    _, *words = shlex.split(line)
    planned = ["dry_run=true"] if words[0] == "ablation" else []
    done = subprocess.run(
        [sys.executable, "-m", "pw", *words, *planned],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(suite)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def run_section(folder: Path, title: str) -> str:
    """Write a section's files into a folder and call its commands there: what they print."""
    printed = []
    for language, file, code in section(title):
        if file:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(code)
        elif language == "bash":
            printed += [run_pw(folder, line) for line in code.splitlines()]
    assert printed
    return "\n".join(printed)


class TestTheExamples:
    """Of docs/extending.md, each in a researcher's empty folder."""

    @pytest.mark.slow
    def test_of_a_weighting_trains(self, tmp_path: Path) -> None:
        run_section(tmp_path, "A weighting")
        assert list((tmp_path / "outputs" / "train").glob("*/done.json"))

    @pytest.mark.slow
    def test_of_a_step_sampler_covers_its_grid(self, tmp_path: Path) -> None:
        assert "second halves: 0 of 4 trained,\n4 more evaluated at stride 0" in run_section(tmp_path, "A step sampler")

    def test_of_an_ablation_is_listed_and_planned(self, tmp_path: Path) -> None:
        printed = run_section(tmp_path, "An ablation")
        assert "Does a cap on the weight help?" in printed
        assert "weighting=mine" in printed

    @pytest.mark.slow
    def test_of_a_backbone_trains(self, tmp_path: Path) -> None:
        run_section(tmp_path, "A backbone")
        assert list((tmp_path / "outputs" / "train").glob("*/done.json"))

    def test_of_a_system_names_the_command_it_would_run(self, tmp_path: Path) -> None:
        assert "--prompt 'a heron lifts off a misty lake'" in run_section(tmp_path, "A system")

    def test_of_a_metric_scores_a_video(self, tmp_path: Path) -> None:
        suite = tmp_path / "suite"
        for folder in ("pw", "experiments", "benchmarks", "conf"):
            shutil.copytree(ROOT / folder, suite / folder, ignore=shutil.ignore_patterns("__pycache__"))
        (_, module, code), (_, registry, row) = section("A metric")
        (suite / module).write_text(code)
        with (suite / registry).open("a") as rows:
            rows.write(row)
        stripes = np.zeros((3, 32, 32, 3), np.uint8)
        stripes[:, :, ::2] = 255  # neighbours differ by all of the range
        (tmp_path / "clips").mkdir()
        write_video(tmp_path / "clips" / "stripes.mkv", stripes)
        run_pw(tmp_path, f"pw score {tmp_path / 'clips'} metrics=edges out={tmp_path / 'scores.csv'}", suite)
        assert (tmp_path / "scores.csv").read_text().splitlines()[1].split(",")[-1] == "1"
