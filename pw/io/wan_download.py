"""Fetch Wan2.2-TI2V-5B: `pw weights`.

The files go into the Hugging Face cache (HF_HOME, HF_HUB_CACHE), or to `dest`; see `pw.io.hub` for mirrors, tokens and
what happens to a download that is cut off. Nothing here imports torch.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pw.io import hub
from pw.io.arguments import Command, ConfigError, option
from pw.io.files import alone, check_space, human_size, length
from pw.io.hub import FetchError, HubRepository
from pw.io.wan_weights import FETCHED, PARTS, REPO, REVISION, WeightsError, check, problems, snapshot

LICENCE = "Apache-2.0"
ROOM = "make room, or choose another disk: HF_HOME=DIR for the cache, or dest=DIR"


@dataclass(frozen=True)
class WeightsOptions:
    """What to fetch, and where to."""

    dest: Path | None = option(None, "a folder to fetch to; without it, the Hugging Face cache")
    repo: str = option(REPO, "OWNER/NAME of a repository in diffusers' layout")
    revision: str = option("", "branch, tag or commit; without it, the pinned commit, or main of another repository")
    dry_run: bool = option(False, "list what would be fetched, and fetch nothing")

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo):
            raise ConfigError(f"repo={self.repo}: wants OWNER/NAME, e.g. {REPO}")
        if self.dest is not None and self.dest.exists() and not self.dest.is_dir():
            raise ConfigError(f"dest={self.dest}: is a file; wants a folder")
        if not self.revision:
            object.__setattr__(self, "revision", REVISION if self.repo == REPO else "main")


def fetch(options: WeightsOptions) -> Path | None:
    """Download what is missing, verify it, and print what is done: the folder, None for a dry run.

    Raises ConfigError when the network, the repository, the revision or the disk is in the way.
    """
    if hub.is_offline():
        return _offline(options)
    repository = hub.repository(options.repo, options.revision)
    wanted = {name: file.size for name, file in repository.files.items() if FETCHED.fullmatch(name)}
    if not wanted:
        raise WeightsError(
            f"repo={options.repo}: holds none of {', '.join(f'{part}/' for part in PARTS)}, so it is not in diffusers' "
            f"layout; wants one that is, e.g. repo={REPO}"
        )
    folder = options.dest or snapshot(options.repo, repository.commit)
    missing = [name for name, size in wanted.items() if length(folder / name) != size]
    licence = LICENCE if options.repo == REPO else repository.licence
    total, rest = sum(wanted.values()), sum(wanted[name] for name in missing)
    print(f"{options.repo} at {repository.commit[:8]}, licence {licence}: {len(wanted)} files, {human_size(total)}")
    print(f"to {folder}: {human_size(rest)} to fetch")
    contents = folder if options.dest else folder.parent.parent / "blobs"
    check_space("dest", folder, rest - hub.partial_bytes(contents), ROOM)
    if options.dry_run:
        for name, size in wanted.items():
            print(f"  {human_size(size):>10}  {name}{'' if name in missing else '  (there)'}")
        return None
    if missing:
        with alone((options.dest or folder.parent.parent) / ".weights.lock"):
            for number, name in enumerate(missing, start=1):
                print(f"  {number}/{len(missing)}  {human_size(wanted[name]):>10}  {name}", flush=True)
                _fetch_file(repository, name, folder, options.dest)
    check(folder, [part for part in PARTS if any(name.startswith(f"{part}/") for name in wanted)])
    print(f"all there and whole: {folder}")
    return folder


def _fetch_file(repository: HubRepository, name: str, folder: Path, dest: Path | None) -> None:
    """One file to its final name; into the cache as huggingface_hub lays it out."""
    from huggingface_hub import hf_hub_download

    source, listed, final = repository.file(name), repository.files[name], folder / name
    served = hub.served(source)
    if served.size not in (0, listed.size):
        raise FetchError(
            f"{name}: the listing says {listed.size} bytes, the server has {served.size}; call again later, or choose "
            "another mirror (HF_ENDPOINT)"
        )
    # the cache keeps contents by their hash, and links names to them
    content = final if dest else folder.parent.parent / "blobs" / served.etag
    for path in {content, final}:
        if path.exists() and length(path) != listed.size:
            print(f"      was {length(path)} bytes: fetched anew")
        if length(path) != listed.size:
            path.unlink(missing_ok=True)
    if not content.exists():
        hub.fetch(source, content, listed.size, served.digest or listed.digest)
    if dest is None:  # only links it: the content is there
        hf_hub_download(repository.name, name, revision=repository.commit, endpoint=hub.endpoint())


def _offline(options: WeightsOptions) -> Path:
    """The folder if all of it is there already. Raises WeightsError saying what is not."""
    folder = options.dest or snapshot(options.repo, options.revision)
    if not folder.is_dir():
        raise WeightsError(
            f"HF_HUB_OFFLINE=1 and nothing of {options.repo} is at {folder}; unset it to fetch, or name a copy with "
            "weights=DIR"
        )
    try:
        check(folder)
    except WeightsError as error:
        there = [part for part in PARTS if not any(problems(folder / part, part))]
        raise WeightsError(
            f"HF_HUB_OFFLINE=1, and not all is there (whole: {', '.join(there) or 'no part'}): {error}"
        ) from None
    print(f"HF_HUB_OFFLINE=1: nothing was asked of the network; all there and whole: {folder}")
    return folder


def _run(options: WeightsOptions) -> int:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of linking files that are there
    fetch(options)
    return 0


main = Command(WeightsOptions, _run, resumes="what came stays, call again to continue")
