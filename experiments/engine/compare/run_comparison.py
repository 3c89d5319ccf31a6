"""Two sides scored and compared: over prompts with one seed, over seeds with several."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

from benchmarks.measure.contract import check_contracts
from benchmarks.measure.measurement import videos_of
from benchmarks.measure.videos import Scores
from benchmarks.report.contact_sheet import video_sizes
from benchmarks.stats.comparison import compare
from benchmarks.stats.paired import compare_videos
from experiments.engine.compare.compare_options import CompareOptions
from experiments.engine.compare.folder_scores import check_primary, metrics_of, scores_of_pair
from experiments.engine.compare.sides import Side, config_difference, side
from pw.io.arguments import ConfigError


@dataclass
class RunComparison:
    """What was compared, and the result.

    unit       what the test is over (prompts or seeds), in words
    config     in which keys the two differ, a line each
    rows       metric -> plain values, as in comparison.json
    left_out   metric -> videos that only one side has
    videos     side -> size of the videos -> their number
    depends    metric -> protocol, settings and weights that it was measured with
    primary    the metric that was tested first and alone
    """

    a: Side
    b: Side
    unit: str
    config: list[str]
    rows: dict[str, dict[str, Any]]
    left_out: dict[str, Any]
    videos: dict[str, Any]
    depends: dict[str, Any]
    primary: str | None = None
    notes: list[str] = field(default_factory=list)


def _primary(wanted: str | None, scored: Sequence[str]) -> str | None:
    """The metric that is tested first and alone, of those with a test: as asked for, else psd, else the first."""
    return wanted or ("psd" if "psd" in scored else next(iter(scored), None))


def compare_sides(options: CompareOptions) -> RunComparison:
    """The comparison. Raises ValueError (ConfigError) for what cannot be compared, saying why."""
    a, b = side(options.a, options.outputs), side(options.b, options.outputs)
    if a.name == b.name and a.first.path.resolve() != b.first.path.resolve():  # two folders called "videos"
        a, b = (replace(s, name=f"{s.first.path.resolve().parent.name}-{s.name}") for s in (a, b))
    seeds = _common_seeds(a, b)
    names = metrics_of(options, a, b)
    check_primary(options, names, len(seeds))
    notes = [*a.notes, *b.notes]
    scores: dict[str, dict[int, Scores]] = {"a": {}, "b": {}}
    for seed in seeds:
        left, right = scores_of_pair(options, a.folders[seed[0]], b.folders[seed[1]], names, notes)
        scores["a"][seed[0]], scores["b"][seed[0]] = left, right
    check_contracts({
        f"{key} = {s.name}": {seed: _contract(row) for seed, row in scores[key].items()}
        for key, s in (("a", a), ("b", b))
    })  # fmt: skip
    unsorted, left_out, gate = _rows(scores, names, options.primary)
    rows = {name: unsorted[name] for name in _in_order(unsorted, names)}
    if options.primary is not None and gate is None:
        notes.append(f"primary={options.primary}: has no test here, so all metrics are tested by Holm")
    notes += _without_score(options, names, rows, scores, notes)
    if not rows:
        raise ConfigError(f"nothing to compare: {'; '.join(notes) or 'the two have no score in common'}")
    sizes = {key: video_sizes(videos_of(s.first.path).values()) for key, s in (("a", a), ("b", b))}
    notes += _different_sizes(sizes)
    return RunComparison(
        a,
        b,
        _unit(scores, rows, a, b, gate),
        config_difference(a.folders[seeds[0][0]], b.folders[seeds[0][1]]),
        rows,
        left_out,
        sizes,
        next(iter(scores["a"].values())).depends,
        gate,
        notes,
    )


def _contract(scored: Scores) -> dict[str, Any]:
    """What must agree: protocols, settings and weights, and in a seed the clips that videos are measured against."""
    of_metrics = {name: {k: v for k, v in row.items() if k != "clips"} for name, row in scored.depends.items()}
    clips = [row["clips"] for row in scored.depends.values() if "clips" in row]
    return {"metrics": of_metrics, **({"clips": clips[0]} if clips else {})}


def _common_seeds(a: Side, b: Side) -> list[tuple[int, int]]:
    """Pairs of evaluation seeds: the common ones, or the only two folders whatever their seeds."""
    common = [(seed, seed) for seed in a.folders if seed in b.folders]
    if common:
        return common
    if len(a.folders) == len(b.folders) == 1 and (a.first.run is None or b.first.run is None):
        return [(a.first.seed, b.first.seed)]
    raise ConfigError(
        f"a has the evaluation clips of seed {', '.join(map(str, a.folders))}, b of seed "
        f"{', '.join(map(str, b.folders))}: no clip is paired; sample one again with evaluation_seed=…"
    )


def _rows(
    scores: Mapping[str, Mapping[int, Scores]], names: Sequence[str], wanted: str | None
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], str | None]:
    """metric -> what is printed, over prompts with one seed or over seeds; what was left out; the primary metric."""
    if len(scores["a"]) > 1:
        return _over_seeds(scores, names, wanted)
    a, b = (next(iter(scores[key].values())) for key in "ab")
    left, right = _by_metric(a), _by_metric(b)
    common = _in_order([name for name in left if name in right], names)
    rows: dict[str, dict[str, Any]] = {}
    left_out: dict[str, Any] = {}
    gate = None
    if common:
        outcome = compare_videos(
            {m: left[m] for m in common}, {m: right[m] for m in common}, primary=_primary(wanted, common)
        )
        as_json, gate = outcome.as_json(), outcome.primary
        rows, left_out = as_json["metrics"], as_json["left_out"]
    for name in a.whole:
        if name in b.whole:
            reason = "of the set: needs seeds"
            rows[name] = {"a": a.whole[name], "b": b.whole[name], "diff": b.whole[name] - a.whole[name]} | {
                "low": None, "high": None, "p": None, "p_adjusted": None, "verdict": "not resolved", "reason": reason,
                "diff_of": "value",
            }  # fmt: skip
    return rows, left_out, gate


def _in_order(metrics: Iterable[str], names: Sequence[str]) -> list[str]:
    """Metrics in the order of `names`; others, which a scores file has, come last."""
    return sorted(metrics, key=lambda name: names.index(name) if name in names else len(names))


def _without_score(
    options: CompareOptions,
    names: Sequence[str],
    rows: Mapping[str, Any],
    scores: Mapping[str, Mapping[int, Scores]],
    notes: Sequence[str],
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


def _by_metric(scored: Scores) -> dict[str, dict[str, float | None]]:
    names = dict.fromkeys(name for row in scored.rows.values() for name in row if name != "frames")
    return {name: dict(scored.values(name)) for name in names if name not in scored.whole}


def _over_seeds(
    scores: Mapping[str, Mapping[int, Scores]], names: Sequence[str], wanted: str | None
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], str | None]:
    """As `_rows`, over seeds: a seed's means are over the videos that both sides have."""
    means: dict[str, dict[int, dict[str, float | None]]] = {"a": {}, "b": {}}
    only: dict[str, dict[str, list[str]]] = {}
    for seed, a in scores["a"].items():
        b = scores["b"][seed]
        left, right = _by_metric(a), _by_metric(b)
        for key, one in (("a", a), ("b", b)):
            means[key][seed] = {name: value for name, value in one.whole.items()}
        for name in left.keys() & right.keys():
            common = left[name].keys() & right[name].keys()
            for key, values in (("a", left[name]), ("b", right[name])):
                shared = [v for video in sorted(common or values) if (v := values[video]) is not None]
                means[key][seed][name] = fmean(shared) if shared else None
                alone = sorted(values.keys() - common) if common else []
                only.setdefault(name, {"a": [], "b": []})[key] += [f"{video} of seed {seed}" for video in alone]
    scored = _in_order({name for row in means["a"].values() for name in row}, names)
    compared = compare(means, primary=_primary(wanted, scored))
    rows = {}
    for name, row in compared.differences["b"].items():
        if name in compared.arms["a"] and name in compared.arms["b"]:
            rows[name] = {"a": compared.arms["a"][name].mean, "b": compared.arms["b"][name].mean, **asdict(row)}
    left_out = {
        name: {f"only_{key}": len(row[key]) for key in "ab"} | {f"names_{key}": row[key] for key in "ab"}
        for name, row in only.items()
        if row["a"] or row["b"]
    }
    return rows, left_out, compared.primary


def _unit(
    scores: Mapping[str, Mapping[int, Scores]], rows: Mapping[str, Any], a: Side, b: Side, primary: str | None
) -> str:
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


def _different_sizes(sizes: Mapping[str, Mapping[str, int]]) -> list[str]:
    if set(sizes["a"]) == set(sizes["b"]):
        return []
    texts = [", ".join(f"{text} ({n} video{'s' if n > 1 else ''})" for text, n in sizes[key].items()) for key in "ab"]
    return [
        f"a has {texts[0]}; b has {texts[1]}. Metrics see resolution and length beside quality (mHD falls as pixels "
        "are added), so a verdict is of both together"
    ]
