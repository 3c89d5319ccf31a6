"""Rows, cells and footers of the printed tables, without markup; the input is the result dictionary of `write`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.metrics import Metric, lookup
from benchmarks.paper import COLUMNS, load
from benchmarks.report.costs import COST_KEYS, speed_ups
from benchmarks.report.grid import PAPER, Cell, Column, Digits, Grid
from benchmarks.stats.comparison import LEVEL
from pw.io.arguments import ConfigError, did_you_mean

Result = Mapping[str, Any]
SIGNS = {"holds": "✓", "refuted": "✗", "not resolved": "·", "not run": "–"}


def title(result: Result) -> str:
    return str(result.get("title") or result["ablation"])


def metrics(result: Result) -> list[str]:
    """The metrics of all rows, in the order of first appearance."""
    rows = [*(arm["metrics"] for arm in result["arms"]), *(row for _, _, row in references(result))]
    return list(dict.fromkeys(metric for row in rows for metric in row))


def references(result: Result) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(key, label, metric -> estimate) of the rows below the arms; a missing row has no estimates.

    The ceiling is the many-step solution. The floor compares real clips with other real clips; it is a bound only if
    both show the same structure, because a model that gets the reference's anchors may be closer to the reference.
    """
    floor = "real vs real (floor)" if result.get("floor_is_bound", True) else "other real clips (no bound)"
    labels = {"ceiling": f"{result.get('ceiling_steps', 48)}-step ceiling", "floor": floor}
    return [(key, label, result.get(key) or {}) for key, label in labels.items()]


def primary_metric(result: Result) -> str | None:
    """The main metric of the plots: the ablation's primary metric, else the first of any arm; None without scores."""
    names = metrics({**result, "ceiling": {}, "floor": {}})
    primary = result.get("primary", "psd")
    return primary if primary in names else next(iter(names), None)


def compared_with(result: Result) -> str:
    """What an arm is compared with, as text: "the arm above", or the name of the first arm."""
    if text := result.get("compared_with"):
        return text
    across = result.get("across")
    suffix = f" at the same {across.rpartition('.')[2]}" if across else ""
    if result.get("versus", "above") == "above":
        return f"the arm above{suffix}"
    first = result["arms"][0]["name"]
    return f"{first.rpartition('@')[0]}{suffix}" if across else first


def shown_arms(result: Result) -> list[tuple[str, Mapping[str, Any]]]:
    """(label, arm) in plot order: line by line along a curve, else as in the table."""
    curve = result.get("curve")
    if not curve:
        return [(arm["name"], arm) for arm in result["arms"]]
    arms = {arm["name"]: arm for arm in result["arms"]}
    return [
        (f"{line['name']}@{number:g}" if line["name"] else f"{curve['label']} {number:g}", arms[name])
        for line in curve["lines"]
        for number, name in line["points"]
    ]


def frame(result: Result, name: str) -> tuple[float, float]:
    """The range of a metric in a plot; at least one arm must have the metric.

    It holds the intervals of all arms, and the ceiling, the floor and the ideal value 1 if each at most doubles it.
    """
    low, high = _ends([arm["metrics"][name] for arm in result["arms"] if name in arm["metrics"]])
    bounds = [row[name] for _, _, row in references(result) if name in row]
    bounds += [{"mean": 1.0}] * (lookup(name).direction == "one")
    ranges = [_ends([{"mean": low}, {"mean": high}, row]) for row in bounds]
    close_ranges = [ends for ends in ranges if low == high or ends[1] - ends[0] <= 2 * (high - low)]
    return min([low, *(ends[0] for ends in close_ranges)]), max([high, *(ends[1] for ends in close_ranges)])


def digits_of(result: Result, metric: str) -> Digits:
    """Number format of a metric's scores, from the arms; floor and ceiling use the same."""
    arms = [arm["metrics"][metric] for arm in result["arms"] if metric in arm["metrics"]]
    return _digits(arms or [row[metric] for _, _, row in references(result) if metric in row])


def half_width(row: Mapping[str, Any]) -> float | None:
    return None if row.get("low") is None or row.get("high") is None else (row["high"] - row["low"]) / 2


def scores(result: Result, *, marks: bool) -> Grid:
    """Arms, ceiling and floor: mean ± half-width of every metric, the number of seeds, the probe.

    marks: whether to show the verdict of its comparison with each score.
    """
    names = metrics(result)
    rows = [
        *((arm["name"], arm["metrics"]) for arm in result["arms"]),
        *((label, row) for _, label, row in references(result) if row),
    ]
    digits = {name: digits_of(result, name) for name in names}
    best = result.get("best") or {}
    arms = {arm["name"]: arm for arm in result["arms"]}

    def cell(label: str, row: Mapping[str, Any], name: str) -> Cell:
        if name not in row:
            return Cell()
        arm, mean = arms.get(label, {}), row[name]["mean"]
        verdict = arm.get("vs_previous", {}).get(name, {}).get("verdict") if marks else None
        text, detail = digits[name].interval(mean, half_width(row[name])), _score_detail(name, row, arm, digits[name])
        return Cell(text, best.get(name) == label, verdict, value=mean, detail=detail)

    columns = [Column("scores", heading(lookup(name), digits[name]), name) for name in names]
    grid = Grid(
        (*columns, Column("scores", "seeds", "seeds")),
        tuple((label, (*(cell(label, row, n) for n in names), _seeds(row))) for label, row in rows),
        len(result["arms"]),
    )
    grid = grid.join(_vote_shares(result, marks=marks)) if _has_votes(result) else grid
    return grid.join(_probes(result)) if any(arm.get("probe") for arm in result["arms"]) else grid


def _score_detail(name: str, row: Mapping[str, Any], arm: Mapping[str, Any], digits: Digits) -> str:
    """A score in words: its interval, its seeds, and what it was compared with. arm: its entry, {} for a reference."""
    more = replace(digits, decimals=digits.decimals + 1)
    seeds = (arm.get("values") or {}).get(name, {}).items()
    by_seed = ", ".join(f"{seed}: {more.text(value)}" for seed, value in seeds)
    text = _interval_text(row[name]["mean"], row[name], more) + (f"; seeds {by_seed}" if by_seed else "")
    difference = arm.get("vs_previous", {}).get(name)
    return f"{text}; {_difference_detail(difference, digits)}" if difference else text


def _difference_detail(row: Mapping[str, Any], digits: Digits) -> str:
    text = f"{row['verdict']}, compared with {row.get('versus') or 'the arm above'}"
    if row["diff"] is None:
        return text
    is_log = row["diff_of"] == "abs_log"
    more = Digits(0, 4) if is_log else replace(digits, decimals=digits.decimals + 1)
    p = f", {p_text(row['p'])}, adjusted {p_text(row['p_adjusted'])}" if row["p"] is not None else ""
    return f"{text}: difference{' of |ln|' if is_log else ''} {_interval_text(row['diff'], row, more)}{p}"


def _interval_text(middle: float, row: Mapping[str, Any], digits: Digits) -> str:
    n, text = f", n={row['n']}", digits.text(middle)
    if row.get("low") is None:
        return text + n
    return f"{text}, 95 % interval {digits.text(row['low'])} to {digits.text(row['high'])}{n}"


def differences(result: Result) -> Grid:
    """Each arm minus its reference arm: difference ± half-width, verdict, adjusted p."""
    arms = [arm for arm in result["arms"] if arm["vs_previous"]]
    names = [name for name in metrics(result) if any(name in arm["vs_previous"] for arm in arms)]
    columns, cells = [], {arm["name"]: [] for arm in arms}
    primary = result.get("primary")
    # the other metrics of an arm are tested only if its primary metric shows a difference
    primary_p = {arm["name"]: arm["vs_previous"].get(primary, {}).get("p") for arm in arms}
    untested = {name for name, p in primary_p.items() if p is not None and p >= 1 - LEVEL}
    for name in names:
        comparisons = {a["name"]: a["vs_previous"][name] for a in arms if name in a["vs_previous"]}
        diff_of = next(iter(comparisons.values()))["diff_of"]
        exponent = 0 if diff_of == "abs_log" else digits_of(result, name).exponent
        estimates = [{**d, "mean": d["diff"]} for d in comparisons.values() if d["diff"] is not None]
        digits = _digits(estimates, exponent)
        header = f"|ln {lookup(name).header}|\u00a0↓" if diff_of == "abs_log" else heading(lookup(name), digits)
        columns.append(Column(f"difference to {compared_with(result)}", f"Δ{header}", name))
        for arm, row in cells.items():
            row.append(_difference(comparisons.get(arm), digits, tested=name == primary or arm not in untested))
    grid = Grid(tuple(columns), tuple((_row_label(result, arm), tuple(cells[arm["name"]])) for arm in arms))
    grid = grid.join(speed_ups(result, [(_row_label(result, a), a["name"], _reference(result, a)) for a in arms]))
    return grid.join(_vote_differences(result)) if _has_votes(result) else grid


def check_columns(names: Sequence[str], metrics: Sequence[str], paper_table: str | None) -> None:
    """Raise ConfigError naming the nearest column if the table of an ablation has no such column."""
    printed = [column.name for column in load(paper_table).columns] if paper_table else []
    known = [*metrics, "seeds", "votes", "probe", *COST_KEYS, *printed]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"columns={name}: no such column; {did_you_mean(name, known)}there are {', '.join(known)}"
            )


def legend(result: Result) -> str:
    """How to read the table, and the statistical test behind its marks."""
    test = "all metrics are tested, by Holm over them"
    if primary := result.get("primary"):
        test = (
            f"{lookup(primary).header}, the primary metric, is tested alone at 5 %; where it shows a difference so are "
            "the others, by Holm among themselves (p is adjusted; in parentheses where it was not tested)"
        )
    return (
        f"mean ± half the 95 % interval over seeds (Student). Each arm is compared with {compared_with(result)}, "
        f"paired by seed: {test}. ▲ better, ▼ worse, · no difference shown, ? not resolved; bold: significantly better "
        "than every other arm, tested alike; for →1 the distance |ln value| is compared"
        + ("; votes: tested alone, at 5 %, over judges and clips of these trainings" if _has_votes(result) else "")
    )


def verdicts(result: Result) -> list[tuple[str, str, str]]:
    """(answer, clause, evidence) of each clause of the claim."""
    return [(row["answer"], row["clause"], row["evidence"]) for row in result.get("verdict") or ()]


def paper(result: Result) -> Grid:
    """The numbers of the paper; no columns if no arm is in the paper."""
    values = {arm["name"]: arm.get("paper") or {} for arm in result["arms"]}
    names = list(dict.fromkeys(column for row in values.values() for column in row))
    columns = tuple(Column(PAPER, COLUMNS[c].header if c in COLUMNS else c, c) for c in names)
    return Grid(columns, tuple((arm, tuple(_paper_cell(c, row.get(c)) for c in names)) for arm, row in values.items()))


def footer(result: Result) -> list[tuple[str, str]]:
    """The (label, text) lines below the table."""
    settings = {
        arm["name"]: " ".join(f"{key}={value}" for key, value in (arm.get("varied") or {}).items())
        for arm in result["arms"]
    }
    lines = [
        ("refuted", result.get("refuted")),
        ("order as in the paper", result.get("order_as_in_paper")),
        ("arms", "; ".join(f"{name}: {keys or 'as fixed'}" for name, keys in settings.items())),
        ("asked for", " ".join(result.get("settings") or ())),
        ("scale", result.get("scale")),
        ("seeds", ", ".join(str(seed) for seed in result.get("seeds") or ())),
        ("contract", contract_line(result.get("contract") or {})),
    ]
    arms_of: dict[str, list[str]] = {}
    for entry in result.get("coverage") or ():
        arm, _, text = coverage_line(entry).partition(": ")
        arms_of.setdefault(text, []).append(arm)
    lines += [("coverage", f"{', '.join(arms)}: {text}") for text, arms in arms_of.items()]
    metrics_of = {arm["name"]: arm["metrics"] for arm in result["arms"] if arm["metrics"]}
    for name in metrics(result):
        if missing := [arm for arm, row in metrics_of.items() if name not in row]:
            reason = "not finite, or not measured of such an arm"
            lines.append(("no value", f"{name} of {', '.join(missing)}: {reason}"))
    failures = [f"{arm['name']} {arm['status']}" for arm in result["arms"] if arm.get("status", "ok") != "ok"]
    lines += [("failed", text) for text in dict.fromkeys([*failures, *(result.get("failed") or ())])]
    lines += [("note", note) for note in result.get("notes") or ()]
    lines += [("votes", note) for note in (result.get("votes") or {}).get("notes", ())]
    return [(label, str(text)) for label, text in [*lines, ("reading", legend(result))] if text]


def heading(metric: Metric, digits: Digits) -> str:
    """Header of a metric with power of ten, unit and direction."""
    unit = " ".join(part for part in (digits.unit, metric.unit) if part)
    return f"{metric.header}{f' [{unit}]' if unit else ''}\u00a0{metric.arrow}"


def coverage_line(entry: Mapping[str, Any]) -> str:
    """The (timestep, stride) pairs of the inference grid, and the second halves, that an arm has trained."""
    steps = ", ".join(
        f"({t:g}, {s:g}) {'trained' if trained else f'not trained (nearest {_point_text(nearest)})'}"
        for t, s, trained, nearest in entry["grid"]
    )
    trained = sum(bool(step[2]) for step in entry["grid"])
    line = f"{entry['arm']}: {trained} of {len(entry['grid'])} grid steps trained: {steps}"
    total = entry.get("second_halves_total")
    return line if not total else f"{line}; second halves {entry['second_halves_trained']} of {total}"


def contract_line(contract: Mapping[str, Any]) -> str:
    """The contract in one line: metrics by their protocol ids, long lists by their length."""
    fields = {key: value for key, value in contract.items() if key not in ("arm", "seed", "train_signature")}
    protocols = fields.pop("metrics", {})
    first_keys = [k for k in ("signature", "git_commit", "dirty", "lock_hash", "clips") if k in fields]
    parts = [f"{key} {_short(fields[key])}" for key in [*first_keys, *(k for k in fields if k not in first_keys)]]
    if protocols:  # one dictionary of metrics, or a list of them if rows differ
        tables = protocols if isinstance(protocols, list) else [protocols]
        ids = {name: str(row.get("protocol")) for table in tables for name, row in table.items()}
        parts.append(f"metrics {' '.join(ids.values())}")
    return ", ".join(parts)


def _digits(rows: Sequence[Mapping[str, Any]], exponent: int | None = None) -> Digits:
    halves = (half_width(row) for row in rows)
    return Digits.of([row["mean"] for row in rows], [half for half in halves if half is not None], exponent)


def _ends(rows: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    values = [row[key] for row in rows for key in ("mean", "low", "high") if row.get(key) is not None]
    return min(values), max(values)


def _seeds(row: Mapping[str, Any]) -> Cell:
    counts = sorted({estimate["n"] for estimate in row.values()})
    if not counts:
        return Cell()
    return Cell(str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}")


def _has_votes(result: Result) -> bool:
    return bool((result.get("votes") or {}).get("arms"))


def _with_range(value: float, row: Mapping[str, Any], digits: Digits) -> str:
    """`85 (19 … 99)`: of votes an interval is no longer the same on both sides where it is near an end."""
    if row["low"] is None or row["high"] is None:
        return digits.text(value)
    return f"{digits.text(value)} ({digits.text(row['low'])} … {digits.text(row['high'])})"


def _vote_shares(result: Result, *, marks: bool) -> Grid:
    """A column with the share of votes that each arm has against the others."""
    votes = result["votes"]
    digits = _digits(list(votes["arms"].values()))

    def cell(arm: str, row: Mapping[str, Any]) -> Cell:
        against = votes["vs_previous"].get(arm)
        detail = _interval_text(row["mean"], row, replace(digits, decimals=digits.decimals + 1))
        detail += f"; {_difference_detail(against, digits)}" if against else ""
        verdict = against["verdict"] if marks and against else None
        return Cell(_with_range(row["mean"], row, digits), votes["best"] == arm, verdict, "", row["mean"], detail)

    rows = tuple((arm, (cell(arm, row),)) for arm, row in votes["arms"].items())
    return Grid((Column("people", "votes [%]\u00a0↑", "votes"),), rows)


def _vote_differences(result: Result) -> Grid:
    """A column with the votes for each arm minus those against it, of the two that are compared."""
    rows = result["votes"]["vs_previous"]
    digits = _digits([{**row, "mean": row["diff"]} for row in rows.values()], 0)
    labels = {arm["name"]: _row_label(result, arm) for arm in result["arms"]}

    def cell(row: Mapping[str, Any]) -> Cell:
        return replace(_difference(row, digits, tested=True), text=_with_range(row["diff"], row, digits))

    cells = tuple((labels[arm], (cell(row),)) for arm, row in rows.items())
    return Grid((Column("people", "votes for − against [%]\u00a0↑", "votes"),), cells)


def _probes(result: Result) -> Grid:
    """A column with each arm's result at its best probed setting."""
    probes = {arm["name"]: arm["probe"] for arm in result["arms"] if arm.get("probe")}
    first = next(iter(probes.values()))
    digits = _digits(list(probes.values()))
    cells = {arm: f"{digits.interval(p['mean'], half_width(p))} (at {p['at']})" for arm, p in probes.items()}
    column = Column("probe", f"{first['label']}: {heading(lookup(first['metric']), digits)}", "probe")
    return Grid((column,), tuple((arm, (Cell(text),)) for arm, text in cells.items()))


def _difference(row: Mapping[str, Any] | None, digits: Digits, *, tested: bool) -> Cell:
    if row is None or row["diff"] is None:
        return Cell(verdict=None if row is None else row["verdict"])
    text = digits.interval(row["diff"], half_width(row))
    p, detail = p_text(row["p_adjusted"] if tested else row["p"]), _difference_detail(row, digits)
    return Cell(text, verdict=row["verdict"], note=p if tested or not p else f"({p})", value=row["diff"], detail=detail)


def p_text(p: float | None) -> str:
    """`p=0.012`, or "" for None."""
    if p is None:
        return ""
    return "p<0.001" if p < 0.001 else f"p={p:.3f}" if p < 0.1 else f"p={p:.2f}"


def _row_label(result: Result, arm: Mapping[str, Any]) -> str:
    """Name of an arm, with its reference arm if the heading does not name it."""
    names, reference = [other["name"] for other in result["arms"]], _reference(result, arm)
    is_named = reference == names[names.index(arm["name"]) - 1] or result.get("versus") == "first"
    return arm["name"] if is_named else f"{arm['name']} − {reference}"


def _reference(result: Result, arm: Mapping[str, Any]) -> str:
    """Name of the arm that an arm is compared with."""
    names = [other["name"] for other in result["arms"]]
    above = names[names.index(arm["name"]) - 1]
    return next((d["versus"] for d in arm["vs_previous"].values() if d.get("versus")), above)


def _paper_cell(column: str, value: float | None) -> Cell:
    if value is None:
        return Cell()
    is_cost = column in COLUMNS and COLUMNS[column].kind == "cost"
    return Cell(f"{value:g}" if is_cost else f"{value:.2f}", value=value)


def _point_text(point: Any) -> str:
    return "(" + ", ".join(f"{x:g}" for x in point) + ")" if isinstance(point, list | tuple) else str(point)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("sha256") or " ".join(f"{k}={_short(v)}" for k, v in value.items()))
    if isinstance(value, list):
        texts = [_short(item) for item in value]
        return " | ".join(texts) if len(texts) <= 3 else f"{texts[0]} … {texts[-1]} ({len(texts)} values)"
    return str(value)
