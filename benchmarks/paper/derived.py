"""The cells that the authors computed from others of the row: averages, totals, latency per pixel and per frame.

A correction is an inference: the one digit, or swap of two neighbours, in one cell that makes the whole row add up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.paper import COLUMNS, PaperRow
from benchmarks.paper.check import Check, Interval, Tables, ends, rounding, size
from benchmarks.report.vbench_totals import RANGES, TOTALS


def possible(column: str, printed: Mapping[str, str]) -> Interval:
    """What a derived column can be, from the other printed cells of its row.

    All formulas rise with each of their inputs, so the ends follow from the ends.
    """
    metric = COLUMNS[column].metric or ""
    if metric in TOTALS:
        inputs = {
            COLUMNS[name].metric or "": rounding(text)
            for name, text in printed.items()
            if COLUMNS[name].metric in RANGES
        }
        low = TOTALS[metric]({name: max(0.0, end.low / 100) for name, end in inputs.items()}).value
        high = TOTALS[metric]({name: min(1.0, end.high / 100) for name, end in inputs.items()}).value
        if low is None or high is None:
            raise ValueError(f"{column}: the row lacks dimensions of VBench")
        return Interval(100 * low, 100 * high)
    frames, *sides = size(printed["Resolution (T×H×W)"])
    pixels = sides[0] * sides[1] if metric == "latency_per_pixel" else 1
    latency = rounding(printed["Latency"])
    return Interval(latency.low / (frames * pixels), latency.high / (frames * pixels))


_HOW = {
    "vbench_average": "mean of the six dimensions",
    "vbench_quality": "VBench's weighted mean of 7 normalised dimensions",
    "vbench_semantic": "VBench's mean of 9 normalised dimensions",
    "vbench_total": "(4 quality + semantic) / 5, from the 16 dimensions",
    "latency_per_pixel": "latency / (frames × width × height)",
    "latency_per_frame": "latency / frames",
}


def derived(tables: Tables) -> Iterator[Check]:
    """Averages, totals, latency per pixel and per frame."""
    for table in tables.values():
        columns = [column.name for column in table.columns if column.derived]
        for row in table.rows if columns else ():
            wrong = [name for name in columns if not _recomputes(name, row.printed)]
            inference = _correction(row, columns) if wrong else ""
            for name in columns:
                interval = possible(name, row.printed)
                yield Check(
                    kind="derived",
                    tables=(table.name,),
                    place=row.source,
                    row=row.label,
                    column=name,
                    printed=row.printed[name],
                    recomputed=ends(interval, row.printed[name]),
                    how=_HOW[COLUMNS[name].metric or ""],
                    adds_up=name not in wrong,
                    possible=interval,
                    inference=inference if name in wrong else "",
                )


def _recomputes(column: str, printed: Mapping[str, str]) -> bool:
    return possible(column, printed).meets(rounding(printed[column]))


# (arm, column) -> (what others print of the same result, who): it decides between corrections.
_ELSEWHERE = {
    ("hunyuanvideo", "Aesthetic Quality"): ("60.36", "the Lumina-Video and VideoAR papers print 60.36"),
}


def _correction(row: PaperRow, columns: Sequence[str]) -> str:
    """The one-digit edit of one cell with which all `columns` of a row recompute."""
    found: list[tuple[float, str, str]] = []
    for name in row.printed:
        for text in _edits(row.printed[name]):
            edited = {**row.printed, name: text}
            if all(_recomputes(column, edited) for column in columns):
                off = sum(_distance(column, edited) for column in columns)
                found.append((off, name, text))
    if not found:
        return ""
    known = next((item for item in found if _ELSEWHERE.get((row.arm, item[1]), ("",))[0] == item[2]), None)
    _, name, text = known or min(found)
    reason = f"; {_ELSEWHERE[row.arm, name][1]}" if known else ""
    others = [f"{other} {new}" for _, other, new in sorted(found) if (other, new) != (name, text)]
    also = f" (so would {', '.join(others)})" if others else ""
    return f"{name} {text} instead of {row.printed[name]} makes the whole row add up{reason}{also}"


def _distance(column: str, printed: Mapping[str, str]) -> float:
    """From the middle of what is possible, in halves of the last printed digit."""
    shown = rounding(printed[column])
    return abs(possible(column, printed).middle - shown.middle) / (shown.high - shown.middle)


def _edits(text: str) -> Iterator[str]:
    """The text with one digit of its numbers changed, or two neighbouring digits swapped; no leading zeros."""
    mantissa, *exponent = re.split(r"(?=e)", text, maxsplit=1)
    found: dict[str, None] = {}
    for i, digit in enumerate(mantissa):
        if not digit.isdigit():
            continue
        found.update(dict.fromkeys(f"{mantissa[:i]}{new}{mantissa[i + 1 :]}" for new in "0123456789" if new != digit))
        if mantissa[i + 1 : i + 2].isdigit() and mantissa[i + 1] != digit:
            found[f"{mantissa[:i]}{mantissa[i + 1]}{digit}{mantissa[i + 2 :]}"] = None
    for edit in found:
        if not re.search(r"(?<![\d.,])0\d", edit) and not re.search(r"(?<![\d.,])0(?![\d.])", edit):
            yield edit + "".join(exponent)
