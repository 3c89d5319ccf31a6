"""`pw sample`: `pw.sample.evaluate`, and at its end what came out: a score where it takes a second, a contact sheet,
the next commands. stdout has only the folder of the clips."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import partial
from pathlib import Path

from benchmarks.report.contact_sheet import contact_sheet
from pw.io.arguments import Command
from pw.io.command_line import command_line
from pw.io.files import read_json
from pw.run.build import Run
from pw.sample.clip_folders import anchor_reference, reference_folder, sample_folder
from pw.sample.evaluate import SampleOptions, run_sample
from pw.train.loop import next_commands, outputs_word, time_of, training_summary

SHEET_CLIPS = 6
SCORED_PIXELS = 2**20  # of all clips; the tiny scale's take a second
CANDIDATES = 20  # the newest samplings among which the one to compare with is looked for


def summary(run: Run, outputs: Path, seed: int) -> list[str]:
    """What came of a sampling, and the commands that go on from it."""
    folder, where = sample_folder(run, outputs, seed), outputs_word(outputs)
    done = read_json(folder / "done.json") or {}
    lines = training_summary(run, outputs)
    lines.append(f"{folder.name}: {done.get('clips')} clips, {run.sampling.num_steps} steps{time_of(done)}")
    for part in (_score, _sheet):
        try:
            lines += [f"  {line}" for line in part(run, outputs, seed)]
        except (OSError, ValueError) as error:  # the clips are whole
            lines.append(f"  {' '.join(str(error).split())}")
    commands = [command for command in next_commands(run, outputs) if " sample " not in command]
    if (other := comparable(folder)) is not None:
        commands.insert(0, f"  {command_line('compare', f'a={other.name}', f'b={folder.name}', *where)}")
    return [*lines, "next:", *commands]


def _score(run: Run, outputs: Path, seed: int) -> list[str]:
    """PSD of the clips, in words; nothing where it would take longer than a second or two."""
    from benchmarks.measure.clips import clip_paths, measure_clips, pair_clips
    from benchmarks.metrics import lookup

    height, width = run.scale.size
    if run.sampling.count * run.scale.frames * height * width > SCORED_PIXELS:
        return []
    folder, real = sample_folder(run, outputs, seed), reference_folder(run, outputs, seed) / "real"
    if run.stage == "anchor":  # as its ablations are scored, at the anchor's size
        folder, real = folder / "native", anchor_reference(run, outputs, seed)
    value = measure_clips(pair_clips(clip_paths(folder), {"real": real}), ["psd"])[1]["metrics"].get("psd")
    metric = lookup("psd")
    return [] if value is None else [f"{metric.header} {value:.3f} {metric.unit} {metric.arrow}"]


def _sheet(run: Run, outputs: Path, seed: int) -> list[str]:
    """The path of a contact sheet: real clips, anchors, and the same clips of this run."""
    folder = sample_folder(run, outputs, seed)
    sources = {"real": reference_folder(run, outputs, seed) / "real", "anchor": folder / "anchors", "sampled": folder}
    names = [path.name for path in sorted(folder.glob("[0-9]*.mkv"))[:SHEET_CLIPS]]
    rows = {label: [source / name for name in names if (source / name).exists()] for label, source in sources.items()}
    out = outputs / "contact_sheets" / f"{folder.name}.png"
    out.parent.mkdir(exist_ok=True)
    contact_sheet([[(label, paths) for label, paths in rows.items() if len(paths) == len(names)]], out)
    return [f"contact sheet {out}"]


def comparable(folder: Path) -> Path | None:
    """The newest other sampling of the same evaluation clips: seed, count, scale and data are equal."""

    def clips_of(other: Path) -> list[object]:
        text = (other / "config.yaml").read_text(errors="replace")
        blocks = re.findall(r"^(?:scale|data):\n(?:  .*\n)*|^  count: .*", text, re.M)
        return [(read_json(other / "done.json") or {}).get("seed"), *blocks]

    marks = sorted(folder.parent.glob("*/done.json"), key=lambda mark: mark.stat().st_mtime, reverse=True)
    for other in (mark.parent for mark in marks[:CANDIDATES] if mark.parent != folder):
        with suppress(OSError):  # no or no readable config.yaml
            if clips_of(other) == clips_of(folder):
                return other
    return None


main = Command(SampleOptions, partial(run_sample, summary=summary))
