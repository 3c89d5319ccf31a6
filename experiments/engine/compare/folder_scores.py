"""The scores of the two sides of a comparison: measured, cached, or read from a scores.csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.measure.measurement import MeasureOptions, Scores
from benchmarks.measure.score import score_videos
from benchmarks.metrics import GROUPS, METRICS, lookup
from experiments.engine.compare.compare_options import CompareOptions
from experiments.engine.compare.sides import Folder, Side
from experiments.engine.outcome.written import read_written
from pw.io.arguments import ConfigError
from pw.sample.evaluate import reference_folder, sample_folder


def _read_scores(path: Path, names: Sequence[str]) -> Scores:
    """A scores.csv that `benchmarks.measure.score` wrote, with the protocol file beside it. Raises ConfigError."""
    scores = Scores()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.DictReader(file)
            columns, rows = list(lines.fieldnames or ()), list(lines)
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); `make score` writes such a file") from error
    if "video" not in columns:
        raise ConfigError(f"{path}: no column `video`; `make score` writes such a file")
    wanted = [name for name in columns if name not in ("video", "frames") and (not names or name in names)]
    if unknown := [name for name in wanted if name not in METRICS]:
        raise ConfigError(f"{path}: column {unknown[0]} is no metric; metrics=… takes some of its columns")
    for row in rows:
        scores.rows[row["video"]] = {name: _score(path, row, name) for name in wanted if row.get(name)}
    protocol = path.with_name(f"{path.stem}.protocol.json")
    if protocol.exists():
        about = read_written(protocol, {"metrics": dict}, f"score again into out={path}")
        keys = ("protocol", "settings", "weights", "clips")
        for name, row in about["metrics"].items():
            if name in wanted:
                scores.depends[name] = {key: row[key] for key in keys if key in row}
        scores.left_out = about.get("left_out", {})
    return scores


def _score(path: Path, row: Mapping[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{path}: {name} of {row['video']} is {row[name]!r}, wants a number, or nothing at all")
    return value


def metrics_of(options: CompareOptions, a: Side, b: Side) -> list[str]:
    """What is asked for; by default the reference metrics of two small runs of ours, mHD-MSE of other videos."""
    if options.metrics:
        return list(options.metrics)
    if all(folder.run is not None and folder.run.text is None for s in (a, b) for folder in s.folders.values()):
        return list(GROUPS["clips"])
    return ["mhd_mse"]


def check_primary(options: CompareOptions, names: Sequence[str], seeds: int) -> None:
    """Before anything is measured: the named primary metric is measured too, and has a test. Raises ConfigError."""
    wanted = options.primary
    if wanted is None:
        return
    from_file = options.a_scores is not None or options.b_scores is not None  # which brings its own metrics
    if wanted not in names and not from_file:
        known = ", ".join(names)
        raise ConfigError(f"primary={wanted}: is not among the metrics ({known}); metrics={wanted},… adds it")
    if seeds == 1 and lookup(wanted).level == "set":
        raise ConfigError(
            f"primary={wanted}: is of the whole set and has no test with one seed; name one of the videos', or compare "
            "several seeds"
        )


def references_of(options: CompareOptions, folder: Folder, names: Sequence[str]) -> tuple[MeasureOptions, list[str]]:
    """(the clips that a folder's videos are measured against, the metrics for which there are such clips)."""
    real, structure, solution = options.real, options.structure, options.solution
    if (run := folder.run) is not None:
        outputs = folder.path.resolve().parent.parent
        evaluated_on = reference_folder(run, outputs, folder.seed) / "real"
        real = real or (evaluated_on if evaluated_on.is_dir() else None)
        if run.injector is not None and structure is None:
            structure = sample_folder(run.anchor_run, outputs, folder.seed) if run.anchor_run else real
        solved = sample_folder(run.solution, outputs, folder.seed)
        if folder.is_sampling_known and solution is None and solved != folder.path and (solved / "done.json").exists():
            solution = solved
    there = {"real": real, "structure": structure, "solution": solution}
    able = [name for name in names if all(there[need] is not None for need in lookup(name).needs)]
    return MeasureOptions(real=real, structure=structure, solution=solution, cache=options.cache), able


def scores_of_pair(
    options: CompareOptions, a: Folder, b: Folder, names: Sequence[str], notes: list[str]
) -> tuple[Scores, Scores]:
    """Scores of both folders in the metrics that both can have; `notes` gets what is missing, and why."""
    references = [references_of(options, folder, names) for folder in (a, b)]
    both = [name for name in names if all(name in able for _, able in references)]
    result = []
    for key, folder, file, (held_against, _) in zip(
        "ab", (a, b), (options.a_scores, options.b_scores), references, strict=True
    ):
        scored = _read_scores(file, options.metrics) if file else score_videos(folder.path, both, held_against)
        notes += [why for why in dict.fromkeys(scored.missing.values()) if why not in notes]
        notes += [f"{key}: left out {why}" for why in scored.left_out.values()]
        for metric, videos in scored.not_measured.items():
            notes.append(f"{key}: {metric} of {len(videos)} videos could not be measured, e.g. {_first(videos)}")
        if file and not scored.depends:
            notes.append(f"{key}: {file} has no protocol file beside it, so how it was measured is not known")
        result.append(scored)
    lacking = [name for name in names if name not in both]
    if lacking and options.metrics:
        needs = sorted({need for name in lacking for need in lookup(name).needs})
        notes.append(f"{', '.join(lacking)}: both folders need {', '.join(f'{need}=DIR' for need in needs)}")
    return result[0], result[1]


def _first(videos: Mapping[str, str]) -> str:
    return next(f"{video}: {why}" for video, why in videos.items())
