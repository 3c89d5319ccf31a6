"""Reads prompts: a .txt with a prompt on each line, a .jsonl with an object on each line, or a list of the suite.

The lists are VBench's (Apache-2.0, `pw/prompts/LICENSE`), from the VBench_full_info.json of vbench 0.1.5, SHA-256
5dd2de80ee43cda750b2b72ea7023657c0b90d3702041c7e4608c65dbe50dccd: each prompt once, in its order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pw.io.arguments import ConfigError, did_you_mean
from pw.io.files import parse_json

FOLDER = Path(__file__).parents[1] / "prompts"
LISTS = ("vbench", "vbench_6")  # all 944 prompts of VBench; the 251 of the six dimensions of Table 1


def prompt_entries(path: Path, key: str, expected: str) -> list[tuple[str, dict[str, Any]]]:
    """(file and line, object) of each prompt; in a .txt the object is {key: text}.

    key       required key of each object
    expected  example of an object, for messages
    Raises: ConfigError with the file and the line.
    """
    if str(path) in LISTS:
        path = FOLDER / f"{path}.txt"
    if not path.is_file() or path.suffix not in (".txt", ".jsonl"):
        missing = "" if path.is_file() else "no such file; "
        lists = did_you_mean(str(path), LISTS, "; ") or f"; or {', '.join(LISTS)}"
        raise ConfigError(
            f"prompts={path}: {missing}expected a .txt of one prompt a line or a .jsonl of {expected}{lists}"
        )
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompts={path}: is not UTF-8 ({error})") from error
    # not splitlines: that also splits at Unicode separators, which a prompt may contain
    lines = [(f"prompts={path}: line {n}", line.strip()) for n, line in enumerate(content.split("\n"), 1)]
    lines = [(location, line) for location, line in lines if line]
    if not lines:
        raise ConfigError(f"prompts={path}: there is no prompt in it")
    if path.suffix == ".txt":
        return [(location, {key: line}) for location, line in lines]
    return [(location, _object(line, key, f"{location} is not {expected}")) for location, line in lines]


def _object(text: str, key: str, message: str) -> dict[str, Any]:
    try:
        entry = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"{message}: {text[:60]} ({error})") from error
    if not isinstance(entry, dict) or key not in entry:
        raise ConfigError(f"{message}: {text[:60]}")
    return entry
