"""Which clips are held out: rules under which no frame, and no source video where it is known, is on both sides."""

from __future__ import annotations

import hashlib

from pw.prepare.source_videos import VideoRecord

FEW_VIDEOS = 20  # below, holding out whole videos would leave too little variety on one side


def assign_splits(records: list[VideoRecord], holdout: float) -> tuple[str, list[list[str]]]:
    """(the rule in words, "train", "val" or "gap" for each clip of each record).

    Fewer than 20 videos: the last clips of each are held out, and what ends less than a clip before them is
    left out. Otherwise, and if none has clips enough, whole videos are, by the sha256 of their names.
    """
    held = [round(holdout * len(record.clips)) for record in records]
    if holdout and any(held) and len(records) < FEW_VIDEOS:
        rule = f"the last {holdout:.0%} of each video's clips are val, after a gap of one clip"
        return rule, [_split_in_time(record.clips, n) for record, n in zip(records, held, strict=True)]
    by_hash = sorted(records, key=lambda record: hashlib.sha256(record.file.encode()).digest())
    several = holdout > 0 and len(records) > 1
    val = [record.file for record in by_hash[: max(1, round(holdout * len(records))) if several else 0]]
    rule = f"{len(val)} of {len(records)} whole videos are val, by a hash of their names"
    return rule, [["val" if record.file in val else "train"] * len(record.clips) for record in records]


def split_by_origin(records: list[VideoRecord], holdout: float) -> tuple[str, list[list[str]]]:
    """(the rule in words, "train" or "val" for each clip of each record): an origin is in one of the two.

    It is val if the sha256 of its name, as a share of all values, is below `holdout`: what was on one side stays there
    when more origins come. Only where that leaves a side empty, the origin nearest to it goes there. A file of
    unknown origin is one of its own. A single origin is split in time, as in `assign_splits`.
    """
    origins = [record.origin or f"file {record.file}" for record in records]
    shares = {origin: _share(origin) for origin in origins}
    if len(shares) < 2:
        rule, splits = assign_splits(records, holdout)
        return f"a single source video: {rule}", splits
    val = {origin for origin, share in shares.items() if share < holdout}
    if holdout:
        val = val or {min(shares, key=shares.__getitem__)}
        val -= {max(shares, key=shares.__getitem__)} if len(val) == len(shares) else set()
    rule = f"{len(val)} of {len(shares)} source videos are val with all their files, by a hash of their ids"
    if unknown := sum(not record.origin for record in records):
        rule += f"; of {unknown} files the source is not known, each counts as one"
    return rule, [["val" if o in val else "train"] * len(r.clips) for o, r in zip(origins, records, strict=True)]


def _share(name: str) -> float:
    """The sha256 of a name as a share of all its values, in [0, 1)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / (1 << 48)


def _split_in_time(clips: list[tuple[int, int, float]], held: int) -> list[str]:
    if held == 0:
        return ["train"] * len(clips)
    first, last, _ = clips[-held]
    gap = last - first + 1
    return ["train" if end < first - gap else "gap" for _, end, _ in clips[:-held]] + ["val"] * held
