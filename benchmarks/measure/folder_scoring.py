"""The videos of a folder, measured one by one: what is kept is not measured again, what is broken is named.

One decode of a video serves all its metrics (`streaming.py`). Each video's values are kept as it ends, in one small
file per (video's content, metric, what the metric depends on). A file that is there was written whole, so a run that
was killed goes on with the video it was at, and a video that was renamed or copied is not measured again. PW_SCORES
names the folder, by default outputs/cache/scores.
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
from benchmarks.measure.streaming import Scored, give_back, remedy, score_video, shortage
from benchmarks.metrics import METRICS, VBENCH_SEMANTIC, lookup, protocol_of
from benchmarks.metrics.implementation import scorer_of
from benchmarks.stats.resampling import prompt_of
from pw.io.arguments import ConfigError
from pw.io.files import sha256, write_atomically
from pw.io.host import default_threads
from pw.io.paths import OUTPUTS
from pw.io.progress import Pace, duration

WORKER = "vbench"
"""The family that is measured by a process of its own."""


@dataclass(frozen=True)
class Entry:
    """A measured value, with the number of frames of the video."""

    value: float
    frames: int


def content_hash(path: Path) -> str:
    """SHA-256. Raises OSError for what cannot be read, or is no file: opening a named pipe would wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a file", str(path))
    return sha256(path)


@dataclass(frozen=True)
class Cache:
    """A folder of entries, safe for several processes at once: entries are only ever added, each atomically."""

    folder: Path

    def get(self, video: str, metric: str, depends: Mapping[str, Any]) -> Entry | None:
        """The entry of a video (its content hash), None if it is not there or not readable.

        depends: whatever the value depends on beside the video: protocol, settings, hashes of weights.
        """
        try:
            found = json.loads(self._path(video, metric, depends).read_text(encoding="utf-8"))
            entry = Entry(float(found["value"]), int(found["frames"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return entry if math.isfinite(entry.value) else None

    def put(self, video: str, metric: str, depends: Mapping[str, Any], entry: Entry) -> None:
        """Add an entry. Raises ValueError for a value that is not finite, which is no score."""
        if not math.isfinite(entry.value):
            raise ValueError(f"{metric} of {video[:12]} is {entry.value}, which is no score")
        about = {**asdict(entry), "metric": metric, "video": video, "depends": dict(depends)}
        write_atomically(self._path(video, metric, depends), json.dumps(about, indent=1, sort_keys=True) + "\n")

    def _path(self, video: str, metric: str, depends: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(json.dumps([metric, depends], sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / video[:2] / video / f"{metric}-{key}.json"


class FolderScoring:
    """The videos of one call, and what of them is still to be measured."""

    def __init__(self, videos: Mapping[str, Path], metrics: Sequence[str], options: MeasureOptions) -> None:
        """Says in `found` what a metric lacks, before anything is decoded. Raises ConfigError for a wrong setting."""
        self.videos, self.metrics, self.options, self.found = videos, metrics, options, Scores()
        self.settings = settings_of(metrics, options.overrides)
        self.cache = Cache(options.cache or Path(os.environ.get("PW_SCORES") or OUTPUTS / "cache/scores").expanduser())
        self.real = videos_of(options.real) if options.real else {}
        self.threads = options.threads or default_threads()
        self.names: list[str] = []
        self._hashes: dict[Path, tuple[str, Any]] = {}
        for name in (name for name in metrics if lookup(name).family != "reference"):
            if "real" in lookup(name).needs and not self.real:
                self.found.missing[name] = f"{name} holds videos against real ones: real=DIR names them"
                continue
            try:
                self.found.depends[name] = self._depends(name)
            except MissingWeights as error:
                self.found.missing[name] = str(error)
            else:
                self.names.append(name)

    def lacking(self, path: Path) -> list[str]:
        """The metrics whose value of a video is neither in `found` nor in the cache."""
        key = self._hash(path)
        self.found.hashes[path.name] = key
        row = self.found.rows.setdefault(path.name, {})
        lacking = []
        for name in self.names:
            entry = self.cache.get(key, name, self._depends_of(name, path))
            if entry is None:
                lacking.append(name)
            else:
                row |= {"frames": entry.frames, name: entry.value}
        return lacking

    def measure(self, progress: Callable[[str], None]) -> None:
        """Measure what is lacking, each video's values written as it ends."""
        needed = {path: self.lacking(path) for path in self.readable()}
        if by_worker := {n for names in needed.values() for n in names if lookup(n).family == WORKER}:
            from benchmarks.metrics.vbench import available

            self._without(available(sorted(by_worker), self.settings[WORKER]))
            needed = {path: [name for name in names if name in self.names] for path, names in needed.items()}
        streamed = {p: [n for n in names if lookup(n).family != WORKER] for p, names in needed.items()}
        streamed = {path: names for path, names in streamed.items() if names}
        scorers = self._scorers({lookup(n).family for names in streamed.values() for n in names})
        pace = Pace()
        for done, (path, names) in enumerate(streamed.items(), 1):
            families = {lookup(name).family for name in names}
            self._measure_one(path, {f: scorer for f, scorer in scorers.items() if f in families})
            spent, left = duration(round(pace.elapsed)), pace.time_left(done, len(streamed))
            progress(f"{done}/{len(streamed)}  {path.name}  {spent} spent, {left} left")
        self._measure_by_worker({p: [n for n in names if lookup(n).family == WORKER] for p, names in needed.items()})
        self._check_protocol()

    def readable(self) -> list[Path]:
        """The videos whose bytes can be read, and whose names can be written."""
        readable = []
        for name, path in self.videos.items():
            try:
                name.encode()  # one that is no UTF-8 could be written to no table
                self._hash(path)
            except UnicodeEncodeError:
                self.leave_out(name, f"{path}: its name is not UTF-8, rename it")
            except OSError as error:
                self.leave_out(name, f"{path}: cannot be read ({error.strerror})")
            else:
                readable.append(path)
        return readable

    def _scorers(self, families: set[str]) -> dict[str, Any]:
        scorers = {}
        for family in sorted(families):
            names = _names_of({family})
            ours = [name for name in self.names if name in names]
            why = ""
            try:
                scorers[family] = scorer_of(names, self.settings[family], device_for(self.options.device))
            except MissingWeights as error:
                self._without(dict.fromkeys(ours, str(error)))
            except ConfigError:
                raise
            except ValueError as error:  # a setting
                raise ConfigError(str(error)) from None
            except (MemoryError, RuntimeError) as error:
                if not (why := shortage(error)):
                    raise
            if why:  # the error, which holds half a network, is gone
                give_back()
                text = f"the network of {', '.join(ours)} does not fit: {why}; {remedy(why)}"
                self._check_strict(text)
                self._without(dict.fromkeys(ours, text))
        return scorers

    def _measure_one(self, path: Path, scorers: Mapping[str, Any]) -> None:
        from pw.io.video import VideoError

        paired = {
            family for family in scorers if any("real" in r.needs for r in METRICS.values() if r.family == family)
        }
        real = self.real.get(path.name)
        if paired and real is None:
            self._refuse(path.name, _names_of(paired), f"no video of this name in real={self.options.real}")
            scorers = {family: scorer for family, scorer in scorers.items() if family not in paired}
        if not scorers:
            return
        try:
            scored = score_video(
                path, scorers, real=real, paired=paired, threads=self.threads, budget=self.options.memory
            )
        except VideoError as error:
            self.leave_out(path.name, str(error))
            return
        self._keep(path, scored)
        for family, why in scored.refused.items():
            self._refuse(path.name, _names_of({family}), why)

    def _keep(self, path: Path, scored: Scored) -> None:
        if self._changed(path):
            return
        self.found.measured += 1
        row = self.found.rows[path.name]
        row["frames"] = scored.frames
        for name, value in scored.values.items():
            if not math.isfinite(value):
                self._refuse(path.name, {name}, f"{name} is {value}")
            else:
                self.cache.put(self._hash(path), name, self._depends_of(name, path), Entry(value, scored.frames))
                if name in self.names:
                    row[name] = value

    def _measure_by_worker(self, needed: Mapping[Path, Sequence[str]]) -> None:
        from pw.io.video import VideoError, decode

        for names in {tuple(names) for names in needed.values() if names}:
            paths = []
            for path in [path for path, wanted in needed.items() if tuple(wanted) == names]:
                if path.name in self.found.left_out:
                    continue
                try:  # the worker says little about what it cannot read
                    self.found.rows[path.name].setdefault("frames", sum(1 for _ in decode(path)))
                except VideoError as error:
                    self.leave_out(path.name, str(error))
                else:
                    paths.append(path)
            if paths:
                from benchmarks.metrics.vbench import score_videos as by_worker

                failed = by_worker(paths, names, self.settings[WORKER], device_for(self.options.device), self._done)
                failed = {n: f"{why}; {remedy(why)}" if "out of memory" in why else why for n, why in failed.items()}
                for why in failed.values():
                    self._check_strict(why)
                self._without(failed)

    def _check_protocol(self) -> None:
        """Say which of VBench's own videos are not there: VBench would average the others in silence."""
        names = [name for name in self.names if lookup(name).family == WORKER and self.found.values(name)]
        if not names or not self.settings[WORKER]["mode"].endswith("vbench_standard"):
            return
        from benchmarks.metrics.vbench import absent, interpreter

        if not interpreter().is_file():  # all values came from the cache
            return
        for name, stems in absent(names, [Path(video).stem for video in self.found.rows]).items():
            if stems:
                why = f"{name}: {len(stems)} videos of VBench's protocol are not there, such as {stems[0]!r}"
                self._check_strict(why)
                self.found.missing[name] = why

    def _done(self, path: Path, values: Mapping[str, float]) -> None:
        if self._changed(path):
            return
        row = self.found.rows[path.name]
        for name, value in values.items():
            # anew: with PW_VBENCH_DOWNLOAD=1 the weights may have come since
            self.found.depends[name] = self._depends(name)
            self.cache.put(self._hash(path), name, self._depends_of(name, path), Entry(value, int(row["frames"])))
            row[name] = value

    def _without(self, missing: Mapping[str, str]) -> None:
        self.found.missing.update(missing)
        self.names = [name for name in self.names if name not in missing]

    def leave_out(self, video: str, why: str) -> None:
        video, why = (text.encode(errors="backslashreplace").decode() for text in (video, why))
        self._check_strict(why)
        self.found.left_out[video] = why

    def _check_strict(self, why: str) -> None:
        if self.options.strict:
            raise BrokenVideo(f"strict=true: {why}")

    def _refuse(self, video: str, refused: Collection[str], why: str) -> None:
        """Say of metrics that are asked for, and have no value from the cache, why they have none."""
        for name in self.names:
            if name in refused and name not in self.found.rows[video]:
                self._check_strict(f"{video}: {name}: {why}")
                self.found.not_measured.setdefault(name, {})[video] = why

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            before = _stamp(path)
            self._hashes[path] = content_hash(path), before
        return self._hashes[path][0]

    def _changed(self, path: Path) -> bool:
        """Whether a video, or its real one, is no longer the file that was hashed; leaves it out if so."""
        for held in (path, self.real.get(path.name)):
            if held in self._hashes and _stamp(held) != self._hashes[held][1]:
                self.leave_out(path.name, f"{held}: changed while it was measured; score it again when it is done")
                return True
        return False

    def _depends_of(self, name: str, path: Path) -> dict[str, Any]:
        """What a metric's value of this video depends on beside its own bytes."""
        depends = self.found.depends.get(name) or self._depends(name)
        if name in VBENCH_SEMANTIC:  # these compare the video with its prompt, which is its name
            depends = {**depends, "prompt": prompt_of(path.name)}
        real = self.real.get(path.name) if "real" in lookup(name).needs else None
        if real is None:
            return depends
        try:
            self.found.real[path.name] = self._hash(real)
        except OSError:  # nothing is kept under this key: the metric will refuse the video
            return depends
        return {**depends, "real": self._hash(real)}

    def _depends(self, name: str) -> dict[str, Any]:
        """What a value depends on beside the video, as plain JSON. Raises MissingWeights."""
        row = lookup(name)
        if row.family == WORKER:
            from benchmarks.metrics.vbench import digests

            weights = digests(name)
        else:
            weights = {needed: digest(needed) for needed in row.weights}
        return {**protocol_of(name, self.settings[row.family]), "weights": weights}


def _names_of(families: Collection[str]) -> list[str]:
    return [name for name, row in METRICS.items() if row.family in families]


def _stamp(path: Path) -> tuple[int, ...]:
    """What differs when a file was written anew; () when it is gone."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns
