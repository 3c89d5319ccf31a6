"""What a configuration can make the suite call: the classes of its own groups, and nothing else."""

from __future__ import annotations

import pytest

from pw.build import HOMES, build, make
from pw.config import ConfigError, groups

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


@pytest.mark.parametrize("group", HOMES)
def test_no_group_has_a_class_from_elsewhere(group: str) -> None:
    """Also when a file of conf/ says so: what Hydra composes is never instantiated by Hydra."""
    for target in ("os.system", "pw.train.train", "builtins.eval", "benchmarks.files.write_atomically", "system"):
        with pytest.raises(ConfigError, match="lives in pw"):
            make(group, {"_target_": target})


def test_every_group_with_classes_has_a_home_in_this_package() -> None:
    assert HOMES.keys() <= groups().keys()
    assert all(home.startswith("pw.") for homes in HOMES.values() for home in homes)
