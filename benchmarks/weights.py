"""The weights that metrics need: where they are, whether they are the right ones, and how to get them.

All in one folder: PW_METRICS, by default ~/.cache/pixelwizard/metrics.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class MissingWeights(ValueError):
    """Weights, or a package, that a metric needs and that is not there; the message says which command supplies it."""


@dataclass(frozen=True)
class Weights:
    """One file: its name in the folder, what it is for, and its SHA-256 (whole, or as many digits as are published)."""

    name: str
    file: str
    sha256: str
    licence: str
    about: str


WEIGHTS: Mapping[str, Weights] = {
    row.name: row
    for row in (
        Weights(
            "alexnet",
            "alexnet-owt-7be5be79.pth",
            "7be5be79",
            "BSD-3-Clause (torchvision)",
            "AlexNet on ImageNet, the trunk of LPIPS",
        ),
        Weights(
            "niqe",
            "niqe_pris_params.npz",
            "2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296",
            "Apache-2.0 (BasicSR)",
            "NIQE's statistics of pristine pictures",
        ),
        Weights(
            "musiq_koniq",
            "musiq_koniq_ckpt-e95806b9.pth",
            "e95806b9",
            "Apache-2.0 (Google Research), as pyiqa converts them",
            "MUSIQ on KonIQ-10k",
        ),
        Weights("dover", "DOVER.pth", "", "S-Lab, non-commercial", "DOVER's two branches"),
    )
}


def folder() -> Path:
    """Where all weights of metrics are kept."""
    return Path(os.environ.get("PW_METRICS") or Path.home() / ".cache" / "pixelwizard" / "metrics").expanduser()


def find(name: str) -> Path:
    """The file of a row of WEIGHTS. Raises MissingWeights with the command that fetches it."""
    row = WEIGHTS[name]
    path = folder() / row.file
    if not path.is_file():
        raise MissingWeights(f'{path} is not there: `make weights what=metrics args="only={name}"` fetches it')
    return path


def digest(name: str) -> str:
    """SHA-256 of the weights that are there, for the protocol and the cache. Raises as `find`."""
    with find(name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
