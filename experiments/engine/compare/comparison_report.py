"""A comparison written as comparison.json, comparison.md and a contact sheet, and shown in the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure.measurement import videos_of
from benchmarks.metrics import lookup
from benchmarks.report.contact_sheet import side_by_side
from experiments.engine.compare.run_comparison import RunComparison
from pw.io.files import write_atomically


def write(result: RunComparison, out: Path) -> None:
    """comparison.json, comparison.md and contact_sheet.png."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "comparison.json", json.dumps(as_json(result), indent=1, ensure_ascii=False) + "\n")
    write_atomically(out / "comparison.md", markdown(result))
    seed = next((seed for seed in result.a.folders if seed in result.b.folders), None)
    a, b = (s.first if seed is None else s.folders[seed] for s in (result.a, result.b))
    side_by_side((result.a.name, videos_of(a.path)), (result.b.name, videos_of(b.path)), out / "contact_sheet.png")


def as_json(result: RunComparison) -> dict[str, Any]:
    """The comparison as plain data."""
    sides = {
        key: {"name": s.name, "folders": {seed: str(f.path) for seed, f in s.folders.items()}, "videos": size}
        for key, s, size in (("a", result.a, result.videos["a"]), ("b", result.b, result.videos["b"]))
    }
    return {
        **sides,
        "unit": result.unit,
        "primary": result.primary,
        "config": result.config,
        "metrics": result.rows,
        "measured_by": result.depends,
        "left_out": result.left_out,
        "notes": result.notes,
    }


def _cells(result: RunComparison) -> Iterator[tuple[str, list[str], str]]:
    """(metric, printed cells, verdict)."""
    for name, row in result.rows.items():
        metric = lookup(name)
        is_log = row["diff_of"] == "abs_log"
        factor = 1.0 if is_log else metric.printed
        numbers = [_number(row[key], factor) for key in ("a", "b")]
        interval = "–" if row["low"] is None else f"{_number(row['low'], factor)} … {_number(row['high'], factor)}"
        p = "–" if row["p_adjusted"] is None else f"{row['p_adjusted']:.2g}"
        header = f"|ln {metric.header}| ↓" if is_log else f"{metric.header} {metric.arrow}"
        verdict = row["verdict"] + (f" ({row['reason']})" if row.get("reason") else "")
        yield header, [*numbers, _number(row["diff"], factor), interval, p], verdict


WIDE = 118  # columns from which a verdict with its reason stands beside the numbers


HEADS = ("a", "b", "b − a", "95 % interval", "p, adjusted")


def _number(value: float | None, factor: float = 1.0) -> str:
    return "–" if value is None else f"{value * factor:.4g}".replace("-", "−")


def _unpaired(result: RunComparison) -> list[str]:
    lines = []
    for name, row in result.left_out.items():
        for key in "ab":
            if n := row[f"only_{key}"]:
                listed = ", ".join(row[f"names_{key}"][:5])
                lines.append(f"{name}: {n} videos only of {key}, not compared: {listed}{' …' if n > 5 else ''}")
    return lines


def markdown(result: RunComparison) -> str:
    """comparison.md."""
    lines = [f"# {result.a.name} (a) and {result.b.name} (b)", ""]
    lines += ["b is judged against a.", "", *(f"- {line}" for line in result.config), ""]
    lines += [f"| metric | {' | '.join(HEADS)} | verdict |", f"|---|{'--:|' * len(HEADS)}---|"]
    for header, cells, verdict in _cells(result):
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in (header, *cells, verdict))} |")
    lines += ["", f"{result.unit}.", ""]
    lines += [f"- {note}" for note in (*_unpaired(result), *result.notes)]
    return "\n".join([*lines, "", "![a above, b below](contact_sheet.png)", ""])


def rendered(result: RunComparison, width: int) -> Iterator[Any]:
    """The comparison for a terminal; in a narrow one the verdicts have lines of their own, below the numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    yield Text(f"a  {result.a.name}\nb  {result.b.name}, judged against a", style="bold")
    for line in result.config:
        yield Text(f"   {line}")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("metric", overflow="fold")
    for head in HEADS:
        table.add_column(head, justify="right", no_wrap=True)
    verdicts = Table.grid(padding=(0, 1, 0, 0))
    if is_wide := width >= WIDE:
        table.add_column("verdict")
    for header, cells, verdict in _cells(result):
        colour = {"better": "green", "worse": "red"}.get(verdict, "dim" if verdict.startswith("not") else "")
        judged = Text(verdict, style=colour)
        table.add_row(Text(header), *cells, *([judged] if is_wide else []))
        verdicts.add_row(Text(header), judged)
    yield table
    if not is_wide:
        yield verdicts
        yield ""
    yield Text(result.unit, style="dim")
    for note in (*_unpaired(result), *result.notes):
        yield Text(f"· {note}", style="yellow")
