"""A folder of a system's videos: what was asked, what is done, what it cost.

    card.yaml           the card, as it was
    jobs.jsonl          what was asked: a line each
    videos/<stem>.mkv   or .mp4
    jobs/<stem>.json    written last, when the video is whole and as asked: how it was made, and at what cost
    logs/<stem>.log     what an external program said
    registered.json     instead of videos/ and jobs/: videos that somebody else made, left where they are (`register`)

A stem is `{prompt}-{index of the seed}`, the name under which VBench looks for a video.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.systems import GenerationError, Setting, System, read_card
from pw.io.arguments import ConfigError
from pw.io.files import check_writable, write_atomically
from pw.io.prompts import prompt_entries
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
    """(prompt, text to generate with) of each line of a file. Raises ConfigError naming the file and the line."""
    wants, found = '{"text", "long"?, "id"?}', []
    for where, entry in prompt_entries(path, "text", wants):
        if unknown := entry.keys() - {"id", "text", "long"}:
            raise ConfigError(f"{where}: wants {wants}, not {', '.join(sorted(unknown))}")
        texts = entry["text"], entry.get("long", entry["text"])
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise ConfigError(f"{where}: text (and long, if there is one) must say something")
        found.append((texts[0].strip(), texts[1].strip()))
    return found


def make_jobs(prompts: Sequence[tuple[str, str]], seeds: int) -> list[VideoJob]:
    """Every prompt with every seed, all prompts of a seed first. Raises ConfigError for two that would share a file."""
    found: dict[str, VideoJob] = {}
    for seed in range(seeds):
        for prompt, text in prompts:
            job = VideoJob(stem(prompt, seed), prompt, text, seed)
            if found.setdefault(job.stem.casefold(), job) is not job:  # some file systems do not tell A from a
                raise ConfigError(f"prompts: {prompt[:60]!r} is there twice, or differs from another in no file name")
    return list(found.values())


def input_jobs(folder: Path, prompts: Sequence[tuple[str, str]] | None, seeds: int) -> list[VideoJob]:
    """A job for each video of a folder, or for those of the prompts. Raises ConfigError naming what is missing."""
    there = {path.stem: path for path in videos(folder)}
    if not there:
        raise ConfigError(f"inputs={folder}: there is no video ({', '.join(SUFFIXES)}) in it")
    if prompts is None:
        jobs = []
        for name, path in there.items():
            found = re.fullmatch(r"(.+)-(\d+)", name)
            prompt, seed = (found[1], int(found[2])) if found else (name, 0)
            jobs.append(VideoJob(name, prompt, prompt, seed, path))
        return jobs
    jobs = make_jobs(prompts, seeds)
    if missing := [job.stem for job in jobs if job.stem not in there]:
        raise ConfigError(f"inputs={folder}: {len(missing)} of {len(jobs)} are not there: {', '.join(missing[:5])} …")
    return [replace(job, input=there[job.stem]) for job in jobs]


def videos(folder: Path) -> list[Path]:
    """The videos of a system's folder, of one that was registered (those that were right), or of any folder, by name.

    Raises: ConfigError when it is no folder, or the folder that was registered is not there any more.
    """
    registered = None
    if (file := folder / "registered.json").is_file():
        about = _read(file, {"directory": str, "present": list}, "register the videos again: make system videos=DIR")
        folder, registered = Path(about["directory"]), set(about["present"])
        if not folder.is_dir():
            raise ConfigError(f"{file}: {folder} is not there any more; register the videos where they are now")
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
    """What a video is. Raises VideoError if it is none, GenerationError naming what was asked and what there is."""
    info, wrong = probe(path), []
    for what in ("width", "height", "frames", "fps"):
        found, asked = getattr(info, what), getattr(setting, what)
        if asked is not None and abs(found - asked) > (RATE_TOLERANCE if what == "fps" else 0):
            wrong.append(f"{what} is {found:g}, asked {asked:g}")
    if wrong:
        raise GenerationError(f"{path.name}: {', '.join(wrong)}")
    return info


def note(folder: Path, job: VideoJob) -> Path:
    return folder / "jobs" / f"{job.stem}.json"


def is_done(folder: Path, job: VideoJob, asked: dict[str, Any]) -> bool:
    """Whether a job's note is there and its video is right.

    asked: what decides the video; a note that says otherwise is of another call.
    Raises: ConfigError for a video that was made otherwise: two settings in one folder would be one row.
    """
    try:
        about = json.loads(note(folder, job).read_text(encoding="utf-8"))
        check(folder / "videos" / about["video"], Setting(**{key: about[key] for key in Setting.__annotations__}))
    except (OSError, ValueError, KeyError, TypeError, GenerationError, VideoError):
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
        rows[job.stem] = {key: value for key, value in vars(job).items() if value is not None}
    write_atomically(path, "".join(f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in rows.values()))


@dataclass(frozen=True)
class Costs:
    """What a folder's videos cost; None where it was not measured for all of them.

    latency     s of diffusion, as in Table 1: median, and the median by pixel (of all frames) and by frame
    parameters  of the denoising networks: the largest number; peak_memory in bytes: the largest
    devices     on what; more than one makes the seconds a mixture
    peak_memory_from  how it was measured; torch's allocated memory is less than what nvidia-smi sees
    """

    n: int
    latency: float | None
    latency_per_pixel: float | None
    latency_per_frame: float | None
    parameters: int | None
    peak_memory: int | None
    devices: tuple[str, ...]
    peak_memory_from: tuple[str, ...]


def costs(folder: Path) -> Costs:
    """What a folder's notes tell; of an empty or registered one all None. Raises ConfigError for a damaged note."""
    size, again = dict.fromkeys(("width", "height", "frames"), int), "remove it, and make system makes its video again"
    notes = [_read(path, size, again) for path in sorted((folder / "jobs").glob("*.json"))]

    def all_of(key: str) -> list[Any]:
        values = [about.get(key) for about in notes]
        return [] if None in values else values

    seconds = all_of("seconds_diffusion")
    timed = list(zip(seconds, notes, strict=True)) if seconds else []
    return Costs(
        n=len(notes),
        latency=_median(seconds),
        latency_per_pixel=_median([s / (about["width"] * about["height"] * about["frames"]) for s, about in timed]),
        latency_per_frame=_median([s / about["frames"] for s, about in timed]),
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


def register(card: Path, system: System, directory: Path, out: Path, jobs: Sequence[VideoJob] | None) -> dict[str, Any]:
    """Look at every video of a folder and write `out`/card.yaml and `out`/registered.json, which is returned.

    Videos that somebody else made: checked against the card and the prompts, and left where they are.
    jobs: what ought to be there; None: whatever is there.
    Returns present: stems that are there and right; wrong: (file, what is wrong); missing and unasked: stems.
    Raises: ConfigError when there is no video that is right, when two share a stem, or when one of the two folders is
        of another system, or of videos that were made there. An earlier registration then stays as it was.
    """
    try:
        there = videos(directory)
    except OSError as error:
        raise ConfigError(f"videos={directory}: cannot be read ({error.strerror})") from error
    found = {path.stem: path for path in there}
    if not found:
        raise ConfigError(f"videos={directory}: there is no .mkv or .mp4 in it")
    if twice := [path for path in there if found[path.stem] != path]:
        raise ConfigError(
            f"videos={directory}: {twice[0].name} and {found[twice[0].stem].name} are one name, and which of them is "
            "meant is not said; move one of them away"
        )
    for key, folder in (("videos", directory), ("out", out)):
        if (folder / "card.yaml").is_file() and (other := read_card(folder / "card.yaml").name) != system.name:
            raise ConfigError(
                f"{key}={folder}: its card.yaml is of {other}, not of {system.name}; choose another {key}="
            )
    if (out / "jobs").is_dir():
        raise ConfigError(f"out={out}: has videos that were made there, with their costs; choose another out=")
    check_writable("out", out)
    wrong = {}
    for stem, path in found.items():
        try:
            check(path, system.setting)
        except (GenerationError, VideoError) as error:
            wrong[stem] = (path.name, str(error))
    asked = list(found) if jobs is None else [job.stem for job in jobs]
    if len(wrong) == len(found):
        file, why = next(iter(wrong.values()))
        raise ConfigError(
            f"videos={directory}: none of its {len(found)} videos is as the card of {system.name} says, such as "
            f"{file}: {why.removeprefix(f'{file}: ')}; nothing is registered"
        )
    lie_in = next(iter(found.values())).parent  # of a system's folder, or one that was registered: elsewhere
    result = {
        "directory": str(lie_in.absolute()),
        "present": [stem for stem in asked if stem in found and stem not in wrong],
        "wrong": [wrong[stem] for stem in sorted(wrong)],
        "missing": [stem for stem in asked if stem not in found],
        "unasked": sorted(found.keys() - set(asked)),
    }
    write_atomically(out / "card.yaml", card.read_text(encoding="utf-8"))
    write_atomically(out / "registered.json", f"{json.dumps(result, indent=1, ensure_ascii=False)}\n")
    return result
