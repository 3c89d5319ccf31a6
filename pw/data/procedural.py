"""Procedural clips: structure that an anchor shows, texture that it hides (docs/tiny.md).

Structure is a two-colour gradient and one moving disc or square; texture is a grating per 8 x 8 cell, of one of four
orientations and a random phase, and another on the object. The anchor's blur removes the gratings, so the second stage
learns a distribution of many modes, which a plain flow model in few steps averages into blur. With `captions=texture`
each clip has a class, one of the orientations, which most of its gratings have: what a prompt is to guidance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from pw.data import Clips, Evaluation, LabelledClips
from pw.io.lazy import Tensor, torch

VERSION = 1  # raise it whenever the clips change: it is part of every signature
CELL = 8  # px, side of a texture cell
# wave vectors in rad/px: wavelength 4 px along the axes, 3.8 px on the diagonals
WAVES = tuple((2 * math.pi / CELL * x, 2 * math.pi / CELL * y) for x, y in ((2, 0), (0, 2), (1.5, 1.5), (1.5, -1.5)))
CONTRAST = 0.45
CLASS_SHARE = 0.6  # of the gratings of a clip with a class that surely have its orientation; the others have any


def generator(*entropy: int) -> torch.Generator:
    """A random generator seeded by some integers."""
    seed = np.random.SeedSequence([e & 0xFFFFFFFF for e in entropy]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)))


@dataclass(frozen=True)
class ProceduralClips:
    """Endless clips of `frames` frames, `size` px high and `width` px wide, each a pure function of (seed, position).

    captions  `none`, or `texture`: the class of a clip is its caption
    width     0: square
    """

    frames: int
    size: int
    captions: Literal["none", "texture"] = "none"
    width: int = 0
    twins_share_structure: ClassVar[bool] = True  # real_b has the anchors of real

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise ValueError(f"data.frames={self.frames}: motion needs at least 2 frames")
        for name, length in zip(("size", "width"), self.extent, strict=True):
            if length < 2 * CELL:
                raise ValueError(f"data.{name}={getattr(self, name)}: needs at least {2 * CELL} px")

    @property
    def extent(self) -> tuple[int, int]:
        """(rows, columns), px."""
        return self.size, self.width or self.size

    def batch(self, seed: int, index: int, batch_size: int) -> Tensor | LabelledClips:
        rng = generator(seed, index, 0)
        structure, texture, label = self._structure(batch_size, rng), self._texture(batch_size, rng), None
        if self.captions == "texture":
            label = self._label(batch_size, rng)
            self._follow(label, texture, rng)
        clips = self._render(structure, texture)
        return clips if label is None else LabelledClips(clips, label)

    def evaluation(self, count: int, seed: int) -> Evaluation:
        """`count` clips that are in no training batch, and their twins: same structure, other texture."""
        rng = generator(seed, 0, 1)
        structure = self._structure(count, rng)
        textures = [self._texture(count, rng) for _ in range(2)]
        note, label = "real_b: the same structure with other texture", None
        if self.captions == "texture":
            label, note = self._label(count, rng), f"{note} of the same class"
            for texture in textures:
                self._follow(label, texture, rng)
        real, twin = (self._clips(count, structure, texture) for texture in textures)
        return Evaluation(real, twin, note=lambda: note, labels=label)

    def fingerprint(self) -> str:
        rows, columns = self.extent
        return f"procedural/{VERSION}" if rows == columns else f"procedural/{VERSION}/{columns}"

    def _clips(self, count: int, structure: dict[str, Tensor], texture: dict[str, Tensor]) -> Clips:
        select: Any = lambda parameters, i: {name: values[i : i + 1] for name, values in parameters.items()}  # noqa: E731
        return Clips(count, lambda i: self._render(select(structure, i), select(texture, i))[0])

    def _structure(self, count: int, rng: torch.Generator) -> dict[str, Tensor]:
        uniform = lambda *shape: torch.rand(*shape, generator=rng)  # noqa: E731
        rows, columns = self.extent
        side = min(rows, columns)
        return {
            "colours": uniform(count, 2, 3) * 1.2 - 0.6,
            "direction": uniform(count) * 2 * math.pi,
            "position": (uniform(count, 2) * 0.7 + 0.15) * torch.tensor([columns, rows]),  # x, y
            "radius": (4 + 3 * uniform(count)) * side / 24,
            "velocity": (uniform(count, 2) * 2 - 1) * 2 * side / 24,  # px per frame
            "colour": uniform(count, 3) * 1.4 - 0.7,
            "square": (uniform(count) > 0.5).float(),
        }

    def _texture(self, count: int, rng: torch.Generator) -> dict[str, Tensor]:
        cells = [-(-length // CELL) for length in self.extent]
        return {
            "wave": torch.randint(0, 4, (count, *cells), generator=rng),
            "phase": torch.rand(count, *cells, generator=rng) * 2 * math.pi,
            "object_wave": torch.randint(0, 4, (count,), generator=rng),
            "object_phase": torch.rand(count, generator=rng) * 2 * math.pi,
        }

    def _label(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randint(0, len(WAVES), (count,), generator=rng)

    def _follow(self, label: Tensor, texture: dict[str, Tensor], rng: torch.Generator) -> None:
        """Give the gratings of a texture, each with probability CLASS_SHARE, the orientation of their clip's class."""
        for name in ("wave", "object_wave"):
            wave = texture[name]
            follows = torch.rand(wave.shape, generator=rng) < CLASS_SHARE
            texture[name] = torch.where(follows, label.view(-1, *[1] * (wave.ndim - 1)), wave)

    def _render(self, structure: dict[str, Tensor], texture: dict[str, Tensor]) -> Tensor:
        waves = torch.tensor(WAVES)
        rows, columns = self.extent
        x = (torch.arange(columns) + 0.5).view(1, 1, 1, -1)  # [B, F, H, W]
        y = (torch.arange(rows) + 0.5).view(1, 1, -1, 1)
        time = torch.arange(self.frames).view(1, -1, 1, 1)
        per_clip: Any = lambda value: value.view(-1, 1, 1, 1)  # noqa: E731

        angle = per_clip(structure["direction"])
        along = (x - columns / 2) * torch.cos(angle) + (y - rows / 2) * torch.sin(angle)
        ramp = torch.sigmoid(along / (min(rows, columns) / 5))
        first, second = structure["colours"].view(-1, 2, 3, 1, 1, 1).unbind(1)
        ground = (1 - ramp[:, None]) * first + ramp[:, None] * second  # [B, 3, 1, H, W]

        spread = lambda cells: cells.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)[:, :rows, :columns]  # noqa: E731
        k = waves[spread(texture["wave"])]
        gratings = CONTRAST * torch.cos(k[..., 0] * x[:, 0] + k[..., 1] * y[:, 0] + spread(texture["phase"]))[:, None]

        dx = x - per_clip(structure["position"][:, 0]) - per_clip(structure["velocity"][:, 0]) * time
        dy = y - per_clip(structure["position"][:, 1]) - per_clip(structure["velocity"][:, 1]) * time
        square, radius = per_clip(structure["square"]), per_clip(structure["radius"])
        distance = square * torch.maximum(dx.abs(), dy.abs()) + (1 - square) * torch.sqrt(dx * dx + dy * dy + 1e-6)
        mask = torch.sigmoid((radius - distance) * 2.5)
        object_wave = waves[texture["object_wave"]]
        phase = per_clip(object_wave[:, 0]) * dx + per_clip(object_wave[:, 1]) * dy + per_clip(texture["object_phase"])
        detail = gratings * (1 - mask) + mask * CONTRAST * torch.tanh(2 * torch.cos(phase))

        colour = structure["colour"].view(-1, 3, 1, 1, 1)
        video = ground * (1 - mask[:, None]) + mask[:, None] * colour + detail[:, None]
        return video.clamp(-1, 1)
