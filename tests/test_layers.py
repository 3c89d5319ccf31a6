"""Imports point down only, and each giant dependency has one door  (house.md, "The tree")."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
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


# dependency -> the only files that may import it
DOORS = {
    "mlflow": ("pw/tracking.py",),
    "hydra": ("pw/config.py", "pw/build.py"),
    # config.yaml is written with it
    "omegaconf": ("pw/config.py", "pw/build.py", "pw/train.py", "pw/start.py", "pw/export.py"),
    "webdataset": ("pw/data/shards.py",),
    "av": ("pw/video.py",),
    "diffusers": ("pw/nn", "benchmarks/systems"),
    "transformers": ("pw/nn/text.py",),
    "huggingface_hub": ("pw/weights.py", "pw/data/ultravideo.py", "benchmarks/weights.py"),
    "lightning": ("pw/stages", "pw/train.py", "pw/parallel.py", "pw/sharded.py"),
    "matplotlib": ("benchmarks/figures.py",),
    "pyiqa": ("benchmarks/metrics/musiq.py",),
    "pandas": (),
}
# files -> what of ours they may import, themselves included: a row sees the rows above it
LAYERS = {
    "pw/types.py": ("pw.types",),
    "pw/lazy.py": ("pw.lazy",),
    "pw/method": ("pw.method", "pw.types", "pw.lazy"),
    "pw/video.py": ("pw.video", "pw.types"),
    "pw/data": ("pw.data", "pw.video", "pw.types", "pw.lazy"),
    "pw/nn": ("pw.nn", "pw.method", "pw.types", "pw.lazy"),
    "pw/code.py": ("pw.code",),
    "pw/config.py": ("pw.config",),
    "pw/shipped.py": ("pw.shipped", "pw.config"),
    "pw/settings.py": ("pw.settings",),
    "pw/parallel.py": ("pw.parallel", "pw.config", "pw.settings"),
    "pw/sharded.py": ("pw.sharded", "pw.parallel", "pw.settings"),
    "pw/host.py": ("pw.host",),
    "pw/provenance.py": ("pw.provenance", "pw.config"),
    "pw/tracking.py": ("pw.tracking",),
    "pw/weights.py": ("pw.weights",),
    "pw/build.py": (
        *("pw.build", "pw.code", "pw.config", "pw.settings", "pw.shipped", "pw.weights"),
        *("pw.data", "pw.method", "pw.nn", "pw.types", "pw.lazy"),
    ),
    "pw/stages": (
        *("pw.stages", "pw.build", "pw.settings", "pw.weights", "pw.parallel", "pw.sharded"),
        *("pw.method", "pw.nn", "pw.data", "pw.video", "pw.types"),
    ),
    "benchmarks": ("benchmarks", "pw.code", "pw.host", "pw.video", "pw.types"),
    "pw/not_finite.py": ("pw.not_finite", "pw.data"),
    "pw/train.py": (
        *("pw.build", "pw.config", "pw.cost", "pw.host", "pw.provenance", "pw.stages", "pw.weights"),
        *("pw.nn", "pw.data"),
        *("pw.method", "pw.parallel", "pw.sharded", "pw.not_finite"),
    ),
    "pw/start.py": ("pw.build", "pw.config", "pw.parallel", "pw.shipped", "pw.train"),
    "pw/replay.py": ("pw.build", "pw.config", "pw.not_finite", "pw.parallel", "pw.sharded", "pw.train"),
    "pw/sample.py": (
        *("pw.build", "pw.config", "pw.cost", "pw.host", "pw.parallel", "pw.provenance", "pw.train", "pw.stages"),
        "pw.weights",
        *("pw.method", "pw.nn", "pw.data", "pw.video", "pw.types"),
    ),
    "pw/cost.py": ("pw.cost", "pw.build", "pw.settings", "pw.nn", "pw.method"),
    "pw/plan.py": ("pw.plan", "pw.cost", "pw.build", "pw.config", "pw.settings", "pw.nn", "pw.parallel"),
    "pw/export.py": ("pw.export", "pw.build", "pw.config", "pw.provenance", "pw.train", "pw.nn"),
    "pw/bench.py": (
        *("pw.bench", "pw.build", "pw.config", "pw.cost", "pw.provenance", "pw.train", "pw.stages", "pw.nn"),
    ),
    "pw/bench_train.py": ("pw.bench_train", "pw.build", "pw.train", "pw.data"),
    "pw/generate.py": (
        *("pw.generate", "pw.build", "pw.config", "pw.provenance", "pw.train", "pw.stages", "pw.weights"),
        *("pw.plan", "pw.cost", "pw.data", "pw.method", "pw.nn", "pw.video", "pw.parallel", "pw.sharded"),
    ),
    "pw/latents.py": (
        *("pw.latents", "pw.build", "pw.config", "pw.train", "pw.weights"),
        *("pw.data", "pw.nn"),
    ),
    "pw/coverage.py": ("pw.build", "pw.config", "pw.method"),
    "experiments": (
        *("experiments", "benchmarks", "pw.build", "pw.config", "pw.cost", "pw.host", "pw.provenance"),
        *("pw.train", "pw.sample", "pw.tracking", "pw.parallel", "pw.settings", "pw.bench_train"),
    ),
}
PACKAGES = ("pw", "experiments", "benchmarks")


class TestTheLayers:
    @pytest.mark.parametrize("layer", LAYERS)
    def test_import_downwards_only(self, layer: str) -> None:
        assert not stray((layer,), PACKAGES, LAYERS[layer])

    def test_have_a_place_for_every_module(self) -> None:
        assert not [module for module in modules() if not within(module, *LAYERS) and module != "pw/__init__.py"]

    def test_import_nothing_from_the_package_itself(self) -> None:
        assert not imports_of((ROOT / "pw/__init__.py").read_text())

    def test_never_import_tests_or_notebooks(self) -> None:
        assert not stray(PACKAGES, ("tests", "notebooks"), ())

    def test_of_the_method_use_torch_and_the_standard_library_alone(self) -> None:
        allowed = (*sys.stdlib_module_names, "torch", "pw.method", "pw.types", "pw.lazy")
        found = [str(i) for i in all_imports() if within(i.by, "pw/method") and not within(i.what, *allowed)]
        assert not found


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
            "pw/method",
            "pw/nn/options.py",
            "pw/nn/unipc.py",
            "pw/data",
            "experiments",
            "pw/train.py",
            "pw/sample.py",
        )
        names = ("build", "config", "settings", "lazy", "types", "coverage", "parallel", "plan", "cost")
        early = (*early, *(f"pw/{name}.py" for name in names))
        heavy = ("torch", "torchvision", "lightning", "diffusers", "mlflow", "webdataset", "pandas", "matplotlib")
        found = [i for i in all_imports() if i.at_once and within(i.by, *early) and within(i.what, *heavy)]
        # _table is imported when there is a table to write
        assert not [str(i) for i in found if i.by != "experiments/_table.py"]

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
