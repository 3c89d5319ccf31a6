"""Where things lie: the repository, its configuration, and what runs write."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


CONF = ROOT / "conf"


OUTPUTS = ROOT / "outputs"
