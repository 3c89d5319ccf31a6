"""The rich console of the engine's commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pw.io.console import safe_console

if TYPE_CHECKING:
    from rich.console import Console


def console(width: int = 120) -> Console:
    """Rich's console; without a terminal (output to a log) lines have `width` characters."""
    terminal = safe_console(highlight=False)
    return terminal if terminal.is_terminal else safe_console(highlight=False, width=width)
