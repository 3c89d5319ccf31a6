"""The published weights of Wan2.2-TI2V-5B: finds, checks, identifies and downloads them (`pw weights`).

They are downloaded into the Hugging Face cache (HF_HOME, HF_HUB_CACHE), or to `dest`; see `pw.io.hub` for mirrors,
tokens and partial downloads. Nothing here imports torch, and only `pw weights` uses the network.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pw.io import hub
from pw.io.arguments import Command, ConfigError, option
from pw.io.files import check_space, check_writable, exclusive_lock, human_size, length, parse_json, read_json
from pw.io.hash_record import RECORD, HashRecord

REPO = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
REVISION = "b8fff7315c768468a5333511427288870b2e9635"
# part -> (its configuration file, its tensor file when it is not sharded)
PARTS = {
    "transformer": ("config.json", "diffusion_pytorch_model.safetensors"),
    "vae": ("config.json", "diffusion_pytorch_model.safetensors"),
    "text_encoder": ("config.json", "model.safetensors"),
    "tokenizer": ("tokenizer_config.json", ""),
    "scheduler": ("scheduler_config.json", ""),
}
_VOCABULARIES = ("tokenizer.json", "spiece.model")  # one of them is required
WEIGHT_FILES = re.compile(rf"model_index\.json|({'|'.join(PARTS)})/[^/]+\.(safetensors|json|model|txt)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LONGEST_HEADER = 100 << 20  # bytes; safetensors' own limit
_BLOCK, _BLOCKS = 1 << 16, 65  # a fingerprint reads up to _BLOCKS + 1 blocks of _BLOCK bytes


class WeightsError(ConfigError):
    """Weights are missing, truncated or not available; the message says which, and a remedy."""


def locate(weights: str | None) -> Path:
    """The folder of the weights, in diffusers' layout: `weights`, or the pinned snapshot in the Hugging Face cache.

    Does not use the network. Raises WeightsError if the folder does not exist, with the command that downloads it.
    """
    if weights is None:
        folder = snapshot(REPO, REVISION)
        if not folder.is_dir():
            raise WeightsError(
                f"no weights: {REPO} at revision {REVISION[:8]} is not in {folder.parents[2]}; `make weights` fetches "
                "it (HF_HOME sets where), weights=DIR names a folder that has it"
            )
        return folder
    folder = Path(weights).expanduser()
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"weights={weights}: is a file; expected the folder that has transformer/, vae/, …")
    if not folder.is_dir():
        raise WeightsError(f'weights={weights}: no such folder; `make weights args="dest={weights}"` fetches it there')
    if not any((folder / part).is_dir() for part in PARTS):
        names = sorted(path.name for path in folder.iterdir())[:5]
        raise WeightsError(
            f"weights={weights}: has no {', '.join(f'{part}/' for part in PARTS)}; it holds "
            f'{", ".join(names) or "nothing"}. Expected diffusers\' layout; `make weights args="dest=DIR"` fetches it'
        )
    return folder


def check(folder: Path, parts: Iterable[str] = PARTS) -> None:
    """Check that the parts are complete: each file exists, each `.safetensors` has the length given in its header, and
    each whose published hash is known has that hash, which is computed once per file.

    Loads no tensors. Raises WeightsError with all files that are missing or damaged, and the command that repairs.
    """
    parts = tuple(parts)
    lines = [f"\n  {part}/{problem}" for part in parts for problem in problems(folder / part, part)]
    if lines:
        raise WeightsError(f"{folder} is incomplete; {_download_command(folder)} repairs it:{''.join(lines)}")
    if lines := [f"\n  {name}: {problem}" for name, problem in _damages(folder, parts) if problem]:
        raise WeightsError(f"{folder} is damaged; {_download_command(folder)} fetches it again:{''.join(lines)}")


def _damages(folder: Path, parts: Iterable[str], *, again: bool = False) -> Iterator[tuple[str, str | None]]:
    """(name, problem) of each file whose published hash is known. again: hash also those that have not changed."""
    record, names = HashRecord(_home(folder)), [path for part in parts for path in sorted((folder / part).glob("*"))]
    for path in names:
        if path.is_file() and record.digest(path):
            yield str(path.relative_to(folder)), record.problem(path, again=again)


def _home(folder: Path) -> Path:
    """The folder that has the lock and the record of hashes of a folder of weights: in the cache, the repository's."""
    return folder.parent.parent if folder.parent.name == "snapshots" else folder


def overrides_of(weights: Path) -> list[str]:
    """Overrides of backbone and codec from the configuration files of weights in diffusers' layout.

    So a smaller pipeline of the same classes, as in the tests, needs no configuration of its own. Raises WeightsError
    if a part is of another class.
    """
    dit, vae = _config(weights, "transformer", "WanTransformer3DModel"), _config(weights, "vae", "AutoencoderKLWan")
    names = ("num_attention_heads", "attention_head_dim", "in_channels", "ffn_dim", "num_layers", "text_dim")
    names += ("freq_dim", "rope_max_seq_len")
    if missing := [name for name in (*names, "patch_size") if name not in dit]:
        raise WeightsError(f"{weights / 'transformer' / 'config.json'}: lacks {', '.join(missing)}")
    words = [f"backbone.{name}={dit[name]}" for name in names]
    words.append(f"backbone.patch_size=[{','.join(map(str, dit['patch_size']))}]")
    words += ["backbone.text_tokens=512", f"codec.channels={vae.get('z_dim', 16)}"]  # defaults of Wan2.1's VAE
    words.append(f"codec.factor={vae.get('scale_factor_spatial', 8)}")
    words.append(f"codec.frames_factor={vae.get('scale_factor_temporal', 4)}")
    return words


def _config(weights: Path, part: str, class_name: str) -> dict[str, Any]:
    config = read_json(weights / part / "config.json")
    if config is None:
        raise WeightsError(
            f"{weights / part / 'config.json'}: missing, or not JSON; {_download_command(weights)} repairs it"
        )
    if config.get("_class_name", class_name) != class_name:
        raise WeightsError(f"{weights / part}: is a {config['_class_name']}, expected {class_name}: Wan2.2-TI2V-5B's")
    return config


def fingerprint(path: Path) -> str:
    """A hash (16 hex digits) of a file or folder of weights: names, sizes, and up to 66 blocks of 64 KiB of each file.

    The blocks are evenly spaced from the first to the last: 0.3 GB apart in 20 GB, so that checkpoints that differ only
    in their adapters have different fingerprints. Files of up to 4 MiB are read completely.
    """
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != RECORD) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path) if path.is_dir() else ''} {size}\n".encode())
        with file.open("rb") as stream:
            for block in range(_BLOCKS + 1):
                stream.seek(block * max(0, size - _BLOCK) // _BLOCKS)
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()[:16]


def problems(folder: Path, part: str) -> Iterator[str]:
    """The problems of one part, each as `file: problem`."""
    config, tensor_file = (folder / name for name in PARTS[part])
    if not config.exists():
        yield f"{config.name}: missing"
    elif read_json(config) is None:
        yield f"{config.name}: not JSON ({length(config)} bytes)"
    if part == "tokenizer" and not any((folder / name).exists() for name in _VOCABULARIES):
        yield f"{' or '.join(_VOCABULARIES)}: missing"
    if tensor_file == folder:  # it has no tensors
        return
    index = folder / f"{tensor_file.name}.index.json"
    if index.exists():
        weight_map = (read_json(index) or {}).get("weight_map")
        if not isinstance(weight_map, dict):
            yield f"{index.name}: not an index of shards ({length(index)} bytes)"
            return
        files = [folder / name for name in sorted(set(map(str, weight_map.values())))]
    else:
        shards = sorted(folder.glob(f"{tensor_file.stem}-*.safetensors"))
        if shards and not tensor_file.exists():
            yield f"{index.name}: missing"
        files = shards if shards and not tensor_file.exists() else [tensor_file]
    for file in files:
        if problem := _length_problem(file):
            yield f"{file.name}: {problem}"


def _length_problem(path: Path) -> str | None:
    """The problem with the length of a `.safetensors` file: 8 bytes, a JSON header of that length, the tensors."""
    if not path.exists():
        return "missing"
    size = length(path)
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            return "a Git LFS pointer, not the file itself"
        header_length = int.from_bytes(start, "little")
        if len(start) < 8 or header_length > min(size, _LONGEST_HEADER):
            return f"{size} bytes, truncated or not safetensors"
        try:
            header = parse_json(file.read(header_length))
            end = max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return "its header is damaged"
    expected = 8 + header_length + end
    return None if size == expected else f"{size} bytes, its header says {expected}"


def _download_command(folder: Path) -> str:
    """The command that completes a folder."""
    owner = folder.parent.parent.name
    if folder.parent.name == "snapshots" and owner.startswith("models--"):
        repo = "/".join(owner.split("--")[1:])
        choices = [] if repo == REPO else [f"repo={repo}"]
        choices += [] if folder.name == REVISION else [f"revision={folder.name}"]
        return f'`make weights args="{" ".join(choices)}"`' if choices else "`make weights`"
    return f'`make weights args="dest={folder}"`'


def snapshot(repo: str, revision: str) -> Path:
    """The folder of a repository's revision in the cache, which need not exist; a branch or tag as last resolved."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    reference = folder / "refs" / revision
    if not _COMMIT.fullmatch(revision) and reference.is_file():
        revision = reference.read_text().strip()
    return folder / "snapshots" / revision


# ---- `pw weights`


@dataclass(frozen=True)
class WeightsOptions:
    """The options of `pw weights`."""

    dest: Path | None = option(None, "a folder to fetch to; without it, the Hugging Face cache")
    repo: str = option(REPO, "OWNER/NAME of a repository in diffusers' layout")
    revision: str = option(
        "",
        "branch, tag or commit; without it, the pinned commit, or main of another repository",
        read=hub.revision_name,
    )
    dry_run: bool = option(False, "list what would be fetched, and fetch nothing")
    verify: bool = option(False, "hash all files that are there again, and fetch nothing")
    what: Literal["wan", "metrics"] = option("wan", "Wan's weights, or those of the metrics")

    def __post_init__(self) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.repo)
            is_valid = "/" in self.repo
        except HFValidationError:
            is_valid = False
        if not is_valid:
            raise ConfigError(f"repo={self.repo}: expected OWNER/NAME, e.g. {REPO}")
        if self.dest is not None and self.dest.exists() and not self.dest.is_dir():
            raise ConfigError(f"dest={self.dest}: is a file; expected a folder")
        if not self.revision:
            object.__setattr__(self, "revision", REVISION if self.repo == REPO else "main")


def fetch(options: WeightsOptions) -> int:
    """Download and verify the missing files, and print the progress; returns the exit status.

    Raises ConfigError for a problem of the network, the repository, the revision or the disk.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # it would show one for linking existing files
    from huggingface_hub import constants

    if options.verify:
        return _verify(options)
    if constants.is_offline_mode():
        return _offline(options)
    if options.dest and not options.dry_run:
        check_writable("dest", options.dest)
    repository = hub.repository(options.repo, options.revision)
    sizes = {name: file.size for name, file in repository.files.items() if WEIGHT_FILES.fullmatch(name)}
    if not sizes:
        raise WeightsError(
            f"repo={options.repo}: holds none of {', '.join(f'{part}/' for part in PARTS)}, so it is not in diffusers' "
            f"layout; expected one that is, e.g. repo={REPO}"
        )
    folder = options.dest or snapshot(options.repo, repository.commit)
    record = HashRecord(_home(folder))
    missing = []
    for name, size in sizes.items():
        if length(folder / name) != size:
            missing.append(name)
        elif problem := record.problem(folder / name, repository.files[name].digest):
            print(f"{name}: {problem}")
            missing.append(name)
    licence = "Apache-2.0" if options.repo == REPO else repository.licence
    total, remaining = sum(sizes.values()), sum(sizes[name] for name in missing)
    print(f"{options.repo} at {repository.commit[:8]}, licence {licence}: {len(sizes)} files, {human_size(total)}")
    print(f"to {folder}: {human_size(remaining)} to fetch")
    contents = folder if options.dest else folder.parent.parent / "blobs"
    remedy = "make room, or choose another disk: HF_HOME=DIR for the cache, or dest=DIR"
    check_space("dest", folder, remaining - hub.partial_bytes(contents), remedy)
    if options.dry_run:
        for name, size in sizes.items():
            print(f"  {human_size(size):>10}  {name}{'' if name in missing else '  (there)'}")
        return 0
    if missing:
        with exclusive_lock(_home(folder) / ".weights.lock"):
            for number, name in enumerate(missing, start=1):
                print(f"  {number}/{len(missing)}  {human_size(sizes[name]):>10}  {name}", flush=True)
                _fetch_file(repository, name, folder, options.dest, record)
    check(folder, [part for part in PARTS if any(name.startswith(f"{part}/") for name in sizes)])
    print(f"complete: {folder}")
    return 0


def _fetch_file(repository: hub.HubRepository, name: str, folder: Path, dest: Path | None, record: HashRecord) -> None:
    """Download one file to its final name, or into the cache in huggingface_hub's layout, and record its hash."""
    from huggingface_hub import hf_hub_download

    source, entry, final = repository.file(name), repository.files[name], folder / name
    metadata = hub.server_metadata(source)
    if metadata.size not in (0, entry.size):
        raise hub.FetchError(
            f"{name}: the listing says {entry.size} bytes, the server has {metadata.size}; call again later, or choose "
            "another mirror (HF_ENDPOINT)"
        )
    digest = metadata.digest or entry.digest
    # the cache stores each content under its hash, and links the names to it
    content = final if dest else folder.parent.parent / "blobs" / metadata.etag
    for path in {content, final}:
        is_there = path.exists()
        if is_there and length(path) != entry.size:
            print(f"      was {length(path)} bytes: fetched again")
        if length(path) != entry.size or (is_there and record.problem(path, digest)):
            path.unlink(missing_ok=True)
    if not content.exists():
        hub.fetch(source, content, entry.size, digest)
        if digest:
            record.add(content, digest)
    if dest is None:  # only creates the link, because the content exists
        hf_hub_download(repository.name, name, revision=repository.commit, endpoint=hub.endpoint())


def _verify(options: WeightsOptions) -> int:
    """Hash what is there again, without network; exit status 1 if a file is damaged. Raises WeightsError."""
    folder = options.dest or snapshot(options.repo, options.revision)
    if not folder.is_dir():
        raise WeightsError(f"nothing of {options.repo} is at {folder}; {_download_command(folder)} fetches it")
    results = list(_damages(folder, PARTS, again=True))
    if not results:
        raise WeightsError(f"{folder}: no published hash is recorded; {_download_command(folder)} records them")
    damaged = [f"{name}: {problem}" for name, problem in results if problem]
    print("\n".join([f"{len(results)} files of {folder} hashed, {len(damaged)} damaged", *damaged]))
    if damaged:
        print(f"{_download_command(folder)} fetches them again")
    return 1 if damaged else 0


def _offline(options: WeightsOptions) -> int:
    """Without network: print the folder if it is complete. Raises WeightsError with what is missing."""
    folder = options.dest or snapshot(options.repo, options.revision)
    if not folder.is_dir():
        raise WeightsError(
            f"HF_HUB_OFFLINE=1 and nothing of {options.repo} is at {folder}; unset it to fetch, or name a copy with "
            "weights=DIR"
        )
    try:
        check(folder)
    except WeightsError as error:
        complete = [part for part in PARTS if not any(problems(folder / part, part))]
        raise WeightsError(
            f"HF_HUB_OFFLINE=1, and files are missing (complete: {', '.join(complete) or 'no part'}): {error}"
        ) from None
    print(f"HF_HUB_OFFLINE=1: the network was not used; complete: {folder}")
    return 0


main = Command(WeightsOptions, fetch, resume_hint="what was fetched is kept; run the same command again to resume")
