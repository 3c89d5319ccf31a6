"""Options, device and result of a measurement."""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure.streaming import BUDGET
from benchmarks.metrics import lookup
from benchmarks.systems import jobs
from pw.io.arguments import ConfigError, no_such_option, number, option
from pw.io.files import check_writable
from pw.io.manifest import listed_names
from pw.io.video_files import SUFFIXES, is_video

LARGEST_MEMORY = 1e14  # bytes


def existing_folder(text: str) -> Path:
    """An existing folder. Raises ValueError."""
    if not (text and (path := Path(text).expanduser()).is_dir()):
        raise ValueError("no such folder")
    return path


def cache_folder(text: str) -> Path:
    check_writable("cache", path := Path(text).expanduser())
    return path


def device_name(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda:\d+", text):
        raise ValueError("expected auto, cpu, cuda:0 and so on")
    return text


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]?)B?", text)
    size = float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[match[2]] if match else 0
    if not 1 <= size <= LARGEST_MEMORY:
        raise ValueError(f"expected bytes, such as 2GB, to {LARGEST_MEMORY / 1e9:g}GB")
    return int(size)


@dataclass(frozen=True)
class MeasureOptions:
    """How videos are measured."""

    real: Path | None = option(None, "a folder with the real videos of the same names", read=existing_folder)
    structure: Path | None = option(None, "a folder with the structure clips of the same names", read=existing_folder)
    solution: Path | None = option(None, "a folder with many-step solutions of the same names", read=existing_folder)
    strict: bool = option(False, "stop at the first video that is broken, or that a metric cannot measure")
    device: str = option("auto", "auto, cpu or cuda:0, for networks", read=device_name)
    processes: int = option(0, "processes that share the videos, a GPU each; 0: one per GPU", read=number(0, 1024))
    threads: int = option(0, "threads of all processes together; 0: one per core", read=number(0, 4096))
    memory: int = option(BUDGET, "bytes of frames in flight, such as 2GB", read=_bytes)
    cache: Path | None = option(None, "where values are kept, instead of outputs/cache/scores", read=cache_folder)
    overrides: tuple[str, ...] = option((), "FAMILY.SETTING=VALUE, instead of the registry's: mhd.reduction=sum")


@dataclass
class Scores:
    """The values of a folder, and how they were measured.

    rows: video -> metric -> value (and "frames"); set_values: metric of level "set" -> value; left_out: broken video ->
    reason; missing: metric -> what it needs and which command supplies it; not_measured: metric -> video -> reason;
    dependencies: metric -> protocol, settings, weights; hashes, real: video -> SHA-256 of it and its real video;
    passed_over: what looks like a video and is not read -> why; notes: video -> its note (`pw.io.video.VideoInfo`);
    n_measured: videos without cached values.
    """

    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    set_values: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    not_measured: dict[str, dict[str, str]] = field(default_factory=dict)
    dependencies: dict[str, dict[str, Any]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    real: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    n_measured: int = 0
    seconds: float = 0.0

    def values(self, metric: str) -> dict[str, float]:
        """Video -> value, for the videos with a value."""
        return {video: row[metric] for video, row in self.rows.items() if metric in row}


class BrokenVideo(ValueError):
    """A video cannot be scored, with strict=true."""


class NoVideo(ConfigError):
    """A folder without any video."""


def videos_of(folder: Path) -> dict[str, Path]:
    """The videos of a folder by file name, sorted; for a system's folder (with a card) those that the card registers,
    for one of the suite's runs those that its mark lists.

    Raises: ConfigError if there is no folder; NoVideo if there is no video in it; DamagedResult.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    has_card = (folder / "card.yaml").is_file()
    paths = jobs.videos(folder) if has_card else sorted(filter(is_video, folder.iterdir()))
    if (listed := listed_names(folder)) is not None:
        paths = [path for path in paths if path.name in listed]
    if not paths:
        n_entries = sum(1 for _ in folder.iterdir())
        raise NoVideo(f"{folder}: no video ({', '.join(SUFFIXES)}) among its {n_entries} entries")
    return {path.name: path for path in paths}


def settings_of(names: Sequence[str], overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Family -> settings, with overrides FAMILY.SETTING=VALUE. Raises ConfigError for a setting of no such metric."""
    settings = {lookup(name).family: dict(lookup(name).settings) for name in names}
    families = settings.keys() - {"reference"}
    for word in overrides:
        key, _, value = word.partition("=")
        family, dot, setting = key.partition(".")
        if not dot:
            raise no_such_option(MeasureOptions, word, ", and FAMILY.SETTING")
        if family not in families:
            known = ", ".join(sorted(families)) or "none"
            raise ConfigError(f"{key}: unknown family {family!r}; families: {known}")
        if setting not in settings[family]:
            raise ConfigError(f"{key}: no such setting; {family} has {', '.join(settings[family]) or 'none'}")
        settings[family][setting] = _parse_setting(key, value, settings[family][setting])
    return settings


def _parse_setting(key: str, value: str, default: Any) -> Any:
    """Convert a setting's text to its default's type. Raises ConfigError."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[value.lower()]
        if isinstance(default, tuple):
            return tuple(number(1)(part.strip()) for part in value.strip("[]()").split(",") if part.strip())
        return value if isinstance(default, str) else number(0, kind=type(default))(value)
    except (KeyError, ValueError):
        expected = "true or false" if isinstance(default, bool) else f"something like {default!r}"
        raise ConfigError(f"{key}={value}: expected {expected}") from None


def device_for(device: str) -> str:
    """The device of networks: "auto" is the first GPU, else the CPU.

    torch, half a GB, is imported only if there may be a GPU. Raises ConfigError for a GPU that does not exist.
    """
    if device == "cpu" or (device == "auto" and not gpus()):
        return "cpu"
    if not gpus():
        raise ConfigError(f"device={device}: torch sees no GPU on this machine; use device=cpu")
    known = [f"cuda:{i}" for i in range(gpus())]
    if device not in ("auto", *known):
        raise ConfigError(f"device={device}: expected auto, cpu, {', '.join(known)}")
    return known[0] if device == "auto" else device


@functools.cache
def gpus() -> int:
    """The number of GPUs that torch sees; 0 without NVIDIA's driver, then without importing torch."""
    if not (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()):
        return 0
    import torch

    return torch.cuda.device_count()
