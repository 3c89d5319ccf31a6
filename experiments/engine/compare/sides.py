"""The two sides of a comparison: the options of `pw compare`, the videos and runs that `a=` and `b=` name, and their
scores (measured, cached, or from a scores.csv). Begin with `side`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure.measurement import MeasureOptions, Scores, existing_folder, videos_of
from benchmarks.measure.score import score_videos
from benchmarks.metrics import GROUPS, METRICS, lookup, metric_names
from benchmarks.systems.generation_call import SETTINGS
from experiments.engine.outcome.result_files import mark_of, read_result
from pw.io.arguments import ConfigError, option
from pw.io.files import check_writable, read_csv
from pw.io.paths import OUTPUTS
from pw.run.build import Run, build
from pw.run.compose import leaves
from pw.sample.clip_folders import reference_folder, sample_folder
from pw.train.record import written_overrides

SIDE = "a signature of outputs/train or outputs/videos, or a folder"


def _output_folder(text: str) -> Path:
    folder = Path(text).expanduser()
    check_writable("out", folder)
    return folder


def _scores_file(text: str) -> Path:
    file = Path(text).expanduser()
    if not file.is_file():
        raise ValueError("no such file; `make score videos=DIR out=FILE` writes one")
    return file


@dataclass(frozen=True)
class CompareOptions:
    """The options of `pw compare`."""

    a: str = option(help=f"{SIDE}; several signatures, a=1c2d,9f00, are the seeds of one arm")
    b: str = option(help=f"{SIDE}; judged against a")
    metrics: tuple[str, ...] = option(
        (),
        "the metrics; by default the reference metrics, or mhd_mse",
        read=lambda text: tuple(metric_names(filter(None, text.split(",")))),
    )
    primary: str | None = option(
        None, "the metric that is tested first and alone; by default psd, or the first", read=lambda t: lookup(t).name
    )
    out: Path | None = option(None, "where the comparison goes, by default outputs/compare/a_b", read=_output_folder)
    outputs: Path = option(OUTPUTS, "where the runs are")
    real: Path | None = option(None, "real clips, for metrics that need them", read=existing_folder)
    structure: Path | None = option(None, "clips whose structure is to be kept", read=existing_folder)
    solution: Path | None = option(None, "clips of many steps", read=existing_folder)
    cache: Path | None = option(None, "where measured scores are kept")
    a_scores: Path | None = option(None, "scores of a that `pw score` wrote, instead of measuring", read=_scores_file)
    b_scores: Path | None = option(None, "scores of b, likewise", read=_scores_file)


@dataclass(frozen=True)
class Folder:
    """A folder of videos to compare.

    seed  of the evaluation clips and noise; 0 for videos of another system
    run   the run of the videos, if known; its sampling keys are right only if `is_sampling_known`
    """

    path: Path
    seed: int = 0
    run: Run | None = None
    is_sampling_known: bool = True


@dataclass(frozen=True)
class Side:
    """Side a or b: a folder, or a folder per seed."""

    name: str
    folders: Mapping[int, Folder]
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> Folder:
        """The folder of the first seed."""
        return next(iter(self.folders.values()))


def side(text: str, outputs: Path) -> Side:
    """The side that `a=` or `b=` names. Raises ConfigError that lists similar signatures."""
    folder = Path(text).expanduser()
    if folder.is_dir() and not re.fullmatch(r"[0-9a-f]{1,8}", text):
        if (folder / "done.json").exists() and folder.resolve().parent.name in ("videos", "train"):
            return _of_signature(folder.name, folder.resolve().parent.parent)
        videos_of(folder)
        return Side(folder.resolve().name, {0: Folder(folder)})
    parts = [_of_signature(part, outputs) for part in text.split(",")]
    folders: dict[int, Folder] = {}
    for part in parts:
        for seed, entry in part.folders.items():
            if seed in folders:
                raise ConfigError(f"{text}: {folders[seed].path.name} and {entry.path.name} are both of seed {seed}")
            folders[seed] = entry
    name = parts[0].name + (f"+{len(parts) - 1}" if len(parts) > 1 else "")
    return Side(name, dict(sorted(folders.items())), tuple(note for part in parts for note in part.notes))


def _of_signature(prefix: str, outputs: Path) -> Side:
    signatures = {
        kind: sorted(path.name for path in (outputs / kind).glob("*") if (path / "done.json").exists())
        for kind in ("train", "videos")
    }
    matches = [(kind, name) for kind, names in signatures.items() for name in names if name.startswith(prefix)]
    if not prefix or not matches:
        all_names = [name for names in signatures.values() for name in names]
        similar = difflib.get_close_matches(prefix, all_names, 3, cutoff=0.4)
        hint = f"similar: {', '.join(similar)}" if similar else f"there are {', '.join(all_names[:3])} …"
        hint = hint if all_names else "there are none yet: `make sample` or `make ablation`"
        raise ConfigError(f"{prefix!r} is neither a folder nor a signature in {outputs}/train or videos; {hint}")
    if len(matches) > 1:
        names = ", ".join(f"{name} ({kind})" for kind, name in matches[:6])
        raise ConfigError(f"{prefix!r} matches {len(matches)} signatures: {names}; give more digits")
    kind, name = matches[0]
    if kind == "train":
        return _of_training(name, outputs)
    folder = _folder_of_run(outputs / "videos" / name, outputs)
    return Side(name, {folder.seed: folder})


def _of_training(signature: str, outputs: Path) -> Side:
    """The clips of a training: those of its own sampling configuration, else the only ones."""
    folders = sorted(path.parent for path in (outputs / "videos").glob("*/done.json"))
    marks = {folder: mark_of(folder) for folder in folders}  # a damaged one raises: it may be of this training
    clips = {folder: mark for folder, mark in marks.items() if mark["training"] == signature}
    if not clips:
        overrides = " ".join(written_overrides(outputs / "train" / signature))
        raise ConfigError(f'{signature} is trained, but not sampled: `make sample args="{overrides}"`')
    base = build(written_overrides(outputs / "train" / signature)).with_training(signature)
    seed_folders: dict[int, Folder] = {}
    for seed in sorted({row["seed"] for row in clips.values()}):
        candidates = [folder for folder, row in clips.items() if row["seed"] == seed]
        configured = [folder for folder in candidates if folder.name == base.sample_signature(seed)]
        if len(candidates) == 1 or configured:
            seed_folders[seed] = _folder_of_run((configured or candidates)[0], outputs)
    if not seed_folders:
        raise ConfigError(f"{signature} was sampled in several ways: name one of {', '.join(f.name for f in clips)}")
    rest = len(clips) - len(seed_folders)
    names = ", ".join(folder.path.name for folder in seed_folders.values())
    count = "1 other folder" if rest == 1 else f"{rest} other folders"
    note = f"training {signature}: the clips {names} are compared; there are {count} of its clips"
    return Side(signature, seed_folders, (note,) if rest else ())


def _folder_of_run(path: Path, outputs: Path) -> Folder:
    """A folder of clips of the suite with its run, built from its own `config.yaml` or from that of its training."""
    mark = mark_of(path)
    training = outputs / "train" / mark["training"]
    mark_of(training)
    folder = next((folder for folder in (path, training) if (folder / "config.yaml").exists()), None)
    run = None if folder is None else build(written_overrides(folder)).with_training(mark["training"])
    is_sampling_known = folder == path or (run is not None and run.sample_signature(mark["seed"]) == path.name)
    return Folder(path, mark["seed"], run, is_sampling_known)


def config_difference(a: Folder, b: Folder) -> list[str]:
    """Lines on how two runs differ: first their trainings, then a line per key."""
    if a.run is None or b.run is None:
        left, right = _system_settings(a.path), _system_settings(b.path)
        if not (left and right):
            return ["not both are runs of this suite, so no configurations are compared"]
        return [*_changes(left, right).values()] or [f"{left['system']} twice, with the same requested settings"]
    left, right = a.run.training_signature, b.run.training_signature
    title = f"same training {left}, other sampling" if left == right else f"two trainings, {left} and {right}"
    groups = _changes(a.run.config.choices, b.run.config.choices, skip=("trainer",))
    keys = _changes(leaves(a.run.config.values), leaves(b.run.config.values), skip=(*groups, "trainer"))
    lines = [title, *groups.values(), *keys.values()]
    if a.seed != b.seed:
        lines.append(f"evaluation clips and noise: seed {a.seed} → {b.seed}")
    if not (a.is_sampling_known and b.is_sampling_known):
        unknown = " and ".join(folder.path.name for folder in (a, b) if not folder.is_sampling_known)
        lines.append(f"how {unknown} was sampled is not recorded: the sampling keys above are those of its training")
    elif left == right and len(lines) == 1:
        lines[0] = f"the same run, {a.path.name}" if a.path == b.path else f"{title}: no key differs"
    return lines


def _system_settings(folder: Path) -> dict[str, Any]:
    """The settings of a system (`benchmarks.systems`) for a folder of its videos; empty for other folders."""
    path = next(iter(sorted((folder / "jobs").glob("*.json"))), None)
    if path is None:
        return {}
    settings = read_result(path, {"system": str}, "remove it, and `make system` makes its video again")
    return {key: settings.get(key) for key in ("system", *SETTINGS, "asked_weights", "further", "encoding")}


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], skip: Sequence[str] = ()) -> dict[str, str]:
    """Key -> its change as text, without the keys in or below `skip` and without names of classes."""
    texts = {}
    for key in dict.fromkeys([*before, *after]):
        values = before.get(key), after.get(key)
        if values[0] == values[1] or key.partition(".")[0] in skip or key.endswith("_target_"):
            continue
        texts[key] = f"{key}: {' → '.join('none' if value is None else str(value) for value in values)}"
    return texts


def _read_scores(path: Path, names: Sequence[str]) -> Scores:
    """A scores.csv of `pw score`, with its protocol file in the same folder. Raises ConfigError."""
    scores = Scores()
    try:
        columns, rows = read_csv(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); `make score` writes such a file") from error
    if "video" not in columns:
        raise ConfigError(f"{path}: no column `video`; `make score` writes such a file")
    selected = [name for name in columns if name not in ("video", "frames") and (not names or name in names)]
    if unknown := [name for name in selected if name not in METRICS]:
        raise ConfigError(f"{path}: column {unknown[0]} is not a metric; select columns with metrics=…")
    for row in rows:
        scores.rows[row["video"]] = {name: _score(path, row, name) for name in selected if row.get(name)}
    protocol = path.with_name(f"{path.stem}.protocol.json")
    if protocol.exists():
        protocols = read_result(protocol, {"metrics": dict}, f"score again into out={path}")
        keys = ("protocol", "settings", "weights", "clips")
        for name, row in protocols["metrics"].items():
            if name in selected:
                scores.dependencies[name] = {key: row[key] for key in keys if key in row}
        scores.left_out = protocols.get("left_out", {})
    return scores


def _score(path: Path, row: Mapping[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{path}: {name} of {row['video']} is {row[name]!r}, expected a number or nothing")
    return value


def metrics_of(options: CompareOptions, a: Side, b: Side) -> list[str]:
    """The requested metrics; by default the reference metrics for two tiny runs of the suite, else mHD-MSE."""
    if options.metrics:
        return list(options.metrics)
    if all(folder.run is not None and folder.run.text is None for s in (a, b) for folder in s.folders.values()):
        return list(GROUPS["clips"])
    return ["mhd_mse"]


def check_primary(options: CompareOptions, names: Sequence[str], seeds: int) -> None:
    """Check before any measurement that the primary metric is measured and has a test. Raises ConfigError."""
    primary = options.primary
    if primary is None:
        return
    has_file = options.a_scores is not None or options.b_scores is not None  # which has its own metrics
    if primary not in names and not has_file:
        metrics = ", ".join(names)
        raise ConfigError(f"primary={primary}: is not among the metrics ({metrics}); metrics={primary},… adds it")
    if seeds == 1 and lookup(primary).level == "set":
        raise ConfigError(
            f"primary={primary}: is of the whole set and has no test with one seed; use a metric per video, or "
            "compare several seeds"
        )


def references_of(options: CompareOptions, folder: Folder, names: Sequence[str]) -> tuple[MeasureOptions, list[str]]:
    """(reference clips for the videos of a folder, metrics whose reference clips exist)."""
    real, structure, solution = options.real, options.structure, options.solution
    if (run := folder.run) is not None:
        outputs = folder.path.resolve().parent.parent
        real_folder = reference_folder(run, outputs, folder.seed) / "real"
        real = real or (real_folder if real_folder.is_dir() else None)
        if run.injector is not None and structure is None:
            structure = sample_folder(run.anchor_run, outputs, folder.seed) if run.anchor_run else real
        if folder.is_sampling_known and solution is None and run.solution is not None:
            clips = sample_folder(run.solution, outputs, folder.seed)
            solution = clips if clips != folder.path and (clips / "done.json").exists() else None
    folders = {"real": real, "structure": structure, "solution": solution}
    measurable = [name for name in names if all(folders[need] is not None for need in lookup(name).needs)]
    return MeasureOptions(real=real, structure=structure, solution=solution, cache=options.cache), measurable


def scores_of_pair(
    options: CompareOptions, a: Folder, b: Folder, names: Sequence[str], notes: list[str]
) -> tuple[Scores, Scores]:
    """Scores of both folders in their common metrics; appends to `notes` what is missing, with the reason."""
    references = [references_of(options, folder, names) for folder in (a, b)]
    common = [name for name in names if all(name in measurable for _, measurable in references)]
    result = []
    for key, folder, file, (measuring, _) in zip(
        "ab", (a, b), (options.a_scores, options.b_scores), references, strict=True
    ):
        scores = _read_scores(file, options.metrics) if file else score_videos(folder.path, common, measuring)
        notes += [reason for reason in dict.fromkeys(scores.missing.values()) if reason not in notes]
        notes += [f"{key}: left out {reason}" for reason in scores.left_out.values()]
        for metric, videos in scores.not_measured.items():
            video, reason = next(iter(videos.items()))
            notes.append(f"{key}: {metric} of {len(videos)} videos could not be measured, e.g. {video}: {reason}")
        if file and not scores.dependencies:
            notes.append(f"{key}: {file} has no protocol file beside it, so how it was measured is not known")
        result.append(scores)
    missing = [name for name in names if name not in common]
    if missing and options.metrics:
        needs = sorted({need for name in missing for need in lookup(name).needs})
        notes.append(f"{', '.join(missing)}: both folders need {', '.join(f'{need}=DIR' for need in needs)}")
    return result[0], result[1]
