"""The two sides of a comparison: what `pw compare` is asked for, the videos and runs that `a=` and `b=` name, and their
scores: measured, cached, or read from a scores.csv.
"""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure.measurement import MeasureOptions, Scores, existing_folder, videos_of
from benchmarks.measure.score import score_videos
from benchmarks.metrics import GROUPS, METRICS, chosen, lookup
from benchmarks.systems.generation_call import SETTINGS
from experiments.engine.outcome.written import mark_of, read_written
from pw.io.arguments import ConfigError, option
from pw.io.files import check_writable
from pw.io.paths import OUTPUTS
from pw.run.build import Run, build
from pw.run.compose import leaves
from pw.sample.evaluate import reference_folder, sample_folder
from pw.train.record import written_overrides

SIDE = "a signature of outputs/train or outputs/videos, or a folder"


def _side(text: str) -> str:
    if not text:
        raise ConfigError(f"a=… or b=… is missing: {SIDE}")
    return text


def _out(text: str) -> Path:
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
    """What is compared, in which metrics, and against what."""

    a: str = option(help=f"{SIDE}; several signatures, a=1c2d,9f00, are the seeds of one arm", read=_side)
    b: str = option(help=f"{SIDE}; judged against a", read=_side)
    metrics: tuple[str, ...] = option(
        (),
        "the metrics; by default the reference metrics, or mhd_mse",
        read=lambda text: tuple(chosen(filter(None, text.split(",")))),
    )
    primary: str | None = option(
        None, "the metric that is tested first and alone; by default psd, or the first", read=lambda t: lookup(t).name
    )
    out: Path | None = option(None, "where the comparison goes, by default outputs/compare/a_b", read=_out)
    outputs: Path = option(OUTPUTS, "where the runs are")
    real: Path | None = option(None, "real clips, for metrics that need them", read=existing_folder)
    structure: Path | None = option(None, "clips whose structure is to be kept", read=existing_folder)
    solution: Path | None = option(None, "clips of many steps", read=existing_folder)
    cache: Path | None = option(None, "where measured scores are kept")
    a_scores: Path | None = option(None, "scores of a that `pw score` wrote, instead of measuring", read=_scores_file)
    b_scores: Path | None = option(None, "scores of b, likewise", read=_scores_file)


@dataclass(frozen=True)
class Folder:
    """Videos to compare, with the run that made them where that is known.

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
        """The folder of the first seed."""
        return next(iter(self.folders.values()))


def side(text: str, outputs: Path) -> Side:
    """The folders that `a=` or `b=` names. Raises ConfigError listing near signatures."""
    folder = Path(text).expanduser()
    if folder.is_dir() and not re.fullmatch(r"[0-9a-f]{1,8}", text):
        if (folder / "done.json").exists() and folder.resolve().parent.name in ("videos", "train"):
            return _of_signature(folder.name, folder.resolve().parent.parent)
        videos_of(folder)
        return Side(folder.resolve().name, {0: Folder(folder)})
    parts = [_of_signature(part, outputs) for part in text.split(",")]
    folders: dict[int, Folder] = {}
    for part in parts:
        for seed, other in part.folders.items():
            if seed in folders:
                raise ConfigError(f"{text}: {folders[seed].path.name} and {other.path.name} are both of seed {seed}")
            folders[seed] = other
    name = parts[0].name + (f"+{len(parts) - 1}" if len(parts) > 1 else "")
    return Side(name, dict(sorted(folders.items())), tuple(note for part in parts for note in part.notes))


def _of_signature(prefix: str, outputs: Path) -> Side:
    there = {
        what: sorted(path.name for path in (outputs / what).glob("*") if (path / "done.json").exists())
        for what in ("train", "videos")
    }
    matches = [(what, name) for what, names in there.items() for name in names if name.startswith(prefix)]
    if not prefix or not matches:
        everything = [name for names in there.values() for name in names]
        near = difflib.get_close_matches(prefix, everything, 3, cutoff=0.4)
        hint = f"near it are {', '.join(near)}" if near else f"there are {', '.join(everything[:3])} …"
        hint = hint if everything else "there are none yet: make sample or make ablation"
        raise ConfigError(f"{prefix!r} is no folder, and no signature in {outputs}/train or videos; {hint}")
    if len(matches) > 1:
        listed = ", ".join(f"{name} ({what})" for what, name in matches[:6])
        raise ConfigError(f"{prefix!r} begins {len(matches)} signatures: {listed}; give more digits")
    what, name = matches[0]
    if what == "train":
        return _of_training(name, outputs)
    folder = _folder_of_run(outputs / "videos" / name, outputs)
    return Side(name, {folder.seed: folder})


def _of_training(signature: str, outputs: Path) -> Side:
    """The clips of a training: as its own configuration samples it, else the only ones there are."""
    sampled = sorted(path.parent for path in (outputs / "videos").glob("*/done.json"))
    done = {folder: mark_of(folder, {}) for folder in sampled}  # one that is cut off may be this training's
    clips = {folder: mark_of(folder) for folder, row in done.items() if row.get("training") == signature}
    if not clips:
        overrides = " ".join(written_overrides(outputs / "train" / signature))
        raise ConfigError(f'{signature} is trained, but not sampled: make sample args="{overrides}"')
    base = build(written_overrides(outputs / "train" / signature)).pinned(signature)
    chosen_folders: dict[int, Folder] = {}
    for seed in sorted({row["seed"] for row in clips.values()}):
        of_seed = [folder for folder, row in clips.items() if row["seed"] == seed]
        as_configured = [folder for folder in of_seed if folder.name == base.sample_signature(seed)]
        if len(of_seed) == 1 or as_configured:
            chosen_folders[seed] = _folder_of_run((as_configured or of_seed)[0], outputs)
    if not chosen_folders:
        raise ConfigError(f"{signature} was sampled in several ways: name one of {', '.join(f.name for f in clips)}")
    others = len(clips) - len(chosen_folders)
    names = ", ".join(folder.path.name for folder in chosen_folders.values())
    more = "1 other folder" if others == 1 else f"{others} other folders"
    note = f"of training {signature} the clips {names} are compared; there are {more} of its clips"
    return Side(signature, chosen_folders, (note,) if others else ())


def _folder_of_run(path: Path, outputs: Path) -> Folder:
    """A folder of our clips with the run that made it: as its `config.yaml` has it, else as that of its training."""
    done = mark_of(path)
    training = outputs / "train" / done["training"]
    folder = next((folder for folder in (path, training) if (folder / "config.yaml").exists()), None)
    run = None if folder is None else build(written_overrides(folder)).pinned(done["training"])
    is_so_sampled = folder == path or (run is not None and run.sample_signature(done["seed"]) == path.name)
    return Folder(path, done["seed"], run, is_so_sampled)


def config_difference(a: Folder, b: Folder) -> list[str]:
    """The keys in which two runs differ, a line each; the first line says what is the same."""
    if a.run is None or b.run is None:
        left, right = _system_settings(a.path), _system_settings(b.path)
        if not (left and right):
            return ["not both are runs of this suite: no configurations to compare"]
        return [*_changes(left, right).values()] or [f"{left['system']}, twice: nothing that was asked differs"]
    one, other = a.run.training_signature, b.run.training_signature
    what = f"same training {one}, other sampling" if one == other else f"two trainings, {one} and {other}"
    groups = _changes(a.run.config.choices, b.run.config.choices, passed_over=("trainer",))
    keys = _changes(leaves(a.run.config.values), leaves(b.run.config.values), passed_over=(*groups, "trainer"))
    lines = [what, *groups.values(), *keys.values()]
    if a.seed != b.seed:
        lines.append(f"evaluation clips and noise: seed {a.seed} → {b.seed}")
    if not (a.is_sampling_known and b.is_sampling_known):
        unknown = " and ".join(folder.path.name for folder in (a, b) if not folder.is_sampling_known)
        lines.append(f"how {unknown} was sampled is not on record: sampling keys above are of its training")
    elif one == other and len(lines) == 1:
        lines[0] = f"the same run, {a.path.name}" if a.path == b.path else f"{what}: no key differs"
    return lines


def _system_settings(folder: Path) -> dict[str, Any]:
    """The settings with which a system (`benchmarks.systems`) made a folder of videos; empty for other folders."""
    note = next(iter(sorted((folder / "jobs").glob("*.json"))), None)
    if note is None:
        return {}
    about = read_written(note, {"system": str}, "remove it, and `make system` makes its video again")
    return {key: about.get(key) for key in ("system", *SETTINGS, "asked_weights", "further", "encoding")}


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], passed_over: Sequence[str] = ()) -> dict[str, str]:
    """Key -> its change in words, but for keys that are or lie in one of `passed_over`, and names of classes."""
    texts = {}
    for key in dict.fromkeys([*before, *after]):
        values = before.get(key), after.get(key)
        if values[0] == values[1] or key.partition(".")[0] in passed_over or key.endswith("_target_"):
            continue
        texts[key] = f"{key}: {' → '.join('none' if value is None else str(value) for value in values)}"
    return texts


def _read_scores(path: Path, names: Sequence[str]) -> Scores:
    """A scores.csv that `pw score` wrote, with the protocol file beside it. Raises ConfigError."""
    scores = Scores()
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
        scores.rows[row["video"]] = {name: _score(path, row, name) for name in wanted if row.get(name)}
    protocol = path.with_name(f"{path.stem}.protocol.json")
    if protocol.exists():
        about = read_written(protocol, {"metrics": dict}, f"score again into out={path}")
        keys = ("protocol", "settings", "weights", "clips")
        for name, row in about["metrics"].items():
            if name in wanted:
                scores.depends[name] = {key: row[key] for key in keys if key in row}
        scores.left_out = about.get("left_out", {})
    return scores


def _score(path: Path, row: Mapping[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{path}: {name} of {row['video']} is {row[name]!r}, wants a number, or nothing at all")
    return value


def metrics_of(options: CompareOptions, a: Side, b: Side) -> list[str]:
    """What is asked for; by default the reference metrics of two small runs of ours, mHD-MSE of other videos."""
    if options.metrics:
        return list(options.metrics)
    if all(folder.run is not None and folder.run.text is None for s in (a, b) for folder in s.folders.values()):
        return list(GROUPS["clips"])
    return ["mhd_mse"]


def check_primary(options: CompareOptions, names: Sequence[str], seeds: int) -> None:
    """Before anything is measured: the named primary metric is measured too, and has a test. Raises ConfigError."""
    wanted = options.primary
    if wanted is None:
        return
    from_file = options.a_scores is not None or options.b_scores is not None  # which brings its own metrics
    if wanted not in names and not from_file:
        known = ", ".join(names)
        raise ConfigError(f"primary={wanted}: is not among the metrics ({known}); metrics={wanted},… adds it")
    if seeds == 1 and lookup(wanted).level == "set":
        raise ConfigError(
            f"primary={wanted}: is of the whole set and has no test with one seed; name one of the videos', or compare "
            "several seeds"
        )


def references_of(options: CompareOptions, folder: Folder, names: Sequence[str]) -> tuple[MeasureOptions, list[str]]:
    """(the clips that a folder's videos are measured against, the metrics for which there are such clips)."""
    real, structure, solution = options.real, options.structure, options.solution
    if (run := folder.run) is not None:
        outputs = folder.path.resolve().parent.parent
        evaluated_on = reference_folder(run, outputs, folder.seed) / "real"
        real = real or (evaluated_on if evaluated_on.is_dir() else None)
        if run.injector is not None and structure is None:
            structure = sample_folder(run.anchor_run, outputs, folder.seed) if run.anchor_run else real
        solved = sample_folder(run.solution, outputs, folder.seed)
        if folder.is_sampling_known and solution is None and solved != folder.path and (solved / "done.json").exists():
            solution = solved
    there = {"real": real, "structure": structure, "solution": solution}
    able = [name for name in names if all(there[need] is not None for need in lookup(name).needs)]
    return MeasureOptions(real=real, structure=structure, solution=solution, cache=options.cache), able


def scores_of_pair(
    options: CompareOptions, a: Folder, b: Folder, names: Sequence[str], notes: list[str]
) -> tuple[Scores, Scores]:
    """Scores of both folders in the metrics that both can have; `notes` gets what is missing, and why."""
    references = [references_of(options, folder, names) for folder in (a, b)]
    both = [name for name in names if all(name in able for _, able in references)]
    result = []
    for key, folder, file, (held_against, _) in zip(
        "ab", (a, b), (options.a_scores, options.b_scores), references, strict=True
    ):
        scored = _read_scores(file, options.metrics) if file else score_videos(folder.path, both, held_against)
        notes += [why for why in dict.fromkeys(scored.missing.values()) if why not in notes]
        notes += [f"{key}: left out {why}" for why in scored.left_out.values()]
        for metric, videos in scored.not_measured.items():
            video, why = next(iter(videos.items()))
            notes.append(f"{key}: {metric} of {len(videos)} videos could not be measured, e.g. {video}: {why}")
        if file and not scored.depends:
            notes.append(f"{key}: {file} has no protocol file beside it, so how it was measured is not known")
        result.append(scored)
    lacking = [name for name in names if name not in both]
    if lacking and options.metrics:
        needs = sorted({need for name in lacking for need in lookup(name).needs})
        notes.append(f"{', '.join(lacking)}: both folders need {', '.join(f'{need}=DIR' for need in needs)}")
    return result[0], result[1]
