"""Score a folder of videos, from any system: a row per video, and beside it the protocol they were measured by.

    pw score DIR metrics=mhd_mse,niqe out=scores.csv [strict=true real=DIR mhd.reduction=sum …]

Every video is measured by itself, decoded once for all metrics and never held whole; what was measured once is not
measured again (see `cache.py`). A video that is broken, and a metric whose weights are missing, are named and left out;
the others are scored.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.measure.measurement import BrokenVideo, MeasureOptions, Scores, videos_of
from benchmarks.measure.shared_scoring import end_with_parent
from benchmarks.measure.videos import score_videos
from benchmarks.metrics import GROUPS, METRICS, chosen, lookup, protocols
from benchmarks.stats.resampling import bootstrap_mean, prompt_of
from pw.io.arguments import Command, ConfigError, option
from pw.io.files import check_writable, write_atomically, write_csv


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
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
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
            interval = "–" if row["low"] is None else f"{_number(row['low'])} … {_number(row['high'])}"
            how = " ".join((row["protocol"], *_changed(name, row.get("settings", {}))))
            table.add_row(f"{name} {lookup(name).arrow}", _number(row["mean"]), interval, str(row["n"]), escape(how))
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
    usual = protocols([name])[name]["settings"]
    shown = {key: value for key, value in settings.items() if value != usual.get(key)}
    return [f"{key}={','.join(map(str, v)) if isinstance(v, list | tuple) else v}" for key, v in shown.items()]


def _number(value: float) -> str:
    return f"{value:.4g}"


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

    @property
    def folder(self) -> Path:
        """The folder to score. Raises ConfigError for none, or several."""
        given = [*([self.videos] if self.videos else []), *self.positional]
        if len(given) != 1 or not given[0]:
            raise ConfigError("videos=: one folder; make score videos=DIR metrics=mhd_mse,niqe")
        return Path(given[0]).expanduser()

    @property
    def measuring(self) -> MeasureOptions:
        """What is not the folder, the metrics or the table."""
        return MeasureOptions(**{each.name: getattr(self, each.name) for each in fields(MeasureOptions)})


def run(options: ScoreOptions) -> int:
    """Exit status: 0 something was scored, 1 nothing was, or `strict` stopped it."""
    end_with_parent()
    folder = options.folder
    if not (names := chosen(options.metrics)):
        raise ConfigError(f"metrics=: names none; known: {', '.join((*GROUPS, *METRICS))}")
    videos_of(folder)
    out = options.out or (folder if (folder / "card.yaml").is_file() else Path()) / "scores.csv"
    check_writable("out", out.parent, out.name)
    try:
        scores = score_videos(folder, names, options.measuring, lambda line: print(line, file=sys.stderr, flush=True))
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


main = Command(ScoreOptions, run, resumes="what was measured is kept, the same command goes on with the rest")
