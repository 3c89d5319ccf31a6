"""The systems of the paper's tables: a card each, and what makes their videos.

A card (`cards/<name>.yaml`) is one row of the tables: the setting in which the paper compares the system (its native
one, sec. 8.2), its licence, where it comes from, how it is run, and how that differs from what the paper may have done.
Four kinds:

    diffusers    generated here, with diffusers (`diffusers_pipelines`)
    pixelwizard  generated here, by one call of `pw generate` (`external`)
    command      a program of its own environment, started once per video (`external`)
    videos       videos that somebody else made, registered (`jobs.register`)

A folder of videos of a system (`jobs` says what lies in it) is what the tables read.
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
    """A video that could not be made; the message says which and why."""


@dataclass(frozen=True)
class Setting:
    """What is asked of a system: size in px, frames, rate in 1/s; steps, guidance scale and shift where it has them.

    Of videos that others made, size, frames and rate may be None: not known, so not checked.
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

    def shown(self) -> tuple[str, str, str]:
        """Size, frames and rate as they are printed; what is not known is a question mark."""
        width, height, frames, fps = (
            "?" if value is None else f"{value:g}" for value in (self.width, self.height, self.frames, self.fps)
        )
        return f"{width}x{height}", frames, fps

    def __str__(self) -> str:
        size, frames, fps = self.shown()
        return f"{size}, {frames} frames at {fps} fps{'' if self.steps is None else f', {self.steps} steps'}"


@dataclass(frozen=True)
class Licence:
    """Of code and weights; a restricted one must be accepted by who runs it."""

    name: str
    restricted: bool
    terms: str | None


@dataclass(frozen=True)
class Parameters:
    """Number of parameters in billions, as the source says."""

    billions: float
    source: str


@dataclass(frozen=True)
class Repository:
    """Weights on the Hugging Face hub, or None where they are elsewhere; the revision if one is known."""

    repository: str | None
    revision: str | None


@dataclass(frozen=True)
class Diffusers:
    """How diffusers runs it.

    pipeline   class of diffusers
    scheduler  class (None: the weights' own) and what is changed in its configuration
    vae        precision of the VAE: float32 or bfloat16
    arguments  of the pipeline's call, beside size, steps, guidance and prompt
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
    """How a program of its own makes one video.

    command     its words, with {fields} (see `external.FIELDS`), run in its checkout without a shell
    output      pattern of the video's name below {out}
    takes       a prompt, or a video to be enlarged
    writes_fps  rate that the program writes into the file, None: the asked one
    driver      what a program that the user has to write must do, where the repository offers no such command
    """

    command: str
    output: str
    takes: Literal["prompt", "video"]
    writes_fps: float | None
    driver: str | None


@dataclass(frozen=True)
class System:
    """A row of the tables: see the package's docstring.

    setting     the native setting; `setting_source` says who says so
    rows        table -> the label the paper prints
    deviations  how running it so differs from its authors' way, or from what the paper reports
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
        """Whether it makes a video from a video, not from a prompt."""
        return isinstance(self.adapter, ExternalCommand) and self.adapter.takes == "video"

    @property
    def wants(self) -> str:
        """What `make system` has to be given for it, beside its name."""
        if self.kind == "videos":
            return "videos=DIR"
        return "inputs=DIR" if self.enlarges else "prompts=FILE"


ADAPTERS = {"diffusers": Diffusers, "pixelwizard": PixelWizard, "command": ExternalCommand, "videos": None}


def names() -> list[str]:
    return sorted(path.stem for path in CARDS.glob("*.yaml"))


def find(name: str) -> Path:
    """The card's file of a system; a .yaml is a card of your own. Raises ConfigError for a name that there is not."""
    if name.endswith(".yaml") and Path(name).is_file():
        return Path(name)
    if name not in names():
        raise ConfigError(
            f"name={name}: there is no such system; there are {', '.join(names())}, or a card of your own"
        )
    return CARDS / f"{name}.yaml"


def load(name: str) -> System:
    return read_card(find(name))


def read_card(path: Path) -> System:
    """A card's file, checked. Raises ConfigError naming the file and the key that is unknown, missing or wrong."""
    try:
        card = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a card ({error})") from error
    kind = str(card.get("kind")) if isinstance(card, dict) else ""
    if kind not in ADAPTERS:
        raise ConfigError(f"{path}: kind={kind}: one of {', '.join(ADAPTERS)}")
    if (adapter := ADAPTERS[kind]) is not None:
        card["adapter"] = _build(adapter, card.get("adapter"), f"{path}: adapter")
    elif card.get("adapter") is not None:
        raise ConfigError(f"{path}: adapter: a system of kind {kind} has none; leave it at null")
    system = _build(System, card, str(path))
    setting = system.setting
    if kind != "videos" and None in (setting.width, setting.height, setting.frames, setting.fps):
        raise ConfigError(f"{path}: setting={setting}: what is made here has a known size, length and rate")
    if path.stem not in (system.name, "card"):  # card.yaml is the copy in a folder of videos
        raise ConfigError(f"{path}: name={system.name}: a card is called as its file")
    return system


def _build(cls: type, given: Any, where: str) -> Any:
    """A dataclass from a mapping with exactly its keys, nested ones too."""
    hints = typing.get_type_hints(cls)
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: wants {', '.join(hints)}, not {given!r}")
    if unknown := given.keys() - hints.keys():
        raise ConfigError(f"{where}: unknown keys {', '.join(sorted(map(str, unknown)))}; known: {', '.join(hints)}")
    if missing := hints.keys() - given.keys():
        raise ConfigError(f"{where}: missing keys {', '.join(sorted(missing))} (null where there is nothing to say)")
    return cls(**{key: _value(hint, given[key], f"{where}: {key}") for key, hint in hints.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotation wants it: a scalar, a tuple of strings, a mapping, a dataclass, or one of several."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if type(value) in options:
        return value
    option = next(o for o in options if o is not type(None))
    origin, arguments = typing.get_origin(option), typing.get_args(option)
    if is_dataclass(option):
        return _build(typing.cast(type, option), value, where)
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if origin is Mapping and isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return types.MappingProxyType(value)
    if option is float and type(value) is int:
        return float(value)
    wants = ", ".join(map(str, arguments)) if origin is Literal else getattr(option, "__name__", option)
    raise ConfigError(f"{where}={value!r}: wants {wants}")
