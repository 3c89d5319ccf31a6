"""Whether a row's videos are those that its card and its table describe. Begin with `mismatches`.

The card of a row of the paper is the suite's, whatever the folder says; a row of one's own has the card in its folder.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from benchmarks import systems
from benchmarks.measure.measurement import NoVideo, videos_of
from benchmarks.metrics.implementation import spread
from benchmarks.paper import PaperRow, PaperTable
from benchmarks.stats.resampling import prompt_of
from benchmarks.systems import Setting, System, jobs
from pw.io.arguments import ConfigError, did_you_mean
from pw.io.prompts import LISTS
from pw.io.video import VideoError, probe

PROBED = 5
"""Videos of a folder whose headers are read, evenly spread over their names; all are counted."""


def prompts_of(videos: Iterable[str]) -> tuple[int, str]:
    """The number of prompts of videos, and the SHA-256 of their sorted names, one a line."""
    prompts = sorted({prompt_of(video) for video in videos})
    return len(prompts), hashlib.sha256("\n".join(prompts).encode()).hexdigest()


@cache
def prompt_lists() -> dict[str, str]:
    """SHA-256 of `prompts_of` -> name, of the lists of the suite."""
    prompts = {name: jobs.read_prompts(Path(name)) for name in LISTS}
    return {prompts_of(f"{jobs.stem(prompt, 0)}.mkv" for prompt, _ in rows)[1]: name for name, rows in prompts.items()}


def with_own_rows(table: PaperTable, folders: Mapping[str, Path]) -> PaperTable:
    """The table with a row for each folder of a system of one's own, by the card in the folder.

    Raises: ConfigError for a row that is neither the paper's nor has such a card.
    """
    arms = [row.arm for row in table.rows]
    own_rows = []
    for arm, folder in folders.items():
        if arm not in arms:
            known = f"{table.name} has {', '.join(arms)}; a system of your own needs its card.yaml in the folder"
            if not (folder / "card.yaml").is_file():
                raise ConfigError(f"row.{arm}={folder}: no such row; {did_you_mean(arm, arms)}{known}")
            system = systems.read_card(folder / "card.yaml")
            if system.name != arm:
                raise ConfigError(f"row.{arm}={folder}: its card.yaml is of {system.name}; write row.{system.name}=…")
            own_rows.append(_own_row(table, system))
    return replace(table, rows=(*table.rows, *own_rows))


def _own_row(table: PaperTable, system: System) -> PaperRow:
    setting = system.setting
    size, frames, fps = setting.texts()
    settings = {"Resolution (T×H×W)": f"{frames}*{size.replace('x', '*')}", "Resolution (H×W)": size.replace("x", "*")}
    printed = {column.name: (settings | {"Playback FPS": fps}).get(column.name, "–") for column in table.columns}
    return PaperRow(system.title, system.name, {}, "card.yaml", printed)


def mismatches(table: PaperTable, arm: str, folder: Path, scored: Collection[str] = ()) -> list[str]:
    """How the videos of a row differ from its card and from the prompts of its table, a sentence each.

    scored: the videos with scores; empty before they are scored.
    Raises: ConfigError if the folder's registered videos are gone, or a note of a video is damaged.
    """
    try:
        videos = videos_of(folder)
    except NoVideo:
        return ["there is no video in its folder, so nothing could be held against the card"]
    lines = []
    card = _card(table, arm, folder)
    if card is not None:
        lines += [*_formats(videos, card.setting)]
        if arm == card.name:
            lines += [*_sampling(folder, card.setting)]
            lines += [*_other_card(folder, card)]
    if scored and set(scored) != videos.keys():
        lines.append(f"{len(videos.keys() & set(scored))} of its {len(videos)} videos have scores")
    n, identity = prompts_of(scored or videos)
    if table.prompts not in (None, n):
        lines.append(f"{n} prompt{'s' if n > 1 else ''}, the paper has {table.prompts}")
    elif table.prompts_sha256 not in ("", identity):
        lines.append(f"other prompts than the paper's {n}")
    return lines


def _card(table: PaperTable, arm: str, folder: Path) -> System | None:
    if name := next((name for name in (arm, table.card) if name in systems.names()), ""):
        return systems.load(name)
    return systems.read_card(folder / "card.yaml") if (folder / "card.yaml").is_file() else None


def _formats(videos: Mapping[str, Path], setting: Setting) -> Iterator[str]:
    """Sizes, lengths and rates that are not the card's, and how many of the probed videos have them."""
    paths = list(videos.values())
    probed = [paths[i] for i in spread(PROBED, len(paths))]
    others: Counter[str] = Counter()
    for path in probed:
        try:
            jobs.check(path, setting)
        except systems.GenerationError:
            info = probe(path)
            rest = {"steps": None, "guidance": None, "shift": None}
            others[str(Setting(info.width, info.height, info.frames, info.fps, **rest))] += 1
        except VideoError:
            others["unreadable"] += 1
    looked_at = f" of {len(probed)} videos looked at" if len(probed) < len(videos) else f" of {len(probed)} videos"
    for text, n in others.items():
        yield f"{text} ({n}{looked_at}), the card has {replace(setting, steps=None)}"


def _sampling(folder: Path, setting: Setting) -> Iterator[str]:
    """What the notes of videos that were made here say of the steps, guidance and shift."""
    notes = jobs.notes(folder)
    for key in ("steps", "guidance", "shift"):
        native = getattr(setting, key)
        others = sorted({str(note[key]) for note in notes if key in note and note[key] != native})
        if native is not None and others:
            yield f"made with {key}={', '.join(others)}, the card has {native:g}"


def _other_card(folder: Path, card: System) -> Iterator[str]:
    if (path := folder / "card.yaml").is_file() and (name := systems.read_card(path).name) != card.name:
        yield f"the card in its folder is of {name}"
