"""A file of prompts: a .txt of one a line, or a .jsonl of one object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pw.io.arguments import ConfigError


def prompt_entries(path: Path, key: str, wants: str) -> list[tuple[str, dict[str, Any]]]:
    """(the line where it stands, the object) of each prompt; of a .txt, {key: text}.

    key    what an object must have
    wants  the whole object, in words
    Raises: ConfigError naming the file and the line.
    """
    if not path.is_file() or path.suffix not in (".txt", ".jsonl"):
        missing = "" if path.is_file() else "no such file; "
        raise ConfigError(f"prompts={path}: {missing}wants a .txt of one prompt a line or a .jsonl of {wants}")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompts={path}: is not UTF-8 ({error})") from error
    # not splitlines: it would also cut at separators that a prompt may hold
    lines = [(f"prompts={path}: line {n}", line.strip()) for n, line in enumerate(content.split("\n"), 1)]
    lines = [(where, line) for where, line in lines if line]
    if not lines:
        raise ConfigError(f"prompts={path}: there is no prompt in it")
    if path.suffix == ".txt":
        return [(where, {key: line}) for where, line in lines]
    return [(where, _object(line, key, f"{where} is not {wants}")) for where, line in lines]


def _object(text: str, key: str, wrong: str) -> dict[str, Any]:
    try:
        entry = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{wrong}: {text[:60]} ({error})") from error
    if not isinstance(entry, dict) or key not in entry:
        raise ConfigError(f"{wrong}: {text[:60]}")
    return entry
