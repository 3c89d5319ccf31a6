"""The curves of a training as files, one JSON object a line: {"step": 10, "train/grad_norm": 0.7, …}.

`pw.tracking.relay` reads them while they grow, in a process of its own: a slow store never delays an update.
"""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from pw.io.files import write_atomically


class CurveLogger(Logger):
    """Lightning's logger of a training: what `log_metrics` or a module's `self.log` gives becomes a line at once."""

    def __init__(self, file: Path, update: int) -> None:
        """update: lines after it go, since a training that resumes there writes them again."""
        super().__init__()
        self.file = file
        rank_zero_only(truncate)(file, update)

    @property
    def name(self) -> str:
        return "pw"

    @property
    def version(self) -> str:
        return self.file.parent.name

    @property
    @rank_zero_experiment
    def experiment(self) -> Path:
        return self.file

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        with suppress(OSError), self.file.open("a") as file:  # a full disk ends the training where it costs a result
            file.write(json.dumps({"step": step or 0, **finite}) + "\n")

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configuration is in `config.yaml`."""


def truncate(curve: Path, update: int) -> None:
    """Remove the lines of a curve after an update: a resumed training writes them again."""
    if not curve.exists():
        return
    lines = []
    for line in curve.read_text(errors="replace").splitlines():
        with suppress(ValueError, KeyError, TypeError, RecursionError):  # half a line, from a kill or a full disk
            if json.loads(line)["step"] <= update:
                lines.append(f"{line}\n")
    write_atomically(curve, "".join(lines))
