"""Score a folder of videos from any system: writes a table with a row per video, and a file with the protocol.

    pw score DIR metrics=mhd_mse,niqe out=scores.csv [strict=true real=DIR mhd.reduction=sum …]

Every video is measured separately, decoded once for all metrics and never in memory whole; cached values are not
measured again (`folder_scoring.py`). Broken videos, and metrics whose weights are missing, are reported and left out.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.measure.clips import measure_clips, pair_clips
from benchmarks.measure.folder_scoring import FolderScoring
from benchmarks.measure.measurement import BrokenVideo, MeasureOptions, Scores, gpus, videos_of
from benchmarks.metrics import GROUPS, METRICS, lookup, metric_names, protocol_of
from benchmarks.stats.resampling import bootstrap_mean, prompt_of
from pw.io.arguments import Command, ConfigError, missing_option, option, to_words
from pw.io.command_line import without_make
from pw.io.console import console, one_line, print_line
from pw.io.files import check_writable, writable_file, write_atomically, write_csv
from pw.io.host import free_memory
from pw.io.paths import SUITE
from pw.io.video_files import videos_in

PARENT = "PW_SCORE_PARENT"
"""Environment variable: id of the parent process; a worker process ends when its parent ends."""

# The most memory of metrics of clips, bytes and bytes per pixel: uint8 clips and references, some frames as floats.
# Measured: 2.7 GB for 13 frames of 2560 x 1440, 3.8 GB for 33.
CLIP_BYTES, BYTES_PER_PIXEL = 2.5e9, 18
SMALL_CLIP = 2**25  # pixels; smaller clips are not checked


def score_videos(
    folder: Path,
    metrics: Sequence[str],
    options: MeasureOptions | None = None,
    progress: Callable[[str], None] | None = None,
) -> Scores:
    """Score the videos of a folder; cached values are not measured again.

    metrics: names of the registry or of groups.
    Raises: ConfigError for an invalid metric, setting or folder; BrokenVideo with `strict`.
    """
    start = time.monotonic()
    scoring = FolderScoring(videos_of(folder), metric_names(metrics), options or MeasureOptions())
    share(scoring)
    scoring.measure(progress or (lambda _: None))
    score_clips(scoring)
    if not (folder / "card.yaml").is_file():  # a system's folder lists its videos
        scoring.scores.passed_over = videos_in(folder)[1]
    for video in scoring.scores.left_out:
        scoring.scores.rows.pop(video, None)
    scoring.scores.seconds = time.monotonic() - start
    return scoring.scores


# ---- several processes


def share(scoring: FolderScoring) -> None:
    """Fill the cache by several processes, each with every n-th video, if there are several GPUs."""
    options = scoring.options
    networks = options.device == "auto" and any(lookup(n).weights or lookup(n).extra for n in scoring.names)
    count = options.processes or (gpus() if networks else 1)
    videos = [p for p in scoring.readable_videos() if scoring.missing_metrics(p)] if count > 1 else []
    count = min(count, len(videos))
    if count < 2:
        return
    names = [name for name in scoring.metrics if lookup(name).family != "reference"]  # those take the whole folder
    device = "cpu" if options.device == "cpu" else "auto"
    part = replace(options, processes=1, threads=max(1, scoring.threads // count), device=device)
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = setting.split(",") if setting else [str(i) for i in range(gpus())]
    with contextlib.ExitStack() as stack:  # afterwards this process measures what is missing, and reports errors
        workers = []
        for i in range(count):
            shard = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pw-score-")))
            for path in videos[i::count]:
                os.symlink(path.resolve(), shard / path.name)
            words = [f"videos={shard}", f"metrics={','.join(names)}", f"out={shard / '.scores.csv'}", *to_words(part)]
            env = {**os.environ, "PYTHONPATH": str(SUITE), PARENT: str(os.getpid())}
            if gpus() > 1:
                env["CUDA_VISIBLE_DEVICES"] = visible[i % gpus()]
            command = [sys.executable, "-m", "pw", "score", *words]
            workers.append(stack.enter_context(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)))
            stack.callback(workers[-1].kill)
        for process in workers:
            process.wait()


def end_with_parent() -> None:
    """End this worker process soon after its parent, also if the parent is killed."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# ---- whole clips


def score_clips(scoring: FolderScoring) -> None:
    """Score whole clips, for the tiny scale; refused if the clips do not fit into memory."""
    options, scores = scoring.options, scoring.scores
    folders = {"real": options.real, "structure": options.structure, "solution": options.solution}
    clip_metrics = []
    for name in (name for name in scoring.metrics if lookup(name).family == "reference"):
        if missing := [f"{need}=DIR" for need in lookup(name).needs if folders[need] is None]:
            scores.missing[name] = f"{name} compares clips with others: set {' '.join(missing)}"
        else:
            clip_metrics.append(name)
    clips = _by_stem(clip_metrics, scoring) if clip_metrics else {}
    if reason := _size_problem(clips.values(), scoring):
        scores.missing.update(dict.fromkeys(clip_metrics, reason))
        return
    paths = (path for path in clips.values() if path.name not in scores.left_out)
    clips = {path.stem: path for path in sorted(paths, key=lambda path: path.name)}
    if not clips:
        return
    try:
        _score_whole_clips(clip_metrics, clips, folders, scores)
    except ValueError:  # of one metric: measure each metric alone
        for name in clip_metrics:
            try:
                _score_whole_clips([name], clips, folders, scores)
            except ValueError as error:
                scores.missing[name] = str(error)
    if options.strict:
        _check_strict(clip_metrics, scores)


def _by_stem(clip_metrics: Sequence[str], scoring: FolderScoring) -> dict[str, Path]:
    """The clips by stem, which pairs them, without those left out; a second clip of the same stem is not measured."""
    clips: dict[str, Path] = {}
    scores = scoring.scores
    for path in scoring.readable_videos():  # without those whose name is not UTF-8
        name = path.name
        if path.stem in clips and name not in scores.left_out:
            reason = f"clips are paired by their names without ending, and {clips[path.stem].name} has the same"
            scores.not_measured |= {m: {**scores.not_measured.get(m, {}), name: reason} for m in clip_metrics}
        elif name not in scores.left_out:
            clips[path.stem] = path
    return clips


def _check_strict(clip_metrics: Sequence[str], scores: Scores) -> None:
    """Raises BrokenVideo for the first clip, or metric, without a value."""
    for name in clip_metrics:
        missing = [f"{video}: {name}: {reason}" for video, reason in scores.not_measured.get(name, {}).items()]
        if reasons := [*missing, *([f"{name}: {scores.missing[name]}"] if name in scores.missing else [])]:
            raise BrokenVideo(f"strict=true: {reasons[0]}")


def _score_whole_clips(
    clip_metrics: Sequence[str], clips: Mapping[str, Path], folders: Mapping[str, Path | None], scores: Scores
) -> None:
    """Write the metrics of clips into `scores`. Raises ValueError if clips and references do not fit together."""
    rows, result, clip_hash = measure_clips(pair_clips(clips, folders), clip_metrics)
    for stem, values in rows.items():
        row = scores.rows.setdefault(clips[stem].name, {})
        row |= {name: value for name, value in values.items() if math.isfinite(value)}
    for name in clip_metrics:
        scores.dependencies[name] = {**protocol_of(name), "clips": clip_hash}
        if lookup(name).level == "video":
            needs = ", ".join(f"{need}={folders[need]}" for need in lookup(name).needs)
            reason = f"its value is not finite{f', or {needs} has no clip of its name' if needs else ''}"
            if missing := {path.name: reason for path in clips.values() if name not in scores.rows[path.name]}:
                scores.not_measured[name] = {**scores.not_measured.get(name, {}), **missing}
        elif name in result["metrics"]:
            scores.set_values[name] = result["metrics"][name]
            scores.dependencies[name]["n"] = result["n_videos"][name]  # the clips that are in all folders
        else:
            scores.missing[name] = f"{name} of these {result['n_videos'].get(name, 0)} clips is not finite"


def _size_problem(clips: Iterable[Path], scoring: FolderScoring) -> str:
    """Why the clips do not fit into memory, "" if they do; leaves broken clips out."""
    from pw.io.video import VideoError, decode, probe

    free = free_memory()
    for path in clips:
        try:
            info = probe(path)
            if info.note:
                scoring.scores.notes[path.name] = info.note
            pixels = info.frames * info.height * info.width
            if pixels > SMALL_CLIP and (need := CLIP_BYTES + BYTES_PER_PIXEL * pixels) > free:
                return (
                    f"{path.name} has {pixels:,} pixels in {info.frames} frames, for which metrics of clips need "
                    f"{need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: score excerpts, or use "
                    f"{', '.join(GROUPS['table_2'])}"
                )
            for _ in decode(path):  # to the end: a truncated clip begins like a whole one
                pass
        except VideoError as error:
            scoring.leave_out(path.name, str(error))
    return ""


# ---- the table, and the command


def summary(scores: Scores, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Metric -> mean over videos with its bootstrap interval, direction, unit, scale, level and protocol."""
    result: dict[str, dict[str, Any]] = {}
    for name in names:
        row = lookup(name)
        values = scores.values(name)
        if name in scores.set_values:
            stats: dict[str, Any] = {"mean": scores.set_values[name], "low": None, "high": None, "n": len(scores.rows)}
        elif values:
            stats = asdict(bootstrap_mean(list(values.values()), [prompt_of(video) for video in values]))
        else:
            continue
        content = {"direction": row.direction, "unit": row.unit, "scale": row.scale, "level": row.level}
        result[name] = {**stats, **content, **scores.dependencies.get(name, {})}
        if row.licence:
            result[name]["licence"] = row.licence
    return result


class NothingMeasured(ValueError):
    """No metric has a value, so no table is written, and an earlier one stays."""


def write(scores: Scores, names: Sequence[str], out: Path) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Write `out` (a row per video) and <stem>.protocol.json beside it; returns the latter's path and the `summary`.

    Raises: NothingMeasured, and then writes nothing.
    """
    columns = [name for name in names if scores.values(name)]
    if not columns and not scores.set_values:
        state = f"{out} stays as it was" if out.exists() else f"{out} is not written"
        raise NothingMeasured(f"nothing was measured of {', '.join(names)}; {state}")
    rows = [
        {"video": video, **{key: _cell(row[key]) for key in ("frames", *columns) if key in row}}
        for video, row in sorted(scores.rows.items())
        if "frames" in row
    ]
    means = summary(scores, names)
    protocol = out.with_name(f"{out.stem}.protocol.json")
    content = {
        "metrics": means,
        "missing": scores.missing,
        "left_out": scores.left_out,
        "not_measured": scores.not_measured,
        "passed_over": scores.passed_over,
        "notes": scores.notes,
        "videos": {video: scores.hashes.get(video) for video in sorted(scores.rows)},
        "real": dict(sorted(scores.real.items())),
        "versions": versions(),
        "run": {"videos_measured": scores.n_measured, "seconds": round(scores.seconds, 2)},
    }
    write_csv(out, ["video", "frames", *columns], rows)
    write_atomically(protocol, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return protocol, means


def _cell(value: float) -> Any:
    return int(value) if float(value).is_integer() and abs(value) >= 1 else repr(float(value))


def versions() -> dict[str, str]:
    """Package -> version, of those that enter a value."""
    from importlib import metadata

    found = {}
    for package in ("torch", "torchmetrics", "transformers", "numpy", "scipy", "av", "pyiqa"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def show(scores: Scores, names: Sequence[str], means: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the means of `summary`, and what was left out."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    terminal = console()
    if means:
        table = Table(box=box.SIMPLE_HEAD, title_justify="left")
        for head in ("metric", "mean", "95 % interval", "videos", "protocol"):
            table.add_column(head, justify="left" if head in ("metric", "protocol") else "right")
        for name, row in means.items():
            interval = "–" if row["low"] is None else f"{row['low']:.4g} … {row['high']:.4g}"
            label = " ".join((row["protocol"], *_changed_settings(name, row.get("settings", {}))))
            table.add_row(f"{name} {lookup(name).arrow}", f"{row['mean']:.4g}", interval, str(row["n"]), escape(label))
        terminal.print(table)
    if set_metrics := ", ".join(name for name in means if name in scores.set_values):
        terminal.print(f"{set_metrics}: no interval, one value for the whole set; an interval needs several seeds")
    if any(row["low"] is None and row["n"] == 1 and name not in scores.set_values for name, row in means.items()):
        terminal.print("no interval: there is one video")
    if any(row["low"] is None and row.get("clusters") == 1 < row["n"] for row in means.values()):
        terminal.print("no interval: videos whose names differ only in the trailing -NUMBER have the same prompt")
    for name in dict.fromkeys(name for name in names if name in means and lookup(name).licence):
        terminal.print(f"[dim]{name}: {escape(lookup(name).licence)}[/dim]")
    for reason in dict.fromkeys(scores.missing.values()):
        missing = ", ".join(name for name, text in scores.missing.items() if text == reason)
        terminal.print(f"{missing} –  {escape(without_make(reason))}", soft_wrap=True)
    for name, videos in scores.not_measured.items():
        terminal.print(f"{name}: {len(videos)} of {len(scores.rows)} videos without a value")
        for video, reason in list(videos.items())[:5]:
            terminal.print(f"  {escape(video)}: {escape(reason)}", soft_wrap=True)
    if scores.left_out:
        terminal.print(f"{len(scores.left_out)} video{'s' * (len(scores.left_out) > 1)} left out:")
        for reason in scores.left_out.values():
            terminal.print(f"  {escape(reason)}", soft_wrap=True)
    for title, reasons in (("not read", scores.passed_over), ("to know", scores.notes)):
        for name, reason in reasons.items():
            terminal.print(f"{title}: {escape(one_line(name))}: {escape(reason)}", soft_wrap=True)


def _changed_settings(name: str, settings: Mapping[str, Any]) -> list[str]:
    """The settings that differ from the registry's, as KEY=VALUE."""
    defaults = protocol_of(name)["settings"]
    changed = {key: value for key, value in settings.items() if value != defaults.get(key)}
    return [f"{key}={','.join(map(str, v)) if isinstance(v, list | tuple) else v}" for key, v in changed.items()]


@dataclass(frozen=True)
class ScoreOptions(MeasureOptions):
    """The options of `pw score`."""

    videos: str = option("", "a folder of videos, or a system's folder (with card.yaml); `videos=` may be left out")
    metrics: tuple[str, ...] = option(("mhd_mse",), f"names or groups: {', '.join((*GROUPS, *METRICS))}")
    out: Path | None = option(
        None, "scores.csv by default, in the folder itself for a system's folder", read=writable_file("out")
    )
    positional: tuple[str, ...] = option((), "the folder, instead of videos=DIR", key="DIR")


def run(options: ScoreOptions) -> int:
    """Exit status: 0 if there are scores, 1 if there are none or `strict` stopped the run."""
    end_with_parent()
    folders = [*([options.videos] if options.videos else []), *options.positional]
    if len(folders) != 1 or not folders[0]:
        message = "videos=: expected one folder; `make score videos=DIR metrics=mhd_mse,niqe`"
        raise missing_option(ScoreOptions, "videos", message, options.overrides)
    folder = Path(folders[0]).expanduser()
    if not (names := metric_names(options.metrics)):
        raise ConfigError(f"metrics=: no metric given; known: {', '.join((*GROUPS, *METRICS))}")
    videos_of(folder)
    out = options.out or (folder if (folder / "card.yaml").is_file() else Path()) / "scores.csv"
    check_writable("out", out.parent, out.name)
    measuring = MeasureOptions(**{field.name: getattr(options, field.name) for field in fields(MeasureOptions)})
    try:
        scores = score_videos(folder, names, measuring, print_line)
    except BrokenVideo as error:
        print_line(f"error: {error}")
        return 1
    try:
        protocol, means = write(scores, names, out)
    except NothingMeasured as error:
        show(scores, names, {})
        print_line(f"error: {error}")
        return 1
    show(scores, names, means)
    print(f"{out}\n{protocol}")
    return 0


main = Command(ScoreOptions, run, resume_hint="measured values are kept, run the same command again to resume")
