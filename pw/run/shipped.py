"""Starts that come with the repository: weights trained long by the recipe of `conf/start/<name>.yaml`, and a card.

    pw/starts/<name>.safetensors    EMA weights, below 1 MB
    pw/starts/<name>.json           the card: recipe, training and checksum

`make start name=<name>` writes both.

A card is valid as long as the recipe composes to the configuration that it names, even if code changes; a test repeats
the first updates and fails when the current code no longer reproduces them. PW_STARTS names another folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pw.io.arguments import ConfigError
from pw.io.paths import ROOT

LARGEST = 1_000_000  # bytes of a file that git is asked to keep


@dataclass(frozen=True)
class Card:
    """The part of a card that a run needs in order to start from it; `about` is the whole card."""

    name: str
    file: Path
    updates: int
    configuration: str
    sha256: str
    about: dict[str, Any]

    @property
    def words(self) -> str:
        """For a plan and a table."""
        return f"shipped, {self.updates:,} updates, sha256 {self.sha256[:12]}"


def starts_folder() -> Path:
    """PW_STARTS, or pw/starts of this repository."""
    return Path(os.environ.get("PW_STARTS") or ROOT / "pw" / "starts")


def read_card(name: str) -> Card | None:
    """The shipped start of a name, None if there is none. Raises ConfigError when it is damaged."""
    card, weights = (starts_folder() / f"{name}.{ending}" for ending in ("json", "safetensors"))
    if not card.exists():
        return None
    return _read(card, weights, *(path.stat().st_mtime_ns if path.exists() else 0 for path in (card, weights)))


@lru_cache(maxsize=16)
def _read(path: Path, weights: Path, *changed: int) -> Card:
    remedy = f"put both files back (git checkout {path.parent}), or set start.shipped=false to train it from its recipe"
    try:
        about = json.loads(path.read_text())
        card = Card(path.stem, weights, about["updates"], about["configuration"], about["sha256"], about)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is not the card of a start ({error!r}); {remedy}") from error
    actual = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else "none"
    if actual != card.sha256:
        raise ConfigError(f"{weights}: sha256 is {actual[:12]}, its card says {card.sha256[:12]}; {remedy}")
    return card
