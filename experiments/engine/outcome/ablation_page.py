"""The evidence page of an ablation: its clips by arm, how its configurations differ, and what makes it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.report.page import Evidence, evidence_of
from benchmarks.report.page_media import Clip, ClipRow, most_clips
from experiments.engine.compare.sides import Folder, config_difference
from experiments.engine.plan import Plan
from experiments.engine.revisions.revision_run import RevisionRun
from pw.io.command_line import command_line
from pw.io.manifest import DamagedResult, damaged_files, read_mark, whole
from pw.run.build import Run
from pw.sample.clip_folders import reference_folder, sample_folder
from pw.train.loop import outputs_word
from pw.train.record import training_folder

PICTURES = {"frontier.png": "Time against quality", "plot.png": "Plot"}
BESIDE = ("table.md", "table.tex", "table.csv", "table.json", *PICTURES, "contact_sheet.png")


def ablation_evidence(plan: Plan, result: Mapping[str, Any]) -> Evidence:
    """What the page of an ablation shows. result: of `make_table`"""
    rows, seed, scale = clip_rows(plan), plan.options.seeds[0], plan.arms[0].first.scale
    arms = [arm.name for arm in plan.arms]
    count, total = clip_count(plan), plan.ceiling.first.sampling.count
    about = (
        f"{'All' if count == total else 'The first'} {count} evaluation clips of seed {seed}, the same in every arm: "
        f"{scale.frames} frames of {scale.size[1]} × {scale.size[0]} pixels. The scores are of all clips and seeds."
    )
    return replace(
        evidence_of(result),
        pictures=[(text, name) for name, text in PICTURES.items() if (plan.folder / name).is_file()],
        rows=rows,
        compared=(arms[0], arms[-1]) if len(arms) > 1 else ("real", arms[0]),
        about=about,
        changes=list(_changes(plan)),
        runs=list(_runs(plan)),
        files=[name for name in BESIDE if (plan.folder / name).is_file()],
    )


def clip_count(plan: Plan) -> int:
    """How many clips a page shows."""
    run = plan.ceiling.first
    height, width = run.scale.size
    return min(most_clips(run.scale.frames * height * width), run.sampling.count)


def clip_rows(plan: Plan) -> list[ClipRow]:
    """The same clips of the first seed: real and anchor, then the arms, then the ceiling; without rows that have none.

    Clips are read through the mark of their folder: what is damaged or gone is a gap.
    """
    outputs, seed = plan.options.outputs, plan.options.seeds[0]
    ceiling = plan.ceiling.runs[seed]
    names = [f"{index:04d}" for index in range(clip_count(plan))]
    above = [
        ("real", stored_clips(reference_folder(ceiling, outputs, seed), "real/", names)),
        ("anchor", stored_clips(sample_folder(ceiling, outputs, seed), "anchors/", names)),
    ]
    arms = [(arm.name, stored_clips(sample_folder(arm.runs[seed], outputs, seed), "", names)) for arm in plan.arms]
    below: list[ClipRow] = []
    if ceiling.solution is not None:
        label = f"{ceiling.sampling.solution_steps}-step ceiling"
        below = [(label, stored_clips(sample_folder(ceiling.solution, outputs, seed), "", names))]

    def shown(rows: list[ClipRow]) -> list[ClipRow]:
        return [row for row in rows if any(not clip.gap for clip in row[1].values())]

    return [*shown(above), *arms, *shown(below)]


def stored_clips(folder: Path, prefix: str, names: Sequence[str]) -> dict[str, Clip]:
    """Name -> clip, of a folder of clips; `prefix`: of their names in its mark."""
    paths = {name: f"{prefix}{name}.mkv" for name in names}
    try:
        files = read_mark(folder / "done.json")["files"]
    except DamagedResult as error:
        gap = "is not made" if not (folder / "done.json").exists() else str(error)
        return {name: Clip(folder / path, gap=gap) for name, path in paths.items()}
    damage = damaged_files(folder, {path: files[path] for path in paths.values() if path in files})
    return {
        name: Clip(folder / path, files[path]["sha256"], damage.get(path, ""))
        for name, path in paths.items()
        if path in files  # of anchors only the first few are stored
    }


def _changes(plan: Plan) -> Iterator[tuple[str, list[str]]]:
    """(arms, how they differ) of each arm and the one it is compared with, for the first seed."""
    seed, arms = plan.options.seeds[0], {arm.name: arm for arm in plan.arms}

    def folder(run: Run) -> Folder:
        return Folder(sample_folder(run, plan.options.outputs, seed), seed, run)

    if plan.code_notes:
        yield "code", list(plan.code_notes)
    for arm in plan.arms:
        if arm.versus is not None:
            runs = arms[arm.versus].runs[seed], arm.runs[seed]
            yield f"{arm.versus} → {arm.name}", config_difference(*map(folder, runs))


def _runs(plan: Plan) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(label, [(signatures and commit, command)]) of the whole ablation, then of each arm by seed."""
    outputs = plan.options.outputs
    command = command_line("ablation", *plan.options.words(), *outputs_word(outputs))
    yield plan.name, [("All of it; finished results are kept.", command)]
    if checkouts := [(str(r), r.checkout_command) for r in plan.revisions if r.checkout_command]:
        yield "code", checkouts
    for arm in plan.arms:
        lines = []
        for seed, run in arm.runs.items():
            mark = whole(training_folder(run, outputs) / "done.json", ()) or {}
            commit = f"{mark.get('git_commit', 'unknown')}{' with changes' if mark.get('dirty') else ''}"
            words = [*run.config.overrides, *outputs_word(outputs)]
            words += [f"evaluation_seed={seed}"] if seed != run.seed else []
            line = f"seed {seed}: training {run.training_signature}, clips {run.sample_signature(seed)}; "
            line += f"commit {commit}, code {mark.get('code', 'unknown')}"
            write = run.command if isinstance(run, RevisionRun) else command_line
            lines.append((line, write("sample", *words)))
        yield arm.name, lines
