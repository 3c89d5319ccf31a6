"""What the votes of an ablation say: how much each arm is preferred, and which metrics agree with people.

A judge counts if the checks say that somebody looked: of at least `MIN_ANSWERED` pairs with a degraded clip at most
`MOST_FAILED` were not answered with the real one. This is fixed before anybody votes and knows nothing of the arms.
Votes on clips that an arm no longer has do not count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.metrics import lookup
from benchmarks.report.render import p_text
from benchmarks.stats.comparison import distance, improves
from benchmarks.stats.preference import Vote, VoteShare, mean_of, preferences
from experiments.engine.job import Row
from experiments.engine.judge.vote_files import SCORES, VoteFile
from experiments.engine.judge.vote_plan import REAL, ClipPair, clips_of, is_current, read_plans, votes_folder
from experiments.engine.outcome.result_files import read_scores
from experiments.engine.plan import Plan
from pw.io.files import read_csv

MIN_ANSWERED, MOST_FAILED = 2, 0.2

Values = Mapping[str, Mapping[str, float]]
"""Metric -> name of a clip, or "" for all clips of a folder -> value."""


@dataclass
class Judge:
    """The answers of a judge.

    votes       (pair, score of the left clip) of pairs of arms whose clips are those of now
    checks      answered, failed; alike: the same clip twice, and how often one of them was preferred
    stale, gaps numbers of votes on clips of before, and of pairs that could not be shown
    """

    name: str
    votes: list[tuple[ClipPair, float]] = field(default_factory=list)
    checks: int = 0
    failed: int = 0
    alike: int = 0
    preferred: int = 0
    stale: int = 0
    gaps: int = 0
    milliseconds: list[int] = field(default_factory=list)

    def take(self, pair: ClipPair, choice: str, milliseconds: int, *, is_current: bool) -> None:
        if choice == "gap":
            self.gaps += 1
            return
        score = SCORES[choice]
        self.milliseconds.append(milliseconds)
        if pair.kind == "degraded":
            self.checks += 1
            self.failed += score != (1.0 if pair.sides[0] == REAL else 0.0)
        elif pair.kind == "same":
            self.alike += 1
            self.preferred += choice != "tie"
        elif is_current:
            self.votes.append((pair, score))
        else:
            self.stale += 1

    @property
    def left_out(self) -> str:
        """Why the votes do not count, or ""."""
        if self.checks < MIN_ANSWERED:
            return f"fewer than {MIN_ANSWERED} checks answered"
        return f"{self.failed} of {self.checks} checks failed" if self.failed > MOST_FAILED * self.checks else ""


def read_judges(plan: Plan) -> list[Judge]:
    """All judges of an ablation. Raises ConfigError for a file that is not as it was written."""
    folder, judges = votes_folder(plan), {}
    plans = read_plans(folder)
    clips = clips_of(plan) if plans else {}
    for vote_plan in plans:
        judge = judges.setdefault(vote_plan.judge, Judge(vote_plan.judge))
        pairs = {pair.id: pair for pair in vote_plan.pairs}
        for key, (choice, milliseconds) in VoteFile(vote_plan, folder).answers.items():
            judge.take(pairs[key], choice, milliseconds, is_current=is_current(pairs[key], clips))
    return [judge for judge in judges.values() if judge.milliseconds or judge.gaps]


def votes_of(plan: Plan, rows: Sequence[Row]) -> dict[str, Any] | None:
    """The "votes" of table.json; None if nobody has voted. rows: of the table, for the metrics' agreement

    Raises ConfigError for a file that is not as it was written.
    """
    judges = read_judges(plan)
    if not judges:
        return None
    counted = [judge for judge in judges if not judge.left_out and judge.votes]
    votes = [
        Vote(*pair.sides, score, judge.name, f"{pair.seed}/{pair.name}")
        for judge in counted
        for pair, score in judge.votes
    ]
    result: dict[str, Any] = {"n": len(votes), "judges": len(counted), "arms": {}, "vs_previous": {}, "best": None}
    notes = list(_notes(judges, votes))
    if votes:
        fitted = preferences(votes, [arm.name for arm in plan.arms])
        for arm in plan.arms:
            if arm.name not in fitted.arms:
                continue
            count = sum(arm.name in vote[:2] for vote in votes)
            result["arms"][arm.name] = _percent(fitted.mean_share(arm.name)) | {"n": count}
            if arm.versus in fitted.arms:
                share = fitted.share(arm.name, arm.versus)
                result["vs_previous"][arm.name] = _net(share) | {"n": count, "versus": arm.versus}
        result["best"] = fitted.best() if len(fitted.arms) == len(plan.arms) else None
        if fitted.n < len(votes):
            notes.append(f"{len(votes) - fitted.n} of them are on arms that were never shown with the others")
        notes.append(f"shares are by Bradley and Terry; {_text(fitted.left)} for the left side, were both clips alike")
        result["agreement"] = _agreement(plan, rows, counted)
        texts = "; ".join(map(agreement_text, result["agreement"]))
        notes.append(f"decided votes that a metric agrees with (chance: 50 %): {texts or 'none'}")
    return {**result, "notes": notes}


def _percent(share: VoteShare) -> dict[str, Any]:
    values = {"mean": share.share, "low": share.low, "high": share.high}
    return {key: None if value is None else 100 * value for key, value in values.items()}


def _net(share: VoteShare) -> dict[str, Any]:
    """Votes for an arm minus votes against it, in points; two arms' shares differ by as much."""
    values = {"diff": share.share, "low": share.low, "high": share.high}
    points = {key: None if value is None else 100 * (2 * value - 1) for key, value in values.items()}
    return {**points, "p": share.p, "p_adjusted": share.p, "verdict": share.verdict, "diff_of": "value"}


def _text(share: VoteShare) -> str:
    if share.low is None or share.high is None:
        return f"{100 * share.share:.0f} %"
    p = f", {p_text(share.p)}" if share.p is not None else ""
    return f"{100 * share.share:.0f} % ({100 * share.low:.0f} to {100 * share.high:.0f}{p})"


def _notes(judges: Sequence[Judge], votes: Sequence[Vote]) -> list[str]:
    """What counts, and what does not; without names, as tables are published."""
    counted = sum(not judge.left_out and bool(judge.votes) for judge in judges)
    ties = sum(vote.score == 0.5 for vote in votes)
    clips = len({vote.clip for vote in votes})
    notes = [f"{len(votes)} votes ({ties} ties) of {counted} judge{'s' * (counted != 1)} on {clips} clips"]
    if counted == 1:
        notes[0] += "; of this judge alone: another may see it differently"
    out = [judge for judge in judges if judge.left_out]
    if out:
        reasons = "; ".join(judge.left_out for judge in out)
        notes.append(f"{len(out)} judge{'s' * (len(out) != 1)} left out by the checks ({reasons})")
    if stale := sum(judge.stale for judge in judges):
        notes.append(f"{stale} votes are on clips that were made again since, or on other arms, and do not count")
    if gaps := sum(judge.gaps for judge in judges):
        notes.append(f"{gaps} pairs could not be shown")
    return notes


# ---- metrics


def _agreement(plan: Plan, rows: Sequence[Row], judges: Sequence[Judge]) -> list[dict[str, Any]]:
    """Per metric, the share of decided votes in which it prefers the same clip, or for lack of values per clip the same
    arm at this seed. The interval is over judges and clips, of these arms."""
    values = {(row.name, row.seed): _values(Path(row.job.score["out"])) for row in rows}
    result = []
    for metric in plan.ablation.metrics:
        agrees, names, clips = [], [], []
        for judge in judges:
            for pair, score in judge.votes:
                prefers_left = _prefers_left(metric, pair, values)
                if score != 0.5 and prefers_left is not None:
                    agrees.append(float(prefers_left == (score == 1.0)))
                    names.append(judge.name)
                    clips.append(f"{pair.seed}/{pair.name}")
        if agrees:
            share, metric_row = mean_of(agrees, names, clips), lookup(metric)
            entry = _percent(share) | {"p": share.p, "n": len(agrees), "level": metric_row.level}
            result.append({"metric": metric, "header": metric_row.header, "text": _text(share), **entry})
    return sorted(result, key=lambda entry: -entry["mean"])


def _prefers_left(metric: str, pair: ClipPair, values: Mapping[tuple[str, int], Values]) -> bool | None:
    """Whether a metric prefers the left clip; None if it has no preference."""
    direction = lookup(metric).direction
    left, right = (values.get((side, pair.seed), {}).get(metric, {}) for side in pair.sides)
    key = pair.name if pair.name in left and pair.name in right else ""
    if key not in left or key not in right:
        return None
    difference = distance(left[key], direction) - distance(right[key], direction)
    return improves(difference, direction) if difference and math.isfinite(difference) else None


def _values(folder: Path) -> Values:
    if not (folder / "scores.json").exists():
        return {}
    values: dict[str, dict[str, float]] = {
        metric: {"": value} for metric, value in read_scores(folder / "scores.json")["metrics"].items()
    }
    for row in read_csv(folder / "scores.csv")[1] if (folder / "scores.csv").exists() else ():
        for metric in values.keys() & row.keys():
            if row[metric]:
                values[metric][Path(row["video"]).stem] = float(row[metric])
    return values


def report_lines(judges: Sequence[Judge], votes: Mapping[str, Any]) -> list[str]:
    """`report=true`: the judges, the arms, and the metrics, for the terminal."""
    lines = ["judges"]
    for judge in judges:
        scores = [score for _, score in judge.votes]
        left, right, ties = (scores.count(score) for score in (1.0, 0.0, 0.5))
        lines.append(
            f"  {judge.name}: {len(scores)} votes ({left} left, {right} right, {ties} ties); missed {judge.failed} of "
            f"{judge.checks} degraded clips; preferred one of two identical clips in {judge.preferred} of "
            f"{judge.alike} pairs; {median(judge.milliseconds or [0]) / 1000:.1f} s a pair"
            + (f"; LEFT OUT: {judge.left_out}" if judge.left_out else "")
        )
    lines += ["arms, share of votes against the others"]
    for arm, row in votes["arms"].items():
        interval = "" if row["low"] is None else f" ({row['low']:.0f} to {row['high']:.0f})"
        against = votes["vs_previous"].get(arm)
        verdict = (
            f"; {against['verdict']} against {against['versus']}, {p_text(against['p']) or 'no test'}"
            if against
            else ""
        )
        lines.append(f"  {arm}: {row['mean']:.0f} %{interval}{verdict}")
    if votes.get("agreement"):
        lines.append("metrics, share of decided votes in which they prefer the same clip (chance: 50 %)")
        lines += [f"  {agreement_text(entry)}" for entry in votes["agreement"]]
        return [*lines, *votes["notes"][:-1]]  # the last says the same
    return [*lines, *votes["notes"]]


def agreement_text(entry: Mapping[str, Any]) -> str:
    how = "" if entry["level"] == "video" else ", by its value of all clips"
    return f"{entry['header']} {entry['text']} of {entry['n']}{how}"
