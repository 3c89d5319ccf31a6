"""How the suite's commands are written where they are printed, so that they can be copied."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

NO_VERBS = "setup|iqa|vbench-env|notebooks|test"  # targets of the Makefile that are no `pw VERB`


def program() -> str:
    """`pw`, or `.venv/bin/python -m pw` in a folder whose environment is not active."""
    found = shutil.which("pw")
    is_active = found is not None and Path(found).parent == Path(sys.executable).parent
    return "pw" if is_active or not Path(".venv/bin/python").exists() else ".venv/bin/python -m pw"


def command_line(verb: str, *words: str) -> str:
    """A command that does the same in the working directory: `pw VERB key=value …`."""
    return f"{program()} {shlex.join([verb, *words])}"


def without_make(text: str) -> str:
    """The text, with its "`make VERB … args="…"`" as "`pw VERB …`" where there is no Makefile of the suite."""
    if Path("Makefile").exists() and Path("pw/cli.py").exists():
        return text

    def verb_of(match: re.Match[str]) -> str:
        words = re.sub(r"""args=(["'])(.*)\1""", r"\2", match[2])
        return f"`{program()} {match[1]}{words}`"

    return re.sub(rf"`make (?!(?:{NO_VERBS})\b)([a-z-]+)([^`]*)`", verb_of, text)
