"""The answer of `pw power` for a terminal, and as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.metrics import METRICS, lookup
from experiments.engine.power_analysis.power_options import PowerOptions
from experiments.engine.power_analysis.power_plan import Cost, Known, PowerPlan, Step
from experiments.engine.power_analysis.spread import (
    MOST,
    Purchase,
    control_variate_pays_from,
    number_text,
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
    from rich.text import Text

    options = answer.options
    yield Text(f"{answer.title}", style="bold")
    if answer.known:
        yield Text(f"\n{_promise(options, answer.primary, answer.known)}")
        yield _summary(options, answer.known)
        yield _grid(options, answer.known, answer.cost, "smallest difference that is shown, measured spread")
        yield Text(_certainty(answer.known), style="dim")
        if (entry := _primary(answer)) is not None and options.seeds > 1:
            yield Text(f"\n{_advice(options, entry, answer.cost)}")
    for note in answer.notes:
        yield Text(f"not planned: {note}", style="yellow")
    if answer.paper_known:
        yield Text(f"\nThe paper's {answer.paper_name}. {_promise(options, None, answer.paper_known)}")
        yield Text(
            f"ASSUMED spreads, since the paper prints none: a correlation of {options.correlation:g} between arms over "
            f"videos, and between seeds {options.seed_ratio:g} of the spread between videos "
            "(correlation=…, seed_ratio=…, sd=…)",
            style="yellow",
        )
        yield _summary(options, answer.paper_known)
        cost = answer.cost if answer.cost is None or answer.cost.is_real_scale else None
        yield _grid(options, answer.paper_known, cost, "smallest difference, ASSUMED spread")
        if answer.steps:
            yield _paper_table(options, answer.steps)
    for note in answer.paper_notes:
        yield Text(f"not planned: {note}", style="yellow")
    if answer.known or answer.paper_known:
        yield Text(
            "† one seed: what is shown of two given checkpoints over prompts, nothing of the methods they stand for",
            style="dim",
        )
    if answer.cost is not None:
        yield Text(f"cost: {answer.cost.basis}", style="dim")


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


def _advice(options: PowerOptions, entry: Known, cost: Cost | None) -> str:
    """Where the primary metric's variance comes from, and what makes its smallest difference smaller."""
    n, m = options.prompts, options.seeds
    share = entry.spread.share_of_videos(n)
    whose = "what the clips bring to its variance is not known (they are not on disk, or not small)"
    if share is not None:
        whose = f"at {n} clips {100 * share:.0f} % of the variance of a difference is theirs, the rest the trainings'"
    bought = purchases(entry.spread, n, m, entry.level, None if cost is None else cost.seconds)
    bought_text = [f"{one.what} {number_text(one.shown)}{_price(one)}" for one in bought]
    able = [one for one in bought if one.shown is not None]
    now = smallest(entry.spread, n, m, entry.level)
    most = min(able, key=lambda one: one.shown or 0.0)
    advice = (
        f"{entry.header}, the primary metric: {whose}. {n} × {m} shows {number_text(now)}; {', '.join(bought_text)}."
    )
    advice += f" Most is bought by {most.what}"
    paid = {one: ((now or 0.0) - (one.shown or 0.0)) / one.seconds for one in able if one.seconds}
    by_time = max(paid, key=lambda one: paid[one], default=most)
    advice += "." if by_time is most else f", for its time by {by_time.what}."
    pays_from = control_variate_pays_from(m, entry.level.alpha)
    if share is None or pays_from is None:
        return advice
    could = "could pay" if share > pays_from else "does not pay"
    return (
        f"{advice} A control variate of the clips, fitted on {m} seeds, {could}: it explains {100 * share:.0f} % at "
        f"best, and narrows the interval from {100 * pays_from:.0f} % on."
    )


def _price(one: Purchase) -> str:
    return f" (+{duration(one.seconds)})" if one.seconds else ""


def _certainty(known: Sequence[Known]) -> str:
    from scipy.stats import chi2

    df = min(entry.spread.df for entry in known)
    low, high = math.sqrt(df / chi2.ppf(0.975, df)), math.sqrt(df / chi2.ppf(0.025, df))
    return (
        f"The spread between seeds rests on {df} degrees of freedom: the true smallest difference is {low:.1f} to "
        f"{high:.1f} times what is printed (95 %)."
    )


def _summary(options: PowerOptions, known: Sequence[Known]) -> Any:
    from rich import box
    from rich.table import Table

    n, m = options.prompts, options.seeds
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("metric")
    heads = ("mean", "sd of seeds", "sd of videos", f"shown by\n{n} × {m}", "to show", f"seeds,\n{n} prompts")
    for head in (*heads, f"prompts,\n{m} seed{'s' if m > 1 else '†'}"):
        table.add_column(head, justify="right")
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
            "only seeds" if prompts is None else _count(prompts),
            spread.source,
        )
    return table


def designs(options: PowerOptions) -> list[tuple[int, int]]:
    """The (prompts, seeds) of the grid, the asked-for one among them."""
    prompts = sorted({*PROMPTS, options.prompts})
    return [(n, m) for m in sorted({*SEEDS, options.seeds}) for n in prompts]


def _grid(options: PowerOptions, known: Sequence[Known], cost: Cost | None, title: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="dim", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("seeds", "prompts", *(entry.header for entry in known), *(["cost"] if cost else [])):
        table.add_column(head, justify="right")
    previous = None
    for n, m in designs(options):
        if previous not in (None, m):
            table.add_section()
        cells = [_shown(entry, n, m) for entry in known]
        asked = (n, m) == (options.prompts, options.seeds)
        table.add_row(
            ("1†" if m == 1 else str(m)) if previous != m else "",
            str(n),
            *cells,
            *([duration(cost.seconds(n, m))] if cost else []),
            style="bold" if asked else "dim" if m == 1 else "",
        )
        previous = m
    return table


def _paper_table(options: PowerOptions, steps: Sequence[Step]) -> Any:
    from rich import box
    from rich.table import Table

    n, m = options.prompts, options.seeds
    table = Table(
        title="the paper's own differences beside what can be shown",
        title_justify="left",
        title_style="dim",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for head, side in (("step", "left"), ("metric", "left"), ("printed", "right")):
        table.add_column(head, justify=side)
    heads = [f"shown by\n{n} × 1†", "needs\nprompts × 1†"]
    for head in (*heads, *([f"shown by\n{n} × {m}"] if m > 1 else []), f"needs seeds,\n{n} prompts"):
        table.add_column(head, justify="right")
    previous = None
    for step in steps:
        if previous not in (None, step.step):
            table.add_section()
        of_pair, of_method = (
            bound is not None and abs(step.diff) >= bound for bound in (step.shown_by_checkpoints, step.shown)
        )
        table.add_row(
            step.step if previous != step.step else "",
            step.header,
            f"{'+' if step.diff > 0 else '−' if step.diff < 0 else ''}{abs(step.diff):.4g}",
            f"{number_text(step.shown_by_checkpoints)} {'✓' if of_pair else '✗'}",
            _count(step.prompts_by_checkpoints),
            *([] if m == 1 else [f"{number_text(step.shown)} {'✓' if of_method else '✗'}"]),
            _count(step.seeds_needed),
        )
        previous = step.step
    return table


def as_json(answer: PowerPlan) -> dict[str, Any]:
    """The answer as plain data: spreads, targets, the grid of both blocks, the paper's steps, the costs."""

    def block(known: Sequence[Known]) -> dict[str, Any]:
        grid = [
            {"prompts": n, "seeds": m, **{k.name: smallest(k.spread, n, m, k.level) for k in known}}
            for n, m in designs(answer.options)
        ]
        return {"metrics": [asdict(entry) for entry in known], "grid": grid}

    options, entry = answer.options, _primary(answer)
    seconds = None if answer.cost is None else answer.cost.seconds
    n, m = options.prompts, max(2, options.seeds)
    bought = () if entry is None else purchases(entry.spread, n, m, entry.level, seconds)
    return {
        "title": answer.title,
        "request": asdict(options),
        "primary": answer.primary,
        "share_of_clips": None if entry is None else entry.spread.share_of_videos(n),
        "buys": [asdict(one) for one in bought],
        "measured": block(answer.known),
        "assumed": block(answer.paper_known),
        "paper": answer.paper_name,
        "steps": [asdict(step) for step in answer.steps],
        "cost": None if answer.cost is None else asdict(answer.cost),
        "notes": [*answer.notes, *answer.paper_notes],
    }


def _shown(entry: Known, prompts: int, seeds: int) -> str:
    """The smallest difference, or that it is more than the metric can differ by."""
    value, metric = smallest(entry.spread, prompts, seeds, entry.level), METRICS.get(entry.name)
    is_bounded = metric is not None and (metric.scale == "0-100" or metric.printed == 100)
    return "> 100" if is_bounded and value is not None and value > 100 else number_text(value)


def _count(value: int | None) -> str:
    return f"> {MOST}" if value is None else str(value)
