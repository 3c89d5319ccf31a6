"""The systems of the paper's tables: a card for each, and the code that makes their videos.

A card (`cards/<name>.yaml`) describes one row of the tables: the native setting in which the paper compares the system
(sec. 8.2), its licence, its source, how to run it, and known differences to the paper. There are four kinds:

    diffusers    generated here with diffusers (`diffusers_pipelines`)
    pixelwizard  generated here by one call of `pw generate` (`external`)
    command      an external program with its own environment, started once per video (`external`)
    videos       existing videos that are registered (`jobs.register`)

The tables read a system's folder of videos; `jobs` describes its files.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from pw.io.arguments import ConfigError

CARDS = Path(__file__).parent / "cards"
Kind = Literal["diffusers", "pixelwizard", "command", "videos"]


class GenerationError(RuntimeError):
    """A video could not be generated; the message says which and why."""


@dataclass(frozen=True)
class Setting:
    """Settings of a generation: size in px, frames, rate in 1/s; steps, guidance scale and shift, or None.

    For existing videos, size, frames and rate may be None: unknown, so not checked.
    """

    width: int | None
    height: int | None
    frames: int | None
    fps: float | None
    steps: int | None
    guidance: float | None
    shift: float | None

    @property
    def rate(self) -> float:
        assert self.fps is not None
        return self.fps

    def texts(self) -> tuple[str, str, str]:
        """Size, frames and rate as text; an unknown value is a question mark."""
        width, height, frames, fps = (
            "?" if value is None else f"{value:g}" for value in (self.width, self.height, self.frames, self.fps)
        )
        return f"{width}x{height}", frames, fps

    def __str__(self) -> str:
        size, frames, fps = self.texts()
        return f"{size}, {frames} frames at {fps} fps{'' if self.steps is None else f', {self.steps} steps'}"


@dataclass(frozen=True)
class Licence:
    """Licence of code and weights. The user must accept a restricted one."""

    name: str
    restricted: bool
    terms: str | None


@dataclass(frozen=True)
class Parameters:
    """Number of parameters in billions, and its source."""

    billions: float
    source: str


@dataclass(frozen=True)
class Repository:
    """Weights on the Hugging Face hub; None if they are elsewhere or the revision is unknown."""

    repository: str | None
    revision: str | None


@dataclass(frozen=True)
class Diffusers:
    """How to run a system with diffusers.

    pipeline   class name in diffusers
    scheduler  "class" (default: that of the weights) and changes of its configuration
    vae        precision of the VAE
    arguments  of the pipeline call, in addition to size, steps, guidance and prompt
    """

    pipeline: str
    scheduler: Mapping[str, Any]
    vae: Literal["float32", "bfloat16"]
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class PixelWizard:
    scale: str


@dataclass(frozen=True)
class ExternalCommand:
    """How to make one video with an external program.

    command     command line with {fields} (see `external.FIELDS`), run in the checkout without a shell
    output      glob pattern of the video below {out}
    takes       the input: a prompt, or a video to enlarge
    writes_fps  rate that the program writes into the file; None: the requested rate
    driver      what the user's own script must do, if the repository has no suitable command
    """

    command: str
    output: str
    takes: Literal["prompt", "video"]
    writes_fps: float | None
    driver: str | None


@dataclass(frozen=True)
class System:
    """The card of a system, see the docstring of the package.

    setting     the native setting; `setting_source` is its reference
    rows        table -> printed label
    deviations  differences to the authors' way of running it, or to the paper
    """

    name: str
    title: str
    kind: Kind
    setting: Setting
    setting_source: str
    parameters: Parameters | None
    licence: Licence
    repository: str | None
    weights: Repository
    adapter: Diffusers | PixelWizard | ExternalCommand | None
    deviations: tuple[str, ...]
    rows: Mapping[str, str]

    @property
    def enlarges(self) -> bool:
        """Whether its input is a video, not a prompt."""
        return isinstance(self.adapter, ExternalCommand) and self.adapter.takes == "video"

    @property
    def required_option(self) -> str:
        """The option that `make system` needs in addition to `name`."""
        if self.kind == "videos":
            return "videos=DIR"
        return "inputs=DIR" if self.enlarges else "prompts=FILE"


ADAPTERS = {"diffusers": Diffusers, "pixelwizard": PixelWizard, "command": ExternalCommand, "videos": None}


def names() -> list[str]:
    return sorted(path.stem for path in CARDS.glob("*.yaml"))


def find(name: str) -> Path:
    """Path of a card, by name or as a path to a .yaml file. Raises ConfigError for an unknown name."""
    if name.endswith(".yaml") and (card := Path(name).expanduser()).is_file():
        return card
    if name not in names():
        raise ConfigError(f"name={name}: no such system; known: {', '.join(names())}, or a card of your own")
    return CARDS / f"{name}.yaml"


def load(name: str) -> System:
    return read_card(find(name))


def read_card(path: Path) -> System:
    """Read and check a card. Raises ConfigError naming the file and the unknown, missing or wrong key."""
    try:
        card = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a card ({error})") from error
    kind = str(card.get("kind")) if isinstance(card, dict) else ""
    if kind not in ADAPTERS:
        raise ConfigError(f"{path}: kind={kind}: expected one of {', '.join(ADAPTERS)}")
    if (adapter := ADAPTERS[kind]) is not None:
        card["adapter"] = _build(adapter, card.get("adapter"), f"{path}: adapter")
    elif card.get("adapter") is not None:
        raise ConfigError(f"{path}: adapter: a system of kind {kind} has none; leave it at null")
    system = _build(System, card, str(path))
    setting = system.setting
    if kind != "videos" and None in (setting.width, setting.height, setting.frames, setting.fps):
        raise ConfigError(f"{path}: setting={setting}: a generated system needs a known size, length and rate")
    if path.stem not in (system.name, "card"):  # card.yaml is the copy in a system's folder
        raise ConfigError(f"{path}: name={system.name}: the card's name must equal its file name")
    return system


def _build(cls: type, values: Any, location: str) -> Any:
    """A dataclass (and nested ones) from a mapping with exactly its keys."""
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise ConfigError(f"{location}: expected {', '.join(hints)}, not {values!r}")
    if unknown := values.keys() - hints.keys():
        raise ConfigError(f"{location}: unknown keys {', '.join(sorted(map(str, unknown)))}; known: {', '.join(hints)}")
    if missing := hints.keys() - values.keys():
        raise ConfigError(f"{location}: missing keys {', '.join(sorted(missing))} (use null for none)")
    return cls(**{key: _value(hint, values[key], f"{location}: {key}") for key, hint in hints.items()})


def _value(hint: Any, value: Any, location: str) -> Any:
    """Convert `value` to its annotation: a scalar, a tuple of strings, a mapping, a dataclass, or a union of them."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if type(value) in options:
        return value
    option = next(o for o in options if o is not type(None))
    origin, arguments = typing.get_origin(option), typing.get_args(option)
    if is_dataclass(option):
        return _build(typing.cast(type, option), value, location)
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if origin is Mapping and isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return types.MappingProxyType(value)
    if option is float and type(value) is int:
        return float(value)
    expected = ", ".join(map(str, arguments)) if origin is Literal else getattr(option, "__name__", option)
    raise ConfigError(f"{location}={value!r}: expected {expected}")
