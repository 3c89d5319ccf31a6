"""Writes the files of a table: first those that hold it, then its pictures and its page. Begin with `write_table`.

Each file is written by itself: one that cannot be written is named and costs no other.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.report import write as report
from benchmarks.report.contact_sheet import Row, contact_sheet
from benchmarks.report.frontier import is_planned
from benchmarks.report.page import MEDIA, PAGE, write_page
from experiments.engine.outcome.ablation_page import ablation_evidence
from experiments.engine.plan import Plan
from pw.io.files import digest, os_reason, read_json, remove, replacing, write_atomically
from pw.sample.clip_folders import reference_folder, sample_folder
from pw.sample.evaluate import STORED_ANCHORS

SHEET_CLIPS = 6
SHEET = "contact_sheet.png"
TEXTS = ("table.json", "table.csv", "table.md", "table.tex")


@contextmanager
def naming_failures(what: str, failures: list[str]) -> Generator[None]:
    """Inside, an exception ends the block only, and is added to `failures` in words; a signal passes."""
    try:
        yield
    except Exception as error:
        reason = os_reason(error) if isinstance(error, OSError) else str(error)
        is_clear = isinstance(error, OSError | ValueError)
        failures.append(f"{what} was not written: {reason if is_clear else f'{type(error).__name__}: {reason}'}")


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Hold the lock of a table's folder: another runner of the same ablation may finish now, too."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


def write_table(plan: Plan, result: dict[str, Any], failures: list[str]) -> Path | None:
    """Write table.{json,csv,md,tex} to the folder of the ablation; what cannot be written is added to `failures`.

    Returns the folder to which an existing table of other settings or data was moved, else None.
    """
    archive = None
    with naming_failures("the table", failures), _locked(plan.folder):
        archive = archive_table(plan.folder, result)
        for name in TEXTS:
            with naming_failures(name, failures):
                report.write(result, plan.folder, (name,))
    return archive


def write_pictures(plan: Plan, result: dict[str, Any], failures: list[str]) -> None:
    """Write plot.png, contact_sheet.png and the page, index.html; what cannot be written is added to `failures`.

    An older picture or page goes, if the new one cannot be made.
    """
    folder = plan.folder

    def draw_sheet() -> None:
        if not any(blocks := _sheet_blocks(plan)):  # only scores were adopted
            (folder / SHEET).unlink(missing_ok=True)
            return
        with replacing(folder / SHEET) as partial:
            contact_sheet(blocks, partial)

    makers = {
        "plot.png": lambda: report.write(result, folder, ("plot.png",)),
        **({report.FRONTIER: lambda: report.write(result, folder, (report.FRONTIER,))} if is_planned(result) else {}),
        SHEET: draw_sheet,
        PAGE: lambda: write_page(ablation_evidence(plan, result), folder),
    }
    with naming_failures("the page with its pictures", failures), _locked(folder):
        for name in ("table.html", *({report.FRONTIER} - makers.keys())):  # of an earlier version, or another table
            (folder / name).unlink(missing_ok=True)
        for name, make in makers.items():
            count = len(failures)
            with naming_failures(name, failures):
                make()
            if len(failures) > count:
                with suppress(OSError):
                    (folder / name).unlink(missing_ok=True)


def archive_table(folder: Path, result: Mapping[str, Any]) -> Path | None:
    """Move a table of other settings (arms, a sweep) or clips to `earlier/`; return its new folder, else None."""

    def identity(table: Mapping[str, Any]) -> list[Any]:
        contract = table.get("contract")  # other clips may have the same path
        contract = contract if isinstance(contract, Mapping) else {}
        code = table.get("code") or []  # a branch may have moved
        return [table.get("settings"), code, *(contract.get(key) for key in ("data", "clips_fingerprint", "scale"))]

    if not (folder / "table.json").exists():
        return None
    old = identity(read_json(folder / "table.json") or {})
    if old == identity(result):
        return None
    archive = folder / "earlier" / digest(old)
    archive.mkdir(parents=True, exist_ok=True)
    for path in [*folder.glob("table.*"), *folder.glob("*.png"), *folder.glob(PAGE), *folder.glob(MEDIA)]:
        if path.is_dir():  # no other is replaced by a rename
            remove(archive / path.name)
        path.replace(archive / path.name)
    if (page := archive / PAGE).is_file():  # its clips are two folders further up
        write_atomically(page, page.read_text(encoding="utf-8").replace('"source": "../', '"source": "../../../'))
    return archive


def _sheet_blocks(plan: Plan) -> list[list[Row]]:
    """Rows of the same clips of the first seed: real and anchor, then the arms, then the ceiling."""
    outputs, seed = plan.options.outputs, plan.options.seeds[0]
    ceiling = plan.ceiling.runs[seed]
    references = {
        "real": reference_folder(ceiling, outputs, seed) / "real",
        "anchor": sample_folder(ceiling, outputs, seed) / "anchors",
    }
    arms = {arm.name: sample_folder(arm.runs[seed], outputs, seed) for arm in plan.arms}
    solutions = {}
    if ceiling.solution is not None:
        solutions[f"{ceiling.sampling.solution_steps}-step ceiling"] = sample_folder(ceiling.solution, outputs, seed)
    clips = [f"{index:04d}.mkv" for index in range(min(SHEET_CLIPS, STORED_ANCHORS, ceiling.sampling.count))]

    def rows(folders: Mapping[str, Path]) -> list[Row]:
        """A row per folder that has any of the clips."""
        paths = {
            label: [path if (path := folder / clip).exists() else None for clip in clips]
            for label, folder in folders.items()
        }
        return [(label, row) for label, row in paths.items() if any(row)]

    return [rows(references), rows(arms), rows(solutions)]
