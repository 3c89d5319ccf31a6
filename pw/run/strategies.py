"""Plain values -> strategies and settings: dataclasses, each field checked."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import types
import typing
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pw.io.arguments import ConfigError, Range, did_you_mean
from pw.io.paths import SUITE, explain_import_errors, user_folder

# Group -> modules with its classes: a configuration cannot name a class of another module.
MODULES: dict[str, tuple[str, ...]] = {
    "attention": ("pw.nn.options",),
    "backbone": ("pw.nn.options",),
    "codec": ("pw.nn.options",),
    "data": ("pw.data", "pw.data.latents", "pw.data.procedural", "pw.data.shards"),
    "degradation": ("pw.data.degradation",),
    "guidance": ("pw.method.guidance",),
    "injector": ("pw.nn.options",),
    "objective": ("pw.method.objective", "pw.method.mean_flow", "pw.method.consistency_model"),
    "schedule": ("pw.method.schedule",),
    "solver": ("pw.method.solver", "pw.nn.unipc"),
    "step_sampler": ("pw.method.step_sampler",),
    "target": ("pw.method.target",),
    "text": ("pw.nn.options",),
    "tracking": ("pw.tracking.loggers",),
    "turns": ("pw.method.objective",),
    "weighting": ("pw.method.weighting",),
}


DEFAULT_RANGE = Range()


@dataclass(frozen=True)
class Constraint:
    """A condition on a number, for `Annotated`, beside its `Range`, and the message for a number that violates it."""

    check: Callable[[float], bool]
    message: str


@contextmanager
def as_config_error() -> Generator[None]:
    """Turns a ValueError into a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def is_chosen(node: Mapping[str, Any]) -> bool:
    """Whether the choice of a group is a strategy; `none` has no class."""
    if "_target_" not in node:
        raise ConfigError("a file of conf/ names no class: expected a line `_target_: module.Class`")
    return bool(node["_target_"])


def strategy_class(group: str, node: Mapping[str, Any], key: str | None = None) -> Any:
    """The class of `_target_`, from a module of the group or of the user's folder.

    Raises ConfigError for a class of another module, or one that is not a frozen dataclass.
    """
    target = str(node.get("_target_", ""))
    location = f"{key or group}._target_={target!r}"
    module, _, name = target.rpartition(".")
    if module not in MODULES[group] and not _is_user_module(module):
        folder = user_folder()
        hint = "" if folder is None else f", or in a module of {folder}, where there is no {module or 'module'}.py"
        raise ConfigError(f"{location}: a {group} must be in {', '.join(MODULES[group])}{hint}")
    with explain_import_errors(location, user_folder() or SUITE):
        cls = getattr(importlib.import_module(module), name, None)
    if cls is None:
        raise ConfigError(f"{location}: {module} has no {name}")
    parameters = getattr(cls, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise ConfigError(f"{location}: is not a class under @dataclass(frozen=True)")
    return cls


def _is_user_module(module: str) -> bool:
    """Whether a module is a file of the user's folder."""
    folder = user_folder()
    if folder is None or not module or not (folder / Path(*module.split("."))).with_suffix(".py").is_file():
        return False
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None and Path(spec.origin).is_relative_to(folder)


def make(group: str, node: Mapping[str, Any], key: str | None = None, **parts: Any) -> Any:
    """The strategy of a config node, with checked fields.

    Raises ConfigError for a class of another module, an unknown or missing field, or a value of wrong type or range.
    """
    if not isinstance(node, Mapping):
        raise ConfigError(f"{key or group}={node!r}: is not one value; choose a file of conf/{group}")
    cls = strategy_class(group, node, key)
    return from_values(cls, {k: v for k, v in node.items() if k != "_target_"}, key or group, **parts)


def from_values(cls: Any, node: Mapping[str, Any], key: str, **parts: Any) -> Any:
    """A dataclass from plain values, each checked against its annotation. Raises ConfigError with the key."""
    specs = {field.name: field for field in fields(cls) if field.init and not field.name.startswith("_")}
    if not isinstance(node, Mapping):
        raise ConfigError(f"{key}={node!r}: is not one value; set {', '.join(f'{key}.{name}' for name in specs)}")
    for name in node:
        if name not in specs:
            hint = did_you_mean(name, specs)
            raise ConfigError(f"{key}.{name}: {cls.__name__} has no {name}; {hint}it has {', '.join(sorted(specs))}")
    missing = [n for n, f in specs.items() if f.default is f.default_factory and n not in node and n not in parts]
    if missing:
        raise ConfigError(f"{key}.{missing[0]}: missing")
    hints = typing.get_type_hints(cls, localns={"Tensor": object}, include_extras=True)
    arguments = {name: coerce(value, hints[name], f"{key}.{name}") for name, value in node.items()}
    try:
        with as_config_error():
            return cls(**arguments, **parts)
    except OSError as error:  # of a source, which reads its folder
        place = [f".{n}={v}" for n, v in arguments.items() if isinstance(v, str) and v in str(error.filename)]
        raise ConfigError(f"{key}{place[0] if place else ''}: {error.strerror}") from error


def coerce(value: Any, annotation: Any, key: str, bounds: Range = DEFAULT_RANGE) -> Any:
    """`value` in the type of an annotation; converts only int -> float and list -> tuple. Raises ConfigError.

    bounds  of numbers, unless the annotation has a `Range`
    """
    origin, parameters = typing.get_origin(annotation), typing.get_args(annotation)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if origin is Annotated:
        for constraint in parameters[1:]:
            if isinstance(constraint, Constraint) and is_number and not constraint.check(value):
                raise ConfigError(f"{key}={value}: {constraint.message}")
        own_bounds = [extra for extra in parameters[1:] if isinstance(extra, Range)]
        return coerce(value, parameters[0], key, *(own_bounds or [bounds]))
    error = ConfigError(f"{key}={value!r}: expected {_in_words(annotation)}")
    if origin is Literal:
        if value not in parameters or isinstance(value, bool):
            raise ConfigError(f"{error}{did_you_mean(str(value), [str(a) for a in parameters], '; ')}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in parameters:
            return None
        members = [a for a in parameters if a is not type(None)]
        if len(members) == 1:
            return coerce(value, members[0], key, bounds)
        for member in sorted(members, key=lambda member: member is not type(value)):  # the exact type first
            with suppress(ConfigError):
                return coerce(value, member, key, bounds)
        raise error
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise error
        item_types = [parameters[0]] * len(value) if parameters[-1] is Ellipsis else list(parameters)
        if len(item_types) != len(value):
            raise error
        return tuple(coerce(v, t, key, bounds) for v, t in zip(value, item_types, strict=True))
    if dataclasses.is_dataclass(annotation) and isinstance(value, Mapping):
        group = next((g for g, modules in MODULES.items() if annotation.__module__ in modules), "")
        return make(group, value, key) if "_target_" in value else from_values(annotation, value, key)
    if annotation in (int, float) and is_number and (annotation is float or isinstance(value, int)):
        if value not in bounds:
            raise ConfigError(f"{key}={value}: expected {_in_words(annotation)} {bounds}")
        return annotation(value)
    if not isinstance(value, annotation) or (isinstance(value, bool) and annotation is not bool):
        raise error
    return value


def _in_words(annotation: Any) -> str:
    origin, parameters = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _in_words(parameters[0])
    if origin is Literal:
        return f"one of {', '.join(map(str, parameters))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _in_words(a) for a in parameters)
    if origin is tuple:
        item_types = parameters[:1] if parameters[-1] is Ellipsis else parameters
        count = "a list" if parameters[-1] is Ellipsis else f"a list of {len(parameters)}"
        return f"{count} of {_in_words(item_types[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(annotation, str(annotation))
