"""The metric registry: a row per metric, with its direction, protocol and needs. It imports in milliseconds.

The rows are in registry.yaml. The family "reference" has the weight-free metrics of an ablation's clips. All other
families measure videos of any system, one video at a time, and one pass gives all metrics of a family.
`benchmarks.metrics.implementation` defines the interface of an implementation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from pw.io.arguments import ConfigError
from pw.run.code import code_hash

Direction = Literal["lower", "higher", "one"]
ARROWS: Mapping[Direction, str] = {"lower": "↓", "higher": "↑", "one": "→1"}


@dataclass(frozen=True)
class Metric:
    """One row of the registry.

    direction: "one" is two-sided: 1 is the best value, and the distance from it is |ln value|.
    protocol: the id of its definition; scores of different protocols never share a table.
    scorer: the implementation, as "module.name" within `benchmarks.metrics`; default: `scorer` of the family's module.
    level: "video" has a value per video, and their mean for the folder; "set" has one value for the whole folder.
    needs: folders beside the videos ("real", "structure", "solution"); without them the metric has no value.
    settings: the arguments of the implementation, part of the measurement contract; shared by a family.
    scale: the range of its values; printed: the factor by which tables multiply it, as the paper does.
    weights: the rows of `benchmarks.measure.metric_weights` that it needs.
    extra: an optional installation that it needs: "iqa" (pyiqa) or "vbench" (the worker).
    licence: printed with each score if the use is restricted, else empty.
    """

    name: str
    header: str
    direction: Direction
    protocol: str
    about: str
    family: str
    scorer: str
    unit: str = ""
    level: Literal["video", "set"] = "video"
    needs: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    scale: str = ""
    printed: float = 1.0
    weights: tuple[str, ...] = ()
    extra: str = ""
    licence: str = ""

    @property
    def arrow(self) -> str:
        """The arrow in a table's header: which direction is better."""
        return ARROWS[self.direction]


def _read_registry(path: Path) -> dict[str, Metric]:
    rows = {}
    for family, base in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        for name, row in base.pop("metrics").items():
            values = {"scorer": f"{family}.scorer", **base, **row, "about": base.get("about", "") + row["about"]}
            rows[name] = Metric(name=name, family=family, **_with_tuples(values))
    return rows


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace lists by tuples, also within the settings, because all metrics of a family share the settings."""
    plain = {key: _with_tuples(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}


METRICS: Mapping[str, Metric] = _read_registry(Path(__file__).with_name("registry.yaml"))

VBENCH_QUALITY = (
    *("subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness", "dynamic_degree"),
    *("aesthetic_quality", "imaging_quality"),
)
VBENCH_SEMANTIC = tuple(name for name, row in METRICS.items() if row.family == "vbench" and name not in VBENCH_QUALITY)
GROUPS: Mapping[str, tuple[str, ...]] = {
    "table_1": tuple(name for name in VBENCH_QUALITY if name != "temporal_flickering"),
    "table_2": ("mhd_mse", "mhd_lpips", "dover_technical", "dover_aesthetic"),
    "table_3": ("musiq", "niqe", "mhd_mse", "mhd_lpips", "dover_technical", "dover_aesthetic"),
    "table_8_1": (*VBENCH_QUALITY, *VBENCH_SEMANTIC),
    "dover": tuple(name for name, row in METRICS.items() if row.family == "dover"),
    "vbench6": tuple(name for name in VBENCH_QUALITY if name != "temporal_flickering"),
    "vbench16": (*VBENCH_QUALITY, *VBENCH_SEMANTIC),
    "clips": tuple(n for n, row in METRICS.items() if row.family == "reference" and n != "class_share"),  # no classes
}
"""Group name -> the metrics it stands for."""

SET_METRICS = ("fvd", "kvd")
"""The names of `set_distance.DISTANCES`; no registry row has one, so that none is averaged or paired over videos."""


def metric_names(names: Iterable[str]) -> list[str]:
    """Expand group names to metric names, without duplicates and in the same order. Raises as `lookup`."""
    result: dict[str, None] = {}
    for name in names:
        if name not in GROUPS:
            lookup(name)
        result.update(dict.fromkeys(GROUPS.get(name, (name,))))
    return list(result)


def lookup(name: str) -> Metric:
    """The registry's row of a metric. Raises ConfigError for an unknown name, listing the known ones."""
    if name in SET_METRICS:
        call = f"pw score what=sets DIR real=DIR, and metrics= without {name}"
        raise ConfigError(f"{name} compares two sets of videos and has no value per video: {call}")
    if name not in METRICS:
        raise ConfigError(f"unknown metric {name!r}; known: {', '.join((*METRICS, *GROUPS))}")
    return METRICS[name]


def scoring_code(name: str) -> str | None:
    """Hash of the code that computes a metric (`pw.run.code`); None for VBench, whose code is not ours."""
    metric = lookup(name)
    return None if metric.extra == "vbench" else code_hash((f"benchmarks.metrics.{metric.scorer}",))


def protocol_of(name: str, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A metric's entry in the contract, as JSON values: its protocol id, code hash and settings."""
    row = lookup(name)
    settings = row.settings if settings is None else settings
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    return {"protocol": row.protocol, "code": scoring_code(name), "settings": plain}


def protocols(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`protocol_of` each metric."""
    return {name: protocol_of(name) for name in names}
