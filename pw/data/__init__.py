"""Where clips come from. A source offers `batch`, `evaluation` and `fingerprint`: pure functions of seeds.

`procedural` draws clips, `shards` crops real video that `make data` (`ingest`) cut into webdataset shards.
Both answer for any batch directly: a run is resumed exactly, on any number of workers, and two arms with the
same seed see the same data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Evaluation:
    """Two disjoint sets of held-out clips, each float32 [N, 3, F, H, W] in [-1, 1].

    Anchors are made from `real`, and scores are measured against it; `real_b` against `real` is the floor.
    `note` says how they were drawn, for the table.
    """

    real: Tensor
    real_b: Tensor
    note: str = ""


class Source(Protocol):
    """Clips to train on and to be judged by, each a pure function of its seeds."""

    def batch(self, seed: int, index: int, batch_size: int) -> Tensor:
        """The index-th batch of an endless order: float32 [B, 3, F, H, W] in [-1, 1]."""
        ...

    def evaluation(self, count: int, seed: int) -> Evaluation:
        """`count` held-out clips, twice."""
        ...

    def fingerprint(self) -> str:
        """Changes when the clips do."""
        ...


@dataclass(frozen=True)
class Unset:
    """No clips yet: enough to plan or to generate, not to train."""

    def batch(self, seed: int, index: int, batch_size: int) -> Tensor:
        """Raises ValueError: there is nothing to train on."""
        raise ValueError(NO_DATA)

    def evaluation(self, count: int, seed: int) -> Evaluation:
        """Raises ValueError: there is nothing to be judged by."""
        raise ValueError(NO_DATA)

    def fingerprint(self) -> str:
        """Of no clips."""
        return "none"


NO_DATA = "data=none: nothing to train on; set data=shards data.urls=DIR (`make data path=DIR` writes them)"
