"""The zip file of a shared ablation: what may be in it, and how it is written and read. Begin with `Bundle`.

    manifest.json            what it is, and the size and SHA-256 of every other file
    requirements.lock        the environment
    ansc/                    the page and the table, as in the outputs folder
    train/ videos/ reference/ scores/    results, as there, each in the folder of its signature

Nothing else is accepted, so nothing in it is code or is unpickled. The same results give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from pw.io.arguments import ConfigError
from pw.io.files import human_size, parse_json, sha256
from pw.io.progress import Pace, ProgressLine

KIND, VERSION = "pixelwizard ablation", 1
MANIFEST, LOCK = "manifest.json", "requirements.lock"
RESULTS = ("train", "videos", "reference", "scores")
PACKED = (".mkv", ".mp4", ".png", ".safetensors")  # compressed already, or not worth the time
LARGEST_TEXT = 2**26  # bytes of a file that is deflated, unpacked
BLOCK = 2**20
FILES = rf"""
    {LOCK}
    | train/SIGNATURE/(config\.yaml|metrics\.jsonl|done\.json|(ema|online)\.safetensors)
    | videos/SIGNATURE/(config\.yaml|done\.json|((anchors|native)/)?[0-9]{{4,9}}\.mkv)
    | reference/SIGNATURE/(done\.json|(real|real_b|anchor(_b)?-SIGNATURE)/[0-9]{{4,9}}\.mkv)
    | scores/SIGNATURE/scores\.(json|csv)
    | ABLATION/(index\.html|table\.(md|tex|csv|json)|plot\.png|contact_sheet\.png)
    | ABLATION/page/[0-9a-f]{{1,64}}(-preview)?\.(png|mp4)
"""  # fmt: skip
FIELDS = {"ablation": str, "title": str, "scale": str, "seeds": list, "words": list, "verdict": list, "commits": list,
          "results": dict, "trainings": dict, "left_out": list, "members": dict}  # fmt: skip
Progress = Callable[[int], None]  # called with the bytes of each block


def is_member(name: str, ablation: str) -> bool:
    """Whether a file of a shared ablation may have this name."""
    pattern = FILES.replace("SIGNATURE", "[0-9a-f]{8}").replace("ABLATION", re.escape(ablation))
    return re.fullmatch(pattern, name, re.VERBOSE | re.ASCII) is not None


def summary(members: Iterable[str]) -> str:
    """How many results there are, and how many are whole, in words: 10 trainings (10 with weights), …"""
    counts = []
    for kind, mark, content, text in (
        ("train", "done.json", "ema.safetensors", "trainings ({} with weights)"),
        ("videos", "done.json", "0000.mkv", "samplings ({} with clips)"),
        ("scores", "scores.json", "", "scores"),
    ):
        files = [name.split("/") for name in members if name.startswith(f"{kind}/")]
        whole = sum(file[2:] == [content] for file in files)
        counts.append(f"{sum(file[2:] == [mark] for file in files)} {text.format(whole)}")
    return ", ".join(counts)


def digest_of(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def meter(size: int) -> Progress:
    """A function to call with the bytes of each block, which shows a line of progress when it is due."""
    line, pace, done = ProgressLine(), Pace(), 0

    def show(count: int) -> None:
        nonlocal done
        done += count
        if line.is_due:
            line.show(f"{human_size(done)} of {human_size(size)}, {pace.time_left(done, size)} left")
        if done >= size:
            line.clear()

    return show


def write_bundle(
    path: Path, manifest: Mapping[str, Any], members: Mapping[str, Path | bytes], progress: Progress
) -> dict[str, Any]:
    """Write members (name -> file or content), then the manifest with their hashes; returns that. Raises OSError."""
    entries: dict[str, Any] = {}
    with ZipFile(path, "w", allowZip64=True) as archive:
        for name, source in sorted(members.items()):
            if isinstance(source, bytes):
                entries[name] = digest_of(source)
                _add(archive, name, source)
            else:
                entries[name] = _add_file(archive, name, source, progress)
        complete = {"format": KIND, "version": VERSION, **manifest, "members": entries}
        _add(archive, MANIFEST, (json.dumps(complete, indent=1, ensure_ascii=False) + "\n").encode())
    return complete


def _info(name: str, size: int) -> ZipInfo:
    info = ZipInfo(name)  # of 1980, so that the same results give the same bytes
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.create_system = 3
    info.compress_type = ZIP_STORED if name.endswith(PACKED) or size > LARGEST_TEXT else ZIP_DEFLATED
    info.file_size = size
    return info


def _add(archive: ZipFile, name: str, data: bytes) -> None:
    archive.writestr(_info(name, len(data)), data)


def _add_file(archive: ZipFile, name: str, path: Path, progress: Progress) -> dict[str, Any]:
    sha, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as source, archive.open(_info(name, size), "w") as target:
        while block := source.read(BLOCK):
            target.write(block)
            sha.update(block)
            progress(len(block))
    return {"size": size, "sha256": sha.hexdigest()}


@dataclass(frozen=True)
class Bundle:
    """A zip file whose list of contents is checked: only files of `FILES`, each once, and just those of its manifest.

    `verify` checks the contents, too.
    """

    path: Path
    archive: ZipFile
    manifest: Mapping[str, Any]

    @property
    def members(self) -> Mapping[str, Mapping[str, Any]]:
        return self.manifest["members"]

    @property
    def size(self) -> int:
        """Bytes of all members."""
        return sum(entry["size"] for entry in self.members.values())

    def sha256(self) -> str:
        return sha256(self.path)

    def results(self) -> dict[str, list[str]]:
        """`train/<signature>`, `videos/<signature>`, … -> its members."""
        folders: dict[str, list[str]] = {}
        for name in self.members:
            if name.split("/")[0] in RESULTS:
                folders.setdefault("/".join(name.split("/")[:2]), []).append(name)
        return folders

    def json(self, name: str) -> Any:
        """The value of a small member. Raises ConfigError."""
        with refusing(self.path, name):
            data = self.archive.read(name)
        try:
            return parse_json(data)
        except ValueError as error:
            raise ConfigError(f"{self.path}: {name} in it is no JSON ({error}); ask for it again") from error

    def verify(self, progress: Progress) -> None:
        """Read all members and compare their hashes. Raises ConfigError."""
        for name in self.members:
            self._read(name, None, progress)
            if name.endswith(".safetensors"):
                self._check_weights(name)

    def unpack(self, names: Iterable[str], folder: Path, progress: Progress) -> None:
        """Write members below a folder, and compare their hashes. Raises ConfigError, OSError."""
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("xb") as file:
                self._read(name, file, progress)

    def unpack_manifest(self, folder: Path) -> None:
        (folder / MANIFEST).write_bytes(self.archive.read(MANIFEST))

    def _read(self, name: str, target: IO[bytes] | None, progress: Progress) -> None:
        sha = hashlib.sha256()
        with refusing(self.path, name), self.archive.open(name) as source:
            while block := source.read(BLOCK):  # never more than the size that it declares
                sha.update(block)
                progress(len(block))
                if target is not None:
                    target.write(block)
        if sha.hexdigest() != self.members[name]["sha256"]:
            raise ConfigError(f"{self.path}: {name} has another content than its manifest says; ask for it again")

    def _check_weights(self, name: str) -> None:
        """Raises ConfigError if a file of weights is no safetensors: its head, in an empty file of its size."""
        from safetensors import SafetensorError, safe_open

        with tempfile.TemporaryDirectory() as folder, self.archive.open(name) as source:
            path, start = Path(folder) / "head.safetensors", source.read(8)
            length = min(int.from_bytes(start, "little"), LARGEST_TEXT)
            path.write_bytes(start + source.read(length))
            os.truncate(path, self.members[name]["size"])
            try:
                with safe_open(path, "numpy"):
                    pass
            except SafetensorError as error:
                raise ConfigError(f"{self.path}: {name} is no safetensors file ({error})") from error


@contextmanager
def refusing(path: Path, name: str = "") -> Generator[None]:
    """Turns what zipfile raises into a ConfigError with the file, and the member."""
    try:
        yield
    except (BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        part = f"{name} in it " if name else ""
        raise ConfigError(f"{path}: {part}is damaged, or no zip file ({error}); ask for it again") from error


@contextmanager
def open_bundle(path: Path) -> Generator[Bundle]:
    """Open a shared ablation, and check its list of contents. Raises ConfigError with the file and what is wrong."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; `pw share name=… out=…` writes one")
    with refusing(path):
        archive = ZipFile(path)
    with archive:
        yield Bundle(path, archive, _checked_manifest(path, archive))


def _checked_manifest(path: Path, archive: ZipFile) -> dict[str, Any]:
    entries = archive.infolist()
    for info in entries:
        if reason := _why_refused(info):
            raise ConfigError(f"{path}: {info.orig_filename!r} in it {reason}; nothing was taken from it")
    names = [info.filename for info in entries]
    if twice := sorted(name for name in {*names} if names.count(name) > 1)[:1]:
        raise ConfigError(f"{path}: {twice[0]!r} is in it twice; nothing was taken from it")
    if sum(info.compress_size for info in entries) > path.stat().st_size:
        raise ConfigError(f"{path}: files in it overlap; nothing was taken from it")
    manifest = _read_manifest(path, archive)
    foreign = [name for name in names if name != MANIFEST and not is_member(name, manifest["ablation"])]
    if foreign:
        raise ConfigError(f"{path}: {foreign[0]!r} is no file of a shared ablation; nothing was taken from it")
    sizes = {info.filename: info.file_size for info in entries if info.filename != MANIFEST}
    listed = {name: entry["size"] for name, entry in manifest["members"].items()}
    if differing := sorted({name for name, _ in sizes.items() ^ listed.items()}):
        raise ConfigError(f"{path}: {differing[0]!r} is not as its manifest says; nothing was taken from it")
    return manifest


def _why_refused(info: ZipInfo) -> str:
    """What no shared ablation has, in words; else ""."""
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG) or info.is_dir():
        return "is a link, a folder or a device"
    if info.orig_filename != info.filename:
        return "has a name that ends twice"
    if info.flag_bits & 1 or info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        return "is encrypted, or packed in another way"
    if info.compress_type == ZIP_DEFLATED and info.file_size > LARGEST_TEXT:
        return f"unpacks to {info.file_size:,} bytes"
    if info.compress_type == ZIP_STORED and info.compress_size != info.file_size:
        return "is not as long as it declares"
    return ""


def _read_manifest(path: Path, archive: ZipFile) -> dict[str, Any]:
    if MANIFEST not in archive.namelist():
        raise ConfigError(f"{path}: has no {MANIFEST}; expected a file that `pw share` wrote")
    with refusing(path, MANIFEST):
        data = archive.read(MANIFEST)
    try:
        manifest = parse_json(data)
    except ValueError as error:
        raise ConfigError(f"{path}: its {MANIFEST} is no JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != KIND:
        raise ConfigError(f"{path}: its {MANIFEST} is of another program; expected a file that `pw share` wrote")
    if manifest.get("version") != VERSION:
        raise ConfigError(
            f"{path}: of version {manifest.get('version')!r}, this suite reads {VERSION}; update the suite"
        )
    if bad := [key for key, type_ in FIELDS.items() if not isinstance(manifest.get(key), type_)]:
        raise ConfigError(f"{path}: its {MANIFEST} has no valid {bad[0]}; ask for it again")
    if not _is_valid(manifest):
        raise ConfigError(f"{path}: its {MANIFEST} holds values that this suite does not write; ask for it again")
    return manifest


def _is_valid(manifest: Mapping[str, Any]) -> bool:
    """Whether the values inside the lists and dictionaries of a manifest have their types."""
    texts: Sequence[Any] = [*manifest["words"], *manifest["verdict"], *manifest["commits"], *manifest["left_out"]]
    members, trainings = manifest["members"].values(), manifest["trainings"].values()
    return (
        re.fullmatch(r"\w[\w.-]*", manifest["ablation"]) is not None
        and manifest["ablation"] not in RESULTS
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(seed, int) for seed in manifest["seeds"])
        and all(
            isinstance(m, dict) and type(m.get("size")) is int and isinstance(m.get("sha256"), str) for m in members
        )
        and all(isinstance(t, dict) and {"key", "code"} <= t.keys() for t in trainings)
    )
