"""The evidence page of `pw compare`: the table of a comparison, and the videos of both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.measure.measurement import videos_of
from benchmarks.report.grid import Cell, Column, Grid
from benchmarks.report.page import Evidence
from benchmarks.report.page_media import Clip, ClipRow, common_clips
from experiments.engine.compare.sides import CompareOptions, references_of, side
from pw.io.arguments import ConfigError
from pw.io.command_line import command_line
from pw.io.paths import OUTPUTS

Line = tuple[str, Sequence[str], str]
"""(metric, printed cells, verdict)"""


def compare_evidence(
    options: CompareOptions,
    result: Mapping[str, Any],
    headers: Sequence[str],
    lines: Sequence[Line],
    notes: Sequence[str],
) -> Evidence:
    """What the page of a comparison shows. result: of `compare_sides`; headers, lines: of its printed table"""
    names = {key: result[key]["name"] for key in "ab"}
    values = [[row[key] for key in ("a", "b", "diff", "low", "p_adjusted")] for row in result["metrics"].values()]
    rows = [
        (
            metric,
            (*(Cell(text, value=x) for text, x in zip(cells, numbers, strict=True)), _verdict_cell(verdict)),
        )
        for (metric, cells, verdict), numbers in zip(lines, values, strict=True)
    ]
    columns = tuple(Column("a, b and their difference", header) for header in (*headers, "verdict"))
    folders = {key: result[key]["folders"] for key in "ab"}
    given = {field.name: getattr(options, field.name) for field in fields(options)}
    words = [f"{k}={','.join(v) if isinstance(v, tuple) else v}" for k, v in given.items() if v not in (None, ())]
    command = command_line("compare", *(word for word in words if word != f"outputs={OUTPUTS}"))
    clips = common_clips({f"{key}: {names[key]}": Path(next(iter(folders[key].values()))) for key in "ab"})
    return Evidence(
        f"{names['b']} (b), judged against {names['a']} (a)",
        tables=[("Comparison", Grid(columns, tuple(rows)))],
        rows=[*_reference_rows(options, clips), *clips],
        compared=(clips[0][0], clips[-1][0]) if clips else None,
        about="The first videos of the first seed that both have. The scores are of all videos.",
        changes=[("a → b", result["config"])],
        runs=[("all of it", [(f"{key}: {', '.join(folders[key].values())}", "") for key in "ab"] + [("", command)])],
        notes=[("unit", result["unit"]), *(("note", note) for note in notes)],
        files=("comparison.json", "comparison.md", "contact_sheet.png"),
    )


def _reference_rows(options: CompareOptions, clips: Sequence[ClipRow]) -> list[ClipRow]:
    """The real clips and the anchors of these clips, as far as they are stored."""
    first = side(options.a, options.outputs).first
    rows: list[ClipRow] = []
    for label, folder in (("real", references_of(options, first, ())[0].real), ("anchor", first.path / "anchors")):
        with suppress(ConfigError):  # no videos
            videos = {path.stem: path for path in videos_of(folder).values()} if folder and folder.is_dir() else {}
            found = {name: Clip(videos[name]) for name in (clips[0][1] if clips else ()) if name in videos}
            rows += [(label, found)] if found else []
    return rows


def _verdict_cell(verdict: str) -> Cell:
    kind, _, reason = verdict.partition(" (")
    return Cell(kind, verdict=kind, note=reason.rstrip(")"))
