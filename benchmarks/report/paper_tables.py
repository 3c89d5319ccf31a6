"""The paper's tables with ours beside them: what was printed, what was measured here, the difference and a verdict.

    pw table name=table_2 [systems=DIR score=true format=md out=DIR row.pixelwizard_2k=DIR …]

A row is filled from the folder of its system (`systems=`, by default outputs/systems/<name>, see `benchmarks.systems`),
or from any folder of videos that is named for it: `row.<name>=DIR`. The folder's scores.csv is read; score=true
measures what is lacking first. What was not measured is an en dash, with the command that supplies it below.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import paper
from benchmarks.measure.measurement import existing_folder
from benchmarks.measure.score import score_videos
from benchmarks.metrics import METRICS, protocols
from benchmarks.report import write as report
from benchmarks.report.paper_comparison import compose, metrics_of
from benchmarks.report.paper_markup import FORMATS, differences, footer, grid, render
from benchmarks.report.paper_rows import find, read
from pw.io.arguments import Command, ConfigError, no_such_option, option
from pw.io.files import check_writable, write_atomically
from pw.io.paths import OUTPUTS


@dataclass(frozen=True)
class TableOptions:
    """The options of `pw table`; overrides: row.NAME=DIR."""

    name: str = option("", f"which table: {', '.join(paper.names())}", values=paper.names)
    systems: Path = option(OUTPUTS / "systems", "where the systems' folders are", read=existing_folder)
    score: bool = option(False, "measure what is lacking first")
    format: Literal["terminal", "md", "tex", "html", "csv", "json"] = option("terminal", "how it is printed")
    out: Path = option(OUTPUTS / "tables", "the folder that gets the table in every format")
    reference: str = option("", "the row that ours are compared with; by default the paper's own system")
    overrides: tuple[str, ...] = option((), "row.NAME=DIR: a folder of videos for a row")

    @property
    def rows(self) -> dict[str, Path]:
        """row -> its folder of videos. Raises ConfigError for a word that names none."""
        for word in self.overrides:
            if not word.startswith("row."):
                raise no_such_option(type(self), word, ", and row.NAME")
        words = (word.removeprefix("row.").partition("=") for word in self.overrides)
        return {arm: Path(folder).expanduser() for arm, _, folder in words}


def run(options: TableOptions) -> int:
    """Write the table in every format and show it. Exit status 0."""
    if not options.name:
        raise ConfigError(f"name=: which table? {', '.join(paper.names())}")
    table = paper.load(options.name)
    folders = find(table, options.systems, options.rows)
    check_writable("out", options.out)
    if options.score:
        _score(table, folders)
    result = compose(table, {arm: read(folder) for arm, folder in folders.items()}, options.reference)
    for kind in FORMATS:
        write_atomically(options.out / f"{table.name}.{kind}", render(result, kind))
    if options.format == "terminal":
        _show(result)
        print(f"{options.out / table.name}.{{{','.join(FORMATS)}}}")
    else:
        print(render(result, options.format), end="")
    return 0


main = Command(TableOptions, run, resumes="what was measured is kept, the same command goes on with the rest")


def _score(table: paper.PaperTable, folders: Mapping[str, Path]) -> None:
    """Measure what the table's columns ask for, folder by folder; what was measured before comes from the cache."""
    from benchmarks.measure.score import NothingMeasured, write

    names = metrics_of([column.metric for column in table.columns])
    for arm, folder in folders.items():
        print(f"scoring {arm} in {folder}", file=sys.stderr)
        all_names = [*names, *(name for name in _of_other_tables(folder) if name not in names)]
        try:
            found = score_videos(folder, all_names, progress=lambda line: print(line, file=sys.stderr, flush=True))
        except ValueError as error:  # nothing there yet, say; the other rows are shown all the same
            print(f"  {error}", file=sys.stderr)
            continue
        for name, why in found.missing.items():
            print(f"  {name} –  {why}", file=sys.stderr)
        try:
            write(found, all_names, folder / "scores.csv")
        except NothingMeasured as error:
            print(f"  {error}", file=sys.stderr)


def _of_other_tables(folder: Path) -> list[str]:
    """What was measured before just as it would be now: it stays, from the cache, when scores.csv is written anew."""
    try:
        before = read(folder).protocols
    except ValueError:
        return []
    known = [name for name in before if name in METRICS and not METRICS[name].needs]
    return [name for name in known if before[name].get("settings") == protocols([name])[name]["settings"]]


def _show(result: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=report.WIDTH)
    grids = [grid(result), differences(result)]
    console.print(report.terminal_grid(grids, result["title"], footer(result), console.width))
