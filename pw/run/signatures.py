"""Signatures: hashes of everything that can change the weights of a run, its clips, or its evaluation clips.

Most functions are methods and cached properties of `Run`. `provenance` identifies the code that made a result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pw.io.files import digest
from pw.io.paths import ROOT
from pw.io.wan_weights import WeightsError, fingerprint, locate
from pw.nn import options
from pw.run.code import classes_of, code_hash, hash_of_files, suite_version

if TYPE_CHECKING:
    from pw.run.build import Run

# Groups that cannot change the trained weights.
NOT_TRAINING = {"sampling", "solver", "guidance", "anchors", "trainer", "tracking", "code"}
# Keys of `sampling` that cannot change the sampled clips.
NOT_SAMPLING = {"batch_size", "solution_steps", "solution_count"}
# Keys of `data` that the fingerprint of the clips or the scale covers.
NOT_DATA = {"urls", "width"}
# Keys of `data` by which a training divides its clips into batches: they change no evaluation clip.
NOT_EVALUATION = {"buckets", "bucket_weights"}
# Keys of `scale` that schedule, injector and attention contain, too.
NOT_SCALE = {
    *("shift", "anchor_shift", "injector_blocks", "injector_hidden", "norm_groups"),
    *("window", "window_tile", "attention_tile"),
}
# Keys that were added later and their neutral values, with which they do not count: signatures from before stay.
NEUTRAL: dict[str, Any] = {
    **{"taps": None, "captions": "none", "dropout": "both", "sizes": None, "init": "noise", "later": "unguided"},
    **{"image_share": 0.0, "buckets": None, "bucket_weights": None},
    **{"guidance": "none", "guidance_scale": 1.0, "guidance_drop": "text"},
}
# The code of a stage. A training does not use its sampling code, and sampling not its training code.
STAGES = {"anchor": "pw.stages.stage.AnchorModel", "hires": "pw.stages.stage.HiresSynth"}
SAMPLING_CODE = {"pw.stages.stage.Stage.sample", *(f"{stage}.synthesise" for stage in STAGES.values())}
TRAINING_CODE = {
    *(f"pw.stages.stage.Stage.{name}" for name in ("training_step", "loss", "optimizer_step", "configure_optimizers")),
    *(f"{stage}.prepare" for stage in STAGES.values()),
}
# Methods of a run that training and sampling call: no reference leads from `run` to them.
RUN_CODE = ("pw.run.build.Run.latent_size",)
# Code of runs with a text encoder.
TEXT_CODE = {"pw.nn.text.TextEncoder", "pw.nn.networks.pretrained", "pw.stages.clip_texts.ClipTexts"}
# Kernels, compilation and distribution change a result only by rounding.
PLACEMENT_CODE = {
    *("pw.nn.networks.compile_blocks", "pw.nn.networks.use_kernel", "pw.nn.backbone.on_host"),
    *("pw.nn.backbone.share_tokens", "pw.nn.backbone.groups_of", "pw.nn.placement.offload_blocks"),
    "pw.nn.codec.channels_last",
}
# Calls that do nothing unless low-rank adapters are trained, or LoRAs are given to `pw generate`.
LORA_CALLS = frozenset({"pw.nn.lora.add_lora()", "pw.nn.lora.train_lora()", "pw.nn.lora.seed_dropout()"})
MERGE_CALLS = frozenset({"pw.nn.lora.merge_loras()"})
# Methods of an objective and of its parts that plan a training and do not change the loss.
PLANNING = (
    *("depends_on_batch", "step_sampler", "check", "is_consistency", "consistency_updates"),
    *("jumps_to_data", "target_evaluations"),
)
PLANNING_OF_PARTS = ("depends_on_batch", "consistency_updates")
# Key -> value -> class whose code counts only for runs with this value.
ALTERNATIVES = {
    "gate": {
        "scalar": "pw.nn.adapters.ScalarGate",
        "channelwise": "pw.nn.adapters.ChannelGate",
        "fixed": "pw.nn.adapters.FixedGate",
    },
    "codec": {
        "SpaceToDepth": "pw.nn.codec.SpaceToDepthCodec",
        "LappedCosine": "pw.nn.cosine_codec.LappedCosineCodec",
        "WanVAE": "pw.nn.codec.WanCodec",
    },
    "decoder": {"tiny": "pw.nn.tiny_decoder.load_tiny"},
}


def typed_values(run: Run) -> dict[str, Any]:
    """The configuration, with numbers in the types of their fields: p=1 and p=1.0 are the same run."""
    parts = vars(run.objective) | vars(run) | {"data": run.source}
    return {key: _typed(node, parts.get(key)) for key, node in run.config.values.items()}


def _typed(node: Any, part: Any) -> Any:
    if not isinstance(node, Mapping) or not dataclasses.is_dataclass(part):
        return node
    return {k: _typed(v, getattr(part, k)) if isinstance(v, Mapping) else getattr(part, k, v) for k, v in node.items()}


def training_values(run: Run, *, with_class_names: bool) -> dict[str, Any]:
    """The part of the configuration that can change the trained weights, without start and accelerator.

    with_class_names  keep the class names of strategies; otherwise the hash of their code identifies them
    """
    values = {k: v for k, v in run.typed_values.items() if k not in NOT_TRAINING | {"start"}}
    unused = {"checkpoint_every"} if run.train.low_rank else {"checkpoint_every", "lora"}
    values["train"] = {k: v for k, v in values["train"].items() if k not in unused}
    if run.train.updates == 0:  # the weights are those of the start
        values.pop("optimizer")
    values["scale"] = {k: v for k, v in values["scale"].items() if k not in NOT_SCALE}
    if run.attention is None:  # the group came later
        values.pop("attention")
    values.pop("text")  # `backbone` has the sizes of an embedding; training does not use the negative prompt
    values["data"] = {k: v for k, v in values["data"].items() if k not in NOT_DATA}
    if isinstance(run.codec, options.WanVAE):  # training encodes and does not decode
        values["codec"] = {"_target_": values["codec"]["_target_"], **run.codec.encoding}
    values["clips"] = run.source.fingerprint()
    if run.starts_from_wan:
        values["weights"] = weights_fingerprint(run, "transformer")
    if run.text is not None and run.config.choices["data"] == "shards":  # clips are encoded during training
        values["encoders"] = [weights_fingerprint(run, part) for part in ("vae", "text_encoder")]
        if getattr(run.source, "has_captions", False):
            values["captions"] = "drawn"
    return without_modules(values, with_class_names)


def of_configuration(run: Run) -> str:
    """8 hex digits of the configuration of a training, without code and accelerator."""
    start = run.start_run
    if start is not None:
        start = start.training_signature if start.card else start.configuration_signature
    return digest({**training_values(run, with_class_names=True), "start": start})


def training_code(run: Run) -> str:
    """Hash of the code that computes the trained weights (`pw.run.code`)."""
    parts = (run.objective, run.schedule, run.degradation, run.source, run.backbone, run.codec, run.injector)
    parts += (run.attention,)
    source = next(classes_of(run.source))
    unused = SAMPLING_CODE | _planning(run.objective) | {f"{source}.evaluation", f"{source}.evaluated"}
    extra = (
        "pw.train.batches.batches",
        "pw.train.batches.clips",
        *RUN_CODE,
        "pw.run.build.Run.anchor_size",
        "pw.run.build.Run.target_guidance",
    )
    return _code(run, parts, unused, *extra)


def _planning(objective: Any) -> set[str]:
    """Dotted names of the planning methods of an objective of `pw` and of its parts."""
    objective_class, *part_classes = classes_of(objective)
    names = [f"{objective_class}.{name}" for name in PLANNING]
    names += [f"{part}.{name}" for part in part_classes for name in PLANNING_OF_PARTS]
    return {name for name in names if name.startswith("pw.")}


def sampling_code(run: Run) -> str:
    """Hash of the code that computes clips from trained weights."""
    parts = (run.solver, run.guidance, run.schedule, run.anchor_degradation, run.backbone, run.codec, run.injector)
    parts += (run.attention,)
    extra = [f"pw.run.build.Run.{name}" for name in ("grid", "phases", "feeds_strides")] + [*RUN_CODE]
    extra += ["pw.sample.evaluate.synthesise", "pw.sample.clip_folders.degraded_anchors"]
    extra += ["pw.sample.evaluate.to_full_size"]
    if run.text is not None:
        extra += ["pw.nn.networks.load_network", "pw.sample.evaluate.evaluation_texts"]
    elif run.has_texts:
        extra += ["pw.sample.evaluate.class_texts"]
    return _code(run, parts, TRAINING_CODE, *extra)


def evaluation_code(run: Run) -> str:
    """Hash of the code that makes the evaluation clips."""
    roots = tuple(classes_of(run.source))
    return code_hash(roots, frozenset({f"{roots[0]}.batch", f"{roots[0]}.evaluated"}))


def _code(run: Run, parts: Sequence[Any], unused: set[str], *extra: str) -> str:
    """Hash of the code of the stage, `parts` and `extra`, without `unused` code and alternatives not chosen."""
    gate = run.injector.gate if isinstance(run.injector, options.Injector) else ""
    choices = {"gate": gate, "codec": type(run.codec).__name__, "decoder": getattr(run.codec, "decoder", "")}
    exclude = {name for key, rivals in ALTERNATIVES.items() for value, name in rivals.items() if value != choices[key]}
    exclude |= set() if gate else {"pw.nn.adapters.AnchorGuidedInjector"}
    exclude |= {"pw.nn.sparse_attention.SparseMask"} if run.attention is None else set()
    exclude |= TEXT_CODE if run.text is None else set()
    exclude |= MERGE_CALLS if run.train.low_rank else MERGE_CALLS | LORA_CALLS
    roots = [STAGES[run.stage], *(name for part in parts if part is not None for name in classes_of(part)), *extra]
    return code_hash(tuple(roots), frozenset(exclude | PLACEMENT_CODE | unused))


def of_training(run: Run) -> str:
    """8 hex digits of configuration, current code, accelerator and start."""
    values = training_values(run, with_class_names=False)
    values["accelerator"] = run.trainer.accelerator
    values["start"] = run.start_run.training_signature if run.start_run else None
    values["code"] = run.training_code
    return digest(values)


def of_samples(run: Run, evaluation_seed: int) -> str:
    """8 hex digits of everything that can change the clips sampled for an evaluation seed."""
    sampling = run.typed_values["sampling"].items()
    values = {
        "training": run.training_signature,
        "sampling": {k: v for k, v in sampling if k not in NOT_SAMPLING and (k, v) != ("grid", "uniform")},
        "evaluation_seed": evaluation_seed,
        "anchor_stage": run.anchor_run.sample_signature(evaluation_seed) if run.anchor_run else None,
        **{key: run.typed_values[key] for key in ("solver", "guidance")},
        "anchors": _typed(run.config["anchors"]["degradation"], run.anchor_degradation),
        "code": [run.sampling_code, run.evaluation_code],
    }
    if run.text is not None:
        values["negative_prompt"] = run.text.negative_prompt
        values["weights"] = [weights_fingerprint(run, part) for part in ("vae", "text_encoder")]
        values["attention"] = run.trainer.attention == "sage"  # the only inexact kernel
        if run.trainer.storage == "fp8":
            values["storage"] = "fp8"
    if isinstance(run.codec, options.WanVAE) and run.codec.decoder_file is not None:
        values["decoder"] = _fingerprint(Path(run.codec.decoder_file))
    return digest(without_modules(values))


def of_evaluation(run: Run, evaluation_seed: int) -> str:
    """Signature of the evaluation clips of a seed, the same in every arm."""
    data = without_modules(run.typed_values["data"])
    values = {
        "scale": {k: v for k, v in dataclasses.asdict(run.scale).items() if k not in NOT_SCALE},
        "data": {k: v for k, v in data.items() if k not in NOT_DATA | NOT_EVALUATION},
        "code": run.evaluation_code,
        "clips": evaluation_clips(run),
        "count": run.sampling.count,
        "seed": evaluation_seed,
    }
    held_out = getattr(run.source, "held_out", None)
    return digest({**values, **({"held_out": held_out()} if held_out else {})})


def evaluation_clips(run: Run) -> str:
    """Changes when the clips do that a run is evaluated on, and not with how its training batches are drawn."""
    return getattr(run.source, "evaluated", run.source.fingerprint)()


def data_hash(run: Run) -> str:
    """8 hex digits of the clips of a run: the content of its shards or latents, or the settings of procedural clips."""
    values = run.typed_values["data"].items()
    return digest({"clips": run.source.fingerprint(), **{key: v for key, v in values if key not in NOT_DATA}})


def of_degradation(run: Run) -> str:
    """Signature of the training degradation."""
    code = code_hash(tuple(classes_of(run.degradation)))
    return digest([without_modules(run.typed_values["degradation"]), code])


def without_modules(node: Any, with_class_names: bool = False) -> Any:
    """The values without module names: `_target_` keeps the class name, or is removed without `with_class_names`."""
    if not isinstance(node, Mapping):
        return node
    return {
        k: v.rpartition(".")[2] if k == "_target_" and v else without_modules(v, with_class_names)
        for k, v in node.items()
        if (with_class_names or k != "_target_") and (k not in NEUTRAL or v != NEUTRAL[k])
    }


def weights_fingerprint(run: Run, part: str) -> str | None:
    """Fingerprint of a part of Wan's weights; None if it is missing: such a run can be planned, but not trained."""
    try:
        folder = locate(run.trainer.weights)
    except WeightsError:
        return None
    return _fingerprint(folder / part) if (folder / part).is_dir() else None


_fingerprint = lru_cache(maxsize=64)(fingerprint)


def provenance() -> dict[str, Any]:
    """The code that made a result, recorded with every training and score (`pw.run.code.suite_version`).

    {"git_commit", "dirty", "code": hash of `pw` and `benchmarks`, "lock_hash"}
    """
    commit, is_dirty, code = suite_version()
    lock = ROOT / "requirements" / "dev.lock"
    lock_hash = hash_of_files([lock]) if lock.exists() else None
    return {"git_commit": commit, "dirty": is_dirty, "code": code, "lock_hash": lock_hash}
