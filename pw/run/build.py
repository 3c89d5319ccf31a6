"""Build a run from its configuration: all strategies, checked together, without data or weights.

`build(overrides)` takes milliseconds and imports no torch: a wrong value is reported at once, with its key.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pw.data import Source
from pw.data.buckets import BucketMix
from pw.data.degradation import Degradation
from pw.io.arguments import ConfigError, Seed
from pw.io.files import digest, parse_json
from pw.io.lazy import Tensor
from pw.io.manifest import checksum
from pw.io.paths import ROOT
from pw.method.guidance import Baked, Guidance
from pw.method.objective import Objective
from pw.method.schedule import Schedule
from pw.method.solver import Phase, Solver, custom_grid, inference_grid, phases, wan_grid
from pw.method.target import TwoSteps
from pw.nn import options
from pw.run import settings, signatures
from pw.run.compose import Config, compose_run, override_key
from pw.run.cross_checks import cross_check
from pw.run.strategies import coerce, from_values, is_chosen, make, strategy_class

LARGEST = 8_000_000  # bytes of a shipped start, which is in git
SETTINGS = {
    "scale": settings.Scale,
    "train": settings.Train,
    "optimizer": settings.Optimizer,
    "sampling": settings.Sampling,
    "trainer": settings.Trainer,
    "start": settings.Recipe,
}
STRATEGIES = ("backbone", "codec", "schedule", "degradation", "solver", "guidance")
OPTIONAL = ("text", "injector", "attention", "tracking")  # strategies whose choice may be `none`, or `dense`
OBJECTIVE_PARTS = ("turns", "step_sampler", "weighting", "target")


@dataclass(frozen=True)
class Card:
    """A start in the repository: weights of a long training by the recipe of `conf/start/<name>.yaml`.

    pw/starts/<name>.safetensors    EMA weights, at most 8 MB; `<name>-<scale>` for another scale than tiny
    pw/starts/<name>.json           the card, in `content`: recipe, training and checksum

    Of one that was trained on shards, `without_data` is its configuration with data=none: who has other clips, or none,
    finds it by that (D118).

    `make start name=<name>` writes both. A card is valid while the recipe composes to its `configuration`, even if code
    changes; a test repeats the first updates and fails when the current code does not reproduce them.
    """

    name: str
    file: Path
    updates: int
    configuration: str
    sha256: str
    content: dict[str, Any]

    @property
    def configurations(self) -> set[str]:
        """The configuration signatures of runs that it is a start of."""
        return {self.configuration, self.content.get("without_data", self.configuration)}

    @property
    def apart_from_data(self) -> list[str]:
        """The overrides with which a recipe has the configuration `without_data`; none where clips are procedural."""
        return [f"scale={self.content['scale']}", "data=none"] if "without_data" in self.content else []

    @property
    def words(self) -> str:
        """A description for plans and tables."""
        return f"shipped, {self.updates:,} updates, sha256 {self.sha256[:12]}"


@dataclass(frozen=True)
class Run:
    """One run, checked: a training (`training_signature`) and its sampling (`signature`)."""

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
    codec: options.SpaceToDepth | options.LappedCosine | options.WanVAE
    text: options.UMT5 | None
    source: Source
    schedule: Schedule
    objective: Objective
    injector: options.Injector | options.Add | None
    attention: options.Attention | None
    degradation: Degradation
    solver: Solver
    guidance: Guidance | Baked
    tracking: settings.Tracking | None
    anchor_degradation: Degradation
    anchor_recipe: settings.Recipe | None
    code: Literal["current", "as_trained"]
    # to reuse although code has changed: `training_key` -> signatures, newest first
    finished_trainings: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    card: Card | None = None  # of a start whose weights are in the repository
    note: str = ""  # why this start does not use the shipped weights

    @cached_property
    def start_run(self) -> Run | None:
        """The training whose EMA weights are the start of this one."""
        return None if self.start.name == "none" else _start_run(self)

    @property
    def starts_from_wan(self) -> bool:
        """Whether training starts from Wan's transformer: there is no other start, and Wan's text encoder is used."""
        return self.start.name == "none" and self.text is not None

    @cached_property
    def anchor_run(self) -> Run | None:
        """The first stage that generates the anchors of this run; None if anchors are not generated."""
        if self.anchor_recipe is None:
            return None
        return _recipe_run(self.anchor_recipe, self, "anchors", f"sampling.count={self.sampling.count}")

    @cached_property
    def solution(self) -> Run | None:
        """The many-step solution from the same weights and noise, the reference for few steps. Where the run is guided
        in some steps, or by its training, it is guided in all. None where the run takes as many steps itself, or jumps
        to data alone were trained, and no step that a solution is made of."""
        if self.sampling.num_steps >= self.sampling.solution_steps or self.objective.jumps_to_data == "only":
            return None
        changes: dict[str, Any] = dict.fromkeys(("shift", "timesteps", "sizes"))
        changes |= {"num_steps": self.sampling.solution_steps, "stride": "zero", "grid": "uniform", "init": "noise"}
        if self.sampling.init == "anchor":  # whose grid began below pure noise
            changes["start"] = 1.0
        values = {f"sampling.{key}": value for key, value in changes.items()}
        if self.guidance.first_steps is not None:
            values |= {"guidance.first_steps": None, "guidance.later": "unguided"}
        config = self.config.with_values(values)
        choices = {} if config.choices["solver"] == "euler" else {"solver": ["solver=euler"]}
        if (target := self.target_guidance) is not None:  # at stride 0 the network is not guided
            scale, drop = f"guidance.scale={target.guidance_scale}", f"guidance.drop={target.guidance_drop}"
            choices["guidance"] = ["guidance=on", scale, drop]
        if not choices:
            return replace(assemble(config), finished_trainings=self.finished_trainings)
        others = [o for o in config.overrides if override_key(o).split(".")[0] not in choices]
        overrides = [*others, *(o for chosen in choices.values() for o in chosen)]
        return replace(build(overrides), finished_trainings=self.finished_trainings)

    def with_seed(self, seed: int, start_seed: int | None = None) -> Run:
        """The same run with another seed, and with `start_seed` for its start."""
        return self.with_values({"seed": seed} | ({} if start_seed is None else {"start.seed": start_seed}))

    def with_values(self, changes: Mapping[str, Any]) -> Run:
        """The same run with other values by dotted path (`Config.with_values`). Raises ConfigError."""
        return replace(assemble(self.config.with_values(changes)), finished_trainings=self.finished_trainings)

    typed_values = cached_property(signatures.typed_values)
    configuration_signature = cached_property(signatures.of_configuration)
    training_code = cached_property(signatures.training_code)
    sampling_code = cached_property(signatures.sampling_code)
    evaluation_code = cached_property(signatures.evaluation_code)
    degradation_signature = cached_property(signatures.of_degradation)
    _current_signature = cached_property(signatures.of_training)
    sample_signature = signatures.of_samples  # takes an evaluation seed: one first stage makes anchors for several
    evaluation_signature = signatures.of_evaluation

    @property
    def training_key(self) -> str:
        """Identifies a training in every version of the code: configuration and accelerator."""
        return f"{self.configuration_signature} {self.trainer.accelerator}"

    @cached_property
    def training_signature(self) -> str:
        """8 hex digits of everything that can change the trained weights: configuration, code and start.

        For a shipped start: digest of its weights. With `code=as_trained`: signature of the finished training.
        """
        if self.card is not None:
            return digest({"shipped": self.card.sha256})
        candidates = self.finished_trainings.get(self.training_key, ()) if self.finished_trainings else ()
        return candidates[0] if candidates and self._current_signature not in candidates else self._current_signature

    @property
    def is_as_trained(self) -> bool:
        """Whether this is a finished training of another version of the code."""
        return self.card is None and self.training_signature != self._current_signature

    def with_training(self, signature: str) -> Run:
        """The same run, with the weights of the training that has this signature."""
        return replace(self, finished_trainings={**self.finished_trainings, self.training_key: (signature,)})

    @cached_property
    def signature(self) -> str:
        """8 hex digits of everything that can change the clips sampled with the seed of the run."""
        return self.sample_signature(self.seed)

    @property
    def target_guidance(self) -> TwoSteps | None:
        """The target of the objective if it is guided (`target.guidance`)."""
        target = vars(self.objective).get("target")
        return target if isinstance(target, TwoSteps) and target.guidance != "none" else None

    @property
    def has_texts(self) -> bool:
        """Whether clips have texts other than the empty prompt."""
        return self.text is not None or self.config["data"].get("captions", "none") != "none"

    def feeds_strides(self) -> bool:
        """Whether the network gets the strides of the grid as input; with `auto`, if it was trained on strides."""
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

    def phases(self) -> list[Phase]:
        """The steps of the grid, divided where their size changes."""
        return phases(self.grid(), self.sampling.sizes)

    @property
    def mix(self) -> BucketMix | None:
        """The buckets of the training (`data.buckets`)."""
        return getattr(self.source, "mix", None)

    def in_buckets(self) -> list[tuple[Run, float]]:
        """(the run at the size of a bucket, the share of batches that the bucket has); itself without buckets."""
        if self.mix is None:
            return [(self, 1.0)]
        runs = []
        for frames, height, width in self.mix.buckets:
            anchor_height, anchor_width = self.anchor_size((height, width))
            anchor = {"anchor_height": anchor_height, "anchor_width": anchor_width}
            runs.append(replace(self, scale=replace(self.scale, frames=frames, height=height, width=width, **anchor)))
        return [*zip(runs, self.mix.shares, strict=True)]

    def anchor_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of the anchor of clips of a size, px: the share of pixels that the scale's anchor has, in the
        aspect ratio of the clips, in whole tokens."""
        if size == self.scale.size:
            return self.scale.anchor_size
        share = math.sqrt(math.prod(self.scale.anchor_size) / math.prod(self.scale.size))
        units = [self.codec.factor * patch for patch in self.backbone.patch_size[1:]]
        rows, columns = (max(1, round(n * share / unit)) * unit for n, unit in zip(size, units, strict=True))
        return rows, columns

    def latent_size(self, share: float, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """(rows, columns) of the stage's latent at a share of its full size: the nearest whole tokens, a half down.

        size  (rows, columns) of the video, px; None: those of the scale
        Raises ValueError if that leaves none.
        """
        full = size or (self.scale.anchor_size if self.stage == "anchor" else self.scale.size)
        units = [self.codec.factor * patch for patch in self.backbone.patch_size[1:]]
        rows, columns = (math.ceil(length // unit * share - 0.5) for length, unit in zip(full, units, strict=True))
        if min(rows, columns) < 1:
            raise ValueError(f"{share:g} of {full[0]} x {full[1]} px leaves no whole token of {units[0]} x {units[1]}")
        return rows * self.backbone.patch_size[1], columns * self.backbone.patch_size[2]


def _recipe_run(recipe: settings.Recipe, run: Run, group: str, *extra: str) -> Run:
    """The run of a recipe that `run` needs, with the overrides that it inherits from `run`."""
    # `trainer` and `tracking` change no result; `code` and `start.shipped` apply to a run and all runs that it needs
    groups = {*recipe.inherit, "trainer", "tracking", "code"}
    inherited_overrides = []
    for override in run.config.overrides:
        key = override_key(override)
        group_of_key, dot, _ = key.partition(".")
        if key == "start.shipped" or groups & {group_of_key, f"{group_of_key}{dot}"}:
            inherited_overrides.append(override)
    overrides = [*recipe.overrides, f"train.updates={recipe.updates}", f"seed={recipe.seed}", *extra]
    try:
        if not compose_run([*inherited_overrides, *overrides])["train"]["checkpoint_activations"]:
            inherited_overrides = [o for o in inherited_overrides if override_key(o) != "trainer.offload_activations"]
        return replace(build([*inherited_overrides, *overrides]), finished_trainings=run.finished_trainings)
    except ConfigError as error:
        raise error.with_prefix(f"{group} ({recipe.name}): ") from error


def _start_run(run: Run) -> Run:
    """The start of a run: the shipped weights if their recipe is the same; tuned if only the data differs; else trained
    from the recipe."""
    recipe = run.start
    start = _recipe_run(recipe, run, "start")
    card = read_card(recipe.name, run.config.choices["scale"]) if recipe.shipped else None
    if card is None:
        return start
    if start.configuration_signature in card.configurations:
        return replace(start, card=card)
    independent = _recipe_run(replace(recipe, inherit=()), run, "start", *card.apart_from_data)
    if independent.configuration_signature not in card.configurations:
        return replace(start, note="the shipped start has another recipe")
    if any(getattr(independent, part) != getattr(start, part) for part in ("backbone", "codec", "injector")):
        return replace(start, note="the shipped start has another network")
    if not recipe.tuning:
        return replace(start, note="start.tuning=0: the shipped start is not tuned")
    tuning_overrides = [o for o in recipe.overrides if override_key(o) != "start"]
    tuning_overrides += [f"start={run.config.choices['start']}", "start.inherit=[]", f"optimizer.lr={recipe.tuning_lr}"]
    tuning_overrides += [f"start.updates={recipe.updates}", f"start.seed={recipe.seed}"]
    if card.apart_from_data:
        tuning_overrides.append(f"start.overrides={json.dumps([*recipe.overrides, *card.apart_from_data])}")
    tuned = _recipe_run(replace(recipe, overrides=tuple(tuning_overrides), updates=recipe.tuning), run, "start")
    assert tuned.start_run is not None
    return tuned if tuned.start_run.card else replace(start, note="the shipped start has another recipe")


def start_name(name: str, scale: str) -> str:
    """The name of the files of a start in pw/starts."""
    return name if scale == "tiny" else f"{name}-{scale}"


def read_card(name: str, scale: str = "tiny") -> Card | None:
    """The card of a shipped start, None if there is none: of the scale, else of tiny; PW_STARTS replaces pw/starts.

    Raises ConfigError when it is damaged.
    """
    starts = Path(os.environ.get("PW_STARTS") or ROOT / "pw" / "starts")
    if (starts / f"{start_name(name, scale)}.json").exists():
        name = start_name(name, scale)
    path, weights = starts / f"{name}.json", starts / f"{name}.safetensors"
    if not path.exists():
        return None
    remedy = f"put both files back (git checkout {starts}), or set start.shipped=false to train it from its recipe"
    try:
        content = parse_json(path.read_text())
        card = Card(name, weights, content["updates"], content["configuration"], content["sha256"], content)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is not the card of a start ({error!r}); {remedy}") from error
    actual = checksum(weights) if weights.is_file() else "none"
    if actual != card.sha256:
        raise ConfigError(f"{weights}: sha256 is {actual[:12]}, its card says {card.sha256[:12]}; {remedy}")
    return card


def build(overrides: Sequence[str]) -> Run:
    """Compose overrides, build all strategies and check them together. Raises ConfigError with key and remedy."""
    return assemble(compose_run(overrides))


def assemble(config: Config) -> Run:
    """Build all strategies of a composed configuration and check them together. Raises ConfigError."""
    values = config.values
    anchors = values["anchors"]
    parts = {key: from_values(kind, values[key], key) for key, kind in SETTINGS.items()}
    parts |= {group: make(group, values[group]) for group in STRATEGIES}
    parts |= {group: make(group, values[group]) if is_chosen(values[group]) else None for group in OPTIONAL}
    anchor_degradation = parts["degradation"]
    if anchors["degradation"] is not None:
        anchor_degradation = make("degradation", anchors["degradation"], "anchors.degradation")
    anchor_recipe = None
    if coerce(anchors["source"], Literal["reference", "generated"], "anchors.source") == "generated":
        anchor_recipe = from_values(settings.Recipe, anchors["stage"], "anchors.stage")
    run = Run(
        config=config,
        stage=coerce(values["stage"], Literal["anchor", "hires"], "stage"),
        seed=coerce(values["seed"], Seed, "seed"),
        code=coerce(values["code"], Literal["current", "as_trained"], "code"),
        source=_source(config),
        objective=_objective(config),
        anchor_degradation=anchor_degradation,
        anchor_recipe=anchor_recipe,
        **parts,
    )
    cross_check(run)
    return run


def _source(config: Config) -> Source:
    """The clips. Raises ConfigError, where shards are missing with the command that makes those of the scale."""
    data, scale = config["data"], config.choices["scale"]
    try:
        return make("data", data)
    except ConfigError as error:
        if config.choices["data"] == "shards" and not Path(data["urls"] or "").exists() and scale != "tiny":
            made = f"`pw data path=DIR scale={scale}`, data.urls=data/shards-{scale}"
            raise error.with_prefix(f"scale={scale} trains on your own videos ({made}): ") from error
        raise


def _objective(config: Config) -> Objective:
    """The objective, with those parts that are fields of its class."""
    values, choices = config.values, config.choices
    cls = strategy_class("objective", values["objective"])
    part_names = [part.name for part in fields(cls) if part.name in OBJECTIVE_PARTS]
    for part in OBJECTIVE_PARTS:
        if part in part_names and not is_chosen(values[part]):
            objective = f"objective={choices['objective']}"
            raise ConfigError(f"{part}=none: {objective} needs one; choose a file of conf/{part}/")
        if part not in part_names and is_chosen(values[part]):
            raise ConfigError(
                f"{part}={choices[part]}: objective={choices['objective']} does not use a {part}; leave it out, or "
                "set objective=shortcut"
            )
    parts = {}
    for part in part_names:
        has_seed = any(field.name == "seed" for field in fields(strategy_class(part, values[part])))
        seed = {"seed": values["seed"]} if has_seed and "seed" not in values[part] else {}
        parts[part] = make(part, values[part], **seed)
    return make("objective", values["objective"], **parts)
