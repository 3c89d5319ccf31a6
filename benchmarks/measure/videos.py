"""Score the videos of a folder: cached values are kept, broken videos and missing weights are named."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.measure.cache import Cache, default_folder
from benchmarks.measure.folder_scoring import FolderScoring
from benchmarks.measure.measurement import MeasureOptions, Scores, settings_of, videos_of
from benchmarks.measure.shared_scoring import share
from benchmarks.measure.whole_clips import score_clips
from benchmarks.metrics import chosen


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
    options = options or MeasureOptions()
    names = chosen(metrics)
    settings = settings_of(names, options.settings)
    began = time.monotonic()
    scores = Scores()
    todo = FolderScoring(videos_of(folder), options, scores, settings, Cache(options.cache or default_folder()))
    todo.check(names)
    share(names, options, todo)
    todo.measure(progress or (lambda _: None))
    score_clips(names, todo)
    for video in scores.left_out:
        scores.rows.pop(video, None)
    scores.seconds = time.monotonic() - began
    return scores
