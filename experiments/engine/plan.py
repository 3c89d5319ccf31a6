"""From an ablation to the runs it needs: composed, built and checked before anything heavy is imported."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import Ablation, Statement, load, names
from experiments.engine.sweep import take_sweeps
from experiments.engine.verdict import check_claims
from pw.io.paths import OUTPUTS
from pw.run.build import Run, build
from pw.run.compose import Config, ConfigError, leaves, override_key
from pw.train.preflight import check_share
from pw.train.record import earlier_trainings, with_code
from pw.train.train_command import outputs_folder

DEFAULT_SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Options:
    """What the command line says about the ablation rather than about its runs.

    seeds       a number (5 is 0 to 4) or a list ([0,3])
    arms        only these, comma-separated
    vary_start  train a start checkpoint per seed, instead of one for all
    workers     runs at a time; 0 is one per core
    dry_run     print the plan and the commands, do nothing
    fresh       redo what is cached, but for starts, which other ablations share
    mlflow      record the runs
    """

    name: str
    seeds: tuple[int, ...] = DEFAULT_SEEDS
    arms: tuple[str, ...] = ()
    vary_start: bool = False
    workers: int = 0
    dry_run: bool = False
    fresh: bool = False
    mlflow: bool = True
    outputs: Path = OUTPUTS
    overrides: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """The words that say which runs these are: `parse` of them gives the same plan."""
        arms = [f"arms={','.join(self.arms)}"] if self.arms else []
        start = ["vary_start=true"] if self.vary_start else []
        return [f"name={self.name}", seeds_word(self.seeds), *arms, *start, *self.overrides]


def parse(arguments: Sequence[str]) -> Options:
    """key=value words -> options; what is no option is an override of every run. Raises ConfigError."""
    given: dict[str, Any] = {}
    overrides: list[str] = []
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r}: write key=value, e.g. name=ansc seeds=5 (`make ablations` lists the names)")
        if key in Options.__dataclass_fields__ and key != "overrides":
            given[key] = _option(key, value)
        else:
            overrides.append(word)
    if not given.get("name"):
        raise ConfigError(f"name=… is missing: one of {', '.join(names())}")
    return Options(**given, overrides=tuple(overrides))


def _option(key: str, value: str) -> Any:
    if key == "seeds":
        return _seeds(value)
    if key == "arms":
        return tuple(value.split(","))
    if key in ("dry_run", "fresh", "mlflow", "vary_start"):
        if value not in ("true", "false"):
            raise ConfigError(f"{key}={value}: true or false")
        return value == "true"
    if key == "workers":
        if not value.isdecimal():
            raise ConfigError(f"workers={value}: a whole number; 0 is one per core")
        return int(value)
    if key == "outputs":
        return outputs_folder(value)
    return value


def seeds_word(seeds: Sequence[int]) -> str:
    """Seeds as one would type them: seeds=3 of 0, 1 and 2, else the list."""
    counted = list(seeds) == list(range(len(seeds)))
    return f"seeds={len(seeds)}" if counted else f"seeds=[{','.join(map(str, seeds))}]"


def _seeds(value: str) -> tuple[int, ...]:
    inside = value.strip("[]")
    parts = inside.split(",") if "," in inside or value.startswith("[") else None
    try:
        seeds = tuple(range(int(value))) if parts is None else tuple(int(part) for part in parts)
    except ValueError:
        seeds = ()
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ConfigError(f"seeds={value}: a number of seeds (5 is 0 to 4) or a list of them ([0,1,7])")
    return seeds


@dataclass(frozen=True)
class Arm:
    """One row of the table: a run per seed. `above` is the arm it is compared with."""

    name: str
    runs: Mapping[int, Run]
    varied: Mapping[str, Any]
    above: str | None
    paper_arm: str

    @property
    def first(self) -> Run:
        """The run of the first seed, for what does not depend on it."""
        return next(iter(self.runs.values()))


@dataclass(frozen=True)
class ProbeRun:
    """An arm's run at one value of the probed key."""

    arm: str
    seed: int
    value: Any
    run: Run


@dataclass(frozen=True)
class Plan:
    """An ablation, composed."""

    options: Options
    ablation: Ablation
    statement: Statement
    arms: tuple[Arm, ...]
    probes: tuple[ProbeRun, ...] = field(default=())

    @property
    def name(self) -> str:
        """Of the ablation: its file, its MLflow experiment, its folder."""
        return self.options.name

    @property
    def ceiling(self) -> Arm:
        """The arm whose many-step solution is the table's ceiling, and whose anchors its floor is measured under."""
        return next((arm for arm in self.arms if arm.paper_arm == self.ablation.ceiling), self.arms[0])

    @property
    def folder(self) -> Path:
        """Where the table goes."""
        return self.options.outputs / self.name

    def runs(self) -> Iterator[tuple[Arm, int, Run]]:
        """Every (arm, seed, run), seed by seed, so that a part of a plan is already a comparison."""
        for seed in self.options.seeds:
            for arm in self.arms:
                yield arm, seed, arm.runs[seed]


def trainings(plan: Plan) -> dict[str, tuple[str, Run]]:
    """Every training of a plan by signature, with its label, each after its start. Shipped starts are among them."""
    found: dict[str, tuple[str, Run]] = {}

    def add(label: str, run: Run | None) -> None:
        if run is not None and run.training_signature not in found:
            add(f"start {run.start.name}", run.start_run)
            found[run.training_signature] = label, run

    for arm, seed, run in plan.runs():
        add(f"{arm.name} seed {seed}", run)
        add("anchors", run.anchor_run)
    return found


def starts(plan: Plan) -> dict[str, Run]:
    """The trainings of a plan that others depart from, by signature: other ablations share them."""
    return {signature: run for signature, (label, run) in trainings(plan).items() if label.startswith("start ")}


def start_words(start: Run) -> str:
    """What a start is, for a plan and a table."""
    if start.shipped is not None:
        return f"start {start.shipped.name}: {start.shipped.words}"
    if start.start_run is not None and start.start_run.shipped is not None:
        return (
            f"start checkpoint {start.training_signature}: {start_words(start.start_run)[len('start ') :]}, then "
            f"{start.train.updates:,} updates on these data at a learning rate of {start.optimizer.lr:g}"
        )
    why = f" ({start.note})" if start.note else ""
    return f"start checkpoint {start.training_signature}: {start.train.updates} flow updates, seed {start.seed}{why}"


def other_code(plan: Plan) -> list[str]:
    """What is to be said of trainings that other code made: which rows take them, or what lies there unused."""
    earlier = earlier_trainings(plan.options.outputs)
    told: list[str] = []
    for label, run in trainings(plan).values():
        alike = [e for e in earlier if run.shipped is None and e.key == run.trained_key]
        others = [e for e in alike if e.folder.name != run.training_signature]
        if run.is_as_trained:
            code = next((e.code for e in alike if e.folder.name == run.training_signature), "unknown")
            told.append(f"{label}: {run.training_signature}, as it was trained by other code ({code})")
        elif others:
            is_finished = others[0].is_finished
            use = "code=as_trained uses it" if is_finished else "not finished, that code alone goes on with it"
            told.append(f"{label}: {others[0].folder} was trained by other code (kept; {use})")
    return told


def make_plan(options: Options) -> Plan:
    """Compose and check every arm and seed. Raises ConfigError (and ValueError for an unknown name)."""
    return plan_of(options, *load(options.name))


def plan_of(options: Options, ablation: Ablation, stated: Statement) -> Plan:
    """The plan of an ablation that need not be a file of this folder. Raises ConfigError."""
    crossed: Sequence[Any] = ablation.across[1] if ablation.across else [None]
    try:
        check_claims(ablation, [_label(ablation, name, value) for value in crossed for name in ablation.arms])
    except ValueError as error:
        raise ConfigError(f"{options.name}: {error}") from error
    chosen = _chosen_arms(ablation, options)
    for override in options.overrides:
        if override_key(override) == "seed":
            raise ConfigError(f"{override}: an ablation has seeds=…, e.g. seeds=[{override.partition('=')[2]}]")
    swept, stated, overrides = take_sweeps(options.name, ablation, stated, options.arms, options.overrides)
    _check_overrides(ablation, options.name, overrides)
    if swept.arms != ablation.arms:
        chosen = list(swept.arms)
    ablation = swept
    crossed = ablation.across[1] if ablation.across else [None]
    arms: list[Arm] = []
    for value in crossed:
        above = None
        for name in chosen:
            arm = _arm(ablation, options, overrides, name, value, above)
            arms.append(arm)
            above = arm.name if above is None or ablation.versus == "above" else above
    _check_controlled(ablation, arms)
    return Plan(options, ablation, stated, tuple(arms), tuple(_probes(ablation, arms)))


def _label(ablation: Ablation, name: str, value: Any) -> str:
    """An arm's row in the table."""
    return f"{name}@{value}" if ablation.across else name


def _chosen_arms(ablation: Ablation, options: Options) -> list[str]:
    for name in options.arms:
        if name not in ablation.arms:
            near = difflib.get_close_matches(name, ablation.arms, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"arms={name}: {hint}{options.name} has {', '.join(ablation.arms)}")
    return [name for name in ablation.arms if not options.arms or name in options.arms]


def _check_overrides(ablation: Ablation, name: str, overrides: Sequence[str]) -> None:
    varies = [*ablation.varies, *([ablation.across[0]] if ablation.across else [])]
    for override in overrides:
        key = override_key(override)
        if any(key == v or v.startswith(f"{key}.") for v in varies):
            raise ConfigError(
                f"{override}: {key} is what {name} varies (arms: {', '.join(ablation.arms)}); several values, "
                f"{key}=…,…, take the place of these"
            )


def _arm(ablation: Ablation, options: Options, given: Sequence[str], name: str, value: Any, above: str | None) -> Arm:
    across = [f"{ablation.across[0]}={value}"] if ablation.across else []
    overrides = [*ablation.fixed.split(), *given, *ablation.arms[name].split(), *across]
    label = _label(ablation, name, value)
    try:
        run = with_code(build(overrides), options.outputs)
        runs = {seed: run.with_seed(seed, 1000 + seed if options.vary_start else None) for seed in options.seeds}
        _check_shares(run)
    except ConfigError as error:
        raise ConfigError(f"arm {label}: {error}") from error
    tuned = [o for o in (*ablation.fixed.split(), *ablation.arms[name].split()) if o.startswith("optimizer.")]
    own = {override_key(o) for o in given}
    if run.departs_from_wan and (left := [o for o in tuned if override_key(o) not in own]):
        raise ConfigError(
            f"arm {label}: {' '.join(left)} is fixed for the tiny scale; at scale={run.scale.name} give your own, e.g. "
            f'args="… optimizer.lr=1e-5 optimizer.final_lr=1"'
        )
    keys = [*ablation.varies, *([ablation.across[0]] if ablation.across else [])]
    return Arm(label, runs, {key: run.config.label(key) for key in keys}, above, name)


def _check_shares(run: Run) -> None:
    """As every training that a run needs will do when it starts: its own, its start, and those of its anchors."""
    check_share(run)
    for group, needed in (("start", run.start_run), ("anchors", run.anchor_run)):
        try:
            if needed is not None:
                _check_shares(needed)
        except ConfigError as error:
            raise ConfigError(f"{group}: {error}") from error


def _check_controlled(ablation: Ablation, arms: Sequence[Arm]) -> None:
    """Arms differ in `varies` alone, and no two are the same run."""
    keys = [*ablation.varies, *([ablation.across[0]] if ablation.across else [])]
    for other, arm in _to_compare(arms):
        stray = [k for k in _differing(other.first.config, arm.first.config) if not _is_varied(k, keys)]
        if stray:
            raise ConfigError(
                f"arms {other.name} and {arm.name} differ in {', '.join(stray)}, which is not among what the ablation "
                f"varies ({', '.join(keys)})"
            )
    seen: dict[str, str] = {}
    for arm in arms:
        twin = seen.setdefault(arm.first.signature, arm.name)
        if twin != arm.name:
            raise ConfigError(
                f"arms {twin} and {arm.name} are the same run ({arm.first.signature}): nothing is compared"
            )


def _to_compare(arms: Sequence[Arm]) -> Iterator[tuple[Arm, Arm]]:
    """Each arm with the first, and with the first of its own objective: only there can its parts be compared."""
    of_objective: dict[str, Arm] = {}
    for arm in arms:
        own = of_objective.setdefault(arm.first.config.choices["objective"], arm)
        yield from ((other, arm) for other in (arms[0], own) if other is not arm)


def _is_varied(key: str, varies: Sequence[str]) -> bool:
    return any(key == v or key.startswith(f"{v}.") for v in varies)


def _differing(a: Config, b: Config) -> list[str]:
    """Dotted keys in which two configurations differ, but for parts that one objective has and the other has not."""
    left, right = leaves(a.values), leaves(b.values)
    keys = [k for k in dict.fromkeys([*left, *right]) if left.get(k) != right.get(k)]
    objectives_differ = a.choices["objective"] != b.choices["objective"]
    return [
        k
        for k in keys
        if not (
            objectives_differ
            and any(k.startswith(f"{part}.") for part in ("turns", "target", "step_sampler", "weighting"))
        )
    ]


def _probes(ablation: Ablation, arms: Sequence[Arm]) -> Iterator[ProbeRun]:
    probe = ablation.probe
    if probe is None:
        return
    for arm in arms:
        if arm.paper_arm in probe.arms:
            for seed, run in arm.runs.items():
                for value in probe.values:
                    yield ProbeRun(arm.name, seed, value, run.with_values({probe.key: value}))
