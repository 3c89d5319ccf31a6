"""Lists, downloads (with resume) and verifies files from the Hugging Face Hub or from any URL.

HF_ENDPOINT sets a mirror of the Hub, HF_TOKEN a token; HF_HUB_OFFLINE=1 disables the network. A partial download is a
file beside the final name, which a later call continues; only a complete file, with the right hash if one is known,
gets the final name. huggingface_hub handles URLs, tokens, redirects and proxies. The transfer itself is here, because
huggingface_hub discards a partial file when its process ends.
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

# for huggingface_hub, which is imported later: no telemetry
os.environ.setdefault("DO_NOT_TRACK", "true")

T = TypeVar("T")
Kind = Literal["model", "dataset"]

TRIES = 4  # consecutive connections without new bytes before a download fails
PAUSE = 0.5  # s before the second try; doubles with each try, at most 8 s
RETRY_STATUSES = (408, 416, 429, 500, 502, 503, 504)
MEANINGS = {401: "needs a token", 403: "forbidden", 404: "no such file", 410: "no such file", 429: "too many requests"}


class FetchError(ConfigError):
    """A download failed; the message gives the reason and a remedy."""


class FileSource(Protocol):
    """The origin of a file."""

    @property
    def continues(self) -> bool: ...  # whether a partial file can be continued

    def fill(self, part: Path, size: int) -> None:
        """Write the file, of `size` bytes if not 0, to `part`. Raises FetchError or OSError."""


@dataclass(frozen=True)
class Web:
    """A plain URL."""

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
        # also without a token: an expired token is refused even for a public file
        download(self, self.address, identities[identities[0] == identities[1] :], part, size)


@dataclass(frozen=True)
class FileMetadata:
    """A file's metadata from a server: its bytes (0: unknown) and its hash, "" if none (see `fetch`)."""

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
    files: Mapping[str, FileMetadata] = field(default_factory=dict)

    def file(self, name: str) -> HubFile:
        return HubFile(self.name, name, self.commit, self.kind)


def endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def check_online() -> None:
    """Raises FetchError if the network is disabled."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise FetchError("HF_HUB_OFFLINE=1, so the network is not used; unset it, or copy the files by hand")


def revision_name(text: str) -> str:
    """A branch, tag or commit, "" for none. Raises ValueError for what cannot be one."""
    if text and (".." in text or not re.fullmatch(r"[\w-][\w./-]{0,199}", text)):
        raise ValueError("expected a branch, tag or commit, e.g. main")
    return text


def repository(name: str, revision: str, kind: Kind = "model") -> HubRepository:
    """A repository at a branch, tag or commit. Raises FetchError."""
    from huggingface_hub import HfApi, constants

    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with _name_source(HubFile(name, "", revision, kind)):
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
        entry.rfilename: FileMetadata(entry.size or 0, (entry.lfs.sha256 if entry.lfs else entry.blob_id) or "")
        for entry in info.siblings or ()
    }
    licence = getattr(info.card_data, "license", None) if info.card_data else None
    return HubRepository(name, info.sha, str(licence or "not stated"), kind, files)


def server_metadata(source: HubFile) -> FileMetadata:
    """The server's metadata of one file, by a HEAD request. Raises FetchError."""
    from huggingface_hub import constants, get_hf_file_metadata

    with _name_source(source):
        metadata = get_hf_file_metadata(source.address, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    etag = metadata.etag or ""
    return FileMetadata(metadata.size or 0, etag if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag) else "", etag)


@contextlib.contextmanager
def _name_source(source: HubFile) -> Generator[None]:
    """Turns an error inside into a FetchError that names the source and a remedy."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except FetchError as error:
        raise FetchError(f"{source}: {error}") from error
    except (HTTPError, OSError) as error:
        raise FetchError(f"{source}: {_reason(error, source)}") from error


def fetch(source: FileSource, path: Path, size: int = 0, digest: str = "") -> str:
    """Download a file, verify it and rename it to `path`; returns its SHA-256.

    size    bytes, 0 if unknown
    digest  hex: SHA-256, whole or its first digits; or 40 digits, the SHA-1 of a git blob
    Raises FetchError: the download failed, or gave another file. A partial file stays if it can be continued.
    """
    part = partial_path(path, source)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        was_partial = part.exists()
        source.fill(part, size)
        file_hash = sha256(part)
        problem = file_problem(part, size)
        if problem is None and (difference := hash_problem(part, file_hash, digest)):
            problem = f"gave a file whose {difference}"
        if problem is None:
            part.replace(path)
            return file_hash
        part.unlink()
    except (FetchError, OSError) as error:
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"the disk of {path.parent} is full; make room, or choose another" if is_full else str(error)
        partial_note = f"; {human_size(length(part))} are kept, call again to continue" if length(part) else ""
        raise FetchError(f"{source}: {reason}{partial_note}") from error
    if was_partial and source.continues:  # the partial file may have been of another file
        return fetch(source, path, size, digest)
    raise FetchError(f"{source}: {problem}")


def partial_path(path: Path, source: FileSource) -> Path:
    """Path of a partial download; it depends on the source, so that two sources are never mixed in one file."""
    return path.with_name(f".{path.name}.{hashlib.sha256(repr(source).encode()).hexdigest()[:8]}.part")


def partial_bytes(folder: Path) -> int:
    return sum(map(length, folder.rglob(".*.part")))


def file_problem(path: Path, size: int = 0) -> str | None:
    """The problem of a file that is another kind of file or has the wrong length; None if there is none."""
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    actual = length(path)
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself"
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page (an error message, or a page to sign in), not the file itself"
    if actual == 0:
        return "empty"
    if size and actual != size:
        return f"{'truncated, ' if actual < size else ''}{actual} bytes, expected {size}"
    if start.startswith(b"pk\x03\x04") and not zipfile.is_zipfile(path):
        return f"truncated, {actual} bytes: the directory at its end is missing"
    return None


def hash_problem(path: Path, file_hash: str, digest: str) -> str | None:
    """How a file, whose SHA-256 is `file_hash`, differs from a digest (see `fetch`); None if it does not."""
    from huggingface_hub.utils.sha import git_hash

    if len(digest) != 40:
        return None if file_hash.startswith(digest) else f"sha256 is {file_hash}, expected {digest}"
    git_digest = git_hash(path.read_bytes())  # only small files are stored in git itself
    return None if git_digest == digest else f"git hash is {git_digest}, expected {digest}"


def download(source: FileSource, address: str, identities: Sequence[Mapping[str, str]], part: Path, size: int) -> None:
    """Complete the file `part`, over several connections if necessary.

    identities: request headers, tried in turn when the server refuses one. Raises FetchError, or OSError of the disk.
    """
    check_online()
    remaining = list(identities)

    def attempt() -> None:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            _transfer(address, remaining[0], part, size)
        except HfHubHTTPError as error:
            if error.response.status_code == 416:  # the partial file is longer than the whole
                part.unlink(missing_ok=True)
            if error.response.status_code not in (401, 403) or len(remaining) == 1:
                raise
            del remaining[0]
            attempt()

    _retry(attempt, source, lambda: length(part))


def read_range(source: HubFile, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of a file. Raises FetchError, also if the server does not support ranges."""
    from huggingface_hub.utils import build_hf_headers

    check_online()
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}"}
    message = "the server ignores range requests and would send the whole file; set HF_ENDPOINT to another"

    def attempt() -> bytes:
        with _connection(source.address, headers) as response:
            if response.status_code != 206:
                raise FetchError(message)
            return response.read()

    with _name_source(source):
        return _retry(attempt, source)


def _retry(attempt: Callable[[], T], source: FileSource, progress: Callable[[], int] = lambda: 0) -> T:
    """The result of `attempt`, repeated after an error while `progress` grows, and TRIES times if it does not."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    tries = 0
    while True:
        progress_before = progress()
        try:
            return attempt()
        except (HTTPError, OSError) as error:
            is_refusal = isinstance(error, HfHubHTTPError)
            is_disk = isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError)
            if is_disk and not is_refusal:
                raise
            tries = 0 if progress() > progress_before else tries + 1
            if tries >= TRIES or (is_refusal and error.response.status_code not in RETRY_STATUSES):
                raise FetchError(_reason(error, source)) from error
        time.sleep(min(8, PAUSE * (2**tries - 1)))


def _transfer(address: str, headers: Mapping[str, str], part: Path, size: int) -> None:
    """Append the rest of the file to `part` over one connection, with a line of progress."""
    offset = length(part)
    if size and offset == size:
        return
    with _connection(address, {**headers, **({"Range": f"bytes={offset}-"} if offset else {})}) as response:
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise FetchError("answers with a web page, not the file")
        continues = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
        start = offset if response.status_code == 206 and continues else 0
        remaining = response.headers.get("Content-Length")
        total = start + int(remaining) if remaining else 0
        if size and total not in (0, size):
            raise FetchError(f"has {total} bytes there, expected {size}: another file")
        if start:
            print(f"      continues at {human_size(start)}", flush=True)
        line, pace, received = ProgressLine(), Pace(start), start
        with part.open("r+b" if offset else "wb") as file:
            file.seek(start)
            file.truncate()
            for block in response.iter_bytes():  # no fixed size: that would lose the last bytes before a break
                received += file.write(block)
                if line.is_due and total:
                    speed, time_left = human_size(pace.rate(received)), pace.time_left(received, total)
                    line.show(f"      {human_size(received)} of {human_size(total)}, {speed}/s, {time_left} left")
        line.clear()
    if total and length(part) < total:
        raise ConnectionError(f"truncated after {length(part)} of {total} bytes")


@contextlib.contextmanager
def _connection(address: str, headers: Mapping[str, str]) -> Generator[Any]:
    """A server's response whose body is not read yet. Raises huggingface_hub's HTTPError."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import hf_raise_for_status

    headers, timeout = {**headers, "Accept-Encoding": "identity"}, constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", address, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        yield response


def _reason(error: Exception, source: FileSource) -> str:
    """One line with the reason of an error and a remedy."""
    from huggingface_hub import errors

    if isinstance(error, ConnectionError) and not isinstance(error, errors.HfHubHTTPError):
        return str(error)
    if not isinstance(error, errors.HfHubHTTPError):
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        hint = "; check the connection, or name a mirror with HF_ENDPOINT" if isinstance(source, HubFile) else ""
        return f"no answer ({reason}){hint}"
    status, code = error.response.status_code, error.response.headers.get("X-Error-Code")
    answers = f"answers {status} ({MEANINGS[status]})" if status in MEANINGS else f"answers {status}"
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
