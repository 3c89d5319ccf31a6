"""Text of others (file names, prompts, errors) on the terminal: rich's console, which shows control characters."""

from __future__ import annotations

import re
import shutil
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# control characters except tab and newline, directions of writing, and bytes that are no UTF-8
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LINE_ENDS = re.compile("[\t\n\x0b\x0c\r\x85\u2028\u2029]+")


def printable(text: str) -> str:
    """The text with escapes such as `\\x1b` for control characters, which could rewrite what a terminal shows."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """The text on one line, printable."""
    return printable(_LINE_ENDS.sub(" ", text))


def print_line(text: str) -> None:
    """Print a line of progress or an error to stderr, printable."""
    print(printable(text), file=sys.stderr, flush=True)


def console(**options: Any) -> Console:
    """Rich's console, but text is printed as `printable` says. It is as wide as the terminal, or as COLUMNS says; in a
    pipe or a file lines have 80 characters. `options` are those of rich's."""
    from rich.console import Console
    from rich.segment import Segment

    class SafeConsole(Console):
        def render(self, renderable: Any, options: Any = None) -> Any:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else printable(text), style, control)

    defaults: dict[str, Any] = {"highlight": False, "width": shutil.get_terminal_size().columns}
    return SafeConsole(**{**defaults, **options})
