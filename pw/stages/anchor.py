"""Stage I, `AnchorModel`: spatial-temporal anchors from noise  (sec. 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from pw.data import LatentBatch
from pw.stages.stage import SeededDraws, Stage, Texts
from pw.stages.velocity import Condition


class AnchorModel(Stage):
    """Generates clips at the anchor's size: few tokens, much meaning each. Plain flow matching, many steps.

    It is trained on the anchors that stage II is trained with: degraded clips, without the latent noise (D11).
    """

    def prepare(self, clips: Tensor | LatentBatch, draws: SeededDraws) -> tuple[Tensor, Condition]:
        if isinstance(clips, LatentBatch):
            return clips.anchor, Condition(clips.text, anchor=None)
        degraded = self.run.degradation.anchor(clips, self.run.scale.anchor_size, draws.degrade())
        small = draws.share.of_batch(degraded)
        return self.codec.encode(small), Condition(self.text(len(small)), anchor=None)

    @torch.no_grad()
    def synthesise(self, noise: Tensor, anchor: Tensor | None, texts: Texts = None) -> Tensor:
        """noise latent [B, …], embeddings of prompts and negative prompts -> anchor video in about [-1, 1]."""
        text, away = texts or (self.text(len(noise)), None)
        return self.codec.decode(self.sample(noise, Condition(text, anchor=None), away))
