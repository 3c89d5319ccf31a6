"""Build a run from its configuration: all strategies, checked together before data or weights are read.

`build(overrides)` takes milliseconds and imports no torch, so a wrong value is reported at once, by key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pw.data import Source
from pw.data.degradation import Degradation
from pw.io.arguments import ConfigError
from pw.io.files import digest, sha256
from pw.io.lazy import Tensor
from pw.io.paths import ROOT
from pw.method.objective import Objective
from pw.method.schedule import Schedule
from pw.method.solver import Guidance, Solver, custom_grid, inference_grid, wan_grid
from pw.nn import options
from pw.run import settings, signatures
from pw.run.compose import Config, compose_run, override_key
from pw.run.cross_checks import cross_check
from pw.run.strategies import coerce, from_values, is_chosen, make, strategy_class

LARGEST = 1_000_000  # bytes of a shipped start, which git is asked to keep
SETTINGS = {
    "scale": settings.Scale,
    "train": settings.Train,
    "optimizer": settings.Optimizer,
    "sampling": settings.Sampling,
    "trainer": settings.Trainer,
    "start": settings.Recipe,
}
STRATEGIES = ("backbone", "codec", "schedule", "degradation", "solver", "guidance")
OPTIONAL = ("text", "injector")  # strategies whose choice may be `none`
OBJECTIVE_PARTS = ("turns", "step_sampler", "weighting", "target")


@dataclass(frozen=True)
class Card:
    """A start that comes with the repository: weights trained long by the recipe of `conf/start/<name>.yaml`.

    pw/starts/<name>.safetensors    EMA weights, below 1 MB
    pw/starts/<name>.json           the card, in `about`: recipe, training and checksum

    `make start name=<name>` writes both. A card is valid as long as the recipe composes to the configuration that it
    names, even if code changes; a test repeats the first updates and fails when the current code no longer reproduces
    them.
    """

    name: str
    file: Path
    updates: int
    configuration: str
    sha256: str
    about: dict[str, Any]

    @property
    def words(self) -> str:
        """For a plan and a table."""
        return f"shipped, {self.updates:,} updates, sha256 {self.sha256[:12]}"


@dataclass(frozen=True)
class Run:
    """Everything about one run, checked: a training (`training_signature`) and how it is sampled (`signature`)."""

    config: Config
    stage: Literal["anchor", "hires"]
    seed: int
    scale: settings.Scale
    train: settings.Train
    optimizer: settings.Optimizer
    sampling: settings.Sampling
    trainer: settings.Trainer
    start: settings.Recipe
    backbone: options.Wan
    codec: options.SpaceToDepth | options.WanVAE
    text: options.UMT5 | None
    source: Source
    schedule: Schedule
    objective: Objective
    injector: options.Injector | options.Add | None
    degradation: Degradation
    solver: Solver
    guidance: Guidance
    anchor_degradation: Degradation
    anchor_recipe: settings.Recipe | None
    code: Literal["current", "as_trained"]
    # finished trainings to reuse although code has changed: `trained_key` -> signatures, newest first
    trained: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    shipped: Card | None = None  # the weights of a start that come with the repository
    note: str = ""  # why a start is not the shipped one

    @cached_property
    def start_run(self) -> Run | None:
        """The training whose EMA weights this one departs from."""
        return None if self.start.name == "none" else _start_run(self)

    @property
    def departs_from_wan(self) -> bool:
        """Whether training starts from Wan's transformer: no other start, and Wan's text encoder."""
        return self.start.name == "none" and self.text is not None

    @cached_property
    def anchor_run(self) -> Run | None:
        """The first stage that generates this run's anchors, if they are generated."""
        if self.anchor_recipe is None:
            return None
        return _recipe_run(self.anchor_recipe, self, "anchors", f"sampling.count={self.sampling.count}")

    @cached_property
    def solution(self) -> Run:
        """The many-step solution of the same weights from the same noise, the reference for few steps."""
        steps = self.sampling.solution_steps
        changes = {"num_steps": steps, "stride": "zero", "shift": None, "timesteps": None, "grid": "uniform"}
        config = self.config.with_values({f"sampling.{key}": value for key, value in changes.items()})
        if config.choices["solver"] == "euler":
            return replace(assemble(config), trained=self.trained)
        others = [o for o in config.overrides if override_key(o).split(".")[0] != "solver"]
        return replace(build([*others, "solver=euler"]), trained=self.trained)

    def with_seed(self, seed: int, start_seed: int | None = None) -> Run:
        """The same run from another seed, and its start from another if one is given."""
        return self.with_values({"seed": seed} | ({} if start_seed is None else {"start.seed": start_seed}))

    def with_values(self, changes: Mapping[str, Any]) -> Run:
        """The same run with other values, by dotted path, see `Config.with_values`. Raises ConfigError."""
        return replace(assemble(self.config.with_values(changes)), trained=self.trained)

    values_as_read = cached_property(signatures.values_as_read)
    configuration_signature = cached_property(signatures.of_configuration)
    training_code = cached_property(signatures.training_code)
    sampling_code = cached_property(signatures.sampling_code)
    evaluation_code = cached_property(signatures.evaluation_code)
    degradation_signature = cached_property(signatures.of_degradation)
    _current_signature = cached_property(signatures.of_training)
    sample_signature = signatures.of_samples  # of any evaluation seed: one first stage makes the anchors of several
    evaluation_signature = signatures.of_evaluation

    @property
    def trained_key(self) -> str:
        """The key of a training without its code: configuration and accelerator."""
        return f"{self.configuration_signature} {self.trainer.accelerator}"

    @cached_property
    def training_signature(self) -> str:
        """8 hex digits of all that can change the trained weights: configuration, code, and start.

        For a shipped start a digest of its weights; with `code=as_trained` the signature of the finished training.
        """
        if self.shipped is not None:
            return digest({"shipped": self.shipped.sha256})
        earlier = self.trained.get(self.trained_key, ()) if self.trained else ()
        return earlier[0] if earlier and self._current_signature not in earlier else self._current_signature

    @property
    def is_as_trained(self) -> bool:
        """Whether this is a finished training of another version of the code."""
        return self.shipped is None and self.training_signature != self._current_signature

    def pinned(self, signature: str) -> Run:
        """The same run, with the weights of the training of that signature."""
        return replace(self, trained={**self.trained, self.trained_key: (signature,)})

    @cached_property
    def signature(self) -> str:
        """8 hex digits of all that can change the sampled clips of the run's own seed."""
        return self.sample_signature(self.seed)

    def feeds_strides(self) -> bool:
        """Whether sampling gives the network the grid's strides; `auto` does if it was trained on strides."""
        if self.sampling.stride == "auto":
            return self.objective.trains_strides
        return self.sampling.stride == "grid"

    def grid(self) -> Tensor:
        """The inference grid: timesteps [num_steps + 1], float64."""
        if self.sampling.grid == "wan":
            return wan_grid(self.sampling.num_steps, self.schedule, self.sampling.shift)
        if self.sampling.timesteps is not None:
            return custom_grid(self.sampling.timesteps, self.schedule)
        return inference_grid(self.sampling.num_steps, self.schedule, self.sampling.shift, self.sampling.start)


def _recipe_run(recipe: settings.Recipe, by: Run, group: str, *more: str) -> Run:
    # `trainer` changes no result; `code` and `start.shipped` apply to a run and all runs that it needs
    inherit = {*recipe.inherit, "trainer", "code"}
    inherited = []
    for override in by.config.overrides:
        key = override_key(override)
        of_group, dot, _ = key.partition(".")
        if key == "start.shipped" or inherit & {of_group, f"{of_group}{dot}"}:
            inherited.append(override)
    overrides = [*recipe.overrides, f"train.updates={recipe.updates}", f"seed={recipe.seed}", *more]
    try:
        if not compose_run([*inherited, *overrides])["train"]["checkpoint_activations"]:
            inherited = [o for o in inherited if override_key(o) != "trainer.offload_activations"]
        return replace(build([*inherited, *overrides]), trained=by.trained)
    except ConfigError as error:
        raise error.with_prefix(f"{group} ({recipe.name}): ") from error


def _start_run(run: Run) -> Run:
    """The start of a run: the shipped weights if their recipe is the same, tuned if only the data differs; otherwise
    trained from the recipe."""
    recipe = run.start
    start = _recipe_run(recipe, run, "start")
    card = read_card(recipe.name) if recipe.shipped else None
    if card is None:
        return start
    if card.configuration == start.configuration_signature:
        return replace(start, shipped=card)
    alone = _recipe_run(replace(recipe, inherit=()), run, "start")
    if card.configuration != alone.configuration_signature:
        return replace(start, note="the shipped one is of another recipe")
    if any(getattr(alone, part) != getattr(start, part) for part in ("backbone", "codec", "injector")):
        return replace(start, note="the shipped one is of another network")
    if not recipe.tuning:
        return replace(start, note="start.tuning=0: the shipped one is not to be tuned")
    departing = [o for o in recipe.overrides if override_key(o) != "start"]
    departing += [f"start={run.config.choices['start']}", "start.inherit=[]", f"optimizer.lr={recipe.tuning_lr}"]
    departing += [f"start.updates={recipe.updates}", f"start.seed={recipe.seed}"]
    tuned = _recipe_run(replace(recipe, overrides=tuple(departing), updates=recipe.tuning), run, "start")
    assert tuned.start_run is not None
    return tuned if tuned.start_run.shipped else replace(start, note="the shipped one is of another recipe")


def read_card(name: str) -> Card | None:
    """The shipped start of a name, None if there is none. PW_STARTS names another folder than pw/starts.

    Raises ConfigError when it is damaged.
    """
    starts = Path(os.environ.get("PW_STARTS") or ROOT / "pw" / "starts")
    path, weights = starts / f"{name}.json", starts / f"{name}.safetensors"
    if not path.exists():
        return None
    remedy = f"put both files back (git checkout {starts}), or set start.shipped=false to train it from its recipe"
    try:
        about = json.loads(path.read_text())
        card = Card(name, weights, about["updates"], about["configuration"], about["sha256"], about)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is not the card of a start ({error!r}); {remedy}") from error
    actual = sha256(weights) if weights.exists() else "none"
    if actual != card.sha256:
        raise ConfigError(f"{weights}: sha256 is {actual[:12]}, its card says {card.sha256[:12]}; {remedy}")
    return card


def build(overrides: Sequence[str]) -> Run:
    """Compose overrides, build and cross-check all strategies. Raises ConfigError naming the key and the remedy."""
    return assemble(compose_run(overrides))


def assemble(config: Config) -> Run:
    """Build all strategies of a composed configuration and cross-check them. Raises ConfigError."""
    values = config.values
    anchors = values["anchors"]
    parts = {key: from_values(kind, values[key], key) for key, kind in SETTINGS.items()}
    parts |= {group: make(group, values[group]) for group in STRATEGIES}
    parts |= {group: make(group, values[group]) if is_chosen(values[group]) else None for group in OPTIONAL}
    anchor_degradation = parts["degradation"]
    if anchors["degradation"]:
        anchor_degradation = make("degradation", anchors["degradation"], "anchors.degradation")
    anchor_recipe = None
    if coerce(anchors["source"], Literal["reference", "generated"], "anchors.source") == "generated":
        anchor_recipe = from_values(settings.Recipe, anchors["stage"], "anchors.stage")
    run = Run(
        config=config,
        stage=coerce(values["stage"], Literal["anchor", "hires"], "stage"),
        seed=coerce(values["seed"], int, "seed"),
        code=coerce(values["code"], Literal["current", "as_trained"], "code"),
        source=make("data", values["data"]),
        objective=_objective(config),
        anchor_degradation=anchor_degradation,
        anchor_recipe=anchor_recipe,
        **parts,
    )
    cross_check(run)
    return run


def _objective(config: Config) -> Objective:
    """The objective, with the parts that its class has fields for."""
    values, choices = config.values, config.choices
    cls = strategy_class("objective", values["objective"])
    needed = [part.name for part in fields(cls) if part.name in OBJECTIVE_PARTS]
    for part in OBJECTIVE_PARTS:
        if part in needed and not is_chosen(values[part]):
            objective = f"objective={choices['objective']}"
            raise ConfigError(f"{part}=none: {objective} needs one; choose a file of conf/{part}/")
        if part not in needed and is_chosen(values[part]):
            raise ConfigError(
                f"{part}={choices[part]}: objective={choices['objective']} has no use for a {part}; leave it out, or "
                "set objective=shortcut"
            )
    parts = {}
    for part in needed:
        has_seed = any(field.name == "seed" for field in fields(strategy_class(part, values[part])))
        seed = {"seed": values["seed"]} if has_seed and "seed" not in values[part] else {}
        parts[part] = make(part, values[part], **seed)
    return make("objective", values["objective"], **parts)
