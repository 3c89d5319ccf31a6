"""The options of `pw compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure.measurement import existing_folder
from benchmarks.metrics import chosen, lookup
from pw.io.arguments import ConfigError, option
from pw.io.files import check_writable
from pw.io.paths import OUTPUTS

SIDE = "a signature of outputs/train or outputs/videos, or a folder"


def _side(text: str) -> str:
    if not text:
        raise ConfigError(f"a=… or b=… is missing: {SIDE}")
    return text


def _metrics(text: str) -> tuple[str, ...]:
    return tuple(chosen(name for name in text.split(",") if name))


def _out(text: str) -> Path:
    folder = Path(text).expanduser()
    check_writable("out", folder)
    return folder


def _scores_file(text: str) -> Path:
    file = Path(text).expanduser()
    if not file.is_file():
        raise ValueError("no such file; `make score videos=DIR out=FILE` writes one")
    return file


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, in which metrics, and against what."""

    a: str = option(says=f"{SIDE}; several signatures, a=1c2d,9f00, are the seeds of one arm", read=_side)
    b: str = option(says=f"{SIDE}; judged against a", read=_side)
    metrics: tuple[str, ...] = option((), "the metrics; by default the reference metrics, or mhd_mse", read=_metrics)
    primary: str | None = option(
        None, "the metric that is tested first and alone; by default psd, or the first", read=lambda t: lookup(t).name
    )
    out: Path | None = option(None, "where the comparison goes, by default outputs/compare/a_b", read=_out)
    outputs: Path = option(OUTPUTS, "where the runs are")
    real: Path | None = option(None, "real clips, for metrics that need them", read=existing_folder)
    structure: Path | None = option(None, "clips whose structure is to be kept", read=existing_folder)
    solution: Path | None = option(None, "clips of many steps", read=existing_folder)
    cache: Path | None = option(None, "where measured scores are kept")
    a_scores: Path | None = option(None, "scores of a that `pw score` wrote, instead of measuring", read=_scores_file)
    b_scores: Path | None = option(None, "scores of b, likewise", read=_scores_file)
