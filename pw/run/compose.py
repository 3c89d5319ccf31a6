"""Overrides -> plain values. The only module that uses Hydra; it imports no torch."""

from __future__ import annotations

import copy
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pw.io.arguments import ConfigError, UnknownKeyError, did_you_mean
from pw.io.paths import CONF, user_folder

PATH_KEYS = ("data.urls", "trainer.weights")  # of conf/, whose values are read as typed
# before huggingface_hub and MLflow are imported: turns their telemetry off
os.environ.setdefault("DO_NOT_TRACK", "true")


@dataclass(frozen=True)
class Config:
    """A composed run: `values` is plain data, `choices` maps a group to the name of its file."""

    values: dict[str, Any]
    choices: dict[str, str]
    overrides: tuple[str, ...]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def with_values(self, changes: Mapping[str, Any]) -> Config:
        """The same with other values by dotted path, without composing again: for values that no interpolation uses."""
        values = copy.deepcopy(self.values)
        for path, value in changes.items():
            *parents, leaf = path.split(".")
            node = values
            for part in parents:
                node = node[part]
            node[leaf] = value
        overrides = tuple(f"{path}={'null' if value is None else value}" for path, value in changes.items())
        return Config(values, self.choices, _effective((*self.overrides, *overrides)))

    def label(self, key: str) -> Any:
        """The value of a key for a table: the file name of a group, or the value at a dotted path."""
        return self.choices.get(key) or value_at(self.values, key)


def _effective(overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides without those that a later one of the same key replaces."""
    return tuple({override.partition("=")[0]: override for override in overrides}.values())


def value_at(values: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted path, None if there is none."""
    node: Any = values
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def groups() -> dict[str, tuple[str, ...]]:
    """Config group -> its options: the folders of conf/ but `launcher`, and the names of their files.

    Includes the files of the user's folder. Raises ConfigError if one has the same name as a file of the suite.
    """
    return {group: tuple(files) for group, files in _group_files(_user_conf()).items()}


def _user_conf() -> Path | None:
    folder = user_folder()
    return folder / "conf" if folder is not None and (folder / "conf").is_dir() else None


@lru_cache(maxsize=8)
def _group_files(user_conf: Path | None) -> dict[str, dict[str, Path]]:
    """Group -> option -> file, sorted."""
    files: dict[str, dict[str, Path]] = {}
    for path in sorted(CONF.glob("*/*.yaml")):
        if path.parent.name != "launcher":
            files.setdefault(path.parent.name, {})[path.stem] = path
    for path in sorted(user_conf.glob("*/*.yaml")) if user_conf else ():
        group, name = path.parent.name, path.stem
        if name in files.get(group, {}):
            raise ConfigError(f"{path}: {group}={name} comes with the suite; rename the file")
        if group in files:  # ignores other folders of the user's `conf/`
            files[group][name] = path
    return {group: dict(sorted(options.items())) for group, options in files.items()}


def override_key(override: str) -> str:
    """`data.urls=x` -> `data.urls`."""
    return override.split("=", 1)[0].lstrip("+~").split("@")[0]


def swept_values(override: str) -> tuple[str, ...]:
    """The values of a sweep such as `key=0,0.2,0.4`, as text; () for an override with one value, such as `key=[1,2]`.

    Raises ConfigError for other sweeps of Hydra.
    """
    syntax = _parse(override)
    if syntax is None or not syntax.is_sweep_override():
        return ()
    key, _, value = override.partition("=")
    if not syntax.is_choice_sweep():
        raise ConfigError(f"{override}: {value} is no list of values; write them out, e.g. {key}=0,0.2,0.4")
    return tuple(str(value) for value in syntax.sweep_string_iterator())


def _parse(override: str) -> Any:
    """The override as Hydra parses it; None if it cannot, an error that composing reports."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(_with_quoted_path(override))
    except (HydraException, ValueError):
        return None


def _with_quoted_path(override: str) -> str:
    """A path as typed, `data.urls=/a b, $c`, in quotes for Hydra and OmegaConf.

    A value that begins with a quote or a bracket, and null, are left to Hydra's grammar.
    """
    from hydra.core.override_parser.types import Quote, QuotedString

    key, _, value = override.partition("=")
    if key not in PATH_KEYS or value in ("", "null") or value[0] in "\"'[":
        return override
    path = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # no interpolation
    return f"{key}={QuotedString(path, Quote.double).with_quotes()}"


@lru_cache(maxsize=256)
def _compose_choices(choices: tuple[str, ...], user_conf: Path | None) -> tuple[Any, dict[str, str]]:
    """(configuration of the group choices alone, with unresolved interpolations; group -> file name)."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    if not GlobalHydra.instance().is_initialized():
        initialize_config_dir(str(CONF), version_base="1.3")
    search = [] if user_conf is None else [f"hydra.searchpath=['file://{user_conf}']"]
    config = compose("run", overrides=[*choices, *search], return_hydra_config=True)
    files = config.hydra.runtime.choices
    values = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    OmegaConf.set_struct(values, False)
    for start in _group_files(user_conf)["start"]:
        if OmegaConf.is_dict(values.start.get(start)):  # what a scale says of the recipe of this start
            own = values.start.pop(start)
            if start == files["start"]:
                values.start.update(own)
    OmegaConf.set_struct(values, True)  # an unknown key is an error
    return values, {str(k): str(v) for k, v in files.items() if k in groups() and v is not None}


def compose_run(overrides: Sequence[str]) -> Config:
    """Compose `conf/run.yaml` with overrides such as `weighting=uniform` or `step_sampler.beta=0.35`.

    Raises ConfigError with the override, and the nearest key or the valid options.
    """
    if (tracking := os.environ.get("PW_TRACKING", "mlflow")) not in groups()["tracking"]:
        raise ConfigError(f"PW_TRACKING={tracking}: in the environment; is one of {', '.join(groups()['tracking'])}")
    return _compose(_effective(overrides), _user_conf())


@lru_cache(maxsize=512)
def _compose(overrides: tuple[str, ...], user_conf: Path | None) -> Config:
    """As `compose_run`. Hydra sets values after it chose files, so runs that differ in values only share the files."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
    from yaml import YAMLError

    choices, changes = [], []
    for override in overrides:
        _check_override(override)
        is_choice = override_key(override) in groups() or "@" in override.partition("=")[0]
        (choices if is_choice else changes).append(override)
    try:
        base, files = _compose_choices(tuple(choices), user_conf)
        config = copy.deepcopy(base)
        for change in OverridesParser.create().parse_overrides([*map(_with_quoted_path, changes)]):
            if change.is_sweep_override():
                raise HydraException(f"{change.input_line}: not one value")
            key, value = change.key_or_group, change.value()
            if isinstance(value, Mapping):
                first = next((f".{name}={part}" for name, part in value.items()), ".…")
                raise ConfigError(f"{change.input_line}: write each key out, e.g. {key}{first}")
            is_path = key in PATH_KEYS and isinstance(value, str)
            try:
                OmegaConf.update(config, key, os.path.expanduser(value) if is_path else value)
            except (ConfigAttributeError, ConfigKeyError) as error:
                raise HydraException(f"{change.input_line}: there is no key {error.full_key}") from error
        values = OmegaConf.to_container(config, resolve=True)
    except YAMLError as error:
        raise ConfigError(f"a file of conf/ is no YAML: {' '.join(str(error).split())}") from error
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: more digits than Python reads
        raise _explain(error, overrides) from error
    assert isinstance(values, dict)
    return Config({str(k): v for k, v in values.items()}, dict(files), overrides)


def _check_override(override: str) -> None:
    if not re.match(r"^[A-Za-z_][\w./@]*=", override):
        raise ConfigError(f"{override!r} is not an override: write key=value, e.g. weighting=uniform")
    key, value = override.split("=", 1)
    if key.split("@")[0] in groups() and "@" not in key and value not in groups()[key]:
        hint = did_you_mean(value, groups()[key], "; ")
        raise ConfigError(f"{override}: {key} is one of {', '.join(groups()[key])}{hint}")
    if set(value) & {"\n", "\r"}:
        raise ConfigError(f"{override}: the value has a line end; a run's first line is its command (config.yaml)")
    if "${" in value and key not in PATH_KEYS:
        raise ConfigError(f"{override}: the value refers to another key; write the value itself")
    if key.endswith("_target_"):
        raise ConfigError(f"{override}: classes are chosen by group, e.g. {key.split('.')[0]}=…, never by _target_")


def _explain(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Hydra's error in one line: the override, the known keys, the nearest key."""
    for override in overrides:
        key, syntax = override_key(override), _parse(override)
        if syntax is None or syntax.is_sweep_override():
            value = override.partition("=")[2]
            return ConfigError(
                f"{override}: {value} is not one value; a list is {key}=[1,2], text with signs '{key}=\"a, b\"'"
            )
        keys = _known_keys(overrides, key)
        if keys and key not in keys:
            parent, _, leaf = key.rpartition(".")
            nearest = [k for k in keys if k.endswith(f".{leaf}")] or difflib.get_close_matches(key, keys, 1, cutoff=0.7)
            hint = f"did you mean {nearest[0]}? " if nearest and nearest[0] != parent else ""
            if parent in keys:
                alternatives = f"{parent} has {_siblings(parent, keys, overrides)}{_choices_with(key)}"
            else:
                alternatives = f"there are {', '.join(sorted({name.split('.')[0] for name in keys}))}"
            return UnknownKeyError(f"{override}: there is no key {key}; {hint}{alternatives}", key)
    return ConfigError(" ".join(str(error).split()))


def _known_keys(overrides: Sequence[str], exclude: str) -> list[str]:
    """The keys of the configuration of the group choices alone, without the choice of group `exclude`."""
    choices = tuple(o for o in overrides if override_key(o) in groups() and override_key(o) != exclude)
    try:
        values = compose_run(choices if choices != tuple(overrides) else ()).values
    except ConfigError:
        return []
    return [*(key for key in flatten(values) if not key.endswith("_target_")), *groups()]


def _siblings(parent: str, keys: Sequence[str], overrides: Sequence[str]) -> str:
    """The valid keys under `parent`, and the choices that define them, in words."""
    names = [leaf for folder, _, leaf in (key.rpartition(".") for key in keys) if folder == parent]
    choices = [o for o in overrides if override_key(o) == parent or o.startswith("objective=flow")]
    origin = f" (with {' '.join(choices)})" if parent in groups() and choices else ""
    return f"{', '.join(names) or 'no options'}{origin}"


def _choices_with(key: str) -> str:
    """A hint: the choices of the group that have the key; "" if none."""
    group, _, leaf = key.partition(".")
    files = _group_files(_user_conf()).get(group, {})
    options = [name for name, path in files.items() if re.search(rf"^{re.escape(leaf)}:", path.read_text(), re.M)]
    return f"; set {' or '.join(f'{group}={option}' for option in options)} to have {leaf}" if options else ""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a': …, 'a.b': 1}: the value at every dotted path, inner nodes included."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        result[path] = value
        if isinstance(value, Mapping):
            result.update(flatten(value, f"{path}."))
    return result


def leaves(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted path -> value, for values that are no mapping."""
    return {path: value for path, value in flatten(values).items() if not isinstance(value, Mapping)}
