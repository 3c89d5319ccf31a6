"""What a judge's page shows and asks for: pairs by ids that mean nothing, and the files of the clips behind them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report.judge_page import judge_html
from benchmarks.report.page_media import Clip, make_media
from experiments.engine.judge.vote_files import Answers
from experiments.engine.judge.vote_plan import DEGRADED, REAL, Clips, Place, VotePlan, degraded_clip
from pw.io.arguments import ConfigError

FILES = ("mp4", "strip", "preview")


class Shown(NamedTuple):
    """entries: media id -> size and frames, and the names of its files; files: these names -> the files on disk."""

    entries: dict[str, dict[str, Any]]
    files: dict[str, Path]


def prepare(plan: VotePlan, clips: Clips, folder: Path) -> tuple[Shown, dict[str, str]]:
    """Make the files of all clips of a plan, in `folder`/media, which all judges share.

    Returns them, and media id -> why a clip cannot be shown. Raises OSError if a file cannot be written.
    """
    wanted = {
        media: (side, (pair.seed, pair.name))
        for pair in plan.pairs
        for side, media in zip(pair.sides, pair.media, strict=True)
    }
    sources = {_name(*of): _source(clips, *of, folder / "checks") for of in wanted.values()}
    made = make_media([("", sources)], folder / "media", is_shared=True)
    entries = dict(zip(made.names, made.rows[0][1], strict=True))
    shown, gaps = Shown({}, {}), {}
    for media, of in wanted.items():
        entry = entries[_name(*of)]
        if "gap" in entry:
            gaps[media] = f"{of[0]} seed {of[1][0]} clip {of[1][1]}: {entry['gap']}"
            continue
        names = {kind: media + _ending(entry[kind]) for kind in FILES if kind in entry}
        shown.entries[media] = {**{key: entry[key] for key in ("frames", "height", "width", "fps")}, **names}
        shown.files.update({names[kind]: folder / "media" / entry[kind] for kind in names})
    return shown, gaps


def _name(side: str, place: Place) -> str:
    return f"{side}/{place[0]}/{place[1]}"


def _ending(file: str) -> str:
    return "-preview.mp4" if file.endswith("-preview.mp4") else Path(file).suffix


def _source(clips: Clips, side: str, place: Place, folder: Path) -> Clip:
    clip = clips[REAL if side == DEGRADED else side][place]
    if side != DEGRADED or clip.gap:
        return clip
    from pw.io.video import VideoError

    try:
        return degraded_clip(clip, folder)
    except VideoError as error:
        return Clip(clip.path, gap=str(error))


def page_text(plan: VotePlan, shown: Shown, answers: Answers) -> str:
    """The page of a judge. Nothing in it says which arms there are."""
    return judge_html({
        "plan": plan.id,
        "judge": plan.judge,
        "shown": plan.shown,
        "exported": plan.exported,
        "pairs": [[pair.id, *pair.media] for pair in plan.pairs],
        "media": shown.entries,
        "answers": [[pair, *answer] for pair, answer in answers.items()],
    })  # fmt: skip


def export(plan: VotePlan, shown: Shown, folder: Path) -> None:
    """Write the page and its files to an empty folder."""
    (folder / "media").mkdir(parents=True, exist_ok=True)
    for name, path in shown.files.items():
        shutil.copyfile(path, folder / "media" / name)
    (folder / "index.html").write_text(page_text(plan, shown, {}), encoding="utf-8")


def check_empty(folder: Path) -> None:
    """Raises ConfigError for what is there and is no empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"export={folder}: is there and not empty; name a folder that is not")
