"""Measurements of the metrics on this machine, side by side in one run: `make bench what=metrics`.

mhd     mHD-MSE of 1080p frames: ours, F.interpolate on the whole clip, and the same frame by frame; from uint8 frames.
niqe    NIQE of a 1080p frame: ours and pyiqa's, with the same pristine statistics.
stream  `benchmarks.measure.score` of an encoded 4K clip of `frames` frames: frames per second and peak memory of its
process.

mhd and niqe are on one thread, their rivals in turn, medians of `repeats` rounds after one to warm up; stream is on all
cores. Frames are a seeded texture; the clip pans over one.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.measure.metric_weights import MissingWeights, find
from benchmarks.metrics import lookup
from benchmarks.metrics.implementation import FrameView, Scorer, scorer_of
from pw.io.arguments import Command, number, option
from pw.io.files import writable_file, write_json
from pw.io.host import default_threads, usable_cores
from pw.io.lazy import torch
from pw.io.paths import OUTPUTS, ROOT

if TYPE_CHECKING:
    from pw.io.video import Frames

HD, UHD = (1080, 1920), (2160, 3840)
FRAMES = 16  # of the whole clip: its floats are 400 MB, far more than any cache
STREAMED = {"mhd_mse": 1.0, "mhd_mse,niqe": 3.0}  # GB at most
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Measured:
    """One number: what it is of, and what is aimed at.

    sense: whether the aim is the "least" or the "most" that the value may be.
    note: why there is no value, and which command supplies what is missing.
    """

    part: str
    what: str
    value: float | None
    unit: str
    aim: float | None = None
    sense: str = ""
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.value is None or self.aim is None:
            return None
        return self.value >= self.aim if self.sense == "least" else self.value <= self.aim


def texture(height: int, width: int, seed: int = 0) -> Frames:
    """Seeded colours whose spectrum falls off as a photograph's, uint8 `[height, width, 3]`."""
    import numpy as np

    rng = np.random.default_rng(seed)
    falls = 1 / (np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)) + 2 / (height + width))
    grey = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * falls, (height, width))
    grey *= 40 / grey.std()
    picture = np.empty((height, width, 3), np.uint8)
    for channel, share in enumerate((1.0, 0.9, 0.8)):
        picture[..., channel] = np.clip(128 + share * grey + rng.normal(0, 1, grey.shape), 0, 255)
    return picture


def pan(frames: int, height: int, width: int) -> Frames:
    """A clip `[frames, height, width, 3]` over one texture, 2 px down and 1 px aside a frame; all views of it."""
    from numpy.lib.stride_tricks import as_strided

    picture = texture(height + 2 * (frames - 1), width + frames - 1)
    row, column, channel = picture.strides
    return as_strided(picture, (frames, height, width, 3), (2 * row + column, row, column, channel), writeable=False)


def in_turn(rivals: Mapping[str, Callable[[], float]], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """(rival -> its value, rival -> median of its seconds), run in turn after one round to warm up."""
    values: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats + 1):
        for name, run in rivals.items():
            began = time.perf_counter()
            values[name] = run()
            seconds[name].append(time.perf_counter() - began)
    return values, {name: statistics.median(times[1:]) for name, times in seconds.items()}


def value_of(name: str, scorer: Scorer, frames: Frames) -> float:
    """A metric of frames `[F, H, W, 3]`, one after the other on this thread."""
    from pw.io.video import VideoInfo

    video = scorer.begin(VideoInfo(*frames.shape[:3], fps=24.0, codec="rawvideo"))
    kept = [video.frame(FrameView(i, image)) for i, image in enumerate(frames) if video.wants(i)]
    return video.result(kept)[name]


def interpolated(frames: Frames, ks: Sequence[int]) -> float:
    """mHD-MSE as it is written down: R_k of the whole clip as float `[F, 3, H, W]`, squared difference, mean."""
    from torch.nn.functional import interpolate

    clip = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    height, width = clip.shape[-2:]
    total = 0.0
    for k in ks:
        small = interpolate(clip, (height >> k, width >> k), mode="bilinear", align_corners=False)
        back = interpolate(small, (height, width), mode="bilinear", align_corners=False)
        total += float((clip - back).square().mean())
    return total / len(ks)


def bench_mhd(repeats: int) -> list[Measured]:
    """Ours against the whole clip, and against the same frame by frame."""
    import numpy as np

    scorer, ks = scorer_of(["mhd_mse"]), lookup("mhd_mse").settings["ks"]
    frames = np.ascontiguousarray(pan(FRAMES, *HD))
    values, seconds = in_turn(
        {
            "ours": lambda: value_of("mhd_mse", scorer, frames),
            "whole clip": lambda: interpolated(frames, ks),
            "frame by frame": lambda: statistics.fmean(interpolated(frame[None], ks) for frame in frames),
        },
        repeats,
    )
    ours, apart = values["ours"], [abs(value / values["ours"] - 1) for value in values.values()]
    times = [Measured("mhd", f"{name}, a 1080p frame", 1e3 * took / FRAMES, "ms") for name, took in seconds.items()]
    return [
        *times,
        Measured("mhd", "faster than the whole clip", seconds["whole clip"] / seconds["ours"], "x", 3.0, "least"),
        Measured("mhd", "faster at equal memory", seconds["frame by frame"] / seconds["ours"], "x", 1.5, "least"),
        Measured("mhd", "largest relative difference", max(apart), "", 1e-5, "most"),
        Measured("mhd", "mHD-MSE of the clip", ours, ""),
    ]


def bench_niqe(repeats: int) -> list[Measured]:
    try:
        scorer = scorer_of(["niqe"])
    except MissingWeights as error:
        return [Measured("niqe", "ours", None, "ms", note=str(error))]
    frames = texture(*HD)[None]
    rivals = {"ours": lambda: value_of("niqe", scorer, frames)}
    theirs = pyiqa_niqe() if importlib.util.find_spec("pyiqa") else None
    if theirs is not None:
        rivals["pyiqa"] = lambda: theirs(frames[0])
    values, seconds = in_turn(rivals, repeats)
    found = [Measured("niqe", f"{name}, a 1080p frame", 1e3 * took, "ms") for name, took in seconds.items()]
    found.append(Measured("niqe", "NIQE of the frame", values["ours"], ""))
    if theirs is None:
        note = "pyiqa is not installed: `make iqa` adds it"
        return [*found, Measured("niqe", "faster than pyiqa", None, "x", 4.0, "least", note)]
    found.append(Measured("niqe", "faster than pyiqa", seconds["pyiqa"] / seconds["ours"], "x", 4.0, "least"))
    return [*found, Measured("niqe", "difference", abs(values["ours"] - values["pyiqa"]), "", 0.01, "most")]


def pyiqa_niqe() -> Callable[[Frames], float]:
    """pyiqa's NIQE of a frame uint8 `[H, W, 3]`, with the statistics that ours uses; nothing is fetched."""
    import numpy as np
    from scipy.io import savemat

    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        mat = Path(folder) / "niqe.mat"
        with np.load(find("niqe")) as file:
            savemat(mat, {"mu_prisparam": file["mu_pris_param"], "cov_prisparam": file["cov_pris_param"]})
        # by name, not by an import: pyiqa's door is benchmarks/metrics/musiq.py
        metric = importlib.import_module("pyiqa").create_metric("niqe", pretrained_model_path=str(mat), device="cpu")
    return lambda image: float(metric(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255))


def bench_stream(frames: int) -> list[Measured]:
    found = []
    with tempfile.TemporaryDirectory(prefix="pw-bench-") as work:
        folder = Path(work) / "videos"
        folder.mkdir()
        # in another process: Linux lets a child begin with its parent's peak memory
        writer = multiprocessing.get_context("spawn").Process(target=write_clip, args=(folder / "pan.mp4", frames, UHD))
        writer.start()
        writer.join()
        if writer.exitcode:
            raise RuntimeError(f"the clip could not be written (exit status {writer.exitcode})")
        for metrics, most in STREAMED.items():
            name = f"{metrics}: {frames} 4K frames"
            try:
                if "niqe" in metrics:
                    find("niqe")
            except MissingWeights as error:
                found.append(Measured("stream", name, None, "frames/s", note=str(error)))
                continue
            seconds, peak = score_in_a_process(folder, metrics, Path(work) / metrics)
            found += [
                Measured("stream", name, frames / seconds, "frames/s"),
                Measured("stream", f"{metrics}: peak memory", peak / 1e9, "GB", most, "most"),
            ]
    return found


def write_clip(path: Path, frames: int, size: tuple[int, int]) -> None:
    """An H.264 clip of the panning texture; size: height and width."""
    from pw.io.video import write_video

    write_video(path, pan(frames, *size), lossless=False)


def score_in_a_process(folder: Path, metrics: str, out: Path) -> tuple[float, float]:
    """(seconds, peak memory in bytes) of `pw score`, nothing cached. Raises RuntimeError if it fails."""
    words = [f"videos={folder}", f"metrics={metrics}", f"out={out / 'scores.csv'}", f"cache={out / 'cache'}"]
    out.mkdir()
    with (out / "log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen([sys.executable, "-m", "pw", "score", *words], cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        if process.returncode:
            raise RuntimeError(f"benchmarks.measure.score of {metrics} failed:\n{log.read()}")
    run = json.loads((out / "scores.protocol.json").read_text(encoding="utf-8"))["run"]
    return run["seconds"], usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device() -> str:
    """The processor's name, without the machine's."""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or "CPU"


def report(what: str, measured: Sequence[Measured], out: Path | None, about: Mapping[str, Any]) -> None:
    """Print what was measured, and write it to a JSON file named by the processor, or to `out`."""
    show(measured)
    name = device()
    out = out or OUTPUTS / "bench" / f"{what}_{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}.json"
    rows = [{**asdict(row), "met": row.met} for row in measured]
    write_json(out, {"device": name, "cores": usable_cores(), "torch": torch.__version__, **about, "measured": rows})
    print(out)


def show(found: Sequence[Measured]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # 80 columns hold it
    for head in ("", "measured", "value", "", "aim", ""):
        table.add_column(head, justify="right" if head in ("value", "aim") else "left", no_wrap=True)
    for row in found:
        value = "–" if row.value is None else f"{row.value:.4g}"
        aim = "" if row.aim is None else f"{'≥' if row.sense == 'least' else '≤'} {row.aim:g}"
        table.add_row(row.part, row.what, value, row.unit, aim, {None: "", True: "met", False: "missed"}[row.met])
    console = Console()
    console.print(table)
    for row in found:
        if row.note:
            console.print(f"{row.part}, {row.what} –  {escape(row.note)}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class MetricBenchOptions:
    only: tuple[Literal["mhd", "niqe", "stream"], ...] = option(("mhd", "niqe", "stream"), "what is measured")
    frames: int = option(121, "frames of the 4K clip", read=number(1))
    repeats: int = option(5, "rounds, of which the median counts", read=number(1))
    out: Path | None = option(
        None, "the JSON file, by default outputs/bench/metrics_<processor>.json", read=writable_file("out")
    )


def run(options: MetricBenchOptions) -> int:
    measured: list[Measured] = []
    if "stream" in options.only:  # first: while this process is small, and on all cores
        print(f"a 4K clip of {options.frames} frames …", file=sys.stderr, flush=True)
        measured += bench_stream(options.frames)
    threads = {"stream": default_threads(), "mhd": 1, "niqe": 1}
    os.environ.update(dict.fromkeys(THREADS, "1"))  # before numpy and torch are imported
    torch.set_num_threads(1)
    for part, bench in (("mhd", bench_mhd), ("niqe", bench_niqe)):
        if part in options.only:
            print(f"{part} …", file=sys.stderr, flush=True)
            measured += bench(options.repeats)
    report("metrics", measured, options.out, {"threads": threads, "repeats": options.repeats})
    return 0


main = Command(MetricBenchOptions, run)
