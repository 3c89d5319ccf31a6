"""Signatures: hashes of all that can change a run's weights, its clips, or the clips it is measured against.

They are methods and cached properties of `Run`. `provenance` says what code made a result.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pw.io.files import digest
from pw.io.paths import IS_CHECKOUT, ROOT, SUITE, commit_of
from pw.io.wan_weights import WeightsError, fingerprint, locate
from pw.nn import options
from pw.run.code import classes_of, code_hash

if TYPE_CHECKING:
    from pw.run.build import Run

# Groups that cannot change the trained weights.
NOT_TRAINING = {"sampling", "solver", "guidance", "anchors", "trainer", "code"}
# Keys of `sampling` that cannot change the sampled clips.
NOT_SAMPLING = {"batch_size", "solution_steps", "solution_count"}
# Keys of `data` that the clips' fingerprint or the scale stand for.
NOT_DATA = {"urls", "width"}
# Keys of `scale` that schedule and injector repeat.
NOT_SCALE = {"shift", "anchor_shift", "injector_blocks", "injector_hidden", "norm_groups"}
# The code of a stage: a training leaves out how it samples, sampling how it trains.
STAGES = {"anchor": "pw.stages.stage.AnchorModel", "hires": "pw.stages.stage.HiresSynth"}
SAMPLES = {"pw.stages.stage.Stage.sample", *(f"{stage}.synthesise" for stage in STAGES.values())}
TRAINS = {
    *(f"pw.stages.stage.Stage.{name}" for name in ("training_step", "loss", "optimizer_step", "configure_optimizers")),
    *(f"{stage}.prepare" for stage in STAGES.values()),
}
# Kernels, compilation and distribution change a result by rounding alone.
PLACES = {
    *("pw.nn.networks.compile_blocks", "pw.nn.networks.use_kernel", "pw.nn.backbone.on_host"),
    *("pw.nn.backbone.share_tokens", "pw.nn.backbone.groups_of"),
}
# Methods of an objective, and of its parts, that plan a training and do not enter the loss.
PLANNING = ("depends_on_batch", "step_sampler", "check", "is_consistency", "consistency_updates")
PLANNING_OF_PARTS = ("depends_on_batch", "consistency_updates")
# Code that counts only for runs that chose it: key -> its value -> the class.
CHOSEN = {
    "gate": {
        "scalar": "pw.nn.adapters.ScalarGate",
        "channelwise": "pw.nn.adapters.ChannelGate",
        "fixed": "pw.nn.adapters.FixedGate",
    },
    "codec": {"SpaceToDepth": "pw.nn.codec.SpaceToDepthCodec", "WanVAE": "pw.nn.codec.WanCodec"},
}


def values_as_read(run: Run) -> dict[str, Any]:
    """The configuration with numbers converted to their fields' types: p=1 and p=1.0 are the same run."""
    parts = vars(run.objective) | vars(run) | {"data": run.source}
    return {key: _as_read(node, parts.get(key)) for key, node in run.config.values.items()}


def _as_read(node: Any, part: Any) -> Any:
    if not isinstance(node, Mapping) or not dataclasses.is_dataclass(part):
        return node
    return {
        k: _as_read(v, getattr(part, k)) if isinstance(v, Mapping) else getattr(part, k, v) for k, v in node.items()
    }


def training_values(run: Run, *, named: bool) -> dict[str, Any]:
    """All of the configuration that can change the trained weights, the start and the accelerator left out.

    named  keep the class names of strategies; if not, the hash of their code identifies them
    """
    kept = {k: v for k, v in run.values_as_read.items() if k not in NOT_TRAINING | {"start"}}
    kept["train"] = {k: v for k, v in kept["train"].items() if k != "checkpoint_every"}
    if run.train.updates == 0:  # the start as it is
        kept.pop("optimizer")
    kept["scale"] = {k: v for k, v in kept["scale"].items() if k not in NOT_SCALE}
    kept.pop("text")  # a prompt's embedding is the backbone's; the negative prompt is not used in training
    kept["data"] = {k: v for k, v in kept["data"].items() if k not in NOT_DATA}
    kept["clips"] = run.source.fingerprint()
    if run.departs_from_wan:
        kept["weights"] = weights_fingerprint(run, "transformer")
    if run.text is not None and run.config.choices["data"] == "shards":  # encoded as they are read
        kept["encoders"] = [weights_fingerprint(run, part) for part in ("vae", "text_encoder")]
    return without_modules(kept, named)


def of_configuration(run: Run) -> str:
    """8 hex digits of a training's configuration, without code and accelerator."""
    start = run.start_run
    if start is not None:
        start = start.training_signature if start.shipped else start.configuration_signature
    return digest({**training_values(run, named=True), "start": start})


def training_code(run: Run) -> str:
    """Hash of the code that computes the trained weights (`pw.run.code`)."""
    parts = (run.objective, run.schedule, run.degradation, run.source, run.backbone, run.codec, run.injector)
    unused = SAMPLES | _planning(run.objective) | {f"{next(classes_of(run.source))}.evaluation"}
    return _code(run, parts, unused, "pw.train.batches.batches", "pw.train.batches.clips")


def _planning(objective: Any) -> set[str]:
    """Dotted names of the planning methods of one of our objectives and of its parts."""
    whole, *parts = classes_of(objective)
    names = [f"{whole}.{name}" for name in PLANNING]
    names += [f"{part}.{name}" for part in parts for name in PLANNING_OF_PARTS]
    return {name for name in names if name.startswith("pw.")}


def sampling_code(run: Run) -> str:
    """Hash of the code that computes clips from trained weights."""
    parts = (run.solver, run.guidance, run.schedule, run.anchor_degradation, run.backbone, run.codec, run.injector)
    more = [f"pw.run.build.Run.{name}" for name in ("grid", "feeds_strides")]
    more += [f"pw.sample.evaluate.{name}" for name in ("synthesise", "degraded_anchors", "to_full_size")]
    if run.text is not None:
        more += ["pw.nn.networks.load_network", "pw.sample.evaluate.evaluation_texts"]
    return _code(run, parts, TRAINS, *more)


def evaluation_code(run: Run) -> str:
    """Hash of the code that makes the evaluation clips."""
    roots = tuple(classes_of(run.source))
    return code_hash(roots, frozenset({f"{roots[0]}.batch"}))


def _code(run: Run, parts: Sequence[Any], unused: set[str], *more: str) -> str:
    """Hash of the code of the stage, of `parts` and of `more`, without `unused` code and choices not made."""
    gate = run.injector.gate if isinstance(run.injector, options.Injector) else ""
    chosen = {"gate": gate, "codec": type(run.codec).__name__}
    left = {name for key, rivals in CHOSEN.items() for choice, name in rivals.items() if choice != chosen[key]}
    left |= set() if gate else {"pw.nn.adapters.AnchorGuidedInjector"}
    left |= {"pw.nn.text.TextEncoder", "pw.nn.networks.pretrained"} if run.text is None else set()
    roots = [STAGES[run.stage], *(name for part in parts if part is not None for name in classes_of(part)), *more]
    return code_hash(tuple(roots), frozenset(left | PLACES | unused))


def of_training(run: Run) -> str:
    """8 hex digits of configuration, current code, accelerator and start."""
    kept = training_values(run, named=False)
    kept["accelerator"] = run.trainer.accelerator
    kept["start"] = run.start_run.training_signature if run.start_run else None
    kept["code"] = run.training_code
    return digest(kept)


def of_samples(run: Run, evaluation_seed: int) -> str:
    """8 hex digits of all that can change the sampled clips of an evaluation seed."""
    sampling = run.values_as_read["sampling"].items()
    kept = {
        "training": run.training_signature,
        "sampling": {k: v for k, v in sampling if k not in NOT_SAMPLING and (k, v) != ("grid", "uniform")},
        "evaluation_seed": evaluation_seed,
        "anchor_stage": run.anchor_run.sample_signature(evaluation_seed) if run.anchor_run else None,
        **{key: run.values_as_read[key] for key in ("solver", "guidance")},
        "anchors": _as_read(run.config["anchors"]["degradation"], run.anchor_degradation),
        "code": [run.sampling_code, run.evaluation_code],
    }
    if run.text is not None:
        kept["negative_prompt"] = run.text.negative_prompt
        kept["weights"] = [weights_fingerprint(run, part) for part in ("vae", "text_encoder")]
        kept["attention"] = run.trainer.attention == "sage"  # the one that is not exact
    return digest(without_modules(kept))


def of_evaluation(run: Run, evaluation_seed: int) -> str:
    """Signature of a seed's evaluation clips, the same in every arm."""
    data = without_modules(run.values_as_read["data"])
    kept = {
        "scale": {k: v for k, v in dataclasses.asdict(run.scale).items() if k not in NOT_SCALE},
        "data": {k: v for k, v in data.items() if k not in NOT_DATA},
        "code": run.evaluation_code,
        "clips": run.source.fingerprint(),
        "count": run.sampling.count,
        "seed": evaluation_seed,
    }
    held_out = getattr(run.source, "held_out", None)
    return digest({**kept, **({"held_out": held_out()} if held_out else {})})


def of_degradation(run: Run) -> str:
    """Signature of the training degradation."""
    code = code_hash(tuple(classes_of(run.degradation)))
    return digest([without_modules(run.values_as_read["degradation"]), code])


def without_modules(node: Any, named: bool = False) -> Any:
    """The values without module names: `_target_` keeps the class name if `named`, else it is removed."""
    if not isinstance(node, Mapping):
        return node
    return {
        k: v.rpartition(".")[2] if k == "_target_" and v else without_modules(v, named)
        for k, v in node.items()
        if named or k != "_target_"
    }


def weights_fingerprint(run: Run, part: str) -> str | None:
    """Fingerprint of a part of Wan's weights; None if they are missing: then a run can be planned, not trained."""
    try:
        folder = locate(run.trainer.weights)
    except WeightsError:
        return None
    return _fingerprint(folder / part) if (folder / part).is_dir() else None


_fingerprint = lru_cache(maxsize=64)(fingerprint)


@lru_cache(maxsize=1)
def provenance() -> dict[str, Any]:
    """Where a result comes from, stamped on every training and score; what is not known outside a checkout is None.

    {"git_commit", "dirty", "code" (hash of `pw` and `benchmarks`), "lock_hash"}
    """
    # an environment may lie in a repository of something else
    commit, is_dirty = commit_of(ROOT) if IS_CHECKOUT else (None, None)
    lock = ROOT / "requirements" / "dev.lock"
    files = [
        path
        for folder in (ROOT / "pw", SUITE / "benchmarks")
        for path in sorted(folder.rglob("*.py"))
        if "_suite" not in path.relative_to(folder).parts  # where a wheel has the suite
    ]
    return {
        "git_commit": commit,
        "dirty": is_dirty,
        "code": _hash(files),
        "lock_hash": _hash([lock]) if lock.exists() else None,
    }


def _hash(paths: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]
