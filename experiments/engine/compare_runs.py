"""`make compare a=… b=…`: two runs, or two folders of videos from any system, paired.

pw compare a=SIGNATURE|DIR b=SIGNATURE|DIR [metrics=mhd_mse,niqe primary=niqe out=DIR outputs=DIR
                      cache=DIR] [real=DIR structure=DIR solution=DIR] [a_scores=FILE b_scores=FILE]

A run is named by the signature of its training or of its clips (`outputs/train`, `outputs/videos`), or the first
digits of one; several of them, a=1c2d,9f00 b=…, are the seeds of one arm. Written to `outputs/compare/<a>_<b>/`:
comparison.json, comparison.md, contact_sheet.png.

With one seed the prompts are the unit (`benchmarks.stats.paired`), and what is shown is shown of these two sets of
videos. With several the seeds are (`benchmarks.stats.comparison`), as in an ablation's table. A metric of the whole
set has an interval only there. The primary metric is tested first and alone: psd where it can be tested, else the
first of the metrics.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.measure.contract import check_contracts
from benchmarks.measure.measurement import MeasureOptions, Scores, videos_of
from benchmarks.measure.videos import score_videos
from benchmarks.metrics import GROUPS, METRICS, chosen, lookup
from benchmarks.report.side_by_side import contact_sheet, video_sizes
from benchmarks.stats.comparison import compare
from benchmarks.stats.paired import compare_videos
from benchmarks.systems.generation_call import SETTINGS
from experiments.engine.written import read_sampling, read_written
from pw.io.files import check_writable, write_atomically
from pw.io.paths import OUTPUTS
from pw.run.build import Run, build
from pw.run.compose import ConfigError, leaves
from pw.sample.evaluate import reference_folder, sample_folder
from pw.train.record import written_overrides

TRIED_STEPS = (*range(1, 17), 20, 24, 25, 28, 30, 32, 40, 48, 50, 64)
TRIED_SHIFTS = (None, 1.0, 2.0, 3.0, 5.0)
"""Samplings that are tried where a folder of clips does not say how it was sampled."""


@dataclass(frozen=True)
class Folder:
    """Videos to compare, with what they were made by where that is known.

    seed: of the evaluation clips and noise; 0 for videos of another system.
    run: the run that made them; its sampling is right only where `is_sampling_known`.
    """

    path: Path
    seed: int = 0
    run: Run | None = None
    is_sampling_known: bool = True


@dataclass(frozen=True)
class Side:
    """One of the two: a folder, or a folder per seed."""

    name: str
    folders: Mapping[int, Folder]
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> Folder:
        """That of the first seed."""
        return next(iter(self.folders.values()))


@dataclass(frozen=True)
class Request:
    """What the command line asks."""

    a: str
    b: str
    metrics: tuple[str, ...] = ()
    primary: str | None = None
    out: Path | None = None
    outputs: Path = OUTPUTS
    real: Path | None = None
    structure: Path | None = None
    solution: Path | None = None
    cache: Path | None = None
    a_scores: Path | None = None
    b_scores: Path | None = None


@dataclass
class Found:
    """What was compared and what came out; `rows` is metric -> plain values, as in comparison.json."""

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


def request_of(words: Sequence[str]) -> Request:
    """key=value words -> request. Raises ConfigError."""
    given: dict[str, Any] = {}
    known = Request.__dataclass_fields__
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}=…? " if near else ""
            raise ConfigError(f"{word}: {hint}compare has {', '.join(known)}")
        if key == "metrics":
            given[key] = tuple(chosen(name for name in value.split(",") if name))
        elif key in ("a", "b"):
            given[key] = value
        elif key == "primary":
            given[key] = lookup(value).name
        else:
            given[key] = Path(value).expanduser()
            if key == "out":
                check_writable(key, given[key])
            if key in ("real", "structure", "solution") and not given[key].is_dir():
                raise ConfigError(f"{key}={value}: no such folder")
            if key.endswith("_scores") and not given[key].is_file():
                raise ConfigError(f"{key}={value}: no such file; `make score videos=DIR out=FILE` writes one")
    for key in ("a", "b"):
        if not given.get(key):
            raise ConfigError(f"{key}=… is missing: a signature of outputs/train or outputs/videos, or a folder")
    return Request(**given)


# ---- which videos


def side(text: str, outputs: Path) -> Side:
    """What `a=` or `b=` names. Raises ConfigError listing what is near."""
    folder = Path(text).expanduser()
    if folder.is_dir() and not re.fullmatch(r"[0-9a-f]{1,8}", text):
        if (folder / "done.json").exists() and folder.resolve().parent.name in ("videos", "train"):
            return _of_run(folder.name, folder.resolve().parent.parent)
        videos_of(folder)
        return Side(folder.resolve().name, {0: Folder(folder)})
    parts = [_of_run(part, outputs) for part in text.split(",")]
    folders: dict[int, Folder] = {}
    for part in parts:
        for seed, found in part.folders.items():
            if seed in folders:
                raise ConfigError(f"{text}: {folders[seed].path.name} and {found.path.name} are both of seed {seed}")
            folders[seed] = found
    name = parts[0].name + (f"+{len(parts) - 1}" if len(parts) > 1 else "")
    return Side(name, dict(sorted(folders.items())), tuple(note for part in parts for note in part.notes))


def _of_run(prefix: str, outputs: Path) -> Side:
    there = {
        what: sorted(path.name for path in (outputs / what).glob("*") if (path / "done.json").exists())
        for what in ("train", "videos")
    }
    found = [(what, name) for what, names in there.items() for name in names if name.startswith(prefix)]
    if not prefix or not found:
        everything = [name for names in there.values() for name in names]
        near = difflib.get_close_matches(prefix, everything, 3, cutoff=0.4)
        hint = f"near it are {', '.join(near)}" if near else f"there are {', '.join(everything[:3])} …"
        hint = hint if everything else "there are none yet: make sample or make ablation"
        raise ConfigError(f"{prefix!r} is no folder, and no signature in {outputs}/train or videos; {hint}")
    if len(found) > 1:
        listed = ", ".join(f"{name} ({what})" for what, name in found[:6])
        raise ConfigError(f"{prefix!r} begins {len(found)} signatures: {listed}; give more digits")
    what, name = found[0]
    if what == "videos":
        folder = folder_of_run(outputs / "videos" / name, outputs)
        return Side(name, {folder.seed: folder})
    return _of_training(name, outputs)


def _of_training(signature: str, outputs: Path) -> Side:
    """The clips of a training: as its own configuration samples it, else the only ones there are."""
    found = sorted(path.parent for path in (outputs / "videos").glob("*/done.json"))
    done = {folder: read_sampling(folder, {}) for folder in found}  # one that is cut off may be this training's
    clips = {folder: read_sampling(folder) for folder, row in done.items() if row.get("training") == signature}
    if not clips:
        overrides = " ".join(written_overrides(outputs / "train" / signature))
        raise ConfigError(f'{signature} is trained, but not sampled: make sample args="{overrides}"')
    base = build(written_overrides(outputs / "train" / signature)).pinned(signature)
    chosen_folders: dict[int, Folder] = {}
    for seed in sorted({row["seed"] for row in clips.values()}):
        of_seed = [folder for folder, row in clips.items() if row["seed"] == seed]
        own = [folder for folder in of_seed if folder.name == base.sample_signature(seed)]
        if len(of_seed) == 1 or own:
            chosen_folders[seed] = folder_of_run((own or of_seed)[0], outputs)
    if not chosen_folders:
        raise ConfigError(f"{signature} was sampled in several ways: name one of {', '.join(f.name for f in clips)}")
    others = len(clips) - len(chosen_folders)
    names = ", ".join(folder.path.name for folder in chosen_folders.values())
    more = "1 other folder" if others == 1 else f"{others} other folders"
    note = f"of training {signature} the clips {names} are compared; there are {more} of its clips"
    return Side(signature, chosen_folders, (note,) if others else ())


def folder_of_run(path: Path, outputs: Path) -> Folder:
    """A folder of our clips with the run that made it.

    A run is built from its training's `config.yaml`. That says how the clips were sampled only if they were sampled
    with that very configuration; other numbers of steps and shifts are found by trying which of them has the
    signature.
    """
    done = read_sampling(path)
    seed, training = done["seed"], outputs / "train" / done["training"]
    if (path / "config.yaml").exists():
        return Folder(path, seed, build(written_overrides(path)).pinned(done["training"]))
    if not (training / "config.yaml").exists():
        return Folder(path, seed, None, False)
    base = build(written_overrides(training)).pinned(done["training"])
    for run in _samplings(base):
        if run.sample_signature(seed) == path.name:
            return Folder(path, seed, run)
    return Folder(path, seed, base, False)


def _samplings(base: Run) -> Iterator[Run]:
    yield base
    yield base.solution
    for steps in TRIED_STEPS:
        for shift in TRIED_SHIFTS:
            changes = {"sampling.num_steps": steps, "sampling.shift": shift, "sampling.timesteps": None}
            try:
                yield base.with_values(changes)
            except ConfigError:
                continue


def config_difference(a: Folder, b: Folder) -> list[str]:
    """In which keys two runs differ, in words; the first line says what is the same."""
    if a.run is None or b.run is None:
        left, right = _asked(a.path), _asked(b.path)
        if not (left and right):
            return ["not both are runs of this suite: no configurations to compare"]
        lines = [f"{k}: {_plain(left[k])} → {_plain(right[k])}" for k in left if left[k] != right[k]]
        return lines or [f"{left['system']}, twice: nothing that was asked differs"]
    same = a.run.training_signature == b.run.training_signature
    if same:
        what = f"same training {a.run.training_signature}, other sampling"
    else:
        what = f"two trainings, {a.run.training_signature} and {b.run.training_signature}"
    lines = [what]
    before, after = a.run.config, b.run.config
    groups = [
        group
        for group in dict.fromkeys([*before.choices, *after.choices])
        if before.choices.get(group) != after.choices.get(group) and group != "trainer"
    ]
    lines += [f"{group}: {before.choices.get(group)} → {after.choices.get(group)}" for group in groups]
    left, right = leaves(before.values), leaves(after.values)
    for key in dict.fromkeys([*left, *right]):
        within = key.partition(".")[0]
        if within in (*groups, "trainer") or key.endswith("_target_") or left.get(key) == right.get(key):
            continue
        lines.append(f"{key}: {_plain(left.get(key))} → {_plain(right.get(key))}")
    if a.seed != b.seed:
        lines.append(f"evaluation clips and noise: seed {a.seed} → {b.seed}")
    if not (a.is_sampling_known and b.is_sampling_known):
        unknown = " and ".join(folder.path.name for folder in (a, b) if not folder.is_sampling_known)
        lines.append(f"how {unknown} was sampled is not on record: sampling keys above are of its training")
    elif same and len(lines) == 1:
        lines[0] = f"the same run, {a.path.name}" if a.path == b.path else f"{what}: no key differs"
    return lines


def _asked(folder: Path) -> dict[str, Any]:
    """What was asked of a system (`benchmarks.systems`) for a folder of its videos; empty for other folders."""
    note = next(iter(sorted((folder / "jobs").glob("*.json"))), None)
    if note is None:
        return {}
    about = read_written(note, {"system": str}, "remove it, and `make system` makes its video again")
    return {key: about.get(key) for key in ("system", *SETTINGS, "asked_weights", "further", "encoding")}


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)


# ---- their scores


def _scores_of(folder: Folder, names: Sequence[str], options: MeasureOptions) -> Scores:
    """Every metric of the folder's videos; what the cache of `benchmarks.measure.score` has is not measured again."""
    return score_videos(folder.path, names, options)


def _read_scores(path: Path, names: Sequence[str]) -> Scores:
    """A scores.csv that `benchmarks.measure.score` wrote, with the protocol file beside it. Raises ConfigError."""
    found = Scores()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.DictReader(file)
            columns, rows = list(lines.fieldnames or ()), list(lines)
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); `make score` writes such a file") from error
    if "video" not in columns:
        raise ConfigError(f"{path}: no column `video`; `make score` writes such a file")
    wanted = [name for name in columns if name not in ("video", "frames") and (not names or name in names)]
    if unknown := [name for name in wanted if name not in METRICS]:
        raise ConfigError(f"{path}: column {unknown[0]} is no metric; metrics=… takes some of its columns")
    for row in rows:
        found.rows[row["video"]] = {name: _score(path, row, name) for name in wanted if row.get(name)}
    protocol = path.with_name(f"{path.stem}.protocol.json")
    if protocol.exists():
        about = read_written(protocol, {"metrics": dict}, f"score again into out={path}")
        keys = ("protocol", "settings", "weights", "clips")
        for name, row in about["metrics"].items():
            if name in wanted:
                found.depends[name] = {key: row[key] for key in keys if key in row}
        found.left_out = about.get("left_out", {})
    return found


def _score(path: Path, row: Mapping[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{path}: {name} of {row['video']} is {row[name]!r}, wants a number, or nothing at all")
    return value


def metrics_of(request: Request, a: Side, b: Side) -> list[str]:
    """What is asked for; by default the reference metrics of two small runs of ours, mHD-MSE of other videos."""
    if request.metrics:
        return list(request.metrics)
    if all(folder.run is not None and folder.run.text is None for s in (a, b) for folder in s.folders.values()):
        return list(GROUPS["clips"])
    return ["mhd_mse"]


def check_primary(request: Request, names: Sequence[str], seeds: int) -> None:
    """Before anything is measured: the named primary metric is measured too, and has a test. Raises ConfigError."""
    wanted = request.primary
    if wanted is None:
        return
    from_file = request.a_scores is not None or request.b_scores is not None  # which brings its own metrics
    if wanted not in names and not from_file:
        known = ", ".join(names)
        raise ConfigError(f"primary={wanted}: is not among the metrics ({known}); metrics={wanted},… adds it")
    if seeds == 1 and lookup(wanted).level == "set":
        raise ConfigError(
            f"primary={wanted}: is of the whole set and has no test with one seed; name one of the videos', or compare "
            "several seeds"
        )


def _primary(wanted: str | None, scored: Sequence[str]) -> str | None:
    """The metric that is tested first and alone, of those with a test: as asked for, else psd, else the first."""
    return wanted or ("psd" if "psd" in scored else next(iter(scored), None))


def options_of(request: Request, folder: Folder, names: Sequence[str]) -> tuple[MeasureOptions, list[str]]:
    """What a folder's videos are held against, and the metrics for which that is there."""
    real, structure, solution = request.real, request.structure, request.solution
    if (run := folder.run) is not None:
        outputs = folder.path.resolve().parent.parent
        own = reference_folder(run, outputs, folder.seed) / "real"
        real = real or (own if own.is_dir() else None)
        if run.injector is not None and structure is None:
            structure = sample_folder(run.anchor_run, outputs, folder.seed) if run.anchor_run else real
        solved = sample_folder(run.solution, outputs, folder.seed)
        if folder.is_sampling_known and solution is None and solved != folder.path and (solved / "done.json").exists():
            solution = solved
    there = {"real": real, "structure": structure, "solution": solution}
    able = [name for name in names if all(there[need] is not None for need in lookup(name).needs)]
    return MeasureOptions(real=real, structure=structure, solution=solution, cache=request.cache), able


def found(request: Request) -> Found:
    """The comparison. Raises ValueError for what cannot be compared, saying why."""
    a, b = side(request.a, request.outputs), side(request.b, request.outputs)
    if a.name == b.name and a.first.path.resolve() != b.first.path.resolve():  # two folders called "videos"
        a, b = (replace(s, name=f"{s.first.path.resolve().parent.name}-{s.name}") for s in (a, b))
    seeds = _common_seeds(a, b)
    names = metrics_of(request, a, b)
    check_primary(request, names, len(seeds))
    notes = [*a.notes, *b.notes]
    scores: dict[str, dict[int, Scores]] = {"a": {}, "b": {}}
    for seed in seeds:
        left, right = _pair(request, a.folders[seed[0]], b.folders[seed[1]], names, notes)
        scores["a"][seed[0]], scores["b"][seed[0]] = left, right
    check_contracts({
        f"{key} = {s.name}": {seed: _contract(row) for seed, row in scores[key].items()}
        for key, s in (("a", a), ("b", b))
    })  # fmt: skip
    found_rows, left_out, gate = _rows(scores, names, request.primary)
    rows = {name: found_rows[name] for name in _in_order(found_rows, names)}
    if request.primary is not None and gate is None:
        notes.append(f"primary={request.primary}: has no test here, so all metrics are tested by Holm")
    notes += _without_score(request, names, rows, scores, notes)
    if not rows:
        raise ConfigError(f"nothing to compare: {'; '.join(notes) or 'the two have no score in common'}")
    sizes = {key: video_sizes(videos_of(s.first.path).values()) for key, s in (("a", a), ("b", b))}
    notes += _different_sizes(sizes)
    return Found(
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
    """What must agree: protocols, settings and weights, and in a seed the clips that others are held against."""
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


def _pair(request: Request, a: Folder, b: Folder, names: Sequence[str], notes: list[str]) -> tuple[Scores, Scores]:
    """Scores of both folders in the metrics that both can have; what they cannot is noted."""
    options = [options_of(request, folder, names) for folder in (a, b)]
    both = [name for name in names if all(name in able for _, able in options)]
    result = []
    for key, folder, file, (chosen_options, _) in zip(
        "ab", (a, b), (request.a_scores, request.b_scores), options, strict=True
    ):
        scored = _read_scores(file, request.metrics) if file else _scores_of(folder, both, chosen_options)
        notes += [why for why in dict.fromkeys(scored.missing.values()) if why not in notes]
        notes += [f"{key}: left out {why}" for why in scored.left_out.values()]
        for metric, videos in scored.not_measured.items():
            notes.append(f"{key}: {metric} of {len(videos)} videos could not be measured, e.g. {_first(videos)}")
        if file and not scored.depends:
            notes.append(f"{key}: {file} has no protocol file beside it, so how it was measured is not known")
        result.append(scored)
    lacking = [name for name in names if name not in both]
    if lacking and request.metrics:
        needs = sorted({need for name in lacking for need in lookup(name).needs})
        notes.append(f"{', '.join(lacking)}: both folders need {', '.join(f'{need}=DIR' for need in needs)}")
    return result[0], result[1]


def _first(videos: Mapping[str, str]) -> str:
    return next(f"{video}: {why}" for video, why in videos.items())


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
        found, gate = outcome.as_json(), outcome.primary
        rows, left_out = found["metrics"], found["left_out"]
    for name in a.whole:
        if name in b.whole:
            reason = "of the set: needs seeds"
            rows[name] = {"a": a.whole[name], "b": b.whole[name], "diff": b.whole[name] - a.whole[name]} | {
                "low": None, "high": None, "p": None, "p_adjusted": None, "verdict": "not resolved", "reason": reason,
                "diff_of": "value",
            }  # fmt: skip
    return rows, left_out, gate


def _in_order(metrics: Iterable[str], names: Sequence[str]) -> list[str]:
    """As they were asked for; what a file brings beside that comes last."""
    return sorted(metrics, key=lambda name: names.index(name) if name in names else len(names))


def _without_score(
    request: Request,
    names: Sequence[str],
    rows: Mapping[str, Any],
    scores: Mapping[str, Mapping[int, Scores]],
    notes: Sequence[str],
) -> list[str]:
    """The metrics that were asked for and are not compared, where nothing else says why."""
    found = []
    for name in names if request.metrics else ():
        if name in rows or any(re.search(rf"\b{name}\b", note) for note in notes):
            continue
        sides = [k for k in "ab" if not all(one.values(name) or name in one.whole for one in scores[k].values())]
        files = {"a": request.a_scores, "b": request.b_scores}
        where = " and ".join(str(files[key] or key) for key in sides) or "the two together"
        found.append(f"{name}: not compared, there is no score of it in {where}")
    return found


def _by_metric(scored: Scores) -> dict[str, dict[str, float | None]]:
    names = dict.fromkeys(name for row in scored.rows.values() for name in row if name != "frames")
    return {name: dict(scored.values(name)) for name in names if name not in scored.whole}


def _over_seeds(
    scores: Mapping[str, Mapping[int, Scores]], names: Sequence[str], wanted: str | None
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], str | None]:
    """metric -> what is printed, what was left out, the primary: a seed's means are of the videos both sides have."""
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
    compared = compare(means, primary=_primary(wanted, scored), reference="a")
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


# ---- what is written


def main(words: Sequence[str]) -> int:
    """Exit status: 0 compared, 1 the disk stopped it, 2 a mistake in the call or two things that cannot be compared."""
    from rich.console import Console

    try:
        request = request_of(words)
        result = found(request)
        out = request.out or request.outputs / "compare" / f"{result.a.name}_{result.b.name}"
        write(result, out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}; what was measured before is kept", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what was measured is kept, the same command goes on with the rest", file=sys.stderr)
        return 130
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    for part in rendered(result, console.width):
        console.print(part)
    console.print(f"\n{out}/comparison.{{json,md}}, contact_sheet.png", soft_wrap=True)
    return 0


def write(result: Found, out: Path) -> None:
    """comparison.json, comparison.md and contact_sheet.png."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "comparison.json", json.dumps(as_json(result), indent=1, ensure_ascii=False) + "\n")
    write_atomically(out / "comparison.md", markdown(result))
    seed = next((seed for seed in result.a.folders if seed in result.b.folders), None)
    a, b = (s.first if seed is None else s.folders[seed] for s in (result.a, result.b))
    contact_sheet((result.a.name, videos_of(a.path)), (result.b.name, videos_of(b.path)), out / "contact_sheet.png")


def as_json(result: Found) -> dict[str, Any]:
    """The comparison as plain data."""
    sides = {
        key: {"name": s.name, "folders": {seed: str(f.path) for seed, f in s.folders.items()}, "videos": size}
        for key, s, size in (("a", result.a, result.videos["a"]), ("b", result.b, result.videos["b"]))
    }
    return {
        **sides,
        "unit": result.unit,
        "primary": result.primary,
        "config": result.config,
        "metrics": result.rows,
        "measured_by": result.depends,
        "left_out": result.left_out,
        "notes": result.notes,
    }


def _cells(result: Found) -> Iterator[tuple[str, list[str], str]]:
    """(metric, printed cells, verdict)."""
    for name, row in result.rows.items():
        metric = lookup(name)
        is_log = row["diff_of"] == "abs_log"
        factor = 1.0 if is_log else metric.printed
        numbers = [_number(row[key], factor) for key in ("a", "b")]
        interval = "–" if row["low"] is None else f"{_number(row['low'], factor)} … {_number(row['high'], factor)}"
        p = "–" if row["p_adjusted"] is None else f"{row['p_adjusted']:.2g}"
        header = f"|ln {metric.header}| ↓" if is_log else f"{metric.header} {metric.arrow}"
        verdict = row["verdict"] + (f" ({row['reason']})" if row.get("reason") else "")
        yield header, [*numbers, _number(row["diff"], factor), interval, p], verdict


WIDE = 118  # columns from which a verdict with its reason stands beside the numbers
HEADS = ("a", "b", "b − a", "95 % interval", "p, adjusted")


def _number(value: float | None, factor: float = 1.0) -> str:
    return "–" if value is None else f"{value * factor:.4g}".replace("-", "−")


def _missing(result: Found) -> list[str]:
    said = []
    for name, row in result.left_out.items():
        for key in "ab":
            if n := row[f"only_{key}"]:
                listed = ", ".join(row[f"names_{key}"][:5])
                said.append(f"{name}: {n} videos only of {key}, not compared: {listed}{' …' if n > 5 else ''}")
    return said


def markdown(result: Found) -> str:
    """comparison.md."""
    lines = [f"# {result.a.name} (a) and {result.b.name} (b)", ""]
    lines += ["b is judged against a.", "", *(f"- {line}" for line in result.config), ""]
    lines += [f"| metric | {' | '.join(HEADS)} | verdict |", f"|---|{'--:|' * len(HEADS)}---|"]
    for header, cells, verdict in _cells(result):
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in (header, *cells, verdict))} |")
    lines += ["", f"{result.unit}.", ""]
    lines += [f"- {note}" for note in (*_missing(result), *result.notes)]
    return "\n".join([*lines, "", "![a above, b below](contact_sheet.png)", ""])


def rendered(result: Found, width: int) -> Iterator[Any]:
    """The comparison for a terminal; in a narrow one the verdicts have lines of their own, below the numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    yield Text(f"a  {result.a.name}\nb  {result.b.name}, judged against a", style="bold")
    for line in result.config:
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
    yield Text(result.unit, style="dim")
    for note in (*_missing(result), *result.notes):
        yield Text(f"· {note}", style="yellow")
