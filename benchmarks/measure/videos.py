"""Score the videos of a folder: one by one, by several processes where there are several GPUs, and as whole clips."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measure.clips import measure_clips, paired
from benchmarks.measure.folder_scoring import FolderScoring
from benchmarks.measure.measurement import BrokenVideo, MeasureOptions, Scores, gpus, videos_of
from benchmarks.metrics import GROUPS, chosen, lookup, protocol_of
from pw.io.arguments import written
from pw.io.host import free_memory

PARENT = "PW_SCORE_PARENT"
"""The process whose end ends one that shares its work."""

# What metrics of clips take at most, bytes and bytes a pixel: a clip and its partners in 8 bits, some frames as floats.
# Measured: 2.7 GB for 13 frames of 2560 x 1440, 3.8 GB for 33.
OF_CLIPS, OF_A_PIXEL = 2.5e9, 18
SMALL_CLIP = 2**25  # pixels that are not asked about


def score_videos(
    folder: Path,
    metrics: Sequence[str],
    options: MeasureOptions | None = None,
    progress: Callable[[str], None] | None = None,
) -> Scores:
    """Score the videos of a folder; what the cache has is not measured again.

    metrics: names of the registry, or groups of them.
    Raises: ConfigError for what cannot work at all (metric, setting, folder); BrokenVideo with `strict`.
    """
    began = time.monotonic()
    todo = FolderScoring(videos_of(folder), chosen(metrics), options or MeasureOptions())
    share(todo)
    todo.measure(progress or (lambda _: None))
    score_clips(todo)
    for video in todo.found.left_out:
        todo.found.rows.pop(video, None)
    todo.found.seconds = time.monotonic() - began
    return todo.found


# ---- several processes


def share(todo: FolderScoring) -> None:
    """Let several processes fill the cache first, each with every n-th video, where there are several GPUs."""
    options = todo.options
    networks = options.device == "auto" and any(lookup(n).weights or lookup(n).extra for n in todo.names)
    count = options.processes or (gpus() if networks else 1)
    videos = [p for p in todo.readable() if todo.lacking(p)] if count > 1 else []
    count = min(count, len(videos))
    if count < 2:
        return
    streamed = [name for name in todo.metrics if lookup(name).family != "reference"]  # those take the whole folder
    device = "cpu" if options.device == "cpu" else "auto"
    one = replace(options, processes=1, threads=max(1, todo.threads // count), device=device)
    workers = []
    for i in range(count):
        shard = tempfile.TemporaryDirectory(prefix="pw-score-")
        for path in videos[i::count]:
            os.symlink(path.resolve(), Path(shard.name) / path.name)
        workers.append((shard, _score_in_a_process(Path(shard.name), streamed, one, i)))
    try:
        for _, process in workers:
            process.wait()
    finally:  # what a worker left undone is measured here, and what is wrong is said here
        for shard, process in workers:
            process.kill()
            process.wait()
            shard.cleanup()


def _score_in_a_process(
    folder: Path, names: Sequence[str], options: MeasureOptions, number: int
) -> subprocess.Popen[bytes]:
    """Start `pw score` on a folder, with a GPU of its own where there are several."""
    words = [f"videos={folder}", f"metrics={','.join(names)}", f"out={folder / '.scores.csv'}", *written(options)]
    here = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": str(here), PARENT: str(os.getpid())}
    if gpus() > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        env["CUDA_VISIBLE_DEVICES"] = (visible.split(",") if visible else [*map(str, range(gpus()))])[number % gpus()]
    return subprocess.Popen([sys.executable, "-m", "pw", "score", *words], env=env, stdout=subprocess.DEVNULL)


def end_with_parent() -> None:
    """Let this process end soon after the one that shares its work with it, also if that one was killed."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# ---- whole clips


def score_clips(todo: FolderScoring) -> None:
    """Score whole clips: made for the tiny scale, refused where clips would fill the memory."""
    options, scores = todo.options, todo.found
    folders = {"real": options.real, "structure": options.structure, "solution": options.solution}
    of_clips = []
    for name in (name for name in todo.metrics if lookup(name).family == "reference"):
        if lacking := [f"{need}=DIR" for need in lookup(name).needs if folders[need] is None]:
            scores.missing[name] = f"{name} holds clips against others: {' '.join(lacking)}"
        else:
            of_clips.append(name)
    clips = _by_stem(of_clips, todo) if of_clips else {}
    if why := _too_large(clips.values(), todo):
        scores.missing.update(dict.fromkeys(of_clips, why))
        return
    clips = {stem: path for stem, path in clips.items() if path.name not in scores.left_out}
    clips = dict(sorted(clips.items(), key=lambda clip: clip[1].name))
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
    rows, result, clip_hash = measure_clips(paired(clips, folders), of_clips)
    for stem, values in rows.items():
        row = scores.rows.setdefault(clips[stem].name, {})
        row |= {name: value for name, value in values.items() if math.isfinite(value)}
    for name in of_clips:
        scores.depends[name] = {**protocol_of(name), "clips": clip_hash}
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
