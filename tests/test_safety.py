"""What a configuration can make the suite call: classes of its own groups, no other. And what a file can: nothing.

Beside these, each in the tests of its module: shards with a link, a `..`, a pickle or another ending than ours
(`data/test_shards.py`, `data/test_latent_clips.py`), weights that are pickles (`nn/test_convert.py`), and where
MLflow's page is served (`test_tracking.py`).
"""

from __future__ import annotations

import ast
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pw.io.arguments import ConfigError
from pw.run.build import build, make
from pw.run.compose import groups
from pw.run.strategies import MODULES

ROOT = Path(__file__).parents[1]
CALLS = "_target_: os.system, command: exit"


@pytest.mark.parametrize(
    "override",
    [
        "weighting._target_=os.system",
        "+weighting._target_=os.system",
        "++weighting._target_=os.system",
        f"weighting={{{CALLS}}}",
        f"scale={{{CALLS}}}",
        f"train={{{CALLS}}}",
        f"train.updates={{{CALLS}}}",
        f"schedule.shift={{{CALLS}}}",
        f"sampling.timesteps=[{{{CALLS}}}]",
        f"hydra={{{CALLS}}}",
        "weighting=../../elsewhere",
        "weighting@schedule=uniform",
    ],
)
def test_no_override_names_a_class(override: str) -> None:
    with pytest.raises(ConfigError):
        build([override])


@pytest.mark.parametrize("group", MODULES)
def test_no_group_has_a_class_from_elsewhere(group: str) -> None:
    """Also when a file of conf/ says so: what Hydra composes is never instantiated by Hydra."""
    for target in ("os.system", "pw.train.loop.train", "builtins.eval", "pw.io.files.write_atomically", "system"):
        with pytest.raises(ConfigError, match="must be in pw"):
            make(group, {"_target_": target})


def test_every_group_with_classes_has_a_home_in_this_package() -> None:
    assert MODULES.keys() <= groups().keys()
    assert all(home.startswith("pw.") for homes in MODULES.values() for home in homes)


# (call, keyword it must have as it stands here); None: must not be called at all
LOADERS = {
    "torch.load": ("weights_only", True),
    "trainer.fit": ("weights_only", True),  # Lightning reads the checkpoint
    "np.save": ("allow_pickle", False),
    "np.lib.format.read_array": ("allow_pickle", False),
    **dict.fromkeys(
        (
            *(
                "pickle.load",
                "pickle.loads",
                "pickle.Unpickler",
                "cloudpickle.load",
                "cloudpickle.loads",
                "marshal.loads",
            ),
            *("joblib.load", "dill.load", "shelve.open", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load"),
            *("yaml.full_load", "eval", "exec", "os.system", "os.popen", "hydra.utils.instantiate", "instantiate"),
            *("torch.hub.load", "torch.package.PackageImporter", "torch.jit.load"),
        )
    ),
}
# keywords that open what is shut by default
OPENERS = {"allow_pickle": True, "weights_only": False, "trust_remote_code": True, "shell": True}
UNPACKERS = ("extractall", "unpack_archive")  # of a tar or zip: its members' names may point anywhere


def openings(text: str) -> Iterator[str]:
    """Calls of a source that could run what a file says."""
    for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if name in LOADERS:
            wanted = LOADERS[name]
            if wanted is None or given.get(wanted[0]) != str(wanted[1]):
                yield f"line {call.lineno}: {name}"
        if any(given.get(key) == str(value) for key, value in OPENERS.items()):
            yield f"line {call.lineno}: {name} {given}"
        if name.rpartition(".")[2] in UNPACKERS:
            yield f"line {call.lineno}: {name}"


# the one place where a pickle is of another's making; it runs in an environment, and a process, of its own
VBENCH = ROOT / "benchmarks" / "workers"
# FVD's I3D is published as TorchScript alone: operations of torch, no Python; its sha256 is in every result
FINE = ("torch.jit.load",)
SOURCES = [path for package in ("pw", "experiments", "benchmarks") for path in sorted((ROOT / package).rglob("*.py"))]


def test_no_source_opens_a_file_in_a_way_that_could_run_it() -> None:
    found = {
        str(path.relative_to(ROOT)): [call for call in openings(path.read_text()) if call.split(": ")[1] not in FINE]
        for path in SOURCES
        if VBENCH not in path.parents
    }
    assert {path: calls for path, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "line",
    [
        *("torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=trusted)"),
        *("pickle.loads(data)", "yaml.load(text)", "np.load(path, allow_pickle=True)", "tar.extractall(folder)"),
        *("trainer.fit(module, ckpt_path=path)", "subprocess.run(words, shell=True)", "eval(text)"),
        "Model.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_a_source_that_did_would_be_found(line: str) -> None:
    assert list(openings(line))


class Code:
    """Unpickled, it makes a file."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return open, (str(self.made), "w")


@pytest.mark.parametrize("parts", [False, True], ids=["file", "folder of parts"])
def test_a_checkpoint_with_code_in_it_is_set_aside_and_not_run(
    parts: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    from pw.parallel.sharded import REST
    from pw.train.record import last_checkpoint

    made, path = tmp_path / "made", tmp_path / "checkpoints" / "last.ckpt"
    (path if parts else path.parent).mkdir(parents=True)
    content = {"pw_signature": tmp_path.name, "global_step": 5, "more": Code(made)}
    torch.save(content, path / REST if parts else path)
    with caplog.at_level(logging.WARNING, logger="pw"):
        assert last_checkpoint(tmp_path) is None
    assert "last.ckpt is unreadable" in caplog.text
    assert not made.exists()


def test_nobody_is_told_what_is_run_here_also_without_make() -> None:
    # MLflow is silent where it thinks that it is tested
    loud = {key: value for key, value in os.environ.items() if not re.search("TRACK|TELEMETRY|PYTEST|^CI$", key)}
    mlflow = "from mlflow.telemetry.utils import is_telemetry_disabled; print(is_telemetry_disabled())"
    hub = "from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"
    for module, library in (
        ("pw.train.loop", mlflow),
        ("experiments.engine.run_ablation", hub),
        *(("benchmarks.measure.score", hub), ("benchmarks.systems.diffusers_pipelines", hub)),
    ):
        script = f"import {module}; {library}"
        told = subprocess.run([sys.executable, "-c", script], env=loud, cwd=ROOT, capture_output=True, check=True)
        assert told.stdout == b"True\n", module
