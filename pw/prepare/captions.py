"""The captions of UltraVideo: its table short.csv, and the source video of each clip."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from typing import NamedTuple

from pw.io.arguments import ConfigError

CAPTIONS = {"summarized": "Summarized Description", "detailed": "Detailed Description", "brief": "Brief Description"}
YOUTUBE = re.compile(r"(?:https?://)?(?:www\.|m\.)?youtu(?:\.be/|be\.com/(?:watch\?(?:.*&)?v=|[a-z]+/))([\w-]+)")


class CaptionRow(NamedTuple):
    """A row of short.csv; `source`: name of the source video, "" if unknown."""

    caption: str
    source: str


def read_captions(table: Path, caption: str) -> dict[str, CaptionRow]:
    """Clip without suffix -> row, with one of CAPTIONS. Raises ConfigError if the table has other columns."""
    csv.field_size_limit(sys.maxsize)
    text = CAPTIONS[caption]
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            names = list(reader.fieldnames or ())
            if missing := [name for name in ("clip_id", text) if name not in names]:
                raise ConfigError(
                    f"{table}: has no column {missing[0]!r}; it has {', '.join(names) or 'none'}; "
                    "give another caption=, or remove the file to fetch it again"
                )
            rows = [row for row in reader if row["clip_id"]]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{table}: is no table ({error}); remove the file to fetch it again") from None
    return {
        Path(row["clip_id"]).stem: CaptionRow(" ".join((row[text] or "").split()), source_video(row.get("url")))
        for row in rows
    }


def source_video(url: str | None) -> str:
    """Name of the source video of a `url` entry: the YouTube id (without parameters such as `&t=12s`), or the entry
    itself, "" if empty."""
    text = (url or "").strip()
    address = YOUTUBE.match(text)
    return address[1] if address else text
