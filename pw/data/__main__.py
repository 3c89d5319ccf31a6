"""`make data path=DIR [args="key=value …"]`: turn a folder of videos into shards."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pw.data.ingest import Settings, ingest

SETTINGS = {field.name: type(field.default) for field in fields(Settings)}
KINDS = {int: "a whole number", float: "a number", bool: "true or false", Path: "a folder"}
TYPES: dict[str, Any] = {"path": Path, "out": Path, "overwrite": bool, **SETTINGS}
USAGE = 'make data path=DIR args="out=data/shards overwrite=false {}"'.format(
    " ".join(f"{field.name}={field.default:g}" for field in fields(Settings))
)


def parse(words: Sequence[str]) -> dict[str, Any]:
    """{key: value} from key=value words.

    Raises:
        ValueError: not key=value, an unknown key, a value of another type, no path.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not key=value; usage: {USAGE}")
        if key not in TYPES:
            near = difflib.get_close_matches(key, TYPES, 1)
            hint = f"did you mean {near[0]}=? " if near else ""
            raise ValueError(f"{word}: no key {key!r}; {hint}keys are {', '.join(TYPES)}")
        if text:
            values[key] = _value(key, text)
    if "path" not in values:
        raise ValueError(f"path is missing: the folder with your videos; usage: {USAGE}")
    return values


def _value(key: str, text: str) -> Any:
    kind = TYPES[key]
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise ValueError(f"{key}={text}: must be {KINDS[kind]}") from None


def main(words: Sequence[str]) -> int:
    """Run and return the exit status: 0 done, 2 a mistake in the call or in the data, 130 interrupted."""
    try:
        values = parse(words)
        settings = Settings(**{key: values[key] for key in SETTINGS if key in values})
        out = values.get("out", Path("data/shards"))
        # a shell such as zsh leaves the ~ of path=~/Videos to us
        ingest(values["path"].expanduser(), out.expanduser(), settings, values.get("overwrite", False))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}; what is done is kept, the same call goes on", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same call goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
