"""What `make bench what=train` measures in one process: Lightning's loop beside a bare one, reading beside training.

`pw bench what=train` runs these beside what it starts as processes of their own, and prints the table.
"""

from __future__ import annotations

import json
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

TINY = ("scale=tiny", "stage=hires", "start=none", "trainer=cpu")
CLIPS, SHARD, ANCHORS = 64, 16, 8  # of the latents that are written to be read: clips, clips a shard, anchors a clip


def bare_updates(run: Run, data: Iterator[Any] | None = None) -> Iterator[Any]:
    """The training of a run as one would write it in plain PyTorch: the stage, after each of endless updates.

    The same network, data, objective, gradient clipping, AdamW, learning rate and EMA; no curves, no checkpoints, no
    signals. One process, fp32.

    data  batches to train on, the run's own by default
    """
    module = stage_module(run)
    module.configure_model()
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    trained = [p for p in module.net.parameters() if p.requires_grad]
    online, average = ([*net.parameters()] for net in (module.net, module.ema))
    accumulate, update = run.train.accumulate, 0
    data = iter(batches(run, 0)) if data is None else data
    while True:
        optimizer.zero_grad()
        for _ in range(accumulate):
            batch = next(data)
            loss = module.loss(batch["clips"], batch["index"], update)
            (loss.value / accumulate).backward()
        torch.nn.utils.clip_grad_norm_(trained, run.optimizer.clip)
        optimizer.step()
        schedule.step()
        update += 1
        decay = min(run.optimizer.ema, (1 + update) / (10 + update))
        with torch.no_grad():
            torch._foreach_lerp_(average, online, 1 - decay)
        yield module


def time_updates(repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of an update of `pw.train.loop`, and of a bare one, in each of `repeats` rounds of ten updates in turn.

    A round is what lies between two reports of progress: ten updates and the point of the curve that they end with.
    The first round is not counted. What a training does once (start, checkpoint, export) is in no round.
    """
    updates = CURVE_EVERY * (repeats + 1)
    run = build([*TINY, f"train.updates={updates}", f"train.checkpoint_every={updates + 1}"])
    torch.set_num_threads(run.trainer.threads)
    bare = bare_updates(run)
    ours: list[float] = []
    theirs: list[float] = []
    began = time.perf_counter()

    def in_turn(update: int, updates: int) -> None:
        nonlocal began
        ended = time.perf_counter()
        ours.append((ended - began) / CURVE_EVERY)
        for _ in range(CURVE_EVERY):
            next(bare)
        began = time.perf_counter()
        theirs.append((began - ended) / CURVE_EVERY)

    with tempfile.TemporaryDirectory(prefix="pw-bench-") as outputs:
        train(run, Path(outputs), in_turn)
    return ours[1:], theirs[1:]


def write_latents(folder: Path, run: Run) -> None:
    """Random latents of a run's sizes, as `make latents` leaves them: bf16, in webdataset tars."""
    from safetensors.torch import save

    scale, codec, backbone = run.scale, run.codec, run.backbone
    frames, draw = codec.latent_frames(scale.frames), torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).bfloat16()

    def latent(size: tuple[int, int]) -> tuple[int, ...]:
        return codec.channels, frames, size[0] // codec.factor, size[1] // codec.factor

    anchor = scale.size if scale.anchor_upsample == "pixel" else scale.anchor_size

    def sample(number: int) -> dict[str, Any]:
        key = f"clip-{number:06d}"
        tensors = {
            "latent": drawn(*latent(scale.size)),
            "anchors": drawn(ANCHORS, *latent(anchor)),
            "text": drawn(backbone.text_tokens, backbone.text_dim),
        }
        return {"__key__": key, "safetensors": save(tensors), "json": json.dumps({"caption": "", "key": key}).encode()}

    names = [f"train-{shard:06d}.tar" for shard in range(CLIPS // SHARD)]
    for shard, name in enumerate(names):
        write_tar(folder / name, map(sample, range(shard * SHARD, (shard + 1) * SHARD)))
        write_json((folder / name).with_suffix(".json"), {"clips": SHARD, "skipped": [], "problem": ""})
    (folder / EMPTY).write_bytes(save({"text": drawn(1, backbone.text_dim)}))
    about = {
        "digest": "0" * 16,
        "scale": scale.name,
        "encoded": encoding_settings(scale, codec, run.degradation, backbone),
        "urls": str(folder),
        "shards": [{"file": name, "split": "train"} for name in names],
    }
    write_json(folder / RECORD, about)


def time_reading(repeats: int) -> tuple[list[float], list[float]]:
    """Seconds to read a batch of latents from shards, and to train on it, in each of `repeats` rounds of ten in turn.

    They are read as training reads them, and trained on by the bare loop, which has nothing else to read. The first
    round is not counted.
    """
    with tempfile.TemporaryDirectory(prefix="pw-bench-") as folder:
        write_latents(Path(folder), build([*TINY, "data=none"]))
        run = build([*TINY, "data=latents", f"data.urls={folder}"])
        torch.set_num_threads(run.trainer.threads)
        source, batch = iter(batches(run, 0)), deque()
        updates = bare_updates(run, iter(batch.popleft, None))
        reading, training = [], []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            batch.extend(next(source) for _ in range(CURVE_EVERY))
            read = time.perf_counter()
            for _ in range(CURVE_EVERY):
                next(updates)
            reading.append((read - began) / CURVE_EVERY)
            training.append((time.perf_counter() - read) / CURVE_EVERY)
    return reading[1:], training[1:]
