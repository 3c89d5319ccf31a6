"""Files from the Hugging Face Hub, or from any address: listed, fetched with resumption, and verified.

HF_ENDPOINT names a mirror of the Hub, HF_TOKEN a token, HF_HUB_OFFLINE=1 keeps off the network. What a connection
brought before it broke lies beside the file's final name and is continued, also by a later call; only a whole file,
whose hash is right where one is known, gets that name. huggingface_hub does the addresses, tokens, redirects and
proxies. It would throw away half a file when its process ends, so the transfer is here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import time
import zipfile
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from pw.io.arguments import ConfigError
from pw.io.files import human_size, length, sha256
from pw.io.progress import Pace, ProgressLine

# huggingface_hub, imported after this, heeds it: nobody is told what is run here
os.environ.setdefault("DO_NOT_TRACK", "true")

T = TypeVar("T")
Kind = Literal["model", "dataset"]

TRIES = 4  # connections in a row that bring nothing, before an address is given up
PAUSE = 0.5  # s before the second; each later one waits twice as long, 8 s at most
PASSING = (408, 416, 429, 500, 502, 503, 504)  # statuses after which asking again may help
MEANING = {401: "wants a token", 403: "forbidden", 404: "no such file", 410: "no such file", 429: "too many requests"}


class FetchError(ConfigError):
    """A file that could not be fetched; the message says why and what would do."""


class FileSource(Protocol):
    """Where a file comes from."""

    @property
    def continues(self) -> bool: ...  # whether a file cut off can be filled up

    def fill(self, part: Path, size: int) -> None:
        """Write the file, of `size` bytes if not 0, to `part`. Raises FetchError or OSError."""


@dataclass(frozen=True)
class Web:
    """A plain address."""

    address: str
    continues = True

    def __str__(self) -> str:
        return self.address

    def fill(self, part: Path, size: int) -> None:
        download(self, self.address, [{}], part, size)


@dataclass(frozen=True)
class HubFile:
    """A file of a repository on Hugging Face, or on the mirror that HF_ENDPOINT names."""

    repo: str
    path: str
    revision: str = "main"
    kind: Kind = "model"
    continues = True

    def __str__(self) -> str:
        return f"{self.path} of {self.repo} at {endpoint()}" if self.path else f"{self.repo} at {endpoint()}"

    @property
    def address(self) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, self.path, repo_type=self.kind, revision=self.revision, endpoint=endpoint())

    def fill(self, part: Path, size: int) -> None:
        from huggingface_hub.utils import build_hf_headers

        identities = [build_hf_headers(), build_hf_headers(token=False)]
        # both: a token that has expired is refused where nobody would have asked for one
        download(self, self.address, identities[identities[0] == identities[1] :], part, size)


@dataclass(frozen=True)
class Listed:
    """What a server says of a file: its bytes (0: not known) and its hash, "" if none (see `fetch`)."""

    size: int
    digest: str
    etag: str = ""


@dataclass(frozen=True)
class HubRepository:
    """A repository at one commit, with its files by name."""

    name: str
    commit: str
    licence: str
    kind: Kind = "model"
    files: Mapping[str, Listed] = field(default_factory=dict)

    def file(self, name: str) -> HubFile:
        return HubFile(self.name, name, self.commit, self.kind)


def endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def check_online() -> None:
    """Raises FetchError where the network is not to be asked."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise FetchError("HF_HUB_OFFLINE=1, so nothing is asked of the network; unset it, or copy the files by hand")


def repository(name: str, revision: str, kind: Kind = "model") -> HubRepository:
    """What a repository holds at a branch, tag or commit. Raises FetchError."""
    from huggingface_hub import HfApi, constants

    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with _naming(HubFile(name, "", revision, kind)):
        check_online()
        try:
            info: Any = HfApi(endpoint=endpoint()).repo_info(
                name, revision=revision, repo_type=kind, files_metadata=True, timeout=timeout
            )
        except json.JSONDecodeError:
            raise FetchError("does not answer as the Hub does; set HF_ENDPOINT to another") from None
        if not info.sha:
            raise FetchError(f"does not say which commit {revision} is; set HF_ENDPOINT to another")
    files = {
        entry.rfilename: Listed(entry.size or 0, (entry.lfs.sha256 if entry.lfs else entry.blob_id) or "")
        for entry in info.siblings or ()
    }
    licence = getattr(info.card_data, "license", None) if info.card_data else None
    return HubRepository(name, info.sha, str(licence or "not stated"), kind, files)


def served(source: HubFile) -> Listed:
    """What the server says of one file, asked for its head only. Raises FetchError."""
    from huggingface_hub import constants, get_hf_file_metadata

    with _naming(source):
        found = get_hf_file_metadata(source.address, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    etag = found.etag or ""
    return Listed(found.size or 0, etag if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag) else "", etag)


@contextlib.contextmanager
def _naming(source: HubFile) -> Generator[None]:
    """What goes wrong within becomes a FetchError that names the source and what would do."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except FetchError as error:
        raise FetchError(f"{source}: {error}") from error
    except (HTTPError, OSError) as error:
        raise FetchError(f"{source}: {_reason(error, source)}") from error


def fetch(source: FileSource, path: Path, size: int = 0, digest: str = "") -> str:
    """Get a file from a source, verify it, and put it in its place: its SHA-256.

    size    bytes, 0 where nobody says
    digest  hex: SHA-256, whole or its first digits; or 40 digits, SHA-1 as git reckons it for a blob
    Raises FetchError: not to be had, or not the right one. What came of it stays if it can be continued.
    """
    part = partial_path(path, source)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        was_begun = part.exists()
        source.fill(part, size)
        found = sha256(part)
        problem = flaw(part, size) or _difference(part, found, digest)
        if problem is None:
            part.replace(path)
            return found
        part.unlink()
    except (FetchError, OSError) as error:
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = f"the disk of {path.parent} is full; make room, or choose another" if is_full else str(error)
        came = f"; {human_size(length(part))} came and stay, call again to continue" if length(part) else ""
        raise FetchError(f"{source}: {why}{came}") from error
    if was_begun and source.continues:  # what lay there may have been the wrong half
        return fetch(source, path, size, digest)
    raise FetchError(f"{source}: {problem}")


def partial_path(path: Path, source: FileSource) -> Path:
    """Where a file lies until it is whole: of each source another, for halves of two make a whole that is neither's."""
    return path.with_name(f".{path.name}.{hashlib.sha256(repr(source).encode()).hexdigest()[:8]}.part")


def partial_bytes(folder: Path) -> int:
    return sum(map(length, folder.rglob(".*.part")))


def flaw(path: Path, size: int = 0) -> str | None:
    """What is wrong with a file at first sight: something else in its place, or its length."""
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    found = length(path)
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself"
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page (an error message, or a page to sign in), not the file itself"
    if found == 0:
        return "empty"
    if size and found != size:
        return f"{'cut off, ' if found < size else ''}{found} bytes, wants {size}"
    if start.startswith(b"pk\x03\x04") and not zipfile.is_zipfile(path):
        return f"cut off, {found} bytes: the directory at its end is missing"
    return None


def _difference(path: Path, found: str, digest: str) -> str | None:
    from huggingface_hub.utils.sha import git_hash

    if len(digest) != 40:
        return None if found.startswith(digest) else f"gave a file whose sha256 is {found}, wants {digest}"
    git = git_hash(path.read_bytes())  # git's own are small
    return None if git == digest else f"gave a file whose git hash is {git}, wants {digest}"


def download(source: FileSource, address: str, identities: Sequence[Mapping[str, str]], part: Path, size: int) -> None:
    """Fill `part`, continuing what lies there, over several connections if need be.

    identities: headers to ask with, the next where one is refused. Raises FetchError, and OSError of the disk.
    """
    check_online()
    left = list(identities)

    def attempt() -> None:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            _transfer(address, left[0], part, size)
        except HfHubHTTPError as error:
            if error.response.status_code == 416:  # longer than the file there is
                part.unlink(missing_ok=True)
            if error.response.status_code not in (401, 403) or len(left) == 1:
                raise
            del left[0]
            attempt()

    _persistently(attempt, source, lambda: length(part))


def read_range(source: HubFile, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of a file. Raises FetchError, also where the server would send all of it."""
    from huggingface_hub.utils import build_hf_headers

    check_online()
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}"}
    whole = "the server ignores range requests and would send the whole file; set HF_ENDPOINT to another"

    def attempt() -> bytes:
        with _connection(source.address, headers) as answer:
            if answer.status_code != 206:
                raise FetchError(whole)
            return answer.read()

    with _naming(source):
        return _persistently(attempt, source)


def _persistently(attempt: Callable[[], T], source: FileSource, progress: Callable[[], int] = lambda: 0) -> T:
    """What an attempt returns, made again while it brings something, and TRIES times where it does not."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    tries = 0
    while True:
        before = progress()
        try:
            return attempt()
        except (HTTPError, OSError) as error:
            is_refusal = isinstance(error, HfHubHTTPError)
            is_disk = isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError)
            if is_disk and not is_refusal:
                raise
            tries = 0 if progress() > before else tries + 1
            if tries >= TRIES or (is_refusal and error.response.status_code not in PASSING):
                raise FetchError(_reason(error, source)) from error
        time.sleep(min(8, PAUSE * (2**tries - 1)))


def _transfer(address: str, headers: Mapping[str, str], part: Path, size: int) -> None:
    """Append over one connection what `part` lacks, with a line of progress."""
    have = length(part)
    if size and have == size:
        return
    with _connection(address, {**headers, **({"Range": f"bytes={have}-"} if have else {})}) as answer:
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise FetchError("answers with a web page, not the file")
        continues = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        start = have if answer.status_code == 206 and continues else 0
        rest = answer.headers.get("Content-Length")
        total = start + int(rest) if rest else 0
        if size and total not in (0, size):
            raise FetchError(f"has {total} bytes there, wants {size}: another file")
        if start:
            print(f"      continues at {human_size(start)}", flush=True)
        line, pace, come = ProgressLine(), Pace(start), start
        with part.open("r+b" if have else "wb") as file:
            file.seek(start)
            file.truncate()
            for block in answer.iter_bytes():  # of a given size, what came before a break would be lost
                come += file.write(block)
                if line.is_due and total:
                    speed, left = human_size(pace.rate(come)), pace.left(come, total)
                    line.show(f"      {human_size(come)} of {human_size(total)}, {speed}/s, {left} left")
        line.clear()
    if total and length(part) < total:
        raise ConnectionError(f"cut off after {length(part)} of {total} bytes")


@contextlib.contextmanager
def _connection(address: str, headers: Mapping[str, str]) -> Generator[Any]:
    """The answer of a server, its body not read yet. Raises huggingface_hub's HTTPError."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import hf_raise_for_status

    asked = {**headers, "Accept-Encoding": "identity"}
    with get_session().stream("GET", address, headers=asked, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
        hf_raise_for_status(answer)
        yield answer


def _reason(error: Exception, source: FileSource) -> str:
    """One line for what stood in the way, with what would do."""
    from huggingface_hub import errors

    if isinstance(error, ConnectionError) and not isinstance(error, errors.HfHubHTTPError):
        return str(error)
    if not isinstance(error, errors.HfHubHTTPError):
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        hint = "; check the connection, or name a mirror with HF_ENDPOINT" if isinstance(source, HubFile) else ""
        return f"no answer ({reason}){hint}"
    status, code = error.response.status_code, error.response.headers.get("X-Error-Code")
    answers = f"answers {status} ({MEANING[status]})" if status in MEANING else f"answers {status}"
    if not isinstance(source, HubFile):
        return answers
    if code == "RevisionNotFound":
        return f"revision={source.revision}: there is no such branch, tag or commit; try main"
    if code == "RepoNotFound" or (status == 404 and not source.path):
        mend = "check its name, or set HF_TOKEN to a token that may read it"
        return f"there is no such repository, or it is private: {mend}"
    if status in (401, 403):
        return f"{answers}; accept its terms on its page, and set HF_TOKEN to a token of that account"
    if status == 404:
        return f"{answers}; not there at revision {source.revision}; try main, or another HF_ENDPOINT"
    return f"{answers}; try later, or another mirror: HF_ENDPOINT"
