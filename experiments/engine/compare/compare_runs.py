"""`pw compare a=… b=…`: a paired comparison of two runs, or two folders of videos from any system. Begin with `run`.

A run is named by the signature of its training or of its clips (`outputs/train`, `outputs/videos`), or by the first
digits of one; several, a=1c2d,9f00 b=…, are the seeds of one arm. The results are index.html, which shows the videos,
comparison.json, comparison.md and contact_sheet.png in `outputs/compare/<a>_<b>/`.

With one seed the unit of the test is the prompt (`benchmarks.stats.paired`), and the result is about these two sets of
videos. With several seeds the unit is the seed (`benchmarks.stats.comparison`), as in the table of an ablation; only
then a metric of the whole set has an interval.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.measure.clips import check_contracts
from benchmarks.measure.measurement import Scores, videos_of
from benchmarks.metrics import lookup
from benchmarks.report.contact_sheet import side_by_side, video_sizes
from benchmarks.report.grid import md
from benchmarks.report.page import write_page
from benchmarks.stats.comparison import compare
from benchmarks.stats.paired import compare_videos
from experiments.engine.compare.compare_page import compare_evidence
from experiments.engine.compare.sides import (
    CompareOptions,
    Folder,
    Side,
    check_primary,
    config_difference,
    metrics_of,
    scores_of_pair,
    side,
)
from pw.io.arguments import Command, ConfigError
from pw.io.console import console
from pw.io.files import write_atomically

WIDE_COLUMNS = 118  # a terminal of this width has verdicts and numbers in one table
HEADERS = ("a", "b", "b − a", "95 % interval", "p, adjusted")

SideScores = Mapping[str, Mapping[int, Scores]]
"""Side (a or b) -> seed -> scores."""

Rows = dict[str, dict[str, Any]]
"""Metric -> its row in comparison.json."""


def compare_sides(options: CompareOptions) -> dict[str, Any]:
    """The content of comparison.json. Raises ValueError (ConfigError) with the reason if a and b cannot be compared.

    a, b         name, folders by seed, and size of the videos -> number of videos
    unit         the unit of the test (prompts or seeds), as text
    primary      the metric that was tested first and alone
    config       the keys in which the two differ, a line each
    measured_by  metric -> protocol, settings and weights
    left_out     metric -> videos that only one side has
    """
    a, b = side(options.a, options.outputs), side(options.b, options.outputs)
    if a.name == b.name and a.first.path.resolve() != b.first.path.resolve():  # two folders called "videos"
        a, b = (replace(s, name=f"{s.first.path.resolve().parent.name}-{s.name}") for s in (a, b))
    pairs = _paired_folders(a, b)
    names = metrics_of(options, a, b)
    check_primary(options, names, len(pairs))
    notes = [*a.notes, *b.notes]
    scores: dict[str, dict[int, Scores]] = {"a": {}, "b": {}}
    for seed, folders in pairs.items():
        scores["a"][seed], scores["b"][seed] = scores_of_pair(options, *folders, names, notes)
    check_contracts({
        f"{key} = {s.name}": {seed: _contract(row) for seed, row in scores[key].items()}
        for key, s in (("a", a), ("b", b))
    })  # fmt: skip
    compare_scores = _compare_seeds if len(pairs) > 1 else _compare_prompts
    unordered, left_out, primary = compare_scores(scores, names, options.primary)
    rows = {name: unordered[name] for name in _in_order(unordered, names)}
    if options.primary is not None and primary is None:
        notes.append(f"primary={options.primary}: has no test here, so all metrics are tested by Holm")
    notes += _missing_scores(options, names, rows, scores, notes)
    if not rows:
        raise ConfigError(f"nothing to compare: {'; '.join(notes) or 'the two have no score in common'}")
    sizes = [video_sizes(videos_of(s.first.path).values()) for s in (a, b)]
    notes += _size_notes(*sizes)
    side_entries = {
        key: {"name": s.name, "folders": {seed: str(f.path) for seed, f in s.folders.items()}, "videos": size}
        for key, s, size in zip("ab", (a, b), sizes, strict=True)
    }
    return {
        **side_entries,
        "unit": _unit(scores, rows, a, b, primary),
        "primary": primary,
        "config": config_difference(*next(iter(pairs.values()))),
        "metrics": rows,
        "measured_by": next(iter(scores["a"].values())).dependencies,
        "left_out": left_out,
        "notes": notes,
    }


def _paired_folders(a: Side, b: Side) -> dict[int, tuple[Folder, Folder]]:
    """Seed of a -> (folder of a, folder of b) with the same evaluation seed; a single pair may differ in its seed."""
    common = {seed: (a.folders[seed], b.folders[seed]) for seed in a.folders if seed in b.folders}
    if common:
        return common
    if len(a.folders) == len(b.folders) == 1 and (a.first.run is None or b.first.run is None):
        return {a.first.seed: (a.first, b.first)}
    raise ConfigError(
        f"a has the evaluation clips of seed {', '.join(map(str, a.folders))}, b of seed "
        f"{', '.join(map(str, b.folders))}: no clips can be paired; sample one again with evaluation_seed=…"
    )


def _contract(scores: Scores) -> dict[str, Any]:
    """The values that must agree: protocols, settings and weights, and within a seed the reference clips."""
    metrics = {name: {k: v for k, v in row.items() if k != "clips"} for name, row in scores.dependencies.items()}
    clips = [row["clips"] for row in scores.dependencies.values() if "clips" in row]
    return {"metrics": metrics, **({"clips": clips[0]} if clips else {})}


def _compare_prompts(
    scores: SideScores, names: Sequence[str], primary_option: str | None
) -> tuple[Rows, dict[str, Any], str | None]:
    """(rows, videos without a partner, primary metric), over the prompts of one seed."""
    a, b = (next(iter(scores[key].values())) for key in "ab")
    left, right = _by_metric(a), _by_metric(b)
    common = _in_order([name for name in left if name in right], names)
    rows: Rows = {}
    left_out: dict[str, Any] = {}
    primary = None
    if common:
        comparison = compare_videos(
            {m: left[m] for m in common}, {m: right[m] for m in common}, primary=_primary(primary_option, common)
        )
        as_json, primary = comparison.as_json(), comparison.primary
        rows, left_out = as_json["metrics"], as_json["left_out"]
    for name in a.set_values:
        if name in b.set_values:
            no_test = dict.fromkeys(("low", "high", "p", "p_adjusted")) | {"verdict": "not resolved"}
            values = {"a": a.set_values[name], "b": b.set_values[name]}
            rows[name] = {**values, "diff": values["b"] - values["a"], **no_test}
            rows[name] |= {"reason": "of the set: needs seeds", "diff_of": "value"}
    return rows, left_out, primary


def _compare_seeds(
    scores: SideScores, names: Sequence[str], primary_option: str | None
) -> tuple[Rows, dict[str, Any], str | None]:
    """Like `_compare_prompts`, over seeds. The mean of a seed is over the videos that both sides have."""
    means: dict[str, dict[int, dict[str, float | None]]] = {"a": {}, "b": {}}
    unpaired: dict[str, dict[str, list[str]]] = {}
    for seed, a in scores["a"].items():
        b = scores["b"][seed]
        left, right = _by_metric(a), _by_metric(b)
        for key, seed_scores in (("a", a), ("b", b)):
            means[key][seed] = dict(seed_scores.set_values)
        for name in left.keys() & right.keys():
            common = left[name].keys() & right[name].keys()
            for key, values in (("a", left[name]), ("b", right[name])):
                seed_values = [values[video] for video in sorted(common or values)]
                means[key][seed][name] = fmean(seed_values) if seed_values else None
                extra = sorted(values.keys() - common) if common else []
                unpaired.setdefault(name, {"a": [], "b": []})[key] += [f"{video} of seed {seed}" for video in extra]
    scored_metrics = _in_order({name for row in means["a"].values() for name in row}, names)
    comparison = compare(means, primary=_primary(primary_option, scored_metrics))
    a_estimates, b_estimates = comparison.arms["a"], comparison.arms["b"]
    rows = {
        name: {"a": a_estimates[name].mean, "b": b_estimates[name].mean, **asdict(row)}
        for name, row in comparison.differences["b"].items()
        if name in a_estimates and name in b_estimates
    }
    left_out = {
        name: {f"only_{key}": len(row[key]) for key in "ab"} | {f"names_{key}": row[key] for key in "ab"}
        for name, row in unpaired.items()
        if row["a"] or row["b"]
    }
    return rows, left_out, comparison.primary


def _by_metric(scores: Scores) -> dict[str, dict[str, float]]:
    """Metric -> video -> value, without metrics of the whole folder."""
    names = dict.fromkeys(name for row in scores.rows.values() for name in row if name != "frames")
    return {name: scores.values(name) for name in names if name not in scores.set_values}


def _primary(primary_option: str | None, testable: Sequence[str]) -> str | None:
    """The metric that is tested first and alone: the option, else psd, else the first of `testable`."""
    return primary_option or ("psd" if "psd" in testable else next(iter(testable), None))


def _in_order(metrics: Iterable[str], names: Sequence[str]) -> list[str]:
    """Metrics in the order of `names`; other metrics of a scores file come last."""
    return sorted(metrics, key=lambda name: names.index(name) if name in names else len(names))


def _missing_scores(
    options: CompareOptions, names: Sequence[str], rows: Rows, scores: SideScores, notes: Sequence[str]
) -> list[str]:
    """Notes on requested metrics that are not compared, if no other note gives the reason."""
    missing = []
    for name in names if options.metrics else ():
        if name in rows or any(re.search(rf"\b{name}\b", note) for note in notes):
            continue
        sides = [k for k in "ab" if not all(s.values(name) or name in s.set_values for s in scores[k].values())]
        files = {"a": options.a_scores, "b": options.b_scores}
        places = " and ".join(str(files[key] or key) for key in sides) or "common"
        missing.append(f"{name}: not compared, no score in {places}")
    return missing


def _unit(scores: SideScores, rows: Rows, a: Side, b: Side, primary: str | None) -> str:
    n = len(scores["a"])
    tests = "Holm over the metrics" if primary is None else f"{primary} first, the others by Holm behind it"
    tests = tests if len(rows) > 1 else "one metric"
    if n > 1:
        trainings = {f.run.training_signature for s in (a, b) for f in s.folders.values() if f.run is not None}
        units = f"{len(trainings)} trainings" if len(trainings) > 2 else "evaluation seeds of the same two trainings"
        return f"paired by seed: Student's t over {n} seeds ({units}), {tests}"
    designs = {row.get("design") for row in rows.values()} - {None}
    if designs == {"independent"}:
        return f"not paired, because no two videos share a name: Welch's t over prompts, {tests}"
    return (
        f"paired by video name: bootstrap (BCa) interval and sign-flip test over prompts, {tests}. Valid "
        "only for these two sets of videos, not for other trainings (that takes more seeds: make power)"
    )


def _size_notes(a: Mapping[str, int], b: Mapping[str, int]) -> list[str]:
    if set(a) == set(b):
        return []
    texts = [", ".join(f"{text} ({n} video{'s' if n > 1 else ''})" for text, n in sizes.items()) for sizes in (a, b)]
    return [
        f"a has {texts[0]}; b has {texts[1]}. Metrics also depend on resolution and length (mHD falls as pixels "
        "are added), so a verdict mixes these with quality"
    ]


def write(result: Mapping[str, Any], out: Path) -> None:
    """Write comparison.json, comparison.md and contact_sheet.png."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "comparison.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_atomically(out / "comparison.md", markdown(result))
    a, b = (result[key]["folders"] for key in "ab")
    common = next((seed for seed in a if seed in b), None)
    paths = [folders[next(iter(folders)) if common is None else common] for folders in (a, b)]
    sides = [(result[key]["name"], videos_of(Path(path))) for key, path in zip("ab", paths, strict=True)]
    side_by_side(*sides, out / "contact_sheet.png")


def _cells(result: Mapping[str, Any]) -> Iterator[tuple[str, list[str], str]]:
    """(metric, printed cells, verdict)."""
    for name, row in result["metrics"].items():
        metric = lookup(name)
        is_log = row["diff_of"] == "abs_log"
        factor = 1.0 if is_log else metric.printed
        numbers = [_number(row[key], factor) for key in ("a", "b", "diff")]
        interval = "–" if row["low"] is None else f"{_number(row['low'], factor)} … {_number(row['high'], factor)}"
        p = "–" if row["p_adjusted"] is None else f"{row['p_adjusted']:.2g}"
        header = f"|ln {metric.header}| ↓" if is_log else f"{metric.header} {metric.arrow}"
        verdict = row["verdict"] + (f" ({row['reason']})" if row.get("reason") else "")
        yield header, [*numbers, interval, p], verdict


def _number(value: float | None, factor: float) -> str:
    return "–" if value is None else f"{value * factor:.4g}".replace("-", "−")


def _notes(result: Mapping[str, Any]) -> list[str]:
    """Notes on videos without a partner, then the other notes."""
    unpaired = []
    for name, row in result["left_out"].items():
        for key in "ab":
            if n := row[f"only_{key}"]:
                names = ", ".join(row[f"names_{key}"][:5])
                unpaired.append(f"{name}: {n} videos only of {key}, not compared: {names}{' …' if n > 5 else ''}")
    return [*unpaired, *result["notes"]]


def markdown(result: Mapping[str, Any]) -> str:
    """The text of comparison.md."""
    lines = [f"# {md(result['a']['name'])} (a) and {md(result['b']['name'])} (b)", ""]
    lines += ["b is judged against a.", "", *(f"- {md(line)}" for line in result["config"]), ""]
    lines += [f"| metric | {' | '.join(HEADERS)} | verdict |", f"|---|{'--:|' * len(HEADERS)}---|"]
    for header, cells, verdict in _cells(result):
        lines.append(f"| {' | '.join(md(cell) for cell in (header, *cells, verdict))} |")
    lines += ["", f"{result['unit']}.", "", *(f"- {md(note)}" for note in _notes(result))]
    return "\n".join([*lines, "", "![a above, b below](contact_sheet.png)", ""])


def renderables(result: Mapping[str, Any], width: int) -> Iterator[Any]:
    """The comparison as rich objects; in a narrow terminal the verdicts are a second table below the numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    yield Text(f"a  {result['a']['name']}\nb  {result['b']['name']}, judged against a", style="bold")
    for line in result["config"]:
        yield Text(f"   {line}")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("metric", overflow="fold")
    for header in HEADERS:
        table.add_column(header, justify="right", no_wrap=header != "95 % interval", overflow="fold")
    verdicts = Table.grid(padding=(0, 1, 0, 0))
    if is_wide := width >= WIDE_COLUMNS:
        table.add_column("verdict")
    for header, cells, verdict in _cells(result):
        colour = {"better": "green", "worse": "red"}.get(verdict, "dim" if verdict.startswith("not") else "")
        verdict_text = Text(verdict, style=colour)
        table.add_row(Text(header), *cells, *([verdict_text] if is_wide else []))
        verdicts.add_row(Text(header), verdict_text)
    yield table
    if not is_wide:
        yield verdicts
        yield ""
    yield Text(result["unit"], style="dim")
    for note in _notes(result):
        yield Text(f"· {note}", style="yellow")


def run(options: CompareOptions) -> int:
    """Compare, write and print; exit status 0. Raises ConfigError if the two cannot be compared."""
    try:
        comparison = compare_sides(options)
        out = options.out or options.outputs / "compare" / f"{comparison['a']['name']}_{comparison['b']['name']}"
        write(comparison, out)
        evidence = compare_evidence(options, comparison, HEADERS, [*_cells(comparison)], _notes(comparison))
        write_page(evidence, out)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    terminal = console()
    for part in renderables(comparison, terminal.width):
        terminal.print(part)
    terminal.print(f"\n{out}/index.html, comparison.{{json,md}}, contact_sheet.png", soft_wrap=True)
    return 0


main = Command(CompareOptions, run, resume_hint="what was measured is kept; run the same command again to resume")
