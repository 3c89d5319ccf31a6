"""From a list of overrides to plain values: the only module that knows Hydra. Nothing here imports torch."""

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

# turns telemetry off in huggingface_hub and MLflow, which are imported after this
os.environ.setdefault("DO_NOT_TRACK", "true")


@dataclass(frozen=True)
class Config:
    """A composed run: `values` is plain data, `choices` names the chosen file of each group."""

    values: dict[str, Any]
    choices: dict[str, str]
    overrides: tuple[str, ...]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def with_values(self, changes: Mapping[str, Any]) -> Config:
        """The same with other values, by dotted path, not composed again: for those that no interpolation uses."""
        values = copy.deepcopy(self.values)
        for path, value in changes.items():
            *parents, leaf = path.split(".")
            node = values
            for part in parents:
                node = node[part]
            node[leaf] = value
        more = tuple(f"{path}={'null' if value is None else value}" for path, value in changes.items())
        return Config(values, self.choices, (*self.overrides, *more))

    def label(self, key: str) -> Any:
        """The value of a key in a table: the chosen file of a group, else the value at a dotted path."""
        return self.choices.get(key) or at(self.values, key)


def at(values: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted path, None if there is none."""
    node: Any = values
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def groups() -> dict[str, tuple[str, ...]]:
    """All config groups and their options: the folders of conf/ and their files, `launcher` left out.

    Includes the files of the user's folder. Raises ConfigError for one with the name of one of the suite's.
    """
    return {group: tuple(files) for group, files in _group_files(_users_conf()).items()}


def _users_conf() -> Path | None:
    folder = user_folder()
    return folder / "conf" if folder is not None and (folder / "conf").is_dir() else None


@lru_cache(maxsize=8)
def _group_files(users: Path | None) -> dict[str, dict[str, Path]]:
    """group -> option -> its file, each sorted."""
    files: dict[str, dict[str, Path]] = {}
    for path in sorted(CONF.glob("*/*.yaml")):
        if path.parent.name != "launcher":
            files.setdefault(path.parent.name, {})[path.stem] = path
    for path in sorted(users.glob("*/*.yaml")) if users else ():
        group, name = path.parent.name, path.stem
        if name in files.get(group, {}):
            raise ConfigError(f"{path}: {group}={name} comes with the suite; rename the file")
        if group in files:  # the user's `conf/` may have folders that are not for us
            files[group][name] = path
    return {group: dict(sorted(options.items())) for group, options in files.items()}


def override_key(override: str) -> str:
    """`data.urls=x` -> `data.urls`."""
    return override.split("=", 1)[0].lstrip("+~").split("@")[0]


def swept_values(override: str) -> tuple[str, ...]:
    """The values of `key=0,0.2,0.4`, as they are written in an override each; none where it is one value (`[1,2]` is).

    Raises ConfigError for Hydra's other sweeps.
    """
    parsed = _parsed(override)
    if parsed is None or not parsed.is_sweep_override():
        return ()
    key, _, value = override.partition("=")
    if not parsed.is_choice_sweep():
        raise ConfigError(f"{override}: {value} is no list of values; write them out, e.g. {key}=0,0.2,0.4")
    return tuple(str(value) for value in parsed.sweep_string_iterator())


def _parsed(override: str) -> Any:
    """What Hydra reads in an override; None where it cannot, which composing reports."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


@lru_cache(maxsize=256)
def _chosen(choices: tuple[str, ...], users: Path | None) -> tuple[Any, dict[str, str]]:
    """The configuration of group choices alone, interpolations unresolved, and the chosen file of each group."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    if not GlobalHydra.instance().is_initialized():
        initialize_config_dir(str(CONF), version_base="1.3")
    search = [] if users is None else [f"hydra.searchpath=['file://{users}']"]
    composed = compose("run", overrides=[*choices, *search], return_hydra_config=True)
    files = composed.hydra.runtime.choices
    values = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    OmegaConf.set_struct(values, True)  # a value for a key that is not there is refused
    return values, {str(k): str(v) for k, v in files.items() if k in groups() and v is not None}


def compose_run(overrides: Sequence[str]) -> Config:
    """Compose `conf/run.yaml` with overrides such as `weighting=uniform` or `step_sampler.beta=0.35`.

    Raises ConfigError naming the override, and the nearest key or the options there are.
    """
    return _composed(tuple(overrides), _users_conf())


@lru_cache(maxsize=512)
def _composed(overrides: tuple[str, ...], users: Path | None) -> Config:
    """Hydra sets values once the files are chosen; so files are read once for all runs that differ in values only."""
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
        chosen, files = _chosen(tuple(choices), users)
        composed = copy.deepcopy(chosen)
        for change in OverridesParser.create().parse_overrides(changes):
            if change.is_sweep_override():
                raise HydraException(f"{change.input_line}: not one value")
            try:
                OmegaConf.update(composed, change.key_or_group, change.value())
            except (ConfigAttributeError, ConfigKeyError) as error:
                raise HydraException(f"{change.input_line}: there is no key {error.full_key}") from error
        values = OmegaConf.to_container(composed, resolve=True)
    except YAMLError as error:
        raise ConfigError(f"a file of conf/ is no YAML: {' '.join(str(error).split())}") from error
    except (HydraException, OmegaConfBaseException) as error:
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
    if key.endswith("_target_"):
        raise ConfigError(f"{override}: classes are chosen by group, e.g. {key.split('.')[0]}=…, never by _target_")


def _explain(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Hydra's error in one line: the override, the known keys, the nearest one."""
    for override in overrides:
        key, parsed = override_key(override), _parsed(override)
        if parsed is None or parsed.is_sweep_override():
            value = override.partition("=")[2]
            return ConfigError(
                f"{override}: {value} is not one value; a list is {key}=[1,2], text with signs '{key}=\"a, b\"'"
            )
        known = _known_keys(overrides, key)
        if known and key not in known:
            parent = key.rpartition(".")[0]
            near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
            hint = f"did you mean {near[0]}? " if near and near[0] != parent else ""
            if parent in known:
                there = f"{parent} has {_siblings(parent, known, overrides)}{_elsewhere(key)}"
            else:
                there = f"there are {', '.join(sorted({name.split('.')[0] for name in known}))}"
            return UnknownKeyError(f"{override}: there is no key {key}; {hint}{there}", key)
    return ConfigError(" ".join(str(error).split()))


def _known_keys(overrides: Sequence[str], but: str) -> list[str]:
    """The keys of the configuration that the group choices alone compose to."""
    choices = tuple(o for o in overrides if override_key(o) in groups() and override_key(o) != but)
    try:
        values = compose_run(choices if choices != tuple(overrides) else ()).values
    except ConfigError:
        return []
    return [*(key for key in flatten(values) if not key.endswith("_target_")), *groups()]


def _siblings(parent: str, known: Sequence[str], overrides: Sequence[str]) -> str:
    """The keys beside an unknown one, and the choices that they come with."""
    names = [leaf for above, _, leaf in (key.rpartition(".") for key in known) if above == parent]
    chosen = [o for o in overrides if override_key(o) == parent or o.startswith("objective=flow")]
    come_with = f" (with {' '.join(chosen)})" if parent in groups() and chosen else ""
    return f"{', '.join(names) or 'no options'}{come_with}"


def _elsewhere(key: str) -> str:
    """Which other choices of the group have the key."""
    group, _, leaf = key.partition(".")
    files = _group_files(_users_conf()).get(group, {})
    has = [name for name, path in files.items() if re.search(rf"^{re.escape(leaf)}:", path.read_text(), re.M)]
    return f"; set {' or '.join(f'{group}={option}' for option in has)} to have {leaf}" if has else ""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a': …, 'a.b': 1}: every dotted path, inner nodes included."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        out[path] = value
        if isinstance(value, Mapping):
            out.update(flatten(value, f"{path}."))
    return out


def leaves(values: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted paths that hold no further mapping."""
    return {path: value for path, value in flatten(values).items() if not isinstance(value, Mapping)}
