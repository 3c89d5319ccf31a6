"""Score the clips of an ablation's run: `scores.csv` (a row per video), `scores.json` (values and their contract).

A folder holds lossless clips `0000.mkv`, `0001.mkv`, ...; it is paired with the real clips, the structure
clips (anchors) and the many-step solutions by file name. A metric whose folder is not there is absent, never
zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure.contract import ClipHash
from benchmarks.metrics import lookup, protocols
from pw.io.files import write_csv, write_json

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from benchmarks.metrics.reference.clip_frames import Batch

SUFFIXES = (".mkv", ".mp4", ".mov", ".webm", ".avi", ".m4v")
BATCH_PIXELS = 2**22
"""Pixels of a folder that are in memory at once: small clips go in batches, one clip is the least."""


def score_folder(
    videos: Path,
    out: Path,
    *,
    real: Path | None,
    structure: Path | None,
    solution: Path | None,
    solved: int | None,
    metrics: Sequence[str],
    contract: Mapping[str, Any],
) -> dict[str, Any]:
    """Score the clips of `videos` and write `out`/scores.{csv,json}, atomically.

    A metric takes the clips whose names are in all folders it needs; n_videos says how many these are.

    solved: how many of `solution`, the first by name, count; another arm may have had more of them made.
    contract: where the clips come from and what was measured (see `benchmarks.measure.contract`); metric protocols
        and the hash of the real clips are added.
    Returns: {"metrics": {name: value}, "n_videos": {name: n}, "contract": {...}}, as in scores.json.
    Raises: ValueError for an unknown metric, a folder without clips, or one without a common name with
        `videos`.
    """
    from benchmarks.metrics.reference import scorer

    folders = {"video": videos, "real": real, "structure": structure, "solution": solution}
    clips = _clips_to_score({what: folder for what, folder in folders.items() if folder is not None}, solved)
    scorers = {name: scorer(name) for name in metrics if all(need in clips for need in lookup(name).needs)}
    rows: dict[str, dict[str, float | int]] = {}
    counts = dict.fromkeys(scorers, 0)
    clip_hash = ClipHash()
    for names, batch in batches(clips, clip_hash):
        frames = batch.video.shape[2]
        rows.update({name: {"frames": frames} for name in names})
        for metric, metric_scorer in scorers.items():
            if any(getattr(batch, need) is None for need in lookup(metric).needs):
                continue
            values = metric_scorer.add(batch)
            counts[metric] += len(names)
            for name, value in zip(names, () if values is None else values.tolist(), strict=False):
                rows[name][metric] = value
        del batch  # before the next one is read
    totals = {name: metric_scorer.result() for name, metric_scorer in scorers.items() if counts[name]}
    result = {
        "metrics": {name: value for name, value in totals.items() if math.isfinite(value)},
        "n_videos": counts,
        "contract": {
            **contract,
            "metrics": protocols(metrics),
            "clips": {"n": clip_hash.count, "sha256": clip_hash.value()},
        },
    }
    columns = ["video", "frames", *(name for name in scorers if lookup(name).level == "video")]
    write_csv(out / "scores.csv", columns, ({"video": name, **row} for name, row in rows.items()))
    write_json(out / "scores.json", result)
    return result


def _clips_to_score(folders: Mapping[str, Path], solved: int | None) -> dict[str, dict[str, Path]]:
    """What a folder holds -> its clips by name. Raises ValueError where a folder has no name in common with `video`."""
    clips = {what: clip_paths(folder) for what, folder in folders.items()}
    if "solution" in clips:
        clips["solution"] = dict(list(clips["solution"].items())[:solved])
    for what, paths in clips.items():
        if not paths.keys() & clips["video"].keys():
            videos = folders["video"]
            raise ValueError(f"no clip of {what}={folders[what]} has the name of one in {videos}; names must agree")
    return clips


def clip_paths(folder: Path) -> dict[str, Path]:
    """The clips of a folder by name without suffix, sorted.

    Raises: ValueError if there are none.
    """
    found = {path.stem: path for path in sorted(folder.iterdir()) if _is_clip(path)} if folder.is_dir() else {}
    if not found:
        raise ValueError(f"no clips (*.mkv) in {folder}; sample into it first")
    return found


def _is_clip(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def batches(clips: Mapping[str, Mapping[str, Path]], clip_hash: ClipHash) -> Iterator[tuple[list[str], Batch]]:
    """Names and tensors of clips that have the same folders and sizes, up to BATCH_PIXELS at once."""
    from pw.io.video import read_video

    held: list[tuple[str, dict[str, np.ndarray]]] = []
    for name in clips["video"]:
        paths = {what: found[name] for what, found in clips.items() if name in found}
        read = {path: read_video(path) for path in set(paths.values())}  # structure and real are often one folder
        arrays = {what: read[path] for what, path in paths.items()}
        if "real" in arrays:
            clip_hash.add(name, arrays["real"].shape, arrays["real"].data)
        if held and _sizes(held[0][1]) != _sizes(arrays):
            yield _stack(held)
            held = []
        held.append((name, arrays))
        del read, arrays
        if _pixels(held) >= BATCH_PIXELS:  # before the next clip is read: of large ones there is one
            yield _stack(held)
            held = []
    if held:
        yield _stack(held)


def _sizes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {what: array.shape for what, array in arrays.items()}


def _pixels(held: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> int:
    return sum(arrays["video"].size // 3 for _, arrays in held)


def _stack(held: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> tuple[list[str], Batch]:
    """uint8 [F, H, W, 3] each -> uint8 [B, 3, F, H, W], a view of the clip if it is one."""
    import numpy as np
    import torch

    from benchmarks.metrics.reference.clip_frames import Batch

    def together(what: str) -> Tensor:
        clips = [arrays[what] for _, arrays in held]
        stacked = clips[0][None] if len(clips) == 1 else np.stack(clips)
        return torch.from_numpy(stacked).permute(0, 4, 1, 2, 3)

    return [name for name, _ in held], Batch(**{what: together(what) for what in held[0][1]})
