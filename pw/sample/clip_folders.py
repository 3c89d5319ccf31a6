"""The folders of clips: their names, whether they are whole, and the evaluation clips, `real/` and `real_b/`.

While a call is unfinished its folder has no `done.json`; `sampled.json` lists the clips that it has written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from pw.data import Clips
from pw.data.degradation import Degradation
from pw.data.procedural import generator
from pw.io.files import remove
from pw.io.lazy import Tensor
from pw.io.manifest import DamagedResult, damaged_files, make_folder, read_mark, whole, write_mark
from pw.io.paths import OUTPUTS
from pw.run.build import Run

if TYPE_CHECKING:
    from pw.io.video import Frames

INITIAL_NOISE, EVALUATION_ANCHOR = 7, 6  # streams of random numbers, see pw.stages.stage
PARTIAL = "sampled.json"  # the mark of unfinished clips, after each batch


def sample_folder(run: Run, outputs: Path = OUTPUTS, seed: int | None = None) -> Path:
    """The folder of a run's clips, for the evaluation clips of `seed` (the run's own by default)."""
    return outputs / "videos" / run.sample_signature(run.seed if seed is None else seed)


def reference_folder(run: Run, outputs: Path = OUTPUTS, seed: int | None = None) -> Path:
    """The folder of the evaluation clips of `seed`: `real/` and `real_b/`."""
    return outputs / "reference" / run.evaluation_signature(run.seed if seed is None else seed)


def anchor_reference(run: Run, outputs: Path = OUTPUTS, seed: int | None = None, *, twin: bool = False) -> Path:
    """The reference of stage I: the evaluation clips (or their twins) degraded to anchors as in training."""
    return reference_folder(run, outputs, seed) / f"anchor{'_b' if twin else ''}-{run.degradation_signature}"


def is_sampled(
    run: Run, limit: int, outputs: Path = OUTPUTS, seed: int | None = None, *, thorough: bool = False
) -> bool:
    """Whether the first `limit` clips are sampled, and whole, as are their reference and their anchors.

    thorough  hash large files, too (`pw.io.manifest.check`)
    """
    mark = whole(sample_folder(run, outputs, seed) / "done.json", thorough=thorough)
    if mark is None or mark["clips"] < limit or not _has_reference(run, outputs, seed, thorough=thorough):
        return False
    return run.anchor_run is None or is_sampled(run.anchor_run, limit, outputs, seed, thorough=thorough)


def _has_reference(run: Run, outputs: Path, seed: int | None, *, thorough: bool) -> bool:
    folder = reference_folder(run, outputs, seed)
    mark = whole(folder / "done.json", thorough=thorough)
    first_clips = [f"{name}/0000.mkv" for name in _reference_sets(run, outputs, seed)]
    return mark is not None and mark["files"].keys() >= set(first_clips)


def _reference_sets(run: Run, outputs: Path, seed: int | None) -> list[str]:
    """Names of the folders of clips in the reference folder of a run."""
    anchors = [anchor_reference(run, outputs, seed, twin=twin).name for twin in (False, True)]
    return ["real", "real_b", *(anchors if run.stage == "anchor" else ())]


def write_reference(run: Run, outputs: Path = OUTPUTS, seed: int | None = None) -> Path:
    """Write the evaluation clips and their twins, once; continues an interrupted call, and replaces damaged clips."""
    from pw.io.video import to_uint8

    seed = run.seed if seed is None else seed
    folder, count = reference_folder(run, outputs, seed), run.sampling.count
    make_folder(folder)
    with FileLock(folder / ".lock"):
        if _has_reference(run, outputs, seed, thorough=True):
            return folder
        mark = remove_damaged(folder)
        evaluation = run.source.evaluation(count, seed)
        _write_clips({folder / "real": evaluation.real.frames, folder / "real_b": evaluation.real_b.frames}, count)
        if run.stage == "anchor":
            sets = {}
            for twin, clips in ((True, evaluation.real_b), (False, evaluation.real)):
                anchor = degraded_anchors(run, clips, run.degradation, seed)
                sets[anchor_reference(run, outputs, seed, twin=twin)] = lambda i, anchor=anchor: to_uint8(anchor(i))
            _write_clips(sets, count)
        record = {"clips": count, "seed": seed, "note": evaluation.note()}
        captions = evaluation.captions()
        names = {name.partition("/")[0] for name in mark.get("files", ())} | {*_reference_sets(run, outputs, seed)}
        sets_on_disk = [clip_paths(folder / name, count) for name in sorted(names)]
        files = [path for paths in sets_on_disk if all(path.exists() for path in paths) for path in paths]
        write_mark(folder / "done.json", record | ({"captions": captions} if captions else {}), files)
    return folder


def clip_paths(folder: Path, count: int) -> list[Path]:
    return [folder / f"{index:04d}.mkv" for index in range(count)]


def remove_damaged(folder: Path) -> dict[str, Any]:
    """Remove what differs from the mark of a folder of clips, or of an interrupted call, and the clip that a small one
    belongs to; all clips if there is no mark, everything if it is damaged. Returns the mark."""
    mark_file = next((path for name in ("done.json", PARTIAL) if (path := folder / name).exists()), None)
    try:
        mark: dict[str, Any] = {"files": {}} if mark_file is None else read_mark(mark_file)
    except DamagedResult:
        for path in folder.iterdir():
            if path.name != ".lock":
                remove(path)
        return {}
    clips = {str(path.relative_to(folder)) for path in (*folder.glob("*.mkv"), *folder.glob("[!.]*/*.mkv"))}
    for name in {*damaged_files(folder, mark["files"], thorough=True), *(clips - mark["files"].keys())}:
        remove(folder / name)
        remove(folder / Path(name).name)  # of native/0000.mkv: its existence means that of the others
    return mark


def _write_clips(sets: Mapping[Path, Callable[[int], Frames]], count: int) -> None:
    """Write each folder's clips as 0000.mkv, …; a folder is renamed to its name when all are written."""
    from pw.io.video import write_video

    partial = {}
    for folder in sets:
        if not all(path.exists() for path in clip_paths(folder, count)):
            partial[folder] = folder.with_name(f".{folder.name}")
            if folder.exists():  # some were damaged
                remove(partial[folder])
                folder.rename(partial[folder])
            elif partial[folder].is_dir():
                remove_damaged(partial[folder])
    for partial_folder in partial.values():
        make_folder(partial_folder)
        for temporary in partial_folder.glob(".*.part"):
            temporary.unlink()
    for index in range(count):
        for folder, partial_folder in partial.items():
            if not (path := partial_folder / f"{index:04d}.mkv").exists():
                write_video(path, sets[folder](index))
                write_mark(partial_folder / PARTIAL, {}, [p for p in clip_paths(partial_folder, count) if p.exists()])
    for folder, partial_folder in partial.items():
        remove(partial_folder / PARTIAL)
        partial_folder.rename(folder)


def degraded_anchors(run: Run, clips: Clips, degradation: Degradation, seed: int) -> Callable[[int], Tensor]:
    """A function from a clip's index to its anchor [3, F, h, w]; the degradations of all clips are drawn at once."""
    size = run.scale.anchor_size
    parameters = degradation.draw(len(clips), run.scale.frames, size, generator(seed, 0, EVALUATION_ANCHOR))
    return lambda index: degradation.degrade(clips[index][None], size, [parameters[index]])[0]
