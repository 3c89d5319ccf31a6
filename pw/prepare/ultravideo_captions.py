"""UltraVideo's short.csv: of every clip its captions, and the video that it was cut from."""

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
    """What short.csv says of a clip; `source` names the video that it was cut from, "" if it is not said."""

    caption: str
    source: str


def read_captions(table: Path, caption: str) -> dict[str, CaptionRow]:
    """{clip without its ending: its row}, with one of CAPTIONS. Raises ConfigError where the table is another."""
    try:
        return _read(table, caption)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{table}: is no table ({error}); remove the file to fetch it again") from None


def _read(table: Path, caption: str) -> dict[str, CaptionRow]:
    csv.field_size_limit(sys.maxsize)
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or ())
        if missing := [name for name in ("clip_id", CAPTIONS[caption]) if name not in names]:
            raise ConfigError(
                f"{table}: has no column {missing[0]!r}; it has {', '.join(names) or 'none'}; "
                "give another caption=, or remove the file to fetch it again"
            )
        text = CAPTIONS[caption]
        return {
            Path(row["clip_id"]).stem: CaptionRow(" ".join((row[text] or "").split()), source_video(row.get("url")))
            for row in reader
            if row["clip_id"]
        }


def source_video(url: str | None) -> str:
    """What names the video behind an entry of the column `url`: YouTube's id, else the entry as it is, "" if empty.

    The id also where the entry is an address, so that a time in it (`&t=12s`) does not make two videos of one.
    """
    text = (url or "").strip()
    address = YOUTUBE.match(text)
    return address[1] if address else text
