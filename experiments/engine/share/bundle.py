"""The zip file of a shared ablation: what may be in it, and how it is written and read. Begin with `Bundle`.

    manifest.json            what it is, and the size and SHA-256 of every other file
    requirements.lock        the environment
    ansc/                    the page and the table, as in the outputs folder
    train/ videos/ reference/ scores/    results, as there, each in the folder of its signature

Nothing else is accepted, so nothing in it is code or is unpickled. The same results give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from pw.io.arguments import ConfigError
from pw.io.files import human_size, parse_json
from pw.io.progress import Pace, ProgressLine

KIND, VERSION = "pixelwizard ablation", 1
MANIFEST, LOCK = "manifest.json", "requirements.lock"
RESULTS = ("train", "videos", "reference", "scores")
PACKED = (".mkv", ".mp4", ".png", ".safetensors")  # compressed already, or not worth the time
LARGEST_TEXT = 2**26  # bytes of a file that is deflated, unpacked
BLOCK = 2**20
FILES = rf"""
    {LOCK}
    | train/SIGNATURE/(config\.yaml|(metrics|diagnostics)\.jsonl|done\.json|(ema|online)\.safetensors)
    | videos/SIGNATURE/(config\.yaml|done\.json|((anchors|native)/)?[0-9]{{4,9}}\.mkv)
    | reference/SIGNATURE/(done\.json|(real|real_b|anchor(_b)?-SIGNATURE)/[0-9]{{4,9}}\.mkv)
    | scores/SIGNATURE/scores\.(json|csv)
    | ABLATION/(index\.html|table\.(md|tex|csv|json)|(plot|frontier|contact_sheet)\.png)
    | ABLATION/page/[0-9a-f]{{1,64}}(-preview)?\.(png|mp4)
"""  # fmt: skip
MANY = "*"  # any key, in a shape
SHAPE = {
    **{"ablation": str, "title": str, "scale": str, "seeds": [int], "words": [str], "verdict": [str], "commits": [str]},
    **{"results": {MANY: str}, "trainings": {MANY: {"key": str, "code": str}}, "adopted": [str], "left_out": [str]},
    "members": {MANY: {"size": int, "sha256": str}},
}
Progress = Callable[[int], None]  # called with the bytes of each block


def is_member(name: str, ablation: str) -> bool:
    """Whether a file of a shared ablation may have this name."""
    pattern = FILES.replace("SIGNATURE", "[0-9a-f]{8}").replace("ABLATION", re.escape(ablation))
    return re.fullmatch(pattern, name, re.VERBOSE | re.ASCII) is not None


def fits(value: Any, shape: Any) -> bool:
    """Whether a value of JSON has types such as {"seeds": [int], "results": {MANY: str}}; other keys may be there."""
    match shape:
        case list():
            return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
        case {"*": inner}:
            return isinstance(value, dict) and all(fits(item, inner) for item in value.values())
        case dict():
            return isinstance(value, dict) and all(fits(value.get(key), inner) for key, inner in shape.items())
    return isinstance(value, shape)


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
    with ZipFile(path, "w") as archive:
        for name, source in sorted(members.items()):
            entries[name] = _add(archive, name, source, progress)
        complete = {"format": KIND, "version": VERSION, **manifest, "members": entries}
        _add(archive, MANIFEST, (json.dumps(complete, indent=1, ensure_ascii=False) + "\n").encode(), progress)
    return complete


def _info(name: str, size: int) -> ZipInfo:
    info = ZipInfo(name)  # of 1980, so that the same results give the same bytes
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.create_system = 3
    info.compress_type = ZIP_STORED if name.endswith(PACKED) or size > LARGEST_TEXT else ZIP_DEFLATED
    info.file_size = size
    return info


def _add(archive: ZipFile, name: str, source: Path | bytes, progress: Progress) -> dict[str, Any]:
    sha = hashlib.sha256()
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        with archive.open(_info(name, size), "w") as target:
            while block := file.read(BLOCK):
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

    def results(self) -> dict[str, list[str]]:
        """`train/<signature>`, `videos/<signature>`, … -> its members."""
        folders: dict[str, list[str]] = {}
        for name in self.members:
            if name.split("/")[0] in RESULTS:
                folders.setdefault("/".join(name.split("/")[:2]), []).append(name)
        return folders

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
        for fault in _faults([*archive.infolist()], path.stat().st_size):
            raise ConfigError(f"{path}: {fault}; nothing was taken from it")
        manifest = read_object(path, archive, MANIFEST)
        for fault in _faults_of_manifest(manifest, archive.infolist()):
            raise ConfigError(f"{path}: {fault}")
        yield Bundle(path, archive, manifest)


def read_object(path: Path, archive: ZipFile, name: str) -> dict[str, Any]:
    """The object of a small JSON file in a zip file. Raises ConfigError."""
    if name not in archive.namelist():
        raise ConfigError(f"{path}: has no {name}; expected a file that `pw share` wrote")
    with refusing(path, name):
        data = archive.read(name)
    try:
        values = parse_json(data)
    except ValueError as error:
        raise ConfigError(f"{path}: {name} in it is no JSON ({error}); ask for it again") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: {name} in it is not what this suite writes; ask for it again")
    return values


def _faults(entries: Sequence[ZipInfo], size: int) -> Iterator[str]:
    """What no shared ablation has in its list of contents. size: bytes of the zip file"""
    for info in entries:
        name = f"{info.orig_filename!r} in it"
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG) or info.is_dir():
            yield f"{name} is a link, a folder or a device"
        if info.orig_filename != info.filename:
            yield f"{name} has a name that ends twice"
        if info.flag_bits & 1 or info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            yield f"{name} is encrypted, or packed in another way"
        is_text = info.compress_type == ZIP_DEFLATED or info.filename.endswith(".json")
        if is_text and info.file_size > LARGEST_TEXT:
            yield f"{name} unpacks to {info.file_size:,} bytes"
        if info.compress_type == ZIP_STORED and info.compress_size != info.file_size:
            yield f"{name} is not as long as it declares"
    yield from (f"{name!r} is in it twice" for name, n in Counter(i.filename for i in entries).items() if n > 1)
    if sum(info.compress_size for info in entries) > size:
        yield "files in it overlap"


def _faults_of_manifest(manifest: Mapping[str, Any], entries: Sequence[ZipInfo]) -> Iterator[str]:
    """What is wrong with a manifest, or in the zip file by its manifest."""
    if manifest.get("format") != KIND:
        yield f"its {MANIFEST} is of another program; expected a file that `pw share` wrote"
    if manifest.get("version") != VERSION:
        yield f"of version {manifest.get('version')!r}, this suite reads {VERSION}; update the suite"
    is_name = re.fullmatch(r"\w[\w.-]*", str(manifest.get("ablation"))) and manifest["ablation"] not in RESULTS
    if not is_name or not fits(manifest, SHAPE):
        yield f"its {MANIFEST} holds values that this suite does not write; ask for it again"
    sizes = {info.filename: info.file_size for info in entries if info.filename != MANIFEST}
    for name in sizes:
        if not is_member(name, manifest["ablation"]):
            yield f"{name!r} is no file of a shared ablation; nothing was taken from it"
    listed = {name: entry["size"] for name, entry in manifest["members"].items()}
    for name in sorted({name for name, _ in sizes.items() ^ listed.items()}):
        yield f"{name!r} is not as its manifest says; nothing was taken from it"
