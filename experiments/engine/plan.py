"""Composes, builds and checks the runs of an ablation before any heavy import. Begin with `make_plan`.

A list of values on the command line is a sweep, with an arm for every value:

    name=beta args="step_sampler.beta=0,0.2,0.4"                     replaces the arms of the file
    name=ansc args="arms=full weighting.p=0,0.5,1"                   a key that the ablation does not vary, on one arm
    name=ladder args="sampling.num_steps=2,8"                        replaces the values of `across`
    name=beta args="step_sampler.beta=0,0.7 sampling.num_steps=2,4"  two lists are crossed

A list in brackets (`optimizer.betas=[0.9,0.99]`) is one value, as everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.engine.ablation import Ablation, AblationOptions, Probe, Statement, load
from experiments.engine.outcome.verdict import check_claims
from experiments.engine.revisions.checkout import Revision
from experiments.engine.revisions.code_arms import by_revisions
from pw.cost.training_cost import training_cost
from pw.io import arguments
from pw.io.arguments import ConfigError, did_you_mean
from pw.run.build import Run, build
from pw.run.compose import Config, compose_run, groups, leaves, override_key, swept_values
from pw.train.preflight import check_share
from pw.train.record import earlier_trainings, with_finished_trainings


def parse(words: Sequence[str]) -> AblationOptions:
    """key=value words -> options; other words are overrides of every run. Raises ConfigError."""
    return arguments.parse(AblationOptions, words)


@dataclass(frozen=True)
class Arm:
    """One row of the table: a run per seed, or for the first seeds alone.

    versus     the arm it is compared with
    paper_arm  name without @value
    """

    name: str
    runs: Mapping[int, Run]
    varied: Mapping[str, Any]
    versus: str | None
    paper_arm: str

    @property
    def first(self) -> Run:
        """The run of the first seed, for values that are the same in all seeds."""
        return next(iter(self.runs.values()))


@dataclass(frozen=True)
class ProbeRun:
    """The run of an arm at one value of the probed key."""

    arm: str
    seed: int
    value: Any
    run: Run


@dataclass(frozen=True)
class Plan:
    """What is compared.

    revisions   of the code, that make the arms; code_notes: what they are, and how they differ
    place       the folder of its table within the outputs; by default its name
    table_note  a further note below its table
    """

    options: AblationOptions
    ablation: Ablation
    statement: Statement
    arms: tuple[Arm, ...]
    probes: tuple[ProbeRun, ...] = ()
    revisions: tuple[Revision, ...] = ()
    code_notes: tuple[str, ...] = ()
    place: str = ""
    table_note: str = ""

    @property
    def name(self) -> str:
        """The name of the ablation, of its file and its MLflow experiment."""
        return self.options.name

    @property
    def ceiling(self) -> Arm:
        """The arm whose many-step solution is the ceiling of the table, and whose anchors the floor uses."""
        return next((arm for arm in self.arms if arm.paper_arm == self.ablation.ceiling), self.arms[0])

    @property
    def folder(self) -> Path:
        return self.options.outputs / (self.place or self.name)

    def runs(self) -> Iterator[tuple[Arm, int, Run]]:
        """Every (arm, seed, run), seed by seed, so that an unfinished plan already compares arms."""
        for seed in self.options.seeds:
            for arm in self.arms:
                if seed in arm.runs:
                    yield arm, seed, arm.runs[seed]


def trainings(plan: Plan) -> dict[str, tuple[str, Run]]:
    """signature -> (label, run) of every training, each after its start; includes shipped starts."""
    result: dict[str, tuple[str, Run]] = {}

    def add(label: str, run: Run | None) -> None:
        if run is not None and run.training_signature not in result:
            add(f"start {run.start.name}", run.start_run)
            result[run.training_signature] = label, run

    for arm, seed, run in plan.runs():
        add(f"{arm.name} seed {seed}", run)
        add("anchors", run.anchor_run)
    return result


def starts(plan: Plan) -> dict[str, Run]:
    """signature -> run of the start checkpoints, which other ablations share."""
    return {signature: run for signature, (label, run) in trainings(plan).items() if label.startswith("start ")}


def start_words(start: Run) -> str:
    if start.card is not None:
        return f"start {start.card.name}: {start.card.words}"
    if start.start_run is not None and start.start_run.card is not None:
        return (
            f"start checkpoint {start.training_signature}: {start_words(start.start_run)[len('start ') :]}, then "
            f"{start.train.updates:,} updates on these data at a learning rate of {start.optimizer.lr:g}"
        )
    reason = f" ({start.note})" if start.note else ""
    return f"start checkpoint {start.training_signature}: {start.train.updates} flow updates, seed {start.seed}{reason}"


def other_code(plan: Plan) -> list[str]:
    """Notes on trainings by another version of the code: those that rows use, and those that stay unused."""
    records = earlier_trainings(plan.options.outputs)
    notes: list[str] = []
    planned = trainings(plan)
    for label, run in planned.values():
        same_runs = [record for record in records if run.card is None and record.key == run.training_key]
        other_runs = [record for record in same_runs if record.folder.name not in planned]
        if run.is_as_trained:
            code = next((r.code for r in same_runs if r.folder.name == run.training_signature), "unknown")
            notes.append(f"{label}: {run.training_signature}, trained by another version of the code ({code})")
        elif other_runs:
            unfinished = "unfinished; only that version of the code can resume it"
            use = "code=as_trained uses it" if other_runs[0].is_finished else unfinished
            notes.append(f"{label}: {other_runs[0].folder} was trained by another version of the code (kept; {use})")
    return notes


def make_plan(options: AblationOptions) -> Plan:
    """Compose and check every arm and seed. Raises ConfigError."""
    return plan_of(options, *load(options.name))


def plan_of(options: AblationOptions, ablation: Ablation, statement: Statement) -> Plan:
    """The plan of an ablation, also of one without a file. Raises ConfigError."""
    crossed: Sequence[Any] = ablation.across[1] if ablation.across else [None]
    try:
        check_claims(ablation, [_label(ablation, name, value) for value in crossed for name in ablation.arms])
    except ConfigError as error:
        raise error.with_prefix(f"{options.name}: ") from error
    for name in options.arms:
        if name not in ablation.arms:
            hint = did_you_mean(name, ablation.arms)
            raise ConfigError(f"arms={name}: {hint}{options.name} has {', '.join(ablation.arms)}")
    for override in options.overrides:
        if override_key(override) == "seed":
            raise ConfigError(f"{override}: an ablation takes seeds=…, e.g. seeds=[{override.partition('=')[2]}]")
    ablation = _with_same_flops(ablation, options)
    sweep_ablation, statement, overrides = _take_sweeps(options, ablation, statement)
    is_as_trained = options.code == ("as_trained",)
    overrides = (*overrides, "code=as_trained") if is_as_trained else overrides
    _check_overrides(ablation, options.name, overrides)
    is_swept, ablation = sweep_ablation.arms != ablation.arms, sweep_ablation
    chosen = [name for name in ablation.arms if is_swept or not options.arms or name in options.arms]
    crossed = ablation.across[1] if ablation.across else [None]
    arms: list[Arm] = []
    for value in crossed:
        versus = None
        for name in chosen:
            arm = _arm(ablation, options, overrides, name, value, versus)
            arms.append(arm)
            versus = arm.name if versus is None or ablation.versus == "above" else versus
    _check_controlled(ablation, arms)
    probes = () if ablation.probe is None else tuple(_probes(ablation.probe, arms))
    plan = Plan(options, ablation, statement, tuple(arms), probes)
    return by_revisions(plan) if options.code and not is_as_trained else plan


def _with_same_flops(ablation: Ablation, options: AblationOptions) -> Ablation:
    """The ablation whose arms of `same_flops`, if they are asked for, say their number of updates: that whose training
    FLOPs are the nearest to the other arm's with these overrides, swept ones left out. Raises ConfigError."""
    of_call = [word for word in options.overrides if not (swept_values(word) or _varies(ablation, override_key(word)))]
    arms, shared = dict(ablation.arms), [*ablation.fixed.split(), *of_call]
    for name, other in ablation.same_flops.items():
        if options.arms and name not in options.arms:
            continue
        try:
            own, goal = (training_cost(build([*shared, *ablation.arms[arm].split()])) for arm in (name, other))
        except ConfigError as error:
            raise error.with_prefix(f"arm {name}, of the FLOPs of {other}: ") from error
        arms[name] += f" train.updates={round(goal.flops.total / own.flops.total * own.updates)}"
    return replace(ablation, arms=arms)


def _take_sweeps(
    options: AblationOptions, ablation: Ablation, statement: Statement
) -> tuple[Ablation, Statement, tuple[str, ...]]:
    """(the ablation with its sweeps as arms, its statement, the overrides that are no sweeps).

    Raises ConfigError for a sweep without a base arm, a repeated value, or a third sweep.
    """
    sweeps = {override: values for override in options.overrides if (values := swept_values(override))}
    rest = tuple(override for override in options.overrides if override not in sweeps)
    keys = [override_key(override) for override in options.overrides]
    has_arm_sweep, crossed = False, ablation.across
    for override, values in sweeps.items():
        key = override_key(override)
        if keys.count(key) > 1:
            raise ConfigError(f"{override}: {key} is given more than once; use one list, e.g. {key}={','.join(values)}")
        if bad_values := [value for value in values if " " in value]:
            raise ConfigError(f"{override}: {bad_values[0]!r} has a space, which the overrides of an arm cannot have")
        if duplicates := [value for value in values if values.count(value) > 1]:
            raise ConfigError(f"{override}: {duplicates[0]} is given twice, so nothing would be compared")
        if ablation.across is not None and ablation.across[0] == key:
            ablation = replace(ablation, across=(key, values))
        elif not has_arm_sweep:
            ablation = _with_swept_arms(options, ablation, rest, override, values)
            has_arm_sweep = True
        elif ablation.across is None:
            ablation = replace(ablation, across=(key, values))
        else:
            reason = f", and {options.name} is crossed with {crossed[0]}" if crossed else ""
            raise ConfigError(f"{' '.join(sweeps)}: at most two lists are crossed{reason}; give {key} one value")
    if sweeps:  # the file's claim is not about these arms
        statement = Statement(f"{' '.join(sweeps)} (a sweep of {options.name})", "", "", "")
        ablation = replace(ablation, claims=())
    return ablation, statement, rest


def _with_swept_arms(
    options: AblationOptions, ablation: Ablation, rest: Sequence[str], override: str, values: tuple[str, ...]
) -> Ablation:
    """The ablation with an arm per value. The base is the one arm of `arms=`, or only `fixed` if the sweep replaces
    everything that the ablation varies."""
    key, selected = override_key(override), options.arms
    others = [v for v in ablation.varies if v != key and not v.startswith(f"{key}.") and not key.startswith(f"{v}.")]
    base = ablation.arms[selected[0]] if len(selected) == 1 else ""
    if len(selected) > 1 or (not selected and others):
        arm = (selected or list(ablation.arms))[-1]
        # raises for an unknown key
        compose_run([*ablation.fixed.split(), *rest, *ablation.arms[arm].split(), f"{key}={values[0]}"])
        reason = f"{options.name} also varies {', '.join(others)}" if others else "arms= selects several"
        raise ConfigError(f"{override}: {reason}; choose the arm, e.g. arms={arm} (of {', '.join(ablation.arms)})")
    base_overrides = [word for word in base.split() if not _is_varied(override_key(word), [key])]
    prefix = "" if key in groups() else f"{key.rpartition('.')[2]}_"
    # `[0.9,0.99]` -> `0.9_0.99`: names of arms are names of files and of MLflow runs
    names = {value: prefix + re.sub(r"[^\w.\-]+", "_", value).strip("_") for value in values}
    return replace(
        ablation,
        varies=(key,),
        arms={name: " ".join([*base_overrides, f"{key}={value}"]) for value, name in names.items()},
        versus="first",
        paper=None,
        probe=None,
        ceiling=None,
        curve=ablation.curve if ablation.curve is not None and ablation.curve[0] == key else None,
    )


def _label(ablation: Ablation, name: str, value: Any) -> str:
    return f"{name}@{value}" if ablation.across else name


def _check_overrides(ablation: Ablation, name: str, overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override_key(override)
        if _varies(ablation, key):
            raise ConfigError(
                f"{override}: {name} varies {key} itself (arms: {', '.join(ablation.arms)}); give several values, "
                f"{key}=…,…, to replace these arms"
            )


def _arm(
    ablation: Ablation, options: AblationOptions, extra: Sequence[str], name: str, value: Any, versus: str | None
) -> Arm:
    across = [f"{ablation.across[0]}={value}"] if ablation.across else []
    overrides = [*ablation.fixed.split(), *extra, *ablation.arms[name].split(), *across]
    label = _label(ablation, name, value)
    try:
        run = with_finished_trainings(build(overrides), options.outputs)
        runs = {seed: run.with_seed(seed, 1000 + seed if options.vary_start else None) for seed in options.seeds}
        _check_shares(run)
    except ConfigError as error:
        raise error.with_prefix(f"arm {label}: ") from error
    optimizer = [o for o in (*ablation.fixed.split(), *ablation.arms[name].split()) if o.startswith("optimizer.")]
    extra_keys = {override_key(o) for o in extra}
    if run.starts_from_wan and (fixed := [o for o in optimizer if override_key(o) not in extra_keys]):
        raise ConfigError(
            f"arm {label}: {' '.join(fixed)} is fixed for the tiny scale; at scale={run.scale.name} give your own, "
            f'e.g. args="… optimizer.lr=1e-5 optimizer.final_lr=1"'
        )
    return Arm(label, runs, {key: run.config.label(key) for key in _varied_keys(ablation)}, versus, name)


def _check_shares(run: Run) -> None:
    """Check all trainings that a run needs: its own, its start, and those of its anchors."""
    check_share(run)
    for group, required in (("start", run.start_run), ("anchors", run.anchor_run)):
        try:
            if required is not None:
                _check_shares(required)
        except ConfigError as error:
            raise error.with_prefix(f"{group}: ") from error


def _check_controlled(ablation: Ablation, arms: Sequence[Arm]) -> None:
    """Check that arms differ only in `varies`, and that no two arms are the same run. Raises ConfigError."""
    keys = _varied_keys(ablation)
    of_objective: dict[str, Arm] = {}
    for arm in arms:
        # the first arm, and the first with the same objective, whose parts can be compared too
        for other in (arms[0], of_objective.setdefault(arm.first.config.choices["objective"], arm)):
            stray = [k for k in _differing(other.first.config, arm.first.config) if not _is_varied(k, keys)]
            if stray:
                raise ConfigError(
                    f"arms {other.name} and {arm.name} differ in {', '.join(stray)}, but the ablation varies "
                    f"only {', '.join(keys)}"
                )
    arm_names: dict[str, str] = {}
    for arm in arms:
        twin = arm_names.setdefault(arm.first.signature, arm.name)
        if twin != arm.name:
            raise ConfigError(
                f"arms {twin} and {arm.name} are the same run ({arm.first.signature}): nothing is compared"
            )


def _varies(ablation: Ablation, key: str) -> bool:
    """Whether the ablation varies a key that is this one or below it."""
    return any(_is_varied(varied, [key]) for varied in _varied_keys(ablation))


def _varied_keys(ablation: Ablation) -> list[str]:
    return [*ablation.varies, *([ablation.across[0]] if ablation.across else [])]


def _is_varied(key: str, varies: Sequence[str]) -> bool:
    """Whether `key` is in `varies` or is below a key in it."""
    return any(key == v or key.startswith(f"{v}.") for v in varies)


def _differing(a: Config, b: Config) -> list[str]:
    """Dotted keys in which two configurations differ, without parts that only one of their objectives has."""
    left, right = leaves(a.values), leaves(b.values)
    keys = [k for k in dict.fromkeys([*left, *right]) if left.get(k) != right.get(k)]
    if a.choices["objective"] == b.choices["objective"]:
        return keys
    return [k for k in keys if not _is_varied(k, ("turns", "target", "step_sampler", "weighting"))]


def _probes(probe: Probe, arms: Sequence[Arm]) -> Iterator[ProbeRun]:
    for arm in arms:
        if arm.paper_arm in probe.arms:
            for seed, run in arm.runs.items():
                for value in probe.values:
                    yield ProbeRun(arm.name, seed, value, run.with_values({probe.key: value}))
