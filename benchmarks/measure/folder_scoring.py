"""Score the videos of a folder one by one, with a cache of values; broken videos are reported and left out.

Each video is decoded once for all its metrics (`streaming.py`). Its values are then cached, in one small file per
(content of the video, metric, dependencies of the metric). Files are written atomically, so a killed run continues with
its unfinished video, and a renamed or copied video is not measured again. PW_SCORES is the cache's folder, by default
outputs/cache/scores.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure.measurement import BrokenVideo, MeasureOptions, Scores, device_for, settings_of, videos_of
from benchmarks.measure.metric_weights import MissingWeights, digest
from benchmarks.measure.streaming import VideoScores, free_gpu_cache, remedy, score_video, shortage
from benchmarks.metrics import METRICS, VBENCH_SEMANTIC, lookup, protocol_of
from benchmarks.metrics.implementation import scorer_of
from benchmarks.stats.resampling import prompt_of
from pw.io import files
from pw.io.arguments import ConfigError
from pw.io.console import one_line
from pw.io.files import parse_json, sha256, write_atomically
from pw.io.host import default_threads
from pw.io.paths import OUTPUTS
from pw.io.progress import Pace, duration

READER = 4
"""Counts the changes of `pw.io.video` that change pixels, or which files are whole; 1 ignored mirrors and damage."""

WORKER = "vbench"
"""The family that a separate process measures."""


@dataclass(frozen=True)
class Entry:
    """A value, the number of frames of the video, and its note (`pw.io.video.VideoInfo`); or why there is no value."""

    value: float
    frames: int
    note: str = ""
    refusal: str = ""


def content_hash(path: Path) -> str:
    """SHA-256 of a file. Raises OSError if it is unreadable or no regular file: opening a named pipe would block."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a file", str(path))
    return sha256(path)


def scores_cache(folder: Path | None) -> Path:
    """The folder of measured values: this one, or PW_SCORES, or outputs/cache/scores."""
    return folder or Path(os.environ.get("PW_SCORES") or OUTPUTS / "cache/scores").expanduser()


@dataclass(frozen=True)
class Cache:
    """A folder of entries, safe for concurrent processes: each entry is written atomically."""

    folder: Path

    def get(self, video: str, metric: str, dependencies: Mapping[str, Any]) -> Entry | None:
        """The entry of a video, None if it is missing, unreadable or not as it was written there.

        video: content hash. dependencies: what else the value depends on: protocol, settings, hashes of weights.
        """
        try:
            path = self._path(video, metric, dependencies)
            values = parse_json(path.read_text(encoding="utf-8"))
            if values.pop("checksum") != _checksum(path, values):
                return None
            frames, refusal = int(values["frames"]), str(values.get("refusal", ""))
            value = math.nan if refusal else float(values["value"])
            entry = Entry(value, frames, str(values.get("note", "")), refusal)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return entry if refusal or math.isfinite(value) else None

    def put(self, video: str, metric: str, dependencies: Mapping[str, Any], entry: Entry) -> None:
        """Write an entry. Raises ValueError for a value that is not finite, without a refusal."""
        if not entry.refusal and not math.isfinite(entry.value):
            raise ValueError(f"{metric} of {video[:12]} is {entry.value}, which is no score")
        record = {**asdict(entry), "metric": metric, "video": video, "depends": dict(dependencies)}
        record |= {"value": None} if entry.refusal else {}
        path = self._path(video, metric, dependencies)
        record = parse_json(json.dumps(record))  # as it is read
        content = {**record, "checksum": _checksum(path, record)}
        write_atomically(path, json.dumps(content, indent=1, sort_keys=True) + "\n")

    def _path(self, video: str, metric: str, dependencies: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(json.dumps([READER, metric, dependencies], sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / video[:2] / video / f"{metric}-{key}.json"


def _checksum(path: Path, record: Mapping[str, Any]) -> str:
    """Of an entry and its path, so that an entry copied from another video does not match."""
    return files.digest([path.parent.name, path.name, record], 64)


class FolderScoring:
    """Scores a folder's videos; `scores` is the result so far."""

    def __init__(self, videos: Mapping[str, Path], metrics: Sequence[str], options: MeasureOptions) -> None:
        """Record in `scores.missing` what metrics need. Raises ConfigError for an invalid setting."""
        self.videos, self.metrics, self.options, self.scores = videos, metrics, options, Scores()
        self.settings = settings_of(metrics, options.overrides)
        self.cache = Cache(scores_cache(options.cache))
        self.real = videos_of(options.real) if options.real else {}
        self.threads = options.threads or default_threads()
        self.names: list[str] = []
        self._hashes: dict[Path, tuple[str, Any]] = {}
        for name in (name for name in metrics if lookup(name).family != "reference"):
            if "real" in lookup(name).needs and not self.real:
                self.scores.missing[name] = f"{name} compares videos with real ones: set real=DIR"
                continue
            try:
                self.scores.dependencies[name] = self._dependencies(name)
            except MissingWeights as error:
                self.scores.missing[name] = str(error)
            else:
                self.names.append(name)

    def missing_metrics(self, path: Path) -> list[str]:
        """Read a video's cached values into `scores`; returns the metrics without a cached value."""
        key = self._hash(path)
        self.scores.hashes[path.name] = key
        row = self.scores.rows.setdefault(path.name, {})
        missing = []
        for name in self.names:
            entry = self.cache.get(key, name, self._dependencies_of(name, path))
            if entry is None:
                missing.append(name)
            elif entry.refusal:
                self._refuse(path.name, {name}, entry.refusal)
            else:
                row |= {"frames": entry.frames, name: entry.value}
                self._note(path, entry.note)
        return missing

    def measure(self, progress: Callable[[str], None]) -> None:
        """Measure the missing values, and cache them after each video."""
        missing = {path: self.missing_metrics(path) for path in self.readable_videos()}
        if worker_metrics := {n for names in missing.values() for n in names if lookup(n).family == WORKER}:
            from benchmarks.metrics.vbench import available

            self._drop_metrics(available(sorted(worker_metrics), self.settings[WORKER]))
            missing = {path: [name for name in names if name in self.names] for path, names in missing.items()}
        frame_metrics = {p: [n for n in names if lookup(n).family != WORKER] for p, names in missing.items()}
        frame_metrics = {path: names for path, names in frame_metrics.items() if names}
        scorers = self._scorers({lookup(n).family for names in frame_metrics.values() for n in names})
        pace = Pace()
        for number, (path, names) in enumerate(frame_metrics.items(), 1):
            families = {lookup(name).family for name in names}
            self._measure_one(path, {f: scorer for f, scorer in scorers.items() if f in families})
            spent, remaining = duration(round(pace.elapsed)), pace.time_left(number, len(frame_metrics))
            progress(f"{number}/{len(frame_metrics)}  {one_line(path.name)}  {spent} spent, {remaining} left")
        self._measure_by_worker({p: [n for n in names if lookup(n).family == WORKER] for p, names in missing.items()})
        self._check_protocol()

    def readable_videos(self) -> list[Path]:
        """The videos with a readable file and a UTF-8 name; the others are left out."""
        paths = []
        for name, path in self.videos.items():
            try:
                name.encode()  # another name cannot be written to a table
                self._hash(path)
            except UnicodeEncodeError:
                self.leave_out(name, f"{path}: its name is not UTF-8, rename it")
            except OSError as error:
                self.leave_out(name, f"{path}: cannot be read ({error.strerror})")
            else:
                paths.append(path)
        return paths

    def _scorers(self, families: set[str]) -> dict[str, Any]:
        scorers = {}
        for family in sorted(families):
            names = _names_of({family})
            affected = [name for name in self.names if name in names]
            reason = ""
            try:
                scorers[family] = scorer_of(names, self.settings[family], device_for(self.options.device))
            except MissingWeights as error:
                self._drop_metrics(dict.fromkeys(affected, str(error)))
            except ConfigError:
                raise
            except ValueError as error:  # a setting
                raise ConfigError(str(error)) from None
            except (MemoryError, RuntimeError) as error:
                if not (reason := shortage(error)):
                    raise
            if reason:  # after the except block, so that the error no longer references the network's tensors
                free_gpu_cache()
                message = f"the network of {', '.join(affected)} does not fit: {reason}; {remedy(reason)}"
                self._check_strict(message)
                self._drop_metrics(dict.fromkeys(affected, message))
        return scorers

    def _measure_one(self, path: Path, scorers: Mapping[str, Any]) -> None:
        from pw.io.video import VideoError

        paired_families = {
            family for family in scorers if any("real" in r.needs for r in METRICS.values() if r.family == family)
        }
        real = self.real.get(path.name)
        if paired_families and real is None:
            self._refuse(path.name, _names_of(paired_families), f"no video of this name in real={self.options.real}")
            scorers = {family: scorer for family, scorer in scorers.items() if family not in paired_families}
        if not scorers:
            return
        try:
            result = score_video(
                path, scorers, real=real, paired=paired_families, threads=self.threads, budget=self.options.memory
            )
        except VideoError as error:
            self.leave_out(path.name, str(error))
            return
        self._store(path, result)
        for family, reason in result.refusals.items():
            if not result.out_of_memory and not self._is_changed(path):  # or there may be a value the next time
                self._remember_refusal(path, _names_of({family}), reason, result.frames)
            self._refuse(path.name, _names_of({family}), reason)

    def _remember_refusal(self, path: Path, metrics: Collection[str], reason: str, frames: int) -> None:
        for name in (name for name in self.names if name in metrics):
            entry = Entry(math.nan, frames, refusal=reason)
            self.cache.put(self._hash(path), name, self._dependencies_of(name, path), entry)

    def _store(self, path: Path, result: VideoScores) -> None:
        if self._is_changed(path):
            return
        self.scores.n_measured += 1
        row = self.scores.rows[path.name]
        row["frames"] = result.frames
        self._note(path, result.note)
        for name, value in result.values.items():
            if not math.isfinite(value):
                self._refuse(path.name, {name}, f"{name} is {value}")
            else:
                entry = Entry(value, result.frames, result.note)
                self.cache.put(self._hash(path), name, self._dependencies_of(name, path), entry)
                if name in self.names:
                    row[name] = value

    def _measure_by_worker(self, metrics_of_videos: Mapping[Path, Sequence[str]]) -> None:
        from pw.io.video import VideoError, decode, probe

        for names in {tuple(names) for names in metrics_of_videos.values() if names}:
            paths = []
            for path in [path for path, metrics in metrics_of_videos.items() if tuple(metrics) == names]:
                if path.name in self.scores.left_out:
                    continue
                try:  # the worker's message for an unreadable video says little
                    self.scores.rows[path.name].setdefault("frames", sum(1 for _ in decode(path)))
                    self._note(path, probe(path).note)
                except VideoError as error:
                    self.leave_out(path.name, str(error))
                else:
                    paths.append(path)
            if paths:
                from benchmarks.metrics.vbench import score_videos as score_by_worker

                settings, device = self.settings[WORKER], device_for(self.options.device)
                failed = score_by_worker(paths, names, settings, device, self._store_worker_values)
                failed = {
                    n: f"{text}; {remedy(text)}" if "out of memory" in text else text for n, text in failed.items()
                }
                for reason in failed.values():
                    self._check_strict(reason)
                self._drop_metrics(failed)

    def _check_protocol(self) -> None:
        """Report missing videos of VBench's protocol: VBench averages the others without a warning."""
        names = [name for name in self.names if lookup(name).family == WORKER and self.scores.values(name)]
        if not names or not self.settings[WORKER]["mode"].endswith("vbench_standard"):
            return
        from benchmarks.metrics.vbench import interpreter, missing_stems

        if not interpreter().is_file():  # all values came from the cache
            return
        for name, stems in missing_stems(names, [Path(video).stem for video in self.scores.rows]).items():
            if stems:
                reason = f"{name}: {len(stems)} videos of VBench's protocol are missing, such as {stems[0]!r}"
                self._check_strict(reason)
                self.scores.missing[name] = reason

    def _store_worker_values(self, path: Path, values: Mapping[str, float]) -> None:
        if self._is_changed(path):
            return
        row = self.scores.rows[path.name]
        for name, value in values.items():
            # computed again, because PW_VBENCH_DOWNLOAD=1 may have downloaded weights
            self.scores.dependencies[name] = self._dependencies(name)
            entry = Entry(value, int(row["frames"]), self.scores.notes.get(path.name, ""))
            self.cache.put(self._hash(path), name, self._dependencies_of(name, path), entry)
            row[name] = value

    def _drop_metrics(self, missing: Mapping[str, str]) -> None:
        self.scores.missing.update(missing)
        self.names = [name for name in self.names if name not in missing]

    def _note(self, path: Path, note: str) -> None:
        if note:
            self.scores.notes[path.name] = note

    def leave_out(self, video: str, reason: str) -> None:
        video, reason = (text.encode(errors="backslashreplace").decode() for text in (video, reason))
        self._check_strict(reason)
        self.scores.left_out[video] = reason

    def _check_strict(self, reason: str) -> None:
        if self.options.strict:
            raise BrokenVideo(f"strict=true: {reason}")

    def _refuse(self, video: str, metrics: Collection[str], reason: str) -> None:
        """Record why requested metrics without a cached value have no value of this video."""
        for name in self.names:
            if name in metrics and name not in self.scores.rows[video]:
                self._check_strict(f"{video}: {name}: {reason}")
                self.scores.not_measured.setdefault(name, {})[video] = reason

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            status = stamp(path)
            self._hashes[path] = content_hash(path), status
        return self._hashes[path][0]

    def _is_changed(self, path: Path) -> bool:
        """Whether the video or its real video changed after it was hashed; then leave the video out."""
        for file in (path, self.real.get(path.name)):
            if file in self._hashes and stamp(file) != self._hashes[file][1]:
                self.leave_out(path.name, f"{file}: changed while it was measured; score it again when it is done")
                return True
        return False

    def _dependencies_of(self, name: str, path: Path) -> dict[str, Any]:
        """What a metric's value of this video depends on, except for the video's content."""
        dependencies = self.scores.dependencies.get(name) or self._dependencies(name)
        if name in VBENCH_SEMANTIC:  # these compare the video with its prompt, which is in its name
            dependencies = {**dependencies, "prompt": prompt_of(path.name)}
        real = self.real.get(path.name) if "real" in lookup(name).needs else None
        if real is None:
            return dependencies
        try:
            self.scores.real[path.name] = self._hash(real)
        except OSError:  # this key is never written, because the metric refuses the video
            return dependencies
        return {**dependencies, "real": self._hash(real)}

    def _dependencies(self, name: str) -> dict[str, Any]:
        """What a metric's values depend on, except for the videos, as JSON values. Raises MissingWeights."""
        row = lookup(name)
        if row.family == WORKER:
            from benchmarks.metrics.vbench import digests

            weights = digests(name)
        else:
            weights = {weight: digest(weight) for weight in row.weights}
        return {**protocol_of(name, self.settings[row.family]), "weights": weights}


def _names_of(families: Collection[str]) -> list[str]:
    return [name for name, row in METRICS.items() if row.family in families]


def stamp(path: Path) -> tuple[int, ...]:
    """Inode, size and time of a file, which change when it is rewritten; () without a file."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns
