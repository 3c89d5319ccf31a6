"""The evidence page: index.html, which shows a result with its clips in a browser, from disk and without a network.

Texts, tables, style and script are in index.html itself; pictures and the files of the clips lie beside it. The same
evidence gives the same bytes. Begin with `write_page`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from benchmarks.report import render
from benchmarks.report.costs import costs
from benchmarks.report.grid import PAPER, Grid
from benchmarks.report.page_media import ClipRow, Media, make_media
from pw.io.console import one_line
from pw.io.files import human_size, write_atomically

if TYPE_CHECKING:
    from jinja2 import Template

PAGE, MEDIA = "index.html", "page"
"""Names of the page, and of the folder beside it with the files of its clips."""

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Evidence:
    """What a page shows; a part that is empty is left out.

    title     the question
    claim     what is claimed; refuted: what would refute it
    clauses   (answer, clause, evidence) of the verdict
    tables    (heading, table), costs among them last
    pictures  (description, file beside the page)
    rows      the clips, a player per row; a clip that a row does not name is no gap
    compared  labels of the two rows that are compared first
    about     one line about the clips
    changes   (heading, lines): how configurations differ
    runs      (label, [(what it is, command)]): what makes results again
    notes     (label, text) of the list at the end
    files     names of other files beside the page
    """

    title: str
    claim: str = ""
    refuted: str = ""
    clauses: Sequence[tuple[str, str, str]] = ()
    tables: Sequence[tuple[str, Grid]] = ()
    pictures: Sequence[tuple[str, str]] = ()
    rows: Sequence[ClipRow] = ()
    compared: tuple[str, str] | None = None
    about: str = ""
    changes: Sequence[tuple[str, Sequence[str]]] = ()
    runs: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()
    notes: Sequence[tuple[str, str]] = ()
    files: Sequence[str] = ()


def write_page(evidence: Evidence, folder: Path, name: str = PAGE) -> Path:
    """Write a page, and beside it the folder with the files of its clips; return its path. Raises OSError."""
    beside = MEDIA if name == PAGE else f"{Path(name).stem}-{MEDIA}"
    media = make_media(evidence.rows, folder / beside) if evidence.rows else None
    write_atomically(folder / name, page_html(evidence, folder / beside, media))
    return folder / name


def page_html(evidence: Evidence, beside: Path = Path(MEDIA), media: Media | None = None) -> str:
    """The text of a page. beside: the folder with the files of its clips, in that of the page"""
    players = _players(evidence, beside, media) if media and media.names else {}
    gaps = [
        (label, name, entry["gap"])
        for (_, clips), (label, entries) in (zip(evidence.rows, media.rows, strict=True) if media else ())
        for name, entry in zip(media.names if media else (), entries, strict=True)
        if "gap" in entry and name in clips
    ]
    return template("page.html.jinja").render(
        page=evidence,
        players=players,
        gaps=gaps,
        signs=render.SIGNS,
        paper=PAPER,
        css=read_asset("page.css"),
        js=f'"use strict";\n{read_asset("player.js")}\n{read_asset("page.js")}',
    )


def evidence_of(result: render.Result) -> Evidence:
    """The page of a result of `benchmarks.report.write`, without its clips and runs."""
    columns = result.get("shown_columns") or ()
    scores, cost, paper = render.scores(result, marks=True), costs(result), render.paper(result)
    tables = {
        "Scores": scores.join(cost).join(paper).choose(columns) if columns else scores.join(paper),
        f"Differences to {render.compared_with(result)}": render.differences(result).choose(columns),
        "Cost": Grid((), ()) if columns else cost,
    }
    return Evidence(
        render.title(result),
        str(result.get("claim") or ""),
        str(result.get("refuted") or ""),
        render.verdicts(result),
        [(heading, grid) for heading, grid in tables.items() if grid.columns and grid.rows],
        notes=[line for line in render.footer(result) if line[0] != "refuted"],
    )


def _players(evidence: Evidence, beside: Path, media: Media) -> dict[str, Any]:
    """The data of the script."""
    labels = [label for label, _ in media.rows]
    compared = evidence.compared or (labels[0], labels[-1])
    return {
        "folder": beside.name,
        "names": [one_line(name) for name in media.names],
        "labels": [one_line(label) for label in labels],
        "compared": [labels.index(label) if label in labels else 0 for label in compared],
        "differences": media.differences,
        "clips": [
            [
                {"gap": one_line(entry["gap"])} if "gap" in entry else _shown(entry, clips[name].path, beside.parent)
                for name, entry in zip(media.names, entries, strict=True)
            ]
            for (_, clips), (_, entries) in zip(evidence.rows, media.rows, strict=True)
        ],
    }


def _shown(entry: Mapping[str, Any], path: Path, folder: Path) -> dict[str, Any]:
    link = quote(os.fsencode(os.path.relpath(path, folder)))  # a name may be no UTF-8
    size = {"size": human_size(entry["bytes"][entry["mp4"]])} if "mp4" in entry else {}
    return {key: value for key, value in entry.items() if key != "bytes"} | {"source": link, **size}


def read_asset(name: str) -> str:
    """A style or script of this folder."""
    return (FOLDER / name).read_text(encoding="utf-8").strip()


@cache
def template(name: str) -> Template:
    """A page's template of this folder, which escapes what it is given and shows control characters."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def printable(value: Any) -> Any:
        return one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    loader = FileSystemLoader(FOLDER)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, finalize=printable, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(name)
