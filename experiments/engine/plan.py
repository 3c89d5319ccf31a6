"""From an ablation to the runs it needs: composed, built and checked before anything heavy is imported.

A list of values on the command line is a sweep, which makes an arm of every value:

    name=beta args="step_sampler.beta=0,0.2,0.4"                     in place of the file's arms
    name=ansc args="arms=full weighting.p=0,0.5,1"                   a key that the ablation does not vary: of one arm
    name=ladder args="sampling.num_steps=2,8"                        in place of what its arms are crossed with
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
from pw.io import arguments
from pw.io.arguments import ConfigError, did_you_mean
from pw.run.build import Run, build
from pw.run.compose import Config, compose_run, groups, leaves, override_key, swept_values
from pw.train.preflight import check_share
from pw.train.record import earlier_trainings, with_code


def parse(words: Sequence[str]) -> AblationOptions:
    """key=value words -> options; words that are no option are overrides of every run. Raises ConfigError."""
    return arguments.parse(AblationOptions, words)


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
    options: AblationOptions
    ablation: Ablation
    statement: Statement
    arms: tuple[Arm, ...]
    probes: tuple[ProbeRun, ...] = ()

    @property
    def name(self) -> str:
        """The ablation's name: of its file, its MLflow experiment and its folder."""
        return self.options.name

    @property
    def ceiling(self) -> Arm:
        """The arm whose many-step solution is the table's ceiling, and whose anchors its floor is measured under."""
        return next((arm for arm in self.arms if arm.paper_arm == self.ablation.ceiling), self.arms[0])

    @property
    def folder(self) -> Path:
        return self.options.outputs / self.name

    def runs(self) -> Iterator[tuple[Arm, int, Run]]:
        """Every (arm, seed, run), seed by seed, so that a part of a plan is already a comparison of arms."""
        for seed in self.options.seeds:
            for arm in self.arms:
                yield arm, seed, arm.runs[seed]


def trainings(plan: Plan) -> dict[str, tuple[str, Run]]:
    """Every training of a plan by signature, with its label, each after its start. Shipped starts are among them."""
    labelled: dict[str, tuple[str, Run]] = {}

    def add(label: str, run: Run | None) -> None:
        if run is not None and run.training_signature not in labelled:
            add(f"start {run.start.name}", run.start_run)
            labelled[run.training_signature] = label, run

    for arm, seed, run in plan.runs():
        add(f"{arm.name} seed {seed}", run)
        add("anchors", run.anchor_run)
    return labelled


def starts(plan: Plan) -> dict[str, Run]:
    """The trainings of a plan that others depart from, by signature: other ablations share them."""
    return {signature: run for signature, (label, run) in trainings(plan).items() if label.startswith("start ")}


def start_words(start: Run) -> str:
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
    """Notes on trainings by other code: which rows use them, and which are kept unused."""
    earlier = earlier_trainings(plan.options.outputs)
    notes: list[str] = []
    for label, run in trainings(plan).values():
        alike = [e for e in earlier if run.shipped is None and e.key == run.trained_key]
        others = [e for e in alike if e.folder.name != run.training_signature]
        if run.is_as_trained:
            code = next((e.code for e in alike if e.folder.name == run.training_signature), "unknown")
            notes.append(f"{label}: {run.training_signature}, as it was trained by other code ({code})")
        elif others:
            is_finished = others[0].is_finished
            use = "code=as_trained uses it" if is_finished else "not finished, that code alone goes on with it"
            notes.append(f"{label}: {others[0].folder} was trained by other code (kept; {use})")
    return notes


def make_plan(options: AblationOptions) -> Plan:
    """Compose and check every arm and seed. Raises ConfigError."""
    return plan_of(options, *load(options.name))


def plan_of(options: AblationOptions, ablation: Ablation, stated: Statement) -> Plan:
    """The plan of an ablation, which need not come from a file. Raises ConfigError."""
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
            raise ConfigError(f"{override}: an ablation has seeds=…, e.g. seeds=[{override.partition('=')[2]}]")
    swept, stated, overrides = _take_sweeps(options, ablation, stated)
    _check_overrides(ablation, options.name, overrides)
    is_swept, ablation = swept.arms != ablation.arms, swept
    chosen = [name for name in ablation.arms if is_swept or not options.arms or name in options.arms]
    crossed = ablation.across[1] if ablation.across else [None]
    arms: list[Arm] = []
    for value in crossed:
        above = None
        for name in chosen:
            arm = _arm(ablation, options, overrides, name, value, above)
            arms.append(arm)
            above = arm.name if above is None or ablation.versus == "above" else above
    _check_controlled(ablation, arms)
    probes = () if ablation.probe is None else tuple(_probes(ablation.probe, arms))
    return Plan(options, ablation, stated, tuple(arms), probes)


def _take_sweeps(
    options: AblationOptions, ablation: Ablation, stated: Statement
) -> tuple[Ablation, Statement, tuple[str, ...]]:
    """The ablation with its sweeps as arms, its statement, and the overrides that are no sweeps.

    Raises: ConfigError for a sweep without a base to sweep on, a value given twice, or a third sweep.
    """
    sweeps = {override: values for override in options.overrides if (values := swept_values(override))}
    rest = tuple(override for override in options.overrides if override not in sweeps)
    keys = [override_key(override) for override in options.overrides]
    arms_swept, crossed = False, ablation.across
    for override, values in sweeps.items():
        key = override_key(override)
        if keys.count(key) > 1:
            raise ConfigError(f"{override}: {key} is given more than once; one list, e.g. {key}={','.join(values)}")
        if odd := [value for value in values if " " in value]:
            raise ConfigError(f"{override}: {odd[0]!r} has a space, which the overrides of an arm cannot have")
        if twice := [value for value in values if values.count(value) > 1]:
            raise ConfigError(f"{override}: {twice[0]} is given twice, nothing would be compared")
        if ablation.across is not None and ablation.across[0] == key:
            ablation = replace(ablation, across=(key, values))
        elif not arms_swept:
            ablation = _with_swept_arms(options, ablation, rest, override, values)
            arms_swept = True
        elif ablation.across is None:
            ablation = replace(ablation, across=(key, values))
        else:
            already = f", and {options.name} is crossed with {crossed[0]}" if crossed else ""
            raise ConfigError(f"{' '.join(sweeps)}: at most two lists are crossed{already}; give {key} one value")
    if sweeps:  # the file's claim is not about these arms
        stated = Statement(f"{' '.join(sweeps)} (a sweep of {options.name})", "", "", "")
        ablation = replace(ablation, claims=())
    return ablation, stated, rest


def _with_swept_arms(
    options: AblationOptions, ablation: Ablation, rest: Sequence[str], override: str, values: tuple[str, ...]
) -> Ablation:
    """The ablation with an arm per value: all based on the one arm that was chosen, or on nothing beyond `fixed` where
    the sweep replaces all that the ablation varies."""
    key, chosen = override_key(override), options.arms
    others = [v for v in ablation.varies if v != key and not v.startswith(f"{key}.") and not key.startswith(f"{v}.")]
    base = ablation.arms[chosen[0]] if len(chosen) == 1 else ""
    if len(chosen) > 1 or (not chosen and others):
        arm = (chosen or list(ablation.arms))[-1]
        # raises where there is no such key
        compose_run([*ablation.fixed.split(), *rest, *ablation.arms[arm].split(), f"{key}={values[0]}"])
        why = f"{options.name} also varies {', '.join(others)}" if others else "arms= names several"
        raise ConfigError(f"{override}: {why}; say on which arm, e.g. arms={arm} (of {', '.join(ablation.arms)})")
    kept = [word for word in base.split() if not _is_varied(override_key(word), [key])]
    prefix = "" if key in groups() else f"{key.rpartition('.')[2]}_"
    # `[0.9,0.99]` -> `0.9_0.99`: arms name files, and MLflow's runs
    names = {value: prefix + re.sub(r"[^\w.\-]+", "_", value).strip("_") for value in values}
    return replace(
        ablation,
        varies=(key,),
        arms={name: " ".join([*kept, f"{key}={value}"]) for value, name in names.items()},
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
        if any(_is_varied(v, [key]) for v in _varied_keys(ablation)):
            raise ConfigError(
                f"{override}: {key} is what {name} varies (arms: {', '.join(ablation.arms)}); several values, "
                f"{key}=…,…, take the place of these"
            )


def _arm(
    ablation: Ablation, options: AblationOptions, given: Sequence[str], name: str, value: Any, above: str | None
) -> Arm:
    across = [f"{ablation.across[0]}={value}"] if ablation.across else []
    overrides = [*ablation.fixed.split(), *given, *ablation.arms[name].split(), *across]
    label = _label(ablation, name, value)
    try:
        run = with_code(build(overrides), options.outputs)
        runs = {seed: run.with_seed(seed, 1000 + seed if options.vary_start else None) for seed in options.seeds}
        _check_shares(run)
    except ConfigError as error:
        raise error.with_prefix(f"arm {label}: ") from error
    tuned = [o for o in (*ablation.fixed.split(), *ablation.arms[name].split()) if o.startswith("optimizer.")]
    given_keys = {override_key(o) for o in given}
    if run.departs_from_wan and (left := [o for o in tuned if override_key(o) not in given_keys]):
        raise ConfigError(
            f"arm {label}: {' '.join(left)} is fixed for the tiny scale; at scale={run.scale.name} give your own, e.g. "
            f'args="… optimizer.lr=1e-5 optimizer.final_lr=1"'
        )
    return Arm(label, runs, {key: run.config.label(key) for key in _varied_keys(ablation)}, above, name)


def _check_shares(run: Run) -> None:
    """The check of every training that a run needs when it starts: the run, its start, and those of its anchors."""
    check_share(run)
    for group, needed in (("start", run.start_run), ("anchors", run.anchor_run)):
        try:
            if needed is not None:
                _check_shares(needed)
        except ConfigError as error:
            raise error.with_prefix(f"{group}: ") from error


def _check_controlled(ablation: Ablation, arms: Sequence[Arm]) -> None:
    """Arms differ in `varies` alone, and no two are the same run."""
    keys = _varied_keys(ablation)
    of_objective: dict[str, Arm] = {}
    for arm in arms:
        # with the first, and with the first of the same objective, whose parts can be compared too
        for other in (arms[0], of_objective.setdefault(arm.first.config.choices["objective"], arm)):
            stray = [k for k in _differing(other.first.config, arm.first.config) if not _is_varied(k, keys)]
            if stray:
                raise ConfigError(
                    f"arms {other.name} and {arm.name} differ in {', '.join(stray)}, which is not among what the "
                    f"ablation varies ({', '.join(keys)})"
                )
    seen: dict[str, str] = {}
    for arm in arms:
        twin = seen.setdefault(arm.first.signature, arm.name)
        if twin != arm.name:
            raise ConfigError(
                f"arms {twin} and {arm.name} are the same run ({arm.first.signature}): nothing is compared"
            )


def _varied_keys(ablation: Ablation) -> list[str]:
    return [*ablation.varies, *([ablation.across[0]] if ablation.across else [])]


def _is_varied(key: str, varies: Sequence[str]) -> bool:
    """Whether a key is one of `varies` or lies below one."""
    return any(key == v or key.startswith(f"{v}.") for v in varies)


def _differing(a: Config, b: Config) -> list[str]:
    """Dotted keys in which two configurations differ, except parts that only one of two objectives has."""
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
