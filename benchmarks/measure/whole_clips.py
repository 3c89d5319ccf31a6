"""The metrics of whole clips (`benchmarks.metrics.reference`), scored beside those of videos."""

from __future__ import annotations

import csv
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure.clips import score_folder
from benchmarks.measure.folder_scoring import FolderScoring
from benchmarks.measure.measurement import BrokenVideo, Scores
from benchmarks.metrics import GROUPS, lookup
from pw.io.host import free_memory

# What metrics of clips take at most, bytes and bytes a pixel: a clip and its partners in 8 bits, some frames as floats.
# Measured: 2.7 GB for 13 frames of 2560 x 1440, 3.8 GB for 33.
OF_CLIPS, OF_A_PIXEL = 2.5e9, 18
SMALL_CLIP = 2**25  # pixels that are not asked about


def score_clips(names: Sequence[str], todo: FolderScoring) -> None:
    """Score whole clips: made for the tiny scale, refused where clips would fill the memory."""
    options, scores = todo.options, todo.found
    folders = {"real": options.real, "structure": options.structure, "solution": options.solution}
    of_clips = []
    for name in (name for name in names if lookup(name).family == "reference"):
        if lacking := [f"{need}=DIR" for need in lookup(name).needs if folders[need] is None]:
            scores.missing[name] = f"{name} holds clips against others: {' '.join(lacking)}"
        else:
            of_clips.append(name)
    clips = _by_stem(of_clips, todo) if of_clips else {}
    if why := _too_large(clips.values(), todo):
        scores.missing.update(dict.fromkeys(of_clips, why))
        return
    clips = {stem: path for stem, path in clips.items() if path.name not in scores.left_out}
    if not clips:
        return
    try:
        _score_whole_clips(of_clips, clips, folders, scores)
    except ValueError:  # of one of them: the others are measured alone
        for name in of_clips:
            try:
                _score_whole_clips([name], clips, folders, scores)
            except ValueError as error:
                scores.missing[name] = str(error)
    if options.strict:
        _check_strictly(of_clips, scores)


def _by_stem(of_clips: Sequence[str], todo: FolderScoring) -> dict[str, Path]:
    """The clips that are not left out by the name that pairs them; those whose name is taken are not measured."""
    clips: dict[str, Path] = {}
    scores = todo.found
    for name, path in todo.videos.items():
        if path.stem in clips and name not in scores.left_out:
            why = f"clips are paired by their names without ending, and {clips[path.stem].name} has the same"
            scores.not_measured |= {m: {**scores.not_measured.get(m, {}), name: why} for m in of_clips}
        elif name not in scores.left_out:
            clips[path.stem] = path
    return clips


def _check_strictly(of_clips: Sequence[str], scores: Scores) -> None:
    """Raises BrokenVideo for the first clip, or metric, without a value."""
    for name in of_clips:
        lacking = [f"{video}: {name}: {why}" for video, why in scores.not_measured.get(name, {}).items()]
        if whys := [*lacking, *([f"{name}: {scores.missing[name]}"] if name in scores.missing else [])]:
            raise BrokenVideo(f"strict=true: {whys[0]}")


def _score_whole_clips(
    of_clips: Sequence[str], clips: Mapping[str, Path], folders: Mapping[str, Path | None], scores: Scores
) -> None:
    """Metrics of clips into `scores`. Raises ValueError where clips cannot be held against each other."""
    with tempfile.TemporaryDirectory(prefix="pw-score-") as work:
        for path in clips.values():
            os.symlink(path.resolve(), Path(work) / path.name)
        out = Path(work) / "out"
        result = score_folder(Path(work), out, **folders, solved=None, metrics=of_clips, contract={})
        with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                row = scores.rows.setdefault(clips[line["video"]].name, {})
                row["frames"] = float(line["frames"])
                for name in of_clips:
                    if math.isfinite(value := float(line.get(name) or "nan")):
                        row[name] = value
    for name in of_clips:
        scores.depends[name] = {**result["contract"]["metrics"][name], "clips": result["contract"]["clips"]}
        _take_value(name, clips, folders, result, scores)


def _take_value(
    name: str, clips: Mapping[str, Path], folders: Mapping[str, Path | None], result: Mapping[str, Any], scores: Scores
) -> None:
    """A metric's value of the folder, or why it, or some of its clips, have none."""
    if lookup(name).level == "video":
        needs = ", ".join(f"{need}={folders[need]}" for need in lookup(name).needs)
        why = f"its value is not finite, or {needs} has no clip of its name" if needs else "its value is not finite"
        if lacking := {path.name: why for path in clips.values() if name not in scores.rows[path.name]}:
            scores.not_measured[name] = {**scores.not_measured.get(name, {}), **lacking}
    elif name in result["metrics"]:
        scores.whole[name] = result["metrics"][name]
        scores.depends[name]["n"] = result["n_videos"][name]  # those that the other folders have too
    else:
        scores.missing[name] = f"{name} of these {result['n_videos'].get(name, 0)} clips is not finite"


def _too_large(clips: Iterable[Path], todo: FolderScoring) -> str:
    """Why the reference metrics will not hold these clips; broken ones are left out on the way."""
    from pw.io.video import VideoError, decode, probe

    free = free_memory()
    for path in clips:
        try:
            info = probe(path)
            pixels = info.frames * info.height * info.width
            if pixels > SMALL_CLIP and (need := OF_CLIPS + OF_A_PIXEL * pixels) > free:
                return (
                    f"{path.name} has {pixels:,} pixels in {info.frames} frames, of which metrics of clips would hold "
                    f"{need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: score excerpts, or use "
                    f"{', '.join(GROUPS['table_2'])}"
                )
            for _ in decode(path):  # to the end: a truncated clip begins like a whole one
                pass
        except VideoError as error:
            todo.leave_out(path.name, str(error))
    return ""
