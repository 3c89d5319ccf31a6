"""The nearest setting that fits: overrides that make a generation or a training small enough for a device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pw.cost.generation_cost import Stages, last_stage, stages_of
from pw.io.arguments import ConfigError
from pw.nn import options
from pw.run.build import Run, assemble, build
from pw.run.compose import override_key

SCALES = ("4k", "2k", "proxy")  # from large to small
FEWEST_FRAMES = 49  # offered instead of a smaller scale: two seconds

# run -> changes that could be made to it: plain values by dotted path
Changes = Callable[[Run], list[dict[str, Any]]]


def amended(overrides: Sequence[str], changes: Sequence[str]) -> list[str]:
    """Overrides with some replaced; a new `scale=` drops the sizes that were set for the old one."""
    keys = {override_key(change) for change in changes}
    if "scale" in keys:
        keys |= {f"scale.{name}" for name in ("height", "width", "anchor_height", "anchor_width")}
    return [o for o in overrides if override_key(o) not in keys] + list(changes)


def generation_changes(run: Run) -> list[dict[str, Any]]:
    """Changes that make a generation smaller and the same video, but for rounding and the seams of tiles."""
    changes: list[dict[str, Any]] = []
    if run.trainer.guidance_batch:
        changes.append({"trainer.guidance_batch": False})
    codec = run.codec
    if isinstance(codec, options.WanVAE):
        if codec.precision == "fp32":
            changes.append({"codec.precision": "bf16"})
        for tile in (512, 256):
            if not codec.tile or codec.tile > tile:
                changes.append({"codec.tile": tile, "codec.overlap": tile // 4})
    return changes


def training_changes(run: Run) -> list[dict[str, Any]]:
    """Changes that make a training smaller: first those with the same updates, then training fewer weights."""
    changes: list[dict[str, Any]] = []
    train = run.train
    if not train.checkpoint_activations:
        changes.append({"train.checkpoint_activations": True})
    if not run.trainer.offload_activations:
        changes.append({"trainer.offload_activations": True})
    if train.batch_size > 1:
        changes.append({"train.batch_size": 1, "train.accumulate": train.accumulate * train.batch_size})
    if train.trainable == "all" and isinstance(run.injector, options.Injector):
        changes.append({"train.trainable": "adapters"})
    return changes


def nearest(stages: Stages, changes: Changes, fits: Callable[[Stages], bool]) -> tuple[str, ...]:
    """The overrides of the nearest setting that fits; empty if there is none.

    Tried in order, each as a whole run: one of `changes`, then several; fewer frames, at least 49; a smaller scale; a
    smaller scale with fewer frames. No smaller scale for stage I alone, which has one size at every scale.
    """
    hires = stages[0]
    scales = SCALES[SCALES.index(hires.scale.name) + 1 :] if hires is not None and hires.scale.name in SCALES else ()
    for scale, few_frames in [(None, False), (None, True), *itertools.product(scales, (False, True))]:
        start, first = stages, ()
        if hires is not None and scale is not None:
            first = (f"scale={scale}",)
            try:
                smaller = build(amended(hires.config.overrides, first))
                start = (smaller, None) if stages[1] is None else stages_of(smaller)
            except ConfigError:  # another override does not allow this scale
                continue
        values = _smaller(start, changes, fits, few_frames=few_frames)
        if values is not None:
            return (*first, *(f"{key}={_text(value)}" for key, value in values.items()))
    return ()


def _smaller(
    stages: Stages, changes: Changes, fits: Callable[[Stages], bool], *, few_frames: bool
) -> dict[str, Any] | None:
    last = last_stage(stages)
    subsets = list(_subsets(changes(last)))
    for frames in _frames(last) if few_frames else (None,):
        length = {} if frames is None else {"scale.frames": frames}
        if frames is not None and not _fits(stages, {**subsets[-1], **length}, fits):  # not even with all changes
            continue
        for chosen in subsets:
            if _fits(stages, {**chosen, **length}, fits):
                return {**chosen, **length}
    return None


def _fits(stages: Stages, values: dict[str, Any], fits: Callable[[Stages], bool]) -> bool:
    """Whether the stages fit with these values set; False where the values contradict each other."""
    try:
        hires, anchor = (run and _with_values(run, values) for run in stages)
    except ConfigError:
        return False
    return fits((hires, anchor))


def _subsets(changes: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """No change, each one, each two, …, merged; of two changes of one key the later counts."""
    for size in range(len(changes) + 1):
        for chosen in itertools.combinations(changes, size):
            yield {key: value for change in chosen for key, value in change.items()}


def _frames(run: Run) -> Iterator[int]:
    """Smaller numbers of frames that the codec can make, from many to few."""
    step = run.codec.frames_factor if isinstance(run.codec, options.WanVAE) else 1
    yield from range(run.scale.frames - step, FEWEST_FRAMES - 1, -step)


def _with_values(run: Run, values: dict[str, Any]) -> Run:
    """The run with plain values set, without composing it again; `data.frames` follows `scale.frames`."""
    if "scale.frames" in values and "frames" in run.config["data"]:
        values = {**values, "data.frames": values["scale.frames"]}
    return assemble(run.config.with_values(values)) if values else run


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
