"""VBench, measured by its own code in an environment of its own; this side asks, watches and checks.

VBench 0.1.5 wants torch 2.5 and transformers 4.33, so it runs in `.venv-vbench` (`make vbench-env`; PW_VBENCH_PYTHON
names another interpreter) as the process `benchmarks/measure/vbench_worker.py`, whose docstring is the contract. Its
weights lie where `make weights what=metrics args="only=vbench"` puts them. Nothing is downloaded unless
PW_VBENCH_DOWNLOAD=1. A worker that is silent for PW_VBENCH_TIMEOUT seconds (3600) is ended.

Values are VBench's per-video results in [0, 1]. Their mean over videos differs from VBench's own aggregate where that
counts frames rather than videos (subject and background consistency), if videos differ in length.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure.metric_weights import vbench_folder
from benchmarks.metrics.vbench_process import SCHEMA, Done, WorkerRun
from pw.io.paths import ROOT

WORKER = ROOT / "benchmarks" / "measure" / "vbench_worker.py"
MODES = ("custom_input", "vbench_standard", "long_custom_input", "long_vbench_standard")
PREPROCESSING = ("longer", "shorter", "shorter_centercrop", "None")
SAMPLES = 5  # videos per prompt in VBench's protocol
OF_PROMPTS = ("object_class", "multiple_objects", "color", "spatial_relationship", "scene", "appearance_style")

_USED = "Hugging Face OpenGVLab/VBench_Used_Models"
_VIT_B = {"clip_model/ViT-B-32.pt": "OpenAI CLIP ViT-B/32"}
_BERT = {
    f"bert-base-uncased/{name}": "Hugging Face bert-base-uncased"
    for name in ("config.json", "vocab.txt", "pytorch_model.bin")
}
_GRIT = {"grit_model/grit_b_densecap_objectdet.pth": _USED, **_BERT}
_VICLIP = {"ViCLIP/ViClip-InternVid-10M-FLT.pth": _USED}
# dimension -> file in VBench's folder -> where it comes from (vbench/utils.py, init_submodules with local=True)
WEIGHTS: Mapping[str, Mapping[str, str]] = {
    "subject_consistency": {
        "dino_model/facebookresearch_dino_main/hubconf.py": "a checkout of GitHub facebookresearch/dino",
        "dino_model/dino_vitbase16_pretrain.pth": "DINO ViT-B/16, linked from GitHub facebookresearch/dino",
    },
    "background_consistency": _VIT_B,
    "temporal_flickering": {},
    "motion_smoothness": {"amt_model/amt-s.pth": "Hugging Face lalala125/AMT"},
    "dynamic_degree": {"raft_model/models/raft-things.pth": "models.zip of GitHub princeton-vl/RAFT"},
    "aesthetic_quality": {
        "clip_model/ViT-L-14.pt": "OpenAI CLIP ViT-L/14",
        "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth": "GitHub LAION-AI/aesthetic-predictor",
    },
    "imaging_quality": {
        "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth": "GitHub chaofengc/IQA-PyTorch, release v0.1-weights"
    },
    "object_class": _GRIT,
    "multiple_objects": _GRIT,
    "color": _GRIT,
    "spatial_relationship": _GRIT,
    "human_action": {"umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth": _USED},
    "scene": {"caption_model/tag2text_swin_14m.pth": "Hugging Face space xinyu1205/recognize-anything", **_BERT},
    "appearance_style": _VIT_B,
    "temporal_style": _VICLIP,
    "overall_consistency": _VICLIP,
}


def available(names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, str]:
    """What is missing, before anything is measured: dimension -> what it lacks and how to get it.

    Raises: ValueError for a setting that makes no sense.
    """
    _check(settings)
    python = interpreter()
    if not python.is_file():
        given = "PW_VBENCH_PYTHON names it" if "PW_VBENCH_PYTHON" in os.environ else "`make vbench-env` makes it"
        return dict.fromkeys(names, f"VBench's environment {python} is not there: {given}")
    lacking = {name: _lacks(name, settings["mode"], python) for name in names}
    return {name: why for name, why in lacking.items() if why}


def score_videos(
    videos: Sequence[Path],
    names: Sequence[str],
    settings: Mapping[str, Any],
    device: str,
    done: Done,
    *,
    prompts: Mapping[Path, str] | None = None,
    worker: Path = WORKER,
) -> dict[str, str]:
    """Measure dimensions of VBench on videos; returns dimension -> why it, or some of its videos, have no value.

    settings: the registry's. device: "cpu" or "cuda:1". done: called with a video's values as soon as it has all that
    it can have. prompts: of the videos; by default their file names say it, as `{prompt}-{i}.mp4`.

    Raises: ValueError for a setting that makes no sense.
    """
    missing = available(names, settings)
    names = [name for name in names if name not in missing]
    if settings["mode"].endswith("vbench_standard") and names:
        known = all_prompts()
        strange = [v.name for v in videos if prompt_of(v, prompts) not in known]
        if strange:
            why = (
                f"mode={settings['mode']}: {len(strange)} videos, such as {strange[0]!r}, are not named PROMPT-NUMBER "
                f"after one of VBench's {len(known)} prompts; mode=custom_input takes any name"
            )
            return {**missing, **dict.fromkeys(names, why)}
        due = {v: [name for name in names if name in known[prompt_of(v, prompts)]] for v in videos}
        for video in [video for video in videos if not due[video]]:
            done(video, {})
        videos = [video for video in videos if due[video]]
        names = [name for name in names if any(name in wanted for wanted in due.values())]
    if not names or not videos:
        return missing
    with tempfile.TemporaryDirectory(prefix="pw-vbench-") as work:
        run = WorkerRun(videos, names, Path(work), interpreter(), done)
        return {**missing, **run.measure(_request(run, settings, device, prompts), device, worker)}


def interpreter() -> Path:
    """PW_VBENCH_PYTHON, or the one that `make vbench-env` makes."""
    return Path(os.environ.get("PW_VBENCH_PYTHON") or ROOT / ".venv-vbench" / "bin" / "python").expanduser()


def cache() -> Path:
    """VBench's folder of weights."""
    return vbench_folder().absolute()


def digests(name: str) -> dict[str, str]:
    """SHA-256 of the weights of a dimension that are there, by file."""
    paths = {file: cache() / file for file in WEIGHTS[name]}
    return {file: _sha256(path, path.stat().st_mtime_ns) for file, path in paths.items() if path.is_file()}


def all_prompts() -> dict[str, tuple[str, ...]]:
    """VBench's prompts, in its order, with the dimensions that are measured on each (944 different ones of 946).

    Raises: ValueError if VBench's environment does not hold them.
    """
    found = [path for folder in _packages(interpreter()) for path in folder.glob("vbench/VBench_full_info.json")]
    if not found:
        raise ValueError(f"no VBench_full_info.json beside {interpreter()}: `make vbench-env` installs VBench")
    prompts: dict[str, tuple[str, ...]] = {}
    for entry in json.loads(found[0].read_text(encoding="utf-8")):
        before = prompts.get(entry["prompt_en"], ())
        prompts[entry["prompt_en"]] = tuple(dict.fromkeys((*before, *entry["dimension"])))
    return prompts


def absent(names: Sequence[str], stems: Sequence[str]) -> dict[str, list[str]]:
    """dimension -> the stems `{prompt}-{i}` of VBench's protocol that a folder lacks; VBench itself only warns."""
    there, known = set(stems), all_prompts()
    return {
        name: [
            stem
            for prompt, dimensions in known.items()
            if name in dimensions
            for stem in (f"{prompt}-{i}" for i in range(SAMPLES))
            if stem not in there
        ]
        for name in names
    }


def prompt_of(video: Path, prompts: Mapping[Path, str] | None = None) -> str:
    """The prompt of a video: given, or its file name without ending and trailing number."""
    return (prompts or {}).get(video) or re.sub(r"-\d+$", "", video.stem)


def _check(settings: Mapping[str, Any]) -> None:
    for key, known in (("mode", MODES), ("imaging_quality_preprocessing_mode", PREPROCESSING)):
        if settings[key] not in known:
            raise ValueError(f"vbench.{key}={settings[key]}: one of {', '.join(known)}")


def _lacks(name: str, mode: str, python: Path) -> str:
    """What a dimension lacks, "" if nothing."""
    if name in OF_PROMPTS and not mode.endswith("vbench_standard"):
        return f"{name} is measured on VBench's own prompts only: vbench.mode=vbench_standard"
    if WEIGHTS[name] is _GRIT and not any((folder / "detectron2").is_dir() for folder in _packages(python)):
        return (
            f"{name} needs detectron2, which no package index has: build it from GitHub facebookresearch/detectron2 "
            f"against the torch of {python}"
        )
    files = {file: where for file, where in WEIGHTS[name].items() if not (cache() / file).is_file()}
    if not files or _may_download():
        return ""
    listed = "; ".join(f"{cache() / file} ({where})" for file, where in files.items())
    return f'{name} lacks weights: {listed}; `make weights what=metrics args="only=vbench"` fetches them'


def _may_download() -> bool:
    return os.environ.get("PW_VBENCH_DOWNLOAD", "0") not in ("", "0")


def _packages(python: Path) -> list[Path]:
    """The site-packages of an environment, by its interpreter."""
    return sorted(python.absolute().parent.parent.glob("lib/python3.*/site-packages"))


@functools.cache
def _sha256(path: Path, changed: int) -> str:
    """changed: the file's time of change, so that another file is read anew."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _request(
    run: WorkerRun, settings: Mapping[str, Any], device: str, prompts: Mapping[Path, str] | None
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "videos": list(run.videos),
        "prompts": {str(path.absolute()): text for path, text in prompts.items()} if prompts else None,
        "dimensions": run.names,
        "mode": settings["mode"],
        "imaging_quality_preprocessing_mode": settings["imaging_quality_preprocessing_mode"],
        # the string: torch.device("cuda") == "cuda" is False, and AMT would then not scale to the memory it has
        "device": device.partition(":")[0],
        "cache": str(cache()),
        "weights": {name: dict(WEIGHTS[name]) for name in run.names},
        "download": _may_download(),
        "full_info": None,
        "out": str(run.out),
        "parent": os.getpid(),
    }
