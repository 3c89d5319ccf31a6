"""Plain values -> strategies and settings: dataclasses, each field checked."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
import types
import typing
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pw.io.arguments import ConfigError, did_you_mean
from pw.io.paths import SUITE, explain_import_errors, user_folder

# Where a group's classes may live: a configuration cannot name any other.
HOMES: dict[str, tuple[str, ...]] = {
    "backbone": ("pw.nn.options",),
    "codec": ("pw.nn.options",),
    "data": ("pw.data", "pw.data.latents", "pw.data.procedural", "pw.data.shards"),
    "degradation": ("pw.data.degradation",),
    "guidance": ("pw.method.solver",),
    "injector": ("pw.nn.options",),
    "objective": ("pw.method.objective",),
    "schedule": ("pw.method.schedule",),
    "solver": ("pw.method.solver", "pw.nn.unipc"),
    "step_sampler": ("pw.method.step_sampler",),
    "target": ("pw.method.target",),
    "text": ("pw.nn.options",),
    "turns": ("pw.method.objective",),
    "weighting": ("pw.method.weighting",),
}


@dataclass(frozen=True)
class Only:
    """What a number must be, beside its type in `Annotated`, and the words for it."""

    fits: Callable[[float], bool]
    words: str


@contextmanager
def as_config_error() -> Generator[None]:
    """A ValueError within is raised as ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def is_chosen(node: Mapping[str, Any]) -> bool:
    """Whether a group's choice is a strategy; its `none` has no class."""
    if "_target_" not in node:
        raise ConfigError("a file of conf/ names no class: it wants a line `_target_: module.Class`")
    return bool(node["_target_"])


def strategy_class(group: str, node: Mapping[str, Any], key: str | None = None) -> Any:
    """The class of a config node's `_target_`: one of the group's own modules, or of the user's folder.

    Raises ConfigError on a class from elsewhere, or one that is not a frozen dataclass.
    """
    target = str(node.get("_target_", ""))
    where = f"{key or group}._target_={target!r}"
    module, _, name = target.rpartition(".")
    if module not in HOMES[group] and not _is_own(module):
        own = user_folder()
        beside = "" if own is None else f", or in a module of {own}, where there is no {module or 'module'}.py"
        raise ConfigError(f"{where}: a {group} lives in {', '.join(HOMES[group])}{beside}")
    with explain_import_errors(where, user_folder() or SUITE):
        cls = getattr(importlib.import_module(module), name, None)
    if cls is None:
        raise ConfigError(f"{where}: {module} has no {name}")
    parameters = getattr(cls, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise ConfigError(f"{where}: is not a class under @dataclass(frozen=True)")
    return cls


def _is_own(module: str) -> bool:
    """Whether a module is a file of the user's folder."""
    folder = user_folder()
    if folder is None or not module or not (folder / Path(*module.split("."))).with_suffix(".py").is_file():
        return False
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None and Path(spec.origin).is_relative_to(folder)


def make(group: str, node: Mapping[str, Any], key: str | None = None, **parts: Any) -> Any:
    """The strategy that a config node describes, its fields checked.

    Raises ConfigError on a class from elsewhere, an unknown or missing field, or a value of the wrong type or range.
    """
    cls = strategy_class(group, node, key)
    return from_values(cls, {k: v for k, v in node.items() if k != "_target_"}, key or group, **parts)


def from_values(cls: Any, node: Mapping[str, Any], key: str, **parts: Any) -> Any:
    """A dataclass from plain values, each checked against its annotation. Raises ConfigError by key."""
    known = {field.name: field for field in fields(cls) if field.init and not field.name.startswith("_")}
    if not isinstance(node, Mapping):
        raise ConfigError(f"{key}={node!r}: is not one value; set {', '.join(f'{key}.{name}' for name in known)}")
    for name in node:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"{key}.{name}: {cls.__name__} has no {name}; {hint}it has {', '.join(sorted(known))}")
    missing = [n for n, f in known.items() if f.default is f.default_factory and n not in node and n not in parts]
    if missing:
        raise ConfigError(f"{key}.{missing[0]}: missing")
    hints = typing.get_type_hints(cls, localns={"Tensor": object}, include_extras=True)
    checked = {name: coerce(value, hints[name], f"{key}.{name}") for name, value in node.items()}
    with as_config_error():
        return cls(**checked, **parts)


def coerce(value: Any, wanted: Any, key: str) -> Any:
    """`value` as the type of an annotation; only int -> float and list -> tuple are converted."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Annotated:
        value = coerce(value, arguments[0], key)
        for only in arguments[1:]:
            if isinstance(only, Only) and not only.fits(value):
                raise ConfigError(f"{key}={value}: {only.words}")
        return value
    wrong = ConfigError(f"{key}={value!r}: wants {_wanted(wanted)}")
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise ConfigError(f"{wrong}{did_you_mean(str(value), [str(a) for a in arguments], '; ')}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        members = [a for a in arguments if a is not type(None)]
        if len(members) == 1:
            return coerce(value, members[0], key)
        for member in sorted(members, key=lambda member: member is not type(value)):  # 2 is an int before a float
            with suppress(ConfigError):
                return coerce(value, member, key)
        raise wrong
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise wrong
        item_types = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(item_types) != len(value):
            raise wrong
        return tuple(coerce(v, t, key) for v, t in zip(value, item_types, strict=True))
    if dataclasses.is_dataclass(wanted) and isinstance(value, Mapping):
        group = next((g for g, homes in HOMES.items() if wanted.__module__ in homes), "")
        return make(group, value, key) if "_target_" in value else from_values(wanted, value, key)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise wrong
    return value


def _wanted(wanted: Any) -> str:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Annotated:
        return _wanted(arguments[0])
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _wanted(a) for a in arguments)
    if origin is tuple:
        items = arguments[:1] if arguments[-1] is Ellipsis else arguments
        count = "a list" if arguments[-1] is Ellipsis else f"a list of {len(arguments)}"
        return f"{count} of {_wanted(items[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(wanted, str(wanted))
