"""The in-process measurements of `pw bench what=train`: Lightning's loop and a bare loop, reading and training."""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pw.data.latents import EMPTY, RECORD, encoding_settings
from pw.data.shard_index import write_tar
from pw.io.files import write_json
from pw.io.lazy import torch
from pw.run.build import Run, build
from pw.stages import stage_module
from pw.train.batches import batches
from pw.train.callbacks import CURVE_EVERY
from pw.train.loop import train
from pw.train.watch import watched

TINY = ("scale=tiny", "stage=hires", "start=none", "trainer=cpu")
CLIPS, SHARD, ANCHORS = 64, 16, 8  # of `write_latents`: clips, clips per shard at most, anchors per clip


def bare_updates(run: Run, data: Iterator[Any] | None = None) -> Iterator[Any]:
    """Train a run in plain PyTorch without end; yields the stage after each update.

    Network, data, objective, gradient clipping, AdamW, learning rate and EMA are those of `pw.train`; there are no
    curves, checkpoints or signals. One process, fp32.

    data  batches to train on, by default those of the run
    """
    module = stage_module(run)
    module.configure_model()
    config = module.configure_optimizers()
    optimizer, schedule = config["optimizer"], config["lr_scheduler"]["scheduler"]
    parameters = [p for p in module.net.parameters() if p.requires_grad]
    weights, ema = ([*net.parameters()] for net in (module.net, module.ema))
    accumulate, update = run.train.accumulate, 0
    data = iter(batches(run, 0)) if data is None else data
    while True:
        optimizer.zero_grad()
        for _ in range(accumulate):
            batch = next(data)
            loss = module.loss(batch["clips"], batch["index"], update)
            (loss.value / accumulate).backward()
        torch.nn.utils.clip_grad_norm_(parameters, run.optimizer.clip)
        optimizer.step()
        schedule.step()
        update += 1
        decay = min(run.optimizer.ema, (1 + update) / (10 + update))
        with torch.no_grad():
            torch._foreach_lerp_(ema, weights, 1 - decay)
        yield module


def time_updates(repeats: int) -> tuple[list[float], list[float]]:
    """Seconds per update of `pw.train.loop`, and of the bare loop, in `repeats` alternating rounds of ten updates.

    A round lies between two progress reports: ten updates and one point of the curve. The first round is not counted,
    and no round includes start, checkpoint or export.
    """
    updates = CURVE_EVERY * (repeats + 1)
    run = build([*TINY, f"train.updates={updates}", f"train.checkpoint_every={updates + 1}"])
    torch.set_num_threads(run.trainer.threads)
    bare = bare_updates(run)
    loop_seconds: list[float] = []
    bare_seconds: list[float] = []
    start = time.perf_counter()

    def run_bare_updates(update: int, updates: int) -> None:
        nonlocal start
        end = time.perf_counter()
        loop_seconds.append((end - start) / CURVE_EVERY)
        for _ in range(CURVE_EVERY):
            next(bare)
        start = time.perf_counter()
        bare_seconds.append((start - end) / CURVE_EVERY)

    with tempfile.TemporaryDirectory(prefix="pw-bench-") as outputs:
        train(run, Path(outputs), run_bare_updates)
    return loop_seconds[1:], bare_seconds[1:]


def tracking_share(updates: int) -> tuple[float, float]:
    """(share of a tiny training that `pw.train.diagnostics` takes, without samples; seconds of CPU of the relay)."""
    run = build([*TINY, f"train.updates={updates}", f"train.checkpoint_every={updates + 1}"])
    torch.set_num_threads(run.trainer.threads)
    with tempfile.TemporaryDirectory(prefix="pw-bench-") as folder:
        outputs, before = Path(folder), resource.getrusage(resource.RUSAGE_CHILDREN)
        with watched(run, outputs):
            training = train(run, outputs)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = json.loads((training / "done.json").read_text())
    relay = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done["tracking_seconds"] / done["wall_seconds"], relay


def write_latents(folder: Path, run: Run, clips: int = CLIPS) -> None:
    """Write random latents of a run's sizes in the format of `make latents`: bf16 in webdataset tars."""
    from safetensors.torch import save

    scale, codec, backbone = run.scale, run.codec, run.backbone
    frames, generator = codec.latent_frames(scale.frames), torch.Generator().manual_seed(0)

    def random_tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    def latent(size: tuple[int, int]) -> tuple[int, ...]:
        return codec.channels, frames, size[0] // codec.factor, size[1] // codec.factor

    anchor = scale.size if scale.anchor_upsample == "pixel" else scale.anchor_size

    def sample(number: int) -> dict[str, Any]:
        key = f"clip-{number:06d}"
        tensors = {
            "latent": random_tensor(*latent(scale.size)),
            "anchors": random_tensor(ANCHORS, *latent(anchor)),
            "text": random_tensor(backbone.text_tokens, backbone.text_dim),
        }
        return {"__key__": key, "safetensors": save(tensors), "json": json.dumps({"caption": "", "key": key}).encode()}

    starts = range(0, clips, SHARD)
    names = [f"train-{shard:06d}.tar" for shard in range(len(starts))]
    for name, start in zip(names, starts, strict=True):
        numbers = range(start, min(start + SHARD, clips))
        write_tar(folder / name, map(sample, numbers))
        write_json((folder / name).with_suffix(".json"), {"clips": len(numbers), "skipped": [], "problem": ""})
    (folder / EMPTY).write_bytes(save({"text": random_tensor(1, backbone.text_dim)}))
    metadata = {
        "digest": "0" * 16,
        "scale": scale.name,
        "encoded": encoding_settings(scale, codec, run.degradation, backbone),
        "urls": str(folder),
        "shards": [{"file": name, "split": "train"} for name in names],
    }
    write_json(folder / RECORD, metadata)


def time_reading(repeats: int) -> tuple[list[float], list[float]]:
    """Seconds to read a batch of latents from shards, and to train on it, in `repeats` alternating rounds of ten.

    Batches are read as in training and consumed by the bare loop. The first round is not counted.
    """
    with tempfile.TemporaryDirectory(prefix="pw-bench-") as folder:
        write_latents(Path(folder), build([*TINY, "data=none"]))
        run = build([*TINY, "data=latents", f"data.urls={folder}"])
        torch.set_num_threads(run.trainer.threads)
        source, queue = iter(batches(run, 0)), deque()
        updates = bare_updates(run, iter(queue.popleft, None))
        reading, training = [], []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            queue.extend(next(source) for _ in range(CURVE_EVERY))
            end_of_read = time.perf_counter()
            for _ in range(CURVE_EVERY):
                next(updates)
            reading.append((end_of_read - start) / CURVE_EVERY)
            training.append((time.perf_counter() - end_of_read) / CURVE_EVERY)
    return reading[1:], training[1:]
