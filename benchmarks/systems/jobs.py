"""A folder of a system's videos: what was asked, what is done, what it cost.

    card.yaml           the card, as it was
    jobs.jsonl          what was asked: a line each
    videos/<stem>.mkv   or .mp4
    jobs/<stem>.json    written last, when the video is whole and as asked: how it was made, and at what cost
    logs/<stem>.log     what an external program said
    registered.json     instead of videos/ and jobs/ where the videos lie elsewhere, see `register`

A stem is `{prompt}-{index of the seed}`, the name under which VBench looks for a video.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.systems import GenerationError, Setting
from pw.io.arguments import ConfigError
from pw.io.files import write_atomically
from pw.io.video import VideoError, VideoInfo, probe

SUFFIXES = (".mkv", ".mp4")
STEM_BYTES = 230  # a file name has 255 at most; VBench's longest prompt is 210, and a temporary name adds up to 19
RATE_TOLERANCE = 0.01  # 1/s: 23.976 is not 24


@dataclass(frozen=True)
class VideoJob:
    """One video to make.

    prompt  what it is filed under; text: what it is generated with (the prompt, or its longer version)
    seed    of the noise: the index of the repetition, 0, 1, …
    input   the video to be enlarged, for super-resolution
    """

    stem: str
    prompt: str
    text: str
    seed: int
    input: Path | None = None


def stem(prompt: str, index: int) -> str:
    """File name without ending: `{prompt}-{index}`; what no file name can hold is "_", a long one is cut and hashed."""
    name = re.sub(r"[/\x00-\x1f\x7f]", "_", prompt)
    if name.startswith("."):  # a hidden file: VBench would count it and not find it
        name = f"_{name[1:]}"
    room = STEM_BYTES - len(f"-{index}")
    if len(name.encode()) > room:
        mark = hashlib.sha256(prompt.encode()).hexdigest()[:8]
        name = f"{name.encode()[: room - 9].decode(errors='ignore')}-{mark}"
    return f"{name}-{index}"


def read_prompts(path: Path) -> list[tuple[str, str]]:
    """(prompt, text to generate with) of a .txt, a line each, or of a .jsonl of {"text", "long"?, "id"?}.

    Raises: ConfigError naming the file and the line.
    """
    if not path.is_file() or path.suffix not in (".txt", ".jsonl"):
        raise ConfigError(f'prompts={path}: wants a .txt of one prompt a line, or a .jsonl of {{"text": …, "long": …}}')
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompts={path}: is not UTF-8 ({error})") from error
    lines = [(number, line.strip()) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if not lines:
        raise ConfigError(f"prompts={path}: there is no prompt in it")
    if path.suffix == ".txt":
        return [(line, line) for _, line in lines]
    return [_json_prompt(line, f"prompts={path}: line {number}") for number, line in lines]


def _json_prompt(line: str, where: str) -> tuple[str, str]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON ({error})") from error
    if not isinstance(entry, dict) or (unknown := entry.keys() - {"id", "text", "long"}):
        said = ", ".join(sorted(unknown)) if isinstance(entry, dict) else line[:60]
        raise ConfigError(f'{where}: wants {{"text", "long"?, "id"?}}, not {said}')
    text, long = entry.get("text"), entry.get("long", entry.get("text"))
    if not (isinstance(text, str) and text.strip() and isinstance(long, str) and long.strip()):
        raise ConfigError(f"{where}: text (and long, if there is one) must say something")
    return text.strip(), long.strip()


def make_jobs(prompts: Iterable[tuple[str, str]], seeds: int) -> list[VideoJob]:
    """Every prompt with every seed, all prompts of a seed first. Raises ConfigError for two that would share a file."""
    found = [VideoJob(stem(prompt, seed), prompt, text, seed) for seed in range(seeds) for prompt, text in prompts]
    seen: set[str] = set()
    for job in found:
        if job.stem.casefold() in seen:  # casefold: some file systems do not tell A from a
            raise ConfigError(f"prompts: {job.prompt[:60]!r} is there twice, or differs from another in no file name")
        seen.add(job.stem.casefold())
    return found


def input_jobs(folder: Path, prompts: Sequence[tuple[str, str]] | None, seeds: int) -> list[VideoJob]:
    """A job for each video of a folder, or for those of the prompts, paired by stem.

    Raises: ConfigError naming what is missing.
    """
    there = {path.stem: path for path in videos(folder)}
    if not there:
        raise ConfigError(f"inputs={folder}: there is no video ({', '.join(SUFFIXES)}) in it")
    if prompts is None:
        return [_from_stem(name, path) for name, path in there.items()]
    jobs = make_jobs(prompts, seeds)
    if missing := [job.stem for job in jobs if job.stem not in there]:
        raise ConfigError(f"inputs={folder}: {len(missing)} of {len(jobs)} are not there: {', '.join(missing[:5])} …")
    return [VideoJob(job.stem, job.prompt, job.text, job.seed, there[job.stem]) for job in jobs]


def _from_stem(name: str, path: Path) -> VideoJob:
    found = re.fullmatch(r"(.+)-(\d+)", name)
    prompt, seed = (found[1], int(found[2])) if found else (name, 0)
    return VideoJob(name, prompt, prompt, seed, path)


def videos(folder: Path) -> list[Path]:
    """The videos of a system's folder, of one that was registered (those that were right), or of any folder, by name.

    Raises: ConfigError when it is no folder, or the folder that was registered is not there any more.
    """
    registered: set[str] | None = None
    note = folder / "registered.json"
    if note.is_file():
        about = _read(note, {"directory": str, "present": list}, "register the videos again: make system videos=DIR")
        folder, registered = Path(about["directory"]), set(about["present"])
        if not folder.is_dir():
            raise ConfigError(f"{note}: {folder} is not there any more; register the videos where they are now")
    elif (folder / "videos").is_dir():
        folder = folder / "videos"
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    there = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    return [path for path in there if registered is None or path.stem in registered]


def _read(path: Path, wants: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """A JSON object with what it must hold, key -> type. Raises ConfigError naming the file and what would do."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: is damaged ({error}); {remedy}") from error
    odd = [key for key, kind in wants.items() if not (isinstance(about, dict) and isinstance(about.get(key), kind))]
    if odd:
        raise ConfigError(f"{path}: is damaged, it does not say {', '.join(odd)}; {remedy}")
    return about


def check(path: Path, setting: Setting) -> VideoInfo:
    """What a video is. Raises GenerationError naming what was asked and what there is when they differ."""
    try:
        info = probe(path)
    except VideoError as error:
        raise GenerationError(str(error)) from error
    wrong = [
        f"{what} is {found:g}, asked {asked:g}"
        for what, found, asked, tolerance in (
            ("width", info.width, setting.width, 0),
            ("height", info.height, setting.height, 0),
            ("frames", info.frames, setting.frames, 0),
            ("fps", info.fps, setting.fps, RATE_TOLERANCE),
        )
        if asked is not None and abs(found - asked) > tolerance
    ]
    if wrong:
        raise GenerationError(f"{path.name}: {', '.join(wrong)}")
    return info


def note(folder: Path, job: VideoJob) -> Path:
    """The file that says a job is done."""
    return folder / "jobs" / f"{job.stem}.json"


def is_done(folder: Path, job: VideoJob, asked: dict[str, Any]) -> bool:
    """Whether a job's note is there and its video is right.

    asked: what decides the video; a note that says otherwise is of another call.
    Raises: ConfigError for a video that was made otherwise: two settings in one folder would be one row.
    """
    try:
        about = json.loads(note(folder, job).read_text(encoding="utf-8"))
        check(folder / "videos" / about["video"], Setting(**{key: about[key] for key in Setting.__annotations__}))
    except (OSError, ValueError, KeyError, TypeError, GenerationError):
        return False
    for key, value in asked.items():
        if about.get(key) != value:
            raise ConfigError(
                f"{note(folder, job)}: was made with {key}={about.get(key)}, now it is {key}={value}; "
                "choose another out=, or remove that folder"
            )
    return True


def write_asked(folder: Path, jobs: Sequence[VideoJob]) -> None:
    """Add jobs to jobs.jsonl; those of earlier calls stay."""
    path = folder / "jobs.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    try:
        rows = {row["stem"]: row for row in map(json.loads, lines)}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is damaged ({error!r}); remove it, it is written anew") from error
    for job in jobs:
        rows[job.stem] = {"stem": job.stem, "prompt": job.prompt, "text": job.text, "seed": job.seed} | (
            {} if job.input is None else {"input": str(job.input)}
        )
    write_atomically(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows.values()))


@dataclass(frozen=True)
class Costs:
    """What a folder's videos cost; None where it was not measured for all of them.

    latency    s of diffusion, as in Table 1: median, mean, and the median by pixel (of all frames) and by frame
    total      s in all, text and decoding included: median
    parameters of the denoising networks; peak_memory in bytes: the largest
    devices    on what; more than one makes the seconds a mixture
    peak_memory_from  how it was measured; torch's allocated memory is less than what nvidia-smi sees
    """

    n: int
    latency: float | None
    latency_mean: float | None
    latency_per_pixel: float | None
    latency_per_frame: float | None
    total: float | None
    parameters: int | None
    peak_memory: int | None
    devices: tuple[str, ...]
    peak_memory_from: tuple[str, ...]


def costs(folder: Path) -> Costs:
    """The costs that a folder's notes tell; of an empty or registered folder all None.

    Raises: ConfigError for a note that is damaged.
    """
    size, again = dict.fromkeys(("width", "height", "frames"), int), "remove it, and make system makes its video again"
    notes = [_read(path, size, again) for path in sorted((folder / "jobs").glob("*.json"))]

    def all_of(key: str) -> list[Any]:
        values = [about.get(key) for about in notes]
        return [] if None in values else values

    seconds, total = all_of("seconds_diffusion"), all_of("seconds_total")
    volume = [about["width"] * about["height"] * about["frames"] for about in notes]
    return Costs(
        n=len(notes),
        latency=_median(seconds),
        latency_mean=statistics.mean(seconds) if seconds else None,
        latency_per_pixel=_median([s / v for s, v in zip(seconds, volume, strict=False)]),
        latency_per_frame=_median([s / about["frames"] for s, about in zip(seconds, notes, strict=False)]),
        total=_median(total),
        parameters=max(all_of("parameters"), default=None),
        peak_memory=max(all_of("peak_memory_bytes"), default=None),
        devices=tuple(sorted({_device(about) for about in notes})),
        peak_memory_from=tuple(sorted({str(how) for how in all_of("peak_memory_from")})),
    )


def _device(about: Mapping[str, Any]) -> str:
    """What a video was made on; a model that several processes shared was not on one GPU."""
    device, processes = str(about.get("device")), about.get("processes", 1)
    return device if processes == 1 else f"{processes} × {device}, one model over all"


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
