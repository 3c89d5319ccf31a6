"""Parses the words `key=value` of a command line into a dataclass; its fields are the options.

    @dataclass(frozen=True)
    class PlanOptions:
        gpus: str = option("", "NxMGB, or a card: 8x80GB, 1xH100")
        tflops: float = option(400.0, "what a GPU is assumed to reach")
        overrides: tuple[str, ...] = ()

    main = Command(PlanOptions, run)  # main(words) -> exit status

The annotation of a field gives the type of its value: bool (true, false), int, float, str, Path, a Literal, a tuple of
one of these (comma-separated), `| None` (null). A number is from 0 to `LARGEST` unless `read=number(…)` says otherwise.
Two fields are special: `overrides` takes every `key=value` that is no option, and `positional` every word without an
equals sign. A command without them rejects such words.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import errno
import math
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pw.io.command_line import without_make
from pw.io.console import one_line, print_line

T = TypeVar("T")
SPECIAL = ("overrides", "positional")
UNIONS = (types.UnionType, typing.Union)
LARGEST = 1_000_000  # of a number without bounds of its own
LONGEST = 240  # bytes of a file's name; systems allow 255, and temporary files add to it
LONGEST_PATH = 2000  # bytes of a whole path; systems allow 4096, and there are folders below it


@dataclass(frozen=True)
class Range:
    """Bounds of a number: `Annotated[float, Range(-1, 1)]`. A number of a configuration has them, or this default."""

    low: float = 0
    high: float = LARGEST

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"from {self.low:.10g} to {self.high:.10g}"


MAX_SEED = 2**32 - 1  # of a random generator's
Seed = Annotated[int, Range(0, MAX_SEED)]


class ConfigError(ValueError):
    """A key, value or combination that the user can correct; the message names it and suggests a valid one."""

    def with_prefix(self, prefix: str) -> ConfigError:
        """A copy whose message starts with `prefix`, the location of the error."""
        error = copy.copy(self)
        error.args = (f"{prefix}{self}",)
        return error


class UnknownKeyError(ConfigError):
    """An override with a key that is not in the configuration; it may be a misspelled option of the command."""

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    read: Callable[[str], Any] | None = None,
    key: str | None = None,
    values: Callable[[], Sequence[str]] | None = None,
) -> Any:
    """A dataclass field for an option of a command.

    default  value if the word is absent; without a default the word is required
    help     description in one sentence, for `pw VERB --help`
    read     text -> value, replaces the parser of the annotation; raises ValueError with what is valid
    key      key of the word, if it cannot be the field's name, such as `for`
    values   lists the values for shell completion, if the annotation does not
    """
    return dataclasses.field(default=default, metadata={"help": help, "read": read, "key": key, "values": values})


@dataclass(frozen=True)
class Command(Generic[T]):
    """A verb: its options and the function that runs it. A call with the words returns the exit status: 2 for invalid
    words and for lack of memory, after one line with the error.

    resume_hint  what is printed after a signal that stops the work, or a full disk: what is kept, and how to resume
    """

    options: type[T]
    run: Callable[[T], int]
    resume_hint: str = "nothing was written"

    def __call__(self, words: Sequence[str]) -> int:
        try:
            _check_repeated(words)
            return self.run(parse(self.options, words))
        except ConfigError as error:
            key = error.key if isinstance(error, UnknownKeyError) else ""
            hint = did_you_mean(key, keys(self.options), "; or, of the options, ", 0.7)
            text = without_make(f"{error}{hint}")
            print_line(f"error: {_one_line(f'{_location(error.__cause__, words)}{text}', words)}")
            return 2
        except MemoryError as error:
            print_line("; ".join([f"error: {error or 'out of memory'}", *filter(None, [self.resume_hint])]))
            return 2
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            print_line(f"error: {_one_line(f'{_location(error, words)}{error}', words)}")
            return 2


def _check_repeated(words: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for word in words:
        key, equals, _ = word.partition("=")
        if equals and first.setdefault(key, word) is not word:
            raise ConfigError(f"{key} is given twice, {first[key]} and {word}; leave one out")


def _location(error: BaseException | None, words: Sequence[str]) -> str:
    """The word that names the file of an error, if its name is too long, else ""."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        for word in words:
            if (value := word.rpartition("=")[2]) and value in os.fsdecode(error.filename or ""):
                return f"{word}: "
    return ""


def _one_line(text: str, words: Sequence[str]) -> str:
    """A message in which long keys and values are cut and have no line ends; only its own lists have."""
    for part in filter(None, (part for word in words for part in word.partition("="))):
        text = text.replace(part, one_line(part if len(part) <= 200 else f"{part[:100]}…"))
    return text


def parse(options: type[T], words: Sequence[str]) -> T:
    """Words -> options. Raises ConfigError with the word, and the nearest key or the valid values."""
    known = _fields_by_key(options)
    field_values: dict[str, Any] = {}
    special: dict[str, list[str]] = {name: [] for name in SPECIAL if name in typing.get_type_hints(options)}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            if "positional" not in special:
                hint = next((f"did you mean {key}={word}? " for key in known if word in values(options, key)), "")
                more = ", and overrides of conf/, e.g. weighting=uniform" if "overrides" in special else ""
                raise ConfigError(f"{word!r}: write key=value; {hint}{_list_keys(known)}{more}")
            special["positional"].append(word)
        elif key in known:
            field, hint = known[key]
            try:
                if not value and typing.get_origin(hint) is not tuple:
                    raise ValueError("is empty; give it a value, or leave it out")
                if _is_path(hint):
                    check_path(value)
                field_values[field.name] = (field.metadata.get("read") or partial(_value, hint))(value)
            except ConfigError:
                raise
            except ValueError as error:
                raise ConfigError(f"{word}: {error}") from None
        elif "overrides" in special:
            special["overrides"].append(word)
        else:
            raise no_such_option(options, word)
    for key, (field, _) in known.items():
        if field.name not in field_values and field.default is dataclasses.MISSING:
            help = field.metadata.get("help", "")
            if choices := values(options, key):
                help = f"{help}, one of {', '.join(choices)}"
            message = f"{key}=… is missing{f': {help}' if help else ''}"
            raise missing_option(options, key, message, special.get("overrides", ()))
    return options(**field_values, **{name: tuple(items) for name, items in special.items()})


def keys(options: type) -> dict[str, str]:
    """Key of each option -> name of its field."""
    return {key: field.name for key, (field, _) in _fields_by_key(options).items()}


def values(options: type, key: str) -> tuple[str, ...]:
    """The valid values of a key; empty if they cannot be listed."""
    field, hint = _fields_by_key(options).get(key, (None, None))
    if field is None:
        return ()
    list_values = field.metadata.get("values")
    return tuple(list_values()) if list_values else _choices(hint)


def missing_option(options: type, key: str, message: str, words: Sequence[str]) -> ConfigError:
    """The error for a missing option: its `message`, or, if one of the other `words` is nearly the key, that word."""
    near = difflib.get_close_matches(key, [word.partition("=")[0] for word in words], 1, 0.7)
    return no_such_option(options, near[0]) if near else ConfigError(message)


def no_such_option(options: type, word: str, suffix: str = "") -> ConfigError:
    """The error for a word whose key is no option: it names the nearest option, then all; `suffix` ends the message."""
    key, known = word.partition("=")[0], keys(options)
    hint = did_you_mean(key, known, cutoff=0.5)
    return ConfigError(f"{word}: there is no option {key}; {hint}{_list_keys(known)}{suffix}")


def did_you_mean(word: str, known: Iterable[str], prefix: str = "", cutoff: float = 0.6) -> str:
    """ "did you mean …?" with the nearest known word; empty if none is near.

    prefix  separator from a sentence before the question, such as `; `; without it a space follows the question
    """
    matches = difflib.get_close_matches(word, list(known), 1, cutoff)
    return f"{prefix}did you mean {matches[0]}?{'' if prefix else ' '}" if matches else ""


def describe(options: type) -> list[tuple[str, str]]:
    """(word with its default, description) of every option, for `--help`."""
    lines = []
    for key, (field, hint) in _fields_by_key(options).items():
        choices = "|".join(_choices(hint))
        default = "…" if field.default is dataclasses.MISSING else _as_text(field.default)
        help = field.metadata.get("help", "")
        if choices and choices not in ("true|false", default):
            help = f"{help} ({choices})" if help else choices
        lines.append((f"{key}={default}", help))
    return lines


def to_words(options: Any) -> list[str]:
    """The words that `parse` reads as these options, without defaults."""
    words = []
    for key, (field, _) in _fields_by_key(type(options)).items():
        value = getattr(options, field.name)
        if value != field.default:
            words.append(f"{key}={value!r}" if isinstance(value, float) else f"{key}={_as_text(value)}")
    return [*words, *(word for name in SPECIAL for word in getattr(options, name, ()))]


def _fields_by_key(options: Any) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """Key -> (field, type of the field)."""
    hints = typing.get_type_hints(options)
    fields = (field for field in dataclasses.fields(options) if field.name not in SPECIAL and field.init)
    return {field.metadata.get("key") or field.name: (field, hints[field.name]) for field in fields}


def _list_keys(known: Collection[str]) -> str:
    return f"there are {', '.join(known)}" if known else "it takes no words"


def _value(hint: Any, text: str) -> Any:
    """Text -> value of the type `hint`. Raises ValueError with what is valid."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        if type(None) in arguments and text in ("null", "none"):
            return None
        expectations = []
        for argument in arguments:  # the first type that accepts the text
            if argument is type(None):
                continue
            try:
                return _value(argument, text)
            except ValueError as error:
                expectations.append(str(error))
        raise ValueError(" or ".join(expectations))
    if origin is tuple:
        inner = text[1:-1] if text[:1] + text[-1:] in ("[]", "()") else text
        parts = [part.strip() for part in inner.split(",")]
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
        return number(0, kind=hint)(text)
    return Path(text).expanduser() if hint is Path else text


def _is_path(hint: Any) -> bool:
    return hint is Path or Path in typing.get_args(hint)


def check_path(text: str) -> None:
    """Raises ValueError for a path, or a name in it, that is longer than systems allow, and for ~ of no user."""
    longest = max(len(os.fsencode(name)) for name in text.split("/"))
    if longest > LONGEST or len(os.fsencode(text)) > LONGEST_PATH:
        raise ValueError(f"too long for a path; at most {LONGEST} bytes a name, {LONGEST_PATH} in all")
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"there is no user {text.partition('/')[0].removeprefix('~')} here") from None


def _choices(hint: Any) -> tuple[str, ...]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return tuple(map(str, arguments))
    if origin is tuple or origin in UNIONS:
        return next((choices for argument in arguments if (choices := _choices(argument))), ())
    return ("true", "false") if hint is bool else ()


def _as_text(value: Any) -> str:
    """A value as the user types it."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case tuple() | list():
            return ",".join(map(_as_text, value))
    return str(value)


def number(
    low: float, high: float = LARGEST, kind: type[int] | type[float] = int, excluded: Sequence[float] = ()
) -> Callable[[str], Any]:
    """A parser of numbers in [low, high] but not in `excluded`; whole numbers unless `kind` is float."""
    bounds = Range(low, high)

    def read(text: str) -> Any:
        try:
            value = kind(text) if re.fullmatch(r"[\d.e+-]+", text, re.ASCII) else math.nan
        except ValueError:
            value = math.nan
        if value not in bounds or value in excluded:
            exception = f", but not {' or '.join(f'{x:g}' for x in excluded)}" if excluded else ""
            raise ValueError(f"{'a whole number' if kind is int else 'a number'} {bounds}{exception}")
        return value

    return read
