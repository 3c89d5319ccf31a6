"""Sources of clips, whose methods are pure functions of seeds, and their degradation to anchors.

A batch does not depend on the batches before it: a run resumes exactly, with any number of workers, and two arms with
the same seed see the same data. Begin with `Source`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

from pw.data.buckets import BucketMix, Sizes, check_buckets
from pw.io.lazy import Tensor, torch

if TYPE_CHECKING:
    from pw.io.video import Frames


@dataclass(frozen=True)
class LatentBatch:
    """Clips encoded by `pw latents`, float32.

    latent     of the clips at full size, [B, C, F, h, w]
    anchor     of one degraded anchor per clip, without the noise that training adds, [B, C, F, h', w']
    text       embedding of each caption, padded with zeros, [B, tokens, D]
    null_text  that of the empty prompt, [tokens, D]
    """

    latent: Tensor
    anchor: Tensor
    text: Tensor
    null_text: Tensor

    def __len__(self) -> int:
        return len(self.latent)

    @property
    def device(self) -> torch.device:
        return self.latent.device

    def to(self, device: torch.device | str) -> LatentBatch:
        """Lightning calls it."""
        return LatentBatch(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class LabelledClips:
    """Clips in pixels, float32 [B, 3, F, H, W] in [-1, 1], and the caption of each as a number, [B].

    Of procedural clips it is a class, of clips in shards a position in `ShardClips.captions`.
    """

    pixels: Tensor
    label: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def to(self, device: torch.device | str) -> LabelledClips:
        """Lightning calls it."""
        return LabelledClips(self.pixels.to(device), self.label.to(device))


Batch: TypeAlias = "Tensor | LatentBatch | LabelledClips"


@dataclass(frozen=True)
class Clips:
    """`count` clips of one size, computed at each access.

    make  i -> clip: float32 [3, F, H, W] in [-1, 1], or uint8 [F, H, W, 3] if that is exact
    """

    count: int
    make: Callable[[int], Tensor | Frames]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(self.count))

    def __getitem__(self, i: int) -> Tensor:
        """Clip number i, float32 [3, F, H, W] in [-1, 1], contiguous. Raises IndexError."""
        import numpy as np
        import torch

        from pw.io.video import to_float

        clip = self._make(i)
        if not isinstance(clip, np.ndarray):
            return clip
        video = torch.empty(3, *clip.shape[:3])
        for number in range(len(clip)):  # frame by frame: a second copy of a 2K clip would take 5.4 GB
            video[:, number] = torch.from_numpy(to_float(clip[number : number + 1]))[:, 0]
        return video

    def frames(self, i: int) -> Frames:
        """Clip number i, uint8 [F, H, W, 3]. Raises IndexError."""
        import numpy as np

        from pw.io.video import to_uint8

        clip = self._make(i)
        return clip if isinstance(clip, np.ndarray) else to_uint8(clip)

    def _make(self, i: int) -> Tensor | Frames:
        if not 0 <= i < self.count:
            raise IndexError(f"clip {i} of {self.count}")
        return self.make(i)


@dataclass(frozen=True)
class Evaluation:
    """Two disjoint sets of held-out clips, of the same size.

    real      anchors are made from these clips, and scores are measured against them
    real_b    scored against `real`, it gives the floor of a metric
    note      how the clips were chosen, for the table
    captions  of `real`; empty without text
    labels    classes of `real`, [count], if these are the captions

    Call `note` and `captions` after reading the clips: in some sources they first read the clips not yet read.
    """

    real: Clips
    real_b: Clips
    note: Callable[[], str]
    captions: Callable[[], tuple[str, ...]] = tuple
    labels: Tensor | None = None


class Source(Protocol):
    """Clips for training and evaluation, each a pure function of its seeds.

    twins_share_structure  whether the second set of `evaluation` has the anchors of the first
    """

    twins_share_structure: ClassVar[bool]

    def batch(self, seed: int, index: int, batch_size: int) -> Batch:
        """The index-th batch of an endless order: float32 [B, 3, F, H, W] in [-1, 1], or already encoded."""

    def evaluation(self, count: int, seed: int) -> Evaluation:
        """Two sets of `count` held-out clips, each clip computed or read at its first use."""

    def fingerprint(self) -> str:
        """Changes when the clips do."""


@dataclass(frozen=True)
class Unset:
    """A source without clips: enough to plan or to generate, not to train; `buckets` are those of clips to come."""

    buckets: Sizes | None = None
    bucket_weights: tuple[float, ...] | None = None
    mix: BucketMix | None = field(init=False, repr=False, compare=False)
    twins_share_structure: ClassVar[bool] = False

    def __post_init__(self) -> None:
        buckets = check_buckets(self.buckets, self.bucket_weights)
        mix = BucketMix.of(buckets, self.bucket_weights, [1] * len(buckets)) if buckets else None
        object.__setattr__(self, "mix", mix)

    def batch(self, seed: int, index: int, batch_size: int) -> Tensor:
        raise ValueError(NO_DATA)

    def evaluation(self, count: int, seed: int) -> Evaluation:
        raise ValueError(NO_DATA)

    def fingerprint(self) -> str:
        return "none"


NO_DATA = (
    "data=none: nothing to train on; set data=shards data.urls=DIR (`make data path=DIR` writes them), or data=latents "
    "data.urls=DIR (`make latents` encodes those)"
)
