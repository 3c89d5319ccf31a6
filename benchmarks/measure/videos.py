"""Measure the videos of a folder: what is cached is not measured again, what is broken or missing is named.

One decode of a video serves all its metrics (`streaming.py`); each video's values are kept as it ends (`cache.py`).
"""

from __future__ import annotations

import csv
import functools
import importlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.measure.cache import Cache, Entry, content_hash, default_folder
from benchmarks.measure.clips import SUFFIXES, score_folder
from benchmarks.measure.metric_weights import MissingWeights, digest
from benchmarks.measure.shortage import give_back, remedy, shortage
from benchmarks.measure.streaming import BUDGET, Scored, score_video
from benchmarks.metrics import GROUPS, METRICS, VBENCH_SEMANTIC, Metric, chosen, lookup, scoring_code
from benchmarks.stats.bootstrap import prompt_of
from benchmarks.systems import jobs
from pw.io.host import default_threads, free_memory

# What metrics of clips take at most, bytes and bytes a pixel: a clip and its partners in 8 bits, some frames as floats.
# Measured: 2.7 GB for 13 frames of 2560 x 1440, 3.8 GB for 33.
OF_CLIPS, OF_A_PIXEL = 2.5e9, 18
SMALL_CLIP = 2**25  # pixels that are not asked about
PARENT = "PW_SCORE_PARENT"  # whose end ends a process that shares its work
WORKER = "vbench"  # the family that is measured by a process of its own


@dataclass(frozen=True)
class Options:
    """What may be chosen beside the metrics.

    real, structure, solution: folders with videos of the same names, for the metrics that need them.
    strict: stop at the first video that is broken, or that a metric cannot measure.
    device: "auto", "cpu" or "cuda:0", for networks. processes: as many share the videos, each with a GPU of its own;
        0 means one per GPU. threads: of all processes together, 0 means `default_threads`. memory: bytes of frames in
        flight.
    """

    real: Path | None = None
    structure: Path | None = None
    solution: Path | None = None
    strict: bool = False
    device: str = "auto"
    processes: int = 0
    threads: int = 0
    memory: int = BUDGET
    cache: Path | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass
class Scores:
    """Values of a folder and how they came about.

    rows: video -> metric -> value (and "frames"); left_out: broken video -> why; missing: metric -> what it lacks and
    which command supplies it; not_measured: metric -> video -> why; whole: metrics of the folder as a whole -> value;
    hashes, real: video -> SHA-256 of its bytes, and of the real video's that it was held against.
    """

    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    not_measured: dict[str, dict[str, str]] = field(default_factory=dict)
    depends: dict[str, dict[str, Any]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    real: dict[str, str] = field(default_factory=dict)
    measured: int = 0
    seconds: float = 0.0

    def values(self, metric: str) -> dict[str, float]:
        """video -> value, of the videos that have one."""
        return {video: row[metric] for video, row in self.rows.items() if metric in row}


class BrokenVideo(ValueError):
    """strict=true met a video that cannot be scored."""


class NoVideo(ValueError):
    """A folder without any video."""


def videos_of(folder: Path) -> dict[str, Path]:
    """The videos of a folder by file name, sorted; those of a system's folder (one with a card) lie where it says.

    Raises: ValueError if there is no folder; NoVideo if there is no video in it.
    """
    if not folder.is_dir():
        raise ValueError(f"videos={folder}: no such folder")
    if (folder / "card.yaml").is_file():
        found = jobs.videos(folder)
    else:
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        others = sum(1 for _ in folder.iterdir())
        raise NoVideo(f"videos={folder}: no video ({', '.join(SUFFIXES)}) among its {others} entries")
    return {path.name: path for path in found}


def score_videos(
    folder: Path, metrics: Sequence[str], options: Options | None = None, progress: Callable[[str], None] | None = None
) -> Scores:
    """Score the videos of a folder; what the cache has is not measured again.

    metrics: names of the registry, or groups of them.
    Raises: ValueError for what cannot work at all (metric, setting, folder); BrokenVideo with `strict`.
    """
    options = options or Options()
    names = chosen(metrics)
    settings = _settings_of(names, options.settings)
    began = time.monotonic()
    found = Scores()
    todo = _Folder(videos_of(folder), options, found, settings, Cache(options.cache or default_folder()))
    todo.check(names)
    _share(names, options, todo)
    todo.measure(progress or (lambda _: None))
    _score_clips(names, todo)
    for video in found.left_out:
        found.rows.pop(video, None)
    found.seconds = time.monotonic() - began
    return found


class _Folder:
    """The videos of one call, and what of them is still to be measured."""

    def __init__(
        self,
        videos: Mapping[str, Path],
        options: Options,
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
        clock = _Clock(len(streamed), progress)
        for path, names in streamed.items():
            families = {lookup(name).family for name in names}
            self._measure_one(path, {f: made for f, made in scorers.items() if f in families})
            clock.tick(path.name)
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
        made = {}
        for family in sorted(families):
            names = [name for name, row in METRICS.items() if row.family == family]
            why = ""
            try:
                module = importlib.import_module(f"benchmarks.metrics.{family}")
                made[family] = module.scorer(names, self.settings[family], _device(self.options.device))
            except MissingWeights as error:
                self._without({name: str(error) for name in self.names if lookup(name).family == family})
            except (MemoryError, RuntimeError) as error:
                if not (why := shortage(error)):
                    raise
            if why:  # the error, which holds half a network, is gone
                give_back()
                self._without_memory([name for name in self.names if lookup(name).family == family], why)
        return made

    def _without_memory(self, names: Sequence[str], why: str) -> None:
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
            scorers = {family: made for family, made in scorers.items() if family not in paired}
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

                failed = by_worker(paths, names, self.settings[WORKER], _device(self.options.device), self._done)
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


class _Clock:
    """Says how far one is, and how long the rest takes at the pace so far."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.total, self.say, self.done, self.began = total, say, 0, time.monotonic()

    def tick(self, what: str) -> None:
        self.done += 1
        spent = time.monotonic() - self.began
        left = spent / self.done * (self.total - self.done)
        self.say(f"{self.done}/{self.total}  {what}  {_duration(spent)} spent, {_duration(left)} left")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


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


def _settings_of(names: Sequence[str], given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """family -> its settings. Raises ValueError for one that no metric asked for has."""
    settings = {lookup(name).family: dict(lookup(name).settings) for name in names}
    for family, changed in given.items():
        if family not in settings or family == "reference":
            known = ", ".join(sorted(set(settings) - {"reference"})) or "none"
            raise ValueError(
                f"{family}.{next(iter(changed))}: nothing of {family!r} is measured here; families: {known}"
            )
        for key, value in changed.items():
            if key not in settings[family]:
                raise ValueError(
                    f"{family}.{key}: no such setting; {family} has {', '.join(settings[family]) or 'none'}"
                )
            settings[family][key] = like(f"{family}.{key}", value, settings[family][key])
    return settings


def like(key: str, value: Any, default: Any) -> Any:
    """A setting's value in its default's type."""
    if not isinstance(value, str):
        return value
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[value.lower()]
        if isinstance(default, Path):
            return Path(value).expanduser()
        if isinstance(default, tuple):
            return tuple(int(part) for part in value.strip("[]()").split(",") if part.strip())
        return type(default)(value)
    except (KeyError, ValueError):
        wants = "true or false" if isinstance(default, bool) else f"something like {default!r}"
        raise ValueError(f"{key}={value}: wants {wants}") from None


def _device(wanted: str) -> str:
    """ "auto" is the first GPU, else the CPU. torch, half a GB, is imported only where there may be a GPU."""
    if wanted == "cpu" or (wanted == "auto" and not _gpus()):
        return "cpu"
    if not _gpus():
        raise ValueError(f"device={wanted}: torch sees no GPU here; device=cpu works")
    known = [f"cuda:{i}" for i in range(_gpus())]
    if wanted not in ("auto", *known):
        raise ValueError(f"device={wanted}: one of auto, cpu, {', '.join(known)}")
    return known[0] if wanted == "auto" else wanted


def _share(names: Sequence[str], options: Options, todo: _Folder) -> None:
    """Let several processes fill the cache first, each with every n-th video, where there are several GPUs."""
    networks = options.device == "auto" and any(lookup(n).weights or lookup(n).extra for n in todo.names)
    count = options.processes or (_gpus() if networks else 1)
    if count < 2:
        return
    videos = [p for p in todo.readable() if todo.lacking(p)]
    count = min(count, len(videos))
    if count < 2:
        return
    threads = max(1, todo.threads // count)
    streamed = [name for name in names if lookup(name).family != "reference"]  # those take the folder as a whole
    workers = []
    for i in range(count):
        shard = tempfile.TemporaryDirectory(prefix="pw-score-")
        for path in videos[i::count]:
            os.symlink(path.resolve(), Path(shard.name) / path.name)
        one = replace(options, processes=1, threads=threads, device="cpu" if options.device == "cpu" else "auto")
        words = [f"{key}={value}" for key, value in _words(one)]
        command = [
            sys.executable,
            *("-m", "pw", "score"),
            shard.name,
            "--metrics",
            ",".join(streamed),
            *words,
        ]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), PARENT: str(os.getpid())}
        if _gpus() > 1:
            env["CUDA_VISIBLE_DEVICES"] = _visible(i % _gpus())
        out = Path(shard.name) / ".scores.csv"
        workers.append((shard, subprocess.Popen([*command, "--out", str(out)], env=env, stdout=subprocess.DEVNULL)))
    try:
        for _, process in workers:
            process.wait()
    finally:  # what a worker left undone is measured here, and what is wrong is said here
        for shard, process in workers:
            process.kill()
            process.wait()
            shard.cleanup()


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


def _words(options: Options) -> list[tuple[str, Any]]:
    """The options as they are typed."""
    plain = [(key, value) for key, value in asdict(options).items() if key != "settings" and value is not None]
    plain = [(key, str(value).lower() if isinstance(value, bool) else value) for key, value in plain]
    plain += [
        (f"{family}.{key}", ",".join(map(str, value)) if isinstance(value, tuple) else value)
        for family, settings in options.settings.items()
        for key, value in settings.items()
    ]
    return [(key, value.resolve() if isinstance(value, Path) else value) for key, value in plain]


@functools.cache
def _gpus() -> int:
    """GPUs that torch sees; without NVIDIA's driver it is not asked."""
    if not (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()):
        return 0
    import torch

    return torch.cuda.device_count()


def _visible(i: int) -> str:
    """The i-th of the GPUs that this process may use."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return given.split(",")[i] if given else str(i)


def _score_clips(names: Sequence[str], todo: _Folder) -> None:
    """The reference metrics, on whole clips: made for the tiny scale, refused where clips would fill the memory."""
    options, found = todo.options, todo.found
    of_clips = [name for name in names if lookup(name).family == "reference"]
    folders = {"real": options.real, "structure": options.structure, "solution": options.solution}
    for name in list(of_clips):
        if lacking := [f"{need}=DIR" for need in lookup(name).needs if folders[need] is None]:
            found.missing[name] = f"{name} holds clips against others: {' '.join(lacking)}"
            of_clips.remove(name)
    if not of_clips:
        return
    clips: dict[str, Path] = {}
    for name, path in todo.videos.items():
        if path.stem in clips and name not in found.left_out:
            why = f"clips are paired by their names without ending, and {clips[path.stem].name} has the same"
            found.not_measured |= {m: {**found.not_measured.get(m, {}), name: why} for m in of_clips}
        elif name not in found.left_out:
            clips[path.stem] = path
    if why := _too_large(clips.values(), todo):
        found.missing.update(dict.fromkeys(of_clips, why))
        return
    clips = {stem: path for stem, path in clips.items() if path.name not in found.left_out}
    if not clips:
        return
    try:
        _score_whole_clips(of_clips, clips, folders, found)
    except ValueError:  # of one of them: the others are measured alone
        for name in of_clips:
            try:
                _score_whole_clips([name], clips, folders, found)
            except ValueError as error:
                found.missing[name] = str(error)
    if options.strict:
        for name in of_clips:
            lacking = [f"{video}: {name}: {why}" for video, why in found.not_measured.get(name, {}).items()]
            if whys := [*lacking, *([f"{name}: {found.missing[name]}"] if name in found.missing else [])]:
                raise BrokenVideo(f"strict=true: {whys[0]}")


def _score_whole_clips(
    of_clips: Sequence[str], clips: Mapping[str, Path], folders: Mapping[str, Path | None], found: Scores
) -> None:
    """Metrics of clips into `found`. Raises ValueError where clips cannot be held against each other."""
    with tempfile.TemporaryDirectory(prefix="pw-score-") as work:
        for path in clips.values():
            os.symlink(path.resolve(), Path(work) / path.name)
        out = Path(work) / "out"
        result = score_folder(Path(work), out, **folders, solved=None, metrics=of_clips, contract={})
        with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                row = found.rows.setdefault(clips[line["video"]].name, {})
                row["frames"] = float(line["frames"])
                for name in of_clips:
                    if math.isfinite(value := float(line.get(name) or "nan")):
                        row[name] = value
    for name in of_clips:
        found.depends[name] = {**result["contract"]["metrics"][name], "clips": result["contract"]["clips"]}
        if lookup(name).level == "video":
            needs = ", ".join(f"{need}={folders[need]}" for need in lookup(name).needs)
            why = f"its value is not finite, or {needs} has no clip of its name" if needs else "its value is not finite"
            if lacking := {path.name: why for path in clips.values() if name not in found.rows[path.name]}:
                found.not_measured[name] = {**found.not_measured.get(name, {}), **lacking}
        elif name in result["metrics"]:
            found.whole[name] = result["metrics"][name]
            found.depends[name]["n"] = result["n_videos"][name]  # those that the other folders have too
        else:
            found.missing[name] = f"{name} of these {result['n_videos'].get(name, 0)} clips is not finite"


def _too_large(clips: Iterable[Path], todo: _Folder) -> str:
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
