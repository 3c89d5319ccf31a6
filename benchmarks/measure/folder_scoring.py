"""The videos of a folder, measured one by one: what is cached is not measured again, what is broken is named.

One decode of a video serves all its metrics (`streaming.py`); each video's values are kept as it ends (`cache.py`).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure.cache import Cache, Entry, content_hash
from benchmarks.measure.gpu_choice import device_for
from benchmarks.measure.measurement import BrokenVideo, MeasureOptions, Scores, videos_of
from benchmarks.measure.metric_weights import MissingWeights, digest
from benchmarks.measure.shortage import give_back, remedy, shortage
from benchmarks.measure.streaming import Scored, score_video
from benchmarks.metrics import METRICS, VBENCH_SEMANTIC, Metric, lookup, scoring_code
from benchmarks.stats.resampling import prompt_of
from pw.io.arguments import ConfigError
from pw.io.host import default_threads
from pw.io.progress import Pace, duration

WORKER = "vbench"
"""The family that is measured by a process of its own."""


class FolderScoring:
    """The videos of one call, and what of them is still to be measured."""

    def __init__(
        self,
        videos: Mapping[str, Path],
        options: MeasureOptions,
        found: Scores,
        settings: Mapping[str, Mapping[str, Any]],
        cache: Cache,
    ) -> None:
        self.videos, self.options, self.found, self.settings, self.cache = videos, options, found, settings, cache
        self.names: list[str] = []
        self.real = videos_of(options.real) if options.real else {}
        self.threads = options.threads or default_threads()
        self._hashes: dict[Path, tuple[str, Any]] = {}

    def check(self, names: Sequence[str]) -> None:
        """What each metric depends on; what it lacks goes to `missing`, before anything is decoded."""
        for name in names:
            row = lookup(name)
            if row.family == "reference":
                continue
            if "real" in row.needs and not self.real:
                self.found.missing[name] = f"{name} holds videos against real ones: real=DIR names them"
                continue
            try:
                self.found.depends[name] = _depends(row, self.settings[row.family])
            except MissingWeights as error:
                self.found.missing[name] = str(error)
                continue
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
            spent, left = duration(round(pace.spent)), pace.left(done, len(streamed))
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
            names = [name for name, row in METRICS.items() if row.family == family]
            why = ""
            try:
                module = importlib.import_module(f"benchmarks.metrics.{family}")
                scorers[family] = module.scorer(names, self.settings[family], device_for(self.options.device))
            except MissingWeights as error:
                self._without({name: str(error) for name in self.names if lookup(name).family == family})
            except ConfigError:
                raise
            except ValueError as error:  # a setting
                raise ConfigError(str(error)) from None
            except (MemoryError, RuntimeError) as error:
                if not (why := shortage(error)):
                    raise
            if why:  # the error, which holds half a network, is gone
                give_back()
                self._leave_out_networks([name for name in self.names if lookup(name).family == family], why)
        return scorers

    def _leave_out_networks(self, names: Sequence[str], why: str) -> None:
        """Leave out metrics whose networks do not fit. Raises BrokenVideo with `strict`."""
        text = f"the network of {', '.join(names)} does not fit: {why}; {remedy(why)}"
        if self.options.strict:
            raise BrokenVideo(f"strict=true: {text}")
        self._without(dict.fromkeys(names, text))

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
                if self.options.strict and failed:
                    raise BrokenVideo(f"strict=true: {next(iter(failed.values()))}")
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
                if self.options.strict:
                    raise BrokenVideo(f"strict=true: {why}")
                self.found.missing[name] = why

    def _done(self, path: Path, values: Mapping[str, float]) -> None:
        if self._changed(path):
            return
        row = self.found.rows[path.name]
        for name, value in values.items():
            # anew: with PW_VBENCH_DOWNLOAD=1 the weights may have come since
            self.found.depends[name] = _depends(lookup(name), self.settings[WORKER])
            self.cache.put(self._hash(path), name, self._depends_of(name, path), Entry(value, int(row["frames"])))
            row[name] = value

    def _without(self, missing: Mapping[str, str]) -> None:
        self.found.missing.update(missing)
        self.names = [name for name in self.names if name not in missing]

    def leave_out(self, video: str, why: str) -> None:
        video, why = (text.encode(errors="backslashreplace").decode() for text in (video, why))
        if self.options.strict:
            raise BrokenVideo(f"strict=true: {why}")
        self.found.left_out[video] = why

    def _refuse(self, video: str, refused: Collection[str], why: str) -> None:
        """Say of metrics that are asked for, and have no value from the cache, why they have none."""
        names = [name for name in self.names if name in refused and name not in self.found.rows[video]]
        if self.options.strict and names:
            raise BrokenVideo(f"strict=true: {video}: {names[0]}: {why}")
        for name in names:
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
        row = lookup(name)
        depends = self.found.depends.get(name) or _depends(row, self.settings[row.family])
        if name in VBENCH_SEMANTIC:  # these compare the video with its prompt, which is its name
            depends = {**depends, "prompt": prompt_of(path.name)}
        real = self.real.get(path.name) if "real" in row.needs else None
        if real is None:
            return depends
        try:
            self.found.real[path.name] = self._hash(real)
        except OSError:  # nothing is kept under this key: the metric will refuse the video
            return depends
        return {**depends, "real": self._hash(real)}


def _names_of(families: Collection[str]) -> set[str]:
    return {name for name, row in METRICS.items() if row.family in families}


def _stamp(path: Path) -> tuple[int, ...]:
    """What differs when a file was written anew; () when it is gone."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _depends(row: Metric, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a value depends on beside the video, as plain JSON. Raises MissingWeights."""
    found: dict[str, Any] = {
        "protocol": row.protocol,
        "code": scoring_code(row.name),
        "settings": {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()},
        "weights": _digests(row),
    }
    return found


def _digests(row: Metric) -> dict[str, str]:
    if row.family == WORKER:
        from benchmarks.metrics.vbench import digests

        return digests(row.name)
    return {name: digest(name) for name in row.weights}
