"""Every number of a configuration and of a command has bounds: what is beyond them is refused by name."""

from __future__ import annotations

import importlib
import typing
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import yaml

from pw.cli import VERBS
from pw.io.arguments import ConfigError, keys, parse
from pw.io.paths import CONF
from pw.run.build import SETTINGS, build
from pw.run.compose import compose_run
from pw.run.strategies import from_values, make

NEVER = (10**23, float("nan"), float("inf"), 1e308)
# Key -> what such a number means there.
HUGE_IS_FINE = {"optimizer.lr": "the loss is not finite at once, which is named with its batch"}
# Key -> what a number below zero means there.
NEGATIVE_IS_FINE = {"step_sampler.beta": "long strides are drawn less often"}
OPTIONS_NEGATIVE_IS_FINE = {
    "power correlation": "between arms",
    **{f"{verb}lora_scale": "the opposite" for verb in ("generate ", "generate anchor.")},
}
ZERO_IS_FINE = {
    "seed": "the first",
    "codec.falloff": "all coefficients deviate alike",
    "scale.injector_blocks": "the first block",
    "injector.blocks": "the first block",
    "train.updates": "the start as it is",
    "train.condition_dropout": "none",
    "train.image_share": "none",
    "optimizer.betas": "no momentum",
    "optimizer.ema": "no average",
    "optimizer.clip": "none",
    "optimizer.weight_decay": "none",
    "optimizer.warmup": "none",
    "optimizer.final_lr": "the cosine ends at 0",
    "start.updates": "Wan's own weights",
    "start.seed": "the first",
    "start.tuning": "trained from the recipe",
    "anchors.stage.updates": "Wan's own weights",
    "anchors.stage.seed": "the first",
    "data.width": "square",
    "data.text_tokens": "compared with the backbone's",
    "codec.overlap": "none",
    "degradation.blur": "none",
    "degradation.noise": "none",
    "degradation.noise_probability": "never",
    "degradation.mask": "none",
    "step_sampler.beta": "uniform",
    "step_sampler.descend": "never",
    "step_sampler.depth": "never",
    "turns.rate": "never",
    "objective.doublings": "none",
    "objective.updates": "the start as it is",
    "objective.power": "every error counts the same",
    "weighting.p": "uniform",
    "tracking.held_out": "none",
    "tracking.samples_every": "never",
    "guidance.scale": "the null branch alone",
    # checked where they are used: the schedule's shift, the injector's fields
    "scale.shift": "by schedule.shift",
    "scale.anchor_shift": "by schedule.shift",
    "scale.injector_hidden": "by injector.hidden",
    "scale.norm_groups": "by injector.groups",
}


@cache
def numbers() -> dict[str, tuple[str, Any, dict[str, Any]]]:
    """Dotted key -> (group, value, the node that holds it) of every number in the files of conf/."""
    default = compose_run([]).values
    nodes = [*default.items()]
    for path in sorted(CONF.glob("*/*.yaml")):
        # `${scale.frames}` stands for a number
        node = {k: 16 if "${" in str(v) else v for k, v in yaml.safe_load(path.read_text()).items() if k != "defaults"}
        node |= {"uri": None} if "uri" in node else {}  # from the environment
        group = path.parent.name
        if group in ("trainer", "start"):
            node = {**default[group], **node}
        nodes += [("anchors.stage", node["stage"])] if group == "anchors" else [(group, node)]
    found: dict[str, tuple[str, Any, dict[str, Any]]] = {}
    for group, node in nodes:
        for name, value in node.items() if isinstance(node, dict) else ():
            item = value[0] if isinstance(value, list) and value else value
            if isinstance(item, int | float) and not isinstance(item, bool) and group not in ("launcher", "stage"):
                found.setdefault(f"{group}.{name}", (group, value, node))
    return found


def is_refused(key: str, number: float) -> bool:
    """Whether the number is refused, by a message that begins with the key."""
    group, value, node = numbers()[key]
    changed = {**node, key.rpartition(".")[2]: [number, *value[1:]] if isinstance(value, list) else number}
    kinds = {**SETTINGS, "anchors.stage": SETTINGS["start"]}
    seed = {"seed": 0} if group == "turns" else {}
    if changed.get("_target_", "").endswith(".MeanFlow"):
        seed = {"turns": None}
    try:
        from_values(kinds[group], changed, group) if group in kinds else make(group, changed, **seed)
    except ConfigError as error:
        return str(error).startswith(key)
    return False


def test_the_walk_sees_numbers_of_every_kind() -> None:
    assert len(numbers()) > 60
    assert {
        "weighting.p",
        "step_sampler.grids",
        "turns.rate",
        "anchors.stage.seed",
        "codec.overlap",
    } <= numbers().keys()


@pytest.mark.parametrize("number", [-1, 0, *NEVER])
def test_a_number_of_a_configuration_is_refused_beyond_its_bounds(number: float) -> None:
    fine = {-1: NEGATIVE_IS_FINE, 0: ZERO_IS_FINE, 10**23: HUGE_IS_FINE}.get(number, {})
    assert {key for key in numbers() if not is_refused(key, number)} <= fine.keys()


@pytest.mark.parametrize("seed", [-1, 10**23, float("nan")])
def test_the_seed_is_refused_beyond_its_bounds(seed: float) -> None:
    with pytest.raises(ConfigError, match="seed="):
        build([f"seed={seed}"])


def options_with_numbers() -> Iterator[tuple[str, type, str]]:
    """(verb, its options, key) of every option that takes a number."""
    for verb, entry in VERBS.items():
        for module in {entry.module, *entry.variants.values()}:
            options = importlib.import_module(module).main.options
            hints, keys_of = typing.get_type_hints(options), {name: key for key, name in keys(options).items()}
            for field in fields(options):
                if {int, float} & {hints[field.name], *typing.get_args(hints[field.name])}:
                    yield verb, options, keys_of[field.name]


@pytest.mark.parametrize("number", [-1, *NEVER])
def test_an_option_is_refused_beyond_its_bounds(number: float) -> None:
    for verb, options, key in options_with_numbers():
        if number == -1 and f"{verb} {key}" in OPTIONS_NEGATIVE_IS_FINE:
            continue
        with pytest.raises(ConfigError) as error:
            parse(options, [f"{key}={number}"])
        assert str(error.value).startswith(f"{key}={number}: "), f"{verb}: {error.value}"
