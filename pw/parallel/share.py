"""What each of several processes computes of an update: the same update, however many there are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pw.io.arguments import ConfigError
from pw.run.settings import Train

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Share:
    """What one of several processes computes of each update.

    An update is `accumulate` micro-batches of `batch_size` clips. As many processes as possible compute whole
    micro-batches; if there are more processes than that, each micro-batch is cut into equal parts.

    Raises ConfigError when the processes cannot have equal shares.
    """

    rank: int
    processes: int
    accumulate: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.batch_size % self.parts:
            clips = self.accumulate * self.batch_size
            fits = [n for n in range(1, clips + 1) if not self.batch_size % (n // math.gcd(self.accumulate, n))]
            near = min(fits, key=lambda n: abs(n - self.processes))
            raise ConfigError(
                f"trainer.devices times trainer.nodes, over trainer.context, is {self.processes}: train.batch_size="
                f"{self.batch_size} and train.accumulate={self.accumulate} cannot be shared equally by so many; "
                f"{near} would do, or train.accumulate={self.processes}"
            )

    @classmethod
    def of(cls, train: Train, rank: int = 0, processes: int = 1) -> Share:
        """The share of process `rank` of so many."""
        return cls(rank, processes, train.accumulate, train.batch_size)

    @property
    def groups(self) -> int:
        """Micro-batches that are computed at once."""
        return math.gcd(self.accumulate, self.processes)

    @property
    def parts(self) -> int:
        """Parts into which a micro-batch is cut."""
        return self.processes // self.groups

    @property
    def part(self) -> int:
        """Index of this process's part of a micro-batch."""
        return self.rank % self.parts

    @property
    def micro_batches(self) -> int:
        """Micro-batches, or parts of them, that this process computes one after the other in an update."""
        return self.accumulate // self.groups

    @property
    def clips(self) -> int:
        """Clips in each of `micro_batches`."""
        return self.batch_size // self.parts

    def index(self, turn: int) -> int:
        """Number, among all micro-batches of the training, of the turn-th one of this process."""
        update, turn = divmod(turn, self.micro_batches)
        return update * self.accumulate + turn * self.groups + self.rank // self.parts

    def whole(self, clips: int) -> int:
        """Clips of the whole micro-batch of which this process has `clips`."""
        return clips * self.parts

    def of_batch(self, whole: Tensor) -> Tensor:
        """This process's part of a tensor for the whole micro-batch, [B, …] -> [B / parts, …]."""
        length = len(whole) // self.parts
        return whole[self.part * length : (self.part + 1) * length] if self.parts > 1 else whole
