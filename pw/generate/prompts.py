"""Prompts as the user gives them: one, or a file of them."""

from __future__ import annotations

import json
from pathlib import Path

from pw.io.arguments import ConfigError

# a prompt's text, and its seed where the file says one
Text = tuple[str, int | None]


def read_prompts(prompt: str | None, file: str | None) -> list[Text]:
    """The prompts of `prompt=` or `prompts=`, of which one must be given. Raises ConfigError naming the line."""
    if (prompt is None) == (file is None):
        raise ConfigError('give prompt="…" or prompts=FILE (a .txt of one prompt a line, or a .jsonl), one of them')
    texts: list[Text] = [(prompt, None)] if prompt is not None else _from_file(Path(file or "").expanduser())
    for number, (text, _) in enumerate(texts, start=1):
        if not text.strip():
            raise ConfigError(f"prompt {number} of {len(texts)} is empty: describe what is to be seen")
    return texts


def _from_file(path: Path) -> list[Text]:
    if not path.is_file():
        raise ConfigError(f"prompts={path}: no such file")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompts={path}: is not UTF-8 ({error})") from error
    # not splitlines: it would also cut at separators that a prompt may hold
    lines = [(n, line.strip()) for n, line in enumerate(content.split("\n"), start=1) if line.strip()]
    if path.suffix not in (".txt", ".jsonl"):
        raise ConfigError(f'prompts={path}: wants a .txt of one prompt a line or a .jsonl of {{"prompt": …}}')
    if not lines:
        raise ConfigError(f"prompts={path}: there is no prompt in it")
    return [_from_json(line, number, path) if path.suffix == ".jsonl" else (line, None) for number, line in lines]


def _from_json(line: str, number: int, path: Path) -> Text:
    try:
        entry = json.loads(line)
        text, seed = entry["prompt"], entry.get("seed")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f'prompts={path}: line {number} is not {{"prompt": "…"}}: {line[:60]}') from error
    if not isinstance(text, str) or not (seed is None or type(seed) is int):
        raise ConfigError(f"prompts={path}: line {number}: prompt is text and seed a whole number")
    return text, seed
