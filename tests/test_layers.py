"""Imports point down only, room by room, and each giant dependency has one door."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Import:
    """One import statement: who imports what, and whether it happens whenever the module is imported."""

    by: str
    what: str
    line: int
    at_once: bool

    def __str__(self) -> str:
        return f"{self.by}:{self.line} imports {self.what}"


def modules() -> list[str]:
    folders = ("pw", "experiments", "benchmarks")
    return sorted(str(p.relative_to(ROOT)) for folder in folders for p in (ROOT / folder).rglob("*.py"))


def imports_of(text: str, by: str = "") -> list[Import]:
    """Every import of a source; names taken out of a package are spelled out: `from pw import x` is pw.x."""
    return list(_walk(ast.parse(text), by, at_once=True))


def _walk(node: ast.AST, by: str, *, at_once: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(by, name.name, child.lineno, at_once) for name in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{by}:{child.lineno}: a relative import"
            yield from (Import(by, f"{child.module}.{name.name}", child.lineno, at_once) for name in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            # for the type checker only; its `else` runs
            yield from _walk(ast.Module(child.body, []), by, at_once=False)
            yield from _walk(ast.Module(child.orelse, []), by, at_once=at_once)
        else:
            deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(child, by, at_once=at_once and not deferred)


@cache
def all_imports() -> tuple[Import, ...]:
    return tuple(found for module in modules() for found in imports_of((ROOT / module).read_text(), module))


def within(name: str, *homes: str) -> bool:
    """Whether a dotted name or a path is one of `homes` or lies in one."""
    return any(name == home or name.startswith((f"{home}.", f"{home}/")) for home in homes)


def stray(by: tuple[str, ...], roots: tuple[str, ...], allowed: tuple[str, ...]) -> list[str]:
    """Imports of `roots` by the files of `by` that are not of `allowed`."""
    return [
        str(i) for i in all_imports() if within(i.by, *by) and within(i.what, *roots) and not within(i.what, *allowed)
    ]


def used_twice(named: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Name -> where it is used, of the names that are used more than once."""
    places: dict[str, list[str]] = {}
    for name, place in named:
        places.setdefault(name, []).append(place)
    return {name: found for name, found in places.items() if len(found) > 1}


# dependency -> the only rooms that may import it
DOORS = {
    "mlflow": ("pw/tracking",),
    "hydra": ("pw/run",),
    "omegaconf": ("pw/run",),
    "webdataset": ("pw/data/shard_index.py",),
    "av": ("pw/io/video.py", "pw/io/audio.py"),
    "diffusers": ("pw/nn", "benchmarks/systems"),
    "transformers": ("pw/nn/text.py", "benchmarks/metrics/set_features.py"),
    "peft": ("pw/nn/lora.py",),
    "huggingface_hub": ("pw/io", "pw/prepare", "benchmarks/measure"),
    "lightning": ("pw/stages", "pw/train", "pw/parallel", "pw/tracking"),
    "matplotlib": ("benchmarks/report",),
    "pyiqa": ("benchmarks/metrics/musiq.py",),
    "statsmodels": ("benchmarks/stats/preference.py",),
    "pandas": (),
}
# room -> the rooms that it may import, itself included
BELOW_RUN = ("pw.io", "pw.method", "pw.nn", "pw.data")
ROOMS = {
    "pw/io": ("pw.io",),
    "pw/method": ("pw.method", "pw.io"),
    "pw/data": ("pw.data", "pw.io"),
    "pw/nn": ("pw.nn", "pw.method", "pw.io"),
    "pw/run": ("pw.run", *BELOW_RUN),
    "pw/parallel": ("pw.parallel", "pw.run", *BELOW_RUN),
    "pw/stages": ("pw.stages", "pw.parallel", "pw.run", *BELOW_RUN),
    "pw/cost": ("pw.cost", "pw.parallel", "pw.run", *BELOW_RUN),
    "pw/tracking": ("pw.tracking", "pw.parallel.signals", "pw.run.settings", "pw.io"),
    "pw/train": ("pw.train", "pw.tracking", "pw.cost", "pw.stages", "pw.parallel", "pw.run", *BELOW_RUN),
    "pw/prepare": ("pw.prepare", "pw.train", "pw.cost", "pw.run", *BELOW_RUN),
    "pw/sample": ("pw.sample", "pw.train", "pw.cost", "pw.stages", "pw.parallel", "pw.run", *BELOW_RUN),
    "pw/generate": ("pw.generate", "pw.train", "pw.cost", "pw.stages", "pw.parallel", "pw.run", *BELOW_RUN),
    "pw/cli.py": ("pw.parallel", "pw.io", "pw.run"),  # a verb's module is imported by its name, when it is called
    "pw/__main__.py": ("pw.cli",),
    # no metric imports what made the videos
    **{
        f"benchmarks/{room}": ("benchmarks", "pw.io", "pw.run.code")
        for room in ("__init__.py", "metrics", "measure", "stats", "report", "paper", "systems")
    },
    "benchmarks/speed": ("benchmarks", "pw"),
    "experiments": ("experiments", "benchmarks", "pw"),
}
PACKAGES = ("pw", "experiments", "benchmarks")


class TestTheLayers:
    @pytest.mark.parametrize("room", ROOMS)
    def test_import_downwards_only(self, room: str) -> None:
        assert not stray((room,), PACKAGES, ROOMS[room])

    def test_have_a_place_for_every_module(self) -> None:
        assert not [module for module in modules() if not within(module, *ROOMS) and module != "pw/__init__.py"]

    def test_import_nothing_from_the_package_itself(self) -> None:
        assert not imports_of((ROOT / "pw/__init__.py").read_text())

    def test_never_import_tests_or_notebooks(self) -> None:
        assert not stray(PACKAGES, ("tests", "notebooks"), ())

    def test_of_the_method_use_torch_and_the_standard_library_alone(self) -> None:
        allowed = (*sys.stdlib_module_names, "torch", "pw.method", "pw.io.lazy", "pw.io.arguments")
        found = [str(i) for i in all_imports() if within(i.by, "pw/method") and not within(i.what, *allowed)]
        assert not found


class TestAName:
    """A module, a package and a public class have a name that nothing else in the tree has."""

    def test_of_a_module_or_package_is_not_used_twice(self) -> None:
        files = [Path(module) for module in modules()]
        packages = {folder for file in files for folder in file.parents if folder.name}
        # an ablation bears the name of what it varies, as does the module of that
        files = [file for file in files if file.parent != Path("experiments") and file.stem != "__init__"]
        named = [*packages, *(file.with_suffix("") for file in files)]
        assert not used_twice((path.name, str(path)) for path in named)

    def test_of_a_public_class_is_not_used_twice(self) -> None:
        defined = [
            (node.name, module)
            for module in modules()
            for node in ast.parse((ROOT / module).read_text()).body
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        ]
        assert len(defined) > 100
        assert not used_twice(defined)


class TestAGiantDependency:
    @pytest.mark.parametrize("name", DOORS)
    def test_has_one_door(self, name: str) -> None:
        through = [i for i in all_imports() if within(i.what, name)]
        assert not [str(i) for i in through if not within(i.by, *DOORS[name])]
        if DOORS[name]:
            assert through, f"nothing imports {name}: is it still needed?"

    def test_is_not_imported_before_a_call_is_checked(self) -> None:
        """What composes, builds and plans: a wrong key is told before torch (5 s) is imported."""
        early = (
            *("pw/method", "pw/data", "pw/run", "pw/cli.py", "pw/io/lazy.py", "pw/io/files.py"),
            *("pw/nn/options.py", "pw/nn/unipc.py", "pw/cost", "pw/train", "pw/sample", "experiments"),
            *(f"pw/parallel/{name}.py" for name in ("launch", "signals", "team")),
        )
        heavy = ("torch", "torchvision", "lightning", "diffusers", "mlflow", "webdataset", "pandas", "matplotlib")
        found = [i for i in all_imports() if i.at_once and within(i.by, *early) and within(i.what, *heavy)]
        # imported when there is a table to write, or when a training begins
        late = ("experiments/engine/outcome/table.py", "pw/train/callbacks.py", "pw/train/diagnostics.py")
        late += ("pw/train/held_out.py",)
        assert not [str(i) for i in found if i.by not in late]

    def test_of_a_metric_is_in_that_metrics_file(self) -> None:
        for name in ("pyiqa", "lpips", "vbench", "dover"):
            assert len({i.by for i in all_imports() if within(i.what, name)}) <= 1


class TestThisTest:
    """A rule that looks past an import is no rule."""

    def test_sees_imports_wherever_they_stand(self) -> None:
        text = (
            "import a.b, c\nfrom d import e as f\n"
            "def g():\n    from h import i\n"
            "class J:\n    import k\n"
            "if TYPE_CHECKING:\n    import m\nelse:\n    import n\n"
            "try:\n    import o\nexcept ImportError:\n    import p\n"
        )
        found = {i.what: i.at_once for i in imports_of(text)}
        assert found == {
            **{"a.b": True, "c": True, "d.e": True, "h.i": False, "k": True},
            **{"m": False, "n": True, "o": True, "p": True},
        }

    def test_tells_a_package_from_one_whose_name_begins_alike(self) -> None:
        assert within("pw.data.shards", "pw.data")
        assert not within("pw.database", "pw.data")
        assert not within("average", "av")
        assert within("pw/data/shards.py", "pw/data")
