"""Clips that no training sees, with fixed noise: the same for every arm, seed and update, so that curves compare."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pw.data import Batch, LabelledClips, LatentBatch
from pw.data.latents import EncodedClips, LatentClips, padded, read_record
from pw.data.shards import ShardClips
from pw.io.arguments import MAX_SEED
from pw.io.playable import write_playable
from pw.io.video import to_uint8
from pw.method import path
from pw.method.objective import squared_error
from pw.run.build import Run
from pw.stages.stage import SeededDraws
from pw.stages.velocity import Condition, noise_of_phases

SEED = MAX_SEED  # of the clips and their noise
BINS = 4  # of the timestep, equally wide
SAMPLES = 10  # stream of random numbers, see pw.stages.stage


def timestep_bin(sigma: Tensor) -> Tensor:
    """sigma [B] -> index of its bin, [B]."""
    return (sigma * BINS).long().clamp(0, BINS - 1)


def bin_name(index: int) -> str:
    """`t250-500`: a bin in Wan's timesteps, 1000 sigma; sorts by its beginning."""
    edges = [1000 * edge // BINS for edge in (index, index + 1)]
    return f"t{edges[0]:03d}-{edges[1]:03d}"


@dataclass(frozen=True)
class HeldOut:
    """Held-out clips in latent space, each [1, C, F, h, w] on the CPU, with their conditions, noise and sigma."""

    data: Sequence[Tensor]
    conditions: Sequence[Condition]
    noise: Sequence[Tensor]
    sigma: Tensor

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Sequence[int], device: torch.device) -> tuple[Tensor, Condition, Tensor, Tensor]:
        """(data, condition, noise, sigma) of some clips, on a device."""
        conditions = [self.conditions[i] for i in indices]
        anchors = [condition.anchor for condition in conditions if condition.anchor is not None]
        text = torch.cat([condition.text for condition in conditions]).to(device)
        condition = Condition(text, torch.cat(anchors).to(device) if anchors else None)
        data, noise = (torch.cat([parts[i] for i in indices]).to(device) for parts in (self.data, self.noise))
        return data, condition, noise, self.sigma[[*indices]]


@torch.no_grad()
def held_out(run: Run, module: Any, count: int) -> HeldOut | None:
    """The first `count` held-out clips of a run; None, with a warning, if its data have none.

    Clip i has a sigma of bin i % BINS, spread evenly in it.
    """
    try:
        clips = _clips(run, count)
    except ValueError as error:  # a ShardError, or no clips of this size
        logging.getLogger("pw").warning("no held-out loss: %s", error)
        return None
    prepared = []
    for index, clip in enumerate(clips):
        draws = SeededDraws(SEED, index)
        data, condition = module.prepare(clip.to(module.device), draws)
        anchor = None if condition.anchor is None else condition.anchor.cpu()
        prepared.append((data.cpu(), Condition(condition.text.cpu(), anchor), draws.noise(data).cpu()))
    data, conditions, noise = zip(*prepared, strict=True)
    turns = -(-count // BINS)
    places = torch.arange(count)
    sigma = (places % BINS + (places // BINS + 0.5) / turns) / BINS
    return HeldOut(data, conditions, noise, sigma.double())


def _clips(run: Run, count: int) -> list[Batch]:
    """Each a batch of one clip, as `Stage.prepare` takes it. Raises ValueError if there are too few."""
    source = run.source
    if not isinstance(source, LatentClips):
        evaluation = source.evaluation(count, SEED)
        clips, labels = [evaluation.real[i][None] for i in range(count)], evaluation.labels  # read before `captions`
        if labels is None and isinstance(source, ShardClips) and (captions := evaluation.captions()):
            labels = source.labels(captions)
        return [clip if labels is None else LabelledClips(clip, labels[[i]]) for i, clip in enumerate(clips)]
    pool, null_text = EncodedClips(Path(source.urls), read_record(source.urls), "val"), source.null_text()
    if len(pool) < count:
        raise ValueError(f"data.urls={source.urls}: {len(pool)} encoded clips are held out, tracking.held_out={count}")
    encoded = [pool.read(i) for i in range(count)]
    return [
        LatentBatch(
            clip["latent"].float()[None],
            clip["anchors"][0].float()[None],
            padded(clip["text"], source.text_tokens)[None],
            null_text,
        )
        for clip in encoded
    ]


@torch.no_grad()
def held_out_errors(module: Any, clips: HeldOut, indices: Sequence[int], size: int) -> tuple[Tensor, dict[int, Tensor]]:
    """Squared errors of the flow velocity at stride 0, [len(indices)], and clip -> mean of its gate alpha. Where jumps
    to data alone are trained, of the data where the jump lands: sigma^2 times that of the velocity of its stride.

    size  clips that are evaluated at once
    """
    errors, gates, gate = [], {}, getattr(module.net.injector, "gate", None)
    jumps = module.run.objective.jumps_to_data == "only"
    outputs: list[Tensor] = []
    hook = gate.register_forward_hook(lambda _, inputs, output: outputs.append(output)) if gate is not None else None
    try:
        for first in range(0, len(indices), size):
            part = indices[first : first + size]
            data, condition, noise, sigma = clips.batch(part, module.device)
            timestep = module.run.schedule.timestep(sigma)
            state = path.state(data, noise, sigma)
            stride = timestep if jumps else torch.zeros_like(timestep)
            velocity = module.velocity(module.net, condition)(state, timestep, stride)
            error = squared_error(velocity, path.velocity(data, noise)).cpu().double()
            errors.append(sigma**2 * error if jumps else error)
            if outputs:
                gates |= dict(zip(part, outputs.pop().float().flatten(1).mean(1).cpu(), strict=True))
    finally:
        if hook is not None:
            hook.remove()
    return torch.cat(errors), gates


@torch.no_grad()
def write_samples(module: Any, clips: HeldOut, count: int, folder: Path, *, writes: bool) -> None:
    """Sample the first clips with the EMA weights, one at a time, and write each as a playable `clip-0.mp4`.

    The clips themselves go to `real/` beside the folder, once. All processes of a training must call it.

    writes  whether this process writes the files
    """
    real, train = folder.with_name("real"), module.run.train
    in_bf16 = train.low_rank is not None and train.precision == "bf16"  # as the frozen weights are
    for index in range(min(count, len(clips))):
        data, condition, noise, _ = clips.batch([index], module.device)
        noises = noise_of_phases(module.run, noise[0], SEED, index, SAMPLES)
        noises = [part[None].to(module.device) for part in noises]
        with torch.autocast(module.device.type, torch.bfloat16, enabled=in_bf16, cache_enabled=False):
            latents = {folder: module.sample(noises, condition, module.text(1))}
        if not (real / f"clip-{index}.mp4").exists():
            latents[real] = data
        for target, latent in latents.items():
            video = module.codec.decode(latent)[0].clamp(-1, 1).cpu()
            if writes:
                write_playable(target / f"clip-{index}.mp4", to_uint8(video))
