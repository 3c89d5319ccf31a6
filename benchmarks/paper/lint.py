"""`make lint-paper`: recompute the derived numbers of the paper and print those that do not add up.

pw lint-paper [table=table_1] [all=true] [format=terminal|md|json] [json=FILE]

all=true also lists the checks that pass. `benchmarks.paper.recompute` says when a number adds up.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks import paper
from benchmarks.paper import consistency
from benchmarks.paper.recompute import Check, Kind, derived_cells
from pw.io.arguments import Command, option
from pw.io.console import console
from pw.io.files import writable_file, write_atomically

if TYPE_CHECKING:
    from rich.console import Group

WIDTH = 120  # at most; wider lines are hard to follow
KINDS: Mapping[Kind, str] = {
    "derived": "derived cells recompute",
    "consistency": "cells agree with the rest of the tables",
    "claim": "claims of the text hold",
}


def lint(folder: Path = paper.HERE) -> list[Check]:
    """All checks of the paper's tables: derived cells, consistency, claims. folder: the folder of the CSVs."""
    tables = {name: paper.load(name, folder) for name in paper.names()}
    return [*derived_cells(tables), *consistency.checks(tables)]


def summary(checks: Sequence[Check]) -> list[str]:
    results = {kind: [check.adds_up for check in checks if check.kind == kind] for kind in KINDS}
    return [f"{sum(results[kind])} of {len(results[kind])} {words}" for kind, words in KINDS.items() if results[kind]]


_HEADS = ("where", "printed", "recomputed", "why")


def _texts(check: Check) -> tuple[str, str, str, str]:
    why = f"{check.how}.{f' Inference: {check.inference}.' if check.inference else ''}"
    return f"{check.place}: {check.row}, {check.column}", check.printed, check.recomputed, why


def _sections(checks: Sequence[Check], show_all: bool) -> list[tuple[str, list[Check]]]:
    sections = {"What does not add up": [check for check in checks if not check.adds_up]}
    sections["What adds up"] = [check for check in checks if check.adds_up and show_all]
    return [(title, section) for title, section in sections.items() if section]


def markdown(checks: Sequence[Check], show_all: bool = False) -> str:
    """Tables of the failed checks (with `show_all` also of the others), then the counts."""
    parts = ["## The paper's numbers, recomputed"]
    for title, section in _sections(checks, show_all):
        rows = [f"| {' | '.join(text.replace('|', chr(92) + '|') for text in _texts(check))} |" for check in section]
        head = [f"| {' | '.join(_HEADS)} |", "|---" * len(_HEADS) + "|"]
        parts += [f"### {title}", "\n".join([*head, *rows])]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in summary(checks))]) + "\n"


def as_json(checks: Sequence[Check]) -> str:
    """All checks and the counts; an infinite end of an interval is null."""
    rows = [asdict(check) for check in checks]
    for row in rows:
        if row["possible"] is not None:
            ends = row["possible"].values()
            row["possible"] = [end if math.isfinite(end) else None for end in ends]
    return json.dumps({"checks": rows, "summary": summary(checks)}, indent=1, ensure_ascii=False)


def terminal(checks: Sequence[Check], show_all: bool = False) -> Group:
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    parts: list[RichTable | Text] = []
    for title, section in _sections(checks, show_all):
        gap = int(not section[0].adds_up)
        table = RichTable(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, gap, 0))
        table.title_justify, table.title_style = "left", "bold"
        for head, min_width, width in zip(_HEADS, (15, 10, 12, 20), (30, 14, 16, 52), strict=True):
            table.add_column(head, min_width=min_width, max_width=width)
        for check in section:
            where, printed, recomputed, _ = _texts(check)
            place, _, cell = where.partition(": ")
            inference = ("\nInference: " + check.inference + ".", "yellow") if check.inference else ""
            why = Text.assemble((f"{check.how}.", "dim"), inference)
            table.add_row(Text.assemble((place, "dim"), f"\n{cell}"), Text(printed), Text(recomputed), why)
        parts.append(table)
    return Group(*parts, Text("\n".join(summary(checks))))


def _table_name(text: str) -> str:
    if text and text not in paper.names():
        raise ValueError(f"choose from {', '.join(paper.names())}")
    return text


def _json_file(text: str) -> Path:
    if text in ("", "true", "false"):
        raise ValueError("expected a file; format=json prints it")
    return writable_file("json")(text)


@dataclass(frozen=True)
class LintOptions:
    table: str = option("", "only the checks that concern this table", read=_table_name)
    all: bool = option(False, "also what adds up")
    format: Literal["terminal", "md", "json"] = option("terminal", "how it is printed; json has every check")
    json: Path | None = option(None, "a file for every check as JSON", read=_json_file)


def run(options: LintOptions) -> int:
    """Print the checks. The exit status is always 0."""
    checks = [check for check in lint() if not options.table or options.table in check.tables]
    if options.json is not None:
        write_atomically(options.json, f"{as_json(checks)}\n")
    if options.format == "json":
        print(as_json(checks))
    elif options.format == "md":
        print(markdown(checks, options.all), end="")
    else:
        console(width=min(shutil.get_terminal_size().columns, WIDTH)).print(terminal(checks, options.all))
    return 0


main = Command(LintOptions, run)
