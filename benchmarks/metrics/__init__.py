"""The metric registry: what is measured, which direction is better, what it needs. Imports in milliseconds.

Two kinds of rows. `family="reference"`: weight-free metrics of an ablation's clips, a class in `reference/`. All
others are measured on videos of any system, each video by itself: `benchmarks.metrics.<family>` has `scorer(names,
settings, device)` (see `stream.py`), and one pass of a family gives all its metrics.

Bump `protocol` whenever the definition changes, also that of what others compute: scores of different protocols never
share a table. A changed formula of ours is another score by its code, too (`scoring_code`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pw.io.arguments import ConfigError
from pw.run.code import code_hash

Direction = Literal["lower", "higher", "one"]
ARROWS: Mapping[Direction, str] = {"lower": "↓", "higher": "↑", "one": "→1"}


@dataclass(frozen=True)
class Metric:
    """One row of the registry.

    direction: "one" is two-sided: 1 is right, and the distance from it is |ln value|.
    level: "video" has a value per video and their mean for the folder, "set" only one for the folder.
    needs: folders beside the videos: "real", "structure", "solution"; without them the metric is absent.
    settings: the arguments of its implementation, part of the measurement contract; one mapping for a family.
    scale: the values it can take; `printed` is the factor with which tables print it, as the paper does.
    weights: rows of `benchmarks.measure.metric_weights` that it cannot do without.
    extra: what must be installed beside the main environment: "iqa" (pyiqa), "vbench" (the worker).
    licence: said wherever it is measured, if its use is restricted.
    scorer: its class in `benchmarks.metrics.reference`, if that is its family.
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
    family: str = "reference"
    scale: str = ""
    printed: float = 1.0
    weights: tuple[str, ...] = ()
    extra: str = ""
    licence: str = ""
    scorer: str = "scorer"

    @property
    def arrow(self) -> str:
        """Which way is better, for a table's head."""
        return ARROWS[self.direction]


# The paper's K = {3, 4, 5} (eq. 9.9) is made for 2K frames: at 24 px the coarsest copy would be 0 px wide.
_MHD_OF_CLIPS = {"ks_small": (1, 2, 3), "ks_large": (3, 4, 5), "small_below": 256}

_OF_CLIPS = (
    Metric(
        name="psd",
        header="PSD",
        direction="lower",
        unit="dB",
        level="set",
        needs=("real",),
        protocol="psd/1",
        scorer="PowerSpectrumDistance",
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
        scorer="SlicedWasserstein",
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
        name="mhd",
        header="mHD",
        direction="higher",
        unit="",
        level="video",
        needs=(),
        protocol="mhd/1",
        scorer="ClipMhd",
        settings=_MHD_OF_CLIPS,
        about="mHD-MSE of clips of any size: k = 1, 2, 3 below 256 px. As in the paper higher is better, which "
        "rewards over-sharpening and noise: read mhd_ratio beside it.",
    ),
    Metric(
        name="mhd_ratio",
        header="mHD/real",
        direction="one",
        unit="",
        level="set",
        needs=("real",),
        protocol="mhd_ratio/1",
        scorer="MhdRatio",
        settings=_MHD_OF_CLIPS,
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
        scorer="SolutionGap",
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
        scorer="SolutionGain",
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
        scorer="AnchorFidelity",
        settings={"sigma": 2.0, "factor": 4},
        about="Mean squared difference to the structure clip after blur and area downsampling of both.",
    ),
)

_MHD = {"ks": (3, 4, 5), "reduction": "mean"}
_DOVER = {"seeds": 4, "resize_antialias": False}
_DOVER_LICENCE = "S-Lab licence, non-commercial"
_VBENCH = {"mode": "custom_input", "imaging_quality_preprocessing_mode": "longer"}
# dimension -> (header, what it looks at). VBench's names, values in [0, 1]; tables print them times 100, as the paper.
_VBENCH_DIMENSIONS = {
    "subject_consistency": ("Subject Consis.", "DINO features over time"),
    "background_consistency": ("Background Consis.", "CLIP features over time"),
    "motion_smoothness": ("Motion Smooth.", "AMT interpolates every other frame"),
    "dynamic_degree": ("Dynamic Degree", "share of videos with large RAFT flow"),
    "aesthetic_quality": ("Aesthetic Quality", "LAION's predictor on CLIP ViT-L/14"),
    "imaging_quality": ("Imaging Quality", "MUSIQ-SPAQ, long side 512"),
    "object_class": ("Object Class", "GRiT finds the object of the prompt"),
    "multiple_objects": ("Multiple Objects", "GRiT finds both objects"),
    "human_action": ("Human Action", "UMT names the action"),
    "color": ("Color", "GRiT describes the colour"),
    "spatial_relationship": ("Spatial Relationship", "GRiT finds both where they should be"),
    "scene": ("Scene", "Tag2Text names the scene"),
    "appearance_style": ("Appearance Style", "CLIP similarity to the style"),
    "temporal_style": ("Temporal Style", "ViCLIP similarity to the camera style"),
    "overall_consistency": ("Overall Consistency", "ViCLIP similarity to the prompt"),
}


def _dover(branch: str, scale: str) -> Metric:
    """branch: technical, aesthetic or overall; scale: script, raw or calibrated."""
    headers = {"technical": "Tech.", "aesthetic": "Aesth.", "overall": "DOVER"}
    about = {
        "script": "as DOVER's own script prints it, which swaps the two branches' statistics; the paper's scale",
        "raw": "the branch's own output",
        "calibrated": "sigmoid of the branch's output in units of its own mean and deviation on LIVE-VQC",
    }
    return Metric(
        name=f"dover_{branch}" if scale == "script" else f"dover_{branch}_{scale}",
        header=headers[branch] if scale == "script" else f"{headers[branch]} ({scale})",
        direction="higher",
        unit="",
        level="video",
        needs=(),
        protocol=f"dover/1 {scale}",
        about=f"DOVER, {branch}: {about[scale]}.",
        settings=_DOVER,
        family="dover",
        scale="unbounded" if scale == "raw" else "0-100",
        weights=("dover",),
        licence=_DOVER_LICENCE,
    )


_OF_VIDEOS = (
    Metric(
        name="mhd_mse",
        header="mHD-MSE",
        direction="higher",
        unit="",
        level="video",
        needs=(),
        protocol="mhd_mse/1",
        settings=_MHD,
        family="mhd",
        scale="0-1",
        about="Energy lost by 2^k down and up, k = 3, 4, 5 (paper: Eq. 9.9). Rewards noise and over-sharpening, and "
        "falls with resolution.",
    ),
    Metric(
        name="mhd_lpips",
        header="mHD-LPIPS",
        direction="higher",
        unit="",
        level="video",
        needs=(),
        protocol="mhd_lpips/1",
        settings={**_MHD, "net": "alex"},
        family="mhd_lpips",
        scale="0-1",
        weights=("alexnet",),
        about="LPIPS to its copy 2^k down and up, k = 3, 4, 5 (paper: Eq. 9.10).",
    ),
    Metric(
        name="lpips",
        header="LPIPS",
        direction="lower",
        unit="",
        level="video",
        needs=("real",),
        protocol="lpips/1",
        settings={"net": "alex"},
        family="lpips",
        scale="0-1",
        weights=("alexnet",),
        about="LPIPS (AlexNet, v0.1) to the real video of the same name, mean over frames.",
    ),
    Metric(
        name="niqe",
        header="NIQE",
        direction="lower",
        unit="",
        level="video",
        needs=(),
        protocol="niqe/1",
        settings={"every": 1},
        family="niqe",
        scale="0-inf",
        weights=("niqe",),
        about="Naturalness without a reference (Mittal 2013): luma, 96 px blocks at two scales, no border crop, mean "
        "over frames.",
    ),
    Metric(
        name="musiq",
        header="MUSIQ",
        direction="higher",
        unit="",
        level="video",
        needs=(),
        protocol="musiq-koniq/1",
        settings={"frames": 16},
        family="musiq",
        scale="0-100",
        weights=("musiq_koniq",),
        extra="iqa",
        licence="pyiqa: PolyForm Noncommercial 1.0.0",
        about="MUSIQ with KonIQ weights at full resolution, through pyiqa; mean over evenly spread frames.",
    ),
    *(_dover(branch, "script") for branch in ("technical", "aesthetic", "overall")),
    *(_dover(branch, "raw") for branch in ("technical", "aesthetic")),
    *(_dover(branch, "calibrated") for branch in ("technical", "aesthetic", "overall")),
    Metric(
        name="temporal_flickering",
        header="Temporal Flickering",
        direction="higher",
        unit="%",
        level="video",
        needs=(),
        protocol="vbench-0.1.5/temporal_flickering",
        family="flicker",
        scale="0-1",
        printed=100.0,
        about="VBench's: 1 - mean absolute difference of neighbouring frames / 255. Computed here; equal to VBench's "
        "but where a file says BT.709 or HDR, which VBench's decoder does not read.",
    ),
    *(
        Metric(
            name=name,
            header=header,
            direction="higher",
            unit="%",
            level="video",
            needs=(),
            protocol=f"vbench-0.1.5/{name}",
            settings=_VBENCH,
            family="vbench",
            scale="0-1",
            printed=100.0,
            extra="vbench",
            about=f"VBench's, by its own code in an environment of its own: {about}.",
        )
        for name, (header, about) in _VBENCH_DIMENSIONS.items()
    ),
)

METRICS: Mapping[str, Metric] = {row.name: row for row in (*_OF_CLIPS, *_OF_VIDEOS)}

VBENCH_QUALITY = (
    *("subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness", "dynamic_degree"),
    *("aesthetic_quality", "imaging_quality"),
)
VBENCH_SEMANTIC = (
    *("object_class", "multiple_objects", "human_action", "color", "spatial_relationship", "scene"),
    *("appearance_style", "temporal_style", "overall_consistency"),
)
GROUPS: Mapping[str, tuple[str, ...]] = {
    "table_1": tuple(name for name in VBENCH_QUALITY if name != "temporal_flickering"),
    "table_2": ("mhd_mse", "mhd_lpips", "dover_technical", "dover_aesthetic"),
    "table_3": ("musiq", "niqe", "mhd_mse", "mhd_lpips", "dover_technical", "dover_aesthetic"),
    "table_8_1": (*VBENCH_QUALITY, *VBENCH_SEMANTIC),
    "dover": tuple(row.name for row in _OF_VIDEOS if row.family == "dover"),
    "vbench6": tuple(name for name in VBENCH_QUALITY if name != "temporal_flickering"),
    "vbench16": (*VBENCH_QUALITY, *VBENCH_SEMANTIC),
    "clips": tuple(row.name for row in _OF_CLIPS),
}
"""Names that stand for several metrics."""


def chosen(names: Iterable[str]) -> list[str]:
    """The metrics that names and groups stand for, each once, in the order given.

    Raises: ConfigError for an unknown name, listing the known ones.
    """
    found: dict[str, None] = {}
    for name in names:
        if name not in GROUPS:
            lookup(name)
        found.update(dict.fromkeys(GROUPS.get(name, (name,))))
    return list(found)


def lookup(name: str) -> Metric:
    """The registry's row of a metric.

    Raises: ConfigError for an unknown name, listing the known ones.
    """
    if name not in METRICS:
        raise ConfigError(f"unknown metric {name!r}; known: {', '.join((*METRICS, *GROUPS))}")
    return METRICS[name]


def scoring_code(name: str) -> str | None:
    """Hash of the code that computes a metric (`pw.run.code`); None of what a worker of other people's code does."""
    metric = lookup(name)
    if metric.extra == "vbench":
        return None
    registry = frozenset(f"benchmarks.metrics.{part}" for part in ("METRICS", "GROUPS", "lookup", "chosen"))
    return code_hash((f"benchmarks.metrics.{metric.family}.{metric.scorer}",), registry)


def protocols(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What the contract says of each metric: its protocol id, code and settings, as plain JSON values."""
    plain = {name: lookup(name) for name in names}
    return {
        name: {
            "protocol": metric.protocol,
            "code": scoring_code(name),
            "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in metric.settings.items()},
        }
        for name, metric in plain.items()
    }
