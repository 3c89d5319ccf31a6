"""Run VBench's own code on a list of videos, in VBench's own environment (`make vbench-env`).

    .venv-vbench/bin/python vbench_worker.py REQUEST.json

It imports no module of this project. `benchmarks/metrics/vbench.py` writes the request and checks the result:

    request   schema, videos (absolute paths, named {prompt}-{i}), dimensions, mode, device ("cpu" or "cuda"),
              imaging_quality_preprocessing_mode, cache (VBench's folder of weights), weights ({dimension: {file in
              cache: what it is}}), download (may VBench fetch what is missing), full_info (path or null), out
              (path of the result), parent (process whose end ends this one, or null)
    journal   <out>.journal, a JSON object per line, as it happens: first {schema, versions}, then {video, dimension,
              value}, or {.., value: null, why, error: bool}; {dimension, failed} when a dimension is given up
    result    {schema, results: {dimension: {per_video: {path: value}}}}; exit status 0 only if it was written

A value is VBench's per-video result in [0, 1] (imaging_quality / 100; a bool is 0 or 1). VBench-Long's (`mode` long_…)
is the mean over a video's clips, without the clip-to-clip part (`--dev_flag`).
All dimensions of a video are measured before the next video, with every network loaded once.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1
GIVE_UP_AFTER = 3  # a dimension that fails on this many first videos is given up
GRIT = ("object_class", "multiple_objects", "color", "spatial_relationship")
OF_PROMPTS = (*GRIT, "scene", "appearance_style")  # they need what VBench_full_info.json says of a prompt
# functions that VBench calls for every video; cached here  {dimension: ((module, name), …)}
_CLIP, _GRIT = ("clip", "load"), ("vbench.third_party.grit_model", "init_demo")
LOADERS = {
    "subject_consistency": (("torch.hub", "load"),),
    "background_consistency": (_CLIP,),
    "appearance_style": (_CLIP,),
    "aesthetic_quality": (_CLIP, ("vbench.aesthetic_quality", "get_aesthetic_model")),
    "imaging_quality": (("vbench.imaging_quality", "MUSIQ"),),
    "motion_smoothness": (("vbench.motion_smoothness", "MotionSmoothness"),),
    "dynamic_degree": (("vbench.dynamic_degree", "DynamicDegree"),),
    "human_action": (("vbench.human_action", "create_model"),),
    "scene": (("vbench.scene", "tag2text_caption"),),
    **{
        name: ((f"vbench.{name}", "SimpleTokenizer"), (f"vbench.{name}", "ViCLIP"))
        for name in ("temporal_style", "overall_consistency")
    },
    **dict.fromkeys(GRIT, (_GRIT,)),
}
# seconds of a clip of VBench-Long; these three want 10 (its configs/clip_length_mix.yaml, absent from the package)
CLIP_SECONDS, LONG_CLIP_SECONDS = 2, 10
OF_LONG_CLIPS = {"human_action", "temporal_style", "overall_consistency"}


class DimensionFailed(Exception):
    """A dimension cannot be measured; the message says what is missing."""


class NotApplicable(Exception):
    """A video has no value in a dimension, by VBench's own rules."""


def main(request_path: str) -> int:
    """Measure a request and write the result. Returns the exit status."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    if request.get("schema") != SCHEMA:
        print(f"the request's schema is {request.get('schema')}, this worker's {SCHEMA}", file=sys.stderr)
        return 2
    _exit_with_parent(request.get("parent"))
    _environment(Path(request["cache"]), download=request["download"])
    result = Measurement(request).run()
    out = Path(request["out"])
    part = out.with_name(f".{out.name}.part")
    part.write_text(json.dumps(result, indent=1), encoding="utf-8")
    os.replace(part, out)
    return 0


class Measurement:
    """The measurement of one request, with its results so far."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request, self.out = request, Path(request["out"])
        self.values: dict[str, dict[str, float]] = {name: {} for name in request["dimensions"]}
        self.errors = dict.fromkeys(request["dimensions"], 0)
        self.failed: dict[str, str] = {}
        self.journal = open(f"{self.out}.journal", "w", encoding="utf-8")  # noqa: SIM115 (for the process's life)

    def run(self) -> dict[str, Any]:
        """Measure all videos; returns the result as in the contract."""
        self._write_line(schema=SCHEMA, versions=_versions(self.request["device"]))
        measures: dict[str, Callable[[str], Any]] = {}
        for name in self.request["dimensions"]:
            try:
                measures[name] = self._prepare(name)
            except DimensionFailed as error:
                self._give_up(name, str(error))
        for number, video in enumerate(self.request["videos"]):
            self.measure_video(number, video, measures)
            measures = {name: measure for name, measure in measures.items() if name not in self.failed}
        return {"schema": SCHEMA, "results": {name: {"per_video": values} for name, values in self.values.items()}}

    def _prepare(self, name: str) -> Callable[[str], Any]:
        """The function: path of a full-info file -> VBench's per-video results. Raises DimensionFailed."""
        if name in OF_PROMPTS and not self.request["mode"].endswith("vbench_standard"):
            raise DimensionFailed(f"{name} is defined on VBench's own prompts only: mode=vbench_standard")
        if not self.request["download"]:
            files, cache = self.request["weights"].get(name, {}), Path(self.request["cache"])
            if missing := [f"{file} ({about})" for file, about in files.items() if not (cache / file).exists()]:
                raise DimensionFailed(f"{cache} lacks {', '.join(missing)}")
        try:
            module = importlib.import_module(f"vbench.{name}")
            for owner, loader in LOADERS.get(name, ()):
                load_once(importlib.import_module(owner), loader)
            models = importlib.import_module("vbench.utils").init_submodules([name], local=True)[name]
        except ModuleNotFoundError as error:
            reason = f"{name} needs the package {error.name}, which is not in VBench's environment"
            raise DimensionFailed(reason) from error
        except Exception as error:
            raise DimensionFailed(f"{name}: {_describe(error)}") from error
        compute = getattr(module, f"compute_{name}")
        mode = self.request["imaging_quality_preprocessing_mode"]
        return lambda info: compute(info, self.request["device"], models, imaging_quality_preprocessing_mode=mode)[1]

    def measure_video(self, number: int, video: str, measures: dict[str, Callable[[str], Any]]) -> None:
        """Measure a video in all dimensions, in a temporary folder of its own."""
        folder = self.out.parent / f"video-{number}"
        try:
            for name, measure in measures.items():
                start = time.monotonic()
                try:
                    value = value_of(name, measure(self._info(name, video, folder)))
                except Exception as error:
                    self._record_failure(name, video, error)
                    value = None
                else:
                    self.values[name][video] = value
                    self._write_line(video=video, dimension=name, value=value)
                seconds, total = time.monotonic() - start, len(self.request["videos"])
                print(f"{number + 1}/{total} {Path(video).name}  {name} {value}  {seconds:.1f} s", file=sys.stderr)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if self.request["device"] != "cpu":
                importlib.import_module("torch").cuda.empty_cache()

    def _info(self, name: str, video: str, folder: Path) -> str:
        """The full-info file of one video and one dimension, as VBench's own `build_full_info_json` writes it.

        Raises: NotApplicable if the dimension is not defined for the video's prompt.
        """
        prompt = re.sub(r"-\d+$", "", Path(video).stem)
        entries = [entry for entry in _full_info(self.request["full_info"]) if entry["prompt_en"] == prompt]
        entry: dict[str, Any] = {}
        if self.request["mode"].endswith("vbench_standard"):
            entry = next((entry for entry in entries if name in entry["dimension"]), {})
            if not entry:
                raise NotApplicable(f"{name} is not measured on this prompt")
        files = self._files(video, prompt, {name for entry in entries for name in entry["dimension"]}, folder)
        info = {**entry, "prompt_en": prompt, "dimension": [name], "video_list": files}
        path = folder / f"{name}.json"
        path.write_text(json.dumps([info]), encoding="utf-8")
        return str(path)

    def _files(self, video: str, prompt: str, dimensions: set[str], folder: Path) -> list[str]:
        """A link to the video under a name that VBench accepts, or the clips that VBench-Long cuts from it."""
        folder.mkdir(exist_ok=True)
        # VBench accepts only the suffix .mp4, whatever the format; human_action reads the action from the name
        is_file_name = "/" not in prompt and len(prompt.encode()) <= 200
        link = folder / f"{prompt if is_file_name else 'video'}-0.mp4"
        if not link.is_symlink():
            link.symlink_to(Path(video).resolve())
        if not self.request["mode"].startswith("long_"):
            return [str(link)]
        clips = folder / "clips"
        if not clips.exists():
            is_standard = self.request["mode"] == "long_vbench_standard"
            seconds = LONG_CLIP_SECONDS if is_standard and dimensions & OF_LONG_CLIPS else CLIP_SECONDS
            part = folder / "clips.part"
            importlib.import_module("vbench2_beta_long.utils").split_video_into_clips(str(link), str(part), seconds)
            part.rename(clips)
        return sorted(str(path) for path in clips.rglob("*.mp4"))

    def _record_failure(self, name: str, video: str, error: Exception) -> None:
        """Write why a video has no value; give a dimension up that failed on the first GIVE_UP_AFTER videos."""
        if name == "color" and isinstance(error, ZeroDivisionError):
            error = NotApplicable("no frame shows the object, and VBench leaves such videos out")
        is_not_applicable = isinstance(error, NotApplicable)
        reason = str(error) if is_not_applicable else _describe(error)
        self.errors[name] += not is_not_applicable
        self._write_line(video=video, dimension=name, value=None, why=reason, error=not is_not_applicable)
        if not self.values[name] and self.errors[name] >= GIVE_UP_AFTER:
            self._give_up(name, f"{name} failed on the first {self.errors[name]} videos, on the last with {reason}")

    def _give_up(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        self._write_line(dimension=name, failed=reason)
        print(f"{name}: {reason}", file=sys.stderr)

    def _write_line(self, **line: Any) -> None:
        self.journal.write(json.dumps(line) + "\n")
        self.journal.flush()


def value_of(name: str, result: Sequence[dict[str, Any]]) -> float:
    """A video's value: the mean of VBench's results over its clips. Raises: ValueError without a finite value."""
    values = [float(item["video_results"]) for item in result]
    if not values:
        raise ValueError("VBench gives no result: it could not read the video")
    value = sum(values) / len(values) / (100 if name == "imaging_quality" else 1)
    if not math.isfinite(value):
        raise ValueError(f"VBench's result is {value}")
    return value


def _describe(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _environment(cache: Path, download: bool) -> None:
    """Configure one folder of weights for VBench and its libraries, and refuse network access without `download`."""
    cache.mkdir(parents=True, exist_ok=True)
    os.environ["VBENCH_CACHE_DIR"] = str(cache)
    os.chdir(cache)  # transformers takes a folder here, bert-base-uncased, before it asks the network
    if not download:
        os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        _refuse_downloads()
    _copy_vocabulary(cache)
    _redirect_dino(cache / "dino_model", download)
    importlib.import_module("torch").set_grad_enabled(False)  # some dimensions do not; saves memory


def _copy_vocabulary(cache: Path) -> None:
    """Copy ViCLIP's vocabulary, which VBench downloads on import, from the package clip, which has the same file."""
    name = "bpe_simple_vocab_16e6.txt.gz"
    target = cache / "ViCLIP" / name
    spec = importlib.util.find_spec("clip")
    if target.exists() or spec is None or spec.origin is None:
        return
    try:
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(Path(spec.origin).parent / name, target)
    except OSError as error:
        print(f"{target}: {error.strerror}; temporal_style and overall_consistency need it", file=sys.stderr)


def _redirect_dino(folder: Path, download: bool) -> None:
    """Make DINO's hub code load its weights from VBench's folder: it ignores VBench's option `local`."""
    hub: Any = importlib.import_module("torch.hub")
    fetch, load = hub.load_state_dict_from_url, importlib.import_module("torch").load

    def from_folder(url: str, *args: Any, **kwargs: Any) -> Any:
        path = folder / url.rpartition("/")[2]
        if path.is_file():
            return load(path, map_location="cpu")
        if not download:
            raise FileNotFoundError(f"{path} does not exist")
        return fetch(url, *args, **{**kwargs, "model_dir": str(folder)})

    hub.load_state_dict_from_url = from_folder


def _refuse_downloads() -> None:
    """Refuse the commands by which VBench downloads."""
    module: Any = subprocess
    run = module.run

    def local_only(command: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(command, str) and command[0] in ("wget", "git", "unzip"):
            raise FileNotFoundError(f"VBench would fetch {command[-1]} by {command[0]}, which is not allowed here")
        return run(command, *args, **kwargs)

    module.run = local_only


_LOADED_ONCE: set[tuple[str, str]] = set()


def load_once(owner: Any, name: str) -> None:
    """Replace `owner.name` by a version that caches its results by arguments."""
    if (owner.__name__, name) in _LOADED_ONCE:
        return
    _LOADED_ONCE.add((owner.__name__, name))
    load, results = getattr(owner, name), {}

    def cached(*args: Any, **kwargs: Any) -> Any:
        key = repr((args, sorted(kwargs.items())))
        if key not in results:
            results[key] = load(*args, **kwargs)
        return results[key]

    setattr(owner, name, cached)


@functools.cache
def _full_info(path: str | None) -> list[dict[str, Any]]:
    """VBench's prompts, from a file or from its package."""
    if path is None:
        path = str(Path(str(importlib.import_module("vbench").__file__)).parent / "VBench_full_info.json")
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _versions(device: str) -> dict[str, str]:
    """Versions and GPU, on which a score depends: AMT scales its input by the GPU's memory."""
    from importlib import metadata

    packages = ("vbench", "torch", "torchvision", "pyiqa", "timm", "transformers", "decord", "opencv-python", "numpy")
    versions = {name: metadata.version(name) for name in packages} | {"python": sys.version.split()[0]}
    if device.startswith("cuda"):
        gpu = importlib.import_module("torch").cuda.get_device_properties(0)
        versions |= {"gpu": gpu.name, "gpu_memory": str(gpu.total_memory)}
    return versions


def _exit_with_parent(parent: int | None) -> None:
    """End this process when its parent process has ended."""
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
