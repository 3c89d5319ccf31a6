"""From an ablation to the runs it needs: composed, built and checked before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.engine.ablation import Ablation, AblationOptions, Statement, load
from experiments.engine.outcome.verdict import check_claims
from experiments.engine.sweep import take_sweeps
from pw.io import arguments
from pw.io.arguments import ConfigError, did_you_mean
from pw.run.build import Run, build
from pw.run.compose import Config, leaves, override_key
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
    """An ablation, composed."""

    options: AblationOptions
    ablation: Ablation
    statement: Statement
    arms: tuple[Arm, ...]
    probes: tuple[ProbeRun, ...] = field(default=())

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
        """Where the table goes."""
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
    """A start in words, for a plan and a table."""
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
        raise error.within(f"{options.name}: ") from error
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


def _chosen_arms(ablation: Ablation, options: AblationOptions) -> list[str]:
    for name in options.arms:
        if name not in ablation.arms:
            hint = did_you_mean(name, ablation.arms)
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
        raise error.within(f"arm {label}: ") from error
    tuned = [o for o in (*ablation.fixed.split(), *ablation.arms[name].split()) if o.startswith("optimizer.")]
    given_keys = {override_key(o) for o in given}
    if run.departs_from_wan and (left := [o for o in tuned if override_key(o) not in given_keys]):
        raise ConfigError(
            f"arm {label}: {' '.join(left)} is fixed for the tiny scale; at scale={run.scale.name} give your own, e.g. "
            f'args="… optimizer.lr=1e-5 optimizer.final_lr=1"'
        )
    keys = [*ablation.varies, *([ablation.across[0]] if ablation.across else [])]
    return Arm(label, runs, {key: run.config.label(key) for key in keys}, above, name)


def _check_shares(run: Run) -> None:
    """The check of every training that a run needs when it starts: the run, its start, and those of its anchors."""
    check_share(run)
    for group, needed in (("start", run.start_run), ("anchors", run.anchor_run)):
        try:
            if needed is not None:
                _check_shares(needed)
        except ConfigError as error:
            raise error.within(f"{group}: ") from error


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
    """Each arm with the first, and with the first of the same objective, whose parts can be compared too."""
    of_objective: dict[str, Arm] = {}
    for arm in arms:
        alike = of_objective.setdefault(arm.first.config.choices["objective"], arm)
        yield from ((other, arm) for other in (arms[0], alike) if other is not arm)


def _is_varied(key: str, varies: Sequence[str]) -> bool:
    return any(key == v or key.startswith(f"{v}.") for v in varies)


def _differing(a: Config, b: Config) -> list[str]:
    """Dotted keys in which two configurations differ, except parts that only one of two objectives has."""
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
