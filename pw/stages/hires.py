"""Stage II, `HiresSynth`: high-resolution detail under an anchor  (sec. 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from pw.data import LatentBatch
from pw.data.degradation import resize
from pw.stages.stage import SeededDraws, Stage, Texts
from pw.stages.velocity import Condition


class HiresSynth(Stage):
    """Generates clips at full size, conditioned on an anchor latent through the injector; any objective.

    In training the anchor is the degraded clip itself ("decoupled training", sec. 3.3).
    """

    def prepare(self, clips: Tensor | LatentBatch, draws: SeededDraws) -> tuple[Tensor, Condition]:
        degradation, draw, anchor = self.run.degradation, draws.degrade(), None
        if isinstance(clips, LatentBatch):
            if self.run.injector is not None:
                anchor = draws.perturbed(degradation, clips.anchor, draw)
            return clips.latent, Condition(clips.text, anchor)
        if self.run.injector is not None:
            small = draws.share.of_batch(degradation.anchor(clips, self.run.scale.anchor_size, draw))
            anchor = draws.perturbed(degradation, self.anchor_latent(small), draw)
        clips = draws.share.of_batch(clips)
        return self.codec.encode(clips), Condition(self.text(len(clips)), anchor)

    def anchor_latent(self, anchor: Tensor) -> Tensor:
        """Anchor video [B, 3, F, h, w] -> latent, resized before the codec or left to the injector  (Scale)."""
        if self.run.scale.anchor_upsample == "pixel":
            anchor = resize(anchor, self.run.scale.size, "bicubic")
        return self.codec.encode(anchor)

    @torch.no_grad()
    def synthesise(self, noise: Tensor, anchor: Tensor | None, texts: Texts = None) -> Tensor:
        """noise latent [B, …], anchor latent, embeddings of prompts and negative prompts -> video in about [-1, 1]."""
        text, away = texts or (self.text(len(noise)), None)
        condition = Condition(text, None if self.run.injector is None else anchor)
        return self.codec.decode(self.sample(noise, condition, away))
