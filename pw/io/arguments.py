"""The words of a command, `key=value`, read into a dataclass whose fields say what there is.

    @dataclass(frozen=True)
    class PlanOptions:
        gpus: str = option("", "NxMGB, or a card: 8x80GB, 1xH100")
        tflops: float = option(400.0, "what a GPU is assumed to reach")
        overrides: tuple[str, ...] = ()

    main = Command(PlanOptions, run)  # main(words) -> exit status

A field's annotation is how its word is read: bool (true, false), int, float, str, Path, a Literal, a tuple of one of
these (comma-separated), `| None` (null). Of two special fields `overrides` takes every `key=value` that is no option,
and `positional` every word without an equals sign; a command without them refuses such words.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")
SPECIAL = ("overrides", "positional")
UNIONS = (types.UnionType, typing.Union)


class ConfigError(ValueError):
    """A key, value or combination the user can mend; the message names it and says what would do."""

    def within(self, where: str) -> ConfigError:
        """The same with words before it that say where."""
        error = copy.copy(self)
        error.args = (f"{where}{self}",)
        return error


class UnknownKeyError(ConfigError):
    """An override whose key the configuration does not have. It may be meant for an option of the command."""

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


def option(
    default: Any = dataclasses.MISSING,
    says: str = "",
    *,
    read: Callable[[str], Any] | None = None,
    key: str | None = None,
    values: Callable[[], Sequence[str]] | None = None,
) -> Any:
    """A field of a command's options.

    default  of a word that is not given; without one the word is required
    says     what it is, in one sentence, for `pw VERB --help`
    read     text -> value, instead of what the annotation says; raises ValueError with what would do
    key      the word, where it cannot be the field's name: `for`
    values   what a shell offers to complete the word with, where the annotation does not list it
    """
    return dataclasses.field(default=default, metadata={"says": says, "read": read, "key": key, "values": values})


@dataclass(frozen=True)
class Command(Generic[T]):
    """A verb: its options, and what carries it out. Called with words it returns the exit status, 2 for a mistake in
    the call, which is told in one line.

    resumes  of work that may be repeated: what is said when it is interrupted (status 130) or the disk fills up (2)
    """

    options: type[T]
    run: Callable[[T], int]
    resumes: str = ""

    def __call__(self, words: Sequence[str]) -> int:
        try:
            return self.run(parse(self.options, words))
        except ConfigError as error:
            key = error.key if isinstance(error, UnknownKeyError) else ""
            hint = did_you_mean(key, keys(self.options), "; or, of the options, ", 0.7)
            print(f"error: {error}{hint}", file=sys.stderr)
            return 2
        except (OSError, KeyboardInterrupt) as error:
            if not self.resumes:
                raise
            is_stopped = isinstance(error, KeyboardInterrupt)
            print("\nstopped" if is_stopped else f"error: {error}", self.resumes, sep="; ", file=sys.stderr)
            return 130 if is_stopped else 2


def parse(options: type[T], words: Sequence[str]) -> T:
    """Words -> options. Raises ConfigError naming the word, and the nearest key or the values there are."""
    known = _words(options)
    given: dict[str, Any] = {}
    rest: dict[str, list[str]] = {name: [] for name in SPECIAL if name in typing.get_type_hints(options)}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            if "positional" not in rest:
                raise ConfigError(f"{word!r}: write key=value; {_there_are(known)}")
            rest["positional"].append(word)
        elif key in known:
            field, hint = known[key]
            try:
                given[field.name] = (field.metadata.get("read") or partial(_value, hint))(value)
            except ConfigError:
                raise
            except ValueError as error:
                raise ConfigError(f"{word}: {error}") from None
        elif "overrides" in rest:
            rest["overrides"].append(word)
        else:
            raise no_such_option(options, word)
    for key, (field, _) in known.items():
        if field.name not in given and field.default is dataclasses.MISSING:
            says = field.metadata.get("says", "")
            if listed := values(options, key):
                says = f"{says}, one of {', '.join(listed)}"
            raise ConfigError(f"{key}=… is missing{f': {says}' if says else ''}")
    return options(**given, **{name: tuple(found) for name, found in rest.items()})


def keys(options: type) -> dict[str, str]:
    """The words' keys -> the fields that they set."""
    return {key: field.name for key, (field, _) in _words(options).items()}


def values(options: type, key: str) -> tuple[str, ...]:
    """The values that a key may have, where they can be listed."""
    field, hint = _words(options).get(key, (None, None))
    if field is None:
        return ()
    listed = field.metadata.get("values")
    return tuple(listed()) if listed else _choices(hint)


def no_such_option(options: type, word: str, also: str = "") -> ConfigError:
    """What is wrong with a word whose key is no option, with the nearest one; also: what else would do."""
    key, known = word.partition("=")[0], keys(options)
    hint = did_you_mean(key, known, cutoff=0.5)
    return ConfigError(f"{word}: there is no option {key}; {hint}{_there_are(known)}{also}")


def did_you_mean(word: str, known: Iterable[str], before: str = "", cutoff: float = 0.6) -> str:
    """A question with the nearest of the known words, empty where none is near.

    before  what it follows at the end of a sentence, `; `; without it there is a space after it
    """
    near = difflib.get_close_matches(word, list(known), 1, cutoff)
    return f"{before}did you mean {near[0]}?{'' if before else ' '}" if near else ""


def describe(options: type) -> list[tuple[str, str]]:
    """(word with its default, what it is) of every option, for help."""
    lines = []
    for key, (field, hint) in _words(options).items():
        choices = "|".join(_choices(hint))
        default = "…" if field.default is dataclasses.MISSING else _written(field.default)
        says = field.metadata.get("says", "")
        if choices and choices not in ("true|false", default):
            says = f"{says} ({choices})" if says else choices
        lines.append((f"{key}={default}", says))
    return lines


def written(options: Any) -> list[str]:
    """The words that `parse` reads as these options; defaults are left out."""
    words = []
    for key, (field, _) in _words(type(options)).items():
        value = getattr(options, field.name)
        if value != field.default:
            words.append(f"{key}={value!r}" if isinstance(value, float) else f"{key}={_written(value)}")
    return [*words, *(word for name in SPECIAL for word in getattr(options, name, ()))]


def _words(options: Any) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """Key -> the field that it sets, and the field's type."""
    hints = typing.get_type_hints(options)
    fields = (field for field in dataclasses.fields(options) if field.name not in SPECIAL and field.init)
    return {field.metadata.get("key") or field.name: (field, hints[field.name]) for field in fields}


def _there_are(known: Collection[str]) -> str:
    return f"there are {', '.join(known)}" if known else "it takes no words"


def _value(hint: Any, text: str) -> Any:
    """Text as a value of a type. Raises ValueError with what would do."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        if type(None) in arguments and text in ("", "null", "none"):
            return None
        wants = []
        for argument in arguments:  # the first that takes it
            if argument is type(None):
                continue
            try:
                return _value(argument, text)
            except ValueError as error:
                wants.append(str(error))
        raise ValueError(" or ".join(wants))
    if origin is tuple:
        parts = [part.strip() for part in text.strip("[]()").split(",")]
        return tuple(_value(arguments[0], part) for part in parts if part)
    if origin is Literal:
        if text not in arguments:
            raise ValueError(f"one of {', '.join(arguments)}{did_you_mean(text, arguments, '; ')}")
        return text
    if hint is bool:
        if text not in ("true", "false"):
            raise ValueError("true or false")
        return text == "true"
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ValueError("a whole number" if hint is int else "a number") from None
    if hint is Path and not text:
        raise ValueError("names nothing; give it a value, or leave it out")
    return Path(text).expanduser() if hint is Path else text


def _choices(hint: Any) -> tuple[str, ...]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return tuple(map(str, arguments))
    if origin is tuple or origin in UNIONS:
        return next((found for argument in arguments if (found := _choices(argument))), ())
    return ("true", "false") if hint is bool else ()


def _written(value: Any) -> str:
    """A default as one would type it."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case tuple() | list():
            return ",".join(map(_written, value))
    return str(value)


def number(
    low: float, high: float = math.inf, kind: type[int] | type[float] = int, without: Sequence[float] = ()
) -> Callable[[str], Any]:
    """Reads a number from `low` to `high`, whole unless `kind` is float, and none of `without`."""

    def read(text: str) -> Any:
        try:
            value = kind(text) if re.fullmatch(r"[\d.e+-]+", text, re.ASCII) else math.nan
        except ValueError:
            value = math.nan
        if not low <= value <= high or value in without:
            to = f" to {high:.10g}" if high < math.inf else ""
            but = f", but not {' or '.join(f'{end:g}' for end in without)}" if without else ""
            raise ValueError(f"{'a whole number' if kind is int else 'a number'} from {low:.10g}{to}{but}")
        return value

    return read
