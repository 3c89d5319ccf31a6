"""What came out of a ladder: the claims at every scale, and how often the smaller scale predicted the larger one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from benchmarks.metrics import lookup
from benchmarks.report.grid import MISSING, Cell, Column, Digits, Grid
from benchmarks.report.page import Evidence, write_page
from benchmarks.report.render import SIGNS, p_text
from experiments.engine.ladder.claim_looks import FUTILE, ClaimAnswer
from pw.io.files import write_atomically

OUTCOMES = ("same verdict", "reversed", "resolved at one scale alone", "resolved at neither")
HONESTY = (
    "A verdict is that of the first look at which it is given, by a sequential p: a clause errs in 5 % of ablations at "
    "most, over all looks and seeds (D124). A difference at which a claim stopped early is rather too large.",
    f"Not resolved before the last seed: more seeds would have decided it with less than {100 * FUTILE:.0f} %.",
    "Intervals and p in the tables of the scales are for a number of seeds fixed beforehand: after a stop too narrow.",
)


@dataclass(frozen=True)
class RungOutcome:
    """The claims at one scale. counts: arm -> the seeds that it ran; folder: of its table"""

    scale: str
    answers: Sequence[ClaimAnswer]
    counts: Mapping[str, int]
    seeds: Sequence[int]
    folder: str


@dataclass(frozen=True)
class Prediction:
    """How two neighbouring scales agree.

    outcomes  one of OUTCOMES -> number of claims
    signs     (claims whose differences have the same sign at both, claims with a sign at both)
    low, high 95 % interval of that share (Clopper and Pearson 1934); None without any
    """

    smaller: str
    larger: str
    outcomes: Mapping[str, int]
    signs: tuple[int, int]
    low: float | None = field(default=None)
    high: float | None = field(default=None)

    def __str__(self) -> str:
        total, (same, signed) = sum(self.outcomes.values()), self.signs
        counts = ", ".join(f"{name} {self.outcomes[name]}" for name in OUTCOMES)
        text = f"{self.smaller} → {self.larger}: of {total} claims: {counts}; same sign in {same} of {signed}"
        if self.low is not None and self.high is not None:
            text += f" (95 % interval {100 * self.low:.0f} to {100 * self.high:.0f} %, too narrow: claims share arms)"
        return text


def predict(smaller: RungOutcome, larger: RungOutcome) -> Prediction:
    """How the claims of two scales agree."""
    from scipy.stats import binomtest

    pairs = [*zip(smaller.answers, larger.answers, strict=True)]
    kinds = [_outcome(a, b) for a, b in pairs]
    signs = [a.sign == b.sign for a, b in pairs if a.sign is not None and b.sign is not None]
    counts = {name: kinds.count(name) for name in OUTCOMES}
    if not signs:
        return Prediction(smaller.scale, larger.scale, counts, (0, 0))
    interval = binomtest(sum(signs), len(signs)).proportion_ci()
    agreement = (sum(signs), len(signs))
    return Prediction(smaller.scale, larger.scale, counts, agreement, float(interval.low), float(interval.high))


def _outcome(a: ClaimAnswer, b: ClaimAnswer) -> str:
    if a.is_resolved and b.is_resolved:
        return OUTCOMES[0] if a.answer == b.answer else OUTCOMES[1]
    return OUTCOMES[2] if a.is_resolved or b.is_resolved else OUTCOMES[3]


def predictions(rungs: Sequence[RungOutcome]) -> list[Prediction]:
    """Of each scale for the next one."""
    return [predict(smaller, larger) for smaller, larger in pairwise(rungs)]


def answer_words(answer: ClaimAnswer) -> str:
    """`✓ holds after 3 seeds, sequential p=0.004, psd −0.207 dB`."""
    parts = [f"{SIGNS.get(answer.answer, '…')} {answer.answer} after {answer.seeds} seeds"]
    parts.append(f"sequential {p_text(answer.p)}")
    return ", ".join([*parts, *filter(None, [_differences(answer), answer.reason])])


def _differences(answer: ClaimAnswer) -> str:
    """The differences of a clause of up to three pairs, in printed units."""
    rows = [row for row in answer.differences if row.diff is not None][:3]
    return "; ".join(_difference_text(row.metric, row.diff or 0.0) for row in rows)


def _difference_text(name: str, diff: float) -> str:
    metric = lookup(name)
    digits = Digits.of([diff], [])
    if metric.direction == "one":
        return f"|ln {name}| {digits.text(diff)}"
    return " ".join(part for part in (name, digits.text(diff), digits.unit, metric.unit) if part)


def claims_grid(rungs: Sequence[RungOutcome]) -> Grid:
    """A row per claim; for each scale its verdict, sequential p, difference and seeds."""
    columns = [Column(rung.scale, f"{rung.scale}: {header}") for rung in rungs for header in HEADERS]
    rows = []
    for answers in zip(*(rung.answers for rung in rungs), strict=True):
        cells = [cell for answer in answers for cell in _cells(answer)]
        rows.append((answers[0].clause, tuple(cells)))
    return Grid(tuple(columns), tuple(rows))


HEADERS = ("verdict", "sequential p", "difference", "seeds")


def _cells(answer: ClaimAnswer) -> Iterator[Cell]:
    yield Cell(f"{SIGNS[answer.answer]} {answer.answer}", detail=answer.reason)
    yield Cell(p_text(answer.p).removeprefix("p").removeprefix("="), value=answer.p)
    yield Cell(_differences(answer) or MISSING)
    yield Cell(str(answer.seeds), value=answer.seeds)


def write_ladder(
    folder: Path, title: str, name: str, rungs: Sequence[RungOutcome], notes: Sequence[str], command: str
) -> list[Prediction]:
    """Write ladder.json, ladder.md and index.html; returns the predictions. notes: e.g. on scales that were left out"""
    found = predictions(rungs)
    lines = [*map(str, found), *stops(rungs), *notes]
    result = {
        "ablation": name,
        "rungs": [asdict(rung) for rung in rungs],
        "predictions": [asdict(prediction) for prediction in found],
        "notes": [*notes, *HONESTY],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "ladder.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    grid = claims_grid(rungs)
    text = [f"# {title}", "", grid.markdown(), "", *(f"- {line}" for line in (*lines, *HONESTY)), ""]
    write_atomically(folder / "ladder.md", "\n".join(text))
    page = Evidence(
        title,
        tables=[("Claims by scale", grid)],
        runs=[("all of it", [("finished results are kept", command)])],
        notes=[
            *(("prediction", str(line)) for line in found),
            *(("note", line) for line in (*lines[len(found) :], *HONESTY)),
        ],
        files=("ladder.md", "ladder.json", *(f"{rung.scale}/index.html" for rung in rungs)),
    )
    write_page(page, folder)
    return found


def stops(rungs: Sequence[RungOutcome]) -> list[str]:
    """Per scale, the trainings that stopping saved."""
    lines = []
    for rung in rungs:
        ran, total = sum(rung.counts.values()), len(rung.seeds) * len(rung.counts)
        arms = ", ".join(f"{arm} {count}" for arm, count in rung.counts.items())
        lines.append(f"{rung.scale}: {ran} of {total} arms x seeds ran ({arms})")
    return lines
