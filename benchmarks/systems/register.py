"""Videos that somebody else made: checked against the card and the prompts, and left where they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.systems import GenerationError, System, read_card
from benchmarks.systems.jobs import VideoJob, check, videos
from pw.io.arguments import ConfigError
from pw.io.files import check_writable, write_atomically


@dataclass(frozen=True)
class Registered:
    """present: stems that are there and right; wrong: (file, what is wrong); missing and unasked: stems."""

    directory: str
    present: tuple[str, ...]
    wrong: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    unasked: tuple[str, ...]


def register(card: Path, system: System, directory: Path, out: Path, jobs: Sequence[VideoJob] | None) -> Registered:
    """Look at every video of a folder and write `out`/card.yaml and `out`/registered.json; nothing is copied.

    jobs: what ought to be there; None: whatever is there.
    Raises: ConfigError when there is no video that is right, when two share a stem, or when one of the two folders is
        of another system, or of videos that were made there. An earlier registration then stays as it was.
    """
    found = _by_stem(directory)
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
        except GenerationError as error:
            wrong[stem] = (path.name, str(error))
    asked = list(found) if jobs is None else [job.stem for job in jobs]
    if len(wrong) == len(found):
        file, why = next(iter(wrong.values()))
        raise ConfigError(
            f"videos={directory}: none of its {len(found)} videos is as the card of {system.name} says, such as "
            f"{file}: {why.removeprefix(f'{file}: ')}; nothing is registered"
        )
    lie_in = next(iter(found.values())).parent  # of a system's folder, or one that was registered: elsewhere
    result = Registered(
        str(lie_in.absolute()),
        tuple(stem for stem in asked if stem in found and stem not in wrong),
        tuple(wrong[stem] for stem in sorted(wrong)),
        tuple(stem for stem in asked if stem not in found),
        tuple(sorted(found.keys() - set(asked))),
    )
    write_atomically(out / "card.yaml", card.read_text(encoding="utf-8"))
    write_atomically(out / "registered.json", f"{json.dumps(vars(result), indent=1, ensure_ascii=False)}\n")
    return result


def _by_stem(directory: Path) -> dict[str, Path]:
    """The videos of a folder by stem. Raises ConfigError when there is none, or two that would share a row."""
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
    return found
