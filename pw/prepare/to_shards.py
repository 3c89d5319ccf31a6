"""`make data path=DIR` or `name=ultravideo [args="key=value …"]`: turn videos into shards."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pw.prepare.ingest import Settings, ingest

SETTINGS = {field.name: type(field.default) for field in fields(Settings)}
NAMES = ("ultravideo",)
# what goes with name= only, see pw.prepare.ultravideo.Order
NAMED: dict[str, Any] = {
    "accept_licence": bool,
    "taste": int,
    "size": str,
    "caption": str,
    "keep": bool,
    "revision": str,
}
KINDS = {int: "a whole number", float: "a number", bool: "true or false", Path: "a folder"}
TYPES: dict[str, Any] = {"path": Path, "name": str, "out": Path, "overwrite": bool, **NAMED, **SETTINGS}
USAGE = 'make data path=DIR args="out=data/shards overwrite=false {}"'.format(
    " ".join(f"{field.name}={field.default:g}" for field in fields(Settings))
)


def parse(words: Sequence[str]) -> dict[str, Any]:
    """{key: value} from key=value words.

    Raises:
        ValueError: not key=value, an unknown key or name, a value of another type, neither path nor name or both.
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
    if "name" in values:
        _check_name(values)
    elif "path" not in values:
        raise ValueError(f"path is missing: the folder with your videos (or name=ultravideo); usage: {USAGE}")
    elif stray := [key for key in NAMED if key in values]:
        raise ValueError(f"{stray[0]}= goes with name=ultravideo, not with path=")
    return values


def _check_name(values: dict[str, Any]) -> None:
    if "path" in values:
        raise ValueError("give path= (your own videos) or name= (a public dataset), not both")
    if (name := values["name"]) not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"name={name}: no such dataset; {hint}there is {', '.join(NAMES)}; or path= for your own")


def _value(key: str, text: str) -> Any:
    kind = TYPES[key]
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise ValueError(f"{key}={text}: must be {KINDS[kind]}") from None


def main(words: Sequence[str]) -> int:
    """Run and return the exit status: 0 done, 1 licence not accepted, 2 a mistake in the call or the data, 130 ^C."""
    try:
        values = parse(words)
        settings = Settings(**{key: values[key] for key in SETTINGS if key in values})
        if "name" in values:
            return _fetch(values, settings)
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


def _fetch(values: dict[str, Any], settings: Settings) -> int:
    from pw.prepare.ultravideo import Order, notice, ultravideo  # needs huggingface_hub, your own videos do not

    given = {key: values[key] for key in NAMED if key in values and key != "accept_licence"}
    order = Order(values.get("out", Path("data/ultravideo")).expanduser(), **given)
    if not values.get("accept_licence"):
        print(notice(order))
        return 1
    ultravideo(order, settings, values.get("overwrite", False))
    return 0
