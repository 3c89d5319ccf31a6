"""Compare sets of videos with a set of real ones, in the features of a network: FVD and KVD.

    pw score what=sets DIR [DIR …] real=DIR [features=videomae weights=PATH out=sets.json …]

A row is a set, never a video: these values have a table and a file of their own, so that nothing averages them with
values of videos or pairs them over videos. The features of a video are cached by its content and the network; a killed
call continues with its unfinished video. One video is in memory at a time, and of it only the small pictures of its
middle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.measure.folder_scoring import READER, content_hash, scores_cache, stamp
from benchmarks.measure.measurement import (
    BrokenVideo,
    cache_folder,
    device_for,
    device_name,
    videos_of,
)
from benchmarks.measure.metric_weights import WEIGHTS, check_weights
from benchmarks.measure.score import versions
from benchmarks.measure.streaming import free_gpu_cache, remedy, shortage
from benchmarks.metrics.set_distance import DISTANCES
from benchmarks.stats.resampling import prompt_of
from benchmarks.stats.set_estimate import estimate
from pw.io.arguments import Command, ConfigError, Seed, number, option
from pw.io.console import console, one_line, print_line
from pw.io.files import digest, sha256, writable_file, write_json, write_tensors
from pw.io.progress import Pace, ProgressLine, duration
from pw.run.code import code_hash

PROTOCOL = "sets/1"
"""The id of what a number means: the clip of a video, its preparation, the features, the distances and intervals."""

FeaturesName = Literal["i3d", "videomae"]


@dataclass(frozen=True)
class SetOptions:
    """The options of `pw score what=sets`."""

    real: Path = option(help="a folder of real videos")
    features: FeaturesName = option("i3d", "the network whose features are compared")
    weights: Path | None = option(None, "other weights: a TorchScript I3D, or transformers' folder of a VideoMAE")
    frames: int = option(0, "frames of the middle of a video; 0: the network's, 16", read=number(0, 4096))
    antialias: bool = option(True, "filter frames before they are made smaller, which published FVDs do not")
    seed: Seed = option(0, "of the subsets of videos that give the intervals and the line over 1/N")
    strict: bool = option(False, "stop at the first video without features")
    device: str = option("auto", "auto, cpu or cuda:0, for the network", read=device_name)
    cache: Path | None = option(None, "where features are kept, instead of outputs/cache/scores", read=cache_folder)
    out: Path = option(Path("sets.json"), "the rows and what they are of", read=writable_file("out"))
    positional: tuple[str, ...] = option((), "folders of videos to compare with the real ones", key="DIR")


@dataclass
class FeatureSet:
    """The features of a folder's videos, and what may make two sets differ besides their content.

    rows: video -> float32 [D]; facts: video -> frames per second, width, height; hashes: video -> SHA-256;
    left_out: video -> reason; n_measured: videos that were not in the cache
    """

    folder: Path
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    facts: dict[str, tuple[float, int, int]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    n_measured: int = 0

    @property
    def matrix(self) -> np.ndarray:
        """float64 [N, D]."""
        return np.stack(list(self.rows.values())).astype(np.float64)

    @property
    def prompts(self) -> list[str]:
        return [prompt_of(video) for video in self.rows]


class SetScoring:
    """Reads or computes the features of folders, by one network."""

    def __init__(self, options: SetOptions) -> None:
        """Raises MissingWeights with the command that fetches the weights."""
        self.options = options
        self.weights, self.weights_sha256 = _weights(options)
        self.is_published = self.weights_sha256 == WEIGHTS[options.features].sha256
        code = code_hash(("benchmarks.metrics.set_features.load", "benchmarks.metrics.set_features.first_frame"))
        settings = {"frames": options.frames, "antialias": options.antialias}
        self.protocol = {"protocol": PROTOCOL, "features": options.features, "code": code, "settings": settings}
        self.key = digest([READER, self.protocol, self.weights_sha256], 16)
        self.cache = scores_cache(options.cache)

    @cached_property
    def network(self) -> Any:
        """The network, loaded for the first video that is not cached. Raises ConfigError for other weights' files."""
        from benchmarks.metrics.set_features import load

        options = self.options
        try:
            return load(options.features, self.weights, options.frames or None, device_for(options.device))
        except ValueError as error:
            raise ConfigError(f"weights={self.weights}: {error}" if options.weights else str(error)) from error

    def features(self, folder: Path, progress: Callable[[str], None]) -> FeatureSet:
        """The features of a folder; broken and short videos are left out. Raises BrokenVideo with `strict`."""
        result, missing = FeatureSet(folder), []
        for name, path in videos_of(folder).items():
            try:
                name.encode()  # another name cannot be written to the file
                before, result.hashes[name] = stamp(path), content_hash(path)
            except (UnicodeEncodeError, OSError) as error:
                self._leave_out(result, name, f"cannot be read ({error})")
                continue
            if (entry := self._read(result.hashes[name])) is None:
                missing.append((name, path, before))
            else:
                result.rows[name], result.facts[name] = entry
        pace = Pace()
        if missing and self.network:  # loaded now, so that it does not count as the first video's time
            pace.restart()
        for done, (name, path, before) in enumerate(missing, 1):
            self._measure(result, name, path, before)
            left = pace.time_left(done, len(missing))
            progress(
                f"{folder.name}: {done}/{len(missing)}  {one_line(name)}  {duration(pace.elapsed)} spent, {left} left"
            )
        order = [name for name in result.hashes if name in result.rows]
        result.rows = {name: result.rows[name] for name in order}
        result.hashes = {name: result.hashes[name] for name in order}
        return result

    def _measure(self, result: FeatureSet, name: str, path: Path, before: tuple[int, ...]) -> None:
        from benchmarks.metrics.set_features import first_frame
        from pw.io.video import iter_frames, probe

        network = self.network
        reason = ""
        try:
            info = probe(path)
            first = first_frame(info.frames, network.frames)
            clip = islice(iter_frames(path), first, first + network.frames)
            row = network.features(clip, self.options.antialias)
        except ValueError as error:  # also VideoError
            reason = str(error)
        except (MemoryError, RuntimeError) as error:
            if not (lack := shortage(error)):
                raise
            reason = f"{lack}; {remedy(lack)}"
            free_gpu_cache()
        if not reason and stamp(path) != before:
            reason = "changed while it was measured; call again when it is done"
        if reason:
            self._leave_out(result, name, reason)
            return
        facts = info.fps, info.width, info.height
        self._write(result.hashes[name], row, facts)
        result.rows[name], result.facts[name] = row, facts
        result.n_measured += 1

    def _leave_out(self, result: FeatureSet, name: str, reason: str) -> None:
        name = name.encode(errors="backslashreplace").decode()
        if self.options.strict:
            raise BrokenVideo(f"strict=true: {result.folder / name}: {reason}")
        result.left_out[name] = reason

    def _path(self, video: str) -> Path:
        return self.cache / video[:2] / video / f"features-{self.key}.safetensors"

    def _read(self, video: str) -> tuple[np.ndarray, tuple[float, int, int]] | None:
        """A video's cached row and facts; None if they are missing or not as they were written."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path(video), "numpy") as file:
                row, about = file.get_tensor("features"), file.metadata() or {}
            facts = tuple(json.loads(about["facts"]))
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        return (row, facts) if about.get("checksum") == _checksum(video, row, facts) else None

    def _write(self, video: str, row: np.ndarray, facts: tuple[float, int, int]) -> None:
        import torch

        about = {"facts": json.dumps(facts), "checksum": _checksum(video, row, facts)}
        write_tensors(self._path(video), {"features": torch.from_numpy(row)}, about)


def _checksum(video: str, row: np.ndarray, facts: tuple[float, int, int]) -> str:
    return digest([video, hashlib.sha256(row.tobytes()).hexdigest(), list(facts)], 64)


def _weights(options: SetOptions) -> tuple[Path, str]:
    """The file or folder of weights and its SHA-256. Raises MissingWeights, ConfigError."""
    path = options.weights
    if path is None:
        return check_weights(WEIGHTS[options.features])
    if not path.exists():
        raise ConfigError(f"weights={path}: no such file or folder")
    if options.features == "i3d" and path.is_dir():
        raise ConfigError(
            f"weights={path}: is a folder; features=i3d takes a TorchScript file, features=videomae a folder"
        )
    if path.is_file():
        return path, sha256(path)
    files = sorted(file for pattern in ("*.json", "*.safetensors", "*.bin") for file in path.glob(pattern))
    if not any(file.name == "config.json" for file in files):
        raise ConfigError(
            f"weights={path}: no config.json in it; features=videomae takes transformers' folder of a VideoMAE"
        )
    return path, digest([[file.name, sha256(file)] for file in files], 64)


# ---- the rows


def compare(scoring: SetScoring, real: FeatureSet, generated: FeatureSet) -> list[dict[str, Any]]:
    """A row per distance. Raises ConfigError if a set has fewer than two videos."""
    for side in (real, generated):
        if len(side.rows) < 2:
            raise ConfigError(
                f"{side.folder}: {len(side.rows)} videos with features, 2 are needed at least{_first(side)}"
            )
    options, rows = scoring.options, []
    notes = [*_differences(real, generated)]
    if not scoring.is_published:
        notes.append("the weights are not the published ones: not to be compared with other weights' values")
    of_real, of_generated, line = real.matrix, generated.matrix, ProgressLine()
    for name, distance in DISTANCES.items():

        def report(done: int, total: int, name: str = name) -> None:
            if line.is_due:
                line.show(f"{generated.folder.name}: {name}, subset {done}/{total}")

        result = estimate(distance, of_real, of_generated, (real.prompts, generated.prompts), options.seed, report)
        row = {"set": str(generated.folder), "real": str(real.folder), "metric": name, **asdict(result)}
        row |= {"notes": [*result.notes, *notes], "n_real": len(real.rows), "n_generated": len(generated.rows)}
        row |= {"dimensions": of_real.shape[1], "seed": options.seed, **scoring.protocol}
        row["distance_code"] = code_hash(("benchmarks.metrics.set_distance.DISTANCES",))
        row["weights"] = {"sha256": scoring.weights_sha256, "published": scoring.is_published}
        row["videos"] = {"real": _set_hash(real), "generated": _set_hash(generated)}
        rows.append(row)
    line.clear()
    return rows


def _first(side: FeatureSet) -> str:
    return next((f"; {name}: {reason}" for name, reason in side.left_out.items()), "")


def _set_hash(side: FeatureSet) -> str:
    return digest(sorted(side.hashes.values()), 16)


def _differences(real: FeatureSet, generated: FeatureSet) -> list[str]:
    """Rates and aspects in which the sets differ: the distance measures those, too."""
    values = [
        {
            "rates": sorted({f"{fps:.3g}" for fps, _, _ in side.facts.values()}, key=float),
            "aspects": sorted({f"{width / height:.2f}" for _, width, height in side.facts.values()}),
        }
        for side in (real, generated)
    ]
    notes = []
    for what in ("rates", "aspects"):
        of_real, of_generated = (", ".join(side[what][:4]) for side in values)
        if of_real != of_generated:
            notes.append(f"{what} differ, which is measured, too: real {of_real}; generated {of_generated}")
    return notes


def show(rows: Sequence[Mapping[str, Any]], sets: Sequence[FeatureSet]) -> None:
    """Print a table with a row per set and metric, and below it what the numbers are of."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    terminal = console()
    table = Table(box=box.SIMPLE_HEAD)
    for head in ("set", "", "at N", "95 %", "N → ∞", "95 %", "N real, set"):
        table.add_column(head, justify="left" if head in ("set", "") else "right")
    for row in rows:
        ends = [(row["low"], row["high"]), (row["extrapolated_low"], row["extrapolated_high"])]
        intervals = ["–" if low is None else f"{low:.3g} … {high:.3g}" for low, high in ends]
        limit = "–" if row["extrapolated"] is None else f"{row['extrapolated']:.4g}"
        counts = f"{row['n_real']}, {row['n_generated']}"
        name = escape(one_line(Path(row["set"]).name))
        table.add_row(name, f"{row['metric']} ↓", f"{row['value']:.4g}", intervals[0], limit, intervals[1], counts)
    terminal.print(table)
    first = rows[0]
    about = (
        f"{first['features']}, {first['dimensions']} features, weights {first['weights']['sha256'][:12]}, {PROTOCOL}"
    )
    terminal.print(f"{about}; fvd at N is biased by N; kvd is not", soft_wrap=True)
    for note in dict.fromkeys(note for row in rows for note in row["notes"]):
        of = dict.fromkeys(f"{Path(row['set']).name}: {row['metric']}" for row in rows if note in row["notes"])
        terminal.print(f"{escape(one_line(', '.join(of)))}: {escape(note)}", soft_wrap=True)
    for side in sets:
        for name, reason in side.left_out.items():
            terminal.print(f"left out: {escape(one_line(str(side.folder / name)))}: {escape(reason)}", soft_wrap=True)


def run(options: SetOptions) -> int:
    """Exit status: 0 if there are rows, 1 if `strict` stopped the call."""
    if not options.positional:
        raise ConfigError("no folder of videos to compare; pw score what=sets DIR real=DIR")
    if not options.real.is_dir():
        raise ConfigError(f"real={options.real}: no such folder")
    folders = [Path(text).expanduser() for text in dict.fromkeys(options.positional)]
    for folder in (options.real, *folders):
        videos_of(folder)
    scoring = SetScoring(options)
    try:
        real, *sets = [scoring.features(folder, print_line) for folder in (options.real, *folders)]
    except BrokenVideo as error:
        print_line(f"error: {error}")
        return 1
    rows = [row for side in sets for row in compare(scoring, real, side)]
    left_out = {str(side.folder): side.left_out for side in (real, *sets) if side.left_out}
    measured = sum(side.n_measured for side in (real, *sets))
    content = {"sets": rows, "left_out": left_out, "versions": versions(), "run": {"videos_measured": measured}}
    write_json(options.out, content)
    show(rows, [real, *sets])
    print(options.out)
    return 0


main = Command(SetOptions, run, resume_hint="features are kept, run the same command again to resume")
