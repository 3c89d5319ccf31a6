"""Captions of a folder of videos: a file beside each video, or one file for all.

videos/heron.mp4, heron.txt        a caption; or heron.json, with one or several
videos/metadata.csv                a table: a row for each caption, with the file's name, as Hugging Face has it
videos/captions.json               {"heron.mp4": "a heron", "lake.mp4": ["a lake", "a misty lake"]}, or rows
… .jsonl, .parquet                 rows, too
"""

from __future__ import annotations

import csv
import difflib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pw.io.arguments import ConfigError
from pw.io.console import one_line
from pw.io.files import digest, parse_json
from pw.prepare.source_videos import VideoRecord

NONE = "none"
NAMES = ("captions", "metadata")  # of files that are found without `captions=`
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
FILE_KEYS = ("file_name", "filename", "file", "video", "video_path", "path", "clip_id", "name")
CAPTION_KEYS = ("caption", "captions", "text", "prompt", "description")


@dataclass(frozen=True)
class CaptionFile:
    """A file of captions, and those of each video by its name relative to the folder, in the order of the file."""

    path: Path
    captions: Mapping[str, Sequence[str]]

    @property
    def digest(self) -> str:
        """Eight hex digits of the captions, the same for every kind of file."""
        return digest({name: list(captions) for name, captions in sorted(self.captions.items())}, 8)


def find_caption_file(folder: Path, option: str | None, videos: Iterable[str]) -> CaptionFile | None:
    """The captions of `captions=`, or of the one file in the folder that is named `captions.*` or `metadata.*`.

    option  a path, `none`, or None
    videos  names relative to the folder; a caption may leave out the suffix
    Raises ConfigError for several such files, one that cannot be read, and captions of videos that are not there.
    """
    if option == NONE:
        return None
    names = list(videos)
    if option is None:
        sidecars = {str(Path(name).with_suffix("")) for name in names}
        files = [folder / f"{name}{suffix}" for name in NAMES if name not in sidecars for suffix in SUFFIXES]
        found = [file for file in files if file.is_file()]
        if len(found) > 1:
            listed = " or ".join(file.name for file in found)
            raise ConfigError(f"path={folder}: has several files of captions; set captions= to {listed}, or to none")
        if not found:
            return None
        path = found[0]
    else:
        path = Path(option).expanduser()
        path = path if path.is_file() or not (folder / option).is_file() else folder / option
    return CaptionFile(path, _of_videos(path, _captions_by_file(path), folder, names))


def sidecar_captions(video: Path) -> tuple[list[str], str]:
    """(captions, warning) from `<stem>.txt`, which is one, else "caption", "text" or "prompt" in `<stem>.json`."""
    for file in (video.with_suffix(".txt"), video.with_suffix(".json")):
        if not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8-sig")
            captions = captions_in(text if file.suffix == ".txt" else parse_json(text))
        except (OSError, ValueError) as error:
            return [], f"its caption {file.name} is unreadable: {error}"
        return captions, "" if captions else f"no caption in {file.name}"
    return [], ""


def captions_record(records: Iterable[VideoRecord]) -> dict[str, Any]:
    """How many videos have captions, the largest number that one has, and the videos without."""
    counts = {record.file: len(record.captions) for record in records}
    without = sorted(file for file, count in counts.items() if not count)
    return {"videos": len(counts) - len(without), "most": max(counts.values(), default=0), "without": without}


def captions_summary(record: Mapping[str, Any], place: Path) -> str:
    """`captions_record` as a line; `place` has all of it."""
    videos, without = record["videos"], record["without"]
    text = f"captions: {videos} of {videos + len(without)} videos have one"
    if videos and without:
        more = f" and {len(without) - 5} more, see {place}" if len(without) > 5 else ""
        text += one_line(f"; without: {', '.join(without[:5])}{more}")
    return text


def captions_in(value: Any) -> list[str]:
    """All captions in a text, a list, or a mapping with one of CAPTION_KEYS: each once, without line breaks."""
    if isinstance(value, dict):
        value = next((value[key] for key in CAPTION_KEYS if value.get(key)), "")
    if isinstance(value, list):
        return list(dict.fromkeys(caption for item in value for caption in captions_in(item)))
    return [caption] if isinstance(value, str) and (caption := " ".join(value.split())) else []


def _captions_by_file(path: Path) -> dict[str, list[str]]:
    """Name, as the file has it -> its captions. Raises ConfigError."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"captions={path}: expected a {', '.join(SUFFIXES)}, or none")
    try:
        rows = list(_rows(path))
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"captions={path}: cannot be read ({one_line(str(error))})") from None
    columns = list(dict.fromkeys(column for row in rows for column in row))
    keys = [next((key for key in known if key in columns), "") for known in (FILE_KEYS, CAPTION_KEYS)]
    for key, known in zip(keys, (FILE_KEYS, CAPTION_KEYS), strict=True):
        if not key:
            raise ConfigError(
                f"captions={path}: has no column named {', '.join(known)}; it has {', '.join(columns) or 'none'}: "
                "rename one, or set captions=none"
            )
    file_key, caption_key = keys
    captions: dict[str, list[str]] = {}
    for row in rows:
        if row.get(file_key):
            captions.setdefault(str(row[file_key]), []).extend(captions_in(row.get(caption_key)))
    return captions


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table, {column: value}. Raises OSError or ValueError."""
    match path.suffix.lower():
        case ".csv":
            csv.field_size_limit(sys.maxsize)
            with open(path, encoding="utf-8-sig", newline="") as file:
                yield from ({k: v for k, v in row.items() if k is not None} for row in csv.DictReader(file))
        case ".parquet":
            yield from _parquet_rows(path)
        case ".jsonl":
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            yield from (_row(parse_json(line), f"line {at}") for at, line in enumerate(lines, 1) if line.strip())
        case _:
            content = parse_json(path.read_text(encoding="utf-8-sig"))
            if isinstance(content, dict):
                yield from ({FILE_KEYS[0]: name, CAPTION_KEYS[0]: value} for name, value in content.items())
            elif isinstance(content, list):
                yield from (_row(row, f"entry {at}") for at, row in enumerate(content, 1))
            else:
                raise ValueError("neither a mapping nor a list")


def _row(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is {json.dumps(value)[:40]}, not a mapping with file and caption")
    return value


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError("pyarrow is not installed; convert it to .csv") from None
    table = parquet.ParquetFile(path)
    known = [name for name in table.schema_arrow.names if name in (*FILE_KEYS, *CAPTION_KEYS)]
    if not known:  # name the columns that there are
        yield dict.fromkeys(table.schema_arrow.names)
    for batch in table.iter_batches(columns=known):
        yield from batch.to_pylist()


def _of_videos(path: Path, found: Mapping[str, list[str]], folder: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Name of a video -> its captions. Raises ConfigError for names of no file."""
    known = {name: name for name in names}
    stems = [str(PurePosixPath(name).with_suffix("")) for name in names]
    counts = Counter(stems)
    known = {stem: name for stem, name in zip(stems, names, strict=True) if counts[stem] == 1} | known
    captions: dict[str, list[str]] = {}
    absent = []
    for file, texts in found.items():
        name = PurePosixPath(file.replace("\\", "/"))
        relative = str(name.relative_to(folder.resolve().as_posix()) if name.is_relative_to(folder.resolve()) else name)
        if relative in known:
            captions.setdefault(known[relative], []).extend(texts)
        elif not (folder / relative).exists():  # else it is there, but not read, which is reported elsewhere
            absent.append(relative)
    if absent:
        nearest = difflib.get_close_matches(absent[0], names, 1, 0)[0]
        others = f", then {', '.join(absent[1:3])}" if absent[1:] else ""
        raise ConfigError(
            f"captions={path}: {len(absent)} of its {len(found)} videos are not in path={folder}: first {absent[0]} "
            f"(the nearest is {nearest}){others}; put them there or remove their captions, or set captions=none"
        )
    return {name: list(dict.fromkeys(texts)) for name, texts in captions.items() if texts}
