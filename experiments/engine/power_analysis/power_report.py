"""The answer of `pw power` for a terminal, and as plain data."""

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
from experiments.engine.power_analysis.power_planner import Cost, Known, PowerOptions, PowerPlan, number_text
from experiments.engine.power_analysis.spread import (
    MOST,
    control_variate_pays_from,
    prompts_for,
    purchases,
    seeds_for,
    smallest,
)
from pw.io.progress import duration

PROMPTS = (25, 50, 100, 200, 400)
SEEDS = (1, 2, 3, 5, 10)


def rendered(answer: PowerPlan) -> Iterator[Any]:
    """The answer for a terminal: a summary, the grid, the paper's differences, and what all of it rests on."""
    options, known, of_paper, cost = answer.options, answer.known, answer.paper_known, answer.cost
    yield Text(answer.title, style="bold")
    if known:
        yield Text(f"\n{_promise(options, answer.primary, known)}")
        yield _summary(options, known)
        yield _grid(options, known, cost, "smallest difference that is shown, measured spread")
        yield Text(_certainty(known), style="dim")
        entry = _primary(answer)
        if entry is not None and cost is not None and options.seeds > 1:
            yield Text(f"\n{_advice(options, entry, cost)}")
    for note in answer.notes:
        yield Text(f"not planned: {note}", style="yellow")
    if of_paper:
        yield Text(f"\nThe paper's {answer.paper_name}. {_promise(options, None, of_paper)}")
        yield Text(
            f"ASSUMED spreads, since the paper prints none: a correlation of {options.correlation:g} between arms over "
            f"videos, and between seeds {options.seed_ratio:g} of the spread between videos "
            "(correlation=…, seed_ratio=…, sd=…)",
            style="yellow",
        )
        yield _summary(options, of_paper)
        of_paper_cost = cost if cost is not None and cost.is_real_scale else None
        yield _grid(options, of_paper, of_paper_cost, "smallest difference, ASSUMED spread")
        if answer.steps:
            yield _paper_table(options, answer.steps)
    for note in answer.paper_notes:
        yield Text(f"not planned: {note}", style="yellow")
    if known or of_paper:
        yield Text(
            "† one seed: what is shown of two given checkpoints over prompts, nothing of the methods they stand for",
            style="dim",
        )
    if cost is not None:
        yield Text(f"cost: {cost.basis}", style="dim")


def _promise(options: PowerOptions, primary: str | None, known: Sequence[Known]) -> str:
    behind = max((entry.level.metrics for entry in known if entry.name != primary), default=0)
    over = f"Holm over {behind} metric{'s' if behind > 1 else ''}"
    if primary is not None:
        others = f", the others behind it, where it is shown too, by {over}" if behind else ""
        over = f"{lookup(primary).header}, the primary metric, alone{others}"
    return (
        f"Shown with {100 * options.power:g} % power at a two-sided {100 * options.alpha:g} %: {over}; paired t over "
        "seeds."
    )


def _primary(answer: PowerPlan) -> Known | None:
    return next((entry for entry in answer.known if entry.name == answer.primary), None)


def _advice(options: PowerOptions, entry: Known, cost: Cost) -> str:
    """Where the primary metric's variance comes from, and what makes its smallest difference smaller."""
    n, m = options.prompts, options.seeds
    share = entry.spread.share_of_videos(n)
    whose = "what the clips bring to its variance is not known (they are not on disk, or not small)"
    if share is not None:
        whose = f"at {n} clips {100 * share:.0f} % of the variance of a difference is theirs, the rest the trainings'"
    bought = purchases(entry.spread, n, m, entry.level, cost.seconds)
    seconds = {one["what"]: one["seconds"] for one in bought}
    prices = {what: f" (+{duration(spent)})" if spent else "" for what, spent in seconds.items()}
    shown = [f"{one['what']} {number_text(one['shown'])}{prices[one['what']]}" for one in bought]
    now = smallest(entry.spread, n, m, entry.level) or 0.0
    gains = {one["what"]: now - one["shown"] for one in bought if one["shown"] is not None}
    most = max(gains, key=lambda what: gains[what])
    by_time = max((what for what in gains if seconds[what]), key=lambda what: gains[what] / seconds[what], default=most)
    advice = (
        f"{entry.header}, the primary metric: {whose}. {n} × {m} shows {number_text(now)}; {', '.join(shown)}. "
        f"Most is bought by {most}{'' if by_time == most else f', for its time by {by_time}'}."
    )
    pays_from = control_variate_pays_from(m, entry.level.alpha)
    if share is None or pays_from is None:
        return advice
    could = "could pay" if share > pays_from else "does not pay"
    return (
        f"{advice} A control variate of the clips, fitted on {m} seeds, {could}: it explains {100 * share:.0f} % at "
        f"best, and narrows the interval from {100 * pays_from:.0f} % on."
    )


def _certainty(known: Sequence[Known]) -> str:
    chi2 = scipy.stats.chi2
    df = min(entry.spread.df for entry in known)
    low, high = math.sqrt(df / chi2.ppf(0.975, df)), math.sqrt(df / chi2.ppf(0.025, df))
    return (
        f"The spread between seeds rests on {df} degrees of freedom: the true smallest difference is {low:.1f} to "
        f"{high:.1f} times what is printed (95 %)."
    )


def _table(words: Sequence[str], numbers: Sequence[str], title: str | None = None) -> Table:
    """A table without rows, its columns of words before those of numbers."""
    table = Table(title=title, title_justify="left", title_style="dim", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in words:
        table.add_column(head)
    for head in numbers:
        table.add_column(head, justify="right")
    return table


def _summary(options: PowerOptions, known: Sequence[Known]) -> Table:
    n, m = options.prompts, options.seeds
    needs = (f"seeds,\n{n} prompts", f"prompts,\n{m} seed{'s' if m > 1 else '†'}")
    table = _table(["metric"], ["mean", "sd of seeds", "sd of videos", f"shown by\n{n} × {m}", "to show", *needs])
    table.add_column("spread from", overflow="fold", style="dim")
    for entry in known:
        spread, level = entry.spread, entry.level
        prompts = prompts_for(spread, m, entry.target, level)
        table.add_row(
            entry.header,
            number_text(entry.mean),
            number_text(spread.seed),
            "of the set" if spread.video is None else number_text(spread.video),
            _shown(entry, n, m),
            number_text(entry.target),
            _count(seeds_for(spread, n, entry.target, level)),
            "only seeds" if prompts is None else str(prompts),
            spread.source,
        )
    return table


def _designs(options: PowerOptions) -> list[tuple[int, int]]:
    """The (prompts, seeds) of the grid, the asked-for one among them."""
    prompts = sorted({*PROMPTS, options.prompts})
    return [(n, m) for m in sorted({*SEEDS, options.seeds}) for n in prompts]


def _grid(options: PowerOptions, known: Sequence[Known], cost: Cost | None, title: str) -> Table:
    table = _table([], ["seeds", "prompts", *(k.header for k in known), *(["cost"] if cost else [])], title)
    for m, designs in groupby(_designs(options), key=lambda design: design[1]):
        head = "1†" if m == 1 else str(m)
        for n, _ in designs:
            is_asked = (n, m) == (options.prompts, options.seeds)
            costs = [duration(cost.seconds(n, m))] if cost else []
            style = "bold" if is_asked else "dim" if m == 1 else ""
            table.add_row(head, str(n), *(_shown(entry, n, m) for entry in known), *costs, style=style)
            head = ""
        table.add_section()
    return table


def _paper_table(options: PowerOptions, steps: Sequence[Mapping[str, Any]]) -> Table:
    n, m = options.prompts, options.seeds
    heads = ["printed", f"shown by\n{n} × 1†", "needs\nprompts × 1†"]
    heads += [f"shown by\n{n} × {m}"] if m > 1 else []
    title = "the paper's own differences beside what can be shown"
    table = _table(["step", "metric"], [*heads, f"needs seeds,\n{n} prompts"], title)

    def judged(bound: float | None, diff: float) -> str:
        return f"{number_text(bound)} {'✓' if bound is not None and abs(diff) >= bound else '✗'}"

    for head, of_step in groupby(steps, key=lambda step: step["step"]):
        for place, step in enumerate(of_step):
            diff = step["diff"]
            table.add_row(
                "" if place else head,
                step["header"],
                f"{'+' if diff > 0 else '−' if diff < 0 else ''}{abs(diff):.4g}",
                judged(step["shown_by_checkpoints"], diff),
                _count(step["prompts_by_checkpoints"]),
                *([judged(step["shown"], diff)] if m > 1 else []),
                _count(step["seeds_needed"]),
            )
        table.add_section()
    return table


def _shown(entry: Known, prompts: int, seeds: int) -> str:
    """The smallest difference, or that it is more than the metric can differ by."""
    value, metric = smallest(entry.spread, prompts, seeds, entry.level), METRICS.get(entry.name)
    is_bounded = metric is not None and (metric.scale == "0-100" or metric.printed == 100)
    return "> 100" if is_bounded and value is not None and value > 100 else number_text(value)


def _count(value: int | None) -> str:
    return f"> {MOST}" if value is None else str(value)


def as_json(answer: PowerPlan) -> dict[str, Any]:
    """The answer as plain data: spreads, targets, the grid of both blocks, the paper's steps, the costs."""

    def block(known: Sequence[Known]) -> dict[str, Any]:
        grid = [
            {"prompts": n, "seeds": m, **{k.name: smallest(k.spread, n, m, k.level) for k in known}}
            for n, m in _designs(answer.options)
        ]
        return {"metrics": [asdict(entry) for entry in known], "grid": grid}

    n, entry, cost = answer.options.prompts, _primary(answer), answer.cost
    bought = []
    if entry is not None and cost is not None:
        bought = purchases(entry.spread, n, max(2, answer.options.seeds), entry.level, cost.seconds)
    return {
        "title": answer.title,
        "request": asdict(answer.options),
        "primary": answer.primary,
        "share_of_clips": None if entry is None else entry.spread.share_of_videos(n),
        "buys": bought,
        "measured": block(answer.known),
        "assumed": block(answer.paper_known),
        "paper": answer.paper_name,
        "steps": answer.steps,
        "cost": None if cost is None else asdict(cost),
        "notes": [*answer.notes, *answer.paper_notes],
    }
