"""`pw share name=ansc out=ansc.zip`: an ablation as one file, its page, table and results. Begin with `run`.

Scores, marks and configurations are always in it; `weights=true` adds the weights of its trainings, `clips=true` all
clips. Its results are those of the latest call, as `outputs/ansc/plan.json` lists them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report.page import MEDIA, PAGE
from benchmarks.report.render import SIGNS
from experiments.engine.ablation import names
from experiments.engine.outcome.ablation_page import BESIDE
from experiments.engine.outcome.result_files import read_result
from experiments.engine.share.adopted import adopted_notes
from experiments.engine.share.bundle import LOCK, meter, open_bundle, summary, write_bundle
from experiments.engine.share.portable import Portable
from experiments.engine.status import Outline, read_outline
from pw.io.arguments import Command, ConfigError, did_you_mean, option
from pw.io.command_line import command_line
from pw.io.files import check_space, human_size, parse_json, replacing, writable_file
from pw.io.manifest import DamagedResult, check
from pw.io.paths import OUTPUTS, ROOT
from pw.run.compose import override_key
from pw.train.loop import results_folder
from pw.train.record import earlier_trainings

TABLE = {"title": str, "scale": str, "seeds": list, "settings": list, "verdict": list}
ALWAYS = (".yaml", ".jsonl", ".csv")  # files of results that are small


@dataclass(frozen=True)
class ShareOptions:
    """The options of `pw share`."""

    name: str = option(help="the ablation", values=names)
    out: Path | None = option(None, "file to write; NAME.zip here by default", read=writable_file("out"))
    weights: bool = option(False, "with the weights of its trainings, so that nobody trains them again")
    clips: bool = option(False, "with all clips, not only those of the page")
    outputs: Path = option(OUTPUTS, "where its results are", read=results_folder)


@dataclass
class Contents:
    """What a file gets: its members (name -> file or content), and what is not in it, in words."""

    members: dict[str, Path | bytes] = field(default_factory=dict)
    marks: dict[str, dict[str, Any]] = field(default_factory=dict)  # by folder
    left_out: Counter[str] = field(default_factory=Counter)


def run(options: ShareOptions) -> int:
    """Write the file; exit status 0. Raises ConfigError, OSError."""
    folder = options.outputs / options.name
    outline, table = _read_latest(options.name, options.outputs)
    out = writable_file("out")(f"{options.name}.zip") if options.out is None else options.out
    _check_replaced(out)
    contents = _collect(options, outline)
    portable = Portable(options.outputs, _configs(contents))
    _make_portable(contents, portable)
    for path in _shown_files(folder):
        contents.members[path.relative_to(options.outputs).as_posix()] = path
    for path in (folder / name for name in ("table.md", "table.tex", "table.csv", PAGE) if (folder / name).is_file()):
        text = path.read_text(encoding="utf-8")
        text = portable.page(text, options.name, contents.members) if path.name == PAGE else portable.text(text)
        contents.members[f"{options.name}/{path.name}"] = text.encode()
    contents.members[f"{options.name}/table.json"] = portable.sealed(table, is_ascii=False)
    if (ROOT / "requirements" / "dev.lock").is_file():
        contents.members[LOCK] = ROOT / "requirements" / "dev.lock"
    size = sum(
        len(source) if isinstance(source, bytes) else source.stat().st_size for source in contents.members.values()
    )
    check_space("out", out, size, "choose another out=, or leave weights= or clips= out", "for the file")
    with replacing(out) as partial:
        manifest = write_bundle(
            partial, _manifest(options, outline, table, contents, portable), contents.members, meter(size)
        )
        _check_written(manifest, contents)
    print(f"{out}: {human_size(out.stat().st_size)}, {summary(manifest['members'])}")
    for line in manifest["left_out"]:
        print(f"  left out: {line}")
    print(
        f"{command_line('open', str(out))} shows it elsewhere; {command_line('adopt', str(out))} takes its results over"
    )
    return 0


def _read_latest(name: str, outputs: Path) -> tuple[Outline, dict[str, Any]]:
    """Jobs and table of the latest call. Raises ConfigError if it did not come to its end."""
    folder, remedy = outputs / name, f"`make ablation name={name}` makes it"
    outline = read_outline(name, outputs)
    if outline is None or not (folder / "table.json").exists() or not (folder / PAGE).exists():
        if name not in names():
            hint = did_you_mean(name, names())
            raise ConfigError(f"name={name}: no such ablation; {hint}there are {', '.join(names())}")
        raise ConfigError(f"name={name}: has no table and page in {folder}; {remedy}")
    table = read_result(folder / "table.json", TABLE, remedy)
    words = parse_json((folder / "plan.json").read_text()).get("words") or []
    words = [word for word in words if override_key(word).split(".")[0] != "tracking"]  # no part of a table's settings
    if words != [f"name={name}", *table["settings"]]:
        raise ConfigError(f"name={name}: its table is of an earlier call; run the latest call again to its end")
    return outline, table


def _check_replaced(out: Path) -> None:
    """Raises ConfigError if a file that is no shared ablation would be replaced."""
    if out.exists():
        try:
            with open_bundle(out):
                pass
        except ConfigError as error:
            raise ConfigError(f"out={out}: exists and is no file of `pw share`; choose another name") from error


def _collect(options: ShareOptions, outline: Outline) -> Contents:
    """The files of all results that marks list. Raises DamagedResult."""
    contents = Contents()
    folders = {task.folder: task.kind for task in outline.tasks.values()}
    references = {task.reference for task in outline.tasks.values() if task.reference}
    for folder, kind in {**folders, **dict.fromkeys(sorted(references), "reference")}.items():
        path = options.outputs / folder / ("scores.json" if kind == "score" else "done.json")
        if not path.exists():
            contents.left_out[f"{kind} jobs that are not done"] += 1
            continue
        mark = check(path)
        if not mark["files"]:
            contents.left_out["trainings from before checksums"] += 1
            continue
        contents.marks[f"{folder}/{path.name}"] = mark
        for name in mark["files"]:
            if name.endswith(".safetensors") and not options.weights:
                contents.left_out["files of weights (weights=true)"] += 1
            elif name.endswith(".mkv") and not options.clips:
                contents.left_out["clips (clips=true)"] += 1
            elif name.endswith((*ALWAYS, ".safetensors", ".mkv")):
                contents.members[f"{folder}/{name}"] = path.parent / name
    return contents


def _configs(contents: Contents) -> list[str]:
    paths = (source for name, source in contents.members.items() if name.endswith("config.yaml"))
    return [path.read_text(encoding="utf-8") for path in paths if isinstance(path, Path)]


def _make_portable(contents: Contents, portable: Portable) -> None:
    """Replace texts that name folders of this machine, and the marks of what is replaced; add the other marks."""
    for name, mark in contents.marks.items():
        folder, texts = name.rpartition("/")[0], {}
        for listed in mark["files"]:
            source = contents.members.get(f"{folder}/{listed}")
            if listed.endswith(ALWAYS) and isinstance(source, Path):
                text = source.read_text(encoding="utf-8")
                if (changed := portable.text(text)) != text:
                    texts[listed] = changed.encode()
                    contents.members[f"{folder}/{listed}"] = texts[listed]
        contents.members[name] = portable.sealed(mark, texts)


def _shown_files(folder: Path) -> Iterator[Path]:
    """The pictures of the table, and the media of the page."""
    yield from (path for name in BESIDE if name.endswith(".png") and (path := folder / name).is_file())
    yield from (path for path in sorted((folder / MEDIA).glob("*")) if path.suffix in (".png", ".mp4"))


def _manifest(
    options: ShareOptions, outline: Outline, table: Mapping[str, Any], contents: Contents, portable: Portable
) -> dict[str, Any]:
    marked = {name.rpartition("/")[0]: mark for name, mark in contents.marks.items()}
    origins = {f"train/{record.folder.name}": record for record in earlier_trainings(options.outputs)}
    commits = {f"{m['git_commit']}{' with changes' if m.get('dirty') else ''}" for m in marked.values() if "dirty" in m}
    return {
        "ablation": options.name,
        **{key: table[key] for key in ("title", "scale", "seeds")},
        "words": [portable.text(word) for word in table["settings"]],
        "verdict": [f"{SIGNS[v['answer']]} {v['answer']}: {v['clause']} ({v['evidence']})" for v in table["verdict"]],
        "commits": sorted(commits),
        "results": {task.folder: task.label for task in outline.tasks.values() if task.folder in marked},
        "trainings": {
            name.removeprefix("train/"): {"key": record.key, "code": record.code}
            for name, record in origins.items()
            if name in marked
        },
        "adopted": adopted_notes([(t.kind, options.outputs / t.folder) for t in outline.tasks.values()]),
        "left_out": [f"{count} {what}" for what, count in contents.left_out.items()],
    }


def _check_written(manifest: Mapping[str, Any], contents: Contents) -> None:
    """Raises DamagedResult if a file was not as its mark says when it was written."""
    for name, mark in contents.marks.items():
        folder = name.rpartition("/")[0]
        for listed, entry in mark["files"].items():
            member, source = f"{folder}/{listed}", contents.members.get(f"{folder}/{listed}")
            if isinstance(source, Path) and manifest["members"][member]["sha256"] != entry["sha256"]:
                raise DamagedResult(f"{source}: has another content than was written; nothing was shared")


main = Command(ShareOptions, run)
