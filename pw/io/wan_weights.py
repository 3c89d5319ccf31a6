"""The published weights of Wan2.2-TI2V-5B: where they are, whether they are whole, what they are; `pw weights`.

They are fetched into the Hugging Face cache (HF_HOME, HF_HUB_CACHE), or to `dest`; see `pw.io.hub` for mirrors, tokens
and what happens to a download that is cut off. Nothing here imports torch, and nothing but `pw weights` asks the
network.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pw.io import hub
from pw.io.arguments import Command, ConfigError, option
from pw.io.files import alone, check_space, human_size, length, read_json

REPO = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
REVISION = "b8fff7315c768468a5333511427288870b2e9635"
# part -> its configuration and the stem of its tensors
PARTS = {
    "transformer": ("config.json", "diffusion_pytorch_model.safetensors"),
    "vae": ("config.json", "diffusion_pytorch_model.safetensors"),
    "text_encoder": ("config.json", "model.safetensors"),
    "tokenizer": ("tokenizer_config.json", ""),
    "scheduler": ("scheduler_config.json", ""),
}
_VOCABULARIES = ("tokenizer.json", "spiece.model")  # of which one must be there
FETCHED = re.compile(rf"model_index\.json|({'|'.join(PARTS)})/[^/]+\.(safetensors|json|model|txt)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LONGEST_HEADER = 100 << 20  # bytes; safetensors' own limit
_BLOCK, _BLOCKS = 1 << 16, 65  # bytes of a block that a fingerprint reads, and how many more of them than one


class WeightsError(ConfigError):
    """Weights that are missing, cut off or out of reach; the message says which and what would do."""


def locate(weights: str | None) -> Path:
    """The folder of the weights, in diffusers' layout: `weights`, or the pinned snapshot in the Hugging Face cache.

    Looks at no network. Raises WeightsError when there is none, with the command that fetches it.
    """
    if weights is None:
        folder = snapshot(REPO, REVISION)
        if not folder.is_dir():
            raise WeightsError(
                f"no weights: {REPO} at revision {REVISION[:8]} is not in {folder.parents[2]}; `make weights` fetches "
                "it (HF_HOME says where to), weights=DIR names a folder that has it"
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


def check(folder: Path, parts: Iterable[str] = PARTS) -> None:
    """That the parts are whole: every file is there, and every `.safetensors` as long as its own header says.

    Loads no tensors. Raises WeightsError listing every file that is missing or cut off, and the command that mends it.
    """
    wrong = [f"{part}/{problem}" for part in parts for problem in problems(folder / part, part)]
    if wrong:
        listed = "".join(f"\n  {problem}" for problem in wrong)
        raise WeightsError(f"{folder} is not whole; {_completed_by(folder)} mends it:{listed}")


def overrides_of(weights: Path) -> list[str]:
    """What the configuration files of weights in diffusers' layout say of backbone and codec, as overrides.

    So a smaller pipeline of the same make, such as the tests write, needs no configuration of its own. Raises
    WeightsError when a part is of another make.
    """
    dit, vae = _part(weights, "transformer", "WanTransformer3DModel"), _part(weights, "vae", "AutoencoderKLWan")
    names = ("num_attention_heads", "attention_head_dim", "in_channels", "ffn_dim", "num_layers", "text_dim")
    names += ("freq_dim", "rope_max_seq_len")
    if missing := [name for name in (*names, "patch_size") if name not in dit]:
        raise WeightsError(f"{weights / 'transformer' / 'config.json'}: does not say {', '.join(missing)}")
    words = [f"backbone.{name}={dit[name]}" for name in names]
    words.append(f"backbone.patch_size=[{','.join(map(str, dit['patch_size']))}]")
    words += ["backbone.text_tokens=512", f"codec.channels={vae.get('z_dim', 16)}"]  # Wan2.1's where nothing is said
    words.append(f"codec.factor={vae.get('scale_factor_spatial', 8)}")
    words.append(f"codec.frames_factor={vae.get('scale_factor_temporal', 4)}")
    return words


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


def problems(folder: Path, part: str) -> Iterator[str]:
    """What is wrong with one part, each as `file: what`."""
    config, whole = (folder / name for name in PARTS[part])
    if not config.exists():
        yield f"{config.name}: missing"
    elif read_json(config) is None:
        yield f"{config.name}: not JSON ({length(config)} bytes)"
    if part == "tokenizer" and not any((folder / name).exists() for name in _VOCABULARIES):
        yield f"{' or '.join(_VOCABULARIES)}: missing"
    if whole == folder:  # it has no tensors
        return
    index = folder / f"{whole.name}.index.json"
    if index.exists():
        weight_map = (read_json(index) or {}).get("weight_map")
        if not isinstance(weight_map, dict):
            yield f"{index.name}: not an index of shards ({length(index)} bytes)"
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
    if not path.exists():
        return "missing"
    found = length(path)
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            return "a Git LFS pointer, not the file itself"
        head = int.from_bytes(start, "little")
        if len(start) < 8 or head > min(found, _LONGEST_HEADER):
            return f"{found} bytes, cut off or not safetensors"
        try:
            header = json.loads(file.read(head))
            end = max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return "its header is damaged"
    expected = 8 + head + end
    return None if found == expected else f"{found} bytes, its header says {expected}"


def _completed_by(folder: Path) -> str:
    """The command that completes a folder."""
    owner = folder.parent.parent.name
    if folder.parent.name == "snapshots" and owner.startswith("models--"):
        repo = "/".join(owner.split("--")[1:])
        choices = [] if repo == REPO else [f"repo={repo}"]
        choices += [] if folder.name == REVISION else [f"revision={folder.name}"]
        return f'`make weights args="{" ".join(choices)}"`' if choices else "`make weights`"
    return f'`make weights args="dest={folder}"`'


def snapshot(repo: str, revision: str) -> Path:
    """Where the cache keeps (or would keep) a revision of a repository; a branch or tag as it was last seen."""
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


def fetch(options: WeightsOptions) -> int:
    """Download what is missing, verify it, and print what is done: the exit status.

    Raises ConfigError when the network, the repository, the revision or the disk is in the way.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of linking files that are there
    from huggingface_hub import constants

    if constants.is_offline_mode():
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
    licence = "Apache-2.0" if options.repo == REPO else repository.licence
    total, rest = sum(wanted.values()), sum(wanted[name] for name in missing)
    print(f"{options.repo} at {repository.commit[:8]}, licence {licence}: {len(wanted)} files, {human_size(total)}")
    print(f"to {folder}: {human_size(rest)} to fetch")
    contents = folder if options.dest else folder.parent.parent / "blobs"
    remedy = "make room, or choose another disk: HF_HOME=DIR for the cache, or dest=DIR"
    check_space("dest", folder, rest - hub.partial_bytes(contents), remedy)
    if options.dry_run:
        for name, size in wanted.items():
            print(f"  {human_size(size):>10}  {name}{'' if name in missing else '  (there)'}")
        return 0
    if missing:
        with alone((options.dest or folder.parent.parent) / ".weights.lock"):
            for number, name in enumerate(missing, start=1):
                print(f"  {number}/{len(missing)}  {human_size(wanted[name]):>10}  {name}", flush=True)
                _fetch_file(repository, name, folder, options.dest)
    check(folder, [part for part in PARTS if any(name.startswith(f"{part}/") for name in wanted)])
    print(f"all there and whole: {folder}")
    return 0


def _fetch_file(repository: hub.HubRepository, name: str, folder: Path, dest: Path | None) -> None:
    """One file to its final name; into the cache as huggingface_hub lays it out."""
    from huggingface_hub import hf_hub_download

    source, listed, final = repository.file(name), repository.files[name], folder / name
    served = hub.served(source)
    if served.size not in (0, listed.size):
        raise hub.FetchError(
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


def _offline(options: WeightsOptions) -> int:
    """Print where all of it is already. Raises WeightsError saying what is not there."""
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
    return 0


main = Command(WeightsOptions, fetch, resumes="what came stays, call again to continue")
