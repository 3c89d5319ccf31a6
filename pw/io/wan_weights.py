"""The published weights: where they are, whether they are whole, and how to get them.

    pw weights [dest=DIR] [repo=OWNER/NAME] [revision=…] [dry_run=true]

They go into the Hugging Face cache (HF_HOME, HF_HUB_CACHE), or to `dest`. HF_ENDPOINT names a mirror, HF_TOKEN a token,
HF_HUB_OFFLINE=1 keeps it off the network. A download that is cut off continues where it stopped, also in a later call:
its parts lie beside their final name, which only whole files get.

The only module that knows huggingface_hub. Nothing here imports torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
REVISION = "b8fff7315c768468a5333511427288870b2e9635"
ORIGINAL_REPO = "Wan-AI/Wan2.2-TI2V-5B"  # the same transformer in Wan's own layout: pw.nn.convert reads it
ORIGINAL_REVISION = "921dbaf3f1674a56f47e83fb80a34bac8a8f203e"
LICENCE = "Apache-2.0"
PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")

# What of a part is needed: its configuration, the stem of its tensors, and files of which one must be there.
_CONFIGS = {
    **dict.fromkeys(("transformer", "vae", "text_encoder"), "config.json"),
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
_TENSORS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
_VOCABULARIES = ("tokenizer.json", "spiece.model")
_FETCHED = re.compile(rf"model_index\.json|({'|'.join(PARTS)})/[^/]+\.(safetensors|json|model|txt)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LONGEST_HEADER = 100 << 20  # bytes; safetensors' own limit
_BLOCK, _BLOCKS = 1 << 16, 65  # bytes of a block that a fingerprint reads, and how many more of them than one


class WeightsError(ValueError):
    """Weights that are missing, cut off or out of reach; the message says which and what would do."""


@dataclass(frozen=True)
class _File:
    """A file of a repository: its path and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class _Listing:
    """What of a repository is fetched, at which commit, under which licence."""

    repo: str
    commit: str
    licence: str
    files: tuple[_File, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def locate(weights: str | None) -> Path:
    """The folder of the weights, in diffusers' layout: `weights`, or the pinned snapshot in the Hugging Face cache.

    Looks at no network. Raises WeightsError when there is none, with the command that fetches it.
    """
    if weights is None:
        folder = _snapshot(REPO, REVISION)
        if not folder.is_dir():
            raise WeightsError(
                f"no weights: {REPO} at revision {REVISION[:8]} is not in {_cache()}; `make weights` fetches it "
                "(HF_HOME says where to), weights=DIR names a folder that has it"
            )
        return folder
    folder = Path(weights).expanduser()
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"weights={weights}: is a file; wants the folder that holds transformer/, vae/ and the rest")
    if not folder.is_dir():
        raise WeightsError(f'weights={weights}: no such folder; `make weights args="dest={weights}"` fetches it there')
    if not any((folder / part).is_dir() for part in PARTS):
        there = sorted(path.name for path in folder.iterdir())[:5]
        raise WeightsError(
            f"weights={weights}: has no {', '.join(f'{part}/' for part in PARTS)}; it holds "
            f'{", ".join(there) or "nothing"}. Wants diffusers\' layout, as `make weights args="dest=DIR"` fetches it'
        )
    return folder


def check(folder: Path, parts: Sequence[str] = PARTS) -> None:
    """That the parts are whole: every file is there, and every `.safetensors` as long as its own header says.

    Loads no tensors. Raises WeightsError listing every file that is missing or cut off, and the command that mends it.
    """
    problems = [f"{part}/{problem}" for part in parts for problem in _problems(folder / part, part)]
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise WeightsError(f"{folder} is not whole; {_mends(folder)} mends it:{listed}")


def fetch(
    repo: str = REPO, revision: str = REVISION, dest: Path | None = None, *, dry_run: bool = False
) -> Path | None:
    """Download what is missing, check it, and say so on the way: the folder, None if only asked what would be done.

    Raises WeightsError when the network, the repository, the revision or the disk is in the way.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before the first import of huggingface_hub
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return _offline(repo, revision, dest)
    listing = _listing(repo, revision)
    folder = _snapshot(repo, listing.commit) if dest is None else dest
    wanted = [file for file in listing.files if _length(folder / file.name) != file.size]
    print(f"{repo} at {listing.commit[:8]}, licence {listing.licence}: {len(listing.files)} files, {_gb(listing.size)}")
    print(f"to {folder}: {_gb(sum(file.size for file in wanted))} to fetch")
    _check_disk(folder, wanted)
    if dry_run:
        for file in listing.files:
            print(f"  {_gb(file.size):>10}  {file.name}{'' if file in wanted else '  (there)'}")
        return None
    if wanted:
        from filelock import FileLock

        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(_lock(folder)):  # a second call waits, then finds it done
            for number, file in enumerate(wanted, start=1):
                print(f"  {number}/{len(wanted)}  {_gb(file.size):>10}  {file.name}", flush=True)
                _fetch_file(listing, file, folder, dest)
    wrong = [
        f"{file.name} has {_length(folder / file.name)} bytes, not {file.size}" for file in _unequal(listing, folder)
    ]
    if wrong:
        raise WeightsError(f"{folder}: {'; '.join(wrong)}; call again")
    check(folder, [part for part in PARTS if any(file.name.startswith(f"{part}/") for file in listing.files)])
    print(f"all there and whole: {folder}")
    return folder


def overrides_of(weights: Path) -> list[str]:
    """What the configuration files of weights in diffusers' layout say of backbone and codec, as overrides.

    So a smaller pipeline of the same make, such as the tests write, needs no configuration of its own. Raises
    WeightsError when a part is of another make.
    """
    dit, vae = _part(weights, "transformer", "WanTransformer3DModel"), _part(weights, "vae", "AutoencoderKLWan")
    names = ("num_attention_heads", "attention_head_dim", "in_channels", "ffn_dim", "num_layers", "text_dim")
    missing = [name for name in (*names, "freq_dim", "rope_max_seq_len", "patch_size") if name not in dit]
    if missing:
        raise WeightsError(f"{weights / 'transformer' / 'config.json'}: does not say {', '.join(missing)}")
    words = [f"backbone.{name}={dit[name]}" for name in (*names, "freq_dim", "rope_max_seq_len")]
    words.append(f"backbone.patch_size=[{','.join(map(str, dit['patch_size']))}]")
    words.append("backbone.text_tokens=512")
    words += [f"codec.{ours}={vae.get(theirs, default)}" for ours, (theirs, default) in _CODEC.items()]
    return words


# Ours -> diffusers' name of it, and what it takes where a configuration does not say: Wan2.1's.
_CODEC = {
    "channels": ("z_dim", 16),
    "factor": ("scale_factor_spatial", 8),
    "frames_factor": ("scale_factor_temporal", 4),
}


def _part(weights: Path, part: str, wanted: str) -> dict[str, Any]:
    found = json.loads((weights / part / "config.json").read_text())
    if found.get("_class_name", wanted) != wanted:
        raise WeightsError(f"{weights / part}: is a {found['_class_name']}, wants a {wanted}: Wan2.2-TI2V-5B's")
    return found


def fingerprint(path: Path) -> str:
    """16 hex digits of a file or folder of weights: names, sizes, and of each file up to 66 blocks of 64 KiB.

    The first, the last, and others evenly spread: of 20 GB one every 0.3 GB, so that a checkpoint whose adapters alone
    differ has another. Files of up to 4 MiB are read whole.
    """
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    found = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        found.update(f"{file.relative_to(path) if path.is_dir() else ''} {size}\n".encode())
        with file.open("rb") as opened:
            for block in range(_BLOCKS + 1):
                opened.seek(block * max(0, size - _BLOCK) // _BLOCKS)
                found.update(opened.read(_BLOCK))
    return found.hexdigest()[:16]


def _unequal(listing: _Listing, folder: Path) -> list[_File]:
    return [file for file in listing.files if _length(folder / file.name) != file.size]


def _problems(folder: Path, part: str) -> Iterator[str]:
    """What is wrong with one part, each as `file: what`."""
    config = folder / _CONFIGS[part]
    if not config.exists():
        yield f"{config.name}: missing"
    elif _parsed(config) is None:
        yield f"{config.name}: not JSON ({_length(config)} bytes)"
    if part == "tokenizer" and not any((folder / name).exists() for name in _VOCABULARIES):
        yield f"{' or '.join(_VOCABULARIES)}: missing"
    if part not in _TENSORS:
        return
    whole = folder / _TENSORS[part]
    index = folder / f"{whole.name}.index.json"
    if index.exists():
        weight_map = (_parsed(index) or {}).get("weight_map")
        if not isinstance(weight_map, dict):
            yield f"{index.name}: not an index of shards ({_length(index)} bytes)"
            return
        files = [folder / name for name in sorted(set(map(str, weight_map.values())))]
    else:
        shards = sorted(folder.glob(f"{whole.stem}-*.safetensors"))
        if shards and not whole.exists():
            yield f"{index.name}: missing"
        files = shards if shards and not whole.exists() else [whole]
    for file in files:
        if problem := _cut(file):
            yield f"{file.name}: {problem}"


def _cut(path: Path) -> str | None:
    """What is wrong with the length of a `.safetensors` file: 8 bytes, a JSON header of that length, the tensors."""
    found = _length(path)
    if found is None:
        return "missing"
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            return "a Git LFS pointer, not the file itself"
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(found, _LONGEST_HEADER):
            return f"{found} bytes, cut off or not safetensors"
        try:
            header = json.loads(file.read(length))
            end = max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return "its header is damaged"
    expected = 8 + length + end
    return None if found == expected else f"{found} bytes, its header says {expected}"


def _parsed(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _length(path: Path) -> int | None:
    """Bytes of a file; None if it is not there, or a link to nothing."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _mends(folder: Path) -> str:
    """The command that completes a folder."""
    owner = folder.parent.parent.name
    if folder.parent.name == "snapshots" and owner.startswith("models--"):
        repo = "/".join(owner.split("--")[1:])
        choices = [] if repo == REPO else [f"repo={repo}"]
        choices += [] if folder.name == REVISION else [f"revision={folder.name}"]
        return f'`make weights args="{" ".join(choices)}"`' if choices else "`make weights`"
    return f'`make weights args="dest={folder}"`'


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _snapshot(repo: str, revision: str) -> Path:
    """Where the cache keeps (or would keep) a revision of a repository; a branch or tag as it was last seen."""
    from huggingface_hub.file_download import repo_folder_name

    folder = _cache() / repo_folder_name(repo_id=repo, repo_type="model")
    reference = folder / "refs" / revision
    if not _COMMIT.fullmatch(revision) and reference.is_file():
        revision = reference.read_text().strip()
    return folder / "snapshots" / revision


def _lock(folder: Path) -> Path:
    return (folder.parent.parent if folder.parent.name == "snapshots" else folder) / ".weights.lock"


def _offline(repo: str, revision: str, dest: Path | None) -> Path:
    """The folder if all of it is there already. Raises WeightsError saying what is not."""
    folder = _snapshot(repo, revision) if dest is None else dest
    if not folder.is_dir():
        raise WeightsError(
            f"HF_HUB_OFFLINE=1 and nothing of {repo} is at {folder}; unset it to fetch, or name a copy with weights=DIR"
        )
    try:
        check(folder)
    except WeightsError as error:
        there = [part for part in PARTS if not any(_problems(folder / part, part))]
        raise WeightsError(
            f"HF_HUB_OFFLINE=1, and not all is there (whole: {', '.join(there) or 'no part'}): {error}"
        ) from None
    print(f"HF_HUB_OFFLINE=1: nothing was asked of the network; all there and whole: {folder}")
    return folder


def _listing(repo: str, revision: str) -> _Listing:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.hf_api import RepoFile

    try:
        info = HfApi().model_info(repo, revision=revision)
        commit = info.sha or revision
        entries = list(HfApi().list_repo_tree(repo, revision=commit, recursive=True))
    except (HTTPError, OSError) as error:
        raise _explained(error, repo, revision) from error
    files = tuple(
        _File(entry.path, entry.size)
        for entry in entries
        if isinstance(entry, RepoFile) and _FETCHED.fullmatch(entry.path)
    )
    if not files:
        raise WeightsError(
            f"repo={repo}: holds none of {', '.join(f'{part}/' for part in PARTS)}, so it is not in diffusers' layout; "
            f"wants one that is, e.g. repo={REPO}"
        )
    stated = getattr(info.card_data, "license", None)
    return _Listing(repo, commit, LICENCE if repo == REPO else str(stated or "not stated"), files)


def _check_disk(folder: Path, wanted: Sequence[_File]) -> None:
    """Raises WeightsError when the files do not fit where they go; what an earlier call left half counts as there."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    halves = sum(path.stat().st_size for path in _halves(folder))
    needed, free = sum(file.size for file in wanted) - halves, shutil.disk_usage(place).free
    if needed > free:
        raise WeightsError(
            f"{_gb(needed)} needed, {_gb(free)} free at {place}; make room, or choose another disk: HF_HOME=DIR for "
            'the cache, or args="dest=DIR"'
        )


def _halves(folder: Path) -> list[Path]:
    root = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
    return list(root.rglob(".*.partial"))


def _fetch_file(listing: _Listing, file: _File, folder: Path, dest: Path | None) -> None:
    """One file to its final name, continuing what an earlier call left.

    huggingface_hub throws a half file away when its process ends, so the half is kept here; its transport, its retries
    and the cache's layout are its own.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    final = folder / file.name
    try:
        url = hf_hub_url(listing.repo, file.name, revision=listing.commit)
        served = get_hf_file_metadata(url)
        if served.size is not None and served.size != file.size:
            raise WeightsError(
                f"{file.name}: the listing says {file.size} bytes, the server has {served.size}; call again later, or "
                "choose another mirror (HF_ENDPOINT)"
            )
        # the cache keeps contents by their hash, and links names to them
        content = final if dest is not None else folder.parent.parent / "blobs" / str(served.etag)
        for path in {content, final}:
            if path.exists() and _length(path) != file.size:
                print(f"      was {_length(path)} bytes: fetched anew")
            if _length(path) != file.size:
                path.unlink(missing_ok=True)
        if not content.exists():
            half = content.with_name(f".{content.name}.{str(served.etag)[:12]}.partial")
            half.parent.mkdir(parents=True, exist_ok=True)
            if (_length(half) or 0) > file.size:
                half.unlink()
            offset = _length(half) or 0
            if offset:
                print(f"      continues at {_gb(offset)}")
            with half.open("ab") as stream:
                http_get(url, stream, resume_size=offset, headers=build_hf_headers(), expected_size=file.size)
            os.replace(half, content)
        if dest is None:
            hf_hub_download(listing.repo, file.name, revision=listing.commit)  # only links it: the content is there
    except (HTTPError, OSError) as error:
        raise _explained(error, listing.repo, listing.commit, file.name) from error


def _explained(error: Exception, repo: str, revision: str, name: str = "") -> WeightsError:
    """One line for what stood in the way, with what would do."""
    from huggingface_hub import constants, errors

    at = f"{name}: " if name else ""
    again = "; what came stays, call again to continue" if name else ""
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.RevisionNotFoundError):
        return WeightsError(
            f"revision={revision}: {repo} has no such revision; leave revision= out for the pinned {REVISION[:8]}"
        )
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return WeightsError(
            f"{at}{repo} is gated or forbidden to you: accept its terms on its page at {constants.ENDPOINT}, then set "
            "HF_TOKEN to a token of yours that may read it"
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return WeightsError(
            f"{at}{constants.ENDPOINT} knows no {repo} at revision {revision}, or it is private: check repo= and "
            "revision=, or set HF_TOKEN to a token that may read it"
        )
    if status is not None:
        return WeightsError(f"{at}{constants.ENDPOINT} answers {status}; try later, or another mirror{again}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WeightsError(f"{at}the disk is full; make room, or choose another: HF_HOME=DIR or dest=DIR{again}")
    if isinstance(error, PermissionError):
        return WeightsError(f"{at}{error.filename} may not be written; choose another: HF_HOME=DIR or dest=DIR")
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return WeightsError(
        f"{at}no answer from {constants.ENDPOINT} ({reason}): check the connection, name a mirror with HF_ENDPOINT, or "
        f"copy the folder from a machine that has it and set weights=DIR{again}"
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e3:.1f} kB"


def _arguments(words: Sequence[str]) -> dict[str, Any]:
    """Keywords of `fetch`. Raises WeightsError naming the word that is none."""
    known = ("dest", "repo", "revision", "dry_run")
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in known or not equals or not value:
            raise WeightsError(f"{word}: wants {', '.join(f'{name}=…' for name in known)}")
        options[key] = value
    if options.get("dry_run", "true") not in ("true", "false"):
        raise WeightsError(f"dry_run={options['dry_run']}: true or false")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", options.get("repo", REPO)):
        raise WeightsError(f"repo={options['repo']}: wants OWNER/NAME, e.g. {REPO}")
    if "repo" in options and options["repo"] != REPO and "revision" not in options:
        options["revision"] = "main"  # the pinned revision is another repository's
    if "dest" in options:
        options["dest"] = Path(options["dest"]).expanduser()
        if options["dest"].exists() and not options["dest"].is_dir():
            raise WeightsError(f"dest={options['dest']}: is a file; wants a folder")
    return {**options, "dry_run": options.get("dry_run") == "true"}


def main(arguments: Sequence[str]) -> int:
    """Fetch from the command line: 0 done, 1 not possible, 2 wrong arguments."""
    try:
        options = _arguments(arguments)
    except WeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        fetch(**options)
    except WeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what came stays, call again to continue", file=sys.stderr)
        return 130
    return 0
