"""The text embeddings of clips in pixels: Wan's encoder computes each different caption once, and a cache has it after.

In a training all are encoded by the first process before there is a network, because the encoder takes 11 GB.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pw.data.latents import LatentClips
from pw.data.shards import ShardClips
from pw.io.progress import Pace, ProgressLine
from pw.io.wan_weights import fingerprint, locate
from pw.nn.text import TextEncoder
from pw.parallel.team import Team
from pw.run.build import Run

PART = 64  # captions between two signs of life to the other processes


class ClipTexts:
    """Embeddings of captions of a run with a text encoder, each [tokens, dim] float32 on the CPU.

    cache  folder of embeddings, by default a temporary one; what is not in it is encoded on the CPU at its first use
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.cache: Path | None = None
        self._temporary: Any = None
        self._name: str | None = None
        self._empty: Tensor | None = None

    def empty(self) -> Tensor:
        """The empty prompt's embedding."""
        if self._empty is None:
            source = self.run.source
            self._empty = source.null_text() if isinstance(source, LatentClips) else self._encoded([""])[0]
        return self._empty

    def of(self, labels: Tensor) -> Tensor:
        """Of captions by their positions in `ShardClips.captions`, [B] -> [B, tokens, dim]."""
        assert isinstance(self.run.source, ShardClips)
        return self._encoded([self.run.source.captions[label] for label in labels.tolist()])

    def share(self, team: Team, cache: Path) -> None:
        """Encode all captions of the run's clips and the empty prompt in the first process, to a folder that the
        others read, too. All processes must call it."""
        source = self.run.source
        if isinstance(source, LatentClips):
            return
        self.cache = cache
        captions = source.captions if isinstance(source, ShardClips) else ("",)
        device = "cuda" if self.run.trainer.accelerator == "gpu" else "cpu"
        encoder = self._encoder(device) if team.place.is_first else None
        self._name = team.broadcast(encoder and encoder.name)  # others may have the weights elsewhere
        pace, line = Pace(), ProgressLine()
        for first in range(0, len(captions), PART):
            if encoder is not None:
                for caption in captions[first : first + PART]:
                    encoder.unpadded(caption)
                if line.is_due:
                    left = pace.time_left(first + PART, len(captions))
                    line.show(f"{first + PART:,} of {len(captions):,} captions encoded, about {left} left")
            team.wait()
        if encoder is not None:
            encoder.free()
        self._empty = team.broadcast(encoder and encoder.encode("").float())

    def _encoded(self, captions: Sequence[str]) -> Tensor:
        encoder = self._encoder("cpu")  # the device has the network
        texts = torch.stack([encoder.encode(caption) for caption in captions])
        encoder.free()
        return texts.float()

    def _encoder(self, device: str) -> TextEncoder:
        if self.cache is None:
            self._temporary = tempfile.TemporaryDirectory()
            self.cache = Path(self._temporary.name)
        encoder = text_encoder(self.run, self.cache, device, self._name)
        self._name = encoder.name
        return encoder


def text_encoder(run: Run, cache: Path, device: str, name: str | None = None) -> TextEncoder:
    """Wan's text encoder of a run, which loads at the first prompt that is not in `cache`.

    name  of the weights in the cache; by default their fingerprint
    """
    weights = locate(run.trainer.weights)
    name = fingerprint(weights / "text_encoder") if name is None else name
    dtype = torch.bfloat16 if run.trainer.accelerator == "gpu" else torch.float32
    return TextEncoder(weights, run.backbone.text_tokens, cache, name, device, dtype)
