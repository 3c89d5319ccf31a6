"""Arms by revisions of the code: each arm by each revision, compared with the first. Begin with `by_revisions`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from experiments.engine.revisions.checkout import Revision, changed_lines, revisions
from experiments.engine.revisions.revision_run import RevisionRun, describe
from pw.io.arguments import ConfigError
from pw.run.build import Run
from pw.run.compose import leaves, override_key

if TYPE_CHECKING:
    from experiments.engine.plan import Arm, Plan

NAMED = 8  # definitions or keys that a note names
PLANNED = ("count", "num_steps", "solution_steps", "solution_count")  # keys of `sampling` that jobs are planned by
KINDS = {"training": "trainings", "sampling": "clips"}
Answers = Mapping[str, Mapping[int, Mapping[str, Any]]]  # arm -> seed -> answer of a revision


def by_revisions(plan: Plan) -> Plan:
    """The plan with each arm made by each revision of `code=`, and notes on what differs. Raises ConfigError.

    Several revisions take the place of the claim: each arm is compared with the same arm by the first. An arm that is
    the same run by two of them has one row.
    """
    options = plan.options
    versions = revisions(options.code, options.outputs)
    runs = [(seed, run) for arm in plan.arms for seed, run in arm.runs.items()]
    with ThreadPoolExecutor() as threads:
        described_by = lambda version: describe(version, [(_words(version, run), seed) for seed, run in runs])  # noqa: E731
        descriptions = list(threads.map(described_by, versions))
    answers = []
    for version, described in zip(versions, descriptions, strict=True):
        rest = iter(described)
        answers.append(
            {arm.name: {seed: _planned(next(rest), run) for seed, run in arm.runs.items()} for arm in plan.arms}
        )
        _check_planned(version, plan.arms, answers[-1])
    for version, other in zip(versions[1:], answers[1:], strict=True):
        _check_comparable(plan, versions[0], version, answers[0], other)
    notes = [str(versions[0])]
    for version, other in zip(versions[1:], answers[1:], strict=True):
        notes += [f"{version}; against {versions[0].name}: {changed_lines(versions[0], version)}"]
        notes += _differences(versions[0], version, answers[0], other)
    arms = [arm for arm in plan.arms for arm in _arms(arm, versions, answers)]
    ablation, statement = replace(plan.ablation, probe=None), plan.statement
    if len(versions) > 1:
        title = f"code={','.join(options.code)}: {statement.title}"
        statement = replace(statement, title=title, claim="", refuted="", verdict="")
        ablation = replace(ablation, claims=(), paper=None, versus="first")
    return replace(
        plan,
        ablation=ablation,
        statement=statement,
        arms=tuple(arms),
        probes=(),
        revisions=tuple(versions),
        code_notes=tuple(notes),
    )


def _words(version: Revision, run: Run) -> tuple[str, ...]:
    """The words of a run for a revision; those of `tracking` change no result, and older ones do not have them."""
    is_older = not (version.folder / "conf" / "tracking").is_dir()
    return tuple(word for word in run.config.overrides if not (is_older and override_key(word).startswith("tracking")))


def _planned(answer: Mapping[str, Any], run: Run) -> Mapping[str, Any]:
    """The answer for a run, without a many-step solution where the current code plans none."""
    parts = answer["parts"]
    return {**answer, "parts": {**parts, "solution": None if run.solution is None else parts["solution"]}}


def _arms(arm: Arm, versions: Sequence[Revision], answers: Sequence[Answers]) -> Iterator[Arm]:
    """An arm by each revision, without those that are the same run as one before."""
    signatures, first = set(), None
    for version, of_version in zip(versions, answers, strict=True):
        of_arm = of_version[arm.name]
        signature = _signatures(of_arm)
        if signature in signatures:
            continue
        signatures.add(signature)
        runs = {
            seed: RevisionRun.of(run, answer=of_arm[seed], revision=version, words=_words(version, run))
            for seed, run in arm.runs.items()
        }
        if len(versions) == 1:
            yield replace(arm, runs=runs)
            return
        name = f"{arm.name}@{version.name}"
        yield replace(arm, name=name, runs=runs, varied={**arm.varied, "code": version.name}, versus=first)
        first = first or name


def _signatures(answers: Mapping[int, Mapping[str, Any]]) -> tuple[str, ...]:
    """What tells the runs of an arm from those of another: clips, and the many-step solution."""
    return tuple(node["sample_signature"] for a in answers.values() for node in (a, a["parts"]["solution"]) if node)


def _check_planned(version: Revision, arms: Sequence[Arm], answers: Answers) -> None:
    """Check that a revision samples the numbers of clips and steps that are planned. Raises ConfigError."""
    for arm in arms:
        for seed, run in arm.runs.items():
            there, here = answers[arm.name][seed]["config"]["values"]["sampling"], run.config.values["sampling"]
            for key in PLANNED:
                if there.get(key) != here[key]:
                    reason = f"sampling.{key} is {there.get(key)} there and {here[key]} in the current code"
                    raise ConfigError(f"code={version.name}: {reason}; give it a value, sampling.{key}=…")


def _check_comparable(plan: Plan, first: Revision, version: Revision, a: Answers, b: Answers) -> None:
    """Check that two revisions are measured by the same clips. Raises ConfigError."""
    keys = {"evaluation_signature": "evaluation clips"}
    keys |= {"degradation_signature": "reference anchors"} if plan.ablation.native else {}
    for arm, seeds in a.items():
        for seed, answer in seeds.items():
            other = b[arm][seed]
            for key, what in keys.items():
                if answer[key] != other[key]:
                    changes = _changes(answer, other, "evaluation") or ["data, scale or sampling.count"]
                    reason = f"makes other {what} than {first.name}, so scores would not be of the same clips"
                    raise ConfigError(f"code={version.name}: {reason} (differs: {_listed(changes)})")


def _differences(first: Revision, version: Revision, a: Answers, b: Answers) -> list[str]:
    """Notes on what a revision computes otherwise than the first, those of several arms together."""
    arms_of: dict[str, list[str]] = {}
    for arm, seeds in a.items():
        for text in _arm_differences(first, version, seeds, b[arm]):
            arms_of.setdefault(text, []).append(arm)
    return [f"{version.name}, {', '.join(arms)}: {text}" for text, arms in arms_of.items()]


def _arm_differences(first: Revision, version: Revision, a: Mapping[int, Any], b: Mapping[int, Any]) -> Iterator[str]:
    if _signatures(a) == _signatures(b):
        yield f"code={version.name} computes what {first.name} computes: the runs are the same and have one row"
        return
    left, right = next(iter(a.values())), next(iter(b.values()))
    if left["training_signature"] == right["training_signature"]:
        yield f"trained as by {first.name}: the trainings are the same"
    named = {what: _changes(left, right, kind) for kind, what in KINDS.items()}
    if named["trainings"] == named["clips"] and named["clips"]:
        named = {"trainings and clips": named["clips"]}
    for what, changes in named.items():
        if changes:
            yield f"what computes its {what} has changed: {_listed(changes)}"
    values = leaves(left["config"]["values"]), leaves(right["config"]["values"])
    keys = [k for k in dict.fromkeys([*values[0], *values[1]]) if values[0].get(k) != values[1].get(k)]
    if keys := [key for key in keys if not key.endswith("_target_") and not key.startswith("tracking")]:
        yield f"conf/ has changed: {_listed([f'{k} {values[0].get(k)} → {values[1].get(k)}' for k in keys])}"
    if not keys and not any(named.values()):
        yield "no definition that computes these runs differs, but their signatures do: how they are made has changed"


def _changes(a: Mapping[str, Any], b: Mapping[str, Any], kind: str) -> list[str]:
    """The definitions that differ in what computes a run; not those that were only moved or renamed."""
    if not (a["computed"] and b["computed"]):
        return []
    left, right = a["computed"][kind], b["computed"][kind]
    moved = {*left.values()} & {*right.values()}
    gone, new = ({n for n in a.keys() - b.keys() if a[n] not in moved} for a, b in ((left, right), (right, left)))
    edited = {name for name in left.keys() & right.keys() if left[name] != right[name]}
    states = {**dict.fromkeys(edited, ""), **dict.fromkeys(gone, " (gone)"), **dict.fromkeys(new, " (new)")}
    return [f"{name}{states[name]}" for name in sorted(states)]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"
