"""One run, from its configuration: every strategy made and cross-checked before data or weights are touched.

`build(overrides)` takes milliseconds and imports no torch, so a wrong value is reported at once, by key.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pw.data import Source
from pw.data.degradation import Degradation
from pw.io.files import digest
from pw.io.wan_weights import WeightsError, fingerprint, locate
from pw.method.objective import Flow, Shortcut
from pw.method.schedule import Schedule
from pw.method.solver import Euler, Guidance, custom_grid, inference_grid, wan_grid
from pw.nn import options
from pw.run import settings
from pw.run.code import classes_of, code_hash
from pw.run.compose import Config, ConfigError, compose_run, override_key
from pw.run.shipped import Card, read_card

if TYPE_CHECKING:
    from torch import Tensor

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
SHORTCUT_PARTS = ("turns", "step_sampler", "weighting", "target")
# What cannot change the weights that a training ends with.
NOT_TRAINING = {"sampling", "solver", "guidance", "anchors", "trainer", "code"}
# What cannot change the clips that are sampled.
NOT_SAMPLING = {"batch_size", "solution_steps", "solution_count"}
# Where the clips lie, which their fingerprint says, and what the scale says.
NOT_DATA = {"urls", "width"}
# What schedule and injector say again.
NOT_SCALE = {"shift", "anchor_shift", "injector_blocks", "injector_hidden", "norm_groups"}
# The code of a stage: that of a training is all but how it is sampled, and the other way round.
STAGES = {"anchor": "pw.stages.anchor.AnchorModel", "hires": "pw.stages.hires.HiresSynth"}
SAMPLES = {"pw.stages.stage.Stage.sample", *(f"{stage}.synthesise" for stage in STAGES.values())}
TRAINS = {
    *(f"pw.stages.stage.Stage.{name}" for name in ("training_step", "loss", "optimizer_step", "configure_optimizers")),
    *(f"{stage}.prepare" for stage in STAGES.values()),
}
# Where and how it computes, which changes a result by rounding alone.
PLACES = {
    *("pw.nn.networks.compile_blocks", "pw.nn.networks.use_kernel", "pw.nn.backbone.on_host"),
    *("pw.nn.context.share_tokens", "pw.nn.context.groups_of"),
}
# What a run has no use for unless it chose it, by the value of a key.
CHOSEN = {
    "gate": {
        "scalar": "pw.nn.injector.ScalarGate",
        "channelwise": "pw.nn.injector.ChannelGate",
        "fixed": "pw.nn.injector.FixedGate",
    },
    "codec": {"SpaceToDepth": "pw.nn.codec.SpaceToDepthCodec", "WanVAE": "pw.nn.codec.WanCodec"},
}


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
    objective: Flow | Shortcut
    injector: options.Injector | options.Add | None
    degradation: Degradation
    solver: Euler
    guidance: Guidance
    anchor_degradation: Degradation
    anchor_recipe: settings.Recipe | None
    code: Literal["current", "as_trained"]
    # finished trainings to be taken whatever code made them: `trained_key` -> signatures, the newest first
    trained: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, repr=False)
    shipped: Card | None = None  # the weights of a start that come with the repository
    note: str = ""  # why a start is not the shipped one

    @cached_property
    def start_run(self) -> Run | None:
        """The training whose EMA weights this one departs from."""
        return None if self.start.name == "none" else _start_run(self)

    @property
    def departs_from_wan(self) -> bool:
        """Whether a training begins with Wan's own transformer: without another start, where Wan's text is."""
        return self.start.name == "none" and self.text is not None

    @cached_property
    def anchor_run(self) -> Run | None:
        """The first stage that generates this run's anchors, if they are generated."""
        if self.anchor_recipe is None:
            return None
        return _recipe_run(self.anchor_recipe, self, "anchors", f"sampling.count={self.sampling.count}")

    @cached_property
    def _values(self) -> dict[str, Any]:
        """The configuration with its numbers as they were read: p=1 and p=1.0 are the same run."""
        parts = vars(self) | {"data": self.source}
        if isinstance(self.objective, Shortcut):
            parts |= vars(self.objective)
        return {key: _as_read(node, parts.get(key)) for key, node in self.config.values.items()}

    def _training(self, *, named: bool) -> dict[str, Any]:
        """All of the configuration that can change the trained weights, the start and the accelerator left out.

        named: strategies by the names of their classes; without, their code stands for them
        """
        kept = {k: v for k, v in self._values.items() if k not in NOT_TRAINING | {"start"}}
        kept["train"] = {k: v for k, v in kept["train"].items() if k != "checkpoint_every"}
        if self.train.updates == 0:  # the start as it is
            kept.pop("optimizer")
        kept["scale"] = {k: v for k, v in kept["scale"].items() if k not in NOT_SCALE}
        kept.pop("text")  # a prompt's embedding is the backbone's; what is steered away from is no training matter
        kept["data"] = {k: v for k, v in kept["data"].items() if k not in NOT_DATA}
        kept["clips"] = self.source.fingerprint()
        if self.departs_from_wan:
            kept["weights"] = _weights_fingerprint(self.trainer.weights, "transformer")
        if self.text is not None and self.config.choices["data"] == "shards":  # encoded as they are read
            kept["encoders"] = [_weights_fingerprint(self.trainer.weights, part) for part in ("vae", "text_encoder")]
        return _without_modules(kept, named)

    @cached_property
    def configuration_signature(self) -> str:
        """8 hex digits of a training's configuration, without the code and the accelerator that carry it out."""
        start = self.start_run
        if start is not None:
            start = start.training_signature if start.shipped else start.configuration_signature
        return digest({**self._training(named=True), "start": start})

    @property
    def trained_key(self) -> str:
        """What two trainings that differ in code alone have in common."""
        return f"{self.configuration_signature} {self.trainer.accelerator}"

    @cached_property
    def training_code(self) -> str:
        """Hash of the code that computes the trained weights (`pw.run.code`)."""
        parts = (self.objective, self.schedule, self.degradation, self.source, self.backbone, self.codec, self.injector)
        return self._code(
            parts,
            SAMPLES | {f"{next(classes_of(self.source))}.evaluation"},
            "pw.train.batches.batches",
            "pw.train.batches.clips",
        )

    @cached_property
    def sampling_code(self) -> str:
        """Hash of the code that computes clips from trained weights."""
        parts = (self.solver, self.guidance, self.schedule, self.anchor_degradation, self.backbone, self.codec)
        more = [f"pw.run.build.Run.{name}" for name in ("grid", "feeds_strides")]
        more += [f"pw.sample.evaluate.{name}" for name in ("synthesise", "degraded_anchors", "at_full_size")]
        if self.text is not None:
            more += ["pw.nn.networks.load_network", "pw.sample.evaluate.evaluation_texts"]
        return self._code((*parts, self.injector), TRAINS, *more)

    @cached_property
    def evaluation_code(self) -> str:
        """Hash of the code that makes the evaluation clips."""
        roots = tuple(classes_of(self.source))
        return code_hash(roots, frozenset({f"{roots[0]}.batch"}))

    @cached_property
    def degradation_signature(self) -> str:
        """Names how a clip becomes an anchor in training."""
        return digest([_without_modules(self._values["degradation"]), code_hash(tuple(classes_of(self.degradation)))])

    def _code(self, parts: Sequence[Any], unused: set[str], *more: str) -> str:
        """Hash of the stage's code, of strategies and more, but for what is `unused` and what was not chosen."""
        gate = self.injector.gate if isinstance(self.injector, options.Injector) else ""
        chosen = {"gate": gate, "codec": type(self.codec).__name__}
        left = {name for key, rivals in CHOSEN.items() for choice, name in rivals.items() if choice != chosen[key]}
        left |= set() if gate else {"pw.nn.injector.AnchorGuidedInjector"}
        left |= {"pw.nn.text.TextEncoder", "pw.nn.networks.pretrained"} if self.text is None else set()
        roots = [STAGES[self.stage], *(name for part in parts if part is not None for name in classes_of(part)), *more]
        return code_hash(tuple(roots), frozenset(left | PLACES | unused))

    @cached_property
    def training_signature(self) -> str:
        """8 hex digits of all that can change the trained weights: configuration, code, and start.

        Of a shipped start, of its weights; of a training that is taken as it was trained, the one it had then.
        """
        if self.shipped is not None:
            return digest({"shipped": self.shipped.sha256})
        found = self.trained.get(self.trained_key, ()) if self.trained else ()
        return found[0] if found and self._current_signature not in found else self._current_signature

    @cached_property
    def _current_signature(self) -> str:
        kept = self._training(named=False)
        kept["accelerator"] = self.trainer.accelerator
        kept["start"] = self.start_run.training_signature if self.start_run else None
        kept["code"] = self.training_code
        return digest(kept)

    @property
    def is_as_trained(self) -> bool:
        """Whether it is a finished training that this code would not make."""
        return self.shipped is None and self.training_signature != self._current_signature

    def pinned(self, signature: str) -> Run:
        """The same run as a training of that signature, whatever code made it."""
        return replace(self, trained={**self.trained, self.trained_key: (signature,)})

    @cached_property
    def signature(self) -> str:
        """8 hex digits of all that can change the sampled clips of the run's own seed."""
        return self.sample_signature(self.seed)

    def sample_signature(self, evaluation_seed: int) -> str:
        """`signature` with other evaluation clips and noise (one first stage makes the anchors of several seeds)."""
        kept = {
            "training": self.training_signature,
            "sampling": {
                k: v
                for k, v in self._values["sampling"].items()
                if k not in NOT_SAMPLING and (k, v) != ("grid", "uniform")
            },
            "evaluation_seed": evaluation_seed,
            "anchor_stage": self.anchor_run.sample_signature(evaluation_seed) if self.anchor_run else None,
            **{key: self._values[key] for key in ("solver", "guidance")},
            "anchors": _as_read(self.config["anchors"]["degradation"], self.anchor_degradation),
            "code": [self.sampling_code, self.evaluation_code],
        }
        if self.text is not None:
            kept["negative_prompt"] = self.text.negative_prompt
            kept["weights"] = [_weights_fingerprint(self.trainer.weights, part) for part in ("vae", "text_encoder")]
            kept["attention"] = self.trainer.attention == "sage"  # the one that is not exact
        return digest(_without_modules(kept))

    def evaluation_signature(self, evaluation_seed: int) -> str:
        """Names a seed's evaluation clips: the same in every arm."""
        return digest(
            {
                "scale": {k: v for k, v in dataclasses.asdict(self.scale).items() if k not in NOT_SCALE},
                "data": {k: v for k, v in _without_modules(self._values["data"]).items() if k not in NOT_DATA},
                "code": self.evaluation_code,
                "clips": self.source.fingerprint(),
                "count": self.sampling.count,
                "seed": evaluation_seed,
                **({"held_out": held_out()} if (held_out := getattr(self.source, "held_out", None)) else {}),
            }
        )

    def feeds_strides(self) -> bool:
        """Whether the network is told the grid's strides when sampled: only where it was trained on strides."""
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

    @cached_property
    def solution(self) -> Run:
        """The many-step solution of the same weights from the same noise: what few steps are held against."""
        steps = self.sampling.solution_steps
        changes = {"num_steps": steps, "stride": "zero", "shift": None, "timesteps": None, "grid": "uniform"}
        config = self.config.with_values({f"sampling.{key}": value for key, value in changes.items()})
        run = assemble(config)
        if not isinstance(run.solver, Euler):
            run = build([*(o for o in config.overrides if override_key(o).split(".")[0] != "solver"), "solver=euler"])
        return replace(run, trained=self.trained)

    def with_seed(self, seed: int, start_seed: int | None = None) -> Run:
        """The same run from another seed, and its start from another if one is given."""
        changes = {"seed": seed} | ({} if start_seed is None else {"start.seed": start_seed})
        return self.with_values(changes)

    def with_values(self, changes: Mapping[str, Any]) -> Run:
        """The same run with other values, by dotted path, see `Config.with_values`. Raises ConfigError."""
        return replace(assemble(self.config.with_values(changes)), trained=self.trained)


def _as_read(node: Any, part: Any) -> Any:
    if not isinstance(node, Mapping) or not dataclasses.is_dataclass(part):
        return node
    return {
        k: _as_read(v, getattr(part, k)) if isinstance(v, Mapping) else getattr(part, k, v) for k, v in node.items()
    }


def _without_modules(node: Any, named: bool = False) -> Any:
    """Without the classes' modules, which say where code lies: of `_target_` the class's name is left, or nothing."""
    if not isinstance(node, Mapping):
        return node
    return {
        k: v.rpartition(".")[2] if k == "_target_" and v else _without_modules(v, named)
        for k, v in node.items()
        if named or k != "_target_"
    }


def _weights_fingerprint(weights: str | None, part: str) -> str | None:
    """Names a part of Wan's weights; None without: a run can be planned, but not trained, before they are there."""
    try:
        folder = locate(weights)
    except WeightsError:
        return None
    return _fingerprint(folder / part) if (folder / part).is_dir() else None


@lru_cache(maxsize=64)
def _fingerprint(folder: Path) -> str:
    return fingerprint(folder)


def _inherits(inherit: set[str], key: str) -> bool:
    """`data` takes over the group and its keys, `injector.` its keys alone."""
    group, dot, _ = key.partition(".")
    return group in inherit or f"{group}{dot}" in inherit


def _recipe_run(recipe: settings.Recipe, by: Run, group: str, *more: str) -> Run:
    # where it runs changes no result; which code counts, and whether shipped starts do, is asked for all at once
    inherit = {*recipe.inherit, "trainer", "code"}
    inherited = [
        o for o in by.config.overrides if _inherits(inherit, override_key(o)) or override_key(o) == "start.shipped"
    ]
    own = [*recipe.overrides, f"train.updates={recipe.updates}", f"seed={recipe.seed}", *more]
    try:
        if not compose_run([*inherited, *own])["train"]["checkpoint_activations"]:
            inherited = [o for o in inherited if override_key(o) != "trainer.offload_activations"]
        return replace(build([*inherited, *own]), trained=by.trained)
    except ConfigError as error:
        raise ConfigError(f"{group} ({recipe.name}): {error}") from error


def _start_run(run: Run) -> Run:
    """The start of a run: the shipped one where it is this very recipe, tuned where it meets other data, and trained
    from its recipe where there is none that fits."""
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


def build(overrides: Sequence[str]) -> Run:
    """Compose, make every strategy, and cross-check them. Raises ConfigError naming the key and what would do."""
    return assemble(compose_run(overrides))


def assemble(config: Config) -> Run:
    """Make every strategy of a composed configuration and cross-check them. Raises ConfigError."""
    values = config.values
    anchors = values["anchors"]
    degradation = make("degradation", values["degradation"])
    run = Run(
        config=config,
        stage=_coerce(values["stage"], Literal["anchor", "hires"], "stage"),
        seed=_coerce(values["seed"], int, "seed"),
        scale=_settings(settings.Scale, "scale", values),
        train=_settings(settings.Train, "train", values),
        optimizer=_settings(settings.Optimizer, "optimizer", values),
        sampling=_settings(settings.Sampling, "sampling", values),
        trainer=_settings(settings.Trainer, "trainer", values),
        start=_settings(settings.Recipe, "start", values),
        code=_coerce(values["code"], Literal["current", "as_trained"], "code"),
        backbone=make("backbone", values["backbone"]),
        codec=make("codec", values["codec"]),
        text=make("text", values["text"]) if _chosen(values["text"]) else None,
        source=make("data", values["data"]),
        schedule=make("schedule", values["schedule"]),
        objective=_objective(config),
        injector=make("injector", values["injector"]) if _chosen(values["injector"]) else None,
        degradation=degradation,
        solver=make("solver", values["solver"]),
        guidance=make("guidance", values["guidance"]),
        anchor_degradation=(
            make("degradation", anchors["degradation"], "anchors.degradation")
            if anchors["degradation"]
            else degradation
        ),
        anchor_recipe=(
            from_values(settings.Recipe, anchors["stage"], "anchors.stage")
            if _coerce(anchors["source"], Literal["reference", "generated"], "anchors.source") == "generated"
            else None
        ),
    )
    _cross_check(run)
    return run


def _objective(config: Config) -> Flow | Shortcut:
    values, choices = config.values, config.choices
    target = values["objective"].get("_target_", "")
    used = [part for part in SHORTCUT_PARTS if _chosen(values[part])]
    if target.endswith(".Flow"):
        if used:
            raise ConfigError(
                f"{used[0]}={choices[used[0]]}: objective=flow has no use for a {used[0]}; leave it out, or set "
                "objective=shortcut"
            )
        return make("objective", values["objective"])
    missing = [part for part in SHORTCUT_PARTS if not _chosen(values[part])]
    if missing:
        raise ConfigError(f"{missing[0]}=none: objective=shortcut needs one; choose a file of conf/{missing[0]}/")
    turns = values["turns"]
    seeded = {"seed": values["seed"]} if turns["_target_"].endswith(".Bernoulli") else {}
    parts = {part: make(part, values[part]) for part in SHORTCUT_PARTS if part != "turns"}
    parts["turns"] = make("turns", turns, **seeded)
    return make("objective", values["objective"], **parts)


def _chosen(node: Mapping[str, Any]) -> bool:
    """Whether a group's choice is a strategy; its `none` has no class."""
    return bool(node["_target_"])


def _cross_check(run: Run) -> None:
    """What no single strategy can see."""
    scale, backbone, codec = run.scale, run.backbone, run.codec
    for name in ("height", "width", "anchor_height", "anchor_width"):
        if getattr(scale, name) % codec.factor:
            raise ConfigError(
                f"scale.{name}={getattr(scale, name)}: not a multiple of codec.factor={codec.factor}; "
                f"{_near(getattr(scale, name), codec.factor)} would do"
            )
    if codec.channels != backbone.in_channels:
        raise ConfigError(f"backbone.in_channels={backbone.in_channels}: the codec makes {codec.channels} channels")
    generated = ("anchor_height", "anchor_width") if run.stage == "anchor" else ("height", "width")
    with _as_config_error():
        frames = codec.latent_frames(scale.frames)
    positions = [frames, *(getattr(scale, name) // codec.factor for name in generated)]
    for name, length, patch in zip(("frames", *generated), positions, backbone.patch_size, strict=True):
        if length % patch:
            near = "" if name == "frames" else f"; {_near(getattr(scale, name), codec.factor * patch)} would do"
            raise ConfigError(
                f"scale.{name}={getattr(scale, name)}: its {length} latent positions are no multiple of patch size "
                f"{patch}{near}"
            )
    if max(positions) > backbone.rope_max_seq_len:
        raise ConfigError(
            f"scale={scale.name}: {max(positions)} latent positions in a row, the backbone's rotary table has "
            f"{backbone.rope_max_seq_len}; set backbone.rope_max_seq_len"
        )
    if run.trainer.offload_activations and not run.train.checkpoint_activations:
        raise ConfigError(
            "trainer.offload_activations=true: offloads what checkpointed blocks are recomputed from; set "
            "train.checkpoint_activations=true, too"
        )
    _check_context(run, math.prod(p // patch for p, patch in zip(positions, backbone.patch_size, strict=True)))
    data = run.config["data"]
    wide = "width" if data.get("width") else "size"  # without a width of their own clips are square
    for name, length in (("frames", scale.frames), ("size", scale.height), (wide, scale.width)):
        if data.get(name, length) != length:
            square = "" if "width" in data else f", and data={run.config.choices['data']} makes squares"
            raise ConfigError(
                f"data.{name}={data[name]}: the scale has {scale.frames} frames of {scale.height} x {scale.width} px"
                f"{square}; set scale.frames, scale.height and scale.width, data follows"
            )
    timesteps = run.sampling.timesteps
    if timesteps is not None and (run.sampling.shift is not None or run.sampling.start != 1):
        raise ConfigError("sampling.timesteps: an explicit grid has no use for sampling.shift or sampling.start")
    if timesteps is not None and timesteps[0] > run.schedule.num_timesteps:
        raise ConfigError(f"sampling.timesteps={list(timesteps)}: at most N={run.schedule.num_timesteps}")
    if run.injector is not None:
        with _as_config_error():
            run.injector.check(backbone)
    if run.stage == "anchor" and run.injector is not None:
        raise ConfigError(
            f"injector={run.config.choices['injector']}: stage=anchor makes the anchor itself, leave it at none"
        )
    anchors = run.config.choices["anchors"]
    if run.injector is None and anchors != "reference":
        raise ConfigError(
            f"anchors={anchors}: stage={run.stage} with injector=none is given no anchor; leave anchors at reference"
        )
    degraded = [o for o in run.config.overrides if override_key(o).split(".")[0] == "degradation"]
    if run.stage == "hires" and run.injector is None and degraded:
        raise ConfigError(f"{degraded[0]}: with injector=none there is no anchor to degrade; leave it out")
    if isinstance(run.objective, Shortcut):
        with _as_config_error():
            run.objective.step_sampler.check(run.schedule)
    elif run.sampling.stride == "grid":
        raise ConfigError(
            "sampling.stride=grid: objective=flow never trained a stride, its samples would look worse than the model "
            "is; leave it at auto"
        )
    if run.train.trainable == "adapters" and not isinstance(run.injector, options.Injector):
        raise ConfigError("train.trainable=adapters: without an injector there is nothing to adapt; set injector=gated")
    unguided = {"scale": 1, "drop": "text", "first_steps": None}
    if run.guidance.scale == 1 and (run.config.choices["guidance"] == "on" or vars(run.guidance) != unguided):
        raise ConfigError(
            f"guidance={run.config.choices['guidance']}: at guidance.scale=1 the network is not guided, whatever else "
            "is set; leave guidance at off, or set guidance=on guidance.drop=text_and_anchor and a scale above 1"
        )
    if run.guidance.scale != 1:
        if run.guidance.drop == "text" and run.text is None:
            raise ConfigError(
                f"guidance.drop=text: at scale={scale.name} there is only the empty prompt, so guidance would change "
                "nothing; set guidance.drop=text_and_anchor"
            )
        if run.injector is None and run.text is None:
            raise ConfigError(f"guidance.scale={run.guidance.scale}: injector=none has no anchor to drop")
        if run.train.condition_dropout == 0 and run.text is None:
            raise ConfigError(
                f"guidance.scale={run.guidance.scale}: with train.condition_dropout=0 the null branch is never "
                "trained; set train.condition_dropout=0.1"
            )
    if run.config.choices["data"] == "latents":
        _check_latents(run)
    if isinstance(run.codec, options.WanVAE) and run.config.choices["start"] != "none":
        raise ConfigError(
            f"start={run.config.choices['start']}: a recipe of the tiny scale; with codec=wan_vae a training departs "
            "from Wan's own weights: start=none"
        )
    recipe = run.anchor_recipe
    if isinstance(run.codec, options.WanVAE) and recipe and any(o.startswith("optimizer.") for o in recipe.overrides):
        raise ConfigError(
            f"anchors=generated: trains stage I by a recipe of the tiny scale ({' '.join(recipe.overrides)}); with "
            "codec=wan_vae set anchors.stage.overrides=[stage=anchor] anchors.stage.updates=0 (Wan's own), or your own"
        )
    if run.start.name == "none" and run.train.updates == 0 and not run.departs_from_wan:
        raise ConfigError("train.updates=0: with start=none there would be only random weights")


def _check_context(run: Run, tokens: int) -> None:
    """That the tokens of a clip, and the heads of a block, can be dealt to those that compute it together."""
    processes, heads = run.trainer.context, run.backbone.num_attention_heads
    if tokens % processes or heads % processes:
        would_do = [n for n in range(1, heads + 1) if not (tokens % n or heads % n or run.trainer.devices % n)]
        raise ConfigError(
            f"trainer.context={processes}: a clip has {tokens} tokens and a block {heads} heads, which so many "
            f"processes cannot share equally; {' or '.join(map(str, would_do))} would do"
        )
    if processes > 1 and run.trainer.attention == "flash3":
        raise ConfigError(
            f"trainer.attention={run.trainer.attention}: cannot be computed with trainer.context={processes}; set "
            "trainer.attention to sdpa, cudnn or flash"
        )


def _check_latents(run: Run) -> None:
    """That latents are of this run's making."""
    from pw.data.latents import LatentClips, described  # what reads video takes its time to import

    assert isinstance(run.source, LatentClips)
    wanted = described(run.scale, run.codec, run.degradation, run.backbone)
    if run.stage == "hires" and run.injector is None:
        wanted.pop("degradation")  # there is no anchor
    with _as_config_error():
        run.source.check(wanted)


def _near(value: int, unit: int) -> str:
    """The multiples of `unit` around a value."""
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else str(unit)


class _as_config_error:
    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError) and not isinstance(error, ConfigError):
            raise ConfigError(str(error)) from error


def make(group: str, node: Mapping[str, Any], key: str | None = None, **parts: Any) -> Any:
    """The strategy that a config node describes: its `_target_` from the group's own modules, its fields checked.

    Raises ConfigError on a class from elsewhere, an unknown or missing field, or a value of the wrong type or range.
    """
    target = str(node.get("_target_", ""))
    module, _, name = target.rpartition(".")
    if module not in HOMES[group]:
        raise ConfigError(f"{key or group}._target_={target!r}: a {group} lives in {', '.join(HOMES[group])}")
    cls = getattr(importlib.import_module(module), name, None)
    if cls is None:
        raise ConfigError(f"{key or group}._target_={target!r}: {module} has no {name}")
    return from_values(cls, {k: v for k, v in node.items() if k != "_target_"}, key or group, **parts)


def _settings(cls: Any, group: str, values: Mapping[str, Any]) -> Any:
    return from_values(cls, values[group], group)


def from_values(cls: Any, node: Mapping[str, Any], key: str, **parts: Any) -> Any:
    """A dataclass from plain values, each checked against its annotation. Raises ConfigError by key."""
    known = {field.name: field for field in fields(cls) if field.init and not field.name.startswith("_")}
    if not isinstance(node, Mapping):
        raise ConfigError(f"{key}={node!r}: is not one value; set {', '.join(f'{key}.{name}' for name in known)}")
    for name in node:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"{key}.{name}: {cls.__name__} has no {name}; {hint}it has {', '.join(sorted(known))}")
    missing = [n for n, f in known.items() if f.default is f.default_factory and n not in node and n not in parts]
    if missing:
        raise ConfigError(f"{key}.{missing[0]}: missing")
    hints = typing.get_type_hints(cls, localns={"Tensor": object})
    checked = {name: _coerce(value, hints[name], f"{key}.{name}") for name, value in node.items()}
    with _as_config_error():
        return cls(**checked, **parts)


def _coerce(value: Any, wanted: Any, key: str) -> Any:
    """`value` as an annotation wants it: exact but for int -> float and list -> tuple."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    wrong = ConfigError(f"{key}={value!r}: wants {_words(wanted)}")
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            near = difflib.get_close_matches(str(value), [str(a) for a in arguments], 1)
            raise ConfigError(f"{wrong}{f'; did you mean {near[0]}?' if near else ''}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _coerce(value, next(a for a in arguments if a is not type(None)), key)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise wrong
        item_types = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(item_types) != len(value):
            raise wrong
        return tuple(_coerce(v, t, key) for v, t in zip(value, item_types, strict=True))
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


def _words(wanted: Any) -> str:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _words(a) for a in arguments)
    if origin is tuple:
        items = arguments[:1] if arguments[-1] is Ellipsis else arguments
        count = "a list" if arguments[-1] is Ellipsis else f"a list of {len(arguments)}"
        return f"{count} of {_words(items[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(wanted, str(wanted))
