"""A folder of latents such as `make latents` writes, made of numbers that tell the clips apart: no codec is needed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save

from pw.data.latents import encoding_settings
from pw.data.shard_index import write_tar
from pw.run.build import Run

ANCHORS = 3


def write_latents(folder: Path, run: Run, clips: int, videos: Path | None = None, captions: int = 1) -> Path:
    """`clips` training clips, four a shard. Clip n: latent n, anchors n + j / 4, text of n % 5 + 1 tokens of n + 1;
    100 more for each further caption."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = list(range(clips))
    shards = [numbers[at : at + 4] for at in range(0, clips, 4)]
    for at, shard in enumerate(shards):
        samples = [{"__key__": f"clip-{n:03d}", "json": b"{}", "safetensors": _tensors(n, captions)} for n in shard]
        write_tar(folder / f"train-{at:06d}.tar", iter(samples))
        record = {"clips": len(shard), "skipped": [], "problem": ""}
        (folder / f"train-{at:06d}.json").write_text(json.dumps(record))
    (folder / "empty.safetensors").write_bytes(save({"text": torch.full((1, 2), -1.0).bfloat16()}))
    about = {
        "digest": "0123456789abcdef",
        "scale": run.scale.name,
        "encoded": encoding_settings(run.scale, run.codec, run.degradation, run.backbone),
        "urls": str(videos or folder / "videos"),
        "shards": [{"file": f"train-{at:06d}.tar", "split": "train"} for at in range(len(shards))],
    }
    (folder / "latents.json").write_text(json.dumps(about))
    return folder


def _tensors(number: int, captions: int) -> bytes:
    anchors = torch.stack([torch.full((4, 2, 2, 4), number + j / 4) for j in range(ANCHORS)])
    tensors = {
        "latent": torch.full((4, 2, 4, 6), float(number)),
        "anchors": anchors,
        "text": torch.full((number % 5 + 1, 2), number + 1.0),
    }
    length = number % 5 + 1
    tensors |= {f"text_{more}": torch.full((length, 2), number + 1.0 + 100 * more) for more in range(1, captions)}
    return save({name: tensor.bfloat16() for name, tensor in tensors.items()})
