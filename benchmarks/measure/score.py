"""Score a folder of videos, from any system: a row per video, and beside it the protocol they were measured by.

    pw score DIR metrics=mhd_mse,niqe out=scores.csv [strict=true real=DIR mhd.reduction=sum …]

Every video is measured by itself, decoded once for all metrics and never held whole; what was measured once is not
measured again (`folder_scoring.py`). A video that is broken, and a metric whose weights are missing, are named and left
out; the others are scored.
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

from benchmarks.measure.clips import measure_clips, paired
from benchmarks.measure.folder_scoring import FolderScoring
from benchmarks.measure.measurement import BrokenVideo, MeasureOptions, Scores, gpus, videos_of
from benchmarks.metrics import GROUPS, METRICS, chosen, lookup, protocol_of
from benchmarks.stats.resampling import bootstrap_mean, prompt_of
from pw.io.arguments import Command, ConfigError, option, to_words
from pw.io.files import check_writable, write_atomically, write_csv
from pw.io.host import free_memory
from pw.io.paths import SUITE

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
    own = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = own.split(",") if own else [str(i) for i in range(gpus())]
    with contextlib.ExitStack() as stack:  # what a process left undone is measured here, and what is wrong is said here
        workers = []
        for i in range(count):
            shard = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pw-score-")))
            for path in videos[i::count]:
                os.symlink(path.resolve(), shard / path.name)
            words = [f"videos={shard}", f"metrics={','.join(streamed)}", f"out={shard / '.scores.csv'}", *to_words(one)]
            env = {**os.environ, "PYTHONPATH": str(SUITE), PARENT: str(os.getpid())}
            if gpus() > 1:
                env["CUDA_VISIBLE_DEVICES"] = visible[i % gpus()]
            command = [sys.executable, "-m", "pw", "score", *words]
            workers.append(stack.enter_context(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)))
            stack.callback(workers[-1].kill)
        for process in workers:
            process.wait()


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
    whole = (path for path in clips.values() if path.name not in scores.left_out)
    clips = {path.stem: path for path in sorted(whole, key=lambda path: path.name)}
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
        if lookup(name).level == "video":
            needs = ", ".join(f"{need}={folders[need]}" for need in lookup(name).needs)
            why = f"its value is not finite{f', or {needs} has no clip of its name' if needs else ''}"
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


# ---- the table, and the command


def summary(found: Scores, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """metric -> mean over videos with its bootstrap interval, what it is and by which protocol."""
    result: dict[str, dict[str, Any]] = {}
    for name in names:
        row = lookup(name)
        values = found.values(name)
        if name in found.whole:
            stated: dict[str, Any] = {"mean": found.whole[name], "low": None, "high": None, "n": len(found.rows)}
        elif values:
            stated = asdict(bootstrap_mean(list(values.values()), [prompt_of(video) for video in values]))
        else:
            continue
        about = {"direction": row.direction, "unit": row.unit, "scale": row.scale, "level": row.level}
        result[name] = {**stated, **about, **found.depends.get(name, {})}
        if row.licence:
            result[name]["licence"] = row.licence
    return result


class NothingMeasured(ValueError):
    """No metric has a value: no table to write, least of all over an earlier one."""


def write(found: Scores, names: Sequence[str], out: Path) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Write `out` (a row per video) and beside it <stem>.protocol.json: its path, and the `summary` that it holds.

    Raises: NothingMeasured, which leaves both files as they are.
    """
    columns = [name for name in names if found.values(name)]
    if not columns and not found.whole:
        left = f"{out} stays as it was" if out.exists() else f"{out} is not written"
        raise NothingMeasured(f"nothing was measured of {', '.join(names)}; {left}")
    rows = [
        {"video": video, **{key: _cell(row[key]) for key in ("frames", *columns) if key in row}}
        for video, row in sorted(found.rows.items())
        if "frames" in row
    ]
    means = summary(found, names)
    protocol = out.with_name(f"{out.stem}.protocol.json")
    about = {
        "metrics": means,
        "missing": found.missing,
        "left_out": found.left_out,
        "not_measured": found.not_measured,
        "videos": {video: found.hashes.get(video) for video in sorted(found.rows)},
        "real": dict(sorted(found.real.items())),
        "versions": _versions(),
        "run": {"videos_measured": found.measured, "seconds": round(found.seconds, 2)},
    }
    write_csv(out, ["video", "frames", *columns], rows)
    write_atomically(protocol, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return protocol, means


def _cell(value: float) -> Any:
    return int(value) if float(value).is_integer() and abs(value) >= 1 else repr(float(value))


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for package in ("torch", "torchmetrics", "numpy", "scipy", "av", "pyiqa"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def show(found: Scores, names: Sequence[str], means: Mapping[str, Mapping[str, Any]]) -> None:
    """The means of `summary`, and whatever was left out, on the terminal."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console() if sys.stdout.isatty() else Console(width=120)
    if means:
        table = Table(box=box.SIMPLE_HEAD, title_justify="left")
        for head in ("metric", "mean", "95 % interval", "videos", "protocol"):
            table.add_column(head, justify="left" if head in ("metric", "protocol") else "right")
        for name, row in means.items():
            interval = "–" if row["low"] is None else f"{row['low']:.4g} … {row['high']:.4g}"
            how = " ".join((row["protocol"], *_changed(name, row.get("settings", {}))))
            table.add_row(f"{name} {lookup(name).arrow}", f"{row['mean']:.4g}", interval, str(row["n"]), escape(how))
        console.print(table)
    if of_set := [name for name in means if name in found.whole]:
        console.print(f"{', '.join(of_set)}: no interval, one value of all videos; what it varies by takes seeds")
    if any(row["low"] is None and row["n"] == 1 and name not in found.whole for name, row in means.items()):
        console.print("no interval: there is one video")
    if any(row["low"] is None and row.get("clusters") == 1 < row["n"] for row in means.values()):
        console.print("no interval: names that differ in their trailing -NUMBER only are videos of one prompt")
    for name in dict.fromkeys(name for name in names if name in means and lookup(name).licence):
        console.print(f"[dim]{name}: {escape(lookup(name).licence)}[/dim]", highlight=False)
    for why in dict.fromkeys(found.missing.values()):
        lacking = ", ".join(name for name, reason in found.missing.items() if reason == why)
        console.print(f"{lacking} –  {escape(why)}", highlight=False, soft_wrap=True)
    for name, videos in found.not_measured.items():
        console.print(f"{name}: {len(videos)} of {len(found.rows)} videos without a value", highlight=False)
        for video, why in list(videos.items())[:5]:
            console.print(f"  {escape(video)}: {escape(why)}", highlight=False, soft_wrap=True)
    if found.left_out:
        console.print(f"{len(found.left_out)} video{'s' * (len(found.left_out) > 1)} left out:", highlight=False)
        for why in found.left_out.values():
            console.print(f"  {escape(why)}", highlight=False, soft_wrap=True)


def _changed(name: str, settings: Mapping[str, Any]) -> list[str]:
    """The settings that are not the registry's, as one would type them."""
    usual = protocol_of(name)["settings"]
    shown = {key: value for key, value in settings.items() if value != usual.get(key)}
    return [f"{key}={','.join(map(str, v)) if isinstance(v, list | tuple) else v}" for key, v in shown.items()]


def _output_file(text: str) -> Path:
    if not Path(text).name:
        raise ValueError("wants a file, such as scores.csv")
    return Path(text).expanduser()


@dataclass(frozen=True)
class ScoreOptions(MeasureOptions):
    """The options of `pw score`."""

    videos: str = option("", "a folder of videos, or a system's folder (with card.yaml); `videos=` may be left out")
    metrics: tuple[str, ...] = option(("mhd_mse",), f"names or groups: {', '.join((*GROUPS, *METRICS))}")
    out: Path | None = option(
        None, "scores.csv by default, in the folder itself for a system's folder", read=_output_file
    )
    positional: tuple[str, ...] = ()


def run(options: ScoreOptions) -> int:
    """Exit status: 0 something was scored, 1 nothing was, or `strict` stopped it."""
    end_with_parent()
    given = [*([options.videos] if options.videos else []), *options.positional]
    if len(given) != 1 or not given[0]:
        raise ConfigError("videos=: one folder; make score videos=DIR metrics=mhd_mse,niqe")
    folder = Path(given[0]).expanduser()
    if not (names := chosen(options.metrics)):
        raise ConfigError(f"metrics=: names none; known: {', '.join((*GROUPS, *METRICS))}")
    videos_of(folder)
    out = options.out or (folder if (folder / "card.yaml").is_file() else Path()) / "scores.csv"
    check_writable("out", out.parent, out.name)
    measuring = MeasureOptions(**{each.name: getattr(options, each.name) for each in fields(MeasureOptions)})
    try:
        scores = score_videos(folder, names, measuring, lambda line: print(line, file=sys.stderr, flush=True))
    except BrokenVideo as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        protocol, means = write(scores, names, out)
    except NothingMeasured as error:
        show(scores, names, {})
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(scores, names, means)
    print(f"{out}\n{protocol}")
    return 0


main = Command(ScoreOptions, run, resume_hint="what was measured is kept, the same command goes on with the rest")
