"""A sweep from the command line: `step_sampler.beta=0,0.2,0.4` makes an arm of every value.

    name=beta args="step_sampler.beta=0,0.2,0.4"                     in place of the file's arms
    name=ansc args="arms=full weighting.p=0,0.5,1"                   a key that the ablation does not vary: of one arm
    name=ladder args="sampling.num_steps=2,8"                        in place of what its arms are crossed with
    name=beta args="step_sampler.beta=0,0.7 sampling.num_steps=2,4"  two lists are crossed

A list in brackets (`optimizer.betas=[0.9,0.99]`) is one value, as everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from experiments.engine.ablation import Ablation, Statement
from pw.io.arguments import ConfigError
from pw.run.compose import compose_run, groups, override_key, swept_values


def take_sweeps(
    name: str, ablation: Ablation, stated: Statement, chosen: Sequence[str], overrides: Sequence[str]
) -> tuple[Ablation, Statement, tuple[str, ...]]:
    """The ablation with its sweeps as arms, its statement, and the overrides that are no sweeps.

    chosen: arms that were asked for by name, all if empty.
    Raises: ConfigError for a sweep without a base to sweep on, a value given twice, or a third sweep.
    """
    sweeps = {override: values for override in overrides if (values := swept_values(override))}
    rest = tuple(override for override in overrides if override not in sweeps)
    keys = [override_key(override) for override in overrides]
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
            ablation = _swept(name, ablation, chosen, rest, override, values)
            arms_swept = True
        elif ablation.across is None:
            ablation = replace(ablation, across=(key, values))
        else:
            already = f", and {name} is crossed with {crossed[0]}" if crossed else ""
            raise ConfigError(f"{' '.join(sweeps)}: at most two lists are crossed{already}; give {key} one value")
    if sweeps:  # the file's claim is not about these arms
        stated = Statement(f"{' '.join(sweeps)} (a sweep of {name})", "", "", "")
        ablation = replace(ablation, claims=())
    return ablation, stated, rest


def _swept(
    name: str, ablation: Ablation, chosen: Sequence[str], rest: Sequence[str], override: str, values: tuple[str, ...]
) -> Ablation:
    """The ablation with an arm per value, in place of its arms."""
    key = override_key(override)
    base = _base(name, ablation, chosen, rest, override, values)
    kept = [word for word in base.split() if override_key(word) != key and not override_key(word).startswith(f"{key}.")]
    prefix = "" if key in groups() else f"{key.rpartition('.')[2]}_"
    return replace(
        ablation,
        varies=(key,),
        arms={f"{prefix}{_as_name(value)}": " ".join([*kept, f"{key}={value}"]) for value in values},
        versus="first",
        paper=None,
        probe=None,
        ceiling=None,
        curve=ablation.curve if ablation.curve is not None and ablation.curve[0] == key else None,
    )


def _as_name(value: str) -> str:
    """`[0.9,0.99]` -> `0.9_0.99`: arms name files, and MLflow's runs."""
    return re.sub(r"[^\w.\-]+", "_", value).strip("_")


def _base(
    name: str, ablation: Ablation, chosen: Sequence[str], rest: Sequence[str], override: str, values: tuple[str, ...]
) -> str:
    """What the arms of a sweep share beyond `fixed`: the one arm that was chosen, or nothing where the sweep replaces
    all that the ablation varies."""
    key = override_key(override)
    if len(chosen) == 1:
        return ablation.arms[chosen[0]]
    others = [v for v in ablation.varies if v != key and not v.startswith(f"{key}.") and not key.startswith(f"{v}.")]
    if not chosen and not others:
        return ""
    arm = (chosen or list(ablation.arms))[-1]
    compose_run([*ablation.fixed.split(), *rest, *ablation.arms[arm].split(), f"{key}={values[0]}"])  # is there a key
    why = f"{name} also varies {', '.join(others)}" if others else "arms= names several"
    raise ConfigError(f"{override}: {why}; say on which arm, e.g. arms={arm} (of {', '.join(ablation.arms)})")
