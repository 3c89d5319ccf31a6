"""The proxy scale of a pipeline of a million parameters, and shards of videos for it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

from pw.data.shard_index import write_shards

FRAMES, HEIGHT, WIDTH = 5, 64, 96


# the proxy scale of a pipeline of a million parameters
SMALL = (
    *("scale=proxy", "trainer=cpu", f"scale.frames={FRAMES}", f"scale.height={HEIGHT}", f"scale.width={WIDTH}"),
    *("scale.anchor_height=32", "scale.anchor_width=64", "codec.channels=4", "codec.precision=fp32"),
    *("backbone.num_attention_heads=2", "backbone.attention_head_dim=16", "backbone.in_channels=4"),
    *("backbone.ffn_dim=48", "backbone.num_layers=3", "backbone.text_dim=16", "backbone.rope_max_seq_len=64"),
    "scale.norm_groups=4",
)


def picture(number: int, frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A moving texture, another one for every number."""
    drawn = np.random.default_rng(number).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    large = drawn.repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(large, 2 * frame, 1) for frame in range(frames)])


def write_videos(
    folder: Path,
    clips: dict[str, list[np.ndarray]],
    with_captions: bool = True,
    captions: list[list[str]] | None = None,
) -> Path:
    """A shard of every two clips, and a manifest, as `make data` leaves them. captions: those of the train clips."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for split, arrays in clips.items():
        samples = []
        for number, array in enumerate(arrays):
            stream = io.BytesIO()
            np.save(stream, array)
            sample = {"__key__": f"{split}-clip-{number}", "npy": stream.getvalue(), "json": b"{}"}
            texts = [f"a {split} clip, {number}"] if captions is None or split != "train" else captions[number]
            sample |= {"json": json.dumps({"captions": texts}).encode()} if len(texts) > 1 else {}
            samples.append(sample | ({"txt": texts[0].encode()} if with_captions else {}))
        two = 2 * (max(len(sample["npy"]) for sample in samples) - 1)
        for path, count in write_shards(folder, split, samples, two):
            shards.append(
                {
                    "file": path.name,
                    "bytes": path.stat().st_size,
                    "samples": count,
                    "sha256": str(hash(path.read_bytes())),
                }
            )
    (folder / "manifest.json").write_text(json.dumps({"shards": shards}))
    return folder
