"""`pw compare a=… b=…`: two runs, or two folders of videos from any system, paired.

A run is named by the signature of its training or of its clips (`outputs/train`, `outputs/videos`), or by the first
digits of one; several, a=1c2d,9f00 b=…, are the seeds of one arm. Written to `outputs/compare/<a>_<b>/`:
comparison.json, comparison.md, contact_sheet.png.

With one seed the unit is the prompt (`benchmarks.stats.paired`), and the result is about these two sets of videos.
With several seeds the unit is the seed (`benchmarks.stats.comparison`), as in an ablation's table; only then has a
metric of the whole set an interval.
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
from benchmarks.stats.comparison import compare
from benchmarks.stats.paired import compare_videos
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
from experiments.engine.terminal import console
from pw.io.arguments import Command, ConfigError
from pw.io.files import write_atomically

WIDE = 118  # columns from which a verdict with its reason stands beside the numbers
HEADS = ("a", "b", "b − a", "95 % interval", "p, adjusted")

SideScores = Mapping[str, Mapping[int, Scores]]
"""Side, a or b -> seed -> its scores."""

Rows = dict[str, dict[str, Any]]
"""Metric -> plain values."""


def compare_sides(options: CompareOptions) -> dict[str, Any]:
    """The comparison, as in comparison.json. Raises ValueError (ConfigError) for what cannot be compared, saying why.

    a, b         name, folders by seed, and size of the videos -> their number
    unit         what the test is over (prompts or seeds), in words
    primary      the metric that was tested first and alone
    config       in which keys the two differ, a line each
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
    over = _over_seeds if len(pairs) > 1 else _over_prompts
    unsorted, left_out, primary = over(scores, names, options.primary)
    rows = {name: unsorted[name] for name in _in_order(unsorted, names)}
    if options.primary is not None and primary is None:
        notes.append(f"primary={options.primary}: has no test here, so all metrics are tested by Holm")
    notes += _without_score(options, names, rows, scores, notes)
    if not rows:
        raise ConfigError(f"nothing to compare: {'; '.join(notes) or 'the two have no score in common'}")
    sizes = [video_sizes(videos_of(s.first.path).values()) for s in (a, b)]
    notes += _different_sizes(*sizes)
    of_sides = {
        key: {"name": s.name, "folders": {seed: str(f.path) for seed, f in s.folders.items()}, "videos": size}
        for key, s, size in zip("ab", (a, b), sizes, strict=True)
    }
    return {
        **of_sides,
        "unit": _unit(scores, rows, a, b, primary),
        "primary": primary,
        "config": config_difference(*next(iter(pairs.values()))),
        "metrics": rows,
        "measured_by": next(iter(scores["a"].values())).depends,
        "left_out": left_out,
        "notes": notes,
    }


def _paired_folders(a: Side, b: Side) -> dict[int, tuple[Folder, Folder]]:
    """Seed of a -> the folders of the common evaluation seeds, or the only two whatever their seeds."""
    common = {seed: (a.folders[seed], b.folders[seed]) for seed in a.folders if seed in b.folders}
    if common:
        return common
    if len(a.folders) == len(b.folders) == 1 and (a.first.run is None or b.first.run is None):
        return {a.first.seed: (a.first, b.first)}
    raise ConfigError(
        f"a has the evaluation clips of seed {', '.join(map(str, a.folders))}, b of seed "
        f"{', '.join(map(str, b.folders))}: no clip is paired; sample one again with evaluation_seed=…"
    )


def _contract(scored: Scores) -> dict[str, Any]:
    """What must agree: protocols, settings and weights, and in a seed the clips that videos are measured against."""
    of_metrics = {name: {k: v for k, v in row.items() if k != "clips"} for name, row in scored.depends.items()}
    clips = [row["clips"] for row in scored.depends.values() if "clips" in row]
    return {"metrics": of_metrics, **({"clips": clips[0]} if clips else {})}


def _over_prompts(
    scores: SideScores, names: Sequence[str], wanted: str | None
) -> tuple[Rows, dict[str, Any], str | None]:
    """metric -> what is printed, of the one seed; what was left out; the primary metric."""
    a, b = (next(iter(scores[key].values())) for key in "ab")
    left, right = _by_metric(a), _by_metric(b)
    common = _in_order([name for name in left if name in right], names)
    rows: Rows = {}
    left_out: dict[str, Any] = {}
    primary = None
    if common:
        outcome = compare_videos(
            {m: left[m] for m in common}, {m: right[m] for m in common}, primary=_primary(wanted, common)
        )
        as_json, primary = outcome.as_json(), outcome.primary
        rows, left_out = as_json["metrics"], as_json["left_out"]
    for name in a.whole:
        if name in b.whole:
            untested = dict.fromkeys(("low", "high", "p", "p_adjusted")) | {"verdict": "not resolved"}
            rows[name] = {"a": a.whole[name], "b": b.whole[name], "diff": b.whole[name] - a.whole[name], **untested}
            rows[name] |= {"reason": "of the set: needs seeds", "diff_of": "value"}
    return rows, left_out, primary


def _over_seeds(
    scores: SideScores, names: Sequence[str], wanted: str | None
) -> tuple[Rows, dict[str, Any], str | None]:
    """As `_over_prompts`, over seeds: a seed's means are over the videos that both sides have."""
    means: dict[str, dict[int, dict[str, float | None]]] = {"a": {}, "b": {}}
    only: dict[str, dict[str, list[str]]] = {}
    for seed, a in scores["a"].items():
        b = scores["b"][seed]
        left, right = _by_metric(a), _by_metric(b)
        for key, one in (("a", a), ("b", b)):
            means[key][seed] = dict(one.whole)
        for name in left.keys() & right.keys():
            common = left[name].keys() & right[name].keys()
            for key, values in (("a", left[name]), ("b", right[name])):
                shared = [values[video] for video in sorted(common or values)]
                means[key][seed][name] = fmean(shared) if shared else None
                alone = sorted(values.keys() - common) if common else []
                only.setdefault(name, {"a": [], "b": []})[key] += [f"{video} of seed {seed}" for video in alone]
    scored = _in_order({name for row in means["a"].values() for name in row}, names)
    compared = compare(means, primary=_primary(wanted, scored))
    of_a, of_b = compared.arms["a"], compared.arms["b"]
    rows = {
        name: {"a": of_a[name].mean, "b": of_b[name].mean, **asdict(row)}
        for name, row in compared.differences["b"].items()
        if name in of_a and name in of_b
    }
    left_out = {
        name: {f"only_{key}": len(row[key]) for key in "ab"} | {f"names_{key}": row[key] for key in "ab"}
        for name, row in only.items()
        if row["a"] or row["b"]
    }
    return rows, left_out, compared.primary


def _by_metric(scored: Scores) -> dict[str, dict[str, float]]:
    """Metric -> video -> value, of the metrics that are not of the folder as a whole."""
    names = dict.fromkeys(name for row in scored.rows.values() for name in row if name != "frames")
    return {name: scored.values(name) for name in names if name not in scored.whole}


def _primary(wanted: str | None, scored: Sequence[str]) -> str | None:
    """The metric that is tested first and alone, of those with a test: as asked for, else psd, else the first."""
    return wanted or ("psd" if "psd" in scored else next(iter(scored), None))


def _in_order(metrics: Iterable[str], names: Sequence[str]) -> list[str]:
    """Metrics in the order of `names`; others, which a scores file has, come last."""
    return sorted(metrics, key=lambda name: names.index(name) if name in names else len(names))


def _without_score(
    options: CompareOptions, names: Sequence[str], rows: Rows, scores: SideScores, notes: Sequence[str]
) -> list[str]:
    """The metrics that were asked for and are not compared, where nothing else says why."""
    missing = []
    for name in names if options.metrics else ():
        if name in rows or any(re.search(rf"\b{name}\b", note) for note in notes):
            continue
        sides = [k for k in "ab" if not all(one.values(name) or name in one.whole for one in scores[k].values())]
        files = {"a": options.a_scores, "b": options.b_scores}
        where = " and ".join(str(files[key] or key) for key in sides) or "the two together"
        missing.append(f"{name}: not compared, there is no score of it in {where}")
    return missing


def _unit(scores: SideScores, rows: Rows, a: Side, b: Side, primary: str | None) -> str:
    n = len(scores["a"])
    over = "Holm over the metrics" if primary is None else f"{primary} first, the others by Holm behind it"
    over = over if len(rows) > 1 else "one metric"
    if n > 1:
        trainings = {f.run.training_signature for s in (a, b) for f in s.folders.values() if f.run is not None}
        several = f"{len(trainings)} trainings" if len(trainings) > 2 else "evaluation seeds of the same two trainings"
        return f"paired by seed: Student's t over {n} seeds ({several}), {over}"
    designs = {row.get("design") for row in rows.values()} - {None}
    if designs == {"independent"}:
        return f"not paired, for no two videos share a name: Welch's t over prompts, {over}"
    return (
        f"paired by video name: bootstrap (BCa) interval and sign-flip test over prompts, {over}. Shown "
        "of these two sets of videos; of another training it says nothing (that takes seeds: make power)"
    )


def _different_sizes(a: Mapping[str, int], b: Mapping[str, int]) -> list[str]:
    if set(a) == set(b):
        return []
    texts = [", ".join(f"{text} ({n} video{'s' if n > 1 else ''})" for text, n in sizes.items()) for sizes in (a, b)]
    return [
        f"a has {texts[0]}; b has {texts[1]}. Metrics see resolution and length beside quality (mHD falls as pixels "
        "are added), so a verdict is of both together"
    ]


def write(result: Mapping[str, Any], out: Path) -> None:
    """comparison.json, comparison.md and contact_sheet.png."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "comparison.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_atomically(out / "comparison.md", markdown(result))
    a, b = (result[key]["folders"] for key in "ab")
    common = next((seed for seed in a if seed in b), None)
    shown = [folders[next(iter(folders)) if common is None else common] for folders in (a, b)]
    labelled = [(result[key]["name"], videos_of(Path(folder))) for key, folder in zip("ab", shown, strict=True)]
    side_by_side(*labelled, out / "contact_sheet.png")


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
    """The notes, after the videos that have no partner."""
    unpaired = []
    for name, row in result["left_out"].items():
        for key in "ab":
            if n := row[f"only_{key}"]:
                listed = ", ".join(row[f"names_{key}"][:5])
                unpaired.append(f"{name}: {n} videos only of {key}, not compared: {listed}{' …' if n > 5 else ''}")
    return [*unpaired, *result["notes"]]


def markdown(result: Mapping[str, Any]) -> str:
    """comparison.md."""
    lines = [f"# {result['a']['name']} (a) and {result['b']['name']} (b)", ""]
    lines += ["b is judged against a.", "", *(f"- {line}" for line in result["config"]), ""]
    lines += [f"| metric | {' | '.join(HEADS)} | verdict |", f"|---|{'--:|' * len(HEADS)}---|"]
    for header, cells, verdict in _cells(result):
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in (header, *cells, verdict))} |")
    lines += ["", f"{result['unit']}.", "", *(f"- {note}" for note in _notes(result))]
    return "\n".join([*lines, "", "![a above, b below](contact_sheet.png)", ""])


def rendered(result: Mapping[str, Any], width: int) -> Iterator[Any]:
    """The comparison for a terminal; in a narrow one the verdicts have lines of their own, below the numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    yield Text(f"a  {result['a']['name']}\nb  {result['b']['name']}, judged against a", style="bold")
    for line in result["config"]:
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
    yield Text(result["unit"], style="dim")
    for note in _notes(result):
        yield Text(f"· {note}", style="yellow")


def run(options: CompareOptions) -> int:
    """Exit status: 0 compared. Raises ConfigError for what cannot be compared."""
    try:
        comparison = compare_sides(options)
        out = options.out or options.outputs / "compare" / f"{comparison['a']['name']}_{comparison['b']['name']}"
        write(comparison, out)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    terminal = console()
    for part in rendered(comparison, terminal.width):
        terminal.print(part)
    terminal.print(f"\n{out}/comparison.{{json,md}}, contact_sheet.png", soft_wrap=True)
    return 0


main = Command(CompareOptions, run, resume_hint="what was measured is kept, the same command goes on with the rest")
