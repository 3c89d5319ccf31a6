"""The folder of a system's videos:

    card.yaml           copy of the card
    jobs.jsonl          the requested videos, one per line
    videos/<stem>.mkv   or .mp4
    jobs/<stem>.json    the note: how the video was made and its costs; written last, after the video is checked
    logs/<stem>.log     output of an external program
    registered.json     instead of videos/ and jobs/: existing videos, which stay in their folder (`register`)

A stem is `{prompt}-{index of the seed}`, the file name that VBench expects.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.systems import GenerationError, Setting, System, read_card
from pw.io.arguments import ConfigError
from pw.io.files import check_writable, parse_json, write_atomically
from pw.io.prompts import prompt_entries
from pw.io.video import VideoError, VideoInfo, probe
from pw.io.video_files import SUFFIXES, is_video

STEM_BYTES = 230  # a file name has 255 at most; VBench's longest prompt is 210, and a temporary name adds up to 19
RATE_TOLERANCE = 0.01  # 1/s: 23.976 is not 24


@dataclass(frozen=True)
class VideoJob:
    """One video to make.

    prompt  used in the file name; text: input of the generation (the prompt, or its longer version)
    seed    of the noise: 0, 1, …
    input   the video to enlarge, for super-resolution
    """

    stem: str
    prompt: str
    text: str
    seed: int
    input: Path | None = None


def stem(prompt: str, index: int) -> str:
    """File name without suffix: `{prompt}-{index}`. Invalid characters become "_"; a long name is cut and hashed."""
    name = re.sub(r"[/\x00-\x1f\x7f]", "_", prompt)
    if name.startswith("."):  # a hidden file: VBench would count it and not find it
        name = f"_{name[1:]}"
    room = STEM_BYTES - len(f"-{index}")
    if len(name.encode()) > room:
        mark = hashlib.sha256(prompt.encode()).hexdigest()[:8]
        name = f"{name.encode()[: room - 9].decode(errors='ignore')}-{mark}"
    return f"{name}-{index}"


def read_prompts(path: Path) -> list[tuple[str, str]]:
    """(prompt, text to generate with) of each line. Raises ConfigError naming the file and the line."""
    expected, prompts = '{"text", "long"?, "id"?}', []
    for location, entry in prompt_entries(path, "text", expected):
        if unknown := entry.keys() - {"id", "text", "long"}:
            raise ConfigError(f"{location}: expected {expected}, not {', '.join(sorted(unknown))}")
        texts = entry["text"], entry.get("long", entry["text"])
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise ConfigError(f"{location}: text (and long, if there is one) must not be empty")
        prompts.append((texts[0].strip(), texts[1].strip()))
    return prompts


def make_jobs(prompts: Sequence[tuple[str, str]], seeds: int) -> list[VideoJob]:
    """Every prompt with every seed, seed by seed. Raises ConfigError if two jobs have the same file name."""
    jobs = [VideoJob(stem(prompt, seed), prompt, text, seed) for seed in range(seeds) for prompt, text in prompts]
    check_names(jobs)
    return jobs


def check_names(jobs: Sequence[VideoJob], *, ignores_case: bool = False) -> None:
    """Raises ConfigError if two jobs have the same file name, on a file system that ignores case or not.

    VBench has two prompts that differ only in case.
    """
    names = [job.stem.casefold() if ignores_case else job.stem for job in jobs]
    counts = Counter(names)
    if twice := next((job.prompt for job, name in zip(jobs, names, strict=True) if counts[name] > 1), None):
        raise ConfigError(f"prompts: {twice[:60]!r} occurs twice, or maps to the same file name as another")


def input_jobs(folder: Path, prompts: Sequence[tuple[str, str]] | None, seeds: int) -> list[VideoJob]:
    """A job for each video of a folder, or for each prompt. Raises ConfigError naming the missing videos."""
    paths = {path.stem: path for path in videos(folder)}
    if not paths:
        raise ConfigError(f"inputs={folder}: there is no video ({', '.join(SUFFIXES)}) in it")
    if prompts is None:
        jobs = []
        for name, path in paths.items():
            match = re.fullmatch(r"(.+)-(\d+)", name)
            prompt, seed = (match[1], int(match[2])) if match else (name, 0)
            jobs.append(VideoJob(name, prompt, prompt, seed, path))
        return jobs
    jobs = make_jobs(prompts, seeds)
    if missing := [job.stem for job in jobs if job.stem not in paths]:
        raise ConfigError(f"inputs={folder}: {len(missing)} of {len(jobs)} are missing: {', '.join(missing[:5])} …")
    return [replace(job, input=paths[job.stem]) for job in jobs]


def videos(folder: Path) -> list[Path]:
    """The videos of a system's folder, of a registration (only the correct ones), or of any folder, sorted by name.

    Raises: ConfigError if the folder, or the registered folder, does not exist.
    """
    registered = None
    if (file := folder / "registered.json").is_file():
        record = _read(file, {"directory": str, "present": list}, "register the videos again: `make system videos=DIR`")
        folder, registered = Path(record["directory"]), set(record["present"])
        if not folder.is_dir():
            raise ConfigError(f"{file}: {folder} no longer exists; register the videos in their new folder")
    elif (folder / "videos").is_dir():
        folder = folder / "videos"
    if not folder.is_dir():
        raise ConfigError(f"videos={folder}: no such folder")
    paths = sorted(path for path in folder.iterdir() if is_video(path))
    return [path for path in paths if registered is None or path.stem in registered]


def _read(path: Path, types: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """Read a JSON object with the keys and types `types`. Raises ConfigError naming the file and the remedy."""
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: is damaged ({error}); {remedy}") from error
    invalid = [key for key, cls in types.items() if not (isinstance(data, dict) and isinstance(data.get(key), cls))]
    if invalid:
        raise ConfigError(f"{path}: is damaged, it lacks {', '.join(invalid)}; {remedy}")
    return data


def check(path: Path, setting: Setting) -> VideoInfo:
    """Probe a video. Raises VideoError if it is unreadable, GenerationError if it differs from the setting."""
    info, problems = probe(path), []
    for field in ("width", "height", "frames", "fps"):
        actual, requested = getattr(info, field), getattr(setting, field)
        if requested is not None and abs(actual - requested) > (RATE_TOLERANCE if field == "fps" else 0):
            problems.append(f"{field} is {actual:g}, requested {requested:g}")
    if problems:
        raise GenerationError(f"{path.name}: {', '.join(problems)}")
    return info


def note_path(folder: Path, job: VideoJob) -> Path:
    return folder / "jobs" / f"{job.stem}.json"


def is_done(folder: Path, job: VideoJob, request: dict[str, Any]) -> bool:
    """Whether the note of a job exists and its video is correct.

    request: the inputs that determine the video (`Call.request`).
    Raises: ConfigError if the note has another request: a folder must have one setting, because it is one row.
    """
    try:
        record = parse_json(note_path(folder, job).read_text(encoding="utf-8"))
        check(folder / "videos" / record["video"], Setting(**{key: record[key] for key in Setting.__annotations__}))
    except (OSError, ValueError, KeyError, TypeError, GenerationError, VideoError):
        return False
    for key, value in request.items():
        if record.get(key) != value:
            raise ConfigError(
                f"{note_path(folder, job)}: was made with {key}={record.get(key)}, now it is {key}={value}; "
                "choose another out=, or remove that folder"
            )
    return True


def write_jobs(folder: Path, jobs: Sequence[VideoJob]) -> None:
    """Add jobs to jobs.jsonl and keep those of earlier calls."""
    path = folder / "jobs.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    try:
        rows = {row["stem"]: row for row in map(parse_json, lines)}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is damaged ({error!r}); remove it, it is written again") from error
    for job in jobs:
        rows[job.stem] = {key: value for key, value in vars(job).items() if value is not None}
    write_atomically(path, "".join(f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in rows.values()))


@dataclass(frozen=True)
class Costs:
    """Costs of the videos in a folder; None if not measured for all of them.

    latency           median seconds of diffusion, as in Table 1; also per pixel (of all frames) and per frame
    parameters        of the denoising networks, maximum; peak_memory in bytes, maximum
    devices           with several devices, the seconds are a mixture
    peak_memory_from  method of measurement; torch's allocated memory is less than the memory that nvidia-smi reports
    """

    n: int
    latency: float | None
    latency_per_pixel: float | None
    latency_per_frame: float | None
    parameters: int | None
    peak_memory: int | None
    devices: tuple[str, ...]
    peak_memory_from: tuple[str, ...]


def notes(folder: Path) -> list[dict[str, Any]]:
    """The notes of a folder's videos. Raises ConfigError for a damaged one."""
    keys, fix = dict.fromkeys(("width", "height", "frames"), int), "remove it, and `make system` makes its video again"
    return [_read(path, keys, fix) for path in sorted((folder / "jobs").glob("*.json"))]


def costs(folder: Path) -> Costs:
    """Costs from the notes of a folder; all None without notes. Raises ConfigError for a damaged note."""
    records = notes(folder)

    def all_of(key: str) -> list[Any]:
        values = [note.get(key) for note in records]
        return [] if None in values else values

    seconds = all_of("seconds_diffusion")
    timed = list(zip(seconds, records, strict=True)) if seconds else []
    return Costs(
        n=len(records),
        latency=_median(seconds),
        latency_per_pixel=_median([s / (note["width"] * note["height"] * note["frames"]) for s, note in timed]),
        latency_per_frame=_median([s / note["frames"] for s, note in timed]),
        parameters=max(all_of("parameters"), default=None),
        peak_memory=max(all_of("peak_memory_bytes"), default=None),
        devices=tuple(sorted({_device(note) for note in records})),
        peak_memory_from=tuple(sorted({str(source) for source in all_of("peak_memory_from")})),
    )


def _device(note: Mapping[str, Any]) -> str:
    """Device of a video, with the number of processes if they shared the model."""
    device, processes = str(note.get("device")), note.get("processes", 1)
    return device if processes == 1 else f"{processes} × {device}, one model over all"


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def register(card: Path, system: System, directory: Path, out: Path, jobs: Sequence[VideoJob] | None) -> dict[str, Any]:
    """Check existing videos against the card and write `out`/card.yaml and `out`/registered.json, which is returned.

    The videos stay in their folder. jobs: the expected videos; None: all videos of the folder.
    Returns present: stems of correct videos; wrong: (file, problem); missing, unasked (unexpected): stems.
    Raises: ConfigError if no video is correct, two videos share a stem, a folder belongs to another system, or `out`
        holds generated videos. An earlier registration is then unchanged.
    """
    try:
        paths = videos(directory)
    except OSError as error:
        raise ConfigError(f"videos={directory}: cannot be read ({error.strerror})") from error
    by_stem = {path.stem: path for path in paths}
    if not by_stem:
        raise ConfigError(f"videos={directory}: there is no video ({', '.join(SUFFIXES)}) in it")
    if double := next((path for path in paths if by_stem[path.stem] != path), None):
        raise ConfigError(
            f"videos={directory}: {double.name} and {by_stem[double.stem].name} have the same stem, which "
            "is ambiguous; move one of them away"
        )
    for key, folder in (("videos", directory), ("out", out)):
        if (folder / "card.yaml").is_file() and (other := read_card(folder / "card.yaml").name) != system.name:
            raise ConfigError(
                f"{key}={folder}: its card.yaml is of {other}, not of {system.name}; choose another {key}="
            )
    if (out / "jobs").is_dir():
        raise ConfigError(f"out={out}: has videos that were made there, with their costs; choose another out=")
    check_writable("out", out)
    problems = {}
    for stem, path in by_stem.items():
        try:
            check(path, system.setting)
        except (GenerationError, VideoError) as error:
            problems[stem] = (path.name, str(error))
    stems = list(by_stem) if jobs is None else [job.stem for job in jobs]
    if len(problems) == len(by_stem):
        file, reason = next(iter(problems.values()))
        raise ConfigError(
            f"videos={directory}: none of its {len(by_stem)} videos matches the card of {system.name}, such as "
            f"{file}: {reason.removeprefix(f'{file}: ')}; nothing is registered"
        )
    video_folder = next(iter(by_stem.values())).parent  # not always `directory`, see `videos`
    registration = {
        "directory": str(video_folder.absolute()),
        "present": [stem for stem in stems if stem in by_stem and stem not in problems],
        "wrong": [problems[stem] for stem in sorted(problems)],
        "missing": [stem for stem in stems if stem not in by_stem],
        "unasked": sorted(by_stem.keys() - set(stems)),
    }
    write_atomically(out / "card.yaml", card.read_text(encoding="utf-8"))
    write_atomically(out / "registered.json", f"{json.dumps(registration, indent=1, ensure_ascii=False)}\n")
    return registration
