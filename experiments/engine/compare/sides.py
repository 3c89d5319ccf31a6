"""The two sides of a comparison: which videos `a=` and `b=` name, and which run made them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure.measurement import videos_of
from benchmarks.systems.generation_call import SETTINGS
from experiments.engine.outcome.written import read_sampling, read_written
from pw.io.arguments import ConfigError
from pw.run.build import Run, build
from pw.run.compose import leaves
from pw.train.record import written_overrides

TRIED_STEPS = (*range(1, 17), 20, 24, 25, 28, 30, 32, 40, 48, 50, 64)
TRIED_SHIFTS = (None, 1.0, 2.0, 3.0, 5.0)
"""Samplings that are tried where a folder of clips does not say how it was sampled."""


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
            return _of_run(folder.name, folder.resolve().parent.parent)
        videos_of(folder)
        return Side(folder.resolve().name, {0: Folder(folder)})
    parts = [_of_run(part, outputs) for part in text.split(",")]
    folders: dict[int, Folder] = {}
    for part in parts:
        for seed, other in part.folders.items():
            if seed in folders:
                raise ConfigError(f"{text}: {folders[seed].path.name} and {other.path.name} are both of seed {seed}")
            folders[seed] = other
    name = parts[0].name + (f"+{len(parts) - 1}" if len(parts) > 1 else "")
    return Side(name, dict(sorted(folders.items())), tuple(note for part in parts for note in part.notes))


def _of_run(prefix: str, outputs: Path) -> Side:
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
    if what == "videos":
        folder = folder_of_run(outputs / "videos" / name, outputs)
        return Side(name, {folder.seed: folder})
    return _of_training(name, outputs)


def _of_training(signature: str, outputs: Path) -> Side:
    """The clips of a training: as its own configuration samples it, else the only ones there are."""
    sampled = sorted(path.parent for path in (outputs / "videos").glob("*/done.json"))
    done = {folder: read_sampling(folder, {}) for folder in sampled}  # one that is cut off may be this training's
    clips = {folder: read_sampling(folder) for folder, row in done.items() if row.get("training") == signature}
    if not clips:
        overrides = " ".join(written_overrides(outputs / "train" / signature))
        raise ConfigError(f'{signature} is trained, but not sampled: make sample args="{overrides}"')
    base = build(written_overrides(outputs / "train" / signature)).pinned(signature)
    chosen_folders: dict[int, Folder] = {}
    for seed in sorted({row["seed"] for row in clips.values()}):
        of_seed = [folder for folder, row in clips.items() if row["seed"] == seed]
        as_configured = [folder for folder in of_seed if folder.name == base.sample_signature(seed)]
        if len(of_seed) == 1 or as_configured:
            chosen_folders[seed] = folder_of_run((as_configured or of_seed)[0], outputs)
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
    """The keys in which two runs differ, a line each; the first line says what is the same."""
    if a.run is None or b.run is None:
        left, right = _system_settings(a.path), _system_settings(b.path)
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


def _system_settings(folder: Path) -> dict[str, Any]:
    """The settings with which a system (`benchmarks.systems`) made a folder of videos; empty for other folders."""
    note = next(iter(sorted((folder / "jobs").glob("*.json"))), None)
    if note is None:
        return {}
    about = read_written(note, {"system": str}, "remove it, and `make system` makes its video again")
    return {key: about.get(key) for key in ("system", *SETTINGS, "asked_weights", "further", "encoding")}


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)
