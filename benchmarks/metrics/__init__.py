"""The metric registry: what is measured, which direction is better, what it needs. Imports in milliseconds.

A new metric is a row here and a class of the same `name` in a module of this package (see `reference.py`).
Bump `protocol` whenever the definition changes: scores of different protocols never share a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Direction = Literal["lower", "higher", "one"]
ARROWS: Mapping[Direction, str] = {"lower": "↓", "higher": "↑", "one": "→1"}


@dataclass(frozen=True)
class Metric:
    """One row of the registry.

    direction: "one" is two-sided: 1 is right, and the distance from it is |ln value|.
    level: "video" has a value per video and their mean for the folder, "set" only one for the folder.
    needs: folders beside the videos: "real", "structure", "solution"; without them the metric is absent.
    settings: the arguments of its implementation, part of the measurement contract.
    """

    name: str
    header: str
    direction: Direction
    unit: str
    level: Literal["video", "set"]
    needs: tuple[str, ...]
    protocol: str
    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arrow(self) -> str:
        """Which way is better, for a table's head."""
        return ARROWS[self.direction]


# The paper's K = {3, 4, 5} (eq. 9.9) is made for 2K frames: at 24 px the coarsest copy would be 0 px wide.
_MHD = {"ks_small": (1, 2, 3), "ks_large": (3, 4, 5), "small_below": 256}

METRICS: Mapping[str, Metric] = {
    row.name: row
    for row in (
        Metric(
            name="psd",
            header="PSD",
            direction="lower",
            unit="dB",
            level="set",
            needs=("real",),
            protocol="psd/1",
            settings={"round_off_bits": 8},
            about="Rms over radial frequencies of the log ratio of mean power spectra to real's; sees blur.",
        ),
        Metric(
            name="swd",
            header="SWD",
            direction="lower",
            unit="",
            level="set",
            needs=("real",),
            protocol="swd/1",
            settings={
                "levels": 3,
                "patch": 5,
                "frames": 2,
                "stride": 3,
                "patches": 256,
                "projections": 128,
                "seed": 0,
            },
            about="Sliced Wasserstein distance to real of space-time patches on a Laplacian pyramid.",
        ),
        Metric(
            name="mhd_mse",
            header="mHD",
            direction="higher",
            unit="",
            level="video",
            needs=(),
            protocol="mhd_mse/1",
            settings=_MHD,
            about="Energy lost by 2^k down and up, mean over k (UltraGen). As in the paper higher is better, "
            "which rewards over-sharpening and noise: read mhd_ratio beside it.",
        ),
        Metric(
            name="mhd_ratio",
            header="mHD/real",
            direction="one",
            unit="",
            level="set",
            needs=("real",),
            protocol="mhd_ratio/1",
            settings=_MHD,
            about="Mean mHD-MSE of the folder over that of real: below 1 blurred, above 1 over-sharpened.",
        ),
        Metric(
            name="solution_gap",
            header="gap",
            direction="lower",
            unit="",
            level="video",
            needs=("solution",),
            protocol="solution_gap/1",
            about="Mean squared difference to the same checkpoint's many-step solution from the same noise.",
        ),
        Metric(
            name="solution_gain",
            header="gain",
            direction="one",
            unit="",
            level="set",
            needs=("solution",),
            protocol="solution_gain/1",
            settings={"factor": 4},
            about="High-frequency energy over that of the same checkpoint's many-step solution.",
        ),
        Metric(
            name="anchor_fidelity",
            header="anchor",
            direction="lower",
            unit="",
            level="video",
            needs=("structure",),
            protocol="anchor_fidelity/1",
            settings={"sigma": 2.0, "factor": 4},
            about="Mean squared difference to the structure clip after blur and area downsampling of both.",
        ),
    )
}


def lookup(name: str) -> Metric:
    """The registry's row of a metric.

    Raises: ValueError for an unknown name, listing the known ones.
    """
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    return METRICS[name]


def protocols(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What the contract says of each metric: its protocol id and settings, as plain JSON values."""
    plain = {name: lookup(name) for name in names}
    return {
        name: {
            "protocol": metric.protocol,
            "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in metric.settings.items()},
        }
        for name, metric in plain.items()
    }
