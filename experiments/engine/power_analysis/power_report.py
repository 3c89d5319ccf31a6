"""The answer of `pw power` for a terminal (`renderables`) and as JSON (`as_json`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import scipy
from rich import box
from rich.table import Table
from rich.text import Text

from benchmarks.metrics import METRICS, lookup
from experiments.engine.power_analysis.power_planner import Cost, MetricSpread, PowerOptions, PowerPlan, number_text
from experiments.engine.power_analysis.spread import (
    MAX_COUNT,
    control_variate_pays_from,
    prompts_for,
    purchases,
    seeds_for,
    smallest_difference,
)
from pw.io.progress import duration

PROMPTS = (25, 50, 100, 200, 400)
SEEDS = (1, 2, 3, 5, 10)


def renderables(answer: PowerPlan, width: int) -> Iterator[Any]:
    """The answer as rich objects: a summary, the grid, the differences of the paper, and their assumptions.

    width: of the terminal; metrics that do not fit beside each other get another table.
    """
    options, spreads, paper_spreads, cost = answer.options, answer.spreads, answer.paper_spreads, answer.cost
    yield Text(answer.title, style="bold")
    if spreads:
        yield Text(f"\n{_test_text(options, answer.primary, spreads)}")
        yield from _summary(options, spreads)
        yield from _grids(options, spreads, cost, "smallest difference that is shown, measured spread", width)
        yield Text(_precision_text(spreads), style="dim")
        entry = _primary(answer)
        if entry is not None and cost is not None and options.seeds > 1:
            yield Text(f"\n{_advice(options, entry, cost)}")
    for note in answer.notes:
        yield Text(f"not planned: {note}", style="yellow")
    if paper_spreads:
        yield Text(f"\nThe paper's {answer.paper_name}. {_test_text(options, None, paper_spreads)}")
        yield Text(
            f"ASSUMED spreads, since the paper prints none: a correlation of {options.correlation:g} between arms over "
            f"videos, and between seeds {options.seed_ratio:g} of the spread between videos "
            "(correlation=…, seed_ratio=…, sd=…)",
            style="yellow",
        )
        yield from _summary(options, paper_spreads)
        paper_cost = cost if cost is not None and cost.is_real_scale else None
        yield from _grids(options, paper_spreads, paper_cost, "smallest difference, ASSUMED spread", width)
        if answer.steps:
            yield _paper_table(options, answer.steps)
    for note in answer.paper_notes:
        yield Text(f"not planned: {note}", style="yellow")
    if spreads or paper_spreads:
        yield Text(
            "† one seed: about two fixed checkpoints over prompts, not about their methods",
            style="dim",
        )
    if cost is not None:
        yield Text(f"cost: {cost.basis}", style="dim")


def _test_text(options: PowerOptions, primary: str | None, spreads: Sequence[MetricSpread]) -> str:
    secondary = max((entry.level.metrics for entry in spreads if entry.name != primary), default=0)
    metrics = f"Holm over {secondary} metric{'s' if secondary > 1 else ''}"
    if primary is not None:
        rest = f", the others only if it is shown, by {metrics}" if secondary else ""
        metrics = f"{lookup(primary).header}, the primary metric, alone{rest}"
    return (
        f"Shown with {100 * options.power:g} % power at a two-sided {100 * options.alpha:g} %: {metrics}; paired t "
        "over seeds."
    )


def _primary(answer: PowerPlan) -> MetricSpread | None:
    return next((entry for entry in answer.spreads if entry.name == answer.primary), None)


def _advice(options: PowerOptions, entry: MetricSpread, cost: Cost) -> str:
    """Text on the sources of variance of the primary metric, and on how to show a smaller difference."""
    n, m = options.prompts, options.seeds
    share = entry.spread.share_of_videos(n)
    source = "the clips' share of its variance is unknown (they are not on disk, or not small)"
    if share is not None:
        source = f"at {n} clips {100 * share:.0f} % of the variance of a difference comes from the clips"
    offers = purchases(entry.spread, n, m, entry.level, cost.seconds)
    seconds = {offer["what"]: offer["seconds"] for offer in offers}
    prices = {what: f" (+{duration(extra)})" if extra else "" for what, extra in seconds.items()}
    texts = [f"{offer['what']} {number_text(offer['shown'])}{prices[offer['what']]}" for offer in offers]
    current = smallest_difference(entry.spread, n, m, entry.level) or 0.0
    gains = {offer["what"]: current - offer["shown"] for offer in offers if offer["shown"] is not None}
    best = max(gains, key=lambda what: gains[what])
    costly = [what for what in gains if seconds[what]]
    best_rate = max(costly, key=lambda what: gains[what] / seconds[what], default=best)
    advice = (
        f"{entry.header}, the primary metric: {source}. {n} × {m} shows {number_text(current)}; {', '.join(texts)}. "
        f"Largest gain: {best}{'' if best_rate == best else f'; per time: {best_rate}'}."
    )
    pays_from = control_variate_pays_from(m, entry.level.alpha)
    if share is None or pays_from is None:
        return advice
    verdict = "could pay" if share > pays_from else "does not pay"
    return (
        f"{advice} A control variate of the clips, fitted on {m} seeds, {verdict}: it explains {100 * share:.0f} % at "
        f"best, and must explain {100 * pays_from:.0f} % to narrow the interval."
    )


def _precision_text(spreads: Sequence[MetricSpread]) -> str:
    chi2 = scipy.stats.chi2
    df = min(entry.spread.df for entry in spreads)
    low, high = math.sqrt(df / chi2.ppf(0.975, df)), math.sqrt(df / chi2.ppf(0.025, df))
    return (
        f"The spread between seeds rests on {df} degrees of freedom: the true smallest difference is {low:.1f} to "
        f"{high:.1f} times what is printed (95 %)."
    )


def _table(text_headers: Sequence[str], number_headers: Sequence[str], title: str | None = None) -> Table:
    """A table without rows: left-aligned columns of text, then right-aligned columns of numbers."""
    table = Table(title=title, title_justify="left", title_style="dim", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in text_headers:
        table.add_column(header, overflow="fold")
    for header in number_headers:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _summary(options: PowerOptions, spreads: Sequence[MetricSpread]) -> Iterator[Table | Text]:
    """A row for each metric, and where the spreads are from."""
    n, m = options.prompts, options.seeds
    needs = (f"seeds,\n{n}\nprompts", f"prompts,\n{m} seed{'s' if m > 1 else '†'}")
    table = _table(["metric"], ["mean", "sd of\nseeds", "sd of\nvideos", f"shown by\n{n} × {m}", "to\nshow", *needs])
    for entry in spreads:
        spread, level = entry.spread, entry.level
        prompts = prompts_for(spread, m, entry.target, level)
        table.add_row(
            entry.header,
            number_text(entry.mean),
            number_text(spread.seed),
            "of the\nset" if spread.video is None else number_text(spread.video),
            _difference_text(entry, n, m),
            number_text(entry.target),
            _count(seeds_for(spread, n, entry.target, level)),
            "only\nseeds" if prompts is None else str(prompts),
        )
    yield table
    headers: dict[str, list[str]] = {}
    for entry in spreads:
        headers.setdefault(entry.spread.source, []).append(entry.header)
    for source, of in headers.items():
        yield Text(f"spread of {', '.join(of)}: {source}", style="dim")


def _designs(options: PowerOptions) -> list[tuple[int, int]]:
    """The (prompts, seeds) of the grid, with the requested design."""
    prompts = sorted({*PROMPTS, options.prompts})
    return [(n, m) for m in sorted({*SEEDS, options.seeds}) for n in prompts]


def _grids(
    options: PowerOptions, spreads: Sequence[MetricSpread], cost: Cost | None, title: str, width: int
) -> Iterator[Table]:
    """The grid, as several tables where the metrics do not fit beside each other."""
    room = width - 28  # seeds, prompts, cost and margins
    widths = [max(8, *map(len, entry.header.split(" "))) + 2 for entry in spreads]
    parts, used = [[]], 0
    for entry, size in zip(spreads, widths, strict=True):
        if parts[-1] and used + size > room:
            parts.append([])
            used = 0
        parts[-1].append(entry)
        used += size
    for i, part in enumerate(parts):
        yield _grid(options, part, cost, f"{title}, continued" if i else title)


def _grid(options: PowerOptions, spreads: Sequence[MetricSpread], cost: Cost | None, title: str) -> Table:
    table = _table(
        [], ["seeds", "prompts", *(k.header.replace(" ", "\n") for k in spreads), *(["cost"] if cost else [])], title
    )
    for m, designs in groupby(_designs(options), key=lambda design: design[1]):
        label = "1†" if m == 1 else str(m)
        for n, _ in designs:
            is_requested = (n, m) == (options.prompts, options.seeds)
            costs = [duration(cost.seconds(n, m))] if cost else []
            style = "bold" if is_requested else "dim" if m == 1 else ""
            table.add_row(label, str(n), *(_difference_text(entry, n, m) for entry in spreads), *costs, style=style)
            label = ""
        table.add_section()
    return table


def _paper_table(options: PowerOptions, steps: Sequence[Mapping[str, Any]]) -> Table:
    n, m = options.prompts, options.seeds
    headers = ["printed", f"shown by\n{n} × 1†", "needs\nprompts\n× 1†"]
    headers += [f"shown by\n{n} × {m}"] if m > 1 else []
    title = "differences printed in the paper, and what can be shown"
    table = _table(["step", "metric"], [*headers, f"needs\nseeds, {n}\nprompts"], title)

    def bound_text(bound: float | None, diff: float) -> str:
        return f"{number_text(bound)} {'✓' if bound is not None and abs(diff) >= bound else '✗'}"

    for label, step_rows in groupby(steps, key=lambda step: step["step"]):
        for index, step in enumerate(step_rows):
            diff = step["diff"]
            table.add_row(
                "" if index else label,
                step["header"],
                f"{'+' if diff > 0 else '−' if diff < 0 else ''}{abs(diff):.4g}",
                bound_text(step["shown_by_checkpoints"], diff),
                _count(step["prompts_by_checkpoints"]),
                *([bound_text(step["shown"], diff)] if m > 1 else []),
                _count(step["seeds_needed"]),
            )
        table.add_section()
    return table


def _difference_text(entry: MetricSpread, prompts: int, seeds: int) -> str:
    """The smallest difference as text; "> 100" if it exceeds the range of the metric."""
    value, metric = smallest_difference(entry.spread, prompts, seeds, entry.level), METRICS.get(entry.name)
    is_bounded = metric is not None and (metric.scale == "0-100" or metric.printed == 100)
    return "> 100" if is_bounded and value is not None and value > 100 else number_text(value)


def _count(value: int | None) -> str:
    return f"> {MAX_COUNT}" if value is None else str(value)


def as_json(answer: PowerPlan) -> dict[str, Any]:
    """The answer as JSON data: spreads, targets, the grid of both blocks, the steps of the paper, the costs."""

    def block(spreads: Sequence[MetricSpread]) -> dict[str, Any]:
        grid = [
            {"prompts": n, "seeds": m, **{k.name: smallest_difference(k.spread, n, m, k.level) for k in spreads}}
            for n, m in _designs(answer.options)
        ]
        return {"metrics": [asdict(entry) for entry in spreads], "grid": grid}

    n, entry, cost = answer.options.prompts, _primary(answer), answer.cost
    offers = []
    if entry is not None and cost is not None:
        offers = purchases(entry.spread, n, max(2, answer.options.seeds), entry.level, cost.seconds)
    return {
        "title": answer.title,
        "request": asdict(answer.options),
        "primary": answer.primary,
        "share_of_clips": None if entry is None else entry.spread.share_of_videos(n),
        "buys": offers,
        "measured": block(answer.spreads),
        "assumed": block(answer.paper_spreads),
        "paper": answer.paper_name,
        "steps": answer.steps,
        "cost": None if cost is None else asdict(cost),
        "notes": [*answer.notes, *answer.paper_notes],
    }
