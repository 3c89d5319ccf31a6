"""Sample one run to `outputs/videos/<signature>/`: clips on disk, of the same order and noise in all arms.

    pw sample stage=hires objective=shortcut sampling.num_steps=4

A folder holds `0000.mkv`, … (lossless, at full size), `anchors/` (of large ones the first few), for stage I `native/`
(clips at the anchor's size), and `done.json`. A clip that exists is never sampled again. Only one batch of clips is in
memory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from pw.cost.counts import stage_latent
from pw.cost.generation_cost import sampling_memory
from pw.data.degradation import resize
from pw.data.procedural import generator
from pw.io.arguments import MAX_SEED, ConfigError, number, option
from pw.io.files import remove
from pw.io.host import free_memory
from pw.io.lazy import Tensor, torch
from pw.io.manifest import make_folder, write_mark
from pw.io.paths import OUTPUTS, silence_libraries
from pw.io.progress import Progress
from pw.io.wan_weights import check, locate
from pw.method.coverage import coverage
from pw.run.build import Run
from pw.run.signatures import provenance
from pw.sample.clip_folders import (
    EVALUATION_ANCHOR,
    INITIAL_NOISE,
    PARTIAL,
    clip_paths,
    degraded_anchors,
    is_sampled,
    reference_folder,
    remove_damaged,
    sample_folder,
    write_reference,
)
from pw.stages import network_of, stage_module
from pw.train.loop import checked_run, outputs_folder, run_training, train
from pw.train.record import training_folder, weights_of, write_config

if TYPE_CHECKING:
    from pw.io.video import Frames

STORED_ANCHORS = 16  # for the contact sheet and the page, which show all clips of the tiny scale:
SMALL_ANCHOR = 2**16  # pixels of all frames, up to which every anchor is stored
FRAMES_PER_CALL = 8  # frames of a clip that are converted to 8 bits in one call
Texts = tuple[Tensor, Tensor] | None  # embeddings of captions and of the negative prompt, [clips, tokens, dim] each


def sample(
    run: Run,
    outputs: Path = OUTPUTS,
    *,
    limit: int | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    training: Progress | None = None,
    is_checked: bool = False,
) -> Path:
    """Sample the first `limit` clips (all `sampling.count` by default) of a run, which is first trained if it is not.

    seed        of the evaluation clips and the initial noise, the run's own by default
    progress    called with (batch, batches) of the sampling
    training    called with (update, updates) of a training before it
    is_checked  whether the caller has called `preflight`
    """
    seed = run.seed if seed is None else seed
    limit = run.sampling.count if limit is None else limit
    folder = sample_folder(run, outputs, seed)
    if not is_sampled(run, limit, outputs, seed):
        check_sampling(run)
    train(run, outputs, training, is_checked=is_checked)
    write_reference(run, outputs, seed)
    if run.anchor_run is not None:
        sample(run.anchor_run, outputs, limit=limit, seed=seed, training=training)
    make_folder(folder)
    with FileLock(folder / ".lock"):
        if not is_sampled(run, limit, outputs, seed, thorough=True):
            _sample(run, folder, outputs, limit, seed, progress)
    return folder


def _sample(run: Run, folder: Path, outputs: Path, limit: int, seed: int, progress: Progress | None) -> None:
    from pw.io.video import to_uint8, write_video

    start, cpu_start = time.perf_counter(), time.process_time()
    previous = remove_damaged(folder)
    texts = evaluation_texts(run, outputs, limit, seed)  # before the network: its encoder is as large
    module = load_stage(run, outputs)
    anchors = evaluation_anchors(run, outputs, seed)
    for name in ("anchors", "native"):
        make_folder(folder / name)
    write_config(run, folder, "sample")
    # a batch is sampled whole even if only some clips are missing: sums, so bits, stay the same after a kill
    size = run.sampling.batch_size
    batches = [range(first, min(first + size, limit)) for first in range(0, limit, size)]
    missing = {index for index in range(limit) if not (folder / f"{index:04d}.mkv").exists()}
    batches = [list(batch) for batch in batches if missing & set(batch)]
    for batch_number, indices in enumerate(batches, start=1):
        anchor = None if anchors is None else anchors(indices)
        clips = synthesise(run, module, anchor, indices, seed, texts)
        for position, index in enumerate(indices):
            if index not in missing:
                continue
            if run.stage == "anchor":
                write_video(folder / "native" / f"{index:04d}.mkv", to_uint8(clips[position]))
            if anchor is not None and (index < STORED_ANCHORS or anchor[position, 0].numel() <= SMALL_ANCHOR):
                write_video(folder / "anchors" / f"{index:04d}.mkv", to_uint8(anchor[position]))
            # last: its existence means that the other two exist
            write_video(folder / f"{index:04d}.mkv", to_full_size(clips[position], run.scale.size))
        del clips  # before the next batch's anchors are computed
        write_mark(folder / PARTIAL, {}, _sampled_clips(folder, limit))
        if progress is not None:
            progress(batch_number, len(batches))
    cpu_seconds = previous.get("cpu_seconds", 0.0) + time.process_time() - cpu_start
    wall_seconds = previous.get("wall_seconds", 0.0) + time.perf_counter() - start
    record = {
        "signature": run.sample_signature(seed),
        "training": run.training_signature,
        "clips": limit,
        "seed": seed,
        "cpu_seconds": round(cpu_seconds, 2),
        "wall_seconds": round(wall_seconds, 2),
        "coverage": coverage_entry(run),
        **provenance(),
        "code": run.sampling_code,
    }
    write_mark(folder / "done.json", record, [folder / "config.yaml", *_sampled_clips(folder, limit)])
    remove(folder / PARTIAL)


def _sampled_clips(folder: Path, limit: int) -> list[Path]:
    paths = (path for name in ("", "anchors", "native") for path in clip_paths(folder / name, limit))
    return [path for path in paths if path.exists()]


def coverage_entry(run: Run) -> dict[str, Any] | None:
    """How much of the run's inference grid was trained, for the table; None without shortcut training."""
    step_sampler = run.objective.step_sampler
    if step_sampler is None or not run.feeds_strides():
        return None
    reports = [coverage(step_sampler, run.schedule, phase.grid) for phase in run.phases()]
    return {
        "grid": [astuple(pair) for report in reports for pair in report.pairs],
        "second_halves_trained": reports[0].second_halves_trained,
        "second_halves_total": reports[0].second_halves,
    }


def load_stage(run: Run, outputs: Path = OUTPUTS) -> Any:
    """A trained stage with its EMA weights, ready to sample. Raises ValueError if they do not fit."""
    from safetensors.torch import load_file

    silence_libraries()
    # low-rank adapters are merged in its weights
    module = stage_module(replace(run, train=replace(run.train, trainable="all")))
    path = weights_of(training_folder(run, outputs))
    device = "cuda" if run.trainer.accelerator == "gpu" else "cpu"
    if run.text is not None:  # one network of 5e9 weights, not two
        from pw.nn.networks import load_network

        module.eval().to(device)  # before it has the network, whose blocks may wait elsewhere
        module.ema = load_network(network_of(run), str(path), None, device)
        return module
    module.configure_model()
    missing, unexpected = module.ema.load_state_dict(load_file(path), strict=False)
    if missing or unexpected:
        keys = [*missing, *unexpected]
        raise ValueError(f"{path} is of another signature: {len(keys)} keys do not fit, e.g. {keys[0]}")
    return module.eval().to(device)


def check_sampling(run: Run, *, on_this_machine: bool = True) -> None:
    """Check, before training, that a run can be sampled: Wan's encoders, held-out clips, memory for a batch.

    on_this_machine  False: another machine samples, so this one's memory is not checked

    Raises ValueError naming what is missing.
    """
    if run.text is None:
        return
    from pw.data.latents import LatentClips

    check(locate(run.trainer.weights), ("vae", "text_encoder", "tokenizer"))
    if isinstance(run.source, LatentClips):
        run.source.check_evaluation(run.sampling.count)
    need, available = sampling_memory(run), free_memory()
    if on_this_machine and need > available:
        smaller_batch = f"sampling.batch_size=1 takes {sampling_memory(run, 1) / 1e9:.1f}"
        remedy = smaller_batch if run.sampling.batch_size > 1 else "use a smaller scale, or more memory"
        raise ConfigError(
            f"sampling.batch_size={run.sampling.batch_size}: clips of scale={run.scale.name} take {need / 1e9:.1f} GB "
            f"of CPU memory while they are sampled, {available / 1e9:.1f} are free; {remedy}"
        )


def evaluation_texts(run: Run, outputs: Path, limit: int, seed: int) -> Texts:
    """Embeddings for the first `limit` evaluation clips; None at a scale without text. Default: the empty prompt."""
    if run.text is None:
        return class_texts(run, seed)
    from pw.stages.clip_texts import text_encoder

    encoder = text_encoder(run, outputs / "text", "cuda" if run.trainer.accelerator == "gpu" else "cpu")
    captions = json.loads((reference_folder(run, outputs, seed) / "done.json").read_text()).get(
        "captions", [""] * limit
    )
    text = torch.stack([encoder.encode(caption) for caption in captions[:limit]])
    negative_text = encoder.encode(run.text.negative_prompt)
    encoder.free()
    return text, negative_text.expand(len(text), -1, -1)


def class_texts(run: Run, seed: int) -> Texts:
    """Embeddings of the classes of the evaluation clips, and of the empty prompt; None if they have no classes."""
    from pw.stages.stage import class_text

    labels = run.source.evaluation(run.sampling.count, seed).labels
    if labels is None:
        return None
    text = class_text(labels, run.backbone)
    return text, torch.zeros_like(text)


def evaluation_anchors(run: Run, outputs: Path, seed: int) -> Callable[[Sequence[int]], Tensor] | None:
    """A function from indices of evaluation clips to their anchors [N, 3, F, h, w]; None for stage I."""
    from pw.io.video import read_video, to_float

    if run.stage == "anchor":
        return None
    if run.anchor_run is None:
        clips = run.source.evaluation(run.sampling.count, seed).real
        anchor = degraded_anchors(run, clips, run.anchor_degradation, seed)
    else:
        native = sample_folder(run.anchor_run, outputs, seed) / "native"
        anchor = lambda index: torch.as_tensor(to_float(read_video(native / f"{index:04d}.mkv")))  # noqa: E731
    return lambda indices: torch.stack([anchor(index) for index in indices])


def synthesise(
    run: Run, module: Any, anchor: Tensor | None, indices: list[int], seed: int, texts: Texts = None
) -> Tensor:
    """Sampled clips in [-1, 1], on the CPU, at full size or for stage I at the anchor's size."""
    from pw.stages.velocity import noise_of_phases

    shape = stage_latent(run)
    # per clip: a clip's noise does not depend on how many are sampled
    streams = [(seed, i, INITIAL_NOISE) for i in indices]
    noises = [noise_of_phases(run, torch.randn(shape, generator=generator(*s)), *s) for s in streams]
    noise = [torch.stack(parts).to(module.device) for parts in zip(*noises, strict=True)]
    latent = None
    if run.stage == "hires" and run.injector is not None:
        assert anchor is not None
        latent = module.anchor_latent(anchor.to(module.device))
        if run.config["anchors"]["degradation"]:  # flaws of a test anchor; the noise of training is not added
            draws = [generator(seed, i, EVALUATION_ANCHOR) for i in indices]
            latent = torch.cat([run.anchor_degradation.perturb(z[None], d) for z, d in zip(latent, draws, strict=True)])
    chosen_texts = None if texts is None else tuple(text[indices].to(module.device) for text in texts)
    return module.synthesise(noise, latent, chosen_texts).cpu().clamp_(-1, 1)


def to_full_size(clip: Tensor, size: tuple[int, int]) -> Frames:
    """[3, F, h, w] in [-1, 1] -> uint8 [F, H, W, 3], enlarged if it is smaller."""
    from pw.io.video import to_uint8

    parts = clip[None].split(FRAMES_PER_CALL, 2)  # a whole clip of stage I at full size would be too large as floats
    return np.concatenate([to_uint8(resize(part, size, "bicubic")[0]) for part in parts])


@dataclass(frozen=True)
class SampleOptions:
    """`pw sample key=value …`: one run."""

    outputs: Path = option(OUTPUTS, "folder of all results", read=outputs_folder)
    evaluation_seed: int | None = option(
        None, "of the evaluation clips; the run's own by default", read=number(0, MAX_SEED)
    )
    overrides: tuple[str, ...] = ()


def run_sample(
    options: SampleOptions, summary: Callable[[Run, Path, int], Sequence[str]] = lambda run, outputs, seed: ()
) -> int:
    """Exit status: 0 sampled, 1 it failed, 128 + n stopped by a signal.

    summary  (run, outputs, evaluation seed) -> lines that are printed at the end
    """
    run = checked_run(options.overrides, options.outputs)
    outputs, seed = options.outputs, run.seed if options.evaluation_seed is None else options.evaluation_seed
    sample_folder(run, outputs, seed)  # composes the stage that makes its anchors, too
    return run_training(
        run,
        outputs,
        lambda progress: sample(run, outputs, seed=seed, training=progress, is_checked=True),
        lambda: summary(run, outputs, seed),
    )
