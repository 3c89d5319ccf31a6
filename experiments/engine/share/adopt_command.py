"""`pw adopt ansc.zip`: take the finished results of a shared ablation over, so that they are not made again.

Scores are taken as they are, trainings where their weights are in the file, samplings where their clips are. Each is
checked against the manifest's hashes before anything is written, and against its own mark before it is moved in place.
What is there already stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from experiments.engine.job import Job, all_jobs, train_key
from experiments.engine.plan import Plan, make_plan, parse, trainings
from experiments.engine.share.adopted import KINDS, RECORD, adoption, spared
from experiments.engine.share.bundle import MANY, Bundle, fits, meter, open_bundle, read_object
from experiments.engine.share.open_command import described, one_file
from pw.io.arguments import Command, ConfigError, option
from pw.io.command_line import command_line
from pw.io.console import printable
from pw.io.files import check_space, digest, exclusive_lock, parse_json, remove, sha256, write_json
from pw.io.manifest import check, make_folder
from pw.io.paths import OUTPUTS
from pw.run.build import Run
from pw.run.compose import override_key
from pw.train.loop import outputs_folder, outputs_word
from pw.train.record import WEIGHTS

MARKS = {"train": "done.json", "videos": "done.json", "reference": "done.json", "scores": "scores.json"}
ESSENTIAL = {"train": WEIGHTS, "videos": "0000.mkv", "reference": "real/0000.mkv", "scores": "scores.csv"}
SHAPES: dict[str, dict[str, Any]] = {
    "train": {"signature": str, "updates": int},
    "videos": {"signature": str, "training": str, "clips": int, "seed": int},
    "reference": {"clips": int, "seed": int},
    "scores": {"metrics": {MANY: int | float}, "n_videos": {MANY: int}, "contract": {"metrics": dict, "arm": str}},
}
NAMED = 6  # trainings that a line names


@dataclass(frozen=True)
class AdoptOptions:
    """The options of `pw adopt`."""

    file: Path | None = option(None, "what `pw share` wrote")
    outputs: Path = option(OUTPUTS, "where its results go", read=outputs_folder)
    dry_run: bool = option(False, "check the file and say what would be taken, without writing")
    overrides: tuple[str, ...] = option((), "overrides that differ here, such as data.urls=…")
    positional: tuple[str, ...] = option((), "the file, instead of file=", key="FILE.zip")


def run(options: AdoptOptions) -> int:
    """Exit status: 0 done, 1 a result could not be taken. Raises ConfigError, OSError."""
    path, outputs = one_file(options.file, options.positional), options.outputs
    with open_bundle(path) as bundle:
        print("\n".join(map(printable, described(bundle.manifest))))
        if options.overrides:
            planned(bundle.manifest, options)  # raises for a wrong one
        bundle.verify(meter(bundle.size))
        complete = complete_results(bundle)
        here = [folder for folder in complete if (outputs / folder / MARKS[_kind(folder)]).exists()]
        new = {folder: names for folder, names in complete.items() if folder not in here}
        skipped = {} if options.dry_run else _adopt(bundle, new, outputs)
    taken = [folder for folder in new if folder not in skipped]
    verb = "would adopt" if options.dry_run else "adopted"
    print(f"{verb} {_counted(taken)}; already here: {_counted(here)}")
    for folder, reason in skipped.items():
        print(f"  skipped {folder}: {reason}")
    for line in outlook(bundle.manifest, options, taken):
        print(printable(line))
    return 1 if skipped else 0


def complete_results(bundle: Bundle) -> dict[str, list[str]]:
    """Folder -> its files, of the results that the file has whole: all that their marks list. Raises ConfigError."""
    complete = {}
    for folder, names in bundle.results().items():
        mark = f"{folder}/{MARKS[_kind(folder)]}"
        files = {f"{folder}/{name}": entry for name, entry in _checked_mark(bundle, mark).items()}
        for name in names:
            if name != mark and files.get(name) != bundle.members[name]:
                raise ConfigError(f"{bundle.path}: {name} in it is not what its mark says; ask for it again")
        if {f"{folder}/{ESSENTIAL[_kind(folder)]}", *files} <= {*names}:
            complete[folder] = names
    return complete


def _checked_mark(bundle: Bundle, name: str) -> dict[str, Any]:
    """The files that a mark lists. Raises ConfigError for one that this suite does not write, or that was changed."""
    mark = read_object(bundle.path, bundle.archive, name)
    content = {key: value for key, value in mark.items() if key != "checksum"}
    is_sealed = mark.get("checksum") == digest(content, 64) and mark.get("folder") == name.split("/")[1]
    if not is_sealed or not fits(mark, {**SHAPES[_kind(name)], "files": dict}):
        raise ConfigError(f"{bundle.path}: {name} in it is no mark of a result; ask for it again")
    return mark["files"]


def _adopt(bundle: Bundle, new: Mapping[str, Sequence[str]], outputs: Path) -> dict[str, str]:
    """Unpack results beside the others, check them, move each in place; returns those skipped, with the reason."""
    size = sum(bundle.members[name]["size"] for names in new.values() for name in names)
    check_space("outputs", outputs, size, "choose another outputs=", "for the results")
    record = {
        "file": bundle.path.name,
        "sha256": sha256(bundle.path),
        "date": date.today().isoformat(),
        "commit": ", ".join(bundle.manifest["commits"]),
        "adopted_there": bundle.manifest["adopted"],
    }
    staging, show, skipped = outputs / ".adopting", meter(size), {}
    with exclusive_lock(outputs / ".adopting.lock"):
        remove(staging)  # of a killed call
        try:
            for folder, names in new.items():
                bundle.unpack(names, staging, show)
                mark = staging / folder / MARKS[_kind(folder)]
                check(mark, thorough=True)
                checksum = parse_json(mark.read_bytes()).get("checksum")
                write_json(mark.with_name(RECORD), {**record, "checksum": checksum})
                if reason := _move(mark, outputs / folder):
                    skipped[folder] = reason
        finally:
            remove(staging)
    return skipped


def _move(mark: Path, target: Path) -> str:
    """Move a folder in place, at once if nothing is there, else under its lock with the mark last; why not, or ""."""
    from filelock import FileLock, Timeout

    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # another process makes it just now
        if not target.exists():
            mark.parent.rename(target)
            return ""
    make_folder(target)
    try:
        with FileLock(target / ".lock", timeout=0):
            if any(path.name != ".lock" for path in target.iterdir()):
                return f"is unfinished here; remove {target} to take it"
            for path in sorted(mark.parent.iterdir(), key=lambda path: path == mark):
                path.rename(target / path.name)
    except Timeout:
        return "is being made here right now"
    return ""


def planned(manifest: Mapping[str, Any], options: AdoptOptions) -> Plan:
    """The ablation of a file, as it would be run here. Raises ConfigError."""
    keys = {*map(override_key, options.overrides)}
    words = [word for word in manifest["words"] if override_key(word) not in keys]
    return make_plan(parse([f"name={manifest['ablation']}", *words, *options.overrides, f"outputs={options.outputs}"]))


def outlook(manifest: Mapping[str, Any], options: AdoptOptions, taken: Collection[str]) -> list[str]:
    """What `pw ablation` would still train, with the reason. taken: folders that count as done"""
    try:
        plan = planned(manifest, options)
        left, total = _to_train(plan, taken)
    except ConfigError as error:
        return [f"{manifest['ablation']} cannot be planned here, so what is left to train is not known: {error}"]
    command = command_line("ablation", *plan.options.words(), *outputs_word(options.outputs))
    known = {entry["key"]: signature for signature, entry in manifest["trainings"].items()}
    other = {label: known[run.training_key] for label, run in left.items() if run.training_key in known}
    other = {label: there for label, there in other.items() if there != left[label].training_signature}
    lines = [f"{command}  would train {len(left)} of {total}"]
    if missing := [label for label in left if label not in other]:
        lines.append(f"  without results in the file: {_named(missing)}")
    if other:
        named = _named([f"{label} ({there}, here {left[label].training_signature})" for label, there in other.items()])
        lines.append(f"  made by other code there: {named}; code=as_trained takes those that came with weights")
    return lines


def _to_train(plan: Plan, taken: Collection[str]) -> tuple[dict[str, Run], int]:
    """Label -> run of the trainings that are to do; how many the plan has."""
    outputs, (jobs, _) = plan.options.outputs, all_jobs(plan)

    def is_taken(job: Job) -> bool:
        return job.folder(outputs).relative_to(outputs).as_posix() in taken

    missing = {job.key for job in jobs if not is_taken(job) and not job.is_done(outputs)}
    missing -= spared(jobs, missing, lambda job: is_taken(job) or adoption(job.folder(outputs)) is not None)
    to_do = {label: run for label, run in trainings(plan).values() if train_key(run) in missing}
    return to_do, sum(job.kind == "train" for job in jobs)


def _kind(folder: str) -> str:
    return folder.partition("/")[0]


def _counted(folders: Collection[str]) -> str:
    names = {
        "train": KINDS["train"],
        "videos": KINDS["sample"],
        "reference": "sets of real clips",
        "scores": KINDS["score"],
    }
    counts = Counter(map(_kind, folders))
    return ", ".join(f"{counts[kind]} {name}" for kind, name in names.items() if counts[kind]) or "nothing"


def _named(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return f"{', '.join(labels[:NAMED])}{more}"


main = Command(AdoptOptions, run, resume_hint="what was taken is kept; the same command takes the rest")
