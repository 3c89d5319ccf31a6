"""List, verify and fetch the weights that metrics need: `pw weights what=metrics`.

A mirror (also PW_METRICS_MIRROR) is a folder or an address that has the files by name, and is looked at first. VBench's
weights are large, so they are fetched only when asked for. See `pw.io.hub` for HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import metric_weights
from benchmarks.measure.metric_weights import MissingWeights, Weights, WrongWeights, examined, folder, vbench_folder
from pw.io import hub
from pw.io.arguments import Command, ConfigError, option
from pw.io.files import alone, check_space, check_writable, human_size
from pw.io.hub import FetchError, FileSource, Web

GROUPS = {"metrics": ["metrics"], "vbench": ["vbench"], "all": ["metrics", "vbench"]}


@dataclass(frozen=True)
class MetricWeightsOptions:
    """What to do with which weights."""

    only: tuple[str, ...] = option((), "names or groups: metrics, vbench or all; without it metrics, or all for a list")
    lists: bool = option(False, "say what is there and what is missing, and fetch nothing", key="list")
    verify: bool = option(False, "as list, and hash all that is there again")
    mirror: str = option("", "a folder or an address that has the files by name, looked at first")
    dry_run: bool = option(False, "say what would be fetched from where")

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in GROUPS and name not in metric_weights.WEIGHTS:
                raise ConfigError(f"only={name}: unknown; known: {', '.join((*GROUPS, *metric_weights.WEIGHTS))}")
        mirror = self.mirror or os.environ.get("PW_METRICS_MIRROR", "")
        if mirror and not _is_address(mirror) and not Path(mirror).expanduser().is_dir():
            raise ConfigError(f"mirror={mirror}: no such folder; wants one, or an address that begins with http")
        object.__setattr__(self, "mirror", mirror)

    @property
    def rows(self) -> list[Weights]:
        """The weights that `only` stands for."""
        names = self.only or (("all",) if self.lists or self.verify else ("metrics",))
        groups = {group for name in names for group in GROUPS.get(name, ())}
        return [row for row in metric_weights.WEIGHTS.values() if row.name in names or row.group in groups]


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine, which is copied."""

    path: Path
    continues = False

    def __str__(self) -> str:
        return str(self.path)

    def fill(self, part: Path, size: int) -> None:
        shutil.copyfile(self.path, part)


def run(options: MetricWeightsOptions) -> int:
    """Exit status: 0 done, 1 something could not be fetched or is wrong."""
    if options.lists or options.verify:
        return 0 if show(options.rows, anew=options.verify) else 1
    failed = fetch(options.rows, options.mirror, dry_run=options.dry_run)
    for name, reason in failed.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


main = Command(MetricWeightsOptions, run, resumes="what came stays, call again to continue")


def show(rows: Iterable[Weights], *, anew: bool = False) -> bool:
    """Print each row and its state: whether none is wrong. anew: hash all that is there again."""
    all_right = True
    for group, place in {"metrics": folder(), "vbench": vbench_folder()}.items():
        chosen = [row for row in rows if row.group == group]
        if not chosen:
            continue
        print(f"{group}, in {place}")
        for row in chosen:
            state, how = _state(row, anew=anew)
            all_right = all_right and state != "wrong"
            print(f"  {row.name:<24} {_size(row.size):>9}  {state:<8} {how}".rstrip())
            print(f"  {'':<24} {'':>9}  {row.file}: {row.about} ({row.licence})")
    return all_right


def _state(row: Weights, *, anew: bool = False) -> tuple[str, str]:
    """("there", "missing" or "wrong", and how it is known)."""
    try:
        path, _ = examined(row, anew=anew)
    except WrongWeights as error:
        return "wrong", str(error)
    except MissingWeights:
        return "missing", ""
    fetched = row.noted.get("fetched")
    known = "sha256 verified" if row.sha256 else "trusted on first use" if fetched else "yours, no digest is published"
    return "there", f"{known}, at {path}" if row.is_users else known


def fetch(rows: Sequence[Weights], mirror: str = "", *, dry_run: bool = False) -> dict[str, str]:
    """Get what of `rows` is missing or wrong, and print what is done: name -> why not, of those that failed.

    mirror: a folder or an address, looked at first. Raises ConfigError where nothing can be written or fits.
    """
    wanted = [row for row in rows if _state(row)[0] != "there"]
    total = _size(sum(row.size for row in wanted))
    print(f"{len(rows)} files, {len(rows) - len(wanted)} there; {len(wanted)} to fetch, {total}, to {folder()}")
    if dry_run:
        for row in wanted:
            sources = ", or ".join(map(str, (*_mirrored(row, mirror), *row.sources)))
            print(f"  {row.name}  {_size(row.size)}  {row.licence}  from {sources}")
        return {}
    failed: dict[str, str] = {}
    if not wanted:
        return failed
    check_writable("PW_METRICS", folder())
    with alone(folder() / ".weights.lock"):
        for variable, place in {"PW_METRICS": folder(), "VBENCH_CACHE_DIR": vbench_folder()}.items():
            needed = sum(row.size for row in wanted if row.path.is_relative_to(place))
            check_space(variable, place, needed, f"make room, or choose another: {variable}=DIR")
        for number, row in enumerate(wanted, start=1):
            state, why = _state(row)
            if state == "there":  # another call has just fetched it
                continue
            print(f"  {number}/{len(wanted)}  {row.name}  {_size(row.size)}  {row.licence}", flush=True)
            if state == "wrong":
                print(f"      {why}")
            try:
                print(f"      sha256 {_fetch_row(row, mirror)}{'' if row.sha256 else ', trusted on first use'}")
            except FetchError as error:
                failed[row.name] = str(error)
                print("      failed")
    return failed


def _fetch_row(row: Weights, mirror: str) -> str:
    """Get one file from the first source that has it: its SHA-256. Raises FetchError with what each of them said."""
    known = [f"sha256 {row.sha256}" if row.sha256 else "", f"{row.size} bytes" if row.size else ""]
    expected = f" ({', '.join(filter(None, known)) or 'no digest of it is published'})"
    if row.is_users:
        raise FetchError(
            f"{row.variable}={row.path} names a file of yours, which is left alone; unset it to fetch, or put "
            f"{row.file} there{expected}"
        )
    reasons = []
    for source in (*_mirrored(row, mirror), *row.sources):
        try:
            found = hub.fetch(source, row.path, row.size, row.wanted)
        except FetchError as error:
            reasons.append(str(error))
            continue
        row.write_note(found, fetched=True)
        return found
    hint = "Name a mirror (mirror=DIR|URL), or by hand: put the file at"
    raise FetchError(f"{'; '.join(reasons)}. {hint} {row.path}{expected}")


def _mirrored(row: Weights, mirror: str) -> Iterator[FileSource]:
    """Where a mirror would have the file: by its path in the folder, or by its name alone."""
    for name in dict.fromkeys((row.file, Path(row.file).name)) if mirror else ():
        if _is_address(mirror):
            yield Web(f"{mirror.rstrip('/')}/{name}")
        elif (path := Path(mirror).expanduser() / name).is_file():
            yield LocalFile(path)


def _is_address(mirror: str) -> bool:
    return mirror.startswith(("http://", "https://"))


def _size(size: int) -> str:
    return human_size(size) if size else "unknown"
