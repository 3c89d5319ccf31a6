"""The rich console of the engine's commands."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from pw.io.console import safe_console

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Rich's console, as wide as the terminal, or as COLUMNS says; in a pipe or a file lines have 80 characters."""
    return safe_console(highlight=False, width=shutil.get_terminal_size().columns)
