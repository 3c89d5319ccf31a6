"""The batches of a training, from any update on; each process reads its share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pw.parallel.team import Share
from pw.run.build import Run


def batches(run: Run, first: int, share: Share | None = None) -> Any:
    """Endless batches of a share (of everything by default), from number `first` on.

    Each is {"clips": as `Stage.prepare` takes them, "index": number of the batch}. The position in the data is the
    batch's number alone, so the data loader has no state to save.
    """
    from torch.utils.data import DataLoader, IterableDataset

    mine = share or Share.of(run.train)

    class Batches(IterableDataset):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            turn = first
            while True:
                index = mine.index(turn)
                yield {"clips": clips(run, index, mine), "index": index}
                turn += 1

    return DataLoader(Batches(), batch_size=None)


def clips(run: Run, index: int, share: Share) -> Any:
    """The index-th batch: of encoded clips the share's part, of clips in pixels all."""
    from pw.data.latents import LatentClips

    if isinstance(run.source, LatentClips):  # by position: a part is a smaller batch of a higher number
        return run.source.batch(run.seed, index * share.parts + share.part, share.clips)
    return run.source.batch(run.seed, index, run.train.batch_size)
