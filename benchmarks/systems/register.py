"""Videos that somebody else made: checked against the card and the prompts, and left where they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.files import write_atomically
from benchmarks.systems import GenerationError, System
from benchmarks.systems.jobs import Job, check, videos


@dataclass(frozen=True)
class Registered:
    """present: stems that are there and right; wrong: (file, what is wrong); missing and unasked: stems."""

    directory: str
    present: tuple[str, ...]
    wrong: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    unasked: tuple[str, ...]


def register(card: Path, system: System, directory: Path, out: Path, jobs: Sequence[Job] | None) -> Registered:
    """Look at every video of a folder and write `out`/card.yaml and `out`/registered.json; nothing is copied.

    jobs: what ought to be there; None: whatever is there.
    Raises: ValueError when there is no video.
    """
    found = {path.stem: path for path in videos(directory)}
    if not found:
        raise ValueError(f"videos={directory}: there is no .mkv or .mp4 in it")
    wrong = {}
    for stem, path in found.items():
        try:
            check(path, system.setting)
        except GenerationError as error:
            wrong[stem] = (path.name, str(error))
    asked = list(found) if jobs is None else [job.stem for job in jobs]
    result = Registered(
        str(directory.absolute()),
        tuple(stem for stem in asked if stem in found and stem not in wrong),
        tuple(wrong[stem] for stem in sorted(wrong)),
        tuple(stem for stem in asked if stem not in found),
        tuple(sorted(found.keys() - set(asked))),
    )
    write_atomically(out / "card.yaml", card.read_text(encoding="utf-8"))
    write_atomically(out / "registered.json", f"{json.dumps(vars(result), indent=1, ensure_ascii=False)}\n")
    return result
