"""Shards of video: webdataset tars, written here, and indexed once to read clips by position.

Clips are read in place (`os.pread`), not with webdataset's reader: an order that is a function of (seed, epoch) resumes
exactly, and webdataset's shuffle does not. Nothing is unpickled or run: three endings, no pickles, local files only.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import math
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pw.io.files import parse_json
from pw.io.video import Frames

ENDINGS = ("npy", "json", "txt")
MANIFEST = "manifest.json"
MAX_BRACES, MAX_SHARDS = 20, 100_000  # of a pattern, and the names that it may stand for
HEADER = 4096  # bytes; a .npy header of a 4-d array takes 128
CAPTIONS = "captions"  # in a clip's json: all its captions, if there are several; the first one is its txt
CHECKSUMS = "crc32"  # in a clip's json: {ending: crc32 of that member}; shards of others, and older ones, have none
REMEDY = 'copy it again, or make it again with `make data path=DIR args="overwrite=true"`'


class ShardError(ValueError):
    """A shard is damaged or in another format; the message names it and a remedy."""


@dataclass(frozen=True)
class StoredClip:
    """One stored clip: uint8 [F, H, W, 3], read-only, its captions and its key."""

    frames: Frames
    captions: tuple[str, ...]
    key: str

    @property
    def caption(self) -> str:
        """The first caption, "" if there is none."""
        return self.captions[0] if self.captions else ""


@dataclass(frozen=True)
class Sample:
    """A clip's position in its shard: `members` is {ending: (offset, size)} in bytes; `shape` is None if unreadable."""

    key: str
    shard: Path
    members: dict[str, tuple[int, int]]
    shape: tuple[int, ...] | None

    @property
    def name(self) -> str:
        """For messages: independent of the shards' folder."""
        return f"{self.shard.name}/{self.key}"


def checksums(members: Mapping[str, bytes]) -> dict[str, int]:
    """The checksums of a clip's members except its json, in which they are stored under `CHECKSUMS`."""
    return {ending: zlib.crc32(content) for ending, content in members.items()}


def write_tar(path: Path, samples: Iterator[dict[str, Any]], max_bytes: float = float("inf")) -> int:
    """Write `samples` ({"__key__": …, ending: bytes}) to one tar until it has `max_bytes`; returns their number.

    Equal samples give equal bytes. Without samples no tar is written.
    """
    from webdataset.writer import TarWriter

    if (sample := next(samples, None)) is None:
        return 0
    # TarWriter on a file of ours: under WDS_SECURE=1 webdataset opens no local file by name.
    with open(path, "wb") as file, TarWriter(file, encoder=False, mtime=0, user="pw") as tar:
        size, number = tar.write(sample), 1
        while size < max_bytes and (sample := next(samples, None)) is not None:
            size, number = size + tar.write(sample), number + 1
    return number


def write_shards(folder: Path, split: str, samples: Iterable[dict[str, Any]], max_bytes: int) -> list[tuple[Path, int]]:
    """`write_tar` to `folder/<split>-000000.tar`, … of about `max_bytes`: (path, number of samples) of each."""
    shards, iterator = [], iter(samples)
    while number := write_tar(path := folder / f"{split}-{len(shards):06d}.tar", iterator, max_bytes):
        shards.append((path, number))
    return shards


class ShardIndex:
    """The clips of one split, by position. It holds no open file, so worker processes can share it.

    `urls` is a folder with a manifest.json (as `make data` leaves it), a pattern of local tars such as
    `shards/{train,val}-*.tar`, or a list of tars; tars count if their name begins with `split`.

    Raises ValueError without such tars, or for an address; ShardError for a shard that is truncated, differs from its
    manifest, or holds other files.
    """

    def __init__(self, urls: str | os.PathLike[str] | Sequence[str], split: str) -> None:
        paths = _find(urls, split)
        self.split = split
        self.samples = [sample for path in paths for sample in _index(path)]
        _check_unique(self.samples)
        self._hashes = _check_manifests(paths, self.samples)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of keys, sizes, and the manifest's sha256 if there is one."""
        parts = [(s.key, size) for s in self.samples for _, size in s.members.values()]
        return shard_digest(*parts, *self._hashes)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, i: int) -> StoredClip:
        """Raises ShardError if the bytes are not a uint8 [F, H, W, 3] array or do not match their checksum."""
        sample = self.samples[i]
        try:
            members = {ending: read_member(sample.shard, *place) for ending, place in sample.members.items()}
            _check_checksums(members)
            frames = _frames(members["npy"])
        except (ValueError, OSError, EOFError) as error:
            raise ShardError(f"{sample.shard}: cannot read {sample.key!r} ({error}); {REMEDY}") from error
        return StoredClip(frames, _captions(members), sample.key)

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of a clip, without reading its frames; none if they cannot be read, which `read` reports."""
        sample = self.samples[i]
        places = {ending: place for ending, place in sample.members.items() if ending != "npy"}
        if "txt" not in places:
            return ()
        try:
            return _captions({ending: read_member(sample.shard, *place) for ending, place in places.items()})
        except (ValueError, OSError):
            return ()


def find_shards(urls: str | os.PathLike[str] | Sequence[str]) -> list[Path]:
    """The tars of all splits, in order (see `ShardIndex`). Listed ones may be missing; ValueError if none is listed."""
    if not urls:
        raise ValueError("data.urls is not set: run `make data path=DIR`, then set data.urls=data/shards")
    if not isinstance(urls, str | os.PathLike):
        return sorted(path for url in urls for path in _expand(str(url)))
    if not os.path.isdir(urls):
        return _expand(str(urls))
    if (Path(urls) / MANIFEST).is_file():
        return [Path(urls) / name for name in _read_manifest(Path(urls))]
    raise ValueError(f"data.urls={urls}: no {MANIFEST} in it: let `make data path=DIR` finish")


def _find(urls: str | os.PathLike[str] | Sequence[str], split: str) -> list[Path]:
    paths = find_shards(urls)
    matching = [path for path in paths if path.name.startswith(f"{split}-")]
    if not matching:
        raise ValueError(
            f"data.urls={urls}: none of its {len(paths)} shards is named {split}-*.tar; `make data` leaves "
            "out a split that it has too few clips for: give it more or longer videos"
        )
    if missing := [str(path) for path in matching if not path.is_file()]:
        raise ShardError(f"{missing[0]}: listed in {MANIFEST}, but not there; {REMEDY}")
    return matching


def _expand(url: str) -> list[Path]:
    url = os.path.expanduser(url)
    if os.path.exists(url):  # its name may have signs of a pattern
        return [Path(url)]
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url):
        raise ValueError(f"data.urls={url}: only local files are read, no pipes and no addresses")
    patterns = [url]
    if "{" in url:
        patterns = _expand_braces(url)
    paths = [Path(path) for pattern in patterns for path in sorted(glob.glob(pattern))]
    if not paths:
        raise ValueError(f"data.urls={url}: not there; run `make data path=DIR`, or give its out=")
    return paths


def _expand_braces(url: str) -> list[str]:
    try:
        if url.count("{") > MAX_BRACES or _number_of_names(url) > MAX_SHARDS:
            raise ValueError(f"stands for more than {MAX_SHARDS} shards; write *, as in train-*.tar")
        from webdataset.shardlists import expand_urls

        return expand_urls(url)
    except ValueError as error:
        raise ValueError(f"data.urls={url}: {error}") from error


def _number_of_names(pattern: str) -> int:
    """Of a pattern with {first..last} and {one,other}; at least as many as it has."""
    number = 1
    for group in re.findall(r"\{([^{}]*)\}", pattern):
        ends = re.fullmatch(r"(-?\d+)\.\.(-?\d+)(\.\.-?\d+)?", group)
        number *= abs(int(ends[2]) - int(ends[1])) + 1 if ends else group.count(",") + 1
    return number


def index_tar(shard: Path, endings: Sequence[str]) -> dict[str, dict[str, tuple[int, int]]]:
    """The positions of all members of a tar, {key: {ending: (offset, size)}}, from its headers alone.

    Raises ShardError if it is truncated, has other endings or anything but files, or a sample lacks the first ending.
    """
    size = shard.stat().st_size
    members: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                key, ending = _key(shard, member, endings)
                if ending in members.setdefault(key, {}):
                    raise ShardError(f"{shard}: {member.name!r} occurs twice")
                if member.offset_data + member.size > size:
                    raise ShardError(f"{shard}: truncated within {member.name!r}; {REMEDY}")
                members[key][ending] = (member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise ShardError(f"{shard}: not a complete, uncompressed tar ({error}); {REMEDY}") from error
    if any(read_member(shard, size - 1024, 1024)):  # a tar ends with two empty blocks
        raise ShardError(f"{shard}: truncated, its end mark is missing; {REMEDY}")
    if incomplete := [key for key, parts in members.items() if endings[0] not in parts]:
        raise ShardError(f"{shard}: sample {incomplete[0]!r} has no .{endings[0]}; {REMEDY}")
    return members


def _index(shard: Path) -> list[Sample]:
    members = index_tar(shard, ENDINGS)
    return [Sample(key, shard, parts, _shape(shard, key, *parts["npy"])) for key, parts in members.items()]


def _key(shard: Path, member: tarfile.TarInfo, endings: Sequence[str]) -> tuple[str, str]:
    """webdataset's rule: the key ends, and the ending begins, at the first dot of the file name."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise ShardError(f"{shard}: refused, {member.name!r} points outside of the tar")
    if not member.isreg() or member.issparse():
        raise ShardError(f"{shard}: refused, {member.name!r} is a link or a device, not a file")
    stem, _, ending = path.name.partition(".")
    if ending not in endings:
        raise ShardError(f"{shard}: refused, {member.name!r} does not end in one of {', '.join(endings)}")
    return str(path.with_name(stem)), ending


def _shape(shard: Path, key: str, offset: int, size: int) -> tuple[int, ...] | None:
    """From the .npy header; None if it cannot be read, which `ShardIndex.read` reports later."""
    try:
        shape, _, dtype, _ = _array_header(read_member(shard, offset, min(size, HEADER)))
    except (ValueError, EOFError):
        return None
    if dtype.hasobject:
        raise ShardError(f"{shard}: refused, sample {key!r} holds pickled objects, which can run code")
    return shape


def _array_header(content: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """(shape, whether the first axis runs fastest, type, bytes of the header) of a .npy file."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return *read_header(stream), stream.tell()


def _frames(content: bytes) -> Frames:
    """The array of a .npy file in memory, not copied: numpy's reader copies in pieces and takes four times as long."""
    shape, is_fortran, dtype, offset = _array_header(content)
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or math.prod(shape) != len(content) - offset:
        raise ValueError(f"it holds {len(content) - offset} bytes of {dtype} {shape}, not uint8 [F, H, W, 3]")
    return np.frombuffer(content, np.uint8, offset=offset).reshape(shape, order="F" if is_fortran else "C")


def _captions(members: Mapping[str, bytes]) -> tuple[str, ...]:
    """All captions of a clip: its txt, or those of its json, if these begin with the txt. Raises ValueError."""
    text = members.get("txt", b"").decode(errors="replace").strip()
    metadata = parse_json(members.get("json", b"{}")) if text else None
    several = metadata.get(CAPTIONS) if isinstance(metadata, dict) else None
    if isinstance(several, list) and several[:1] == [text]:
        return tuple(map(str, several))
    return (text,) if text else ()


def _check_checksums(members: Mapping[str, bytes]) -> None:
    """Raise ValueError if a member does not match its checksum; without checksums nothing is verified."""
    metadata = parse_json(members.get("json", b"{}"))
    recorded = metadata.get(CHECKSUMS) if isinstance(metadata, dict) else None
    if isinstance(recorded, dict):
        actual = checksums({ending: content for ending, content in members.items() if ending != "json"})
        if changed := [e for e in sorted(recorded.keys() | actual) if recorded.get(e) != actual.get(e)]:
            raise ValueError(f"its .{changed[0]} does not match its checksum")


def _check_unique(samples: list[Sample]) -> None:
    first: dict[str, Path] = {}
    for sample in samples:
        if sample.key in first:
            raise ShardError(f"{sample.shard}: key {sample.key!r} is already in {first[sample.key]}")
        first[sample.key] = sample.shard


def _check_manifests(paths: list[Path], samples: list[Sample]) -> list[str]:
    """The sha256 of each shard listed in a manifest of its folder. Raises ShardError if its size, number of clips or
    their keys differ; manifests of earlier versions do not have the keys."""
    keys: dict[Path, list[str]] = {path: [] for path in paths}
    for sample in samples:
        keys[sample.shard].append(sample.key)
    hashes = []
    for path in paths:
        if (entry := manifest_entry(path)) is None:
            continue
        for what, actual in (("bytes", path.stat().st_size), ("samples", len(keys[path]))):
            if entry[what] != actual:
                raise ShardError(f"{path}: {actual} {what}, but {MANIFEST} says {entry[what]}; {REMEDY}")
        if entry.get("keys", actual := shard_digest(*keys[path])) != actual:
            raise ShardError(f"{path}: has other clips than {MANIFEST} says; {REMEDY}")
        hashes.append(entry["sha256"])
    return hashes


@lru_cache(maxsize=8)
def _manifest_at(path: Path, _mtime_ns: int) -> dict[str, Any]:
    try:
        return {shard["file"]: shard for shard in parse_json(path.read_text())["shards"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: not a manifest ({error}); {REMEDY}") from error


def manifest_entry(shard: Path) -> dict[str, Any] | None:
    """A shard's entry in its folder's manifest: file, split, samples, bytes, sha256; None without one."""
    return _read_manifest(shard.parent).get(shard.name)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """{file name: its entry}; empty if there is no manifest."""
    path = folder / MANIFEST
    return _manifest_at(path, path.stat().st_mtime_ns) if path.is_file() else {}


def read_member(path: Path, offset: int, size: int) -> bytes:
    """Bytes of a file, opened for each read (20 us): forked workers share no file, and shards may be many."""
    parts: list[bytes] = []
    offset = max(0, offset)
    with open(path, "rb") as file:
        # one call reads 2 GB at most, a 4K clip has 3
        while size > 0 and (part := os.pread(file.fileno(), size, offset)):
            parts.append(part)
            size, offset = size - len(part), offset + len(part)
    return b"".join(parts)


def shard_digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
